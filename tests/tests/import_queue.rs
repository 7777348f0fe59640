//! A classic queue goes on in ours, and ours in a classic one: every message once, whatever is killed when.
#![allow(clippy::unwrap_used)]

use rustix::fs::FlockOperation;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};
use system_tests::classic_queue::{ClassicQueue, Queued};
use system_tests::instance::feed;
use system_tests::s_client::Inside;
use system_tests::{Instance, Peer, facts, is_root, skip, tools, users, wait_for};

const BOB: &str = "bob@example.test";
/// As virtualdomains has it there; here the domain is one of users/domains.
const BOB_THERE: &str = "example.test-bob@example.test";

fn now_s() -> u64 {
    sys::clock::unix_s()
}

fn letter(subject: &str) -> Vec<u8> {
    format!(
        "Received: (qmail 4711 invoked by uid 1000); 24 Nov 2025 10:00:00 -0000\nSubject: {subject}\n\nThe text of {subject}.\n"
    )
    .into_bytes()
}

/// An instance that runs, with a mailbox and a server of somebody else's.
fn instance(control: &[(&str, &str)]) -> (Instance, Peer) {
    let peer = Peer::willing().unwrap();
    let route = peer.route("remote.test");
    let control: Vec<(&str, &str)> = control.iter().copied().chain([("smtproutes", route.as_str())]).collect();
    let instance = Instance::started(&control).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    (instance, peer)
}

/// An empty queue, with the control files of its qmail beside it.
fn classic(instance: &Instance, name: &str, split: u64) -> ClassicQueue {
    let home = instance.dir().join(name);
    fs::create_dir_all(home.join("control")).unwrap();
    fs::write(home.join("control/me"), "old.example.test\n").unwrap();
    fs::write(home.join("control/virtualdomains"), "example.test:example.test\n").unwrap();
    ClassicQueue::new(&home.join("queue"), split).unwrap()
}

fn import(instance: &Instance, queue: &ClassicQueue, more: &[&str]) -> Output {
    let mut command = instance.qmail(&["--json", "import", "queue"]);
    feed(command.arg(&queue.dir).args(more), b"").unwrap()
}

fn answer(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

fn imported(instance: &Instance, queue: &ClassicQueue) -> Value {
    let output = import(instance, queue, &[]);
    assert!(output.status.success(), "{output:?}");
    answer(&output)
}

/// How often each subject is in bob's mailbox.
fn subjects(instance: &Instance) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for letter in users::letters(&instance.maildir(BOB)) {
        let subject = letter.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap_or_default().to_owned();
        *found.entry(subject).or_insert(0) += 1;
    }
    found
}

fn once(names: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    names.into_iter().map(|name| (name, 1)).collect()
}

#[test]
fn everything_in_a_classic_queue_is_delivered_once() {
    for split in [23, 0] {
        let (instance, peer) = instance(&[]);
        let queue = classic(&instance, "old", split);
        let birth_s = now_s() - 3600;
        let queued = |body: &[u8], as_is: Queued<'_>| queue.queued(body, Queued { birth_s, ..as_is }).unwrap();
        let to_bob = format!("T{BOB_THERE}");
        queued(&letter("local"), Queued { sender: "s@remote.test", local: &[&to_bob], ..Queued::default() });
        queued(&letter("remote"), Queued { sender: BOB, remote: &["Tx@remote.test"], ..Queued::default() });
        let half = ["Tleft@remote.test", "Ddone@remote.test"];
        queued(
            &letter("half"),
            Queued { sender: BOB, local: &["Dexample.test-carol@example.test"], remote: &half, ..Queued::default() },
        );
        let dead = "<dead@elsewhere.test>:\n192.0.2.1 does not like recipient.\nRemote host said: 550 no such user\n\n<gone@elsewhere.test>:\nNobody. (#5.1.1)\n\n";
        let failed = ["Ddead@elsewhere.test", "Dgone@elsewhere.test"];
        queued(&letter("bounced"), Queued { sender: BOB, remote: &failed, bounce: dead, ..Queued::default() });
        let verp = ["Tann@remote.test"];
        queued(&letter("verp"), Queued { sender: "list-@lists.test-@[]", remote: &verp, ..Queued::default() });
        queue.todo(&letter("todo"), "", &[BOB, "y@remote.test"]).unwrap();
        let odd = [&letter("odd")[..], b"a NUL \0 and \xff\xfe bytes\n"].concat();
        queued(&odd, Queued { local: &[&to_bob], ..Queued::default() });
        let long = [&letter("long")[..], &b"0123456789012345678901234567890\n".repeat(10_000)].concat();
        queued(&long, Queued { local: &[&to_bob], ..Queued::default() });
        queued(&letter("finished"), Queued { sender: BOB, local: &["Dx@example.test"], ..Queued::default() });
        // Leftovers: no message of the queue.
        queue.mess(&letter("never accepted")).unwrap();
        fs::write(queue.dir.join("pid/9.9.9"), "half a mess").unwrap();
        let unfinished = queue.mess(&letter("no todo")).unwrap();
        fs::write(queue.path("intd", unfinished), "u1\0p1\0Fs\0").unwrap();
        fs::write(queue.path("local", 77), format!("T{BOB_THERE}\0")).unwrap();

        let dry = answer(&import(&instance, &queue, &["--dry-run"]));
        assert_eq!((&dry["imported"], &dry["finished"]), (&8.into(), &1.into()), "{dry}");
        assert!(!queue.dir.join("imported").exists(), "a dry run writes nothing");
        let did = imported(&instance, &queue);
        assert_eq!((&did["imported"], &did["problems"].as_array().unwrap().len()), (&8.into(), &0), "{did}");
        let leftovers = did["leftovers"].to_string();
        for name in ["pid/9.9.9", &format!("intd/{unfinished}"), "/77", &format!("/{unfinished}")] {
            assert!(leftovers.contains(name), "{name}: {leftovers}");
        }
        instance.wait_empty().unwrap();

        let letters = users::letters(&instance.maildir(BOB));
        assert_eq!(
            subjects(&instance),
            once(["local", "todo", "odd", "long", "failure notice"].map(str::to_owned)),
            "{}",
            instance.log()
        );
        let of = |subject: &str| letters.iter().find(|letter| letter.contains(&format!("Subject: {subject}\n"))).unwrap().clone();
        assert!(of("odd").contains("a NUL \0 and "), "NUL and 8-bit bytes");
        assert!(of("long").len() > long.len());
        assert_eq!(of("local").matches("Received: (qmail ").count(), 1, "no trace line is added");
        let bounce = of("failure notice");
        for paragraph in dead.split_inclusive("\n\n") {
            assert!(bounce.contains(paragraph), "{bounce}");
        }
        let mut sent: Vec<String> =
            peer.letters().iter().map(|letter| format!("{} {}", letter.from, letter.to.join(" "))).collect();
        sent.sort();
        let expected = [
            "<> <y@remote.test>",
            "<bob@example.test> <left@remote.test>",
            "<bob@example.test> <x@remote.test>",
            "<list-ann=remote.test@lists.test> <ann@remote.test>",
        ];
        let bare: Vec<String> =
            sent.iter().map(|line| line.split(' ').filter(|word| word.starts_with('<')).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(bare, expected);

        let again = imported(&instance, &queue);
        assert_eq!((&again["imported"], &again["already"]), (&0.into(), &8.into()), "{again}");
        instance.wait_empty().unwrap();
        assert_eq!(users::letters(&instance.maildir(BOB)).len(), 5);
        assert_eq!(peer.letters().len(), 4);
    }
}

#[test]
fn times_go_on_where_they_were() {
    let (instance, _peer) = instance(&[]);
    let queue = classic(&instance, "old", 23);
    let (birth_s, due_s) = (now_s() - 90_000, now_s() + 900);
    let body = letter("waits");
    let waits = Queued { sender: BOB, remote: &["Tx@remote.test"], birth_s, due_s, ..Queued::default() };
    queue.queued(&body, waits).unwrap();
    // It has had its time: one attempt more, and then it comes back.
    let old = Queued { sender: BOB, remote: &["Tx@nowhere.test"], birth_s: now_s() - 800_000, ..Queued::default() };
    instance.control("smtproutes", "remote.test:127.0.0.1:1\nnowhere.test:127.0.0.1:1\n").unwrap();
    queue.queued(&letter("old"), old).unwrap();
    imported(&instance, &queue);
    let bounce = instance.wait_mail(BOB, 1).unwrap();
    assert!(bounce[0].contains("this message has been in the queue too long"), "{bounce:?}");
    let list = instance.json(&["queue", "list"]).unwrap();
    let rows = list.as_array().unwrap();
    assert_eq!(rows.len(), 1, "{list}");
    assert_eq!((rows[0]["arrival_s"].as_u64(), rows[0]["due_s"].as_u64()), (Some(birth_s), Some(due_s)));
    assert!(!instance.log().contains("to remote x@remote.test"), "it is not tried before");
}

#[test]
fn what_is_damaged_is_named_and_the_rest_goes_on() {
    let (instance, _peer) = instance(&[]);
    let queue = classic(&instance, "old", 7);
    let to_bob = format!("T{BOB_THERE}");
    let queued = |name: &str| queue.queued(&letter(name), Queued { local: &[&to_bob], ..Queued::default() }).unwrap();
    queued("good");
    let (cut, no_sender, mark, fifo, lost, todo, elsewhere) = (
        queued("cut"),
        queued("no sender"),
        queued("mark"),
        queued("fifo"),
        queued("lost"),
        queue.todo(b"x", "s", &[BOB]).unwrap(),
        queued("elsewhere"),
    );
    fs::write(queue.path("local", cut), "Texample.test-bob@exam").unwrap();
    fs::write(queue.path("info", no_sender), "").unwrap();
    fs::write(queue.path("local", mark), "Xexample.test-bob@example.test\0").unwrap();
    fs::remove_file(queue.path("info", fifo)).unwrap();
    tools::must(Command::new("mkfifo").arg(queue.path("info", fifo))).unwrap();
    fs::remove_file(queue.path("mess", lost)).unwrap();
    fs::remove_file(queue.path("todo", todo)).unwrap();
    fs::write(queue.path("todo", todo), "u1\0p1\0Tbob@example.test\0").unwrap();
    fs::write(queue.path("local", elsewhere), "Tann@was-local.test\0").unwrap();
    let output = import(&instance, &queue, &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let did = answer(&output);
    assert_eq!(did["imported"], 1, "{did}");
    let problems = did["problems"].to_string();
    let all = [
        ("local", cut),
        ("info", no_sender),
        ("local", mark),
        ("info", fifo),
        ("info", lost),
        ("todo", todo),
        ("local", elsewhere),
    ];
    for (kind, number) in all {
        assert!(problems.contains(&queue.path(kind, number).display().to_string()), "{kind}/{number}: {problems}");
    }
    assert!(problems.contains("add was-local.test to locals"), "{problems}");
    instance.wait_empty().unwrap();
    assert_eq!(subjects(&instance), once(["good".to_owned()]));
    // Repaired, they come along.
    fs::write(queue.path("local", cut), format!("{to_bob}\0")).unwrap();
    assert_eq!(answer(&import(&instance, &queue, &[]))["imported"], 1);
    instance.wait_empty().unwrap();
    assert_eq!(subjects(&instance), once(["good", "cut"].map(str::to_owned)));
}

#[test]
fn it_refuses_a_queue_in_use_and_a_system_that_is_down() {
    let (mut instance, _peer) = instance(&[]);
    let queue = classic(&instance, "old", 23);
    queue.todo(&letter("todo"), "", &[BOB]).unwrap();
    let lock = File::options().write(true).open(queue.dir.join("lock/sendmutex")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    for command in ["import", "export"] {
        let output = feed(instance.qmail(&[command, "queue"]).arg(&queue.dir), b"").unwrap();
        assert_eq!(output.status.code(), Some(111), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("a classic qmail-send runs on this queue"), "{output:?}");
    }
    drop(lock);
    let output = feed(instance.qmail(&["import", "queue"]).arg(instance.dir()), b"").unwrap();
    assert_eq!(output.status.code(), Some(100), "no queue: {output:?}");
    instance.stop().unwrap();
    let output = import(&instance, &queue, &[]);
    assert_eq!(output.status.code(), Some(111), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("qmail start"), "{output:?}");
    instance.start().unwrap();
    assert_eq!(imported(&instance, &queue)["imported"], 1);
    instance.wait_mail(BOB, 1).unwrap();
}

/// Runs a command that is killed in front of its n-th call of a kind; true if it was.
fn killed_at(instance: &Instance, args: &[&str], queue: &Path, call: &str, n: usize) -> bool {
    let strace = tools::get("import", "strace", "usr/bin/strace").unwrap().unwrap();
    let mut command = strace.command();
    command.args(["-f", "-o"]).arg(instance.dir().join("strace")).arg("-e").arg(format!("inject={call}:signal=KILL:when={n}"));
    command.arg(instance.program("qmail")).arg("--root").arg(&instance.root).args(args).arg(queue);
    let output = feed(&mut command, b"").unwrap();
    match output.status.code() {
        Some(0) => false,
        Some(code) => panic!("{code}: {output:?}"),
        None => true,
    }
}

#[test]
fn killed_in_front_of_any_call_it_imports_everything_once() {
    if !is_root() {
        return skip("killed_in_front_of_any_call_it_imports_everything_once", "strace is for root");
    }
    let (instance, _peer) = instance(&[]);
    let mut expected = Vec::new();
    let mut kills = 0;
    for (call, step) in [("sendmsg", 1), ("recvmsg", 1), ("write", 1), ("fdatasync", 1), ("openat", 5)] {
        let queue = classic(&instance, call, 23);
        for at in 0..8 {
            let name = format!("{call} {at}");
            queue.todo(&letter(&name), "", &[BOB]).unwrap();
            expected.push(name);
        }
        let mut n = 1;
        while killed_at(&instance, &["import", "queue"], &queue.dir, call, n) {
            (n, kills) = (n + step, kills + 1);
        }
        assert_eq!(imported(&instance, &queue)["imported"], 0, "{call}: the last run was not killed");
    }
    println!("{kills} kills");
    assert!(kills > 25, "{kills}");
    instance.wait_empty().unwrap();
    assert_eq!(subjects(&instance), once(expected));
}

#[test]
fn two_thousand_messages_while_qmail_send_is_killed() {
    let (instance, _peer) = instance(&[]);
    let queue = classic(&instance, "old", 23);
    let names: Vec<String> = (0..2000).map(|n| format!("number {n}")).collect();
    let birth_s = now_s() - 500;
    for name in &names {
        let to_bob = format!("T{BOB_THERE}");
        queue.queued(&letter(name), Queued { local: &[&to_bob], birth_s, ..Queued::default() }).unwrap();
    }
    // Killed after some, twice: what runs then fails, and is run again.
    for after in [100, 700] {
        let mut running =
            instance.qmail(&["import", "queue"]).arg(&queue.dir).stdout(std::process::Stdio::null()).spawn().unwrap();
        let noted = || fs::read_to_string(queue.dir.join("imported")).unwrap_or_default().lines().count();
        let far = || (noted() > after || running.try_wait().unwrap().is_some()).then_some(());
        wait_for("the import to be under way", far).unwrap();
        let send = facts::descendants(instance.pid()).into_iter().find(|process| process.name == "qmail-send").unwrap();
        facts::signal(send.pid, Signal::KILL);
        running.wait().unwrap();
        wait_for("qmail-send", || instance.json(&["queue", "stats"]).ok()).unwrap();
    }
    let again = || import(&instance, &queue, &[]).status.success().then_some(());
    wait_for("a whole import", again).unwrap();
    instance.wait_empty().unwrap();
    let found = subjects(&instance);
    assert_eq!(found.len(), names.len());
    // What was being delivered when qmail-send died may come twice, and nothing else: 10 at a time.
    let twice = found.values().map(|count| count - 1).sum::<usize>();
    assert!(twice <= 20, "{twice}");
}

/// Everything that counts about the messages of the queue.
fn messages(instance: &Instance) -> Vec<String> {
    let list = instance.json(&["queue", "list"]).unwrap();
    let mut all: Vec<String> = Vec::new();
    for row in list.as_array().unwrap() {
        let shown = instance.json(&["queue", "show", &row["id"].to_string()]).unwrap();
        let mut to: Vec<String> =
            shown["recipients"].as_array().unwrap().iter().map(|to| format!("{} {}", to["address"], to["state"])).collect();
        to.sort();
        all.push(format!("{} {} {} {to:?}", shown["arrival_s"], shown["bytes"], shown["sender"]));
    }
    all.sort();
    all
}

#[test]
fn exported_and_imported_again_it_is_the_same_queue() {
    let control = [("concurrencylocal", "0\n"), ("concurrencyremote", "0\n")];
    let (mut instance, peer) = instance(&control);
    let queue = classic(&instance, "old", 23);
    let birth_s = now_s() - 5000;
    let to_bob = format!("T{BOB_THERE}");
    let remote = ["Tx@remote.test", "Ddead@elsewhere.test", "Ddone@remote.test"];
    let bounce = "<dead@elsewhere.test>:\nNo. (#5.1.1)\n\n";
    queue.queued(&letter("all"), Queued { sender: BOB, local: &[&to_bob], remote: &remote, bounce, birth_s, due_s: 0 }).unwrap();
    queue.todo(&[&letter("long")[..], &[b'x'; 200_000], b"\n"].concat(), "list-@lists.test-@[]", &[BOB]).unwrap();
    imported(&instance, &queue);
    let before = messages(&instance);
    assert_eq!(before.len(), 2);

    let dir = instance.dir().join("new");
    fs::create_dir(&dir).unwrap();
    fs::create_dir(dir.join("control")).unwrap();
    fs::write(dir.join("control/virtualdomains"), "example.test:example.test\n").unwrap();
    let dir = dir.join("queue");
    let text = dir.display().to_string();
    assert_eq!(instance.json(&["export", "queue", &text, "--dry-run"]).unwrap()["exported"], 2);
    assert!(!dir.exists() && messages(&instance).len() == 2);
    assert_eq!(instance.json(&["export", "queue", &text]).unwrap()["exported"], 2);
    assert_eq!(messages(&instance), Vec::<String>::new(), "what is there is not here any more");
    let info = tools::must(Command::new("find").arg(dir.join("info")).args(["-type", "f"])).unwrap();
    let mut senders = Vec::new();
    for path in info.lines() {
        let number: u64 = path.rsplit('/').next().unwrap().parse().unwrap();
        assert!(path.ends_with(&format!("/{}/{number}", number % 23)), "{path}");
        let mess = dir.join(format!("mess/{}/{number}", number % 23));
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&fs::metadata(mess).unwrap()), number, "named by its inode");
        senders.push(fs::read_to_string(path).unwrap());
        if fs::read_to_string(path).unwrap() == format!("F{BOB}\0") {
            let of = |kind: &str| fs::read_to_string(dir.join(format!("{kind}/{}/{number}", number % 23))).unwrap();
            assert_eq!(of("local"), format!("{to_bob}\0"));
            assert_eq!(of("remote"), "Tx@remote.test\0Ddead@elsewhere.test\0Ddone@remote.test\0");
            assert_eq!(fs::read_to_string(dir.join(format!("bounce/{number}"))).unwrap(), bounce);
            let born = fs::metadata(path).unwrap().modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
            assert_eq!(born.as_secs(), birth_s);
        }
    }
    senders.sort();
    assert_eq!(senders, [format!("F{BOB}\0"), "Flist-@lists.test-@[]\0".to_owned()]);
    let other_split = instance.qmail(&["export", "queue", &text, "--split", "7"]).output().unwrap();
    assert_eq!(other_split.status.code(), Some(100), "{other_split:?}");

    assert_eq!(imported(&instance, &ClassicQueue::at(&dir, 23))["imported"], 2);
    assert_eq!(messages(&instance), before);
    instance.control("concurrencylocal", "10\n").unwrap();
    instance.control("concurrencyremote", "10\n").unwrap();
    instance.stop().unwrap();
    instance.start().unwrap();
    instance.retry_until_empty().unwrap();
    assert_eq!(subjects(&instance), once(["all", "long", "failure notice"].map(str::to_owned)));
    assert_eq!(peer.letters().len(), 1);
}

/// How often each subject is in a queue with local/N for bob; of a message that is there all files are there.
fn there(queue: &ClassicQueue) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for path in files(queue, "info") {
        let number: u64 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let mess = fs::read_to_string(queue.path("mess", number)).unwrap();
        assert_eq!(fs::read_to_string(queue.path("local", number)).unwrap(), format!("T{BOB_THERE}\0"));
        let subject = mess.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap().to_owned();
        *found.entry(subject).or_insert(0) += 1;
    }
    found
}

#[test]
fn an_export_killed_in_front_of_any_call_has_everything_once() {
    if !is_root() {
        return skip("an_export_killed_in_front_of_any_call_has_everything_once", "strace is for root");
    }
    let (instance, _peer) = instance(&[("concurrencylocal", "0\n")]);
    let dir = instance.dir().join("new/queue");
    fs::create_dir(instance.dir().join("new")).unwrap();
    let queue = ClassicQueue::new(&dir, 23).unwrap();
    let mut expected = Vec::new();
    let mut kills = 0;
    for (call, step) in [("sendmsg", 4), ("rename", 1), ("fsync", 5), ("linkat", 1), ("fdatasync", 1), ("unlink", 1)] {
        for at in 0..4 {
            let name = format!("{call} {at}");
            instance.smtp().unwrap().send("a@elsewhere.test", &[BOB], &format!("Subject: {name}\n\nbody\n")).unwrap();
            expected.push(name);
        }
        let mut n = 1;
        while killed_at(&instance, &["export", "queue"], &dir, call, n) {
            (n, kills) = (n + step, kills + 1);
        }
    }
    println!("{kills} kills");
    assert!(kills > 12, "{kills}");
    assert_eq!(messages(&instance), Vec::<String>::new());
    assert_eq!(there(&queue), once(expected));
}

/// An instance with one message that waits for bob, and a directory to export to, which is none yet.
fn one_waits(subject: &str) -> (Instance, Peer, ClassicQueue) {
    let (instance, peer) = instance(&[("concurrencylocal", "0\n")]);
    instance.smtp().unwrap().send("a@elsewhere.test", &[BOB], &format!("Subject: {subject}\n\nbody\n")).unwrap();
    let home = instance.dir().join("new");
    fs::create_dir(&home).unwrap();
    let queue = ClassicQueue::at(&home.join("queue"), 23);
    (instance, peer, queue)
}

fn exported(instance: &Instance, queue: &ClassicQueue) -> Value {
    instance.json(&["export", "queue", &queue.dir.display().to_string()]).unwrap()["exported"].clone()
}

/// The files of a kind.
fn files(queue: &ClassicQueue, kind: &str) -> Vec<std::path::PathBuf> {
    let found = tools::must(Command::new("find").arg(queue.dir.join(kind)).args(["-type", "f"])).unwrap();
    found.lines().map(Into::into).collect()
}

#[test]
fn a_queue_that_was_exported_into_before_takes_what_has_the_same_id_in_another_spool() {
    let (first, _first_peer, queue) = one_waits("first");
    let (second, _second_peer, _) = one_waits("second");
    let id = |instance: &Instance| instance.json(&["queue", "list"]).unwrap()[0]["id"].clone();
    assert_eq!(id(&first), id(&second), "or this shows nothing");
    assert_eq!(exported(&first, &queue), 1);
    // The classic qmail-send delivers it.
    for kind in ["info", "local", "mess"] {
        let [path] = &files(&queue, kind)[..] else { panic!("{kind}") };
        fs::remove_file(path).unwrap();
    }
    assert_eq!(exported(&second, &queue), 1);
    assert_eq!(there(&queue), once(["second".to_owned()]));
    assert_eq!(messages(&second), Vec::<String>::new());
}

/// An export that is killed before info is in its place; the message's number there.
fn killed_before_info(instance: &Instance, queue: &ClassicQueue) -> u64 {
    assert!(killed_at(instance, &["export", "queue"], &queue.dir, "rename", 2));
    assert_eq!((files(queue, "info").len(), files(queue, "local").len()), (0, 1), "it was killed elsewhere");
    assert_eq!(fs::read_to_string(queue.dir.join("exported")).unwrap().lines().count(), 1);
    let [mess] = &files(queue, "mess")[..] else { panic!("one mess") };
    mess.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn what_a_classic_qmail_clears_away_of_a_killed_export_is_exported_anew() {
    if !is_root() {
        return skip("what_a_classic_qmail_clears_away_of_a_killed_export_is_exported_anew", "strace is for root");
    }
    let (instance, _peer, queue) = one_waits("ours");
    let number = killed_before_info(&instance, &queue);
    // What has no info is nothing after 36 hours.
    fs::remove_file(queue.path("mess", number)).unwrap();
    assert_eq!(exported(&instance, &queue), 1);
    assert_eq!(there(&queue), once(["ours".to_owned()]));
    assert_eq!(messages(&instance), Vec::<String>::new());
}

#[test]
fn an_export_never_takes_away_what_got_the_number_of_a_killed_one() {
    if !is_root() {
        return skip("an_export_never_takes_away_what_got_the_number_of_a_killed_one", "strace is for root");
    }
    for is_accepted in [true, false] {
        let (instance, _peer, queue) = one_waits("ours");
        let number = killed_before_info(&instance, &queue);
        let body = fs::read_to_string(queue.path("mess", number)).unwrap();
        let stranger = if is_accepted { body } else { body.replace("Subject: ours", "Subject: them") };
        fs::write(queue.path("mess", number), &stranger).unwrap();
        if is_accepted {
            fs::write(queue.path("todo", number), "u1\0p1\0Fs@elsewhere.test\0Tann@elsewhere.test\0").unwrap();
        }
        assert_eq!(exported(&instance, &queue), 1);
        assert_eq!(fs::read_to_string(queue.path("mess", number)).unwrap(), stranger);
        assert_eq!(there(&queue), once(["ours".to_owned()]));
        assert!(files(&queue, "info").iter().all(|path| *path != queue.path("info", number)));
        assert_eq!(messages(&instance), Vec::<String>::new());
    }
}

#[test]
fn an_export_killed_before_it_notes_that_info_is_there_has_it_once() {
    if !is_root() {
        return skip("an_export_killed_before_it_notes_that_info_is_there_has_it_once", "strace is for root");
    }
    let (instance, _peer, queue) = one_waits("ours");
    assert!(killed_at(&instance, &["export", "queue"], &queue.dir, "fdatasync", 2));
    assert_eq!(there(&queue), once(["ours".to_owned()]));
    let journal = fs::read_to_string(queue.dir.join("exported")).unwrap();
    fs::write(queue.dir.join("exported"), format!("{}\n", journal.lines().next().unwrap())).unwrap();
    assert_eq!(exported(&instance, &queue), 1);
    assert_eq!(there(&queue), once(["ours".to_owned()]));
    assert_eq!(messages(&instance), Vec::<String>::new());
}

#[test]
fn what_is_here_still_is_not_imported_from_where_it_was_being_exported_to() {
    if !is_root() {
        return skip("what_is_here_still_is_not_imported_from_where_it_was_being_exported_to", "strace is for root");
    }
    let (instance, _peer, queue) = one_waits("ours");
    assert!(killed_at(&instance, &["export", "queue"], &queue.dir, "fdatasync", 2));
    let output = import(&instance, &queue, &["--reroute"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let did = answer(&output);
    assert_eq!((&did["imported"], messages(&instance).len()), (&0.into(), 1), "{did}");
    assert!(did["problems"].to_string().contains("its export is not over"), "{did}");
    // It took nothing over: the export goes on.
    assert_eq!(exported(&instance, &queue), 1);
    assert_eq!(answer(&import(&instance, &queue, &["--reroute"]))["imported"], 1);
    assert_eq!(messages(&instance).len(), 1);
}

#[test]
fn another_journal_does_not_hide_the_usual_one() {
    let (instance, _peer) = instance(&[]);
    let queue = classic(&instance, "old", 23);
    queue.todo(&letter("theirs"), "", &[BOB]).unwrap();
    assert_eq!(imported(&instance, &queue)["imported"], 1);
    let journal = instance.dir().join("journal").display().to_string();
    let again = answer(&import(&instance, &queue, &["--journal", &journal]));
    assert_eq!((&again["imported"], &again["already"]), (&0.into(), &1.into()), "{again}");
    instance.wait_mail(BOB, 1).unwrap();
    instance.wait_empty().unwrap();
    assert_eq!(subjects(&instance), once(["theirs".to_owned()]));
}

#[test]
fn what_was_imported_from_a_queue_is_not_exported_into_it() {
    let (instance, _peer, _) = one_waits("ours");
    let queue = classic(&instance, "old", 23);
    queue.todo(&letter("theirs"), "", &[BOB]).unwrap();
    imported(&instance, &queue);
    for more in [&[][..], &["--dry-run"]] {
        let output = instance.qmail(&["export", "queue"]).arg(&queue.dir).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(100), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("old/queue/imported: ") && said.contains("give another directory"), "{said}");
    }
    assert!(!queue.dir.join("exported").exists() && files(&queue, "info").is_empty());
    let held = |row: &Value| row["held"] == true;
    assert!(!instance.json(&["queue", "list"]).unwrap().as_array().unwrap().iter().any(held), "nothing was begun");
}

#[test]
fn what_waits_for_the_rest_of_its_import_is_shown_so_and_not_exported() {
    if !is_root() {
        return skip("what_waits_for_the_rest_of_its_import_is_shown_so_and_not_exported", "strace is for root");
    }
    let (instance, _peer) = instance(&[("concurrencylocal", "0\n")]);
    let old = classic(&instance, "old", 23);
    old.todo(&letter("theirs"), "", &[BOB]).unwrap();
    assert!(killed_at(&instance, &["import", "queue"], &old.dir, "fdatasync", 1));
    let row = || instance.json(&["queue", "list"]).unwrap()[0].clone();
    assert_eq!((&row()["unconfirmed"], &row()["held"]), (&true.into(), &true.into()), "{}", row());
    assert!(instance.must(&["queue", "list"]).unwrap().contains("its import is not over"));
    let new = instance.dir().join("new/queue");
    fs::create_dir(instance.dir().join("new")).unwrap();
    for more in [&["--dry-run"][..], &["--lossy"], &[]] {
        let output = instance.qmail(&["--json", "export", "queue"]).arg(&new).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = answer(&output);
        assert_eq!((&said["exported"], &said["problems"].as_array().unwrap().len()), (&0.into(), &1), "{said}");
        assert!(said["problems"].to_string().contains("run qmail import queue again first"), "{said}");
    }
    let again = imported(&instance, &old);
    assert_eq!(again["resumed"], 1, "{again}");
    assert_eq!((&row()["unconfirmed"], &row()["held"]), (&false.into(), &false.into()), "{}", row());
    assert_eq!(exported(&instance, &ClassicQueue::at(&new, 23)), 1);
}

/// A session on the port for submissions inside TLS, as bob.
fn as_bob(instance: &Instance) -> Inside {
    let mut session = Inside::open(instance, 465, None, &[]).unwrap();
    session.line().unwrap();
    let login = format!("AUTH PLAIN {}", wire::base64::encode(format!("\0{BOB}\0bob-password").as_bytes()));
    for (command, code) in [("EHLO c.test", "250"), (&login, "235")] {
        let reply = session.smtp(command).unwrap();
        assert!(reply.starts_with(code), "{command}: {reply}");
    }
    session
}

#[test]
fn what_a_classic_queue_cannot_keep_stays_here_unless_it_may_be_lost() {
    let (instance, peer) = instance(&[("concurrencylocal", "0\n"), ("concurrencyremote", "0\n"), ("mtpriority", "all\n")]);
    let mut bob = as_bob(&instance);
    for (mail, rcpt) in [
        ("REQUIRETLS", ""),
        ("HOLDFOR=3600", ""),
        ("BY=3600;R", ""),
        ("BY=3600;N", ""),
        ("MT-PRIORITY=3", ""),
        ("RET=HDRS", " NOTIFY=NEVER ORCPT=rfc822;x@remote.test"),
        ("", ""),
    ] {
        let name = mail.split('=').next().unwrap();
        for (command, code) in [
            (format!("MAIL FROM:<{BOB}> {mail}").trim_end().to_owned(), "250"),
            (format!("RCPT TO:<x@remote.test>{rcpt}"), "250"),
            ("DATA".to_owned(), "354"),
            (format!("Subject: {name}\r\n\r\nbody\r\n."), "250"),
        ] {
            let reply = bob.smtp(&command).unwrap();
            assert!(reply.starts_with(code), "{command}: {reply}");
        }
    }
    let home = instance.dir().join("new");
    fs::create_dir(&home).unwrap();
    let queue = ClassicQueue::at(&home.join("queue"), 23);
    let export = |more: &[&str]| {
        let output = instance.qmail(&["--json", "export", "queue"]).arg(&queue.dir).args(more).output().unwrap();
        (output.status.code(), answer(&output))
    };
    let reasons = |said: &Value, key: &str| said[key].as_array().unwrap().len();
    for more in [&["--dry-run"][..], &[]] {
        let (code, said) = export(more);
        assert_eq!((code, &said["exported"]), (Some(1), &4.into()), "{said}");
        assert_eq!((reasons(&said, "problems"), reasons(&said, "lost")), (3, 3), "{said}");
        for word in ["REQUIRETLS", "HOLDFOR", "(BY)", "--lossy", "NOTIFY", "MT-PRIORITY", "hears when it is late"] {
            assert!(said.to_string().contains(word), "{word}: {said}");
        }
    }
    // They are as they were: nobody holds them.
    let left = instance.json(&["queue", "list"]).unwrap();
    let what = ["requires_tls", "hold_until_s", "returns"].map(|key| {
        let is = |row: &&Value| row[key] == true || row[key].as_u64().is_some_and(|at_s| at_s > 0);
        left.as_array().unwrap().iter().filter(is).count()
    });
    assert_eq!((what, left.as_array().unwrap().len()), ([1; 3], 3), "{left}");
    assert!(left.as_array().unwrap().iter().all(|row| row["held"] == false), "{left}");
    let (code, said) = export(&["--lossy"]);
    assert_eq!((code, &said["exported"], reasons(&said, "lost")), (Some(0), &3.into(), 3), "{said}");
    assert_eq!((messages(&instance).len(), files(&queue, "info").len()), (0, 7));
    assert!(peer.letters().is_empty());
}

#[test]
fn the_configuration_of_a_classic_qmail_comes_along_and_what_it_means_is_said() {
    let instance = Instance::new().unwrap();
    let home = instance.dir().join("var-qmail");
    for dir in ["control", "users", "alias", "queue"] {
        fs::create_dir_all(home.join(dir)).unwrap();
    }
    let write = |name: &str, text: &str| fs::write(home.join(name), text).unwrap();
    write("control/me", "old.example.test\n");
    write("control/virtualdomains", "lists.example.test:alias-lists\n");
    write("control/queuelifetime", "86400\n");
    write("control/concurrencyremote", "many\n");
    write("control/servercert.pem", "-----BEGIN\n");
    write("control/whatsthis", "x\n");
    write("users/assign", "=joe:joe:1005:1005:/home/joe:::\n.\n");
    write("users/cdb", "compiled");
    write("alias/.qmail-lists-default", "&bob@example.test\n");
    write("tcp.smtp", "127.:allow,RELAYCLIENT=\"\"\n:allow\n");
    let tcp = home.join("tcp.smtp");
    let temporary = instance.dir().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let run = |more: &[&str]| {
        let mut command = instance.qmail(&["--json", "import", "control"]);
        command.env("TMPDIR", &temporary).arg(&home).arg("--tcp-smtp").arg(&tcp);
        let output = feed(command.args(more), b"").unwrap();
        (output.status.code(), answer(&output))
    };
    let result = |did: &Value, name: &str| {
        let files = did["files"].as_array().unwrap();
        files.iter().find(|row| row["file"].as_str().unwrap().ends_with(name)).unwrap_or_else(|| panic!("{name}: {did}"))["result"].as_str().unwrap().to_owned()
    };
    let (_, dry) = run(&["--dry-run"]);
    assert_eq!(result(&dry, "control/virtualdomains"), "would copy");
    assert!(!instance.root.join("etc/qmail/control/virtualdomains").exists());
    assert!(dry["findings"].to_string().contains("is no number"), "{dry}");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "nothing is left of the copy");
    let (code, did) = run(&[]);
    assert_eq!(code, Some(1), "me differs: {did}");
    assert_eq!(dry["findings"], did["findings"], "a dry run knows what will be said");
    for (name, expected) in [
        ("control/me", "differs: kept the one here"),
        ("control/virtualdomains", "copied"),
        ("control/queuelifetime", "copied"),
        ("control/servercert.pem", "not used"),
        ("control/whatsthis", "not used"),
        ("users/assign", "copied"),
        ("users/cdb", "not used"),
        ("alias/.qmail-lists-default", "copied"),
        ("tcp.smtp", "copied"),
    ] {
        assert_eq!(result(&did, name), expected, "{name}");
    }
    assert!(did["findings"].to_string().contains("is no number"), "what was copied is checked: {did}");
    let here = |name: &str| fs::read_to_string(instance.root.join("etc/qmail").join(name)).unwrap();
    assert_eq!(here("control/me"), format!("{}\n", system_tests::instance::ME));
    assert_eq!(here("control/virtualdomains"), "lists.example.test:alias-lists\n");
    assert_eq!(here("alias/.qmail-lists-default"), "&bob@example.test\n");
    let (_, again) = run(&["--force"]);
    assert_eq!((result(&again, "control/me"), result(&again, "users/assign")), ("replaced".to_owned(), "is there".to_owned()));
    assert_eq!(here("control/me"), "old.example.test\n");
}
