//! What the disk holds before anyone says yes, shown by the system calls of the whole way.
//!
//! 250 is said after the message's record, its side file and its names are synced; a delivery is a success after its file and the
//! directory that names it are.
#![allow(clippy::unwrap_used)]

use system_tests::strace::{Call, Strace, calls};
use system_tests::traffic::{Fate, Ledger, letter};
use system_tests::{Instance, facts, is_root, skip};

const BOB: &str = "bob@example.test";

/// One letter's way as all processes on it called the kernel, in the order in which that happened.
fn way_of(id: &str, len: usize) -> Vec<Call> {
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let ledger = Ledger::default();
    // Brings the Maildir and a worker.
    assert_eq!(ledger.send(instance.port(25), &[BOB], 300).unwrap(), Fate::Accepted);
    ledger.settle(&instance, &[BOB]).unwrap();
    let all = facts::descendants(instance.pid());
    let pid = |names: &[&str]| all.iter().filter(|p| names.contains(&p.name.as_str())).map(|p| p.pid).collect::<Vec<_>>();
    let out = instance.dir().join("shown");
    let strace = Strace::attach(&pid(&["qmail-send", "qmail-smtpd", "qmail-local"]), &["-s", "600"], &out).unwrap();
    instance.smtp().unwrap().send("a@elsewhere.test", &[BOB], &letter(id, len)).unwrap();
    instance.wait_mail(BOB, 2).unwrap();
    instance.wait_empty().unwrap();
    calls(&strace.detach().unwrap())
}

/// The first of these calls that began after `after` had ended, which must be there and have succeeded.
fn next<'a>(all: &'a [Call], after: usize, what: &str, is: impl Fn(&Call) -> bool) -> &'a Call {
    let found = all.iter().find(|call| call.start > after && is(call));
    let found = found.unwrap_or_else(|| panic!("no {what} after line {after}:\n{}", list(all)));
    assert!(!found.failed(), "{what}: {found:?}");
    found
}

fn list(all: &[Call]) -> String {
    all.iter().map(|call| format!("{}-{} {} {}\n", call.start, call.end, call.name, call.text)).collect()
}

fn is(call: &Call, name: &str, parts: &[&str]) -> bool {
    call.name == name && parts.iter().all(|part| call.text.contains(part))
}

/// The moment at which the client gets to read its 250, which is no earlier than that at which qmail-send answered qmail-smtpd.
fn said_yes(all: &[Call]) -> usize {
    let ok = all.iter().find(|call| call.text.contains("\"250 2.0.0 ok "));
    ok.unwrap_or_else(|| panic!("no 250:\n{}", list(all))).start
}

fn check_delivery(all: &[Call], id: &str) {
    let token = format!("X-Id: {id}\\n");
    let file = next(all, 0, "file in tmp/", |call| is(call, "openat", &["/Maildir/tmp>", "O_CREAT|O_EXCL"]));
    let write =
        next(all, file.end, "write of the letter", |call| call.name.contains("writev") && call.text.contains("/Maildir/tmp/"));
    assert!(write.text.contains(&token), "{write:?}");
    let last = all.iter().rfind(|call| call.name.contains("writev") && call.text.contains("/Maildir/tmp/")).unwrap();
    let synced = next(all, last.end, "fsync of the letter", |call| is(call, "fsync", &["/Maildir/tmp/"]));
    let renamed = next(all, synced.end, "rename into new/", |call| is(call, "renameat2", &["/Maildir/new>"]));
    let named = next(all, renamed.end, "fsync of new/", |call| is(call, "fsync", &["/Maildir/new>"]));
    let report = all.iter().find(|call| is(call, "sendmsg", &["K\\n", "did 1+0+0"])).unwrap();
    assert!(named.end < report.start, "the worker's report comes last:\n{}", list(all));
    let removed = all.iter().filter(|call| is(call, "unlinkat", &["/Maildir/"])).count();
    assert_eq!(removed, 0);
}

#[test]
fn a_short_letter_is_synced_before_its_250_and_its_success() {
    let name = "a_short_letter_is_synced_before_its_250_and_its_success";
    if !is_root() {
        return skip(name, "strace of confined processes needs root");
    }
    let all = way_of("durable-short", 300);
    let record = next(&all, 0, "record", |call| is(call, "pwritev", &["/spool/qmail/segments/0", "X-Id: durable-short\\n"]));
    let synced = next(&all, record.end, "sync of the record", |call| is(call, "fdatasync", &["/spool/qmail/segments/0"]));
    let answer =
        next(&all, synced.start, "answer of qmail-send", |call| is(call, "sendmsg", &["iov_base=\"\\1\\1", "iov_len=14}"]));
    assert!(synced.end < answer.start && answer.start < said_yes(&all), "{}", list(&all));
    assert!(
        !all.iter().any(|call| call.start < synced.end && is(call, "sendmsg", &["iov_len=14}"])),
        "no answer before the sync"
    );
    check_delivery(&all, "durable-short");
}

#[test]
fn a_long_letter_is_synced_with_its_name_before_its_record() {
    let name = "a_long_letter_is_synced_with_its_name_before_its_record";
    if !is_root() {
        return skip(name, "strace of confined processes needs root");
    }
    let all = way_of("durable-long", 150_000);
    let incoming = |call: &Call| call.name.contains("writev") && call.text.contains("/spool/qmail/incoming/");
    assert!(all.iter().any(|call| incoming(call) && call.text.contains("X-Id: durable-long\\n")), "{}", list(&all));
    let last = all.iter().rfind(|call| incoming(call)).unwrap();
    let synced = next(&all, last.end, "fsync of the body", |call| is(call, "fsync", &["/spool/qmail/incoming/"]));
    let renamed = next(&all, synced.end, "rename into bodies/", |call| {
        call.name.starts_with("renameat") && call.text.contains("/incoming>") && call.text.contains("/bodies>")
    });
    let named = next(&all, renamed.end, "fsync of bodies/", |call| is(call, "fsync", &["/spool/qmail/bodies>"]));
    let record = next(&all, named.end, "record", |call| is(call, "pwritev", &["/spool/qmail/segments/0"]));
    let synced = next(&all, record.end, "sync of the record", |call| is(call, "fdatasync", &["/spool/qmail/segments/0"]));
    assert!(synced.end < said_yes(&all), "{}", list(&all));
    assert!(
        !all.iter().any(|call| call.start < synced.end && is(call, "sendmsg", &["iov_len=14}"])),
        "no answer before the sync"
    );
    check_delivery(&all, "durable-long");
}
