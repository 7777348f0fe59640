//! The service faces: the real programs, started as qmail-start does it, with a queue and a directory of our own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ipc::Message;
use ipc::auth::{self, Directory, Request};
use ipc::queue::{Answer, Item};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use sys::spawn::{Child, Spawn};
use sys::{Received, Seqpacket};
use wire::netstring::{decode, encode};

/// Questions that the directory gets at a time.
const QUESTIONS_MAX: usize = smtp::server::QUESTIONS_MAX;
const UNKNOWN: &str = "Zcannot check that recipient now, try again later (#4.3.0)";
const NEEDS_PROGRAM: &str = qmtp::exchange::NEEDS_PROGRAM;

struct System {
    _dir: tempfile::TempDir,
    child: Child,
    _lifeline: OwnedFd,
    port: u16,
    /// Recipients of messages that the queue has taken.
    taken: Arc<Mutex<Vec<String>>>,
    /// Questions that the directory has got.
    asked: Arc<AtomicUsize>,
}

impl System {
    /// `directory`: what it does with a question.
    fn start(
        program: &str,
        files: &[(&str, &str)],
        directory: impl Fn(&str) -> Option<Directory> + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (control, run) = (dir.path().join("etc/qmail/control"), dir.path().join("run/qmail"));
        std::fs::create_dir_all(&control).unwrap();
        std::fs::create_dir_all(run.join("roles")).unwrap();
        for (name, text) in [("me", "mx.example.org\n"), ("rcpthosts", "ours.example\n")].iter().chain(files) {
            std::fs::write(control.join(name), text).unwrap();
        }
        let run = std::fs::File::open(&run).unwrap();
        let queue = sys::seqpacket::listen(run.as_fd(), "roles/queue.sock").unwrap();
        let auth = sys::seqpacket::listen(run.as_fd(), "roles/auth.sock").unwrap();
        let (taken, asked) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (sink, counter) = (Arc::clone(&taken), Arc::clone(&asked));
        serve(queue, move |client| take_messages(&client, &sink));
        serve(auth, move |client| answer(&client, &counter, &directory));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (lifeline_child, lifeline) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (ready, ready_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let path = Path::new(env!("CARGO_BIN_EXE_qmail-qmtpd")).with_file_name(program);
        let service = program.trim_start_matches("qmail-").trim_end_matches('d');
        let name = format!("listen:{service}:0");
        let spawn = Spawn::new(&path).arg("--service").env("QMAIL_ROOT", dir.path());
        let spawn = spawn.stderr(log.as_fd()).fd("lifeline", lifeline_child.as_fd()).fd("ready", ready_child.as_fd());
        let child = spawn.fd("run", run.as_fd()).fd(&name, listener.as_fd()).start().unwrap();
        drop((lifeline_child, ready_child));
        let said = || std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(rustix::io::read(&ready, &mut [0][..]).unwrap(), 1, "{}", said());
        let port = listener.local_addr().unwrap().port();
        Self { _dir: dir, child, _lifeline: lifeline, port, taken, asked }
    }

    /// Sends it all at once and reads the answers until the server closes.
    fn talk(&self, input: &[u8]) -> Vec<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(input).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        let (mut rest, mut answers) = (&said[..], Vec::new());
        while !rest.is_empty() {
            let (answer, behind) = decode(rest, 10_000).unwrap();
            answers.push(String::from_utf8(answer.to_vec()).unwrap());
            rest = behind;
        }
        answers
    }

    fn taken(&self) -> Vec<String> {
        self.taken.lock().unwrap().clone()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        self.child.signal(rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }
}

fn serve(listener: OwnedFd, each: impl Fn(Seqpacket) + Send + Sync + 'static) {
    let each = Arc::new(each);
    std::thread::spawn(move || {
        loop {
            let Ok(client) = sys::seqpacket::accept(listener.as_fd()) else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            client.set_nonblocking(false).unwrap();
            let each = Arc::clone(&each);
            std::thread::spawn(move || each(client));
        }
    });
}

fn take_messages(client: &Seqpacket, sink: &Mutex<Vec<String>>) {
    let (mut buf, mut recipients) = (vec![0; ipc::DATAGRAM_LEN_MAX], Vec::new());
    while let Ok(Received::Datagram(len, _)) = client.recv(&mut buf) {
        let mut commits = false;
        ipc::queue::items(&buf[..len], |item| match item {
            Item::Begin { .. } => recipients.clear(),
            Item::Recipient(address) => recipients.push(address.to_string()),
            Item::Commit => commits = true,
            _ => {}
        })
        .unwrap();
        if commits {
            sink.lock().unwrap().append(&mut recipients);
            client.send(&Answer::Accepted { id: 9, pid: 42 }.encode()).unwrap();
        }
    }
}

fn answer(client: &Seqpacket, asked: &AtomicUsize, directory: &dyn Fn(&str) -> Option<Directory>) {
    let mut buf = vec![0; ipc::DATAGRAM_LEN_MAX];
    while let Ok(Received::Datagram(len, _)) = client.recv(&mut buf) {
        let (Request::Recipient { id, address } | Request::Fits { id, address, .. }) = Request::decode(&buf[..len]).unwrap()
        else {
            panic!("a request of others")
        };
        asked.fetch_add(1, Ordering::SeqCst);
        if let Some(verdict) = directory(&address.to_string()) {
            let _ = client.send(&auth::Answer::Recipient { id, verdict }.encode());
        }
    }
}

fn message(recipients: &[&str]) -> Vec<u8> {
    let (mut list, mut out) = (Vec::new(), b"3:\nx\n,3:s@x,".to_vec());
    recipients.iter().for_each(|recipient| encode(recipient.as_bytes(), &mut list));
    encode(&list, &mut out);
    out
}

/// Two hundred recipients would hold up the session for half a minute, and sixteen thousand for longer than any client waits.
#[test]
fn a_directory_that_hangs_is_asked_once_for_a_message() {
    let system = System::start("qmail-qmtpd", &[], |name| (!name.contains("silent")).then_some(Directory::Mailbox {}));
    let mut recipients = vec!["silent@ours.example"; 200];
    recipients[0] = "joe@ours.example";
    let input = [message(&recipients), message(&["ann@ours.example"])].concat();
    let answers = system.talk(&input);
    assert!(answers[0].starts_with("Kok ") && answers[200].starts_with("Kok "), "{} {}", answers[0], answers[200]);
    assert!(answers.len() == 201 && answers[1..200].iter().all(|answer| answer == UNKNOWN));
    assert_eq!(system.taken(), ["joe@ours.example", "ann@ours.example"]);
    // Of the first message those that fit into the first questions, and one for each that was answered.
    assert_eq!(system.asked.load(Ordering::SeqCst), QUESTIONS_MAX + 1);
}

#[test]
fn a_directory_that_is_slow_is_asked_no_longer_than_a_client_waits() {
    let slowly = |_: &str| {
        std::thread::sleep(Duration::from_millis(30));
        Some(Directory::Mailbox {})
    };
    let system = System::start("qmail-qmtpd", &[("timeoutsmtpd", "3\n")], slowly);
    let answers = system.talk(&[message(&["joe@ours.example"; 400]), message(&["ann@ours.example"])].concat());
    assert!(answers[0].starts_with("Kok ") && answers[399] == UNKNOWN, "{} {}", answers[0], answers[399]);
    assert!(answers.len() == 401 && answers[400].starts_with("Kok "), "the time of the next message begins with these answers");
    assert!(system.asked.load(Ordering::SeqCst) < 200, "{}", system.asked.load(Ordering::SeqCst));
}

#[test]
fn no_mail_passes_a_program_by_that_has_to_see_it() {
    let known = |_: &str| Some(Directory::Mailbox {});
    let mail = message(&["joe@ours.example"]);
    let mut inner = b"3:\nx\n,3:s@x,".to_vec();
    encode(b"joe@ours.example", &mut inner);
    let mut by_qmqp = Vec::new();
    encode(&inner, &mut by_qmqp);
    for (program, listen, rules, is_taken) in [
        ("qmail-qmtpd", "", "", true),
        ("qmail-qmtpd", "", ":allow,QMAILQUEUE=\"/scan\"\n", false),
        ("qmail-qmtpd", "", "127.:allow,QMAILQUEUE=\"\"\n:allow,QMAILQUEUE=\"/scan\"\n", true),
        ("qmail-qmtpd", " queue=/scan", "", false),
        ("qmail-qmtpd", " queue=/scan", ":allow,QMAILQUEUE=\"\"\n", true),
        ("qmail-qmtpd", " rcptcheck=/check", "", false),
        ("qmail-qmtpd", "", ":allow,RCPTCHECK=\"/check\"\n", false),
        ("qmail-qmtpd", "", ":allow,RELAYCLIENT=\"\",RCPTCHECK=\"/check\"\n", true),
        ("qmail-qmtpd", "", ":allow,RELAYCLIENT=\"\",RCPTCHECK=\"/check\",RCPTCHECKRELAYCLIENT=\"1\"\n", false),
        ("qmail-qmqpd", "", "", true),
        ("qmail-qmqpd", "", ":allow,QMAILQUEUE=\"/scan\"\n", false),
        ("qmail-qmqpd", " queue=/scan", "", false),
        ("qmail-qmqpd", " rcptcheck=/check", ":allow,RCPTCHECK=\"/check\"\n", true),
    ] {
        let (service, input) = if program == "qmail-qmtpd" { ("qmtp", &mail) } else { ("qmqp", &by_qmqp) };
        let listen = format!("{service} 127.0.0.1:1{listen}\n");
        let system = System::start(program, &[("listen", &listen), ("tcp.smtp", rules), ("qmqpclients", "127.0.0.0/8\n")], known);
        let answers = system.talk(input);
        if is_taken {
            assert!(answers.len() == 1 && answers[0].starts_with("Kok "), "{program} {listen} {rules}: {answers:?}");
        } else {
            assert_eq!(answers, [NEEDS_PROGRAM], "{program} {listen} {rules}");
        }
        assert_eq!(system.taken().len(), usize::from(is_taken));
    }
}

#[test]
fn rules_and_lists_count_as_by_smtp() {
    let known = |_: &str| Some(Directory::Mailbox {});
    let lists = [
        ("badmailfromnorelay", "s@x\n"),
        ("badrcptto", "trap@ours.example\n"),
        ("validrcptto", "joe@ours.example\ntrap@ours.example\n"),
        ("rejectrelaytest", "1\n"),
    ];
    let bad_sender = "Dsorry, your envelope sender is in my badmailfrom list (#5.7.1)";
    let denied = "Dsorry, your envelope recipient has been denied (#5.7.1)";
    let recipients = ["joe@ours.example", "trap@ours.example", "ann@ours.example", "a%b@ours.example"];
    let unlisted = "Dsorry, this recipient is not in my validrcptto list (#5.7.1)";
    let routed = "Dsorry, no source routes: a local part with % ! or @ is not taken here (#5.7.1)";
    for (rules, expected) in [
        ("", [bad_sender, denied, unlisted, routed]),
        (":allow,DISABLE_BADMAILFROM=\"1\"\n", ["K", denied, unlisted, routed]),
        (":allow,RELAYCLIENT=\"\"\n", ["K", denied, "K", "K"]),
        (":allow,RBLSMTPD=\"-you are listed\"\n", ["Dyou are listed (#5.7.1)"; 4]),
        (":allow,RBLSMTPD=\"later\"\n", ["Zlater (#4.7.1)"; 4]),
        (
            ":allow,DISABLE_BADMAILFROM=\"1\",BRTLIMIT=\"1\"\n",
            ["Ztoo many unknown recipients (#4.7.0)", denied, unlisted, routed],
        ),
    ] {
        let files: Vec<_> = lists.iter().copied().chain([("tcp.smtp", rules)]).collect();
        let system = System::start("qmail-qmtpd", &files, known);
        let answers = system.talk(&message(&recipients));
        let short: Vec<_> = answers.iter().map(|answer| if answer.starts_with('K') { "K" } else { answer.as_str() }).collect();
        assert_eq!(short, expected, "{rules}");
    }
}
