//! One client: the dialogue until it is in, then the copying.

use crate::login::{self, Judge, Judged, Question};
use crate::relay;
use crate::report::Report;
use crate::service::Shared;
use crate::start::log;
use control::Origin;
use ipc::auth::Request;
use logline::Line;
use pop3::authorization::Action;
use pop3::{Authorization, Offer};
use sasl::Protection;
use std::io;
use tls::{Shown, Transport};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Refused logins before the connection is closed.
const FAILURES_MAX: u32 = 3;
/// Bytes read at a time during the dialogue.
const INPUT_LEN: usize = 2048;

pub(crate) struct Session<'a> {
    stream: Transport,
    origin: Origin,
    shared: &'a Shared,
    machine: Authorization,
    judge: Judge,
    report: Report,
}

/// A client that is in: its session, and what it sent already for it.
struct Entered {
    session: UnixStream,
    first: Vec<u8>,
}

impl<'a> Session<'a> {
    /// `service`: as in control/listen.
    pub(crate) fn new(service: &'static str, stream: TcpStream, origin: Origin, shared: &'a Shared) -> Self {
        let timestamp = Some(shared).filter(|shared| origin.allows_cleartext(&shared.config.cleartext)).and_then(timestamp);
        let stream = Transport::Clear(stream);
        let machine = machine(shared, offer(shared, origin, &stream, timestamp.clone()), Protection::default());
        Self {
            stream,
            origin,
            shared,
            machine,
            judge: Judge::new(origin.client, timestamp),
            report: Report::new(service, origin.client),
        }
    }

    /// TLS from the first byte (RFC 8314 §3.3).
    pub(crate) async fn run_tls(mut self) {
        // Nothing was said yet: the greeting comes behind the handshake.
        self.judge = Judge::new(self.origin.client, timestamp(self.shared));
        if self.handshake().await {
            Box::pin(self.run()).await;
        } else {
            self.report.end = "tls";
        }
    }

    /// Serves the client to its end. What breaks a connection is nobody's business but the client's.
    pub(crate) async fn run(mut self) {
        // The whole dialogue within the time of one silence: a byte a minute is no dialogue.
        let idle = self.shared.config.idle;
        match timeout(idle, self.dialogue()).await {
            Ok(Ok(Some(entered))) => {
                let relayed = relay::relay(&self.stream, &entered.session, entered.first, idle).await;
                self.report.relayed(relayed);
            }
            Ok(Ok(None)) => self.report.end = if self.machine.is_done() { "quit" } else { "gone" },
            Ok(Err(_)) => self.report.end = "gone",
            Err(_) => self.report.end = "timeout",
        }
    }

    /// Until a login is accepted; `None` when the connection is over.
    async fn dialogue(&mut self) -> io::Result<Option<Entered>> {
        let greeting = self.machine.greeting();
        self.write(&greeting).await?;
        loop {
            let input = self.read().await?;
            self.report.taken = self.report.taken.saturating_add(input.len() as u64);
            if input.is_empty() {
                return Ok(None);
            }
            let mut rest = input.as_slice();
            while self.machine.is_reading() && !rest.is_empty() {
                let mut actions = Vec::new();
                self.machine.receive(&mut rest, &mut actions);
                if let Some(session) = self.perform(actions).await? {
                    return Ok(Some(Entered { session, first: rest.to_vec() }));
                }
            }
            if self.machine.is_done() {
                return Ok(None);
            }
        }
    }

    /// Does what the machine says, a verdict included; the session if the client is in.
    async fn perform(&mut self, actions: Vec<Action>) -> io::Result<Option<UnixStream>> {
        let mut replies = Vec::new();
        for action in actions {
            let question = match action {
                Action::Reply(reply) => {
                    replies.extend_from_slice(&reply);
                    continue;
                }
                Action::Judge { user, proof } => Question::Proof { user, proof },
                Action::SaslStart { mechanism, initial } => Question::Start { mechanism, initial },
                Action::SaslStep { response } => Question::Step { response },
                Action::StartTls { go } => {
                    self.start_tls(&go, &mut replies).await?;
                    continue;
                }
                Action::HandOver | Action::Close => continue,
            };
            self.write(&std::mem::take(&mut replies)).await?;
            let mut more = Vec::new();
            let session = match self.judge.ask(&self.shared.auth, question).await {
                Judged::Verdict(verdict, session) => {
                    if session.is_some() {
                        self.arrived().await;
                    } else {
                        self.report.failures = self.report.failures.saturating_add(1);
                    }
                    self.machine.verdict(verdict, &mut more);
                    session.map(|login::Entered { user, session }| {
                        self.report.user = Some(user);
                        session
                    })
                }
                Judged::Challenge(data) => {
                    self.machine.challenge(&data, &mut more);
                    None
                }
            };
            for action in more {
                match action {
                    Action::Reply(reply) => replies.extend_from_slice(&reply),
                    Action::HandOver => return Ok(session),
                    _ => {}
                }
            }
        }
        self.write(&replies).await?;
        Ok(None)
    }

    /// STLS: tells the client to go on, or that it cannot.
    async fn start_tls(&mut self, go: &[u8], replies: &mut Vec<u8>) -> io::Result<()> {
        if self.shared.tls.is_available() {
            replies.extend_from_slice(go);
            self.write(&std::mem::take(replies)).await?;
            // Without a connection the next read finds the end.
            self.handshake().await;
            return Ok(());
        }
        let mut more = Vec::new();
        self.machine.no_tls(&mut more);
        for action in more {
            if let Action::Reply(reply) = action {
                replies.extend_from_slice(&reply);
            }
        }
        Ok(())
    }

    /// STLS, or the start of a session of pop3s: what was said before does not count any more.
    async fn handshake(&mut self) -> bool {
        let Some(stream) = self.stream.take_clear() else { return false };
        match self.shared.tls.accept(stream).await {
            Ok((stream, facts)) => {
                self.stream = Transport::Tls(stream);
                self.report.cipher = Some(facts.cipher);
                let offer = offer(self.shared, self.origin, &self.stream, self.judge.timestamp());
                let certificate = facts.client.as_ref().and_then(|shown| self.certificate(shown));
                let channel = facts.exporter.is_some() || facts.end_point.is_some();
                self.machine = machine(self.shared, offer, Protection { channel, certificate: certificate.is_some() });
                self.judge.bind(facts.exporter, facts.end_point, certificate);
                true
            }
            Err(refused) => {
                log(Line::new("tls").put("remote", self.origin.client).bytes("failed", refused.to_string().as_bytes()));
                false
            }
        }
    }

    /// The name in control/tlsclients for which the client may log in.
    fn certificate(&self, shown: &Shown) -> Option<String> {
        let clients = self.shared.config.tls_clients.as_ref()?;
        match shown {
            Shown::Certificate(certificate) => clients.rights(&certificate.fingerprints, &certificate.names).login,
            Shown::Useless { fingerprint, why } => {
                if clients.rights(&[*fingerprint], &[]).login.is_some() {
                    let line = Line::new("tls").put("remote", self.origin.client).put("certificate", "listed");
                    log(line.bytes("unused", why.as_bytes()));
                }
                None
            }
        }
    }

    /// POP-before-SMTP. That it could not be noted is no reason to keep anybody from his mail.
    async fn arrived(&self) {
        if self.shared.config.opens_relay {
            let address = self.origin.client;
            let _ = self.shared.auth.ask(|id| Request::Arrived { id, address }).await;
        }
    }

    /// The next bytes; empty at the end. The buffer does not live while waiting.
    async fn read(&self) -> io::Result<Vec<u8>> {
        loop {
            self.stream.readable().await?;
            match try_read(&self.stream) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.report.sent = self.report.sent.saturating_add(bytes.len() as u64);
        relay::write_all(&self.stream, bytes).await
    }
}

/// What a connection may do: passwords over TLS, or from the networks that may do without.
fn offer(shared: &Shared, origin: Origin, stream: &Transport, apop_timestamp: Option<String>) -> Offer {
    let is_clear = matches!(stream, Transport::Clear(_));
    Offer {
        cleartext: !is_clear || origin.allows_cleartext(&shared.config.cleartext),
        stls: is_clear && shared.tls.is_available(),
        apop_timestamp,
        response_codes: true,
        failures_max: FAILURES_MAX,
    }
}

fn try_read(stream: &Transport) -> io::Result<Vec<u8>> {
    let mut buf = [0; INPUT_LEN];
    let len = stream.try_read(&mut buf)?;
    Ok(buf.get(..len).unwrap_or_default().to_vec())
}

fn machine(shared: &Shared, offer: Offer, protection: Protection) -> Authorization {
    Authorization::new(offer).with_sasl(shared.mechanisms, protection)
}

/// The banner's timestamp where there is APOP. No other banner has it: that makes a digest worthless the next time. Without random bytes
/// there is none.
fn timestamp(shared: &Shared) -> Option<String> {
    let random = shared.mechanisms.has_apop().then(sys::random::bytes16)?.ok()?;
    let (random, time) = (u128::from_le_bytes(random), sys::clock::unix_s());
    Some(format!("<{random:x}.{time}@{}>", wire::escape::visible(&shared.config.me)))
}
