//! The certificates that we show to servers: chains come from qmail-keys, and so do the signatures.
//!
//! A step of such a handshake may wait for a signature, at most two seconds, so it computes on a thread of the runtime's for what blocks.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipc::keys::{Answer, Request, TLS_CLIENT};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use rustls::{ClientConnection, SignatureScheme};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::keys::{Keys, RemoteKey};

/// How long what qmail-keys said of a certificate counts: a new one is noticed within it, and a key process that hangs is asked so often.
const FRESH: Duration = Duration::from_secs(5);
/// Certificates that are remembered; an operator has a few.
const KNOWN_MAX: usize = 256;
/// What is read in one go: a record.
const READ_LEN: usize = 16 * 1024 + 5;

type Found = Result<Arc<CertifiedKey>, String>;

/// Our certificates.
#[derive(Debug)]
pub(super) struct Own {
    keys: Arc<Keys>,
    known: Mutex<HashMap<String, (Instant, Found)>>,
}

impl Own {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys: Arc::new(keys), known: Mutex::default() }
    }

    /// The certificate of this name.
    ///
    /// # Errors
    /// There is none, or nobody answers; in words.
    pub(super) async fn get(&self, name: &str) -> Found {
        // Held while qmail-keys is asked: one question for all who wait.
        let mut known = self.known.lock().await;
        if let Some((asked, found)) = known.get(name)
            && asked.elapsed() < FRESH
        {
            return found.clone();
        }
        let (keys, question) = (Arc::clone(&self.keys), name.to_owned());
        let found = match spawn_blocking(move || fetch(&keys, &question)).await {
            Ok(found) => found,
            Err(error) => Err(error.to_string()),
        };
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(name.to_owned(), (Instant::now(), found.clone()));
        found
    }
}

fn fetch(keys: &Arc<Keys>, name: &str) -> Found {
    let answer = keys.ask(|id| Request::ClientCertificate { id, name: name.into() });
    let Ok(Answer::Certificate { key, schemes, chain, .. }) = answer else {
        return Err(match answer {
            Ok(_) => format!("there is no certificate {name} to be shown here"),
            Err(_) => "qmail-keys does not answer".to_owned(),
        });
    };
    let schemes = schemes.into_iter().map(SignatureScheme::from).collect();
    let key = Arc::new(RemoteKey { keys: Arc::clone(keys), purpose: TLS_CLIENT, name: key.0, schemes });
    let chain = chain.into_iter().map(|der| CertificateDer::from(der.0)).collect();
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

/// Shows one certificate to whoever asks for any.
#[derive(Debug)]
pub(super) struct Shows(pub(super) Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// As [`crate::Stream::handshake`].
pub(super) async fn handshake(tcp: &TcpStream, tls: ClientConnection) -> io::Result<ClientConnection> {
    let mut tls = Box::new(tls);
    loop {
        write(tcp, &mut tls).await?;
        if !tls.is_handshaking() {
            return Ok(*tls);
        }
        let input = read(tcp).await?;
        let (after, processed) = spawn_blocking(move || {
            let processed = crate::server::process(&mut tls, &input);
            (tls, processed)
        })
        .await
        .map_err(io::Error::other)?;
        tls = after;
        if let Err(error) = processed {
            // The alert that says why, if the socket takes it.
            let _ = write(tcp, &mut tls).await;
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
    }
}

async fn read(tcp: &TcpStream) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; READ_LEN];
    loop {
        tcp.readable().await?;
        match tcp.try_read(&mut buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                buf.truncate(len);
                return Ok(buf);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn write(tcp: &TcpStream, tls: &mut ClientConnection) -> io::Result<()> {
    let mut out = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut out)?;
    }
    let mut rest = &out[..];
    while !rest.is_empty() {
        match tcp.try_write(rest) {
            Ok(len) => rest = rest.get(len..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tcp.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
