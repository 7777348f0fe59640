//! Errors of the disk, one call after the other: strace answers a write or a sync in the kernel's place with EIO or ENOSPC.
//!
//! Whatever fails, and whether once or from then on: a client hears 451 or 452, nothing acknowledged is lost, nothing is delivered
//! in part, and the system goes on, or says that it does not until it is started again.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use system_tests::loop_disk::Format;
use system_tests::strace::{Strace, Trap};
use system_tests::traffic::{Audit, Ledger};
use system_tests::{Instance, facts, is_root, skip};

const USERS: [&str; 2] = ["bob@example.test", "carol@example.test"];
const ERRORS: [&str; 2] = ["EIO", "ENOSPC"];
/// Which of the calls of each thread fail.
const WHEN: [&str; 3] = ["1", "2", "1+"];
/// A worker that started under way is not watched, and may have taken all that the others were to stumble over; next time it is there.
const ATTEMPTS_MAX: usize = 4;
/// Some in the record, some in a side file; enough that a segment of this small disk is full every few cases.
const LENGTHS: [usize; 6] = [300, 150_000, 60_000, 4096, 60_000, 60_000];
/// What qmail-send says when it cannot go on.
const STOPPED: &str = "cannot write to the disk: no message is accepted";

/// Counts for the report.
#[derive(Debug, Default)]
struct Tally {
    cases: usize,
    injected: usize,
    /// Cases in which the call did not come.
    idle: Vec<String>,
    refused: usize,
    /// Cases after which qmail-send had to be started again.
    stopped: Vec<String>,
    twice: usize,
}

fn instance() -> Instance {
    let mut instance = Instance::on_disks(&[("", Format::mib(100))]).unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob", "carol"]).unwrap();
    instance
}

fn pids(instance: &Instance, name: &str) -> Vec<u32> {
    facts::descendants(instance.pid()).into_iter().filter(|p| p.name == name).map(|p| p.pid).collect()
}

/// Two clients send a letter of each length, once, and note what they hear.
fn traffic(instance: &Instance, ledger: &Ledger) {
    let port = instance.port(25);
    std::thread::scope(|scope| {
        for client in 0..2 {
            scope.spawn(move || {
                for (n, len) in LENGTHS.iter().enumerate() {
                    ledger.send(port, &[USERS[(n + client) % 2]], *len).unwrap();
                }
            });
        }
    });
}

/// After the fault is over: everything is in order, if need be after the restart that qmail-send asked for.
fn recovers(instance: &mut Instance, ledger: &Ledger, logged: usize, case: &str, tally: &mut Tally) -> Audit {
    let stopped = instance.log()[logged..].contains(STOPPED);
    if stopped {
        tally.stopped.push(case.to_owned());
        instance.stop().unwrap();
        instance.start().unwrap();
    }
    for len in [300, 150_000] {
        ledger.insist(instance.port(25), &USERS, len).unwrap_or_else(|e| panic!("{case}: {e:?}"));
    }
    let audit = ledger.settle(instance, &USERS).unwrap_or_else(|e| panic!("{case}: {e:?}"));
    for reply in ledger.refusals() {
        assert!(["451 4.3.", "452 4.3.1 "].iter().any(|code| reply.starts_with(code)), "{case}: {reply}");
    }
    assert!(stopped || audit.refused_and_delivered == 0, "{case}: refused, and delivered: {audit:?}");
    tally.refused += audit.refused;
    tally.twice += audit.duplicates.len();
    ledger.close(instance, &USERS).unwrap();
    audit
}

/// Lets calls of running processes fail, one kind after the other.
fn inject_into(name: &str, calls: &[&str]) -> Tally {
    let mut instance = instance();
    let (ledger, mut tally) = (Ledger::default(), Tally::default());
    for call in calls {
        for error in ERRORS {
            for when in WHEN {
                let case = format!("{name} {call} {error} {when}");
                let out = instance.dir().join("shown");
                let mut hits = 0;
                for _ in 0..ATTEMPTS_MAX {
                    // A worker is there.
                    ledger.insist(instance.port(25), &USERS, 300).unwrap();
                    ledger.settle(&instance, &USERS).unwrap();
                    let logged = instance.log().len();
                    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error={error}:when={when}"));
                    let strace = Strace::attach(&pids(&instance, name), &["-e", &trace, "-e", &inject], &out).unwrap();
                    traffic(&instance, &ledger);
                    hits = strace.detach().unwrap().matches("(INJECTED)").count();
                    let audit = recovers(&mut instance, &ledger, logged, &case, &mut tally);
                    let stopped = instance.log()[logged..].contains(STOPPED);
                    assert!(stopped || audit.duplicates.is_empty(), "{case}: {:?}", audit.duplicates);
                    if hits > 0 {
                        break;
                    }
                }
                tally.cases += 1;
                tally.injected += hits;
                tally.idle.extend((hits == 0).then_some(case));
            }
        }
    }
    tally
}

#[test]
fn every_write_and_sync_of_qmail_send_may_fail() {
    let name = "every_write_and_sync_of_qmail_send_may_fail";
    if !is_root() {
        return skip(name, "strace of confined processes needs root");
    }
    let tally = inject_into("qmail-send", &["pwritev", "fdatasync", "fsync", "openat2", "renameat", "unlinkat"]);
    println!("qmail-send: {tally:?}");
    assert!(tally.idle.len() * 2 < tally.cases, "most calls come: {tally:?}");
}

#[test]
fn every_write_and_sync_of_a_delivery_may_fail() {
    let name = "every_write_and_sync_of_a_delivery_may_fail";
    if !is_root() {
        return skip(name, "strace of confined processes needs root");
    }
    let tally = inject_into("qmail-local", &["openat", "pwritev,writev", "fsync", "renameat2"]);
    println!("qmail-local: {tally:?}");
    assert!(tally.idle.is_empty() && tally.refused == 0, "clients see nothing of a delivery's troubles: {tally:?}");
}

/// While qmail-send starts: it starts all the same, or says why not, and the next start finds everything.
#[test]
fn every_write_and_sync_of_a_start_may_fail() {
    let name = "every_write_and_sync_of_a_start_may_fail";
    if !is_root() {
        return skip(name, "loop devices need root");
    }
    let mut instance = instance();
    let trap = Trap::new(&instance, "qmail-send").unwrap();
    let (ledger, mut tally) = (Ledger::default(), Tally::default());
    let mut failed = 0;
    for call in ["pwritev", "fdatasync", "fsync", "openat2", "renameat", "unlinkat", "fallocate"] {
        for when in ["1", "3", "1+"] {
            let case = format!("start: {call} {when}");
            if call == "fallocate" {
                // Only a new spool needs it.
                instance.stop().unwrap();
                instance.wipe_spool().unwrap();
            } else {
                // It stays in the queue: the start has something to find.
                ledger.send(instance.port(25), &USERS, 150_000).unwrap();
                pids(&instance, "qmail-send.real").into_iter().for_each(|pid| facts::signal(pid, Signal::KILL));
                instance.stop().unwrap();
            }
            let logged = instance.log().len();
            trap.set(&format!("-e trace={call} -e inject={call}:error=EIO:when={when}")).unwrap();
            if instance.start().is_err() {
                failed += 1;
                assert!(instance.log()[logged..].contains("alert: cannot start: "), "{case}: {}", instance.log());
                instance.start().unwrap();
            } else if when == "1+" {
                // The disk goes on failing for this process.
                instance.stop().unwrap();
                instance.start().unwrap();
            }
            tally.cases += 1;
            tally.injected += trap.shown().matches("(INJECTED)").count();
            recovers(&mut instance, &ledger, logged, &case, &mut tally);
        }
    }
    println!("starts: {failed} failed and said why; {tally:?}");
}
