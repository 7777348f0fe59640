//! Envelope addresses as qmail holds them: `local@domain`, the local part unquoted, split at the **last** `@`.
//!
//! An [`Address`] that exists holds no NUL, no CR and no LF and is at most [`ADDRESS_LEN_MAX`] bytes long, so it can be put into
//! an envelope, a log line (escaped), a report or an argument without another check. It may be empty: `<>`, the null
//! reverse-path (RFC 5321 §4.5.5). A domain may be missing; qmail-send then adds `control/envnoathost`.
//! Used by every program.

use std::fmt;

/// Longest address, in bytes: what the classic qmail-queue takes, 1003 with the NUL. (envelopes(5) promises 1000.)
pub const ADDRESS_LEN_MAX: usize = 1002;
/// Longest domain, in bytes (RFC 1035 §2.3.4), without the final dot.
pub const DOMAIN_LEN_MAX: usize = 255;

/// Why bytes are no [`Address`] or [`Domain`]. All of these are permanent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressError {
    /// Longer than [`ADDRESS_LEN_MAX`] (or [`DOMAIN_LEN_MAX`]).
    TooLong,
    /// Holds a NUL, CR or LF.
    ControlByte,
    /// A domain that is empty or holds a byte no host name or literal has.
    Domain,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "address too long",
            Self::ControlByte => "address holds a NUL, CR or LF",
            Self::Domain => "not a domain",
        })
    }
}

impl std::error::Error for AddressError {}

/// An envelope address, unquoted; possibly empty, possibly without a domain.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Address(Box<[u8]>);

impl Address {
    /// The null reverse-path `<>`.
    #[must_use]
    pub fn null() -> Self {
        Self::default()
    }

    /// Takes `local@domain` as it stands in an envelope.
    ///
    /// # Errors
    /// Permanent: too long, or a NUL, CR or LF inside.
    pub fn new(bytes: &[u8]) -> Result<Self, AddressError> {
        if bytes.len() > ADDRESS_LEN_MAX {
            return Err(AddressError::TooLong);
        }
        if bytes.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
            return Err(AddressError::ControlByte);
        }
        Ok(Self(bytes.into()))
    }

    /// Joins a local part and a domain.
    ///
    /// # Errors
    /// As [`Address::new`].
    pub fn join(local: &[u8], domain: &[u8]) -> Result<Self, AddressError> {
        Self::new(&[local, b"@", domain].concat())
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// `<>`?
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.0.is_empty()
    }

    /// What stands before the last `@`; everything if there is none.
    #[must_use]
    pub fn local(&self) -> &[u8] {
        match memchr::memrchr(b'@', &self.0) {
            Some(at) => self.0.get(..at).unwrap_or_default(),
            None => &self.0,
        }
    }

    /// What stands after the last `@`, if there is one; bytes as given, in any case.
    #[must_use]
    pub fn domain(&self) -> Option<&[u8]> {
        let at = memchr::memrchr(b'@', &self.0)?;
        self.0.get(at.checked_add(1)?..)
    }

    /// Is any byte outside ASCII (then SMTPUTF8 is needed, RFC 6531 §3.2)?
    #[must_use]
    pub fn is_utf8_only(&self) -> bool {
        !self.0.is_ascii()
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.0.escape_ascii())
    }
}

impl fmt::Display for Address {
    /// For people and logs: bytes outside printable ASCII are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl AsRef<[u8]> for Address {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A domain in lower case, without a final dot: a host name, an internationalised name in UTF-8, or an address literal in
/// brackets. Safe as a map key and, since it never holds `/`, NUL or a leading dot, as a path component.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Box<[u8]>);

impl Domain {
    /// Lower-cases ASCII and checks the bytes: letters, digits, `-`, `_`, `.`, bytes over 127; or `[…]` of letters, digits, `.`, `:`.
    ///
    /// # Errors
    /// Permanent: empty, too long, an empty label, or any other byte.
    pub fn new(bytes: &[u8]) -> Result<Self, AddressError> {
        let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
        if bytes.len() > DOMAIN_LEN_MAX {
            return Err(AddressError::TooLong);
        }
        let lower = bytes.to_ascii_lowercase();
        let literal = lower.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
        let valid = match literal {
            Some(inner) => {
                !inner.is_empty() && inner.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'-'))
            }
            None => lower.split(|b| *b == b'.').all(|label| {
                !label.is_empty() && label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_') || !b.is_ascii())
            }),
        };
        if !valid {
            return Err(AddressError::Domain);
        }
        Ok(Self(lower.into()))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl AsRef<[u8]> for Domain {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_at_the_last_at() {
        let a = Address::new(b"a@b@C.d").unwrap();
        assert_eq!((a.local(), a.domain()), (&b"a@b"[..], Some(&b"C.d"[..])));
        let a = Address::new(b"root").unwrap();
        assert_eq!((a.local(), a.domain()), (&b"root"[..], None));
        assert!(Address::null().is_null());
    }

    #[test]
    fn refuses_what_would_break_an_envelope_or_a_line() {
        for bad in [&b"a\0b"[..], b"a\nb", b"a\rb"] {
            assert_eq!(Address::new(bad), Err(AddressError::ControlByte));
        }
        assert!(Address::new(&[b'a'; ADDRESS_LEN_MAX]).is_ok());
        assert_eq!(Address::new(&[b'a'; ADDRESS_LEN_MAX + 1]), Err(AddressError::TooLong));
    }

    #[test]
    fn a_domain_is_a_safe_path_component() {
        assert_eq!(Domain::new(b"Example.ORG.").unwrap().as_bytes(), b"example.org");
        assert_eq!(Domain::new(b"[IPv6:::1]").unwrap().as_bytes(), b"[ipv6:::1]");
        for bad in [&b""[..], b".", b"..", b".a", b"a..b", b"a/b", b"a\0", b"[]", b"[a/b]", b"a b", b"a:b"] {
            assert_eq!(Domain::new(bad), Err(AddressError::Domain), "{}", bad.escape_ascii());
        }
    }
}
