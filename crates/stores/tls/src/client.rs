//! The client's side: whom we believe, and the connection.
//!
//! Two kinds of connections. Without names any certificate does, and nothing about it is looked at: that keeps out who only listens
//! (RFC 7435). With names the certificate must be valid now, come from an authority that is trusted here, and be for one of them.
//! Sessions are resumed within their kind, and with names only for the same list of names: rustls resumes a session only with the
//! verifier that has seen its certificate. All of it is in memory, and ends with the process. No revocation lists are asked for.
//! Used by qmail-remote.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, ProtocolVersion, RootCertStore,
    SignatureScheme,
};
use tokio::net::TcpStream;

use crate::Stream;

/// Servers whose sessions are remembered, without names and for each list of names.
const SESSIONS_MAX: usize = 1024;
const SESSIONS_OF_NAMES_MAX: usize = 32;
/// Lists of names whose configuration is kept.
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
    named: RefCell<HashMap<Vec<String>, Arc<ClientConfig>>>,
}

impl Client {
    /// # Errors
    /// The library has no TLS 1.2 and 1.3: it was built wrongly.
    pub fn new(roots: RootCertStore) -> Result<Self, Error> {
        let any = config(Arc::new(Anyone(crate::provider())), SESSIONS_MAX)?;
        Ok(Self { roots: Arc::new(roots), any, named: RefCell::default() })
    }

    /// Starts TLS over `tcp`. `host` is the server's name as we know it (SNI; an address is not said). With `names`, the certificate
    /// must be for one of them. Not bounded in time.
    ///
    /// # Errors
    /// Why there is no TLS, in words: printable ASCII without line ends, at most 300 bytes. The connection is closed.
    pub async fn connect(&self, tcp: TcpStream, host: &str, names: Option<&[String]>) -> Result<Stream, String> {
        let address = tcp.peer_addr().map_err(|error| said(&error))?.ip();
        let config = match names {
            Some(_) if self.roots.is_empty() => {
                return Err("no certificates of authorities are installed on this host".to_owned());
            }
            Some(names) => self.named(names).map_err(|error| described(&error))?,
            None => Arc::clone(&self.any),
        };
        let tls = ClientConnection::new(config, server_name(host, address)).map_err(|error| described(&error))?;
        let mut stream = Stream::new(tcp, tls);
        match stream.handshake().await {
            Ok(()) => Ok(stream),
            Err(error) => Err(match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
                Some(error) => described(error),
                None => said(&error),
            }),
        }
    }

    fn named(&self, names: &[String]) -> Result<Arc<ClientConfig>, Error> {
        let mut all = self.named.borrow_mut();
        if let Some(config) = all.get(names) {
            return Ok(Arc::clone(config));
        }
        let parse = |name: &String| ServerName::try_from(name.clone()).ok();
        let verifier = Named {
            roots: Arc::clone(&self.roots),
            names: names.iter().filter_map(parse).collect(),
            algorithms: crate::provider().signature_verification_algorithms,
        };
        let config = config(Arc::new(verifier), SESSIONS_OF_NAMES_MAX)?;
        if all.len() >= LISTS_MAX {
            all.clear();
        }
        all.insert(names.to_vec(), Arc::clone(&config));
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

fn config(verifier: Arc<dyn ServerCertVerifier>, sessions_max: usize) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(crate::provider()).with_safe_default_protocol_versions()?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
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
