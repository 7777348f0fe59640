//! Delivery status notifications (RFC 3461) through the whole system: asked for by a user who is logged in, read by Python's parser.
#![allow(clippy::unwrap_used)]

use system_tests::instance::feed;
use system_tests::line::Smtp;
use system_tests::peer::Event;
use system_tests::{Instance, Peer, tools, wait_for};

const BOB: &str = "bob@example.test";

/// Prints what a report says: its type, then one line for each block of its status part, then what comes back of the original.
const READER: &str = r#"
import email, email.policy, sys
report = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.default)
assert not report.defects, report.defects
assert report.get_content_type() == "multipart/report" and report.get_param("report-type") == "delivery-status"
text, status, original = report.iter_parts()
for part in report.walk():
    assert not part.defects, part.defects
assert text.get_content_type() == "text/plain" and status.get_content_type() == "message/delivery-status"
print("subject", report["Subject"])
for block in status.get_payload():
    assert not block.defects, block.defects
    print("block", "; ".join(f"{name}={value}" for name, value in block.items() if name not in ("Arrival-Date", "Will-Retry-Until")))
print("original", original.get_content_type(), "the text" in original.as_string())
"#;

struct Rig {
    instance: Instance,
    /// Reports nothing; refuses no@….
    plain: Peer,
    /// Offers DSN.
    reporting: Peer,
    python: tools::Tool,
}

fn rig(test: &str) -> Option<Rig> {
    let python = tools::get(test, "python3", "usr/bin/python3").unwrap()?;
    let refuses = |event: Event<'_>| match event {
        Event::Command(command) if command.starts_with("RCPT TO:<no@") => Some("550 5.1.1 nobody"),
        _ => None,
    };
    let plain = Peer::start("127.0.0.1:0", refuses).unwrap();
    let offers = |event: Event<'_>| match event {
        Event::Command(command) if command.starts_with("EHLO") => Some("250-peer.test|250-PIPELINING|250 DSN"),
        _ => None,
    };
    let reporting = Peer::start("127.0.0.1:0", offers).unwrap();
    let routes = format!("{}{}", plain.route("plain.test"), reporting.route("reporting.test"));
    let instance = Instance::started(&[("smtproutes", &routes)]).unwrap();
    instance.virtual_domain("example.test", &["bob", "ann"]).unwrap();
    instance.must(&["alias", "add", "team@example.test", "ann@example.test", "x@plain.test"]).unwrap();
    Some(Rig { instance, plain, reporting, python })
}

impl Rig {
    /// Bob's letter: the parameters of MAIL, then recipients with theirs.
    fn submit(&self, mail: &str, recipients: &[&str]) {
        let login = format!("AUTH PLAIN {}", wire::base64::encode(format!("\0{BOB}\0bob-password").as_bytes()));
        let recipients: String = recipients.iter().map(|recipient| format!("RCPT TO:{recipient}\r\n")).collect();
        let letter = format!("MAIL FROM:<{BOB}> {mail}\r\n{recipients}DATA\r\nSubject: x\r\n\r\nthe text\r\n.\r\n");
        let mut smtp = Smtp::open(self.instance.port(587)).unwrap();
        smtp.0.raw(format!("EHLO c.test\r\n{login}\r\n{letter}QUIT\r\n").as_bytes()).unwrap();
        let mut said = Vec::new();
        while said.last().is_none_or(|reply: &String| !reply.starts_with("221")) {
            said.push(smtp.reply().unwrap());
        }
        assert!(said.iter().all(|reply| matches!(reply.as_bytes()[0], b'2' | b'3')), "{said:?}");
        assert!(said[0].contains("250-DSN") && said[0].contains("250-FUTURERELEASE 2592000 2"), "{said:?}");
    }

    /// What Python reads in Bob's letters, sorted.
    fn reports(&self, count: usize) -> Vec<String> {
        let letters = self.instance.wait_mail(BOB, count).unwrap();
        let read = |letter: &String| {
            let output = feed(self.python.command().args(["-c", READER]), letter.as_bytes()).unwrap();
            assert!(output.status.success(), "{}\n{letter}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let mut reports: Vec<String> = letters.iter().map(read).collect();
        reports.sort();
        reports
    }
}

#[test]
fn each_recipient_is_reported_as_it_was_asked_for() {
    let Some(rig) = rig("each_recipient_is_reported_as_it_was_asked_for") else { return };
    rig.submit(
        "RET=HDRS ENVID=QQ+2B314",
        &[
            "<ann@example.test> NOTIFY=SUCCESS ORCPT=rfc822;Ann+2Bx@example.test",
            "<team@example.test> NOTIFY=SUCCESS,FAILURE",
            "<y@plain.test> NOTIFY=SUCCESS,DELAY",
            "<no@plain.test> NOTIFY=FAILURE ORCPT=rfc822;nobody@plain.test",
            "<no@plain.test> NOTIFY=NEVER",
            "<z@plain.test>",
            "<a@reporting.test> NOTIFY=SUCCESS ORCPT=rfc822;A+2B1@reporting.test",
            "<b@reporting.test>",
        ],
    );
    let reports = rig.reports(2);
    assert_eq!(
        reports[0],
        "subject delivery report\n\
         block Original-Envelope-Id=QQ+314; Reporting-MTA=dns; mail.example.test\n\
         block Original-Recipient=rfc822;Ann+x@example.test; Final-Recipient=rfc822; ann@example.test; Action=delivered; Status=2.0.0\n\
         block Final-Recipient=rfc822; team@example.test; Action=expanded; Status=2.0.0\n\
         block Final-Recipient=rfc822; y@plain.test; Action=relayed; Status=2.0.0\n\
         original text/rfc822-headers False\n"
    );
    assert_eq!(
        reports[1],
        "subject failure notice\n\
         block Original-Envelope-Id=QQ+314; Reporting-MTA=dns; mail.example.test\n\
         block Original-Recipient=rfc822;nobody@plain.test; Final-Recipient=rfc822; no@plain.test; Action=failed; Status=5.1.1; \
         Remote-MTA=dns; [127.0.0.1]; Diagnostic-Code=smtp; 550 5.1.1 nobody\n\
         original text/rfc822-headers False\n"
    );
    wait_for("the letter at the reporting peer", || (rig.reporting.letters().len() == 1).then_some(())).unwrap();
    let letter = rig.reporting.letters().pop().unwrap();
    assert!(letter.from.contains("<bob@example.test>") && letter.from.ends_with(" RET=HDRS ENVID=QQ+2B314"), "{}", letter.from);
    assert_eq!(letter.to, ["<a@reporting.test> NOTIFY=SUCCESS ORCPT=rfc822;A+2B1@reporting.test", "<b@reporting.test>"]);
    assert!(rig.plain.letters().iter().all(|letter| !letter.from.contains("RET") && !letter.to.join(" ").contains("NOTIFY")));
    rig.instance.wait_empty().unwrap();
    assert_eq!(rig.instance.wait_mail("ann@example.test", 2).unwrap().len(), 2);
    let log = rig.instance.log();
    assert!(!log.contains("QQ") && !log.contains("Ann+"), "what is asked for does not get into the log");
}

#[test]
fn without_asking_a_failure_comes_back_whole_as_ever() {
    let Some(rig) = rig("without_asking_a_failure_comes_back_whole_as_ever") else { return };
    rig.submit("", &["<no@plain.test>", "<ann@example.test>"]);
    let reports = rig.reports(1);
    assert!(reports[0].starts_with("subject failure notice\nblock Reporting-MTA=dns; mail.example.test\nblock Final-Recipient="));
    assert!(reports[0].ends_with("original message/rfc822 True\n"), "{}", reports[0]);
}

#[test]
fn mail_for_later_outlives_a_restart_and_comes_then() {
    let Some(mut rig) = rig("mail_for_later_outlives_a_restart_and_comes_then") else { return };
    let started = std::time::Instant::now();
    rig.submit("HOLDFOR=8", &["<ann@example.test> NOTIFY=NEVER"]);
    rig.instance.stop().unwrap();
    rig.instance.start().unwrap();
    assert_eq!(rig.instance.json(&["queue", "stats"]).unwrap()["messages"], 1);
    rig.instance.must(&["queue", "retry", "--all"]).unwrap();
    rig.instance.wait_mail("ann@example.test", 1).unwrap();
    assert!(started.elapsed() >= std::time::Duration::from_secs(7), "the clock counts whole seconds");
    rig.instance.wait_empty().unwrap();
}
