//! qmail-auth over its real sockets, with a qmail-getpw and a qmail-lspawn that say what the test wants.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use accounts::Accounts;
use control::{Id, Ids, Root};
use ipc::Message;
use ipc::admin::{AccountAnswer, AccountRequest, AccountRow, AliasRow, DomainChange, Quota, Vacation};
use ipc::auth::{Answer, Directory, Limit, Permission, Request, Target};
use ipc::lspawn::Existence;
use ipc::mailbox::Settings;
use qmail_auth::{Listeners, Server, Setup};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::{Received, Seqpacket};
use wire::{Address, Domain};

struct System {
    dir: tempfile::TempDir,
    root: Root,
    run: Arc<OwnedFd>,
    _lifeline: OwnedFd,
}

/// A running qmail-auth; it ends with the value.
fn system(domains: &str) -> System {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path()).unwrap();
    for sub in [root.control(), root.users(), root.lib(), root.run().join("roles"), root.run().join("admin")] {
        std::fs::create_dir_all(sub).unwrap();
    }
    std::fs::write(root.control_file("me"), "host.example\n").unwrap();
    std::fs::write(root.control_file("virtualdomains"), "v.example:joe\n").unwrap();
    std::fs::write(root.domains_file(), domains).unwrap();
    let run: Arc<OwnedFd> = Arc::new(std::fs::File::open(root.run()).unwrap().into());
    let listen = |name| Some(sys::seqpacket::listen(run.as_fd(), name).unwrap());
    let listeners = Listeners {
        auth: listen("roles/auth.sock"),
        admin: listen("admin/auth.sock"),
        manage: listen("manage.sock"),
        ..Listeners::default()
    };
    let id = Id { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let accounts = Accounts::open(&root.lib().join("accounts.sqlite")).unwrap();
    let setup = Setup { root: root.clone(), accounts, ids: Ids::Caller(id), run: Arc::clone(&run) };
    let (lifeline, far) = rustix::pipe::pipe().map(|(read, write)| (write, read)).unwrap();
    std::thread::spawn(move || Server::new(setup, listeners).unwrap().run(Some(&far)).unwrap());
    System { dir, root, run, _lifeline: lifeline }
}

impl System {
    fn connect(&self, name: &str) -> Seqpacket {
        let socket = Seqpacket::connect(self.run.as_fd(), name).unwrap();
        socket.set_deadline(Duration::from_secs(20)).unwrap();
        socket
    }

    fn auth(&self) -> Seqpacket {
        self.connect("roles/auth.sock")
    }

    fn admin(&self, request: &AccountRequest) -> AccountAnswer {
        ask(&self.connect("admin/auth.sock"), request).0
    }

    fn user(&self, user: &str, password: &str) {
        let request = AccountRequest::UserAdd { address: address(user), password: password.into() };
        assert_eq!(self.admin(&request), AccountAnswer::Ok {});
    }

    /// A server that answers every question with `answer` (and a descriptor beside it).
    fn serve<Q: Message>(&self, name: &str, answer: impl Fn(Q) -> (Vec<u8>, Option<OwnedFd>) + Send + 'static) {
        let listener = sys::seqpacket::listen(self.run.as_fd(), name).unwrap();
        rustix::io::ioctl_fionbio(&listener, false).unwrap();
        std::thread::spawn(move || {
            while let Ok(connection) = sys::seqpacket::accept(listener.as_fd()) {
                connection.set_nonblocking(false).unwrap();
                let mut buf = vec![0; 40_000];
                while let Ok(Received::Datagram(len, _)) = connection.recv(&mut buf) {
                    let (datagram, fd) = answer(Q::decode(&buf[..len]).unwrap());
                    match fd {
                        Some(fd) => connection.send_with_fd(&datagram, fd.as_fd()).unwrap(),
                        None => connection.send(&datagram).unwrap(),
                    }
                }
            }
        });
    }

    fn lspawn(&self) {
        self.serve("roles/lspawn.sock", |request: ipc::lspawn::Request| match request {
            ipc::lspawn::Request::Exists { id, local } => {
                let answer = match &*local {
                    b"joe" | b"joe-list" | b"postmaster" | b"joe-ann" => Existence::Yes {},
                    b"joe-odd" => Existence::CannotTell {},
                    b"joe-down" => Existence::Down {},
                    _ => Existence::No {},
                };
                (ipc::lspawn::Answer::Exists { id, answer }.encode(), None)
            }
            ipc::lspawn::Request::ExistsMailbox { id, domain, user, ext } => {
                assert_eq!((domain.as_bytes(), &*user), (&b"a.example"[..], &b"ann"[..]));
                let answer = if &*ext == b"x" { Existence::Yes {} } else { Existence::No {} };
                (ipc::lspawn::Answer::Exists { id, answer }.encode(), None)
            }
            ipc::lspawn::Request::Session { id, domain, user } => {
                if &*user == b"broken" {
                    return (ipc::lspawn::Answer::NoSession { id, text: "no fork".into() }.encode(), None);
                }
                let (near, far) = rustix::pipe::pipe().unwrap();
                let text = [b"session of ", &*user, b" at ", domain.as_bytes()].concat();
                rustix::io::write(&far, &text).unwrap();
                (ipc::lspawn::Answer::Session { id }.encode(), Some(near))
            }
            ipc::lspawn::Request::Room { id, user, settings, size, .. } => {
                let quota = Settings::from_bytes(&settings).unwrap().quota_bytes;
                let room = match &*user {
                    // Half of it is used.
                    b"half" if size <= quota => ipc::lspawn::Room::Free { bytes: quota / 2, messages: u64::MAX },
                    b"odd" => ipc::lspawn::Room::CannotTell {},
                    _ => ipc::lspawn::Room::Free { bytes: 0, messages: u64::MAX },
                };
                (ipc::lspawn::Answer::Room { id, room }.encode(), None)
            }
            other => panic!("{other:?}"),
        });
    }
}

fn address(text: &str) -> Address {
    Address::new(text.as_bytes()).unwrap()
}

fn receive<A: Message>(socket: &Seqpacket) -> (A, Option<OwnedFd>) {
    let mut buf = vec![0; 40_000];
    match socket.recv_with_fd(&mut buf).unwrap() {
        Received::Datagram(len, fd) => (A::decode(&buf[..len]).unwrap(), fd),
        Received::End => panic!("closed"),
    }
}

fn ask<Q: Message, A: Message>(socket: &Seqpacket, question: &Q) -> (A, Option<OwnedFd>) {
    socket.send(&question.encode()).unwrap();
    receive(socket)
}

fn recipient(socket: &Seqpacket, text: &str) -> Directory {
    match ask(socket, &Request::Recipient { id: 7, address: address(text) }).0 {
        Answer::Recipient { id: 7, verdict } => verdict,
        other => panic!("{other:?}"),
    }
}

fn login(socket: &Seqpacket, login: &[u8], password: &[u8]) -> (Answer, Option<OwnedFd>) {
    let remote = Some("192.0.2.1".parse().unwrap());
    ask(socket, &Request::Login { id: 9, service: "pop3".into(), login: login.into(), password: password.into(), remote })
}

const DOMAINS: &str = "a.example:64107:64107:/var/mail/a.example\n";

#[test]
fn recipients_of_all_kinds() {
    let system = system(DOMAINS);
    system.lspawn();
    system.user("ann@a.example", "x");
    let socket = system.auth();
    for _ in 0..2 {
        for (text, verdict) in [
            ("ann@a.example", Directory::Mailbox {}),
            ("ANN+tag@A.example", Directory::Mailbox {}),
            ("ann-x@a.example", Directory::Mailbox {}),
            ("ann-y@a.example", Directory::NoMailbox {}),
            ("bob@a.example", Directory::NoMailbox {}),
            ("postmaster@a.example", Directory::Mailbox {}),
            ("@a.example", Directory::NoMailbox {}),
            ("joe@host.example", Directory::Mailbox {}),
            ("Joe@HOST.example", Directory::Mailbox {}),
            ("joe-list@host.example", Directory::Mailbox {}),
            ("joe-odd@host.example", Directory::Mailbox {}),
            ("joe-nothing@host.example", Directory::NoMailbox {}),
            ("joe-down@host.example", Directory::Temporary {}),
            ("postmaster@host.example", Directory::Mailbox {}),
            ("nobody@host.example", Directory::NoMailbox {}),
            ("@host.example", Directory::NoMailbox {}),
            ("ann@v.example", Directory::Mailbox {}),
            ("zoe@v.example", Directory::NoMailbox {}),
            ("x@elsewhere.example", Directory::NotMine {}),
        ] {
            assert_eq!(recipient(&socket, text), verdict, "{text}");
        }
    }
}

fn fits(socket: &Seqpacket, text: &str, size: u64) -> Directory {
    match ask(socket, &Request::Fits { id: 8, address: address(text), size }).0 {
        Answer::Recipient { id: 8, verdict } => verdict,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_has_no_room_is_told_before_it_is_accepted() {
    let system = system(DOMAINS);
    for user in ["half", "full", "odd", "away", "free", "sue"] {
        system.user(&format!("{user}@a.example"), "x");
    }
    let quota =
        |user: &str, bytes| AccountRequest::UserQuota { address: address(&format!("{user}@a.example")), bytes, messages: 0 };
    for user in ["half", "full", "odd", "away", "sue"] {
        system.done(&quota(user, 1000));
    }
    let forward = |user: &str| AccountRequest::UserForward {
        address: address(&format!("{user}@a.example")),
        targets: vec![address("x@elsewhere.example")],
        keeps_copy: false,
    };
    system.done(&forward("away"));
    system.done(&forward("sue"));
    let sue = address("sue@a.example");
    system.done(&AccountRequest::UserSuspend { address: sue, suspended: true, refuses_mail: false });
    system.done(&AccountRequest::AliasAdd { address: address("alias@a.example"), targets: vec![address("full@a.example")] });
    let socket = system.auth();
    assert_eq!(fits(&socket, "full@a.example", 5), Directory::Mailbox {}, "nobody says: accepted");
    system.lspawn();
    let (yes, full) = (Directory::Mailbox {}, Directory::Full { defers: false });
    for _ in 0..2 {
        for (to, size, verdict) in [
            ("half@a.example", 0, &yes),
            ("half@a.example", 500, &yes),
            ("half+tag@a.example", 526, &yes),
            ("half@a.example", 530, &full),
            ("half@a.example", 100_000, &full),
            ("full@a.example", 0, &full),
            ("full+tag@a.example", 1, &full),
            ("odd@a.example", 900, &yes),
            ("away@a.example", 900, &yes),
            ("free@a.example", 900, &yes),
            ("sue@a.example", 1, &full),
            ("alias@a.example", 900, &yes),
            ("nobody@a.example", 900, &Directory::NoMailbox {}),
        ] {
            assert_eq!(fits(&socket, to, size), *verdict, "{to} {size}");
        }
    }
    assert_eq!(recipient(&socket, "full@a.example"), full);
    std::fs::write(system.root.control_file("overquota"), "defer\n").unwrap();
    system.done(&quota("full", 2000));
    assert_eq!(fits(&socket, "full@a.example", 5), Directory::Full { defers: true });
    assert_eq!(fits(&socket, "full@a.example", 5000), full, "larger than it will ever be");
    system.done(&quota("full", 0));
    assert_eq!(fits(&socket, "full@a.example", 5), yes);
}

#[test]
fn a_server_that_hangs_does_not_keep_mail_from_being_accepted() {
    let system = system(DOMAINS);
    system.user("ann@a.example", "x");
    system.done(&AccountRequest::UserQuota { address: address("ann@a.example"), bytes: 5, messages: 0 });
    let _silent = sys::seqpacket::listen(system.run.as_fd(), "roles/lspawn.sock").unwrap();
    assert_eq!(recipient(&system.auth(), "ann@a.example"), Directory::Mailbox {});
}

#[test]
fn what_is_changed_counts_at_once() {
    let system = system(DOMAINS);
    let socket = system.auth();
    assert_eq!(recipient(&socket, "ann@a.example"), Directory::NoMailbox {});
    system.user("ann@a.example", "x");
    assert_eq!(recipient(&socket, "ann@a.example"), Directory::Mailbox {});
    assert_eq!(recipient(&socket, "ann@b.example"), Directory::NotMine {});
    std::fs::write(system.root.domains_file(), format!("{DOMAINS}b.example:64107:64107:/var/mail/b.example\n")).unwrap();
    assert_eq!(recipient(&socket, "ann@b.example"), Directory::NoMailbox {});
    std::fs::write(system.root.domains_file(), "not a line\n").unwrap();
    assert_eq!(recipient(&socket, "ann@a.example"), Directory::Temporary {});
}

#[test]
fn a_server_that_is_down_is_temporary_and_its_return_is_noticed() {
    let system = system(DOMAINS);
    let socket = system.auth();
    assert_eq!(recipient(&socket, "joe-list@host.example"), Directory::Temporary {}, "no qmail-lspawn");
    system.lspawn();
    assert_eq!(recipient(&socket, "joe-list@host.example"), Directory::Mailbox {});
}

#[test]
fn a_server_that_hangs_is_temporary_and_others_do_not_wait() {
    let system = system(DOMAINS);
    let _silent = sys::seqpacket::listen(system.run.as_fd(), "roles/lspawn.sock").unwrap();
    let socket = system.auth();
    let start = Instant::now();
    socket.send(&Request::Recipient { id: 1, address: address("joe@host.example") }.encode()).unwrap();
    assert_eq!(recipient(&socket, "x@a.example"), Directory::NoMailbox {});
    assert!(start.elapsed() < Duration::from_secs(4));
    assert_eq!(receive::<Answer>(&socket).0, Answer::Recipient { id: 1, verdict: Directory::Temporary {} });
    assert!(start.elapsed() > Duration::from_secs(4));
}

#[test]
fn logins() {
    let system = system(DOMAINS);
    system.lspawn();
    system.user("ann@a.example", "open sesame");
    system.user("broken@a.example", "x");
    let socket = system.auth();
    let (answer, fd) = login(&socket, b"Ann@A.EXAMPLE", b"open sesame");
    assert_eq!(answer, Answer::LoggedIn { id: 9, user: "ann@a.example".into() });
    let mut text = [0; 64];
    let len = rustix::io::read(fd.unwrap(), &mut text).unwrap();
    assert_eq!(&text[..len], b"session of ann at a.example");
    let refused = |answer: &Answer| matches!(answer, Answer::Refused { id: 9, pause_s: 1..=8 });
    for (name, password) in [
        (&b"ann@a.example"[..], &b"wrong"[..]),
        (b"ann@a.example", b""),
        (b"ann@a.example", b"open sesame\0x"),
        (b"ann+x@a.example", b"open sesame"),
        (b"ann", b"open sesame"),
        (b"bob@a.example", b"open sesame"),
        (b"ann@host.example", b"open sesame"),
        (b"ann@elsewhere.example", b"open sesame"),
        (b"", b""),
        (b"' OR '1'='1", b"x"),
        (b"ann@a.example' --", b"open sesame"),
        (b"ann\0@a.example", b"open sesame"),
        (b"*)(uid=*@a.example", b"x"),
        (b"../ann@a.example", b"open sesame"),
        (b"ann@a.example\r\n", b"open sesame"),
        (&[b'a'; 5000], b"x"),
    ] {
        let (answer, fd) = login(&socket, name, password);
        assert!(refused(&answer) && fd.is_none(), "{}: {answer:?}", name.escape_ascii());
    }
    assert!(matches!(login(&socket, b"broken@a.example", b"x").0, Answer::Unavailable { id: 9, .. }));
    let imap =
        Request::Login { id: 2, service: "imap".into(), login: "ann@a.example".into(), password: "x".into(), remote: None };
    assert!(matches!(ask::<_, Answer>(&socket, &imap).0, Answer::Unavailable { id: 2, .. }));
    let changed = AccountRequest::UserPassword { address: address("ann@a.example"), password: "new".into() };
    assert_eq!(system.admin(&changed), AccountAnswer::Ok {});
    assert!(refused(&login(&socket, b"ann@a.example", b"open sesame").0));
    assert!(matches!(login(&socket, b"ann@a.example", b"new").0, Answer::LoggedIn { .. }));
    let text = std::fs::read(system.dir.path().join("var/lib/qmail/accounts.sqlite-wal")).unwrap_or_default();
    assert!(!text.windows(11).any(|w| w == b"open sesame"), "no password in clear on the disk");
}

#[test]
fn a_login_to_send_is_a_verdict_and_nothing_else() {
    let system = system(DOMAINS);
    // Nobody serves qmail-lspawn's socket: a session could not be had.
    system.user("ann@a.example", "open sesame");
    let socket = system.auth();
    let login = |login: &[u8], password: &[u8]| {
        let (login, password) = (login.into(), password.into());
        ask::<_, Answer>(&socket, &Request::Login { id: 4, service: "smtp".into(), login, password, remote: None })
    };
    let (answer, fd) = login(b"Ann@A.example", b"open sesame");
    assert_eq!((answer, fd.is_none()), (Answer::LoggedIn { id: 4, user: "ann@a.example".into() }, true));
    for (name, password) in
        [(&b"ann@a.example"[..], &b"wrong"[..]), (b"bob@a.example", b"open sesame"), (b"\xff", b""), (b"ann", b"x")]
    {
        assert!(matches!(login(name, password).0, Answer::Refused { id: 4, .. }), "{}", name.escape_ascii());
    }
    std::fs::write(system.root.domains_file(), "not a line\n").unwrap();
    assert!(matches!(login(b"ann@a.example", b"open sesame").0, Answer::Unavailable { id: 4, .. }));
}

#[test]
fn a_suspended_account_is_refused_like_a_wrong_password() {
    use accounts::Directory as _;
    let system = system(DOMAINS);
    system.lspawn();
    system.user("ann@a.example", "x");
    let mut accounts = Accounts::open(&system.root.lib().join("accounts.sqlite")).unwrap();
    let (domain, user) = (Domain::new(b"a.example").unwrap(), accounts::UserName::new(b"ann").unwrap());
    let suspended = accounts::UserChange::Suspension { suspended: true, refuses_mail: false };
    accounts.change_user(&domain, &user, &suspended).unwrap();
    let socket = system.auth();
    assert_eq!(login(&socket, b"ann@a.example", b"x").0, Answer::Refused { id: 9, pause_s: 1 });
    assert_eq!(recipient(&socket, "ann@a.example"), Directory::Mailbox {}, "mail goes on arriving");
}

#[test]
fn routes_of_virtual_recipients() {
    let system = system(DOMAINS);
    system.user("ann@a.example", "x");
    let alias = |name: &str, targets: &[&str]| {
        let targets = targets.iter().map(|t| address(t)).collect();
        assert_eq!(system.admin(&AccountRequest::AliasAdd { address: address(name), targets }), AccountAnswer::Ok {});
    };
    alias("info@a.example", &["ann@a.example", "x@elsewhere.example"]);
    let socket = system.auth();
    let route = |text: &str| {
        let mut answer = ask(&socket, &Request::Route { id: 3, address: address(text) }).0;
        while answer == (Answer::Changed {}) {
            answer = receive(&socket).0;
        }
        match answer {
            Answer::Route { id: 3, target } => target,
            other => panic!("{other:?}"),
        }
    };
    let domain = Domain::new(b"a.example").unwrap();
    let mailbox =
        |ext: &str| Target::Mailbox { domain: domain.clone(), user: "ann".into(), ext: ext.into(), settings: "".into() };
    assert_eq!(route("ANN@a.example"), mailbox(""));
    assert_eq!(route("ann-List@a.example"), mailbox("List"));
    assert_eq!(route("ann+tag@a.example"), mailbox(""));
    let targets = vec![address("ann@a.example"), address("x@elsewhere.example")];
    assert_eq!(route("info@a.example"), Target::Forward { domain: domain.clone(), targets });
    assert_eq!(route("bob@a.example"), Target::NoMailbox {});
    let postmaster = Target::Forward { domain: domain.clone(), targets: vec![address("postmaster@host.example")] };
    assert_eq!(route("PostMaster@a.example"), postmaster);
    assert!(matches!(route("ann@gone.example"), Target::Temporary { .. }));
    alias("@a.example", &["all@elsewhere.example"]);
    assert_eq!(route("bob@a.example"), Target::Forward { domain, targets: vec![address("all@elsewhere.example")] });
}

#[test]
fn the_administrators_mistakes_are_explained() {
    let system = system(DOMAINS);
    system.user("ann@a.example", "x");
    let failed = |request: AccountRequest, words: &str| match system.admin(&request) {
        AccountAnswer::Failed { text, temporary: false } => {
            assert!(String::from_utf8_lossy(&text).contains(words), "{}", text.escape_ascii());
        }
        other => panic!("{request:?}: {other:?}"),
    };
    let add = |name: &str, password: &str| AccountRequest::UserAdd { address: address(name), password: password.into() };
    failed(add("ann@a.example", "y"), "exists already");
    failed(add("bob@a.example", ""), "empty");
    failed(add("bob@b.example", "x"), "qmail domain add b.example");
    failed(add("bob", "x"), "user@domain");
    failed(add("a/b@a.example", "x"), "slashes");
    failed(AccountRequest::UserRemove { address: address("bob@a.example") }, "no such user");
    failed(AccountRequest::AliasAdd { address: address("all@a.example"), targets: vec![] }, "at least one target");
    failed(AccountRequest::AliasRemove { address: address("all@a.example") }, "no such alias");
    assert_eq!(
        system.admin(&AccountRequest::UserQuota { address: address("ann@a.example"), bytes: 5, messages: 0 }),
        AccountAnswer::Ok {}
    );
    assert_eq!(system.admin(&AccountRequest::DomainForget { domain: Domain::new(b"a.example").unwrap() }), AccountAnswer::Ok {});
    failed(AccountRequest::UserRemove { address: address("ann@a.example") }, "no such user");
}

#[test]
fn lists_come_whole_however_long() {
    use accounts::Directory as _;
    let system = system(DOMAINS);
    let mut accounts = Accounts::open(&system.root.lib().join("accounts.sqlite")).unwrap();
    let domain = Domain::new(b"a.example").unwrap();
    let long: Vec<Address> = (0..20).map(|n| address(&format!("{}{n}@x.example", "t".repeat(980)))).collect();
    for n in 0..500 {
        let name = |kind: char| accounts::UserName::new(format!("{kind}{n:03}").as_bytes()).unwrap();
        accounts.add_user(&domain, &name('u'), "h", 0).unwrap();
        accounts.set_alias(&domain, Some(&name('a')), if n % 50 == 0 { &long } else { &long[..1] }).unwrap();
    }
    let socket = system.connect("admin/auth.sock");
    let collect = |request: &AccountRequest| {
        socket.send(&request.encode()).unwrap();
        let mut out = Vec::new();
        loop {
            match receive(&socket).0 {
                AccountAnswer::Users { rows, last } => {
                    out.extend(rows.into_iter().map(|row| row.address.to_string()));
                    if last {
                        return out;
                    }
                }
                AccountAnswer::Aliases { rows, last } => {
                    out.extend(rows.into_iter().map(|row| format!("{}={}", row.address, row.targets.len())));
                    if last {
                        return out;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let users = collect(&AccountRequest::UserList { domain: None, after: Default::default() });
    assert_eq!((users.len(), users[0].as_str(), users[499].as_str()), (500, "u000@a.example", "u499@a.example"));
    let rest = collect(&AccountRequest::UserList { domain: Some(domain.clone()), after: "u497@a.example".into() });
    assert_eq!(rest, ["u498@a.example", "u499@a.example"]);
    let aliases = collect(&AccountRequest::AliasList { domain: None, after: Default::default() });
    assert_eq!((aliases.len(), aliases[0].as_str(), aliases[499].as_str()), (500, "a000@a.example=20", "a499@a.example=1"));
    let none = collect(&AccountRequest::UserList { domain: Some(Domain::new(b"b.example").unwrap()), after: Default::default() });
    assert!(none.is_empty());
}

#[test]
fn whatever_bytes_come_nobody_exits_and_nothing_changes() {
    let system = system(DOMAINS);
    system.user("ann@a.example", "x");
    let forbidden = AccountRequest::UserRemove { address: address("ann@a.example") }.encode();
    for name in ["roles/auth.sock", "admin/auth.sock"] {
        for bytes in [
            &b"\0"[..],
            b"\x01",
            b"\x01\x01",
            b"GET / HTTP/1.1",
            &[0xff; 32_768],
            &[1; 60_000],
            &forbidden[..forbidden.len() - 1],
        ] {
            let socket = system.connect(name);
            if socket.send(bytes).is_ok() {
                assert!(matches!(socket.recv(&mut [0; 100]), Ok(Received::End) | Err(_)), "{name}: {}", bytes.len());
            }
        }
    }
    // The administrator's request on the other socket is no request there.
    let socket = system.auth();
    socket.send(&forbidden).unwrap();
    let _ = socket.recv(&mut [0; 100]);
    assert_eq!(recipient(&system.auth(), "ann@a.example"), Directory::Mailbox {});
}

#[test]
fn a_flood_of_questions_is_answered_in_full() {
    let system = system(DOMAINS);
    system.lspawn();
    let socket = Arc::new(system.auth());
    let writer = Arc::clone(&socket);
    let thread = std::thread::spawn(move || {
        for id in 0..5000 {
            let text = format!("joe-x{}@host.example", id % 700);
            writer.send(&Request::Recipient { id, address: address(&text) }.encode()).unwrap();
        }
    });
    let mut seen = vec![false; 5000];
    for _ in 0..5000 {
        match receive(&socket).0 {
            Answer::Recipient { id, verdict: Directory::NoMailbox {} } => {
                assert!(!std::mem::replace(&mut seen[usize::try_from(id).unwrap()], true));
            }
            other => panic!("{other:?}"),
        }
    }
    thread.join().unwrap();
}

#[test]
fn who_keeps_routes_hears_of_a_change_before_it_is_answered() {
    let system = system("a.example:64107:64107:/m\n");
    system.user("ann@a.example", "password-ann");
    let (keeper, other) = (system.auth(), system.auth());
    let route = |id, who| ask::<_, Answer>(&keeper, &Request::Route { id, address: address(who) }).0;
    assert_eq!(route(1, "x@a.example"), Answer::Route { id: 1, target: Target::NoMailbox {} });
    assert_eq!(recipient(&other, "ann@a.example"), Directory::Mailbox {});
    let changes = [
        AccountRequest::AliasAdd { address: address("x@a.example"), targets: vec![address("y@b.example")] },
        AccountRequest::AliasRemove { address: address("x@a.example") },
        AccountRequest::UserRemove { address: address("ann@a.example") },
        AccountRequest::UserAdd { address: address("ann@a.example"), password: "password-ann".into() },
        AccountRequest::DomainForget { domain: Domain::new(b"a.example").unwrap() },
    ];
    for change in changes {
        assert_eq!(system.admin(&change), AccountAnswer::Ok {});
        keeper.set_nonblocking(true).unwrap();
        assert_eq!(receive::<Answer>(&keeper).0, Answer::Changed {}, "{change:?}");
        keeper.set_nonblocking(false).unwrap();
    }
    let mistake = AccountRequest::AliasRemove { address: address("x@a.example") };
    assert!(matches!(system.admin(&mistake), AccountAnswer::Failed { temporary: false, .. }));
    for socket in [&keeper, &other] {
        socket.set_nonblocking(true).unwrap();
        let heard = socket.recv(&mut [0; 100]);
        assert!(heard.is_err(), "nothing changed, or it keeps no routes: {heard:?}");
    }
}

#[test]
fn who_manages_accounts_of_a_domain_that_has_none_is_told_where_to_go() {
    let system = system("a.example:64107:64107:/m\n");
    for (domain, cure) in [("host.example", "etc/qmail/alias/.qmail-NAME"), ("else.example", "qmail domain add else.example")] {
        let request =
            AccountRequest::AliasAdd { address: address(&format!("x@{domain}")), targets: vec![address("y@b.example")] };
        match system.admin(&request) {
            AccountAnswer::Failed { text, temporary: false } => {
                assert!(String::from_utf8_lossy(&text).contains(cure), "{}", String::from_utf8_lossy(&text));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// What is to be changed of a domain: nothing.
fn no_change() -> DomainChange {
    DomainChange {
        alias_of: None,
        default_quota: None,
        quota_bytes: None,
        users_max: None,
        administrator_add: None,
        administrator_remove: None,
    }
}

fn account(user: &str, hash: &str) -> AccountRow {
    AccountRow {
        address: address(user),
        hash: Some(hash.into()),
        quota: None,
        suspended: false,
        refuses_mail: false,
        forward: Vec::new(),
        keeps_copy: false,
        vacation: None,
        per_hour: None,
        per_day: None,
        created_s: 5,
    }
}

impl System {
    fn done(&self, request: &AccountRequest) {
        assert_eq!(self.admin(request), AccountAnswer::Ok {}, "{request:?}");
    }

    fn refused(&self, request: &AccountRequest, words: &str) {
        match self.admin(request) {
            AccountAnswer::Failed { text, temporary: false } => {
                assert!(String::from_utf8_lossy(&text).contains(words), "{}", text.escape_ascii());
            }
            other => panic!("{request:?}: {other:?}"),
        }
    }
}

#[test]
fn what_an_account_says_of_deliveries_travels_with_the_route() {
    let system = system(DOMAINS);
    system.user("ann@a.example", "x");
    let (ann, socket) = (address("ann@a.example"), system.auth());
    let settings = |text: &str| {
        // On another connection, so that no word of changes comes between.
        let socket = system.auth();
        match ask(&socket, &Request::Route { id: 3, address: address(text) }).0 {
            Answer::Route { target: Target::Mailbox { settings, .. }, .. } => Settings::from_bytes(&settings).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(settings("ann@a.example"), Settings::default());
    system.done(&AccountRequest::UserQuota { address: ann.clone(), bytes: 1000, messages: 3 });
    let targets = vec![address("b@elsewhere.example")];
    system.done(&AccountRequest::UserForward { address: ann.clone(), targets: targets.clone(), keeps_copy: true });
    let vacation = Vacation { subject: "Away".into(), text: "Soon.".into(), from_s: 1, until_s: 9, days: 2 };
    system.done(&AccountRequest::UserVacation { address: ann.clone(), vacation: Some(vacation) });
    system.done(&AccountRequest::AliasAdd { address: address("annie@a.example"), targets: vec![address("Ann@a.example")] });
    let both = vec![address("ann@a.example"), address("x@elsewhere.example")];
    system.done(&AccountRequest::AliasAdd { address: address("both@a.example"), targets: both });
    let quota = Settings { quota_bytes: 1000, quota_messages: 3, ..Settings::default() };
    let all = Settings {
        forward: targets,
        keeps_copy: true,
        vacation: Some(ipc::mailbox::Vacation {
            address: ann.clone(),
            others: vec![address("annie@a.example")],
            subject: "Away".into(),
            text: "Soon.".into(),
            from_s: 1,
            until_s: 9,
            days: 2,
        }),
        ..quota.clone()
    };
    assert_eq!(settings("ANN@A.example"), all);
    assert_eq!(settings("ann+tag@a.example"), all);
    assert_eq!(settings("ann-list@a.example"), quota, "a `.qmail-list` file says the rest");
    std::fs::write(system.root.control_file("overquota"), "defer\n").unwrap();
    assert_eq!(settings("ann-list@a.example"), Settings { defers: true, ..quota.clone() });
    std::fs::write(system.root.control_file("overquota"), "bounce\n").unwrap();
    std::fs::write(system.root.control_file("quotawarning"), "90\n").unwrap();
    std::fs::write(system.root.control_file("quotawarningtext"), "Full.\n").unwrap();
    let warned = Settings { warns_at: 90, warning: "Full.\n".into(), ..quota.clone() };
    assert_eq!(settings("ann-list@a.example"), warned);
    std::fs::remove_file(system.root.control_file("quotawarning")).unwrap();
    system.done(&AccountRequest::UserSuspend { address: ann.clone(), suspended: true, refuses_mail: false });
    assert_eq!(settings("ann@a.example"), quota, "a suspended account neither forwards nor replies");
    system.done(&AccountRequest::UserSuspend { address: ann.clone(), suspended: true, refuses_mail: true });
    assert_eq!(recipient(&socket, "ann@a.example"), Directory::NoMailbox {});
    system.done(&AccountRequest::UserSuspend { address: ann.clone(), suspended: false, refuses_mail: false });
    assert_eq!(settings("ann@a.example"), all);
    match system.admin(&AccountRequest::UserShow { address: address("Ann@a.example") }) {
        AccountAnswer::Accounts { rows, last: true } => {
            assert_eq!((rows[0].address.to_string(), &rows[0].hash), ("ann@a.example".to_owned(), &None));
            assert_eq!(rows[0].quota, Some(Quota { bytes: 1000, messages: 3 }));
        }
        other => panic!("{other:?}"),
    }
    system.refused(&AccountRequest::UserShow { address: address("bob@a.example") }, "no such user");
}

#[test]
fn an_alias_domain_is_the_other_domain_for_mail_and_logins() {
    let system = system(&format!("{DOMAINS}b.example:64107:64107:/var/mail/a.example\n"));
    system.lspawn();
    system.user("ann@a.example", "x");
    let change = |domain: &str, alias_of: &str| AccountRequest::DomainChange {
        domain: Domain::new(domain.as_bytes()).unwrap(),
        change: DomainChange { alias_of: Domain::new(alias_of.as_bytes()).ok(), ..no_change() },
    };
    let socket = system.auth();
    assert_eq!(recipient(&socket, "ann@b.example"), Directory::NoMailbox {});
    system.done(&change("b.example", "a.example"));
    assert_eq!(recipient(&socket, "ann@b.example"), Directory::Mailbox {});
    assert_eq!(recipient(&socket, "ann-x@b.example"), Directory::Mailbox {});
    assert_eq!(recipient(&socket, "bob@b.example"), Directory::NoMailbox {});
    assert!(matches!(login(&socket, b"ann@b.example", b"x").0, Answer::LoggedIn { user, .. } if &*user == b"ann@a.example"));
    assert_eq!(login(&socket, b"ann@b.example", b"y").0, Answer::Refused { id: 9, pause_s: 1 });
    assert_eq!(may_send(&socket, "ann@a.example", "ann@b.example"), Permission::Yes {});
    assert_eq!(may_send(&socket, "ann@a.example", "bob@b.example"), Permission::NotYours {});
    let route = ask(&socket, &Request::Route { id: 3, address: address("ann@b.example") }).0;
    assert!(matches!(route, Answer::Route { target: Target::Mailbox { domain, .. }, .. } if domain.as_bytes() == b"a.example"));
    system.refused(&AccountRequest::UserAddHash { address: address("c@b.example"), hash: "h".into() }, "alias of a.example");
    system.refused(&change("c.example", "b.example"), "alias of a.example");
    system.refused(&change("c.example", "nowhere.example"), "not a virtual domain");
    match system.admin(&AccountRequest::DomainList { domain: None, after: "".into() }) {
        AccountAnswer::Domains { rows, last: true } => {
            assert_eq!((rows.len(), rows[0].alias_of.as_ref().map(Domain::as_bytes)), (1, Some(&b"a.example"[..])));
        }
        other => panic!("{other:?}"),
    }
}

fn permission(socket: &Seqpacket, request: &Request) -> Permission {
    match ask(socket, request).0 {
        Answer::Permission { id: 5, permission } => permission,
        other => panic!("{other:?}"),
    }
}

fn may_send(socket: &Seqpacket, login: &str, text: &str) -> Permission {
    permission(socket, &Request::MaySend { id: 5, login: login.into(), address: address(text) })
}

#[test]
fn a_login_sends_as_itself_and_as_what_leads_to_it_alone() {
    let system = system(DOMAINS);
    for user in ["ann", "bob", "ann-bob"] {
        system.user(&format!("{user}@a.example"), "x");
    }
    for (name, targets) in [
        ("sales@a.example", &["ann@a.example"][..]),
        ("chain@a.example", &["sales@a.example"]),
        ("tagged@a.example", &["ann+sales@a.example"]),
        ("team@a.example", &["ann@a.example", "bob@a.example"]),
        ("away@a.example", &["ann@elsewhere.example"]),
        ("loop@a.example", &["pool@a.example"]),
        ("pool@a.example", &["loop@a.example"]),
        ("ann-x@a.example", &["bob@a.example"]),
        ("@a.example", &["ann@a.example"]),
    ] {
        let targets = targets.iter().map(|t| address(t)).collect();
        assert_eq!(system.admin(&AccountRequest::AliasAdd { address: address(name), targets }), AccountAnswer::Ok {});
    }
    std::fs::write(system.root.control_file("percenthack"), "a.example\n").unwrap();
    let grants = "Bob@a.example:team@a.example\nbob@a.example:@news.example\njoe:joe-list@host.example\n";
    std::fs::write(system.root.control_file("submissionsenders"), grants).unwrap();
    let socket = system.auth();
    let (ann, bob) = ("ann@a.example", "bob@a.example");
    for (login, text, may) in [
        (ann, "ann@a.example", true),
        (ann, "ANN@A.Example", true),
        ("ANN@a.example", "ann@a.example", true),
        (ann, "ann-list@a.example", true),
        (ann, "ann+List@a.example", true),
        (ann, "sales@a.example", true),
        (ann, "chain@a.example", true),
        (ann, "tagged@a.example", true),
        (ann, "bob@a.example", false),
        (ann, "ann-bob@a.example", false),
        (ann, "ann-bob+x@a.example", false),
        (ann, "ann-x@a.example", false),
        (ann, "ann-@a.example", false),
        (ann, "team@a.example", false),
        (ann, "away@a.example", false),
        (ann, "loop@a.example", false),
        // What the catch-all takes is nobody's, though it is ann who gets it.
        (ann, "ceo@a.example", false),
        (ann, "postmaster@a.example", false),
        (ann, "ann@elsewhere.example", false),
        (ann, "ann@news.example", false),
        (ann, "ann@host.example", false),
        (ann, "ann", false),
        (ann, "", false),
        (ann, "@a.example", false),
        (ann, "#@[]", false),
        // Tricks with the parts of an address.
        (ann, "ann%a.example@a.example", false),
        (ann, "ann+x%elsewhere.example@a.example", false),
        (ann, "ann+x@elsewhere.example>@a.example", false),
        (ann, "ann+x y@a.example", false),
        (ann, "ann+\"x@a.example", false),
        (ann, "ann@a.example@elsewhere.example", false),
        (ann, "ann@elsewhere.example@a.example", false),
        (bob, "bob@a.example", true),
        (bob, "ann-x@a.example", true),
        (bob, "team@a.example", true),
        (bob, "any@NEWS.example", true),
        (bob, "any@x.news.example", false),
        ("gone@a.example", "gone@a.example", false),
        ("", "ann@a.example", false),
        ("joe", "joe@host.example", true),
        ("joe", "joe-list@host.example", true),
        ("joe", "joe-other@host.example", false),
        ("joe@host.example", "joe@host.example", false),
    ] {
        let wanted = if may { Permission::Yes {} } else { Permission::NotYours {} };
        assert_eq!(may_send(&socket, login, text), wanted, "{login} as {text}");
    }
    std::fs::write(system.root.control_file("submissionsenders"), "nonsense\n").unwrap();
    assert_eq!(may_send(&socket, ann, "ann@a.example"), Permission::Temporary {});
    std::fs::remove_file(system.root.control_file("submissionsenders")).unwrap();
    assert_eq!(may_send(&socket, bob, "team@a.example"), Permission::NotYours {}, "at once");
    std::fs::write(system.root.domains_file(), "not a line\n").unwrap();
    assert_eq!(may_send(&socket, ann, "ann@a.example"), Permission::Temporary {});
}

#[test]
fn who_is_suspended_or_gone_sends_no_more_in_a_session_that_is_open() {
    use accounts::Directory as _;
    let system = system(DOMAINS);
    system.user("ann@a.example", "x");
    system.user("bob@a.example", "x");
    let socket = system.auth();
    let ann = || may_send(&socket, "ann@a.example", "ann@a.example");
    assert_eq!(ann(), Permission::Yes {});
    let mut accounts = Accounts::open(&system.root.lib().join("accounts.sqlite")).unwrap();
    let (domain, user) = (Domain::new(b"a.example").unwrap(), accounts::UserName::new(b"ann").unwrap());
    accounts.change_user(&domain, &user, &accounts::UserChange::Suspension { suspended: true, refuses_mail: false }).unwrap();
    assert_eq!(ann(), Permission::NotYours {});
    accounts.change_user(&domain, &user, &accounts::UserChange::Suspension { suspended: false, refuses_mail: false }).unwrap();
    assert_eq!(ann(), Permission::Yes {});
    assert_eq!(system.admin(&AccountRequest::UserRemove { address: address("ann@a.example") }), AccountAnswer::Ok {});
    assert_eq!(ann(), Permission::NotYours {});
}

#[test]
fn a_login_has_its_limits() {
    let system = system(DOMAINS);
    system.user("ann@a.example", "x");
    std::fs::write(system.root.control_file("submissionlimits"), "messages-per-hour=3\nrecipients-per-day=9\n").unwrap();
    let socket = system.auth();
    let submit = |login: &str, recipients| permission(&socket, &Request::MaySubmit { id: 5, login: login.into(), recipients });
    let ann = "ann@a.example";
    assert_eq!(submit(ann, 9), Permission::Yes {});
    assert_eq!(submit("ANN@a.example", 1), Permission::Limited { limit: Limit::RecipientsPerDay {} });
    assert_eq!(may_send(&socket, ann, ann), Permission::Limited { limit: Limit::RecipientsPerDay {} });
    assert_eq!(may_send(&socket, ann, "bob@a.example"), Permission::NotYours {});
    std::fs::write(system.root.control_file("submissionlimits"), "messages-per-hour=3\nrecipients-per-day=0\n").unwrap();
    assert_eq!(
        [(); 3].map(|()| submit(ann, 100)),
        [Permission::Yes {}, Permission::Yes {}, Permission::Limited { limit: Limit::MessagesPerHour {} }]
    );
    assert_eq!(submit("bob@a.example", 1), Permission::Yes {});
    system.user("eve@a.example", "x");
    let own = |per_hour| AccountRequest::UserLimits { address: address("eve@a.example"), per_hour, per_day: None };
    system.done(&own(Some(1)));
    let eve = || submit("eve@a.example", 1);
    assert_eq!([(); 2].map(|()| eve()), [Permission::Yes {}, Permission::Limited { limit: Limit::MessagesPerHour {} }]);
    system.done(&own(Some(2)));
    assert_eq!(eve(), Permission::Yes {});
    std::fs::write(system.root.control_file("submissionlimits"), "messages=3\n").unwrap();
    assert_eq!(submit(ann, 1), Permission::Temporary {});
}

#[test]
fn many_users_are_added_at_once_and_come_out_again() {
    let system = system(DOMAINS);
    let domain = Domain::new(b"a.example").unwrap();
    let default_quota = Some(Quota { bytes: 77, messages: 0 });
    let change = DomainChange { default_quota: default_quota.clone(), users_max: Some(151), ..no_change() };
    system.done(&AccountRequest::DomainChange { domain: domain.clone(), change });
    let mut users: Vec<_> = (0..150).map(|n| account(&format!("u{n:03}@a.example"), "$1$x$y")).collect();
    users.push(account("u000@a.example", "other"));
    users.push(account("x@elsewhere.example", "h"));
    users.push(account("y@a.example", "two words"));
    users.push(AccountRow { quota: Some(Quota { bytes: 5, messages: 6 }), ..account("z@a.example", "h") });
    users.push(account("zz@a.example", "h"));
    let alias = |name: &str| AliasRow { address: address(name), targets: vec![address("t@x")] };
    let aliases = vec![alias("info@a.example"), alias("u001@a.example"), alias("@a.example")];
    let AccountAnswer::Added { failures } = system.admin(&AccountRequest::Add { users, aliases }) else { panic!() };
    let short: Vec<_> = failures.iter().map(|f| (f.at, f.exists)).collect();
    assert_eq!(short, [(150, true), (151, false), (152, false), (154, false), (156, true)], "{failures:?}");
    let socket = system.connect("admin/auth.sock");
    let request = AccountRequest::Export { domain: Some(domain), after: "".into(), secrets: true };
    socket.send(&request.encode()).unwrap();
    let mut rows = Vec::new();
    loop {
        let AccountAnswer::Accounts { rows: some, last } = receive(&socket).0 else { panic!() };
        rows.extend(some);
        if last {
            break;
        }
    }
    assert_eq!(rows.len(), 151);
    assert_eq!(rows[0], AccountRow { quota: default_quota, ..account("u000@a.example", "$1$x$y") });
    assert_eq!(rows[150].quota, Some(Quota { bytes: 5, messages: 6 }));
    let too_many = vec![account("w@a.example", "h"); ipc::admin::ADD_MAX + 1];
    system.refused(&AccountRequest::Add { users: too_many, aliases: vec![] }, "more than 200");
    let hash = system.admin(&AccountRequest::Hash { password: "secret".into() });
    assert!(matches!(hash, AccountAnswer::Hashed { hash } if hash.starts_with(b"$argon2id$")));
}

#[test]
fn administrators_of_a_domain_are_its_own_or_others_users() {
    let system = system(DOMAINS);
    system.user("ann@a.example", "x");
    let domain = Domain::new(b"a.example").unwrap();
    let change = |change| AccountRequest::DomainChange { domain: domain.clone(), change };
    let add = |who: &str| change(DomainChange { administrator_add: Some(address(who)), ..no_change() });
    let remove = |who: &str| change(DomainChange { administrator_remove: Some(address(who)), ..no_change() });
    system.refused(&add("bob@a.example"), "no such user");
    system.refused(&remove("ann@a.example"), "does not administer");
    system.done(&add("Ann@A.example"));
    system.refused(&add("ann@a.example"), "already");
    match system.admin(&AccountRequest::DomainList { domain: Some(domain.clone()), after: "".into() }) {
        AccountAnswer::Domains { rows, .. } => assert_eq!(rows[0].administrators, [address("ann@a.example")]),
        other => panic!("{other:?}"),
    }
    system.done(&remove("ANN@a.example"));
}

#[test]
fn who_opened_a_mailbox_may_relay_as_long_as_the_file_says() {
    let system = system("");
    let auth = system.auth();
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let mut id = 0;
    let mut allowed = |address: &str| {
        id += 1;
        ask::<_, Answer>(&auth, &Request::MayRelay { id, address: ip(address) }).0 == Answer::Relay { id, allowed: true }
    };
    let note = |address: &str| {
        let noted = ask::<_, Answer>(&system.auth(), &Request::Arrived { id: 1, address: ip(address) }).0;
        assert_eq!(noted, Answer::Noted { id: 1 });
    };
    note("192.0.2.1");
    assert!(!allowed("192.0.2.1"), "it is off");
    std::fs::write(system.root.control_file("popbeforesmtp"), "10\n").unwrap();
    assert!(!allowed("192.0.2.1"), "what came while it was off does not count");
    note("192.0.2.1");
    note("127.0.0.1");
    assert_eq!(["192.0.2.1", "192.0.2.2", "127.0.0.1"].map(&mut allowed), [true, false, false]);
    std::fs::remove_file(system.root.control_file("popbeforesmtp")).unwrap();
    assert!(!allowed("192.0.2.1"), "off at once");
}
