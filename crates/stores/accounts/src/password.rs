//! Password hashes: argon2id as PHC strings (RFC 9106; the parameters stand in the string, so they may change from user to user), and
//! those of other systems ([`imported`]), which are verified and never made.
//!
//! [`hash`] and [`verify`] take tens of milliseconds and [`MEMORY_KIB`] of memory; qmail-auth runs them on a few threads, each with a
//! [`Hasher`] of its own. A login of an
//! unknown user is verified against a hash that no password has, so it takes the same time as one of a user whose hash was made here. An
//! imported hash takes the time that it takes: until the first login, which replaces it ([`is_outdated`]), it can be told from others.

mod imported;
mod md5_crypt;

use crate::Error;
use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
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

/// Computes hashes, and keeps the memory of one for the next: to have 19 MiB anew from the system takes nearly as long as to fill them.
#[derive(Default)]
pub struct Hasher {
    /// None at first, [`MEMORY_KIB`] blocks after a hash of that size or a smaller one.
    blocks: Vec<Block>,
}

/// A PHC string of `password` with fresh salt.
///
/// # Errors
/// Permanent for a password that cannot be sent by POP3 or SMTP; temporary without random bytes or memory.
pub fn hash(password: &[u8]) -> Result<String, Error> {
    Hasher::default().hash(password)
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

/// As [`Hasher::verify`], with memory of its own.
///
/// # Errors
/// As there.
pub fn verify(stored: Option<&str>, password: &[u8]) -> Result<bool, Error> {
    Hasher::default().verify(stored, password)
}

impl Hasher {
    /// As [`hash`].
    ///
    /// # Errors
    /// As there.
    pub fn hash(&mut self, password: &[u8]) -> Result<String, Error> {
        check(password)?;
        let broken = |_| Error::Damaged("argon2 parameters");
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(broken)?;
        let salt = Salt::new(&sys::random::bytes16()?).map_err(|_| Error::Damaged("a salt"))?;
        let (algorithm, version) = (Algorithm::Argon2id, Version::V0x13);
        let text = ParamsString::try_from(&params).map_err(|_| Error::Damaged("argon2 parameters"))?;
        let output = self.compute(algorithm, version, params, password, &salt)?;
        let hash = PasswordHash {
            algorithm: algorithm.ident(),
            version: Some(version.into()),
            params: text,
            salt: Some(salt),
            hash: Some(output),
        };
        Ok(hash.to_string())
    }

    /// Is `password` the one that `stored` was made of? `None` stands for an unknown user: the work is done, the answer is no. So it is
    /// for what cannot be a password ([`check`]).
    ///
    /// # Errors
    /// Temporary: the stored hash cannot be read, or it asks for too much.
    pub fn verify(&mut self, stored: Option<&str>, password: &[u8]) -> Result<bool, Error> {
        let stored = stored.map(Form::of).transpose()?.filter(|_| check(password).is_ok());
        let (text, somebody) = match stored {
            Some(Form::Argon2(text)) => (text, true),
            Some(imported) => return imported.is_of(password),
            None => (nobody()?, false),
        };
        let password = Zeroizing::new(password.get(..PASSWORD_LEN_MAX.min(password.len())).unwrap_or_default().to_vec());
        Ok(self.is_of(&parse(text)?, &password)? && somebody)
    }

    fn is_of(&mut self, stored: &PasswordHash, password: &[u8]) -> Result<bool, Error> {
        let broken = Error::Damaged("a password hash has odd parameters");
        let (Some(salt), Some(expected), Ok(params)) = (&stored.salt, &stored.hash, Params::try_from(stored)) else {
            return Err(broken);
        };
        let version = stored.version.map(Version::try_from).transpose();
        let (Ok(algorithm), Ok(version)) = (Algorithm::try_from(stored.algorithm.as_str()), version) else { return Err(broken) };
        // The comparison of `Output` takes the same time wherever they differ.
        Ok(self.compute(algorithm, version.unwrap_or_default(), params, password, salt)? == *expected)
    }

    fn compute(
        &mut self,
        algorithm: Algorithm,
        version: Version,
        params: Params,
        password: &[u8],
        salt: &[u8],
    ) -> Result<Output, Error> {
        let no_memory = || Error::System(std::io::ErrorKind::OutOfMemory.into());
        let (count, len) = (params.block_count(), params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN));
        // A hash of others may want more: that goes back when it is done.
        let mut larger = Vec::new();
        let is_kept = u32::try_from(count).is_ok_and(|count| count <= MEMORY_KIB);
        let blocks = if is_kept { &mut self.blocks } else { &mut larger };
        blocks.try_reserve_exact(count.saturating_sub(blocks.len())).map_err(|_| no_memory())?;
        blocks.resize(count.max(blocks.len()), Block::default());
        let broken = || Error::Damaged("a password hash cannot be computed");
        let mut output = [0; Output::MAX_LENGTH];
        let output = output.get_mut(..len).ok_or_else(broken)?;
        let argon2 = Argon2::new(algorithm, version, params);
        argon2.hash_password_into_with_memory(password, salt, output, blocks).map_err(|_| broken())?;
        Output::new(output).map_err(|_| broken())
    }
}

/// Is it a hash that [`hash`] would make otherwise now: another kind, or other parameters?
#[must_use]
pub fn is_outdated(stored: &str) -> bool {
    !stored.starts_with(&format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}$"))
}

/// The hash for users who do not exist; made once.
fn nobody() -> Result<&'static str, Error> {
    static NOBODY: OnceLock<String> = OnceLock::new();
    if let Some(text) = NOBODY.get() {
        return Ok(text);
    }
    let made = hash(b"nobody has this password")?;
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

    /// Hashes that the library makes with memory of its own, of several sizes, in every order over the same memory.
    #[test]
    fn memory_that_is_kept_makes_no_difference() {
        use argon2::PasswordHasher;
        let made = |algorithm, memory_kib, lanes| {
            let argon2 = Argon2::new(algorithm, Version::V0x13, Params::new(memory_kib, 1, lanes, None).unwrap());
            argon2.hash_password_with_salt(b"open sesame", b"sixteen of salt.").unwrap().to_string()
        };
        let stored = [
            made(Algorithm::Argon2id, MEMORY_KIB, 1),
            made(Algorithm::Argon2id, 8, 1),
            made(Algorithm::Argon2i, 2 * MEMORY_KIB, 1),
            made(Algorithm::Argon2d, 1024, 4),
        ];
        let mut hasher = Hasher::default();
        for first in &stored {
            for second in &stored {
                assert!(hasher.verify(Some(first), b"open sesame").unwrap(), "{first}");
                assert!(!hasher.verify(Some(second), b"open sesam").unwrap(), "{second}");
                assert!(hasher.verify(Some(second), b"open sesame").unwrap(), "{second}");
            }
        }
        assert_eq!(hasher.blocks.len(), MEMORY_KIB as usize, "what one of a larger size takes does not stay");
        let own = hasher.hash(b"open sesame").unwrap();
        assert!(verify(Some(&own), b"open sesame").unwrap());
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
