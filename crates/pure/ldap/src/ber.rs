//! BER as LDAP restricts it (RFC 4511 §5.1): one-byte tags, definite lengths.

use crate::Malformed;

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const ENUMERATED: u8 = 0x0a;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// Bytes of a long length that are read; four make more than any message may have.
const LENGTH_LEN_MAX: usize = 4;

/// Appends an element.
pub(crate) fn put(tag: u8, content: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    match u8::try_from(content.len()) {
        Ok(len) if len < 0x80 => out.push(len),
        _ => {
            let len = u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes();
            let zeros = len.iter().take_while(|byte| **byte == 0).count();
            let len = len.get(zeros..).unwrap_or_default();
            out.push(0x80 | u8::try_from(len.len()).unwrap_or(4));
            out.extend_from_slice(len);
        }
    }
    out.extend_from_slice(content);
}

/// Appends a number, in as many bytes as it needs with a clear sign bit.
pub(crate) fn put_number(tag: u8, number: u32, out: &mut Vec<u8>) {
    let bytes = u64::from(number).to_be_bytes();
    let mut needed = bytes.as_slice();
    while let [0, rest @ ..] = needed
        && rest.first().is_some_and(|next| *next < 0x80)
    {
        needed = rest;
    }
    put(tag, needed, out);
}

/// Reads elements one after the other.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tag of the next element.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The content of the next element, whatever it is.
    pub(crate) fn any(&mut self) -> Result<(u8, &'a [u8]), Malformed> {
        let (header, len) = header(self.0)?.ok_or(Malformed)?;
        let tag = self.peek().ok_or(Malformed)?;
        let (content, rest) = self.0.get(header..).and_then(|rest| rest.split_at_checked(len)).ok_or(Malformed)?;
        self.0 = rest;
        Ok((tag, content))
    }

    /// The content of the next element, which must have this tag.
    pub(crate) fn take(&mut self, tag: u8) -> Result<&'a [u8], Malformed> {
        if self.peek() != Some(tag) {
            return Err(Malformed);
        }
        self.any().map(|(_, content)| content)
    }

    /// A number that is not negative and fits.
    pub(crate) fn number(&mut self, tag: u8) -> Result<u32, Malformed> {
        let content = self.take(tag)?;
        let is_negative = content.first().is_none_or(|first| first & 0x80 != 0);
        if is_negative || content.len() > 5 {
            return Err(Malformed);
        }
        let value = content.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        u32::try_from(value).map_err(|_| Malformed)
    }
}

/// Length of the header of the element at the front, and of its content; `None` if the header is not all there.
pub(crate) fn header(input: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let Some(&[tag, first]) = input.get(..2) else { return Ok(None) };
    // Tags of more than one byte do not occur in LDAP.
    if tag & 0x1f == 0x1f {
        return Err(Malformed);
    }
    if first < 0x80 {
        return Ok(Some((2, usize::from(first))));
    }
    let count = usize::from(first & 0x7f);
    if count == 0 || count > LENGTH_LEN_MAX {
        return Err(Malformed);
    }
    let Some(bytes) = input.get(2..2 + count) else { return Ok(None) };
    let len = bytes.iter().fold(0usize, |len, byte| len << 8 | usize::from(*byte));
    Ok(Some((2 + count, len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_numbers_come_back() {
        for len in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let content = vec![7; len];
            let mut out = Vec::new();
            put(OCTET_STRING, &content, &mut out);
            let mut reader = Reader(&out);
            assert_eq!(reader.take(OCTET_STRING), Ok(&content[..]), "{len}");
            assert!(reader.is_empty());
        }
        for (number, bytes) in [
            (0, &[2, 1, 0][..]),
            (127, &[2, 1, 127]),
            (128, &[2, 2, 0, 128]),
            (32_767, &[2, 2, 127, 255]),
            (32_768, &[2, 3, 0, 128, 0]),
            (8_388_608, &[2, 4, 0, 128, 0, 0]),
            (0x7fff_ffff, &[2, 4, 127, 255, 255, 255]),
            (u32::MAX, &[2, 5, 0, 255, 255, 255, 255]),
        ] {
            let mut out = Vec::new();
            put_number(INTEGER, number, &mut out);
            assert_eq!(out, bytes, "{number}");
            assert_eq!(Reader(&out).number(INTEGER), Ok(number));
        }
    }

    #[test]
    fn what_is_not_ber_of_ldap() {
        for bytes in [&[4, 0x80][..], &[4, 0x85, 0, 0, 0, 0, 1], &[0x1f, 1, 0], &[0x3f, 1, 0], &[4, 2, 1], &[4, 0x82, 1]] {
            assert_eq!(Reader(bytes).any(), Err(Malformed), "{bytes:?}");
        }
        for bytes in [&[2, 0][..], &[2, 1, 0xff], &[2, 5, 1, 0, 0, 0, 0], &[2, 6, 0, 0, 0, 0, 0, 1], &[4, 1, 0]] {
            assert_eq!(Reader(bytes).number(INTEGER), Err(Malformed), "{bytes:?}");
        }
    }
}
