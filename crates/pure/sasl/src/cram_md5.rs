//! CRAM-MD5 (RFC 2195) and POP3's APOP (RFC 1939 §7): a digest over a challenge and the password itself, which the server must keep.

use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::{Digest as _, Md5};
use subtle::ConstantTimeEq as _;

/// The name and the digest of a response: `name SP digest`, the digest behind the last space. `None` for anything else.
#[must_use]
pub fn parse(response: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, digest) = response.split_at_checked(memchr::memrchr(b' ', response)?)?;
    let digest = digest.get(1..)?;
    (!name.is_empty() && digest.len() == 32).then_some((name, digest))
}

/// Is `digest` the one of this challenge and password, in hexadecimal?
#[must_use]
pub fn is_right(password: &[u8], challenge: &[u8], digest: &[u8]) -> bool {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Md5>::new_from_slice(password) else { return false };
    mac.update(challenge);
    same(&mac.finalize().into_bytes(), digest)
}

/// Is `digest` APOP's for the banner's timestamp (with its angle brackets) and the password?
#[must_use]
pub fn is_right_apop(password: &[u8], timestamp: &[u8], digest: &[u8]) -> bool {
    same(&Md5::new_with_prefix(timestamp).chain_update(password).finalize(), digest)
}

/// Both RFCs write the digits small; some clients do not.
fn same(computed: &[u8], digest: &[u8]) -> bool {
    let hexadecimal: String = computed.iter().map(|byte| format!("{byte:02x}")).collect();
    hexadecimal.as_bytes().ct_eq(&digest.to_ascii_lowercase()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_rfcs() {
        // RFC 2195 §2.
        let challenge = b"<1896.697170952@postoffice.reston.mci.net>";
        let (name, digest) = parse(b"tim b913a602c7eda7a495b4e6e7334d3890").unwrap();
        assert_eq!(name, b"tim");
        assert!(is_right(b"tanstaaftanstaaf", challenge, digest));
        assert!(is_right(b"tanstaaftanstaaf", challenge, &digest.to_ascii_uppercase()));
        assert!(!is_right(b"tanstaaftanstaaF", challenge, digest) && !is_right(b"tanstaaftanstaaf", b"<1@x>", digest));
        assert!(!is_right(b"tanstaaftanstaaf", challenge, b""));
        // RFC 1939 §7.
        let timestamp = b"<1896.697170952@dbc.mtview.ca.us>";
        assert!(is_right_apop(b"tanstaaf", timestamp, b"c4c9334bac560ecc979e58001b3e22fb"));
        assert!(!is_right_apop(b"tanstaaf", timestamp, b"c4c9334bac560ecc979e58001b3e22fc"));
    }

    #[test]
    fn responses_that_are_none() {
        let digest = "b913a602c7eda7a495b4e6e7334d3890";
        for bad in ["", " ", "tim", digest, &format!(" {digest}"), &format!("tim {digest}0"), &format!("tim {digest} ")] {
            assert!(parse(bad.as_bytes()).is_none(), "{bad}");
        }
        assert_eq!(parse(format!("a b {digest}").as_bytes()).unwrap().0, b"a b");
    }
}
