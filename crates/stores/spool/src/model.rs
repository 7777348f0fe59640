//! The spool as it should be, in memory: the oracle of the conformance suite, and a stand-in for tests of qmail-send.
//!
//! It answers at once, keeps nothing when it goes away, and can be told to be full or stopped. It shares no code with the real
//! spool beyond the types.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};

use rustix::event::{EventfdFlags, eventfd};

use crate::shared::lock;
use crate::side::{SideBody, SideShared};
use crate::types::{
    BODY_INLINE_MAX, Body, Change, Completion, Envelope, Health, Living, Log, MessageId, Outlook, RECIPIENTS_MAX, REPLY_LEN_MAX,
    ReadFailure, RecipientState, Refusal, Stats,
};

struct Kept {
    envelope: Envelope,
    states: Vec<RecipientState>,
    body: Vec<u8>,
    outlook: Outlook,
}

/// See the module.
pub struct Model {
    messages: BTreeMap<u64, Kept>,
    next_id: u64,
    next_side: u64,
    waiting: Vec<Completion>,
    wake: OwnedFd,
    health: Health,
    stats: Stats,
}

impl Model {
    /// An empty spool.
    ///
    /// # Errors
    /// Temporary: no file descriptor for the wake-up.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            messages: BTreeMap::new(),
            next_id: 1 << 23,
            next_side: 1,
            waiting: Vec::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            health: Health::Ok,
            stats: Stats::default(),
        })
    }

    /// From now on requests are answered as a spool of that health answers.
    pub fn set_health(&mut self, health: Health) {
        self.health = health;
    }

    /// What [`crate::Spool::open`] would list if the system started now.
    #[must_use]
    pub fn living(&self) -> Vec<Living> {
        self.messages.iter().map(|(id, kept)| living(MessageId(*id), kept)).collect()
    }

    fn say(&mut self, completion: Completion) {
        self.waiting.push(completion);
        // A full counter is as readable as can be.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn refusal(&self, envelope: &Envelope, body: &Body) -> Option<Refusal> {
        let too_large = matches!(body, Body::Inline(bytes) if bytes.len() > BODY_INLINE_MAX);
        match self.health {
            _ if too_large || envelope.recipients.len() > RECIPIENTS_MAX => Some(Refusal::TooLarge),
            Health::Ok => None,
            Health::Full => Some(Refusal::Full),
            Health::Stopped => Some(Refusal::Failed),
        }
    }

    fn keep(&mut self, envelope: Envelope, body: Body) -> MessageId {
        let body = match body {
            Body::Inline(bytes) => bytes,
            Body::Side(side) => lock(&side.shared.inner).chunks.drain(..).flatten().collect(),
        };
        let fresh = RecipientState::Pending { attempts: 0, due_s: envelope.arrival_s, last_reply: Vec::new(), warned: false };
        let outlook = Outlook {
            pending: u32::try_from(envelope.recipients.len()).unwrap_or(u32::MAX),
            due_s: envelope.arrival_s,
            held: false,
        };
        let id = self.next_id;
        self.next_id = self.next_id.saturating_add(1);
        self.messages.insert(id, Kept { states: vec![fresh; envelope.recipients.len()], envelope, body, outlook });
        self.stats.accepted = self.stats.accepted.saturating_add(1);
        MessageId(id)
    }

    fn forget(&mut self, id: MessageId) -> bool {
        let known = self.messages.remove(&id.0).is_some();
        self.stats.ended = self.stats.ended.saturating_add(u64::from(known));
        known
    }
}

fn living(id: MessageId, kept: &Kept) -> Living {
    Living {
        id,
        arrival_s: kept.envelope.arrival_s,
        due_s: kept.outlook.due_s,
        bytes: kept.body.len() as u64,
        recipients: u32::try_from(kept.states.len()).unwrap_or(u32::MAX),
        pending: kept.outlook.pending,
        held: kept.outlook.held,
        sender_is_null: kept.envelope.sender.is_null(),
    }
}

fn cut(state: RecipientState) -> RecipientState {
    match state {
        RecipientState::Pending { attempts, due_s, mut last_reply, warned } => {
            last_reply.truncate(REPLY_LEN_MAX);
            RecipientState::Pending { attempts, due_s, last_reply, warned }
        }
        RecipientState::Failed { mut reply } => {
            reply.truncate(REPLY_LEN_MAX);
            RecipientState::Failed { reply }
        }
        other => other,
    }
}

impl Log for Model {
    fn accept(&mut self, envelope: Envelope, body: Body, ticket: u64) {
        let answer = match self.refusal(&envelope, &body) {
            Some(why) => Completion::Refused { ticket, why },
            None => Completion::Accepted { ticket, id: self.keep(envelope, body) },
        };
        self.say(answer);
    }

    fn bounce_and_end(&mut self, bounce: Envelope, body: Body, ended: MessageId, ticket: u64) {
        // A full disk does not stop bounces: they go to the spare.
        let answer = match self.refusal(&bounce, &body).filter(|why| *why != Refusal::Full) {
            Some(why) => Completion::Refused { ticket, why },
            None if !self.messages.contains_key(&ended.0) => Completion::Refused { ticket, why: Refusal::Failed },
            None => {
                let id = self.keep(bounce, body);
                self.forget(ended);
                Completion::Accepted { ticket, id }
            }
        };
        self.say(answer);
    }

    fn progress(&mut self, id: MessageId, changes: Vec<Change>, outlook: Outlook, ticket: u64) {
        let stopped = self.health == Health::Stopped;
        let answer = match self.messages.get_mut(&id.0) {
            Some(kept) if !stopped => {
                kept.outlook = outlook;
                for change in changes {
                    if let Some(state) = kept.states.get_mut(change.recipient as usize) {
                        *state = cut(change.state);
                    }
                }
                Completion::Written { ticket }
            }
            _ => Completion::Unwritten { ticket },
        };
        self.say(answer);
    }

    fn note(&mut self, id: MessageId, outlook: Outlook, ticket: u64) {
        self.progress(id, Vec::new(), outlook, ticket);
    }

    fn end(&mut self, id: MessageId, ticket: u64) {
        let written = self.health != Health::Stopped && self.forget(id);
        self.say(if written { Completion::Written { ticket } } else { Completion::Unwritten { ticket } });
    }

    fn read_envelope(&mut self, id: MessageId, ticket: u64) {
        let answer = match self.messages.get(&id.0) {
            Some(kept) => Completion::Envelope {
                ticket,
                id,
                envelope: kept.envelope.clone(),
                states: kept.states.clone(),
                bytes: kept.body.len() as u64,
                held: kept.outlook.held,
            },
            None => Completion::ReadFailed { ticket, id, why: ReadFailure::Unknown },
        };
        self.say(answer);
    }

    fn open_body(&mut self, id: MessageId, ticket: u64) {
        let answer = match self.messages.get(&id.0).map(|kept| (sys::memfd::sealed(&kept.body), kept.body.len() as u64)) {
            Some((Ok(fd), bytes)) => Completion::BodyFd { ticket, id, fd, bytes },
            Some((Err(_), _)) => Completion::ReadFailed { ticket, id, why: ReadFailure::Temporary },
            None => Completion::ReadFailed { ticket, id, why: ReadFailure::Unknown },
        };
        self.say(answer);
    }

    fn side_file(&mut self) -> SideBody {
        self.next_side = self.next_side.saturating_add(1);
        SideBody { shared: Arc::new(SideShared { number: self.next_side, inner: Mutex::default(), pool: Weak::new() }) }
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn completions(&mut self) -> Vec<Completion> {
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
        std::mem::take(&mut self.waiting)
    }

    fn stats(&self) -> Stats {
        Stats { messages: self.messages.len() as u64, ..self.stats }
    }

    fn health(&self) -> Health {
        self.health
    }
}
