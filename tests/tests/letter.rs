//! A letter through the whole system: in by SMTP, into a mailbox, out by POP3.
#![allow(clippy::unwrap_used)]

use system_tests::{Instance, wait_for};

const LETTER: &str = "From: a@example.test\nSubject: one\n\nThe first line.\n.A dot first.\n..\n.\nLast line.\n";

fn wait_for_messages(instance: &Instance, address: &str, count: usize) -> Vec<String> {
    wait_for(&format!("{count} messages of {address}"), || {
        let mut pop3 = instance.pop3(address).unwrap();
        let all = (pop3.count().unwrap() == count).then(|| (1..=count).map(|n| pop3.message(n).unwrap()).collect());
        pop3.must("QUIT").unwrap();
        all
    })
    .unwrap()
}

#[test]
fn a_letter_to_a_virtual_user_comes_back_whole() {
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let accepted = instance.smtp().unwrap().send("alice@example.test", &["bob@example.test"], LETTER).unwrap();
    assert!(accepted.starts_with("250 2.0.0 ok ") && accepted.contains(" qp "), "{accepted}");
    let letter = wait_for_messages(&instance, "bob@example.test", 1).remove(0);
    let (header, body) = letter.split_once("\n\n").unwrap();
    let lines: Vec<&str> = header.lines().collect();
    assert_eq!(lines[0], "Return-Path: <alice@example.test>");
    assert_eq!(lines[1], "Delivered-To: bob@example.test");
    assert!(lines[2].starts_with("Received: (qmail ") && lines[2].contains(" invoked "), "{letter}");
    assert!(lines[3].starts_with("Received: from ") && lines[4].contains(" with ESMTP; "), "{letter}");
    assert_eq!(lines[5..], ["From: a@example.test", "Subject: one"]);
    assert_eq!(body, "The first line.\n.A dot first.\n..\n.\nLast line.\n");
    instance.wait_empty().unwrap();
    for line in
        ["new msg ", "info msg ", "starting delivery 1: msg ", " to local bob@example.test", "delivery 1: success: ", "end msg "]
    {
        instance.wait_log(line).unwrap();
    }
}

#[test]
fn who_is_known_and_who_is_not() {
    let instance = Instance::started(&[("relayclients", "")]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO c", "250").unwrap();
    smtp.must("MAIL FROM:<a@elsewhere.test>", "250").unwrap();
    assert!(smtp.ask("RCPT TO:<nobody@example.test>").unwrap().starts_with("550 5.1.1"));
    assert!(smtp.ask("RCPT TO:<a@elsewhere.test>").unwrap().starts_with("553 5.7.1"));
    assert!(smtp.ask("RCPT TO:<bob-list@example.test>").unwrap().starts_with("550 5.1.1"), "no .qmail-list");
    smtp.must("RCPT TO:<bob+list@example.test>", "250").unwrap();
    smtp.must("RCPT TO:<BOB@Example.TEST>", "250").unwrap();
    // Effective at once, in both directions, within the session.
    assert!(smtp.ask("RCPT TO:<carol@example.test>").unwrap().starts_with("550"));
    instance.with_input(&["user", "add", "carol@example.test", "--password-stdin"], "pw\n").unwrap();
    smtp.must("RCPT TO:<carol@example.test>", "250").unwrap();
    instance.must(&["user", "remove", "carol@example.test"]).unwrap();
    assert!(smtp.ask("RCPT TO:<carol@example.test>").unwrap().starts_with("550"));
    instance.must(&["domain", "add", "second.test"]).unwrap();
    assert!(smtp.ask("RCPT TO:<x@second.test>").unwrap().starts_with("550 5.1.1"), "ours, and nobody there");
    instance.must(&["alias", "add", "x@second.test", "bob@example.test"]).unwrap();
    smtp.must("RCPT TO:<x@second.test>", "250").unwrap();
}

#[test]
fn an_alias_forwards_and_a_loop_bounces() {
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob", "carol"]).unwrap();
    instance.must(&["alias", "add", "both@example.test", "bob@example.test", "carol@example.test"]).unwrap();
    assert!(instance.must(&["alias", "add", "self@example.test", "self@example.test"]).is_err(), "it could only loop");
    instance.must(&["alias", "add", "loop@example.test", "back@example.test"]).unwrap();
    instance.must(&["alias", "add", "back@example.test", "loop@example.test"]).unwrap();
    instance.smtp().unwrap().send("carol@example.test", &["both@example.test"], LETTER).unwrap();
    for user in ["bob@example.test", "carol@example.test"] {
        let letter = wait_for_messages(&instance, user, 1).remove(0);
        assert!(
            letter.contains(&format!("Delivered-To: {user}\n")) && letter.contains("Delivered-To: both@example.test\n"),
            "{letter}"
        );
    }
    instance.smtp().unwrap().send("bob@example.test", &["loop@example.test"], LETTER).unwrap();
    let bounce = wait_for_messages(&instance, "bob@example.test", 2).remove(1);
    for part in [
        "Return-Path: <>\n",
        "Subject: failure notice\n",
        "Hi. This is the qmail-send program at ",
        "<loop@example.test>:",
        "(#5.4.6)",
        "The first line.",
    ] {
        assert!(bounce.contains(part), "the bounce lacks `{part}`:\n{bounce}");
    }
    instance.wait_empty().unwrap();
}

#[test]
fn pop3_deletes_at_quit_only_and_moves_to_cur() {
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    for subject in ["one", "two"] {
        let letter = format!("Subject: {subject}\n\nbody\n");
        instance.smtp().unwrap().send("a@example.test", &["bob@example.test"], &letter).unwrap();
    }
    wait_for_messages(&instance, "bob@example.test", 2);
    let mut pop3 = instance.pop3("bob@example.test").unwrap();
    let ids = pop3.lines("UIDL").unwrap();
    pop3.must("DELE 1").unwrap();
    drop(pop3);
    let mut pop3 = instance.pop3("bob@example.test").unwrap();
    assert_eq!(pop3.lines("UIDL").unwrap(), ids, "without QUIT nothing is deleted");
    pop3.must("DELE 1").unwrap();
    pop3.must("QUIT").unwrap();
    let mut pop3 = instance.pop3("bob@example.test").unwrap();
    let left = pop3.lines("UIDL").unwrap();
    assert_eq!(left.len(), 1);
    let id = |line: &[u8]| String::from_utf8(line.to_vec()).unwrap().split(' ').nth(1).unwrap().to_owned();
    assert_eq!(id(&left[0]), id(&ids[1]));
    assert!(Pop3Refused::is(&instance, "bob@example.test", "wrong") && Pop3Refused::is(&instance, "nobody@example.test", "x"));
}

struct Pop3Refused;

impl Pop3Refused {
    fn is(instance: &Instance, user: &str, password: &str) -> bool {
        system_tests::Pop3::login(instance.port(110), user, password).is_err_and(|e| e.to_string().contains("-ERR"))
    }
}

#[test]
fn what_is_accepted_survives_a_restart_and_a_kill() {
    let mut instance = Instance::started(&[("concurrencylocal", "0")]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    instance.smtp().unwrap().send("a@example.test", &["bob@example.test"], LETTER).unwrap();
    assert_eq!(instance.json(&["queue", "stats"]).unwrap()["messages"], 1);
    instance.stop().unwrap();
    instance.start().unwrap();
    assert_eq!(instance.json(&["queue", "stats"]).unwrap()["messages"], 1);
    instance.smtp().unwrap().send("a@example.test", &["bob@example.test"], LETTER).unwrap();
    instance.kill_start().unwrap();
    instance.control("concurrencylocal", "10").unwrap();
    instance.start().unwrap();
    wait_for_messages(&instance, "bob@example.test", 2);
    instance.wait_empty().unwrap();
}

#[test]
fn a_second_start_says_that_one_runs() {
    let instance = Instance::started(&[]).unwrap();
    let output = instance.qmail(&["start"]).output().unwrap();
    assert_eq!(output.status.code(), Some(111));
    assert!(String::from_utf8_lossy(&output.stderr).contains("running already"), "{output:?}");
    instance.must(&["queue", "stats"]).unwrap();
}
