//! Variable envelope return paths (qmail-family §3.6, cr.yp.to/proto/verp.txt): one sender per recipient, so that a bounce names
//! the recipient that failed.
//!
//! A sender `PRE@DOMAIN-@[]` stands for `PREBOX=HOST@DOMAIN` at the delivery to `BOX@HOST`. qmail-send expands it when a delivery
//! starts; what bounces without having been delivered goes to the base `PRE@DOMAIN`. The reserved sender `#@[]` is that of a double bounce.

use wire::Address;

/// What a sender ends with that asks for expansion.
pub const SUFFIX: &[u8] = b"-@[]";
/// The sender of a double bounce.
pub const DOUBLE_BOUNCE_SENDER: &[u8] = b"#@[]";

/// `PRE` and `DOMAIN` of a sender `PRE@DOMAIN-@[]`.
fn parts(sender: &Address) -> Option<(&[u8], &[u8])> {
    let base = sender.as_bytes().strip_suffix(SUFFIX)?;
    let at = memchr::memrchr(b'@', base)?;
    Some((base.get(..at)?, base.get(at.checked_add(1)?..)?))
}

/// Does this sender ask for expansion per recipient?
#[must_use]
pub fn is_verp(sender: &Address) -> bool {
    parts(sender).is_some()
}

/// The sender to use at the delivery to `recipient`. A sender that is no VERP sender, or a recipient without a domain, leaves it as
/// it is; if the expanded sender would be longer than an address may be, the base is used, so that a bounce still finds its list.
#[must_use]
pub fn expand(sender: &Address, recipient: &Address) -> Address {
    let (Some((pre, domain)), Some(host)) = (parts(sender), recipient.domain()) else {
        return sender.clone();
    };
    Address::new(&[pre, recipient.local(), b"=", host, b"@", domain].concat()).unwrap_or_else(|_| base(sender))
}

/// Where bounces of the whole message go: `owner-@host-@[]` → `owner-@host`, `-@[]` → null, anything else as it is.
#[must_use]
pub fn base(sender: &Address) -> Address {
    let stripped = sender.as_bytes().strip_suffix(SUFFIX);
    stripped.and_then(|base| Address::new(base).ok()).unwrap_or_else(|| sender.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a(text: &str) -> Address {
        Address::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn expands_per_recipient() {
        for (sender, recipient, expanded) in [
            ("list-@h.org-@[]", "joe@x.com", "list-joe=x.com@h.org"),
            ("list-return-7-@h-@[]", "a@b@c", "list-return-7-a@b=c@h"),
            ("list-@h-@[]", "nohost", "list-@h-@[]"),
            ("a@b", "c@d", "a@b"),
            ("", "c@d", ""),
            ("#@[]", "c@d", "#@[]"),
            ("-@[]", "c@d", "-@[]"),
            ("x-@[]", "c@d", "x-@[]"),
            ("@-@[]", "c@d", "c=d@"),
        ] {
            assert_eq!(expand(&a(sender), &a(recipient)), a(expanded), "{sender} {recipient}");
        }
    }

    #[test]
    fn the_base_takes_bounces() {
        for (sender, to) in
            [("owner-@h-@[]", "owner-@h"), ("a@b", "a@b"), ("#@[]", "#@[]"), ("-@[]", ""), ("", ""), ("x-@[]", "x")]
        {
            assert_eq!(base(&a(sender)), a(to));
        }
    }

    #[test]
    fn too_long_an_expansion_falls_back_to_the_base() {
        let long = format!("{}@h", "x".repeat(990));
        assert_eq!(expand(&a("list-owner-@example.org-@[]"), &a(&long)), a("list-owner-@example.org"));
    }

    proptest! {
        #[test]
        fn the_recipient_can_be_read_back(local in "[a-z0-9.@=+-]{1,40}", host in "[a-z0-9.-]{1,40}") {
            let got = expand(&a("list-@h.example-@[]"), &a(&format!("{local}@{host}")));
            let inner = got.local().strip_prefix(b"list-").unwrap();
            let at = inner.iter().rposition(|b| *b == b'=').unwrap();
            prop_assert_eq!((&inner[..at], &inner[at + 1..]), (local.as_bytes(), host.as_bytes()));
            prop_assert_eq!(got.domain(), Some(&b"h.example"[..]));
        }
    }
}
