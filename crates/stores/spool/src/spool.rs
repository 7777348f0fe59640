//! The handle that qmail-send holds, and the threads behind it: one commits, four write side files, two read, one keeps house.
//!
//! Nothing here blocks the caller but opening and dropping. Dropping writes and syncs what was given, answers nothing more, and
//! leaves an index block for a quick start.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use sys::fs::Disk;
use sys::fs::real::RealDisk;

use crate::engine::{BATCH_BYTES_MAX, Engine};
use crate::envelope;
use crate::house::{self, House};
use crate::op::{AcceptOp, Op};
use crate::prepare;
use crate::reader;
use crate::record::AcceptNote;
use crate::replay;
use crate::segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::shared::{Counters, Shared, lock};
use crate::side::{Draft, SideBody, SidePool};
use crate::types::{
    BODY_INLINE_MAX, Body, Change, Completion, Envelope, Health, Living, Log, MessageId, Outlook, RECIPIENTS_MAX, ReadFailure,
    Refusal, SpoolError, Stats,
};

const SIDE_THREADS: usize = 4;
const READER_THREADS: usize = 2;
/// Results are synced this long after they were written if no commit came: with the sync itself that keeps within the second
/// that is promised.
const SYNC_AFTER: Duration = Duration::from_millis(800);
/// The housekeeper looks around this often when nobody calls.
const HOUSE_TICK: Duration = Duration::from_secs(1);
/// Below this a file system gets shorter segments: three of them exist from the start.
const SMALLEST_SHARE: u64 = 64;
const MIB: u64 = 1024 * 1024;

/// How a spool is opened; the default is right but for tests.
#[derive(Debug, Clone)]
pub struct Options {
    /// Length of new segments; `None` fits it to the file system: 64 MiB, less on one smaller than 4 GiB.
    pub segment_bytes: Option<u64>,
    /// Messages are read again and verified at this rate; 0 turns the scrub off.
    pub scrub_bytes_per_s: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: None, scrub_bytes_per_s: MIB }
    }
}

/// The durable queue of messages.
pub struct Spool {
    front: Front,
    queue: Arc<CommitQueue>,
    reads: Arc<Reads>,
    /// Between [`Log::hold`] and [`Log::flush`].
    holding: bool,
    /// Side files first, then house, readers, commit: in this order they are joined.
    threads: Vec<JoinHandle<()>>,
    commit: Option<JoinHandle<()>>,
    /// Held as long as the spool is open.
    _lock: Option<File>,
}

impl Spool {
    /// Locks the directory (an empty one is made ready), recovers what is in it, starts the threads. The list is sorted by id.
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub fn open(dir: OwnedFd, options: Options) -> Result<(Self, Vec<Living>), SpoolError> {
        let held = take_lock(&dir)?;
        let (mut spool, living) = Self::open_on(Arc::new(RealDisk::new(dir)), &options)?;
        spool._lock = Some(held);
        Ok((spool, living))
    }

    /// As [`Spool::open`], on any disk and without a lock: for tests.
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub fn open_on(disk: Arc<dyn Disk>, options: &Options) -> Result<(Self, Vec<Living>), SpoolError> {
        let Opened { shared, engine, living, first_side } = open_parts(disk, options.segment_bytes, false)?;
        let queue = Arc::new(CommitQueue::default());
        let forward = Arc::clone(&queue);
        let sides = SidePool::new(Arc::clone(&shared), first_side, Box::new(move |op| forward.push(op)));
        let reads = Arc::new(Reads::default());
        let front = Front { shared: Arc::clone(&shared), sides };
        let mut spool = Self { front, queue, reads, holding: false, threads: Vec::new(), commit: None, _lock: None };
        spool
            .start_threads(engine, options.scrub_bytes_per_s)
            .map_err(|error| SpoolError::Io { doing: "start a thread", error })?;
        Ok((spool, living))
    }

    fn push(&self, op: Op) {
        if self.holding { self.queue.push_quietly(op) } else { self.queue.push(op) }
    }

    fn start_threads(&mut self, engine: Engine, scrub_bytes_per_s: u64) -> io::Result<()> {
        let queue = Arc::clone(&self.queue);
        self.commit = Some(spawn("spool-commit", move || run_commits(engine, &queue))?);
        for _ in 0..SIDE_THREADS {
            let sides = Arc::clone(&self.front.sides);
            self.threads.push(spawn("spool-side", move || sides.run())?);
        }
        for _ in 0..READER_THREADS {
            let (shared, reads) = (Arc::clone(&self.front.shared), Arc::clone(&self.reads));
            self.threads.push(spawn("spool-read", move || reads.run(&shared))?);
        }
        let house = House::new(Arc::clone(&self.front.shared), scrub_bytes_per_s);
        let (shared, queue) = (Arc::clone(&self.front.shared), Arc::clone(&self.queue));
        self.threads.push(spawn("spool-house", move || run_house(house, &shared, &queue))?);
        Ok(())
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    // Their deepest call is a checksum: half a megabyte is plenty, and eight such stacks are not seen in the process's size.
    std::thread::Builder::new().name(name.to_string()).stack_size(512 * 1024).spawn(|| sys::vital(run))
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.front.shared.stopping.store(true, Relaxed);
        {
            let _ready = lock(&self.front.shared.ready);
            self.front.shared.wanted.notify_all();
        }
        self.front.sides.wake_all();
        self.reads.wake_all();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
        self.queue.close();
        if let Some(commit) = self.commit.take() {
            drop(commit.join());
        }
    }
}

fn take_lock(dir: &OwnedFd) -> Result<File, SpoolError> {
    let io = |error: rustix::io::Errno| SpoolError::Io { doing: "open the lock", error: error.into() };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(rustix::fs::openat(dir, "lock", flags, Mode::from_raw_mode(0o600)).map_err(io)?);
    if let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(io(error));
        }
        let mut text = String::new();
        let _ = file.take(20).read_to_string(&mut text);
        return Err(SpoolError::Locked { holder: text.trim().parse().ok() });
    }
    // Only for the message of the next one: the lock is what counts, and a full disk must not stop the start.
    let _ = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    Ok(file)
}

/// A spool that is recovered, without threads.
pub(crate) struct Opened {
    pub(crate) shared: Arc<Shared>,
    pub(crate) engine: Engine,
    pub(crate) living: Vec<Living>,
    pub(crate) first_side: u64,
}

pub(crate) fn open_parts(disk: Arc<dyn Disk>, segment_bytes: Option<u64>, is_inline: bool) -> Result<Opened, SpoolError> {
    let found = replay::recover(disk.as_ref())?;
    let segment_bytes = match segment_bytes {
        Some(bytes) => bytes,
        None => {
            fitting_segment_bytes(disk.as_ref()).map_err(|error| SpoolError::Io { doing: "measure the file system", error })?
        }
    };
    let segment_bytes = segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
    let io = |error| SpoolError::Io { doing: "open a new segment", error };
    let mut ready = found.ready;
    prepare::discard_short(disk.as_ref(), &mut ready, segment_bytes);
    // The housekeeper does not run yet: the first segment is prepared here.
    let shared = Arc::new(Shared::new(disk, segment_bytes, found.state, ready, is_inline).map_err(io)?);
    Counters::add(&shared.counters.damaged, found.damaged);
    found.alerts.into_iter().for_each(|text| shared.outbox.alert(text));
    let mut engine = Engine::start(Arc::clone(&shared)).map_err(io)?;
    house::mend(&shared, &mut engine);
    // A segment number is used once, so these numbers have not been used before. 2³² side files are enough for one run.
    let first_side = engine.segment_number() << 32;
    Ok(Opened { shared, engine, living: found.living, first_side })
}

/// 64 MiB, or a whole number of MiB such that the first three take no more than a twentieth of a small file system.
fn fitting_segment_bytes(disk: &dyn Disk) -> io::Result<u64> {
    let share = disk.space()?.total_bytes / SMALLEST_SHARE;
    Ok((share / MIB * MIB).clamp(MIB, SEGMENT_BYTES_MAX))
}

/// What comes before the queues: the same with and without threads.
pub(crate) struct Front {
    pub(crate) shared: Arc<Shared>,
    pub(crate) sides: Arc<SidePool>,
}

impl Front {
    /// Hands an accept to the side-file threads, or back to be committed.
    pub(crate) fn accept(&self, envelope: &Envelope, body: Body, ended: u64, ticket: u64) -> Option<Op> {
        let (inline, side) = match body {
            Body::Inline(bytes) => (bytes, None),
            Body::Side(side) => (Vec::new(), Some(side)),
        };
        if inline.len() > BODY_INLINE_MAX || envelope.recipients.len() > RECIPIENTS_MAX {
            self.shared.outbox.say(Completion::Refused { ticket, why: Refusal::TooLarge });
            return None;
        }
        let note = AcceptNote {
            moved: false,
            sender_is_null: envelope.sender.is_null(),
            arrival_s: envelope.arrival_s,
            recipients: u32::try_from(envelope.recipients.len()).unwrap_or(u32::MAX),
            bytes: inline.len() as u64,
            side_body: 0,
            side_envelope: 0,
            ended,
            ended_deps: [0, 0],
        };
        let encoded = envelope::encode(envelope);
        if side.is_none() && encoded.len() <= crate::types::ENVELOPE_INLINE_MAX {
            return Some(Op::Accept(AcceptOp { note, rest: encoded, body: inline, ticket }));
        }
        let op = AcceptOp { note, rest: Vec::new(), body: inline, ticket };
        self.sides.accept(Draft { op, envelope: encoded }, side);
        None
    }

    pub(crate) fn progress(id: MessageId, changes: &[Change], outlook: Outlook, ticket: u64) -> Op {
        let (records, covers) = (envelope::encode_changes(changes), covered(changes));
        Op::Progress { id: id.0, records, covers, outlook, synced: false, ticket }
    }

    pub(crate) fn note(id: MessageId, outlook: Outlook, ticket: u64) -> Op {
        Op::Progress { id: id.0, records: envelope::encode_changes(&[]), covers: 0, outlook, synced: true, ticket }
    }
}

/// How many recipients, from the first on without a gap, these changes name: with all of them they are the whole state. Their mere
/// number does not say that: a recipient may be named twice, and one that there is not.
fn covered(changes: &[Change]) -> u32 {
    let mut named: Vec<u32> = changes.iter().map(|change| change.recipient).collect();
    named.sort_unstable();
    named.dedup();
    (0..).zip(named).take_while(|(number, named)| number == named).count().try_into().unwrap_or(u32::MAX)
}

/// What waits for the commit thread.
#[derive(Default)]
struct CommitQueue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    ops: VecDeque<Op>,
    closed: bool,
    /// The commit thread sleeps. (One that is at work looks here before it sleeps: waking it would only cost.)
    idle: bool,
}

impl CommitQueue {
    fn push(&self, op: Op) {
        self.push_quietly(op);
        self.wake();
    }

    /// Wakes the commit thread if there is something for it to do.
    fn wake(&self) {
        let waiting = lock(&self.waiting);
        let wanted = waiting.idle && !waiting.ops.is_empty();
        drop(waiting);
        if wanted {
            self.changed.notify_one();
        }
    }

    /// Without waking the commit thread; when it is at work it takes this along all the same.
    fn push_quietly(&self, op: Op) {
        let mut waiting = lock(&self.waiting);
        if !waiting.closed {
            waiting.ops.push_back(op);
        }
    }

    fn close(&self) {
        lock(&self.waiting).closed = true;
        self.changed.notify_one();
    }

    /// Everything that waits, up to a bound; empty when it is `until`, or (with `true`) when the queue is closed.
    fn take(&self, until: Option<Instant>) -> (Vec<Op>, bool) {
        let mut waiting = lock(&self.waiting);
        while waiting.ops.is_empty() && !waiting.closed {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return (Vec::new(), false);
            }
            waiting.idle = true;
            waiting = match left {
                Some(left) => self.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
            waiting.idle = false;
        }
        let closed = waiting.closed && waiting.ops.is_empty();
        let mut bytes = 0;
        let mut ops = Vec::new();
        while bytes < BATCH_BYTES_MAX
            && let Some(op) = waiting.ops.pop_front()
        {
            bytes += op.weight();
            ops.push(op);
        }
        (ops, closed)
    }
}

fn run_commits(mut engine: Engine, queue: &CommitQueue) {
    let mut due: Option<Instant> = None;
    loop {
        let (ops, closed) = queue.take(due);
        if closed {
            return engine.close();
        }
        if !ops.is_empty() || engine.has_parked() {
            engine.commit(ops);
        }
        if due.is_some_and(|due| due <= Instant::now()) {
            engine.sync_results();
            due = None;
        }
        let waits = engine.has_unsynced() || engine.has_parked();
        due = if waits { due.or_else(|| Instant::now().checked_add(SYNC_AFTER)) } else { None };
    }
}

fn run_house(mut house: House, shared: &Shared, queue: &CommitQueue) {
    let mut submit = |ops| {
        let (done, answer) = channel();
        queue.push(Op::House { ops, done });
        answer.recv().unwrap_or(false)
    };
    while !shared.stopping.load(Relaxed) {
        let more = house.step(&mut submit);
        let ready = lock(&shared.ready);
        let is_called = !ready.sealed.is_empty() || !ready.trash.is_empty();
        if !more && !is_called && !shared.stopping.load(Relaxed) {
            drop(shared.wanted.wait_timeout(ready, HOUSE_TICK));
        }
    }
}

/// What waits for the readers.
#[derive(Default)]
struct Reads {
    waiting: Mutex<VecDeque<(ReadKind, MessageId, u64)>>,
    changed: Condvar,
}

#[derive(Clone, Copy)]
pub(crate) enum ReadKind {
    Envelope,
    Body,
}

impl Reads {
    fn push(&self, kind: ReadKind, id: MessageId, ticket: u64) {
        lock(&self.waiting).push_back((kind, id, ticket));
        self.changed.notify_one();
    }

    fn wake_all(&self) {
        let _waiting = lock(&self.waiting);
        self.changed.notify_all();
    }

    fn run(&self, shared: &Shared) {
        loop {
            let mut waiting = lock(&self.waiting);
            while waiting.is_empty() && !shared.stopping.load(Relaxed) {
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            let Some((kind, id, ticket)) = waiting.pop_front() else { return };
            drop(waiting);
            shared.outbox.say(answer_read(shared, kind, id, ticket));
        }
    }
}

pub(crate) fn answer_read(shared: &Shared, kind: ReadKind, id: MessageId, ticket: u64) -> Completion {
    let read = match kind {
        ReadKind::Envelope => reader::read_whole(shared, id.0).map(|whole| {
            let held = whole.outlook.is_some_and(|outlook| outlook.held);
            let (envelope, states, bytes) = (whole.envelope, whole.states, whole.bytes);
            Completion::Envelope { ticket, id, envelope, states, bytes, held }
        }),
        ReadKind::Body => reader::read_body(shared, id.0).map(|(fd, bytes)| Completion::BodyFd { ticket, id, fd, bytes }),
    };
    read.unwrap_or_else(|why| {
        if why == ReadFailure::Damaged {
            reader::quarantine(shared, id.0);
        }
        Completion::ReadFailed { ticket, id, why }
    })
}

impl Log for Spool {
    fn hold(&mut self) {
        self.holding = true;
    }

    fn flush(&mut self) {
        self.holding = false;
        self.queue.wake();
    }

    fn accept(&mut self, envelope: Envelope, body: Body, ticket: u64) {
        if let Some(op) = self.front.accept(&envelope, body, 0, ticket) {
            self.push(op);
        }
    }

    fn bounce_and_end(&mut self, bounce: Envelope, body: Body, ended: MessageId, ticket: u64) {
        if let Some(op) = self.front.accept(&bounce, body, ended.0, ticket) {
            self.push(op);
        }
    }

    fn progress(&mut self, id: MessageId, changes: Vec<Change>, outlook: Outlook, ticket: u64) {
        self.push(Front::progress(id, &changes, outlook, ticket));
    }

    fn note(&mut self, id: MessageId, outlook: Outlook, ticket: u64) {
        self.push(Front::note(id, outlook, ticket));
    }

    fn end(&mut self, id: MessageId, ticket: u64) {
        self.push(Op::End { id: id.0, ticket });
    }

    fn read_envelope(&mut self, id: MessageId, ticket: u64) {
        self.reads.push(ReadKind::Envelope, id, ticket);
    }

    fn open_body(&mut self, id: MessageId, ticket: u64) {
        self.reads.push(ReadKind::Body, id, ticket);
    }

    fn side_file(&mut self) -> SideBody {
        self.front.sides.body()
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.front.shared.outbox.wake.as_fd()
    }

    fn completions(&mut self) -> Vec<Completion> {
        self.front.shared.outbox.take()
    }

    fn stats(&self) -> Stats {
        self.front.shared.stats()
    }

    fn health(&self) -> Health {
        self.front.shared.health()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{answer, envelope};
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;
    use sys::fs::fault::{Call, FaultDisk, Plan};
    use sys::fs::power::PowerDisk;

    /// Without any one of them something is never answered again, and nobody would start the program anew.
    #[test]
    fn a_panic_of_a_thread_ends_the_process() {
        static STRUCK: Mutex<Option<(String, Call)>> = Mutex::new(None);
        const CHILD: &str = "SPOOL_TEST_PANIC";
        let threads = [
            ("spool-commit", Call::Write),
            ("spool-side", Call::Rename),
            ("spool-read", Call::Read),
            ("spool-house", Call::Rename),
        ];
        let Some(struck) = std::env::var_os(CHILD) else {
            for (thread, _) in threads {
                let mut child = Command::new(std::env::current_exe().unwrap());
                child.args(["--exact", "--nocapture", "spool::tests::a_panic_of_a_thread_ends_the_process"]).env(CHILD, thread);
                let output = child.output().unwrap();
                assert_eq!(output.status.signal(), Some(rustix::process::Signal::ABORT.as_raw()), "{thread}: {output:?}");
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(said.contains(&format!("thread '{thread}'")), "it says which: {said}");
            }
            return;
        };
        let plan = Plan::new(|call| {
            let strikes = STRUCK
                .lock()
                .unwrap()
                .as_ref()
                .is_some_and(|(thread, on)| call == *on && std::thread::current().name() == Some(thread));
            assert!(!strikes, "struck");
            false
        });
        let disk = FaultDisk::new(Arc::new(PowerDisk::new()), plan);
        let options = Options { segment_bytes: Some(MIB), scrub_bytes_per_s: 0 };
        let (mut spool, _) = Spool::open_on(Arc::new(disk), &options).unwrap();
        spool.accept(envelope(1, 1), Body::Inline(Vec::new()), 1);
        let Completion::Accepted { id, .. } = answer(&mut spool, 1) else { panic!("not accepted") };
        *STRUCK.lock().unwrap() =
            threads.into_iter().find(|(thread, _)| struck == *thread).map(|(thread, call)| (thread.to_owned(), call));
        spool.read_envelope(id, 2);
        let mut side = spool.side_file();
        side.write(vec![b'x'; 1000]);
        spool.accept(envelope(2, 1), Body::Side(side), 3);
        // Enough to fill segments and to have them freed.
        for ticket in 10..200 {
            spool.accept(envelope(ticket, 1), Body::Inline(vec![b'x'; 60_000]), ticket);
            let Completion::Accepted { id, .. } = answer(&mut spool, ticket) else { panic!("not accepted") };
            spool.end(id, 1000 + ticket);
        }
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}
