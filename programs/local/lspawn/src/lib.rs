//! qmail-lspawn: becomes a user and lets qmail-local deliver, or qmail-pop3d serve, as that user. Runs as root.
//!
//! It serves two clients on lspawn.sock, told apart by uid: qmail-send's jobs and qmail-auth's questions. It keeps warm workers
//! (`qmail-local --worker`, one user or one virtual domain each) so that most deliveries cost no fork.
//!
//! Guarantees: nothing runs as root or a service role; a virtual user's paths are made here from checked names; every piece of
//! work has a deadline and an answer; a worker that dies or misbehaves costs its own deliveries a deferral and nobody else
//! anything. It never parses mail, looks into a report, opens a database of accounts, loads NSS modules, touches the network or
//! starts a thread.
//!
//! What it starts, with descriptors named in QMAIL_FDS and QMAIL_ROOT and PATH as the whole environment:
//!
//! | program | descriptors |
//! |---|---|
//! | `qmail-local --worker [--base DIR]` | 3 `work` ([`ipc::worker`]); with `--base` a virtual domain's, confined to DIR |
//! | `qmail-local --once` | 3 `work`: one request that needs programs; not confined. With QMAILLOCAL, which that names, it runs the program in its place |
//! | `qmail-pop3d HOME/Maildir`, for a system user `qmail-pop3d Maildir` in his home | 0 and 1: the session's socket |
#![forbid(unsafe_code)]

mod claims;
mod dispatch;
pub mod events;
mod lmtp;
pub mod peers;
pub mod pool;
pub mod process;
mod requests;
pub mod service;
pub mod target;
pub mod task;

use std::ffi::OsString;
use std::process::ExitCode;

use control::Root;
use rustix::process::{Resource, Rlimit, Signal};
use sandbox::Socket;
use sys::inherited::Inherited;
use sys::signal::Signals;

use crate::service::{Service, log};

/// qmail's exit code for "temporary".
const TEMPORARY: u8 = 111;
/// Bodies of all deliveries under way, and two descriptors for each worker.
const FILES_MAX: u64 = 8192;

/// The program.
#[must_use]
pub fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            log(&format!("fatal: {text}"));
            ExitCode::from(TEMPORARY)
        }
    }
}

fn serve() -> Result<(), String> {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_none_or(|first| first != "--service") {
        return Err("qmail-lspawn is started by qmail-start; use qmail start".to_owned());
    }
    let root = Root::from_args(&mut args).map_err(|error| error.to_string())?;
    let text = |error: std::io::Error| error.to_string();
    let mut inherited = Inherited::take().map_err(text)?;
    let lifeline = inherited.one("lifeline").map_err(text)?;
    let listener = inherited.one(&format!("serve:{}", Socket::Lspawn.name())).map_err(text)?;
    let mut service = Service::new(root, inherited.one("run").map_err(text)?)?;
    let signals = Signals::new(&[Signal::HUP, Signal::TERM, Signal::INT]).map_err(text)?;
    raise_file_limit();
    inherited.ready().map_err(text)?;
    service.run(listener, &lifeline, &signals).map_err(text)
}

/// As far as the hard limit lets it; with fewer descriptors, fewer deliveries run at once.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(FILES_MAX, |maximum| maximum.min(FILES_MAX));
    if limit.current.is_some_and(|current| current < wanted) {
        let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    }
}
