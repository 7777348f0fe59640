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
        assert_eq!(visible(b"a b\x1b[0m"), "a b\\x1b[0m");
    }
}
