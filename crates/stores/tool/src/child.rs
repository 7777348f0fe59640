//! Other programs, started with the arguments as they are: no shell looks at them (but for command lines, whose owner wrote them).

use std::ffi::{OsStr, OsString};
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

/// Runs a program on this program's own descriptors and gives its exit code. One that cannot be started counts as one that ended with
/// 100, or 111 if that may change.
///
/// # Errors
/// It was killed by a signal: temporary.
pub fn ask(me: Name, program: &[OsString]) -> Result<u8, End> {
    let Some((name, args)) = program.split_first() else { return Ok(PERMANENT) };
    match Command::new(name).args(args).status() {
        Ok(status) => code(me, status),
        Err(error) => Ok(if is_temporary(&error) { TEMPORARY } else { PERMANENT }),
    }
}

/// What [`ask`] found, for programs whose question is yes or no: yes is 0, and every other code but 111 is no.
///
/// # Errors
/// 111, or a crash: temporary.
pub fn says_yes(me: Name, program: &[OsString]) -> Result<bool, End> {
    match ask(me, program)? {
        0 => Ok(true),
        TEMPORARY => Err(me.temporary("temporary child error")),
        _ => Ok(false),
    }
}

/// The exit code.
///
/// # Errors
/// It has none, since a signal killed the program; temporary.
pub fn code(me: Name, status: ExitStatus) -> Result<u8, End> {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.ok_or_else(|| me.temporary("child crashed"))
}

/// `/bin/sh -c LINE` with standard input rewound before; for the command lines of `.forward` files and aliases.
///
/// # Errors
/// It cannot be started or its input cannot be rewound, or a crash; temporary.
pub fn shell(me: Name, line: &OsStr, stdin: Stdio) -> Result<u8, End> {
    let failed = |error: &io::Error| me.system("unable to run /bin/sh", error);
    let status = Command::new("/bin/sh").arg("-c").arg(line).stdin(stdin).status().map_err(|error| failed(&error))?;
    code(me, status)
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
        let status = self.child.wait().map_err(|error| me.system("wait failed", &error))?;
        code(me, status)
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

/// Standard input from its beginning. One that cannot go back, a pipe, is copied to a file without a name first, so that it can.
#[derive(Debug)]
pub struct Rewindable(File);

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
        let file = rustix::fs::memfd_create("message", rustix::fs::MemfdFlags::CLOEXEC);
        let mut file = File::from(file.map_err(|errno| unreadable(errno.into()))?);
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

    /// For a program, at the beginning.
    ///
    /// # Errors
    /// As [`Rewindable::rewound`], or out of descriptors; temporary.
    pub fn for_program(&mut self, me: Name) -> Result<Stdio, End> {
        let file = self.rewound(me)?.try_clone().map_err(|error| me.system("unable to fork", &error))?;
        Ok(file.into())
    }
}
