//! The invariants of the scheduler over arbitrary sequences of calls. Used by stable tests and by cargo-fuzz.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::fair::{Pick, Work};
use crate::{Backlog, Fair, Feedback, Lane, SiteLimit};

fn lane(byte: u8) -> Lane {
    if byte & 1 == 0 { Lane::Fresh } else { Lane::Retry }
}

/// Everything pushed comes out exactly once or is given back; the limit is never passed; batches are as long as allowed.
pub fn fair(data: &[u8]) {
    let mut input = data.iter().copied();
    let limit = u32::from(input.next().unwrap_or(3) % 9);
    let mut fair = Fair::new(limit, input.next().unwrap_or(0) & 1 == 0);
    let (mut waiting, mut running) = (BTreeSet::new(), VecDeque::<Pick<u8>>::new());
    let (mut message, mut now_s) = (0u64, 1_000_000u64);
    while let Some(op) = input.next() {
        let arg = input.next().unwrap_or(0);
        match op % 5 {
            0 => {
                message += 1;
                let parts = (0..arg % 4).map(|part| {
                    let recipients: VecDeque<u32> = (u32::from(part) * 10..u32::from(part) * 10 + u32::from(arg / 32)).collect();
                    waiting.extend(recipients.iter().map(|r| (message, *r)));
                    (part, Work { message, route: part, recipients, batch_max: usize::from(op / 64), rank: arg % 5 })
                });
                let parts = parts.collect();
                fair.push(lane(arg), parts);
            }
            1 => {
                if let Some(pick) = fair.next() {
                    assert!(!pick.recipients.is_empty());
                    assert!(pick.recipients.iter().all(|r| waiting.remove(&(pick.message, *r))), "handed out twice");
                    running.push_back(pick);
                    assert!(running.len() <= limit as usize, "over the limit");
                }
            }
            2 => {
                if let Some(pick) = running.pop_front() {
                    let feedback = [Feedback::Success, Feedback::Deferred, Feedback::Down, Feedback::Nothing];
                    let feedback = feedback.get(usize::from(arg % 4)).copied().unwrap_or(Feedback::Nothing);
                    now_s += u64::from(arg);
                    for work in fair.done(pick.slot, feedback, now_s) {
                        assert!(work.recipients.iter().all(|r| waiting.remove(&(work.message, *r))), "given back twice");
                    }
                }
            }
            3 if arg % 8 == 0 => {
                for r in fair.withdraw(message) {
                    assert!(waiting.remove(&(message, r)), "withdrawn twice");
                }
                assert!(!waiting.iter().any(|(m, _)| *m == message));
            }
            3 if arg % 8 == 1 => fair.limit_site(&(arg / 64), some_limit(arg)),
            3 if arg % 8 == 2 => fair.set_site_limits(|route| some_limit(arg ^ route)),
            _ => {
                now_s += u64::from(arg) * 60;
                fair.set_now(Duration::from_secs(now_s));
            }
        }
        assert!(fair.sites_limited() <= fair.sites());
        assert_eq!(fair.waiting(), waiting.len());
        assert_eq!(fair.in_flight() as usize, running.len());
    }
    drain(fair, waiting, running, now_s);
}

fn some_limit(byte: u8) -> SiteLimit {
    SiteLimit { at_a_time: u32::from(byte / 8 % 3), interval: Duration::from_secs(u64::from(byte / 32) * 100) }
}

fn drain(mut fair: Fair<u8, u8>, mut waiting: BTreeSet<(u64, u32)>, mut running: VecDeque<Pick<u8>>, now_s: u64) {
    fair.set_limit(2);
    fair.set_site_limits(|_| SiteLimit { at_a_time: 1, interval: Duration::from_secs(1) });
    loop {
        fair.set_now(fair.next_start().unwrap_or_default());
        while let Some(pick) = running.pop_front() {
            assert!(fair.done(pick.slot, Feedback::Success, now_s).is_empty());
        }
        let Some(pick) = fair.next() else { break };
        assert!(pick.recipients.iter().all(|r| waiting.remove(&(pick.message, *r))));
        running.push_back(pick);
    }
    assert!(waiting.is_empty(), "forgotten: {waiting:?}");
}

/// No order of calls loses a message or makes one come out twice.
pub fn backlog(data: &[u8]) {
    let (mut backlog, mut ids, mut active) = (Backlog::default(), BTreeSet::new(), BTreeSet::new());
    for pair in data.chunks_exact(2) {
        let (op, id, s) = match pair {
            [op, arg] => (op % 7, u64::from(arg % 16), u64::from(*arg)),
            _ => continue,
        };
        match op {
            0 => {
                backlog.insert_rest(id, 0, s, false);
                ids.insert(id);
                active.remove(&id);
            }
            1 => {
                backlog.insert_fresh(id, 0);
                ids.insert(id);
                active.remove(&id);
            }
            2 => {
                assert_eq!(backlog.remove(id).is_some(), ids.remove(&id));
                active.remove(&id);
            }
            3 => {
                assert_eq!(backlog.rest(id, s), ids.contains(&id));
                active.remove(&id);
            }
            4 => {
                backlog.hurry_all();
            }
            5 => {
                if let Some(id) = backlog.take_due(s) {
                    assert!(active.insert(id));
                }
            }
            _ => {
                if let Some(id) = backlog.take_fresh() {
                    assert!(active.insert(id));
                }
            }
        }
    }
    while let Some(id) = backlog.take_due(u64::MAX).or_else(|| backlog.take_fresh()) {
        assert!(active.insert(id), "came out twice");
    }
    assert_eq!(active, ids);
}
