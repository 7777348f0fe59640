//! The classic face over pipes, with a capturing QMAILQUEUE and with servers of our own in place of the system.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ipc::Message;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use sys::Received;

struct Instance {
    dir: tempfile::TempDir,
    env: Vec<(String, String)>,
}

struct Outcome {
    replies: String,
    log: String,
    code: Option<i32>,
}

impl Instance {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/qmail/control")).unwrap();
        let instance = Self { dir, env: Vec::new() };
        instance.control("me", "mx.example.org\n").control("rcpthosts", "ours.example\n")
    }

    fn control(self, name: &str, text: &str) -> Self {
        std::fs::write(self.dir.path().join("etc/qmail/control").join(name), text).unwrap();
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// QMAILQUEUE is a script that keeps what it gets, then runs `end`.
    fn capturing(self, end: &str) -> Self {
        let dir = self.dir.path().display().to_string();
        let script = format!(
            "#!/bin/sh\nn=$(ls {dir} | grep -c '^text')\ncat >{dir}/text$n || exit 54\ncat <&1 >{dir}/envelope$n\nls -l /proc/$$/fd >{dir}/fds\n\
             env >{dir}/env\npwd >{dir}/pwd\n{end}\n"
        );
        let path = self.path("capture");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = path.to_str().unwrap().to_owned();
        self.env("QMAILQUEUE", &path)
    }

    fn start(&self) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qmail-smtpd"));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("QMAIL_ROOT", self.dir.path());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn talk(&self, input: &[u8]) -> Outcome {
        let mut child = self.start();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let (mut replies, mut log) = (String::new(), String::new());
        child.stdout.take().unwrap().read_to_string(&mut replies).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        writer.join().unwrap();
        Outcome { replies: replies.replace("\r\n", "\n"), log, code: child.wait().unwrap().code() }
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}

const LETTER: &[u8] =
    b"EHLO client.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<joe@ours.example>\r\nRCPT TO:<ann@ours.example>\r\nDATA\r\n\
    Subject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n";

fn with_client(instance: Instance) -> Instance {
    instance
        .env("TCPREMOTEIP", "192.0.2.7")
        .env("TCPREMOTEHOST", "client.example")
        .env("TCPREMOTEINFO", "joe")
        .env("TCPLOCALIP", "192.0.2.1")
        .env("TCPLOCALHOST", "mx1.example.org")
}

#[test]
fn on_standard_input_nobody_logs_in() {
    let instance = with_client(Instance::new()).env("TCPREMOTEIP", "127.0.0.1");
    let replies = instance.talk(b"EHLO x\r\nAUTH PLAIN AGEAYg==\r\nQUIT\r\n").replies;
    assert!(!replies.contains("-AUTH") && replies.contains("\n502 5.5.1 unimplemented\n221 "), "{replies}");
}

#[test]
fn a_letter_reaches_the_queue_program() {
    let instance = with_client(Instance::new().capturing("exit 0"));
    let outcome = instance.talk(LETTER);
    assert_eq!(outcome.code, Some(0), "{}", outcome.log);
    let lines: Vec<&str> = outcome.replies.lines().collect();
    assert_eq!(lines[0], "220 mx.example.org ESMTP");
    let qp = lines[lines.len() - 2].strip_prefix("250 2.0.0 ok ").unwrap();
    let (unix_s, pid) = qp.split_once(" qp ").unwrap();
    assert!(unix_s.parse::<u64>().unwrap() > 1_700_000_000 && pid.parse::<u32>().unwrap() > 1);
    assert_eq!(instance.read("envelope0"), "Fa@b.example\0Tjoe@ours.example\0Tann@ours.example\0\0");
    let text = instance.read("text0");
    let (received, rest) = text.split_at(text.find("Subject").unwrap());
    assert!(
        received.starts_with("Received: from client.example (joe@192.0.2.7)\n  by mx1.example.org with ESMTP; "),
        "{received}"
    );
    assert_eq!(rest, "Subject: x\n\n.dot\n");
    let env = instance.read("env");
    assert!(env.contains("TCPREMOTEIP=192.0.2.7\n") && !env.contains("QMAIL_FDS"));
    let fds = instance.read("fds");
    assert!([" 4 -> pipe:", " 6 -> pipe:"].iter().all(|fd| fds.contains(fd)), "{fds}");
    assert!([" 3 -> pipe:", " 5 -> pipe:", " 7 -> pipe:"].iter().all(|fd| !fds.contains(fd)), "{fds}");
    assert_eq!(instance.read("pwd"), "/\n");
    assert!(
        outcome.log.contains("session service=smtp remote=192.0.2.7 end=quit ")
            && outcome.log.contains(" messages=1 recipients=2 bytes=17 refused=0 "),
        "{}",
        outcome.log
    );
}

#[test]
fn the_received_field_tells_what_the_environment_tells() {
    for (env, field) in [
        (&[][..], "from unknown (HELO c.example) (unknown)\n  by unknown with"),
        (&[("TCPLOCALIP", "192.0.2.1")], "from unknown (HELO c.example) (unknown)\n  by 192.0.2.1 with"),
        (
            &[("TCPLOCALIP", "::1"), ("TCPLOCALHOST", "mx1.example")],
            "from unknown (HELO c.example) (unknown)\n  by mx1.example with",
        ),
        (&[("TCPREMOTEIP", "2001:db8::1"), ("TCPREMOTEHOST", "C.Example")], "from C.Example (2001:db8::1)\n  by unknown with"),
        (
            &[("TCPREMOTEIP", "192.0.2.7"), ("TCPREMOTEINFO", "joe")],
            "from unknown (HELO c.example) (joe@192.0.2.7)\n  by unknown with",
        ),
        (
            &[("TCPREMOTEIP", ""), ("TCPREMOTEHOST", ""), ("TCPREMOTEINFO", ""), ("TCPLOCALHOST", ""), ("TCPLOCALIP", "")],
            "from unknown (HELO c.example) (unknown)\n  by unknown with",
        ),
        (
            &[
                ("TCPREMOTEIP", "1.2.3.4)\n"),
                ("TCPREMOTEHOST", "a\r\nX: y\u{e9}"),
                ("TCPREMOTEINFO", "(j o\x1b"),
                ("TCPLOCALHOST", "\n;_"),
            ],
            "from a??X:?y?? (HELO c.example) (?j?o?@1.2.3.4??)\n  by ??? with",
        ),
    ] {
        let instance = env.iter().fold(Instance::new().capturing("exit 0"), |instance, (name, value)| instance.env(name, value));
        let text = "HELO c.example\r\nMAIL FROM:<>\r\nRCPT TO:<joe@ours.example>\r\nDATA\r\n.\r\nQUIT\r\n";
        assert_eq!(instance.talk(text.as_bytes()).code, Some(0));
        let text = instance.read("text0");
        assert!(text.starts_with(&format!("Received: {field} SMTP; ")), "{env:?}: {text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}

#[test]
fn two_letters_in_a_session_and_one_that_is_given_up() {
    let instance = Instance::new().control("databytes", "10\n").capturing("exit 0");
    let letter = |text: &str| format!("MAIL FROM:<>\r\nRCPT TO:<joe@ours.example>\r\nDATA\r\n{text}\r\n.\r\n");
    let outcome = instance.talk(format!("{}{}{}QUIT\r\n", letter("one"), letter("much too long"), letter("three")).as_bytes());
    assert_eq!(outcome.code, Some(0));
    assert_eq!(outcome.replies.matches("250 2.0.0 ok ").count(), 2);
    assert!(outcome.replies.contains("\n552 5.3.4 sorry, that message size exceeds my databytes limit\n"));
    assert!(instance.read("text0").ends_with("one\n") && instance.read("text2").ends_with("three\n"));
    assert_eq!(instance.read("envelope1"), "", "the program sees an envelope that ends too early");
}

#[test]
fn exit_codes_of_the_queue_program_become_replies() {
    for (end, reply) in [
        ("exit 11", "554 5.1.3 envelope address too long for qq"),
        ("exit 31", "554 5.3.0 mail server permanently rejected message"),
        ("exit 33", "554 5.3.0 qq permanent problem"),
        ("exit 53", "451 4.3.0 qq write error or disk full"),
        ("exit 71", "451 4.3.0 mail server temporarily rejected message"),
        ("exit 72", "451 4.4.1 connection to mail server timed out"),
        ("exit 99", "451 4.3.0 qq temporary problem"),
        ("kill -9 $$", "451 4.3.0 qq crashed"),
        ("printf 'Dno spam here (#5.7.1)' >&4; exit 82", "554 5.7.1 no spam here"),
        ("printf 'Zlater, please' >&6; exit 88", "451 4.3.0 later, please"),
        ("printf D >&6; exit 82", "451 4.3.0 qq temporary problem"),
        ("printf 'Dtext' >&4; exit 31", "554 5.3.0 mail server permanently rejected message"),
    ] {
        let outcome = Instance::new().capturing(end).talk(LETTER);
        assert!(outcome.replies.contains(&format!("354 go ahead\n{reply}\n221 ")), "{end}: {}", outcome.replies);
        assert!(outcome.log.contains(": refused remote=unknown "), "{}", outcome.log);
    }
    let outcome = Instance::new().env("QMAILQUEUE", "/nonexistent/queue").talk(LETTER);
    assert!(outcome.replies.contains("354 go ahead\n451 4.3.0 unable to exec qq\n"), "{}", outcome.replies);
    // One that does not read at all.
    let instance = Instance::new().env("QMAILQUEUE", "/bin/true");
    let large = "x".repeat(70).repeat(10_000);
    let outcome =
        instance.talk(format!("MAIL FROM:<>\r\nRCPT TO:<a@ours.example>\r\nDATA\r\n{large}\r\n.\r\nQUIT\r\n").as_bytes());
    assert!(outcome.replies.contains("354 go ahead\n451 4.3.0 qq read error\n221 "), "{}", outcome.replies);
}

#[test]
fn the_environment_says_what_a_client_may() {
    let far = b"MAIL FROM:<>\r\nRCPT TO:<joe@far.example>\r\nQUIT\r\n";
    let plain = Instance::new().capturing("exit 0").talk(far);
    assert!(plain.replies.contains("\n553 5.7.1 sorry, that domain isn't in my list of allowed rcpthosts\n"));
    assert!(plain.log.contains(" from=<> to=<joe@far.example> reply=\"553 5.7.1 sorry"), "{}", plain.log);
    let relay = Instance::new().capturing("exit 0").env("RELAYCLIENT", "").talk(far);
    assert!(relay.replies.contains("\n250 2.1.5 ok\n"));
    let instance = Instance::new().capturing("exit 0").env("RELAYCLIENT", "@fax");
    instance.talk(b"MAIL FROM:<>\r\nRCPT TO:<joe@far.example>\r\nDATA\r\n.\r\nQUIT\r\n");
    assert_eq!(instance.read("envelope0"), "F\0Tjoe@far.example@fax\0\0");
    for (databytes, announces) in [("7", "SIZE 7"), ("0", "SIZE 0"), ("x", "SIZE 99")] {
        let instance = Instance::new().control("databytes", "99\n").capturing("exit 0").env("DATABYTES", databytes);
        assert!(instance.talk(b"EHLO x\r\nQUIT\r\n").replies.contains(&format!("\n250-{announces}\n")));
    }
    let instance = with_client(Instance::new().capturing("exit 0").control("localiphost", "ours.example\n"));
    instance.talk(b"MAIL FROM:<>\r\nRCPT TO:<joe@[192.0.2.1]>\r\nDATA\r\n.\r\nQUIT\r\n");
    assert_eq!(instance.read("envelope0"), "F\0Tjoe@ours.example\0\0");
}

#[test]
fn named_networks_may_relay() {
    let far = b"MAIL FROM:<>\r\nRCPT TO:<joe@far.example>\r\nQUIT\r\n";
    for (ip, may) in [("192.0.2.7", true), ("198.51.100.7", false), ("unknown", false)] {
        let instance = Instance::new().control("relayclients", "192.0.2.0/24\n").capturing("exit 0").env("TCPREMOTEIP", ip);
        assert_eq!(instance.talk(far).replies.contains("\n250 2.1.5 ok\n"), may, "{ip}");
    }
}

#[test]
fn on_a_socket_the_client_is_who_the_socket_says_and_nothing_but_replies_goes_there() {
    let instance = Instance::new().capturing("exit 0");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let socket = std::os::fd::OwnedFd::from(listener.accept().unwrap().0);
    let mut command = Command::new(env!("CARGO_BIN_EXE_qmail-smtpd"));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("QMAIL_ROOT", instance.dir.path()).envs(instance.env.iter().cloned());
    command.stdin(socket.try_clone().unwrap()).stdout(socket.try_clone().unwrap()).stderr(socket);
    let mut child = command.spawn().unwrap();
    drop(command);
    client.write_all(b"WHAT\r\n").unwrap();
    client.write_all(LETTER).unwrap();
    // More than is read in one go, behind QUIT: no reset of the connection takes the last reply back.
    client.write_all(&b"NOOP\r\n".repeat(50_000)).unwrap();
    let mut replies = String::new();
    client.read_to_string(&mut replies).unwrap();
    drop(client);
    assert!(replies.ends_with("\r\n221 2.0.0 mx.example.org\r\n"), "{replies}");
    assert!(replies.split_terminator("\r\n").all(|line| line.as_bytes()[..3].iter().all(u8::is_ascii_digit)), "{replies}");
    assert!(replies.contains("\r\n502 5.5.1 unimplemented\r\n") && replies.contains("\r\n250 2.0.0 ok "), "{replies}");
    assert!(child.wait().unwrap().success());
    assert!(instance.read("text0").starts_with("Received: from unknown (HELO client.example) (127.0.0.1)\n  by 127.0.0.1 with "));
}

#[test]
fn virtual_domains_count_as_rcpthosts() {
    let instance = Instance::new().capturing("exit 0");
    std::fs::create_dir_all(instance.path("etc/qmail/users")).unwrap();
    std::fs::write(instance.path("etc/qmail/users/domains"), "virtual.example:5000:5000:/var/mail/virtual.example\n").unwrap();
    let outcome = instance.talk(b"MAIL FROM:<>\r\nRCPT TO:<joe@virtual.example>\r\nQUIT\r\n");
    assert!(outcome.replies.contains("\n250 2.1.5 ok\n"), "{}", outcome.replies);
}

#[test]
fn exit_codes() {
    assert_eq!(Instance::new().talk(b"QUIT\r\n").code, Some(0));
    assert_eq!(Instance::new().talk(b"NOOP\r\n").code, Some(1), "gone without QUIT");
    let instance = Instance::new();
    std::fs::remove_file(instance.path("etc/qmail/control/me")).unwrap();
    let outcome = instance.talk(b"QUIT\r\n");
    assert_eq!((outcome.replies.as_str(), outcome.code), ("421 4.3.0 unable to read controls\n", Some(1)));
    assert!(outcome.log.contains("control/me: missing"), "{}", outcome.log);
    let instance = Instance::new().control("timeoutsmtpd", "1\n");
    let mut child = instance.start();
    let mut replies = String::new();
    child.stdout.take().unwrap().read_to_string(&mut replies).unwrap();
    assert_eq!(replies, "220 mx.example.org ESMTP\r\n421 4.4.2 timeout\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn who_takes_no_reply_for_timeoutsmtpd_is_let_go() {
    let instance = Instance::new().control("timeoutsmtpd", "1\n");
    let mut child = instance.start();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || while stdin.write_all(&b"HELP\r\n".repeat(10_000)).is_ok() {});
    let deadline = Instant::now() + Duration::from_secs(20);
    let ended = loop {
        match child.try_wait().unwrap() {
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            ended => break ended,
        }
    };
    let _ = child.kill();
    writer.join().unwrap();
    assert_eq!(ended.expect("it waits for a client that does not read").code(), Some(1));
}

#[test]
fn without_a_running_system_everything_is_temporary() {
    let outcome = Instance::new().talk(LETTER);
    assert_eq!(outcome.replies.matches("\n451 4.3.0 cannot check that recipient now, try again later\n").count(), 1);
    assert!(!outcome.replies.contains("\n5") || outcome.replies.contains("503 5.5.1 RCPT first"), "{}", outcome.replies);
}

#[test]
fn without_a_program_the_message_goes_to_the_queue_and_the_directory_is_asked() {
    let instance = Instance::new();
    let run = instance.path("run/qmail");
    std::fs::create_dir_all(run.join("roles")).unwrap();
    let dir = std::fs::File::open(&run).unwrap();
    let auth = sys::seqpacket::listen(dir.as_fd(), "roles/auth.sock").unwrap();
    let queue = sys::seqpacket::listen(dir.as_fd(), "roles/queue.sock").unwrap();
    let directory = std::thread::spawn(move || {
        let client = accept(&auth);
        for verdict in [ipc::auth::Directory::Mailbox {}, ipc::auth::Directory::NoMailbox {}] {
            let ipc::auth::Request::Recipient { id, .. } = ipc::auth::Request::decode(&receive(&client).unwrap()).unwrap() else {
                panic!()
            };
            client.send(&ipc::auth::Answer::Recipient { id, verdict }.encode()).unwrap();
        }
    });
    let send = std::thread::spawn(move || {
        let client = accept(&queue);
        let datagram = receive(&client).unwrap();
        client.send(&ipc::queue::Answer::Accepted { id: 1, pid: 77 }.encode()).unwrap();
        datagram
    });
    let outcome = instance.talk(LETTER);
    assert!(
        outcome.replies.contains("\n250 2.1.5 ok\n550 5.1.1 sorry, no mailbox here by that name\n354 go ahead\n250 2.0.0 ok ")
    );
    assert!(outcome.replies.contains(" qp 77\n221 "), "{}", outcome.replies);
    directory.join().unwrap();
    let datagram = send.join().unwrap();
    let mut items = Vec::new();
    ipc::queue::items(&datagram, |item| items.push(format!("{item:?}"))).unwrap();
    assert_eq!(items[0], "Begin { sender: <a@b.example>, flags: 0 }");
    assert_eq!(items[1], "Recipient(<joe@ours.example>)");
    assert_eq!((items.len(), items[4].as_str()), (5, "Commit"));
}

fn accept(listener: &impl AsFd) -> sys::Seqpacket {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match sys::seqpacket::accept(listener.as_fd()) {
            Ok(client) => {
                client.set_nonblocking(false).unwrap();
                client.set_deadline(Duration::from_secs(20)).unwrap();
                return client;
            }
            Err(e) => assert!(e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn receive(client: &sys::Seqpacket) -> Option<Vec<u8>> {
    let mut buf = vec![0; ipc::DATAGRAM_LEN_MAX];
    match client.recv(&mut buf).unwrap() {
        Received::Datagram(len, _) => Some(buf[..len].to_vec()),
        Received::End => None,
    }
}

/// With plugins, and a program that takes nothing in the place of the queue until they name another.
fn with_plugins(plugins: &str) -> Instance {
    let instance = with_client(Instance::new()).capturing("");
    let capture = instance.path("capture").display().to_string();
    let instance = instance.control("smtpplugins", &plugins.replace("CAPTURE", &capture));
    instance.env("ENABLE_SPP", "1").env("QMAILQUEUE", "/bin/false").env("OTHER", "other").env("FOO", "old")
}

#[test]
fn what_plugins_set_and_take_away_counts_for_the_queue_program() {
    let plugins = "[connection]\n:echo SFOO=bar; echo UOTHER\n[mail]\n:echo SQMAILQUEUE=CAPTURE\n";
    let instance = with_plugins(plugins);
    let outcome = instance.talk(LETTER);
    assert!(outcome.replies.contains("\n250 2.0.0 ok ") && outcome.code == Some(0), "{}", outcome.replies);
    assert!(instance.read("text0").ends_with("\nSubject: x\n\n.dot\n"));
    assert_eq!(instance.read("envelope0"), "Fa@b.example\0Tjoe@ours.example\0Tann@ours.example\0\0");
    let environment = instance.read("env");
    let has = |variable: &str| environment.lines().any(|line| line == variable);
    assert!(has("FOO=bar") && has("TCPREMOTEIP=192.0.2.7") && has("SMTPMAILFROM=a@b.example"), "{environment}");
    assert!(!environment.contains("OTHER=") && environment.matches("FOO=").count() == 1, "{environment}");
    // As the environment says where no plugin says another thing; and not by a program where they take it away.
    for (plugins, reply) in [
        ("[rcpt]\n:echo SFOO=bar\n", "\n451 4.3.0 qq temporary problem"),
        ("[rcpt]\n:echo UQMAILQUEUE\n", "\n451 4.3.0 the queue cannot be reached"),
        ("[rcpt]\n:echo SQMAILQUEUE=\n", "\n451 4.3.0 the queue cannot be reached"),
        ("[rcpt]\n:echo SQMAILQUEUE=/nonexistent\n", "\n451 4.3.0 unable to exec qq"),
        ("[helo]\n:echo SQMAILQUEUE=CAPTURE; echo SDATABYTES=8\n", "\n552 5.3.4 "),
    ] {
        let outcome = with_plugins(plugins).talk(LETTER);
        assert!(outcome.replies.contains(reply), "{plugins}{}{}", outcome.replies, outcome.log);
    }
}

#[test]
fn a_queue_program_that_a_plugin_names_is_nobody_elses() {
    let instance = with_plugins("[helo]\n:echo SQMAILQUEUE=CAPTURE\n");
    std::fs::set_permissions(instance.path("capture"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let outcome = instance.talk(LETTER);
    assert!(outcome.replies.contains("\n451 4.3.0 unable to exec qq"), "{}", outcome.replies);
    assert!(outcome.log.contains("could be changed by others"), "{}", outcome.log);
}

#[test]
fn without_plugins_the_helper_starts_what_qmailqueue_names_and_nothing_else() {
    let instance = Instance::new().capturing("");
    let capture = instance.path("capture").display().to_string();
    let other = instance.path("other");
    std::fs::write(&other, format!("#!/bin/sh\ntouch {}/other-ran\n", instance.dir.path().display())).unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o755)).unwrap();
    let other = other.display().to_string();
    // What the helper is asked as the session would, with and without plugins.
    for (face, request, runs) in [
        ("--queue-programs", capture.clone(), true),
        ("--queue-programs", other.clone(), false),
        ("--queue-programs", format!("{capture}\0LD_PRELOAD=/x"), false),
        ("--any-queue-programs", format!("{other}\0A=b"), true),
    ] {
        let (ours, theirs) = sys::Seqpacket::pair().unwrap();
        let stderr = std::io::stderr();
        let spawn = sys::spawn::Spawn::new(Path::new(env!("CARGO_BIN_EXE_qmail-smtpd"))).arg(face).arg(instance.dir.path());
        let spawn = spawn.env("PATH", "/usr/bin:/bin").env("QMAILQUEUE", &capture).stderr(stderr.as_fd());
        let child = spawn.fd("session", theirs.as_fd()).start().unwrap();
        drop(theirs);
        let null = std::fs::File::open("/dev/null").unwrap();
        ours.send_with_fd(format!("t{request}").as_bytes(), null.as_fd()).unwrap();
        ours.send_with_fd(b"e", null.as_fd()).unwrap();
        let mut buf = [0; 512];
        let answer = ours.recv(&mut buf);
        assert_eq!(matches!(answer, Ok(Received::Datagram(..))), runs, "{face} {request}: {answer:?}");
        drop(ours);
        let _ = child.wait();
    }
    assert!(instance.path("other-ran").exists());
}

#[test]
fn what_a_queue_program_cannot_be_told_is_not_offered_where_a_plugin_may_name_one() {
    let offers = |instance: Instance| {
        let replies = instance.env("RELAYCLIENT", "").talk(b"EHLO x\r\nMAIL FROM:<> RET=HDRS\r\nQUIT\r\n").replies;
        (replies.contains("\n250-DSN\n"), replies.contains("\n555 "))
    };
    assert_eq!(offers(Instance::new()), (true, false));
    let plugins = Instance::new().control("smtpplugins", "[mail]\n:echo N\n");
    assert_eq!(offers(plugins.env("ENABLE_SPP", "1")), (false, true));
}

#[test]
fn the_process_is_confined_before_it_reads() {
    let instance = Instance::new().capturing("exit 0");
    let mut child = instance.start();
    let mut greeting = [0; 26];
    child.stdout.as_mut().unwrap().read_exact(&mut greeting).unwrap();
    let status = std::fs::read_to_string(Path::new("/proc").join(child.id().to_string()).join("status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"), "{status}");
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
