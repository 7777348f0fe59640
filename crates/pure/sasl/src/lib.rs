//! SASL (RFC 4422), the server's side without I/O: names of mechanisms, the exchange with a client, and the mechanisms themselves.
//!
//! - [`mechanism`]: which there are, and which of them a connection may use.
//! - [`exchange`]: what a process that talks to clients knows of them. It decodes PLAIN and LOGIN, whose password it hands on as it
//!   does with POP3's PASS, and relays the messages of all others unread. Used by the machines of SMTP and POP3.
//! - [`scram`], [`cram_md5`], [`oauth`]: what the judge knows. Used by qmail-auth alone, which holds the secrets.
//!
//! Guarantees: any bytes give a message or a refusal, never a panic; messages are bounded by [`MESSAGE_LEN_MAX`]; secrets are compared in
//! constant time, wiped when they are dropped, never printed. Never here: a clock, randomness (nonces come in), a password in clear at rest.
#![forbid(unsafe_code)]

pub mod cram_md5;
pub mod exchange;
#[doc(hidden)]
pub mod fuzz;
pub mod mechanism;
pub mod oauth;
pub mod scram;

pub use exchange::{Exchange, Fault, First, Step};
pub use mechanism::{Mechanism, Mechanisms, Protection};
pub use wire::Secret;

/// Longest message of a client, decoded: RFC 4954 §4 has lines of 12288 octets, three quarters of which are the message.
pub const MESSAGE_LEN_MAX: usize = 9216;
