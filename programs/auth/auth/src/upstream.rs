//! The connection to a server that is asked questions: qmail-lspawn, qmail-checkpw, qmail-authnet. Non-blocking, made again when it breaks,
//! every question with a deadline and an answer: the server's, or that there is none.
//!
//! A server that is replaced answers what it has read and ends; what it has not read is lost with the connection. So what is open when a
//! connection ends is asked once more, within its deadline: for a server that died over it this may be the second time, and the last.

use ipc::DATAGRAM_LEN_MAX;
use rustix::event::PollFlags;
use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use sys::{Received, Seqpacket};
use zeroize::Zeroizing;

/// How long a question may take (DESIGN: all but commit and DNS).
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);
/// Between attempts to connect to a server whose queue of connections is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// Questions under way; one more is answered "none" at once.
const PENDING_MAX: usize = 16_384;

/// A question under way.
struct Pending<W> {
    waiter: W,
    due: Duration,
    /// May hold a password.
    datagram: Zeroizing<Vec<u8>>,
    is_asked_again: bool,
}

/// Questions to one server; `W` is what to do with an answer. Ids grow, deadlines are all alike: the oldest question is due first.
pub(crate) struct Upstream<W> {
    run: Arc<OwnedFd>,
    path: &'static str,
    deadline: Duration,
    connection: Option<Seqpacket>,
    connect_after: Duration,
    /// What is still to be sent.
    outbox: VecDeque<u64>,
    pending: BTreeMap<u64, Pending<W>>,
    next_id: u64,
}

impl<W> Upstream<W> {
    pub(crate) fn new(run: Arc<OwnedFd>, path: &'static str) -> Self {
        Self {
            run,
            path,
            deadline: DEADLINE,
            connection: None,
            connect_after: Duration::ZERO,
            outbox: VecDeque::new(),
            pending: BTreeMap::new(),
            next_id: 1,
        }
    }

    /// With another deadline than [`DEADLINE`].
    pub(crate) fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Sends a question made for an id.
    ///
    /// # Errors
    /// The waiter back: there is no answer to be had now.
    pub(crate) fn ask(&mut self, datagram: impl FnOnce(u64) -> Vec<u8>, waiter: W, now: Duration) -> Result<(), W> {
        let id = self.next_id;
        let datagram = Zeroizing::new(datagram(id));
        if self.pending.len() >= PENDING_MAX || datagram.len() > DATAGRAM_LEN_MAX {
            return Err(waiter);
        }
        self.next_id = id.wrapping_add(1);
        self.outbox.push_back(id);
        let due = now.saturating_add(self.deadline);
        self.pending.insert(id, Pending { waiter, due, datagram, is_asked_again: false });
        Ok(())
    }

    /// Connects if need be and sends what waits. Returns those whose question cannot be asked, since nobody serves the socket.
    pub(crate) fn advance(&mut self, now: Duration) -> Vec<W> {
        let mut gone = Vec::new();
        // A connection that ends while it is written to is made again: each question is asked twice at most.
        while let Err(lost) = self.send(now) {
            gone.extend(lost);
        }
        gone
    }

    fn send(&mut self, now: Duration) -> Result<(), Vec<W>> {
        if self.connection.is_none() && !self.outbox.is_empty() && now >= self.connect_after {
            match Seqpacket::connect_nonblocking(self.run.as_fd(), self.path) {
                Ok(connection) => self.connection = Some(connection),
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.connect_after = now.saturating_add(CONNECT_PAUSE),
                Err(_) => return Err(self.reset()),
            }
        }
        while let (Some(connection), Some(id)) = (&self.connection, self.outbox.front()) {
            // One that was due meanwhile is not asked any more.
            let sent = self.pending.get(id).map_or(Ok(()), |pending| connection.send(&pending.datagram));
            match sent {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Err(self.lost()),
            }
        }
        Ok(())
    }

    /// One datagram with its descriptor; `Ok(None)` when there is none now.
    ///
    /// # Errors
    /// The connection ended: those whose questions were under way for the second time. The others are asked again.
    #[allow(clippy::type_complexity)]
    pub(crate) fn receive(&mut self, buf: &mut [u8]) -> Result<Option<(usize, Option<OwnedFd>)>, Vec<W>> {
        let Some(connection) = &self.connection else { return Ok(None) };
        match connection.recv_with_fd(buf) {
            Ok(Received::Datagram(len, fd)) => Ok(Some((len, fd))),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Ok(Received::End) | Err(_) => Err(self.lost()),
        }
    }

    /// Who waits for the answer with this id; `None` if it came too late.
    pub(crate) fn answered(&mut self, id: u64) -> Option<W> {
        self.pending.remove(&id).map(|pending| pending.waiter)
    }

    /// Those whose question is due.
    pub(crate) fn expired(&mut self, now: Duration) -> Vec<W> {
        let mut out = Vec::new();
        while let Some(first) = self.pending.first_entry().filter(|first| first.get().due <= now) {
            out.push(first.remove().waiter);
        }
        if self.pending.is_empty() {
            self.outbox.clear();
        }
        out
    }

    /// The connection is of no use any more. Returns those who were asked about twice.
    fn lost(&mut self) -> Vec<W> {
        self.connection = None;
        self.outbox.clear();
        let gone: Vec<u64> = self.pending.iter().filter(|(_, pending)| pending.is_asked_again).map(|(id, _)| *id).collect();
        let gone = gone.iter().filter_map(|id| self.pending.remove(id)).map(|pending| pending.waiter).collect();
        for (id, pending) in &mut self.pending {
            pending.is_asked_again = true;
            self.outbox.push_back(*id);
        }
        gone
    }

    /// Drops the connection and all questions; the next one connects again.
    pub(crate) fn reset(&mut self) -> Vec<W> {
        self.connection = None;
        self.outbox.clear();
        std::mem::take(&mut self.pending).into_values().map(|pending| pending.waiter).collect()
    }

    /// What to poll for.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let connection = self.connection.as_ref()?;
        let write = if self.outbox.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        Some((connection.as_fd(), PollFlags::IN | write))
    }

    /// When [`Upstream::expired`] or [`Upstream::advance`] has something to do.
    pub(crate) fn due(&self) -> Option<Duration> {
        let first = self.pending.first_key_value().map(|(_, pending)| pending.due)?;
        let connecting = self.connection.is_none() && !self.outbox.is_empty();
        Some(if connecting { first.min(self.connect_after) } else { first })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    /// A server's socket that nobody else has, and questions to it.
    fn server() -> (tempfile::TempDir, OwnedFd, Upstream<&'static str>) {
        let dir = tempfile::tempdir().unwrap();
        let run: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
        let listener = sys::seqpacket::listen(run.as_fd(), "x.sock").unwrap();
        let upstream = Upstream::new(Arc::new(run), "x.sock");
        (dir, listener, upstream)
    }

    fn heard(connection: &Seqpacket) -> Vec<u8> {
        let mut buf = [0; 64];
        let Received::Datagram(len, _) = connection.recv(&mut buf).unwrap() else { panic!("the end") };
        buf[..len].to_vec()
    }

    #[test]
    fn what_a_server_left_unread_is_asked_once_more_and_no_further() {
        let (_dir, listener, mut upstream) = server();
        let accept = || sys::seqpacket::accept(listener.as_fd()).unwrap();
        upstream.ask(|id| format!("first {id}").into_bytes(), "first", NOW).unwrap();
        upstream.ask(|id| format!("second {id}").into_bytes(), "second", NOW).unwrap();
        assert!(upstream.advance(NOW).is_empty());
        let old = accept();
        assert_eq!((heard(&old), heard(&old)), (b"first 1".to_vec(), b"second 2".to_vec()));
        old.send(b"answer").unwrap();
        assert!(matches!(upstream.receive(&mut [0; 64]), Ok(Some((6, None)))));
        assert_eq!(upstream.answered(1), Some("first"));
        // The old one ends without a word about the second.
        drop(old);
        assert_eq!(upstream.receive(&mut [0; 64]).unwrap_err(), Vec::<&str>::new());
        assert!(upstream.advance(NOW).is_empty());
        let new = accept();
        assert_eq!(heard(&new), b"second 2");
        drop(new);
        assert_eq!(upstream.receive(&mut [0; 64]).unwrap_err(), ["second"]);
        assert!(upstream.advance(NOW).is_empty() && upstream.due().is_none());
    }

    #[test]
    fn a_connection_that_ended_unnoticed_costs_no_question() {
        let (_dir, listener, mut upstream) = server();
        let accept = || sys::seqpacket::accept(listener.as_fd()).unwrap();
        upstream.ask(|_| b"before".to_vec(), "before", NOW).unwrap();
        upstream.advance(NOW);
        drop(accept());
        upstream.expired(NOW + DEADLINE);
        upstream.ask(|_| b"after".to_vec(), "after", NOW + DEADLINE).unwrap();
        assert!(upstream.advance(NOW + DEADLINE).is_empty());
        assert_eq!(heard(&accept()), b"after");
        assert_eq!(upstream.receive(&mut [0; 64]).unwrap_err(), ["after"], "the second connection that failed it");
        // Nobody serves any more: that is known at once.
        drop(listener);
        upstream.ask(|_| b"late".to_vec(), "late", NOW).unwrap();
        assert_eq!(upstream.advance(NOW), ["late"]);
    }
}
