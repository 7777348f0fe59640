//! The classic face: one session on standard input and output, for tcpserver, inetd and systemd's `Accept=yes`.
//!
//! tcp-environ(5) says who the client is, else the socket on standard input (systemd, inetd); RELAYCLIENT, DATABYTES and QMAILQUEUE are
//! obeyed. Exit code 0 after QUIT, 1 otherwise. Under inetd standard error is the client: then there is no log.
//! Messages go to the program that QMAILQUEUE names, else to qmail-send. Whether a recipient exists is asked of qmail-auth; a caller
//! who may not ask it (its socket is for root and the service roles), or who replaces the queue and has no running system, has rcpthosts and the
//! virtual domains alone, as with the classic program.

use crate::config::config;
use crate::program::{Handover, QueueProgram};
use crate::session::{recipient_answer, recipient_question};
use crate::{Traffic, end_line, log_line, now};
use control::{ControlError, Networks, Root};
use ipc::auth;
use ipc::queue::Answer;
use ipc::submission::Submission;
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{Shutdown, SocketAddrAny};
use sandbox::Socket;
use smtp::server::{
    Action, Actions, Connection, DsnOffer, End, Envelope, HeaderAnswer, Input, LoginAnswer, Logins, NO_CONTROLS, QueueAnswer,
    RecipientAnswer, SenderAnswer, Session, StartTls, TlsAnswer,
};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use sys::{Received, Seqpacket};
use wire::Address;

/// What is read in one go.
const READ_LEN: usize = 64 * 1024;
/// For the directory's answer.
const DIRECTORY_DEADLINE: Duration = Duration::from_secs(5);
/// How long a client that sends on may take to read the last reply.
const LINGER_MAX: Duration = Duration::from_secs(2);
/// What is written in one go: PIPE_BUF, for which a pipe that is ready has room.
const WRITE_LEN: usize = 4096;
/// For the one line of a session that cannot begin.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(60);

/// The whole program.
pub(crate) fn run(root: Result<Root, ControlError>) -> ExitCode {
    if is_client(rustix::stdio::stderr()) {
        crate::LOG_IS_CLIENT.store(true, Ordering::Relaxed);
    }
    let mut talk = match start(root) {
        Ok(talk) => talk,
        Err(error) => {
            log_line(format_args!("qmail-smtpd: {error}"));
            let _ = send(format!("{NO_CONTROLS}\r\n").as_bytes(), REFUSAL_DEADLINE);
            return ExitCode::FAILURE;
        }
    };
    match talk.converse() {
        End::Quit => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Control files, then what must be open, then the sandbox.
fn start(root: Result<Root, ControlError>) -> io::Result<Talk> {
    let root = root.map_err(io::Error::other)?;
    let control = control::Smtpd::read(&root).map_err(io::Error::other)?;
    let run = rustix::fs::open(root.run(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok();
    let program = std::env::var_os("QMAILQUEUE").filter(|program| !program.is_empty());
    let directory = Directory::open(run.as_ref(), may_call(&root, Socket::Auth), program.is_some());
    let alone = matches!(directory, Directory::RcptHosts);
    let virtual_domains = if alone { virtual_domains(&root) } else { Vec::new() };
    let socket = if may_call(&root, Socket::Queue) { Socket::Queue } else { Socket::Inject };
    let peer = connection(&control.relayclients);
    let queue = match program {
        Some(program) => Queue::Program(QueueProgram::start(&program, root.path())?),
        None => Queue::Send { run, socket },
    };
    sandbox::enter(&sandbox::table::TOOL, root.path(), &[])?;
    let mut actions = Actions::default();
    let mut config = config(control, virtual_domains)?;
    if matches!(queue, Queue::Program(_)) {
        // The interface of qmail-queue has no place for what is asked for.
        config.dsn = DsnOffer::Nobody;
    }
    let session = Session::new(Arc::new(config), peer, now(), &mut actions);
    Ok(Talk { session, actions, queue, directory, message: None, output: Vec::new(), traffic: Traffic::default() })
}

/// The domains of users/domains, as far as this caller may read them.
fn virtual_domains(root: &Root) -> Vec<Vec<u8>> {
    let domains = root.virtual_domains().unwrap_or_default();
    domains.sorted().into_iter().map(|(name, _)| name.as_bytes().to_vec()).collect()
}

fn variable(name: &str) -> Option<Box<[u8]>> {
    std::env::var_os(name).map(|value| value.into_vec().into())
}

/// A variable of tcp-environ(5). A name or address of no bytes is none, and would leave a hole in the Received field.
fn fact(name: &str) -> Option<Box<[u8]>> {
    variable(name).filter(|value| !value.is_empty())
}

fn connection(relayclients: &Networks) -> Connection {
    let ip = |name: &str| std::env::var(name).ok().and_then(|ip| ip.parse::<IpAddr>().ok());
    let stdin = rustix::stdio::stdin();
    let end = |address: Option<SocketAddrAny>| SocketAddr::try_from(address?).ok().map(|end| end.ip());
    let remote = ip("TCPREMOTEIP").or_else(|| end(rustix::net::getpeername(stdin).ok()?));
    let local = ip("TCPLOCALIP").or_else(|| end(rustix::net::getsockname(stdin).ok()));
    let (remote, local) = (remote.map(|ip| ip.to_canonical()), local.map(|ip| ip.to_canonical()));
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string().into_bytes().into());
    let is_relay = remote.is_some_and(|ip| relayclients.contains(ip));
    // Leading digits, as with control files; a variable without them says nothing.
    let databytes = variable("DATABYTES").and_then(|value| control::read::int_of(&value));
    let unknown = || b"unknown".as_slice().into();
    Connection {
        is_lmtp: false,
        remote_ip: fact("TCPREMOTEIP").or_else(|| text(remote)).unwrap_or_else(unknown),
        remote_host: fact("TCPREMOTEHOST"),
        remote_info: fact("TCPREMOTEINFO"),
        local_ip: local,
        local_host: ["TCPLOCALHOST", "TCPLOCALIP"].into_iter().find_map(fact).or_else(|| text(local)).or_else(|| Some(unknown())),
        relay_client: variable("RELAYCLIENT").or_else(|| is_relay.then(Box::default)),
        // qmail-auth may not answer the caller, and what kind of connection it is only the caller knows.
        logins: Logins::NotHere,
        starttls: StartTls::NotHere,
        tls: None,
        is_submission: false,
        xclient: false,
        databytes,
    }
}

/// Is it the same file as standard input or output?
fn is_client(fd: BorrowedFd<'_>) -> bool {
    let file = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let this = file(fd);
    this.is_some() && [rustix::stdio::stdin(), rustix::stdio::stdout()].into_iter().any(|client| file(client) == this)
}

/// Would the server of this socket listen to this process? Without etc/qmail/ids the socket itself will show.
fn may_call(root: &Root, socket: Socket) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    root.ids().map_or(true, |ids| sandbox::may_call(socket, uid, |role| ids.uid_of(role.name())))
}

struct Talk {
    session: Session,
    actions: Actions,
    queue: Queue,
    directory: Directory,
    message: Option<Outgoing>,
    output: Vec<u8>,
    traffic: Traffic,
}

impl Talk {
    fn converse(&mut self) -> End {
        let mut buf = vec![0; READ_LEN];
        let end = loop {
            while !self.actions.0.is_empty() {
                self.carry_out();
            }
            let output = std::mem::take(&mut self.output);
            let is_sent = send(&output, self.session.write_deadline()).is_ok();
            self.traffic.sent = self.traffic.sent.saturating_add(if is_sent { output.len() as u64 } else { 0 });
            match self.session.end() {
                Some(end) => break end,
                None if !is_sent => self.session.step(now(), Input::Closed, &mut self.actions),
                None => self.read(&mut buf),
            }
        };
        log_line(format_args!("qmail-smtpd[{}]: {}", std::process::id(), end_line(&self.session, now().boot, self.traffic)));
        if end != End::Gone {
            linger(&mut buf);
        }
        end
    }

    fn read(&mut self, buf: &mut [u8]) {
        let left = self.session.deadline().saturating_sub(now().boot);
        let input = match wait(rustix::stdio::stdin(), PollFlags::IN, &timespec(left)) {
            Ok(true) => match rustix::io::read(rustix::stdio::stdin(), &mut *buf) {
                Ok(len @ 1..) => {
                    self.traffic.taken = self.traffic.taken.saturating_add(len as u64);
                    Input::Bytes(buf.get(..len).unwrap_or_default())
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return,
                Ok(0) | Err(_) => Input::Closed,
            },
            Ok(false) => Input::Deadline,
            Err(_) => Input::Closed,
        };
        self.session.step(now(), input, &mut self.actions);
    }

    fn carry_out(&mut self) {
        for action in std::mem::take(&mut self.actions.0) {
            match action {
                Action::Reply(bytes) => self.output.extend_from_slice(&bytes),
                Action::CheckRecipient { question, recipient, size } => {
                    let answer = self.directory.check(recipient, size);
                    self.session.step(now(), Input::Recipient { question, answer }, &mut self.actions);
                }
                // Not offered, so it does not come.
                Action::LogIn { .. } | Action::SaslStart { .. } | Action::SaslStep { .. } => {
                    self.session.step(now(), Input::Login(LoginAnswer::Temporary), &mut self.actions);
                }
                // Not offered: descriptors 0 and 1 belong to whoever started this program.
                Action::StartTls { .. } => self.session.step(now(), Input::Tls(TlsAnswer::Unavailable), &mut self.actions),
                // There is no login, so these do not come either.
                Action::CheckSender { .. } => {
                    self.session.step(now(), Input::Sender(SenderAnswer::Temporary), &mut self.actions);
                }
                Action::JudgeHeader { .. } => {
                    self.session.step(now(), Input::Header(HeaderAnswer::Temporary), &mut self.actions);
                }
                // XCLIENT is not offered here, and no header is judged.
                Action::Admit { .. } | Action::Priority(_) => {}
                Action::Begin(envelope) => self.message = self.queue.begin(*envelope),
                Action::Body(text) => self.message.iter_mut().for_each(|message| message.put(&text)),
                Action::Commit => {
                    let answer = self.queue.finish(self.message.take());
                    self.session.step(now(), Input::Queue(answer), &mut self.actions);
                }
                Action::Abandon => self.queue.give_up(self.message.take()),
                Action::Log(line) => log_line(format_args!("qmail-smtpd[{}]: {line}", std::process::id())),
                Action::Close => {}
            }
        }
    }
}

/// Who is asked about recipients.
enum Directory {
    Auth {
        socket: Seqpacket,
        id: u64,
    },
    /// Nobody: the answer is always that it is not ours, so that rcpthosts and RELAYCLIENT decide.
    RcptHosts,
    /// The system is down: temporary.
    Down,
}

impl Directory {
    fn open(run: Option<&OwnedFd>, may_call: bool, has_program: bool) -> Self {
        if !may_call {
            return Self::RcptHosts;
        }
        let connected = run.map_or(Err(io::ErrorKind::NotFound.into()), |run| {
            let socket = Seqpacket::connect(run.as_fd(), Socket::Auth.path())?;
            socket.set_deadline(DIRECTORY_DEADLINE)?;
            Ok::<_, io::Error>(socket)
        });
        match connected.map_err(|error| error.kind()) {
            Ok(socket) => Self::Auth { socket, id: 0 },
            Err(io::ErrorKind::PermissionDenied) => Self::RcptHosts,
            Err(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) if has_program => Self::RcptHosts,
            Err(_) => Self::Down,
        }
    }

    fn check(&mut self, address: Address, size: u64) -> RecipientAnswer {
        let Self::Auth { socket, id } = self else {
            return if matches!(self, Self::Down) { RecipientAnswer::Temporary } else { RecipientAnswer::NotOurs };
        };
        *id = id.wrapping_add(1);
        let answer = ask(socket, *id, address, size);
        // After a lost or late answer nobody knows which question the next one is for.
        answer.unwrap_or_else(|_| {
            *self = Self::Down;
            RecipientAnswer::Temporary
        })
    }
}

fn ask(socket: &Seqpacket, id: u64, address: Address, size: u64) -> io::Result<RecipientAnswer> {
    socket.send(&recipient_question(id, address, size).encode())?;
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    let Received::Datagram(len, _) = socket.recv(&mut buf)? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
    match auth::Answer::decode(buf.get(..len).unwrap_or_default())? {
        auth::Answer::Recipient { id: answered, verdict } if answered == id => Ok(recipient_answer(&verdict)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Where messages go.
enum Queue {
    Program(QueueProgram),
    /// qmail-send, below the run directory if there is one, by the socket that this caller may use.
    Send {
        run: Option<OwnedFd>,
        socket: Socket,
    },
}

enum Outgoing {
    Program(Handover),
    Send { submission: Submission, is_broken: bool },
}

impl Outgoing {
    fn put(&mut self, text: &[u8]) {
        match self {
            Self::Program(handover) => handover.put(text),
            Self::Send { submission, is_broken } => *is_broken |= !*is_broken && submission.data(text).is_err(),
        }
    }
}

impl Queue {
    /// `None` if nobody takes it; [`Queue::finish`] says so at the end of the text.
    fn begin(&self, envelope: Envelope) -> Option<Outgoing> {
        match self {
            Self::Program(program) => program.begin(envelope).ok().map(Outgoing::Program),
            Self::Send { run, socket } => {
                let submission = submit(run.as_ref()?.as_fd(), *socket, envelope).ok()?;
                Some(Outgoing::Send { submission, is_broken: false })
            }
        }
    }

    fn finish(&self, message: Option<Outgoing>) -> QueueAnswer {
        match (self, message) {
            (Self::Program(program), Some(Outgoing::Program(handover))) => program.finish(handover),
            (Self::Send { .. }, Some(Outgoing::Send { mut submission, is_broken: false })) => match submission.commit() {
                Ok(Answer::Accepted { id, pid }) => QueueAnswer::Accepted { id: Some(id), qp: pid },
                Ok(Answer::Temporary { text }) => QueueAnswer::Temporary(text.0),
                Ok(Answer::Permanent { text }) => QueueAnswer::Permanent(text.0),
                Err(_) => QueueAnswer::Temporary(b"4.3.0 the queue did not answer".to_vec()),
            },
            _ => QueueAnswer::Temporary(b"4.3.0 the queue cannot be reached".to_vec()),
        }
    }

    fn give_up(&self, message: Option<Outgoing>) {
        if let (Self::Program(program), Some(Outgoing::Program(handover))) = (self, message) {
            program.give_up(handover);
        }
    }
}

fn submit(run: BorrowedFd<'_>, socket: Socket, envelope: Envelope) -> io::Result<Submission> {
    let mut submission = match Submission::connect(run, socket.path()) {
        // The directory of the service roles is closed to others, whatever ids says.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Submission::connect(run, Socket::Inject.path()),
        other => other,
    }?;
    crate::envelope::items(envelope).try_for_each(|item| submission.item(&item))?;
    Ok(submission)
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

/// Reads on without looking what a client on a socket sends behind the end: to close over unread input would take the last reply
/// back (RFC 1122 §4.2.2.13).
fn linger(buf: &mut [u8]) {
    let stdin = rustix::stdio::stdin();
    let until = now().boot.saturating_add(LINGER_MAX);
    let is_readable = |time: Duration| wait(stdin, PollFlags::IN, &timespec(time)).unwrap_or(false);
    if !is_readable(Duration::ZERO) || rustix::net::shutdown(rustix::stdio::stdout(), Shutdown::Write).is_err() {
        return;
    }
    while is_readable(until.saturating_sub(now().boot))
        && matches!(rustix::io::read(stdin, &mut *buf), Ok(1..))
        && now().boot < until
    {}
}

/// Is the descriptor ready before `deadline`?
fn wait(fd: BorrowedFd<'_>, flags: PollFlags, deadline: &Timespec) -> io::Result<bool> {
    Ok(rustix::io::retry_on_intr(|| poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(deadline)))? > 0)
}

fn send(bytes: &[u8], deadline: Duration) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        if !wait(rustix::stdio::stdout(), PollFlags::OUT, &timespec(deadline))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // What is ready takes this much; more would wait in write(2), where no deadline is.
        let piece = rest.get(..WRITE_LEN).unwrap_or(rest);
        match rustix::io::write(rustix::stdio::stdout(), piece) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
