//! Messages on their way to a program in the place of qmail-queue, which qmail-hook runs (QMAILQUEUE of a listener or a rule).
//!
//! The program is started when the message is complete or its first [`HELD_LEN_MAX`] bytes are here; so a client that types slowly to say
//! little holds none. A client who types slowly to say much holds one for [`TEXT_DEADLINE`] at most, and one address some of those that there
//! are ([`Places`]), so that the others are served. Guarantees: accepted only when all of the message and its envelope could be written and the
//! program ended with 0 (promise 1; that it read them is its own word, as ever: what fits in the pipes may lie there unread); without
//! that, temporary but for the codes of the interface that are permanent. A message that is given up ends the program, which finds an
//! envelope without an end.

use ipc::Message as _;
use ipc::field::Bytes;
use ipc::hook::{Answer, Request};
use ipc::queue_program;
use ipc_async::Packets;
use ipc_async::service::share;
use reception::admission::{Admission, Place};
use rustix::pipe::{PipeFlags, pipe_with};
use smtp::server::{Envelope, QueueAnswer};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use sys::spawn::Ended;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep, timeout};

/// What is held before the program is started.
const HELD_LEN_MAX: usize = 32 * 1024;
/// For the program to take a piece of the message.
const WRITE_DEADLINE: Duration = Duration::from_secs(300);
/// For qmail-hook to take a question.
pub(crate) const CONNECT_DEADLINE: Duration = Duration::from_secs(60);
/// Messages that are with programs at once, for all workers; qmail-hook has places left for programs that answer at once.
const MESSAGES_MAX: usize = ipc::hook::PROCESSES_MAX / 4 * 3;
/// Messages of one address whose clients may not relay, and questions of one address.
const PER_ADDRESS_MAX: usize = 40;
/// How often a place is looked for.
const PLACE_PAUSE: Duration = Duration::from_millis(100);
/// For the text to come, from the start of its program on.
const TEXT_DEADLINE: Duration = Duration::from_secs(3600);
/// For the program to end behind the envelope; as for a commit.
const END_DEADLINE: Duration = Duration::from_secs(300);

/// A message. Dropped before [`Elsewhere::commit`] it is abandoned.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    places: Rc<Places>,
    client: Client,
    /// `None`: too much to be handed on.
    request: Option<Request>,
    envelope: Envelope,
    held: Vec<u8>,
    program: Option<Program>,
    is_broken: bool,
}

/// Whose message it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    /// He may relay: his address has no bound of its own.
    pub(crate) is_trusted: bool,
}

/// The way to qmail-hook, and the share of its places that the clients of a worker have: there each client can hold so many that others
/// have none, and nobody knows there who he is.
#[derive(Debug)]
pub(crate) struct Places {
    run: Rc<OwnedFd>,
    messages: Rc<Admission>,
    questions: Rc<Admission>,
}

impl Places {
    /// Those of worker `NUMBER/COUNT`.
    pub(crate) fn new(run: Rc<OwnedFd>, worker: &str) -> Self {
        let part = |all| share(all, worker).max(1);
        let bound = |all| Rc::new(Admission::new(part(all), part(PER_ADDRESS_MAX)));
        Self { run, messages: bound(MESSAGES_MAX), questions: bound(ipc::hook::PROCESSES_MAX) }
    }
}

/// A place, waited for.
async fn place(among: &Rc<Admission>, client: Client) -> Place {
    loop {
        match among.admit(client.address, client.is_trusted) {
            Some(place) => return place,
            None => sleep(PLACE_PAUSE).await,
        }
    }
}

/// A program that runs.
#[derive(Debug)]
struct Program {
    since: Instant,
    _place: Place,
    connection: Packets,
    text: pipe::Sender,
    envelope: pipe::Sender,
}

impl Elsewhere {
    pub(crate) fn begin(
        places: Rc<Places>,
        client: Client,
        program: Vec<u8>,
        environment: Option<Vec<Bytes>>,
        envelope: Envelope,
    ) -> Self {
        let request = environment.map(|environment| Request::Queue { program: program.into(), environment });
        // The interface has no words for what is demanded of others, nor for a time before which nothing may happen. Neither is offered where
        // messages may go to a program; if one is asked for all the same, it is too early to say yes.
        let is_broken = request.is_none() || envelope.requiretls || envelope.asked.hold_until_s.is_some();
        Self { places, client, request, envelope, held: Vec::new(), program: None, is_broken }
    }

    pub(crate) async fn data(&mut self, data: &[u8]) {
        if self.is_broken {
            return;
        }
        if self.program.as_ref().is_some_and(|program| program.since.elapsed() > TEXT_DEADLINE) {
            self.program = None;
            self.is_broken = true;
            return;
        }
        self.held.extend_from_slice(data);
        if self.held.len() >= HELD_LEN_MAX {
            self.send().await;
        }
    }

    /// The end of the message.
    pub(crate) async fn commit(mut self) -> QueueAnswer {
        self.send().await;
        let Some(Program { connection, text, mut envelope, _place, .. }) = self.program.take() else {
            return QueueAnswer::Temporary(b"4.3.0 the queue program cannot be run now".to_vec());
        };
        drop(text);
        // A program that read no further may have said why: its end is waited for all the same.
        let mut write_failed = self.is_broken;
        if !write_failed {
            let mut bytes = Vec::new();
            let written = queue_program::write_envelope(&mut bytes, &self.envelope.sender, &self.envelope.recipients);
            let sent = timeout(WRITE_DEADLINE, envelope.write_all(&bytes)).await;
            write_failed = written.is_err() || !matches!(sent, Ok(Ok(())));
        }
        drop(envelope);
        let answer = timeout(END_DEADLINE, Box::pin(connection.recv())).await;
        let Ok(Ok(Some((datagram, _)))) = answer else { return refused(queue_program::not_run()) };
        match Answer::decode(&datagram) {
            Ok(Answer::Ended { code, pid, output }) => {
                let ended = Ended::Code(i32::try_from(code).unwrap_or(-1));
                queue_program::outcome(ended, write_failed, &output)
                    .map_or_else(refused, |()| QueueAnswer::Accepted { id: None, qp: pid })
            }
            Ok(Answer::Failed { .. }) | Err(_) => QueueAnswer::Temporary(b"4.3.0 the queue program failed".to_vec()),
        }
    }

    /// Hands on what is held.
    async fn send(&mut self) {
        if self.is_broken {
            return;
        }
        if self.program.is_none() {
            match timeout(CONNECT_DEADLINE, Box::pin(self.start())).await {
                Ok(Ok(program)) => self.program = Some(program),
                _ => {
                    self.is_broken = true;
                    self.held = Vec::new();
                    return;
                }
            }
        }
        let held = std::mem::take(&mut self.held);
        if let Some(program) = &mut self.program {
            self.is_broken = !matches!(timeout(WRITE_DEADLINE, program.text.write_all(&held)).await, Ok(Ok(())));
        }
    }

    async fn start(&self) -> io::Result<Program> {
        let _place = place(&self.places.messages, self.client).await;
        let request = self.request.as_ref().ok_or(io::ErrorKind::InvalidData)?;
        let connection = Packets::connect(self.places.run.as_fd(), sandbox::Socket::Hook.path()).await?;
        let (text_read, text) = pipe_with(PipeFlags::CLOEXEC)?;
        let (envelope_read, envelope) = pipe_with(PipeFlags::CLOEXEC)?;
        connection.send_with(&request.encode_bounded()?, Some(text_read.as_fd())).await?;
        connection.send_with(&Request::Envelope {}.encode(), Some(envelope_read.as_fd())).await?;
        let (text, envelope) = (pipe::Sender::from_owned_fd(text)?, pipe::Sender::from_owned_fd(envelope)?);
        Ok(Program { since: Instant::now(), _place, connection, text, envelope })
    }
}

fn refused(refusal: ipc::Refusal) -> QueueAnswer {
    if refusal.is_permanent { QueueAnswer::Permanent(refusal.text) } else { QueueAnswer::Temporary(refusal.text) }
}

/// Has qmail-hook run a program that answers at once; `None`: it did not.
pub(crate) async fn ask(places: Rc<Places>, client: Client, request: Request) -> Option<Answer> {
    // A little longer than the program may take, so that the reason is heard.
    let deadline = ipc::hook_program::ANSWER_DEADLINE.saturating_add(Duration::from_secs(10));
    let exchange = async {
        let _place = place(&places.questions, client).await;
        let connection = Packets::connect(places.run.as_fd(), sandbox::Socket::Hook.path()).await.ok()?;
        connection.send(&request.encode_bounded().ok()?).await.ok()?;
        let (datagram, _) = connection.recv().await.ok()??;
        Answer::decode(&datagram).ok()
    };
    timeout(deadline, Box::pin(exchange)).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn places(worker: &str) -> Places {
        Places::new(Rc::new(std::fs::File::open("/").unwrap().into()), worker)
    }

    #[test]
    fn one_address_holds_some_places_and_messages_leave_some_to_questions() {
        const { assert!(PER_ADDRESS_MAX * 2 < MESSAGES_MAX && MESSAGES_MAX < ipc::hook::PROCESSES_MAX) };
        let client = |n: u8, is_trusted| Client { address: [192, 0, 2, n].into(), is_trusted };
        ipc_async::service::run(async {
            for (worker, all, of_one) in
                [("0/1", MESSAGES_MAX, PER_ADDRESS_MAX), ("1/2", MESSAGES_MAX / 2, PER_ADDRESS_MAX / 2), ("999/1000", 1, 1)]
            {
                let messages = places(worker).messages;
                let soon = |client| timeout(Duration::from_millis(1), place(&messages, client));
                let mut held = Vec::new();
                while let Ok(place) = soon(client(1, false)).await {
                    held.push(place);
                }
                assert_eq!(held.len(), of_one, "{worker}");
                while let Ok(place) = soon(client(2, true)).await {
                    held.push(place);
                }
                assert_eq!(held.len(), all, "{worker}");
                // Who waits gets the next that is free.
                let (_place, ()) = tokio::join!(place(&messages, client(3, false)), async { drop(held.pop()) });
            }
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_text_that_does_not_come_to_its_end_gives_its_place_back() {
        ipc_async::service::run(async {
            let places = Rc::new(places("0/1"));
            let client = Client { address: [192, 0, 2, 1].into(), is_trusted: false };
            let envelope = Envelope {
                sender: wire::Address::null(),
                recipients: vec![wire::Address::null()],
                eight_bit: false,
                utf8: false,
                requiretls: false,
                asked: smtp::server::Asked::default(),
            };
            for (since, is_late) in [(Duration::ZERO, false), (TEXT_DEADLINE + Duration::from_secs(1), true)] {
                let mut message =
                    Elsewhere::begin(Rc::clone(&places), client, b"/x".to_vec(), Some(Vec::new()), envelope.clone());
                let (read, text) = pipe_with(PipeFlags::CLOEXEC)?;
                let (_, envelope) = pipe_with(PipeFlags::CLOEXEC)?;
                let (connection, _hook) = sys::Seqpacket::pair()?;
                message.program = Some(Program {
                    since: Instant::now().checked_sub(since).unwrap(),
                    _place: place(&places.messages, client).await,
                    connection: Packets::new(connection)?,
                    text: pipe::Sender::from_owned_fd(text)?,
                    envelope: pipe::Sender::from_owned_fd(envelope)?,
                });
                message.data(&[b'x'; HELD_LEN_MAX]).await;
                assert_eq!(message.program.is_none(), is_late);
                if is_late {
                    assert_eq!(std::fs::File::from(read).read(&mut [0; 1])?, 0, "the program finds the end");
                    assert!(matches!(message.commit().await, QueueAnswer::Temporary(_)));
                }
            }
            assert_eq!(Rc::strong_count(&places.messages), 1, "no place is held");
            Ok(())
        })
        .unwrap();
    }
}
