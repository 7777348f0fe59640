//! The classic face: `qmail-remote HOST SENDER RECIPIENT…` with the message on standard input (qmail-remote(8)).
//!
//! For programs in the place of qmail-remote, which end by running it, for scripts and for tests. It reads the control files itself,
//! finds the route as qmail-send does (lmtproutes, authsenders, qmtproutes, smtproutes, the mail hosts of HOST), and prints what [`crate::results`]
//! makes of the judgements; the rest is the service's: the same machine, terms and texts. DNS is asked of the system's qmail-resolve where it
//! runs and the caller may ask it, else of one that is started for this. Started by root it becomes qmailr, for good, and whoever starts it, it is
//! confined as the service is, before the first byte of the message or of a server is looked at. Exit code 0 whatever is reported, 111 if nobody takes the report.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use control::{ControlError, LmtpPlace, LmtpRoutes, Root};
use ipc::job::{FLAG_SMTPUTF8, Route};
use ipc_async::{Client, Packets, service};
use rustix::fs::{FileType, Mode, OFlags};
use sandbox::{Role, Socket};
use sys::Seqpacket;
use sys::spawn::{Child, Spawn};
use wire::{Address, Domain};

use crate::hosts;
use crate::job::Remote;
use crate::report::{self, Judgement};
use crate::results::results;
use crate::service::{RESOLVE_DEADLINE, courier_asking, trusting};

const IMPROPER: &str = "I (qmail-remote) was invoked improperly. (#5.3.5)\n";
const NO_CONTROLS: &str = "Unable to read control files. (#4.3.0)\n";
const NO_START: &str = "Unable to start. (#4.3.0)\n";

/// The whole program; `args` are those behind `--root DIR`.
pub(crate) fn run(root: Result<Root, ControlError>, args: &[OsString]) -> ExitCode {
    let report = match carry(root, args) {
        Ok(judgements) => results(&judgements),
        // Nothing is known of any recipient.
        Err(judgement) => results(&[judgement]),
    };
    let mut out = io::stdout();
    match out.write_all(&report).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(111),
    }
}

fn carry(root: Result<Root, ControlError>, args: &[OsString]) -> Result<Vec<Judgement>, Judgement> {
    let asked = Asked::new(args).ok_or_else(|| Judgement::failure(IMPROPER))?;
    let root = root.map_err(|error| no_controls(&error))?;
    let control = control::Remote::read(&root).map_err(|error| no_controls(&error))?;
    let route = route(&root, &asked).map_err(|error| no_controls(&error))??;
    let no_start = |error: io::Error| {
        let _ = writeln!(io::stderr(), "qmail-remote: {error}");
        Judgement::deferral(NO_START)
    };
    let place = Place::open(&root, &control, &route).map_err(no_start)?;
    let message = message().map_err(|_| Judgement::deferral(report::UNREADABLE))?;
    work(&root, control, asked, route, place, message).map_err(no_start)
}

/// The report says it in the classic words, which name no file; whoever repairs it reads standard error.
fn no_controls(error: &ControlError) -> Judgement {
    let _ = writeln!(io::stderr(), "qmail-remote: {error}");
    Judgement::deferral(NO_CONTROLS)
}

/// The command line.
struct Asked {
    host: Vec<u8>,
    sender: Address,
    recipients: Vec<Address>,
}

impl Asked {
    /// `None`: too few arguments, or one that is no address.
    fn new(args: &[OsString]) -> Option<Self> {
        let [host, sender, recipients @ ..] = args else { return None };
        let address = |text: &OsString| Address::new(text.as_bytes()).ok();
        let recipients: Vec<Address> = recipients.iter().map(address).collect::<Option<_>>()?;
        let asked = Self { host: host.as_bytes().to_vec(), sender: address(sender)?, recipients };
        (!asked.recipients.is_empty()).then_some(asked)
    }

    /// Nobody says whether the message was submitted so: addresses that need it do.
    fn flags(&self) -> u32 {
        let all = std::iter::once(&self.sender).chain(&self.recipients);
        if all.into_iter().any(|address| !address.as_bytes().is_ascii()) { FLAG_SMTPUTF8 } else { 0 }
    }
}

/// As qmail-send finds it. `Err` within: the host is none.
fn route(root: &Root, asked: &Asked) -> Result<Result<Route, Judgement>, ControlError> {
    let host = asked.host.as_slice();
    match LmtpRoutes::read(root)?.lookup(host) {
        Some(LmtpPlace::Host { host, port }) => return Ok(Ok(Route::Lmtp { host: host.clone().into(), port: *port })),
        Some(LmtpPlace::Socket(path)) => return Ok(Ok(Route::LmtpSocket { path: path.clone().into() })),
        None => {}
    }
    let (mut senders, mut routes) = (control::send::watched_senders(root), control::send::watched_routes(root));
    let by_sender = senders.get()?.lookup(&asked.sender);
    if by_sender.is_none()
        && let Some((host, port)) = control::send::watched_qmtproutes(root).get()?.lookup_qmtp(host)
    {
        return Ok(Ok(Route::Qmtp { host: host.into(), port }));
    }
    let found = match by_sender {
        Some(route) => Some(route),
        None => routes.get()?.lookup(host),
    };
    if let Some(route) = found.as_ref().filter(|route| !route.relay.is_empty()) {
        return Ok(Ok(Route::Relay { host: route.relay.clone().into(), port: route.port, login: route.login.clone() }));
    }
    let Ok(domain) = Domain::new(host) else {
        return Ok(Err(Judgement::failure(report::no_such_host(&wire::escape::readable(host)))));
    };
    Ok(Ok(match found {
        // The host itself at another port.
        Some(route) => Route::Relay { host: domain.as_bytes().into(), port: route.port, login: route.login },
        None => Route::Mx { domain },
    }))
}

/// Standard input, from where it stands to its end: as it is if that is a whole file, else as a copy.
fn message() -> io::Result<(OwnedFd, u64)> {
    if sys::standard::was_closed(0) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let stat = rustix::fs::fstat(&stdin)?;
    let is_whole = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && rustix::fs::tell(&stdin) == Ok(0);
    if is_whole {
        return Ok((stdin, u64::try_from(stat.st_size).unwrap_or_default()));
    }
    let mut copy = sys::memfd::nameless()?;
    let size = io::copy(&mut File::from(stdin), &mut copy)?;
    copy.rewind()?;
    Ok((copy.into(), size))
}

/// What must be open, of this host.
struct Place {
    interfaces: Vec<std::net::IpAddr>,
    tls: tls::client::Client,
    resolver: Resolver,
}

impl Place {
    /// Opens it; after that this process is no longer root's.
    fn open(root: &Root, control: &control::Remote, route: &Route) -> io::Result<Self> {
        let interfaces = sys::interfaces::addresses()?;
        let run = rustix::fs::open(root.run(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok();
        let mut tls = trusting(control)?;
        if let Some(run) = &run {
            tls = tls.with_keys(Arc::new(run.try_clone()?), Socket::Keys.path());
        }
        let own = root.role_for_root(Role::Remote.name()).map_err(io::Error::other)?;
        let own = own.map(|id| sys::spawn::Ids { uid: id.uid, gid: id.gid });
        let uid = own.map_or_else(|| rustix::process::geteuid().as_raw(), |ids| ids.uid);
        let resolver = if hosts::literal_relay(route).is_some() { Resolver::Nobody } else { Resolver::find(root, run, uid)? };
        sandbox::leave_root(own)?;
        Ok(Self { interfaces, tls, resolver })
    }
}

/// The sandbox, then the work.
fn work(
    root: &Root,
    control: control::Remote,
    asked: Asked,
    route: Route,
    Place { interfaces, tls, resolver }: Place,
    (body, size): (OwnedFd, u64),
) -> io::Result<Vec<Judgement>> {
    sandbox::enter_as("qmail-remote", root.path(), &[])?;
    let mut judgements = Vec::new();
    service::run(async {
        let (resolve, _own) = resolver.client()?;
        let courier = courier_asking(control, tls, interfaces, resolve);
        let flags = asked.flags();
        let Asked { sender, recipients, .. } = asked;
        // Who runs this has expanded a VERP sender, as the classic qmail-send does, or wants it as it is (qmail-family §3.6).
        let (options, expands_sender, body) = (None, false, Some(body));
        judgements = courier.carry(Remote { sender, recipients, route, flags, size, options, expands_sender, body }).await;
        courier.pool.close();
        // The connection says QUIT.
        tokio::task::yield_now().await;
        Ok(())
    })?;
    Ok(judgements)
}

/// Who is asked for hosts.
enum Resolver {
    /// The route names an address.
    Nobody,
    /// The system's.
    System(OwnedFd),
    /// One of our own, which ends with the connection.
    Own(Child, Seqpacket),
}

impl Resolver {
    /// `uid`: who will ask.
    fn find(root: &Root, run: Option<OwnedFd>, uid: u32) -> io::Result<Self> {
        let ids = root.ids().ok();
        let may_ask = sandbox::may_call(Socket::Resolve, uid, |role| ids.as_ref()?.uid_of(role.name()));
        // One that is there answers connections; what a system left that was stopped does not.
        let is_there = |run: &OwnedFd| Seqpacket::connect_nonblocking(run.as_fd(), Socket::Resolve.path()).is_ok();
        match run.filter(|run| may_ask && is_there(run)) {
            Some(run) => Ok(Self::System(run)),
            None => Self::own(root),
        }
    }

    fn own(root: &Root) -> io::Result<Self> {
        let (ours, theirs) = Seqpacket::pair()?;
        let program = control::program::sibling("qmail-resolve");
        let stderr = io::stderr();
        let mut spawn = Spawn::new(&program).arg("--once").env(control::root::ROOT_VARIABLE, root.path());
        if rustix::process::geteuid().is_root() {
            let name = Role::Resolve.name();
            let id = root.ids().ok().and_then(|ids| ids.get(name));
            let id = id.ok_or_else(|| io::Error::other(format!("etc/qmail/ids has no line for {name}")))?;
            spawn = spawn.ids(sys::spawn::Ids { uid: id.uid, gid: id.gid });
        }
        let spawn = spawn.dir(Path::new("/")).stderr(stderr.as_fd()).fd("ask", theirs.as_fd()).dies_with_parent();
        Ok(Self::Own(spawn.start()?, ours))
    }

    /// In the runtime.
    fn client(self) -> io::Result<(Client<ipc::resolve::Answer>, Option<Child>)> {
        Ok(match self {
            Self::System(run) => (Client::new(Rc::new(run), Socket::Resolve.path(), RESOLVE_DEADLINE), None),
            Self::Own(child, socket) => (Client::over(Packets::new(socket)?, RESOLVE_DEADLINE), Some(child)),
            // What ends at once asks nobody.
            Self::Nobody => (Client::over(Packets::new(Seqpacket::pair()?.0)?, RESOLVE_DEADLINE), None),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(args: &[&str]) -> Option<Asked> {
        Asked::new(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn arguments() {
        for args in [&[][..], &["h"], &["h", "s@x"]] {
            assert!(asked(args).is_none(), "{args:?}");
        }
        let found = asked(&["h.example", "", "a@b", "c@d"]).unwrap();
        assert_eq!((found.recipients.len(), found.flags()), (2, 0));
        assert_eq!(asked(&["h", "", "\u{e9}@b"]).unwrap().flags(), FLAG_SMTPUTF8);
    }

    #[test]
    fn routes_are_found_as_qmail_send_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        for (name, text) in [
            ("smtproutes", "a.example:relay.example:2525\nb.example:\n.c.example::26\nl.example:other\n"),
            ("authsenders", "joe@x:auth.example:587|u|p\n"),
            ("qmtproutes", "q.example:relay.example\n"),
            ("lmtproutes", "l.example:unix:/run/lmtp\nm.example:store.example:24\n"),
        ] {
            std::fs::write(root.control_file(name), text).unwrap();
        }
        let found = |host: &str, sender: &str| route(&root, &asked(&[host, sender, "r@x"]).unwrap()).unwrap();
        let relay = |host: &str, port| Route::Relay { host: host.into(), port, login: None };
        assert_eq!(found("A.example", ""), Ok(relay("relay.example", 2525)));
        assert_eq!(found("b.example", ""), Ok(Route::Mx { domain: Domain::new(b"b.example").unwrap() }));
        assert_eq!(found("x.c.example", ""), Ok(relay("x.c.example", 26)));
        assert_eq!(found("l.example", "joe@x"), Ok(Route::LmtpSocket { path: "/run/lmtp".into() }));
        assert_eq!(found("q.example", ""), Ok(Route::Qmtp { host: "relay.example".into(), port: 209 }));
        assert!(matches!(found("q.example", "joe@x"), Ok(Route::Relay { .. })));
        assert_eq!(found("m.example", ""), Ok(Route::Lmtp { host: "store.example".into(), port: 24 }));
        assert!(matches!(found("a.example", "joe@x"), Ok(Route::Relay { port: 587, login: Some(_), .. })));
        assert!(found("", "").is_err());
    }
}
