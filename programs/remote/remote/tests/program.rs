//! The real program: started as qmail-start starts it, confined, given a job, ended in the middle of another.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipc::job::{Answer, Job, Route};
use ipc::{DATAGRAM_LEN_MAX, Message};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, Uid};
use sys::spawn::{Ended, Spawn};
use sys::{Received, Seqpacket};
use wire::Address;

const PROGRAM: &str = env!("CARGO_BIN_EXE_qmail-remote");
const LETTER: &[u8] = b"Subject: x\n\nhello\n";
/// The uid of qmail-send in an instance whose programs root runs.
const QMAILQ: u32 = 64_103;

fn instance() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for sub in ["etc/qmail/control", "run/qmail/roles"] {
        std::fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    std::fs::write(dir.path().join("etc/qmail/control/me"), "me.example\n").unwrap();
    if rustix::process::geteuid().is_root() {
        std::fs::write(dir.path().join("etc/qmail/ids"), format!("qmailq {QMAILQ} 64100\n")).unwrap();
    }
    dir
}

/// Connects as qmail-send's role, or without root as the caller, who is every role.
fn connect(run: &std::fs::File, uid: u32) -> Seqpacket {
    let run = run.try_clone().unwrap();
    // The kernel changes the ids of this one thread.
    let thread = std::thread::spawn(move || {
        if rustix::process::geteuid().is_root() {
            rustix::thread::set_thread_res_uid(None, Uid::from_raw(uid), None).unwrap();
        }
        Seqpacket::connect(run.as_fd(), "roles/remote.sock").unwrap()
    });
    let client = thread.join().unwrap();
    client.set_deadline(Duration::from_secs(20)).unwrap();
    client
}

/// A server that takes a second for each message and says when a body has come.
fn slow_server() -> (SocketAddr, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, tell) = (stream.unwrap(), tell.clone());
            std::thread::spawn(move || obey(stream, &tell));
        }
    });
    (address, told)
}

fn obey(stream: TcpStream, tell: &mpsc::Sender<()>) -> std::io::Result<()> {
    let mut writing = stream.try_clone()?;
    writing.write_all(b"220 hi\r\n")?;
    let mut in_body = false;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if in_body && line != "." {
            continue;
        }
        if in_body {
            let _ = tell.send(());
            std::thread::sleep(Duration::from_secs(1));
        }
        in_body = line == "DATA";
        writing.write_all(if in_body { b"354 go\r\n" } else { b"250 ok\r\n" })?;
    }
    Ok(())
}

fn send_job(client: &Seqpacket, number: u64, address: SocketAddr) {
    job(client, number, address).unwrap();
}

fn job(client: &Seqpacket, number: u64, address: SocketAddr) -> std::io::Result<()> {
    let job = Job::Remote {
        number,
        message: 1,
        sender: Address::null(),
        recipients: vec![Address::new(b"r@b.example").unwrap()],
        route: Route::Relay { host: address.ip().to_string().as_str().into(), port: address.port(), login: None },
        flags: 0,
        size: LETTER.len() as u64,
        options: None,
    };
    client.send_with_fd(&job.encode(), sys::memfd::sealed(LETTER).unwrap().as_fd())
}

fn result(client: &Seqpacket) -> (u64, u8, String) {
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    let Received::Datagram(len, None) = client.recv(&mut buf).unwrap() else { panic!("closed") };
    let Answer::Done { number, outcomes, last: true, .. } = Answer::decode(&buf[..len]).unwrap() else { panic!("not the last") };
    (number, outcomes[0].verdict.letter(), String::from_utf8_lossy(&outcomes[0].text).into_owned())
}

/// The program as qmail-start runs it.
struct Running {
    child: sys::spawn::Child,
    lifeline: OwnedFd,
    run: std::fs::File,
    _listener: OwnedFd,
    _dir: tempfile::TempDir,
}

fn start() -> Running {
    let dir = instance();
    let run = std::fs::File::open(dir.path().join("run/qmail")).unwrap();
    let listener = sys::seqpacket::listen(run.as_fd(), "roles/remote.sock").unwrap();
    let socket = dir.path().join("run/qmail/roles/remote.sock");
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o777)).unwrap();
    let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
    let ((theirs, lifeline), (said, ready)) = (pipe(), pipe());
    let stderr = std::io::stderr();
    let spawn = Spawn::new(Path::new(PROGRAM)).arg("--service").env("QMAIL_ROOT", dir.path()).stderr(stderr.as_fd());
    let admin = sys::seqpacket::listen(run.as_fd(), "roles/admin.sock").unwrap();
    let spawn = spawn.fd("serve:admin-remote", admin.as_fd());
    let spawn = spawn.fd("lifeline", theirs.as_fd()).fd("ready", ready.as_fd()).fd("run", run.as_fd());
    let child = spawn.fd("serve:remote", listener.as_fd()).start().unwrap();
    drop((ready, theirs));
    assert_eq!(rustix::io::read(&said, &mut [0u8; 1][..]), Ok(1));
    Running { child, lifeline, run, _listener: listener, _dir: dir }
}

#[test]
fn the_confined_service_delivers_and_ends_what_it_has_begun() {
    for by_signal in [false, true] {
        let Running { child, lifeline: ours, run, _listener, _dir } = start();
        if rustix::process::geteuid().is_root() {
            let stranger = connect(&run, 64_199);
            assert!(matches!(stranger.recv(&mut [0; 100]), Ok(Received::End) | Err(_)), "not a caller of this socket");
        }
        let client = connect(&run, QMAILQ);
        let (address, body_came) = slow_server();
        send_job(&client, 1, address);
        let accepted = "127.0.0.1 accepted message.\nRemote host said: 250 ok\n".to_owned();
        assert_eq!(result(&client), (1, b'K', accepted.clone()));
        body_came.recv().unwrap();
        send_job(&client, 2, address);
        body_came.recv().unwrap();
        let start = Instant::now();
        if by_signal {
            child.signal(Signal::TERM)
        } else {
            drop(ours)
        }
        assert_eq!(result(&client), (2, b'K', accepted));
        assert_eq!(child.wait(), Ended::Code(0));
        assert!(start.elapsed() < Duration::from_secs(6));
    }
}

#[test]
fn retired_it_answers_all_that_it_took_and_ends() {
    let running = start();
    let client = connect(&running.run, QMAILQ);
    let (address, body_came) = slow_server();
    let mut taken = 1;
    send_job(&client, 1, address);
    body_came.recv().unwrap();
    rustix::io::write(&running.lifeline, b"r").unwrap();
    // Until it has heard of it, it takes jobs.
    while job(&client, taken + 1, address).is_ok() {
        taken += 1;
        assert!(taken < 1000, "it goes on to take jobs");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(job(&client, 0, address).unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    let mut answered: Vec<u64> = (0..taken)
        .map(|_| match result(&client) {
            (number, b'K', _) => number,
            other => panic!("{other:?}"),
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, (1..=taken).collect::<Vec<_>>());
    assert!(matches!(client.recv(&mut [0; 100]), Ok(Received::End)));
    assert_eq!(running.child.wait(), Ended::Code(0));
}

#[test]
fn bad_configurations_are_named() {
    for (file, text, args, code, part) in [
        ("outgoingip", "eth0\n", &["--service"][..], 111, "control/outgoingip"),
        ("tlspolicy", ":must\n", &["--service"], 111, "control/tlspolicy: line 1: `:must` has no policy"),
        ("tlscafile", "/nonexistent/ca.pem\n", &["--service"], 111, "/nonexistent/ca.pem: No such file"),
        ("tlscafile", "control/me\n", &["--service"], 111, "control/me: has no certificate"),
    ] {
        let dir = instance();
        std::fs::write(dir.path().join("etc/qmail/control").join(file), text).unwrap();
        let output = std::process::Command::new(PROGRAM).args(args).env("QMAIL_ROOT", dir.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(part));
    }
}
