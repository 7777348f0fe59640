//! What a site has shown of itself: how many transactions it gets at a time, and whether it is left alone for a while.
//!
//! The window opens by one with every success until the first trouble, from then on by one a window's worth of successes; it
//! shrinks by one when a whole transaction was deferred and is halved when the site could not be reached. Two unreachable
//! attempts in a row make the site dead: nothing is tried until its back-off has passed, then one transaction at a time, until
//! one gets through. The back-off doubles from one minute to one hour.

/// What a transaction told about the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feedback {
    /// It talked to us and took or refused recipients for good.
    Success,
    /// It talked to us and deferred every recipient.
    Deferred,
    /// It could not be reached, or the connection broke.
    Down,
    /// Nothing: the attempt ended before the site was asked.
    Nothing,
}

/// Transactions a site gets at first, before anything is known of it.
pub const WINDOW_START: u32 = 5;
/// Attempts in a row that must fail before a site is left alone.
const DOWN_COUNT: u32 = 2;
/// Attempts in a row that must fail before the back-off is the longest.
const LONG_DOWN_COUNT: u32 = DOWN_COUNT + 6;
/// The first back-off.
pub const BACKOFF_MIN_S: u64 = 60;
/// The longest back-off, so that a site that comes back is noticed within the hour.
pub const BACKOFF_MAX_S: u64 = 3600;

/// See the module.
#[derive(Debug, Clone)]
pub struct Site {
    window: u32,
    /// Successes towards the next step of the window.
    credit: u32,
    /// No trouble yet: the window opens with every success.
    opening: bool,
    /// Unreachable attempts in a row.
    down: u32,
    dead_until_s: u64,
}

impl Default for Site {
    fn default() -> Self {
        Self { window: WINDOW_START, credit: 0, opening: true, down: 0, dead_until_s: 0 }
    }
}

impl Site {
    /// Transactions that may run at a time.
    #[must_use]
    pub fn window(&self) -> u32 {
        if self.down >= DOWN_COUNT { 1 } else { self.window }
    }

    /// The end of the back-off, while it lasts.
    #[must_use]
    pub fn dead_until_s(&self, now_s: u64) -> Option<u64> {
        // A clock that was set back does not make a back-off longer than it can be.
        (self.dead_until_s > now_s && self.dead_until_s <= now_s.saturating_add(BACKOFF_MAX_S)).then_some(self.dead_until_s)
    }

    /// Has it been out of reach for so many attempts that the back-off is the longest? They take two hours at least.
    #[must_use]
    pub fn is_long_dead(&self, now_s: u64) -> bool {
        self.dead_until_s(now_s).is_some() && self.down >= LONG_DOWN_COUNT
    }

    /// Ends the back-off; one attempt at a time is made until one gets through.
    pub fn revive(&mut self) {
        self.dead_until_s = 0;
    }

    /// Is there nothing worth remembering?
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.opening && self.window == WINDOW_START && self.down == 0
    }

    /// Learns from a transaction. `limit` is the most that the window can be of use.
    pub fn learn(&mut self, feedback: Feedback, limit: u32, now_s: u64) {
        match feedback {
            Feedback::Success => self.success(limit),
            Feedback::Deferred => {
                self.down = 0;
                self.shrink(self.window.saturating_sub(1));
            }
            Feedback::Down => self.failure(now_s),
            Feedback::Nothing => {}
        }
    }

    fn success(&mut self, limit: u32) {
        (self.down, self.dead_until_s) = (0, 0);
        self.credit = self.credit.saturating_add(1);
        if self.opening || self.credit >= self.window {
            self.credit = 0;
            self.window = self.window.saturating_add(1).min(limit.max(WINDOW_START));
        }
    }

    fn shrink(&mut self, to: u32) {
        (self.opening, self.credit, self.window) = (false, 0, to.max(1));
    }

    fn failure(&mut self, now_s: u64) {
        self.shrink(self.window / 2);
        // Answers of transactions that ran beside the one that killed the site say nothing new.
        if self.dead_until_s(now_s).is_some() {
            return;
        }
        self.down = self.down.saturating_add(1);
        if let Some(rounds) = self.down.checked_sub(DOWN_COUNT) {
            let backoff_s = BACKOFF_MIN_S.checked_shl(rounds.min(8)).unwrap_or(BACKOFF_MAX_S).min(BACKOFF_MAX_S);
            self.dead_until_s = now_s.saturating_add(backoff_s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_on_success_and_shrinks_on_trouble() {
        let mut site = Site::default();
        for _ in 0..3 {
            site.learn(Feedback::Success, 20, 0);
        }
        assert_eq!(site.window(), WINDOW_START + 3);
        site.learn(Feedback::Deferred, 20, 0);
        assert_eq!(site.window(), WINDOW_START + 2);
        for _ in 0..site.window() - 1 {
            site.learn(Feedback::Success, 20, 0);
        }
        assert_eq!(site.window(), WINDOW_START + 2, "after trouble a whole window of successes is needed");
        site.learn(Feedback::Success, 20, 0);
        assert_eq!(site.window(), WINDOW_START + 3);
        site.learn(Feedback::Down, 20, 0);
        assert_eq!(site.window(), 4);
        for _ in 0..1000 {
            site.learn(Feedback::Success, 20, 0);
        }
        assert_eq!(site.window(), 20);
        site.learn(Feedback::Nothing, 20, 0);
        assert_eq!(site.window(), 20);
    }

    #[test]
    fn dies_after_two_and_doubles_up_to_an_hour() {
        let mut site = Site::default();
        site.learn(Feedback::Down, 20, 1000);
        assert_eq!(site.dead_until_s(1000), None);
        let mut now = 1000;
        for expected in [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600] {
            site.learn(Feedback::Down, 20, now);
            site.learn(Feedback::Down, 20, now);
            assert_eq!(site.dead_until_s(now), Some(now + expected));
            assert_eq!(site.window(), 1);
            now += expected;
            assert_eq!(site.dead_until_s(now), None);
        }
        site.revive();
        assert_eq!((site.is_plain(), site.window(), site.dead_until_s(now)), (false, 1, None));
        site.learn(Feedback::Success, 20, now);
        assert_eq!(site.dead_until_s(now), None);
        site.learn(Feedback::Down, 20, now);
        assert_eq!(site.dead_until_s(now), None, "one success forgives");
    }

    #[test]
    fn a_clock_set_back_does_not_lengthen_the_backoff() {
        let mut site = Site::default();
        site.learn(Feedback::Down, 20, 1_000_000);
        site.learn(Feedback::Down, 20, 1_000_000);
        assert!(site.dead_until_s(1_000_000).is_some());
        assert_eq!(site.dead_until_s(10), None);
    }
}
