//! What can go wrong with a mailbox, and how qmail-local says it. All of it is temporary, and the message stays in the queue, but for a
//! mailbox that is full.

use std::fmt;
use std::io;

/// A delivery or a mailbox that failed.
#[derive(Debug)]
pub enum Error {
    /// The Maildir is not there or may not be entered.
    NoMaildir(io::Error),
    /// The message could not be read.
    Read(io::Error),
    /// Something could not be created, written, synced or named in a Maildir.
    Write(io::Error),
    /// An mbox file could not be opened.
    OpenMbox(Vec<u8>, io::Error),
    /// An mbox file could not be written or synced; what was written has been cut off again.
    WriteMbox(Vec<u8>, io::Error),
    /// Somebody held the lock of an mbox file all the time that we wait.
    Locked,
    /// The mailbox has no room for the message.
    OverQuota { is_temporary: bool },
}

impl Error {
    /// May the same delivery succeed later?
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        !matches!(self, Self::OverQuota { is_temporary: false })
    }

    /// The errno behind it, if there is one.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::NoMaildir(e) | Self::Read(e) | Self::Write(e) | Self::OpenMbox(_, e) | Self::WriteMbox(_, e) => Some(e),
            Self::Locked | Self::OverQuota { .. } => None,
        }
    }
}

impl fmt::Display for Error {
    /// The classic texts (qmail-family §1.3).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMaildir(_) => f.write_str("Unable to chdir to maildir. (#4.2.1)"),
            Self::Read(_) => f.write_str("Unable to read message. (#4.3.0)"),
            Self::Write(_) => f.write_str("Temporary error on maildir delivery. (#4.3.0)"),
            Self::OpenMbox(path, e) => {
                write!(f, "Unable to open {}: {}. (#4.2.1)", wire::escape::visible(path), sys::errno::text(e))
            }
            Self::WriteMbox(path, e) => {
                write!(f, "Unable to write {}: {}. (#4.3.0)", wire::escape::visible(path), sys::errno::text(e))
            }
            Self::OverQuota { is_temporary } => {
                write!(f, "Sorry, the mailbox is full. (#{}.2.2)", if *is_temporary { 4 } else { 5 })
            }
            Self::Locked => f.write_str("File has been locked for 30 seconds straight. (#4.3.0)"),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_classic_ones() {
        let e = || io::Error::from_raw_os_error(13);
        for (error, text) in [
            (Error::NoMaildir(e()), "Unable to chdir to maildir. (#4.2.1)"),
            (Error::Read(e()), "Unable to read message. (#4.3.0)"),
            (Error::Write(e()), "Temporary error on maildir delivery. (#4.3.0)"),
            (Error::OpenMbox(b"./M\x1b".to_vec(), e()), "Unable to open ./M\\x1b: access denied. (#4.2.1)"),
            (Error::WriteMbox(b"/m".to_vec(), e()), "Unable to write /m: access denied. (#4.3.0)"),
            (Error::Locked, "File has been locked for 30 seconds straight. (#4.3.0)"),
        ] {
            assert_eq!(error.to_string(), text);
            assert!(error.is_temporary());
        }
    }
}
