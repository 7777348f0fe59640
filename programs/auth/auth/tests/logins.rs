//! Logins by every mechanism, over the real sockets of a qmail-auth: what is right, what is not, and that the two cannot be told apart
//! where they must not.
#![allow(clippy::unwrap_used)]

use accounts::secrets::Kind;
use accounts::{Accounts, Directory as _, Secrets as _, UserName};
use control::{Id, Ids, Root};
use ipc::Message;
use ipc::admin::{AccountAnswer, AccountRequest};
use ipc::auth::{Answer, Request};
use qmail_auth::{Listeners, Server, Setup};
use sasl::scram::{Hash, client};
use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::{Received, Seqpacket};
use wire::{Address, Domain};

const ANN: &str = "ann@a.example";
const HERE: &str = "192.0.2.1";
/// So that tests of other things are never refused for their failures.
const NO_LIMITS: &str = "failures=0\naccount=0\npause=0\n";

struct System {
    root: Root,
    run: Arc<OwnedFd>,
    _dir: tempfile::TempDir,
    _lifeline: OwnedFd,
}

/// A running qmail-auth with a virtual domain; it ends with the value.
fn system(files: &[(&str, &str)]) -> System {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path()).unwrap();
    for sub in [root.control(), root.users(), root.lib(), root.run().join("roles"), root.run().join("admin")] {
        std::fs::create_dir_all(sub).unwrap();
    }
    for (name, text) in [("me", "host.example\n")].iter().chain(files) {
        std::fs::write(root.control_file(name), text).unwrap();
    }
    std::fs::write(root.domains_file(), "a.example:64107:64107:/m\nb.example:64107:64107:/m\n").unwrap();
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
    let (far, lifeline) = rustix::pipe::pipe().unwrap();
    std::thread::spawn(move || Server::new(setup, listeners).unwrap().run(Some(&far)).unwrap());
    System { root, run, _dir: dir, _lifeline: lifeline }
}

impl System {
    fn connect(&self, name: &str) -> Seqpacket {
        let socket = Seqpacket::connect(self.run.as_fd(), name).unwrap();
        socket.set_deadline(Duration::from_secs(20)).unwrap();
        socket
    }

    fn client(&self) -> Client {
        Client { socket: self.connect("roles/auth.sock"), remote: HERE, service: "smtp", steps: Cell::new(0) }
    }

    fn admin(&self, request: &AccountRequest) -> AccountAnswer {
        let socket = self.connect("admin/auth.sock");
        socket.send(&request.encode()).unwrap();
        receive(&socket)
    }

    fn user(&self, address: &str, password: &str, keep_clear: bool) {
        let (address, password) = (Address::new(address.as_bytes()).unwrap(), password.into());
        let request = match keep_clear {
            true => AccountRequest::UserKeepClear { address, password, add: true },
            false => AccountRequest::UserAdd { address, password },
        };
        assert_eq!(self.admin(&request), AccountAnswer::Ok {});
    }

    fn app_password(&self, name: &str, service: &str) -> String {
        let address = Address::new(ANN.as_bytes()).unwrap();
        match self.admin(&AccountRequest::AppPasswordAdd { address, name: name.into(), service: service.into() }) {
            AccountAnswer::AppPassword { password } => String::from_utf8(password.0).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// The database, as an administrator's tool that goes round us would open it.
    fn accounts(&self) -> (Accounts, Domain, UserName) {
        let accounts = Accounts::open(&self.root.lib().join("accounts.sqlite")).unwrap();
        (accounts, Domain::new(b"a.example").unwrap(), UserName::new(b"ann").unwrap())
    }
}

fn receive<A: Message>(socket: &Seqpacket) -> A {
    let mut buf = vec![0; 40_000];
    match socket.recv(&mut buf).unwrap() {
        Received::Datagram(len, _) => A::decode(&buf[..len]).unwrap(),
        Received::End => panic!("closed"),
    }
}

/// How a login ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    In(String),
    Refused,
    Unavailable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Scram(Hash),
    /// With the channel's exporter.
    Plus(Hash),
    CramMd5,
    Apop,
}

const WAYS: [Way; 7] = [
    Way::Plain,
    Way::Scram(Hash::Sha1),
    Way::Scram(Hash::Sha256),
    Way::Plus(Hash::Sha1),
    Way::Plus(Hash::Sha256),
    Way::CramMd5,
    Way::Apop,
];
const ALL: (&str, &str) = ("authmechanisms", "PLAIN\nSCRAM-SHA-1\nSCRAM-SHA-256\nCRAM-MD5\nAPOP\n");
const EXPORTER: &[u8] = &[9; 32];

/// A qmail-smtpd or qmail-popup, and the client behind it.
struct Client {
    socket: Seqpacket,
    remote: &'static str,
    service: &'static str,
    /// Answers heard.
    steps: Cell<u32>,
}

impl Client {
    fn ask(&self, request: &Request) -> Answer {
        self.steps.set(self.steps.get() + 1);
        self.socket.send(&request.encode()).unwrap();
        receive(&self.socket)
    }

    fn remote(&self) -> Option<std::net::IpAddr> {
        Some(self.remote.parse().unwrap())
    }

    fn start(&self, mechanism: &str, initial: Option<&[u8]>, bound: bool) -> Answer {
        self.ask(&Request::SaslStart {
            id: 5,
            service: self.service.into(),
            mechanism: mechanism.into(),
            initial: initial.map(|initial| initial.into()),
            remote: self.remote(),
            exporter: bound.then(|| EXPORTER.into()),
            end_point: None,
            certificate: None,
        })
    }

    /// EXTERNAL, with whom the client wants to be; `certificate`: what the caller says of the client's.
    fn external(&self, certificate: Option<&str>, identity: Option<&str>) -> Answer {
        self.ask(&Request::SaslStart {
            id: 5,
            service: self.service.into(),
            mechanism: "EXTERNAL".into(),
            initial: identity.map(Into::into),
            remote: self.remote(),
            exporter: None,
            end_point: None,
            certificate: certificate.map(Into::into),
        })
    }

    fn step(&self, exchange: u64, response: &[u8]) -> Answer {
        self.ask(&Request::SaslStep { id: 5, exchange, response: response.into() })
    }

    fn login(&self, way: Way, login: &str, password: &str) -> End {
        end(match way {
            Way::Plain => {
                let (login, password) = (login.into(), password.into());
                self.ask(&Request::Login { id: 5, service: self.service.into(), login, password, remote: self.remote() })
            }
            Way::Scram(hash) => self.scram(hash, false, login, password),
            Way::Plus(hash) => self.scram(hash, true, login, password),
            Way::CramMd5 => {
                let Answer::Challenge { exchange, data, .. } = self.start("CRAM-MD5", None, false) else { panic!() };
                assert!(data.starts_with(b"<") && data.ends_with(b">"), "{data:?}");
                self.step(exchange, format!("{login} {}", hmac_md5(password, &data)).as_bytes())
            }
            Way::Apop => {
                let timestamp = "<1.2@host.example>";
                let digest = hex(&md5(&[timestamp.as_bytes(), password.as_bytes()]));
                let (login, timestamp, digest) = (login.into(), timestamp.into(), digest.as_str().into());
                self.ask(&Request::Apop { id: 5, login, timestamp, digest, remote: self.remote() })
            }
        })
    }

    fn scram(&self, hash: Hash, plus: bool, login: &str, password: &str) -> Answer {
        let bare = format!("n={},r=nonce", login.replace('=', "=3D").replace(',', "=2C"));
        let (header, data) = if plus { ("p=tls-exporter,,", EXPORTER) } else { ("n,,", &b""[..]) };
        let name = if plus { format!("{}-PLUS", hash.name()) } else { hash.name().to_owned() };
        match self.start(&name, Some(format!("{header}{bare}").as_bytes()), plus) {
            Answer::Challenge { exchange, data: first, .. } => {
                let header = [header.as_bytes(), data].concat();
                let (last, signature) = client::prove(hash, password.as_bytes(), &bare, &first, &header).unwrap();
                match self.step(exchange, &last) {
                    Answer::Challenge { exchange, data, .. } => {
                        assert_eq!(*data, *signature, "the server knows the password, too");
                        self.step(exchange, b"")
                    }
                    other => other,
                }
            }
            other => other,
        }
    }
}

fn end(answer: Answer) -> End {
    match answer {
        Answer::LoggedIn { user, .. } => End::In(String::from_utf8(user.0).unwrap()),
        Answer::Refused { .. } => End::Refused,
        Answer::Unavailable { .. } => End::Unavailable,
        other => panic!("{other:?}"),
    }
}

/// HMAC-MD5 (RFC 2104), written out: the other side of CRAM-MD5.
fn hmac_md5(key: &str, text: &[u8]) -> String {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key.as_bytes());
    let pad = |byte: u8| block.map(|b| b ^ byte);
    hex(&md5(&[&pad(0x5c), &md5(&[&pad(0x36), text])]))
}

fn md5(parts: &[&[u8]]) -> [u8; 16] {
    use md5::Digest as _;
    parts.iter().fold(md5::Md5::new(), |sum, part| sum.chain_update(part)).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_mechanism_lets_the_right_one_in() {
    let system = system(&[ALL]);
    system.user(ANN, "open sesame", true);
    for way in WAYS.into_iter().filter(|way| *way != Way::Apop) {
        for login in [ANN, "Ann@A.example"] {
            assert_eq!(system.client().login(way, login, "open sesame"), End::In(ANN.to_owned()), "{way:?}");
        }
        assert_eq!(system.client().login(way, ANN, "Open sesame"), End::Refused, "{way:?}");
    }
    // There is no qmail-lspawn here that would give a session: who is not refused gets so far.
    let pop3 = Client { service: "pop3", ..system.client() };
    for way in WAYS {
        assert_eq!(pop3.login(way, ANN, "open sesame"), End::Unavailable, "{way:?}");
        assert_eq!(pop3.login(way, ANN, "open sesamE"), End::Refused, "{way:?}");
    }
}

#[test]
fn who_is_not_there_or_suspended_takes_the_same_steps_as_a_wrong_password() {
    let system = system(&[ALL, ("authlimits", NO_LIMITS)]);
    system.user(ANN, "open sesame", true);
    system.user("sue@a.example", "open sesame", true);
    let (mut accounts, domain, _) = system.accounts();
    accounts
        .change_user(
            &domain,
            &UserName::new(b"sue").unwrap(),
            &accounts::UserChange::Suspension { suspended: true, refuses_mail: false },
        )
        .unwrap();
    accounts.add_user(&domain, &UserName::new(b"imported").unwrap(), "$1$saltsalt$Yo6tRKYGO/jWyb1etwHDS/", 0).unwrap();
    for way in WAYS {
        let steps = |login: &str, password: &str| {
            let client = system.client();
            assert_eq!(client.login(way, login, password), End::Refused, "{way:?} {login}");
            client.steps.get()
        };
        let wrong = steps(ANN, "wrong");
        assert_eq!(steps("sue@a.example", "open sesame"), wrong, "{way:?}: suspended");
        for nobody in ["bob@a.example", "bob@elsewhere.example", "bob", "imported@a.example", "ann+x@a.example"] {
            assert_eq!(steps(nobody, "wrong"), wrong, "{way:?}: {nobody}");
        }
    }
    // Salt and iterations are the same each time, of those who are there and of those who are not.
    let first = |login: &str, nonce: &str| match system.client().start(
        "SCRAM-SHA-1",
        Some(format!("n,,n={login},r={nonce}").as_bytes()),
        false,
    ) {
        Answer::Challenge { data, .. } => String::from_utf8(data.0).unwrap().split_once(",s=").unwrap().1.to_owned(),
        other => panic!("{other:?}"),
    };
    let all = [ANN, "sue@a.example", "bob@a.example", "imported@a.example", "x"].map(|login| {
        assert_eq!(first(login, "a"), first(&login.to_uppercase(), "b"), "{login}");
        first(login, "c")
    });
    assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len(), "each has its own");
    let shape = |salt: &String| (salt.len(), salt.split_once(",i=").map(|(_, iterations)| iterations.to_owned()));
    assert!(all.iter().all(|salt| shape(salt) == shape(&all[0])), "{all:?}");
}

#[test]
fn accounts_that_are_no_source_let_nobody_in_but_by_app_passwords() {
    let system = system(&[ALL, ("authlimits", NO_LIMITS), ("authsources", "shadow\n")]);
    system.user(ANN, "open sesame", true);
    let app = system.app_password("phone", "all");
    for (password, expected) in [("open sesame", End::Refused), (app.as_str(), End::In(ANN.to_owned()))] {
        assert_eq!(system.client().login(Way::Plain, ANN, password), expected);
        for way in WAYS.into_iter().filter(|way| !matches!(way, Way::Plain | Way::CramMd5)) {
            assert_eq!(
                system.client().login(way, ANN, password),
                End::Unavailable,
                "{way:?}: there is nobody who could judge it"
            );
        }
    }
    assert_eq!(end(system.client().start("CRAM-MD5", None, false)), End::Unavailable);
}

/// R17: names made to be something else where they are not quoted.
#[test]
fn odd_names_are_nobodys_by_every_mechanism() {
    let system = system(&[ALL, ("authlimits", NO_LIMITS)]);
    system.user(ANN, "open sesame", true);
    let long = "a".repeat(5000);
    for login in [
        "",
        "' OR '1'='1",
        "ann@a.example' --",
        "ann@a.example'; DELETE FROM account; --",
        "*)(uid=*@a.example",
        "*@a.example",
        "a_n@a.example",
        "a%@a.example",
        "$(id)@a.example",
        "`id`@a.example",
        "ann@a.example|id",
        "ann@a.example\r\n",
        "../ann@a.example",
        "ann/../ann@a.example",
        "ann\0@a.example",
        "ann@a.example\0",
        "ann@a.example,x=y",
        "ann=40a.example",
        "ann\u{ad}@a.example",
        "\u{ff41}nn@a.example",
        &long,
    ] {
        for way in WAYS {
            let ended = system.client().login(way, login, "open sesame");
            assert_eq!(ended, End::Refused, "{way:?} {}", login.escape_debug());
        }
    }
    for login in [&b"\xff\xfe@a.example"[..], b"ann\xff@a.example"] {
        let message = [b"n,,n=", login, b",r=x"].concat();
        let Answer::Challenge { exchange, .. } = system.client().start("SCRAM-SHA-1", Some(&message), false) else { panic!() };
        assert_eq!(end(system.client().step(exchange, b"x")), End::Unavailable, "another connection's exchange");
    }
    assert_eq!(system.client().login(Way::Plain, ANN, "open sesame"), End::In(ANN.to_owned()));
}

#[test]
fn nobody_acts_for_another() {
    let system = system(&[ALL, ("authlimits", NO_LIMITS)]);
    system.user(ANN, "open sesame", false);
    system.user("bob@a.example", "bob's", false);
    let login = |header: &str| {
        let client = system.client();
        let bare = format!("n={ANN},r=nonce");
        let Answer::Challenge { exchange, data, .. } =
            client.start("SCRAM-SHA-256", Some(format!("{header}{bare}").as_bytes()), false)
        else {
            panic!()
        };
        let (last, _) = client::prove(Hash::Sha256, b"open sesame", &bare, &data, header.as_bytes()).unwrap();
        let answer = client.step(exchange, &last);
        (matches!(answer, Answer::Challenge { .. }), client.steps.get())
    };
    assert_eq!(login(&format!("n,a={ANN},")), (true, 2));
    assert_eq!(login("n,a=bob@a.example,"), (false, 2));
}

#[test]
fn what_is_no_message_is_refused_and_counted() {
    let system = system(&[ALL, ("authlimits", "failures=3\npause=0\n")]);
    system.user(ANN, "open sesame", true);
    let client = system.client();
    // Downgraded, bound to another channel, the server's turn taken.
    assert_eq!(end(client.start("SCRAM-SHA-1", Some(format!("y,,n={ANN},r=x").as_bytes()), true)), End::Refused);
    assert_eq!(end(client.start("SCRAM-SHA-1-PLUS", Some(format!("p=tls-unique,,n={ANN},r=x").as_bytes()), true)), End::Refused);
    assert_eq!(end(client.start("CRAM-MD5", Some(b"x"), false)), End::Refused);
    assert_eq!(client.login(Way::Plain, ANN, "open sesame"), End::Refused, "three were enough");
    let elsewhere = Client { remote: "198.51.100.1", ..system.client() };
    for (mechanism, bound) in [("SCRAM-SHA-1-PLUS", false), ("PLAIN", true), ("LOGIN", true), ("XOAUTH2", true), ("", true)] {
        assert_eq!(end(elsewhere.start(mechanism, None, bound)), End::Unavailable, "{mechanism}");
    }
    // An exchange begins without a message, too; once used it is over.
    let Answer::Challenge { exchange, data, .. } = elsewhere.start("SCRAM-SHA-1", None, false) else { panic!() };
    assert!(data.is_empty());
    assert!(matches!(elsewhere.step(exchange, format!("n,,n={ANN},r=x").as_bytes()), Answer::Challenge { .. }));
    for gone in [exchange, 0, u64::MAX] {
        assert_eq!(end(elsewhere.step(gone, b"x")), End::Unavailable);
    }
}

#[test]
fn the_last_word_of_scram_is_an_empty_one() {
    let system = system(&[ALL]);
    system.user(ANN, "open sesame", false);
    let client = system.client();
    let bare = format!("n={ANN},r=nonce");
    let Answer::Challenge { exchange, data, .. } = client.start("SCRAM-SHA-1", Some(format!("n,,{bare}").as_bytes()), false)
    else {
        panic!()
    };
    let (last, _) = client::prove(Hash::Sha1, b"open sesame", &bare, &data, b"n,,").unwrap();
    let Answer::Challenge { exchange, .. } = client.step(exchange, &last) else { panic!() };
    assert_eq!(end(client.step(exchange, b"x")), End::Refused);
}

#[test]
fn exchanges_are_bounded() {
    let system = system(&[ALL]);
    let client = system.client();
    let begin = || match client.start("CRAM-MD5", None, false) {
        Answer::Challenge { exchange, .. } => exchange,
        other => panic!("{other:?}"),
    };
    let first = begin();
    let kept = begin();
    for _ in 0..63 {
        begin();
    }
    assert_eq!(end(client.step(first, b"x y")), End::Unavailable, "the oldest of an address goes first");
    assert_eq!(end(client.step(kept, b"x y")), End::Refused);
}

#[test]
fn imported_hashes_are_made_anew_by_the_first_login_and_then_scram_works() {
    let system = system(&[ALL]);
    let (mut accounts, domain, ann) = system.accounts();
    let stored = [
        "$1$saltsalt$Yo6tRKYGO/jWyb1etwHDS/",
        "$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW",
        "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$6JlLzEdKMvGk83Zgd3owplAejssJr2SFlJFlOc7i54A",
        "{PLAIN}open sesame",
    ];
    for stored in stored {
        accounts.add_user(&domain, &ann, stored, 0).unwrap();
        let client = system.client();
        assert_eq!(client.login(Way::Plain, ANN, "wrong"), End::Refused, "{stored}");
        assert_eq!(client.login(Way::Scram(Hash::Sha1), ANN, "open sesame"), End::Refused, "{stored}");
        assert_eq!(client.login(Way::Plain, ANN, "open sesame"), End::In(ANN.to_owned()), "{stored}");
        let until = Instant::now() + Duration::from_secs(30);
        while accounts.secret(&domain, b"ann", Kind::ScramSha256).unwrap().is_none() {
            assert!(Instant::now() < until, "{stored}: no keys");
            std::thread::sleep(Duration::from_millis(5));
        }
        let hash = accounts.credentials(&domain, b"ann").unwrap().unwrap().password_hash;
        assert!(hash.starts_with("$argon2id$"), "{}", *hash);
        for way in [Way::Plain, Way::Scram(Hash::Sha1), Way::Scram(Hash::Sha256)] {
            assert_eq!(system.client().login(way, ANN, "open sesame"), End::In(ANN.to_owned()), "{stored} {way:?}");
        }
        assert_eq!(accounts.secret(&domain, b"ann", Kind::Clear).unwrap(), None, "never by itself");
        accounts.remove_user(&domain, &ann).unwrap();
    }
    accounts.add_user(&domain, &ann, "$2b$31$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW", 0).unwrap();
    assert_eq!(system.client().login(Way::Plain, ANN, "open sesame"), End::Unavailable, "nobody has the time");
}

#[test]
fn a_password_in_clear_is_kept_for_whom_it_was_asked_and_goes_with_the_password() {
    let system = system(&[ALL, ("authlimits", NO_LIMITS)]);
    system.user(ANN, "open sesame", false);
    let (accounts, domain, _) = system.accounts();
    let is_kept = || accounts.secret(&domain, b"ann", Kind::Clear).unwrap().is_some();
    let works = |way, password: &str| system.client().login(way, ANN, password) == End::In(ANN.to_owned());
    assert!(!is_kept() && !works(Way::CramMd5, "open sesame"));
    let address = Address::new(ANN.as_bytes()).unwrap();
    let keep = |password: &str| AccountRequest::UserKeepClear { address: address.clone(), password: password.into(), add: false };
    assert_eq!(system.admin(&keep("second")), AccountAnswer::Ok {});
    assert!(is_kept() && works(Way::CramMd5, "second") && works(Way::Scram(Hash::Sha1), "second"));
    assert!(!works(Way::CramMd5, "open sesame") && !works(Way::Scram(Hash::Sha1), "open sesame"));
    let request = AccountRequest::UserPassword { address: address.clone(), password: "third".into() };
    assert_eq!(system.admin(&request), AccountAnswer::Ok {});
    assert!(
        !is_kept() && !works(Way::CramMd5, "third") && !works(Way::CramMd5, "second") && works(Way::Scram(Hash::Sha256), "third")
    );
}

#[test]
fn app_passwords_by_service_and_mechanism() {
    let system = system(&[ALL, ("authlimits", NO_LIMITS)]);
    system.user(ANN, "open sesame", true);
    let (phone, any) = (system.app_password("phone", "pop3"), system.app_password("laptop", "all"));
    let (smtp, pop3) = (system.client(), Client { service: "pop3", ..system.client() });
    for way in [Way::Plain, Way::Scram(Hash::Sha1), Way::Plus(Hash::Sha256)] {
        assert_eq!(smtp.login(way, ANN, &any), End::In(ANN.to_owned()), "{way:?}");
        assert_eq!(smtp.login(way, ANN, &phone), End::Refused, "{way:?}");
        // As far as it goes without qmail-lspawn.
        assert_eq!(pop3.login(way, ANN, &phone), End::Unavailable, "{way:?}");
        assert_eq!(smtp.login(way, ANN, "open sesame"), End::In(ANN.to_owned()), "{way:?}: the main password goes on working");
        assert_eq!(smtp.login(way, "bob@a.example", &any), End::Refused, "{way:?}");
    }
    let address = || Address::new(ANN.as_bytes()).unwrap();
    let list = || match system.admin(&AccountRequest::AppPasswordList { address: address() }) {
        AccountAnswer::AppPasswords { rows } => rows,
        other => panic!("{other:?}"),
    };
    let rows = list();
    let names: Vec<_> = rows.iter().map(|row| (row.name.to_vec(), row.service.to_vec())).collect();
    assert_eq!(names, [(b"laptop".to_vec(), b"all".to_vec()), (b"phone".to_vec(), b"pop3".to_vec())]);
    let now_s = sys::clock::unix_s();
    assert!(rows.iter().all(|row| row.used_s % 86_400 == 0 && now_s - row.used_s < 2 * 86_400 && now_s - row.created_s < 60));
    // A domain may want nothing else.
    std::fs::write(system.root.control_file("apppasswordsonly"), "A.example\n").unwrap();
    for way in [Way::Plain, Way::Scram(Hash::Sha1), Way::CramMd5] {
        assert_eq!(smtp.login(way, ANN, "open sesame"), End::Refused, "{way:?}");
    }
    assert_eq!(smtp.login(Way::Plain, ANN, &any), End::In(ANN.to_owned()));
    system.user("new@a.example", "has none yet", false);
    assert_eq!(smtp.login(Way::Plain, "new@a.example", "has none yet"), End::In("new@a.example".to_owned()));
    let remove = |name: &str| system.admin(&AccountRequest::AppPasswordRemove { address: address(), name: name.into() });
    assert_eq!(remove("laptop"), AccountAnswer::Ok {});
    for way in [Way::Plain, Way::Scram(Hash::Sha1)] {
        assert_eq!(smtp.login(way, ANN, &any), End::Refused, "{way:?}: revoked");
    }
    assert!(matches!(remove("laptop"), AccountAnswer::Failed { temporary: false, .. }));
    for (address, name, service) in [(ANN, "phone", "all"), (ANN, "", "all"), (ANN, "x", "imap"), ("bob@a.example", "x", "all")] {
        let address = Address::new(address.as_bytes()).unwrap();
        let request = AccountRequest::AppPasswordAdd { address, name: name.into(), service: service.into() };
        assert!(matches!(system.admin(&request), AccountAnswer::Failed { temporary: false, .. }), "{request:?}");
    }
    let nobody = AccountRequest::AppPasswordList { address: Address::new(b"bob@a.example").unwrap() };
    assert!(matches!(system.admin(&nobody), AccountAnswer::Failed { temporary: false, .. }));
    // A suspended account's app passwords are suspended with it.
    let (mut accounts, domain, ann) = system.accounts();
    accounts.change_user(&domain, &ann, &accounts::UserChange::Suspension { suspended: true, refuses_mail: false }).unwrap();
    for way in [Way::Plain, Way::Scram(Hash::Sha1)] {
        assert_eq!(pop3.login(way, ANN, &phone), End::Refused, "{way:?}: suspended");
    }
}

#[test]
fn guessing_is_slowed_and_then_refused_by_every_mechanism_alike() {
    for way in WAYS {
        let system = system(&[ALL, ("authlimits", "failures=4\npause=3\n")]);
        system.user(ANN, "open sesame", true);
        system.user("bob@a.example", "open sesame", true);
        let (here, there) = (system.client(), Client { remote: "198.51.100.1", ..system.client() });
        let login = Request::Login {
            id: 5,
            service: "smtp".into(),
            login: ANN.into(),
            password: "wrong".into(),
            remote: Some(HERE.parse().unwrap()),
        };
        let pauses: Vec<_> = (0..3)
            .map(|_| match here.ask(&login) {
                Answer::Refused { pause_s, .. } => pause_s,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(pauses, [1, 2, 3]);
        assert_eq!(here.login(way, "nobody@a.example", "wrong"), End::Refused);
        assert_eq!(here.login(way, "bob@a.example", "open sesame"), End::Refused, "{way:?}: four were enough");
        let is_right = |end| end == End::In("bob@a.example".to_owned()) || (way == Way::Apop && end == End::Unavailable);
        assert!(is_right(there.login(way, "bob@a.example", "open sesame")), "{way:?}: from elsewhere");
        // More room, at once; the block that has begun stays, and so does what is known of an address.
        std::fs::write(system.root.control_file("authlimits"), "failures=4\npause=0\nexempt=192.0.2.0/24\n").unwrap();
        assert!(is_right(here.login(way, "bob@a.example", "open sesame")), "{way:?}: exempt now");
        assert!(matches!(here.ask(&login), Answer::Refused { pause_s: 0, .. }));
    }
}

#[test]
fn an_attacker_elsewhere_locks_nobody_out_of_his_own_address() {
    let system = system(&[ALL, ("authlimits", "failures=100\naccount=5\npause=0\n")]);
    system.user(ANN, "open sesame", false);
    assert_eq!(system.client().login(Way::Plain, ANN, "open sesame"), End::In(ANN.to_owned()));
    let far = ["198.51.100.1", "198.51.100.2", "198.51.100.3", "2001:db8::1", "2001:db8:1::1"];
    for (remote, name) in far.into_iter().zip([ANN, "ANN@a.example", "ann@a.example.", "Ann@A.Example", ANN]) {
        assert_eq!(Client { remote, ..system.client() }.login(Way::Plain, name, "guess"), End::Refused);
    }
    let another = Client { remote: "203.0.113.1", ..system.client() };
    assert_eq!(another.login(Way::Plain, ANN, "open sesame"), End::Refused, "an address that never logged in");
    for way in [Way::Plain, Way::Scram(Hash::Sha256)] {
        assert_eq!(system.client().login(way, ANN, "open sesame"), End::In(ANN.to_owned()), "{way:?}");
    }
}

#[test]
fn guesses_made_at_once_are_not_answered_beyond_the_limit() {
    let system = system(&[ALL, ("authlimits", "failures=3\npause=0\n")]);
    system.user(ANN, "open sesame", false);
    let client = system.client();
    let login = |id: u64, password: &str| {
        let (login, password) = (ANN.into(), password.into());
        Request::Login { id, service: "smtp".into(), login, password, remote: Some(HERE.parse().unwrap()) }.encode()
    };
    for id in 0..40 {
        client.socket.send(&login(id, "guess")).unwrap();
    }
    client.socket.send(&login(40, "open sesame")).unwrap();
    for _ in 0..41 {
        assert!(matches!(receive(&client.socket), Answer::Refused { .. }), "the right guess among them is no better");
    }
}

#[test]
fn a_source_that_is_out_of_reach_is_temporary_by_every_mechanism() {
    let system = system(&[ALL]);
    system.user(ANN, "open sesame", true);
    std::fs::write(system.root.domains_file(), "no line\n").unwrap();
    for way in WAYS {
        assert_eq!(system.client().login(way, ANN, "open sesame"), End::Unavailable, "{way:?}");
    }
}

/// A qmail-authnet for which the password or the token says what it answers.
fn authnet(system: &System) {
    use ipc::authnet::{Answer, Request};
    let listener = sys::seqpacket::listen(system.run.as_fd(), "roles/authnet.sock").unwrap();
    rustix::io::ioctl_fionbio(&listener, false).unwrap();
    let answer = |id, secret: &[u8]| match secret {
        b"elsewhere" => Answer::Right { id, user: ANN.into() },
        b"sue" => Answer::Right { id, user: "sue@a.example".into() },
        b"stranger" => Answer::Right { id, user: "stranger@a.example".into() },
        b"not an address" => Answer::Right { id, user: "../ann".into() },
        b"down" => Answer::Unavailable { id, text: "down\nqmail-send: lies".into() },
        b"nobody" | b"here" => Answer::NoSuchUser { id },
        // Whoever is asked about nobody must let nobody in.
        b"-" => Answer::Right { id, user: ANN.into() },
        _ => Answer::Wrong { id },
    };
    std::thread::spawn(move || {
        while let Ok(connection) = sys::seqpacket::accept(listener.as_fd()) {
            connection.set_nonblocking(false).unwrap();
            let mut buf = vec![0; 40_000];
            while let Ok(Received::Datagram(len, _)) = connection.recv(&mut buf) {
                let said = match Request::decode(&buf[..len]).unwrap() {
                    Request::Check { id, source, service, password, .. } => {
                        assert_eq!((&*source, &*service), (&b"ldap"[..], &b"smtp"[..]));
                        answer(id, password.expose())
                    }
                    Request::Token { id, token, .. } => answer(id, token.expose()),
                };
                connection.send(&said.encode()).unwrap();
            }
        }
    });
}

/// Ann, and sue, whose account is suspended; both have the password `here`.
fn with_sources(files: &[(&str, &str)]) -> System {
    let system = system(files);
    authnet(&system);
    for user in ["ann@a.example", "sue@a.example"] {
        system.user(user, "here", false);
    }
    let (mut accounts, domain, _) = system.accounts();
    let suspended = accounts::UserChange::Suspension { suspended: true, refuses_mail: false };
    accounts.change_user(&domain, &UserName::new(b"sue").unwrap(), &suspended).unwrap();
    system
}

const LIMITLESS: (&str, &str) = ("authlimits", NO_LIMITS);

#[test]
fn sources_are_asked_in_their_order_and_what_they_name_must_be_an_open_account() {
    let ann = End::In(ANN.to_owned());
    let system = with_sources(&[("authsources", "ldap\naccounts\n"), LIMITLESS]);
    let app = system.app_password("phone", "smtp");
    let client = system.client();
    for (login, password, expected) in [
        (ANN, "elsewhere", &ann),
        // The directory's name counts, not the client's.
        ("ann", "elsewhere", &ann),
        // Whom it does not know the accounts may.
        (ANN, "here", &ann),
        (ANN, "nobody", &End::Refused),
        ("sue@a.example", "here", &End::Refused),
        // Wrong is the last word, whatever the accounts would say.
        (ANN, "wrong", &End::Refused),
        // But for app passwords, which are nobody else's.
        (ANN, &app, &ann),
        ("sue@a.example", "sue", &End::Refused),
        (ANN, "sue", &End::Refused),
        (ANN, "stranger", &End::Refused),
        (ANN, "not an address", &End::Refused),
        // Nobody can say that it is wrong.
        (ANN, "down", &End::Unavailable),
        ("bob@a.example", "down", &End::Unavailable),
    ] {
        assert_eq!(client.login(Way::Plain, login, password), *expected, "{login} {password}");
    }
    let system = with_sources(&[("authsources", "accounts\nldap\n"), LIMITLESS]);
    let app = system.app_password("phone", "smtp");
    for (login, password, expected) in [
        (ANN, "here", &ann),
        (ANN, &app, &ann),
        // The accounts know her: the directory is asked about nobody, and changes nothing.
        (ANN, "elsewhere", &End::Refused),
        (ANN, "down", &End::Refused),
        ("ann", "elsewhere", &ann),
        ("ann", "wrong", &End::Refused),
        ("ann", "nobody", &End::Refused),
        ("ann", "down", &End::Unavailable),
    ] {
        assert_eq!(system.client().login(Way::Plain, login, password), *expected, "{login} {password}");
    }
    // Without the line, the password that the accounts hold opens nothing, by no mechanism.
    let system = with_sources(&[("authsources", "ldap\n"), LIMITLESS, ALL]);
    let app = system.app_password("phone", "smtp");
    assert_eq!(system.client().login(Way::Plain, ANN, &app), ann, "it is made for those whose password is elsewhere");
    assert_eq!(system.client().login(Way::Plain, ANN, "elsewhere"), ann);
    assert_eq!(system.client().login(Way::Plain, ANN, "here"), End::Refused);
    for way in WAYS.into_iter().filter(|way| !matches!(way, Way::Plain | Way::CramMd5)) {
        assert_eq!(system.client().login(way, ANN, "here"), End::Unavailable, "{way:?}");
    }
    assert_eq!(end(system.client().start("CRAM-MD5", None, false)), End::Unavailable);
    // A line for tokens judges no password.
    let system = with_sources(&[("authsources", "oauth\n"), LIMITLESS]);
    for password in ["elsewhere", "here", "down"] {
        assert_eq!(system.client().login(Way::Plain, ANN, password), End::Refused);
    }
    // A file that cannot be understood lets nobody in, and turns nobody away.
    let system = with_sources(&[("authsources", "accounts\nldpa\n")]);
    assert_eq!(system.client().login(Way::Plain, ANN, "here"), End::Unavailable);
    // Where only app passwords count, the directory's does not either.
    let system = with_sources(&[("authsources", "ldap\naccounts\n"), LIMITLESS, ("apppasswordsonly", "a.example\n")]);
    assert_eq!(system.client().login(Way::Plain, ANN, "elsewhere"), ann);
    system.app_password("phone", "smtp");
    assert_eq!(system.client().login(Way::Plain, ANN, "elsewhere"), End::Refused);
}

#[test]
fn wrong_passwords_of_all_sources_count_once_each_and_a_silent_source_counts_for_nobody() {
    let system = with_sources(&[("authsources", "ldap\naccounts\n"), ("authlimits", "failures=2\naccount=0\npause=0\n")]);
    let client = system.client();
    for _ in 0..5 {
        assert_eq!(client.login(Way::Plain, ANN, "down"), End::Unavailable);
    }
    assert_eq!(client.login(Way::Plain, "bob@a.example", "wrong"), End::Refused);
    assert_eq!(client.login(Way::Plain, ANN, "elsewhere"), End::In(ANN.to_owned()), "that was one failure, not two");
    assert_eq!(client.login(Way::Plain, "bob@a.example", "wrong"), End::Refused);
    assert_eq!(client.login(Way::Plain, "bob@a.example", "elsewhere"), End::Refused, "now the address is refused");
}

/// Otherwise names could be told apart, and the accounts' passwords guessed without end, while the directory is away.
#[test]
fn a_later_source_that_is_silent_hides_who_is_known_and_wrong_passwords_count() {
    let system = system(&[("authsources", "accounts\nldap\n"), ("authlimits", "failures=0\naccount=3\npause=0\n")]);
    system.user(ANN, "here", false);
    for _ in 0..2 {
        assert_eq!(system.client().login(Way::Plain, ANN, "wrong"), End::Unavailable);
        assert_eq!(system.client().login(Way::Plain, "bob@a.example", "wrong"), End::Unavailable);
    }
    assert_eq!(system.client().login(Way::Plain, ANN, "wrong"), End::Unavailable);
    assert_eq!(system.client().login(Way::Plain, ANN, "wrong"), End::Refused, "too many");
    assert_eq!(system.client().login(Way::Plain, ANN, "here"), End::Refused);
}

#[test]
fn tokens() {
    let system = with_sources(&[("authsources", "accounts\noauth\n"), ("authmechanisms", "OAUTHBEARER\nXOAUTH2\n"), LIMITLESS]);
    let client = system.client();
    let message = |mechanism: &str, user: &str, token: &str| match mechanism {
        "XOAUTH2" => format!("user={user}\x01auth=Bearer {token}\x01\x01"),
        _ => format!("n,a={user},\x01auth=Bearer {token}\x01\x01"),
    };
    for (mechanism, status, acknowledgement) in [("OAUTHBEARER", "invalid_token", &b"\x01"[..]), ("XOAUTH2", "401", b"")] {
        let start = |user: &str, token: &str| client.start(mechanism, Some(message(mechanism, user, token).as_bytes()), false);
        assert_eq!(end(start(ANN, "elsewhere")), End::In(ANN.to_owned()));
        assert_eq!(end(start(ANN, "down")), End::Unavailable);
        for token in ["wrong", "sue", "stranger"] {
            let Answer::Challenge { exchange, data, .. } = start(ANN, token) else { panic!("{token}") };
            assert!(String::from_utf8_lossy(&data).contains(&format!("\"status\":\"{status}\"")), "{data:?}");
            assert_eq!(end(client.step(exchange, acknowledgement)), End::Refused, "{token}");
            assert_eq!(end(client.step(exchange, acknowledgement)), End::Unavailable, "that exchange is over");
        }
        // Without an initial response the server says nothing first (RFC 7628 §3).
        let Answer::Challenge { exchange, data, .. } = client.start(mechanism, None, false) else { panic!() };
        assert_eq!(*data, b""[..]);
        assert_eq!(end(client.step(exchange, message(mechanism, ANN, "elsewhere").as_bytes())), End::In(ANN.to_owned()));
        let Answer::Challenge { exchange, .. } = client.start(mechanism, Some(b"n,,\x01"), false) else { panic!() };
        assert_eq!(end(client.step(exchange, acknowledgement)), End::Refused);
    }
    let no_user = b"n,,\x01auth=Bearer elsewhere\x01\x01";
    assert_eq!(end(client.start("OAUTHBEARER", Some(no_user), false)), End::In(ANN.to_owned()));
    let system = with_sources(&[("authmechanisms", "OAUTHBEARER\n")]);
    assert_eq!(end(system.client().start("OAUTHBEARER", Some(no_user), false)), End::Unavailable, "nobody judges tokens here");
}

/// RFC 4422 App. A: the certificate says who it is, the client may say the same, and nothing else.
#[test]
fn a_certificate_is_the_account_that_the_file_says() {
    let file = "joe.client.example ann@a.example\nsue@client.example sue@a.example\nrelay.example\n\
                lost.example nobody@a.example\nlocal.example root@host.example\n";
    // Passwords by accounts or not: this is none.
    for sources in [("authsources", "accounts\n"), ("authsources", "shadow\n")] {
        let system = system(&[("tlsclients", file), ("authlimits", NO_LIMITS), sources]);
        system.user(ANN, "x", false);
        system.user("sue@a.example", "x", false);
        let client = system.client();
        let login = |certificate, identity| end(client.external(certificate, identity));
        let ann = End::In(ANN.to_owned());
        for (certificate, identity, expected) in [
            (Some("joe.client.example"), "", ann.clone()),
            (Some("joe.client.example"), ANN, ann.clone()),
            (Some("joe.client.example"), "Ann@A.example", ann.clone()),
            (Some("joe.client.example"), "sue@a.example", End::Refused),
            (Some("joe.client.example"), "ann", End::Refused),
            (Some("sue@client.example"), "", End::In("sue@a.example".to_owned())),
            // One that may relay is nobody, and so is one that is not listed, or whose account is not there or no account.
            (Some("relay.example"), "", End::Refused),
            (Some("other.example"), "", End::Refused),
            (Some("other.example"), ANN, End::Refused),
            (Some("lost.example"), "", End::Refused),
            (Some("local.example"), "", End::Refused),
            (None, ANN, End::Unavailable),
        ] {
            assert_eq!(login(certificate, Some(identity)), expected, "{certificate:?} {identity}");
        }
        // The server asks if the client does not begin.
        let Answer::Challenge { exchange, data, .. } = client.external(Some("joe.client.example"), None) else { panic!() };
        assert!(data.0.is_empty());
        assert_eq!(end(client.step(exchange, b"")), ann);
        // Suspended, or gone from the file: at once.
        let (mut accounts, domain, _) = system.accounts();
        let suspended = accounts::UserChange::Suspension { suspended: true, refuses_mail: false };
        accounts.change_user(&domain, &UserName::new(b"sue").unwrap(), &suspended).unwrap();
        assert_eq!(login(Some("sue@client.example"), Some("")), End::Refused);
        std::fs::write(system.root.control_file("tlsclients"), "# nobody\n").unwrap();
        assert_eq!(login(Some("joe.client.example"), Some("")), End::Refused);
        std::fs::write(system.root.control_file("tlsclients"), "joe.client.example ann\n").unwrap();
        assert_eq!(login(Some("joe.client.example"), Some("")), End::Unavailable);
    }
}

/// Where the mechanisms are named, EXTERNAL is one of them or there is none.
#[test]
fn external_is_a_mechanism_like_the_others() {
    for (mechanisms, expected) in [("PLAIN\n", End::Unavailable), ("EXTERNAL\n", End::In(ANN.to_owned()))] {
        let system = system(&[("tlsclients", "joe.example ann@a.example\n"), ("authmechanisms", mechanisms)]);
        system.user(ANN, "x", false);
        assert_eq!(end(system.client().external(Some("joe.example"), Some(""))), expected, "{mechanisms}");
    }
}
