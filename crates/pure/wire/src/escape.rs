//! Bytes from strangers made safe for a log line, a terminal or a report (promise 6).

/// qmail-send's rule for reports in its log: newline → `/`, every byte below 33, above 126 and `%` → `_` (qmail-log(5)).
#[must_use]
pub fn log_report(text: &[u8]) -> String {
    text.iter()
        .map(|b| match b {
            b'\n' => '/',
            b'%' | 0..=32 | 127..=255 => '_',
            b => char::from(*b),
        })
        .collect()
}

/// Control bytes and bytes over 126 as `\xNN`, so that one line stays one line and no terminal obeys it.
#[must_use]
pub fn visible(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for &b in text {
        match b {
            32..=126 => out.push(char::from(b)),
            b => {
                for part in ["\\x", hex(b >> 4), hex(b & 15)] {
                    out.push_str(part);
                }
            }
        }
    }
    out
}

/// Text for people: UTF-8 as it is, TAB too; `?` for other control characters, for those that turn the order of a line about, and for
/// bytes that are no UTF-8. A log wants more ([`log_report`]).
#[must_use]
pub fn readable(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        out.extend(chunk.valid().chars().map(|c| if misleads(c) { '?' } else { c }));
        if !chunk.invalid().is_empty() {
            out.push('?');
        }
    }
    out
}

/// Controls, and what a display obeys as one: line and paragraph separators, marks and overrides of direction (UAX #9).
fn misleads(c: char) -> bool {
    (c.is_control() && c != '\t')
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn hex(nibble: u8) -> &'static str {
    const DIGITS: [&str; 16] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "b", "c", "d", "e", "f"];
    DIGITS.get(usize::from(nibble)).copied().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_byte_survives() {
        for b in 0..=255u8 {
            for text in [log_report(&[b]), visible(&[b])] {
                assert!(text.bytes().all(|c| (32..=126).contains(&c)), "{b}: {text:?}");
            }
        }
        assert_eq!(log_report(b"a b\nc%"), "a_b/c_");
        assert_eq!(log_report("boîte\tpleine\u{202e}".as_bytes()), "bo__te_pleine___");
        assert_eq!(visible(b"a b\x1b[0m"), "a b\\x1b[0m");
    }

    #[test]
    fn people_read_their_own_letters() {
        for (text, expected) in [
            ("boîte\tpleine".as_bytes(), "boîte\tpleine"),
            ("почта 郵便".as_bytes(), "почта 郵便"),
            (b"a\0b\x1b[0m\x7f\r\n", "a?b?[0m???"),
            (b"bo\xeete \xc3", "bo?te ?"),
            ("\u{202e}a\u{2069}b\u{85}c\u{2028}d\u{200f}".as_bytes(), "?a?b?c?d?"),
        ] {
            assert_eq!(readable(text), expected);
        }
    }
}
