//! The load: SMTP clients on one thread, each sending one command at a time and waiting for its answer.
//!
//! One thread and epoll, so that a hundred clients cost the machine little beside the server that is measured; the row of the
//! server that does nothing shows how little. Message `n` carries `X-Bench-Id: RUN-n`, so that losses and duplicates are found
//! by name. A message that is refused, or whose connection breaks, is sent again up to [`ATTEMPTS_MAX`] times. Everything ends
//! at a deadline. Connects to loopback addresses only.

use crate::protected;
use anyhow::{Context, Result, bail};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use rustls::ClientConfig;
use rustls::client::ClientConnection;
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A server that refuses this often does not want the message.
const ATTEMPTS_MAX: u32 = 200;
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// No server here takes longer for one answer, unless it forgot the client.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Recipients that are announced at once where a scenario pipelines, as large senders do.
const WINDOW: usize = 100;
const SENDER: &str = "sender@from.test";
const TEXT: &[u8] = b"Pack my box with five dozen liquor jugs, then weigh them: 0123456789 grams.\r\n";

/// What is to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) to: SocketAddrV4,
    pub(crate) messages: usize,
    pub(crate) connections: usize,
    /// Messages on one connection before QUIT.
    pub(crate) per_connection: usize,
    pub(crate) domain: &'static str,
    /// Recipients are `u001` to `uNNN` in turn.
    pub(crate) names: usize,
    pub(crate) recipients_per_message: usize,
    pub(crate) size_bytes: usize,
    /// Announce recipients in windows instead of one by one.
    pub(crate) pipelined: bool,
    /// STARTTLS first.
    pub(crate) tls: bool,
    /// Part of every message's id.
    pub(crate) run: String,
    pub(crate) limit: Duration,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) begin: SystemTime,
    /// First connect to last final 250.
    pub(crate) elapsed: Duration,
    /// By message number.
    pub(crate) accepted: Vec<bool>,
    pub(crate) retries: usize,
    pub(crate) last_error: Option<String>,
    /// MAIL to the final 250.
    pub(crate) transactions_ms: Vec<f64>,
}

impl Sent {
    pub(crate) fn accepted_count(&self) -> usize {
        self.accepted.iter().filter(|yes| **yes).count()
    }
}

/// The name of recipient `k` (from 0).
pub(crate) fn user_name(k: usize) -> String {
    format!("u{:03}", k.saturating_add(1))
}

/// The id of message `n`.
pub(crate) fn message_id(run: &str, n: usize) -> String {
    format!("{run}-{n}")
}

/// Sends it all.
///
/// # Errors
/// Only of this machine (no descriptors left, no epoll); what the server does wrong is in [`Sent`].
pub(crate) fn send(load: &Load) -> Result<Sent> {
    let mut generator = Generator::new(load)?;
    let until = Instant::now() + load.limit;
    let mut events = Vec::with_capacity(256);
    while generator.open_due()? {
        let now = Instant::now();
        if now > until {
            generator.sent.last_error = Some("the deadline passed".into());
            break;
        }
        epoll::wait(&generator.epoll, spare_capacity(&mut events), Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }))?;
        for event in events.drain(..) {
            generator.wake(usize::try_from(event.data.u64())?);
        }
        generator.give_up_stuck();
    }
    Ok(generator.sent)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Connect,
    Greeting,
    Ehlo,
    StartTls,
    Mail,
    /// How many recipients were announced.
    Rcpt(usize),
    Data,
    Body,
    Quit,
}

struct Job {
    number: usize,
    attempts: u32,
}

struct Session {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    step: Step,
    job: Option<Job>,
    finished: usize,
    /// MAIL was sent.
    began: Instant,
    /// The last answer came.
    heard: Instant,
    /// Answers still to come before the next step.
    awaited: usize,
    input: Vec<u8>,
    /// What goes out: `head`, and the common body and the final dot when `with_body`.
    head: Vec<u8>,
    with_body: bool,
    written: usize,
    wants_write: bool,
    watched: epoll::EventFlags,
}

struct Generator<'a> {
    load: &'a Load,
    tls: Option<Arc<ClientConfig>>,
    body: Vec<u8>,
    epoll: OwnedFd,
    sessions: Vec<Option<Session>>,
    /// Free slots, and from when on they may be used.
    free: Vec<(usize, Instant)>,
    next: usize,
    again: VecDeque<Job>,
    start: Instant,
    looked: Instant,
    sent: Sent,
}

/// What a session does after an answer.
enum Outcome {
    Goes,
    Closed,
    Failed(String),
}

impl<'a> Generator<'a> {
    fn new(load: &'a Load) -> Result<Self> {
        if !load.to.ip().is_loopback() {
            bail!("{} is not a loopback address", load.to);
        }
        let now = Instant::now();
        Ok(Self {
            load,
            tls: load.tls.then(protected::client).transpose()?,
            body: body(load.size_bytes),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sessions: (0..load.connections).map(|_| None).collect(),
            free: (0..load.connections).map(|slot| (slot, now)).collect(),
            next: 0,
            again: VecDeque::new(),
            start: now,
            looked: now,
            sent: Sent {
                begin: SystemTime::now(),
                elapsed: Duration::ZERO,
                accepted: vec![false; load.messages],
                retries: 0,
                last_error: None,
                transactions_ms: Vec::with_capacity(load.messages),
            },
        })
    }

    fn next_job(&mut self) -> Option<Job> {
        if let Some(job) = self.again.pop_front() {
            return Some(job);
        }
        let number = self.next;
        (number < self.load.messages).then(|| {
            self.next = self.next.saturating_add(1);
            Job { number, attempts: 0 }
        })
    }

    /// Opens a session on each free slot that is due, while there is work. False when all is done.
    fn open_due(&mut self) -> Result<bool> {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = self.free.drain(..).partition(|(_, from)| *from <= now);
        self.free = later;
        for (slot, from) in due {
            match self.next_job() {
                Some(job) => self.open(slot, job)?,
                None => self.free.push((slot, from)),
            }
        }
        let idle = self.free.len() == self.sessions.len();
        Ok(!idle || !self.again.is_empty() || self.next < self.load.messages)
    }

    fn open(&mut self, slot: usize, job: Job) -> Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).context("no socket left")?;
        match connect(&socket, &self.load.to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => {
                self.put_back(slot, Some(job), format!("connect: {error}"));
                return Ok(());
            }
        }
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(slot as u64), epoll::EventFlags::OUT)?;
        let now = Instant::now();
        self.sessions[slot] = Some(Session {
            stream,
            tls: None,
            step: Step::Connect,
            job: Some(job),
            finished: 0,
            began: now,
            heard: now,
            awaited: 1,
            input: Vec::new(),
            head: Vec::new(),
            with_body: false,
            written: 0,
            wants_write: true,
            watched: epoll::EventFlags::OUT,
        });
        Ok(())
    }

    /// Something happened on a session's socket.
    fn wake(&mut self, slot: usize) {
        let Some(mut session) = self.sessions[slot].take() else { return };
        match self.progress(&mut session) {
            Outcome::Goes => {
                if let Err(error) = session.watch(&self.epoll, slot) {
                    self.put_back(slot, session.job, error.to_string());
                    return;
                }
                self.sessions[slot] = Some(session);
            }
            Outcome::Closed => self.free.push((slot, Instant::now())),
            Outcome::Failed(error) => self.put_back(slot, session.job, error),
        }
    }

    fn progress(&mut self, session: &mut Session) -> Outcome {
        if session.step == Step::Connect {
            match sockopt::socket_error(&session.stream) {
                Ok(Ok(())) => session.step = Step::Greeting,
                Ok(Err(error)) | Err(error) => return Outcome::Failed(format!("connect: {error}")),
            }
        }
        if let Err(error) = session.flush(&self.body) {
            return Outcome::Failed(error.to_string());
        }
        let open = match session.fill() {
            Ok(open) => open,
            Err(error) if session.step == Step::Quit => {
                let _ = error;
                false
            }
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        // The handshake's next flight.
        if session.tls.as_ref().is_some_and(|tls| tls.wants_write())
            && let Err(error) = session.flush(&self.body)
        {
            return Outcome::Failed(error.to_string());
        }
        while let Some(reply) = session.reply() {
            session.heard = Instant::now();
            match self.answered(session, &reply) {
                Outcome::Goes => {}
                end => return end,
            }
        }
        match (open, session.step) {
            (true, _) => Outcome::Goes,
            (false, Step::Quit) => Outcome::Closed,
            (false, step) => Outcome::Failed(format!("closed by the server at {step:?}")),
        }
    }

    /// The next step after one reply.
    fn answered(&mut self, session: &mut Session, reply: &[u8]) -> Outcome {
        let wanted = if session.step == Step::Data { b'3' } else { b'2' };
        if reply.first() != Some(&wanted) {
            return Outcome::Failed(String::from_utf8_lossy(reply).trim_end().to_owned());
        }
        session.awaited = session.awaited.saturating_sub(1);
        if session.awaited > 0 {
            return Outcome::Goes;
        }
        match session.step {
            Step::Connect | Step::Greeting => session.say(Step::Ehlo, b"EHLO client.bench.test\r\n"),
            Step::Ehlo if self.tls.is_some() && session.tls.is_none() => session.say(Step::StartTls, b"STARTTLS\r\n"),
            Step::StartTls => match self.tls.as_ref().map(protected::connection).transpose() {
                Ok(tls) => {
                    session.tls = tls;
                    session.say(Step::Ehlo, b"EHLO client.bench.test\r\n");
                }
                Err(error) => return Outcome::Failed(error.to_string()),
            },
            Step::Ehlo => self.start_message(session),
            Step::Mail => self.announce(session, 0),
            Step::Rcpt(announced) if announced < self.load.recipients_per_message => self.announce(session, announced),
            Step::Rcpt(_) => session.say(Step::Data, b"DATA\r\n"),
            Step::Data => self.say_body(session),
            Step::Body => self.finish_message(session),
            Step::Quit => return Outcome::Closed,
        }
        match session.flush(&self.body) {
            Ok(()) => Outcome::Goes,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    fn start_message(&mut self, session: &mut Session) {
        session.began = Instant::now();
        session.say(Step::Mail, format!("MAIL FROM:<{SENDER}>\r\n").as_bytes());
    }

    fn announce(&mut self, session: &mut Session, from: usize) {
        let Some(job) = &session.job else { return };
        let window = if self.load.pipelined { WINDOW } else { 1 };
        let until = from.saturating_add(window).min(self.load.recipients_per_message);
        let first = job.number.wrapping_mul(self.load.recipients_per_message);
        let mut commands = String::new();
        for r in from..until {
            let name = user_name(first.wrapping_add(r) % self.load.names.max(1));
            commands.push_str(&format!("RCPT TO:<{name}@{}>\r\n", self.load.domain));
        }
        session.say(Step::Rcpt(until), commands.as_bytes());
        session.awaited = until.saturating_sub(from);
    }

    fn say_body(&mut self, session: &mut Session) {
        let Some(job) = &session.job else { return };
        let id = message_id(&self.load.run, job.number);
        let header = format!(
            "From: <{SENDER}>\r\nTo: list@{}\r\nSubject: measured\r\nDate: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-ID: <{id}@from.test>\r\nX-Bench-Id: {id}\r\n\r\n",
            self.load.domain
        );
        session.say(Step::Body, header.as_bytes());
        session.with_body = true;
    }

    fn finish_message(&mut self, session: &mut Session) {
        let now = Instant::now();
        self.sent.transactions_ms.push(now.duration_since(session.began).as_secs_f64() * 1e3);
        self.sent.elapsed = now.duration_since(self.start);
        if let Some(job) = session.job.take() {
            self.sent.accepted[job.number] = true;
        }
        session.finished = session.finished.saturating_add(1);
        if session.finished < self.load.per_connection {
            session.job = self.next_job();
        }
        match session.job {
            Some(_) => self.start_message(session),
            None => session.say(Step::Quit, b"QUIT\r\n"),
        }
    }

    /// The slot is free again after a pause; its message is sent once more, but not for ever.
    fn put_back(&mut self, slot: usize, job: Option<Job>, error: String) {
        self.free.push((slot, Instant::now() + RETRY_PAUSE));
        self.sent.last_error = Some(error);
        if let Some(mut job) = job {
            job.attempts = job.attempts.saturating_add(1);
            self.sent.retries = self.sent.retries.saturating_add(1);
            if job.attempts < ATTEMPTS_MAX {
                self.again.push_back(job);
            }
        }
    }

    /// Once a second: sessions that have not been answered for [`ANSWER_WAIT`].
    fn give_up_stuck(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.looked) < Duration::from_secs(1) {
            return;
        }
        self.looked = now;
        for slot in 0..self.sessions.len() {
            if self.sessions[slot].as_ref().is_some_and(|session| now.duration_since(session.heard) > ANSWER_WAIT)
                && let Some(session) = self.sessions[slot].take()
            {
                self.put_back(slot, session.job, format!("no answer at {:?}", session.step));
            }
        }
    }
}

impl Session {
    fn say(&mut self, step: Step, text: &[u8]) {
        self.step = step;
        self.awaited = 1;
        self.head.clear();
        self.head.extend_from_slice(text);
        self.with_body = false;
        self.written = 0;
    }

    /// Writes what the socket takes now.
    fn flush(&mut self, body: &[u8]) -> std::io::Result<()> {
        if self.tls.is_some() {
            return self.flush_tls(body);
        }
        loop {
            let (body, dot): (&[u8], &[u8]) = if self.with_body { (body, b".\r\n") } else { (b"", b"") };
            let mut skip = self.written;
            let mut rest = |part: &'_ [u8]| -> usize {
                let skipped = skip.min(part.len());
                skip = skip.saturating_sub(skipped);
                skipped
            };
            let (h, b, d) = (rest(&self.head), rest(body), rest(dot));
            let slices = [IoSlice::new(&self.head[h..]), IoSlice::new(&body[b..]), IoSlice::new(&dot[d..])];
            if slices.iter().all(|slice| slice.is_empty()) {
                self.wants_write = false;
                return Ok(());
            }
            match self.stream.write_vectored(&slices) {
                Ok(n) => self.written = self.written.saturating_add(n),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wants_write = true;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// All that is said goes into records at once; before the handshake is over rustls keeps it.
    fn flush_tls(&mut self, body: &[u8]) -> std::io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        if self.written == 0 {
            tls.writer().write_all(&self.head)?;
            if self.with_body {
                tls.writer().write_all(body)?;
                tls.writer().write_all(b".\r\n")?;
            }
            self.written = self.head.len();
        }
        while tls.wants_write() {
            match tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wants_write = true;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.wants_write = false;
        Ok(())
    }

    /// As [`Session::fill`].
    fn fill_tls(&mut self) -> std::io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        let open = loop {
            match tls.read_tls(&mut self.stream) {
                Ok(0) => break false,
                Ok(_) => {
                    tls.process_new_packets().map_err(std::io::Error::other)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        let mut chunk = [0; 8192];
        while let Ok(n @ 1..) = tls.reader().read(&mut chunk) {
            self.input.extend_from_slice(&chunk[..n]);
        }
        Ok(open)
    }

    /// Reads what is there. False: the server closed.
    fn fill(&mut self) -> std::io::Result<bool> {
        if self.tls.is_some() {
            return self.fill_tls();
        }
        let mut chunk = [0; 8192];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.input.extend_from_slice(&chunk[..n]);
                    if n < chunk.len() {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next whole reply's last line (RFC 5321 §4.2.1: a space after the code).
    fn reply(&mut self) -> Option<Vec<u8>> {
        loop {
            let end = memchr::memchr(b'\n', &self.input)?;
            let line: Vec<u8> = self.input.drain(..=end).collect();
            if line.get(3) != Some(&b'-') {
                return Some(line);
            }
        }
    }

    /// Asks epoll for what the session waits for, where that changed.
    fn watch(&mut self, epoll: &OwnedFd, slot: usize) -> std::io::Result<()> {
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, self.wants_write);
        if flags != self.watched {
            epoll::modify(epoll, &self.stream, epoll::EventData::new_u64(slot as u64), flags)?;
            self.watched = flags;
        }
        Ok(())
    }
}

/// About `size_bytes` of lines, none of which starts with a dot.
pub(crate) fn body(size_bytes: usize) -> Vec<u8> {
    TEXT.iter().copied().cycle().take(size_bytes.div_ceil(TEXT.len()).saturating_mul(TEXT.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responder::Responder;
    use std::net::Ipv4Addr;

    fn load(to: SocketAddrV4) -> Load {
        Load {
            to,
            messages: 50,
            connections: 7,
            per_connection: 3,
            domain: "bench.test",
            names: 10,
            recipients_per_message: 1,
            size_bytes: 4096,
            pipelined: false,
            tls: false,
            run: "t".into(),
            limit: Duration::from_secs(20),
        }
    }

    #[test]
    fn every_message_arrives_once() {
        for (recipients, pipelined, size_bytes) in [(1, false, 4096), (250, true, 100), (3, false, 1 << 20)] {
            let sink = Responder::start(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), true).unwrap();
            let load = Load { recipients_per_message: recipients, names: 1000, pipelined, size_bytes, ..load(sink.address()) };
            let sent = send(&load).unwrap();
            assert_eq!((sent.accepted_count(), sent.retries, sent.transactions_ms.len()), (50, 0, 50));
            let received = sink.received();
            assert_eq!((received.unique, received.duplicates), (50 * recipients, 0));
            assert!((0..50).all(|n| received.recipients_of(&message_id("t", n)) == recipients), "{recipients}");
        }
    }

    #[test]
    fn nobody_there() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let load = Load { limit: Duration::from_millis(300), ..load(SocketAddrV4::new(Ipv4Addr::LOCALHOST, nobody)) };
        let sent = send(&load).unwrap();
        assert_eq!(sent.accepted_count(), 0);
        assert!(sent.retries > 0 && sent.last_error.is_some());
        assert!(send(&Load { to: "192.0.2.1:25".parse().unwrap(), ..load }).is_err());
    }

    #[test]
    fn bodies() {
        assert!(body(4096).len() >= 4096 && body(4096).len() < 4096 + TEXT.len());
        assert!(body(4096).ends_with(b"\r\n") && body(0).is_empty());
    }
}
