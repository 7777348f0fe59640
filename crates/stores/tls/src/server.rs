//! The server's side: handshakes whose signatures another process makes.
//!
//! Sockets are read and written on the caller's runtime; the steps that compute, and may wait for qmail-keys, run on a few threads
//! ([`pool`]). So a slow client holds no thread, and a key process that hangs no session.
//!
//! Guarantees: a handshake takes at most [`HANDSHAKE_MAX`] and [`INPUT_LEN_MAX`] bytes, a signature at most [`ORACLE_MAX`]. TLS 1.2 and
//! 1.3 only. Session tickets are sealed by a key that is this process's own, made at its start. Never here: a private key.

mod certificates;
mod clients;
mod pool;
mod record;

pub(crate) use clients::names_of;
pub use clients::{Authorities, ClientCertificate, ClientCertificates, NAMES_MAX, Shown};

use crate::keys::Keys;
pub use crate::keys::ORACLE_MAX;
use crate::{Stream, provider};
use certificates::{Certificates, Choice};
use pool::Pool;
pub(crate) use pool::process;
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
/// What a client may send before its handshake is done, in bytes; a hello with post-quantum key shares has 2 KiB.
pub const INPUT_LEN_MAX: usize = 64 * 1024;
/// How often a handshake may ask for a thread; three or four times is usual.
pub const STEPS_MAX: usize = 32;

/// What handshakes need; one for a process, made after it confined itself.
#[derive(Debug)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    clients: ClientCertificates,
    pool: Pool,
}

/// What a session may know of its TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// By its IANA name: `TLS_AES_256_GCM_SHA384`.
    pub cipher: String,
    /// The group of the key exchange, as `X25519MLKEM768`; empty where a session went on without one.
    pub group: String,
    /// Channel binding tls-exporter (RFC 9266); not with TLS 1.2, where only some sessions have one (§4.2) and it is not known which.
    pub exporter: Option<[u8; 32]>,
    /// Channel binding tls-server-end-point (RFC 5929), where it is defined for the certificate.
    pub end_point: Option<Vec<u8>>,
    /// The host name that the client asked for.
    pub server_name: Option<String>,
    /// An earlier session went on.
    pub is_resumed: bool,
    /// The client's certificate, if it was asked for one and has one.
    pub client: Option<Shown>,
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
        Self::start_asking(run, socket, ClientCertificates::NotAsked)
    }

    /// As [`Acceptor::start`], where clients may be asked for certificates.
    ///
    /// # Errors
    /// As [`Acceptor::start`].
    pub fn start_asking(run: Arc<OwnedFd>, socket: &'static str, clients: ClientCertificates) -> io::Result<Self> {
        let keys = Arc::new(Keys::new(run, socket));
        let certificates = Certificates::start(keys)?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(io::Error::other)?;
        let mut config = clients.verify(builder).with_cert_resolver(Arc::new(Choice::new(&certificates)));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(io::Error::other)?;
        // A client that offers what is weaker first gets the better one all the same.
        config.ignore_client_order = true;
        // Mail clients open one connection at a time.
        config.send_tls13_tickets = 1;
        Ok(Self { config: Arc::new(config), certificates, clients, pool: Pool::start()? })
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

    async fn handshake(&self, mut io: TcpStream) -> Result<(Stream, Facts), Refused> {
        // Each connection remembers its own choice: by the end of the handshake there may be other certificates.
        let choice = Arc::new(Choice::new(&self.certificates));
        let mut config = ServerConfig::clone(&self.config);
        config.cert_resolver = Arc::clone(&choice) as _;
        let mut tls = Box::new(ServerConnection::new(Arc::new(config)).map_err(Refused::Tls)?);
        let mut left = INPUT_LEN_MAX;
        for _ in 0..STEPS_MAX {
            let input = record::read(&mut io, &mut left).await?;
            let (after, processed) = self.pool.process(tls, input).await.ok_or(Refused::Busy)?;
            tls = after;
            if tls.is_handshaking() {
                // What ticket this session gets says by which certificate it began.
                tls.set_resumption_data(&end_point(&tls, &choice).unwrap_or_default());
            }
            let sent = write(&io, &mut tls).await;
            processed.map_err(Refused::Tls)?;
            sent?;
            if !tls.is_handshaking() {
                let facts = self.facts(&tls, &choice);
                return Ok((Stream::new(io, *tls), facts));
            }
        }
        Err(Refused::TooMuch)
    }

    fn facts(&self, tls: &ServerConnection, choice: &Choice) -> Facts {
        let is_new = tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        let suite = tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown");
        let exporter = || tls.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b"")).ok();
        Facts {
            version: if is_new { "TLSv1.3" } else { "TLSv1.2" },
            // rustls says TLS13_ where the registry says TLS_.
            cipher: suite.replacen("TLS13_", "TLS_", 1),
            group: tls.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name())).unwrap_or_default(),
            exporter: if is_new { exporter() } else { None },
            end_point: end_point(tls, choice),
            server_name: tls.server_name().map(str::to_owned),
            is_resumed: is_resumed(tls),
            client: tls.peer_certificates().and_then(|chain| self.clients.facts(chain)),
        }
    }
}

fn is_resumed(tls: &ServerConnection) -> bool {
    tls.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// By the certificate that the session began with, which is not this handshake's where it goes on.
fn end_point(tls: &ServerConnection, choice: &Choice) -> Option<Vec<u8>> {
    if is_resumed(tls) {
        tls.received_resumption_data().filter(|data| !data.is_empty()).map(<[u8]>::to_vec)
    } else {
        choice.end_point()
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
