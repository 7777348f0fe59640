//! `etc/qmail/ids`: under which numbers the processes of this instance run, a line `role uid gid` each.
//!
//! Service roles share one gid, the group `qmail`, and have a uid each; `alias` and `vmail` are targets of deliveries with a
//! gid of their own. Numbers, not names: an instance that is not the system's needs no entry in passwd.

use crate::{LineError, list_lines, number};

/// Roles of service processes, in the order in which ids are given out.
pub const SERVICE_ROLES: [&str; 9] = ["qmailp", "qmaila", "qmaild", "qmailq", "qmailr", "qmailx", "qmailk", "qmailn", "qmailc"];
/// Ids that own mail: legal targets of a delivery, though they may be below `uidmin`.
pub const TARGET_ROLES: [&str; 2] = ["alias", "vmail"];
/// The directory of all roles' sockets is open to this group; also the name of the passwd group.
pub const GROUP: &str = "qmail";

/// What a role runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id {
    pub uid: u32,
    pub gid: u32,
}

/// All ids of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// Not root: every id is the caller.
    Caller(Id),
    /// As the file says.
    Table(Vec<(String, Id)>),
}

impl Ids {
    /// Reads the file. Roles it does not know are kept: a later version's file must not stop an older program.
    ///
    /// # Errors
    /// A line of another form, a role named twice, uid or gid 0; temporary.
    pub fn parse(text: &[u8]) -> Result<Self, LineError> {
        let mut table: Vec<(String, Id)> = Vec::new();
        for (line_number, line) in list_lines(text) {
            let (role, id) = parse_line(line)
                .ok_or_else(|| LineError::new(line_number, "is no line of this file; write `role uid gid`, both ids above 0"))?;
            if table.iter().any(|(known, _)| *known == role) {
                return Err(LineError::new(line_number, format!("role {role} stands here twice; take one of them out")));
            }
            table.push((role, id));
        }
        Ok(Self::Table(table))
    }

    /// The id of a role, if the instance has that role.
    #[must_use]
    pub fn get(&self, role: &str) -> Option<Id> {
        match self {
            Self::Caller(id) => Some(*id),
            Self::Table(table) => table.iter().find(|(name, _)| name == role).map(|(_, id)| *id),
        }
    }

    /// The uid of a role. `root` is 0, or the caller when nothing runs as root.
    #[must_use]
    pub fn uid_of(&self, role: &str) -> Option<u32> {
        match self {
            Self::Table(_) if role == "root" => Some(0),
            ids => ids.get(role).map(|id| id.uid),
        }
    }

    /// Does this uid belong to a service role? Such a uid is never the target of a delivery. Every role but the targets
    /// counts, known to this version or not. When not root, no uid is a service role's: the caller is the only target.
    #[must_use]
    pub fn is_service(&self, uid: u32) -> bool {
        match self {
            Self::Caller(_) => false,
            Self::Table(table) => table.iter().any(|(role, id)| id.uid == uid && !TARGET_ROLES.contains(&role.as_str())),
        }
    }

    /// The gid that all service roles share.
    #[must_use]
    pub fn group(&self) -> Option<u32> {
        self.get("qmailq").map(|id| id.gid)
    }

    /// The file that [`Ids::parse`] reads back.
    #[must_use]
    pub fn to_text(&self) -> String {
        let line = |role: &str, id: Id| format!("{role} {} {}\n", id.uid, id.gid);
        match self {
            Self::Caller(id) => SERVICE_ROLES.iter().chain(&TARGET_ROLES).map(|role| line(role, *id)).collect(),
            Self::Table(table) => table.iter().map(|(role, id)| line(role, *id)).collect(),
        }
    }
}

fn parse_line(line: &[u8]) -> Option<(String, Id)> {
    let mut fields = line.split(|b| matches!(b, b' ' | b'\t')).filter(|field| !field.is_empty());
    let role = fields.next().filter(|role| role.iter().all(u8::is_ascii_alphanumeric))?;
    let role = String::from_utf8(role.to_vec()).ok()?;
    let uid = number(fields.next()?).filter(|uid| is_usable(*uid))?;
    let gid = number(fields.next()?).filter(|gid| is_usable(*gid))?;
    fields.next().is_none().then_some((role, Id { uid, gid }))
}

/// 0 is root; the largest number means "no change" to setresuid(2).
#[must_use]
pub fn is_usable(id: u32) -> bool {
    id != 0 && id != u32::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] =
        b"# ids\nqmailp 64100 64100\nqmailq\t64103  64100\nalias 64106 64106\nvmail 64107 64107\nqmailz 64110 64100\n";

    #[test]
    fn reads_and_writes_the_table() {
        let ids = Ids::parse(FILE).unwrap();
        assert_eq!(ids.get("qmailq"), Some(Id { uid: 64103, gid: 64100 }));
        assert_eq!(ids.get("qmailr"), None);
        assert_eq!(ids.group(), Some(64100));
        assert_eq!(Ids::parse(ids.to_text().as_bytes()).unwrap(), ids);
    }

    #[test]
    fn service_roles_are_no_targets_and_targets_are_no_service_roles() {
        let ids = Ids::parse(FILE).unwrap();
        for (uid, expected) in [(64100, true), (64103, true), (64106, false), (64107, false), (64110, true), (1000, false)] {
            assert_eq!(ids.is_service(uid), expected, "{uid}");
        }
        let caller = Ids::Caller(Id { uid: 7, gid: 8 });
        assert!(!caller.is_service(7));
        assert_eq!(caller.get("anything"), Some(Id { uid: 7, gid: 8 }));
    }

    #[test]
    fn refuses_what_would_become_root() {
        for bad in [
            "qmailq 0 1",
            "qmailq 1 0",
            "qmailq 1",
            "qmailq 1 2 3",
            "qmail/q 1 2",
            "qmailq -1 2",
            "qmailq 4294967295 1",
            "a 1 1\na 2 2",
        ] {
            assert!(Ids::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
