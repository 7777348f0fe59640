//! Program lines: `/bin/sh -c LINE` in the home, with the message on descriptor 0 (qmail-command(8)).
//!
//! What comes from outside, addresses above all, stands in the environment and nowhere else; the line is the owner's own.

use crate::failure::Failure;
use dotqmail::exit::{Verdict, verdict};
use rustix::event::{PollFd, PollFlags, poll};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;
use sys::spawn::{Child, Ended, Spawn, left_in_pipe};

/// As much of the programs' output as goes into a report, in bytes (qmail-lspawn's bound).
const OUTPUT_LEN_MAX: usize = 3000;
/// Stands behind what was kept of more than that (qmail-lspawn's words).
const TOO_LONG: &[u8] = b"\nError report too long, sorry.\n";

/// Where a program's output and errors go.
#[derive(Debug)]
pub enum Output {
    /// To the caller's own (classic face).
    Inherited,
    /// Into the report.
    Captured(Mutex<Vec<u8>>),
}

/// Runs program lines.
#[derive(Debug)]
pub struct Shell {
    output: Output,
}

impl Shell {
    /// Output goes where the caller's does.
    #[must_use]
    pub fn inherited() -> Self {
        Self { output: Output::Inherited }
    }

    /// Output is kept for [`Shell::take_output`].
    #[must_use]
    pub fn captured() -> Self {
        Self { output: Output::Captured(Mutex::new(Vec::new())) }
    }

    /// What the programs have said so far, at most [`OUTPUT_LEN_MAX`] bytes; the last line says so if it was more.
    #[must_use]
    pub fn take_output(&self) -> Vec<u8> {
        let mut said = match &self.output {
            Output::Inherited => Vec::new(),
            Output::Captured(kept) => kept.lock().map(|mut kept| std::mem::take(&mut *kept)).unwrap_or_default(),
        };
        if said.len() > OUTPUT_LEN_MAX {
            said.truncate(OUTPUT_LEN_MAX.saturating_sub(TOO_LONG.len()));
            said.extend_from_slice(TOO_LONG);
        }
        said
    }

    /// Runs a line. `message` is rewound first; its offset is the program's.
    ///
    /// # Errors
    /// The program failed: temporary or permanent as its exit code says. It could not be started: temporary.
    pub fn run(
        &self,
        line: &[u8],
        home: &[u8],
        environment: &[(&'static str, Vec<u8>)],
        message: BorrowedFd<'_>,
    ) -> Result<Verdict, Failure> {
        rustix::fs::seek(message, rustix::fs::SeekFrom::Start(0))
            .map_err(|_| Failure::temporary("Unable to rewind message. (#4.3.0)"))?;
        let mut spawn = Spawn::new(Path::new("/bin/sh")).arg("-c").arg(OsStr::from_bytes(line));
        spawn = spawn.dir(Path::new(OsStr::from_bytes(home))).stdin(message);
        for (name, value) in inherited_environment() {
            spawn = spawn.env(name, value);
        }
        for (name, value) in environment {
            spawn = spawn.env(name, OsStr::from_bytes(value));
        }
        let ended = self.wait_for(spawn).map_err(|e| Failure::system("Unable to run /bin/sh", &e))?;
        match ended {
            Ended::Signal(_) | Ended::Unknown => Err(Failure::temporary("Aack, child crashed. (#4.3.0)")),
            Ended::Code(code) => match verdict(u8::try_from(code).unwrap_or(u8::MAX)) {
                Verdict::Permanent => Err(Failure::permanent("")),
                Verdict::Temporary => Err(Failure::temporary("")),
                done => Ok(done),
            },
        }
    }
}

impl Shell {
    /// Starts a program whose output goes where ours goes, and waits for its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn wait_for(&self, spawn: Spawn<'_>) -> io::Result<Ended> {
        match &self.output {
            Output::Inherited => {
                let (stdout, stderr) = (io::stdout(), io::stderr());
                Ok(spawn.stdout(stdout.as_fd()).stderr(stderr.as_fd()).start()?.wait())
            }
            Output::Captured(kept) => {
                let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                // Whoever captures is the one-shot worker: should it be killed, the line must not go on beside the next attempt.
                let child = spawn.stdout(write.as_fd()).stderr(write.as_fd()).dies_with_parent().start()?;
                drop(write);
                Ok(capture(&child, read, kept))
            }
        }
    }
}

/// The caller's environment without the names that speak of a delivery: those of this one are set anew, none is left of another.
pub(crate) fn inherited_environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| {
        let own = dotqmail::ENVIRONMENT_NAMES.iter().any(|own| name == *own);
        !own && name != sys::inherited::VARIABLE
    })
}

/// Reads output until the program ends. What it leaves running in the background is not waited for.
fn capture(child: &Child, read: OwnedFd, kept: &Mutex<Vec<u8>>) -> Ended {
    let mut read = Some(read);
    loop {
        let mut fds = vec![PollFd::new(&child.pidfd, PollFlags::IN)];
        fds.extend(read.as_ref().map(|read| PollFd::new(read, PollFlags::IN)));
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let has_ended = !fds.first().is_none_or(|fd| fd.revents().is_empty());
        let has_output = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if has_ended {
            if let Some(read) = &read {
                left_in_pipe(read, |piece| keep(piece, kept));
            }
            return child.wait();
        }
        if has_output && !read.as_ref().is_some_and(|read| take(read, kept)) {
            read = None;
        }
    }
}

/// Takes a piece of output; `false` at its end.
fn take(read: &OwnedFd, kept: &Mutex<Vec<u8>>) -> bool {
    let mut piece = [0; 4096];
    match rustix::io::read(read, &mut piece[..]) {
        Ok(0) => false,
        Ok(len) => {
            keep(piece.get(..len).unwrap_or_default(), kept);
            true
        }
        Err(errno) => errno == rustix::io::Errno::INTR,
    }
}

fn keep(piece: &[u8], kept: &Mutex<Vec<u8>>) {
    if let Ok(mut kept) = kept.lock() {
        // One byte more tells that it was more.
        let room = OUTPUT_LEN_MAX.saturating_add(1).saturating_sub(kept.len());
        kept.extend_from_slice(piece.get(..piece.len().min(room)).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(shell: &Shell, line: &str) -> Result<Verdict, Failure> {
        let message = sys::memfd::sealed(b"Subject: x\n\nbody\n").unwrap();
        shell.run(line.as_bytes(), b"/", &[("SENDER", b"`id`; $(id)".to_vec())], message.as_fd())
    }

    #[test]
    fn output_is_kept_up_to_a_bound_and_exit_codes_are_read() {
        let shell = Shell::captured();
        assert_eq!(run(&shell, "cat; echo no >&2; echo \"$SENDER\"; exit 99"), Ok(Verdict::DoneStop));
        assert_eq!(shell.take_output(), b"Subject: x\n\nbody\nno\n`id`; $(id)\n");
        assert_eq!(run(&shell, "yes | head -c 100000"), Ok(Verdict::Done));
        let said = shell.take_output();
        assert!(
            said.len() == OUTPUT_LEN_MAX && said.ends_with(b"\ny\ny\nError report too long, sorry.\n"),
            "{}",
            said.escape_ascii()
        );
        assert_eq!(run(&shell, "yes | head -c 3000"), Ok(Verdict::Done));
        assert_eq!(shell.take_output(), b"y\n".repeat(1500));
        assert_eq!(run(&shell, "exit 100"), Err(Failure::permanent("")));
        assert_eq!(run(&shell, "exit 1"), Err(Failure::temporary("")));
        assert_eq!(run(&shell, "kill -9 $$"), Err(Failure::temporary("Aack, child crashed. (#4.3.0)")));
    }

    #[test]
    fn a_child_left_in_the_background_is_not_waited_for() {
        let shell = Shell::captured();
        let start = sys::clock::boottime();
        assert_eq!(run(&shell, "echo said; sleep 20 & exit 0"), Ok(Verdict::Done));
        assert!(sys::clock::boottime().saturating_sub(start).as_secs() < 10);
        assert_eq!(shell.take_output(), b"said\n");
    }

    /// It ends when nobody reads it any more.
    #[test]
    fn one_that_goes_on_printing_is_not_listened_to() {
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let shell = Shell::captured();
            let verdict = run(&shell, "echo said; yes & exit 0");
            let _ = done.send((verdict, shell.take_output()));
        });
        let (verdict, output) = ended.recv_timeout(std::time::Duration::from_secs(60)).expect("it is waited for");
        assert_eq!(verdict, Ok(Verdict::Done));
        assert!(output.starts_with(b"said\n"));
    }
}
