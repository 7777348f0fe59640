//! QMTP and QMQP: between two systems, byte by byte against the real programs, and with Postfix's own client and server of QMQP.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use system_tests::instance::feed;
use system_tests::{Instance, PATIENCE, tools, wait_for};

const BOB: &str = "bob@example.test";
const LETTER: &str = "From: bob@example.test\nSubject: quick\n\n.A dot first.\n.\nbytes: \u{e9}\u{fc}\nFrom here on.\n";

fn netstring(bytes: &[u8]) -> Vec<u8> {
    [bytes.len().to_string().as_bytes(), b":", bytes, b","].concat()
}

fn list(recipients: &[&str]) -> Vec<u8> {
    recipients.iter().flat_map(|recipient| netstring(recipient.as_bytes())).collect()
}

fn by_qmtp(text: &[u8], sender: &str, recipients: &[&str]) -> Vec<u8> {
    [netstring(text), netstring(sender.as_bytes()), netstring(&list(recipients))].concat()
}

fn by_qmqp(text: &[u8], sender: &str, recipients: &[&str]) -> Vec<u8> {
    netstring(&[netstring(text), netstring(sender.as_bytes()), list(recipients)].concat())
}

/// The contents of netstrings, with numbers masked that differ from run to run.
fn answers(bytes: &[u8]) -> Vec<String> {
    let (mut rest, mut out) = (bytes, Vec::new());
    while !rest.is_empty() {
        let (answer, behind) =
            wire::netstring::decode(rest, 10_000).unwrap_or_else(|e| panic!("{e:?}: {}", bytes.escape_ascii()));
        let answer = String::from_utf8(answer.to_vec()).unwrap();
        let words: Vec<_> = answer.split(' ').collect();
        match words[..] {
            ["Kok", time, "qp", pid] => {
                assert!(time.parse::<u64>().unwrap() > 1_700_000_000 && pid.parse::<u32>().unwrap() > 0, "{answer}");
                out.push("Kok".to_owned());
            }
            _ => out.push(answer),
        }
        rest = behind;
    }
    out
}

/// A conversation in one go: what the server says until it closes the connection, after our end or by itself.
fn converse(port: u16, chunks: &[&[u8]]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    for chunk in chunks {
        // The server may have closed it.
        let _ = stream.write_all(chunk);
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}"),
    }
    said
}

fn receiver(control: &[(&str, &str)]) -> Instance {
    let instance = Instance::started(control).unwrap();
    instance.virtual_domain("example.test", &["bob", "ann"]).unwrap();
    instance
}

#[test]
fn mail_goes_from_one_system_to_another_by_qmtp() {
    let there = Instance::started(&[]).unwrap();
    there.virtual_domain("there.test", &["ann", "eve"]).unwrap();
    let routes = format!("there.test:127.0.0.1:{0}\n.there.test:127.0.0.1:{0}\n", there.port(209));
    let here = receiver(&[("relayclients", "127.0.0.0/8\n"), ("qmtproutes", &routes)]);
    here.smtp().unwrap().send(BOB, &["ann@there.test", "none@there.test", "eve@there.test", "x@sub.there.test"], LETTER).unwrap();
    let letter = there.wait_mail("ann@there.test", 1).unwrap().remove(0);
    assert!(
        letter.contains("\n  by mail.example.test with QMTP; ") && letter.contains("Received: from unknown (127.0.0.1)\n"),
        "{letter}"
    );
    assert!(letter.ends_with(&LETTER[LETTER.find("\nSubject").unwrap()..]), "{letter}");
    there.wait_mail("eve@there.test", 1).unwrap();
    let bounce = here.wait_mail(BOB, 1).unwrap().remove(0);
    for part in [
        "<none@there.test>:\n127.0.0.1 does not like recipient.\n\
         Remote host said: sorry, no mailbox here by that name (#5.1.1)\nGiving up on 127.0.0.1.\n",
        "<x@sub.there.test>:\n127.0.0.1 does not like recipient.\n\
         Remote host said: sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)\nGiving up on 127.0.0.1.\n",
        "\nFinal-Recipient: rfc822; none@there.test\nAction: failed\nStatus: 5.1.1\n",
    ] {
        assert!(bounce.contains(part), "the bounce lacks `{part}`:\n{bounce}");
    }
    here.wait_empty().unwrap();
    here.wait_log("success: 127.0.0.1_accepted_message./Remote_host_said:_ok_").unwrap();
    // One after the other, and one that is long, over the same few connections.
    let long = format!("Subject: long\n\n{}", "0123456789abcdef.\n.\n".repeat(30_000));
    for letter in [LETTER, &long, LETTER, "\n", "Subject: no end\n\nof the line"] {
        here.smtp().unwrap().send(BOB, &["ann@there.test"], letter).unwrap();
    }
    let letters = there.wait_mail("ann@there.test", 6).unwrap();
    assert!(letters.iter().any(|letter| letter.ends_with(&long)), "the long one comes whole");
    here.wait_empty().unwrap();
}

#[test]
fn a_server_that_is_not_there_or_has_no_tls_is_tried_later() {
    let port = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() };
    let routes = format!("gone.test:127.0.0.1:{port}\nsecret.test:localhost:{port}\n");
    let here = receiver(&[
        ("relayclients", "127.0.0.0/8\n"),
        ("qmtproutes", &routes),
        ("tlspolicy", "localhost:encrypt\n"),
        ("resolvers", "127.0.0.1:9\n"),
    ]);
    here.smtp().unwrap().send(BOB, &["x@gone.test"], LETTER).unwrap();
    here.wait_log("deferral: Sorry,_I_wasn't_able_to_establish_a_QMTP_connection._(#4.4.1)/").unwrap();
    here.smtp().unwrap().send(BOB, &["x@secret.test"], LETTER).unwrap();
    here.wait_log("deferral: ").unwrap();
    // A server of another kind is no server.
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = Vec::new();
        let mut byte = [0];
        while !text.ends_with(b"11:x@gone.test,,") && stream.read(&mut byte).unwrap_or(0) == 1 {
            text.push(byte[0]);
        }
        stream.write_all(b"220 hello\r\n").unwrap();
        text
    });
    here.must(&["queue", "retry", "--all"]).unwrap();
    here.wait_log("Connected_to_127.0.0.1_but_connection_died._Possible_duplicate!_(#4.4.2)/").unwrap();
    let sent = server.join().unwrap();
    // Every line ends in CRLF, dots are as they are, and the length is right.
    let (text, rest) = wire::netstring::decode(&sent, 10_000).unwrap();
    assert!(text.starts_with(b"\rReceived: (qmail "), "{}", text.escape_ascii());
    assert!(text.ends_with("\r\n\r\n.A dot first.\r\n.\r\nbytes: \u{e9}\u{fc}\r\nFrom here on.\r\n".as_bytes()));
    assert_eq!(rest, [netstring(BOB.as_bytes()), netstring(&list(&["x@gone.test"]))].concat());
}

#[test]
fn every_answer_of_qmtp_however_it_is_cut() {
    let instance = receiver(&[("databytes", "300\n"), ("badmailfrom", "@spam.test\n"), ("maxrcpt", "2\n")]);
    let port = instance.port(209);
    let long = format!("{}@example.test", "x".repeat(1000));
    let recipients = ["ann@example.test", "none@example.test", "x@elsewhere.test", &long, "", "postmaster", "bob@example.test"];
    let ours = "Dsorry, no mailbox here by that name (#5.1.1)";
    let relay = "Dsorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)";
    let cannot = "Dsorry, I can't handle that recipient (#5.1.3)";
    let many = "Ztoo many recipients, send the rest in another message (#4.5.3)";
    let said = converse(port, &[&by_qmtp(b"\nSubject: a\n\ntext\n", "s@x.test", &recipients)]);
    assert_eq!(answers(&said), ["Kok", ours, relay, cannot, cannot, "Kok", many]);
    let letter = instance.wait_mail("ann@example.test", 1).unwrap().remove(0);
    assert!(
        letter.starts_with("Return-Path: <s@x.test>\nDelivered-To: ann@example.test\n") && letter.ends_with("\n\ntext\n"),
        "{letter}"
    );
    let bare = "Da CR or LF that ends no line; see https://cr.yp.to/docs/smtplf.html (#5.6.11)";
    let large = "Dsorry, that message size exceeds my databytes limit (#5.3.4)";
    for (text, sender, answer) in [
        (&b"\nx\r.\r\n\n"[..], "s@x.test", bare),
        (b"\rx\n.\n\r\n", "s@x.test", bare),
        (b"\rx\r.\r\n", "s@x.test", bare),
        (&[b'\n'; 302], "s@x.test", large),
        (b"\nx\n", "j@spam.test", "Dsorry, your envelope sender is in my badmailfrom list (#5.7.1)"),
        (b"\nx\n", "a\0b@x.test", "Dunacceptable sender (#5.1.7)"),
        (b"\nx\n", &long, "Dunacceptable sender (#5.1.7)"),
    ] {
        let said = converse(port, &[&by_qmtp(text, sender, &["ann@example.test", "x@elsewhere.test"])]);
        assert_eq!(answers(&said), [answer, answer], "{} {sender:?}", text.escape_ascii());
    }
    // Two messages at once, the second one refused; at every cut the same.
    let one = by_qmtp(b"\r\r\n", "", &["none@example.test"]);
    let two = [one, by_qmtp(b"\nx\n", "s@x.test", &["x@elsewhere.test", ""])].concat();
    for cut in 0..two.len() {
        let (head, tail) = two.split_at(cut);
        assert_eq!(answers(&converse(port, &[head, tail])), [ours, relay, cannot], "{cut}");
    }
    assert_eq!(answers(&converse(port, &two.chunks(1).collect::<Vec<_>>())), [ours, relay, cannot]);
    // What is none, and what ends too early, gets no answer; and nothing of it is delivered.
    let whole = by_qmtp(b"\nhalf\n", "s@x.test", &["ann@example.test"]);
    for hostile in
        [&whole[..whole.len() - 1], b"0:,", b"EHLO x\r\n", b"01:\n,", b"99999999999999999999:", b"2:x", b"3:\nx\n,0:,9999999:"]
    {
        assert_eq!(converse(port, &[hostile]), b"", "{}", hostile.escape_ascii());
    }
    instance.wait_log(" from=<s@x.test> to=<none@example.test> reply=\"Dsorry, no mailbox here by that name").unwrap();
    instance.wait_empty().unwrap();
    assert_eq!(instance.wait_mail("ann@example.test", 1).unwrap().len(), 1);
}

#[test]
fn who_may_relay_by_qmtp() {
    let peer = system_tests::Peer::willing().unwrap();
    let rules = "127.0.0.2:allow,RELAYCLIENT=\"\",DATABYTES=\"20\"\n127.0.0.3:deny\n:allow\n";
    let instance = receiver(&[("tcp.smtp", rules), ("smtproutes", &peer.route(""))]);
    let port = instance.port(209);
    let wire = by_qmtp(b"\nSubject: x\n\ntext\n", "s@x.test", &["far@elsewhere.test"]);
    assert!(answers(&converse(port, &[&wire]))[0].ends_with("rcpthosts (#5.7.1)"));
    let from = |client: [u8; 4], wire: &[u8]| {
        let mut line = system_tests::line::Line::open_from(client.into(), port).unwrap();
        let _ = line.raw(wire);
        let mut said = Vec::new();
        // Every answer here has one comma, its last byte.
        while let Ok(byte) = line.byte() {
            said.push(byte);
            if byte == b',' {
                break;
            }
        }
        said
    };
    assert_eq!(answers(&from([127, 0, 0, 2], &wire)), ["Kok"]);
    let large = by_qmtp(b"\nSubject: xx\n\ntext!!!\n", "s@x.test", &["far@elsewhere.test"]);
    assert!(String::from_utf8(from([127, 0, 0, 2], &large)).unwrap().contains("61:Dsorry"));
    assert_eq!(from([127, 0, 0, 3], &wire), b"");
    let letter = wait_for("the letter", || peer.letters().pop()).unwrap();
    assert_eq!(letter.to, ["<far@elsewhere.test>"]);
    instance.wait_log("refused remote=127.0.0.3 by=control/tcp.smtp").unwrap();
}

#[test]
fn qmqp_is_for_those_who_are_named() {
    let wire = by_qmqp(b"Subject: x\n\ntext\rwith\r\nall\n", "s@x.test", &["ann@example.test", "bob@example.test"]);
    let nobody = receiver(&[]);
    assert_eq!(converse(nobody.port(628), &[&wire]), b"");
    nobody.wait_log("refused remote=127.0.0.1 by=\"not in control/qmqpclients\"").unwrap();
    drop(nobody);
    let instance = receiver(&[("qmqpclients", "127.0.0.1\n")]);
    let port = instance.port(628);
    assert_eq!(answers(&converse(port, &[&wire])), ["Kok"]);
    for user in ["ann", "bob"] {
        let letter = instance.wait_mail(&format!("{user}@example.test"), 1).unwrap().remove(0);
        assert!(letter.contains(" with QMQP; ") && letter.contains("text\rwith\r\nall\n"), "{letter}");
    }
    let refused = by_qmqp(b"x", "s@x.test", &["ann@example.test", "a\0b"]);
    for cut in 0..refused.len() {
        let (head, tail) = refused.split_at(cut);
        assert_eq!(converse(port, &[head, tail]), b"51:Dsorry, I can't accept addresses like that (#5.1.3),", "{cut}");
    }
    for hostile in [&wire[..wire.len() - 1], b"9:1:x,1:s,1,", b"7:1:x,2:s,", b"0:,", b"x", b"30:99999999999999999999:"] {
        assert_eq!(converse(port, &[hostile]), b"", "{}", hostile.escape_ascii());
    }
    instance.wait_empty().unwrap();
    assert_eq!(instance.wait_mail("ann@example.test", 1).unwrap().len(), 1, "all or nothing");
}

/// A host with nothing but control/qmqpservers.
fn null_client(instance: &Instance, servers: &str) -> std::path::PathBuf {
    let root = instance.dir().join("null-client");
    let control = root.join("etc/qmail/control");
    fs::create_dir_all(&control).unwrap();
    fs::write(control.join("me"), "null.example.test\n").unwrap();
    fs::write(control.join("qmqpservers"), servers).unwrap();
    root
}

/// qmail-qmqpc with this message and envelope.
fn qmqpc(instance: &Instance, root: &Path, message: &[u8], envelope: &[u8]) -> Output {
    let file = root.join("envelope");
    fs::write(&file, envelope).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec \"$0\" 1<\"$1\""]).arg(instance.program("qmail-qmqpc")).arg(&file).env("QMAIL_ROOT", root);
    feed(&mut command, message).unwrap()
}

#[test]
fn a_host_without_a_queue_sends_through_one_that_has_it() {
    let instance = receiver(&[("qmqpclients", "127.0.0.0/8\n")]);
    let closed = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    let root = null_client(&instance, &format!("{closed}\n127.0.0.1:{}\n", instance.port(628)));
    let long = format!("Subject: long\n\n{}", "0123456789abcdef\n".repeat(50_000));
    for message in ["Subject: x\n\ntext\n", &long] {
        let output = qmqpc(&instance, &root, message.as_bytes(), b"Fs@x.test\0Tann@example.test\0Tbob@example.test\0\0");
        assert_eq!(
            (output.status.code(), output.stdout.len(), output.stderr.len()),
            (Some(0), 0, 0),
            "the second server takes it"
        );
    }
    let letters = instance.wait_mail("ann@example.test", 2).unwrap();
    assert!(letters.iter().any(|letter| letter.ends_with(&long)));
    // As QMAILQUEUE of qmail-inject.
    let mut inject = Command::new(instance.program("qmail-inject"));
    inject.env("QMAIL_ROOT", &root).env("QMAILQUEUE", instance.program("qmail-qmqpc")).args(["-fs@x.test", "ann@example.test"]);
    let output = feed(&mut inject, b"Subject: injected\n\ntext\n").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let letters = instance.wait_mail("ann@example.test", 3).unwrap();
    assert!(letters.iter().any(|letter| letter.contains("\nSubject: injected\n")));
    // What the server says reaches whom it concerns.
    let mut inject = Command::new(instance.program("qmail-inject"));
    inject.env("QMAIL_ROOT", &root).env("QMAILQUEUE", instance.program("qmail-qmqpc"));
    let local = "x".repeat(985);
    inject.args(["-fs@x.test", &format!("{local}@example.test")]);
    let output = feed(&mut inject, b"Subject: refused\n\ntext\n").unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(0) || said.contains("I can't accept addresses like that (#5.1.3)"), "{said}");
}

#[test]
fn the_exit_codes_of_qmail_qmqpc() {
    let instance = Instance::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let root = null_client(&instance, &format!("{address}\n"));
    let envelope = b"Fs@x.test\0Tann@example.test\0\0";
    let wanted = by_qmqp(b"text\n", "s@x.test", &["ann@example.test"]);
    for (answer, code) in [
        (&b"3:Kok,"[..], 0),
        (b"10:Zlater (#4),", 74),
        (b"11:Zlater (#4),", 71),
        (b"4:Dno!,", 31),
        (b"", 74),
        (b"250 ok\r\n", 74),
        (b"3:Kok", 0),
        (b"3:Z", 74),
    ] {
        let (taken, server) = (wanted.clone(), listener.try_clone().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut got = vec![0; taken.len()];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(got, taken);
            stream.write_all(answer).unwrap();
        });
        let output = qmqpc(&instance, &root, b"text\n", envelope);
        server.join().unwrap();
        assert_eq!(
            (output.status.code(), output.stdout.len(), output.stderr.len()),
            (Some(code), 0, 0),
            "{}",
            answer.escape_ascii()
        );
    }
    // A server that does not answer is as good as none: the next one is asked.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    fs::write(root.join("etc/qmail/control/qmqpservers"), format!("{address}\n{}\n", other.local_addr().unwrap())).unwrap();
    for (first, second, code) in [
        (&b""[..], &b"3:Kok,"[..], 0),
        (b"250 ok\r\n", b"11:Zlater (#4),", 71),
        (b"3:Zok", b"4:Dno!,", 31),
        (b"", b"", 74),
        (b"4:Dno!,", b"3:Kok,", 31),
    ] {
        let asks_both = !first.starts_with(b"4");
        let serve = |listener: &TcpListener, answer: &'static [u8]| {
            let (taken, listener) = (wanted.clone(), listener.try_clone().unwrap());
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut got = vec![0; taken.len()];
                stream.read_exact(&mut got).unwrap();
                assert_eq!(got, taken);
                stream.write_all(answer).unwrap();
            })
        };
        let servers = [Some(serve(&listener, first)), asks_both.then(|| serve(&other, second))];
        assert_eq!(qmqpc(&instance, &root, b"text\n", envelope).status.code(), Some(code), "{}", first.escape_ascii());
        servers.into_iter().flatten().for_each(|server| server.join().unwrap());
    }
    fs::write(root.join("etc/qmail/control/qmqpservers"), format!("{address}\n")).unwrap();
    for (envelope, code) in [
        (&b"Fs@x.test\0Tann@example.test\0"[..], 54),
        (b"", 54),
        (b"Xs@x.test\0\0", 91),
        (b"Fs@x.test\0Xann\0\0", 91),
        (&[&b"F"[..], &[b'x'; 2000], b"\0\0"].concat(), 11),
    ] {
        assert_eq!(qmqpc(&instance, &root, b"text\n", envelope).status.code(), Some(code), "{}", envelope.escape_ascii());
    }
    drop(listener);
    assert_eq!(qmqpc(&instance, &root, b"text\n", envelope).status.code(), Some(73));
    for servers in ["", "# nobody\n", "mail.example.test\n"] {
        fs::write(root.join("etc/qmail/control/qmqpservers"), servers).unwrap();
        assert_eq!(qmqpc(&instance, &root, b"text\n", envelope).status.code(), Some(55), "{servers:?}");
    }
}

/// Another implementation: Postfix's client sends to our server, ours to its server.
#[test]
fn qmqp_with_postfix() {
    let name = "qmqp_with_postfix";
    let Some(source) = tools::get(name, "postfix", "usr/sbin/qmqp-source").unwrap() else { return };
    let Some(sink) = tools::get(name, "postfix", "usr/sbin/qmqp-sink").unwrap() else { return };
    let instance = receiver(&[("qmqpclients", "127.0.0.1\n")]);
    let mut command = source.command();
    // Twenty messages over five connections at a time, each of 5000 bytes for two recipients.
    command.args(["-4", "-c", "-m", "20", "-s", "5", "-l", "5000", "-r", "2", "-f", BOB, "-t", "ann@example.test"]);
    let output = command.arg(format!("inet:127.0.0.1:{}", instance.port(628))).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Its recipients are 1ann@ and 2ann@, whom the domain does not know: they come back to bob. What counts is that they were taken.
    instance.wait_empty().unwrap();
    assert_eq!(instance.log().matches(" messages=1 recipients=2 ").count(), 20, "{}", instance.log());
    let port = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() };
    let mut server = sink.command().args(["-4", &format!("inet:127.0.0.1:{port}"), "10"]).spawn().unwrap();
    let listening = wait_for("qmqp-sink to listen", || TcpStream::connect(("127.0.0.1", port)).ok());
    let root = null_client(&instance, &format!("127.0.0.1:{port}\n"));
    let long = "0123456789abcdef\n".repeat(50_000);
    let codes: Vec<_> = [b"text\n".as_slice(), long.as_bytes(), b""]
        .iter()
        .map(|message| qmqpc(&instance, &root, message, b"Fs@x.test\0Ta@b.test\0Tc@d.test\0\0").status.code())
        .collect();
    server.kill().unwrap();
    server.wait().unwrap();
    drop(listening);
    assert_eq!(codes, [Some(0); 3]);
}

/// What the program in QMAILQUEUE does: keep what it is given, end as it is told to.
const CAPTURE: &str = "#!/bin/sh\ncat > \"$CAPTURE.message\"\ncat <&1 > \"$CAPTURE.envelope\"\nexit \"${QEXIT:-0}\"\n";

/// A session of the classic face with a capturing queue: its answers, its exit code, what the queue got.
struct Classic<'a> {
    instance: &'a Instance,
    program: &'a str,
    set: Vec<(&'a str, &'a str)>,
}

impl Classic<'_> {
    fn run(&self, input: &[u8]) -> (Vec<String>, Option<i32>, Option<String>, Option<String>) {
        let queue = self.instance.dir().join("queue");
        fs::write(&queue, CAPTURE).unwrap();
        fs::set_permissions(&queue, fs::Permissions::from_mode(0o755)).unwrap();
        let out = self.instance.dir().join("out");
        for kind in ["message", "envelope"] {
            let _ = fs::remove_file(out.with_extension(kind));
        }
        let mut command = Command::new(self.instance.program(self.program));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("QMAIL_ROOT", &self.instance.root);
        command.env("QMAILQUEUE", &queue).env("CAPTURE", &out);
        command.envs(self.set.iter().copied());
        let output = feed(&mut command, input).unwrap();
        let read = |kind: &str| fs::read(out.with_extension(kind)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (answers(&output.stdout), output.status.code(), read("message"), read("envelope"))
    }
}

/// Who has no answer sends again: the first message has its own while the second one is still under way.
#[test]
fn each_message_is_answered_before_the_next_one_is_taken() {
    let instance = Instance::new().unwrap();
    instance.control("rcpthosts", "example.test\n").unwrap();
    let (queue, gate) = (instance.dir().join("queue"), instance.dir().join("gate"));
    let script = "#!/bin/sh\ncat > \"$GATE.$$\"\ncat <&1 > /dev/null\n\
        ! grep -q second \"$GATE.$$\" || until test -e \"$GATE\"; do sleep 0.05; done\n";
    fs::write(&queue, script).unwrap();
    fs::set_permissions(&queue, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(instance.program("qmail-qmtpd"));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("QMAIL_ROOT", &instance.root);
    command.env("QMAILQUEUE", &queue).env("GATE", &gate).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let both = [by_qmtp(b"\nfirst\n", "", &["a@example.test"]), by_qmtp(b"\nsecond\n", "", &["a@example.test"])].concat();
    stdin.write_all(&both).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut byte = [0];
        while stdout.read(&mut byte).unwrap() == 1 {
            tell.send(byte[0]).unwrap();
        }
    });
    let mut first = Vec::new();
    while !first.ends_with(b",") {
        first.push(told.recv_timeout(PATIENCE).expect("an answer to the first message"));
    }
    assert_eq!(answers(&first), ["Kok"]);
    fs::write(&gate, "").unwrap();
    drop(stdin);
    reader.join().unwrap();
    assert_eq!(answers(&told.iter().collect::<Vec<_>>()), ["Kok"]);
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_classic_faces_with_another_queue() {
    let instance = Instance::new().unwrap();
    instance.control("rcpthosts", "example.test\n").unwrap();
    let facts = [("TCPREMOTEIP", "192.0.2.1"), ("TCPREMOTEHOST", "a.b"), ("TCPREMOTEINFO", "joe"), ("TCPLOCALHOST", "in.test")];
    let classic = |program, more: &[(&'static str, &'static str)]| Classic {
        instance: &instance,
        program,
        set: facts.iter().chain(more).copied().collect(),
    };
    let qmtp = classic("qmail-qmtpd", &[]);
    let wire = by_qmtp(b"\r.x\r\nno end", "s@x.test", &["a@example.test", "b@other.test", "c@example.test"]);
    let (said, code, message, envelope) = qmtp.run(&wire);
    assert_eq!((said[0].as_str(), said[2].as_str(), code), ("Kok", "Kok", Some(0)));
    assert_eq!(said[1], "Dsorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)");
    let message = message.unwrap();
    assert!(message.starts_with("Received: from a.b (joe@192.0.2.1)\n  by in.test with QMTP; "), "{message}");
    assert!(message.ends_with(" -0000\n.x\nno end\n"), "{message}");
    assert_eq!(envelope.unwrap(), "Fs@x.test\0Ta@example.test\0Tc@example.test\0\0");
    let relay = classic("qmail-qmtpd", &[("RELAYCLIENT", "@relay"), ("DATABYTES", "4")]);
    assert_eq!(relay.run(&by_qmtp(b"\nabc", "", &["b@other.test"])).3.unwrap(), "F\0Tb@other.test@relay\0\0");
    let large = relay.run(&by_qmtp(b"\nabcd", "", &["b@other.test"]));
    assert_eq!(large.0, ["Dsorry, that message size exceeds my databytes limit (#5.3.4)"]);
    assert_ne!(large.3.as_deref(), Some("F\0Tb@other.test@relay\0\0"), "the queue is not told a whole envelope");
    for (exit, answer) in [
        ("11", "Denvelope address too long for qq (#5.1.3)"),
        ("31", "Dmail server permanently rejected message (#5.3.0)"),
        ("53", "Zqq write error or disk full (#4.3.0)"),
        ("81", "Zqq internal bug (#4.3.0)"),
    ] {
        let wire = by_qmtp(b"\nx\n", "", &["a@example.test"]);
        assert_eq!(classic("qmail-qmtpd", &[("QEXIT", exit)]).run(&wire).0, [answer]);
        assert_eq!(classic("qmail-qmqpd", &[("QEXIT", exit)]).run(&by_qmqp(b"x", "", &["a"])).0, [answer]);
    }
    for (wire, code) in [(&b"x"[..], 100), (b"0:,", 100), (b"3000000000", 111), (b"3:\nx", 0), (b"", 0)] {
        let (said, exit, _, envelope) = qmtp.run(wire);
        assert_eq!((said.len(), exit, envelope.unwrap_or_default().len()), (0, Some(code), 0), "{}", wire.escape_ascii());
    }
    let qmqp = classic("qmail-qmqpd", &[]);
    let (said, code, message, envelope) = qmqp.run(&by_qmqp(b"a\rb\r\n", "s@x.test", &["a@any.test", "b"]));
    assert_eq!((said, code), (vec!["Kok".to_owned()], Some(0)));
    let message = message.unwrap();
    assert!(
        message.starts_with("Received: from a.b (joe@192.0.2.1)\n  by in.test with QMQP; ")
            && message.ends_with("-0000\na\rb\r\n")
    );
    assert_eq!(envelope.unwrap(), "Fs@x.test\0Ta@any.test\0Tb\0\0");
    for (wire, code) in [(&b"9:1:x,1:s,1,"[..], 100), (b"7:1:x,2:s,", 100), (b"x", 100), (b"20:1:x,", 0)] {
        assert_eq!(qmqp.run(wire).1, Some(code), "{}", wire.escape_ascii());
    }
    fs::remove_file(instance.root.join("etc/qmail/control/me")).unwrap();
    assert_eq!(qmtp.run(&wire).1, Some(111), "without control files");
    assert_eq!(qmqp.run(&by_qmqp(b"x", "", &["a"])).1, Some(0), "needs none");
}
