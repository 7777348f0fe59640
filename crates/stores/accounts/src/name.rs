//! The name of a virtual user: the local part of its address, and the directory `var/mail/DOMAIN/NAME`.

use crate::Error;
use std::fmt;

/// Longest name, in bytes (RFC 5321 §4.5.3.1.1).
pub const NAME_LEN_MAX: usize = 64;

/// A name in lower case that is safe as one path component: no `/`, no leading dot, no control byte, no blank, no `@`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserName(Box<[u8]>);

impl UserName {
    /// Lower-cases ASCII and checks the bytes: letters, digits, ``!#$%&'*+-.=?^_`{|}~`` and UTF-8, starting with a letter, a digit, `_` or
    /// UTF-8.
    ///
    /// # Errors
    /// [`Error::Name`], permanent.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.is_empty() {
            return Err(Error::Name("a user needs a name before the @"));
        }
        if bytes.len() > NAME_LEN_MAX {
            return Err(Error::Name("the name is longer than 64 bytes"));
        }
        if std::str::from_utf8(bytes).is_err() {
            return Err(Error::Name("the name is not UTF-8"));
        }
        let starts = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || !b.is_ascii();
        if !bytes.first().is_some_and(starts) {
            return Err(Error::Name("a name starts with a letter, a digit or _"));
        }
        // RFC 5322 §3.2.3 atext and the dot, without the slash.
        let valid = |b: &u8| starts(b) || b"!#$%&'*+-.=?^`{|}~".contains(b);
        if !bytes.iter().all(valid) {
            return Err(Error::Name("a name has no blanks, slashes, quotes or control characters"));
        }
        Ok(Self(bytes.to_ascii_lowercase().into()))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl AsRef<[u8]> for UserName {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_safe_path_component() {
        for (bytes, name) in
            [(&b"Joe"[..], &b"joe"[..]), (b"a.b-c+d", b"a.b-c+d"), (b"_x", b"_x"), ("Zoë".as_bytes(), "zoë".as_bytes())]
        {
            assert_eq!(UserName::new(bytes).unwrap().as_bytes(), name);
        }
        for bad in [
            &b""[..],
            b".",
            b"..",
            b".a",
            b"a/b",
            b"/",
            b"a b",
            b"a\0",
            b"a\n",
            b"a@b",
            b"-a",
            b"+a",
            b"a\"",
            b"a\\",
            b"a\xff",
            b"a:b",
            b"a\x7f",
        ] {
            assert!(matches!(UserName::new(bad), Err(Error::Name(_))), "{}", bad.escape_ascii());
        }
        assert!(UserName::new(&[b'a'; 64]).is_ok() && UserName::new(&[b'a'; 65]).is_err());
        for byte in 0..=255u8 {
            if let Ok(name) = UserName::new(&[b'a', byte]) {
                assert!(name.as_bytes().iter().all(|b| !b"/\0\r\n @:\"\\<>(),;[]".contains(b) && *b >= 32));
            }
        }
    }
}
