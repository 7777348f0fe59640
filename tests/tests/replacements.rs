//! Programs in the place of qmail-local and qmail-remote (QMAILLOCAL, QMAILREMOTE): what they get, what becomes of what they say, and
//! that one which crashes, hangs or talks rubbish costs its own mail a delay.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use system_tests::instance::feed;
use system_tests::{Instance, Peer, Person, facts, is_root, wait_for};

const LETTER: &str = "Subject: x\n\nhi\n";
const BOB: &str = "bob@example.test";

/// A program for everyone to run, and a directory where everyone may write, which it finds as `$there`.
fn program(instance: &Instance, name: &str, script: &str) -> PathBuf {
    let there = instance.dir().join("there");
    std::fs::create_dir_all(&there).unwrap();
    std::fs::set_permissions(&there, std::fs::Permissions::from_mode(0o777)).unwrap();
    let path = instance.dir().join(name);
    // By rename: nobody runs a file that is open for writing.
    let new = instance.dir().join("new");
    std::fs::write(&new, format!("#!/bin/sh\nthere={}\n{script}\n", there.display())).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(&new, &path).unwrap();
    path
}

fn inject(instance: &Instance, sender: &str, to: &[&str]) {
    let mut command = Command::new(instance.program("qmail-inject"));
    command.env("QMAIL_ROOT", &instance.root).arg(format!("-f{sender}")).args(to);
    assert!(feed(&mut command, LETTER.as_bytes()).unwrap().status.success());
}

fn there(instance: &Instance, name: &str) -> Option<String> {
    std::fs::read_to_string(instance.dir().join("there").join(name)).ok()
}

fn is_running(instance: &Instance, name: &str) -> bool {
    facts::descendants(instance.pid()).iter().any(|process| process.name == name)
}

/// The uid of a role in this instance.
fn uid_of(instance: &Instance, role: &str) -> String {
    let ids = std::fs::read_to_string(instance.root.join("etc/qmail/ids")).unwrap_or_default();
    let uid = ids.lines().find_map(|line| line.strip_prefix(role)?.trim().split(' ').next().map(str::to_owned));
    uid.filter(|_| is_root()).unwrap_or_else(|| rustix::process::geteuid().to_string())
}

#[test]
fn a_program_in_the_place_of_qmail_remote_gets_each_recipient() {
    let mut instance = Instance::new().unwrap();
    let script = "printf '%s|%s|%s|%s\\n' \"$#\" \"$1\" \"$2\" \"$3\" >> $there/arguments\n\
        id -u > $there/uid; cat > $there/message\n\
        case \"$3\" in\n\
        no@*) printf 'hno such %s\\n\\0DGiving up\\n\\0' \"$3\";;\n\
        later@*) [ -f $there/again ] && printf 'r\\0Kthen\\n\\0' || { touch $there/again; printf 'snot yet\\n\\0ZGiving up\\n\\0'; };;\n\
        *) printf 'r\\0Ktaken by a program\\n\\0';;\n\
        esac";
    let path = program(&instance, "remote", script);
    instance.start_in(&[("QMAILREMOTE", &path)]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    assert!(is_running(&instance, "qmail-rspawn") && !is_running(&instance, "qmail-remote"));
    inject(&instance, "bob@example.test", &["a@h.test", "b@h.test", "no@h.test", "later@other.test"]);
    inject(&instance, "list-@example.test-@[]", &["c@h.test"]);
    instance.wait_log("deferral: not_yet/Giving_up/").unwrap();
    instance.retry_until_empty().unwrap();
    let arguments = there(&instance, "arguments").unwrap();
    let mut calls: Vec<&str> = arguments.lines().collect();
    calls.sort_unstable();
    let expected = [
        "3|h.test|bob@example.test|a@h.test",
        "3|h.test|bob@example.test|b@h.test",
        "3|h.test|bob@example.test|no@h.test",
        "3|h.test|list-c=h.test@example.test|c@h.test",
        "3|other.test|bob@example.test|later@other.test",
        "3|other.test|bob@example.test|later@other.test",
    ];
    assert_eq!(calls, expected);
    let message = there(&instance, "message").unwrap();
    assert!(message.starts_with("Received: (qmail ") && message.ends_with("Subject: x\n\nhi\n"), "{message}");
    assert_eq!(there(&instance, "uid").unwrap().trim_end(), uid_of(&instance, "qmailr"));
    instance.wait_log("success: taken_by_a_program/").unwrap();
    instance.wait_log("failure: no_such_no@h.test/Giving_up/").unwrap();
    let bounce = instance.wait_mail(BOB, 1).unwrap().remove(0);
    assert!(bounce.contains("<no@h.test>:\nno such no@h.test\nGiving up\n"), "{bounce}");
    instance.stop().unwrap();
}

#[test]
fn a_program_that_crashes_hangs_or_talks_rubbish_delays_its_own_mail() {
    let mut instance = Instance::new().unwrap();
    for (name, text) in [("timeoutremote", "1\n"), ("timeoutconnect", "1\n")] {
        instance.control(name, text).unwrap();
    }
    let script = "case \"$3\" in\n\
        crash@*) kill -11 $$;;\n\
        hang@*) sleep 1000;;\n\
        rubbish@*) head -c 200000 /dev/urandom | tr -d '\\0';;\n\
        nothing@*) exit 0;;\n\
        later@*) exit 111;;\n\
        missing@*) /nonexistent/program; exit $?;;\n\
        shell@*) exit 2;;\n\
        never@*) exit 100;;\n\
        *) printf 'r\\0Ktaken by a program\\n\\0';;\n\
        esac";
    let path = program(&instance, "remote", script);
    instance.control("qmailremote", &format!("{}\n", path.display())).unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    for user in ["hang", "crash", "rubbish", "nothing", "later", "missing", "shell", "never", "good"] {
        inject(&instance, BOB, &[&format!("{user}@{user}.test")]);
    }
    for line in [
        "success: taken_by_a_program/",
        "deferral: qmail-remote_crashed./",
        "deferral: The_report_of_the_program_in_the_place_of_qmail-remote_is_mangled._(#4.3.0)/",
        "deferral: qmail-remote_produced_no_output./",
        "failure: Unable_to_run_qmail-remote./",
        "deferral: The_program_in_the_place_of_qmail-remote_ran_for_too_long_and_was_stopped._(#4.3.0)/",
    ] {
        instance.wait_log(line).unwrap();
    }
    let deferred = "deferral: Unable_to_run_qmail-remote./";
    wait_for("later, missing and shell", || (instance.log().matches(deferred).count() == 3).then_some(())).unwrap();
    let bounce = instance.wait_mail(BOB, 1).unwrap().remove(0);
    assert!(bounce.contains("<never@never.test>:\nUnable to run qmail-remote.\n"), "{bounce}");
    // qmail-rspawn itself may go: what it had is tried again.
    let pid = facts::descendants(instance.pid()).into_iter().find(|process| process.name == "qmail-rspawn").unwrap().pid;
    facts::signal(pid, Signal::KILL);
    let path = program(&instance, "remote", "printf 'r\\0Ktaken at last\\n\\0'");
    assert!(path.exists());
    instance.retry_until_empty().unwrap();
    instance.stop().unwrap();
}

/// The classic qmail-remote at the end of a filter, and a change while the system runs.
#[test]
fn a_filter_ends_by_running_qmail_remote_and_comes_and_goes_with_its_file() {
    let peer = Peer::willing().unwrap();
    let mut instance = Instance::new().unwrap();
    instance.control("smtproutes", &peer.route("elsewhere.test")).unwrap();
    instance.start().unwrap();
    let reload = |instance: &Instance, count: usize| {
        facts::signal(instance.pid(), Signal::HUP);
        let done = || (instance.log().matches("the new configuration is in use").count() >= count).then_some(());
        wait_for("the reload", done).unwrap();
    };
    inject(&instance, "a@mail.example.test", &["one@elsewhere.test"]);
    instance.wait_empty().unwrap();
    let path = program(&instance, "filter", "{ echo 'X-Filtered: yes'; cat; } | qmail-remote \"$@\"");
    instance.control("qmailremote", &format!("{}\n", path.display())).unwrap();
    reload(&instance, 1);
    assert!(is_running(&instance, "qmail-rspawn"));
    inject(&instance, "a@mail.example.test", &["two@elsewhere.test", "three@elsewhere.test"]);
    instance.wait_empty().unwrap();
    std::fs::remove_file(instance.root.join("etc/qmail/control/qmailremote")).unwrap();
    reload(&instance, 2);
    wait_for("the end of qmail-rspawn", || (!is_running(&instance, "qmail-rspawn")).then_some(())).unwrap();
    inject(&instance, "a@mail.example.test", &["four@elsewhere.test"]);
    instance.wait_empty().unwrap();
    let letters = peer.letters();
    let filtered = |letter: &system_tests::peer::Letter| letter.text().starts_with("X-Filtered: yes\nReceived: ");
    let seen: Vec<(Vec<String>, bool)> = letters.iter().map(|letter| (letter.to.clone(), filtered(letter))).collect();
    let to = |name: &str| vec![format!("<{name}@elsewhere.test>")];
    let expected = [(to("one"), false), (to("two"), true), (to("three"), true), (to("four"), false)];
    assert_eq!(seen, expected);
    // A program that is not there is not used, and said.
    instance.control("qmailremote", "/nonexistent/filter\n").unwrap();
    facts::signal(instance.pid(), Signal::HUP);
    instance
        .wait_log("alert: the new configuration is not used: control/qmailremote or QMAILREMOTE: /nonexistent/filter")
        .unwrap();
    instance.stop().unwrap();
    let error = instance.start().unwrap_err().to_string();
    assert!(error.contains("/nonexistent/filter"), "{error}");
}

#[test]
fn a_program_in_the_place_of_qmail_local_delivers_to_system_users() {
    let mut instance = Instance::new().unwrap();
    let person = Person::new(&instance).unwrap();
    person.maildir("Maildir").unwrap();
    let script = "\
        case \"$6\" in\n\
        '') for a in \"$#\" \"$@\"; do echo \"$a\"; done > $there/arguments; id -u > $there/uid; cat > $there/message; echo did a program;;\n\
        crash) kill -11 $$;;\n\
        later) echo not now; exit 111;;\n\
        never) echo no such mailbox >&2; exit 100;;\n\
        odd) exit 65;;\n\
        shell) exit 2;;\n\
        missing) /nonexistent/program; exit $?;;\n\
        own) exec qmail-local \"$@\";;\n\
        esac";
    let path = program(&instance, "local", script);
    instance.start_in(&[("QMAILLOCAL", &path)]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let name = person.name.as_str();
    let to = |ext: &str| format!("{name}{ext}@mail.example.test");
    inject(&instance, BOB, &[&to("")]);
    instance.wait_log("success: did_a_program/").unwrap();
    let home = person.home.display();
    let default = std::fs::read_to_string(instance.root.join("etc/qmail/control/defaultdelivery")).unwrap_or_default();
    let default = if default.trim_end().is_empty() { "./Mailbox" } else { default.trim_end() };
    let expected = format!("9\n--\n{name}\n{home}\n{name}\n\n\nmail.example.test\n{BOB}\n{default}\n");
    assert_eq!(there(&instance, "arguments").unwrap(), expected);
    let message = there(&instance, "message").unwrap();
    assert!(message.starts_with("Received: (qmail ") && message.ends_with("Subject: x\n\nhi\n"), "{message}");
    let owner = Command::new("stat").args(["-c", "%u"]).arg(&person.home).output().unwrap();
    assert_eq!(there(&instance, "uid").unwrap(), String::from_utf8(owner.stdout).unwrap());

    for ext in ["crash", "later", "never", "odd", "missing", "shell"] {
        inject(&instance, BOB, &[&to(&format!("-{ext}"))]);
    }
    for line in ["deferral: qmail-local_crashed./", "deferral: not_now/", "failure: no_such_mailbox/"] {
        instance.wait_log(line).unwrap();
    }
    let bounces = instance.wait_mail(BOB, 2).unwrap().concat();
    assert!(bounces.contains(&format!("<{}>:\nno such mailbox\n", to("-never"))) && bounces.contains(&to("-odd")), "{bounces}");
    let deferred = || (instance.json(&["queue", "stats"]).ok()?["messages"] == 4).then_some(());
    wait_for("crash, later, missing and shell to be kept", deferred).unwrap();

    // What it delivers to, it alone knows: no `.qmail` file has to be there for a recipient by SMTP either.
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO client.example.test", "250").unwrap();
    smtp.must("MAIL FROM:<a@elsewhere.test>", "250").unwrap();
    smtp.must(&format!("RCPT TO:<{}>", to("-anything")), "250 2.1.5").unwrap();
    smtp.must("RCPT TO:<nobody@example.test>", "550 5.1.1").unwrap();
    drop(smtp);

    // qmail's own at the end of a filter; and virtual users, whom it does not concern.
    person.write(".qmail-own", "./Maildir/\n").unwrap();
    inject(&instance, "ann@elsewhere.test", &[&to("-own"), BOB]);
    instance.wait_letters(&person.home.join("Maildir"), 1).unwrap();
    assert!(
        instance
            .wait_mail(BOB, 3)
            .unwrap()
            .concat()
            .contains("Return-Path: <ann@elsewhere.test>\nDelivered-To: bob@example.test\n")
    );
    instance.stop().unwrap();
}

#[test]
fn a_program_that_hangs_in_the_place_of_qmail_local_holds_up_nobody_else() {
    let mut instance = Instance::new().unwrap();
    let person = Person::new(&instance).unwrap();
    person.maildir("Maildir").unwrap();
    let script = "[ \"$6\" = hang ] && { echo $$ > $there/pid; sleep 1000; }; exec qmail-local \"$@\"";
    let path = program(&instance, "local", script);
    instance.control("qmaillocal", &format!("{}\n", path.display())).unwrap();
    instance.control("defaultdelivery", "./Maildir/\n").unwrap();
    instance.start().unwrap();
    let to = |ext: &str| format!("{}{ext}@mail.example.test", person.name);
    person.write(".qmail-hang", "./Maildir/\n").unwrap();
    inject(&instance, "a@elsewhere.test", &[&to("-hang")]);
    let pid = || there(&instance, "pid")?.trim_end().parse::<u32>().ok();
    let pid = wait_for("the program", pid).unwrap();
    inject(&instance, "a@elsewhere.test", &[&to("")]);
    instance.wait_letters(&person.home.join("Maildir"), 1).unwrap();
    // The end of the system is the end of it, and its mail is kept.
    instance.stop().unwrap();
    wait_for("the end of the program", || (!facts::is_alive(pid)).then_some(())).unwrap();
    std::fs::remove_file(instance.root.join("etc/qmail/control/qmaillocal")).unwrap();
    instance.start().unwrap();
    instance.retry_until_empty().unwrap();
    assert_eq!(instance.wait_letters(&person.home.join("Maildir"), 2).unwrap().len(), 2);
}

#[test]
fn what_is_no_whole_path_stops_the_start() {
    let mut instance = Instance::new().unwrap();
    for (variable, value) in [("QMAILREMOTE", "filter"), ("QMAILLOCAL", "bin/filter"), ("QMAILLOCAL", "/nonexistent/filter")] {
        let error = instance.start_in(&[(variable, Path::new(value))]).unwrap_err().to_string();
        assert!(error.contains(variable) && error.contains(value), "{variable}={value}: {error}");
    }
}
