//! How much each login has sent within the last hour and the last day.
//!
//! Time is cut into slots, and a window is the slots that it touches: never more than the limit passes in any hour or day, and what
//! was sent counts a slot longer at most (ten minutes, an hour). At most [`LOGINS_MAX`] logins are known, the ones that sent last;
//! nothing survives the process, so a restart gives everybody his limits anew.

use control::submission::SubmissionLimits;
use ipc::auth::Limit;
use std::collections::HashMap;
use std::time::Duration;

/// Logins that are remembered; 300 bytes and the name for each.
const LOGINS_MAX: usize = 65_536;
const HOUR_S: u64 = 3600;
const DAY_S: u64 = 86_400;
/// Slots of the windows: so many parts of the hour and the day, and the one that has begun.
const HOUR_SLOTS: usize = 7;
const DAY_SLOTS: usize = 25;

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sent {
    Yes,
    /// `is_news`: for the first time within a day.
    Limited {
        limit: Limit,
        is_news: bool,
    },
}

/// All logins that sent something.
#[derive(Debug, Default)]
pub(crate) struct Sending(HashMap<Vec<u8>, Usage>);

#[derive(Debug)]
struct Usage {
    hour: Window<HOUR_SLOTS>,
    day: Window<DAY_SLOTS>,
    last: Duration,
    /// No news before.
    quiet_until: Duration,
}

impl Sending {
    /// A message of `login` to so many recipients: counted, unless it would pass a limit.
    pub(crate) fn send(&mut self, login: &[u8], recipients: u32, limits: &SubmissionLimits, now: Duration) -> Sent {
        let usage = self.usage(login, now);
        if let Some(limit) = usage.passed(recipients, limits, now) {
            let is_news = now >= usage.quiet_until;
            if is_news {
                usage.quiet_until = now.saturating_add(Duration::from_secs(DAY_S));
            }
            return Sent::Limited { limit, is_news };
        }
        usage.last = now;
        usage.hour.add(recipients);
        usage.day.add(recipients);
        Sent::Yes
    }

    /// The limit that the next message of `login` would pass, whoever it is for.
    pub(crate) fn passed(&mut self, login: &[u8], limits: &SubmissionLimits, now: Duration) -> Option<Limit> {
        self.0.get_mut(login)?.passed(1, limits, now)
    }

    fn usage(&mut self, login: &[u8], now: Duration) -> &mut Usage {
        if !self.0.contains_key(login) && self.0.len() >= LOGINS_MAX {
            self.forget(now);
        }
        self.0.entry(login.to_vec()).or_insert_with(|| Usage {
            hour: Window::new(HOUR_S / (HOUR_SLOTS as u64 - 1)),
            day: Window::new(DAY_S / (DAY_SLOTS as u64 - 1)),
            last: now,
            quiet_until: Duration::ZERO,
        })
    }

    /// Makes room: who sent nothing for two days goes, else who sent least recently.
    fn forget(&mut self, now: Duration) {
        self.0.retain(|_, usage| now.saturating_sub(usage.last) < Duration::from_secs(2 * DAY_S));
        if self.0.len() >= LOGINS_MAX
            && let Some(oldest) = self.0.iter().min_by_key(|(_, usage)| usage.last).map(|(login, _)| login.clone())
        {
            self.0.remove(&oldest);
        }
    }
}

impl Usage {
    fn passed(&mut self, recipients: u32, limits: &SubmissionLimits, now: Duration) -> Option<Limit> {
        let (hour_messages, hour_recipients) = self.hour.sums(now);
        let (day_messages, day_recipients) = self.day.sums(now);
        [
            (limits.messages_per_hour, hour_messages, 1, Limit::MessagesPerHour {}),
            (limits.recipients_per_hour, hour_recipients, recipients, Limit::RecipientsPerHour {}),
            (limits.messages_per_day, day_messages, 1, Limit::MessagesPerDay {}),
            (limits.recipients_per_day, day_recipients, recipients, Limit::RecipientsPerDay {}),
        ]
        .into_iter()
        .find_map(|(most, sent, more, limit)| {
            let is_passed = most != 0 && sent.saturating_add(u64::from(more)) > u64::from(most);
            is_passed.then_some(limit)
        })
    }
}

/// Messages and recipients by slots of time.
#[derive(Debug)]
struct Window<const N: usize> {
    slot_s: u64,
    /// The slot of now; its place is its number modulo `N`.
    current: u64,
    slots: [(u32, u32); N],
}

impl<const N: usize> Window<N> {
    fn new(slot_s: u64) -> Self {
        Self { slot_s, current: 0, slots: [(0, 0); N] }
    }

    /// Everything within the window that ends now.
    fn sums(&mut self, now: Duration) -> (u64, u64) {
        let slot = now.as_secs() / self.slot_s;
        // Slots that have begun since are empty; after a whole window all are.
        let from = self.current.max(slot.saturating_sub(N as u64));
        for begun in from..slot {
            *self.place(begun.saturating_add(1)) = (0, 0);
        }
        self.current = self.current.max(slot);
        self.slots.iter().fold((0, 0), |(messages, recipients), (m, r)| {
            (u64::saturating_add(messages, u64::from(*m)), u64::saturating_add(recipients, u64::from(*r)))
        })
    }

    /// A message in the slot that [`Window::sums`] came to.
    fn add(&mut self, recipients: u32) {
        let (m, r) = self.place(self.current);
        (*m, *r) = (m.saturating_add(1), r.saturating_add(recipients));
    }

    #[allow(clippy::indexing_slicing)]
    fn place(&mut self, slot: u64) -> &mut (u32, u32) {
        let at = usize::try_from(slot % N as u64).unwrap_or(0);
        &mut self.slots[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: SubmissionLimits =
        SubmissionLimits { messages_per_hour: 0, recipients_per_hour: 0, messages_per_day: 0, recipients_per_day: 0 };

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_limit_is_exact() {
        for (limits, limit) in [
            (SubmissionLimits { messages_per_hour: 3, ..NONE }, Limit::MessagesPerHour {}),
            (SubmissionLimits { recipients_per_hour: 6, ..NONE }, Limit::RecipientsPerHour {}),
            (SubmissionLimits { messages_per_day: 3, ..NONE }, Limit::MessagesPerDay {}),
            (SubmissionLimits { recipients_per_day: 7, ..NONE }, Limit::RecipientsPerDay {}),
        ] {
            let mut sending = Sending::default();
            for _ in 0..3 {
                assert_eq!(sending.send(b"a", 2, &limits, s(5)), Sent::Yes);
            }
            assert_eq!(sending.send(b"a", 2, &limits, s(5)), Sent::Limited { limit: limit.clone(), is_news: true });
            assert_eq!(sending.send(b"a", 2, &limits, s(6)), Sent::Limited { limit, is_news: false });
            assert_eq!(sending.send(b"b", 2, &limits, s(5)), Sent::Yes, "another login");
            assert_eq!(sending.passed(b"c", &limits, s(5)), None);
        }
        assert_eq!(Sending::default().send(b"a", u32::MAX, &NONE, s(5)), Sent::Yes);
    }

    #[test]
    fn what_would_pass_a_limit_is_not_counted() {
        let limits = SubmissionLimits { recipients_per_day: 10, ..NONE };
        let mut sending = Sending::default();
        assert_eq!(sending.send(b"a", 9, &limits, s(5)), Sent::Yes);
        assert!(matches!(sending.send(b"a", 2, &limits, s(5)), Sent::Limited { .. }));
        assert_eq!(sending.passed(b"a", &limits, s(5)), None);
        assert_eq!(sending.send(b"a", 1, &limits, s(5)), Sent::Yes);
        assert_eq!(sending.passed(b"a", &limits, s(5)), Some(Limit::RecipientsPerDay {}));
    }

    /// Whenever it sends what it can: no more in any window, and nearly so much.
    #[test]
    fn no_window_holds_more_than_the_limit() {
        let limits = SubmissionLimits { messages_per_hour: 20, messages_per_day: 200, ..NONE };
        let mut sending = Sending::default();
        let times: Vec<u64> =
            (0..4 * DAY_S).step_by(37).filter(|now| sending.send(b"a", 1, &limits, s(*now)) == Sent::Yes).collect();
        for (window, most) in [(HOUR_S, 20), (DAY_S, 200)] {
            let densest = times.iter().map(|from| times.iter().filter(|at| (*from..from + window).contains(at)).count()).max();
            assert_eq!(densest, Some(most), "within {window} s");
        }
        assert!(times.len() > 600, "{}", times.len());
    }

    #[test]
    fn time_heals_and_news_come_once_a_day() {
        let limits = SubmissionLimits { messages_per_hour: 1, ..NONE };
        let mut sending = Sending::default();
        let news: usize = (0..10 * DAY_S)
            .step_by(60)
            .map(|now| match sending.send(b"a", 1, &limits, s(now)) {
                Sent::Limited { is_news, .. } => usize::from(is_news),
                Sent::Yes => 0,
            })
            .sum();
        assert_eq!(news, 10);
        assert_eq!(sending.send(b"a", 1, &limits, s(100 * DAY_S)), Sent::Yes);
    }

    #[test]
    fn the_table_has_a_bound() {
        let mut sending = Sending::default();
        for n in 0..LOGINS_MAX + 3 {
            sending.send(n.to_string().as_bytes(), 1, &NONE, s(n as u64 / 1000));
        }
        assert_eq!(sending.0.len(), LOGINS_MAX);
        assert!(sending.0.contains_key(&(LOGINS_MAX + 2).to_string().into_bytes()[..]));
        sending.send(b"later", 1, &NONE, s(3 * DAY_S));
        assert_eq!(sending.0.len(), 1);
        assert!(size_of::<Usage>() <= 320);
    }
}
