//! The directory run/qmail with its sockets, and the listening TCP sockets. qmail-start keeps all of them open for ever, so a
//! process that is restarted finds the connections that waited meanwhile. Those that systemd holds (`systemd::Held`) are taken over:
//! they outlive qmail-start too.
//!
//! `run/qmail` can be entered by anyone (inject.sock and manage.sock are in it), `roles/` by the group of the service roles only, `admin/` by the
//! owner only.

use control::{Ids, Listener, Root};
use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use sandbox::Socket;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Connections waiting to be accepted; the kernel's somaxconn (4096) bounds it too.
const BACKLOG: i32 = 4096;
/// The lock that a second qmail-start finds taken, below run/qmail.
const LOCK: &str = "start.lock";

/// The Unix sockets of the instance.
#[derive(Debug)]
pub struct RunDir {
    pub dir: OwnedFd,
    sockets: Vec<(Socket, OwnedFd)>,
    _lock: OwnedFd,
}

impl RunDir {
    /// Makes run/qmail and all sockets; what an earlier qmail-start left is replaced. `inject` is inject.sock if systemd holds it.
    ///
    /// # Errors
    /// Another qmail-start runs, or a directory cannot be made: a text that says which.
    pub fn create(root: &Root, ids: &Ids, mut inject: Option<OwnedFd>) -> Result<Self, String> {
        let path = root.run();
        let says = |e: io::Error| format!("{}: {e}", path.display());
        std::fs::create_dir_all(&path).map_err(says)?;
        let dir = directory(CWD, &path, None, 0o755).map_err(says)?;
        let lock = lock(&dir).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => format!("{} is locked: the system is running already", path.join(LOCK).display()),
            _ => says(e),
        })?;
        let group = ids.group();
        for (name, mode, group) in [("roles", 0o710, group), ("admin", 0o700, None)] {
            directory(dir.as_fd(), Path::new(name), group, mode).map_err(says)?;
        }
        let mut serve_one = |socket: Socket| match inject.take_if(|_| socket == Socket::Inject) {
            Some(held) => Ok(held),
            None => serve(&dir, socket, group),
        };
        let sockets = Socket::ALL.iter().map(|socket| Ok((*socket, serve_one(*socket)?)));
        let sockets = sockets.collect::<io::Result<_>>().map_err(says)?;
        Ok(Self { dir, sockets, _lock: lock })
    }

    /// The listening end of a socket.
    #[must_use]
    pub fn socket(&self, wanted: Socket) -> Option<&OwnedFd> {
        self.sockets.iter().find(|(socket, _)| *socket == wanted).map(|(_, fd)| fd)
    }
}

/// Makes a directory (or takes the one that is there) with exactly this owner and mode, and opens it.
fn directory(at: impl AsFd, path: &Path, group: Option<u32>, mode: u32) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(&at, path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let fd =
        rustix::fs::openat(&at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if let Some(group) = group {
        rustix::fs::fchown(&fd, None, Some(Gid::from_raw(group)))?;
    }
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
    Ok(fd)
}

fn lock(dir: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::openat(dir, LOCK, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    Ok(lock)
}

/// A listening Unix socket with the mode that its kind of clients needs. No umask window matters: the directory guards it.
fn serve(dir: &OwnedFd, socket: Socket, group: Option<u32>) -> io::Result<OwnedFd> {
    let listener = sys::seqpacket::listen(dir.as_fd(), socket.path())?;
    let (mode, group) = match socket {
        Socket::Inject | Socket::Manage => (0o666, None),
        Socket::AdminSend | Socket::AdminAuth | Socket::AdminAcme | Socket::AdminRemote => (0o600, None),
        _ => (0o660, group),
    };
    if let Some(group) = group {
        rustix::fs::chownat(dir, socket.path(), None, Some(Gid::from_raw(group)), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    rustix::fs::chmodat(dir, socket.path(), Mode::from_raw_mode(mode), AtFlags::empty())?;
    Ok(listener)
}

/// A bound listener of control/listen.
#[derive(Debug)]
pub struct Bound {
    pub address: SocketAddr,
    pub fd: OwnedFd,
}

/// Binds all listeners; one that `known` listens on already shares its socket, and with it the connections that wait there.
///
/// # Errors
/// An address cannot be bound: a text that says which.
pub fn bind(listeners: &[Listener], known: &[Bound]) -> Result<Vec<Bound>, String> {
    let bind_one = |listener: &Listener| {
        let known = known.iter().find(|bound| bound.address == listener.address);
        let fd = known.map_or_else(|| listen_tcp(listener.address), |bound| bound.fd.try_clone());
        let fd = fd.map_err(|e| format!("control/listen: cannot listen on {}: {e}", listener.address))?;
        Ok(Bound { address: listener.address, fd })
    };
    listeners.iter().map(bind_one).collect()
}

fn listen_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let fd = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two lines of control/listen.
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}
