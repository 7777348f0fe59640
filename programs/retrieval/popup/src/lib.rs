//! qmail-popup: talks to POP3 clients until they have said who they are.
//!
//! *Service face* (`--service`, started by qmail-start): thousands of sessions on one thread. A login goes to qmail-auth, which sends back the
//! socket of a qmail-pop3d that runs as the mailbox's owner; from then on bytes are copied both ways. *Classic face*
//! (`qmail-popup HOST SUBPROG [ARGS]`, under tcpserver or inetd): SUBPROG gets name, secret and timestamp on descriptor 3, the
//! interface of checkpassword, and the client on 0 and 1.
//!
//! Guarantees: no mailbox, no password hash and no file is ever open here; no password is asked for without TLS but from
//! `control/authcleartext` (service face; in the classic face whoever starts it decides); lines, sessions, sessions of an address, refused logins
//! and silences have bounds; an idle session holds no buffer. RFC 1939, 2449, 3206; protocol in crates/pure/pop3.
#![forbid(unsafe_code)]

mod classic;
mod login;
mod relay;
mod report;
mod service;
mod session;
mod start;

pub use classic::{Classic, serve as serve_classic};
pub use service::{Door, Service, serve};
pub use start::main;
