//! An SMTP server that answers and stores nothing: the sink behind relays, and the row that shows what the generator can do.
//!
//! One thread, epoll. With `recording` it remembers which message ids came for which recipients, and when the last one did.
//! Listens on loopback addresses only.

use anyhow::{Context, Result, bail};
use memchr::memmem;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

const LISTENER: u64 = u64::MAX;
/// The id stands within this much of a message.
const HEAD_MAX: usize = 8192;
/// Longest command line; more is not SMTP.
const LINE_MAX: usize = 64 * 1024;
const EHLO: &[u8] = b"250-sink.bench.test\r\n250-PIPELINING\r\n250-SIZE 104857600\r\n250 8BITMIME\r\n";

/// What came.
#[derive(Debug, Default, Clone)]
pub(crate) struct Received {
    /// Different pairs of message and recipient.
    pub(crate) unique: usize,
    pub(crate) duplicates: usize,
    pub(crate) transactions: usize,
    pub(crate) connections: usize,
    pub(crate) last: Option<SystemTime>,
    pairs: HashMap<String, HashSet<Vec<u8>>>,
}

impl Received {
    /// For how many recipients this message came.
    pub(crate) fn recipients_of(&self, id: &str) -> usize {
        self.pairs.get(id).map_or(0, HashSet::len)
    }

    fn note(&mut self, id: &str, recipients: &[Vec<u8>]) {
        let seen = self.pairs.entry(id.to_owned()).or_default();
        for recipient in recipients {
            let counter = if seen.insert(recipient.clone()) { &mut self.unique } else { &mut self.duplicates };
            *counter = counter.saturating_add(1);
        }
        self.transactions = self.transactions.saturating_add(1);
        self.last = Some(SystemTime::now());
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    unique: AtomicUsize,
    received: Mutex<Received>,
}

/// The server; stops when dropped.
#[derive(Debug)]
pub(crate) struct Responder {
    address: SocketAddrV4,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Listens and serves.
    ///
    /// # Errors
    /// The port is taken.
    pub(crate) fn start(address: SocketAddrV4, recording: bool) -> Result<Self> {
        if !address.ip().is_loopback() {
            bail!("{address} is not a loopback address");
        }
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        let SocketAddr::V4(address) = listener.local_addr()? else { bail!("not an IPv4 address") };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared::default());
        let mut server = Server { listener, epoll, shared: Arc::clone(&shared), recording, connections: HashMap::new(), next: 0 };
        let thread = std::thread::Builder::new().name("responder".into()).spawn(move || server.run())?;
        Ok(Self { address, shared, thread: Some(thread) })
    }

    pub(crate) fn address(&self) -> SocketAddrV4 {
        self.address
    }

    pub(crate) fn received(&self) -> Received {
        self.shared.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until that many different pairs came, or for `limit`.
    pub(crate) fn wait(&self, unique: usize, limit: Duration) -> Received {
        let until = Instant::now() + limit;
        while self.shared.unique.load(Ordering::Relaxed) < unique && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.received()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Server {
    listener: TcpListener,
    epoll: OwnedFd,
    shared: Arc<Shared>,
    recording: bool,
    connections: HashMap<u64, Connection>,
    next: u64,
}

impl Server {
    fn run(&mut self) {
        let mut events = Vec::with_capacity(256);
        let tick = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        while !self.shared.stop.load(Ordering::Relaxed) {
            if epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&tick)).is_err() {
                continue;
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    number => self.serve(number),
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            let ready = stream.set_nonblocking(true).is_ok()
                && stream.set_nodelay(true).is_ok()
                && epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(number), epoll::EventFlags::IN).is_ok();
            let mut connection =
                Connection { stream, input: Vec::new(), output: Vec::new(), data: None, recipients: Vec::new(), waiting: false };
            connection.output.extend_from_slice(b"220 sink.bench.test\r\n");
            if ready && connection.flush().is_ok() {
                self.connections.insert(number, connection);
                if self.recording {
                    let mut received = self.shared.received.lock().unwrap_or_else(PoisonError::into_inner);
                    received.connections = received.connections.saturating_add(1);
                }
            }
        }
    }

    fn serve(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let open = connection.fill() && connection.answer(&self.shared, self.recording) && connection.flush().is_ok();
        if !open {
            self.connections.remove(&number);
            return;
        }
        let waiting = !connection.output.is_empty();
        if waiting != connection.waiting {
            connection.waiting = waiting;
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, waiting);
            let _ = epoll::modify(&self.epoll, &connection.stream, epoll::EventData::new_u64(number), flags);
        }
    }
}

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// In a message: the start of it.
    data: Option<Vec<u8>>,
    recipients: Vec<Vec<u8>>,
    /// Epoll was asked for room to write.
    waiting: bool,
}

impl Connection {
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(n) => {
                self.input.extend_from_slice(&chunk[..n]);
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Answers all whole commands and messages that are there. False: close.
    fn answer(&mut self, shared: &Shared, recording: bool) -> bool {
        loop {
            if self.data.is_some() {
                if !self.take_message(shared, recording) {
                    return true;
                }
                continue;
            }
            let Some(end) = memchr::memchr(b'\n', &self.input) else { return self.input.len() < LINE_MAX };
            let verb: Vec<u8> = self.input.iter().take(4).map(u8::to_ascii_uppercase).collect();
            let reply: &[u8] = match verb.as_slice() {
                b"EHLO" => EHLO,
                b"RCPT" => {
                    self.recipients.push(self.input[..end].to_ascii_lowercase());
                    b"250 ok\r\n"
                }
                b"MAIL" | b"RSET" => {
                    self.recipients.clear();
                    b"250 ok\r\n"
                }
                b"DATA" => {
                    self.data = Some(Vec::new());
                    b"354 go ahead\r\n"
                }
                b"QUIT" => {
                    self.output.extend_from_slice(b"221 bye\r\n");
                    let _ = self.flush();
                    return false;
                }
                _ => b"250 ok\r\n",
            };
            self.output.extend_from_slice(reply);
            // The line end after DATA stays: an empty message's only dot follows it.
            let used = if self.data.is_some() { end.saturating_sub(1) } else { end.saturating_add(1) };
            self.input.drain(..used);
        }
    }

    /// Takes message text that is there; true when the message ended.
    fn take_message(&mut self, shared: &Shared, recording: bool) -> bool {
        const END: &[u8] = b"\r\n.\r\n";
        let found = memmem::find(&self.input, END);
        let taken = found.unwrap_or_else(|| self.input.len().saturating_sub(END.len() - 1));
        if let Some(head) = &mut self.data {
            let room = HEAD_MAX.saturating_sub(head.len()).min(taken);
            head.extend_from_slice(&self.input[..room]);
        }
        let Some(at) = found else {
            self.input.drain(..taken);
            return false;
        };
        self.input.drain(..at.saturating_add(END.len()));
        let head = self.data.take().unwrap_or_default();
        if recording {
            let id = bench_id(&head).unwrap_or_default();
            let mut received = shared.received.lock().unwrap_or_else(PoisonError::into_inner);
            received.note(&id, &self.recipients);
            shared.unique.store(received.unique, Ordering::Relaxed);
        }
        self.recipients.clear();
        self.output.extend_from_slice(b"250 ok\r\n");
        true
    }
}

/// The value of the X-Bench-Id field in the start of a message.
pub(crate) fn bench_id(head: &[u8]) -> Option<String> {
    const FIELD: &[u8] = b"\nX-Bench-Id: ";
    let from = memmem::find(head, FIELD)?.checked_add(FIELD.len())?;
    let value = head.get(from..)?;
    let end = value.iter().position(|byte| byte.is_ascii_whitespace())?;
    String::from_utf8(value.get(..end)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    #[test]
    fn a_session_in_pieces() {
        let sink = Responder::start("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let mut stream = TcpStream::connect(sink.address()).unwrap();
        let session =
            b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nrcpt to:<c@d>\r\nDATA\r\nA: b\r\nX-Bench-Id: r-1\r\n\r\n..\r\n.\r\n\
            MAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n.\r\nQUIT\r\n";
        for piece in session.chunks(3) {
            stream.write_all(piece).unwrap();
        }
        let codes: Vec<String> =
            BufReader::new(stream).lines().map(|line| line.unwrap()[..4].to_owned()).filter(|code| code.ends_with(' ')).collect();
        let wanted = ["220 ", "250 ", "250 ", "250 ", "250 ", "354 ", "250 ", "250 ", "250 ", "354 ", "250 ", "221 "];
        assert_eq!(codes, wanted);
        let received = sink.wait(3, Duration::from_secs(5));
        assert_eq!((received.unique, received.duplicates, received.transactions, received.connections), (3, 0, 2, 1));
        assert_eq!(["r-1", "", "r-2"].map(|id| received.recipients_of(id)), [2, 1, 0]);
    }

    #[test]
    fn ids() {
        let cases: [(&[u8], Option<&str>); 4] = [
            (b"A: b\nX-Bench-Id: r-1\n\n", Some("r-1")),
            (b"A: b\r\nX-Bench-Id: r-1\r\n", Some("r-1")),
            (b"A: b\nX-Bench-Id: r-1", None),
            (b"", None),
        ];
        for (head, id) in cases {
            assert_eq!(bench_id(head).as_deref(), id);
        }
    }
}
