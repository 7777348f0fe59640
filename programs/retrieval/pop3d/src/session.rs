//! The driver of one session: reads commands, does what the machine says.

use crate::maildrop::{CHUNK_LEN, Drop};
use crate::report::Report;
use pop3::transaction::{Action, Which};
use pop3::{COMMAND_LEN_MAX, Encoder, Maildrop, Transaction, command};
use std::io::{self, ErrorKind, Read, Write};
use wire::line::{Ending, Line, Lines};

/// Replies are held back until a read would wait or so many bytes are there: pipelined commands share writes.
const OUTPUT_LEN_MAX: usize = 128 * 1024;
/// Bytes read from the client at a time.
const INPUT_LEN: usize = 4096;

/// Serves one client over `maildrop` until QUIT or the end of its input; only QUIT changes the mailbox. What was done is in `report`, however
/// it ends.
///
/// # Errors
/// The client is gone or silent for too long, or a message could not be read to its end: nothing was changed.
pub fn serve(input: &mut dyn Read, output: &mut dyn Write, maildrop: Drop, report: &mut Report) -> io::Result<()> {
    let transaction = Transaction::new(maildrop.count());
    report.messages = u64::try_from(maildrop.count()).unwrap_or(u64::MAX);
    report.end = "gone";
    let mut session = Session { output, maildrop, transaction, held: command::ok(""), report };
    let ended = session.talk(input);
    let indices = 0..session.maildrop.count();
    let retrieved = indices.filter(|index| session.transaction.is_retrieved(*index)).count();
    session.report.retrieved = u64::try_from(retrieved).unwrap_or(u64::MAX);
    let is_late = |error: &io::Error| matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
    if session.report.end == "gone" && ended.as_ref().is_err_and(is_late) {
        session.report.end = "timeout";
    }
    ended
}

struct Session<'a> {
    output: &'a mut dyn Write,
    maildrop: Drop,
    transaction: Transaction,
    held: Vec<u8>,
    report: &'a mut Report,
}

impl Session<'_> {
    fn talk(&mut self, input: &mut dyn Read) -> io::Result<()> {
        let mut lines = Lines::new(Ending::LfOptionalCr, COMMAND_LEN_MAX);
        let mut buf = [0; INPUT_LEN];
        loop {
            self.flush()?;
            let len = match input.read(&mut buf) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            let mut rest = buf.get(..len).unwrap_or_default();
            while let Some(line) = lines.next(&mut rest) {
                let more = match line {
                    Line::Whole(line) => self.command(&line)?,
                    Line::TooLong => self.reply(&command::err("line too long")).map(|()| true)?,
                };
                if !more {
                    return self.flush();
                }
            }
        }
    }

    /// Does one command; false after QUIT.
    fn command(&mut self, line: &[u8]) -> io::Result<bool> {
        let mut action = self.transaction.command(line, &self.maildrop);
        if let Action::Measure(which) = action {
            self.measure(which);
            action = self.transaction.command(line, &self.maildrop);
        }
        match action {
            Action::Reply(reply) => self.reply(&reply)?,
            Action::Report(mut report) => {
                while report.fill(&self.transaction, &self.maildrop, &mut self.held) {
                    self.flush()?;
                }
            }
            Action::Retrieve { index, encoder } => self.retrieve(index, encoder)?,
            // All sizes asked for are known now, if only as the length of a file.
            Action::Measure(_) => self.reply(&command::err_code(command::ResponseCode::SysTemp, "the mailbox is changing"))?,
            Action::Update => {
                let (all, deleted) = self.maildrop.update(&mut self.transaction);
                (self.report.deleted, self.report.end) = (deleted, "quit");
                self.reply(&Transaction::farewell(all))?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn measure(&mut self, which: Which) {
        let indices = match which {
            Which::One(index) => index..index.saturating_add(1),
            Which::All => 0..self.maildrop.count(),
        };
        for index in indices {
            if self.transaction.is_present(index) {
                self.maildrop.measure(index, &mut self.transaction);
            }
        }
    }

    /// After `+OK` a message that cannot be read to its end leaves nothing to say: the connection is closed (RFC 1939 §3 has no other way).
    fn retrieve(&mut self, index: usize, mut encoder: Encoder) -> io::Result<()> {
        let Ok(mut file) = self.maildrop.open(index, &mut self.transaction) else {
            return self.reply(&Transaction::no_such_file());
        };
        self.held.extend_from_slice(&command::ok(""));
        let mut chunk = vec![0; CHUNK_LEN];
        while encoder.wants_more() {
            let before = self.held.len();
            match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(len) => encoder.feed(chunk.get(..len).unwrap_or_default(), &mut self.held),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    self.report.end = "broken";
                    return Err(io::Error::other(e));
                }
            }
            let added = self.held.len().saturating_sub(before);
            self.report.bytes = self.report.bytes.saturating_add(u64::try_from(added).unwrap_or(u64::MAX));
            self.flush_if_full()?;
        }
        encoder.finish(&mut self.held);
        self.flush_if_full()
    }

    fn reply(&mut self, reply: &[u8]) -> io::Result<()> {
        self.held.extend_from_slice(reply);
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.held.len() >= OUTPUT_LEN_MAX { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.write_all(&self.held)?;
        self.held.clear();
        self.output.flush()
    }
}
