//! What both faces have in common: which machine it is, and what its words are to the queue, the directory and the log.

use ipc::Refusal;
use ipc::auth;
use ipc::queue::{FLAG_EIGHT_BIT, FLAG_SMTPUTF8, Item};
use logline::Line;
use qmtp::exchange::{Action, Commit, Config, Connection, End, Input, Peer, QueueAnswer};
use qmtp::{qmqp, server};
use reception::Verdict;
use smtp::server::{Now, RecipientAnswer};
use std::sync::Arc;
use std::time::Duration;
use wire::Address;

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Qmtp,
    Qmqp,
}

impl Protocol {
    /// The name in the process table.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Qmtp => "qmail-qmtpd",
            Self::Qmqp => "qmail-qmqpd",
        }
    }
}

/// One session, and what went over its connection.
#[derive(Debug)]
pub(crate) struct Machine {
    session: Session,
    taken: u64,
    sent: u64,
}

#[derive(Debug)]
enum Session {
    Qmtp(Box<server::Session>),
    Qmqp(Box<qmqp::Session>),
}

impl Machine {
    pub(crate) fn new(protocol: Protocol, config: Arc<Config>, peer: Peer) -> Self {
        let session = match protocol {
            Protocol::Qmtp => Session::Qmtp(Box::new(server::Session::new(config, peer, now()))),
            Protocol::Qmqp => Session::Qmqp(Box::new(qmqp::Session::new(config, peer, now()))),
        };
        Self { session, taken: 0, sent: 0 }
    }

    pub(crate) fn step(&mut self, input: Input<'_>, out: &mut Vec<Action>) {
        let before = out.len();
        if let Input::Bytes(bytes) = &input {
            self.taken = self.taken.saturating_add(bytes.len() as u64);
        }
        match &mut self.session {
            Session::Qmtp(session) => session.step(now(), input, out),
            Session::Qmqp(session) => session.step(now(), input, out),
        }
        let said = out.iter().skip(before).map(|action| if let Action::Answer(bytes) = action { bytes.len() as u64 } else { 0 });
        self.sent = self.sent.saturating_add(said.sum());
    }

    fn connection(&self) -> &Connection {
        match &self.session {
            Session::Qmtp(session) => session.connection(),
            Session::Qmqp(session) => session.connection(),
        }
    }

    pub(crate) fn end(&self) -> Option<End> {
        self.connection().end()
    }

    /// How long the client may take with its next byte.
    pub(crate) fn left(&self) -> Duration {
        self.connection().deadline().saturating_sub(now().boot)
    }

    /// The line of a session that is over.
    pub(crate) fn end_line(&self) -> Line {
        let service = match &self.session {
            Session::Qmtp(_) => "qmtp",
            Session::Qmqp(_) => "qmqp",
        };
        let connection = self.connection();
        let (counts, started) = (connection.counts(), connection.started());
        let line = logline::Session {
            service,
            remote: &connection.peer().remote_ip,
            end: end_name(self.end().unwrap_or(End::Gone)),
            seconds: now().boot.saturating_sub(started).as_secs(),
            taken: self.taken,
            sent: self.sent,
            ..logline::Session::default()
        }
        .line();
        let line = line.put("messages", counts.messages).put("recipients", counts.recipients).put("bytes", counts.bytes);
        line.put("refused", counts.refused)
    }
}

/// How long recipients of one message are asked about, in all; those who are left come again. Less than any client waits for its answers: one
/// that has given up sends again what is taken then.
pub(crate) const ASKING_MAX: Duration = Duration::from_secs(300);

fn end_name(end: End) -> &'static str {
    match end {
        End::Done => "quit",
        End::Gone => "gone",
        End::Protocol => "protocol",
        End::Limit => "limit",
        End::Timeout => "timeout",
        End::Drained => "shutdown",
    }
}

pub(crate) fn now() -> Now {
    Now { unix_s: sys::clock::unix_s(), boot: sys::clock::boottime() }
}

/// The item that begins a message whose envelope is not known yet.
pub(crate) fn begin() -> Item<'static> {
    Item::Begin { sender: Address::null(), flags: 0 }
}

/// The item that says what it was not known at the beginning.
pub(crate) fn from(commit: &Commit) -> Item<'static> {
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    let flags = flag(commit.eight_bit, FLAG_EIGHT_BIT) | flag(commit.utf8, FLAG_SMTPUTF8);
    Item::From { sender: commit.sender.clone(), flags }
}

pub(crate) fn recipient_answer(verdict: &auth::Directory) -> RecipientAnswer {
    match verdict {
        auth::Directory::Mailbox {} => RecipientAnswer::Exists,
        auth::Directory::NoMailbox {} => RecipientAnswer::NoMailbox,
        auth::Directory::NotMine {} => RecipientAnswer::NotOurs,
        auth::Directory::Temporary {} => RecipientAnswer::Temporary,
        auth::Directory::Full { defers } => RecipientAnswer::Full { is_temporary: *defers },
    }
}

/// What the queue says, in the wording of reports.
pub(crate) fn queue_answer(verdict: Verdict) -> QueueAnswer {
    let report = |is_permanent: bool, text: Vec<u8>| {
        // Those of a program have their code at the end already.
        let is_report = text.ends_with(b")") && text.windows(2).any(|pair| pair == b"(#");
        let refusal = if is_report { Refusal { is_permanent, text } } else { Refusal::of_answer(is_permanent, &text) };
        QueueAnswer::Refused(refusal.report())
    };
    match verdict {
        Verdict::Accepted { id, qp } => QueueAnswer::Accepted { id, qp },
        Verdict::Temporary(text) => report(false, text),
        Verdict::Permanent(text) => report(true, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queues_words_have_their_code_once() {
        let temporary = |text: &str| queue_answer(Verdict::Temporary(text.into()));
        let refused = |text: &str| QueueAnswer::Refused(text.into());
        assert_eq!(temporary("4.3.1 mail system full"), refused("Zmail system full (#4.3.1)"));
        assert_eq!(temporary("qq crashed (#4.3.0)"), refused("Zqq crashed (#4.3.0)"));
        assert_eq!(temporary("what"), refused("Zwhat (#4.3.0)"));
        assert_eq!(queue_answer(Verdict::Permanent(b"spam (#5.7.1)".to_vec())), refused("Dspam (#5.7.1)"));
        assert_eq!(queue_answer(Verdict::Accepted { id: None, qp: 7 }), QueueAnswer::Accepted { id: None, qp: 7 });
    }
}
