//! Mail of users who log in: swaks, curl, and what must not get through without a right password.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use system_tests::line::Smtp;
use system_tests::{Instance, Peer, tools, wait_for};

const BOB: &str = "bob@example.test";

/// A system that relays for nobody by address, and where letters to elsewhere.test go.
fn instance(control: &[(&str, &str)]) -> (Instance, Peer) {
    let peer = Peer::willing().unwrap();
    let route = peer.route("elsewhere.test");
    let control: Vec<_> = [("smtproutes", route.as_str())].into_iter().chain(control.iter().copied()).collect();
    let instance = Instance::started(&control).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    (instance, peer)
}

fn wait_letters(peer: &Peer, count: usize) {
    wait_for(&format!("{count} letters at the peer"), || Some(peer.letters()).filter(|all| all.len() == count)).unwrap();
}

fn plain(user: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", wire::base64::encode(format!("\0{user}\0{password}").as_bytes()))
}

/// Runs it; its exit code and all it said.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn swaks_logs_in_and_sends_anywhere() {
    let Some(swaks) = tools::get("swaks_logs_in_and_sends_anywhere", "swaks", "usr/bin/swaks").unwrap() else { return };
    let (instance, peer) = instance(&[("authcleartext", "127.0.0.1/32\n")]);
    let send = |port: u16, more: &[&str]| {
        let mut command = swaks.command();
        command.args(["--server", "127.0.0.1", "--port", &instance.port(port).to_string(), "--helo", "client.example.test"]);
        command.args(["--from", BOB, "--to", "x@elsewhere.test", "--header", "Subject: by swaks", "--body", "text"]);
        run(command.args(more))
    };
    let login = |mechanism: &'static str, user: &'static str, password: &'static str| {
        ["--auth", mechanism, "--auth-user", user, "--auth-password", password]
    };
    let mut sent = 0;
    for port in [25, 587] {
        for mechanism in ["PLAIN", "LOGIN"] {
            let (code, said) = send(port, &login(mechanism, BOB, "bob-password"));
            assert_eq!(code, Some(0), "{said}");
            sent += 1;
            wait_letters(&peer, sent);
            let letter = peer.letters().pop().unwrap().text();
            assert!(letter.contains(" with ESMTPA; ") && !letter.contains("bob-password"), "{letter}");
            for (user, password) in [(BOB, "wrong"), ("nobody@example.test", "bob-password"), ("bob", "bob-password")] {
                let (code, said) = send(port, &login(mechanism, user, password));
                // swaks(1): 28 is an error at AUTH.
                assert_eq!(code, Some(28), "{said}");
                assert!(said.contains("535 5.7.8 wrong name or password"), "{said}");
            }
        }
    }
    instance.wait_log(&format!(" user={BOB} helo=client.example.test")).unwrap();
    instance.wait_log(&format!("login: service=smtp remote=127.0.0.1 user={BOB}")).unwrap();
    instance.wait_log("login failed: service=smtp remote=127.0.0.1 user=nobody@example.test").unwrap();
    // An address of this host that is not in the file: no offer, no login. swaks(1): 28 again, 23 is an error at MAIL.
    let elsewhere = ["--local-interface", "127.0.0.2"];
    let (code, said) = send(587, &[&login("PLAIN", BOB, "bob-password")[..], &elsewhere].concat());
    assert!(code == Some(28) && !said.contains("250-AUTH"), "{said}");
    let (code, said) = send(587, &elsewhere);
    assert!(code == Some(23) && said.contains("530 5.7.0 STARTTLS first, then log in"), "{said}");
    let (code, said) = send(25, &elsewhere);
    // 24: an error at RCPT.
    assert!(code == Some(24) && said.contains("553 5.7.1 "), "{said}");
    assert_eq!(peer.letters().len(), sent);
    assert!(!instance.log().contains("bob-password"));
}

#[test]
fn curl_logs_in_and_sends_anywhere() {
    let Some(curl) = tools::get("curl_logs_in_and_sends_anywhere", "curl", "usr/bin/curl").unwrap() else { return };
    let (instance, peer) = instance(&[]);
    let file = instance.dir().join("letter");
    std::fs::write(&file, "Subject: by curl\r\n\r\ntext\r\n").unwrap();
    let send = |mechanism: &str, password: &str| {
        let mut command = curl.command();
        command.args(["--silent", "--show-error", "--max-time", "60", "--url"]);
        command.arg(format!("smtp://127.0.0.1:{}/client.example.test", instance.port(587)));
        command.args(["--user", &format!("{BOB}:{password}"), "--login-options", &format!("AUTH={mechanism}")]);
        run(command.args(["--mail-from", BOB, "--mail-rcpt", "x@elsewhere.test", "--upload-file"]).arg(&file))
    };
    for (mechanism, sent) in [("PLAIN", 1), ("LOGIN", 2)] {
        let (code, said) = send(mechanism, "bob-password");
        assert_eq!(code, Some(0), "{said}");
        wait_letters(&peer, sent);
        // 67: the login was refused.
        assert_eq!(send(mechanism, "wrong").0, Some(67));
    }
}

#[test]
fn what_stands_behind_a_login_counts_for_what_it_is() {
    let (instance, peer) = instance(&[]);
    let letter = "MAIL FROM:<bob@example.test> XVERP\r\nRCPT TO:<x@elsewhere.test>\r\nRCPT TO:<y@elsewhere.test>\r\nDATA\r\n";
    // Everything in one go: a login that is none, and what would be a letter if it were one.
    for (auth, codes) in [
        (plain(BOB, "wrong"), "535 555 503 503 503 221"),
        (plain("x", "bob-password"), "535 555 503 503 503 221"),
        // The response is MAIL itself.
        ("AUTH PLAIN".to_owned(), "334 501 503 503 503 221"),
        ("AUTH LOGIN".to_owned(), "334 501 503 503 503 221"),
        ("AUTH CRAM-MD5".to_owned(), "504 555 503 503 503 221"),
    ] {
        let mut smtp = Smtp::open(instance.port(25)).unwrap();
        smtp.0.raw(format!("EHLO c.test\r\n{auth}\r\n{letter}QUIT\r\n").as_bytes()).unwrap();
        let ehlo = smtp.reply().unwrap();
        assert!(ehlo.contains("250-AUTH SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN") && !ehlo.contains("XVERP"), "{ehlo}");
        let got: Vec<String> = (0..6).map(|_| smtp.reply().unwrap()[..3].to_owned()).collect();
        assert_eq!(got.join(" "), codes, "{auth}");
    }
    // A right one: the letter behind it is the user's, and each recipient has his own sender.
    let mut smtp = Smtp::open(instance.port(587)).unwrap();
    let auth = plain(BOB, "bob-password");
    smtp.0.raw(format!("EHLO c.test\r\n{auth}\r\n{letter}Subject: x\r\n\r\n.\r\nEHLO c.test\r\n{auth}\r\n").as_bytes()).unwrap();
    let got: Vec<String> = (0..8).map(|_| smtp.reply().unwrap()).collect();
    let codes: Vec<&str> = got.iter().map(|reply| &reply[..3]).collect();
    assert_eq!(codes, ["250", "235", "250", "250", "250", "354", "250", "250"], "{got:?}");
    assert!(got[7].contains("XVERP") && !got[7].contains("AUTH"), "{got:?}");
    assert!(smtp.reply().unwrap().starts_with("503 5.5.1 "));
    wait_letters(&peer, 2);
    let mut senders: Vec<String> =
        peer.letters().iter().map(|letter| letter.from.split(' ').next().unwrap().to_owned()).collect();
    senders.sort_unstable();
    assert_eq!(senders, ["<bob-x=elsewhere.test@example.test>", "<bob-y=elsewhere.test@example.test>"]);
}

#[test]
fn a_login_cannot_send_as_another() {
    let Some(swaks) = tools::get("a_login_cannot_send_as_another", "swaks", "usr/bin/swaks").unwrap() else { return };
    let (instance, peer) = instance(&[("submission", "hide-address=on\n"), ("submissionlimits", "recipients-per-hour=5\n")]);
    instance.with_input(&["user", "add", "ann@example.test", "--password-stdin"], "ann-password\n").unwrap();
    instance.must(&["alias", "add", "sales@example.test", BOB]).unwrap();
    let send = |port: u16, from: &str, header: &str| {
        let mut command = swaks.command();
        command.args(["--server", "127.0.0.1", "--port", &instance.port(port).to_string(), "--helo", "client.example.test"]);
        command.args(["--auth", "PLAIN", "--auth-user", BOB, "--auth-password", "bob-password"]);
        command.args(["--from", from, "--to", "x@elsewhere.test", "--header", &format!("From: {header}"), "--body", "text"]);
        run(&mut command)
    };
    let mut sent = 0;
    for port in [25, 587] {
        for (from, header, code, reply) in [
            (BOB, "Bob <bob+x@example.test>", 0, "250 2.0.0 "),
            ("sales@example.test", "sales@example.test", 0, "250 2.0.0 "),
            // swaks(1): 23 is an error at MAIL, 26 one at the end of the data.
            ("ann@example.test", BOB, 23, "550 5.7.1 sorry, you may not send as that address"),
            ("x@elsewhere.test", BOB, 23, "550 5.7.1 sorry, you may not send as that address"),
            (BOB, "ann@example.test", 26, "550 5.7.1 sorry, you may not send as an address that From or Sender names"),
            (BOB, "\"ceo@bank.test\" <bob@example.test>", 26, "550 5.7.1 sorry, you may not send as an address"),
            (BOB, "bob@example.test, ceo@bank.test", 26, "550 5.7.1 sorry, you may not send as an address"),
            (BOB, "team: bob@example.test;", 26, "550 5.7.1 sorry, it is not clear who wrote this"),
        ] {
            let (ended, said) = send(port, from, header);
            assert!(ended == Some(code) && said.contains(reply), "{from} {header}: {said}");
            sent += usize::from(code == 0);
        }
    }
    wait_letters(&peer, sent);
    for letter in peer.letters() {
        let text = letter.text();
        assert!(text.contains("from unknown (hidden)\n  by ") && !text.contains("client.example.test"), "{text}");
    }
    instance.wait_log("sender refused: login=bob@example.test address=ceo@bank.test").unwrap();
    assert_eq!(send(587, BOB, BOB).0, Some(0));
    for _ in 0..2 {
        let (_, said) = send(587, BOB, BOB);
        assert!(said.contains("450 4.7.1 your account has sent to too many recipients within an hour"), "{said}");
    }
    assert_eq!(instance.log().matches("alert: submission limit reached: recipients-per-hour login=bob@example.test").count(), 1);
}

/// Whoever ends qmail-auth, or crashes it, must not get his limits anew.
#[test]
fn a_limit_that_is_reached_is_told_by_mail_once_and_outlives_qmail_auth() {
    let control = [("submissionlimits", "messages-per-hour=2\n"), ("authcleartext", "127.0.0.1/32\n")];
    let (instance, _peer) = instance(&control);
    for user in ["postmaster", "ann"] {
        instance.with_input(&["user", "add", &format!("{user}@example.test"), "--password-stdin"], "x\n").unwrap();
    }
    instance.must(&["domain", "admin", "add", "example.test", "ann@example.test"]).unwrap();
    let send = || {
        let mut smtp = instance.smtp().unwrap();
        smtp.must("EHLO client.example.test", "250").unwrap();
        smtp.must(&plain(BOB, "bob-password"), "235").unwrap();
        smtp.ask(&format!("MAIL FROM:<{BOB}>")).unwrap();
        smtp.ask("RCPT TO:<ann@example.test>").unwrap();
        let reply = smtp.ask("DATA").unwrap();
        if !reply.starts_with("354") {
            return reply;
        }
        smtp.ask(&format!("From: {BOB}\r\nSubject: x\r\n\r\nx\r\n.")).unwrap()
    };
    for _ in 0..2 {
        let reply = send();
        assert!(reply.starts_with("250 "), "{reply}");
    }
    for _ in 0..2 {
        assert!(!send().starts_with("250 "));
    }
    let alert = instance.wait_mail("postmaster@example.test", 1).unwrap().pop().unwrap();
    for part in [
        "Return-Path: <>\n",
        "Subject: Sending limit reached: bob@example.test\n",
        "2 messages per hour",
        "Auto-Submitted: auto-generated\n",
    ] {
        assert!(alert.contains(part), "{part}: {alert}");
    }
    instance.wait_mail("ann@example.test", 3).unwrap();
    let before = auth_process(&instance);
    system_tests::facts::signal(before, rustix::process::Signal::KILL);
    wait_for("another qmail-auth", || (auth_process(&instance) != before && auth_process(&instance) != 0).then_some(())).unwrap();
    let reply =
        wait_for("an answer", || Some(send()).filter(|reply| !reply.starts_with("451") && !reply.starts_with("454"))).unwrap();
    assert!(!reply.starts_with("250 "), "{reply}");
    instance.wait_empty().unwrap();
    assert_eq!(instance.wait_mail("postmaster@example.test", 1).unwrap().len(), 1, "told once");
}

/// 0: there is none now.
fn auth_process(instance: &Instance) -> u32 {
    let all = system_tests::facts::descendants(instance.pid());
    all.iter().find(|process| process.name == "qmail-auth").map_or(0, |process| process.pid)
}

#[test]
fn what_is_submitted_is_completed_and_a_bcc_is_not_seen() {
    let (instance, peer) = instance(&[]);
    let mut smtp = Smtp::open(instance.port(587)).unwrap();
    let letter = "MAIL FROM:<bob@example.test>\r\nRCPT TO:<x@elsewhere.test>\r\nRCPT TO:<y@elsewhere.test>\r\nDATA\r\n\
        To: x@elsewhere.test\r\nBcc: y@elsewhere.test,\r\n\tz@elsewhere.test\r\nSubject: x\r\n\r\nBcc: stays\r\n.\r\nQUIT\r\n";
    smtp.0.raw(format!("EHLO c.test\r\n{}\r\n{letter}", plain(BOB, "bob-password")).as_bytes()).unwrap();
    wait_letters(&peer, 1);
    let text = peer.letters()[0].text();
    let (header, body) = text.split_once("\n\n").unwrap();
    for field in ["\nDate: ", "\nMessage-ID: <", "\nFrom: <bob@example.test>\n", "\nTo: x@elsewhere.test\nSubject: x"] {
        assert_eq!(header.matches(field).count(), 1, "{field}: {text}");
    }
    assert!(!header.contains("Bcc") && !header.contains("y@") && !header.contains("z@"), "{text}");
    assert_eq!(body, "Bcc: stays\n");
}

#[test]
fn guessing_is_slow_and_ends() {
    let (instance, peer) = instance(&[]);
    let mut smtp = Smtp::open(instance.port(587)).unwrap();
    let started = std::time::Instant::now();
    smtp.0.raw(b"EHLO c.test\r\n").unwrap();
    smtp.reply().unwrap();
    for guess in ["a", "b", "c"] {
        smtp.0.raw(format!("{}\r\n", plain(BOB, guess)).as_bytes()).unwrap();
        assert_eq!(smtp.reply().unwrap(), "535 5.7.8 wrong name or password");
    }
    assert_eq!(smtp.reply().unwrap(), "421 4.7.0 too many failed logins");
    assert!(smtp.0.is_closed().unwrap() && started.elapsed() >= std::time::Duration::from_secs(3));
    assert!(peer.letters().is_empty());
}
