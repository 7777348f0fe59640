//! The client's side: whom we believe, and the connection.
//!
//! Two kinds of connections. Without names any certificate does, and nothing about it is looked at: that keeps out who only listens
//! (RFC 7435). With names the certificate must be valid now, come from an authority that is trusted here, and be for one of them.
//! Sessions are resumed within their kind, and with names only for the same list of names: rustls resumes a session only with the
//! verifier that has seen its certificate. A certificate of our own (`own`) is shown where the caller says so, and sessions in which it was
//! shown are another kind again. All of it is in memory, and ends with the process. No revocation lists are asked for.
//! Used by qmail-remote.

mod own;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, ProtocolVersion, RootCertStore,
    SignatureScheme,
};
use tokio::net::TcpStream;

use crate::Stream;
use crate::keys::Keys;
use own::{Own, Shows};

/// Servers whose sessions are remembered, without names and for each list of names.
const SESSIONS_MAX: usize = 1024;
const SESSIONS_OF_NAMES_MAX: usize = 32;
/// Lists of names, and certificates of ours, whose configuration is kept.
const LISTS_MAX: usize = 512;
/// Longest text of an error, in bytes.
const TEXT_LEN_MAX: usize = 300;

/// The authorities that are trusted: those of `file` (PEM), or the system's.
///
/// # Errors
/// The file is unreadable, or has no certificate; temporary. A system without certificates is no error: then nobody is trusted.
pub fn roots(file: Option<&Path>) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let wrong = |what: &dyn std::fmt::Display| io::Error::other(format!("{}: {what}", file.display()));
    for certificate in CertificateDer::pem_slice_iter(&std::fs::read(file).map_err(|error| wrong(&error))?) {
        roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
    }
    if roots.is_empty() {
        return Err(wrong(&"has no certificate (PEM)"));
    }
    Ok(roots)
}

/// What all connections of a process share.
#[derive(Debug)]
pub struct Client {
    roots: Arc<RootCertStore>,
    any: Arc<ClientConfig>,
    others: RefCell<HashMap<Kind, Arc<ClientConfig>>>,
    own: Option<Own>,
}

/// What connections share that may resume each other's sessions.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Kind {
    names: Option<Vec<String>>,
    /// Our certificate (DER).
    shown: Option<Vec<u8>>,
}

impl Client {
    /// # Errors
    /// The library has no TLS 1.2 and 1.3: it was built wrongly.
    pub fn new(roots: RootCertStore) -> Result<Self, Error> {
        let any = config(Arc::new(Anyone(crate::provider())), None, SESSIONS_MAX)?;
        Ok(Self { roots: Arc::new(roots), any, others: RefCell::default(), own: None })
    }

    /// With qmail-keys, which has our certificates: its socket below the directory `run`.
    #[must_use]
    pub fn with_keys(self, run: Arc<OwnedFd>, socket: &'static str) -> Self {
        Self { own: Some(Own::new(Keys::new(run, socket))), ..self }
    }

    /// Starts TLS over `tcp`. `host` is the server's name as we know it (SNI; an address is not said). With `names`, the certificate
    /// must be for one of them. `certificate`: the name of ours that is shown if the server asks for one; without it there is no
    /// connection. Not bounded in time.
    ///
    /// # Errors
    /// Why there is no TLS, in words: printable ASCII without line ends, at most 300 bytes. The connection is closed.
    pub async fn connect(
        &self,
        tcp: TcpStream,
        host: &str,
        names: Option<&[String]>,
        certificate: Option<&str>,
    ) -> Result<Stream, String> {
        let address = tcp.peer_addr().map_err(|error| said(&error))?.ip();
        if names.is_some() && self.roots.is_empty() {
            return Err("no certificates of authorities are installed on this host".to_owned());
        }
        let shown = match (certificate, &self.own) {
            (Some(name), Some(own)) => Some(own.get(name).await.map_err(|why| said(&why))?),
            (Some(_), None) => return Err("there is nobody to sign for a certificate of ours".to_owned()),
            (None, _) => None,
        };
        let is_shown = shown.is_some();
        let config = self.config(names, shown).map_err(|error| described(&error))?;
        let tls = ClientConnection::new(config, server_name(host, address)).map_err(|error| described(&error))?;
        let shaken = if is_shown {
            own::handshake(&tcp, tls).await.map(|tls| Stream::new(tcp, tls))
        } else {
            let mut stream = Stream::new(tcp, tls);
            stream.handshake().await.map(|()| stream)
        };
        shaken.map_err(|error| match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => described(error),
            None => said(&error),
        })
    }

    fn config(&self, names: Option<&[String]>, shown: Option<Arc<CertifiedKey>>) -> Result<Arc<ClientConfig>, Error> {
        if names.is_none() && shown.is_none() {
            return Ok(Arc::clone(&self.any));
        }
        let der = shown.as_ref().map(|shown| shown.cert.first().map(|der| der.to_vec()).unwrap_or_default());
        let kind = Kind { names: names.map(<[String]>::to_vec), shown: der };
        let mut all = self.others.borrow_mut();
        if let Some(config) = all.get(&kind) {
            return Ok(Arc::clone(config));
        }
        let verifier: Arc<dyn ServerCertVerifier> = match names {
            Some(names) => Arc::new(Named {
                roots: Arc::clone(&self.roots),
                names: names.iter().filter_map(|name| ServerName::try_from(name.clone()).ok()).collect(),
                algorithms: crate::provider().signature_verification_algorithms,
            }),
            None => Arc::new(Anyone(crate::provider())),
        };
        let config = config(verifier, shown, SESSIONS_OF_NAMES_MAX)?;
        if all.len() >= LISTS_MAX {
            all.clear();
        }
        all.insert(kind, Arc::clone(&config));
        Ok(config)
    }
}

/// `TLSv1.3` or `TLSv1.2`: what the stream has.
#[must_use]
pub fn version(stream: &Stream) -> &'static str {
    match stream.tls().protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLS",
    }
}

fn config(
    verifier: Arc<dyn ServerCertVerifier>,
    shown: Option<Arc<CertifiedKey>>,
    sessions_max: usize,
) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(crate::provider()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match shown {
        Some(shown) => builder.with_client_cert_resolver(Arc::new(Shows(shown))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::in_memory_sessions(sessions_max);
    Ok(Arc::new(config))
}

/// A host name, or where that is none the address.
fn server_name(host: &str, address: IpAddr) -> ServerName<'static> {
    ServerName::try_from(host.to_owned()).unwrap_or_else(|_| ServerName::IpAddress(address.to_canonical().into()))
}

fn described(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired".to_owned()
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "its certificate is not valid yet".to_owned()
        }
        Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            "its certificate is for another name".to_owned()
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate comes from an authority that is not trusted here".to_owned()
        }
        other => said(other),
    }
}

/// Texts of libraries may hold what the server sent.
fn said(error: &dyn std::fmt::Display) -> String {
    let mut text: String = error.to_string().chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    text.truncate(TEXT_LEN_MAX);
    text
}

/// Any certificate will do. The signature of the handshake is not looked at either: it would only say that the server has the key of
/// a certificate that nobody vouches for.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A valid certificate for one of the names; the name that the connection was made with does not count.
#[derive(Debug)]
struct Named {
    roots: Arc<RootCertStore>,
    names: Vec<ServerName<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, self.algorithms.all)?;
        if self.names.iter().any(|name| verify_server_name(&certificate, name).is_ok()) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::NotValidForName.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
