//! Who runs as whom, with what, and what happens when one of them is killed.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use std::collections::BTreeMap;
use system_tests::facts::{self, Process};
use system_tests::{Instance, is_root, skip, wait_for};

const LETTER: &str = "Subject: x\n\nbody\n";

fn running(instance: &Instance) -> Vec<Process> {
    // Workers on demand and the moment between fork and exec come and go: look until the set is the table's.
    facts::descendants(instance.pid())
}

fn find(instance: &Instance, name: &str) -> Vec<Process> {
    running(instance).into_iter().filter(|p| p.name == name).collect()
}

fn deliver_one(instance: &Instance) {
    instance.smtp().unwrap().send("a@example.test", &["bob@example.test"], LETTER).unwrap();
    instance.wait_empty().unwrap();
}

#[test]
fn every_process_is_confined_and_runs_as_its_role() {
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    deliver_one(&instance);
    let session = instance.pop3("bob@example.test").unwrap();
    let ids: BTreeMap<String, String> = std::fs::read_to_string(instance.root.join("etc/qmail/ids"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(' ').map(|(role, rest)| (role.to_owned(), rest.split(' ').next().unwrap().to_owned())))
        .collect();
    let roles = [
        ("qmail-getpw", "qmailp"),
        ("qmail-resolve", "qmailx"),
        ("qmail-keys", "qmailk"),
        ("qmail-lspawn", "root"),
        ("qmail-auth", "qmaila"),
        ("qmail-remote", "qmailr"),
        ("qmail-send", "qmailq"),
        ("qmail-popup", "qmaild"),
        ("qmail-smtpd", "qmaild"),
        ("qmail-qmtpd", "qmaild"),
        ("qmail-qmqpd", "qmaild"),
        ("qmail-local", "vmail"),
        ("qmail-pop3d", "vmail"),
    ];
    let mut uids = BTreeMap::new();
    for (name, role) in roles {
        let found = find(&instance, name);
        assert!(!found.is_empty(), "{name} does not run: {:?}", running(&instance));
        for process in found {
            let uid = facts::status(process.pid, "Uid").unwrap().split(' ').next().unwrap().to_owned();
            let confined = name != "qmail-lspawn";
            let seen = ["NoNewPrivs", "Seccomp"].map(|field| facts::status(process.pid, field).unwrap());
            assert_eq!(seen, if confined { ["1", "2"] } else { ["0", "0"] }, "{name}");
            if is_root() {
                let expected = if role == "root" { "0".to_owned() } else { ids[role].clone() };
                assert_eq!(uid, expected, "{name}");
                let groups = facts::status(process.pid, "Groups").unwrap();
                assert!(!confined || groups.is_empty(), "{name} has groups {groups}");
                assert_eq!(facts::status(process.pid, "CapEff").unwrap() == "0000000000000000", confined, "{name}");
            }
            uids.insert(name, uid);
        }
    }
    if !is_root() {
        skip("every_process_is_confined_and_runs_as_its_role", "uids differ only as root");
    }
    drop(session);
}

#[test]
fn no_process_holds_a_descriptor_that_is_not_its_own() {
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    deliver_one(&instance);
    for process in running(&instance) {
        let files: Vec<String> = facts::descriptors(process.pid).iter().map(|path| path.display().to_string()).collect();
        let below = |dir: &str| files.iter().any(|file| file.starts_with(&instance.root.join(dir).display().to_string()));
        let (spool, lib, mail) = (below("var/spool/qmail"), below("var/lib/qmail"), below("var/mail"));
        let may = match process.name.as_str() {
            "qmail-send" => (true, false, false),
            "qmail-auth" => (false, true, false),
            "qmail-local" | "qmail-pop3d" => (false, false, mail),
            _ => (false, false, false),
        };
        assert_eq!((spool, lib, mail), may, "{} has {files:?}", process.name);
    }
}

#[test]
fn each_process_may_be_killed_under_traffic_and_nothing_is_lost() {
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let names = [
        "qmail-smtpd",
        "qmail-send",
        "qmail-lspawn",
        "qmail-local",
        "qmail-auth",
        "qmail-getpw",
        "qmail-resolve",
        "qmail-remote",
        "qmail-popup",
        "qmail-keys",
    ];
    let mut accepted = Vec::new();
    for (round, name) in names.iter().enumerate() {
        for n in 0..30 {
            let id = format!("{round}-{n}");
            if n == 15 {
                for process in find(&instance, name) {
                    facts::signal(process.pid, Signal::KILL);
                }
            }
            // The client tries until it is accepted, as any client does.
            wait_for("a letter to be accepted", || try_to_send(&instance, &id).then_some(())).unwrap();
            accepted.push(id);
        }
        wait_for(name, || (*name == "qmail-local" || !find(&instance, name).is_empty()).then_some(())).unwrap();
        assert!(facts::is_alive(instance.pid()), "qmail-start goes on");
    }
    instance.must(&["queue", "retry", "--all"]).unwrap();
    wait_for("an empty queue", || {
        instance.must(&["queue", "retry", "--all"]).ok()?;
        (instance.json(&["queue", "stats"]).ok()?["messages"] == 0).then_some(())
    })
    .unwrap();
    let mut pop3 = instance.pop3("bob@example.test").unwrap();
    let all: Vec<String> = (1..=pop3.count().unwrap()).map(|n| pop3.message(n).unwrap()).collect();
    for id in &accepted {
        assert!(all.iter().any(|letter| letter.contains(&format!("\nX-Id: {id}\n"))), "the letter {id} is lost");
    }
}

fn try_to_send(instance: &Instance, id: &str) -> bool {
    let letter = format!("X-Id: {id}\n{LETTER}");
    instance.smtp().and_then(|smtp| smtp.send("a@example.test", &["bob@example.test"], &letter)).is_ok()
}

#[test]
fn when_qmail_start_is_killed_all_end_and_a_new_one_begins_clean() {
    let mut instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    instance.kill_start().unwrap();
    instance.start().unwrap();
    deliver_one(&instance);
}

#[test]
fn sighup_brings_a_new_generation_and_refuses_a_broken_one() {
    let instance = Instance::started(&[]).unwrap();
    let before: Vec<u32> = find(&instance, "qmail-smtpd").iter().map(|p| p.pid).collect();
    instance.control("smtpgreeting", "new.example.test").unwrap();
    facts::signal(instance.pid(), Signal::HUP);
    wait_for("a new generation", || {
        let now: Vec<u32> = find(&instance, "qmail-smtpd").iter().map(|p| p.pid).collect();
        (!now.is_empty() && now.iter().all(|pid| !before.contains(pid))).then_some(())
    })
    .unwrap();
    let greets = |host: &str| {
        let mut smtp = instance.smtp().unwrap();
        smtp.ask("HELO c").unwrap().contains(host)
    };
    assert!(greets("new.example.test"));
    instance.control("barelf", "nonsense").unwrap();
    let old: Vec<u32> = find(&instance, "qmail-smtpd").iter().map(|p| p.pid).collect();
    facts::signal(instance.pid(), Signal::HUP);
    instance.wait_log("the new configuration is not used").unwrap();
    assert!(greets("new.example.test"));
    assert!(old.iter().all(|pid| facts::is_alive(*pid)), "the old generation goes on");
}
