//! Names of virtual users, made safe to be one component of a path: `var/mail/DOMAIN/USER`.
//!
//! A [`UserName`] holds no `/`, no control byte, no NUL and does not begin with a dot, so it names exactly one entry of its
//! domain's directory: never `.`, `..`, a hidden file or something elsewhere. Lower-cased: user names are compared so.
//! Only a value of this type may be joined to a base directory (qmail-lspawn, qmail-auth, `qmail user`).

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// RFC 5321 §4.5.3.1.1: a local part has up to 64 octets.
pub const NAME_LEN_MAX: usize = 64;

/// A virtual user's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserName(Box<[u8]>);

impl UserName {
    /// Lower-cases ASCII and checks; `None` for what is no user name. `@` is refused too: it would make the address ambiguous.
    #[must_use]
    pub fn new(name: &[u8]) -> Option<Self> {
        let valid = !name.is_empty()
            && name.len() <= NAME_LEN_MAX
            && name.first() != Some(&b'.')
            && name.iter().all(|b| !matches!(b, b'/' | b'@' | 0..=32 | 127));
        valid.then(|| Self(name.to_ascii_lowercase().into()))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a path of one component.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&wire::escape::visible(&self.0))
    }
}

/// Ways to read a local part as `user` and `ext`, longest user first: `a-b-c`, then `a-b` + `c`, then `a` + `b-c`.
/// The dash between them is in neither. Parts that are no user name are left out.
pub fn splits(local: &[u8]) -> impl Iterator<Item = (UserName, &[u8])> {
    let whole = UserName::new(local).map(|user| (user, &[][..]));
    // Longer users are no names, and a bound keeps a local part of a thousand dashes cheap.
    let reach = local.len().min(NAME_LEN_MAX.saturating_add(1));
    let dashes = (0..reach).rev().filter(move |at| local.get(*at) == Some(&b'-'));
    let at_dash = move |at: usize| Some((UserName::new(local.get(..at)?)?, local.get(at.checked_add(1)?..)?));
    whole.into_iter().chain(dashes.filter_map(at_dash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Component;

    #[test]
    fn names_that_are_refused() {
        for bad in [&b""[..], b".", b"..", b".qmail", b"a/b", b"a\0b", b"a b", b"a\nb", b"a\x7fb", b"a@b", &[b'a'; 65]] {
            assert_eq!(UserName::new(bad), None, "{}", bad.escape_ascii());
        }
        for good in [&b"ann"[..], b"a.b", b"a..b", b"-", b"a+b", b"caf\xc3\xa9", b"'$(x)`", &[b'a'; 64]] {
            assert!(UserName::new(good).is_some(), "{}", good.escape_ascii());
        }
        assert_eq!(UserName::new(b"Ann.B").unwrap().as_bytes(), b"ann.b");
    }

    #[test]
    fn splits_from_the_longest_user() {
        let got: Vec<_> = splits(b"A-b-C").map(|(user, ext)| (user.to_string(), ext.to_vec())).collect();
        assert_eq!(got, [("a-b-c".into(), b"".to_vec()), ("a-b".into(), b"C".to_vec()), ("a".into(), b"b-C".to_vec())]);
        assert_eq!(splits(b"-x").map(|(user, _)| user.to_string()).collect::<Vec<_>>(), ["-x"]);
        assert_eq!(splits(&[b'-'; 1000]).count(), 64);
    }

    proptest! {
        #[test]
        fn a_name_is_one_normal_component(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(name) = UserName::new(&bytes) {
                let parts: Vec<_> = Path::new("/base").join(name.as_path()).components().map(|c| matches!(c, Component::Normal(_))).collect();
                prop_assert_eq!(parts, [false, true, true]);
                prop_assert_eq!(UserName::new(name.as_bytes()), Some(name));
            }
        }
    }
}
