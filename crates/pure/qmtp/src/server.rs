//! The server's side of QMTP, as a machine without I/O.
//!
//! A client sends, as often as it likes and without waiting, the netstring of a text, that of a sender, and that of the netstrings of
//! recipients; each recipient gets one answer, a netstring that begins with `K`, `Z` or `D`. The first byte of the text says how its lines
//! end: LF, or CR for CRLF.
//!
//! Guarantees: `K` only after the queue said that the message is durable. As many answers as recipients, in their order. A CR or LF
//! that ends no line is refused, or with `control/barelf` = normalize ends one, before anything looks at the text: what goes on has LF alone
//! (promise 2). Who may send where, and who exists, is decided as by SMTP ([`smtp::server::Rules`]); the directory is asked when all
//! recipients are here, at most [`QUESTIONS_MAX`] at a time, and not at all about a message that nobody gets, nor any more when the client
//! has named too many whom it may not write to. Memory: the recipients of a message ([`LIST_LEN_MAX`], [`LIST_COUNT_MAX`]), one
//! address, and the input behind a message that is being judged, which the driver reads no further than one chunk. Every byte is looked at
//! once; what is not QMTP ends the session.
//! Never reads a clock, waits, or keeps a text.

use std::borrow::Cow;
use std::sync::Arc;

use smtp::data::{Bounds, Decoder, Fault as TextFault, Framing};
use smtp::server::{JudgedRecipient as Judged, Now, Passage, QUESTIONS_MAX, RecipientAnswer, Report, answered};
use wire::Address;

use crate::exchange::{
    ADDRESS_LEN_END, Action, BAD_SENDER, BARE_LF, CANNOT_HANDLE, Commit, Config, Connection, End, Input, LINE_LEN_MAX,
    LINE_TOO_LONG, Peer, QueueAnswer, TEXT_LEN_MAX, TOO_LARGE, TOO_MANY, TOO_MANY_HOPS, accepted, printable, refused, taken_line,
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
    connection: Connection,
    /// Of the netstring under way.
    outer: Reader,
    stage: Stage,
    message: Message,
    /// Came behind the message that is being judged.
    held: Vec<u8>,
    questions: u32,
    bad_recipients: u32,
    /// A program wants no more of this client.
    is_last: bool,
    is_draining: bool,
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
    refusal: Option<Cow<'static, [u8]>>,
    inner: Reader,
    recipients: Vec<Recipient>,
    /// Those before have been asked about, or need not be.
    next: usize,
    /// Questions without an answer.
    open: usize,
    /// Recipients that are taken so far.
    taken: usize,
}

#[derive(Debug)]
struct Recipient {
    address: Address,
    standing: Standing,
}

/// What is known of a recipient.
#[derive(Debug)]
enum Standing {
    /// The directory decides; `question`: it has been asked.
    Open { question: Option<u32>, otherwise: Passage, known: Passage },
    /// Taken, if anybody is, or what he is answered.
    Settled(Result<(), Cow<'static, [u8]>>),
}

impl Recipient {
    fn is_taken(&self) -> bool {
        matches!(self.standing, Standing::Settled(Ok(())))
    }
}

impl Session {
    #[must_use]
    pub fn new(config: Arc<Config>, peer: Peer, now: Now) -> Self {
        Self {
            connection: Connection::new(config, peer, now),
            outer: Reader::new(),
            stage: Stage::Text,
            message: Message::default(),
            held: Vec::new(),
            questions: 0,
            bad_recipients: 0,
            is_last: false,
            is_draining: false,
        }
    }

    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Of the message under way, as far as it is known.
    #[must_use]
    pub fn sender(&self) -> &Address {
        &self.message.sender
    }

    /// One step. After the end every input is passed over.
    pub fn step(&mut self, now: Now, input: Input<'_>, out: &mut Vec<Action>) {
        if self.connection.end.is_some() {
            return;
        }
        self.connection.clock.now = now;
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
        self.connection.end.is_none() && !matches!(self.stage, Stage::Judging | Stage::Committing)
    }

    fn bytes(&mut self, now: Now, bytes: &[u8], out: &mut Vec<Action>) {
        self.connection.clock.hears(now);
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
        if self.connection.end.is_none() {
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
            (Stage::Sender, Piece::End) => self.sender_ended(out),
            (Stage::Recipients, Piece::Content(bytes)) => self.recipients(bytes)?,
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
            let databytes = self.connection.peer.databytes.unwrap_or(self.connection.config.databytes);
            let bounds = Bounds { barelf: self.connection.config.barelf, databytes, line_len_max: LINE_LEN_MAX };
            self.message.text = Some(Decoder::new(framing, bounds));
            self.message.refusal = self.connection.peer.refusal.map(|why| why.as_bytes().into());
            if self.message.refusal.is_none() {
                self.message.is_begun = true;
                out.push(Action::Begin);
                out.push(Action::Text(self.connection.received("QMTP")));
            }
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
        self.message.refusal.get_or_insert(why.as_bytes().into());
        if std::mem::take(&mut self.message.is_begun) {
            out.push(Action::Abandon);
        }
    }

    fn sender_ended(&mut self, out: &mut Vec<Action>) {
        let bytes = std::mem::take(&mut self.message.address);
        let refusal = match Address::new(without_final_dot(&bytes)) {
            Ok(sender) if bytes.len() < ADDRESS_LEN_END => {
                let refusal = self.connection.peer.rules(&self.connection.config).sender(&sender, None);
                self.message.sender = sender;
                refusal.map(|reply| Report::new(reply, None).text.into())
            }
            _ => Some(BAD_SENDER.as_bytes().into()),
        };
        // That the text cannot be taken is said rather than this, as ever.
        self.message.refusal = self.message.refusal.take().or(refusal);
        if self.message.refusal.is_some() && std::mem::take(&mut self.message.is_begun) {
            out.push(Action::Abandon);
        }
        self.stage = Stage::Recipients;
    }

    fn recipients(&mut self, mut bytes: &[u8]) -> Result<(), End> {
        while let Some(piece) = self.message.inner.next(&mut bytes, LIST_LEN_MAX)? {
            match piece {
                Piece::Start(_) => {}
                Piece::Content(bytes) => self.message.keep(bytes),
                Piece::End if self.message.recipients.len() >= LIST_COUNT_MAX => return Err(End::Limit),
                Piece::End => self.recipient_ended(),
            }
        }
        Ok(())
    }

    fn recipient_ended(&mut self) {
        let bytes = std::mem::take(&mut self.message.address);
        let Connection { peer, config, .. } = &self.connection;
        let suffix = peer.relay_client.as_deref().unwrap_or_default();
        let address = match Address::new(&[without_final_dot(&bytes), suffix].concat()) {
            Ok(address) if bytes.len().saturating_add(suffix.len()) < ADDRESS_LEN_END && !bytes.is_empty() => Some(address),
            _ => None,
        };
        let judged = address.as_ref().map(|address| peer.rules(config).recipient(address));
        // To who may relay it does not matter.
        let listed = peer.listed.clone().filter(|_| peer.relay_client.is_none());
        let standing = match judged {
            None => {
                self.bad_recipients = self.bad_recipients.saturating_add(1);
                Standing::Settled(Err(CANNOT_HANDLE.as_bytes().into()))
            }
            // Nobody need be asked who gets what nobody gets, and nobody hears so who there is; nor is it known whose domain is ours.
            Some(Judged::Ask { .. }) if self.message.refusal.is_some() => Standing::Settled(Ok(())),
            Some(Judged::Ask { otherwise, known }) => Standing::Open { question: None, otherwise, known },
            Some(Judged::Now(passage)) => self.settled(passage, listed.as_deref()),
        };
        self.message.taken = self.message.taken.saturating_add(usize::from(matches!(standing, Standing::Settled(Ok(())))));
        self.message.recipients.push(Recipient { address: address.unwrap_or_default(), standing });
    }

    /// What a recipient is answered; refusals that are the client's fault are counted.
    fn settled(&mut self, passage: Passage, own_words: Option<&[u8]>) -> Standing {
        let Err(reply) = passage else { return Standing::Settled(Ok(())) };
        let report = Report::new(reply, own_words);
        self.bad_recipients = self.bad_recipients.saturating_add(u32::from(report.is_bad));
        self.is_last |= report.is_last;
        Standing::Settled(Err(report.text.into()))
    }

    /// Has the client named too many whom it may not write to (`control/brtlimit`), or sent too much?
    fn is_over(&self) -> bool {
        let Connection { peer, config, .. } = &self.connection;
        let most = peer.terms.bad_recipients_max.unwrap_or(config.bad_recipients_max);
        self.is_last || (most != 0 && self.bad_recipients >= most)
    }

    fn recipients_max(&self) -> usize {
        let Connection { peer, config, .. } = &self.connection;
        if peer.terms.any_number { usize::MAX } else { config.recipients_max }
    }

    /// Asks about as many as may be asked about now; about those who will not be taken anyhow nobody is.
    fn ask(&mut self, out: &mut Vec<Action>) {
        let size = self.message.text.as_ref().map_or(0, Decoder::len);
        while self.message.open < QUESTIONS_MAX {
            let (is_over, is_full) = (self.is_over(), self.message.taken >= self.recipients_max());
            let Message { next, open, recipients, .. } = &mut self.message;
            let Some(recipient) = recipients.get_mut(*next) else { return };
            *next = next.saturating_add(1);
            match &mut recipient.standing {
                Standing::Settled(_) => {}
                standing if is_over => *standing = Standing::Settled(Err(Report::too_many().text.into())),
                standing if is_full => *standing = Standing::Settled(Err(TOO_MANY.as_bytes().into())),
                Standing::Open { question, .. } => {
                    self.questions = self.questions.wrapping_add(1);
                    *question = Some(self.questions);
                    *open = open.saturating_add(1);
                    let recipient = recipient.address.clone();
                    out.push(Action::CheckRecipient { question: self.questions, recipient, size });
                }
            }
        }
    }

    fn recipient_answered(&mut self, number: u32, answer: RecipientAnswer, out: &mut Vec<Action>) {
        // Those that are open are among the last that were asked about.
        let asked = self.message.recipients.get(..self.message.next).unwrap_or_default();
        let is_it = |recipient: &Recipient| matches!(recipient.standing, Standing::Open { question: Some(q), .. } if q == number);
        let Some(at) = asked.iter().rposition(is_it) else { return };
        let Some(Recipient { standing: Standing::Open { otherwise, known, .. }, .. }) = self.message.recipients.get(at) else {
            return;
        };
        let (passage, own_words) = answered(*otherwise, *known, answer);
        let standing = self.settled(passage, own_words.as_deref());
        self.message.taken = self.message.taken.saturating_add(usize::from(passage.is_ok()));
        self.message.open = self.message.open.saturating_sub(1);
        if let Some(recipient) = self.message.recipients.get_mut(at) {
            recipient.standing = standing;
        }
        self.settle(out);
    }

    /// Asks on, or hands the message over when all is known.
    fn settle(&mut self, out: &mut Vec<Action>) {
        if self.stage != Stage::Judging {
            return;
        }
        self.ask(out);
        if self.message.open > 0 {
            return;
        }
        if self.message.refusal.is_none() {
            self.leave_out();
        }
        let is_wanted = self.message.recipients.iter().any(Recipient::is_taken);
        if self.message.refusal.is_some() || !is_wanted {
            if std::mem::take(&mut self.message.is_begun) {
                out.push(Action::Abandon);
            }
            return self.answer(None, out);
        }
        let mut utf8 = self.message.sender.is_utf8_only();
        for recipient in self.message.recipients.iter().filter(|recipient| recipient.is_taken()) {
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
        let most = self.recipients_max();
        let taken = self.message.recipients.iter_mut().filter(|recipient| recipient.is_taken());
        taken.skip(most).for_each(|recipient| recipient.standing = Standing::Settled(Err(TOO_MANY.as_bytes().into())));
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
        let of_all: Cow<'_, [u8]> = match (&message.refusal, queue) {
            (Some(refusal), _) => refusal.clone(),
            (None, Some(QueueAnswer::Accepted { qp, .. })) => accepted(self.connection.clock.now.unix_s, qp).into(),
            (None, Some(QueueAnswer::Refused(report))) => printable(report).into(),
            // There is nobody whom this would be said to.
            (None, None) => Cow::default(),
        };
        let (mut answers, mut logged, mut taken) = (Vec::new(), 0, 0_u64);
        for recipient in &message.recipients {
            let text = match &recipient.standing {
                Standing::Settled(Err(text)) => text,
                // None is open any more.
                Standing::Settled(Ok(())) | Standing::Open { .. } => &of_all,
            };
            wire::netstring::encode(text, &mut answers);
            if text.first() == Some(&b'K') {
                taken = taken.saturating_add(1);
                continue;
            }
            self.connection.counts.refused = self.connection.counts.refused.saturating_add(1);
            logged += 1;
            if logged <= LOGGED_MAX {
                out.push(Action::Log(refused(&self.connection.peer, &message.sender, Some(&recipient.address), text)));
            }
        }
        if let Some((id, qp)) = number {
            let (bytes, counts) = (message.text.as_ref().map_or(0, Decoder::len), &mut self.connection.counts);
            counts.messages = counts.messages.saturating_add(1);
            counts.recipients = counts.recipients.saturating_add(taken);
            counts.bytes = counts.bytes.saturating_add(bytes);
            out.push(Action::Log(taken_line(&self.connection.peer, id, qp, &message.sender, taken, bytes)));
        }
        if !answers.is_empty() {
            out.push(Action::Answer(answers));
        }
        self.stage = Stage::Text;
        self.next_message(out);
    }

    fn next_message(&mut self, out: &mut Vec<Action>) {
        self.connection.clock.is_between_messages();
        if self.is_over() {
            return self.close(End::Limit, out);
        }
        if self.is_draining {
            return self.close(End::Drained, out);
        }
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.bytes(self.connection.clock.now, &held, out);
        }
    }

    fn close(&mut self, end: End, out: &mut Vec<Action>) {
        if std::mem::take(&mut self.message.is_begun) {
            out.push(Action::Abandon);
        }
        self.connection.end = Some(end);
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

/// As SMTP has it: `user@domain.` is `user@domain`.
fn without_final_dot(address: &[u8]) -> &[u8] {
    match address.strip_suffix(b".") {
        Some(rest) if rest.contains(&b'@') && !rest.ends_with(b"@") => rest,
        _ => address,
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
