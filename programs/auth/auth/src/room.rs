//! Does a message fit into a mailbox? Asked before it is accepted, so that the sender hears of a full mailbox at RCPT and not by a bounce.
//!
//! Only what lies in the mailbox itself is judged: of accounts with a quota whose mail goes there, not of `user-ext`, aliases and forwards.
//! The count is in the Maildir, which the recipient's own qmail-local looks at, asked by qmail-lspawn; what it says is remembered for
//! [`FRESH`]. In doubt the message is accepted, and the delivery finds out: nothing is refused because somebody does not answer.

use crate::recipients::Asker;
use crate::server::{LspawnWaiter, Server};
use accounts::{Account, Quota, UserName};
use ipc::Message as _;
use ipc::auth::{Answer, Directory as Verdict};
use ipc::lspawn::Room;
use ipc::mailbox::Settings;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use wire::Domain;

/// How long what is known of a mailbox counts.
const FRESH: Duration = Duration::from_secs(5);
/// How long an answer may take; then the message is accepted.
const PATIENCE: Duration = Duration::from_secs(2);
/// Mailboxes that are remembered; more empty the memory, nothing worse.
const KNOWN_MAX: usize = 16_384;
/// Those who wait; one more is accepted.
const WAITING_MAX: usize = 4096;

/// A mailbox with its quota: with another one it is not known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Mailbox {
    domain: Domain,
    user: Vec<u8>,
    quota: (u64, u64),
}

#[derive(Debug)]
struct Known {
    /// Bytes and messages: as they were told, less what was accepted since.
    free: (u64, u64),
    /// Something was accepted since: whatever does not fit now is asked for again.
    is_used: bool,
    /// For a message of so many bytes the mailbox was counted before it was denied.
    asked: u64,
    until: Duration,
}

#[derive(Debug)]
struct Waiting {
    asker: Asker,
    defers: bool,
    due: Duration,
}

/// What is known of mailboxes, and who waits.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    known: HashMap<Mailbox, Known>,
    /// By number; numbers grow, so the first is due first.
    waiting: BTreeMap<u64, Waiting>,
    last: u64,
}

impl Rooms {
    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }

    /// When somebody has waited long enough.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.waiting.first_key_value().map(|(_, waiting)| waiting.due)
    }

    /// If it fits, it takes the room.
    fn fits(&mut self, mailbox: &Mailbox, size: u64, now: Duration) -> Option<bool> {
        let known = self.known.get_mut(mailbox).filter(|known| now < known.until)?;
        let (bytes, messages) = known.free;
        if size > bytes || messages == 0 {
            return (size >= known.asked && !known.is_used).then_some(false);
        }
        let less = |free: u64, taken| if free == u64::MAX { free } else { free.saturating_sub(taken) };
        known.free = (less(bytes, size), less(messages, 1));
        known.is_used = true;
        Some(true)
    }

    fn note(&mut self, mailbox: Mailbox, size: u64, free: (u64, u64), now: Duration) {
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(mailbox, Known { free, is_used: false, asked: size, until: now.saturating_add(FRESH) });
    }
}

impl Server {
    /// Answers a question about the recipient `user`, who is there, and a message of `size` bytes (0: not known).
    pub(crate) fn judge_room(&mut self, asker: Asker, domain: Domain, user: &UserName, account: &Account, size: u64) {
        let verdict = match self.room_verdict(asker, domain, user, account, size) {
            Some(verdict) => verdict,
            None => return,
        };
        self.say_room(asker, verdict);
    }

    /// `None`: it is being asked for.
    fn room_verdict(&mut self, asker: Asker, domain: Domain, user: &UserName, account: &Account, size: u64) -> Option<Verdict> {
        let fits = Some(Verdict::Mailbox {});
        // A suspended account's mail stays in the mailbox.
        let stays = account.suspended || account.forward.targets.is_empty() || account.forward.keeps_copy;
        let Ok(defers) = self.places.defers_over_quota() else { return fits };
        if account.quota == Quota::default() || !stays {
            return fits;
        }
        let (size, Quota { bytes, messages }) = (at_least(size), account.quota);
        if bytes != 0 && size > bytes {
            return Some(Verdict::Full { defers: false });
        }
        let mailbox = Mailbox { domain, user: user.as_bytes().to_vec(), quota: (bytes, messages) };
        let now = sys::clock::boottime();
        match self.rooms.fits(&mailbox, size, now) {
            Some(true) => return fits,
            Some(false) => return Some(Verdict::Full { defers }),
            None if self.rooms.waiting.len() >= WAITING_MAX => return fits,
            None => {}
        }
        let number = self.rooms.last.wrapping_add(1);
        self.rooms.last = number;
        self.rooms.waiting.insert(number, Waiting { asker, defers, due: now.saturating_add(PATIENCE) });
        let settings = Settings { quota_bytes: bytes, quota_messages: messages, ..Settings::default() }.to_bytes();
        let (domain, user) = (mailbox.domain.clone(), mailbox.user.clone().into());
        let question = |id| ipc::lspawn::Request::Room { id, domain, user, settings, size }.encode();
        if self.lspawn.ask(question, LspawnWaiter::Room { number, mailbox, size }, now).is_err() {
            self.rooms.waiting.remove(&number);
            return fits;
        }
        None
    }

    /// qmail-lspawn's word.
    pub(crate) fn room_told(&mut self, number: u64, mailbox: Mailbox, size: u64, room: &Room) {
        let waiting = self.rooms.waiting.remove(&number);
        let mut fits = true;
        if let Room::Free { bytes, messages } = room {
            let now = sys::clock::boottime();
            self.rooms.note(mailbox.clone(), size, (*bytes, *messages), now);
            fits = waiting.is_none() || self.rooms.fits(&mailbox, size, now).unwrap_or(true);
        }
        let Some(Waiting { asker, defers, .. }) = waiting else { return };
        self.say_room(asker, if fits { Verdict::Mailbox {} } else { Verdict::Full { defers } });
    }

    /// Nobody says how much room there is: accepted.
    pub(crate) fn room_unknown(&mut self, number: u64) {
        if let Some(waiting) = self.rooms.waiting.remove(&number) {
            self.say_room(waiting.asker, Verdict::Mailbox {});
        }
    }

    /// Those who have waited long enough.
    pub(crate) fn expire_rooms(&mut self, now: Duration) {
        while let Some((number, _)) = self.rooms.waiting.first_key_value().filter(|(_, waiting)| waiting.due <= now) {
            self.room_unknown(*number);
        }
    }

    /// The account has no quota any more: what counted it goes. If that cannot be, it stays, and says what was last known.
    pub(crate) fn forget_room(&mut self, domain: &Domain, user: &UserName) {
        let (domain, user, settings) = (domain.clone(), user.as_bytes().into(), Settings::default().to_bytes());
        let question = |id| ipc::lspawn::Request::Room { id, domain, user, settings, size: 0 }.encode();
        drop(self.lspawn.ask(question, LspawnWaiter::Nobody, sys::clock::boottime()));
    }

    /// The administrator wants to know how much is used.
    pub(crate) fn ask_usage(&mut self, client: u64, domain: Domain, user: &UserName, quota: Quota) {
        if quota == Quota::default() {
            return self.usage(client, quota, &Room::CannotTell {});
        }
        let settings = Settings { quota_bytes: quota.bytes, quota_messages: quota.messages, ..Settings::default() }.to_bytes();
        let user = user.as_bytes().into();
        let question = |id| ipc::lspawn::Request::Room { id, domain, user, settings, size: 0 }.encode();
        if let Err(waiter) = self.lspawn.ask(question, LspawnWaiter::Usage { client, quota }, sys::clock::boottime()) {
            self.lspawn_gone(waiter);
        }
    }

    pub(crate) fn usage(&mut self, client: u64, quota: Quota, room: &Room) {
        let used = |bound: u64, left: u64| (bound > 0).then(|| bound.saturating_sub(left));
        let (bytes, messages) = match room {
            Room::Free { bytes, messages } => (used(quota.bytes, *bytes), used(quota.messages, *messages)),
            Room::CannotTell {} => (None, None),
        };
        self.answer(client, &ipc::admin::AccountAnswer::Usage { bytes, messages }, None);
    }

    fn say_room(&mut self, asker: Asker, verdict: Verdict) {
        self.answer(asker.client, &Answer::Recipient { id: asker.id, verdict }, None);
    }
}

/// What a message of so many bytes by MAIL's word takes at the least. That counts CRLFs (RFC 1870 §5), which are stored as LF: a twentieth of a
/// text of short lines. Nothing is refused that would have had room.
fn at_least(size: u64) -> u64 {
    size.saturating_sub(size / 20).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_for_a_small_message_denies_no_smaller_one() {
        let mut rooms = Rooms::default();
        let mailbox = Mailbox { domain: Domain::new(b"a.example").unwrap(), user: b"ann".to_vec(), quota: (100, 0) };
        let other = Mailbox { quota: (200, 0), ..mailbox.clone() };
        let (start, end) = (Duration::from_secs(10), Duration::from_secs(15));
        rooms.note(mailbox.clone(), 40, (20, 9), start);
        let asked = [30, 40, 41, 20, 1, 41].map(|size| rooms.fits(&mailbox, size, start));
        assert_eq!(asked, [None, Some(false), Some(false), Some(true), None, None], "what was taken may be there again");
        assert_eq!((rooms.fits(&other, 1, start), rooms.fits(&mailbox, 1, end)), (None, None));
        rooms.note(mailbox.clone(), 1, (u64::MAX, 2), start);
        assert_eq!([1, 1, 1].map(|size| rooms.fits(&mailbox, size, start)), [Some(true), Some(true), None]);
        rooms.note(mailbox.clone(), 1, (u64::MAX, 0), start);
        assert_eq!(rooms.fits(&mailbox, 1, start), Some(false));
        rooms.forget();
        assert_eq!(rooms.fits(&mailbox, 1, start), None);
        assert_eq!([0, 1, 100].map(at_least), [1, 1, 95]);
    }
}
