//! How much each login has sent within the last hour and the last day.
//!
//! Time is cut into slots, and a window is the slots that it touches: never more than the limit passes in any hour or day, and what
//! was sent counts a slot longer at most (ten minutes, an hour). At most [`LOGINS_MAX`] logins are known, the ones that sent last. What
//! is here is kept on the disk by `sending_log`.

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

/// What a part of the past is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A message: it counts for the hour and for the day.
    Message,
    /// Counts for the hour alone.
    Hour,
    /// Counts for the day alone.
    Day,
    /// The limit was told of.
    News,
}

impl Kind {
    const ALL: [(Self, char); 4] = [(Self::Message, 'm'), (Self::Hour, 'h'), (Self::Day, 'd'), (Self::News, 'q')];

    pub(crate) fn letter(self) -> char {
        Self::ALL.into_iter().find_map(|(kind, letter)| (kind == self).then_some(letter)).unwrap_or('m')
    }

    pub(crate) fn of(letter: u8) -> Option<Self> {
        Self::ALL.into_iter().find_map(|(kind, known)| (known == char::from(letter)).then_some(kind))
    }
}

/// A part of what a login has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) kind: Kind,
    pub(crate) messages: u32,
    pub(crate) recipients: u32,
}

impl Past {
    pub(crate) fn message(recipients: u32) -> Self {
        Self { kind: Kind::Message, messages: 1, recipients }
    }

    pub(crate) fn news() -> Self {
        Self { kind: Kind::News, messages: 0, recipients: 0 }
    }
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
        let sent = usage.judge(recipients, limits, now);
        if sent == Sent::Yes {
            usage.last = now;
            usage.hour.add(recipients);
            usage.day.add(recipients);
        }
        sent
    }

    /// May the next message of `login` go to one recipient at least? Counts nothing.
    pub(crate) fn look(&mut self, login: &[u8], limits: &SubmissionLimits, now: Duration) -> Sent {
        self.0.get_mut(login).map_or(Sent::Yes, |usage| usage.judge(1, limits, now))
    }

    /// What happened `age` ago, in a process of before. `now` must be older than a day and a slot.
    pub(crate) fn restore(&mut self, login: &[u8], past: Past, age: Duration, now: Duration) {
        if age.as_secs() > DAY_S + HOUR_S {
            return;
        }
        let at = now.saturating_sub(age);
        let usage = self.usage(login, now);
        if past.kind == Kind::News {
            usage.quiet_until = usage.quiet_until.max(at.saturating_add(Duration::from_secs(DAY_S)));
        }
        if matches!(past.kind, Kind::Message | Kind::Hour) {
            usage.hour.restore(at, past, now);
        }
        if matches!(past.kind, Kind::Message | Kind::Day) {
            usage.day.restore(at, past, now);
        }
    }

    /// Everything that counts, with its age; who sent last comes first.
    pub(crate) fn all(&mut self, now: Duration) -> Vec<(Vec<u8>, Past, Duration)> {
        let mut logins: Vec<(&Vec<u8>, &mut Usage)> = self.0.iter_mut().collect();
        logins.sort_by_key(|(_, usage)| std::cmp::Reverse(usage.last));
        let mut all = Vec::new();
        for (login, usage) in logins {
            let news = usage.quiet_until.checked_sub(now).map(|left| Duration::from_secs(DAY_S).saturating_sub(left));
            all.extend(news.map(|age| (login.clone(), Past::news(), age)));
            all.extend(usage.hour.all(Kind::Hour, now).into_iter().map(|(past, age)| (login.clone(), past, age)));
            all.extend(usage.day.all(Kind::Day, now).into_iter().map(|(past, age)| (login.clone(), past, age)));
        }
        all
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
    fn judge(&mut self, recipients: u32, limits: &SubmissionLimits, now: Duration) -> Sent {
        let Some(limit) = self.passed(recipients, limits, now) else { return Sent::Yes };
        let is_news = now >= self.quiet_until;
        if is_news {
            self.quiet_until = now.saturating_add(Duration::from_secs(DAY_S));
        }
        Sent::Limited { limit, is_news }
    }

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

    /// What was sent at a time before now, if it counts still.
    fn restore(&mut self, at: Duration, past: Past, now: Duration) {
        self.sums(now);
        let slot = at.as_secs() / self.slot_s;
        if slot.saturating_add(N as u64) > self.current && slot <= self.current {
            let (m, r) = self.place(slot);
            (*m, *r) = (m.saturating_add(past.messages), r.saturating_add(past.recipients));
        }
    }

    /// What each slot holds, and how long ago it ended.
    fn all(&mut self, kind: Kind, now: Duration) -> Vec<(Past, Duration)> {
        self.sums(now);
        let mut all = Vec::new();
        for back in 0..N as u64 {
            let slot = self.current.saturating_sub(back);
            let (messages, recipients) = *self.place(slot);
            if messages > 0 || recipients > 0 {
                let last = Duration::from_secs(slot.saturating_add(1).saturating_mul(self.slot_s).saturating_sub(1));
                all.push((Past { kind, messages, recipients }, now.saturating_sub(last)));
            }
        }
        all
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
            assert_eq!(sending.look(b"c", &limits, s(5)), Sent::Yes);
        }
        assert_eq!(Sending::default().send(b"a", u32::MAX, &NONE, s(5)), Sent::Yes);
    }

    #[test]
    fn what_would_pass_a_limit_is_not_counted() {
        let limits = SubmissionLimits { recipients_per_day: 10, ..NONE };
        let mut sending = Sending::default();
        assert_eq!(sending.send(b"a", 9, &limits, s(5)), Sent::Yes);
        assert!(matches!(sending.send(b"a", 2, &limits, s(5)), Sent::Limited { .. }));
        assert_eq!(sending.look(b"a", &limits, s(5)), Sent::Yes);
        assert_eq!(sending.send(b"a", 1, &limits, s(5)), Sent::Yes);
        let limited = |is_news| Sent::Limited { limit: Limit::RecipientsPerDay {}, is_news };
        assert_eq!(sending.look(b"a", &limits, s(5)), limited(false));
        assert_eq!(sending.look(b"a", &limits, s(5 + 25 * HOUR_S)), Sent::Yes, "the window and a slot are over");
        assert_eq!(sending.send(b"a", 10, &limits, s(5 + 2 * DAY_S)), Sent::Yes);
        assert_eq!(sending.look(b"a", &limits, s(6 + 2 * DAY_S)), limited(true));
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
