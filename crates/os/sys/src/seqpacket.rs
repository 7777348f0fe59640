//! AF_UNIX SOCK_SEQPACKET: whole datagrams in order, with at most one descriptor beside each.
//!
//! A datagram that does not fit the receiver's buffer is an error (MSG_TRUNC), a descriptor that nobody asked for is never
//! installed (no control buffer), an empty read is the end of the connection; empty datagrams are not sent.

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Who is at the other end (SO_PEERCRED: as it was when the connection was made).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// A datagram that was received.
#[derive(Debug)]
pub enum Received {
    /// So many bytes of the buffer, and the descriptor that came with them if there was one.
    Datagram(usize, Option<OwnedFd>),
    /// The other side closed.
    End,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Seqpacket(OwnedFd);

impl Seqpacket {
    /// Takes over a connected descriptor.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Two ends of a connection, both blocking.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(a), Self(b)))
    }

    /// Connects to `name` (a relative path) below the open directory `dir`; blocking. A path of any depth works, since
    /// it goes through `/proc/self/fd`.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused`: nobody serves it (retry); `WouldBlock`: its queue is full (retry by timer).
    pub fn connect(dir: BorrowedFd<'_>, name: &str) -> io::Result<Self> {
        Self::connect_with(dir, name, SocketFlags::CLOEXEC)
    }

    /// As [`Seqpacket::connect`], but the connection is non-blocking and so is the attempt.
    ///
    /// # Errors
    /// As [`Seqpacket::connect`].
    pub fn connect_nonblocking(dir: BorrowedFd<'_>, name: &str) -> io::Result<Self> {
        Self::connect_with(dir, name, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }

    fn connect_with(dir: BorrowedFd<'_>, name: &str, flags: SocketFlags) -> io::Result<Self> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &address(dir, name)?)?;
        Ok(Self(socket))
    }

    /// # Errors
    /// What fcntl(2) says.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        let mut flags = rustix::fs::fcntl_getfl(&self.0)?;
        flags.set(rustix::fs::OFlags::NONBLOCK, nonblocking);
        Ok(rustix::fs::fcntl_setfl(&self.0, flags)?)
    }

    /// A blocking receive or send gives up with `WouldBlock` after `deadline`.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_deadline(&self, deadline: Duration) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, Some(deadline))?;
        Ok(sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Send, Some(deadline))?)
    }

    /// # Errors
    /// What getsockopt(2) says.
    pub fn peer(&self) -> io::Result<Peer> {
        let credentials = sockopt::socket_peercred(&self.0)?;
        Ok(Peer {
            uid: credentials.uid.as_raw(),
            gid: credentials.gid.as_raw(),
            pid: u32::try_from(credentials.pid.as_raw_nonzero().get()).unwrap_or(0),
        })
    }

    /// Sends one datagram, whole or not at all. SIGPIPE never comes.
    ///
    /// # Errors
    /// `WouldBlock` (non-blocking and full), `BrokenPipe`, or `InvalidInput` for an empty datagram.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.send_parts(&[IoSlice::new(datagram)], None)
    }

    /// Sends one datagram with a descriptor.
    ///
    /// # Errors
    /// As [`Seqpacket::send`].
    pub fn send_with_fd(&self, datagram: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
        self.send_parts(&[IoSlice::new(datagram)], Some(fd))
    }

    /// Sends one datagram gathered from parts.
    ///
    /// # Errors
    /// As [`Seqpacket::send`].
    pub fn send_parts(&self, parts: &[IoSlice<'_>], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if parts.iter().all(|part| part.is_empty()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        rustix::io::retry_on_intr(|| rustix::net::sendmsg(&self.0, parts, &mut control, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// Receives one datagram; descriptors are refused.
    ///
    /// # Errors
    /// `WouldBlock`; `InvalidData` for a datagram longer than `buf`; `ConnectionReset`.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<Received> {
        self.recv_in(buf, &mut RecvAncillaryBuffer::default())
    }

    /// Receives one datagram and the descriptor beside it.
    ///
    /// # Errors
    /// As [`Seqpacket::recv`].
    pub fn recv_with_fd(&self, buf: &mut [u8]) -> io::Result<Received> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        self.recv_in(buf, &mut RecvAncillaryBuffer::new(&mut space))
    }

    /// From now on the kernel notes with each datagram who sends it; for [`Seqpacket::recv_with_sender`].
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn note_senders(&self) -> io::Result<()> {
        Ok(sockopt::set_socket_passcred(&self.0, true)?)
    }

    /// Receives one datagram and the real uid of the process that sent it, which need not be the one that the socket was made for.
    /// `None`: the kernel did not note it. Descriptors are refused.
    ///
    /// # Errors
    /// As [`Seqpacket::recv`].
    pub fn recv_with_sender(&self, buf: &mut [u8]) -> io::Result<(Received, Option<u32>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(buf)], &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        let sender = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.uid.as_raw()),
            _ => None,
        });
        if message.flags.contains(ReturnFlags::TRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "datagram too long"));
        }
        Ok((if message.bytes == 0 { Received::End } else { Received::Datagram(message.bytes, None) }, sender))
    }

    /// Takes nothing more from the other side, whose next send is a `BrokenPipe`; what it sent before is still received, then comes
    /// the end. Sending goes on. Nothing can fall in between: a datagram was taken whole before this, or its sender knows.
    ///
    /// # Errors
    /// What shutdown(2) says.
    pub fn shutdown_receiving(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.0, rustix::net::Shutdown::Read)?)
    }

    fn recv_in(&self, buf: &mut [u8], control: &mut RecvAncillaryBuffer<'_>) -> io::Result<Received> {
        let message = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(buf)], control, RecvFlags::CMSG_CLOEXEC)
        })?;
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if message.flags.contains(ReturnFlags::TRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "datagram too long"));
        }
        Ok(if message.bytes == 0 { Received::End } else { Received::Datagram(message.bytes, fd) })
    }
}

impl AsFd for Seqpacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Seqpacket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl From<Seqpacket> for OwnedFd {
    fn from(socket: Seqpacket) -> Self {
        socket.0
    }
}

/// Connections waiting to be accepted, at most (the kernel's somaxconn may be lower).
const BACKLOG: i32 = 1024;

/// Makes the listening socket `name` below `dir`, replacing an old one; non-blocking. The mode is set by the caller.
///
/// # Errors
/// What bind(2) says.
pub fn listen(dir: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    match rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    rustix::net::bind(&socket, &address(dir, name)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The next waiting connection of a listening socket, non-blocking.
///
/// # Errors
/// `WouldBlock` when none waits; out of descriptors.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Seqpacket> {
    let fd = rustix::io::retry_on_intr(|| rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK))?;
    Ok(Seqpacket(fd))
}

fn address(dir: BorrowedFd<'_>, name: &str) -> io::Result<SocketAddrUnix> {
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    Ok(SocketAddrUnix::new(Path::new(&path))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_who_sent_a_datagram() {
        let (a, b) = Seqpacket::pair().unwrap();
        a.note_senders().unwrap();
        b.send(b"x").unwrap();
        let own = rustix::process::getuid().as_raw();
        assert!(matches!(a.recv_with_sender(&mut [0; 8]).unwrap(), (Received::Datagram(1, None), Some(uid)) if uid == own));
        if rustix::process::geteuid().is_root() {
            let other = rustix::process::Uid::from_raw(61_234);
            let send = move || {
                // Of this thread alone.
                rustix::thread::set_thread_res_uid(other, other, other).unwrap();
                b.send(b"y").unwrap();
            };
            std::thread::spawn(send).join().unwrap();
            assert!(matches!(a.recv_with_sender(&mut [0; 8]).unwrap(), (Received::Datagram(1, None), Some(61_234))));
            assert!(matches!(a.recv_with_sender(&mut [0; 8]).unwrap(), (Received::End, _)));
        }
    }

    #[test]
    fn datagrams_keep_their_bounds_and_descriptors() {
        let (a, b) = Seqpacket::pair().unwrap();
        a.send(b"one").unwrap();
        a.send_with_fd(b"two", crate::memfd::sealed(b"body").unwrap().as_fd()).unwrap();
        let mut buf = [0; 16];
        assert!(matches!(b.recv(&mut buf).unwrap(), Received::Datagram(3, None)));
        assert!(matches!(b.recv_with_fd(&mut buf).unwrap(), Received::Datagram(3, Some(_))));
        a.send_with_fd(b"three", crate::memfd::sealed(b"body").unwrap().as_fd()).unwrap();
        assert!(matches!(b.recv(&mut buf).unwrap(), Received::Datagram(5, None)), "a descriptor nobody asked for is dropped");
        a.send(&[0; 17]).unwrap();
        assert_eq!(b.recv(&mut buf).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(a.send(b"").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        drop(a);
        assert!(matches!(b.recv(&mut buf).unwrap(), Received::End));
        assert_eq!(b.send(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    /// As unix(7) does not say, and the retirement of qmail-remote needs.
    #[test]
    fn after_the_receiving_direction_is_shut_down_what_was_sent_is_received_and_answers_still_go_out() {
        let (ours, theirs) = Seqpacket::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        theirs.send_with_fd(b"one", crate::memfd::sealed(b"body").unwrap().as_fd()).unwrap();
        theirs.send(b"two").unwrap();
        ours.shutdown_receiving().unwrap();
        assert_eq!(theirs.send(b"three").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut buf = [0; 16];
        assert!(matches!(ours.recv_with_fd(&mut buf).unwrap(), Received::Datagram(3, Some(_))));
        assert!(matches!(ours.recv(&mut buf).unwrap(), Received::Datagram(3, None)));
        assert!(matches!(ours.recv(&mut buf).unwrap(), Received::End));
        // The other side hears of it only by sending: to its receiving nothing has happened.
        assert_eq!(theirs.recv(&mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        ours.send(b"answer").unwrap();
        assert!(matches!(theirs.recv(&mut buf).unwrap(), Received::Datagram(6, None)));
        drop(ours);
        assert!(matches!(theirs.recv(&mut buf).unwrap(), Received::End));
    }

    #[test]
    fn a_socket_in_a_deep_directory() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let fd = std::fs::File::open(&deep).unwrap();
        let listener = listen(fd.as_fd(), "x.sock").unwrap();
        assert_eq!(accept(listener.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let client = Seqpacket::connect(fd.as_fd(), "x.sock").unwrap();
        let server = accept(listener.as_fd()).unwrap();
        assert_eq!(server.peer().unwrap().pid, std::process::id());
        client.send(b"hello").unwrap();
        assert!(matches!(server.recv(&mut [0; 8]).unwrap(), Received::Datagram(5, None)));
        drop(listen(fd.as_fd(), "x.sock").unwrap());
        assert!(Seqpacket::connect(fd.as_fd(), "x.sock").is_err());
    }
}
