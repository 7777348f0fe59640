//! What bounds the queue and goes beside it: control/taps, control/sitelimits, and what SIGHUP and SIGALRM to qmail-send change.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use system_tests::peer::Event;
use system_tests::{Instance, Peer, facts, wait_for};

const LETTER: &str = "Subject: x\n\nbody\n";
const RELAY: (&str, &str) = ("relayclients", "127.0.0.0/8\n");

fn send(instance: &Instance, from: &str, to: &[&str]) {
    instance.smtp().unwrap().send(from, to, LETTER).unwrap_or_else(|e| panic!("{from} to {to:?}: {e}"));
}

/// The process that owns the queue.
fn qmail_send(instance: &Instance) -> u32 {
    facts::descendants(instance.pid()).into_iter().find(|p| p.name == "qmail-send").unwrap().pid
}

fn hup(instance: &Instance) {
    facts::signal(qmail_send(instance), Signal::HUP);
}

fn stat(instance: &Instance, name: &str) -> u64 {
    instance.json(&["queue", "stats"]).unwrap()[name].as_u64().unwrap()
}

fn wait_stat(instance: &Instance, name: &str, value: u64) {
    let is_so = || (stat(instance, name) == value).then_some(());
    wait_for(&format!("{name} to be {value}"), is_so).unwrap_or_else(|e| panic!("{e}\n{}", instance.log()));
}

/// What holds the peers back.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn pass(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open));
    }

    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

/// A host that takes a letter's text and answers when the gate is opened.
fn slow() -> (Peer, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let slow = Arc::clone(&gate);
    let peer = Peer::start("127.0.0.1:0", move |event| {
        if matches!(event, Event::Body(_)) {
            slow.pass();
        }
        None
    });
    (peer.unwrap(), gate)
}

/// Another control/taps in place of the one that is there: at no moment is there an empty one.
fn replace_taps(instance: &Instance, text: &str) {
    let control = instance.root.join("etc/qmail/control");
    std::fs::write(instance.dir().join("taps"), text).unwrap();
    std::fs::rename(instance.dir().join("taps"), control.join("taps")).unwrap();
}

#[test]
fn taps_copy_what_fits_to_the_archive_once() {
    let peer = Peer::willing().unwrap();
    let taps = "# who\nF:.*@from.test:arch@example.test\nT:^ann@:arch@example.test\nA:@both.test:arch@example.test\n\
        T:*@remote.test:other@example.test\n";
    let instance = Instance::started(&[RELAY, ("smtproutes", &peer.route("")), ("taps", taps)]).unwrap();
    instance.virtual_domain("example.test", &["bob", "ann", "arch", "other"]).unwrap();
    let cases: [(&str, &[&str], [usize; 4]); 12] = [
        // bob, ann, arch, other
        ("x@from.test", &["bob@example.test"], [1, 0, 1, 0]),
        ("x@FROM.test", &["bob@example.test"], [1, 0, 1, 0]),
        ("x@elsewhere.test", &["bob@example.test"], [1, 0, 0, 0]),
        ("x@elsewhere.test", &["Ann@example.test", "bob@example.test"], [1, 1, 1, 0]),
        ("ann@elsewhere.test", &["bob@example.test"], [1, 0, 0, 0]),
        ("x@both.test", &["bob@example.test"], [1, 0, 1, 0]),
        ("x@elsewhere.test", &["y@both.test"], [0, 0, 1, 0]),
        ("", &["y@both.test"], [0, 0, 1, 0]),
        ("x@elsewhere.test", &["y@remote.test"], [0, 0, 0, 1]),
        // The first line that fits, and only that.
        ("x@from.test", &["y@remote.test", "ann@example.test"], [0, 1, 1, 0]),
        // Whoever is a recipient anyway gets it once.
        ("x@from.test", &["ARCH@example.test", "bob@example.test"], [1, 0, 1, 0]),
        ("arch@example.test", &["bob@example.test"], [1, 0, 0, 0]),
    ];
    let boxes = ["bob@example.test", "ann@example.test", "arch@example.test", "other@example.test"];
    let mut expected = [0; 4];
    for (from, to, more) in cases {
        send(&instance, from, to);
        instance.wait_empty().unwrap();
        for ((count, more), address) in expected.iter_mut().zip(more).zip(boxes) {
            *count += more;
            instance.wait_mail(address, *count).unwrap_or_else(|e| panic!("{from} to {to:?}: {e}"));
        }
    }
    let copy = instance.wait_mail("arch@example.test", expected[2]).unwrap().remove(0);
    assert!(copy.ends_with(LETTER) && copy.contains("\nDelivered-To: arch@example.test\n"), "{copy}");
    // Another file counts at once; one with a mistake does not, and is said.
    replace_taps(&instance, "T:bob@example.test:other@example.test\n");
    send(&instance, "x@from.test", &["bob@example.test"]);
    instance.wait_mail("other@example.test", expected[3] + 1).unwrap();
    replace_taps(&instance, "T:(bob@example.test:arch@example.test\n");
    send(&instance, "x@from.test", &["bob@example.test"]);
    instance.wait_mail("other@example.test", expected[3] + 2).unwrap();
    instance.wait_log("control/taps: line 1: `T:(bob@example.test:arch@example.test` ").unwrap();
    instance.wait_empty().unwrap();
    instance.wait_mail("arch@example.test", expected[2]).unwrap();
}

/// The copy is accepted with the message, survives what the message survives, and nobody but the administrator hears of its fate.
#[test]
fn the_archives_copy_is_as_durable_as_the_message_and_no_sender_hears_of_it() {
    let mut instance =
        Instance::started(&[RELAY, ("taps", "F:*@example.test:arch@example.test\n"), ("concurrencylocal", "0\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob", "ann", "arch"]).unwrap();
    send(&instance, "ann@example.test", &["bob@example.test"]);
    instance.kill_all().unwrap();
    instance.control("concurrencylocal", "5\n").unwrap();
    instance.start().unwrap();
    for address in ["bob@example.test", "arch@example.test"] {
        assert!(instance.wait_mail(address, 1).unwrap()[0].ends_with(LETTER));
    }
    // An archive that forwards, and one that nobody is: of neither anything comes back.
    instance.must(&["alias", "add", "list@example.test", "bob@example.test", "ann@example.test"]).unwrap();
    send(&instance, "ann@example.test", &["list@example.test"]);
    instance.wait_mail("bob@example.test", 2).unwrap();
    instance.wait_mail("ann@example.test", 1).unwrap();
    instance.wait_empty().unwrap();
    instance.wait_mail("arch@example.test", 2).unwrap();
    instance.must(&["alias", "add", "box@example.test", "arch@example.test"]).unwrap();
    replace_taps(&instance, "F:*@example.test:box@example.test\n");
    send(&instance, "ann@example.test", &["bob@example.test"]);
    instance.wait_mail("arch@example.test", 3).unwrap();
    instance.wait_mail("bob@example.test", 3).unwrap();
    instance.wait_empty().unwrap();
    instance.wait_mail("arch@example.test", 3).unwrap();
    replace_taps(&instance, "F:*@example.test:gone@example.test\n");
    send(&instance, "ann@example.test", &["bob@example.test"]);
    instance.wait_mail("bob@example.test", 4).unwrap();
    let alert = instance.wait_log(" is not archived at gone@example.test: ").unwrap();
    assert!(alert.contains("alert: msg ") && alert.contains("(#5.1.1)"), "{alert}");
    instance.wait_empty().unwrap();
    instance.wait_mail("ann@example.test", 1).unwrap();
}

#[test]
fn a_site_gets_no_more_connections_than_sitelimits_allows() {
    let ((slow, gate), quick) = (slow(), Peer::willing().unwrap());
    let routes = format!("{}{}", slow.route("slow.test"), quick.route("quick.test"));
    let limits = format!("# the relays\n{}:2\n:1\n", slow.address.ip());
    let instance = Instance::started(&[RELAY, ("smtproutes", &routes), ("sitelimits", &limits)]).unwrap();
    for n in 0..5 {
        send(&instance, "a@elsewhere.test", &[&format!("r{n}@slow.test")]);
    }
    wait_stat(&instance, "remote", 2);
    wait_stat(&instance, "sites_limited", 1);
    assert_eq!(stat(&instance, "remote_waiting"), 3);
    assert!(!instance.log().contains("remote 3/20"), "{}", instance.log());
    // It is for each site with that address: the other peer is another one.
    instance.control("sitelimits", &format!("{}:3\n", slow.address.ip())).unwrap();
    hup(&instance);
    wait_stat(&instance, "remote", 3);
    assert!(!instance.log().contains("remote 4/20"), "{}", instance.log());
    send(&instance, "a@elsewhere.test", &["x@quick.test"]);
    wait_for("the letter to the other site", || (quick.letters().len() == 1).then_some(())).unwrap();
    gate.open();
    instance.wait_empty().unwrap();
    assert_eq!(slow.letters().len(), 5);
    // Zero holds what comes, until there is another limit or none.
    instance.control("sitelimits", ":0\n").unwrap();
    send(&instance, "a@elsewhere.test", &["held@slow.test"]);
    wait_stat(&instance, "sites_limited", 1);
    assert_eq!(stat(&instance, "remote"), 0);
    std::fs::remove_file(instance.root.join("etc/qmail/control/sitelimits")).unwrap();
    hup(&instance);
    instance.wait_empty().unwrap();
    assert_eq!(slow.letters().len(), 6);
    instance.control("sitelimits", "slow.test\n").unwrap();
    hup(&instance);
    instance.wait_log("control/sitelimits: line 1: `slow.test` has no colon").unwrap();
}

#[test]
fn a_site_gets_no_more_transactions_a_minute_than_sitelimits_allows() {
    let peer = Peer::willing().unwrap();
    let control = [RELAY, ("smtproutes", &peer.route("")), ("sitelimits", ":9:60\n")];
    let instance = Instance::started(&control).unwrap();
    let start = Instant::now();
    for n in 0..3 {
        send(&instance, "a@elsewhere.test", &[&format!("r{n}@rate.test")]);
    }
    instance.wait_empty().unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "one a second: {}", instance.log());
    assert_eq!(peer.letters().len(), 3);
}

#[test]
fn sighup_brings_more_deliveries_and_what_runs_runs_on() {
    let (slow, gate) = slow();
    let instance = Instance::started(&[RELAY, ("smtproutes", &slow.route("")), ("concurrencyremote", "1\n")]).unwrap();
    for n in 0..4 {
        send(&instance, "a@elsewhere.test", &[&format!("r{n}@slow.test")]);
    }
    wait_stat(&instance, "remote", 1);
    instance.control("concurrencyremote", "3\n").unwrap();
    hup(&instance);
    wait_stat(&instance, "remote", 3);
    instance.control("concurrencyremote", "2\n").unwrap();
    hup(&instance);
    wait_stat(&instance, "remote_max", 2);
    assert_eq!(stat(&instance, "remote"), 3, "what runs runs on");
    instance.control("concurrencyremote", "4000\n").unwrap();
    hup(&instance);
    wait_stat(&instance, "remote_max", 4000);
    wait_stat(&instance, "remote", 4);
    gate.open();
    instance.wait_empty().unwrap();
    let log = instance.log();
    assert_eq!((log.matches(": success: ").count(), log.matches(": deferral: ").count()), (4, 0), "{log}");
    assert_eq!((slow.letters().len(), slow.commands().iter().filter(|c| *c == "DATA").count()), (4, 4), "none twice");
}

#[test]
fn sighup_brings_locals_virtualdomains_queuelifetime_and_bounces_as_they_are_now() {
    let deferring = Peer::start("127.0.0.1:0", |event| match event {
        Event::Command(line) if line.starts_with("RCPT TO:<late") => Some("450 4.2.0 never today"),
        _ => None,
    })
    .unwrap();
    let instance = Instance::started(&[RELAY, ("smtproutes", &deferring.route(""))]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let remote = |count: usize| wait_for("a letter abroad", || (deferring.letters().len() == count).then_some(())).unwrap();
    send(&instance, "bob@example.test", &["postmaster@moved.test"]);
    send(&instance, "bob@example.test", &["someone@virtual.test"]);
    remote(2);
    send(&instance, "bob@example.test", &["late@abroad.test"]);
    instance.wait_log("450_4.2.0_never_today").unwrap();
    for (name, text) in [
        ("locals", "mail.example.test\nmoved.test\n"),
        ("virtualdomains", "virtual.test:postmaster\nexcept.virtual.test:\n"),
        ("queuelifetime", "0\n"),
        ("bouncefrom", "returns\n"),
        ("bouncehost", "returns.example.test\n"),
    ] {
        instance.control(name, text).unwrap();
    }
    hup(&instance);
    let alias = instance.root.join("etc/qmail/alias");
    std::fs::write(alias.join(".qmail-postmaster-someone"), "./Maildir/\n").unwrap();
    // The file must be alias's where the test is root's.
    let like = std::fs::metadata(alias.join(".qmail-postmaster")).unwrap();
    {
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::chown(alias.join(".qmail-postmaster-someone"), Some(like.uid()), Some(like.gid())).unwrap();
    }
    let postmaster = alias.join("Maildir");
    // From the signal on; the first of these may still have come before it.
    let arrives = |to: &str| {
        let count = system_tests::users::letters(&postmaster).len();
        wait_for(to, || {
            send(&instance, "bob@example.test", &[to]);
            (system_tests::users::letters(&postmaster).len() > count).then_some(())
        })
        .unwrap();
    };
    arrives("postmaster@moved.test");
    arrives("SOMEONE@Virtual.TEST");
    instance.retry_until_empty().unwrap();
    let bounce = instance.wait_mail("bob@example.test", 1).unwrap().remove(0);
    for part in ["\nFrom: returns@returns.example.test\n", "I'm not going to try again;", "<late@abroad.test>:\n"] {
        assert!(bounce.contains(part), "{bounce}");
    }
}

#[test]
fn sigalrm_tries_everything_now_and_sigterm_ends_with_the_classic_words() {
    let refuses = Arc::new(Mutex::new(true));
    let now = Arc::clone(&refuses);
    let peer = Peer::start("127.0.0.1:0", move |event| match event {
        Event::Command(line) if line.starts_with("RCPT") && *now.lock().unwrap() => Some("450 4.2.0 not now"),
        _ => None,
    })
    .unwrap();
    let mut instance = Instance::started(&[RELAY, ("smtproutes", &peer.route(""))]).unwrap();
    for n in 0..3 {
        send(&instance, "a@elsewhere.test", &[&format!("r{n}@later.test")]);
    }
    wait_stat(&instance, "deferred", 3);
    *refuses.lock().unwrap() = false;
    facts::signal(qmail_send(&instance), Signal::ALARM);
    instance.wait_empty().unwrap();
    assert_eq!(peer.letters().len(), 3);
    instance.stop().unwrap();
    let log = instance.log();
    let end = log.rfind("status: local 0/10 remote 0/20 exitasap\n").unwrap_or_else(|| panic!("{log}"));
    assert!(log[end..].contains("status: exiting\n"), "{log}");
}
