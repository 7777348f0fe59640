//! The real program: started as qmail-start starts it, confined, asked, ended.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ipc::resolve::{Answer, Request};
use ipc::{DATAGRAM_LEN_MAX, Message};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, Uid};
use sys::spawn::{Ended, Spawn};
use sys::{Received, Seqpacket};

const PROGRAM: &str = env!("CARGO_BIN_EXE_qmail-resolve");

/// Says NXDOMAIN to every question.
fn nobody_exists() -> std::net::SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buf) {
            // QR, RD, RA; NXDOMAIN; the question alone comes back.
            buf[2..4].copy_from_slice(&[0x81, 0x83]);
            buf[6..12].fill(0);
            let end = 12 + buf[12..len].iter().position(|b| *b == 0).unwrap() + 5;
            socket.send_to(&buf[..end], from).unwrap();
        }
    });
    address
}

/// Uids for the roles of an instance whose programs root runs.
const ROLES: [(&str, u32); 6] =
    [("qmailp", 64_100), ("qmaila", 64_101), ("qmaild", 64_102), ("qmailq", 64_103), ("qmailr", 64_104), ("qmailx", 64_105)];

fn instance(resolvers: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for sub in ["etc/qmail/control", "run/qmail/roles"] {
        std::fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    std::fs::write(dir.path().join("etc/qmail/control/resolvers"), resolvers).unwrap();
    if rustix::process::geteuid().is_root() {
        let ids: String = ROLES.iter().map(|(role, id)| format!("{role} {id} 64100\n")).collect();
        std::fs::write(dir.path().join("etc/qmail/ids"), ids).unwrap();
    }
    dir
}

/// Connects as a role, or without root as the caller, who is every role.
fn connect_as(role: &str, run: &std::fs::File) -> Seqpacket {
    let uid = ROLES.iter().find(|(name, _)| *name == role).map(|(_, uid)| Uid::from_raw(*uid));
    let uid = uid.filter(|_| rustix::process::geteuid().is_root());
    let run = run.try_clone().unwrap();
    // The kernel changes the ids of this one thread.
    let thread = std::thread::spawn(move || {
        if uid.is_some() {
            rustix::thread::set_thread_res_uid(None, uid, None).unwrap();
        }
        Seqpacket::connect(run.as_fd(), "roles/resolve.sock").unwrap()
    });
    let client = thread.join().unwrap();
    client.set_deadline(Duration::from_secs(20)).unwrap();
    client
}

#[test]
fn bad_configurations_are_named() {
    let dir = instance("nonsense\n");
    let output = Command::new(PROGRAM).arg("--service").env("QMAIL_ROOT", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(111));
    assert!(String::from_utf8_lossy(&output.stderr).contains("control/resolvers"));
    let output = Command::new(PROGRAM).env("QMAIL_ROOT", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(100));
}

#[test]
fn the_confined_service_answers_and_ends_with_its_lifeline_or_a_signal() {
    for by_signal in [false, true] {
        let dir = instance(&nobody_exists().to_string());
        let run = std::fs::File::open(dir.path().join("run/qmail")).unwrap();
        let listener = sys::seqpacket::listen(run.as_fd(), "roles/resolve.sock").unwrap();
        let socket = dir.path().join("run/qmail/roles/resolve.sock");
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o777)).unwrap();
        let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
        let ((lifeline, ours), (said, ready)) = (pipe(), pipe());
        let stderr = std::io::stderr();
        let spawn = Spawn::new(Path::new(PROGRAM)).arg("--service").env("QMAIL_ROOT", dir.path()).stderr(stderr.as_fd());
        let spawn = spawn.fd("lifeline", lifeline.as_fd()).fd("ready", ready.as_fd()).fd("run", run.as_fd());
        let child = spawn.fd("serve:resolve", listener.as_fd()).start().unwrap();
        drop((ready, lifeline));
        assert_eq!(rustix::io::read(&said, &mut [0u8; 1][..]), Ok(1));
        for role in ["qmailr", "qmailq"] {
            let client = connect_as(role, &run);
            client.send(&Request::Addresses { id: 7, host: "nowhere.example".into() }.encode()).unwrap();
            let mut buf = [0; DATAGRAM_LEN_MAX];
            let Received::Datagram(len, _) = client.recv(&mut buf).unwrap() else { panic!("closed") };
            let answer = Answer::decode(&buf[..len]).unwrap();
            assert!(matches!(answer, Answer::NoHost { id: 7, name_exists: false, .. }), "{answer:?}");
        }
        if rustix::process::geteuid().is_root() {
            let client = connect_as("qmaild", &run);
            let _ = client.send(&Request::Addresses { id: 7, host: "nowhere.example".into() }.encode());
            assert!(matches!(client.recv(&mut [0; 100]), Ok(Received::End) | Err(_)), "not a caller of this socket");
        }
        let start = Instant::now();
        if by_signal {
            child.signal(Signal::TERM)
        } else {
            drop(ours)
        }
        assert_eq!(child.wait(), Ended::Code(0));
        assert!(start.elapsed() < Duration::from_secs(6));
    }
}
