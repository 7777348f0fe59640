//! Deferred mail gives way to new mail: while new mail comes in, retries start at a modest pace; when none does, as fast as they can.
//!
//! A backlog of a million that is due at once keeps every processor busy for minutes, and each of the many steps of a new letter
//! would wait for its turn among that. Retries have waited for minutes or days already. Counts by a clock that never goes back;
//! owns no timer: [`Pace::wait`] says when to ask again.

use std::time::Duration;

/// Retries a second for each processor while new mail comes in: with what a delivery costs (about half a millisecond of all processes
/// together) that leaves most of the machine to the new mail, and a million is still through within hours.
pub const RETRIES_PER_S: u32 = 150;
/// No new mail for so long: the backlog may have everything.
const QUIET_AFTER: Duration = Duration::from_secs(1);
/// As much as this time allows may start at once, so that the caller need not wake for each; but only so few that a letter which comes
/// at that moment hardly waits for them.
const BURST: Duration = Duration::from_millis(10);

/// See the module. The times given must not go back.
#[derive(Debug, Clone)]
pub struct Pace {
    interval: Duration,
    /// When the next one is due, if they go one by one.
    next: Duration,
    new_mail: Option<Duration>,
}

impl Pace {
    /// For so many retries a second; 0 counts as 1.
    #[must_use]
    pub fn new(per_s: u32) -> Self {
        let interval = Duration::from_secs(1).checked_div(per_s.max(1)).unwrap_or(Duration::from_secs(1));
        Self { interval, next: Duration::ZERO, new_mail: None }
    }

    /// A new message came.
    pub fn new_mail(&mut self, now: Duration) {
        self.new_mail = Some(now);
    }

    fn is_quiet(&self, now: Duration) -> bool {
        self.new_mail.is_none_or(|at| now.saturating_sub(at) >= QUIET_AFTER)
    }

    /// May a retry start?
    #[must_use]
    pub fn may(&self, now: Duration) -> bool {
        self.is_quiet(now) || self.next <= now.saturating_add(BURST)
    }

    /// A retry has started.
    pub fn take(&mut self, now: Duration) {
        if !self.is_quiet(now) {
            self.next = self.next.max(now).saturating_add(self.interval);
        }
    }

    /// How long until one may start; some more may by then, too. Zero if one may now.
    #[must_use]
    pub fn wait(&self, now: Duration) -> Duration {
        if self.may(now) {
            return Duration::ZERO;
        }
        let quiet = self.new_mail.map_or(Duration::ZERO, |at| at.saturating_add(QUIET_AFTER).saturating_sub(now));
        let paced = self.next.saturating_sub(now.saturating_add(BURST)).saturating_add(BURST / 4);
        paced.min(quiet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn without_new_mail_there_is_no_limit() {
        let mut pace = Pace::new(1);
        for now in [0, 0, 0, 5000] {
            assert!(pace.may(ms(now)));
            pace.take(ms(now));
        }
        pace.new_mail(ms(6000));
        let started = (0..100)
            .take_while(|_| {
                let may = pace.may(ms(6000));
                pace.take(ms(6000));
                may
            })
            .count();
        assert_eq!(started, 1, "what was done in peace is not held against them");
        assert!(!pace.may(ms(6999)) && pace.may(ms(7000)));
    }

    #[test]
    fn beside_new_mail_they_keep_the_pace() {
        let mut pace = Pace::new(500);
        let (mut started, mut now, mut looks) = (0, ms(1000), 0);
        while now < ms(11_000) {
            pace.new_mail(now);
            while pace.may(now) {
                pace.take(now);
                started += 1;
            }
            looks += 1;
            assert!(pace.wait(now) > Duration::ZERO);
            now += pace.wait(now);
        }
        assert!((5000..=5025).contains(&started), "{started}");
        // Half as often as it starts one.
        assert!(looks <= 2510, "{looks}");
    }

    proptest! {
        /// Whatever happens in between: after the wait one may start, and never more than pace and burst allow.
        #[test]
        fn bounded_and_never_stuck(steps in proptest::collection::vec((0u64..300, any::<bool>()), 1..100), per_s in 0u32..5000) {
            let (mut pace, mut now, mut started, mut since) = (Pace::new(per_s), Duration::ZERO, 0u32, None);
            for (step, mail) in steps {
                now += ms(step);
                if mail {
                    pace.new_mail(now);
                }
                if pace.is_quiet(now) {
                    (started, since) = (0, None);
                    continue;
                }
                let since = *since.get_or_insert(now);
                while pace.may(now) {
                    pace.take(now);
                    started += 1;
                }
                let most = (now - since + BURST).as_secs_f64() * f64::from(per_s.max(1)) + 2.0;
                prop_assert!(f64::from(started) <= most, "{started} of {most}");
                prop_assert!(pace.may(now + pace.wait(now)));
            }
        }
    }
}
