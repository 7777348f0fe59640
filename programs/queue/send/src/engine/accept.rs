//! From a submission to a message of the queue.

use schedule::Lane;
use spool::{Body, Envelope, Log as Spool, Refusal};

use crate::active::{Active, BodyState, KeptBody};
use crate::submission::{Submitted, Submitter, permanent, temporary};

use super::{Engine, Out, Ticket};

impl<S: Spool> Engine<S> {
    /// A message is whole. The answer comes as [`Out::Reply`] when it is durable or refused; if the client goes away before, nothing
    /// changes.
    pub fn submitted(&mut self, client: u64, who: Submitter, message: Submitted) {
        let Submitted { sender, mut recipients, mut flags, mut options, message_id, body, bytes, held, .. } = message;
        self.tap(&sender, &mut recipients, &mut flags, &mut options);
        let options = options.store();
        let envelope = Envelope { sender, recipients, arrival_s: self.now.s, uid: who.uid, pid: who.pid, flags, options };
        self.accepting = self.accepting.saturating_add(1);
        self.reading.new_mail(self.now.boot);
        self.starting.new_mail(self.now.boot);
        let kept = match &body {
            Body::Inline(bytes) => KeptBody::new(bytes, &self.kept),
            Body::Side(_) => None,
        };
        let ticket = self.ticket(Ticket::Accept { client, envelope: envelope.clone(), message_id, bytes, held, kept });
        self.spool.accept(envelope, body, ticket);
    }

    pub(super) fn accepted(&mut self, ticket: u64, id: u64) {
        match self.tickets.remove(&ticket) {
            Some(Ticket::Accept { client, envelope, message_id, bytes, held, kept }) => {
                self.accepting = self.accepting.saturating_sub(1);
                self.out.push(Out::GiveBack { bytes: held });
                self.out.push(Out::Reply { client, answer: ipc::queue::Answer::Accepted { id, pid: envelope.pid } });
                self.enter(id, envelope, message_id.as_deref(), bytes, kept);
            }
            Some(Ticket::Import { client, envelope, message_id, bytes, held }) => {
                self.log.new_msg(id);
                self.log.info_msg(id, bytes, &envelope, message_id.as_deref());
                self.import_kept(client, id, &envelope, held);
            }
            Some(Ticket::Bounce { of, envelope, bytes }) => {
                self.counters.bounces = self.counters.bounces.saturating_add(1);
                self.log.bounce_msg(of, self.identity.pid);
                self.ended(of);
                self.enter(id, envelope, None, bytes, None);
            }
            Some(Ticket::Notice { of, about, envelope, bytes }) => {
                self.noticed(of, about);
                self.enter(id, envelope, None, bytes, None);
            }
            _ => {}
        }
    }

    pub(super) fn refused(&mut self, ticket: u64, why: Refusal) {
        match self.tickets.remove(&ticket) {
            Some(Ticket::Accept { client, held, .. }) => {
                self.accepting = self.accepting.saturating_sub(1);
                self.out.push(Out::GiveBack { bytes: held });
                let answer = match why {
                    Refusal::Full => temporary("4.3.1 mail system full"),
                    Refusal::Failed => temporary("4.3.0 mail system cannot write to its disk"),
                    Refusal::TooLarge => permanent("5.3.4 message too big for this system"),
                };
                self.out.push(Out::Reply { client, answer });
            }
            Some(Ticket::Import { client, held, .. }) => self.import_not_kept(client, held, why),
            Some(Ticket::Bounce { of, .. } | Ticket::Notice { of, .. }) => self.bounce_failed(of, "the spool did not take it"),
            _ => {}
        }
    }

    /// A new message is in the queue: tried at once if there is room, whatever else waits.
    fn enter(&mut self, id: u64, envelope: Envelope, message_id: Option<&[u8]>, bytes: u64, kept: Option<KeptBody>) {
        self.log.new_msg(id);
        self.log.info_msg(id, bytes, &envelope, message_id);
        let arrival_s = envelope.arrival_s;
        let mut active = Active::new(envelope, None, bytes, Lane::Fresh);
        if !self.stopping && (self.has_room(Lane::Fresh) || self.has_room_for(active.priority())) {
            self.backlog.insert_active(id, arrival_s);
            if let Some(kept) = kept {
                active.body = BodyState::Kept(kept);
            }
            self.activate(id, active, false);
        } else {
            self.backlog.insert_fresh(id, arrival_s);
            self.backlog.set_pending(id, active.pending);
        }
    }
}
