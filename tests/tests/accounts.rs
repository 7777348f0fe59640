//! Accounts through the whole system: a vpopmail tree taken over, quotas, forwards, replies, alias domains, suspension.
#![allow(clippy::unwrap_used)]

use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use system_tests::{Instance, is_root, wait_for};

const LETTER: &str = "Subject: hi\nFrom: ann@a.test\nTo: bob@a.test\nMessage-ID: <1@a.test>\n\nbody\n";

/// A running instance with ann, bob and carl at a.test.
fn instance() -> Instance {
    let instance = Instance::started(&[("authcleartext", "127.0.0.1/32\n")]).unwrap();
    instance.virtual_domain("a.test", &["ann", "bob", "carl"]).unwrap();
    instance
}

fn send(instance: &Instance, to: &str, letter: &str) {
    instance.smtp().unwrap().send("ann@a.test", &[to], letter).unwrap();
    instance.wait_empty().unwrap();
}

fn answer_to_rcpt(instance: &Instance, to: &str) -> String {
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO client.example.test", "250").unwrap();
    smtp.must("MAIL FROM:<ann@a.test>", "250").unwrap();
    smtp.ask(&format!("RCPT TO:<{to}>")).unwrap()
}

fn refused(instance: &Instance, to: &str) -> bool {
    answer_to_rcpt(instance, to).starts_with("550 ")
}

#[test]
fn mail_for_a_full_mailbox_goes_back_and_pop3_makes_room() {
    let instance = instance();
    instance.must(&["user", "quota", "bob@a.test", "100M", "--messages", "2"]).unwrap();
    instance.must(&["alias", "add", "bobs@a.test", "bob@a.test"]).unwrap();
    for count in 1..=2 {
        send(&instance, "bob@a.test", LETTER);
        instance.wait_mail("bob@a.test", count).unwrap();
    }
    let shown = instance.json(&["user", "show", "bob@a.test"]).unwrap();
    assert!(shown["quota_used"].as_u64().unwrap() > 100 && shown["quota_messages_used"] == 2, "{shown}");
    let shown = instance.json(&["user", "show", "carl@a.test"]).unwrap();
    assert!(shown["quota_used"].is_null() && shown["quota_messages_used"].is_null(), "{shown}");
    let size = fs::read_to_string(instance.maildir("bob@a.test").join("maildirsize")).unwrap();
    assert!(size.starts_with("104857600S,2C\n"), "{size}");
    // Told at RCPT, while what was accepted before goes back.
    let told = answer_to_rcpt(&instance, "bob@a.test");
    assert!(told.starts_with("552 5.2.2 "), "{told}");
    assert!(answer_to_rcpt(&instance, "bobs@a.test").starts_with("250 "), "an alias is not looked behind");
    send(&instance, "bobs@a.test", LETTER);
    let bounce = instance.wait_mail("ann@a.test", 1).unwrap().pop().unwrap();
    assert!(bounce.contains("Sorry, the mailbox is full. (#5.2.2)") && bounce.contains("Status: 5.2.2"), "{bounce}");
    let mut pop3 = instance.pop3("bob@a.test").unwrap();
    pop3.must("DELE 1").unwrap();
    pop3.must("QUIT").unwrap();
    wait_for("room", || {
        let size = fs::read_to_string(instance.maildir("bob@a.test").join("maildirsize")).ok()?;
        size.ends_with(" -1\n").then_some(())
    })
    .unwrap();
    // What was known of the mailbox counts for some seconds.
    wait_for("room to be known", || answer_to_rcpt(&instance, "bob@a.test").starts_with("250 ").then_some(())).unwrap();
    send(&instance, "bob@a.test", LETTER);
    // The other one went to cur/ at QUIT.
    instance.wait_mail("bob@a.test", 1).unwrap();
    instance.must(&["user", "quota", "bob@a.test", "2000"]).unwrap();
    for (size, code) in [(100, "250 "), (10_000, "552 ")] {
        let mut smtp = instance.smtp().unwrap();
        smtp.must("EHLO client.example.test", "250").unwrap();
        smtp.must(&format!("MAIL FROM:<ann@a.test> SIZE={size}"), "250").unwrap();
        let told = smtp.ask("RCPT TO:<bob+tag@a.test>").unwrap();
        assert!(told.starts_with(code), "{size}: {told}");
    }
    instance.must(&["user", "quota", "bob@a.test", "1"]).unwrap();
    assert!(answer_to_rcpt(&instance, "bob@a.test").starts_with("552 5.2.2 "));
    fs::write(instance.root.join("etc/qmail/control/overquota"), "defer\n").unwrap();
    wait_for("overquota", || answer_to_rcpt(&instance, "bob@a.test").starts_with("452 4.2.2 ").then_some(())).unwrap();
    instance.must(&["user", "quota", "bob@a.test", "none"]).unwrap();
    wait_for("the count to go", || (!instance.maildir("bob@a.test").join("maildirsize").exists()).then_some(())).unwrap();
    send(&instance, "bob@a.test", LETTER);
    instance.wait_mail("bob@a.test", 2).unwrap();
}

#[test]
fn forwards_replies_alias_domains_and_suspension_count_at_once() {
    let instance = instance();
    instance.must(&["domain", "add", "b.test", "--alias-of", "a.test"]).unwrap();
    send(&instance, "bob@b.test", LETTER);
    instance.wait_mail("bob@a.test", 1).unwrap();
    assert!(refused(&instance, "nobody@b.test"));
    instance.must(&["user", "forward", "bob@a.test", "carl@b.test", "--keep-copy"]).unwrap();
    send(&instance, "bob@a.test", LETTER);
    instance.wait_mail("bob@a.test", 2).unwrap();
    instance.wait_mail("carl@a.test", 1).unwrap();
    instance.must(&["user", "forward", "bob@a.test", "--off"]).unwrap();
    instance.with_input(&["user", "vacation", "bob@a.test", "--text-stdin"], "Gr\u{fc}\u{df}e vom Strand\n").unwrap();
    for count in 3..=4 {
        send(&instance, "bob@a.test", LETTER);
        instance.wait_mail("bob@a.test", count).unwrap();
    }
    let reply = instance.wait_mail("ann@a.test", 1).unwrap().pop().unwrap();
    assert!(reply.starts_with("Return-Path: <>\n") && reply.contains("Auto-Submitted: auto-replied"), "{reply}");
    instance.must(&["user", "suspend", "bob@a.test"]).unwrap();
    assert!(instance.pop3("bob@a.test").is_err());
    send(&instance, "bob@a.test", LETTER);
    instance.wait_mail("bob@a.test", 5).unwrap();
    instance.must(&["user", "suspend", "bob@a.test", "--refuse-mail"]).unwrap();
    assert!(refused(&instance, "bob@a.test") && refused(&instance, "bob@b.test"));
    instance.must(&["user", "resume", "bob@a.test"]).unwrap();
    assert_eq!(instance.pop3("bob@b.test").err().map(|e| e.to_string()), None, "a login by the alias domain, too");
}

#[test]
fn a_renamed_user_keeps_mailbox_password_and_if_asked_the_old_address() {
    let mut instance = instance();
    send(&instance, "bob@a.test", LETTER);
    instance.wait_mail("bob@a.test", 1).unwrap();
    instance.must(&["alias", "add", "sales@a.test", "bob@a.test"]).unwrap();
    for (to, why) in [("carl@a.test", "exists already"), ("sales@a.test", "exists already"), ("x@b.test", "within the domain")] {
        let output = instance.qmail(&["user", "rename", "bob@a.test", to]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(100) && said.contains(why), "{to}: {said}");
    }
    instance.must(&["user", "rename", "bob@a.test", "rob@a.test", "--keep-alias"]).unwrap();
    assert!(!instance.maildir("bob@a.test").exists());
    instance.wait_mail("rob@a.test", 1).unwrap();
    for (count, to) in [(2, "rob@a.test"), (3, "bob@a.test"), (4, "sales@a.test")] {
        send(&instance, to, LETTER);
        instance.wait_mail("rob@a.test", count).unwrap();
    }
    assert!(instance.pop3("bob@a.test").is_err());
    let mut pop3 = system_tests::line::Pop3::login(instance.port(110), "rob@a.test", "bob-password").unwrap();
    assert_eq!(pop3.count().unwrap(), 4);
    pop3.must("QUIT").unwrap();
    // Another's mail that lies there is not his.
    instance.must(&["alias", "remove", "bob@a.test"]).unwrap();
    instance.with_input(&["user", "add", "old@a.test", "--password-stdin"], "x\n").unwrap();
    send(&instance, "old@a.test", LETTER);
    instance.wait_mail("old@a.test", 1).unwrap();
    instance.must(&["user", "remove", "old@a.test"]).unwrap();
    let output = instance.qmail(&["user", "rename", "rob@a.test", "old@a.test"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is a directory old already"), "{output:?}");
    instance.must(&["user", "rename", "rob@a.test", "bob@a.test"]).unwrap();
    assert!(refused(&instance, "rob@a.test"));
    instance.stop().unwrap();
    let output = instance.qmail(&["user", "rename", "bob@a.test", "rob@a.test"]).output().unwrap();
    assert_eq!(output.status.code(), Some(111), "{output:?}");
    assert!(instance.maildir("bob@a.test").exists());
}

#[test]
fn what_is_exported_is_imported_again() {
    let mut instance = instance();
    instance.must(&["domain", "set", "a.test", "--default-quota", "5M", "--catch-all", "bob@a.test"]).unwrap();
    instance.must(&["domain", "add", "b.test", "--alias-of", "a.test"]).unwrap();
    instance.must(&["domain", "admin", "add", "a.test", "ann@a.test"]).unwrap();
    instance.must(&["alias", "add", "info@a.test", "ann@a.test", "x@elsewhere.test"]).unwrap();
    instance.must(&["user", "forward", "carl@a.test", "c@elsewhere.test"]).unwrap();
    instance.must(&["user", "limits", "carl@a.test", "--per-hour", "7"]).unwrap();
    instance.with_input(&["user", "vacation", "ann@a.test", "--text-stdin", "--subject", "\"a\", b"], "x,\n\"y\"\n").unwrap();
    let table = instance.must(&["export", "--with-secrets"]).unwrap();
    assert!(!instance.must(&["export"]).unwrap().contains("$argon2id$") && table.contains("$argon2id$"));
    instance.stop().unwrap();
    let other = Instance::started(&[]).unwrap();
    let dry = other.qmail(&["import", "csv", "-", "--dry-run"]);
    let shown = system_tests::instance::feed(&mut { dry }, table.as_bytes()).unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("would add 2 domains, 3 users, 2 aliases"), "{shown:?}");
    assert_eq!(other.json(&["domain", "list"]).unwrap(), json!([]), "nothing was done");
    let said = other.with_input(&["import", "csv", "-"], &table).unwrap();
    assert!(said.contains("added 2 domains, 3 users, 2 aliases; 0 were there already"), "{said}");
    assert_eq!(other.must(&["export", "--with-secrets"]).unwrap(), table);
    let again = other.with_input(&["import", "csv", "-", "--json"], &table);
    // The administrator is one already, which is said.
    assert!(again.is_err());
    other.pop3("ann@b.test").unwrap();
    let lines = other.must(&["export", "a.test", "--json"]).unwrap();
    assert_eq!(lines.lines().count(), 7, "{lines}");
    assert!(lines.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"].is_string()));
}

#[test]
fn an_import_of_many_domains_makes_them_together() {
    let instance = Instance::started(&[]).unwrap();
    fs::write(instance.root.join("etc/qmail/control/locals"), "d3.test\n").unwrap();
    let users: String = (0..450).map(|n| format!("u@d{n}.test,$1$x$y\n")).collect();
    let imported = instance.with_input(&["import", "csv", "-", "--create-domains"], &format!("address,hash\n{users}"));
    let said = imported.unwrap_err().to_string();
    assert!(said.contains("exit status: 1"), "one is left out: {said}");
    assert_eq!(instance.json(&["domain", "list"]).unwrap().as_array().unwrap().len(), 449);
    assert_eq!(instance.json(&["user", "list"]).unwrap().as_array().unwrap().len(), 449);
    assert!(!refused(&instance, "u@d449.test") && refused(&instance, "x@d449.test"));
}

/// A tree as vpopmail leaves it: `base` holds `domains/`.
fn vpopmail_tree(base: &Path) {
    let file = |path: &str, text: &str| {
        let path = base.join("domains").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let maildir = |home: &str| {
        for sub in ["tmp", "new", "cur"] {
            fs::create_dir_all(base.join("domains").join(home).join("Maildir").join(sub)).unwrap();
        }
    };
    let user = |name: &str, hash: &str, domain: &str, home: &str, quota: &str, clear: &str| {
        format!("{name}:{hash}:1:0:{name}:/home/vpopmail/domains/{domain}/{home}:{quota}{clear}\n")
    };
    // crypt(3) of the name and `-password`.
    let md5 = "$1$saltsalt$n2UHcmwkeRfrUUuYBfYPu1";
    let sha = "$6$saltsalt$5Erk8Ih79/EW3vzhjiFX9UooN07a7AL1o3iclDXt3ZTwd3VkNk9ry1Fri2mapCw3onN6xT8W8dkEgtKhLqMPt/";
    let one = [
        user("md", md5, "one.test", "md", "NOQUOTA", ""),
        user("sha", sha, "one.test", "sha", "10485760S", ""),
        user("clear", "", "one.test", "clear", "1000C,5242880S", ":clear-password"),
    ];
    file("one.test/vpasswd", &one.concat());
    file("one.test/md/Maildir/cur/100.old:2,S", "Subject: old\n\nfrom before\n");
    ["one.test/md", "one.test/sha", "one.test/clear"].into_iter().for_each(maildir);
    file("one.test/.qmail-default", "| /home/vpopmail/bin/vdelivermail '' bounce-no-mailbox\n");
    file("one.test/.qmail-sales", "&md@one.test\n&x@elsewhere.test\n");
    file("one.test/.qmail-first:last", "/home/vpopmail/domains/one.test/sha/Maildir/\n");
    file("one.test/.qmail-list", "|/usr/bin/ezmlm-send /x\n");
    file("two.test/vpasswd", &user("catch", "", "two.test", "catch", "", ":catch-password"));
    file("two.test/.qmail-default", "| /home/vpopmail/bin/vdelivermail '' /home/vpopmail/domains/two.test/catch\n");
    // A large host: the domain and its users in hashed directories.
    file("0/three.test/vpasswd", &user("deep", "", "three.test", "A/deep", "NOQUOTA", ":deep-password"));
    maildir("0/three.test/A/deep");
    file("0/three.test/A/deep/Maildir/new/1.h", "Subject: deep\n\nx\n");
    file("0/three.test/.qmail-default", "| /home/vpopmail/bin/vdelivermail '' any@elsewhere.test\n");
    file("assign", "+one.test-:one.test:1:1:/x/domains/one.test:-::\n+uno.test-:one.test:1:1:/x/domains/one.test:-::\n.\n");
}

/// The answer to AUTH PLAIN.
fn auth(instance: &Instance, user: &str, password: &str) -> String {
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO client.example.test", "250").unwrap();
    smtp.ask(&format!("AUTH PLAIN {}", wire::base64::encode(format!("\0{user}\0{password}").as_bytes()))).unwrap()
}

/// Gives a tree to the user who owns the mail, as root alone can.
fn give(path: &Path, instance: &Instance) {
    if !is_root() {
        return;
    }
    let ids = fs::read_to_string(instance.root.join("etc/qmail/ids")).unwrap();
    let vmail = ids.lines().find_map(|line| line.strip_prefix("vmail ")).unwrap().replace(' ', ":");
    let done = std::process::Command::new("chown").args(["-R", &vmail]).arg(path).status().unwrap();
    assert!(done.success());
}

#[test]
fn a_vpopmail_tree_is_taken_over_where_it_lies() {
    let control = [("authcleartext", "127.0.0.1/32\n"), ("authlimits", "exempt=127.0.0.1/32\npause=0\n")];
    let instance = Instance::started(&control).unwrap();
    let tree = instance.dir().join("vpopmail");
    vpopmail_tree(&tree);
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).unwrap();
    give(&tree, &instance);
    let at = |path: &str| -> PathBuf { tree.join("domains").join(path) };
    let assign = at("assign").display().to_string();
    let import = |more: &[&str]| {
        let dir = tree.display().to_string();
        let args: Vec<&str> = ["import", "vpopmail", &dir, "--assign", &assign].into_iter().chain(more.iter().copied()).collect();
        let output = instance.qmail(&args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = import(&["--dry-run", "--move-homes"]);
    assert!(
        code == Some(1) && said.contains("would rename") && said.contains("would add 4 domains, 5 users, 4 aliases"),
        "{said}"
    );
    assert_eq!(instance.json(&["domain", "list"]).unwrap(), json!([]));
    assert!(!at("0/three.test/deep").exists());
    let (code, said) = import(&[]);
    assert!(code == Some(1) && said.contains("say --move-homes") && said.contains(".qmail-list"), "{said}");
    assert!(said.contains("added 4 domains, 4 users, 4 aliases"), "{said}");
    let (code, said) = import(&["--move-homes"]);
    assert!(code == Some(1) && said.contains("added 0 domains, 1 users, 0 aliases; 8 were there already"), "{said}");
    assert!(at("0/three.test/deep/Maildir/new/1.h").exists());
    let shown = |address: &str| instance.json(&["user", "show", address]).unwrap();
    assert_eq!((&shown("sha@one.test")["quota"], &shown("clear@one.test")["quota"]), (&json!(10_485_760), &json!(5_242_880)));
    assert_eq!((&shown("clear@one.test")["quota_messages"], &shown("md@one.test")["quota"]), (&json!(1000), &json!(null)));
    assert!(instance.must(&["export", "one.test", "--with-secrets"]).unwrap().contains("$1$saltsalt$"));
    // Each kind of hash opens the account, by SMTP and POP3, again once it has been made anew; a wrong password does not.
    for (user, password) in [
        ("md@one.test", "md-password"),
        ("sha@one.test", "sha-password"),
        ("clear@one.test", "clear-password"),
        ("sha@uno.test", "sha-password"),
        ("catch@two.test", "catch-password"),
        ("deep@three.test", "deep-password"),
    ] {
        for _ in 0..2 {
            assert!(auth(&instance, user, password).starts_with("235 "), "{user}");
            instance.pop3(user).unwrap();
        }
        assert!(auth(&instance, user, "wrong").starts_with("535 "), "{user}");
    }
    // What is there is read, and new mail lies beside it.
    let mut pop3 = instance.pop3("deep@three.test").unwrap();
    assert!(pop3.message(1).unwrap().contains("Subject: deep"));
    pop3.must("QUIT").unwrap();
    instance.pop3("clear@uno.test").unwrap();
    instance.pop3("catch@two.test").unwrap();
    let letters = |home: &str| fs::read_dir(at(home).join("Maildir/new")).map_or(0, Iterator::count);
    for (to, home, count) in [
        ("md@one.test", "one.test/md", 1),
        ("sha@uno.test", "one.test/sha", 1),
        ("first.last@one.test", "one.test/sha", 2),
        ("whoever@two.test", "two.test/catch", 1),
        ("deep@three.test", "0/three.test/deep", 1),
    ] {
        instance.smtp().unwrap().send("s@elsewhere.test", &[to], "Subject: new\n\nx\n").unwrap();
        wait_for(&format!("a letter for {to}"), || (letters(home) == count).then_some(())).unwrap();
    }
    // An imported quota holds.
    instance.must(&["user", "quota", "clear@one.test", "5242880", "--messages", "1"]).unwrap();
    instance.smtp().unwrap().send("s@elsewhere.test", &["clear@one.test"], "Subject: new\n\nx\n").unwrap();
    wait_for("a letter for clear", || (letters("one.test/clear") == 1).then_some(())).unwrap();
    assert!(fs::read_to_string(at("one.test/clear/Maildir/maildirsize")).unwrap().starts_with("5242880S,1C\n"));
    assert!(answer_to_rcpt(&instance, "clear@one.test").starts_with("552 5.2.2 "));
    let md = instance.json(&["export", "one.test", "--with-secrets"]);
    assert!(md.is_err(), "an object a line is no one object");
    assert!(refused(&instance, "whoever@one.test") && !refused(&instance, "sales@one.test"));
    let aliases = instance.json(&["alias", "list", "one.test"]).unwrap();
    assert_eq!(aliases.as_array().unwrap().len(), 2, "{aliases}");
}
