//! Lists that decide by name alone: `control/rcpthosts` with morercpthosts.cdb, `control/badmailfrom` and its like, `control/validrcptto`.
//!
//! Guarantee (promise 5): without a list there is nobody in it; a damaged cdb is a temporary error, never a yes or a no.

use super::exchange::{RecipientAnswer, Terms};
use super::{Session, replies};
use std::collections::BTreeSet;
use wire::{Address, Patterns, ValidRecipients, cdb};

/// A cdb's data for a name is empty; nothing longer is read.
const DATA_LEN_MAX: usize = 64;

/// Domains that anybody may send to.
#[derive(Debug, Default)]
pub struct RcptHosts {
    names: BTreeSet<Box<[u8]>>,
    more: Option<Box<[u8]>>,
}

impl RcptHosts {
    /// `names`: lines of rcpthosts, `dom` for itself and `.dom` for all below it; `more`: the bytes of morercpthosts.cdb.
    pub fn new<N: AsRef<[u8]>>(names: impl IntoIterator<Item = N>, more: Option<Vec<u8>>) -> Self {
        let names = names.into_iter().map(|name| name.as_ref().to_ascii_lowercase().into()).collect();
        Self { names, more: more.map(Into::into) }
    }

    /// Is `domain`, or a parent of it written with a leading dot, in the list?
    ///
    /// # Errors
    /// Temporary: the cdb is damaged.
    pub fn contains(&self, domain: &[u8]) -> std::io::Result<bool> {
        let domain = domain.to_ascii_lowercase();
        let dots = domain.iter().enumerate().filter(|(_, b)| **b == b'.').map(|(at, _)| at);
        for start in std::iter::once(0).chain(dots) {
            let key = domain.get(start..).unwrap_or_default();
            if self.names.contains(key) {
                return Ok(true);
            }
            if let Some(more) = &self.more
                && cdb::find(&more[..], key, DATA_LEN_MAX)?.is_some()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Who is refused by name: `control/badmailfrom` and its like. Patterns are those of [`wire::pattern`].
#[derive(Debug, Default)]
pub struct Refusals {
    /// `control/badmailfrom`, of all clients.
    pub bad_senders: Patterns,
    /// `control/badmailfromnorelay`, of clients that may not relay.
    pub bad_senders_of_strangers: Patterns,
    /// `control/badrcptto`, of all clients.
    pub bad_recipients: Patterns,
    /// `control/badrcpttonorelay`.
    pub bad_recipients_of_strangers: Patterns,
    /// `control/badhelo`, of all clients.
    pub bad_helos: Patterns,
    /// `control/badhelonorelay`.
    pub bad_helos_of_strangers: Patterns,
    /// `control/validrcptto`: recipients that clients who may not relay can write to.
    pub valid_recipients: Option<ValidRecipients>,
    /// `control/rejectnullsenders`: mail from nobody is refused for now.
    pub null_senders: bool,
    /// `control/rejectrelaytest`: local parts that name another way.
    pub relay_tests: bool,
}

/// Accepted, or the line of a reply that refuses.
pub type Passage = Result<(), &'static str>;

/// What counts for one client: the lists, and his rights. The same for SMTP and QMTP.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    pub refusals: &'a Refusals,
    pub rcpthosts: &'a RcptHosts,
    pub terms: &'a Terms,
    /// He is listed (RBLSMTPD).
    pub is_listed: bool,
    /// He may send to any domain.
    pub relays: bool,
    /// He speaks LMTP: only recipients whom the directory knows pass.
    pub is_lmtp: bool,
    /// A program accepts the command under way, whatever the lists say.
    pub is_let_through: bool,
}

/// What the lists say of a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// The directory decides, see [`answered`].
    Ask {
        /// If the domain is none of ours.
        otherwise: Passage,
        /// If the recipient is known here.
        known: Passage,
    },
    Now(Passage),
}

impl Rules<'_> {
    /// Why mail of this sender is refused. The null sender is in no list; `helo`: who the client says it is, if it does.
    #[must_use]
    pub fn sender(&self, sender: &Address, helo: Option<&[u8]>) -> Option<&'static str> {
        let (refusals, terms) = (self.refusals, self.terms);
        if self.is_let_through {
            return None;
        }
        let is_bad_sender = || {
            refusals.bad_senders.fit(sender.as_bytes())
                || (!self.relays && refusals.bad_senders_of_strangers.fit(sender.as_bytes()))
        };
        let is_bad_helo =
            |helo: &[u8]| refusals.bad_helos.fit(helo) || (!self.relays && refusals.bad_helos_of_strangers.fit(helo));
        if sender.is_null() && terms.null_senders.unwrap_or(refusals.null_senders) {
            return Some(replies::NULL_SENDER);
        }
        if !terms.any_sender && !sender.is_null() && is_bad_sender() {
            return Some(replies::BAD_MAIL_FROM);
        }
        helo.filter(|helo| !terms.any_helo && is_bad_helo(helo)).map(|_| replies::BAD_HELO)
    }

    /// May this recipient be written to, as far as it can be said before the directory is asked?
    #[must_use]
    pub fn recipient(&self, recipient: &Address) -> Judged {
        if self.is_listed && !self.relays {
            return Judged::Now(Err(replies::LISTED));
        }
        // Everyone must take mail for the bare name postmaster (RFC 5321 §4.5.1): not the directory's to refuse.
        if recipient.as_bytes().eq_ignore_ascii_case(b"postmaster") {
            return Judged::Now(Ok(()));
        }
        if let Some(reply) = self.recipient_refusal(recipient) {
            return Judged::Now(Err(reply));
        }
        let known = match self.is_valid_recipient(recipient) {
            Ok(true) => Ok(()),
            Ok(false) => Err(replies::NOT_VALID),
            Err(_) => return Judged::Now(Err(replies::CANNOT_TELL)),
        };
        match if self.is_lmtp { Err(super::lmtp::NOT_DELIVERED_HERE) } else { self.may_pass(recipient) } {
            Err(replies::CANNOT_TELL) => Judged::Now(Err(replies::CANNOT_TELL)),
            // What may pass and is known not to be there need not be asked for.
            Ok(()) if known.is_err() => Judged::Now(known),
            otherwise => Judged::Ask { otherwise, known },
        }
    }

    /// May this client send to a domain that is none of ours (promise 5)? An address without a domain never leaves this system.
    pub(super) fn may_pass(&self, recipient: &Address) -> Passage {
        if self.relays || self.is_let_through {
            return Ok(());
        }
        match recipient.domain().map(|domain| self.rcpthosts.contains(domain)) {
            None | Some(Ok(true)) => Ok(()),
            Some(Ok(false)) => Err(replies::NO_RELAY),
            Some(Err(_)) => Err(replies::CANNOT_TELL),
        }
    }

    /// A recipient that nobody, or no stranger, may write to.
    fn recipient_refusal(&self, recipient: &Address) -> Option<&'static str> {
        let (refusals, name) = (self.refusals, recipient.as_bytes());
        if self.is_let_through {
            return None;
        }
        if refusals.bad_recipients.fit(name) || (!self.relays && refusals.bad_recipients_of_strangers.fit(name)) {
            return Some(replies::BAD_RCPT_TO);
        }
        let is_routed = || recipient.local().iter().any(|b| matches!(b, b'%' | b'!' | b'@'));
        (refusals.relay_tests && !self.relays && recipient.domain().is_some() && is_routed()).then_some(replies::RELAY_TEST)
    }

    /// Is the recipient one of those that there are, if they are listed?
    fn is_valid_recipient(&self, recipient: &Address) -> std::io::Result<bool> {
        match &self.refusals.valid_recipients {
            Some(valid) if !self.relays && !self.is_let_through => valid.contains(recipient.as_bytes()),
            _ => Ok(true),
        }
    }
}

/// What an answer makes of [`Judged::Ask`], and the words of a program that refuses.
pub fn answered(otherwise: Passage, known: Passage, answer: RecipientAnswer) -> (Passage, Option<Box<[u8]>>) {
    match answer {
        RecipientAnswer::Exists => (known, None),
        RecipientAnswer::NoMailbox => (Err(replies::NO_MAILBOX), None),
        RecipientAnswer::NotOurs => (otherwise, None),
        RecipientAnswer::Temporary => (Err(replies::CANNOT_TELL), None),
        RecipientAnswer::Full { is_temporary: true } => (Err(replies::FULL_NOW), None),
        RecipientAnswer::Full { is_temporary: false } => (Err(replies::FULL), None),
        // Whoever would be refused anyway hears why.
        RecipientAnswer::Refused { .. } | RecipientAnswer::OverLimit { .. } if otherwise.is_err() => (otherwise, None),
        RecipientAnswer::Refused { reply } => (Err(replies::NO_MAILBOX), reply),
        RecipientAnswer::OverLimit { reply } => (Err(replies::OVER_LIMIT), reply),
    }
}

/// A refusal as protocols have it whose answers are a letter and a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// `D` or `Z`, and a printable text with its code at the end: `(#5.1.1)`.
    pub text: Vec<u8>,
    /// It counts for `control/brtlimit`.
    pub is_bad: bool,
    /// The client is to be left behind it (RFC 5321 §3.8: 421).
    pub is_last: bool,
}

impl Report {
    /// Of the line of a reply; `own_words`: of a program, or of the one who lists the client.
    #[must_use]
    pub fn new(reply: &'static str, own_words: Option<&[u8]>) -> Self {
        let line = own_words.map_or_else(|| reply.as_bytes().to_vec(), replies::refusal);
        let is_bad = replies::is_clients_fault(&line);
        Self { text: replies::report(&line), is_bad, is_last: line.starts_with(b"421") }
    }

    /// Of a client whose `control/brtlimit` is used up.
    #[must_use]
    pub fn too_many() -> Self {
        Self::new(replies::TOO_MANY_BAD_RECIPIENTS, None)
    }
}

impl Session {
    /// What counts for this client now.
    pub(super) fn rules(&self) -> Rules<'_> {
        Rules {
            refusals: &self.config.refusals,
            rcpthosts: &self.config.rcpthosts,
            terms: &self.peer.terms,
            is_listed: self.peer.listed.is_some(),
            relays: self.is_relay_client(),
            is_lmtp: self.peer.is_lmtp,
            is_let_through: self.is_let_through,
        }
    }

    /// The sender, and who the client says it is.
    pub(super) fn sender_refusal(&self, sender: &Address) -> Option<&'static str> {
        self.rules().sender(sender, self.helo.as_ref().map(|helo| &helo.name[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_as_reports() {
        for (reply, own_words, text, is_bad, is_last) in [
            (replies::NO_MAILBOX, None, "Dsorry, no mailbox here by that name (#5.1.1)", true, false),
            (replies::FULL, None, "Dsorry, the mailbox is full or has no room for a message of that size (#5.2.2)", false, false),
            (replies::NULL_SENDER, None, "Znull senders temporarily denied (#4.7.1)", false, false),
            (replies::LISTED, Some("553 5.7.1 go away"), "Dgo away (#5.7.1)", true, false),
            (replies::LISTED, Some("451 4.7.1 "), "Zrefused (#4.7.1)", false, false),
            (replies::NO_MAILBOX, Some("550 moved\r\nKok"), "Dmoved??Kok (#5.0.0)", true, false),
            (replies::NO_MAILBOX, Some("yes"), "Zyes (#4.3.0)", false, false),
            (replies::NO_MAILBOX, Some("550 4.1.1 odd"), "Dodd (#5.0.0)", true, false),
            (replies::OVER_LIMIT, None, "Zyou have exceeded your messaging limits (#4.7.0)", false, true),
            (replies::OVER_LIMIT, Some("550 5.7.1 no more"), "Dno more (#5.7.1)", true, false),
        ] {
            let report = Report::new(reply, own_words.map(str::as_bytes));
            assert_eq!(report, Report { text: text.into(), is_bad, is_last }, "{reply} {own_words:?}");
        }
    }

    #[test]
    fn rcpthosts_match_themselves_or_what_is_below_a_dot() {
        let mut writer = cdb::Writer::new();
        writer.add(b"more.example", b"");
        writer.add(b".below.example", b"");
        let hosts = RcptHosts::new(["Heaven.AF.mil", ".heaven.af.mil"], writer.finish());
        for (domain, is_in) in [
            ("heaven.af.mil", true),
            ("x.y.HEAVEN.af.mil", true),
            ("af.mil", false),
            ("xheaven.af.mil", false),
            ("More.example", true),
            ("a.more.example", false),
            ("a.below.example", true),
            ("below.example", false),
            ("", false),
        ] {
            assert_eq!(hosts.contains(domain.as_bytes()).unwrap(), is_in, "{domain}");
        }
        assert!(!RcptHosts::default().contains(b"a.b").unwrap());
        assert!(RcptHosts::new([""; 0], Some(b"no cdb".to_vec())).contains(b"a.b").is_err());
    }
}
