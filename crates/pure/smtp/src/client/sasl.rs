//! The client's side of CRAM-MD5 (RFC 2195), PLAIN (RFC 4616) and LOGIN: what to send next.

use md5::{Digest as _, Md5};
use wire::{Login, Secret, base64};

use crate::reply::Reply;

/// What the next 334 asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// CRAM-MD5: a digest over its challenge.
    Challenge,
    /// LOGIN: the name, then the password. What the server calls them is not looked at.
    User,
    Password,
    /// Nothing: everything was sent.
    Verdict,
}

/// The AUTH command for the strongest mechanism that both know, and what comes after it. `offered`: upper case, divided by blanks.
pub(super) fn begin(login: &Login, offered: &str) -> Option<(Secret, Step)> {
    let offers = |mechanism| offered.split(' ').any(|name| name == mechanism);
    // The password itself does not travel with the first; the second saves round trips.
    Some(if offers("CRAM-MD5") {
        (line(&[b"AUTH CRAM-MD5"]), Step::Challenge)
    } else if offers("PLAIN") {
        (line(&[b"AUTH PLAIN ", encoded(plain(login).expose()).expose()]), Step::Verdict)
    } else if offers("LOGIN") {
        (line(&[b"AUTH LOGIN"]), Step::User)
    } else {
        return None;
    })
}

/// Takes CRAM-MD5 out of what was offered. False: it was not offered, so it was not what failed, or there is nothing else to try.
pub(super) fn strike_digest(offered: &mut String) -> bool {
    let names = || offered.split(' ');
    if !names().any(|name| name == "CRAM-MD5") || !names().any(|name| matches!(name, "PLAIN" | "LOGIN")) {
        return false;
    }
    *offered = names().filter(|name| *name != "CRAM-MD5").collect::<Vec<_>>().join(" ");
    true
}

/// The answer to a 334, and what comes after it. `None`: it asks for nothing that there is.
pub(super) fn answer(login: &Login, step: Step, reply: &Reply) -> Option<(Secret, Step)> {
    let (bytes, next) = match step {
        Step::Challenge => {
            let challenge = base64::decode(reply.text().get(4..)?.trim_ascii().as_bytes()).ok()?;
            let digest = hmac_md5(login.password.expose(), &challenge);
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            (Secret::new([&login.user, &b" "[..], digest.as_bytes()].concat()), Step::Verdict)
        }
        Step::User => (Secret::new(login.user.clone()), Step::Password),
        Step::Password => (login.password.clone(), Step::Verdict),
        Step::Verdict => return None,
    };
    Some((line(&[encoded(bytes.expose()).expose()]), next))
}

/// The message of PLAIN: no authorization identity, user, password.
pub(super) fn plain(login: &Login) -> Secret {
    Secret::new([b"\0", login.user.as_slice(), b"\0", login.password.expose()].concat())
}

fn encoded(bytes: &[u8]) -> Secret {
    Secret::new(base64::encode(bytes).into_bytes())
}

fn line(parts: &[&[u8]]) -> Secret {
    Secret::new([&parts.concat(), &b"\r\n"[..]].concat())
}

/// RFC 2104 with MD5, whose block is 64 bytes.
fn hmac_md5(key: &[u8], text: &[u8]) -> [u8; 16] {
    let mut block = [0u8; 64];
    let hashed = Md5::digest(key);
    let key = if key.len() > block.len() { hashed.as_slice() } else { key };
    block.iter_mut().zip(key).for_each(|(slot, byte)| *slot = *byte);
    let inner = Md5::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(text).finalize();
    Md5::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of RFC 2202 §2 with short and long keys, and the example of RFC 2195 §2.
    #[test]
    fn hmac_vectors() {
        for (key, text, digest) in [
            (&[0x0b; 16][..], &b"Hi There"[..], 0x9294_727a_3638_bb1c_13f4_8ef8_158b_fc9d_u128),
            (b"Jefe", b"what do ya want for nothing?", 0x750c_783e_6ab0_b503_eaa8_6e31_0a5d_b738),
            (&[0xaa; 80], b"Test Using Larger Than Block-Size Key - Hash Key First", 0x6b1a_b7fe_4bd7_bf8f_0b62_e6ce_61b9_d0cd),
            (b"tanstaaftanstaaf", b"<1896.697170952@postoffice.reston.mci.net>", 0xb913_a602_c7ed_a7a4_95b4_e6e7_334d_3890),
        ] {
            assert_eq!(hmac_md5(key, text), digest.to_be_bytes());
        }
    }
}
