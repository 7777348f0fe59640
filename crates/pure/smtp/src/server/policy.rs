//! Lists that decide by name alone: `control/rcpthosts` with morercpthosts.cdb, `control/badmailfrom` and its like, `control/validrcptto`.
//!
//! Guarantee (promise 5): without a list there is nobody in it; a damaged cdb is a temporary error, never a yes or a no.

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

impl Session {
    /// The sender, and who the client says it is; the null sender is in no list.
    pub(super) fn sender_refusal(&self, sender: &Address) -> Option<&'static str> {
        let (refusals, terms) = (&self.config.refusals, &self.peer.terms);
        if self.is_let_through {
            return None;
        }
        let relays = self.is_relay_client();
        let is_bad_sender = || {
            refusals.bad_senders.fit(sender.as_bytes()) || (!relays && refusals.bad_senders_of_strangers.fit(sender.as_bytes()))
        };
        let is_bad_helo = |helo: &[u8]| refusals.bad_helos.fit(helo) || (!relays && refusals.bad_helos_of_strangers.fit(helo));
        if sender.is_null() && terms.null_senders.unwrap_or(refusals.null_senders) {
            return Some(replies::NULL_SENDER);
        }
        if !terms.any_sender && !sender.is_null() && is_bad_sender() {
            return Some(replies::BAD_MAIL_FROM);
        }
        let helo = self.helo.as_ref().map(|helo| &helo.name[..]);
        helo.filter(|helo| !terms.any_helo && is_bad_helo(helo)).map(|_| replies::BAD_HELO)
    }

    /// A recipient that nobody, or no stranger, may write to.
    pub(super) fn recipient_refusal(&self, recipient: &Address) -> Option<&'static str> {
        let refusals = &self.config.refusals;
        if self.is_let_through {
            return None;
        }
        let relays = self.is_relay_client();
        let name = recipient.as_bytes();
        if refusals.bad_recipients.fit(name) || (!relays && refusals.bad_recipients_of_strangers.fit(name)) {
            return Some(replies::BAD_RCPT_TO);
        }
        let is_routed = || recipient.local().iter().any(|b| matches!(b, b'%' | b'!' | b'@'));
        (refusals.relay_tests && !relays && recipient.domain().is_some() && is_routed()).then_some(replies::RELAY_TEST)
    }

    /// Is the recipient one of those that there are, if they are listed?
    ///
    /// # Errors
    /// Temporary: the list is damaged.
    pub(super) fn is_valid_recipient(&self, recipient: &Address) -> std::io::Result<bool> {
        match &self.config.refusals.valid_recipients {
            Some(valid) if !self.is_relay_client() && !self.is_let_through => valid.contains(recipient.as_bytes()),
            _ => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
