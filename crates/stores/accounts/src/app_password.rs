//! App passwords: made here, shown once, kept as a digest.
//!
//! 120 random bits cannot be guessed, so nothing slow protects the digest, and a login looks at all of an account's at no cost.

use crate::Error;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Five bits a letter; none that is taken for another.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
const LETTERS_COUNT: usize = 24;
const GROUP_LEN: usize = 4;

/// A new app password: six groups of four letters, joined by dashes, which are part of it.
///
/// # Errors
/// No random bytes; temporary.
pub fn generate() -> Result<Zeroizing<String>, Error> {
    let mut bits = u128::from_le_bytes(sys::random::bytes16()?);
    let mut out = Zeroizing::new(String::with_capacity(LETTERS_COUNT.saturating_add(LETTERS_COUNT / GROUP_LEN)));
    for at in 0..LETTERS_COUNT {
        if at != 0 && at % GROUP_LEN == 0 {
            out.push('-');
        }
        let letter = usize::try_from(bits & 31).ok().and_then(|at| LETTERS.get(at)).copied().unwrap_or(b'a');
        out.push(char::from(letter));
        bits >>= 5;
    }
    Ok(out)
}

/// What is kept of it.
#[must_use]
pub fn digest(password: &[u8]) -> [u8; 32] {
    Sha256::digest(password).into()
}

/// Is the digest the password's? In constant time.
#[must_use]
pub fn is_of(digest: &[u8; 32], password: &[u8]) -> bool {
    self::digest(password).ct_eq(digest).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_random_and_readable() {
        let one = generate().unwrap();
        let groups: Vec<_> = one.split('-').collect();
        assert_eq!((groups.len(), groups.iter().all(|group| group.len() == 4)), (6, true), "{}", *one);
        assert!(!one.contains(['0', 'o', '1', 'l']) && crate::password::check(one.as_bytes()).is_ok());
        assert_ne!(*one, *generate().unwrap());
        assert_eq!(LETTERS.iter().collect::<std::collections::BTreeSet<_>>().len(), 32);
        let kept = digest(one.as_bytes());
        assert!(is_of(&kept, one.as_bytes()) && !is_of(&kept, b"x"));
    }
}
