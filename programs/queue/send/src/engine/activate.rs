//! From a message at rest to recipients that wait for their turn: when it is due it is read, its recipients get their routes and
//! sites, and are handed to the scheduler.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::rc::Rc;

use control::LmtpPlace;
use ipc::job;
use schedule::backlog::Place;
use schedule::fair::Work;
use schedule::{Backlog, Channel, Lane, SiteLimit, retry};
use spool::{Envelope, Log as Spool, ReadFailure, RecipientState};
use users::Routed;
use wire::{Address, Domain, Priority};

use crate::active::{Active, Wish};
use crate::directory::{Site, relay_site};

use super::import::Confirming;
use super::{ACTIVE_MAX, Engine, Mailbox, Out, READS_MAX, RECIPIENTS_ACTIVE_MAX, Route, Ticket, lane_at};

/// A message all of whose recipients wait for one place (a site, or local delivery) at which so many messages wait already is not
/// taken up before fewer do, or it would take the room of messages that can be delivered now.
pub(super) const PARK_OVER: usize = ACTIVE_MAX / 4;
/// Those that were left are woken when no more than this wait there.
const WAKE_UNDER: usize = PARK_OVER / 2;
/// Damaged or unreadable for now: looked at again after that.
const UNREADABLE_PAUSE_S: u64 = 60;
const DAMAGED_PAUSE_S: u64 = 86_400;
/// The report for a recipient whose site is left alone while its message runs out of time.
const UNREACHABLE: &[u8] = b"Sorry, the mail hosts of that domain could not be reached at the last attempts. (#4.4.1)\n";

/// The name of local delivery among the places that messages may be parked for.
const LOCAL: &[u8] = b"";

/// What the spool read.
pub(super) struct Read {
    pub(super) envelope: Envelope,
    pub(super) states: Vec<RecipientState>,
    pub(super) bytes: u64,
    /// The administrator holds it.
    pub(super) held: bool,
}

/// Remote recipients of a message by site and route.
type Groups = HashMap<(Site, Rc<Route>), VecDeque<u32>>;

impl<S: Spool> Engine<S> {
    pub(super) fn has_room(&self, lane: Lane) -> bool {
        let active = self.active_of.get(lane_at(lane)).copied().unwrap_or(usize::MAX);
        active < ACTIVE_MAX && self.recipients_active < RECIPIENTS_ACTIVE_MAX
    }

    /// An urgent message finds room where the usual ones have taken theirs.
    pub(super) fn has_room_for(&self, priority: Priority) -> bool {
        let active = self.active_of.get(lane_at(Lane::Fresh)).copied().unwrap_or(usize::MAX);
        priority > Priority::NORMAL && active < ACTIVE_MAX + ACTIVE_MAX / 8 && self.recipients_active < RECIPIENTS_ACTIVE_MAX
    }

    /// Reads what is due, new mail first.
    pub(super) fn refill(&mut self) {
        while self.reads < READS_MAX && self.has_room(Lane::Fresh) {
            let Some(id) = self.backlog.take_fresh() else { break };
            self.read(id, Lane::Fresh, false);
        }
        while self.reads < READS_MAX && self.has_room(Lane::Retry) && self.reading.may(self.now.boot) {
            if let Some(id) = self.backlog.take_hurried() {
                self.read(id, Lane::Retry, true);
            } else if let Some(id) = self.backlog.take_due(self.now.s) {
                self.read(id, Lane::Retry, false);
            } else {
                break;
            }
            self.reading.take(self.now.boot);
        }
    }

    fn read(&mut self, id: u64, lane: Lane, hurried: bool) {
        self.reads = self.reads.saturating_add(1);
        let ticket = self.ticket(Ticket::Read { lane, hurried });
        self.spool.read_envelope(Self::id(id), ticket);
    }

    pub(super) fn envelope_read(&mut self, ticket: u64, id: u64, read: Read) {
        match self.tickets.remove(&ticket) {
            Some(Ticket::Read { lane, hurried }) => {
                self.reads = self.reads.saturating_sub(1);
                // It may have been held or removed while it was read; what the disk says of that may be older than a release.
                let still = self.backlog.get(id).is_some_and(|known| known.place == Place::Active);
                if still && !self.active.contains_key(&id) && !self.keep_waiting(id, &read) {
                    let Read { envelope, states, bytes, .. } = read;
                    self.activate(id, Active::new(envelope, Some(states), bytes, lane), hurried);
                }
            }
            Some(Ticket::Look { client, id }) => self.looked(client, id, read),
            Some(Ticket::Confirm { client, id }) => self.confirm_read(client, id, &read),
            _ => {}
        }
    }

    pub(super) fn unreadable(&mut self, id: u64, why: ReadFailure) {
        self.reads = self.reads.saturating_sub(1);
        // It is read again, whatever was noted meanwhile.
        if self.confirming.get(&id).is_some_and(Confirming::is_noted) {
            self.confirming.remove(&id);
        }
        // It may have been held meanwhile, and stays so.
        let rest = |backlog: &mut Backlog, due_s| {
            if backlog.get(id).is_some_and(|known| known.place == Place::Active) {
                backlog.rest(id, due_s);
            }
        };
        match why {
            ReadFailure::Unknown => {
                self.log.warning(&format!("msg {id} is no longer in the spool"));
                self.backlog.remove(id);
            }
            ReadFailure::Damaged => {
                self.log.alert(&format!("msg {id} is damaged on the disk; it is not tried before tomorrow"));
                rest(&mut self.backlog, self.now.s.saturating_add(DAMAGED_PAUSE_S));
            }
            ReadFailure::Temporary => {
                self.log.warning(&format!("msg {id} cannot be read now; will try again"));
                rest(&mut self.backlog, self.now.s.saturating_add(UNREADABLE_PAUSE_S));
            }
        }
    }

    /// Hands the recipients that are due (`hurried`: all that are pending) to the scheduler.
    pub(super) fn activate(&mut self, id: u64, mut active: Active, hurried: bool) {
        if let Some(until_s) = active.hold_until_s().filter(|until_s| *until_s > self.now.s && active.pending > 0) {
            self.backlog.set_pending(id, active.pending);
            self.backlog.rest(id, until_s);
            return;
        }
        if active.is_too_late(self.now.s) {
            let late: Vec<u32> = active.pending().collect();
            self.take_up(id, active);
            self.too_late(id, &late);
            return self.settle(id);
        }
        active.dying = retry::is_dying(active.start_s(), self.now.s, self.settings.queuelifetime_s());
        let mut local = VecDeque::new();
        let mut groups = Groups::new();
        for at in 0..active.recipients.len() {
            let Ok(number) = u32::try_from(at) else { break };
            match active.recipients.get(at).map(|recipient| &recipient.state) {
                Some(RecipientState::Pending { due_s, .. }) if hurried || *due_s <= self.now.s || active.lane == Lane::Fresh => {}
                Some(RecipientState::Pending { due_s, .. }) => {
                    active.next_due_s = active.next_due_s.min(*due_s);
                    continue;
                }
                _ => continue,
            }
            match self.route(&mut active, at) {
                None => local.push_back(number),
                Some(group) => groups.entry(group).or_default().push_back(number),
            }
        }
        if self.park(id, &active, !local.is_empty(), &groups) {
            return;
        }
        self.take_up(id, active);
        self.push(id, local, groups);
        self.settle(id);
    }

    /// From now on the message is active; [`Engine::forget`] ends that.
    fn take_up(&mut self, id: u64, active: Active) {
        self.backlog.set_pending(id, active.pending);
        self.recipients_active = self.recipients_active.saturating_add(active.recipients.len());
        if let Some(count) = self.active_of.get_mut(lane_at(active.lane)) {
            *count = count.saturating_add(1);
        }
        if let Some(at_s) = active.deadline_s(self.now.s) {
            self.deadlines.insert((at_s, id));
        }
        self.active.insert(id, active);
    }

    /// Takes out of the schedule what waits there beyond the time to deliver it by: it fails, or its sender is told.
    pub(super) fn pass_deadlines(&mut self) {
        while let Some(&(at_s, id)) = self.deadlines.first().filter(|(at_s, _)| *at_s <= self.now.s) {
            self.deadlines.remove(&(at_s, id));
            let Some(active) = self.active.get_mut(&id).filter(|active| !active.closing && active.wish == Wish::Nothing) else {
                continue;
            };
            let waiting: Vec<u32> = match active.queued {
                0 => Vec::new(),
                _ => self.local.withdraw(id).into_iter().chain(self.remote.withdraw(id)).collect(),
            };
            active.queued = 0;
            if active.is_too_late(self.now.s) {
                self.too_late(id, &waiting);
            } else {
                waiting.into_iter().for_each(|recipient| active.put_off(recipient, self.now.s, self.now.s));
            }
            self.settle(id);
        }
    }

    /// Decides where a recipient goes and notes the address it is delivered to. `None`: local.
    fn route(&mut self, active: &mut Active, at: usize) -> Option<(Site, Rc<Route>)> {
        let address = active.envelope.recipients.get(at)?;
        let Ok(routed) = self.settings.routing().rewrite(address) else {
            return Some(nowhere("Sorry, this address gets too long here. (#5.1.3)\n"));
        };
        let is_virtual = matches!(routed, Routed::Virtual(_));
        let is_local = routed.is_local();
        let (Routed::Virtual(target) | Routed::Local(target) | Routed::Remote(target)) = routed;
        let remote = if is_local { None } else { Some(self.remote_route(&active.envelope.sender, &target)) };
        let changed = target != *address;
        if let Some(recipient) = active.recipients.get_mut(at) {
            recipient.is_virtual = is_virtual;
            recipient.target = changed.then_some(target);
        }
        remote
    }

    fn remote_route(&mut self, sender: &Address, target: &Address) -> (Site, Rc<Route>) {
        let host = target.domain().unwrap_or_default();
        if let Some(place) = self.settings.lmtp_place(host) {
            return lmtp_route(place);
        }
        if let Some((relay, port)) = self.settings.qmtp_route(sender, host) {
            // A site of its own, whatever else is at that address.
            let site = relay_site(&[b"qmtp ", &relay[..]].concat(), port);
            return (site, Rc::new(Route::To(job::Route::Qmtp { host: relay.into(), port })));
        }
        let route = self.settings.route(sender, host);
        if let Some(route) = route.as_ref().filter(|route| !route.relay.is_empty()) {
            let relay = job::Route::Relay { host: route.relay.clone().into(), port: route.port, login: route.login.clone() };
            return (relay_site(&route.relay, route.port), Rc::new(Route::To(relay)));
        }
        let Ok(domain) = Domain::new(host) else {
            return nowhere("Sorry, I couldn't find any host by that name. (#5.1.2)\n");
        };
        if let Some(route) = route {
            // The host itself at another port: a relay by its own name (its addresses, RFC 5321 §5.1 without MX).
            let relay = job::Route::Relay { host: domain.as_bytes().into(), port: route.port, login: route.login };
            return (relay_site(domain.as_bytes(), route.port), Rc::new(Route::To(relay)));
        }
        let (site, question) = self.sites.of(&domain, self.now.s, self.now.boot);
        if let Some(id) = question {
            self.out.push(Out::Site { id, domain: domain.clone() });
        }
        (site, Rc::new(Route::To(job::Route::Mx { domain })))
    }

    /// Leaves a message at rest whose only place has enough to do.
    fn park(&mut self, id: u64, active: &Active, has_local: bool, groups: &Groups) -> bool {
        let mut sites = groups.keys().map(|(site, _)| site);
        let (place, waiting) = match (has_local, sites.next(), sites.next()) {
            (true, None, None) => (Rc::from(LOCAL), self.local.waiting_at(&())),
            (false, Some(site), None) if self.remote.dead_until_s(site, self.now.s).is_none() => {
                (Rc::clone(site), self.remote.waiting_at(site))
            }
            _ => return false,
        };
        if waiting < PARK_OVER {
            return false;
        }
        self.parked.entry(place).or_default().push_back((id, active.lane));
        // If nobody wakes it, the schedule does.
        self.backlog.set_pending(id, active.pending);
        let due_s = retry::next_s(active.start_s(), self.now.s, Channel::Remote);
        self.backlog.rest(id, active.deadline_s(self.now.s).map_or(due_s, |at_s| due_s.min(at_s)));
        true
    }

    /// Wakes messages that were left for this place, if it has caught up.
    pub(super) fn unpark(&mut self, channel: Channel, site: Option<&Site>) {
        let (place, waiting, dead) = match (channel, site) {
            (Channel::Local, _) => (LOCAL, self.local.waiting_at(&()), false),
            (Channel::Remote, Some(site)) => {
                (&**site, self.remote.waiting_at(site), self.remote.dead_until_s(site, self.now.s).is_some())
            }
            (Channel::Remote, None) => return,
        };
        if waiting > WAKE_UNDER {
            return;
        }
        let Some(parked) = self.parked.get_mut(place) else { return };
        // Those of a dead site are at rest until their next attempt by the schedule.
        let count = if dead { 0 } else { PARK_OVER.saturating_sub(waiting).min(parked.len()) };
        let woken: Vec<(u64, Lane)> = parked.drain(..count).collect();
        if dead || parked.is_empty() {
            self.parked.remove(place);
        }
        for (id, lane) in woken {
            if self.backlog.get(id).is_some_and(|known| known.place == Place::Rest) {
                match lane {
                    Lane::Fresh => self.backlog.freshen(id),
                    Lane::Retry => self.backlog.rest(id, self.now.s),
                };
            }
        }
    }

    fn push(&mut self, id: u64, local: VecDeque<u32>, groups: Groups) {
        let Some(active) = self.active.get_mut(&id) else { return };
        let (lane, rank) = (active.lane, active.priority().rank());
        active.queued = u32::try_from(local.len()).unwrap_or(u32::MAX);
        if !local.is_empty() {
            let route = mailbox(active, &local);
            self.local.push(lane, vec![((), Work { message: id, route, recipients: local, batch_max: 1, rank })]);
        }
        let (mut parts, mut unreached) = (Vec::new(), Vec::new());
        for ((site, route), recipients) in groups {
            if let Some(until_s) = self.remote.dead_until_s(&site, self.now.s) {
                unreached.push((recipients.into(), until_s, self.remote.is_long_dead(&site, self.now.s)));
                continue;
            }
            active.queued = active.queued.saturating_add(u32::try_from(recipients.len()).unwrap_or(u32::MAX));
            parts.push((site, Work { message: id, route, recipients, batch_max: job::RECIPIENTS_MAX, rank }));
        }
        let limits: Vec<_> = parts.iter().map(|(site, work)| (Rc::clone(site), work.route.limit(&self.settings))).collect();
        self.remote.push(lane, parts);
        for (site, limit) in limits.into_iter().filter(|(_, limit)| *limit != SiteLimit::NONE) {
            self.remote.limit_site(&site, limit);
        }
        for (recipients, until_s, is_long_dead) in unreached {
            self.leave_alone(id, recipients, until_s, is_long_dead);
        }
    }

    /// These recipients' site is dead until `until_s`: what was never tried waits for that, the rest goes by the schedule. A message that
    /// has had its time waits for its last attempt too, unless the site has been dead for hours: all those attempts were made since this
    /// start, and where many wait behind one probe an hour, some would never come to an end. A moment's trouble is no such reason: the
    /// message may have been held until now, or this host may have been down.
    pub(super) fn leave_alone(&mut self, id: u64, recipients: Vec<u32>, until_s: u64, is_long_dead: bool) {
        let Some(active) = self.active.get_mut(&id) else { return };
        if active.dying && is_long_dead && !recipients.is_empty() && active.wish == Wish::Nothing {
            self.give_up(id, &recipients, UNREACHABLE);
            return;
        }
        let due_s = retry::next_s(active.start_s(), self.now.s, Channel::Remote);
        for recipient in recipients {
            let state = active.recipients.get(recipient as usize).map(|recipient| &recipient.state);
            let untried = matches!(state, Some(RecipientState::Pending { attempts: 0, .. }));
            active.put_off(recipient, if untried || active.dying { until_s } else { due_s }, self.now.s);
        }
    }
}

/// The mailbox of the only local recipient.
fn mailbox(active: &Active, local: &VecDeque<u32>) -> Mailbox {
    let (Some(recipient), 1) = (local.front(), local.len()) else { return None };
    let mut hasher = DefaultHasher::new();
    active.target(*recipient)?.as_bytes().to_ascii_lowercase().hash(&mut hasher);
    Some(hasher.finish())
}

/// An LMTP server is a site of its own, whatever else is at that address.
fn lmtp_route(place: &LmtpPlace) -> (Site, Rc<Route>) {
    let (site, route) = match place {
        LmtpPlace::Host { host, port } => {
            (relay_site(&[b"lmtp ", &host[..]].concat(), *port), job::Route::Lmtp { host: host.clone().into(), port: *port })
        }
        LmtpPlace::Socket(path) => (relay_site(path, 0), job::Route::LmtpSocket { path: path.clone().into() }),
    };
    (site, Rc::new(Route::To(route)))
}

fn nowhere(text: &'static str) -> (Site, Rc<Route>) {
    (Rc::from(&b"n"[..]), Rc::new(Route::Nowhere(text)))
}
