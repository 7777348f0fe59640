//! `control/tlspolicy`: how qmail-remote uses TLS with which destination.
//!
//! A line is `DESTINATION:POLICY [WORD…]`. The destination is the domain of the recipient, or the relay (its name or address, without
//! the port) where smtproutes or authsenders has one: the host that is meant, whatever the DNS says of it. `.domain` means all names
//! below it, the empty destination all others; the most specific line counts. Policies are `none`, `may`, `encrypt` and `verify`
//! ([`Level`]). Behind `verify` may stand the names that the certificate must have one of; `.name` means the host's own name if that is
//! below it. `implicit`: TLS from the first byte on (always so at port 465); `cleartext`: credentials may go without TLS;
//! `clientcert=NAME`: we show the certificate in etc/qmail/tls/NAME.
//! Used by qmail-remote; a file with an error is not used at all.

use std::collections::HashMap;

use users::{hosts::suffixes, list_lines};

use crate::ControlError;
use crate::Root;

/// Lines of the file; more destinations than that are a mistake, or belong behind a relay.
pub const LINES_MAX: usize = 1_000_000;
/// Names behind one `verify`.
pub const NAMES_MAX: usize = 20;

/// How much TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Never.
    None,
    /// If the server can, whatever its certificate; otherwise in the clear (RFC 7435).
    May,
    /// Or no mail, whatever the certificate.
    Encrypt,
    /// Or no mail, and the certificate is valid and has the right name.
    Verify,
}

/// What a line says of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsPolicy {
    pub level: Level,
    /// For [`Level::Verify`]: lower case; empty means the names of the host and of the destination.
    pub names: Vec<String>,
    /// TLS from the first byte on.
    pub implicit: bool,
    /// Credentials may go in the clear.
    pub cleartext: bool,
    /// The name of the certificate that we show; with [`Level::Encrypt`] and [`Level::Verify`] alone.
    pub certificate: Option<String>,
}

impl TlsPolicy {
    /// A level without any word.
    #[must_use]
    pub fn of(level: Level) -> Self {
        Self { level, names: Vec::new(), implicit: false, cleartext: false, certificate: None }
    }

    fn parse(value: &[u8]) -> Result<Self, String> {
        let value = std::str::from_utf8(value).ok().filter(|value| value.is_ascii()).ok_or("has bytes that are not ASCII")?;
        let mut words = value.split_ascii_whitespace();
        let mut policy = Self::of(match words.next() {
            Some("none") => Level::None,
            Some("may") => Level::May,
            Some("encrypt") => Level::Encrypt,
            Some("verify") => Level::Verify,
            _ => return Err("has no policy; write none, may, encrypt or verify behind the colon".to_owned()),
        });
        for word in words {
            match word {
                "implicit" => policy.implicit = true,
                "cleartext" => policy.cleartext = true,
                word if word.starts_with(CERTIFICATE) => {
                    let name = word.strip_prefix(CERTIFICATE).filter(|name| is_directory(name));
                    policy.certificate = Some(name.ok_or(format!("`{word}` names no directory below etc/qmail/tls"))?.to_owned());
                }
                name if name.contains('.') => policy.names.push(name.to_ascii_lowercase()),
                other => return Err(format!("`{other}` is neither implicit nor cleartext nor a name with a dot")),
            }
        }
        if !policy.names.is_empty() && policy.level != Level::Verify {
            return Err("names certificates, which only `verify` looks at".to_owned());
        }
        if policy.implicit && policy.level == Level::None {
            return Err("is `none` and `implicit`; it cannot be both".to_owned());
        }
        if policy.certificate.is_some() && policy.level < Level::Encrypt {
            return Err(
                "has a certificate to show, which needs `encrypt` or `verify`: without TLS nobody would see it".to_owned()
            );
        }
        if policy.names.len() > NAMES_MAX {
            return Err(format!("has more than {NAMES_MAX} names"));
        }
        Ok(policy)
    }
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsPolicies(HashMap<Vec<u8>, TlsPolicy>);

impl TlsPolicies {
    /// Reads `control/tlspolicy`; without one there are no lines.
    ///
    /// # Errors
    /// Unreadable or malformed; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let text = root.text("tlspolicy")?.unwrap_or_default();
        Self::parse(&text).map_err(|problem| ControlError::new(&root.control_file("tlspolicy"), problem))
    }

    /// # Errors
    /// Which line is wrong, and what to write.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let mut policies = HashMap::new();
        for (number, line) in list_lines(text) {
            let wrong = |problem: &str| format!("line {number}: `{}` {problem}", wire::escape::visible(line));
            // The last colon: an IPv6 address has others.
            let colon = line.iter().rposition(|b| *b == b':').ok_or_else(|| wrong("has no colon; write DESTINATION:POLICY"))?;
            let (key, value) = line.split_at_checked(colon).unwrap_or_default();
            let policy = TlsPolicy::parse(value.get(1..).unwrap_or_default()).map_err(|problem| wrong(&problem))?;
            if policies.len() >= LINES_MAX {
                return Err(format!("has more than {LINES_MAX} lines"));
            }
            if policies.insert(key_of(key), policy).is_some() {
                return Err(wrong("is the second line for this destination; take one of them away"));
            }
        }
        Ok(Self(policies))
    }

    /// What is said of a destination: its own line, that of the longest `.suffix`, or that of the empty destination.
    #[must_use]
    pub fn lookup(&self, destination: &[u8]) -> Option<&TlsPolicy> {
        let host = key_of(destination);
        suffixes(&host).chain(std::iter::once(&b""[..])).find_map(|key| self.0.get(key))
    }

    /// Names of certificates that we show somewhere.
    pub fn certificates(&self) -> impl Iterator<Item = &str> {
        self.0.values().filter_map(|policy| policy.certificate.as_deref())
    }

    /// Does a line demand certificates?
    #[must_use]
    pub fn verifies(&self) -> bool {
        self.0.values().any(|policy| policy.level == Level::Verify)
    }
}

/// The word of a certificate to show, before its name.
const CERTIFICATE: &str = "clientcert=";

/// As directories are taken below etc/qmail/tls.
fn is_directory(name: &str) -> bool {
    (1..=255).contains(&name.len()) && !name.starts_with('.') && !name.contains('/')
}

/// Lower case, an address without its brackets, a name without a dot at its end.
fn key_of(host: &[u8]) -> Vec<u8> {
    let inner = host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")).unwrap_or(host);
    inner.strip_suffix(b".").unwrap_or(inner).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_line_counts() {
        let text = b"# partners\nExact.example:verify mx.other.example .mx.example\n.example:encrypt\n.deep.example:none\n:may\n\
            [2001:db8::1]:encrypt implicit\nrelay.org:encrypt cleartext\n192.0.2.1:verify\n";
        let policies = TlsPolicies::parse(text).unwrap();
        let level = |host: &str| policies.lookup(host.as_bytes()).unwrap().level;
        for (host, expected) in [
            ("exact.EXAMPLE", Level::Verify),
            ("exact.example.", Level::Verify),
            ("other.example", Level::Encrypt),
            ("a.deep.example", Level::None),
            ("deep.example", Level::Encrypt),
            ("example", Level::May),
            ("else.org", Level::May),
            ("2001:db8::1", Level::Encrypt),
            ("192.0.2.1", Level::Verify),
            ("[192.0.2.1]", Level::Verify),
        ] {
            assert_eq!(level(host), expected, "{host}");
        }
        assert_eq!(policies.lookup(b"exact.example").unwrap().names, ["mx.other.example", ".mx.example"]);
        assert!(policies.lookup(b"2001:db8::1").unwrap().implicit);
        let shown = TlsPolicies::parse(b"r.example:verify r.example clientcert=Mx.a.example implicit\nb:encrypt\n").unwrap();
        let policy = shown.lookup(b"r.example").unwrap();
        assert_eq!((policy.certificate.as_deref(), policy.names.len(), policy.implicit), (Some("Mx.a.example"), 1, true));
        assert_eq!(shown.certificates().collect::<Vec<_>>(), ["Mx.a.example"]);
        assert!(policies.lookup(b"relay.org").unwrap().cleartext && policies.verifies());
        assert_eq!(TlsPolicies::parse(b"").unwrap().lookup(b"a.example"), None);
    }

    #[test]
    fn errors_say_which_line() {
        for (text, problem) in [
            ("a.example\n", "line 1: `a.example` has no colon"),
            ("#\na.example:must\n", "line 2: `a.example:must` has no policy"),
            ("a.example:\n", "has no policy"),
            ("a.example:Verify\n", "has no policy"),
            ("a.example:verify mx\n", "`mx` is neither"),
            ("a.example:encrypt mx.a.example\n", "only `verify`"),
            ("a.example:none implicit\n", "cannot be both"),
            ("a.example:may clientcert=mx\n", "needs `encrypt` or `verify`"),
            ("a.example:encrypt clientcert=\n", "`clientcert=` names no directory"),
            ("a.example:encrypt clientcert=../x\n", "names no directory"),
            ("a.example:encrypt clientcert=a/b\n", "names no directory"),
            ("a.example:may\nA.example:none\n", "line 2: `A.example:none` is the second line"),
            ("a.example:verify \u{e4}.example\n", "not ASCII"),
        ] {
            let found = TlsPolicies::parse(text.as_bytes()).unwrap_err();
            assert!(found.contains(problem), "{text}: {found}");
        }
    }
}
