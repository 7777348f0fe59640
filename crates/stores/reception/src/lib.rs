//! What the servers that take mail from a network share, whatever they speak: qmail-smtpd, qmail-qmtpd, qmail-qmqpd.
//!
//! | module | noun |
//! |---|---|
//! | [`admission`] | how many sessions there may be |
//! | [`queue`] | messages on their way to qmail-send, in the service face |
//! | [`outgoing`] | the same in the classic face, to qmail-send or to the program that QMAILQUEUE names |
//! | [`program`] | that program, started for a process that may start nothing |
//! | [`directory`] | qmail-auth, asked by the classic face |
//! | [`terms`] | what rules, lists and the environment say of one connection |
//! | [`stdio`] | a connection on standard input and output, and who is at its other end |
//!
//! Guarantees: an answer for every question and every message, temporary when the other side is gone. Never here: a protocol of clients.
#![forbid(unsafe_code)]

pub mod admission;
pub mod directory;
pub mod outgoing;
pub mod program;
pub mod queue;
pub mod stdio;
pub mod terms;

use std::sync::atomic::{AtomicBool, Ordering};

use ipc::queue::Answer;

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is durable: the number of the queue, if it said one, and the number behind `qp`.
    Accepted { id: Option<u64>, qp: u32 },
    /// Not now; the text may begin with an enhanced status code, or end with one: `(#4.3.0)`.
    Temporary(Vec<u8>),
    /// Never; as above.
    Permanent(Vec<u8>),
}

impl From<Answer> for Verdict {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Accepted { id, pid } => Self::Accepted { id: Some(id), qp: pid },
            Answer::Temporary { text } => Self::Temporary(text.0),
            Answer::Permanent { text } => Self::Permanent(text.0),
        }
    }
}

fn not_now(text: &str) -> Verdict {
    Verdict::Temporary(text.into())
}

/// Standard error is the connection to the client (inetd): a log line would be taken for a reply.
static LOG_IS_CLIENT: AtomicBool = AtomicBool::new(false);

/// To be asked once in the classic face, before anything is logged: under inetd there is no log.
pub fn look_at_the_log() {
    if stdio::is_client(rustix::stdio::stderr()) {
        LOG_IS_CLIENT.store(true, Ordering::Relaxed);
    }
}

/// One line of the log, in one write. That nobody reads it is no reason to stop.
pub fn log_line(line: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    if LOG_IS_CLIENT.load(Ordering::Relaxed) {
        return;
    }
    let line = wire::escape::visible(line.to_string().as_bytes());
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
