//! Connections kept open for a moment after a job, for the next one to the same server.
//!
//! At most [`IDLE_MAX`] in all and [`IDLE_PER_KEY_MAX`] to one address on the same terms, each for [`IDLE_FOR`] (and a sweep); then
//! they say QUIT. A connection that was closed or said something meanwhile is never handed out.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use crate::session::Session;
use crate::terms::Key;

/// Long enough for the next message of a burst, short enough that no server minds.
pub const IDLE_FOR: Duration = Duration::from_secs(2);
/// How often old ones are looked for while there are any. One task does it: one per connection and message would outlive the
/// message by seconds, at a rate of thousands.
const SWEEP: Duration = Duration::from_millis(250);
pub const IDLE_MAX: usize = 500;
pub const IDLE_PER_KEY_MAX: usize = 20;

/// The idle sessions of this process.
#[derive(Debug, Default)]
pub struct Pool {
    /// The one used last at the end.
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
    count: Cell<usize>,
    sweeping: Cell<bool>,
    closed: Cell<bool>,
}

#[derive(Debug)]
struct Idle {
    session: Session,
    until: Instant,
}

impl Pool {
    /// An open session to this address on these terms, the one used last.
    #[must_use]
    pub fn take(&self, key: &Key) -> Option<Session> {
        let mut all = self.idle.borrow_mut();
        let idle = all.get_mut(key)?;
        let mut found = None;
        while let Some(Idle { session, .. }) = idle.pop() {
            self.count.set(self.count.get().saturating_sub(1));
            if session.is_quiet() {
                found = Some(session);
                break;
            }
        }
        if idle.is_empty() {
            all.remove(key);
        }
        found
    }

    /// Keeps a session whose transaction has ended, or ends it if it cannot be used again or there are enough.
    pub fn give_back(self: &Rc<Self>, session: Session) {
        let key = session.key().clone();
        let enough = || self.idle.borrow().get(&key).map_or(0, Vec::len) >= IDLE_PER_KEY_MAX;
        if self.closed.get() || !session.is_ready() || self.count.get() >= IDLE_MAX || enough() {
            spawn_local(session.quit());
            return;
        }
        let until = Instant::now() + IDLE_FOR;
        self.idle.borrow_mut().entry(key).or_default().push(Idle { session, until });
        self.count.set(self.count.get().saturating_add(1));
        if !self.sweeping.replace(true) {
            spawn_local(Rc::clone(self).sweep());
        }
    }

    /// Ends all idle sessions; those given back later end at once.
    pub fn close(&self) {
        self.closed.set(true);
        for idle in self.idle.take().into_values().flatten() {
            spawn_local(idle.session.quit());
        }
        self.count.set(0);
    }

    /// Ends those that were idle for long enough, until none is left.
    async fn sweep(self: Rc<Self>) {
        while self.count.get() > 0 {
            sleep(SWEEP).await;
            let (mut all, now) = (self.idle.borrow_mut(), Instant::now());
            for idle in all.values_mut().flat_map(|idle| idle.extract_if(.., |idle| idle.until <= now)) {
                self.count.set(self.count.get().saturating_sub(1));
                spawn_local(idle.session.quit());
            }
            all.retain(|_, idle| !idle.is_empty());
        }
        self.sweeping.set(false);
    }
}
