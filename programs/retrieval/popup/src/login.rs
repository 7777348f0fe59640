//! What is asked of qmail-auth for a client that logs in, and its answers.

use ipc::auth::{Answer, Request};
use ipc::field::Bytes;
use ipc_async::Client;
use pop3::Verdict;
use pop3::authorization::Proof;
use sasl::Mechanism;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::sleep;

/// A refused login is answered later, as qmail-auth says, but never later than this.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const SERVICE: &str = "pop3";

/// A login to be judged, or a message of an exchange.
pub(crate) enum Question {
    Proof { user: Vec<u8>, proof: Proof },
    Start { mechanism: Mechanism, initial: Option<sasl::Secret> },
    Step { response: sasl::Secret },
}

/// What came of it.
pub(crate) enum Judged {
    /// With the session, if it is that of somebody who is in.
    Verdict(Verdict, Option<Entered>),
    Challenge(Vec<u8>),
}

/// Who is in, by the account's own name, and the session.
pub(crate) struct Entered {
    pub(crate) user: Vec<u8>,
    pub(crate) session: UnixStream,
}

/// The side of qmail-auth for one client.
pub(crate) struct Judge {
    address: IpAddr,
    /// The banner's.
    timestamp: Option<String>,
    /// qmail-auth's number for the exchange that is under way.
    exchange: Option<u64>,
    /// What the connection can be bound to, with TLS.
    exporter: Option<Bytes>,
    end_point: Option<Bytes>,
    /// The name for which the client's certificate stands for an account.
    certificate: Option<Bytes>,
}

impl Judge {
    pub(crate) fn new(address: IpAddr, timestamp: Option<String>) -> Self {
        Self { address, timestamp, exchange: None, exporter: None, end_point: None, certificate: None }
    }

    /// TLS has started.
    pub(crate) fn bind(&mut self, exporter: Option<[u8; 32]>, end_point: Option<Vec<u8>>, certificate: Option<String>) {
        self.certificate = certificate.map(|name| name.as_str().into());
        self.exporter = exporter.map(|bytes| bytes.as_slice().into());
        self.end_point = end_point.map(Bytes::from);
    }

    /// The banner's.
    pub(crate) fn timestamp(&self) -> Option<String> {
        self.timestamp.clone()
    }

    /// Asks qmail-auth; temporary when it does not answer in time. A refusal takes the time that it says.
    pub(crate) async fn ask(&mut self, auth: &Client<Answer>, question: Question) -> Judged {
        let exchange = self.exchange.take();
        let answer = auth.ask(|id| self.request(id, question, exchange)).await;
        let verdict = match answer {
            Ok((Answer::LoggedIn { user, .. }, Some(fd))) => match stream_of(fd) {
                Ok(session) => return Judged::Verdict(Verdict::Accepted, Some(Entered { user: user.0, session })),
                Err(_) => Verdict::Temporary,
            },
            Ok((Answer::Challenge { exchange, data, .. }, _)) => {
                self.exchange = Some(exchange);
                return Judged::Challenge(data.0);
            }
            Ok((Answer::Refused { pause_s, .. }, _)) => {
                sleep(Duration::from_secs(pause_s.into()).min(PAUSE_MAX)).await;
                Verdict::Refused
            }
            _ => Verdict::Temporary,
        };
        Judged::Verdict(verdict, None)
    }

    /// `exchange`: qmail-auth's number for the one under way; a step without one is an answer to nothing, and gets none that helps.
    fn request(&self, id: u64, question: Question, exchange: Option<u64>) -> Request {
        let remote = Some(self.address);
        match question {
            Question::Proof { user, proof: Proof::Password(password) } => {
                Request::Login { id, service: SERVICE.into(), login: user.into(), password, remote }
            }
            Question::Proof { user, proof: Proof::ApopDigest(digest) } => {
                let timestamp = self.timestamp.as_deref().unwrap_or_default().into();
                Request::Apop { id, login: user.into(), timestamp, digest, remote }
            }
            Question::Start { mechanism, initial } => Request::SaslStart {
                id,
                service: SERVICE.into(),
                mechanism: mechanism.name().into(),
                initial,
                remote,
                exporter: self.exporter.clone(),
                end_point: self.end_point.clone(),
                certificate: self.certificate.clone(),
            },
            Question::Step { response } => Request::SaslStep { id, exchange: exchange.unwrap_or(0), response },
        }
    }
}

fn stream_of(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
