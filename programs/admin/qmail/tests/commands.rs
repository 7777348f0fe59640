//! The real `qmail` on instances in temporary directories, as root with ids of their own and not as root; the daemons that it
//! asks are played by the test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ipc::admin::{
    AccountAnswer, AccountRequest, AccountRow, AliasRow, Counter, DomainChange, DomainRow, QueueAnswer, QueueRequest, Quota,
    RecipientRow, Row, UserRow, Vacation,
};
use ipc::{DATAGRAM_LEN_MAX, Message};
use serde_json::{Value, json};
use sys::{Received, Seqpacket};
use wire::Address;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

struct Instance(tempfile::TempDir);

impl Instance {
    fn empty() -> Self {
        let dir = tempfile::Builder::new().prefix("qmail").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn new() -> Self {
        let instance = Self::empty();
        instance.must(&["setup", "--me", "mail.example.org", "--base-port", "12000"]);
        instance
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn run(&self, args: &[&str], input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qmail"));
        command.arg("--root").arg(self.0.path()).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that reads nothing may have ended before.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn must(&self, args: &[&str]) -> String {
        let output = self.run(args, "");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.must(&[args, &["--json"]].concat())).unwrap()
    }

    fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args, "");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// Everything below the root: path, mode, uid, gid.
    fn tree(&self) -> Vec<(String, u32, u32, u32)> {
        let mut all = Vec::new();
        let mut todo = vec![self.0.path().to_owned()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let name = path.strip_prefix(self.0.path()).unwrap().display().to_string();
                all.push((name, metadata.mode() & 0o7777, metadata.uid(), metadata.gid()));
                if metadata.is_dir() {
                    todo.push(path);
                }
            }
        }
        all.sort();
        all
    }

    /// Plays a daemon on an admin socket: answers each request with what `answer` says.
    fn serve<Q: Message + std::fmt::Debug + 'static>(&self, socket: &str, answer: impl Fn(Q) -> Vec<Vec<u8>> + Send + 'static) {
        fs::create_dir_all(self.at("run/qmail/admin")).unwrap();
        let run = fs::File::open(self.at("run/qmail")).unwrap();
        let listener = sys::seqpacket::listen(run.as_fd(), socket).unwrap();
        rustix::io::ioctl_fionbio(&listener, false).unwrap();
        std::thread::spawn(move || {
            while let Ok(client) = sys::seqpacket::accept(listener.as_fd()) {
                client.set_nonblocking(false).unwrap();
                serve_one(&client, &answer);
            }
        });
    }
}

fn serve_one<Q: Message>(client: &Seqpacket, answer: &impl Fn(Q) -> Vec<Vec<u8>>) {
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    while let Ok(Received::Datagram(len, _)) = client.recv(&mut buf) {
        for datagram in answer(Q::decode(&buf[..len]).unwrap()) {
            client.send(&datagram).unwrap();
        }
    }
}

fn address(text: &str) -> Address {
    Address::new(text.as_bytes()).unwrap()
}

#[test]
fn setup_makes_everything_with_its_owner_and_mode() {
    let instance = Instance::new();
    let caller = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let ids = fs::read_to_string(instance.at("etc/qmail/ids")).unwrap();
    let id = |role: &str| -> (u32, u32) {
        let line = ids.lines().find(|line| line.starts_with(&format!("{role} "))).unwrap();
        let numbers: Vec<u32> = line.split(' ').skip(1).map(|number| number.parse().unwrap()).collect();
        (numbers[0], numbers[1])
    };
    let expected = [
        ("etc/qmail/control", 0o755, caller),
        ("etc/qmail/users", 0o755, caller),
        ("etc/qmail/tls", 0o755, caller),
        ("etc/qmail/tls/mail.example.org/cert.pem", 0o644, caller),
        ("etc/qmail/tls/mail.example.org/key.pem", 0o600, id("qmailk")),
        ("etc/qmail/ids", 0o644, caller),
        ("etc/qmail/control/me", 0o644, caller),
        ("etc/qmail/alias", 0o755, id("alias")),
        ("etc/qmail/alias/.qmail-postmaster", 0o644, id("alias")),
        ("etc/qmail/alias/Maildir/new", 0o700, id("alias")),
        ("var/spool/qmail", 0o700, id("qmailq")),
        ("var/lib/qmail", 0o700, id("qmaila")),
        ("var/mail", 0o755, caller),
        ("run/qmail", 0o755, caller),
    ];
    let tree = instance.tree();
    for (path, mode, (uid, gid)) in expected {
        let found = tree.iter().find(|entry| entry.0 == path).unwrap_or_else(|| panic!("no {path}"));
        assert_eq!((found.1, found.2, found.3), (mode, uid, gid), "{path}: {:o}", found.1);
    }
    if is_root() {
        let roles = ["qmailp", "qmaila", "qmaild", "qmailq", "qmailr", "qmailx", "qmailk", "qmailn", "qmailc"].map(id);
        let uids: std::collections::HashSet<u32> = roles.iter().map(|id| id.0).chain([id("alias").0, id("vmail").0]).collect();
        assert_eq!(uids.len(), 11);
        assert!(roles.iter().all(|role| role.1 == roles[0].1) && id("alias").1 != roles[0].1 && !uids.contains(&0));
    } else {
        assert_eq!(id("qmailq"), caller);
    }
    let control = |name: &str| fs::read_to_string(instance.at("etc/qmail/control").join(name)).unwrap();
    let values = ["me", "defaultdomain", "plusdomain", "locals", "rcpthosts", "defaultdelivery", "listen"].map(control);
    let expected = [
        "mail.example.org\n",
        "example.org\n",
        "example.org\n",
        "mail.example.org\nlocalhost\n",
        "mail.example.org\nlocalhost\n",
        "./Maildir/\n",
    ];
    assert_eq!(values[..6], expected);
    assert_eq!(
        values[6],
        "smtp 127.0.0.1:12025\nsubmission 127.0.0.1:12587\nsubmissions 127.0.0.1:12465\npop3 127.0.0.1:12110\npop3s 127.0.0.1:12995\nlmtp 127.0.0.1:12024\nqmtp 127.0.0.1:12209\nqmqp 127.0.0.1:12628\n"
    );
}

#[test]
fn setup_never_overwrites() {
    let instance = Instance::new();
    fs::write(instance.at("etc/qmail/control/me"), "other.example\n").unwrap();
    fs::remove_file(instance.at("etc/qmail/control/locals")).unwrap();
    let before = instance.tree();
    let report = instance.json(&["setup", "--me", "new.example.org", "--base-port", "100"]);
    assert_eq!(fs::read_to_string(instance.at("etc/qmail/control/me")).unwrap(), "other.example\n");
    assert_eq!(fs::read_to_string(instance.at("etc/qmail/control/locals")).unwrap(), "new.example.org\nlocalhost\n");
    assert_eq!(report["made"], json!([instance.at("etc/qmail/control/locals").to_str().unwrap()]));
    let changed: Vec<_> = instance.tree().into_iter().filter(|entry| !before.contains(entry)).collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(instance.fails(&["setup", "--me", "a b"]).0, 100);
    assert_eq!(instance.fails(&["setup", "--me", "a.b", "--base-port", "65500"]).0, 100);
}

#[test]
fn ids_begin_where_the_caller_says() {
    if !is_root() {
        return skip("ids_begin_where_the_caller_says");
    }
    let instance = Instance::empty();
    instance.must(&["setup", "--me", "a.example", "--ids", "61500"]);
    let ids = fs::read_to_string(instance.at("etc/qmail/ids")).unwrap();
    let missing = |name: &[u8]| sys::passwd::user(name).unwrap().is_none();
    if missing(b"qmailp") && missing(b"qmaila") && sys::passwd::group(b"qmail").unwrap().is_none() {
        assert!(ids.starts_with("qmailp 61501 61500\nqmaila 61502 61500\n"), "{ids}");
    }
}

#[test]
fn domains_are_added_listed_and_removed() {
    let instance = Instance::new();
    assert_eq!(instance.json(&["domain", "list"]), json!([]));
    instance.must(&["domain", "add", "B.Example."]);
    instance.must(&["domain", "add", "a.example"]);
    let list = instance.json(&["domain", "list"]);
    assert_eq!(
        list.as_array().unwrap().iter().map(|row| row["domain"].as_str().unwrap()).collect::<Vec<_>>(),
        ["a.example", "b.example"]
    );
    let base = instance.at("var/mail/b.example");
    assert_eq!(list[1]["base"], base.to_str().unwrap());
    let metadata = fs::metadata(&base).unwrap();
    assert_eq!((metadata.mode() & 0o7777, json!(metadata.uid())), (0o700, list[1]["uid"].clone()));
    let file = fs::metadata(instance.at("etc/qmail/users/domains")).unwrap();
    assert_eq!(file.mode() & 0o7777, 0o644);
    for (args, problem) in [
        (["domain", "add", "b.example"], "already"),
        (["domain", "add", "mail.example.org"], "control/locals"),
        (["domain", "add", "../etc"], "not a domain"),
        (["domain", "add", "a:b"], "not a domain"),
        (["domain", "add", "[192.0.2.1]"], "address literal"),
        (["domain", "remove", "c.example"], "no virtual domain"),
        (["user", "list", "c.example"], "no virtual domain"),
        (["alias", "list", "c.example"], "no virtual domain"),
    ] {
        let (code, text) = instance.fails(&args);
        assert!(code == 100 && text.contains(problem), "{args:?}: {code} {text}");
    }
    instance.serve("admin/auth.sock", |request: AccountRequest| {
        if matches!(request, AccountRequest::DomainList { .. }) {
            return vec![AccountAnswer::Domains { rows: Vec::new(), last: true }.encode()];
        }
        assert!(matches!(&request, AccountRequest::DomainForget { domain } if domain.as_bytes() == b"b.example"), "{request:?}");
        vec![AccountAnswer::Ok {}.encode()]
    });
    instance.must(&["domain", "remove", "b.example"]);
    assert_eq!(instance.json(&["domain", "list"]).as_array().unwrap().len(), 1);
    assert!(base.is_dir(), "the mail stays");
    instance.must(&["domain", "add", "b.example"]);
    fs::write(instance.at("var/mail/file.example"), "").unwrap();
    let (code, text) = instance.fails(&["domain", "add", "file.example"]);
    assert!(code == 111 && text.contains("move it away"), "{text}");
}

#[test]
fn domains_added_at_the_same_time_are_all_there() {
    let instance = Instance::new();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let instance = &instance;
            scope.spawn(move || instance.must(&["domain", "add", &format!("d{n}.example")]));
        }
    });
    assert_eq!(instance.json(&["domain", "list"]).as_array().unwrap().len(), 8);
    let left: Vec<_> = fs::read_dir(instance.at("etc/qmail/users")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["domains"], "no temporary file is left");
}

#[test]
fn users_and_aliases_are_qmail_auths() {
    let instance = Instance::new();
    instance.serve("admin/auth.sock", |request: AccountRequest| {
        let user = |name: &str, quota: u64| UserRow { address: address(name), quota, suspended: false };
        match request {
            AccountRequest::UserAdd { address: user, password }
                if user == address("ann@v.example") && *password == *b"pass word" =>
            {
                vec![AccountAnswer::Ok {}.encode()]
            }
            AccountRequest::UserQuota { bytes: 10_240, .. } => vec![AccountAnswer::Ok {}.encode()],
            AccountRequest::UserList { domain: None, .. } => vec![
                AccountAnswer::Users { rows: vec![user("ann@v.example", 0)], last: false }.encode(),
                AccountAnswer::Users { rows: vec![user("b\x1bb@v.example", 5)], last: true }.encode(),
            ],
            AccountRequest::AliasAdd { targets, .. } => {
                let text = format!("{} targets\x07", targets.len());
                vec![AccountAnswer::Failed { text: text.as_str().into(), temporary: targets.len() > 1 }.encode()]
            }
            other => vec![AccountAnswer::Failed { text: format!("{other:?}").as_str().into(), temporary: false }.encode()],
        }
    });
    let output = instance.run(&["user", "add", "ann@v.example", "--password-stdin"], "pass word\nnot this\n");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    instance.must(&["user", "quota", "ann@v.example", "10K"]);
    let expected = json!([
        { "address": "ann@v.example", "quota": null, "suspended": false },
        { "address": "b\u{1b}b@v.example", "quota": 5, "suspended": false },
    ]);
    assert_eq!(instance.json(&["user", "list"]), expected);
    let table = instance.must(&["user", "list"]);
    assert!(table.contains("b\\x1bb@v.example") && !table.contains('\x1b'), "{table}");
    assert_eq!(instance.fails(&["alias", "add", "x@v.example", "a@b"]), (100, "qmail: 1 targets\\x07\n".to_owned()));
    assert_eq!(instance.fails(&["alias", "add", "x@v.example", "a@b", "c@d"]).0, 111);
    assert_eq!(instance.run(&["user", "add", "ann@v.example", "--password-stdin"], "").status.code(), Some(100));
    assert_eq!(instance.run(&["user", "add", "ann", "--password-stdin"], "x\n").status.code(), Some(100));
}

fn row(id: u64) -> Row {
    let (arrival_s, due_s) = (1_700_000_000, if id == 1 { 0 } else { 1_700_000_400 });
    Row { arrival_s, bytes: 10, sender: address("s@x"), pending: 1, recipients: 2, due_s, ..Row::new(id) }
}

#[test]
fn the_queue_is_qmail_sends() {
    let instance = Instance::new();
    assert_eq!(instance.fails(&["queue", "stats"]), (111, "qmail: not running\n".to_owned()));
    instance.serve("admin/send.sock", |request: QueueRequest| match request {
        QueueRequest::Stats {} => {
            let counter = |name: &str, value| Counter { name: name.into(), value };
            vec![QueueAnswer::Stats { counters: vec![counter("messages", 3), counter("oldest_s", 9)] }.encode()]
        }
        QueueRequest::List { after, .. } => {
            let rows: Vec<Row> = (after + 1..=3).take(2).map(row).collect();
            vec![QueueAnswer::Rows { rows, last: true }.encode()]
        }
        QueueRequest::Show { id: 2 } => {
            let recipient = |done| RecipientRow {
                address: address("r@y"),
                local: false,
                done,
                attempts: 2,
                due_s: 0,
                last_reply: "no\nway".into(),
            };
            let recipients = vec![recipient(None), recipient(Some(ipc::field::Verdict::Success))];
            vec![QueueAnswer::Message { row: row(2), recipients, last: true }.encode()]
        }
        QueueRequest::RetryAll {} => vec![QueueAnswer::Ok { messages: 3 }.encode()],
        QueueRequest::Remove { id: 1 } => vec![QueueAnswer::Ok { messages: 1 }.encode()],
        _ => vec![QueueAnswer::Failed { text: "no such message".into() }.encode()],
    });
    assert_eq!(instance.json(&["queue", "stats"]), json!({ "messages": 3, "oldest_s": 9 }));
    let list = instance.json(&["queue", "list"]);
    assert_eq!(list.as_array().unwrap().iter().map(|row| row["id"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((list[0]["due_s"].as_u64(), list[0]["sender"].as_str()), (Some(0), Some("s@x")));
    let people = instance.must(&["queue", "list"]);
    assert!(people.contains("2023-11-14 22:13:20") && people.contains("now"), "{people}");
    let shown = instance.json(&["queue", "show", "2"]);
    assert_eq!(shown["recipients"][0]["state"], "pending");
    assert_eq!(shown["recipients"][1]["state"], "delivered");
    assert!(instance.must(&["queue", "show", "2"]).contains("no\\x0away"));
    assert_eq!(instance.json(&["queue", "retry", "--all"]), json!({ "ok": true, "messages": 3 }));
    instance.must(&["queue", "remove", "1"]);
    assert_eq!(instance.fails(&["queue", "hold", "9"]), (100, "qmail: no such message\n".to_owned()));
}

#[test]
fn a_daemon_that_talks_nonsense_or_goes_away_is_temporary() {
    let instance = Instance::new();
    instance.serve("admin/send.sock", |_: QueueRequest| vec![b"\x09nonsense".to_vec()]);
    assert_eq!(instance.fails(&["queue", "stats"]).0, 111);
    let run = fs::File::open(instance.at("run/qmail")).unwrap();
    drop(sys::seqpacket::listen(run.as_fd(), "admin/send.sock").unwrap());
    assert_eq!(instance.fails(&["queue", "stats"]), (111, "qmail: not running\n".to_owned()), "a socket that nobody serves");
}

#[test]
fn check_names_file_problem_and_cure() {
    let all = |instance: &Instance| -> Vec<(String, String, String)> {
        let output = instance.run(&["check", "--json"], "");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let findings = report["findings"].as_array().unwrap();
        // The sentence that people read. Ports of this test may be another's just now.
        let said = |finding: &Value| match finding["line"].as_u64() {
            Some(line) => format!("line {line}: {}; {}", text(&finding["problem"]), text(&finding["cure"])),
            None => format!("{}; {}", text(&finding["problem"]), text(&finding["cure"])),
        };
        let is_elsewhere = ["beside this program", "another program listens there"];
        let is_missing_program = |finding: &&Value| is_elsewhere.iter().any(|part| said(finding).contains(part));
        let errors = findings.iter().filter(|finding| finding["level"] == "error").count();
        assert_eq!(output.status.code(), Some(i32::from(errors > 0)));
        assert_eq!(report["ok"], errors == 0);
        let kept = findings.iter().filter(|finding| !is_missing_program(finding));
        kept.map(|finding| (text(&finding["severity"]), text(&finding["file"]), said(finding))).collect()
    };
    let good = Instance::new();
    let errors: Vec<_> = all(&good).into_iter().filter(|finding| finding.0 == "error").collect();
    // The test's own program may lie where the roles cannot reach it.
    let errors: Vec<_> = errors.into_iter().filter(|finding| !finding.2.contains("keeps qmail-")).collect();
    assert!(errors.iter().all(|finding| finding.2.contains("keeps ")), "{errors:?}");

    let cases: [(&str, &str, &str, &str); 64] = [
        ("error", "etc/qmail/control/me", "two words\n", "not a domain"),
        ("warning", "etc/qmail/control/me", "host\n", "no dot"),
        ("error", "etc/qmail/control/me", "\n", "qmail setup --me"),
        ("error", "etc/qmail/control/listen", "smtp\n", "line 1"),
        ("error", "etc/qmail/control/listen", "smtp 127.0.0.1:1\nfoo 127.0.0.1:2\n", "line 2"),
        ("error", "etc/qmail/control/listen", "smtp 127.0.0.1:1 proxy=10.\n", "is no network"),
        ("error", "etc/qmail/control/listen", "smtp 127.0.0.1:1 proxy=::1,0.0.0.0/0\n", "may say that it is another"),
        ("error", "etc/qmail/control/xclient", "::/0\n", "may say that it is another"),
        ("error", "etc/qmail/control/qmqpclients", "0.0.0.0/0\n", "every host of the Internet may send anything to anybody"),
        ("error", "etc/qmail/control/qmqpservers", "queue.example.org\n", "is no IP address"),
        ("error", "etc/qmail/control/qmtproutes", "example.org\n", "no colon"),
        ("warning", "etc/qmail/control/qmtproutes", "a.test:r:qmtp\n", "209 is used"),
        ("warning", "etc/qmail/control/listen", "qmtp 127.0.0.1:1209 queue=/scan\n", "defers it for clients"),
        ("warning", "etc/qmail/control/listen", "", "nothing listens"),
        ("warning", "etc/qmail/control/listen", "pop3 0.0.0.0:110\n", "authcleartext"),
        ("warning", "etc/qmail/control/listen", "submission 0.0.0.0:587\n", "authcleartext"),
        ("error", "etc/qmail/control/databytes", "ten\n", "no number"),
        ("warning", "etc/qmail/control/databytes", "10M\n", "only the digits"),
        ("warning", "etc/qmail/control/concurrencyremote", "0\n", "held"),
        ("error", "etc/qmail/control/sitelimits", "a.test:1\na.test:2\n", "line 2: `a.test:2` is the second line"),
        ("warning", "etc/qmail/control/sitelimits", "a.test:0\n", "mail for a.test is held"),
        ("error", "etc/qmail/control/taps", "A:.*@a.test\n", "line 1: `A:.*@a.test` has no pattern"),
        ("error", "etc/qmail/control/taps", "A:(.*@a.test:x@a.test\n", "line 1: `A:(.*@a.test:x@a.test` "),
        ("error", "etc/qmail/control/taps", "A:.*@a.test:archive\n", "has no whole address"),
        ("error", "etc/qmail/control/relayclients", "10.0.0.0/8\n0.0.0.0/0\n", "lets every host"),
        ("error", "etc/qmail/control/relayclients", "10.\n", "line 1"),
        ("error", "etc/qmail/control/tcp.smtp", "10.:allow\n10.1.:denied\n", "line 2: `10.1.:denied` is no rule"),
        ("error", "etc/qmail/control/tcp.smtp", ":allow,RELAYCLIENT=\"\"\n", "lets every host"),
        ("note", "etc/qmail/control/tcp.smtp", "10.:allow,FOO=\"/x\"\n", "FOO says nothing to qmail-smtpd"),
        ("error", "etc/qmail/control/badmailfrom", "@good.test\n(x\n", "the line `(x` has a `(` without `)`"),
        ("error", "etc/qmail/control/badhelo", "a**+{\n", "the line `a**+{` has no numbers"),
        ("error", "etc/qmail/control/smtpplugins", "[rpct]\n/x\n", "is no section"),
        ("error", "etc/qmail/control/validrcptto.cdb", "joe@x\n", "is no cdb"),
        ("warning", "etc/qmail/control/rejectnullsenders", "1\n", "keeps bounces"),
        ("error", "etc/qmail/control/barelf", "allow\n", "`reject` or `normalize`"),
        ("error", "etc/qmail/control/smtproutes", "example.org\n", "no colon"),
        ("error", "etc/qmail/control/smtproutes", "a.test:r|joe|xyzzy\n", "has passwords in it, and others"),
        ("error", "etc/qmail/control/smtproutes", "a.test:r:587 joe xyzzy\n", "has passwords in it, and others"),
        ("error", "etc/qmail/control/authsources", "accounts\nacounts\n", "line 2: `acounts`"),
        ("warning", "etc/qmail/control/authsources", "# none\n", "names no source"),
        ("error", "etc/qmail/control/authsenders", "@a.test:r|joe|xyzzy\n", "has passwords in it, and others"),
        ("error", "etc/qmail/control/authsenders", "@a.test|joe|xyzzy\n", "`@a.test` has no colon"),
        ("warning", "etc/qmail/control/authsenders", "@a.test:r:smtp|joe|xyzzy\n", "`@a.test:r:smtp`: the port"),
        ("error", "etc/qmail/control/tlspolicy", "a.test:verfiy\n", "line 1: `a.test:verfiy` has no policy"),
        (
            "error",
            "etc/qmail/control/tlsclients",
            "mx.b.test\nb.test joe\n",
            "line 2: `b.test joe` names `joe`, which is no account",
        ),
        ("warning", "etc/qmail/control/tlsclients", "mx.b.test\n", "only under an authority"),
        ("warning", "etc/qmail/control/tlsclients", "mx.b.test joe@b.test\n", "joe@b.test is in no virtual domain"),
        (
            "error",
            "etc/qmail/control/clientca.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "no certificate",
        ),
        ("error", "etc/qmail/control/tlscafile", "/nonexistent/ca.pem\n", "/nonexistent/ca.pem does not exist"),
        ("error", "etc/qmail/control/tlscafile", "control/me\n", "has no certificate"),
        ("error", "etc/qmail/control/resolvers", "localhost\n", "write ADDRESS:PORT"),
        ("error", "etc/qmail/control/resolvers", "\n", "1 to 8 lines"),
        ("error", "etc/qmail/control/outgoingip", "192.0.2.300\n", "no IP address"),
        ("error", "etc/qmail/control/moreipme", "here\n", "line 1"),
        ("error", "etc/qmail/control/bouncehost", "two words\n", "not a domain"),
        ("warning", "etc/qmail/control/smtproutes", "a.test:relay:smtp\n", "25 is used"),
        ("warning", "etc/qmail/control/locals", "mail.example.org\nnew.example\n", "not in rcpthosts"),
        ("warning", "etc/qmail/control/localz", "x\n", "put what it says into locals"),
        ("note", "etc/qmail/control/remarks", "x\n", "no program of this version reads it"),
        ("error", "etc/qmail/users/domains", "v.example:5:6\n", "line 1"),
        ("error", "etc/qmail/users/assign", "=a:a:1:1:/a:::\n", "single dot"),
        ("error", "etc/qmail/users/assign", "=a:a:1:1:/a:::\n=b:b:x:1:/b:::\n=c:c:y:1:/c:::\n.\n", "line 3"),
        ("error", "etc/qmail/users/assign", "=a:a:0:1:/a:::\n.\n", "uid or gid 0"),
        ("error", "etc/qmail/users/assign", "=a:a:1001:1:a:::\n.\n", "absolute path"),
    ];
    for (level, file, text, problem) in cases {
        let instance = Instance::new();
        fs::write(instance.at(file), text).unwrap();
        let found = all(&instance);
        assert!(!found.iter().any(|finding| finding.2.contains("xyzzy")), "a password is shown: {found:?}");
        let path = instance.at(file).display().to_string();
        let hit = |finding: &&(String, String, String)| finding.0 == level && finding.1 == path && finding.2.contains(problem);
        assert!(found.iter().find(hit).is_some(), "{file} = {text:?}: {found:?}");
    }
    check_of_places(&all);
    check_of_authsources(&all);
    let fine = Instance::new();
    fine.must(&["domain", "add", "v.example"]);
    for (name, text) in [
        ("resolvers", "127.0.0.1:9\n[::1]:9\n127.0.0.2:9\n"),
        ("concurrencypop3", "10\n"),
        ("concurrencypop3ip", "10\n"),
        ("timeoutpop3", "10\n"),
        ("smtproutes", "a.test:relay:26\n:[::1]:26\nb.test:\nc.test:[::1]\nd.test::587\n"),
        ("tlspolicy", "a.test:verify mx.a.test\n:may\n"),
        ("sitelimits", "a.test:3\n.a.test:3:60\nb.test::90\n:20\nc.test:\n"),
        ("taps", "F:^.*@a\\.test$:x@a.test\nT:*@a.test:x@a.test\n.*@b.test:x@a.test\n"),
        ("locals", "mail.example.org\nv.example\n"),
    ] {
        let path = fine.at("etc/qmail/control").join(name);
        fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        let found: Vec<_> = all(&fine).into_iter().filter(|finding| finding.1 == path).collect();
        let is_known = |said: &str| said.contains("in users/domains too") || said.contains("does not answer");
        assert!(found.iter().all(|finding| is_known(&finding.2)), "{name}: {found:?}");
    }
}

fn check_of_authsources(all: &impl Fn(&Instance) -> Vec<(String, String, String)>) {
    let ldap = "url ldaps://ldap.example.org\nbase dc=x\n";
    for (level, file, files, problem) in [
        ("error", "authsources", &[("authsources", "accounts\nldpa\n")][..], "`ldpa`: no such source"),
        ("warning", "authsources", &[("authsources", "oauth\n"), ("oauth", "introspection https://a/\n")], "only tokens"),
        ("error", "authmechanisms", &[("authmechanisms", "XOAUTH2\n")], "no line `oauth`"),
        ("warning", "authmechanisms", &[("authsources", "accounts\noauth\n")], "neither OAUTHBEARER nor XOAUTH2"),
        ("error", "ldap", &[("authsources", "ldap\n")], "missing"),
        ("error", "oauth", &[("authsources", "accounts\noauth\n")], "missing"),
        ("warning", "ldap", &[("ldap", ldap)], "is not used"),
        ("warning", "authmechanisms", &[("authsources", "ldap\n"), ("ldap", ldap)], "only `accounts` can judge"),
        ("error", "ldap", &[("authsources", "ldap\n"), ("ldap", "url http://a\nbase x\n")], "an `url` is"),
        ("error", "ldap", &[("authsources", "ldap\n"), ("ldap", &format!("{ldap}filter (mail=%n\n"))], "`)` is missing"),
        ("error", "ldap", &[("authsources", "ldap\n"), ("ldap", &format!("{ldap}filter (cn=*)\n"))], "none of %n"),
        (
            "warning",
            "ldap",
            &[("authsources", "ldap\n"), ("ldap", "url ldap://192.0.2.1\nstarttls no\nbase x\n")],
            "192.0.2.1:389 without TLS",
        ),
        (
            "error",
            "open.secret",
            &[("authsources", "ldap\n"), ("open.secret", "x"), ("ldap", &format!("{ldap}binddn x\nbindpwfile open.secret\n"))],
            "secret",
        ),
        ("error", "oauth", &[("authsources", "accounts\noauth\n"), ("oauth", "introspection http://a.example/\n")], "https://"),
        ("warning", "oauth", &[("authsources", "accounts\noauth\n"), ("oauth", "userinfo https://a.example/\n")], "any token"),
    ] {
        let instance = Instance::new();
        let path = |name: &str| instance.at("etc/qmail/control").join(name);
        files.iter().for_each(|(name, text)| fs::write(path(name), text).unwrap());
        let (subject, found) = (path(file).display().to_string(), all(&instance));
        let hit = |finding: &&(String, String, String)| finding.0 == level && finding.1 == subject && finding.2.contains(problem);
        assert!(found.iter().find(hit).is_some(), "{file} of {files:?}: {found:?}");
        let others =
            |finding: &&(String, String, String)| finding.1 == subject && finding.2.contains("no program of this version");
        assert_eq!(found.iter().find(others), None);
    }
}

#[test]
fn check_looks_at_what_sources_of_logins_need() {
    let instance = Instance::new();
    let sources = "accounts\ncheckpassword /no/such/program\nshadow\npam\n";
    fs::write(instance.at("etc/qmail/control/authsources"), sources).unwrap();
    let has = |subject: &str, problem: &str| {
        let report: Value = serde_json::from_slice(&instance.run(&["check", "--json"], "").stdout).unwrap();
        let of = |finding: &Value| {
            finding["subject"].as_str().unwrap().ends_with(subject) && finding["problem"].as_str().unwrap().contains(problem)
        };
        report["findings"].as_array().unwrap().iter().any(of)
    };
    assert!(has("/no/such/program", "does not exist"));
    assert!(has("etc/shadow", "does not exist"));
    assert!(has("etc/pam.d/qmail-rs", "does not exist"));
    assert!(has("control/authmechanisms", "only `accounts` can judge"));
    fs::write(instance.at("etc/qmail/control/authmechanisms"), "PLAIN\nLOGIN\n").unwrap();
    fs::write(instance.at("etc/shadow"), "").unwrap();
    assert!(!has("control/authmechanisms", "") && !has("etc/shadow", ""));
    fs::set_permissions(instance.at("etc/shadow"), fs::Permissions::from_mode(0o666)).unwrap();
    assert!(has("etc/shadow", "others may write"));
}

#[test]
fn a_file_with_passwords_is_for_qmail_send_alone() {
    let instance = Instance::new();
    let path = instance.at("etc/qmail/control/smtproutes");
    fs::write(&path, "a.test:r:587|user|a:b\n").unwrap();
    let problems = |mode: u32| {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let report: Value = serde_json::from_slice(&instance.run(&["check", "--json"], "").stdout).unwrap();
        let ours = |finding: &&Value| finding["subject"] == path.display().to_string();
        let findings = report["findings"].as_array().unwrap().iter().filter(ours).cloned().collect::<Vec<_>>();
        let said = |finding: &Value| format!("{}; {}", finding["problem"].as_str().unwrap(), finding["cure"].as_str().unwrap());
        findings.iter().map(said).collect::<String>()
    };
    assert!(problems(0o640).contains("others than its owner"));
    let ids = fs::read_to_string(instance.at("etc/qmail/ids")).unwrap_or_default();
    let uid = ids.lines().find_map(|line| line.strip_prefix("qmailq ")?.split(' ').next()?.parse().ok());
    if let Some(uid) = uid {
        assert!(problems(0o600).contains(&format!("qmail-send cannot read it; chown {uid}")), "{}", problems(0o600));
        std::os::unix::fs::chown(&path, Some(uid), None).unwrap();
    }
    assert_eq!(problems(0o600), "");
}

fn check_of_places(all: &impl Fn(&Instance) -> Vec<(String, String, String)>) {
    type Break = fn(&Path);
    let cases: [(&str, Break, &str, &str); 6] = [
        ("error", |root| fs::remove_dir_all(root.join("var/lib/qmail")).unwrap(), "var/lib/qmail", "run qmail setup"),
        (
            "error",
            |root| fs::set_permissions(root.join("var/spool/qmail"), fs::Permissions::from_mode(0o755)).unwrap(),
            "var/spool/qmail",
            "mode 755",
        ),
        (
            "error",
            |root| fs::set_permissions(root.join("etc/qmail/users"), fs::Permissions::from_mode(0o777)).unwrap(),
            "etc/qmail/users",
            "mode 777",
        ),
        (
            "error",
            |root| {
                fs::write(root.join("etc/qmail/users/domains"), "gone.example:61000:61000:/nonexistent\n").unwrap();
            },
            "nonexistent",
            "for the mail of gone.example",
        ),
        (
            "error",
            |root| {
                let base = root.join("var/mail").display().to_string();
                fs::write(root.join("etc/qmail/users/domains"), format!("mail.example.org:61000:61000:{base}\n")).unwrap();
            },
            "etc/qmail/control/locals",
            "in users/domains too",
        ),
        (
            "warning",
            |root| fs::remove_file(root.join("etc/qmail/alias/.qmail-postmaster")).unwrap(),
            ".qmail-postmaster",
            "every mail host must take it",
        ),
    ];
    for (level, damage, subject, problem) in cases {
        let instance = Instance::new();
        damage(instance.0.path());
        let found = all(&instance);
        let hit = |finding: &&(String, String, String)| {
            finding.0 == level && finding.1.ends_with(subject) && finding.2.contains(problem)
        };
        assert!(found.iter().find(hit).is_some(), "{subject}: {found:?}");
    }
}

#[test]
fn the_command_line_explains_itself() {
    let instance = Instance::empty();
    for args in [&["help"][..], &["--help"], &["--version"], &["help", "queue"], &["queue", "--help"]] {
        assert!(!instance.must(args).is_empty(), "{args:?}");
    }
    assert_eq!(instance.fails(&["nonsense"]).0, 100);
    assert_eq!(instance.fails(&[]).0, 100);
}

/// Notes that a test needs root and this run is not root's: `cargo xtask test` counts these.
fn skip(test: &str) {
    println!("skipped: {test}: needs root");
    if let Some(list) = std::env::var_os("QMAIL_SKIPPED") {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(list).unwrap();
        writeln!(file, "{test}: needs root").unwrap();
    }
}

/// What `qmail check` says of a path below etc/qmail/tls.
fn said_of(instance: &Instance, path: &str) -> Vec<String> {
    let output = instance.run(&["check", "--json"], "");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let subject = instance.at("etc/qmail/tls").join(path).display().to_string();
    let subject = subject.trim_end_matches('/');
    let all = report["findings"].as_array().unwrap().iter().filter(|finding| finding["file"] == subject);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    all.map(|finding| ["severity", "problem", "cure"].map(|key| text(&finding[key])).join("; ").replacen("; ", ": ", 1)).collect()
}

/// A certificate for a host that ends so many days from now.
fn put_certificate(instance: &Instance, host: &str, days: i64) {
    let dir = instance.at("etc/qmail/tls").join(host);
    fs::create_dir_all(&dir).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new([host.to_owned()]).unwrap();
    let unix_s = i64::try_from(sys::clock::unix_s()).unwrap() + days * 86_400;
    let day = wire::civil::Civil::from_unix(u64::try_from(unix_s).unwrap());
    params.not_after = rcgen::date_time_ymd(i32::try_from(day.year).unwrap(), day.month, day.day);
    fs::write(dir.join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let file = dir.join("key.pem");
    fs::write(&file, key.serialize_pem()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let old = fs::metadata(instance.at("etc/qmail/tls/mail.example.org/key.pem")).unwrap();
    std::os::unix::fs::chown(&file, Some(old.uid()), Some(old.gid())).unwrap();
}

#[test]
fn certificates_are_made_listed_and_judged() {
    let instance = Instance::new();
    let list = || instance.json(&["cert", "list"]).as_array().unwrap().clone();
    let [first] = &list()[..] else { panic!("{:?}", list()) };
    assert_eq!((&first["name"], &first["hosts"]), (&json!("mail.example.org"), &json!(["mail.example.org"])));
    assert_eq!((&first["self_signed"], &first["issuer"]), (&json!(true), &json!("CN=mail.example.org")));
    assert!(first["days_left"].as_i64().unwrap() > 3600 && first["problem"].is_null(), "{first}");
    assert_eq!(said_of(&instance, "mail.example.org"), Vec::<String>::new());
    // One for another host, once.
    instance.must(&["cert", "self-signed", "pop.example.org"]);
    let key = fs::read(instance.at("etc/qmail/tls/pop.example.org/key.pem")).unwrap();
    assert_eq!(instance.fails(&["cert", "self-signed", "pop.example.org"]).0, 100);
    assert_eq!(fs::read(instance.at("etc/qmail/tls/pop.example.org/key.pem")).unwrap(), key);
    for bad in ["no name", "../x", "[192.0.2.1]", ""] {
        assert_eq!(instance.fails(&["cert", "self-signed", bad]).0, 100, "{bad}");
    }
    assert_eq!(list().len(), 2);
    // What ends, and what has ended; a day is a day in any time zone.
    for (host, days) in [("late.test", 40), ("soon.test", 20), ("over.test", -3)] {
        put_certificate(&instance, host, days);
    }
    assert_eq!(said_of(&instance, "late.test"), Vec::<String>::new());
    assert!(said_of(&instance, "soon.test")[0].starts_with("warning: the certificate expires in "));
    assert!(said_of(&instance, "over.test")[0].starts_with("error: the certificate has expired"));
    // What is wrong with a key.
    for (host, cure) in [("late.test", "is not the key of"), ("soon.test", "can be read by others")] {
        let file = instance.at("etc/qmail/tls").join(host).join("key.pem");
        match host {
            "late.test" => fs::write(&file, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap(),
            _ => fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap(),
        }
        assert!(said_of(&instance, host).iter().any(|text| text.starts_with("error: ") && text.contains(cure)), "{host}");
    }
    if is_root() {
        std::os::unix::fs::chown(instance.at("etc/qmail/tls/mail.example.org/key.pem"), Some(0), Some(0)).unwrap();
        assert!(said_of(&instance, "mail.example.org/key.pem")[0].contains("(chown "));
    }
    // No private key is ever printed.
    let printed =
        [instance.run(&["cert", "list"], ""), instance.run(&["check"], ""), instance.run(&["cert", "list", "--json"], "")];
    for output in &printed {
        let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
        assert!(!text.contains("PRIVATE") && !text.contains(String::from_utf8_lossy(&key).lines().nth(1).unwrap()));
    }
    fs::remove_dir_all(instance.at("etc/qmail/tls/mail.example.org")).unwrap();
    assert!(said_of(&instance, "")[0].starts_with("warning: no certificate is for this host"), "{:?}", said_of(&instance, ""));
    fs::remove_dir_all(instance.at("etc/qmail/tls")).unwrap();
    fs::create_dir(instance.at("etc/qmail/tls")).unwrap();
    let none = said_of(&instance, "");
    assert!(none[0].starts_with("error: holds no certificate") && none[0].contains("qmail cert self-signed"), "{none:?}");
}

#[test]
fn setup_completes_the_ids_of_an_older_version() {
    if !is_root() {
        // Who is every role lacks none.
        return;
    }
    let instance = Instance::new();
    let file = instance.at("etc/qmail/ids");
    let whole = fs::read_to_string(&file).unwrap();
    let line = whole.lines().find(|line| line.starts_with("qmailk ")).unwrap();
    let old = format!("# kept\n{}", whole.replace(&format!("{line}\n"), ""));
    fs::write(&file, &old).unwrap();
    assert!(instance.run(&["check"], "").stdout.windows(6).any(|part| part == b"qmailk"));
    instance.must(&["setup", "--me", "mail.example.org"]);
    let completed = fs::read_to_string(&file).unwrap();
    let added = completed.strip_prefix(&old).expect("what was there stays");
    let group = line.rsplit(' ').next().unwrap();
    assert!(added.starts_with("qmailk ") && added.ends_with(&format!(" {group}\n")) && added.lines().count() == 1, "{added}");
    instance.must(&["setup", "--me", "mail.example.org"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), completed);
}

/// Plays qmail-auth: every request it gets is done, and noted.
fn noted(instance: &Instance) -> std::sync::Arc<std::sync::Mutex<Vec<AccountRequest>>> {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let note = std::sync::Arc::clone(&seen);
    instance.serve("admin/auth.sock", move |request: AccountRequest| {
        let answer = match &request {
            AccountRequest::UserShow { address } => AccountAnswer::Accounts { rows: vec![account(address)], last: true },
            AccountRequest::DomainList { domain, .. } => AccountAnswer::Domains { rows: vec![domain_row(domain)], last: true },
            AccountRequest::AliasList { .. } => {
                let alias = |name: &str| AliasRow { address: address(name), targets: vec![address("t@x")] };
                AccountAnswer::Aliases { rows: vec![alias("@v.example"), alias("info@v.example")], last: true }
            }
            _ => AccountAnswer::Ok {},
        };
        note.lock().unwrap().push(request);
        vec![answer.encode()]
    });
    seen
}

fn account(of: &Address) -> AccountRow {
    AccountRow {
        address: of.clone(),
        hash: None,
        quota: Some(Quota { bytes: 5, messages: 0 }),
        suspended: false,
        refuses_mail: false,
        forward: vec![address("a@b")],
        keeps_copy: true,
        vacation: None,
        per_hour: Some(0),
        per_day: None,
        created_s: 7,
    }
}

fn domain_row(of: &Option<wire::Domain>) -> DomainRow {
    let domain = |text: &str| wire::Domain::new(text.as_bytes()).unwrap();
    DomainRow {
        domain: of.clone().unwrap_or_else(|| domain("alias.example")),
        alias_of: of.is_none().then(|| domain("v.example")),
        default_quota: Quota { bytes: 10, messages: 0 },
        quota_bytes: 0,
        users_max: 3,
        administrators: vec![address("boss@v.example")],
    }
}

#[test]
fn what_is_set_of_users_is_said_to_qmail_auth() {
    let instance = Instance::new();
    let seen = noted(&instance);
    let ann = || address("ann@v.example");
    let text = |args: &[&str], input: &str| {
        let output = instance.run(args, input);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    text(&["user", "add", "ann@v.example", "--password-hash-stdin"], "$6$a$b\n");
    text(&["user", "quota", "ann@v.example", "1M", "--messages", "5"], "");
    text(&["user", "suspend", "ann@v.example", "--refuse-mail"], "");
    text(&["user", "resume", "ann@v.example"], "");
    text(&["user", "forward", "ann@v.example", "a@b", "c@d", "--keep-copy"], "");
    text(&["user", "forward", "ann@v.example", "--off"], "");
    text(&["user", "vacation", "ann@v.example", "--text-stdin", "--until", "2026-12-24", "--subject", "Away"], "Back\r\nsoon\n");
    text(&["user", "vacation", "ann@v.example", "--off"], "");
    text(&["user", "limits", "ann@v.example", "--per-day", "9"], "");
    let vacation = Vacation { subject: "Away".into(), text: "Back\nsoon\n".into(), from_s: 0, until_s: 1_798_070_400, days: 7 };
    let expected = [
        AccountRequest::UserAddHash { address: ann(), hash: "$6$a$b".into() },
        AccountRequest::UserQuota { address: ann(), bytes: 1 << 20, messages: 5 },
        AccountRequest::UserSuspend { address: ann(), suspended: true, refuses_mail: true },
        AccountRequest::UserSuspend { address: ann(), suspended: false, refuses_mail: false },
        AccountRequest::UserForward { address: ann(), targets: vec![address("a@b"), address("c@d")], keeps_copy: true },
        AccountRequest::UserForward { address: ann(), targets: vec![], keeps_copy: false },
        AccountRequest::UserVacation { address: ann(), vacation: Some(vacation) },
        AccountRequest::UserVacation { address: ann(), vacation: None },
        AccountRequest::UserShow { address: ann() },
        AccountRequest::UserLimits { address: ann(), per_hour: Some(0), per_day: Some(9) },
    ];
    assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), expected);
    let shown = instance.json(&["user", "show", "ann@v.example"]);
    assert_eq!((&shown["quota"], &shown["quota_messages"], &shown["per_hour"]), (&json!(5), &Value::Null, &json!(0)));
    assert!(instance.must(&["user", "show", "ann@v.example"]).contains("forwarded to"));
    let late = ["user", "vacation", "ann@v.example", "--text-stdin", "--until", "2026-02-30"];
    assert_eq!(instance.fails(&late).0, 100);
    let long = instance.run(&["user", "vacation", "ann@v.example", "--text-stdin"], &"x".repeat(4097));
    assert_eq!(long.status.code(), Some(100));
}

#[test]
fn what_is_set_of_domains_is_said_to_qmail_auth_and_an_alias_domain_has_its_targets_place() {
    let instance = Instance::new();
    let seen = noted(&instance);
    let v = || wire::Domain::new(b"v.example").unwrap();
    instance.must(&["domain", "add", "v.example"]);
    instance.must(&["domain", "add", "alias.example", "--alias-of", "V.example"]);
    let list = instance.json(&["domain", "list"]);
    assert_eq!(list[0]["base"], list[1]["base"], "{list}");
    assert!(!instance.at("var/mail/alias.example").exists());
    instance.must(&["domain", "set", "v.example", "--quota", "5G", "--users-max", "none", "--catch-all", "c@x"]);
    instance.must(&["domain", "set", "v.example", "--catch-all", "none"]);
    instance.must(&["domain", "admin", "add", "v.example", "boss@v.example"]);
    let none = qmail::domain_settings::no_change;
    let alias = wire::Domain::new(b"alias.example").unwrap();
    let catch_all = address("@v.example");
    let expected = [
        AccountRequest::DomainChange { domain: alias, change: DomainChange { alias_of: Some(v()), ..none() } },
        AccountRequest::DomainChange {
            domain: v(),
            change: DomainChange { quota_bytes: Some(5 << 30), users_max: Some(0), ..none() },
        },
        AccountRequest::AliasAdd { address: catch_all.clone(), targets: vec![address("c@x")] },
        AccountRequest::AliasList { domain: Some(v()), after: "".into() },
        AccountRequest::AliasRemove { address: catch_all },
        AccountRequest::DomainChange {
            domain: v(),
            change: DomainChange { administrator_add: Some(address("boss@v.example")), ..none() },
        },
    ];
    assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), expected);
    let shown = instance.json(&["domain", "show", "v.example"]);
    assert_eq!(
        (&shown["aliases"], &shown["catch_all"], &shown["default_quota"], &shown["quota"], &shown["administrators"]),
        (&json!(["alias.example"]), &json!(["t@x"]), &json!(10), &Value::Null, &json!(["boss@v.example"]))
    );
    let (code, text) = instance.fails(&["domain", "remove", "v.example"]);
    assert!(code == 100 && text.contains("alias.example is an alias"), "{text}");
    for args in [["domain", "add", "w.example", "--alias-of", "x.example"], ["domain", "set", "x.example", "--users-max", "3"]] {
        assert_eq!(instance.fails(&args).0, 100);
    }
    assert_eq!(instance.json(&["domain", "admin", "list", "v.example"]), json!([{ "address": "boss@v.example" }]));
}
