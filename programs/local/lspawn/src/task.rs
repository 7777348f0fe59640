//! A piece of work on its way: a delivery for qmail-send or a question of qmail-auth.

use std::os::fd::OwnedFd;
use std::time::Duration;

use ipc::field::{Bytes, Verdict};
use ipc::lspawn::{Existence, Room};
use ipc::{clip, job, lspawn, worker};
use wire::Address;

use crate::target::Target;

/// A delivery in a warm worker may take this long; then the worker is killed and the job deferred.
pub const DELIVERY_DEADLINE: Duration = Duration::from_secs(300);
/// A file with program lines may take this long: a program may run for a day.
pub const PROGRAM_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// Questions have short answers.
pub const QUESTION_DEADLINE: Duration = Duration::from_secs(5);

/// Who wants to hear the result: a connection, which may be gone by then, and its own number for this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub client: u64,
    pub number: u64,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    Deliver {
        sender: Address,
        settings: Bytes,
        inherits: Bytes,
    },
    Forward {
        sender: Address,
        targets: Vec<Address>,
        inherits: Bytes,
    },
    Exists,
    /// How much fits into the mailbox?
    Room {
        settings: Bytes,
        size: u64,
    },
    /// Another name for the home.
    Rename {
        to: Bytes,
    },
    /// May the user of this name log in? With `session` he does.
    LogIn {
        session: bool,
    },
}

/// Where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// qmail-getpw has been asked.
    Asked,
    /// Waits for a worker.
    Queued,
    /// A worker (warm or one-shot) has it.
    Running { process: u64 },
}

/// A piece of work.
#[derive(Debug)]
pub struct Task {
    pub origin: Origin,
    pub ask: Ask,
    /// The recipient in full, or for a question its local part alone.
    pub address: Address,
    /// The message.
    pub body: Option<OwnedFd>,
    pub stage: Stage,
    /// When [`Task::stage`] has taken too long.
    pub deadline: Duration,
    pub target: Option<Target>,
    /// A worker has gone before it took this.
    pub retried: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done(Verdict, Vec<u8>),
    Exists(Existence),
    Room(Room),
    /// `None`: done.
    Renamed(Option<String>),
    MayLogIn,
    /// Not now.
    NoSession(String),
    /// Nobody who may.
    NoUser(String),
}

impl Outcome {
    /// Not now, with a reason for the log.
    #[must_use]
    pub fn deferral(text: &str) -> Self {
        Self::Done(Verdict::Deferral, text.as_bytes().to_vec())
    }
}

impl Task {
    /// The request for a worker; `None` while no target is known.
    #[must_use]
    pub fn request(&self, number: u64, default_delivery: &[u8], lmtp: Option<worker::Lmtp>) -> Option<worker::Request> {
        let target = self.target.as_ref()?;
        let recipient = target.recipient.clone();
        // POP3 serves Maildirs, so that is what a virtual user has whatever system users are used to.
        let default_delivery = Bytes::from(if target.base.is_some() { b"./Maildir/" } else { default_delivery });
        Some(match &self.ask {
            Ask::Deliver { sender, settings, inherits } => {
                let (sender, settings, inherits) = (sender.clone(), settings.clone(), inherits.clone());
                worker::Request::Deliver { number, sender, recipient, default_delivery, settings, inherits, lmtp }
            }
            Ask::Forward { sender, targets, inherits } => {
                let (sender, targets, inherits) = (sender.clone(), targets.clone(), inherits.clone());
                worker::Request::Forward { number, sender, recipient, targets, inherits }
            }
            Ask::Exists => worker::Request::Exists { number, recipient, default_delivery },
            Ask::Room { settings, size } => worker::Request::Room { number, recipient, settings: settings.clone(), size: *size },
            Ask::Rename { to } => worker::Request::Rename { number, recipient, to: to.clone() },
            Ask::LogIn { .. } => return None,
        })
    }

    /// How long a worker may take.
    #[must_use]
    pub fn time_allowed(&self) -> Duration {
        if self.is_question() { QUESTION_DEADLINE } else { DELIVERY_DEADLINE }
    }

    /// Answered by a look, not by a delivery.
    #[must_use]
    pub fn is_question(&self) -> bool {
        matches!(self.ask, Ask::Exists | Ask::Room { .. } | Ask::Rename { .. })
    }

    /// The outcome when something of ours went wrong: a delivery is deferred, a question of existence is answered so that
    /// nothing is refused for it.
    #[must_use]
    pub fn failed(&self, text: &str) -> Outcome {
        match self.ask {
            Ask::Exists => Outcome::Exists(Existence::CannotTell {}),
            Ask::Room { .. } => Outcome::Room(Room::CannotTell {}),
            Ask::Rename { .. } => Outcome::Renamed(Some(text.to_owned())),
            Ask::LogIn { .. } => Outcome::NoSession(text.to_owned()),
            _ => Outcome::deferral(text),
        }
    }
}

/// The datagram that tells the client.
#[must_use]
pub fn answer(number: u64, outcome: &Outcome) -> Vec<u8> {
    use ipc::Message as _;
    match outcome {
        Outcome::Done(verdict, text) => {
            let outcomes = vec![job::Outcome { recipient: 0, verdict: *verdict, text: clip(text).into() }];
            job::Answer::Done { number, outcomes, untried: Vec::new(), last: true }.encode()
        }
        Outcome::Exists(existence) => lspawn::Answer::Exists { id: number, answer: existence.clone() }.encode(),
        Outcome::Room(room) => lspawn::Answer::Room { id: number, room: room.clone() }.encode(),
        Outcome::Renamed(failure) => {
            let failure = failure.as_ref().map(|text| clip(text.as_bytes()).into());
            lspawn::Answer::Renamed { id: number, failure }.encode()
        }
        Outcome::MayLogIn => lspawn::Answer::Session { id: number }.encode(),
        Outcome::NoSession(text) => lspawn::Answer::NoSession { id: number, text: clip(text.as_bytes()).into() }.encode(),
        Outcome::NoUser(text) => lspawn::Answer::NoUser { id: number, text: clip(text.as_bytes()).into() }.encode(),
    }
}
