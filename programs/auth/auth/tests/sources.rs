//! Logins by other sources than the accounts: their order, what each verdict leads to, and whom a right password lets in. qmail-checkpw and
//! qmail-lspawn say what the test wants.
#![allow(clippy::unwrap_used)]

use accounts::{Accounts, Directory as _, UserName};
use control::{Id, Ids, Root};
use ipc::Message;
use ipc::auth::{Answer, Request};
use ipc::checkpw::{self, Verdict};
use qmail_auth::{Listeners, Server, Setup};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use sys::{Received, Seqpacket};
use wire::Domain;

const NO_LIMITS: (&str, &str) = ("authlimits", "failures=0\naccount=0\npause=0\n");
const PROGRAM: &str = "checkpassword /bin/x";

struct System {
    root: Root,
    run: Arc<OwnedFd>,
    /// What qmail-checkpw was asked: first word of the source, login, password.
    asked: Arc<Mutex<Vec<String>>>,
    _dir: tempfile::TempDir,
    _lifeline: OwnedFd,
}

/// A running qmail-auth with accounts ann and sue (suspended), whose password is `account`; it ends with the value.
fn system(files: &[(&str, &str)]) -> System {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path()).unwrap();
    for sub in [root.control(), root.users(), root.lib(), root.run().join("roles")] {
        std::fs::create_dir_all(sub).unwrap();
    }
    for (name, text) in [("me", "host.example\n"), ("virtualdomains", "v.example:joe\n")].iter().chain(files) {
        std::fs::write(root.control_file(name), text).unwrap();
    }
    std::fs::write(root.domains_file(), "a.example:64107:64107:/m\n").unwrap();
    let run: Arc<OwnedFd> = Arc::new(std::fs::File::open(root.run()).unwrap().into());
    let listeners =
        Listeners { auth: Some(sys::seqpacket::listen(run.as_fd(), "roles/auth.sock").unwrap()), ..Listeners::default() };
    let id = Id { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let mut accounts = Accounts::open(&root.lib().join("accounts.sqlite")).unwrap();
    let domain = Domain::new(b"a.example").unwrap();
    let hash = accounts::password::hash(b"account").unwrap();
    for name in ["ann", "sue"] {
        accounts.add_user(&domain, &UserName::new(name.as_bytes()).unwrap(), &hash, 0).unwrap();
    }
    let suspended = accounts::UserChange::Suspension { suspended: true, refuses_mail: false };
    accounts.change_user(&domain, &UserName::new(b"sue").unwrap(), &suspended).unwrap();
    let setup = Setup { root: root.clone(), accounts, ids: Ids::Caller(id), run: Arc::clone(&run) };
    let (far, lifeline) = rustix::pipe::pipe().unwrap();
    std::thread::spawn(move || Server::new(setup, listeners).unwrap().run(Some(&far)).unwrap());
    System { root, run, asked: Arc::default(), _dir: dir, _lifeline: lifeline }
}

/// As [`system`], with a qmail-lspawn and a qmail-checkpw. The password says what a source answers: `shadow-wrong checkpassword-right`.
fn whole(sources: &str) -> System {
    let system = system(&[NO_LIMITS, ("authsources", sources)]);
    system.serve_lspawn();
    system.serve_checkpw();
    system
}

fn serve<Q: Message>(run: &Arc<OwnedFd>, name: &str, answer: impl Fn(Q) -> (Vec<u8>, Option<OwnedFd>) + Send + 'static) {
    let listener = sys::seqpacket::listen(run.as_fd(), name).unwrap();
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

impl System {
    fn serve_lspawn(&self) {
        serve(&self.run, "roles/lspawn.sock", |request: ipc::lspawn::Request| {
            use ipc::lspawn::Answer::{NoSession, NoUser, Session};
            match request {
                ipc::lspawn::Request::SystemUser { id, user, .. } if &*user == b"root" => {
                    (NoUser { id, text: "x".into() }.encode(), None)
                }
                ipc::lspawn::Request::SystemUser { id, user, .. } if &*user == b"nohome" => {
                    (NoSession { id, text: "x".into() }.encode(), None)
                }
                ipc::lspawn::Request::SystemUser { id, session: false, .. } => (Session { id }.encode(), None),
                ipc::lspawn::Request::SystemUser { id, .. } | ipc::lspawn::Request::Session { id, .. } => {
                    (Session { id }.encode(), Some(rustix::pipe::pipe().unwrap().0))
                }
                other => panic!("{other:?}"),
            }
        });
    }

    fn serve_checkpw(&self) {
        let asked = Arc::clone(&self.asked);
        serve(&self.run, "roles/checkpw.sock", move |request: checkpw::Request| {
            let checkpw::Request::Check { id, source, service, login, password, remote } = request;
            assert!(remote == Some("192.0.2.1".parse().unwrap()) && (&*service == b"smtp" || &*service == b"pop3"));
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let (source, login, password) = (text(&source), text(&login), text(password.expose()));
            let word = source.split(' ').next().unwrap();
            assert!(word != "checkpassword" || source == PROGRAM, "{source}");
            asked.lock().unwrap().push(format!("{word} {login} {password}"));
            let said = password.split(' ').find_map(|word_of| word_of.strip_prefix(&format!("{word}-")));
            let verdict = match said {
                // Whoever asks about nobody must not be let in by the answer.
                _ if login == "-" => Verdict::Right { user: "ann@a.example".into() },
                Some("right") => Verdict::Right { user: login.as_str().into() },
                Some("wrong") => Verdict::Wrong {},
                Some("unavailable") => Verdict::Unavailable { text: "x".into() },
                Some(said) => match said.strip_prefix("right=") {
                    Some(user) => Verdict::Right { user: user.into() },
                    None => panic!("{said}"),
                },
                None => Verdict::NoSuchUser {},
            };
            (checkpw::Answer::Judged { id, verdict }.encode(), None)
        });
    }

    fn ask(&self, request: &Request) -> (String, Option<OwnedFd>) {
        let socket = Seqpacket::connect(self.run.as_fd(), "roles/auth.sock").unwrap();
        socket.set_deadline(Duration::from_secs(30)).unwrap();
        socket.send(&request.encode()).unwrap();
        let mut buf = vec![0; 40_000];
        let Received::Datagram(len, fd) = socket.recv_with_fd(&mut buf).unwrap() else { panic!("closed") };
        let said = match Answer::decode(&buf[..len]).unwrap() {
            Answer::LoggedIn { id: 9, user } => String::from_utf8(user.0).unwrap(),
            Answer::Refused { id: 9, .. } => "refused".to_owned(),
            Answer::Unavailable { id: 9, .. } => "unavailable".to_owned(),
            other => panic!("{other:?}"),
        };
        (said, fd)
    }

    fn login_for(&self, service: &str, login: &str, password: &str) -> (String, Option<OwnedFd>) {
        let remote = Some("192.0.2.1".parse().unwrap());
        self.ask(&Request::Login { id: 9, service: service.into(), login: login.into(), password: password.into(), remote })
    }

    fn login(&self, login: &str, password: &str) -> String {
        self.login_for("smtp", login, password).0
    }

    /// What qmail-checkpw was asked since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

#[test]
fn without_the_file_nothing_is_asked_but_the_accounts() {
    let system = system(&[NO_LIMITS]);
    system.serve_lspawn();
    system.serve_checkpw();
    assert_eq!(system.login("ann@a.example", "account"), "ann@a.example");
    for login in ["ann@a.example", "joe", "joe@host.example", "bob@a.example"] {
        assert_eq!(system.login(login, "shadow-right pam-right checkpassword-right"), "refused");
    }
    assert!(system.asked().is_empty());
}

#[test]
fn the_order_is_that_of_the_file_and_wrong_is_the_last_word() {
    let system = whole("accounts\nshadow\ncheckpassword /bin/x\n");
    assert_eq!(system.login("ann@a.example", "account"), "ann@a.example");
    assert!(system.asked().is_empty());
    // The accounts know ann: no other source may let her in, and it is asked about nobody.
    assert_eq!(system.login("ann@a.example", "checkpassword-right"), "refused");
    assert_eq!(system.asked(), ["checkpassword - -"]);
    // They do not know joe.
    assert_eq!(system.login("joe", "shadow-right"), "joe@host.example");
    assert_eq!(system.asked(), ["shadow joe shadow-right"]);
    assert_eq!(system.login("joe", "shadow-wrong checkpassword-right"), "refused");
    assert_eq!(system.asked(), ["shadow joe shadow-wrong checkpassword-right", "checkpassword - -"]);
    assert_eq!(system.login("joe", "checkpassword-right"), "joe@host.example");
    assert_eq!(system.asked(), ["shadow joe checkpassword-right", "checkpassword joe checkpassword-right"]);
    assert_eq!(system.login("joe", "x"), "refused");
    assert_eq!(system.login("joe", "shadow-unavailable checkpassword-right"), "unavailable", "never on to a weaker one");
    assert_eq!(system.login("joe", "checkpassword-unavailable"), "unavailable", "never a refusal");
    std::fs::write(system.root.control_file("authsources"), "checkpassword /bin/x\nshadow\naccounts\n").unwrap();
    system.asked();
    assert_eq!(system.login("joe", "x"), "refused");
    assert_eq!(system.asked(), ["checkpassword joe x", "shadow joe x"], "the file is followed");
    assert_eq!(system.login("ann@a.example", "account"), "ann@a.example");
    std::fs::write(system.root.control_file("authsources"), "accounts\nshadw\n").unwrap();
    for login in ["ann@a.example", "joe"] {
        assert_eq!(system.login(login, "account"), "unavailable", "a slip in the file lets nobody in and refuses nobody");
    }
}

#[test]
fn whom_a_source_lets_in() {
    let system = whole("accounts\nshadow\ncheckpassword /bin/x\n");
    for (login, password, expected) in [
        // Other spellings of the same user.
        ("JOE", "shadow-right", "joe@host.example"),
        ("joe@HOST.example", "shadow-right", "joe@host.example"),
        // Where mail goes is not who somebody is: shadow is not asked, and joe-ann is no name of his.
        ("ann@v.example", "shadow-right", "refused"),
        ("joe@elsewhere.example", "shadow-right", "refused"),
        ("joe@a.example", "shadow-right", "refused"),
        ("", "shadow-right", "refused"),
        // Names that a program gives.
        ("anything", "checkpassword-right=joe", "joe@host.example"),
        ("anything", "checkpassword-right=ann@a.example", "ann@a.example"),
        ("x@elsewhere.example", "checkpassword-right=joe", "joe@host.example"),
        ("x@elsewhere.example", "checkpassword-right", "refused"),
        // Nobody, somebody who is suspended, root.
        ("bob@a.example", "checkpassword-right", "refused"),
        ("anything", "checkpassword-right=sue@a.example", "refused"),
        ("anything", "checkpassword-right=", "refused"),
        ("anything", "checkpassword-right=a\0b@a.example", "refused"),
        ("sue@a.example", "account", "refused"),
        ("root", "shadow-right", "refused"),
        ("nohome", "shadow-right", "unavailable"),
    ] {
        for service in ["smtp", "pop3"] {
            let (said, fd) = system.login_for(service, login, password);
            assert_eq!(said, expected, "{login} {password}");
            assert_eq!(fd.is_some(), service == "pop3" && expected.contains('@'), "{login} {password}");
        }
    }
}

#[test]
fn names_reach_a_program_as_they_were_written() {
    let system = whole("shadow\ncheckpassword /bin/x\n");
    for login in ["$(x)'\"`;|&*?", "joe-x", "Joe", "uid=*)(uid=*", "' OR '1'='1", "\u{e9}@host.example", "a:b", "a\nb"] {
        system.login(login, "x");
        assert!(system.asked().contains(&format!("checkpassword {login} x")), "{login}");
    }
}

#[test]
fn an_account_needs_no_password_of_its_own() {
    let system = whole("shadow\ncheckpassword /bin/x\n");
    assert_eq!(system.login("ann@a.example", "account"), "refused");
    assert_eq!(system.login("ann@a.example", "checkpassword-right"), "ann@a.example", "the account is open to a source");
}

#[test]
fn without_qmail_checkpw_it_is_temporary() {
    let system = system(&[NO_LIMITS, ("authsources", "accounts\nshadow\n")]);
    system.serve_lspawn();
    assert_eq!(system.login("joe", "shadow-right"), "unavailable");
    assert_eq!(system.login("ann@a.example", "account"), "ann@a.example", "accounts do not wait for it");
    system.serve_checkpw();
    assert_eq!(system.login("joe", "shadow-right"), "joe@host.example", "its return is noticed");
}

#[test]
fn while_qmail_checkpw_is_away_no_name_can_be_told_from_another_and_guesses_count() {
    let limits = ("authlimits", "failures=0\naccount=2\npause=0\n");
    let system = system(&[limits, ("authsources", &format!("accounts\n{PROGRAM}\n"))]);
    assert_eq!(system.login("ann@a.example", "guessed"), "unavailable");
    assert_eq!(system.login("nobody@a.example", "guessed"), "unavailable", "the program was to be asked");
    assert_eq!(system.login("ann@a.example", "guessed"), "unavailable");
    assert_eq!(system.login("ann@a.example", "account"), "refused", "too many guesses");
}

#[test]
fn failures_count_for_a_system_user_however_he_is_spelt() {
    let system = system(&[("authlimits", "failures=0\naccount=3\npause=0\n"), ("authsources", "shadow\n")]);
    system.serve_lspawn();
    system.serve_checkpw();
    for login in ["joe", "JOE", "joe@host.example"] {
        assert_eq!(system.login(login, "shadow-wrong"), "refused");
    }
    system.asked();
    assert_eq!(system.login("joe@HOST.example", "shadow-right"), "refused");
    assert!(system.asked().is_empty(), "refused unheard");
    assert_eq!(system.login("bob", "shadow-right"), "bob@host.example");
}
