//! A blocking client of the queue protocol: qmail-inject, sendmail, qmail-queue, qmail-local and the classic network faces.

use crate::queue::{Answer, Item, Packer};
use crate::{DATAGRAM_LEN_MAX, Message};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use sys::{Received, Seqpacket};
use wire::Address;

/// qmail-send's deadline for a commit (DESIGN of the queue: 300 s), plus slack for its answer.
const COMMIT_DEADLINE: Duration = Duration::from_secs(310);

/// A connection to qmail-send that carries one message at a time.
#[derive(Debug)]
pub struct Submission {
    socket: Seqpacket,
    packer: Packer,
}

impl Submission {
    /// Connects to `inject.sock` (or another name) below the run directory.
    ///
    /// # Errors
    /// qmail-send is not there: temporary.
    pub fn connect(run: BorrowedFd<'_>, name: &str) -> io::Result<Self> {
        let socket = Seqpacket::connect(run, name)?;
        socket.set_deadline(COMMIT_DEADLINE)?;
        Ok(Self { socket, packer: Packer::new() })
    }

    /// Starts a message. Flags: [`crate::queue::FLAG_EIGHT_BIT`], [`crate::queue::FLAG_SMTPUTF8`].
    ///
    /// # Errors
    /// The connection broke: temporary, nothing was queued.
    pub fn begin(&mut self, sender: Address, flags: u32) -> io::Result<()> {
        self.packer = Packer::new();
        let full = self.packer.push(&Item::Begin { sender, flags });
        self.send(full)
    }

    /// Any item but data and the commit, such as what is asked for of a recipient behind it.
    ///
    /// # Errors
    /// As [`Submission::begin`].
    pub fn item(&mut self, item: &Item<'_>) -> io::Result<()> {
        let full = self.packer.push(item);
        self.send(full)
    }

    /// # Errors
    /// As [`Submission::begin`].
    pub fn recipient(&mut self, address: Address) -> io::Result<()> {
        let full = self.packer.push(&Item::Recipient(address));
        self.send(full)
    }

    /// # Errors
    /// As [`Submission::begin`].
    pub fn data(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let full = self.packer.push_data(&mut data);
            self.send(full)?;
        }
        Ok(())
    }

    /// Ends the message and waits until it is on the disk or refused.
    ///
    /// # Errors
    /// The connection broke or the deadline passed: temporary. The message may have been queued all the same.
    pub fn commit(&mut self) -> io::Result<Answer> {
        let full = self.packer.push(&Item::Commit);
        self.send(full)?;
        let last = self.packer.take();
        self.send(last)?;
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        match self.socket.recv(&mut buf)? {
            Received::Datagram(len, _) => Ok(Answer::decode(buf.get(..len).unwrap_or_default())?),
            Received::End => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn send(&self, datagram: Option<Vec<u8>>) -> io::Result<()> {
        // An answer may be waiting already (the message was refused half-way): then the send fails or is ignored there, and
        // commit reads the answer.
        datagram.map_or(Ok(()), |datagram| self.socket.send(&datagram))
    }
}
