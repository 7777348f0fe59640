//! Search filters (RFC 4515) of the configuration, with places for the login.
//!
//! `%n` stands for the whole login, `%u` for what is before its last `@` (all of it if there is none), `%d` for what follows, `%t` for
//! today in days since 1970, as shadowExpire counts (RFC 2307), `%%` for a percent sign. They may stand in values only. The filter is read into its structure before any login is known, and a login is put in as
//! bytes of a value (RFC 4511 §4.5.1.7 has no special characters): there is nothing to escape, and nothing that could be forgotten.

use crate::ber::{OCTET_STRING, SEQUENCE, put};

/// Longest filter, in bytes.
pub const FILTER_LEN_MAX: usize = 4096;
/// Filters inside filters.
pub const DEPTH_MAX: usize = 16;

const DAY_S: u64 = 86_400;

const AND: u8 = 0xa0;
const OR: u8 = 0xa1;
const NOT: u8 = 0xa2;
const EQUAL: u8 = 0xa3;
const SUBSTRINGS: u8 = 0xa4;
const GREATER: u8 = 0xa5;
const LESS: u8 = 0xa6;
const PRESENT: u8 = 0x87;
const APPROX: u8 = 0xa8;
const EXTENSIBLE: u8 = 0xa9;

/// What somebody logs in with, in its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Login<'a> {
    whole: &'a [u8],
    local: &'a [u8],
    /// Empty if there is none.
    domain: &'a [u8],
    day: u64,
}

impl<'a> Login<'a> {
    /// `now_s`: UNIX seconds.
    #[must_use]
    pub fn new(whole: &'a [u8], now_s: u64) -> Self {
        let at = whole.iter().rposition(|b| *b == b'@');
        let (local, domain) = match at.and_then(|at| whole.split_at_checked(at)) {
            Some((local, domain)) => (local, domain.get(1..).unwrap_or_default()),
            None => (whole, &[][..]),
        };
        Self { whole, local, domain, day: now_s / DAY_S }
    }
}

/// A filter that waits for a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Node);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    /// [`AND`], [`OR`] or [`NOT`].
    Junction(u8, Vec<Node>),
    /// [`EQUAL`], [`GREATER`], [`LESS`] or [`APPROX`]: attribute and value.
    Compare(u8, Vec<u8>, Value),
    Present(Vec<u8>),
    Substrings {
        attribute: Vec<u8>,
        first: Value,
        middle: Vec<Value>,
        last: Value,
    },
    Extensible {
        attribute: Vec<u8>,
        rule: Vec<u8>,
        value: Value,
        dn: bool,
    },
}

type Value = Vec<Piece>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Bytes(Vec<u8>),
    Whole,
    Local,
    Domain,
    Day,
}

impl Filter {
    /// Reads a filter, which begins and ends with a parenthesis.
    ///
    /// # Errors
    /// What is wrong with it, for whoever wrote the configuration.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() > FILTER_LEN_MAX {
            return Err(format!("a filter has at most {FILTER_LEN_MAX} bytes"));
        }
        let mut parser = Parser(text);
        let node = parser.filter(0)?;
        if parser.0.is_empty() { Ok(Self(node)) } else { Err("something follows the filter's last parenthesis".to_owned()) }
    }

    /// Does it ask about the login at all? One that does not would find the same entry for everybody.
    #[must_use]
    pub fn depends_on_login(&self) -> bool {
        self.0.depends_on_login()
    }

    /// The filter for one login, as it stands in a search request. `None`: a part that the filter needs is missing or empty in this
    /// login, so that nobody is meant by it.
    #[must_use]
    pub fn encode(&self, login: Login<'_>) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        self.0.put(login, &mut out)?;
        Some(out)
    }
}

impl Node {
    fn depends_on_login(&self) -> bool {
        let is_place = |value: &Value| value.iter().any(|piece| !matches!(piece, Piece::Bytes(_) | Piece::Day));
        match self {
            Self::Junction(_, inner) => inner.iter().any(Self::depends_on_login),
            Self::Compare(_, _, value) | Self::Extensible { value, .. } => is_place(value),
            Self::Present(_) => false,
            Self::Substrings { first, middle, last, .. } => is_place(first) || is_place(last) || middle.iter().any(is_place),
        }
    }

    fn put(&self, login: Login<'_>, out: &mut Vec<u8>) -> Option<()> {
        let mut content = Vec::new();
        let tag = match self {
            Self::Junction(tag, inner) => {
                inner.iter().try_for_each(|node| node.put(login, &mut content))?;
                *tag
            }
            Self::Compare(tag, attribute, value) => {
                put(OCTET_STRING, attribute, &mut content);
                put(OCTET_STRING, &filled(value, login)?, &mut content);
                *tag
            }
            Self::Present(attribute) => {
                content.extend_from_slice(attribute);
                PRESENT
            }
            Self::Substrings { attribute, first, middle, last } => {
                put(OCTET_STRING, attribute, &mut content);
                let ends = [(0x80, first)].into_iter().chain(middle.iter().map(|value| (0x81, value))).chain([(0x82, last)]);
                let mut parts = Vec::new();
                // No part before the first `*` or behind the last is no part, not an empty one.
                for (tag, value) in ends.filter(|(_, value)| !value.is_empty()) {
                    put(tag, &filled(value, login)?, &mut parts);
                }
                put(SEQUENCE, &parts, &mut content);
                SUBSTRINGS
            }
            Self::Extensible { attribute, rule, value, dn } => {
                for (tag, text) in [(0x81, rule), (0x82, attribute)] {
                    if !text.is_empty() {
                        put(tag, text, &mut content);
                    }
                }
                put(0x83, &filled(value, login)?, &mut content);
                if *dn {
                    put(0x84, &[0xff], &mut content);
                }
                EXTENSIBLE
            }
        };
        put(tag, &content, out);
        Some(())
    }
}

/// The bytes of a value; `None` if a place stays empty.
fn filled(value: &Value, login: Login<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for piece in value {
        let day;
        let bytes = match piece {
            Piece::Bytes(bytes) => bytes.as_slice(),
            Piece::Whole => login.whole,
            Piece::Local => login.local,
            Piece::Domain => login.domain,
            Piece::Day => {
                day = login.day.to_string();
                day.as_bytes()
            }
        };
        if bytes.is_empty() {
            return None;
        }
        out.extend_from_slice(bytes);
    }
    Some(out)
}

struct Parser<'a>(&'a [u8]);

impl Parser<'_> {
    fn next_is(&mut self, expected: u8) -> bool {
        let rest = self.0.strip_prefix(&[expected]);
        rest.inspect(|rest| self.0 = rest).is_some()
    }

    fn filter(&mut self, depth: usize) -> Result<Node, String> {
        if depth >= DEPTH_MAX {
            return Err(format!("filters may stand at most {DEPTH_MAX} deep in one another"));
        }
        if !self.next_is(b'(') {
            return Err("a filter begins with `(`, as in (mail=%n)".to_owned());
        }
        let junction = [(b'&', AND), (b'|', OR), (b'!', NOT)].into_iter().find(|(sign, _)| self.next_is(*sign));
        let node = match junction {
            Some((_, tag)) => self.junction(tag, depth)?,
            None => self.item()?,
        };
        if self.next_is(b')') { Ok(node) } else { Err("a `)` is missing".to_owned()) }
    }

    fn junction(&mut self, tag: u8, depth: usize) -> Result<Node, String> {
        let mut inner = Vec::new();
        while self.0.first() == Some(&b'(') {
            inner.push(self.filter(depth.saturating_add(1))?);
        }
        match (tag, inner.len()) {
            (_, 0) => Err("nothing stands behind `&`, `|` or `!`".to_owned()),
            (NOT, 2..) => Err("only one filter may stand behind `!`".to_owned()),
            _ => Ok(Node::Junction(tag, inner)),
        }
    }

    /// `attribute=value` and its kin.
    fn item(&mut self) -> Result<Node, String> {
        let end = self.0.iter().position(|b| *b == b')' || *b == b'(').unwrap_or(self.0.len());
        let (item, rest) = self.0.split_at_checked(end).unwrap_or((self.0, &[]));
        self.0 = rest;
        let equals = item.iter().position(|b| *b == b'=').ok_or("a comparison has no `=`")?;
        let (left, value) = (item.get(..equals).unwrap_or_default(), item.get(equals.saturating_add(1)..).unwrap_or_default());
        if let Some(left) = left.strip_suffix(b":") {
            return extensible(left, value);
        }
        let (attribute, tag) = match left.split_last() {
            Some((b'>', attribute)) => (attribute, GREATER),
            Some((b'<', attribute)) => (attribute, LESS),
            Some((b'~', attribute)) => (attribute, APPROX),
            _ => (left, EQUAL),
        };
        let attribute = name(attribute)?;
        if tag != EQUAL || !value.contains(&b'*') {
            return Ok(Node::Compare(tag, attribute, self::value(value)?));
        }
        let parts: Vec<Value> = value.split(|b| *b == b'*').map(self::value).collect::<Result<_, _>>()?;
        match parts.as_slice() {
            [first, last] if first.is_empty() && last.is_empty() => Ok(Node::Present(attribute)),
            [_, middle @ .., _] if middle.iter().any(Vec::is_empty) => Err("two `*` stand side by side".to_owned()),
            [first, middle @ .., last] => {
                Ok(Node::Substrings { attribute, first: first.clone(), middle: middle.to_vec(), last: last.clone() })
            }
            _ => Err("a value cannot be read".to_owned()),
        }
    }
}

/// `attribute:dn:rule:=value`, without the last colon.
fn extensible(left: &[u8], value: &[u8]) -> Result<Node, String> {
    let mut parts = left.split(|b| *b == b':');
    let attribute = parts.next().unwrap_or_default().to_vec();
    let (mut rule, mut dn) = (Vec::new(), false);
    for part in parts {
        match part {
            b"dn" if !dn && rule.is_empty() => dn = true,
            part if rule.is_empty() => rule = name(part)?,
            _ => return Err("a comparison with `:=` is attribute:dn:rule:=value".to_owned()),
        }
    }
    if !attribute.is_empty() {
        name(&attribute)?;
    } else if rule.is_empty() {
        return Err("a comparison with `:=` needs an attribute or a rule".to_owned());
    }
    Ok(Node::Extensible { attribute, rule, value: self::value(value)?, dn })
}

/// An attribute description or a matching rule (RFC 4512 §2.5, §1.4).
fn name(text: &[u8]) -> Result<Vec<u8>, String> {
    let is_good = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b';' | b'_');
    if text.is_empty() || !text.iter().all(is_good) {
        return Err(format!("`{}` is no attribute's name", wire::escape::visible(text)));
    }
    Ok(text.to_vec())
}

/// A value with its places and `\xx` (RFC 4515 §3).
fn value(text: &[u8]) -> Result<Value, String> {
    let (mut pieces, mut bytes) = (Vec::new(), Vec::new());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let place = match first {
            b'\\' => {
                let pair = rest.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
                let byte = pair.filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()));
                let byte = byte.and_then(|pair| u8::from_str_radix(pair, 16).ok());
                bytes.push(byte.ok_or("a backslash stands before two hexadecimal digits, as in \\2a")?);
                rest = rest.get(2..).unwrap_or_default();
                continue;
            }
            b'%' => match rest.split_first() {
                Some((b'n', _)) => Piece::Whole,
                Some((b'u', _)) => Piece::Local,
                Some((b'd', _)) => Piece::Domain,
                Some((b't', _)) => Piece::Day,
                Some((b'%', after)) => {
                    bytes.push(b'%');
                    rest = after;
                    continue;
                }
                _ => return Err("a percent sign stands before n, u, d, t or another percent sign".to_owned()),
            },
            byte => {
                bytes.push(*byte);
                continue;
            }
        };
        rest = rest.get(1..).unwrap_or_default();
        if !bytes.is_empty() {
            pieces.push(Piece::Bytes(std::mem::take(&mut bytes)));
        }
        pieces.push(place);
    }
    if !bytes.is_empty() {
        pieces.push(Piece::Bytes(bytes));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(filter: &str, login: &[u8]) -> Option<Vec<u8>> {
        Filter::parse(filter.as_bytes()).unwrap().encode(Login::new(login, 86_400 * 20_782 + 5))
    }

    #[test]
    fn each_kind_as_rfc_4511_has_it() {
        for (filter, expected) in [
            ("(cn=ab)", &b"\xa3\x08\x04\x02cn\x04\x02ab"[..]),
            ("(cn=)", b"\xa3\x06\x04\x02cn\x04\x00"),
            ("(n>=5)", b"\xa5\x06\x04\x01n\x04\x015"),
            ("(n<=5)", b"\xa6\x06\x04\x01n\x04\x015"),
            ("(cn~=x)", b"\xa8\x07\x04\x02cn\x04\x01x"),
            ("(cn=*)", b"\x87\x02cn"),
            ("(cn=a*)", b"\xa4\x09\x04\x02cn\x30\x03\x80\x01a"),
            ("(cn=*a)", b"\xa4\x09\x04\x02cn\x30\x03\x82\x01a"),
            ("(cn=a*b*c)", b"\xa4\x0f\x04\x02cn\x30\x09\x80\x01a\x81\x01b\x82\x01c"),
            ("(!(a=b))", b"\xa2\x08\xa3\x06\x04\x01a\x04\x01b"),
            ("(&(a=b)(c=*))", b"\xa0\x0b\xa3\x06\x04\x01a\x04\x01b\x87\x01c"),
            ("(|(a=b))", b"\xa1\x08\xa3\x06\x04\x01a\x04\x01b"),
            ("(u:1.2:=4)", b"\xa9\x0b\x81\x031.2\x82\x01u\x83\x014"),
            ("(:dn:2.4:=x)", b"\xa9\x0b\x81\x032.4\x83\x01x\x84\x01\xff"),
            ("(cn=\\2a\\29%%)", b"\xa3\x09\x04\x02cn\x04\x03*)%"),
        ] {
            let filter_bytes = encoded(filter, b"joe").unwrap();
            assert_eq!(filter_bytes.escape_ascii().to_string(), expected.escape_ascii().to_string(), "{filter}");
        }
    }

    #[test]
    fn a_login_is_a_value_whatever_it_holds() {
        for login in [&b"*"[..], b")(uid=*", b"\\2a", b"joe)(|(a=*", b"a\0b", b"\xff\xfe", b"%n", b"a@b@c", b"(&", b"x*y"] {
            let len = u8::try_from(login.len()).unwrap();
            let expected = [&[0xa3, len + 8, 4, 4][..], b"mail", &[4, len], login];
            assert_eq!(encoded("(mail=%n)", login), Some(expected.concat()), "{}", login.escape_ascii());
            // A part of a substring stays that one part.
            let part = encoded("(mail=*%n*)", login).unwrap();
            let expected = [&[0x30, len + 2, 0x81, len][..], login].concat();
            assert!(part.ends_with(&expected), "{}", part.escape_ascii());
        }
        assert_eq!(encoded("(a=%u+%d)", b"x@y@z"), Some(b"\xa3\x0a\x04\x01a\x04\x05x@y+z".to_vec()));
        assert_eq!(encoded("(a>=%t)", b"x"), Some(b"\xa5\x0a\x04\x01a\x04\x0520782".to_vec()));
        assert_eq!(encoded("(a=%u)", b"joe"), Some(b"\xa3\x08\x04\x01a\x04\x03joe".to_vec()));
    }

    #[test]
    fn a_login_without_what_the_filter_needs_means_nobody() {
        for (filter, login) in [("(a=%n)", ""), ("(a=%d)", "joe"), ("(a=%d)", "joe@"), ("(a=%u)", "@x"), ("(a=b*%d)", "joe")] {
            assert_eq!(encoded(filter, login.as_bytes()), None, "{filter} {login}");
        }
        assert!(Filter::parse(b"(|(a=b)(c=*%u))").unwrap().depends_on_login());
        assert!(!Filter::parse(b"(&(a=b)(c=*)(d>=%t))").unwrap().depends_on_login());
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (filter, part) in [
            ("", "begins with `(`"),
            ("mail=%n", "begins with `(`"),
            ("(mail=%n", "`)` is missing"),
            ("(mail=%n))", "follows"),
            ("(mail)", "no `=`"),
            ("(=x)", "no attribute"),
            ("(ma il=x)", "no attribute"),
            ("(%u=x)", "no attribute"),
            ("(mail=%x)", "percent"),
            ("(mail=%)", "percent"),
            ("(mail=\\2)", "backslash"),
            ("(mail=\\zz)", "backslash"),
            ("(mail=\\+1)", "backslash"),
            ("(a=b**c)", "side by side"),
            ("(&)", "nothing stands"),
            ("(!(a=b)(c=d))", "only one"),
            ("(:=x)", "needs an attribute"),
            ("(a:b:c:=x)", "attribute:dn:rule"),
            ("(a=b(c=d))", "`)` is missing"),
        ] {
            assert!(Filter::parse(filter.as_bytes()).unwrap_err().contains(part), "{filter}");
        }
        let deep = |n: usize| format!("{}(a=b){}", "(!".repeat(n), ")".repeat(n));
        assert!(Filter::parse(deep(DEPTH_MAX - 1).as_bytes()).is_ok());
        assert!(Filter::parse(deep(DEPTH_MAX).as_bytes()).unwrap_err().contains("deep"));
        assert!(Filter::parse(format!("(a={})", "x".repeat(FILTER_LEN_MAX)).as_bytes()).is_err());
    }
}
