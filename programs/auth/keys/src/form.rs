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
    use proptest::prelude::*;

    fn tls13(hash_len: usize) -> Vec<u8> {
        [&[b' '; 64][..], b"TLS 1.3, server CertificateVerify\0", &vec![0xa5; hash_len]].concat()
    }

    fn tls12(group: u16, len: usize) -> Vec<u8> {
        let mut point = vec![0x5a; len];
        point[0] = 4;
        [&[7; 64][..], &[3], &group.to_be_bytes(), &[u8::try_from(len).unwrap()], &point].concat()
    }

    fn good() -> Vec<Vec<u8>> {
        vec![tls13(32), tls13(48), tls12(23, 65), tls12(24, 97), tls12(29, 32)]
    }

    #[test]
    fn what_tls_servers_sign() {
        for input in good() {
            assert!(is_tls_server(&input), "{}", input.escape_ascii());
        }
    }

    /// Every bit of what is fixed, and every other length.
    #[test]
    fn every_change_of_the_form_is_refused() {
        for input in good() {
            let fixed = if input.starts_with(b"  ") { 0..98 } else { 64..68 };
            for at in fixed {
                for bit in 0..8 {
                    let mut changed = input.clone();
                    changed[at] ^= 1 << bit;
                    assert!(!is_tls_server(&changed), "byte {at} bit {bit} of {}", input.escape_ascii());
                }
            }
            for len in (0..input.len()).filter(|len| !(input.starts_with(b"  ") && *len == 130)) {
                assert!(!is_tls_server(&input[..len]), "{len} of {}", input.escape_ascii());
            }
            for more in 1..300 {
                let longer = [&input[..], &vec![0; more]].concat();
                assert!(!is_tls_server(&longer) || longer.len() == 146, "{more} more");
            }
        }
        for other in [tls12(25, 133), tls12(30, 56), tls12(23, 33), tls12(29, 65), tls12(23, 32)] {
            assert!(!is_tls_server(&other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn what_has_another_purpose_is_refused() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let params = || rcgen::CertificateParams::new(["mx.example.org".to_owned()]).unwrap();
        let certificate = params().self_signed(&key).unwrap();
        let request = params().serialize_request(&key).unwrap();
        // What is signed of them is their first element.
        let signed = |der: &[u8]| {
            let header = |der: &[u8]| match der[1] {
                0x82 => (4, usize::from(u16::from_be_bytes([der[2], der[3]]))),
                0x81 => (3, usize::from(der[2])),
                len => (2, usize::from(len)),
            };
            let first = &der[header(der).0..];
            let (start, len) = header(first);
            first[..start + len].to_vec()
        };
        let request = signed(request.der());
        let dkim = b"from:joe@example.org\r\ndkim-signature:v=1; a=rsa-sha256; d=example.org; s=x; h=from; bh=; b=".to_vec();
        let jws = b"eyJhbGciOiJFUzI1NiJ9.eyJub25jZSI6IngifQ".to_vec();
        let mut client = tls13(32);
        client[73..79].copy_from_slice(b"client");
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &dkim);
        let all =
            [signed(certificate.der()), certificate.der().to_vec(), request, dkim, jws, client, hash.as_ref().to_vec(), vec![]];
        for input in all {
            assert!(!is_tls_server(&input), "{}", input.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes(input: Vec<u8>) {
            prop_assert!(!is_tls_server(&input) || [100, 130, 133, 146, 165].contains(&input.len()));
        }
    }
}
