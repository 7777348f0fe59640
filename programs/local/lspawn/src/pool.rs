//! Which warm worker does a piece of work: pure bookkeeping over worker numbers, no processes.
//!
//! A worker serves one user or one virtual domain. There are at most [`WORKERS_MAX`]; when all places are taken the worker that
//! has been idle longest makes room, and with none idle the work waits.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::target::Key;

/// Warm workers in all; each costs a process.
pub const WORKERS_MAX: usize = 128;
/// Workers of a virtual domain that is busy.
pub const PER_DOMAIN_MAX: usize = 4;
/// Workers of a system user: one mailbox gains little from more.
pub const PER_USER_MAX: usize = 2;
/// Requests that a worker has at once, so that it can share directory syncs among them.
pub const IN_FLIGHT_MAX: usize = 8;
/// An idle worker ends after this.
pub const IDLE_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Slot {
    key: Key,
    in_flight: usize,
    idle_since: Duration,
}

/// What to do with a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Give it to this worker.
    Use(u64),
    /// Start a worker.
    Start,
    /// End this idle worker and start another.
    Replace(u64),
    /// Later.
    Wait,
}

/// All warm workers.
#[derive(Debug, Default)]
pub struct Pool(BTreeMap<u64, Slot>);

impl Pool {
    /// Where work for `key` goes now. A virtual domain's: to an idle worker, to a new one while the domain may have more, to the least
    /// loaded one. A system user's: to a worker with room, since what it has at once shares a directory sync; then the same.
    #[must_use]
    pub fn choose(&self, key: &Key) -> Choice {
        let own = || self.0.iter().filter(|(_, slot)| slot.key == *key);
        let has_room = |(_, slot): &(&u64, &Slot)| slot.in_flight < IN_FLIGHT_MAX;
        if let (Key::System(_), Some((id, _))) = (key, own().filter(has_room).max_by_key(|(_, slot)| slot.in_flight)) {
            return Choice::Use(*id);
        }
        let least = own().min_by_key(|(_, slot)| slot.in_flight);
        if let Some((id, slot)) = least
            && slot.in_flight == 0
        {
            return Choice::Use(*id);
        }
        let count_max = match key {
            Key::System(_) => PER_USER_MAX,
            Key::Virtual(..) => PER_DOMAIN_MAX,
        };
        if own().count() < count_max {
            if self.0.len() < WORKERS_MAX {
                return Choice::Start;
            }
            if let Some(id) = self.longest_idle() {
                return Choice::Replace(id);
            }
        }
        match least {
            Some((id, slot)) if slot.in_flight < IN_FLIGHT_MAX => Choice::Use(*id),
            _ => Choice::Wait,
        }
    }

    pub fn started(&mut self, id: u64, key: Key, now: Duration) {
        self.0.insert(id, Slot { key, in_flight: 0, idle_since: now });
    }

    /// A request went to the worker.
    pub fn assigned(&mut self, id: u64) {
        if let Some(slot) = self.0.get_mut(&id) {
            slot.in_flight = slot.in_flight.saturating_add(1);
        }
    }

    /// The worker answered one.
    pub fn finished(&mut self, id: u64, now: Duration) {
        if let Some(slot) = self.0.get_mut(&id) {
            slot.in_flight = slot.in_flight.saturating_sub(1);
            slot.idle_since = now;
        }
    }

    /// The worker is gone, or gets no more work.
    pub fn ended(&mut self, id: u64) {
        self.0.remove(&id);
    }

    /// Workers that have had nothing to do for [`IDLE_MAX`].
    #[must_use]
    pub fn stale(&self, now: Duration) -> Vec<u64> {
        let is_stale = |slot: &Slot| slot.in_flight == 0 && now.saturating_sub(slot.idle_since) >= IDLE_MAX;
        self.0.iter().filter(|(_, slot)| is_stale(slot)).map(|(id, _)| *id).collect()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn longest_idle(&self) -> Option<u64> {
        self.0.iter().filter(|(_, slot)| slot.in_flight == 0).min_by_key(|(_, slot)| slot.idle_since).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::Id;
    use wire::Domain;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn user(uid: u32) -> Key {
        Key::System(Id { uid, gid: uid })
    }

    #[test]
    fn an_idle_worker_first_then_new_ones_then_sharing_then_waiting() {
        let mut pool = Pool::default();
        let key = Key::Virtual(Domain::new(b"v.example").unwrap(), Id { uid: 1, gid: 1 }, "/m".into());
        assert_eq!(pool.choose(&key), Choice::Start);
        for id in 1..=4 {
            assert_eq!(pool.choose(&key), Choice::Start);
            pool.started(id, key.clone(), s(0));
            assert_eq!(pool.choose(&key), Choice::Use(id));
            pool.assigned(id);
        }
        for round in 0..(IN_FLIGHT_MAX - 1) * 4 {
            let Choice::Use(id) = pool.choose(&key) else { panic!("round {round}") };
            pool.assigned(id);
        }
        assert_eq!(pool.choose(&key), Choice::Wait);
        assert_eq!(pool.choose(&user(1)), Choice::Start);
        pool.finished(3, s(9));
        assert_eq!(pool.choose(&key), Choice::Use(3));
    }

    #[test]
    fn the_longest_idle_makes_room() {
        let mut pool = Pool::default();
        for id in 0..WORKERS_MAX as u64 {
            pool.started(id, user(u32::try_from(id).unwrap()), s(100 - id / 2));
            if id != 126 && id != 50 {
                pool.assigned(id);
            }
        }
        assert_eq!(pool.choose(&user(9999)), Choice::Replace(126));
        pool.assigned(126);
        pool.assigned(50);
        assert_eq!(pool.choose(&user(9999)), Choice::Wait);
        assert_eq!(pool.choose(&user(7)), Choice::Use(7), "its one worker is shared, since there is no place for a second");
        pool.ended(3);
        assert_eq!(pool.choose(&user(9999)), Choice::Start);
    }

    #[test]
    fn idle_workers_get_stale_and_busy_ones_do_not() {
        let mut pool = Pool::default();
        pool.started(1, user(1), s(0));
        pool.started(2, user(2), s(0));
        pool.assigned(2);
        assert_eq!(pool.stale(s(29)), []);
        assert_eq!(pool.stale(s(30)), [1]);
        pool.finished(2, s(50));
        assert_eq!(pool.stale(s(79)), [1]);
        assert_eq!(pool.stale(s(80)), [1, 2]);
    }
}
