//! POP3 as users meet it: large mailboxes, clients of others, sessions beside each other.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use system_tests::dovecot::{Dovecot, exists};
use system_tests::instance::feed;
use system_tests::line::Line;
use system_tests::{Instance, facts, is_root, skip, tools};

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

/// All that comes up to the single dot.
fn to_the_dot(line: &mut Line) -> usize {
    std::iter::repeat_with(|| line.line().unwrap()).take_while(|line| line != b".").count()
}

#[test]
fn a_hundred_thousand_messages_are_listed_at_once() {
    const COUNT: usize = 100_000;
    let instance = instance();
    let maildir = instance.maildir("bob@example.test");
    let (_, mut line) = login_to_uidl(&instance);
    assert_eq!(to_the_dot(&mut line), 0);
    let empty = memory(&instance);
    line.raw(b"QUIT\r\n").unwrap();
    assert!(line.line().is_ok() && line.is_closed().unwrap());
    for n in 0..COUNT {
        put(&maildir, &format!("cur/{}.M{n:06}P4711Q{n}.mail.example.test:2,S", 1_700_000_000 + n), b"Subject: x\n\nx\n");
    }
    for _ in 0..2 {
        let (ms, mut line) = login_to_uidl(&instance);
        let each = memory(&instance).saturating_sub(empty) / COUNT;
        println!("{COUNT} messages: login to the first byte of UIDL {ms} ms, {each} bytes a message");
        assert_eq!(to_the_dot(&mut line), COUNT);
        assert!(each < 400, "{each} bytes a message");
        let start = Instant::now();
        line.raw(b"STAT\r\n").unwrap();
        assert_eq!(line.line().unwrap(), format!("+OK {COUNT} {}", COUNT * 17).as_bytes());
        println!("{COUNT} messages: STAT, which reads them, {} ms", start.elapsed().as_millis());
    }
}

/// What fetchmail's users have besides: the clients of Python and mpop.
#[test]
fn poplib_and_mpop_fetch_what_was_sent() {
    let name = "poplib_and_mpop_fetch_what_was_sent";
    let instance = instance();
    let odd = "Subject: odd\n\n.dot\n..\n\u{e4}\n\n";
    instance.smtp().unwrap().send("a@elsewhere.test", &["bob@example.test"], odd).unwrap();
    instance.wait_mail("bob@example.test", 1).unwrap();
    put(&instance.maildir("bob@example.test"), "cur/9999999999.no-final-newline:2,", b"Subject: y\n\nbare\rCR and no end");
    let script = format!(
        "import poplib\np = poplib.POP3('127.0.0.1', {})\nc = p.capa()\nassert 'UTF8' in c and 'LANG' in c and 'PIPELINING' in c, c\n\
         p.utf8()\np.user('bob@example.test')\np.pass_('bob-password')\ncount, size = p.stat()\nassert count == 2, count\n\
         sizes = [int(l.split()[1]) for l in p.list()[1]]\nassert sum(sizes) == size\n\
         got = [p.retr(n)[1] for n in (1, 2)]\nassert [sum(len(l) + 2 for l in lines) for lines in got] == sizes\n\
         assert got[0][-4:] == [b'.dot', b'..', 'ä'.encode(), b''], got[0]\n\
         assert got[1] == [b'Subject: y', b'', b'bare\\rCR and no end'], got[1]\n\
         assert p.top(1, 1)[1][-1] == b'.dot'\nassert p.uidl(2).split()[2] == b'9999999999.no-final-newline'\np.quit()\n",
        instance.port(110)
    );
    let python = feed(Command::new("python3").arg("-"), script.as_bytes()).unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let Some(mpop) = tools::get(name, "mpop", "usr/bin/mpop").unwrap() else { return };
    let got = instance.dir().join("got");
    std::fs::create_dir_all(got.join("new")).unwrap();
    for dir in ["cur", "tmp"] {
        std::fs::create_dir_all(got.join(dir)).unwrap();
    }
    let mut command = mpop.command();
    command.args(["--host=127.0.0.1", "--auth=user", "--user=bob@example.test", "--passwordeval=echo bob-password", "--tls=off"]);
    command.arg(format!("--port={}", instance.port(110))).arg(format!("--deliver=maildir,{}", got.display()));
    command.arg(format!("--uidls-file={}", instance.dir().join("uidls").display())).env("HOME", instance.dir());
    let output = command.arg("--keep=off").output().unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let letters = system_tests::users::letters(&got);
    assert!(letters.len() == 2 && letters.iter().any(|letter| letter.contains("\n.dot\n..\n\u{e4}\n")), "{letters:?}");
    assert_eq!(instance.pop3("bob@example.test").unwrap().count().unwrap(), 0, "it deleted them");
}

fn unique_ids(instance: &Instance) -> Vec<String> {
    let mut pop3 = instance.pop3("bob@example.test").unwrap();
    let lines = pop3.lines("UIDL").unwrap();
    pop3.must("QUIT").unwrap();
    let id = |line: Vec<u8>| String::from_utf8(line).unwrap().split_once(' ').unwrap().1.to_owned();
    lines.into_iter().map(id).collect()
}

/// IMAP as users get it today: Dovecot over the same Maildir.
#[test]
fn dovecot_reads_the_same_maildir() {
    let name = "dovecot_reads_the_same_maildir";
    if !is_root() {
        return skip(name, "Dovecot's master must be root");
    }
    let instance = instance();
    let send = |subject: &str| {
        instance
            .smtp()
            .unwrap()
            .send("a@elsewhere.test", &["bob@example.test"], &format!("Subject: {subject}\n\ntext\n"))
            .unwrap();
        instance.wait_empty().unwrap();
    };
    ["one", "two", "three"].into_iter().for_each(send);
    let before = unique_ids(&instance);
    assert_eq!(before.len(), 3);
    let dovecot = Dovecot::start(&instance, instance.port(143), &["bob@example.test"]).unwrap();
    let (mut imap, count) = dovecot.inbox("bob@example.test").unwrap();
    assert_eq!(count, 3);
    let subjects = imap.must("FETCH 1:* (BODY.PEEK[HEADER.FIELDS (SUBJECT)])").unwrap();
    let subjects: Vec<_> = subjects.iter().filter_map(|line| line.strip_prefix("Subject: ")).collect();
    assert_eq!(subjects, ["one", "two", "three"]);
    // Flags change names, and names must not change unique-ids.
    imap.must("STORE 1:2 +FLAGS (\\Seen \\Flagged)").unwrap();
    imap.must("CHECK").unwrap();
    assert_eq!(unique_ids(&instance), before);
    // What comes while both look.
    send("four");
    assert_eq!(exists(&imap.must("NOOP").unwrap()), Some(4));
    // IMAP deletes under an open POP3 session.
    let mut pop3 = instance.pop3("bob@example.test").unwrap();
    assert_eq!(pop3.count().unwrap(), 4);
    imap.must("STORE 2 +FLAGS (\\Deleted)").unwrap();
    imap.must("EXPUNGE").unwrap();
    assert!(pop3.ask("RETR 2").unwrap().starts_with("-ERR"));
    assert!(pop3.message(1).unwrap().contains("Subject: one\n"));
    // And POP3 under an open IMAP session.
    pop3.must("DELE 3").unwrap();
    pop3.must("QUIT").unwrap();
    let after = unique_ids(&instance);
    assert_eq!(after.len(), 2);
    assert_eq!(after[0], before[0]);
    imap.must("NOOP").unwrap();
    drop(imap);
    let (mut imap, count) = dovecot.inbox("bob@example.test").unwrap();
    let flags = imap.must("FETCH 1:* (FLAGS)").unwrap();
    assert!(count == 2 && flags[0].contains("\\Seen") && flags[0].contains("\\Flagged"), "{count} {flags:?}");
}

/// Whoever fetched mail may send, from there and as long as that is said.
#[test]
fn pop_before_smtp() {
    let mut instance = Instance::new().unwrap();
    let listen =
        format!("smtp 127.0.0.1:{} proxy=127.0.0.1\npop3 127.0.0.1:{} proxy=127.0.0.1\n", instance.port(25), instance.port(110));
    let networks = "127.0.0.0/8\n198.51.100.0/24\n";
    for (file, text) in [("listen", listen.as_str()), ("popbeforesmtp", "10\n"), ("authcleartext", networks)] {
        instance.control(file, text).unwrap();
    }
    instance.control("smtproutes", ":127.0.0.1:1\n").unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let connect = |port: u16, client: &str| {
        let mut line = Line::open(port).unwrap();
        line.raw(format!("PROXY TCP4 {client} 203.0.113.9 4711 {port}\r\n").as_bytes()).unwrap();
        line.line().unwrap();
        line
    };
    let rcpt = |client: &str| {
        let mut line = connect(instance.port(25), client);
        line.raw(b"HELO c.example\r\nMAIL FROM:<bob@example.test>\r\nRCPT TO:<x@far.example>\r\nQUIT\r\n").unwrap();
        let replies: Vec<_> = (0..3).map(|_| String::from_utf8(line.line().unwrap()).unwrap()).collect();
        replies[2].clone()
    };
    assert!(rcpt("198.51.100.7").starts_with("553 5.7.1"), "nobody has fetched mail");
    let log_in = |password: &str| {
        let mut line = connect(instance.port(110), "198.51.100.7");
        line.raw(format!("USER bob@example.test\r\nPASS {password}\r\nQUIT\r\n").as_bytes()).unwrap();
        line.line().unwrap();
        String::from_utf8(line.line().unwrap()).unwrap()
    };
    assert!(log_in("wrong").starts_with("-ERR"));
    assert!(rcpt("198.51.100.7").starts_with("553 5.7.1"), "a refused login is none");
    assert!(log_in("bob-password").starts_with("+OK"));
    assert!(rcpt("198.51.100.7").starts_with("250 2.1.5"));
    assert!(rcpt("198.51.100.8").starts_with("553 5.7.1"), "from another address");
}
