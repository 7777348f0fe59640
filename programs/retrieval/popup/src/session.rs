//! One client: the dialogue until it is in, then the copying.

use crate::login::{Judge, Judged, Question};
use crate::relay;
use crate::service::Shared;
use pop3::authorization::Action;
use pop3::{Authorization, Offer};
use std::io;
use std::net::IpAddr;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Refused logins before the connection is closed.
const FAILURES_MAX: u32 = 3;
/// Bytes read at a time during the dialogue.
const INPUT_LEN: usize = 2048;

pub(crate) struct Session<'a> {
    stream: TcpStream,
    shared: &'a Shared,
    machine: Authorization,
    judge: Judge,
}

/// A client that is in: its session, and what it sent already for it.
struct Entered {
    session: UnixStream,
    first: Vec<u8>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(stream: TcpStream, address: IpAddr, shared: &'a Shared) -> Self {
        let cleartext = shared.config.allows_cleartext(address);
        let apop_timestamp = Some(&shared.mechanisms).filter(|set| cleartext && set.has_apop()).and_then(|_| timestamp(shared));
        let judge = Judge::new(address, apop_timestamp.clone());
        let offer = Offer { cleartext, stls: false, apop_timestamp, response_codes: true, failures_max: FAILURES_MAX };
        let machine = Authorization::new(offer).with_sasl(shared.mechanisms, false);
        Self { stream, shared, machine, judge }
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
            let question = match action {
                Action::Reply(reply) => {
                    replies.extend_from_slice(&reply);
                    continue;
                }
                Action::Judge { user, proof } => Question::Proof { user, proof },
                Action::SaslStart { mechanism, initial } => Question::Start { mechanism, initial },
                Action::SaslStep { response } => Question::Step { response },
                Action::HandOver | Action::Close | Action::StartTls { .. } => continue,
            };
            self.write(&std::mem::take(&mut replies)).await?;
            let mut more = Vec::new();
            let session = match self.judge.ask(&self.shared.auth, question).await {
                Judged::Verdict(verdict, session) => {
                    self.machine.verdict(verdict, &mut more);
                    session
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

/// The banner's timestamp, which no other has: that makes APOP's digests worthless the next time. Without random bytes there is no APOP.
fn timestamp(shared: &Shared) -> Option<String> {
    let random = u128::from_le_bytes(sys::random::bytes16().ok()?);
    Some(format!("<{random:x}.{}@{}>", sys::clock::unix_s(), wire::escape::visible(&shared.config.me)))
}
