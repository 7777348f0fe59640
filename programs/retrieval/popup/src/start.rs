//! Start-up of both faces.

use crate::classic::{self, Classic};
use crate::service::{self, Door, Service};
use control::Root;
use control::popup::Popup;
use ipc_async::service::{Lifeline, share};
use rustix::process::Signal;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;
use std::rc::Rc;
use sys::inherited::Inherited;
use sys::signal::Signals;

/// Temporary failure, as all of qmail says it.
const TEMPORARY: u8 = 111;

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "--service") {
        return match service_face(&mut args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                log(error);
                ExitCode::from(TEMPORARY)
            }
        };
    }
    let mut args = args.into_iter();
    let (Some(host), Some(program)) = (args.next(), args.next()) else {
        // As the classic program does: whoever waits for a greeting, a person or a client, learns why none comes.
        const USAGE: &str = "usage: qmail-popup HOST SUBPROG [ARGS]";
        let _ = io::stdout().write_all(&pop3::command::err(USAGE));
        log(USAGE);
        return ExitCode::FAILURE;
    };
    // A host that is no single line would break the greeting.
    let host = wire::escape::visible(host.as_bytes());
    let classic = Classic { host, program: program.into(), args: args.collect() };
    if let Err(error) = classic::on_standard_descriptors(&classic) {
        log(format_args!("qmail-popup: {error}"));
    }
    // As the classic program ends, whatever happened (qmail-family §1.2).
    ExitCode::FAILURE
}

/// Control files, descriptors, sandbox, then the first byte.
fn service_face(args: &mut Vec<OsString>) -> io::Result<()> {
    let root = Root::from_args(args).map_err(io::Error::other)?;
    let mut config = Popup::read(&root).map_err(io::Error::other)?;
    config.sessions_max = share(config.sessions_max, &std::env::var("QMAIL_WORKER").unwrap_or_default());
    service::mechanisms(&config)?;
    let mut inherited = Inherited::take()?;
    let lifeline = inherited.one("lifeline")?;
    let mut listeners = Vec::new();
    for (door, service) in [(Door::Pop3, "pop3"), (Door::Pop3s, "pop3s")] {
        for (line, fd) in inherited.all(&format!("listen:{service}:")) {
            listeners.push((door, fd, root.proxies(&format!("{service}:{line}")).map_err(io::Error::other)?));
        }
    }
    let run = inherited.one("run")?;
    // systemd sends SIGTERM to every process of a service.
    let signals = Signals::new(&[Signal::TERM])?;
    sandbox::enter_as("qmail-popup", root.path(), &[])?;
    let service = Service { config, listeners, run: Rc::new(run) };
    // The listening sockets are open: who connects from now on is served.
    inherited.ready()?;
    ipc_async::service::run(async move { service::serve(service, Lifeline::new(lifeline)?.or_on(&signals)?).await })
}

/// A line for the log; nobody reading it is no reason to stop.
pub(crate) fn log(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{}", wire::escape::visible(text.to_string().as_bytes()));
}
