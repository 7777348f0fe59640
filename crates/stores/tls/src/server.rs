//! The server's side: handshakes whose signatures another process makes.
//!
//! Sockets are read and written on the caller's runtime; the steps that compute, and may wait for qmail-keys, run on a few threads
//! ([`pool`]). So a slow client holds no thread, and a key process that hangs no session.
//!
//! Guarantees: a handshake takes at most [`HANDSHAKE_MAX`] and [`INPUT_LEN_MAX`] bytes, a signature at most [`ORACLE_MAX`]. TLS 1.2 and
//! 1.3 only. Session tickets are sealed by a key that is this process's own, made at its start. Never here: a private key.

mod certificates;
mod keys;
mod pool;

use crate::{Stream, provider};
use certificates::Certificates;
use keys::Keys;
use pool::Pool;
use rustls::server::{NoServerSessionStorage, ServerConnection};
use rustls::{HandshakeKind, ServerConfig};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For the whole handshake: as long as a client may take over one command of a slow link.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(30);
/// For one signature.
pub const ORACLE_MAX: Duration = Duration::from_secs(2);
/// What a client may send before its handshake is done, in bytes; a hello with post-quantum key shares has 2 KiB.
pub const INPUT_LEN_MAX: usize = 128 * 1024;
/// Read at a time.
const READ_LEN: usize = 4096;

/// What handshakes need; one for a process, made after it confined itself.
#[derive(Debug)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    pool: Pool,
}

/// What a session may know of its TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// By its IANA name: `TLS_AES_256_GCM_SHA384`.
    pub cipher: String,
    /// Channel binding tls-exporter (RFC 9266).
    pub exporter: [u8; 32],
    /// Channel binding tls-server-end-point (RFC 5929), where it is defined for the certificate.
    pub end_point: Option<Vec<u8>>,
    /// The host name that the client asked for.
    pub server_name: Option<String>,
    /// An earlier session went on.
    pub is_resumed: bool,
}

/// Why there is no TLS.
#[derive(Debug)]
pub enum Refused {
    /// There is no certificate, or nobody answers for it.
    Unavailable,
    /// Too many handshakes at once.
    Busy,
    Timeout,
    /// The client sent more than a handshake has.
    TooMuch,
    /// The client is gone.
    Closed,
    /// It spoke no TLS, or none that fits; or the signature could not be had.
    Tls(rustls::Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable => f.write_str("no certificate can be used now"),
            Self::Busy => f.write_str("too many handshakes at once"),
            Self::Timeout => f.write_str("the handshake took too long"),
            Self::TooMuch => f.write_str("the handshake was too long"),
            Self::Closed => f.write_str("the client left in the handshake"),
            Self::Tls(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Refused {}

impl Acceptor {
    /// Starts the threads. qmail-keys need not be there yet: [`Acceptor::is_available`] tells when it is.
    ///
    /// # Errors
    /// No thread or no random bytes to be had.
    pub fn start(run: Arc<OwnedFd>, socket: &'static str) -> io::Result<Self> {
        let keys = Arc::new(Keys::new(run, socket));
        let certificates = Certificates::start(keys)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as _);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(io::Error::other)?;
        // Mail clients open one connection at a time.
        config.send_tls13_tickets = 1;
        Ok(Self { config: Arc::new(config), certificates, pool: Pool::start()? })
    }

    /// Is there a certificate, and did qmail-keys answer when it was asked last?
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.certificates.are_available()
    }

    /// The handshake of a connection whose next byte is the client's hello.
    ///
    /// # Errors
    /// [`Refused`]; the connection is gone then. An alert was sent if there was one and the socket took it.
    pub async fn accept(&self, io: TcpStream) -> Result<(Stream, Facts), Refused> {
        if !self.is_available() {
            return Err(Refused::Unavailable);
        }
        timeout(HANDSHAKE_MAX, self.handshake(io)).await.unwrap_or(Err(Refused::Timeout))
    }

    async fn handshake(&self, io: TcpStream) -> Result<(Stream, Facts), Refused> {
        let mut tls = Box::new(ServerConnection::new(Arc::clone(&self.config)).map_err(Refused::Tls)?);
        let mut taken = 0usize;
        while tls.is_handshaking() {
            let input = read(&io).await?;
            taken = taken.saturating_add(input.len());
            if taken > INPUT_LEN_MAX {
                return Err(Refused::TooMuch);
            }
            let (after, processed) = self.pool.process(tls, input).await.ok_or(Refused::Busy)?;
            tls = after;
            let sent = write(&io, &mut tls).await;
            processed.map_err(Refused::Tls)?;
            sent?;
        }
        let facts = self.facts(&tls);
        Ok((Stream::new(io, *tls), facts))
    }

    fn facts(&self, tls: &ServerConnection) -> Facts {
        let is_new = tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        let suite = tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown");
        let exporter = tls.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", None);
        let server_name = tls.server_name().map(str::to_owned);
        Facts {
            version: if is_new { "TLSv1.3" } else { "TLSv1.2" },
            // rustls says TLS13_ where the registry says TLS_.
            cipher: suite.replacen("TLS13_", "TLS_", 1),
            // It can only be missing before the handshake is over; nobody knows these bytes then.
            exporter: exporter.unwrap_or_default(),
            end_point: self.certificates.end_point(server_name.as_deref()),
            server_name,
            is_resumed: tls.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }
}

async fn read(io: &TcpStream) -> Result<Vec<u8>, Refused> {
    loop {
        io.readable().await.map_err(|_| Refused::Closed)?;
        let mut buf = [0; READ_LEN];
        match io.try_read(&mut buf) {
            Ok(0) => return Err(Refused::Closed),
            Ok(len) => return Ok(buf.get(..len).unwrap_or_default().to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Refused::Closed),
        }
    }
}

async fn write(io: &TcpStream, tls: &mut ServerConnection) -> Result<(), Refused> {
    let mut out = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut out).map_err(|_| Refused::Closed)?;
    }
    let mut rest = &out[..];
    while !rest.is_empty() {
        match io.try_write(rest) {
            Ok(len) => rest = rest.get(len..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => io.writable().await.map_err(|_| Refused::Closed)?,
            Err(_) => return Err(Refused::Closed),
        }
    }
    Ok(())
}
