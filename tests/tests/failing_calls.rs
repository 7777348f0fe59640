//! System calls that fail where people log in, read mail and connect: no descriptors, no memory, no processes, a bad disk.
//!
//! strace answers in the kernel's place. Whoever has the right password hears yes or "not now", never that it is wrong; what was not
//! deleted is there afterwards; a process that cannot accept does not turn in circles; and when the fault is over all goes on.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};
use system_tests::strace::{Strace, Trap};
use system_tests::{Instance, Pop3, facts, is_root, skip, wait_for};

const BOB: &str = "bob@example.test";
const LETTERS: usize = 3;

/// What a client is told, and whether it is about now or for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    Yes,
    NotNow(String),
    /// The connection ended instead of an answer.
    Nothing,
}

fn instance() -> Instance {
    let mut instance = Instance::new().unwrap();
    instance.control("authlimits", "failures=0\naccount=0\npause=0\n").unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob", "carol"]).unwrap();
    for n in 0..LETTERS {
        instance.smtp().unwrap().send("a@elsewhere.test", &[BOB], &format!("Subject: {n}\n\n{n}\n")).unwrap();
    }
    instance.wait_mail(BOB, LETTERS).unwrap();
    instance
}

fn pids(instance: &Instance, name: &str) -> Vec<u32> {
    facts::descendants(instance.pid()).into_iter().filter(|p| p.name == name).map(|p| p.pid).collect()
}

/// A whole POP3 session with the right password that looks at all letters and changes nothing.
fn read_mail(instance: &Instance) -> Heard {
    let Ok(mut pop3) = system_tests::line::Line::open(instance.port(110)).map(Pop3) else { return Heard::Nothing };
    let Ok(greeting) = pop3.0.line() else { return Heard::Nothing };
    if !greeting.starts_with(b"+OK") {
        return not_now(&String::from_utf8_lossy(&greeting), &["-ERR"]);
    }
    let commands = [format!("USER {BOB}"), "PASS bob-password".to_owned(), "STAT".to_owned(), "QUIT".to_owned()];
    for command in commands {
        match pop3.ask(&command) {
            Ok(reply) if reply.starts_with("+OK") => {}
            Ok(reply) => return not_now(&reply, &["-ERR [SYS/TEMP]", "-ERR [IN-USE]"]),
            Err(_) => return Heard::Nothing,
        }
    }
    Heard::Yes
}

/// AUTH PLAIN with the right password, then a letter.
fn send_mail(instance: &Instance) -> Heard {
    let Ok(mut smtp) = system_tests::line::Line::open(instance.port(25)) else { return Heard::Nothing };
    let words = wire::base64::encode(b"\0bob@example.test\0bob-password");
    let mut heard = Heard::Yes;
    let commands = [
        "EHLO client.example.test",
        &format!("AUTH PLAIN {words}"),
        "MAIL FROM:<bob@example.test>",
        "RCPT TO:<carol@example.test>",
    ];
    for command in [""].into_iter().chain(commands) {
        if !command.is_empty() && smtp.raw(format!("{command}\r\n").as_bytes()).is_err() {
            return Heard::Nothing;
        }
        let reply = loop {
            match smtp.line() {
                Ok(line) if line.get(3) == Some(&b'-') => {}
                Ok(line) => break String::from_utf8(line).unwrap(),
                Err(_) => return Heard::Nothing,
            }
        };
        if !reply.starts_with('2') {
            heard = not_now(&reply, &["4"]);
            break;
        }
    }
    heard
}

/// Panics if the reply is none of those that say "not now".
fn not_now(reply: &str, temporary: &[&str]) -> Heard {
    assert!(temporary.iter().any(|front| reply.starts_with(front)), "a fault of ours was answered for ever: {reply}");
    Heard::NotNow(reply.to_owned())
}

/// Both sorts of clients, under a fault and behind it.
fn case(instance: &Instance, name: &str, call: &str, error: &str, when: &str) -> usize {
    let case = format!("{name}: {call} {error} {when}");
    let out = instance.dir().join("shown");
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error={error}:when={when}"));
    let strace = Strace::attach(&pids(instance, name), &["-e", &trace, "-e", &inject], &out).unwrap();
    let heard: Vec<Heard> = (0..2).flat_map(|_| [read_mail(instance), send_mail(instance)]).collect();
    let hits = strace.detach().unwrap().matches("(INJECTED)").count();
    println!("{case}: {hits} calls failed: {heard:?}");
    // Some only hold for a while what they could not find out.
    let is_well = || (read_mail(instance) == Heard::Yes && send_mail(instance) == Heard::Yes).then_some(());
    wait_for(&format!("the end of {case}"), is_well).unwrap();
    assert_eq!(system_tests::users::letters(&instance.maildir(BOB)).len() + seen(instance), LETTERS, "{case}");
    hits
}

/// Letters in cur/.
fn seen(instance: &Instance) -> usize {
    std::fs::read_dir(instance.maildir(BOB).join("cur")).unwrap().count()
}

#[test]
fn whatever_call_of_a_login_fails_nobody_is_told_that_the_password_is_wrong() {
    let name = "whatever_call_of_a_login_fails_nobody_is_told_that_the_password_is_wrong";
    if !is_root() {
        return skip(name, "strace of confined processes needs root");
    }
    let instance = instance();
    let mut hits = 0;
    for (name, call, error) in [
        ("qmail-auth", "fcntl", "EIO"),
        ("qmail-auth", "recvmsg,recvfrom", "ENOMEM"),
        ("qmail-auth", "sendmsg,sendto", "ENOBUFS"),
        ("qmail-auth", "accept,accept4", "EMFILE"),
        ("qmail-auth", "mmap", "ENOMEM"),
        ("qmail-lspawn", "socketpair", "EMFILE"),
        ("qmail-lspawn", "clone,clone3,fork,vfork", "EAGAIN"),
        ("qmail-popup", "connect", "ENOMEM"),
        ("qmail-popup", "socket", "EMFILE"),
        ("qmail-popup", "recvmsg", "EMFILE"),
        ("qmail-smtpd", "socket", "EMFILE"),
        ("qmail-smtpd", "connect", "ENOMEM"),
        ("qmail-smtpd", "recvmsg", "ENOMEM"),
    ] {
        for when in ["1", "1+"] {
            hits += case(&instance, name, call, error, when);
        }
    }
    assert!(hits > 0);
}

#[test]
fn who_cannot_accept_does_not_turn_in_circles_and_accepts_when_it_can() {
    let name = "who_cannot_accept_does_not_turn_in_circles_and_accepts_when_it_can";
    if !is_root() {
        return skip(name, "strace of confined processes needs root");
    }
    let instance = instance();
    for (name, port) in [("qmail-smtpd", 25), ("qmail-popup", 110)] {
        for error in ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"] {
            let out = instance.dir().join("shown");
            let inject = format!("inject=accept,accept4:error={error}:when=1+");
            let strace = Strace::attach(&pids(&instance, name), &["-e", "trace=accept,accept4", "-e", &inject], &out).unwrap();
            let mut waiting = system_tests::line::Line::open(instance.port(port)).unwrap();
            let tried = || strace.shown().contains("(INJECTED)").then_some(());
            wait_for("an accept", tried).unwrap();
            let until = Instant::now() + Duration::from_secs(2);
            while Instant::now() < until {
                std::thread::sleep(Duration::from_millis(100));
            }
            let calls = strace.detach().unwrap().matches("(INJECTED)").count();
            println!("{name} {error}: {calls} calls in 2 s");
            assert!(calls < 1000, "{name} {error}: {calls} calls in 2 s");
            let greeting = waiting.line().unwrap();
            assert!(greeting.starts_with(b"220 ") || greeting.starts_with(b"+OK"), "{name} {error}");
        }
    }
}

/// A session of the recipient's own program, whichever of its calls fails: nothing that was not deleted is gone, and what a client hears
/// of its letters is true.
#[test]
fn whatever_call_of_a_pop3_session_fails_no_letter_is_lost() {
    let name = "whatever_call_of_a_pop3_session_fails_no_letter_is_lost";
    if !is_root() {
        return skip(name, "strace of confined processes needs root");
    }
    let instance = instance();
    let trap = Trap::new(&instance, "qmail-pop3d").unwrap();
    let mut hits = 0;
    for call in [
        "openat,openat2",
        "getdents64",
        "renameat,renameat2,rename",
        "unlinkat,unlink",
        "read,pread64",
        "statx,newfstatat",
        "fsync",
    ] {
        for error in ["EIO", "ENOMEM", "EMFILE"] {
            for when in ["1", "2", "3+"] {
                let case = format!("{call} {error} {when}");
                let missing = LETTERS - seen(&instance) - system_tests::users::letters(&instance.maildir(BOB)).len();
                for n in 0..missing {
                    instance.smtp().unwrap().send("a@elsewhere.test", &[BOB], &format!("Subject: {n}\n\n{n}\n")).unwrap();
                }
                let there = || {
                    let count = seen(&instance) + system_tests::users::letters(&instance.maildir(BOB)).len();
                    (count == LETTERS).then_some(())
                };
                wait_for("the letters", there).unwrap();
                trap.set(&format!("-e trace={call} -e inject={call}:error={error}:when={when}")).unwrap();
                let deleted = session(&instance, &case);
                let left = seen(&instance) + system_tests::users::letters(&instance.maildir(BOB)).len();
                let injected = trap.shown().matches("(INJECTED)").count();
                println!("{case}: {injected} failed, QUIT said {deleted:?}, {left} left");
                match deleted {
                    // Deleted, and said so.
                    Some(true) => assert_eq!(left, LETTERS - 1, "{case}"),
                    // QUIT failed: it may have been before or behind the deletion.
                    Some(false) => assert!(left >= LETTERS - 1, "{case}"),
                    None => assert_eq!(left, LETTERS, "{case}: nothing was deleted"),
                }
                hits += injected;
            }
        }
    }
    assert!(hits > 50, "{hits}");
}

/// Reads all and deletes the first. What QUIT said, if it came to that.
fn session(instance: &Instance, case: &str) -> Option<bool> {
    let mut pop3 = match Pop3::login(instance.port(110), BOB, "bob-password") {
        Ok(pop3) => pop3,
        Err(error) => {
            let error = error.to_string();
            assert!(
                error.contains("[SYS/TEMP]") || error.contains("the connection ended") || error.contains("-ERR"),
                "{case}: {error}"
            );
            assert!(!error.contains("[AUTH]") && !error.contains("[SYS/PERM]"), "{case}: {error}");
            return None;
        }
    };
    if let Ok(count) = pop3.count() {
        for number in 1..=count {
            if let Ok(text) = pop3.message(number) {
                let body = text.split_once("\n\n").map(|(_, body)| body.to_owned());
                assert!(body.is_some_and(|body| body.len() == 2), "{case}: a letter in part: {text}");
            }
        }
    }
    if pop3.must("DELE 1").is_err() {
        return pop3.must("QUIT").err().and(None);
    }
    Some(pop3.must("QUIT").is_ok())
}
