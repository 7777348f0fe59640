//! `control/tlsclients`: what clients may do for the certificates that they show.
//!
//! A line is `NAME` or `NAME ACCOUNT`. Who shows a certificate of that name may relay; with an account, log in as that account by EXTERNAL
//! (RFC 4422 App. A), and no more than that. Names are
//!
//! - the SHA-256 fingerprint of the certificate or of its public key, 64 hexadecimal digits with or without colons;
//! - an e-mail address that the certificate has;
//! - a host name that the certificate has, or its common name (in quotation marks if it has blanks).
//!
//! A fingerprint counts as it stands; the other names only of certificates that come from an authority of `control/clientca.pem`. The file
//! is root's (or the caller's) alone. Used by qmail-smtpd and qmail-popup, which see the certificates, and by qmail-auth, which takes no
//! account from them but looks it up itself.

use std::collections::HashMap;

use users::list_lines;
use wire::Address;

use crate::watched::Watched;
use crate::{ControlError, Root, read};

/// The file's name.
pub const FILE: &str = "tlsclients";
/// The authorities whose certificates have names that count (PEM).
pub const AUTHORITIES: &str = "clientca.pem";
/// Lines of the file; for more clients than this an authority's names are of no use either.
pub const LINES_MAX: usize = 100_000;
/// Longest name, in bytes: an e-mail address (RFC 5321 §4.5.3.1).
pub const NAME_LEN_MAX: usize = 320;

/// SHA-256.
pub type Fingerprint = [u8; 32];

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsClients {
    /// By name as [`key`] writes it.
    lines: HashMap<String, Line>,
}

/// What stands behind a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Line {
    relays: bool,
    account: Option<Address>,
}

/// What a client may do, each with the name for which it may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    pub relay: Option<String>,
    pub login: Option<String>,
}

impl TlsClients {
    /// Reads the file; `None`: there is none, and nobody is to be asked for a certificate.
    ///
    /// # Errors
    /// Unreadable, somebody else's, or malformed; temporary.
    pub fn read(root: &Root) -> Result<Option<Self>, ControlError> {
        let path = root.control_file(FILE);
        let Some(text) = read::owned_file(&path)? else { return Ok(None) };
        Self::parse(&text).map(Some).map_err(|problem| ControlError::new(&path, problem))
    }

    /// The authorities (PEM) for the names; empty if there are none.
    ///
    /// # Errors
    /// Unreadable or somebody else's; temporary.
    pub fn authorities(root: &Root) -> Result<Vec<u8>, ControlError> {
        Ok(read::owned_file(&root.control_file(AUTHORITIES))?.unwrap_or_default())
    }

    /// Follows the file; without it nobody is known.
    #[must_use]
    pub fn watch(root: &Root) -> Watched<Self> {
        Watched::owned(root.control_file(FILE), |text| Self::parse(text.unwrap_or_default()))
    }

    /// # Errors
    /// Which line is wrong, and what to write.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let mut clients = Self::default();
        for (number, line) in list_lines(text) {
            let wrong = |problem: String| format!("line {number}: `{}` {problem}", wire::escape::visible(line));
            let (name, account) = split(line).map_err(|problem| wrong(problem.to_owned()))?;
            let key = key(name).map_err(wrong)?;
            if clients.lines.len() >= LINES_MAX {
                return Err(format!("has more than {LINES_MAX} names"));
            }
            let known = clients.lines.entry(key).or_default();
            match account {
                None if known.relays => return Err(wrong("is the second line for this name; take one of them away".to_owned())),
                None => known.relays = true,
                Some(_) if known.account.is_some() => {
                    return Err(wrong("is the second account for this name; a certificate stands for one".to_owned()));
                }
                Some(account) => known.account = Some(address(account).map_err(wrong)?),
            }
        }
        Ok(clients)
    }

    /// What a client may do whose certificate has these fingerprints and, on the word of an authority, these names.
    #[must_use]
    pub fn rights(&self, fingerprints: &[Fingerprint], names: &[String]) -> Rights {
        let mut rights = Rights::default();
        let names = names.iter().map(|name| name.to_ascii_lowercase()).filter(|name| !is_fingerprint(name));
        for key in fingerprints.iter().map(hex).chain(names) {
            let Some(line) = self.lines.get(&key) else { continue };
            if line.relays && rights.relay.is_none() {
                rights.relay = Some(key.clone());
            }
            if line.account.is_some() && rights.login.is_none() {
                rights.login = Some(key);
            }
        }
        rights
    }

    /// The account of a name, as [`Rights::login`] has it.
    #[must_use]
    pub fn account(&self, login: &[u8]) -> Option<&Address> {
        self.lines.get(std::str::from_utf8(login).ok()?)?.account.as_ref()
    }

    /// Accounts that certificates stand for.
    pub fn accounts(&self) -> impl Iterator<Item = &Address> {
        self.lines.values().filter_map(|line| line.account.as_ref())
    }

    /// Is there a name that only an authority can vouch for?
    #[must_use]
    pub fn needs_authorities(&self) -> bool {
        self.lines.keys().any(|name| !is_fingerprint(name))
    }

    /// Nobody is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

/// Name and account of a line.
fn split(line: &[u8]) -> Result<(&str, Option<&str>), &'static str> {
    let line = std::str::from_utf8(line).map_err(|_| "is no UTF-8")?.trim_ascii();
    let (name, rest) = match line.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').ok_or("has no closing quotation mark")?,
        None => line.split_once([' ', '\t']).unwrap_or((line, "")),
    };
    let mut rest = rest.split_ascii_whitespace();
    match (rest.next(), rest.next()) {
        (account, None) => Ok((name, account)),
        _ => Err("has more than a name and an account; a name with blanks stands in quotation marks"),
    }
}

/// How a name is looked up: fingerprints without colons, all in lower case.
fn key(name: &str) -> Result<String, String> {
    let name = name.to_ascii_lowercase();
    let digits: String = name.chars().filter(|c| *c != ':').collect();
    let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
    match digits.len() {
        64 if is_hex && has_even_colons(&name) => return Ok(digits),
        32 | 40 | 56 | 96 | 128 if is_hex => {
            return Err("is a fingerprint of another kind; SHA-256 ones count, of 64 hexadecimal digits".to_owned());
        }
        _ if is_hex && name.contains(':') => return Err("is no fingerprint, which has 64 hexadecimal digits".to_owned()),
        _ => {}
    }
    if name.is_empty() || name.len() > NAME_LEN_MAX || name.chars().any(char::is_control) {
        return Err(format!(
            "has a name that no certificate has, of no or of more than {NAME_LEN_MAX} bytes, or with control characters"
        ));
    }
    if name.contains('@') && !name.contains(' ') && address(&name).is_err() {
        return Err("has an `@`, and is no e-mail address".to_owned());
    }
    Ok(name)
}

/// Colons after each byte, or none.
fn has_even_colons(name: &str) -> bool {
    !name.contains(':') || name.split(':').all(|byte| byte.len() == 2)
}

fn is_fingerprint(key: &str) -> bool {
    key.len() == 64 && key.bytes().all(|b| b.is_ascii_hexdigit())
}

fn hex(fingerprint: &Fingerprint) -> String {
    fingerprint.iter().map(|b| format!("{b:02x}")).collect()
}

fn address(account: &str) -> Result<Address, String> {
    let is_whole = |address: &Address| !address.local().is_empty() && address.domain().is_some_and(|domain| !domain.is_empty());
    Address::new(account.as_bytes())
        .ok()
        .filter(is_whole)
        .ok_or_else(|| format!("names `{account}`, which is no account; write user@domain"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const COLONS: &str = "FE:DC:BA:98:76:54:32:10:FE:DC:BA:98:76:54:32:10:FE:DC:BA:98:76:54:32:10:FE:DC:BA:98:76:54:32:10";

    fn bytes(hex: &str) -> Fingerprint {
        let digits: String = hex.chars().filter(|c| *c != ':').collect();
        let mut out = [0; 32];
        for (at, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap();
        }
        out
    }

    #[test]
    fn what_certificates_may_do() {
        let text = format!(
            "# partners\n{HEX}\n{COLONS}\tjoe@a.example\r\nMX.b.example\nsue@b.example sue@a.example\n\"Joe Doe\" joe@a.example\n\
            both.example\nboth.example ann@a.example\n"
        );
        let clients = TlsClients::parse(text.as_bytes()).unwrap();
        let rights = |fingerprints: &[&str], names: &[&str]| {
            let fingerprints: Vec<Fingerprint> = fingerprints.iter().map(|hex| bytes(hex)).collect();
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let rights = clients.rights(&fingerprints, &names);
            let account = rights.login.map(|login| clients.account(login.as_bytes()).unwrap().to_string());
            (rights.relay.is_some(), account)
        };
        let joe = Some("joe@a.example".to_owned());
        assert_eq!(rights(&[HEX], &[]), (true, None));
        assert_eq!(rights(&[COLONS], &[]), (false, joe.clone()));
        // Of the certificate and of its key.
        assert_eq!(rights(&[COLONS, HEX], &[]), (true, joe.clone()));
        assert_eq!(rights(&[], &["other.example", "mx.B.example"]), (true, None));
        assert_eq!(rights(&[], &["Sue@b.example"]), (false, Some("sue@a.example".to_owned())));
        assert_eq!(rights(&[], &["Joe Doe"]), (false, joe));
        assert_eq!(rights(&[], &["both.example"]), (true, Some("ann@a.example".to_owned())));
        // A name is no fingerprint, whatever an authority lets people call themselves.
        assert_eq!(rights(&[], &[HEX, "b.example", "x.mx.b.example", ""]), (false, None));
        assert!(clients.needs_authorities() && !clients.is_empty() && clients.accounts().count() == 4);
        assert!(!TlsClients::parse(HEX.as_bytes()).unwrap().needs_authorities());
        assert_eq!(clients.account(b"mx.b.example"), None);
    }

    #[test]
    fn errors_say_which_line() {
        for (text, problem) in [
            ("a.example\nb.example joe@a.example x\n", "line 2: `b.example joe@a.example x` has more than"),
            ("0123456789abcdef0123456789abcdef01234567\n", "of another kind"),
            ("ab:cd\n", "is no fingerprint"),
            (&format!("{HEX}0\n").replace("0123", "01:23"), "is no fingerprint"),
            (&HEX.replacen("01", "0:1", 1), "is no fingerprint"),
            ("a.example joe\n", "names `joe`"),
            ("a.example joe@\n", "names `joe@`"),
            ("\"Joe joe@a.example\n", "no closing"),
            ("\"\" joe@a.example\n", "no certificate has"),
            ("x@@ \n", "no e-mail address"),
            ("@a.example\n", "no e-mail address"),
            ("#\n\na.example\nA.example\n", "line 4: `A.example` is the second line"),
            ("a.example a@b.example\na.example c@b.example\n", "line 2: `a.example c@b.example` is the second account"),
        ] {
            let found = TlsClients::parse(text.as_bytes()).unwrap_err();
            assert!(found.contains(problem), "{text}: {found}");
        }
        assert!(TlsClients::parse(b"\xff\n").unwrap_err().contains("no UTF-8"));
        assert!(TlsClients::parse(format!("{}\n", "x".repeat(321)).as_bytes()).is_err());
    }

    #[test]
    fn without_a_file_nobody_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        assert_eq!(TlsClients::read(&root).unwrap(), None);
        std::fs::write(root.control_file(FILE), "# nobody yet\n").unwrap();
        assert!(TlsClients::read(&root).unwrap().unwrap().is_empty());
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(root.control_file(FILE), std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(TlsClients::read(&root).unwrap_err().is_temporary());
    }
}
