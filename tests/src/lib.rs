//! The whole system under test: real programs, a temporary root, real sockets and a real disk.
//!
//! An [`Instance`] is set up by `qmail setup`, started by `qmail start` and driven from outside only. As root its processes run
//! under ids of their own, so it lies below /var/tmp, where every role can reach it.

pub mod apparmor;
pub mod classic_queue;
pub mod debian;
pub mod dns;
pub mod dovecot;
pub mod escaped;
pub mod facts;
pub mod instance;
pub mod line;
pub mod loop_disk;
pub mod pebble;
pub mod peer;
pub mod postfix;
pub mod postgres;
pub mod s_client;
pub mod slapd;
pub mod strace;
pub mod targets;
pub mod tools;
pub mod traffic;
pub mod users;

pub use instance::Instance;
pub use line::{Pop3, Smtp};
pub use peer::Peer;
pub use users::Person;

use std::io::Write;
use std::time::{Duration, Instant};

/// How long a test waits for something that must happen. Nothing is measured by it: a slow machine has room.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done` gives a value.
///
/// # Errors
/// It does not within [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        if Instant::now() > until {
            anyhow::bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Is this run root's?
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Notes that a test cannot run here: `cargo xtask test` counts and prints these. A test that needs root calls it only when it
/// is not root.
pub fn skip(test: &str, reason: &str) {
    println!("skipped: {test}: {reason}");
    if let Some(list) = std::env::var_os("QMAIL_SKIPPED") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(list);
        let _ = file.and_then(|mut file| writeln!(file, "{test}: {reason}"));
    }
}
