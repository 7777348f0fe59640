//! The recipient's mailbox behind an LMTP server of this host (`control/lmtproutes`), in the place of the file that the default delivery
//! names: one message, one recipient, over the server's Unix socket, by the machine that qmail-remote has too ([`smtp::client`]).
//!
//! Guarantees: delivered means the server said 2xx for this recipient behind the dot; a 5xx of the server alone is permanent; whatever
//! else happens is temporary. It ends before qmail-lspawn's deadline, however slow the server is ([`TIME_MAX`]).
//! Delivered-To goes with the message, so that a loop through the server's own redirects ends; Return-Path is the server's to add, which
//! makes the final delivery (RFC 5321 §4.4).

use crate::failure::Failure;
use ipc::worker::Lmtp;
use maildir::Body;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use smtp::client::{Action, Client, Finished, Input, Outcome, Protocol, Security, Transaction};
use smtp::encode::{Encoder, Survey};
use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use wire::Address;

/// For the whole conversation, in seconds: less than the 300 that qmail-lspawn gives a delivery.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(240);
/// What is read at once.
const READ_LEN: usize = 4096;

/// Delivers; the report's lines of the success.
///
/// # Errors
/// What the server said, or that it is not there; permanent only by its 5xx.
pub(crate) fn deliver(lmtp: &Lmtp, sender: &Address, host: &[u8], trace: &[u8], body: &Body) -> Result<String, Failure> {
    let path = wire::escape::visible(&lmtp.socket);
    let unable = |e: io::Error| {
        Failure::temporary(format!("Unable to reach the LMTP server at {path}: {}. (#4.4.1)", maildir::errno_text(&e)))
    };
    let stream = connect(&lmtp.socket).map_err(unable)?;
    let host = String::from_utf8_lossy(host);
    let (client, actions) = Client::new(&host, &path, Security { protocol: Protocol::Lmtp, ..Security::default() });
    let transaction = transaction(sender, lmtp, trace, body)?;
    let talk = Talk { stream, is_broken: false, client, deadline: sys::clock::boottime().saturating_add(TIME_MAX), trace, body };
    let finished = talk.run(actions, transaction)?;
    match finished.outcomes.into_iter().next() {
        Some(Outcome::Delivered(text)) => Ok(text),
        Some(Outcome::Failed(text)) => Err(Failure::permanent(without_lf(text))),
        Some(Outcome::Deferred(text)) => Err(Failure::temporary(without_lf(text))),
        Some(Outcome::Next) | None => Err(Failure::temporary("The LMTP server took nothing. (#4.3.0)")),
    }
}

/// A server that is too busy to accept is waited for, too: the send timeout bounds connect(2) on a Unix socket.
fn connect(path: &[u8]) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(Path::new(OsStr::from_bytes(path)))?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(TIME_MAX / 4))?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(UnixStream::from(socket))
}

/// A failure's text gets its last line end from the report.
fn without_lf(mut text: String) -> String {
    while text.ends_with('\n') {
        text.pop();
    }
    text
}

fn transaction(sender: &Address, lmtp: &Lmtp, trace: &[u8], body: &Body) -> Result<Transaction, Failure> {
    let mut survey = Survey::new();
    survey.push(trace);
    let read = body.each_chunk(|chunk| {
        survey.push(chunk);
        Ok::<_, io::Error>(true)
    });
    read.map_err(unreadable)?;
    let survey = survey.finish();
    Ok(Transaction {
        sender: sender.clone(),
        recipients: vec![lmtp.mailbox.clone()],
        size: survey.size,
        eight_bit: survey.eight_bit,
        smtputf8: false,
        xverp: None,
        requiretls: false,
        dsn: None,
        by: None,
        priority: None,
    })
}

struct Talk<'a> {
    stream: UnixStream,
    /// Something was not taken whole, so nothing may follow it.
    is_broken: bool,
    client: Client,
    deadline: Duration,
    trace: &'a [u8],
    body: &'a Body,
}

impl Talk<'_> {
    /// One session with one transaction, and QUIT, whose answer nobody needs.
    fn run(mut self, mut actions: Vec<Action>, transaction: Transaction) -> Result<Finished, Failure> {
        let mut transaction = Some(transaction);
        loop {
            let mut next = None;
            for action in actions {
                match action {
                    Action::Send(bytes) => self.write(&bytes),
                    Action::SendBody => next = Some(self.send_body()?),
                    Action::Ready => next = transaction.take().map(Input::Begin),
                    Action::Unusable(text) | Action::NoTls(text) => return Err(Failure::temporary(without_lf(text))),
                    Action::Finished(finished) => {
                        self.write(b"QUIT\r\n");
                        return Ok(finished);
                    }
                    Action::Close => return Err(Failure::temporary("The LMTP server closed the connection. (#4.4.2)")),
                    // There is one deadline for all, and neither TLS nor a login on a Unix socket.
                    Action::Deadline(_) | Action::StartTls | Action::SendSecret(_) => {}
                }
            }
            actions = match next {
                Some(input) => self.client.handle(input),
                // The machine ends at the deadline; if it did not, this would.
                None if self.time_left().is_none() && !self.client.is_ready() => self.late()?,
                None => self.read(),
            };
        }
    }

    fn late(&mut self) -> Result<Vec<Action>, Failure> {
        let actions = self.client.handle(Input::Timeout);
        if actions.is_empty() { Err(Failure::temporary("The LMTP server took too long. (#4.4.2)")) } else { Ok(actions) }
    }

    /// What cannot be written is not complained about here: the server may have said why, and reading finds the end too.
    fn write(&mut self, bytes: &[u8]) {
        let left = self.time_left();
        self.is_broken = self.is_broken
            || left.is_none()
            || self.stream.set_write_timeout(left).is_err()
            || self.stream.write_all(bytes).is_err();
    }

    fn read(&mut self) -> Vec<Action> {
        let mut bytes = [0; READ_LEN];
        let Some(left) = self.time_left() else { return self.client.handle(Input::Timeout) };
        if self.stream.set_read_timeout(Some(left)).is_err() {
            return self.client.handle(Input::Closed);
        }
        match self.stream.read(&mut bytes) {
            Ok(0) => self.client.handle(Input::Closed),
            Ok(len) => self.client.handle(Input::Bytes(bytes.get(..len).unwrap_or_default())),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Vec::new(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.client.handle(Input::Timeout),
            Err(_) => self.client.handle(Input::Closed),
        }
    }

    /// The whole body with its final dot. A server that has gone away meanwhile is noticed by the next read; one that has stopped
    /// reading, by the deadline.
    fn send_body(&mut self) -> Result<Input<'static>, Failure> {
        let (mut encoder, mut wire) = (Encoder::new(), Vec::new());
        encoder.push(self.trace, &mut wire);
        let body = self.body;
        let read = body.each_chunk(|chunk| {
            encoder.push(chunk, &mut wire);
            self.write(&wire);
            wire.clear();
            Ok::<_, io::Error>(self.time_left().is_some())
        });
        if read.is_err() {
            // Without the dot the server delivers nothing.
            return Ok(Input::BodyUnreadable);
        }
        if self.time_left().is_none() {
            return Ok(Input::Timeout);
        }
        encoder.finish(&mut wire);
        self.write(&wire);
        Ok(Input::BodySent)
    }

    /// `None`: none.
    fn time_left(&self) -> Option<Duration> {
        self.deadline.checked_sub(sys::clock::boottime()).filter(|left| !left.is_zero())
    }
}

fn unreadable(stopped: maildir::Stopped<io::Error>) -> Failure {
    match stopped {
        maildir::Stopped::Read(e) | maildir::Stopped::Take(e) => Failure::system("Unable to read message", &e),
    }
}
