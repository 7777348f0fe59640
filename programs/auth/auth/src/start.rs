//! Start-up, in the one order: arguments, control files, what must be open, sandbox, threads, first untrusted byte.

use crate::server::{Listeners, Server, Setup, log};
use accounts::Accounts;
use control::Root;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use sys::Seqpacket;
use sys::inherited::Inherited;

/// The database below var/lib/qmail.
const DATABASE: &str = "accounts.sqlite";
/// Temporary failure, as all of qmail says it.
const TEMPORARY: u8 = 111;
const USAGE: u8 = 100;

/// The program. `--service`: started by qmail-start. `--once-admin`: one administrator's connection as the first inherited descriptor.
#[must_use]
pub fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let root = match Root::from_args(&mut args) {
        Ok(root) => root,
        Err(error) => return failed(&error.to_string()),
    };
    let served = match args.first().and_then(|arg| arg.to_str()) {
        Some("--service") if args.len() == 1 => service(root),
        Some("--once-admin") if args.len() == 1 => once_admin(root),
        _ => {
            log("usage: qmail-auth --service (started by qmail-start)");
            return ExitCode::from(USAGE);
        }
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(text: &str) -> ExitCode {
    log(text);
    ExitCode::from(TEMPORARY)
}

fn service(root: Root) -> io::Result<()> {
    let mut inherited = Inherited::take()?;
    let lifeline = inherited.one("lifeline")?;
    let listeners = Listeners {
        auth: Some(inherited.one("serve:auth")?),
        admin: Some(inherited.one("serve:admin-auth")?),
        connected: Vec::new(),
    };
    serve(root, listeners, Some(&lifeline))
}

/// The system is down; whoever could start this as its role may say what an administrator may.
fn once_admin(root: Root) -> io::Result<()> {
    let mut inherited = Inherited::take()?;
    let (_, socket) = inherited.all("").into_iter().next().ok_or_else(|| io::Error::other("no socket in QMAIL_FDS"))?;
    serve(root, Listeners { connected: vec![Seqpacket::from_fd(socket)], ..Listeners::default() }, None)
}

fn serve(root: Root, listeners: Listeners, lifeline: Option<&OwnedFd>) -> io::Result<()> {
    let ids = root.ids().map_err(io::Error::other)?;
    let run = open_run(&root, listeners.connected.is_empty())?;
    // Nobody but this role reads the hashes, whatever the umask was.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let path = root.lib().join(DATABASE);
    let accounts = Accounts::open(&path).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    if let Some(confinement) = sandbox::process("qmail-auth").and_then(|row| row.confinement) {
        sandbox::enter(&confinement, root.path(), &[])?;
    }
    // SIGHUP asks to reread; every file is followed anyway, so it only must not end the process.
    let _hangup = sys::signal::Signals::new(&[rustix::process::Signal::HUP])?;
    accounts::password::warm().map_err(io::Error::other)?;
    Server::new(Setup { root, accounts, ids, run: Arc::new(run) }, listeners)?.run(lifeline)
}

/// The directory of the sockets. With the system down it may not be there, and nobody is asked then.
fn open_run(root: &Root, needed: bool) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(root.run(), flags, Mode::empty()) {
        Ok(fd) => Ok(fd),
        Err(_) if !needed => Ok(rustix::fs::open(root.path(), flags, Mode::empty())?),
        Err(errno) => Err(io::Error::other(format!("{}: {errno}", root.run().display()))),
    }
}
