//! The envelope as qmail-queue takes it on descriptor 1 (envelopes(5)): `F`sender NUL, any number of `T`recipient NUL, and a NUL.

use wire::address::ADDRESS_LEN_MAX;
use wire::{Address, AddressError};

use crate::queue::Failure;

/// Longest envelope in bytes: two million recipients of 32 bytes. What is longer is refused as "out of memory".
pub const ENVELOPE_LEN_MAX: usize = 64 << 20;

/// Most recipients: an entry of two bytes becomes an address of its own, so the length alone does not bound memory.
pub const RECIPIENTS_MAX: usize = 2_000_000;

/// Who sends to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub sender: Address,
    pub recipients: Vec<Address>,
}

impl Envelope {
    /// Does the envelope need SMTPUTF8 (RFC 6531 §3.2)?
    #[must_use]
    pub fn is_utf8_only(&self) -> bool {
        self.sender.is_utf8_only() || self.recipients.iter().any(Address::is_utf8_only)
    }
}

/// Reads an envelope as it arrives: what is wrong is said at once, not when the caller closes its end.
#[derive(Debug, Default)]
pub struct Reader {
    len: usize,
    /// An entry that has not ended yet.
    part: Vec<u8>,
    sender: Option<Address>,
    recipients: Vec<Address>,
    has_ended: bool,
}

impl Reader {
    /// Takes bytes; `true` after the final NUL, which is the one that stands where a letter would. Bytes behind it are ignored.
    ///
    /// # Errors
    /// An unknown letter, an address that is too long or holds a line end, or too many recipients or bytes.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<bool, Failure> {
        self.len = self.len.saturating_add(chunk.len());
        if self.len > ENVELOPE_LEN_MAX {
            return Err(Failure::Memory);
        }
        let mut part = std::mem::take(&mut self.part);
        part.extend_from_slice(chunk);
        let mut rest = part.as_slice();
        while !self.has_ended {
            let Some((&letter, after)) = rest.split_first() else { break };
            let expected = if self.sender.is_none() { b'F' } else { b'T' };
            match after.iter().position(|b| *b == 0) {
                _ if letter == 0 && self.sender.is_some() => self.has_ended = true,
                _ if letter != expected => return Err(Failure::EnvelopeFormat),
                Some(nul) => {
                    self.entry(after.get(..nul).unwrap_or_default())?;
                    rest = after.get(nul.saturating_add(1)..).unwrap_or_default();
                }
                None if after.len() > ADDRESS_LEN_MAX => return Err(Failure::AddressTooLong),
                None => break,
            }
        }
        self.part = rest.to_vec();
        Ok(self.has_ended)
    }

    fn entry(&mut self, address: &[u8]) -> Result<(), Failure> {
        let address = Address::new(address).map_err(|error| match error {
            AddressError::TooLong => Failure::AddressTooLong,
            AddressError::ControlByte | AddressError::Domain => Failure::AddressByte,
        })?;
        if self.sender.is_none() {
            self.sender = Some(address);
        } else if self.recipients.len() < RECIPIENTS_MAX {
            self.recipients.push(address);
        } else {
            return Err(Failure::Memory);
        }
        Ok(())
    }

    /// The envelope, when no more bytes come.
    ///
    /// # Errors
    /// It was cut short.
    pub fn finish(self) -> Result<Envelope, Failure> {
        let sender = self.sender.filter(|_| self.has_ended).ok_or(Failure::Read)?;
        Ok(Envelope { sender, recipients: self.recipients })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &[&[u8]]) -> Result<Envelope, Failure> {
        let mut reader = Reader::default();
        chunks.iter().try_for_each(|chunk| reader.feed(chunk).map(drop))?;
        reader.finish()
    }

    #[test]
    fn table() {
        let long = [b"F".as_slice(), &[b'x'; 1003], b"\0\0"].concat();
        let longest = [b"F".as_slice(), &[b'x'; 1002], b"\0\0"].concat();
        for (bytes, expected) in [
            (&b"Fa@b\0Tc@d\0Te\0\0ignored"[..], Ok(("a@b", vec!["c@d", "e"]))),
            (b"F\0\0", Ok(("", vec![]))),
            (b"F\0T\0\0", Ok(("", vec![""]))),
            (&longest, Ok((std::str::from_utf8(&[b'x'; 1002]).unwrap(), vec![]))),
            (&long, Err(Failure::AddressTooLong)),
            (&long[..1004], Err(Failure::AddressTooLong)),
            (b"", Err(Failure::Read)),
            (b"F", Err(Failure::Read)),
            (b"Fa@b\0", Err(Failure::Read)),
            (b"Fa@b\0Tc", Err(Failure::Read)),
            (b"Fa@b\0Tc\0", Err(Failure::Read)),
            (b"Ta\0\0", Err(Failure::EnvelopeFormat)),
            (b"\0", Err(Failure::EnvelopeFormat)),
            (b"Fa\0Fb\0\0", Err(Failure::EnvelopeFormat)),
            (b"Fa\0Tb\nc\0\0", Err(Failure::AddressByte)),
        ] {
            let expected = expected.map(|(sender, recipients)| Envelope {
                sender: Address::new(sender.as_bytes()).unwrap(),
                recipients: recipients.iter().map(|r| Address::new(r.as_bytes()).unwrap()).collect(),
            });
            assert_eq!(read(&[bytes]), expected, "{}", bytes.escape_ascii());
            assert_eq!(read(&bytes.chunks(1).collect::<Vec<_>>()), expected, "{}", bytes.escape_ascii());
            if expected.is_ok() {
                let whole = bytes.windows(2).position(|pair| pair == b"\0\0").unwrap() + 2;
                assert!((0..whole).all(|cut| read(&[&bytes[..cut]]) == Err(Failure::Read)));
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said_at_once() {
        for (bytes, failure) in [
            (&b"X"[..], Failure::EnvelopeFormat),
            (b"Fa\0X", Failure::EnvelopeFormat),
            (b"Fa\0F", Failure::EnvelopeFormat),
            (&[b'F'; ADDRESS_LEN_MAX + 2], Failure::AddressTooLong),
        ] {
            assert_eq!(Reader::default().feed(bytes), Err(failure));
        }
        let mut reader = Reader::default();
        assert_eq!(reader.feed(&[b'F'; ADDRESS_LEN_MAX + 1]), Ok(false));
        assert_eq!((reader.feed(b"\0"), reader.feed(b"\0"), reader.feed(b"x")), (Ok(false), Ok(true), Ok(true)));
    }

    #[test]
    fn recipients_are_bounded() {
        let bytes = [b"F\0".as_slice(), &b"T\0".repeat(RECIPIENTS_MAX + 1), b"\0"].concat();
        assert_eq!(read(&[&bytes]), Err(Failure::Memory));
        assert_eq!(Reader::default().feed(&vec![b'F'; ENVELOPE_LEN_MAX + 1]), Err(Failure::Memory));
    }
}
