//! Starts a program as somebody else: ids, descriptors, working directory and signals are set between fork and exec.
//!
//! The child gets exactly the descriptors named here: standard input, output and error, then [`Spawn::fds`] from 3 up, named in
//! `QMAIL_FDS`. Its environment is what is given and nothing else.

use crate::inherited;
use rustix::process::Pid;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a pipe holds as the kernel makes it, in bytes.
const PIPE_LEN: usize = 65_536;

/// The user that a program runs as. Supplementary groups are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
}

/// A program about to be started.
#[derive(Debug)]
pub struct Spawn<'a> {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    ids: Option<Ids>,
    dir: Option<PathBuf>,
    stdin: Option<BorrowedFd<'a>>,
    stdout: Option<BorrowedFd<'a>>,
    stderr: Option<BorrowedFd<'a>>,
    fds: Vec<(String, BorrowedFd<'a>)>,
    dies_with_parent: bool,
    leads_group: bool,
}

/// A started program: its process id and a descriptor that becomes readable when it ends.
#[derive(Debug)]
pub struct Child {
    pub pid: Pid,
    pub pidfd: OwnedFd,
}

impl<'a> Spawn<'a> {
    /// A program with no arguments, an empty environment, and /dev/null as all three standard descriptors.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            ids: None,
            dir: None,
            stdin: None,
            stdout: None,
            stderr: None,
            fds: Vec::new(),
            dies_with_parent: false,
            leads_group: false,
        }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Groups, gid and uid are set in that order; without this the program runs as the caller.
    #[must_use]
    pub fn ids(mut self, ids: Ids) -> Self {
        self.ids = Some(ids);
        self
    }

    /// The working directory; entered as the new user.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    #[must_use]
    pub fn stdin(mut self, fd: BorrowedFd<'a>) -> Self {
        self.stdin = Some(fd);
        self
    }

    #[must_use]
    pub fn stdout(mut self, fd: BorrowedFd<'a>) -> Self {
        self.stdout = Some(fd);
        self
    }

    #[must_use]
    pub fn stderr(mut self, fd: BorrowedFd<'a>) -> Self {
        self.stderr = Some(fd);
        self
    }

    /// Hands over one more descriptor under a name without blanks; numbers run from 3 in the order of the calls.
    #[must_use]
    pub fn fd(mut self, name: &str, fd: BorrowedFd<'a>) -> Self {
        self.fds.push((name.to_owned(), fd));
        self
    }

    /// As [`fd`](Self::fd), for programs that know their descriptors by number alone: nothing of it stands in the environment.
    #[must_use]
    pub fn next_fd(mut self, fd: BorrowedFd<'a>) -> Self {
        self.fds.push((String::new(), fd));
        self
    }

    /// SIGKILL for the child when this process ends. (The signal follows the thread that spawned: spawn from the main thread.)
    #[must_use]
    pub fn dies_with_parent(mut self) -> Self {
        self.dies_with_parent = true;
        self
    }

    /// The child leads a process group of its own, so that what it starts can be ended with it.
    #[must_use]
    pub fn leads_group(mut self) -> Self {
        self.leads_group = true;
        self
    }

    /// Forks and execs.
    ///
    /// # Errors
    /// The program cannot be started (the error of exec is reported here); out of processes or descriptors: temporary.
    pub fn start(self) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(stdio(self.stdin)?).stdout(stdio(self.stdout)?).stderr(stdio(self.stderr)?);
        if self.leads_group {
            command.process_group(0);
        }
        let names: Vec<&str> = self.fds.iter().map(|(name, _)| name.as_str()).collect();
        if names.iter().any(|name| !name.is_empty()) {
            command.env(inherited::VARIABLE, names.join(" "));
        }
        let fds: Vec<RawFd> = self.fds.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        let _reserved = reserve(fds.len())?;
        let mut scratch: Vec<RawFd> = vec![-1; fds.len()];
        let (ids, dir, dies) = (self.ids, self.dir, self.dies_with_parent);
        let dir = dir.map(|dir| std::ffi::CString::new(dir.into_os_string().into_encoded_bytes())).transpose()?;
        let parent = rustix::process::getpid();
        let child_steps = move || {
            place(&fds, &mut scratch)?;
            if let Some(ids) = ids {
                become_user(ids)?;
            }
            if let Some(dir) = &dir {
                rustix::process::chdir(dir.as_c_str())?;
            }
            if dies {
                crate::confine::die_with_parent(Some(parent))?;
            }
            crate::signal::reset_in_child();
            Ok(())
        };
        // SAFETY: the steps make system calls only; nothing in them allocates, locks or unwinds.
        unsafe { command.pre_exec(child_steps) };
        let child = command.spawn()?;
        watched(child, self.leads_group, |pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()))
    }
}

/// The program runs by now. Where it cannot be watched it is ended: what is reported as not started may not go on by itself.
fn watched(
    mut child: std::process::Child,
    leads_group: bool,
    open: impl FnOnce(Pid) -> rustix::io::Result<OwnedFd>,
) -> io::Result<Child> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let opened = pid.ok_or_else(|| io::ErrorKind::InvalidData.into()).and_then(|pid| Ok(Child { pid, pidfd: open(pid)? }));
    if opened.is_err() {
        if let Some(group) = pid.filter(|_| leads_group) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = child.kill();
        let _ = child.wait();
    }
    opened
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    Signal(i32),
    /// It is gone and its exit code with it: somebody else reaped it. Nothing may be taken for done, or refused for good, for this.
    Unknown,
}

impl Child {
    /// How it ended, or `None` while it runs. After an answer the process id must not be used again.
    #[must_use]
    pub fn try_wait(&self) -> Option<Ended> {
        match rustix::process::waitpid(Some(self.pid), rustix::process::WaitOptions::NOHANG) {
            Ok(Some((_, status))) => Some(ended(status)),
            Ok(None) => None,
            Err(_) => Some(Ended::Unknown),
        }
    }

    /// Waits for the end.
    #[must_use]
    pub fn wait(&self) -> Ended {
        match rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(self.pid), rustix::process::WaitOptions::empty())) {
            Ok(Some((_, status))) => ended(status),
            _ => Ended::Unknown,
        }
    }

    /// Sends a signal; a process that is gone is no error.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }
}

fn ended(status: rustix::process::WaitStatus) -> Ended {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, Some(signal)) => Ended::Signal(signal),
        (None, None) => Ended::Unknown,
    }
}

/// Gives what an ended program has left in a pipe to `take`, without waiting. No more than the pipe holds: all that the program wrote is among
/// it, and what it started and left running may go on writing for ever.
pub fn left_in_pipe(pipe: &OwnedFd, mut take: impl FnMut(&[u8])) {
    let capacity = rustix::pipe::fcntl_getpipe_size(pipe).unwrap_or(PIPE_LEN);
    let mut left = if rustix::io::ioctl_fionbio(pipe, true).is_ok() { capacity } else { 0 };
    let mut piece = [0; 4096];
    while left > 0 {
        let room = piece.len().min(left);
        match rustix::io::retry_on_intr(|| rustix::io::read(pipe, piece.get_mut(..room).unwrap_or_default())) {
            Ok(0) | Err(_) => return,
            Ok(len) => {
                take(piece.get(..len).unwrap_or_default());
                left = left.saturating_sub(len);
            }
        }
    }
}

fn stdio(fd: Option<BorrowedFd<'_>>) -> io::Result<Stdio> {
    Ok(match fd {
        Some(fd) => fd.try_clone_to_owned()?.into(),
        None => Stdio::null(),
    })
}

/// Occupies the numbers from 3 up that the child's descriptors will have, so that the pipe on which std's `Command` reports a
/// failed exec cannot get one of them and be overwritten by [`place`].
fn reserve(count: usize) -> io::Result<Vec<OwnedFd>> {
    let null =
        rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    let mut reserved = Vec::new();
    loop {
        let fd = rustix::io::fcntl_dupfd_cloexec(&null, inherited::FIRST)?;
        if usize::try_from(fd.as_raw_fd() - inherited::FIRST).map_or(true, |at| at >= count) {
            return Ok(reserved);
        }
        reserved.push(fd);
    }
}

/// Puts `fds` at 3, 4, … In the child, after fork: first all are copied above the target range, then down, so that no
/// source is overwritten before it is used.
fn place(fds: &[RawFd], scratch: &mut [RawFd]) -> io::Result<()> {
    let above = inherited::FIRST.saturating_add(i32::try_from(fds.len()).map_err(|_| io::ErrorKind::InvalidInput)?);
    for (fd, copy) in fds.iter().zip(scratch.iter_mut()) {
        // SAFETY: a system call on numbers that the caller borrowed for the whole call.
        *copy = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, above) };
        if *copy < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for (copy, target) in scratch.iter().zip(inherited::FIRST..) {
        // SAFETY: as above. dup2 clears close-on-exec on the target; what it overwrites was close-on-exec, see `reserve`.
        if unsafe { libc::dup2(*copy, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: a system call on numbers only. What whoever started us left open above goes no further. Kernels before 5.11 lack
    // it; then only descriptors that others made without close-on-exec pass, as in any program. By number: not every C library has it.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, above.unsigned_abs(), libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Ok(())
}

/// This process becomes another user, with no way back: for a program that root started and that root's rights are no use to. Before any
/// thread is started. Who is not root may only become itself.
///
/// # Errors
/// Not allowed, or root is no other user: the program must not go on.
pub fn become_for_good(ids: Ids) -> io::Result<()> {
    if ids.uid == 0 || ids.gid == 0 {
        return Err(io::Error::other("root is nobody to become"));
    }
    become_user(ids)?;
    // SAFETY: a system call with plain numbers. It must fail.
    let is_root_again = unsafe { libc::setresuid(0, 0, 0) } == 0;
    if is_root_again || rustix::process::getuid().as_raw() != ids.uid { Err(io::Error::other("still root")) } else { Ok(()) }
}

/// Sets groups, gid and uid of this (single-threaded) process. A program that is not root may only become itself.
fn become_user(ids: Ids) -> io::Result<()> {
    if rustix::process::geteuid().as_raw() != 0 {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        return if (uid, gid) == (ids.uid, ids.gid) { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) };
    }
    // SAFETY: system calls with plain numbers; setgroups reads one element of a live array. In the child there is one thread,
    // so the libc wrappers that act on all threads are what is wanted.
    let failed = unsafe {
        libc::setgroups(0, std::ptr::null()) != 0
            || libc::setresgid(ids.gid, ids.gid, ids.gid) != 0
            || libc::setresuid(ids.uid, ids.uid, ids.uid) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    fn output(spawn: impl FnOnce(BorrowedFd<'_>) -> io::Result<Child>) -> (String, Ended) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let child = spawn(write.as_fd()).unwrap();
        drop(write);
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        (text, child.wait())
    }

    #[test]
    fn the_child_gets_just_what_is_named() {
        let (a, b) = (crate::memfd::sealed(b"a").unwrap(), crate::memfd::sealed(b"b").unwrap());
        let script = "echo $QMAIL_FDS; readlink /proc/$$/fd/3; exec ls /proc/self/fd";
        let (text, ended) = output(|out| {
            let sh = Spawn::new(Path::new("/bin/sh")).arg("-c").arg(script).env("PATH", "/usr/bin:/bin");
            sh.stdout(out).fd("second", b.as_fd()).fd("first", a.as_fd()).start()
        });
        assert_eq!(ended, Ended::Code(0));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "second first");
        assert!(lines[1].contains("memfd:message"), "{text}");
        assert_eq!(lines[2..], ["0", "1", "2", "3", "4", "5"], "5 is the directory that ls reads");
        let (text, ended) = output(|out| Spawn::new(Path::new("/usr/bin/env")).env("ONE", "1").stdout(out).start());
        assert_eq!((text.as_str(), ended), ("ONE=1\n", Ended::Code(0)));
        let script = "echo ${QMAIL_FDS-none}; readlink /proc/$$/fd/3";
        let (text, _) = output(|out| {
            let sh = Spawn::new(Path::new("/bin/sh")).arg("-c").arg(script).env("PATH", "/usr/bin:/bin");
            sh.stdout(out).next_fd(a.as_fd()).start()
        });
        assert!(text.starts_with("none\n") && text.contains("memfd:message"), "{text}");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_however_many_descriptors_it_gets() {
        let fd = crate::memfd::sealed(b"a").unwrap();
        for count in 0..20 {
            let mut spawn = Spawn::new(Path::new("/nonexistent/program"));
            for _ in 0..count {
                spawn = spawn.fd("x", fd.as_fd());
            }
            assert_eq!(spawn.start().unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }

    /// An exit code that somebody else took is not a 0.
    #[test]
    fn the_end_of_a_program_that_is_not_ours_to_reap_is_not_known() {
        for take in [Child::wait, |child: &Child| child.try_wait().unwrap()] {
            let child = Spawn::new(Path::new("/bin/sh")).arg("-c").arg("exit 111").start().unwrap();
            assert_eq!(child.wait(), Ended::Code(111));
            assert_eq!(take(&child), Ended::Unknown);
        }
    }

    /// Whoever starts us may have ignored SIGCHLD, which every exec passes on; then the kernel keeps no exit codes. In a process of its
    /// own: the children of the other tests would lose theirs.
    #[test]
    fn children_have_exit_codes_whatever_is_ignored() {
        const AGAIN: &str = "CHILDREN_HAVE_EXIT_CODES";
        if std::env::var_os(AGAIN).is_none() {
            let mut again = Command::new("/usr/bin/env");
            again.args(["--ignore-signal=CHLD", "--ignore-signal=PIPE", "--block-signal=TERM"]).arg(format!("{AGAIN}=1"));
            again
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", "spawn::tests::children_have_exit_codes_whatever_is_ignored"]);
            let output = again.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        let shell = |script: &str| Spawn::new(Path::new("/bin/sh")).arg("-c").arg(script).env("PATH", "/usr/bin:/bin");
        assert_eq!(shell("exit 111").start().unwrap().wait(), Ended::Code(111));
        assert_eq!(Command::new("/bin/sh").args(["-c", "exit 111"]).status().unwrap().code(), Some(111));
        // Even if it is ignored later, what is started does not have it so.
        // SAFETY: a system call with plain numbers.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        let (text, ended) = output(|out| shell("grep -E '^Sig(Blk|Ign)' /proc/self/status").stdout(out).start());
        assert_eq!(ended, Ended::Unknown);
        let mask = |name: &str| {
            let mask = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
            u64::from_str_radix(mask.trim(), 16).unwrap()
        };
        let bit = |signal: i32| 1u64 << (signal - 1);
        assert_eq!(mask("SigBlk:"), 0, "{text}");
        assert_eq!(mask("SigIgn:") & (bit(libc::SIGCHLD) | bit(libc::SIGPIPE)), 0, "{text}");
    }

    #[test]
    fn a_program_that_cannot_be_watched_is_ended_with_what_it_started() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 1000 & echo started; sleep 1000"]).process_group(0).stdout(Stdio::from(write));
        let child = command.spawn().unwrap();
        drop(command);
        let mut read = std::fs::File::from(read);
        let mut said = [0; 8];
        read.read_exact(&mut said).unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let error = watched(child, true, |_| Err(rustix::io::Errno::MFILE)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        // Nobody has the pipe any more, and the program is reaped.
        assert_eq!(read.read(&mut said).unwrap(), 0);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[test]
    fn becomes_another_user_when_root_and_nobody_else_otherwise() {
        let root = rustix::process::geteuid().is_root();
        let spawn = Spawn::new(Path::new("/usr/bin/id")).ids(Ids { uid: 61_234, gid: 61_235 }).env("LC_ALL", "C");
        if root {
            let (text, _) = output(|out| spawn.stdout(out).start());
            assert_eq!(text.trim(), "uid=61234 gid=61235 groups=61235");
        } else {
            assert_eq!(spawn.start().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
