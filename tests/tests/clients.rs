//! Programs of others that send to us and fetch from us: swaks, curl, smtp-source of Postfix, fetchmail.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use system_tests::{Instance, is_root, skip, tools};

const LETTER: &str = "From: a@elsewhere.test\nSubject: from a client\n\nThe first line.\n.A dot first.\n.\n\nLast line.\n";

fn instance() -> Instance {
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob", "carol"]).unwrap();
    instance
}

fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn body(letter: &str) -> &str {
    letter.split_once("\n\n").unwrap().1
}

#[test]
fn a_session_by_hand_gets_the_answers_that_clients_get() {
    let instance = instance();
    let mut smtpd = Command::new(instance.program("qmail-smtpd"));
    smtpd.env("QMAIL_ROOT", &instance.root);
    let session = "MAIL FROM:<a@b.test>\r\nRCPT TO:<bob@example.test>\r\nRCPT TO:<dave@example.test>\r\nRCPT TO:<x@far.test>\r\n\
        DATA\r\nSubject: by hand\r\n\r\n.\r\nQUIT\r\n";
    let output = system_tests::instance::feed(&mut smtpd, session.as_bytes()).unwrap();
    let replies = String::from_utf8(output.stdout).unwrap();
    let codes: Vec<&str> = replies.lines().map(|line| &line[..9]).collect();
    let wanted = ["250 2.1.0", "250 2.1.5", "550 5.1.1", "553 5.7.1", "354 go ah", "250 2.0.0", "221 2.0.0"];
    assert_eq!(codes[1..], wanted, "{replies}");
    assert!(output.status.success());
    instance.wait_mail("bob@example.test", 1).unwrap();
}

#[test]
fn swaks_sends_in_each_of_its_ways() {
    let Some(swaks) = tools::get("swaks_sends_in_each_of_its_ways", "swaks", "usr/bin/swaks").unwrap() else { return };
    let instance = instance();
    let send = |more: &[&str]| {
        let mut command = swaks.command();
        command.args(["--server", "127.0.0.1", "--port", &instance.port(25).to_string(), "--helo", "client.example.test"]);
        command.args(["--from", "a@elsewhere.test", "--header", "Subject: by swaks", "--body", "one\n.two\nthree"]).args(more);
        command
    };
    let ways: [&[&str]; 3] = [
        &["--to", "bob@example.test"],
        &["--to", "bob@example.test,carol@example.test", "--pipeline"],
        &["--to", "bob@example.test", "--protocol", "SMTP"],
    ];
    for way in ways {
        succeeds(&mut send(way));
    }
    let mut by = Vec::new();
    for letter in instance.wait_mail("bob@example.test", 3).unwrap() {
        assert!(letter.contains("\nSubject: by swaks\n") && body(&letter).starts_with("one\n.two\nthree\n"), "{letter}");
        assert!(
            letter.contains("Received: from client.example.test") || letter.contains("(HELO client.example.test)"),
            "{letter}"
        );
        by.push(if letter.contains(" with ESMTP; ") { "ESMTP" } else { "SMTP" });
    }
    by.sort_unstable();
    assert_eq!(by, ["ESMTP", "ESMTP", "SMTP"]);
    instance.wait_mail("carol@example.test", 1).unwrap();
    let refused = send(&["--to", "nobody@example.test"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stdout);
    // swaks(1): 24 is an error at RCPT.
    assert_eq!(refused.status.code(), Some(24), "{said}");
    assert!(said.contains("550 5.1.1 "), "{said}");
}

#[test]
fn curl_sends_and_fetches_the_same_bytes() {
    let Some(curl) = tools::get("curl_sends_and_fetches_the_same_bytes", "curl", "usr/bin/curl").unwrap() else { return };
    let instance = instance();
    let file = instance.dir().join("letter");
    std::fs::write(&file, LETTER.replace('\n', "\r\n")).unwrap();
    let curl = || {
        let mut command = curl.command();
        command.args(["--silent", "--show-error", "--max-time", "60"]);
        command
    };
    let smtp = format!("smtp://127.0.0.1:{}/client.example.test", instance.port(25));
    let send = |to: &[&str]| {
        let mut command = curl();
        command.args(["--url", &smtp, "--mail-from", "a@elsewhere.test", "--upload-file"]).arg(&file);
        command.args(to.iter().flat_map(|to| ["--mail-rcpt", to]));
        command
    };
    succeeds(&mut send(&["bob@example.test", "carol@example.test"]));
    // 55: a command was refused.
    assert_eq!(send(&["nobody@example.test"]).output().unwrap().status.code(), Some(55));
    instance.wait_mail("carol@example.test", 1).unwrap();
    instance.wait_mail("bob@example.test", 1).unwrap();
    let pop3 = |path: &str, more: &[&str]| {
        let mut command = curl();
        command.args(["--url", &format!("pop3://127.0.0.1:{}/{path}", instance.port(110))]);
        command.args(["--user", "bob@example.test:bob-password"]).args(more);
        command
    };
    let list = succeeds(&mut pop3("", &[])).stdout;
    let letter = succeeds(&mut pop3("1", &[])).stdout;
    assert_eq!(String::from_utf8(list).unwrap(), format!("1 {}\r\n", letter.len()), "LIST tells the size in octets");
    let letter = String::from_utf8(letter).unwrap();
    assert!(letter.starts_with("Return-Path: <a@elsewhere.test>\r\nDelivered-To: bob@example.test\r\nReceived: "), "{letter}");
    assert!(letter.ends_with(&LETTER.replace('\n', "\r\n")), "{letter}");
    succeeds(&mut pop3("1", &["--request", "DELE", "--head"]));
    let list = succeeds(&mut pop3("", &[])).stdout;
    assert_eq!(list.trim_ascii(), b"", "it is deleted");
    let wrong = pop3("", &["--user", "bob@example.test:wrong"]).output().unwrap();
    // 67: the login was refused.
    assert_eq!(wrong.status.code(), Some(67), "{}", String::from_utf8_lossy(&wrong.stderr));
}

#[test]
fn smtp_source_of_postfix_gets_everything_delivered() {
    let name = "smtp_source_of_postfix_gets_everything_delivered";
    let Some(source) = tools::get(name, "postfix", "usr/sbin/smtp-source").unwrap() else { return };
    let instance = instance();
    let server = format!("127.0.0.1:{}", instance.port(25));
    let runs: [&[&str]; 3] =
        [&["-m", "60", "-s", "6", "-l", "4096"], &["-m", "20", "-s", "2", "-d"], &["-m", "1", "-l", "3000000"]];
    for run in runs {
        let mut command = source.command();
        command.args(run).args(["-f", "a@elsewhere.test", "-t", "bob@example.test", "-M", "client.example.test", &server]);
        succeeds(&mut command);
    }
    let letters = instance.wait_mail("bob@example.test", 81).unwrap();
    assert!(letters.iter().all(|letter| letter.starts_with("Return-Path: <a@elsewhere.test>\nDelivered-To: bob@example.test\n")));
    let large = letters.iter().filter(|letter| letter.len() > 2_900_000).count();
    assert_eq!(large, 1);
    instance.wait_empty().unwrap();
}

#[test]
fn fetchmail_fetches_all_and_leaves_nothing() {
    let name = "fetchmail_fetches_all_and_leaves_nothing";
    if !is_root() && tools::must(Command::new("id").arg("-un")).is_err() {
        return skip(name, "fetchmail asks for a name for the caller's uid");
    }
    let Some(fetchmail) = tools::get(name, "fetchmail", "usr/bin/fetchmail").unwrap() else { return };
    let instance = instance();
    for subject in ["one", "two", "three"] {
        let letter = format!("Subject: {subject}\n\n.text\nof {subject}\n");
        instance.smtp().unwrap().send("a@elsewhere.test", &["bob@example.test"], &letter).unwrap();
    }
    instance.wait_mail("bob@example.test", 3).unwrap();
    let (config, got) = (instance.dir().join("fetchmailrc"), instance.dir().join("got"));
    std::fs::write(
        &config,
        format!(
            "poll 127.0.0.1 protocol pop3 port {} uidl no dns\n  username \"bob@example.test\" password \"bob-password\"\n  \
             sslproto \"\" fetchall no rewrite mda \"cat >> {}\"\n",
            instance.port(110),
            got.display()
        ),
    )
    .unwrap();
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600)).unwrap();
    let fetch = || {
        let mut command = fetchmail.command();
        command.arg("-f").arg(&config).args(["--invisible", "--nosyslog", "-i"]).arg(instance.dir().join("ids"));
        command.env("HOME", instance.dir()).env("FETCHMAILHOME", instance.dir());
        command
    };
    succeeds(&mut fetch());
    let all = std::fs::read_to_string(&got).unwrap();
    for subject in ["one", "two", "three"] {
        assert!(all.contains(&format!("Subject: {subject}\n\n.text\nof {subject}\n")), "{all}");
    }
    assert_eq!(all.matches("Delivered-To: bob@example.test\n").count(), 3);
    // fetchmail(1): 1 is "no mail".
    assert_eq!(fetch().output().unwrap().status.code(), Some(1));
}
