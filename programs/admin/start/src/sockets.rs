//! The directory run/qmail with its sockets, and the listening TCP sockets. qmail-start keeps all of them open for ever, so a
//! process that is restarted finds the connections that waited meanwhile. Those that systemd holds (`systemd::Held`) are taken over:
//! they outlive qmail-start too. A path is never taken from somebody who listens on it: who connects would go on reaching nobody.
//!
//! `run/qmail` can be entered by anyone (inject.sock and manage.sock are in it), `roles/` by the group of the service roles only, `admin/` by the
//! owner only.

use control::{Ids, Listener, Root};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sandbox::Socket;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use sys::seqpacket::Seqpacket;

/// Connections waiting to be accepted; the kernel's somaxconn (4096) bounds it too.
const BACKLOG: i32 = 4096;
/// The lock that a second qmail-start finds taken, below run/qmail.
const LOCK: &str = "start.lock";

/// The Unix sockets of the instance.
#[derive(Debug)]
pub struct RunDir {
    pub dir: OwnedFd,
    sockets: Vec<(Socket, OwnedFd)>,
    /// What is not as it should be, and yet no reason not to run.
    pub warning: Option<String>,
    _lock: OwnedFd,
}

impl RunDir {
    /// Makes run/qmail and all sockets; what an earlier qmail-start left is replaced. `inject` is inject.sock if systemd holds it; one that
    /// nobody reaches any more is replaced too.
    ///
    /// # Errors
    /// Another qmail-start runs, systemd listens on inject.sock and has not handed it over, or a directory cannot be made: a text that
    /// says which.
    pub fn create(root: &Root, ids: &Ids, mut inject: Option<OwnedFd>) -> Result<Self, String> {
        let path = root.run();
        let says = |e: io::Error| format!("{}: {e}", path.display());
        std::fs::create_dir_all(&path).map_err(says)?;
        let dir = directory(CWD, &path, None, 0o755).map_err(says)?;
        let lock = lock(&dir).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => format!("{} is locked: the system is running already", path.join(LOCK).display()),
            _ => says(e),
        })?;
        let place = path.join(Socket::Inject.path());
        let lost = inject.take_if(|held| !is_reached(&dir, held));
        if lost.is_none() && inject.is_none() && is_others(&dir) {
            return Err(format!(
                "{}: another process listens there, systemd for qmail-inject.socket if there is such a unit: \
                 use `systemctl start qmail`, or `systemctl stop qmail-inject.socket` before this",
                place.display()
            ));
        }
        let warning = lost.map(|_| {
            format!(
                "{} is not the socket that systemd holds: it is made anew; `systemctl restart qmail-inject.socket` has systemd hold it",
                place.display()
            )
        });
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
        Ok(Self { dir, sockets, warning, _lock: lock })
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

/// Does who connects to inject.sock reach this socket? Another file may be in its place, while getsockname(2) says what it always said.
fn is_reached(dir: &OwnedFd, held: &OwnedFd) -> bool {
    match Seqpacket::connect_nonblocking(dir.as_fd(), Socket::Inject.path()) {
        // Both ends say who called listen(2).
        Ok(client) => client.peer().ok().zip(sockopt::socket_peercred(held).ok()).is_some_and(|(peer, holder)| {
            u32::try_from(holder.pid.as_raw_nonzero().get()).is_ok_and(|holder| holder == peer.pid)
        }),
        // So many wait that no more fit.
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Does somebody else listen on inject.sock? What an earlier qmail-start left counts as its own, which has ended, even while its children
/// still drain.
fn is_others(dir: &OwnedFd) -> bool {
    match Seqpacket::connect_nonblocking(dir.as_fd(), Socket::Inject.path()) {
        Ok(client) => client.peer().is_ok_and(|peer| is_alive(peer.pid)),
        // So many wait that no more fit; who it is will be seen later.
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    }
}

/// A process that has ended and was not waited for yet is not alive; one that is not seen from here may be.
fn is_alive(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return true };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => !poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|ended| ended > 0),
        Err(e) => e != Errno::SRCH,
    }
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

/// Listeners of control/listen, as far as this machine has them.
#[derive(Debug, Default)]
pub struct Listening {
    pub bound: Vec<Bound>,
    /// Those that are not served, or not yet: lines for the log.
    pub warnings: Vec<String>,
}

/// Binds all listeners; one that `known` listens on already shares its socket, and with it the connections that wait there. An address that
/// this host does not have yet is served as soon as it has it; one of a kind that the kernel does not know is left out.
///
/// # Errors
/// An address that another program has or that may not be taken, or no address at all: a text that says which.
pub fn bind(listeners: &[Listener], known: &[Bound]) -> Result<Listening, String> {
    bind_with(listeners, known, listen_tcp)
}

fn bind_with(
    listeners: &[Listener],
    known: &[Bound],
    listen: impl Fn(SocketAddr) -> rustix::io::Result<(OwnedFd, bool)>,
) -> Result<Listening, String> {
    let mut listening = Listening::default();
    for &Listener { address, .. } in listeners {
        let problem = |e: &dyn std::fmt::Display| format!("control/listen: cannot listen on {address}: {e}");
        if let Some(bound) = known.iter().find(|bound| bound.address == address) {
            let fd = bound.fd.try_clone().map_err(|e| problem(&e))?;
            listening.bound.push(Bound { address, fd });
            continue;
        }
        match listen(address) {
            Ok((fd, is_here)) => {
                if !is_here {
                    let warning = format!("control/listen: {address} is no address of this host yet, and is served when it is");
                    listening.warnings.push(warning);
                }
                listening.bound.push(Bound { address, fd });
            }
            Err(e @ Errno::AFNOSUPPORT) => {
                listening.warnings.push(format!("{}; it is tried again on SIGHUP", problem(&e)));
            }
            Err(e) => return Err(problem(&e)),
        }
    }
    match listening.warnings.first() {
        Some(warning) if listening.bound.is_empty() => Err(warning.clone()),
        _ => Ok(listening),
    }
}

/// A listening socket, and whether this host has the address.
fn listen_tcp(address: SocketAddr) -> rustix::io::Result<(OwnedFd, bool)> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let fd = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two lines of control/listen.
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    let is_here = match rustix::net::bind(&fd, &address) {
        Err(Errno::ADDRNOTAVAIL) => {
            // ip(7): IP_FREEBIND.
            if address.is_ipv6() {
                sockopt::set_ipv6_freebind(&fd, true)?;
            } else {
                sockopt::set_ip_freebind(&fd, true)?;
            }
            rustix::net::bind(&fd, &address)?;
            false
        }
        bound => bound.map(|()| true)?,
    };
    rustix::net::listen(&fd, BACKLOG)?;
    Ok((fd, is_here))
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::Service;

    fn listeners(addresses: &[&str]) -> Vec<Listener> {
        let listener = |address: &&str| Listener { service: Service::Smtp, address: address.parse().unwrap(), options: vec![] };
        addresses.iter().map(listener).collect()
    }

    #[test]
    fn what_this_host_does_not_have_is_said_and_the_rest_is_served() {
        // Addresses for documentation (RFC 5737): no host has them.
        let listening = bind(&listeners(&["192.0.2.77:0", "127.0.0.1:0"]), &[]).unwrap();
        assert_eq!(listening.bound.len(), 2);
        assert!(listening.warnings.len() == 1 && listening.warnings[0].contains("192.0.2.77:0 is no address"), "{listening:?}");

        let without_ipv6 = |address: SocketAddr| if address.is_ipv6() { Err(Errno::AFNOSUPPORT) } else { listen_tcp(address) };
        let listening = bind_with(&listeners(&["[::1]:0", "127.0.0.1:0"]), &[], without_ipv6).unwrap();
        assert_eq!(listening.bound.iter().map(|bound| bound.address.to_string()).collect::<Vec<_>>(), ["127.0.0.1:0"]);
        assert!(listening.warnings[0].contains("[::1]:0"), "{listening:?}");
        assert!(bind_with(&listeners(&["[::1]:0"]), &[], without_ipv6).unwrap_err().contains("[::1]:0"));
    }

    #[test]
    fn an_address_that_another_program_has_is_an_error() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap().to_string();
        let problem = bind(&listeners(&["127.0.0.1:0", &taken]), &[]).unwrap_err();
        assert!(problem.contains(&taken) && problem.contains("in use"), "{problem}");
    }
}
