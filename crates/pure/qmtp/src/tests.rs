//! The servers' machines: every answer, every cut, and what is not let through.

use std::sync::Arc;

use smtp::data::BareLf;
use smtp::server::{Now, QUESTIONS_MAX, RcptHosts, Refusals, Terms};
use wire::netstring::encode;

use crate::exchange::{Action, Config, End, Input, NEEDS_PROGRAM, Peer, QueueAnswer};
use crate::fuzz::{Seen, config, drive};
use crate::{qmqp, server};

const NOW: Now = Now { unix_s: 7, boot: std::time::Duration::ZERO };
const OK: &str = "Kok 7 qp 9";
const NO_RELAY: &str = "Dsorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)";
const CANNOT: &str = "Dsorry, I can't handle that recipient (#5.1.3)";

fn netstring(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(bytes, &mut out);
    out
}

fn list(recipients: &[&[u8]]) -> Vec<u8> {
    recipients.iter().flat_map(|recipient| netstring(recipient)).collect()
}

fn message(text: &[u8], sender: &[u8], recipients: &[&[u8]]) -> Vec<u8> {
    [netstring(text), netstring(sender), netstring(&list(recipients))].concat()
}

fn qmtp(config: Arc<Config>, peer: Peer, wire: &[u8]) -> Seen {
    let run = |chunks: &[&[u8]]| drive(&mut server::Session::new(Arc::clone(&config), peer.clone(), NOW), chunks);
    let seen = run(&[wire]);
    for cut in 0..wire.len().min(300) {
        assert_eq!(run(&[&wire[..cut], &wire[cut..]]), seen, "cut at {cut}");
    }
    assert_eq!(run(&wire.chunks(1).collect::<Vec<_>>()), seen);
    seen
}

fn answers(seen: &Seen) -> Vec<String> {
    let (mut rest, mut out) = (&seen.answers[..], Vec::new());
    while !rest.is_empty() {
        let (answer, behind) = wire::netstring::decode(rest, 10_000).unwrap();
        out.push(String::from_utf8(answer.to_vec()).unwrap());
        rest = behind;
    }
    out
}

#[test]
fn every_recipient_has_his_answer() {
    let long = [b'x'; 998];
    let longest = [&long[..], b"@b"].concat();
    let fits = [&long[..997], b"@b"].concat();
    let recipients: [&[u8]; 10] =
        [b"a@b", b"a@c", b"none@b", b"t@b", b"full@b", &longest, b"x\0@b", b"", b"exists@elsewhere", &fits];
    let seen = qmtp(config(BareLf::Reject), Peer::default(), &message(b"\nSubject: x\n\ntext\n", b"s@x", &recipients));
    assert_eq!(
        answers(&seen),
        [
            OK,
            NO_RELAY,
            "Dsorry, no mailbox here by that name (#5.1.1)",
            "Zcannot check that recipient now, try again later (#4.3.0)",
            "Dsorry, the mailbox is full or has no room for a message of that size (#5.2.2)",
            CANNOT,
            CANNOT,
            CANNOT,
            OK,
            "Ztoo many recipients, send the rest in another message (#4.5.3)",
        ]
    );
    assert_eq!(seen.texts, [b"Subject: x\n\ntext\n"]);
    let taken: Vec<_> = seen.envelopes[0].1.iter().map(|address| address.as_bytes().to_vec()).collect();
    assert_eq!((taken, seen.end), (vec![b"a@b".to_vec(), b"exists@elsewhere".to_vec()], Some(End::Done)));
}

#[test]
fn what_relayclient_says_is_appended_and_counts_for_the_length() {
    let peer = Peer { relay_client: Some(b"@relay".as_slice().into()), ..Peer::default() };
    let (fits, long) = ([b'x'; 993], [b'x'; 994]);
    let seen = qmtp(config(BareLf::Reject), peer, &message(b"\nx\n", b"", &[b"a@c", &fits, &long]));
    assert_eq!(answers(&seen), [OK, OK, CANNOT]);
    assert_eq!(seen.envelopes[0].1[0].as_bytes(), b"a@c@relay");
}

#[test]
fn a_message_that_nobody_gets() {
    let config = |databytes| {
        let (rcpthosts, badmailfrom) = (RcptHosts::new(["b"], None), wire::Patterns::parse(["@spam.test"]).unwrap());
        Arc::new(Config {
            me: b"me".to_vec(),
            databytes,
            recipients_max: 9,
            timeout_s: 9,
            rcpthosts,
            refusals: Refusals { bad_senders: badmailfrom, ..Refusals::default() },
            ..Config::default()
        })
    };
    let hops = [b"\n".as_slice(), &b"Received: x\n".repeat(100)].concat();
    let long = [b'x'; 1000];
    let (bare, large) = (
        "Da CR or LF that ends no line; see https://cr.yp.to/docs/smtplf.html (#5.6.11)",
        "Dsorry, that message size exceeds my databytes limit (#5.3.4)",
    );
    let sender = "Dunacceptable sender (#5.1.7)";
    for (text, from, databytes, answer) in [
        (&b"\nx\n"[..], &b"s@x"[..], 0, OK),
        (b"\n", b"s@x", 0, OK),
        (b"\r", b"s@x", 0, OK),
        (b"\nx", b"s@x", 2, OK),
        (b"\nx\n", b"s@x", 2, OK),
        (b"\rx\r\n", b"s@x", 2, OK),
        (b"\nxy\n", b"s@x", 2, large),
        (b"\rxy\r\n", b"s@x", 2, large),
        (b"\nx\ry\n", b"s@x", 0, bare),
        (b"\rx\ny\r\n", b"s@x", 0, bare),
        (b"\rx\ry\r\n", b"s@x", 0, bare),
        (b"\rx\r\n\r", b"s@x", 0, bare),
        (&hops, b"s@x", 0, "Dtoo many hops, this message is looping (#5.4.6)"),
        (b"\nx\n", b"j@spam.test", 0, "Dsorry, your envelope sender is in my badmailfrom list (#5.7.1)"),
        (b"\nx\n", b"s\0@x", 0, sender),
        (b"\nx\n", b"s\n@x", 0, sender),
        (b"\nx\n", &long, 0, sender),
        (b"\nx\n", &long[1..], 0, OK),
        (b"\nxy\n", b"s\0@x", 2, large),
    ] {
        let wire = message(text, from, &[b"a@b", b"a@c"]);
        let seen = qmtp(config(databytes), Peer::default(), &wire);
        let of_stranger = if answer == OK { NO_RELAY } else { answer };
        assert_eq!(answers(&seen), [answer, of_stranger], "{} {}", text.escape_ascii(), from.escape_ascii());
        assert_eq!(seen.texts.len(), usize::from(answer == OK));
    }
}

#[test]
fn messages_follow_each_other_unasked() {
    let one = message(b"\nfirst\n", b"s@x", &[b"a@b"]);
    let two = message(b"\rsecond\r\n", b"", &[b"n@b", b"c@b"]);
    let three = message(b"\nthird\n", b"s@x", &[b"n@b"]);
    let none = message(b"\nfourth\n", b"s@x", &[]);
    let seen = qmtp(config(BareLf::Reject), Peer::default(), &[one, two, three, none].concat());
    assert_eq!(answers(&seen).iter().map(|answer| &answer[..1]).collect::<String>(), "KDKD");
    assert_eq!(seen.texts, [&b"first\n"[..], b"second\n"]);
    assert_eq!(seen.end, Some(End::Done));
}

#[test]
fn what_is_not_qmtp_ends_the_session_with_its_code() {
    for (wire, end, code) in [
        (&b""[..], End::Done, 0),
        (b"1", End::Gone, 0),
        (b"3:\nx", End::Gone, 0),
        (b"3:\nx\n,3:s@x,6:3:a@b", End::Gone, 0),
        (b"0:,", End::Protocol, 100),
        (b"2:xy", End::Protocol, 100),
        (b"2:\nxy", End::Protocol, 100),
        (b"x", End::Protocol, 100),
        (b"EHLO x\r\n", End::Protocol, 100),
        (b":", End::Protocol, 100),
        (b"03:\nx\n,", End::Protocol, 100),
        (b"3:\nx\n,3:s@xy", End::Protocol, 100),
        (b"3:\nx\n,3:s@x,3:a@b,", End::Protocol, 100),
        (b"3:\nx\n,3:s@x,5:3:a@b,", End::Protocol, 100),
        (b"3:\nx\n,3:s@x,7:3:a@b,,", End::Protocol, 100),
        (b"3:\nx\n,3:s@x,1:0,", End::Protocol, 100),
        (b"2000000010", End::Limit, 111),
        (b"99999999999999999999999999", End::Limit, 111),
        (b"3:\nx\n,3:s@x,1048577", End::Limit, 111),
    ] {
        let seen = qmtp(config(BareLf::Reject), Peer::default(), wire);
        assert_eq!((seen.end, end.exit_code()), (Some(end), code), "{}", wire.escape_ascii());
        assert!(seen.texts.is_empty() && seen.answers.is_empty());
    }
    let many = b"1:x,".repeat(server::LIST_COUNT_MAX + 1);
    let wire = [b"3:\nx\n,0:,".as_slice(), &netstring(&many)].concat();
    let mut session = server::Session::new(config(BareLf::Reject), Peer::default(), NOW);
    assert_eq!(drive(&mut session, &[&wire]).end, Some(End::Limit));
}

/// Every string over CR, LF, a dot and a letter: nothing but whole lines goes on, and with `reject` nothing that is not whole.
#[test]
fn no_string_smuggles() {
    let mut strings = vec![Vec::new()];
    for _ in 0..6 {
        let longer = strings.iter().flat_map(|string| [b'\r', b'\n', b'.', b'a'].map(|b| [&string[..], &[b]].concat()));
        strings.extend(longer.collect::<Vec<_>>());
        strings.sort();
        strings.dedup();
    }
    assert_eq!(strings.len(), (4usize.pow(7) - 1) / 3);
    for string in strings {
        for (first, barelf) in
            [(b'\n', BareLf::Reject), (b'\r', BareLf::Reject), (b'\n', BareLf::Normalize), (b'\r', BareLf::Normalize)]
        {
            let text = [&[first][..], b"A: b", &string].concat();
            let wire = message(&text, b"s@x", &[b"a@b"]);
            let seen = drive(&mut server::Session::new(config(barelf), Peer::default(), NOW), &[&wire]);
            let pairs_gone =
                String::from_utf8(text[1..].to_vec()).unwrap().replace("\r\n", if first == b'\r' { "" } else { "\n" });
            let is_clean = !pairs_gone.contains('\r') && (first == b'\n' || !pairs_gone.contains('\n'));
            assert_eq!(seen.texts.len(), usize::from(is_clean || barelf == BareLf::Normalize), "{}", text.escape_ascii());
            for stored in seen.texts {
                let mut expected = String::from_utf8(text[1..].to_vec()).unwrap().replace("\r\n", "\n").replace('\r', "\n");
                if !expected.ends_with('\n') {
                    expected.push('\n');
                }
                assert_eq!(stored, expected.as_bytes(), "{}", text.escape_ascii());
            }
        }
    }
}

#[test]
fn a_client_that_tries_names_is_left() {
    let config = Arc::new(Config {
        recipients_max: 9,
        bad_recipients_max: 2,
        timeout_s: 9,
        rcpthosts: RcptHosts::new(["b"], None),
        ..Config::default()
    });
    let wire = message(b"\nx\n", b"", &[b"n@b"]).repeat(3);
    let seen = qmtp(Arc::clone(&config), Peer::default(), &wire);
    assert_eq!((answers(&seen).len(), seen.end), (2, Some(End::Limit)));
    // In one list, too: whoever is left hears nothing of who there is.
    let seen = qmtp(Arc::clone(&config), Peer::default(), &message(b"\nx\n", b"", &[&b"n@b"[..]; 100]));
    assert_eq!((seen.asked.len(), seen.end), (QUESTIONS_MAX + 1, Some(End::Limit)));
    let unknown = "Dsorry, no mailbox here by that name (#5.1.1)";
    let left = "Ztoo many unknown recipients (#4.7.0)";
    let said = answers(&seen);
    assert_eq!(said[..QUESTIONS_MAX + 1], [unknown; QUESTIONS_MAX + 1]);
    assert!(said.len() == 100 && said[QUESTIONS_MAX + 1..].iter().all(|answer| answer == left));
    // Those that can be told at once count, too, and a rule may say another number.
    let far = message(b"\nx\n", b"", &[b"", b"a\n@b", b"a@b"]);
    assert_eq!(answers(&qmtp(Arc::clone(&config), Peer::default(), &far))[2], left);
    let terms = Terms { bad_recipients_max: Some(0), ..Terms::default() };
    assert_eq!(answers(&qmtp(config, Peer { terms, ..Peer::default() }, &far))[2], OK);
}

/// A text that nobody gets must not be a way to find out who there is.
#[test]
fn nobody_is_asked_who_gets_what_is_refused() {
    for (text, sender, refusal) in [
        (&b"\nx\ry\n"[..], &b"s@x"[..], "Da CR or LF that ends no line; see https://cr.yp.to/docs/smtplf.html (#5.6.11)"),
        (b"\nx\n", b"s\0@x", "Dunacceptable sender (#5.1.7)"),
    ] {
        let recipients: [&[u8]; 5] = [b"a@b", b"n@b", b"exists@elsewhere", b"a@elsewhere", b""];
        let seen = qmtp(config(BareLf::Reject), Peer::default(), &message(text, sender, &recipients));
        assert_eq!(answers(&seen), [refusal, refusal, refusal, refusal, CANNOT]);
        assert!(seen.asked.is_empty() && seen.texts.is_empty());
    }
}

#[test]
fn the_lists_of_refusals_count_as_by_smtp() {
    let patterns = |line: &str| wire::Patterns::parse([line]).unwrap();
    let config = Arc::new(Config {
        me: b"me".to_vec(),
        recipients_max: 9,
        timeout_s: 9,
        rcpthosts: RcptHosts::new(["b"], None),
        refusals: Refusals {
            bad_senders: patterns("@bad"),
            bad_senders_of_strangers: patterns("@strange"),
            bad_recipients: patterns("trap@b"),
            bad_recipients_of_strangers: patterns("^inner"),
            valid_recipients: Some(wire::ValidRecipients::new(["a@b", "inner@b", "trap@b", "exists%x@b"], Vec::new())),
            null_senders: true,
            relay_tests: true,
            ..Refusals::default()
        },
        ..Config::default()
    });
    let stranger = Peer::default;
    let relay = || Peer { relay_client: Some(Box::default()), ..Peer::default() };
    let with = |terms| Peer { terms, ..Peer::default() };
    let listed = |words: &[u8]| Some(words.into());
    let bad_sender = "Dsorry, your envelope sender is in my badmailfrom list (#5.7.1)";
    let denied = "Dsorry, your envelope recipient has been denied (#5.7.1)";
    let null = "Znull senders temporarily denied (#4.7.1)";
    for (peer, sender, recipient, answer) in [
        (stranger(), "s@x", "a@b", OK),
        (stranger(), "s@bad", "a@b", bad_sender),
        (stranger(), "s@BAD.", "a@b", bad_sender),
        (relay(), "s@bad", "a@b", bad_sender),
        (with(Terms { any_sender: true, ..Terms::default() }), "s@bad", "a@b", OK),
        (stranger(), "s@strange", "a@b", bad_sender),
        (relay(), "s@strange", "a@b", OK),
        (stranger(), "", "a@b", null),
        (relay(), "", "a@b", null),
        (with(Terms { null_senders: Some(false), ..Terms::default() }), "", "a@b", OK),
        (stranger(), "s@x", "Trap@b.", denied),
        (relay(), "s@x", "trap@b", denied),
        (stranger(), "s@x", "inner@b", denied),
        (relay(), "s@x", "inner@b", OK),
        (stranger(), "s@x", "exists@b", "Dsorry, this recipient is not in my validrcptto list (#5.7.1)"),
        (relay(), "s@x", "exists@b", OK),
        (stranger(), "s@x", "exists%x@b", "Dsorry, no source routes: a local part with % ! or @ is not taken here (#5.7.1)"),
        (relay(), "s@x", "exists%x@b", OK),
        (stranger(), "s@x", "a@b.", OK),
        (stranger(), "s@x", "postmaster", OK),
        (Peer { listed: listed(b"553 5.7.1 go away"), ..stranger() }, "s@x", "postmaster", "Dgo away (#5.7.1)"),
        (Peer { listed: listed(b"451 4.7.1 later"), ..stranger() }, "s@x", "a@b", "Zlater (#4.7.1)"),
        (Peer { listed: listed(b"553 5.7.1 go away"), ..relay() }, "s@x", "a@b", OK),
        (Peer { listed: listed(b"553 5.7.1 go away"), ..relay() }, "s@x", "trap@b", denied),
        (Peer { refusal: Some(NEEDS_PROGRAM), ..relay() }, "s@x", "a@b", NEEDS_PROGRAM),
        (Peer { refusal: Some(NEEDS_PROGRAM), ..stranger() }, "s@x", "a@far", NEEDS_PROGRAM),
    ] {
        let seen = qmtp(Arc::clone(&config), peer, &message(b"\nx\n", sender.as_bytes(), &[recipient.as_bytes()]));

        assert_eq!(answers(&seen), [answer], "{sender} {recipient}");
        assert_eq!(seen.texts.len(), usize::from(answer == OK));
        let dot = seen.envelopes.iter().any(|(from, to)| from.as_bytes().ends_with(b".") || to[0].as_bytes().ends_with(b"."));
        assert!(!dot, "final dots are gone");
    }
}

#[test]
fn a_client_that_sends_too_much_is_left_behind_its_message() {
    let recipients: Vec<&[u8]> = [&b"a@b"[..], b"o@b"].into_iter().chain([&b"e@b"[..]; 60]).collect();
    let config = Arc::new(Config { recipients_max: 99, ..Config::default() });
    let peer = Peer { relay_client: Some(Box::default()), ..Peer::default() };
    let wire = message(b"\nx\n", b"s@x", &recipients).repeat(2);
    let seen = drive(&mut server::Session::new(config, peer, NOW), &[&wire]);
    let said = answers(&seen);
    assert_eq!((said[1].as_str(), said.len()), ("Zyou have exceeded your messaging limits (#4.7.0)", 62));
    assert!(said[61].starts_with("Z") && seen.asked.len() <= QUESTIONS_MAX + 2, "{} {}", said[61], seen.asked.len());
    assert_eq!(seen.end, Some(End::Limit));
}

#[test]
fn a_message_has_an_hour_and_silence_its_own_time() {
    let at = |s| Now { unix_s: 7, boot: std::time::Duration::from_secs(s) };
    let mut session = server::Session::new(config(BareLf::Reject), Peer::default(), at(100));
    assert_eq!(session.connection().deadline().as_secs(), 1300);
    let mut out = Vec::new();
    session.step(at(200), Input::Bytes(b"9"), &mut out);
    assert_eq!(session.connection().deadline().as_secs(), 1400);
    session.step(at(3700), Input::Bytes(b":"), &mut out);
    assert_eq!(session.connection().deadline().as_secs(), 3800, "an hour from its first byte");
    session.step(at(3800), Input::Deadline, &mut out);
    assert_eq!((session.connection().end(), out.as_slice()), (Some(End::Timeout), &[Action::Close][..]));
}

#[test]
fn a_system_that_goes_down_finishes_the_message() {
    let mut session = server::Session::new(config(BareLf::Reject), Peer::default(), NOW);
    let mut out = Vec::new();
    session.step(NOW, Input::Bytes(b"3:\nx\n,0:,10:10:postmaster,"), &mut out);
    assert!(session.connection().end().is_some(), "that was no list");
    let mut session = server::Session::new(config(BareLf::Reject), Peer::default(), NOW);
    out.clear();
    session.step(NOW, Input::Bytes(b"3:\nx\n,0:,14:10:postmaster,"), &mut out);
    session.step(NOW, Input::Drain, &mut out);
    session.step(NOW, Input::Bytes(b",3:\ny\n,"), &mut out);
    assert!(out.iter().any(|action| matches!(action, Action::Commit(_))) && session.connection().end().is_none());
    session.step(NOW, Input::Queue(QueueAnswer::Refused(b"Zqq\x1b problem (#4.3.0)".to_vec())), &mut out);
    assert!(
        out.contains(&Action::Answer(b"21:Zqq? problem (#4.3.0),".to_vec())) && session.connection().end() == Some(End::Drained),
        "{out:?}"
    );
    let mut idle = server::Session::new(config(BareLf::Reject), Peer::default(), NOW);
    idle.step(NOW, Input::Drain, &mut out);
    assert_eq!(idle.connection().end(), Some(End::Drained));
}

fn by_qmqp(wire: &[u8]) -> Seen {
    let run = |chunks: &[&[u8]]| drive(&mut qmqp::Session::new(config(BareLf::Reject), Peer::default(), NOW), chunks);
    let seen = run(&[wire]);
    for cut in 0..wire.len().min(300) {
        assert_eq!(run(&[&wire[..cut], &wire[cut..]]), seen, "cut at {cut}");
    }
    seen
}

#[test]
fn qmqp_takes_all_or_nothing_as_it_is() {
    let whole = |text: &[u8], sender: &[u8], recipients: &[&[u8]]| {
        netstring(&[netstring(text), netstring(sender), list(recipients)].concat())
    };
    let seen = by_qmqp(&whole(b"a\rb\r\n.\r\nno end", b"s@x", &[b"a@anywhere", b"", b"c"]));
    assert_eq!((answers(&seen), seen.end), (vec![OK.to_owned()], Some(End::Done)));
    assert_eq!(seen.texts, [b"a\rb\r\n.\r\nno end"]);
    assert_eq!((seen.envelopes[0].0.as_bytes(), seen.envelopes[0].1.len()), (&b"s@x"[..], 3));
    assert_eq!(answers(&by_qmqp(&whole(b"", b"", &[]))), [OK], "nobody at all is no error, as ever");
    let (fits, long) = ([b'x'; 999], [b'x'; 1000]);
    assert_eq!(answers(&by_qmqp(&whole(b"x", &fits, &[&fits]))), [OK]);
    for (sender, recipients) in [
        (&b"s"[..], &[&b"a"[..], &long, b"c"][..]),
        (&long, &[b"a"]),
        (b"s\0", &[b"a"]),
        (b"s", &[b"a\0", b"b"]),
        (b"s", &[b"a\n"]),
    ] {
        let seen = by_qmqp(&whole(b"x", sender, recipients));
        assert_eq!(
            (answers(&seen), seen.texts.len()),
            (vec!["Dsorry, I can't accept addresses like that (#5.1.3)".to_owned()], 0)
        );
    }
}

#[test]
fn what_is_not_qmqp_gets_no_answer() {
    for (wire, end) in [
        (&b""[..], End::Done),
        (b"3", End::Gone),
        (b"10:1:x,1:s,1", End::Gone),
        (b"0:,", End::Protocol),
        (b"4:1:x,,", End::Protocol),
        (b"7:1:x,1:s,", End::Protocol),
        (b"7:1:x,2:s,", End::Protocol),
        (b"9:1:x,1:s,1", End::Gone),
        (b"9:1:x,1:s,1,", End::Protocol),
        (b"10:1:x,1:s,1:,", End::Protocol),
        (b"8:1:x,1:s,;", End::Protocol),
        (b"x", End::Protocol),
        (b"8:01:x,1:", End::Protocol),
        (b"2000000010", End::Limit),
        (b"99999999:1:x,1:s,67108864:", End::Limit),
    ] {
        let seen = by_qmqp(wire);
        assert_eq!(seen.end, Some(end), "{}", wire.escape_ascii());
        assert!(seen.answers.is_empty() && seen.texts.is_empty());
    }
}

#[test]
fn fuzz_targets_hold_for_what_is_close_to_the_protocols() {
    let qmtp = message(b"\rx\r\n.\r\n", b"s@x", &[b"a@b", b"n@b"]);
    let qmqp = netstring(&[netstring(b"x\r\n"), netstring(b"s"), list(&[b"a@b"])].concat());
    let answer = b"3:Kok,4:Dno!,3:Zno,";
    for seed in [&qmtp[..], &qmqp, answer] {
        for at in 0..seed.len() {
            for byte in [b'0', b'9', b':', b',', b'\r', b'\n', 0] {
                let mut mutant = seed.to_vec();
                mutant[at] = byte;
                crate::fuzz::session(&mutant);
                crate::fuzz::qmqp(&mutant);
                crate::fuzz::client(&mutant);
                crate::fuzz::netstrings(&mutant);
            }
        }
    }
}
