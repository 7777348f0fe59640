//! Messages of another queue: kept first, and tried from the moment on at which they are confirmed (`ipc::import`).
//!
//! A message waits to be confirmed as long as it is stored as one of another queue and nothing was ever noted of any of its recipients:
//! that is on the disk from the first moment on, and a start finds it as it was. What a confirmation notes is never that empty.

use ipc::admin::{KeptRow, QueueAnswer};
use ipc::import::{Became, Import};
use ipc::queue::Answer;
use schedule::backlog::Place;
use schedule::retry;
use spool::{Change, Envelope, Log as Spool, Outlook, REPLY_LEN_MAX, RecipientState, Refusal};

use crate::clients::Importing;
use crate::submission::Submitted;

use super::activate::Read;
use super::admin::{failed, ok};
use super::{Engine, Out, Ticket};

/// What `qmail queue show` says of a recipient that was not tried here yet. Not empty: see the module.
const TAKEN_OVER: &[u8] = b"Taken over from another queue.\n";
/// A lookout for messages that wait looks at so many with one request; their keys fit a datagram.
pub(super) const KEPT_LOOKS: usize = 256;

/// A message that is being confirmed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Confirming {
    /// It is noted, and what is being read of it may be older.
    noted: bool,
    /// What the administrator said since it was asked for: it is held (true), or goes on.
    held: Option<bool>,
}

impl Confirming {
    pub(super) fn is_noted(&self) -> bool {
        self.noted
    }
}

/// The administrator's form of a refusal.
pub(crate) fn import_refused(answer: Answer) -> QueueAnswer {
    match answer {
        Answer::Permanent { text } => QueueAnswer::Failed { text },
        Answer::Temporary { text } => QueueAnswer::NotNow { text },
        Answer::Accepted { id, .. } => QueueAnswer::Kept { id },
    }
}

/// The message's past in the other queue, while it waits to be confirmed.
pub(super) fn waiting(envelope: &Envelope, states: &[RecipientState]) -> Option<Import> {
    let import = Import::stored(&envelope.options)?;
    let is_fresh = |state: &RecipientState| {
        matches!(state, RecipientState::Pending { attempts: 0, due_s, last_reply, warned: false }
            if *due_s == envelope.arrival_s && last_reply.is_empty())
    };
    states.iter().all(is_fresh).then_some(import)
}

/// A row of the lookout.
pub(super) fn kept_row(id: u64, read: &Read) -> Option<KeptRow> {
    waiting(&read.envelope, &read.states).map(|import| KeptRow { id, key: import.key })
}

impl<S: Spool> Engine<S> {
    /// A message of another queue is whole. The answer comes as [`Out::Admin`] when it is durable or refused.
    pub(crate) fn import(&mut self, client: u64, from: &Importing, message: Submitted) {
        let Submitted { sender, recipients, flags, options, import, message_id, body, bytes, held } = message;
        let options = import.map_or_else(|| options.store(), |import| import.store(&options));
        let arrival_s = from.arrival_s.min(self.now.s);
        let envelope = Envelope { sender, recipients, arrival_s, uid: from.uid, pid: from.pid, flags, options };
        self.accepting = self.accepting.saturating_add(1);
        let ticket = self.ticket(Ticket::Import { client, envelope: envelope.clone(), message_id, bytes, held });
        self.spool.accept(envelope, body, ticket);
    }

    pub(super) fn import_kept(&mut self, client: u64, id: u64, envelope: &Envelope, held: usize) {
        self.accepting = self.accepting.saturating_sub(1);
        self.out.push(Out::GiveBack { bytes: held });
        self.backlog.insert_rest(id, envelope.arrival_s, envelope.arrival_s, true);
        self.backlog.set_pending(id, u32::try_from(envelope.recipients.len()).unwrap_or(u32::MAX));
        self.out.push(Out::Admin { client, answer: QueueAnswer::Kept { id } });
    }

    pub(super) fn import_not_kept(&mut self, client: u64, held: usize, why: Refusal) {
        self.accepting = self.accepting.saturating_sub(1);
        self.out.push(Out::GiveBack { bytes: held });
        let answer = match why {
            Refusal::Full => QueueAnswer::NotNow { text: "the disk of the spool is full".into() },
            Refusal::Failed => QueueAnswer::NotNow { text: "the spool cannot be written".into() },
            Refusal::TooLarge => failed("too big for this system"),
        };
        self.out.push(Out::Admin { client, answer });
    }

    /// It was read to be tried, and waits to be confirmed. False: it does not.
    pub(super) fn keep_waiting(&mut self, id: u64, read: &Read) -> bool {
        let waits = waiting(&read.envelope, &read.states).is_some();
        match self.confirming.get(&id).map(Confirming::is_noted) {
            // What was read is older than what was noted since: read it again.
            Some(true) if waits => {
                self.confirming.remove(&id);
                self.backlog.rest(id, self.now.s);
            }
            Some(true) => {
                self.confirming.remove(&id);
            }
            _ if waits => {
                // Once: they may be many.
                if !std::mem::replace(&mut self.told_of_import, true) {
                    self.log.warning(&format!(
                        "msg {id} (and perhaps others) waits for the rest of an import: run qmail import queue again"
                    ));
                }
                self.backlog.hold(id);
            }
            _ => {}
        }
        waits
    }

    pub(super) fn confirm(&mut self, client: u64, id: u64) -> Option<QueueAnswer> {
        if self.backlog.get(id).is_none() {
            return Some(ok(0));
        }
        if self.confirming.contains_key(&id) {
            return Some(failed("the message is being confirmed already"));
        }
        self.confirming.insert(id, Confirming::default());
        let ticket = self.ticket(Ticket::Confirm { client, id });
        self.spool.read_envelope(Self::id(id), ticket);
        None
    }

    /// A message was held or let go on, perhaps while it is being confirmed: that counts, whatever was read of it before.
    pub(super) fn hold_confirming(&mut self, id: u64, held: bool) {
        if let Some(confirming) = self.confirming.get_mut(&id) {
            confirming.held = Some(held);
        }
    }

    /// Notes how far the message had come: with that it goes on, or is held as any other one that the administrator holds.
    pub(super) fn confirm_read(&mut self, client: u64, id: u64, read: &Read) {
        let Some(import) = waiting(&read.envelope, &read.states) else {
            self.confirming.remove(&id);
            return self.out.push(Out::Admin { client, answer: ok(1) });
        };
        let changes = self.past(&read.envelope, &import);
        let dues = changes.iter().filter_map(|change| match change.state {
            RecipientState::Pending { due_s, .. } => Some(due_s),
            _ => None,
        });
        let (pending, due_s) = dues.fold((0_u32, u64::MAX), |(count, first), due_s| (count.saturating_add(1), first.min(due_s)));
        let due_s = if pending == 0 { self.now.s } else { due_s };
        self.backlog.set_pending(id, pending);
        let held = self.confirming.get(&id).and_then(|confirming| confirming.held).unwrap_or(read.held);
        self.hold_confirming(id, held);
        let ticket = self.ticket(Ticket::Confirmed { client, id, due_s });
        self.spool.progress(Self::id(id), changes, Outlook { pending, due_s, held }, ticket);
    }

    /// The state of every recipient.
    fn past(&self, envelope: &Envelope, import: &Import) -> Vec<Change> {
        let mut earlier = import.recipients.iter().peekable();
        let numbers = 0..u32::try_from(envelope.recipients.len()).unwrap_or(u32::MAX);
        let pending =
            |attempts, due_s| RecipientState::Pending { attempts, due_s, last_reply: TAKEN_OVER.to_vec(), warned: false };
        let state = |became: Option<&Became>| match became {
            None | Some(Became::Waits { due_s: 0 }) => pending(0, self.now.s),
            Some(Became::Waits { due_s }) => pending(1, retry::clamp_s(envelope.arrival_s, self.now.s, *due_s)),
            Some(Became::Done {}) => RecipientState::Done,
            Some(Became::Failed { text }) => {
                RecipientState::Failed { reply: text.get(..REPLY_LEN_MAX.min(text.len())).unwrap_or_default().to_vec() }
            }
        };
        numbers
            .map(|recipient| {
                let became = earlier.next_if(|earlier| earlier.recipient == recipient).map(|earlier| &earlier.became);
                Change { recipient, state: state(became) }
            })
            .collect()
    }

    pub(super) fn confirm_failed(&mut self, client: u64, id: u64) {
        self.confirming.remove(&id);
        let text = "the message cannot be read or noted; its import is to be run again".into();
        self.out.push(Out::Admin { client, answer: QueueAnswer::NotNow { text } });
    }

    pub(super) fn confirmed(&mut self, client: u64, id: u64, due_s: u64) {
        let is_being_read =
            self.backlog.get(id).is_some_and(|known| known.place == Place::Active) && !self.active.contains_key(&id);
        if is_being_read {
            self.confirming.entry(id).or_default().noted = true;
        } else {
            let held = self.confirming.remove(&id).is_some_and(|confirming| confirming.held == Some(true));
            if !held && self.backlog.get(id).is_some_and(|known| matches!(known.place, Place::Held | Place::Rest)) {
                self.backlog.rest(id, due_s);
            }
        }
        self.out.push(Out::Admin { client, answer: ok(1) });
    }

    /// Hands out a body.
    pub(super) fn fetch(&mut self, client: u64, id: u64) -> Option<QueueAnswer> {
        if self.backlog.get(id).is_none() {
            return Some(failed("no such message"));
        }
        let ticket = self.ticket(Ticket::Fetch { client });
        self.spool.open_body(Self::id(id), ticket);
        None
    }
}
