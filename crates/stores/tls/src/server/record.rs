//! Whole TLS records of a handshake, and nothing behind them: their first five bytes say how long they are (RFC 8446 §5.1).

use super::Refused;
use rustls::InvalidMessage;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

const HEADER_LEN: usize = 5;
/// RFC 5246 §6.2.3: of an encrypted record; those of TLS 1.3 are shorter.
const RECORD_LEN_MAX: usize = (1 << 14) + 2048;
const CHANGE_CIPHER_SPEC: u8 = 20;
const APPLICATION_DATA: u8 = 23;

/// Reads a record, and with one that only announces the next (change_cipher_spec) the next, too. `left` is what may still be read.
///
/// # Errors
/// The connection ends, or this is no TLS.
pub(super) async fn read(io: &mut TcpStream, left: &mut usize) -> Result<Vec<u8>, Refused> {
    let mut records = Vec::new();
    loop {
        let at = records.len();
        take(io, HEADER_LEN, left, &mut records).await?;
        let (kind, len) =
            header(records.get(at..).unwrap_or_default()).ok_or(Refused::Tls(InvalidMessage::InvalidContentType.into()))?;
        take(io, len, left, &mut records).await?;
        if kind != CHANGE_CIPHER_SPEC {
            return Ok(records);
        }
    }
}

/// The kind of the record that follows, and its length.
fn header(header: &[u8]) -> Option<(u8, usize)> {
    let &[kind, major, _, high, low] = header else { return None };
    let len = usize::from(u16::from_be_bytes([high, low]));
    let is_one = (CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&kind) && major == 3 && len <= RECORD_LEN_MAX;
    is_one.then_some((kind, len))
}

/// Appends exactly `len` bytes. Memory grows with what comes, not with what is announced.
async fn take(io: &mut TcpStream, len: usize, left: &mut usize, records: &mut Vec<u8>) -> Result<(), Refused> {
    *left = left.checked_sub(len).ok_or(Refused::TooMuch)?;
    let len = u64::try_from(len).unwrap_or(0);
    let read = io.take(len).read_to_end(records).await.map_err(|_| Refused::Closed)?;
    if u64::try_from(read).unwrap_or(0) < len { Err(Refused::Closed) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_record_is_seen_by_its_first_bytes() {
        assert_eq!(header(&[22, 3, 1, 1, 2]), Some((22, 258)));
        assert_eq!(header(&[23, 3, 3, 0x48, 0]), Some((23, RECORD_LEN_MAX)));
        for other in [b"EHLO ", b"GET /", b"\x16\x03\x01\x48\x01", b"\x16\x02\x00\x00\x10", b"\x18\x03\x03\x00\x10"] {
            assert_eq!(header(other), None, "{}", other.escape_ascii());
        }
    }
}
