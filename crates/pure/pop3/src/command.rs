//! Command lines and the small pieces of replies that both machines share (RFC 1939 §3, RFC 2449 §4 and §8).

/// Longest command line, without its ending. RFC 2449 §4 asks for 255 octets; a login may be an address of 1000 bytes and more.
pub const COMMAND_LEN_MAX: usize = 1024;

/// A command line in two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command<'a> {
    /// The keyword as it came; compare with [`Command::is`].
    pub keyword: &'a [u8],
    /// Everything after the one space that follows the keyword; empty if there is none.
    pub argument: &'a [u8],
}

impl<'a> Command<'a> {
    /// Splits a line (without its ending) at its first space.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Self {
        let at = memchr::memchr(b' ', line).unwrap_or(line.len());
        let (keyword, rest) = line.split_at(at);
        Self { keyword, argument: rest.get(1..).unwrap_or_default() }
    }

    /// Keywords are compared without regard to case (RFC 1939 §3).
    #[must_use]
    pub fn is(&self, keyword: &str) -> bool {
        self.keyword.eq_ignore_ascii_case(keyword.as_bytes())
    }

    /// The arguments between spaces; more than one space between two is forgiven, as qmail does.
    pub fn arguments(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.argument.split(|b| *b == b' ').filter(|word| !word.is_empty())
    }
}

/// A decimal number without sign; `None` for anything else or more than a `u64` holds.
#[must_use]
pub fn number(word: &[u8]) -> Option<u64> {
    if word.is_empty() {
        return None;
    }
    word.iter().try_fold(0u64, |sum, digit| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// What a program may conclude from a `-ERR` (RFC 2449 §8, RFC 3206).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseCode {
    /// The credentials are wrong: asking the user again may help (RFC 3206 §4).
    Auth,
    /// Trouble here that will pass: the same credentials may work later (RFC 3206 §3.1).
    SysTemp,
    /// Another session has the mailbox (RFC 2449 §8.1.1).
    InUse,
}

impl ResponseCode {
    /// With its brackets and the space after them.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Auth => "[AUTH] ",
            Self::SysTemp => "[SYS/TEMP] ",
            Self::InUse => "[IN-USE] ",
        }
    }
}

/// `+OK text`, a whole line. With an empty text this is qmail's `+OK ` with its space.
#[must_use]
pub fn ok(text: &str) -> Vec<u8> {
    format!("+OK {text}\r\n").into_bytes()
}

/// `-ERR text`, a whole line.
#[must_use]
pub fn err(text: &str) -> Vec<u8> {
    format!("-ERR {text}\r\n").into_bytes()
}

/// `-ERR [CODE] text`, a whole line.
#[must_use]
pub fn err_code(code: ResponseCode, text: &str) -> Vec<u8> {
    format!("-ERR {}{text}\r\n", code.text()).into_bytes()
}

/// A multi-line reply of short lines (RFC 1939 §3); none of `lines` may start with a dot.
#[must_use]
pub fn multi_line(first: &str, lines: &[&str]) -> Vec<u8> {
    let mut out = ok(first);
    for line in lines {
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

/// LANG (RFC 6856 §3.2): our replies are in English, the first language of `i-default`; any other range is refused, without an argument the
/// languages are listed.
#[must_use]
pub fn lang(command: &Command<'_>) -> Vec<u8> {
    let mut ranges = command.arguments();
    match (ranges.next(), ranges.next()) {
        (None, _) => multi_line("languages follow", &["en English", "i-default English"]),
        (Some(range), None) if [&b"*"[..], b"en", b"i-default"].iter().any(|known| range.eq_ignore_ascii_case(known)) => {
            ok("en replies are in English")
        }
        _ => err("no such language"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_english() {
        for (line, reply) in [
            ("LANG", "+OK languages follow\r\nen English\r\ni-default English\r\n.\r\n"),
            ("LANG en", "+OK en replies are in English\r\n"),
            ("lang EN", "+OK en replies are in English\r\n"),
            ("LANG *", "+OK en replies are in English\r\n"),
            ("LANG i-default", "+OK en replies are in English\r\n"),
            ("LANG de", "-ERR no such language\r\n"),
            ("LANG en de", "-ERR no such language\r\n"),
        ] {
            assert_eq!(lang(&Command::parse(line.as_bytes())), reply.as_bytes(), "{line}");
        }
    }

    #[test]
    fn a_line_is_a_keyword_and_the_rest() {
        for (line, keyword, argument) in [
            (&b"PASS a  b "[..], &b"PASS"[..], &b"a  b "[..]),
            (b"PASS  x", b"PASS", b" x"),
            (b"quit", b"quit", b""),
            (b"", b"", b""),
            (b" USER x", b"", b"USER x"),
        ] {
            assert_eq!(Command::parse(line), Command { keyword, argument });
        }
        assert!(Command::parse(b"qUiT").is("QUIT"));
        assert_eq!(Command::parse(b"TOP  1   2 ").arguments().collect::<Vec<_>>(), [b"1", b"2"]);
    }

    #[test]
    fn numbers_have_a_bound() {
        for (word, value) in [
            (&b"0"[..], Some(0)),
            (b"0017", Some(17)),
            (b"18446744073709551615", Some(u64::MAX)),
            (b"18446744073709551616", None),
            (b"", None),
            (b"-1", None),
            (b"1x", None),
        ] {
            assert_eq!(number(word), value);
        }
    }
}
