//! Descriptors that qmail-start (or systemd) handed to this process: numbers from 3 up, named in order by `QMAIL_FDS`.
//!
//! `QMAIL_FDS="lifeline serve:queue listen:smtp:0"` says that 3 is the lifeline, 4 the listening Unix socket of that name and
//! 5 a listening TCP socket. The set is taken once, at the start, and marked close-on-exec.
//!
//! systemd hands qmail-start sockets that it keeps listening through restarts: numbers from 3 up too, counted by `LISTEN_FDS`
//! (sd_listen_fds(3)).
//!
//! The lifeline is a pipe from qmail-start. A byte in it: another generation serves from now on, so take nothing new and end when
//! what is under way is done. Its end, which wins over a byte: drain for 5 s and exit; qmail-start is gone, or wants that.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The variable that names the descriptors.
pub const VARIABLE: &str = "QMAIL_FDS";
/// The first number.
pub const FIRST: RawFd = 3;
/// More names than this are refused.
const COUNT_MAX: usize = 256;

/// The set belongs to one owner: it was taken, by name or from systemd.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The named descriptors of a service process.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(String, OwnedFd)>);

impl Inherited {
    /// Takes what [`VARIABLE`] names. Works once in a process.
    ///
    /// # Errors
    /// The variable is missing, names a number that is not open, or was taken already.
    pub fn take() -> io::Result<Self> {
        let names = std::env::var(VARIABLE).map_err(|_| other("QMAIL_FDS is not set: this face is started by qmail-start"))?;
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(other("QMAIL_FDS was taken already"));
        }
        let mut taken = Vec::new();
        for (name, number) in names.split_ascii_whitespace().take(COUNT_MAX).zip(FIRST..) {
            let fd =
                adopt(number)?.ok_or_else(|| other(&format!("QMAIL_FDS names {name}, but descriptor {number} is not open")))?;
            taken.push((name.to_owned(), fd));
        }
        Ok(Self(taken))
    }

    /// The descriptor with exactly this name.
    ///
    /// # Errors
    /// It was not handed over.
    pub fn one(&mut self, name: &str) -> io::Result<OwnedFd> {
        let at =
            self.0.iter().position(|(n, _)| n == name).ok_or_else(|| other(&format!("no descriptor {name} in QMAIL_FDS")))?;
        Ok(self.0.swap_remove(at).1)
    }

    /// Tells qmail-start that this process has read its configuration, is confined and serves: once, after `sandbox::enter`.
    /// A new generation of workers is used, and `qmail start` prints `ready`, only after that.
    ///
    /// # Errors
    /// There is no descriptor `ready`, or qmail-start is gone.
    pub fn ready(&mut self) -> io::Result<()> {
        let fd = self.one("ready")?;
        rustix::io::write(&fd, b"r").map(drop).map_err(io::Error::from)
    }

    /// All descriptors whose name starts with `prefix`, with the rest of their names, in order.
    pub fn all(&mut self, prefix: &str) -> Vec<(String, OwnedFd)> {
        let (found, rest) = std::mem::take(&mut self.0).into_iter().partition(|(name, _)| name.starts_with(prefix));
        self.0 = rest;
        let found: Vec<(String, OwnedFd)> = found;
        found.into_iter().map(|(name, fd)| (name.get(prefix.len()..).unwrap_or_default().to_owned(), fd)).collect()
    }
}

/// The sockets that systemd holds for this process and no other (`LISTEN_PID` says whose they are). Works once in a process; nothing
/// where systemd hands over nothing.
///
/// # Errors
/// `LISTEN_FDS` counts numbers that are not open, or the set was taken already.
pub fn from_systemd() -> io::Result<Vec<OwnedFd>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    let count = match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => count,
        _ => return Ok(Vec::new()),
    };
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(other("the descriptors were taken already"));
    }
    let count = usize::try_from(count).unwrap_or(COUNT_MAX).min(COUNT_MAX);
    let adopted = (FIRST..).take(count).map(|number| {
        adopt(number)?.ok_or_else(|| other(&format!("LISTEN_FDS is {count}, but descriptor {number} is not open")))
    });
    adopted.collect()
}

/// Takes an inherited number, close-on-exec from now on; `None` if it is not open. Only for the one who has set [`TAKEN`], and once for
/// each number.
fn adopt(number: RawFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: F_GETFD on any number is harmless; it tells whether the number is open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Ok(None);
    }
    // SAFETY: the number is open, and TAKEN makes sure that it is owned just once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(Some(fd))
}

fn other(text: &str) -> io::Error {
    io::Error::other(text.to_owned())
}
