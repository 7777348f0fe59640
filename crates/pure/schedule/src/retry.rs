//! qmail's retry schedule (qmail-family §3.2): attempts grow rarer with the square of their number.
//!
//! Attempt n of a message is made (c·n)² seconds after its birth, c being 10 for local and 20 for remote recipients, so the
//! pause depends on the age alone and needs no state. Times are UNIX seconds.

/// Who delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    Local,
    Remote,
}

impl Channel {
    /// The word in log lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }

    fn step(self) -> u64 {
        match self {
            Self::Local => 10,
            Self::Remote => 20,
        }
    }
}

/// When a recipient that was tried at `now_s` is tried again: later than `now_s`, and never later than the schedule counted
/// from now would say, even when the clock was set back behind the message's birth.
#[must_use]
pub fn next_s(birth_s: u64, now_s: u64, channel: Channel) -> u64 {
    let birth_s = birth_s.min(now_s);
    let root = now_s.saturating_sub(birth_s).isqrt().saturating_add(channel.step());
    birth_s.saturating_add(root.saturating_mul(root))
}

/// A due time found on the disk, as it counts now. None that was ever computed lies behind what an attempt made now would give,
/// so one that does comes from a clock that has been set back since: then the message is due. Never makes a message later.
#[must_use]
pub fn clamp_s(birth_s: u64, now_s: u64, due_s: u64) -> u64 {
    if now_s < birth_s || due_s > next_s(birth_s, now_s, Channel::Remote) { now_s.min(due_s) } else { due_s }
}

/// Is an attempt made now the last one? (queuelifetime; the attempt itself is still made.)
#[must_use]
pub fn is_dying(birth_s: u64, now_s: u64, lifetime_s: u64) -> bool {
    now_s > birth_s.saturating_add(lifetime_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_schedule_of_the_reference() {
        for (channel, expected) in
            [(Channel::Local, [100, 400, 900, 1600, 2500, 3600]), (Channel::Remote, [400, 1600, 3600, 6400, 10_000, 14_400])]
        {
            let (birth, mut now) = (1_000_000, 1_000_000);
            for after in expected {
                now = next_s(birth, now, channel);
                assert_eq!(now, birth + after);
            }
        }
        assert_eq!(next_s(1000, 1399, Channel::Remote), 1000 + 39 * 39);
    }

    #[test]
    fn dying_begins_behind_the_lifetime() {
        assert!(!is_dying(100, 100 + 604_800, 604_800));
        assert!(is_dying(100, 101 + 604_800, 604_800));
        assert!(!is_dying(100, 0, 0));
        assert!(!is_dying(100, u64::MAX, u64::MAX));
    }

    proptest! {
        #[test]
        fn later_than_now_and_monotone(birth in any::<u64>(), now in 0..u64::MAX / 4, more in 0u64..1_000_000) {
            for channel in [Channel::Local, Channel::Remote] {
                prop_assert!(next_s(birth, now, channel) > now);
                if birth <= now {
                    prop_assert!(next_s(birth, now + more, channel) >= next_s(birth, now, channel));
                }
                // An older message waits longer, but for what rounding the root down takes away.
                prop_assert!(next_s(birth, now, channel) <= next_s(0, now, channel) + 2 * now.isqrt());
            }
        }

        #[test]
        fn a_clock_set_back_makes_due_never_later(birth in 0u64..1 << 40, tried in 0u64..1 << 21, back in 0u64..1 << 22) {
            let due = next_s(birth, birth + tried, Channel::Remote);
            let now = (birth + tried).saturating_sub(back);
            let clamped = clamp_s(birth, now, due);
            prop_assert!(clamped <= due);
            prop_assert!(clamped <= now || now >= birth);
            // Without a step the time stands.
            prop_assert_eq!(clamp_s(birth, birth + tried, due), due);
        }
    }
}
