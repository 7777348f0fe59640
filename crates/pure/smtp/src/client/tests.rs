use wire::Address;

use super::*;

mod lmtp;
mod security;

const EHLO: &str = "250-mx.example\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250 PIPELINING\r\n";

fn transaction(recipients: usize) -> Transaction {
    Transaction {
        sender: Address::new(b"s@a.example").unwrap(),
        recipients: (1..=recipients).map(|n| Address::new(format!("r{n}@b.example").as_bytes()).unwrap()).collect(),
        size: 100,
        eight_bit: false,
        smtputf8: false,
        xverp: None,
        requiretls: false,
        by: None,
        priority: None,
        dsn: None,
    }
}

fn ready(ehlo: &str) -> Client {
    let (mut client, start) = Client::new("me.example", "192.0.2.1", Security::default());
    assert_eq!(start, [Action::Deadline(Stage::Greeting)]);
    let actions = client.handle(Input::Bytes(b"220 hi\r\n"));
    assert_eq!(actions, [Action::Send(b"EHLO me.example\r\n".to_vec()), Action::Deadline(Stage::Command)]);
    assert_eq!(client.handle(Input::Bytes(ehlo.as_bytes())), [Action::Ready]);
    client
}

/// Everything that is sent, and the end of the transaction if it came.
fn run(client: &mut Client, inputs: Vec<Input<'_>>) -> (String, Vec<Finished>, bool) {
    let (mut sent, mut finished, mut closed) = (String::new(), Vec::new(), false);
    for input in inputs {
        for action in client.handle(input) {
            assert!(!closed, "nothing after Close");
            match action {
                Action::Send(bytes) => sent.push_str(&String::from_utf8(bytes).unwrap()),
                Action::SendBody => sent.push_str("(body)"),
                Action::Finished(end) => finished.push(end),
                Action::Close => closed = true,
                Action::Deadline(_) | Action::Ready | Action::Unusable(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    (sent, finished, closed)
}

fn texts(finished: &[Finished]) -> Vec<String> {
    let all = finished.iter().flat_map(|end| &end.outcomes);
    all.map(|outcome| {
        if *outcome == Outcome::Next { "next".to_owned() } else { format!("{}{}", char::from(outcome.letter()), outcome.text()) }
    })
    .collect()
}

/// One line per case: EHLO reply, recipients, what the server says (`#` stands for the body being sent), what is sent, the
/// reports, alive at the end.
#[test]
fn dialogues() {
    const PIPE: &str = EHLO;
    const PLAIN: &str = "250 mx.example\r\n";
    let group2 = "MAIL FROM:<s@a.example> SIZE=100\r\nRCPT TO:<r1@b.example>\r\nRCPT TO:<r2@b.example>\r\nDATA\r\n";
    let group1 = "MAIL FROM:<s@a.example> SIZE=100\r\nRCPT TO:<r1@b.example>\r\nDATA\r\n";
    let body2 = &format!("{group2}(body)");
    let accepted = "K192.0.2.1 accepted message.\nRemote host said: 250 ok 7\n";
    let died = "ZConnected to 192.0.2.1 but connection died. (#4.4.2)\n";
    let no1 = "D192.0.2.1 does not like recipient.\nRemote host said: 550 no\n";
    let no1_up = &format!("{no1}Giving up on 192.0.2.1.\n");
    let later_up = "Z192.0.2.1 does not like recipient.\nRemote host said: 450 wait\nGiving up on 192.0.2.1.\n";
    for (ehlo, recipients, said, sent, reports, alive) in [
        (PIPE, 2, "250 a|250 b|250 c|354 go|#|250 ok 7", body2.as_str(), vec![accepted, accepted], true),
        (PIPE, 2, "250 a|550 no|250 c|354 go|#|250 ok 7", body2, vec![no1, accepted], true),
        (PIPE, 2, "250 a|550 no|450 wait|354 go|221 x", &format!("{group2}.\r\n"), vec![no1_up, later_up], true),
        (PIPE, 2, "250 a|550 no|450 wait|503 none", group2, vec![no1_up, later_up], true),
        (PIPE, 2, "250 a|550 no|450 wait|421 bye", group2, vec![no1_up, later_up], false),
        (PIPE, 1, "250 a|550 no|354 go|!", &format!("{group1}.\r\n"), vec![no1_up], false),
        (
            PIPE,
            1,
            "553 bad sender|503 mail|503 rcpt",
            group1,
            vec!["DConnected to 192.0.2.1 but sender was rejected.\nRemote host said: 553 bad sender\n"],
            true,
        ),
        (
            PIPE,
            1,
            "451 greylisted|250 odd|354 odder|250 for nobody",
            &format!("{group1}.\r\n"),
            vec!["ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: 451 greylisted\n"],
            true,
        ),
        (PIPE, 2, "250 a|250 b|452 too many|354 go|#|250 ok 7", body2, vec![accepted, "next"], true),
        (PIPE, 2, "250 a|250 b|452 4.5.3 many|354 go|#|250 ok 7", body2, vec![accepted, "next"], true),
        (PIPE, 2, "250 a|250 b|552 too many|354 go|#|250 ok 7", body2, vec![accepted, "next"], true),
        (
            PIPE,
            2,
            "250 a|250 b|452 4.2.2 full|354 go|#|250 ok 7",
            body2,
            vec![accepted, "Z192.0.2.1 does not like recipient.\nRemote host said: 452 4.2.2 full\n"],
            true,
        ),
        (
            PIPE,
            1,
            "250 a|452 4.3.1 disk|503 none",
            group1,
            vec!["Z192.0.2.1 does not like recipient.\nRemote host said: 452 4.3.1 disk\nGiving up on 192.0.2.1.\n"],
            true,
        ),
        (
            PIPE,
            2,
            "250 a|250 b|421 bye",
            group2,
            vec![
                "ZConnected to 192.0.2.1 but connection died.\nRemote host said: 421 bye\n",
                "Z192.0.2.1 does not like recipient.\nRemote host said: 421 bye\n",
            ],
            false,
        ),
        (
            PIPE,
            1,
            "250 a|250 b|554 no data",
            group1,
            vec!["D192.0.2.1 failed on DATA command.\nRemote host said: 554 no data\n"],
            true,
        ),
        (PIPE, 1, "250 a|250 b|250 what", group1, vec!["Z192.0.2.1 failed on DATA command.\nRemote host said: 250 what\n"], true),
        (
            PIPE,
            1,
            "250 a|250 b|354 go|#|554 spam",
            &format!("{group1}(body)"),
            vec!["D192.0.2.1 failed after I sent the message.\nRemote host said: 554 spam\n"],
            true,
        ),
        (
            PIPE,
            1,
            "250 a|250 b|354 go|#|354 again",
            &format!("{group1}(body)"),
            vec!["Z192.0.2.1 failed after I sent the message.\nRemote host said: 354 again\n"],
            true,
        ),
        (
            PIPE,
            1,
            "250 a|250 b|354 go|552 too big",
            &format!("{group1}(body)"),
            vec!["D192.0.2.1 failed after I sent the message.\nRemote host said: 552 too big\n"],
            false,
        ),
        (PIPE, 1, "250 a|250 b|354 go|250 early", &format!("{group1}(body)"), vec![died], false),
        (PIPE, 2, "250 a|550 no|!", group2, vec![no1, died], false),
        (PIPE, 1, "250 a|250 b|354 go|!", &format!("{group1}(body)"), vec![died], false),
        (
            PIPE,
            1,
            "250 a|250 b|354 go|#|!",
            &format!("{group1}(body)"),
            vec!["ZConnected to 192.0.2.1 but connection died. Possible duplicate! (#4.4.2)\n"],
            false,
        ),
        (PIPE, 1, "250 a|garbage", group1, vec![died], false),
        (PLAIN, 1, "250 a|250 b|354 go|#|250 ok 7", &format!("{}(body)", group1.replace(" SIZE=100", "")), vec![accepted], true),
        (
            PLAIN,
            2,
            "550 s",
            "MAIL FROM:<s@a.example>\r\n",
            vec!["DConnected to 192.0.2.1 but sender was rejected.\nRemote host said: 550 s\n"; 2],
            true,
        ),
        (PLAIN, 1, "250 a|550 no", "MAIL FROM:<s@a.example>\r\nRCPT TO:<r1@b.example>\r\n", vec![no1_up], true),
    ] {
        let mut client = ready(ehlo);
        let lines: Vec<String> = said.split('|').map(|line| format!("{line}\r\n")).collect();
        let mut inputs = vec![Input::Begin(transaction(recipients))];
        inputs.extend(lines.iter().map(|line| match line.as_str() {
            "#\r\n" => Input::BodySent,
            "!\r\n" => Input::Closed,
            line => Input::Bytes(line.as_bytes()),
        }));
        let (out, finished, closed) = run(&mut client, inputs);
        assert_eq!(out, sent, "{said}");
        assert_eq!(texts(&finished), reports, "{said}");
        assert_eq!((client.is_ready(), closed), (alive, !alive), "{said}");
        assert_eq!(finished.len(), 1);
        assert!(!finished[0].untouched);
        if alive {
            // The next transaction starts clean: RSET only where an envelope may be left over.
            let next = run(&mut client, vec![Input::Begin(transaction(1))]).0;
            let rset = !said.contains('#');
            assert_eq!(next.starts_with("RSET\r\n"), rset, "{said}");
        }
    }
}

#[test]
fn replies_in_one_chunk_or_byte_by_byte_are_the_same() {
    let replies = b"250 a\r\n550-no\r\n550 no\r\n250 c\r\n354 go\r\n";
    let mut results = Vec::new();
    for size in [1, 2, 7, replies.len()] {
        let mut client = ready(EHLO);
        let mut inputs = vec![Input::Begin(transaction(2))];
        inputs.extend(replies.chunks(size).map(Input::Bytes));
        inputs.extend([Input::BodySent, Input::Bytes(b"250 ok\r\n")]);
        results.push(run(&mut client, inputs));
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(texts(&results[0].1)[0], "D192.0.2.1 does not like recipient.\nRemote host said: 550-no\n550 no\n");
}

#[test]
fn a_session_that_breaks_before_mail_is_answered_is_untouched() {
    for last in [Input::Closed, Input::Timeout, Input::Bytes(b"421 bye\r\n"), Input::Bytes(b"?\r\n")] {
        let mut client = ready(EHLO);
        let (_, finished, closed) = run(&mut client, vec![Input::Begin(transaction(2)), last]);
        assert!(closed && finished[0].untouched);
        assert!(finished[0].outcomes.iter().all(|outcome| outcome.letter() == b'Z'));
    }
    // A reused session whose RSET fails.
    let mut client = ready(EHLO);
    run(&mut client, vec![Input::Begin(transaction(1)), Input::Bytes(b"550 a\r\n503 b\r\n503 c\r\n")]);
    let (sent, finished, closed) = run(&mut client, vec![Input::Begin(transaction(1)), Input::Bytes(b"421 bye\r\n")]);
    assert!(sent.starts_with("RSET\r\nMAIL ") && closed && finished[0].untouched);
}

#[test]
fn greetings_and_hellos() {
    let unusable = |what: &str| vec![Action::Unusable(what.to_owned()), Action::Send(b"QUIT\r\n".to_vec()), Action::Close];
    for (greeting, text) in [
        ("554 go away", "Connected to 192.0.2.1 but greeting failed.\nRemote host said: 554 go away\n"),
        ("421 later", "Connected to 192.0.2.1 but greeting failed.\nRemote host said: 421 later\n"),
        ("250 wrong", "Connected to 192.0.2.1 but greeting failed.\nRemote host said: 250 wrong\n"),
    ] {
        let mut client = Client::new("me.example", "192.0.2.1", Security::default()).0;
        assert_eq!(client.handle(Input::Bytes(format!("{greeting}\r\n").as_bytes())), unusable(text));
    }
    for input in [Input::Closed, Input::Timeout, Input::Bytes(b"SSH-2.0\r\n")] {
        let mut client = Client::new("me.example", "192.0.2.1", Security::default()).0;
        let text = "Connected to 192.0.2.1 but connection died. (#4.4.2)\n".to_owned();
        assert_eq!(client.handle(input), [Action::Unusable(text), Action::Close]);
    }
    let mut client = Client::new("me.example", "192.0.2.1", Security::default()).0;
    client.handle(Input::Bytes(b"220 old\r\n"));
    let actions = client.handle(Input::Bytes(b"502 what\r\n"));
    assert_eq!(actions[0], Action::Send(b"HELO me.example\r\n".to_vec()));
    assert_eq!(client.handle(Input::Bytes(b"250-old\r\n250 PIPELINING\r\n")), [Action::Ready]);
    assert_eq!(client.offers(), &Offers::default());
    let mut client = Client::new("me.example", "192.0.2.1", Security::default()).0;
    client.handle(Input::Bytes(b"220 old\r\n"));
    client.handle(Input::Bytes(b"502 what\r\n"));
    let text = "Connected to 192.0.2.1 but my name was rejected.\nRemote host said: 550 no\n";
    assert_eq!(client.handle(Input::Bytes(b"550 no\r\n")), unusable(text));
}

#[test]
fn answers_before_the_question_end_the_session() {
    // The EHLO reply came with the greeting: whoever sent it did not wait for us.
    for early in ["220 hi\r\n250 x\r\n", "220 hi\r\n25"] {
        let mut client = Client::new("me.example", "192.0.2.1", Security::default()).0;
        let actions = client.handle(Input::Bytes(early.as_bytes()));
        assert_eq!(actions.last(), Some(&Action::Close));
        assert!(!client.is_ready());
    }
    let mut client = ready(EHLO);
    assert_eq!(client.handle(Input::Bytes(b"421 idle too long\r\n")), [Action::Close]);
    // One answer too many behind the final one takes nothing back.
    let mut client = ready(EHLO);
    let inputs = vec![
        Input::Begin(transaction(1)),
        Input::Bytes(b"250 a\r\n250 b\r\n354 go\r\n"),
        Input::BodySent,
        Input::Bytes(b"250 ok\r\n421 bye\r\n"),
    ];
    let (_, finished, closed) = run(&mut client, inputs);
    assert_eq!(finished[0].outcomes[0].letter(), b'K');
    assert!(closed);
}

#[test]
fn what_the_server_cannot_take_is_not_sent() {
    let utf8 = Transaction { recipients: vec![Address::new("ü@b.example".as_bytes()).unwrap()], ..transaction(1) };
    let sender = Transaction { sender: Address::new(b"s@a b").unwrap(), ..transaction(1) };
    for (transaction, text) in [
        (Transaction { size: 1001, ..transaction(1) }, "D192.0.2.1 does not accept messages of this size. (#5.3.4)\n"),
        (utf8.clone(), "D192.0.2.1 does not accept internationalized addresses. (#5.6.7)\n"),
        (Transaction { smtputf8: true, ..transaction(1) }, "D192.0.2.1 does not accept internationalized addresses. (#5.6.7)\n"),
        (sender, "DSorry, the sender address has a malformed domain. (#5.1.7)\n"),
    ] {
        let mut client = ready(EHLO);
        let (sent, finished, closed) = run(&mut client, vec![Input::Begin(transaction)]);
        assert_eq!((sent.as_str(), texts(&finished), closed), ("", vec![text.to_owned()], false));
        assert!(client.is_ready());
    }
    let mut client = ready("250-mx\r\n250-SIZE 0\r\n250 SMTPUTF8\r\n");
    let (sent, ..) = run(&mut client, vec![Input::Begin(Transaction { size: 1 << 40, ..utf8 })]);
    assert_eq!(sent, "MAIL FROM:<s@a.example> SIZE=1099511627776 SMTPUTF8\r\n");
}

#[test]
fn limits_of_the_server_are_kept() {
    let mut client = ready("250-mx\r\n250-PIPELINING\r\n250 LIMITS RCPTMAX=2 MAILMAX=2\r\n");
    for (begun, reusable) in [(1, true), (2, false)] {
        let inputs = vec![
            Input::Begin(transaction(3)),
            Input::Bytes(b"250 a\r\n250 b\r\n250 c\r\n354 go\r\n"),
            Input::BodySent,
            Input::Bytes(b"250 ok\r\n"),
        ];
        let (sent, finished, _) = run(&mut client, inputs);
        assert_eq!(sent.matches("RCPT").count(), 2);
        assert_eq!(finished[0].outcomes[2], Outcome::Next);
        assert_eq!((client.is_ready(), client.is_reusable()), (true, reusable), "{begun}");
    }
}

#[test]
fn an_unreadable_body_is_never_ended_by_a_dot() {
    let mut client = ready(EHLO);
    let inputs = vec![Input::Begin(transaction(1)), Input::Bytes(b"250 a\r\n250 b\r\n354 go\r\n"), Input::BodyUnreadable];
    let (sent, finished, closed) = run(&mut client, inputs);
    assert!(sent.ends_with("DATA\r\n(body)") && closed);
    assert_eq!(texts(&finished), ["ZUnable to read message. (#4.3.0)\n"]);
}

#[test]
fn quit_waits_a_moment_and_long_texts_are_cut() {
    let mut client = ready(EHLO);
    assert_eq!(client.handle(Input::Quit), [Action::Send(b"QUIT\r\n".to_vec()), Action::Deadline(Stage::Quit)]);
    assert_eq!(client.handle(Input::Bytes(b"221 bye\r\n")), [Action::Close]);
    let mut client = ready(EHLO);
    let long = format!("550-{}\r\n", "x".repeat(1000)).repeat(9) + "550 end\r\n";
    let said = format!("250 a\r\n{long}503 none\r\n");
    let (_, finished, _) = run(&mut client, vec![Input::Begin(transaction(1)), Input::Bytes(said.as_bytes())]);
    let text = finished[0].outcomes[0].text();
    assert!(text.ends_with("x\nGiving up on 192.0.2.1.\n") && (5001..=REPORT_LEN_MAX).contains(&text.len()));
}

/// It has the message, however much it says about it.
#[test]
fn a_talkative_server_has_taken_the_message() {
    let many = "250-w\r\n".repeat(100) + "250 z\r\n";
    for said in [many, format!("250 {}\r\n", "x".repeat(100_000)), format!("250-{}\r\n250 z\r\n", "é".repeat(3000))] {
        for cut in [1, said.len() / 2, said.len() - 1] {
            let (head, tail) = said.as_bytes().split_at(cut);
            let mut client = ready(EHLO);
            let inputs = vec![
                Input::Begin(transaction(1)),
                Input::Bytes(b"250 a\r\n250 b\r\n354 go\r\n"),
                Input::BodySent,
                Input::Bytes(head),
                Input::Bytes(tail),
            ];
            let (_, finished, closed) = run(&mut client, inputs);
            let outcome = &finished[0].outcomes[0];
            assert!(!closed && outcome.letter() == b'K' && outcome.text().len() <= REPORT_LEN_MAX, "{}", outcome.text());
            assert!(outcome.text().starts_with("192.0.2.1 accepted message.\nRemote host said: 250") && client.is_ready());
        }
    }
}

/// Every state against every input: the machine answers, ends each transaction once, and stays at its end.
#[test]
fn every_state_and_every_input() {
    let reach: [&[&[u8]]; 8] = [
        &[],
        &[b"220 a\r\n"],
        &[b"220 a\r\n", b"500 a\r\n"],
        &[b"220 a\r\n", EHLO.as_bytes()],
        &[b"220 a\r\n", EHLO.as_bytes(), b"\xf8"],
        &[b"220 a\r\n", EHLO.as_bytes(), b"\xf8", b"250 a\r\n250 b\r\n250 c\r\n354 d\r\n"],
        &[b"220 a\r\n", EHLO.as_bytes(), b"\xf8", b"250 a\r\n250 b\r\n250 c\r\n354 d\r\n", b"\xf8"],
        &[b"220 a\r\n", EHLO.as_bytes(), b"\xf8", b"250 a\r\n550 b\r\n550 c\r\n354 d\r\n"],
    ];
    let events: [&[u8]; 14] = [
        b"\xf8",
        b"\xf9",
        b"\xfa",
        b"\xfb",
        b"\xfc",
        b"\xfd",
        b"\xff",
        b"220 x\r\n",
        b"250 x\r\n",
        b"354 x\r\n",
        b"421 x\r\n",
        b"450 x\r\n",
        b"550 x\r\n",
        b"?\r\n",
    ];
    for path in reach {
        for first in events {
            for second in events {
                fuzz::client(&[path.concat(), first.to_vec(), second.to_vec()].concat());
            }
        }
    }
}

#[test]
fn any_bytes() {
    proptest::proptest!(|(data in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400))| {
        fuzz::encode(&data);
        fuzz::reply(&data);
        fuzz::client(&data);
    });
    let words = proptest::sample::select(vec![
        &b"250 ok\r\n"[..],
        b"250-PIPELINING\r\n",
        b"354 go\r\n",
        b"220 hi\r\n",
        b"421 x\r\n",
        b"550 5.1.1\r\n",
        b"452 y\r\n",
        b"\xf8",
        b"\xf8",
        b"\xf9",
        b"\xfa",
        b"250 STARTTLS\r\n",
        b"250-AUTH PLAIN LOGIN CRAM-MD5\r\n",
        b"334 PDE+\r\n",
        b"235 ok\r\n",
        b"\xfb",
        b"\xfc",
        b"\xfd",
        b"\r",
        b"250-LIMITS RCPTMAX=1\r\n",
        b"250 SMTPUTF8\r\n",
    ]);
    proptest::proptest!(|(script in proptest::collection::vec(words, 0..30))| {
        fuzz::client(&[b"220 hi\r\n", &script.concat()[..]].concat());
        fuzz::reply(&script.concat());
    });
}
