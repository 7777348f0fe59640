//! Transcripts of the server machine, every state with every event, and the smuggling rule exhaustively.

use super::fuzz::{self, Seen, run};
use super::*;
use crate::data::BareLf;
use std::net::IpAddr;

const T0: Now = Now { unix_s: 0, boot: Duration::from_secs(100) };

fn config() -> Config {
    Config {
        me: b"mx.example.org".to_vec(),
        greeting: b"mx.example.org".to_vec(),
        localiphost: b"example.org".to_vec(),
        rcpthosts: RcptHosts::new(["listed.example"], None),
        refusals: bad_senders(&["bad@x.example", "@spam.example"]),
        ..Config::default()
    }
}

fn patterns(lines: &[&str]) -> wire::Patterns {
    wire::Patterns::parse(lines).unwrap()
}

fn bad_senders(lines: &[&str]) -> Refusals {
    Refusals { bad_senders: patterns(lines), ..Refusals::default() }
}

/// A client that may log in.
fn local() -> Connection {
    Connection { logins: Logins::Offered, ..Connection::default() }
}

fn submitter() -> Connection {
    Connection { is_submission: true, ..local() }
}

/// A response of PLAIN. Passwords: o… is right, t… cannot be judged.
fn response(identity: &str, user: &str, password: &str) -> String {
    wire::base64::encode(format!("{identity}\0{user}\0{password}").as_bytes())
}

fn relay() -> Connection {
    Connection { relay_client: Some(Box::default()), ..Connection::default() }
}

/// The replies behind the greeting, as text.
fn replies(config: Config, peer: Connection, input: &[u8]) -> String {
    let seen = run(&Arc::new(config), &peer, [input]);
    let text = String::from_utf8(seen.replies).unwrap();
    text.strip_prefix("220 mx.example.org ESMTP\r\n").unwrap().replace("\r\n", "\n")
}

fn says(input: &str, wanted: &str) {
    let config = Config { dsn: DsnOffer::Everybody, ..config() };
    assert_eq!(replies(config, Connection::default(), input.replace('\n', "\r\n").as_bytes()), wanted, "{input}");
}

fn deliver(config: Config, peer: Connection, input: &[u8]) -> Seen {
    run(&Arc::new(config), &peer, [input])
}

#[test]
fn an_ordinary_session() {
    let input =
        b"EHLO client.example\r\nMAIL FROM:<a@b.c> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<x@y.z>\r\nRCPT TO:<\"o p\"@y.z>\r\nDATA\r\n\
        Subject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n";
    let seen = deliver(config(), Connection::default(), input);
    assert_eq!(
        String::from_utf8(seen.replies).unwrap(),
        "220 mx.example.org ESMTP\r\n250-mx.example.org\r\n250-PIPELINING\r\n250-SIZE 0\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n\
         250-ENHANCEDSTATUSCODES\r\n250 HELP\r\n250 2.1.0 ok\r\n250 2.1.5 ok\r\n250 2.1.5 ok\r\n354 go ahead\r\n250 2.0.0 ok 0 qp 1\r\n\
         221 2.0.0 mx.example.org\r\n"
    );
    let address = |text: &str| Address::new(text.as_bytes()).unwrap();
    let envelope = Envelope {
        sender: address("a@b.c"),
        recipients: vec![address("x@y.z"), address("o p@y.z")],
        eight_bit: true,
        utf8: false,
        requiretls: false,
        asked: Asked::default(),
    };
    assert_eq!(seen.messages, [(envelope, b"Subject: x\n\n.dot\n".to_vec())]);
    assert_eq!((seen.end, seen.log.iter().filter(|line| line.starts_with(b"refused")).count()), (Some(End::Quit), 0));
}

#[test]
fn helo_is_not_needed_and_starts_over() {
    says(
        "HELO x\nMAIL FROM:<>\nHELO y\nRCPT TO:<a@b>\n",
        "250 mx.example.org\n250 2.1.0 ok\n250 mx.example.org\n503 5.5.1 MAIL first\n",
    );
    says("MAIL FROM:<>\nRCPT TO:<a>\n", "250 2.1.0 ok\n250 2.1.5 ok\n");
}

#[test]
fn small_commands() {
    says(
        " NOOP\nnoop\nRSET\nVRFY joe\nEXPN list\nWHAT\n\nDATA x\n",
        "502 5.5.1 unimplemented\n250 2.0.0 ok\n250 2.0.0 flushed\n252 2.0.0 send some mail, i'll try my best\n502 5.5.1 unimplemented\n502 5.5.1 unimplemented\n502 5.5.1 unimplemented\n501 5.5.4 no argument, please\n",
    );
    says("HELP me\nquit\nNOOP\n", "214 2.0.0 qmail-rs; commands as in RFC 5321, BDAT as in RFC 3030\n221 2.0.0 mx.example.org\n");
    assert_eq!(
        replies(config(), Connection::default(), b"NOOP\nNO\0OP\r\nNOOP\r\n"),
        "250 2.0.0 ok\n500 5.5.2 a command cannot hold a NUL\n250 2.0.0 ok\n"
    );
}

#[test]
fn wrong_order() {
    says("RCPT TO:<a@b>\nDATA\n", "503 5.5.1 MAIL first\n503 5.5.1 MAIL first\n");
    says("MAIL FROM:<>\nDATA\n", "250 2.1.0 ok\n503 5.5.1 RCPT first\n");
    says("MAIL FROM:<>\nRCPT TO:<a@b>\nMAIL FROM:<>\nDATA\n", "250 2.1.0 ok\n250 2.1.5 ok\n250 2.1.0 ok\n503 5.5.1 RCPT first\n");
    says("BDAT 6\nDATA\nNOOP\n", "503 5.5.1 MAIL first\n250 2.0.0 ok\n");
}

#[test]
fn senders() {
    for (command, reply) in [
        ("MAIL FROM:<bad@X.example>", "553 5.7.1 sorry, your envelope sender is in my badmailfrom list"),
        ("MAIL FROM:<any@spam.example>", "553 5.7.1 sorry, your envelope sender is in my badmailfrom list"),
        ("MAIL FROM:<a b@c>", "501 5.1.7 no sender address that can be read"),
        ("MAIL <a@b>", "555 5.5.4 syntax error"),
        ("MAIL FROM:<a@b> SIZE=1 SIZE=1", "501 5.5.4 that parameter makes no sense"),
        ("MAIL FROM:<é@c.d>", "553 5.6.7 an address like that needs SMTPUTF8"),
        ("MAIL FROM:<é@c.d> SMTPUTF8", "250 2.1.0 ok"),
        ("MAIL FROM:<a@b> HOLDFOR=1", "555 5.5.4 parameter not recognized"),
        ("MAIL FROM:<a@b> RET=X", "501 5.5.4 that parameter makes no sense"),
        ("MAIL FROM:<a@b> XVERP", "555 5.5.4 parameter not recognized"),
        ("MAIL FROM:<a@b> SIZE=x", "501 5.5.4 that parameter makes no sense"),
        ("MAIL FROM:<a@b> SIZE=99999999999999999999", "552 5.3.4 sorry, that message size exceeds my databytes limit"),
        ("MAIL FROM:<a@b> SIZE=10000000000", "250 2.1.0 ok"),
    ] {
        says(&format!("{command}\n"), &format!("{reply}\n"));
        let cheats = replies(config(), relay(), format!("{command}\r\n").as_bytes());
        assert_eq!(cheats == format!("{reply}\n"), !command.ends_with("XVERP"), "relay clients: {command}");
    }
}

#[test]
fn announced_sizes() {
    let small = || Config { limits: Limits { databytes: 10, ..Limits::default() }, ..config() };
    let ehlo = replies(small(), Connection::default(), b"EHLO x\r\nMAIL FROM:<> SIZE=11\r\nMAIL FROM:<> SIZE=10\r\n");
    assert!(ehlo.contains("\n250-SIZE 10\n"));
    assert!(ehlo.ends_with("552 5.3.4 sorry, that message size exceeds my databytes limit\n250 2.1.0 ok\n"));
    let peer = Connection { databytes: Some(0), ..Connection::default() };
    assert_eq!(replies(small(), peer, b"MAIL FROM:<> SIZE=11\r\n"), "250 2.1.0 ok\n");
}

#[test]
fn who_may_send_to_whom() {
    let open = Connection::default;
    // (client, recipient, reply): the directory knows all but no*, te* (cannot tell), fa* (none of our domains), fu* and fw* (full).
    for (peer, recipient, reply) in [
        (open(), "joe@ours.example", "250 2.1.5 ok"),
        (open(), "nobody@ours.example", "550 5.1.1 sorry, no mailbox here by that name"),
        (open(), "tell@ours.example", "451 4.3.0 cannot check that recipient now, try again later"),
        (open(), "full@ours.example", "552 5.2.2 sorry, the mailbox is full or has no room for a message of that size"),
        (
            open(),
            "fwait@ours.example",
            "452 4.2.2 the mailbox is full or has no room for a message of that size, try again later",
        ),
        (open(), "far@away.example", "553 5.7.1 sorry, that domain isn't in my list of allowed rcpthosts"),
        (open(), "far@LISTED.example", "250 2.1.5 ok"),
        (open(), "nobody@listed.example", "550 5.1.1 sorry, no mailbox here by that name"),
        (open(), "tell@listed.example", "451 4.3.0 cannot check that recipient now, try again later"),
        (open(), "far", "250 2.1.5 ok"),
        (open(), "PostMaster", "250 2.1.5 ok"),
        (open(), "", "501 5.1.3 no recipient address that can be read"),
        (open(), "a b@c", "501 5.1.3 no recipient address that can be read"),
        (open(), "é@ours.example", "553 5.6.7 an address like that needs SMTPUTF8"),
        (relay(), "far@away.example", "250 2.1.5 ok"),
        (relay(), "nobody@ours.example", "550 5.1.1 sorry, no mailbox here by that name"),
        (relay(), "tell@away.example", "451 4.3.0 cannot check that recipient now, try again later"),
    ] {
        let input = format!("MAIL FROM:<>\r\nRCPT TO:<{recipient}>\r\n");
        assert_eq!(replies(config(), peer, input.as_bytes()), format!("250 2.1.0 ok\n{reply}\n"), "{recipient}");
    }
    says("MAIL FROM:<>\nRCPT TO:<a@b> SIZE=1\n", "250 2.1.0 ok\n555 5.5.4 parameter not recognized\n");
    says("MAIL FROM:<>\nRCPT TO:<a@b> NOTIFY=\n", "250 2.1.0 ok\n501 5.5.4 that parameter makes no sense\n");
    let damaged = Config { rcpthosts: RcptHosts::new([""; 0], Some(b"x".to_vec())), ..config() };
    let reply = replies(damaged, open(), b"MAIL FROM:<>\r\nRCPT TO:<far@away.example>\r\n");
    assert!(reply.ends_with("451 4.3.0 cannot check that recipient now, try again later\n"));
}

#[test]
fn recipients_are_rewritten_before_they_are_asked_for() {
    let recipients = |peer: Connection, to: &str| {
        let input = format!("MAIL FROM:<>\r\nRCPT TO:<{to}>\r\nDATA\r\n.\r\n");
        let seen = deliver(config(), peer, input.as_bytes());
        seen.messages[0].0.recipients[0].to_string()
    };
    let suffixed = Connection { relay_client: Some(b"@fax".as_slice().into()), ..Connection::default() };
    assert_eq!(recipients(suffixed, "joe@b"), "joe@b@fax");
    let at = |ip: &str| Connection { local_ip: Some(ip.parse::<IpAddr>().unwrap()), ..Connection::default() };
    assert_eq!(recipients(at("192.0.2.1"), "joe@[192.0.2.1]"), "joe@example.org");
    assert_eq!(recipients(at("192.0.2.2"), "joe@[192.0.2.1]"), "joe@[192.0.2.1]");
    assert_eq!(recipients(at("192.0.2.1"), "joe@[IPv6:::ffff:192.0.2.1]"), "joe@example.org");
    assert_eq!(recipients(at("2001:db8::1"), "joe@[IPv6:2001:DB8:0::1]"), "joe@example.org");
}

#[test]
fn a_sender_at_our_own_address_is_one_at_localiphost() {
    let ours = || Connection { local_ip: Some("192.0.2.1".parse::<IpAddr>().unwrap()), ..Connection::default() };
    let input = b"MAIL FROM:<joe@[192.0.2.1]>\r\nRCPT TO:<joe@b>\r\nDATA\r\n.\r\n";
    assert_eq!(deliver(config(), ours(), input).messages[0].0.sender.to_string(), "joe@example.org");
    assert_eq!(deliver(config(), Connection::default(), input).messages[0].0.sender.to_string(), "joe@[192.0.2.1]");
    let bad = Config { refusals: bad_senders(&["joe@example.org"]), ..config() };
    assert_eq!(
        replies(bad, ours(), b"MAIL FROM:<joe@[192.0.2.1]>\r\n"),
        "553 5.7.1 sorry, your envelope sender is in my badmailfrom list\n"
    );
}

#[test]
fn verp_is_for_relay_clients() {
    let ehlo = replies(config(), relay(), b"EHLO x\r\n");
    assert!(ehlo.contains("\n250-XVERP\n"));
    for (parameter, sender) in [("XVERP=+=", "l+@x-@[]"), ("XVERP", "l-@x-@[]")] {
        let input = format!("MAIL FROM:<l@x> {parameter}\r\nRCPT TO:<far@y>\r\nDATA\r\n.\r\n");
        let seen = deliver(config(), relay(), input.as_bytes());
        assert_eq!(seen.messages[0].0.sender.to_string(), sender);
    }
    for sender in ["", "root"] {
        let refused = replies(config(), relay(), format!("MAIL FROM:<{sender}> XVERP\r\n").as_bytes());
        assert_eq!(refused, "501 5.5.4 that parameter makes no sense\n");
    }
}

#[test]
fn reports_that_are_asked_for_stand_in_the_envelope() {
    let input = "EHLO x\r\nMAIL FROM:<a@b> RET=HDRS ENVID=QQ+2B314\r\nRCPT TO:<no@x> NOTIFY=NEVER\r\nRCPT TO:<one@x>\r\n\
        RCPT TO:<two@x> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Two@y\r\nRCPT TO:<bad@x> ORCPT=x\r\nRCPT TO:<three@x> NOTIFY=NEVER\r\nDATA\r\n.\r\n";
    let whole = deliver(config(), relay(), input.as_bytes());
    for cut in 1..input.len() {
        let (a, b) = input.as_bytes().split_at(cut);
        assert_eq!(run(&Arc::new(config()), &relay(), [a, b]), whole);
    }
    let asked = &whole.messages[0].0.asked;
    assert_eq!(
        (asked.ret, asked.envid.as_ref().unwrap().decoded(), asked.hold_until_s),
        (Some(wire::dsn::Ret::Headers), b"QQ+314".to_vec(), None)
    );
    let of: Vec<_> = asked
        .recipients
        .iter()
        .map(|(place, p)| (*place, p.notify.unwrap().text(), p.orcpt.as_ref().map(|o| o.decoded())))
        .collect();
    assert_eq!(of, [(1, "SUCCESS,DELAY".to_owned(), Some(b"rfc822;Two@y".to_vec())), (2, "NEVER".to_owned(), None)]);
    let text = String::from_utf8(whole.replies).unwrap();
    assert!(text.contains("250-DSN\r\n") && text.contains("501 5.5.4 "), "{text}");
    // To nobody, or to relay clients only.
    for (dsn, peer, is_offered) in [
        (DsnOffer::Nobody, relay(), false),
        (DsnOffer::Relaying, Connection::default(), false),
        (DsnOffer::Relaying, relay(), true),
        (DsnOffer::Everybody, Connection::default(), true),
    ] {
        let text = replies(
            Config { dsn, ..config() },
            peer,
            b"EHLO x\r\nMAIL FROM:<> RET=FULL\r\nMAIL FROM:<>\r\nRCPT TO:<a@b> NOTIFY=NEVER\r\n",
        );
        assert_eq!(text.contains("250-DSN"), is_offered);
        assert_eq!(text.ends_with("HELP\n250 2.1.0 ok\n250 2.1.0 ok\n250 2.1.5 ok\n"), is_offered, "{text}");
        assert_eq!(text.matches("555 5.5.4 ").count(), if is_offered { 0 } else { 2 });
    }
}

#[test]
fn a_time_to_deliver_by_and_a_priority() {
    let to_all = TransferRules { deliver_by_min_s: Some(30), priority: PriorityOffer::Everybody };
    let off = TransferRules { deliver_by_min_s: None, priority: PriorityOffer::Nobody };
    let rules = TransferRules { deliver_by_min_s: Some(30), ..TransferRules::default() };
    let everybody = || Config { dsn: DsnOffer::Everybody, transfer: to_all, ..config() };
    // What is offered, to whom.
    for (config, peer, offered) in [
        (Config { transfer: rules, ..config() }, Connection::default(), [false, false]),
        (Config { transfer: rules, ..config() }, relay(), [true, true]),
        (Config { transfer: rules, ..config() }, Connection { is_submission: true, ..Connection::default() }, [true, true]),
        (Config { transfer: off, ..everybody() }, relay(), [false, false]),
        (Config { dsn: DsnOffer::Nobody, transfer: to_all, ..config() }, relay(), [false, false]),
        (Config { transfer: to_all, ..config() }, Connection::default(), [false, true]),
        (everybody(), Connection::default(), [true, true]),
    ] {
        let needs_login = peer.is_submission && peer.relay_client.is_none();
        let text = replies(config, peer, b"EHLO x\r\nMAIL FROM:<> BY=30;R\r\nMAIL FROM:<> MT-PRIORITY=0\r\n");
        assert_eq!([text.contains("\n250-DELIVERBY 30\n"), text.contains("\n250-MT-PRIORITY\n")], offered, "{text}");
        let refused = offered.iter().filter(|is_offered| !**is_offered).count();
        assert_eq!(text.matches("\n555 5.5.4 ").count(), refused, "{text}");
        assert_eq!(text.matches("\n250 2.1.0 ok").count(), if needs_login { 0 } else { 2 - refused }, "{text}");
    }
    // What is taken of it.
    for (parameters, reply) in [
        ("BY=30;R", "250 2.1.0 ok"),
        ("by=+0100;nt", "250 2.1.0 ok"),
        ("BY=0;N", "250 2.1.0 ok"),
        ("BY=-999999999;N", "250 2.1.0 ok"),
        ("BY=29;R", "554 5.4.7 that is less time to deliver by than I promise anything for"),
        ("BY=1;N", "250 2.1.0 ok"),
        ("BY=0;R", "501 5.5.4 that parameter makes no sense"),
        ("BY=-1;R", "501 5.5.4 that parameter makes no sense"),
        ("BY=1000000000;N", "501 5.5.4 that parameter makes no sense"),
        ("BY=60", "501 5.5.4 that parameter makes no sense"),
        ("BY=60;R BY=60;R", "501 5.5.4 that parameter makes no sense"),
        ("BY", "555 5.5.4 parameter not recognized"),
        ("MT-PRIORITY=-9", "250 2.1.0 ok"),
        ("mt-priority=9", "250 2.1.0 ok"),
        ("MT-PRIORITY=10", "501 5.5.4 that parameter makes no sense"),
        ("MT-PRIORITY=-0", "501 5.5.4 that parameter makes no sense"),
        ("MT-PRIORITY=1 MT-PRIORITY=1", "501 5.5.4 that parameter makes no sense"),
        ("MT-PRIORITY", "555 5.5.4 parameter not recognized"),
    ] {
        let text = replies(everybody(), relay(), format!("MAIL FROM:<> {parameters}\r\n").as_bytes());
        assert_eq!(text, format!("{reply}\n"), "{parameters}");
    }
    // Together with a hold.
    let submission = Connection { is_submission: true, ..relay() };
    for (parameters, ok) in [("HOLDFOR=60 BY=61;R", true), ("HOLDFOR=60 BY=60;R", false), ("HOLDFOR=60 BY=-1;N", false)] {
        let text = replies(everybody(), submission.clone(), format!("MAIL FROM:<> {parameters}\r\n").as_bytes());
        assert_eq!(text.starts_with("250 "), ok, "{text}");
        assert!(ok || text == "501 5.5.4 the message would be held beyond the time to deliver it by\n", "{text}");
    }
}

#[test]
fn a_stranger_gets_ahead_of_nobody() {
    let transfer = TransferRules { priority: PriorityOffer::Everybody, ..TransferRules::default() };
    let taken = |peer: Connection, asked: i8| {
        let input = format!("EHLO x\r\nMAIL FROM:<a@b> MT-PRIORITY={asked}\r\nRCPT TO:<x@y.z>\r\nDATA\r\n\r\n.\r\n");
        let mut out = Actions::default();
        let mut session = Session::new(Arc::new(Config { transfer, ..config() }), peer, fuzz::NOW, &mut out);
        session.step(fuzz::NOW, Input::Bytes(input.as_bytes()), &mut out);
        session.step(fuzz::NOW, Input::Recipient { question: 1, answer: RecipientAnswer::Exists }, &mut out);
        session.step(fuzz::NOW, Input::Queue(QueueAnswer::Accepted { id: Some(77), qp: 1 }), &mut out);
        let (mut text, mut received, mut priority) = (String::new(), String::new(), None);
        for action in out.0 {
            match action {
                Action::Reply(bytes) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
                Action::Begin(envelope) => priority = envelope.asked.priority,
                Action::Body(bytes) => received.push_str(std::str::from_utf8(&bytes).unwrap()),
                _ => {}
            }
        }
        let clause = received.split(" PRIORITY ").nth(1).and_then(|rest| rest.split(';').next()).map(str::to_owned);
        (priority.map(wire::Priority::number), clause.unwrap(), text)
    };
    let (priority, clause, text) = taken(Connection::default(), 5);
    assert_eq!((priority, clause.as_str()), (Some(0), "0"));
    let said = "250 2.3.6 0 is the new priority assigned to the message";
    assert!(text.contains(&format!("\r\n{said}\r\n")) && text.ends_with(&format!("\r\n{said}, ok 0 qp 1\r\n")), "{text}");
    for (peer, asked) in [(Connection::default(), -5), (Connection::default(), 0), (relay(), 9), (relay(), -9)] {
        let (priority, clause, text) = taken(peer, asked);
        assert_eq!((priority, clause), (Some(asked), asked.to_string()));
        assert!(text.contains("\r\n250 2.1.0 ok\r\n") && text.ends_with("\r\n250 2.0.0 ok 0 qp 1\r\n"), "{text}");
    }
}

#[test]
fn a_submitted_header_may_name_the_priority() {
    let submission = Connection { is_submission: true, ..relay() };
    let taken = |parameters: &str, header: &str| {
        let input = format!("MAIL FROM:<a@b> {parameters}\r\nRCPT TO:<x@y.z>\r\nDATA\r\n{header}\r\nbody\r\n.\r\n");
        let (envelope, text) = deliver(config(), submission.clone(), input.as_bytes()).messages.remove(0);
        (envelope.asked.priority.map(wire::Priority::number), String::from_utf8(text).unwrap())
    };
    for (parameters, header, priority) in [
        ("", "From: a@b\r\n", None),
        ("", "From: a@b\r\nMT-Priority: -7\r\n", Some(-7)),
        ("MT-PRIORITY=2", "From: a@b\r\nMT-Priority: -7\r\n", Some(2)),
        ("", "From: a@b\r\nMT-Priority: 70\r\n", None),
        ("", "From: a@b\r\nMT-Priority: 1\r\nMT-Priority: 2\r\n", None),
    ] {
        let (found, text) = taken(parameters, header);
        assert_eq!(found, priority, "{header}");
        assert!(!text.contains("MT-Priority") && text.ends_with("body\n"), "{text}");
    }
}

#[test]
fn a_submission_may_be_for_later() {
    let relay = Connection { is_submission: true, ..relay() };
    let hold = |parameters: &str| {
        let input = format!("EHLO x\r\nMAIL FROM:<a@b> {parameters}\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\n");
        let seen = deliver(config(), relay.clone(), input.as_bytes());
        let text = String::from_utf8(seen.replies).unwrap();
        assert!(text.contains("250-FUTURERELEASE 2592000 1970-01-31T00:00:00Z\r\n"), "{text}");
        seen.messages.first().map(|(envelope, _)| envelope.asked.hold_until_s)
    };
    assert_eq!(hold("HOLDFOR=60"), Some(Some(60)));
    assert_eq!(hold("HOLDUNTIL=1970-01-30T00:00:00Z"), Some(Some(29 * 86_400)));
    assert_eq!(hold("HOLDFOR=2592000"), Some(Some(2_592_000)));
    assert_eq!(hold("HOLDFOR=2592001"), None);
    assert_eq!(hold("HOLDUNTIL=1970-01-31T00:00:01Z"), None);
    assert_eq!(hold("HOLDUNTIL=1970-01-01T00:00:00Z"), Some(None), "that is now");
}

#[test]
fn protocol_in_the_received_field() {
    for (start, helo, protocol) in [
        ("", "", "SMTP"),
        ("HELO c.d\r\n", " (HELO c.d)", "SMTP"),
        ("EHLO c.d\r\n", " (HELO c.d)", "ESMTP"),
        ("EHLO \r\n", "", "ESMTP"),
        ("EHLO c d\r\n", " (HELO c?d)", "ESMTP"),
        ("EHLO c.d\r\nMAIL FROM:<> SMTPUTF8\r\nRCPT TO:<a>\r\n", " (HELO c.d)", "UTF8SMTP"),
    ] {
        let peer = Connection { remote_ip: b"192.0.2.1".as_slice().into(), ..Connection::default() };
        let mut out = Actions::default();
        let mut session = Session::new(Arc::new(config()), peer, T0, &mut out);
        let rest = if start.contains("MAIL") { "DATA\r\n" } else { "MAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nDATA\r\n" };
        session.step(T0, Input::Bytes(format!("{start}{}", if start.contains("MAIL") { "" } else { rest }).as_bytes()), &mut out);
        if start.contains("MAIL") {
            session.step(T0, Input::Recipient { question: 1, answer: RecipientAnswer::Exists }, &mut out);
            session.step(T0, Input::Bytes(rest.as_bytes()), &mut out);
        }
        let Some(Action::Body(body)) = out.0.iter().find(|action| matches!(action, Action::Body(_))) else { panic!("{start}") };
        let wanted =
            format!("Received: from unknown{helo} (192.0.2.1)\n  by mx.example.org with {protocol}; 1 Jan 1970 00:00:00 -0000\n");
        assert_eq!(String::from_utf8(body.clone()).unwrap(), wanted);
    }
}

#[test]
fn a_login_is_told_in_the_received_field() {
    for (parameter, again, protocol) in
        [("", "", "ESMTPA"), (" SMTPUTF8", "", "UTF8SMTPA"), ("", "HELO y\r\n", "ESMTPA"), ("", "EHLO y\r\n", "ESMTPA")]
    {
        let (mut out, auth) = (Actions::default(), response("", "joe", "ok"));
        let mut session = Session::new(Arc::new(config()), local(), T0, &mut out);
        session.step(T0, Input::Bytes(format!("EHLO x\r\nAUTH PLAIN {auth}\r\n").as_bytes()), &mut out);
        session.step(T0, Input::Login(LoginAnswer::Accepted { user: b"joe".as_slice().into() }), &mut out);
        let rest = format!("{again}MAIL FROM:<>{parameter}\r\nRCPT TO:<postmaster>\r\nDATA\r\n");
        session.step(T0, Input::Bytes(rest.as_bytes()), &mut out);
        let Some(Action::Body(body)) = out.0.iter().find(|action| matches!(action, Action::Body(_))) else {
            panic!("{protocol}")
        };
        let body = String::from_utf8(body.clone()).unwrap();
        assert!(body.contains(&format!(" with {protocol}; ")) && !body.contains("joe"), "{body}");
    }
}

#[test]
fn refused_texts_are_read_to_their_end() {
    let start = "MAIL FROM:<>\r\nRCPT TO:<a>\r\nDATA\r\n";
    let hops = "Received: x\r\n".repeat(100);
    let long = "x".repeat(31);
    for (text, reply) in [
        ("a\nRSET\nb", "550 5.6.11 a CR or LF that is not part of a CRLF; see https://cr.yp.to/docs/smtplf.html"),
        ("a\rb", "550 5.6.11 a CR or LF that is not part of a CRLF; see https://cr.yp.to/docs/smtplf.html"),
        (&hops, "554 5.4.6 too many hops, this message is looping"),
        (&long, "554 5.6.0 a line of this message is too long"),
        ("123456789\r\n123456789\r\n", "552 5.3.4 sorry, that message size exceeds my databytes limit"),
    ] {
        let databytes = if text.starts_with('1') { 20 } else { 0 };
        let limits = Limits { databytes, text_line_len_max: 30, ..Limits::default() };
        let input = format!("{start}{text}\r\n.\r\nNOOP\r\n");
        let wanted = format!("250 2.1.0 ok\n250 2.1.5 ok\n354 go ahead\n{reply}\n250 2.0.0 ok\n");
        assert_eq!(replies(Config { limits, ..config() }, Connection::default(), input.as_bytes()), wanted);
    }
    let normal = Config { barelf: BareLf::Normalize, ..config() };
    let seen = deliver(normal, Connection::default(), format!("{start}a\n.\nb\rc\r\n.\r\n").as_bytes());
    assert_eq!(seen.messages[0].1, b"a\n\nb\nc\n");
}

#[test]
fn a_refused_text_that_never_ends_is_answered_when_the_client_stops() {
    let bare = "550 5.6.11 a CR or LF that is not part of a CRLF; see https://cr.yp.to/docs/smtplf.html\r\n";
    let late = Now { boot: T0.boot + Duration::from_secs(1200), ..T0 };
    for (text, says) in [
        ("DATA\na\n.\nQUIT\n", format!("354 go ahead\r\n{bare}")),
        ("BDAT 9\na\n", bare.to_owned()),
        ("DATA\r\na\r\n", "354 go ahead\r\n".to_owned()),
        ("BDAT 3\na\nb", bare.to_owned()),
    ] {
        for (now, input, last) in [(T0, Input::Closed, ""), (late, Input::Deadline, "421 4.4.2 timeout\r\n")] {
            let (mut session, mut out) =
                (Session::new(Arc::new(config()), Connection::default(), T0, &mut Actions::default()), Actions::default());
            session.step(T0, Input::Bytes(b"MAIL FROM:<>\nRCPT TO:<postmaster>\n"), &mut Actions::default());
            session.step(T0, Input::Bytes(text.as_bytes()), &mut out);
            session.step(now, input, &mut out);
            let replies: Vec<u8> = out
                .0
                .iter()
                .filter_map(|action| if let Action::Reply(bytes) = action { Some(&bytes[..]) } else { None })
                .flatten()
                .copied()
                .collect();
            assert_eq!(String::from_utf8(replies).unwrap(), format!("{says}{last}"), "{text}");
            assert!(!out.0.contains(&Action::Commit));
        }
    }
}

#[test]
fn chunks() {
    let start = "MAIL FROM:<>\nRCPT TO:<a>\n";
    let ok = "250 2.1.0 ok\n250 2.1.5 ok\n";
    let done = "250 2.0.0 ok 0 qp 1\n";
    for (commands, wanted) in [
        ("BDAT 3\na\nBDAT 3 LAST\n.\nNOOP\n", format!("250 2.0.0 3 bytes received\n{done}250 2.0.0 ok\n")),
        ("BDAT 0 LAST\n", done.to_owned()),
        ("BDAT 3\na\nBDAT 0 LAST\n", format!("250 2.0.0 3 bytes received\n{done}")),
        (
            "BDAT 1\na\nNOOP\nRSET\nDATA\n",
            "250 2.0.0 1 bytes received\n502 5.5.1 unimplemented\n250 2.0.0 ok\n250 2.0.0 flushed\n503 5.5.1 MAIL first\n"
                .to_owned(),
        ),
        (
            "BDAT 0\nDATA\nMAIL FROM:<>\nRCPT TO:<b>\n",
            format!("250 2.0.0 0 bytes received\n{}", "503 5.5.1 only BDAT or RSET until the last chunk is here\n".repeat(3)),
        ),
        (
            "BDAT 1 FIRST\nNOOP\n",
            "501 5.5.4 no chunk size that can be read, so no telling where the next command starts\n".to_owned(),
        ),
        (
            "BDAT 99999999999999999999\nNOOP\n",
            "501 5.5.4 no chunk size that can be read, so no telling where the next command starts\n".to_owned(),
        ),
    ] {
        says(&format!("{start}{commands}"), &format!("{ok}{wanted}"));
    }
    says("BDAT 6\nDATA\nNOOP\n", "503 5.5.1 MAIL first\n250 2.0.0 ok\n");
    says("MAIL FROM:<>\nBDAT 6 LAST\nDATA\nRCPT TO:<a>\n", "250 2.1.0 ok\n503 5.5.1 RCPT first\n250 2.1.5 ok\n");
    // A refused chunk is refused, the ones pipelined behind it are read, and the last one ends the transaction.
    let bare = "550 5.6.11 a CR or LF that is not part of a CRLF; see https://cr.yp.to/docs/smtplf.html\n";
    let input = b"MAIL FROM:<>\nRCPT TO:<a>\nBDAT 3\na\nbBDAT 4\nRSETBDAT 4 LAST\nQUITNOOP\n";
    assert_eq!(replies(config(), Connection::default(), input), format!("{ok}{bare}{bare}{bare}250 2.0.0 ok\n"));
    // A CRLF may be cut by a chunk.
    let seen = deliver(config(), Connection::default(), b"MAIL FROM:<>\nRCPT TO:<a>\nBDAT 2\na\rBDAT 2 LAST\n\nb");
    assert_eq!(seen.messages[0].1, b"a\nb\n");
}

#[test]
fn bounds_have_clear_refusals() {
    let with = |limits: Limits| Config { limits, ..config() };
    let reply = replies(
        with(Limits { recipients_max: 2, ..Limits::default() }),
        Connection::default(),
        b"MAIL FROM:<>\r\nRCPT TO:<a>\r\nRCPT TO:<b>\r\nRCPT TO:<c>\r\nDATA\r\n.\r\n",
    );
    assert!(reply.contains(
        "250 2.1.5 ok\n250 2.1.5 ok\n452 4.5.3 too many recipients, send the rest in another transaction\n354 go ahead\n250 "
    ));
    let reply = replies(
        with(Limits { bad_recipients_max: 2, ..Limits::default() }),
        Connection::default(),
        b"MAIL FROM:<>\r\nRCPT TO:<no1>\r\nRCPT TO:<full1>\r\nRCPT TO:<full2>\r\nRCPT TO:<te>\r\nRCPT TO:<no2>\r\nRCPT TO:<ok>\r\n",
    );
    assert!(reply.ends_with("550 5.1.1 sorry, no mailbox here by that name\n421 4.7.0 too many unknown recipients\n"), "{reply}");
    let reply = replies(with(Limits { errors_max: 2, ..Limits::default() }), Connection::default(), b"X\r\nY\r\nNOOP\r\n");
    assert_eq!(reply, "502 5.5.1 unimplemented\n502 5.5.1 unimplemented\n421 4.7.0 too many errors\n");
    let exact = [&b"NOOP "[..], &vec![b'x'; COMMAND_LEN_MAX - 5], b"\r\n"].concat();
    let longer = [&b"NOOP "[..], &vec![b'x'; COMMAND_LEN_MAX - 4], b"\r\n"].concat();
    let huge = [&vec![b'x'; 3_000_000][..], b"\r\n"].concat();
    for chunk in [1, 7, 2050, 65_536] {
        let input = [&exact[..], &longer, &huge, b"NOOP\r\n"].concat();
        let input = if chunk == 1 { [&exact[..], &longer, b"NOOP\r\n"].concat() } else { input };
        let seen = run(&Arc::new(config()), &Connection::default(), input.chunks(chunk));
        let refusals = if chunk == 1 { 1 } else { 2 };
        let wanted = format!(
            "220 mx.example.org ESMTP\r\n250 2.0.0 ok\r\n{}250 2.0.0 ok\r\n",
            "500 5.5.2 command line too long\r\n".repeat(refusals)
        );
        assert_eq!(String::from_utf8(seen.replies).unwrap(), wanted);
    }
}

#[test]
fn a_hundred_thousand_recipients_cost_bounded_memory() {
    let mut input = b"MAIL FROM:<>\r\n".to_vec();
    for n in 0..100_000 {
        input.extend_from_slice(format!("RCPT TO:<user{n}@{}>\r\n", "x".repeat(200)).as_bytes());
    }
    let seen = run(&Arc::new(config()), &Connection::default(), input.chunks(65_536));
    let text = String::from_utf8(seen.replies).unwrap();
    let (accepted, refused) = (text.matches("250 2.1.5").count(), text.matches("452 4.5.3").count());
    assert_eq!(accepted + refused, 100_000);
    assert!((4_000..10_000).contains(&accepted), "{accepted}");
}

#[test]
fn without_a_bound_on_recipients_their_memory_still_has_one() {
    let limits = Limits { recipients_max: usize::MAX, ..Limits::default() };
    let input = format!("MAIL FROM:<>\r\n{}", "RCPT TO:<a>\r\n".repeat(80_000));
    let seen = run(&Arc::new(Config { limits, ..config() }), &Connection::default(), input.as_bytes().chunks(65_536));
    let text = String::from_utf8(seen.replies).unwrap();
    assert_eq!(text.matches("250 2.1.5").count(), (1 << 20) / (1 + size_of::<Address>()));
    assert!(text.ends_with("452 4.5.3 too many recipients, send the rest in another transaction\r\n"));
}

#[test]
fn questions_are_asked_together_and_answered_in_order() {
    let mut out = Actions::default();
    let mut session = Session::new(Arc::new(config()), Connection::default(), T0, &mut out);
    let mut input = b"MAIL FROM:<>\r\n".to_vec();
    input.extend((0..40).flat_map(|n| format!("RCPT TO:<u{n}>\r\n").into_bytes()));
    input.extend_from_slice(b"DATA\r\nx\r\n.\r\n");
    session.step(T0, Input::Bytes(&input), &mut out);
    let asked = |out: &Actions| out.0.iter().filter(|a| matches!(a, Action::CheckRecipient { .. })).count();
    assert_eq!((asked(&out), session.wants_input(), session.deadline()), (QUESTIONS_MAX, false, Duration::MAX));
    for question in (2..=32).rev() {
        session.step(T0, Input::Recipient { question, answer: RecipientAnswer::Exists }, &mut out);
    }
    assert_eq!(asked(&out), QUESTIONS_MAX, "the first answer is still missing");
    out.0.clear();
    session.step(T0, Input::Recipient { question: 1, answer: RecipientAnswer::NoMailbox }, &mut out);
    assert_eq!(asked(&out), 8);
    let Action::Reply(replies) = &out.0[1] else { panic!("{:?}", out.0) };
    assert!(replies.starts_with(b"550 5.1.1"));
    for question in 33..=40 {
        session.step(T0, Input::Recipient { question, answer: RecipientAnswer::Exists }, &mut out);
    }
    // The answered questions let DATA and the text through, which were held.
    assert!(matches!(out.0.last(), Some(Action::Commit)), "{:?}", out.0);
    out.0.clear();
    session.step(T0, Input::Queue(QueueAnswer::Temporary(b"disk full (#4.3.1)".to_vec())), &mut out);
    assert_eq!(out.0[0], Action::Reply(b"452 4.3.1 disk full\r\n".to_vec()));
    assert!(session.wants_input());
}

#[test]
fn input_that_is_pushed_while_a_question_is_open_is_held_up_to_a_bound() {
    let mut out = Actions::default();
    let mut session = Session::new(Arc::new(config()), Connection::default(), T0, &mut out);
    session.step(T0, Input::Bytes(b"MAIL FROM:<>\r\nRCPT TO:<a>\r\nNOOP\r\n"), &mut out);
    for _ in 0..HELD_LEN_MAX / 1024 {
        session.step(T0, Input::Bytes(&[b'\n'; 1024]), &mut out);
    }
    assert_eq!(session.end(), Some(End::Limit));
    assert!(
        matches!(&out.0[..], [.., Action::Reply(text), Action::Close] if text.ends_with(b"421 4.7.0 too much input before my answer\r\n"))
    );
}

/// A session in each state, by name.
fn in_every_state() -> Vec<(&'static str, Session)> {
    let start = "MAIL FROM:<>\r\nRCPT TO:<postmaster>\r\n";
    [
        ("idle", String::new()),
        ("greeted", "EHLO x\r\n".to_owned()),
        ("part of a line", "NOO".to_owned()),
        ("long line", "x".repeat(5000)),
        ("mail", "MAIL FROM:<>\r\n".to_owned()),
        ("asking", "MAIL FROM:<>\r\nRCPT TO:<a>\r\nNOOP\r\n".to_owned()),
        ("recipients", start.to_owned()),
        ("data", format!("{start}DATA\r\nab\r\n.")),
        ("refused data", format!("{start}DATA\r\na\nb")),
        ("chunk", format!("{start}BDAT 5\r\nab")),
        ("between chunks", format!("{start}BDAT 2\r\nab")),
        ("refused between chunks", format!("{start}BDAT 2\r\na\n")),
        ("skip", "BDAT 5\r\nab".to_owned()),
        ("committing", format!("{start}BDAT 2 LAST\r\nabNOOP\r\n")),
        ("exchange", "EHLO x\r\nAUTH LOGIN\r\nZg==\r\n".to_owned()),
        ("judging", format!("EHLO x\r\nAUTH PLAIN {}\r\nNOOP\r\n", response("", "joe", "ok"))),
        ("handshake", "EHLO x\r\nSTARTTLS\r\n".to_owned()),
        ("admitting", "EHLO x\r\nXCLIENT ADDR=192.0.2.1\r\nNOOP\r\n".to_owned()),
        ("closed", "QUIT\r\n".to_owned()),
    ]
    .map(|(name, input)| {
        let peer = Connection { starttls: StartTls::Offered, xclient: true, ..local() };
        let mut session = Session::new(Arc::new(config()), peer, T0, &mut Actions::default());
        session.step(T0, Input::Bytes(input.as_bytes()), &mut Actions::default());
        (name, session)
    })
    .into()
}

#[test]
fn every_state_with_every_event() {
    let has_message = ["data", "chunk", "between chunks"];
    let late = Now { boot: T0.boot + Duration::from_secs(1200), ..T0 };
    for event in [
        "closed",
        "deadline",
        "late bytes",
        "drain",
        "bytes",
        "early deadline",
        "recipient",
        "queue",
        "login",
        "auth",
        "admitted",
        "tls",
    ] {
        for (name, mut session) in in_every_state() {
            let mut out = Actions::default();
            let is_waiting = matches!(name, "asking" | "committing" | "judging" | "handshake" | "admitting");
            match event {
                "closed" => session.step(T0, Input::Closed, &mut out),
                "deadline" => session.step(late, Input::Deadline, &mut out),
                "late bytes" => session.step(late, Input::Bytes(b"NOOP\r\n"), &mut out),
                "drain" => session.step(T0, Input::Drain, &mut out),
                "bytes" => session.step(T0, Input::Bytes(b"\r\n"), &mut out),
                "early deadline" => session.step(T0, Input::Deadline, &mut out),
                "recipient" => session.step(T0, Input::Recipient { question: 1, answer: RecipientAnswer::NoMailbox }, &mut out),
                "auth" => {
                    let auth = format!("AUTH PLAIN {}\r\n", response("", "joe", "ok"));
                    session.step(T0, Input::Bytes(auth.as_bytes()), &mut out);
                }
                "admitted" => session.step(T0, Input::Admitted { relays: true, logins: Logins::Offered }, &mut out),
                "login" => session.step(T0, Input::Login(LoginAnswer::Accepted { user: Box::default() }), &mut out),
                "tls" => session.step(T0, Input::Tls(TlsAnswer::Started(fuzz::tls())), &mut out),
                _ => session.step(T0, Input::Queue(QueueAnswer::Accepted { id: Some(77), qp: 5 }), &mut out),
            }
            let case = format!("{event} in {name}: {:?}", out.0);
            let is_closed = session.end().is_some();
            match event {
                _ if name == "closed" => assert!(out.0.is_empty() && session.end() == Some(End::Quit), "{case}"),
                "closed" => assert_eq!(session.end(), Some(End::Gone), "{case}"),
                "deadline" | "late bytes" => assert_eq!(session.end() == Some(End::Timeout), !is_waiting, "{case}"),
                "drain" => {
                    let is_between =
                        ["idle", "greeted", "part of a line", "long line", "mail", "asking", "recipients", "exchange"]
                            .contains(&name);
                    assert_eq!(session.end() == Some(End::Drain), is_between, "{case}");
                }
                "early deadline" => assert!(out.0.is_empty(), "{case}"),
                "recipient" => assert_eq!(out.0.is_empty(), name != "asking", "{case}"),
                "queue" => assert_eq!(out.0.is_empty(), name != "committing", "{case}"),
                "login" => assert_eq!(out.0.is_empty(), name != "judging", "{case}"),
                "admitted" => assert_eq!(out.0.is_empty(), name != "admitting", "{case}"),
                "tls" => {
                    assert!(out.0.is_empty() && session.helo().is_none_or(|_| name != "handshake"), "{case}");
                    assert_eq!(session.peer().tls.is_some(), name == "handshake", "{case}");
                }
                // Bytes in the clear where a handshake belongs.
                "bytes" | "auth" if name == "handshake" => assert_eq!(session.end(), Some(End::Limit), "{case}"),
                _ => assert!(!is_closed, "{case}"),
            }
            let asks = out.0.iter().any(|action| matches!(action, Action::LogIn { .. }));
            assert_eq!(asks, event == "auth" && name == "greeted", "{case}");
            let abandons = out.0.iter().filter(|action| **action == Action::Abandon).count();
            assert_eq!(abandons == 1, is_closed && has_message.contains(&name) && name != "closed", "{case}");
            assert!(!out.0.contains(&Action::Commit) || (event == "bytes" && name == "data"), "{case}");
            assert_eq!(out.0.last() == Some(&Action::Close), is_closed && name != "closed", "{case}");
        }
    }
}

#[test]
fn a_drained_session_ends_behind_its_message() {
    let mut out = Actions::default();
    let mut session = Session::new(Arc::new(config()), Connection::default(), T0, &mut out);
    session.step(T0, Input::Bytes(b"MAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nDATA\r\n"), &mut out);
    session.step(T0, Input::Drain, &mut out);
    assert_eq!(session.end(), None);
    session.step(T0, Input::Bytes(b".\r\n"), &mut out);
    out.0.clear();
    session.step(T0, Input::Queue(QueueAnswer::Accepted { id: Some(77), qp: 5 }), &mut out);
    assert_eq!(out.0.remove(0), Action::Log("accepted remote=\"\" msg=77 from=<> recipients=1 bytes=0 qp=5".to_owned()));
    assert_eq!(
        out.0,
        [Action::Reply(b"250 2.0.0 ok 0 qp 5\r\n421 4.3.2 going down, try again in a moment\r\n".to_vec()), Action::Close]
    );
    assert_eq!(session.counts(), Counts { messages: 1, recipients: 1, ..Counts::default() });
}

#[test]
fn deadlines_start_over_with_each_command_but_not_with_a_part_of_one() {
    let at = |boot_s| Now { boot: Duration::from_secs(boot_s), ..T0 };
    let mut out = Actions::default();
    let mut session = Session::new(Arc::new(config()), Connection::default(), T0, &mut out);
    assert_eq!(session.deadline().as_secs(), 1300);
    session.step(at(200), Input::Bytes(b"NOO"), &mut out);
    assert_eq!(session.deadline().as_secs(), 1300);
    session.step(at(300), Input::Bytes(b"P\r\nMAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nDATA\r\n"), &mut out);
    assert_eq!(session.deadline().as_secs(), 1500);
    session.step(at(400), Input::Bytes(b"x"), &mut out);
    assert_eq!(session.deadline().as_secs(), 1600);
    session.step(at(86_499), Input::Deadline, &mut out);
    assert_eq!(session.end(), Some(End::Timeout));
    let mut session = Session::new(Arc::new(config()), Connection::default(), T0, &mut out);
    for minute in 0..1440 {
        session.step(at(100 + minute * 60), Input::Bytes(b"NOOP\r\n"), &mut out);
        assert_eq!(session.end(), None, "{minute}");
    }
    session.step(at(86_500), Input::Bytes(b"NOOP\r\n"), &mut out);
    assert_eq!(session.end(), Some(End::Timeout), "24 hours are enough");
}

#[test]
fn a_time_out_of_one_second_never_comes_early() {
    let at = |ms| Now { boot: Duration::from_millis(ms), ..T0 };
    let limits = Limits { command_s: 1, ..Limits::default() };
    let mut out = Actions::default();
    let mut session = Session::new(Arc::new(Config { limits, ..config() }), Connection::default(), at(900), &mut out);
    session.step(at(1899), Input::Bytes(b"NOOP\r\n"), &mut out);
    assert_eq!((session.end(), session.deadline()), (None, Duration::from_millis(2899)));
    session.step(at(2898), Input::Deadline, &mut out);
    assert_eq!(session.end(), None);
    session.step(at(2899), Input::Deadline, &mut out);
    assert_eq!(session.end(), Some(End::Timeout));
}

#[test]
fn an_endless_text_is_not_kept() {
    let mut out = Actions::default();
    let mut session = Session::new(Arc::new(config()), Connection::default(), T0, &mut out);
    session.step(T0, Input::Bytes(b"MAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nDATA\r\n"), &mut out);
    let chunk = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789\r\n".repeat(800);
    let mut len = 0;
    for _ in 0..500 {
        out.0.clear();
        session.step(T0, Input::Bytes(&chunk), &mut out);
        let [Action::Body(body)] = &out.0[..] else { panic!("{:?}", out.0.len()) };
        len += body.len();
        assert!(session.held.capacity() == 0);
    }
    assert_eq!(len, 500 * 800 * 75);
}

#[test]
fn strangers_bytes_reach_the_log_line_in_one_action() {
    let seen = deliver(
        config(),
        Connection::default(),
        b"MAIL FROM:<any@spam.example>\r\nMAIL FROM:<a@b>\r\nRCPT TO:<\"no \xc3\xa9\"@x>\r\n",
    );
    assert_eq!(seen.log.len(), 2);
    let line = |number: usize| String::from_utf8(seen.log[number].clone()).unwrap();
    assert!(line(0).contains(" from=<any@spam.example> reply=\"553 5.7.1 "), "{}", line(0));
    assert!(line(1).contains(" from=<a@b> to=\"<no \\xc3\\xa9@x>\" reply=\"553 5.6.7 "), "{}", line(1));
}

#[test]
fn logins_that_are_right() {
    let yes = "235 2.7.0 welcome\n";
    let (name, password) = ("334 VXNlcm5hbWU6\n", "334 UGFzc3dvcmQ6\n");
    for (exchange, wanted) in [
        (format!("AUTH PLAIN {}\n", response("", "Joe", "ok o")), yes.to_owned()),
        (format!("auth plain  {} \n", response("Joe", "Joe", "ok o")), yes.to_owned()),
        (format!("AUTH PLAIN\n{}\n", response("", "Joe", "ok o")), format!("334 \n{yes}")),
        ("AUTH LOGIN\nSm9l\nb2sgbw==\n".to_owned(), format!("{name}{password}{yes}")),
        ("AUTH LOGIN Sm9l\nb2sgbw==\n".to_owned(), format!("{password}{yes}")),
    ] {
        let input = format!(
            "EHLO x\n{exchange}AUTH PLAIN\nEHLO x\nMAIL FROM:<l@x> XVERP AUTH=<>\nRCPT TO:<far@y.z>\nDATA\n\r\n.\r\nQUIT\n"
        );
        let whole = deliver(config(), local(), input.as_bytes());
        assert_eq!(run(&Arc::new(config()), &local(), input.as_bytes().chunks(1)), whole);
        assert_eq!(whole.logins, [(b"Joe".to_vec(), b"ok o".to_vec())], "{exchange}");
        assert_eq!(whole.user.as_deref(), Some(&b"joe"[..]));
        assert_eq!(whole.messages[0].0.sender.to_string(), "l-@x-@[]", "XVERP and relaying are the user's");
        let text = String::from_utf8(whole.replies).unwrap().replace("\r\n", "\n");
        let (before, behind) = text.split_once(&wanted).unwrap();
        assert!(
            before.ends_with("250-AUTH SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN\n250 HELP\n") && !before.contains("XVERP"),
            "{before}"
        );
        assert!(behind.starts_with("503 5.5.1 you are logged in already\n250-mx.example.org\n") && !behind.contains("-AUTH "));
        assert!(behind.contains("250-XVERP\n") && behind.ends_with("221 2.0.0 mx.example.org\n"), "{behind}");
        assert!(whole.log.iter().all(|line| !line.windows(4).any(|part| part == b"ok o" || part == b"Sm9l")), "{:?}", whole.log);
    }
}

#[test]
fn logins_that_are_not() {
    let wrong = "535 5.7.8 wrong name or password\n";
    let unreadable = "501 5.5.2 no response that can be read\n";
    for (exchange, wanted) in [
        (format!("PLAIN {}", response("", "joe", "no")), wrong.to_owned()),
        (format!("PLAIN {}", response("ann", "joe", "ok")), wrong.to_owned()),
        (format!("PLAIN {}", response("", "joe", "te")), "454 4.7.0 cannot check that login now, try again later\n".to_owned()),
        (format!("PLAIN {}", response("", "", "ok")), unreadable.to_owned()),
        (format!("PLAIN {}", response("", "joe", "")), unreadable.to_owned()),
        (format!("PLAIN {}", response("", "joe", "o\0k")), unreadable.to_owned()),
        (format!("PLAIN {}", wire::base64::encode(b"joe\0ok")), unreadable.to_owned()),
        ("PLAIN =".to_owned(), unreadable.to_owned()),
        ("PLAIN ===".to_owned(), unreadable.to_owned()),
        ("PLAIN\n=".to_owned(), format!("334 \n{unreadable}")),
        ("PLAIN\n".to_owned(), format!("334 \n{unreadable}")),
        ("PLAIN\nMAIL FROM:<a@b>".to_owned(), format!("334 \n{unreadable}")),
        ("PLAIN\nAGpvZQBvaw== ".to_owned(), format!("334 \n{unreadable}")),
        ("PLAIN\nAGpvZ\0QBvaw==".to_owned(), format!("334 \n{unreadable}")),
        ("PLAIN *".to_owned(), "501 5.7.0 cancelled\n".to_owned()),
        ("PLAIN\n*".to_owned(), "334 \n501 5.7.0 cancelled\n".to_owned()),
        ("LOGIN =".to_owned(), unreadable.to_owned()),
        ("LOGIN am8AZQ==".to_owned(), unreadable.to_owned()),
        ("LOGIN am9l\n".to_owned(), format!("334 UGFzc3dvcmQ6\n{unreadable}")),
        ("LOGIN am9l\n*".to_owned(), "334 UGFzc3dvcmQ6\n501 5.7.0 cancelled\n".to_owned()),
        ("CRAM-MD5".to_owned(), "504 5.5.4 that mechanism is not known here\n".to_owned()),
        ("".to_owned(), "501 5.5.4 AUTH needs a mechanism and at most one response\n".to_owned()),
        ("PLAIN a b".to_owned(), "501 5.5.4 AUTH needs a mechanism and at most one response\n".to_owned()),
    ] {
        let input = format!("EHLO x\nAUTH {exchange}\nNOOP\nMAIL FROM:<>\nRCPT TO:<far@y.z>\n");
        let seen = deliver(config(), local(), input.as_bytes());
        assert_eq!(run(&Arc::new(config()), &local(), input.as_bytes().chunks(1)), seen);
        assert_eq!(seen.user, None);
        let text = String::from_utf8(seen.replies).unwrap().replace("\r\n", "\n");
        let (_, behind) = text.split_once("250 HELP\n").unwrap();
        let rest = "250 2.0.0 ok\n250 2.1.0 ok\n553 5.7.1 sorry, that domain isn't in my list of allowed rcpthosts\n";
        assert_eq!(behind, format!("{wanted}{rest}"), "{exchange}");
    }
}

#[test]
fn where_and_when_nobody_logs_in() {
    let auth = format!("AUTH PLAIN {}\r\n", response("", "joe", "ok"));
    let in_clear = Connection { logins: Logins::NotInClear, ..Connection::default() };
    let transaction = "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a>\r\n";
    for (peer, before, reply) in [
        (Connection::default(), "EHLO x\r\n", "502 5.5.1 unimplemented"),
        (in_clear, "EHLO x\r\n", "538 5.7.11 a password may not be sent over this connection, it is not encrypted"),
        (local(), "", "503 5.5.1 EHLO first"),
        (local(), "HELO x\r\n", "503 5.5.1 EHLO first"),
        (local(), "EHLO x\r\nMAIL FROM:<>\r\n", "503 5.5.1 no AUTH within a transaction"),
        (local(), transaction, "503 5.5.1 no AUTH within a transaction"),
        (local(), &format!("{transaction}BDAT 2\r\n\r\n"), "503 5.5.1 only BDAT or RSET until the last chunk is here"),
    ] {
        let seen = deliver(config(), peer.clone(), format!("{before}{auth}").as_bytes());
        let text = String::from_utf8(seen.replies).unwrap();
        assert!(text.ends_with(&format!("{reply}\r\n")), "{before}: {text}");
        assert_eq!(
            (text.contains("250-AUTH"), seen.logins.len()),
            (peer.logins == Logins::Offered && before.contains("EHLO"), 0)
        );
    }
}

#[test]
fn three_failed_logins_are_enough() {
    let failed = |password: &str| format!("AUTH PLAIN {}\r\n", response("", "joe", password));
    let input = format!("EHLO x\r\n{}{}RSET\r\n{}{}", failed("no"), failed("te"), failed("no"), failed("ok"));
    let seen = deliver(config(), local(), input.as_bytes());
    assert_eq!((seen.end, seen.logins.len(), seen.user), (Some(End::Limit), 3, None));
    assert!(seen.replies.ends_with(b"535 5.7.8 wrong name or password\r\n421 4.7.0 too many failed logins\r\n"));
}

#[test]
fn responses_have_a_bound() {
    let pad = |len: usize| "A".repeat(len);
    let start = "EHLO x\r\nAUTH PLAIN\r\n";
    for (line, reply) in [
        (pad(RESPONSE_LEN_MAX), "501 5.5.2 no response that can be read"),
        (pad(RESPONSE_LEN_MAX + 1), "500 5.5.6 response too long"),
        (pad(100_000), "500 5.5.6 response too long"),
    ] {
        let input = format!("{start}{line}\r\nNOOP\r\n");
        for chunk in [1, 2049, 12_287, 65_536] {
            let seen = run(&Arc::new(config()), &local(), input.as_bytes().chunks(chunk));
            let text = String::from_utf8(seen.replies).unwrap();
            assert!(text.ends_with(&format!("334 \r\n{reply}\r\n250 2.0.0 ok\r\n")), "{chunk}: {text}");
        }
    }
    let longest = response("", &"u".repeat(4000), &format!("o{}", "p".repeat(5000)));
    assert_eq!(deliver(config(), local(), format!("{start}{longest}\r\n").as_bytes()).logins[0].1.len(), 5001);
    // The command itself is a command line.
    let text = replies(config(), local(), format!("AUTH PLAIN {}\r\nNOOP\r\n", pad(COMMAND_LEN_MAX)).as_bytes());
    assert_eq!(text, "500 5.5.2 command line too long\n250 2.0.0 ok\n");
}

#[test]
fn what_is_pipelined_behind_a_login_waits_for_the_verdict() {
    let mut out = Actions::default();
    let mut session = Session::new(Arc::new(config()), local(), T0, &mut out);
    let input = format!("EHLO x\r\nAUTH PLAIN {}\r\nMAIL FROM:<l@x> XVERP\r\n", response("", "joe", "ok"));
    session.step(T0, Input::Bytes(input.as_bytes()), &mut out);
    assert!(matches!(out.0.last(), Some(Action::LogIn { user, .. }) if &user[..] == b"joe"));
    assert!(format!("{:?}", out.0.last()).contains("password: Secret(…)"), "no password in a debugging text");
    assert!(!session.wants_input() && session.deadline() == Duration::MAX);
    out.0.clear();
    session.step(T0, Input::Login(LoginAnswer::Accepted { user: b"joe@a".as_slice().into() }), &mut out);
    let sender = Address::new(b"l@x").unwrap();
    assert_eq!(out.0, [Action::Reply(b"235 2.7.0 welcome\r\n".to_vec()), Action::CheckSender { sender }]);
    out.0.clear();
    session.step(T0, Input::Login(LoginAnswer::Refused), &mut out);
    assert!(out.0.is_empty(), "an answer to nothing");
    session.step(T0, Input::Sender(SenderAnswer::Yes), &mut out);
    assert_eq!(out.0, [Action::Reply(b"250 2.1.0 ok\r\n".to_vec())]);
    out.0.clear();
    session.step(T0, Input::Sender(SenderAnswer::NotYours), &mut out);
    session.step(T0, Input::Header(HeaderAnswer::Unclear), &mut out);
    assert!(out.0.is_empty(), "answers to nothing");
}

#[test]
fn other_mechanisms_are_relayed() {
    let b64 = |text: &str| wire::base64::encode(text.as_bytes());
    let mechanisms = sasl::Mechanisms::parse(Some(&[b"SCRAM-SHA-1".to_vec(), b"CRAM-MD5".to_vec()])).unwrap();
    let config = || Config { mechanisms, ..config() };
    let (first, more, ok) = (b64("first"), b64("more"), b64("ok"));
    let (re_first, re_more) = (b64("re first"), b64("re more"));
    for (exchange, said) in [
        (
            format!("AUTH scram-sha-1 {first}\r\n{more}\r\n{ok}\r\n"),
            format!("334 {re_first}\n334 {re_more}\n235 2.7.0 welcome\n"),
        ),
        (format!("AUTH SCRAM-SHA-1\r\n{ok}\r\n"), format!("334 {}\n235 2.7.0 welcome\n", b64("re "))),
        (format!("AUTH CRAM-MD5 =\r\n{ok}\r\n"), format!("334 {}\n235 2.7.0 welcome\n", b64("re "))),
        (format!("AUTH CRAM-MD5\r\n{}\r\n", b64("no")), format!("334 {}\n535 5.7.8 wrong name or password\n", b64("re "))),
        (
            format!("AUTH CRAM-MD5\r\n{}\r\n", b64("te")),
            format!("334 {}\n454 4.7.0 cannot check that login now, try again later\n", b64("re ")),
        ),
        ("AUTH CRAM-MD5\r\n*\r\n".to_owned(), format!("334 {}\n501 5.7.0 cancelled\n", b64("re "))),
        ("AUTH CRAM-MD5\r\nx!\r\n".to_owned(), format!("334 {}\n501 5.5.2 no response that can be read\n", b64("re "))),
        ("AUTH SCRAM-SHA-1 x!\r\n".to_owned(), "501 5.5.2 no response that can be read\n".to_owned()),
        ("AUTH SCRAM-SHA-1-PLUS\r\n".to_owned(), "504 5.5.4 that mechanism is not known here\n".to_owned()),
        ("AUTH PLAIN\r\n".to_owned(), "504 5.5.4 that mechanism is not known here\n".to_owned()),
    ] {
        let text = replies(config(), local(), format!("EHLO x\r\n{exchange}").as_bytes());
        let (greeting, said_then) = text.split_once("250 HELP\n").unwrap();
        assert!(greeting.contains("250-AUTH SCRAM-SHA-1 CRAM-MD5\n"), "{greeting}");
        assert_eq!(said_then, said, "{exchange}");
    }
    // Every message in the clear, of any mechanism, needs the same leave.
    let in_clear = Connection { logins: Logins::NotInClear, ..Connection::default() };
    assert!(replies(config(), in_clear, b"EHLO x\r\nAUTH CRAM-MD5\r\n").ends_with("it is not encrypted\n"));
    // Without a mechanism there is nothing to announce.
    let none = Config { mechanisms: sasl::Mechanisms::parse(Some(&[])).unwrap(), ..config() };
    assert!(!replies(none, local(), b"EHLO x\r\n").contains("AUTH"));
    // A challenge to nobody's question, or behind a login, is nothing.
    let mut out = Actions::default();
    let mut session = Session::new(Arc::new(config()), local(), T0, &mut out);
    session.step(T0, Input::Bytes(b"EHLO x\r\nAUTH CRAM-MD5\r\n"), &mut out);
    assert!(matches!(out.0.last(), Some(Action::SaslStart { initial: None, .. })) && !session.wants_input());
    out.0.clear();
    for expected in [&b"334 eA==\r\n"[..], b""] {
        session.step(T0, Input::Login(LoginAnswer::Challenge(b"x".as_slice().into())), &mut out);
        let said = out.0.drain(..).filter_map(|action| if let Action::Reply(bytes) = action { Some(bytes) } else { None });
        assert_eq!(said.collect::<Vec<_>>().concat(), expected);
    }
}

#[test]
fn a_submission_is_somebodys() {
    let first = "530 5.7.0 log in first\n";
    let text = replies(
        config(),
        submitter(),
        b"NOOP\nRSET\nVRFY x\nEXPN x\nMAIL FROM:<a@b>\nRCPT TO:<joe@ours.example>\nDATA\nBDAT 6\nDATA\r\nNOOP\nQUIT\n",
    );
    assert_eq!(text, format!("250 2.0.0 ok\n250 2.0.0 flushed\n{}250 2.0.0 ok\n221 2.0.0 mx.example.org\n", first.repeat(6)));
    let letter = "MAIL FROM:<a@b>\nRCPT TO:<far@y.z>\nDATA\r\n.\r\n";
    let login = format!("EHLO x\nAUTH PLAIN {}\n{letter}", response("", "joe", "ok"));
    let named = Connection { relay_client: Some(Box::default()), ..submitter() };
    for (peer, input, messages) in
        [(submitter(), &login, 1), (submitter(), &letter.to_owned(), 0), (named, &letter.to_owned(), 1)]
    {
        assert_eq!(deliver(config(), peer, input.as_bytes()).messages.len(), messages, "{input}");
    }
}

/// Over a connection that offers STARTTLS: `before` the handshake, `after` it.
fn over_tls(before: &str, after: &str) -> Seen {
    let peer = Connection { logins: Logins::NotInClear, starttls: StartTls::Offered, ..submitter() };
    fuzz::run(&Arc::new(config()), &peer, [before.as_bytes(), b"STARTTLS\r\n", after.as_bytes()])
}

#[test]
fn after_starttls_everything_starts_over() {
    let seen = over_tls("EHLO before\r\n", "MAIL FROM:<a@b>\r\nEHLO after\r\nSTARTTLS\r\n");
    let replies = String::from_utf8(seen.replies).unwrap();
    let (clear, protected) = replies.split_once("220 2.0.0 ready to start TLS\r\n").unwrap();
    assert!(clear.contains("250-STARTTLS\r\n") && !clear.contains("AUTH"), "{clear}");
    assert!(
        protected.contains("250-AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-1-PLUS SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN\r\n")
            && !protected.contains("STARTTLS"),
        "{protected}"
    );
    assert!(protected.starts_with("530 5.7.0 log in first\r\n"), "{protected}");
    // -PLUS is there where there is something to bind to: TLS 1.2 may have nothing.
    let peer = Connection { tls: Some(Box::new(Tls { exporter: None, ..*fuzz::tls() })), ..local() };
    assert!(self::replies(config(), peer, b"EHLO x\r\n").contains("250-AUTH SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN\n"));
    assert!(protected.ends_with("503 5.5.1 this connection has TLS already\r\n"), "{protected}");
    // A transaction and a name of before are gone.
    let peer = Connection { starttls: StartTls::Offered, ..local() };
    let chunks = [
        &b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a>\r\nSTARTTLS\r\n"[..],
        b"DATA\r\n",
        b"MAIL FROM:<>\r\nRCPT TO:<a>\r\nDATA\r\n.\r\n",
    ];
    let mut out = Actions::default();
    let mut session = Session::new(Arc::new(config()), peer, T0, &mut out);
    let mut text = Vec::new();
    let mut replies = Vec::new();
    for chunk in chunks {
        session.step(T0, Input::Bytes(chunk), &mut out);
        while !out.0.is_empty() {
            for action in std::mem::take(&mut out.0) {
                match action {
                    Action::CheckRecipient { question, .. } => {
                        session.step(T0, Input::Recipient { question, answer: RecipientAnswer::Exists }, &mut out);
                    }
                    Action::StartTls { .. } => session.step(T0, Input::Tls(TlsAnswer::Started(fuzz::tls())), &mut out),
                    Action::Body(piece) => text.extend(piece),
                    Action::Reply(bytes) => replies.extend(bytes),
                    _ => {}
                }
            }
        }
    }
    assert!(String::from_utf8(replies).unwrap().contains("\r\n503 5.5.1 MAIL first\r\n"));
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("Received: from unknown ()\n  by mx.example.org with SMTP tls TLS_AES_128_GCM_SHA256; "), "{text}");
}

#[test]
fn who_is_told_by_xclient_over_tls_may_log_in() {
    let mut peer = Connection { xclient: true, logins: Logins::NotInClear, ..Connection::default() };
    peer.protect(fuzz::tls());
    let seen = fuzz::run(&Arc::new(config()), &peer, [&b"EHLO x\r\nXCLIENT ADDR=198.51.100.1\r\nEHLO x\r\n"[..]]);
    assert_eq!(String::from_utf8(seen.replies).unwrap().matches("250-AUTH ").count(), 2);
}

#[test]
fn tls_all_the_way_is_asked_for_over_tls_alone() {
    let letter = "EHLO x\r\nMAIL FROM:<a@b> REQUIRETLS\r\nRCPT TO:<a>\r\nDATA\r\n.\r\n";
    let peer = Connection { starttls: StartTls::Offered, ..local() };
    let run = |chunks: &[&str]| fuzz::run(&Arc::new(config()), &peer, chunks.iter().map(|chunk| chunk.as_bytes()));
    let seen = run(&["EHLO x\r\n", "STARTTLS\r\n", letter]);
    let replies = String::from_utf8(seen.replies).unwrap();
    let (clear, protected) = replies.split_once("220 2.0.0 ").unwrap();
    assert!(!clear.contains("REQUIRETLS") && protected.contains("250-REQUIRETLS\r\n"), "{replies}");
    assert!(seen.messages[0].0.requiretls);
    let seen = run(&[letter]);
    assert!(String::from_utf8(seen.replies).unwrap().contains("\r\n555 5.5.4 parameter not recognized\r\n"));
    assert!(seen.messages.is_empty());
}

#[test]
fn what_is_pipelined_behind_starttls_is_never_a_command() {
    for (before, behind) in
        [("EHLO x\r\n", "NOOP\r\n"), ("EHLO x\r\n", "x"), ("", "\0"), ("MAIL FROM:<>\r\nRCPT TO:<a>\r\n", "DATA\r\n.\r\n")]
    {
        let peer = Connection { starttls: StartTls::Offered, ..local() };
        let input = format!("{before}STARTTLS\r\n{behind}");
        let seen = fuzz::run(&Arc::new(config()), &peer, [input.as_bytes()]);
        let replies = String::from_utf8(seen.replies).unwrap();
        assert_eq!(seen.end, Some(End::Limit), "{input:?}");
        assert!(replies.ends_with("421 4.7.0 nothing may be sent behind STARTTLS before TLS has started\r\n"), "{replies}");
        assert!(!replies.contains("220 2.0.0") && seen.messages.is_empty(), "{replies}");
    }
}

#[test]
fn where_there_is_no_starttls() {
    says("STARTTLS\r\n", "502 5.5.1 unimplemented\n");
    let peer = Connection { starttls: StartTls::Offered, ..local() };
    let seen =
        fuzz::run(&Arc::new(config()), &peer, [&b"STARTTLS now\r\nMAIL FROM:<>\r\nRCPT TO:<a>\r\nBDAT 2\r\nabSTARTTLS\r\n"[..]]);
    let replies = String::from_utf8(seen.replies).unwrap();
    assert!(
        replies.contains("501 5.5.4 STARTTLS has no parameters\r\n")
            && replies.ends_with("503 5.5.1 only BDAT or RSET until the last chunk is here\r\n"),
        "{replies}"
    );
    for (answer, end, reply) in [
        (TlsAnswer::Unavailable, None, "454 4.7.0 TLS is not available now, try again later\r\n"),
        (TlsAnswer::Failed, Some(End::Tls), ""),
    ] {
        let mut out = Actions::default();
        let mut session = Session::new(Arc::new(config()), Connection { starttls: StartTls::Offered, ..local() }, T0, &mut out);
        session.step(T0, Input::Bytes(b"STARTTLS\r\n"), &mut out);
        assert!(!session.wants_input() && session.deadline() == Duration::MAX);
        out.0.clear();
        session.step(T0, Input::Tls(answer), &mut out);
        assert_eq!(session.end(), end);
        let said = out.0.iter().find_map(|action| match action {
            Action::Reply(bytes) => Some(String::from_utf8(bytes.clone()).unwrap()),
            _ => None,
        });
        assert_eq!(said.unwrap_or_default(), reply);
    }
}

#[test]
fn tls_is_told_in_the_received_field_and_lets_passwords_in() {
    let mut peer = Connection { logins: Logins::NotInClear, ..submitter() };
    peer.protect(fuzz::tls());
    let login = format!("EHLO x\r\nAUTH PLAIN {}\r\nMAIL FROM:<a@b>\r\n", response("", "joe", "ok"));
    let answers = replies(config(), peer, login.as_bytes());
    assert!(answers.contains("235 2.7.0 welcome\n250 2.1.0 ok\n"), "{answers}");
    let mut peer = Connection { logins: Logins::NotHere, ..local() };
    peer.protect(fuzz::tls());
    assert_eq!(peer.logins, Logins::NotHere, "there is still nobody to judge a login");
}

#[test]
fn arbitrary_bytes() {
    for seed in [
        &b"\0\xff\x07MAIL FROM:<>\r\nRCPT TO:<a>\r\nRCPT TO:<no>\r\nDATA\r\n.\r\nBDAT 3\r\nx"[..],
        b"",
        b"\xff\x00\x00EHLO x\r\nBDAT 9\r\nNOOP\r\nRSET\r\n",
        b"\x04\xff\x02EHLO x\r\nAUTH LOGIN\r\nam9l\r\nb2s=\r\nMAIL FROM:<> AUTH=<>\r\nRCPT TO:<fa@d>\r\nDATA\r\n.\r\n",
    ] {
        fuzz::session(seed);
    }
    proptest::proptest!(proptest::prelude::ProptestConfig::with_cases(3000), |(head: [u8; 3], words in proptest::collection::vec(0..33usize, 0..40), noise: Vec<u8>)| {
        const WORDS: [&[u8]; 33] = [
            b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"RCPT TO:<no@d>", b"RCPT TO:<te@d>", b"RCPT TO:<fa@d>", b"DATA", b"BDAT 3", b"BDAT 0 LAST",
            b"BDAT 9 LAST", b"EHLO x", b"RSET", b"QUIT", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b".", b"\r\n.\r\n", b"Received: x\r\n",
            b"MAIL FROM:<> SIZE=9 XVERP", b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", b"\0", b"RCPT TO:<postmaster>\r\nDATA\r\n",
            b"Subject: x\r\n\r\n", b"!x\r\n\r\nx\r\n.\r\n", b"MAIL FROM:<no@x>\r\n",
            b"AUTH PLAIN AGpvZQBvaw==\r\n", b"AUTH PLAIN\r\n", b"AUTH login am9l\r\n", b"b2s=\r\n", b"AUTH PLAIN AGpvZQBubw==\r\n", b"*\r\n",
        ];
        let text: Vec<u8> = words.iter().flat_map(|n| WORDS[*n].iter().chain(if *n < 12 { &b"\r\n"[..] } else { b"" }).copied()).collect();
        fuzz::session(&[&head[..], &text, &noise].concat());
    });
}

/// Runs `check` over all strings up to `len` on two threads; the number of sessions.
fn all_strings(len: u32, check: impl Fn(&[u8]) -> usize + Sync) -> usize {
    std::thread::scope(|scope| {
        let check = &check;
        let share = |first: usize| {
            (first..fuzz::smuggling_count(len)).step_by(2).map(|n| check(&fuzz::smuggling_string(n))).sum::<usize>()
        };
        let shares = [0, 1].map(|first| scope.spawn(move || share(first)));
        shares.into_iter().map(|share| share.join().unwrap()).sum()
    })
}

#[test]
fn smuggling_strings_are_all_of_them() {
    let all: std::collections::BTreeSet<_> = (0..fuzz::smuggling_count(4)).map(fuzz::smuggling_string).collect();
    assert_eq!((all.len(), all.iter().map(Vec::len).max()), (341, Some(4)));
}

#[test]
fn smuggling_in_a_body() {
    assert!(all_strings(6, fuzz::smuggling_body) > 100_000);
}

/// Shorter strings with every cut, longer ones with the cuts around them; examples/smuggling.rs has the whole product up to length 8.
#[test]
fn smuggling_at_every_position_of_a_session() {
    let near = |string: &[u8]| match string.len() {
        ..=2 => Some(usize::MAX),
        3 => Some(4),
        4 => Some(1),
        _ => None,
    };
    assert!(all_strings(5, |string| fuzz::smuggling_inserted(string, near(string))) > 500_000);
}

/// The replies of an LMTP session behind the greeting.
fn lmtp_says(config: Config, input: &str, wanted: &str) -> Seen {
    let peer = Connection { is_lmtp: true, relay_client: None, starttls: StartTls::Offered, ..Connection::default() };
    let seen = run(&Arc::new(config), &peer, [input.replace('\n', "\r\n").as_bytes()]);
    let text = String::from_utf8(seen.replies.clone()).unwrap().replace("\r\n", "\n");
    assert_eq!(text.strip_prefix("220 mx.example.org LMTP\n").unwrap(), wanted, "{input}");
    seen
}

#[test]
fn lmtp_has_its_own_greeting_and_no_login() {
    lmtp_says(
        config(),
        "HELO x\nEHLO x\nAUTH PLAIN AGEAYg==\nXCLIENT ADDR=1.2.3.4\nLHLO x\nQUIT\n",
        "500 5.5.1 this is LMTP: say LHLO; there is no login\n500 5.5.1 this is LMTP: say LHLO; there is no login\n\
         500 5.5.1 this is LMTP: say LHLO; there is no login\n502 5.5.1 unimplemented\n250-mx.example.org\n250-PIPELINING\n\
         250-SIZE 0\n250-8BITMIME\n250-SMTPUTF8\n250-CHUNKING\n250-ENHANCEDSTATUSCODES\n250-STARTTLS\n250 HELP\n\
         221 2.0.0 mx.example.org\n",
    );
    says("LHLO x\n", "502 5.5.1 unimplemented\n");
}

/// RFC 2033 §4.2, §4.3: as many replies as accepted recipients, in their order, however often one of them was given.
#[test]
fn lmtp_answers_for_each_recipient() {
    let rcpts = "RCPT TO:<a@b>\nRCPT TO:<no@b>\nRCPT TO:<a@b>\nRCPT TO:<te@b>\nRCPT TO:<c@b>\n";
    let rcpt_replies = "250 2.1.5 ok\n550 5.1.1 sorry, no mailbox here by that name\n250 2.1.5 ok\n\
        451 4.3.0 cannot check that recipient now, try again later\n250 2.1.5 ok\n";
    let ok = "250 2.0.0 ok 0 qp 1\n";
    let noop = "250 2.0.0 ok\n";
    let seen = lmtp_says(
        config(),
        &format!(
            "LHLO x\nMAIL FROM:<>\n{rcpts}DATA\nSubject: x\n\nx\n.\nNOOP\nMAIL FROM:<>\n{rcpts}BDAT 1\nxBDAT 2 LAST\n\nNOOP\n"
        ),
        &format!(
            "250-mx.example.org\n250-PIPELINING\n250-SIZE 0\n250-8BITMIME\n250-SMTPUTF8\n250-CHUNKING\n250-ENHANCEDSTATUSCODES\n\
             250-STARTTLS\n250 HELP\n250 2.1.0 ok\n{rcpt_replies}354 go ahead\n{ok}{ok}{ok}{noop}250 2.1.0 ok\n{rcpt_replies}\
             250 2.0.0 1 bytes received\n{ok}{ok}{ok}{noop}"
        ),
    );
    assert_eq!(seen.messages.len(), 2);
    assert!(seen.messages.iter().all(|(envelope, _)| envelope.recipients.len() == 3));
    // A text that is refused is refused to each of them as well.
    let small = Config { limits: Limits { databytes: 3, ..Limits::default() }, ..config() };
    let large = "552 5.3.4 sorry, that message size exceeds my databytes limit\n";
    lmtp_says(
        small,
        "MAIL FROM:<>\nRCPT TO:<a@b>\nRCPT TO:<c@b>\nDATA\ntoo large\n.\nNOOP\n",
        &format!("250 2.1.0 ok\n250 2.1.5 ok\n250 2.1.5 ok\n354 go ahead\n{large}{large}{noop}"),
    );
    // Without a recipient there is no text and no list.
    lmtp_says(
        config(),
        "MAIL FROM:<>\nRCPT TO:<no@b>\nDATA\nBDAT 3 LAST\nx\nNOOP\n",
        &format!(
            "250 2.1.0 ok\n550 5.1.1 sorry, no mailbox here by that name\n503 5.5.1 RCPT first\n503 5.5.1 RCPT first\n{noop}"
        ),
    );
}

#[test]
fn lmtp_does_not_relay() {
    let nobody = "550 5.1.2 sorry, mail for that domain is not delivered here\n";
    // Neither rcpthosts nor anything else makes an exception.
    let seen = lmtp_says(
        config(),
        "MAIL FROM:<>\nRCPT TO:<fa@listed.example>\nRCPT TO:<fa@other.example>\nRCPT TO:<postmaster>\nDATA\n.\n",
        &format!("250 2.1.0 ok\n{nobody}{nobody}250 2.1.5 ok\n354 go ahead\n250 2.0.0 ok 0 qp 1\n"),
    );
    assert_eq!(seen.messages.len(), 1);
}

/// A submitter over TLS who has shown a certificate.
fn shown(relay: bool, login: bool) -> Connection {
    let line = |is_there: bool, line: &str| is_there.then(|| line.into());
    let client = ListedClient { relay: line(relay, "mx.b.example"), login: line(login, "joe@b.example") };
    let mut peer = submitter();
    peer.protect(Box::new(Tls { client: Some(Box::new(client)), ..*fuzz::tls() }));
    peer
}

#[test]
fn a_listed_certificate_relays_or_logs_in() {
    let letter = "MAIL FROM:<a@b>\nRCPT TO:<far@y.z>\nDATA\r\n.\r\n";
    let hello = format!("EHLO x\n{letter}");
    let seen = deliver(config(), shown(true, false), hello.as_bytes());
    assert!(!String::from_utf8_lossy(&seen.replies).contains("EXTERNAL"));
    assert_eq!((seen.messages.len(), seen.user), (1, None));
    // One that stands for an account has to log in as that first.
    let seen = deliver(config(), shown(false, true), hello.as_bytes());
    assert!(seen.messages.is_empty());
    assert!(String::from_utf8(seen.replies).unwrap().contains("250-AUTH EXTERNAL SCRAM-SHA-256-PLUS "));
    let login = format!("EHLO x\nAUTH EXTERNAL =\n{}\n{letter}", wire::base64::encode(b"ok"));
    let seen = deliver(config(), shown(false, true), login.as_bytes());
    assert_eq!(seen.messages.len(), 1, "{}", String::from_utf8_lossy(&seen.replies));
    assert!(seen.user.is_some());
}

#[test]
fn a_certificate_is_not_that_of_whom_xclient_tells() {
    let mail = "EHLO x\nMAIL FROM:<>\nRCPT TO:<far@y.z>\n";
    let proxy = |peer: Connection| Connection { xclient: true, is_submission: false, ..peer };
    let relays = |input: &str| {
        let text = replies(config(), proxy(shown(true, true)), format!("{input}{mail}").as_bytes());
        (text.ends_with("250 2.1.0 ok\n250 2.1.5 ok\n"), text.rsplit("220 ").next().unwrap().contains("EXTERNAL"))
    };
    assert_eq!(relays(""), (true, true));
    assert_eq!(relays("EHLO x\nXCLIENT ADDR=192.0.2.2\n"), (false, false));
    // Nor is one that is shown behind it.
    let mut out = Actions::default();
    let peer = Connection { starttls: StartTls::Offered, logins: Logins::NotInClear, xclient: true, ..Connection::default() };
    let mut session = Session::new(Arc::new(config()), peer, T0, &mut out);
    session.step(T0, Input::Bytes(b"EHLO x\r\nXCLIENT ADDR=192.0.2.2\r\n"), &mut out);
    session.step(T0, Input::Admitted { relays: false, logins: Logins::NotInClear }, &mut out);
    session.step(T0, Input::Bytes(b"EHLO x\r\nSTARTTLS\r\n"), &mut out);
    let tls = shown(true, true).tls.unwrap();
    session.step(T0, Input::Tls(TlsAnswer::Started(tls)), &mut out);
    assert!(session.peer().relay_client.is_none() && session.peer().tls.as_ref().unwrap().client.is_none());
}

#[test]
fn who_is_in_a_list_of_refusals_is_refused_by_its_words() {
    let config = || Config {
        refusals: Refusals {
            bad_senders: patterns(&["@bad.example", "!@"]),
            bad_senders_of_strangers: patterns(&["@ours.example"]),
            bad_recipients: patterns(&["gone@listed.example"]),
            bad_recipients_of_strangers: patterns(&["inner@listed.example"]),
            bad_helos: patterns(&["!\\."]),
            bad_helos_of_strangers: patterns(&["^ours\\.example$"]),
            valid_recipients: Some(wire::ValidRecipients::new(
                ["fa@listed.example", "inner@listed.example", "a%b@listed.example", "gone@listed.example", "x@virtual.example"],
                None,
            )),
            null_senders: false,
            relay_tests: true,
        },
        ..config()
    };
    let sender = "553 5.7.1 sorry, your envelope sender is in my badmailfrom list\n";
    let (helo, recipient) = (super::replies::BAD_HELO, super::replies::BAD_RCPT_TO);
    let (any_helo, any_sender) = (Terms { any_helo: true, ..Terms::default() }, Terms { any_sender: true, ..Terms::default() });
    let null_senders = Terms { null_senders: Some(true), ..Terms::default() };
    for (peer, terms, input, last) in [
        (Connection::default(), Terms::default(), "MAIL FROM:<x@BAD.example>", sender),
        (relay(), Terms::default(), "MAIL FROM:<x@bad.example>", sender),
        (Connection::default(), any_sender, "MAIL FROM:<x@bad.example>", "250 2.1.0 ok\n"),
        (Connection::default(), Terms::default(), "MAIL FROM:<x>", sender),
        (Connection::default(), Terms::default(), "MAIL FROM:<>", "250 2.1.0 ok\n"),
        (Connection::default(), null_senders, "MAIL FROM:<>", "450 4.7.1 null senders temporarily denied\n"),
        (Connection::default(), Terms::default(), "MAIL FROM:<x@ours.example>", sender),
        (relay(), Terms::default(), "MAIL FROM:<x@ours.example>", "250 2.1.0 ok\n"),
        (Connection::default(), Terms::default(), "HELO localhost\r\nMAIL FROM:<x@y>", helo),
        (relay(), Terms::default(), "HELO localhost\r\nMAIL FROM:<x@y>", helo),
        (Connection::default(), any_helo, "HELO localhost\r\nMAIL FROM:<x@y>", "250 2.1.0 ok\n"),
        (Connection::default(), Terms::default(), "HELO OURS.example\r\nMAIL FROM:<x@y>", helo),
        (relay(), Terms::default(), "HELO ours.example\r\nMAIL FROM:<x@y>", "250 2.1.0 ok\n"),
        (Connection::default(), Terms::default(), "MAIL FROM:<>\r\nRCPT TO:<Gone@listed.example>", recipient),
        (relay(), Terms::default(), "MAIL FROM:<>\r\nRCPT TO:<gone@listed.example>", recipient),
        (Connection::default(), Terms::default(), "MAIL FROM:<>\r\nRCPT TO:<inner@listed.example>", recipient),
        (relay(), Terms::default(), "MAIL FROM:<>\r\nRCPT TO:<inner@listed.example>", "250 2.1.5 ok\n"),
        (Connection::default(), Terms::default(), "MAIL FROM:<>\r\nRCPT TO:<a%b@listed.example>", super::replies::RELAY_TEST),
        (Connection::default(), Terms::default(), "MAIL FROM:<>\r\nRCPT TO:<fa@LISTED.example>", "250 2.1.5 ok\n"),
        (Connection::default(), Terms::default(), "MAIL FROM:<>\r\nRCPT TO:<fax@listed.example>", super::replies::NOT_VALID),
        (Connection::default(), Terms::default(), "MAIL FROM:<>\r\nRCPT TO:<known@virtual.example>", super::replies::NOT_VALID),
        (Connection::default(), Terms::default(), "MAIL FROM:<>\r\nRCPT TO:<x@virtual.example>", "250 2.1.5 ok\n"),
        (Connection::default(), Terms::default(), "MAIL FROM:<>\r\nRCPT TO:<far@else.example>", super::replies::NO_RELAY),
        (Connection::default(), Terms::default(), "MAIL FROM:<>\r\nRCPT TO:<postmaster>", "250 2.1.5 ok\n"),
        (relay(), Terms::default(), "MAIL FROM:<>\r\nRCPT TO:<fax@listed.example>", "250 2.1.5 ok\n"),
    ] {
        let said = self::replies(config(), Connection { terms, ..peer }, format!("{input}\r\n").as_bytes());
        assert!(said.trim_end().ends_with(last.trim_end()), "{input}: {said}");
    }
}
