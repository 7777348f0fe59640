//! One process that is kept running: started with its descriptors, its log read, started again when it ends.

use crate::log::{Log, Source, Splitter};
use crate::plan::Planned;
use crate::sockets::{Bound, RunDir};
use rustix::event::{PollFd, PollFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;
use sys::spawn::{Ended, Spawn};

/// First pause before a process that ended is started again; doubled each time up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A process that lived so long starts again after [`BACKOFF_MIN`].
const ALIVE_LONG: Duration = Duration::from_secs(5);
/// Bytes read from a log pipe in one go.
const READ_LEN: usize = 16 * 1024;
/// Search path of all processes, and so of programs in `.qmail` files.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process that runs.
#[derive(Debug)]
pub struct Running {
    process: sys::spawn::Child,
    /// `None` once every writer has closed it.
    log: Option<OwnedFd>,
    splitter: Splitter,
    ready: Option<OwnedFd>,
    is_ready: bool,
    /// A byte in it retires the process; closed, it makes it drain.
    lifeline: Option<OwnedFd>,
    since: Duration,
}

impl Running {
    /// Starts worker `number` of `planned`; workers that share a bound learn their number from `QMAIL_WORKER`.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(
        planned: &Planned,
        number: usize,
        root: &Path,
        run: &RunDir,
        bound: &[Bound],
        now: Duration,
    ) -> io::Result<Self> {
        let (log, log_child) = pipe_with(PipeFlags::CLOEXEC)?;
        let (ready, ready_child) = pipe_with(PipeFlags::CLOEXEC)?;
        let (lifeline_child, lifeline) = pipe_with(PipeFlags::CLOEXEC)?;
        for fd in [&log, &ready] {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let mut spawn =
            Spawn::new(&planned.program).arg("--service").env("QMAIL_ROOT", root).env("PATH", PATH).dir(Path::new("/"));
        for (name, value) in &planned.environment {
            spawn = spawn.env(name, value);
        }
        spawn = spawn.env("QMAIL_WORKER", format!("{number}/{}", planned.workers));
        spawn = spawn.stdout(log_child.as_fd()).stderr(log_child.as_fd());
        spawn = spawn.fd("lifeline", lifeline_child.as_fd()).fd("ready", ready_child.as_fd()).fd("run", run.dir.as_fd());
        for socket in planned.process.serves {
            let fd = run.socket(*socket).ok_or(io::ErrorKind::NotFound)?;
            spawn = spawn.fd(&format!("serve:{}", socket.name()), fd.as_fd());
        }
        for (line, listener) in &planned.listeners {
            let known = bound.iter().find(|b| b.address == listener.address).ok_or(io::ErrorKind::NotFound)?;
            spawn = spawn.fd(&format!("listen:{}:{line}", listener.service), known.fd.as_fd());
        }
        if let Some(ids) = planned.ids {
            spawn = spawn.ids(ids);
        }
        let process = spawn.start()?;
        let pid = process.pid.as_raw_nonzero();
        let splitter = Splitter::new(Source { name: planned.process.name, pid: u32::try_from(pid.get()).unwrap_or(0) });
        Ok(Self { process, log: Some(log), splitter, ready: Some(ready), is_ready: false, lifeline: Some(lifeline), since: now })
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid.as_raw_nonzero().get()
    }

    /// When it was started.
    #[must_use]
    pub fn since(&self) -> Duration {
        self.since
    }

    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Tells it that another generation serves from now on: it takes nothing new, and ends when what it has under way is done.
    pub fn retire(&self) {
        // The pipe has room for the one byte. One who has closed its end has ended.
        let _ = self.lifeline.as_ref().map(|lifeline| rustix::io::write(lifeline, b"r"));
    }

    /// Tells it to drain and end.
    pub fn drain(&mut self) {
        self.lifeline = None;
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Descriptors to wait for.
    pub fn poll_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.push(PollFd::new(&self.process.pidfd, PollFlags::IN));
        fds.extend([&self.log, &self.ready].into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)));
    }

    /// Reads what it logged and whether it is ready; answers how it ended if it has. Looks only at the descriptors
    /// that poll found ready, `stirred`. Bounded work; call it whenever poll woke up.
    pub fn look(&mut self, log: &Log, stirred: &[RawFd]) -> Option<Ended> {
        let stirred = |fd: BorrowedFd<'_>| stirred.contains(&fd.as_raw_fd());
        if let Some(ready) = self.ready.as_ref().filter(|fd| stirred(fd.as_fd())) {
            match rustix::io::read(ready, &mut [0u8; 8][..]) {
                Ok(0) => self.ready = None,
                Ok(_) => {
                    self.is_ready = true;
                    self.ready = None;
                }
                Err(_) => {}
            }
        }
        let ended = if stirred(self.process.pidfd.as_fd()) { self.process.try_wait() } else { None };
        if ended.is_some() || self.log.as_ref().is_some_and(|fd| stirred(fd.as_fd())) {
            self.read_log(log, ended.is_some());
        }
        ended
    }

    fn read_log(&mut self, log: &Log, has_ended: bool) {
        // After its end the pipe holds at most its capacity; while it lives one read a turn is fair to the others.
        let reads = if has_ended { 64 } else { 1 };
        for _ in 0..reads {
            let Some(pipe) = &self.log else { break };
            let mut buf = [0; READ_LEN];
            match rustix::io::read(pipe, &mut buf[..]) {
                Ok(0) => self.log = None,
                Ok(len) => self.splitter.push(buf.get(..len).unwrap_or_default(), log),
                Err(_) => break,
            }
        }
        if has_ended {
            self.splitter.end(log);
        }
    }
}

/// When a process that ended may be started again.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: BACKOFF_MIN }
    }
}

impl Backoff {
    /// The moment of the next start of a process that was started at `since` and ended at `now`.
    pub fn next(&mut self, since: Duration, now: Duration) -> Duration {
        if now.saturating_sub(since) >= ALIVE_LONG {
            self.pause = BACKOFF_MIN;
        }
        let at = now.saturating_add(self.pause);
        self.pause = self.pause.saturating_mul(2).min(BACKOFF_MAX);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_to_half_a_minute_and_starts_over_after_five_seconds_of_life() {
        let mut backoff = Backoff::default();
        let mut now = Duration::from_secs(1000);
        let pauses: Vec<u128> = (0..11)
            .map(|_| {
                let at = backoff.next(now, now);
                let pause = at - now;
                now = at;
                pause.as_millis()
            })
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(backoff.next(now, now + ALIVE_LONG), now + ALIVE_LONG + BACKOFF_MIN);
    }
}
