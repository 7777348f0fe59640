//! Copies bytes both ways between a client and its session, with memory only while something waits to be written.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::time::Duration;
use tls::Transport;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until};

/// Bytes that one direction moves at a time, and the most it ever holds.
const COPY_LEN: usize = 32 * 1024;

/// Both kinds of connections, as far as copying goes.
pub(crate) trait Stream {
    async fn readable(&self) -> io::Result<()>;
    async fn writable(&self) -> io::Result<()>;
    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize>;
    fn try_write(&self, buf: &[u8]) -> io::Result<usize>;
    /// Sends what was written and is held back.
    async fn flush(&self) -> io::Result<()>;
    /// The peer learns that nothing follows.
    fn end_output(&self);
}

impl Stream for Transport {
    async fn readable(&self) -> io::Result<()> {
        Self::readable(self).await
    }
    async fn writable(&self) -> io::Result<()> {
        Self::writable(self).await
    }
    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Self::try_read(self, buf)
    }
    fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        Self::try_write(self, buf)
    }
    async fn flush(&self) -> io::Result<()> {
        Self::flush(self).await
    }
    fn end_output(&self) {
        Self::end_output(self);
    }
}

impl Stream for UnixStream {
    async fn readable(&self) -> io::Result<()> {
        Self::readable(self).await
    }
    async fn writable(&self) -> io::Result<()> {
        Self::writable(self).await
    }
    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Self::try_read(self, buf)
    }
    fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        Self::try_write(self, buf)
    }
    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn end_output(&self) {
        let _ = rustix::net::shutdown(self, rustix::net::Shutdown::Write);
    }
}

/// How the copying ended, and how many bytes went from the client and to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Relayed {
    pub(crate) end: &'static str,
    pub(crate) taken: u64,
    pub(crate) sent: u64,
}

/// Copies until the session ends, the client breaks off, or neither says anything for `idle`. `first` goes to the session before all else.
/// A client that is done sending (half-closed) still gets what the session has to say.
pub(crate) async fn relay(client: &impl Stream, session: &impl Stream, first: Vec<u8>, idle: Duration) -> Relayed {
    let active = Cell::new(Instant::now());
    let (taken, sent) = (Cell::new(0), Cell::new(0));
    let to_session = async {
        write_all(session, &first).await?;
        drop(first);
        pump(client, session, &active, &taken).await
    };
    let to_client = pump(session, client, &active, &sent);
    let silence = async {
        loop {
            let until = active.get() + idle;
            sleep_until(until).await;
            if active.get() + idle <= Instant::now() {
                return;
            }
        }
    };
    let patient = async {
        // The session's end is what ends the copying, unless the client's side broke.
        if to_session.await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let end = tokio::select! {
        ended = to_client => if ended.is_ok() { "quit" } else { "gone" },
        () = patient => "gone",
        () = silence => "timeout",
    };
    Relayed { end, taken: taken.get(), sent: sent.get() }
}

/// Copies one way until the end of `from`, which is passed on.
async fn pump(from: &impl Stream, to: &impl Stream, active: &Cell<Instant>, count: &Cell<u64>) -> io::Result<()> {
    loop {
        from.readable().await?;
        match copy_some(from, to, count) {
            Ok(Copied::End) => {
                to.end_output();
                return Ok(());
            }
            Ok(Copied::All) => to.flush().await?,
            Ok(Copied::Left(rest)) => write_all(to, &rest).await?,
            Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        }
        active.set(Instant::now());
    }
}

/// What one step of copying came to.
enum Copied {
    End,
    All,
    /// These could not be written yet.
    Left(Vec<u8>),
}

/// One read and one write; the buffer lives on the stack for just so long.
fn copy_some(from: &impl Stream, to: &impl Stream, count: &Cell<u64>) -> io::Result<Copied> {
    let mut buf = [0; COPY_LEN];
    let len = from.try_read(&mut buf)?;
    if len == 0 {
        return Ok(Copied::End);
    }
    count.set(count.get().saturating_add(len as u64));
    let read = buf.get(..len).unwrap_or_default();
    let written = match to.try_write(read) {
        Ok(written) => written,
        Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
        Err(e) => return Err(e),
    };
    let rest = read.get(written..).unwrap_or_default();
    Ok(if rest.is_empty() { Copied::All } else { Copied::Left(rest.to_vec()) })
}

/// Writes all of it and sends it.
pub(crate) async fn write_all(to: &impl Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => to.writable().await?,
            Err(e) => return Err(e),
        }
    }
    to.flush().await
}
