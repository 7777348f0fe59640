//! The worker and the one-shot face: the real binary on a socketpair, asked as qmail-lspawn asks.
#![allow(clippy::unwrap_used)]

use ipc::field::Verdict;
use ipc::lspawn::{Existence, Room};
use ipc::mailbox::Settings;
use ipc::queue::{Answer, Item};
use ipc::worker::{Recipient, Report, Request};
use ipc::{DATAGRAM_LEN_MAX, Message};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use sys::spawn::{Child, Ended, Spawn};
use sys::{Received, Seqpacket};
use wire::Address;

const BODY: &[u8] = b"Subject: hi\n\nbody\n";

/// An instance's root with a home `homes/joe` in it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("homes/joe")).unwrap();
        std::fs::create_dir_all(dir.path().join("run/qmail")).unwrap();
        for sub in ["", "homes", "homes/joe"] {
            std::fs::set_permissions(dir.path().join(sub), PermissionsExt::from_mode(0o755)).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn home(&self) -> PathBuf {
        self.path("homes/joe")
    }

    fn qmail(&self, name: &str, text: &str) {
        let path = self.home().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    }

    fn maildir(&self, name: &str) -> PathBuf {
        for sub in ["tmp", "new", "cur"] {
            std::fs::create_dir_all(self.home().join(name).join(sub)).unwrap();
        }
        self.home().join(name)
    }

    fn recipient(&self, dash: &str, ext: &str) -> Recipient {
        self.recipient_at(&self.home(), dash, ext)
    }

    fn recipient_at(&self, home: &Path, dash: &str, ext: &str) -> Recipient {
        Recipient {
            user: "joe".into(),
            home: home.as_os_str().as_bytes().into(),
            local: format!("joe{dash}{ext}").as_str().into(),
            dash: dash.into(),
            ext: ext.into(),
            domain: "example.org".into(),
        }
    }
}

struct Worker {
    child: Child,
    work: Seqpacket,
    next: u64,
}

impl Worker {
    fn start(place: &Place, args: &[&str]) -> Self {
        let (work, theirs) = Seqpacket::pair().unwrap();
        let stderr = std::io::stderr();
        let mut spawn = Spawn::new(Path::new(env!("CARGO_BIN_EXE_qmail-local"))).stderr(stderr.as_fd());
        spawn = spawn.env("QMAIL_ROOT", place.dir.path()).env("PATH", "/usr/bin:/bin").fd("work", theirs.as_fd());
        for arg in args {
            spawn = spawn.arg(arg);
        }
        let child = spawn.start().unwrap();
        drop(theirs);
        work.set_deadline(Duration::from_secs(40)).unwrap();
        Self { child, work, next: 0 }
    }

    fn system(place: &Place) -> Self {
        Self::start(place, &["--worker"])
    }

    fn domain(place: &Place) -> Self {
        Self::start(place, &["--worker", "--base", place.path("homes").to_str().unwrap()])
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn send(&self, request: &Request, body: &[u8]) {
        let body = sys::memfd::sealed(body).unwrap();
        self.work.send_with_fd(&request.encode(), body.as_fd()).unwrap();
    }

    fn report(&self) -> Report {
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        match self.work.recv(&mut buf).unwrap() {
            Received::Datagram(len, _) => Report::decode(&buf[..len]).unwrap(),
            Received::End => panic!("the worker is gone"),
        }
    }

    fn deliver(&mut self, recipient: Recipient, body: &[u8]) -> (Verdict, String) {
        self.deliver_as(&Settings::default(), recipient, body)
    }

    /// As the account says.
    fn deliver_as(&mut self, settings: &Settings, recipient: Recipient, body: &[u8]) -> (Verdict, String) {
        let number = self.number();
        let sender = Address::new(b"s@er").unwrap();
        let (default_delivery, settings) = ("./Maildir/".into(), settings.to_bytes());
        self.send(
            &Request::Deliver { number, sender, recipient, default_delivery, settings, inherits: "".into(), lmtp: None },
            body,
        );
        match self.report() {
            Report::Done { number: answered, verdict, text } if answered == number => {
                (verdict, String::from_utf8(text.0).unwrap())
            }
            Report::NeedsExec { number: answered } if answered == number => (Verdict::Deferral, "needs exec".to_owned()),
            other => panic!("{other:?}"),
        }
    }

    fn exists(&mut self, recipient: Recipient) -> Existence {
        let number = self.number();
        let request = Request::Exists { number, recipient, default_delivery: "./Maildir/".into() };
        self.work.send(&request.encode()).unwrap();
        match self.report() {
            Report::Exists { number: answered, answer } if answered == number => answer,
            other => panic!("{other:?}"),
        }
    }

    fn end(self) {
        drop(self.work);
        assert_eq!(self.child.wait(), Ended::Code(0));
    }
}

fn letters(dir: &Path) -> Vec<String> {
    let mut letters: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    letters.sort();
    letters
}

fn letter() -> String {
    format!("Return-Path: <s@er>\nDelivered-To: joe@example.org\n{}", std::str::from_utf8(BODY).unwrap())
}

fn done(text: &str) -> (Verdict, String) {
    (Verdict::Success, text.to_owned())
}

/// A qmail-send for one message: accepts, and gives what it got.
fn queue(place: &Place, answer: Answer) -> std::thread::JoinHandle<(String, Vec<String>, Vec<u8>)> {
    let dir = std::fs::File::open(place.path("run/qmail")).unwrap();
    let listener = sys::seqpacket::listen(dir.as_fd(), "inject.sock").unwrap();
    std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(20);
        let connection = loop {
            match sys::seqpacket::accept(listener.as_fd()) {
                Ok(connection) => break connection,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(e) => panic!("{e}"),
            }
        };
        connection.set_nonblocking(false).unwrap();
        connection.set_deadline(Duration::from_secs(20)).unwrap();
        let (mut from, mut to, mut body, mut committed) = (String::new(), Vec::new(), Vec::new(), false);
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        while !committed {
            let Received::Datagram(len, _) = connection.recv(&mut buf).unwrap() else { panic!("abandoned") };
            ipc::queue::items(&buf[..len], |item| match item {
                Item::Begin { sender, flags } => from = format!("{sender} {flags}"),
                Item::Recipient(address) => to.push(address.to_string()),
                Item::Data(data) => body.extend_from_slice(data),
                Item::Commit => committed = true,
                other => to.push(format!("{other:?}")),
            })
            .unwrap();
        }
        connection.send(&answer.encode()).unwrap();
        (from, to, body)
    })
}

#[test]
fn a_system_users_worker_delivers_one_after_another() {
    let place = Place::new();
    let mut worker = Worker::system(&place);
    let (verdict, text) = worker.deliver(place.recipient("", ""), BODY);
    assert_eq!((verdict, text.as_str()), (Verdict::Deferral, "Unable to chdir to maildir. (#4.2.1)\n"));
    let maildir = place.maildir("Maildir");
    assert_eq!(worker.deliver(place.recipient("", ""), BODY), done("did 1+0+0\n"));
    place.qmail(".qmail-x", "./box\n./Maildir/\n");
    assert_eq!(worker.deliver(place.recipient("-", "x"), BODY), done("did 2+0+0\n"));
    assert_eq!(letters(&maildir.join("new")).len(), 2);
    assert!(letters(&maildir.join("new")).contains(&letter()));
    assert!(std::fs::read_to_string(place.home().join("box")).unwrap().contains("Delivered-To: joe-x@example.org\n"));
    let failed = worker.deliver(place.recipient("-", "none"), BODY);
    assert_eq!(failed, (Verdict::Failure, "Sorry, no mailbox here by that name. (#5.1.1)\n".to_owned()));
    let looping = worker.deliver(place.recipient("", ""), letter().as_bytes());
    assert!(looping.0 == Verdict::Failure && looping.1.ends_with("(#5.4.6)\n"));
    std::fs::set_permissions(place.home(), PermissionsExt::from_mode(0o1755)).unwrap();
    assert!(worker.deliver(place.recipient("", ""), BODY).1.starts_with("Home directory is sticky"));
    worker.end();
}

#[test]
fn requests_that_come_together_are_all_answered_and_all_there() {
    let place = Place::new();
    let maildir = place.maildir("Maildir");
    place.qmail(".qmail-box", "./box\n");
    let worker = Worker::system(&place);
    let count: u64 = 60;
    for number in 0..count {
        let ext = if number % 5 == 0 { "box" } else { "" };
        let recipient = place.recipient(if ext.is_empty() { "" } else { "-" }, ext);
        let body = format!("N: {number}\n\n{}", "x".repeat(usize::try_from(number).unwrap() * 3000));
        let sender = Address::null();
        worker.send(
            &Request::Deliver {
                number,
                sender,
                recipient,
                default_delivery: "./Maildir/".into(),
                settings: "".into(),
                inherits: "".into(),
                lmtp: None,
            },
            body.as_bytes(),
        );
    }
    let mut answered: Vec<u64> = (0..count)
        .map(|_| match worker.report() {
            Report::Done { number, verdict: Verdict::Success, .. } => number,
            other => panic!("{other:?}"),
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..count).collect::<Vec<_>>());
    assert_eq!(letters(&maildir.join("new")).len(), 48);
    assert_eq!(std::fs::read_to_string(place.home().join("box")).unwrap().matches("\nN: ").count(), 12);
    assert!(letters(&maildir.join("tmp")).is_empty());
    worker.end();
}

#[test]
fn a_program_line_is_left_to_the_one_shot_worker_and_nothing_is_delivered() {
    let place = Place::new();
    place.qmail(".qmail", "./box\n|touch ran\n");
    let mut worker = Worker::system(&place);
    assert_eq!(worker.deliver(place.recipient("", ""), BODY).1, "needs exec");
    assert!(!place.home().join("box").exists() && !place.home().join("ran").exists());
    worker.end();
}

#[test]
fn the_one_shot_worker_runs_programs_and_reports_what_they_print() {
    let place = Place::new();
    place.qmail(".qmail", "./box\n|cat >got; pwd\n|echo \"$RPLINE\"; echo no >&2; exit 100\n./never\n");
    let mut worker = Worker::start(&place, &["--once"]);
    let (verdict, text) = worker.deliver(place.recipient("", ""), BODY);
    assert_eq!((verdict, text), (Verdict::Failure, format!("{}\nReturn-Path: <s@er>\n\nno\n", place.home().display())));
    worker.end();
    assert_eq!(std::fs::read(place.home().join("got")).unwrap(), BODY);
    assert!(place.home().join("box").exists() && !place.home().join("never").exists());
    place.qmail(".qmail", "|echo fine\n");
    let mut worker = Worker::start(&place, &["--once"]);
    assert_eq!(worker.deliver(place.recipient("", ""), BODY), done("fine\ndid 0+0+1\n"));
    worker.end();
    let mut worker = Worker::start(&place, &["--once"]);
    place.qmail(".qmail", "|yes | head -c 100000; exit 111\n");
    let (verdict, text) = worker.deliver(place.recipient("", ""), BODY);
    assert!(verdict == Verdict::Deferral && text.len() == 3000 && text.ends_with("\nError report too long, sorry.\n"), "{text}");
    worker.end();
}

/// Else they would go on beside the next attempt.
#[test]
fn the_programs_of_a_one_shot_worker_end_with_whoever_asked_for_them() {
    let place = Place::new();
    place.qmail(".qmail", "|{ sleep 1000 & }; echo $! >part; echo $$ >>part; mv part pids; sleep 1000\n");
    let mut worker = Worker::start(&place, &["--once"]);
    let (number, sender, recipient) = (worker.number(), Address::null(), place.recipient("", ""));
    worker.send(
        &Request::Deliver {
            number,
            sender,
            recipient,
            default_delivery: "".into(),
            settings: "".into(),
            inherits: "".into(),
            lmtp: None,
        },
        BODY,
    );
    let until = Instant::now() + Duration::from_secs(60);
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        while !done() {
            assert!(Instant::now() < until, "waited for {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let file = place.home().join("pids");
    wait("the programs", &|| file.exists());
    let pids = std::fs::read_to_string(file).unwrap();
    let is_alive = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    assert!(pids.lines().count() == 2 && pids.lines().all(is_alive), "{pids}");
    drop(worker.work);
    assert_eq!(worker.child.wait(), Ended::Signal(9));
    wait("the end of the programs", &|| !pids.lines().any(is_alive));
}

#[test]
fn programs_of_several_deliveries_of_one_message_each_read_it_from_the_start() {
    let place = Place::new();
    place.qmail(".qmail", "|read line; sleep 0.3; cat >\"got$$\"\n");
    let body = sys::memfd::sealed(BODY).unwrap();
    let workers: Vec<Worker> = (0..3)
        .map(|number| {
            let worker = Worker::start(&place, &["--once"]);
            let sender = Address::null();
            let recipient = place.recipient("", "");
            let request = Request::Deliver {
                number,
                sender,
                recipient,
                default_delivery: "".into(),
                settings: "".into(),
                inherits: "".into(),
                lmtp: None,
            };
            worker.work.send_with_fd(&request.encode(), body.as_fd()).unwrap();
            worker
        })
        .collect();
    for worker in workers {
        assert!(matches!(worker.report(), Report::Done { verdict: Verdict::Success, .. }));
        worker.end();
    }
    let got: Vec<_> = std::fs::read_dir(place.home())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().as_bytes().starts_with(b"got"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    assert_eq!(got, ["\nbody\n"; 3]);
}

#[test]
fn forwards_and_aliases_go_to_the_queue_before_success_is_said() {
    let place = Place::new();
    place.qmail(".qmail", "&a@b\nc@d\n");
    let accepted = || Answer::Accepted { id: 7, pid: 99 };
    let sent = queue(&place, accepted());
    let mut worker = Worker::system(&place);
    assert_eq!(worker.deliver(place.recipient("", ""), BODY), done("did 0+2+0\nqp 99\n"));
    let (from, to, body) = sent.join().unwrap();
    assert_eq!((from.as_str(), to), ("s@er 0", vec!["a@b".to_owned(), "c@d".to_owned()]));
    assert_eq!(body, [b"Delivered-To: joe@example.org\n", BODY].concat());
    place.qmail(".qmail-list", "&a@b\n");
    place.qmail(".qmail-list-owner", "");
    let sent = queue(&place, accepted());
    let long = [&b"X: \xc3\xa4\n\n"[..], &[b'y'; 100_000]].concat();
    assert_eq!(worker.deliver(place.recipient("-", "list"), &long), done("did 0+1+0\nqp 99\n"));
    let (from, _, body) = sent.join().unwrap();
    assert_eq!((from.as_str(), body.len()), ("joe-list-owner@example.org 1", long.len() + 35));
    for (answer, verdict, text) in [
        (Answer::Temporary { text: "4.3.1 full".into() }, Verdict::Deferral, "Unable to forward message: full (#4.3.1).\n"),
        (Answer::Permanent { text: "5.7.1 no".into() }, Verdict::Failure, "Unable to forward message: no (#5.7.1).\n"),
    ] {
        let sent = queue(&place, answer);
        assert_eq!(worker.deliver(place.recipient("", ""), BODY), (verdict, text.to_owned()));
        sent.join().unwrap();
    }
    worker.end();
}

/// What the message was asked for goes with its copies; a list's are messages of their own, as well protected.
#[test]
fn forwards_inherit() {
    use ipc::inheritance::Inheritance;
    use ipc::options::{Options, RecipientOptions};
    use wire::dsn::Notify;
    let place = Place::new();
    place.qmail(".qmail", "&a@b\n");
    place.qmail(".qmail-list", "&a@b\n");
    place.qmail(".qmail-list-owner", "");
    let recipients = vec![RecipientOptions { recipient: 0, notify: Some(Notify::NEVER), orcpt: None }];
    let (deliver_by, priority) = (wire::DeliverBy::from_bits(9, 1), wire::Priority::new(3));
    let options = Options { deliver_by, priority, recipients, ..Options::none() };
    let inherits = Inheritance { flags: ipc::queue::FLAG_REQUIRETLS, options }.to_bytes();
    let worker = Worker::system(&place);
    let forward = |(dash, ext): (&str, &str)| {
        let sent = queue(&place, Answer::Accepted { id: 7, pid: 99 });
        let (sender, recipient, inherits) = (Address::new(b"s@er").unwrap(), place.recipient(dash, ext), inherits.clone());
        let (default_delivery, settings) = ("".into(), "".into());
        worker.send(&Request::Deliver { number: 1, sender, recipient, default_delivery, settings, inherits, lmtp: None }, BODY);
        assert!(matches!(worker.report(), Report::Done { verdict: Verdict::Success, .. }));
        let (from, items, _) = sent.join().unwrap();
        (from, items.join(" "))
    };
    let by = format!("{:?}", Item::DeliverBy(deliver_by.unwrap()));
    let (priority, never) = (Item::Priority(priority.unwrap()), Item::Notify(Notify::NEVER));
    assert_eq!(forward(("", "")), ("s@er 4".to_owned(), format!("{by} {priority:?} a@b {never:?}")));
    assert_eq!(forward(("-", "list")), ("joe-list-owner@example.org 4".to_owned(), format!("{priority:?} a@b")));
    // An alias of a virtual domain, and what nobody can read.
    for (inherits, expected) in [(inherits.clone(), Verdict::Success), ("x".into(), Verdict::Deferral)] {
        let sent = (expected == Verdict::Success).then(|| queue(&place, Answer::Accepted { id: 7, pid: 99 }));
        let (sender, recipient, targets) = (Address::null(), place.recipient("", ""), vec![Address::new(b"x@y").unwrap()]);
        worker.send(&Request::Forward { number: 2, sender, recipient, targets, inherits }, BODY);
        assert!(matches!(worker.report(), Report::Done { verdict, .. } if verdict == expected));
        if let Some(sent) = sent {
            assert_eq!(sent.join().unwrap().0, " 4");
        }
    }
    worker.end();
}

#[test]
fn a_domains_aliases_are_forwarded_with_the_loop_check() {
    let place = Place::new();
    let sent = queue(&place, Answer::Accepted { id: 7, pid: 99 });
    let worker = Worker::domain(&place);
    let forward = |number, body: &[u8]| {
        let targets = vec![Address::new(b"x@y").unwrap()];
        let recipient = place.recipient_at(&place.path("homes"), "", "");
        worker.send(&Request::Forward { number, sender: Address::null(), recipient, targets, inherits: "".into() }, body);
        worker.report()
    };
    let report = forward(1, BODY);
    assert_eq!(report, Report::Done { number: 1, verdict: Verdict::Success, text: "did 0+1+0\nqp 99\n".into() });
    assert_eq!(sent.join().unwrap().2, [b"Delivered-To: joe@example.org\n", BODY].concat());
    assert!(matches!(forward(2, b"Delivered-To: joe@example.org\n\n"), Report::Done { verdict: Verdict::Failure, .. }));
    worker.end();
}

#[test]
fn a_virtual_user_gets_home_and_maildir_with_the_first_letter() {
    let place = Place::new();
    let mut worker = Worker::domain(&place);
    let ann = place.recipient_at(&place.path("homes/ann"), "", "");
    assert_eq!(worker.exists(ann.clone()), Existence::Yes {});
    assert!(!place.path("homes/ann").exists(), "a question makes nothing");
    assert_eq!(worker.deliver(ann, BODY), done("did 1+0+0\n"));
    assert_eq!(letters(&place.path("homes/ann/Maildir/new")), [letter()]);
    assert_eq!(worker.deliver(place.recipient("", ""), BODY), done("did 1+0+0\n"));
    let mode = std::fs::metadata(place.path("homes/ann/Maildir")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    worker.end();
}

#[test]
fn a_virtual_user_leads_nobody_out_of_the_home() {
    let place = Place::new();
    let mut worker = Worker::domain(&place);
    std::fs::create_dir_all(place.path("homes/ann/Maildir/new")).unwrap();
    std::fs::create_dir_all(place.path("homes/ann/Maildir/tmp")).unwrap();
    std::os::unix::fs::symlink("../ann/Maildir", place.home().join("link")).unwrap();
    std::os::unix::fs::symlink("../ann/box", place.home().join("boxlink")).unwrap();
    for (qmail, expected) in [
        ("../ann/box\n", "Unable to open ../ann/box: Invalid cross-device link. (#4.2.1)\n"),
        ("../ann/Maildir/\n", "Unable to chdir to maildir. (#4.2.1)\n"),
        ("./../ann/Maildir/\n", "Unable to chdir to maildir. (#4.2.1)\n"),
        ("./link/\n", "Unable to chdir to maildir. (#4.2.1)\n"),
        ("./../ann/box\n", "Unable to open ./../ann/box: Invalid cross-device link. (#4.2.1)\n"),
        ("./boxlink\n", "Unable to open ./boxlink: symbolic link loop. (#4.2.1)\n"),
        ("/etc/motd\n", "needs exec"),
        ("/tmp/\n", "needs exec"),
        ("|id\n", "needs exec"),
    ] {
        place.qmail(".qmail", qmail);
        let (verdict, text) = worker.deliver(place.recipient("", ""), BODY);
        assert_eq!((verdict, text.as_str()), (Verdict::Deferral, expected), "{qmail}");
    }
    assert!(letters(&place.path("homes/ann/Maildir/new")).is_empty() && !place.path("homes/ann/box").exists());
    for home in ["homes/joe/..", "homes/joe/Maildir", "homes", "homes/", "other/joe", "homes/../etc"] {
        let (verdict, text) = worker.deliver(place.recipient_at(&place.path(home), "", ""), BODY);
        assert!(verdict == Verdict::Deferral && text.ends_with("(#4.3.5)\n"), "{home}: {text}");
    }
    worker.end();
}

#[test]
fn letters_that_come_together_are_judged_one_by_one() {
    let place = Place::new();
    let (maildir, other) = (place.maildir("Maildir"), place.maildir("Other"));
    place.qmail(".qmail-x", "./Other/\n");
    for mut worker in [Worker::system(&place), Worker::domain(&place)] {
        let asked = [("", "", false), ("", "", true), ("", "", false), ("-", "x", false), ("", "", false), ("-", "none", false)];
        for (dash, ext, loops) in asked {
            let (sender, recipient) = (Address::new(b"s@er").unwrap(), place.recipient(dash, ext));
            let (number, settings) = (worker.number(), "".into());
            let request = Request::Deliver {
                number,
                sender,
                recipient,
                default_delivery: "./Maildir/".into(),
                settings,
                inherits: "".into(),
                lmtp: None,
            };
            worker.send(&request, if loops { letter().into_bytes() } else { BODY.to_vec() }.as_slice());
        }
        let mut verdicts: Vec<_> = asked
            .iter()
            .map(|_| match worker.report() {
                Report::Done { number, verdict, .. } => (number, verdict),
                other => panic!("{other:?}"),
            })
            .collect();
        verdicts.sort_by_key(|(number, _)| *number);
        use Verdict::{Failure, Success};
        assert_eq!(
            verdicts.into_iter().map(|(_, verdict)| verdict).collect::<Vec<_>>(),
            [Success, Failure, Success, Success, Success, Failure]
        );
        worker.end();
    }
    assert_eq!((letters(&maildir.join("new")).len(), letters(&other.join("new")).len()), (6, 2));
}

#[test]
fn where_an_address_leads_is_told_by_the_code_that_delivers() {
    let place = Place::new();
    place.qmail(".qmail-a-default", "");
    for mut worker in [Worker::system(&place), Worker::domain(&place)] {
        assert_eq!(worker.exists(place.recipient("", "")), Existence::Yes {});
        assert_eq!(worker.exists(place.recipient("-", "a-b")), Existence::Yes {});
        assert_eq!(worker.exists(place.recipient("-", "b")), Existence::No {});
        place.qmail(".qmail-loop", "");
        std::fs::set_permissions(place.home().join(".qmail-loop"), PermissionsExt::from_mode(0o602)).unwrap();
        assert_eq!(worker.exists(place.recipient("-", "loop")), Existence::CannotTell {});
        worker.end();
    }
    let mut worker = Worker::system(&place);
    assert_eq!(worker.exists(place.recipient_at(&place.path("gone"), "-", "a")), Existence::CannotTell {});
    worker.end();
}

#[test]
fn the_worker_is_confined_before_its_first_request() {
    let place = Place::new();
    let mut worker = Worker::system(&place);
    assert_eq!(worker.exists(place.recipient("", "")), Existence::Yes {});
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.child.pid.as_raw_nonzero())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
    worker.end();
}

#[test]
fn bytes_that_are_no_request_end_the_worker_and_nothing_else() {
    let place = Place::new();
    let worker = Worker::system(&place);
    worker.work.send(b"\x01\xffgarbage").unwrap();
    assert_eq!(worker.child.wait(), Ended::Code(111));
}

#[test]
fn without_a_message_nothing_is_delivered() {
    let place = Place::new();
    place.maildir("Maildir");
    let worker = Worker::system(&place);
    let request = Request::Deliver {
        number: 1,
        sender: Address::null(),
        recipient: place.recipient("", ""),
        default_delivery: "./Maildir/".into(),
        settings: "".into(),
        inherits: "".into(),
        lmtp: None,
    };
    worker.work.send(&request.encode()).unwrap();
    assert!(matches!(worker.report(), Report::Done { number: 1, verdict: Verdict::Deferral, .. }));
    assert!(letters(&place.home().join("Maildir/new")).is_empty());
    worker.end();
}

#[test]
fn a_virtual_users_quota_bounds_each_way_into_the_mailbox() {
    let place = Place::new();
    let quota = Settings { quota_bytes: 3 * (letter().len() as u64), ..Settings::default() };
    let full = (Verdict::Failure, "Sorry, the mailbox is full. (#5.2.2)\n".to_owned());
    let mut worker = Worker::domain(&place);
    assert_eq!(worker.deliver_as(&quota, place.recipient("", ""), BODY), done("did 1+0+0\n"));
    let maildir = place.home().join("Maildir");
    assert_eq!(std::fs::read_to_string(maildir.join("maildirsize")).unwrap().lines().count(), 3);
    place.qmail(".qmail-x", "./Maildir/\n./Maildir/.Lists/\n");
    for sub in ["tmp", "new", "cur"] {
        std::fs::create_dir_all(maildir.join(".Lists").join(sub)).unwrap();
    }
    // The traces of this address are longer than a third.
    let (verdict, _) = worker.deliver_as(&quota, place.recipient("-", "x"), BODY);
    assert_eq!(verdict, Verdict::Failure);
    std::fs::remove_file(place.home().join(".qmail-x")).unwrap();
    // Three that come together: room for one, and each is judged.
    let asked = 3;
    for _ in 0..asked {
        let (number, sender) = (worker.number(), Address::new(b"s@er").unwrap());
        let (recipient, default_delivery) = (place.recipient("", ""), "./Maildir/".into());
        worker.send(
            &Request::Deliver {
                number,
                sender,
                recipient,
                default_delivery,
                settings: quota.to_bytes(),
                inherits: "".into(),
                lmtp: None,
            },
            BODY,
        );
    }
    let verdicts: Vec<_> = (0..asked)
        .map(|_| match worker.report() {
            Report::Done { verdict, .. } => verdict,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(verdicts.contains(&Verdict::Failure), "{verdicts:?}");
    assert_eq!(worker.deliver_as(&quota, place.recipient("", ""), BODY), full);
    let defers = Settings { defers: true, ..quota.clone() };
    assert_eq!(worker.deliver_as(&defers, place.recipient("", ""), BODY).0, Verdict::Deferral);
    let more = Settings { quota_bytes: 1 << 20, ..quota.clone() };
    assert_eq!(worker.deliver_as(&more, place.recipient("", ""), BODY), done("did 1+0+0\n"));
    assert_eq!(worker.deliver(place.recipient("", ""), BODY), done("did 1+0+0\n"), "no quota, no bound");
    worker.end();
    let mut worker = Worker::start(&place, &["--once"]);
    place.qmail(".qmail", "|true\n./Maildir/\n");
    assert_eq!(worker.deliver_as(&quota, place.recipient("", ""), BODY), full);
    worker.end();
}

#[test]
fn a_mailbox_says_how_much_fits_unless_a_file_of_its_owner_decides() {
    let place = Place::new();
    let quota = Settings { quota_bytes: 5 * (letter().len() as u64), ..Settings::default() };
    let mut worker = Worker::domain(&place);
    let ask = |worker: &mut Worker, settings: &Settings, size: u64| {
        let number = worker.number();
        let request = Request::Room { number, recipient: place.recipient("", ""), settings: settings.to_bytes(), size };
        worker.work.send(&request.encode()).unwrap();
        match worker.report() {
            Report::Room { number: answered, room } if answered == number => room,
            other => panic!("{other:?}"),
        }
    };
    let maildirsize = place.home().join("Maildir/maildirsize");
    assert_eq!(
        ask(&mut worker, &quota, 1),
        Room::Free { bytes: quota.quota_bytes, messages: u64::MAX },
        "nobody has written yet"
    );
    assert_eq!(worker.deliver_as(&quota, place.recipient("", ""), BODY), done("did 1+0+0\n"));
    let Room::Free { bytes, .. } = ask(&mut worker, &quota, 1) else { panic!() };
    assert_eq!(bytes, quota.quota_bytes - letter().len() as u64);
    let messages = Settings { quota_messages: 1, ..Settings::default() };
    assert_eq!(ask(&mut worker, &messages, 1), Room::Free { bytes: u64::MAX, messages: 0 });
    place.qmail(".qmail", "&away@x\n");
    assert_eq!(ask(&mut worker, &quota, 1), Room::CannotTell {});
    assert!(maildirsize.exists());
    assert_eq!(ask(&mut worker, &Settings::default(), 0), Room::Free { bytes: u64::MAX, messages: u64::MAX });
    assert!(!maildirsize.exists(), "without a quota nothing counts it");
    worker.end();
}

#[test]
fn the_owner_of_a_mailbox_that_fills_up_is_warned_once() {
    let place = Place::new();
    let quota = Settings { quota_messages: 4, warns_at: 50, warning: "{address} {percent}\n".into(), ..Settings::default() };
    let mut worker = Worker::domain(&place);
    let new = place.home().join("Maildir/new");
    assert_eq!(worker.deliver_as(&quota, place.recipient("", ""), BODY), done("did 1+0+0\n"));
    assert_eq!(letters(&new).len(), 1);
    assert_eq!(worker.deliver_as(&quota, place.recipient("", ""), BODY), done("did 1+0+0\n"));
    // What comes after the answer comes before the next one.
    assert_eq!(worker.deliver_as(&quota, place.recipient("", ""), BODY), done("did 1+0+0\n"));
    let all = letters(&new);
    let warnings: Vec<&String> = all.iter().filter(|letter| letter.contains("Your mailbox is 50 % full")).collect();
    assert_eq!((all.len(), warnings.len()), (4, 1), "{all:?}");
    assert!(warnings[0].starts_with("Return-Path: <>\n") && warnings[0].ends_with("\n\njoe@example.org 50\n"), "{warnings:?}");
    assert_eq!(worker.deliver_as(&quota, place.recipient("", ""), BODY).0, Verdict::Failure, "the warning counts");
    // Room, and over the line again: not on the same day.
    for file in std::fs::read_dir(&new).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    std::fs::remove_file(place.home().join("Maildir/maildirsize")).unwrap();
    place.qmail(".qmail", "./Maildir/\n./Maildir/\n");
    assert_eq!(worker.deliver_as(&quota, place.recipient("", ""), BODY), done("did 2+0+0\n"));
    assert_eq!(letters(&new).len(), 2);
    std::fs::remove_file(place.home().join("Maildir/quotawarn")).unwrap();
    std::fs::remove_file(place.home().join("Maildir/maildirsize")).unwrap();
    for file in std::fs::read_dir(&new).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    assert_eq!(worker.deliver_as(&quota, place.recipient("", ""), BODY), done("did 2+0+0\n"));
    assert_eq!(letters(&new).len(), 3, "another day");
    worker.end();
}

#[test]
fn an_accounts_forwards_are_what_the_users_own_file_does_not_say() {
    let place = Place::new();
    let forward = Settings { forward: vec![Address::new(b"away@x").unwrap()], ..Settings::default() };
    let mut worker = Worker::domain(&place);
    let queued = queue(&place, Answer::Accepted { id: 1, pid: 77 });
    assert_eq!(worker.deliver_as(&forward, place.recipient("", ""), BODY), done("did 0+1+0\nqp 77\n"));
    let (from, to, body) = queued.join().unwrap();
    assert_eq!((from.as_str(), to), ("s@er 0", vec!["away@x".to_owned()]));
    assert!(body.starts_with(b"Delivered-To: joe@example.org\n"));
    assert!(!place.home().join("Maildir").exists(), "no copy");
    std::fs::remove_file(place.path("run/qmail/inject.sock")).unwrap();
    let keep = Settings { keeps_copy: true, ..forward.clone() };
    let queued = queue(&place, Answer::Accepted { id: 1, pid: 78 });
    assert_eq!(worker.deliver_as(&keep, place.recipient("", ""), BODY), done("did 1+1+0\nqp 78\n"));
    queued.join().unwrap();
    assert_eq!(letters(&place.home().join("Maildir/new")).len(), 1);
    place.qmail(".qmail", "./Maildir/\n");
    assert_eq!(worker.deliver_as(&forward, place.recipient("", ""), BODY), done("did 1+0+0\n"), "the file wins");
    place.qmail(".qmail", "");
    std::fs::remove_file(place.path("run/qmail/inject.sock")).unwrap();
    let queued = queue(&place, Answer::Accepted { id: 1, pid: 79 });
    let said = worker.deliver_as(&forward, place.recipient("", ""), BODY);
    assert_eq!(said, done("did 0+1+0\nqp 79\n"), "an empty file says nothing");
    queued.join().unwrap();
    worker.end();
}

#[test]
fn who_writes_to_somebody_away_gets_one_reply() {
    let place = Place::new();
    let vacation = ipc::mailbox::Vacation {
        address: Address::new(b"joe@example.org").unwrap(),
        subject: "".into(),
        others: vec![Address::new(b"sales@example.org").unwrap()],
        text: "Back on Monday.\n".into(),
        from_s: 0,
        until_s: 0,
        days: 7,
    };
    let away = Settings { vacation: Some(vacation.clone()), ..Settings::default() };
    let letter = b"To: Sales <sales@example.org>\nSubject: Lunch\nMessage-ID: <1@x>\n\nbody\n";
    let mut worker = Worker::domain(&place);
    let queued = queue(&place, Answer::Accepted { id: 1, pid: 77 });
    assert_eq!(worker.deliver_as(&away, place.recipient("", ""), letter), done("did 1+0+0\n"));
    let (from, to, body) = queued.join().unwrap();
    assert_eq!((from.as_str(), to), (" 0", vec!["s@er".to_owned()]), "an empty return path");
    let body = String::from_utf8(body).unwrap();
    for part in ["Auto-Submitted: auto-replied\n", "In-Reply-To: <1@x>\n", "Subject: Auto: Lunch\n", "\n\nBack on Monday.\n"] {
        assert!(body.contains(part), "{body}");
    }
    // Nobody serves the queue any more: whatever is not replied to is delivered all the same, and so is what was.
    for (settings, letter) in [
        (&away, &letter[..]),
        (&away, b"To: list@x\nList-Id: <x>\n\nbody\n"),
        (&Settings { vacation: Some(ipc::mailbox::Vacation { until_s: 1, ..vacation.clone() }), ..Settings::default() }, letter),
    ] {
        assert_eq!(worker.deliver_as(settings, place.recipient("", ""), letter), done("did 1+0+0\n"));
    }
    std::fs::remove_file(place.home().join("vacation.replied")).unwrap();
    assert_eq!(worker.deliver_as(&away, place.recipient("", ""), letter), done("did 1+0+0\n"), "a lost reply is no failure");
    std::fs::remove_file(place.home().join("vacation.replied")).unwrap();
    place.qmail(".qmail", "./Maildir/\n");
    assert_eq!(worker.deliver_as(&away, place.recipient("", ""), letter), done("did 1+0+0\n"));
    assert!(!place.home().join("vacation.replied").exists(), "the user's own file wins");
    assert_eq!(letters(&place.home().join("Maildir/new")).len(), 6);
    worker.end();
}
