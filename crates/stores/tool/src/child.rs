//! Other programs, started with the arguments as they are: no shell looks at them (but for command lines, whose owner wrote them).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::input;
use crate::{End, Name, PERMANENT, TEMPORARY};

/// Numbers of errors after which a program may well be startable later (error_temp of the classic programs).
fn is_temporary(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const TEMPORARY: [Errno; 17] = [
        Errno::INTR,
        Errno::NOMEM,
        Errno::TXTBSY,
        Errno::IO,
        Errno::TIMEDOUT,
        Errno::AGAIN,
        Errno::DEADLK,
        Errno::BUSY,
        Errno::NFILE,
        Errno::MFILE,
        Errno::FBIG,
        Errno::NOSPC,
        Errno::NOBUFS,
        Errno::USERS,
        Errno::DQUOT,
        Errno::STALE,
        Errno::NOLCK,
    ];
    error.raw_os_error().is_some_and(|raw| TEMPORARY.iter().any(|errno| errno.raw_os_error() == raw))
}

/// Runs a program and gives its exit code. One that cannot be started counts as one that ended with 100, or 111 if that may change.
///
/// # Errors
/// It was killed by a signal, or how it ended cannot be known: temporary.
pub fn run(me: Name, command: &mut Command) -> Result<u8, End> {
    match command.spawn() {
        Ok(child) => wait(me, child),
        Err(error) => Ok(if is_temporary(&error) { TEMPORARY } else { PERMANENT }),
    }
}

fn wait(me: Name, mut child: Child) -> Result<u8, End> {
    let status = child.wait().map_err(|error| me.system("wait failed", &error))?;
    code(me, status)
}

/// What an exit code says where the question is yes or no: 0 is yes, 111 is no answer, any other code is no.
///
/// # Errors
/// No answer; temporary.
pub fn yes(me: Name, code: u8) -> Result<bool, End> {
    if code == TEMPORARY { Err(me.temporary("temporary child error")) } else { Ok(code == 0) }
}

/// Runs a program on this program's own descriptors and takes its exit code as [`yes`] or no.
///
/// # Errors
/// As [`run`] and [`yes`].
pub fn says_yes(me: Name, program: &[OsString]) -> Result<bool, End> {
    let Some((name, args)) = program.split_first() else { return Ok(false) };
    yes(me, run(me, Command::new(name).args(args))?)
}

/// Another program of this release as a command: beside this one or in the package's place, else wherever PATH has it.
#[must_use]
pub fn of_release(name: &str) -> OsString {
    let path = control::program::sibling(name);
    if path.is_file() { path.into_os_string() } else { name.into() }
}

/// Becomes a program; comes back only when that cannot be.
#[must_use]
pub fn become_program(me: Name, exec_code: u8, program: &OsString, args: &[OsString]) -> End {
    use std::os::unix::process::CommandExt as _;
    let error = Command::new(program).args(args).exec();
    End { code: exec_code, ..me.system([b"unable to run ", program.as_encoded_bytes()].concat(), &error) }
}

/// The exit code.
///
/// # Errors
/// It has none, since a signal killed the program; temporary.
pub fn code(me: Name, status: ExitStatus) -> Result<u8, End> {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.ok_or_else(|| me.temporary("child crashed"))
}

/// A program that gets its input from this one.
#[derive(Debug)]
pub struct Fed {
    child: Child,
    broken: bool,
}

impl Fed {
    /// Starts it.
    ///
    /// # Errors
    /// `unable to run NAME`: `exec_code` says with which code where it is permanent; temporary otherwise.
    pub fn start(me: Name, program: &[OsString], exec_code: u8) -> Result<Self, End> {
        let Some((name, args)) = program.split_first() else { return Err(End::silent(PERMANENT)) };
        let child = Command::new(name).args(args).stdin(Stdio::piped()).spawn();
        let child = child.map_err(|error| {
            let code = if is_temporary(&error) { TEMPORARY } else { exec_code };
            let what = [b"unable to run ", name.as_encoded_bytes()].concat();
            End { code, ..me.system(what, &error) }
        })?;
        Ok(Self { child, broken: false })
    }

    /// The next bytes. A program that reads no more is no error: its exit code counts.
    pub fn put(&mut self, bytes: &[u8]) {
        if let Some(stdin) = self.child.stdin.as_mut().filter(|_| !self.broken) {
            self.broken = io::Write::write_all(stdin, bytes).is_err();
        }
    }

    /// Ends its input and waits for its exit code.
    ///
    /// # Errors
    /// It crashed; temporary.
    pub fn finish(mut self, me: Name) -> Result<u8, End> {
        drop(self.child.stdin.take());
        wait(me, self.child)
    }

    /// Feeds it the rest of `from`, ends its input and waits.
    ///
    /// # Errors
    /// As [`Fed::finish`], or the input cannot be read (the program is killed then, so that it does not take a part for the whole).
    pub fn feed(mut self, me: Name, from: &mut File) -> Result<u8, End> {
        let copied = input::copy(from, |piece| {
            self.put(piece);
            Ok::<(), ()>(())
        });
        if let Err(Ok(error)) = copied {
            let _ = self.child.kill();
            let _ = self.child.wait();
            return Err(me.system("unable to copy input", &error));
        }
        self.finish(me)
    }
}

/// Standard input that can go back to its beginning. A pipe cannot: it is copied to a file without a name first.
#[derive(Debug)]
pub struct Rewindable(File);

/// Where that file is made: a directory on a disk first.
const DIRECTORIES: [&str; 2] = ["/var/tmp", "/tmp"];

impl Rewindable {
    /// Takes standard input, from where it stands.
    ///
    /// # Errors
    /// It cannot be read or held; temporary.
    pub fn stdin(me: Name) -> Result<Self, End> {
        let unreadable = |error: io::Error| me.system("unable to read message", &error);
        let mut stdin = input::stdin().map_err(unreadable)?;
        if stdin.stream_position().is_ok() {
            return Ok(Self(stdin));
        }
        let mut file = unnamed().map_err(unreadable)?;
        let copied = input::copy(&mut stdin, |piece| io::Write::write_all(&mut file, piece));
        copied.map_err(|error| unreadable(error.unwrap_or_else(|error| error)))?;
        file.rewind().map_err(unreadable)?;
        Ok(Self(file))
    }

    /// The descriptor, at the beginning.
    ///
    /// # Errors
    /// It cannot go back; temporary.
    pub fn rewound(&mut self, me: Name) -> Result<&mut File, End> {
        self.0.seek(SeekFrom::Start(0)).map_err(|error| me.system("unable to rewind", &error))?;
        Ok(&mut self.0)
    }

    /// For a program, from where it stands.
    ///
    /// # Errors
    /// Out of descriptors; temporary.
    pub fn as_it_stands(&self, me: Name) -> Result<Stdio, End> {
        self.0.try_clone().map(Stdio::from).map_err(|error| me.system("unable to fork", &error))
    }
}

fn unnamed() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, Mode, OFlags};
    let open =
        |dir: &&str| rustix::fs::open(*dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR).ok();
    let file = DIRECTORIES.iter().find_map(open);
    Ok(file.map_or_else(|| rustix::fs::memfd_create("message", MemfdFlags::CLOEXEC), Ok)?.into())
}
