//! Invariants that hold for any certificate that a client may show.

use crate::server::{ClientCertificates, NAMES_MAX, Shown};
use rustls::pki_types::CertificateDer;

/// `data` as a client's certificate: known for what it is, or useless; never a panic, and no name without an authority.
///
/// # Panics
/// An invariant is broken.
pub fn client_certificates(data: &[u8]) {
    let Ok(asked) = ClientCertificates::asked(b"") else { return };
    let chain = [CertificateDer::from(data.to_vec())];
    let shown = asked.facts(&chain);
    assert_eq!(shown, asked.facts(&chain));
    match shown {
        Some(Shown::Certificate(certificate)) => assert!(!certificate.verified && certificate.names.is_empty()),
        Some(Shown::Useless { .. }) => {}
        None => unreachable!("who asks knows something of what was shown"),
    }
    assert!(crate::server::names_of(data).is_none_or(|names| names.len() <= NAMES_MAX));
}
