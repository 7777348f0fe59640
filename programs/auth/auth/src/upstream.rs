//! The connection to a server that is asked questions: qmail-lspawn, qmail-checkpw, qmail-authnet. Non-blocking, made again when it breaks,
//! every question with a deadline and an answer: the server's, or that there is none.

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
}

/// Questions to one server; `W` is what to do with an answer. Ids grow, deadlines are all alike: the oldest question is due first.
pub(crate) struct Upstream<W> {
    run: Arc<OwnedFd>,
    path: &'static str,
    deadline: Duration,
    connection: Option<Seqpacket>,
    connect_after: Duration,
    /// May hold passwords.
    outbox: VecDeque<Zeroizing<Vec<u8>>>,
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
        self.outbox.push_back(datagram);
        self.pending.insert(id, Pending { waiter, due: now.saturating_add(self.deadline) });
        Ok(())
    }

    /// Connects if need be and sends what waits. Returns those whose question cannot be asked, since nobody serves the socket.
    pub(crate) fn advance(&mut self, now: Duration) -> Vec<W> {
        if self.connection.is_none() && !self.outbox.is_empty() && now >= self.connect_after {
            match Seqpacket::connect_nonblocking(self.run.as_fd(), self.path) {
                Ok(connection) => self.connection = Some(connection),
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.connect_after = now.saturating_add(CONNECT_PAUSE),
                Err(_) => return self.reset(),
            }
        }
        while let (Some(connection), Some(datagram)) = (&self.connection, self.outbox.front()) {
            match connection.send(datagram) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.reset(),
            }
        }
        Vec::new()
    }

    /// One datagram with its descriptor; `Ok(None)` when there is none now.
    ///
    /// # Errors
    /// The connection ended: those whose questions were under way.
    #[allow(clippy::type_complexity)]
    pub(crate) fn receive(&mut self, buf: &mut [u8]) -> Result<Option<(usize, Option<OwnedFd>)>, Vec<W>> {
        let Some(connection) = &self.connection else { return Ok(None) };
        match connection.recv_with_fd(buf) {
            Ok(Received::Datagram(len, fd)) => Ok(Some((len, fd))),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Ok(Received::End) | Err(_) => Err(self.reset()),
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
