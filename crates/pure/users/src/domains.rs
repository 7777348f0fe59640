//! `etc/qmail/users/domains`: which domains are virtual, a line `domain:uid:gid:base` each.
//!
//! This file alone makes a domain virtual, names the id that owns its mail and the directory that holds it; it is root's, and
//! whoever uses it for more than a look has checked that. A user's home is `base/USER`. Used by qmail-lspawn (ids and paths),
//! qmail-send (routing), qmail-smtpd (implied rcpthosts), `qmail domain`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use wire::Domain;

use crate::ids::is_usable;
use crate::{Id, LineError, UserName, list_lines, number};

/// Where a virtual domain's mail lives and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualDomain {
    pub id: Id,
    base: PathBuf,
}

impl VirtualDomain {
    /// `None` unless `base` is an absolute path without `.` and `..`, NUL or newline, and both ids may own mail.
    #[must_use]
    pub fn new(id: Id, base: &Path) -> Option<Self> {
        let bytes = base.as_os_str().as_bytes();
        let plain = base.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let one_line = !bytes.iter().any(|b| matches!(b, 0 | b'\n'));
        let dotless = !bytes.split(|b| *b == b'/').any(|part| part == b"." || part == b"..");
        let sound = base.is_absolute() && base.parent().is_some() && plain && one_line && dotless;
        (sound && is_usable(id.uid) && is_usable(id.gid)).then(|| Self { id, base: base.into() })
    }

    /// The directory of the domain: absolute, not `/`, without `..`.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The home of a user.
    #[must_use]
    pub fn home(&self, user: &UserName) -> PathBuf {
        self.base.join(user.as_path())
    }
}

/// All virtual domains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VirtualDomains(HashMap<Domain, VirtualDomain>);

impl VirtualDomains {
    /// Reads the file.
    ///
    /// # Errors
    /// The first line that is not `domain:uid:gid:base`, or a domain that stands twice; temporary.
    pub fn parse(text: &[u8]) -> Result<Self, LineError> {
        let mut domains = HashMap::new();
        for (number, line) in list_lines(text) {
            let (domain, entry) = parse_line(line).map_err(|problem| LineError::new(number, problem))?;
            if domains.insert(domain.clone(), entry).is_some() {
                return Err(LineError::new(number, format!("{domain} stands here twice; take one of them out")));
            }
        }
        Ok(Self(domains))
    }

    /// The entry of a domain as it stands in an address, in any case.
    #[must_use]
    pub fn get(&self, domain: &[u8]) -> Option<&VirtualDomain> {
        self.0.get(&Domain::new(domain).ok()?)
    }

    /// Adds a domain; false if it is there already.
    pub fn add(&mut self, domain: Domain, entry: VirtualDomain) -> bool {
        match self.0.entry(domain) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(entry);
                true
            }
        }
    }

    pub fn remove(&mut self, domain: &Domain) -> Option<VirtualDomain> {
        self.0.remove(domain)
    }

    /// In the order of their names.
    #[must_use]
    pub fn sorted(&self) -> Vec<(&Domain, &VirtualDomain)> {
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_by_key(|(domain, _)| *domain);
        all
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The file that [`VirtualDomains::parse`] reads back.
    #[must_use]
    pub fn to_text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for (domain, entry) in self.sorted() {
            text.extend_from_slice(domain.as_bytes());
            text.extend_from_slice(format!(":{}:{}:", entry.id.uid, entry.id.gid).as_bytes());
            text.extend_from_slice(entry.base.as_os_str().as_bytes());
            text.push(b'\n');
        }
        text
    }
}

fn parse_line(line: &[u8]) -> Result<(Domain, VirtualDomain), String> {
    const FORM: &str = "is no line of this file; write domain:uid:gid:base";
    // An IPv6 literal holds colons itself.
    let domain_end = if line.first() == Some(&b'[') { line.iter().position(|b| *b == b']') } else { Some(0) };
    let from = domain_end.ok_or(FORM)?;
    let colon = line.iter().skip(from).position(|b| *b == b':').and_then(|at| at.checked_add(from)).ok_or(FORM)?;
    let (domain, rest) = line.split_at_checked(colon).ok_or(FORM)?;
    let mut fields = rest.get(1..).unwrap_or_default().splitn(3, |b| *b == b':');
    let domain = Domain::new(domain).map_err(|error| format!("`{}`: {error}", wire::escape::visible(domain)))?;
    let uid = fields.next().and_then(number).ok_or("uid is no number; write domain:uid:gid:base")?;
    let gid = fields.next().and_then(number).ok_or("gid is no number; write domain:uid:gid:base")?;
    let base = PathBuf::from(OsString::from_vec(fields.next().ok_or(FORM)?.to_vec()));
    let entry = VirtualDomain::new(Id { uid, gid }, &base);
    Ok((domain, entry.ok_or("base, uid or gid cannot be used; write an absolute path without `.` and `..`, and ids above 0")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_file() {
        let text = b"b.example:1001:1002:/srv/a:b\nA.Example.:64107:64107:/var/mail/a.example\n[ipv6:::1]:5:6:/x\n";
        let domains = VirtualDomains::parse(text).unwrap();
        let a = domains.get(b"a.EXAMPLE").unwrap();
        assert_eq!((a.id, a.base()), (Id { uid: 64107, gid: 64107 }, Path::new("/var/mail/a.example")));
        assert_eq!(a.home(&UserName::new(b"Ann").unwrap()), Path::new("/var/mail/a.example/ann"));
        assert_eq!(domains.get(b"b.example").unwrap().base(), Path::new("/srv/a:b"));
        assert_eq!(domains.get(b"[IPv6:::1]").unwrap().id, Id { uid: 5, gid: 6 });
        assert_eq!(domains.get(b"sub.a.example"), None);
        assert_eq!(VirtualDomains::parse(&domains.to_text()).unwrap(), domains);
    }

    #[test]
    fn refuses_root_and_paths_that_wander() {
        for bad in [
            "a.example",
            "a.example:1:2",
            "a.example:0:2:/x",
            "a.example:1:0:/x",
            "a.example:1:2:x",
            "a.example:1:2:",
            "a.example:1:2:/",
            "a.example:1:2:/x/../y",
            "a.example:1:2:/x/./y",
            "a.example:4294967295:2:/x",
            "a/b:1:2:/x",
            ":1:2:/x",
            "[::1:1:2:/x",
            "a.example:1:2:/x\na.EXAMPLE:1:2:/y",
        ] {
            assert!(VirtualDomains::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
