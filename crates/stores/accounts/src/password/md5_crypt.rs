//! MD5-crypt, `$1$SALT$HASH`: Poul-Henning Kamp's scheme of 1994, as crypt(5) of libxcrypt describes it. Weak, and fast to guess; verified
//! only, since it is what vpopmail and old shadow files hold.

use crate::Error;
use md5::{Digest as _, Md5};
use subtle::ConstantTimeEq as _;

/// crypt(3) takes no more of a salt.
const SALT_LEN_MAX: usize = 8;
const ROUNDS: usize = 1000;
const DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Which bytes of the digest stand together in four digits; the last digits are byte 11's alone.
const ORDER: [[usize; 3]; 5] = [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]];

/// Is `stored` a hash of the password?
///
/// # Errors
/// Temporary: it has another form.
pub(super) fn is_of(stored: &str, password: &[u8]) -> Result<bool, Error> {
    let parts = stored.strip_prefix("$1$").and_then(|rest| rest.split_once('$'));
    let (salt, hash) = parts
        .filter(|(salt, hash)| salt.len() <= SALT_LEN_MAX && hash.len() == 22)
        .ok_or(Error::Damaged("an MD5-crypt hash cannot be read"))?;
    Ok(encode(&digest(password, salt.as_bytes())).ct_eq(hash.as_bytes()).into())
}

fn digest(password: &[u8], salt: &[u8]) -> [u8; 16] {
    let mixed = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    let mut context = Md5::new().chain_update(password).chain_update(b"$1$").chain_update(salt);
    for at in (0..password.len()).step_by(16) {
        let count = password.len().saturating_sub(at).min(16);
        context.update(mixed.get(..count).unwrap_or_default());
    }
    // One bit of the length after the other: a NUL for a one, the password's first byte for a zero.
    let mut bits = password.len();
    while bits > 0 {
        context.update(if bits & 1 == 1 { b"\0" } else { password.get(..1).unwrap_or_default() });
        bits >>= 1;
    }
    let mut sum: [u8; 16] = context.finalize().into();
    for round in 0..ROUNDS {
        let (first, last) = if round % 2 == 1 { (password, &sum[..]) } else { (&sum[..], password) };
        let mut context = Md5::new().chain_update(first);
        if round % 3 != 0 {
            context.update(salt);
        }
        if round % 7 != 0 {
            context.update(password);
        }
        sum = context.chain_update(last).finalize().into();
    }
    sum
}

/// 22 digits of six bits each, the lowest first.
fn encode(sum: &[u8; 16]) -> Vec<u8> {
    let byte = |at: usize| u32::from(sum.get(at).copied().unwrap_or_default());
    let groups = ORDER.iter().map(|[a, b, c]| (byte(*a) << 16 | byte(*b) << 8 | byte(*c), 4)).chain([(byte(11), 2)]);
    let digits = groups.flat_map(|(bits, count)| (0..count).map(move |at| bits >> (6 * at) & 63));
    digits.filter_map(|digit| DIGITS.get(usize::try_from(digit).ok()?).copied()).collect()
}
