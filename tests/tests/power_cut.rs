//! The power fails under the whole system, again and again: what was acknowledged is there, whole.
//!
//! The system lies on an ext4 file system of its own, which is shut down under traffic without writing out its journal
//! (FS_IOC_SHUTDOWN): nothing is left but what a sync has covered. Then everything is killed, the file system is mounted again,
//! the system started and the account made up.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use system_tests::loop_disk::Format;
use system_tests::strace::Strace;
use system_tests::traffic::{Audit, Ledger};
use system_tests::{Instance, facts, is_root, skip};

const USERS: [&str; 3] = ["bob@example.test", "carol@example.test", "dave@example.test"];
const DISK: Format = Format::mib(300);
const CLIENTS: usize = 4;
/// Without QMAIL_CYCLES: as many as fit.
const CYCLES_FOR: Duration = Duration::from_secs(45);
/// A result is on the disk this long after it was written at the latest; and names tell the time in whole seconds.
const RESULT_SYNCED_AFTER_S: u64 = 1 + 1;

fn cycles() -> Option<usize> {
    std::env::var("QMAIL_CYCLES").ok().map(|cycles| cycles.parse().unwrap())
}

fn instance() -> Instance {
    let mut instance = Instance::on_disks(&[("", DISK)]).unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &USERS.map(|user| user.split('@').next().unwrap())).unwrap();
    instance
}

/// Traffic for a while, then the cut under it; when that was, in UNIX seconds.
fn traffic_until_the_cut(instance: &mut Instance, ledger: &Ledger, lasting: Duration) -> u64 {
    let stop = AtomicBool::new(false);
    let port = instance.port(25);
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| ledger.clients(CLIENTS, port, &USERS, &stop));
        std::thread::sleep(lasting);
        let cut_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let cut = instance.cut_power();
        stop.store(true, Ordering::Relaxed);
        cut.unwrap();
        clients.join().unwrap().unwrap();
        cut_s
    })
}

/// Only what was delivered in the last second may come twice.
fn check_duplicates(audit: &Audit, cut_s: u64) {
    for (first, second) in &audit.duplicates {
        assert!(first.delivered_s + RESULT_SYNCED_AFTER_S >= cut_s, "cut at {cut_s}, and yet twice: {first:?} {second:?}");
    }
}

#[test]
fn what_was_acknowledged_survives_every_power_cut() {
    if !is_root() {
        return skip("what_was_acknowledged_survives_every_power_cut", "loop devices need root");
    }
    let mut instance = instance();
    let ledger = Ledger::default();
    let (mut done, mut accepted, mut twice, mut refused_and_delivered) = (0, 0, 0, 0);
    let until = Instant::now() + CYCLES_FOR;
    while cycles().map_or(Instant::now() < until, |cycles| done < cycles) {
        // From a moment to some seconds, so that cuts come into starts, housekeeping and retries as well.
        let lasting = Duration::from_millis([20, 150, 400, 900, 2500][done % 5]);
        let cut_s = traffic_until_the_cut(&mut instance, &ledger, lasting);
        instance.start().unwrap();
        let audit = ledger.settle(&instance, &USERS).unwrap();
        check_duplicates(&audit, cut_s);
        done += 1;
        accepted += audit.accepted;
        twice += audit.duplicates.len();
        refused_and_delivered += audit.refused_and_delivered;
        ledger.close(&instance, &USERS).unwrap();
    }
    println!(
        "{done} power cuts, {accepted} letters acknowledged, none lost; {twice} of the last second came twice, \
         {refused_and_delivered} arrived though their client had heard a 4xx"
    );
    assert!(done >= 3 && accepted > 0);
}

/// A dozen letters that are there at all are delivered in this time even on a slow machine.
const DELIVERED_WITHIN: Duration = Duration::from_secs(3);

/// A sync that is left out, and the lengths of letters that depend on it.
struct LeftOut {
    what: &'static str,
    /// Whose it is; qmail-lspawn stands for the workers that it starts.
    process: &'static str,
    call: &'static str,
    length: usize,
    /// Hold deliveries back: they sync the same file system, and with it what the accept left out.
    control: &'static [(&'static str, &'static str)],
}

const LEFT_OUT: [LeftOut; 3] = [
    LeftOut { what: "records", process: "qmail-send", call: "fdatasync", length: 300, control: &[("concurrencylocal", "0\n")] },
    LeftOut {
        what: "side files and their names",
        process: "qmail-send",
        call: "fsync",
        length: 150_000,
        control: &[("concurrencylocal", "0\n")],
    },
    LeftOut { what: "letters in Maildirs", process: "qmail-lspawn", call: "fsync", length: 300, control: &[] },
];

/// The suite could fail: strace answers a sync in the kernel's place, which then does nothing.
#[test]
fn each_sync_is_needed_without_it_a_power_cut_loses_mail() {
    if !is_root() {
        return skip("each_sync_is_needed_without_it_a_power_cut_loses_mail", "loop devices and strace need root");
    }
    for left_out in LEFT_OUT {
        let mut instance = instance();
        for (name, text) in left_out.control {
            instance.control(name, text).unwrap();
        }
        // Idle workers of before the attachment would sync.
        instance.stop().unwrap();
        instance.start().unwrap();
        let ledger = Ledger::default();
        let process = facts::descendants(instance.pid()).into_iter().find(|p| p.name == left_out.process).unwrap();
        let (trace, inject) = (format!("trace={}", left_out.call), format!("inject={}:retval=0", left_out.call));
        let out = instance.dir().join("shown");
        let strace = Strace::attach(&[process.pid], &["-e", &trace, "-e", &inject], &out).unwrap();
        for user in USERS.iter().cycle().take(12) {
            ledger.insist(instance.port(25), &[user], left_out.length).unwrap();
        }
        if left_out.control.is_empty() {
            ledger.settle(&instance, &USERS).unwrap();
            // Its results are synced by now: nothing is delivered again.
            std::thread::sleep(Duration::from_millis(1500));
        }
        instance.cut_power().unwrap();
        assert!(strace.detach().unwrap().contains("(INJECTED)"), "{}: never called", left_out.what);
        for (name, _) in left_out.control {
            std::fs::remove_file(instance.root.join("etc/qmail/control").join(name)).unwrap();
        }
        instance.start().unwrap();
        let until = Instant::now() + DELIVERED_WITHIN;
        let found = loop {
            let _ = instance.must(&["queue", "retry", "--all"]);
            let found = ledger.audit(&instance, &USERS);
            assert!(found.is_err(), "without the sync of {} nothing was lost", left_out.what);
            if Instant::now() > until {
                break found;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        println!("without the sync of {}: {:.80}", left_out.what, format!("{found:?}"));
    }
}
