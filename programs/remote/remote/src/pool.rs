//! Connections kept open for a moment after a job, for the next one to the same server.
//!
//! At most [`IDLE_MAX`] in all and [`IDLE_PER_ADDRESS_MAX`] to one address, each for [`IDLE_FOR`]; then they say QUIT. A
//! connection that was closed or said something meanwhile is never handed out.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::session::Session;

/// Long enough for the next message of a burst, short enough that no server minds.
pub const IDLE_FOR: Duration = Duration::from_secs(2);
const IDLE_MAX: usize = 500;
const IDLE_PER_ADDRESS_MAX: usize = 20;

/// The idle sessions of this process.
#[derive(Debug, Default)]
pub struct Pool {
    idle: RefCell<HashMap<SocketAddr, Vec<(u64, Session)>>>,
    count: Cell<usize>,
    next: Cell<u64>,
    closed: Cell<bool>,
}

impl Pool {
    /// An open session to this address, the one used last.
    #[must_use]
    pub fn take(&self, address: SocketAddr) -> Option<Session> {
        loop {
            let session = self.remove(address, None)?;
            if session.is_quiet() {
                return Some(session);
            }
        }
    }

    /// Keeps a session whose transaction has ended, or ends it if it cannot be used again or there are enough.
    pub fn give_back(self: &Rc<Self>, session: Session) {
        let address = session.address();
        let enough = || self.idle.borrow().get(&address).map_or(0, Vec::len) >= IDLE_PER_ADDRESS_MAX;
        if self.closed.get() || !session.is_ready() || self.count.get() >= IDLE_MAX || enough() {
            spawn_local(session.quit());
            return;
        }
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        self.idle.borrow_mut().entry(address).or_default().push((id, session));
        self.count.set(self.count.get().saturating_add(1));
        let pool = Rc::clone(self);
        spawn_local(async move {
            sleep(IDLE_FOR).await;
            if let Some(session) = pool.remove(address, Some(id)) {
                session.quit().await;
            }
        });
    }

    /// Ends all idle sessions; those given back later end at once.
    pub fn close(&self) {
        self.closed.set(true);
        for (_, session) in self.idle.take().into_values().flatten() {
            spawn_local(session.quit());
        }
        self.count.set(0);
    }

    fn remove(&self, address: SocketAddr, id: Option<u64>) -> Option<Session> {
        let mut idle = self.idle.borrow_mut();
        let sessions = idle.get_mut(&address)?;
        let at = match id {
            Some(id) => sessions.iter().position(|(known, _)| *known == id)?,
            None => sessions.len().checked_sub(1)?,
        };
        let (_, session) = sessions.remove(at);
        if sessions.is_empty() {
            idle.remove(&address);
        }
        self.count.set(self.count.get().saturating_sub(1));
        Some(session)
    }
}
