//! qmail-keys: the one process that holds private keys. It hands out certificates, signs handshakes, and does for qmail-acme what needs a
//! key (`acme`): nothing else.
//!
//! A key has one purpose and signs only inputs of that purpose's form ([`form`]), for the uids that the process table lets call, at a
//! bounded rate. So a network process that is taken over can pass for this server as long as it is taken over, and can neither carry a key
//! away nor get a signature that means anything elsewhere.
//! Never: talks to the network, reads mail, answers with a key. Runs as `qmailk`.
#![forbid(unsafe_code)]

mod acme;
pub mod form;
pub mod server;
pub mod store;

use control::Root;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use sys::inherited::Inherited;

/// Temporary failure, as all of qmail says it.
const TEMPORARY: u8 = 111;
const USAGE: u8 = 100;

/// `qmail-keys --service`, started by qmail-start.
#[must_use]
pub fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let root = match Root::from_args(&mut args) {
        Ok(root) => root,
        Err(error) => return failed(&error.to_string()),
    };
    if args != ["--service"] {
        log("usage: qmail-keys --service (started by qmail-start)");
        return ExitCode::from(USAGE);
    }
    match service(&root) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(text: &str) -> ExitCode {
    log(text);
    ExitCode::from(TEMPORARY)
}

/// Control files, descriptors, sandbox, keys, threads, then the first question.
fn service(root: &Root) -> io::Result<()> {
    let mut inherited = Inherited::take()?;
    let (lifeline, listener) = (inherited.one("lifeline")?, inherited.one("serve:keys")?);
    let ids = root.ids().map_err(io::Error::other)?;
    sandbox::enter_as("qmail-keys", root.path(), &[])?;
    let signals = sys::signal::Signals::new(&[rustix::process::Signal::HUP])?;
    let server = Arc::new(server::Server::new(root.clone(), ids));
    inherited.ready()?;
    server::run(&server, &listener, &lifeline, &signals)
}

/// A line for the log; nobody reading it is no reason to stop.
pub(crate) fn log(text: &str) {
    let _ = writeln!(io::stderr(), "{}", wire::escape::visible(text.as_bytes()));
}
