//! Talking to qmail-send, qmail-remote, qmail-auth and qmail-acme on their admin sockets, and starting a qmail-auth when the system is down.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use control::Root;
use control::accounts::Store;
use ipc::admin::{
    AccountAnswer, AccountRequest, CertAnswer, CertRequest, QueueAnswer, QueueRequest, RemoteAnswer, RemoteRequest,
};
use ipc::auth;
use ipc::field::Bytes;
use ipc::{DATAGRAM_LEN_MAX, Message};
use rustix::fs::{Mode, OFlags};
use sandbox::{Role, Socket};
use sys::spawn::{Child, Spawn};
use sys::{Received, Seqpacket};
use wire::{Address, Secret};

use crate::Failure;

/// Longer than any honest answer takes: a new password waits for its hash, a long list for the disk.
const DEADLINE: Duration = Duration::from_secs(60);

/// In whose name qmail-auth is asked, where it is not root's, and his password.
static ADMINISTRATOR: OnceLock<(Address, Bytes)> = OnceLock::new();

/// From now on qmail-auth is asked as this account. Its password is the next line of standard input, which is no terminal: a password that
/// is typed would be shown.
///
/// # Errors
/// There is no password.
pub fn act_as(address: &Address) -> Result<(), Failure> {
    let stdin = io::stdin();
    if io::IsTerminal::is_terminal(&stdin) {
        return Err(Failure::usage(
            "the password of the administrator is the first line of standard input: give it by a pipe or a file".to_owned(),
        ));
    }
    let password = crate::account::password(&mut stdin.lock())?;
    let _ = ADMINISTRATOR.set((address.clone(), password));
    Ok(())
}

/// Is it an administrator of a domain in whose name qmail-auth is asked?
#[must_use]
pub fn is_acting_as() -> bool {
    ADMINISTRATOR.get().is_some()
}

/// qmail-acme says at once that it is there: qmail-start may have been started before it was configured.
const FIRST_SIGN: Duration = Duration::from_secs(20);

/// A connection to one of them.
pub struct Admin {
    socket: Seqpacket,
    name: &'static str,
    /// A qmail-auth of our own, which ends with the connection.
    _own: Option<Child>,
}

impl Admin {
    /// To the running qmail-send.
    ///
    /// # Errors
    /// It does not run (exit 111), or the caller may not.
    pub fn send(root: &Root) -> Result<Self, Failure> {
        let socket = connect(root, Socket::AdminSend)?.ok_or_else(|| Failure::temporary("not running".to_owned()))?;
        Ok(Self { socket, name: "qmail-send", _own: None })
    }

    /// To the running qmail-remote, or who runs in its place.
    ///
    /// # Errors
    /// It does not run (exit 111), or the caller may not.
    pub fn remote(root: &Root) -> Result<Self, Failure> {
        let socket = connect(root, Socket::AdminRemote)?.ok_or_else(|| Failure::temporary("not running".to_owned()))?;
        Ok(Self { socket, name: "qmail-remote", _own: None })
    }

    /// To the running qmail-acme.
    ///
    /// # Errors
    /// It does not run (exit 111), or the caller may not.
    pub fn acme(root: &Root) -> Result<Self, Failure> {
        let advice = if Self::send(root).is_ok() {
            "qmail-acme does not run: it needs control/acme and a line `acme ADDRESS:PORT` in control/listen; then send SIGHUP to qmail-start"
        } else {
            "not running: start the system, since the authority asks it (`qmail start`)"
        };
        // qmail-start makes all sockets, and nobody answers on those of programs that it does not start.
        let control = root.control_file(control::acme::FILE).exists();
        let has_listener = root.listen().is_ok_and(|all| all.iter().any(|listener| listener.service == control::Service::Acme));
        let socket = if control && has_listener { connect(root, Socket::AdminAcme)? } else { None };
        let socket = socket.ok_or_else(|| Failure::temporary(advice.to_owned()))?;
        socket.set_deadline(FIRST_SIGN).map_err(|error| crate::io_failure(&root.run(), &error))?;
        Ok(Self { socket, name: "qmail-acme", _own: None })
    }

    /// To the running qmail-auth, or to one started for this.
    ///
    /// # Errors
    /// The caller may not, or it cannot be started.
    pub fn auth(root: &Root) -> Result<Self, Failure> {
        if let Some((address, password)) = ADMINISTRATOR.get() {
            return Self::manage(root, address, password);
        }
        match connect(root, Socket::AdminAuth)? {
            Some(socket) => Ok(Self { socket, name: "qmail-auth", _own: None }),
            None => Self::own_auth(root),
        }
    }

    /// As the administrator of a domain.
    fn manage(root: &Root, address: &Address, password: &Bytes) -> Result<Self, Failure> {
        let down = || Failure::temporary("not running; without the running system only root can do this".to_owned());
        let admin = Self { socket: connect(root, Socket::Manage)?.ok_or_else(down)?, name: "qmail-auth", _own: None };
        let (service, login, password) = ("admin".into(), address.as_bytes().into(), Secret::new(password.0.clone()));
        let login = auth::Request::Login { id: 1, service, login, password, remote: None };
        let mut said = Ok(());
        admin.ask_each(&login, |answer| {
            said = match answer {
                auth::Answer::LoggedIn { .. } => Ok(()),
                auth::Answer::Refused { pause_s, .. } => {
                    std::thread::sleep(Duration::from_secs(pause_s.into()));
                    Err(Failure::permanent(format!("{address}: wrong name or password, or too many of them")))
                }
                auth::Answer::Unavailable { text, .. } => Err(Failure::temporary(wire::escape::visible(&text))),
                _ => Err(Failure::temporary("qmail-auth is of another version than this program".to_owned())),
            };
            Ok(true)
        })?;
        said.map(|()| admin)
    }

    fn own_auth(root: &Root) -> Result<Self, Failure> {
        match Store::read(root).map_err(|error| Failure::temporary(error.to_string()))? {
            Store::Sqlite => {}
            Store::Postgres(postgres) => return Err(Failure::temporary(postgres.down())),
        }
        let program = control::program::sibling("qmail-auth");
        let failed = |error: io::Error| Failure::temporary(format!("cannot start {}: {error}", program.display()));
        let ids = root.ids().map_err(|error| Failure::temporary(error.to_string()))?;
        let (socket, theirs) = Seqpacket::pair().map_err(failed)?;
        let stderr = io::stderr();
        let mut spawn = Spawn::new(&program).arg("--once-admin").env(control::root::ROOT_VARIABLE, root.path());
        if rustix::process::geteuid().is_root() {
            let role = Role::Auth.name();
            let id = ids
                .get(role)
                .ok_or_else(|| Failure::temporary(format!("etc/qmail/ids has no line for {role}; run qmail setup")))?;
            spawn = spawn.ids(sys::spawn::Ids { uid: id.uid, gid: id.gid });
        }
        let spawn = spawn.dir(std::path::Path::new("/")).stderr(stderr.as_fd()).fd("admin", theirs.as_fd());
        let child = spawn.dies_with_parent().start().map_err(failed)?;
        socket.set_deadline(DEADLINE).map_err(failed)?;
        Ok(Self { socket, name: "qmail-auth", _own: Some(child) })
    }

    /// Asks qmail-send; the answers up to the last.
    ///
    /// # Errors
    /// What it says, or it is gone.
    pub fn queue(&self, request: &QueueRequest) -> Result<Vec<QueueAnswer>, Failure> {
        self.ask(request, |answer| match answer {
            QueueAnswer::Rows { last, .. } | QueueAnswer::Message { last, .. } => Ok(*last),
            QueueAnswer::Stats { .. } | QueueAnswer::Ok { .. } => Ok(true),
            QueueAnswer::Kept { .. } | QueueAnswer::KeptRows { .. } | QueueAnswer::Body { .. } => Ok(true),
            QueueAnswer::Failed { text } => Err(Failure::permanent(wire::escape::visible(text))),
            QueueAnswer::NotNow { text } => Err(Failure::temporary(wire::escape::visible(text))),
        })
    }

    /// Asks qmail-remote; the answers up to the last.
    ///
    /// # Errors
    /// It is gone.
    pub fn unreached(&self, request: &RemoteRequest) -> Result<Vec<RemoteAnswer>, Failure> {
        self.ask(request, |answer| Ok(!matches!(answer, RemoteAnswer::Unreached { last: false, .. })))
    }

    /// Says a part of something longer to qmail-send.
    ///
    /// # Errors
    /// It is gone.
    pub fn say(&self, datagram: &[u8]) -> Result<(), Failure> {
        self.socket.send(datagram).map_err(|error| Failure::temporary(format!("{}: {error}", self.name)))
    }

    /// One answer of qmail-send, whatever it is, and the descriptor beside it.
    ///
    /// # Errors
    /// It is gone.
    pub fn heard(&self) -> Result<(QueueAnswer, Option<OwnedFd>), Failure> {
        let gone = |why: &str| Failure::temporary(format!("{}: {why}", self.name));
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        match self.socket.recv_with_fd(&mut buf) {
            Ok(Received::Datagram(len, fd)) => {
                let answer = QueueAnswer::decode(buf.get(..len).unwrap_or_default());
                Ok((answer.map_err(|_| gone("is of another version than this program"))?, fd))
            }
            Ok(Received::End) => Err(gone("closed the connection; its log says why")),
            Err(error) => Err(gone(&error.to_string())),
        }
    }

    /// Asks qmail-auth; the answers up to the last.
    ///
    /// # Errors
    /// What it says, or it is gone.
    pub fn account(&self, request: &AccountRequest) -> Result<Vec<AccountAnswer>, Failure> {
        self.ask(request, account_is_last)
    }

    /// As [`Admin::account`] for long lists: each answer is handed on as it comes.
    ///
    /// # Errors
    /// As [`Admin::account`], or what `take` says.
    pub fn each(
        &self,
        request: &AccountRequest,
        mut take: impl FnMut(&AccountAnswer) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.ask_each(request, |answer| {
            take(&answer)?;
            account_is_last(&answer)
        })
    }

    /// Asks qmail-acme; what goes on is handed on as it comes. The last answer.
    ///
    /// # Errors
    /// It is gone; what it says itself is in the answer.
    pub fn certificate(&self, request: &CertRequest, mut progress: impl FnMut(&str)) -> Result<CertAnswer, Failure> {
        let mut last = None;
        self.ask_each(request, |answer| {
            Ok(match answer {
                CertAnswer::Progress { text } => {
                    self.socket.set_deadline(DEADLINE).map_err(|error| Failure::temporary(error.to_string()))?;
                    progress(&wire::escape::visible(&text));
                    false
                }
                answer => {
                    last = Some(answer);
                    true
                }
            })
        })?;
        last.ok_or_else(|| Failure::temporary(format!("{}: no answer", self.name)))
    }

    fn ask<Q: Message, A: Message>(&self, request: &Q, is_last: impl Fn(&A) -> Result<bool, Failure>) -> Result<Vec<A>, Failure> {
        let mut answers = Vec::new();
        self.ask_each(request, |answer| {
            let last = is_last(&answer)?;
            answers.push(answer);
            Ok(last)
        })?;
        Ok(answers)
    }

    /// `take` says whether it was the last.
    fn ask_each<Q: Message, A: Message>(
        &self,
        request: &Q,
        mut take: impl FnMut(A) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let gone = |why: &str| Failure::temporary(format!("{}: {why}", self.name));
        let request = request.encode_bounded().map_err(|_| Failure::usage("too long for one request".to_owned()))?;
        self.socket.send(&request).map_err(|error| gone(&error.to_string()))?;
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        loop {
            let datagram = match self.socket.recv(&mut buf) {
                Ok(Received::Datagram(len, _)) => buf.get(..len).unwrap_or_default(),
                Ok(Received::End) => return Err(gone("closed the connection; its log says why")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(gone("does not answer; if it was configured since the start, send SIGHUP to qmail-start"));
                }
                Err(error) => return Err(gone(&error.to_string())),
            };
            let answer = A::decode(datagram).map_err(|_| gone("is of another version than this program"))?;
            if take(answer)? {
                return Ok(());
            }
        }
    }
}

fn account_is_last(answer: &AccountAnswer) -> Result<bool, Failure> {
    match answer {
        AccountAnswer::Users { last, .. } | AccountAnswer::Aliases { last, .. } | AccountAnswer::Accounts { last, .. } => {
            Ok(*last)
        }
        // The rest of the domains is asked for.
        AccountAnswer::Ok {}
        | AccountAnswer::AppPassword { .. }
        | AccountAnswer::AppPasswords { .. }
        | AccountAnswer::Domains { .. } => Ok(true),
        AccountAnswer::Added { .. } | AccountAnswer::Hashed { .. } | AccountAnswer::Usage { .. } => Ok(true),
        AccountAnswer::Failed { text, temporary: true } => Err(Failure::temporary(wire::escape::visible(text))),
        AccountAnswer::Failed { text, temporary: false } => Err(Failure::permanent(wire::escape::visible(text))),
    }
}

/// `None`: nobody serves it.
fn connect(root: &Root, socket: Socket) -> Result<Option<Seqpacket>, Failure> {
    let Some(run) = open_run(root)? else { return Ok(None) };
    let path = root.run().join(socket.path());
    match Seqpacket::connect(run.as_fd(), socket.path()) {
        Ok(connection) => {
            connection.set_deadline(DEADLINE).map_err(|error| crate::io_failure(&path, &error))?;
            Ok(Some(connection))
        }
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
            io::ErrorKind::PermissionDenied => {
                Err(Failure::permanent(format!("{}: only root, or who started the system, may do this", path.display())))
            }
            _ => Err(crate::io_failure(&path, &error)),
        },
    }
}

fn open_run(root: &Root) -> Result<Option<OwnedFd>, Failure> {
    match rustix::fs::open(root.run(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(errno) => Err(crate::io_failure(&root.run(), &errno.into())),
    }
}
