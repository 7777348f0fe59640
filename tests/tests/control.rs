//! The control files and users/assign, by what the running system does.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use system_tests::dns::{self, Record};
use system_tests::instance::feed;
use system_tests::line::{Line, Smtp};
use system_tests::users::letters;
use system_tests::{Instance, Peer, Person, facts, is_root, skip, tools, wait_for};

const LETTER: &str = "Subject: x\n\nbody\n";
const RELAY: (&str, &str) = ("relayclients", "127.0.0.0/8\n");

/// What stands behind `Delivered-To: ` in the first of these lines.
fn delivered_to(letter: &str) -> String {
    letter.lines().find_map(|line| line.strip_prefix("Delivered-To: ")).unwrap_or_default().to_owned()
}

/// Sends to each of them alone; no recipient may depend on another.
fn send(instance: &Instance, to: impl IntoIterator<Item = impl AsRef<str>>) {
    for to in to {
        instance
            .smtp()
            .unwrap()
            .send("a@elsewhere.test", &[to.as_ref()], LETTER)
            .unwrap_or_else(|e| panic!("{}: {e}", to.as_ref()));
    }
}

#[test]
fn recipients_go_where_locals_virtualdomains_percenthack_and_envnoathost_say() {
    let peer = Peer::willing().unwrap();
    let mut instance = Instance::new().unwrap();
    let person = Person::new(&instance).unwrap();
    person.maildir("Maildir").unwrap();
    person.write(".qmail-default", "./Maildir/\n").unwrap();
    let p = &person.name;
    let virtualdomains = format!(
        "virt.test:{p}\n.sub.test:{p}-sub\nx.sub.test:\none@exc.test:{p}-one\nexc.test:\none@virt.test:{p}-only\n:{p}-all\n"
    );
    for (name, text) in [
        RELAY,
        ("smtproutes", &peer.route("")),
        ("locals", "mail.example.test\nlocal.test\n"),
        ("virtualdomains", &virtualdomains),
        ("percenthack", "hack.test\n"),
        ("envnoathost", "virt.test\n"),
    ] {
        instance.control(name, text).unwrap();
    }
    instance.start().unwrap();
    let local = [
        (format!("{p}@mail.example.test"), format!("{p}@mail.example.test")),
        (format!("{p}-ext@Local.TEST"), format!("{p}-ext@Local.TEST")),
        ("foo@virt.test".into(), format!("{p}-foo@virt.test")),
        ("one@virt.test".into(), format!("{p}-only-one@virt.test")),
        ("foo@a.sub.test".into(), format!("{p}-sub-foo@a.sub.test")),
        ("foo@b.a.sub.test".into(), format!("{p}-sub-foo@b.a.sub.test")),
        ("foo@sub.test".into(), format!("{p}-all-foo@sub.test")),
        ("one@exc.test".into(), format!("{p}-one-one@exc.test")),
        ("any@where.else.test".into(), format!("{p}-all-any@where.else.test")),
        ("hacked%virt.test@hack.test".into(), format!("{p}-hacked@virt.test")),
        ("twice%virt.test%hack.test@HACK.test".into(), format!("{p}-twice@virt.test")),
        ("not%hack.test@virt.test".into(), format!("{p}-not%hack.test@virt.test")),
        ("nohost".into(), format!("{p}-nohost@virt.test")),
    ];
    let remote = ["two@exc.test", "foo@x.sub.test"];
    send(&instance, local.iter().map(|(to, _)| to.as_str()).chain(remote));
    let letters = instance.wait_letters(&person.home.join("Maildir"), local.len()).unwrap();
    let arrived: BTreeSet<String> = letters.iter().map(|letter| delivered_to(letter)).collect();
    assert_eq!(arrived, local.into_iter().map(|(_, delivered)| delivered).collect());
    instance.wait_empty().unwrap();
    let to: BTreeSet<String> = peer.letters().into_iter().flat_map(|letter| letter.to).collect();
    assert_eq!(to, remote.map(|to| format!("<{to}>")).into());
}

#[test]
fn who_may_send_what_to_whom() {
    let instance = Instance::started(&[
        ("rcpthosts", "# a comment\nmail.example.test\nHosted.test\n.wild.test\n"),
        ("badmailfrom", "@spam.test\nbad@elsewhere.test\n"),
        ("maxrcpt", "3\n"),
        ("smtpgreeting", "greeting.example.test hello\n"),
    ])
    .unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let mut line = Line::open(instance.port(25)).unwrap();
    assert_eq!(line.line().unwrap(), b"220 greeting.example.test hello ESMTP");
    let mut smtp = instance.smtp().unwrap();
    assert_eq!(smtp.ask("HELO c").unwrap(), "250 greeting.example.test hello");
    for (to, code) in [
        ("x@hosted.test", "250 2.1.5"),
        ("x@HOSTED.TEST", "250 2.1.5"),
        ("x@a.wild.test", "250 2.1.5"),
        ("x@b.a.wild.test", "250 2.1.5"),
        ("x@wild.test", "553 5.7.1"),
        ("x@a.hosted.test", "553 5.7.1"),
        ("x@test", "553 5.7.1"),
        ("x@elsewhere.test", "553 5.7.1"),
        ("bob@example.test", "250 2.1.5"),
        ("nobody@example.test", "550 5.1.1"),
        ("postmaster@mail.example.test", "250 2.1.5"),
        ("nobody@mail.example.test", "550 5.1.1"),
        ("x%hosted.test@elsewhere.test", "553 5.7.1"),
        ("@hosted.test:x@elsewhere.test", "553 5.7.1"),
        ("\"x@hosted.test\"@elsewhere.test", "553 5.7.1"),
    ] {
        smtp.must("MAIL FROM:<a@elsewhere.test>", "250").unwrap();
        let reply = smtp.ask(&format!("RCPT TO:<{to}>")).unwrap();
        assert!(reply.starts_with(code), "{to}: {reply}");
    }
    for (from, is_bad) in [
        ("x@spam.test", true),
        ("x@SPAM.test", true),
        ("Bad@elsewhere.test", true),
        ("good@elsewhere.test", false),
        ("x@a.spam.test", false),
        ("", false),
    ] {
        let replies = [smtp.ask(&format!("MAIL FROM:<{from}>")).unwrap(), smtp.ask("RCPT TO:<bob@example.test>").unwrap()];
        let refused =
            replies.iter().any(|reply| reply.starts_with("553 5.7.1 sorry, your envelope sender is in my badmailfrom list"));
        assert_eq!((refused, replies[1].starts_with("250")), (is_bad, !is_bad), "{from}: {replies:?}");
    }
    smtp.must("MAIL FROM:<a@elsewhere.test>", "250").unwrap();
    for _ in 0..3 {
        smtp.must("RCPT TO:<bob@example.test>", "250").unwrap();
    }
    smtp.must("RCPT TO:<bob@example.test>", "452 4.5.3").unwrap();
    smtp.must("DATA", "354").unwrap();
    smtp.0.raw(b"Subject: x\r\n\r\n.\r\n").unwrap();
    assert!(smtp.reply().unwrap().starts_with("250 "));
    instance.wait_mail("bob@example.test", 3).unwrap();
}

#[test]
fn relayclients_may_send_anywhere_and_nobody_else() {
    for (relayclients, code) in [("127.0.0.0/8\n", "250"), ("127.0.0.2\n10.0.0.0/8\n", "553 5.7.1"), ("", "553 5.7.1")] {
        let instance = Instance::started(&[("relayclients", relayclients)]).unwrap();
        let mut smtp = instance.smtp().unwrap();
        assert_eq!(smtp.ask("EHLO c").unwrap().contains("XVERP"), code == "250");
        smtp.must("MAIL FROM:<a@elsewhere.test>", "250").unwrap();
        smtp.must("RCPT TO:<x@elsewhere.test>", code).unwrap();
    }
}

/// Rules of tcprules(1) for the service `smtp`: who is denied, who may relay, a range, the rule for all others; other rules by SIGHUP.
#[test]
fn tcp_smtp_says_who_may_connect_and_relay() {
    const RULES: &str = "127.0.0.2:allow,RELAYCLIENT=\"\",DATABYTES=\"77\"\n127.0.0.3:allow\n127.0.0.10-12:allow\n:deny\n";
    let instance = Instance::started(&[("tcp.smtp", RULES)]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let greeted = |last: u8, port: u16| {
        let mut line = Line::open_from(Ipv4Addr::new(127, 0, 0, last), instance.port(port)).unwrap();
        let greeting = String::from_utf8(line.line().unwrap()).unwrap();
        (line, greeting)
    };
    // 250 for whom it is, if it may connect.
    let relays = |last: u8| {
        let (line, greeting) = greeted(last, 25);
        if !greeting.starts_with("220 ") {
            assert!(greeting.starts_with("554 5.7.1 "), "{greeting}");
            return None;
        }
        let mut smtp = Smtp(line, greeting);
        let offers = smtp.must("EHLO c", "250").unwrap();
        assert_eq!(offers.contains("SIZE 77\n"), last == 2, "{offers}");
        smtp.must("MAIL FROM:<a@elsewhere.test>", "250").unwrap();
        smtp.must("RCPT TO:<bob@example.test>", "250").unwrap();
        Some(smtp.ask("RCPT TO:<x@elsewhere.test>").unwrap().starts_with("250 "))
    };
    let expected = [(1, None), (2, Some(true)), (3, Some(false)), (9, None), (10, Some(false)), (12, Some(false)), (13, None)];
    for (last, expected) in expected {
        assert_eq!(relays(last), expected, "127.0.0.{last}");
    }
    instance.wait_log("refused remote=127.0.0.13 reply=\"554 5.7.1 ").unwrap();
    // Submission is not for networks but for logins.
    assert!(greeted(13, 587).1.starts_with("220 "));
    instance.control("tcp.smtp", "127.0.0.13:allow,RELAYCLIENT=//\n127.0.0.2:deny\n").unwrap();
    facts::signal(instance.pid(), Signal::HUP);
    // For a moment both generations accept.
    let new_rules = || (relays(2), relays(13), relays(9)) == (None, Some(true), Some(false));
    wait_for("the new rules", || new_rules().then_some(())).unwrap();
}

#[test]
fn databytes_refuses_early_and_late_and_delivers_nothing_of_it() {
    let instance = Instance::started(&[("databytes", "1000\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let mut smtp = instance.smtp().unwrap();
    assert!(smtp.ask("EHLO c").unwrap().contains("\n250-SIZE 1000\n"));
    for size in ["1001", "10000000000", "18446744073709551615", "99999999999999999999"] {
        smtp.must(&format!("MAIL FROM:<a@b.test> SIZE={size}"), "552 5.3.4").unwrap();
    }
    smtp.must("MAIL FROM:<a@b.test> SIZE=1000", "250").unwrap();
    smtp.must("RSET", "250").unwrap();
    let too_large = format!("Subject: large\n\n{}", "x\n".repeat(600));
    let reply = smtp.transaction("a@b.test", &["bob@example.test"], &too_large).unwrap();
    assert!(reply.starts_with("552 5.3.4 "), "{reply}");
    smtp.must("MAIL FROM:<a@b.test>", "250").unwrap();
    smtp.must("RCPT TO:<bob@example.test>", "250").unwrap();
    smtp.0.raw(b"BDAT 600\r\n").unwrap();
    smtp.0.raw(&[b'y'; 600]).unwrap();
    assert!(smtp.reply().unwrap().starts_with("250 "));
    smtp.0.raw(b"BDAT 600 LAST\r\n").unwrap();
    smtp.0.raw(&[b'y'; 600]).unwrap();
    assert!(smtp.reply().unwrap().starts_with("552 5.3.4 "));
    let reply = smtp.transaction("a@b.test", &["bob@example.test"], LETTER).unwrap();
    assert!(reply.starts_with("250 "), "{reply}");
    let letter = instance.wait_mail("bob@example.test", 1).unwrap().remove(0);
    assert!(letter.ends_with(LETTER));
    instance.wait_empty().unwrap();
}

#[test]
fn an_address_literal_of_this_host_is_localiphost() {
    let instance = Instance::started(&[("localiphost", "example.test\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    send(&instance, ["bob@[127.0.0.1]"]);
    assert_eq!(delivered_to(&instance.wait_mail("bob@example.test", 1).unwrap()[0]), "bob@example.test");
    let mut smtp = instance.smtp().unwrap();
    smtp.must("MAIL FROM:<a@b.test>", "250").unwrap();
    smtp.must("RCPT TO:<bob@[127.0.0.2]>", "553 5.7.1").unwrap();
}

#[test]
fn without_me_nothing_starts_and_the_reason_is_said() {
    let instance = Instance::new().unwrap();
    std::fs::remove_file(instance.root.join("etc/qmail/control/me")).unwrap();
    let output = instance.qmail(&["start"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(111), "{said}");
    assert!(said.contains("control/me"), "{said}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn concurrencylocal_0_holds_until_sighup_brings_another() {
    let instance = Instance::started(&[("concurrencylocal", "0\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    send(&instance, ["bob@example.test", "bob@example.test"]);
    instance.must(&["queue", "retry", "--all"]).unwrap();
    let stats = instance.json(&["queue", "stats"]).unwrap();
    assert_eq!((&stats["messages"], &stats["local"]), (&2.into(), &0.into()), "{stats}");
    assert!(!instance.log().contains("starting delivery"), "{}", instance.log());
    instance.wait_log("status: local 0/0 remote 0/20").unwrap();
    instance.control("concurrencylocal", "7\n").unwrap();
    facts::signal(instance.pid(), Signal::HUP);
    instance.wait_mail("bob@example.test", 2).unwrap();
    instance.wait_log("status: local 1/7 remote 0/20").unwrap();
}

#[test]
fn defaultdelivery_is_for_users_without_a_dot_qmail() {
    let mut instance = Instance::new().unwrap();
    let person = Person::new(&instance).unwrap();
    instance.control("defaultdelivery", "./Other/\n|cat > from-default\n").unwrap();
    person.maildir("Other").unwrap();
    instance.start().unwrap();
    send(&instance, [format!("{}@mail.example.test", person.name)]);
    instance.wait_letters(&person.home.join("Other"), 1).unwrap();
    instance.wait_empty().unwrap();
    assert!(person.read("from-default").unwrap().ends_with(LETTER));
    person.maildir("Own").unwrap();
    person.write(".qmail", "./Own/\n").unwrap();
    send(&instance, [format!("{}@mail.example.test", person.name)]);
    instance.wait_letters(&person.home.join("Own"), 1).unwrap();
    instance.wait_empty().unwrap();
    assert_eq!(person.letters("Other").len(), 1);
}

/// Each kind of line that a `.qmail` file may have.
#[test]
fn defaultdelivery_has_every_kind_of_line() {
    let mut instance = Instance::new().unwrap();
    let person = Person::new(&instance).unwrap();
    let to = format!("{}@mail.example.test", person.name);
    person.maildir("Maildir").unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let abroad = person.home.join("Absolute");
    person.maildir("Absolute").unwrap();
    let mut copies = 0;
    for (text, reply) in [
        ("./Mailbox\n".to_owned(), "did 1+0+0"),
        ("# a comment\n./Mailbox\n\n".to_owned(), "did 1+0+0"),
        (format!("{}/\n", abroad.display()), "did 1+0+0"),
        ("&bob@example.test\n".to_owned(), "did 0+1+0"),
        ("bob@example.test\n./Maildir/\n|cat > piped\n".to_owned(), "did 1+1+1"),
        ("|exit 99\n./Maildir/\n".to_owned(), "did 0+0+1"),
    ] {
        copies += usize::from(text.contains("bob@"));
        instance.control("defaultdelivery", &text).unwrap();
        facts::signal(instance.pid(), Signal::HUP);
        let done = format!(": success: {}/", reply.replace(' ', "_"));
        let before = instance.log().matches(&done).count();
        // The file counts some time after the signal.
        wait_for(&text, || {
            send(&instance, [&to]);
            instance.wait_empty().ok()?;
            (instance.log().matches(&done).count() > before).then_some(())
        })
        .unwrap();
    }
    assert!(person.read("Mailbox").unwrap().starts_with("From a@elsewhere.test "));
    assert!(person.read("piped").unwrap().ends_with(LETTER));
    let letters = (person.letters("Maildir").len(), person.letters("Absolute").len());
    assert!(letters.0 >= 1 && letters.1 >= 1, "{letters:?}");
    assert!(letters_of_bob(&instance) >= copies);
}

fn letters_of_bob(instance: &Instance) -> usize {
    letters(&instance.maildir("bob@example.test")).len()
}

#[test]
fn users_assign_exact_names_before_the_longest_wildcard() {
    let mut instance = Instance::new().unwrap();
    let person = Person::new(&instance).unwrap();
    let id = |flag: &str| match system_tests::is_root() {
        true => tools::must(Command::new("id").arg(flag).arg(&person.name)).unwrap().trim().to_owned(),
        false => tools::must(Command::new("id").arg(flag)).unwrap().trim().to_owned(),
    };
    let whose = format!("{}:{}:{}:{}", person.name, id("-u"), id("-g"), person.home.display());
    let assign = format!(
        "=exact:{whose}:::\n=pre-exact:{whose}:-:all-:\n+pre-:{whose}:-:pre-:\n+pre-long-:{whose}:-:long-:\n+:{whose}:-:all-:\n.\n"
    );
    std::fs::write(instance.root.join("etc/qmail/users/assign"), assign).unwrap();
    let boxes = ["Maildir", "pre", "long", "all"];
    for name in boxes {
        person.maildir(name).unwrap();
        person.write(&format!(".qmail-{name}-default"), &format!("./{name}/\n")).unwrap();
    }
    instance.start().unwrap();
    let cases = [
        ("exact", "Maildir"),
        ("EXACT", "Maildir"),
        ("pre-exact", "all"),
        ("pre-x", "pre"),
        ("Pre-X-y", "pre"),
        ("pre-long-x", "long"),
        ("pre", "all"),
        ("postmaster", "all"),
        ("whoever", "all"),
    ];
    send(&instance, cases.map(|(local, _)| format!("{local}@mail.example.test")));
    instance.wait_empty().unwrap();
    for name in boxes {
        let arrived: BTreeSet<String> = person.letters(name).iter().map(|letter| delivered_to(letter)).collect();
        let expected = cases.iter().filter(|(_, there)| *there == name).map(|(local, _)| format!("{local}@mail.example.test"));
        assert_eq!(arrived, expected.collect(), "{name}");
    }
}

/// Hands a letter to the queue as a local user does, so that no recipient is refused.
fn inject(instance: &Instance, letter: &str, to: &str) {
    let mut inject = Command::new(instance.program("qmail-inject"));
    inject.env("QMAIL_ROOT", &instance.root).args(["-f", "bob@example.test", to]);
    let output = feed(&mut inject, letter.as_bytes()).unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn bounces_come_from_whom_and_as_long_as_the_files_say() {
    let control = [("bouncefrom", "bounces\n"), ("bouncehost", "b.example.test\n"), ("bouncemaxbytes", "2000\n")];
    let instance = Instance::started(&control).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    inject(&instance, LETTER, "nobody@example.test");
    let bounce = instance.wait_mail("bob@example.test", 1).unwrap().remove(0);
    for part in ["\nFrom: bounces@b.example.test\n", "Hi. This is the qmail-send program at b.example.test.\n", "\nbody\n"] {
        assert!(bounce.contains(part), "the bounce lacks `{part}`:\n{bounce}");
    }
    inject(&instance, &format!("Subject: long\n\n{}", "body\n".repeat(1000)), "nobody@example.test");
    let bounces = instance.wait_mail("bob@example.test", 2).unwrap();
    let long = bounces.iter().find(|bounce| bounce.contains("\nSubject: long\n")).unwrap();
    assert!(long.contains("\nContent-Type: text/rfc822-headers\n") && !long.contains("\nbody\n"), "{long}");
}

#[test]
fn a_password_in_the_clear_is_taken_from_authcleartext_only() {
    let instance = Instance::started(&[("authcleartext", "10.0.0.0/8\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let mut pop3 = Line::open(instance.port(110)).unwrap();
    pop3.line().unwrap();
    pop3.raw(b"USER bob@example.test\r\n").unwrap();
    assert!(pop3.line().unwrap().starts_with(b"-ERR "));
    assert!(instance.pop3("bob@example.test").is_err());
}

#[test]
fn who_says_nothing_for_timeoutsmtpd_is_let_go() {
    let instance = Instance::started(&[("timeoutsmtpd", "1\n"), ("timeoutpop3", "1\n")]).unwrap();
    let mut smtp = instance.smtp().unwrap();
    assert!(smtp.reply().unwrap().starts_with("421 4.4.2 "));
    assert!(smtp.0.is_closed().unwrap());
    let mut pop3 = Line::open(instance.port(110)).unwrap();
    pop3.line().unwrap();
    assert!(pop3.is_closed().unwrap());
}

#[test]
fn smtproutes_count_at_once_and_the_closest_one_wins() {
    let [exact, below, rest] = [(); 3].map(|()| Peer::willing().unwrap());
    let server = dns::start((Ipv4Addr::LOCALHOST, 0), vec![("mx.below.test", Record::Mx(0, ""))]).unwrap();
    let routes = format!("{}{}mx.below.test:\n{}", exact.route("exact.test"), below.route(".below.test"), rest.route(""));
    let instance = Instance::started(&[
        RELAY,
        ("smtproutes", &routes),
        ("resolvers", &format!("{server}\n")),
        ("outgoingip", "127.0.0.99\n"),
        ("concurrencyremote", "0\n"),
    ])
    .unwrap();
    send(&instance, ["1@exact.test", "2@EXACT.test", "3@a.below.test", "4@below.test", "5@x.exact.test", "6@mx.below.test"]);
    instance.must(&["queue", "retry", "--all"]).unwrap();
    let stats = instance.json(&["queue", "stats"]).unwrap();
    assert_eq!((&stats["messages"], exact.connections()), (&6.into(), 0), "concurrencyremote 0 holds: {stats}");
    instance.control("concurrencyremote", "20\n").unwrap();
    facts::signal(instance.pid(), Signal::HUP);
    let to = |peer: &Peer| peer.letters().into_iter().flat_map(|letter| letter.to).collect::<BTreeSet<_>>();
    let set = |list: &[&str]| list.iter().map(|to| format!("<{to}>")).collect::<BTreeSet<_>>();
    wait_for("mail everywhere", || (to(&rest).len() >= 3 && to(&exact).len() == 2).then_some(())).unwrap();
    instance.wait_empty().unwrap();
    assert_eq!(to(&exact), set(&["1@exact.test", "2@EXACT.test"]));
    assert_eq!(to(&below), set(&["3@a.below.test"]));
    // The bounce of 6, whose domain takes no mail by its MX, goes the way of all the rest.
    assert_eq!(to(&rest), set(&["4@below.test", "5@x.exact.test", "a@elsewhere.test"]));
    assert!(rest.letters().iter().any(|letter| letter.text().contains("(#5.1.10)")));
    assert!(rest.clients().iter().all(|client| client.to_string() == "127.0.0.99"), "{:?}", rest.clients());
    instance.control("smtproutes", &rest.route("exact.test")).unwrap();
    send(&instance, ["7@exact.test"]);
    instance.wait_empty().unwrap();
    assert!(to(&rest).contains("<7@exact.test>"));
}

/// What RCPT is answered.
fn rcpt(instance: &Instance, to: &str) -> String {
    let mut smtp = instance.smtp().unwrap();
    smtp.must("MAIL FROM:<a@elsewhere.test>", "250").unwrap();
    smtp.ask(&format!("RCPT TO:<{to}>")).unwrap()
}

#[test]
fn users_and_aliases_count_for_the_next_letter() {
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob", "eve"]).unwrap();
    let next = |to: &str, reaches: &str, count| {
        send(&instance, [to]);
        instance.wait_mail(reaches, count).unwrap();
    };
    assert!(rcpt(&instance, "sales@example.test").starts_with("550 5.1.1"));
    instance.must(&["alias", "add", "sales@example.test", "bob@example.test"]).unwrap();
    next("sales@example.test", "bob@example.test", 1);
    instance.must(&["alias", "add", "sales@example.test", "eve@example.test"]).unwrap();
    next("sales@example.test", "eve@example.test", 1);
    instance.must(&["alias", "remove", "sales@example.test"]).unwrap();
    assert!(rcpt(&instance, "sales@example.test").starts_with("550 5.1.1"));
    inject(&instance, LETTER, "sales@example.test");
    let bounce = instance.wait_mail("bob@example.test", 2).unwrap();
    assert!(bounce.iter().any(|bounce| bounce.contains("<sales@example.test>:\nSorry, no mailbox here by that name.")));
    // A catch-all takes over from a user, and gives back.
    next("eve@example.test", "eve@example.test", 2);
    instance.must(&["alias", "add", "@example.test", "bob@example.test"]).unwrap();
    instance.must(&["user", "remove", "eve@example.test"]).unwrap();
    next("eve@example.test", "bob@example.test", 3);
    let input = "eve-password\n";
    instance.with_input(&["user", "add", "eve@example.test", "--password-stdin"], input).unwrap();
    let before = letters(&instance.maildir("eve@example.test")).len();
    next("eve@example.test", "eve@example.test", before + 1);
    instance.wait_empty().unwrap();
    assert_eq!(letters(&instance.maildir("bob@example.test")).len(), 3);
}

#[test]
fn system_users_count_from_the_moment_they_are_there() {
    let mut instance = Instance::new().unwrap();
    let person = Person::new(&instance).unwrap();
    person.maildir("Maildir").unwrap();
    instance.start().unwrap();
    let whose = std::fs::metadata(&person.home).map(|home| (home.uid(), home.gid())).unwrap();
    let assign = instance.root.join("etc/qmail/users/assign");
    let (before, to) = (std::fs::read_to_string(&assign).unwrap_or(".\n".into()), "new-name@mail.example.test");
    assert!(rcpt(&instance, to).starts_with("550 5.1.1"));
    let line = format!("=new-name:{}:{}:{}:{}:::\n", person.name, whose.0, whose.1, person.home.display());
    std::fs::write(&assign, format!("{line}{before}")).unwrap();
    send(&instance, [to]);
    instance.wait_letters(&person.home.join("Maildir"), 1).unwrap();
    std::fs::write(&assign, before).unwrap();
    assert!(rcpt(&instance, to).starts_with("550 5.1.1"));
    let alias = instance.root.join("etc/qmail/alias/.qmail-new-name");
    std::fs::write(&alias, format!("&{}@mail.example.test\n", person.name)).unwrap();
    send(&instance, [to]);
    instance.wait_letters(&person.home.join("Maildir"), 2).unwrap();
    std::fs::remove_file(&alias).unwrap();
    assert!(rcpt(&instance, to).starts_with("550 5.1.1"));
}

#[test]
fn morercpthosts_are_more_rcpthosts() {
    let mut instance = Instance::new().unwrap();
    let mut more = wire::cdb::Writer::new();
    more.add(b"more.test", b"");
    more.add(b".below.test", b"");
    std::fs::write(instance.root.join("etc/qmail/control/morercpthosts.cdb"), more.finish().unwrap()).unwrap();
    instance.start().unwrap();
    let mut smtp = instance.smtp().unwrap();
    smtp.must("MAIL FROM:<a@b.test>", "250").unwrap();
    for (to, code) in [("x@More.test", "250"), ("x@a.more.test", "553"), ("x@a.below.test", "250"), ("x@below.test", "553")] {
        smtp.must(&format!("RCPT TO:<{to}>"), code).unwrap();
    }
}

#[test]
fn virtual_users_may_run_programs_where_vmailprograms_says_so() {
    let instance = Instance::started(&[("vmailprograms", "other.test\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    send(&instance, ["bob@example.test"]);
    instance.wait_mail("bob@example.test", 1).unwrap();
    let home = instance.root.join("var/mail/example.test/bob");
    std::fs::write(home.join(".qmail"), "./Maildir/\n|cat > by-program\n").unwrap();
    if is_root() {
        tools::must(Command::new("chown").arg("--reference").arg(home.join("Maildir")).arg(home.join(".qmail"))).unwrap();
    }
    send(&instance, ["bob@example.test"]);
    instance.wait_log("deferral: programs_and_absolute_paths_are_not_for_this_domain;").unwrap();
    assert!(!home.join("by-program").exists());
    assert_eq!(instance.wait_mail("bob@example.test", 1).unwrap().len(), 1, "nothing of the file is done");
    instance.control("vmailprograms", "example.test\n").unwrap();
    facts::signal(instance.pid(), Signal::HUP);
    instance.retry_until_empty().unwrap();
    instance.wait_mail("bob@example.test", 2).unwrap();
    assert!(std::fs::read_to_string(home.join("by-program")).unwrap().ends_with(LETTER));
}

#[test]
fn users_below_uidmin_have_no_mailbox() {
    if !is_root() {
        return skip("users_below_uidmin_have_no_mailbox", "only root delivers to users of passwd");
    }
    let mut instance = Instance::new().unwrap();
    let person = Person::new(&instance).unwrap();
    instance.control("uidmin", "4000000000\n").unwrap();
    instance.start().unwrap();
    let mut smtp = instance.smtp().unwrap();
    smtp.must("MAIL FROM:<a@b.test>", "250").unwrap();
    smtp.must(&format!("RCPT TO:<{}@mail.example.test>", person.name), "550 5.1.1").unwrap();
    smtp.must("RCPT TO:<root@mail.example.test>", "250").unwrap();
    smtp.must("RCPT TO:<daemon@mail.example.test>", "550 5.1.1").unwrap();
}
