//! The service face: the real program, started as qmail-start does it, with a queue and a directory of our own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ipc::Message;
use ipc::queue::{Answer, Item};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use sys::spawn::{Child, Ended, Spawn};
use sys::{Received, Seqpacket};

/// A message that the queue has seen.
#[derive(Debug, Clone, Default, PartialEq)]
struct Seen {
    sender: String,
    flags: u32,
    recipients: Vec<String>,
    /// What is asked for, as the queue protocol names it.
    asked: Vec<String>,
    text: Vec<u8>,
    datagrams: usize,
    connection: usize,
}

struct System {
    dir: tempfile::TempDir,
    child: Child,
    lifeline: Option<OwnedFd>,
    port: u16,
    submission_port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    log: PathBuf,
}

/// What the queue says to a message, by the local part of its sender.
fn queue_says(sender: &str) -> Option<Answer> {
    match sender.split('@').next().unwrap() {
        "full" => Some(Answer::Temporary { text: b"4.3.1 the spool is full"[..].into() }),
        "spam" => Some(Answer::Permanent { text: b"5.7.1 no"[..].into() }),
        "dies" => None,
        _ => Some(Answer::Accepted { id: 9, pid: 42 }),
    }
}

impl System {
    fn start(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("etc/qmail/control");
        let run = dir.path().join("run/qmail");
        std::fs::create_dir_all(&control).unwrap();
        std::fs::create_dir_all(run.join("roles")).unwrap();
        std::fs::write(control.join("me"), "mx.example.org\n").unwrap();
        for (name, text) in files {
            std::fs::write(control.join(name), text).unwrap();
        }
        let run = std::fs::File::open(&run).unwrap();
        let queue = sys::seqpacket::listen(run.as_fd(), "roles/queue.sock").unwrap();
        let auth = sys::seqpacket::listen(run.as_fd(), "roles/auth.sock").unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        serve(queue, move |number, client| take_messages(number, &client, &sink));
        serve(auth, |_, client| answer_auth(&client));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let submission = TcpListener::bind("127.0.0.1:0").unwrap();
        let (lifeline_child, lifeline) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (ready, ready_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let log = dir.path().join("log");
        let log_file = std::fs::File::create(&log).unwrap();
        let spawn = Spawn::new(Path::new(env!("CARGO_BIN_EXE_qmail-smtpd"))).arg("--service").env("QMAIL_ROOT", dir.path());
        let spawn = spawn.stderr(log_file.as_fd()).fd("lifeline", lifeline_child.as_fd()).fd("ready", ready_child.as_fd());
        let spawn = spawn.fd("run", run.as_fd()).fd("listen:smtp:0", listener.as_fd());
        let child = spawn.fd("listen:submission:1", submission.as_fd()).start().unwrap();
        drop((lifeline_child, ready_child));
        let mut byte = [0];
        assert_eq!(rustix::io::read(&ready, &mut byte).unwrap(), 1, "{}", std::fs::read_to_string(&log).unwrap());
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let (port, submission_port) = (port(&listener), port(&submission));
        Self { dir, child, lifeline: Some(lifeline), port, submission_port, seen, log }
    }

    fn connect(&self) -> TcpStream {
        connect(self.port)
    }

    /// Sends it all at once and reads until the server closes.
    fn talk(&self, input: &[u8]) -> String {
        talk(self.connect(), input)
    }

    /// As [`System::talk`], on the port of submission.
    fn submit(&self, input: &str) -> String {
        talk(connect(self.submission_port), input.replace('\n', "\r\n").as_bytes())
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn wait_for_log(&self, line: &str, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.log().matches(line).count() < count {
            assert!(Instant::now() < deadline, "no {line:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn memory_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.pid.as_raw_nonzero());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn ended(&self) -> Ended {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.child.try_wait() {
                Some(ended) => return ended,
                None => assert!(Instant::now() < deadline, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        self.child.signal(rustix::process::Signal::KILL);
        let _ = self.child.wait();
        let _ = self.dir.path();
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    // Longer than a login may take to be judged.
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn talk(mut stream: TcpStream, input: &[u8]) -> String {
    let mut writing = stream.try_clone().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        let _ = writing.write_all(&input);
    });
    let mut replies = Vec::new();
    let _ = stream.read_to_end(&mut replies);
    writer.join().unwrap();
    String::from_utf8(replies).unwrap().replace("\r\n", "\n")
}

fn serve(listener: OwnedFd, each: impl Fn(usize, Seqpacket) + Send + Sync + 'static) {
    let each = Arc::new(each);
    std::thread::spawn(move || {
        for number in 0.. {
            let client = loop {
                if let Ok(client) = sys::seqpacket::accept(listener.as_fd()) {
                    break client;
                }
                std::thread::sleep(Duration::from_millis(2));
            };
            client.set_nonblocking(false).unwrap();
            let each = Arc::clone(&each);
            std::thread::spawn(move || each(number, client));
        }
    });
}

fn take_messages(number: usize, client: &Seqpacket, sink: &Mutex<Vec<Seen>>) {
    let mut buf = vec![0; ipc::DATAGRAM_LEN_MAX];
    let mut message = Seen::default();
    while let Ok(Received::Datagram(len, _)) = client.recv(&mut buf) {
        let mut commits = false;
        message.datagrams += 1;
        ipc::queue::items(&buf[..len], |item| match item {
            Item::Begin { sender, flags } => {
                message = Seen { sender: sender.to_string(), flags, connection: number, datagrams: 1, ..Seen::default() };
            }
            Item::Recipient(address) => message.recipients.push(address.to_string()),
            Item::Data(data) => message.text.extend_from_slice(data),
            Item::Commit => commits = true,
            asked => message.asked.push(format!("{asked:?}")),
        })
        .unwrap();
        if commits {
            let Some(answer) = queue_says(&message.sender) else { return };
            if matches!(answer, Answer::Accepted { .. }) {
                sink.lock().unwrap().push(std::mem::take(&mut message));
            }
            client.send(&answer.encode()).unwrap();
        }
    }
}

/// Senders: joe and bob… are their login's, li… has sent too much, te… cannot be told, si… is never answered; recipients of 3 are too many.
/// Recipients: joe… exists, no… does not, te… cannot be told, si… is never answered; everything else is not ours. Passwords: ok… is
/// right, te… cannot be judged, si… is never answered.
fn answer_auth(client: &Seqpacket) {
    use ipc::auth::{Answer, Directory, Limit, Permission, Request};
    let mut buf = vec![0; ipc::DATAGRAM_LEN_MAX];
    while let Ok(Received::Datagram(len, _)) = client.recv(&mut buf) {
        let answer = match Request::decode(&buf[..len]).unwrap() {
            Request::Recipient { id, address } | Request::Fits { id, address, .. } => {
                let verdict = match address.as_bytes().get(..2).unwrap_or_default() {
                    b"jo" => Directory::Mailbox {},
                    b"no" => Directory::NoMailbox {},
                    b"te" => Directory::Temporary {},
                    b"si" => continue,
                    _ => Directory::NotMine {},
                };
                Answer::Recipient { id, verdict }
            }
            Request::Login { id, service, login, password, remote } => {
                assert_eq!((&*service, remote), (&b"smtp"[..], Some("127.0.0.1".parse().unwrap())));
                match password.expose().get(..2).unwrap_or_default() {
                    b"ok" => Answer::LoggedIn { id, user: login.to_ascii_lowercase().into() },
                    b"te" => Answer::Unavailable { id, text: "down".into() },
                    b"si" => continue,
                    _ => Answer::Refused { id, pause_s: 1 },
                }
            }
            Request::SaslStart { id, mechanism, .. } => Answer::Challenge { id, exchange: 77, data: mechanism },
            Request::SaslStep { id, exchange: 77, response } if response.expose() == b"ok" => {
                Answer::LoggedIn { id, user: "joe@ours.example".into() }
            }
            Request::SaslStep { id, .. } => Answer::Refused { id, pause_s: 0 },
            Request::MaySend { id, login, address } => {
                assert!(login.ends_with(b"@ours.example"));
                let permission = match address.as_bytes().get(..2).unwrap_or_default() {
                    b"jo" | b"bo" => Permission::Yes {},
                    b"li" => Permission::Limited { limit: Limit::MessagesPerDay {} },
                    b"te" => Permission::Temporary {},
                    b"si" => continue,
                    _ => Permission::NotYours {},
                };
                Answer::Permission { id, permission }
            }
            Request::MaySubmit { id, recipients: 3, .. } => {
                Answer::Permission { id, permission: Permission::Limited { limit: Limit::RecipientsPerHour {} } }
            }
            Request::MaySubmit { id, .. } => Answer::Permission { id, permission: Permission::Yes {} },
            Request::MayRelay { id, address } => Answer::Relay { id, allowed: address.to_string() == "198.51.100.7" },
            Request::Route { .. } | Request::Apop { .. } | Request::Arrived { .. } => panic!("a request of others"),
        };
        let _ = client.send(&answer.encode());
    }
}

fn letter(sender: &str, text: &str) -> String {
    format!("MAIL FROM:<{sender}>\r\nRCPT TO:<joe@ours.example>\r\nDATA\r\n{text}\r\n.\r\n")
}

#[test]
fn letters_go_to_the_queue() {
    let system = System::start(&[]);
    let replies = system.talk(format!("EHLO me.example\r\n{}{}QUIT\r\n", letter("a@b", "one"), letter("", "two")).as_bytes());
    assert_eq!(replies.matches(" qp 42\n").count(), 2, "{replies}");
    let seen = system.seen();
    let text = String::from_utf8(seen[0].text.clone()).unwrap();
    assert!(text.starts_with("Received: from unknown (HELO me.example) (127.0.0.1)\n  by mx.example.org with ESMTP; "), "{text}");
    assert!(text.ends_with(" -0000\none\n"), "{text}");
    assert_eq!(
        (seen[0].sender.as_str(), &seen[0].recipients[..], seen[0].datagrams),
        ("a@b", &["joe@ours.example".to_owned()][..], 1)
    );
    assert_eq!(seen[0].connection, seen[1].connection, "connections are used again");
    system
        .wait_for_log(" helo=me.example messages=2 recipients=2 bytes=8 refused=0 refused_recipients=0 refused_messages=0\n", 1);
}

#[test]
fn what_is_asked_for_goes_on_to_the_queue() {
    let system = System::start(&[("dsn", "all\n"), ("mtpriority", "all\n")]);
    let letter = "MAIL FROM:<a@b> RET=HDRS ENVID=x+20y BY=-7;NT MT-PRIORITY=3\r\nRCPT TO:<joe@ours.example>\r\n\
        RCPT TO:<joan@ours.example> NOTIFY=SUCCESS ORCPT=rfc822;j\r\nDATA\r\n\r\n.\r\n";
    let replies = system.talk(format!("EHLO x\r\n{letter}QUIT\r\n").as_bytes());
    assert!(replies.contains("\n250-DSN\n") && replies.contains(" qp 42\n"), "{replies}");
    let asked = system.seen()[0].asked.join(" ");
    let (front, rest) = asked.split_once("DeliverBy(").unwrap();
    let (by, rest) = rest.split_once(" })").unwrap();
    assert!(by.ends_with("returns: false, traces: true, told: true"), "{by}");
    let asked = format!("{front}DeliverBy(AT){rest}");
    assert_eq!(
        asked,
        "Ret(Headers) Envid(Envid([120, 43, 50, 48, 121])) \
         DeliverBy(AT) Priority(Priority(0)) Notify(Notify(1)) Orcpt(Orcpt([114, 102, 99, 56, 50, 50, 59, 106]))"
    );
    let now_s = sys::clock::unix_s();
    joe(&system, &format!("MAIL FROM:<joe@ours.example> HOLDFOR=1000\n{}", "RCPT TO:<a@b>\nDATA\n\n.\n"));
    let held = system.seen()[1].asked[0].strip_prefix("HoldUntil(").unwrap().trim_end_matches(')').parse::<u64>().unwrap();
    assert!((now_s + 1000..now_s + 1060).contains(&held));
    joe(&system, &format!("MAIL FROM:<joe@ours.example>\n{}", "RCPT TO:<a@b>\nDATA\nMT-Priority: 8\n\n.\n"));
    assert_eq!(system.seen()[2].asked, ["Priority(Priority(8))"]);
    let strangers = System::start(&[]);
    let replies = strangers.talk(b"EHLO x\r\nMAIL FROM:<a@b> RET=HDRS\r\nQUIT\r\n");
    assert!(!replies.contains("DSN") && replies.contains("\n555 5.5.4 "), "{replies}");
    let replies = joe(&strangers, "EHLO x\nMAIL FROM:<joe@ours.example> RET=HDRS\n");
    assert!(replies.contains("\n250-DSN\n") && replies.contains("\n250 2.1.0 ok\n"), "{replies}");
}

fn plain(user: &str, password: &str) -> String {
    format!("AUTH PLAIN {}\n", wire::base64::encode(format!("\0{user}\0{password}").as_bytes()))
}

#[test]
fn who_logs_in_sends_anywhere_on_both_ports() {
    let system = System::start(&[]);
    let letter = "MAIL FROM:<joe@ours.example> XVERP\nRCPT TO:<far@away.example>\nDATA\n\none\n.\nQUIT\n";
    let whole = format!("EHLO me.example\n{}{letter}", plain("Joe@ours.example", "ok now"));
    for (number, replies) in [system.talk(whole.replace('\n', "\r\n").as_bytes()), system.submit(&whole)].iter().enumerate() {
        assert!(
            replies.contains(
                "\n250-AUTH SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN\n250 HELP\n235 2.7.0 welcome\n250 2.1.0 ok\n250 2.1.5 ok\n"
            ),
            "{replies}"
        );
        let seen = system.seen()[number].clone();
        assert_eq!((seen.sender.as_str(), &seen.recipients[..]), ("joe-@ours.example-@[]", &["far@away.example".to_owned()][..]));
        assert!(String::from_utf8(seen.text).unwrap().contains(" with ESMTPA; "));
    }
    system.wait_for_log(" user=joe@ours.example helo=me.example messages=", 2);
    let nobody = system.submit(&format!("EHLO me.example\n{letter}"));
    assert!(nobody.contains("\n530 5.7.0 log in first\n530 5.7.0 log in first\n530 5.7.0 log in first\n"), "{nobody}");
    assert_eq!(system.seen().len(), 2);
    assert!(!system.log().contains("ok now") && !system.log().contains("b2sg"), "{}", system.log());
}

/// A session of joe on submission; the replies behind the login.
fn joe(system: &System, input: &str) -> String {
    let replies = system.submit(&format!("EHLO me.example\n{}{input}QUIT\n", plain("joe@ours.example", "ok")));
    replies.split_once("\n235 2.7.0 welcome\n").unwrap_or_else(|| panic!("{replies}")).1.to_owned()
}

#[test]
fn who_is_logged_in_sends_as_himself() {
    let system = System::start(&[]);
    for (sender, reply) in [
        ("joe@ours.example", "250 2.1.0 ok"),
        ("", "250 2.1.0 ok"),
        ("ann@ours.example", "550 5.7.1 sorry, you may not send as that address"),
        ("limited@ours.example", "450 4.7.1 your account has sent too many messages within a day, try again later"),
        ("tell@ours.example", "451 4.3.0 cannot check that sender now, try again later"),
    ] {
        let replies = joe(&system, &format!("MAIL FROM:<{sender}>\n"));
        assert!(replies.starts_with(&format!("{reply}\n221 ")), "{replies}");
    }
    for (header, reply) in [
        ("From: joe@ours.example\n", "250 2.0.0 ok "),
        ("From: Joe <joe@ours.example>, bob@ours.example\nSender: joe@ours.example\n", "250 2.0.0 ok "),
        ("From: ann@ours.example\n", "550 5.7.1 sorry, you may not send as an address that From or Sender names\n"),
        ("From: joe@ours.example, ann@x\n", "550 5.7.1 sorry, you may not send as an address that From or Sender names\n"),
        (
            "From: joe@ours.example\nSender: ann@x\n",
            "550 5.7.1 sorry, you may not send as an address that From or Sender names\n",
        ),
        ("From: \"ann@x\" <joe@ours.example>\n", "550 5.7.1 sorry, you may not send as an address that From or Sender names\n"),
        ("From: joe@ours.example\nFrom: joe@ours.example\n", "550 5.7.1 sorry, it is not clear who wrote this: "),
        ("From: joe@ours.example (<ann@x>)\n", "550 5.7.1 sorry, it is not clear who wrote this: "),
        ("no header\n", "550 5.7.1 sorry, it is not clear who wrote this: "),
        ("From: tell@ours.example\n", "451 4.3.0 cannot check that header now, try again later\n"),
        ("From: limited@x\n", "450 4.7.1 your account has sent too many messages within a day, try again later\n"),
    ] {
        let before = system.seen().len();
        let replies = joe(&system, &letter("joe@ours.example", &format!("{header}\nbody")).replace("\r\n", "\n"));
        assert!(replies.contains(&format!("\n354 go ahead\n{reply}")), "{header}: {replies}");
        assert_eq!(system.seen().len() - before, usize::from(reply.starts_with('2')), "{header}");
    }
    let three = "MAIL FROM:<joe@ours.example>\nRCPT TO:<a@b>\nRCPT TO:<c@d>\nRCPT TO:<e@f>\nDATA\n\n.\n";
    let replies = joe(&system, three);
    assert!(replies.contains("\n450 4.7.1 your account has sent to too many recipients within an hour, "), "{replies}");
}

#[test]
fn a_submission_is_completed() {
    let system = System::start(&[("relayclients", "127.0.0.0/8\n")]);
    let header = "Subject: x\nBcc: secret@x\nReturn-Path: <z@z>\n";
    joe(&system, &letter("joe@ours.example", &format!("{header}\nbody")).replace("\r\n", "\n").repeat(2));
    let texts: Vec<String> = system.seen().into_iter().map(|seen| String::from_utf8(seen.text).unwrap()).collect();
    let mut ids = Vec::new();
    for text in &texts {
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("Received: from unknown (HELO me.example) (127.0.0.1)") && lines[1].contains(" with ESMTPA; ")
        );
        assert!(
            lines[2].starts_with("Date: ") && lines[3].starts_with("Message-ID: <") && lines[3].ends_with("@mx.example.org>")
        );
        assert_eq!(&lines[4..], ["From: <joe@ours.example>", "Subject: x", "", "body"]);
        ids.push(lines[3]);
    }
    assert!(ids.len() == 2 && ids[0] != ids[1]);
    // A network that may relay needs no login: completed on submission, but for an author; left alone on smtp.
    let replies = system.submit(&format!("{}QUIT\n", letter("ann@x", "Bcc: x\n\nbody").replace("\r\n", "\n")));
    assert!(replies.contains(" qp 42\n"), "{replies}");
    system.talk(format!("{}QUIT\r\n", letter("ann@x", "Bcc: x\r\n\r\nbody")).as_bytes());
    let seen = system.seen();
    let texts: Vec<String> = seen[2..].iter().map(|seen| String::from_utf8(seen.text.clone()).unwrap()).collect();
    assert!(
        texts[0].contains("\nDate: ") && texts[0].contains("\nMessage-ID: ") && texts[0].ends_with(">\n\nbody\n"),
        "{texts:?}"
    );
    assert!(!texts[0].contains("From:") && texts[1].ends_with(" -0000\nBcc: x\n\nbody\n"), "{texts:?}");
}

#[test]
fn binding_can_be_switched_off_and_the_client_hidden() {
    let system = System::start(&[("submission", "sender-binding=off\nhide-address=on\n")]);
    let replies = joe(&system, &letter("ann@x", "From: ann@x\nFrom: eve@y\n\nbody").replace("\r\n", "\n"));
    assert!(replies.contains(" qp 42\n"), "{replies}");
    let text = String::from_utf8(system.seen()[0].text.clone()).unwrap();
    assert!(text.starts_with("Received: from unknown (hidden)\n  by mx.example.org with ESMTPA; "), "{text}");
    assert!(
        !text.contains("127.0.0.1") && !text.contains("me.example\n") && text.contains("\nFrom: ann@x\nFrom: eve@y\n"),
        "{text}"
    );
}

#[test]
fn addresses_are_completed_before_they_are_judged() {
    let names = [("defaulthost", "ours.example\n"), ("defaultdomain", "example\n"), ("submission", "complete-addresses=on\n")];
    let system = System::start(&names);
    let text = "From: Joe <joe>\nTo: ann, bob@b.example\nCc: cy@x\nSubject: joe\n\nFrom: joe";
    assert!(joe(&system, &letter("joe@ours.example", text).replace("\r\n", "\n")).contains(" qp 42\n"));
    let seen = String::from_utf8(system.seen()[0].text.clone()).unwrap();
    let wanted =
        "From: Joe <joe@ours.example>\nTo: ann@ours.example, bob@b.example\nCc: cy@x.example\nSubject: joe\n\nFrom: joe\n";
    assert!(seen.ends_with(wanted), "{seen}");
    // Whoever is somebody only by what was completed is judged as that.
    let other = joe(&system, &letter("joe@ours.example", "From: eve\n\nbody").replace("\r\n", "\n"));
    assert!(other.contains("\n550 5.7.1 "), "{other}");
    // Two bytes become an address: there is a bound for that, too.
    let many = format!("To: {}\n\nbody", "a,a,a,a,a,\n ".repeat(5000));
    let many = joe(&system, &letter("joe@ours.example", &many).replace("\r\n", "\n"));
    assert!(many.contains("\n552 5.3.4 "), "{many}");
    // Without, they stay.
    let plain = System::start(&[("defaulthost", "ours.example\n")]);
    assert!(
        joe(&plain, &letter("joe@ours.example", "From: joe@ours.example\nTo: ann\n\nx").replace("\r\n", "\n"))
            .contains(" qp 42\n")
    );
    assert!(String::from_utf8_lossy(&plain.seen()[0].text).contains("\nTo: ann\n"));
}

#[test]
fn exchanges_are_relayed_with_their_number() {
    let system = System::start(&[("authmechanisms", "SCRAM-SHA-256\n")]);
    let b64 = |text: &str| wire::base64::encode(text.as_bytes());
    let exchange = |response: &str| format!("AUTH SCRAM-SHA-256\n{}\n", b64(response));
    let replies = system.submit(&format!("EHLO x\n{}{}MAIL FROM:<joe@ours.example>\nQUIT\n", exchange("no"), exchange("ok")));
    let challenge = b64("SCRAM-SHA-256");
    let wanted = format!(
        "250-AUTH SCRAM-SHA-256\n250 HELP\n334 {challenge}\n535 5.7.8 wrong name or password\n334 {challenge}\n235 2.7.0 welcome\n250 2.1.0 ok\n"
    );
    assert!(replies.contains(&wanted), "{replies}");
    system.wait_for_log(" user=joe@ours.example ", 1);
}

#[test]
fn logins_that_fail_cost_time_and_then_the_connection() {
    let system = System::start(&[]);
    let started = Instant::now();
    let tries =
        [("joe@x", "wrong"), ("joe@x", "ten"), ("no@x", "wrong"), ("joe@x", "ok")].map(|(user, password)| plain(user, password));
    let replies = system.submit(&format!("EHLO x\n{}", tries.concat()));
    let end = "250 HELP\n535 5.7.8 wrong name or password\n454 4.7.0 cannot check that login now, try again later\n\
        535 5.7.8 wrong name or password\n421 4.7.0 too many failed logins\n";
    assert!(replies.ends_with(end), "{replies}");
    assert!(started.elapsed() >= Duration::from_secs(2), "a second for each that is wrong");
    system.wait_for_log("remote=127.0.0.1 end=limit ", 1);
    let silent = system.submit(&format!("EHLO x\n{}NOOP\nQUIT\n", plain("joe@x", "silence")));
    assert!(silent.contains("\n454 4.7.0 cannot check that login now, try again later\n250 2.0.0 ok\n221 "), "{silent}");
}

#[test]
fn passwords_are_taken_from_named_networks_only() {
    let system = System::start(&[("authcleartext", "192.0.2.0/24\n")]);
    let replies = system.submit(&format!("EHLO x\n{}MAIL FROM:<a@b>\nQUIT\n", plain("joe@x", "ok")));
    assert!(!replies.contains("250-AUTH"), "{replies}");
    assert!(
        replies.contains("\n538 5.7.11 a password may not be sent over this connection, it is not encrypted\n530 5.7.0 "),
        "{replies}"
    );
    // Networks that may relay need no login to submit, and those that may not log in can still send to us on the other port.
    let named = System::start(&[("relayclients", "127.0.0.0/8\n"), ("authcleartext", "192.0.2.0/24\n")]);
    assert!(named.submit(&format!("{}QUIT\n", letter("a@b", "x").replace("\r\n", "\n"))).contains(" qp 42\n"));
    assert!(system.talk(format!("{}QUIT\r\n", letter("a@b", "x")).as_bytes()).contains(" qp 42\n"));
}

#[test]
fn what_the_queue_refuses_is_refused_with_its_words_and_nothing_is_lost() {
    let system = System::start(&[]);
    for (sender, reply) in [
        ("full@x", "452 4.3.1 the spool is full"),
        ("spam@x", "554 5.7.1 no"),
        ("dies@x", "451 4.3.0 the queue did not answer"),
        ("fine@x", "250 2.0.0 ok "),
    ] {
        let replies = system.talk(format!("{}QUIT\r\n", letter(sender, "x")).as_bytes());
        assert!(replies.contains(&format!("354 go ahead\n{reply}")), "{sender}: {replies}");
    }
    assert_eq!(system.seen().len(), 1);
    assert!(system.log().contains(" by=queue reply=\"452 4.3.1 the spool is full\"\n"));
    std::fs::remove_file(system.dir.path().join("run/qmail/roles/queue.sock")).unwrap();
    // The pooled connection still works; a second message at the same time finds no socket.
    let (mut one, mut two) = (system.connect(), system.connect());
    for stream in [&mut one, &mut two] {
        stream.write_all(letter("a@b", &"x".repeat(70_000)).strip_suffix(".\r\n").unwrap().as_bytes()).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    let mut ends = Vec::new();
    for stream in [&mut one, &mut two] {
        stream.write_all(b".\r\nQUIT\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        ends.push(text.contains("\r\n250 2.0.0 ok "));
        assert!(text.contains("\r\n250 2.0.0 ok ") || text.contains("\r\n451 4.3.0 the queue cannot be reached\r\n"), "{text}");
    }
    ends.sort_unstable();
    assert_eq!(ends, [false, true]);
}

#[test]
fn recipients_are_checked_together_and_who_is_not_answered_is_temporary() {
    let system = System::start(&[("relayclients", "192.0.2.0/24\n"), ("rcpthosts", "listed.example\n")]);
    let mut input = "MAIL FROM:<>\r\n".to_owned();
    let names = ["joe", "nobody", "tell", "far", "far@listed.example"];
    for n in 0..100 {
        input += &format!(
            "RCPT TO:<{}>\r\n",
            names[n % 5].split_once('@').map_or(format!("{}@x", names[n % 5]), |_| names[n % 5].to_owned())
        );
    }
    let started = Instant::now();
    let replies = system.talk(format!("{input}QUIT\r\n").as_bytes());
    let codes: Vec<&str> = replies.lines().skip(2).map(|line| &line[..9]).collect();
    let wanted = ["250 2.1.5", "550 5.1.1", "451 4.3.0", "553 5.7.1", "250 2.1.5"];
    assert_eq!(codes[..100], wanted.iter().cycle().take(100).copied().collect::<Vec<_>>()[..]);
    assert!(started.elapsed() < Duration::from_secs(4));
    let replies = system.talk(b"MAIL FROM:<>\r\nRCPT TO:<silent@x>\r\nRCPT TO:<silent@y>\r\nRCPT TO:<joe@x>\r\nQUIT\r\n");
    assert_eq!(replies.matches("\n451 4.3.0 cannot check that recipient now, try again later\n").count(), 1);
    assert!(replies.contains("\n250 2.1.5 ok\n221 ") && started.elapsed() < Duration::from_secs(15), "{replies}");
}

#[test]
fn a_large_message_is_handed_on_in_pieces() {
    let system = System::start(&[]);
    let line = "0123456789".repeat(7);
    let lines = 60_000;
    let text = format!("{line}\r\n").repeat(lines);
    let before = system.memory_kib();
    let replies = system.talk(format!("{}QUIT\r\n", letter("a@b", text.strip_suffix("\r\n").unwrap())).as_bytes());
    assert!(replies.contains("\n250 2.0.0 ok "), "{replies}");
    let seen = system.seen();
    assert!(seen[0].text.ends_with(format!("{line}\n").repeat(lines).as_bytes()));
    assert!(seen[0].datagrams > 100);
    let grown = system.memory_kib().saturating_sub(before);
    assert!(grown < 1024, "{grown} KiB for one session");
    // By BDAT, too, with the flags of the envelope.
    let bdat = format!(
        "MAIL FROM:<é@b> SMTPUTF8 BODY=8BITMIME\r\nRCPT TO:<joe@x>\r\nBDAT 3\r\na\r\nBDAT {} LAST\r\n{text}QUIT\r\n",
        text.len()
    );
    assert!(system.talk(bdat.as_bytes()).contains("\n250 2.0.0 3 bytes received\n250 2.0.0 ok "));
    let last = system.seen().pop().unwrap();
    assert_eq!(last.flags, ipc::queue::FLAG_EIGHT_BIT | ipc::queue::FLAG_SMTPUTF8);
    assert!(last.text.ends_with(format!("a\n{line}\n").as_bytes()) || last.text.ends_with(format!("{line}\n").as_bytes()));
}

#[test]
fn a_client_that_leaves_in_the_middle_leaves_nothing_behind() {
    let system = System::start(&[]);
    let whole = letter("a@b", &"x".repeat(200_000));
    for len in [30, 60, 1000, 150_000, whole.len() - 1] {
        let mut stream = system.connect();
        stream.write_all(&whole.as_bytes()[..len]).unwrap();
        drop(stream);
    }
    system.wait_for_log("remote=127.0.0.1 end=gone ", 5);
    assert_eq!(system.seen(), []);
}

fn greeting(stream: &TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[test]
fn sessions_have_bounds() {
    let system = System::start(&[("concurrencyincoming", "3\n")]);
    let held: Vec<TcpStream> = (0..3).map(|_| system.connect()).collect();
    assert!(held.iter().all(|stream| greeting(stream).starts_with("220 ")));
    assert_eq!(greeting(&system.connect()), "421 4.7.0 too many connections, try again later\r\n");
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !greeting(&system.connect()).starts_with("220 ") {
        assert!(Instant::now() < deadline);
    }
    assert!(system.log().contains("refused remote=127.0.0.1 reply=\"421 4.7.0 too many connections"));
}

#[test]
fn a_bound_of_an_address_that_is_written_down_holds_for_this_host_but_not_for_relay_clients() {
    for (files, refused) in [
        (&[("concurrencyincomingip", "2\n")][..], 1),
        (&[("concurrencyincomingip", "2\n"), ("relayclients", "127.0.0.0/8\n")], 0),
    ] {
        let system = System::start(files);
        let held: Vec<TcpStream> = (0..3).map(|_| system.connect()).collect();
        assert_eq!(held.iter().filter(|stream| greeting(stream).starts_with("421 4.7.0 ")).count(), refused);
    }
}

#[test]
fn who_is_cut_off_can_read_why() {
    let system = System::start(&[("brtlimit", "3\n")]);
    let input = format!("MAIL FROM:<>\r\n{}", "RCPT TO:<nobody@x>\r\n".repeat(100_000));
    let replies = system.talk(input.as_bytes());
    assert!(
        replies.ends_with("550 5.1.1 sorry, no mailbox here by that name\n421 4.7.0 too many unknown recipients\n"),
        "{replies}"
    );
    system.wait_for_log("remote=127.0.0.1 end=limit ", 1);
}

#[test]
fn every_reply_reaches_a_client_that_sends_on_or_has_shut_its_side_down() {
    let system = System::start(&[]);
    let whole = format!("{}QUIT\r\n", letter("a@b", "x"));
    for (input, end) in [
        (whole.clone(), "221 2.0.0 mx.example.org\r\n"),
        (letter("a@b", "x"), " qp 42\r\n"),
        ("MAIL FROM:<>\r\nRCPT TO:<nobody@x>\r\n".repeat(3), "550 5.1.1 sorry, no mailbox here by that name\r\n"),
        (format!("{whole}{}", "NOOP\r\n".repeat(300_000)), "221 2.0.0 mx.example.org\r\n"),
    ] {
        let mut stream = system.connect();
        let mut writing = stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            let _ = writing.write_all(input.as_bytes());
            let _ = writing.shutdown(std::net::Shutdown::Write);
        });
        let mut replies = String::new();
        stream.read_to_string(&mut replies).expect("no reset of the connection");
        writer.join().unwrap();
        assert!(replies.ends_with(end), "{replies}");
    }
}

#[test]
fn who_takes_no_reply_for_timeoutsmtpd_is_let_go() {
    let system = System::start(&[("timeoutsmtpd", "1\n")]);
    let mut stream = system.connect();
    let writer = std::thread::spawn(move || {
        // Until the connection is gone, or everything is full on both sides.
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        while stream.write_all(&b"HELP\r\n".repeat(10_000)).is_ok() {}
    });
    system.wait_for_log("remote=127.0.0.1 end=gone ", 1);
    writer.join().unwrap();
}

#[test]
fn an_idle_session_costs_little() {
    let system = System::start(&[]);
    let held: Vec<TcpStream> = (0..100).map(|_| system.connect()).collect();
    held.iter().for_each(|stream| assert!(greeting(stream).starts_with("220 ")));
    let before = system.memory_kib();
    // As many as this process's own limit of descriptors lets it hold.
    let mut more = Vec::new();
    for _ in 0..600 {
        let mut stream = system.connect();
        assert!(greeting(&stream).starts_with("220 "));
        stream.write_all(b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<joe@x>\r\n").unwrap();
        let mut buf = [0; 1024];
        while !String::from_utf8_lossy(&buf).contains("250 2.1.5 ok\r\n") {
            let len = stream.read(&mut buf[..]).unwrap();
            assert!(len > 0);
        }
        more.push(stream);
    }
    let each = system.memory_kib().saturating_sub(before) * 1024 / 600;
    assert!(each < 6 * 1024, "{each} bytes");
}

#[test]
fn the_end_waits_for_messages_under_way() {
    for by_signal in [false, true] {
        let mut system = System::start(&[]);
        let (idle, mut busy) = (system.connect(), system.connect());
        assert!(greeting(&idle).starts_with("220 "));
        busy.write_all(letter("a@b", "half").strip_suffix("\r\n.\r\n").unwrap().as_bytes()).unwrap();
        let mut reader = BufReader::new(busy.try_clone().unwrap());
        let mut line = String::new();
        while !line.starts_with("354") {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        if by_signal {
            system.child.signal(rustix::process::Signal::TERM);
        } else {
            system.lifeline = None;
        }
        assert_eq!(greeting(&idle), "421 4.3.2 going down, try again in a moment\r\n");
        busy.write_all(b"\r\n.\r\nNOOP\r\n").unwrap();
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(
            rest.starts_with("250 2.0.0 ok ") && rest.ends_with("\r\n421 4.3.2 going down, try again in a moment\r\n"),
            "{rest}"
        );
        assert_eq!(system.ended(), Ended::Code(0));
        assert_eq!(system.seen().len(), 1);
    }
}

/// Retires the server and returns when it accepts nobody any more.
fn retire(system: &System) {
    rustix::io::write(system.lifeline.as_ref().unwrap(), b"r").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", system.port)).is_ok() {
        assert!(Instant::now() < deadline, "it goes on to accept");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_retired_server_ends_with_its_last_session_which_hears_nothing_of_it() {
    let system = System::start(&[]);
    let mut session = system.connect();
    session.write_all(b"EHLO c\r\n").unwrap();
    assert!(greeting(&session).starts_with("220 "));
    retire(&system);
    session.write_all(format!("{}{}QUIT\r\n", letter("a@b", "one"), letter("a@b", "two")).as_bytes()).unwrap();
    let mut rest = String::new();
    session.read_to_string(&mut rest).unwrap();
    assert_eq!(
        (rest.matches(" qp 42").count(), rest.matches("\r\n221 ").count(), rest.matches("\r\n421 ").count()),
        (2, 1, 0),
        "{rest}"
    );
    assert_eq!(system.ended(), Ended::Code(0));
}

#[test]
fn a_retired_server_drains_when_its_lifeline_ends() {
    let mut system = System::start(&[]);
    let idle = system.connect();
    assert!(greeting(&idle).starts_with("220 "));
    retire(&system);
    system.lifeline = None;
    assert_eq!(greeting(&idle), "421 4.3.2 going down, try again in a moment\r\n");
    assert_eq!(system.ended(), Ended::Code(0));
}

#[test]
fn a_client_that_never_ends_its_message_is_left_behind_after_five_seconds() {
    let mut system = System::start(&[]);
    let mut busy = system.connect();
    busy.write_all(letter("a@b", "half").strip_suffix(".\r\n").unwrap().as_bytes()).unwrap();
    assert!(greeting(&busy).starts_with("220 "));
    let started = Instant::now();
    system.lifeline = None;
    assert_eq!(system.ended(), Ended::Code(0));
    assert!(started.elapsed() >= Duration::from_secs(4));
    assert_eq!(system.seen(), []);
}

#[test]
fn a_wrong_configuration_is_never_ready() {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("etc/qmail/control");
    std::fs::create_dir_all(&control).unwrap();
    std::fs::write(control.join("me"), "x.y\n").unwrap();
    std::fs::write(control.join("barelf"), "maybe\n").unwrap();
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let spawn = Spawn::new(Path::new(env!("CARGO_BIN_EXE_qmail-smtpd"))).arg("--service").env("QMAIL_ROOT", dir.path());
    assert_eq!(spawn.stderr(log.as_fd()).start().unwrap().wait(), Ended::Code(111));
    let text = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(
        text.starts_with("cannot start: ") && text.contains("control/barelf: `maybe` is neither reject nor normalize"),
        "{text}"
    );
}

/// Not a bound, since machines differ: prints what the worker does with everything around it on the same machine.
#[test]
fn throughput_is_printed() {
    let system = System::start(&[]);
    let body = format!("Subject: x\r\n\r\n{}", "0123456789012345678901234567890123456789012345678901234567890123\r\n".repeat(62));
    let session = format!("EHLO x\r\n{}QUIT\r\n", letter("a@b", body.trim_end()).repeat(100));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(system.talk(session.as_bytes()).matches(" qp 42\n").count(), 100));
        }
    });
    let elapsed = started.elapsed();
    let by_connection: HashMap<usize, usize> = system.seen().iter().fold(HashMap::new(), |mut counts, seen| {
        *counts.entry(seen.connection).or_default() += 1;
        counts
    });
    println!("800 messages of 4 KiB in {elapsed:?} over {} queue connections", by_connection.len());
    assert_eq!(system.seen().len(), 800);
}

/// A listener of each service behind a proxy of its own, of which only the first is this host.
const PROXIES: &str = "smtp 127.0.0.1:1 proxy=10.0.0.1,127.0.0.1\nsubmission 127.0.0.1:2 proxy=127.0.0.2\n";

fn v1(client: &str) -> String {
    format!("PROXY TCP4 {client} 203.0.113.9 12345 25\r\n")
}

const FAR: &str = "EHLO c.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<x@far.example>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n";

#[test]
fn behind_a_proxy_the_address_it_tells_counts() {
    let system = System::start(&[("listen", PROXIES), ("relayclients", "192.0.2.0/24\n"), ("concurrencyincomingip", "1\n")]);
    let relays = |header: &[u8]| {
        let replies = system.talk(&[header, FAR.as_bytes()].concat());
        assert!(replies.starts_with("220 "), "{replies}");
        let may_log_in = replies.contains("250-AUTH ");
        (replies.contains(" qp 42"), may_log_in)
    };
    let v2 = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f"[..], &[192, 0, 2, 8, 203, 0, 113, 9, 1, 2, 0, 25], b"\x04\0\0"].concat();
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for (header, may) in [
        (v1("192.0.2.7").as_bytes(), (true, false)),
        (v2.as_slice(), (true, false)),
        (v1("203.0.113.7").as_bytes(), (false, false)),
        (b"PROXY UNKNOWN\r\n", (false, true)),
        (local, (false, true)),
    ] {
        assert_eq!(relays(header), may, "{}", header.escape_ascii());
    }
    let texts: Vec<_> = system.seen().iter().map(|seen| String::from_utf8(seen.text.clone()).unwrap()).collect();
    assert!(texts[0].contains("(HELO c.example) (192.0.2.7)\n") && texts[1].contains("(192.0.2.8)\n"), "{texts:?}");
    system.wait_for_log("remote=203.0.113.7 end=quit ", 1);
    // The bound of an address is the client's, not the proxy's, and a header may come in pieces.
    let mut open: Vec<TcpStream> = (0..3).map(|_| system.connect()).collect();
    for (stream, client) in open.iter_mut().zip(["203.0.113.1", "203.0.113.2", "203.0.113.1"]) {
        for byte in v1(client).into_bytes() {
            stream.write_all(&[byte]).unwrap();
        }
    }
    let greetings = open.iter_mut().map(|stream| {
        let mut code = [0; 4];
        stream.read_exact(&mut code).unwrap();
        String::from_utf8(code.to_vec()).unwrap()
    });
    let mut greetings: Vec<_> = greetings.collect();
    greetings.sort();
    assert_eq!(greetings, ["220 ", "220 ", "421 "], "two clients, one of them twice");
}

#[test]
fn nobody_gets_in_past_the_proxies() {
    let system = System::start(&[("listen", PROXIES), ("relayclients", "127.0.0.0/8\n")]);
    for input in ["EHLO x\r\n", "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\nEHLO x\r\n", "\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0EHLO x\r\n"] {
        assert_eq!(system.talk(input.as_bytes()), "", "{input}");
    }
    system.wait_for_log("closed remote=127.0.0.1 reason=\"no header of the PROXY protocol\"", 3);
    drop(system.connect());
    system.wait_for_log("closed remote=127.0.0.1 reason=\"the proxy left within its header\"", 1);
    // Here a header from this host is worth nothing, though its networks may relay.
    assert_eq!(talk(connect(system.submission_port), format!("{}{FAR}", v1("192.0.2.7")).as_bytes()), "");
    system.wait_for_log("closed remote=127.0.0.1 reason=\"not one of the proxies that control/listen names\"", 1);
}

#[test]
fn a_proxy_that_says_nothing_is_closed() {
    let system = System::start(&[("listen", PROXIES)]);
    let mut silent = system.connect();
    silent.write_all(b"PROXY TCP4 ").unwrap();
    let start = Instant::now();
    assert_eq!(silent.read(&mut [0; 10]).unwrap(), 0);
    assert!(start.elapsed() >= Duration::from_secs(4));
    system.wait_for_log("closed remote=127.0.0.1 reason=\"the proxy's header did not come in time\"", 1);
}

#[test]
fn xclient_tells_for_whom_a_trusted_program_stands() {
    let files = [("xclient", "127.0.0.1\n"), ("relayclients", "192.0.2.0/24\n"), ("popbeforesmtp", "10\n")];
    let system = System::start(&files);
    for (told, relays) in [
        ("ADDR=192.0.2.7 NAME=a.example", true),
        ("ADDR=198.51.100.7", true),
        ("ADDR=203.0.113.7", false),
        ("ADDR=203.0.113.7 LOGIN=joe+40ours.example", true),
        ("ADDR=[UNAVAILABLE]", false),
    ] {
        // Who is logged in sends as himself.
        let letter = match told.contains("LOGIN=") {
            true => {
                FAR.replace("a@b.example", "joe@ours.example").replace("\r\nx\r\n", "\r\nFrom: joe@ours.example\r\n\r\nx\r\n")
            }
            false => FAR.to_owned(),
        };
        let replies = system.talk(format!("EHLO p\r\nXCLIENT {told}\r\n{letter}").as_bytes());
        assert!(replies.contains("\n250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT\n"), "{replies}");
        assert_eq!(replies.matches("220 mx.example.org").count(), 2, "{replies}");
        assert_eq!(replies.contains(" qp 42"), relays, "{told}: {replies}");
    }
    let texts: Vec<_> = system.seen().iter().map(|seen| String::from_utf8(seen.text.clone()).unwrap()).collect();
    assert!(texts[0].starts_with("Received: from a.example (HELO c.example) (192.0.2.7)\n"), "{texts:?}");
    system.wait_for_log("xclient remote=203.0.113.7 by=127.0.0.1\n", 2);
    system.wait_for_log("user=joe@ours.example", 1);
    let replies = System::start(&[]).talk(format!("EHLO p\r\nXCLIENT ADDR=192.0.2.7\r\n{FAR}").as_bytes());
    assert!(!replies.contains("XCLIENT") && replies.contains("502 5.5.1"), "{replies}");
}

#[test]
fn who_opened_a_mailbox_may_relay_where_that_is_said() {
    for (minutes, relays) in [("10\n", true), ("0\n", false), ("", false)] {
        let system = System::start(&[("listen", PROXIES), ("popbeforesmtp", minutes)]);
        for (client, may) in [("198.51.100.7", relays), ("198.51.100.8", false)] {
            let replies = system.talk(format!("{}{FAR}", v1(client)).as_bytes());
            assert_eq!(replies.contains(" qp 42"), may, "{minutes:?} {client}: {replies}");
        }
    }
}
