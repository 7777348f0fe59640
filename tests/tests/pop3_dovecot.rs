//! The same commands over the same Maildir, to our POP3 server and to Dovecot's: what differs is in the table of
//! docs/compatibility.md, and nothing else does.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;
use system_tests::dovecot::{Dovecot, PASSWORD};
use system_tests::line::Line;
use system_tests::{Instance, is_root, skip};

/// Odd letters: dots, 8-bit, empty bodies, continued fields.
const LETTERS: [&[u8]; 7] = [
    b"Subject: one\n\nfirst\n.dot\n..two\n.\nlast\n",
    b"Subject: two\nX: y\n\n",
    b"Subject: three\nTo: .\n\nthree\n",
    b"Subject: four\n\nl\xc3\xa4tin \xff\n",
    b"Subject: five\n\n\n\n.\n\n",
    b"Subject: six\nContinued: a\n b\n\n1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n",
    b"Subject: seven\n\ngone\n",
];

/// What a command is answered with: the kind of answer alone, its first line too, or its lines as well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// `+OK` or `-ERR`.
    Status,
    /// And the numbers behind it.
    Numbers,
    /// And all lines up to the dot, where it is `+OK`.
    Lines,
    /// As lines, which are not compared: capabilities.
    Uncompared,
    /// As lines, of which the unique-id is everybody's own: their numbers and that no two are alike.
    Ids,
}

/// Scripts, each in a session of its own; `|` divides commands. Which of them have lines behind their first one is seen from the verb.
const SCRIPTS: &[&str] = &[
    "STAT",
    "stat",
    "LIST",
    "LIST 1|LIST 7|LIST 4",
    "LIST 0",
    "LIST 8",
    "LIST -1",
    "LIST x",
    "LIST 1x",
    "LIST 01",
    "LIST 4294967297",
    "LIST 18446744073709551617",
    "LIST 99999999999999999999999999",
    "LIST 1 2",
    "UIDL",
    "UIDL 1|UIDL 7",
    "UIDL 0",
    "UIDL 8",
    "UIDL x",
    "UIDL 4294967297",
    "RETR 1",
    "RETR 2",
    "RETR 3",
    "RETR 4",
    "RETR 5",
    "RETR 6",
    "retr 7",
    "RETR",
    "RETR 0",
    "RETR 8",
    "RETR x",
    "RETR -1",
    "RETR 99999999999999999999999999",
    "TOP 1 0",
    "TOP 1 1",
    "TOP 1 2",
    "TOP 1 3",
    "TOP 1 4",
    "TOP 1 1000",
    "TOP 2 0",
    "TOP 2 5",
    "TOP 3 1",
    "TOP 4 1",
    "TOP 5 0|TOP 5 1|TOP 5 2|TOP 5 3|TOP 5 4",
    "TOP 6 5|TOP 6 10|TOP 6 11",
    "TOP",
    "TOP 0 1",
    "TOP 8 1",
    "TOP x 1",
    "TOP 1 x",
    "TOP 1 -1",
    "TOP 1 99999999999999999999999999",
    "DELE 1|STAT|LIST|RSET|STAT|LIST",
    "DELE 1|RETR 1|TOP 1 0|LIST 1|UIDL 1|DELE 1",
    "DELE 1|DELE 7|LIST|UIDL|STAT|RSET|UIDL",
    "DELE",
    "DELE 0",
    "DELE 8",
    "DELE x",
    "DELE 99999999999999999999999999",
    "RSET|RSET|STAT",
    "NOOP|noop|NOOP",
    "WHAT|STAT",
    "XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX|STAT",
    "USER bob|PASS x|STAT",
    "AUTH PLAIN|STAT",
    "CAPA x y|STAT",
    "DELE 1|DELE 2|DELE 3|DELE 4|DELE 5|DELE 6|DELE 7|STAT|LIST|UIDL|RSET|STAT",
];

/// Sent in one go, before anything is read.
const PIPELINED: &[&str] = &[
    "STAT|LIST|UIDL|RETR 1|RETR 4|TOP 5 1|NOOP",
    "NOOP|NOOP|NOOP|NOOP|NOOP|NOOP|NOOP|NOOP|STAT",
    "RETR 1|RETR 2|RETR 3|RETR 4|RETR 5|RETR 6|RETR 7|STAT",
    "DELE 3|LIST 3|RSET|LIST 3|WHAT|STAT",
    "LIST 8|LIST 1|RETR 8|RETR 1|TOP 8 1|TOP 1 1",
];

fn kind(command: &str) -> Kind {
    let mut words = command.split(' ');
    let verb = words.next().unwrap().to_ascii_uppercase();
    match (verb.as_str(), words.next()) {
        ("LIST", None) | ("RETR" | "TOP", _) => Kind::Lines,
        ("UIDL", None) => Kind::Ids,
        ("CAPA", _) => Kind::Uncompared,
        ("STAT" | "LIST", _) => Kind::Numbers,
        _ => Kind::Status,
    }
}

/// One answer, in a form in which two servers can be compared.
fn answer(line: &mut Line, command: &str) -> String {
    let first = String::from_utf8(line.line().unwrap()).unwrap();
    let (status, rest) = first.split_once(' ').unwrap_or((&first, ""));
    let kind = kind(command);
    if status != "+OK" || kind == Kind::Status {
        return status.to_owned();
    }
    if kind == Kind::Numbers {
        let numbers: Vec<&str> = rest.split(' ').take(2).collect();
        return format!("{status} {}", numbers.join(" "));
    }
    let mut lines = Vec::new();
    loop {
        let next = line.line().unwrap();
        if next == b"." {
            break;
        }
        lines.push(next.escape_ascii().to_string());
    }
    if kind == Kind::Uncompared {
        lines.clear();
    }
    if kind == Kind::Ids {
        let ids: std::collections::BTreeSet<_> = lines.iter().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect();
        assert_eq!(ids.len(), lines.len(), "{lines:?}");
        lines.iter_mut().for_each(|line| *line = line.split(' ').next().unwrap().to_owned());
    }
    format!("{status}\n{}", lines.join("\n"))
}

fn session(port: u16, password: &str, script: &str, is_pipelined: bool) -> Vec<String> {
    let mut line = Line::open(port).unwrap();
    line.line().unwrap();
    for command in ["USER bob@example.test", &format!("PASS {password}")] {
        line.raw(format!("{command}\r\n").as_bytes()).unwrap();
        assert!(line.line().unwrap().starts_with(b"+OK"), "{port} {command}");
    }
    let commands: Vec<&str> = script.split('|').collect();
    if is_pipelined {
        line.raw(format!("{}\r\n", commands.join("\r\n")).as_bytes()).unwrap();
        return commands.iter().map(|command| answer(&mut line, command)).collect();
    }
    let ask = |command: &&str| {
        line.raw(format!("{command}\r\n").as_bytes()).unwrap();
        answer(&mut line, command)
    };
    // The session ends without QUIT, so that nothing is deleted.
    commands.iter().map(ask).collect()
}

fn write_letter(maildir: &Path, number: usize, letter: &[u8]) {
    let owner = std::fs::metadata(maildir).unwrap();
    let path = maildir.join("cur").join(format!("10000000{number:02}.M1P1.host:2,"));
    std::fs::write(&path, letter).unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

#[test]
fn our_pop3_server_and_dovecots_say_the_same() {
    let name = "our_pop3_server_and_dovecots_say_the_same";
    if !is_root() {
        return skip(name, "Dovecot's master must be root");
    }
    let instance =
        Instance::started(&[("authcleartext", "127.0.0.1/32\n"), ("authlimits", "failures=0\naccount=0\npause=0\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    instance.smtp().unwrap().send("a@x.test", &["bob@example.test"], "Subject: x\n\nx\n").unwrap();
    instance.wait_mail("bob@example.test", 1).unwrap();
    let maildir = instance.maildir("bob@example.test");
    for entry in std::fs::read_dir(maildir.join("new")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    (1..).zip(LETTERS).for_each(|(number, letter)| write_letter(&maildir, number, letter));
    let (imap, port) = (instance.port(143), instance.port(111));
    let more = format!(
        "protocols = imap pop3\nservice pop3-login {{\n  chroot =\n  inet_listener pop3 {{\n    port = {port}\n  }}\n  \
         inet_listener pop3s {{\n    port = 0\n  }}\n}}\n"
    );
    let dovecot = Dovecot::start_over_ours(&instance, imap, &["bob@example.test"], &more).unwrap();
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (script, is_pipelined) in SCRIPTS.iter().map(|s| (s, false)).chain(PIPELINED.iter().map(|s| (s, true))) {
        let ours = session(instance.port(110), "bob-password", script, is_pipelined);
        let theirs = session(port, PASSWORD, script, is_pipelined);
        for ((command, ours), theirs) in script.split('|').zip(ours).zip(theirs) {
            compared += 1;
            if ours != theirs {
                wrong.push(format!("{script}: {command}\n  ours:   {ours:?}\n  theirs: {theirs:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {compared} differ:\n{}\n{}", wrong.len(), wrong.join("\n"), dovecot.log());
    assert!(compared >= 100, "{compared}");
    // A letter whose last line has no end gets one when it is sent; our sizes count it, Dovecot's do not.
    write_letter(&maildir, 8, b"Subject: eight\n\nno end");
    let script = "RETR 8|LIST 8";
    let [ours, theirs] =
        [(instance.port(110), "bob-password"), (port, PASSWORD)].map(|(port, password)| session(port, password, script, false));
    assert_eq!((&ours[0], ours[1].as_str(), theirs[1].as_str()), (&theirs[0], "+OK 8 26", "+OK 8 24"));
}
