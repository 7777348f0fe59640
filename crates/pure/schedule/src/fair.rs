//! Which delivery of a channel is next: fair among messages, within the windows of their sites and the channel's limit.
//!
//! Every unit of work (a transaction of up to a batch of recipients of one message at one site) carries a tag, as in start-time
//! fair queueing: a message's first unit gets the channel's present time, each further one a tick more, and the open unit with
//! the smallest tag goes first. So a list of five thousand recipients gets one unit in each round in which every other waiting
//! message gets one, whether its recipients are at one site or at a thousand. Fresh mail and retries have a time of their own:
//! of four picks one is the retries', and they never hold all slots, so that new mail finds one.
//!
//! Urgent work goes first: of all open units those of the lowest rank are picked, by their tags. But every fourth pick of a lane goes to the
//! smallest tag whatever its rank (priority is no licence to starve others, RFC 6710 §4.1): a flood of urgent mail leaves
//! the rest a quarter of the slots.
//!
//! A site may have a limit of the administrator's ([`SiteLimit`]) beside the window that it has earned: no more transactions at a
//! time, and none sooner after another than its rate allows. It holds for everything at that site, urgent mail, too.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use crate::Lane;
use crate::site::{Feedback, Site};

/// Most sites that are remembered while nothing waits for them.
pub const SITES_MAX: usize = 100_000;
/// One pick in so many is offered to the retries first.
const RETRY_TURN: u32 = 4;
/// One pick in so many goes by the tags alone.
const PLAIN_TURN: u32 = 4;
/// So many waiting units are looked at for one that goes well with another.
const ALIKE_LOOK_MAX: usize = 512;

/// Work of one message at one site that can go out together: same route, any number of recipients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work<R> {
    pub message: u64,
    pub route: R,
    /// Places in the envelope; not empty.
    pub recipients: VecDeque<u32>,
    /// Most recipients of one transaction; at least 1.
    pub batch_max: usize,
    /// Lower ranks go first; mail of one rank is as if there were no ranks.
    pub rank: u8,
}

/// A transaction to start. It holds a slot until [`Fair::done`].
#[derive(Debug, PartialEq, Eq)]
pub struct Pick<R> {
    pub message: u64,
    pub route: R,
    pub recipients: Vec<u32>,
    pub slot: Slot,
}

/// What a site gets at most, whatever its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiteLimit {
    /// Transactions at a time; 0 holds its mail.
    pub at_a_time: u32,
    /// From one start to the next, at least; zero: at once.
    pub interval: Duration,
}

impl SiteLimit {
    /// No limit but the window.
    pub const NONE: Self = Self { at_a_time: u32::MAX, interval: Duration::ZERO };

    /// What keeps to both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { at_a_time: self.at_a_time.min(other.at_a_time), interval: self.interval.max(other.interval) }
    }
}

/// A slot in use: give it back with [`Fair::done`], once.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    site: usize,
    lane: Lane,
}

impl Slot {
    /// Whose slot it is.
    #[must_use]
    pub fn lane(&self) -> Lane {
        self.lane
    }
}

/// A waiting unit's place in the order of those of its rank.
type Tag = (u64, u64);
/// A waiting unit's place in the order.
type Key = (u8, Tag);

#[derive(Debug)]
struct Waiting<R> {
    work: Work<R>,
    /// Ticks between two units of this work: the number of parts its message was pushed in.
    stride: u64,
}

#[derive(Debug)]
struct Place<K, R> {
    key: K,
    site: Site,
    in_flight: u32,
    limit: SiteLimit,
    /// Before that time since boot its rate allows no start.
    next: Duration,
    lanes: [BTreeMap<Key, Waiting<R>>; 2],
}

impl<K, R> Place<K, R> {
    fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.lanes.iter().all(BTreeMap::is_empty)
    }

    /// Is it the administrator's limit that keeps a transaction from starting?
    fn is_limited(&self, now: Duration) -> bool {
        self.in_flight >= self.limit.at_a_time || self.next > now
    }
}

/// See the module. `K` names sites, `R` routes.
#[derive(Debug)]
pub struct Fair<K, R> {
    limit: u32,
    /// Do sites have windows and back-off? The local channel is one site without.
    watches_sites: bool,
    keys: HashMap<K, usize>,
    places: Vec<Option<Place<K, R>>>,
    free: Vec<usize>,
    /// The first unit of each open site: (key, site).
    open: [BTreeSet<(Key, usize)>; 2],
    /// The same without ranks; the rank stands there to find the unit.
    plain: [BTreeSet<(Tag, u8, usize)>; 2],
    time: [u64; 2],
    in_flight: [u32; 2],
    waiting: usize,
    sequence: u64,
    turn: u32,
    /// Picks of each lane.
    picks: [u32; 2],
    /// Since boot.
    now: Duration,
    /// Sites that their rate holds back, by the time until when. One may have gone, or wait for a later time by now.
    paced: BTreeSet<(Duration, usize)>,
}

fn index(lane: Lane) -> usize {
    usize::from(lane == Lane::Retry)
}

const LANES: [Lane; 2] = [Lane::Fresh, Lane::Retry];

impl<K: Clone + Eq + Hash, R: Clone> Fair<K, R> {
    /// A channel with so many slots; `watches_sites`: sites have windows and are left alone when they are dead.
    #[must_use]
    pub fn new(limit: u32, watches_sites: bool) -> Self {
        Self {
            limit,
            watches_sites,
            keys: HashMap::new(),
            places: Vec::new(),
            free: Vec::new(),
            open: [BTreeSet::new(), BTreeSet::new()],
            plain: [BTreeSet::new(), BTreeSet::new()],
            time: [0; 2],
            in_flight: [0; 2],
            waiting: 0,
            sequence: 0,
            turn: 0,
            picks: [0; 2],
            now: Duration::ZERO,
            paced: BTreeSet::new(),
        }
    }

    /// The time since boot, which never goes back: whose rate allows a start again is open.
    pub fn set_now(&mut self, now: Duration) {
        self.now = self.now.max(now);
        while let Some((_, at)) = self.paced.first().copied().filter(|(until, _)| *until <= self.now) {
            self.paced.pop_first();
            self.close(at);
            self.reopen(at);
        }
    }

    /// When [`Fair::set_now`] is to be called at the latest for the sites' rates.
    #[must_use]
    pub fn next_start(&self) -> Option<Duration> {
        self.paced.first().map(|(until, _)| *until)
    }

    /// To be called behind [`Fair::push`] for a site with a limit: the tightest counts, until the site has nothing to do.
    pub fn limit_site(&mut self, key: &K, limit: SiteLimit) {
        let Some(at) = self.keys.get(key).copied() else { return };
        self.close(at);
        if let Some(place) = self.places.get_mut(at).and_then(Option::as_mut) {
            place.limit = place.limit.and(limit);
        }
        self.reopen(at);
    }

    /// The limits are other ones: those of all that waits are asked for anew. What runs already runs on.
    pub fn set_site_limits(&mut self, of: impl Fn(&R) -> SiteLimit) {
        for at in 0..self.places.len() {
            self.close(at);
            if let Some(place) = self.places.get_mut(at).and_then(Option::as_mut) {
                let waiting = place.lanes.iter().flat_map(BTreeMap::values);
                place.limit = waiting.fold(SiteLimit::NONE, |limit, waiting| limit.and(of(&waiting.work.route)));
                place.next = place.next.min(self.now.saturating_add(place.limit.interval));
            }
            self.reopen(at);
        }
    }

    /// Sites at which something waits for nothing but their limit.
    #[must_use]
    pub fn sites_limited(&self) -> usize {
        let waits = |place: &&Place<K, R>| !place.lanes.iter().all(BTreeMap::is_empty) && place.is_limited(self.now);
        self.places.iter().flatten().filter(waits).count()
    }

    /// concurrencylocal or concurrencyremote; 0 holds. What runs already runs on.
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Slots in use.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.iter().sum()
    }

    /// Recipients that wait for a slot.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Sites that something is known of.
    #[must_use]
    pub fn sites(&self) -> usize {
        self.keys.len()
    }

    /// The end of a site's back-off, while it lasts: its recipients are to be deferred, not pushed.
    #[must_use]
    pub fn dead_until_s(&self, key: &K, now_s: u64) -> Option<u64> {
        let place = self.places.get(*self.keys.get(key)?)?.as_ref()?;
        place.site.dead_until_s(now_s)
    }

    /// Is the site's back-off the longest? ([`crate::site::Site::is_long_dead`])
    #[must_use]
    pub fn is_long_dead(&self, key: &K, now_s: u64) -> bool {
        let place = self.keys.get(key).and_then(|at| self.places.get(*at)?.as_ref());
        place.is_some_and(|place| place.site.is_long_dead(now_s))
    }

    /// Ends every back-off: the administrator wants to know now.
    pub fn revive(&mut self) {
        for place in self.places.iter_mut().flatten() {
            place.site.revive();
        }
    }

    /// Parts of messages that wait for a site.
    #[must_use]
    pub fn waiting_at(&self, key: &K) -> usize {
        let place = self.keys.get(key).and_then(|at| self.places.get(*at)?.as_ref());
        place.map_or(0, |place| place.lanes.iter().map(BTreeMap::len).sum())
    }

    /// Adds all parts of one message: its work at each site.
    pub fn push(&mut self, lane: Lane, parts: Vec<(K, Work<R>)>) {
        let stride = u64::try_from(parts.len()).unwrap_or(u64::MAX);
        let start = self.now(lane).saturating_add(1);
        for ((key, work), tick) in parts.into_iter().zip(0..) {
            if work.recipients.is_empty() {
                continue;
            }
            self.waiting = self.waiting.saturating_add(work.recipients.len());
            let at = self.place_of(key);
            self.enqueue(at, lane, start.saturating_add(tick), Waiting { work, stride });
        }
    }

    /// Puts recipients back that a transaction did not get to: they go on at once, before everything else of that lane.
    pub fn push_front(&mut self, lane: Lane, key: K, work: Work<R>) {
        if !work.recipients.is_empty() {
            self.waiting = self.waiting.saturating_add(work.recipients.len());
            let (at, now) = (self.place_of(key), self.now(lane));
            self.enqueue(at, lane, now, Waiting { work, stride: 1 });
        }
    }

    fn now(&self, lane: Lane) -> u64 {
        self.time.get(index(lane)).copied().unwrap_or(0)
    }

    fn place_of(&mut self, key: K) -> usize {
        if let Some(at) = self.keys.get(&key).copied() {
            if let Some(place) = self.places.get_mut(at).and_then(Option::as_mut).filter(|place| place.is_idle()) {
                place.limit = SiteLimit::NONE;
            }
            return at;
        }
        if self.keys.len() >= SITES_MAX {
            self.forget_idle();
        }
        let place = Some(Place {
            key: key.clone(),
            site: Site::default(),
            in_flight: 0,
            limit: SiteLimit::NONE,
            next: Duration::ZERO,
            lanes: [BTreeMap::new(), BTreeMap::new()],
        });
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                self.places.push(None);
                self.places.len().saturating_sub(1)
            }
        };
        if let Some(slot) = self.places.get_mut(at) {
            *slot = place;
        }
        self.keys.insert(key, at);
        at
    }

    /// What was learnt of sites that have no work now is lost: they start again with the first window.
    fn forget_idle(&mut self) {
        for (at, slot) in self.places.iter_mut().enumerate() {
            if slot.as_ref().is_some_and(Place::is_idle) {
                if let Some(place) = slot.take() {
                    self.keys.remove(&place.key);
                }
                self.free.push(at);
            }
        }
    }

    fn enqueue(&mut self, at: usize, lane: Lane, tag: u64, waiting: Waiting<R>) {
        let tag = (tag, self.sequence);
        self.sequence = self.sequence.wrapping_add(1);
        self.close(at);
        if let Some(place) = self.places.get_mut(at).and_then(Option::as_mut)
            && let Some(queue) = place.lanes.get_mut(index(lane))
        {
            queue.insert((waiting.work.rank, tag), waiting);
        }
        self.reopen(at);
    }

    /// Takes a site out of the order; [`Fair::reopen`] puts it back as it is then.
    fn close(&mut self, at: usize) {
        let Some(place) = self.places.get(at).and_then(Option::as_ref) else { return };
        for ((queue, open), plain) in place.lanes.iter().zip(self.open.iter_mut()).zip(self.plain.iter_mut()) {
            if let Some((key, _)) = queue.first_key_value() {
                open.remove(&(*key, at));
            }
            if let Some((rank, tag)) = first_plain(queue) {
                plain.remove(&(tag, rank, at));
            }
        }
    }

    fn reopen(&mut self, at: usize) {
        let Some(place) = self.places.get(at).and_then(Option::as_ref) else { return };
        if self.watches_sites && (place.in_flight >= place.site.window() || place.is_limited(self.now)) {
            if place.next > self.now && !place.lanes.iter().all(BTreeMap::is_empty) {
                self.paced.insert((place.next, at));
            }
            return;
        }
        for ((queue, open), plain) in place.lanes.iter().zip(self.open.iter_mut()).zip(self.plain.iter_mut()) {
            if let Some((key, _)) = queue.first_key_value() {
                open.insert((*key, at));
            }
            if let Some((rank, tag)) = first_plain(queue) {
                plain.insert((tag, rank, at));
            }
        }
    }

    /// The next transaction, if a slot is free and an open site has work.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Pick<R>> {
        let retries_first = self.turn.checked_rem(RETRY_TURN) == Some(RETRY_TURN.saturating_sub(1));
        self.next_of(if retries_first { &[Lane::Retry, Lane::Fresh] } else { &LANES })
    }

    /// The same, of mail that was never tried; retries keep their turn for later.
    pub fn next_fresh(&mut self) -> Option<Pick<R>> {
        self.next_of(&[Lane::Fresh])
    }

    /// Could a retry start, if it were its turn?
    #[must_use]
    pub fn has_retry(&self) -> bool {
        self.in_flight() < self.limit && self.may_pick(Lane::Retry)
    }

    fn next_of(&mut self, order: &[Lane]) -> Option<Pick<R>> {
        if self.in_flight() >= self.limit {
            return None;
        }
        let lane = order.iter().copied().find(|lane| self.may_pick(*lane))?;
        let picks = self.picks.get_mut(index(lane))?;
        let is_plain = picks.checked_rem(PLAIN_TURN) == Some(PLAIN_TURN.saturating_sub(1));
        *picks = picks.wrapping_add(1);
        let (key, at) = if is_plain {
            let (tag, rank, at) = *self.plain.get(index(lane))?.first()?;
            ((rank, tag), at)
        } else {
            *self.open.get(index(lane))?.first()?
        };
        self.turn = self.turn.wrapping_add(1);
        self.close(at);
        let picked = self.pick(at, lane, key);
        self.reopen(at);
        picked
    }

    /// The next transaction of the same lane, site and route as `pick` that is the only one of its message, if a slot is free: what is
    /// cheaper together may go together. It is only looked for among the first of those that wait, and who waits longer than all of
    /// them is passed over by these few and no more.
    pub fn next_alike(&mut self, pick: &Pick<R>) -> Option<Pick<R>>
    where
        R: PartialEq,
    {
        let Slot { site: at, lane } = pick.slot;
        if self.in_flight() >= self.limit || !self.may_pick(lane) {
            return None;
        }
        let queue = self.places.get(at)?.as_ref()?.lanes.get(index(lane))?;
        let is_alike = |work: &Work<R>| work.recipients.len() == 1 && work.route == pick.route;
        let (key, _) = queue.iter().take(ALIKE_LOOK_MAX).find(|(_, waiting)| is_alike(&waiting.work))?;
        let (key, time) = (*key, self.time);
        self.close(at);
        let alike = self.pick(at, lane, key);
        // Those before it are still to be served: their time has not passed.
        self.time = time;
        self.reopen(at);
        alike
    }

    /// Retries leave an eighth of the slots, at least one of two, to fresh mail.
    fn may_pick(&self, lane: Lane) -> bool {
        let reserved = if self.limit > 1 { (self.limit / 8).max(1) } else { 0 };
        let room = match lane {
            Lane::Fresh => true,
            Lane::Retry => self.in_flight.get(index(lane)).is_some_and(|used| *used < self.limit.saturating_sub(reserved)),
        };
        room && self.open.get(index(lane)).is_some_and(|open| !open.is_empty())
    }

    fn pick(&mut self, at: usize, lane: Lane, key: Key) -> Option<Pick<R>> {
        let (rank, tag) = key;
        let place = self.places.get_mut(at)?.as_mut()?;
        let queue = place.lanes.get_mut(index(lane))?;
        let mut waiting = queue.remove(&key)?;
        let count = waiting.work.batch_max.max(1).min(waiting.work.recipients.len());
        let recipients: Vec<u32> = waiting.work.recipients.drain(..count).collect();
        let (message, route) = (waiting.work.message, waiting.work.route.clone());
        place.in_flight = place.in_flight.saturating_add(1);
        place.next = self.now.saturating_add(place.limit.interval);
        if !waiting.work.recipients.is_empty() {
            queue.insert((rank, (tag.0.saturating_add(waiting.stride), self.sequence)), waiting);
            self.sequence = self.sequence.wrapping_add(1);
        }
        self.waiting = self.waiting.saturating_sub(recipients.len());
        if let Some(used) = self.in_flight.get_mut(index(lane)) {
            *used = used.saturating_add(1);
        }
        if let Some(time) = self.time.get_mut(index(lane)) {
            *time = (*time).max(tag.0);
        }
        Some(Pick { message, route, recipients, slot: Slot { site: at, lane } })
    }

    /// A transaction is over: its slot is free. Returns the work that waited for the site if that is dead now: the caller
    /// defers it.
    #[must_use = "this work is no longer here"]
    pub fn done(&mut self, slot: Slot, feedback: Feedback, now_s: u64) -> Vec<Work<R>> {
        if let Some(used) = self.in_flight.get_mut(index(slot.lane)) {
            *used = used.saturating_sub(1);
        }
        self.close(slot.site);
        let mut homeless = Vec::new();
        if let Some(place) = self.places.get_mut(slot.site).and_then(Option::as_mut) {
            place.in_flight = place.in_flight.saturating_sub(1);
            if self.watches_sites {
                place.site.learn(feedback, self.limit, now_s);
                if place.site.dead_until_s(now_s).is_some() {
                    homeless = place.lanes.iter_mut().flat_map(|queue| std::mem::take(queue).into_values()).collect();
                }
            }
        }
        self.reopen(slot.site);
        self.forget_plain(slot.site);
        let work: Vec<Work<R>> = homeless.into_iter().map(|waiting| waiting.work).collect();
        self.waiting = self.waiting.saturating_sub(work.iter().map(|work| work.recipients.len()).sum());
        work
    }

    /// A site without work of which nothing special is known needs no memory.
    fn forget_plain(&mut self, at: usize) {
        let Some(slot) = self.places.get_mut(at) else { return };
        let now = self.now;
        let idle = |place: &Place<K, R>| place.is_idle() && place.site.is_plain() && place.next <= now;
        if slot.as_ref().is_some_and(idle)
            && let Some(place) = slot.take()
        {
            self.keys.remove(&place.key);
            self.free.push(at);
        }
    }

    /// The site of a slot in use.
    #[must_use]
    pub fn key(&self, slot: &Slot) -> Option<&K> {
        self.places.get(slot.site)?.as_ref().map(|place| &place.key)
    }

    /// Takes back everything of a message that waits: it was held or removed. Costs time in proportion to all that waits.
    pub fn withdraw(&mut self, message: u64) -> Vec<u32> {
        let mut taken = Vec::new();
        for at in 0..self.places.len() {
            let Some(place) = self.places.get(at).and_then(Option::as_ref) else { continue };
            if !place.lanes.iter().any(|queue| queue.values().any(|waiting| waiting.work.message == message)) {
                continue;
            }
            self.close(at);
            if let Some(place) = self.places.get_mut(at).and_then(Option::as_mut) {
                for queue in &mut place.lanes {
                    queue.retain(|_, waiting| {
                        let keep = waiting.work.message != message;
                        if !keep {
                            taken.extend(waiting.work.recipients.iter().copied());
                        }
                        keep
                    });
                }
            }
            self.reopen(at);
            self.forget_plain(at);
        }
        self.waiting = self.waiting.saturating_sub(taken.len());
        taken
    }
}

/// The unit with the smallest tag: the first of one of the ranks, of which there are few.
fn first_plain<R>(queue: &BTreeMap<Key, Waiting<R>>) -> Option<Key> {
    let mut first: Option<Key> = None;
    let mut next = queue.first_key_value();
    while let Some((&(rank, tag), _)) = next {
        first = first.filter(|(_, smallest)| *smallest < tag).or(Some((rank, tag)));
        let Some(beyond) = rank.checked_add(1) else { break };
        next = queue.range((beyond, (0, 0))..).next();
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn work(message: u64, recipients: std::ops::Range<u32>, batch_max: usize) -> Work<u8> {
        Work { message, route: 0, recipients: recipients.collect(), batch_max, rank: 9 }
    }

    #[test]
    fn a_small_message_overtakes_a_big_list_at_one_site_and_at_many() {
        for sites in [1u32, 1000] {
            let mut fair = Fair::new(1, true);
            let parts = (0..sites).map(|site| (site, work(1, 0..5000 / sites, 1))).collect();
            fair.push(Lane::Fresh, parts);
            for _ in 0..10 {
                let pick = fair.next().unwrap();
                assert!(fair.done(pick.slot, Feedback::Success, 0).is_empty());
            }
            fair.push(Lane::Fresh, vec![(7, work(2, 0..1, 1))]);
            let order: Vec<u64> = (0..3)
                .map(|_| {
                    let pick = fair.next().unwrap();
                    assert!(fair.done(pick.slot, Feedback::Success, 0).is_empty());
                    pick.message
                })
                .collect();
            assert!(order[..2].contains(&2), "{order:?}");
        }
    }

    #[test]
    fn batches_windows_and_limits() {
        let mut fair = Fair::new(20, true);
        fair.push(Lane::Fresh, vec![('a', work(1, 0..250, 100)), ('b', work(1, 250..251, 100))]);
        let picks: Vec<_> = std::iter::from_fn(|| fair.next()).collect();
        assert_eq!(picks.iter().map(|p| p.recipients.len()).collect::<Vec<_>>(), [100, 1, 100, 50]);
        assert_eq!((fair.in_flight(), fair.waiting()), (4, 0));
        for message in 2..20 {
            fair.push(Lane::Fresh, vec![('a', work(message, 0..1, 100))]);
        }
        let more: Vec<_> = std::iter::from_fn(|| fair.next()).collect();
        assert_eq!(more.len(), 2, "the window of a new site is five");
        for pick in picks.into_iter().chain(more) {
            assert!(fair.done(pick.slot, Feedback::Success, 0).is_empty());
        }
        assert_eq!(std::iter::from_fn(|| fair.next()).count(), 10, "each success opens it by one");
    }

    #[test]
    fn what_is_alike_goes_together_and_passes_over_nobody_for_long() {
        let mut fair = Fair::new(4, false);
        let unit = |message: u64, route: char, recipients: u32| {
            vec![((), Work { message, route, recipients: (0..recipients).collect(), batch_max: 1, rank: 9 })]
        };
        for (message, route, recipients) in
            [(1, 'a', 1), (2, 'b', 1), (3, 'a', 2), (4, 'a', 1), (5, 'b', 1), (6, 'a', 1), (7, 'a', 1)]
        {
            fair.push(Lane::Fresh, unit(message, route, recipients));
        }
        let first = fair.next().unwrap();
        let alike: Vec<_> = std::iter::from_fn(|| fair.next_alike(&first)).collect();
        assert_eq!(alike.iter().map(|pick| pick.message).collect::<Vec<_>>(), [4, 6, 7], "the limit is four");
        assert!(fair.next().is_none() && fair.next_alike(&first).is_none());
        for pick in alike.into_iter().chain([first]) {
            assert!(fair.done(pick.slot, Feedback::Success, 0).is_empty());
        }
        assert_eq!(std::iter::from_fn(|| fair.next()).map(|pick| pick.message).collect::<Vec<_>>(), [2, 3, 5, 3]);
    }

    #[test]
    fn urgent_mail_goes_first_and_starves_nobody() {
        let mut fair = Fair::new(1, false);
        let unit = |message: u64, rank: u8| vec![((), Work { rank, ..work(message, 0..1, 1) })];
        for (message, rank) in [(1, 9), (2, 18), (3, 0), (4, 9), (5, 5)] {
            fair.push(Lane::Fresh, unit(message, rank));
        }
        let next = |fair: &mut Fair<(), u8>| {
            let pick = fair.next().unwrap();
            assert!(fair.done(pick.slot, Feedback::Success, 0).is_empty());
            pick.message
        };
        // The fourth is whose turn it is by time: that of the least urgent one, which came before.
        assert_eq!((0..5).map(|_| next(&mut fair)).collect::<Vec<_>>(), [3, 5, 1, 2, 4]);
        for message in 100..140 {
            fair.push(Lane::Fresh, unit(message, 18));
        }
        // A flood: with every pick another urgent one comes.
        let mut slow = 0;
        for message in 1000..1160 {
            fair.push(Lane::Fresh, unit(message, 0));
            slow += u32::from(next(&mut fair) < 1000);
        }
        assert_eq!(slow, 40, "one in four");
    }

    #[test]
    fn alike_retries_leave_slots_to_fresh_mail_too() {
        let mut fair = Fair::new(8, false);
        for message in 0..20 {
            fair.push(Lane::Retry, vec![((), work(message, 0..1, 1))]);
        }
        let first = fair.next().unwrap();
        assert_eq!(std::iter::from_fn(|| fair.next_alike(&first)).count(), 6);
    }

    #[test]
    fn zero_holds_and_one_still_works() {
        let mut fair = Fair::new(0, false);
        fair.push(Lane::Retry, vec![((), work(1, 0..2, 1))]);
        assert!(fair.next().is_none());
        fair.set_limit(1);
        let pick = fair.next().unwrap();
        assert!(fair.next().is_none());
        assert!(fair.done(pick.slot, Feedback::Nothing, 0).is_empty());
        assert!(fair.next().is_some());
    }

    #[test]
    fn retries_leave_a_slot_and_fresh_mail_leaves_them_turns() {
        let mut fair = Fair::new(8, false);
        fair.push(Lane::Retry, vec![((), work(1, 0..100, 1))]);
        let held: Vec<_> = std::iter::from_fn(|| fair.next()).collect();
        assert_eq!(held.len(), 7);
        fair.push(Lane::Fresh, vec![((), work(2, 0..100, 1))]);
        assert_eq!(fair.next().unwrap().message, 2);
        for pick in held {
            assert!(fair.done(pick.slot, Feedback::Success, 0).is_empty());
        }
        let retries = std::iter::from_fn(|| {
            let Pick { message, slot, .. } = fair.next()?;
            assert!(fair.done(slot, Feedback::Success, 0).is_empty());
            Some(message)
        });
        assert_eq!(retries.take(40).filter(|message| *message == 1).count(), 10);
    }

    #[test]
    fn a_dead_site_gives_its_work_back_and_comes_to_life_with_one_probe() {
        let mut fair = Fair::new(20, true);
        for message in 0..9 {
            fair.push(Lane::Retry, vec![('x', work(message, 0..1, 1))]);
        }
        let (a, b) = (fair.next().unwrap(), fair.next().unwrap());
        assert!(fair.done(a.slot, Feedback::Down, 1000).is_empty());
        let deferred = fair.done(b.slot, Feedback::Down, 1000);
        assert_eq!(deferred.len(), 7);
        assert_eq!((fair.waiting(), fair.dead_until_s(&'x', 1000)), (0, Some(1060)));
        assert_eq!(fair.dead_until_s(&'x', 1060), None);
        for message in 0..3 {
            fair.push(Lane::Retry, vec![('x', work(message, 0..1, 1))]);
        }
        let probe = fair.next().unwrap();
        assert!(fair.next().is_none(), "one at a time until one gets through");
        assert!(fair.done(probe.slot, Feedback::Success, 1061).is_empty());
        assert!(fair.next().is_some());
    }

    #[test]
    fn memory_of_sites_is_bounded() {
        let mut fair = Fair::new(1, true);
        for site in 0..250_000u32 {
            fair.push(Lane::Fresh, vec![(site, work(1, 0..1, 1))]);
            let pick = fair.next().unwrap();
            assert!(fair.done(pick.slot, Feedback::Down, 0).is_empty());
        }
        assert!(fair.sites() <= SITES_MAX && fair.places.len() <= SITES_MAX);
    }

    #[test]
    fn fuzz_corpus() {
        for seed in 0..200u64 {
            let bytes: Vec<u8> =
                (0..400u64).map(|n| n.wrapping_mul(seed * 2 + 1).wrapping_mul(0x9E37_79B9).to_le_bytes()[2]).collect();
            crate::fuzz::fair(&bytes);
            crate::fuzz::backlog(&bytes);
        }
    }

    proptest! {
        #[test]
        fn nothing_is_forgotten_or_doubled(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            crate::fuzz::fair(&bytes);
        }

        /// Between its arrival and its first pick every other waiting message gets at most two units in that lane.
        #[test]
        fn fairness_bound(sizes in proptest::collection::vec((1u32..200, 1u32..40), 1..12), warm in 0usize..300) {
            let mut fair = Fair::new(1, true);
            for ((size, sites), message) in sizes.iter().zip(1u64..) {
                let sites = (*sites).min(*size);
                let parts = (0..sites).map(|s| (s, work(message, s * (size / sites)..(s + 1) * (size / sites), 1))).collect();
                fair.push(Lane::Fresh, parts);
            }
            for _ in 0..warm {
                let Some(pick) = fair.next() else { break };
                prop_assert!(fair.done(pick.slot, Feedback::Success, 0).is_empty());
            }
            fair.push(Lane::Fresh, vec![(999, work(99, 0..1, 1))]);
            let mut before = BTreeMap::<u64, u32>::new();
            loop {
                let pick = fair.next().unwrap();
                prop_assert!(fair.done(pick.slot, Feedback::Success, 0).is_empty());
                if pick.message == 99 { break; }
                *before.entry(pick.message).or_default() += 1;
            }
            prop_assert!(before.values().all(|units| *units <= 2), "{before:?}");
        }
    }

    fn limit(at_a_time: u32, interval_ms: u64) -> SiteLimit {
        SiteLimit { at_a_time, interval: Duration::from_millis(interval_ms) }
    }

    #[test]
    fn a_site_gets_no_more_than_its_limit() {
        let mut fair = Fair::new(20, true);
        for message in 0..6 {
            fair.push(Lane::Fresh, vec![('a', work(message, 0..1, 1)), ('b', work(message, 1..2, 1))]);
            fair.limit_site(&'a', limit(2, 0));
        }
        let picks: Vec<_> = std::iter::from_fn(|| fair.next()).collect();
        let at = |key: char| picks.iter().filter(|pick| fair.key(&pick.slot) == Some(&key)).count();
        assert_eq!((at('a'), at('b'), fair.sites_limited()), (2, 5, 1));
        for pick in picks {
            assert!(fair.done(pick.slot, Feedback::Success, 0).is_empty());
        }
        assert_eq!(std::iter::from_fn(|| fair.next()).count(), 3, "two at a, and the last one at b");
        fair.set_site_limits(|_| SiteLimit::NONE);
        assert_eq!((std::iter::from_fn(|| fair.next()).count(), fair.sites_limited()), (2, 0), "other limits count at once");
        fair.set_site_limits(|_| limit(0, 0));
        fair.push(Lane::Fresh, vec![('c', work(9, 0..1, 1))]);
        fair.limit_site(&'c', limit(0, 0));
        assert!(fair.next().is_none() && fair.sites_limited() == 1, "zero holds");
    }

    #[test]
    fn a_site_is_begun_with_no_more_often_than_its_rate_says() {
        let ms = Duration::from_millis;
        let mut fair = Fair::new(20, true);
        fair.set_now(ms(1000));
        for message in 0..3 {
            fair.push(Lane::Fresh, vec![('a', work(message, 0..1, 1))]);
            fair.limit_site(&'a', limit(u32::MAX, 500));
        }
        let done = |fair: &mut Fair<char, u8>| {
            let pick = fair.next()?;
            assert!(fair.done(pick.slot, Feedback::Nothing, 0).is_empty());
            Some(pick.message)
        };
        assert_eq!((done(&mut fair), done(&mut fair)), (Some(0), None));
        assert_eq!(fair.next_start(), Some(ms(1500)));
        fair.set_now(ms(1499));
        assert_eq!(done(&mut fair), None);
        fair.set_now(ms(1500));
        assert_eq!((done(&mut fair), done(&mut fair)), (Some(1), None));
        fair.set_now(ms(9000));
        assert_eq!((done(&mut fair), done(&mut fair)), (Some(2), None));
        // It has nothing to do, and still may not begin again so soon.
        fair.push(Lane::Retry, vec![('a', work(7, 0..1, 1))]);
        fair.limit_site(&'a', limit(u32::MAX, 500));
        assert_eq!(done(&mut fair), None);
        fair.set_now(ms(9500));
        assert_eq!((done(&mut fair), fair.next_start()), (Some(7), None));
        fair.set_now(ms(20_000));
        fair.push(Lane::Fresh, vec![('a', work(8, 0..2, 1))]);
        assert_eq!((done(&mut fair), done(&mut fair)), (Some(8), Some(8)), "without a limit there is none");
        assert_eq!(fair.sites(), 0);
    }

    #[test]
    fn withdrawn_work_is_gone() {
        let mut fair = Fair::new(4, true);
        fair.push(Lane::Fresh, vec![(1, work(1, 0..3, 1)), (2, work(1, 3..5, 1))]);
        fair.push(Lane::Fresh, vec![(1, work(2, 0..2, 1))]);
        let taken: BTreeSet<u32> = fair.withdraw(1).into_iter().collect();
        assert_eq!(taken, (0..5).collect());
        assert_eq!(std::iter::from_fn(|| fair.next()).map(|pick| pick.message).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(fair.waiting(), 0);
    }
}
