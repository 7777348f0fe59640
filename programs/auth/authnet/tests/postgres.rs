//! The accounts in a real PostgreSQL, as qmail-auth has them: through qmail-authnet's socket.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use accounts::directory::Directory as _;
use accounts::remote::Remote;
use accounts::{Accounts, Error, UserName};
use common::{Authority, Instance};
use ipc::Message as _;
use ipc::accounts::{Answer, Call, Request, Value};
use ipc_async::Listener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use sys::{Received, Seqpacket};
use system_tests::postgres::{PASSWORD, Postgres};
use system_tests::slapd::Certificate;
use system_tests::wait_for;
use wire::Domain;

const SOCKET: &str = "roles/accounts.sock";
/// Nobody waits longer for an answer: a slow machine has room.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory that the server's own user can reach.
fn open(instance: &Instance) {
    std::fs::set_permissions(instance.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn run_dir(instance: &Instance) -> OwnedFd {
    std::fs::File::open(instance.root.run()).unwrap().into()
}

/// Runs qmail-authnet's part for the accounts in a thread; it ends with the test.
fn serve(instance: &Instance) {
    let run = run_dir(instance);
    let _ = std::fs::remove_file(instance.root.run().join(SOCKET));
    let listener = sys::seqpacket::listen(run.as_fd(), SOCKET).unwrap();
    let root = instance.root.clone();
    std::thread::spawn(move || {
        ipc_async::service::run(async move {
            let postgres = Rc::new(qmail_authnet::service::postgres(&root, run).unwrap().unwrap());
            let listener = Listener::new(listener)?;
            tokio::select! {
                end = postgres.serve(&listener, |_| true) => end,
                () = postgres.watch() => Ok(()),
            }
        })
    });
}

fn accounts(instance: &Instance) -> Accounts {
    Accounts::elsewhere(Remote::new(Arc::new(run_dir(instance)), SOCKET))
}

/// A connection of its own to the socket.
struct Asker(Seqpacket);

impl Asker {
    fn new(instance: &Instance) -> Self {
        let socket = Seqpacket::connect(run_dir(instance).as_fd(), SOCKET).unwrap();
        socket.set_deadline(PATIENCE).unwrap();
        Self(socket)
    }

    fn hear(&self) -> Answer {
        let mut buf = vec![0; 40_000];
        let Received::Datagram(len, _) = self.0.recv(&mut buf).unwrap() else { panic!("closed") };
        Answer::decode(&buf[..len]).unwrap()
    }

    fn ask(&self, request: &Request) -> Answer {
        self.0.send(&request.encode()).unwrap();
        self.hear()
    }

    fn unavailable(&self, request: &Request) -> String {
        match self.ask(request) {
            Answer::Unavailable { text, .. } => String::from_utf8(text.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

fn joe() -> (Domain, UserName) {
    (Domain::new(b"example.org").unwrap(), UserName::new(b"joe").unwrap())
}

fn takes_mail(id: u64) -> Request {
    let values = [&b"example.org"[..], b"joe"].map(|bytes| Value::Bytes(bytes.to_vec().into())).to_vec();
    Request::Read { id, calls: vec![Call { statement: accounts_sql::Statement::TakesMail.number(), values }] }
}

#[test]
fn it_is_a_store_of_accounts() {
    let instance = Instance::new();
    open(&instance);
    let Some(server) = Postgres::start("it_is_a_store_of_accounts", instance.dir(), None).unwrap() else { return };
    instance.control("accounts", &server.url());
    instance.secret("accountspassword", PASSWORD);
    serve(&instance);
    accounts::conformance::run(&mut || {
        let store = accounts(&instance);
        store.generation().unwrap();
        // The first question makes the tables.
        store.has_user(&joe().0, b"joe").unwrap();
        server.sql("TRUNCATE account, alias, domain, administrator, secret, app_password").unwrap();
        Box::new(store)
    });
    assert_eq!(server.sql("SELECT number FROM qmail_version").unwrap().trim(), "1");
    assert_eq!(server.sql("SELECT length(value) FROM installation WHERE name = 'key'").unwrap().trim(), "32");
}

#[test]
fn what_dovecot_reads() {
    let instance = Instance::new();
    open(&instance);
    let Some(server) = Postgres::start("what_dovecot_reads", instance.dir(), None).unwrap() else { return };
    instance.control("accounts", &server.url());
    instance.secret("accountspassword", PASSWORD);
    serve(&instance);
    let mut store = accounts(&instance);
    let (domain, name) = joe();
    for (user, hash) in [
        ("joe", "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA"),
        ("six", "$6$salt$hash"),
        ("blow", "$2y$05$x"),
        ("other", "$y$j9T$x"),
        ("o'brien\\", "$5$salt$hash"),
    ] {
        store.add_user(&domain, &UserName::new(user.as_bytes()).unwrap(), hash, 0).unwrap();
    }
    let quota = accounts::Quota { bytes: 1000, messages: 0 };
    store.change_user(&domain, &name, &accounts::UserChange::Quota(quota)).unwrap();
    // As docs/dovecot.md has them, with what Dovecot puts in for %n and %d.
    let passdb = |user: &str, domain: &str| {
        let select = "SELECT \"user\", password FROM dovecot";
        server
            .sql(&format!(
                "{select} WHERE domain = convert_to(lower('{domain}'), 'UTF8') AND name = convert_to(lower('{user}'), 'UTF8')"
            ))
            .unwrap()
    };
    assert_eq!(passdb("JOE", "Example.org").trim(), "joe@example.org|{ARGON2ID}$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA");
    assert_eq!(passdb("six", "example.org").trim(), "six@example.org|{SHA512-CRYPT}$6$salt$hash");
    assert_eq!(passdb("blow", "example.org").trim(), "blow@example.org|{BLF-CRYPT}$2y$05$x");
    assert_eq!(passdb("other", "example.org").trim(), "other@example.org|{CRYPT}$y$j9T$x");
    assert!(passdb("o''brien\\", "example.org").contains("{SHA256-CRYPT}"));
    assert_eq!(passdb("x'' OR 1=1 --", "example.org").trim(), "");
    let row = server.sql("SELECT maildir, quota_rule FROM dovecot WHERE \"user\" = 'joe@example.org'").unwrap();
    assert_eq!(row.trim(), "example.org/joe|*:bytes=1000");
    let suspended = accounts::UserChange::Suspension { suspended: true, refuses_mail: false };
    store.change_user(&domain, &name, &suspended).unwrap();
    assert_eq!(passdb("joe", "example.org").trim(), "");
}

#[test]
fn changes_of_other_hosts_are_heard_and_transactions_come_one_after_the_other() {
    let instance = Instance::new();
    open(&instance);
    let test = "changes_of_other_hosts_are_heard_and_transactions_come_one_after_the_other";
    let Some(server) = Postgres::start(test, instance.dir(), None).unwrap() else { return };
    instance.control("accounts", &server.url());
    instance.secret("accountspassword", PASSWORD);
    serve(&instance);
    let mut store = accounts(&instance);
    let (domain, name) = joe();
    store.add_user(&domain, &name, "h", 0).unwrap();
    let follower = Asker::new(&instance);
    assert!(matches!(follower.ask(&Request::Follow { id: 1 }), Answer::Done { id: 1, .. }));
    // Those of before may still be on their way; what counts is that one comes after this change.
    server.sql("UPDATE account SET refuses_mail = 1").unwrap();
    assert_eq!(follower.hear(), Answer::Changed {});
    assert_eq!(store.takes_mail(&domain, b"joe").unwrap(), Some(false));
    // One that does not end holds up another for a while, and changes nothing when its connection ends.
    let hanging = Asker::new(&instance);
    assert!(matches!(hanging.ask(&Request::Begin { id: 1 }), Answer::Done { .. }));
    let key = [&b"example.org"[..], b"joe"].map(|bytes| Value::Bytes(bytes.to_vec().into())).to_vec();
    let remove = Call { statement: accounts_sql::Statement::RemoveUser.number(), values: key };
    assert!(matches!(hanging.ask(&Request::Run { id: 2, call: remove }), Answer::Done { changed: 1, .. }));
    assert_eq!(store.takes_mail(&domain, b"joe").unwrap(), Some(false), "not yet");
    let error = store.set_password(&domain, &name, "x").unwrap_err();
    assert!(error.is_temporary(), "{error}");
    drop(hanging);
    wait_for("the lock", || store.set_password(&domain, &name, "x").ok()).unwrap();
    assert_eq!(store.credentials(&domain, b"joe").unwrap().unwrap().password_hash.as_str(), "x");
    // What the socket's users may not say ends in an answer, not in the database.
    let asker = Asker::new(&instance);
    let call = |statement: u16, values: Vec<Value>| Call { statement, values };
    for calls in [
        vec![call(u16::MAX, vec![])],
        vec![call(accounts_sql::Statement::ForgetUsers.number(), vec![Value::Bytes(b"example.org".to_vec().into())])],
        vec![call(accounts_sql::Statement::HasUser.number(), vec![])],
        vec![call(accounts_sql::Statement::HasUser.number(), vec![Value::Null; 3])],
    ] {
        assert!(asker.unavailable(&Request::Read { id: 1, calls }).contains("does not know"));
    }
    for request in [Request::End { id: 1, commit: true }, Request::Run { id: 2, call: call(0, vec![]) }] {
        assert!(asker.unavailable(&request).contains("ended"));
    }
    assert!(store.has_user(&domain, b"joe").unwrap());
}

#[test]
fn a_database_that_is_away_is_temporary_and_comes_back() {
    let instance = Instance::new();
    open(&instance);
    let test = "a_database_that_is_away_is_temporary_and_comes_back";
    let Some(mut server) = Postgres::start(test, instance.dir(), None).unwrap() else { return };
    instance.control("accounts", &server.url());
    instance.secret("accountspassword", PASSWORD);
    serve(&instance);
    let mut store = accounts(&instance);
    let (domain, name) = joe();
    store.add_user(&domain, &name, "h", 0).unwrap();
    server.kill();
    let error = store.takes_mail(&domain, b"joe").unwrap_err();
    assert!(error.is_temporary() && matches!(error, Error::Remote(_)), "{error}");
    assert!(store.set_password(&domain, &name, "x").unwrap_err().is_temporary());
    server.run().unwrap();
    wait_for("the database", || store.takes_mail(&domain, b"joe").ok()).unwrap();
    store.set_password(&domain, &name, "x").unwrap();
    // One that hangs: whoever asks first waits for a while, then all hear at once.
    server.freeze(true);
    let asker = Asker::new(&instance);
    assert!(asker.unavailable(&takes_mail(1)).contains("in time"));
    assert!(store.takes_mail(&domain, b"joe").unwrap_err().is_temporary());
    server.freeze(false);
    wait_for("the database", || store.takes_mail(&domain, b"joe").ok()).unwrap();
    assert_eq!(store.credentials(&domain, b"joe").unwrap().unwrap().password_hash.as_str(), "x");
}

#[test]
fn what_is_wrong_is_said_with_its_cure() {
    let instance = Instance::new();
    open(&instance);
    let Some(server) = Postgres::start("what_is_wrong_is_said_with_its_cure", instance.dir(), None).unwrap() else { return };
    let said = |url: &str, password: &str| {
        instance.control("accounts", url);
        instance.secret("accountspassword", password);
        serve(&instance);
        Asker::new(&instance).unavailable(&takes_mail(1))
    };
    let tcp = |rest: &str| format!("postgres://{rest}?sslmode=disable\n");
    let port = server.port;
    for (url, password, part) in [
        (tcp(&format!("qmail@127.0.0.1:{port}/qmail")), "wrong", "accountspassword"),
        (tcp(&format!("qmail@127.0.0.1:{port}/other")), PASSWORD, "createdb -O qmail other"),
        (tcp("qmail@127.0.0.1:1/qmail"), PASSWORD, "refused"),
        (format!("postgres://qmail@127.0.0.1:{port}/qmail\n"), PASSWORD, "TLS"),
    ] {
        let text = said(&url, password);
        assert!(text.contains(part) && !text.contains(PASSWORD), "{url}: {text}");
    }
    // A role that may not make tables.
    server.admin("CREATE ROLE poor LOGIN PASSWORD 'poor'").unwrap();
    let text = said(&tcp(&format!("poor@127.0.0.1:{port}/qmail")), "poor");
    assert!(text.contains("qmail accounts schema"), "{text}");
    assert_eq!(server.sql("SELECT to_regclass('account') IS NULL").unwrap().trim(), "t", "all or nothing");
    // Tables of a newer program.
    instance.control("accounts", &server.url());
    instance.secret("accountspassword", PASSWORD);
    serve(&instance);
    accounts(&instance).generation().unwrap();
    assert!(!accounts(&instance).has_user(&joe().0, b"joe").unwrap());
    server.sql("UPDATE qmail_version SET number = 99").unwrap();
    serve(&instance);
    let text = Asker::new(&instance).unavailable(&takes_mail(1));
    assert!(text.contains("version 99") && text.contains("newer program"), "{text}");
    assert_eq!(server.sql("SELECT number FROM qmail_version").unwrap().trim(), "99", "left alone");
}

#[test]
fn by_tls_only_to_the_server_that_is_meant() {
    let instance = Instance::new();
    open(&instance);
    let test = "by_tls_only_to_the_server_that_is_meant";
    let (ours, theirs) = (Authority::new(instance.dir(), "ours"), Authority::new(instance.dir(), "theirs"));
    let (chain, key) = ours.certify("127.0.0.1", 2099);
    let Some(server) = Postgres::start(test, instance.dir(), Some(&Certificate { chain, key })).unwrap() else { return };
    let url = |ca: &Authority, host: &str| {
        format!("postgres://qmail@{host}:{}/qmail?sslmode=verify-full&sslrootcert={}\n", server.port, ca.file())
    };
    instance.secret("accountspassword", PASSWORD);
    instance.control("accounts", &url(&ours, "127.0.0.1"));
    serve(&instance);
    let mut store = accounts(&instance);
    let (domain, name) = joe();
    store.add_user(&domain, &name, "h", 0).unwrap();
    assert!(store.has_user(&domain, b"joe").unwrap());
    let ssl =
        server.admin("SELECT bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'qmail'");
    assert_eq!(ssl.unwrap().trim(), "t");
    for (ca, host) in [(&theirs, "127.0.0.1"), (&ours, "127.0.0.2")] {
        instance.control("accounts", &url(ca, host));
        serve(&instance);
        let text = Asker::new(&instance).unavailable(&takes_mail(1));
        assert!(text.contains("certificate"), "{host}: {text}");
    }
}
