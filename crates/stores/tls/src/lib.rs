//! TLS of all network programs: rustls with aws-lc-rs, versions 1.2 and 1.3, a post-quantum hybrid group first.
//!
//! Never here: a private key. Server signatures are asked for from qmail-keys.
#![forbid(unsafe_code)]

pub mod client;
#[doc(hidden)]
pub mod fuzz;
mod keys;
pub mod server;
pub mod stream;
pub mod transport;

pub use server::{Acceptor, ClientCertificate, ClientCertificates, Facts, Shown};
pub use stream::Stream;
pub use transport::Transport;

use std::sync::Arc;

/// The one provider of cryptography, for servers and clients.
#[must_use]
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
