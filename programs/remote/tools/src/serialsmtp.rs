//! serialsmtp: `serialsmtp PREFIX HELOHOST` sends messages over the SMTP connection on descriptors 6 and 7 (RFC 5321).
//!
//! File names come on standard input, results go to standard output. PREFIX is taken off the recipients, and messages without it are
//! passed over. Commands are pipelined where the server offers it (RFC 2920). A message with a partial last line gets its line end.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;

use smtp::encode::Encoder;
use tool::{End, Name, input};
use wire::quote;

use crate::connection::{Connection, next_name, report};
use crate::message_file::MessageFile;

const ME: Name = Name("serialsmtp");
/// Longest line of a reply, and most lines of one.
const LINE_LEN_MAX: usize = 4096;
const LINES_MAX: usize = 1000;

/// The program.
///
/// # Errors
/// The connection or a file failed; results so far hold. Temporary.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    let fds = (sys::numbered::held(6), sys::numbered::held(7));
    let [prefix, helo, ..] = args else { return Err(ME.usage("prefix helohost")) };
    let helo: Vec<u8> = helo.as_bytes().iter().copied().filter(|b| b.is_ascii_graphic()).collect();
    let connection = Connection::new(ME, fds, 81)?;
    let server = input::variable("TCPREMOTEIP");
    let mut session = Session { connection, server, pipelining: false, has_begun: false };
    session.greet(&helo)?;
    let mut names = io::BufReader::new(input::stdin().map_err(|error| ME.system("unable to read input", &error))?);
    while let Some(name) = next_name(ME, &mut names)? {
        session.message(&name, prefix.as_bytes())?;
    }
    session.quit()?;
    Ok(0)
}

/// A reply: its code, and its last line.
struct Reply {
    code: u16,
    line: Vec<u8>,
}

struct Session {
    connection: Connection,
    server: Option<Vec<u8>>,
    pipelining: bool,
    /// A message was sent or tried: RSET comes before the next.
    has_begun: bool,
}

impl Session {
    fn greet(&mut self, helo: &[u8]) -> Result<(), End> {
        if self.reply(false)?.code != 220 {
            self.quit()?;
            return Err(ME.temporary("connected but greeting failed"));
        }
        self.command(&[b"EHLO ", helo])?;
        if self.reply(true)?.code == 250 {
            return Ok(());
        }
        self.command(&[b"HELO ", helo])?;
        if self.reply(false)?.code == 250 {
            return Ok(());
        }
        self.quit()?;
        Err(ME.temporary("connected but my name was rejected"))
    }

    fn quit(&mut self) -> Result<(), End> {
        self.command(&[b"QUIT"])
    }

    /// Sends a command at once.
    fn command(&mut self, parts: &[&[u8]]) -> Result<(), End> {
        self.put(parts);
        self.connection.flush()
    }

    fn put(&mut self, parts: &[&[u8]]) {
        parts.iter().for_each(|part| self.connection.put(part));
        self.connection.put(b"\r\n");
    }

    fn reply(&mut self, is_ehlo: bool) -> Result<Reply, End> {
        for number in 0..LINES_MAX {
            let line = self.line()?;
            let code = line.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit));
            let code = code.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).ok_or_else(violation)?;
            let word = line.get(4..).unwrap_or_default();
            self.pipelining |= is_ehlo && code == 250 && number > 0 && word.eq_ignore_ascii_case(b"PIPELINING");
            if line.get(3) != Some(&b'-') {
                return Ok(Reply { code, line });
            }
        }
        Err(violation())
    }

    fn line(&mut self) -> Result<Vec<u8>, End> {
        let mut line = Vec::new();
        loop {
            match self.connection.byte()? {
                b'\n' => break,
                _ if line.len() >= LINE_LEN_MAX => return Err(violation()),
                byte => line.push(byte),
            }
        }
        line.pop_if(|last| *last == b'\r');
        Ok(line)
    }

    fn message(&mut self, name: &[u8], prefix: &[u8]) -> Result<(), End> {
        let opened = File::open(input::path(name));
        let file = opened.map_err(|error| ME.system([b"unable to open ", name].concat(), &error))?;
        let unreadable = |error: &io::Error| ME.system("unable to read file", error);
        let Some(mut message) = MessageFile::read(file).map_err(|error| unreadable(&error))? else { return Ok(()) };
        let Some(recipient) = message.recipient.strip_prefix(prefix) else { return Ok(()) };
        let refused = self.envelope(&quote::address(&message.sender), &quote::address(recipient))?;
        self.has_begun = true;
        if let Some(reply) = refused {
            return self.report(name, &reply);
        }
        let (mut encoder, mut out, mut piece) = (Encoder::new(), Vec::new(), vec![0; 32 * 1024]);
        loop {
            match message.rest.read(&mut piece).map_err(|error| unreadable(&error))? {
                0 => break,
                len => encoder.push(piece.get(..len).unwrap_or_default(), &mut out),
            }
            self.connection.put(&out);
            self.connection.flush()?;
            out.clear();
        }
        encoder.finish(&mut out);
        self.connection.put(&out);
        self.connection.flush()?;
        let reply = self.reply(false)?;
        self.report(name, &reply)
    }

    /// RSET, MAIL, RCPT, DATA; the reply that refused one of them.
    fn envelope(&mut self, sender: &[u8], recipient: &[u8]) -> Result<Option<Reply>, End> {
        let mail = [b"MAIL FROM:<", sender, b">"];
        let rcpt = [b"RCPT TO:<", recipient, b">"];
        let reset: [&[u8]; 1] = [b"RSET"];
        let data: [&[u8]; 1] = [b"DATA"];
        let commands: [(bool, &[&[u8]]); 4] = [(true, &reset), (false, &mail), (false, &rcpt), (false, &data)];
        let commands = commands.into_iter().skip(usize::from(!self.has_begun));
        if self.pipelining {
            commands.clone().for_each(|(_, command)| self.put(command));
            self.connection.flush()?;
        }
        let mut refused: Option<Reply> = None;
        for (is_reset, command) in commands {
            if !self.pipelining {
                self.command(command)?;
            }
            let reply = self.reply(false)?;
            match (&refused, reply.code) {
                (None, 400..) if is_reset => return Err(violation()),
                (None, 400..) if self.pipelining => refused = Some(reply),
                (None, 400..) => return Ok(Some(reply)),
                (None, _) => {}
                // What comes after a refusal must be refused, too, or a message would go where nobody knows.
                (Some(_), 400..) => {}
                (Some(_), _) => return Err(violation()),
            }
        }
        Ok(refused)
    }

    fn report(&self, name: &[u8], reply: &Reply) -> Result<(), End> {
        let letter = match reply.code {
            500.. => b'D',
            400..500 => b'Z',
            _ => b'K',
        };
        report(ME, name, letter, self.server.as_deref(), &reply.line)
    }
}

fn violation() -> End {
    ME.temporary("protocol violation")
}
