//! The alert that an account has reached its sending limit, by mail: to the addresses of `control/alerts`, or where there are none to the
//! postmaster of the account's domain; and to those who administer the domain.
//!
//! It goes through inject.sock like anybody's mail, with an empty return path, from a thread of its own: the queue may take its time. If it
//! cannot be queued the log says so, and the line about the limit stands there anyway. No more than [`UNDER_WAY_MAX`] at a time.

use crate::server::log;
use ipc::queue::{Answer, FLAG_SMTPUTF8};
use ipc::submission::Submission;
use message::notice::Notice;
use sandbox::Socket;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use wire::Address;

/// Alerts on their way into the queue; one more is only logged.
const UNDER_WAY_MAX: usize = 4;
/// How often, and after what pause, the queue's socket is tried.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(200);
/// Addresses of one alert.
pub(crate) const RECIPIENTS_MAX: usize = 60;

/// What sends alerts.
#[derive(Debug)]
pub(crate) struct Alerts {
    run: Arc<OwnedFd>,
    under_way: Arc<AtomicUsize>,
}

/// One alert.
#[derive(Debug)]
pub(crate) struct Alert {
    pub(crate) from: Address,
    pub(crate) to: Vec<Address>,
    pub(crate) subject: String,
    pub(crate) text: String,
}

impl Alerts {
    pub(crate) fn new(run: Arc<OwnedFd>) -> Self {
        Self { run, under_way: Arc::default() }
    }

    pub(crate) fn send(&self, alert: Alert) {
        if self.under_way.fetch_add(1, Ordering::AcqRel) >= UNDER_WAY_MAX {
            self.under_way.fetch_sub(1, Ordering::AcqRel);
            return log("too many alerts at once: one is not sent by mail");
        }
        let (run, under_way) = (Arc::clone(&self.run), Arc::clone(&self.under_way));
        let started = std::thread::Builder::new().name("alert".to_owned()).spawn(move || {
            if let Err(error) = queue(&run, &alert) {
                log(format_args!("an alert could not be sent by mail: {error}"));
            }
            under_way.fetch_sub(1, Ordering::AcqRel);
        });
        if let Err(error) = started {
            self.under_way.fetch_sub(1, Ordering::AcqRel);
            log(format_args!("an alert could not be sent by mail: {error}"));
        }
    }
}

fn queue(run: &OwnedFd, alert: &Alert) -> io::Result<()> {
    let mut submission = connect(run)?;
    let is_utf8 = alert.to.iter().any(Address::is_utf8_only);
    submission.begin(Address::null(), if is_utf8 { FLAG_SMTPUTF8 } else { 0 })?;
    for address in &alert.to {
        submission.recipient(address.clone())?;
    }
    let random = sys::random::bytes16()?;
    let to = alert.to.first().map(Address::as_bytes).unwrap_or_default();
    let notice = Notice {
        from: alert.from.as_bytes(),
        to,
        subject: alert.subject.as_bytes(),
        text: alert.text.as_bytes(),
        now_s: sys::clock::unix_s(),
        unique: random.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)),
        kind: "alert",
    };
    submission.data(&notice.build())?;
    match submission.commit()? {
        Answer::Accepted { .. } => Ok(()),
        Answer::Temporary { text } | Answer::Permanent { text } => Err(io::Error::other(wire::escape::visible(&text))),
    }
}

/// The queue may be starting, or busy.
fn connect(run: &OwnedFd) -> io::Result<Submission> {
    let mut attempt = 1;
    loop {
        match Submission::connect(run.as_fd(), Socket::Inject.path()) {
            Err(_) if attempt < ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(PAUSE);
            }
            connected => return connected,
        }
    }
}
