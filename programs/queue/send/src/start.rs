//! The start of the process, in the one order: arguments, control files, what is needed opened, sandbox, threads, first byte.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use control::Root;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::Signal;
use sandbox::Socket;
use sys::inherited::Inherited;
use sys::signal::Signals;

use crate::engine::{Engine, Identity};
use crate::log::LogWriter;
use crate::service::{Doors, Service, now};
use crate::settings::Settings;

/// qmail's exit code for "temporary".
const TEMPORARY: u8 = 111;
/// In the spool while no qmail-send runs and no message waits: whoever removes the system asks for it, since nobody else can read the spool.
const EMPTY: &str = "empty";

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("alert: cannot start: {text}");
            ExitCode::from(TEMPORARY)
        }
    }
}

fn start() -> Result<(), String> {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_none_or(|first| first != "--service") {
        return Err("qmail-send is started by qmail-start; use qmail start".to_owned());
    }
    let root = Root::from_args(&mut args).map_err(|error| error.to_string())?;
    let text = |error: io::Error| error.to_string();
    let mut inherited = Inherited::take().map_err(text)?;
    let doors = Doors {
        lifeline: inherited.one("lifeline").map_err(text)?,
        run: inherited.one("run").map_err(text)?,
        queue: inherited.one(&format!("serve:{}", Socket::Queue.name())).map_err(text)?,
        inject: inherited.one(&format!("serve:{}", Socket::Inject.name())).map_err(text)?,
        admin: inherited.one(&format!("serve:{}", Socket::AdminSend.name())).map_err(text)?,
    };
    let settings = Settings::read(&root).map_err(|error| error.to_string())?;
    let ids = root.ids().map_err(|error| error.to_string())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let spool_dir = rustix::fs::open(root.spool(), flags, Mode::empty());
    let spool_dir = spool_dir.map_err(|errno| format!("{}: {errno}", root.spool().display()))?;
    let signals = Signals::new(&[Signal::HUP, Signal::ALARM, Signal::TERM, Signal::INT]).map_err(text)?;
    let notes = spool_dir.try_clone().map_err(text)?;
    sandbox::enter_as("qmail-send", root.path(), &[]).map_err(text)?;
    let (spool, living) = spool::Spool::open(spool_dir, spool::Options::default()).map_err(|error| error.to_string())?;
    unmark_empty(&notes).map_err(|error| format!("{}/{EMPTY}: {error}", root.spool().display()))?;
    let identity = Identity { uid: rustix::process::geteuid().as_raw(), pid: std::process::id() };
    let engine = Engine::new(spool, living, settings, identity, now());
    let mut service = Service::new(engine, doors, ids).map_err(text)?;
    inherited.ready().map_err(text)?;
    service.run(Some(&signals), &mut LogWriter::stderr()).map_err(text)?;
    if service.is_empty() {
        // Without it the queue counts as one that may have messages.
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let _ = rustix::fs::openat(&notes, EMPTY, flags, Mode::from_raw_mode(0o600));
    }
    Ok(())
}

/// Nothing is taken in before this is durable.
fn unmark_empty(spool: &OwnedFd) -> io::Result<()> {
    match rustix::fs::unlinkat(spool, EMPTY, AtFlags::empty()) {
        Ok(()) => Ok(rustix::fs::fsync(spool)?),
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
