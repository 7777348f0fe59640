//! Mail to other hosts: routes, mail exchangers, what becomes of refusals, and a real Postfix.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use system_tests::dns::{self, Record, Zone};
use system_tests::instance::feed;
use system_tests::peer::{Event, Letter};
use system_tests::postfix::{MAILBOX, Postfix};
use system_tests::users::letters;
use system_tests::{Instance, Peer, is_root, skip, tools, wait_for};

const LETTER: &str = "From: bob@example.test\nSubject: out\n\n.A dot first.\n..\n.\nbytes: \u{e9}\u{fc}\n\nFrom here on.\n";
const BOB: &str = "bob@example.test";

/// A system that sends for everyone at this host, and where bob gets what bounces.
fn instance(control: &[(&str, &str)]) -> Instance {
    let control: Vec<_> = [("relayclients", "127.0.0.0/8\n")].into_iter().chain(control.iter().copied()).collect();
    let instance = Instance::started(&control).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    instance
}

fn send(instance: &Instance, to: &[&str]) {
    instance.smtp().unwrap().send(BOB, to, LETTER).unwrap();
}

fn wait_letters(peer: &Peer, count: usize) -> Vec<Letter> {
    wait_for(&format!("{count} letters at the peer"), || Some(peer.letters()).filter(|all| all.len() == count)).unwrap()
}

/// The only bounce that bob has; the parts that every one has are looked at here.
fn bounce(instance: &Instance) -> String {
    let bounce = instance.wait_mail(BOB, 1).unwrap().remove(0);
    for part in [
        "Return-Path: <>\nDelivered-To: bob@example.test\n",
        "\nFrom: MAILER-DAEMON@mail.example.test\nTo: bob@example.test\nSubject: failure notice\n",
        "\nContent-Type: multipart/report; report-type=delivery-status;\n boundary=\"",
        "\n\nHi. This is the qmail-send program at mail.example.test.\n",
        "\n--- Below this line is a copy of the message.\n",
        "\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; mail.example.test\nArrival-Date: ",
        "\nAction: failed\n",
        "\nContent-Type: message/rfc822\n",
        "\n\nReturn-Path: <bob@example.test>\nReceived: ",
        &LETTER[LETTER.find("\nSubject").unwrap()..],
    ] {
        assert!(bounce.contains(part), "the bounce lacks `{part}`:\n{bounce}");
    }
    bounce
}

#[test]
fn a_letter_reaches_its_route_whole() {
    let peer = Peer::willing().unwrap();
    let instance = instance(&[("smtproutes", &peer.route("elsewhere.test")), ("helohost", "out.example.test\n")]);
    send(&instance, &["x@elsewhere.test", "y@elsewhere.test"]);
    let letter = wait_letters(&peer, 1).remove(0);
    let mail = "<bob@example.test>";
    assert!(letter.from == mail || letter.from.starts_with(&format!("{mail} ")), "{}", letter.from);
    assert_eq!(letter.to, ["<x@elsewhere.test>", "<y@elsewhere.test>"], "both by one transaction");
    let body = String::from_utf8(letter.body.clone()).unwrap();
    let stuffed = "From: bob@example.test\r\nSubject: out\r\n\r\n..A dot first.\r\n...\r\n..\r\nbytes: \u{e9}\u{fc}\r\n\r\nFrom here on.\r\n";
    assert!(body.ends_with(stuffed) && body.starts_with("Received: (qmail "), "{body}");
    assert!(!body.replace("\r\n", "").contains(['\r', '\n']));
    assert_eq!(peer.commands()[0], "EHLO out.example.test");
    instance.wait_empty().unwrap();
    instance.wait_log(" to remote x@elsewhere.test").unwrap();
    let success = instance.wait_log("success: 127.0.0.1_accepted_message./Remote_host_said:_250_ok_taken/").unwrap();
    assert!(success.starts_with("delivery "), "{success}");
}

#[test]
fn a_recipient_who_is_put_off_is_tried_again_and_no_other() {
    static TRIES: AtomicUsize = AtomicUsize::new(0);
    let peer = Peer::start("127.0.0.1:0", |event| match event {
        Event::Command(line) if line.starts_with("RCPT TO:<later@") && TRIES.fetch_add(1, Ordering::SeqCst) < 2 => {
            Some("450 4.2.0 grey")
        }
        _ => None,
    })
    .unwrap();
    let instance = instance(&[("smtproutes", &peer.route("elsewhere.test"))]);
    send(&instance, &["now@elsewhere.test", "later@elsewhere.test"]);
    instance.wait_log("deferral: 127.0.0.1_does_not_like_recipient./Remote_host_said:_450_4.2.0_grey/").unwrap();
    let stats = wait_for("one deferred message", || {
        let stats = instance.json(&["queue", "stats"]).ok()?;
        (stats["deferred"] == 1).then_some(stats)
    });
    assert_eq!(stats.unwrap()["messages"], 1);
    instance.retry_until_empty().unwrap();
    let to: Vec<String> = peer.letters().into_iter().flat_map(|letter| letter.to).collect();
    assert_eq!(to, ["<now@elsewhere.test>", "<later@elsewhere.test>"]);
}

#[test]
fn a_refusal_bounces_in_both_forms() {
    let peer = Peer::start("127.0.0.1:0", |event| match event {
        Event::Command(line) if line.starts_with("RCPT TO:<no@") => Some("550-5.1.1 no such|550 5.1.1 user here"),
        _ => None,
    })
    .unwrap();
    let instance = instance(&[("smtproutes", &peer.route("elsewhere.test"))]);
    send(&instance, &["yes@elsewhere.test", "no@elsewhere.test"]);
    let bounce = bounce(&instance);
    let said =
        "<no@elsewhere.test>:\n127.0.0.1 does not like recipient.\nRemote host said: 550-5.1.1 no such\n550 5.1.1 user here\n";
    for part in [
        said,
        "\nFinal-Recipient: rfc822; no@elsewhere.test\nAction: failed\nStatus: 5.1.1\nRemote-MTA: dns; [127.0.0.1]\n\
         Diagnostic-Code: smtp; 550-5.1.1 no such\n 550 5.1.1 user here\n",
    ] {
        assert!(bounce.contains(part), "the bounce lacks `{part}`:\n{bounce}");
    }
    assert!(!bounce.contains("yes@elsewhere.test"), "{bounce}");
    assert_eq!(wait_letters(&peer, 1)[0].to, ["<yes@elsewhere.test>"]);
    instance.wait_empty().unwrap();
    instance.wait_log("failure: 127.0.0.1_does_not_like_recipient./").unwrap();
    instance.wait_log("bounce msg ").unwrap();
}

#[test]
fn a_refusal_after_the_text_bounces() {
    let peer = Peer::start("127.0.0.1:0", |event| match event {
        Event::Body(_) => Some("554 5.7.1 not this"),
        _ => None,
    })
    .unwrap();
    let instance = instance(&[("smtproutes", &peer.route("elsewhere.test"))]);
    send(&instance, &["x@elsewhere.test"]);
    let bounce = bounce(&instance);
    assert!(bounce.contains("\nStatus: 5.7.1\n") && bounce.contains("127.0.0.1 failed after I sent the message.\n"), "{bounce}");
}

#[test]
fn a_connection_that_ends_after_the_final_dot_is_a_possible_duplicate() {
    static TRIES: AtomicUsize = AtomicUsize::new(0);
    let peer = Peer::start("127.0.0.1:0", |event| match event {
        Event::Body(_) if TRIES.fetch_add(1, Ordering::SeqCst) == 0 => Some(""),
        _ => None,
    })
    .unwrap();
    let instance = instance(&[("smtproutes", &peer.route("elsewhere.test"))]);
    send(&instance, &["x@elsewhere.test"]);
    instance.wait_log("deferral: Connected_to_127.0.0.1_but_connection_died._Possible_duplicate!_(#4.4.2)/").unwrap();
    instance.retry_until_empty().unwrap();
    wait_letters(&peer, 1);
}

#[test]
fn a_host_that_refuses_connections_gets_the_letter_when_it_is_back() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let instance = instance(&[("smtproutes", &format!("elsewhere.test:{}:{}\n", address.ip(), address.port()))]);
    send(&instance, &["x@elsewhere.test"]);
    instance.wait_log("deferral: Sorry,_I_wasn't_able_to_establish_an_SMTP_connection._(#4.4.1)/").unwrap();
    let peer = Peer::start(&address.to_string(), |_| None).unwrap();
    instance.retry_until_empty().unwrap();
    wait_letters(&peer, 1);
}

#[test]
fn a_message_out_of_time_is_tried_once_more_and_bounces() {
    let peer = Peer::start("127.0.0.1:0", |event| match event {
        Event::Command(line) if line.starts_with("RCPT") => Some("450 4.2.0 never today"),
        _ => None,
    })
    .unwrap();
    let instance = instance(&[("smtproutes", &peer.route("elsewhere.test")), ("queuelifetime", "0\n")]);
    send(&instance, &["x@elsewhere.test"]);
    wait_for("the first attempt", || (peer.connections() > 0).then_some(())).unwrap();
    instance.retry_until_empty().unwrap();
    let bounce = bounce(&instance);
    for part in [
        "Remote host said: 450 4.2.0 never today\n",
        "I'm not going to try again; this message has been in the queue too long.\n",
    ] {
        assert!(bounce.contains(part), "{bounce}");
    }
}

#[test]
fn a_bounce_that_bounces_goes_to_the_postmaster_or_nowhere() {
    let refuse = |event: Event<'_>| match event {
        Event::Command(line) if line.starts_with("RCPT") => Some("550 5.1.1 nobody"),
        _ => None,
    };
    let peer = Peer::start("127.0.0.1:0", refuse).unwrap();
    for (doublebounceto, logged) in [(None, "bounce msg "), (Some("\n"), "double bounce: discarding bounce/")] {
        let route = peer.route("elsewhere.test");
        let control: Vec<_> =
            [("smtproutes", &route[..])].into_iter().chain(doublebounceto.map(|text| ("doublebounceto", text))).collect();
        let instance = instance(&control);
        instance.smtp().unwrap().send("gone@elsewhere.test", &["x@elsewhere.test"], LETTER).unwrap();
        instance.wait_log(logged).unwrap();
        instance.wait_empty().unwrap();
        let postmaster = instance.root.join("etc/qmail/alias/Maildir");
        if doublebounceto.is_some() {
            assert_eq!(letters(&postmaster), [""; 0]);
            continue;
        }
        let double = instance.wait_letters(&postmaster, 1).unwrap().remove(0);
        for part in [
            "Return-Path: <#@[]>\nDelivered-To: postmaster@mail.example.test\n",
            "I tried to deliver a bounce message to this address, but the bounce bounced!\n\n<gone@elsewhere.test>:\n",
            "\n--- Below this line is the original bounce.\n",
            "<x@elsewhere.test>:\n",
        ] {
            assert!(double.contains(part), "{double}");
        }
    }
}

#[test]
fn verp_senders_are_expanded_for_each_recipient_or_by_the_host() {
    let plain = Peer::willing().unwrap();
    let expanding = Peer::start("127.0.0.1:0", |event| match event {
        Event::Command(line) if line.starts_with("EHLO") => Some("250-peer|250-PIPELINING|250 XVERP"),
        _ => None,
    })
    .unwrap();
    let routes = format!("{}{}", plain.route("plain.test"), expanding.route("expanding.test"));
    let instance = instance(&[("smtproutes", &routes)]);
    let mut inject = Command::new(instance.program("qmail-inject"));
    inject.env("QMAIL_ROOT", &instance.root).args(["-f", "list-@example.test-@[]"]);
    inject.args(["a@plain.test", "b@plain.test", "a@expanding.test", "b@expanding.test"]);
    let output = feed(&mut inject, b"Subject: to all\n\ntext\n").unwrap();
    assert!(output.status.success(), "{output:?}");
    instance.wait_empty().unwrap();
    let mut letters = plain.letters();
    letters.sort_by(|a, b| a.to.cmp(&b.to));
    let pairs: Vec<(String, Vec<String>)> = letters.into_iter().map(|l| (l.from, l.to)).collect();
    let pair = |who: &str| (format!("<list-{who}=plain.test@example.test>"), vec![format!("<{who}@plain.test>")]);
    let first_word: Vec<(String, Vec<String>)> =
        pairs.into_iter().map(|(from, to)| (from.split(' ').next().unwrap().to_owned(), to)).collect();
    assert_eq!(first_word, [pair("a"), pair("b")]);
    for letter in expanding.letters() {
        assert!(letter.from.starts_with("<list@example.test> ") && letter.from.contains("XVERP=-="), "{}", letter.from);
    }
    let to: usize = expanding.letters().iter().map(|letter| letter.to.len()).sum();
    assert_eq!(to, 2);
}

/// Addresses on which nobody else listens at port 25, from 127.16/12.
fn loopback_addresses<const N: usize>() -> [Ipv4Addr; N] {
    let word = u64::from_str_radix(&system_tests::instance::random_word().unwrap(), 16).unwrap();
    let [a, b, c, ..] = word.to_ne_bytes();
    std::array::from_fn(|n| Ipv4Addr::new(127, 16 + a % 16, b, (c % 200) + u8::try_from(n).unwrap() + 1))
}

fn with_dns(zone: Zone) -> (Instance, SocketAddr) {
    let server = dns::start((Ipv4Addr::LOCALHOST, 0), zone).unwrap();
    (instance(&[("resolvers", &format!("{server}\n"))]), server)
}

#[test]
fn mail_exchangers_are_tried_in_order() {
    if !is_root() {
        return skip("mail_exchangers_are_tried_in_order", "mail exchangers listen on port 25");
    }
    let [silent, greeting, good, last] = loopback_addresses();
    let on_25 = |address: Ipv4Addr| format!("{address}:25");
    let rude = Peer::start(&on_25(greeting), |event| (event == Event::Connection).then_some("421 4.3.2 not now")).unwrap();
    let peer = Peer::start(&on_25(good), |_| None).unwrap();
    let unused = Peer::start(&on_25(last), |_| None).unwrap();
    let a = |address: Ipv4Addr| Record::A(address.octets());
    let (instance, _) = with_dns(vec![
        ("many.test", Record::Mx(30, "last.many.test")),
        ("many.test", Record::Mx(20, "good.many.test")),
        ("many.test", Record::Mx(10, "greeting.many.test")),
        ("many.test", Record::Mx(5, "silent.many.test")),
        ("silent.many.test", a(silent)),
        ("greeting.many.test", a(greeting)),
        ("good.many.test", a(good)),
        ("last.many.test", a(last)),
        ("implicit.test", a(last)),
    ]);
    send(&instance, &["x@many.test"]);
    assert_eq!(wait_letters(&peer, 1)[0].to, ["<x@many.test>"]);
    assert_eq!((rude.connections(), unused.connections()), (1, 0));
    instance.wait_empty().unwrap();
    send(&instance, &["x@implicit.test", "x@IMPLICIT.test"]);
    let to: Vec<String> = wait_for("two recipients", || {
        let to: Vec<String> = unused.letters().into_iter().flat_map(|letter| letter.to).collect();
        (to.len() == 2).then_some(to)
    })
    .unwrap();
    assert!(to.iter().all(|to| to.eq_ignore_ascii_case("<x@implicit.test>")), "{to:?}");
}

#[test]
fn domains_that_take_no_mail_bounce() {
    let (instance, _) = with_dns(vec![
        ("null.test", Record::Mx(0, "")),
        ("self.test", Record::Mx(10, "mail.example.test")),
        ("mail.example.test", Record::A([127, 0, 0, 1])),
        ("nohost.test", Record::Mx(10, "nowhere.test")),
    ]);
    let cases = [
        ("x@null.test", "Sorry, that domain does not accept mail. (#5.1.10)\n", "5.1.10"),
        ("x@unknown.test", "Sorry, I couldn't find any host named unknown.test. (#5.1.2)\n", "5.1.2"),
        ("x@self.test", "it isn't in my control/locals file, so I don't treat it as local. (#5.4.6)\n", "5.4.6"),
        ("x@nohost.test", "Sorry, I couldn't find a mail exchanger or IP address. (#5.4.4)\n", "5.4.4"),
    ];
    let to: Vec<&str> = cases.iter().map(|(to, ..)| *to).collect();
    send(&instance, &to);
    let bounce = bounce(&instance);
    for (to, text, status) in cases {
        let fields = format!("\nFinal-Recipient: rfc822; {to}\nAction: failed\nStatus: {status}\n");
        for part in [&format!("<{to}>:\n"), text, &fields] {
            assert!(bounce.contains(part), "the bounce lacks `{part}`:\n{bounce}");
        }
    }
    instance.wait_empty().unwrap();
}

/// Mail that would come back to this host for ever fails at once; what is told to be another host is only out of reach.
#[test]
fn moreipme_is_this_host_too_and_notipme_is_not() {
    let [own, other] = loopback_addresses();
    let a = |address: Ipv4Addr| Record::A(address.octets());
    let zone = vec![
        ("own.test", Record::Mx(10, "mx.own.test")),
        ("other.test", Record::Mx(10, "mx.other.test")),
        // The better one is another host, and those behind this one are not asked.
        ("better.test", Record::Mx(10, "mx.other.test")),
        ("better.test", Record::Mx(20, "mx.own.test")),
        ("mx.own.test", a(own)),
        ("mx.other.test", a(other)),
    ];
    let server = dns::start((Ipv4Addr::LOCALHOST, 0), zone).unwrap();
    let control =
        [("resolvers", format!("{server}\n")), ("moreipme", "127.16.0.0/12\n".into()), ("notipme", format!("{other}\n"))];
    let instance = instance(&control.each_ref().map(|(name, text)| (*name, text.as_str())));
    // A message each: a bounce comes when a message is through.
    for to in ["x@own.test", "x@other.test", "x@better.test"] {
        send(&instance, &[to]);
    }
    let bounce = bounce(&instance);
    assert!(bounce.contains("<x@own.test>:\nSorry. Although I'm listed") && bounce.contains("(#5.4.6)\n"), "{bounce}");
    let deferred = || (instance.log().matches("establish_an_SMTP_connection._(#4.4.1)/").count() >= 2).then_some(());
    wait_for("two deferrals", deferred).unwrap();
    assert_eq!(instance.json(&["queue", "stats"]).unwrap()["deferred"], 2, "{}", instance.log());
}

#[test]
fn while_the_resolver_is_dead_mail_waits() {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let instance = instance(&[("resolvers", &format!("127.0.0.1:{port}\n"))]);
    send(&instance, &["x@null.test"]);
    instance.wait_log("deferral: CNAME_lookup_failed_temporarily._(#4.4.3)/").unwrap();
    assert_eq!(instance.json(&["queue", "stats"]).unwrap()["messages"], 1);
    dns::start((Ipv4Addr::LOCALHOST, port), vec![("null.test", Record::Mx(0, ""))]).unwrap();
    instance.retry_until_empty().unwrap();
    assert!(bounce(&instance).contains("(#5.1.10)"));
}

#[test]
fn a_real_postfix_takes_and_sends_mail() {
    let name = "a_real_postfix_takes_and_sends_mail";
    if !is_root() {
        return skip(name, "Postfix starts as root only");
    }
    let Some(tool) = tools::get(name, "postfix", "usr/lib/postfix/sbin/master").unwrap() else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let instance = instance(&[("smtproutes", &format!("postfix.test:127.0.0.1:{port}\n"))]);
    let postfix = Postfix::start(&tool, instance.dir(), port, instance.port(25)).unwrap();
    let text = |letter: &str| letter.split_once("\n\n").unwrap().1.to_owned();
    send(&instance, &[MAILBOX]);
    let there = instance.wait_letters(&postfix.maildir(), 1).unwrap_or_else(|e| panic!("{e}\n{}", postfix.log())).remove(0);
    assert_eq!(text(&there), text(LETTER), "{there}");
    system_tests::Smtp::open(port).unwrap().send(MAILBOX, &[BOB], LETTER).unwrap();
    let here = instance.wait_mail(BOB, 1).unwrap().remove(0);
    assert_eq!(text(&here), text(LETTER), "{here}");
    assert!(here.starts_with("Return-Path: <box@postfix.test>\nDelivered-To: bob@example.test\n"), "{here}");
    send(&instance, &["nobody@postfix.test"]);
    let bounce = instance.wait_mail(BOB, 2).unwrap().into_iter().find(|letter| letter.contains("failure notice")).unwrap();
    assert!(bounce.contains("Remote host said: 550 5.1.1 <nobody@postfix.test>: Recipient address rejected"), "{bounce}");
    instance.wait_empty().unwrap();
}
