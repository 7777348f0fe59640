//! What a submission hears, with the client's bytes cut at every place.

use super::super::fuzz::{Seen, run};
use super::super::{Config, Connection, Limits, Logins, SubmissionRules};
use super::*;
use std::sync::Arc;

const LOGIN: &str = "EHLO x\r\nAUTH PLAIN AGpvZQBvaw==\r\n";

fn local() -> Connection {
    Connection { logins: Logins::Offered, ..Connection::default() }
}

/// A session of `peer`, the same however it is cut; but for whether a header is judged whose text is refused already.
fn session(config: &Arc<Config>, peer: &Connection, input: &[u8]) -> Seen {
    let whole = run(config, peer, [input]);
    for cut in 0..input.len() {
        let (a, b) = input.split_at(cut);
        let seen = run(config, peer, [a, b].into_iter().filter(|piece| !piece.is_empty()));
        assert_eq!(Seen { headers: whole.headers.clone(), ..seen }, whole, "cut at {cut}");
    }
    assert_eq!(Seen { headers: whole.headers.clone(), ..run(config, peer, input.chunks(1)) }, whole);
    whole
}

/// The replies behind the login.
fn replies(seen: &Seen) -> String {
    let text = String::from_utf8(seen.replies.clone()).unwrap().replace("\r\n", "\n");
    text.split_once("235 2.7.0 welcome\n").map_or(text.clone(), |(_, behind)| behind.to_owned())
}

/// What who is logged in hears of `input`, and the messages that came of it.
fn says(input: &str) -> (String, Vec<String>) {
    let seen = session(&Arc::default(), &local(), format!("{LOGIN}{input}").as_bytes());
    let texts = seen.messages.iter().map(|(_, text)| String::from_utf8(text.clone()).unwrap()).collect();
    (replies(&seen), texts)
}

const ENVELOPE: &str = "MAIL FROM:<joe@x>\r\nRCPT TO:<y@z>\r\n";

#[test]
fn the_sender_has_to_be_the_users_own() {
    for (mail, reply) in [
        ("<joe@x>", "250 2.1.0 ok"),
        ("<>", "250 2.1.0 ok"),
        ("<no@x>", "550 5.7.1 sorry, you may not send as that address"),
        ("<te@x>", "451 4.3.0 cannot check that sender now, try again later"),
        ("<li@x>", "450 4.7.1 your account has sent too many messages within an hour, try again later"),
        ("<joe@x> XVERP", "250 2.1.0 ok"),
        ("<joe@x> XVERP=+=", "250 2.1.0 ok"),
        ("<joe@x> XVERP=/=", "501 5.5.4 that parameter makes no sense"),
        ("<no@x> XVERP", "550 5.7.1 sorry, you may not send as that address"),
    ] {
        let (replies, _) = says(&format!("MAIL FROM:{mail}\r\nNOOP\r\n"));
        assert_eq!(replies, format!("{reply}\n250 2.0.0 ok\n"), "{mail}");
    }
    let seen = run(&Arc::default(), &local(), [format!("{LOGIN}MAIL FROM:<no@x>\r\n").as_bytes()]);
    let log: Vec<String> = seen.log.into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
    assert!(
        matches!(&log[..], [line] if line.ends_with(" from=<no@x> reply=\"550 5.7.1 sorry, you may not send as that address\"")),
        "{log:?}"
    );
}

#[test]
fn who_is_not_bound_is_not_asked() {
    let free = SubmissionRules { binds_senders: false, ..SubmissionRules::default() };
    let config = Arc::new(Config { submission: free, ..Config::default() });
    let seen = session(&config, &local(), format!("{LOGIN}MAIL FROM:<no@x> XVERP=/=\r\n").as_bytes());
    assert_eq!(replies(&seen), "250 2.1.0 ok\n");
    // A network that may relay, without a login: its header is completed on submission and left alone on smtp.
    let letter = format!("{ENVELOPE}DATA\r\nX: y\r\n\r\n.\r\n").replace("joe", "no");
    for is_submission in [false, true] {
        let relay = Connection { relay_client: Some(Box::default()), is_submission, ..Connection::default() };
        let seen = session(&Arc::default(), &relay, letter.as_bytes());
        assert_eq!((seen.messages.len(), seen.headers.len()), (1, usize::from(is_submission)));
    }
}

#[test]
fn the_header_is_judged_before_any_text_goes_on() {
    let big = "x".repeat(70) + "\r\n";
    for (text, judged) in [
        ("", "Judged: yes\n"),
        ("\r\n", "Judged: yes\n\n"),
        ("\r\nbody\r\n", "Judged: yes\n\nbody\n"),
        ("A: b\r\n", "Judged: yes\nA: b\n"),
        ("A: b\r\n\r\n", "Judged: yes\nA: b\n\n"),
        ("A: b\r\n c\r\n\r\n\r\nbody\r\n..\r\n\r\n", "Judged: yes\nA: b\n c\n\n\nbody\n.\n\n"),
    ] {
        let (heard, texts) = says(&format!("{ENVELOPE}DATA\r\n{text}.\r\nNOOP\r\n"));
        assert!(heard.ends_with("354 go ahead\n250 2.0.0 ok 0 qp 1\n250 2.0.0 ok\n"), "{heard}");
        assert_eq!(texts, [judged], "{text}");
        let unstuffed = text.replace("..", ".");
        let (first, last) = unstuffed.split_at(unstuffed.len() / 2);
        let chunks = format!("BDAT {}\r\n{first}BDAT {} LAST\r\n{last}", first.len(), last.len());
        let (heard, texts) = says(&format!("{ENVELOPE}{chunks}NOOP\r\n"));
        assert!(heard.ends_with("bytes received\n250 2.0.0 ok 0 qp 1\n250 2.0.0 ok\n"), "{heard}");
        assert_eq!(texts, [judged], "{text}");
    }
    let (_, texts) = says(&format!("{ENVELOPE}DATA\r\nA: b\r\n\r\n{}.\r\n", big.repeat(3)));
    assert_eq!(texts, [format!("Judged: yes\nA: b\n\n{}", big.replace('\r', "").repeat(3))]);
}

#[test]
fn a_header_that_is_refused_is_no_message_and_its_text_no_commands() {
    let who = "550 5.7.1 sorry, it is not clear who wrote this: one From field with plain addresses of yours, please, and no line that is no field";
    for (mark, reply) in [
        ('!', who),
        ('#', "550 5.7.1 sorry, you may not send as an address that From or Sender names"),
        ('$', "451 4.3.0 cannot check that header now, try again later"),
        ('%', "450 4.7.1 your account has sent to too many recipients within a day, try again later"),
    ] {
        let (heard, texts) = says(&format!("{ENVELOPE}DATA\r\n{mark}: b\r\n\r\nQUIT\r\n.\r\nNOOP\r\n"));
        assert!(heard.ends_with(&format!("354 go ahead\n{reply}\n250 2.0.0 ok\n")) && texts.is_empty(), "{heard}");
        // By BDAT each chunk hears it, from the one on that ends the header.
        let chunks = format!("BDAT 6\r\n{mark}: b\r\nBDAT 4\r\n\r\nx\nBDAT 6 LAST\r\nQUIT\r\n").replace("x\n", "xx");
        let (heard, texts) = says(&format!("{ENVELOPE}{chunks}NOOP\r\n"));
        let wanted = format!("250 2.0.0 6 bytes received\n{reply}\n{reply}\n250 2.0.0 ok\n");
        assert!(heard.ends_with(&wanted) && texts.is_empty(), "{heard}");
    }
    // What is wrong with the text itself is said first, wherever it stands.
    let (heard, texts) = says(&format!("{ENVELOPE}DATA\r\n!: b\r\n\r\nx\ny\r\n.\r\n"));
    assert!(heard.contains("\n550 5.6.11 ") && !heard.contains("5.7.1") && texts.is_empty(), "{heard}");
}

#[test]
fn a_header_has_a_bound() {
    let config = Arc::new(Config { limits: Limits { text_line_len_max: 1 << 20, ..Limits::default() }, ..Config::default() });
    for (len, ends, fits) in [
        (HEADER_LEN_MAX - 3, true, true),
        (HEADER_LEN_MAX - 2, true, false),
        (HEADER_LEN_MAX - 3, false, true),
        (HEADER_LEN_MAX - 2, false, false),
        (2 * HEADER_LEN_MAX, true, false),
    ] {
        let end = if ends { "\r\nbody\r\n" } else { "" };
        let input = format!("{LOGIN}{ENVELOPE}DATA\r\nA:{}\r\n{end}.\r\nNOOP\r\n", "x".repeat(len));
        let wanted = if fits { "250 2.0.0 ok 0 qp 1" } else { "552 5.3.4 sorry, the header of this message is too large" };
        let whole = run(&config, &local(), input.as_bytes().chunks(32 * 1024));
        for chunk in [1, 7, 4096] {
            assert_eq!(run(&config, &local(), input.as_bytes().chunks(chunk)), whole);
        }
        assert!(replies(&whole).ends_with(&format!("\n{wanted}\n250 2.0.0 ok\n")), "{len}");
        assert_eq!((whole.headers.len(), whole.messages.len()), (usize::from(fits), usize::from(fits)));
    }
}

#[test]
fn where_the_client_is_can_be_hidden() {
    use super::super::{Input, LoginAnswer, Now, RecipientAnswer};
    let now = Now { unix_s: 0, boot: std::time::Duration::ZERO };
    for hides_client in [false, true] {
        let rules = SubmissionRules { hides_client, ..SubmissionRules::default() };
        let config = Arc::new(Config { submission: rules, me: b"mx".to_vec(), ..Config::default() });
        let peer = Connection { remote_ip: b"192.0.2.1".as_slice().into(), ..local() };
        let mut out = Actions::default();
        let mut session = Session::new(config, peer, now, &mut out);
        session.step(now, Input::Bytes(format!("{LOGIN}{ENVELOPE}DATA\r\n").as_bytes()), &mut out);
        session.step(now, Input::Login(LoginAnswer::Accepted { user: b"joe".as_slice().into() }), &mut out);
        session.step(now, Input::Sender(SenderAnswer::Yes), &mut out);
        session.step(now, Input::Recipient { question: 1, answer: RecipientAnswer::Exists }, &mut out);
        let body = out.0.iter().find_map(|action| if let Action::Body(body) = action { Some(body.clone()) } else { None });
        let from = if hides_client { "unknown (hidden)" } else { "unknown (HELO x) (192.0.2.1)" };
        let wanted = format!("Received: from {from}\n  by mx with ESMTPA; 1 Jan 1970 00:00:00 -0000\n");
        assert_eq!(String::from_utf8(body.unwrap()).unwrap(), wanted);
    }
}

#[test]
fn who_leaves_while_the_header_is_judged_leaves_nothing() {
    use super::super::{End, Input, LoginAnswer, Now, RecipientAnswer};
    let now = Now { unix_s: 0, boot: std::time::Duration::ZERO };
    let mut out = Actions::default();
    let mut session = Session::new(Arc::default(), local(), now, &mut out);
    session.step(now, Input::Bytes(format!("{LOGIN}{ENVELOPE}DATA\r\n\r\nbody\r\n.\r\n").as_bytes()), &mut out);
    session.step(now, Input::Login(LoginAnswer::Accepted { user: b"joe".as_slice().into() }), &mut out);
    session.step(now, Input::Sender(SenderAnswer::Yes), &mut out);
    session.step(now, Input::Recipient { question: 1, answer: RecipientAnswer::Exists }, &mut out);
    assert!(matches!(out.0.last(), Some(Action::JudgeHeader { recipients: 1, .. })) && !session.wants_input());
    session.step(now, Input::Drain, &mut out);
    assert_eq!(session.end(), None, "a message is under way");
    session.step(now, Input::Closed, &mut out);
    session.step(now, Input::Header(HeaderAnswer::Accepted { header: Vec::new() }), &mut out);
    assert_eq!(session.end(), Some(End::Gone));
    assert!(out.0.ends_with(&[Action::Abandon, Action::Close]));
}
