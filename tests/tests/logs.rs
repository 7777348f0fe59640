//! What the log says: the classic lines, lines of sessions and refusals, all formats, and `qmail log`, which tells the story again.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use serde_json::Value;
use std::collections::HashMap;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use system_tests::instance::feed;
use system_tests::peer::Event;
use system_tests::{Instance, Peer, facts, wait_for};

const LETTER: &str = "From: ann@example.test\nSubject: three\n\nText.\n";
const ANN: &str = "ann@example.test";
const BOB: &str = "bob@example.test";
const TO: [&str; 3] = [BOB, "later@elsewhere.test", "never@elsewhere.test"];

/// A mail host that takes nothing: one recipient later, the other never. Its words are no text for a terminal.
fn peer() -> Peer {
    Peer::start("127.0.0.1:0", |event| match event {
        Event::Command(command) if command.contains("later@") => Some("450 4.2.0 not \x1b[31mnow"),
        Event::Command(command) if command.contains("never@") => Some("550 5.1.1 nobody\u{e9}\x07"),
        _ => None,
    })
    .unwrap()
}

fn instance(peer: &Peer, control: &[(&str, &str)]) -> Instance {
    let route = peer.route("elsewhere.test");
    let control: Vec<_> =
        [("relayclients", "127.0.0.0/8\n"), ("smtproutes", &route)].into_iter().chain(control.iter().copied()).collect();
    let instance = Instance::started(&control).unwrap();
    instance.virtual_domain("example.test", &["ann", "bob"]).unwrap();
    instance
}

/// One letter to the three, and what a stranger's bytes can do; waits until all that can happen has happened. The number of the
/// letter.
fn traffic(instance: &Instance) -> u64 {
    instance.smtp().unwrap().send(ANN, &TO, LETTER).unwrap();
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO \x1b[2Jhost", "").unwrap();
    smtp.ask("MAIL FROM:<x\x07y@example.test>").unwrap();
    smtp.must("MAIL FROM:<x@example.test>", "250").unwrap();
    smtp.ask("RCPT TO:<\"no body\"@example.test>").unwrap();
    smtp.must("QUIT", "221").unwrap();
    instance.wait_mail(BOB, 1).unwrap();
    instance.pop3(BOB).unwrap().must("QUIT").unwrap();
    let stats = || instance.json(&["queue", "stats"]).ok().filter(|stats| stats["deferred"] == 1).map(drop);
    wait_for("a deferral", stats).unwrap();
    let list = instance.json(&["queue", "list"]).unwrap();
    list[0]["id"].as_u64().unwrap()
}

/// Ends the letter: the administrator gives it up.
fn give_up(instance: &Instance, id: u64) {
    instance.must(&["queue", "remove", &id.to_string()]).unwrap();
    instance.wait_empty().unwrap();
}

fn story(instance: &Instance, args: &[&str], log: &[u8]) -> Output {
    let args: Vec<&str> = ["log", "--file", "-", "--json"].into_iter().chain(args.iter().copied()).collect();
    feed(&mut instance.qmail(&args), log).unwrap()
}

fn objects(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Looks at the story of the letter of [`traffic`], whatever format it was read from.
fn check_story(instance: &Instance, id: u64, log: &[u8], has_times: bool) {
    let output = story(instance, &[&id.to_string()], log);
    assert!(output.status.success(), "{output:?}");
    let all = objects(&output);
    let [story] = &all[..] else { panic!("{all:?}") };
    assert_eq!((&story["message"], &story["sender"], &story["complete"]), (&id.into(), &ANN.into(), &true.into()));
    let accepted = &story["accepted"];
    assert_eq!(
        (&accepted["process"], &accepted["remote"], &accepted["helo"]),
        (&"qmail-smtpd".into(), &"127.0.0.1".into(), &"client.example.test".into()),
        "{story}"
    );
    assert_eq!((&accepted["recipients"], &accepted["qp"]), (&3.into(), &story["qp"]));
    let results: HashMap<&str, &str> = story["deliveries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|delivery| (delivery["recipient"].as_str().unwrap(), delivery["status"].as_str().unwrap()))
        .collect();
    assert_eq!(results, HashMap::from([(TO[0], "success"), (TO[1], "deferral"), (TO[2], "failure")]), "{story}");
    assert_eq!(story["time"].is_string(), has_times, "{story}");
    // All of an address: the refusals, too.
    let of_ann = objects(&self::story(instance, &["ANN@example.test"], log));
    assert!(of_ann.iter().any(|item| item["message"] == id), "{of_ann:?}");
    let refused = objects(&self::story(instance, &["no body@example.test"], log));
    let refusal = refused.iter().map(|item| &item["refusal"]).find(|refusal| refusal["recipient"] == "no body@example.test");
    assert!(refusal.unwrap()["reply"].as_str().unwrap().starts_with('5'), "{refused:?}");
    let none = self::story(instance, &["1"], log);
    assert_eq!((none.status.code(), none.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&none.stderr).contains("there is no message 1 in the log"));
}

/// No byte of a stranger that is more than a letter.
fn check_bytes(log: &[u8]) {
    assert!(log.iter().all(|b| *b == b'\n' || (32..=126).contains(b)), "{}", log.escape_ascii());
}

#[test]
fn the_classic_log_tells_the_whole_story() {
    let peer = peer();
    let instance = instance(&peer, &[]);
    let id = traffic(&instance);
    let log = instance.log().into_bytes();
    check_bytes(&log);
    check_story(&instance, id, &log, false);
    // As multilog, and as rsyslog would have written it.
    let stamped = |stamp: &str| {
        let lines = instance.log();
        lines.lines().map(|line| format!("{stamp} {line}\n")).collect::<String>().into_bytes()
    };
    check_story(&instance, id, &stamped("@400000006925660a075bca00"), true);
    check_story(&instance, id, &stamped("2025-11-25T08:05:09.123+01:00 mx qmail-start[1]:"), true);
    // Bytes that are no log stop nothing.
    let mut broken = b"\0\xff\x1b{\"event\":\n{\n".to_vec();
    broken.extend_from_slice(&[b'x'; 200_000]);
    broken.push(b'\n');
    broken.extend_from_slice(&log);
    check_story(&instance, id, &broken, false);
    // For people; a terminal obeys nothing in it.
    let shown = instance.with_input(&["log", "--file", "-", &id.to_string()], &instance.log()).unwrap();
    assert!(
        shown.contains("accepted by qmail-smtpd: remote=127.0.0.1 helo=client.example.test") && shown.contains("deferral"),
        "{shown}"
    );
    assert!(!shown.contains('\x1b') && shown.contains("not ended"), "{shown}");
    let counted: Value =
        serde_json::from_str(&instance.with_input(&["log", "--stats", "--file", "-", "--json"], &instance.log()).unwrap())
            .unwrap();
    assert_eq!((&counted["success"], &counted["failure"], &counted["deferral"]), (&1.into(), &1.into(), &1.into()), "{counted}");
}

#[test]
fn text_and_json_tell_it_too_and_sighup_changes_between_them() {
    let peer = peer();
    let instance = instance(&peer, &[("logformat", "json\n")]);
    let id = traffic(&instance);
    let log = instance.log();
    check_bytes(log.as_bytes());
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_message = |event: &str| lines.iter().filter(|line| line["event"] == event && line["message"] == id).count();
    let counts = ["new", "info", "accepted", "start", "delivery"].map(of_message);
    assert_eq!(counts, [1, 1, 1, 3, 3], "every line of a message has its number:\n{log}");
    assert!(lines.iter().all(|line| line["time"].is_string() && line["process"].is_string() && line["pid"].is_u64()));
    check_story(&instance, id, log.as_bytes(), true);
    // Another format from now on.
    instance.control("logformat", "text\n").unwrap();
    facts::signal(instance.pid(), Signal::HUP);
    wait_for("a line of text", || {
        instance.log().lines().any(|line| line.ends_with("the new configuration is in use")).then_some(())
    })
    .unwrap();
    let before = instance.log().len();
    let second = traffic_again(&instance);
    let text = instance.log().split_off(before);
    assert!(text.lines().all(|line| line.get(26..27) == Some("Z") && line.contains("]: ")), "{text}");
    let output = story(&instance, &[&second.to_string()], text.as_bytes());
    assert_eq!(objects(&output)[0]["deliveries"][0]["status"], "success", "{text}");
    // A format that is none changes nothing.
    instance.control("logformat", "xml\n").unwrap();
    facts::signal(instance.pid(), Signal::HUP);
    instance.wait_log("Z qmail-start[").unwrap();
    instance.wait_log("the new log format is not used: ").unwrap();
    let checked = instance.qmail(&["check"]).output().unwrap();
    assert!(String::from_utf8_lossy(&checked.stdout).contains("`xml` is no format"), "{checked:?}");
    give_up(&instance, id);
}

/// A letter to bob alone, from beginning to end.
fn traffic_again(instance: &Instance) -> u64 {
    let known = instance.log().matches(" end msg ").count();
    instance.smtp().unwrap().send(ANN, &[BOB], LETTER).unwrap();
    wait_for("the end", || (instance.log().matches(" end msg ").count() > known).then_some(())).unwrap();
    let log = instance.log();
    let end = log.lines().rfind(|line| line.contains(" end msg ")).unwrap();
    end.rsplit(' ').next().unwrap().parse().unwrap()
}

/// A socket that plays journald below the instance's root.
#[test]
fn journald_gets_fields_and_standard_error_what_it_does_not_take() {
    let peer = peer();
    let mut instance = instance(&peer, &[]);
    instance.stop().unwrap();
    let before = instance.log().len();
    instance.control("logformat", "journal\n").unwrap();
    let dir = instance.root.join("run/systemd/journal");
    std::fs::create_dir_all(&dir).unwrap();
    let journald = UnixDatagram::bind(dir.join("socket")).unwrap();
    journald.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let entries: Arc<Mutex<Vec<HashMap<String, String>>>> = Arc::default();
    let heard = Arc::clone(&entries);
    std::thread::spawn(move || {
        let mut datagram = vec![0; 64 * 1024];
        // Until the socket is closed by the end of the test's process.
        loop {
            let Ok(len) = journald.recv(&mut datagram) else { continue };
            let text = String::from_utf8(datagram[..len].to_vec()).unwrap();
            let fields = text.lines().map(|field| field.split_once('=').unwrap());
            heard.lock().unwrap().push(fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
        }
    });
    instance.start().unwrap();
    let id = traffic(&instance).to_string();
    let result = |recipient: &str, status: &str| {
        let all = entries.lock().unwrap().clone();
        let has = |entry: &HashMap<String, String>, key: &str, value: &str| entry.get(key).is_some_and(|found| found == value);
        all.into_iter().find(|entry| {
            has(entry, "QMAIL_MESSAGE_ID", &id) && has(entry, "QMAIL_RECIPIENT", recipient) && has(entry, "QMAIL_STATUS", status)
        })
    };
    for (recipient, status, priority) in [(TO[0], "success", "6"), (TO[1], "deferral", "6"), (TO[2], "failure", "5")] {
        let entry = wait_for(&format!("the entry of {recipient}"), || result(recipient, status)).unwrap();
        assert_eq!((entry["SYSLOG_IDENTIFIER"].as_str(), entry["PRIORITY"].as_str()), ("qmail-send", priority));
        assert!(entry["MESSAGE"].starts_with("delivery "), "{entry:?}");
    }
    let accepted = || {
        let all = entries.lock().unwrap();
        all.iter()
            .any(|entry| entry.get("QMAIL_EVENT").is_some_and(|event| event == "accepted") && entry["QMAIL_SENDER"] == ANN)
            .then_some(())
    };
    wait_for("the entry of the acceptance", accepted).unwrap();
    // As journalctl prints them.
    let journal: String = entries
        .lock()
        .unwrap()
        .iter()
        .map(|entry| {
            let mut object: serde_json::Map<String, Value> =
                entry.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
            object.insert("__REALTIME_TIMESTAMP".to_owned(), "1764057909000000".into());
            format!("{}\n", Value::Object(object))
        })
        .collect();
    check_story(&instance, id.parse().unwrap(), journal.as_bytes(), true);
    assert!(!instance.log()[before..].contains("new msg"), "all went to journald:\n{}", instance.log());
    // Without it the classic lines are back.
    std::fs::remove_file(dir.join("socket")).unwrap();
    drop(UnixDatagram::bind(dir.join("socket")).unwrap());
    instance.stop().unwrap();
    instance.start().unwrap();
    instance.smtp().unwrap().send(ANN, &[BOB], LETTER).unwrap();
    instance.wait_log("info msg ").unwrap();
}

#[test]
fn every_session_has_its_line() {
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    for _ in 0..3 {
        instance.smtp().unwrap().must("QUIT", "221").unwrap();
        // Gone without a word.
        drop(instance.smtp().unwrap());
        instance.pop3(BOB).unwrap().must("QUIT").unwrap();
        drop(TcpStream::connect(("127.0.0.1", instance.port(110))).unwrap());
    }
    let count = |service: &str, end: &str| {
        let line = format!(": session service={service} remote=127.0.0.1 end={end} ");
        instance.log().matches(&line).count()
    };
    let counts =
        || [("smtp", "quit"), ("smtp", "gone"), ("pop3", "quit"), ("pop3", "gone")].map(|(service, end)| count(service, end));
    wait_for("a line for each session", || (counts() == [3; 4]).then_some(()))
        .unwrap_or_else(|e| panic!("{e}\n{}", instance.log()));
    assert_eq!(instance.log().matches(": session ").count(), 12, "{}", instance.log());
    let line = instance.wait_log("service=pop3 remote=127.0.0.1 end=quit ").unwrap();
    assert!(line.contains(&format!(" user={BOB} failures=0")) && !line.contains(" in=0 "), "{line}");
    let maildrops = || (instance.log().matches(&format!(": maildrop user={BOB} end=quit seconds=")).count() == 3).then_some(());
    wait_for("a line of each mailbox", maildrops).unwrap_or_else(|e| panic!("{e}\n{}", instance.log()));
    let line = instance.wait_log(": maildrop user=").unwrap();
    assert!(line.ends_with(" messages=0 retrieved=0 bytes=0 deleted=0"), "{line}");
}

/// A message of a client names itself; whoever has only that name finds it, and the classic lines stay as they were.
#[test]
fn a_message_is_found_by_its_message_id() {
    let letter = "Message-ID: <three%1@example.test>\nFrom: ann@example.test\n\nText.\n";
    for (format, has_it) in [("json\n", true), ("text\n", true), ("classic\n", false)] {
        let instance = Instance::started(&[("logformat", format)]).unwrap();
        instance.virtual_domain("example.test", &["ann", "bob"]).unwrap();
        instance.smtp().unwrap().send(ANN, &[BOB], letter).unwrap();
        instance.wait_mail(BOB, 1).unwrap();
        instance.wait_empty().unwrap();
        let found = || {
            let output = story(&instance, &["<three%1@example.test>"], instance.log().as_bytes());
            let all = objects(&output);
            (all.len() == 1 && all[0]["ended"] == true).then(|| all[0].clone())
        };
        if has_it {
            let story = wait_for("the end of the story", found).unwrap_or_else(|e| panic!("{e}\n{}", instance.log()));
            assert_eq!((&story["sender"], &story["header_id"]), (&ANN.into(), &"<three_1@example.test>".into()), "{story}");
            assert_eq!(story["accepted"]["process"], "qmail-smtpd", "{story}");
        } else {
            let line = instance.wait_log("info msg ").unwrap();
            assert!(line.rsplit_once(" uid ").unwrap().1.bytes().all(|b| b.is_ascii_digit()), "{line}");
            assert_eq!(found(), None);
        }
    }
}

/// The name of a login is whatever a client says.
#[test]
fn a_login_cannot_write_into_the_log() {
    let instance = Instance::started(&[("logformat", "json\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let names = ["x service=pop3 user=bob@example.test", "\" event=\"login", "a\nnew msg 5", "qmail-send[1]: end msg 5"];
    for name in names {
        let mut smtp = instance.smtp().unwrap();
        smtp.must("EHLO client.example.test", "250").unwrap();
        let secret = wire::base64::encode(format!("\0{name}\0wrong").as_bytes());
        smtp.must(&format!("AUTH PLAIN {secret}"), "535").unwrap();
    }
    let failed = || {
        let lines: Vec<Value> = instance.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let failed: Vec<Value> = lines.into_iter().filter(|line| line["event"] == "login failed").collect();
        (failed.len() == names.len()).then_some(failed)
    };
    let failed = wait_for("a line for each login", failed).unwrap_or_else(|e| panic!("{e}\n{}", instance.log()));
    for (line, name) in failed.iter().zip(names) {
        assert_eq!((&line["service"], &line["process"]), (&"smtp".into(), &"qmail-auth".into()), "{line}");
        assert_eq!(line["user"], name.replace('\n', "\\x0a"), "{line}");
    }
}
