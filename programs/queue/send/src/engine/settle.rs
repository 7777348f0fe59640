//! What becomes of a message when nothing of it is under way: rest until the next attempt, a bounce, or its end.

use ipc::options::Options;
use ipc::queue::{FLAG_ARCHIVED, FLAG_REQUIRETLS};
use message::bounce::{Action, Decision, Notice};
use spool::{Body, Envelope, Log as Spool, RecipientState};
use wire::Address;
use wire::dsn::{Envid, Orcpt, Ret};

use crate::active::{Active, BodyState, How, Wish};
use crate::bounce::{Failed, Order, Written};

use super::{Engine, Out, Ticket, lane_at};

/// A bounce that could not be written or queued is tried again after that.
const BOUNCE_PAUSE_S: u64 = 60;
/// What a report of a delay says of a recipient whose time to be delivered to is over (RFC 2852 §4.1.4).
const OVERDUE: &[u8] = b"It was not delivered by the time that was asked for. (#4.4.7)\n";

impl<S: Spool> Engine<S> {
    /// Looks at a message that may have nothing under way any more.
    pub(super) fn settle(&mut self, id: u64) {
        let Some(active) = self.active.get_mut(&id).filter(|active| active.is_idle()) else { return };
        let (pending, failed, succeeded, wish) = (active.pending, active.failed, active.succeeded, active.wish);
        if wish == Wish::Remove || pending == 0 && failed == 0 && succeeded == 0 {
            active.closing = true;
            self.end(id);
        } else if wish == Wish::Hold {
            self.forget(id);
            self.backlog.hold(id);
        } else if pending == 0 && succeeded > 0 {
            self.report(id, Some(Notice::Success));
        } else if pending == 0 {
            self.bounce(id);
        } else if active.delayed(self.now.s).next().is_some() && !active.dying {
            self.report(id, Some(Notice::Delay));
        } else {
            // Every pending recipient was deferred or put off; if one were not, it would be due now.
            let due_s = if active.next_due_s == u64::MAX { self.now.s } else { active.next_due_s };
            self.forget(id);
            self.backlog.set_pending(id, pending);
            self.backlog.rest(id, due_s);
        }
    }

    pub(super) fn end(&mut self, id: u64) {
        let ticket = self.ticket(Ticket::End { id });
        self.spool.end(Self::id(id), ticket);
    }

    /// The message is no longer in the spool.
    pub(super) fn ended(&mut self, id: u64) {
        self.log.end_msg(id);
        self.forget(id);
        self.backlog.remove(id);
        self.removed(id);
    }

    /// Frees the memory of a message that is at rest again or gone; its body is closed.
    pub(super) fn forget(&mut self, id: u64) {
        let Some(active) = self.active.remove(&id) else { return };
        self.recipients_active = self.recipients_active.saturating_sub(active.recipients.len());
        if let Some(count) = self.active_of.get_mut(lane_at(active.lane)) {
            *count = count.saturating_sub(1);
        }
        if let Some(by) = active.deliver_by() {
            self.deadlines.remove(&(by.at_s, id));
        }
    }

    fn bounce(&mut self, id: u64) {
        let Some(active) = self.active.get_mut(&id) else { return };
        match Decision::of(&active.envelope.sender, self.settings.doublebounce_to()) {
            Decision::DiscardTriple => {
                active.closing = true;
                self.log.triple_bounce(id);
                self.end(id);
            }
            Decision::DiscardDouble => {
                active.closing = true;
                self.log.double_bounce_discarded(id);
                self.end(id);
            }
            Decision::Bounce { .. } | Decision::DoubleBounce { .. } => self.report(id, None),
        }
    }

    /// Has a report written; `None`: a bounce.
    fn report(&mut self, id: u64, about: Option<Notice>) {
        let Some(active) = self.active.get_mut(&id) else { return };
        (active.closing, active.notice) = (true, about);
        match active.body {
            BodyState::Open(_) => self.write_bounce(id),
            BodyState::Asked(_) => {}
            BodyState::Closed | BodyState::Kept(_) => {
                active.body = BodyState::Asked(Vec::new());
                self.open_body(id);
            }
        }
    }

    /// Has the bounce written, with what of the original can be read.
    pub(super) fn write_bounce(&mut self, id: u64) {
        let Some(active) = self.active.get(&id) else { return };
        let original = match &active.body {
            BodyState::Open(body) => Some(std::sync::Arc::clone(body)),
            BodyState::Asked(_) | BodyState::Closed | BodyState::Kept(_) => None,
        };
        let delayed: Vec<u32> = active.delayed(self.now.s).collect();
        let is_overdue = active.is_overdue(self.now.s);
        let about = |number: u32, state: &RecipientState| match (active.notice, state) {
            (None, RecipientState::Failed { reply }) => Some((Action::Failed, reply.clone())),
            (Some(Notice::Success), RecipientState::Succeeded { how }) => Some((How::action(*how), Vec::new())),
            (Some(Notice::Delay), RecipientState::Pending { last_reply, .. }) if delayed.binary_search(&number).is_ok() => {
                Some((Action::Delayed, if is_overdue { OVERDUE.to_vec() } else { last_reply.clone() }))
            }
            _ => None,
        };
        let options = active.options.as_deref();
        let failed = (0_u32..).zip(&active.recipients).filter_map(|(number, recipient)| {
            let (action, report) = about(number, &recipient.state)?;
            let original = options.and_then(|options| options.of(number)?.orcpt.as_ref()).map(Orcpt::decoded);
            Some(Failed { action, recipient: self.known_as(active, number as usize), original, report })
        });
        // RFC 8689 §5: RET=FULL does not count, for its way back may be another one.
        let needs_tls = active.envelope.flags & FLAG_REQUIRETLS != 0;
        let order = Order {
            message: id,
            notice: active.notice,
            envelope_id: options.and_then(|options| options.envid.as_ref()).map(Envid::decoded),
            headers_only: active.notice.is_some()
                || needs_tls
                || options.is_some_and(|options| options.ret == Some(Ret::Headers)),
            retry_until_s: active.start_s().saturating_add(self.settings.queuelifetime_s()),
            decision: Decision::of(&active.envelope.sender, self.settings.doublebounce_to()),
            sender: active.envelope.sender.clone(),
            arrival_s: active.envelope.arrival_s,
            flags: active.envelope.flags,
            len: active.bytes,
            failed: failed.collect(),
            original,
            bouncefrom: self.settings.bouncefrom().to_vec(),
            bouncehost: self.settings.bouncehost().clone(),
            copy_len_max: self.settings.bouncemaxbytes(),
            now_s: self.now.s,
            pid: self.identity.pid,
            side: None,
        };
        self.out.push(Out::Bounce(Box::new(order)));
    }

    /// A recipient as the sender of the message knew it.
    fn known_as(&self, active: &Active, at: usize) -> Address {
        let Some(given) = active.envelope.recipients.get(at) else { return Address::null() };
        let Ok(routed) = self.settings.routing().rewrite(given) else { return given.clone() };
        Address::new(self.settings.routing().without_prefix(routed.address())).unwrap_or_else(|_| given.clone())
    }

    /// A bounce was written, or could not be.
    pub fn bounced(&mut self, order: Order, written: std::io::Result<Written>) {
        let of = order.message;
        if !self.active.contains_key(&of) {
            return;
        }
        let written = match written {
            Ok(Written::NeedsSide) => {
                let side = Some(self.spool.side_file());
                return self.out.push(Out::Bounce(Box::new(Order { side, ..order })));
            }
            Ok(written) => written,
            Err(error) => return self.bounce_failed(of, &error.to_string()),
        };
        let Some((sender, to)) = order.decision.envelope() else { return };
        let (body, bytes) = match written {
            Written::Small(body) => (Body::Inline(body.clone()), body.len() as u64),
            Written::Large(side, bytes) => (Body::Side(side), bytes),
            Written::NeedsSide => return,
        };
        let priority = self.active.get(&of).and_then(|active| active.options.as_ref()?.priority);
        // RFC 6710 §4.4: a report is as urgent as what it is about.
        let mut options = Options { priority, ..Options::none() };
        let (mut recipients, mut flags) = (vec![to.clone()], order.flags & !FLAG_ARCHIVED);
        self.tap(&sender, &mut recipients, &mut flags, &mut options);
        let (uid, pid, options) = (self.identity.uid, self.identity.pid, options.store());
        let envelope = Envelope { sender, recipients, arrival_s: self.now.s, uid, pid, flags, options };
        if let Some(about) = order.notice {
            let ticket = self.ticket(Ticket::Notice { of, about, envelope: envelope.clone(), bytes });
            return self.spool.accept(envelope, body, ticket);
        }
        let ticket = self.ticket(Ticket::Bounce { of, envelope: envelope.clone(), bytes });
        self.spool.bounce_and_end(envelope, body, Self::id(of), ticket);
    }

    /// A report is durable: its message goes on. If power goes before that is noted the report is made once more.
    pub(super) fn noticed(&mut self, id: u64, about: Notice) {
        let Some(active) = self.active.get_mut(&id).filter(|active| active.notice == Some(about)) else { return };
        let changes = active.noticed(about, self.now.s);
        (active.closing, active.notice) = (false, None);
        // Nothing waits for this record: what follows comes after it in the spool.
        let (outlook, ticket) = (active.outlook(self.now.s), self.next_ticket);
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.spool.progress(Self::id(id), changes, outlook, ticket);
        self.settle(id);
    }

    /// The failures stay in the spool; the bounce is made again later.
    pub(super) fn bounce_failed(&mut self, id: u64, why: &str) {
        self.log.warning(&format!("unable to bounce msg {id}: {why}; will try again"));
        self.forget(id);
        self.backlog.rest(id, self.now.s.saturating_add(BOUNCE_PAUSE_S));
    }
}
