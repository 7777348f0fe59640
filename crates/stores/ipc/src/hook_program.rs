//! Runs one hook program to its end: what it is given, how long it may take, what its end means.
//!
//! Guarantees: the program leads a process group of its own, which is gone when this returns; it has just the descriptors of its interface and
//! the environment it is given; what it writes has a bound ([`OUTPUT_LEN_MAX`]); so has its time. Whatever goes wrong is
//! [`Answer::Failed`], temporary. Never here: a shell, but for a plugin that is written as `:COMMAND`, whose text is root's own: nothing that
//! a client says is ever part of an argument.
//! Used by qmail-hook, and by the helper of qmail-smtpd's classic face.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat, readlinkat};
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
    /// What the request changes: `NAME`, `VALUE`.
    pub environment: &'a [(OsString, OsString)],
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
            let spawn = with_changes(spawn, self.environment, environment)?.stdout(theirs.as_fd()).stderr(stderr.as_fd());
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
            let spawn = with_changes(self.spawn(program)?, self.environment, environment)?;
            let spawn = spawn.stdout(stderr.as_fd()).stderr(stderr.as_fd());
            let child = spawn.next_fd(null.as_fd()).next_fd(theirs.as_fd()).start()?;
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
            let spawn = with_changes(self.spawn(program)?, self.environment, environment)?;
            let spawn = spawn.stdin(text.as_fd()).stdout(envelope.as_fd()).stderr(stderr.as_fd());
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
        Ok(settled(Spawn::new(&program), &dir))
    }

    fn shell<'b>(&self, command: &[u8]) -> Spawn<'b> {
        let (_, dir) = queue_program::place(OsStr::new("sh"), self.root);
        settled(Spawn::new(Path::new("/bin/sh")).arg("-c").arg(OsStr::from_bytes(command)), &dir)
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

fn settled<'a>(spawn: Spawn<'a>, dir: &Path) -> Spawn<'a> {
    spawn.dir(dir).dies_with_parent().leads_group()
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

/// The environment `kept` as `changes` make it: `NAME=VALUE` sets a variable, `NAME` takes it away.
///
/// # Errors
/// One that can be no variable; temporary.
pub fn with_changes<'a>(spawn: Spawn<'a>, kept: &[(OsString, OsString)], changes: &[impl AsRef<[u8]>]) -> io::Result<Spawn<'a>> {
    let wrong = || io::Error::other("a variable that cannot be one");
    let name_of = |change: &[u8]| change.iter().position(|b| *b == b'=').unwrap_or(change.len());
    let is_changed =
        |name: &OsStr| changes.iter().any(|change| change.as_ref().get(..name_of(change.as_ref())) == Some(name.as_bytes()));
    let kept = kept.iter().filter(|(name, _)| !is_changed(name));
    let mut spawn = kept.fold(spawn, |spawn, (name, value)| spawn.env(name, value));
    for change in changes {
        let change = change.as_ref();
        let (name, value) = change.split_at_checked(name_of(change)).ok_or_else(wrong)?;
        if name.is_empty() || change.contains(&0) {
            return Err(wrong());
        }
        if let Some(value) = value.strip_prefix(b"=") {
            spawn = spawn.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
        }
    }
    Ok(spawn)
}

/// The program itself, behind all links, if nobody but root (or whoever owns etc/qmail/control) can change it, nor put another in its place:
/// neither by its file, nor by a directory or a link on the way as it is written. Each step is looked at through the directory before it,
/// which others cannot change by then, so that what was found stays what it is.
///
/// # Errors
/// It is not there, or others can; temporary.
pub fn trusted(program: &Path, root: &Path) -> io::Result<PathBuf> {
    let owner = std::fs::metadata(root.join("etc/qmail/control")).map(|metadata| metadata.uid()).unwrap_or(0);
    let named = |text: &dyn std::fmt::Display| io::Error::other(format!("{}: {text}", program.display()));
    let program = std::path::absolute(program).map_err(|error| named(&error))?;
    let mut walk = Walk { owner, dirs: Vec::new(), links: 0 };
    walk.enter("/".into(), rustix::fs::open("/", STEP, Mode::empty()).map_err(|errno| named(&errno))?)
        .map_err(|error| named(&error))?;
    walk.to(&program).map_err(|error| named(&error))
}

/// How a step is opened: to be looked at alone, itself if it is a link.
const STEP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Links on a way; as in Linux.
const LINKS_MAX: usize = 40;

/// A way from the root directory on.
struct Walk {
    /// Who may change things beside root.
    owner: u32,
    /// Where it is: each directory with its path.
    dirs: Vec<(PathBuf, OwnedFd)>,
    links: usize,
}

impl Walk {
    /// To a file.
    fn to(&mut self, path: &Path) -> io::Result<PathBuf> {
        // The next component is the last of these.
        let mut ahead = components(path);
        while let Some(step) = ahead.pop() {
            match step.as_bytes() {
                b"/" => self.dirs.truncate(1),
                b"." => {}
                b".." => self.dirs.truncate(self.dirs.len().saturating_sub(1).max(1)),
                _ => {
                    let (dir, fd) = self.dirs.last().ok_or(io::ErrorKind::NotFound)?;
                    let here = dir.join(&step);
                    let found = openat(fd, &*step, STEP, Mode::empty())?;
                    match FileType::from_raw_mode(fstat(&found)?.st_mode) {
                        FileType::Symlink => {
                            self.look(&here, &found)?;
                            self.links = self.links.saturating_add(1);
                            if self.links > LINKS_MAX {
                                return Err(rustix::io::Errno::LOOP.into());
                            }
                            ahead
                                .extend(components(Path::new(OsStr::from_bytes(readlinkat(&found, "", Vec::new())?.as_bytes()))));
                        }
                        FileType::Directory => self.enter(here, found)?,
                        FileType::RegularFile if ahead.is_empty() => {
                            self.look(&here, &found)?;
                            return Ok(here);
                        }
                        _ => break,
                    }
                }
            }
        }
        Err(io::Error::other("is no file"))
    }

    fn enter(&mut self, path: PathBuf, dir: OwnedFd) -> io::Result<()> {
        self.look(&path, &dir)?;
        self.dirs.push((path, dir));
        Ok(())
    }

    /// Can nobody else change it? What is in a directory with the sticky bit is its owner's alone; the mode of a link says nothing.
    fn look(&self, path: &Path, fd: &OwnedFd) -> io::Result<()> {
        let stat = fstat(fd)?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_protected = kind == FileType::Symlink || (kind == FileType::Directory && mode.contains(Mode::SVTX));
        let others_may_write = mode.intersects(Mode::WGRP | Mode::WOTH) && !is_protected;
        if others_may_write || (stat.st_uid != 0 && stat.st_uid != self.owner) {
            return Err(io::Error::other(format!(
                "{} could be changed by others; it must be root's, and theirs to read alone",
                path.display()
            )));
        }
        Ok(())
    }
}

/// From the last to the first.
fn components(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|component| component.as_os_str().to_owned()).collect()
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
        // A bare name takes a variable away, a value stands in the place of another.
        let environment = [("PATH".into(), "/usr/bin:/bin".into()), ("C".into(), "1".into()), ("D".into(), "1".into())];
        let changed = stage
            .place(&environment)
            .plugin(b":echo ${A-none} ${C-none} $D; env | grep -c ^D=", &["A".into(), "C".into(), "D=2".into()]);
        assert_eq!(output(&changed), "0 none none 2\\n1\\n");
        for bad in ["", "=x"] {
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

    #[test]
    fn the_way_to_a_program_is_as_safe_as_itself() {
        use std::os::unix::fs::symlink;
        let stage = stage();
        let dir = stage.dir.path().canonicalize().unwrap();
        let chmod = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        let program = PathBuf::from(OsStr::from_bytes(&stage.program("exit 0", 0o755)));
        let (safe, open) = (dir.join("safe"), dir.join("open"));
        for each in [&safe, &open] {
            std::fs::create_dir(each).unwrap();
            symlink("../program", each.join("link")).unwrap();
        }
        symlink(open.join("link"), safe.join("by-open")).unwrap();
        symlink(&open, safe.join("dir")).unwrap();
        symlink("self", safe.join("self")).unwrap();
        for place in ["safe/link", "safe/../open/link", "safe/by-open", "safe/dir/link", "./program"] {
            assert_eq!(trusted(&dir.join(place), &dir).unwrap(), dir.join("program"), "{place}");
        }
        // Whoever may write in a directory may put another link in it, whatever the link leads to.
        chmod(&open, 0o777);
        for (place, is_safe) in [("safe/link", true), ("safe/by-open", false), ("safe/dir/link", false), ("open/link", false)] {
            assert_eq!(trusted(&dir.join(place), &dir).is_ok(), is_safe, "{place}");
        }
        let error = trusted(&safe.join("by-open"), &dir).unwrap_err().to_string();
        assert!(error.contains(&format!("{} could be changed", open.display())), "{error}");
        // With the sticky bit nobody replaces what is another's.
        chmod(&open, 0o1777);
        assert!(trusted(&safe.join("by-open"), &dir).is_ok());
        for (place, problem) in
            [("safe/self", "symbolic link"), ("safe", "is no file"), ("program/x", "is no file"), ("none", "No such file")]
        {
            let error = trusted(&dir.join(place), &dir).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
        // A link of somebody else leads where he wants.
        if rustix::process::geteuid().is_root() {
            let (nobody, link) = (65_534, safe.join("link"));
            std::os::unix::fs::lchown(&link, Some(nobody), Some(nobody)).unwrap();
            assert!(trusted(&link, &dir).is_err() && trusted(&program, &dir).is_ok());
        }
    }
}
