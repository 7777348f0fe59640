//! A message whose recipients are being tried: its envelope, how far each recipient has come, and its body while jobs run.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use ipc::options::Options;
use message::bounce::{Action, Notice};
use message::verp;
use schedule::{Channel, Lane, retry};
use spool::{Change, Envelope, Outlook, RecipientState};
use wire::dsn::Notify;
use wire::{Address, DeliverBy, Priority};

/// All last replies of a message together, about: of a long list each recipient's is cut shorter.
const REPLIES_LEN_MAX: usize = 16 << 20;
/// So much of a reply is kept always: it holds the status code.
const REPLY_LEN_MIN: usize = 160;

/// A sender who wants to know of delays is told after that, once for each recipient: the usual time of other systems.
const DELAY_S: u64 = 4 * 3600;

/// How a recipient was delivered, as the spool keeps it until the sender knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum How {
    Delivered = b'd',
    Relayed = b'r',
    Expanded = b'e',
}

impl How {
    /// As a report says it.
    #[must_use]
    pub fn action(stored: u8) -> Action {
        match stored {
            b'r' => Action::Relayed,
            b'e' => Action::Expanded,
            _ => Action::Delivered,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Active {
    pub envelope: Envelope,
    /// Length of the body.
    pub bytes: u64,
    pub lane: Lane,
    pub recipients: Vec<Recipient>,
    /// Recipients that are not done.
    pub pending: u32,
    /// What the sender asks for; mostly nothing.
    pub options: Option<Box<Options>>,
    /// Recipients that failed and whose sender does not know yet.
    pub failed: u32,
    /// Recipients that were delivered and whose sender wants to know and does not yet.
    pub succeeded: u32,
    /// Recipients that wait for a slot.
    pub queued: u32,
    /// Jobs that were started and whose results are not written.
    pub jobs: u32,
    /// When the first of the waiting recipients is due; `u64::MAX` if none waits.
    pub next_due_s: u64,
    /// Past queuelifetime: a deferral is final now.
    pub dying: bool,
    pub body: BodyState,
    /// Asked for by the administrator: takes effect when no job runs.
    pub wish: Wish,
    /// Its end or its bounce is under way: nothing else may happen to it.
    pub closing: bool,
    /// It is this report that is under way, not a bounce.
    pub notice: Option<Notice>,
}

/// One recipient of an active message.
#[derive(Debug)]
pub struct Recipient {
    pub state: RecipientState,
    /// The address it is delivered to, if it differs from the one in the envelope.
    pub target: Option<Address>,
    /// In a domain of users/domains: qmail-auth knows where it goes.
    pub is_virtual: bool,
}

#[derive(Debug)]
pub enum BodyState {
    Closed,
    /// Not opened yet, and still in memory from when it was accepted.
    Kept(KeptBody),
    /// Jobs that wait for it.
    Asked(Vec<u64>),
    Open(Arc<OwnedFd>),
}

/// All bodies kept in memory together, at most: new mail that is delivered at once needs no reading, a flood of it is read again.
pub const KEPT_MAX: usize = 8 << 20;

/// A copy of a small body, counted while it lives.
#[derive(Debug)]
pub struct KeptBody {
    bytes: Box<[u8]>,
    used: Rc<Cell<usize>>,
}

impl KeptBody {
    /// A copy, if there is room for it.
    #[must_use]
    pub fn new(bytes: &[u8], used: &Rc<Cell<usize>>) -> Option<Self> {
        let total = used.get().saturating_add(bytes.len());
        if total > KEPT_MAX {
            return None;
        }
        used.set(total);
        Some(Self { bytes: bytes.into(), used: Rc::clone(used) })
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for KeptBody {
    fn drop(&mut self) {
        self.used.set(self.used.get().saturating_sub(self.bytes.len()));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Nothing,
    Hold,
    Remove,
}

impl Active {
    /// `states` as they were read, or `None` for a new message.
    #[must_use]
    pub fn new(envelope: Envelope, states: Option<Vec<RecipientState>>, bytes: u64, lane: Lane) -> Self {
        let due_s = envelope.arrival_s;
        let fresh = || RecipientState::Pending { attempts: 0, due_s, last_reply: Vec::new(), warned: false };
        let mut states = states.unwrap_or_default();
        states.resize_with(envelope.recipients.len(), fresh);
        let recipients: Vec<Recipient> =
            states.into_iter().map(|state| Recipient { state, target: None, is_virtual: false }).collect();
        let count = |is: fn(&RecipientState) -> bool| {
            u32::try_from(recipients.iter().filter(|recipient| is(&recipient.state)).count()).unwrap_or(u32::MAX)
        };
        Self {
            pending: count(RecipientState::is_pending),
            failed: count(|state| matches!(state, RecipientState::Failed { .. })),
            succeeded: count(|state| matches!(state, RecipientState::Succeeded { .. })),
            // What cannot be read is not asked for; the mail goes on.
            options: Options::stored(&envelope.options).ok().filter(|options| !options.is_none()).map(Box::new),
            envelope,
            bytes,
            lane,
            recipients,
            queued: 0,
            jobs: 0,
            next_due_s: u64::MAX,
            dying: false,
            body: BodyState::Closed,
            wish: Wish::Nothing,
            closing: false,
            notice: None,
        }
    }

    /// Before that nothing of it is delivered (RFC 4865).
    #[must_use]
    pub fn hold_until_s(&self) -> Option<u64> {
        self.options.as_ref()?.hold_until_s
    }

    /// The time to deliver it by (RFC 2852).
    #[must_use]
    pub fn deliver_by(&self) -> Option<DeliverBy> {
        self.options.as_ref()?.deliver_by
    }

    /// That time has passed, and who is not delivered to by now never will be.
    #[must_use]
    pub fn is_too_late(&self, now_s: u64) -> bool {
        self.deliver_by().is_some_and(|by| by.returns && now_s >= by.at_s)
    }

    /// That time has passed, and a sender who wants to know has not been told by anybody before us.
    #[must_use]
    pub fn is_overdue(&self, now_s: u64) -> bool {
        self.deliver_by().is_some_and(|by| !by.returns && !by.told && now_s >= by.at_s)
    }

    /// The next moment at which that time makes a difference, from `now_s` on.
    #[must_use]
    pub fn deadline_s(&self, now_s: u64) -> Option<u64> {
        self.deliver_by().filter(|by| by.returns || !by.told && by.at_s > now_s).map(|by| by.at_s)
    }

    /// Not beyond that moment.
    fn in_time(&self, due_s: u64, now_s: u64) -> u64 {
        self.deadline_s(now_s).map_or(due_s, |at_s| due_s.min(at_s))
    }

    #[must_use]
    pub fn priority(&self) -> Priority {
        self.options.as_ref().and_then(|options| options.priority).unwrap_or_default()
    }

    /// Does anybody hear of a report?
    fn has_sender(&self) -> bool {
        !verp::base(&self.envelope.sender).is_null() && self.envelope.sender.as_bytes() != verp::DOUBLE_BOUNCE_SENDER
    }

    /// Was the sender told that it takes long, for this recipient?
    #[must_use]
    pub fn is_warned(&self, recipient: u32) -> bool {
        let recipient = self.recipients.get(recipient as usize);
        recipient.is_some_and(|recipient| matches!(recipient.state, RecipientState::Pending { warned: true, .. }))
    }

    /// When its first attempt was, or will be, due: its time in the queue begins then.
    #[must_use]
    pub fn start_s(&self) -> u64 {
        self.envelope.arrival_s.max(self.hold_until_s().unwrap_or(0))
    }

    /// The reports that are wanted about a recipient (RFC 3461 §4.1); `None`: what is usual, failures alone.
    #[must_use]
    pub fn notify(&self, recipient: u32) -> Option<Notify> {
        self.options.as_ref()?.of(recipient)?.notify
    }

    /// Recipients whose sender wants to know that it takes long, was not told, and should be now.
    pub fn delayed(&self, now_s: u64) -> impl Iterator<Item = u32> {
        let is_late = self.options.is_some() && now_s >= self.start_s().saturating_add(DELAY_S);
        let is_overdue = self.is_overdue(now_s);
        let numbered = (0_u32..).zip(&self.recipients).filter(move |_| (is_late || is_overdue) && self.has_sender());
        numbered.filter_map(move |(number, recipient)| {
            let RecipientState::Pending { attempts, warned: false, .. } = recipient.state else { return None };
            let notify = self.notify(number);
            let is_asked = is_late && attempts > 0 && notify.is_some_and(Notify::of_delay);
            (is_asked || is_overdue && notify.is_none_or(Notify::of_delay)).then_some(number)
        })
    }

    /// The sender knows: what changes on the disk.
    pub fn noticed(&mut self, about: Notice, now_s: u64) -> Vec<Change> {
        let delayed: Vec<u32> = if about == Notice::Delay { self.delayed(now_s).collect() } else { Vec::new() };
        let mut changes = Vec::new();
        for (number, recipient) in (0_u32..).zip(&mut self.recipients) {
            match &mut recipient.state {
                RecipientState::Succeeded { .. } if about == Notice::Success => recipient.state = RecipientState::Done,
                RecipientState::Pending { warned, .. } if delayed.binary_search(&number).is_ok() => *warned = true,
                _ => continue,
            }
            changes.push(Change { recipient: number, state: recipient.state.clone() });
        }
        if about == Notice::Success {
            self.succeeded = 0;
        }
        changes
    }

    /// Recipients that are not done.
    pub fn pending(&self) -> impl Iterator<Item = u32> {
        (0_u32..).zip(&self.recipients).filter(|(_, recipient)| recipient.state.is_pending()).map(|(number, _)| number)
    }

    /// Where a recipient is delivered to.
    #[must_use]
    pub fn target(&self, recipient: u32) -> Option<&Address> {
        let at = recipient as usize;
        self.recipients.get(at)?.target.as_ref().or_else(|| self.envelope.recipients.get(at))
    }

    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queued == 0 && self.jobs == 0 && !self.closing
    }

    /// A recipient is done for: `state` is its last one.
    fn finish(&mut self, recipient: u32, state: RecipientState) -> Option<Change> {
        let known = self.recipients.get_mut(recipient as usize).filter(|known| known.state.is_pending())?;
        known.state = state.clone();
        self.pending = self.pending.saturating_sub(1);
        self.failed = self.failed.saturating_add(u32::from(matches!(state, RecipientState::Failed { .. })));
        self.succeeded = self.succeeded.saturating_add(u32::from(matches!(state, RecipientState::Succeeded { .. })));
        Some(Change { recipient, state })
    }

    /// `how` it was delivered is told to a sender who wants to know; `None`: somebody else tells him. `leaves`: it left the servers that keep
    /// the time to deliver by, or each relay is to be told: then he wants to know unless he said that he does not.
    pub fn delivered(&mut self, recipient: u32, how: Option<How>, leaves: bool) -> Option<Change> {
        let notify = self.notify(recipient);
        let wants = notify.is_some_and(Notify::of_success) || leaves && notify.is_none_or(Notify::of_delay);
        let how = how.filter(|_| wants && self.has_sender());
        self.finish(recipient, how.map_or(RecipientState::Done, |how| RecipientState::Succeeded { how: how as u8 }))
    }

    pub fn refused(&mut self, recipient: u32, reply: &[u8]) -> Option<Change> {
        if self.notify(recipient).is_some_and(|notify| !notify.of_failure()) {
            return self.finish(recipient, RecipientState::Bounced);
        }
        let reply = self.clip(reply);
        self.finish(recipient, RecipientState::Failed { reply })
    }

    fn clip(&self, reply: &[u8]) -> Vec<u8> {
        let share = REPLIES_LEN_MAX.checked_div(self.recipients.len()).unwrap_or(ipc::TEXT_LEN_MAX);
        let len = share.clamp(REPLY_LEN_MIN, ipc::TEXT_LEN_MAX).min(reply.len());
        reply.get(..len).unwrap_or_default().to_vec()
    }

    /// An attempt was made, and another one is to be made by the schedule.
    pub fn deferred(&mut self, recipient: u32, reply: &[u8], channel: Channel, now_s: u64) -> Option<Change> {
        let due = self.in_time(retry::next_s(self.start_s(), now_s, channel), now_s);
        let reply = self.clip(reply);
        let known = self.recipients.get_mut(recipient as usize)?;
        let RecipientState::Pending { attempts, due_s, last_reply, .. } = &mut known.state else { return None };
        (*attempts, *due_s) = (attempts.saturating_add(1), due);
        *last_reply = reply;
        self.next_due_s = self.next_due_s.min(due);
        Some(Change { recipient, state: known.state.clone() })
    }

    /// No attempt was made, for no fault of the recipient: again at `due`.
    pub fn put_off(&mut self, recipient: u32, due: u64, now_s: u64) {
        let due = self.in_time(due, now_s);
        self.next_due_s = self.next_due_s.min(due);
        if let Some(Recipient { state: RecipientState::Pending { due_s, .. }, .. }) = self.recipients.get_mut(recipient as usize)
        {
            *due_s = due;
        }
    }

    /// The summary for the disk. While anything is under way the message is to be looked at right after a restart.
    #[must_use]
    pub fn outlook(&self, now_s: u64) -> Outlook {
        let at_work = self.queued > 0 || self.jobs > 1;
        let due_s = if at_work { now_s } else { self.next_due_s.min(u64::MAX - 1) };
        let due_s = if self.pending == 0 { now_s } else { due_s };
        Outlook { pending: self.pending, due_s, held: self.wish == Wish::Hold }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(recipients: usize) -> Active {
        let envelope = Envelope {
            sender: Address::null(),
            recipients: vec![Address::new(b"r@x").unwrap(); recipients],
            arrival_s: 1000,
            uid: 0,
            pid: 0,
            flags: 0,
            options: Box::default(),
        };
        Active::new(envelope, None, 5, Lane::Fresh)
    }

    #[test]
    fn a_recipient_comes_to_one_end() {
        let mut message = active(3);
        assert!(message.delivered(0, None, false).is_some());
        assert!(message.delivered(0, None, false).is_none() && message.refused(0, b"x").is_none());
        assert!(message.deferred(0, b"x", Channel::Local, 1000).is_none());
        assert!(message.refused(1, b"No").is_some());
        assert!(message.delivered(9, None, false).is_none());
        assert_eq!((message.pending, message.failed), (1, 1));
        let change = message.deferred(2, b"Busy", Channel::Remote, 1000).unwrap();
        let last_reply = b"Busy".to_vec();
        assert_eq!(change.state, RecipientState::Pending { attempts: 1, due_s: 1400, last_reply, warned: false });
        assert_eq!(message.outlook(1000), Outlook { pending: 1, due_s: 1400, held: false });
        message.queued = 1;
        assert_eq!(message.outlook(1000).due_s, 1000, "what is under way is looked at after a restart");
    }

    #[test]
    fn replies_of_a_long_list_take_bounded_memory() {
        for (recipients, len) in [(1, 4096), (4096, 4096), (65_536, 256), (500_000, 160)] {
            let mut message = active(recipients);
            let Some(Change { state: RecipientState::Failed { reply }, .. }) = message.refused(0, &[b'x'; 9000]) else {
                panic!()
            };
            assert_eq!(reply.len(), len);
        }
    }

    #[test]
    fn kept_bodies_are_counted_while_they_live() {
        let used = Rc::new(Cell::new(0));
        let one = KeptBody::new(&[1; 1000], &used).unwrap();
        assert!(KeptBody::new(&vec![1; KEPT_MAX - 999], &used).is_none());
        assert_eq!(used.get(), 1000);
        drop(one);
        assert_eq!(used.get(), 0);
    }
}
