//! LDAP on one connection: one operation at a time, each answered before the next is sent.

use crate::Trouble;
use ldap::request::{self, Search};
use ldap::response::{self, Attributes};
use ldap::{Message, Outcome, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

use crate::dial::Io;

/// Bytes taken from the connection at a time.
const READ_LEN: usize = 4096;
/// Entries that are kept of a search: a second one is one too many already.
pub const ENTRIES_MAX: u32 = 2;

/// An entry that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub dn: Vec<u8>,
    pub attributes: Attributes,
}

/// A connection that is spoken LDAP on.
pub struct Conversation<S> {
    io: S,
    received: Vec<u8>,
    last_id: u32,
}

impl<S: Io> Conversation<S> {
    pub fn new(io: S) -> Self {
        Self { io, received: Vec::new(), last_id: 0 }
    }

    /// Asks for TLS (RFC 4511 §4.14): the connection on which the handshake begins.
    ///
    /// # Errors
    /// The server will not, or has sent more than its answer: what was said before TLS is never taken for what comes by it.
    pub async fn start_tls(mut self) -> Result<S, Trouble> {
        let id = self.id();
        self.send(&request::start_tls(id)).await?;
        match self.receive(id).await? {
            Response::Extended(outcome) if outcome.is_success() => {}
            Response::Extended(outcome) => return Err(said("STARTTLS", &outcome)),
            _ => return Err("an answer to something else".into()),
        }
        if self.received.is_empty() { Ok(self.io) } else { Err("bytes in the clear behind STARTTLS".into()) }
    }

    /// A simple bind; `None` for a name with an empty password, which is never sent.
    ///
    /// # Errors
    /// No answer.
    pub async fn bind(&mut self, name: &[u8], password: &[u8]) -> Result<Option<Outcome>, Trouble> {
        let id = self.id();
        let Some(message) = request::bind(id, name, password) else { return Ok(None) };
        self.send(&Zeroizing::new(message)).await?;
        match self.receive(id).await? {
            Response::Bind(outcome) => Ok(Some(outcome)),
            _ => Err("an answer to something else".into()),
        }
    }

    /// A search: at most [`ENTRIES_MAX`] entries, and how it ended. References to other servers are passed over: an Active Directory adds
    /// some to every answer.
    ///
    /// # Errors
    /// No answer, or more entries than were asked for.
    pub async fn search(&mut self, search: &Search<'_>) -> Result<(Vec<Entry>, Outcome), Trouble> {
        let id = self.id();
        self.send(&request::search(id, search)).await?;
        let mut entries = Vec::new();
        loop {
            match self.receive(id).await? {
                Response::Entry { dn, attributes } if entries.len() < ENTRIES_MAX as usize => {
                    entries.push(Entry { dn, attributes })
                }
                Response::Entry { .. } => return Err("more entries than were asked for".into()),
                Response::Reference => {}
                Response::Done(outcome) => return Ok((entries, outcome)),
                _ => return Err("an answer to something else".into()),
            }
        }
    }

    fn id(&mut self) -> u32 {
        self.last_id = self.last_id.wrapping_add(1) & 0x7fff_ffff;
        self.last_id
    }

    async fn send(&mut self, message: &[u8]) -> Result<(), Trouble> {
        let sent = async {
            self.io.write_all(message).await?;
            self.io.flush().await
        };
        sent.await.map_err(|error| Trouble::new("the connection broke", &error))
    }

    /// The next message, which must be for `id`.
    async fn receive(&mut self, id: u32) -> Result<Response, Trouble> {
        loop {
            if let Some(len) = response::len(&self.received).map_err(malformed)? {
                let rest = self.received.split_off(len);
                let message = Message::decode(&std::mem::replace(&mut self.received, rest)).map_err(malformed)?;
                return match message.response {
                    response if message.id == id => Ok(response),
                    // RFC 4511 §4.4: the server's word that it closes.
                    Response::Extended(outcome) if message.id == 0 => Err(said("the server closes", &outcome)),
                    _ => Err("an answer to something else".into()),
                };
            }
            let mut buf = [0; READ_LEN];
            match self.io.read(&mut buf).await {
                Ok(0) => return Err("the server closed the connection".into()),
                Ok(len) => self.received.extend_from_slice(buf.get(..len).unwrap_or_default()),
                Err(error) => return Err(Trouble::new("the connection broke", &error)),
            }
        }
    }
}

fn malformed(error: ldap::Malformed) -> Trouble {
    Trouble::new("no LDAP", &error)
}

/// A result that is no success, for the log.
pub(crate) fn said(what: &str, outcome: &Outcome) -> Trouble {
    Trouble::new(what, &format_args!("LDAP result {} {}", outcome.code, String::from_utf8_lossy(&outcome.text)))
}
