//! qmail-send over its sockets: a message's way, the log's exact lines, what strangers may not do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::{Instance, answer, datagrams, of, submit};
use ipc::Message;
use ipc::admin::{QueueAnswer as AdminAnswer, QueueRequest};
use ipc::auth::{Answer as AuthAnswer, Request as AuthRequest, Target};
use ipc::field::Verdict;
use ipc::job::{Answer, Job, Outcome, Route};
use ipc::queue::Answer as QueueAnswer;
use sandbox::Socket;
use sys::{Received, Seqpacket};
use wire::Domain;

const BODY: &[u8] = b"Subject: hello\n\ntext\n";
const OK: (Verdict, &str) = (Verdict::Success, "did 1+0+0\n");

fn admin(socket: &Seqpacket, request: &QueueRequest) -> AdminAnswer {
    socket.send(&request.encode()).unwrap();
    admin_answer(socket)
}

fn admin_answer(socket: &Seqpacket) -> AdminAnswer {
    let mut buf = vec![0; ipc::DATAGRAM_LEN_MAX];
    match socket.recv(&mut buf).unwrap() {
        Received::Datagram(len, _) => AdminAnswer::decode(&buf[..len]).unwrap(),
        Received::End => panic!("closed"),
    }
}

fn stat(socket: &Seqpacket, name: &str) -> u64 {
    let AdminAnswer::Stats { counters } = admin(socket, &QueueRequest::Stats {}) else { panic!() };
    counters.iter().find(|counter| counter.name.0 == name.as_bytes()).unwrap().value
}

#[test]
fn a_local_letter_and_its_log() {
    let instance = Instance::new(&[]);
    let local = instance.deliverer(Socket::Lspawn, |_| OK);
    let send = instance.start();
    let client = instance.connect(Socket::Inject);
    let id = submit(&client, "s@x.example", &["joe@here.example"], BODY);
    send.wait_for(&format!("end msg {id}\n"));
    let log = send.stop();
    let (pid, uid) = (std::process::id(), rustix::process::geteuid().as_raw());
    let bytes = local.seen.lock().unwrap()[0].1.len();
    let expected = format!(
        "status: local 0/10 remote 0/20\nnew msg {id}\ninfo msg {id}: bytes {bytes} from <s@x.example> qp {pid} uid {uid}\n\
         starting delivery 1: msg {id} to local joe@here.example\nstatus: local 1/10 remote 0/20\n\
         delivery 1: success: did_1+0+0/\nstatus: local 0/10 remote 0/20\nend msg {id}\n\
         status: local 0/10 remote 0/20 exitasap\nstatus: exiting\n"
    );
    assert_eq!(log, expected);
    let seen = local.seen.lock().unwrap();
    let (Job::System { sender, recipient, message, .. }, body) = &seen[0] else { panic!() };
    assert_eq!((sender.to_string(), recipient.to_string(), *message), ("s@x.example".into(), "joe@here.example".into(), id));
    let text = String::from_utf8(body.clone()).unwrap();
    assert!(text.starts_with(&format!("Received: (qmail {pid} invoked by uid {uid}); ")), "{text}");
    assert!(text.ends_with("-0000\nSubject: hello\n\ntext\n"), "{text}");
}

#[test]
fn a_failure_comes_back_as_a_bounce_and_the_bounce_of_a_bounce_to_the_postmaster() {
    let instance = Instance::new(&[("virtualdomains", "v.example:pre\n")]);
    let local = instance.deliverer(Socket::Lspawn, |recipient| match recipient.local() {
        b"postmaster" => (Verdict::Failure, "Nobody reads this. (#5.1.1)\n"),
        _ => (Verdict::Failure, "No such user. (#5.1.1)\n"),
    });
    let send = instance.start();
    let client = instance.connect(Socket::Queue);
    let id = submit(&client, "s@here.example", &["joe@v.example"], BODY);
    send.wait_for("triple bounce: discarding bounce/");
    send.wait_until("three ends", |log| log.matches("end msg ").count() == 3);
    let log = send.stop();
    let pid = std::process::id();
    for line in [
        format!("\nstarting delivery 1: msg {id} to local pre-joe@v.example\n"),
        "\ndelivery 1: failure: No_such_user._(#5.1.1)/\n".to_owned(),
        format!("\nbounce msg {id} qp {pid}\nend msg {id}\nnew msg "),
        "to local s@here.example\n".to_owned(),
        format!(" from <> qp {pid} uid "),
        "to local postmaster@here.example\n".to_owned(),
        format!(" from <#@[]> qp {pid} uid "),
    ] {
        assert!(log.contains(&line), "{line}\n{log}");
    }
    let seen = local.seen.lock().unwrap();
    let bounce = String::from_utf8(seen[1].1.clone()).unwrap();
    assert!(bounce.starts_with(&format!("Received: (qmail {pid} invoked for bounce); ")));
    assert!(bounce.contains("\nSubject: failure notice\n"));
    assert!(bounce.contains("\n\nHi. This is the qmail-send program at here.example.\n"));
    assert!(bounce.contains("\n<joe@v.example>:\nNo such user. (#5.1.1)\n\n"), "the prefix is gone: {bounce}");
    assert!(bounce.contains("Return-Path: <s@here.example>\nReceived: (qmail "));
    assert!(bounce.contains("\nSubject: hello\n\ntext\n"));
    let double = String::from_utf8(seen[2].1.clone()).unwrap();
    assert!(double.contains("but the bounce bounced!"));
}

#[test]
fn a_long_message_spills_and_its_bounce_is_streamed() {
    let instance = Instance::new(&[("bouncemaxbytes", "0\n")]);
    let local = instance.deliverer(Socket::Lspawn, |recipient| match recipient.local() {
        b"s" => OK,
        _ => (Verdict::Failure, "No. (#5.0.0)\n"),
    });
    let send = instance.start();
    let client = instance.connect(Socket::Inject);
    let body = [BODY, &b"0123456789abcdef\n".repeat(150_000)].concat();
    submit(&client, "s@here.example", &["joe@here.example"], &body);
    send.wait_until("both ends", |log| log.matches("end msg ").count() == 2);
    let seen = local.seen.lock().unwrap();
    assert!(seen[0].1.ends_with(&body) && seen[0].1.len() < body.len() + 200);
    let bounce = &seen[1].1;
    assert!(bounce.len() > body.len());
    let at = bounce.windows(BODY.len()).position(|window| window == BODY).unwrap();
    assert!(bounce[at..].starts_with(&body));
}

#[test]
fn remote_recipients_go_together_by_domain_and_relay() {
    let instance = Instance::new(&[("smtproutes", ".relayed.example:relay.example:2525\n")]);
    let remote = instance.deliverer(Socket::Remote, |_| (Verdict::Success, "192.0.2.1 accepted message.\n"));
    let send = instance.start();
    let many: Vec<String> = (0..150).map(|n| format!("r{n}@one.example")).collect();
    let mut recipients: Vec<&str> = many.iter().map(String::as_str).collect();
    recipients.extend(["x@a.relayed.example", "y@b.relayed.example", "bad@ho st", "z@two.example"]);
    let id = submit(&instance.connect(Socket::Inject), "s@here.example", &recipients, BODY);
    send.wait_for(&format!("bounce msg {id} "));
    let jobs: Vec<(String, usize)> = remote
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|(job, _)| {
            let Job::Remote { route, recipients, size, .. } = job else { panic!() };
            assert!(*size > BODY.len() as u64);
            let route = match route {
                Route::Mx { domain } => domain.to_string(),
                Route::Relay { host, port, .. } => format!("{}:{port}", host.escape_ascii()),
                Route::Lmtp { host, port } => format!("lmtp {}:{port}", host.escape_ascii()),
                Route::Qmtp { host, port } => format!("qmtp {}:{port}", host.escape_ascii()),
                Route::LmtpSocket { path } => format!("lmtp {}", path.escape_ascii()),
            };
            (route, recipients.len())
        })
        .collect();
    let mut sorted = jobs.clone();
    sorted.sort();
    let expected = [("one.example", 50), ("one.example", 100), ("relay.example:2525", 2), ("two.example", 1)];
    assert_eq!(sorted, expected.map(|(route, count)| (route.to_owned(), count)));
    let log = send.log();
    assert!(log.contains("failure: Sorry,_I_couldn't_find_any_host_by_that_name._(#5.1.2)/\n"), "{log}");
}

/// authsenders counts before smtproutes; the credentials of one job are all that leaves this process.
#[test]
fn a_relay_of_the_sender_and_its_credentials() {
    let instance = Instance::new(&[
        ("smtproutes", ":relay.example:25|all|plugh\nx.example:x-relay.example\n"),
        ("authsenders", "joe@here.example:joes.example:587|joe|xyzzy\n"),
    ]);
    let remote = instance.deliverer(Socket::Remote, |_| OK);
    let send = instance.start();
    for (sender, to) in [("Joe@here.example", "a@x.example"), ("ann@here.example", "b@x.example"), ("", "c@y.example")] {
        let id = submit(&instance.connect(Socket::Inject), sender, &[to], BODY);
        send.wait_for(&format!("end msg {id}\n"));
    }
    let id = submit(&instance.connect(Socket::Inject), "joe@here.example-@[]", &["d@y.example"], BODY);
    send.wait_for(&format!("end msg {id}\n"));
    let mut routes: Vec<String> = Vec::new();
    for (job, _) in remote.seen.lock().unwrap().iter() {
        let Job::Remote { route: Route::Relay { host, port, login }, recipients, .. } = job else { panic!("{job:?}") };
        let login = login.as_ref().map(|login| [&login.user, &b"/"[..], login.password.expose()].concat());
        let login = login.unwrap_or_default();
        routes.push(format!("{} {}:{port} {}", recipients[0], host.escape_ascii(), login.escape_ascii()));
    }
    routes.sort();
    let expected = [
        "a@x.example joes.example:587 joe/xyzzy",
        "b@x.example x-relay.example:25 ",
        "c@y.example relay.example:25 all/plugh",
        "d@y.example joes.example:587 joe/xyzzy",
    ];
    assert_eq!(routes, expected);
    let log = send.log();
    assert!(!log.contains("xyzzy") && !log.contains("plugh"), "{log}");
}

#[test]
fn a_verp_sender_is_expanded_for_local_recipients_and_goes_to_qmail_remote_as_it_is() {
    let instance = Instance::new(&[("virtualdomains", "v.example:pre\n")]);
    let remote = instance.deliverer(Socket::Remote, |_| OK);
    let local = instance.deliverer(Socket::Lspawn, |_| OK);
    let send = instance.start();
    let id =
        submit(&instance.connect(Socket::Inject), "l-@h.example-@[]", &["a@one.example", "b@one.example", "c@v.example"], BODY);
    send.wait_for(&format!("end msg {id}\n"));
    let senders = |seen: &harness::Seen| {
        let mut all: Vec<String> = seen
            .lock()
            .unwrap()
            .iter()
            .map(|(job, _)| match job {
                Job::Remote { sender, .. } | Job::System { sender, .. } => sender.to_string(),
                _ => panic!(),
            })
            .collect();
        all.sort();
        all
    };
    assert_eq!(senders(&remote.seen), ["l-@h.example-@[]"], "one transaction, which a relay with XVERP may take whole");
    assert_eq!(senders(&local.seen), ["l-c=v.example@h.example"]);
}

#[test]
fn deferrals_wait_and_retry_tries_now() {
    let instance = Instance::new(&[]);
    let tries = Arc::new(Mutex::new(0));
    let count = Arc::clone(&tries);
    let _remote = instance.deliverer(Socket::Remote, move |_| {
        let mut tries = count.lock().unwrap();
        *tries += 1;
        if *tries == 1 { (Verdict::Deferral, "Busy. (#4.2.0)\n") } else { OK }
    });
    let send = instance.start();
    let id = submit(&instance.connect(Socket::Inject), "s@x.example", &["r@y.example"], BODY);
    send.wait_for("delivery 1: deferral: Busy._(#4.2.0)/\n");
    let control = instance.connect(Socket::AdminSend);
    while stat(&control, "deferred") != 1 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!((stat(&control, "messages"), stat(&control, "remote")), (1, 0));
    let AdminAnswer::Message { row, recipients, last } = admin(&control, &QueueRequest::Show { id }) else { panic!() };
    assert!(last && row.due_s >= row.arrival_s + 400 && row.pending == 1 && !row.held);
    assert_eq!(
        (recipients[0].attempts, &recipients[0].last_reply.0[..], recipients[0].local),
        (1, &b"Busy. (#4.2.0)\n"[..], false)
    );
    assert_eq!(admin(&control, &QueueRequest::Hold { id }), AdminAnswer::Ok { messages: 1 });
    assert_eq!(admin(&control, &QueueRequest::RetryAll {}), AdminAnswer::Ok { messages: 0 });
    assert!(matches!(admin(&control, &QueueRequest::Retry { id }), AdminAnswer::Failed { .. }));
    let AdminAnswer::Rows { rows, last: true } = admin(&control, &QueueRequest::List { after: 0, count: 10 }) else { panic!() };
    assert_eq!((rows.len(), rows[0].id, rows[0].held, rows[0].sender.to_string()), (1, id, true, "s@x.example".to_owned()));
    assert_eq!(*tries.lock().unwrap(), 1);
    assert_eq!(admin(&control, &QueueRequest::Release { id }), AdminAnswer::Ok { messages: 1 });
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(admin(&control, &QueueRequest::Retry { id }), AdminAnswer::Ok { messages: 1 });
    send.wait_for(&format!("end msg {id}\n"));
    assert_eq!((stat(&control, "messages"), stat(&control, "oldest_s")), (0, 0));
    assert!(matches!(admin(&control, &QueueRequest::Show { id }), AdminAnswer::Failed { .. }));
}

#[test]
fn removed_and_held_messages_are_not_delivered_and_holds_outlive_a_restart() {
    let instance = Instance::new(&[("concurrencylocal", "0\n")]);
    let send = instance.start();
    let client = instance.connect(Socket::Inject);
    let ids: Vec<u64> = (0..3).map(|n| submit(&client, "", &[&format!("r{n}@here.example")], BODY)).collect();
    let control = instance.connect(Socket::AdminSend);
    assert_eq!(admin(&control, &QueueRequest::Remove { id: ids[0] }), AdminAnswer::Ok { messages: 1 });
    assert_eq!(admin(&control, &QueueRequest::Hold { id: ids[1] }), AdminAnswer::Ok { messages: 1 });
    assert_eq!((stat(&control, "messages"), stat(&control, "held")), (2, 1));
    assert!(matches!(admin(&control, &QueueRequest::Remove { id: 1 }), AdminAnswer::Failed { .. }));
    send.stop();
    harness::write(&instance.root.control_file("concurrencylocal"), "5\n");
    let local = instance.deliverer(Socket::Lspawn, |_| OK);
    let send = instance.start();
    send.wait_for(&format!("end msg {}\n", ids[2]));
    let control = instance.connect(Socket::AdminSend);
    assert_eq!((stat(&control, "messages"), stat(&control, "held")), (1, 1));
    assert_eq!(local.recipients(), ["r2@here.example"]);
    assert_eq!(admin(&control, &QueueRequest::Release { id: ids[1] }), AdminAnswer::Ok { messages: 1 });
    send.wait_for(&format!("end msg {}\n", ids[1]));
}

#[test]
fn virtual_users_are_asked_for_and_remembered() {
    let instance = Instance::new(&[("users/domains", "virt.example:5:6:/var/mail/virt.example\n")]);
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let domain = Domain::new(b"virt.example").unwrap();
    let _auth = instance.worker(Socket::Auth, move |datagram, _| {
        *count.lock().unwrap() += 1;
        let AuthRequest::Route { id, address } = AuthRequest::decode(&datagram).unwrap() else { panic!() };
        let domain = domain.clone();
        let target = match address.local() {
            b"ann-x" => Target::Mailbox { domain, user: "ann".into(), ext: "x".into(), settings: "s".into() },
            b"team" => Target::Forward { domain, targets: vec![harness::a("t@o.example")] },
            b"late" => Target::Temporary { text: "No database. (#4.3.0)\n".into() },
            _ => Target::NoMailbox {},
        };
        vec![AuthAnswer::Route { id, target }.encode()]
    });
    let local = instance.deliverer(Socket::Lspawn, |_| OK);
    let send = instance.start();
    let client = instance.connect(Socket::Inject);
    let to = ["ann-x@VIRT.example", "team@virt.example", "nobody@virt.example", "late@virt.example"];
    submit(&client, "", &to, BODY);
    let log = send.wait_for("deferral: No_database._(#4.3.0)/\n");
    send.wait_for("failure: Sorry,_no_mailbox_here_by_that_name._(#5.1.1)/\n");
    assert!(log.contains("to local ann-x@VIRT.example\n"));
    send.wait_until("two", |log| log.matches(": success: ").count() == 2);
    let id = submit(&client, "", &["ann-x@VIRT.example"], BODY);
    send.wait_for(&format!("end msg {id}\n"));
    assert_eq!(*asked.lock().unwrap(), 4, "what is known is not asked again");
    let seen = local.seen.lock().unwrap();
    assert!(seen.iter().any(|(job, _)| matches!(job, Job::Mailbox { user, ext, settings, .. } if user.0 == b"ann" && ext.0 == b"x" && settings.0 == b"s")));
    assert!(seen.iter().any(|(job, _)| matches!(job, Job::Alias { targets, .. } if targets.len() == 1)));
}

#[test]
fn a_silent_directory_defers() {
    let instance = Instance::new(&[("users/domains", "virt.example:5:6:/var/mail/virt.example\n")]);
    let _local = instance.deliverer(Socket::Lspawn, |_| OK);
    let send = instance.start();
    submit(&instance.connect(Socket::Inject), "", &["a@virt.example"], BODY);
    send.wait_for("deferral: The_directory_of_mailboxes_does_not_answer._(#4.3.0)/\n");
}

#[test]
fn untried_recipients_go_into_the_next_transaction_and_forgotten_ones_are_deferred() {
    let instance = Instance::new(&[]);
    let mut round = 0;
    let _remote = instance.worker(Socket::Remote, move |datagram, _| {
        let (number, recipients) = of(&Job::decode(&datagram).unwrap());
        round += 1;
        let done = |at: u32| Outcome { recipient: at, verdict: Verdict::Success, text: "K".into() };
        match round {
            1 => {
                assert_eq!(recipients.len(), 4);
                // In two answers, with a number that was never given and an outcome given twice.
                vec![
                    Answer::Done { number, outcomes: vec![done(0), done(0), done(77)], untried: vec![1, 1, 99], last: false },
                    Answer::Done { number: number + 999, outcomes: vec![done(0)], untried: vec![], last: true },
                    Answer::Done { number, outcomes: vec![done(2)], untried: vec![0], last: true },
                    Answer::Done { number, outcomes: vec![done(3)], untried: vec![], last: true },
                ]
            }
            _ => {
                assert_eq!(recipients, [harness::a("r1@y.example")]);
                vec![Answer::Done { number, outcomes: vec![done(0)], untried: vec![], last: true }]
            }
        }
        .iter()
        .map(Message::encode)
        .collect()
    });
    let send = instance.start();
    submit(&instance.connect(Socket::Inject), "", &["r0@y.example", "r1@y.example", "r2@y.example", "r3@y.example"], BODY);
    let log = send.wait_until("the second", |log| log.matches(": success: K\n").count() == 3);
    assert!(log.contains("delivery 2: deferral: This_transaction_was_full;_the_next_one_follows./\n"), "{log}");
    assert!(log.contains("delivery 4: report mangled, will defer\n"), "{log}");
    let control = instance.connect(Socket::AdminSend);
    while stat(&control, "deferred") != 1 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_worker_that_dies_is_not_the_recipients_fault() {
    let instance = Instance::new(&[]);
    let first = instance.worker(Socket::Lspawn, |_, _| vec![]);
    let send = instance.start();
    let id = submit(&instance.connect(Socket::Inject), "", &["r@here.example"], BODY);
    send.wait_for("starting delivery 1: ");
    std::thread::sleep(Duration::from_millis(50));
    first.cut();
    send.wait_for("delivery 1: deferral: Connection_to_qmail-lspawn_lost._(#4.3.0)/\n");
    drop(first);
    let _second = instance.deliverer(Socket::Lspawn, |_| OK);
    send.wait_for(&format!("end msg {id}\n"));
}

/// The next connection of qmail-send.
fn accept(door: &OwnedFd) -> Seqpacket {
    rustix::io::ioctl_fionbio(door, false).unwrap();
    let socket = sys::seqpacket::accept(door.as_fd()).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.set_deadline(Duration::from_secs(20)).unwrap();
    socket
}

/// The number and the first recipient of the next job.
fn next_job(worker: &Seqpacket) -> (u64, String) {
    let mut buf = vec![0; ipc::DATAGRAM_LEN_MAX];
    let Received::Datagram(len, Some(_)) = worker.recv_with_fd(&mut buf).unwrap() else { panic!("no job") };
    let (number, recipients) = of(&Job::decode(&buf[..len]).unwrap());
    (number, recipients[0].to_string())
}

fn succeed(worker: &Seqpacket, number: u64) {
    let outcomes = vec![Outcome { recipient: 0, verdict: OK.0, text: OK.1.into() }];
    worker.send(&Answer::Done { number, outcomes, untried: vec![], last: true }.encode()).unwrap();
}

#[test]
fn a_worker_that_is_replaced_answers_what_it_has_and_the_next_one_gets_the_rest() {
    let instance = Instance::new(&[]);
    let door = instance.door(Socket::Remote);
    let send = instance.start();
    let old = accept(&door);
    let inject = instance.connect(Socket::Inject);
    for recipient in ["a@a.example", "b@b.example"] {
        submit(&inject, "", &[recipient], BODY);
    }
    let had = [next_job(&old), next_job(&old)];
    old.shutdown_receiving().unwrap();
    submit(&inject, "", &["c@c.example"], BODY);
    let new = accept(&door);
    let (third, recipient) = next_job(&new);
    assert_eq!(recipient, "c@c.example", "what could not be sent goes to the next one");
    let success = |number: u64| format!("delivery {number}: success: did_1+0+0/\n");
    succeed(&old, had[0].0);
    send.wait_for(&success(had[0].0));
    drop(old);
    send.wait_for(&format!("delivery {}: deferral: Connection_to_qmail-remote_lost._(#4.3.0)/\n", had[1].0));
    succeed(&new, third);
    send.wait_for(&success(third));
    let (again, recipient) = next_job(&new);
    assert_eq!(recipient, had[1].1, "what it did not answer comes again");
    succeed(&new, again);
    let log = send.wait_for(&success(again));
    assert_eq!((log.matches(": deferral: ").count(), log.matches("starting delivery ").count()), (1, 4), "{log}");
}

#[test]
fn a_worker_that_crashes_loses_what_it_did_not_answer_once() {
    let instance = Instance::new(&[]);
    let door = instance.door(Socket::Lspawn);
    let send = instance.start();
    let old = accept(&door);
    let inject = instance.connect(Socket::Inject);
    for recipient in ["a@here.example", "b@here.example", "c@here.example"] {
        submit(&inject, "", &[recipient], BODY);
    }
    let had = [next_job(&old), next_job(&old), next_job(&old)];
    succeed(&old, had[1].0);
    drop(old);
    let lost = |number: u64| format!("delivery {number}: deferral: Connection_to_qmail-lspawn_lost._(#4.3.0)/\n");
    send.wait_for(&lost(had[0].0));
    send.wait_for(&lost(had[2].0));
    let new = accept(&door);
    for _ in 0..2 {
        let (again, recipient) = next_job(&new);
        assert!(recipient == had[0].1 || recipient == had[2].1, "{recipient}");
        succeed(&new, again);
    }
    let log = send.wait_until("the end", |log| log.matches("\nend msg ").count() == 3);
    assert_eq!((log.matches(": deferral: ").count(), log.matches(": success: ").count()), (2, 3), "{log}");
}

#[test]
fn the_queue_lifetime_ends_with_a_last_attempt() {
    let instance = Instance::new(&[("queuelifetime", "0\n")]);
    let _remote = instance.deliverer(Socket::Remote, |_| (Verdict::Deferral, "Busy"));
    let _local = instance.deliverer(Socket::Lspawn, |_| OK);
    let send = instance.start();
    let id = submit(&instance.connect(Socket::Inject), "s@here.example", &["r@y.example"], BODY);
    send.wait_for("delivery 1: deferral: Busy\n");
    std::thread::sleep(Duration::from_millis(2100));
    let control = instance.connect(Socket::AdminSend);
    admin(&control, &QueueRequest::RetryAll {});
    send.wait_for("delivery 2: failure: Busy/I'm_not_going_to_try_again;_this_message_has_been_in_the_queue_too_long./\n");
    send.wait_for(&format!("bounce msg {id} "));
}

#[test]
fn whatever_bytes_come_it_goes_on() {
    let instance = Instance::new(&[]);
    let _local = instance.deliverer(Socket::Lspawn, |_| OK);
    let send = instance.start();
    let mut seed = 7u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    for door in [Socket::Inject, Socket::Queue, Socket::AdminSend] {
        for round in 0..300u64 {
            let socket = instance.connect(door);
            let mut datagram: Vec<u8> = (0..random() % 60 + 1).map(|_| u8::try_from(random() & 255).unwrap()).collect();
            datagram[0] = ipc::VERSION;
            if let Some(kind) = datagram.get_mut(1) {
                *kind = u8::try_from(round % 9).unwrap();
            }
            // Never a request that would change something: those are the administrator's right.
            if door == Socket::AdminSend && datagram.len() == 10 {
                continue;
            }
            let _ = socket.send(&datagram);
            if round % 3 == 0 {
                let _ = socket.send_with_fd(&datagram, instance.run_dir().try_clone().unwrap().as_fd());
            }
        }
    }
    // Half a message, too many connections, a commit that nobody waits for.
    let parts = datagrams("", &["lost@here.example"], &[b'x'; 100_000]);
    let half = instance.connect(Socket::Inject);
    half.send(&parts[0]).unwrap();
    drop(half);
    std::thread::sleep(Duration::from_millis(100));
    let crowd: Vec<Seqpacket> = (0..20).map(|_| instance.connect(Socket::Inject)).collect();
    let outsider = instance.connect(Socket::Inject);
    assert!(matches!(answer(&outsider), QueueAnswer::Temporary { text } if text.starts_with(b"4.3.2 ")));
    drop(crowd);
    std::thread::sleep(Duration::from_millis(100));
    let hasty = instance.connect(Socket::Inject);
    for datagram in datagrams("", &["hasty@here.example"], BODY) {
        hasty.send(&datagram).unwrap();
    }
    drop(hasty);
    let log = send.wait_for("to local hasty@here.example\n");
    assert!(!log.contains("lost@here.example"));
    send.wait_for("end msg ");
}
