//! As whom a delivery runs: the judgement that makes qmail-lspawn trustworthy though others answer its questions.
//!
//! Pure. What users/assign and users/domains (root's own files) name is legal unless it is root or a service role. What
//! qmail-getpw says counts only if the uid is a person's and the home belongs to that uid; everybody else's mail goes to alias,
//! as mail for root always did. Not running as root, the caller is the only legal target.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use control::{Id, Ids, VirtualDomain};
use ipc::field::Bytes;
use ipc::worker::Recipient;
use users::{Entry, UserName};
use wire::{Address, Domain};

/// Workers with the same key can do each other's work.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// All addresses of a uid and gid.
    System(Id),
    /// All users of a virtual domain, as long as users/domains gives it this owner and place.
    Virtual(Domain, Id, PathBuf),
}

/// Somebody for whom a worker may be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub key: Key,
    pub id: Id,
    /// A virtual domain's directory, beyond which its worker never goes; `None` for a system user.
    pub base: Option<PathBuf>,
    pub recipient: Recipient,
    pub may_exec: bool,
}

/// Why there is no target now. All temporary: the configuration may be repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub String);

/// What the judgement rests on.
#[derive(Debug, Clone)]
pub struct Rules {
    /// This process's own uid.
    pub uid: u32,
    pub ids: Ids,
    pub uid_min: u32,
    pub alias_home: PathBuf,
}

/// qmail-getpw's answer, not to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub user: Bytes,
    pub id: Id,
    pub home: Bytes,
    pub dash: Bytes,
    pub ext: Bytes,
}

impl Rules {
    /// A user that users/assign names.
    ///
    /// # Errors
    /// Root, a service role, a home that is no absolute path, or another than the caller when not root.
    pub fn assigned(&self, entry: Entry, address: &Address) -> Result<Target, Refusal> {
        self.check(entry.id)?;
        if !is_absolute(&entry.home) {
            return Err(refusal("users/assign names a home that is no absolute path; write it from / on (#4.3.5)"));
        }
        let recipient = Recipient {
            user: entry.user.into(),
            home: entry.home.into(),
            local: address.local().into(),
            dash: entry.dash.into(),
            ext: entry.ext.into(),
            domain: address.domain().unwrap_or_default().into(),
        };
        Ok(system(entry.id, recipient))
    }

    /// A user that qmail-getpw names; `owner` says to whom and to which group a directory belongs. System accounts, service roles and root have no
    /// mailbox: their mail is alias's, where `.qmail-NAME` says what becomes of it.
    ///
    /// # Errors
    /// A claim that is not true, no alias in this instance, or another than the caller when not root.
    pub fn claimed(&self, claim: Claim, address: &Address, owner: impl Fn(&Path) -> Option<Id>) -> Result<Target, Refusal> {
        let local = address.local();
        let is_alias = self.is_alias(&claim);
        let is_person = claim.id.uid != 0 && claim.id.uid >= self.uid_min && !self.ids.is_service(claim.id.uid);
        if is_alias || !is_person {
            let ext = if is_alias { alias_ext(&claim, local) } else { local };
            return self.alias(ext, address);
        }
        self.check(claim.id)?;
        if !is_split(local, &claim) {
            return Err(refusal("qmail-getpw answered for another address (#4.3.0)"));
        }
        let home = Path::new(OsStr::from_bytes(&claim.home));
        let Some(owner) = Some(home).filter(|home| home.is_absolute()).and_then(owner).filter(|owner| owner.uid == claim.id.uid)
        else {
            return Err(refusal("the home directory is not there or does not belong to the user (#4.3.0)"));
        };
        if self.uid == 0 && !self.may_have_group(claim.id.gid, owner.gid) {
            return Err(refusal("the user's group is a system's, and not that of the home directory (#4.3.0)"));
        }
        let domain = address.domain().unwrap_or_default().into();
        let recipient =
            Recipient { user: claim.user, home: claim.home, local: local.into(), dash: claim.dash, ext: claim.ext, domain };
        Ok(system(claim.id, recipient))
    }

    /// A user of a virtual domain, or with `None` the domain itself (whose aliases forward).
    ///
    /// # Errors
    /// users/domains names root, a service role, or when not root another than the caller.
    pub fn mailbox(
        &self,
        domain: &Domain,
        entry: &VirtualDomain,
        user: Option<&UserName>,
        ext: &[u8],
        address: &Address,
        may_exec: bool,
    ) -> Result<Target, Refusal> {
        self.check(entry.id)?;
        let home = user.map_or_else(|| entry.base().to_owned(), |user| entry.home(user));
        let recipient = Recipient {
            user: user.map_or(&b"alias"[..], UserName::as_bytes).into(),
            home: home.as_os_str().as_bytes().into(),
            local: address.local().into(),
            dash: if ext.is_empty() { "" } else { "-" }.into(),
            ext: ext.into(),
            domain: address.domain().unwrap_or_else(|| domain.as_bytes()).into(),
        };
        let base = Some(entry.base().to_owned());
        let key = Key::Virtual(domain.clone(), entry.id, entry.base().to_owned());
        Ok(Target { key, id: entry.id, base, recipient, may_exec })
    }

    /// Does the claim say that the local part is nobody's, or alias's own?
    #[must_use]
    pub fn is_alias(&self, claim: &Claim) -> bool {
        self.ids.get("alias").is_some_and(|alias| alias.uid == claim.id.uid) && claim.user[..] == b"alias"[..]
    }

    /// Nothing but qmail-getpw says what group a user has, and some groups are as good as root. So one of the system's is believed
    /// only where the home shows it (a user can give it no group that is not his), and that of the service roles never.
    fn may_have_group(&self, gid: u32, home_gid: u32) -> bool {
        self.ids.group() != Some(gid) && (gid >= self.uid_min || gid == home_gid)
    }

    fn alias(&self, ext: &[u8], address: &Address) -> Result<Target, Refusal> {
        let id = self.ids.get("alias").ok_or_else(|| refusal("etc/qmail/ids has no line for alias; run qmail setup (#4.3.5)"))?;
        self.check(id)?;
        let recipient = Recipient {
            user: "alias".into(),
            home: self.alias_home.as_os_str().as_bytes().into(),
            local: address.local().into(),
            dash: "-".into(),
            ext: ext.into(),
            domain: address.domain().unwrap_or_default().into(),
        };
        Ok(system(id, recipient))
    }

    /// The last word, whoever asks.
    fn check(&self, id: Id) -> Result<(), Refusal> {
        if self.uid != 0 {
            let own = id.uid == self.uid;
            return if own { Ok(()) } else { Err(refusal("not running as root: mail is delivered to the caller only (#4.3.5)")) };
        }
        if !users::ids::is_usable(id.uid) || !users::ids::is_usable(id.gid) {
            return Err(refusal("Not allowed to perform deliveries as root."));
        }
        if self.ids.is_service(id.uid) {
            return Err(refusal("mail is never delivered as a service user of qmail (#4.3.5)"));
        }
        Ok(())
    }
}

fn system(id: Id, recipient: Recipient) -> Target {
    Target { key: Key::System(id), id, base: None, recipient, may_exec: true }
}

fn refusal(text: &str) -> Refusal {
    Refusal(text.to_owned())
}

fn is_absolute(home: &[u8]) -> bool {
    home.first() == Some(&b'/') && !home.contains(&0)
}

/// `alias-ext` was written out, or the whole local part was nobody's.
fn alias_ext<'a>(claim: &Claim, local: &'a [u8]) -> &'a [u8] {
    let named = local.get(..6).is_some_and(|front| front.eq_ignore_ascii_case(b"alias-"));
    if named && claim.ext.len() < local.len() { local.get(6..).unwrap_or_default() } else { local }
}

/// Is the local part user, dash and ext of the claim one after the other?
fn is_split(local: &[u8], claim: &Claim) -> bool {
    let (user, rest) = local.split_at_checked(claim.user.len()).unwrap_or_default();
    let dash_is_right = if rest.is_empty() { claim.dash.is_empty() } else { claim.dash[..] == b"-"[..] };
    dash_is_right && user.eq_ignore_ascii_case(&claim.user) && rest == [&claim.dash[..], &claim.ext[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(uid: u32) -> Rules {
        let text = b"qmailp 64100 64100\nqmailq 64103 64100\nalias 64106 64106\nvmail 64107 64107\n";
        let ids = if uid == 0 { Ids::parse(text).unwrap() } else { Ids::Caller(Id { uid, gid: uid }) };
        Rules { uid, ids, uid_min: 1000, alias_home: "/etc/qmail/alias".into() }
    }

    fn address(text: &str) -> Address {
        Address::new(text.as_bytes()).unwrap()
    }

    fn claim(user: &str, uid: u32, dash: &str, ext: &str) -> Claim {
        let home = format!("/home/{user}").as_str().into();
        Claim { user: user.into(), id: Id { uid, gid: uid }, home, dash: dash.into(), ext: ext.into() }
    }

    fn owner(home: &Path) -> Option<Id> {
        let (uid, gid) = match home.to_str()? {
            "/home/ann" => (1001, 1001),
            "/home/bob" => (1002, 1002),
            "/home/eve" => (1004, 100),
            "/home/mal" => (1005, 64100),
            _ => return None,
        };
        Some(Id { uid, gid })
    }

    /// A gid that is not the user's would open what belongs to others: the sockets of the service roles, the disks.
    #[test]
    fn a_group_that_getpw_claims_is_the_users() {
        let rules = rules(0);
        for (user, uid, gid, legal) in [
            ("ann", 1001, 1001, true),
            ("ann", 1001, 2000, true),
            ("ann", 1001, 100, false),
            ("ann", 1001, 6, false),
            ("ann", 1001, 0, false),
            ("ann", 1001, 64100, false),
            ("eve", 1004, 100, true),
            ("mal", 1005, 64100, false),
        ] {
            let claim = Claim { id: Id { uid, gid }, ..claim(user, uid, "", "") };
            let got = rules.claimed(claim, &address(user), owner);
            assert_eq!(got.is_ok(), legal, "{user} {gid}: {got:?}");
        }
        let own = Rules { uid: 1001, ids: Ids::Caller(Id { uid: 1001, gid: 100 }), ..rules };
        let claim = Claim { id: Id { uid: 1001, gid: 50 }, ..claim("ann", 1001, "", "") };
        assert!(own.claimed(claim, &address("ann"), owner).is_ok(), "who cannot change ids runs as what he is");
    }

    /// A worker that runs as the old owner, or is confined to the old place, is of no use to the new one.
    #[test]
    fn a_domain_that_changed_hands_has_other_workers() {
        let key = |uid, base: &str| {
            let entry = VirtualDomain::new(Id { uid, gid: 64107 }, Path::new(base)).unwrap();
            let domain = Domain::new(b"v.example").unwrap();
            rules(0).mailbox(&domain, &entry, None, b"", &address("x@v.example"), false).unwrap().key
        };
        assert_eq!(key(5000, "/m/a"), key(5000, "/m/a"));
        assert_ne!(key(5000, "/m/a"), key(5001, "/m/a"));
        assert_ne!(key(5000, "/m/a"), key(5000, "/m/b"));
    }

    #[test]
    fn what_getpw_claims() {
        let rules = rules(0);
        let table = [
            ("ann@h", claim("ann", 1001, "", ""), "ann 1001  ''"),
            ("Ann-X@h", claim("ann", 1001, "-", "X"), "ann 1001 - 'X'"),
            ("root@h", claim("root", 0, "", ""), "alias 64106 - 'root'"),
            ("www-data-x@h", claim("www-data", 33, "-", "x"), "alias 64106 - 'www-data-x'"),
            ("qmailq@h", claim("qmailq", 64103, "", ""), "alias 64106 - 'qmailq'"),
            ("none@h", claim("alias", 64106, "-", "none"), "alias 64106 - 'none'"),
            ("alias-ext@h", claim("alias", 64106, "-", "ext"), "alias 64106 - 'ext'"),
            ("ann@h", claim("ann", 1002, "", ""), "not"),
            ("ann@h", claim("bob", 1002, "", ""), "not"),
            ("ann-x@h", claim("ann", 1001, "-", "y"), "not"),
            ("ann-x@h", claim("ann", 1001, "", "x"), "not"),
            ("ann-@h", claim("ann", 1001, "-", ""), "ann 1001 - ''"),
            ("nohome@h", claim("nohome", 1003, "", ""), "not"),
            ("vmail@h", claim("vmail", 64107, "", ""), "not"),
        ];
        for (recipient, claim, expected) in table {
            let got = rules.claimed(claim.clone(), &address(recipient), owner);
            let got = got.map_or("not".to_owned(), |target| {
                let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                let to = &target.recipient;
                assert_eq!((&to.local[..], &to.domain[..]), (address(recipient).local(), &b"h"[..]));
                format!("{} {} {} '{}'", text(&to.user), target.id.uid, text(&to.dash), text(&to.ext))
            });
            assert_eq!(got, expected, "{recipient} {claim:?}");
        }
    }

    #[test]
    fn alias_lives_in_the_instance_whatever_getpw_says() {
        let target = rules(0).claimed(claim("alias", 64106, "-", "x"), &address("x"), owner).unwrap();
        assert_eq!(&target.recipient.home[..], b"/etc/qmail/alias");
    }

    #[test]
    fn root_and_service_roles_are_refused_even_when_a_file_names_them() {
        let rules = rules(0);
        for (uid, gid, legal) in
            [(0, 5, false), (5, 0, false), (64100, 5, false), (64103, 5, false), (33, 33, true), (64106, 5, true)]
        {
            let entry =
                Entry { user: b"x".to_vec(), id: Id { uid, gid }, home: b"/x".to_vec(), dash: Vec::new(), ext: Vec::new() };
            let assigned = rules.assigned(entry, &address("x@h"));
            assert_eq!(assigned.is_ok(), legal, "assign {uid}");
            if uid == 0 {
                assert_eq!(assigned.unwrap_err().0, "Not allowed to perform deliveries as root.");
            }
            if let Some(entry) = VirtualDomain::new(Id { uid, gid }, Path::new("/m")) {
                let domain = Domain::new(b"v.example").unwrap();
                assert_eq!(
                    rules.mailbox(&domain, &entry, None, b"", &address("x@v.example"), false).is_ok(),
                    legal,
                    "domains {uid}"
                );
            }
        }
    }

    #[test]
    fn not_root_only_the_caller_is_a_target() {
        let rules = rules(1001);
        assert!(rules.claimed(claim("ann", 1001, "", ""), &address("ann@h"), owner).is_ok());
        let refused = rules.claimed(claim("bob", 1002, "", ""), &address("bob@h"), owner).unwrap_err();
        assert!(refused.0.contains("not running as root"), "{}", refused.0);
        assert_eq!(rules.claimed(claim("root", 0, "", ""), &address("root@h"), owner).unwrap().id.uid, 1001);
    }

    #[test]
    fn a_virtual_home_is_below_its_base() {
        let entry = VirtualDomain::new(Id { uid: 64107, gid: 64107 }, Path::new("/m/v.example")).unwrap();
        let domain = Domain::new(b"v.example").unwrap();
        let user = UserName::new(b"Ann").unwrap();
        let target = rules(0).mailbox(&domain, &entry, Some(&user), b"x", &address("Ann-x@V.example"), false).unwrap();
        assert_eq!(&target.recipient.home[..], b"/m/v.example/ann");
        assert_eq!((&target.recipient.local[..], &target.recipient.dash[..]), (&b"Ann-x"[..], &b"-"[..]));
        assert_eq!((target.base, target.may_exec), (Some("/m/v.example".into()), false));
    }
}
