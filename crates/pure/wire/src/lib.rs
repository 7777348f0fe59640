//! Small formats that everything else is written in: addresses, bounded lines, netstrings, base64, cdb, escaping.
//!
//! Guarantees: no I/O, no clock, no panic on any input; every length is checked and bounded.
//! Bytes are bytes: nothing here assumes UTF-8.
#![forbid(unsafe_code)]

pub mod address;
pub mod base64;
pub mod cdb;
pub mod civil;
pub mod dsn;
pub mod ere;
pub mod escape;
#[doc(hidden)]
pub mod fuzz;
pub mod line;
pub mod netstring;
pub mod pattern;
pub mod proxy;
pub mod quote;
pub mod secret;
pub mod transfer;

pub use address::{Address, AddressError, Domain};
pub use pattern::{PatternError, Patterns, ValidRecipients};
pub use secret::{Login, Secret};
pub use transfer::{By, DeliverBy, Priority};
