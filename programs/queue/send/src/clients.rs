//! Who is connected: submitters on queue.sock and inject.sock, administrators on admin/send.sock, and how many may be.

use std::collections::HashMap;
use std::time::Duration;

use message::received::InvokedBy;
use sandbox::{Role, Socket, may_call};
use sys::Seqpacket;
use sys::seqpacket::Peer;
use users::Ids;

use crate::submission::{Submission, Submitter};

/// Connections on inject.sock: of one user, and of all.
pub(crate) const INJECT_USER_MAX: usize = 20;
pub(crate) const INJECT_MAX: usize = 200;
/// Connections on queue.sock: workers of network programs open one for each message under way.
pub(crate) const QUEUE_MAX: usize = 8192;
/// Connections on admin/send.sock.
pub(crate) const ADMIN_MAX: usize = 16;
/// A message that makes no progress for so long is abandoned.
const STALLED: Duration = Duration::from_secs(1200);
/// A user's connection that does nothing for so long is closed: others may want its place.
const IDLE: Duration = Duration::from_secs(300);

/// A connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: Seqpacket,
    pub(crate) kind: Kind,
    /// When it last said something, since boot.
    pub(crate) heard: Duration,
    /// Not read from before its side file has caught up.
    pub(crate) paused: bool,
    pub(crate) who: Submitter,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Queue(Submission),
    Inject(Submission),
    Admin,
    /// An administrator who hands over a message of another queue.
    Import(Box<Importing>),
}

/// See [`Kind::Import`].
#[derive(Debug)]
pub(crate) struct Importing {
    pub(crate) submission: Submission,
    pub(crate) arrival_s: u64,
    pub(crate) uid: u32,
    pub(crate) pid: u32,
}

impl Client {
    pub(crate) fn submission(&mut self) -> Option<&mut Submission> {
        match &mut self.kind {
            Kind::Queue(submission) | Kind::Inject(submission) => Some(submission),
            Kind::Import(importing) => Some(&mut importing.submission),
            Kind::Admin => None,
        }
    }

    /// The message of another queue is kept or refused: requests may come again.
    pub(crate) fn import_over(&mut self) {
        if matches!(self.kind, Kind::Import(_)) {
            self.kind = Kind::Admin;
        }
    }

    /// Has it been silent for too long? One that waits for us never has.
    pub(crate) fn is_stale(&self, now: Duration) -> bool {
        let silent = now.saturating_sub(self.heard);
        match &self.kind {
            Kind::Queue(submission) | Kind::Inject(submission) if submission.is_waiting() => false,
            Kind::Queue(submission) => !submission.is_idle() && silent > STALLED,
            Kind::Inject(submission) => silent > if submission.is_idle() { IDLE } else { STALLED },
            Kind::Import(importing) if importing.submission.is_waiting() => false,
            Kind::Admin | Kind::Import(_) => silent > STALLED,
        }
    }
}

/// All connections by number.
#[derive(Debug)]
pub(crate) struct Clients {
    all: HashMap<u64, Client>,
    next: u64,
    ids: Ids,
}

impl Clients {
    pub(crate) fn new(ids: Ids) -> Self {
        Self { all: HashMap::new(), next: 1, ids }
    }

    /// Takes a new connection, or refuses it with a text for its owner.
    pub(crate) fn admit(&mut self, door: Socket, socket: Seqpacket, now: Duration) -> Result<u64, (Seqpacket, &'static str)> {
        let Ok(peer) = socket.peer() else { return Err((socket, "4.3.0 cannot tell who you are")) };
        if !may_call(door, peer.uid, |role| self.ids.uid_of(role.name())) {
            return Err((socket, "5.7.1 you may not call this"));
        }
        if !self.has_room(door, peer.uid) {
            return Err((socket, "4.3.2 too many connections; try again later"));
        }
        let who = self.submitter(door, peer);
        let submission = Submission::new(who);
        let kind = match door {
            Socket::Queue => Kind::Queue(submission),
            Socket::Inject => Kind::Inject(submission),
            _ => Kind::Admin,
        };
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.all.insert(number, Client { socket, kind, heard: now, paused: false, who });
        Ok(number)
    }

    fn has_room(&self, door: Socket, uid: u32) -> bool {
        let count = |is: &dyn Fn(&Kind) -> bool| self.all.values().filter(|client| is(&client.kind)).count();
        match door {
            Socket::Queue => count(&|kind| matches!(kind, Kind::Queue(_))) < QUEUE_MAX,
            Socket::Inject => {
                count(&|kind| matches!(kind, Kind::Inject(_))) < INJECT_MAX
                    && count(&|kind| matches!(kind, Kind::Inject(submission) if submission.who().uid == uid)) < INJECT_USER_MAX
            }
            _ => count(&|kind| matches!(kind, Kind::Admin | Kind::Import(_))) < ADMIN_MAX,
        }
    }

    fn submitter(&self, door: Socket, peer: Peer) -> Submitter {
        let is = |role: &str| matches!(self.ids, Ids::Table(_)) && self.ids.get(role).is_some_and(|id| id.uid == peer.uid);
        let invoked = match door {
            Socket::Queue => InvokedBy::Network,
            _ if is(Role::Network.name()) => InvokedBy::Network,
            _ if is("alias") => InvokedBy::Alias,
            _ => InvokedBy::Uid(peer.uid),
        };
        Submitter { uid: peer.uid, pid: peer.pid, invoked }
    }

    pub(crate) fn get(&mut self, number: u64) -> Option<&mut Client> {
        self.all.get_mut(&number)
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<Client> {
        self.all.remove(&number)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(crate) fn numbers(&self, is: impl Fn(&Client) -> bool) -> Vec<u64> {
        self.all.iter().filter(|(_, client)| is(client)).map(|(number, _)| *number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use users::Id;

    fn admit(clients: &mut Clients, door: Socket) -> Result<(u64, Seqpacket), &'static str> {
        let (a, b) = Seqpacket::pair().unwrap();
        clients.admit(door, a, Duration::ZERO).map(|number| (number, b)).map_err(|(_, text)| text)
    }

    #[test]
    fn one_user_gets_twenty_and_others_their_own() {
        let own = rustix::process::geteuid().as_raw();
        let mut clients = Clients::new(Ids::Caller(Id { uid: own, gid: own }));
        let held: Vec<_> = (0..INJECT_USER_MAX).map(|_| admit(&mut clients, Socket::Inject).unwrap()).collect();
        assert!(admit(&mut clients, Socket::Inject).unwrap_err().starts_with("4.3.2"));
        assert!(admit(&mut clients, Socket::Queue).is_ok(), "another door");
        clients.remove(held[0].0);
        assert!(admit(&mut clients, Socket::Inject).is_ok());
    }

    #[test]
    fn only_roles_enter_by_the_queue_and_only_root_by_the_admin_door() {
        let own = rustix::process::geteuid().as_raw();
        let table = |own_role: &str| {
            let text = format!("qmailq 90001 90000\nqmaild 90002 90000\nalias 90003 90003\n{own_role} {} 90000\n", own.max(1));
            Ids::parse(text.as_bytes()).unwrap()
        };
        let mut clients = Clients::new(table("qmailz"));
        assert!(admit(&mut clients, Socket::Queue).unwrap_err().starts_with("5.7.1"));
        assert_eq!(admit(&mut clients, Socket::AdminSend).is_ok(), own == 0);
        let (number, _other) = admit(&mut clients, Socket::Inject).unwrap();
        let who = clients.get(number).unwrap().submission().unwrap().who();
        assert_eq!((who.uid, who.invoked), (own, InvokedBy::Uid(own)));
    }
}
