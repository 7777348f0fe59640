//! Who comes in on a listener behind a proxy: the header is read from the front of the connection, before the session.
//!
//! Guarantees: just the proxies of the listener's line are believed, and nobody else gets in: were others served as themselves, a proxy that
//! is missing there would make its own address, often one that may relay, that of all its clients.

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use users::{Networks, Origin};
use wire::proxy::{HEADER_LEN_MAX, Header, Step, step};

/// A proxy sends its header at once; HAProxy's own readers wait for 3 s and more.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);

/// A connection that is to be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    pub origin: Origin,
    /// The address that the client connected to.
    pub local: Option<IpAddr>,
    /// The client's port and the one that it connected to, if a proxy said so.
    told_ports: Option<(u16, u16)>,
}

impl Arrival {
    /// `peer` connected itself.
    #[must_use]
    pub fn direct(stream: &TcpStream, peer: IpAddr) -> Self {
        let local = stream.local_addr().ok().map(|local| local.ip().to_canonical());
        Self { origin: Origin::direct(peer), local, told_ports: None }
    }

    /// The client's port and the one that it connected to on `stream`.
    #[must_use]
    pub fn ports(&self, stream: &TcpStream) -> Option<(u16, u16)> {
        self.told_ports.or_else(|| Some((stream.peer_addr().ok()?.port(), stream.local_addr().ok()?.port())))
    }

    /// `peer` should be one of `proxies` and say within 5 s for whom it comes. Not one byte behind the header is read.
    ///
    /// # Errors
    /// Why the connection is to be closed, for the log.
    pub async fn behind(stream: &TcpStream, peer: IpAddr, proxies: &Networks) -> Result<Self, &'static str> {
        if !proxies.contains(peer) {
            return Err("not one of the proxies that control/listen names");
        }
        let itself = Self::direct(stream, peer);
        match timeout(HEADER_DEADLINE, read(stream)).await {
            Ok(Ok(Header::Itself)) => Ok(itself),
            Ok(Ok(Header::For { client, local })) => {
                let told_ports = Some((client.port(), local.port()));
                Ok(Self { origin: itself.origin.told(client.ip()), local: Some(local.ip()), told_ports })
            }
            Ok(Err(error)) if error.kind() == ErrorKind::InvalidData => Err("no header of the PROXY protocol"),
            Ok(Err(_)) => Err("the proxy left within its header"),
            Err(_) => Err("the proxy's header did not come in time"),
        }
    }
}

async fn read(stream: &TcpStream) -> io::Result<Header> {
    let mut taken = Vec::new();
    loop {
        let missing = match step(&taken) {
            Ok(Step::Whole(header)) => return Ok(header),
            Ok(Step::Needs(missing)) => missing,
            Err(wire::proxy::Malformed) => return Err(ErrorKind::InvalidData.into()),
        };
        stream.readable().await?;
        match take(stream, missing, &mut taken) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
}

/// One read of at most `missing` bytes; the buffer does not live while waiting.
fn take(stream: &TcpStream, missing: usize, taken: &mut Vec<u8>) -> io::Result<usize> {
    let mut buf = [0; HEADER_LEN_MAX];
    let len = stream.try_read(buf.get_mut(..missing).unwrap_or_default())?;
    taken.extend_from_slice(buf.get(..len).unwrap_or_default());
    Ok(len)
}
