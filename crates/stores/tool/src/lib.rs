//! What the small programs have in common that people and `.qmail` files call: how they end, read their options and input, run other
//! programs, replace a file and hand a message to the queue.
//!
//! Guarantees: exit codes are those of qmail-command(8) (100 permanent, 111 temporary); a text of an error goes to standard error as
//! one line, with control bytes made harmless; a file is replaced whole or not at all; everything that is read has a bound; no shell
//! sees an address. Never here: a socket, a daemon's database, what a message says.
//! Used by the packages `local-tools`, `injection-tools`, `retrieval-tools`, `remote-tools`, `reception-tools` and `admin-tools`.
#![forbid(unsafe_code)]

pub mod child;
pub mod end;
pub mod input;
pub mod options;
pub mod queue;
pub mod replace;

pub use end::{End, Name, run};

/// Never worth another try (qmail-command(8)).
pub const PERMANENT: u8 = 100;
/// To be tried again later.
pub const TEMPORARY: u8 = 111;
