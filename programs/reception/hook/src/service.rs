//! hook.sock: a loop that hands each connection to a process of its own.
//!
//! At most [`PROCESSES_MAX`] run at once; further connections wait in the socket's queue, and their clients give up in their own time. What is
//! under way when the system stops has [`DRAIN_MAX`], then it ends with this process.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use control::{Hooks, Ids, Root};
use ipc::hook::PROCESSES_MAX;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use sandbox::{Role, Socket};
use sys::inherited::Inherited;
use sys::signal::Signals;
use sys::spawn::{Child, Spawn};

use crate::{log, one};

/// How long they may go on when the system stops; less than qmail-start waits.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Connections taken before the processes are looked at again.
const ACCEPTS_MAX: usize = 32;
/// After a process could not be started.
const PAUSE: Duration = Duration::from_millis(100);

struct Service<'a> {
    root: &'a Root,
    ids: Ids,
    allowed: OwnedFd,
    running: Vec<Child>,
    retired: bool,
    stop_at: Option<Duration>,
}

/// The face as qmail-start starts it.
///
/// # Errors
/// The configuration is wrong, or poll(2) does not work.
pub fn serve(root: &Root) -> io::Result<()> {
    let hooks = Hooks::read(root).map_err(io::Error::other)?;
    let mut inherited = Inherited::take()?;
    let lifeline = inherited.one("lifeline")?;
    let listener = inherited.one(&format!("serve:{}", Socket::Hook.name()))?;
    let signals = Signals::new(&[Signal::TERM, Signal::INT, Signal::HUP])?;
    let allowed = sys::memfd::sealed(&one::allowed(&hooks))?;
    let ids = root.ids().map_err(io::Error::other)?;
    for program in hooks.checks.iter().chain(&hooks.queues) {
        let (path, _) = ipc::queue_program::place(std::os::unix::ffi::OsStrExt::from_bytes(&program[..]), root.path());
        if let Err(problem) = ipc::hook_program::trusted(&path, root.path()) {
            log(&format!("warning: {problem}"));
        }
    }
    sys::confine::not_dumpable()?;
    inherited.ready()?;
    let mut service = Service { root, ids, allowed, running: Vec::new(), retired: false, stop_at: None };
    service.run(listener, &lifeline, &signals)
}

impl Service<'_> {
    fn run(&mut self, listener: OwnedFd, lifeline: &OwnedFd, signals: &Signals) -> io::Result<()> {
        let mut listener = Some(listener);
        loop {
            let open = listener.as_ref().filter(|_| self.running.len() < PROCESSES_MAX);
            let [said, signalled, connected] = self.wait(open, lifeline, signals)?;
            if said && self.stop_at.is_none() {
                match rustix::io::read(lifeline, &mut [0u8; 8][..]) {
                    Ok(1..) => self.retired = true,
                    Ok(0) | Err(_) => self.drain(),
                }
            }
            // The configuration counts for a generation: SIGHUP makes another, and must not end this one.
            while signalled && let Some(signal) = signals.next() {
                if signal != Signal::HUP {
                    self.drain();
                }
            }
            if connected && let Some(listener) = &listener {
                self.accept(listener);
            }
            self.running.retain(|child| child.try_wait().is_none());
            if self.retired || self.stop_at.is_some() {
                listener = None;
                if self.running.is_empty() || self.stop_at.is_some_and(|at| sys::clock::boottime() >= at) {
                    self.running.iter().for_each(|child| child.signal(Signal::KILL));
                    return Ok(());
                }
            }
        }
    }

    /// Is there something on the lifeline, a signal, a connection?
    fn wait(&self, listener: Option<&OwnedFd>, lifeline: &OwnedFd, signals: &Signals) -> io::Result<[bool; 3]> {
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        if self.stop_at.is_none() {
            fds.push(PollFd::new(lifeline, PollFlags::IN));
        }
        let at = fds.len();
        fds.extend(listener.map(|listener| PollFd::new(listener, PollFlags::IN)));
        fds.extend(self.running.iter().map(|child| PollFd::new(&child.pidfd, PollFlags::IN)));
        let left = self.stop_at.map(|at| at.saturating_sub(sys::clock::boottime()).saturating_add(Duration::from_millis(1)));
        match poll(&mut fds, left.and_then(|left| Timespec::try_from(left).ok()).as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is_ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok([self.stop_at.is_none() && is_ready(1), is_ready(0), listener.is_some() && is_ready(at)])
    }

    fn drain(&mut self) {
        self.stop_at.get_or_insert(sys::clock::boottime().saturating_add(DRAIN_MAX));
    }

    fn accept(&mut self, listener: &OwnedFd) {
        for _ in 0..ACCEPTS_MAX {
            if self.running.len() >= PROCESSES_MAX {
                return;
            }
            let Ok(client) = sys::seqpacket::accept(listener.as_fd()) else { return };
            let uid_of = |role: Role| self.ids.uid_of(role.name());
            if !client.peer().is_ok_and(|peer| sandbox::may_call(Socket::Hook, peer.uid, uid_of)) {
                continue;
            }
            let stderr = rustix::stdio::stderr();
            let mut spawn = Spawn::new(Path::new("/proc/self/exe")).arg("--root").arg(self.root.path()).arg("--one");
            for name in ["PATH", "QMAIL_ROOT"] {
                if let Some(value) = std::env::var_os(name) {
                    spawn = spawn.env(name, value);
                }
            }
            let spawn = spawn.stderr(stderr).dir(Path::new("/")).dies_with_parent();
            match spawn.fd("client", client.as_fd()).fd("allowed", self.allowed.as_fd()).start() {
                Ok(child) => self.running.push(child),
                Err(error) => {
                    log(&format!("warning: a process for a program cannot be started: {error}"));
                    return std::thread::sleep(PAUSE);
                }
            }
        }
    }
}
