//! The fields that messages are made of: little-endian integers, and everything else with its length before it.

use std::net::IpAddr;
use wire::{Address, Domain, Login, Secret};

/// Bytes that are no message of the expected kind: the connection they came on is closed, nothing else happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("malformed datagram")
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for std::io::Error {
    fn from(m: Malformed) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, m)
    }
}

/// A value that can stand in a datagram.
pub trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    /// Takes the value from the front of `input`.
    ///
    /// # Errors
    /// [`Malformed`].
    fn take(input: &mut &[u8]) -> Result<Self, Malformed>;
}

/// Takes `len` bytes from the front.
///
/// # Errors
/// There are not so many.
pub fn split<'a>(input: &mut &'a [u8], len: usize) -> Result<&'a [u8], Malformed> {
    let (front, rest) = input.split_at_checked(len).ok_or(Malformed)?;
    *input = rest;
    Ok(front)
}

/// Takes a length (u32) and so many bytes, borrowed.
///
/// # Errors
/// The input is shorter.
pub fn take_bytes<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let len = usize::try_from(u32::take(input)?).map_err(|_| Malformed)?;
    split(input, len)
}

/// Appends a length (u32) and the bytes. Over 4 GiB cannot come: datagrams are bounded before.
pub fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).put(out);
    out.extend_from_slice(bytes);
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
                let bytes = split(input, size_of::<$type>())?;
                Ok(<$type>::from_le_bytes(bytes.try_into().map_err(|_| Malformed)?))
            }
        }
    )*};
}
integers!(u8, u16, u32, u64);

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(*self).put(out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::take(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

/// Raw bytes; a newtype, so that a list of u8 and a byte string are never mixed up.
#[derive(Clone, PartialEq, Eq, Default, Hash)]
pub struct Bytes(pub Vec<u8>);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Field for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(&self.0, out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Self(take_bytes(input)?.to_vec()))
    }
}

impl Field for Address {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        Self::new(take_bytes(input)?).map_err(|_| Malformed)
    }
}

impl Field for Domain {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        let bytes = take_bytes(input)?;
        // Only the form that `put` writes: a message has one encoding.
        Self::new(bytes).ok().filter(|domain| domain.as_bytes() == bytes).ok_or(Malformed)
    }
}

impl Field for Secret {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.expose(), out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Self::new(take_bytes(input)?.to_vec()))
    }
}

impl Field for Login {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(&self.user, out);
        self.password.put(out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Self { user: take_bytes(input)?.to_vec(), password: Secret::take(input)? })
    }
}

impl Field for IpAddr {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::V4(ip) => put_bytes(&ip.octets(), out),
            Self::V6(ip) => put_bytes(&ip.octets(), out),
        }
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        let bytes = take_bytes(input)?;
        let v4 = <[u8; 4]>::try_from(bytes).map(Self::from);
        v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(Self::from)).map_err(|_| Malformed)
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(if bool::take(input)? { Some(T::take(input)?) } else { None })
    }
}

impl<T: Field> Field for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(out);
        for value in self {
            value.put(out);
        }
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        let count = usize::try_from(u32::take(input)?).map_err(|_| Malformed)?;
        // Every element takes at least a byte, so a lying count ends at the end of the datagram; nothing is reserved for it.
        if count > input.len() {
            return Err(Malformed);
        }
        let mut out = Vec::new();
        for _ in 0..count {
            out.push(T::take(input)?);
        }
        Ok(out)
    }
}

/// The worker's and the remote's verdict on one recipient: the letter of a classic report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// `K`: delivered.
    Success,
    /// `Z`: not now.
    Deferral,
    /// `D`: never.
    Failure,
}

impl Verdict {
    /// The letter.
    #[must_use]
    pub fn letter(self) -> u8 {
        match self {
            Self::Success => b'K',
            Self::Deferral => b'Z',
            Self::Failure => b'D',
        }
    }
}

impl Field for Verdict {
    fn put(&self, out: &mut Vec<u8>) {
        self.letter().put(out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::take(input)? {
            b'K' => Ok(Self::Success),
            b'Z' => Ok(Self::Deferral),
            b'D' => Ok(Self::Failure),
            _ => Err(Malformed),
        }
    }
}
