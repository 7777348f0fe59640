//! What a delivery's report says in the fields of a DSN: the enhanced status code and who said it (RFC 3463, RFC 3464 §2.3).
//!
//! Reports are text from strangers, made for people. What cannot be read gives the default; nothing here can fail.
//! Used by [`crate::bounce`].

use std::net::IpAddr;
use std::str::FromStr;

/// Where the reply of a remote server stands in a report of qmail-remote.
const REMOTE_SAID: &[u8] = b"Remote host said: ";

/// An enhanced status code of a failure, `4.x.y` or `5.x.y` (RFC 3463 §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    class: u8,
    subject: u16,
    detail: u16,
}

impl Status {
    /// Nothing is known but that it failed.
    pub(crate) const UNKNOWN: Self = Self { class: 5, subject: 0, detail: 0 };

    /// The same, not for good.
    pub(crate) fn as_temporary(self) -> Self {
        Self { class: 4, ..self }
    }

    /// A code at the start of `text`, with no digit or dot behind it.
    fn at_start(text: &[u8]) -> Option<Self> {
        let (class, rest) = number(text, 1)?;
        let (subject, rest) = number(rest.strip_prefix(b".")?, 3)?;
        let (detail, rest) = number(rest.strip_prefix(b".")?, 3)?;
        let goes_on = match rest {
            [b'.', next, ..] => next.is_ascii_digit(),
            [next, ..] => next.is_ascii_alphanumeric(),
            [] => false,
        };
        (matches!(class, 4 | 5) && !goes_on).then_some(Self { class: u8::try_from(class).ok()?, subject, detail })
    }

    /// The code a report holds: that of the remote reply (`550 5.1.1 …`), otherwise the last `(#5.1.1)`, otherwise any word like one.
    pub(crate) fn of_report(report: &[u8]) -> Self {
        remote_reply(report)
            .and_then(Self::of_reply)
            .or_else(|| Self::in_parentheses(report))
            .or_else(|| words(report).find_map(Self::at_start))
            .unwrap_or(Self::UNKNOWN)
    }

    /// `550 5.1.1 text` or `550-5.1.1 text` (RFC 2034 §4); without an enhanced code its first digit at least.
    fn of_reply(reply: &[u8]) -> Option<Self> {
        let (code, rest) = number(reply, 3)?;
        let class = code / 100;
        let enhanced = rest.get(1..).and_then(Self::at_start);
        let plain = Self { class: u8::try_from(class).ok()?, subject: 0, detail: 0 };
        enhanced.or((matches!(class, 4 | 5) && code >= 100).then_some(plain))
    }

    fn in_parentheses(report: &[u8]) -> Option<Self> {
        memchr::memmem::rfind_iter(report, b"(#").find_map(|at| {
            let inner = report.get(at.checked_add(2)?..)?;
            let close = memchr::memchr(b')', inner)?;
            Self::at_start(inner.get(..close)?)
        })
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// A decimal number of at most `digits_max` digits without a needless zero, and what follows.
fn number(text: &[u8], digits_max: usize) -> Option<(u16, &[u8])> {
    let len = text.iter().take(digits_max.saturating_add(1)).take_while(|b| b.is_ascii_digit()).count();
    let (digits, rest) = text.split_at_checked(len)?;
    if len == 0 || len > digits_max || (len > 1 && digits.first() == Some(&b'0')) {
        return None;
    }
    Some((u16::from_str(std::str::from_utf8(digits).ok()?).ok()?, rest))
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| b.is_ascii_whitespace() || matches!(b, b'(' | b'#' | b'-'))
}

/// The remote server's reply in a report, to its end.
pub(crate) fn remote_reply(report: &[u8]) -> Option<&[u8]> {
    let at = memchr::memmem::find(report, REMOTE_SAID)?;
    report.get(at.checked_add(REMOTE_SAID.len())?..)
}

/// The address of the server a report of qmail-remote is about: `192.0.2.1 does not like recipient.`, `Connected to 192.0.2.1 but …`.
pub(crate) fn remote_address(report: &[u8]) -> Option<IpAddr> {
    let text = report.strip_prefix(b"Connected to ").unwrap_or(report);
    let word = text.split(|b| b.is_ascii_whitespace()).next()?;
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_found_where_it_stands() {
        for (report, status) in [
            (&b""[..], "5.0.0"),
            (b"Sorry, no mailbox here by that name. (#5.1.1)\n", "5.1.1"),
            (b"192.0.2.1 does not like recipient.\nRemote host said: 550 5.7.26 no\nGiving up on 192.0.2.1.\n", "5.7.26"),
            (b"192.0.2.1 does not like recipient.\nRemote host said: 550-5.1.10 no\n550 5.1.10 x", "5.1.10"),
            (b"192.0.2.1 does not like recipient.\nRemote host said: 550 no such user (#5.1.2)\n", "5.0.0"),
            (b"Remote host said: 452 4.2.2 full\nI'm not going to try again", "4.2.2"),
            (b"Remote host said: 5.1.1 odd (#5.4.0)", "5.4.0"),
            (b"(#5.1.1) then (#4.4.1)\n", "4.4.1"),
            (b"(#5.1.1) then (#nonsense)\n", "5.1.1"),
            (b"error 5.2.2 in text", "5.2.2"),
            (b"from 5.1.1.1 came 5.1.1x and 05.1.1 and 5.1234.1 and 5.01.1", "5.0.0"),
            (b"(#2.0.0)", "5.0.0"),
            (b"(#9.1.1)", "5.0.0"),
            (b"Remote host said: 250 2.0.0 ok", "5.0.0"),
        ] {
            assert_eq!(Status::of_report(report).to_string(), status, "{}", report.escape_ascii());
        }
    }

    #[test]
    fn the_server_is_named_by_its_address() {
        for (report, address) in [
            (&b"192.0.2.1 does not like recipient.\n"[..], Some("192.0.2.1")),
            (b"2001:db8::1 failed after I sent the message.\n", Some("2001:db8::1")),
            (b"Connected to 192.0.2.1 but sender was rejected.\n", Some("192.0.2.1")),
            (b"Sorry, no mailbox here", None),
            (b"", None),
        ] {
            assert_eq!(remote_address(report), address.map(|a| a.parse().unwrap()));
        }
    }
}
