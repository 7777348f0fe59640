//! Base64 (RFC 4648 §4, and for writing §5), as strictly as it is written: one encoding for each string of bytes.
//!
//! Guarantees: what decodes encodes to the same text again. Line ends, blanks, missing padding and bits behind the end are errors, not
//! read over: two programs that read the same text must not see different bytes (RFC 4648 §12).
//! Used by SMTP AUTH and, as `base64url`, by what is signed for a certificate authority.

use std::fmt;

/// A text that is not base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotBase64;

impl fmt::Display for NotBase64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not base64")
    }
}

impl std::error::Error for NotBase64 {}

/// The text of `bytes`, with padding, without line ends.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3).saturating_mul(4));
    for group in bytes.chunks(3) {
        let byte = |at: usize| group.get(at).copied().map_or(0, u32::from);
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            // One byte makes two digits, two make three.
            text.push(if place <= group.len() { digit(bits >> (18 - 6 * place)) } else { '=' });
        }
    }
    text
}

/// The `base64url` text of `bytes` (RFC 4648 §5), without padding, as JOSE has it (RFC 7515 §2).
#[must_use]
pub fn encode_url(bytes: &[u8]) -> String {
    let text = encode(bytes);
    let url = |digit| match digit {
        '+' => '-',
        '/' => '_',
        digit => digit,
    };
    text.trim_end_matches('=').chars().map(url).collect()
}

/// The digit of the lowest six bits.
fn digit(bits: u32) -> char {
    let value = u8::try_from(bits & 63).unwrap_or(0);
    char::from(match value {
        0..=25 => b'A' + value,
        26..=51 => b'a' + (value - 26),
        52..=61 => b'0' + (value - 52),
        62 => b'+',
        _ => b'/',
    })
}

/// The bytes of a text. No longer than three quarters of it.
///
/// # Errors
/// [`NotBase64`]; permanent.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, NotBase64> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let mut groups = text.chunks(4).peekable();
    while let Some(group) = groups.next() {
        let is_last = groups.peek().is_none();
        let digits = match group {
            [_, _, b'=', b'='] if is_last => group.get(..2),
            [_, _, _, b'='] if is_last => group.get(..3),
            [_, _, _, _] => Some(group),
            _ => None,
        };
        push_group(digits.ok_or(NotBase64)?, &mut bytes)?;
    }
    Ok(bytes)
}

/// Two to four digits as one to three bytes.
fn push_group(digits: &[u8], bytes: &mut Vec<u8>) -> Result<(), NotBase64> {
    let mut bits: u32 = 0;
    for digit in digits {
        bits = bits << 6 | value(*digit)?;
    }
    let unused = (4 - digits.len()) * 6;
    let [_, group @ ..] = (bits << unused).to_be_bytes();
    let (group, rest) = group.split_at_checked(digits.len() - 1).ok_or(NotBase64)?;
    // Bits behind the last byte (RFC 4648 §3.5).
    if rest.iter().any(|byte| *byte != 0) {
        return Err(NotBase64);
    }
    bytes.extend_from_slice(group);
    Ok(())
}

fn value(digit: u8) -> Result<u32, NotBase64> {
    Ok(u32::from(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return Err(NotBase64),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4648 §10.
    #[test]
    fn the_vectors_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text.as_bytes()).unwrap(), bytes.as_bytes());
        }
        let every: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(encode(&every).as_bytes()).unwrap(), every);
        assert_eq!(encode(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn what_is_no_base64() {
        for text in [
            "Z",
            "Zg",
            "Zg=",
            "Zm9",
            "=",
            "==",
            "===",
            "====",
            "Z===",
            "Zg==Zg==",
            "Zm9vZg",
            "Zg== ",
            " Zg==",
            "Zm9v\n",
            "Zm9v\r\n",
            "Zm-_",
            "Zh==",
            "Zm9=",
            "Zm=v",
            "Z*==",
            "Zg==\0",
            "Zm8=Zm8=",
            "\u{e9}g==",
        ] {
            assert_eq!(decode(text.as_bytes()), Err(NotBase64), "{text:?}");
        }
    }
}
