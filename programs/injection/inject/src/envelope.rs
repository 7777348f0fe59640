//! The envelope as qmail-queue takes it on descriptor 1 (envelopes(5)): `F`sender NUL, any number of `T`recipient NUL, and a NUL.

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
    /// Reads a whole envelope; bytes after the final NUL are ignored.
    ///
    /// # Errors
    /// Cut short, an unknown letter, an address that is too long or holds a line end, or too many recipients.
    pub fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        let mut rest = bytes;
        let sender = entry(b'F', &mut rest)?;
        let mut recipients = Vec::new();
        while rest.first() != Some(&0) {
            if recipients.len() >= RECIPIENTS_MAX {
                return Err(Failure::Memory);
            }
            recipients.push(entry(b'T', &mut rest)?);
        }
        Ok(Self { sender, recipients })
    }

    /// Is the final NUL among these bytes, whatever else they hold? It is the one that stands where a letter would: behind the NUL of
    /// the entry before it.
    #[must_use]
    pub fn is_ended(bytes: &[u8]) -> bool {
        bytes.windows(2).any(|pair| pair == b"\0\0")
    }

    /// Does the envelope need SMTPUTF8 (RFC 6531 §3.2)?
    #[must_use]
    pub fn is_utf8_only(&self) -> bool {
        self.sender.is_utf8_only() || self.recipients.iter().any(Address::is_utf8_only)
    }
}

/// The address behind `letter`, with its NUL.
fn entry(letter: u8, rest: &mut &[u8]) -> Result<Address, Failure> {
    match rest.split_first() {
        Some((first, after)) if *first == letter => *rest = after,
        Some(_) => return Err(Failure::EnvelopeFormat),
        None => return Err(Failure::Read),
    }
    let Some((address, after)) = rest.iter().position(|b| *b == 0).and_then(|nul| rest.split_at_checked(nul)) else {
        let too_long = rest.len() > wire::address::ADDRESS_LEN_MAX;
        return Err(if too_long { Failure::AddressTooLong } else { Failure::Read });
    };
    *rest = after.get(1..).unwrap_or_default();
    Address::new(address).map_err(|error| match error {
        AddressError::TooLong => Failure::AddressTooLong,
        AddressError::ControlByte | AddressError::Domain => Failure::AddressByte,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let got = Envelope::parse(bytes);
            let expected = expected.map(|(sender, recipients)| Envelope {
                sender: Address::new(sender.as_bytes()).unwrap(),
                recipients: recipients.iter().map(|r| Address::new(r.as_bytes()).unwrap()).collect(),
            });
            assert_eq!(got, expected, "{}", bytes.escape_ascii());
            if got.is_ok() {
                assert!(Envelope::is_ended(bytes));
                let whole = bytes.windows(2).position(|pair| pair == b"\0\0").unwrap() + 2;
                for cut in 0..whole {
                    assert!(Envelope::parse(&bytes[..cut]).is_err());
                }
            }
        }
    }
    #[test]
    fn recipients_are_bounded() {
        let bytes = [b"F\0".as_slice(), &b"T\0".repeat(RECIPIENTS_MAX + 1), b"\0"].concat();
        assert_eq!(Envelope::parse(&bytes), Err(Failure::Memory));
    }
}
