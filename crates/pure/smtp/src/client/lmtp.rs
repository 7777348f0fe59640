//! What is different when the server speaks LMTP (RFC 2033): LHLO, and behind the dot one reply for each recipient that was accepted, in
//! the order of the RCPTs.
//!
//! Guarantee: a recipient that was answered keeps its answer, whatever becomes of the connection behind it; only those without an
//! answer are deferred, so what was delivered is never delivered again for the sake of the others.

use super::{Action, Client, Envelope, Outcome, Protocol, Stage, State, Verb, report};
use crate::reply::Reply;

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ehlo => "EHLO",
            Self::Helo => "HELO",
            Self::Lhlo => "LHLO",
        }
    }
}

impl Client {
    pub(super) fn is_lmtp(&self) -> bool {
        self.security.protocol == Protocol::Lmtp
    }

    /// RFC 2033 §4.1.
    pub(super) fn first_hello(&self) -> Verb {
        if self.is_lmtp() { Verb::Lhlo } else { Verb::Ehlo }
    }

    /// The final dot was sent.
    pub(super) fn await_each(&mut self, envelope: Envelope, actions: &mut Vec<Action>) {
        self.owed += envelope.accepted.len();
        self.state = State::Each(envelope);
        actions.push(Action::Deadline(Stage::DataTermination));
    }

    /// The reply for the next recipient (RFC 2033 §4.2).
    pub(super) fn each(&mut self, mut envelope: Envelope, reply: &Reply, actions: &mut Vec<Action>) {
        let outcome = self.delivered_or_not(reply);
        envelope.answer_next(outcome);
        match envelope.next_unanswered() {
            // 421: the server closes, whatever it still owes (RFC 5321 §3.8).
            Some(_) if reply.code() == 421 => {
                let died = Outcome::Deferred(self.connection_died(true));
                self.finish(envelope, &died, actions);
                actions.push(Action::Close);
            }
            Some(_) => {
                self.state = State::Each(envelope);
                actions.push(Action::Deadline(Stage::DataTermination));
            }
            None => {
                self.stale = false;
                self.conclude(envelope, reply.code() != 421, actions);
            }
        }
    }

    /// A refusal before the final dot, which will never be sent. It is the first recipient's; the others wait for another session.
    pub(super) fn early(&mut self, mut envelope: Envelope, reply: &Reply, actions: &mut Vec<Action>) {
        let outcome = Outcome::refused(reply, self.after_message(reply));
        envelope.answer_next(outcome);
        self.lost(envelope, false, actions);
    }

    /// 354 though nobody was accepted, which RFC 2033 §4.2 forbids: nobody knows how many replies would follow a dot, so none is sent.
    pub(super) fn nobody(&mut self, envelope: Envelope, actions: &mut Vec<Action>) {
        self.conclude(envelope, false, actions);
    }

    fn delivered_or_not(&self, reply: &Reply) -> Outcome {
        if reply.is_positive() {
            Outcome::Delivered(report::with_reply(&format!("{} accepted message.", self.peer), reply, None))
        } else {
            Outcome::refused(reply, self.after_message(reply))
        }
    }
}

impl Envelope {
    /// The place of the first accepted recipient without an outcome.
    fn next_unanswered(&self) -> Option<usize> {
        self.accepted.iter().copied().find(|index| self.outcomes.get(*index).is_some_and(Option::is_none))
    }

    fn answer_next(&mut self, outcome: Outcome) {
        if let Some(slot) = self.next_unanswered().and_then(|index| self.outcomes.get_mut(index)) {
            *slot = Some(outcome);
        }
    }
}
