//! What the processes say to each other: typed messages on AF_UNIX SOCK_SEQPACKET, and a blocking client for the queue,
//! or for a program in its place.
//!
//! A datagram is at most [`DATAGRAM_LEN_MAX`] bytes: a version byte, a kind byte, then fields. Every decoder is total: any
//! bytes give a message or [`Malformed`], never a panic, and never more memory than the datagram was long. The queue protocol
//! ([`queue`]) is kept compatible for ever; the others change together with their two sides.
//!
//! | module | socket | from → to |
//! |---|---|---|
//! | [`queue`] | queue.sock, inject.sock | network programs, tools, qmail-local → qmail-send |
//! | [`job`] | lspawn.sock, remote.sock | qmail-send → qmail-lspawn, qmail-remote (or qmail-rspawn) |
//! | [`lspawn`] | lspawn.sock | qmail-auth → qmail-lspawn |
//! | [`worker`] | a socketpair | qmail-lspawn → qmail-local |
//! | [`mailbox`] | inside of the three before | qmail-auth → qmail-local |
//! | [`auth`] | auth.sock | qmail-smtpd, qmail-popup, qmail-send → qmail-auth |
//! | [`authnet`] | authnet.sock | qmail-auth → qmail-authnet |
//! | [`accounts`] | accounts.sock | qmail-auth → qmail-authnet |
//! | [`checkpw`] | checkpw.sock, socketpairs | qmail-auth → qmail-checkpw → its helpers |
//! | [`keys`] | keys.sock | qmail-smtpd, qmail-popup, qmail-acme → qmail-keys |
//! | [`getpw`] | getpw.sock | qmail-lspawn → qmail-getpw |
//! | [`resolve`] | resolve.sock | qmail-remote, qmail-send, qmail-acme → qmail-resolve |
//! | [`hook`] | hook.sock, a socketpair | qmail-smtpd → qmail-hook, its own helper |
//! | [`admin`] | admin/send.sock, admin/auth.sock, admin/acme.sock, admin/remote.sock | qmail → qmail-send, qmail-auth, qmail-acme, qmail-remote |
#![forbid(unsafe_code)]

#[macro_use]
mod message;

pub mod accounts;
pub mod admin;
pub mod auth;
pub mod authnet;
pub mod checkpw;
pub mod field;
#[doc(hidden)]
pub mod fuzz;
pub mod getpw;
pub mod hook;
pub mod hook_program;
pub mod import;
pub mod inheritance;
pub mod job;
pub mod keys;
pub mod lspawn;
pub mod mailbox;
pub mod options;
pub mod queue;
pub mod queue_program;
pub mod refusal;
pub mod resolve;
pub mod submission;
pub mod worker;

pub use field::Malformed;
pub use message::Message;
pub use refusal::Refusal;

/// Longest datagram on any socket, in bytes.
pub const DATAGRAM_LEN_MAX: usize = 32 * 1024;
/// The version that stands first in every datagram.
pub const VERSION: u8 = 1;
/// Longest report, reply or other text in a message, in bytes; [`clip`] cuts to it.
pub const TEXT_LEN_MAX: usize = 4096;

/// The front of `text`, at most [`TEXT_LEN_MAX`] bytes.
#[must_use]
pub fn clip(text: &[u8]) -> &[u8] {
    text.get(..TEXT_LEN_MAX.min(text.len())).unwrap_or_default()
}
