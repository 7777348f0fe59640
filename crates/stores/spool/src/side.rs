//! Side files: bodies and envelopes too long for a log record, on their way to the disk.
//!
//! A [`SideBody`] takes bytes without ever blocking; the side-file threads write them to `incoming/`, and when the message is
//! accepted they fsync the file, rename it into `bodies/` and sync that directory, all before the record is written.
//! A body that is dropped before is removed. Memory is bounded by the caller: it stops reading from its client while
//! [`SideBody::backlog`] is high.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, Weak};

use sys::fs::{DiskFile, is_full};

use crate::bytes::Put;
use crate::op::{AcceptOp, Op};
use crate::reader::side_path;
use crate::shared::{Shared, lock};
use crate::types::{Completion, Refusal};

/// A caller should read no more from its client while more than this waits for the disk.
pub const SIDE_BACKLOG_MAX: usize = 512 * 1024;

/// A body being written to a side file.
pub struct SideBody {
    pub(crate) shared: Arc<SideShared>,
}

/// What the owner of a [`SideBody`] and a side-file thread share.
pub(crate) struct SideShared {
    pub(crate) number: u64,
    pub(crate) inner: Mutex<SideInner>,
    /// None in the model.
    pub(crate) pool: Weak<SidePool>,
}

#[derive(Default)]
pub(crate) struct SideInner {
    /// Given, not yet written.
    pub(crate) chunks: VecDeque<Vec<u8>>,
    pub(crate) backlog: usize,
    /// Given in all.
    pub(crate) len: u64,
    /// In the queue of the threads, or in the hands of one.
    scheduled: bool,
    abandoned: bool,
    /// The owner gave it to a message.
    accepted: bool,
    /// That message, until a thread takes it up.
    finish: Option<Draft>,
    file: Option<Box<dyn DiskFile>>,
    written: u64,
    crc: u32,
    failed: Option<Refusal>,
}

impl SideBody {
    /// Appends bytes. Errors of the disk show when the message is accepted: it is refused.
    pub fn write(&mut self, bytes: Vec<u8>) {
        let mut inner = lock(&self.shared.inner);
        inner.backlog = inner.backlog.saturating_add(bytes.len());
        inner.len = inner.len.saturating_add(bytes.len() as u64);
        inner.chunks.push_back(bytes);
        schedule(&self.shared, &mut inner);
    }

    /// Bytes given but not yet written; see [`SIDE_BACKLOG_MAX`] and [`crate::Completion::SideDrained`].
    #[must_use]
    pub fn backlog(&self) -> usize {
        lock(&self.shared.inner).backlog
    }

    /// Bytes given in all.
    #[must_use]
    pub fn len(&self) -> u64 {
        lock(&self.shared.inner).len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number that [`crate::Completion::SideDrained`] uses.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.shared.number
    }
}

impl Drop for SideBody {
    fn drop(&mut self) {
        let mut inner = lock(&self.shared.inner);
        if !inner.accepted {
            inner.abandoned = true;
            schedule(&self.shared, &mut inner);
        }
    }
}

impl std::fmt::Debug for SideBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SideBody({})", self.shared.number)
    }
}

fn schedule(shared: &Arc<SideShared>, inner: &mut SideInner) {
    if !inner.scheduled
        && let Some(pool) = shared.pool.upgrade()
    {
        inner.scheduled = true;
        pool.push(Job::Side(Arc::clone(shared)));
    }
}

/// An accept whose side files are still to be made.
pub(crate) struct Draft {
    pub(crate) op: AcceptOp,
    /// The envelope, which becomes a side file if it is too long.
    pub(crate) envelope: Vec<u8>,
}

enum Job {
    Side(Arc<SideShared>),
    /// A body that rides in the record, an envelope that does not.
    Envelope(Draft),
}

/// Where finished accepts go: the queue of the commit thread.
pub(crate) type Forward = Box<dyn Fn(Op) + Send + Sync>;

/// The work of the side-file threads.
pub(crate) struct SidePool {
    shared: Arc<Shared>,
    jobs: Mutex<VecDeque<Job>>,
    waiting: Condvar,
    forward: Forward,
    next_number: AtomicU64,
    names: NameSync,
}

impl SidePool {
    /// Numbers of side files start at `first`; they never repeat in the life of the spool.
    pub(crate) fn new(shared: Arc<Shared>, first: u64, forward: Forward) -> Arc<Self> {
        let next_number = AtomicU64::new(first);
        Arc::new(Self {
            shared,
            jobs: Mutex::default(),
            waiting: Condvar::new(),
            forward,
            next_number,
            names: NameSync::default(),
        })
    }

    pub(crate) fn body(self: &Arc<Self>) -> SideBody {
        let number = self.next_number.fetch_add(1, Relaxed);
        SideBody { shared: Arc::new(SideShared { number, inner: Mutex::default(), pool: Arc::downgrade(self) }) }
    }

    /// Makes the side files of an accept, then hands it to the commit thread (or answers that it is refused).
    pub(crate) fn accept(&self, draft: Draft, side: Option<SideBody>) {
        match side {
            Some(side) => {
                let mut inner = lock(&side.shared.inner);
                inner.accepted = true;
                inner.finish = Some(draft);
                schedule(&side.shared, &mut inner);
            }
            None => self.push(Job::Envelope(draft)),
        }
    }

    fn push(&self, job: Job) {
        lock(&self.jobs).push_back(job);
        self.waiting.notify_one();
    }

    /// One thread's work; returns when the spool closes and nothing is left to do.
    pub(crate) fn run(&self) {
        loop {
            let mut jobs = lock(&self.jobs);
            while jobs.is_empty() && !self.shared.stopping.load(Relaxed) {
                jobs = self.waiting.wait(jobs).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            let Some(job) = jobs.pop_front() else { return };
            drop(jobs);
            self.work(job);
        }
    }

    pub(crate) fn wake_all(&self) {
        let _jobs = lock(&self.jobs);
        self.waiting.notify_all();
    }

    /// Everything that waits, for use without threads.
    #[cfg(test)]
    pub(crate) fn run_all(&self) {
        while let Some(job) = { lock(&self.jobs).pop_front() } {
            self.work(job);
        }
    }

    fn work(&self, job: Job) {
        match job {
            Job::Side(side) => self.work_on_side(&side),
            Job::Envelope(draft) => self.finish(draft, None),
        }
    }

    /// Writes what waits; then, if nothing more came meanwhile, does what the owner wanted last.
    fn work_on_side(&self, side: &Arc<SideShared>) {
        loop {
            let mut inner = lock(&side.inner);
            let chunks = std::mem::take(&mut inner.chunks);
            let file = inner.file.take();
            if inner.abandoned {
                inner.failed = Some(Refusal::Failed);
                return drop_file(&self.shared, side.number);
            }
            if chunks.is_empty() {
                inner.file = file;
                if let Some(draft) = inner.finish.take() {
                    drop(inner);
                    return self.finish(draft, Some(side));
                }
                inner.scheduled = false;
                drop(inner);
                return self.shared.outbox.say(Completion::SideDrained { side: side.number });
            }
            let (at, failed) = (inner.written, inner.failed);
            drop(inner);
            let done = if failed.is_some() { Ok(file) } else { self.write(side.number, file, &chunks, at).map(Some) };
            note_written(side, &chunks, done);
        }
    }

    fn write(
        &self,
        number: u64,
        file: Option<Box<dyn DiskFile>>,
        chunks: &VecDeque<Vec<u8>>,
        at: u64,
    ) -> io::Result<Box<dyn DiskFile>> {
        let file = match file {
            Some(file) => file,
            None => self.shared.disk.create(&incoming(number), 0o600)?,
        };
        let pieces: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
        file.write_at(&pieces, at)?;
        Ok(file)
    }

    fn finish(&self, mut draft: Draft, side: Option<&Arc<SideShared>>) {
        let ticket = draft.op.ticket;
        let made =
            side.map_or(Ok(()), |side| self.finish_body(&mut draft.op, side)).and_then(|()| self.finish_envelope(&mut draft));
        match made {
            Ok(()) => (self.forward)(Op::Accept(draft.op)),
            Err(why) => {
                [draft.op.note.side_body, draft.op.note.side_envelope].into_iter().filter(|number| *number != 0).for_each(
                    |number| {
                        let _ = self.shared.disk.unlink(&side_path(number));
                    },
                );
                self.shared.outbox.say(Completion::Refused { ticket, why });
            }
        }
    }

    fn finish_body(&self, op: &mut AcceptOp, side: &Arc<SideShared>) -> Result<(), Refusal> {
        let (file, failed, len, crc) = {
            let mut inner = lock(&side.inner);
            (inner.file.take(), inner.failed, inner.written, inner.crc)
        };
        let result = match (failed, file) {
            (Some(why), _) => Err(why),
            (None, Some(file)) => self.publish(side.number, file.as_ref()),
            (None, None) => self
                .write(side.number, None, &VecDeque::new(), 0)
                .map_err(|error| refusal(&error))
                .and_then(|file| self.publish(side.number, file.as_ref())),
        };
        if result.is_err() {
            drop_file(&self.shared, side.number);
        }
        result?;
        op.note.side_body = side.number;
        op.note.bytes = len;
        op.rest.put_u32(crc);
        Ok(())
    }

    fn finish_envelope(&self, draft: &mut Draft) -> Result<(), Refusal> {
        if draft.envelope.len() <= crate::types::ENVELOPE_INLINE_MAX {
            draft.op.rest.append(&mut draft.envelope);
            return Ok(());
        }
        let number = self.next_number.fetch_add(1, Relaxed);
        let envelope = std::mem::take(&mut draft.envelope);
        let (len, crc) = (envelope.len() as u64, crc32c::crc32c(&envelope));
        let file = self.write(number, None, &VecDeque::from([envelope]), 0).map_err(|error| refusal(&error));
        if let Err(why) = file.and_then(|file| self.publish(number, file.as_ref())) {
            drop_file(&self.shared, number);
            return Err(why);
        }
        draft.op.note.side_envelope = number;
        draft.op.rest.put_u64(len);
        draft.op.rest.put_u32(crc);
        Ok(())
    }

    /// Durable, in the order that a power cut needs: content, then name.
    fn publish(&self, number: u64, file: &dyn DiskFile) -> Result<(), Refusal> {
        let publish = || {
            file.sync("side file")?;
            self.shared.disk.rename(&incoming(number), &side_path(number))?;
            self.names.sync(&self.shared)
        };
        publish().map_err(|error| refusal(&error))
    }
}

fn refusal(error: &io::Error) -> Refusal {
    if is_full(error) { Refusal::Full } else { Refusal::Failed }
}

fn incoming(number: u64) -> PathBuf {
    PathBuf::from(format!("incoming/{number:016x}"))
}

fn drop_file(shared: &Shared, number: u64) {
    // One of them may be its name; what cannot be removed now goes at the next start.
    let _ = shared.disk.unlink(&incoming(number));
    let _ = shared.disk.unlink(&side_path(number));
}

fn note_written(side: &SideShared, chunks: &VecDeque<Vec<u8>>, done: io::Result<Option<Box<dyn DiskFile>>>) {
    let len: usize = chunks.iter().map(Vec::len).sum();
    let mut inner = lock(&side.inner);
    inner.backlog = inner.backlog.saturating_sub(len);
    match done {
        Ok(file) => {
            inner.crc = chunks.iter().fold(inner.crc, |crc, chunk| crc32c::crc32c_append(crc, chunk));
            inner.written = inner.written.saturating_add(len as u64);
            inner.file = file;
        }
        Err(error) => inner.failed = Some(refusal(&error)),
    }
}

/// Syncs of the names in `bodies/`, shared by those who wait for one.
#[derive(Default)]
struct NameSync {
    renames: AtomicU64,
    synced: Mutex<u64>,
}

impl NameSync {
    /// Every rename before this call is durable after it.
    fn sync(&self, shared: &Shared) -> io::Result<()> {
        let mine = self.renames.fetch_add(1, SeqCst) + 1;
        let mut synced = lock(&self.synced);
        if *synced >= mine {
            return Ok(());
        }
        let upto = self.renames.load(SeqCst);
        shared.disk.sync_dir("bodies".as_ref(), "side file name")?;
        *synced = upto;
        Ok(())
    }
}
