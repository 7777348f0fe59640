//! The administrator's requests: look at messages, try them now, hold, release or remove them.

use ipc::admin::{Counter, KeptRow, QueueAnswer, QueueRequest, RecipientRow, Row};
use ipc::field::Verdict;
use ipc::options::Options;
use schedule::Channel;
use schedule::backlog::{Known, Place};
use spool::{Log as Spool, Outlook, RecipientState};

use crate::active::Wish;

use super::activate::Read;
use super::import::{KEPT_LOOKS, kept_row};
use super::{Engine, Out, Ticket};

/// Rows of one answer to a list, at most; the client asks for more.
const ROWS_MAX: u32 = 1000;
/// Envelopes that one client has read for it at a time.
const LOOKS_MAX: usize = 16;
/// Bytes of rows in one datagram: a row is at most a sender and a few numbers, a recipient's an address and its last reply.
const ROWS_LEN_MAX: usize = 24 * 1024;
const ROW_LEN: usize = 64;

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
        let Some(known) = self.backlog.get(id) else { return self.look_failed(client) };
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

    /// The message has gone, or cannot be read: a list leaves it out.
    pub(super) fn look_failed(&mut self, client: u64) {
        let Some(look) = self.looks.get_mut(&client) else { return };
        look.reading = look.reading.saturating_sub(1);
        if look.what == What::Whole {
            self.looks.remove(&client);
            self.out.push(Out::Admin { client, answer: failed("the message cannot be read") });
        } else {
            self.look_on(client);
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
            return Some(failed("the message is ending just now"));
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

    fn hold(&mut self, client: u64, id: u64) -> Option<QueueAnswer> {
        let Some(known) = self.backlog.get(id) else { return Some(failed(UNKNOWN)) };
        if known.place == Place::Held {
            return Some(ok(1));
        }
        if self.active.get(&id).is_some_and(|active| active.closing) {
            return Some(failed("the message is ending just now"));
        }
        let idle = self.withdraw(id);
        let pending = self.active.get(&id).map_or(known.pending, |active| active.pending);
        self.backlog.set_pending(id, pending);
        self.note(client, id, Outlook { pending, due_s: known.due_s, held: true });
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
        None
    }

    fn release(&mut self, client: u64, id: u64) -> Option<QueueAnswer> {
        let Some(known) = self.backlog.get(id) else { return Some(failed(UNKNOWN)) };
        let held_soon = self.active.get_mut(&id).filter(|active| active.wish == Wish::Hold);
        if let Some(active) = held_soon {
            active.wish = Wish::Nothing;
        } else if known.place == Place::Held {
            self.backlog.rest(id, self.now.s);
        } else {
            return Some(ok(1));
        }
        self.note(client, id, Outlook { pending: known.pending, due_s: self.now.s, held: false });
        None
    }

    fn note(&mut self, client: u64, id: u64, outlook: Outlook) {
        let ticket = self.ticket(Ticket::Note { client });
        self.spool.progress(Self::id(id), Vec::new(), outlook, ticket);
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
    }
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
