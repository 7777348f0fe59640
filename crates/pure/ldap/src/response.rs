//! Messages from the server (RFC 4511 §4).

use crate::ber::{ENUMERATED, INTEGER, OCTET_STRING, Reader, SEQUENCE, SET, header};
use crate::{Malformed, RESPONSE_LEN_MAX};

const BIND: u8 = 0x61;
const ENTRY: u8 = 0x64;
const DONE: u8 = 0x65;
const REFERENCE: u8 = 0x73;
const EXTENDED: u8 = 0x78;

/// Longest text of a server that is kept, in bytes.
const TEXT_LEN_MAX: usize = 200;

/// How an operation ended (§4.1.9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Appendix A has what the codes mean.
    pub code: u32,
    /// The front of the diagnostic message: bytes of the server's.
    pub text: Vec<u8>,
}

impl Outcome {
    pub const SUCCESS: u32 = 0;
    pub const SIZE_LIMIT_EXCEEDED: u32 = 4;
    pub const NO_SUCH_OBJECT: u32 = 32;
    pub const INAPPROPRIATE_AUTHENTICATION: u32 = 48;
    pub const INVALID_CREDENTIALS: u32 = 49;

    #[must_use]
    pub fn is_success(&self) -> bool {
        self.code == Self::SUCCESS
    }
}

/// An entry's attributes: name and values.
pub type Attributes = Vec<(Vec<u8>, Vec<Vec<u8>>)>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    Bind(Outcome),
    Entry {
        dn: Vec<u8>,
        attributes: Attributes,
    },
    /// More might be found elsewhere.
    Reference,
    /// The end of a search.
    Done(Outcome),
    /// StartTLS, or, with the id 0, the server's word that it ends the connection (§4.4).
    Extended(Outcome),
    /// Of a kind that nobody asked for.
    Other,
}

/// A message and the request that it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub id: u32,
    pub response: Response,
}

/// The length of the message at the front of `input`; `None` if it is not all there.
///
/// # Errors
/// No message begins here, or one over [`RESPONSE_LEN_MAX`].
pub fn len(input: &[u8]) -> Result<Option<usize>, Malformed> {
    if input.first().is_some_and(|tag| *tag != SEQUENCE) {
        return Err(Malformed);
    }
    let Some((header, content)) = header(input)? else { return Ok(None) };
    let len = header.checked_add(content).filter(|len| *len <= RESPONSE_LEN_MAX).ok_or(Malformed)?;
    Ok((input.len() >= len).then_some(len))
}

impl Message {
    /// Reads a whole message, as [`len`] measured it. Controls at its end are passed over.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(message: &[u8]) -> Result<Self, Malformed> {
        let mut outer = Reader(message);
        let mut inner = Reader(outer.take(SEQUENCE)?);
        let id = inner.number(INTEGER)?;
        let (tag, content) = inner.any()?;
        if !outer.is_empty() {
            return Err(Malformed);
        }
        let response = match tag {
            BIND => Response::Bind(outcome(content)?),
            ENTRY => entry(content)?,
            DONE => Response::Done(outcome(content)?),
            REFERENCE => Response::Reference,
            EXTENDED => Response::Extended(outcome(content)?),
            _ => Response::Other,
        };
        Ok(Self { id, response })
    }
}

fn outcome(content: &[u8]) -> Result<Outcome, Malformed> {
    let mut reader = Reader(content);
    let code = reader.number(ENUMERATED)?;
    reader.take(OCTET_STRING)?;
    let text = reader.take(OCTET_STRING)?;
    Ok(Outcome { code, text: text.get(..TEXT_LEN_MAX.min(text.len())).unwrap_or_default().to_vec() })
}

fn entry(content: &[u8]) -> Result<Response, Malformed> {
    let mut reader = Reader(content);
    let dn = reader.take(OCTET_STRING)?.to_vec();
    let mut list = Reader(reader.take(SEQUENCE)?);
    let mut attributes = Vec::new();
    while !list.is_empty() {
        let mut attribute = Reader(list.take(SEQUENCE)?);
        let name = attribute.take(OCTET_STRING)?.to_vec();
        let (mut set, mut values) = (Reader(attribute.take(SET)?), Vec::new());
        while !set.is_empty() {
            values.push(set.take(OCTET_STRING)?.to_vec());
        }
        attributes.push((name, values));
    }
    Ok(Response::Entry { dn, attributes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ber::put;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
        assert_eq!(len(bytes), Ok(Some(bytes.len())));
        Message::decode(bytes)
    }

    #[test]
    fn answers_of_a_server() {
        let outcome = |code, text: &[u8]| Outcome { code, text: text.to_vec() };
        for (bytes, id, response) in [
            (&b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00"[..], 1, Response::Bind(outcome(0, b""))),
            (b"\x30\x0e\x02\x01\x02\x61\x09\x0a\x01\x31\x04\x00\x04\x02no", 2, Response::Bind(outcome(49, b"no"))),
            (b"\x30\x0c\x02\x01\x03\x65\x07\x0a\x01\x20\x04\x00\x04\x00", 3, Response::Done(outcome(32, b""))),
            (b"\x30\x0c\x02\x01\x00\x78\x07\x0a\x01\x34\x04\x00\x04\x00", 0, Response::Extended(outcome(52, b""))),
            (b"\x30\x08\x02\x01\x03\x73\x03\x04\x01x", 3, Response::Reference),
            (b"\x30\x05\x02\x01\x03\x79\x00", 3, Response::Other),
            // OpenLDAP writes lengths in the long form, and a control may follow.
            (
                b"\x30\x84\0\0\0\x10\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00\xa0\x02\x30\x00",
                1,
                Response::Bind(outcome(0, b"")),
            ),
            (
                b"\x30\x1a\x02\x01\x04\x64\x15\x04\x03o=x\x30\x0e\x30\x0c\x04\x04mail\x31\x04\x04\x02ab",
                4,
                Response::Entry { dn: b"o=x".to_vec(), attributes: vec![(b"mail".to_vec(), vec![b"ab".to_vec()])] },
            ),
        ] {
            assert_eq!(decode(bytes), Ok(Message { id, response }), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_is_no_message() {
        for bytes in [
            &b"\x30\x00"[..],
            b"\x30\x03\x02\x01\x01",
            b"\x30\x05\x02\x01\xff\x61\x00",
            b"\x30\x05\x02\x01\x01\x61\x00",
            b"\x30\x05\x02\x01\x01\x64\x00",
            b"\x30\x0b\x02\x01\x01\x61\x06\x0a\x01\x00\x04\x00\x04",
            b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x80\x04\x00\x04\x00",
        ] {
            assert_eq!(Message::decode(bytes), Err(Malformed), "{}", bytes.escape_ascii());
        }
        for bytes in [&b"HTTP/1.1 400"[..], b"\x30\x84\xff\xff\xff\xff", b"\x30\x83\x01\x00\x01", b"\x30\x80", b"\x31\x00"] {
            assert_eq!(len(bytes), Err(Malformed), "{}", bytes.escape_ascii());
        }
        for bytes in [&b""[..], b"\x30", b"\x30\x82\x01", b"\x30\x05\x02\x01\x01\x61"] {
            assert_eq!(len(bytes), Ok(None), "{}", bytes.escape_ascii());
        }
    }

    /// A library that follows the nesting of whatever comes can be sent to the end of its stack.
    #[test]
    fn nesting_costs_nothing() {
        let mut nested = Vec::new();
        while nested.len() < RESPONSE_LEN_MAX - 100 {
            let inner = std::mem::take(&mut nested);
            put(SEQUENCE, &inner, &mut nested);
        }
        let mut message = b"\x02\x01\x01".to_vec();
        put(0x64, &nested, &mut message);
        let mut whole = Vec::new();
        put(SEQUENCE, &message, &mut whole);
        assert_eq!(decode(&whole), Err(Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            crate::fuzz::responses(&data);
        }
    }
}
