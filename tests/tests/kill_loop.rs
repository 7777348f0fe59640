//! SIGKILL in front of every n-th file-system call, for each kind of call and n = 1, 2, 3 …, until a whole run passes without it.
//!
//! strace counts the calls of each thread and kills the process at the n-th. Whoever is killed is started again by its parent;
//! clients try again; then the account is made up: nothing lost, nothing in part, and twice only what was in flight.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use std::time::{Duration, Instant};
use system_tests::loop_disk::Format;
use system_tests::strace::{Strace, Trap};
use system_tests::traffic::Ledger;
use system_tests::{Instance, facts, is_root, skip, wait_for};

const USERS: [&str; 2] = ["bob@example.test", "carol@example.test"];
/// In a record, in a side file, and enough to fill a segment of so small a disk now and then.
const LENGTHS: [usize; 4] = [300, 150_000, 60_000, 20_000];
/// Without QMAIL_CYCLES: as many points as fit.
const POINTS_FOR: Duration = Duration::from_secs(40);
/// No thread of a run makes more calls of a kind.
const CALLS_MAX: usize = 400;
/// concurrencylocal's default: so many may be in flight.
const IN_FLIGHT_MAX: usize = 10;

/// As strace shows it.
const KILLED: &str = "+++ killed by SIGKILL +++";

/// Calls that only a new spool needs.
const MAKES_SPOOL: [&str; 2] = ["fallocate", "mkdirat"];

/// What the loop did.
#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    /// Of these, before the system was ready.
    at_start: usize,
    /// The number of calls of a kind at which no kill came any more.
    complete: Vec<String>,
    accepted: usize,
    answers_lost: usize,
    twice: usize,
}

fn instance() -> Instance {
    let mut instance = Instance::on_disks(&[("", Format::mib(100))]).unwrap();
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob", "carol"]).unwrap();
    instance
}

/// Goes through the points: every kind of call for n = 1, then for n = 2 … until all kinds have passed without a kill, or the time
/// is up. `run` says whether a kill came.
fn go_through(calls: &[&str], mut run: impl FnMut(&str, usize, &mut Tally) -> bool) -> Tally {
    let until = Instant::now() + POINTS_FOR;
    let n_max = std::env::var("QMAIL_CYCLES").ok().map(|cycles| cycles.parse().unwrap());
    let (mut tally, mut open) = (Tally::default(), calls.to_vec());
    for n in 1..=n_max.unwrap_or(CALLS_MAX) {
        let mut killed_at = Vec::new();
        for call in open {
            if n_max.is_none() && Instant::now() > until {
                return tally;
            }
            if run(call, n, &mut tally) {
                tally.kills += 1;
                killed_at.push(call);
            } else {
                tally.complete.push(format!("{call} {n}"));
            }
        }
        open = killed_at;
    }
    tally
}

/// Clients that do not give up, then the account.
fn traffic_and_audit(instance: &Instance, ledger: &Ledger, point: &str, tally: &mut Tally) {
    let port = instance.port(25);
    std::thread::scope(|scope| {
        for user in USERS {
            scope.spawn(move || {
                for len in LENGTHS {
                    ledger.insist(port, &[user], len).unwrap_or_else(|e| panic!("{point}: {e:?}"));
                }
            });
        }
    });
    let audit = ledger.settle(instance, &USERS).unwrap_or_else(|e| panic!("{point}: {e:?}"));
    // A commit whose answer died with qmail-send is a 451 to the client, who sends again: at most one for each.
    assert!(audit.refused_and_delivered <= USERS.len(), "{point}: {audit:?}");
    tally.answers_lost += audit.refused_and_delivered;
    assert!(audit.duplicates.len() <= IN_FLIGHT_MAX, "{point}: {:?}", audit.duplicates);
    tally.accepted += audit.accepted;
    tally.twice += audit.duplicates.len();
    ledger.close(instance, &USERS).unwrap();
}

fn arguments(call: &str, n: usize) -> String {
    format!("-e trace={call} -e inject={call}:signal=SIGKILL:when={n}")
}

#[test]
fn qmail_send_is_killed_at_every_call() {
    if !is_root() {
        return skip("qmail_send_is_killed_at_every_call", "loop devices need root");
    }
    let mut instance = instance();
    let (ledger, trap) = (Ledger::default(), Trap::new(&instance, "qmail-send").unwrap());
    let calls =
        ["pwritev", "fdatasync", "fsync", "renameat", "unlinkat", "openat2", "fallocate", "ftruncate", "mkdirat", "pread64"];
    let tally = go_through(&calls, |call, n, tally| {
        instance.stop().unwrap();
        if MAKES_SPOOL.contains(&call) {
            instance.wipe_spool().unwrap();
        }
        trap.set(&arguments(call, n)).unwrap();
        if instance.start().is_err() {
            // Killed before it was ready: that is the end of a start, and the next one has what it left.
            assert!(trap.shown().contains(KILLED), "{call} {n}: {}", instance.log());
            tally.at_start += 1;
            instance.start().unwrap();
        }
        traffic_and_audit(&instance, &ledger, &format!("qmail-send {call} {n}"), tally);
        trap.shown().contains(KILLED)
    });
    println!("qmail-send: {tally:?}");
    assert!(tally.kills >= calls.len() / 2, "{tally:?}");
}

/// As before, but counted from the moment at which it is ready, so that the start's calls hide none; qmail-start starts it again.
#[test]
fn qmail_send_is_killed_at_every_call_under_traffic() {
    if !is_root() {
        return skip("qmail_send_is_killed_at_every_call_under_traffic", "loop devices need root");
    }
    let mut instance = instance();
    let ledger = Ledger::default();
    let calls = ["pwritev", "fdatasync", "fsync", "renameat", "unlinkat", "openat2", "sendmsg", "pread64"];
    let tally = go_through(&calls, |call, n, tally| {
        // Or the pauses before its starts would grow from point to point.
        instance.stop().unwrap();
        instance.start().unwrap();
        let pid = facts::descendants(instance.pid()).into_iter().find(|p| p.name == "qmail-send").unwrap().pid;
        let out = instance.dir().join("shown");
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=SIGKILL:when={n}"));
        let strace = Strace::attach(&[pid], &["-e", &trace, "-e", &inject], &out).unwrap();
        traffic_and_audit(&instance, &ledger, &format!("qmail-send under traffic {call} {n}"), tally);
        strace.detach().unwrap().contains(KILLED)
    });
    println!("qmail-send under traffic: {tally:?}");
    assert!(tally.kills >= calls.len(), "{tally:?}");
}

#[test]
fn qmail_local_is_killed_at_every_call() {
    if !is_root() {
        return skip("qmail_local_is_killed_at_every_call", "loop devices need root");
    }
    let instance = instance();
    let (ledger, trap) = (Ledger::default(), Trap::new(&instance, "qmail-local").unwrap());
    let calls = ["openat", "openat2", "pwritev,writev", "fsync", "renameat2", "unlinkat", "mkdirat", "sendmsg", "pread64"];
    let tally = go_through(&calls, |call, n, tally| {
        // The next delivery needs a new worker.
        for worker in facts::descendants(instance.pid()).iter().filter(|p| p.name.starts_with("qmail-local")) {
            facts::signal(worker.pid, Signal::KILL);
            wait_for("the end of a worker", || (!facts::is_alive(worker.pid)).then_some(())).unwrap();
        }
        trap.set(&arguments(call, n)).unwrap();
        traffic_and_audit(&instance, &ledger, &format!("qmail-local {call} {n}"), tally);
        assert!(trap.is_sprung(), "{call} {n}: no worker was started");
        trap.shown().contains(KILLED)
    });
    println!("qmail-local: {tally:?}");
    assert!(tally.kills >= calls.len() / 2, "{tally:?}");
}
