//! Start-up, in the one order: arguments, control files, what must be open, sandbox, threads, first untrusted byte.

use crate::server::{Listeners, Server, Setup, log};
use accounts::Accounts;
use accounts::remote::Remote;
use control::Root;
use control::accounts::Store;
use rustix::fs::{Mode, OFlags};
use sandbox::Socket;
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
    let run = inherited.one("run")?;
    let (auth, admin) = (inherited.one("serve:auth")?, inherited.one("serve:admin-auth")?);
    let manage = inherited.one("serve:manage")?;
    let listeners = Listeners { auth: Some(auth), admin: Some(admin), manage: Some(manage), connected: Vec::new() };
    let mut server = prepare(root, run, listeners)?;
    inherited.ready()?;
    server.run(Some(&lifeline))
}

/// The system is down; whoever could start this as its role may say what an administrator may.
fn once_admin(root: Root) -> io::Result<()> {
    let mut inherited = Inherited::take()?;
    let (_, socket) = inherited.all("").into_iter().next().ok_or_else(|| io::Error::other("no socket in QMAIL_FDS"))?;
    // Nobody can be asked for anything: there are no sockets of others below this directory.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let nowhere = rustix::fs::open(root.lib(), flags, Mode::empty())?;
    prepare(root, nowhere, Listeners { connected: vec![Seqpacket::from_fd(socket)], ..Listeners::default() })?.run(None)
}

fn prepare(root: Root, run: OwnedFd, listeners: Listeners) -> io::Result<Server> {
    let ids = root.ids().map_err(io::Error::other)?;
    // Nobody but this role reads the hashes, whatever the umask was.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let run = Arc::new(run);
    let accounts = accounts(&root, &run, listeners.auth.is_some())?;
    sandbox::enter_as("qmail-auth", root.path(), &[])?;
    // SIGHUP asks to reread; every file is followed anyway, so it only must not end the process.
    sys::signal::Signals::new(&[rustix::process::Signal::HUP])?;
    // A hash takes some 20 MiB for 20 ms.
    sys::heap::give_back_large();
    accounts::password::warm().map_err(io::Error::other)?;
    Server::new(Setup { root, accounts, ids, run }, listeners)
}

/// Where control/accounts says. With the system down there is no qmail-authnet that could be asked.
fn accounts(root: &Root, run: &Arc<OwnedFd>, is_up: bool) -> io::Result<Accounts> {
    match Store::read(root).map_err(io::Error::other)? {
        Store::Sqlite => {
            let path = root.lib().join(DATABASE);
            Accounts::open(&path).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
        }
        Store::Postgres(_) if is_up => Ok(Accounts::elsewhere(Remote::new(Arc::clone(run), Socket::Accounts.path()))),
        Store::Postgres(postgres) => Err(io::Error::other(postgres.down())),
    }
}
