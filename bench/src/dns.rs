//! A name server that knows nothing and says so at once, so that no server under test waits for a name or asks outside.

use anyhow::{Context, Result};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

/// Where resolv.conf of the bench points. The port is also the mark that a bench runs: a second one cannot have it.
pub(crate) const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 77), 53);
/// Below this domain it is asked in vain: it answers "server failure", which is temporary (RFC 1035 §4.1.1).
pub(crate) const MUTE: &str = "mute.test";
const HEADER_LEN: usize = 12;

/// Answers NXDOMAIN from now on, on a thread of its own, until the process ends.
///
/// # Errors
/// The port is taken.
pub(crate) fn start() -> Result<()> {
    let socket = UdpSocket::bind(ADDRESS).with_context(|| format!("cannot use {ADDRESS} (does another bench run?)"))?;
    std::thread::Builder::new().name("dns".into()).spawn(move || {
        let mut packet = [0; 512];
        loop {
            if let Ok((n, from)) = socket.recv_from(&mut packet)
                && let Some(reply) = packet.get(..n).and_then(nobody)
            {
                let _ = socket.send_to(&reply, from);
            }
        }
    })?;
    Ok(())
}

/// The query with its header turned into NXDOMAIN or, below [`MUTE`], SERVFAIL (RFC 1035 §4.1.1), additional records cut off.
fn nobody(query: &[u8]) -> Option<Vec<u8>> {
    let mut end = HEADER_LEN;
    while let Some(len) = query.get(end).filter(|len| **len > 0) {
        end = end.checked_add(usize::from(*len))?.checked_add(1)?;
    }
    let mut reply = query.get(..end.checked_add(5)?)?.to_vec();
    let is_mute = query.get(..end)?.ends_with(&MUTE.split('.').flat_map(label).collect::<Vec<u8>>());
    let flags = [0x81 | (reply.get(2)? & 1), if is_mute { 0x82 } else { 0x83 }];
    reply.get_mut(2..4)?.copy_from_slice(&flags);
    reply.get_mut(4..HEADER_LEN)?.copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    Some(reply)
}

fn label(text: &str) -> impl Iterator<Item = u8> {
    u8::try_from(text.len()).into_iter().chain(text.bytes())
}

#[cfg(test)]
mod tests {
    use super::nobody;

    #[test]
    fn answers() {
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x04test\0\0\x01\0\x01\0\0\x29\x05\xc0\0\0\0\0\0\0";
        let reply = b"\x12\x34\x81\x83\0\x01\0\0\0\0\0\0\x04test\0\0\x01\0\x01";
        assert_eq!(nobody(query).as_deref(), Some(&reply[..]));
        for len in 0..22 {
            assert_eq!(nobody(&query[..len]), None, "{len}");
        }
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x02d7\x04mute\x04test\0\0\x0f\0\x01";
        assert_eq!(nobody(query).map(|reply| reply[3]), Some(0x82));
    }
}
