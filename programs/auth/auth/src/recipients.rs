//! What is known about recipients that qmail-lspawn has to look for: answers that are fresh enough, and who waits for one.

use std::collections::HashMap;
use std::time::Duration;

use wire::Domain;

/// How long a yes counts.
const YES_FRESH: Duration = Duration::from_secs(60);
/// How long a no counts: somebody may be about to make the address.
const NO_FRESH: Duration = Duration::from_secs(5);
/// Answers that are kept; at most 4 MiB with keys of usual length. A scan with random names empties the cache, nothing worse.
const ANSWERS_MAX: usize = 32_768;
/// Local parts that are being asked about.
const ASKED_MAX: usize = 8192;
/// Those who wait for the same local part.
const WAITERS_MAX: usize = 1024;

/// One request of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) client: u64,
    pub(crate) id: u64,
}

/// What a question about a local part leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// It is known whether there is somebody.
    Known(bool),
    /// Ask; everybody who comes before the answer waits for it too.
    Ask,
    /// Somebody has asked.
    Wait,
    /// Too much is under way.
    Full,
}

/// Somebody whom qmail-lspawn has to look for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A local part of the system's own domains, in lower case.
    Local(Vec<u8>),
    /// `user-ext` of a virtual domain.
    Mailbox { domain: Domain, user: Vec<u8>, ext: Vec<u8> },
}

#[derive(Default)]
pub(crate) struct Recipients {
    answers: HashMap<Key, (bool, Duration)>,
    asked: HashMap<Key, Asked>,
    /// Counts what [`Recipients::forget`] saw.
    changes: u64,
}

struct Asked {
    waiters: Vec<Asker>,
    /// The count when the question was asked: an answer from before a change is given, but not kept.
    changes: u64,
}

impl Recipients {
    pub(crate) fn look(&mut self, key: &Key, asker: Asker, now: Duration) -> Look {
        if let Some((answer, until)) = self.answers.get(key)
            && now < *until
        {
            return Look::Known(*answer);
        }
        if let Some(asked) = self.asked.get_mut(key) {
            if asked.waiters.len() >= WAITERS_MAX {
                return Look::Full;
            }
            asked.waiters.push(asker);
            return Look::Wait;
        }
        if self.asked.len() >= ASKED_MAX {
            return Look::Full;
        }
        self.asked.insert(key.clone(), Asked { waiters: vec![asker], changes: self.changes });
        Look::Ask
    }

    /// The question is over: everybody who waited. A definite answer is remembered.
    pub(crate) fn settle(&mut self, key: &Key, definite: Option<bool>, now: Duration) -> Vec<Asker> {
        let Some(asked) = self.asked.remove(key) else { return Vec::new() };
        if let Some(answer) = definite
            && asked.changes == self.changes
        {
            if self.answers.len() >= ANSWERS_MAX {
                self.answers.clear();
            }
            let fresh = if answer { YES_FRESH } else { NO_FRESH };
            self.answers.insert(key.clone(), (answer, now.saturating_add(fresh)));
        }
        asked.waiters
    }

    /// Something changed: nothing that was known counts. Questions under way stay under way.
    pub(crate) fn forget(&mut self) {
        self.answers.clear();
        self.changes = self.changes.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn yes_stays_a_minute_and_no_five_seconds() {
        let mut recipients = Recipients::default();
        let asker = |id| Asker { client: 1, id };
        let a = Key::Local(b"a".to_vec());
        assert_eq!(recipients.look(&a, asker(1), s(0)), Look::Ask);
        assert_eq!(recipients.look(&a, asker(2), s(0)), Look::Wait);
        assert_eq!(recipients.settle(&a, Some(true), s(0)), [asker(1), asker(2)]);
        assert_eq!(recipients.look(&a, asker(3), s(59)), Look::Known(true));
        assert_eq!(recipients.look(&a, asker(3), s(60)), Look::Ask);
        assert_eq!(recipients.settle(&a, Some(false), s(60)), [asker(3)]);
        assert_eq!(recipients.look(&a, asker(4), s(64)), Look::Known(false));
        assert_eq!(recipients.look(&a, asker(4), s(65)), Look::Ask);
        assert_eq!(recipients.settle(&a, None, s(65)), [asker(4)]);
        assert_eq!(recipients.look(&a, asker(5), s(65)), Look::Ask, "a stale answer is not used again");
        recipients.settle(&a, Some(true), s(65));
        recipients.forget();
        assert_eq!(recipients.look(&a, asker(6), s(65)), Look::Ask);
        recipients.forget();
        assert_eq!(recipients.settle(&a, Some(true), s(65)), [asker(6)]);
        assert_eq!(recipients.look(&a, asker(7), s(65)), Look::Ask, "asked before the change, not kept");
    }

    #[test]
    fn everything_has_a_bound() {
        let mut recipients = Recipients::default();
        let asker = Asker { client: 1, id: 1 };
        let key = |n: usize| Key::Local(n.to_le_bytes().to_vec());
        for n in 0..ASKED_MAX {
            assert_eq!(recipients.look(&key(n), asker, s(0)), Look::Ask);
        }
        assert_eq!(recipients.look(&Key::Local(b"more".to_vec()), asker, s(0)), Look::Full);
        for _ in 1..WAITERS_MAX {
            assert_eq!(recipients.look(&key(0), asker, s(0)), Look::Wait);
        }
        assert_eq!(recipients.look(&key(0), asker, s(0)), Look::Full);
        for n in 0..ANSWERS_MAX * 2 {
            recipients.look(&key(n), asker, s(0));
            recipients.settle(&key(n), Some(true), s(0));
            assert!(recipients.answers.len() <= ANSWERS_MAX);
        }
    }
}
