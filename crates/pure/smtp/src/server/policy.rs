//! Lists that decide by name alone: `control/rcpthosts` with morercpthosts.cdb, and `control/badmailfrom`.
//!
//! Guarantee (promise 5): without a list there is nobody in it; a damaged cdb is a temporary error, never a yes or a no.

use std::collections::BTreeSet;
use wire::{Address, cdb};

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

/// Envelope senders nobody wants: `user@dom`, or `@dom` for everyone there; in any case of letters.
#[derive(Debug, Default)]
pub struct BadMailFrom(BTreeSet<Box<[u8]>>);

impl BadMailFrom {
    pub fn new<N: AsRef<[u8]>>(lines: impl IntoIterator<Item = N>) -> Self {
        Self(lines.into_iter().map(|line| line.as_ref().to_ascii_lowercase().into()).collect())
    }

    #[must_use]
    pub fn contains(&self, sender: &Address) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let whole = sender.as_bytes().to_ascii_lowercase();
        let at = whole.iter().rposition(|b| *b == b'@').and_then(|at| whole.get(at..));
        self.0.contains(&whole[..]) || at.is_some_and(|at| self.0.contains(at))
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

    #[test]
    fn badmailfrom_matches_addresses_and_domains() {
        let bad = BadMailFrom::new(["Joe@Example.org", "@spam.example"]);
        for (sender, is_bad) in [
            ("joe@example.ORG", true),
            ("jo@example.org", false),
            ("x@spam.example", true),
            ("x@a.spam.example", false),
            ("", false),
        ] {
            assert_eq!(bad.contains(&Address::new(sender.as_bytes()).unwrap()), is_bad, "{sender}");
        }
    }
}
