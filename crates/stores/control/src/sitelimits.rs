//! `control/sitelimits`: how many connections a site gets at a time, and how many transactions a minute.
//!
//! A line is `HOST:CONNECTIONS` or `HOST:CONNECTIONS:PER_MINUTE`. HOST is the domain of recipients, or the relay or LMTP server that
//! mail goes to in place of their hosts; `.host` means all names below it, the empty host all others, and the most specific line
//! counts. An empty CONNECTIONS is no limit, 0 holds the mail; `HOST:` with nothing behind it takes a host out of a wider line. A
//! transaction is one message with up to 100 recipients. Followed as it changes; a file with a mistake is not used at all.

use std::collections::HashMap;
use std::sync::Arc;

use users::{hosts::suffixes, list_lines};

use crate::{ControlError, Root, Watched};

/// Lines of the file.
pub const LINES_MAX: usize = 100_000;
/// More a minute is no limit that anybody means.
const PER_MINUTE_MAX: u32 = 60_000;

/// Of one line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limit {
    pub connections: Option<u32>,
    /// 1 to 60,000.
    pub per_minute: Option<u32>,
}

/// The whole file: hosts with the number of their line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SiteLimits(HashMap<Vec<u8>, (usize, Limit)>);

impl SiteLimits {
    /// Reads the file as it is now; without one there are no limits.
    ///
    /// # Errors
    /// Unreadable or malformed; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let text = root.text("sitelimits")?.unwrap_or_default();
        Self::parse(&text).map_err(|problem| ControlError::new(&root.control_file("sitelimits"), problem))
    }

    /// The file as it changes; another `Arc` each time it has been read again.
    #[must_use]
    pub fn watched(root: &Root) -> Watched<Arc<Self>> {
        Watched::new(root.control_file("sitelimits"), |text| Self::parse(text.unwrap_or_default()).map(Arc::new))
    }

    /// # Errors
    /// Which line is wrong, and what to write.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let mut limits = HashMap::new();
        for (number, line) in list_lines(text) {
            let wrong = |problem: &str| format!("line {number}: `{}` {problem}", wire::escape::visible(line));
            let colon = line.iter().position(|b| *b == b':').ok_or_else(|| wrong("has no colon; write host:connections"))?;
            let (host, value) = line.split_at_checked(colon).unwrap_or_default();
            let limit = parse_limit(value.get(1..).unwrap_or_default()).map_err(wrong)?;
            if limits.len() >= LINES_MAX {
                return Err(format!("has more than {LINES_MAX} lines"));
            }
            if limits.insert(key_of(host), (number, limit)).is_some() {
                return Err(wrong("is the second line for this host; take one of them away"));
            }
        }
        Ok(Self(limits))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The limit of a host: by its own line, that of the longest `.suffix`, or that of the empty host.
    #[must_use]
    pub fn lookup(&self, host: &[u8]) -> Limit {
        if self.0.is_empty() {
            return Limit::default();
        }
        let host = key_of(host);
        suffixes(&host)
            .chain(std::iter::once(&b""[..]))
            .find_map(|key| self.0.get(key))
            .map_or_else(Limit::default, |(_, limit)| *limit)
    }

    /// Hosts whose mail is held, each with its line.
    pub fn held(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let held = self.0.iter().filter(|(_, (_, limit))| limit.connections == Some(0));
        held.map(|(host, (line, _))| (*line, host.as_slice()))
    }
}

/// Lower case, without a dot at the end.
fn key_of(host: &[u8]) -> Vec<u8> {
    host.strip_suffix(b".").unwrap_or(host).to_ascii_lowercase()
}

fn parse_limit(value: &[u8]) -> Result<Limit, &'static str> {
    let mut parts = value.splitn(2, |b| *b == b':');
    let connections = number(parts.next().unwrap_or_default())?;
    let per_minute = match parts.next() {
        Some(b"") => return Err("has nothing behind its last colon; write the number of transactions a minute"),
        Some(digits) => number(digits)?,
        None => None,
    };
    match per_minute {
        Some(0) => Err("allows no transaction a minute; to hold the mail write 0 connections"),
        Some(count) if count > PER_MINUTE_MAX => Err("allows more than 60000 transactions a minute; take that number away"),
        _ => Ok(Limit { connections, per_minute }),
    }
}

/// Digits alone, or nothing.
fn number(digits: &[u8]) -> Result<Option<u32>, &'static str> {
    if digits.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let number = text.and_then(|text| text.parse().ok()).ok_or("has something else than numbers behind its colons")?;
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(connections: impl Into<Option<u32>>, per_minute: impl Into<Option<u32>>) -> Limit {
        Limit { connections: connections.into(), per_minute: per_minute.into() }
    }

    #[test]
    fn the_most_specific_line_counts() {
        let text =
            b"# those are slow\nBig.example:3\n.big.example.:2:60\nfree.big.example:\nrate.example::90\nheld.example:0\n:20\n";
        let limits = SiteLimits::parse(text).unwrap();
        for (host, expected) in [
            ("big.example", limit(3, None)),
            ("BIG.example.", limit(3, None)),
            ("mx.big.EXAMPLE", limit(2, 60)),
            ("a.b.big.example", limit(2, 60)),
            ("free.big.example", Limit::default()),
            ("rate.example", limit(None, 90)),
            ("held.example", limit(0, None)),
            ("else.test", limit(20, None)),
            ("", limit(20, None)),
        ] {
            assert_eq!(limits.lookup(host.as_bytes()), expected, "{host}");
        }
        assert_eq!(limits.held().collect::<Vec<_>>(), [(6, &b"held.example"[..])]);
        let nothing = SiteLimits::parse(b"\n# nothing\n").unwrap();
        assert!(nothing.is_empty() && nothing.lookup(b"x") == Limit::default());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("a.example\n", "line 1: `a.example` has no colon"),
            ("# x\na.example:x\n", "line 2: `a.example:x` has something else than numbers"),
            ("a:-1\n", "something else than numbers"),
            ("a:1:\n", "nothing behind its last colon"),
            ("a:1:0\n", "no transaction a minute"),
            ("a:1:60001\n", "more than 60000"),
            ("a:1:2:3\n", "something else than numbers"),
            ("a:99999999999\n", "something else than numbers"),
            ("a:1\nA.:2\n", "line 2: `A.:2` is the second line"),
        ] {
            let problem = SiteLimits::parse(text.as_bytes()).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }
}
