//! Mail messages as qmail sees them: the header, trace lines, VERP senders, bounces, quoting, and what qmail-inject does to a header.
//!
//! Everything is in qmail's LF form. Guarantees: no I/O, no clock (`now_s` is an argument), no randomness (bits are an argument),
//! no panic and no recursion on any input, memory within a small multiple of the bounded input.
//! Used by qmail-send (Received, bounces, VERP), qmail-local and qmail-smtpd (hops, loops), qmail-inject and sendmail (rewriting), qmail-smtpd (what users submit).
#![forbid(unsafe_code)]

pub mod aliases;
pub mod bounce;
pub mod crlf;
pub mod forwarding;
#[doc(hidden)]
pub mod fuzz;
pub mod header;
pub mod inject;
pub mod received;
pub mod rfc822;
mod status;
pub mod submission;
pub mod vacation;
pub mod verp;
