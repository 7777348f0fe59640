//! Who runs as whom, who talks to whom, and what each process gives up before the first byte of a stranger.
//!
//! [`table::TABLE`] is the one place where this is said: qmail-start starts what it lists, servers ask it whether a peer may call
//! ([`may_call`]), each process confines itself by its own row ([`enter`]), tests prove the rows and the documentation prints them.
//!
//! Three layers, each of use alone: limits (with no_new_privs and not dumpable), Landlock for files, seccomp for kinds of system
//! calls. What is denied fails with EPERM; nothing is killed for it, since a libc update must not stop mail.
#![forbid(unsafe_code)]

pub mod files;
pub mod syscalls;
pub mod table;

pub use table::{Access, Confinement, Count, Network, Place, Process, Role, Socket, TABLE, process};

use std::io;
use std::path::{Path, PathBuf};
use sys::spawn::Ids;

/// Which layers to use; all of them outside of tests.
#[derive(Debug, Clone, Copy)]
pub struct Layers {
    pub limits: bool,
    pub files: bool,
    pub syscalls: bool,
}

impl Layers {
    pub const ALL: Self = Self { limits: true, files: true, syscalls: true };
}

/// What [`enter`] put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// False where the kernel has no Landlock, or one that cannot rename between directories (below ABI 2): `qmail check`
    /// says so, the other layers hold all the same.
    pub landlock: bool,
}

/// Confines this process, for good: the last step of a start-up, before threads and before input from outside.
///
/// `root` is the instance's root; `extra` names directories that only the caller knows (the home or base of a worker).
///
/// # Errors
/// A layer that this kernel has could not be put on: the program must not go on.
pub fn enter(confinement: &Confinement, root: &Path, extra: &[(PathBuf, Access)]) -> io::Result<Entered> {
    enter_layers(confinement, root, extra, Layers::ALL)
}

/// Confines this process by its row of the table.
///
/// # Errors
/// As [`enter`]; also when the table has nothing for a process of this name: none goes on unconfined by mistake.
pub fn enter_as(process: &str, root: &Path, extra: &[(PathBuf, Access)]) -> io::Result<Entered> {
    let confinement = table::process(process).and_then(|row| row.confinement);
    let confinement = confinement.ok_or_else(|| io::Error::other(format!("the process table confines no {process}")))?;
    enter(&confinement, root, extra)
}

/// Whoever root's program becomes where the instance has no etc/qmail/ids: the kernel's uid for "nobody".
const NOBODY: Ids = Ids { uid: 65_534, gid: 65_534 };

/// A classic face that was started by root goes on as the user whose work it does, for good: when all is open that root alone may read, and
/// before input from outside. A caller who is not root stays who he is.
///
/// # Errors
/// It cannot: the program must not go on.
pub fn leave_root(ids: Option<Ids>) -> io::Result<()> {
    if rustix::process::geteuid().is_root() { sys::spawn::become_for_good(ids.unwrap_or(NOBODY)) } else { Ok(()) }
}

/// As [`enter`], for tests that show each layer alone.
///
/// # Errors
/// As [`enter`].
pub fn enter_layers(confinement: &Confinement, root: &Path, extra: &[(PathBuf, Access)], layers: Layers) -> io::Result<Entered> {
    sys::confine::no_new_privs()?;
    if layers.limits {
        sys::confine::limit(&confinement.limits)?;
        sys::confine::not_dumpable()?;
    }
    let landlock = match confinement.files {
        Some(places) if layers.files => files::confine(places, root, extra)?,
        _ => false,
    };
    if layers.syscalls {
        syscalls::confine(confinement)?;
    }
    Ok(Entered { landlock })
}

/// May a peer with this uid call `socket`? `uid_of` gives the uid of a role (etc/qmail/ids). Anyone may call inject.sock, and manage.sock, where he has
/// to log in as the administrator of a domain; root
/// may call the admin sockets, and so may the user that the whole system runs as when it does not run as root. Root may also ask
/// qmail-auth, as it could in the place of qmaild: an SMTP session by hand then gets the answers that clients get.
#[must_use]
pub fn may_call(socket: Socket, uid: u32, uid_of: impl Fn(Role) -> Option<u32>) -> bool {
    match socket {
        Socket::Inject | Socket::Manage => true,
        Socket::AdminSend | Socket::AdminAuth | Socket::AdminAcme | Socket::AdminRemote => {
            uid == 0 || uid == rustix::process::getuid().as_raw() && uid_of(Role::Root) == Some(uid)
        }
        Socket::Auth if uid == 0 => true,
        _ => TABLE.iter().any(|process| process.calls.contains(&socket) && uid_of(process.role) == Some(uid)),
    }
}
