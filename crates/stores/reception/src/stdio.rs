//! A connection on standard input and output, as tcpserver, inetd and systemd's `Accept=yes` give it, and what tcp-environ(5) says of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

use control::Networks;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, SocketAddrAny};
use sys::clock::boottime;

/// What is read in one go.
pub const READ_LEN: usize = 64 * 1024;
/// How long a client that sends on may take to read the last reply.
const LINGER_MAX: Duration = Duration::from_secs(2);
/// What is written in one go: PIPE_BUF, for which a pipe that is ready has room.
const WRITE_LEN: usize = 4096;

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Of TCPREMOTEIP, else of the socket on standard input.
    pub address: Option<IpAddr>,
    /// `unknown` if nobody says.
    pub remote_ip: Box<[u8]>,
    pub remote_host: Option<Box<[u8]>>,
    pub remote_info: Option<Box<[u8]>>,
    pub local_ip: Option<IpAddr>,
    /// `unknown` if nobody says.
    pub local_host: Box<[u8]>,
    /// RELAYCLIENT; to those of control/relayclients it is nothing, but set.
    pub relay_client: Option<Box<[u8]>>,
    /// Leading digits of DATABYTES, as with control files; without them it says nothing.
    pub databytes: Option<u64>,
}

impl Client {
    /// From the environment.
    #[must_use]
    pub fn of_environment(relayclients: &Networks) -> Self {
        let ip = |name: &str| std::env::var(name).ok().and_then(|ip| ip.parse::<IpAddr>().ok());
        let stdin = rustix::stdio::stdin();
        let end = |address: Option<SocketAddrAny>| SocketAddr::try_from(address?).ok().map(|end| end.ip());
        let remote = ip("TCPREMOTEIP").or_else(|| end(rustix::net::getpeername(stdin).ok()?));
        let local = ip("TCPLOCALIP").or_else(|| end(rustix::net::getsockname(stdin).ok()));
        let (remote, local) = (remote.map(|ip| ip.to_canonical()), local.map(|ip| ip.to_canonical()));
        let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string().into_bytes().into());
        let is_relay = remote.is_some_and(|ip| relayclients.contains(ip));
        let unknown = || b"unknown".as_slice().into();
        Self {
            address: remote,
            remote_ip: fact("TCPREMOTEIP").or_else(|| text(remote)).unwrap_or_else(unknown),
            remote_host: fact("TCPREMOTEHOST"),
            remote_info: fact("TCPREMOTEINFO"),
            local_ip: local,
            local_host: ["TCPLOCALHOST", "TCPLOCALIP"].into_iter().find_map(fact).or_else(|| text(local)).unwrap_or_else(unknown),
            relay_client: variable("RELAYCLIENT").or_else(|| is_relay.then(Box::default)),
            databytes: variable("DATABYTES").and_then(|value| control::read::int_of(&value)),
        }
    }
}

fn variable(name: &str) -> Option<Box<[u8]>> {
    std::env::var_os(name).map(|value| value.into_vec().into())
}

/// A variable of tcp-environ(5). A name or address of no bytes is none, and would leave a hole in the Received field.
fn fact(name: &str) -> Option<Box<[u8]>> {
    variable(name).filter(|value| !value.is_empty())
}

/// Is it the same file as standard input or output?
pub(crate) fn is_client(fd: BorrowedFd<'_>) -> bool {
    let file = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let this = file(fd);
    this.is_some() && [rustix::stdio::stdin(), rustix::stdio::stdout()].into_iter().any(|client| file(client) == this)
}

/// What became of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// So many bytes.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    Late,
    Closed,
}

/// Reads what there is, or waits for it so long.
pub fn read(buf: &mut [u8], left: Duration) -> Read {
    match wait(rustix::stdio::stdin(), PollFlags::IN, &timespec(left)) {
        Ok(true) => match rustix::io::read(rustix::stdio::stdin(), buf) {
            Ok(len @ 1..) => Read::Bytes(len),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Read::Nothing,
            Ok(0) | Err(_) => Read::Closed,
        },
        Ok(false) => Read::Late,
        Err(_) => Read::Closed,
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

/// Reads on without looking what a client on a socket sends behind the end: to close over unread input would take the last reply
/// back (RFC 1122 §4.2.2.13).
pub fn linger(buf: &mut [u8]) {
    let stdin = rustix::stdio::stdin();
    let until = boottime().saturating_add(LINGER_MAX);
    let is_readable = |time: Duration| wait(stdin, PollFlags::IN, &timespec(time)).unwrap_or(false);
    if !is_readable(Duration::ZERO) || rustix::net::shutdown(rustix::stdio::stdout(), Shutdown::Write).is_err() {
        return;
    }
    while is_readable(until.saturating_sub(boottime()))
        && matches!(rustix::io::read(stdin, &mut *buf), Ok(1..))
        && boottime() < until
    {}
}

/// Is the descriptor ready before `deadline`?
fn wait(fd: BorrowedFd<'_>, flags: PollFlags, deadline: &Timespec) -> io::Result<bool> {
    Ok(rustix::io::retry_on_intr(|| poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(deadline)))? > 0)
}

/// Writes all of it.
///
/// # Errors
/// The client is gone, or takes nothing for so long.
pub fn send(bytes: &[u8], deadline: Duration) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        if !wait(rustix::stdio::stdout(), PollFlags::OUT, &timespec(deadline))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // What is ready takes this much; more would wait in write(2), where no deadline is.
        let piece = rest.get(..WRITE_LEN).unwrap_or(rest);
        match rustix::io::write(rustix::stdio::stdout(), piece) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
