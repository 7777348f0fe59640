//! The connections that qmail-send makes: to qmail-lspawn, qmail-remote, qmail-auth and qmail-resolve.
//!
//! Non-blocking, made again by timer when they break, with what could not be sent yet waiting in order. What waits is bounded by what
//! the engine has under way on that connection.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use sandbox::Socket;
use sys::{Received, Seqpacket};

/// Pause before the first new attempt; it doubles up to the second value.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// All of them.
#[derive(Debug)]
pub(crate) struct Links([Link; 4]);

impl Default for Links {
    fn default() -> Self {
        Self(Self::ALL.map(Link::new))
    }
}

impl Links {
    pub(crate) const ALL: [Socket; 4] = [Socket::Resolve, Socket::Lspawn, Socket::Remote, Socket::Auth];

    /// The connection to one of [`Links::ALL`].
    pub(crate) fn to(&mut self, to: Socket) -> &mut Link {
        let [resolve, lspawn, remote, auth] = &mut self.0;
        match to {
            Socket::Lspawn => lspawn,
            Socket::Remote => remote,
            Socket::Auth => auth,
            _ => resolve,
        }
    }

    /// When those that are not there are tried again.
    pub(crate) fn try_times(&self) -> impl Iterator<Item = Duration> {
        self.0.iter().filter_map(Link::try_at)
    }
}

/// A connection, or the wish for one.
#[derive(Debug)]
pub(crate) struct Link {
    to: Socket,
    socket: Option<Seqpacket>,
    waiting: VecDeque<(Vec<u8>, Option<Arc<OwnedFd>>)>,
    try_at: Duration,
    pause: Duration,
    /// The loop was told to say when output is taken again.
    watched: bool,
}

/// What reading a link gave.
pub(crate) enum Heard {
    /// So many bytes in the buffer.
    Datagram(usize),
    Nothing,
    /// The connection is gone; it was closed.
    Lost,
}

impl Link {
    pub(crate) fn new(to: Socket) -> Self {
        Self { to, socket: None, waiting: VecDeque::new(), try_at: Duration::ZERO, pause: PAUSE_MIN, watched: false }
    }

    /// When the next attempt to connect is due; `None` while the connection is there.
    pub(crate) fn try_at(&self) -> Option<Duration> {
        self.socket.is_none().then_some(self.try_at)
    }

    /// Connects if it is time. True if the connection has just come about.
    pub(crate) fn connect(&mut self, run: BorrowedFd<'_>, now: Duration) -> bool {
        if self.socket.is_some() || now < self.try_at {
            return false;
        }
        match Seqpacket::connect_nonblocking(run, self.to.path()) {
            Ok(socket) => {
                self.socket = Some(socket);
                self.pause = PAUSE_MIN;
                true
            }
            Err(_) => {
                self.put_off(now);
                false
            }
        }
    }

    fn put_off(&mut self, now: Duration) {
        self.try_at = now.saturating_add(self.pause);
        self.pause = self.pause.saturating_mul(2).min(PAUSE_MAX);
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Sends or keeps a datagram. Without a connection it is dropped: whoever asked knows that from [`Heard::Lost`].
    pub(crate) fn send(&mut self, datagram: Vec<u8>, fd: Option<Arc<OwnedFd>>) {
        if self.socket.is_some() {
            self.waiting.push_back((datagram, fd));
        }
    }

    /// Is anything left to send, if that is another answer than the last time?
    pub(crate) fn waits_anew(&mut self) -> Option<bool> {
        let waits = !self.waiting.is_empty();
        (std::mem::replace(&mut self.watched, waits) != waits).then_some(waits)
    }

    /// Sends what waits, as far as the socket takes it.
    ///
    /// # Errors
    /// The connection is gone; call [`Link::close`].
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        while let Some((datagram, fd)) = self.waiting.front() {
            let sent = match fd {
                Some(fd) => socket.send_with_fd(datagram, fd.as_fd()),
                None => socket.send(datagram),
            };
            match sent {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(error) if is_full(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn recv(&mut self, buf: &mut [u8]) -> Heard {
        let Some(socket) = &self.socket else { return Heard::Nothing };
        match socket.recv(buf) {
            Ok(Received::Datagram(len, _)) => Heard::Datagram(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Heard::Nothing,
            Ok(Received::End) | Err(_) => Heard::Lost,
        }
    }

    /// Closes it; the next attempt comes after a pause.
    pub(crate) fn close(&mut self, now: Duration) {
        (self.socket, self.watched) = (None, false);
        self.waiting.clear();
        self.put_off(now);
    }
}

/// The socket's buffer is full, or the kernel is short of memory or has too many descriptors in flight: later.
fn is_full(error: &io::Error) -> bool {
    const ENOBUFS: i32 = 105;
    const ETOOMANYREFS: i32 = 109;
    error.kind() == io::ErrorKind::WouldBlock || matches!(error.raw_os_error(), Some(ENOBUFS | ETOOMANYREFS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connects_when_there_is_somebody_and_keeps_what_waits() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("roles")).unwrap();
        let run = std::fs::File::open(dir.path()).unwrap();
        let mut link = Link::new(Socket::Lspawn);
        assert!(!link.connect(run.as_fd(), Duration::ZERO));
        assert_eq!(link.try_at(), Some(PAUSE_MIN));
        let listener = sys::seqpacket::listen(run.as_fd(), Socket::Lspawn.path()).unwrap();
        assert!(!link.connect(run.as_fd(), Duration::ZERO), "not before its time");
        assert!(link.connect(run.as_fd(), PAUSE_MIN));
        let server = sys::seqpacket::accept(listener.as_fd()).unwrap();
        for _ in 0..1000 {
            link.send(vec![7; 1024], None);
        }
        link.flush().unwrap();
        assert_eq!((link.waits_anew(), link.waits_anew()), (Some(true), None), "the socket is full");
        let mut count = 0;
        while count < 1000 {
            match server.recv(&mut [0; 2048]) {
                Ok(Received::Datagram(1024, None)) => count += 1,
                _ => link.flush().unwrap(),
            }
        }
        assert_eq!(link.waits_anew(), Some(false));
        drop(server);
        assert!(matches!(link.recv(&mut [0; 8]), Heard::Lost));
        link.close(Duration::from_secs(1));
        assert!(link.fd().is_none() && link.try_at() > Some(Duration::from_secs(1)));
    }
}
