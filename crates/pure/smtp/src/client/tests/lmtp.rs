//! LMTP (RFC 2033): what the server says, and what becomes of each recipient.

use super::*;

const LHLO: &str = "250-mx.example\r\n250-PIPELINING\r\n250 ENHANCEDSTATUSCODES\r\n";

fn open() -> Client {
    let (mut client, _) = Client::new("me.example", "/run/lmtp", Security { protocol: Protocol::Lmtp, ..Security::default() });
    let actions = client.handle(Input::Bytes(b"220 hi LMTP\r\n"));
    assert_eq!(actions, [Action::Send(b"LHLO me.example\r\n".to_vec()), Action::Deadline(Stage::Command)]);
    assert_eq!(client.handle(Input::Bytes(LHLO.as_bytes())), [Action::Ready]);
    client
}

/// `#` stands for the body being sent, `!` for the end of the connection. The outcomes by their letters, alive at the end.
#[test]
fn each_recipient_has_its_own_outcome() {
    for (said, letters, alive) in [
        ("250 a|250 1|250 2|250 3|354 go|#|250 ok|250 ok|250 ok", "KKK", true),
        ("250 a|250 1|250 2|250 3|354 go|#|250 ok|452 4.2.2 full|550 5.1.1 no", "KZD", true),
        ("250 a|250 1|550 no|250 3|354 go|#|452 later|250 ok", "ZDK", true),
        ("250 a|250 1|550 no|452 4.2.2 full|354 go|#|250 ok", "KDZ", true),
        ("250 a|550 1|550 2|550 3|503 nobody", "DDD", true),
        // 354 for nobody: no dot, no more session.
        ("250 a|550 1|550 2|550 3|354 go", "DDD", false),
        // What was answered stays answered.
        ("250 a|250 1|250 2|250 3|354 go|#|250 ok|!", "KZZ", false),
        ("250 a|250 1|250 2|250 3|354 go|#|250 ok|550 no|!", "KDZ", false),
        ("250 a|250 1|250 2|250 3|354 go|#|250 ok|421 bye", "KZZ", false),
        ("250 a|250 1|250 2|250 3|354 go|#|250 ok|250 ok|421 bye", "KKZ", false),
        ("250 a|250 1|250 2|250 3|354 go|#|!", "ZZZ", false),
        // Before the dot.
        ("250 a|250 1|250 2|250 3|354 go|552 too large", "DZZ", false),
        ("250 a|250 1|250 2|250 3|451 no", "ZZZ", true),
    ] {
        let mut client = open();
        let mut actions = client.handle(Input::Begin(transaction(3)));
        let mut inputs = said.split('|');
        let mut last = actions.clone_finished();
        for input in inputs.by_ref() {
            let line = format!("{input}\r\n");
            actions = client.handle(match input {
                "#" => Input::BodySent,
                "!" => Input::Closed,
                _ => Input::Bytes(line.as_bytes()),
            });
            last = last.or(actions.clone_finished());
        }
        let outcomes = last.unwrap_or_else(|| panic!("{said}: not finished"));
        assert_eq!(outcomes, letters, "{said}");
        assert_eq!(client.is_ready(), alive, "{said}");
    }
}

/// However much is said about one of them.
#[test]
fn long_replies_are_one_reply_each() {
    let mut client = open();
    client.handle(Input::Begin(transaction(3)));
    client.handle(Input::Bytes(b"250 a\r\n250 1\r\n250 2\r\n250 3\r\n354 go\r\n"));
    client.handle(Input::BodySent);
    let said = "250-w\r\n".repeat(1000) + "250 z\r\n452 " + &"x".repeat(100_000) + "\r\n550 no\r\n";
    let actions = client.handle(Input::Bytes(said.as_bytes()));
    assert_eq!((actions.clone_finished().as_deref(), client.is_ready()), (Some("KZD"), true));
}

trait Letters {
    fn clone_finished(&self) -> Option<String>;
}

impl Letters for Vec<Action> {
    fn clone_finished(&self) -> Option<String> {
        self.iter().find_map(|action| match action {
            Action::Finished(finished) => Some(finished.outcomes.iter().map(|outcome| char::from(outcome.letter())).collect()),
            _ => None,
        })
    }
}

/// More replies than recipients are nobody's, and a session with them is not used again.
#[test]
fn a_reply_too_many_ends_the_session() {
    let mut client = open();
    client.handle(Input::Begin(transaction(1)));
    client.handle(Input::Bytes(b"250 a\r\n250 b\r\n354 go\r\n"));
    client.handle(Input::BodySent);
    let actions = client.handle(Input::Bytes(b"250 ok\r\n250 ok\r\n"));
    assert_eq!(actions.clone_finished().as_deref(), Some("K"));
    assert!(matches!(actions.last(), Some(Action::Close)) && !client.is_ready());
}

#[test]
fn there_is_no_way_back_to_helo() {
    let (mut client, _) = Client::new("me.example", "/run/lmtp", Security { protocol: Protocol::Lmtp, ..Security::default() });
    client.handle(Input::Bytes(b"220 hi\r\n"));
    let actions = client.handle(Input::Bytes(b"500 what\r\n"));
    assert!(matches!(&actions[0], Action::Unusable(text) if text.contains("my name was rejected")), "{actions:?}");
}

/// Who delivers needs no time to be kept (RFC 2852 §4.1.3 is of relays): it is not asked for, and the message not refused.
#[test]
fn what_must_be_delivered_by_a_time_is_taken() {
    let by = wire::By::parse(b"60;R");
    let mut client = open();
    let (sent, finished, _) = run(&mut client, vec![Input::Begin(Transaction { by, ..transaction(1) })]);
    assert!(sent.starts_with("MAIL FROM:<s@a.example>\r\n") && finished.is_empty(), "{sent} {:?}", texts(&finished));
    let mut relay = ready("250-mx\r\n250 PIPELINING\r\n");
    let (sent, finished, _) = run(&mut relay, vec![Input::Begin(Transaction { by, ..transaction(1) })]);
    assert!(sent.is_empty() && texts(&finished)[0].contains("does not support DELIVERBY"), "{sent}");
}

/// The second message of a session begins as the first.
#[test]
fn a_session_is_used_again() {
    let mut client = open();
    for _ in 0..2 {
        let actions = client.handle(Input::Begin(transaction(2)));
        assert!(matches!(&actions[0], Action::Send(bytes) if bytes.starts_with(b"MAIL FROM:")), "{actions:?}");
        client.handle(Input::Bytes(b"250 a\r\n250 b\r\n250 c\r\n354 go\r\n"));
        client.handle(Input::BodySent);
        assert_eq!(client.handle(Input::Bytes(b"250 ok\r\n450 no\r\n")).clone_finished().as_deref(), Some("KZ"));
    }
}
