//! A stand-in for qmail-local and qmail-pop3d in the tests of qmail-lspawn: it does what the sender's local part says.
//! As `--connect DIR` it connects to roles/lspawn.sock there, under the uid it was started with, and hands the connection over.
#![allow(clippy::unwrap_used)]

use ipc::field::Verdict;
use ipc::lspawn::Existence;
use ipc::worker::{Recipient, Report, Request};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use sys::{Received, Seqpacket};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("--connect") => connect(&args[1]),
        Some("--worker" | "--once") => work(&args),
        _ => session(&args),
    }
}

fn connect(dir: &str) {
    let to = Seqpacket::from_fd(sys::inherited::Inherited::take().unwrap().one("work").unwrap());
    let dir = std::fs::File::open(dir).unwrap();
    let socket = Seqpacket::connect(dir.as_fd(), "roles/lspawn.sock").unwrap();
    to.send_with_fd(b"x", socket.as_fd()).unwrap();
}

fn session(args: &[String]) {
    let uid = rustix::process::getuid().as_raw();
    let mut out = std::io::stdout();
    write!(out, "+OK {uid} {}\r\n", std::path::absolute(&args[0]).unwrap().display()).unwrap();
    out.flush().unwrap();
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).unwrap();
}

fn work(args: &[String]) {
    let socket = Seqpacket::from_fd(sys::inherited::Inherited::take().unwrap().one("work").unwrap());
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    while let Received::Datagram(len, body) = socket.recv_with_fd(&mut buf).unwrap() {
        match Request::decode(&buf[..len]).unwrap() {
            Request::Exists { number, recipient, .. } => {
                let answer = if &recipient.ext[..] == b"list" { Existence::Yes {} } else { Existence::No {} };
                socket.send(&Report::Exists { number, answer }.encode()).unwrap();
            }
            Request::Deliver { number, sender, recipient, default_delivery, settings, lmtp: _ } => {
                let mut says = describe(args, &recipient, &default_delivery, body);
                if !settings.is_empty() {
                    says += &format!(" settings={settings:?}");
                }
                obey(&socket, args, number, sender.local(), says);
            }
            Request::Forward { number, recipient, targets, sender } => {
                let says = format!("{} to {targets:?}", describe(args, &recipient, b"-", body));
                obey(&socket, args, number, sender.local(), says);
            }
        }
    }
}

fn obey(socket: &Seqpacket, args: &[String], number: u64, order: &[u8], says: String) {
    let done =
        |number, verdict, text: String| socket.send(&Report::Done { number, verdict, text: text.as_str().into() }.encode());
    match order {
        b"die" => std::process::exit(3),
        b"garbage" => socket.send(b"\x01garbage").unwrap(),
        b"strange" => done(number ^ 0x5555, Verdict::Success, says).unwrap(),
        b"question" => socket.send(&Report::Exists { number, answer: Existence::Yes {} }.encode()).unwrap(),
        b"program" if args[0] == "--worker" => socket.send(&Report::NeedsExec { number }.encode()).unwrap(),
        b"hang" => std::thread::sleep(std::time::Duration::from_secs(600)),
        b"slow" => {
            std::thread::sleep(std::time::Duration::from_millis(300));
            done(number, Verdict::Success, says).unwrap();
        }
        b"fail" => done(number, Verdict::Failure, "no".to_owned()).unwrap(),
        b"long" => done(number, Verdict::Success, "x".repeat(9000)).unwrap(),
        b"last" => {
            done(number, Verdict::Success, says).unwrap();
            std::process::exit(0);
        }
        _ => done(number, Verdict::Success, says).unwrap(),
    }
}

fn describe(args: &[String], to: &Recipient, default_delivery: &[u8], body: Option<OwnedFd>) -> String {
    let mut text = String::new();
    if let Some(body) = body {
        // The offset is shared with whoever else has the body: it is never moved.
        let mut bytes = [0; 100];
        let len = std::os::unix::fs::FileExt::read_at(&std::fs::File::from(body), &mut bytes, 0).unwrap();
        text.push_str(std::str::from_utf8(&bytes[..len]).unwrap());
    }
    let text_of = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    format!(
        "{} uid={} gid={} groups={} pid={} fds={} user={} home={} local={} dash={} ext={} domain={} default={} body={text}",
        args.join(" "),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        rustix::process::getgroups().unwrap().len(),
        std::process::id(),
        std::fs::read_dir("/proc/self/fd").unwrap().count() - 1,
        text_of(&to.user),
        text_of(&to.home),
        text_of(&to.local),
        text_of(&to.dash),
        text_of(&to.ext),
        text_of(&to.domain),
        text_of(default_delivery),
    )
}
