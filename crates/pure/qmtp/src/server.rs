//! The server's side of QMTP, as a machine without I/O.
//!
//! A client sends, as often as it likes and without waiting, the netstring of a text, that of a sender, and that of the netstrings of
//! recipients; each recipient gets one answer, a netstring that begins with `K`, `Z` or `D`. The first byte of the text says how its lines
//! end: LF, or CR for CRLF.
//!
//! Guarantees: `K` only after the queue said that the message is durable. As many answers as recipients, in their order. A CR or LF
//! that ends no line is refused, or with `control/barelf` = normalize ends one, before anything looks at the text: what goes on has LF alone
//! (promise 2). Who may send where, and who exists, is decided as by SMTP. Memory: the recipients of a message
//! ([`LIST_LEN_MAX`], [`LIST_COUNT_MAX`]), one address, and the input behind a message that is being judged, which the driver reads no
//! further than one chunk. Every byte is looked at once; what is not QMTP ends the session.
//! Never reads a clock, waits, or keeps a text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use smtp::data::{Bounds, Decoder, Fault as TextFault, Framing};
use smtp::server::{Now, RecipientAnswer};
use wire::Address;

use crate::exchange::{
    ADDRESS_LEN_END, Action, BAD_MAIL_FROM, BAD_SENDER, BARE_LF, CANNOT_HANDLE, CANNOT_TELL, Clock, Commit, Config, Counts, End,
    FULL, FULL_NOW, Input, LINE_LEN_MAX, LINE_TOO_LONG, NO_MAILBOX, NO_RELAY, Peer, QueueAnswer, TEXT_LEN_MAX, TOO_LARGE,
    TOO_MANY, TOO_MANY_HOPS, accepted, printable, refused, taken_line,
};
use crate::netstring::{Piece, Reader};

/// Longest list of recipients in bytes; as much as SMTP's recipients may have.
pub const LIST_LEN_MAX: u64 = 1 << 20;
/// Most recipients of a list, refused ones too: each needs an answer.
pub const LIST_COUNT_MAX: usize = 16_384;
/// Most bytes that a client sends ahead while its message is judged. A driver that reads less at a time and not meanwhile never gets there.
pub const HELD_LEN_MAX: usize = 256 * 1024;
/// Refusals of a message that have a line in the log.
const LOGGED_MAX: usize = 20;

/// One connection.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    peer: Peer,
    clock: Clock,
    started: Duration,
    /// Of the netstring under way.
    outer: Reader,
    stage: Stage,
    message: Message,
    /// Came behind the message that is being judged.
    held: Vec<u8>,
    questions: u32,
    bad_recipients: u32,
    counts: Counts,
    is_draining: bool,
    end: Option<End>,
}

/// What is read, or waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Text,
    Sender,
    Recipients,
    /// All is read, the directory has not answered yet.
    Judging,
    Committing,
}

/// The message under way.
#[derive(Debug, Default)]
struct Message {
    /// `None` before the first byte of the text.
    text: Option<Decoder>,
    /// Handed to the queue, and not given up.
    is_begun: bool,
    eight_bit: bool,
    /// The sender, or the recipient under way, as far as it is here; no longer than an address may be.
    address: Vec<u8>,
    sender: Address,
    /// Why nobody gets it.
    refusal: Option<&'static str>,
    inner: Reader,
    recipients: Vec<Recipient>,
    /// Questions without an answer, and which recipient each is about.
    open: BTreeMap<u32, usize>,
}

#[derive(Debug)]
struct Recipient {
    address: Address,
    verdict: Result<(), &'static str>,
}

impl Session {
    #[must_use]
    pub fn new(config: Arc<Config>, peer: Peer, now: Now) -> Self {
        Self {
            config,
            peer,
            clock: Clock::new(now),
            started: now.boot,
            outer: Reader::new(),
            stage: Stage::Text,
            message: Message::default(),
            held: Vec::new(),
            questions: 0,
            bad_recipients: 0,
            counts: Counts::default(),
            is_draining: false,
            end: None,
        }
    }

    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.end
    }

    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Since boot.
    #[must_use]
    pub fn started(&self) -> Duration {
        self.started
    }

    /// When the client has waited too long with its next byte, since boot.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.clock.deadline(self.config.timeout_s)
    }

    /// One step. After the end every input is passed over.
    pub fn step(&mut self, now: Now, input: Input<'_>, out: &mut Vec<Action>) {
        if self.end.is_some() {
            return;
        }
        self.clock.now = now;
        match input {
            Input::Bytes(bytes) => self.bytes(now, bytes, out),
            Input::Recipient { question, answer } => self.recipient_answered(question, answer, out),
            Input::Queue(answer) => self.queue_answered(answer, out),
            Input::Deadline => self.close(End::Timeout, out),
            Input::Closed => self.close(if self.is_between() { End::Done } else { End::Gone }, out),
            Input::Drain if self.is_between() => self.close(End::Drained, out),
            Input::Drain => self.is_draining = true,
        }
        // A driver that read on all the same must not fill our memory.
        if self.held.len() > HELD_LEN_MAX {
            self.close(End::Limit, out);
        }
    }

    fn is_between(&self) -> bool {
        self.stage == Stage::Text && self.outer.is_between() && self.held.is_empty()
    }

    fn is_reading(&self) -> bool {
        self.end.is_none() && !matches!(self.stage, Stage::Judging | Stage::Committing)
    }

    fn bytes(&mut self, now: Now, bytes: &[u8], out: &mut Vec<Action>) {
        self.clock.hears(now);
        if !self.is_reading() {
            return self.held.extend_from_slice(bytes);
        }
        let mut rest = bytes;
        while self.is_reading() {
            match self.piece(&mut rest, out) {
                Ok(true) => {}
                Ok(false) => break,
                Err(end) => return self.close(end, out),
            }
        }
        if self.end.is_none() {
            self.held.extend_from_slice(rest);
        }
    }

    /// Takes the next piece; false if there is none.
    fn piece(&mut self, rest: &mut &[u8], out: &mut Vec<Action>) -> Result<bool, End> {
        let len_max = if self.stage == Stage::Recipients { LIST_LEN_MAX } else { TEXT_LEN_MAX };
        let Some(piece) = self.outer.next(rest, len_max)? else { return Ok(false) };
        match (self.stage, piece) {
            (Stage::Text, Piece::Start(0)) => return Err(End::Protocol),
            (_, Piece::Start(_)) => {}
            (Stage::Text, Piece::Content(bytes)) => self.text(bytes, out)?,
            (Stage::Text, Piece::End) => self.text_ended(out),
            (Stage::Sender, Piece::Content(bytes)) => self.message.keep(bytes),
            (Stage::Sender, Piece::End) => self.sender(),
            (Stage::Recipients, Piece::Content(bytes)) => self.recipients(bytes, out)?,
            (Stage::Recipients, Piece::End) if !self.message.inner.is_between() => return Err(End::Protocol),
            (Stage::Recipients, Piece::End) => {
                self.stage = Stage::Judging;
                self.settle(out);
            }
            (Stage::Judging | Stage::Committing, _) => return Ok(false),
        }
        Ok(true)
    }

    fn text(&mut self, mut bytes: &[u8], out: &mut Vec<Action>) -> Result<(), End> {
        if self.message.text.is_none() {
            let framing = match bytes.split_first() {
                Some((b'\n', _)) => Framing::Lines,
                Some((b'\r', _)) => Framing::Chunks,
                _ => return Err(End::Protocol),
            };
            bytes = bytes.get(1..).unwrap_or_default();
            let databytes = self.peer.databytes.unwrap_or(self.config.databytes);
            let bounds = Bounds { barelf: self.config.barelf, databytes, line_len_max: LINE_LEN_MAX };
            self.message.text = Some(Decoder::new(framing, bounds));
            self.message.is_begun = true;
            out.push(Action::Begin);
            out.push(Action::Text(self.peer.received(&self.config, "QMTP", self.clock.now.unix_s)));
        }
        self.decode(out, |decoder, text| {
            decoder.decode(bytes, text);
        });
        self.message.eight_bit = self.message.eight_bit || !bytes.is_ascii();
        Ok(())
    }

    fn text_ended(&mut self, out: &mut Vec<Action>) {
        self.decode(out, Decoder::finish);
        self.stage = Stage::Sender;
    }

    fn decode(&mut self, out: &mut Vec<Action>, step: impl FnOnce(&mut Decoder, &mut Vec<u8>)) {
        let Some(decoder) = &mut self.message.text else { return };
        let mut text = Vec::new();
        step(decoder, &mut text);
        if let Some(fault) = decoder.fault() {
            self.refuse(text_refusal(fault), out);
        } else if self.message.is_begun && !text.is_empty() {
            out.push(Action::Text(text));
        }
    }

    /// Nobody gets the message; the first reason counts.
    fn refuse(&mut self, why: &'static str, out: &mut Vec<Action>) {
        self.message.refusal.get_or_insert(why);
        if std::mem::take(&mut self.message.is_begun) {
            out.push(Action::Abandon);
        }
    }

    fn sender(&mut self) {
        let bytes = std::mem::take(&mut self.message.address);
        let refusal = match Address::new(&bytes) {
            Ok(sender) if bytes.len() < ADDRESS_LEN_END => {
                let is_bad = !sender.is_null() && self.config.badmailfrom.fit(sender.as_bytes());
                self.message.sender = sender;
                is_bad.then_some(BAD_MAIL_FROM)
            }
            _ => Some(BAD_SENDER),
        };
        // That the text cannot be taken is said rather than this, as ever.
        self.message.refusal = self.message.refusal.or(refusal);
        self.stage = Stage::Recipients;
    }

    fn recipients(&mut self, mut bytes: &[u8], out: &mut Vec<Action>) -> Result<(), End> {
        while let Some(piece) = self.message.inner.next(&mut bytes, LIST_LEN_MAX)? {
            match piece {
                Piece::Start(_) => {}
                Piece::Content(bytes) => self.message.keep(bytes),
                Piece::End if self.message.recipients.len() >= LIST_COUNT_MAX => return Err(End::Limit),
                Piece::End => self.recipient(out),
            }
        }
        Ok(())
    }

    fn recipient(&mut self, out: &mut Vec<Action>) {
        let bytes = std::mem::take(&mut self.message.address);
        let suffix = self.peer.relay_client.as_deref().unwrap_or_default();
        let address = match Address::new(&[&bytes, suffix].concat()) {
            Ok(address) if bytes.len().saturating_add(suffix.len()) < ADDRESS_LEN_END && !bytes.is_empty() => Some(address),
            _ => None,
        };
        let verdict = match &address {
            None => Err(CANNOT_HANDLE),
            Some(address) => self.may_pass(address),
        };
        let asks = address.as_ref().filter(|address| {
            // Everyone must take mail for the bare name postmaster (RFC 5321 §4.5.1): not the directory's to refuse.
            let is_postmaster = address.as_bytes().eq_ignore_ascii_case(b"postmaster");
            !is_postmaster && verdict != Err(CANNOT_TELL)
        });
        if let Some(recipient) = asks {
            self.questions = self.questions.wrapping_add(1);
            self.message.open.insert(self.questions, self.message.recipients.len());
            let size = self.message.text.as_ref().map_or(0, Decoder::len);
            out.push(Action::CheckRecipient { question: self.questions, recipient: recipient.clone(), size });
        }
        self.message.recipients.push(Recipient { address: address.unwrap_or_default(), verdict });
    }

    /// May this client send to a domain that is none of ours (promise 5)? An address without a domain never leaves this system.
    fn may_pass(&self, recipient: &Address) -> Result<(), &'static str> {
        if self.peer.relay_client.is_some() {
            return Ok(());
        }
        match recipient.domain().map(|domain| self.config.rcpthosts.contains(domain)) {
            None | Some(Ok(true)) => Ok(()),
            Some(Ok(false)) => Err(NO_RELAY),
            Some(Err(_)) => Err(CANNOT_TELL),
        }
    }

    fn recipient_answered(&mut self, question: u32, answer: RecipientAnswer, out: &mut Vec<Action>) {
        let Some(at) = self.message.open.remove(&question) else { return };
        let Some(recipient) = self.message.recipients.get_mut(at) else { return };
        match answer {
            RecipientAnswer::Exists => recipient.verdict = Ok(()),
            RecipientAnswer::NotOurs => {}
            RecipientAnswer::NoMailbox => recipient.verdict = Err(NO_MAILBOX),
            // No program is asked here, so the last two do not come.
            RecipientAnswer::Temporary | RecipientAnswer::Refused { .. } | RecipientAnswer::OverLimit { .. } => {
                recipient.verdict = Err(CANNOT_TELL);
            }
            RecipientAnswer::Full { is_temporary: true } => recipient.verdict = Err(FULL_NOW),
            RecipientAnswer::Full { is_temporary: false } => recipient.verdict = Err(FULL),
        }
        self.settle(out);
    }

    /// Hands the message over when all is known.
    fn settle(&mut self, out: &mut Vec<Action>) {
        if self.stage != Stage::Judging || !self.message.open.is_empty() {
            return;
        }
        self.leave_out();
        let is_wanted = self.message.recipients.iter().any(|recipient| recipient.verdict.is_ok());
        if self.message.refusal.is_some() || !is_wanted {
            if std::mem::take(&mut self.message.is_begun) {
                out.push(Action::Abandon);
            }
            return self.answer(None, out);
        }
        let mut utf8 = self.message.sender.is_utf8_only();
        for recipient in self.message.recipients.iter().filter(|recipient| recipient.verdict.is_ok()) {
            utf8 = utf8 || recipient.address.is_utf8_only();
            out.push(Action::Recipient(recipient.address.clone()));
        }
        let (sender, eight_bit) = (self.message.sender.clone(), self.message.eight_bit);
        // From here on it is the queue's.
        self.message.is_begun = false;
        out.push(Action::Commit(Commit { sender, eight_bit, utf8 }));
        self.stage = Stage::Committing;
    }

    /// Who is over the number of recipients that are taken comes in another message.
    fn leave_out(&mut self) {
        let taken = self.message.recipients.iter_mut().filter(|recipient| recipient.verdict.is_ok());
        taken.skip(self.config.recipients_max).for_each(|recipient| recipient.verdict = Err(TOO_MANY));
    }

    fn queue_answered(&mut self, answer: QueueAnswer, out: &mut Vec<Action>) {
        if self.stage == Stage::Committing {
            self.answer(Some(answer), out);
        }
    }

    /// One answer for each recipient; then the next message.
    fn answer(&mut self, queue: Option<QueueAnswer>, out: &mut Vec<Action>) {
        let message = std::mem::take(&mut self.message);
        let number = if let Some(QueueAnswer::Accepted { id, qp }) = queue { Some((id, qp)) } else { None };
        let of_all = match (message.refusal, queue) {
            (Some(refusal), _) => refusal.as_bytes().to_vec(),
            (None, Some(QueueAnswer::Accepted { qp, .. })) => accepted(self.clock.now.unix_s, qp),
            (None, Some(QueueAnswer::Refused(report))) => printable(report),
            // There is nobody whom this would be said to.
            (None, None) => Vec::new(),
        };
        let (mut answers, mut logged, mut taken) = (Vec::new(), 0, 0_u64);
        for recipient in &message.recipients {
            let text = recipient.verdict.map_or_else(str::as_bytes, |()| &of_all);
            wire::netstring::encode(text, &mut answers);
            if text.first() == Some(&b'K') {
                taken = taken.saturating_add(1);
                continue;
            }
            self.counts.refused = self.counts.refused.saturating_add(1);
            if matches!(recipient.verdict, Err(NO_MAILBOX | NO_RELAY | CANNOT_HANDLE)) {
                self.bad_recipients = self.bad_recipients.saturating_add(1);
            }
            logged += 1;
            if logged <= LOGGED_MAX {
                out.push(Action::Log(refused(&self.peer, &message.sender, Some(&recipient.address), text)));
            }
        }
        if let Some((id, qp)) = number {
            let bytes = message.text.as_ref().map_or(0, Decoder::len);
            self.counts.messages = self.counts.messages.saturating_add(1);
            self.counts.recipients = self.counts.recipients.saturating_add(taken);
            self.counts.bytes = self.counts.bytes.saturating_add(bytes);
            out.push(Action::Log(taken_line(&self.peer, id, qp, &message.sender, taken, bytes)));
        }
        if !answers.is_empty() {
            out.push(Action::Answer(answers));
        }
        self.stage = Stage::Text;
        self.next_message(out);
    }

    fn next_message(&mut self, out: &mut Vec<Action>) {
        self.clock.is_between_messages();
        let most = self.config.bad_recipients_max;
        if most != 0 && self.bad_recipients >= most {
            return self.close(End::Limit, out);
        }
        if self.is_draining {
            return self.close(End::Drained, out);
        }
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.bytes(self.clock.now, &held, out);
        }
    }

    fn close(&mut self, end: End, out: &mut Vec<Action>) {
        if std::mem::take(&mut self.message.is_begun) {
            out.push(Action::Abandon);
        }
        self.end = Some(end);
        out.push(Action::Close);
    }
}

impl Message {
    /// More of an address; what is over the bound is passed over, and shows by the length.
    fn keep(&mut self, bytes: &[u8]) {
        let room = (ADDRESS_LEN_END.saturating_add(1)).saturating_sub(self.address.len());
        self.address.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }
}

fn text_refusal(fault: TextFault) -> &'static str {
    match fault {
        TextFault::BareLf => BARE_LF,
        TextFault::TooManyHops => TOO_MANY_HOPS,
        TextFault::TooLarge => TOO_LARGE,
        TextFault::LineTooLong => LINE_TOO_LONG,
    }
}
