//! Thousands of SMTP clients that say hello and then nothing.

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

/// Descriptors that this process needs besides.
const OTHERS: u64 = 500;

/// Open sessions; closed when dropped.
#[derive(Debug)]
pub(crate) struct IdleSessions {
    sessions: Vec<TcpStream>,
    before: Rlimit,
}

impl IdleSessions {
    /// Opens them one after the other: greeting, EHLO, its answer.
    ///
    /// # Errors
    /// One of them is refused.
    pub(crate) fn open(address: SocketAddrV4, count: usize) -> Result<Self> {
        let before = getrlimit(Resource::Nofile);
        let needed = u64::try_from(count)?.saturating_add(OTHERS);
        let current = before.current.map(|now| now.max(needed));
        setrlimit(Resource::Nofile, Rlimit { current, maximum: before.maximum.map(|most| most.max(needed)) })?;
        let mut open = Self { sessions: Vec::with_capacity(count), before };
        for n in 0..count {
            open.sessions.push(session(address).with_context(|| format!("session {n}"))?);
        }
        Ok(open)
    }

    /// How many the server has not closed.
    pub(crate) fn still_open(&self) -> usize {
        self.sessions.iter().filter(|stream| is_open(stream)).count()
    }
}

impl Drop for IdleSessions {
    fn drop(&mut self) {
        self.sessions.clear();
        let _ = setrlimit(Resource::Nofile, self.before);
    }
}

fn session(address: SocketAddrV4) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut answer = [0; 2048];
    for command in ["", "EHLO idle.bench.test\r\n"] {
        stream.write_all(command.as_bytes())?;
        let n = stream.read(&mut answer)?;
        if answer.get(..n).is_none_or(|answer| !answer.starts_with(b"2")) {
            bail!("refused: {}", String::from_utf8_lossy(answer.get(..n).unwrap_or_default()));
        }
    }
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Nothing to read and no end of file.
fn is_open(mut stream: &TcpStream) -> bool {
    matches!(stream.read(&mut [0; 512]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}
