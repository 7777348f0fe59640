//! qmail-auth as the directory, asked by the classic face, one question at a time.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use control::Root;
use ipc::auth::{self, Answer, Request};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use sandbox::Socket;
use sys::{Received, Seqpacket};
use wire::Address;

/// For the directory's answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Who is asked about recipients.
#[derive(Debug)]
pub enum Directory {
    Auth {
        socket: Seqpacket,
        id: u64,
    },
    /// Nobody: the answer is always that it is not ours, so that rcpthosts and RELAYCLIENT decide.
    RcptHosts,
    /// The system is down: temporary.
    Down,
}

impl Directory {
    /// Connects. `has_program`: the caller replaces the queue, and may do without a running system.
    #[must_use]
    pub fn open(run: Option<&OwnedFd>, root: &Root, has_program: bool) -> Self {
        if !may_call(root, Socket::Auth) {
            return Self::RcptHosts;
        }
        let connected = run.map_or(Err(io::ErrorKind::NotFound.into()), |run| {
            let socket = Seqpacket::connect(run.as_fd(), Socket::Auth.path())?;
            socket.set_deadline(DEADLINE)?;
            Ok::<_, io::Error>(socket)
        });
        match connected.map_err(|error| error.kind()) {
            Ok(socket) => Self::Auth { socket, id: 0 },
            Err(io::ErrorKind::PermissionDenied) => Self::RcptHosts,
            Err(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) if has_program => Self::RcptHosts,
            Err(_) => Self::Down,
        }
    }

    /// Does the recipient exist, and is there room for so many bytes (0: how many is not known)?
    pub fn check(&mut self, address: Address, size: u64) -> auth::Directory {
        let Self::Auth { socket, id } = self else {
            return if matches!(self, Self::Down) { auth::Directory::Temporary {} } else { auth::Directory::NotMine {} };
        };
        *id = id.wrapping_add(1);
        let answer = ask(socket, *id, address, size);
        // After a lost or late answer nobody knows which question the next one is for.
        answer.unwrap_or_else(|_| {
            *self = Self::Down;
            auth::Directory::Temporary {}
        })
    }
}

/// Would the server of this socket listen to this process? Without etc/qmail/ids the socket itself will show.
#[must_use]
pub fn may_call(root: &Root, socket: Socket) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    root.ids().map_or(true, |ids| sandbox::may_call(socket, uid, |role| ids.uid_of(role.name())))
}

/// The domains of users/domains, as far as this caller may read them: they stand in for the directory where nobody can be asked.
#[must_use]
pub fn virtual_domains(root: &Root) -> Vec<Vec<u8>> {
    let domains = root.virtual_domains().unwrap_or_default();
    domains.sorted().into_iter().map(|(name, _)| name.as_bytes().to_vec()).collect()
}

/// The question about a recipient.
#[must_use]
pub fn question(id: u64, address: Address, size: u64) -> Request {
    match size {
        0 => Request::Recipient { id, address },
        size => Request::Fits { id, address, size },
    }
}

fn ask(socket: &Seqpacket, id: u64, address: Address, size: u64) -> io::Result<auth::Directory> {
    socket.send(&question(id, address, size).encode())?;
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    let Received::Datagram(len, _) = socket.recv(&mut buf)? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
    match Answer::decode(buf.get(..len).unwrap_or_default())? {
        Answer::Recipient { id: answered, verdict } if answered == id => Ok(verdict),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
