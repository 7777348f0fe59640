//! Mail whose body is gone from the spool or is not what was put there: it stays, is shown, and is said to be so; the rest goes on.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use system_tests::{Instance, users, wait_for};

const BOB: &str = "bob@example.test";
const LINE: &str = "0123456789012345678901234567890123456789012345678901234567890\n";

fn send(instance: &Instance, subject: &str, lines: usize) {
    let letter = format!("Subject: {subject}\n\nthe text of {subject}\n{}", LINE.repeat(lines));
    instance.smtp().unwrap().send("a@elsewhere.test", &[BOB], &letter).unwrap();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The file with this text, and where in it.
fn find(dir: &Path, text: &str) -> (PathBuf, usize) {
    let found = files(dir).into_iter().find_map(|path| {
        let bytes = fs::read(&path).unwrap();
        memchr::memmem::find(&bytes, text.as_bytes()).map(|at| (path, at))
    });
    found.unwrap_or_else(|| panic!("{text} is nowhere in {}", dir.display()))
}

/// Another byte in the body.
fn damage(dir: &Path, subject: &str) {
    let (path, at) = find(dir, &format!("the text of {subject}\n"));
    File::options().write(true).open(path).unwrap().write_all_at(b"T", at as u64).unwrap();
}

/// What is queued, by id.
fn queued(instance: &Instance) -> BTreeMap<u64, Value> {
    let list = instance.json(&["queue", "list"]).unwrap();
    list.as_array().unwrap().iter().map(|row| (row["id"].as_u64().unwrap(), row.clone())).collect()
}

#[test]
fn a_message_without_a_whole_body_stays_and_is_shown_and_the_rest_goes_on() {
    let mut instance = Instance::started(&[("concurrencylocal", "0\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    // More than fits a record has a file of its own.
    let bad = [("small", 3), ("large", 2000), ("gone", 2000), ("short", 2000)];
    for (subject, lines) in bad {
        send(&instance, subject, lines);
    }
    let ids: Vec<u64> = queued(&instance).into_keys().collect();
    send(&instance, "good", 3);
    send(&instance, "good and large", 2000);
    instance.stop().unwrap();
    let spool = instance.root.join("var/spool/qmail");
    let bodies = spool.join("bodies");
    damage(&spool.join("segments"), "small");
    damage(&bodies, "large");
    fs::remove_file(find(&bodies, "the text of gone\n").0).unwrap();
    let (path, at) = find(&bodies, "the text of short\n");
    File::options().write(true).open(path).unwrap().set_len(at as u64).unwrap();
    instance.control("concurrencylocal", "1\n").unwrap();
    for round in 1..=2 {
        instance.start().unwrap();
        send(&instance, "later", 3);
        instance.wait_mail(BOB, 2 + round).unwrap();
        for id in &ids {
            instance.wait_log(&format!("msg {id} is damaged on the disk and cannot be delivered")).unwrap();
        }
        wait_for("the bad ones alone", || (queued(&instance).len() == ids.len()).then_some(())).unwrap();
        // They are tried whenever somebody asks for it, and nothing becomes of that.
        instance.must(&["queue", "retry", "--all"]).unwrap();
        for id in &ids {
            let shown = instance.json(&["queue", "show", &id.to_string()]).unwrap();
            assert_eq!((&shown["pending"], &shown["sender"]), (&1.into(), &"a@elsewhere.test".into()), "{shown}");
            assert_eq!(shown["recipients"][0]["state"], "pending", "{shown}");
            assert!(shown["recipients"][0]["last_reply"].to_string().contains("cannot be read from the spool"), "{shown}");
        }
        assert_eq!(queued(&instance).into_keys().collect::<Vec<_>>(), ids);
        instance.stop().unwrap();
    }
    instance.start().unwrap();
    for id in &ids {
        instance.must(&["queue", "remove", &id.to_string()]).unwrap();
    }
    instance.wait_empty().unwrap();
    let letters = users::letters(&instance.maildir(BOB));
    assert_eq!(letters.len(), 4);
    assert!(letters.iter().all(|letter| ["good", "later"].iter().any(|name| letter.contains(&format!("Subject: {name}")))));
}
