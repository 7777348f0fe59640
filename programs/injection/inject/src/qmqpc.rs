//! qmail-qmqpc: a message on descriptor 0, then its envelope on descriptor 1, to a host that runs qmail-qmqpd (qmail-qmqpc(8)).
//!
//! The interface of qmail-queue for a host without a queue of its own. The servers of `control/qmqpservers` are tried in order until one can be
//! connected to; what that one says counts, since a second one could not know what the first one did. It says nothing; its exit
//! code tells what happened, and where the caller opened descriptor 4 or 6 as a pipe a text tells why (exit 82).

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use control::{Qmqpc, Root};
use ipc::Refusal;
use qmtp::answer::{Answer, Answers, Letter};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, socket_with, sockopt};
use sandbox::Role;
use wire::netstring::encode;

use crate::envelope::Envelope;
use crate::held::Held;
use crate::outgoing::deadline_after;
use crate::queue::{Failure, read_all, read_envelope, tell};

/// For a connection, as ever.
const CONNECT_DEADLINE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// For any step of the conversation, as ever.
const TALK_DEADLINE: Duration = Duration::from_secs(60);

/// Runs the program; gives its exit code.
#[must_use]
pub fn run() -> u8 {
    if [0, 1].into_iter().any(sys::standard::was_closed) {
        return Failure::Read.exit_code();
    }
    let report_fds: Vec<OwnedFd> = [4, 6].into_iter().filter_map(sys::numbered::writable_pipe).collect();
    match send() {
        Ok(()) => 0,
        Err(Failure::Refused(refusal)) if !refusal.text.is_empty() && tell(&report_fds, &refusal) => 82,
        // No nearer than that, as ever.
        Err(Failure::Refused(refusal)) => {
            if refusal.is_permanent {
                31
            } else {
                71
            }
        }
        Err(failure) => failure.exit_code(),
    }
}

fn send() -> Result<(), Failure> {
    let root = Root::from_env().map_err(|_| Failure::Config)?;
    let control = Qmqpc::read(&root).map_err(|_| Failure::Config)?;
    let mut held = Held::new();
    // Root's goes on as who talks to other hosts.
    let own = root.role_for_root(Role::Remote.name()).map_err(|_| Failure::Config)?;
    sandbox::leave_root(own.map(|id| sys::spawn::Ids { uid: id.uid, gid: id.gid })).map_err(|_| Failure::Internal)?;
    sandbox::enter(&sandbox::table::TOOL_CLIENT, root.path(), &[]).map_err(|_| Failure::Internal)?;
    let deadline = deadline_after(crate::queue::READ_DEADLINE);
    let (message_fd, envelope_fd) = (io::stdin(), io::stdout());
    read_all(message_fd.as_fd(), deadline, |chunk| held.push(chunk).map(|()| true).map_err(|_| Failure::Write))?;
    let envelope = read_envelope(envelope_fd.as_fd(), deadline)?;
    let mut server = connect_first(&control)?;
    let answer = converse(&mut server, &held, &envelope).map_err(|_| Failure::ServerBroke)?;
    match answer.letter {
        Letter::Accepted => Ok(()),
        Letter::Temporary => Err(Failure::Refused(refusal(false, &answer.text))),
        Letter::Permanent => Err(Failure::Refused(refusal(true, &answer.text))),
    }
}

fn refusal(is_permanent: bool, text: &[u8]) -> Refusal {
    let text = text.iter().map(|b| if matches!(b, b' '..=b'~') { *b } else { b'?' }).collect();
    Refusal { is_permanent, text }
}

/// A connection to the first server that takes one; else why the last one did not.
fn connect_first(control: &Qmqpc) -> Result<TcpStream, Failure> {
    let mut failure = Failure::Config;
    for server in &control.servers {
        let source = if server.is_ipv4() { control.outgoing_v4 } else { control.outgoing_v6 };
        match open(*server, source) {
            Ok(stream) => return Ok(stream),
            Err(why) => failure = why,
        }
    }
    Err(failure)
}

fn open(server: SocketAddr, source: Option<IpAddr>) -> Result<TcpStream, Failure> {
    let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP)).map_err(|_| Failure::Connect)?;
    if let Some(source) = source {
        bind(&socket, &SocketAddr::new(source, 0)).map_err(|_| Failure::Connect)?;
    }
    match connect(&socket, &server) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => {
            let wait = || poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&CONNECT_DEADLINE));
            if rustix::io::retry_on_intr(wait).map_err(|_| Failure::Connect)? == 0 {
                return Err(Failure::ServerLate);
            }
            match sockopt::socket_error(&socket) {
                Ok(Ok(())) => {}
                Ok(Err(Errno::TIMEDOUT)) => return Err(Failure::ServerLate),
                Ok(Err(_)) | Err(_) => return Err(Failure::ServerRefused),
            }
        }
        Err(Errno::TIMEDOUT) => return Err(Failure::ServerLate),
        Err(_) => return Err(Failure::ServerRefused),
    }
    let stream = TcpStream::from(socket);
    let ready = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(TALK_DEADLINE)));
    ready.and_then(|()| stream.set_write_timeout(Some(TALK_DEADLINE))).map_err(|_| Failure::Connect)?;
    Ok(stream)
}

/// The message, and the answer.
fn converse(server: &mut TcpStream, held: &Held, envelope: &Envelope) -> io::Result<Answer> {
    let mut behind = b",".to_vec();
    encode(envelope.sender.as_bytes(), &mut behind);
    envelope.recipients.iter().for_each(|recipient| encode(recipient.as_bytes(), &mut behind));
    let text_head = format!("{}:", held.len());
    let len = held.len().saturating_add(text_head.len() as u64).saturating_add(behind.len() as u64);
    behind.push(b',');
    // A server may give up half-way; then what it said counts, if it said anything.
    let sent = send_all(server, format!("{len}:{text_head}").as_bytes(), held, &behind);
    let mut answers = Answers::default();
    let mut buf = [0; 4096];
    loop {
        let len = match server.read(&mut buf) {
            Ok(0) => return Err(sent.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match answers.next(&mut buf.get(..len).unwrap_or_default()) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn send_all(server: &mut TcpStream, head: &[u8], held: &Held, behind: &[u8]) -> io::Result<()> {
    server.write_all(head)?;
    held.for_each(|part| server.write_all(part))?;
    server.write_all(behind)
}
