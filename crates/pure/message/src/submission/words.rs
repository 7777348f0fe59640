//! Encoded words (RFC 2047) in what is shown beside an address, decoded as far as that shows where an `@` is.
//!
//! The rule: an encoded word has exactly the form of RFC 2047 §2 and stands alone, and its charset is one of those in which all readers
//! find the same `@`: UTF-8, charsets of one byte, those of East Asia in which a byte below 0x80 is an `@` or known to be the second half of
//! a character, and ISO-2022-JP as RFC 1468 has it. All else is [`Unclear`]: charsets that shift otherwise (ISO-2022-KR, HZ, UTF-7), in
//! which ASCII has other places (EBCDIC), of wide characters (UTF-16), and unknown ones; control characters; what decodes to another
//! encoded word, since some readers decode twice; and words that are nearly encoded ones.

use super::Unclear;

/// Stands for a character that is not ASCII. No part of an address.
const OTHER: u8 = 0xff;

/// The text with its encoded words decoded; [`OTHER`] for characters of other charsets than UTF-8, `@` for their FULLWIDTH one.
pub(super) fn decoded(text: &[u8]) -> Result<Vec<u8>, Unclear> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some(at) = memchr::memmem::find(rest, b"=?") {
        let (before, word) = rest.split_at_checked(at).ok_or(Unclear)?;
        if before.last().is_some_and(|b| !b.is_ascii_whitespace()) {
            return Err(Unclear);
        }
        out.extend_from_slice(before);
        let end = word.iter().position(u8::is_ascii_whitespace).unwrap_or(word.len());
        let (word, behind) = word.split_at_checked(end).ok_or(Unclear)?;
        out.extend(encoded_word(word)?);
        rest = behind;
    }
    out.extend_from_slice(rest);
    if memchr::memmem::find(&out, b"=?").is_some() { Err(Unclear) } else { Ok(out) }
}

/// `=?CHARSET[*LANGUAGE]?ENCODING?TEXT?=` (RFC 2047 §2, RFC 2231 §5).
fn encoded_word(word: &[u8]) -> Result<Vec<u8>, Unclear> {
    let inner = word.strip_prefix(b"=?").and_then(|word| word.strip_suffix(b"?=")).ok_or(Unclear)?;
    let mut parts = inner.split(|b| *b == b'?');
    let (Some(charset), Some(encoding), Some(data), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(Unclear);
    };
    let bytes = match encoding {
        [b'b' | b'B'] => wire::base64::decode(data).map_err(|_| Unclear)?,
        [b'q' | b'Q'] => from_q(data)?,
        _ => return Err(Unclear),
    };
    let name = charset.split(|b| *b == b'*').next().unwrap_or_default().to_ascii_lowercase();
    Charset::named(&name).ok_or(Unclear)?.text(&bytes)
}

/// The Q encoding (RFC 2047 §4.2).
fn from_q(data: &[u8]) -> Result<Vec<u8>, Unclear> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).ok_or(Unclear);
    let (mut out, mut rest) = (Vec::with_capacity(data.len()), data);
    while let Some((&b, behind)) = rest.split_first() {
        rest = behind;
        out.push(match (b, behind) {
            (b'=', [high, low, behind @ ..]) => {
                rest = behind;
                digit(high)? << 4 | digit(low)?
            }
            (b'=', _) => return Err(Unclear),
            (b'_', _) => b' ',
            (b, _) => b,
        });
    }
    Ok(out)
}

/// How a charset is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Charset {
    Utf8,
    /// One byte a character, those of ASCII at their places.
    Single,
    /// Two bytes and more, of which only the first is always above 0x7f; 0x40 is never the second. FULLWIDTH COMMERCIAL AT.
    Double([u8; 2]),
    ShiftJis,
    Big5,
    Iso2022Jp,
}

impl Charset {
    /// By its name in small letters (the names of IANA's list, and what programs write in their place).
    fn named(name: &[u8]) -> Option<Self> {
        let is_numbered = |prefix: &str, digits: &str| {
            name.strip_prefix(prefix.as_bytes())
                .is_some_and(|rest| !rest.is_empty() && rest.iter().all(|b| digits.as_bytes().contains(b)))
        };
        Some(match name {
            b"utf-8" | b"utf8" => Self::Utf8,
            b"us-ascii" | b"ascii" | b"latin1" | b"koi8-r" | b"koi8-u" | b"macintosh" | b"windows-874" | b"tis-620" => {
                Self::Single
            }
            b"iso-8859-8-i" => Self::Single,
            b"windows-1250" | b"windows-1251" | b"windows-1252" | b"windows-1253" | b"windows-1254" => Self::Single,
            b"windows-1255" | b"windows-1256" | b"windows-1257" | b"windows-1258" => Self::Single,
            b"gb2312" | b"gbk" | b"gb18030" | b"cp936" | b"euc-kr" | b"ks_c_5601-1987" | b"cp949" => Self::Double([0xa3, 0xc0]),
            b"euc-jp" => Self::Double([0xa1, 0xf7]),
            b"shift_jis" | b"shift-jis" | b"sjis" | b"x-sjis" | b"windows-31j" | b"cp932" => Self::ShiftJis,
            b"big5" | b"big5-hkscs" | b"cp950" => Self::Big5,
            b"iso-2022-jp" => Self::Iso2022Jp,
            _ if is_numbered("iso-8859-", "0123456789") => Self::Single,
            _ => return None,
        })
    }

    fn text(self, bytes: &[u8]) -> Result<Vec<u8>, Unclear> {
        if bytes.iter().any(|b| b.is_ascii_control() && (self != Self::Iso2022Jp || *b != 0x1b)) {
            return Err(Unclear);
        }
        match self {
            Self::Utf8 => std::str::from_utf8(bytes).map(|text| text.as_bytes().to_vec()).map_err(|_| Unclear),
            Self::Single => Ok(bytes.iter().map(|b| if b.is_ascii() { *b } else { OTHER }).collect()),
            Self::Iso2022Jp => iso_2022_jp(bytes),
            Self::Double(_) | Self::ShiftJis | Self::Big5 => self.pairs(bytes),
        }
    }

    /// Bytes above 0x7f go together with the next; one below stays, unless it is 0x40 and a second half.
    fn pairs(self, bytes: &[u8]) -> Result<Vec<u8>, Unclear> {
        let (mut out, mut rest) = (Vec::with_capacity(bytes.len()), bytes);
        while let Some((&b, behind)) = rest.split_first() {
            rest = behind;
            if b.is_ascii() || self.is_alone(b) {
                out.push(if b.is_ascii() { b } else { OTHER });
                continue;
            }
            let &next = behind.first().ok_or(Unclear)?;
            if !self.may_be(b, next) {
                return Err(Unclear);
            }
            let is_at = self.is_at(b, next);
            out.push(if is_at { b'@' } else { OTHER });
            if is_at || !next.is_ascii() || (next == b'@' && self.takes_at(b)) {
                rest = behind.get(1..).unwrap_or_default();
            }
        }
        Ok(out)
    }

    /// Halfwidth katakana.
    fn is_alone(self, b: u8) -> bool {
        self == Self::ShiftJis && matches!(b, 0xa1..=0xdf)
    }

    /// Where it matters which byte begins a character, only what begins and ends one is taken.
    fn may_be(self, first: u8, second: u8) -> bool {
        match self {
            Self::ShiftJis => matches!((first, second), (0x81..=0x9f | 0xe0..=0xfc, 0x40..=0x7e | 0x80..=0xfc)),
            Self::Big5 => matches!((first, second), (0x81..=0xfe, 0x40..=0x7e | 0xa1..=0xfe)),
            _ => true,
        }
    }

    /// Is 0x40 behind this byte a second half? Where no character has these two bytes, some readers show an `@`.
    fn takes_at(self, first: u8) -> bool {
        match self {
            // JIS X 0208 has a first character in rows 1, 5, 7, 17 to 61 and 63 to 83.
            Self::ShiftJis => matches!(first, 0x81 | 0x83 | 0x84 | 0x89..=0x9f | 0xe0..=0xea),
            // The ideographs.
            Self::Big5 => matches!(first, 0xa4..=0xc6 | 0xc9..=0xf9),
            _ => false,
        }
    }

    fn is_at(self, first: u8, second: u8) -> bool {
        match self {
            Self::Double(at) => [first, second] == at,
            Self::ShiftJis => [first, second] == [0x81, 0x97],
            Self::Big5 => [first, second] == [0xa1, 0x49],
            _ => false,
        }
    }
}

/// RFC 1468: ASCII, JIS-Roman and two sets of two bytes; back in ASCII or JIS-Roman at the end.
fn iso_2022_jp(bytes: &[u8]) -> Result<Vec<u8>, Unclear> {
    let (mut out, mut is_wide, mut rest) = (Vec::with_capacity(bytes.len()), false, bytes);
    loop {
        rest = match rest {
            [] if is_wide => return Err(Unclear),
            [] => return Ok(out),
            [0x1b, b'$', b'@' | b'B', behind @ ..] => {
                is_wide = true;
                behind
            }
            [0x1b, b'(', b'B' | b'J', behind @ ..] => {
                is_wide = false;
                behind
            }
            [first @ 0x21..=0x7e, second @ 0x21..=0x7e, behind @ ..] if is_wide => {
                out.push(if [*first, *second] == [0x21, 0x77] { b'@' } else { OTHER });
                behind
            }
            [b @ b' '..=b'~', behind @ ..] if !is_wide => {
                out.push(*b);
                behind
            }
            _ => return Err(Unclear),
        };
    }
}
