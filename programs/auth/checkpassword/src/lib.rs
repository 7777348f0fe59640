//! checkpassword: lets programs of others log in our users (<http://cr.yp.to/checkpwd/interface.html>).
//!
//! `checkpassword [--root DIR] [--dovecot] PROG [ARGS…]`, run by root: reads `login NUL password NUL …` from descriptor 3, asks qmail-auth,
//! and runs PROG as the owner of the mailbox, in its home, with USER, HOME and SHELL. Exits 1 if the login is refused, 2 if it is used
//! wrongly, 111 if nobody can say now. TCPREMOTEIP says for whom, so that `control/authlimits` counts.
//!
//! With `--dovecot` PROG stays root, and is told uid and gid in `userdb_uid` and `userdb_gid` instead: what Dovecot runs here reports to
//! Dovecot, which a process of the user's could be made to do in its place.
//!
//! qmail-auth says whose the login is and no more; uid and home come from root's own files here (users/domains, users/assign, passwd). Never
//! runs PROG as root (but for Dovecot) or as a service role; never runs it before the answer.
#![forbid(unsafe_code)]

mod owner;

use crate::owner::Owner;
use control::Root;
use ipc::auth::{Answer, Request};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use rustix::fs::{Mode, OFlags};
use sandbox::Socket;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;
use sys::{Received, Seqpacket};
use zeroize::Zeroizing;

const REFUSED: u8 = 1;
const MISUSED: u8 = 2;
const TEMPORARY: u8 = 111;
/// As the interface has it.
const CREDENTIALS: i32 = 3;
/// The interface asks for 512 at least; a longer one is nobody's.
const LEN_MAX: u64 = 4096;
/// As long as qmail-smtpd and qmail-popup wait.
const DEADLINE: Duration = Duration::from_secs(30);
/// A refusal is said later, as qmail-auth asks for, but never later than this.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The name of this service to qmail-auth.
const SERVICE: &str = "checkpassword";

/// Why PROG is not run.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused,
    Misused(&'static str),
    Temporary(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Temporary(error.to_string())
    }
}

/// What the arguments say.
struct Arguments {
    root: Root,
    for_dovecot: bool,
    program: OsString,
    args: Vec<OsString>,
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    // Before anything is opened: the number may be one of ours afterwards.
    let credentials = sys::numbered::readable(CREDENTIALS);
    let failure = match run(credentials) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let (code, text) = match failure {
        Failure::Refused => (REFUSED, None),
        Failure::Misused(text) => (MISUSED, Some(text.to_owned())),
        Failure::Temporary(text) => (TEMPORARY, Some(text)),
    };
    if let Some(text) = text {
        let _ = writeln!(io::stderr(), "checkpassword: {}", wire::escape::visible(text.as_bytes()));
    }
    ExitCode::from(code)
}

fn run(credentials: Option<OwnedFd>) -> Result<std::convert::Infallible, Failure> {
    let arguments = arguments(std::env::args_os().skip(1).collect())?;
    let credentials = credentials.ok_or(Failure::Misused("descriptor 3 must carry the login"))?;
    let (login, password) = read(credentials)?;
    let user = ask(&arguments.root, &login, &password)?;
    drop(password);
    let owner = Owner::find(&arguments.root, &user)?;
    Err(become_program(arguments, &owner))
}

/// Options stand before PROG; what follows is PROG's own.
fn arguments(args: Vec<OsString>) -> Result<Arguments, Failure> {
    const USAGE: Failure = Failure::Misused("usage: checkpassword [--root DIR] [--dovecot] PROG [ARGS]");
    let (mut args, mut root, mut for_dovecot) = (args.into_iter(), None, false);
    let program = loop {
        match args.next() {
            Some(arg) if arg == "--dovecot" => for_dovecot = true,
            Some(arg) if arg == "--root" => root = Some(args.next().ok_or(USAGE)?),
            Some(arg) if !arg.as_encoded_bytes().starts_with(b"--") => break arg,
            _ => return Err(USAGE),
        }
    };
    let root = root.map_or_else(Root::from_env, |root| Root::new(Path::new(&root)));
    let root = root.map_err(|error| Failure::Temporary(error.to_string()))?;
    Ok(Arguments { root, for_dovecot, program, args: args.collect() })
}

type Secret = Zeroizing<Vec<u8>>;

fn read(credentials: OwnedFd) -> Result<(Vec<u8>, Secret), Failure> {
    let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(LEN_MAX).unwrap_or(0)));
    File::from(credentials).take(LEN_MAX.saturating_add(1)).read_to_end(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > LEN_MAX {
        return Err(Failure::Refused);
    }
    let mut words = text.split(|b| *b == 0);
    match (words.next(), words.next(), words.next()) {
        // The third part is there, be it empty, only if a NUL ends the second.
        (Some(login), Some(password), Some(_)) => Ok((login.to_vec(), Zeroizing::new(password.to_vec()))),
        _ => Err(Failure::Misused("descriptor 3 carries no `login NUL password NUL`")),
    }
}

/// Asks qmail-auth; gives the address of the account, or a system user's with this host's name.
fn ask(root: &Root, login: &[u8], password: &[u8]) -> Result<Vec<u8>, Failure> {
    let run = rustix::fs::open(root.run(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let run = run.map_err(|errno| Failure::Temporary(format!("{}: {errno}", root.run().display())))?;
    let socket = Seqpacket::connect(run.as_fd(), Socket::Auth.path());
    let socket = socket.map_err(|error| Failure::Temporary(format!("qmail-auth does not answer: {error}")))?;
    socket.set_deadline(DEADLINE)?;
    let remote = std::env::var("TCPREMOTEIP").ok().and_then(|ip| ip.parse::<IpAddr>().ok());
    let (service, login, password) = (SERVICE.into(), login.into(), password.into());
    let request = Request::Login { id: 1, service, login, password, remote }.encode_bounded();
    let datagram = Zeroizing::new(request.map_err(io::Error::from)?);
    socket.send(&datagram)?;
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    let Received::Datagram(len, _) = socket.recv(&mut buf)? else {
        return Err(Failure::Temporary("qmail-auth has closed the connection".to_owned()));
    };
    match Answer::decode(buf.get(..len).unwrap_or_default()).map_err(io::Error::from)? {
        Answer::LoggedIn { id: 1, user } => Ok(user.0),
        Answer::Refused { id: 1, pause_s } => {
            std::thread::sleep(Duration::from_secs(pause_s.into()).min(PAUSE_MAX));
            Err(Failure::Refused)
        }
        Answer::Unavailable { id: 1, text } => Err(Failure::Temporary(String::from_utf8_lossy(&text).into_owned())),
        _ => Err(Failure::Temporary("qmail-auth answered something else".to_owned())),
    }
}

/// Runs PROG in the place of this process; why it could not.
fn become_program(arguments: Arguments, owner: &Owner) -> Failure {
    let mut command = Command::new(&arguments.program);
    command.args(arguments.args).env("USER", owner.user()).env("HOME", owner.home()).env("SHELL", owner.shell());
    let (uid, gid) = (owner.id().uid, owner.id().gid);
    if arguments.for_dovecot {
        command.env("userdb_uid", uid.to_string()).env("userdb_gid", gid.to_string());
        let extra = std::env::var("EXTRA").unwrap_or_default();
        command.env("EXTRA", format!("{extra} userdb_uid userdb_gid").trim());
    } else {
        if let Err(failure) = owner.prepare_home() {
            return failure;
        }
        // Entered as the user; supplementary groups are dropped with the uid.
        command.current_dir(owner.home());
        if rustix::process::geteuid().is_root() {
            command.gid(gid).uid(uid);
        }
    }
    let error = command.exec();
    Failure::Temporary(format!("{}: {error}", arguments.program.display()))
}
