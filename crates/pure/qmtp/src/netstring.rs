//! Netstrings, `LENGTH:BYTES,` (cr.yp.to/proto/netstrings.txt), read from any chunks.
//!
//! Guarantees: the pieces of a netstring are the same for every way it is cut; nothing is collected; a length is checked against the
//! caller's bound digit by digit, so no arithmetic overflows. Never: a length with a leading zero, a sign or a blank.

/// Why bytes are no netstring; the stream cannot go on behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A byte that cannot stand there.
    Malformed,
    /// A length over the caller's bound.
    TooLong,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The length is known.
    Start(u64),
    /// The next bytes of the content; not empty.
    Content(&'a [u8]),
    /// The comma was there.
    End,
}

/// Reads one netstring after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader(At);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Length { len: u64, has_digits: bool },
    Content { left: u64 },
}

const START: At = At::Length { len: 0, has_digits: false };

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    #[must_use]
    pub fn new() -> Self {
        Self(START)
    }

    /// Between two netstrings?
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.0 == START
    }

    /// Takes the next piece off `input`; `None`: it needs more. `len_max` bounds a length that is read now.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn next<'a>(&mut self, input: &mut &'a [u8], len_max: u64) -> Result<Option<Piece<'a>>, Fault> {
        loop {
            let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
            match self.0 {
                At::Length { len, has_digits: true } if byte == b':' => {
                    *input = rest;
                    self.0 = At::Content { left: len };
                    return Ok(Some(Piece::Start(len)));
                }
                At::Length { len, has_digits } if byte.is_ascii_digit() && !(has_digits && len == 0) => {
                    let digit = u64::from(byte.saturating_sub(b'0'));
                    let len = len.checked_mul(10).and_then(|len| len.checked_add(digit)).filter(|len| *len <= len_max);
                    *input = rest;
                    self.0 = At::Length { len: len.ok_or(Fault::TooLong)?, has_digits: true };
                }
                At::Content { left: 0 } if byte == b',' => {
                    *input = rest;
                    self.0 = START;
                    return Ok(Some(Piece::End));
                }
                At::Length { .. } | At::Content { left: 0 } => return Err(Fault::Malformed),
                At::Content { left } => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    let (content, rest) = input.split_at_checked(take).unwrap_or_default();
                    *input = rest;
                    self.0 = At::Content { left: left.saturating_sub(take as u64) };
                    return Ok(Some(Piece::Content(content)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Contents of whole netstrings, and where it ended.
    fn read(chunks: &[&[u8]], len_max: u64) -> Result<(Vec<Vec<u8>>, bool), Fault> {
        let (mut reader, mut all, mut current) = (Reader::new(), Vec::new(), Vec::new());
        for chunk in chunks {
            let mut rest = *chunk;
            while let Some(piece) = reader.next(&mut rest, len_max)? {
                match piece {
                    Piece::Start(len) => assert!(len <= len_max),
                    Piece::Content(bytes) => current.extend_from_slice(bytes),
                    Piece::End => all.push(std::mem::take(&mut current)),
                }
            }
            assert!(rest.is_empty());
        }
        Ok((all, reader.is_between()))
    }

    #[test]
    fn any_cut_gives_the_same() {
        let mut wire = Vec::new();
        let contents: [&[u8]; 4] = [b"", b"a", b"1:,", &[0; 300]];
        contents.iter().for_each(|content| wire::netstring::encode(content, &mut wire));
        let expected = Ok((contents.map(<[u8]>::to_vec).to_vec(), true));
        for cut in 0..=wire.len() {
            assert_eq!(read(&[&wire[..cut], &wire[cut..]], 300), expected, "{cut}");
        }
        assert_eq!(read(&wire.chunks(1).collect::<Vec<_>>(), 300), expected);
        assert!(!read(&[b"3:ab"], 9).unwrap().1);
    }

    #[test]
    fn what_is_none() {
        for bad in
            [&b":"[..], b":,", b"01:a,", b"00:,", b"-1:,", b"+1:a,", b" 1:a,", b"1 :a,", b"1:ab", b"1a", b"0:x", b"1;", b"\n"]
        {
            assert_eq!(read(&[bad], 100), Err(Fault::Malformed), "{}", bad.escape_ascii());
        }
        assert_eq!(read(&[b"101"], 100), Err(Fault::TooLong));
        assert_eq!(read(&[b"99999999999999999999999"], u64::MAX), Err(Fault::TooLong));
        assert_eq!(read(&[b"100"], 100), Ok((vec![], false)));
    }
}
