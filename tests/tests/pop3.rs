//! POP3 as users meet it: large mailboxes, clients of others, sessions beside each other.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::time::Instant;
use system_tests::line::Line;
use system_tests::{Instance, facts};

fn instance() -> Instance {
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    // The first session makes the mailbox.
    instance.pop3("bob@example.test").unwrap().must("QUIT").unwrap();
    instance
}

/// A file as its owner's programs would have made it.
fn put(maildir: &Path, name: &str, text: &[u8]) {
    let path = maildir.join(name);
    std::fs::write(&path, text).unwrap();
    let owner = std::fs::metadata(maildir).unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

/// From sending PASS to the first byte of UIDL's answer, both in one write; and the session.
fn login_to_uidl(instance: &Instance) -> (u128, Line) {
    let mut line = Line::open(instance.port(110)).unwrap();
    line.line().unwrap();
    line.raw(b"USER bob@example.test\r\n").unwrap();
    line.line().unwrap();
    let start = Instant::now();
    line.raw(b"PASS bob-password\r\nUIDL\r\n").unwrap();
    assert_eq!(line.line().unwrap(), b"+OK ");
    assert_eq!(line.line().unwrap(), b"+OK ");
    (start.elapsed().as_millis(), line)
}

/// Resident bytes of the session's process.
fn memory(instance: &Instance) -> usize {
    let sessions = facts::descendants(instance.pid());
    let pop3d = sessions.iter().find(|process| process.name == "qmail-pop3d").unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", pop3d.pid)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
}

#[test]
fn a_hundred_thousand_messages_are_listed_at_once() {
    const COUNT: usize = 100_000;
    let instance = instance();
    let maildir = instance.maildir("bob@example.test");
    let (_, mut line) = login_to_uidl(&instance);
    assert_eq!(line.line().unwrap(), b".");
    let empty = memory(&instance);
    line.raw(b"QUIT\r\n").unwrap();
    assert!(line.line().is_ok() && line.is_closed().unwrap());
    for n in 0..COUNT {
        put(&maildir, &format!("cur/{}.M{n:06}P4711Q{n}.mail.example.test:2,S", 1_700_000_000 + n), b"Subject: x\n\nx\n");
    }
    for _ in 0..3 {
        let (ms, mut line) = login_to_uidl(&instance);
        let each = (memory(&instance).saturating_sub(empty)) / COUNT;
        println!("{COUNT} messages: login to the first byte of UIDL {ms} ms, {each} bytes a message");
        let last = std::iter::repeat_with(|| line.line().unwrap()).take(COUNT + 1).last().unwrap();
        assert_eq!(last, b".");
        assert!(each < 400, "{each} bytes a message");
        let start = Instant::now();
        line.raw(b"STAT\r\n").unwrap();
        assert_eq!(line.line().unwrap(), format!("+OK {COUNT} {}", COUNT * 17).as_bytes());
        println!("{COUNT} messages: STAT {} ms", start.elapsed().as_millis());
    }
}
