//! What a sender asks for of the transfer, through the whole system: a time to deliver by (RFC 2852), a priority (RFC 6710), and what a
//! message that is forwarded keeps of it and of the reports (RFC 3461); with servers that offer the extensions and servers that do not.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use system_tests::instance::feed;
use system_tests::line::Smtp;
use system_tests::peer::{Event, Letter};
use system_tests::postfix::{MAILBOX, Postfix};
use system_tests::{Instance, Peer, skip, tools, wait_for};

const BOB: &str = "bob@example.test";

struct Rig {
    instance: Instance,
    /// Offers nothing.
    plain: Peer,
    /// Offers DELIVERBY from 30 seconds on, MT-PRIORITY and DSN.
    able: Peer,
    /// The same without a least time; takes nothing.
    busy: Peer,
}

fn rig() -> Rig {
    let able = |event: Event<'_>| match event {
        Event::Command(command) if command.starts_with("EHLO") => {
            Some("250-peer.test|250-PIPELINING|250-DELIVERBY 30|250-MT-PRIORITY MIXER|250-SIZE|250 DSN")
        }
        _ => None,
    };
    let busy = |event: Event<'_>| match event {
        Event::Command(command) if command.starts_with("EHLO") => Some("250-peer.test|250 DELIVERBY"),
        Event::Command(command) if command.starts_with("RCPT") => Some("450 4.2.1 not now"),
        _ => None,
    };
    let (plain, able) = (Peer::willing().unwrap(), Peer::start("127.0.0.1:0", able).unwrap());
    let busy = Peer::start("127.0.0.1:0", busy).unwrap();
    let routes = [plain.route("plain.test"), able.route("able.test"), busy.route("busy.test")].concat();
    let instance = Instance::started(&[("smtproutes", &routes), ("mtpriority", "all\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob", "ann"]).unwrap();
    instance.must(&["alias", "add", "team@example.test", "x@able.test"]).unwrap();
    Rig { instance, plain, able, busy }
}

impl Rig {
    /// Bob's letter on the submission port; everything that was replied.
    fn submit(&self, mail: &str, to: &str) -> String {
        let login = format!("AUTH PLAIN {}", wire::base64::encode(format!("\0{BOB}\0bob-password").as_bytes()));
        let letter = format!("MAIL FROM:<{BOB}> {mail}\r\nRCPT TO:{to}\r\nDATA\r\nSubject: x\r\n\r\nthe text\r\n.\r\n");
        talk(self.instance.port(587), &format!("EHLO c.test\r\n{login}\r\n{letter}QUIT\r\n"))
    }

    /// Bob's letters, one of which has all of these parts.
    fn report(&self, count: usize, parts: &[&str]) -> String {
        let letters = self.instance.wait_mail(BOB, count).unwrap();
        let found = letters.iter().find(|letter| parts.iter().all(|part| letter.contains(part)));
        found.unwrap_or_else(|| panic!("{parts:?} in none of\n{}", letters.join("\n=====\n"))).clone()
    }
}

/// Whole replies, joined.
fn talk(port: u16, said: &str) -> String {
    let mut smtp = Smtp::open(port).unwrap();
    smtp.0.raw(said.as_bytes()).unwrap();
    let mut replies = Vec::new();
    while replies.last().is_none_or(|reply: &String| !reply.starts_with("221")) {
        replies.push(smtp.reply().unwrap());
    }
    replies.join("\n")
}

fn letter_at(peer: &Peer, to: &str) -> Letter {
    wait_for("the letter", || peer.letters().into_iter().find(|letter| letter.to.iter().any(|found| found.contains(to)))).unwrap()
}

/// The seconds and the mode of BY= in MAIL.
fn by(letter: &Letter) -> (i64, String) {
    let value = letter.from.split(" BY=").nth(1).unwrap().split(' ').next().unwrap();
    let (seconds, mode) = value.split_once(';').unwrap();
    (seconds.parse().unwrap(), mode.to_owned())
}

#[test]
fn who_keeps_the_time_gets_what_is_left_of_it() {
    let rig = rig();
    let replies = rig.submit("BY=600;R", "<r@able.test>");
    assert!(replies.contains("250-DELIVERBY\n") && replies.contains("250-MT-PRIORITY\n"), "{replies}");
    let (seconds, mode) = by(&letter_at(&rig.able, "<r@able.test>"));
    assert!((400..=600).contains(&seconds) && mode == "R", "{seconds}");
    // Each relay is told of, if that is asked for.
    rig.submit("BY=600;NT", "<nt@able.test>");
    assert_eq!(by(&letter_at(&rig.able, "<nt@able.test>")).1, "NT");
    rig.report(1, &["Subject: delivery report\n", "nt@able.test\nAction: relayed\n"]);
    // Over already, and the sender knows it.
    rig.submit("BY=-5;N", "<late@able.test>");
    assert!(by(&letter_at(&rig.able, "<late@able.test>")).0 <= -5);
    // Delivered here nobody has to be told of anything.
    rig.submit("BY=600;R", "<ann@example.test>");
    rig.instance.wait_mail("ann@example.test", 1).unwrap();
    rig.instance.wait_empty().unwrap();
    rig.report(1, &["Action: relayed"]);
}

#[test]
fn who_does_not_keep_the_time_gets_the_message_only_if_it_may_go_on() {
    let rig = rig();
    rig.submit("BY=600;R", "<r@plain.test>");
    rig.report(1, &["Subject: failure notice\n", "r@plain.test\nAction: failed\nStatus: 5.3.3\n"]);
    rig.submit("BY=20;R", "<r@able.test>");
    rig.report(2, &["Subject: failure notice\n", "r@able.test\nAction: failed\nStatus: 5.4.7\n"]);
    rig.submit("BY=600;N", "<n@plain.test>");
    rig.report(3, &["Subject: delivery report\n", "n@plain.test\nAction: relayed\nStatus: 2.0.0\n"]);
    rig.submit("BY=600;N", "<never@plain.test> NOTIFY=NEVER");
    letter_at(&rig.plain, "<never@plain.test>");
    rig.instance.wait_empty().unwrap();
    rig.report(3, &[]);
    let letters = rig.plain.letters();
    assert_eq!(letters.len(), 2, "{letters:?}");
    assert!(letters.iter().all(|letter| !letter.from.contains("BY=")), "{letters:?}");
    assert!(rig.able.letters().is_empty());
}

#[test]
fn beyond_its_time_a_message_goes_back_or_its_sender_is_told_even_after_a_restart() {
    let mut rig = rig();
    rig.submit("BY=6;R ENVID=mine", "<r@busy.test>");
    rig.submit("BY=6;N", "<n@busy.test>");
    wait_for("attempts", || {
        (rig.busy.commands().iter().filter(|command| command.starts_with("RCPT")).count() >= 2).then_some(())
    })
    .unwrap();
    let listed = rig.instance.json(&["queue", "list"]).unwrap();
    assert!(listed[0]["deliver_by_s"].as_u64().unwrap() > listed[0]["arrival_s"].as_u64().unwrap(), "{listed}");
    rig.instance.stop().unwrap();
    rig.instance.start().unwrap();
    let failed = rig.report(2, &["Subject: failure notice\n", "r@busy.test\nAction: failed\nStatus: 5.4.7\n"]);
    assert!(failed.contains("\nOriginal-Envelope-Id: mine\n"), "{failed}");
    rig.report(2, &["Subject: delayed, still trying\n", "n@busy.test\nAction: delayed\nStatus: 4.4.7\n"]);
    wait_for("one message that goes on", || (rig.instance.json(&["queue", "stats"]).ok()?["messages"] == 1).then_some(()))
        .unwrap();
    // A later attempt says that the sender was told.
    rig.instance.must(&["queue", "retry", "--all"]).unwrap();
    wait_for("an attempt after the time", || rig.busy.commands().iter().any(|command| command.contains(" BY=-")).then_some(()))
        .unwrap();
}

#[test]
fn an_urgent_message_says_so_on_its_way() {
    let rig = rig();
    let replies = rig.submit("MT-PRIORITY=4", "<u@able.test>");
    assert!(!replies.contains("2.3.6"), "{replies}");
    let letter = letter_at(&rig.able, "<u@able.test>");
    assert!(letter.from.contains(" MT-PRIORITY=4") && !letter.text().contains("MT-Priority"), "{letter:?}");
    assert!(letter.text().contains(" PRIORITY 4; "), "{}", letter.text());
    rig.submit("MT-PRIORITY=-3", "<u@plain.test>");
    let letter = letter_at(&rig.plain, "<u@plain.test>");
    assert!(letter.text().starts_with("MT-Priority: -3\nReceived: ") && !letter.from.contains("PRIORITY"), "{letter:?}");
    let size: usize =
        letter_at(&rig.able, "<u@able.test>").from.split(" SIZE=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert_eq!(size, letter_at(&rig.able, "<u@able.test>").body.len());
    // A stranger gets ahead of nobody.
    let said =
        "EHLO c.test\r\nMAIL FROM:<x@elsewhere.test> MT-PRIORITY=9\r\nRCPT TO:<ann@example.test>\r\nDATA\r\n\r\n.\r\nQUIT\r\n";
    let replies = talk(rig.instance.port(25), said);
    assert_eq!(replies.matches("250 2.3.6 0 is the new priority assigned to the message").count(), 2, "{replies}");
    assert!(!replies.contains("DSN") && !replies.contains("DELIVERBY"), "strangers have no reports made: {replies}");
    assert!(rig.instance.wait_mail("ann@example.test", 1).unwrap()[0].contains(" PRIORITY 0; "));
    // People see it, too.
    rig.submit("MT-PRIORITY=7 BY=9999;N", "<u@busy.test>");
    let shown = wait_for("the message", || {
        let listed = rig.instance.json(&["queue", "list"]).ok()?;
        listed.as_array()?.iter().find(|row| row["priority"] == 7).cloned()
    });
    let id = shown.unwrap()["id"].to_string();
    assert_eq!(rig.instance.json(&["queue", "show", &id]).unwrap()["priority"], 7);
    assert!(rig.instance.must(&["queue", "list"]).unwrap().contains("PRIORITY"));
}

#[test]
fn what_is_forwarded_keeps_what_was_asked_for() {
    let rig = rig();
    std::fs::write(rig.instance.maildir("ann@example.test").parent().unwrap().join(".qmail"), "&y@able.test\n").unwrap_or_else(
        |_| {
            // Her home is made with her first letter.
            rig.submit("", "<ann@example.test>");
            rig.instance.wait_mail("ann@example.test", 1).unwrap();
            std::fs::write(rig.instance.maildir("ann@example.test").parent().unwrap().join(".qmail"), "&y@able.test\n").unwrap();
        },
    );
    let parameters = "BY=600;R MT-PRIORITY=2 RET=HDRS ENVID=mine";
    rig.submit(parameters, "<team@example.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Team@example.test");
    rig.submit(parameters, "<ann@example.test> NOTIFY=SUCCESS");
    for (to, notify) in [("x@able.test", "NOTIFY=FAILURE ORCPT=rfc822;Team@example.test"), ("y@able.test", "NOTIFY=NEVER")] {
        let letter = letter_at(&rig.able, to);
        assert_eq!(letter.to, [format!("<{to}> {notify}")]);
        assert!(
            letter.from.starts_with(&format!("<{BOB}> ")) && letter.from.ends_with(" MT-PRIORITY=2 RET=HDRS ENVID=mine"),
            "{letter:?}"
        );
        assert!(by(&letter).0 <= 600 && by(&letter).1 == "R");
    }
    rig.report(2, &["team@example.test\nAction: expanded\n"]);
    rig.report(2, &["ann@example.test\nAction: expanded\n"]);
    rig.instance.wait_empty().unwrap();
}

#[test]
fn sendmail_asks_for_reports() {
    let rig = rig();
    let sendmail = |args: &[&str]| {
        let mut command = std::process::Command::new(rig.instance.program("sendmail"));
        command.env("QMAIL_ROOT", &rig.instance.root).arg("-f").arg(BOB).args(args);
        feed(&mut command, b"Subject: x\n\nthe text\n").unwrap()
    };
    let output = sendmail(&["-N", "success", "-V", "QQ+2B1", "-R", "hdrs", "ann@example.test"]);
    assert!(output.status.success(), "{output:?}");
    let report = rig.report(1, &["Subject: delivery report\n", "ann@example.test\nAction: delivered\n"]);
    assert!(report.contains("\nOriginal-Envelope-Id: QQ+1\n"), "{report}");
    let output = sendmail(&["-N", "sometimes", "ann@example.test"]);
    assert_eq!(output.status.code(), Some(100));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("sendmail: fatal: QMAILNOTIFY (-N) has to be "), "{output:?}");
    rig.instance.wait_empty().unwrap();
    assert_eq!(rig.instance.wait_mail("ann@example.test", 1).unwrap().len(), 1);
}

#[test]
fn a_real_postfix_reports_what_it_took_over_and_is_told_of_where_it_does_not_keep_the_time() {
    let name = "a_real_postfix_reports_what_it_took_over_and_is_told_of_where_it_does_not_keep_the_time";
    if !rustix::process::geteuid().is_root() {
        return skip(name, "Postfix starts as root only");
    }
    let Some(tool) = tools::get(name, "postfix", "usr/lib/postfix/sbin/master").unwrap() else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut rig = rig();
    rig.instance.stop().unwrap();
    rig.instance.control("smtproutes", &format!("postfix.test:127.0.0.1:{port}\n")).unwrap();
    rig.instance.start().unwrap();
    let postfix = Postfix::start(&tool, rig.instance.dir(), port, rig.instance.port(25)).unwrap();
    rig.submit("ENVID=mine", &format!("<{MAILBOX}> NOTIFY=SUCCESS ORCPT=rfc822;box@postfix.test"));
    let report = rig.report(1, &["mx.postfix.test", "Action: delivered", "Original-Envelope-Id: mine"]);
    assert!(report.contains("Reporting-MTA: dns; mx.postfix.test"), "{report}\n{}", postfix.log());
    rig.submit("BY=600;N MT-PRIORITY=3", &format!("<{MAILBOX}>"));
    rig.report(2, &["Subject: delivery report\n", "box@postfix.test\nAction: relayed\n"]);
    let there = rig.instance.wait_letters(&postfix.maildir(), 2).unwrap();
    assert!(there.iter().any(|letter| letter.contains("\nMT-Priority: 3\n")), "{there:?}");
    rig.submit("BY=600;R", &format!("<{MAILBOX}>"));
    rig.report(3, &["box@postfix.test\nAction: failed\nStatus: 5.3.3\n"]);
}
