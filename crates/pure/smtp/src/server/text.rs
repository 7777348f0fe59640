//! DATA and BDAT: from the first byte of a message to the queue's answer.
//!
//! A message that is refused on the way is given up at once, but its bytes are read to their end, so that none of them can be
//! taken for a command. The bytes of a BDAT that comes at a wrong time are read for the same reason.

use super::exchange::{Action, Actions, QueueAnswer};
use super::submission::{Header, HeldHeader};
use super::transaction::Transaction;
use super::{End, Session, State, replies};
use crate::command;
use crate::data::{Bounds, Decoder, Fault, Framing};
use crate::trace::Received;
use wire::{Address, Priority};

/// A message whose text is coming in.
#[derive(Debug)]
pub(super) struct Message {
    decoder: Decoder,
    sender: Address,
    pub(super) recipients: u64,
    /// MAIL named its priority.
    pub(super) priority: Option<Priority>,
    /// The header so far, while it has to be judged.
    header: Option<HeldHeader>,
    /// Refused by what the header says.
    pub(super) refusal: Option<&'static str>,
    is_given_up: bool,
}

/// Where a piece of text came from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Data,
    Chunk(Chunk),
}

/// A chunk of which `left` bytes are still to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    size: u64,
    left: u64,
    is_last: bool,
}

impl Chunk {
    pub(super) fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// Takes this chunk's bytes off the front of `rest`.
    fn take<'a>(&mut self, rest: &mut &'a [u8]) -> &'a [u8] {
        let n = usize::try_from(self.left).map_or(rest.len(), |left| left.min(rest.len()));
        let (piece, behind) = rest.split_at_checked(n).unwrap_or_default();
        *rest = behind;
        self.left = self.left.saturating_sub(n as u64);
        piece
    }
}

impl Session {
    pub(super) fn data(&mut self, argument: &[u8], out: &mut Actions) {
        if !argument.is_empty() {
            return self.refuse(replies::NO_ARGUMENT, out);
        }
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Mail(transaction) if transaction.has_recipients() => {
                let message = self.begin(transaction, Framing::Dots, out);
                self.state = State::Data(message);
                out.reply(replies::DATA.as_bytes());
            }
            other => self.refuse_in(other, out),
        }
    }

    /// A command that needs recipients, in a state that has none.
    fn refuse_in(&mut self, state: State, out: &mut Actions) {
        let reply = if self.needs_login() { replies::LOGIN_FIRST } else { wrong_state_reply(&state) };
        self.state = state;
        self.refuse(reply, out);
    }

    pub(super) fn bdat(&mut self, argument: &[u8], out: &mut Actions) {
        let Some((size, is_last)) = command::bdat(argument) else {
            self.refuse(replies::BDAT_SIZE, out);
            return self.close(End::Limit, None, out);
        };
        let chunk = Chunk { size, left: size, is_last };
        self.state = match std::mem::replace(&mut self.state, State::Idle) {
            State::Mail(transaction) if transaction.has_recipients() => {
                State::Chunk(self.begin(transaction, Framing::Chunks, out), chunk)
            }
            State::BetweenChunks(message) => State::Chunk(message, chunk),
            other => State::Skip(chunk, Box::new(other)),
        };
    }

    /// Opens the message; its text starts with our Received field, which `databytes` does not count.
    fn begin(&mut self, transaction: Transaction, framing: Framing, out: &mut Actions) -> Message {
        let (is_utf8, recipients, priority) = (transaction.is_utf8(), transaction.recipients_count(), transaction.priority());
        self.new_priority = transaction.new_priority();
        let sender = transaction.sender().clone();
        out.push(Action::Begin(transaction.into_envelope()));
        let helo = self.helo.as_ref();
        // AUTH needs EHLO, whatever came behind it (RFC 3848, RFC 6531 §4.3).
        let is_extended = self.user.is_some() || helo.is_some_and(|helo| helo.is_extended);
        let protocol = match (self.peer.tls.is_some(), self.user.is_some()) {
            (is_protected, _) if self.peer.is_lmtp => super::lmtp::protocol(is_protected, is_utf8),
            (false, true) if is_utf8 => "UTF8SMTPA",
            (true, true) if is_utf8 => "UTF8SMTPSA",
            (true, false) if is_utf8 => "UTF8SMTPS",
            (false, false) if is_utf8 => "UTF8SMTP",
            _ if !is_extended => "SMTP",
            (false, true) => "ESMTPA",
            (true, true) => "ESMTPSA",
            (true, false) => "ESMTPS",
            (false, false) => "ESMTP",
        };
        let received = Received {
            hides_client: self.user.is_some() && self.config.submission.hides_client,
            remote_host: self.peer.remote_host.as_deref().unwrap_or(b"unknown"),
            remote_ip: &self.peer.remote_ip,
            remote_info: self.peer.remote_info.as_deref(),
            helo: self.helo(),
            local_host: self.peer.local_host.as_deref().unwrap_or(&self.config.me),
            protocol,
            tls: self.peer.tls.as_ref().map(|tls| &*tls.cipher),
            priority,
            certificate: self.peer.tls.as_ref().and_then(|tls| tls.client.as_ref()?.line()),
            unix_s: self.now.unix_s,
        };
        out.body(received.line());
        let limits = &self.config.limits;
        let bounds = Bounds { barelf: self.config.barelf, databytes: self.databytes(), line_len_max: limits.text_line_len_max };
        let header = self.is_header_judged().then(HeldHeader::default);
        Message {
            decoder: Decoder::new(framing, bounds),
            sender,
            recipients,
            priority,
            header,
            refusal: None,
            is_given_up: false,
        }
    }

    /// Text by DATA.
    pub(super) fn take_data(&mut self, mut message: Message, rest: &mut &[u8], out: &mut Actions) {
        let mut text = Vec::new();
        let taken = message.decoder.decode(rest, &mut text);
        *rest = rest.get(taken..).unwrap_or_default();
        self.take_text(message, Source::Data, text, out);
    }

    /// Text by BDAT.
    pub(super) fn take_chunk(&mut self, mut message: Message, mut chunk: Chunk, rest: &mut &[u8], out: &mut Actions) {
        let mut text = Vec::new();
        message.decoder.decode(chunk.take(rest), &mut text);
        if chunk.left == 0 && chunk.is_last {
            message.decoder.finish(&mut text);
        }
        self.take_text(message, Source::Chunk(chunk), text, out);
    }

    /// Decoded text: the header is held back until it is judged, if it has to be.
    fn take_text(&mut self, mut message: Message, source: Source, text: Vec<u8>, out: &mut Actions) {
        let is_over = message.decoder.has_ended();
        let text = match message.header.take() {
            None => text,
            Some(held) if message.refusal().is_none() => match held.add(&text, is_over) {
                Header::Open(held) => {
                    message.header = Some(held);
                    Vec::new()
                }
                Header::TooLarge => {
                    message.refusal = Some(replies::HEADER_TOO_LARGE);
                    Vec::new()
                }
                Header::Whole { header, behind } => return self.judge_header(message, source, header, behind, out),
            },
            Some(_) => Vec::new(),
        };
        self.text_taken(message, source, text, out);
    }

    /// Goes on behind a piece of text.
    pub(super) fn text_taken(&mut self, mut message: Message, source: Source, text: Vec<u8>, out: &mut Actions) {
        self.hand_on(&mut message, text, out);
        match source {
            Source::Data if message.decoder.has_ended() => self.end_of_text(&message, out),
            Source::Data => self.state = State::Data(message),
            Source::Chunk(chunk) if chunk.left > 0 => self.state = State::Chunk(message, chunk),
            Source::Chunk(chunk) if chunk.is_last => self.end_of_text(&message, out),
            Source::Chunk(chunk) => {
                let refusal = message.refusal();
                self.state = State::BetweenChunks(message);
                match refusal {
                    Some(reply) => self.refuse(reply, out),
                    None => out.reply(format!("250 2.0.0 {} bytes received", chunk.size).as_bytes()),
                }
            }
        }
    }

    /// A chunk nobody asked for.
    pub(super) fn take_skipped(&mut self, mut chunk: Chunk, then: State, rest: &mut &[u8], out: &mut Actions) {
        chunk.take(rest);
        if chunk.left > 0 {
            self.state = State::Skip(chunk, Box::new(then));
        } else if let Some(reply) = self.chunk_refusal.take() {
            self.state = then;
            self.log_refusal(None, None, &String::from_utf8_lossy(&reply), out);
            self.refuse_with(&reply, out);
        } else {
            self.refuse_in(then, out);
        }
    }

    /// The chunk of a BDAT that a program refused.
    pub(super) fn skip_chunk(&mut self, argument: &[u8]) {
        if let Some((size, is_last)) = command::bdat(argument) {
            let then = std::mem::replace(&mut self.state, State::Idle);
            self.state = State::Skip(Chunk { size, left: size, is_last }, Box::new(then));
        }
    }

    /// Text goes on to the queue, unless the message is refused by now.
    fn hand_on(&mut self, message: &mut Message, text: Vec<u8>, out: &mut Actions) {
        if message.refusal().is_none() {
            out.body(text);
        } else if !message.is_given_up {
            message.is_given_up = true;
            out.push(Action::Abandon);
        }
    }

    fn end_of_text(&mut self, message: &Message, out: &mut Actions) {
        if let Some(reply) = message.refusal() {
            self.repeat_for_each(message.recipients, reply.as_bytes(), out);
            self.counts.refused_messages = self.counts.refused_messages.saturating_add(1);
            self.log_refusal(Some(&message.sender), None, reply, out);
            self.refuse_unlogged(reply, out);
            return self.end_if_draining(out);
        }
        out.push(Action::Commit);
        self.state =
            State::Committing { sender: message.sender.clone(), bytes: message.decoder.len(), recipients: message.recipients };
    }

    /// A text that is refused already has its answer, though its end never came: who ends lines with LF alone waits for an answer to
    /// `LF . LF` until it gives up, and has to learn why.
    pub(super) fn refuse_unfinished_text(&mut self, out: &mut Actions) {
        if let State::Data(message) | State::Chunk(message, _) = &self.state
            && let Some(reply) = message.refusal()
        {
            self.log_refusal(Some(&message.sender), None, reply, out);
            self.counts.refused = self.counts.refused.saturating_add(1);
            self.counts.refused_messages = self.counts.refused_messages.saturating_add(1);
            out.reply(reply.as_bytes());
            self.repeat_for_each(message.recipients, reply.as_bytes(), out);
        }
    }

    /// The queue's answer to [`Action::Commit`].
    pub(super) fn queue_answered(&mut self, answer: &QueueAnswer, out: &mut Actions) {
        let State::Committing { sender, bytes, recipients } = &self.state else { return };
        let (sender, bytes, recipients) = (sender.clone(), *bytes, *recipients);
        self.state = State::Idle;
        if let QueueAnswer::Accepted { id, qp } = answer {
            self.log_accepted(*id, *qp, &sender, bytes, recipients, out);
        }
        let reply = replies::queued(answer, self.now.unix_s, self.new_priority.take());
        out.reply(&reply);
        self.repeat_for_each(recipients, &reply, out);
        if matches!(answer, QueueAnswer::Accepted { .. }) {
            self.errors = 0;
            self.counts.messages = self.counts.messages.saturating_add(1);
            self.counts.recipients = self.counts.recipients.saturating_add(recipients);
            self.counts.bytes = self.counts.bytes.saturating_add(bytes);
        } else {
            self.counts.refused = self.counts.refused.saturating_add(1);
            self.counts.refused_messages = self.counts.refused_messages.saturating_add(1);
            let line = self.log_line("refused").address("from", sender.as_bytes()).put("by", "queue");
            out.push(Action::Log(line.bytes("reply", &reply).finish()));
        }
        self.end_if_draining(out);
    }

    /// The line that ties the message of the queue to its client.
    fn log_accepted(&self, id: Option<u64>, qp: u32, sender: &Address, bytes: u64, recipients: u64, out: &mut Actions) {
        let line = match id {
            Some(id) => self.log_line("accepted").put("msg", id),
            None => self.log_line("accepted"),
        };
        let line = line.address("from", sender.as_bytes()).put("recipients", recipients).put("bytes", bytes).put("qp", qp);
        out.push(Action::Log(line.finish()));
    }
}

impl Message {
    pub(super) fn is_open(&self) -> bool {
        !self.is_given_up
    }

    /// What the client will hear, if the message is refused by now.
    fn refusal(&self) -> Option<&'static str> {
        self.decoder.fault().map(fault_reply).or(self.refusal)
    }
}

fn wrong_state_reply(state: &State) -> &'static str {
    match state {
        State::Mail(_) => replies::RCPT_FIRST,
        State::BetweenChunks(_) => replies::BDAT_OPEN,
        _ => replies::MAIL_FIRST,
    }
}

fn fault_reply(fault: Fault) -> &'static str {
    match fault {
        Fault::BareLf => replies::BARE_LF,
        Fault::TooManyHops => replies::TOO_MANY_HOPS,
        Fault::TooLarge => replies::TOO_LARGE,
        Fault::LineTooLong => replies::TEXT_LINE_TOO_LONG,
    }
}
