//! Clients' certificates: who may show one, and what is known of its owner.
//!
//! A client that shows a certificate has proved that it holds the key. Whose it is, is another question: a certificate under the
//! configured authorities names its owner, any other is known by its fingerprint alone. What cannot be checked, has expired or is known to
//! nobody counts for nothing, and never ends a connection.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ConfigBuilder, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme, WantsVerifier,
};
use std::io;
use std::sync::Arc;
use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_SIG_ED25519};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::AttributeTypeAndValue;

/// Names taken from a certificate, at most.
pub const NAMES_MAX: usize = 16;
/// Lengths of RSA keys whose signatures are checked.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

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

/// The certificate of a client that has proved to hold its key, and that is valid now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// SHA-256 of its DER, and of its public key (SubjectPublicKeyInfo).
    pub fingerprints: [[u8; 32]; 2],
    /// It is under one of the configured authorities: the names are true.
    pub verified: bool,
    /// E-mail addresses (subjectAltName rfc822Name, the subject's emailAddress) and host names (dNSName); of a kind that it has none of,
    /// the common name. Empty if not verified, at most [`NAMES_MAX`].
    pub names: Vec<String>,
}

/// What a client has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// It counts for what stands in it.
    Certificate(ClientCertificate),
    /// It counts for nothing: it is not valid now, or has a form or a key that is not read here. `why` is for the log; the fingerprint is
    /// the certificate's.
    Useless { fingerprint: [u8; 32], why: &'static str },
}

impl ClientCertificates {
    /// As [`ClientCertificates::asked`], if anybody is asked.
    ///
    /// # Errors
    /// A certificate in `pem` is none.
    pub fn of(is_asked: bool, pem: &[u8]) -> io::Result<Self> {
        if is_asked { Self::asked(pem) } else { Ok(Self::NotAsked) }
    }

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

    /// What is known of a client that has shown `chain`; also where its session goes on, at the present time.
    pub(crate) fn facts(&self, chain: &[CertificateDer<'static>]) -> Option<Shown> {
        let (Self::Asked(authorities), Some((own, others))) = (self, chain.split_first()) else { return None };
        let fingerprint = sha256(own);
        Some(match parse(own) {
            Err(why) => Shown::Useless { fingerprint, why },
            Ok(certificate) if !certificate.validity().is_valid() => {
                Shown::Useless { fingerprint, why: "it has expired, or is not valid yet" }
            }
            Ok(certificate) => {
                let chains = authorities.chains.as_ref();
                let verified = chains.is_some_and(|chains| chains.verify_client_cert(own, others, UnixTime::now()).is_ok());
                Shown::Certificate(ClientCertificate {
                    fingerprints: [fingerprint, sha256(certificate.public_key().raw)],
                    verified,
                    names: if verified { names(&certificate) } else { Vec::new() },
                })
            }
        })
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}

/// A certificate whose proof can be checked. Any other (an old version, a key of a kind or length that the library does not know) is no
/// reason to end the connection: its client is served as one that has shown none. It follows from the certificate alone, so that a session
/// that goes on is judged as the one that began it.
fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, &'static str> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| "it cannot be read")?;
    ParsedCertificate::try_from(der).map_err(|_| "it is of an old form, or cannot be read")?;
    let is_known = match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => RSA_BITS.contains(&key.key_size()),
        Ok(PublicKey::EC(_)) => {
            let curve = certificate.public_key().algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
            curve.is_some_and(|curve| [OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521].contains(&curve))
        }
        _ => certificate.public_key().algorithm.algorithm == OID_SIG_ED25519,
    };
    if is_known && rest.is_empty() { Ok(certificate) } else { Err("its key is of a kind that is not used here") }
}

/// The names in a certificate, if it is one that is read here, whoever signed it.
pub(crate) fn names_of(der: &[u8]) -> Option<Vec<String>> {
    parse(&CertificateDer::from(der)).ok().as_ref().map(names)
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let text = |value: &AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = || alternative.iter().flat_map(|extension| &extension.value.general_names);
    let emails = alternative().filter_map(|name| match name {
        GeneralName::RFC822Name(email) => Some((*email).to_owned()),
        _ => None,
    });
    let hosts = alternative().filter_map(|name| match name {
        GeneralName::DNSName(host) => Some((*host).to_owned()),
        _ => None,
    });
    // Each kind for itself: who may choose a common name cannot pass for an address that the authority has not looked at.
    let mut emails: Vec<String> = emails.chain(certificate.subject().iter_email().filter_map(text)).collect();
    let mut hosts: Vec<String> = hosts.collect();
    let common_name = certificate.subject().iter_common_name().find_map(text);
    match common_name {
        Some(name) if name.contains('@') && emails.is_empty() => emails.push(name),
        Some(name) if !name.contains('@') && hosts.is_empty() => hosts.push(name),
        _ => {}
    }
    emails.retain(|email| email.contains('@'));
    hosts.retain(|host| !host.contains('@'));
    emails.into_iter().chain(hosts).take(NAMES_MAX).collect()
}

/// The handshake needs the proof alone; the chain is looked at when it is over, so that a certificate which is not under the
/// authorities is no reason to refuse mail.
impl ClientCertVerifier for Authorities {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: a certificate that is known by its fingerprint comes from no authority of ours, and clients that look at the hints would not
    /// show it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
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
        if parse(cert).is_err() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if parse(cert).is_err() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
