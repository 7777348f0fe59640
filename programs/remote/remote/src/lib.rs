//! qmail-remote: outgoing connections.
//!
//! Serves remote.sock: jobs come from qmail-send with their body's descriptor, each for recipients of one route; results go back
//! under the job's number. Guarantees: each recipient of a job gets exactly one verdict; `K` only after a server's 2xx to the whole
//! message; `D` only where a server or the DNS said so for good; a body costs at most two chunks of 64 KiB of memory whatever its
//! size; nothing is sent but what `smtp::encode` wrote. It resolves no names itself (qmail-resolve does), opens no files and runs
//! as `qmailr`.
//!
//! | module | noun |
//! |---|---|
//! | [`service`] | the process: descriptors, sandbox, connections of qmail-send, draining |
//! | [`classic`] | `qmail-remote HOST SENDER RECIPIENT…`: one message on standard input |
//! | [`results`] | what that prints |
//! | [`unreached`] | root's questions about addresses that could not be connected to |
//! | [`job`] | one job from its route to its last verdict |
//! | [`hosts`] | whom to try, in which order |
//! | [`own`] | which addresses are this host's own |
//! | [`session`] | one connection, driving its machine |
//! | [`machine`] | SMTP, LMTP or QMTP |
//! | [`terms`] | with how much TLS, to whom, as whom a connection is made |
//! | [`pool`] | connections kept open for a moment |
//! | [`body`] | the message, read piece by piece |
//! | [`report`] | verdicts on their way back |
#![forbid(unsafe_code)]

pub mod body;
pub mod classic;
pub mod hosts;
pub mod job;
pub mod machine;
pub mod own;
pub mod pool;
pub mod report;
pub mod results;
pub mod service;
pub mod session;
pub mod terms;
pub mod unreached;

pub use service::main;
