//! What a key of a purpose may sign. The whole input must have the form; none of these forms is one of another purpose, of a certificate,
//! a request for one, or of a signed message.

/// Spaces before the context string (RFC 8446 §4.4.3).
const PADDING: [u8; 64] = [0x20; 64];
const SERVER_CONTEXT: &[u8] = b"TLS 1.3, server CertificateVerify\0";
const CLIENT_CONTEXT: &[u8] = b"TLS 1.3, client CertificateVerify\0";
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
    is_certificate_verify(input, SERVER_CONTEXT) || is_key_exchange(input)
}

/// The input of a TLS client's signature: CertificateVerify of 1.3, or that of 1.2, which is over the handshake itself (RFC 5246 §7.4.8).
#[must_use]
pub fn is_tls_client(input: &[u8]) -> bool {
    is_certificate_verify(input, CLIENT_CONTEXT) || is_handshake(input)
}

/// The messages of a handshake of TLS 1.2 with ECDHE in which the client shows a certificate, from ClientHello to ClientKeyExchange
/// (RFC 5246 §7.3), with nothing before, between and behind them. The one that may be missing is marked.
const HANDSHAKE: [(u8, bool); 9] = [
    (1, true),
    (2, true),
    (11, true),
    // certificate_status (RFC 6066 §8).
    (22, false),
    (12, true),
    (13, true),
    (14, true),
    (11, true),
    (16, true),
];
/// Both hellos begin with the version, 1.2.
const HELLOS: [u8; 2] = [1, 2];
const VERSION: [u8; 2] = [3, 3];

fn is_handshake(input: &[u8]) -> bool {
    let mut rest = input;
    for (kind, is_needed) in HANDSHAKE {
        match message(rest) {
            Some((found, body, behind)) if found == kind => {
                if HELLOS.contains(&kind) && !body.starts_with(&VERSION) {
                    return false;
                }
                rest = behind;
            }
            _ if is_needed => return false,
            _ => {}
        }
    }
    rest.is_empty()
}

/// Kind and body of the first message, and what is behind it.
fn message(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let ([kind, high, middle, low], rest) = input.split_first_chunk()?;
    let len = usize::try_from(u32::from_be_bytes([0, *high, *middle, *low])).ok()?;
    let (body, behind) = rest.split_at_checked(len)?;
    Some((*kind, body, behind))
}

fn is_certificate_verify(input: &[u8], context: &[u8]) -> bool {
    let hash = input.strip_prefix(&PADDING).and_then(|rest| rest.strip_prefix(context));
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

    /// A handshake of TLS 1.2, each message with its kind.
    fn handshake(kinds: &[u8]) -> Vec<u8> {
        let message = |kind: &u8| {
            let body = [&[3, 3][..], &[*kind; 300]].concat();
            [&[*kind, 0, 1, 46][..], &body].concat()
        };
        kinds.iter().flat_map(message).collect()
    }

    #[test]
    fn what_tls_clients_sign() {
        let whole = [1, 2, 11, 12, 13, 14, 11, 16];
        let stapled = [1, 2, 11, 22, 12, 13, 14, 11, 16];
        let mut client = tls13(32);
        client[73..79].copy_from_slice(b"client");
        let mut longer = tls13(48);
        longer[73..79].copy_from_slice(b"client");
        for input in [client.clone(), longer, handshake(&whole), handshake(&stapled)] {
            assert!(is_tls_client(&input) && !is_tls_server(&input));
            for changed in
                [&input[1..], &input[..input.len() - 1], &[&input[..], b"x"].concat(), &[b"\0\0\0\0", &input[..]].concat()]
            {
                assert!(!is_tls_client(changed), "{} bytes", changed.len());
            }
        }
        for server in good() {
            assert!(!is_tls_client(&server), "{}", server.escape_ascii());
        }
        // One message less, one twice, two in each other's place, or one of another kind.
        for at in 0..whole.len() {
            let mut kinds = whole.to_vec();
            let kind = kinds.remove(at);
            assert!(!is_tls_client(&handshake(&kinds)), "without {kind}");
            kinds.insert(at, kind);
            kinds.insert(at, kind);
            assert!(!is_tls_client(&handshake(&kinds)), "{kind} twice");
            for other in (0..=30).filter(|other| *other != kind) {
                kinds = whole.to_vec();
                kinds[at] = other;
                assert!(!is_tls_client(&handshake(&kinds)), "{other} for {kind}");
            }
        }
        // Another version, and lengths that lead elsewhere.
        for at in [0, 4, 5, 306 + 4] {
            let mut changed = handshake(&whole);
            changed[at] ^= 1;
            assert!(!is_tls_client(&changed), "{at}");
        }
        for at in 1..4 {
            for bit in 0..8 {
                let mut changed = handshake(&whole);
                changed[at] ^= 1 << bit;
                assert!(!is_tls_client(&changed), "{at} {bit}");
            }
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
            assert!(!is_tls_client(&input) || input.len() == 130, "{}", input.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes(input: Vec<u8>) {
            prop_assert!(!is_tls_client(&input));
            prop_assert!(!is_tls_server(&input) || [100, 130, 133, 146, 165].contains(&input.len()));
        }
    }
}
