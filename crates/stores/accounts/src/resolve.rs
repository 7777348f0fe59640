//! Where a local part of a virtual domain goes.
//!
//! The first that fits: the user of exactly this name; the alias of exactly this name; the user whose name is the longest part before a
//! `-` or `+`, with the rest as extension; the domain's catch-all. ASCII case does not matter. An empty extension is none:
//! `joe-@…` is not joe's.

use crate::{Directory, Error, UserName};
use users::name::NAME_LEN_MAX;
use wire::{Address, Domain};

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// A mailbox; `ext` is what followed `separator`, as it came.
    Mailbox { user: UserName, separator: Option<u8>, ext: Vec<u8> },
    /// Other addresses, at least one.
    Forward(Vec<Address>),
    /// Nobody.
    NoSuch,
}

/// Asks the directory, at most once for each separator in the first 64 bytes and three times more.
///
/// # Errors
/// Temporary: the store cannot say.
pub fn resolve(directory: &dyn Directory, domain: &Domain, local: &[u8]) -> Result<Resolution, Error> {
    let lower = local.to_ascii_lowercase();
    if let Some(user) = user(directory, domain, &lower)? {
        return Ok(Resolution::Mailbox { user, separator: None, ext: Vec::new() });
    }
    if !lower.is_empty()
        && let Some(targets) = directory.alias(domain, &lower)?
    {
        return Ok(Resolution::Forward(targets));
    }
    for at in (0..lower.len().min(NAME_LEN_MAX.saturating_add(1))).rev() {
        let (Some(prefix), Some(separator), Some(ext)) = (lower.get(..at), lower.get(at), local.get(at.saturating_add(1)..))
        else {
            continue;
        };
        if !matches!(separator, b'-' | b'+') || ext.is_empty() {
            continue;
        }
        if let Some(user) = user(directory, domain, prefix)? {
            return Ok(Resolution::Mailbox { user, separator: Some(*separator), ext: ext.to_vec() });
        }
    }
    Ok(directory.alias(domain, b"")?.map_or(Resolution::NoSuch, Resolution::Forward))
}

/// The user of this name. What cannot be a name is nobody's; the store is not asked.
fn user(directory: &dyn Directory, domain: &Domain, lower: &[u8]) -> Result<Option<UserName>, Error> {
    let Some(name) = UserName::new(lower) else { return Ok(None) };
    Ok(directory.has_user(domain, lower)?.then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Accounts;

    #[test]
    fn exact_user_then_alias_then_longest_prefix_then_catch_all() {
        let mut accounts = Accounts::in_memory().unwrap();
        let domain = Domain::new(b"example.org").unwrap();
        let name = |n: &str| UserName::new(n.as_bytes()).unwrap();
        let target = |t: &str| vec![Address::new(t.as_bytes()).unwrap()];
        for user in ["joe", "joe-smith", "a+b"] {
            accounts.add_user(&domain, &name(user), "x", 0).unwrap();
        }
        accounts.set_alias(&domain, Some(&name("joe-sales")), &target("x@y")).unwrap();
        accounts.set_alias(&domain, Some(&name("info")), &target("i@y")).unwrap();
        let mailbox =
            |user: &str, separator: Option<u8>, ext: &str| Resolution::Mailbox { user: name(user), separator, ext: ext.into() };
        let table = [
            ("joe", mailbox("joe", None, "")),
            ("JOE", mailbox("joe", None, "")),
            ("joe-smith", mailbox("joe-smith", None, "")),
            ("joe-smith-A", mailbox("joe-smith", Some(b'-'), "A")),
            ("joe-smithy", mailbox("joe", Some(b'-'), "smithy")),
            ("joe+Tag-x", mailbox("joe", Some(b'+'), "Tag-x")),
            ("joe-sales", Resolution::Forward(target("x@y"))),
            ("joe-sales-eu", mailbox("joe", Some(b'-'), "sales-eu")),
            ("a+b+c", mailbox("a+b", Some(b'+'), "c")),
            ("a+c", Resolution::NoSuch),
            ("info", Resolution::Forward(target("i@y"))),
            ("joe-", Resolution::NoSuch),
            ("-joe", Resolution::NoSuch),
            ("", Resolution::NoSuch),
            ("joe/../x", Resolution::NoSuch),
            ("joe'; DROP TABLE account; --", Resolution::NoSuch),
        ];
        for (local, expected) in &table {
            assert_eq!(resolve(&accounts, &domain, local.as_bytes()).unwrap(), *expected, "{local}");
        }
        accounts.set_alias(&domain, None, &target("all@y")).unwrap();
        for (local, expected) in table {
            let expected = if expected == Resolution::NoSuch { Resolution::Forward(target("all@y")) } else { expected };
            assert_eq!(resolve(&accounts, &domain, local.as_bytes()).unwrap(), expected, "{local}");
        }
        let other = Domain::new(b"example.com").unwrap();
        assert_eq!(resolve(&accounts, &other, b"joe").unwrap(), Resolution::NoSuch);
    }

    #[test]
    fn long_and_odd_local_parts_cost_little() {
        let accounts = Accounts::in_memory().unwrap();
        let domain = Domain::new(b"example.org").unwrap();
        for local in [vec![b'-'; 1000], b"a-".repeat(500), vec![0xff; 900], b"\0\r\n".to_vec()] {
            assert_eq!(resolve(&accounts, &domain, &local).unwrap(), Resolution::NoSuch);
        }
    }
}
