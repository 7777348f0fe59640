//! LDAP (RFC 4511) as far as a login needs it, the client's side without I/O: StartTLS, simple bind, one search.
//!
//! - [`filter`]: search filters (RFC 4515) with places for the login. A filter is read once, from the configuration; what somebody logs in
//!   with only ever becomes a value inside it, so no login can change what is asked.
//! - [`request`]: messages to the server. [`response`]: messages from it.
//!
//! Guarantees: no I/O, no clock, no panic on any input. A response has at most [`RESPONSE_LEN_MAX`] bytes and is read by its known
//! structure, never by recursion into what the server nested. Never here: SASL binds, controls, referrals that are followed, writing.
//! Used by qmail-authnet.
#![forbid(unsafe_code)]

mod ber;
pub mod filter;
#[doc(hidden)]
pub mod fuzz;
pub mod request;
pub mod response;

pub use filter::{Filter, Login};
pub use response::{Message, Outcome, Response};

/// Longest message of a server that is read, in bytes. One entry with the few attributes asked for is some hundreds.
pub const RESPONSE_LEN_MAX: usize = 64 * 1024;

/// Bytes that are no LDAP message, or a longer one than any that is read: the connection is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("malformed LDAP message")
    }
}

impl std::error::Error for Malformed {}
