//! The real qmail-lspawn over real sockets with a stand-in for qmail-local. As root it runs with ids of its own and really
//! becomes other users; not as root everything is the caller. Both ways every test here runs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipc::field::Verdict;
use ipc::job::{Answer, Job};
use ipc::lspawn::{Answer as Reply, Existence, Request};
use ipc::{DATAGRAM_LEN_MAX, Message as _, getpw};
use sys::spawn::{Child, Ended, Ids, Spawn};
use sys::{Received, Seqpacket};
use wire::{Address, Domain};

const ANN: u32 = 61_001;
const BOB: u32 = 61_002;
const VMAIL: u32 = 61_107;
const ALIAS: u32 = 61_106;
const QMAILQ: u32 = 61_103;
const QMAILA: u32 = 61_101;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The uid in this run: the caller's if not root.
fn uid(uid: u32) -> u32 {
    if is_root() { uid } else { rustix::process::getuid().as_raw() }
}

fn gid(gid: u32) -> u32 {
    if is_root() { gid } else { rustix::process::getgid().as_raw() }
}

fn ids(role: u32) -> Ids {
    Ids { uid: uid(role), gid: gid(role) }
}

/// A running qmail-lspawn; it ends with this value.
struct System {
    dir: tempfile::TempDir,
    child: Child,
    lifeline: Option<OwnedFd>,
}

impl System {
    fn start() -> Self {
        // Every uid must reach it.
        let dir = tempfile::Builder::new().prefix("lspawn").tempdir_in("/var/tmp").unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in [
            "bin",
            "etc/qmail/control",
            "etc/qmail/users",
            "etc/qmail/alias",
            "run/qmail/roles",
            "home/ann",
            "home/bob",
            "mail/v.example",
        ] {
            fs::create_dir_all(at(path)).unwrap();
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let fake = built("examples/fake-local");
        fs::copy(env!("CARGO_BIN_EXE_qmail-lspawn"), at("bin/qmail-lspawn")).unwrap();
        fs::copy(&fake, at("bin/qmail-local")).unwrap();
        fs::copy(&fake, at("bin/qmail-pop3d")).unwrap();
        let id = |role: &str, id: u32| format!("{role} {id} 61100\n");
        let table = id("qmailq", QMAILQ) + &id("qmaila", QMAILA) + &id("alias", ALIAS) + &id("vmail", VMAIL);
        if is_root() {
            fs::write(at("etc/qmail/ids"), table).unwrap();
            std::os::unix::fs::chown(at("home/ann"), Some(ANN), Some(ANN)).unwrap();
            std::os::unix::fs::chown(at("home/bob"), Some(BOB), Some(BOB)).unwrap();
        }
        let base = |name: &str| dir.path().join("mail").join(name).display().to_string();
        let domain = |name: &str, id: u32| format!("{name}:{}:{}:{}\n", uid(id), gid(id), base(name));
        let domains = domain("v.example", VMAIL) + &domain("run.example", VMAIL);
        fs::write(at("etc/qmail/users/domains"), domains).unwrap();
        let assign = format!(
            "=root:root:0:0:/root:::\n=faulty:ann:l001:1:/:::\n=sales:ann:{}:{}:{}:-:sales:\n.\n",
            uid(ANN),
            gid(ANN),
            at("home/ann").display()
        );
        fs::write(at("etc/qmail/users/assign"), assign).unwrap();
        fs::write(at("etc/qmail/control/defaultdelivery"), "./Mailbox\n").unwrap();
        fs::write(at("etc/qmail/control/vmailprograms"), "run.example\n").unwrap();
        let run = fs::File::open(at("run/qmail")).unwrap();
        serve_getpw(&run, dir.path());
        let listener = sys::seqpacket::listen(run.as_fd(), "roles/lspawn.sock").unwrap();
        fs::set_permissions(at("run/qmail/roles/lspawn.sock"), fs::Permissions::from_mode(0o666)).unwrap();
        let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (said_ready, ready) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let stderr = std::io::stderr();
        let spawn = Spawn::new(&at("bin/qmail-lspawn")).arg("--service").env("QMAIL_ROOT", dir.path()).stderr(stderr.as_fd());
        let spawn = spawn.fd("lifeline", theirs.as_fd()).fd("ready", ready.as_fd()).fd("run", run.as_fd());
        let child = spawn.fd("serve:lspawn", listener.as_fd()).start().unwrap();
        drop(ready);
        let mut word = [0; 1];
        fs::File::from(said_ready).read_exact(&mut word).unwrap();
        Self { dir, child, lifeline: Some(ours) }
    }

    /// A connection made under the uid of a role.
    fn connect(&self, role: u32) -> Client {
        let (ours, theirs) = Seqpacket::pair().unwrap();
        let spawn = Spawn::new(&self.dir.path().join("bin/qmail-local")).arg("--connect").arg(self.dir.path().join("run/qmail"));
        let child = spawn.ids(ids(role)).fd("work", theirs.as_fd()).start().unwrap();
        drop(theirs);
        let Received::Datagram(_, Some(fd)) = ours.recv_with_fd(&mut [0; 8]).unwrap() else { panic!("not connected") };
        assert_eq!(child.wait(), Ended::Code(0));
        let socket = Seqpacket::from_fd(fd);
        socket.set_deadline(Duration::from_secs(20)).unwrap();
        Client { socket, last: 0 }
    }

    fn send(&self) -> Client {
        self.connect(QMAILQ)
    }

    fn is_running(&self) -> bool {
        self.child.try_wait().is_none()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        self.child.signal(rustix::process::Signal::KILL);
    }
}

/// Notes that a test needs root and this run is not root's: `cargo xtask test` counts these.
fn skip(test: &str) {
    use std::io::Write as _;
    println!("skipped: {test}: needs root");
    if let Some(list) = std::env::var_os("QMAIL_SKIPPED") {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(list).unwrap();
        writeln!(file, "{test}: needs root").unwrap();
    }
}

/// A file that cargo has built beside this test.
fn built(path: &str) -> PathBuf {
    let file = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join(path);
    assert!(file.exists(), "{} is built by cargo test without a --test filter", file.display());
    file
}

/// Answers as the local part says, in a thread that ends with the test.
fn serve_getpw(run: &fs::File, dir: &Path) {
    let listener = sys::seqpacket::listen(run.as_fd(), "roles/getpw.sock").unwrap();
    rustix::io::ioctl_fionbio(&listener, false).unwrap();
    let dir = dir.to_owned();
    std::thread::spawn(move || {
        while let Ok(client) = sys::seqpacket::accept(listener.as_fd()) {
            client.set_nonblocking(false).unwrap();
            let mut buf = vec![0; DATAGRAM_LEN_MAX];
            while let Ok(Received::Datagram(len, _)) = client.recv(&mut buf) {
                let getpw::Request::Who { id, local } = getpw::Request::decode(&buf[..len]).unwrap();
                let text = String::from_utf8(local.to_vec()).unwrap();
                let (user, ext) = text.split_once('-').unwrap_or((&text, ""));
                let answer = |name: &str, owner: u32, dash: &str, ext: &str| {
                    let home = dir.join("home").join(name).display().to_string();
                    let (uid, gid) = (owner, if is_root() { owner } else { gid(owner) });
                    let (user, home) = (name.into(), home.as_str().into());
                    getpw::Answer::User { id, user, uid, gid, home, dash: dash.into(), ext: ext.into() }.encode()
                };
                let dash = if text.contains('-') { "-" } else { "" };
                let datagram = match user.to_lowercase().as_str() {
                    "ann" => answer("ann", uid(ANN), dash, ext),
                    "bob" => answer("bob", BOB, dash, ext),
                    // A lie: bob's home with ann's uid.
                    "liar" => answer("bob", ANN, dash, ext),
                    "silent" => continue,
                    "garbage" => b"\x01what".to_vec(),
                    "gone" => break,
                    "nss" => getpw::Answer::Temporary { id, text: "x".into() }.encode(),
                    _ => answer("alias", uid(ALIAS), "-", &text),
                };
                client.send(&datagram).unwrap();
            }
        }
    });
}

struct Client {
    socket: Seqpacket,
    last: u64,
}

impl Client {
    fn ask(&mut self, job: impl FnOnce(u64) -> Job) -> u64 {
        self.last += 1;
        let body = sys::memfd::sealed(b"letter").unwrap();
        self.socket.send_with_fd(&job(self.last).encode(), body.as_fd()).unwrap();
        self.last
    }

    fn system(&mut self, sender: &str, recipient: &str) -> u64 {
        self.ask(|number| Job::System { number, message: 7, sender: address(sender), recipient: address(recipient) })
    }

    fn mailbox(&mut self, sender: &str, domain: &str, user: &str, ext: &str) -> u64 {
        let domain = Domain::new(domain.as_bytes()).unwrap();
        let recipient = address(&format!("{user}@{domain}"));
        let (user, ext) = (user.into(), ext.into());
        self.ask(|number| Job::Mailbox {
            number,
            message: 7,
            sender: address(sender),
            recipient,
            domain,
            user,
            ext,
            settings: "".into(),
        })
    }

    /// The next answer: number, letter, text.
    fn answer(&self) -> (u64, char, String) {
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        let Received::Datagram(len, None) = self.socket.recv_with_fd(&mut buf).unwrap() else { panic!("closed") };
        let Answer::Done { number, outcomes, untried, last } = Answer::decode(&buf[..len]).unwrap() else { panic!() };
        assert!(untried.is_empty() && last && outcomes.len() == 1 && outcomes[0].recipient == 0);
        let text = String::from_utf8(outcomes[0].text.to_vec()).unwrap();
        (number, char::from(outcomes[0].verdict.letter()), text)
    }

    fn deliver(&mut self, sender: &str, recipient: &str) -> (char, String) {
        let asked = self.system(sender, recipient);
        let (number, letter, text) = self.answer();
        assert_eq!(number, asked);
        (letter, text)
    }

    fn question(&self, request: &Request) -> (Reply, Option<OwnedFd>) {
        self.socket.send(&request.encode()).unwrap();
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        let Received::Datagram(len, fd) = self.socket.recv_with_fd(&mut buf).unwrap() else { panic!("closed") };
        (Reply::decode(&buf[..len]).unwrap(), fd)
    }

    fn is_closed(&self) -> bool {
        !matches!(self.socket.recv(&mut [0; 64]), Ok(Received::Datagram(..)))
    }
}

fn address(text: &str) -> Address {
    Address::new(text.as_bytes()).unwrap()
}

/// The value of `key=` in what the stand-in said.
fn said(text: &str, key: &str) -> String {
    let at = text.find(&format!(" {key}=")).unwrap_or_else(|| panic!("no {key} in {text}")) + key.len() + 2;
    text[at..].split(' ').next().unwrap().to_owned()
}

fn assert_said(text: &str, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(said(text, key), *value, "{key} in {text}");
    }
}

#[test]
fn a_system_user_gets_mail_as_himself_from_a_warm_worker() {
    let system = System::start();
    let mut send = system.send();
    let (letter, text) = send.deliver("ok", "Ann-X@h.example");
    assert_eq!(letter, 'K', "{text}");
    let home = system.dir.path().join("home/ann").display().to_string();
    let (own_uid, own_gid) = (uid(ANN).to_string(), gid(ANN).to_string());
    assert_said(&text, &[("uid", &own_uid), ("gid", &own_gid), ("home", &home), ("user", "ann"), ("local", "Ann-X")]);
    assert_said(&text, &[("dash", "-"), ("ext", "X"), ("domain", "h.example"), ("default", "./Mailbox"), ("body", "letter")]);
    assert_said(&text, &[("fds", "4")]);
    assert!(text.starts_with("--worker uid="), "{text}");
    let (_, again) = send.deliver("ok", "ann@h.example");
    assert_eq!(said(&again, "pid"), said(&text, "pid"), "the worker is kept");
    assert_said(&again, &[("dash", ""), ("ext", "")]);
    let (_, sales) = send.deliver("ok", "sales@h.example");
    assert_said(&sales, &[("user", "ann"), ("dash", "-"), ("ext", "sales"), ("pid", &said(&text, "pid"))]);
    assert_eq!(send.deliver("fail", "ann@h.example"), ('D', "no".to_owned()));
    assert_eq!(send.deliver("long", "ann@h.example"), ('K', "x".repeat(4096)));
    assert_eq!(send.deliver("ok", "@h.example"), ('K', String::new()), "nobody's mail");
}

#[test]
fn virtual_users_run_as_their_domain_says_below_its_base() {
    let system = System::start();
    let mut send = system.send();
    send.mailbox("ok", "v.example", "joe", "x");
    let (_, letter, text) = send.answer();
    assert_eq!(letter, 'K', "{text}");
    let base = system.dir.path().join("mail/v.example").display().to_string();
    assert!(text.starts_with(&format!("--worker --base {base} uid={} gid={} ", uid(VMAIL), gid(VMAIL))), "{text}");
    assert_said(
        &text,
        &[("user", "joe"), ("home", &format!("{base}/joe")), ("dash", "-"), ("ext", "x"), ("default", "./Maildir/")],
    );
    let domain = Domain::new(b"v.example").unwrap();
    let targets = vec![address("a@b"), address("c@d")];
    let recipient = address("team@v.example");
    send.ask(|number| Job::Alias { number, message: 7, sender: address("ok"), recipient, domain, targets });
    let (_, letter, text) = send.answer();
    assert_eq!(letter, 'K', "{text}");
    assert!(text.ends_with("to [<a@b>, <c@d>]"), "{text}");
    assert_said(&text, &[("home", &base), ("local", "team")]);
    for (user, domain) in
        [("../joe", "v.example"), ("Joe", "v.example"), ("", "v.example"), (".x", "v.example"), ("joe", "other.example")]
    {
        send.mailbox("ok", domain, user, "");
        let (_, letter, text) = send.answer();
        assert_eq!(letter, 'Z', "{user}@{domain}: {text}");
    }
}

#[test]
fn users_domains_is_followed_and_must_be_roots() {
    let system = System::start();
    let mut send = system.send();
    let file = system.dir.path().join("etc/qmail/users/domains");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}new.example:{}:{}:/m/new\n", uid(VMAIL), gid(VMAIL))).unwrap();
    send.mailbox("ok", "new.example", "joe", "");
    assert_eq!(send.answer().1, 'K');
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    send.mailbox("ok", "new.example", "joe", "");
    assert_eq!(send.answer().1, 'Z');
}

#[test]
fn mail_is_never_delivered_as_root_or_somebody_illegal() {
    let system = System::start();
    let mut send = system.send();
    let (letter, text) = send.deliver("ok", "root@h.example");
    assert_eq!(letter, 'Z', "users/assign names uid 0: {text}");
    let (letter, text) = send.deliver("ok", "faulty@h.example");
    assert_eq!(letter, 'Z', "a line of users/assign that cannot be read is in the way of those that it names: {text}");
    let (letter, text) = send.deliver("ok", "nobody-here@h.example");
    assert_eq!(letter, 'K', "alias takes the rest: {text}");
    assert_said(&text, &[("user", "alias"), ("uid", &uid(ALIAS).to_string()), ("dash", "-"), ("ext", "nobody-here")]);
    assert_eq!(send.deliver("ok", "liar@h.example").0, 'Z', "the home is not the user's");
    let (letter, text) = send.deliver("ok", "bob@h.example");
    if is_root() {
        assert_eq!(letter, 'K', "{text}");
        assert_said(&text, &[("uid", "61002"), ("gid", "61002"), ("groups", "0")]);
    } else {
        assert_eq!(letter, 'Z', "{text}");
        assert!(text.contains("not running as root"), "{text}");
    }
}

#[test]
fn a_worker_that_dies_or_lies_costs_only_its_own_deliveries() {
    let system = System::start();
    let mut send = system.send();
    for order in ["die", "garbage", "strange", "question"] {
        let (letter, text) = send.deliver(order, "ann@h.example");
        assert_eq!((letter, text.as_str()), ('Z', "qmail-local crashed (#4.3.0)"), "{order}");
        assert_eq!(send.deliver("ok", "ann@h.example").0, 'K', "after {order}");
    }
    assert_eq!(send.deliver("last", "ann@h.example").0, 'K', "what it said before it ended counts");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(send.deliver("ok", "ann@h.example").0, 'K');
    // While one user's worker dies, another's goes on.
    send.mailbox("slow", "v.example", "joe", "");
    send.system("die", "ann@h.example");
    let mut letters = [send.answer().1, send.answer().1];
    letters.sort_unstable();
    assert_eq!(letters, ['K', 'Z']);
    assert!(system.is_running());
}

#[test]
fn programs_run_in_an_unconfined_one_shot_worker_where_they_may() {
    let system = System::start();
    let mut send = system.send();
    let (letter, text) = send.deliver("program", "ann@h.example");
    assert_eq!(letter, 'K', "{text}");
    assert!(text.starts_with(&format!("--once uid={} gid={} ", uid(ANN), gid(ANN))), "{text}");
    assert_said(&text, &[("body", "letter"), ("fds", "4")]);
    send.mailbox("program", "v.example", "joe", "");
    let (_, letter, text) = send.answer();
    assert!(letter == 'Z' && text.contains("vmailprograms"), "{text}");
    send.mailbox("program", "run.example", "joe", "");
    let (_, letter, text) = send.answer();
    assert!(letter == 'K' && text.starts_with("--once uid="), "{text}");
}

#[test]
fn a_busy_domain_has_several_workers_and_all_jobs_are_answered_once() {
    let system = System::start();
    let mut send = system.send();
    let mut asked: Vec<u64> = (0..40).map(|_| send.mailbox("ok", "v.example", "joe", "")).collect();
    asked.extend((0..4).map(|_| send.mailbox("slow", "v.example", "joe", "")));
    let mut pids = std::collections::HashSet::new();
    let mut answered: Vec<u64> = asked
        .iter()
        .map(|_| {
            let (number, letter, text) = send.answer();
            assert_eq!(letter, 'K', "{text}");
            pids.insert(said(&text, "pid"));
            number
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, asked);
    assert!((2..=4).contains(&pids.len()), "{pids:?}");
}

#[test]
fn getpw_that_is_silent_broken_or_gone_is_a_deferral() {
    let system = System::start();
    let mut send = system.send();
    for local in ["garbage", "gone", "nss"] {
        let (letter, text) = send.deliver("ok", &format!("{local}@h.example"));
        assert_eq!(letter, 'Z', "{local}: {text}");
        assert_eq!(send.deliver("ok", "ann@h.example").0, 'K', "connects again after {local}");
    }
    let start = Instant::now();
    assert_eq!(send.deliver("ok", "silent@h.example").0, 'Z');
    assert!((4..10).contains(&start.elapsed().as_secs()));
}

#[test]
fn questions_of_existence() {
    let system = System::start();
    let auth = system.connect(QMAILA);
    let exists = |local: &str| match auth.question(&Request::Exists { id: 5, local: local.into() }) {
        (Reply::Exists { id: 5, answer }, None) => answer,
        other => panic!("{other:?}"),
    };
    assert_eq!(exists("ann"), Existence::Yes {});
    assert_eq!(exists("ann-list"), Existence::Yes {});
    assert_eq!(exists("ann-none"), Existence::No {});
    assert_eq!(exists("nobody"), Existence::No {});
    assert_eq!(exists(""), Existence::No {});
    assert_eq!(exists("root"), Existence::CannotTell {});
    assert_eq!(exists("nss"), Existence::Down {});
}

#[test]
fn a_pop3_session_is_a_socket_to_the_owners_pop3d() {
    let system = System::start();
    let auth = system.connect(QMAILA);
    let ask = |domain: &[u8], user: &str| {
        auth.question(&Request::Session { id: 9, domain: Domain::new(domain).unwrap(), user: user.into() })
    };
    let (Reply::Session { id: 9 }, Some(socket)) = ask(b"v.example", "joe") else { panic!("no session") };
    let maildir = system.dir.path().join("mail/v.example/joe/Maildir");
    let expected = format!("+OK {} {}\r\n", uid(VMAIL), maildir.display());
    let mut greeting = vec![0; expected.len()];
    fs::File::from(socket).read_exact(&mut greeting).unwrap();
    assert_eq!(String::from_utf8(greeting).unwrap(), expected);
    for (domain, user) in [(&b"v.example"[..], "../x"), (b"v.example", "Joe"), (b"none.example", "joe")] {
        assert!(matches!(ask(domain, user), (Reply::NoSession { id: 9, .. }, None)), "{user}");
    }
}

#[test]
fn a_system_user_logs_in_by_his_own_name_and_nobody_in_his_place() {
    let system = System::start();
    let auth = system.connect(QMAILA);
    let ask = |user: &str, session| auth.question(&Request::SystemUser { id: 9, user: user.into(), session });
    let (Reply::Session { id: 9 }, Some(socket)) = ask("ann", true) else { panic!("no session") };
    let expected = format!("+OK {} {}\r\n", uid(ANN), system.dir.path().join("home/ann/Maildir").display());
    let mut greeting = vec![0; expected.len()];
    fs::File::from(socket).read_exact(&mut greeting).unwrap();
    assert_eq!(String::from_utf8(greeting).unwrap(), expected);
    assert!(matches!(ask("ann", false), (Reply::Session { id: 9 }, None)), "to send mail needs no session");
    // `sales` is an address of ann's by users/assign; the rest are alias's.
    for user in ["sales", "ann-x", "nobody-here", "alias", "alias-x", "", "www-data", "@", "ann@h.example"] {
        for session in [true, false] {
            assert!(matches!(ask(user, session), (Reply::NoUser { id: 9, .. }, None)), "{user}");
        }
    }
    // uid 0 by users/assign, a lie of qmail-getpw, and nobody who could tell.
    for user in ["root", "liar", "nss"] {
        for session in [true, false] {
            assert!(matches!(ask(user, session), (Reply::NoSession { id: 9, .. }, None)), "{user}");
        }
    }
    let bob = ask("bob", false).0;
    assert!(if is_root() { matches!(bob, Reply::Session { .. }) } else { matches!(bob, Reply::NoSession { .. }) }, "{bob:?}");
    let begun = Instant::now();
    assert!(matches!(ask("silent", true), (Reply::NoSession { .. }, None)));
    assert!(begun.elapsed() >= Duration::from_secs(4), "qmail-getpw had its time");
}

#[test]
fn any_bytes_from_a_client_end_its_connection_and_nothing_else() {
    let system = System::start();
    let mut good = system.send();
    let body = sys::memfd::sealed(b"x").unwrap();
    let remote = Job::Remote {
        number: 1,
        message: 1,
        sender: Address::null(),
        recipients: Vec::new(),
        route: ipc::job::Route::Mx { domain: Domain::new(b"x").unwrap() },
        flags: 0,
        size: 0,
        options: None,
    };
    for role in [QMAILQ, QMAILA] {
        for bytes in [&b"x"[..], &[0; 100], &[1, 1], &[1, 255, 255], &[255; 32 * 1024], &[1; 33 * 1024], &remote.encode()] {
            for with_fd in [false, true] {
                let bad = system.connect(role);
                let sent = if with_fd { bad.socket.send_with_fd(bytes, body.as_fd()) } else { bad.socket.send(bytes) };
                assert!(sent.is_err() || bad.is_closed());
            }
        }
    }
    assert_eq!(good.deliver("ok", "ann@h.example").0, 'K');
    assert!(system.is_running());
}

#[test]
fn strangers_and_the_wrong_role_are_not_served() {
    if !is_root() {
        return skip("strangers_and_the_wrong_role_are_not_served");
    }
    let system = System::start();
    let stranger = system.connect(ANN);
    assert!(stranger.is_closed());
    // qmail-auth asks questions and gives no jobs; qmail-send the other way round.
    let mut auth = system.connect(QMAILA);
    auth.system("ok", "ann@h.example");
    assert!(auth.is_closed());
    let send = system.send();
    send.socket.send(&Request::Exists { id: 1, local: "ann".into() }.encode()).unwrap();
    assert!(send.is_closed());
}

#[test]
fn jobs_of_a_closed_connection_run_to_their_end() {
    let system = System::start();
    let mut gone = system.send();
    gone.mailbox("slow", "v.example", "joe", "");
    drop(gone);
    let mut send = system.send();
    assert_eq!(send.deliver("ok", "ann@h.example").0, 'K');
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(send.deliver("ok", "ann@h.example").0, 'K');
    assert!(system.is_running());
}

#[test]
fn the_end_of_the_lifeline_drains_and_leaves_nobody_behind() {
    let mut system = System::start();
    let mut send = system.send();
    let (_, text) = send.deliver("ok", "ann@h.example");
    let worker: i32 = said(&text, "pid").parse().unwrap();
    let slow = send.mailbox("slow", "v.example", "joe", "");
    let hang = send.mailbox("hang", "run.example", "joe", "");
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    system.lifeline = None;
    let (number, letter, _) = send.answer();
    assert_eq!((number, letter), (slow, 'K'), "what runs may end");
    let late = send.system("ok", "ann@h.example");
    let (number, letter, _) = send.answer();
    assert_eq!((number, letter), (late, 'Z'), "no new work");
    let (number, letter, _) = send.answer();
    assert_eq!((number, letter), (hang, 'Z'), "what hangs is stopped");
    assert_eq!(system.child.wait(), Ended::Code(0));
    assert!((4..8).contains(&start.elapsed().as_secs()));
    let gone = || rustix::process::test_kill_process(rustix::process::Pid::from_raw(worker).unwrap()).is_err();
    let until = Instant::now() + Duration::from_secs(2);
    while !gone() && !is_zombie(worker) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(gone() || is_zombie(worker));
}

/// Killed, and not yet reaped by whoever inherited it.
fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

#[test]
fn only_qmail_start_starts_it() {
    let child = Spawn::new(Path::new(env!("CARGO_BIN_EXE_qmail-lspawn"))).start().unwrap();
    assert_eq!(child.wait(), Ended::Code(111));
    let verdicts = [Verdict::Success, Verdict::Deferral, Verdict::Failure];
    assert_eq!(verdicts.map(Verdict::letter), *b"KZD");
}
