//! Queues and configurations whose owners want what they may not have: what they put there is named and left, and the rest comes along.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use system_tests::classic_queue::{ClassicQueue, Queued};
use system_tests::instance::feed;
use system_tests::{Instance, is_root, skip, tools, users};

const BOB: &str = "bob@example.test";
/// Who owns what is imported.
const STRANGER: u32 = 47_110;
const SECRET: &str = "the secret of somebody else\n";

fn secret(instance: &Instance) -> PathBuf {
    let path = instance.dir().join("secret");
    fs::write(&path, SECRET).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

fn fifo(path: &Path) {
    tools::must(Command::new("mkfifo").arg(path)).unwrap();
}

/// A file of that length, with nothing in it.
fn hole(path: &Path, len: u64) {
    File::create(path).unwrap().set_len(len).unwrap();
}

#[test]
fn a_queue_gives_nothing_that_its_owner_may_not_read() {
    let name = "a_queue_gives_nothing_that_its_owner_may_not_read";
    if !is_root() {
        return skip(name, "only root gives a queue to somebody else");
    }
    let instance = Instance::started(&[]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    let secret = secret(&instance);
    let queue = ClassicQueue::new(&instance.dir().join("queue"), 7).unwrap();
    let todo = |subject: &str| queue.todo(format!("Subject: {subject}\n\nx\n").as_bytes(), "", &[BOB]).unwrap();
    todo("good");
    // All of them before any is taken away: its number would be the next one's.
    let [link, another, pipe, dir, envelope, nuls, device] =
        ["link", "name", "fifo", "dir", "envelope", "NULs", "device"].map(todo);
    let to = format!("T{BOB}");
    let many = queue.queued(b"Subject: many\n\nx\n", Queued { remote: &[&to], ..Queued::default() }).unwrap();
    let mut bad = Vec::new();
    let mut in_place = |kind: &str, number: u64, put: &dyn Fn(&Path)| {
        let path = queue.path(kind, number);
        fs::remove_file(&path).unwrap();
        put(&path);
        bad.push(path);
    };
    in_place("mess", link, &|path| symlink(&secret, path).unwrap());
    in_place("mess", another, &|path| {
        fs::hard_link(&secret, path).unwrap();
        chown(path.parent().unwrap(), Some(STRANGER), None).unwrap();
    });
    in_place("mess", pipe, &fifo);
    in_place("mess", dir, &|path| fs::create_dir(path).unwrap());
    in_place("todo", envelope, &|path| hole(path, 33 << 20));
    in_place("todo", nuls, &|path| hole(path, 1 << 20));
    in_place("remote", many, &|path| fs::write(path, b"T\0".repeat(1_000_001)).unwrap());
    in_place("mess", device, &|path| {
        let made = Command::new("mknod").arg(path).args(["c", "1", "5"]).output().unwrap();
        if !made.status.success() {
            // Not in every container.
            fifo(path);
        }
    });
    let output = feed(instance.qmail(&["--json", "import", "queue"]).arg(&queue.dir), b"").unwrap();
    let did: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!((output.status.code(), &did["imported"]), (Some(1), &1.into()), "{did}");
    let problems = did["problems"].to_string();
    for path in &bad {
        assert!(problems.contains(&path.display().to_string()), "{}: {problems}", path.display());
    }
    assert!(problems.contains("another name of a file") && problems.contains("more than 1000000 recipients"), "{problems}");
    instance.wait_empty().unwrap();
    let letters = users::letters(&instance.maildir(BOB));
    assert!(letters.len() == 1 && letters[0].contains("Subject: good\n"), "{letters:?}");
    assert!(!instance.log().contains(SECRET.trim_end()));
}

#[test]
fn a_journal_that_is_somebody_elses_file_is_neither_read_nor_cut_off() {
    let instance = Instance::started(&[]).unwrap();
    let secret = secret(&instance);
    for (command, name) in [("import", "imported"), ("export", "exported")] {
        let queue = ClassicQueue::new(&instance.dir().join(command), 23).unwrap();
        let journal = queue.dir.join(name);
        let places: [&dyn Fn(); 3] =
            [&|| fs::hard_link(&secret, &journal).unwrap(), &|| symlink(&secret, &journal).unwrap(), &|| fifo(&journal)];
        // Nothing of it ends a line: it would be taken for the beginning of one.
        fs::write(&secret, SECRET.trim_end()).unwrap();
        for place in places {
            place();
            for more in [&[][..], &["--dry-run"]] {
                let output = feed(instance.qmail(&[command, "queue"]).arg(&queue.dir).args(more), b"").unwrap();
                // Only looked at, another name of what the directory's owner owns is his affair.
                let counts = more.is_empty() || command == "import" && !journal.metadata().is_ok_and(|at| at.nlink() > 1);
                assert!(!counts || !output.status.success(), "{command} {more:?}: {output:?}");
            }
            assert_eq!(fs::read_to_string(&secret).unwrap(), SECRET.trim_end());
            fs::remove_file(&journal).unwrap();
        }
    }
}

#[test]
fn a_configuration_gives_nobody_rights() {
    let name = "a_configuration_gives_nobody_rights";
    if !is_root() {
        return skip(name, "only root gives files to somebody else");
    }
    let instance = Instance::new().unwrap();
    let secret = secret(&instance);
    let home = instance.dir().join("var-qmail");
    let (control, alias) = (home.join("control"), home.join("alias"));
    for dir in [&home, &control, &alias] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(home.join("users"), "no directory\n").unwrap();
    fs::write(control.join("me"), "old.example.test\n").unwrap();
    symlink(&secret, control.join("rcpthosts")).unwrap();
    fs::hard_link(&secret, control.join("smtproutes")).unwrap();
    chown(&control, Some(STRANGER), None).unwrap();
    fifo(&control.join("locals"));
    fs::create_dir(control.join("badmailfrom")).unwrap();
    hole(&control.join("virtualdomains"), 65 << 20);
    fs::write(control.join("queue\nlifetime"), "1\n").unwrap();
    fs::write(control.join(OsStr::from_bytes(b"me\xff")), "x\n").unwrap();
    fs::write(control.join("queuelifetime"), "1000\n").unwrap();
    hole(&alias.join(".qmail-big"), 2 << 20);
    symlink(&secret, alias.join(".qmail-link")).unwrap();
    fs::write(alias.join(".qmail-run"), "|new\n").unwrap();
    fs::write(alias.join(".qmail-only"), "&bob@example.test\n").unwrap();
    fs::set_permissions(alias.join(".qmail-only"), Permissions::from_mode(0o4755)).unwrap();

    // What is there already: the alias user prepared a file of his, and one is for a group alone.
    let here = |name: &str| instance.root.join("etc/qmail").join(name);
    chown(here("alias"), Some(STRANGER), Some(STRANGER)).unwrap();
    fs::write(here("alias/.qmail-run"), "|old\n").unwrap();
    chown(here("alias/.qmail-run"), Some(STRANGER), Some(STRANGER)).unwrap();
    fs::set_permissions(here("alias/.qmail-run"), Permissions::from_mode(0o6755)).unwrap();
    fs::write(here("control/queuelifetime"), "2000\n").unwrap();
    chown(here("control/queuelifetime"), None, Some(STRANGER)).unwrap();
    fs::set_permissions(here("control/queuelifetime"), Permissions::from_mode(0o640)).unwrap();

    let output = feed(instance.qmail(&["--json", "import", "control", "--force"]).arg(&home), b"").unwrap();
    let did: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(output.status.code(), Some(1), "{did}");
    let files = did["files"].as_array().unwrap();
    let result = |name: &str| {
        let row = files.iter().find(|row| row["file"].as_str().unwrap().ends_with(name));
        row.unwrap_or_else(|| panic!("{name}: {did}"))["result"].as_str().unwrap()
    };
    for name in [
        "control/rcpthosts",
        "control/smtproutes",
        "control/locals",
        "control/badmailfrom",
        "control/virtualdomains",
        "var-qmail/users",
        "alias/.qmail-big",
        "alias/.qmail-link",
    ] {
        assert_eq!(result(name), "problem", "{name}");
    }
    assert_eq!((result("queue\\x0alifetime"), result("me\\xff")), ("not used", "not used"), "{did}");
    assert_eq!((result("control/queuelifetime"), result("alias/.qmail-run")), ("replaced", "replaced"));
    let what = |name: &str| {
        let metadata = fs::symlink_metadata(here(name)).unwrap();
        (metadata.permissions().mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    assert_eq!(fs::read_to_string(here("alias/.qmail-run")).unwrap(), "|new\n");
    assert_eq!(what("alias/.qmail-run"), (0o744, STRANGER, STRANGER), "it is the alias user's and runs as nobody else");
    assert_eq!(what("alias/.qmail-only"), (0o744, STRANGER, STRANGER));
    assert_eq!(what("control/queuelifetime"), (0o640, 0, STRANGER), "whoever read it reads it");
    let everywhere = Command::new("grep").arg("-rl").arg(SECRET.trim_end()).arg(instance.root.join("etc")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&everywhere.stdout), "");
}
