//! One run of the program: its arguments, its descriptors, its deadline, and the end of it and of what it started.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use control::Root;
use ipc::field::Verdict;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};
use sys::spawn::{Child, Spawn, left_in_pipe};

use crate::report;

/// As much of what it prints as is read for its report, in bytes; the rest is passed over.
pub const OUTPUT_LEN_MAX: usize = 64 * 1024;
/// It may run for so many times `timeoutremote`: longer than a conversation that goes on at all.
const TIMES_TIMEOUT: u64 = 10;
const STOPPING: &[u8] = b"qmail is stopping. (#4.3.2)\n";
const TOO_LONG: &[u8] = b"The program in the place of qmail-remote ran for too long and was stopped. (#4.3.0)\n";

/// The program and how it is run.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    root: PathBuf,
    /// Where it finds qmail-remote and the others: beside this program first.
    search: OsString,
    time_max: Duration,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    /// Each the leader of a group.
    groups: BTreeSet<i32>,
    /// Nothing starts any more.
    is_over: bool,
}

impl Program {
    /// `path` is absolute.
    ///
    /// # Errors
    /// The control files cannot be read.
    pub fn new(path: PathBuf, root: &Root) -> Result<Self, control::ControlError> {
        let seconds = |name: &str, default: u64| Ok::<u64, control::ControlError>(root.int(name)?.unwrap_or(default).max(1));
        let conversation = seconds("timeoutremote", 1200)?.saturating_mul(TIMES_TIMEOUT);
        let time_max = Duration::from_secs(conversation.saturating_add(seconds("timeoutconnect", 60)?));
        let own = control::program::sibling("qmail-remote");
        let mut search = own.parent().unwrap_or(Path::new(control::program::LIBEXEC)).as_os_str().to_owned();
        search.push(":/usr/lib/qmail:/usr/local/bin:/usr/bin:/bin");
        Ok(Self { path, root: root.path().to_owned(), search, time_max, running: Mutex::default() })
    }

    /// Runs it for one recipient, to its end or its deadline. The thread that calls this must live until then.
    pub fn run(&self, host: &[u8], sender: &[u8], recipient: &[u8], message: &File) -> (Verdict, Vec<u8>) {
        match self.start(&[host, sender, recipient], message) {
            Ok(Some((child, output))) => self.wait_for(&child, output),
            Ok(None) => (Verdict::Deferral, STOPPING.to_vec()),
            Err(error) => {
                eprintln!("warning: cannot start {}: {error}", self.path.display());
                (Verdict::Deferral, report::NOT_RUN.to_vec())
            }
        }
    }

    /// Ends all that run, with what they started; none starts after this.
    pub fn end_all(&self) {
        let mut running = self.running();
        running.is_over = true;
        for group in running.groups.iter().filter_map(|group| Pid::from_raw(*group)) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: too late for any.
    fn start(&self, arguments: &[&[u8]], message: &File) -> io::Result<Option<(Child, OwnedFd)>> {
        let (output, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let stderr = io::stderr();
        let mut spawn = Spawn::new(&self.path).env(control::root::ROOT_VARIABLE, &self.root).env("PATH", &self.search);
        for argument in arguments {
            spawn = spawn.arg(OsStr::from_bytes(argument));
        }
        let spawn = spawn.dir(Path::new("/")).stdin(message.as_fd()).stdout(theirs.as_fd()).stderr(stderr.as_fd());
        let spawn = spawn.leads_group().dies_with_parent();
        // Held over the start: whoever ends all sees each that runs.
        let mut running = self.running();
        if running.is_over {
            return Ok(None);
        }
        let child = spawn.start()?;
        running.groups.insert(child.pid.as_raw_nonzero().get());
        Ok(Some((child, output)))
    }

    fn wait_for(&self, child: &Child, output: OwnedFd) -> (Verdict, Vec<u8>) {
        let until = sys::clock::boottime().saturating_add(self.time_max);
        let mut said = Vec::new();
        let ended = listen(child, output, &mut said, until);
        if ended.is_none() {
            let _ = rustix::process::kill_process_group(child.pid, Signal::KILL);
            child.signal(Signal::KILL);
        }
        // Its number, and so its group's, is nobody else's before it is reaped.
        self.running().groups.remove(&child.pid.as_raw_nonzero().get());
        let how = child.wait();
        match ended {
            Some(()) => report::read(how, &said),
            None => (Verdict::Deferral, TOO_LONG.to_vec()),
        }
    }
}

/// Reads what it prints until it ends; what it leaves in the background is not waited for. `None`: the time is over.
fn listen(child: &Child, output: OwnedFd, said: &mut Vec<u8>, until: Duration) -> Option<()> {
    let mut output = Some(output);
    loop {
        let left = until.checked_sub(sys::clock::boottime())?;
        let mut fds = vec![PollFd::new(&child.pidfd, PollFlags::IN)];
        fds.extend(output.as_ref().map(|output| PollFd::new(output, PollFlags::IN)));
        // Rounded up: a rest of less than a millisecond must not spin.
        let left = Timespec::try_from(left.saturating_add(Duration::from_millis(1))).ok();
        if poll(&mut fds, left.as_ref()).is_err() {
            continue;
        }
        let has_ended = !fds.first().is_none_or(|fd| fd.revents().is_empty());
        let has_output = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if has_ended {
            if let Some(output) = &output {
                left_in_pipe(output, |piece| keep(piece, said));
            }
            return Some(());
        }
        if has_output && !output.as_ref().is_some_and(|output| take(output, said)) {
            output = None;
        }
    }
}

/// Takes a piece of output; `false` at its end.
fn take(output: &OwnedFd, said: &mut Vec<u8>) -> bool {
    let mut piece = [0; 4096];
    match rustix::io::read(output, &mut piece[..]) {
        Ok(0) => false,
        Ok(len) => {
            keep(piece.get(..len).unwrap_or_default(), said);
            true
        }
        Err(errno) => errno == rustix::io::Errno::INTR,
    }
}

fn keep(piece: &[u8], said: &mut Vec<u8>) {
    let room = OUTPUT_LEN_MAX.saturating_sub(said.len());
    said.extend_from_slice(piece.get(..piece.len().min(room)).unwrap_or_default());
}

/// The message of a job for a program that reads it from the beginning.
///
/// # Errors
/// It cannot be read; temporary.
pub fn message(body: &OwnedFd) -> io::Result<File> {
    sys::memfd::own_description(body.try_clone()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(script: &str, timeouts: u64) -> (tempfile::TempDir, Program) {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        for name in ["timeoutremote", "timeoutconnect"] {
            std::fs::write(root.control_file(name), format!("{timeouts}\n")).unwrap();
        }
        let path = dir.path().join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut program = Program::new(path, &root).unwrap();
        program.time_max = program.time_max.min(Duration::from_secs(timeouts));
        (dir, program)
    }

    fn run(script: &str, timeouts: u64) -> (Verdict, Vec<u8>) {
        let (_dir, program) = program(script, timeouts);
        let body = sys::memfd::sealed(b"Subject: x\n\nbody\n").unwrap();
        let message = message(&body).unwrap();
        // Another process may hold a descriptor of a script that was just written (execve(2), ETXTBSY).
        for _ in 0..100 {
            let said = program.run(b"h.example", b"s@x", b"$(id)@h.example", &message);
            if said.1 != report::NOT_RUN {
                assert!(program.running().groups.is_empty());
                return said;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        (Verdict::Deferral, report::NOT_RUN.to_vec())
    }

    #[test]
    fn it_gets_its_arguments_and_the_message_and_is_heard() {
        let said = run("printf 'r\\0K%s,%s,%s,%s,' \"$#\" \"$1\" \"$2\" \"$3\"; cat; printf '\\0'; echo log >&2", 600);
        assert_eq!(said, (Verdict::Success, b"3,h.example,s@x,$(id)@h.example,Subject: x\n\nbody\n".to_vec()));
    }

    #[test]
    fn one_that_hangs_crashes_or_talks_for_ever_is_a_deferral() {
        assert_eq!(run("sleep 1000", 1), (Verdict::Deferral, TOO_LONG.to_vec()));
        assert_eq!(run("yes", 1), (Verdict::Deferral, TOO_LONG.to_vec()));
        assert_eq!(run("kill -11 $$", 600), (Verdict::Deferral, report::CRASHED.to_vec()));
        let said = run("printf K; head -c 300000 /dev/zero | tr '\\0' x; printf '\\0'", 600);
        assert_eq!(said, (Verdict::Deferral, report::MANGLED.to_vec()), "its end is beyond the bound");
    }

    #[test]
    fn what_it_leaves_in_the_background_is_not_waited_for() {
        assert_eq!(run("printf 'Kdone\\0'; sleep 1000 & exit 0", 600), (Verdict::Success, b"done".to_vec()));
        assert_eq!(run("printf 'Kdone\\0'; yes & exit 0", 20), (Verdict::Success, b"done".to_vec()), "it goes on printing");
    }

    #[test]
    fn none_starts_when_all_were_ended() {
        let (dir, program) = program("touch \"$0.ran\"; printf 'Kdone\\0'", 600);
        program.end_all();
        let message = message(&sys::memfd::sealed(b"x").unwrap()).unwrap();
        assert_eq!(program.run(b"h", b"s@x", b"r@h", &message), (Verdict::Deferral, STOPPING.to_vec()));
        assert!(!dir.path().join("program.ran").exists());
    }
}
