//! Connections to servers: the name by qmail-resolve, TCP, TLS whose certificate must be for the name that the configuration has.

use crate::Trouble;
use control::url::Endpoint;
use ipc::resolve::{Answer, Request};
use ipc_async::Client;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Addresses of a host that are tried.
const TRIED_MAX: usize = 4;
/// For a connection to one address, while there are others.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// A connection, whatever carries it.
pub trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// Makes connections.
#[derive(Clone)]
pub struct Dialer {
    resolve: Client<Answer>,
    tls: Arc<ClientConfig>,
}

impl Dialer {
    /// # Errors
    /// The file of authorities (`None`: the system's) is unreadable or has none.
    pub fn new(resolve: Client<Answer>, cafile: Option<&Path>) -> io::Result<Self> {
        let builder = ClientConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions();
        let tls = builder.map_err(io::Error::other)?.with_root_certificates(tls::client::roots(cafile)?).with_no_client_auth();
        Ok(Self { resolve, tls: Arc::new(tls) })
    }

    /// A TCP connection. Not bounded in time.
    ///
    /// # Errors
    /// There is no address, or none of them answers.
    pub async fn tcp(&self, endpoint: &Endpoint) -> Result<TcpStream, Trouble> {
        let addresses = self.addresses(endpoint).await?;
        let mut last = Trouble::from("has no address");
        for (at, address) in addresses.iter().enumerate() {
            let connecting = TcpStream::connect(SocketAddr::new(*address, endpoint.port));
            let is_last = at.saturating_add(1) == addresses.len();
            let connected = match is_last {
                true => connecting.await,
                false => timeout(CONNECT_MAX, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            };
            match connected {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(|error| Trouble::new("no connection", &error))?;
                    return Ok(stream);
                }
                Err(error) => last = Trouble::new("no connection", &error),
            }
        }
        Err(last)
    }

    async fn addresses(&self, endpoint: &Endpoint) -> Result<Vec<IpAddr>, Trouble> {
        if let Some(address) = endpoint.address() {
            return Ok(vec![address]);
        }
        let question = |id| Request::Addresses { id, host: endpoint.host.as_str().into() };
        match self.resolve.ask(question).await {
            Ok((Answer::Hosts { hosts, .. }, _)) => {
                Ok(hosts.into_iter().flat_map(|host| host.addresses).take(TRIED_MAX).collect())
            }
            Ok((Answer::Temporary { text, .. }, _)) => Err(Trouble::new("DNS", &String::from_utf8_lossy(&text))),
            Ok(_) => Err("its name has no address".into()),
            Err(gone) => Err(Trouble::new("qmail-resolve", &gone)),
        }
    }

    /// TLS over a connection, to the server that the configuration calls `host`.
    ///
    /// # Errors
    /// The certificate is not for that name, not valid now or from nobody who is trusted; or the peer speaks no TLS.
    pub async fn tls(&self, tcp: TcpStream, host: &str) -> Result<tls::Stream, Trouble> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| Trouble::new("TLS", &error))?;
        let client = ClientConnection::new(Arc::clone(&self.tls), name).map_err(|error| Trouble::new("TLS", &error))?;
        let mut stream = tls::Stream::new(tcp, client);
        stream.handshake().await.map_err(|error| Trouble::new("TLS", &error))?;
        Ok(stream)
    }
}
