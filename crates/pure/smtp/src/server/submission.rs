//! What holds for clients that are logged in or submit (RFC 6409): the sender is theirs, and the header is judged and completed before
//! any of the text goes on.
//!
//! The machine finds the header and holds it back; whoever runs the session reads it, asks whose its authors are, and gives back
//! the header that goes on. Guarantees: at most [`HEADER_LEN_MAX`] bytes are held beside what was read in one go; a message is judged
//! once, and where the client's bytes were cut makes no difference to what is judged. A client that is neither costs nothing here.
//! The null sender is everybody's: notifications of a user's client have it (RFC 8098 §3), and their header is judged all the same.

#[cfg(test)]
mod tests;

use super::exchange::{Action, Actions, HeaderAnswer, SenderAnswer, SendingLimit};
use super::text::{Message, Source};
use super::{Session, State, replies};
use crate::command::Hold;
use wire::Address;
use wire::civil::Civil;

/// Longest header of a message that is submitted, in bytes as stored. 552 5.3.4.
pub const HEADER_LEN_MAX: usize = 64 * 1024;

/// The front of a message's text.
#[derive(Debug, Default)]
pub(super) struct HeldHeader(Vec<u8>);

/// What is known of a header.
pub(super) enum Header {
    Open(HeldHeader),
    TooLarge,
    /// `behind`: the empty line and what came with it.
    Whole {
        header: Vec<u8>,
        behind: Vec<u8>,
    },
}

/// A message whose header is being judged.
#[derive(Debug)]
pub(super) struct Judged {
    message: Message,
    source: Source,
    behind: Vec<u8>,
}

impl HeldHeader {
    /// More text; `is_over`: it is the last of the message.
    pub(super) fn add(self, text: &[u8], is_over: bool) -> Header {
        let Self(mut held) = self;
        // The empty line may begin with the end of the piece before.
        let from = held.len().saturating_sub(1);
        held.extend_from_slice(text);
        let end = match held.first() {
            Some(b'\n') => Some(0),
            _ => memchr::memmem::find(held.get(from..).unwrap_or_default(), b"\n\n")
                .map(|at| from.saturating_add(at).saturating_add(1)),
        };
        let len = end.unwrap_or(held.len());
        match end {
            _ if len > HEADER_LEN_MAX => Header::TooLarge,
            Some(end) => {
                let behind = held.split_off(end);
                Header::Whole { header: held, behind }
            }
            None if is_over => Header::Whole { header: held, behind: Vec::new() },
            None => Header::Open(Self(held)),
        }
    }
}

/// Longest time that a message may be held, in seconds: 30 days (RFC 4865 §4).
pub(super) const HOLD_S_MAX: u64 = 30 * 86_400;

/// `FUTURERELEASE max-interval max-datetime` (RFC 4865 §4).
pub(super) fn hold_keyword(now_s: u64) -> String {
    let latest = Civil::from_unix(now_s.saturating_add(HOLD_S_MAX)).rfc3339();
    format!("FUTURERELEASE {HOLD_S_MAX} {latest}")
}

/// Until when a message is held; one for a moment that has passed is not. `None`: longer than offered.
pub(super) fn hold_until(hold: Hold, now_s: u64) -> Option<u64> {
    let until_s = match hold {
        Hold::For(seconds) => now_s.saturating_add(seconds),
        Hold::Until(unix_s) => unix_s,
    };
    (until_s <= now_s.saturating_add(HOLD_S_MAX)).then_some(until_s)
}

impl Session {
    /// Must this client's senders be its own?
    pub(super) fn is_bound(&self) -> bool {
        self.user.is_some() && self.config.submission.binds_senders
    }

    pub(super) fn must_own(&self, sender: &Address) -> bool {
        self.is_bound() && !sender.is_null()
    }

    pub(super) fn is_header_judged(&self) -> bool {
        self.user.is_some() || self.peer.is_submission
    }

    /// The answer to [`Action::CheckSender`].
    pub(super) fn sender_answered(&mut self, answer: SenderAnswer, out: &mut Actions) {
        let transaction = match std::mem::replace(&mut self.state, State::Idle) {
            State::JudgingSender(transaction) => transaction,
            other => return self.state = other,
        };
        let reply = match answer {
            SenderAnswer::Yes => {
                out.reply(&transaction.mail_reply());
                self.state = State::Mail(transaction);
                return self.end_if_draining(out);
            }
            SenderAnswer::NotYours => replies::NOT_YOUR_SENDER,
            SenderAnswer::Limited(limit) => limit_reply(limit),
            SenderAnswer::Temporary => replies::CANNOT_TELL_SENDER,
        };
        self.log_refusal(Some(transaction.sender()), None, reply, out);
        self.refuse_unlogged(reply, out);
        self.end_if_draining(out);
    }

    pub(super) fn judge_header(&mut self, message: Message, source: Source, header: Vec<u8>, behind: Vec<u8>, out: &mut Actions) {
        out.push(Action::JudgeHeader { header, recipients: message.recipients });
        self.state = State::JudgingHeader(Box::new(Judged { message, source, behind }));
    }

    /// The answer to [`Action::JudgeHeader`].
    pub(super) fn header_answered(&mut self, answer: HeaderAnswer, out: &mut Actions) {
        let judged = match std::mem::replace(&mut self.state, State::Idle) {
            State::JudgingHeader(judged) => judged,
            other => return self.state = other,
        };
        let Judged { mut message, source, behind } = *judged;
        match answer {
            HeaderAnswer::Accepted { header } => self.header_accepted(header, message.priority, out),
            HeaderAnswer::TooLarge => message.refusal = Some(replies::HEADER_TOO_LARGE),
            HeaderAnswer::Unclear => message.refusal = Some(replies::UNCLEAR_HEADER),
            HeaderAnswer::NotYours => message.refusal = Some(replies::NOT_YOUR_HEADER),
            HeaderAnswer::Limited(limit) => message.refusal = Some(limit_reply(limit)),
            HeaderAnswer::Temporary => message.refusal = Some(replies::CANNOT_TELL_HEADER),
        }
        self.text_taken(message, source, behind, out);
    }
}

fn limit_reply(limit: SendingLimit) -> &'static str {
    match limit {
        SendingLimit::MessagesPerHour => replies::MESSAGES_PER_HOUR,
        SendingLimit::RecipientsPerHour => replies::RECIPIENTS_PER_HOUR,
        SendingLimit::MessagesPerDay => replies::MESSAGES_PER_DAY,
        SendingLimit::RecipientsPerDay => replies::RECIPIENTS_PER_DAY,
    }
}
