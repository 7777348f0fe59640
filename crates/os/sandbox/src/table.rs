//! The process table.

use sys::confine::Limits;

/// A user id of etc/qmail/ids, by the classic name of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// qmail-start, qmail-lspawn and qmail-checkpw; uid 0, or the caller when nothing runs as root.
    Root,
    /// `qmailp`: asks NSS.
    Getpw,
    /// `qmaila`: accounts.
    Auth,
    /// `qmaild`: talks to clients.
    Network,
    /// `qmailq`: owns the spool.
    Queue,
    /// `qmailr`: outgoing connections.
    Remote,
    /// `qmailx`: DNS.
    Resolve,
    /// `qmailk`: private keys.
    Keys,
    /// `qmailn`: asks authentication services elsewhere.
    Authnet,
    /// `qmailc`: gets certificates.
    Acme,
    /// The user whose mailbox it is; not in etc/qmail/ids.
    Recipient,
    /// Whoever runs the program.
    Caller,
}

impl Role {
    /// The service roles: each has a line in etc/qmail/ids, and no mail is ever delivered as one of them.
    pub const SERVICE: [Self; 9] =
        [Self::Getpw, Self::Auth, Self::Network, Self::Queue, Self::Remote, Self::Resolve, Self::Keys, Self::Authnet, Self::Acme];

    /// The name in etc/qmail/ids; for the others a word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Getpw => "qmailp",
            Self::Auth => "qmaila",
            Self::Network => "qmaild",
            Self::Queue => "qmailq",
            Self::Remote => "qmailr",
            Self::Resolve => "qmailx",
            Self::Keys => "qmailk",
            Self::Authnet => "qmailn",
            Self::Acme => "qmailc",
            Self::Recipient => "recipient",
            Self::Caller => "caller",
        }
    }
}

/// An AF_UNIX socket below run/qmail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Socket {
    Queue,
    Inject,
    Lspawn,
    Remote,
    Auth,
    Getpw,
    Resolve,
    Keys,
    Authnet,
    Accounts,
    Checkpw,
    Hook,
    AdminSend,
    AdminAuth,
    Manage,
    AdminAcme,
    AdminRemote,
}

impl Socket {
    pub const ALL: [Self; 17] = [
        Self::Queue,
        Self::Inject,
        Self::Lspawn,
        Self::Remote,
        Self::Auth,
        Self::Getpw,
        Self::Resolve,
        Self::Keys,
        Self::Authnet,
        Self::Accounts,
        Self::Checkpw,
        Self::Hook,
        Self::AdminSend,
        Self::AdminAuth,
        Self::Manage,
        Self::AdminAcme,
        Self::AdminRemote,
    ];

    /// The name in `QMAIL_FDS`, after `serve:`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Inject => "inject",
            Self::Lspawn => "lspawn",
            Self::Remote => "remote",
            Self::Auth => "auth",
            Self::Getpw => "getpw",
            Self::Resolve => "resolve",
            Self::Keys => "keys",
            Self::Authnet => "authnet",
            Self::Accounts => "accounts",
            Self::Checkpw => "checkpw",
            Self::Hook => "hook",
            Self::AdminSend => "admin-send",
            Self::AdminAuth => "admin-auth",
            Self::Manage => "manage",
            Self::AdminAcme => "admin-acme",
            Self::AdminRemote => "admin-remote",
        }
    }

    /// The path below run/qmail. `roles/` can be entered by service roles only, `admin/` by root only.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Queue => "roles/queue.sock",
            Self::Inject => "inject.sock",
            Self::Lspawn => "roles/lspawn.sock",
            Self::Remote => "roles/remote.sock",
            Self::Auth => "roles/auth.sock",
            Self::Getpw => "roles/getpw.sock",
            Self::Resolve => "roles/resolve.sock",
            Self::Keys => "roles/keys.sock",
            Self::Authnet => "roles/authnet.sock",
            Self::Accounts => "roles/accounts.sock",
            Self::Checkpw => "roles/checkpw.sock",
            Self::Hook => "roles/hook.sock",
            Self::AdminSend => "admin/send.sock",
            Self::AdminAuth => "admin/auth.sock",
            Self::Manage => "manage.sock",
            Self::AdminAcme => "admin/acme.sock",
            Self::AdminRemote => "admin/remote.sock",
        }
    }
}

/// A place in the file system, below the instance's root unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// etc/qmail/control
    Control,
    /// etc/qmail/users
    Users,
    /// var/spool/qmail
    Spool,
    /// var/lib/qmail
    Lib,
    /// etc/qmail/tls
    Tls,
    /// The system's own /etc, /lib*, /usr, /run, /var/lib/sss, /proc: what NSS modules read. Not below the root.
    NameService,
}

/// What may be done below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    ReadWrite,
}

/// Which kinds of sockets may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// AF_UNIX only.
    Unix,
    /// AF_UNIX, AF_INET, AF_INET6.
    Internet,
}

/// How many run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    One,
    /// One for each processor, at most 8: workers that share the listening sockets.
    PerCpu,
    /// Started by qmail-lspawn when there is work, not by qmail-start.
    OnDemand,
    /// One, in the place of that process where root's configuration says so; then the other does not run.
    InPlaceOf(&'static str),
}

/// What a process gives up.
#[derive(Debug, Clone, Copy)]
pub struct Confinement {
    pub limits: Limits,
    /// `None`: files as far as the uid reaches. Otherwise these places and what the caller of `enter` adds.
    pub files: Option<&'static [(Place, Access)]>,
    pub network: Network,
    /// May it start programs?
    pub exec: bool,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    /// The program's file name.
    pub name: &'static str,
    pub role: Role,
    pub count: Count,
    /// The services of control/listen whose sockets it gets.
    pub listens: &'static [&'static str],
    pub serves: &'static [Socket],
    pub calls: &'static [Socket],
    /// `None`: never confined, since what it starts would inherit it.
    pub confinement: Option<Confinement>,
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const fn limits(memory: u64, files: u64) -> Limits {
    Limits { memory: Some(memory), files, file_size: None }
}

/// Reads nothing, writes nothing: everything it needs is open.
const NO_FILES: Option<&[(Place, Access)]> = Some(&[]);

/// Every process of the system. In the order in which qmail-start starts them: a server before its clients.
pub const TABLE: &[Process] = &[
    Process {
        name: "qmail-getpw",
        role: Role::Getpw,
        count: Count::One,
        listens: &[],
        serves: &[Socket::Getpw],
        calls: &[],
        confinement: Some(Confinement {
            limits: limits(GIB, 256),
            files: Some(&[(Place::NameService, Access::Read)]),
            network: Network::Unix,
            exec: false,
        }),
    },
    Process {
        name: "qmail-resolve",
        role: Role::Resolve,
        count: Count::One,
        listens: &[],
        serves: &[Socket::Resolve],
        calls: &[],
        confinement: Some(Confinement { limits: limits(GIB, 4096), files: NO_FILES, network: Network::Internet, exec: false }),
    },
    Process {
        name: "qmail-lspawn",
        role: Role::Root,
        count: Count::One,
        listens: &[],
        serves: &[Socket::Lspawn],
        calls: &[Socket::Getpw],
        confinement: None,
    },
    Process {
        name: "qmail-authnet",
        role: Role::Authnet,
        count: Count::One,
        listens: &[],
        serves: &[Socket::Authnet, Socket::Accounts],
        calls: &[Socket::Resolve],
        confinement: Some(Confinement { limits: limits(GIB, 1024), files: NO_FILES, network: Network::Internet, exec: false }),
    },
    Process {
        name: "qmail-checkpw",
        role: Role::Root,
        count: Count::One,
        listens: &[],
        serves: &[Socket::Checkpw],
        calls: &[],
        confinement: None,
    },
    Process {
        name: "qmail-auth",
        role: Role::Auth,
        count: Count::One,
        listens: &[],
        serves: &[Socket::Auth, Socket::AdminAuth, Socket::Manage],
        // And inject.sock, as anyone may: it stands for as long as qmail-start runs, though its server starts later.
        calls: &[Socket::Lspawn, Socket::Authnet, Socket::Accounts, Socket::Checkpw],
        confinement: Some(Confinement {
            limits: limits(2 * GIB, 4096),
            files: Some(&[(Place::Control, Access::Read), (Place::Users, Access::Read), (Place::Lib, Access::ReadWrite)]),
            network: Network::Unix,
            exec: false,
        }),
    },
    Process {
        name: "qmail-keys",
        role: Role::Keys,
        count: Count::One,
        listens: &[],
        serves: &[Socket::Keys],
        calls: &[],
        confinement: Some(Confinement {
            limits: limits(GIB, 4096),
            files: Some(&[(Place::Control, Access::Read), (Place::Tls, Access::ReadWrite)]),
            network: Network::Unix,
            exec: false,
        }),
    },
    Process {
        name: "qmail-acme",
        role: Role::Acme,
        count: Count::One,
        listens: &["acme"],
        serves: &[Socket::AdminAcme],
        calls: &[Socket::Resolve, Socket::Keys],
        confinement: Some(Confinement { limits: limits(GIB, 1024), files: NO_FILES, network: Network::Internet, exec: false }),
    },
    Process {
        name: "qmail-remote",
        role: Role::Remote,
        count: Count::One,
        listens: &[],
        serves: &[Socket::Remote, Socket::AdminRemote],
        calls: &[Socket::Resolve, Socket::Keys],
        confinement: Some(Confinement {
            limits: limits(4 * GIB, 16_384),
            files: NO_FILES,
            network: Network::Internet,
            exec: false,
        }),
    },
    Process {
        name: "qmail-rspawn",
        role: Role::Remote,
        count: Count::InPlaceOf("qmail-remote"),
        listens: &[],
        serves: &[Socket::Remote, Socket::AdminRemote],
        // Not by itself: the classic qmail-remotes that end its programs do.
        calls: &[Socket::Resolve, Socket::Keys],
        confinement: None,
    },
    Process {
        name: "qmail-send",
        role: Role::Queue,
        count: Count::One,
        listens: &[],
        serves: &[Socket::Queue, Socket::Inject, Socket::AdminSend],
        calls: &[Socket::Lspawn, Socket::Remote, Socket::Auth, Socket::Resolve],
        confinement: Some(Confinement {
            limits: limits(16 * GIB, 16_384),
            files: Some(&[(Place::Control, Access::Read), (Place::Users, Access::Read), (Place::Spool, Access::ReadWrite)]),
            network: Network::Unix,
            exec: false,
        }),
    },
    Process {
        name: "qmail-hook",
        role: Role::Network,
        count: Count::One,
        listens: &[],
        serves: &[Socket::Hook],
        calls: &[],
        // What it starts is the administrator's own, and would inherit it.
        confinement: None,
    },
    Process {
        name: "qmail-popup",
        role: Role::Network,
        count: Count::PerCpu,
        listens: &["pop3", "pop3s"],
        serves: &[],
        calls: &[Socket::Auth, Socket::Keys],
        confinement: Some(Confinement { limits: limits(2 * GIB, 65_536), files: NO_FILES, network: Network::Unix, exec: false }),
    },
    Process {
        name: "qmail-smtpd",
        role: Role::Network,
        count: Count::PerCpu,
        listens: &["smtp", "submission", "submissions", "lmtp"],
        serves: &[],
        calls: &[Socket::Queue, Socket::Auth, Socket::Keys, Socket::Hook],
        confinement: Some(Confinement { limits: limits(2 * GIB, 65_536), files: NO_FILES, network: Network::Unix, exec: false }),
    },
    Process {
        name: "qmail-qmtpd",
        role: Role::Network,
        count: Count::PerCpu,
        listens: &["qmtp"],
        serves: &[],
        calls: &[Socket::Queue, Socket::Auth],
        confinement: Some(Confinement { limits: limits(2 * GIB, 65_536), files: NO_FILES, network: Network::Unix, exec: false }),
    },
    Process {
        name: "qmail-qmqpd",
        role: Role::Network,
        // For our own hosts, which are not many.
        count: Count::One,
        listens: &["qmqp"],
        serves: &[],
        calls: &[Socket::Queue],
        confinement: Some(Confinement { limits: limits(2 * GIB, 65_536), files: NO_FILES, network: Network::Unix, exec: false }),
    },
    Process {
        name: "qmail-local",
        role: Role::Recipient,
        count: Count::OnDemand,
        listens: &[],
        serves: &[],
        calls: &[Socket::Inject],
        confinement: Some(LOCAL_SYSTEM),
    },
    Process {
        name: "qmail-pop3d",
        role: Role::Recipient,
        count: Count::OnDemand,
        listens: &[],
        serves: &[],
        calls: &[],
        confinement: Some(Confinement { limits: limits(GIB, 64), files: NO_FILES, network: Network::Unix, exec: false }),
    },
];

/// A delivery worker of a system user: files as far as the uid reaches.
pub const LOCAL_SYSTEM: Confinement = Confinement { limits: limits(GIB, 1024), files: None, network: Network::Unix, exec: false };
/// A delivery worker of a virtual domain: its base directory, which the caller of `enter` adds.
pub const LOCAL_VIRTUAL: Confinement =
    Confinement { limits: limits(GIB, 1024), files: NO_FILES, network: Network::Unix, exec: false };
/// A classic face or a tool run by the caller, once it has forked what it must start: qmail-inject, qmail-queue, qmail-smtpd
/// under tcpserver.
pub const TOOL: Confinement =
    Confinement { limits: limits(512 * MIB, 256), files: NO_FILES, network: Network::Unix, exec: false };

/// A tool of the caller that talks to another host: qmail-qmqpc.
pub const TOOL_CLIENT: Confinement = Confinement { network: Network::Internet, ..TOOL };

/// The row of a program.
#[must_use]
pub fn process(name: &str) -> Option<&'static Process> {
    TABLE.iter().find(|process| process.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_socket_has_one_server_and_a_server_starts_before_its_clients() {
        for socket in Socket::ALL {
            // Who runs in another's place serves what the other would.
            let is_one = |process: &Process| !matches!(process.count, Count::InPlaceOf(_)) && process.serves.contains(&socket);
            let servers: Vec<usize> = (0..TABLE.len()).filter(|at| is_one(&TABLE[*at])).collect();
            assert_eq!(servers.len(), 1, "{socket:?}");
            for (at, process) in TABLE.iter().enumerate() {
                assert!(
                    !process.calls.contains(&socket) || at > servers[0],
                    "{} starts before it can call {socket:?}",
                    process.name
                );
            }
        }
    }

    #[test]
    fn who_runs_in_the_place_of_another_is_the_same_to_all_others() {
        for (at, process) in TABLE.iter().enumerate() {
            let Count::InPlaceOf(name) = process.count else { continue };
            let other = TABLE.iter().position(|process| process.name == name).unwrap();
            assert_eq!(
                (process.role, process.serves, process.calls, process.listens),
                (TABLE[other].role, TABLE[other].serves, TABLE[other].calls, TABLE[other].listens)
            );
            assert!(at > other, "{name}");
        }
    }

    #[test]
    fn only_what_starts_the_programs_of_others_is_unconfined_and_nothing_that_faces_strangers_opens_files() {
        for process in TABLE {
            // Programs of root's choice run under qmail-rspawn and qmail-hook, and would inherit what it gave up.
            let starts_others = process.role == Role::Root || ["qmail-rspawn", "qmail-hook"].contains(&process.name);
            assert_eq!(process.confinement.is_none(), starts_others, "{}", process.name);
            if let Some(confinement) = process.confinement {
                assert!(!confinement.exec);
                let outside = process.role == Role::Network || confinement.network == Network::Internet;
                assert!(!outside || confinement.files.is_some_and(<[_]>::is_empty), "{}", process.name);
            }
        }
    }
}
