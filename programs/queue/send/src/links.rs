//! The connections that qmail-send makes: to qmail-lspawn, qmail-remote, qmail-auth and qmail-resolve.
//!
//! Non-blocking, made again by timer when they break, with what could not be sent yet waiting in order. What waits is bounded by what
//! the engine has under way on that connection.
//!
//! A worker that is replaced stops taking jobs before it has carried out those it has: the next send is a broken pipe. Its connection is
//! then retired, only read until its end, and a new one is made, on which the jobs that wait go out.

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
/// Retired connections of a link; with more, the oldest is given up. qmail-start keeps fewer generations.
const RETIRED_MAX: usize = 16;

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
    /// The number of the connection: each one that is made has its own.
    connection: u64,
    /// Those that only answer, with their numbers, the oldest first.
    retired: Vec<(u64, Seqpacket)>,
    waiting: VecDeque<Parcel>,
    try_at: Duration,
    pause: Duration,
    /// The loop was told to say when output is taken again.
    watched: bool,
}

/// What is to be sent.
#[derive(Debug)]
struct Parcel {
    datagram: Vec<u8>,
    /// The number and the body of a job; a question has neither.
    job: Option<(u64, Arc<OwnedFd>)>,
}

/// What reading a link gave.
pub(crate) enum Heard {
    /// So many bytes in the buffer.
    Datagram(usize),
    Nothing,
    /// The connection is gone; call [`Link::close`].
    Lost,
}

impl Link {
    pub(crate) fn new(to: Socket) -> Self {
        let (waiting, try_at, pause) = (VecDeque::new(), Duration::ZERO, PAUSE_MIN);
        Self { to, socket: None, connection: 0, retired: Vec::new(), waiting, try_at, pause, watched: false }
    }

    /// When the next attempt to connect is due; `None` while the connection is there.
    pub(crate) fn try_at(&self) -> Option<Duration> {
        self.socket.is_none().then_some(self.try_at)
    }

    /// Connects if it is time. The number of the connection if it has just come about.
    pub(crate) fn connect(&mut self, run: BorrowedFd<'_>, now: Duration) -> Option<u64> {
        if self.socket.is_some() || now < self.try_at {
            return None;
        }
        let Ok(socket) = Seqpacket::connect_nonblocking(run, self.to.path()) else {
            self.put_off(now);
            return None;
        };
        self.socket = Some(socket);
        self.connection = self.connection.saturating_add(1);
        self.pause = PAUSE_MIN;
        Some(self.connection)
    }

    fn put_off(&mut self, now: Duration) {
        self.try_at = now.saturating_add(self.pause);
        self.pause = self.pause.saturating_mul(2).min(PAUSE_MAX);
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// The number of the connection, or of the last one while there is none.
    pub(crate) fn connection(&self) -> u64 {
        self.connection
    }

    /// Sends or keeps a question. Without a connection it is dropped: whoever asked knows that from [`Heard::Lost`].
    pub(crate) fn ask(&mut self, datagram: Vec<u8>) {
        if self.socket.is_some() {
            self.waiting.push_back(Parcel { datagram, job: None });
        }
    }

    /// Sends or keeps a job, for the next connection if there is none.
    pub(crate) fn send_job(&mut self, number: u64, datagram: Vec<u8>, body: Arc<OwnedFd>) {
        self.waiting.push_back(Parcel { datagram, job: Some((number, body)) });
    }

    /// Is anything left to send, if that is another answer than the last time?
    pub(crate) fn waits_anew(&mut self) -> Option<bool> {
        let waits = !self.waiting.is_empty();
        (std::mem::replace(&mut self.watched, waits) != waits).then_some(waits)
    }

    /// Sends what waits, as far as the socket takes it, and says which jobs went out.
    ///
    /// # Errors
    /// `BrokenPipe`: the other side takes nothing more, call [`Link::retire`] or [`Link::close`]. Else the connection is gone; call
    /// [`Link::close`].
    pub(crate) fn flush(&mut self, mut went: impl FnMut(u64)) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        while let Some(Parcel { datagram, job }) = self.waiting.front() {
            let sent = match job {
                Some((_, body)) => socket.send_with_fd(datagram, body.as_fd()),
                None => socket.send(datagram),
            };
            match sent {
                Ok(()) => self.waiting.pop_front().and_then(|sent| sent.job).map_or((), |(number, _)| went(number)),
                Err(error) if is_full(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads the connection of that number, retired or not.
    pub(crate) fn recv(&mut self, connection: u64, buf: &mut [u8]) -> Heard {
        let retired = self.retired.iter().find(|(number, _)| *number == connection).map(|(_, socket)| socket);
        let Some(socket) = retired.or(self.socket.as_ref().filter(|_| self.connection == connection)) else {
            return Heard::Nothing;
        };
        match socket.recv(buf) {
            Ok(Received::Datagram(len, _)) => Heard::Datagram(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Heard::Nothing,
            Ok(Received::End) | Err(_) => Heard::Lost,
        }
    }

    /// From now on the connection is only read. A new one is made after the shortest pause, in case that breaks as fast. Gives the
    /// number of a connection that has to be closed, if there are too many.
    pub(crate) fn retire(&mut self, now: Duration) -> Option<u64> {
        self.retired.extend(self.socket.take().map(|socket| (self.connection, socket)));
        self.watched = false;
        self.put_off(now);
        self.retired.first().filter(|_| self.retired.len() > RETIRED_MAX).map(|(number, _)| *number)
    }

    /// Closes the connection of that number. True if that leaves none: the next attempt comes after a pause, and so do the jobs that
    /// wait; questions are asked anew.
    pub(crate) fn close(&mut self, connection: u64, now: Duration) -> bool {
        self.retired.retain(|(number, _)| *number != connection);
        if self.socket.is_none() || self.connection != connection {
            return false;
        }
        (self.socket, self.watched) = (None, false);
        self.waiting.retain(|parcel| parcel.job.is_some());
        self.put_off(now);
        true
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

    fn run_dir() -> (tempfile::TempDir, std::fs::File) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("roles")).unwrap();
        let run = std::fs::File::open(dir.path()).unwrap();
        (dir, run)
    }

    fn body() -> Arc<OwnedFd> {
        Arc::new(sys::memfd::sealed(b"body").unwrap())
    }

    fn flushed(link: &mut Link) -> (Vec<u64>, io::Result<()>) {
        let mut went = Vec::new();
        let result = link.flush(|number| went.push(number));
        (went, result)
    }

    #[test]
    fn connects_when_there_is_somebody_and_keeps_what_waits() {
        let (_dir, run) = run_dir();
        let mut link = Link::new(Socket::Auth);
        assert_eq!(link.connect(run.as_fd(), Duration::ZERO), None);
        assert_eq!(link.try_at(), Some(PAUSE_MIN));
        let listener = sys::seqpacket::listen(run.as_fd(), Socket::Auth.path()).unwrap();
        assert_eq!(link.connect(run.as_fd(), Duration::ZERO), None, "not before its time");
        assert_eq!(link.connect(run.as_fd(), PAUSE_MIN), Some(1));
        let server = sys::seqpacket::accept(listener.as_fd()).unwrap();
        for _ in 0..1000 {
            link.ask(vec![7; 1024]);
        }
        flushed(&mut link).1.unwrap();
        assert_eq!((link.waits_anew(), link.waits_anew()), (Some(true), None), "the socket is full");
        let mut count = 0;
        while count < 1000 {
            match server.recv(&mut [0; 2048]) {
                Ok(Received::Datagram(1024, None)) => count += 1,
                _ => flushed(&mut link).1.unwrap(),
            }
        }
        assert_eq!(link.waits_anew(), Some(false));
        drop(server);
        assert!(matches!(link.recv(1, &mut [0; 8]), Heard::Lost));
        assert!(link.close(1, Duration::from_secs(1)));
        assert!(link.fd().is_none() && link.try_at() > Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_retired_connection_answers_until_its_end_and_jobs_that_wait_go_out_on_the_next() {
        let (_dir, run) = run_dir();
        let listener = sys::seqpacket::listen(run.as_fd(), Socket::Remote.path()).unwrap();
        let mut link = Link::new(Socket::Remote);
        link.send_job(1, b"one".into(), body());
        assert!(flushed(&mut link).0.is_empty(), "there is no connection yet");
        assert_eq!(link.connect(run.as_fd(), Duration::ZERO), Some(1));
        assert_eq!(flushed(&mut link).0, [1]);
        let old = sys::seqpacket::accept(listener.as_fd()).unwrap();
        old.shutdown_receiving().unwrap();
        link.send_job(2, b"two".into(), body());
        let (went, result) = flushed(&mut link);
        assert_eq!((went, result.unwrap_err().kind()), (vec![], io::ErrorKind::BrokenPipe));
        assert_eq!(link.retire(Duration::ZERO), None);
        assert_eq!(link.connect(run.as_fd(), PAUSE_MIN), Some(2));
        assert_eq!(flushed(&mut link).0, [2]);
        let new = sys::seqpacket::accept(listener.as_fd()).unwrap();
        assert!(matches!(new.recv_with_fd(&mut [0; 8]), Ok(Received::Datagram(3, Some(_)))));
        old.send(b"done").unwrap();
        assert!(matches!(link.recv(1, &mut [0; 8]), Heard::Datagram(4)));
        assert!(matches!(link.recv(2, &mut [0; 8]), Heard::Nothing));
        drop(old);
        assert!(matches!(link.recv(1, &mut [0; 8]), Heard::Lost));
        assert!(!link.close(1, Duration::ZERO), "the other one is still there");
        assert!(link.fd().is_some() && matches!(link.recv(1, &mut [0; 8]), Heard::Nothing));
    }

    #[test]
    fn retired_connections_are_bounded() {
        let (_dir, run) = run_dir();
        let _listener = sys::seqpacket::listen(run.as_fd(), Socket::Remote.path()).unwrap();
        let mut link = Link::new(Socket::Remote);
        for number in 1..=20 {
            let now = Duration::from_secs(number);
            assert_eq!(link.connect(run.as_fd(), now), Some(number));
            let over = link.retire(now);
            assert_eq!(over, number.checked_sub(16).filter(|oldest| *oldest > 0));
            over.map(|oldest| link.close(oldest, now));
        }
        assert_eq!(link.retired.len(), RETIRED_MAX);
    }
}
