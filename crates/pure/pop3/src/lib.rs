//! The server's side of POP3 (RFC 1939) as two machines without I/O, and the encoding of a message for the wire.
//!
//! - [`Authorization`]: the AUTHORIZATION state, until a login has been judged (qmail-popup, which holds no mailbox).
//! - [`Transaction`]: the TRANSACTION and UPDATE states over a [`Maildrop`] (qmail-pop3d, which never sees a password).
//! - [`encode`]: LF → CRLF, dot-stuffing, TOP, and the size that LIST promises.
//!
//! Guarantees: no I/O, no clock, no panic on any input; a command line is at most [`COMMAND_LEN_MAX`] bytes; what a machine holds is
//! bounded; the same bytes give the same replies however they are cut. Never here: what a password is worth, how a message is stored.
//! RFC 1939, RFC 2449 (CAPA, response codes), RFC 3206 (`[AUTH]`, `[SYS/TEMP]`), RFC 5034 (AUTH), RFC 6856 (UTF8, LANG; letters are sent
//! as they are stored whether or not a client said UTF8: a letter that holds other bytes than ASCII reaches every client, none is converted).
#![forbid(unsafe_code)]

mod auth;
pub mod authorization;
pub mod command;
pub mod encode;
#[doc(hidden)]
pub mod fuzz;
pub mod transaction;

pub use authorization::{Authorization, Offer, Verdict};
pub use command::{COMMAND_LEN_MAX, ResponseCode};
pub use encode::{Encoder, Octets};
pub use transaction::{Maildrop, Transaction};
