//! Netstrings, `LENGTH:BYTES,` (cr.yp.to/proto/netstrings.txt), with a bound.

/// Why bytes are no netstring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetstringError {
    /// The input ends before the netstring does: more bytes may help.
    Incomplete,
    /// A length over the caller's bound.
    TooLong,
    /// A byte that cannot stand there, or a length with a leading zero.
    Malformed,
}

/// Appends `bytes` as a netstring.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(bytes.len().to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(bytes);
    out.push(b',');
}

/// The first netstring of `input` and what follows it; its content is at most `len_max` bytes.
///
/// # Errors
/// [`NetstringError`]; after anything but `Incomplete` the stream cannot go on.
pub fn decode(input: &[u8], len_max: usize) -> Result<(&[u8], &[u8]), NetstringError> {
    use NetstringError::{Incomplete, Malformed, TooLong};
    let mut len: usize = 0;
    let mut at: usize = 0;
    loop {
        match input.get(at).ok_or(Incomplete)? {
            b':' if at > 0 => break,
            digit @ b'0'..=b'9' if at == 0 || len > 0 => {
                len = len.checked_mul(10).and_then(|n| n.checked_add(usize::from(digit - b'0'))).ok_or(TooLong)?;
                if len > len_max {
                    return Err(TooLong);
                }
            }
            _ => return Err(Malformed),
        }
        at += 1;
    }
    let start = at.checked_add(1).ok_or(TooLong)?;
    let end = start.checked_add(len).ok_or(TooLong)?;
    match input.get(end) {
        Some(b',') => Ok((input.get(start..end).ok_or(Incomplete)?, input.get(end + 1..).unwrap_or_default())),
        Some(_) => Err(Malformed),
        None => Err(Incomplete),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_undoes_encode_and_every_cut_is_incomplete() {
        for content in [&b""[..], b"a", b"hello, world!", &[0; 300]] {
            let mut text = Vec::new();
            encode(content, &mut text);
            for cut in 0..text.len() {
                assert_eq!(decode(&text[..cut], 300), Err(NetstringError::Incomplete));
            }
            text.extend_from_slice(b"rest");
            assert_eq!(decode(&text, 300), Ok((content, &b"rest"[..])));
        }
    }

    #[test]
    fn refuses_the_malformed() {
        for bad in [&b":,"[..], b"01:a,", b"00:,", b"-1:,", b" 1:a,", b"1:ab", b"1a:"] {
            assert_eq!(decode(bad, 100), Err(NetstringError::Malformed), "{}", bad.escape_ascii());
        }
        assert_eq!(decode(b"101:", 100), Err(NetstringError::TooLong));
        assert_eq!(decode(b"99999999999999999999999:", usize::MAX), Err(NetstringError::TooLong));
    }
}
