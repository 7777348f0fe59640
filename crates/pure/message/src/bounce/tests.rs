use super::*;
use proptest::prelude::*;

fn a(text: &str) -> Address {
    Address::new(text.as_bytes()).unwrap()
}

fn failure<'a>(recipient: &'a Address, report: &'a [u8]) -> Failure<'a> {
    Failure { action: Action::Failed, recipient, original_recipient: None, report, remote_mta: None }
}

fn original(sender: &Address) -> Original<'_> {
    Original {
        sender,
        arrival_s: 0,
        len: 100,
        header_len: 20,
        is_smtputf8: false,
        envelope_id: None,
        headers_only: false,
        retry_until_s: None,
    }
}

fn bounce(sender: &Address, len: u64, utf8: bool, max: Option<u64>, failures: &[Failure<'_>]) -> Bounce {
    let host = Domain::new(b"mx.example").unwrap();
    let from = Sender { bounce_from: b"MAILER-DAEMON", bounce_host: &host, copy_len_max: max };
    let original = Original { len, is_smtputf8: utf8, ..original(sender) };
    let decision = Decision::of(sender, Some(&a("postmaster@mx.example")));
    build(&decision, from, original, failures, 86_400, 0x0123_4567_89ab_cdef_0011_2233_4455_6677).unwrap()
}

#[test]
fn who_gets_a_bounce() {
    let postmaster = a("postmaster@x");
    for (sender, to, decision) in [
        ("a@b", Some(&postmaster), Decision::Bounce { to: a("a@b") }),
        ("a@b", None, Decision::Bounce { to: a("a@b") }),
        ("owner-@h-@[]", None, Decision::Bounce { to: a("owner-@h") }),
        ("", Some(&postmaster), Decision::DoubleBounce { to: a("postmaster@x") }),
        ("-@[]", Some(&postmaster), Decision::DoubleBounce { to: a("postmaster@x") }),
        ("", None, Decision::DiscardDouble),
        ("#@[]", Some(&postmaster), Decision::DiscardTriple),
        ("#@[]", None, Decision::DiscardTriple),
    ] {
        let got = Decision::of(&a(sender), to);
        assert_eq!(got, decision, "{sender}");
        match got.envelope() {
            Some((from, _)) if sender.is_empty() || sender == "-@[]" => assert_eq!(from, a("#@[]")),
            Some((from, _)) => assert!(from.is_null()),
            None => assert!(matches!(got, Decision::DiscardDouble | Decision::DiscardTriple)),
        }
    }
}

const SINGLE: &str = "Date: 2 Jan 1970 00:00:00 -0000
From: MAILER-DAEMON@mx.example
To: joe@a.example
Subject: failure notice
Message-ID: <19700102000000.0123456789abcdef.qmail@mx.example>
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
 boundary=\"qmail-0123456789abcdef0011223344556677\"
Content-Transfer-Encoding: 8bit

Hi. This is the qmail-send program at mx.example.
I'm afraid I wasn't able to deliver your message to the following addresses.
This is a permanent error; I've given up. Sorry it didn't work out.

<no one@b.example>:
Sorry, no mailbox here by that name. (#5.1.1)

<x@c.example>:
192.0.2.7 does not like recipient.
Remote host said: 550 5.7.1 go
/ away
Giving up on 192.0.2.7.


--qmail-0123456789abcdef0011223344556677
Content-Type: text/plain; charset=us-ascii
Content-Transfer-Encoding: 7bit

Hi. This is the qmail-send program at mx.example.
I'm afraid I wasn't able to deliver your message to the following addresses.
This is a permanent error; I've given up. Sorry it didn't work out.

<no one@b.example>:
Sorry, no mailbox here by that name. (#5.1.1)

<x@c.example>:
192.0.2.7 does not like recipient.
Remote host said: 550 5.7.1 go
/ away
Giving up on 192.0.2.7.

--- Below this line is a copy of the message.


--qmail-0123456789abcdef0011223344556677
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example
Arrival-Date: 1 Jan 1970 00:00:00 -0000

Original-Recipient: rfc822;old@b.example
Final-Recipient: rfc822; \"no one\"@b.example
Action: failed
Status: 5.1.1
Diagnostic-Code: x-qmail; Sorry, no mailbox here by that name. (#5.1.1)

Final-Recipient: rfc822; x@c.example
Action: failed
Status: 5.7.1
Remote-MTA: dns; [192.0.2.7]
Diagnostic-Code: smtp; 550 5.7.1 go
 away
 Giving up on 192.0.2.7.

--qmail-0123456789abcdef0011223344556677
Content-Type: message/rfc822
Content-Transfer-Encoding: 8bit

Return-Path: <joe@a.example>
";

#[test]
fn a_bounce_byte_for_byte() {
    let (joe, none, x) = (a("joe@a.example"), a("no one@b.example"), a("x@c.example"));
    let mut first = failure(&none, b"Sorry, no mailbox here by that name. (#5.1.1)\n");
    first.original_recipient = Some(b"rfc822;old@b.example");
    let report = b"192.0.2.7 does not like recipient.\nRemote host said: 550 5.7.1 go\r\n\n away\nGiving up on 192.0.2.7.\n";
    let got = bounce(&joe, 1000, false, None, &[first, failure(&x, report)]);
    assert_eq!(String::from_utf8(got.prologue).unwrap(), SINGLE);
    assert_eq!(got.copy_len, 1000);
    assert_eq!(got.epilogue, b"\n--qmail-0123456789abcdef0011223344556677--\n");
}

#[test]
fn empty_lines_of_a_report_become_slashes_before_the_next() {
    let recipient = a("joe@h.example");
    for (report, paragraph) in [
        ("no\n\nway\n", "no\n/way\n"),
        ("no\n\n\nway", "no\n//way\n"),
        ("\nno\n", "/no\n"),
        ("no\n\n--- Below\n", "no\n/--- Below\n"),
        ("no\n--- Below\n", "no\n --- Below\n"),
        ("no\n\n", "no\n"),
        ("", ""),
    ] {
        let got = bounce(&a("a@b"), 9, false, None, &[failure(&recipient, report.as_bytes())]);
        let text = String::from_utf8(got.prologue).unwrap();
        let wanted = format!("\n\n<joe@h.example>:\n{paragraph}\n");
        assert!(text.contains(&wanted), "{report:?}: {text}");
    }
}

#[test]
fn the_copy_begins_with_the_sender_without_the_mark_of_verp() {
    for (sender, line) in
        [("sender-@h-@[]", "sender-@h"), ("list-owner-@l.example-@[]", "list-owner-@l.example"), ("x-@[]y@h", "\"x-@[]y\"@h")]
    {
        let got = bounce(&a(sender), 5, false, None, &[failure(&a("x@y"), b"no\n")]);
        let text = String::from_utf8(got.prologue).unwrap();
        assert!(text.ends_with(&format!("\n\nReturn-Path: <{line}>\n")), "{text}");
    }
}

#[test]
fn a_double_bounce_says_so() {
    let got = bounce(&Address::null(), 5, false, None, &[failure(&a("x@y"), b"no\n")]);
    let text = String::from_utf8(got.prologue).unwrap();
    assert!(text.contains("\nTo: postmaster@mx.example\n"));
    assert!(text.contains(
        "\n\nHi. This is the qmail-send program at mx.example.\nI tried to deliver a bounce message to this address, but the \
         bounce bounced!\n\n<x@y>:\nno\n\n"
    ));
    assert!(text.contains("\n\n--- Below this line is the original bounce.\n\n"));
    assert!(text.ends_with("\n\nReturn-Path: <>\n"));
}

#[test]
fn a_long_message_comes_back_as_its_header() {
    for (len, max, copied, kind) in [
        (100, None, 100, "message/rfc822"),
        (100, Some(100), 100, "message/rfc822"),
        (101, Some(100), 20, "text/rfc822-headers"),
        (101, Some(7), 7, "text/rfc822-headers"),
    ] {
        let got = bounce(&a("a@b"), len, false, max, &[]);
        assert_eq!(got.copy_len, copied);
        assert!(got.prologue.windows(kind.len()).any(|w| w == kind.as_bytes()), "{kind}");
    }
}

#[test]
fn utf8_is_kept_where_it_may_be() {
    let user = a("jörg@bücher.example");
    let ascii = String::from_utf8(bounce(&a("a@b"), 9, false, None, &[failure(&user, "grüße (#5.1.1)".as_bytes())]).prologue);
    let ascii = ascii.unwrap();
    assert!(ascii.contains("<jörg@bücher.example>:\ngrüße (#5.1.1)\n") && ascii.contains("charset=utf-8"));
    assert!(ascii.contains("Content-Type: message/delivery-status\n"));
    assert!(ascii.contains("Final-Recipient: utf-8; j\\x{F6}rg@b\\x{FC}cher.example\n"));
    assert!(ascii.contains("Diagnostic-Code: x-qmail; gr\\x{FC}\\x{DF}e (#5.1.1)\n"));
    let global = bounce(&a("ä@b"), 9, true, None, &[failure(&user, "grüße".as_bytes())]).prologue;
    let global = String::from_utf8(global).unwrap();
    assert!(global.contains("Content-Type: message/global-delivery-status\n"));
    assert!(global.contains("Content-Type: message/global\n"));
    assert!(global.contains("Final-Recipient: utf-8; jörg@bücher.example\n"));
}

#[test]
fn many_failures_share_the_room() {
    let x = a("x@y");
    let report = [b'r'; 4096];
    let failures = vec![failure(&x, &report); 20_000];
    let got = bounce(&a("a@b"), 9, false, None, &failures);
    assert!(got.prologue.len() < 20_000 * 800, "{}", got.prologue.len());
    assert!(got.prologue.windows(4).take(600).any(|w| w == b"\n\n\n-"), "no preamble when it would be long");
}

/// The paragraphs as a QSBMF parser sees them: recipients, and where the break stands.
fn qsbmf_recipients(body: &str) -> Vec<&str> {
    assert!(body.starts_with("Hi. This is the"));
    let mut paragraphs = body.split("\n\n").map(|p| p.trim_start_matches('\n')).filter(|p| !p.is_empty()).skip(1);
    let mut out = Vec::new();
    for paragraph in paragraphs.by_ref() {
        match paragraph.as_bytes().first() {
            Some(b'<') => out.push(paragraph.lines().next().unwrap()),
            Some(b'-') => return out,
            other => panic!("a paragraph starts with {other:?}"),
        }
    }
    panic!("no break");
}

#[test]
fn a_long_address_stands_whole_where_the_line_has_room() {
    for (len, whole) in [(900, true), (950, true), (1000, false)] {
        let address = a(&format!("{}@h", "x".repeat(len - 2)));
        let got = bounce(&a("a@b"), 9, false, None, &[failure(&address, b"No. (#5.1.1)\n")]);
        let text = String::from_utf8(got.prologue).unwrap();
        assert_eq!(text.contains(&format!("\nFinal-Recipient: rfc822; {address}\n")), whole, "{len}");
        assert_eq!(text.contains(&format!("\n<{address}>:\n")), whole, "{len}");
        assert!(text.lines().all(|line| line.len() <= 998));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_report_breaks_out(reports in proptest::collection::vec(proptest::collection::vec(prop_oneof![
        Just(b'\n'), Just(b'\r'), Just(b'-'), Just(b'<'), Just(b'>'), Just(b':'), Just(b'x'), Just(b' '), any::<u8>()], 0..60), 1..5),
        local in proptest::collection::vec(any::<u8>().prop_filter("address", |b| !matches!(b, 0 | b'\r' | b'\n')), 1..20)) {
        let recipient = Address::join(&local, b"h.example").unwrap();
        let failures: Vec<_> = reports.iter().map(|r| failure(&recipient, r)).collect();
        let got = bounce(&a("a@b"), 9, false, None, &failures);
        let text = String::from_utf8(got.prologue).unwrap();
        let (head, body) = text.split_once("\n\n").unwrap();
        prop_assert_eq!(head.lines().count(), 10);
        prop_assert_eq!(qsbmf_recipients(body).len(), reports.len());
        prop_assert!(!text.contains('\r') && text.lines().all(|l| l.len() <= 998));
        let boundary = "\n--qmail-0123456789abcdef0011223344556677\n";
        let parts: Vec<_> = text.split(boundary).collect();
        prop_assert_eq!(parts.len(), 4);
        let plain = parts[1].split_once("\n\n").unwrap().1;
        prop_assert_eq!(qsbmf_recipients(plain).len(), reports.len());
        let status = parts[2].split_once("\n\n").unwrap().1;
        prop_assert_eq!(status.trim_end().split("\n\n").count(), reports.len() + 1);
        for block in status.trim_end().split("\n\n").skip(1) {
            prop_assert_eq!(block.matches("\nAction: failed\n").count(), 1);
            prop_assert!(block.is_ascii());
        }
    }
}

const DELIVERED: &str = "Date: 2 Jan 1970 00:00:00 -0000
From: MAILER-DAEMON@mx.example
To: joe@a.example
Subject: delivery report
Message-ID: <19700102000000.0123456789abcdef.qmail@mx.example>
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
 boundary=\"qmail-0123456789abcdef0011223344556677\"
Content-Transfer-Encoding: 8bit

--qmail-0123456789abcdef0011223344556677
Content-Type: text/plain; charset=us-ascii
Content-Transfer-Encoding: 7bit

Hello, this is the qmail-send program at mx.example.
You asked to be told what became of your message to the following addresses.

<x@b.example>:
It was delivered.

<list@b.example>:
It was forwarded from there; nobody reports what becomes of it.

<y@c.example>:
It was handed to a mail server that does not report what becomes of it.


--qmail-0123456789abcdef0011223344556677
Content-Type: message/delivery-status

Original-Envelope-Id: QQ 314
Reporting-MTA: dns; mx.example
Arrival-Date: 1 Jan 1970 00:00:00 -0000

Original-Recipient: rfc822;First+x@b.example
Final-Recipient: rfc822; x@b.example
Action: delivered
Status: 2.0.0

Final-Recipient: rfc822; list@b.example
Action: expanded
Status: 2.0.0

Final-Recipient: rfc822; y@c.example
Action: relayed
Status: 2.0.0

--qmail-0123456789abcdef0011223344556677
Content-Type: text/rfc822-headers
Content-Transfer-Encoding: 8bit

Return-Path: <joe@a.example>
";

fn noticed(about: Notice, original: Original<'_>, recipients: &[Failure<'_>]) -> Bounce {
    let host = Domain::new(b"mx.example").unwrap();
    let from = Sender { bounce_from: b"MAILER-DAEMON", bounce_host: &host, copy_len_max: None };
    let to = original.sender.clone();
    notice(about, &to, from, original, recipients, 86_400, 0x0123_4567_89ab_cdef_0011_2233_4455_6677)
}

#[test]
fn a_report_of_success_byte_for_byte() {
    let (joe, x, list, y) = (a("joe@a.example"), a("x@b.example"), a("list@b.example"), a("y@c.example"));
    let original = Original { envelope_id: Some(b"QQ 314"), ..original(&joe) };
    let mut recipients = [failure(&x, b"did 1+0+0\n"), failure(&list, b""), failure(&y, b"192.0.2.1 accepted message.\n")];
    recipients[0].original_recipient = Some(b"rfc822;First+x@b.example");
    for (recipient, action) in recipients.iter_mut().zip([Action::Delivered, Action::Expanded, Action::Relayed]) {
        recipient.action = action;
    }
    let got = noticed(Notice::Success, original, &recipients);
    assert_eq!(String::from_utf8(got.prologue).unwrap(), DELIVERED);
    assert_eq!((got.copy_len, got.epilogue), (20, b"\n--qmail-0123456789abcdef0011223344556677--\n".to_vec()));
}

#[test]
fn a_report_of_a_delay_says_how_long_it_is_tried() {
    let (joe, x) = (a("joe@a.example"), a("x@b.example"));
    let original = Original { retry_until_s: Some(604_800), ..original(&joe) };
    for (report, status) in [
        (&b"Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n"[..], "4.4.1"),
        (b"192.0.2.7 does not like recipient.\nRemote host said: 550 5.7.1 odd\n", "4.7.1"),
        (b"", "4.0.0"),
    ] {
        let got = noticed(Notice::Delay, original, &[Failure { action: Action::Delayed, ..failure(&x, report) }]);
        let text = String::from_utf8(got.prologue).unwrap();
        assert!(text.contains("\nSubject: delayed, still trying\n") && !text.contains("Hi. This is the"), "{text}");
        assert!(text.contains("I go on trying until 8 Jan 1970 00:00:00 -0000.\n\n<x@b.example>:\n"), "{text}");
        assert!(text.contains(&format!("\nAction: delayed\nStatus: {status}\n")), "{text}");
        assert!(text.contains("\nWill-Retry-Until: 8 Jan 1970 00:00:00 -0000\n") && got.copy_len == 20, "{text}");
    }
}

#[test]
fn who_wants_the_header_back_gets_no_more() {
    let (joe, x) = (a("joe@a.example"), a("x@b.example"));
    let host = Domain::new(b"mx.example").unwrap();
    let from = Sender { bounce_from: b"MAILER-DAEMON", bounce_host: &host, copy_len_max: None };
    let original = Original { headers_only: true, envelope_id: Some(b"id\r\nBcc: x"), ..original(&joe) };
    let got = build(&Decision::of(&joe, None), from, original, &[failure(&x, b"no\n")], 0, 7).unwrap();
    let text = String::from_utf8(got.prologue).unwrap();
    assert!(text.contains("\nContent-Type: text/rfc822-headers\n") && got.copy_len == 20);
    assert!(text.contains("\nOriginal-Envelope-Id: id??Bcc: x\n"), "{text}");
}
