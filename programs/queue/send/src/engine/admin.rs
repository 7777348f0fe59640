//! The administrator's requests: look at messages, try them now, hold, release or remove them.

use ipc::admin::{Counter, KeptRow, QueueAnswer, QueueRequest, RecipientRow, Row};
use ipc::field::Verdict;
use ipc::options::Options;
use ipc::queue::FLAG_REQUIRETLS;
use schedule::Channel;
use schedule::backlog::{Known, Place};
use spool::{Log as Spool, Outlook, ReadFailure, RecipientState};

use crate::active::Wish;

use super::activate::Read;
use super::import::{KEPT_LOOKS, kept_row, waiting};
use super::{Engine, Out, Ticket};

/// Rows of one answer to a list, at most; the client asks for more.
const ROWS_MAX: u32 = 1000;
/// Envelopes that one client has read for it at a time.
const LOOKS_MAX: usize = 16;
/// Bytes of rows in one datagram: a row is at most a sender and a few numbers, a recipient's an address and its last reply.
const ROWS_LEN_MAX: usize = 24 * 1024;
const ROW_LEN: usize = 80;

/// A request that reads messages from the disk.
#[derive(Debug)]
pub(super) struct Look {
    /// Still to be read, the next one last.
    ids: Vec<u64>,
    reading: usize,
    /// Rows in any order.
    rows: Vec<Row>,
    kept: Vec<KeptRow>,
    what: What,
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Rows,
    /// One message with its recipients.
    Whole,
    /// Messages of another queue that wait to be confirmed, among those up to this id; have all been looked at then?
    Kept {
        up_to: u64,
        last: bool,
    },
}

pub(super) fn ok(messages: u64) -> QueueAnswer {
    QueueAnswer::Ok { messages }
}

pub(super) fn failed(text: &str) -> QueueAnswer {
    QueueAnswer::Failed { text: text.into() }
}

const UNKNOWN: &str = "no such message";
const ENDING: &str = "the message is ending just now";

impl<S: Spool> Engine<S> {
    /// A request; the answer comes as one or more [`Out::Admin`].
    pub fn admin(&mut self, client: u64, request: &QueueRequest) {
        let answer = match *request {
            QueueRequest::Stats {} => Some(QueueAnswer::Stats { counters: self.counters() }),
            QueueRequest::List { after, count } => {
                let count = usize::try_from(count.min(ROWS_MAX)).unwrap_or(0);
                let ids = self.backlog.after(after).take(count).map(|(id, _)| id).collect();
                self.look(client, ids, What::Rows);
                None
            }
            QueueRequest::Show { id } if self.backlog.get(id).is_some() => {
                self.look(client, vec![id], What::Whole);
                None
            }
            QueueRequest::RetryAll {} => Some(ok(self.retry_all() as u64)),
            QueueRequest::Retry { id } => Some(self.retry(id)),
            QueueRequest::Remove { id } => self.remove(client, id),
            QueueRequest::Hold { id } => self.hold(client, id),
            QueueRequest::Release { id } => self.release(client, id),
            QueueRequest::Show { .. } => Some(failed(UNKNOWN)),
            QueueRequest::Confirm { id } => self.confirm(client, id),
            QueueRequest::Body { id } => self.fetch(client, id),
            QueueRequest::Kept { after } => {
                let ids: Vec<u64> = self.backlog.after(after).take(KEPT_LOOKS).map(|(id, _)| id).collect();
                let what = What::Kept { up_to: ids.last().copied().unwrap_or(after), last: ids.len() < KEPT_LOOKS };
                self.look(client, ids, what);
                None
            }
            // The connection's own affair.
            QueueRequest::Import { .. } => None,
        };
        if let Some(answer) = answer {
            self.out.push(Out::Admin { client, answer });
        }
    }

    /// The administrator went away.
    pub fn admin_gone(&mut self, client: u64) {
        self.looks.remove(&client);
    }

    fn counters(&self) -> Vec<Counter> {
        let stats = self.spool.stats();
        let oldest_s = self.backlog.oldest_arrival_s().map_or(0, |arrival_s| self.now.s.saturating_sub(arrival_s));
        let size = |n: usize| n as u64;
        [
            ("messages", size(self.backlog.len())),
            ("local", self.local.in_flight().into()),
            ("remote", self.remote.in_flight().into()),
            ("deferred", size(self.backlog.resting())),
            ("oldest_s", oldest_s),
            ("held", size(self.backlog.held())),
            ("active", size(self.backlog.active())),
            ("local_max", self.local.limit().into()),
            ("remote_max", self.remote.limit().into()),
            ("local_waiting", size(self.local.waiting())),
            ("remote_waiting", size(self.remote.waiting())),
            ("sites", size(self.remote.sites())),
            ("sites_limited", size(self.remote.sites_limited())),
            ("deliveries", self.next_delivery.saturating_sub(1)),
            ("successes", self.counters.successes),
            ("failures", self.counters.failures),
            ("deferrals", self.counters.deferrals),
            ("bounces", self.counters.bounces),
            ("accepted", stats.accepted),
            ("ended", stats.ended),
            ("batches", stats.batches),
            ("syncs", stats.syncs),
            ("bytes_written", stats.bytes_written),
            ("segments", stats.segments),
            ("segments_free", stats.segments_free),
            ("damaged", stats.damaged),
        ]
        .into_iter()
        .map(|(name, value)| Counter { name: name.into(), value })
        .collect()
    }

    fn look(&mut self, client: u64, mut ids: Vec<u64>, what: What) {
        ids.reverse();
        self.looks.insert(client, Look { ids, reading: 0, rows: Vec::new(), kept: Vec::new(), what });
        self.look_on(client);
    }

    fn look_on(&mut self, client: u64) {
        let Some(look) = self.looks.get_mut(&client) else { return };
        let mut next = Vec::new();
        while look.reading < LOOKS_MAX
            && let Some(id) = look.ids.pop()
        {
            look.reading = look.reading.saturating_add(1);
            next.push(id);
        }
        let done = look.reading == 0;
        for id in next {
            let ticket = self.ticket(Ticket::Look { client, id });
            self.spool.read_envelope(Self::id(id), ticket);
        }
        if !done {
            return;
        }
        let Some(mut look) = self.looks.remove(&client) else { return };
        match look.what {
            What::Whole => {}
            What::Rows => {
                look.rows.sort_by_key(|row| row.id);
                self.answer_rows(client, look.rows);
            }
            What::Kept { up_to, last } => {
                self.out.push(Out::Admin { client, answer: QueueAnswer::KeptRows { rows: look.kept, after: up_to, last } });
            }
        }
    }

    pub(super) fn looked(&mut self, client: u64, id: u64, read: Read) {
        let Some(known) = self.backlog.get(id) else { return self.look_failed(client, id, ReadFailure::Unknown) };
        let Some(look) = self.looks.get_mut(&client) else { return };
        look.reading = look.reading.saturating_sub(1);
        match look.what {
            What::Whole => {
                self.looks.remove(&client);
                self.answer_message(client, &row(id, known, &read), &read);
            }
            What::Rows => {
                look.rows.push(row(id, known, &read));
                self.look_on(client);
            }
            What::Kept { .. } => {
                look.kept.extend(kept_row(id, &read));
                self.look_on(client);
            }
        }
    }

    /// The message has gone: a list leaves it out. Or it cannot be read: a list says so.
    pub(super) fn look_failed(&mut self, client: u64, id: u64, why: ReadFailure) {
        let known = self.backlog.get(id).filter(|_| why != ReadFailure::Unknown);
        let Some(look) = self.looks.get_mut(&client) else { return };
        look.reading = look.reading.saturating_sub(1);
        match look.what {
            What::Whole => {
                self.looks.remove(&client);
                let answer = match why {
                    ReadFailure::Unknown => failed(UNKNOWN),
                    ReadFailure::Damaged => failed("the message is damaged on the disk; qmail queue remove gives it up"),
                    ReadFailure::Temporary => QueueAnswer::NotNow { text: "the message cannot be read now".into() },
                };
                self.out.push(Out::Admin { client, answer });
            }
            What::Rows => {
                look.rows.extend(known.map(|known| unreadable_row(id, known)));
                self.look_on(client);
            }
            What::Kept { .. } => self.look_on(client),
        }
    }

    fn answer_rows(&mut self, client: u64, rows: Vec<Row>) {
        let parts = split(rows, |row| row.sender.as_bytes().len().saturating_add(ROW_LEN));
        let count = parts.len();
        for (part, rows) in (1..).zip(parts) {
            self.out.push(Out::Admin { client, answer: QueueAnswer::Rows { rows, last: part == count } });
        }
    }

    fn answer_message(&mut self, client: u64, row: &Row, read: &Read) {
        let recipients = read.envelope.recipients.iter().zip(&read.states).map(|(address, state)| {
            let local = self.settings.routing().rewrite(address).is_ok_and(|routed| routed.is_local());
            recipient_row(address, local, state)
        });
        let parts = split(recipients.collect(), |recipient: &RecipientRow| {
            recipient.address.as_bytes().len().saturating_add(recipient.last_reply.len()).saturating_add(ROW_LEN)
        });
        let count = parts.len();
        for (part, recipients) in (1..).zip(parts) {
            let answer = QueueAnswer::Message { row: row.clone(), recipients, last: part == count };
            self.out.push(Out::Admin { client, answer });
        }
    }

    fn retry(&mut self, id: u64) -> QueueAnswer {
        match self.backlog.get(id).map(|known| known.place) {
            None => failed(UNKNOWN),
            Some(Place::Held) => failed("the message is held; release it"),
            Some(Place::Rest) => {
                self.remote.revive();
                self.backlog.hurry(id);
                ok(1)
            }
            Some(Place::Active | Place::Fresh) => ok(1),
        }
    }

    /// Takes what waits of a message out of the schedule. False while a job of it runs.
    fn withdraw(&mut self, id: u64) -> bool {
        let Some(active) = self.active.get_mut(&id) else { return true };
        for recipient in self.local.withdraw(id).into_iter().chain(self.remote.withdraw(id)) {
            active.put_off(recipient, self.now.s, self.now.s);
        }
        active.queued = 0;
        active.jobs == 0
    }

    fn remove(&mut self, client: u64, id: u64) -> Option<QueueAnswer> {
        if self.backlog.get(id).is_none() {
            return Some(failed(UNKNOWN));
        }
        if self.active.get(&id).is_some_and(|active| active.closing) {
            return Some(failed(ENDING));
        }
        let idle = self.withdraw(id);
        self.removals.entry(id).or_default().push(client);
        match self.active.get_mut(&id) {
            Some(active) => {
                active.wish = Wish::Remove;
                if idle {
                    self.settle(id);
                }
            }
            None => {
                // Nothing takes it up while its end is being written.
                self.backlog.hold(id);
                self.end(id);
            }
        }
        None
    }

    /// A message has ended: whoever asked for that is told.
    pub(super) fn removed(&mut self, id: u64) {
        for client in self.removals.remove(&id).unwrap_or_default() {
            self.out.push(Out::Admin { client, answer: ok(1) });
        }
    }

    /// The end of a message could not be noted: it is still there.
    pub(super) fn not_removed(&mut self, id: u64) {
        for client in self.removals.remove(&id).unwrap_or_default() {
            let text = "the spool cannot be written; the message is still there".into();
            self.out.push(Out::Admin { client, answer: QueueAnswer::NotNow { text } });
        }
    }

    fn hold(&mut self, client: u64, id: u64) -> Option<QueueAnswer> {
        let Some(known) = self.backlog.get(id) else { return Some(failed(UNKNOWN)) };
        if self.removals.contains_key(&id) || self.active.get(&id).is_some_and(|active| active.closing) {
            return Some(failed(ENDING));
        }
        // Also where it is held: that may not be on the disk yet, or it is one that waits for the rest of an import.
        let pending = self.active.get(&id).map_or(known.pending, |active| active.pending);
        self.backlog.set_pending(id, pending);
        self.note(client, id, Outlook { pending, due_s: known.due_s, held: true });
        self.keep_held(id);
        None
    }

    /// No delivery of it is begun any more.
    fn keep_held(&mut self, id: u64) {
        let idle = self.withdraw(id);
        self.hold_confirming(id, true);
        match self.active.get_mut(&id) {
            Some(active) => {
                active.wish = Wish::Hold;
                if idle {
                    self.settle(id);
                }
            }
            None => {
                self.backlog.hold(id);
            }
        }
    }

    fn release(&mut self, client: u64, id: u64) -> Option<QueueAnswer> {
        let Some(known) = self.backlog.get(id) else { return Some(failed(UNKNOWN)) };
        if self.removals.contains_key(&id) {
            return Some(failed(ENDING));
        }
        if !self.is_held(id) {
            return Some(ok(1));
        }
        self.note(client, id, Outlook { pending: known.pending, due_s: self.now.s, held: false });
        self.let_go_on(id);
        None
    }

    fn let_go_on(&mut self, id: u64) {
        self.hold_confirming(id, false);
        if let Some(active) = self.active.get_mut(&id).filter(|active| active.wish == Wish::Hold) {
            active.wish = Wish::Nothing;
        } else if self.backlog.get(id).is_some_and(|known| known.place == Place::Held) {
            self.backlog.rest(id, self.now.s);
        }
    }

    /// Held, or as soon as its last delivery is over.
    fn is_held(&self, id: u64) -> bool {
        let is_at_rest = self.backlog.get(id).is_some_and(|known| known.place == Place::Held);
        is_at_rest || self.active.get(&id).is_some_and(|active| active.wish == Wish::Hold)
    }

    /// To be called before the message is held or let go on. The answer comes when it is on the disk.
    fn note(&mut self, client: u64, id: u64, outlook: Outlook) {
        let ticket = self.ticket(Ticket::Note { client, id, was: self.is_held(id) });
        self.spool.note(Self::id(id), outlook, ticket);
    }

    /// What could not be noted was not done.
    pub(super) fn note_failed(&mut self, client: u64, id: u64, was: bool) {
        if was && !self.is_held(id) {
            self.keep_held(id);
        } else if !was {
            self.let_go_on(id);
        }
        // Its last delivery may have ended it just before.
        let is_known = self.backlog.get(id).is_some();
        let text = "the spool cannot be written; nothing was changed".into();
        let answer = if is_known { QueueAnswer::NotNow { text } } else { failed(UNKNOWN) };
        self.out.push(Out::Admin { client, answer });
    }

    /// Messages and recipients that wait for a channel, for tests and figures.
    #[must_use]
    pub fn in_flight(&self, channel: Channel) -> u32 {
        match channel {
            Channel::Local => self.local.in_flight(),
            Channel::Remote => self.remote.in_flight(),
        }
    }
}

fn row(id: u64, known: Known, read: &Read) -> Row {
    let pending = read.states.iter().filter(|state| state.is_pending()).count();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let options = Options::stored(&read.envelope.options).unwrap_or_else(|_| Options::none());
    Row {
        id,
        arrival_s: known.arrival_s,
        bytes: read.bytes,
        sender: read.envelope.sender.clone(),
        pending: count(pending),
        recipients: count(read.envelope.recipients.len()),
        due_s: if known.place == Place::Active { 0 } else { known.due_s },
        held: known.place == Place::Held,
        priority: options.priority.unwrap_or_default().byte(),
        deliver_by_s: options.deliver_by.map_or(0, |by| by.at_s),
        returns: options.deliver_by.is_some_and(|by| by.returns),
        hold_until_s: options.hold_until_s.unwrap_or(0),
        requires_tls: read.envelope.flags & FLAG_REQUIRETLS != 0,
        reports: options.ret.is_some() || options.envid.is_some() || !options.recipients.is_empty(),
        unconfirmed: waiting(&read.envelope, &read.states).is_some(),
        unreadable: false,
    }
}

/// What is known of a message without its envelope.
fn unreadable_row(id: u64, known: Known) -> Row {
    let Known { arrival_s, pending, due_s, place } = known;
    Row { arrival_s, pending, due_s, held: place == Place::Held, unreadable: true, ..Row::new(id) }
}

fn recipient_row(address: &wire::Address, local: bool, state: &RecipientState) -> RecipientRow {
    let (done, attempts, due_s, last_reply) = match state {
        RecipientState::Pending { attempts, due_s, last_reply, .. } => (None, *attempts, *due_s, last_reply.as_slice()),
        RecipientState::Done | RecipientState::Succeeded { .. } => (Some(Verdict::Success), 0, 0, &b""[..]),
        RecipientState::Failed { reply } => (Some(Verdict::Failure), 0, 0, reply.as_slice()),
        RecipientState::Bounced => (Some(Verdict::Failure), 0, 0, &b""[..]),
    };
    RecipientRow { address: address.clone(), local, done, attempts, due_s, last_reply: last_reply.into() }
}

/// Cuts a list into parts that fit a datagram; at least one part.
fn split<T>(list: Vec<T>, len: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let (mut parts, mut part, mut used) = (Vec::new(), Vec::new(), 0usize);
    for item in list {
        let more = len(&item);
        if used.saturating_add(more) > ROWS_LEN_MAX && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
            used = 0;
        }
        used = used.saturating_add(more);
        part.push(item);
    }
    parts.push(part);
    parts
}
