//! Dovecot looks our accounts up by SQL, in a copy that `qmail export --sql` makes.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use system_tests::dovecot::{Dovecot, exists};
use system_tests::instance::feed;
use system_tests::{Instance, is_root, skip};

/// As docs/dovecot.md has it.
const QUERIES: &str = "driver = sqlite\n\
    password_query = SELECT u.username || '@' || u.domain AS user, u.password FROM users u JOIN domains d ON d.users_of = u.domain \
    WHERE u.username = '%Ln' AND d.domain = '%Ld' AND u.may_log_in = 1\n\
    user_query = SELECT u.home, u.uid, u.gid, NULLIF(u.quota_rule, '') AS quota_rule FROM users u \
    JOIN domains d ON d.users_of = u.domain WHERE u.username = '%Ln' AND d.domain = '%Ld'\n\
    iterate_query = SELECT username, domain FROM users\n";

/// Takes the export into a database beside the old one, and puts it in its place.
fn refresh(instance: &Instance, database: &Path) {
    let sql = instance.must(&["export", "--sql", "--with-secrets"]).unwrap();
    let new = database.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let script = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.stdin.read())";
    let output = feed(Command::new("python3").args(["-c", script]).arg(&new), sql.as_bytes()).unwrap();
    assert!(output.status.success(), "{}\n{sql}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&new, database).unwrap();
}

#[test]
fn dovecot_finds_our_accounts_by_sql() {
    let name = "dovecot_finds_our_accounts_by_sql";
    if !is_root() {
        return skip(name, "Dovecot's master must be root");
    }
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob", "carl"]).unwrap();
    instance.must(&["domain", "add", "alias.test", "--alias-of", "example.test"]).unwrap();
    instance.must(&["user", "suspend", "carl@example.test"]).unwrap();
    instance.must(&["user", "quota", "bob@example.test", "5M"]).unwrap();
    instance.smtp().unwrap().send("a@x.test", &["bob@alias.test"], "Subject: found\n\nx\n").unwrap();
    instance.wait_mail("bob@example.test", 1).unwrap();
    let database = instance.dir().join("users.sqlite");
    let queries = instance.dir().join("sql.conf");
    std::fs::write(&queries, format!("connect = {}\n{QUERIES}", database.display())).unwrap();
    refresh(&instance, &database);
    let args = queries.display();
    let more = format!(
        "service auth {{\n  user = root\n}}\nauth_failure_delay = 0\nservice anvil {{\n  unix_listener anvil-auth-penalty {{\n    mode = 0\n  }}\n}}\n\
         passdb {{\n  driver = sql\n  args = {args}\n}}\nuserdb {{\n  driver = sql\n  args = {args}\n}}\n"
    );
    let dovecot = Dovecot::start_with(&instance, instance.port(143), "", &more).unwrap();
    for address in ["bob@example.test", "BOB@Alias.test"] {
        let mut imap = dovecot.log_in(address, "bob-password").unwrap_or_else(|e| panic!("{e}\n{}", dovecot.log()));
        assert_eq!(exists(&imap.must("SELECT INBOX").unwrap()), Some(1), "{address}\n{}", dovecot.log());
    }
    for (address, password) in [
        ("bob@example.test", "wrong"),
        ("carl@example.test", "carl-password"),
        ("nobody@example.test", "bob-password"),
        ("bob@elsewhere.test", "bob-password"),
        ("x' OR '1'='1@example.test", "bob-password"),
    ] {
        assert!(dovecot.log_in(address, password).is_err(), "{address}");
    }
    assert!(!dovecot.log().contains("sql error") && !dovecot.log().contains("syntax error"), "{}", dovecot.log());
    // A change counts with the next copy.
    instance.with_input(&["user", "passwd", "bob@example.test", "--password-stdin"], "another one\n").unwrap();
    instance.must(&["user", "resume", "carl@example.test"]).unwrap();
    refresh(&instance, &database);
    drop(dovecot);
    let dovecot = Dovecot::start_with(&instance, instance.port(143), "", &more).unwrap();
    dovecot.log_in("bob@example.test", "another one").unwrap();
    dovecot.log_in("carl@example.test", "carl-password").unwrap();
    assert!(dovecot.log_in("bob@example.test", "bob-password").is_err());
}
