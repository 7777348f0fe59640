//! Where a local part of a virtual domain goes.
//!
//! First the domain: one that is an alias of another stands for it, and is looked up once; chains are not made. Then, in that domain,
//! the first that fits: the user of exactly this name; the alias of exactly this name; the user whose name is the longest part before a
//! `-` or `+`, with the rest as extension; the domain's catch-all. ASCII case does not matter. An empty extension is none:
//! `joe-@…` is not joe's. A user whose mail is refused is nobody, and no alias or catch-all stands in.

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

/// The domain whose users and aliases count: this one, or the one it is an alias of.
///
/// # Errors
/// Temporary: the store cannot say.
pub fn real_domain(directory: &dyn Directory, domain: Domain) -> Result<Domain, Error> {
    Ok(directory.alias_of(&domain)?.unwrap_or(domain))
}

/// Where a local part of a [`real_domain`] goes. Asks the directory, at most once for each separator in the first 64 bytes and three times more.
///
/// # Errors
/// Temporary: the store cannot say.
pub fn resolve(directory: &dyn Directory, domain: &Domain, local: &[u8]) -> Result<Resolution, Error> {
    let lower = local.to_ascii_lowercase();
    if let Some((user, takes_mail)) = user(directory, domain, &lower)? {
        return Ok(mailbox(user, takes_mail, None, b""));
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
        if let Some((user, takes_mail)) = user(directory, domain, prefix)? {
            return Ok(mailbox(user, takes_mail, Some(*separator), ext));
        }
    }
    Ok(directory.alias(domain, b"")?.map_or(Resolution::NoSuch, Resolution::Forward))
}

fn mailbox(user: UserName, takes_mail: bool, separator: Option<u8>, ext: &[u8]) -> Resolution {
    if takes_mail { Resolution::Mailbox { user, separator, ext: ext.to_vec() } } else { Resolution::NoSuch }
}

/// The user of this name, and whether mail is taken. What cannot be a name is nobody's; the store is not asked.
fn user(directory: &dyn Directory, domain: &Domain, lower: &[u8]) -> Result<Option<(UserName, bool)>, Error> {
    let Some(name) = UserName::new(lower) else { return Ok(None) };
    Ok(directory.takes_mail(domain, lower)?.map(|takes_mail| (name, takes_mail)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Accounts, DomainSettings, UserChange};

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
        // Refused is refused: the catch-all does not take it.
        let refusing = UserChange::Suspension { suspended: true, refuses_mail: true };
        accounts.change_user(&domain, &name("joe"), &refusing).unwrap();
        for local in ["joe", "joe-list", "joe+x"] {
            assert_eq!(resolve(&accounts, &domain, local.as_bytes()).unwrap(), Resolution::NoSuch, "{local}");
        }
        assert_eq!(resolve(&accounts, &domain, b"joe-smith").unwrap(), mailbox("joe-smith", None, ""));
        assert_eq!(resolve(&accounts, &domain, b"joe-sales").unwrap(), Resolution::Forward(target("x@y")));
        let suspended = UserChange::Suspension { suspended: true, refuses_mail: false };
        accounts.change_user(&domain, &name("joe"), &suspended).unwrap();
        assert_eq!(resolve(&accounts, &domain, b"joe").unwrap(), mailbox("joe", None, ""), "mail goes on arriving");
    }

    #[test]
    fn an_alias_domain_is_the_other_with_all_its_rules_and_once() {
        let mut accounts = Accounts::in_memory().unwrap();
        let domain = |d: &str| Domain::new(d.as_bytes()).unwrap();
        let (real, alias) = (domain("real.example"), domain("alias.example"));
        let alias_of = |target: &Domain| DomainSettings { alias_of: Some(target.clone()), ..DomainSettings::default() };
        accounts.set_domain(&alias, &alias_of(&real)).unwrap();
        assert_eq!(real_domain(&accounts, alias.clone()).unwrap(), real);
        assert_eq!(real_domain(&accounts, real.clone()).unwrap(), real);
        assert_eq!(real_domain(&accounts, domain("x.example")).unwrap(), domain("x.example"));
        assert!(accounts.set_domain(&domain("third.example"), &alias_of(&alias)).is_err(), "no chains");
        assert!(accounts.set_domain(&real, &alias_of(&domain("y.example"))).is_err(), "no chains from the other end");
        assert!(accounts.set_domain(&real, &alias_of(&real)).is_err());
        let joe = UserName::new(b"joe").unwrap();
        assert!(accounts.add_user(&alias, &joe, "x", 0).is_err(), "nobody of its own");
        let target = [Address::new(b"a@b").unwrap()];
        assert!(accounts.set_alias(&alias, Some(&joe), &target).is_err());
        accounts.set_alias(&real, None, &target).unwrap();
        let catch_all = resolve(&accounts, &real_domain(&accounts, alias).unwrap(), b"any").unwrap();
        assert_eq!(catch_all, Resolution::Forward(target.to_vec()));
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
