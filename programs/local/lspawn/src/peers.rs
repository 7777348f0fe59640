//! Connections: the clients of lspawn.sock, and our own connection to qmail-getpw.
//!
//! All non-blocking; what a peer does not read waits in a bounded outbox. A peer that sends what cannot be decoded loses its
//! connection and nothing else happens.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use ipc::DATAGRAM_LEN_MAX;
use sys::{Received, Seqpacket};

use crate::events::{Events, Source};

/// Answers that wait for a client that does not read; more than all jobs there can be.
const OUTBOX_MAX: usize = 4096;

/// What a client may ask, by its uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// It is qmail-send.
    pub jobs: bool,
    /// It is qmail-auth.
    pub questions: bool,
}

/// A connection and what could not be written to it yet.
#[derive(Debug)]
pub struct Client {
    pub socket: Seqpacket,
    pub rights: Rights,
    outbox: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    /// The loop waits until the socket takes output.
    watched: bool,
}

impl Client {
    #[must_use]
    pub fn new(socket: Seqpacket, rights: Rights) -> Self {
        Self { socket, rights, outbox: VecDeque::new(), watched: false }
    }

    /// Sends now, or keeps for the moment when the socket takes it: then the loop calls [`Client::flush`].
    ///
    /// # Errors
    /// The peer is gone, or reads nothing although much waits for it: the connection is of no use any more.
    pub fn send(&mut self, datagram: Vec<u8>, fd: Option<OwnedFd>, events: &Events, source: Source) -> io::Result<()> {
        if self.outbox.len() >= OUTBOX_MAX {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.outbox.push_back((datagram, fd));
        self.flush(events, source)
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// The peer is gone.
    pub fn flush(&mut self, events: &Events, source: Source) -> io::Result<()> {
        let waits = self.write()?;
        if waits != self.watched {
            events.want_output(&self.socket, source, waits)?;
            self.watched = waits;
        }
        Ok(())
    }

    /// True if something still waits.
    fn write(&mut self) -> io::Result<bool> {
        while let Some((datagram, fd)) = self.outbox.front() {
            let sent = match fd {
                Some(fd) => self.socket.send_with_fd(datagram, fd.as_fd()),
                None => self.socket.send(datagram),
            };
            match sent {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// What a read brought.
#[derive(Debug)]
pub enum Read {
    Datagram(Vec<u8>, Option<OwnedFd>),
    /// Nothing now.
    Empty,
    /// The peer closed, or sent what no peer of ours sends.
    Closed,
}

/// Reads one datagram, with the descriptor beside it if `with_fd`.
pub fn read(socket: &Seqpacket, buf: &mut [u8; DATAGRAM_LEN_MAX], with_fd: bool) -> Read {
    let received = if with_fd { socket.recv_with_fd(buf) } else { socket.recv(buf) };
    match received {
        Ok(Received::Datagram(len, fd)) => Read::Datagram(buf.get(..len).unwrap_or_default().to_vec(), fd),
        Ok(Received::End) => Read::Closed,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Read::Empty,
        Err(_) => Read::Closed,
    }
}
