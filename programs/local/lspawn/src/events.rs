//! One epoll for everything that qmail-lspawn waits for, with a name for each source.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::Timespec;

/// Events taken in one go.
const BATCH: usize = 64;
/// The upper bits say what, the lower ones which.
const TAG_SHIFT: u32 = 60;
const NUMBER_MASK: u64 = (1 << TAG_SHIFT) - 1;

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Lifeline,
    Signals,
    Listener,
    Getpw,
    Client(u64),
    /// A worker's socket.
    Worker(u64),
    /// A worker's process has ended.
    WorkerEnd(u64),
    /// A POP3 session's process has ended.
    SessionEnd(u64),
}

impl Source {
    fn encode(self) -> u64 {
        let (tag, number) = match self {
            Self::Lifeline => (0, 0),
            Self::Signals => (1, 0),
            Self::Listener => (2, 0),
            Self::Getpw => (3, 0),
            Self::Client(number) => (4, number),
            Self::Worker(number) => (5, number),
            Self::WorkerEnd(number) => (6, number),
            Self::SessionEnd(number) => (7, number),
        };
        tag << TAG_SHIFT | number & NUMBER_MASK
    }

    fn decode(code: u64) -> Self {
        let number = code & NUMBER_MASK;
        match code >> TAG_SHIFT {
            0 => Self::Lifeline,
            1 => Self::Signals,
            2 => Self::Listener,
            3 => Self::Getpw,
            4 => Self::Client(number),
            5 => Self::Worker(number),
            6 => Self::WorkerEnd(number),
            _ => Self::SessionEnd(number),
        }
    }
}

/// What happened at a source.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    pub source: Source,
    /// It takes output again, and nothing else happened.
    pub writable_only: bool,
}

/// The set of sources. A descriptor that is closed leaves it by itself.
#[derive(Debug)]
pub struct Events(OwnedFd);

impl Events {
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Waits for input (or the end) of `fd` from now on.
    ///
    /// # Errors
    /// Out of memory.
    pub fn add(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(source.encode()), EventFlags::IN)?)
    }

    /// Also for output, or not any more.
    ///
    /// # Errors
    /// Out of memory.
    pub fn want_output(&self, fd: impl AsFd, source: Source, output: bool) -> io::Result<()> {
        let flags = if output { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        Ok(epoll::modify(&self.0, fd, EventData::new_u64(source.encode()), flags)?)
    }

    /// Forgets a descriptor that stays open.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// The next events; none after `timeout`.
    ///
    /// # Errors
    /// What epoll_wait(2) says, but for interruption.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Event>> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut buf = Vec::with_capacity(BATCH);
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut buf), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let event = |event: epoll::Event| {
            let flags = event.flags;
            Event { source: Source::decode(event.data.u64()), writable_only: flags == EventFlags::OUT }
        };
        Ok(buf.into_iter().map(event).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_comes_back() {
        for source in [
            Source::Lifeline,
            Source::Signals,
            Source::Listener,
            Source::Getpw,
            Source::Client(1),
            Source::Worker(NUMBER_MASK),
            Source::WorkerEnd(7),
            Source::SessionEnd(9),
        ] {
            assert_eq!(Source::decode(source.encode()), source);
        }
    }

    #[test]
    fn input_is_seen_and_a_closed_descriptor_is_forgotten() {
        let events = Events::new().unwrap();
        let (a, b) = sys::Seqpacket::pair().unwrap();
        events.add(&a, Source::Worker(5)).unwrap();
        assert!(events.wait(Some(Duration::ZERO)).unwrap().is_empty());
        b.send(b"x").unwrap();
        assert_eq!(events.wait(None).unwrap()[0].source, Source::Worker(5));
        drop(a);
        assert!(events.wait(Some(Duration::ZERO)).unwrap().is_empty());
    }
}
