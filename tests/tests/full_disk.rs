//! Full disks, of blocks and of inodes: the client hears 452 4.3.1, nothing acknowledged is lost, and when there is room again mail
//! goes on without a restart.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use system_tests::loop_disk::Format;
use system_tests::traffic::{Fate, Ledger};
use system_tests::{Instance, facts, is_root, skip, wait_for};

const USERS: [&str; 2] = ["bob@example.test", "carol@example.test"];
const FULL: &str = "452 4.3.1 ";
/// Letters that surely fill what was prepared of the spool.
const LETTERS_MAX: usize = 2000;

/// With disks of its own; None, noted, without root.
fn instance(test: &str, disks: &[(&str, Format)]) -> Option<Instance> {
    if !is_root() {
        skip(test, "loop devices need root");
        return None;
    }
    let mut instance = Instance::on_disks(disks).unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob", "carol"]).unwrap();
    Some(instance)
}

/// Sends letters of a length until one is refused, which must be for want of room.
fn send_until_full(instance: &Instance, ledger: &Ledger, len: usize) -> usize {
    for n in 0..LETTERS_MAX {
        match ledger.send(instance.port(25), &[USERS[n % 2]], len).unwrap() {
            Fate::Accepted => {}
            Fate::Refused(reply) if reply.starts_with(FULL) => return n,
            other => panic!("letter {n}: {other:?}"),
        }
    }
    panic!("{LETTERS_MAX} letters, and the disk is not full");
}

/// Letters of each kind are accepted and everything arrives, once.
fn goes_on(instance: &Instance, ledger: &Ledger) {
    for len in [300, 20_000, 150_000] {
        ledger.insist(instance.port(25), &USERS, len).unwrap();
    }
    let audit = ledger.settle(instance, &USERS).unwrap();
    assert_eq!((audit.duplicates.len(), audit.refused_and_delivered), (0, 0), "{audit:?}");
}

#[test]
fn a_full_disk_under_everything_refuses_and_recovers() {
    let name = "a_full_disk_under_everything_refuses_and_recovers";
    let Some(instance) = instance(name, &[("", Format::mib(300))]) else { return };
    let ledger = Ledger::default();
    goes_on(&instance, &ledger);
    instance.disk(0).fill().unwrap();
    // A side file needs room at once; what rides in the log has some in store.
    assert_eq!(send_until_full(&instance, &ledger, 150_000), 0);
    let small = send_until_full(&instance, &ledger, 60_000);
    assert!(small > 0);
    instance.wait_log("no room for new messages").unwrap();
    instance.wait_log("deferral: ").unwrap();
    let before = ledger.look(&instance, &USERS).unwrap();
    assert!(!before.1.is_empty(), "mailboxes have no room either");
    instance.disk(0).free().unwrap();
    goes_on(&instance, &ledger);
    println!("{small} letters into what was prepared");
}

#[test]
fn a_restart_on_a_full_disk_loses_nothing() {
    let name = "a_restart_on_a_full_disk_loses_nothing";
    let Some(mut instance) = instance(name, &[("", Format::mib(300))]) else { return };
    let ledger = Ledger::default();
    instance.control("concurrencylocal", "0\n").unwrap();
    instance.stop().unwrap();
    instance.start().unwrap();
    instance.disk(0).fill().unwrap();
    send_until_full(&instance, &ledger, 30_000);
    std::fs::remove_file(instance.root.join("etc/qmail/control/concurrencylocal")).unwrap();
    // A start has room for its segment in the spare; one more may have none, and says so.
    for _ in 0..3 {
        instance.stop().unwrap();
        if instance.start().is_err() {
            assert!(
                instance.log().contains("cannot start: cannot open a new segment: No space left on device"),
                "{}",
                instance.log()
            );
            break;
        }
        let fate = ledger.send(instance.port(25), &[USERS[0]], 300).unwrap();
        assert!(matches!(&fate, Fate::Refused(reply) if reply.starts_with(FULL)), "{fate:?}");
    }
    instance.disk(0).free().unwrap();
    instance.stop().unwrap();
    instance.start().unwrap();
    goes_on(&instance, &ledger);
}

#[test]
fn a_full_spool_delivers_what_it_holds_and_gets_empty() {
    let name = "a_full_spool_delivers_what_it_holds_and_gets_empty";
    let Some(mut instance) = instance(name, &[("var/spool/qmail", Format::mib(64))]) else { return };
    let ledger = Ledger::default();
    instance.control("concurrencylocal", "0\n").unwrap();
    instance.stop().unwrap();
    instance.start().unwrap();
    instance.disk(0).fill().unwrap();
    send_until_full(&instance, &ledger, 30_000);
    // Results and ends find room in the spare, and what they free takes new mail: nobody has to make room by hand.
    std::fs::remove_file(instance.root.join("etc/qmail/control/concurrencylocal")).unwrap();
    facts::signal(send_pid(&instance), Signal::HUP);
    ledger.settle(&instance, &USERS).unwrap();
    wait_for("small letters to be accepted again", || {
        (ledger.send(instance.port(25), &[USERS[0]], 300).unwrap() == Fate::Accepted).then_some(())
    })
    .unwrap();
    instance.disk(0).free().unwrap();
    goes_on(&instance, &ledger);
}

#[test]
fn without_inodes_it_refuses_and_recovers() {
    let name = "without_inodes_it_refuses_and_recovers";
    let format = Format { mib: 300, inodes: Some(2048) };
    let Some(instance) = instance(name, &[("", format)]) else { return };
    let ledger = Ledger::default();
    goes_on(&instance, &ledger);
    instance.disk(0).fill_inodes().unwrap();
    assert_eq!(send_until_full(&instance, &ledger, 150_000), 0);
    let small = send_until_full(&instance, &ledger, 60_000);
    instance.wait_log("deferral: ").unwrap();
    instance.disk(0).free().unwrap();
    goes_on(&instance, &ledger);
    println!("{small} letters without an inode");
}

#[test]
fn a_full_mailbox_disk_defers_and_leaves_nothing_in_new() {
    let name = "a_full_mailbox_disk_defers_and_leaves_nothing_in_new";
    for format in [Format::mib(16), Format { mib: 16, inodes: Some(64) }] {
        let Some(instance) = instance(name, &[("var/mail", format)]) else { return };
        let ledger = Ledger::default();
        // The Maildirs are there already.
        ledger.insist(instance.port(25), &USERS, 300).unwrap();
        ledger.settle(&instance, &USERS).unwrap();
        ledger.close(&instance, &USERS).unwrap();
        if format.inodes.is_some() {
            instance.disk(0).fill_inodes().unwrap();
        } else {
            instance.disk(0).fill().unwrap();
        }
        for len in [300, 4096, 20_000, 150_000, 3_000_000] {
            let fate = ledger.send(instance.port(25), &USERS, len).unwrap();
            assert_eq!(fate, Fate::Accepted, "the spool has room");
        }
        wait_for("deferrals", || (instance.log().matches("deferral: ").count() >= 10).then_some(())).unwrap();
        let (audit, _) = ledger.look(&instance, &USERS).unwrap();
        assert_eq!(audit.copies, 0, "not even a part of a letter is in new/");
        for user in USERS {
            assert_eq!(std::fs::read_dir(instance.maildir(user).join("tmp")).unwrap().count(), 0, "nothing stays in tmp/");
        }
        instance.disk(0).free().unwrap();
        goes_on(&instance, &ledger);
    }
}

fn send_pid(instance: &Instance) -> u32 {
    facts::descendants(instance.pid()).into_iter().find(|p| p.name == "qmail-send").unwrap().pid
}

/// Administration on a full disk does all of a thing or nothing, and says so; who is there goes on reading and mail waits.
#[test]
fn administration_on_a_full_disk_does_all_or_nothing() {
    let name = "administration_on_a_full_disk_does_all_or_nothing";
    let Some(instance) = instance(name, &[("", Format::mib(300))]) else { return };
    instance.must(&["user", "quota", USERS[1], "10M"]).unwrap();
    let ledger = Ledger::default();
    goes_on(&instance, &ledger);
    let domains = instance.root.join("etc/qmail/users/domains");
    let listed = || (std::fs::read(&domains).unwrap(), instance.must(&["user", "list", "example.test"]).unwrap());
    let before = listed();
    // Its files fail, not the directory.
    let certificate = instance.root.join("etc/qmail/tls/new.example.test");
    std::fs::create_dir(&certificate).unwrap();
    instance.disk(0).fill().unwrap();
    let commands: [&[&str]; 6] = [
        &["domain", "add", "new.test"],
        &["domain", "remove", "example.test"],
        &["user", "add", "new@example.test", "--password-stdin"],
        &["user", "passwd", USERS[0], "--password-stdin"],
        &["alias", "add", "all@example.test", USERS[0]],
        &["cert", "self-signed", "new.example.test"],
    ];
    let (mut failed, mut has_certificate) = (0, false);
    for command in commands {
        let output = system_tests::instance::feed(&mut instance.qmail(command), b"another password\n").unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{command:?}: {:?} {said}", output.status.code());
        // What fits into a block that is there already may be done.
        if output.status.success() {
            has_certificate |= command[0] == "cert";
            continue;
        }
        failed += 1;
        assert!(matches!(output.status.code(), Some(100 | 111)) && !said.is_empty(), "{command:?}: {output:?}");
        assert!(!said.contains("panicked"), "{said}");
    }
    assert!(failed > 0);
    let files = std::fs::read_dir(&certificate).unwrap().count();
    assert_eq!(files, if has_certificate { 2 } else { 0 }, "half a certificate would be in the way");
    let left = std::fs::read_dir(instance.root.join("etc/qmail/users")).unwrap();
    assert!(left.flatten().all(|entry| !entry.file_name().to_string_lossy().contains(".tmp.")));
    assert_eq!(listed().0, before.0, "users/domains is as it was");
    let mut pop3 = system_tests::Pop3::login(instance.port(110), USERS[1], "carol-password").unwrap();
    pop3.count().unwrap();
    drop(pop3);
    let waiting = ledger.send(instance.port(25), &[USERS[1]], 300).unwrap();
    instance.disk(0).free().unwrap();
    println!("a letter for a user with a quota: {waiting:?}");
    let certificate = (!has_certificate).then_some(&["cert", "self-signed", "new.example.test"][..]);
    for command in [&["domain", "add", "new.test"][..]].into_iter().chain(certificate) {
        let output = instance.qmail(command).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command:?}: {said}");
    }
    instance.with_input(&["user", "add", "late@example.test", "--password-stdin"], "late-password\n").unwrap();
    goes_on(&instance, &ledger);
}
