//! The connection on descriptors 6 and 7 (UCSPI), with deadlines, and the result lines of both clients.

use std::fs::File;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tool::{End, Name};

/// Longest text of a result, in bytes.
const RESULT_LEN_MAX: usize = 2000;

/// The connection.
pub(crate) struct Connection {
    me: Name,
    from: io::BufReader<Timed>,
    to: Timed,
    out: Vec<u8>,
}

/// A descriptor that is waited for no longer than this.
struct Timed {
    file: File,
    wait: Duration,
    flags: PollFlags,
}

impl Timed {
    fn wait(&self) -> io::Result<()> {
        let timeout = Timespec::try_from(self.wait).map_err(io::Error::other)?;
        match rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&self.file.as_fd(), self.flags)], Some(&timeout)))? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

impl io::Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.wait()?;
        self.file.read(buf)
    }
}

impl Connection {
    /// Descriptors 6 and 7, which the caller of the program took first of all.
    pub(crate) fn new(me: Name, fds: (Option<OwnedFd>, Option<OwnedFd>), read_wait_s: u64) -> Result<Self, End> {
        let closed = || me.temporary("network read error: file descriptor not open");
        let (from, to) = (fds.0.ok_or_else(closed)?, fds.1.ok_or_else(closed)?);
        let timed = |fd: OwnedFd, wait_s, flags| Timed { file: fd.into(), wait: Duration::from_secs(wait_s), flags };
        let from = io::BufReader::with_capacity(2048, timed(from, read_wait_s, PollFlags::IN));
        Ok(Self { me, from, to: timed(to, 73, PollFlags::OUT), out: Vec::new() })
    }

    /// The next byte.
    pub(crate) fn byte(&mut self) -> Result<u8, End> {
        let mut byte = [0];
        match self.from.read(&mut byte) {
            Ok(0) => Err(self.me.temporary("network read error: end of file")),
            Ok(_) => Ok(byte[0]),
            Err(error) => Err(self.me.system("network read error", &error)),
        }
    }

    /// Puts bytes into the next [`Connection::flush`].
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub(crate) fn flush(&mut self) -> Result<(), End> {
        let mut rest = &self.out[..];
        while !rest.is_empty() {
            let written = self.to.wait().and_then(|()| self.to.file.write(rest.get(..rest.len().min(2048)).unwrap_or_default()));
            match written {
                Ok(len) if len > 0 => rest = rest.get(len..).unwrap_or_default(),
                Ok(_) => return Err(self.me.temporary("network write error")),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.me.system("network write error", &error)),
            }
        }
        self.out.clear();
        Ok(())
    }
}

/// The next file name on standard input, each with a NUL behind it; `None` at the end.
pub(crate) fn next_name(me: Name, names: &mut impl io::BufRead) -> Result<Option<Vec<u8>>, End> {
    let mut name = Vec::new();
    let read = io::Read::take(names, 64 * 1024).read_until(0, &mut name);
    read.map_err(|error| me.system("unable to read input", &error))?;
    Ok(name.pop_if(|last| *last == 0).map(|_| name))
}

/// Says what became of a message: its name, a NUL, the letter, and the text as one line.
pub(crate) fn report(me: Name, name: &[u8], letter: u8, server: Option<&[u8]>, text: &[u8]) -> Result<(), End> {
    let mut line = vec![letter];
    if let Some(server) = server {
        line.extend([server, b" said: "].concat());
    }
    line.extend_from_slice(text);
    line.truncate(RESULT_LEN_MAX);
    line.iter_mut().filter(|b| !(32..=126).contains(*b)).for_each(|b| *b = b'?');
    let whole = [name, b"\0", &line, b"\n"].concat();
    me.print(&whole)
}
