//! What is set of an account and of a domain, beside names and passwords; and the bounds of each value.

use crate::{Error, UserName};
use wire::{Address, Domain};

/// Most addresses that one account's mail is forwarded to, and targets of one alias; more is a mailing list.
pub const TARGETS_MAX: usize = 20;
/// Longest text of a vacation reply, in bytes: with all forwards of an account it has to fit into one datagram.
pub const VACATION_TEXT_LEN_MAX: usize = 4096;
/// Longest subject of a vacation reply, in bytes.
pub const VACATION_SUBJECT_LEN_MAX: usize = 200;
/// Days between two replies to the same sender (RFC 5230 §4.1: at least one; a server may choose the greatest).
pub const VACATION_DAYS_MAX: u32 = 365;
/// Administrators of one domain.
pub const ADMINISTRATORS_MAX: usize = 50;

/// How much a mailbox holds; 0 is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    pub bytes: u64,
    pub messages: u64,
}

/// Messages that an account may send; `None`: as many as the host lets everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    pub per_hour: Option<u32>,
    pub per_day: Option<u32>,
}

/// Where an account's mail goes besides, or instead of, the mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forward {
    /// Empty: nowhere else.
    pub targets: Vec<Address>,
    /// Does the mailbox get it, too? Counts only with targets.
    pub keeps_copy: bool,
}

/// The reply that senders get while the user is away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vacation {
    /// Empty: made from the message's subject.
    pub subject: String,
    pub text: String,
    /// UNIX seconds; 0: always been.
    pub from_s: u64,
    /// UNIX seconds, exclusive; 0: without end.
    pub until_s: u64,
    /// Between two replies to the same sender.
    pub days: u32,
}

/// All that is known of an account but its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Account {
    pub quota: Quota,
    /// No login.
    pub suspended: bool,
    /// Nor mail: it is refused as if nobody were there.
    pub refuses_mail: bool,
    pub forward: Forward,
    pub vacation: Option<Vacation>,
    pub limits: Limits,
    pub created_s: u64,
}

/// One change of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserChange {
    Quota(Quota),
    Suspension { suspended: bool, refuses_mail: bool },
    Forward(Forward),
    Vacation(Option<Vacation>),
    Limits(Limits),
}

/// What is set of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DomainSettings {
    /// Every local part is the same as in this domain; such a domain has nobody of its own.
    pub alias_of: Option<Domain>,
    /// What a new user gets.
    pub default_quota: Quota,
    /// What the quotas of all users may come to, in bytes; 0: no bound. With one, each user must have a quota.
    pub quota_bytes: u64,
    /// Most users; 0: no bound.
    pub users_max: u64,
    /// Accounts that may manage the domain.
    pub administrators: Vec<Address>,
}

impl DomainSettings {
    /// Nothing is set.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Something to be added, one of many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    User(Box<NewUser>),
    /// `None` is the catch-all.
    Alias {
        domain: Domain,
        name: Option<UserName>,
        targets: Vec<Address>,
    },
}

/// A user to be added.
#[derive(Clone, PartialEq, Eq)]
pub struct NewUser {
    pub domain: Domain,
    pub name: UserName,
    pub password_hash: String,
    pub account: Account,
    /// `account.quota` does not count: the domain's default does.
    pub has_default_quota: bool,
}

impl std::fmt::Debug for NewUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewUser").field("domain", &self.domain).field("name", &self.name).finish_non_exhaustive()
    }
}

impl UserChange {
    /// Can this be stored and carried out?
    ///
    /// # Errors
    /// Permanent; the text says what is wrong.
    pub fn check(&self) -> Result<(), Error> {
        match self {
            Self::Quota(quota) => quota.check(),
            Self::Suspension { .. } | Self::Limits(_) | Self::Vacation(None) => Ok(()),
            Self::Forward(forward) => forward.check(),
            Self::Vacation(Some(vacation)) => vacation.check(),
        }
    }
}

impl Quota {
    /// # Errors
    /// Permanent: more than the store can note.
    pub fn check(&self) -> Result<(), Error> {
        let fits = |number: u64| i64::try_from(number).is_ok();
        if fits(self.bytes) && fits(self.messages) { Ok(()) } else { Err(Error::Quota) }
    }
}

impl Forward {
    /// # Errors
    /// Permanent: too many, or no whole addresses.
    pub fn check(&self) -> Result<(), Error> {
        if self.targets.len() > TARGETS_MAX {
            return Err(Error::Targets("an account forwards to at most 20 addresses; make a mailing list"));
        }
        if self.targets.iter().any(|target| !is_whole(target)) {
            return Err(Error::Targets("each target is a whole address, user@domain"));
        }
        Ok(())
    }
}

impl Vacation {
    /// # Errors
    /// Permanent: a value is out of its bounds.
    pub fn check(&self) -> Result<(), Error> {
        if self.text.trim().is_empty() {
            return Err(Error::Setting("the reply has no text"));
        }
        if self.text.len() > VACATION_TEXT_LEN_MAX {
            return Err(Error::Setting("the text of the reply is longer than 4096 bytes"));
        }
        if self.text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t')) {
            return Err(Error::Setting("the text of the reply holds a control character"));
        }
        if self.subject.len() > VACATION_SUBJECT_LEN_MAX || self.subject.contains(char::is_control) {
            return Err(Error::Setting("the subject of the reply is longer than 200 bytes, or holds a control character"));
        }
        if self.until_s != 0 && self.until_s <= self.from_s {
            return Err(Error::Setting("the end is before the beginning"));
        }
        if !(1..=VACATION_DAYS_MAX).contains(&self.days) {
            return Err(Error::Setting("there are 1 to 365 days between two replies"));
        }
        if i64::try_from(self.from_s.max(self.until_s)).is_err() {
            return Err(Error::Setting("that time is too far away"));
        }
        Ok(())
    }

    /// Is it to be sent now?
    #[must_use]
    pub fn counts_at(&self, now_s: u64) -> bool {
        self.from_s <= now_s && (self.until_s == 0 || now_s < self.until_s)
    }
}

/// Has it a local part and a domain that can be one?
pub(crate) fn is_whole(address: &Address) -> bool {
    !address.local().is_empty() && address.domain().is_some_and(|domain| Domain::new(domain).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vacation_reply_has_bounds() {
        let good = Vacation { text: "Back on Monday.\n".to_owned(), from_s: 10, until_s: 20, days: 7, ..Vacation::default() };
        good.check().unwrap();
        assert_eq!([9, 10, 19, 20].map(|now_s| good.counts_at(now_s)), [false, true, true, false]);
        assert!(Vacation { until_s: 0, ..good.clone() }.counts_at(u64::MAX));
        for bad in [
            Vacation { text: " \n".to_owned(), ..good.clone() },
            Vacation { text: "x".repeat(4097), ..good.clone() },
            Vacation { text: "x\r\ny".to_owned(), ..good.clone() },
            Vacation { subject: "x\ny".to_owned(), ..good.clone() },
            Vacation { subject: "x".repeat(201), ..good.clone() },
            Vacation { until_s: 10, ..good.clone() },
            Vacation { days: 0, ..good.clone() },
            Vacation { days: 366, ..good.clone() },
            Vacation { until_s: u64::MAX, ..good.clone() },
        ] {
            assert!(!bad.check().unwrap_err().is_temporary(), "{bad:?}");
        }
    }
}
