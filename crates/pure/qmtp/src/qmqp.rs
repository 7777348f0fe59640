//! The server's side of QMQP, as a machine without I/O.
//!
//! One netstring holds those of a text, a sender and any number of recipients; the answer is one netstring, for all of them. The client is
//! one of our own hosts: the address it comes from is all that is looked at, by the driver and before this begins. The text goes
//! into the queue as it comes, as by qmail-queue, whose interface over a network this is.
//!
//! Guarantees: `K` only after the queue said that the message is durable; all recipients or none; nothing is collected but one address. What
//! is not QMQP, an inner netstring that reaches beyond the outer one too, ends the session without an answer.
//! Never: asks who a recipient is, changes a text.

use std::sync::Arc;

use smtp::server::Now;
use wire::Address;

use crate::exchange::{
    ADDRESS_LEN_END, Action, BAD_ADDRESS, Commit, Config, Connection, Counts, End, Input, Peer, QueueAnswer, TEXT_LEN_MAX,
    accepted, printable, refused, taken_line,
};
use crate::netstring::{Piece, Reader};

/// Most recipients, and most bytes of them and the sender: as qmail-queue.
pub const RECIPIENTS_MAX: u64 = 2_000_000;
pub const ENVELOPE_LEN_MAX: u64 = 64 << 20;

/// One connection: one message.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    outer: Reader,
    inner: Reader,
    stage: Stage,
    /// The sender, or the recipient under way.
    address: Vec<u8>,
    sender: Address,
    /// Why nobody gets it.
    refusal: Option<&'static str>,
    is_begun: bool,
    eight_bit: bool,
    utf8: bool,
    recipients: u64,
    envelope_len: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Text,
    Sender,
    Recipients,
    Committing,
}

impl Session {
    #[must_use]
    pub fn new(config: Arc<Config>, peer: Peer, now: Now) -> Self {
        Self {
            connection: Connection::new(config, peer, now),
            outer: Reader::new(),
            inner: Reader::new(),
            stage: Stage::Text,
            address: Vec::new(),
            sender: Address::null(),
            refusal: None,
            is_begun: false,
            eight_bit: false,
            utf8: false,
            recipients: 0,
            envelope_len: 0,
            bytes: 0,
        }
    }

    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// One step. After the end every input is passed over.
    pub fn step(&mut self, now: Now, input: Input<'_>, out: &mut Vec<Action>) {
        if self.connection.end.is_some() {
            return;
        }
        self.connection.clock.now = now;
        match input {
            // Behind the message nothing counts.
            Input::Bytes(_) if self.stage == Stage::Committing => {}
            Input::Bytes(bytes) => {
                self.connection.clock.hears(now);
                if let Err(end) = self.outer_pieces(bytes, out) {
                    self.close(end, out);
                }
            }
            Input::Queue(answer) if self.stage == Stage::Committing => self.queue_answered(answer, out),
            Input::Queue(_) | Input::Recipient { .. } => {}
            Input::Deadline => self.close(End::Timeout, out),
            Input::Closed => self.close(if self.outer.is_between() { End::Done } else { End::Gone }, out),
            Input::Drain if self.outer.is_between() && self.stage == Stage::Text => self.close(End::Drained, out),
            // It ends behind its one message anyway.
            Input::Drain => {}
        }
    }

    fn outer_pieces(&mut self, bytes: &[u8], out: &mut Vec<Action>) -> Result<(), End> {
        let mut rest = bytes;
        while let Some(piece) = self.outer.next(&mut rest, TEXT_LEN_MAX)? {
            match piece {
                Piece::Start(_) => {}
                Piece::Content(content) => self.inner_pieces(content, out)?,
                Piece::End if self.stage == Stage::Recipients && self.inner.is_between() => {
                    self.whole(out);
                    return Ok(());
                }
                Piece::End => return Err(End::Protocol),
            }
        }
        Ok(())
    }

    fn inner_pieces(&mut self, content: &[u8], out: &mut Vec<Action>) -> Result<(), End> {
        let mut rest = content;
        while let Some(piece) = self.inner.next(&mut rest, TEXT_LEN_MAX)? {
            match (self.stage, piece) {
                (Stage::Text, Piece::Start(_)) => {
                    self.refusal = self.connection.peer.refusal;
                    if self.refusal.is_none() {
                        self.is_begun = true;
                        out.push(Action::Begin);
                        out.push(Action::Text(self.connection.received("QMQP")));
                    }
                }
                (_, Piece::Start(len)) => {
                    self.envelope_len = self.envelope_len.saturating_add(len);
                    if self.envelope_len > ENVELOPE_LEN_MAX || self.recipients >= RECIPIENTS_MAX {
                        return Err(End::Limit);
                    }
                }
                (Stage::Text, Piece::Content(bytes)) => {
                    self.eight_bit = self.eight_bit || !bytes.is_ascii();
                    self.bytes = self.bytes.saturating_add(bytes.len() as u64);
                    if self.is_begun {
                        out.push(Action::Text(bytes.to_vec()));
                    }
                }
                (Stage::Text, Piece::End) => self.stage = Stage::Sender,
                (_, Piece::Content(bytes)) => self.keep(bytes),
                (Stage::Sender, Piece::End) => {
                    self.sender = self.take_address(out).unwrap_or_default();
                    self.stage = Stage::Recipients;
                }
                (_, Piece::End) => {
                    if let Some(recipient) = self.take_address(out) {
                        self.recipients = self.recipients.saturating_add(1);
                        out.push(Action::Recipient(recipient));
                    }
                }
            }
        }
        Ok(())
    }

    /// More of an address; what is over the bound is passed over, and shows by the length.
    fn keep(&mut self, bytes: &[u8]) {
        let room = (ADDRESS_LEN_END.saturating_add(1)).saturating_sub(self.address.len());
        self.address.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }

    /// The address that has ended; `None`, and with it the message, if it is none or another one was.
    fn take_address(&mut self, out: &mut Vec<Action>) -> Option<Address> {
        let bytes = std::mem::take(&mut self.address);
        let address = Address::new(&bytes).ok().filter(|_| bytes.len() < ADDRESS_LEN_END);
        if address.is_none() {
            self.refusal.get_or_insert(BAD_ADDRESS);
            if std::mem::take(&mut self.is_begun) {
                out.push(Action::Abandon);
            }
        }
        self.utf8 = self.utf8 || address.as_ref().is_some_and(Address::is_utf8_only);
        address.filter(|_| self.refusal.is_none())
    }

    fn whole(&mut self, out: &mut Vec<Action>) {
        if let Some(refusal) = self.refusal {
            return self.answer(refusal.as_bytes(), out);
        }
        self.stage = Stage::Committing;
        // From here on it is the queue's.
        self.is_begun = false;
        out.push(Action::Commit(Commit { sender: self.sender.clone(), eight_bit: self.eight_bit, utf8: self.utf8 }));
    }

    fn queue_answered(&mut self, answer: QueueAnswer, out: &mut Vec<Action>) {
        match answer {
            QueueAnswer::Accepted { id, qp } => {
                self.connection.counts = Counts { messages: 1, recipients: self.recipients, bytes: self.bytes, refused: 0 };
                out.push(Action::Log(taken_line(&self.connection.peer, id, qp, &self.sender, self.recipients, self.bytes)));
                self.answer(&accepted(self.connection.clock.now.unix_s, qp), out);
            }
            QueueAnswer::Refused(report) => self.answer(&printable(report), out),
        }
    }

    fn answer(&mut self, text: &[u8], out: &mut Vec<Action>) {
        if text.first() != Some(&b'K') {
            self.connection.counts.refused = 1;
            out.push(Action::Log(refused(&self.connection.peer, &self.sender, None, text)));
        }
        let mut answer = Vec::new();
        wire::netstring::encode(text, &mut answer);
        out.push(Action::Answer(answer));
        self.close(End::Done, out);
    }

    fn close(&mut self, end: End, out: &mut Vec<Action>) {
        if std::mem::take(&mut self.is_begun) {
            out.push(Action::Abandon);
        }
        self.connection.end = Some(end);
        out.push(Action::Close);
    }
}
