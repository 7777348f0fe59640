//! SIGHUP costs nobody anything: sessions and deliveries under way go on beside the new generation, within bounds.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use system_tests::facts::{self, Process};
use system_tests::peer::Event;
use system_tests::{Instance, Peer, Smtp, wait_for};

const LETTER: &str = "Subject: x\n\nbody\n";
const BOB: &str = "bob@example.test";
/// Longer than a process has that drains, and until one that does not end is killed.
const LONGER_THAN_A_DRAIN: Duration = Duration::from_secs(9);
const GOING_DOWN: &str = "421 4.3.2 going down, try again in a moment";

fn instance(control: &[(&str, &str)]) -> Instance {
    let control: Vec<_> = [("relayclients", "127.0.0.0/8\n")].into_iter().chain(control.iter().copied()).collect();
    let instance = Instance::started(&control).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    instance
}

fn running(instance: &Instance, name: &str) -> Vec<Process> {
    facts::descendants(instance.pid()).into_iter().filter(|p| p.name == name).collect()
}

/// SIGHUP; returns when the `count`-th reload of this instance has been carried out.
fn reload(instance: &Instance, count: usize) {
    facts::signal(instance.pid(), Signal::HUP);
    let done = || (instance.log().matches("the new configuration is in use").count() == count).then_some(());
    wait_for("a new generation", done).unwrap();
}

/// A session with the generation that has this `smtpgreeting`.
fn session(instance: &Instance, greeting: &str) -> Smtp {
    let session = || Smtp::open(instance.port(25)).ok().filter(|smtp| smtp.greeting().contains(greeting));
    wait_for("a session with the new generation", session).unwrap()
}

/// What holds the peers back.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn pass(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open));
    }

    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

#[test]
fn a_slow_delivery_outlives_a_reload_and_others_go_by_the_new_generation() {
    let gate = Arc::new(Gate::default());
    let (slow, held) = (Arc::clone(&gate), Arc::new(Mutex::new(false)));
    let came = Arc::clone(&held);
    let slow = Peer::start("127.0.0.1:0", move |event| {
        if matches!(event, Event::Body(_)) {
            *came.lock().unwrap() = true;
            slow.pass();
        }
        None
    })
    .unwrap();
    let quick = Peer::willing().unwrap();
    let routes = format!("{}{}", slow.route("slow.test"), quick.route("quick.test"));
    let mut instance = instance(&[("smtproutes", &routes), ("helohost", "old.example.test\n")]);
    let send = |to: &str| instance.smtp().unwrap().send(BOB, &[to], LETTER).unwrap();
    send("x@slow.test");
    wait_for("the letter at the slow peer", || held.lock().unwrap().then_some(())).unwrap();
    instance.control("helohost", "new.example.test\n").unwrap();
    reload(&instance, 1);
    // The connection of before may still be the one that is known; either way it arrives.
    send("y@quick.test");
    wait_for("the other letter", || (quick.letters().len() == 1).then_some(())).unwrap();
    std::thread::sleep(LONGER_THAN_A_DRAIN);
    assert_eq!(running(&instance, "qmail-remote").len(), 2, "the old one goes on, too");
    send("z@quick.test");
    wait_for("one more letter", || (quick.letters().len() == 2).then_some(())).unwrap();
    assert!(quick.commands().contains(&"EHLO new.example.test".to_owned()), "{:?}", quick.commands());
    gate.open();
    instance.wait_empty().unwrap();
    wait_for("the end of the old one", || (running(&instance, "qmail-remote").len() == 1).then_some(())).unwrap();
    instance.stop().unwrap();
    let log = instance.log();
    assert_eq!((log.matches(": success: ").count(), log.matches(": deferral: ").count()), (3, 0), "{log}");
    assert_eq!((slow.letters().len(), slow.commands().iter().filter(|c| *c == "DATA").count()), (1, 1));
}

#[test]
fn sessions_go_on_while_new_ones_are_served_by_the_new_generation() {
    let instance = instance(&[("smtpgreeting", "old.example.test\n")]);
    instance.smtp().unwrap().send("a@example.test", &[BOB], LETTER).unwrap();
    instance.wait_mail(BOB, 1).unwrap();
    let mut pop3 = instance.pop3(BOB).unwrap();
    let mut smtp = session(&instance, "old.example.test");
    smtp.must("EHLO client.example.test", "250").unwrap();
    smtp.must("MAIL FROM:<a@example.test>", "250").unwrap();
    let processes = |name: &str| running(&instance, name).len();
    let counts = [processes("qmail-smtpd"), processes("qmail-popup")];
    instance.control("smtpgreeting", "new.example.test\n").unwrap();
    reload(&instance, 1);
    session(&instance, "new.example.test").must("QUIT", "221").unwrap();
    std::thread::sleep(LONGER_THAN_A_DRAIN);
    for _ in 0..5 {
        let new = instance.smtp().unwrap();
        assert!(new.greeting().contains("new.example.test"), "{}", new.greeting());
    }
    assert_eq!([processes("qmail-smtpd"), processes("qmail-popup")], counts.map(|count| count + 1));
    // The old session goes on as if nothing had happened.
    smtp.must(&format!("RCPT TO:<{BOB}>"), "250").unwrap();
    smtp.must("DATA", "354").unwrap();
    smtp.must("Subject: second\r\n\r\nbody\r\n.", "250 ").unwrap();
    smtp.must("NOOP", "250").unwrap();
    smtp.must("QUIT", "221").unwrap();
    assert!(smtp.0.is_closed().unwrap());
    instance.wait_mail(BOB, 2).unwrap();
    assert_eq!(pop3.count().unwrap(), 1);
    assert!(pop3.message(1).unwrap().ends_with(LETTER));
    pop3.must("DELE 1").unwrap();
    pop3.must("QUIT").unwrap();
    instance.wait_mail(BOB, 1).unwrap();
    let as_before = || ([processes("qmail-smtpd"), processes("qmail-popup")] == counts).then_some(());
    wait_for("the end of the old generation", as_before).unwrap();
}

#[test]
fn reloads_under_traffic_cost_nobody_anything() {
    const RELOADS: usize = 8;
    let peer = Peer::willing().unwrap();
    let mut instance = instance(&[("smtproutes", &peer.route("elsewhere.test"))]);
    let is_over = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let send = || {
            let mut sent = 0;
            while !is_over.load(Ordering::Relaxed) {
                instance.smtp().unwrap().send(BOB, &["x@elsewhere.test", BOB], LETTER).unwrap();
                sent += 1;
            }
            sent
        };
        let senders = [scope.spawn(send), scope.spawn(send)];
        let reloads = scope.spawn(|| (1..=RELOADS).for_each(|count| reload(&instance, count)));
        let reloaded = reloads.join();
        is_over.store(true, Ordering::Relaxed);
        reloaded.unwrap();
        senders.map(|sender| sender.join().unwrap()).iter().sum::<usize>()
    });
    instance.wait_empty().unwrap();
    instance.stop().unwrap();
    let log = instance.log();
    assert_eq!((log.matches(": success: ").count(), log.matches(": deferral: ").count()), (2 * sent, 0), "{log}");
    assert_eq!(peer.letters().len(), sent);
}

/// Replaced generations that go on, at most.
const RETIRED_MAX: usize = 4;

#[test]
fn reloads_do_not_pile_up_processes() {
    let instance = instance(&[("smtpgreeting", "generation-0\n")]);
    let fixed = facts::descendants(instance.pid()).len();
    let workers = running(&instance, "qmail-smtpd").len();
    let mut sessions = Vec::new();
    for count in 1..=RETIRED_MAX + 2 {
        sessions.push(session(&instance, &format!("generation-{}", count - 1)));
        instance.control("smtpgreeting", &format!("generation-{count}\n")).unwrap();
        reload(&instance, count);
    }
    let bounded = || (running(&instance, "qmail-smtpd").len() == workers + RETIRED_MAX).then_some(());
    wait_for("the end of the oldest generations", bounded).unwrap();
    for drained in sessions.drain(..2) {
        let mut drained = drained;
        assert_eq!(drained.reply().unwrap(), GOING_DOWN);
    }
    for mut session in sessions {
        session.must("NOOP", "250").unwrap();
        session.must("QUIT", "221").unwrap();
    }
    wait_for("the end of all old generations", || (facts::descendants(instance.pid()).len() == fixed).then_some(())).unwrap();
}

#[test]
fn a_stop_does_not_wait_for_what_is_retired() {
    let mut instance = instance(&[("smtpgreeting", "old\n")]);
    let (mut idle, mut busy) = (session(&instance, "old"), session(&instance, "old"));
    busy.must("EHLO client.example.test", "250").unwrap();
    busy.must("MAIL FROM:<a@example.test>", "250").unwrap();
    busy.must(&format!("RCPT TO:<{BOB}>"), "250").unwrap();
    busy.must("DATA", "354").unwrap();
    reload(&instance, 1);
    let (begun, processes) = (Instant::now(), facts::descendants(instance.pid()));
    instance.stop().unwrap();
    // The drain is 5 s and what does not end is killed after 7; a retired process would go on for an hour.
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert!(processes.iter().all(|p| !facts::is_alive(p.pid)), "{processes:?}");
    assert_eq!(idle.reply().unwrap(), GOING_DOWN);
    assert!(busy.0.is_closed().unwrap());
}
