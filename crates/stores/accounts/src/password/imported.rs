//! Hashes that other systems made and an import brings along: verified, never made.
//!
//! | form | from |
//! |---|---|
//! | `$y$` | yescrypt: Debian's shadow since 11 |
//! | `$5$`, `$6$` | SHA-crypt |
//! | `$2a$`, `$2b$`, `$2x$`, `$2y$` | bcrypt; passwords count up to 72 bytes, as wherever the hash was made |
//! | `$1$` | MD5-crypt: vpopmail |
//! | `{CRYPT}…`, `{SHA512-CRYPT}…`, … | Dovecot's prefix before one of those, or before an argon2 hash |
//! | `{PLAIN}…` | the password itself |
//!
//! A hash says how much work it costs. What would take a thread of qmail-auth longer than about a second, or hundreds of MiB, is
//! refused: the store is not trusted with the machine.

use crate::Error;
use argon2::password_hash::PasswordVerifier as _;
use sha_crypt::ShaCrypt;
use std::str::FromStr as _;
use subtle::ConstantTimeEq as _;
use yescrypt::Yescrypt;

/// bcrypt's cost is a power of two; 12 takes a quarter of a second.
const BCRYPT_COST_MAX: u32 = 14;
/// SHA-crypt's rounds; 5000 where none are written.
const SHA_ROUNDS_MAX: u32 = 1_000_000;
/// yescrypt's N·r in blocks of 128 bytes: 64 MiB; Debian's `$y$j9T$` has 16.
const YESCRYPT_BLOCKS_MAX: u64 = 64 * 1024 * 1024 / 128;

/// The length of its hash as text: 256 bits.
const YESCRYPT_DIGITS: usize = 43;

/// Dovecot's names before a hash that says itself what it is.
const PREFIXES: [&str; 8] =
    ["{CRYPT}", "{SHA512-CRYPT}", "{SHA256-CRYPT}", "{MD5-CRYPT}", "{BLF-CRYPT}", "{ARGON2ID}", "{ARGON2I}", "{ARGON2}"];
const PLAIN: [&str; 3] = ["{PLAIN}", "{CLEARTEXT}", "{CLEAR}"];

/// A stored hash, by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form<'a> {
    /// PHC string.
    Argon2(&'a str),
    Yescrypt(&'a str),
    Sha(&'a str),
    Bcrypt(&'a str),
    Md5(&'a str),
    Plain(&'a str),
}

impl<'a> Form<'a> {
    /// # Errors
    /// Temporary: no form that is known.
    pub(super) fn of(stored: &'a str) -> Result<Self, Error> {
        if let Some(password) = PLAIN.iter().find_map(|prefix| strip(stored, prefix)) {
            return Ok(Self::Plain(password));
        }
        let hash = PREFIXES.iter().find_map(|prefix| strip(stored, prefix)).unwrap_or(stored);
        let mut fields = hash.strip_prefix('$').ok_or(UNKNOWN)?.split('$');
        match fields.next().unwrap_or_default() {
            "argon2id" | "argon2i" | "argon2d" => Ok(Self::Argon2(hash)),
            "y" => Ok(Self::Yescrypt(hash)),
            "5" | "6" => Ok(Self::Sha(hash)),
            "2a" | "2b" | "2x" | "2y" => Ok(Self::Bcrypt(hash)),
            "1" => Ok(Self::Md5(hash)),
            _ => Err(UNKNOWN),
        }
    }

    /// Is it the password's? Not for argon2.
    ///
    /// # Errors
    /// Temporary: it cannot be read, or it asks for too much.
    pub(super) fn is_of(self, password: &[u8]) -> Result<bool, Error> {
        match self {
            Self::Argon2(_) => Err(UNKNOWN),
            Self::Yescrypt(hash) => yescrypt(hash, password),
            Self::Sha(hash) => sha(hash, password),
            Self::Bcrypt(hash) => bcrypt(hash, password),
            Self::Md5(hash) => super::md5_crypt::is_of(hash, password),
            Self::Plain(stored) => Ok(stored.as_bytes().ct_eq(password).into()),
        }
    }
}

const UNKNOWN: Error = Error::Damaged("a password hash has no form that is known");
const TOO_MUCH: Error = Error::Damaged("a password hash asks for too much memory or time");

fn strip<'a>(stored: &'a str, prefix: &str) -> Option<&'a str> {
    let (front, rest) = stored.split_at_checked(prefix.len())?;
    front.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn yescrypt(hash: &str, password: &[u8]) -> Result<bool, Error> {
    const MALFORMED: Error = Error::Damaged("a yescrypt hash cannot be read");
    let text = hash.split('$').nth(2).ok_or(MALFORMED)?;
    let params = yescrypt::Params::from_str(text).map_err(|_| MALFORMED)?;
    let blocks = params.n().checked_mul(params.r().into()).ok_or(TOO_MUCH)?;
    // What is written when only flavour, N and r are: no parallelism, no longer time, no upgrades.
    let plain = yescrypt::Params::new(yescrypt::Mode::default(), params.n(), params.r(), 1).map_err(|_| MALFORMED)?;
    if blocks > YESCRYPT_BLOCKS_MAX || plain != params {
        return Err(TOO_MUCH);
    }
    // The crate compares as much as there is: nothing at all would be everybody's.
    if hash.split('$').nth(4).is_none_or(|digest| digest.len() != YESCRYPT_DIGITS) {
        return Err(MALFORMED);
    }
    verdict(Yescrypt::default().verify_password(password, hash), MALFORMED)
}

fn sha(hash: &str, password: &[u8]) -> Result<bool, Error> {
    let rounds = hash.split('$').nth(2).and_then(|field| field.strip_prefix("rounds="));
    let rounds = rounds.map(|digits| digits.parse::<u32>().map_err(|_| TOO_MUCH)).transpose()?;
    if rounds.is_some_and(|rounds| rounds > SHA_ROUNDS_MAX) {
        return Err(TOO_MUCH);
    }
    verdict(ShaCrypt::default().verify_password(password, hash), Error::Damaged("a SHA-crypt hash cannot be read"))
}

fn verdict(verified: Result<(), argon2::password_hash::Error>, malformed: Error) -> Result<bool, Error> {
    match verified {
        Ok(()) => Ok(true),
        Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
        Err(_) => Err(malformed),
    }
}

fn bcrypt(hash: &str, password: &[u8]) -> Result<bool, Error> {
    const MALFORMED: Error = Error::Damaged("a bcrypt hash cannot be read");
    let parts = bcrypt::HashParts::from_str(hash).map_err(|_| MALFORMED)?;
    if parts.get_cost() > BCRYPT_COST_MAX {
        return Err(TOO_MUCH);
    }
    bcrypt::verify(password, hash).map_err(|_| MALFORMED)
}

#[cfg(test)]
mod tests {
    use super::super::verify;

    /// Hashes that crypt(3) of libxcrypt 4.4 (Debian 12) made, and their passwords.
    const KNOWN: [(&str, &str); 11] = [
        ("$y$j9T$F5Jx5fExrKuPp53xLKQ..1$6JlLzEdKMvGk83Zgd3owplAejssJr2SFlJFlOc7i54A", "open sesame"),
        ("$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5", SHA_WORLD),
        ("$5$rounds=10000$saltstringsaltst$3xv.VbSHBb41AL9AvLeujZkZRBAwqFMz2.opqey6IcA", SHA_WORLD),
        ("$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1", SHA_WORLD),
        (
            "{SHA512-CRYPT}$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v.",
            SHA_WORLD,
        ),
        ("$2a$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW", "open sesame"),
        ("$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW", "open sesame"),
        ("{blf-crypt}$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW", "open sesame"),
        ("$1$saltsalt$Yo6tRKYGO/jWyb1etwHDS/", "open sesame"),
        ("{CRYPT}$1$$UXaNQ1ru721MYB6e2aqD9/", "a password of more than sixteen bytes, to be folded"),
        ("{PLAIN}open sesame", "open sesame"),
    ];
    const SHA_WORLD: &str = "Hello world!";

    #[test]
    fn what_other_programs_made() {
        for (stored, password) in KNOWN {
            assert!(verify(Some(stored), password.as_bytes()).unwrap(), "{stored}");
            let wrong = [&password[1..], &password.to_uppercase(), "x", "", &format!("{password}\0")].map(str::to_owned);
            for wrong in wrong {
                assert!(!verify(Some(stored), wrong.as_bytes()).unwrap(), "{stored} {wrong:?}");
            }
        }
        let bytes = "p\u{e4}ss".as_bytes();
        assert!(verify(Some("$1$ab$HKU0BHffVFSU9ZlG98TKC/"), bytes).unwrap());
        let long = "$2b$04$abcdefghijklmnopqrstuubzadhGtS2zEF.gu0yd0opP6cVzb.e0i";
        assert!(verify(Some(long), &[b'x'; 80]).unwrap() && verify(Some(long), &[b'x'; 72]).unwrap());
        assert!(!verify(Some(long), &[b'x'; 71]).unwrap());
        assert!(super::super::md5_crypt::is_of("$1$s$iXWZU0LDEJ7Jjmms7KFsH0", b"").unwrap());
    }

    #[test]
    fn costs_have_a_bound() {
        let started = std::time::Instant::now();
        for text in [
            "$2b$31$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW",
            "$2b$15$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW",
            "$6$rounds=999999999$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjlO/O817G3uBnIFNjnQJuesI68OTLiBFdcbYEdFCoEOfaS35inz1",
            "$5$rounds=99999999999$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc8",
            // N = 2^32; N = 2^63; p = 2; t = 1.
            "$y$jTT$F5Jx5fExrKuPp53xLKQ..1$6JlLzEdKMvGk83Zgd3owplAejssJr2SFlJFlOc7i54A",
            "$y$jzT$F5Jx5fExrKuPp53xLKQ..1$6JlLzEdKMvGk83Zgd3owplAejssJr2SFlJFlOc7i54A",
            "$y$j9T..$F5Jx5fExrKuPp53xLKQ..1$6JlLzEdKMvGk83Zgd3owplAejssJr2SFlJFlOc7i54A",
            "$y$j9T/.$F5Jx5fExrKuPp53xLKQ..1$6JlLzEdKMvGk83Zgd3owplAejssJr2SFlJFlOc7i54A",
        ] {
            let error = verify(Some(text), b"x").unwrap_err();
            assert!(error.is_temporary(), "{text}: {error}");
        }
        assert!(started.elapsed().as_secs() < 30, "they are refused, not computed");
    }

    #[test]
    fn damage_is_temporary_and_never_a_panic() {
        for (stored, _) in KNOWN.into_iter().filter(|(stored, _)| !stored.starts_with("{PLAIN}")) {
            for end in 0..stored.len() {
                if let Ok(right) = verify(Some(&stored[..end]), b"open sesame") {
                    assert!(!right, "{stored} cut at {end}");
                }
            }
            for at in [0, 1, 2, 3, 4, 8, stored.len() - 1] {
                let mut changed = stored.as_bytes().to_vec();
                changed[at] = b'!';
                let _ = verify(std::str::from_utf8(&changed).ok(), b"open sesame");
            }
        }
        for text in ["$", "$$", "{}", "{PLAIN", "{SHA512-CRYPT}", "{CRYPT}x", "{SSHA}abc", "x", "\u{e4}{PLAIN}", "$3$$x", "$7$x"]
        {
            assert!(verify(Some(text), b"x").unwrap_err().is_temporary(), "{text}");
        }
        assert!(!verify(Some("{PLAIN}"), b"").unwrap(), "no password is the empty one");
    }
}
