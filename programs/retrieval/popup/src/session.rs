//! One client: the dialogue until it is in, then the copying.

use crate::relay;
use crate::service::Shared;
use control::Origin;
use ipc::auth::{Answer, Request};
use pop3::authorization::{Action, Proof};
use pop3::{Authorization, Offer, Verdict};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

/// Refused logins before the connection is closed.
const FAILURES_MAX: u32 = 3;
/// A refused login is answered so much later, whatever was wrong with it.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Bytes read at a time during the dialogue.
const INPUT_LEN: usize = 2048;

pub(crate) struct Session<'a> {
    stream: TcpStream,
    origin: Origin,
    shared: &'a Shared,
    machine: Authorization,
}

/// A client that is in: its session, and what it sent already for it.
struct Entered {
    session: UnixStream,
    first: Vec<u8>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(stream: TcpStream, origin: Origin, shared: &'a Shared) -> Self {
        let offer = Offer {
            cleartext: origin.allows_cleartext(&shared.config.cleartext),
            apop_timestamp: None,
            response_codes: true,
            failures_max: FAILURES_MAX,
        };
        Self { stream, origin, shared, machine: Authorization::new(offer) }
    }

    /// Serves the client to its end. What breaks a connection is nobody's business but the client's.
    pub(crate) async fn run(mut self) {
        // The whole dialogue within the time of one silence: a byte a minute is no dialogue.
        let idle = self.shared.config.idle;
        if let Ok(Ok(Some(entered))) = timeout(idle, self.dialogue()).await {
            relay::relay(&self.stream, &entered.session, entered.first, idle).await;
        }
    }

    /// Until a login is accepted; `None` when the connection is over.
    async fn dialogue(&mut self) -> io::Result<Option<Entered>> {
        self.write(&self.machine.greeting()).await?;
        loop {
            let input = self.read().await?;
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
            match action {
                Action::Reply(reply) => replies.extend_from_slice(&reply),
                Action::Judge { user, proof } => {
                    self.write(&std::mem::take(&mut replies)).await?;
                    let (verdict, session) = self.judge(user, proof).await;
                    let mut more = Vec::new();
                    self.machine.verdict(verdict, &mut more);
                    for action in more {
                        match action {
                            Action::Reply(reply) => replies.extend_from_slice(&reply),
                            Action::HandOver => return Ok(session),
                            Action::Judge { .. } | Action::Close => {}
                        }
                    }
                }
                Action::HandOver | Action::Close => {}
            }
        }
        self.write(&replies).await?;
        Ok(None)
    }

    async fn judge(&self, user: Vec<u8>, proof: Proof) -> (Verdict, Option<UnixStream>) {
        let Proof::Password(secret) = proof else { return (Verdict::Refused, None) };
        let remote = Some(self.origin.client);
        let question = |id| Request::Login { id, service: "pop3".into(), login: user.into(), password: secret.0.into(), remote };
        match self.shared.auth.ask(question).await {
            Ok((Answer::LoggedIn { .. }, Some(fd))) => match stream_of(fd) {
                Ok(session) => {
                    self.arrived().await;
                    (Verdict::Accepted, Some(session))
                }
                Err(_) => (Verdict::Temporary, None),
            },
            Ok((Answer::Refused { .. }, _)) => {
                sleep(FAILURE_PAUSE).await;
                (Verdict::Refused, None)
            }
            _ => (Verdict::Temporary, None),
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

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        relay::write_all(&self.stream, bytes).await
    }
}

fn try_read(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut buf = [0; INPUT_LEN];
    let len = stream.try_read(&mut buf)?;
    Ok(buf.get(..len).unwrap_or_default().to_vec())
}

fn stream_of(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
