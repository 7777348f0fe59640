//! Many questions at once on one connection, told apart by their ids.

use crate::packets::Packets;
use ipc::Message;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Most questions under way; more are answered [`Gone`] at once.
const PENDING_MAX: usize = 65_536;

/// No answer: the server is not there, went away, or took longer than the deadline. Temporary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no answer")
    }
}

impl std::error::Error for Gone {}

/// An answer that says which question it is for.
pub trait Answer: Message + 'static {
    fn id(&self) -> u64;
}

impl Answer for ipc::authnet::Answer {
    fn id(&self) -> u64 {
        match self {
            Self::Right { id, .. } | Self::Wrong { id } | Self::NoSuchUser { id } | Self::Unavailable { id, .. } => *id,
        }
    }
}

impl Answer for ipc::auth::Answer {
    fn id(&self) -> u64 {
        match self {
            Self::Recipient { id, .. }
            | Self::LoggedIn { id, .. }
            | Self::Refused { id, .. }
            | Self::Challenge { id, .. }
            | Self::Unavailable { id, .. }
            | Self::Route { id, .. }
            | Self::Permission { id, .. }
            | Self::Noted { id }
            | Self::Relay { id, .. } => *id,
            // Nobody's question, and nothing that a client of this kind asked to hear.
            Self::Changed {} => u64::MAX,
        }
    }
}

impl Answer for ipc::resolve::Answer {
    fn id(&self) -> u64 {
        match self {
            Self::Hosts { id, .. }
            | Self::NullMx { id, .. }
            | Self::NoHost { id, .. }
            | Self::Temporary { id, .. }
            | Self::Site { id, .. } => *id,
        }
    }
}

impl Answer for ipc::keys::Answer {
    fn id(&self) -> u64 {
        Self::id(self)
    }
}

type Waiting<A> = HashMap<u64, oneshot::Sender<(A, Option<OwnedFd>)>>;

#[derive(Debug)]
struct Connection<A> {
    packets: Packets,
    waiting: RefCell<Waiting<A>>,
    closed: Cell<bool>,
}

/// A client of one server. Clones share the connection.
#[derive(Debug)]
pub struct Client<A>(Rc<Shared<A>>);

impl<A> Clone for Client<A> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

#[derive(Debug)]
enum Server {
    /// The socket `path` below the run directory.
    Socket { run: Rc<OwnedFd>, path: &'static str },
    /// One connection; there will be no other.
    Connected(RefCell<Option<Packets>>),
}

#[derive(Debug)]
struct Shared<A> {
    server: Server,
    deadline: Duration,
    next_id: Cell<u64>,
    connection: tokio::sync::Mutex<Option<Rc<Connection<A>>>>,
}

impl<A: Answer> Client<A> {
    /// A client of the socket `path` below the run directory; connects with the first question. Must be used inside a
    /// `tokio::task::LocalSet`.
    #[must_use]
    pub fn new(run: Rc<OwnedFd>, path: &'static str, deadline: Duration) -> Self {
        Self::of(Server::Socket { run, path }, deadline)
    }

    /// A client of a server that is connected already, and of nobody when that has ended.
    #[must_use]
    pub fn over(connection: Packets, deadline: Duration) -> Self {
        Self::of(Server::Connected(RefCell::new(Some(connection))), deadline)
    }

    fn of(server: Server, deadline: Duration) -> Self {
        Self(Rc::new(Shared { server, deadline, next_id: Cell::new(1), connection: tokio::sync::Mutex::new(None) }))
    }

    /// Asks, and waits for the answer to this question. `question` gets the id that the message must carry. It may be asked twice, if
    /// the first server ends without an answer.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn ask<Q: Message>(&self, question: impl FnOnce(u64) -> Q) -> Result<(A, Option<OwnedFd>), Gone> {
        self.ask_within(self.0.deadline, question).await
    }

    /// As [`Client::ask`], for a question that takes another time than most.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn ask_within<Q: Message>(
        &self,
        deadline: Duration,
        question: impl FnOnce(u64) -> Q,
    ) -> Result<(A, Option<OwnedFd>), Gone> {
        let id = self.0.next_id.get();
        self.0.next_id.set(id.wrapping_add(1));
        let datagram = question(id).encode_bounded().map_err(|_| Gone)?;
        let answer = async {
            match self.ask_encoded(id, &datagram).await {
                // A process that was replaced took its questions with it: the next one is asked, once, within the same deadline.
                Err(Gone) => self.ask_encoded(id, &datagram).await,
                answered => answered,
            }
        };
        timeout(deadline, answer).await.map_err(|_| Gone)?
    }

    async fn ask_encoded(&self, id: u64, datagram: &[u8]) -> Result<(A, Option<OwnedFd>), Gone> {
        let connection = self.connection().await?;
        let (sender, answer) = oneshot::channel();
        let _forget = Forget { connection: &connection, id };
        {
            let mut waiting = connection.waiting.borrow_mut();
            if waiting.len() >= PENDING_MAX {
                return Err(Gone);
            }
            waiting.insert(id, sender);
        }
        if connection.packets.send(datagram).await.is_err() {
            connection.closed.set(true);
            return Err(Gone);
        }
        answer.await.map_err(|_| Gone)
    }

    async fn connection(&self) -> Result<Rc<Connection<A>>, Gone> {
        let mut current = self.0.connection.lock().await;
        if let Some(connection) = current.as_ref().filter(|connection| !connection.closed.get()) {
            return Ok(Rc::clone(connection));
        }
        let packets = match &self.0.server {
            Server::Socket { run, path } => Packets::connect(run.as_fd(), path).await.map_err(|_| Gone)?,
            Server::Connected(connection) => connection.borrow_mut().take().ok_or(Gone)?,
        };
        let connection = Rc::new(Connection { packets, waiting: RefCell::new(HashMap::new()), closed: Cell::new(false) });
        tokio::task::spawn_local(receive(Rc::clone(&connection)));
        *current = Some(Rc::clone(&connection));
        Ok(connection)
    }
}

/// Takes back the place of a question whose asker stopped waiting.
struct Forget<'a, A> {
    connection: &'a Connection<A>,
    id: u64,
}

impl<A> Drop for Forget<'_, A> {
    fn drop(&mut self) {
        self.connection.waiting.borrow_mut().remove(&self.id);
    }
}

/// Hands each answer to its question until the connection ends; then every open question is [`Gone`].
async fn receive<A: Answer>(connection: Rc<Connection<A>>) {
    while let Ok(Some((datagram, fd))) = connection.packets.recv().await {
        let Ok(answer) = A::decode(&datagram) else { break };
        let waiting = connection.waiting.borrow_mut().remove(&answer.id());
        if let Some(waiting) = waiting {
            let _ = waiting.send((answer, fd));
        }
    }
    connection.closed.set(true);
    connection.waiting.borrow_mut().clear();
}
