//! The real program over its classic interface, and as a confined service.
#![allow(clippy::unwrap_used)]

use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ipc::getpw::{Answer, Request};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use sys::spawn::{Ended, Spawn};
use sys::{Received, Seqpacket};

const PROGRAM: &str = env!("CARGO_BIN_EXE_qmail-getpw");

fn instance() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("etc/qmail")).unwrap();
    if rustix::process::geteuid().is_root() {
        std::fs::write(dir.path().join("etc/qmail/ids"), "qmailp 61100 61100\nalias 61106 61107\n").unwrap();
    }
    dir
}

/// What stands for alias in this run.
fn alias() -> (u32, u32) {
    let caller = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if caller.0 == 0 { (61106, 61107) } else { caller }
}

#[test]
fn prints_the_user_or_alias() {
    let dir = instance();
    let output = Command::new(PROGRAM).arg("no-such-User").env("QMAIL_ROOT", dir.path()).output().unwrap();
    let (uid, gid) = alias();
    let expected = format!("alias\0{uid}\0{gid}\0{}/etc/qmail/alias\0-\0no-such-User\0", dir.path().display());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!(output.status.code(), Some(0));
    let root = Command::new(PROGRAM).arg("root").env("QMAIL_ROOT", dir.path()).output().unwrap();
    assert!(root.stdout.starts_with(b"alias\0"), "root gets no mail");
}

#[test]
fn exit_codes() {
    let dir = instance();
    let code = |args: &[&str]| Command::new(PROGRAM).args(args).env("QMAIL_ROOT", dir.path()).output().unwrap().status.code();
    assert_eq!(code(&[]), Some(100));
    assert_eq!(code(&["a", "b"]), Some(100));
    assert_eq!(code(&["--service"]), Some(111), "without qmail-start");
    if rustix::process::geteuid().is_root() {
        std::fs::write(dir.path().join("etc/qmail/ids"), "qmailp 61100 61100\n").unwrap();
        assert_eq!(code(&["nobody-here"]), Some(116));
        std::fs::remove_file(dir.path().join("etc/qmail/ids")).unwrap();
        assert_eq!(code(&["nobody-here"]), Some(111));
    }
}

#[test]
fn the_confined_service_answers_and_ends_with_its_lifeline() {
    let dir = instance();
    std::fs::create_dir_all(dir.path().join("run/qmail/roles")).unwrap();
    let run = std::fs::File::open(dir.path().join("run/qmail")).unwrap();
    let listener = sys::seqpacket::listen(run.as_fd(), "roles/getpw.sock").unwrap();
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((lifeline, ours), (said, ready)) = (pipe(), pipe());
    let stderr = std::io::stderr();
    let spawn = Spawn::new(Path::new(PROGRAM)).arg("--service").env("QMAIL_ROOT", dir.path()).stderr(stderr.as_fd());
    let spawn = spawn.fd("lifeline", lifeline.as_fd()).fd("ready", ready.as_fd()).fd("serve:getpw", listener.as_fd());
    let child = spawn.start().unwrap();
    drop(ready);
    assert_eq!(rustix::io::read(&said, &mut [0u8; 1][..]), Ok(1));
    let client = Seqpacket::connect(run.as_fd(), "roles/getpw.sock").unwrap();
    client.set_deadline(Duration::from_secs(20)).unwrap();
    client.send(&Request::Who { id: 1, local: "no-such-user".into() }.encode()).unwrap();
    let mut buf = [0; DATAGRAM_LEN_MAX];
    let Received::Datagram(len, _) = client.recv(&mut buf).unwrap() else { panic!("closed") };
    let Answer::User { id: 1, user, uid, gid, .. } = Answer::decode(&buf[..len]).unwrap() else { panic!("no user") };
    assert_eq!((&user[..], (uid, gid)), (&b"alias"[..], alias()));
    drop(ours);
    assert_eq!(child.wait(), Ended::Code(0));
}
