//! The index: where each message's accept and last progress are, and what each segment is still needed for.
//!
//! [`State::apply`] is the only way in: the commit thread applies what it writes and the start applies what it finds, in the same
//! order, so both give the same index. Every application can be undone, for a write or sync that fails.
//!
//! A segment may be freed when no living message needs a record in it, and no end in it is still needed to keep an older,
//! existing accept of its message dead.

use std::collections::BTreeMap;

use crate::bytes::low32;
use crate::record::{AcceptNote, Deps, Located, Nonce, Note, Place};
use crate::segment::RECORDS_AT;
use crate::table::Table;

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) accept: Place,
    /// The last progress record; [`Place::NONE`] if there is none.
    pub(crate) state: Place,
    pub(crate) recipients: u32,
    pub(crate) accept_len8: u16,
    pub(crate) state_len8: u16,
    /// How many progress records must be read for the whole state.
    pub(crate) chain: u16,
}

/// Side files of a message; zero is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sides {
    pub(crate) body: u64,
    pub(crate) envelope: u64,
}

/// All that is known of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) entry: Entry,
    pub(crate) sides: Sides,
    /// Segments with older records of its state, beside that of the last.
    pub(crate) older: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Being written.
    Active,
    /// Complete, or from before the start.
    Sealed,
    /// A write or sync failed: nothing is ever written to it again, and its extents are not used again.
    Failed,
}

/// What is known of a segment.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) nonce: Nonce,
    pub(crate) bytes: u64,
    pub(crate) phase: Phase,
    /// Where its records end.
    pub(crate) used: u64,
    /// Needs of living messages, and the bytes of their accepts and last progresses.
    pub(crate) refs: u32,
    pub(crate) live_bytes: u64,
    /// Segments that hold accepts which ends in this one keep dead, with the number of ends.
    pub(crate) deps: BTreeMap<u64, u32>,
    /// It holds the void for this segment and must outlive it.
    pub(crate) voids: Option<u64>,
    /// Readers at work.
    pub(crate) pins: u32,
}

impl Segment {
    pub(crate) fn new(nonce: Nonce, bytes: u64, phase: Phase) -> Self {
        let deps = BTreeMap::new();
        Self { nonce, bytes, phase, used: RECORDS_AT, refs: 0, live_bytes: 0, deps, voids: None, pins: 0 }
    }
}

/// Takes one application back.
#[derive(Debug)]
pub(crate) struct Undo {
    before: Vec<(u64, Option<Known>)>,
    deps: Option<(u64, Deps)>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) table: Table<Entry>,
    pub(crate) segments: BTreeMap<u64, Segment>,
    sides: BTreeMap<u64, Sides>,
    older: BTreeMap<u64, Vec<u64>>,
    /// The segment that compaction empties: accepts in it may have a living copy elsewhere, so ends must outlive it too.
    pub(crate) moving: Option<u64>,
    /// Only while the start replays: messages whose chain is broken, with the last records before each break.
    pub(crate) broken: BTreeMap<u64, Vec<Place>>,
}

impl State {
    pub(crate) fn get(&self, id: u64) -> Option<Known> {
        let entry = *self.table.get(id)?;
        let sides = self.sides.get(&id).copied().unwrap_or_default();
        Some(Known { entry, sides, older: self.older.get(&id).cloned().unwrap_or_default() })
    }

    /// Numbers of all side files that belong to living messages.
    pub(crate) fn side_numbers(&self) -> impl Iterator<Item = u64> {
        self.sides.values().flat_map(|sides| [sides.body, sides.envelope]).filter(|number| *number != 0)
    }

    /// What an end of this message must outlive.
    pub(crate) fn deps_of(&self, id: u64) -> Deps {
        let accept = self.table.get(id).map_or(0, |entry| entry.accept.segment());
        [accept, self.moving.filter(|moving| *moving != accept).unwrap_or(0)]
    }

    /// Of these, the segments that exist; an end in `home` needs not outlive itself.
    pub(crate) fn existing(&self, deps: Deps, home: u64) -> Deps {
        deps.map(|segment| if segment != home && self.segments.contains_key(&segment) { segment } else { 0 })
    }

    /// Makes a record count.
    pub(crate) fn apply(&mut self, segment: u64, record: &Located) -> Undo {
        let place = Place::new(segment, record.offset);
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.used = segment.used.max(record.end());
        }
        let id = record.summary.id;
        match record.summary.note {
            Note::Accept(note) => self.apply_accept(id, place, record.len8, &note),
            Note::Progress { full, .. } => self.apply_progress(place, record, full),
            Note::End { deps } => {
                let before = vec![(id, self.replace(id, None))];
                Undo { before, deps: self.add_deps(place.segment(), deps) }
            }
            Note::Void { segment: voided, .. } => {
                if let Some(segment) = self.segments.get_mut(&segment) {
                    segment.voids = Some(voided);
                }
                Undo { before: Vec::new(), deps: None }
            }
        }
    }

    fn apply_accept(&mut self, id: u64, place: Place, len8: u16, note: &AcceptNote) -> Undo {
        let fresh =
            Entry { accept: place, state: Place::NONE, recipients: note.recipients, accept_len8: len8, state_len8: 0, chain: 0 };
        let sides = Sides { body: note.side_body, envelope: note.side_envelope };
        let known = match self.get(id).filter(|_| note.moved) {
            Some(old) => {
                self.moving = Some(old.entry.accept.segment());
                Known { entry: Entry { accept: place, accept_len8: len8, ..old.entry }, ..old }
            }
            None => Known { entry: fresh, sides, older: Vec::new() },
        };
        let mut before = vec![(id, self.replace(id, Some(known)))];
        if note.ended == 0 {
            return Undo { before, deps: None };
        }
        before.push((note.ended, self.replace(note.ended, None)));
        Undo { before, deps: self.add_deps(place.segment(), note.ended_deps) }
    }

    fn apply_progress(&mut self, place: Place, record: &Located, full: u32) -> Undo {
        let id = record.summary.id;
        let Some(mut known) = self.get(id) else { return Undo { before: Vec::new(), deps: None } };
        let entry = &mut known.entry;
        // Of several records that are the whole state together a power cut may keep just the last: it changes, it does not replace.
        let torn = full > 1 && (record.summary.prev != entry.state || self.broken.contains_key(&id));
        if full > 0 && !torn {
            // The records that belong to this one are in the same segment: they are written in one go.
            known.older.clear();
            entry.chain = u16::try_from(full).unwrap_or(u16::MAX);
            self.broken.remove(&id);
        } else {
            if record.summary.prev != entry.state {
                self.broken.entry(id).or_default().push(entry.state);
            }
            let last = entry.state.segment();
            if last != 0 && last != place.segment() && !known.older.contains(&last) {
                known.older.push(last);
            }
            entry.chain = entry.chain.saturating_add(1);
        }
        known.older.retain(|segment| *segment != place.segment());
        entry.state = place;
        entry.state_len8 = record.len8;
        Undo { before: vec![(id, self.replace(id, Some(known)))], deps: None }
    }

    pub(crate) fn undo(&mut self, undo: Undo) {
        for (id, before) in undo.before.into_iter().rev() {
            self.replace(id, before);
        }
        if let Some((segment, deps)) = undo.deps
            && let Some(segment) = self.segments.get_mut(&segment)
        {
            for dep in deps.into_iter().filter(|dep| *dep != 0) {
                if let Some(count) = segment.deps.get_mut(&dep) {
                    *count = count.saturating_sub(1);
                }
            }
            segment.deps.retain(|_, count| *count > 0);
        }
    }

    fn add_deps(&mut self, home: u64, deps: Deps) -> Option<(u64, Deps)> {
        let deps = self.existing(deps, home);
        let segment = self.segments.get_mut(&home)?;
        for dep in deps.into_iter().filter(|dep| *dep != 0) {
            *segment.deps.entry(dep).or_default() += 1;
        }
        Some((home, deps))
    }

    /// Puts a message in the place of what was known under this id, and keeps the accounts of the segments.
    fn replace(&mut self, id: u64, known: Option<Known>) -> Option<Known> {
        let old = self.get(id);
        if let Some(old) = &old {
            self.account(old, false);
        }
        let Some(known) = known else {
            if old.is_some() {
                self.table.remove(id);
                self.sides.remove(&id);
                self.older.remove(&id);
                self.broken.remove(&id);
            }
            return old;
        };
        self.account(&known, true);
        self.table.insert(id, known.entry);
        set_or_remove(&mut self.sides, id, known.sides, known.sides == Sides::default());
        let none = known.older.is_empty();
        set_or_remove(&mut self.older, id, known.older, none);
        old
    }

    fn account(&mut self, known: &Known, add: bool) {
        let entry = &known.entry;
        let mut count = |segment: u64, len8: u16| {
            let Some(segment) = self.segments.get_mut(&segment) else { return };
            let bytes = u64::from(len8) * 8;
            if add {
                segment.refs = segment.refs.saturating_add(1);
                segment.live_bytes = segment.live_bytes.saturating_add(bytes);
            } else {
                segment.refs = segment.refs.saturating_sub(1);
                segment.live_bytes = segment.live_bytes.saturating_sub(bytes);
            }
        };
        count(entry.accept.segment(), entry.accept_len8);
        count(entry.state.segment(), entry.state_len8);
        known.older.iter().for_each(|segment| count(*segment, 0));
    }

    /// Does this message need a record in that segment?
    pub(crate) fn needs(&self, id: u64, segment: u64) -> bool {
        self.get(id).is_some_and(|known| {
            let entry = known.entry;
            entry.accept.segment() == segment || entry.state.segment() == segment || known.older.contains(&segment)
        })
    }

    /// A segment is gone from the disk.
    pub(crate) fn forget_segment(&mut self, number: u64) {
        self.segments.remove(&number);
        for segment in self.segments.values_mut() {
            segment.deps.remove(&number);
            segment.voids = segment.voids.filter(|voided| *voided != number);
        }
        self.moving = self.moving.filter(|moving| *moving != number);
    }

    /// For tests and [`crate::Stats`]: a digest of the index that does not depend on how it was found.
    pub(crate) fn messages(&self) -> u32 {
        low32(self.table.len() as u64)
    }
}

fn set_or_remove<T>(map: &mut BTreeMap<u64, T>, id: u64, value: T, is_none: bool) {
    // Nearly no message has an entry in these maps: look before touching.
    if is_none {
        if !map.is_empty() {
            map.remove(&id);
        }
    } else {
        map.insert(id, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Summary;
    use crate::types::Outlook;
    use proptest::prelude::*;

    fn accept(id: u64, offset: u64, moved: bool, ended: u64) -> Located {
        let note = AcceptNote {
            moved,
            sender_is_null: false,
            arrival_s: 1,
            recipients: 2,
            bytes: 10,
            side_body: id % 3,
            side_envelope: 0,
            ended,
            ended_deps: [1, 2],
        };
        Located { offset, len8: 10, summary: Summary { id, prev: Place::NONE, note: Note::Accept(note) } }
    }

    fn progress(id: u64, offset: u64, prev: Place, full: u32) -> Located {
        let note = Note::Progress { full, outlook: Outlook { pending: 1, due_s: 1, held: false } };
        Located { offset, len8: 4, summary: Summary { id, prev, note } }
    }

    fn state() -> State {
        let mut state = State::default();
        for number in 1..4 {
            state.segments.insert(number, Segment::new(Nonce([0; 16]), 1 << 20, Phase::Sealed));
        }
        state
    }

    fn picture(state: &State) -> String {
        let entries: Vec<_> = state.table.iter().map(|(id, entry)| (id, *entry)).collect();
        let segments: Vec<_> = state.segments.iter().map(|(n, s)| (n, s.refs, s.live_bytes, s.deps.clone())).collect();
        format!("{entries:?} {segments:?} {:?} {:?}", state.sides, state.older)
    }

    proptest! {
        #[test]
        fn undoing_everything_leaves_nothing(steps in proptest::collection::vec((0..5_u8, 1..9_u64, 1..4_u64, 0..3_u32), 0..60)) {
            let (mut state, mut undos) = (state(), Vec::new());
            for (number, (what, id, segment, full)) in (1_u64..).zip(steps) {
                let offset = number * 1000 / 8 * 8;
                let prev = state.table.get(id).map_or(Place::NONE, |entry| entry.state);
                let record = match what {
                    0 => accept(id, offset, false, 0),
                    1 => accept(id, offset, true, 0),
                    2 => accept(id, offset, false, id + 1),
                    3 => Located { offset, len8: 2, summary: Summary { id, prev, note: Note::End { deps: state.deps_of(id) } } },
                    _ => progress(id, offset, prev, full),
                };
                let before = picture(&state);
                undos.push((before, state.apply(segment, &record)));
            }
            for (before, undo) in undos.into_iter().rev() {
                state.undo(undo);
                prop_assert_eq!(picture(&state), before);
            }
        }
    }

    #[test]
    fn a_chain_over_segments_keeps_them_until_a_full_progress() {
        let mut state = state();
        let refs = |state: &State| state.segments.values().map(|s| s.refs).collect::<Vec<_>>();
        state.apply(1, &accept(5, 4096, false, 0));
        state.apply(1, &progress(5, 5000, Place::NONE, 0));
        state.apply(2, &progress(5, 4096, Place::new(1, 5000), 0));
        state.apply(3, &progress(5, 4096, Place::new(2, 4096), 0));
        assert_eq!((refs(&state), state.get(5).unwrap().entry.chain), (vec![2, 1, 1], 3));
        state.apply(3, &progress(5, 8000, Place::new(3, 4096), 1));
        assert_eq!((refs(&state), state.get(5).unwrap().entry.chain), (vec![1, 0, 1], 1));
        let end = Note::End { deps: state.deps_of(5) };
        state.apply(3, &Located { offset: 9000, len8: 2, summary: Summary { id: 5, prev: Place::NONE, note: end } });
        assert_eq!((refs(&state), state.messages()), (vec![0, 0, 0], 0));
        assert_eq!(state.segments[&3].deps, BTreeMap::from([(1, 1)]));
        state.forget_segment(1);
        assert!(state.segments[&3].deps.is_empty());
    }

    #[test]
    fn an_index_entry_is_small() {
        assert!(size_of::<(u32, Entry)>() <= 40);
    }
}
