//! The header that a proxy puts before a connection's own bytes (HAProxy's PROXY protocol, versions 1 and 2, specification of 2020/03/05):
//! for whom the connection stands.
//!
//! The reader asks [`step`] how many bytes are still needed and reads just these: no byte of what follows the header, a TLS handshake or
//! an early command, is ever taken. The shortest header has [`FIRST_LEN`] bytes, none has more than [`HEADER_LEN_MAX`]. Used by the network
//! programs for the listeners of `control/listen` that have `proxy=`. Whom to believe is decided there, never here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes that every header has: `PROXY UNKNOWN` and CRLF (§2.1).
const FIRST_LEN: usize = 15;
/// Longest line of version 1 with its CRLF (§2.1).
const V1_LEN_MAX: usize = 107;
/// What opens version 2 (§2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const V2_LEN: usize = 16;
/// Most bytes behind these: addresses and TLVs. Certificates of clients, the largest TLVs there are, fit.
const V2_REST_MAX: usize = 4096;
/// Longest header of all.
pub const HEADER_LEN_MAX: usize = V2_LEN + V2_REST_MAX;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The proxy speaks for itself (LOCAL, a health check) or does not say for whom in terms of TCP (UNKNOWN, UNSPEC, UNIX, datagrams):
    /// the addresses of the connection itself count.
    Itself,
    /// The client and the address it connected to; IPv4 in IPv6 form is made IPv4.
    For { client: SocketAddr, local: SocketAddr },
}

/// How far a header has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// At least so many bytes are still to come, at least 1; read no more than that.
    Needs(usize),
    Whole(Header),
}

/// These bytes begin no header, or one with a bad or too long content: to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Looks at the bytes that came so far.
///
/// # Errors
/// No header can begin like this; as early as it can be told. Permanent.
pub fn step(bytes: &[u8]) -> Result<Step, Malformed> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    match () {
        () if begins(b"PROXY ") => v1(bytes),
        () if begins(SIGNATURE) => v2(bytes),
        () => Err(Malformed),
    }
}

/// `PROXY TCP4 CLIENT LOCAL PORT PORT` CRLF; after UNKNOWN anything (§2.1).
fn v1(bytes: &[u8]) -> Result<Step, Malformed> {
    if bytes.len() < FIRST_LEN {
        return Ok(Step::Needs(FIRST_LEN.saturating_sub(bytes.len())));
    }
    let Some(line) = bytes.strip_suffix(b"\r\n") else {
        let is_over = bytes.len() >= V1_LEN_MAX || bytes.contains(&b'\n');
        let missing = if bytes.ends_with(b"\r") { 1 } else { 2 };
        return if is_over { Err(Malformed) } else { Ok(Step::Needs(missing.min(V1_LEN_MAX.saturating_sub(bytes.len())))) };
    };
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let mut words = line.split(' ').skip(1);
    let mut next = || words.next().ok_or(Malformed);
    let header = match next()? {
        "UNKNOWN" => return Ok(Step::Whole(Header::Itself)),
        "TCP4" => {
            let (client, local) = (ip::<Ipv4Addr>(next()?)?, ip::<Ipv4Addr>(next()?)?);
            between(client, port(next()?)?, local, port(next()?)?)
        }
        "TCP6" => {
            let (client, local) = (ip::<Ipv6Addr>(next()?)?, ip::<Ipv6Addr>(next()?)?);
            between(client, port(next()?)?, local, port(next()?)?)
        }
        _ => return Err(Malformed),
    };
    if words.next().is_some() { Err(Malformed) } else { Ok(Step::Whole(header)) }
}

fn ip<A: std::str::FromStr + Into<IpAddr>>(word: &str) -> Result<IpAddr, Malformed> {
    word.parse::<A>().map(Into::into).map_err(|_| Malformed)
}

/// Decimal without leading zeros (§2.1).
fn port(word: &str) -> Result<u16, Malformed> {
    let is_plain = word.bytes().all(|b| b.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    if is_plain { word.parse().map_err(|_| Malformed) } else { Err(Malformed) }
}

/// Signature, version 2 and command, family and transport, length, addresses, TLVs (§2.2); TLVs are skipped.
fn v2(bytes: &[u8]) -> Result<Step, Malformed> {
    let (Some(&[command, family]), Some(&[high, low])) = (bytes.get(12..14), bytes.get(14..16)) else {
        return Ok(Step::Needs(if bytes.len() < FIRST_LEN {
            FIRST_LEN.saturating_sub(bytes.len())
        } else {
            V2_LEN.saturating_sub(bytes.len())
        }));
    };
    let rest_len = usize::from(u16::from_be_bytes([high, low]));
    // Families and transports that there are not, in four bits each.
    if !matches!(command, 0x20 | 0x21) || family >> 4 > 3 || family & 15 > 2 || rest_len > V2_REST_MAX {
        return Err(Malformed);
    }
    let rest = bytes.get(V2_LEN..).unwrap_or_default();
    if rest.len() != rest_len {
        let missing = rest_len.checked_sub(rest.len()).ok_or(Malformed)?;
        return Ok(Step::Needs(missing));
    }
    Ok(Step::Whole(match (command, family) {
        (0x21, 0x11) => addresses::<4>(rest)?,
        (0x21, 0x21) => addresses::<16>(rest)?,
        _ => Header::Itself,
    }))
}

/// Two addresses, then two ports.
fn addresses<const LEN: usize>(rest: &[u8]) -> Result<Header, Malformed>
where
    IpAddr: From<[u8; LEN]>,
{
    let (client, rest) = rest.split_first_chunk::<LEN>().ok_or(Malformed)?;
    let (local, rest) = rest.split_first_chunk::<LEN>().ok_or(Malformed)?;
    let (client_port, rest) = rest.split_first_chunk::<2>().ok_or(Malformed)?;
    let (local_port, _) = rest.split_first_chunk::<2>().ok_or(Malformed)?;
    Ok(between((*client).into(), u16::from_be_bytes(*client_port), (*local).into(), u16::from_be_bytes(*local_port)))
}

fn between(client: IpAddr, client_port: u16, local: IpAddr, local_port: u16) -> Header {
    Header::For {
        client: SocketAddr::new(client.to_canonical(), client_port),
        local: SocketAddr::new(local.to_canonical(), local_port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a header as a driver does: at most the bytes that are asked for. The header and how many bytes were taken.
    fn read(stream: &[u8]) -> Result<(Header, usize), Option<Malformed>> {
        let mut taken = 0;
        loop {
            match step(&stream[..taken]) {
                Ok(Step::Whole(header)) => return Ok((header, taken)),
                Ok(Step::Needs(_)) if taken == stream.len() => return Err(None),
                Ok(Step::Needs(more)) => taken = (taken + more).min(stream.len()),
                Err(malformed) => return Err(Some(malformed)),
            }
        }
    }

    fn v2_header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &len, rest].concat()
    }

    fn between(client: &str, local: &str) -> Header {
        Header::For { client: client.parse().unwrap(), local: local.parse().unwrap() }
    }

    fn headers() -> Vec<(Vec<u8>, Header)> {
        let v4 = [&[192, 0, 2, 1, 203, 0, 113, 9, 0x30, 0x39, 0, 25][..], b"\x04\x00\x01x"].concat();
        let v6: Vec<u8> = "2001:db8::1"
            .parse::<Ipv6Addr>()
            .unwrap()
            .octets()
            .into_iter()
            .chain(Ipv6Addr::LOCALHOST.octets())
            .chain([0, 7, 3, 227])
            .collect();
        let mapped: Vec<u8> =
            "::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets().repeat(2).into_iter().chain([0, 1, 0, 2]).collect();
        let long = "f".repeat(V1_LEN_MAX - 16);
        vec![
            (b"PROXY TCP4 192.0.2.1 203.0.113.9 12345 25\r\n".to_vec(), between("192.0.2.1:12345", "203.0.113.9:25")),
            (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n".to_vec(), between("0.0.0.0:0", "255.255.255.255:65535")),
            (b"PROXY TCP6 2001:db8::1 ::1 7 995\r\n".to_vec(), between("[2001:db8::1]:7", "[::1]:995")),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 7 995\r\n".to_vec(), between("192.0.2.1:7", "[::1]:995")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Header::Itself),
            (format!("PROXY UNKNOWN {long}\r\n").into_bytes(), Header::Itself),
            (v2_header(0x21, 0x11, &v4), between("192.0.2.1:12345", "203.0.113.9:25")),
            (v2_header(0x21, 0x21, &v6), between("[2001:db8::1]:7", "[::1]:995")),
            (v2_header(0x21, 0x21, &mapped), between("192.0.2.1:1", "192.0.2.1:2")),
            (v2_header(0x20, 0x11, &v4), Header::Itself),
            (v2_header(0x20, 0x00, b""), Header::Itself),
            (v2_header(0x21, 0x00, b"tlvs"), Header::Itself),
            (v2_header(0x21, 0x31, &[0; 216]), Header::Itself),
            (v2_header(0x21, 0x12, &v4), Header::Itself),
            (v2_header(0x21, 0x11, &[v4, vec![0; V2_REST_MAX - 16]].concat()), between("192.0.2.1:12345", "203.0.113.9:25")),
        ]
    }

    #[test]
    fn headers_are_read_to_their_last_byte_and_no_further() {
        for (bytes, header) in headers() {
            assert!(bytes.len() <= HEADER_LEN_MAX);
            for behind in [&b""[..], b"EHLO x\r\n", b"\r\n"] {
                assert_eq!(read(&[&bytes, behind].concat()), Ok((header, bytes.len())), "{}", bytes.escape_ascii());
            }
            for cut in 0..bytes.len() {
                assert_eq!(read(&bytes[..cut]), Err(None), "{cut} of {}", bytes.escape_ascii());
                assert!(matches!(step(&bytes[..cut]), Ok(Step::Needs(1..))), "any part asks for more");
            }
        }
    }

    #[test]
    fn anything_else_is_malformed_and_as_soon_as_possible() {
        let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_LEN_MAX - 15));
        for bad in [
            &b"E"[..],
            b"EHLO x\r\n",
            b"proxy UNKNOWN\r\n",
            b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 \r\n",
            b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY TCP4 1.2.3.4\0 1.2.3.4 1 2\r\n",
            b"PROXY TCP4 \xff.2.3.4 1.2.3.4 1 2\r\n",
            too_long.as_bytes(),
            &v2_header(0x22, 0x11, &[0; 12]),
            &v2_header(0x11, 0x11, &[0; 12]),
            &v2_header(0x21, 0x41, &[0; 12]),
            &v2_header(0x21, 0x13, &[0; 12]),
            &v2_header(0x21, 0x11, &[0; 11]),
            &v2_header(0x21, 0x21, &[0; 35]),
            &v2_header(0x21, 0x11, &[0; V2_REST_MAX + 1]),
            b"\r\n\r\n\0\r\nQUIT\r",
        ] {
            assert_eq!(read(&[bad, b"\r\n\r\n"].concat()), Err(Some(Malformed)), "{}", bad.escape_ascii());
        }
        assert_eq!(step(b"PROXX"), Err(Malformed));
        assert_eq!(step(b""), Ok(Step::Needs(FIRST_LEN)));
    }
}
