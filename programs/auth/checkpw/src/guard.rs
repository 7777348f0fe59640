//! `--guard PROGRAM ARGS…`: runs what judges one login, and leaves nothing of it behind.
//!
//! Whatever the program starts, also in a session of its own, becomes this process's child when its parent ends (prctl(2),
//! `PR_SET_CHILD_SUBREAPER`). When the program has ended, or the service has let go of the descriptor `guard` (it gives up, or is gone
//! itself), all of them are killed, and then this process ends as the program did. It reads and writes nothing and keeps none of the
//! descriptors that it hands over.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions};
use sys::inherited::{Inherited, VARIABLE};
use sys::spawn::{Child, Ended, Spawn};

/// The name of the descriptor whose end means: give up.
const LIFELINE: &str = "guard";
/// The program cannot be started, as a shell says it.
const NOT_STARTED: u8 = 127;
/// To a signal's number, as a shell has it.
const SIGNALLED: i32 = 128;
/// Between two looks for processes that are not gone yet.
const PAUSE: Duration = Duration::from_millis(2);

/// A program under guard. Dropping it ends the program; [`Guarded::child`] is gone when all that it started is.
#[derive(Debug)]
pub struct Guarded {
    pub child: Child,
    lifeline: OwnedFd,
}

impl Guarded {
    /// Starts a program; `with` adds its arguments, environment and descriptors.
    ///
    /// # Errors
    /// Out of processes or descriptors; temporary.
    pub fn start<'a>(program: &Path, with: impl FnOnce(Spawn<'a>) -> Spawn<'a>) -> io::Result<Self> {
        let (theirs, lifeline) = pipe_with(PipeFlags::CLOEXEC)?;
        let spawn = with(Spawn::new(&control::program::sibling("qmail-checkpw")).arg("--guard").arg(program));
        let child = start(spawn, &theirs)?;
        Ok(Self { child, lifeline })
    }

    /// Ends the program; the child is what to wait for.
    #[must_use]
    pub fn give_up(self) -> Child {
        drop(self.lifeline);
        self.child
    }
}

fn start(spawn: Spawn<'_>, lifeline: &OwnedFd) -> io::Result<Child> {
    let stderr = io::stderr();
    spawn.dir(Path::new("/")).stderr(stderr.as_fd()).fd(LIFELINE, lifeline.as_fd()).start()
}

/// The face.
#[must_use]
pub fn run(program: &Path, args: &[OsString]) -> ExitCode {
    let started = Inherited::take().and_then(|mut inherited| {
        let lifeline = inherited.one(LIFELINE)?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        Ok((lifeline, start_program(program, args, inherited)?))
    });
    let (lifeline, child) = match started {
        Ok(started) => started,
        Err(error) => {
            crate::log(&format!("{}: {error}", program.display()));
            return ExitCode::from(NOT_STARTED);
        }
    };
    let mut fds = [PollFd::new(&child.pidfd, PollFlags::IN), PollFd::new(&lifeline, PollFlags::IN)];
    let _ = rustix::io::retry_on_intr(|| poll(&mut fds, None));
    // Only now may it be reaped: as long as it is not, its number is its own.
    let ended = child.try_wait().unwrap_or(Ended::Signal(Signal::KILL.as_raw()));
    end_children();
    let code = match ended {
        Ended::Code(code) => code,
        Ended::Signal(signal) => SIGNALLED.saturating_add(signal),
        Ended::Unknown => NOT_STARTED.into(),
    };
    ExitCode::from(u8::try_from(code).unwrap_or(NOT_STARTED))
}

/// With this process's environment and, under their names, the descriptors it was given.
fn start_program(program: &Path, args: &[OsString], mut inherited: Inherited) -> io::Result<Child> {
    let fds = inherited.all("");
    let stderr = io::stderr();
    let mut spawn = Spawn::new(program).dir(Path::new("/")).stderr(stderr.as_fd()).dies_with_parent().leads_group();
    for (name, value) in std::env::vars_os().filter(|(name, _)| name != VARIABLE) {
        spawn = spawn.env(name, value);
    }
    for arg in args {
        spawn = spawn.arg(arg);
    }
    for (name, fd) in &fds {
        spawn = spawn.fd(name, fd.as_fd());
    }
    spawn.start()
}

/// Kills children until there are none. Those of a child that dies are this process's before it can be reaped.
fn end_children() {
    loop {
        for child in children() {
            // Not reaped, so the number is nobody else's.
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// This process's own, from /proc/PID/stat, `pid (name) state parent …`.
fn children() -> Vec<Pid> {
    let own = rustix::process::getpid();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
    let parent = |pid: &Pid| {
        let stat = std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        // The name may hold anything, the rest no parenthesis.
        let rest = stat.rsplit(|b| *b == b')').next()?;
        let parent = rest.split(|b| *b == b' ').nth(2)?;
        std::str::from_utf8(parent).ok()?.parse().ok().and_then(Pid::from_raw)
    };
    pids.filter(|pid| parent(pid) == Some(own)).collect()
}
