//! Each layer of the sandbox alone: a child process puts on one layer of a row of the table and tries what it must not.
#![allow(clippy::unwrap_used)]

use rustix::net::{AddressFamily, SocketType, socket};
use sandbox::{Confinement, Layers, TABLE, enter_layers, table};
use std::process::Command;

const NONE: Layers = Layers { limits: false, files: false, syscalls: false };

/// What a child finds possible, one word each.
fn possible() -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut note = |name, yes: bool| {
        if yes {
            found.push(name);
        }
    };
    note("open", std::fs::File::open("/etc/passwd").is_ok());
    note("write", std::fs::File::options().append(true).create(true).open("/dev/shm/qmail-sandbox-probe").is_ok());
    note("inet", socket(AddressFamily::INET, SocketType::STREAM, None).is_ok());
    note("netlink", socket(AddressFamily::NETLINK, SocketType::RAW, None).is_ok());
    note("unix", socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).is_ok());
    note("exec", Command::new("/bin/true").status().is_ok_and(|status| status.success()));
    note("thread", std::thread::Builder::new().spawn(|| ()).is_ok_and(|thread| thread.join().is_ok()));
    #[allow(deprecated)] // the unsafe one is only so for CLONE_FILES
    note("namespace", rustix::thread::unshare(rustix::thread::UnshareFlags::NEWUSER).is_ok());
    note("x32", sys::confine::reaches_x32());
    note("core", rustix::process::getrlimit(rustix::process::Resource::Core).current != Some(0));
    note("dumpable", rustix::process::dumpable_behavior().is_ok_and(|d| d == rustix::process::DumpableBehavior::Dumpable));
    found
}

fn confinement(name: &str) -> Confinement {
    match name {
        "LOCAL_VIRTUAL" => table::LOCAL_VIRTUAL,
        "TOOL" => table::TOOL,
        name => sandbox::process(name).unwrap().confinement.unwrap(),
    }
}

/// Not a test by itself: what the children of the tests below run.
#[test]
fn probe() {
    let Ok(which) = std::env::var("SANDBOX_PROBE") else { return };
    let (name, layer) = which.split_once(' ').unwrap();
    let layers = match layer {
        "none" => None,
        "limits" => Some(Layers { limits: true, ..NONE }),
        "files" => Some(Layers { files: true, ..NONE }),
        "syscalls" => Some(Layers { syscalls: true, ..NONE }),
        _ => Some(Layers::ALL),
    };
    if let Some(layers) = layers {
        enter_layers(&confinement(name), std::path::Path::new("/nonexistent"), &[], layers).unwrap();
    }
    println!("possible: {}", possible().join(" "));
}

/// Runs the probe in a process of its own.
fn probe_with(name: &str, layer: &str) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "probe", "--nocapture", "--test-threads=1"])
        .env("SANDBOX_PROBE", format!("{name} {layer}"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line =
        text.lines().find_map(|line| line.split_once("possible: ")).unwrap_or_else(|| panic!("{name} {layer}: {output:?}"));
    line.1.split(' ').map(str::to_owned).collect()
}

fn rows() -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(|process| process.confinement.is_some()).map(|process| process.name).chain(["LOCAL_VIRTUAL", "TOOL"])
}

fn without(taken: &[&str]) -> Vec<String> {
    let all = probe_with("qmail-smtpd", "none");
    all.into_iter().filter(|word| !taken.contains(&word.as_str())).collect()
}

#[test]
fn unconfined_everything_is_possible() {
    let all = probe_with("qmail-smtpd", "none");
    assert_eq!(all.iter().any(|word| word == "x32"), cfg!(target_arch = "x86_64"));
    for word in ["open", "write", "inet", "netlink", "unix", "exec", "thread", "dumpable"] {
        assert!(
            all.iter().any(|w| w == word),
            "{word} must work without a sandbox for the other tests to mean something: {all:?}"
        );
    }
}

#[test]
fn limits_alone() {
    for name in rows() {
        assert_eq!(probe_with(name, "limits"), without(&["core", "dumpable"]), "{name}");
    }
}

#[test]
fn files_alone() {
    assert!(sandbox::files::is_supported(), "this kernel has no Landlock: the layer cannot be shown");
    for name in rows() {
        let taken: &[&str] = match name {
            "qmail-local" => &[],
            // NSS modules read /etc; programs below /usr are read, not run.
            "qmail-getpw" => &["write", "exec"],
            _ => &["open", "write", "exec"],
        };
        assert_eq!(probe_with(name, "files"), without(taken), "{name}");
    }
}

#[test]
fn syscalls_alone() {
    for name in rows() {
        let internet = matches!(name, "qmail-acme" | "qmail-authnet" | "qmail-remote" | "qmail-resolve");
        let mut taken = vec!["netlink", "exec", "namespace", "x32"];
        if !internet {
            taken.push("inet");
        }
        assert_eq!(probe_with(name, "syscalls"), without(&taken), "{name}");
    }
}

#[test]
fn all_layers_leave_what_mail_needs() {
    for name in rows() {
        let left = probe_with(name, "all");
        for word in ["unix", "thread"] {
            assert!(left.iter().any(|w| w == word), "{name} needs {word}: {left:?}");
        }
        assert!(!left.iter().any(|w| w == "exec" || w == "netlink"), "{name}: {left:?}");
    }
}
