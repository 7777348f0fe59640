//! How the log is written (`control/logformat`), and journald's own socket.

use control::{ControlError, LogFormat, Root};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

/// Below the root, as `dev/log` of splogger is.
const SOCKET: &str = "run/systemd/journal/socket";

/// `control/logformat`; without it classic, but journald's where standard error is the journal.
///
/// # Errors
/// The file cannot be read or says something else; temporary.
pub fn format(root: &Root) -> Result<LogFormat, ControlError> {
    let default = || if stderr_is_the_journal() { LogFormat::Journal } else { LogFormat::Classic };
    Ok(LogFormat::read(root)?.unwrap_or_else(default))
}

/// systemd.exec(5): JOURNAL_STREAM is `DEVICE:INODE` of the stream that was made for this service; standard error may have been
/// redirected since.
fn stderr_is_the_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    rustix::fs::fstat(std::io::stderr().as_fd()).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// journald, as far as there is one.
#[derive(Debug)]
pub struct Journal {
    socket: PathBuf,
    connection: Option<UnixDatagram>,
}

impl Journal {
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, connection: None }
    }

    /// The host's own.
    #[must_use]
    pub fn of(root: &Root) -> Self {
        Self::new(root.path().join(SOCKET))
    }

    /// Waits until journald takes the entry; false if there is none, or if it does not take it. Once more over a new connection if it was
    /// started anew.
    pub fn send(&mut self, entry: &[u8]) -> bool {
        for _ in 0..2 {
            if self.connection.is_none() {
                self.connection = UnixDatagram::unbound().and_then(|new| new.connect(&self.socket).map(|()| new)).ok();
            }
            if self.connection.as_ref().is_some_and(|connection| connection.send(entry).is_ok()) {
                return true;
            }
            self.connection = None;
        }
        false
    }
}
