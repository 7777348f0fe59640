//! Clients' certificates: who may show one, and what is known of its owner.
//!
//! A client that shows a certificate has proved that it holds the key. Whose it is, is another question: a certificate under the
//! configured authorities names its owner, any other is known by its fingerprint alone.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ConfigBuilder, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme, WantsVerifier,
};
use std::io;
use std::sync::Arc;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Names taken from a certificate, at most.
const NAMES_MAX: usize = 16;

/// Are clients asked for certificates?
#[derive(Debug, Clone, Default)]
pub enum ClientCertificates {
    #[default]
    NotAsked,
    /// Asked, not compelled. Those under these authorities name their owner.
    Asked(Authorities),
}

/// Authorities for clients' certificates.
#[derive(Debug, Clone)]
pub struct Authorities {
    /// `None` if there are none: certificates are known by their fingerprints.
    chains: Option<Arc<dyn ClientCertVerifier>>,
    provider: Arc<CryptoProvider>,
}

/// The certificate of a client that has proved to hold its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Of its DER.
    pub sha256: [u8; 32],
    /// It is valid and under one of the configured authorities: what follows is true.
    pub verified: bool,
    /// subjectAltName rfc822Name, and the subject's emailAddress; empty if not verified.
    pub emails: Vec<String>,
    pub common_name: Option<String>,
}

impl ClientCertificates {
    /// Asks, with the authorities that stand in a PEM file; without any, certificates are known by their fingerprints.
    ///
    /// # Errors
    /// A certificate in it is none.
    pub fn asked(pem: &[u8]) -> io::Result<Self> {
        let invalid = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        let provider = crate::provider();
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(|error| invalid(&error))?).map_err(|error| invalid(&error))?;
        }
        let chains = if roots.is_empty() {
            None
        } else {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
            Some(verifier.map_err(|error| invalid(&error))?)
        };
        Ok(Self::Asked(Authorities { chains, provider }))
    }

    pub(super) fn verify(
        &self,
        builder: ConfigBuilder<ServerConfig, WantsVerifier>,
    ) -> ConfigBuilder<ServerConfig, rustls::server::WantsServerCert> {
        match self {
            Self::NotAsked => builder.with_no_client_auth(),
            Self::Asked(authorities) => builder.with_client_cert_verifier(Arc::new(authorities.clone())),
        }
    }

    /// What is known of a client that has shown `chain`.
    pub(super) fn facts(&self, chain: &[CertificateDer<'static>]) -> Option<ClientCertificate> {
        let (Self::Asked(authorities), Some((own, others))) = (self, chain.split_first()) else { return None };
        let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, own).as_ref().try_into().ok()?;
        let verified = authorities.chains.as_ref().is_some_and(|c| c.verify_client_cert(own, others, UnixTime::now()).is_ok());
        let (emails, common_name) = if verified { names(own) } else { (Vec::new(), None) };
        Some(ClientCertificate { sha256, verified, emails, common_name })
    }
}

fn names(der: &[u8]) -> (Vec<String>, Option<String>) {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return (Vec::new(), None) };
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
        GeneralName::RFC822Name(email) => Some((*email).to_owned()),
        _ => None,
    });
    let emails = alternative.chain(certificate.subject().iter_email().filter_map(text)).take(NAMES_MAX).collect();
    (emails, certificate.subject().iter_common_name().find_map(text))
}

/// The handshake needs the proof alone; the chain is looked at when it is over, so that a certificate which is not under the
/// authorities is no reason to refuse mail.
impl ClientCertVerifier for Authorities {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.as_ref().map(|chains| chains.root_hint_subjects()).unwrap_or_default()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
