//! The engine over the model of the spool: bounds, refusals, dead sites, the clock, and any order of events.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use control::Root;
use ipc::admin::{QueueAnswer, QueueRequest};
use ipc::field::Verdict;
use ipc::job::{Answer, Job as JobMessage, Outcome};
use ipc::options::{Options, RecipientOptions};
use ipc::queue::Answer as Said;
use message::received::InvokedBy;
use proptest::prelude::*;
use spool::Body;
use spool::model::Model;

use super::activate::PARK_OVER;
use super::*;
use crate::bounce;
use crate::submission::{Submitted, Submitter};

mod import;

struct Rig {
    engine: Engine<Model>,
    _dir: tempfile::TempDir,
    jobs: Vec<(Channel, JobMessage)>,
    /// The connection that each job went out on.
    went: HashMap<u64, u64>,
    /// The connections that take jobs, or the next ones.
    connections: [u64; 2],
    said: HashMap<u64, Said>,
    admin: Vec<QueueAnswer>,
    log: String,
    next_client: u64,
}

fn a(text: &str) -> Address {
    Address::new(text.as_bytes()).unwrap()
}

fn of(job: &JobMessage) -> (u64, u64, Vec<Address>) {
    match job {
        JobMessage::Remote { number, message, recipients, .. } => (*number, *message, recipients.clone()),
        JobMessage::System { number, message, recipient, .. } => (*number, *message, vec![recipient.clone()]),
        _ => panic!("no virtual domains here"),
    }
}

const START_S: u64 = 1_000_000_000;

impl Rig {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        fs::create_dir_all(root.control()).unwrap();
        for (name, text) in [("me", "here.example\n")].iter().chain(files) {
            fs::write(root.control_file(name), text).unwrap();
        }
        let settings = Settings::read(&root).unwrap();
        let now = Now { s: START_S, boot: Duration::from_secs(1000) };
        let engine = Engine::new(Model::new().unwrap(), Vec::new(), settings, Identity { uid: 5, pid: 6 }, now);
        let (jobs, said, admin) = (Vec::new(), HashMap::new(), Vec::new());
        let (went, connections) = (HashMap::new(), [1; 2]);
        let mut rig = Self { engine, _dir: dir, jobs, went, connections, said, admin, log: String::new(), next_client: 1 };
        rig.engine.connected(Channel::Local);
        rig.engine.connected(Channel::Remote);
        rig
    }

    fn submit(&mut self, sender: &str, recipients: &[&str]) -> u64 {
        self.submit_with(sender, recipients, Options::none())
    }

    fn submit_with(&mut self, sender: &str, recipients: &[&str], options: Options) -> u64 {
        let client = self.next_client;
        self.next_client += 1;
        let message = Submitted {
            sender: a(sender),
            recipients: recipients.iter().map(|recipient| a(recipient)).collect(),
            flags: 0,
            options,
            import: None,
            message_id: None,
            body: Body::Inline(b"Subject: x\n\nbody\n".to_vec()),
            bytes: 17,
            held: 0,
        };
        self.engine.submitted(client, Submitter { uid: 7, pid: 8, invoked: InvokedBy::Uid(7) }, message);
        self.turn();
        client
    }

    fn id(&mut self, client: u64) -> u64 {
        match self.said.get(&client) {
            Some(Said::Accepted { id, .. }) => *id,
            other => panic!("{other:?}"),
        }
    }

    /// Until nothing more happens by itself.
    fn turn(&mut self) {
        let mut quiet = 0;
        loop {
            self.engine.completions();
            self.engine.turn();
            let out = std::mem::take(&mut self.engine.out);
            let log = &mut self.log;
            self.engine.log.flush(|bytes| {
                log.push_str(std::str::from_utf8(bytes).unwrap());
                bytes.len()
            });
            // A read that a turn asked for is answered in the next one.
            quiet = if out.is_empty() { quiet + 1 } else { 0 };
            if quiet == 3 {
                return;
            }
            for out in out {
                match out {
                    Out::Reply { client, answer } => assert!(self.said.insert(client, answer).is_none(), "two answers"),
                    Out::Admin { answer, .. } => self.admin.push(answer),
                    Out::Job { channel, number, datagram, .. } => {
                        let connection = self.connections[at(channel)];
                        assert!(self.went.insert(number, connection).is_none(), "sent twice");
                        self.engine.sent(number, connection);
                        self.jobs.push((channel, JobMessage::decode(&datagram).unwrap()));
                    }
                    Out::Bounce(mut order) => {
                        let written = bounce::write(&mut order);
                        self.engine.bounced(*order, written);
                    }
                    Out::Site { id, .. } => self.engine.sited(id, None),
                    Out::Route { .. } | Out::Drained { .. } | Out::GiveBack { .. } | Out::AdminBody { .. } => {}
                }
            }
        }
    }

    fn answer(&mut self, at: usize, mut verdict: impl FnMut(&Address) -> (Verdict, &'static str)) {
        let (channel, job) = self.jobs.remove(at);
        let (number, _, recipients) = of(&job);
        let outcomes = recipients.iter().zip(0..).map(|(address, recipient)| {
            let (verdict, text) = verdict(address);
            Outcome { recipient, verdict, text: text.into() }
        });
        let answer = Answer::Done { number, outcomes: outcomes.collect(), untried: vec![], last: true };
        self.engine.answered(channel, self.went[&number], answer);
        self.turn();
    }

    /// Recipients whose message had its time, as the log tells: no worker said that it is over.
    fn given_up(&self) -> Vec<String> {
        let starts = self.log.lines().filter_map(|line| line.strip_prefix("starting delivery ")?.split_once(": "));
        let of: HashMap<&str, &str> = starts.filter_map(|(delivery, what)| Some((delivery, what.rsplit(' ').next()?))).collect();
        let failures = self.log.lines().filter_map(|line| line.strip_prefix("delivery ")?.split_once(": failure: "));
        let given_up = failures.filter(|(_, text)| text.ends_with("this_message_has_been_in_the_queue_too_long./"));
        given_up.map(|(delivery, _)| of[delivery].to_owned()).collect()
    }

    /// The worker takes no more jobs on its connection; another one does.
    fn retire(&mut self, channel: Channel) {
        self.engine.disconnected(channel);
        self.connections[at(channel)] += 1;
        self.turn();
        self.engine.connected(channel);
        self.turn();
    }

    /// The connection ends, whether it is the one that takes jobs or a retired one.
    fn lose(&mut self, channel: Channel, connection: u64) {
        if connection == self.connections[at(channel)] {
            self.retire(channel);
        }
        self.engine.connection_lost(channel, connection);
        self.jobs.retain(|(of_channel, job)| *of_channel != channel || self.went[&of(job).0] != connection);
        self.turn();
    }

    fn pass(&mut self, seconds: u64) {
        let now = self.engine.now;
        self.engine.set_now(Now { s: now.s + seconds, boot: now.boot + Duration::from_secs(seconds) });
        self.turn();
    }

    fn ask(&mut self, request: &QueueRequest) -> QueueAnswer {
        self.engine.admin(99, request);
        self.turn();
        self.admin.pop().unwrap_or(QueueAnswer::Ok { messages: u64::MAX })
    }
}

use ipc::Message as _;

#[test]
fn a_full_disk_a_broken_one_and_one_that_stopped() {
    let mut rig = Rig::new(&[]);
    rig.engine.spool().set_health(Health::Full);
    let client = rig.submit("", &["r@here.example"]);
    assert!(matches!(&rig.said[&client], Said::Temporary { text } if text.0 == b"4.3.1 mail system full"));
    rig.engine.spool().set_health(Health::Ok);
    let client = rig.submit("", &["r@here.example"]);
    rig.id(client);
    rig.engine.spool().set_health(Health::Stopped);
    let client = rig.submit("", &["r@here.example"]);
    assert!(matches!(&rig.said[&client], Said::Temporary { text } if text.starts_with(b"4.3.0 ")));
    rig.answer(0, |_| (Verdict::Success, ""));
    assert!(rig.log.contains("alert: a result could not be written to the spool"), "{}", rig.log);
    assert_eq!((rig.engine.wait(), rig.engine.in_flight(Channel::Local)), (None, 0));
}

#[test]
fn a_message_to_nobody_ends_at_once() {
    let mut rig = Rig::new(&[]);
    let client = rig.submit("s@x.example", &[]);
    let id = rig.id(client);
    assert!(rig.log.ends_with(&format!("> qp 8 uid 7\nend msg {id}\n")), "{}", rig.log);
}

#[test]
fn a_crowd_at_one_place_leaves_room_for_others_and_is_not_forgotten() {
    let mut rig = Rig::new(&[("concurrencylocal", "0\n")]);
    for n in 0..PARK_OVER + 50 {
        rig.submit("", &[&format!("r{n}@here.example")]);
    }
    assert_eq!((rig.engine.active.len(), rig.engine.backlog.resting()), (PARK_OVER, 50));
    rig.submit("", &["x@y.example"]);
    assert_eq!(rig.jobs.len(), 1, "the other channel does not wait");
    rig.answer(0, |_| (Verdict::Success, ""));
    rig.engine.local.set_limit(100);
    rig.turn();
    let mut delivered = 0;
    while !rig.jobs.is_empty() {
        rig.answer(0, |_| (Verdict::Success, ""));
        delivered += 1;
    }
    assert_eq!((delivered, rig.engine.backlog.len()), (PARK_OVER + 50, 0));
    assert_eq!((rig.engine.recipients_active, rig.engine.active_of, rig.engine.kept.get()), (0, [0, 0], 0));
    assert!(rig.engine.tickets.is_empty() && rig.engine.jobs.is_empty() && rig.engine.parked.is_empty());
}

#[test]
fn a_dead_site_is_left_alone_and_tried_again() {
    let mut rig = Rig::new(&[]);
    let down = |_: &Address| (Verdict::Deferral, "Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n");
    for n in 0..3 {
        rig.submit("s@x.example", &[&format!("r{n}@dead.example")]);
    }
    assert_eq!(rig.jobs.len(), 3);
    rig.answer(0, down);
    rig.answer(0, down);
    rig.submit("s@x.example", &["late@dead.example"]);
    assert_eq!(rig.jobs.len(), 1, "nothing new is started there");
    rig.submit("s@x.example", &["r@alive.example"]);
    assert_eq!(rig.jobs.len(), 2);
    rig.answer(0, down);
    rig.pass(59);
    assert_eq!(rig.jobs.len(), 1);
    rig.pass(2);
    assert_eq!(of(&rig.jobs[1].1).2, [a("late@dead.example")], "when the back-off is over");
    rig.answer(1, |_| (Verdict::Success, ""));
    rig.pass(400);
    assert_eq!(rig.jobs.len(), 3, "and the others by the schedule, two at a time after that trouble");
}

#[test]
fn a_message_that_had_its_time_at_a_dead_site_bounces() {
    let mut rig = Rig::new(&[("queuelifetime", "100\n")]);
    let down = |_: &Address| (Verdict::Deferral, "No route. (#4.4.1)\n");
    rig.submit("s@here.example", &["r@dead.example"]);
    rig.answer(0, down);
    rig.pass(401);
    for n in 0..2 {
        rig.submit("", &[&format!("r{n}@dead.example")]);
    }
    assert_eq!(rig.jobs.len(), 2, "the window has shrunk");
    let at = rig.jobs.iter().position(|(_, job)| of(job).2 == [a("r@dead.example")]).unwrap();
    rig.answer(at, down);
    assert!(rig.log.contains("failure: No_route._(#4.4.1)/I'm_not_going_to_try_again;"), "{}", rig.log);
    assert!(rig.log.contains("\nbounce msg "));
}

/// A moment's trouble of a site is no reason to give up a message that nobody tried: it was held, or this host was down.
#[test]
fn a_message_that_had_its_time_is_tried_once_unless_its_site_is_dead_for_hours() {
    let down = |_: &Address| (Verdict::Deferral, "No route. (#4.4.1)\n");
    let mut rig = Rig::new(&[("queuelifetime", "100\n"), ("concurrencyremote", "0\n")]);
    let client = rig.submit("s@here.example", &["held@dead.example"]);
    let id = rig.id(client);
    rig.ask(&QueueRequest::Hold { id });
    rig.pass(1000);
    rig.engine.remote.set_limit(10);
    for n in 0..2 {
        rig.submit("", &[&format!("r{n}@dead.example")]);
    }
    rig.answer(0, down);
    rig.answer(0, down);
    rig.ask(&QueueRequest::Release { id });
    assert!(rig.jobs.is_empty() && rig.given_up().is_empty(), "{}", rig.log);
    rig.pass(61);
    assert_eq!(of(&rig.jobs[0].1).2, [a("held@dead.example")]);
    rig.answer(0, down);
    assert_eq!(rig.given_up(), ["held@dead.example"], "{}", rig.log);
    // The site stays dead, and what waits behind it comes to its end, tried or not.
    let clients: Vec<u64> = (0..20).map(|n| rig.submit("s@here.example", &[&format!("w{n}@dead.example")])).collect();
    for _ in 0..12 {
        rig.pass(3601);
        while let Some(at) = rig.jobs.iter().position(|(channel, _)| *channel == Channel::Remote) {
            rig.answer(at, down);
        }
    }
    let given_up = rig.given_up();
    assert_eq!(given_up.iter().filter(|recipient| recipient.starts_with('w')).count(), clients.len(), "{}", rig.log);
}

#[test]
fn a_clock_that_is_set_back_makes_mail_due() {
    let mut rig = Rig::new(&[]);
    rig.submit("s@x.example", &["r@y.example"]);
    rig.answer(0, |_| (Verdict::Deferral, "Busy. (#4.2.0)\n"));
    assert!(rig.jobs.is_empty());
    let now = rig.engine.now;
    rig.engine.set_now(Now { s: now.s - 1_000_000, boot: now.boot });
    rig.turn();
    assert_eq!(rig.jobs.len(), 1);
}

#[test]
fn hold_and_remove_while_it_is_being_delivered() {
    let mut rig = Rig::new(&[("concurrencylocal", "1\n")]);
    let client = rig.submit("", &["a@here.example", "b@here.example"]);
    let id = rig.id(client);
    assert_eq!(rig.ask(&QueueRequest::Hold { id }), QueueAnswer::Ok { messages: 1 });
    rig.answer(0, |_| (Verdict::Success, ""));
    assert_eq!((rig.jobs.len(), rig.engine.backlog.held()), (0, 1));
    rig.pass(100_000);
    assert!(rig.jobs.is_empty());
    assert_eq!(rig.ask(&QueueRequest::Release { id }), QueueAnswer::Ok { messages: 1 });
    assert_eq!(of(&rig.jobs[0].1).2, [a("b@here.example")]);
    assert_eq!(rig.ask(&QueueRequest::Remove { id }), QueueAnswer::Ok { messages: u64::MAX }, "not before the delivery is over");
    rig.answer(0, |_| (Verdict::Deferral, "later"));
    assert_eq!(rig.admin.pop(), Some(QueueAnswer::Ok { messages: 1 }));
    assert_eq!(rig.engine.backlog.len(), 0);
    assert!(rig.log.ends_with(&format!("end msg {id}\n")));
}

/// The disk fails just when a message is read that the administrator holds meanwhile.
#[test]
fn a_held_message_that_cannot_be_read_stays_held() {
    for why in [ReadFailure::Temporary, ReadFailure::Damaged] {
        let mut rig = Rig::new(&[("concurrencylocal", "0\n")]);
        let client = rig.submit("s@x.example", &["a@here.example"]);
        let id = rig.id(client);
        rig.engine.reads += 1;
        rig.engine.active.clear();
        assert_eq!(rig.ask(&QueueRequest::Hold { id }), QueueAnswer::Ok { messages: 1 });
        rig.engine.unreadable(id, why);
        assert_eq!(rig.engine.backlog.held(), 1, "{why:?}");
    }
}

#[test]
fn a_hold_or_release_that_is_not_noted_is_none() {
    for is_hold in [true, false] {
        let mut rig = Rig::new(&[]);
        let client = rig.submit("", &["a@here.example"]);
        let id = rig.id(client);
        rig.answer(0, |_| (Verdict::Deferral, "later"));
        if !is_hold {
            assert_eq!(rig.ask(&QueueRequest::Hold { id }), QueueAnswer::Ok { messages: 1 });
        }
        rig.engine.spool().set_health(Health::Stopped);
        let wish = if is_hold { QueueRequest::Hold { id } } else { QueueRequest::Release { id } };
        assert!(matches!(rig.ask(&wish), QueueAnswer::NotNow { .. }));
        rig.engine.spool().set_health(Health::Ok);
        rig.pass(100_000);
        assert_eq!((rig.jobs.len(), rig.engine.backlog.held()), (usize::from(is_hold), usize::from(!is_hold)));
    }
}

#[test]
fn what_is_being_removed_is_neither_held_nor_let_go_on() {
    let mut rig = Rig::new(&[]);
    let client = rig.submit("", &["a@here.example"]);
    let id = rig.id(client);
    rig.ask(&QueueRequest::Remove { id });
    for wish in [QueueRequest::Hold { id }, QueueRequest::Release { id }] {
        assert!(matches!(rig.ask(&wish), QueueAnswer::Failed { .. }), "{wish:?}");
    }
    rig.answer(0, |_| (Verdict::Deferral, "later"));
    assert_eq!((rig.admin.pop(), rig.engine.backlog.len()), (Some(QueueAnswer::Ok { messages: 1 }), 0));
    // At rest, and the spool stops: whoever asked is told.
    let client = rig.submit("", &["a@here.example"]);
    let id = rig.id(client);
    rig.answer(0, |_| (Verdict::Deferral, "later"));
    rig.engine.spool().set_health(Health::Stopped);
    assert!(matches!(rig.ask(&QueueRequest::Remove { id }), QueueAnswer::NotNow { .. }));
}

#[test]
fn what_cannot_be_read_is_in_the_list_and_said_to_be_so() {
    use spool::ReadFailure;
    let mut rig = Rig::new(&[]);
    let [bad, good] = ["a@here.example", "b@here.example"].map(|to| {
        let client = rig.submit("s@x.example", &[to]);
        rig.id(client)
    });
    let mut look = |request: QueueRequest, why: ReadFailure| {
        rig.engine.admin(99, &request);
        let mut looks = rig.engine.tickets.iter().filter(|(_, ticket)| matches!(ticket, Ticket::Look { id, .. } if *id == bad));
        let ticket = *looks.next().unwrap().0;
        rig.engine.read_failed(ticket, bad, why);
        rig.turn();
        rig.admin.pop().unwrap()
    };
    for why in [ReadFailure::Damaged, ReadFailure::Temporary, ReadFailure::Unknown] {
        let QueueAnswer::Rows { rows, .. } = look(QueueRequest::List { after: 0, count: 9 }, why) else { panic!() };
        let said: Vec<_> = rows.iter().map(|row| (row.id, row.unreadable)).collect();
        let is_known = why != ReadFailure::Unknown;
        assert_eq!(said, [(bad, true), (good, false)][usize::from(!is_known)..], "{why:?}");
    }
    let show = QueueRequest::Show { id: bad };
    assert!(matches!(look(show.clone(), ReadFailure::Damaged), QueueAnswer::Failed { .. }));
    assert!(matches!(look(show, ReadFailure::Temporary), QueueAnswer::NotNow { .. }));
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let mut rig = Rig::new(&[]);
    rig.submit("s@here.example", &["a@here.example", "b@here.example", "c@y.example"]);
    let local = |rig: &Rig| rig.jobs.iter().position(|(channel, _)| *channel == Channel::Local).unwrap();
    let at = local(&rig);
    rig.answer(at, |_| (Verdict::Failure, "No. (#5.1.1)\n"));
    let at = local(&rig);
    rig.answer(at, |_| (Verdict::Success, ""));
    // The third was under way when the process died.
    let living = rig.engine.spool().living();
    assert_eq!((living.len(), living[0].pending), (1, 1));
    let Rig { engine, _dir, .. } = rig;
    let Engine { spool, settings, identity, now, .. } = engine;
    let mut engine = Engine::new(spool, living, settings, identity, now);
    engine.connected(Channel::Local);
    engine.connected(Channel::Remote);
    let (jobs, said, admin) = (Vec::new(), HashMap::new(), Vec::new());
    let (went, connections) = (HashMap::new(), [1; 2]);
    let mut rig = Rig { engine, _dir, jobs, went, connections, said, admin, log: String::new(), next_client: 1 };
    rig.turn();
    assert_eq!(rig.jobs.iter().map(|(_, job)| of(job).2).collect::<Vec<_>>(), [[a("c@y.example")]]);
    rig.answer(0, |_| (Verdict::Success, ""));
    assert!(rig.log.contains("\nbounce msg "), "{}", rig.log);
}

#[test]
fn answers_of_a_retired_connection_count_and_its_end_defers_what_it_had_alone() {
    let mut rig = Rig::new(&[]);
    for name in ["answered", "lost"] {
        rig.submit("", &[&format!("{name}@a.example")]);
    }
    rig.retire(Channel::Remote);
    rig.submit("", &["next@b.example"]);
    assert_eq!(rig.jobs.len(), 3);
    // An answer from where the job never was changes nothing.
    let outcomes = vec![Outcome { recipient: 0, verdict: Verdict::Failure, text: "made up".into() }];
    let (number, ..) = of(&rig.jobs[2].1);
    rig.engine.answered(Channel::Remote, 1, Answer::Done { number, outcomes, untried: vec![], last: true });
    rig.answer(0, |_| (Verdict::Success, ""));
    rig.lose(Channel::Remote, 1);
    let lost = "delivery 2: deferral: Connection_to_qmail-remote_lost._(#4.3.0)/\n";
    assert_eq!((rig.log.matches(lost).count(), rig.log.matches(" deferral: ").count()), (1, 1), "{}", rig.log);
    assert!(rig.log.contains("delivery 1: success: ") && !rig.log.contains("made_up"), "{}", rig.log);
    rig.lose(Channel::Remote, 1);
    rig.answer(0, |address| {
        assert_eq!(address, &a("next@b.example"));
        (Verdict::Success, "")
    });
    rig.pass(10);
    rig.answer(0, |_| (Verdict::Success, ""));
    assert_eq!((rig.log.matches(" success: ").count(), rig.engine.backlog.len()), (3, 0), "{}", rig.log);
}

#[test]
fn nothing_starts_once_it_stops() {
    let mut rig = Rig::new(&[("concurrencylocal", "1\n")]);
    rig.submit("", &["a@here.example", "b@here.example"]);
    rig.engine.stop();
    assert!(!rig.engine.is_quiet());
    rig.answer(0, |_| (Verdict::Success, ""));
    assert!(rig.engine.is_quiet() && rig.jobs.is_empty());
    assert!(rig.log.contains("status: local 1/1 remote 0/20 exitasap\n"), "{}", rig.log);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Whatever workers answer and whenever connections break: each recipient of each message that was accepted comes to exactly one
    /// end, no recipient is with two jobs at a time, and at the end nothing is left behind.
    #[test]
    fn every_recipient_comes_to_one_end(events in proptest::collection::vec((0u8..14, any::<u16>()), 1..150), limit in 1u32..5) {
        let limits = format!("{limit}\n");
        let mut rig = Rig::new(&[("concurrencylocal", &limits), ("concurrencyremote", &limits)]);
        let mut wanted = BTreeMap::<String, u32>::new();
        let mut ended = BTreeMap::<String, u32>::new();
        for (event, arg) in events {
            let n = usize::from(arg);
            match event {
                0..=3 => {
                    let recipients: Vec<String> = (0..n % 7).map(|r| match (n + r) % 3 {
                        0 => format!("m{}r{r}@here.example", rig.next_client),
                        more => format!("m{}r{r}@site{}.example", rig.next_client, more + n % 2),
                    }).collect();
                    let refs: Vec<&str> = recipients.iter().map(String::as_str).collect();
                    rig.submit("", &refs);
                    for recipient in recipients { *wanted.entry(recipient).or_default() += 1; }
                }
                4..=9 if !rig.jobs.is_empty() => {
                    let verdicts = [(Verdict::Success, "K"), (Verdict::Failure, "D"), (Verdict::Deferral, "Z (#4.4.1)"), (Verdict::Deferral, "Z")];
                    let mut salt = n;
                    rig.answer(n % rig.jobs.len(), |address| {
                        salt += 1;
                        // Bounces of these null-sender messages go to the postmaster, who always takes them.
                        let verdict = if address.local() == b"postmaster" { verdicts[0] } else { verdicts[salt % 4] };
                        if verdict.0 != Verdict::Deferral { *ended.entry(address.to_string()).or_default() += 1; }
                        verdict
                    });
                }
                10 => {
                    let channel = if n % 2 == 0 { Channel::Local } else { Channel::Remote };
                    let connection = rig.connections[at(channel)];
                    match n % 3 {
                        0 => rig.retire(channel),
                        1 => rig.lose(channel, connection),
                        _ => rig.lose(channel, connection.saturating_sub(1 + u64::from(arg) / 3 % 3)),
                    }
                }
                11 => rig.pass(u64::from(arg)),
                12 => { rig.engine.retry_all(); rig.turn(); }
                _ => {
                    let id = rig.engine.backlog.after(0).nth(n % 5).map_or(0, |(id, _)| id);
                    let request = if n % 2 == 0 { QueueRequest::Hold { id } } else { QueueRequest::Release { id } };
                    rig.ask(&request);
                }
            }
            let mut with_jobs: Vec<(u64, Address)> = rig.jobs.iter().flat_map(|(_, job)| {
                let (_, message, recipients) = of(job);
                recipients.into_iter().map(move |recipient| (message, recipient))
            }).collect();
            let count = with_jobs.len();
            with_jobs.sort();
            with_jobs.dedup();
            prop_assert_eq!(with_jobs.len(), count, "two jobs for one recipient");
            prop_assert!(rig.engine.local.in_flight() <= limit && rig.engine.remote.in_flight() <= limit);
        }
        for _ in 0..200 {
            let ids: Vec<u64> = rig.engine.backlog.after(0).map(|(id, _)| id).collect();
            for id in ids { rig.ask(&QueueRequest::Release { id }); }
            rig.engine.retry_all();
            rig.turn();
            while !rig.jobs.is_empty() {
                rig.answer(0, |address| {
                    *ended.entry(address.to_string()).or_default() += 1;
                    (Verdict::Success, "K")
                });
            }
            if rig.engine.backlog.is_empty() { break; }
            rig.pass(1000);
        }
        ended.remove("postmaster@here.example");
        for recipient in rig.given_up() { *ended.entry(recipient).or_default() += 1; }
        prop_assert_eq!(ended, wanted);
        prop_assert_eq!(rig.engine.backlog.len(), 0);
        prop_assert!(rig.engine.active.is_empty() && rig.engine.jobs.is_empty() && rig.engine.tickets.is_empty());
        prop_assert_eq!((rig.engine.local.waiting(), rig.engine.remote.waiting(), rig.engine.recipients_active), (0, 0, 0));
        prop_assert_eq!(rig.engine.kept.get(), 0);
    }
}

#[test]
fn a_backlog_that_is_due_gives_way_while_new_mail_comes_in() {
    let mut rig = Rig::new(&[("concurrencyremote", "500\n")]);
    let later = |_: &Address| (Verdict::Deferral, "Later. (#4.2.0)\n");
    let clients: Vec<u64> = (0..400).map(|n| rig.submit("s@x.example", &[&format!("r@d{n}.example")])).collect();
    while !rig.jobs.is_empty() {
        rig.answer(0, later);
    }
    assert_eq!((clients.len(), rig.engine.backlog.resting()), (400, 400));
    let pace = u64::from(schedule::pace::RETRIES_PER_S) * std::thread::available_parallelism().unwrap().get() as u64;
    // Due, and a new letter in the same moment: it goes at once, and of the others a few.
    let now = rig.engine.now;
    rig.engine.set_now(Now { s: now.s + 400, boot: now.boot + Duration::from_secs(400) });
    rig.submit("s@x.example", &["new@other.example"]);
    let retries = rig.jobs.len() as u64 - 1;
    assert!(rig.jobs.iter().any(|(_, job)| of(job).2 == [a("new@other.example")]));
    assert!((1..=pace / 20 + 1).contains(&retries) && retries < 400, "{retries}");
    let wait = rig.engine.wait().unwrap();
    assert!(wait > Duration::ZERO && wait < Duration::from_millis(100), "{wait:?}");
    // Without more of it they have everything a second later.
    rig.pass(1);
    assert_eq!(rig.jobs.len(), 401);
}

/// What is asked for of recipients: NOTIFY, empty for nothing, and ORCPT.
fn asked(recipients: &[(&str, &str)]) -> Options {
    let of = |(recipient, (notify, orcpt)): (u32, &(&str, &str))| RecipientOptions {
        recipient,
        notify: wire::dsn::Notify::parse(notify.as_bytes()),
        orcpt: wire::dsn::Orcpt::new(orcpt.as_bytes()),
    };
    let envid = wire::dsn::Envid::new(b"my+20id");
    Options { envid, recipients: (0..).zip(recipients).map(of).collect(), ..Options::none() }
}

impl Rig {
    /// Delivers the report that is the next job; its text.
    fn report(&mut self) -> String {
        let at = self.jobs.iter().position(|(_, job)| of(job).2 == [a("s@here.example")]).expect("a report");
        let message = of(&self.jobs[at].1).1;
        let JobMessage::System { sender, .. } = &self.jobs[at].1 else { panic!() };
        assert!(sender.is_null(), "reports are never answered");
        let ticket = 1 << 50;
        self.engine.spool().open_body(MessageId(message), ticket);
        let body = self.engine.spool().completions().into_iter().find_map(|completion| match completion {
            Completion::BodyFd { fd, bytes, .. } => {
                let mut text = vec![0; usize::try_from(bytes).unwrap()];
                rustix::io::pread(&fd, &mut text[..], 0).unwrap();
                Some(String::from_utf8(text).unwrap())
            }
            _ => None,
        });
        self.answer(at, |_| (Verdict::Success, "did 1+0+0\n"));
        body.unwrap()
    }
}

#[test]
fn who_asked_is_told_of_success_once_and_how() {
    let mut rig = Rig::new(&[]);
    let options = asked(&[
        ("SUCCESS", "rfc822;first+2B@x"),
        ("SUCCESS", ""),
        ("SUCCESS,FAILURE", ""),
        ("", ""),
        ("SUCCESS", ""),
        ("SUCCESS", ""),
    ]);
    let to =
        ["one@here.example", "two@here.example", "three@here.example", "four@here.example", "five@y.example", "six@z.example"];
    let id = rig.submit_with("s@here.example", &to, options);
    let id = rig.id(id);
    while let Some(at) = rig.jobs.iter().position(|(_, job)| of(job).1 == id) {
        if let JobMessage::Remote { number, recipients, options, .. } = &rig.jobs[at].1 {
            let (number, options) = (*number, options.clone().unwrap());
            assert_eq!((options.recipients.len(), options.envid.unwrap().decoded()), (1, b"my id".to_vec()));
            if recipients == &[a("six@z.example")] {
                // Numbers that it was not given change nothing.
                rig.engine.answered(Channel::Remote, 1, Answer::PassedOn { number, recipients: vec![0, 7] });
                rig.engine.answered(Channel::Local, 1, Answer::PassedOn { number, recipients: vec![0] });
            }
        }
        rig.answer(at, |to| match to.local() {
            b"two" => (Verdict::Success, "did 0+2+0\nqp 5\n"),
            b"three" => (Verdict::Failure, "No. (#5.1.1)\n"),
            _ => (Verdict::Success, "did 1+0+0\n"),
        });
    }
    let text = rig.report();
    assert!(text.contains("\nSubject: delivery report\n") && text.contains("\nOriginal-Envelope-Id: my id\n"), "{text}");
    for block in [
        "Original-Recipient: rfc822;first+@x\nFinal-Recipient: rfc822; one@here.example\nAction: delivered\nStatus: 2.0.0\n",
        "\n\nFinal-Recipient: rfc822; two@here.example\nAction: expanded\n",
        "\n\nFinal-Recipient: rfc822; five@y.example\nAction: relayed\n",
    ] {
        assert!(text.contains(block), "{block}: {text}");
    }
    assert_eq!(
        text.matches("\nAction: ").count(),
        3,
        "four did not ask, six is told of by the next server, three failed: {text}"
    );
    let text = rig.report();
    assert!(text.contains("\nSubject: failure notice\n") && text.contains("\nOriginal-Envelope-Id: my id\n"), "{text}");
    assert!(text.contains("<three@here.example>:\nNo. (#5.1.1)\n") && text.matches("\nAction: ").count() == 1, "{text}");
    assert!(rig.jobs.is_empty() && rig.engine.spool().living().is_empty(), "{}", rig.log);
}

#[test]
fn who_wants_no_reports_gets_none() {
    let mut rig = Rig::new(&[]);
    for (sender, notify) in
        [("s@here.example", "NEVER"), ("s@here.example", "SUCCESS"), ("s@here.example", "DELAY"), ("", "NEVER")]
    {
        rig.submit_with(sender, &["r@y.example"], asked(&[(notify, "")]));
        rig.answer(0, |_| (Verdict::Failure, "No. (#5.1.1)\n"));
        assert!(rig.jobs.is_empty() && rig.engine.spool().living().is_empty(), "{notify}: {}", rig.log);
    }
    // Nobody is there to be told of success.
    for sender in ["", "#@[]"] {
        rig.submit_with(sender, &["r@y.example"], asked(&[("SUCCESS", "")]));
        rig.answer(0, |_| (Verdict::Success, "ok\n"));
        assert!(rig.jobs.is_empty() && rig.engine.spool().living().is_empty(), "{sender}: {}", rig.log);
    }
    let long = Options { ret: Some(wire::dsn::Ret::Headers), ..asked(&[("FAILURE", "")]) };
    rig.submit_with("s@here.example", &["r@y.example"], long);
    rig.answer(0, |_| (Verdict::Failure, "No. (#5.1.1)\n"));
    let text = rig.report();
    assert!(text.contains("\nContent-Type: text/rfc822-headers\n") && text.contains("\nSubject: x\n\n--qmail-"), "{text}");
}

#[test]
fn a_delay_is_told_once_to_who_asked() {
    let mut rig = Rig::new(&[]);
    let client = rig.submit_with("s@here.example", &["r@y.example", "q@z.example"], asked(&[("DELAY", ""), ("FAILURE", "")]));
    let id = rig.id(client);
    let (mut reports, mut attempts) = (Vec::new(), 0);
    for _ in 0..200 {
        while let Some(at) = rig.jobs.iter().position(|(_, job)| of(job).1 == id) {
            attempts += 1;
            rig.answer(at, |_| (Verdict::Deferral, "Later. (#4.2.2)\n"));
        }
        if !rig.jobs.is_empty() {
            reports.push((rig.engine.now.s - START_S, rig.report()));
        }
        rig.pass(600);
    }
    assert_eq!(reports.len(), 1);
    let (after_s, text) = &reports[0];
    assert!((4 * 3600..6 * 3600).contains(after_s) && attempts > 20, "{after_s} {attempts}");
    assert!(text.contains("\nAction: delayed\nStatus: 4.2.2\n") && text.matches("\nAction: ").count() == 1, "{text}");
    assert!(text.contains("\nWill-Retry-Until: 16 Sep 2001 01:46:40 -0000\n"), "{text}");
    // The disk knows, too, that he was told.
    rig.engine.spool().read_envelope(MessageId(id), 1 << 50);
    let states = rig.engine.spool().completions().into_iter().find_map(|completion| match completion {
        Completion::Envelope { states, .. } => Some(states),
        _ => None,
    });
    let warned = states
        .unwrap()
        .iter()
        .map(|state| matches!(state, spool::RecipientState::Pending { warned: true, .. }))
        .collect::<Vec<_>>();
    assert_eq!(warned, [true, false]);
}

#[test]
fn what_is_for_later_waits_and_has_its_whole_time_then() {
    let mut rig = Rig::new(&[("queuelifetime", "1000\n")]);
    let until_s = START_S + 86_400;
    rig.submit_with("s@here.example", &["r@y.example"], Options { hold_until_s: Some(until_s), ..Options::none() });
    assert_eq!((rig.jobs.len(), rig.engine.wait()), (0, Some(Duration::from_secs(86_400))));
    rig.pass(86_000);
    assert_eq!(rig.engine.retry_all(), 1);
    rig.turn();
    assert!(rig.jobs.is_empty(), "asking for attempts is no reason");
    rig.pass(400);
    assert_eq!(rig.jobs.len(), 1);
    let JobMessage::Remote { options, .. } = &rig.jobs[0].1 else { panic!() };
    assert!(options.is_none(), "the next server is asked for nothing");
    rig.answer(0, |_| (Verdict::Deferral, "Later. (#4.2.2)\n"));
    rig.pass(400);
    rig.answer(0, |_| (Verdict::Deferral, "Later. (#4.2.2)\n"));
    assert!(rig.jobs.is_empty(), "a schedule and a lifetime from then on");
    rig.pass(1200);
    rig.answer(0, |_| (Verdict::Deferral, "Later. (#4.2.2)\n"));
    assert!(rig.report().contains("this message has been in the queue too long"));
}

fn by(seconds: i64, mode: &str) -> Options {
    let by = wire::By::parse(format!("{seconds};{mode}").as_bytes()).unwrap();
    Options { deliver_by: Some(wire::DeliverBy::new(by, START_S)), ..Options::none() }
}

impl Rig {
    /// Defers every job until the message comes back or `seconds` are over; seconds until then, and the report.
    fn defer_for(&mut self, id: u64, seconds: u64) -> Option<(u64, String)> {
        loop {
            while let Some(at) = self.jobs.iter().position(|(_, job)| of(job).1 == id) {
                self.answer(at, |_| {
                    (Verdict::Deferral, "192.0.2.1 does not like recipient.\nRemote host said: 450 4.2.2 later\n")
                });
            }
            let passed_s = self.engine.now.s - START_S;
            if !self.jobs.is_empty() {
                return Some((passed_s, self.report()));
            }
            if passed_s >= seconds {
                return None;
            }
            let wait = self.engine.wait().map_or(1, |wait| wait.as_secs().max(1));
            self.pass(wait);
        }
    }
}

#[test]
fn beyond_its_time_a_message_goes_back_and_is_tried_no_more() {
    for to in ["r@y.example", "r@here.example"] {
        let mut rig = Rig::new(&[]);
        let client = rig.submit_with("s@here.example", &[to], by(1000, "R"));
        let id = rig.id(client);
        let (after_s, text) = rig.defer_for(id, 5000).unwrap();
        assert_eq!(after_s, 1000, "{}", rig.log);
        assert!(text.contains("\nAction: failed\nStatus: 5.4.7\n") && text.contains("\nSubject: failure notice\n"), "{text}");
        assert!(rig.jobs.is_empty() && rig.engine.spool().living().is_empty(), "{}", rig.log);
        let rows = rig.log.matches("starting delivery").count();
        assert!(rig.log.contains("failure: Sorry,_it_could_not_be_delivered_by_the_time") && rows > 3, "{}", rig.log);
    }
    // Delivered in time it is nobody's concern; nor is who wants no reports.
    for (options, verdict) in [
        (by(1000, "R"), Verdict::Success),
        (Options { recipients: asked(&[("NEVER", "")]).recipients, ..by(1000, "R") }, Verdict::Deferral),
    ] {
        let mut rig = Rig::new(&[]);
        rig.submit_with("s@here.example", &["r@y.example"], options);
        rig.answer(0, |_| (verdict, "ok\n"));
        rig.pass(1000);
        rig.pass(1000);
        assert!(rig.jobs.is_empty() && rig.engine.spool().living().is_empty(), "{}", rig.log);
    }
}

/// Behind an LMTP server there is no next one that could tell, or keep the time.
#[test]
fn who_gets_it_by_lmtp_is_delivered() {
    for (route, action) in [
        ("y.example:127.0.0.1:24\n", "delivered"),
        ("y.example:unix:/run/lmtp\n", "delivered"),
        ("z.example:127.0.0.1\n", "relayed"),
    ] {
        for options in [asked(&[("SUCCESS", "")]), Options { recipients: asked(&[("SUCCESS", "")]).recipients, ..by(1000, "RT") }]
        {
            let mut rig = Rig::new(&[("lmtproutes", route)]);
            rig.submit_with("s@here.example", &["r@y.example"], options);
            let is_lmtp = matches!(
                &rig.jobs[0].1,
                JobMessage::Remote { route: ipc::job::Route::Lmtp { .. } | ipc::job::Route::LmtpSocket { .. }, .. }
            );
            assert_eq!(is_lmtp, action == "delivered");
            rig.answer(0, |_| (Verdict::Success, "192.0.2.1 accepted message.\n"));
            let text = rig.report();
            assert!(text.contains(&format!("Final-Recipient: rfc822; r@y.example\nAction: {action}\n")), "{route}: {text}");
        }
    }
}

/// qmtproutes comes before smtproutes; authsenders and lmtproutes before it.
#[test]
fn qmtp_has_routes_of_its_own() {
    for (files, expected) in [
        (&[("qmtproutes", "y.example:192.0.2.7\n"), ("smtproutes", ":192.0.2.8\n")][..], "qmtp 192.0.2.7:209"),
        (&[("qmtproutes", ".example:192.0.2.7:2090\n")], "qmtp 192.0.2.7:2090"),
        (&[("qmtproutes", ".example:192.0.2.7\ny.example:\n"), ("smtproutes", ":192.0.2.8\n")], "192.0.2.8:25"),
        (&[("qmtproutes", ":192.0.2.7\n"), ("authsenders", "s@here.example:192.0.2.9\n")], "192.0.2.9:25"),
        (&[("qmtproutes", ":192.0.2.7\n"), ("lmtproutes", "y.example:192.0.2.9:24\n")], "lmtp"),
    ] {
        let mut rig = Rig::new(files);
        rig.submit("s@here.example", &["r@y.example"]);
        let JobMessage::Remote { route, .. } = &rig.jobs[0].1 else { panic!() };
        let shown = match route {
            ipc::job::Route::Qmtp { host, port } => format!("qmtp {}:{port}", host.escape_ascii()),
            ipc::job::Route::Relay { host, port, .. } => format!("{}:{port}", host.escape_ascii()),
            _ => "lmtp".to_owned(),
        };
        assert_eq!(shown, expected, "{files:?}");
    }
}

#[test]
fn what_waits_for_a_slot_beyond_its_time_goes_back_too() {
    let mut rig = Rig::new(&[("concurrencyremote", "0\n")]);
    rig.submit_with("s@here.example", &["r@y.example", "q@z.example"], by(60, "R"));
    rig.submit_with("s@here.example", &["r@y.example"], by(60, "N"));
    assert!(rig.jobs.is_empty());
    assert_eq!(rig.engine.wait(), Some(Duration::from_secs(60)));
    rig.pass(59);
    assert!(rig.jobs.is_empty());
    rig.pass(1);
    let texts = [rig.report(), rig.report()];
    let count = |what: &str| texts.iter().map(|text| text.matches(what).count()).sum::<usize>();
    assert_eq!((count("\nAction: failed\nStatus: 5.4.7\n"), count("\nAction: delayed\nStatus: 4.4.7\n")), (2, 1), "{texts:?}");
    assert_eq!(rig.engine.spool().living().len(), 1, "the other one still waits");
    rig.pass(100_000);
    assert!(rig.jobs.is_empty(), "it is told once");
}

#[test]
fn a_restart_does_not_forget_the_time() {
    let mut rig = Rig::new(&[("concurrencyremote", "0\n")]);
    rig.submit_with("s@here.example", &["r@y.example"], by(60, "R"));
    let living = rig.engine.spool().living();
    let (spool, settings) = (
        std::mem::replace(rig.engine.spool(), Model::new().unwrap()),
        Settings::read(&Root::new(rig._dir.path()).unwrap()).unwrap(),
    );
    let now = Now { s: START_S + 61, boot: Duration::from_secs(9) };
    rig.engine = Engine::new(spool, living, settings, Identity { uid: 5, pid: 6 }, now);
    rig.engine.connected(Channel::Local);
    rig.engine.connected(Channel::Remote);
    rig.turn();
    assert!(rig.report().contains("\nAction: failed\nStatus: 5.4.7\n"), "{}", rig.log);
}

#[test]
fn beyond_its_time_the_sender_is_told_once_and_it_goes_on() {
    let mut rig = Rig::new(&[]);
    let client = rig.submit_with("s@here.example", &["r@y.example", "q@y.example", "p@y.example"], {
        let recipients = asked(&[("", ""), ("NEVER", ""), ("DELAY", "")]).recipients;
        Options { recipients, ..by(1000, "N") }
    });
    let id = rig.id(client);
    let (after_s, text) = rig.defer_for(id, 5000).unwrap();
    assert_eq!(after_s, 1000);
    assert!(text.contains("\nSubject: delayed, still trying\n"), "{text}");
    assert_eq!(text.matches("\nAction: delayed\nStatus: 4.4.7\n").count(), 2, "{text}");
    assert!(!text.contains("q@y.example"), "{text}");
    assert!(rig.defer_for(id, 10_000).is_none(), "once");
    while rig.jobs.is_empty() {
        rig.pass(100);
    }
    // The next server hears that it was told.
    let JobMessage::Remote { options, .. } = &rig.jobs[0].1 else { panic!() };
    let by = options.as_ref().unwrap().deliver_by.unwrap();
    assert!(!by.told && by.at_s == START_S + 1000, "not all of them were told");
    rig.answer(0, |_| (Verdict::Success, "ok\n"));
    let text = rig.report();
    assert!(text.contains("\nSubject: delivery report\n") && text.matches("\nAction: relayed\n").count() == 2, "{text}");
    // Told by somebody before us, nobody is told again; and nobody is there to be told.
    for (sender, options) in
        [("s@here.example", Options { ..self::by(-5, "N") }), ("", self::by(1000, "N")), ("#@[]", self::by(1000, "N"))]
    {
        let mut rig = Rig::new(&[]);
        let client = rig.submit_with(sender, &["r@y.example"], options);
        let id = rig.id(client);
        assert!(rig.defer_for(id, 10_000).is_none(), "{sender}");
    }
}

#[test]
fn who_keeps_the_time_makes_the_reports() {
    // The mode, what the next server keeps, and whether the sender is told of the relay.
    for (mode, kept, told) in [("N", true, false), ("N", false, true), ("NT", true, true), ("R", true, false), ("RT", true, true)]
    {
        let mut rig = Rig::new(&[]);
        rig.submit_with("s@here.example", &["r@y.example"], by(1000, mode));
        let (number, ..) = of(&rig.jobs[0].1);
        if kept {
            rig.engine.answered(Channel::Remote, 1, Answer::TimeKept { number, recipients: vec![0, 9] });
        }
        rig.answer(0, |_| (Verdict::Success, "ok\n"));
        assert_eq!(rig.jobs.len(), usize::from(told), "{mode} {kept}");
        if told {
            assert!(rig.report().contains("\nAction: relayed\n"));
        }
        assert!(rig.engine.spool().living().is_empty());
    }
    // Delivered here there is no relay to tell of.
    let mut rig = Rig::new(&[]);
    rig.submit_with("s@here.example", &["r@here.example"], by(1000, "NT"));
    rig.answer(0, |_| (Verdict::Success, "did 1+0+0\n"));
    assert!(rig.jobs.is_empty());
}

#[test]
fn urgent_mail_is_started_first_and_its_bounce_is_as_urgent() {
    let urgent = |number| Options { priority: wire::Priority::new(number), ..Options::none() };
    let mut rig = Rig::new(&[("concurrencyremote", "1\n")]);
    rig.submit("s@here.example", &["first@y.example"]);
    for (to, number) in [("slow@y.example", -4), ("usual@y.example", 0), ("urgent@y.example", 6)] {
        rig.submit_with("s@here.example", &[to], urgent(number));
    }
    let mut order = Vec::new();
    while let Some(at) = rig.jobs.iter().position(|(channel, _)| *channel == Channel::Remote) {
        order.push(of(&rig.jobs[at].1).2.remove(0).to_string());
        rig.answer(at, |to| if to.local() == b"urgent" { (Verdict::Failure, "No.\n") } else { (Verdict::Success, "ok\n") });
    }
    assert_eq!(order, ["first@y.example", "urgent@y.example", "usual@y.example", "slow@y.example"]);
    let bounce = rig.engine.spool().living().remove(0).id;
    rig.engine.spool().read_envelope(bounce, 1 << 50);
    let options = rig.engine.spool().completions().into_iter().find_map(|completion| match completion {
        Completion::Envelope { envelope, .. } => Options::stored(&envelope.options).ok(),
        _ => None,
    });
    assert_eq!(options, Some(urgent(6)));
    let QueueAnswer::Rows { rows, .. } = rig.ask(&QueueRequest::List { after: 0, count: 9 }) else { panic!() };
    assert_eq!((rows[0].priority, rows[0].deliver_by_s), (6, 0));
}

#[test]
fn what_is_forwarded_inherits() {
    use ipc::inheritance::Inheritance;
    let mut rig = Rig::new(&[]);
    let options = Options { recipients: asked(&[("SUCCESS,DELAY", "rfc822;x@y")]).recipients, ..by(1000, "R") };
    rig.submit_with("s@here.example", &["r@here.example"], options.clone());
    let JobMessage::System { inherits, .. } = &rig.jobs[0].1 else { panic!() };
    let inherits = Inheritance::from_bytes(inherits).unwrap();
    assert_eq!((inherits.options.deliver_by, inherits.of_recipient().count()), (options.deliver_by, 2));
    // A copy does not tell again what the sender knows.
    let client = rig.submit_with("s@here.example", &["q@here.example"], self::by(100, "N"));
    let id = rig.id(client);
    rig.jobs.remove(0);
    assert!(rig.defer_for(id, 1000).is_some());
    while !rig.jobs.iter().any(|(_, job)| of(job).1 == id) {
        rig.pass(100);
    }
    let JobMessage::System { inherits, .. } = &rig.jobs.pop().unwrap().1 else { panic!() };
    assert!(Inheritance::from_bytes(inherits).unwrap().options.deliver_by.unwrap().told);
    rig.jobs.clear();
    rig.submit("s@here.example", &["r@here.example"]);
    let JobMessage::System { inherits, .. } = &rig.jobs[0].1 else { panic!() };
    assert!(inherits.is_empty(), "nothing was asked for");
}

#[test]
fn a_bounce_is_archived_too_and_no_report_names_the_archive() {
    let mut rig = Rig::new(&[("taps", "A:s@here.example:arch@here.example\n")]);
    let id = rig.submit_with("s@here.example", &["r@y.example"], asked(&[("SUCCESS,FAILURE", "")]));
    let id = rig.id(id);
    let of_archive = |rig: &Rig| rig.jobs.iter().position(|(_, job)| of(job).2 == [a("arch@here.example")]).expect("a copy");
    let at = of_archive(&rig);
    rig.answer(at, |_| (Verdict::Failure, "No room. (#5.2.2)\n"));
    let alert = format!("\nalert: msg {id} is not archived at arch@here.example: No room. (#5.2.2)\n");
    assert!(rig.log.contains(&alert), "{}", rig.log);
    rig.answer(0, |_| (Verdict::Failure, "No. (#5.1.1)\n"));
    let text = rig.report();
    assert!(text.contains("<r@y.example>:\nNo. (#5.1.1)\n") && !text.contains("arch@"), "{text}");
    let at = of_archive(&rig);
    rig.answer(at, |_| (Verdict::Success, "did 1+0+0\n"));
    assert!(rig.jobs.is_empty() && rig.engine.spool().living().is_empty(), "{}", rig.log);
    // What a delivery of it forwards is no second message for the archive.
    rig.submit("s@here.example", &["r@here.example"]);
    for (_, job) in &rig.jobs {
        let JobMessage::System { inherits, .. } = job else { panic!() };
        let inherited = ipc::inheritance::Inheritance::from_bytes(inherits).unwrap();
        assert_eq!(inherited.flags & ipc::queue::FLAG_ARCHIVED, ipc::queue::FLAG_ARCHIVED);
    }
}

#[test]
fn a_site_with_a_limit_has_its_transactions_one_by_one() {
    let mut rig = Rig::new(&[("sitelimits", ".y.example:1:60\ny.example:0\n")]);
    for n in 0..3 {
        rig.submit("s@x.example", &[&format!("r{n}@a.y.example"), "r@y.example"]);
    }
    assert_eq!(rig.jobs.len(), 1, "one at a time at the one, none at the other");
    rig.answer(0, |_| (Verdict::Success, ""));
    assert_eq!((rig.jobs.len(), rig.engine.wait()), (0, Some(Duration::from_secs(1))));
    rig.pass(1);
    // Parts of different messages may overtake each other.
    let is_limited = |rig: &Rig| of(&rig.jobs[0].1).2[0].as_bytes().ends_with(b"@a.y.example");
    assert!(rig.jobs.len() == 1 && is_limited(&rig));
    rig.pass(10);
    assert_eq!(rig.jobs.len(), 1);
    rig.answer(0, |_| (Verdict::Success, ""));
    assert!(rig.jobs.len() == 1 && is_limited(&rig));
    std::fs::remove_file(rig._dir.path().join("etc/qmail/control/sitelimits")).unwrap();
    rig.engine.look_at_files();
    rig.turn();
    assert_eq!(rig.jobs.len(), 4, "without the file there is no limit");
}
