//! One SMTP connection, or one of LMTP or QMTP: performs the actions of the machine, feeds it what happens.
//!
//! Reads while it writes, so a server that gives up in the middle of a body is heard, and one that stops reading until its
//! replies are read cannot block us. Memory: one chunk of the body, its encoding, 4 KiB to read into, 64 KiB that TLS holds.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use control::Level;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use smtp::client::{Action, Finished, Input, Outcome, Stage, Transaction};
use smtp::encode::Encoder;
use tls::Transport;
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::Zeroize as _;

use crate::body::{Body, Outgoing};
use crate::hosts::{Candidate, Endpoint};
use crate::machine::Machine;
use crate::terms::{Key, Terms};

/// What is read at once.
const READ_LEN: usize = 4096;
/// Chunks of a body written before other sessions get their turn, though the server would take more.
const CHUNKS_IN_A_ROW: usize = 8;
/// Messages sent over one connection, in keeping with what servers allow by default.
pub const MESSAGES_MAX: u32 = 100;

/// How to connect.
#[derive(Debug, Clone)]
pub struct Dialing {
    pub tls: Rc<tls::client::Client>,
    pub helohost: String,
    pub timeoutconnect: Duration,
    pub timeoutremote: Duration,
    pub outgoing_v4: Option<IpAddr>,
    pub outgoing_v6: Option<IpAddr>,
}

impl Dialing {
    #[must_use]
    pub fn new(control: &control::Remote, tls: tls::client::Client) -> Self {
        Self {
            tls: Rc::new(tls),
            helohost: control.helohost.clone(),
            timeoutconnect: Duration::from_secs(control.timeoutconnect_s),
            timeoutremote: Duration::from_secs(control.timeoutremote_s),
            outgoing_v4: control.outgoing_v4,
            outgoing_v6: control.outgoing_v6,
        }
    }
}

/// Why there is no session.
#[derive(Debug)]
pub enum Refused {
    /// No TCP connection came about.
    Connect,
    /// The server did not get as far as letting us say MAIL; the report for it.
    Greeting(String),
    /// TLS did not come about, and the terms do not demand it: a connection without may be tried. The report if that is not done.
    NoTls(String),
}

/// An open session.
pub struct Session {
    transport: Transport,
    tls: Rc<tls::client::Client>,
    client: Machine,
    host: Rc<str>,
    key: Key,
    timeoutremote: Duration,
    deadline: Instant,
    /// The bytes to be written hold a password.
    is_secret: bool,
    /// Bytes not written yet, from `written` on.
    out: Vec<u8>,
    written: usize,
    transactions: u32,
}

/// Neither what is sent nor as whom.
impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("key", &self.key).field("client", &self.client).finish_non_exhaustive()
    }
}

/// Where a run of the machine ends.
#[derive(Debug)]
enum End {
    Ready,
    Unusable(String),
    NoTls(String),
    Finished(Finished),
    Closed,
}

impl Session {
    /// Connects and gets as far as MAIL. `skip_tls`: where the terms do not demand it.
    ///
    /// # Errors
    /// Try the next address.
    pub async fn open(candidate: &Candidate, terms: Rc<Terms>, dialing: &Dialing, skip_tls: bool) -> Result<Self, Refused> {
        let transport = match timeout(dialing.timeoutconnect, connect(&candidate.endpoint, dialing)).await {
            Ok(Ok(transport)) => transport,
            Ok(Err(_)) | Err(_) => return Err(Refused::Connect),
        };
        let peer = candidate.endpoint.to_string();
        let (client, actions) = Machine::new(&dialing.helohost, &peer, &terms, skip_tls);
        let mut session = Self {
            transport,
            tls: Rc::clone(&dialing.tls),
            client,
            host: Rc::clone(&candidate.host),
            key: Key { endpoint: candidate.endpoint.clone(), terms },
            timeoutremote: dialing.timeoutremote,
            deadline: Instant::now(),
            is_secret: false,
            out: Vec::new(),
            written: 0,
            transactions: 0,
        };
        if session.key.terms.implicit {
            session.set_deadline(Stage::Handshake);
            session
                .start_tls()
                .await
                .map_err(|why| Refused::Greeting(format!("Connected to {peer} but TLS failed: {why}. (#4.7.5)\n")))?;
        }
        match session.run(actions, None).await {
            End::Ready => Ok(session),
            End::Unusable(text) => {
                session.say_goodbye();
                Err(Refused::Greeting(text))
            }
            End::NoTls(text) => {
                session.say_goodbye();
                Err(Refused::NoTls(text))
            }
            // The machine says Unusable before it closes.
            End::Finished(_) | End::Closed => Err(Refused::Connect),
        }
    }

    /// One transaction, to its end. Afterwards the session may be used again if [`Session::is_ready`].
    /// `front`: a field that goes before the message, in LF form.
    pub async fn deliver(&mut self, transaction: Transaction, body: &Body, front: Vec<u8>) -> Finished {
        self.transactions = self.transactions.saturating_add(1);
        let count = transaction.recipients.len();
        if let Some(input) = self.unasked() {
            self.client.handle(input);
        }
        if !self.client.is_reusable() {
            let text = crate::report::died(&self.key.endpoint.to_string());
            return Finished { outcomes: vec![Outcome::Deferred(text); count], untouched: true };
        }
        let actions = self.client.handle(Input::Begin(transaction));
        match self.run(actions, Some((body, front))).await {
            End::Finished(finished) => self.with_tls(finished),
            // Every transaction ends in Finished; this is what it would say.
            End::Ready | End::Unusable(_) | End::NoTls(_) | End::Closed => {
                let text = crate::report::NO_CONNECTION.to_owned();
                Finished { outcomes: vec![smtp::client::Outcome::Deferred(text); count], untouched: true }
            }
        }
    }

    /// Reports of success say in their last line how the message was protected.
    fn with_tls(&self, mut finished: Finished) -> Finished {
        let Transport::Tls(stream) = &self.transport else { return finished };
        let not = if self.key.terms.level == Level::Verify { "" } else { "not " };
        let line = format!("Encrypted by {}, certificate {not}verified.\n", tls::client::version(stream));
        for outcome in &mut finished.outcomes {
            if let Outcome::Delivered(text) = outcome {
                text.truncate(smtp::client::REPORT_LEN_MAX.saturating_sub(line.len()));
                text.push_str(&line);
            }
        }
        finished
    }

    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// What the server announced.
    #[must_use]
    pub fn offers(&self) -> &smtp::reply::Offers {
        self.client.offers()
    }

    /// May another transaction begin?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.client.is_reusable() && self.transactions < MESSAGES_MAX
    }

    /// Was it to be QMTP, and did the other side not keep to that?
    #[must_use]
    pub fn broke_qmtp(&self) -> bool {
        self.client.broke_qmtp()
    }

    /// By QMTP: has the other side ever begun an answer? Else it may speak something else.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.client.has_answered()
    }

    /// Is the connection still silent and open? A server that closed it while it was idle has said so by now.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        match &self.transport {
            Transport::Clear(stream) => heard(stream).is_none(),
            other => matches!(other.try_read(&mut [0; 1]), Err(error) if error.kind() == io::ErrorKind::WouldBlock),
        }
    }

    /// What there is to hear where QMTP has nothing to be said: an answer that comes now would be taken for one to what is sent next.
    fn unasked(&self) -> Option<Input<'static>> {
        match &self.transport {
            Transport::Clear(stream) if self.key.terms.is_qmtp => heard(stream),
            _ => None,
        }
    }

    /// Says QUIT and waits a few seconds for the answer (RFC 5321 §4.1.1.10).
    pub async fn quit(mut self) {
        let actions = self.client.handle(Input::Quit);
        if !actions.is_empty() {
            self.run(actions, None).await;
        }
        self.transport.end_output();
    }

    /// Runs the machine until it has something to tell. Large bodies are written as the connection takes them.
    async fn run(&mut self, mut actions: Vec<Action>, mut body: Option<(&Body, Vec<u8>)>) -> End {
        let mut outgoing: Option<Outgoing<'_>> = None;
        loop {
            let mut handshake = false;
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Send(bytes) => self.out.extend_from_slice(&bytes),
                    Action::SendSecret(bytes) => {
                        self.is_secret = true;
                        self.out.extend_from_slice(bytes.expose());
                    }
                    Action::StartTls => handshake = true,
                    Action::Deadline(stage) => self.set_deadline(stage),
                    Action::SendBody => {
                        let is_qmtp = self.key.terms.is_qmtp;
                        let encoder = if is_qmtp { Encoder::counted() } else { Encoder::new() };
                        outgoing = body.take().map(|(body, front)| Outgoing::new(body, front, encoder));
                    }
                    Action::Ready => return End::Ready,
                    Action::Unusable(text) => return End::Unusable(text),
                    Action::NoTls(text) => return End::NoTls(text),
                    Action::Finished(finished) => return End::Finished(finished),
                    Action::Close => return End::Closed,
                }
            }
            if handshake {
                actions = self.shake_hands().await;
                continue;
            }
            actions = match self.write(&mut outgoing) {
                Write::Waits => self.read(!self.is_flushed()).await,
                Write::Pauses => {
                    tokio::task::yield_now().await;
                    Vec::new()
                }
                Write::Said(Input::BodySent) => {
                    let input = self.unasked().unwrap_or(Input::BodySent);
                    self.client.handle(input)
                }
                Write::Said(input) => self.client.handle(input),
            };
        }
    }

    /// STARTTLS was answered. What the connection has for us already came in the clear: the machine has to know.
    async fn shake_hands(&mut self) -> Vec<Action> {
        let mut byte = [0; 1];
        if let Ok(1) = self.transport.try_read(&mut byte) {
            return self.client.handle(Input::Bytes(&byte));
        }
        match self.start_tls().await {
            Ok(()) => self.client.handle(Input::TlsStarted),
            Err(why) => self.client.handle(Input::TlsFailed(&why)),
        }
    }

    /// The handshake, until the deadline. Why it failed, for the report.
    async fn start_tls(&mut self) -> Result<(), String> {
        let Some(tcp) = self.transport.take_clear() else { return Err("it was started already".to_owned()) };
        let handshake = self.tls.connect(tcp, &self.host, self.key.terms.names(), self.key.terms.certificate.as_deref());
        let stream =
            timeout_at(self.deadline, handshake).await.unwrap_or_else(|_| Err("the handshake took too long".to_owned()))?;
        self.transport = Transport::Tls(stream);
        Ok(())
    }

    /// Writes what there is until the connection takes no more, refilling from the body.
    fn write(&mut self, outgoing: &mut Option<Outgoing<'_>>) -> Write {
        for _ in 0..CHUNKS_IN_A_ROW {
            while !self.is_flushed() {
                let rest = self.out.get(self.written..).unwrap_or_default();
                match self.transport.try_write(rest) {
                    // All is with TLS, and the socket does not take it from there.
                    Ok(_) if rest.is_empty() && !self.is_flushed() => return Write::Waits,
                    Ok(len) => self.written = self.written.saturating_add(len),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Write::Waits,
                    // What the server said before it closed is still to be read; reading finds the end too.
                    Err(_) => {
                        self.forget_output();
                        *outgoing = None;
                        return Write::Waits;
                    }
                }
                if outgoing.is_some() {
                    self.set_deadline(Stage::DataBlock);
                }
            }
            self.forget_output();
            match outgoing {
                None => return Write::Waits,
                Some(body) if body.is_done() => {
                    *outgoing = None;
                    return Write::Said(Input::BodySent);
                }
                Some(body) => {
                    if body.next(&mut self.out).is_err() {
                        self.forget_output();
                        *outgoing = None;
                        return Write::Said(Input::BodyUnreadable);
                    }
                }
            }
        }
        Write::Pauses
    }

    /// Waits until the connection has bytes for us, or takes some of ours, or the stage has taken too long.
    async fn read(&mut self, writing: bool) -> Vec<Action> {
        let is_readable = match timeout_at(self.deadline, self.ready(writing)).await {
            Err(_) => return self.client.handle(Input::Timeout),
            Ok(Err(_)) => return self.client.handle(Input::Closed),
            Ok(Ok(is_readable)) => is_readable,
        };
        if !is_readable {
            return Vec::new();
        }
        let mut bytes = [0; READ_LEN];
        match self.transport.try_read(&mut bytes) {
            Ok(0) => self.client.handle(Input::Closed),
            Ok(len) => self.client.handle(Input::Bytes(bytes.get(..len).unwrap_or_default())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Vec::new(),
            Err(_) => self.client.handle(Input::Closed),
        }
    }

    /// Waits for either; true if there may be something to read.
    async fn ready(&self, writing: bool) -> io::Result<bool> {
        if let Transport::Clear(stream) = &self.transport {
            let interest = if writing { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let ready = stream.ready(interest).await?;
            return Ok(ready.is_readable() || ready.is_read_closed());
        }
        tokio::select! {
            biased;
            ready = self.transport.readable() => ready.map(|()| true),
            ready = self.transport.writable(), if writing => ready.map(|()| false),
        }
    }

    /// Has the socket everything?
    fn is_flushed(&self) -> bool {
        self.written >= self.out.len() && !matches!(&self.transport, Transport::Tls(stream) if stream.tls().wants_write())
    }

    fn forget_output(&mut self) {
        if std::mem::take(&mut self.is_secret) {
            self.out.zeroize();
        }
        self.out.clear();
        self.written = 0;
    }

    /// `timeoutremote` is the administrator's bound for any one answer; RFC 5321 §4.5.3.2 gives the rest.
    fn set_deadline(&mut self, stage: Stage) {
        self.deadline = Instant::now() + Duration::from_secs(stage.timeout_s()).min(self.timeoutremote);
    }

    /// To a server that will not serve us; nothing is waited for.
    fn say_goodbye(&self) {
        if !self.key.terms.is_qmtp {
            let _ = self.transport.try_write(b"QUIT\r\n");
        }
        self.transport.end_output();
    }
}

/// What became of writing.
enum Write {
    /// Nothing more can be written now.
    Waits,
    /// There is more, but other sessions want to get on too.
    Pauses,
    /// The machine has to hear this.
    Said(Input<'static>),
}

/// What the socket itself has, without taking it: the runtime may not have heard of it yet. `None`: nothing.
fn heard(stream: &TcpStream) -> Option<Input<'static>> {
    match recv(stream, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((1.., _)) => Some(Input::Bytes(b"?")),
        Err(Errno::AGAIN | Errno::INTR) => None,
        Ok(_) | Err(_) => Some(Input::Closed),
    }
}

async fn connect(endpoint: &Endpoint, dialing: &Dialing) -> io::Result<Transport> {
    match endpoint {
        Endpoint::Internet(address) => Ok(Transport::Clear(connect_tcp(*address, dialing).await?)),
        Endpoint::Socket(path) => Ok(Transport::Unix(UnixStream::connect(path).await?)),
    }
}

async fn connect_tcp(address: SocketAddr, dialing: &Dialing) -> io::Result<TcpStream> {
    let (socket, source) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, dialing.outgoing_v4),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, dialing.outgoing_v6),
    };
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    // Commands and replies take turns: waiting to fill a segment would only delay them.
    socket.set_nodelay(true)?;
    socket.connect(address).await
}
