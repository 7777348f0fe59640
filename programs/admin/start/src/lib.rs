//! qmail-start: binds what has to be bound, starts every process of the table as its user, and keeps all of them running.
//!
//! Guarantees: it never reads mail, never talks to the network, parses nothing but control files and the table. Each child holds
//! a lifeline, a pipe whose other end only qmail-start has: however qmail-start ends, the others drain and end too, so a new one
//! always begins clean. A configuration that does not work is never used in place of one that does, and processes that are replaced
//! go on with what they have under way, within bounds of time and number.
//!
//! stdout carries the line `ready`, nothing else; the log of all processes goes to stderr. Under systemd it says the same to the service
//! manager, and takes over the listening sockets that systemd holds.
#![forbid(unsafe_code)]

pub mod child;
pub mod journal;
pub mod log;
pub mod plan;
pub mod reach;
pub mod sockets;
pub mod supervisor;
pub mod systemd;

use control::Root;
use std::ffi::OsString;
use std::process::ExitCode;

/// What qmail programs exit with for anything that may be better later.
const TEMPORARY: u8 = 111;

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let root = match Root::from_args(&mut args) {
        Ok(root) if args.is_empty() => root,
        Ok(_) => return fail("usage: qmail-start [--root DIR]", 100),
        Err(error) => return fail(&error.to_string(), TEMPORARY),
    };
    match supervisor::run(&root) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => fail(&problem, TEMPORARY),
    }
}

fn fail(problem: &str, code: u8) -> ExitCode {
    eprintln!("qmail-start: fatal: {problem}");
    ExitCode::from(code)
}
