//! qmail-local: carries out what a recipient's `.qmail` file says, with the recipient's rights and no others.
//!
//! Three faces over the same steps:
//! - classic, `qmail-local [-nN] user homedir local dash ext domain sender defaultdelivery` with the message on descriptor 0
//!   (qmail-local(8)): [`classic`];
//! - `--worker [--base DIR]`, kept warm by qmail-lspawn for one system user or one virtual domain, confined: [`worker`];
//! - `--once`, started by qmail-lspawn for a file that holds program lines, or to run the program that QMAILLOCAL names, not confined:
//!   [`once`].
//!
//! Guarantees: success is said when every file is synced and every forward is in the queue. `.qmail` instructions run in order,
//! forwards together at the end; an error stops at once. A worker never starts a program and delivers nothing of a file that
//! would need one. Nothing of a message or an address reaches a shell but as environment.
#![forbid(unsafe_code)]

mod carry_out;
pub mod classic;
pub mod failure;
pub mod forward;
pub mod home;
mod lmtp;
pub mod once;
mod orders;
pub mod queue_program;
mod quota_warning;
mod replacement;
pub mod shell;
mod vacation;
pub mod worker;

use std::ffi::OsString;
use std::process::ExitCode;

/// Picks the face.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    // What a recipient's programs and files get is the recipient's alone (qmail-local(8)).
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    match args.first().map(|arg| arg.as_encoded_bytes()) {
        Some(b"--worker") => worker::main(args.get(1..).unwrap_or_default()),
        Some(b"--once") => once::main(),
        _ => classic::main(&args),
    }
}
