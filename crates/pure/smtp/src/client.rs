//! The client's side of an SMTP connection (RFC 5321), as a machine without I/O.
//!
//! The driver connects, then feeds [`Input`]s and performs the [`Action`]s in their order. A session is
//!
//! ```text
//! Greeting ─► Hello(EHLO) ─► Hello(HELO) ─► Sasl ─► Ready ◄──────────────────────────────┐
//!               ▲ └─► StartTls ─► Handshake ─┐         │ Begin(Transaction)               │
//!               └────────────────────────────┘     Envelope ─► Body ─► End ── Finished ───┤
//!                                                      └─► LoneDot ────────── Finished ───┘   Quit ─► Closed
//! ```
//!
//! TLS and the login are there only if [`Security`] wants them; with TLS everything that was announced before is forgotten.
//!
//! Guarantees: every transaction that begins ends in exactly one [`Action::Finished`] with one outcome per recipient, in their
//! order; a recipient is `Delivered` only after a 2xx to the final dot; it has `Failed` only by a 5xx of the server or because
//! the message cannot be expressed to this server; everything strange is temporary. A reply that nobody asked for ends the
//! session. Nothing that came in the clear counts after STARTTLS was answered (RFC 3207 §4.2); credentials go out by TLS alone
//! unless [`Security::cleartext`] says otherwise, and only in [`Action::SendSecret`]. Memory is bounded by the envelope, 5 KB of
//! reply line and 5.5 KB of text per recipient.
//! Never reads a clock: [`Action::Deadline`] names the stage, the driver times it and feeds [`Input::Timeout`].
//! By LMTP (RFC 2033) the same, with LHLO and a reply for each recipient behind the dot ([`lmtp`]).
//! Used by qmail-remote and, for LMTP, by qmail-local.

mod command;
mod event;
#[doc(hidden)]
pub mod fuzz;
mod lmtp;
mod report;
mod sasl;
mod security;

use std::collections::VecDeque;

use crate::reply::{Offers, Replies, Reply};
pub use event::{Action, Dsn, Finished, Input, Protocol, Security, Stage, Tls, Transaction};
pub use report::{Outcome, REPORT_LEN_MAX};

/// One SMTP connection.
#[derive(Debug)]
pub struct Client {
    /// The name we say in EHLO.
    helo: String,
    /// The server's address as reports name it.
    peer: String,
    replies: Replies,
    offers: Offers,
    state: State,
    /// Replies that commands already sent still owe us.
    owed: usize,
    /// The server may hold an envelope that was not ended: RSET goes first.
    stale: bool,
    /// Transactions begun.
    transactions: u64,
    security: Security,
}

#[derive(Debug)]
enum State {
    Greeting,
    Hello(Verb),
    /// STARTTLS was sent.
    StartTls,
    /// It was answered with 220: from here on nothing in the clear counts.
    Handshake,
    /// Logging in; what a 334 now asks for.
    Sasl(sasl::Step),
    Ready,
    Envelope(Envelope),
    /// 354 was said; the body is under way, no reply is due.
    Body(Envelope),
    /// The final dot was sent.
    End(Envelope),
    /// The same, by LMTP: each accepted recipient has a reply of its own.
    Each(Envelope),
    /// 354 came though no recipient was accepted: a lone dot went out (RFC 2920 §3.1).
    LoneDot(Envelope),
    Quit,
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Ehlo,
    Helo,
    Lhlo,
}

/// A transaction up to its final dot.
#[derive(Debug)]
struct Envelope {
    transaction: Transaction,
    /// What is known of each recipient so far; `None` is open.
    outcomes: Vec<Option<Outcome>>,
    /// Commands not sent yet, and those sent and not answered.
    unsent: VecDeque<Command>,
    unanswered: VecDeque<Command>,
    /// Recipients the server has accepted.
    accepted: Vec<usize>,
    /// What MAIL was answered: accepted or not.
    mail_accepted: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Rset,
    Mail,
    /// Index of the recipient.
    Rcpt(usize),
    Data,
}

impl Client {
    /// A connection that was just established to `peer`, and the actions to start with. With [`Tls::Started`] its handshake is done.
    #[must_use]
    pub fn new(helo: &str, peer: &str, security: Security) -> (Self, Vec<Action>) {
        let client = Self {
            helo: helo.to_owned(),
            peer: peer.to_owned(),
            replies: Replies::new(),
            offers: Offers::default(),
            state: State::Greeting,
            owed: 1,
            stale: false,
            transactions: 0,
            security,
        };
        (client, vec![Action::Deadline(Stage::Greeting)])
    }

    /// May a transaction begin?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    /// Ready, and the server takes another message in this session (RFC 9422 MAILMAX).
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        self.is_ready() && self.offers.messages_max.is_none_or(|max| self.transactions < max)
    }

    /// What the server announced.
    #[must_use]
    pub fn offers(&self) -> &Offers {
        &self.offers
    }

    /// One step. After [`Action::Close`] every input is passed over.
    pub fn handle(&mut self, input: Input<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Bytes(bytes) => self.bytes(bytes, &mut actions),
            Input::BodySent => self.body_sent(&mut actions),
            Input::BodyUnreadable => self.body_unreadable(&mut actions),
            Input::Timeout | Input::Closed => self.died(&mut actions),
            Input::Begin(transaction) => self.begin(transaction, &mut actions),
            Input::Quit => self.quit(&mut actions),
            Input::TlsStarted => self.tls_started(&mut actions),
            Input::TlsFailed(why) => self.tls_failed(why, &mut actions),
        }
        actions
    }

    /// Only replies to commands that were sent before these bytes came count; more than that is nobody's answer.
    fn bytes(&mut self, mut bytes: &[u8], actions: &mut Vec<Action>) {
        if matches!(self.state, State::Handshake) && !bytes.is_empty() {
            return self.injected(actions);
        }
        let mut due = self.owed;
        while !matches!(self.state, State::Closed) {
            match self.replies.next(&mut bytes) {
                Some(Ok(reply)) => {
                    let early = matches!(self.state, State::Body(_)) && !reply.is_positive();
                    if due == 0 && !early {
                        return self.died(actions);
                    }
                    due = due.saturating_sub(1);
                    self.owed = self.owed.saturating_sub(1);
                    self.reply(&reply, actions);
                    if matches!(self.state, State::Handshake) && !bytes.is_empty() {
                        return self.injected(actions);
                    }
                }
                Some(Err(_)) => return self.died(actions),
                None if due == 0 && self.replies.is_inside() && !matches!(self.state, State::Body(_)) => {
                    return self.died(actions);
                }
                None => return,
            }
        }
    }

    fn reply(&mut self, reply: &Reply, actions: &mut Vec<Action>) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Greeting => self.greeting(reply, actions),
            State::Hello(verb) => self.hello(verb, reply, actions),
            State::StartTls => self.start_tls(reply, actions),
            State::Sasl(step) => self.sasl(step, reply, actions),
            State::Envelope(envelope) => self.envelope(envelope, reply, actions),
            State::Body(envelope) if self.is_lmtp() => self.early(envelope, reply, actions),
            State::Body(envelope) => {
                // An answer before the final dot: the server has given up, and the dot will never be sent.
                let outcome = Outcome::refused(reply, self.after_message(reply));
                self.finish(envelope, &outcome, actions);
                actions.push(Action::Close);
            }
            State::End(envelope) => self.end(envelope, reply, actions),
            State::Each(envelope) => self.each(envelope, reply, actions),
            State::LoneDot(envelope) => self.conclude(envelope, reply.code() != 421, actions),
            State::Handshake | State::Ready | State::Quit | State::Closed => actions.push(Action::Close),
        }
    }

    /// RFC 5321 §3.1: 220 or no service here; §4.3.2. A 5xx is temporary too, as qmail has it: another host may serve.
    fn greeting(&mut self, reply: &Reply, actions: &mut Vec<Action>) {
        if reply.code() != 220 {
            return self.unusable("greeting failed", reply, actions);
        }
        self.say_hello(self.first_hello(), actions);
    }

    fn say_hello(&mut self, verb: Verb, actions: &mut Vec<Action>) {
        let mut line = Vec::new();
        command::hello(verb.as_str(), &self.helo, &mut line);
        self.state = State::Hello(verb);
        self.send(line, 1, Stage::Command, actions);
    }

    /// RFC 5321 §3.2: a server that refuses EHLO for good is asked again with HELO.
    fn hello(&mut self, verb: Verb, reply: &Reply, actions: &mut Vec<Action>) {
        if reply.code() == 250 {
            if verb != Verb::Helo {
                self.offers = Offers::parse(reply);
            }
            self.greeted(actions);
        } else if verb == Verb::Ehlo && reply.is_permanent() {
            self.say_hello(Verb::Helo, actions);
        } else {
            self.unusable("my name was rejected", reply, actions);
        }
    }

    fn unusable(&mut self, what: &str, reply: &Reply, actions: &mut Vec<Action>) {
        let text = report::with_reply(&format!("Connected to {} but {what}.", self.peer), reply, None);
        actions.extend([Action::Unusable(text), Action::Send(b"QUIT\r\n".to_vec()), Action::Close]);
    }

    fn begin(&mut self, transaction: Transaction, actions: &mut Vec<Action>) {
        let outcomes = vec![None; transaction.recipients.len()];
        let mut envelope = Envelope {
            transaction,
            outcomes,
            unsent: VecDeque::new(),
            unanswered: VecDeque::new(),
            accepted: Vec::new(),
            mail_accepted: None,
        };
        if !self.is_ready() {
            let died = Outcome::Deferred(self.connection_died(false));
            return self.finish(envelope, &died, actions);
        }
        self.transactions = self.transactions.saturating_add(1);
        if let Some(refused) = self.inexpressible(&envelope.transaction) {
            return self.finish(envelope, &refused, actions);
        }
        if !self.plan(&mut envelope) {
            return self.finish(envelope, &Outcome::Next, actions);
        }
        self.send_commands(envelope, actions);
    }

    /// What this server has announced it cannot take: said without asking it.
    fn inexpressible(&self, transaction: &Transaction) -> Option<Outcome> {
        let peer = &self.peer;
        // RFC 1870 §6.1: larger than the fixed maximum.
        if self.offers.size_max.is_some_and(|max| max > 0 && transaction.size > max) {
            return Some(Outcome::Failed(format!("{peer} does not accept messages of this size. (#5.3.4)\n")));
        }
        // RFC 8689 §4.2.
        if transaction.requiretls && !(self.offers.requiretls && self.security.tls == Tls::Started) {
            return Some(Outcome::Failed(format!("{peer} does not support REQUIRETLS, which this message needs. (#5.7.30)\n")));
        }
        // RFC 2852 §4.1.3: nobody but who takes the time over gets it; by LMTP it is there.
        if let Some(by) = transaction.by.filter(|by| by.returns && !self.is_lmtp()) {
            let Some(min_s) = self.offers.deliver_by_min_s else {
                return Some(Outcome::Failed(format!("{peer} does not support DELIVERBY, which this message needs. (#5.3.3)\n")));
            };
            if by.seconds.unsigned_abs() < min_s {
                return Some(Outcome::Failed(format!(
                    "{peer} wants more time than is left to deliver this message by. (#5.4.7)\n"
                )));
            }
        }
        // RFC 6531 §3.5: 5.6.7.
        if transaction.needs_smtputf8() && !self.offers.smtputf8 {
            return Some(Outcome::Failed(format!("{peer} does not accept internationalized addresses. (#5.6.7)\n")));
        }
        if command::mail(transaction, &self.offers, &mut Vec::new()).is_err() {
            return Some(Outcome::Failed("Sorry, the sender address has a malformed domain. (#5.1.7)\n".to_owned()));
        }
        None
    }

    /// Lines up the commands; false if no recipient is left to try.
    fn plan(&self, envelope: &mut Envelope) -> bool {
        if self.stale {
            envelope.unsent.push_back(Command::Rset);
        }
        envelope.unsent.push_back(Command::Mail);
        let room = self.offers.recipients_max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        let mut count = 0;
        for index in 0..envelope.transaction.recipients.len() {
            let outcome = if command::rcpt(&envelope.transaction, index, &self.offers, &mut Vec::new()).is_err() {
                Outcome::Failed("Sorry, that address has a malformed domain. (#5.1.2)\n".to_owned())
            } else if count == room {
                Outcome::Next
            } else {
                count += 1;
                envelope.unsent.push_back(Command::Rcpt(index));
                continue;
            };
            if let Some(slot) = envelope.outcomes.get_mut(index) {
                *slot = Some(outcome);
            }
        }
        envelope.unsent.push_back(Command::Data);
        count > 0
    }

    /// With PIPELINING all commands go in one group (RFC 2920 §3.1), else one at a time.
    fn send_commands(&mut self, mut envelope: Envelope, actions: &mut Vec<Action>) {
        let mut bytes = Vec::new();
        let mut count = 0;
        let mut stage = Stage::Command;
        while let Some(command) = envelope.unsent.pop_front() {
            match command {
                Command::Rset => bytes.extend_from_slice(b"RSET\r\n"),
                Command::Data => bytes.extend_from_slice(b"DATA\r\n"),
                // Both were written once before, by `plan` and `inexpressible`: they cannot fail now.
                Command::Mail => command::mail(&envelope.transaction, &self.offers, &mut bytes).unwrap_or_default(),
                Command::Rcpt(index) => {
                    command::rcpt(&envelope.transaction, index, &self.offers, &mut bytes).unwrap_or_default();
                }
            }
            envelope.unanswered.push_back(command);
            count += 1;
            if !self.offers.pipelining {
                stage = stage_of(command);
                break;
            }
        }
        self.stale = true;
        self.state = State::Envelope(envelope);
        self.send(bytes, count, stage, actions);
    }

    fn envelope(&mut self, mut envelope: Envelope, reply: &Reply, actions: &mut Vec<Action>) {
        match envelope.unanswered.pop_front() {
            // A session that cannot be reset is as good as closed.
            Some(Command::Rset) if reply.is_positive() => {}
            Some(Command::Rset) | None => return self.lost(envelope, false, actions),
            Some(Command::Mail) if reply.code() == 421 => {
                return self.closing(envelope, "sender was rejected", reply, actions);
            }
            Some(Command::Mail) => self.sender(&mut envelope, reply),
            Some(Command::Rcpt(index)) => {
                self.recipient(&mut envelope, index, reply);
                if reply.code() == 421 {
                    return self.closing(envelope, "connection died", reply, actions);
                }
            }
            Some(Command::Data) => return self.data(envelope, reply, actions),
        }
        match envelope.unanswered.front() {
            Some(next) => {
                actions.push(Action::Deadline(stage_of(*next)));
                self.state = State::Envelope(envelope);
            }
            None if envelope.is_hopeless() => self.conclude(envelope, true, actions),
            None => self.send_commands(envelope, actions),
        }
    }

    fn sender(&self, envelope: &mut Envelope, reply: &Reply) {
        envelope.mail_accepted = Some(reply.is_positive());
        if !reply.is_positive() {
            let text = report::with_reply(&format!("Connected to {} but sender was rejected.", self.peer), reply, None);
            envelope.fill(&Outcome::refused(reply, text));
        }
    }

    fn recipient(&self, envelope: &mut Envelope, index: usize, reply: &Reply) {
        let any_accepted = !envelope.accepted.is_empty();
        let Some(slot) = envelope.outcomes.get_mut(index) else { return };
        if slot.is_some() {
            // MAIL was refused: what it said stands, not the "503 need MAIL" that follows.
            return;
        }
        if reply.is_positive() {
            envelope.accepted.push(index);
        } else if any_accepted && is_too_many(reply) {
            *slot = Some(Outcome::Next);
        } else {
            let text = report::with_reply(&format!("{} does not like recipient.", self.peer), reply, None);
            *slot = Some(Outcome::refused(reply, text));
        }
    }

    /// The answer to DATA. Pipelined, it comes even if MAIL or every RCPT was refused before it.
    fn data(&mut self, mut envelope: Envelope, reply: &Reply, actions: &mut Vec<Action>) {
        match (reply.code(), envelope.accepted.is_empty()) {
            (354, false) => {
                self.state = State::Body(envelope);
                actions.extend([Action::Deadline(Stage::DataBlock), Action::SendBody]);
            }
            (354, true) if self.is_lmtp() => self.nobody(envelope, actions),
            (354, true) => {
                // RFC 2920 §3.1: the server expects a message now; it gets an empty one for nobody.
                self.state = State::LoneDot(envelope);
                self.send(b".\r\n".to_vec(), 1, Stage::DataTermination, actions);
            }
            (421, false) => self.closing(envelope, "connection died", reply, actions),
            (code, true) => self.conclude(envelope, code != 421, actions),
            (_, false) => {
                let text = report::with_reply(&format!("{} failed on DATA command.", self.peer), reply, None);
                envelope.fill(&Outcome::refused(reply, text));
                self.conclude(envelope, true, actions);
            }
        }
    }

    fn body_sent(&mut self, actions: &mut Vec<Action>) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Body(envelope) if self.is_lmtp() => self.await_each(envelope, actions),
            State::Body(envelope) => {
                self.state = State::End(envelope);
                self.owed += 1;
                actions.push(Action::Deadline(Stage::DataTermination));
            }
            other => self.state = other,
        }
    }

    fn body_unreadable(&mut self, actions: &mut Vec<Action>) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Body(envelope) => {
                let unread = Outcome::Deferred("Unable to read message. (#4.3.0)\n".to_owned());
                self.finish(envelope, &unread, actions);
                actions.push(Action::Close);
            }
            other => self.state = other,
        }
    }

    /// The answer to the final dot.
    fn end(&mut self, mut envelope: Envelope, reply: &Reply, actions: &mut Vec<Action>) {
        let outcome = if reply.is_positive() {
            Outcome::Delivered(report::with_reply(&format!("{} accepted message.", self.peer), reply, None))
        } else {
            Outcome::refused(reply, self.after_message(reply))
        };
        envelope.fill(&outcome);
        // RFC 5321 §4.1.1.4: the buffers are empty now, whatever the answer was.
        self.stale = false;
        self.conclude(envelope, reply.code() != 421, actions);
    }

    /// All is known. Where every recipient was refused by itself, qmail adds that it gives up on this host.
    fn conclude(&mut self, mut envelope: Envelope, alive: bool, actions: &mut Vec<Action>) {
        if envelope.accepted.is_empty() && envelope.mail_accepted == Some(true) {
            for outcome in envelope.outcomes.iter_mut().flatten() {
                give_up(outcome, &self.peer);
            }
        }
        let open = Outcome::Deferred(self.connection_died(false));
        self.state = if alive { State::Ready } else { State::Closed };
        self.finish(envelope, &open, actions);
        if !alive {
            actions.push(Action::Close);
        }
    }

    /// 421: the server closes the channel (RFC 5321 §3.8); recipients that are still open wait for another time.
    fn closing(&mut self, envelope: Envelope, what: &str, reply: &Reply, actions: &mut Vec<Action>) {
        let text = report::with_reply(&format!("Connected to {} but {what}.", self.peer), reply, None);
        self.finish(envelope, &Outcome::Deferred(text), actions);
        actions.push(Action::Close);
    }

    fn lost(&mut self, envelope: Envelope, after_dot: bool, actions: &mut Vec<Action>) {
        let died = Outcome::Deferred(self.connection_died(after_dot));
        self.finish(envelope, &died, actions);
        actions.push(Action::Close);
    }

    /// End of file, an error, a timeout or a reply that makes no sense.
    fn died(&mut self, actions: &mut Vec<Action>) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::StartTls | State::Handshake => self.no_tls(self.connection_died(false), actions),
            State::Greeting | State::Hello(_) | State::Sasl(_) => {
                actions.extend([Action::Unusable(self.connection_died(false)), Action::Close]);
            }
            State::Envelope(envelope) | State::Body(envelope) => self.lost(envelope, false, actions),
            // By LMTP those that were answered have their outcome already.
            State::End(envelope) | State::Each(envelope) => self.lost(envelope, true, actions),
            // Every recipient has its answer already.
            State::LoneDot(envelope) => self.conclude(envelope, false, actions),
            State::Ready | State::Quit => actions.push(Action::Close),
            State::Closed => {}
        }
    }

    fn quit(&mut self, actions: &mut Vec<Action>) {
        if self.is_ready() {
            self.state = State::Quit;
            self.send(b"QUIT\r\n".to_vec(), 1, Stage::Quit, actions);
        }
    }

    /// Ends the transaction; recipients that are still open get `open`.
    fn finish(&mut self, mut envelope: Envelope, open: &Outcome, actions: &mut Vec<Action>) {
        envelope.fill(open);
        let untouched = matches!(self.state, State::Closed) && envelope.mail_accepted.is_none();
        let outcomes = envelope.outcomes.into_iter().flatten().collect();
        actions.push(Action::Finished(Finished { outcomes, untouched }));
    }

    fn send(&mut self, bytes: Vec<u8>, replies: usize, stage: Stage, actions: &mut Vec<Action>) {
        self.owed += replies;
        actions.extend([Action::Send(bytes), Action::Deadline(stage)]);
    }

    fn connection_died(&self, after_dot: bool) -> String {
        // From the final dot on nobody but the server knows whether it has the message.
        let duplicate = if after_dot { "Possible duplicate! " } else { "" };
        format!("Connected to {} but connection died. {duplicate}(#4.4.2)\n", self.peer)
    }

    fn after_message(&self, reply: &Reply) -> String {
        report::with_reply(&format!("{} failed after I sent the message.", self.peer), reply, None)
    }
}

impl Envelope {
    /// Nothing is left to send but what makes no sense any more: MAIL was refused, or DATA would be for nobody.
    fn is_hopeless(&self) -> bool {
        self.mail_accepted == Some(false)
            || self.unsent.is_empty()
            || (self.accepted.is_empty() && self.unsent.front() == Some(&Command::Data))
    }

    fn fill(&mut self, open: &Outcome) {
        for slot in &mut self.outcomes {
            slot.get_or_insert_with(|| open.clone());
        }
    }
}

fn stage_of(command: Command) -> Stage {
    match command {
        Command::Data => Stage::DataInitiation,
        _ => Stage::Command,
    }
}

/// RFC 5321 §4.5.3.1.10: 452, or the 552 of old servers, means "too many recipients" unless its enhanced code says otherwise.
fn is_too_many(reply: &Reply) -> bool {
    matches!(reply.code(), 452 | 552) && reply.enhanced().is_none_or(|code| (code.subject, code.detail) == (5, 3))
}

/// The line that qmail adds when a host has refused every recipient.
fn give_up(outcome: &mut Outcome, peer: &str) {
    if let Outcome::Failed(text) | Outcome::Deferred(text) = outcome {
        let line = format!("Giving up on {peer}.\n");
        text.truncate(text.floor_char_boundary(REPORT_LEN_MAX.saturating_sub(line.len() + 1)));
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&line);
    }
}

#[cfg(test)]
mod tests;
