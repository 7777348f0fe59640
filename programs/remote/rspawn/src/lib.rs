//! qmail-rspawn: runs a program of root's choice in the place of qmail-remote, `PROGRAM HOST SENDER RECIPIENT` for each recipient.
//!
//! qmail-start runs it instead of qmail-remote where QMAILREMOTE (or `control/qmailremote`) names a program; to qmail-send it is the same:
//! it serves remote.sock, takes jobs and answers each recipient once. Guarantees: at most one process for each job that qmail-send has
//! under way; each has a deadline, its output a bound; a process that crashes, hangs or says what is no report costs its own recipient a
//! deferral and nobody else anything. It runs as `qmailr` and is not confined, since what it starts would inherit that: so it links no
//! more than it needs, looks at no byte of a message and talks to no network. The programs die with it.
//!
//! | module | noun |
//! |---|---|
//! | [`service`] | the process: connections of qmail-send, draining, retirement |
//! | [`job`] | one job, recipient by recipient |
//! | [`program`] | one run of the program |
//! | [`report`] | what the program printed, as a verdict |
#![forbid(unsafe_code)]

pub mod job;
pub mod program;
pub mod report;
pub mod service;

pub use service::main;
