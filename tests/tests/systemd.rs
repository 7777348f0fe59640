//! Under a service manager: sockets that outlive the system, and what it says of itself. Python holds them as systemd does.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use system_tests::{Instance, Smtp, wait_for};

const LETTER: &str = "Subject: x\n\nbody\n";

/// Holds run/qmail/inject.sock and, unless it is 0, a TCP port.
struct Manager {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Manager {
    fn new(instance: &Instance, port: u16) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/manager.py");
        let mut python = Command::new("python3");
        python.arg(script).arg(instance.root.join("run/qmail")).arg(port.to_string()).arg(instance.log_file());
        python.arg(instance.program("qmail")).arg("--root").arg(&instance.root).arg("start");
        let mut process = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (commands, answers) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        // It gives the socket its mode once it listens.
        let inject = instance.root.join("run/qmail/inject.sock");
        let is_there = || std::fs::metadata(&inject).is_ok_and(|found| found.permissions().mode() & 0o777 == 0o666);
        wait_for("inject.sock", || is_there().then_some(())).unwrap();
        Self { process, commands, answers }
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    /// It ends what it started.
    fn end(self) {
        let Self { mut process, commands, answers } = self;
        drop((commands, answers));
        process.wait().unwrap();
    }
}

#[test]
fn callers_wait_through_a_restart_on_sockets_that_are_held() {
    let instance = Instance::new().unwrap();
    let mut manager = Manager::new(&instance, instance.port(25));
    assert_eq!(manager.ask("start"), "READY=1", "{}", instance.log());
    instance.smtp().unwrap().send("a@example.test", &["postmaster@mail.example.test"], LETTER).unwrap();
    instance.wait_empty().unwrap();
    assert_eq!(manager.ask("stop"), "STOPPING=1 0");

    // Nobody serves now; both kinds of callers find somebody who listens.
    let mut inject = Command::new(instance.program("qmail-inject"));
    inject.env("QMAIL_ROOT", &instance.root).arg("postmaster").stdin(Stdio::piped());
    let mut inject = inject.spawn().unwrap();
    inject.stdin.take().unwrap().write_all(LETTER.as_bytes()).unwrap();
    let port = instance.port(25);
    let client = std::thread::spawn(move || {
        Smtp::open(port).and_then(|smtp| smtp.send("a@example.test", &["postmaster@mail.example.test"], LETTER))
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(inject.try_wait().unwrap().is_none() && !client.is_finished(), "nobody serves, and yet they were answered");

    assert_eq!(manager.ask("start"), "READY=1", "{}", instance.log());
    assert!(inject.wait().unwrap().success());
    client.join().unwrap().unwrap();
    let alias = instance.root.join("etc/qmail/alias/Maildir");
    instance.wait_letters(&alias, 3).unwrap();
    manager.end();
}

#[test]
fn a_start_by_hand_leaves_the_socket_that_is_held_alone() {
    let instance = Instance::new().unwrap();
    let mut manager = Manager::new(&instance, 0);
    let mut by_hand = Command::new(instance.program("qmail"));
    let output = by_hand.arg("--root").arg(&instance.root).arg("start").output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(111), "{words}");
    assert!(words.contains("inject.sock: another process listens there") && words.contains("systemctl start qmail"), "{words}");

    assert_eq!(manager.ask("start"), "READY=1", "{}", instance.log());
    inject(&instance);
    instance.wait_letters(&instance.root.join("etc/qmail/alias/Maildir"), 1).unwrap();
    assert!(!instance.log().contains("it is made anew"), "{}", instance.log());
    manager.end();
}

#[test]
fn a_held_socket_that_nobody_reaches_is_made_anew() {
    let instance = Instance::new().unwrap();
    let mut manager = Manager::new(&instance, 0);
    let path = instance.root.join("run/qmail/inject.sock");
    let alias = instance.root.join("etc/qmail/alias/Maildir");
    // Gone; another that nobody serves any more; another that somebody serves who is not systemd.
    let mut other = None;
    for letters in 1..=3 {
        std::fs::remove_file(&path).unwrap();
        if letters > 1 {
            let listener =
                sys::seqpacket::listen(std::fs::File::open(path.parent().unwrap()).unwrap().as_fd(), "inject.sock").unwrap();
            other = Some(listener).filter(|_| letters == 3);
        }
        assert_eq!(manager.ask("start"), "READY=1", "{}", instance.log());
        inject(&instance);
        instance.wait_letters(&alias, letters).unwrap();
        assert_eq!(instance.log().matches("it is made anew").count(), letters, "{}", instance.log());
        assert_eq!(manager.ask("stop"), "STOPPING=1 0");
    }
    drop(other);
    manager.end();
}

fn inject(instance: &Instance) {
    let mut inject = Command::new(instance.program("qmail-inject"));
    let mut inject = inject.env("QMAIL_ROOT", &instance.root).arg("postmaster").stdin(Stdio::piped()).spawn().unwrap();
    inject.stdin.take().unwrap().write_all(LETTER.as_bytes()).unwrap();
    let status = wait_for("qmail-inject", || inject.try_wait().unwrap());
    if status.is_err() {
        inject.kill().unwrap();
    }
    assert!(status.unwrap().success());
}

#[test]
fn an_address_that_this_host_does_not_have_stops_nobody() {
    let mut instance = Instance::new().unwrap();
    let port = instance.port(25);
    instance.control("listen", &format!("smtp 192.0.2.77:{port}\nsmtp 127.0.0.1:{port}\nsmtp [2001:db8::77]:{port}\n")).unwrap();
    instance.start().unwrap();
    instance.wait_log(&format!("192.0.2.77:{port} is no address of this host yet")).unwrap();
    instance.smtp().unwrap().send("a@example.test", &["postmaster@mail.example.test"], LETTER).unwrap();
    instance.wait_letters(&instance.root.join("etc/qmail/alias/Maildir"), 1).unwrap();
}

#[test]
fn a_held_socket_that_nothing_names_is_said_and_not_served() {
    let instance = Instance::new().unwrap();
    let listen = format!("smtp 127.0.0.1:{}\n", instance.port(25));
    instance.control("listen", &listen).unwrap();
    let mut manager = Manager::new(&instance, instance.port(587));
    assert_eq!(manager.ask("start"), "READY=1", "{}", instance.log());
    let port = instance.port(587);
    instance.wait_log(&format!("systemd listens on 127.0.0.1:{port}, which control/listen does not name")).unwrap();
    instance.smtp().unwrap();
    manager.end();
}

#[test]
fn a_held_socket_of_another_kind_stops_the_start() {
    let instance = Instance::new().unwrap();
    let script = "import os, socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('127.0.0.1', 0))\n\
                  os.dup2(os.dup2(s.fileno(), 60), 3, inheritable=True)\nos.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n\
                  os.execv(sys.argv[1], sys.argv[1:])";
    let mut start = Command::new("python3");
    start.args(["-c", script]).arg(instance.program("qmail")).arg("--root").arg(&instance.root).arg("start");
    let output = start.output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(111), "{words}");
    assert!(words.contains("a socket of systemd"), "{words}");
    // A variable that is meant for another process is none of its business.
    let mut other = Command::new(instance.program("qmail"));
    other.arg("--root").arg(&instance.root).arg("start").env("LISTEN_PID", "1").env("LISTEN_FDS", "3");
    let mut child = other.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    system_tests::facts::signal(child.id(), rustix::process::Signal::TERM);
    wait_for("the end", || child.try_wait().unwrap()).unwrap();
}
