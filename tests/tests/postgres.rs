//! Accounts in PostgreSQL through the whole system: a real server, mail and logins while it is there, away and back.
#![allow(clippy::unwrap_used)]

use system_tests::postgres::{PASSWORD, Postgres};
use system_tests::{Instance, Pop3, Smtp, facts, wait_for};

const LETTER: &str = "Subject: hi\nFrom: ann@a.test\nTo: bob@a.test\nMessage-ID: <1@a.test>\n\nbody\n";

/// An instance that does not run yet, with its accounts in a server that runs.
fn instance(test: &str) -> Option<(Instance, Postgres)> {
    let instance = Instance::new().unwrap();
    let server = Postgres::start(test, instance.dir(), None).unwrap()?;
    instance.control("authcleartext", "127.0.0.1/32\n").unwrap();
    instance.control("accounts", &server.url()).unwrap();
    let password = instance.root.join("etc/qmail/control/accountspassword");
    std::fs::write(&password, PASSWORD).unwrap();
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let ids = std::fs::read_to_string(instance.root.join("etc/qmail/ids")).unwrap_or_default();
    let uid = ids.lines().find_map(|line| line.strip_prefix("qmailn ")?.split(' ').next()?.parse::<u32>().ok());
    if let Some(uid) = uid {
        assert!(findings(&instance).contains("chown"));
        std::os::unix::fs::chown(&password, Some(uid), None).unwrap();
    }
    Some((instance, server))
}

/// What `qmail check` says of control/accounts and its password.
fn findings(instance: &Instance) -> String {
    let report = instance.qmail(&["check", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    let all = report["findings"].as_array().unwrap().iter();
    let ours = all.filter(|finding| finding["file"].as_str().is_some_and(|file| file.contains("/control/accounts")));
    let word = |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap().to_owned();
    ours.map(|one| format!("{}: {}; {}\n", word(one, "severity"), word(one, "problem"), word(one, "cure"))).collect()
}

fn rcpt(instance: &Instance, to: &str) -> String {
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO client.test", "250").unwrap();
    smtp.must("MAIL FROM:<ann@a.test>", "250").unwrap();
    smtp.ask(&format!("RCPT TO:<{to}>")).unwrap()
}

fn login(instance: &Instance, user: &str, password: &str) -> String {
    let mut smtp = Smtp::open(instance.port(587)).unwrap();
    smtp.ask("EHLO client.test").unwrap();
    let message = wire::base64::encode(format!("\0{user}\0{password}").as_bytes());
    smtp.ask(&format!("AUTH PLAIN {message}")).unwrap()
}

fn answers(said: &str, code: &str) {
    assert!(said.starts_with(code), "{said}");
}

#[test]
fn mail_and_logins_wait_for_a_database_that_is_away() {
    let Some((mut instance, mut server)) = instance("mail_and_logins_wait_for_a_database_that_is_away") else { return };
    let said = instance.qmail(&["user", "list"]).output().unwrap();
    let text = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.status.code(), Some(111), "{text}");
    assert!(text.contains("PostgreSQL") || text.contains("postgres://"), "{text}");
    assert!(text.contains("qmail start"), "{text}");
    assert!(findings(&instance).contains("does not run"));
    instance.start().unwrap();
    instance.virtual_domain("a.test", &["ann", "bob", "dave"]).unwrap();
    instance.must(&["alias", "add", "info@a.test", "bob@a.test"]).unwrap();
    assert_eq!(findings(&instance), "");
    for (to, code) in [("bob@a.test", "250"), ("BOB+x@a.test", "250"), ("info@a.test", "250"), ("nobody@a.test", "550")] {
        let said = rcpt(&instance, to);
        assert!(said.starts_with(code), "{to}: {said}");
    }
    instance.smtp().unwrap().send("ann@a.test", &["info@a.test"], LETTER).unwrap();
    instance.wait_mail("bob@a.test", 1).unwrap();
    for (user, password, code) in [
        ("ann@a.test", "ann-password", "235"),
        ("ann@a.test", "bob-password", "535"),
        ("' OR 1=1 --@a.test", "x", "535"),
        ("ann@a.test'; DROP TABLE account; --", "x", "535"),
    ] {
        let said = login(&instance, user, password);
        assert!(said.starts_with(code), "{user}: {said}");
    }
    assert_eq!(Pop3::login(instance.port(110), "bob@a.test", "bob-password").unwrap().count().unwrap(), 1);
    // A change that another host (or a person) makes is heard of.
    server.sql("UPDATE account SET refuses_mail = 1, suspended = 1 WHERE name = 'bob'").unwrap();
    wait_for("the change", || rcpt(&instance, "bob@a.test").starts_with("550").then_some(())).unwrap();
    wait_for("the change", || login(&instance, "bob@a.test", "bob-password").starts_with("535").then_some(())).unwrap();
    instance.must(&["user", "resume", "bob@a.test"]).unwrap();
    assert!(rcpt(&instance, "bob@a.test").starts_with("250"), "own changes count at once");
    // A letter that is in the queue when the database goes.
    instance.control("concurrencylocal", "0\n").unwrap();
    facts::signal(instance.pid(), rustix::process::Signal::HUP);
    instance.smtp().unwrap().send("ann@a.test", &["dave@a.test"], LETTER).unwrap();
    server.kill();
    for to in ["carl@a.test", "carl-list@a.test", "other@a.test"] {
        let said = rcpt(&instance, to);
        assert!(said.starts_with("451"), "{to}: {said}");
    }
    for (user, password) in [("dave@a.test", "dave-password"), ("dave@a.test", "x"), ("carl@a.test", "x")] {
        let said = login(&instance, user, password);
        assert!(said.starts_with("454"), "{user}: {said}");
    }
    // Nobody else waits for it: system domains go on.
    answers(&rcpt(&instance, "postmaster@mail.example.test"), "250");
    let said = instance.qmail(&["user", "list"]).output().unwrap();
    assert_eq!(said.status.code(), Some(111), "{said:?}");
    let report = findings(&instance);
    assert!(report.starts_with("error: ") && report.contains("no connection"), "{report}");
    server.run().unwrap();
    wait_for("the database", || rcpt(&instance, "carl@a.test").starts_with("550").then_some(())).unwrap();
    answers(&login(&instance, "dave@a.test", "dave-password"), "235");
    std::fs::remove_file(instance.root.join("etc/qmail/control/concurrencylocal")).unwrap();
    facts::signal(instance.pid(), rustix::process::Signal::HUP);
    instance.retry_until_empty().unwrap();
    instance.wait_mail("dave@a.test", 1).unwrap();
    // qmail-authnet may die like any other.
    let authnet = |instance: &Instance| facts::descendants(instance.pid()).into_iter().find(|p| p.name == "qmail-authnet");
    let first = authnet(&instance).unwrap();
    facts::signal(first.pid, rustix::process::Signal::KILL);
    wait_for("another qmail-authnet", || authnet(&instance).filter(|p| p.pid != first.pid)).unwrap();
    wait_for("a login", || login(&instance, "dave@a.test", "dave-password").starts_with("235").then_some(())).unwrap();
    server.sql("UPDATE account SET refuses_mail = 1 WHERE name = 'dave'").unwrap();
    wait_for("the change", || rcpt(&instance, "dave@a.test").starts_with("550").then_some(())).unwrap();
    let log = instance.log();
    assert!(!log.contains(PASSWORD) && !log.contains("dave-password") && !log.contains("$argon2"), "nothing secret is logged");
}

#[test]
fn accounts_move_from_sqlite_by_export_and_import() {
    let mut old = Instance::started(&[("authcleartext", "127.0.0.1/32\n")]).unwrap();
    old.virtual_domain("a.test", &["ann", "bob"]).unwrap();
    old.must(&["alias", "add", "info@a.test", "bob@a.test"]).unwrap();
    old.must(&["user", "quota", "bob@a.test", "5M"]).unwrap();
    let table = old.must(&["export", "--with-secrets"]).unwrap();
    old.stop().unwrap();
    let Some((mut new, server)) = instance("accounts_move_from_sqlite_by_export_and_import") else { return };
    new.start().unwrap();
    new.with_input(&["import", "csv", "-", "--create-domains"], &table).unwrap();
    assert_eq!(new.must(&["export", "--with-secrets"]).unwrap(), table);
    answers(&login(&new, "ann@a.test", "ann-password"), "235");
    answers(&rcpt(&new, "info@a.test"), "250");
    assert_eq!(server.sql("SELECT count(*) FROM account").unwrap().trim(), "2");
    assert!(!new.root.join("var/lib/qmail/accounts.sqlite").exists());
}

#[test]
fn the_tables_can_be_made_by_the_owner_of_the_database() {
    let Some((mut instance, server)) = instance("the_tables_can_be_made_by_the_owner_of_the_database") else { return };
    server.admin("ALTER DATABASE qmail OWNER TO postgres").unwrap();
    instance.start().unwrap();
    instance.must(&["domain", "add", "a.test"]).unwrap();
    let said = instance.qmail(&["user", "list"]).output().unwrap();
    let text = String::from_utf8(said.stderr).unwrap();
    assert!(said.status.code() == Some(111) && text.contains("qmail accounts schema"), "{text}");
    server.admin("ALTER DATABASE qmail OWNER TO qmail").unwrap();
    server.sql(&instance.must(&["accounts", "schema"]).unwrap()).unwrap();
    wait_for("the tables", || instance.must(&["user", "list"]).ok()).unwrap();
    instance.virtual_domain("b.test", &["ann"]).unwrap();
    answers(&rcpt(&instance, "ann@b.test"), "250");
}
