//! The driver of one session: reads commands, does what the machine says.

use crate::maildrop::{CHUNK_LEN, Drop};
use pop3::transaction::{Action, Which};
use pop3::{COMMAND_LEN_MAX, Encoder, Maildrop, Transaction, command};
use std::io::{self, ErrorKind, Read, Write};
use wire::line::{Ending, Line, Lines};

/// Replies are held back until a read would wait or so many bytes are there: pipelined commands share writes.
const OUTPUT_LEN_MAX: usize = 128 * 1024;
/// Bytes read from the client at a time.
const INPUT_LEN: usize = 4096;

/// Serves one client over `maildrop` until QUIT or the end of its input; only QUIT changes the mailbox.
///
/// # Errors
/// The client is gone or silent for too long, or a message could not be read to its end: nothing was changed.
pub fn serve(input: &mut dyn Read, output: &mut dyn Write, maildrop: Drop) -> io::Result<()> {
    let transaction = Transaction::new(maildrop.count());
    let mut session = Session { output, maildrop, transaction, held: command::ok("") };
    let mut lines = Lines::new(Ending::LfOptionalCr, COMMAND_LEN_MAX);
    let mut buf = [0; INPUT_LEN];
    loop {
        session.flush()?;
        let len = match input.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let mut rest = buf.get(..len).unwrap_or_default();
        while let Some(line) = lines.next(&mut rest) {
            let more = match line {
                Line::Whole(line) => session.command(&line)?,
                Line::TooLong => session.reply(&command::err("line too long")).map(|()| true)?,
            };
            if !more {
                return session.flush();
            }
        }
    }
}

struct Session<'a> {
    output: &'a mut dyn Write,
    maildrop: Drop,
    transaction: Transaction,
    held: Vec<u8>,
}

impl Session<'_> {
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
                let all = self.maildrop.update(&mut self.transaction);
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
            match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(len) => encoder.feed(chunk.get(..len).unwrap_or_default(), &mut self.held),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
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
