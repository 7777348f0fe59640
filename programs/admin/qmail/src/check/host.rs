//! The machine: what the kernel gives, whether names can be looked up.

use std::net::ToSocketAddrs as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use control::Root;

use super::Findings;

/// A resolver that answers at all answers in this time.
const DNS_DEADLINE: Duration = Duration::from_secs(5);
/// A file of a machine whose clock was set by hand, or in another zone.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(86_400);

pub(super) fn check(root: &Root, found: &mut Findings) {
    sandbox(found);
    clock(root, found);
    if let Ok(me) = root.me() {
        name(root, &me, found);
    }
}

fn sandbox(found: &mut Findings) {
    if !sandbox::files::is_supported() {
        found.warning(
            Path::new("/sys/kernel/security/landlock"),
            "this kernel has no Landlock that can rename between directories, so that layer of the sandbox is off, and the others hold; use Linux 5.19 or later, with landlock among the modules of lsm=",
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

/// The times of the queue, of certificates and of Date fields come from the clock.
fn clock(root: &Root, found: &mut Findings) {
    let now = std::time::SystemTime::now();
    let names = ["control/me", "control/listen", "control/rcpthosts", "ids"];
    for path in names.map(|name| root.etc().join(name)) {
        let Ok(changed) = std::fs::metadata(&path).and_then(|metadata| metadata.modified()) else { continue };
        if let Ok(ahead) = changed.duration_since(now)
            && ahead > CLOCK_TOLERANCE
        {
            let problem =
                format!("was changed {} days from now: this clock is behind, or was ahead then", ahead.as_secs() / 86_400);
            return found.warning(&path, format!("{problem}; set the clock (`timedatectl`), then touch the file"));
        }
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
        Some(Ok(_)) => found.warning(&file, "line 1: the name of this host has no address in DNS, and other hosts may refuse its mail; add one (A, AAAA) to its zone"),
        _ => found.warning(&file, "line 1: DNS does not answer for it; look at /etc/resolv.conf or control/resolvers"),
    }
}
