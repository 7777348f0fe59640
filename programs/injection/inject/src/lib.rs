//! How mail gets into the queue from this host: qmail-queue, qmail-inject and sendmail, run by anyone with the caller's rights.
//!
//! qmail-queue takes a message and its envelope on descriptors 0 and 1 (the interface of every filter written for qmail); qmail-inject
//! and sendmail take a message as people and programs write it, rewrite its header (crate `message`) and find the envelope in it.
//! qmail-qmqpc has the interface of qmail-queue and hands the message to another host ([`qmqpc`]). The other three hand the message to qmail-send through inject.sock ([`outgoing`]), or to the program that QMAILQUEUE names ([`program`]).
//!
//! Guarantees: exit 0 only after qmail-send (or that program) said that the message is safe; nothing is setuid; nothing is written but
//! an unnamed file for a message too long for memory; the exit codes are those of the classic programs (sendmail: 75 for "try again").
//! These programs never look at the body, never open the spool, and never wait longer than 60 s for a system that is down.
#![forbid(unsafe_code)]

pub mod asked;
pub mod env;
pub mod envelope;
pub mod held;
pub mod inject;
pub mod outgoing;
pub mod program;
pub mod qmqpc;
pub mod queue;
pub mod sendmail;

use std::ffi::OsString;
use std::process::ExitCode;

use env::Env;

/// Exit codes that callers of qmail-inject know.
pub const EXIT_PERMANENT: u8 = 100;
pub const EXIT_TEMPORARY: u8 = 111;

/// The program qmail-queue.
#[must_use]
pub fn qmail_queue() -> ExitCode {
    ExitCode::from(queue::run())
}

/// The program qmail-qmqpc.
#[must_use]
pub fn qmail_qmqpc() -> ExitCode {
    ExitCode::from(qmqpc::run())
}

/// The program qmail-inject.
#[must_use]
pub fn qmail_inject() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    ExitCode::from(program::serve(&args).unwrap_or_else(|| inject::run(&mut args, &Env::of_process())))
}

/// The program sendmail, also under the names mailq and newaliases.
#[must_use]
pub fn sendmail() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let own = if args.is_empty() { OsString::new() } else { args.remove(0) };
    ExitCode::from(program::serve(&args).unwrap_or_else(|| sendmail::run(&own, &mut args, Env::of_process())))
}
