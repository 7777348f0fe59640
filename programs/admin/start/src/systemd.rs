//! Under systemd: the sockets that it holds for qmail-start, and what it is told. Without systemd all of this is nothing.

use crate::sockets::Bound;
use control::Root;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, getsockname, sockopt};
use sandbox::Socket;
use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::path::Path;

/// Listening sockets that stay open while qmail-start is not there (systemd.socket(5)).
#[derive(Debug, Default)]
pub struct Held {
    pub listeners: Vec<Bound>,
    /// run/qmail/inject.sock.
    pub inject: Option<OwnedFd>,
}

impl Held {
    /// Takes what systemd hands over, if anything.
    ///
    /// # Errors
    /// A socket that is neither a listening TCP socket nor inject.sock of this instance: a text that says so.
    pub fn take(root: &Root) -> Result<Self, String> {
        let mut held = Self::default();
        let inject = root.run().join(Socket::Inject.path());
        for fd in sys::inherited::from_systemd().map_err(|e| e.to_string())? {
            held.add(fd, &inject).map_err(|e| format!("a socket of systemd: {e}"))?;
        }
        Ok(held)
    }

    fn add(&mut self, fd: OwnedFd, inject: &Path) -> io::Result<()> {
        let address = getsockname(&fd)?;
        let kind = sockopt::socket_type(&fd)?;
        if !sockopt::socket_acceptconn(&fd)? {
            return Err(io::Error::other("one that does not listen"));
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        if address.address_family() == AddressFamily::UNIX {
            let path = SocketAddrUnix::try_from(address)?;
            if kind != SocketType::SEQPACKET || path.path_bytes() != Some(inject.as_os_str().as_bytes()) {
                return Err(io::Error::other(format!("not the sequential-packet socket {}", inject.display())));
            }
            self.inject = Some(fd);
        } else {
            let address = SocketAddr::try_from(address)?;
            if kind != SocketType::STREAM {
                return Err(io::Error::other(format!("{address} is not TCP")));
            }
            self.listeners.push(Bound { address, fd });
        }
        Ok(())
    }
}

/// Says `state` (sd_notify(3)) to the service manager, if there is one. One that does not listen is no reason not to run.
pub fn notify(state: &str) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET") {
        let _ = send(&socket, state);
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::from_abstract_name(name)?,
        None => UnixAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(state.as_bytes(), &address).map(drop)
}
