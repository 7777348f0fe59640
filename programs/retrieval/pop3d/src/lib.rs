//! qmail-pop3d: one POP3 session over one Maildir, as its owner. Usage: `qmail-pop3d MAILDIR`, the client on descriptors 0 and 1.
//!
//! Who the client is has been settled before: by checkpassword (classic face), or by qmail-auth, and then qmail-lspawn starts this program
//! with the session's socket and an absolute path; such a Maildir is made where it is missing, since a user may log in before any mail has come.
//! Its first line answers the client's PASS.
//!
//! Guarantees: refuses uid 0; confined to the Maildir, no exec, no network; no name leads out of a mailbox that an absolute path names; nothing
//! is deleted or moved before QUIT, and without QUIT nothing ever; a message's bytes and its size in LIST agree (CRLF octets); several
//! sessions and other mail readers may share a mailbox. No password ever comes here. RFC 1939, 2449; protocol in crates/pure/pop3.
#![forbid(unsafe_code)]

mod maildrop;
mod report;
mod session;
mod start;

pub use maildrop::Drop;
pub use report::Report;
pub use session::serve;
pub use start::main;
