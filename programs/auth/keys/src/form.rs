//! What a key of a purpose may sign. The whole input must have the form; none of these forms is one of another purpose, of a certificate,
//! a request for one, or of a signed message.

/// Spaces before the context string (RFC 8446 §4.4.3).
const PADDING: [u8; 64] = [0x20; 64];
const SERVER_CONTEXT: &[u8] = b"TLS 1.3, server CertificateVerify\0";
/// SHA-256 and SHA-384, the hashes of TLS 1.3's suites.
const HASH_LENS: [usize; 2] = [32, 48];
/// client_random and server_random (RFC 5246 §7.4.3).
const RANDOMS_LEN: usize = 64;
/// `named_curve` (RFC 8422 §5.4).
const NAMED_CURVE: u8 = 3;
/// Curve, length of its point, first byte of the point where it is fixed: P-256, P-384, X25519.
const CURVES: [(u16, u8, Option<u8>); 3] = [(23, 65, Some(4)), (24, 97, Some(4)), (29, 32, None)];

/// The input of a TLS server's signature: CertificateVerify of 1.3, or ServerKeyExchange of 1.2 (with ECDHE, the only one there is here).
#[must_use]
pub fn is_tls_server(input: &[u8]) -> bool {
    is_certificate_verify(input) || is_key_exchange(input)
}

fn is_certificate_verify(input: &[u8]) -> bool {
    let hash = input.strip_prefix(&PADDING).and_then(|rest| rest.strip_prefix(SERVER_CONTEXT));
    hash.is_some_and(|hash| HASH_LENS.contains(&hash.len()))
}

fn is_key_exchange(input: &[u8]) -> bool {
    let Some([NAMED_CURVE, high, low, len, point @ ..]) = input.get(RANDOMS_LEN..) else { return false };
    let curve = u16::from_be_bytes([*high, *low]);
    CURVES.iter().any(|(known, point_len, first)| {
        *known == curve
            && len == point_len
            && point.len() == usize::from(*len)
            && first.is_none_or(|first| point.first() == Some(&first))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate_verify(hash_len: usize) -> Vec<u8> {
        [&PADDING, SERVER_CONTEXT, &vec![7; hash_len]].concat()
    }

    fn key_exchange(curve: u16, point: &[u8]) -> Vec<u8> {
        let [high, low] = curve.to_be_bytes();
        [&[9; RANDOMS_LEN][..], &[3, high, low, point.len().try_into().unwrap()], point].concat()
    }

    #[test]
    fn what_tls_servers_sign() {
        for hash_len in [32, 48] {
            assert!(is_tls_server(&certificate_verify(hash_len)));
        }
        for (curve, point) in [(23, vec![4; 65]), (24, vec![4; 97]), (29, vec![0; 32])] {
            assert!(is_tls_server(&key_exchange(curve, &point)), "{curve}");
        }
    }

    #[test]
    fn every_byte_of_the_frame_counts() {
        let good = certificate_verify(32);
        for at in 0..PADDING.len() + SERVER_CONTEXT.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(!is_tls_server(&bad), "byte {at}, bit {bit}");
            }
        }
        let good = key_exchange(23, &[4; 65]);
        for at in RANDOMS_LEN..RANDOMS_LEN + 5 {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(!is_tls_server(&bad), "byte {at}, bit {bit}");
            }
        }
        for good in [certificate_verify(32), certificate_verify(48), key_exchange(23, &[4; 65]), key_exchange(29, &[1; 32])] {
            for len in 0..good.len() {
                assert!(!is_tls_server(&good[..len]) || len == 0, "{len}");
            }
            assert!(!is_tls_server(&[&good[..], b"x"].concat()));
        }
        assert!(!is_tls_server(&[]));
    }

    #[test]
    fn what_others_sign() {
        let client = [&PADDING[..], b"TLS 1.3, client CertificateVerify\0", &[7; 32]].concat();
        // TBSCertificate and CertificationRequestInfo are DER sequences; DKIM hashes header fields; ACME signs base64url and a dot.
        let der = [&[0x30, 0x81, 0x82][..], &[2; 130]].concat();
        let dkim = b"from:a@b.example\r\ndkim-signature:v=1; a=rsa-sha256; b=".to_vec();
        let acme = b"eyJhbGciOiJFUzI1NiJ9.eyJjc3IiOiJNSUhlIn0".to_vec();
        for other in
            [client, der, dkim, acme, vec![0; 32], vec![3; 64], PADDING.to_vec(), certificate_verify(20), certificate_verify(64)]
        {
            assert!(!is_tls_server(&other), "{}", other.escape_ascii());
        }
    }
}
