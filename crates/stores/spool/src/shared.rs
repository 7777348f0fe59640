//! What the threads of a spool share: the disk, the index, the segments that are ready to be written, the answers.
//!
//! Locks are held for moments, in this order if ever two: preparing, state, ready, files, outbox. A thread that panicked while it held one
//! leaves data that is still whole: every change is one assignment or is undone by the commit thread.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use std::time::Instant;

use sys::fs::{Access, Disk, DiskFile};
use sys::wake::Wake;

use crate::segment::{self, Header};
use crate::state::State;
use crate::types::{Completion, Health, Stats};

/// Open segment files that readers keep.
const FILES_MAX: usize = 64;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers on their way to the owner of the spool.
pub(crate) struct Outbox {
    waiting: Mutex<Vec<Completion>>,
    pub(crate) wake: Wake,
}

impl Outbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { waiting: Mutex::default(), wake: Wake::new()? })
    }

    pub(crate) fn say(&self, completion: Completion) {
        self.say_all(&mut vec![completion]);
    }

    /// Moves all of them out; the owner is woken once.
    pub(crate) fn say_all(&self, completions: &mut Vec<Completion>) {
        if completions.is_empty() {
            return;
        }
        let mut waiting = lock(&self.waiting);
        let was_empty = waiting.is_empty();
        waiting.append(completions);
        drop(waiting);
        if was_empty {
            self.wake.wake();
        }
    }

    pub(crate) fn alert(&self, text: String) {
        self.say(Completion::Alert(text));
    }

    pub(crate) fn take(&self) -> Vec<Completion> {
        self.wake.clear();
        std::mem::take(&mut *lock(&self.waiting))
    }
}

/// A segment with a name and a synced header, not yet written to.
pub(crate) struct ReadySegment {
    pub(crate) header: Header,
    pub(crate) file: Arc<dyn DiskFile>,
}

/// A segment that is complete but for its index block.
pub(crate) struct SealedSegment {
    pub(crate) header: Header,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) used: u64,
    pub(crate) index: Vec<u8>,
}

/// The stock of segments.
#[derive(Default)]
pub(crate) struct Ready {
    pub(crate) next: VecDeque<ReadySegment>,
    /// Highest number given so far.
    pub(crate) number: u64,
    /// Names of files in `segments/` whose extents may be used again.
    pub(crate) free: Vec<String>,
    pub(crate) has_spare: bool,
    /// When the last attempt to prepare a segment failed for want of room.
    pub(crate) full_since: Option<Instant>,
    pub(crate) sealed: Vec<SealedSegment>,
    /// Side files whose message has ended, durably.
    pub(crate) trash: Vec<u64>,
    /// Messages whose state is spread over so many records that it should be written anew.
    pub(crate) tangled: BTreeSet<u64>,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) accepted: AtomicU64,
    pub(crate) ended: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) moved: AtomicU64,
    pub(crate) damaged: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Relaxed);
    }
}

/// See the module.
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) segment_bytes: u64,
    pub(crate) state: Mutex<State>,
    pub(crate) ready: Mutex<Ready>,
    /// The housekeeper has work.
    pub(crate) wanted: Condvar,
    /// Held while a segment is prepared.
    pub(crate) preparing: Mutex<()>,
    files: Mutex<BTreeMap<u64, Arc<dyn DiskFile>>>,
    pub(crate) outbox: Outbox,
    pub(crate) counters: Counters,
    health: AtomicU8,
    pub(crate) stopping: AtomicBool,
    /// No threads and no clock: for the power-cut suite.
    pub(crate) is_inline: bool,
}

impl Shared {
    pub(crate) fn new(disk: Arc<dyn Disk>, segment_bytes: u64, state: State, ready: Ready, is_inline: bool) -> io::Result<Self> {
        Ok(Self {
            disk,
            segment_bytes,
            state: Mutex::new(state),
            ready: Mutex::new(ready),
            wanted: Condvar::new(),
            preparing: Mutex::new(()),
            files: Mutex::default(),
            outbox: Outbox::new()?,
            counters: Counters::default(),
            health: AtomicU8::new(0),
            stopping: AtomicBool::new(false),
            is_inline,
        })
    }

    pub(crate) fn health(&self) -> Health {
        match self.health.load(Relaxed) {
            0 => Health::Ok,
            1 => Health::Full,
            _ => Health::Stopped,
        }
    }

    /// Says it in the log when it changes.
    pub(crate) fn set_health(&self, health: Health) {
        let (number, text) = match health {
            Health::Ok => (0, "there is room again: accepting messages"),
            Health::Full => (1, "no room for new messages: refusing them, results go to the spare segment"),
            Health::Stopped => (2, "cannot write to the disk: no message is accepted, none is delivered, until a restart"),
        };
        if self.health.swap(number, Relaxed) != number {
            self.outbox.alert(text.to_string());
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let (messages, segments) = {
            let state = lock(&self.state);
            (u64::from(state.messages()), state.segments.len() as u64)
        };
        let counters = &self.counters;
        Stats {
            messages,
            segments,
            segments_free: lock(&self.ready).free.len() as u64,
            accepted: counters.accepted.load(Relaxed),
            ended: counters.ended.load(Relaxed),
            batches: counters.batches.load(Relaxed),
            syncs: counters.syncs.load(Relaxed),
            bytes_written: counters.bytes_written.load(Relaxed),
            moved: counters.moved.load(Relaxed),
            damaged: counters.damaged.load(Relaxed),
        }
    }

    /// A segment's file, for reading. The caller has pinned the segment, so the name means that segment.
    pub(crate) fn file(&self, number: u64) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = lock(&self.files).get(&number) {
            return Ok(Arc::clone(file));
        }
        let file: Arc<dyn DiskFile> = self.disk.open(&segment::path(&segment::name(number)), Access::Read)?.into();
        let mut files = lock(&self.files);
        if files.len() >= FILES_MAX {
            // The oldest segment is the least likely to be read again soon.
            files.pop_first();
        }
        files.insert(number, Arc::clone(&file));
        Ok(file)
    }

    pub(crate) fn forget_file(&self, number: u64) {
        lock(&self.files).remove(&number);
    }
}
