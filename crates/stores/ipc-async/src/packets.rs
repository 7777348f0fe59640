//! SOCK_SEQPACKET connections and listeners that a task can wait for.

use ipc::DATAGRAM_LEN_MAX;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use sys::{Received, Seqpacket, seqpacket};
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

/// How long to wait before connecting again to a server whose queue of connections is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// A connection.
#[derive(Debug)]
pub struct Packets(AsyncFd<Seqpacket>);

impl Packets {
    /// Takes over a connected socket and makes it non-blocking.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub fn new(socket: Seqpacket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self(watch(socket)?))
    }

    /// Connects to `path` below the run directory. A full queue of connections is tried again until the caller gives up
    /// (put a timeout around it).
    ///
    /// # Errors
    /// Nobody serves it: temporary.
    pub async fn connect(run: BorrowedFd<'_>, path: &str) -> io::Result<Self> {
        loop {
            match Seqpacket::connect_nonblocking(run, path) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => sleep(CONNECT_PAUSE).await,
                other => return Self::new(other?),
            }
        }
    }

    /// # Errors
    /// What getsockopt(2) says.
    pub fn peer(&self) -> io::Result<sys::Peer> {
        self.0.get_ref().peer()
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.send_with(datagram, None).await
    }

    /// Sends one datagram, with a descriptor beside it if there is one.
    ///
    /// # Errors
    /// The other side is gone.
    pub async fn send_with(&self, datagram: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        // Mostly there is room: try before waiting.
        match self.try_send_with(datagram, fd) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(done) = ready.try_io(|socket| socket.get_ref().send_parts(&[io::IoSlice::new(datagram)], fd)) {
                return done;
            }
        }
    }

    /// Sends one datagram now or not at all.
    ///
    /// # Errors
    /// `WouldBlock`, or the other side is gone.
    pub fn try_send_with(&self, datagram: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.0.get_ref().send_parts(&[io::IoSlice::new(datagram)], fd)
    }

    /// As [`Seqpacket::shutdown_receiving`]: a [`Packets::recv`] that waits gives what is left, then the end.
    ///
    /// # Errors
    /// What shutdown(2) says.
    pub fn shutdown_receiving(&self) -> io::Result<()> {
        self.0.get_ref().shutdown_receiving()
    }

    /// The next datagram, with the descriptor beside it; `None` at the end of the connection.
    ///
    /// # Errors
    /// The connection broke, or a datagram was too long.
    pub async fn recv(&self) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(received) = ready.try_io(|socket| receive(socket.get_ref())) {
                return received;
            }
        }
    }
}

/// One datagram. The buffer lives here and not in the future of a task that waits, of which there are thousands.
fn receive(socket: &Seqpacket) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut buf = [0; DATAGRAM_LEN_MAX];
    Ok(match socket.recv_with_fd(&mut buf)? {
        Received::Datagram(len, fd) => Some((buf.get(..len).unwrap_or_default().to_vec(), fd)),
        Received::End => None,
    })
}

/// A listening socket that was handed over.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// # Errors
    /// The runtime cannot watch it.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(watch(fd)?))
    }

    /// The next connection. Running out of descriptors is waited out, so a loop over this never spins.
    ///
    /// # Errors
    /// The runtime is gone.
    pub async fn accept(&self) -> io::Result<Packets> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| seqpacket::accept(fd.get_ref().as_fd())) {
                Ok(Ok(socket)) => return Packets::new(socket),
                Ok(Err(_)) => sleep(CONNECT_PAUSE).await,
                Err(_) => {}
            }
        }
    }
}

/// Lets the runtime watch a descriptor.
pub(crate) fn watch<T: AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    // Deprecated for values whose descriptor number may change or close while it is watched. All callers pass an owner of one
    // descriptor that does neither; the replacement is an unsafe function, and `unsafe` has its place in crates/os/sys alone.
    #[allow(deprecated)]
    AsyncFd::new(fd)
}
