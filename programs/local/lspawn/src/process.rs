//! Starting what runs as somebody else: workers, one-shot workers, POP3 sessions.
//!
//! The one place in qmail where root becomes a user. The program, its arguments and its ids come from root's own files and from
//! checked values; nothing of a message reaches a command line or the environment.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use control::{Id, Root};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sys::Seqpacket;
use sys::spawn::{Child, Spawn};

use crate::target::Target;

/// The programs that are started.
#[derive(Debug, Clone)]
pub struct Programs {
    pub local: PathBuf,
    pub pop3d: PathBuf,
    root: PathBuf,
    /// For programs in `.qmail` files, which run under `/bin/sh`.
    path: OsString,
    /// Not root: everything runs as the caller, who cannot change ids.
    as_caller: bool,
}

impl Programs {
    /// As they lie beside this program or in the package's place.
    #[must_use]
    pub fn new(root: &Root, as_caller: bool) -> Self {
        let local = control::program::sibling("qmail-local");
        let mut path = local.parent().unwrap_or(Path::new(control::program::LIBEXEC)).as_os_str().to_owned();
        path.push(":/usr/lib/qmail:/usr/local/bin:/usr/bin:/bin");
        let pop3d = control::program::sibling("qmail-pop3d");
        Self { local, pop3d, root: root.path().to_owned(), path, as_caller }
    }

    /// For tests whose programs lie where nobody else can reach them.
    #[cfg(test)]
    pub fn run_as_caller(&mut self) {
        self.as_caller = true;
    }

    /// A warm worker: `qmail-local --worker`, for a virtual domain `qmail-local --worker --base DIR`.
    ///
    /// # Errors
    /// It cannot be started; temporary.
    pub fn start_worker(&self, target: &Target) -> io::Result<(Child, Seqpacket)> {
        let (ours, theirs) = Seqpacket::pair()?;
        let stderr = io::stderr();
        let mut spawn = self.program(&self.local, target.id).arg("--worker");
        if let Some(base) = &target.base {
            spawn = spawn.arg("--base").arg(base);
        }
        let child = spawn.stderr(stderr.as_fd()).fd("work", theirs.as_fd()).dies_with_parent().start()?;
        ours.set_nonblocking(true)?;
        Ok((child, ours))
    }

    /// An unconfined worker for one message whose `.qmail` file holds program lines: `qmail-local --once`. It starts programs
    /// of the recipient, so it gets no descriptor that leads anywhere but to its report, and leads the group that they are in. When this
    /// process ends it ends them and itself: a signal for it alone would leave them running beside the next attempt.
    ///
    /// With a `replacement` it runs that program in the place of all it would do itself.
    ///
    /// # Errors
    /// It cannot be started; temporary.
    pub fn start_once(&self, target: &Target, replacement: Option<&Path>) -> io::Result<(Child, Seqpacket)> {
        let (ours, theirs) = Seqpacket::pair()?;
        let mut spawn = self.program(&self.local, target.id).arg("--once");
        if let Some(replacement) = replacement {
            spawn = spawn.env(control::replacements::LOCAL.variable, replacement);
        }
        let child = spawn.fd("work", theirs.as_fd()).leads_group().start()?;
        ours.set_nonblocking(true)?;
        Ok((child, ours))
    }

    /// A POP3 session on a fresh pair of sockets: `qmail-pop3d MAILDIR` in `dir`, with one end as its standard input and output.
    /// Gives the other end. `user`: who logged in, for the log.
    ///
    /// # Errors
    /// It cannot be started; temporary.
    pub fn start_session(&self, id: Id, dir: &Path, maildir: &Path, user: &[u8]) -> io::Result<(Child, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let stderr = io::stderr();
        let spawn = self.program(&self.pop3d, id).arg(maildir).dir(dir).env("USER", OsStr::from_bytes(user));
        let child = spawn.stdin(theirs.as_fd()).stdout(theirs.as_fd()).stderr(stderr.as_fd()).start()?;
        Ok((child, ours))
    }

    fn program(&self, program: &Path, id: Id) -> Spawn<'_> {
        let spawn = Spawn::new(program).env(control::root::ROOT_VARIABLE, &self.root).env("PATH", &self.path);
        let spawn = spawn.dir(Path::new("/"));
        if self.as_caller { spawn } else { spawn.ids(sys::spawn::Ids { uid: id.uid, gid: id.gid }) }
    }
}
