//! The machine: what the kernel gives, whether names can be looked up.

use std::net::ToSocketAddrs as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use control::Root;

use super::Findings;

/// A resolver that answers at all answers in this time.
const DNS_DEADLINE: Duration = Duration::from_secs(5);

pub(super) fn check(root: &Root, found: &mut Findings) {
    sandbox(found);
    if let Ok(me) = root.me() {
        name(root, &me, found);
    }
}

fn sandbox(found: &mut Findings) {
    if !sandbox::files::is_supported() {
        found.warning(
            Path::new("/sys/kernel/security/landlock"),
            "this kernel has no Landlock that can rename between directories (5.19 has): that layer of the sandbox is off, the others hold",
        );
    }
    let seccomp = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
    if !seccomp.is_ok_and(|actions| actions.split_whitespace().any(|action| action == "errno")) {
        found.error(
            Path::new("/proc/sys/kernel/seccomp"),
            "this kernel has no seccomp filters, and no process starts without; use another kernel",
        );
    }
}

/// Other hosts look this host's name up, and so does anyone who answers its mail.
fn name(root: &Root, me: &[u8], found: &mut Findings) {
    let host = String::from_utf8_lossy(me).into_owned();
    if host.starts_with('[') {
        return;
    }
    let (sender, receiver) = mpsc::channel();
    let question = format!("{host}:25");
    // The thread may hang in a resolver; the process ends without it.
    let started = std::thread::Builder::new().spawn(move || drop(sender.send(question.to_socket_addrs().map(Iterator::count))));
    let file = root.control_file("me");
    match started.ok().map(|_| receiver.recv_timeout(DNS_DEADLINE)) {
        Some(Ok(Ok(count))) if count > 0 => {}
        Some(Ok(_)) => found.warning(&file, "the name of this host has no address in DNS; other hosts may refuse its mail"),
        _ => found.warning(&file, "DNS does not answer; look at /etc/resolv.conf or control/resolvers"),
    }
}
