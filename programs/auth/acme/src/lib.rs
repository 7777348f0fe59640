//! qmail-acme: certificates from an authority that speaks ACME (RFC 8555), for the hosts of control/acme, and their renewal.
//!
//! It talks to the authority and answers its challenges (`http-01`, or `tls-alpn-01` of RFC 8737) on the listener `acme`. What needs a key
//! is done by qmail-keys: it signs the account's requests, makes the request for a certificate, and puts what comes back in its place if it
//! is for the key and the hosts. So whoever takes this process over gets no key, no file and no certificate for another host.
//!
//! Guarantees: a failure leaves the certificate that is there; the next attempt comes after an hour and more, with a spread, and so also
//! after a restart: an attempt is noted before it begins. Answers, times, names and orders are bounded. No DNS of its own (qmail-resolve),
//! no file after its start. Never: sees mail, or a key that outlives a challenge. Runs as `qmailc`, and only where there is control/acme.
//!
//! | module | noun |
//! |---|---|
//! | [`service`] | the process: configuration, descriptors, sandbox, the admin's requests |
//! | [`renewal`] | which certificate is due, and what is noted of an attempt |
//! | [`order`] | one certificate: account, order, authorizations, certificate |
//! | [`session`] | signed requests to the authority: nonces, errors |
//! | [`challenge`] | answers to the authority's questions on the listener |
//! | [`oracle`] | what qmail-keys is asked |
//! | [`http`] | one HTTP request, over TLS to an address of qmail-resolve's |
#![forbid(unsafe_code)]

pub mod challenge;
pub mod http;
pub mod oracle;
pub mod order;
pub mod renewal;
pub mod service;
pub mod session;

pub use service::main;

/// Bytes of a text about the authority that are logged and noted.
const TEXT_LEN_MAX: usize = 600;

/// Why a certificate could not be had. The text says so, in printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub text: String,
    /// The authority wants no request for so long.
    pub retry_after_s: u64,
}

impl Trouble {
    /// Texts of libraries and of the authority may hold anything.
    pub(crate) fn new(what: &str, why: &dyn std::fmt::Display) -> Self {
        let mut text = format!("{what}: {}", wire::escape::visible(why.to_string().as_bytes()));
        text.truncate(TEXT_LEN_MAX);
        Self { text, retry_after_s: 0 }
    }
}

impl From<&str> for Trouble {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), retry_after_s: 0 }
    }
}

/// A line for the log; nobody reading it is no reason to stop.
pub(crate) fn log(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{}", wire::escape::visible(text.as_bytes()));
}
