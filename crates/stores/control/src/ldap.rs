//! control/ldap: how logins are checked against a directory. Read by qmail-authnet.

use std::path::PathBuf;

use crate::keyed::Keyed;
use crate::url::Endpoint;
use crate::{ControlError, Root};

/// Servers that are asked one after the other.
pub const SERVERS_MAX: usize = 4;
const PORT_LDAP: u16 = 389;
const PORT_LDAPS: u16 = 636;
/// The file's name.
pub const FILE: &str = "ldap";

/// Where a server is, and how what is said to it is kept secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// `ldaps://`: TLS from the first byte.
    Tls(Endpoint),
    /// `ldap://`, with TLS before anything else is said.
    StartTls(Endpoint),
    /// `ldap://` with `starttls no`.
    Clear(Endpoint),
    /// `ldapi://`: a Unix socket.
    Unix(PathBuf),
}

/// How far below the base is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Base,
    One,
    Sub,
}

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ldap {
    pub servers: Vec<Server>,
    /// Authorities that are trusted instead of the system's.
    pub cafile: Option<PathBuf>,
    /// The name that searches, and the file with its password; `None`: anonymous.
    pub bind: Option<(String, PathBuf)>,
    pub base: String,
    pub scope: Scope,
    /// With `%n`, `%u`, `%d`; its form is not checked here.
    pub filter: String,
    /// The attribute that names the account.
    pub attribute: String,
    /// What is put behind a name without `@`.
    pub domain: Option<String>,
}

impl Ldap {
    /// Reads `control/ldap`.
    ///
    /// # Errors
    /// Missing, unreadable or malformed; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let missing = || ControlError::new(&root.control_file(FILE), "missing; control/authsources names `ldap`");
        let mut keyed = Keyed::read(root, FILE)?.ok_or_else(missing)?;
        let starttls = match keyed.one_or("starttls", "yes")?.as_str() {
            "yes" => true,
            "no" => false,
            other => return Err(keyed.wrong(format!("`starttls {other}` is neither `yes` nor `no`"))),
        };
        let servers: Option<Vec<Server>> = keyed.many("url").iter().map(|url| server(url, starttls)).collect();
        let servers = servers.ok_or_else(|| {
            keyed.wrong("an `url` is ldap://HOST[:PORT], ldaps://HOST[:PORT] or ldapi://PATH with %2F for each slash of the path")
        })?;
        if servers.is_empty() || servers.len() > SERVERS_MAX {
            return Err(keyed.wrong(format!("must have 1 to {SERVERS_MAX} lines `url`")));
        }
        let bind = match (keyed.one("binddn")?, keyed.path("bindpwfile")?) {
            (Some(name), Some(file)) => Some((name, file)),
            (None, None) => None,
            _ => return Err(keyed.wrong("`binddn` and `bindpwfile` go together")),
        };
        let scope = match keyed.one_or("scope", "sub")?.as_str() {
            "base" => Scope::Base,
            "one" => Scope::One,
            "sub" => Scope::Sub,
            other => return Err(keyed.wrong(format!("`scope {other}` is none of `base`, `one`, `sub`"))),
        };
        let ldap = Self {
            servers,
            cafile: keyed.path("cafile")?,
            bind,
            base: keyed.needed("base", "ou=people,dc=example,dc=org")?,
            scope,
            filter: keyed.one_or("filter", "(mail=%n)")?,
            attribute: keyed.one_or("user", "mail")?,
            domain: keyed.one("domain")?,
        };
        keyed.end()?;
        Ok(ldap)
    }
}

fn server(url: &str, starttls: bool) -> Option<Server> {
    let (scheme, rest) = url.split_once("://")?;
    let place = rest.strip_suffix('/').unwrap_or(rest);
    match scheme {
        "ldap" if starttls => Endpoint::parse(place, PORT_LDAP).map(Server::StartTls),
        "ldap" => Endpoint::parse(place, PORT_LDAP).map(Server::Clear),
        "ldaps" => Endpoint::parse(place, PORT_LDAPS).map(Server::Tls),
        "ldapi" => path(place).map(Server::Unix),
        _ => None,
    }
}

/// An absolute path with its slashes as `%2F`.
fn path(text: &str) -> Option<PathBuf> {
    let is_plain = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b'%';
    let path = text.replace("%2F", "\0").replace("%2f", "\0");
    let is_good = path.starts_with('\0') && path.bytes().all(|b| b == 0 || is_plain(b));
    is_good.then(|| PathBuf::from(path.replace('\0', "/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Ldap, ControlError> {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        std::fs::write(root.control_file(FILE), text).unwrap();
        Ldap::read(&root)
    }

    #[test]
    fn defaults_and_values() {
        let ldap = read("url ldap://ldap.example.org\nbase dc=example,dc=org\n").unwrap();
        let endpoint = |host: &str, port| Endpoint { host: host.to_owned(), port };
        assert_eq!(ldap.servers, [Server::StartTls(endpoint("ldap.example.org", 389))]);
        assert_eq!(
            (ldap.scope, ldap.filter.as_str(), ldap.attribute.as_str(), &ldap.bind),
            (Scope::Sub, "(mail=%n)", "mail", &None)
        );
        let ldap = read(
            "# two servers\nurl ldaps://a.example/\nurl ldap://[::1]:1389\nurl ldapi://%2Frun%2fslapd%2Fldapi\nstarttls no\n\
             cafile /etc/ca.pem\nbinddn cn=mail server,dc=example\nbindpwfile ldap.secret\nbase  dc=example \nscope one\n\
             filter (&(objectClass=person)(uid=%u))\nuser uid\ndomain example.org\n",
        )
        .unwrap();
        let unix = Server::Unix("/run/slapd/ldapi".into());
        assert_eq!(ldap.servers, [Server::Tls(endpoint("a.example", 636)), Server::Clear(endpoint("::1", 1389)), unix]);
        let (name, file) = ldap.bind.unwrap();
        assert!(name == "cn=mail server,dc=example" && file.ends_with("etc/qmail/control/ldap.secret"), "{file:?}");
        assert_eq!((ldap.cafile, ldap.base.as_str()), (Some("/etc/ca.pem".into()), "dc=example"));
        assert_eq!((ldap.scope, ldap.filter.as_str()), (Scope::One, "(&(objectClass=person)(uid=%u))"));
        assert_eq!((ldap.attribute.as_str(), ldap.domain.as_deref()), ("uid", Some("example.org")));
    }

    #[test]
    fn errors_name_the_setting() {
        let url = "url ldap://a\n";
        for (text, part) in [
            ("base x\n", "1 to 4 lines `url`"),
            (&url.repeat(5), "1 to 4 lines `url`"),
            (url, "no line `base`"),
            ("url http://a\nbase x\n", "an `url` is"),
            ("url ldap://a/dc=x\nbase x\n", "an `url` is"),
            ("url ldap://\nbase x\n", "an `url` is"),
            ("url ldapi://run%2Fx\nbase x\n", "an `url` is"),
            ("url ldapi://%2Frun/x\nbase x\n", "an `url` is"),
            ("url ldapi://%2Fa%00\nbase x\n", "an `url` is"),
            (&format!("{url}base x\nbase y\n"), "`base` stands there twice"),
            (&format!("{url}base x\nbinddn y\n"), "go together"),
            (&format!("{url}base x\nscope all\n"), "`scope all`"),
            (&format!("{url}base x\nstarttls maybe\n"), "`starttls maybe`"),
            (&format!("{url}base x\nbindpw y\n"), "`bindpw` is no setting"),
            (&format!("{url}base\n"), "`base` is no setting; a line is `key value`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.problem.contains(part) && error.file.ends_with("control/ldap"), "{text}: {error}");
        }
    }
}
