//! An SMTP server that does as the test says: the mail host of somebody else.

use anyhow::Result;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// What a peer hears, and may answer in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    Connection,
    /// A command without its CRLF.
    Command(&'a str),
    /// Everything up to the final dot, as it came.
    Body(&'a [u8]),
}

/// A letter that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The arguments of MAIL and RCPT.
    pub from: String,
    pub to: Vec<String>,
    /// As it came: with CRLF and stuffed dots, without the final one.
    pub body: Vec<u8>,
}

impl Letter {
    /// The body in LF form.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).replace("\r\n", "\n")
    }
}

/// A server on a thread of its own, until the test ends.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Debug, Default)]
struct Heard {
    clients: Vec<IpAddr>,
    commands: Vec<String>,
    letters: Vec<Letter>,
}

/// What to answer: lines divided by `|`; an empty text ends the connection; `None` is what any server says.
pub type Answer = Option<&'static str>;

impl Peer {
    /// Listens on `address` and answers as `answer` says.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn start(address: &str, answer: impl Fn(Event<'_>) -> Answer + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind(address)?;
        let peer = Self { address: listener.local_addr()?, heard: Arc::default() };
        let (serving, answer) = (peer.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (serving, answer) = (serving.clone(), Arc::clone(&answer));
                std::thread::spawn(move || serving.serve(stream, &*answer));
            }
        });
        Ok(peer)
    }

    /// Takes everything.
    ///
    /// # Errors
    /// As [`Peer::start`].
    pub fn willing() -> Result<Self> {
        Self::start("127.0.0.1:0", |_| None)
    }

    /// A line for smtproutes.
    #[must_use]
    pub fn route(&self, domain: &str) -> String {
        format!("{domain}:{}:{}\n", self.address.ip(), self.address.port())
    }

    /// The letters accepted so far.
    #[must_use]
    pub fn letters(&self) -> Vec<Letter> {
        self.heard().letters.clone()
    }

    /// The commands of all connections.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        self.heard().commands.clone()
    }

    #[must_use]
    pub fn connections(&self) -> usize {
        self.heard().clients.len()
    }

    /// Where each connection came from.
    #[must_use]
    pub fn clients(&self) -> Vec<IpAddr> {
        self.heard().clients.clone()
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection; any error ends it.
    fn serve(&self, stream: TcpStream, answer: &(dyn Fn(Event<'_>) -> Answer + Send + Sync)) -> Option<()> {
        let from = stream.peer_addr().ok()?.ip();
        let mut writer = stream.try_clone().ok()?;
        let mut reader = BufReader::new(stream);
        let mut say = |text: &str| match text {
            "" => None,
            text => writer.write_all(format!("{}\r\n", text.replace('|', "\r\n")).as_bytes()).ok(),
        };
        self.heard().clients.push(from);
        say(answer(Event::Connection).unwrap_or("220 peer ESMTP"))?;
        let mut letter = Letter { from: String::new(), to: Vec::new(), body: Vec::new() };
        loop {
            let line = line(&mut reader)?;
            let command = String::from_utf8_lossy(&line).trim_end().to_owned();
            self.heard().commands.push(command.clone());
            let own = answer(Event::Command(&command));
            let verb = command.get(..4).unwrap_or_default().to_ascii_uppercase();
            let usual = match verb.as_str() {
                "EHLO" => "250-peer|250-PIPELINING|250 8BITMIME",
                "DATA" if letter.to.is_empty() => "503 no recipients",
                "DATA" => "354 go ahead",
                "QUIT" => "221 bye",
                _ => "250 ok",
            };
            let reply = own.unwrap_or(usual);
            let is_good = reply.starts_with('2') || reply.starts_with('3');
            let argument = command.split_once(':').map(|(_, argument)| argument.to_owned()).unwrap_or_default();
            match verb.as_str() {
                "MAIL" if is_good => letter = Letter { from: argument, to: Vec::new(), body: Vec::new() },
                "RCPT" if is_good => letter.to.push(argument),
                _ => {}
            }
            say(reply)?;
            if verb == "DATA" && is_good {
                letter.body = body(&mut reader)?;
                let reply = answer(Event::Body(&letter.body)).unwrap_or("250 ok taken");
                if reply.starts_with('2') {
                    self.heard().letters.push(letter.clone());
                }
                letter.to.clear();
                say(reply)?;
            }
            if verb == "QUIT" {
                return None;
            }
        }
    }
}

fn line(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).ok()?;
    (!line.is_empty()).then_some(line)
}

fn body(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        match line(reader)? {
            end if end == b".\r\n" => return Some(body),
            line => body.extend_from_slice(&line),
        }
    }
}
