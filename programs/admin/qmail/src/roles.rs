//! Giving ids to the roles of a new instance.
//!
//! Root takes each role from passwd if it is there. For another root than `/`, or with `--ids FIRST`, the others get consecutive
//! numbers that passwd does not know; for `/` they are named and nothing is made. Not root, every id is the caller.

use std::io;

use control::Ids;
use users::Id;
use users::ids::{GROUP, SERVICE_ROLES, TARGET_ROLES, is_usable};

/// Numbers are given out from here, far above what distributions use.
pub const FIRST_DEFAULT: u32 = 64_100;
/// Numbers looked at before giving up.
const TRIES_MAX: u32 = 1000;

/// Where users and groups are looked up.
pub trait Names {
    /// uid and gid of a user.
    ///
    /// # Errors
    /// NSS cannot say.
    fn user(&self, name: &str) -> io::Result<Option<Id>>;
    /// The gid of a group.
    ///
    /// # Errors
    /// NSS cannot say.
    fn group(&self, name: &str) -> io::Result<Option<u32>>;
    /// Does a user or group have this number?
    ///
    /// # Errors
    /// NSS cannot say.
    fn is_taken(&self, number: u32) -> io::Result<bool>;
}

/// The system's own.
#[derive(Debug, Clone, Copy)]
pub struct Nss;

impl Names for Nss {
    fn user(&self, name: &str) -> io::Result<Option<Id>> {
        Ok(sys::passwd::user(name.as_bytes())?.map(|user| Id { uid: user.uid, gid: user.gid }))
    }

    fn group(&self, name: &str) -> io::Result<Option<u32>> {
        sys::passwd::group(name.as_bytes())
    }

    fn is_taken(&self, number: u32) -> io::Result<bool> {
        Ok(sys::passwd::user_by_uid(number)?.is_some() || sys::passwd::group_exists(number)?)
    }
}

/// Ids for all roles; `first` is from where numbers may be given out, `None` if passwd must know all of them.
///
/// # Errors
/// The text says what is missing or wrong.
pub fn choose(names: &impl Names, first: Option<u32>) -> Result<Ids, String> {
    let nss = |error: io::Error| format!("users cannot be looked up: {error}");
    let group = names.group(GROUP).map_err(nss)?;
    let mut known = Vec::new();
    for role in SERVICE_ROLES.iter().chain(&TARGET_ROLES) {
        known.push((*role, names.user(role).map_err(nss)?));
    }
    let missing: Vec<&str> = known.iter().filter(|(_, id)| id.is_none()).map(|(role, _)| *role).collect();
    let Some(first) = first else {
        let group = group.filter(|_| missing.is_empty()).ok_or_else(|| advice(&missing, group.is_none()))?;
        return table(known.into_iter().filter_map(|(role, id)| Some((role, id?))).collect(), group);
    };
    let mut numbers = Numbers { names, next: first, tries: 0 };
    let group = match group {
        Some(group) => group,
        None => numbers.take()?,
    };
    let mut ids = Vec::new();
    for (role, id) in known {
        let id = match id {
            Some(id) => id,
            None => numbers.take().map(|number| Id { uid: number, gid: number })?,
        };
        ids.push((role, id));
    }
    table(ids, group)
}

/// The roles that the ids of an older instance lack, as [`choose`] would have them; the others stay as they are.
///
/// # Errors
/// As [`choose`].
pub fn missing(names: &impl Names, ids: &Ids, first: Option<u32>) -> Result<Vec<(String, Id)>, String> {
    let Ids::Table(known) = ids else { return Ok(Vec::new()) };
    let lacks = |role: &&&str| ids.get(role).is_none();
    let missing: Vec<&str> = SERVICE_ROLES.iter().chain(&TARGET_ROLES).filter(lacks).copied().collect();
    let Some(group) = ids.group().filter(|_| !missing.is_empty()) else { return Ok(Vec::new()) };
    let mut numbers = first.map(|first| Numbers { names, next: first, tries: 0 });
    let mut all = known.clone();
    for role in &missing {
        let user = names.user(role).map_err(|error| format!("users cannot be looked up: {error}"))?;
        let id = match (user, &mut numbers) {
            (Some(id), _) => id,
            (None, None) => return Err(advice(&missing, false)),
            (None, Some(numbers)) => loop {
                let number = numbers.take()?;
                if all.iter().all(|(_, id)| id.uid != number && id.gid != number) {
                    break Id { uid: number, gid: number };
                }
            },
        };
        let gid = if SERVICE_ROLES.contains(role) { group } else { id.gid };
        all.push(((*role).to_owned(), Id { uid: id.uid, gid }));
    }
    is_sound(&all, group)?;
    Ok(all.split_off(known.len()))
}

/// Service roles share the group whatever passwd says, and every uid is another.
fn table(ids: Vec<(&'static str, Id)>, group: u32) -> Result<Ids, String> {
    let shared = |(role, id): (&str, Id)| {
        let gid = if SERVICE_ROLES.contains(&role) { group } else { id.gid };
        (role.to_owned(), Id { uid: id.uid, gid })
    };
    let ids: Vec<(String, Id)> = ids.into_iter().map(shared).collect();
    is_sound(&ids, group)?;
    Ok(Ids::Table(ids))
}

fn is_sound(ids: &[(String, Id)], group: u32) -> Result<(), String> {
    for (at, (role, id)) in ids.iter().enumerate() {
        if !is_usable(id.uid) || !is_usable(id.gid) {
            return Err(format!("the user {role} must not have uid or gid 0"));
        }
        if let Some((other, _)) = ids.iter().take(at).find(|(_, known)| known.uid == id.uid) {
            return Err(format!("the users {other} and {role} have the same uid {}; each role needs its own", id.uid));
        }
        let is_target = TARGET_ROLES.contains(&role.as_str());
        if is_target && id.gid == group {
            return Err(format!(
                "the user {role} must not have the group {GROUP}, which reaches the sockets of the service roles"
            ));
        }
    }
    Ok(())
}

fn advice(missing: &[&str], no_group: bool) -> String {
    let mut lines = Vec::new();
    if no_group {
        lines.push(format!("groupadd --system {GROUP}"));
    }
    for role in missing {
        let group = if SERVICE_ROLES.contains(role) { format!("--gid {GROUP}") } else { "--user-group".to_owned() };
        lines.push(format!("useradd --system {group} --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin {role}"));
    }
    let what = if no_group { [&[GROUP], missing].concat() } else { missing.to_vec() };
    format!("passwd and group lack: {}. Add them, for example so, or give --ids FIRST:\n{}", what.join(" "), lines.join("\n"))
}

struct Numbers<'a, N> {
    names: &'a N,
    next: u32,
    tries: u32,
}

impl<N: Names> Numbers<'_, N> {
    fn take(&mut self) -> Result<u32, String> {
        while self.tries < TRIES_MAX {
            self.tries = self.tries.saturating_add(1);
            let number = self.next;
            self.next = self.next.saturating_add(1);
            let taken = self.names.is_taken(number).map_err(|error| format!("users cannot be looked up: {error}"))?;
            if is_usable(number) && !taken {
                return Ok(number);
            }
        }
        Err(format!("no free ids up to {}; give --ids FIRST with another number", self.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Table(Vec<(&'static str, u32, u32)>, Option<u32>);

    impl Names for Table {
        fn user(&self, name: &str) -> io::Result<Option<Id>> {
            Ok(self.0.iter().find(|user| user.0 == name).map(|user| Id { uid: user.1, gid: user.2 }))
        }
        fn group(&self, name: &str) -> io::Result<Option<u32>> {
            Ok(self.1.filter(|_| name == GROUP))
        }
        fn is_taken(&self, number: u32) -> io::Result<bool> {
            Ok(self.0.iter().any(|user| user.1 == number || user.2 == number) || self.1 == Some(number))
        }
    }

    #[test]
    fn numbers_are_consecutive_and_skip_what_passwd_knows() {
        let names = Table(vec![("other", 64_102, 100), ("qmaild", 7, 8)], None);
        let text = choose(&names, Some(64_100)).unwrap().to_text();
        let expected = "qmailp 64101 64100\nqmaila 64103 64100\nqmaild 7 64100\nqmailq 64104 64100\nqmailr 64105 64100\n\
            qmailx 64106 64100\nqmailk 64107 64100\nqmailn 64108 64100\nqmailc 64109 64100\n\
            alias 64110 64110\nvmail 64111 64111\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_older_instance_gets_what_it_lacks() {
        let old = Ids::parse(
            b"qmailp 64101 64100\nqmaila 64102 64100\nqmaild 64103 64100\nqmailq 64104 64100\nqmailr 64105 64100\n\
            qmailx 64106 64100\nalias 64107 64107\nvmail 64108 64108\n",
        )
        .unwrap();
        let numbered = missing(&Table(vec![], None), &old, Some(64_100)).unwrap();
        let all = |uids: [u32; 3]| {
            let roles = ["qmailk", "qmailn", "qmailc"].map(str::to_owned);
            roles.into_iter().zip(uids.map(|uid| Id { uid, gid: 64_100 })).collect::<Vec<_>>()
        };
        assert_eq!(numbered, all([64_109, 64_110, 64_111]));
        let known = missing(&Table(vec![("qmailk", 7, 8), ("qmailn", 9, 8), ("qmailc", 10, 8)], None), &old, None).unwrap();
        assert_eq!(known, all([7, 9, 10]));
        let text = missing(&Table(vec![], None), &old, None).unwrap_err();
        assert!(
            text.contains("lack: qmailk qmailn qmailc.")
                && text.contains("useradd --system --gid qmail")
                && !text.contains("groupadd"),
            "{text}"
        );
        assert!(
            missing(&Table(vec![("qmailk", 64_104, 8), ("qmailn", 9, 8), ("qmailc", 10, 8)], None), &old, None)
                .unwrap_err()
                .contains("same uid")
        );
        let complete = choose(&Table(vec![], None), Some(64_100)).unwrap();
        assert_eq!(missing(&Table(vec![], None), &complete, None).unwrap(), []);
    }

    #[test]
    fn for_the_system_passwd_must_know_everybody() {
        let mut all: Vec<(&str, u32, u32)> = SERVICE_ROLES.into_iter().zip(101..).map(|(role, uid)| (role, uid, 1)).collect();
        all.extend([("alias", 201, 201), ("vmail", 202, 202)]);
        let ids = choose(&Table(all.clone(), Some(100)), None).unwrap();
        assert_eq!(ids.get("qmailx"), Some(Id { uid: 106, gid: 100 }));
        assert_eq!(ids.get("vmail"), Some(Id { uid: 202, gid: 202 }));
        let text = choose(&Table(all[1..].to_vec(), None), None).unwrap_err();
        assert!(text.contains("lack: qmail qmailp.") && text.contains("useradd --system --gid qmail"), "{text}");
        all[1].1 = 101;
        assert!(choose(&Table(all.clone(), Some(100)), None).unwrap_err().contains("same uid"));
        all[1].1 = 0;
        assert!(choose(&Table(all.clone(), Some(100)), None).unwrap_err().contains("uid or gid 0"));
        all[1].1 = 300;
        let alias = SERVICE_ROLES.len();
        all[alias].2 = 100;
        assert!(choose(&Table(all, Some(100)), None).unwrap_err().contains("alias must not have the group"));
    }
}
