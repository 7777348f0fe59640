//! `qmail setup`: whatever is killed when, the next run completes it; alias's home is his own; and /etc/aliases counts.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{
    create_dir, create_dir_all, read_dir, read_to_string, remove_dir, remove_dir_all, rename, symlink_metadata, write,
};
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use system_tests::strace::Trap;
use system_tests::{Instance, is_root, skip};

const SIGKILL: i32 = 9;
const DEFAULT: &str = "etc/qmail/alias/.qmail-default";
const MAILDIR: &str = "etc/qmail/alias/Maildir";

/// `qmail setup` of an instance below the test's directory.
fn setup(instance: &Instance, root: &Path) -> Output {
    let mut qmail = std::process::Command::new(instance.program("qmail"));
    qmail.arg("--root").arg(root).args(["setup", "--me", "mail.example.test", "--base-port", "12000"]).output().unwrap()
}

fn must(instance: &Instance, root: &Path) -> String {
    let output = setup(instance, root);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words}");
    words
}

/// Mode, owner and group of everything, but of what a killed run put together beside its place.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, u32, u32)> {
    let (mut found, mut rest) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(dir) = rest.pop() {
        for entry in read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_name().to_str().unwrap().contains(".tmp.") {
                continue;
            }
            let metadata = entry.metadata().unwrap();
            let facts = (metadata.mode(), metadata.uid(), metadata.gid());
            found.insert(entry.path().strip_prefix(root).unwrap().to_owned(), facts);
            if metadata.is_dir() {
                rest.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn what_a_killed_setup_began_the_next_one_completes() {
    let name = "what_a_killed_setup_began_the_next_one_completes";
    if !is_root() {
        return skip(name, "needs root, for owners");
    }
    let instance = Instance::new().unwrap();
    let root = instance.dir().join("other");
    create_dir(&root).unwrap();
    must(&instance, &root);
    let whole = tree(&root);
    let trap = Trap::new(&instance, "qmail").unwrap();
    for call in ["fchown", "renameat2"] {
        let mut killed = 0;
        loop {
            remove_dir_all(&root).unwrap();
            create_dir(&root).unwrap();
            trap.set(&format!("-e trace={call} -e inject={call}:signal=KILL:when={}", killed + 1)).unwrap();
            let output = setup(&instance, &root);
            if output.status.signal() != Some(SIGKILL) {
                assert!(output.status.success() && trap.is_sprung(), "{output:?}");
                break;
            }
            killed += 1;
            must(&instance, &root);
            assert_eq!(tree(&root), whole, "killed in front of {call} {killed}");
        }
        assert!(killed > 5, "{call}: {killed}");
    }
}

#[test]
fn what_an_earlier_version_left_half_made_is_given_to_its_owner_and_nothing_else_is() {
    let name = "what_an_earlier_version_left_half_made_is_given_to_its_owner_and_nothing_else_is";
    if !is_root() {
        return skip(name, "needs root, for owners");
    }
    let instance = Instance::new().unwrap();
    let spool = instance.root.join("var/spool/qmail");
    let owner = symlink_metadata(&spool).unwrap().uid();
    chown(&spool, Some(0), Some(0)).unwrap();
    must(&instance, &instance.root);
    assert_eq!(symlink_metadata(&spool).unwrap().uid(), owner);
    // It is somebody's, or has something in it: neither setup nor the start goes on.
    write(spool.join("x"), "x").unwrap();
    for wrong in [0, 61_234] {
        chown(&spool, Some(wrong), Some(0)).unwrap();
        for command in [&["setup", "--me", "a.example"][..], &["start"]] {
            let output = instance.qmail(command).output().unwrap();
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(111), "{words}");
            assert!(words.contains(&format!("belongs to uid {wrong}")) && words.contains(&format!("chown {owner}:")), "{words}");
        }
        assert_eq!(symlink_metadata(&spool).unwrap().uid(), wrong);
    }
}

#[test]
fn a_maildir_of_alias_gets_the_parts_that_it_lacks() {
    let instance = Instance::new().unwrap();
    let maildir = instance.root.join(MAILDIR);
    let before = tree(&instance.root);
    for part in ["new", "cur"] {
        remove_dir(maildir.join(part)).unwrap();
    }
    must(&instance, &instance.root);
    assert_eq!(tree(&instance.root), before);

    // Root follows nothing that alias may have put there.
    let elsewhere = instance.dir().join("elsewhere");
    create_dir(&elsewhere).unwrap();
    remove_dir(maildir.join("new")).unwrap();
    symlink(elsewhere.join("new"), maildir.join("new")).unwrap();
    must(&instance, &instance.root);
    let aside = maildir.with_file_name("aside");
    rename(&maildir, &aside).unwrap();
    symlink(&elsewhere, &maildir).unwrap();
    must(&instance, &instance.root);
    assert_eq!(read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn etc_aliases_counts_from_the_first_installation_on() {
    let instance = Instance::new().unwrap();
    let exe = std::env::current_exe().unwrap();
    let built = exe.ancestors().find(|dir| dir.join("newaliases").is_file()).unwrap();
    for name in ["newaliases", "fastforward"] {
        std::fs::copy(built.join(name), instance.program(name)).unwrap();
    }
    let fresh = |aliases: &str, cdb: Option<&str>| {
        let root = instance.dir().join("other");
        let _ = remove_dir_all(&root);
        create_dir_all(root.join("etc")).unwrap();
        write(root.join("etc/aliases"), aliases).unwrap();
        if let Some(cdb) = cdb {
            write(root.join("etc/aliases.cdb"), cdb).unwrap();
        }
        let said = must(&instance, &root);
        let own = |name: &&str| root.join("etc/qmail/alias").join(format!(".qmail-{name}")).exists();
        let own: Vec<&str> = ["postmaster", "mailer-daemon", "root"].into_iter().filter(own).collect();
        (root, own, said)
    };
    let (root, own, said) = fresh("# people\nwebmaster: someone\nroot: joe, ann@example.org\n", None);
    assert_eq!((own, said.as_str()), (vec!["postmaster", "mailer-daemon"], ""));
    let line = read_to_string(root.join(DEFAULT)).unwrap();
    assert!(line.starts_with('|') && line.ends_with(&format!("fastforward -d {}\n", root.join("etc/aliases.cdb").display())));
    let owner = symlink_metadata(root.join("etc/qmail/alias")).unwrap().uid();
    assert_eq!(symlink_metadata(root.join(DEFAULT)).unwrap().uid(), owner);
    // What came of it is kept: alias's home is there.
    write(root.join("etc/aliases"), "postmaster: joe\n").unwrap();
    let before = std::fs::read(root.join("etc/aliases.cdb")).unwrap();
    must(&instance, &root);
    assert_eq!(std::fs::read(root.join("etc/aliases.cdb")).unwrap(), before);

    let all = vec!["postmaster", "mailer-daemon", "root"];
    for (aliases, cdb, words) in [
        ("# nobody\n\n", None, ""),
        ("x: /dev/null\n", None, "file delivery /dev/null not supported"),
        ("x: joe\n", Some("another program's"), "etc/aliases.cdb is another program's"),
    ] {
        let (root, own, said) = fresh(aliases, cdb);
        assert_eq!((own, root.join(DEFAULT).exists()), (all.clone(), false), "{aliases}");
        assert!(said.contains(words) && said.is_empty() == words.is_empty(), "{said}");
        assert_eq!(read_to_string(root.join("etc/aliases.cdb")).ok().as_deref(), cdb);
    }
    // A name for itself would go in circles.
    let (root, own, _) = fresh("root: root\nx: joe\n", None);
    assert_eq!((own, root.join(DEFAULT).exists()), (all, true));
}

#[test]
fn the_name_of_an_instance_that_is_there_need_not_be_given() {
    let instance = Instance::new().unwrap();
    let locals = instance.root.join("etc/qmail/control/locals");
    std::fs::remove_file(&locals).unwrap();
    let setup = || instance.qmail(&["setup", "--local"]).output().unwrap();
    assert!(setup().status.success());
    assert_eq!(read_to_string(&locals).unwrap(), "mail.example.test\nlocalhost\n");
    write(instance.root.join("etc/qmail/control/me"), "\n").unwrap();
    let output = setup();
    assert_eq!(output.status.code(), Some(100));
    assert!(String::from_utf8_lossy(&output.stderr).contains("control/me"), "{output:?}");
}
