//! The connections of those who ask: what each may ask, and the answers that wait to be taken.

use ipc::{DATAGRAM_LEN_MAX, Message};
use rustix::event::PollFlags;
use sandbox::{Role, Socket};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use sys::{Received, Seqpacket};
use wire::Address;

/// Requests of one connection under way; no more are read until some are answered.
const UNDER_WAY_MAX: usize = 1024;
/// Answers that a caller does not take; one more closes its connection. Every caller of ours reads while it writes.
const OUTBOX_MAX: usize = 2 * UNDER_WAY_MAX;

/// How long a connection of an administrator of a domain lasts: a command and a list.
const MANAGE_MAX: Duration = Duration::from_secs(120);

/// What a connection may ask, by the uid at its other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Recipients and logins: qmaild, and root.
    pub(crate) network: bool,
    /// Routes: qmailq.
    pub(crate) queue: bool,
    /// Accounts: root, or the user everything runs as.
    pub(crate) admin: bool,
    /// A login, and after it accounts of the domains that it administers: anyone.
    pub(crate) manage: bool,
}

impl Rights {
    /// `None`: whoever it is has no business here.
    pub(crate) fn of(socket: Socket, uid: u32, uid_of: impl Fn(Role) -> Option<u32>) -> Option<Self> {
        if !sandbox::may_call(socket, uid, &uid_of) {
            return None;
        }
        let is = |role| uid_of(role) == Some(uid);
        let admin = socket == Socket::AdminAuth;
        let manage = socket == Socket::Manage;
        if manage {
            return Some(Self { network: false, queue: false, admin: false, manage });
        }
        Some(Self { manage, network: !admin && (is(Role::Network) || uid == 0), queue: !admin && is(Role::Queue), admin })
    }
}

/// One connection.
pub(crate) struct Client {
    socket: Seqpacket,
    pub(crate) rights: Rights,
    outbox: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    under_way: usize,
    /// It asked for a route, and may remember it: it hears of changes.
    pub(crate) keeps_routes: bool,
    /// Who is at the other end.
    pub(crate) uid: u32,
    /// The administrator of a domain who has logged in.
    pub(crate) manager: Option<Address>,
    /// Since when it is connected.
    pub(crate) since: Duration,
}

/// What a connection had to say.
pub(crate) enum Heard {
    Datagram(usize),
    Nothing,
    /// It ended, broke, or said what nobody says.
    End,
}

impl Client {
    pub(crate) fn new(socket: Seqpacket, rights: Rights, uid: u32) -> Self {
        let since = sys::clock::boottime();
        Self { socket, rights, outbox: VecDeque::new(), under_way: 0, keeps_routes: false, uid, manager: None, since }
    }

    /// Of one that anyone may make: when it has been there long enough.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.rights.manage.then(|| self.since.saturating_add(MANAGE_MAX))
    }

    pub(crate) fn receive(&mut self, buf: &mut [u8]) -> Heard {
        match self.socket.recv(buf) {
            Ok(Received::Datagram(len, _)) => Heard::Datagram(len),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Heard::Nothing,
            Ok(Received::End) | Err(_) => Heard::End,
        }
    }

    /// A request was taken that will be answered with [`Client::answer`] once.
    pub(crate) fn begin(&mut self) {
        self.under_way = self.under_way.saturating_add(1);
    }

    /// May it be read from? The administrator has one request at a time.
    pub(crate) fn is_reading(&self) -> bool {
        let most = if self.rights.admin || self.rights.manage { 1 } else { UNDER_WAY_MAX };
        self.under_way < most && self.outbox.is_empty()
    }

    /// Queues the answer to a request; false if the connection must be closed.
    pub(crate) fn answer(&mut self, message: &impl Message, fd: Option<OwnedFd>) -> bool {
        self.under_way = self.under_way.saturating_sub(1);
        self.push(message, fd)
    }

    /// Queues a datagram that is not the last of its answer.
    pub(crate) fn push(&mut self, message: &impl Message, fd: Option<OwnedFd>) -> bool {
        let datagram = message.encode();
        debug_assert!(datagram.len() <= DATAGRAM_LEN_MAX);
        self.outbox.push_back((datagram, fd));
        self.flush() && self.outbox.len() <= OUTBOX_MAX
    }

    /// Sends what waits; false if the connection is gone.
    pub(crate) fn flush(&mut self) -> bool {
        while let Some((datagram, fd)) = self.outbox.front() {
            let sent = match fd {
                Some(fd) => self.socket.send_with_fd(datagram, fd.as_fd()),
                None => self.socket.send(datagram),
            };
            match sent {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        true
    }

    pub(crate) fn has_room(&self) -> bool {
        self.outbox.is_empty()
    }

    /// What to poll for; `has_more`: there is more to be sent than what waits.
    pub(crate) fn interest(&self, has_more: bool) -> (BorrowedFd<'_>, PollFlags) {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.is_reading());
        flags.set(PollFlags::OUT, has_more || !self.outbox.is_empty());
        (self.socket.as_fd(), flags)
    }
}
