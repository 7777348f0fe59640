//! What becomes of a delivery: outcomes are judged, written to the spool, and only then is the slot free.

use std::rc::Rc;

use ipc::field::Verdict;
use ipc::job::{self, Outcome};
use schedule::fair::{Slot, Work};
use schedule::{Channel, Feedback};
use spool::{Change, Log as Spool};

use crate::active::How;
use crate::log::Result as LogResult;

use super::delivery::{Job, LOST_PAUSE_S};
use super::{Engine, Ticket};

/// The classic addition to a deferral that is the last one.
const TOO_LONG_IN_QUEUE: &[u8] = b"I'm not going to try again; this message has been in the queue too long.\n";
/// The report for a recipient whose time to be delivered to is over (RFC 2852 §4.1.4).
const TOO_LATE: &[u8] = b"Sorry, it could not be delivered by the time that was asked for. (#5.4.7)\n";

impl<S: Spool> Engine<S> {
    /// A worker answered. Numbers it was not given, outcomes it gave already and anything else it may make up change nothing.
    pub fn answered(&mut self, channel: Channel, connection: u64, answer: job::Answer) {
        let (job::Answer::Done { number, .. } | job::Answer::PassedOn { number, .. } | job::Answer::TimeKept { number, .. }) =
            &answer;
        let Some(job) = self.jobs.get_mut(number).filter(|job| job.runs_on(channel, connection)) else { return };
        match answer {
            job::Answer::Done { number, outcomes, untried, last } => self.results(number, &outcomes, &untried, last),
            job::Answer::PassedOn { recipients, .. } => {
                let known = recipients.iter().filter_map(|index| job.recipients.get(*index as usize));
                job.passed_on = known.copied().collect();
            }
            job::Answer::TimeKept { recipients, .. } => {
                let known = recipients.iter().filter_map(|index| job.recipients.get(*index as usize));
                job.time_kept = known.copied().collect();
            }
        }
    }

    /// The answer to a job that no worker needs to see.
    pub(super) fn answer_self(&mut self, number: u64, verdict: Verdict, text: &[u8]) {
        let Some(job) = self.jobs.get_mut(&number).filter(|job| !job.sent) else { return };
        job.sent = true;
        let recipients = (0..).take(job.recipients.len());
        let outcomes: Vec<Outcome> = recipients.map(|recipient| Outcome { recipient, verdict, text: text.into() }).collect();
        self.results(number, &outcomes, &[], true);
        if let Some(job) = self.jobs.get_mut(&number) {
            job.feedback = Feedback::Nothing;
        }
    }

    fn results(&mut self, number: u64, outcomes: &[Outcome], untried: &[u32], last: bool) {
        let Some(mut job) = self.jobs.remove(&number) else { return };
        let mut changes = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            if let Some(recipient) = take(&mut job, outcome.recipient) {
                let delivery = number.saturating_add(outcome.recipient.into());
                job.feedback = learn(job.feedback, outcome);
                changes.extend(self.judge(&job, delivery, recipient, outcome.verdict, &outcome.text));
            }
        }
        self.again(&mut job, untried);
        if last {
            for index in 0..u32::try_from(job.recipients.len()).unwrap_or(u32::MAX) {
                if let Some(recipient) = take(&mut job, index) {
                    self.log_end(number.saturating_add(index.into()), job.channel, None);
                    let text = b"The report of the delivery did not name this recipient. (#4.3.0)\n";
                    changes.extend(self.defer(job.message, recipient, job.channel, text).1);
                }
            }
        }
        let message = job.message;
        job.over = last;
        self.jobs.insert(number, job);
        self.write_results(number, message, changes, last);
    }

    /// What one outcome means: the log line and the change.
    fn judge(&mut self, job: &Job, delivery: u64, recipient: u32, verdict: Verdict, text: &[u8]) -> Option<Change> {
        match verdict {
            Verdict::Success => {
                self.counters.successes = self.counters.successes.saturating_add(1);
                self.log_end(delivery, job.channel, Some((LogResult::Success, text)));
                let active = self.active.get_mut(&job.message)?;
                let leaves = job.leaves(recipient, active.deliver_by());
                let how = if leaves { Some(How::Relayed) } else { job.how(recipient, text) };
                active.delivered(recipient, how, leaves)
            }
            Verdict::Failure => {
                self.counters.failures = self.counters.failures.saturating_add(1);
                self.log_end(delivery, job.channel, Some((LogResult::Failure, text)));
                self.fail(job.message, recipient, text)
            }
            Verdict::Deferral => {
                let (text, change) = self.defer(job.message, recipient, job.channel, text);
                let result = if matches!(&change, Some(Change { state, .. }) if !state.is_pending()) {
                    LogResult::Failure
                } else {
                    LogResult::Deferral
                };
                self.log_end(delivery, job.channel, Some((result, &text)));
                change
            }
        }
    }

    /// Not now; never again, if the message has had its time. Returns the text that tells so.
    fn defer(&mut self, message: u64, recipient: u32, channel: Channel, text: &[u8]) -> (Vec<u8>, Option<Change>) {
        let Some(active) = self.active.get_mut(&message) else { return (text.to_vec(), None) };
        if active.dying {
            self.counters.failures = self.counters.failures.saturating_add(1);
            let room = ipc::TEXT_LEN_MAX.saturating_sub(TOO_LONG_IN_QUEUE.len()).saturating_sub(1);
            let said = text.get(..room.min(text.len())).unwrap_or_default();
            let line_end: &[u8] = if said.is_empty() || said.ends_with(b"\n") { b"" } else { b"\n" };
            let text = [said, line_end, TOO_LONG_IN_QUEUE].concat();
            let change = self.fail(message, recipient, &text);
            return (text, change);
        }
        self.counters.deferrals = self.counters.deferrals.saturating_add(1);
        (text.to_vec(), active.deferred(recipient, text, channel, self.now.s))
    }

    /// Recipients whose transaction was full: into the next one, at once.
    fn again(&mut self, job: &mut Job, untried: &[u32]) {
        let mut recipients = std::collections::VecDeque::new();
        for index in untried {
            if let Some(recipient) = take(job, *index) {
                let delivery = job.number.saturating_add((*index).into());
                let text = b"This transaction was full; the next one follows.\n";
                self.log_end(delivery, job.channel, Some((LogResult::Deferral, text)));
                recipients.push_back(recipient);
            }
        }
        let Some(active) = self.active.get_mut(&job.message).filter(|_| !recipients.is_empty()) else { return };
        let site = job.slot.as_ref().and_then(|slot| self.remote.key(slot).cloned());
        // A transaction that took nobody says nothing about the next one: do not try that without a pause.
        let took_some = job.feedback != Feedback::Nothing;
        match (site, &job.route) {
            (Some(site), Some(route)) if job.channel == Channel::Remote && took_some => {
                active.queued = active.queued.saturating_add(u32::try_from(recipients.len()).unwrap_or(u32::MAX));
                let work = Work {
                    message: job.message,
                    route: Rc::clone(route),
                    recipients,
                    batch_max: job::RECIPIENTS_MAX,
                    rank: active.priority().rank(),
                };
                self.remote.push_front(active.lane, site, work);
            }
            _ => {
                let due_s = self.now.s.saturating_add(LOST_PAUSE_S);
                recipients.into_iter().for_each(|recipient| active.put_off(recipient, due_s, self.now.s));
            }
        }
    }

    /// Results go to the spool; when they were the last ones of a message without failures, its end says it all.
    fn write_results(&mut self, number: u64, message: u64, changes: Vec<Change>, last: bool) {
        let Some(active) = self.active.get_mut(&message) else { return };
        self.backlog.set_pending(message, active.pending);
        let ends =
            last && active.pending == 0 && active.failed == 0 && active.succeeded == 0 && active.queued == 0 && active.jobs == 1;
        if ends {
            active.closing = true;
            let ticket = self.ticket(Ticket::Result { number, last, ends });
            self.spool.end(Self::id(message), ticket);
        } else if !changes.is_empty() {
            let outlook = active.outlook(self.now.s);
            let ticket = self.ticket(Ticket::Result { number, last, ends });
            self.spool.progress(Self::id(message), changes, outlook, ticket);
        } else if last {
            self.result_written(number, true, false);
        }
    }

    /// The slot of a job is free.
    pub(super) fn result_written(&mut self, number: u64, last: bool, ends: bool) {
        if !last {
            return;
        }
        let Some(mut job) = self.jobs.remove(&number) else { return };
        let message = job.message;
        if let Some(slot) = job.slot.take() {
            self.free(job.channel, slot, job.feedback);
        }
        if let Some(active) = self.active.get_mut(&message) {
            active.jobs = active.jobs.saturating_sub(1);
        }
        if ends {
            self.ended(message);
        } else {
            self.settle(message);
        }
    }

    fn free(&mut self, channel: Channel, slot: Slot, feedback: Feedback) {
        if channel == Channel::Local {
            let _ = self.local.done(slot, feedback, self.now.s);
            return self.unpark(channel, None);
        }
        let site = self.remote.key(&slot).cloned();
        let homeless = self.remote.done(slot, feedback, self.now.s);
        let until_s = site.as_ref().and_then(|site| self.remote.dead_until_s(site, self.now.s)).unwrap_or(self.now.s);
        let is_long_dead = site.as_ref().is_some_and(|site| self.remote.is_long_dead(site, self.now.s));
        for work in homeless {
            let recipients: Vec<u32> = work.recipients.into();
            if let Some(active) = self.active.get_mut(&work.message) {
                active.queued = active.queued.saturating_sub(u32::try_from(recipients.len()).unwrap_or(u32::MAX));
            }
            self.leave_alone(work.message, recipients, until_s, is_long_dead);
            self.settle(work.message);
        }
        self.unpark(channel, site.as_ref());
    }

    /// Recipients of a message that has had its time fail without another attempt of their own.
    pub(super) fn give_up(&mut self, message: u64, recipients: &[u32], text: &[u8]) {
        let mut changes = Vec::new();
        for recipient in recipients {
            let delivery = self.next_delivery;
            self.next_delivery = delivery.saturating_add(1);
            let address = self.active.get(&message).and_then(|active| active.target(*recipient)).cloned().unwrap_or_default();
            self.log_start(delivery, message, Channel::Remote, address.as_bytes());
            let (text, change) = self.defer(message, *recipient, Channel::Remote, text);
            self.log_end(delivery, Channel::Remote, Some((LogResult::Failure, &text)));
            changes.extend(change);
        }
        let Some(active) = self.active.get(&message) else { return };
        // Nothing waits for this record: the bounce that follows comes after it in the spool.
        let (outlook, ticket) = (active.outlook(self.now.s), self.next_ticket);
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.spool.progress(Self::id(message), changes, outlook, ticket);
    }

    /// The time to deliver these recipients by is over.
    pub(super) fn too_late(&mut self, message: u64, recipients: &[u32]) {
        let mut changes = Vec::new();
        for recipient in recipients {
            let Some(active) = self.active.get(&message) else { return };
            let address = active.target(*recipient).cloned().unwrap_or_default();
            let is_local = self.settings.routing().rewrite(&address).is_ok_and(|routed| routed.is_local());
            let channel = if is_local { Channel::Local } else { Channel::Remote };
            let delivery = self.next_delivery;
            self.next_delivery = delivery.saturating_add(1);
            self.counters.failures = self.counters.failures.saturating_add(1);
            self.log_start(delivery, message, channel, address.as_bytes());
            self.log_end(delivery, channel, Some((LogResult::Failure, TOO_LATE)));
            changes.extend(self.fail(message, *recipient, TOO_LATE));
        }
        let Some(active) = self.active.get(&message).filter(|_| !changes.is_empty()) else { return };
        // Nothing waits for this record: the bounce that follows comes after it in the spool.
        let (outlook, ticket) = (active.outlook(self.now.s), self.next_ticket);
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.spool.progress(Self::id(message), changes, outlook, ticket);
    }
}

/// A recipient of a job that has no outcome yet; it counts as having one from now on.
pub(super) fn take(job: &mut Job, index: u32) -> Option<u32> {
    let open = job.open.get_mut(index as usize)?;
    if !std::mem::take(open) {
        return None;
    }
    job.recipients.get(index as usize).copied()
}

/// What the outcomes of a transaction say about its site: one that took or refused somebody is well; one where all were deferred
/// is slow, or down if the report's status code says so (RFC 3463 §3.5: X.4.X, network and routing).
fn learn(so_far: Feedback, outcome: &Outcome) -> Feedback {
    let is_network = || outcome.text.windows(4).any(|window| window == b"#4.4");
    match (so_far, outcome.verdict) {
        (Feedback::Success, _) | (_, Verdict::Success | Verdict::Failure) => Feedback::Success,
        (Feedback::Deferred, _) => Feedback::Deferred,
        (Feedback::Down | Feedback::Nothing, Verdict::Deferral) if is_network() => Feedback::Down,
        (Feedback::Down | Feedback::Nothing, Verdict::Deferral) => Feedback::Deferred,
    }
}
