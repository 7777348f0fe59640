//! qmail-resolve: DNS for everyone else, on resolve.sock.
//!
//! The only process that reads what name servers send. It has no mail, no keys, no files and no powers beyond sending questions:
//! whatever a hostile answer does to it, qmail-start starts another one and the askers get "not now".
//! Guarantees: every request is answered within [`REQUEST_MAX`]; memory is bounded by the caches (10,000 small entries of each
//! kind) and by [`REQUESTS_MAX`] requests under way on a connection; malformed requests end their connection and nothing else.
//! RFC 1035, RFC 5321 §5, RFC 7505, RFC 5891. Runs as `qmailx`.
#![forbid(unsafe_code)]

pub mod answer;
pub mod cache;
pub mod dns;
mod runtime;
pub mod service;

use std::process::ExitCode;
use std::time::Duration;

pub use service::main;

/// Every request has its answer by then; the askers wait 30 s.
pub const REQUEST_MAX: Duration = Duration::from_secs(28);
/// Requests of one connection under way; further ones wait in the socket.
pub const REQUESTS_MAX: usize = 2048;

/// Temporary failure at start: qmail-start tries again.
pub(crate) fn cannot_start(problem: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("cannot start: {problem}");
    ExitCode::from(111)
}
