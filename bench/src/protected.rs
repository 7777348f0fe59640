//! TLS of the load: a client that checks nothing, since only its cost counts, and a certificate for servers that bring none.

use anyhow::Result;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConnection, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::path::Path;
use std::sync::Arc;

/// How clients do TLS: the newest version and group that both sides know, and a whole handshake for each connection, as strangers would.
///
/// # Errors
/// None with this provider.
pub(crate) fn client() -> Result<Arc<ClientConfig>> {
    let provider = tls::provider();
    let any = Arc::new(Any(Arc::clone(&provider)));
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A connection's TLS before its handshake.
///
/// # Errors
/// None with a name like this.
pub(crate) fn connection(config: &Arc<ClientConfig>) -> Result<Box<ClientConnection>> {
    let mut tls = ClientConnection::new(Arc::clone(config), ServerName::try_from("mx.bench.test")?)?;
    tls.set_buffer_limit(None);
    Ok(Box::new(tls))
}

/// Writes `cert.pem` and `key.pem`: ECDSA P-256, as `qmail setup` makes them.
///
/// # Errors
/// The disk's.
pub(crate) fn certificate(dir: &Path) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(["mx.bench.test".to_owned()])?;
    std::fs::write(dir.join("cert.pem"), made.cert.pem())?;
    Ok(std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem())?)
}

/// Believes everybody, and still computes what a client has to.
#[derive(Debug)]
struct Any(Arc<CryptoProvider>);

impl ServerCertVerifier for Any {
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
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
