//! qmail-hook: runs the programs that an administrator gives a say in an SMTP session: plugins, recipient checks, programs in the place of
//! qmail-queue. Runs as qmaild, for qmail-smtpd, which can start nothing itself.
//!
//! It serves hook.sock. For each connection it starts itself anew ([`one`]); that process reads one request, runs one program, answers and
//! ends, so that a program which hangs, crashes or floods costs its own question and nothing else. Which programs there are it reads from
//! the configuration when it starts (`control::hooks`); a caller can name none but these, and each has to be root's own file.
//! It parses no mail, opens no network connection, starts no thread. It is not confined, since what it starts would inherit that.
//! qmail-start starts it only where something is configured.
#![forbid(unsafe_code)]

pub mod one;
pub mod service;

use control::Root;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// Temporary failure, as all of qmail says it.
const TEMPORARY: u8 = 111;
const USAGE: u8 = 100;

/// `qmail-hook [--root DIR] --service`, as qmail-start starts it, or `--one`, as it starts itself.
#[must_use]
pub fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let root = match Root::from_args(&mut args) {
        Ok(root) => root,
        Err(error) => return ended(Err(io::Error::other(error))),
    };
    match args.as_slice() {
        [face] if face == "--service" => ended(service::serve(&root)),
        [face] if face == "--one" => ended(one::serve(&root)),
        _ => {
            log("usage: qmail-hook --service (started by qmail-start)");
            ExitCode::from(USAGE)
        }
    }
}

fn ended(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&error.to_string());
            ExitCode::from(TEMPORARY)
        }
    }
}

/// A line for the log; nobody reading it is no reason to stop.
pub(crate) fn log(text: &str) {
    let _ = io::stderr().write_all(format!("{}\n", wire::escape::visible(text.as_bytes())).as_bytes());
}
