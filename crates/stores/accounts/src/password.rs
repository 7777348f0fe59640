//! Password hashes: argon2id as PHC strings (RFC 9106; the parameters stand in the string, so they may change from user to user), and
//! those of other systems ([`imported`]), which are verified and never made.
//!
//! [`hash`] and [`verify`] take tens of milliseconds and [`MEMORY_KIB`] of memory; qmail-auth runs them on a few threads. A login of an
//! unknown user is verified against a hash that no password has, so it takes the same time as one of a user whose hash was made here. An
//! imported hash takes the time that it takes: until the first login, which replaces it ([`is_outdated`]), it can be told from others.

mod imported;
mod md5_crypt;

use crate::Error;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use imported::Form;
use std::sync::OnceLock;
use zeroize::Zeroizing;

/// Memory of one hash; with two passes and one lane the second choice of RFC 9106 §4 scaled to a mail server's many logins (OWASP's
/// minimum for argon2id).
pub const MEMORY_KIB: u32 = 19_456;
/// Passes over the memory.
pub const PASSES: u32 = 2;
/// Lanes: one thread each.
pub const LANES: u32 = 1;
/// Longest password, in bytes: it has to fit into a POP3 command line.
pub const PASSWORD_LEN_MAX: usize = 1000;
/// A stored hash that asks for more memory or for more work than this is refused: the store is not trusted with the machine, and the
/// process may not have more than 2 GiB for all its threads.
const STORED_MEMORY_KIB_MAX: u32 = 256 * 1024;
/// Passes times memory: a second or two.
const STORED_WORK_KIB_MAX: u64 = 1024 * 1024;

/// A PHC string of `password` with fresh salt.
///
/// # Errors
/// Permanent for a password that cannot be sent by POP3 or SMTP; temporary without random bytes or memory.
pub fn hash(password: &[u8]) -> Result<String, Error> {
    check(password)?;
    hash_with(password, &sys::random::bytes16()?)
}

/// Can this be a password?
///
/// # Errors
/// Permanent; the text says why not.
pub fn check(password: &[u8]) -> Result<(), Error> {
    if password.is_empty() {
        return Err(Error::Password("the password is empty"));
    }
    if password.len() > PASSWORD_LEN_MAX {
        return Err(Error::Password("the password is longer than 1000 bytes"));
    }
    if password.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
        return Err(Error::Password("the password holds a NUL, CR or LF"));
    }
    Ok(())
}

/// Is `password` the one that `stored` was made of? `None` stands for an unknown user: the work is done, the answer is no. So it is for
/// what cannot be a password ([`check`]).
///
/// # Errors
/// Temporary: the stored hash cannot be read, or it asks for too much.
pub fn verify(stored: Option<&str>, password: &[u8]) -> Result<bool, Error> {
    let stored = stored.map(Form::of).transpose()?.filter(|_| check(password).is_ok());
    let (text, somebody) = match stored {
        Some(Form::Argon2(text)) => (text, true),
        Some(imported) => return imported.is_of(password),
        None => (nobody()?, false),
    };
    let password = Zeroizing::new(password.get(..PASSWORD_LEN_MAX.min(password.len())).unwrap_or_default().to_vec());
    let right = argon2()?.verify_password(&password, &parse(text)?).is_ok();
    Ok(right && somebody)
}

/// Is it a hash that [`hash`] would make otherwise now: another kind, or other parameters?
#[must_use]
pub fn is_outdated(stored: &str) -> bool {
    !stored.starts_with(&format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}$"))
}

fn argon2() -> Result<Argon2<'static>, Error> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|_| Error::Damaged("argon2 parameters"))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash_with(password: &[u8], salt: &[u8; 16]) -> Result<String, Error> {
    let hash = argon2()?.hash_password_with_salt(password, salt);
    hash.map(|hash| hash.to_string()).map_err(|_| Error::System(std::io::ErrorKind::OutOfMemory.into()))
}

/// The hash for users who do not exist; made once.
fn nobody() -> Result<&'static str, Error> {
    static NOBODY: OnceLock<String> = OnceLock::new();
    if let Some(text) = NOBODY.get() {
        return Ok(text);
    }
    let made = hash_with(b"nobody has this password", &sys::random::bytes16()?)?;
    Ok(NOBODY.get_or_init(|| made))
}

/// Makes the hash for users who do not exist now, so that the first such login is not twice as slow.
///
/// # Errors
/// Temporary.
pub fn warm() -> Result<(), Error> {
    nobody().map(drop)
}

fn parse(text: &str) -> Result<PasswordHash, Error> {
    let hash = PasswordHash::new(text).map_err(|_| Error::Damaged("a password hash is no PHC string"))?;
    let params = Params::try_from(&hash).map_err(|_| Error::Damaged("a password hash has odd parameters"))?;
    let work = u64::from(params.m_cost()).saturating_mul(params.t_cost().into());
    if params.m_cost() > STORED_MEMORY_KIB_MAX || work > STORED_WORK_KIB_MAX {
        return Err(Error::Damaged("a password hash asks for too much memory or time"));
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_wrong_and_nobody() {
        let stored = hash(b"open sesame").unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(verify(Some(&stored), b"open sesame").unwrap());
        for wrong in [&b"open sesam"[..], b"Open sesame", b"", b"open sesame\0", &[b'x'; 5000]] {
            assert!(!verify(Some(&stored), wrong).unwrap());
        }
        assert!(!verify(None, b"nobody has this password").unwrap());
        assert_ne!(hash(b"open sesame").unwrap(), stored, "salted");
        assert!(!is_outdated(&stored));
        for old in ["$argon2id$v=19$m=19456,t=1,p=1$x", "$argon2i$v=19$m=19456,t=2,p=1$x", "$6$x", "{PLAIN}x", ""] {
            assert!(is_outdated(old), "{old}");
        }
    }

    #[test]
    fn a_stored_hash_is_not_trusted_with_the_machine() {
        for text in [
            "",
            "x",
            "$1$abc$def",
            "$argon2id$v=19$m=262145,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$MTIzNDU2Nzg5MDEy",
            "$argon2id$v=19$m=4294967295,t=2,p=1$c29tZXNhbHQ$MTIzNDU2Nzg5MDEy",
            "$argon2id$v=19$m=19456,t=999,p=1$c29tZXNhbHRzb21lc2FsdA$MTIzNDU2Nzg5MDEy",
        ] {
            let error = verify(Some(text), b"x").unwrap_err();
            assert!(error.is_temporary(), "{text}: {error}");
        }
    }

    #[test]
    fn passwords_fit_on_a_command_line() {
        for bad in [&b""[..], b"a\0", b"a\r", b"a\n", &[b'a'; 1001]] {
            assert!(!hash(bad).unwrap_err().is_temporary());
        }
        assert!(check(&[b'a'; 1000]).is_ok() && check(b" a b ").is_ok());
    }

    #[test]
    fn an_unknown_user_takes_as_long_as_a_known_one() {
        let stored = hash(b"x").unwrap();
        warm().unwrap();
        let time = |stored: Option<&str>| {
            let start = std::time::Instant::now();
            verify(stored, b"y").unwrap();
            start.elapsed().as_secs_f64()
        };
        // The least of interleaved rounds: other load on the machine only ever adds.
        let (mut unknown, mut known) = (f64::MAX, f64::MAX);
        for _ in 0..12 {
            unknown = unknown.min(time(None));
            known = known.min(time(Some(&stored)));
        }
        let ratio = unknown / known;
        assert!((0.4..2.5).contains(&ratio), "{ratio}");
    }
}
