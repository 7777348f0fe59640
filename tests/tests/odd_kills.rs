//! Processes that are killed or replaced at moments when somebody is in the middle of something with them: logins, administration,
//! handshakes; and reloads faster than they can be carried out.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use system_tests::facts::{self, Process};
use system_tests::instance::ME;
use system_tests::line::Line;
use system_tests::{Instance, Pop3, Smtp, wait_for};

const BOB: &str = "bob@example.test";
const LETTER: &str = "Subject: x\n\nbody\n";

fn instance() -> Instance {
    let control = [("authlimits", "failures=0\naccount=0\npause=0\n"), ("relayclients", "127.0.0.0/8\n")];
    let instance = Instance::started(&control).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    instance
}

fn running(instance: &Instance, name: &str) -> Vec<Process> {
    facts::descendants(instance.pid()).into_iter().filter(|p| p.name == name).collect()
}

/// Not more: who dies again and again is started again later and later (0.1 s, then twice as long each time).
const KILLS: usize = 6;

/// Kills the process of this name some times, each time when it is there again.
fn kill(instance: &Instance, name: &str) {
    for _ in 0..KILLS {
        std::thread::sleep(Duration::from_millis(800));
        let there = wait_for(name, || running(instance, name).first().map(|process| process.pid)).unwrap();
        facts::signal(there, Signal::KILL);
        wait_for("its end", || (!facts::is_alive(there)).then_some(())).unwrap();
    }
}

/// While `run` runs, `others` do what they do, again and again.
fn meanwhile(run: impl FnOnce(), others: &[&(dyn Fn() + Sync)]) {
    let is_over = AtomicBool::new(false);
    let is_over = &is_over;
    std::thread::scope(|scope| {
        for other in others {
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    other();
                }
            });
        }
        // Also if it fails: the others must not go on for ever.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        is_over.store(true, Ordering::Relaxed);
        done.unwrap();
    });
}

#[test]
fn qmail_auth_is_killed_in_the_middle_of_logins_and_administration() {
    let instance = instance();
    let (logins, delays) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let log_in = || match Pop3::login(instance.port(110), BOB, "bob-password") {
        Ok(mut pop3) => {
            pop3.must("QUIT").unwrap();
            logins.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains("[SYS/TEMP]") || error.contains("the connection ended"), "the password is right: {error}");
            delays.fetch_add(1, Ordering::Relaxed);
        }
    };
    let added = std::sync::Mutex::new(Vec::new());
    let administer = || {
        let address = format!("user{}@example.test", added.lock().unwrap().len());
        // What a script does: again until it is done. What was half done must not be in the way.
        let add = || {
            match instance.with_input(&["user", "add", &address, "--password-stdin"], "a password\n") {
                Ok(_) => Some(()),
                // It was done, and only the answer was lost.
                Err(error) => error.to_string().contains("exists").then_some(()),
            }
        };
        wait_for("a user to be added", add).unwrap();
        added.lock().unwrap().push(address);
    };
    meanwhile(|| kill(&instance, "qmail-auth"), &[&log_in, &administer]);
    println!("{logins:?} logins, {delays:?} told to come again, {} users added", added.lock().unwrap().len());
    assert!(logins.into_inner() > 0);
    let listed = instance.must(&["user", "list", "example.test"]).unwrap();
    for address in added.into_inner().unwrap() {
        assert!(listed.contains(&address), "{address} was added: {listed}");
        let login = || Pop3::login(instance.port(110), &address, "a password").ok();
        wait_for("a login of the new user", login).unwrap();
    }
}

#[test]
fn qmail_keys_is_killed_in_the_middle_of_handshakes() {
    let instance = instance();
    let s_client = || {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{}", instance.port(465)), "-servername", ME]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        command
    };
    // A session that was there before, and has to stay.
    let mut before = s_client().stdin(Stdio::piped()).spawn().unwrap();
    let (mut say, hear) = (before.stdin.take().unwrap(), before.stdout.take().unwrap());
    let mut hear = std::io::BufReader::new(hear);
    let mut line = move || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut hear, &mut line).unwrap();
        line
    };
    assert!(line().starts_with("220 "));
    let (whole, none) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let greeted = || {
        let mut child = s_client().stdin(Stdio::piped()).spawn().unwrap();
        // It may have ended by now, without a handshake.
        let _ = std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"QUIT\r\n");
        child.wait_with_output().unwrap()
    };
    let handshake = || {
        let output = greeted();
        // Either there is no TLS, or a server inside it that greets.
        match output.stdout.as_slice() {
            [] => none.fetch_add(1, Ordering::Relaxed),
            said if said.starts_with(b"220 ") || said.starts_with(b"421 4.") => whole.fetch_add(1, Ordering::Relaxed),
            said => panic!("{}", said.escape_ascii()),
        };
    };
    let starttls = || {
        let Ok(mut smtp) = Smtp::open(instance.port(25)) else { return };
        let ehlo = smtp.ask("EHLO client.example.test").unwrap();
        if ehlo.contains("STARTTLS") {
            let reply = smtp.ask("STARTTLS").unwrap();
            assert!(reply.starts_with("220 ") || reply.starts_with("454 "), "{reply}");
        } else {
            smtp.must("QUIT", "221").unwrap();
        }
    };
    meanwhile(|| kill(&instance, "qmail-keys"), &[&handshake, &starttls]);
    println!("{whole:?} handshakes, {none:?} without");
    std::io::Write::write_all(&mut say, b"NOOP\r\n").unwrap();
    assert!(line().starts_with("250 "), "the session of before goes on");
    std::io::Write::write_all(&mut say, b"QUIT\r\n").unwrap();
    assert!(line().starts_with("221 "));
    before.wait().unwrap();
    let again = || greeted().stdout.starts_with(b"220 ").then_some(());
    wait_for("a handshake", again).unwrap();
}

/// As a script in a loop would: the signals come faster than a generation is made.
#[test]
fn a_storm_of_sighups_costs_nobody_anything() {
    const SIGNALS: usize = 60;
    let instance = instance();
    let workers = running(&instance, "qmail-smtpd").len() + running(&instance, "qmail-popup").len();
    let (sent, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let send = || {
        instance.smtp().unwrap().send("a@elsewhere.test", &[BOB], LETTER).unwrap();
        sent.fetch_add(1, Ordering::Relaxed);
    };
    let read = || {
        let mut pop3 = instance.pop3(BOB).unwrap();
        pop3.count().unwrap();
        pop3.must("QUIT").unwrap();
        let now = running(&instance, "qmail-smtpd").len() + running(&instance, "qmail-popup").len();
        most.fetch_max(now, Ordering::Relaxed);
    };
    let storm = || {
        for _ in 0..SIGNALS {
            facts::signal(instance.pid(), Signal::HUP);
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    meanwhile(storm, &[&send, &read]);
    let (sent, most) = (sent.into_inner(), most.into_inner());
    println!("{sent} letters under {SIGNALS} signals; {most} processes at most, {workers} at rest");
    // The one that serves, the one that is being made, and those that are retired.
    assert!(most <= workers * 7, "{most} processes, {workers} at rest");
    let mut idle = Line::open(instance.port(25)).unwrap();
    assert!(idle.line().unwrap().starts_with(b"220 "));
    instance.retry_until_empty().unwrap();
    let all = || (instance.pop3(BOB).unwrap().count().unwrap() == sent).then_some(());
    wait_for("all letters", all).unwrap();
    drop(idle);
    let as_before =
        || (running(&instance, "qmail-smtpd").len() + running(&instance, "qmail-popup").len() == workers).then_some(());
    wait_for("the end of the old generations", as_before).unwrap();
    assert!(!instance.log().contains("panicked"), "{}", instance.log());
}
