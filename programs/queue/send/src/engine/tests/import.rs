//! Messages of another queue: kept, found, confirmed; and what a restart between finds.

use super::*;
use crate::clients::Importing;
use crate::submission::Submission;
use ipc::admin::KeptRow;
use ipc::import::{Became, Earlier, Import};

const WHO: Submitter = Submitter { uid: 0, pid: 1, invoked: InvokedBy::Uid(0) };

impl Rig {
    fn keep(&mut self, key: &str, recipients: &[(&str, Option<Became>)]) -> u64 {
        let numbered = (0..).zip(recipients);
        let past = numbered.filter_map(|(recipient, (_, became))| Some(Earlier { recipient, became: became.clone()? }));
        let message = Submitted {
            sender: a("s@x.example"),
            recipients: recipients.iter().map(|(address, _)| a(address)).collect(),
            flags: 0,
            options: Options::none(),
            import: Some(Import { key: key.into(), recipients: past.collect() }),
            message_id: None,
            body: Body::Inline(b"Subject: x\n\nbody\n".to_vec()),
            bytes: 17,
            held: 0,
        };
        let submission = Submission::importing(WHO, key.into());
        let from = Importing { submission, arrival_s: START_S - 1000, uid: 3, pid: 4 };
        self.engine.import(99, &from, message);
        self.turn();
        match self.admin.pop() {
            Some(QueueAnswer::Kept { id }) => id,
            other => panic!("{other:?}"),
        }
    }

    fn waiting(&mut self) -> Vec<KeptRow> {
        match self.ask(&QueueRequest::Kept { after: 0 }) {
            QueueAnswer::KeptRows { rows, last: true, .. } => rows,
            other => panic!("{other:?}"),
        }
    }

    /// Another process with the same spool.
    fn restart(&mut self) {
        let spool = std::mem::replace(self.engine.spool(), Model::new().unwrap());
        let settings = Settings::read(&Root::new(self._dir.path()).unwrap()).unwrap();
        let (living, now) = (spool.living(), self.engine.now);
        self.engine = Engine::new(spool, living, settings, Identity { uid: 5, pid: 6 }, now);
        self.jobs.clear();
        self.went.clear();
        self.engine.connected(Channel::Local);
        self.engine.connected(Channel::Remote);
        self.turn();
    }
}

#[test]
fn nothing_of_it_is_tried_before_it_is_confirmed_whatever_happens() {
    let mut rig = Rig::new(&[]);
    let id = rig.keep("key", &[("r@here.example", None)]);
    let row = || vec![KeptRow { id, key: "key".into() }];
    assert!(rig.log.contains(&format!("info msg {id}: bytes 17 from <s@x.example> qp 4 uid 3\n")), "{}", rig.log);
    for restarts in 0..3 {
        assert_eq!(rig.waiting(), row());
        rig.ask(&QueueRequest::RetryAll {});
        rig.ask(&QueueRequest::Release { id });
        rig.pass(100_000);
        assert_eq!((rig.jobs.len(), rig.waiting()), (0, row()), "after {restarts} restarts");
        rig.restart();
    }
    assert_eq!(rig.ask(&QueueRequest::Confirm { id }), QueueAnswer::Ok { messages: 1 });
    assert_eq!((rig.jobs.len(), rig.waiting()), (1, vec![]));
    assert_eq!(rig.ask(&QueueRequest::Confirm { id }), QueueAnswer::Ok { messages: 1 }, "it is confirmed already");
    assert_eq!(rig.jobs.len(), 1);
    rig.restart();
    assert_eq!((rig.jobs.len(), rig.waiting()), (1, vec![]), "confirmed it stays");
    rig.answer(0, |_| (Verdict::Success, ""));
    assert_eq!(rig.engine.backlog.len(), 0);
    assert_eq!(rig.ask(&QueueRequest::Confirm { id }), QueueAnswer::Ok { messages: 0 });
    assert!(rig.engine.tickets.is_empty() && rig.engine.confirming.is_empty());
}

#[test]
fn it_goes_on_where_it_was() {
    let mut rig = Rig::new(&[]);
    let failed = Became::Failed { text: "No. (#5.1.1)\n".into() };
    let waits = Became::Waits { due_s: START_S + 500 };
    let to = [
        ("now@here.example", None),
        ("done@here.example", Some(Became::Done {})),
        ("dead@y.example", Some(failed)),
        ("later@z.example", Some(waits)),
    ];
    let id = rig.keep("key", &to);
    rig.ask(&QueueRequest::Confirm { id });
    rig.restart();
    assert_eq!(rig.jobs.len(), 1);
    assert_eq!(of(&rig.jobs[0].1).2, [a("now@here.example")]);
    rig.answer(0, |_| (Verdict::Success, ""));
    rig.pass(499);
    assert_eq!(rig.jobs.len(), 0);
    rig.pass(1);
    assert_eq!(of(&rig.jobs[0].1).2, [a("later@z.example")]);
    rig.answer(0, |_| (Verdict::Success, ""));
    // The bounce has what was collected, and is on its way.
    assert_eq!(of(&rig.jobs[0].1).2, [a("s@x.example")]);
    assert!(rig.log.contains(&format!("bounce msg {id} qp ")), "{}", rig.log);
}

#[test]
fn it_is_refused_where_the_spool_is_full_and_a_confirmation_that_is_not_noted_is_none() {
    let mut rig = Rig::new(&[]);
    let id = rig.keep("key", &[("r@here.example", None)]);
    rig.engine.spool().set_health(Health::Stopped);
    assert!(matches!(rig.ask(&QueueRequest::Confirm { id }), QueueAnswer::NotNow { .. }));
    rig.engine.spool().set_health(Health::Ok);
    rig.turn();
    assert_eq!((rig.jobs.len(), rig.waiting().len()), (0, 1));
    assert_eq!(rig.ask(&QueueRequest::Confirm { id }), QueueAnswer::Ok { messages: 1 });
    assert_eq!(rig.jobs.len(), 1);
}

#[test]
fn a_body_is_handed_out() {
    let mut rig = Rig::new(&[]);
    let id = rig.keep("key", &[("r@here.example", None)]);
    rig.engine.admin(99, &QueueRequest::Body { id });
    rig.engine.completions();
    assert!(matches!(rig.engine.out.last(), Some(Out::AdminBody { bytes: 17, .. })), "{:?}", rig.engine.out);
    rig.turn();
    assert!(matches!(rig.ask(&QueueRequest::Body { id: id + 1 }), QueueAnswer::Failed { .. }));
}

#[test]
fn a_hold_outlives_the_confirmation() {
    for is_restarted in [false, true] {
        let mut rig = Rig::new(&[]);
        let id = rig.keep("key", &[("r@here.example", None)]);
        assert_eq!(rig.ask(&QueueRequest::Hold { id }), QueueAnswer::Ok { messages: 1 });
        if is_restarted {
            rig.restart();
        }
        assert_eq!(rig.waiting().len(), 1, "held or not it waits");
        assert_eq!(rig.ask(&QueueRequest::Confirm { id }), QueueAnswer::Ok { messages: 1 });
        rig.pass(100_000);
        assert_eq!((rig.jobs.len(), rig.waiting()), (0, vec![]));
        rig.restart();
        rig.pass(1);
        assert_eq!(rig.jobs.len(), 0);
        assert_eq!(rig.ask(&QueueRequest::Release { id }), QueueAnswer::Ok { messages: 1 });
        assert_eq!(rig.jobs.len(), 1);
    }
}

#[test]
fn a_hold_or_release_counts_at_any_moment_of_a_confirmation() {
    for is_hold in [true, false] {
        for moment in 0..4 {
            let mut rig = Rig::new(&[]);
            let id = rig.keep("key", &[("r@here.example", None)]);
            if !is_hold {
                rig.ask(&QueueRequest::Hold { id });
            }
            rig.engine.admin(98, &QueueRequest::Confirm { id });
            (0..moment).for_each(|_| rig.engine.completions());
            let wish = if is_hold { QueueRequest::Hold { id } } else { QueueRequest::Release { id } };
            rig.engine.admin(99, &wish);
            rig.turn();
            rig.pass(1000);
            let jobs = usize::from(!is_hold);
            assert_eq!((rig.jobs.len(), rig.waiting()), (jobs, vec![]), "{wish:?} after {moment}");
            rig.restart();
            assert_eq!(rig.jobs.len(), jobs, "{wish:?} after {moment} and a restart");
            assert!(rig.engine.tickets.is_empty() || jobs == 1);
            assert!(rig.engine.confirming.is_empty());
        }
    }
}

#[test]
fn a_row_says_that_it_waits_to_be_confirmed() {
    let mut rig = Rig::new(&[]);
    let id = rig.keep("key", &[("r@here.example", Some(Became::Waits { due_s: START_S + 500 }))]);
    for is_unconfirmed in [true, false] {
        for request in [QueueRequest::List { after: 0, count: 9 }, QueueRequest::Show { id }] {
            let row = match rig.ask(&request) {
                QueueAnswer::Rows { mut rows, .. } => rows.remove(0),
                QueueAnswer::Message { row, .. } => row,
                other => panic!("{other:?}"),
            };
            assert_eq!(row.unconfirmed, is_unconfirmed, "{request:?}");
        }
        rig.ask(&QueueRequest::Confirm { id });
    }
}
