//! SMTP and POP3 as a test speaks them: line by line, with every reply looked at.

use crate::PATIENCE;
use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, SocketType};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};

/// A connection that is read by lines.
#[derive(Debug)]
pub struct Line {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Line {
    /// # Errors
    /// Nobody listens.
    pub fn open(port: u16) -> Result<Self> {
        Self::on(TcpStream::connect(("127.0.0.1", port)).with_context(|| format!("port {port}"))?)
    }

    /// The same as a client at another address of this host.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn open_from(client: Ipv4Addr, port: u16) -> Result<Self> {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        rustix::net::bind(&socket, &SocketAddrV4::new(client, 0))?;
        rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).with_context(|| format!("port {port}"))?;
        Self::on(TcpStream::from(socket))
    }

    fn on(writer: TcpStream) -> Result<Self> {
        writer.set_read_timeout(Some(PATIENCE))?;
        writer.set_write_timeout(Some(PATIENCE))?;
        writer.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(writer.try_clone()?), writer })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.writer.write_all(bytes)?)
    }

    /// The next line without its CRLF, which must be there.
    ///
    /// # Errors
    /// The connection ended.
    pub fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(line.to_vec()),
            None if line.is_empty() => bail!("the connection ended"),
            None => bail!("a line without CRLF: {}", line.escape_ascii()),
        }
    }

    /// The next byte.
    ///
    /// # Errors
    /// The connection ended.
    pub fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        std::io::Read::read_exact(&mut self.reader, &mut byte)?;
        Ok(byte[0])
    }

    /// Is the connection closed by the other side, with nothing more to read?
    ///
    /// # Errors
    /// A time-out.
    pub fn is_closed(&mut self) -> Result<bool> {
        match self.reader.fill_buf() {
            Ok(rest) => Ok(rest.is_empty()),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(true),
            Err(e) => Err(e.into()),
        }
    }
}

/// An SMTP session, and how the server greeted.
#[derive(Debug)]
pub struct Smtp(pub Line, pub String);

impl Smtp {
    /// Connects and reads the greeting.
    ///
    /// # Errors
    /// Nobody listens, or the greeting is not 220.
    pub fn open(port: u16) -> Result<Self> {
        let mut smtp = Self(Line::open(port)?, String::new());
        smtp.1 = smtp.reply()?;
        if !smtp.1.starts_with("220 ") {
            bail!("greeted with {}", smtp.1);
        }
        Ok(smtp)
    }

    /// What the server said first.
    #[must_use]
    pub fn greeting(&self) -> &str {
        &self.1
    }

    /// A whole reply; lines joined by LF.
    ///
    /// # Errors
    /// The connection ended, or the lines do not fit together.
    pub fn reply(&mut self) -> Result<String> {
        let mut lines: Vec<String> = Vec::new();
        loop {
            let line = String::from_utf8(self.0.line()?)?;
            let more = line.get(3..4) == Some("-");
            if lines.first().is_some_and(|first| first.get(..3) != line.get(..3)) {
                bail!("codes differ within a reply: {lines:?} {line}");
            }
            lines.push(line);
            if !more {
                return Ok(lines.join("\n"));
            }
        }
    }

    /// Sends a command and reads its reply.
    ///
    /// # Errors
    /// As [`Smtp::reply`].
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.0.raw(format!("{command}\r\n").as_bytes())?;
        self.reply()
    }

    /// Sends a command whose reply must start with `code`.
    ///
    /// # Errors
    /// It does not.
    pub fn must(&mut self, command: &str, code: &str) -> Result<String> {
        let reply = self.ask(command)?;
        if reply.starts_with(code) { Ok(reply) } else { bail!("{command}: {reply}") }
    }

    /// A whole transaction; the reply to the final dot. `letter` is in LF form.
    ///
    /// # Errors
    /// A command before the data is refused.
    pub fn transaction(&mut self, from: &str, to: &[&str], letter: &str) -> Result<String> {
        self.must(&format!("MAIL FROM:<{from}>"), "250")?;
        for to in to {
            self.must(&format!("RCPT TO:<{to}>"), "250")?;
        }
        self.must("DATA", "354")?;
        let stuff = |line: &str| if line.starts_with('.') { format!(".{line}\r\n") } else { format!("{line}\r\n") };
        let body: String = letter.lines().map(stuff).collect();
        self.0.raw(format!("{body}.\r\n").as_bytes())?;
        self.reply()
    }

    /// EHLO, a transaction that must be accepted, QUIT.
    ///
    /// # Errors
    /// It is not accepted.
    pub fn send(mut self, from: &str, to: &[&str], letter: &str) -> Result<String> {
        self.must("EHLO client.example.test", "250")?;
        let reply = self.transaction(from, to, letter)?;
        if !reply.starts_with("250 ") {
            bail!("the letter: {reply}");
        }
        self.must("QUIT", "221")?;
        Ok(reply)
    }
}

/// A POP3 session in the transaction state.
#[derive(Debug)]
pub struct Pop3(pub Line);

impl Pop3 {
    /// USER and PASS.
    ///
    /// # Errors
    /// The login is refused.
    pub fn login(port: u16, user: &str, password: &str) -> Result<Self> {
        let mut pop3 = Self(Line::open(port)?);
        pop3.0.line()?;
        pop3.must(&format!("USER {user}"))?;
        pop3.must(&format!("PASS {password}"))?;
        Ok(pop3)
    }

    /// Sends a command; its first line.
    ///
    /// # Errors
    /// The connection ended.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.0.raw(format!("{command}\r\n").as_bytes())?;
        Ok(String::from_utf8(self.0.line()?)?)
    }

    /// A command that must be answered `+OK`.
    ///
    /// # Errors
    /// It is not.
    pub fn must(&mut self, command: &str) -> Result<String> {
        let line = self.ask(command)?;
        if line.starts_with("+OK") { Ok(line) } else { bail!("{command}: {line}") }
    }

    /// The lines of a multi-line answer, unstuffed.
    ///
    /// # Errors
    /// The command is refused.
    pub fn lines(&mut self, command: &str) -> Result<Vec<Vec<u8>>> {
        self.must(command)?;
        let mut lines = Vec::new();
        loop {
            let line = self.0.line()?;
            if line == b"." {
                return Ok(lines);
            }
            lines.push(line.strip_prefix(b".").map(<[u8]>::to_vec).unwrap_or(line));
        }
    }

    /// Number of messages by STAT.
    ///
    /// # Errors
    /// The command is refused.
    pub fn count(&mut self) -> Result<usize> {
        Ok(self.must("STAT")?.split(' ').nth(1).context("STAT")?.parse()?)
    }

    /// A message in LF form.
    ///
    /// # Errors
    /// The command is refused.
    pub fn message(&mut self, number: usize) -> Result<String> {
        let lines = self.lines(&format!("RETR {number}"))?;
        Ok(lines.into_iter().map(|line| format!("{}\n", String::from_utf8_lossy(&line))).collect())
    }
}
