//! `event key=value key="va lue"`: the lines of sessions and refusals.
//!
//! A value is bare if it is made of printable ASCII without blank, `"` and `\`; any other is quoted, with `\"`, `\\` and `\xNN` for
//! bytes that are not printable ASCII. So strangers' bytes can end neither a value nor a line. A value that would be longer than
//! [`VALUE_LEN_MAX`] as it is written ends in `...` there, so that no value pushes the ones behind it out of the line.

/// Bytes that a value takes as it is written, without its quotes: as many as the longest address, and few enough that a line with all
/// that strangers choose in it (client, helo, user, sender, recipient, reply) stays below the 8 KiB that qmail-start takes.
pub const VALUE_LEN_MAX: usize = 1024;
/// Most pairs of a line that is read; ours have less than half as many.
pub const PAIRS_MAX: usize = 64;
/// The end of a value that was cut.
const CUT: &str = "...";

/// A line that is being written.
#[derive(Debug, Clone)]
pub struct Line(String);

impl Line {
    /// `event`: a word of ours.
    #[must_use]
    pub fn new(event: &str) -> Self {
        Self(event.to_owned())
    }

    /// A value of ours, as a number; escaped all the same.
    #[must_use]
    pub fn put(self, key: &str, value: impl std::fmt::Display) -> Self {
        self.bytes(key, value.to_string().as_bytes())
    }

    /// Bytes of whoever sent them.
    #[must_use]
    pub fn bytes(mut self, key: &str, value: &[u8]) -> Self {
        self.0.push(' ');
        self.0.push_str(key);
        self.0.push('=');
        self.value(value);
        self
    }

    /// As [`Line::bytes`], if there is a value.
    #[must_use]
    pub fn optional(self, key: &str, value: Option<&[u8]>) -> Self {
        match value {
            Some(value) => self.bytes(key, value),
            None => self,
        }
    }

    /// An address, in angle brackets: the null sender is `<>`.
    #[must_use]
    pub fn address(self, key: &str, address: &[u8]) -> Self {
        self.bytes(key, &[b"<", address, b">"].concat())
    }

    fn value(&mut self, value: &[u8]) {
        let is_bare = !value.is_empty() && value.iter().all(|b| matches!(b, 33..=126) && !matches!(b, b'"' | b'\\'));
        let quote = if is_bare { "" } else { "\"" };
        self.0.push_str(quote);
        self.0.push_str(&bounded(value));
        self.0.push_str(quote);
    }

    /// The line, printable ASCII without an end.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The value between its quotes, cut to [`VALUE_LEN_MAX`].
fn bounded(value: &[u8]) -> String {
    let mut out = String::with_capacity(value.len().min(VALUE_LEN_MAX));
    // Where it ends if it has to be cut: behind a whole byte, with room for what says so.
    let mut end = 0;
    for &b in value {
        match b {
            b'"' | b'\\' => {
                out.push('\\');
                out.push(char::from(b));
            }
            b => out.push_str(&wire::escape::visible(&[b])),
        }
        if out.len().saturating_add(CUT.len()) <= VALUE_LEN_MAX {
            end = out.len();
        }
        if out.len() > VALUE_LEN_MAX {
            out.truncate(end);
            out.push_str(CUT);
            return out;
        }
    }
    out
}

/// A key, and its value with the quoting undone.
type Pair<'a> = (&'a [u8], Vec<u8>);

/// The event and the pairs of such a line; `None` if it is no such line from its first `=` to its end, or has more than
/// [`PAIRS_MAX`] of them.
#[must_use]
pub fn pairs(line: &[u8]) -> Option<(&[u8], Vec<Pair<'_>>)> {
    let first = line.iter().position(|b| *b == b'=')?;
    let key_at = line.get(..first)?.iter().rposition(|b| *b == b' ')?;
    let event = line.get(..key_at)?;
    let event = event.strip_suffix(b":").unwrap_or(event);
    if event.is_empty() || !event.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b' ' | b'-')) {
        return None;
    }
    let mut found = Vec::new();
    let mut rest = line.get(key_at..)?;
    while !rest.is_empty() {
        if found.len() >= PAIRS_MAX {
            return None;
        }
        rest = rest.strip_prefix(b" ")?;
        let end = rest.iter().position(|b| *b == b'=')?;
        let (key, behind) = (rest.get(..end)?, rest.get(end.checked_add(1)?..)?);
        if key.is_empty() || !key.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_') {
            return None;
        }
        let (value, behind) = value(behind)?;
        found.push((key, value));
        rest = behind;
    }
    Some((event, found))
}

/// One value and what is behind it.
fn value(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let Some(mut rest) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|b| *b == b' ').unwrap_or(text.len());
        let (value, behind) = text.split_at_checked(end)?;
        return Some((value.to_vec(), behind));
    };
    let mut value = Vec::new();
    loop {
        let (first, behind) = rest.split_first()?;
        rest = behind;
        match first {
            b'"' => return Some((value, rest)),
            b'\\' => match rest {
                [b'x', high, low, behind @ ..] => {
                    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                    value.push(digit(high)?.checked_mul(16)?.checked_add(digit(low)?)?);
                    rest = behind;
                }
                [escaped @ (b'"' | b'\\'), behind @ ..] => {
                    value.push(*escaped);
                    rest = behind;
                }
                _ => return None,
            },
            other => value.push(*other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_no_value_gets_out() {
        let all: Vec<u8> = (0..=255).collect();
        for value in [&b""[..], b"plain", b"two words", b"\" x=1", b"\\x41", b"a\nb", &all] {
            let line = Line::new("refused").bytes("helo", value).address("from", value).put("n", 7).finish();
            assert!(line.bytes().all(|b| (32..=126).contains(&b)), "{line}");
            let (event, found) = pairs(line.as_bytes()).unwrap();
            assert_eq!(event, b"refused");
            let from = [b"<", value, b">"].concat();
            assert_eq!(found, [(&b"helo"[..], value.to_vec()), (b"from", from), (b"n", b"7".to_vec())]);
        }
        assert_eq!(Line::new("session").put("end", "quit").bytes("helo", b"a b").finish(), "session end=quit helo=\"a b\"");
        for other in ["x", "x y=\"", "x y=1  z=2", "x y=1 z", "x\u{1b} y=1", "a=1", "x Y=1", "x y=\"a\"b", "x y=\"\\q\""] {
            assert_eq!(pairs(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn long_values_are_cut_where_they_cannot_hide_the_next_ones() {
        let whole = vec![b'a'; VALUE_LEN_MAX];
        assert_eq!(Line::new("x").bytes("a", &whole).finish().len(), "x a=".len() + VALUE_LEN_MAX);
        for value in [[&whole[..], b"a"].concat(), vec![b'"'; 5000], vec![0xff; 5000], [&b"\n"[..], &whole].concat()] {
            let mut line = Line::new("refused");
            for key in ["remote", "user", "helo", "from", "to", "reply"] {
                line = line.bytes(key, &value);
            }
            let line = line.put("n", 7).finish();
            assert!(line.len() < 8 * 1024, "{}", line.len());
            let (_, found) = pairs(line.as_bytes()).unwrap();
            assert_eq!((found.len(), found.last()), (7, Some(&(&b"n"[..], b"7".to_vec()))));
            let kept = found[0].1.strip_suffix(b"...").unwrap();
            assert!(kept.len() > VALUE_LEN_MAX / 5 && value.starts_with(kept));
        }
    }

    #[test]
    fn a_line_of_endless_pairs_is_none() {
        let line = |count: usize| format!("x{}", " a=1".repeat(count));
        assert_eq!(pairs(line(PAIRS_MAX).as_bytes()).map(|(_, found)| found.len()), Some(PAIRS_MAX));
        assert_eq!(pairs(line(PAIRS_MAX + 1).as_bytes()), None);
    }
}
