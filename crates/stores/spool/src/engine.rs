//! The commit engine: writes what waits in one go, syncs once, and only then lets the spool say yes.
//!
//! Guarantees: an accept is answered after the sync of its record, of its segment's header and name and of its side files; a
//! result is answered after its write, and synced with the next commit, a hold or release after its sync. After a failed write or
//! sync that segment is never written or synced again: its unsynced part is declared void in a new one, results are written there
//! anew, accepts refused.
//! It runs in one thread and has no timers of its own; the power-cut suite runs it without threads.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use sys::fs::{DiskFile, is_full};

use crate::op::{HouseOp, Op, RECORD_OVERHEAD};
use crate::prepare;
use crate::record::{AcceptNote, Deps, Note, Place, Summary, encode, record_len};
use crate::segment::{self, Header, RECORDS_AT};
use crate::shared::{Counters, ReadySegment, SealedSegment, Shared, lock};
use crate::state::{Phase, Segment, State, Undo};
use crate::types::{Completion, Health, MessageId, Outlook, Refusal};

/// Most bytes written with one sync: bounds the memory of a batch and how long the first in it waits.
pub(crate) const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The batch buffer is given back when it grew beyond this.
const BUFFER_BYTES_KEPT: usize = 512 * 1024;
/// What a void takes in the segment that it opens.
const VOID_SPACE: u64 = RECORD_OVERHEAD as u64;
/// A message may have this many progress records, or one for each 16 recipients, before its state is written anew.
const CHAIN_MIN: u16 = 64;

/// A request whose records are in the buffer or on the disk but not synced.
struct Placed {
    op: Op,
    undo: Vec<Undo>,
    /// For an accept: the id it got.
    id: u64,
    /// Side files to remove once it is synced.
    trash: Vec<u64>,
    answered: bool,
}

/// The segment that is being written.
struct Active {
    header: Header,
    file: Arc<dyn DiskFile>,
    /// Where the next record goes.
    at: u64,
    /// Up to here it is synced.
    synced: u64,
    index: Vec<u8>,
    /// It was the spare: no new mail until there is a spare again.
    is_spare: bool,
}

/// See the module.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    active: Active,
    buffer: Vec<u8>,
    /// Results on the disk since the last sync.
    unsynced: Vec<Placed>,
    /// Results that found no room at all; they wait for some.
    parked: VecDeque<Op>,
    answers: Vec<Completion>,
    stopped: bool,
}

impl Engine {
    /// Opens the first segment of this start.
    pub(crate) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (ready, is_spare) = match prepare::next(&shared) {
            Ok(ready) => (ready, false),
            Err(why) => match prepare::take_spare(&shared) {
                // What stops the start is what stopped the next segment, not that the spare is used up.
                Err(error) if error.kind() == io::ErrorKind::NotFound && why == Refusal::Full => {
                    return Err(rustix::io::Errno::NOSPC.into());
                }
                taken => taken?,
            },
        };
        if is_spare {
            shared.set_health(Health::Full);
        }
        let active = Active::new(&shared, ready, is_spare);
        let (unsynced, answers, parked) = (Vec::new(), Vec::new(), VecDeque::new());
        Ok(Self { shared, active, buffer: Vec::new(), unsynced, parked, answers, stopped: false })
    }

    /// The number of the segment being written.
    pub(crate) fn segment_number(&self) -> u64 {
        self.active.header.number
    }

    /// Is anything written that no sync has covered?
    pub(crate) fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// Are there results that wait for room?
    pub(crate) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Writes and answers all of these.
    pub(crate) fn commit(&mut self, ops: Vec<Op>) {
        let mut queue = std::mem::take(&mut self.parked);
        queue.extend(ops);
        while !queue.is_empty() && !self.stopped {
            self.lift_restriction();
            let placed = self.write_round(&mut queue);
            self.sync_if_needed(placed);
            if !queue.is_empty() && !self.stopped {
                self.make_room(&mut queue);
            }
        }
        queue.into_iter().for_each(|op| self.refuse(op, Refusal::Failed));
        if self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
        self.shared.outbox.say_all(&mut self.answers);
    }

    /// Syncs results that were written some time ago.
    pub(crate) fn sync_results(&mut self) {
        if !self.unsynced.is_empty() && !self.stopped {
            self.sync(Vec::new());
            self.shared.outbox.say_all(&mut self.answers);
        }
    }

    /// Before a planned end: nothing unsynced, an index block for the next start.
    pub(crate) fn close(&mut self) {
        self.sync_results();
        let queue = std::mem::take(&mut self.parked);
        queue.into_iter().for_each(|op| self.refuse(op, Refusal::Failed));
        self.shared.outbox.say_all(&mut self.answers);
        if !self.stopped {
            let active = &self.active;
            // Without it the next start scans: no harm.
            let _ = segment::write_index(active.file.as_ref(), &active.header, active.at, &active.index);
        }
    }

    /// Places and writes what fits into the active segment. The index is locked from the placing to the write, so that no reader
    /// looks for a record that is not yet there.
    fn write_round(&mut self, queue: &mut VecDeque<Op>) -> Vec<Placed> {
        let shared = Arc::clone(&self.shared);
        let mut state = lock(&shared.state);
        let start = self.active.at;
        let mut placed = Vec::new();
        self.buffer.clear();
        while let Some(op) = queue.front() {
            let refusal = self.refusal_of(op);
            let fits = self.active.room() >= op.space() && self.buffer.len() < BATCH_BYTES_MAX;
            if refusal.is_none() && !fits {
                break;
            }
            let Some(op) = queue.pop_front() else { break };
            match refusal {
                Some(why) => self.refuse(op, why),
                None => placed.extend(self.place(&mut state, op)),
            }
        }
        if self.buffer.is_empty() {
            return placed;
        }
        let result = self.active.file.write_at(&[IoSlice::new(&self.buffer)], start);
        Counters::add(&self.shared.counters.batches, 1);
        Counters::add(&self.shared.counters.bytes_written, self.buffer.len() as u64);
        if let Err(error) = result {
            drop(state);
            self.fail_over(placed, &error);
            return Vec::new();
        }
        drop(state);
        self.answer_results(&mut placed);
        placed
    }

    fn refusal_of(&self, op: &Op) -> Option<Refusal> {
        if op.space() > self.shared.segment_bytes.saturating_sub(RECORDS_AT + segment::FOOTER_LEN + VOID_SPACE) {
            return Some(Refusal::TooLarge);
        }
        (self.active.is_spare && op.is_new_mail()).then_some(Refusal::Full)
    }

    /// Encodes a request into the buffer and applies it; `None` if it is answered already.
    fn place(&mut self, state: &mut State, mut op: Op) -> Option<Placed> {
        let mut placed = Placed { op: Op::End { id: 0, ticket: 0 }, undo: Vec::new(), id: 0, trash: Vec::new(), answered: false };
        match &mut op {
            Op::Accept(accept) => {
                let ended = accept.note.ended;
                if ended != 0 && state.table.get(ended).is_none() {
                    self.refuse(op, Refusal::Failed);
                    return None;
                }
                if ended != 0 {
                    accept.note.ended_deps = state.deps_of(ended);
                    placed.trash = side_files(state, ended);
                }
                placed.id = Place::new(self.active.header.number, self.active.at).0;
                let summary = Summary { id: placed.id, prev: Place::NONE, note: Note::Accept(accept.note) };
                placed.undo.push(self.write_record(state, &summary, &accept.rest, &accept.body));
            }
            Op::Progress { id, records, covers, outlook, ticket, synced: _ } => {
                let Some(entry) = state.table.get(*id) else {
                    self.answers.push(Completion::Unwritten { ticket: *ticket });
                    return None;
                };
                let covers_all = *covers >= entry.recipients;
                let chain_max = u16::try_from(entry.recipients / 16).unwrap_or(u16::MAX).clamp(CHAIN_MIN, u16::MAX - 1);
                if !covers_all && entry.chain >= chain_max {
                    lock(&self.shared.ready).tangled.insert(*id);
                }
                self.place_progress(state, *id, records, *outlook, covers_all, &mut placed.undo);
            }
            Op::End { id, ticket } => {
                if state.table.get(*id).is_none() {
                    self.answers.push(Completion::Unwritten { ticket: *ticket });
                    return None;
                }
                placed.trash = side_files(state, *id);
                self.place_end(state, *id, state.deps_of(*id), &mut placed.undo);
            }
            Op::House { ops, .. } => ops.iter().for_each(|op| self.place_house(state, op, &mut placed.undo)),
        }
        placed.op = op;
        Some(placed)
    }

    fn place_progress(
        &mut self,
        state: &mut State,
        id: u64,
        records: &[Vec<u8>],
        outlook: Outlook,
        all: bool,
        undo: &mut Vec<Undo>,
    ) {
        let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
        for (number, record) in (1..).zip(records) {
            let full = if all && number == count { count } else { 0 };
            let prev = state.table.get(id).map_or(Place::NONE, |entry| entry.state);
            let summary = Summary { id, prev, note: Note::Progress { full, outlook } };
            undo.push(self.write_record(state, &summary, record, &[]));
        }
    }

    fn place_end(&mut self, state: &mut State, id: u64, deps: Deps, undo: &mut Vec<Undo>) {
        let prev = state.table.get(id).map_or(Place::NONE, |entry| entry.state);
        undo.push(self.write_record(state, &Summary { id, prev, note: Note::End { deps } }, &[], &[]));
    }

    /// Moves only what still is as compaction saw it: a message that went on meanwhile is left for its next look.
    fn place_house(&mut self, state: &mut State, op: &HouseOp, undo: &mut Vec<Undo>) {
        match op {
            HouseOp::Move { id, seen, accept, state: states } => {
                if state.table.get(*id) != Some(seen) {
                    return;
                }
                if let Some((note, rest, body)) = accept {
                    let note = AcceptNote { moved: true, ended: 0, ended_deps: [0, 0], ..*note };
                    undo.push(self.write_record(
                        state,
                        &Summary { id: *id, prev: Place::NONE, note: Note::Accept(note) },
                        rest,
                        body,
                    ));
                }
                if let Some((records, outlook)) = states {
                    self.place_progress(state, *id, records, *outlook, true, undo);
                }
                Counters::add(&self.shared.counters.moved, 1);
            }
            HouseOp::Carry { id, deps } => {
                let deps = state.existing(*deps, self.active.header.number);
                // Ids are never given twice: a living message of this id has no end.
                if deps != [0, 0] && state.table.get(*id).is_none() {
                    self.place_end(state, *id, deps, undo);
                }
            }
        }
    }

    fn write_record(&mut self, state: &mut State, summary: &Summary, rest: &[u8], body: &[u8]) -> Undo {
        let active = &mut self.active;
        let located = encode(&mut self.buffer, active.header.nonce, active.at, summary, rest, body);
        debug_assert_eq!(located.end() - located.offset, record_len(summary.note.encoded_len(), rest.len(), body.len()) as u64);
        active.at = located.end();
        located.encode(&mut active.index);
        state.apply(active.header.number, &located)
    }

    /// Results are safe from the death of any process as soon as they are written.
    fn answer_results(&mut self, placed: &mut [Placed]) {
        for item in placed {
            if let Op::Progress { ticket, synced: false, .. } | Op::End { ticket, .. } = item.op {
                item.answered = true;
                self.answers.push(Completion::Written { ticket });
            }
        }
        self.shared.outbox.say_all(&mut self.answers);
    }

    fn sync_if_needed(&mut self, placed: Vec<Placed>) {
        if placed.iter().any(|item| matches!(item.op, Op::Accept(_) | Op::House { .. } | Op::Progress { synced: true, .. })) {
            self.sync(placed);
        } else {
            self.unsynced.extend(placed);
        }
    }

    /// Syncs the active segment and answers what that makes durable.
    fn sync(&mut self, placed: Vec<Placed>) {
        if let Err(error) = self.active.file.sync_data("records") {
            return self.fail_over(placed, &error);
        }
        Counters::add(&self.shared.counters.syncs, 1);
        self.active.synced = self.active.at;
        let mut items = std::mem::take(&mut self.unsynced);
        items.extend(placed);
        self.answer_synced(items);
    }

    fn answer_synced(&mut self, items: Vec<Placed>) {
        let mut trash = Vec::new();
        for item in items {
            let (mut accepted, mut ended) = (0, 0);
            match item.op {
                Op::Accept(accept) => {
                    (accepted, ended) = (1, u64::from(accept.note.ended != 0));
                    self.answers.push(Completion::Accepted { ticket: accept.ticket, id: MessageId(item.id) });
                }
                Op::End { .. } => ended = 1,
                Op::House { done, .. } => {
                    let _ = done.send(true);
                }
                Op::Progress { ticket, .. } if !item.answered => self.answers.push(Completion::Written { ticket }),
                Op::Progress { .. } => {}
            }
            Counters::add(&self.shared.counters.accepted, accepted);
            Counters::add(&self.shared.counters.ended, ended);
            trash.extend(item.trash);
        }
        if !trash.is_empty() {
            lock(&self.shared.ready).trash.append(&mut trash);
            self.shared.wanted.notify_one();
        }
        self.shared.outbox.say_all(&mut self.answers);
    }

    /// The front of the queue does not fit: seal this segment and go on in the next.
    fn make_room(&mut self, queue: &mut VecDeque<Op>) {
        let Some(front) = queue.front() else { return };
        if self.active.room() >= front.space() {
            return; // It was only the bound of a batch.
        }
        if !self.unsynced.is_empty() {
            self.sync(Vec::new());
            if self.stopped {
                return;
            }
        }
        match prepare::next(&self.shared) {
            Ok(ready) => self.advance(ready, false),
            Err(why) if front.is_new_mail() => {
                if why == Refusal::Full {
                    self.shared.set_health(Health::Full);
                }
                if let Some(op) = queue.pop_front() {
                    self.refuse(op, why);
                }
            }
            Err(_) => match prepare::take_spare(&self.shared) {
                Ok((ready, is_spare)) => {
                    if is_spare {
                        self.shared.set_health(Health::Full);
                    }
                    self.advance(ready, is_spare);
                }
                Err(_) => self.park(queue),
            },
        }
    }

    /// Not even the spare: results keep waiting, so their deliveries keep their slots; everything else is refused.
    fn park(&mut self, queue: &mut VecDeque<Op>) {
        self.shared.set_health(Health::Full);
        for op in queue.drain(..) {
            match op {
                Op::Progress { .. } | Op::End { .. } => self.parked.push_back(op),
                Op::Accept(_) | Op::House { .. } => self.refuse(op, Refusal::Full),
            }
        }
    }

    fn advance(&mut self, ready: ReadySegment, is_spare: bool) {
        let next = Active::new(&self.shared, ready, is_spare);
        let old = std::mem::replace(&mut self.active, next);
        if let Some(segment) = lock(&self.shared.state).segments.get_mut(&old.header.number) {
            segment.phase = Phase::Sealed;
        }
        let sealed = SealedSegment { header: old.header, file: old.file, used: old.at, index: old.index };
        lock(&self.shared.ready).sealed.push(sealed);
        self.shared.wanted.notify_one();
    }

    /// New mail again, once there are a next segment and a spare.
    fn lift_restriction(&mut self) {
        let is_short = self.active.is_spare || self.shared.health() == Health::Full;
        if !is_short {
            return;
        }
        let ready = lock(&self.shared.ready);
        if ready.has_spare && !ready.next.is_empty() {
            drop(ready);
            self.active.is_spare = false;
            self.shared.set_health(Health::Ok);
        }
    }

    /// A write or a sync failed. What it left on the disk is unknown and stays so.
    fn fail_over(&mut self, placed: Vec<Placed>, error: &io::Error) {
        let number = self.active.header.number;
        self.shared.outbox.alert(format!("segment {number:016x}: {error}; going on in a new one"));
        let why = if is_full(error) { Refusal::Full } else { Refusal::Failed };
        let mut items = std::mem::take(&mut self.unsynced);
        items.extend(placed);
        self.take_back(&mut items);
        let from = self.active.synced;
        let ready = match prepare::next(&self.shared) {
            Ok(ready) => Some((ready, false)),
            Err(_) => prepare::take_spare(&self.shared).ok(),
        };
        let Some((ready, is_spare)) = ready else { return self.stop(items, why) };
        self.active = Active::new(&self.shared, ready, is_spare);
        match self.log_again(items, number, from, why) {
            Ok(done) => self.answer_synced(done),
            Err(items) => self.stop(items, why),
        }
    }

    /// Undoes what the failed segment holds beyond its last sync.
    fn take_back(&mut self, items: &mut [Placed]) {
        let shared = Arc::clone(&self.shared);
        let mut state = lock(&shared.state);
        for item in items.iter_mut().rev() {
            item.undo.drain(..).rev().for_each(|undo| state.undo(undo));
        }
        if let Some(segment) = state.segments.get_mut(&self.active.header.number) {
            segment.phase = Phase::Failed;
            segment.used = self.active.synced;
        }
    }

    /// Writes and syncs the void and the results. What is refused is answered only after that; if it fails too, all come back.
    fn log_again(&mut self, items: Vec<Placed>, voided: u64, from: u64, why: Refusal) -> Result<Vec<Placed>, Vec<Placed>> {
        let shared = Arc::clone(&self.shared);
        let mut state = lock(&shared.state);
        self.buffer.clear();
        let start = self.active.at;
        let from = u32::try_from(from).unwrap_or(0);
        let mut undo = vec![self.write_record(
            &mut state,
            &Summary { id: 0, prev: Place::NONE, note: Note::Void { segment: voided, from } },
            &[],
            &[],
        )];
        let (mut again, mut refused) = (Vec::new(), Vec::new());
        for item in items {
            // There is room for each: see `Active::room`. One left out would be taken back though it was said to be written.
            if matches!(item.op, Op::Progress { .. } | Op::End { .. }) {
                let answered = item.answered;
                again.extend(self.place(&mut state, item.op).map(|placed| Placed { answered, ..placed }));
            } else {
                refused.push(item);
            }
        }
        let written = self.active.file.write_at(&[IoSlice::new(&self.buffer)], start);
        let result = written.and_then(|()| self.active.file.sync_data("void"));
        if result.is_err() {
            again.iter_mut().rev().for_each(|item| item.undo.drain(..).rev().for_each(|undo| state.undo(undo)));
            undo.drain(..).for_each(|undo| state.undo(undo));
            again.append(&mut refused);
            return Err(again);
        }
        drop(state);
        self.active.synced = self.active.at;
        refused.into_iter().for_each(|item| self.refuse_placed(item, why));
        for item in again.iter_mut().filter(|item| !item.answered) {
            if let Op::Progress { ticket, .. } | Op::End { ticket, .. } = item.op {
                item.answered = true;
                self.answers.push(Completion::Written { ticket });
            }
        }
        Ok(again)
    }

    fn stop(&mut self, items: Vec<Placed>, why: Refusal) {
        self.stopped = true;
        self.shared.set_health(Health::Stopped);
        items.into_iter().for_each(|item| self.refuse_placed(item, why));
        self.shared.outbox.say_all(&mut self.answers);
    }

    fn refuse_placed(&mut self, item: Placed, why: Refusal) {
        if !item.answered {
            self.refuse(item.op, why);
        }
    }

    fn refuse(&mut self, op: Op, why: Refusal) {
        match op {
            Op::Accept(accept) => {
                let mut sides = vec![accept.note.side_body, accept.note.side_envelope];
                sides.retain(|number| *number != 0);
                // While the void is not known to be synced the record may come back at the next start and needs its files.
                if !self.stopped {
                    lock(&self.shared.ready).trash.append(&mut sides);
                }
                self.answers.push(Completion::Refused { ticket: accept.ticket, why });
            }
            Op::Progress { ticket, .. } | Op::End { ticket, .. } => self.answers.push(Completion::Unwritten { ticket }),
            Op::House { done, .. } => {
                let _ = done.send(false);
            }
        }
    }
}

fn side_files(state: &State, id: u64) -> Vec<u64> {
    let sides = state.get(id).map(|known| known.sides).unwrap_or_default();
    [sides.body, sides.envelope].into_iter().filter(|number| *number != 0).collect()
}

impl Active {
    fn new(shared: &Shared, ready: ReadySegment, is_spare: bool) -> Self {
        let header = ready.header;
        lock(&shared.state).segments.insert(header.number, Segment::new(header.nonce, header.bytes, Phase::Active));
        Self { header, file: ready.file, at: RECORDS_AT, synced: RECORDS_AT, index: Vec::new(), is_spare }
    }

    /// Bytes left for records and their index entries. What it leaves free is for a void: should this segment fail, all of it has to
    /// fit into the next, behind that.
    fn room(&self) -> u64 {
        self.header.limit().saturating_sub(self.at + self.index.len() as u64 + VOID_SPACE)
    }
}
