//! Housekeeping: the stock of segments, index blocks, freeing of dead segments, compaction, removal of side files, the scrub.
//!
//! It never writes a record itself: what compaction wants written goes through the commit engine like everything else, and a
//! segment is freed only after the engine said that it is synced. Of the segments that are emptied there is one at a time, and it
//! is gone from the disk, durably, before the next one's turn: [`crate::state::State::moving`] says why that matters.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sys::fs::Access;

use crate::engine::Engine;
use crate::envelope;
use crate::op::{HouseOp, Op};
use crate::prepare;
use crate::reader::{self, Whole, side_path};
use crate::record::{Located, Note, Place};
use crate::segment::{self, DIR, Header, RECORDS_AT};
use crate::shared::{Shared, lock};
use crate::state::Phase;
use crate::types::{Health, Outlook, ReadFailure, RecipientState};

/// Free segments kept for use again; more are given back to the file system.
const FREE_MAX: usize = 4;
/// A segment is emptied when less than a third of it is needed…
const LIVE_SHARE: u64 = 3;
/// …and this many newer ones are complete: what has just been written will mostly die by itself.
const YOUNG_SEGMENTS: usize = 4;
/// Moved in one go, so that new mail never waits long behind it.
const MOVE_BYTES_MAX: usize = 1024 * 1024;
/// What an end takes, for the accounts of a segment.
const END_BYTES: u64 = 64;
/// Work of the scrub at one time.
const SCRUB_STEP: Duration = Duration::from_secs(1);

/// Gives operations to the engine; `true` when they, and all before them, are synced.
pub(crate) type Submit<'a> = dyn FnMut(Vec<HouseOp>) -> bool + 'a;

/// See the module.
pub(crate) struct House {
    shared: Arc<Shared>,
    scrub_bytes_per_s: u64,
    scrub_next: u64,
    scrub_at: Option<Instant>,
    /// Segments that hold something unreadable: they are left alone until the next start.
    stuck: BTreeSet<u64>,
    /// Segments whose names were taken away, with the new names of their extents if they are kept, until that is durable.
    going: Vec<(u64, Option<String>)>,
}

impl House {
    pub(crate) fn new(shared: Arc<Shared>, scrub_bytes_per_s: u64) -> Self {
        Self { shared, scrub_bytes_per_s, scrub_next: 0, scrub_at: None, stuck: BTreeSet::new(), going: Vec::new() }
    }

    /// Does some of what is to be done; `true` if there is more.
    pub(crate) fn step(&mut self, submit: &mut Submit<'_>) -> bool {
        prepare::fill(&self.shared);
        self.write_index_blocks();
        self.remove_side_files();
        self.untangle(submit);
        let freed = self.free_dead(submit);
        self.give_back();
        let compacted = self.victim().is_some_and(|victim| self.compact(victim, submit));
        self.scrub();
        freed || compacted
    }

    fn write_index_blocks(&self) {
        let sealed = std::mem::take(&mut lock(&self.shared.ready).sealed);
        for segment in sealed {
            // A segment without an index block is scanned at the next start.
            let _ = segment::write_index(segment.file.as_ref(), &segment.header, segment.used, &segment.index);
        }
    }

    fn remove_side_files(&self) {
        let trash = std::mem::take(&mut lock(&self.shared.ready).trash);
        for number in trash {
            // What cannot be removed now goes at the next start.
            let _ = self.shared.disk.unlink(&side_path(number));
        }
    }

    /// Writes long chains of progress anew.
    fn untangle(&self, submit: &mut Submit<'_>) {
        let tangled = std::mem::take(&mut lock(&self.shared.ready).tangled);
        for id in tangled {
            if let Ok(whole) = reader::read_whole(&self.shared, id) {
                submit(vec![HouseOp::Move { id, seen: whole.known.entry, accept: None, state: state_of(&whole) }]);
            }
        }
    }

    /// Frees segments that nothing needs any more.
    fn free_dead(&mut self, submit: &mut Submit<'_>) -> bool {
        let dead = self.dead();
        // What made them dead was only written so far; nothing may be lost with them that is not durable elsewhere.
        if dead.is_empty() || !submit(Vec::new()) {
            return false;
        }
        // A result that had to be taken back meanwhile may have brought one back to life.
        for number in self.dead().intersection(&dead) {
            if self.going.iter().any(|(going, _)| going == number) {
                continue;
            }
            if let Ok(name) = self.free(*number) {
                self.going.push((*number, name));
            }
        }
        if self.going.is_empty() || self.shared.disk.sync_dir(DIR.as_ref(), "segment freed").is_err() {
            return false;
        }
        let (freed, names): (Vec<u64>, Vec<Option<String>>) = self.going.drain(..).unzip();
        {
            let mut state = lock(&self.shared.state);
            freed.iter().for_each(|number| state.forget_segment(*number));
        }
        // Only now may the extents be written: a name that came back at a power cut would show another's records.
        lock(&self.shared.ready).free.extend(names.into_iter().flatten());
        true
    }

    fn dead(&self) -> BTreeSet<u64> {
        let state = lock(&self.shared.state);
        let dead = state.segments.iter().filter(|(_, segment)| {
            let needed = segment.refs > 0 || !segment.deps.is_empty() || segment.voids.is_some() || segment.pins > 0;
            segment.phase != Phase::Active && !needed
        });
        dead.map(|(number, _)| *number).collect()
    }

    /// Takes a segment's name away; with the new name of its extents, if they are kept.
    fn free(&self, number: u64) -> io::Result<Option<String>> {
        self.shared.forget_file(number);
        // It may have been completed, and died, since its index block was last looked for: there is no place for that any more.
        lock(&self.shared.ready).sealed.retain(|sealed| sealed.header.number != number);
        let name = segment::name(number);
        let is_sound = lock(&self.shared.state).segments.get(&number).is_some_and(|segment| segment.phase != Phase::Failed);
        let free = format!("{name}.free");
        let result = if is_sound {
            self.shared.disk.rename(&segment::path(&name), &segment::path(&free))
        } else {
            self.shared.disk.unlink(&segment::path(&name))
        };
        match result {
            Ok(()) => Ok(is_sound.then_some(free)),
            // An attempt that was called a failure did it after all; what it left is found at the next start.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Of the segments that are free, all but a few go back to the file system, however many died together.
    fn give_back(&self) {
        let too_many = {
            let mut ready = lock(&self.shared.ready);
            let kept = ready.free.len().min(FREE_MAX);
            ready.free.split_off(kept)
        };
        for name in too_many {
            // What cannot be removed now is found at the next start.
            let _ = self.shared.disk.unlink(&segment::path(&name));
        }
    }

    /// The segment whose emptying gains most, if any is worth it.
    fn victim(&self) -> Option<u64> {
        let state = lock(&self.shared.state);
        if let Some((moving, segment)) = state.moving.and_then(|moving| Some((moving, state.segments.get(&moving)?))) {
            // Once it is empty it waits only to be freed.
            let has_more = segment.refs > 0 || !segment.deps.is_empty();
            return (has_more && !self.stuck.contains(&moving)).then_some(moving);
        }
        let young = if self.shared.health() == Health::Ok { YOUNG_SEGMENTS } else { 0 };
        let old = state.segments.iter().rev().filter(|(_, segment)| segment.phase != Phase::Active);
        let candidates = old.enumerate().filter(|(age, (number, segment))| {
            let needed = segment.live_bytes + END_BYTES * segment.deps.values().map(|count| u64::from(*count)).sum::<u64>();
            let is_worth_it = *age >= young && needed * LIVE_SHARE < segment.bytes - RECORDS_AT;
            let is_idle = segment.voids.is_none() && !self.stuck.contains(number) && segment.pins == 0;
            is_idle && (is_worth_it || segment.phase == Phase::Failed)
        });
        let best = candidates.min_by_key(|(_, (_, segment))| (segment.phase != Phase::Failed, segment.live_bytes));
        best.map(|(_, (number, _))| *number)
    }

    /// Writes what is needed of a segment anew; the next step frees it. `true` if anything was gained.
    fn compact(&mut self, victim: u64, submit: &mut Submit<'_>) -> bool {
        let Some(records) = self.records_of(victim) else {
            self.stuck.insert(victim);
            return false;
        };
        let living: BTreeSet<u64> = {
            let state = lock(&self.shared.state);
            records.iter().map(|record| record.summary.id).filter(|id| state.needs(*id, victim)).collect()
        };
        if let Err(id) = self.can_be_read(&living) {
            self.shared.outbox.alert(format!("segment {victim:016x} cannot be emptied: message {id} in it cannot be read"));
            self.stuck.insert(victim);
            return false;
        }
        lock(&self.shared.state).moving = Some(victim);
        let mut batch = Batch { ops: Vec::new(), bytes: 0, bytes_max: move_bytes_max(&self.shared) };
        let moved = living.iter().all(|id| self.take_living(*id, victim).is_none_or(|op| batch.add(op, &self.shared, submit)));
        let carried =
            moved && records.iter().filter_map(|record| ended_by(record, victim)).all(|op| batch.add(op, &self.shared, submit));
        if !carried || !batch.flush(&self.shared, submit) {
            return false;
        }
        if let Some(segment) = lock(&self.shared.state).segments.get_mut(&victim) {
            segment.deps.clear();
            return segment.refs == 0;
        }
        false
    }

    fn records_of(&self, number: u64) -> Option<Vec<Located>> {
        let (nonce, bytes, used) = {
            let state = lock(&self.shared.state);
            let segment = state.segments.get(&number)?;
            (segment.nonce, segment.bytes, segment.used)
        };
        let file = self.shared.disk.open(&segment::path(&segment::name(number)), Access::Read).ok()?;
        let header = Header { number, bytes, nonce };
        let found = segment::read_index(file.as_ref(), &header).or_else(|| segment::scan(file.as_ref(), &header).ok())?;
        // What stands behind was voided.
        Some(found.records.into_iter().filter(|record| record.offset < used).collect())
    }

    /// Before the first message is moved: a segment half emptied for ever would block all others.
    fn can_be_read(&self, ids: &BTreeSet<u64>) -> Result<(), u64> {
        for id in ids {
            match reader::verify_record(&self.shared, *id) {
                Ok(()) | Err(ReadFailure::Unknown) => {}
                Err(ReadFailure::Damaged) => {
                    reader::quarantine(&self.shared, *id);
                    return Err(*id);
                }
                Err(ReadFailure::Temporary) => return Err(*id),
            }
        }
        Ok(())
    }

    fn take_living(&self, id: u64, victim: u64) -> Option<HouseOp> {
        let whole = reader::read_whole(&self.shared, id).ok()?;
        let seen = whole.known.entry;
        let accept = if seen.accept.segment() == victim {
            let (note, record) = reader::read_accept(&self.shared, &whole.known, true).ok()?;
            Some((note, record.rest, record.body))
        } else {
            None
        };
        Some(HouseOp::Move { id, seen, accept, state: state_of(&whole) })
    }

    /// Reads messages at a slow pace, one after the other, round and round.
    fn scrub(&mut self) {
        let now = Instant::now();
        if self.scrub_bytes_per_s == 0 || self.scrub_at.is_some_and(|at| now < at) {
            return;
        }
        self.scrub_at = Some(now + SCRUB_STEP);
        let mut budget = self.scrub_bytes_per_s;
        while budget > 0 {
            let next = lock(&self.shared.state).table.from(self.scrub_next).next().map(|(id, _)| id);
            let Some(id) = next else {
                self.scrub_next = 0;
                return;
            };
            self.scrub_next = id + 1;
            let read = reader::verify(&self.shared, id);
            if read == Err(ReadFailure::Damaged) {
                reader::quarantine(&self.shared, id);
            }
            // Each message costs at least a block.
            budget = budget.saturating_sub(read.unwrap_or(0).max(4096));
        }
    }
}

/// Operations on their way to the engine, a bounded part at a time.
struct Batch {
    ops: Vec<HouseOp>,
    bytes: usize,
    bytes_max: usize,
}

impl Batch {
    fn add(&mut self, op: HouseOp, shared: &Shared, submit: &mut Submit<'_>) -> bool {
        let bytes = op.space();
        if self.bytes + bytes > self.bytes_max && !self.flush(shared, submit) {
            return false;
        }
        self.bytes += bytes;
        self.ops.push(op);
        true
    }

    fn flush(&mut self, shared: &Shared, submit: &mut Submit<'_>) -> bool {
        self.bytes = 0;
        if prepare::is_short(shared) {
            prepare::fill(shared);
        }
        submit(std::mem::take(&mut self.ops))
    }
}

/// The end that a record carries, if it must outlive its segment. What the segment itself holds goes with it.
fn ended_by(record: &Located, victim: u64) -> Option<HouseOp> {
    let (id, deps) = match record.summary.note {
        Note::End { deps } => (record.summary.id, deps),
        Note::Accept(note) if note.ended != 0 => (note.ended, note.ended_deps),
        _ => return None,
    };
    let deps = deps.map(|dep| if dep == victim { 0 } else { dep });
    (deps != [0, 0]).then_some(HouseOp::Carry { id, deps })
}

/// The whole state of a message as compaction writes it; none if nothing ever happened to it.
fn state_of(whole: &Whole) -> Option<(Vec<Vec<u8>>, Outlook)> {
    let outlook = whole.outlook?;
    Some((envelope::encode_states(&whole.states, whole.envelope.arrival_s), outlook))
}

/// At the start: gives the messages whose chain a power cut broke a whole state again, made of all that is left of it.
pub(crate) fn mend(shared: &Shared, engine: &mut Engine) {
    let broken = std::mem::take(&mut lock(&shared.state).broken);
    let bytes_max = move_bytes_max(shared);
    let (mut ops, mut bytes) = (Vec::new(), 0);
    for op in broken.into_iter().filter_map(|(id, heads)| mended(shared, id, &heads)) {
        if bytes + op.space() > bytes_max {
            commit_all(engine, &mut ops);
            bytes = 0;
        }
        bytes += op.space();
        ops.push(op);
    }
    commit_all(engine, &mut ops);
}

fn commit_all(engine: &mut Engine, ops: &mut Vec<HouseOp>) {
    if !ops.is_empty() {
        let (done, _) = std::sync::mpsc::channel();
        engine.commit(vec![Op::House { ops: std::mem::take(ops), done }]);
    }
}

/// What goes to the engine at once: it must fit into a segment.
fn move_bytes_max(shared: &Shared) -> usize {
    MOVE_BYTES_MAX.min(crate::bytes::index(shared.segment_bytes / 8))
}

fn mended(shared: &Shared, id: u64, heads: &[Place]) -> Option<HouseOp> {
    let (known, _pin) = reader::pin(shared, id).ok()?;
    let envelope = reader::envelope_of(shared, &known).ok()?;
    let mut states: Vec<RecipientState> = reader::fresh(&envelope);
    let seen = known.entry;
    let mut outlook = None;
    for head in heads.iter().chain([&seen.state]) {
        let trail = reader::walk(shared, id, *head);
        trail.apply(&mut states);
        outlook = trail.outlook.or(outlook);
    }
    Some(HouseOp::Move { id, seen, accept: None, state: Some((envelope::encode_states(&states, envelope.arrival_s), outlook?)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{answer, body, envelope};
    use crate::inline::Inline;
    use crate::types::{Body, Completion, Log as _};
    use sys::fs::power::PowerDisk;

    /// A segment can be completed and die between two looks of the housekeeper, before its index block is written. Its extents are
    /// another segment's then, and nothing of the old one may be written there.
    #[test]
    fn no_index_block_is_written_into_extents_that_are_used_again() {
        let (mut spool, _) = Inline::open(Arc::new(PowerDisk::new()), 32 * 1024).unwrap();
        for key in 1..60 {
            spool.accept(envelope(key, 1), Body::Inline(body(key, 1500)), key);
            let Completion::Accepted { id, .. } = answer(&mut spool, key) else { panic!("not accepted") };
            spool.end(id, 1000);
        }
        let shared = Arc::clone(&spool.front.shared);
        let mut sealed = std::mem::take(&mut lock(&shared.ready).sealed);
        assert!(sealed.len() > 2);
        let mut house = House::new(Arc::clone(&shared), 0);
        let freed = house.free_dead(&mut |_| {
            spool.engine.sync_results();
            lock(&shared.ready).sealed.append(&mut sealed);
            true
        });
        let state = lock(&shared.state);
        assert!(freed);
        let waiting: Vec<u64> = lock(&shared.ready).sealed.iter().map(|sealed| sealed.header.number).collect();
        assert!(waiting.iter().all(|number| state.segments.contains_key(number)), "{waiting:?}");
    }
}
