//! Messages on their way to qmail-send: connections that are used again, and one datagram for a small message.
//!
//! A message takes a connection when its first datagram is full, or when it is complete; so a client that types slowly holds none.
//! Guarantees: an answer for every commit, [`Verdict::Temporary`] when there is no connection, it broke, or the deadline passed
//! (promise 8). A datagram is sent again only if a send failed before anything of the message was taken, so nothing is doubled.

use ipc::Message as _;
use ipc::queue::{Answer, Item, Packer};
use ipc_async::Packets;
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::timeout;

use crate::{Verdict, not_now};

/// Connections kept for the next message; at a peak there are more.
const IDLE_MAX: usize = 64;
/// For connecting and for qmail-send to take a datagram.
const SEND_DEADLINE: Duration = Duration::from_secs(60);
/// For a commit.
const COMMIT_DEADLINE: Duration = Duration::from_secs(300);

/// Connections to qmail-send.
#[derive(Debug)]
pub struct Pool {
    run: Rc<OwnedFd>,
    path: &'static str,
    idle: RefCell<Vec<Packets>>,
}

/// A message that is being handed over. Dropped before [`Draft::commit`] it is abandoned.
#[derive(Debug)]
pub struct Draft {
    pool: Rc<Pool>,
    packer: Packer,
    connection: Option<Packets>,
    is_broken: bool,
}

impl Pool {
    /// `run`: the directory of the sockets, `path` below it.
    #[must_use]
    pub fn new(run: Rc<OwnedFd>, path: &'static str) -> Self {
        Self { run, path, idle: RefCell::default() }
    }

    /// Sends the first datagram of a message, and says on which connection.
    async fn start(&self, datagram: &[u8]) -> io::Result<Packets> {
        loop {
            let idle = self.idle.borrow_mut().pop();
            let Some(idle) = idle else { break };
            // A connection that qmail-send has closed meanwhile takes nothing: try the next one.
            if idle.send(datagram).await.is_ok() {
                return Ok(idle);
            }
        }
        let fresh = Packets::connect(self.run.as_fd(), self.path).await?;
        fresh.send(datagram).await?;
        Ok(fresh)
    }

    fn put_back(&self, connection: Packets) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }
}

impl Draft {
    /// A message of which nothing is known yet; its first item says that it begins.
    #[must_use]
    pub fn new(pool: Rc<Pool>) -> Self {
        Self { pool, packer: Packer::new(), connection: None, is_broken: false }
    }

    /// The next bytes of the message.
    pub async fn data(&mut self, mut data: &[u8]) {
        while !data.is_empty() && !self.is_broken {
            if let Some(full) = self.packer.push_data(&mut data) {
                self.send(&full).await;
            }
        }
    }

    /// The end of the message; qmail-send's answer, or a temporary refusal.
    pub async fn commit(mut self) -> Verdict {
        self.item(&Item::Commit).await;
        if let Some(last) = self.packer.take() {
            self.send(&last).await;
        }
        let Some(connection) = self.connection.take() else { return not_now("4.3.0 the queue cannot be reached") };
        // Where the message was refused half-way the answer is there even if a send failed after it. Boxed: it has a buffer for a
        // whole datagram, which a session that waits for its client must not carry.
        let answer = timeout(COMMIT_DEADLINE, Box::pin(connection.recv())).await;
        let Ok(Ok(Some((datagram, _)))) = answer else { return not_now("4.3.0 the queue did not answer") };
        let Ok(answer) = Answer::decode(&datagram) else { return not_now("4.3.0 the queue did not answer") };
        if !self.is_broken {
            self.pool.put_back(connection);
        }
        answer.into()
    }

    /// Any step but data and the commit.
    pub async fn item(&mut self, item: &Item<'_>) {
        if let Some(full) = self.packer.push(item) {
            self.send(&full).await;
        }
    }

    async fn send(&mut self, datagram: &[u8]) {
        if self.is_broken {
            return;
        }
        let sent = match &self.connection {
            Some(connection) => timeout(SEND_DEADLINE, connection.send(datagram)).await,
            None => match timeout(SEND_DEADLINE, self.pool.start(datagram)).await {
                Ok(Ok(connection)) => {
                    self.connection = Some(connection);
                    Ok(Ok(()))
                }
                Ok(Err(error)) => Ok(Err(error)),
                Err(late) => Err(late),
            },
        };
        if sent.is_err() {
            // Who takes nothing for so long will not answer either.
            self.connection = None;
        }
        self.is_broken = !matches!(sent, Ok(Ok(())));
    }
}
