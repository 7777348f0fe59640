//! POP3 sessions over real Maildirs, in the process and with the real program over pipes.
#![allow(clippy::unwrap_used)]

use maildir::{Bounds, Mailbox, Maildir};
use qmail_pop3d::{Drop, Report, serve};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use sys::fs::fault::{Call, FaultDisk, Plan};

struct Home(tempfile::TempDir);

/// A Maildir with files `(name, content)`, one second after the other.
fn home(files: &[(&str, &[u8])]) -> Home {
    let dir = tempfile::tempdir().unwrap();
    Maildir::create(File::open(dir.path()).unwrap().as_fd(), b"Maildir", Bounds::Beneath).unwrap();
    let home = Home(dir);
    for ((name, content), time_s) in files.iter().zip(1_000_000u64..) {
        home.put(name, content, time_s);
    }
    home
}

impl Home {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("Maildir").join(name)
    }

    fn put(&self, name: &str, content: &[u8], time_s: u64) {
        std::fs::write(self.path(name), content).unwrap();
        let file = File::options().write(true).open(self.path(name)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(time_s)).unwrap();
    }

    fn mailbox(&self) -> Mailbox {
        Mailbox::open(File::open(self.0.path()).unwrap().as_fd(), b"Maildir", Bounds::Beneath).unwrap()
    }

    fn drop(&self) -> Drop {
        Drop::new(self.mailbox()).unwrap()
    }

    fn say(&self, commands: &str) -> String {
        say(self.drop(), commands)
    }

    /// What lies in new and cur.
    fn files(&self) -> Vec<String> {
        let list = |dir: &'static str| {
            let names = std::fs::read_dir(self.path(dir)).unwrap();
            names.map(move |name| format!("{dir}/{}", name.unwrap().file_name().to_string_lossy()))
        };
        let mut all: Vec<String> = list("new").chain(list("cur")).collect();
        all.sort();
        all
    }
}

/// A session with all commands at once; the replies without the greeting.
fn say(maildrop: Drop, commands: &str) -> String {
    let mut out = Vec::new();
    serve(&mut commands.as_bytes(), &mut out, maildrop, &mut Report::default()).unwrap();
    String::from_utf8(out).unwrap().strip_prefix("+OK \r\n").unwrap().to_owned()
}

#[test]
fn a_session_from_greeting_to_quit() {
    let home = home(&[("new/a", b"H: 1\n\nbody\n.dot\n"), ("cur/b:2,S", b"crlf\r\nx"), ("new/c", b"")]);
    let text = home.say("STAT\r\nLIST\r\nUIDL\r\nRETR 1\r\nTOP 1 1\r\nRETR 2\r\nRETR 3\r\nDELE 2\r\nSTAT\r\nQUIT\r\nSTAT\r\n");
    assert_eq!(
        text,
        "+OK 3 29\r\n\
         +OK \r\n1 20\r\n2 9\r\n3 0\r\n.\r\n\
         +OK \r\n1 a\r\n2 b\r\n3 c\r\n.\r\n\
         +OK \r\nH: 1\r\n\r\nbody\r\n..dot\r\n.\r\n\
         +OK \r\nH: 1\r\n\r\nbody\r\n.\r\n\
         +OK \r\ncrlf\r\nx\r\n.\r\n\
         +OK \r\n.\r\n\
         +OK \r\n+OK 2 20\r\n+OK \r\n"
    );
    assert_eq!(home.files(), ["cur/a:2,", "cur/c:2,"]);
}

#[test]
fn without_quit_nothing_changes() {
    let home = home(&[("new/a", b"1"), ("cur/b:2,S", b"2")]);
    let before = home.files();
    for commands in ["", "DELE 1\r\nDELE 2\r\n", "DELE 1\r\nQUIT", "DELE 1\r\nRSET\r\nXYZZY\r\n"] {
        home.say(commands);
        assert_eq!(home.files(), before, "{commands}");
    }
    home.say("DELE 1\r\nRSET\r\nQUIT\r\n");
    assert_eq!(home.files(), ["cur/a:2,", "cur/b:2,S"]);
}

#[test]
fn sizes_are_the_bytes_that_retr_sends() {
    let contents: Vec<Vec<u8>> = (0u32..200)
        .map(|n| {
            let mut state = n;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                b"\r\n.x\n"[usize::try_from(state >> 24).unwrap() % 5]
            };
            (0..n).map(|_| next()).collect()
        })
        .collect();
    let names: Vec<String> = (0..200).map(|n| format!("cur/m{n:03}:2,")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
    let home = home(&files);
    for n in 1..=200 {
        let text = home.say(&format!("LIST {n}\r\nRETR {n}\r\n"));
        let (list, retr) = text.split_once("\r\n+OK \r\n").unwrap();
        let size: usize = list.rsplit(' ').next().unwrap().parse().unwrap();
        let mut received = 0;
        for line in retr.strip_suffix(".\r\n").unwrap().split_inclusive('\n') {
            received += line.strip_prefix('.').unwrap_or(line).len();
        }
        assert_eq!(size, received, "{n}");
    }
}

#[test]
fn odd_files_are_no_messages_and_odd_names_get_ids() {
    let long = format!("cur/{}:2,S", "n".repeat(100));
    let home = home(&[
        ("new/good", b"1"),
        (&long, b"2"),
        ("cur/sp ace:2,", b"3"),
        ("new/twin", b"4"),
        ("cur/twin:2,S", b"5"),
        ("cur/.x", b"6"),
    ]);
    std::fs::create_dir(home.path("new/dir")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", home.path("new/link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, home.path("cur/fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let text = home.say("UIDL\r\n");
    let ids: Vec<&str> = text.lines().filter_map(|line| line.split_once(' ')).map(|(_, id)| id).skip(1).collect();
    assert_eq!(ids.len(), 5, "{text}");
    assert_eq!(ids[0], "good");
    assert!(ids[3] != "twin" && ids[4] != "twin", "no twin takes the id of the other: {text}");
    for id in &ids {
        assert!((1..=70).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()), "{id}");
        assert_eq!(ids.iter().filter(|other| *other == id).count(), 1, "{id} stands once");
    }
    assert_eq!(home.say("UIDL\r\n"), text, "the same in the next session");
    home.say("QUIT\r\n");
    let again = home.say("UIDL 2\r\nUIDL 3\r\n");
    assert_eq!(again, format!("+OK 2 {}\r\n+OK 3 {}\r\n", ids[1], ids[2]));
    // Of two with one name, each keeps its own when one has been marked, and the other never gets that of one that is gone.
    let twins = home.say("UIDL 4\r\nUIDL 5\r\n");
    assert!(twins.contains(ids[3]) && twins.contains(ids[4]), "{twins}");
    home.say("DELE 4\r\nQUIT\r\n");
    let left = home.say("UIDL 4\r\n");
    assert!(!left.contains(ids[3]) && !left.contains(ids[4]), "{left}");
}

#[test]
fn no_file_that_somebody_may_put_there_hangs_or_ends_a_session() {
    use std::os::unix::ffi::OsStrExt;
    let home = home(&[("new/1.good", b"1\n")]);
    let names: [&[u8]; 9] = [
        b"new/line\nbreak",
        b"cur/\xff\xfe not UTF-8:2,S",
        b"cur/:2,S",
        b"cur/:",
        b"new/colons:::2,",
        b"cur/99999999999999999999999.M9.x:2,",
        b"new/-1",
        b"cur/1.good:2,F",
        b"new/x,S=1,W=99999999999999999999",
    ];
    for name in names {
        std::fs::write(home.path("").join(std::ffi::OsStr::from_bytes(name)), b"text\n").unwrap();
    }
    std::fs::write(home.path("cur").join("n".repeat(255)), b"text\n").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(home.path("new/2.socket")).unwrap();
    for name in ["new/3.fifo", "cur/4.fifo:2,S"] {
        rustix::fs::mknodat(rustix::fs::CWD, home.path(name), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    }
    std::os::unix::fs::symlink("1.good", home.path("new/5.link")).unwrap();
    std::os::unix::fs::symlink("6.loop", home.path("cur/6.loop")).unwrap();
    std::fs::create_dir(home.path("cur/7.dir")).unwrap();
    let count = names.len() + 2;
    let all: String = (1..=count).map(|n| format!("RETR {n}\r\n")).collect();
    let text = home.say(&format!("STAT\r\n{all}UIDL\r\n"));
    assert!(text.starts_with(&format!("+OK {count} {}\r\n", 3 + (count - 1) * 6)), "{text}");
    assert_eq!(text.matches("text\r\n.\r\n").count(), count - 1);
    let (_, listing) = text.rsplit_once("+OK \r\n").unwrap();
    let ids: std::collections::HashSet<_> = listing.lines().filter_map(|line| line.split_once(' ')).map(|(_, id)| id).collect();
    assert_eq!(ids.len(), count, "{listing}");
    assert!(ids.iter().all(|id| (1..=70).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())), "{ids:?}");
    // A message that becomes something else under an open session.
    let maildrop = home.drop();
    std::fs::remove_file(home.path("new/1.good")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, home.path("new/1.good"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let text = say(maildrop, &format!("{all}QUIT\r\n"));
    assert_eq!((text.matches("-ERR").count(), text.matches("text\r\n.\r\n").count()), (1, count - 1), "{text}");
    let all: String = (1..count).map(|n| format!("DELE {n}\r\n")).collect();
    home.say(&format!("{all}QUIT\r\n"));
    assert_eq!(home.say("STAT\r\n"), "+OK 0 0\r\n");
}

#[test]
fn of_more_messages_than_a_listing_holds_none_is_lost_sight_of() {
    let home = home(&[("cur/1.a:2,", b"1\n"), ("cur/2.b:2,", b"2\n")]);
    let maildrop = Drop::new(home.mailbox().listing_at_most(2)).unwrap();
    std::fs::write(home.path("new/3.c"), b"3\n").unwrap();
    std::fs::write(home.path("new/4.d"), b"4\n").unwrap();
    std::fs::rename(home.path("cur/2.b:2,"), home.path("cur/2.b:2,S")).unwrap();
    assert_eq!(say(maildrop, "RETR 2\r\nDELE 1\r\nQUIT\r\n"), "-ERR unable to open that message\r\n+OK \r\n+OK \r\n");
    assert_eq!(home.files(), ["cur/2.b:2,S", "new/3.c", "new/4.d"], "the marked one is removed, the moved one kept");
}

#[test]
fn a_size_in_the_name_is_believed_if_it_can_be_true() {
    let home = home(&[("cur/1.x,S=4,W=6:2,", b"a\nb\n"), ("cur/2.x,S=5,W=6:2,", b"a\nb\n"), ("cur/3.x,W=5:2,", b"a\nb\n")]);
    assert_eq!(home.say("LIST\r\n"), "+OK \r\n1 6\r\n2 6\r\n3 6\r\n.\r\n");
    home.put("cur/1.x,S=4,W=6:2,", b"\n\n\n\n", 1);
    assert_eq!(home.say("LIST 1\r\n"), "+OK 1 6\r\n", "not read");
}

#[test]
fn a_line_of_50_megabytes_without_an_end_passes_through_a_small_memory() {
    let home = home(&[("new/a", b"")]);
    // A hole reads as NULs.
    File::options().write(true).open(home.path("new/a")).unwrap().set_len(50_000_000).unwrap();
    let (mut sum, mut largest) = (0, 0);
    struct Sink<'a>(&'a mut usize, &'a mut usize);
    impl Write for Sink<'_> {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            *self.0 += buf.len();
            *self.1 = buf.len().max(*self.1);
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    serve(&mut &b"TOP 1 5\r\nRETR 1\r\nLIST 1\r\n"[..], &mut Sink(&mut sum, &mut largest), home.drop(), &mut Report::default())
        .unwrap();
    assert_eq!(sum, 6 + 2 * (6 + 50_000_000 + 2 + 3) + "+OK 1 50000002\r\n".len());
    assert!(largest < 300_000, "{largest}");
}

#[test]
fn what_other_sessions_do_is_survived() {
    let home = home(&[("new/a", b"1\n"), ("new/b", b"22\n"), ("cur/c:2,", b"333\n"), ("new/d", b"4\n")]);
    let maildrop = home.drop();
    std::fs::rename(home.path("new/a"), home.path("cur/a:2,RS")).unwrap();
    std::fs::remove_file(home.path("new/b")).unwrap();
    std::fs::rename(home.path("cur/c:2,"), home.path("cur/c:2,F")).unwrap();
    let text = say(maildrop, "UIDL 2\r\nLIST\r\nRETR 1\r\nRETR 2\r\nRETR 3\r\nDELE 2\r\nUIDL\r\nSTAT\r\nQUIT\r\n");
    assert_eq!(
        text,
        "+OK 2 b\r\n\
         +OK \r\n1 3\r\n3 5\r\n4 3\r\n.\r\n\
         +OK \r\n1\r\n.\r\n\
         -ERR another session has removed that message\r\n\
         +OK \r\n333\r\n.\r\n\
         -ERR another session has removed that message\r\n\
         +OK \r\n1 a\r\n3 c\r\n4 d\r\n.\r\n\
         +OK 3 11\r\n+OK \r\n"
    );
    assert_eq!(home.files(), ["cur/a:2,RS", "cur/c:2,F", "cur/d:2,"]);
}

#[test]
fn a_marked_message_is_removed_wherever_another_session_moved_it() {
    let home = home(&[("new/a", b"1\n"), ("new/b", b"2\n")]);
    let maildrop = home.drop();
    home.say("QUIT\r\n");
    assert_eq!(home.files(), ["cur/a:2,", "cur/b:2,"]);
    assert_eq!(say(maildrop, "DELE 1\r\nQUIT\r\n"), "+OK \r\n+OK \r\n");
    assert_eq!(home.files(), ["cur/b:2,"]);
}

#[test]
fn of_twins_only_the_marked_one_is_removed_and_none_replaces_the_other() {
    let content = |home: &Home| {
        let read = |name: &String| std::fs::read_to_string(home.path(name)).unwrap();
        home.files().iter().map(|name| format!("{name}={}", read(name))).collect::<Vec<_>>()
    };
    for (first, second, commands, left) in [
        ("cur/x:2,S", "new/x", "DELE 1\r\nQUIT\r\n", &["cur/x:2,=two"][..]),
        ("cur/x:2,S", "new/x", "DELE 2\r\nQUIT\r\n", &["cur/x:2,S=one"]),
        ("new/x", "cur/x:2,S", "DELE 1\r\nQUIT\r\n", &["cur/x:2,S=two"]),
        ("new/x", "cur/x:2,S", "DELE 2\r\nQUIT\r\n", &["cur/x:2,=one"]),
        ("cur/x:2,S", "cur/x:2,F", "DELE 1\r\nQUIT\r\n", &["cur/x:2,F=two"]),
        ("cur/x:2,S", "new/x", "DELE 1\r\nDELE 2\r\nQUIT\r\n", &[]),
        ("new/x", "cur/x:2,", "QUIT\r\n", &["cur/x:2,=two", "new/x=one"]),
        ("new/x", "cur/x:2,", "DELE 2\r\nQUIT\r\n", &["cur/x:2,=one"]),
        ("cur/x:2,", "new/x", "DELE 1\r\nQUIT\r\n", &["cur/x:2,=two"]),
    ] {
        let home = home(&[(first, b"one"), (second, b"two")]);
        home.say(commands);
        assert_eq!(content(&home), left, "{first} {second} {commands}");
    }
    let home = home(&[("cur/x:2,S", b"one"), ("new/x", b"two")]);
    let maildrop = home.drop();
    std::fs::rename(home.path("new/x"), home.path("cur/x:2,F")).unwrap();
    say(maildrop, "DELE 2\r\nQUIT\r\n");
    assert_eq!(content(&home), ["cur/x:2,S=one"], "one of them has moved");
}

#[test]
fn mail_that_cannot_be_removed_is_said() {
    let plan = Plan::new(|call| matches!(call, Call::Unlink | Call::Rename));
    plan.fail(0, u64::MAX, rustix::io::Errno::ROFS.raw_os_error());
    let home = home(&[("new/a", b"1"), ("new/b", b"2")]);
    let mut out = Vec::new();
    let mailbox = home.mailbox().through(|disk| Arc::new(FaultDisk::new(disk, plan)));
    serve(&mut &b"DELE 1\r\nQUIT\r\n"[..], &mut out, Drop::new(mailbox).unwrap(), &mut Report::default()).unwrap();
    assert_eq!(out, b"+OK \r\n+OK \r\n-ERR some deleted messages were not removed\r\n");
    assert_eq!(home.files(), ["new/a", "new/b"]);
}

#[test]
fn any_chunking_gives_the_same_replies() {
    struct Trickle<'a>(&'a [u8], usize);
    impl Read for Trickle<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let len = self.1.min(self.0.len()).min(buf.len());
            buf[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }
    let home = home(&[("new/a", b"H: 1\n\n.\n..\n"), ("cur/b:2,S", b"x")]);
    let commands = [&b"STAT\r\nLIST\nUIDL\r\n"[..], &[b'X'; 3000], b"\r\nTOP 1 0\r\nRETR 1\r\nLAST\r\nCAPA\r\nNOOP\r\n"].concat();
    let run = |len: usize| {
        let mut out = Vec::new();
        serve(&mut Trickle(&commands, len), &mut out, home.drop(), &mut Report::default()).unwrap();
        out
    };
    let whole = run(usize::MAX);
    assert!(String::from_utf8_lossy(&whole).contains("-ERR line too long\r\n+OK \r\nH: 1\r\n\r\n.\r\n"));
    for len in [1, 2, 3, 7, 1000] {
        assert_eq!(run(len), whole);
    }
}

#[test]
fn a_large_message_passes_through_a_small_memory() {
    let line = [&[b'y'; 98][..], b"\n"].concat();
    let home = home(&[("new/a", &line.repeat(100_000))]);
    struct Count(usize, usize);
    impl Write for Count {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0 += buf.len();
            self.1 = self.1.max(buf.len());
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut out = Count(0, 0);
    serve(&mut &b"RETR 1\r\n"[..], &mut out, home.drop(), &mut Report::default()).unwrap();
    assert_eq!(out.0, 6 + 6 + 100 * 100_000 + 3);
    assert!(out.1 < 300_000, "{}", out.1);
}

/// The real program, as an unprivileged user if the test is root.
fn program(home: &Path, args: &[&str], input: &str) -> (String, String, i32) {
    program_of(None, home, args, input)
}

fn program_of(user: Option<&str>, home: &Path, args: &[&str], input: &str) -> (String, String, i32) {
    let exe = env!("CARGO_BIN_EXE_qmail-pop3d");
    let mut command = if rustix::process::geteuid().is_root() {
        // The build directory may be closed to others: the program is copied to where the user gets.
        let copy = home.join("qmail-pop3d");
        if !copy.exists() {
            std::fs::copy(exe, &copy).unwrap();
        }
        Command::new("chown").args(["-R", "61234:61234"]).arg(home).status().unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=61234", "--regid=61234", "--clear-groups"]).arg(copy);
        command
    } else {
        Command::new(exe)
    };
    command.env_remove("USER");
    command.envs(user.map(|user| ("USER", user)));
    command.args(args).current_dir(home).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

#[test]
fn the_program_over_pipes() {
    let home = home(&[("new/a", b"1\n"), ("new/b", b"2\n")]);
    let dir = home.0.path();
    home.put("tmp/old", b"x", 1_000_000);
    let file = File::options().write(true).open(home.path("tmp/old")).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    file.set_times(std::fs::FileTimes::new().set_accessed(long_ago).set_modified(long_ago)).unwrap();
    std::fs::write(home.path("tmp/young"), b"x").unwrap();
    for path in ["Maildir", "./Maildir/"] {
        let (out, err, code) = program(dir, &[path], "STAT\r\n");
        assert_eq!((out.as_str(), err.as_str(), code), ("+OK \r\n+OK 2 6\r\n", "", 0));
    }
    assert!(!home.path("tmp/old").exists() && home.path("tmp/young").exists());
    let (out, _, _) = program(dir, &["Maildir"], "DELE 1\r\nQUIT\r\n");
    assert_eq!(out, "+OK \r\n+OK \r\n+OK \r\n");
    assert_eq!(home.files(), ["cur/b:2,"]);
    for args in [&[][..], &["Nowhere"], &["Maildir/new/x"]] {
        let (out, _, code) = program(dir, args, "QUIT\r\n");
        assert_eq!((out.as_str(), code), ("-ERR this user has no $HOME/Maildir\r\n", 0), "{args:?}");
    }
}

/// Whoever looks for lost mail finds out who took and removed it.
#[test]
fn a_session_has_its_line_in_the_log() {
    let home = home(&[("new/a", b"1\n"), ("new/b", b"2\n2\n"), ("new/c", b"3\n\n3\n")]);
    let dir = home.0.path();
    for (user, commands, end) in [
        (
            "ann@a.example",
            "RETR 1\r\nRETR 1\r\nTOP 2 0\r\nDELE 3\r\n",
            "end=gone seconds=0 messages=3 retrieved=1 bytes=12 deleted=0",
        ),
        (
            "a b=\"c",
            "RETR 2\r\nRETR 9\r\nDELE 1\r\nDELE 2\r\nQUIT\r\n",
            "end=quit seconds=0 messages=3 retrieved=1 bytes=6 deleted=2",
        ),
        ("", "QUIT\r\n", "end=quit seconds=0 messages=1 retrieved=0 bytes=0 deleted=0"),
    ] {
        let (_, err, _) = program_of(Some(user), dir, &["Maildir"], commands);
        let line = err.strip_suffix('\n').unwrap();
        let (event, pairs) = logline::pairs(line.as_bytes()).unwrap();
        assert_eq!((event, &pairs[0]), (&b"maildrop"[..], &(&b"user"[..], user.as_bytes().to_vec())), "{line}");
        // However long it took.
        let (before, after) = line[line.find("end=").unwrap()..].split_once(" seconds=").unwrap();
        let after = after.split_once(' ').unwrap().1;
        assert_eq!(format!("{before} seconds=0 {after}"), end);
    }
}

#[test]
fn an_absolute_mailbox_is_made_and_no_link_is_followed() {
    let base = home(&[]);
    let dir = base.0.path();
    let path = |user: &str| dir.join(user).join("Maildir").to_str().unwrap().to_owned();
    let (out, err, _) = program(dir, &[&path("ann")], "STAT\r\nQUIT\r\n");
    assert_eq!((out.as_str(), err.as_str()), ("+OK \r\n+OK 0 0\r\n+OK \r\n", ""));
    assert!(dir.join("ann/Maildir/tmp").is_dir());
    std::os::unix::fs::symlink("ann", dir.join("bob")).unwrap();
    std::fs::create_dir(dir.join("eve")).unwrap();
    std::os::unix::fs::symlink("../ann/Maildir", dir.join("eve/Maildir")).unwrap();
    for user in ["bob", "eve", "no/such"] {
        let (out, _, _) = program(dir, &[&path(user)], "STAT\r\nQUIT\r\n");
        assert_eq!(out, "-ERR this user has no $HOME/Maildir\r\n", "{user}");
    }
}

#[test]
fn root_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let home = home(&[("new/a", b"1\n")]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_qmail-pop3d"));
    let output = command.arg("Maildir").current_dir(home.0.path()).stdin(Stdio::null()).output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b""[..], Some(1)));
    assert!(String::from_utf8_lossy(&output.stderr).contains("root"));
}
