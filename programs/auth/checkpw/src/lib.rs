//! qmail-checkpw: logins that are judged by what only root may ask: a checkpassword program, etc/shadow, PAM. Runs as root.
//!
//! It serves checkpw.sock to qmail-auth alone: one login in, one verdict out. It judges nothing itself. For each login it starts a process
//! with a clean environment, so many at once and for so long and no longer ([`service`]); what hangs, crashes or says nonsense is a source
//! that is unavailable, never a refusal and never a yes. qmail-auth names a source, and only what control/authsources (root's own file)
//! holds is one: no caller can name a program. It never parses mail, never touches the network, opens no database, starts no thread. It is
//! not confined, since what it starts would inherit that.
//!
//! One program with four faces:
//!
//! | arguments | started by | does |
//! |---|---|---|
//! | `--service` | qmail-start | the above |
//! | `--helper LINE` | itself | one login against [`shadow`] or [`pam`], from descriptor 3, where the verdict goes; then it ends |
//! | `--guard PROGRAM ARGS…` | itself | runs a helper or a checkpassword program, and ends with it all that it has started ([`guard`]) |
//! | `--accepted` | a checkpassword program that was satisfied | says so on descriptor 4 ([`checkpassword`]) |
//!
//! qmail-start starts it only if control/authsources names a source that needs it.
#![forbid(unsafe_code)]

pub mod checkpassword;
pub mod guard;
pub mod helper;
pub mod pam;
pub mod service;
pub mod shadow;

use control::Root;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

/// Temporary failure, as all of qmail says it.
const TEMPORARY: u8 = 111;
const USAGE: u8 = 100;

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args == ["--accepted"] {
        return ended(checkpassword::accepted());
    }
    // Before anything is taken for an argument of ours.
    if let [face, program, args @ ..] = args.as_slice()
        && face == "--guard"
    {
        return guard::run(Path::new(program), args);
    }
    let root = match Root::from_args(&mut args) {
        Ok(root) => root,
        Err(error) => return ended(Err(io::Error::other(error))),
    };
    match args.as_slice() {
        [face] if face == "--service" => ended(service::serve(root)),
        [face, line] if face == "--helper" => ended(helper::run(&root, line.as_bytes())),
        _ => {
            log("usage: qmail-checkpw --service (started by qmail-start)");
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
    let _ = writeln!(io::stderr(), "{}", wire::escape::visible(text.as_bytes()));
}
