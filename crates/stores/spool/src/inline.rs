//! The real spool without threads: every request is carried out at once, in one thread. For the power-cut and fault suites, which
//! must be able to repeat a run exactly.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use sys::fs::Disk;

use crate::engine::Engine;
use crate::house::House;
use crate::op::{HouseOp, Op};
use crate::shared::lock;
use crate::side::{SideBody, SidePool};
use crate::spool::{Front, Opened, ReadKind, answer_read, open_parts};
use crate::types::{Body, Change, Completion, Envelope, Health, Living, Log, MessageId, Outlook, SpoolError, Stats};

pub(crate) struct Inline {
    pub(crate) front: Front,
    pub(crate) engine: Engine,
    queue: Arc<Mutex<Vec<Op>>>,
    house: House,
    /// While set, requests are only collected: they become one batch.
    pub(crate) holding: bool,
}

impl Inline {
    pub(crate) fn open(disk: Arc<dyn Disk>, segment_bytes: u64) -> Result<(Self, Vec<Living>), SpoolError> {
        let Opened { shared, engine, living, first_side } = open_parts(disk, Some(segment_bytes), true)?;
        let queue: Arc<Mutex<Vec<Op>>> = Arc::default();
        let forward = Arc::clone(&queue);
        let sides = SidePool::new(Arc::clone(&shared), first_side, Box::new(move |op| lock(&forward).push(op)));
        let house = House::new(Arc::clone(&shared), 0);
        Ok((Self { front: Front { shared, sides }, engine, queue, house, holding: false }, living))
    }

    pub(crate) fn flush(&mut self) {
        self.front.sides.run_all();
        let ops = std::mem::take(&mut *lock(&self.queue));
        self.engine.commit(ops);
    }

    fn push(&mut self, op: Option<Op>) {
        lock(&self.queue).extend(op);
        if !self.holding {
            self.flush();
        }
    }

    /// One round of housekeeping; `true` if there is more to do.
    pub(crate) fn keep_house(&mut self) -> bool {
        let Self { engine, house, .. } = self;
        let mut submit = |ops: Vec<HouseOp>| {
            let (done, answer) = std::sync::mpsc::channel();
            engine.commit(vec![Op::House { ops, done }]);
            answer.try_recv().unwrap_or(false)
        };
        house.step(&mut submit)
    }
}

impl Log for Inline {
    fn accept(&mut self, envelope: Envelope, body: Body, ticket: u64) {
        let op = self.front.accept(&envelope, body, 0, ticket);
        self.push(op);
    }
    fn bounce_and_end(&mut self, bounce: Envelope, body: Body, ended: MessageId, ticket: u64) {
        let op = self.front.accept(&bounce, body, ended.0, ticket);
        self.push(op);
    }
    fn progress(&mut self, id: MessageId, changes: Vec<Change>, outlook: Outlook, ticket: u64) {
        self.push(Some(Front::progress(id, &changes, outlook, ticket)));
    }
    fn note(&mut self, id: MessageId, outlook: Outlook, ticket: u64) {
        self.push(Some(Front::note(id, outlook, ticket)));
    }
    fn end(&mut self, id: MessageId, ticket: u64) {
        self.push(Some(Op::End { id: id.0, ticket }));
    }
    fn read_envelope(&mut self, id: MessageId, ticket: u64) {
        self.front.shared.outbox.say(answer_read(&self.front.shared, ReadKind::Envelope, id, ticket));
    }
    fn open_body(&mut self, id: MessageId, ticket: u64) {
        self.front.shared.outbox.say(answer_read(&self.front.shared, ReadKind::Body, id, ticket));
    }
    fn side_file(&mut self) -> SideBody {
        self.front.sides.body()
    }
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.front.shared.outbox.wake.as_fd()
    }
    fn completions(&mut self) -> Vec<Completion> {
        self.front.sides.run_all();
        self.front.shared.outbox.take()
    }
    fn stats(&self) -> Stats {
        self.front.shared.stats()
    }
    fn health(&self) -> Health {
        self.front.shared.health()
    }
}
