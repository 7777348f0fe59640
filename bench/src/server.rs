//! What every mail server under test can do, whatever it is.

use crate::group::Group;
use crate::stage::Stage;
use anyhow::{Result, bail};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

/// Where relays send: [`crate::responder::Responder`].
pub(crate) const SINK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2600);
/// Domain of the system users.
pub(crate) const LOCAL: &str = "bench.test";
/// A domain that goes to the sink.
pub(crate) const REMOTE: &str = "remote.test";
pub(crate) const RECIPIENTS_MAX: usize = 10_000;
pub(crate) const MESSAGE_BYTES_MAX: u64 = 50 << 20;
const START_WAIT: Duration = Duration::from_secs(30);

/// What a server does with what it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Mail for [`LOCAL`] into `~/Maildir`, all else to the sink.
    Deliver,
    /// Nothing: it keeps it.
    Hold,
}

/// A mail server: accepts any recipient from 127.0.0.1, [`RECIPIENTS_MAX`] of them, [`MESSAGE_BYTES_MAX`] bytes.
pub(crate) trait Server {
    fn version(&self, stage: &Stage) -> Result<String>;
    fn address(&self) -> SocketAddrV4;
    /// Starts it with an empty queue.
    fn start(&mut self, stage: &Stage, group: &Group, mode: Mode) -> Result<()>;
    /// Asks it to stop; [`Group::end`] comes after.
    fn stop(&mut self, stage: &Stage, group: &Group);
    /// Messages in its queue.
    fn queued(&self, stage: &Stage) -> Result<usize>;
}

/// Waits for a greeting.
///
/// # Errors
/// None came in time.
pub(crate) fn wait_for_greeting(address: SocketAddrV4) -> Result<()> {
    let until = Instant::now() + START_WAIT;
    while Instant::now() < until {
        if greeting(address).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("no greeting from {address} within {} s", START_WAIT.as_secs())
}

fn greeting(address: SocketAddrV4) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut text = [0; 512];
    let n = stream.read(&mut text)?;
    if text.get(..n).is_none_or(|text| !text.starts_with(b"220")) {
        bail!("no greeting");
    }
    stream.write_all(b"QUIT\r\n")?;
    let _ = stream.read(&mut text)?;
    Ok(())
}

/// Files below `dir`, however deep, whose names `counts`.
///
/// # Errors
/// The disk's. A missing directory has none.
pub(crate) fn files_below(dir: &std::path::Path, counts: &impl Fn(&str) -> bool) -> Result<usize> {
    let mut found = 0usize;
    if !dir.exists() {
        return Ok(0);
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found = found.saturating_add(files_below(&entry.path(), counts)?);
        } else if counts(&entry.file_name().to_string_lossy()) {
            found = found.saturating_add(1);
        }
    }
    Ok(found)
}
