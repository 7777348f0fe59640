//! Every message of the queue: when it is due, whether it is held, and which one is to be looked at next.
//!
//! A message is *at rest* (due at a time), *waiting fresh* (never tried, and there was no room to try it at once), *active* (its
//! recipients are with [`crate::Fair`]) or *held*. At rest it costs under 100 bytes; its recipients are on the disk.
//! Asking for the next due message and putting one back are O(log n).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Rest,
    Fresh,
    Active,
    Held,
}

/// What is known of every message without reading the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub arrival_s: u64,
    /// While [`Place::Rest`]: UNIX seconds of the next attempt.
    pub due_s: u64,
    /// Recipients that are not done, as [`Backlog::set_pending`] last said.
    pub pending: u32,
    pub place: Place,
}

/// See the module. Messages are their ids, which grow with time.
#[derive(Debug, Default)]
pub struct Backlog {
    messages: BTreeMap<u64, Known>,
    /// (due, id) of messages at rest.
    due: BTreeSet<(u64, u64)>,
    /// The same, of those that were at rest when everything was asked for at once: due whatever their time says.
    hurried: BTreeSet<(u64, u64)>,
    /// Ids waiting fresh, oldest first; one that has left is skipped.
    fresh: VecDeque<u64>,
    held: usize,
    active: usize,
}

impl Backlog {
    /// Adds a message that is being tried from the first moment on.
    pub fn insert_active(&mut self, id: u64, arrival_s: u64) {
        self.insert(id, Known { arrival_s, due_s: arrival_s, pending: 0, place: Place::Active });
    }

    /// Adds a new message for which there is no room now: it comes out before all that was tried already.
    pub fn insert_fresh(&mut self, id: u64, arrival_s: u64) {
        self.insert(id, Known { arrival_s, due_s: arrival_s, pending: 0, place: Place::Fresh });
    }

    /// Adds a message found at start.
    pub fn insert_rest(&mut self, id: u64, arrival_s: u64, due_s: u64, held: bool) {
        self.insert(id, Known { arrival_s, due_s, pending: 0, place: if held { Place::Held } else { Place::Rest } });
    }

    fn insert(&mut self, id: u64, known: Known) {
        self.remove(id);
        self.messages.insert(id, known);
        self.enter(id, known);
    }

    fn enter(&mut self, id: u64, known: Known) {
        match known.place {
            Place::Rest => {
                self.due.insert((known.due_s, id));
            }
            Place::Fresh => self.fresh.push_back(id),
            Place::Active => self.active = self.active.saturating_add(1),
            Place::Held => self.held = self.held.saturating_add(1),
        }
    }

    fn leave(&mut self, id: u64, known: Known) {
        match known.place {
            Place::Rest => {
                let _ = self.due.remove(&(known.due_s, id)) || self.hurried.remove(&(known.due_s, id));
            }
            // Skipped when its turn comes.
            Place::Fresh => {}
            Place::Active => self.active = self.active.saturating_sub(1),
            Place::Held => self.held = self.held.saturating_sub(1),
        }
    }

    fn put(&mut self, id: u64, change: impl FnOnce(&mut Known)) -> bool {
        let Some(&before) = self.messages.get(&id) else { return false };
        self.leave(id, before);
        let mut after = before;
        change(&mut after);
        self.messages.insert(id, after);
        self.enter(id, after);
        true
    }

    /// The message has left the queue.
    pub fn remove(&mut self, id: u64) -> Option<Known> {
        let known = self.messages.remove(&id)?;
        self.leave(id, known);
        Some(known)
    }

    /// Back to rest until `due_s`. False if there is no such message.
    pub fn rest(&mut self, id: u64, due_s: u64) -> bool {
        self.put(id, |known| (known.due_s, known.place) = (due_s, Place::Rest))
    }

    /// Puts a message among those waiting fresh, behind them. False if there is no such message.
    pub fn freshen(&mut self, id: u64) -> bool {
        self.put(id, |known| known.place = Place::Fresh)
    }

    /// For the summary that is kept on the disk.
    pub fn set_pending(&mut self, id: u64, pending: u32) {
        if let Some(known) = self.messages.get_mut(&id) {
            known.pending = pending;
        }
    }

    /// Nothing is tried until [`Backlog::rest`].
    pub fn hold(&mut self, id: u64) -> bool {
        self.put(id, |known| known.place = Place::Held)
    }

    /// Every message at rest is due now, in the order in which it would have been.
    pub fn hurry_all(&mut self) -> usize {
        // Moves the whole tree when nothing was hurried before, and merges two sorted lists otherwise.
        self.hurried.append(&mut self.due);
        self.hurried.len()
    }

    /// A message at rest is due now. False if it is not at rest.
    pub fn hurry(&mut self, id: u64) -> bool {
        let Some(known) = self.messages.get(&id).filter(|known| known.place == Place::Rest) else { return false };
        self.due.remove(&(known.due_s, id));
        self.hurried.insert((known.due_s, id));
        true
    }

    /// The next message waiting fresh; it is active from now on.
    pub fn take_fresh(&mut self) -> Option<u64> {
        while let Some(id) = self.fresh.pop_front() {
            if self.messages.get(&id).is_some_and(|known| known.place == Place::Fresh) {
                self.activate(id);
                return Some(id);
            }
        }
        None
    }

    /// The next message that was hurried; it is active from now on.
    pub fn take_hurried(&mut self) -> Option<u64> {
        let (_, id) = *self.hurried.first()?;
        self.activate(id);
        Some(id)
    }

    /// The next message at rest that is due, the hurried ones first; it is active from now on.
    pub fn take_due(&mut self, now_s: u64) -> Option<u64> {
        if let Some(id) = self.take_hurried() {
            return Some(id);
        }
        let (_, id) = *self.due.first().filter(|(due_s, _)| *due_s <= now_s)?;
        self.activate(id);
        Some(id)
    }

    fn activate(&mut self, id: u64) {
        self.put(id, |known| known.place = Place::Active);
    }

    /// Does one wait fresh (perhaps)?
    #[must_use]
    pub fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// When [`Backlog::take_due`] has something: UNIX seconds, 0 for now.
    #[must_use]
    pub fn next_due_s(&self) -> Option<u64> {
        if self.hurried.is_empty() { self.due.first().map(|(due_s, _)| *due_s) } else { Some(0) }
    }

    #[must_use]
    pub fn get(&self, id: u64) -> Option<Known> {
        self.messages.get(&id).copied()
    }

    /// Messages with an id greater than `after`, in order.
    pub fn after(&self, after: u64) -> impl Iterator<Item = (u64, Known)> {
        let from = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        self.messages.range::<u64, _>(from).map(|(id, known)| (*id, *known))
    }

    /// All of them, held and active ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Messages at rest: tried and waiting for their next attempt.
    #[must_use]
    pub fn resting(&self) -> usize {
        self.due.len().saturating_add(self.hurried.len())
    }

    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    #[must_use]
    pub fn active(&self) -> usize {
        self.active
    }

    /// When the oldest message arrived.
    #[must_use]
    pub fn oldest_arrival_s(&self) -> Option<u64> {
        self.messages.first_key_value().map(|(_, known)| known.arrival_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn comes_out_when_due_and_in_order() {
        let mut backlog = Backlog::default();
        backlog.insert_rest(1, 10, 300, false);
        backlog.insert_rest(2, 10, 200, false);
        backlog.insert_rest(3, 10, 100, true);
        assert_eq!((backlog.len(), backlog.resting(), backlog.held()), (3, 2, 1));
        assert_eq!((backlog.next_due_s(), backlog.take_due(199)), (Some(200), None));
        assert_eq!((backlog.take_due(400), backlog.take_due(400), backlog.take_due(400)), (Some(2), Some(1), None));
        assert!(backlog.rest(3, 0));
        assert_eq!(backlog.take_due(0), Some(3));
        assert_eq!((backlog.active(), backlog.held()), (3, 0));
        assert!(!backlog.rest(4, 0) && !backlog.hold(4));
    }

    #[test]
    fn hurried_ones_come_once() {
        let mut backlog = Backlog::default();
        for id in 1..=3 {
            backlog.insert_rest(id, 0, 1000 * id, false);
        }
        assert_eq!(backlog.hurry_all(), 3);
        assert_eq!((backlog.next_due_s(), backlog.take_due(0)), (Some(0), Some(1)));
        assert!(backlog.rest(1, 500));
        assert!(backlog.hold(2) && !backlog.hurry(2));
        assert_eq!((backlog.take_due(0), backlog.take_due(0)), (Some(3), None));
        assert!(backlog.rest(3, 900) && backlog.hurry(3) && backlog.hurry(3));
        assert_eq!((backlog.take_hurried(), backlog.take_hurried(), backlog.resting()), (Some(3), None, 1));
        assert_eq!(backlog.take_due(500), Some(1));
    }

    #[test]
    fn fresh_ones_come_first_come_first() {
        let mut backlog = Backlog::default();
        (1..=3).for_each(|id| backlog.insert_fresh(id, 7));
        backlog.remove(1);
        assert_eq!((backlog.take_fresh(), backlog.get(2).unwrap().place), (Some(2), Place::Active));
        assert!(backlog.hold(3));
        assert_eq!((backlog.take_fresh(), backlog.has_fresh()), (None, false));
        assert!(backlog.freshen(2) && backlog.freshen(2));
        assert_eq!((backlog.take_fresh(), backlog.take_fresh(), backlog.active()), (Some(2), None, 1));
        assert_eq!(backlog.oldest_arrival_s(), Some(7));
    }

    proptest! {
        /// Against a plain list: nothing is lost, nothing comes twice, the counters are right.
        #[test]
        fn any_order_of_calls(calls in proptest::collection::vec((0u8..8, 1u64..8, 0u64..50), 0..120)) {
            let (mut backlog, mut model) = (Backlog::default(), BTreeMap::<u64, Place>::new());
            for (call, id, s) in calls {
                match call {
                    0 => { backlog.insert_rest(id, 0, s, false); model.insert(id, Place::Rest); }
                    1 => { backlog.insert_fresh(id, 0); model.insert(id, Place::Fresh); }
                    2 => { backlog.insert_active(id, 0); model.insert(id, Place::Active); }
                    3 => { prop_assert_eq!(backlog.remove(id).is_some(), model.remove(&id).is_some()); }
                    4 => { prop_assert_eq!(backlog.rest(id, s), model.get_mut(&id).map(|p| *p = Place::Rest).is_some()); }
                    5 => { prop_assert_eq!(backlog.hold(id), model.get_mut(&id).map(|p| *p = Place::Held).is_some()); }
                    6 => if let Some(id) = backlog.take_due(s) { prop_assert_eq!(model.insert(id, Place::Active), Some(Place::Rest)); },
                    _ => { backlog.hurry_all(); }
                }
                let count = |place| model.values().filter(|p| **p == place).count();
                prop_assert_eq!(backlog.len(), model.len());
                prop_assert_eq!(backlog.resting(), count(Place::Rest));
                prop_assert_eq!(backlog.held(), count(Place::Held));
                prop_assert_eq!(backlog.active(), count(Place::Active));
            }
            let mut fresh = 0;
            while backlog.take_fresh().is_some() { fresh += 1; }
            prop_assert_eq!(fresh, model.values().filter(|p| **p == Place::Fresh).count());
            let mut due = 0;
            while backlog.take_due(u64::MAX).is_some() { due += 1; }
            prop_assert_eq!(due, model.values().filter(|p| **p == Place::Rest).count());
        }
    }

    #[test]
    fn a_million_at_rest_is_quick() {
        let mut backlog = Backlog::default();
        for id in 0..200_000u64 {
            backlog.insert_rest(id, id, id % 1000, false);
        }
        backlog.hurry_all();
        let mut taken = 0;
        while let Some(id) = backlog.take_due(0) {
            backlog.rest(id, 5000);
            taken += 1;
        }
        assert_eq!(taken, 200_000);
    }
}
