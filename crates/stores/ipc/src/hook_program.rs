//! Runs one hook program to its end: what it is given, how long it may take, what its end means.
//!
//! Guarantees: the program leads a process group of its own, which is gone when this returns; it has just the descriptors of its interface and
//! the environment it is given; what it writes has a bound ([`OUTPUT_LEN_MAX`]); so has its time. Whatever goes wrong is
//! [`Answer::Failed`], temporary. Never here: a shell, but for a plugin that is written as `:COMMAND`, whose text is root's own: nothing that
//! a client says is ever part of an argument.
//! Used by qmail-hook, and by the helper of qmail-smtpd's classic face.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, kill_process_group};
use sys::spawn::{Child, Ended, Spawn};

use crate::field::Bytes;
use crate::hook::Answer;
use crate::queue_program;

/// Longest output of a plugin, in bytes. With what is around it, it fits a datagram.
pub const OUTPUT_LEN_MAX: usize = 16 * 1024;
/// For a plugin, and for a program that judges a recipient.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// For a program in the place of qmail-queue, whose client may be slow: the 24 hours of qmail-queue.
pub const QUEUE_DEADLINE: Duration = Duration::from_secs(86_400);
/// The program could not be run (the code of the classic callers).
const NOT_RUN: i32 = queue_program::EXIT_EXEC as i32;

/// Where it runs, and who is waiting for it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Of the instance.
    pub root: &'a Path,
    /// Readable when nobody waits any more.
    pub client: BorrowedFd<'a>,
    /// Beside what the request holds: `NAME`, `VALUE`.
    pub environment: &'a [(std::ffi::OsString, std::ffi::OsString)],
}

impl Place<'_> {
    /// A plugin: its line of `control/smtpplugins`.
    #[must_use]
    pub fn plugin(&self, line: &[u8], environment: &[Bytes]) -> Answer {
        let spawn = match line.strip_prefix(b":") {
            Some(command) => Ok(self.shell(command)),
            None => self.spawn(line),
        };
        let run = || {
            let (output, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            let (stderr, spawn) = (io::stderr(), spawn?);
            let spawn = given(spawn, environment)?.stdout(theirs.as_fd()).stderr(stderr.as_fd());
            let child = spawn.start()?;
            drop(theirs);
            self.wait(child, Some(output), ANSWER_DEADLINE)
        };
        run().unwrap_or_else(Answer::failed)
    }

    /// A program that judges a recipient. Its standard output is the log's.
    #[must_use]
    pub fn check(&self, program: &[u8], environment: &[Bytes]) -> Answer {
        let run = || {
            let (words, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            let (stderr, null) = (io::stderr(), File::open("/dev/null")?);
            let spawn = given(self.spawn(program)?, environment)?.stdout(stderr.as_fd()).stderr(stderr.as_fd());
            let child = spawn.fd("null", null.as_fd()).fd("report", theirs.as_fd()).start()?;
            drop(theirs);
            self.wait(child, Some(words), ANSWER_DEADLINE)
        };
        run().unwrap_or_else(Answer::failed)
    }

    /// A program in the place of qmail-queue: the output is its words on descriptor 4 or 6.
    #[must_use]
    pub fn queue(&self, program: &[u8], environment: &[Bytes], text: OwnedFd, envelope: OwnedFd) -> Answer {
        let run = || {
            let (report, theirs) = queue_program::report_pipe()?;
            let (stderr, null) = (io::stderr(), File::open("/dev/null")?);
            let spawn =
                given(self.spawn(program)?, environment)?.stdin(text.as_fd()).stdout(envelope.as_fd()).stderr(stderr.as_fd());
            let child = queue_program::with_report(spawn, ("null", null.as_fd()), theirs.as_fd()).start()?;
            // Only the program holds them now, so that whoever writes sees when it reads no more.
            drop((text, envelope, theirs));
            Ok::<_, io::Error>(match self.wait(child, None, QUEUE_DEADLINE)? {
                Answer::Ended { code, pid, .. } => Answer::Ended { code, pid, output: report.read().into() },
                failed @ Answer::Failed { .. } => failed,
            })
        };
        run().unwrap_or_else(Answer::failed)
    }

    fn spawn<'b>(&self, program: &[u8]) -> io::Result<Spawn<'b>> {
        let (program, dir) = queue_program::place(OsStr::from_bytes(program), self.root);
        let program = trusted(&program, self.root)?;
        Ok(self.settled(Spawn::new(&program), &dir))
    }

    fn shell<'b>(&self, command: &[u8]) -> Spawn<'b> {
        let (_, dir) = queue_program::place(OsStr::new("sh"), self.root);
        self.settled(Spawn::new(Path::new("/bin/sh")).arg("-c").arg(OsStr::from_bytes(command)), &dir)
    }

    fn settled<'b>(&self, spawn: Spawn<'b>, dir: &Path) -> Spawn<'b> {
        let spawn = self.environment.iter().fold(spawn, |spawn, (name, value)| spawn.env(name, value));
        spawn.dir(dir).dies_with_parent().leads_group()
    }

    /// Waits for the end, reading meanwhile.
    fn wait(&self, child: Child, output: Option<OwnedFd>, deadline: Duration) -> io::Result<Answer> {
        let pid = child.pid.as_raw_nonzero().get().unsigned_abs();
        let waited = self.watch(&child, output, sys::clock::boottime().saturating_add(deadline));
        // Not reaped yet, so the number of the group is its own: what it left behind goes, too.
        let _ = kill_process_group(child.pid, Signal::KILL);
        let ended = child.wait();
        let output = match waited? {
            Watched::Ended(output) => output,
            Watched::Late => return Ok(Answer::failed(format_args!("no end within {} s", deadline.as_secs()))),
            Watched::TooMuch => return Ok(Answer::failed(format_args!("more than {OUTPUT_LEN_MAX} bytes of output"))),
            Watched::Alone => return Ok(Answer::failed("nobody waits for it any more")),
        };
        Ok(match ended {
            Ended::Code(NOT_RUN) => Answer::failed("it says that it cannot be run (exit 120)"),
            Ended::Code(code) => Answer::Ended { code: code.unsigned_abs(), pid, output: output.into() },
            Ended::Signal(signal) => Answer::failed(format_args!("it crashed (signal {signal})")),
            Ended::Unknown => Answer::failed("how it ended is not known"),
        })
    }

    fn watch(&self, child: &Child, output: Option<OwnedFd>, until: Duration) -> io::Result<Watched> {
        let mut output = output.map(File::from);
        if let Some(output) = &output {
            rustix::io::ioctl_fionbio(output, true)?;
        }
        let mut text = Vec::new();
        loop {
            let left = until.saturating_sub(sys::clock::boottime());
            if left.is_zero() {
                return Ok(Watched::Late);
            }
            let mut fds = vec![PollFd::new(&child.pidfd, PollFlags::IN), PollFd::from_borrowed_fd(self.client, PollFlags::IN)];
            fds.extend(output.as_ref().map(|output| PollFd::new(output, PollFlags::IN)));
            match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let is_ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
            let (has_ended, is_alone) = (is_ready(0), is_ready(1));
            drop(fds);
            // What was written before the end is all there.
            if let Some(open) = &mut output
                && !read_some(open, &mut text)?
            {
                output = None;
            }
            if text.len() > OUTPUT_LEN_MAX {
                return Ok(Watched::TooMuch);
            }
            if has_ended {
                return Ok(Watched::Ended(text));
            }
            if is_alone {
                return Ok(Watched::Alone);
            }
        }
    }
}

enum Watched {
    Ended(Vec<u8>),
    Late,
    TooMuch,
    /// Whoever asked is gone.
    Alone,
}

/// Reads what is there, a little over the bound at most; false at the end of it.
fn read_some(from: &mut File, text: &mut Vec<u8>) -> io::Result<bool> {
    let mut buf = [0; 4096];
    while text.len() <= OUTPUT_LEN_MAX {
        match from.read(&mut buf) {
            Ok(0) => return Ok(false),
            Ok(len) => text.extend_from_slice(buf.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Adds `NAME=VALUE`s.
fn given<'a>(mut spawn: Spawn<'a>, environment: &[Bytes]) -> io::Result<Spawn<'a>> {
    for variable in environment {
        let wrong = || io::Error::other("a variable that cannot be one");
        let equals = variable.iter().position(|b| *b == b'=').filter(|at| *at > 0).ok_or_else(wrong)?;
        let (name, value) = variable.split_at_checked(equals).ok_or_else(wrong)?;
        if variable.contains(&0) {
            return Err(wrong());
        }
        spawn = spawn.env(OsStr::from_bytes(name), OsStr::from_bytes(value.get(1..).unwrap_or_default()));
    }
    Ok(spawn)
}

/// The program itself, behind all links, if nobody but root (or whoever owns etc/qmail/control) can change it, nor put another in its place.
///
/// # Errors
/// It is not there, or others can; temporary.
pub fn trusted(program: &Path, root: &Path) -> io::Result<PathBuf> {
    let named = |text: &str| io::Error::other(format!("{}: {text}", program.display()));
    let real = std::fs::canonicalize(program).map_err(|error| named(&error.to_string()))?;
    let owner = std::fs::metadata(root.join("etc/qmail/control")).map(|metadata| metadata.uid()).unwrap_or(0);
    for place in real.ancestors() {
        let metadata = std::fs::metadata(place).map_err(|error| named(&error.to_string()))?;
        if place == real && !metadata.is_file() {
            return Err(named("is no file"));
        }
        let is_sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
        let others_may_write = metadata.mode() & 0o022 != 0 && !is_sticky;
        if others_may_write || (metadata.uid() != 0 && metadata.uid() != owner) {
            return Err(named(&format!(
                "{} could be changed by others; it must be root's, and theirs to read alone",
                place.display()
            )));
        }
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use sys::Seqpacket;

    struct Stage {
        dir: tempfile::TempDir,
        ours: Seqpacket,
        theirs: Seqpacket,
    }

    fn stage() -> Stage {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/qmail/control")).unwrap();
        std::fs::create_dir_all(dir.path().join("var/qmail")).unwrap();
        let (ours, theirs) = Seqpacket::pair().unwrap();
        Stage { dir, ours, theirs }
    }

    impl Stage {
        fn place<'a>(&'a self, environment: &'a [(std::ffi::OsString, std::ffi::OsString)]) -> Place<'a> {
            Place { root: self.dir.path(), client: self.theirs.as_fd(), environment }
        }

        fn program(&self, script: &str, mode: u32) -> Vec<u8> {
            let path = self.dir.path().join("program");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path.into_os_string().into_encoded_bytes()
        }
    }

    fn output(answer: &Answer) -> String {
        match answer {
            Answer::Ended { code, output, .. } => format!("{code} {}", output.escape_ascii()),
            Answer::Failed { text } => format!("failed: {}", text.escape_ascii()),
        }
    }

    #[test]
    fn a_program_gets_its_environment_and_nothing_else() {
        let stage = stage();
        let environment = [("PATH".into(), "/usr/bin:/bin".into())];
        let place = stage.place(&environment);
        let said =
            output(&place.plugin(b":env | grep -v ^PWD= | grep -v ^_= | sort; pwd; ls /proc/self/fd | wc -w", &["A=b=c".into()]));
        let home = stage.dir.path().join("var/qmail");
        assert_eq!(
            said,
            format!("0 A=b=c\\nPATH=/usr/bin:/bin\\n{}\\n4\\n", home.display()),
            "0, 1, 2 and the directory that ls reads"
        );
        let program = stage.program("echo out; echo words >&4; exit 100", 0o755);
        assert_eq!(output(&place.check(&program, &[])), "100 words\\n");
        for bad in ["", "=x", "A"] {
            assert!(output(&place.plugin(b":true", &[bad.into()])).starts_with("failed"), "{bad}");
        }
    }

    #[test]
    fn what_goes_wrong_is_a_failure_and_leaves_nothing_behind() {
        let stage = stage();
        let environment = [("PATH".into(), "/usr/bin:/bin".into())];
        let place = stage.place(&environment);
        for (line, said) in [
            (&b":kill -9 $$"[..], "failed: it crashed (signal 9)"),
            (b":exit 120", "failed: it says that it cannot be run (exit 120)"),
            (b":yes", "failed: more than 16384 bytes of output"),
            (b"/nonexistent", "failed: /nonexistent: "),
        ] {
            assert!(output(&place.plugin(line, &[])).starts_with(said), "{}", line.escape_ascii());
        }
        // What it leaves in the background goes with it, and does not hold the answer up.
        let mark = stage.dir.path().join("pid");
        let line = format!(":sleep 1000 & echo $! > {}; echo N", mark.display());
        assert_eq!(output(&place.plugin(line.as_bytes(), &[])), "0 N\\n");
        let pid = std::fs::read_to_string(&mark).unwrap();
        let is_there = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "));
        for _ in 0..1000 {
            if !is_there() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!is_there());
        // And a program that hangs goes with its client.
        drop(stage.ours);
        let place = Place { root: stage.dir.path(), client: stage.theirs.as_fd(), environment: &environment };
        assert_eq!(output(&place.plugin(b":sleep 1000", &[])), "failed: nobody waits for it any more");
    }

    #[test]
    fn a_program_that_others_can_change_is_not_run() {
        let stage = stage();
        let place = stage.place(&[]);
        for (mode, runs) in [(0o755, true), (0o775, false), (0o757, false), (0o644, false)] {
            let program = stage.program("exit 0", mode);
            assert_eq!(output(&place.check(&program, &[])).starts_with('0'), runs, "{mode:o}");
        }
        let program = stage.program("exit 0", 0o755);
        std::fs::set_permissions(stage.dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(output(&place.check(&program, &[])).contains("could be changed by others"));
    }
}
