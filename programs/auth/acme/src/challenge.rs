//! Answers to the authority's questions on the listener `acme`, as long as an order is under way.
//!
//! `http-01` (RFC 8555 §8.3): a file below `/.well-known/acme-challenge/`. `tls-alpn-01` (RFC 8737): a certificate for the host with a digest
//! in it, shown to whoever offers `acme-tls/1` alone; its key is made for it, vouches for nothing else and is gone with the challenge.
//! Strangers reach this listener, too: they get what the authority gets, or nothing; connections, their time and their bytes are bounded.

use crate::{Trouble, log};
use aws_lc_rs::digest::{SHA256, digest};
use control::Networks;
use control::acme::Challenge;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ipc_async::proxy::Arrival;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

/// Connections at a time; further ones wait.
const CONNECTIONS_MAX: usize = 64;
/// For a connection from its first byte to its last.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Longest head of a request.
const HEAD_LEN_MAX: usize = 16 * 1024;
/// Pause when no connection can be accepted for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const PATH: &str = "/.well-known/acme-challenge/";
/// RFC 8737 §6.2.
const PROTOCOL: &[u8] = b"acme-tls/1";

/// The answers that are there now.
#[derive(Debug, Default)]
pub struct Answers(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Key authorizations by their tokens.
    files: HashMap<String, String>,
    /// Certificates by their hosts.
    certificates: HashMap<String, Arc<CertifiedKey>>,
}

/// An answer that is there as long as this value.
#[derive(Debug)]
pub struct Given {
    answers: Arc<Answers>,
    challenge: Challenge,
    key: String,
}

impl Drop for Given {
    fn drop(&mut self) {
        let mut known = self.answers.known();
        match self.challenge {
            Challenge::Http01 => drop(known.files.remove(&self.key)),
            Challenge::TlsAlpn01 => drop(known.certificates.remove(&self.key)),
        }
    }
}

impl Answers {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the answer to a challenge for a host: `authorization` is the key authorization (RFC 8555 §8.1) for `token`.
    ///
    /// # Errors
    /// No certificate can be made for the host.
    pub fn give(
        self: &Arc<Self>,
        challenge: Challenge,
        host: &str,
        token: &str,
        authorization: String,
    ) -> Result<Given, Trouble> {
        let key = match challenge {
            Challenge::Http01 => {
                self.known().files.insert(token.to_owned(), authorization);
                token
            }
            Challenge::TlsAlpn01 => {
                let certificate = certificate(host, &authorization).map_err(|error| Trouble::new(host, &error))?;
                self.known().certificates.insert(host.to_owned(), certificate);
                host
            }
        };
        Ok(Given { answers: Arc::clone(self), challenge, key: key.to_owned() })
    }
}

/// RFC 8737 §3: for the host alone, with the digest in a critical extension.
fn certificate(host: &str, authorization: &str) -> Result<Arc<CertifiedKey>, String> {
    let made = || -> Result<_, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([host.to_owned()])?;
        let digest = digest(&SHA256, authorization.as_bytes());
        params.custom_extensions.push(CustomExtension::new_acme_identifier(digest.as_ref()));
        Ok((params.self_signed(&key)?.der().to_vec(), key.serialize_der()))
    };
    let (certificate, key) = made().map_err(|error| error.to_string())?;
    let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&PrivatePkcs8KeyDer::from(key).into());
    let key = key.map_err(|error| error.to_string())?;
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(certificate)], key)))
}

impl ResolvesServerCert for Answers {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        hello.alpn()?.find(|protocol| *protocol == PROTOCOL)?;
        let host = hello.server_name()?.to_ascii_lowercase();
        self.known().certificates.get(&host).cloned()
    }
}

/// Serves a listener for ever; behind `proxies`, whose header comes first, if there are any.
///
/// # Errors
/// There is no TLS to be had.
pub async fn serve(
    listener: TcpListener,
    proxies: Option<Networks>,
    challenge: Challenge,
    answers: Arc<Answers>,
) -> io::Result<()> {
    let proxies = Arc::new(proxies);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tls = Arc::new(tls(&answers).map_err(io::Error::other)?);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                log(&format!("accept: {error}"));
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (answers, tls, proxies) = (Arc::clone(&answers), Arc::clone(&tls), Arc::clone(&proxies));
        spawn_local(async move {
            if let Some(proxies) = &*proxies
                && let Err(problem) = Arrival::behind(&tcp, peer.ip().to_canonical(), proxies).await
            {
                return log(&format!("{} closed: {problem}", peer.ip()));
            }
            let _ = match challenge {
                Challenge::Http01 => timeout(CONNECTION_MAX, http(tcp, answers)).await,
                Challenge::TlsAlpn01 => timeout(CONNECTION_MAX, handshake(tcp, tls)).await,
            };
            drop(place);
        });
    }
}

async fn http(tcp: TcpStream, answers: Arc<Answers>) {
    let service = service_fn(move |request| {
        let answer = answer(&request, &answers);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut server = http1::Builder::new();
    server.keep_alive(false).max_buf_size(HEAD_LEN_MAX);
    // A stranger who speaks no HTTP is none of our concern.
    let _ = server.serve_connection(TokioIo::new(tcp), service).await;
}

fn answer(request: &Request<Incoming>, answers: &Answers) -> Response<Full<Bytes>> {
    let token = request.uri().path().strip_prefix(PATH);
    let found = token.and_then(|token| answers.known().files.get(token).cloned());
    let found = found.filter(|_| matches!(*request.method(), Method::GET | Method::HEAD));
    let status = if found.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    let mut response = Response::new(Full::new(Bytes::from(found.unwrap_or_default())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

fn tls(answers: &Arc<Answers>) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::clone(answers) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

/// The handshake is all there is (RFC 8737 §4).
async fn handshake(tcp: TcpStream, config: Arc<ServerConfig>) {
    let Ok(server) = ServerConnection::new(config) else { return };
    let mut stream = tls::Stream::new(tcp, server);
    if stream.handshake().await.is_ok() {
        let _ = stream.try_close();
    }
}
