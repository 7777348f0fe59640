//! SMTP as machines without I/O: the server's side, the client's side, and the encoder of what follows DATA.
//!
//! Guarantees: no I/O, no clock, no panic on any input; every line, reply and envelope is bounded. RFC 5321 and its extensions.
#![forbid(unsafe_code)]

pub mod client;
pub mod command;
pub mod data;
pub mod encode;
pub mod reply;
pub mod server;
pub mod spp;
pub mod trace;
