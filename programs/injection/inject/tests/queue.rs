//! The three programs against a socket that plays qmail-send, and against programs that play qmail-queue.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)] // helpers of tests fail by panic, too

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ipc::Message as _;
use ipc::queue::{Answer, FLAG_EIGHT_BIT, FLAG_SMTPUTF8, Item, items};
use rustix::pipe::{PipeFlags, pipe_with};
use sys::spawn::{Ended, Spawn};
use sys::{Received, Seqpacket};

const QUEUE: &str = env!("CARGO_BIN_EXE_qmail-queue");
const INJECT: &str = env!("CARGO_BIN_EXE_qmail-inject");
const SENDMAIL: &str = env!("CARGO_BIN_EXE_sendmail");

/// What arrived at the socket.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
struct Seen {
    sender: String,
    flags: u32,
    recipients: Vec<String>,
    body: Vec<u8>,
    committed: bool,
    /// Other items.
    asked: Vec<String>,
}

struct Instance {
    dir: tempfile::TempDir,
}

impl Instance {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc/qmail/control")).unwrap();
        fs::create_dir_all(dir.path().join("run/qmail")).unwrap();
        fs::write(dir.path().join("etc/qmail/control/me"), "me.example\n").unwrap();
        Self { dir }
    }

    fn listen(&self) -> OwnedFd {
        let run = fs::File::open(self.dir.path().join("run/qmail")).unwrap();
        sys::seqpacket::listen(run.as_fd(), "inject.sock").unwrap()
    }

    /// Serves one message. `None` closes the connection instead of an answer.
    fn serve(&self, answer: Option<Answer>) -> Receiver<Seen> {
        serve_on(self.listen(), answer)
    }

    fn script(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("script");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("QMAIL_ROOT", self.dir.path()).env("PATH", "/usr/bin:/bin").env("USER", "joe");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

fn serve_on(listener: OwnedFd, answer: Option<Answer>) -> Receiver<Seen> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let start = Instant::now();
        let connection = loop {
            match sys::seqpacket::accept(listener.as_fd()) {
                Ok(connection) => break connection,
                Err(_) if start.elapsed() < Duration::from_secs(20) => std::thread::sleep(Duration::from_millis(5)),
                Err(_) => return,
            }
        };
        connection.set_nonblocking(false).unwrap();
        let seen = receive_message(&connection);
        if let (Some(answer), true) = (answer, seen.committed) {
            connection.send(&answer.encode()).unwrap();
        }
        send.send(seen).unwrap();
    });
    receive
}

fn receive_message(connection: &Seqpacket) -> Seen {
    let mut seen = Seen::default();
    let mut buf = vec![0; ipc::DATAGRAM_LEN_MAX];
    while !seen.committed {
        let Ok(Received::Datagram(len, _)) = connection.recv(&mut buf) else { break };
        items(&buf[..len], |item| match item {
            Item::Begin { sender, flags } => (seen.sender, seen.flags) = (sender.to_string(), flags),
            Item::Recipient(address) => seen.recipients.push(address.to_string()),
            Item::Data(data) => seen.body.extend_from_slice(data),
            Item::Commit => seen.committed = true,
            other => seen.asked.push(format!("{other:?}")),
        })
        .unwrap();
    }
    seen
}

fn accepted() -> Option<Answer> {
    Some(Answer::Accepted { id: 1, pid: 2 })
}

fn temporary(text: &str) -> Option<Answer> {
    Some(Answer::Temporary { text: text.as_bytes().to_vec().into() })
}

fn permanent(text: &str) -> Option<Answer> {
    Some(Answer::Permanent { text: text.as_bytes().to_vec().into() })
}

/// Runs to the end: exit code and standard error.
fn finish(mut child: Child, input: &[u8]) -> (i32, String) {
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).unwrap())
}

/// qmail-queue with a message and an envelope; the error text if descriptor `report` is a pipe.
fn queue(instance: &Instance, message: &[u8], envelope: &[u8], report: Option<i32>) -> (i32, Vec<u8>) {
    let (message_read, message_write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (envelope_read, envelope_write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (report_read, report_write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let null = fs::File::options().write(true).open("/dev/null").unwrap();
    let mut spawn = Spawn::new(Path::new(QUEUE)).env("QMAIL_ROOT", instance.dir.path());
    spawn = spawn.stdin(message_read.as_fd()).stdout(envelope_read.as_fd());
    for number in 3..=6 {
        spawn = spawn.fd("x", if report == Some(number) { report_write.as_fd() } else { null.as_fd() });
    }
    let child = spawn.start().unwrap();
    drop((message_read, envelope_read, report_write));
    let writer = {
        let (message, envelope) = (message.to_vec(), envelope.to_vec());
        std::thread::spawn(move || {
            let _ = fs::File::from(message_write).write_all(&message);
            let _ = fs::File::from(envelope_write).write_all(&envelope);
        })
    };
    let Ended::Code(code) = child.wait() else { panic!("killed") };
    writer.join().unwrap();
    let mut text = Vec::new();
    fs::File::from(report_read).read_to_end(&mut text).unwrap();
    (code, text)
}

#[test]
fn qmail_queue_hands_over_message_and_envelope() {
    for (message, envelope, sender, recipients, flags) in [
        (&b"Subject: s\n\nbody\n"[..], &b"Fa@b\0Tc@d\0Te\0\0"[..], "a@b", &["c@d", "e"][..], 0),
        (b"", b"F\0\0", "", &[], 0),
        (b"no line end", b"F#@[]\0Tx\0\0 and more", "#@[]", &["x"], 0),
        (b"\0\r\n\xff\n", b"Fa\0Tb\0Tb\0\0", "a", &["b", "b"], FLAG_EIGHT_BIT),
        (b"x\n", "Fa\0Tjörg@b\0\0".as_bytes(), "a", &["j\\xc3\\xb6rg@b"], FLAG_SMTPUTF8),
    ] {
        let instance = Instance::new();
        let seen = instance.serve(accepted());
        assert_eq!(queue(&instance, message, envelope, None), (0, Vec::new()));
        let recipients = recipients.iter().map(|r| (*r).to_owned()).collect();
        let expected =
            Seen { sender: sender.into(), flags, recipients, body: message.to_vec(), committed: true, asked: Vec::new() };
        assert_eq!(seen.recv().unwrap(), expected);
    }
}

#[test]
fn qmail_queue_streams_a_large_message_and_many_recipients() {
    let instance = Instance::new();
    let seen = instance.serve(accepted());
    let message: Vec<u8> = (0..5_000_000u32).map(|n| if n % 61 == 60 { b'\n' } else { b'a' + (n % 23) as u8 }).collect();
    let mut envelope = b"Fs@h\0".to_vec();
    for n in 0..20_000 {
        envelope.extend_from_slice(format!("Tr{n}@h.example\0").as_bytes());
    }
    envelope.push(0);
    assert_eq!(queue(&instance, &message, &envelope, None).0, 0);
    let seen = seen.recv().unwrap();
    assert!(seen.body == message && seen.recipients.len() == 20_000 && seen.recipients[19_999] == "r19999@h.example");
}

#[test]
fn qmail_queue_refuses_a_bad_envelope_and_nothing_is_committed() {
    let long = [&b"Fa\0T"[..], &[b'x'; 1003], b"\0\0"].concat();
    for (envelope, code) in [
        (&b""[..], 54),
        (b"Fa", 54),
        (b"Fa\0", 54),
        (b"Fa\0Tb\0", 54),
        (b"Xa\0Tb\0\0", 91),
        (b"Fa\0Xb\0\0", 91),
        (b"\0", 91),
        (&long, 11),
        (b"Fa\nb\0Tc\0\0", 31),
    ] {
        let instance = Instance::new();
        let seen = instance.serve(accepted());
        assert_eq!(queue(&instance, b"x\n", envelope, Some(6)), (code, Vec::new()), "{}", envelope.escape_ascii());
        assert_eq!(seen.recv().unwrap(), Seen::default());
    }
}

#[test]
fn qmail_queue_waits_for_nobody_to_close_a_bad_envelope() {
    for (envelope, code) in [(&b"Fa\0X"[..], 91), (&[b'F'; 2000], 11)] {
        let instance = Instance::new();
        let _seen = instance.serve(accepted());
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::write(&write, envelope).unwrap();
        let null = fs::File::open("/dev/null").unwrap();
        let spawn = Spawn::new(Path::new(QUEUE)).env("QMAIL_ROOT", instance.dir.path());
        let child = spawn.stdin(null.as_fd()).stdout(read.as_fd()).start().unwrap();
        assert!(matches!(child.wait(), Ended::Code(got) if got == code));
    }
}

#[test]
fn a_closed_descriptor_is_not_an_empty_message() {
    for (program, closed, code) in [(QUEUE, "0<&-", 54), (QUEUE, "1<&-", 54), (INJECT, "0<&-", 111), (SENDMAIL, "0<&-", 111)] {
        let instance = Instance::new();
        let _seen = instance.serve(accepted());
        let mut command = instance.command("/bin/sh");
        let line =
            format!("printf 'Fa\\0Tb\\0\\0' > e; exec \"$0\" {closed}{}", if closed == "0<&-" { " 1<e" } else { " </dev/null" });
        let ended = command.current_dir(instance.dir.path()).args(["-c", &line, program]).output().unwrap();
        assert_eq!(ended.status.code(), Some(code), "{program} {closed}: {ended:?}");
    }
}

#[test]
fn qmail_queue_tells_why_where_somebody_listens() {
    for (answer, code, text) in [
        (temporary("4.3.1 spool is full"), 53, "Zspool is full (#4.3.1)"),
        (temporary("later"), 71, "Zlater (#4.3.0)"),
        (permanent("5.7.1 not you"), 31, "Dnot you (#5.7.1)"),
        (permanent("5.1.3 odd"), 11, "Dodd (#5.1.3)"),
    ] {
        for (report, told) in [(None, false), (Some(3), false), (Some(4), true), (Some(5), false), (Some(6), true)] {
            let instance = Instance::new();
            let _seen = instance.serve(answer.clone());
            let expected = if told { (82, text.as_bytes().to_vec()) } else { (code, Vec::new()) };
            assert_eq!(queue(&instance, b"x\n", b"Fa\0Tb\0\0", report), expected);
        }
    }
    let instance = Instance::new();
    let _seen = instance.serve(None);
    assert_eq!(queue(&instance, b"x\n", b"Fa\0Tb\0\0", None).0, 74, "no answer is not a yes");
}

#[test]
fn qmail_inject_and_sendmail_speak_to_qmail_send() {
    for (program, args) in [(INJECT, &["-f", "s@h.example", "r@h.example"][..]), (SENDMAIL, &["-fs@h.example", "r@h.example"])] {
        let instance = Instance::new();
        let seen = instance.serve(accepted());
        let child = instance.command(program).args(args).spawn().unwrap();
        let body = "To: x\n\nline\n".to_owned() + &"z".repeat(3_000_000);
        assert_eq!(finish(child, body.as_bytes()), (0, String::new()));
        let seen = seen.recv().unwrap();
        assert_eq!((seen.sender.as_str(), seen.flags, seen.recipients), ("s@h.example", 0, vec!["r@h.example".to_owned()]));
        let text = String::from_utf8(seen.body).unwrap();
        assert!(text.contains("\nTo: x@me.example\n\nline\nzzz"));
        assert!(text.ends_with("z\n") && text.len() > 3_000_000 && seen.committed);
    }
}

#[test]
fn reports_are_asked_for_by_options_and_variables() {
    use wire::dsn::{Envid, Notify, Ret};
    let notify = format!("{:?}", Item::Notify(Notify::parse(b"SUCCESS,DELAY").unwrap()));
    let (ret, envid) = (Item::Ret(Ret::Headers), Item::Envid(Envid::new(b"QQ+2B1").unwrap()));
    let all = vec![format!("{ret:?}"), format!("{envid:?}"), notify.clone(), notify];
    let variables = [("QMAILNOTIFY", "delay,success"), ("QMAILRET", "HDRS"), ("QMAILENVID", "QQ+2B1")];
    let options = &["-N", "success,delay", "-Rhdrs", "-V", "QQ+2B1", "-i", "a@b.c", "d@e.f"][..];
    for (program, args, env) in [(SENDMAIL, options, &[][..]), (INJECT, &["a@b.c", "d@e.f"], &variables)] {
        let instance = Instance::new();
        let seen = instance.serve(accepted());
        let child = instance.command(program).args(args).envs(env.iter().copied()).spawn().unwrap();
        assert_eq!(finish(child, b"\nx\n"), (0, String::new()));
        assert_eq!(seen.recv().unwrap().asked, all);
    }
    // Refused before anything is read or sent: nobody listens.
    for (args, name) in [(["-N", "sometimes"], "QMAILNOTIFY"), (["-R", "half"], "QMAILRET"), (["-V", "a b"], "QMAILENVID")] {
        let instance = Instance::new();
        let child = instance.command(SENDMAIL).args(args).arg("a@b.c").spawn().unwrap();
        let (code, text) = finish(child, b"\nx\n");
        assert!(code == 100 && text.starts_with(&format!("sendmail: fatal: {name} ({}) has to be ", args[0])), "{code} {text}");
        let child = instance.command(INJECT).env(name, args[1]).arg("a@b.c").spawn().unwrap();
        let (code, text) = finish(child, b"\nx\n");
        assert!(code == 100 && text.starts_with(&format!("qmail-inject: fatal: {name} ")), "{code} {text}");
    }
}

#[test]
fn answers_become_exit_codes() {
    for (answer, inject, sendmail, text) in [
        (permanent("5.7.1 not you"), 100, 100, "not you (#5.7.1)"),
        (temporary("4.3.1 spool is full"), 111, 75, "spool is full (#4.3.1)"),
        (temporary("evil \x1b[0m"), 111, 75, "evil \\x1b[0m (#4.3.0)"),
    ] {
        for (program, name, code) in [(INJECT, "qmail-inject", inject), (SENDMAIL, "sendmail", sendmail)] {
            let instance = Instance::new();
            let _seen = instance.serve(answer.clone());
            let child = instance.command(program).arg("a@b.c").spawn().unwrap();
            assert_eq!(finish(child, b"\nx\n"), (code, format!("{name}: fatal: {text}\n")));
        }
    }
    let instance = Instance::new();
    let _seen = instance.serve(None);
    let child = instance.command(SENDMAIL).arg("a@b.c").spawn().unwrap();
    let (code, text) = finish(child, b"\nx\n");
    assert!(code == 75 && text.contains("(#4.4.2)"), "{text}");
}

#[test]
fn eight_bits_and_utf8_addresses_are_announced() {
    for (args, input, flags) in [
        (&["a@b.c"][..], &b"\nplain\n"[..], 0),
        (&["a@b.c"], b"\n\xe4\n", FLAG_EIGHT_BIT),
        (&["a@b.c"], "Subject: \u{e4}\n\nx\n".as_bytes(), FLAG_EIGHT_BIT),
        (&["jörg@b.c"], b"\nx\n", FLAG_SMTPUTF8),
        (&["-f", "jörg@b.c", "a@b.c"], b"\nx\n", FLAG_SMTPUTF8),
    ] {
        let instance = Instance::new();
        let seen = instance.serve(accepted());
        assert_eq!(finish(instance.command(INJECT).args(args).spawn().unwrap(), input).0, 0);
        assert_eq!(seen.recv().unwrap().flags, flags, "{args:?}");
    }
}

#[test]
fn callers_wait_for_a_system_that_starts() {
    let instance = Instance::new();
    fs::remove_dir(instance.dir.path().join("run/qmail")).unwrap();
    let child = instance.command(INJECT).arg("a@b.c").spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    fs::create_dir(instance.dir.path().join("run/qmail")).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let seen = instance.serve(accepted());
    assert_eq!(finish(child, b"\nx\n"), (0, String::new()));
    assert!(seen.recv().unwrap().committed);
}

#[test]
fn a_message_that_breaks_off_is_not_sent() {
    let instance = Instance::new();
    let seen = instance.serve(accepted());
    let mut child = instance.command(INJECT).arg("a@b.c").spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&[b"\n".as_slice(), &[b'x'; 200_000]].concat()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!seen.recv().unwrap().committed);
}

#[test]
fn codes_and_texts_of_a_queue_program() {
    for (script, inject, sendmail, text) in [
        ("exit 0", 0, 0, ""),
        ("cat >/dev/null; exit 11", 100, 100, "envelope address too long for qq (#5.1.3)"),
        ("cat >/dev/null; exit 31", 100, 100, "mail server permanently rejected message (#5.3.0)"),
        ("cat >/dev/null; exit 53", 111, 75, "qq write error or disk full (#4.3.0)"),
        ("cat >/dev/null; exit 71", 111, 75, "mail server temporarily rejected message (#4.3.0)"),
        ("cat >/dev/null; printf 'Dspam (#5.7.1)\\n' >&4; exit 82", 100, 100, "spam (#5.7.1)"),
        ("cat >/dev/null; printf 'Zwait (#4.7.1)' >&6; exit 88", 111, 75, "wait (#4.7.1)"),
        ("cat >/dev/null; exit 82", 111, 75, "qq temporary problem (#4.3.0)"),
        ("kill -9 $$", 111, 75, "qq crashed (#4.3.0)"),
    ] {
        for (program, name, code) in [(INJECT, "qmail-inject", inject), (SENDMAIL, "sendmail", sendmail)] {
            let instance = Instance::new();
            let script = instance.script(script);
            let child = instance.command(program).env("QMAILQUEUE", &script).arg("a@b.c").spawn().unwrap();
            let text = if text.is_empty() { String::new() } else { format!("{name}: fatal: {text}\n") };
            assert_eq!(finish(child, b"\nx\n"), (code, text));
        }
    }
    let instance = Instance::new();
    let child = instance.command(INJECT).env("QMAILQUEUE", "/nonexistent/program").arg("a@b.c").spawn().unwrap();
    assert_eq!(finish(child, b"\nx\n"), (111, "qmail-inject: fatal: unable to exec qq (#4.3.0)\n".to_owned()));
}

#[test]
fn a_program_that_stops_reading_is_no_success() {
    let instance = Instance::new();
    let script = instance.script("exec <&-; sleep 0.2; exit 0");
    let child = instance.command(INJECT).env("QMAILQUEUE", &script).arg("a@b.c").spawn().unwrap();
    let input = [b"\n".as_slice(), &vec![b'x'; 1_000_000]].concat();
    assert_eq!(finish(child, &input), (111, "qmail-inject: fatal: qq read error (#4.3.0)\n".to_owned()));
}

#[test]
fn the_program_gets_the_environment_and_just_its_descriptors() {
    let instance = Instance::new();
    let out = instance.dir.path().join("out");
    let script = instance.script(
        "cat >/dev/null; ls -l /proc/$$/fd >$OUT; echo fds=$QMAIL_FDS >>$OUT; pwd >>$OUT; grep Seccomp: /proc/self/status >>$OUT",
    );
    let child = instance.command(INJECT).env("QMAILQUEUE", &script).env("OUT", &out).arg("a@b.c").spawn().unwrap();
    assert_eq!(finish(child, b"\nx\n"), (0, String::new()));
    let text = fs::read_to_string(&out).unwrap();
    let open: Vec<&str> = text.lines().filter_map(|line| line.split_once(" -> ")?.0.rsplit(' ').next()).collect();
    // 10 is the shell's own descriptor of the script.
    let open: Vec<&str> = open.into_iter().filter(|number| number.parse::<u32>().is_ok_and(|n| n < 10)).collect();
    assert_eq!(open, ["0", "1", "2", "4", "6"], "{text}");
    assert!(text.contains("\nfds=\n/\n") && text.contains("Seccomp:\t0"), "{text}");
}

#[test]
fn nothing_runs_for_a_message_that_is_none() {
    let instance = Instance::new();
    let mark = instance.dir.path().join("mark");
    let script = instance.script("touch $MARK; cat >/dev/null");
    let child = instance.command(INJECT).env("QMAILQUEUE", &script).env("MARK", &mark).arg("a@b.c").spawn().unwrap();
    let (code, text) = finish(child, b"From: (x\n\nx\n");
    assert_eq!((code, text.as_str()), (100, "qmail-inject: fatal: unable to parse this line:\nFrom: (x\n"));
    std::thread::sleep(Duration::from_millis(100));
    assert!(!mark.exists());
}

#[test]
fn an_interrupted_message_is_a_cut_envelope_for_the_program() {
    let instance = Instance::new();
    let out = instance.dir.path().join("out");
    let script = instance.script("cat >/dev/null; cat <&1 | wc -c >$OUT.part; mv $OUT.part $OUT");
    let mut child = instance.command(INJECT).env("QMAILQUEUE", &script).env("OUT", &out).arg("a@b.c").spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&[b"\n".as_slice(), &[b'x'; 200_000]].concat()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    child.kill().unwrap();
    child.wait().unwrap();
    let start = Instant::now();
    while !out.exists() && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(fs::read_to_string(&out).unwrap().trim(), "0");
}

#[test]
fn the_programs_confine_themselves_before_they_read() {
    for program in [INJECT, QUEUE] {
        let instance = Instance::new();
        let _seen = instance.serve(accepted());
        let mut child = instance.command(program).spawn().unwrap();
        let status = format!("/proc/{}/status", child.id());
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(&status).unwrap();
            if text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2") {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "{text}");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_configuration_that_cannot_be_read_is_temporary() {
    let instance = Instance::new();
    fs::create_dir(instance.dir.path().join("etc/qmail/control/defaulthost")).unwrap();
    let child = instance.command(INJECT).arg("a@b.c").spawn().unwrap();
    let (code, text) = finish(child, b"\nx\n");
    assert!(code == 111 && text.starts_with("qmail-inject: fatal: ") && text.contains("defaulthost"), "{text}");
    let child = instance.command(SENDMAIL).arg("a@b.c").spawn().unwrap();
    assert_eq!(finish(child, b"\nx\n").0, 111);
}

#[test]
fn a_header_without_end_is_refused() {
    let instance = Instance::new();
    let _listener = instance.listen();
    let child = instance.command(INJECT).arg("a@b.c").spawn().unwrap();
    let input = "X-A: b\n".repeat((16 << 20) / 7 + 10);
    assert_eq!(finish(child, input.as_bytes()), (100, "qmail-inject: fatal: header too long (#5.3.4)\n".to_owned()));
}

#[test]
fn mailq_newaliases_and_bs_run_their_siblings() {
    let instance = Instance::new();
    let bin = instance.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for name in ["sendmail", "mailq", "newaliases"] {
        fs::copy(SENDMAIL, bin.join(name)).unwrap();
    }
    let sibling = |name: &str, text: &str| {
        fs::write(bin.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    let output = |name: &str, args: &[&str]| {
        let child = instance.command(bin.join(name).to_str().unwrap()).args(args).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text)
    };
    sibling("qmail", "shift 2; echo qmail \"$@\"");
    assert_eq!(output("mailq", &[]), (0, "qmail queue list\n".to_owned()));
    sibling("qmail-qread", "echo qread $# $QMAIL_ROOT");
    assert_eq!(output("sendmail", &["-bp"]), (0, format!("qread 0 {}\n", instance.dir.path().display())));
    // A copy, a link or a second name of sendmail itself makes no aliases, and does not run itself for ever.
    let own = (100, "sendmail: fatal: the program newaliases is not installed\n".to_owned());
    assert_eq!(output("newaliases", &[]), own);
    for make in [|from: &Path, to: &Path| fs::hard_link(from, to), |from: &Path, to: &Path| symlink(from, to)] {
        fs::remove_file(bin.join("newaliases")).unwrap();
        make(&bin.join("sendmail"), &bin.join("newaliases")).unwrap();
        assert_eq!(output("newaliases", &[]), own);
        assert_eq!(output("sendmail", &["-bi"]), own);
    }
    fs::remove_file(bin.join("newaliases")).unwrap();
    sibling("newaliases", "echo newaliases $# $QMAIL_ROOT");
    assert_eq!(output("sendmail", &["-bi", "-v"]), (0, format!("newaliases 0 {}\n", instance.dir.path().display())));
    sibling("qmail-smtpd", "echo $PROTO $TCPREMOTEIP $TCPREMOTEHOST $TCPREMOTEINFO $DATABYTES ${RELAYCLIENT-unset}. $USER");
    assert_eq!(output("sendmail", &["-bs"]), (0, "TCP 127.0.0.1 localhost sendmail-bs 0 . joe\n".to_owned()));
}
