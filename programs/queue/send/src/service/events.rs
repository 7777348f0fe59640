//! One epoll for everything, with a name for each source.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::Timespec;
use sandbox::Socket;

/// Events taken in one go; more wait for the next turn.
const BATCH: usize = 256;
/// The upper bits say what, the lower ones which.
const KIND_SHIFT: u32 = 60;
const NUMBER_MASK: u64 = (1 << KIND_SHIFT) - 1;
/// The number of a socket, below the number of its connection.
const SOCKET_BITS: u32 = 5;

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Lifeline,
    Signals,
    /// A listening socket.
    Door(Socket),
    Spool,
    /// The bounce writer.
    Writer,
    /// A connection that we made, with its number.
    Link(Socket, u64),
    /// A connection that was made to us.
    Client(u64),
}

impl Source {
    fn encode(self) -> u64 {
        let of = |socket| Socket::ALL.iter().zip(0u64..).find(|(known, _)| **known == socket).map_or(0, |(_, at)| at);
        let (kind, number) = match self {
            Self::Lifeline => (0, 0),
            Self::Signals => (1, 0),
            Self::Door(socket) => (2, of(socket)),
            Self::Spool => (3, 0),
            Self::Writer => (4, 0),
            Self::Link(socket, connection) => (5, (connection << SOCKET_BITS) | of(socket)),
            Self::Client(number) => (6, number),
        };
        (kind << KIND_SHIFT) | (number & NUMBER_MASK)
    }

    fn decode(code: u64) -> Self {
        let number = code & NUMBER_MASK;
        let socket = || {
            usize::try_from(number & ((1 << SOCKET_BITS) - 1))
                .ok()
                .and_then(|at| Socket::ALL.get(at).copied())
                .unwrap_or(Socket::Queue)
        };
        match code >> KIND_SHIFT {
            0 => Self::Lifeline,
            1 => Self::Signals,
            2 => Self::Door(socket()),
            3 => Self::Spool,
            4 => Self::Writer,
            5 => Self::Link(socket(), number >> SOCKET_BITS),
            _ => Self::Client(number),
        }
    }
}

/// What happened at a source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    pub(super) source: Source,
    /// It takes output again.
    pub(super) writable: bool,
    /// The other side is gone.
    pub(super) hung_up: bool,
}

/// The set of sources. A descriptor that is closed leaves it by itself.
#[derive(Debug)]
pub(super) struct Events(OwnedFd);

impl Events {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Waits for input of `fd` from now on.
    pub(super) fn add(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(source.encode()), EventFlags::IN)?)
    }

    /// Changes what is waited for. The end of a connection is always seen.
    pub(super) fn want(&self, fd: impl AsFd, source: Source, input: bool, output: bool) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, input);
        flags.set(EventFlags::OUT, output);
        Ok(epoll::modify(&self.0, fd, EventData::new_u64(source.encode()), flags)?)
    }

    /// Forgets a descriptor that stays open.
    pub(super) fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// The next events; none after `timeout`.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Event>> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut buf = Vec::with_capacity(BATCH);
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut buf), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let event = |event: epoll::Event| {
            let flags = event.flags;
            Event {
                source: Source::decode(event.data.u64()),
                writable: flags.contains(EventFlags::OUT),
                hung_up: flags.intersects(EventFlags::HUP | EventFlags::ERR),
            }
        };
        Ok(buf.into_iter().map(event).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_comes_back() {
        assert!(Socket::ALL.len() <= 1 << SOCKET_BITS);
        let sockets = Socket::ALL
            .into_iter()
            .flat_map(|socket| [Source::Door(socket), Source::Link(socket, 0), Source::Link(socket, 1 << 50)]);
        let others =
            [Source::Lifeline, Source::Signals, Source::Spool, Source::Writer, Source::Client(1), Source::Client(NUMBER_MASK)];
        for source in sockets.chain(others) {
            assert_eq!(Source::decode(source.encode()), source);
        }
    }
}
