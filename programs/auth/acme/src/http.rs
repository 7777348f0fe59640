//! One HTTP/1.1 request over TLS on a connection of its own, and the whole answer. No redirects, no cookies, no proxies.
//!
//! The host's addresses are qmail-resolve's; its certificate must be for the name in the URL, and from an authority that is trusted.

use crate::Trouble;
use control::url::WebUrl;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use ipc::resolve::{Answer, Request as Question};
use ipc_async::Client;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest body of an answer, in bytes: a chain of certificates.
pub const ANSWER_LEN_MAX: usize = 256 * 1024;
/// Longest head of an answer.
const HEAD_LEN_MAX: usize = 64 * 1024;
/// For a request and its whole answer.
const REQUEST_MAX: Duration = Duration::from_secs(60);
/// For a connection to one address.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Addresses of a host that are tried.
const TRIED_MAX: usize = 4;
/// What JOSE requests are (RFC 8555 §6.2).
const JOSE: &str = "application/jose+json";

/// The way to the authority.
pub struct Http {
    resolve: Client<Answer>,
    tls: Arc<ClientConfig>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Response {
    /// The text of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Http {
    /// # Errors
    /// The file of authorities (`None`: the system's) is unreadable or has none.
    pub fn new(resolve: Client<Answer>, cafile: Option<&Path>) -> io::Result<Self> {
        let builder = ClientConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions();
        let tls = builder.map_err(io::Error::other)?.with_root_certificates(tls::client::roots(cafile)?).with_no_client_auth();
        Ok(Self { resolve, tls: Arc::new(tls) })
    }

    /// GET, HEAD, or with a body POST of a signed request. Bounded in time and bytes.
    ///
    /// # Errors
    /// No answer, or one that is no HTTP or too long; temporary.
    pub async fn ask(&self, method: Method, url: &WebUrl, body: Option<String>) -> Result<Response, Trouble> {
        let asked = timeout(REQUEST_MAX, self.exchange(method, url, body)).await;
        let answer = asked.unwrap_or_else(|_| Err("no answer in time".into()));
        answer.map_err(|trouble| Trouble::new(&url.endpoint.to_string(), &trouble.text))
    }

    async fn exchange(&self, method: Method, url: &WebUrl, body: Option<String>) -> Result<Response, Trouble> {
        let io = self.connect(url).await?;
        let handshake = http1::Builder::new().max_buf_size(HEAD_LEN_MAX).handshake(TokioIo::new(io)).await;
        let (mut sender, connection) = handshake.map_err(|error| Trouble::new("HTTP", &error))?;
        let request = request(method, url, body)?;
        let exchange = async move {
            let answer = sender.send_request(request).await.map_err(|error| Trouble::new("HTTP", &error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_LEN_MAX).collect().await;
            let body = body.map_err(|error| Trouble::new("HTTP", &error))?.to_bytes().to_vec();
            Ok(Response { status: head.status, headers: head.headers, body })
        };
        let connection = async {
            // Its end is told to the exchange.
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            answer = exchange => answer,
            never = connection => never,
        }
    }

    async fn connect(&self, url: &WebUrl) -> Result<tls::Stream, Trouble> {
        let host = &url.endpoint.host;
        let tcp = self.tcp(url).await?;
        let name = ServerName::try_from(host.clone()).map_err(|error| Trouble::new("TLS", &error))?;
        let client = ClientConnection::new(Arc::clone(&self.tls), name).map_err(|error| Trouble::new("TLS", &error))?;
        let mut stream = tls::Stream::new(tcp, client);
        stream.handshake().await.map_err(|error| Trouble::new("TLS", &error))?;
        Ok(stream)
    }

    async fn tcp(&self, url: &WebUrl) -> Result<TcpStream, Trouble> {
        let mut last = Trouble::from("its name has no address");
        for address in self.addresses(url).await? {
            let connecting = TcpStream::connect(SocketAddr::new(address, url.endpoint.port));
            match timeout(CONNECT_MAX, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Trouble::new("no connection", &error),
            }
        }
        Err(last)
    }

    async fn addresses(&self, url: &WebUrl) -> Result<Vec<IpAddr>, Trouble> {
        if let Some(address) = url.endpoint.address() {
            return Ok(vec![address]);
        }
        match self.resolve.ask(|id| Question::Addresses { id, host: url.endpoint.host.as_str().into() }).await {
            Ok((Answer::Hosts { hosts, .. }, _)) => {
                Ok(hosts.into_iter().flat_map(|host| host.addresses).take(TRIED_MAX).collect())
            }
            Ok((Answer::Temporary { text, .. }, _)) => Err(Trouble::new("DNS", &String::from_utf8_lossy(&text))),
            Ok(_) => Err("its name has no address".into()),
            Err(gone) => Err(Trouble::new("qmail-resolve", &gone)),
        }
    }
}

fn request(method: Method, url: &WebUrl, body: Option<String>) -> Result<Request<Full<Bytes>>, Trouble> {
    let host = if url.endpoint.port == 443 { url.endpoint.host.clone() } else { url.endpoint.to_string() };
    let agent = concat!("qmail-acme/", env!("CARGO_PKG_VERSION"));
    let mut request = Request::builder().method(method).uri(&url.target).header(HOST, host).header(CONNECTION, "close");
    request = request.header(USER_AGENT, agent).header(ACCEPT, "*/*");
    if body.is_some() {
        request = request.header(CONTENT_TYPE, JOSE);
    }
    request.body(Full::new(Bytes::from(body.unwrap_or_default()))).map_err(|error| Trouble::new("HTTP", &error))
}
