//! The classic qmail-remote against scripted servers: the table in classic/remote.txt, what the DNS says of a host, and the addresses
//! that qmail-tcpto shows.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests fail by panic, too

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use system_tests::dns::{self, Record};
use system_tests::escaped::unescape;
use system_tests::instance::feed;
use system_tests::{Instance, PATIENCE, Peer, wait_for};

const LETTER: &str = "Subject: x\n\nhi\n";

#[derive(Default, Debug)]
struct Case {
    title: String,
    control: Vec<(String, String)>,
    without: Option<String>,
    host: Option<String>,
    sender: Option<String>,
    to: Vec<String>,
    nobody: bool,
    closed: bool,
    input: Option<Vec<u8>>,
    /// Where the connection comes from.
    from: Option<IpAddr>,
    script: Vec<(String, Vec<u8>)>,
    stdout: Vec<u8>,
}

fn cases(text: &str) -> Vec<Case> {
    let mut out: Vec<Case> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        if key == "==" {
            out.push(Case { title: value.to_owned(), ..Case::default() });
            continue;
        }
        let case = out.last_mut().expect("a title");
        let text = || String::from_utf8(unescape(value)).unwrap();
        match key {
            "control" => {
                let (name, value) = value.split_once(' ').unwrap();
                case.control.push((name.to_owned(), String::from_utf8(unescape(value)).unwrap()));
            }
            "without" => case.without = Some(value.to_owned()),
            "host" => case.host = Some(text()),
            "sender" => case.sender = Some(text()),
            "to" => case.to.push(text()),
            "nobody" => case.nobody = true,
            "closed" => case.closed = true,
            "in" => case.input = Some(unescape(value)),
            "from" => case.from = Some(value.parse().unwrap()),
            "greet" => {
                for (key, value) in [("say", "220 hi"), ("hear", "EHLO me.example"), ("say", "250 h")] {
                    case.script.push((key.to_owned(), value.as_bytes().to_vec()));
                }
            }
            "say" | "hear" | "body" | "close" | "hang" => case.script.push((key.to_owned(), unescape(value))),
            "stdout" => case.stdout = unescape(value),
            _ => panic!("{}: {line}", case.title),
        }
    }
    out
}

/// What went otherwise than the script has it.
type Trouble = Arc<Mutex<Vec<String>>>;

/// Follows the script on one connection; `is_over` is set when it has come to its end.
fn serve(stream: &TcpStream, script: &[(String, Vec<u8>)], trouble: &Trouble, is_over: &AtomicBool) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream.try_clone()?;
    let wrong = |text: String| trouble.lock().unwrap().push(text);
    for (step, text) in script {
        match step.as_str() {
            "say" => {
                let mut line: Vec<u8> = text.split(|b| *b == b'|').collect::<Vec<_>>().join(&b"\r\n"[..]);
                line.extend_from_slice(b"\r\n");
                writer.write_all(&line)?;
            }
            "hear" => {
                let mut line = Vec::new();
                reader.read_until(b'\n', &mut line)?;
                if !(line.starts_with(text) && line.ends_with(b"\r\n")) {
                    wrong(format!("wanted {}, heard {}", text.escape_ascii(), line.escape_ascii()));
                }
            }
            "body" => {
                let (mut body, mut line) = (Vec::new(), Vec::new());
                while line != b".\r\n" {
                    body.append(&mut line);
                    if reader.read_until(b'\n', &mut line)? == 0 {
                        wrong("the text has no end".to_owned());
                        break;
                    }
                }
                if body != *text {
                    wrong(format!("wanted the text {}, got {}", text.escape_ascii(), body.escape_ascii()));
                }
            }
            "hang" => {
                is_over.store(true, Ordering::SeqCst);
                // Until the other side gives up.
                let _ = reader.read_to_end(&mut Vec::new());
                return Ok(());
            }
            _ => {
                is_over.store(true, Ordering::SeqCst);
                return Ok(());
            }
        }
    }
    is_over.store(true, Ordering::SeqCst);
    let mut rest = String::new();
    reader.read_to_string(&mut rest)?;
    if !matches!(rest.as_str(), "" | "QUIT\r\n") {
        wrong(format!("heard more: {rest}"));
    }
    Ok(())
}

/// The report, and what went otherwise.
fn run(instance: &Instance, case: &Case) -> (Option<i32>, Vec<u8>, Vec<String>) {
    let root = instance.dir().join("classic");
    let _ = fs::remove_dir_all(&root);
    let control = root.join("etc/qmail/control");
    fs::create_dir_all(&control).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    for (name, text) in [("me", "me.example\n"), ("smtproutes", ":127.0.0.1:{port}\n")] {
        fs::write(control.join(name), text.replace("{port}", &port)).unwrap();
    }
    for (name, text) in &case.control {
        fs::write(control.join(name), text.replace("{port}", &port)).unwrap();
    }
    if let Some(name) = &case.without {
        fs::remove_file(control.join(name)).unwrap();
    }
    let (trouble, is_over) = (Trouble::default(), Arc::new(AtomicBool::new(case.script.is_empty())));
    let (script, told, over, from) = (case.script.clone(), Arc::clone(&trouble), Arc::clone(&is_over), case.from);
    let server = std::thread::spawn(move || {
        if script.is_empty() {
            return;
        }
        let (stream, peer) = listener.accept().unwrap();
        if from.is_some_and(|from| from != peer.ip()) {
            told.lock().unwrap().push(format!("comes from {peer}"));
        }
        if let Err(error) = serve(&stream, &script, &told, &over) {
            told.lock().unwrap().push(error.to_string());
        }
    });
    let mut command = Command::new(if case.closed { "/bin/sh".into() } else { instance.program("qmail-remote") });
    if case.closed {
        command.args(["-c", "exec \"$0\" \"$@\" <&-"]).arg(instance.program("qmail-remote"));
    }
    command.env_clear().env("QMAIL_ROOT", &root).arg(case.host.as_deref().unwrap_or("h.example"));
    command.arg(case.sender.as_deref().unwrap_or("s@x.example"));
    if !case.nobody {
        let to = if case.to.is_empty() { vec!["r@h.example".to_owned()] } else { case.to.clone() };
        command.args(to);
    }
    let output = feed(command.stderr(Stdio::piped()), case.input.as_deref().unwrap_or(LETTER.as_bytes())).unwrap();
    if !case.script.is_empty() && output.stdout.is_empty() {
        trouble.lock().unwrap().push("no report".to_owned());
    } else {
        server.join().unwrap();
    }
    if !is_over.load(Ordering::SeqCst) {
        trouble.lock().unwrap().push("the script is not over".to_owned());
    }
    let trouble = trouble.lock().unwrap().clone();
    (output.status.code(), output.stdout, trouble)
}

#[test]
fn every_case_byte_for_byte() {
    let cases = cases(include_str!("classic/remote.txt"));
    assert!(cases.len() >= 30, "{}", cases.len());
    let instance = Instance::new().unwrap();
    let mut failed = Vec::new();
    for case in &cases {
        let (code, stdout, trouble) = run(&instance, case);
        if code != Some(0) || stdout != case.stdout || !trouble.is_empty() {
            failed.push(format!(
                "== {}: exit {code:?} {trouble:?}\n  got      {}\n  expected {}",
                case.title,
                stdout.escape_ascii(),
                case.stdout.escape_ascii()
            ));
        }
    }
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// The report on a message for `r@HOST`.
fn report(instance: &Instance, host: &str) -> String {
    let mut command = Command::new(instance.program("qmail-remote"));
    command.env_clear().env("QMAIL_ROOT", &instance.root).args([host, "s@x.test", &format!("r@{host}")]);
    let output = feed(command.stderr(Stdio::inherit()), LETTER.as_bytes()).unwrap();
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stdout).unwrap()
}

/// With the system down a resolver of its own is asked, with it running, where the caller may, the system's.
#[test]
fn hosts_are_asked_for_with_and_without_the_system() {
    let peer = Peer::willing().unwrap();
    let zone = vec![
        ("null.test", Record::Mx(0, "")),
        ("self.test", Record::Mx(10, "here.test")),
        ("here.test", Record::A([127, 0, 0, 1])),
        ("empty.test", Record::Mx(10, "nowhere.test")),
        ("there.test", Record::A([127, 0, 0, 1])),
    ];
    let server = dns::start((Ipv4Addr::LOCALHOST, 0), zone).unwrap();
    let mut instance = Instance::new().unwrap();
    instance.control("resolvers", &format!("{server}\n")).unwrap();
    instance.control("smtproutes", &format!("there.test::{}\nbad.test:gone.test\n", peer.address.port())).unwrap();
    let myself = "DSorry. Although I'm listed as a best-preference MX or A for that host,\n\
        it isn't in my control/locals file, so I don't treat it as local. (#5.4.6)\n\0";
    for is_running in [false, true] {
        if is_running {
            instance.start().unwrap();
        }
        for (host, expected) in [
            ("gone.test", "DSorry, I couldn't find any host named gone.test. (#5.1.2)\n\0"),
            ("null.test", "DSorry, that domain does not accept mail. (#5.1.10)\n\0"),
            ("empty.test", "DSorry, I couldn't find a mail exchanger or IP address. (#5.4.4)\n\0"),
            ("self.test", myself),
            ("[127.0.0.1]", myself),
            ("bad.test", "ZSorry, I couldn't find any host by that name. (#4.1.2)\n\0"),
            ("there.test", "r\0K127.0.0.1 accepted message.\nRemote host said: 250 ok taken\n\0"),
        ] {
            assert_eq!(report(&instance, host), expected, "{host}, running: {is_running}");
        }
    }
    assert_eq!(peer.letters().len(), 2);
    instance.stop().unwrap();
    // Nobody answers there.
    instance.control("resolvers", "127.0.0.1:1\n").unwrap();
    assert_eq!(report(&instance, "gone.test"), "ZCNAME lookup failed temporarily. (#4.4.3)\n\0");
}

#[test]
fn what_could_not_be_connected_to_is_shown_and_forgotten() {
    let mut instance = Instance::new().unwrap();
    let ask = |instance: &Instance, name: &str| {
        let output = Command::new(instance.program(name)).env("QMAIL_ROOT", &instance.root).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for name in ["qmail-tcpto", "qmail-tcpok"] {
        assert_eq!(ask(&instance, name), (Some(111), String::new(), format!("{name}: fatal: not running\n")));
    }
    instance.control("smtproutes", ":127.0.0.1:1\n").unwrap();
    instance.start().unwrap();
    assert_eq!(ask(&instance, "qmail-tcpto"), (Some(0), String::new(), String::new()));
    let mut inject = Command::new(instance.program("qmail-inject"));
    inject.env("QMAIL_ROOT", &instance.root).args(["-fme@mail.example.test", "far@elsewhere.test"]);
    assert!(feed(&mut inject, LETTER.as_bytes()).unwrap().status.success());
    instance.wait_log("deferral: Sorry,_I_wasn't_able_to_establish_an_SMTP_connection._(#4.4.1)/").unwrap();
    let (code, shown, _) = ask(&instance, "qmail-tcpto");
    let ago =
        shown.strip_prefix("127.0.0.1 timed out ").and_then(|rest| rest.strip_suffix(" seconds ago; # recent timeouts: 1\n"));
    let ago: u64 = ago.unwrap_or_else(|| panic!("{shown}")).parse().unwrap();
    assert!(code == Some(0) && Duration::from_secs(ago) < PATIENCE, "{shown}");
    assert_eq!(ask(&instance, "qmail-tcpok"), (Some(0), String::new(), String::new()));
    assert_eq!(ask(&instance, "qmail-tcpto"), (Some(0), String::new(), String::new()));
    // An address that works is forgotten by itself.
    instance.must(&["queue", "retry", "--all"]).unwrap();
    wait_for("a second failure", || (!ask(&instance, "qmail-tcpto").1.is_empty()).then_some(())).unwrap();
    let peer = Peer::willing().unwrap();
    instance.control("smtproutes", &format!(":127.0.0.1:{}\n", peer.address.port())).unwrap();
    instance.retry_until_empty().unwrap();
    assert_eq!(ask(&instance, "qmail-tcpto"), (Some(0), String::new(), String::new()));
}

/// The uids (real, effective, saved, of files) of a program of root's that reads a message and hears a server.
fn uids_before_a_server(instance: &Instance, program: &str, root: &std::path::Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    fs::write(root.join("etc/qmail/control/smtproutes"), format!(":127.0.0.1:{}\n", server.port())).unwrap();
    fs::write(root.join("etc/qmail/control/qmqpservers"), format!("{server}\n")).unwrap();
    let mut command = Command::new(instance.program(program));
    command.env_clear().env("QMAIL_ROOT", root);
    // qmail-qmqpc reads its envelope from descriptor 1.
    let envelope = root.join("envelope");
    fs::write(&envelope, b"Fs@x.test\0Tr@h.test\0\0").unwrap();
    if program == "qmail-remote" {
        command.args(["h.test", "s@x.test", "r@h.test"]).stdout(Stdio::null());
    } else {
        command.stdout(fs::File::open(&envelope).unwrap());
    }
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // No end of the message: whose process reads it?
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(LETTER.as_bytes()).unwrap();
    let status = || fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let uids = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    wait_for("the program to leave root", || (!uids(&status()).starts_with("0 ")).then_some(())).unwrap();
    drop(stdin);
    let (mut server, _) = listener.accept().unwrap();
    let found = status();
    assert!(found.contains("Groups:\t \n") || found.contains("Groups:\t\n"), "{found}");
    let found = uids(&found);
    server.write_all(b"554 not here\r\n").unwrap();
    drop(server);
    child.wait().unwrap();
    found
}

#[test]
fn nothing_from_outside_is_read_as_root() {
    if !system_tests::is_root() {
        return system_tests::skip("nothing_from_outside_is_read_as_root", "needs root");
    }
    let instance = Instance::new().unwrap();
    let ids = fs::read_to_string(instance.root.join("etc/qmail/ids")).unwrap();
    let qmailr = ids.lines().find_map(|line| line.strip_prefix("qmailr ")?.split(' ').next()).unwrap();
    for program in ["qmail-remote", "qmail-qmqpc"] {
        assert_eq!(uids_before_a_server(&instance, program, &instance.root), [qmailr; 4].join(" "), "{program}");
    }
    // Where nothing was set up.
    let bare = instance.dir().join("bare");
    fs::create_dir_all(bare.join("etc/qmail/control")).unwrap();
    fs::write(bare.join("etc/qmail/control/me"), "me.example\n").unwrap();
    for program in ["qmail-remote", "qmail-qmqpc"] {
        assert_eq!(uids_before_a_server(&instance, program, &bare), ["65534"; 4].join(" "), "{program}");
    }
}
