//! `control/lmtproutes`: domains whose mail is delivered by LMTP (RFC 2033), to a mail store such as Dovecot.
//!
//! A line is `DOMAIN:HOST:PORT` or `DOMAIN:unix:/PATH`; `.domain` means all names below it, the empty domain all others, and the most
//! specific line counts. `DOMAIN:` with nothing behind it takes a domain out of a wider line. IPv6 addresses stand in brackets. A domain
//! of somebody else is routed there by qmail-send and carried by qmail-remote; a domain of this system's own users keeps all that qmail
//! knows of them, and their own qmail-local delivers there in place of their mailbox file, through a Unix socket only. Followed as it
//! changes; a file with an error is not used at all.

use std::collections::HashMap;

use users::{Service, hosts::suffixes, list_lines};

use crate::{ControlError, Root, Watched};

/// Lines of the file; more domains than that belong behind a wider line.
pub const LINES_MAX: usize = 1_000_000;
/// A Unix socket's path has 108 bytes with the NUL at its end (unix(7)).
pub const SOCKET_PATH_LEN_MAX: usize = 107;

/// Where an LMTP server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LmtpPlace {
    /// A host name or an address without brackets.
    Host { host: Vec<u8>, port: u16 },
    /// The absolute path of a Unix socket, at most [`SOCKET_PATH_LEN_MAX`] bytes.
    Socket(Vec<u8>),
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LmtpRoutes(HashMap<Vec<u8>, Option<LmtpPlace>>);

impl LmtpRoutes {
    /// Reads the file as it is now; without one there are no routes.
    ///
    /// # Errors
    /// Unreadable or malformed; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let text = root.text("lmtproutes")?.unwrap_or_default();
        Self::parse(&text).map_err(|problem| ControlError::new(&root.control_file("lmtproutes"), problem))
    }

    /// The file as it changes.
    #[must_use]
    pub fn watched(root: &Root) -> Watched<Self> {
        Watched::new(root.control_file("lmtproutes"), |text| Self::parse(text.unwrap_or_default()))
    }

    /// # Errors
    /// Which line is wrong, and what to write.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let mut routes = HashMap::new();
        for (number, line) in list_lines(text) {
            let wrong = |problem: &str| format!("line {number}: `{}` {problem}", wire::escape::visible(line));
            let colon = line
                .iter()
                .position(|b| *b == b':')
                .ok_or_else(|| wrong("has no colon; write domain:host or domain:unix:/path"))?;
            let (domain, value) = line.split_at_checked(colon).unwrap_or_default();
            let place = parse_place(value.get(1..).unwrap_or_default()).map_err(|problem| wrong(&problem))?;
            if routes.len() >= LINES_MAX {
                return Err(format!("has more than {LINES_MAX} lines"));
            }
            if routes.insert(key_of(domain), place).is_some() {
                return Err(wrong("is the second line for this domain; take one of them away"));
            }
        }
        Ok(Self(routes))
    }

    /// The place of a domain: by its own line, that of the longest `.suffix`, or that of the empty domain.
    #[must_use]
    pub fn lookup(&self, domain: &[u8]) -> Option<&LmtpPlace> {
        if self.0.is_empty() {
            return None;
        }
        let domain = key_of(domain);
        suffixes(&domain).chain(std::iter::once(&b""[..])).find_map(|key| self.0.get(key))?.as_ref()
    }

    /// Every line that names a place.
    pub fn places(&self) -> impl Iterator<Item = (&[u8], &LmtpPlace)> {
        self.0.iter().filter_map(|(domain, place)| Some((domain.as_slice(), place.as_ref()?)))
    }
}

/// Lower case, without a dot at the end.
fn key_of(domain: &[u8]) -> Vec<u8> {
    domain.strip_suffix(b".").unwrap_or(domain).to_ascii_lowercase()
}

fn parse_place(value: &[u8]) -> Result<Option<LmtpPlace>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    if let Some(path) = value.strip_prefix(b"unix:") {
        if !path.starts_with(b"/") || path.contains(&0) {
            return Err("has no absolute path behind unix:".to_owned());
        }
        if path.len() > SOCKET_PATH_LEN_MAX {
            return Err(format!("names a socket by more than {SOCKET_PATH_LEN_MAX} bytes; the kernel takes no longer path"));
        }
        return Ok(Some(LmtpPlace::Socket(path.to_vec())));
    }
    let bracketed = value.strip_prefix(b"[").and_then(|rest| {
        let end = rest.iter().position(|b| *b == b']')?;
        Some((rest.get(..end)?, rest.get(end.checked_add(1)?..)?))
    });
    let (host, rest) = bracketed.unwrap_or_else(|| {
        let colon = value.iter().position(|b| *b == b':').unwrap_or(value.len());
        value.split_at_checked(colon).unwrap_or((value, b""))
    });
    let port = match rest.strip_prefix(b":").and_then(|digits| std::str::from_utf8(digits).ok()) {
        None if rest.is_empty() => Service::Lmtp.port(),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().unwrap_or(0),
        _ => 0,
    };
    if host.is_empty() || port == 0 || !host.iter().all(u8::is_ascii_graphic) {
        return Err("is neither HOST:PORT nor unix:/PATH; an IPv6 address stands in brackets".to_owned());
    }
    if port == Service::Smtp.port() {
        return Err("has port 25, which is SMTP's: no LMTP server may listen there (RFC 2033 §5)".to_owned());
    }
    Ok(Some(LmtpPlace::Host { host: host.to_vec(), port }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_line_counts() {
        let text = b"# stores\nA.example:unix:/run/dovecot/lmtp\n.a.example:[2001:db8::1]:2424\nout.a.example:\nb.example:store.b.example\n\
            c.example:127.0.0.1:24\n";
        let routes = LmtpRoutes::parse(text).unwrap();
        let host = |host: &str, port| Some(LmtpPlace::Host { host: host.into(), port });
        for (domain, expected) in [
            ("a.EXAMPLE", Some(LmtpPlace::Socket(b"/run/dovecot/lmtp".to_vec()))),
            ("a.example.", Some(LmtpPlace::Socket(b"/run/dovecot/lmtp".to_vec()))),
            ("x.a.example", host("2001:db8::1", 2424)),
            ("out.a.example", None),
            ("b.example", host("store.b.example", 24)),
            ("c.example", host("127.0.0.1", 24)),
            ("d.example", None),
            ("", None),
        ] {
            assert_eq!(routes.lookup(domain.as_bytes()).cloned(), expected, "{domain}");
        }
        assert_eq!(LmtpRoutes::parse(b":unix:/x\n").unwrap().lookup(b"any").cloned(), Some(LmtpPlace::Socket(b"/x".to_vec())));
        assert_eq!(routes.places().count(), 4);
    }

    #[test]
    fn errors_say_which_line() {
        for (text, problem) in [
            ("a.example\n", "line 1: `a.example` has no colon"),
            ("#\na.example:unix:run/lmtp\n", "line 2: `a.example:unix:run/lmtp` has no absolute path"),
            ("a.example:h:25\n", "port 25"),
            ("a.example:h:0\n", "neither HOST:PORT"),
            ("a.example:h:65536\n", "neither HOST:PORT"),
            ("a.example:h:+24\n", "neither HOST:PORT"),
            ("a.example::24\n", "neither HOST:PORT"),
            ("a.example:h x:24\n", "neither HOST:PORT"),
            ("a.example:[::1]x\n", "neither HOST:PORT"),
            ("a.example:h\nA.example.:i\n", "line 2: `A.example.:i` is the second line"),
        ] {
            let found = LmtpRoutes::parse(text.as_bytes()).unwrap_err();
            assert!(found.contains(problem), "{text}: {found}");
        }
        let long = format!("a.example:unix:/{}\n", "x".repeat(SOCKET_PATH_LEN_MAX));
        assert!(LmtpRoutes::parse(long.as_bytes()).unwrap_err().contains("107 bytes"));
    }
}
