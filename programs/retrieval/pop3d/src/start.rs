//! Start-up: who we are, the Maildir, confinement, then the client.

use crate::{Drop, Report, serve};
use maildir::{Bounds, Mailbox, Maildir};
use pop3::command;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt;
use sandbox::Access;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Without a byte for so long the session ends, nothing changed (RFC 1939 §3: at least 600 seconds; the classic program has 1200).
const IDLE_MAX: Duration = Duration::from_secs(1200);
/// The replies of the classic program.
const NO_MAILDIR: &str = "this user has no $HOME/Maildir";
const NO_SCAN: &str = "unable to scan $HOME/Maildir";

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    if rustix::process::geteuid().is_root() {
        // A mailbox of root's would let anyone who guesses a password read as root (R15).
        let _ = writeln!(io::stderr(), "qmail-pop3d: refusing to run as root");
        return ExitCode::from(1);
    }
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match session(args.first().map(Path::new)) {
        Ok(()) => {}
        Err(Ended::Refused(reply)) => {
            let _ = io::stdout().write_all(&command::err(reply)).and_then(|()| io::stdout().flush());
        }
        Err(Ended::Broken(error)) => drop(writeln!(io::stderr(), "qmail-pop3d: {error}")),
    }
    ExitCode::SUCCESS
}

/// Why a session did not end with QUIT or with the end of its input.
enum Ended {
    /// It cannot begin: what the client is told.
    Refused(&'static str),
    /// The client is gone, or a message could not be read.
    Broken(io::Error),
}

fn session(path: Option<&Path>) -> Result<(), Ended> {
    // Not through std's buffers: what lies in them would not be seen by poll(2).
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from).map_err(Ended::Broken);
    let (input, mut output) = (copy(io::stdin().as_fd())?, copy(io::stdout().as_fd())?);
    let maildrop = open(path).map_err(Ended::Refused)?;
    // A client that takes nothing is as dead as a silent one. Not every descriptor is a socket.
    let _ = sockopt::set_socket_timeout(&output, sockopt::Timeout::Send, Some(IDLE_MAX));
    let (started, mut report) = (sys::clock::boottime(), Report::default());
    let ended = serve(&mut Client(input), &mut output, maildrop, &mut report);
    report.log(started);
    ended.map_err(Ended::Broken)
}

/// Opens, sweeps, confines and lists; the error is the text of the reply.
fn open(path: Option<&Path>) -> Result<Drop, &'static str> {
    let path = path.filter(|path| !path.as_os_str().is_empty()).ok_or(NO_MAILDIR)?;
    let mailbox = open_mailbox(path).map_err(|_| if is_entered(path) { NO_SCAN } else { NO_MAILDIR })?;
    let place = std::path::absolute(path).map_err(|_| NO_MAILDIR)?;
    confine(place).map_err(|error| {
        let _ = writeln!(io::stderr(), "qmail-pop3d: {error}");
        "[SYS/TEMP] cannot start the session"
    })?;
    mailbox.sweep(sys::clock::unix_s());
    Drop::new(mailbox).map_err(|_| "[SYS/TEMP] unable to scan $HOME/Maildir")
}

/// Is there a directory? Then it is what it holds that cannot be read.
fn is_entered(path: &Path) -> bool {
    if path.is_relative() {
        return rustix::fs::open(path.join("."), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).is_ok();
    }
    let (Some(home), Some(name)) = (path.parent(), path.file_name()) else { return false };
    home_directory(home).and_then(|home| maildir::open_dir(home.as_fd(), name.as_bytes(), Bounds::Beneath)).is_ok()
}

/// An absolute path is a virtual user's: `BASE/USER/Maildir`, where nothing below BASE may be a link, and what is missing is made.
fn open_mailbox(path: &Path) -> Result<Mailbox, maildir::Error> {
    let no = |errno: rustix::io::Errno| maildir::Error::NoMaildir(errno.into());
    let directory = |path: &Path| rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    if path.is_relative() {
        let here = directory(Path::new(".")).map_err(no)?;
        return Mailbox::open(here.as_fd(), path.as_os_str().as_bytes(), Bounds::Anywhere);
    }
    let (home, name) = (path.parent(), path.file_name());
    let (Some(home), Some(name)) = (home, name) else { return Err(no(rustix::io::Errno::NOENT)) };
    let home = home_directory(home).map_err(maildir::Error::NoMaildir)?;
    Maildir::open_or_create(home.as_fd(), name.as_bytes(), Bounds::Beneath)?;
    Mailbox::open(home.as_fd(), name.as_bytes(), Bounds::Beneath)
}

fn home_directory(home: &Path) -> io::Result<OwnedFd> {
    let (Some(base), Some(user)) = (home.parent(), home.file_name()) else { return Err(io::ErrorKind::NotFound.into()) };
    let base = rustix::fs::open(base, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match maildir::open_dir(base.as_fd(), user.as_bytes(), Bounds::Beneath) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    maildir::make_home(base.as_fd(), user.as_bytes())?;
    maildir::open_dir(base.as_fd(), user.as_bytes(), Bounds::Beneath)
}

fn confine(maildir: PathBuf) -> io::Result<()> {
    sandbox::enter_as("qmail-pop3d", Path::new("/"), &[(maildir, Access::ReadWrite)]).map(drop)
}

/// The client's input, with an end to patience.
struct Client(File);

impl Read for Client {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let timeout = rustix::event::Timespec::try_from(IDLE_MAX).map_err(io::Error::other)?;
        let ready = rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout));
        match ready {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => self.0.read(buf),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_mailbox_and_one_that_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("joe/Maildir")).unwrap();
        std::fs::write(dir.path().join("joe/Maildir/cur"), "").unwrap();
        std::fs::write(dir.path().join("ann"), "").unwrap();
        let refused = |path: Option<&Path>| open(path).err();
        for path in [None, Some(Path::new("")), Some(Path::new("is/not/there")), Some(&dir.path().join("ann/Maildir"))] {
            assert_eq!(refused(path), Some(NO_MAILDIR), "{path:?}");
        }
        assert_eq!(refused(Some(&dir.path().join("joe/Maildir"))), Some(NO_SCAN));
    }
}
