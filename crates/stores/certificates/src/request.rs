//! A request for a certificate (PKCS #10, RFC 2986) for a key that is there, and nothing else in it than the hosts.

use crate::Entry;
use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::SignatureScheme;

/// What an authority lets a key sign its request by.
const SCHEMES: [(SignatureScheme, &SignatureAlgorithm); 4] = [
    (SignatureScheme::ECDSA_NISTP256_SHA256, &rcgen::PKCS_ECDSA_P256_SHA256),
    (SignatureScheme::ECDSA_NISTP384_SHA384, &rcgen::PKCS_ECDSA_P384_SHA384),
    (SignatureScheme::ED25519, &rcgen::PKCS_ED25519),
    (SignatureScheme::RSA_PKCS1_SHA256, &rcgen::PKCS_RSA_SHA256),
];

/// The key of an entry, as the request wants it.
struct Subject<'a> {
    entry: &'a Entry,
    scheme: SignatureScheme,
    algorithm: &'static SignatureAlgorithm,
}

impl PublicKeyData for Subject<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.entry.certificate.public_key
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl SigningKey for Subject<'_> {
    fn sign(&self, input: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signer = self.entry.key.choose_scheme(&[self.scheme]).ok_or(rcgen::Error::RemoteKeyError)?;
        signer.sign(input).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// The request, DER: for the entry's key and these hosts, with an empty subject.
///
/// # Errors
/// A host that is none, or a key that no authority takes; the text says which.
pub fn request(entry: &Entry, hosts: &[String]) -> Result<Vec<u8>, String> {
    let found = SCHEMES.iter().find(|(scheme, _)| entry.schemes.contains(scheme));
    let (scheme, algorithm) = *found.ok_or("not a kind of key that a request is signed by")?;
    let mut params = CertificateParams::new(hosts).map_err(|error| error.to_string())?;
    params.distinguished_name = DistinguishedName::new();
    let made = params.serialize_request(&Subject { entry, scheme, algorithm }).map_err(|error| error.to_string())?;
    Ok(made.der().to_vec())
}
