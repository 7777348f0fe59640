//! The key of an ACME account: ECDSA on P-256, in PKCS #8 as PEM, its owner's alone.

use crate::{pem, read};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use std::path::Path;
use zeroize::Zeroizing;

/// The key.
pub struct AccountKey(EcdsaKeyPair);

impl AccountKey {
    /// # Errors
    /// It cannot be read, others can read it, or it is of another kind; the text says so.
    pub fn read(path: &Path) -> Result<Self, String> {
        let name = path.file_name().unwrap_or_default().display();
        let text = Zeroizing::new(read(path, true)?);
        let blocks = pem::blocks(&text).map_err(|error| format!("{name}: {error}"))?;
        let [block] = &blocks[..] else { return Err(format!("{name} must hold one private key")) };
        if block.label != "PRIVATE KEY" {
            return Err(format!("{name} must hold a private key in PKCS #8"));
        }
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &block.der);
        key.map(Self).map_err(|_| format!("{name} holds no ECDSA key on P-256"))
    }

    /// The public point, uncompressed: 4, x, y.
    #[must_use]
    pub fn point(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// An ES256 signature: r, s (RFC 7518 §3.4).
    ///
    /// # Errors
    /// No random bytes; temporary.
    pub fn sign(&self, input: &[u8]) -> Result<Vec<u8>, String> {
        let signed = self.0.sign(&SystemRandom::new(), input);
        signed.map(|signature| signature.as_ref().to_vec()).map_err(|_| "no signature could be made".to_owned())
    }
}
