//! qmail-qmqpc: a message on descriptor 0, then its envelope on descriptor 1, to a host that runs qmail-qmqpd (qmail-qmqpc(8)).
//!
//! The interface of qmail-queue for a host without a queue of its own. The servers of `control/qmqpservers` are tried in order until one
//! answers; a connection that breaks before is as good as none, as ever, though one that broke behind the whole message may have brought it.
//! It says nothing; its exit code tells what happened, and where the caller opened descriptor 4 or 6 as a pipe a text tells why (exit 82).
//! Guarantees: 0 only where a server to which the whole message went has said `K`; an end within [`MESSAGE_S`] of the first connection, and
//! the connecting.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use control::{Qmqpc, Root};
use ipc::Refusal;
use qmtp::answer::{Answer, Answers, Letter};
use qmtp::exchange::MESSAGE_S;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, socket_with, sockopt};
use sandbox::Role;
use wire::netstring::encode;

use crate::envelope::Envelope;
use crate::held::Held;
use crate::outgoing::deadline_after;
use crate::queue::{Failure, read_all, read_envelope, report_fds, tell};

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
    let report_fds = report_fds();
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
    let until = deadline_after(Duration::from_secs(MESSAGE_S));
    let mut failure = Failure::Config;
    for server in &control.servers {
        match ask(*server, &control, (&held, &envelope), until) {
            Ok(answer) => return verdict(&answer),
            Err(why) => failure = why,
        }
    }
    Err(failure)
}

fn verdict(answer: &Answer) -> Result<(), Failure> {
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

/// What a server says to the message; else why it said nothing, and the next one has its turn.
fn ask(server: SocketAddr, control: &Qmqpc, message: (&Held, &Envelope), until: Instant) -> Result<Answer, Failure> {
    let source = if server.is_ipv4() { control.outgoing_v4 } else { control.outgoing_v6 };
    let stream = open(server, source)?;
    converse(Timed { stream, until }, message.0, message.1).map_err(|_| Failure::ServerBroke)
}

/// A connection on which no step takes longer than [`TALK_DEADLINE`], and all of them end in time.
struct Timed {
    stream: TcpStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now()).min(TALK_DEADLINE);
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl io::Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buf)
    }
}

impl io::Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
    stream.set_nonblocking(false).map_err(|_| Failure::Connect)?;
    Ok(stream)
}

/// The message, and the answer.
fn converse(mut server: Timed, held: &Held, envelope: &Envelope) -> io::Result<Answer> {
    let mut behind = b",".to_vec();
    encode(envelope.sender.as_bytes(), &mut behind);
    envelope.recipients.iter().for_each(|recipient| encode(recipient.as_bytes(), &mut behind));
    let text_head = format!("{}:", held.len());
    let len = held.len().saturating_add(text_head.len() as u64).saturating_add(behind.len() as u64);
    behind.push(b',');
    // A server may give up half-way; then what it said counts, if it said anything but yes.
    let sent = send_all(&mut server, format!("{len}:{text_head}").as_bytes(), held, &behind);
    let mut answers = Answers::default();
    let mut buf = [0; 4096];
    loop {
        let len = match server.read(&mut buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A yes to the whole message is one from its letter on: sent once more, the message would come twice.
            Ok(0) | Err(_) if sent.is_ok() && answers.letter() == Some(Letter::Accepted) => {
                return Ok(Answer { letter: Letter::Accepted, text: Vec::new() });
            }
            Ok(0) => return Err(sent.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
            Ok(len) => len,
            Err(error) => return Err(error),
        };
        match answers.next(&mut buf.get(..len).unwrap_or_default()) {
            Ok(Some(answer)) => {
                return match sent {
                    Err(error) if answer.letter == Letter::Accepted => Err(error),
                    _ => Ok(answer),
                };
            }
            Ok(None) => {}
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn send_all(server: &mut Timed, head: &[u8], held: &Held, behind: &[u8]) -> io::Result<()> {
    server.write_all(head)?;
    held.for_each(|part| server.write_all(part))?;
    server.write_all(behind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use wire::Address;

    fn against(serve: impl FnOnce(TcpStream) + Send + 'static, len: usize, wait: Duration) -> io::Result<Answer> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = std::thread::spawn(move || serve(listener.accept().unwrap().0));
        let mut held = Held::new();
        held.push(&vec![b'x'; len]).unwrap();
        let envelope = Envelope { sender: Address::null(), recipients: vec![Address::new(b"a@b").unwrap()] };
        let answer = converse(Timed { stream, until: deadline_after(wait) }, &held, &envelope);
        server.join().unwrap();
        answer
    }

    /// Less than a step may take lies between two bytes, and all the same there is an end.
    #[test]
    fn a_server_that_takes_its_time_ends_in_time() {
        let drips = |mut stream: TcpStream| {
            let answer = [&b"1000:Z"[..], &[b'x'; 999]].concat();
            for byte in answer {
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let error = against(drips, 5, Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        // One that reads nothing.
        let reads_nothing = |stream: TcpStream| {
            // The client's end comes behind bytes that are not read, so that is waited for which cannot be sent any more.
            let mut stream = stream;
            while stream.write_all(b"1").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        assert!(against(reads_nothing, 32 << 20, Duration::from_millis(200)).is_err());
    }

    /// Who has not got all of the message cannot have taken it; that he refuses it counts.
    #[test]
    fn a_yes_to_half_a_message_is_none() {
        for (said, expected) in
            [(&b"3:Kok,"[..], None), (b"3:Dno,", Some(Letter::Permanent)), (b"3:Zno,", Some(Letter::Temporary))]
        {
            let leaves = move |mut stream: TcpStream| {
                stream.read_exact(&mut [0; 100]).unwrap();
                stream.write_all(said).unwrap();
            };
            let answer = against(leaves, 32 << 20, Duration::from_secs(60));
            assert_eq!(answer.ok().map(|answer| answer.letter), expected, "{}", said.escape_ascii());
        }
    }

    /// A server that dies with its answer half said has taken the message.
    #[test]
    fn a_yes_to_the_whole_message_counts_from_its_letter_on() {
        for (said, expected) in [("5:Kok,", Some(Letter::Accepted)), ("9:K", Some(Letter::Accepted)), ("9:", None), ("9:Z", None)]
        {
            let leaves = move |mut stream: TcpStream| {
                stream.read_exact(&mut [0; b"17:5:xxxxx,0:,3:a@b,,".len()]).unwrap();
                stream.write_all(said.as_bytes()).unwrap();
            };
            let answer = against(leaves, 5, Duration::from_secs(60));
            assert_eq!(answer.ok().map(|answer| answer.letter), expected, "{said}");
        }
    }
}
