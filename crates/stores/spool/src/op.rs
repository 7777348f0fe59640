//! What the commit engine is asked to write: accepts, results, and what compaction moves.
//!
//! Everything is encoded before it comes here, in the thread that asks; the engine only places it.

use std::sync::mpsc::Sender;

use crate::record::{AcceptNote, Deps, INDEX_ENTRY_LEN};
use crate::state::Entry;
use crate::types::Outlook;

/// What the headers, notes and index entries of one record take at most.
pub(crate) const RECORD_OVERHEAD: usize = 48 + 61 + 61 + INDEX_ENTRY_LEN + 8;

/// An accept, ready to be written. The id and what the end outlives are filled in when it is placed.
pub(crate) struct AcceptOp {
    pub(crate) note: AcceptNote,
    /// What follows the note in the meta: checksums of side files, the envelope.
    pub(crate) rest: Vec<u8>,
    pub(crate) body: Vec<u8>,
    pub(crate) ticket: u64,
}

/// What compaction wants written.
pub(crate) enum HouseOp {
    /// A living message again: the accept if it is to move, and its whole state if it has any. An accept never moves without its
    /// state: the progress that stands before it in the log would mean nothing to a start that finds the old accept gone.
    Move { id: u64, seen: Entry, accept: Option<(AcceptNote, Vec<u8>, Vec<u8>)>, state: Option<(Vec<Vec<u8>>, Outlook)> },
    /// The end of a message, because the segment that held it goes away.
    Carry { id: u64, deps: Deps },
}

/// One request to the engine.
pub(crate) enum Op {
    Accept(AcceptOp),
    Progress {
        id: u64,
        records: Vec<Vec<u8>>,
        /// So many recipients, from the first on, are named: if these are all, it is the whole state.
        covers: u32,
        outlook: Outlook,
        /// Answered when it is synced, not when it is written.
        synced: bool,
        ticket: u64,
    },
    End {
        id: u64,
        ticket: u64,
    },
    /// Answered `true` when everything in it, and everything before it, is synced.
    House {
        ops: Vec<HouseOp>,
        done: Sender<bool>,
    },
}

impl Op {
    /// An upper bound of what it takes in a segment, index included.
    pub(crate) fn space(&self) -> u64 {
        let one = |rest: usize, body: usize| rest + body + RECORD_OVERHEAD;
        let many = |records: &[Vec<u8>]| records.iter().map(|record| one(record.len(), 0)).sum::<usize>();
        let space = match self {
            Self::Accept(accept) => one(accept.rest.len(), accept.body.len()),
            Self::Progress { records, .. } => many(records),
            Self::End { .. } => one(0, 0),
            Self::House { ops, .. } => ops.iter().map(HouseOp::space).sum(),
        };
        space as u64
    }

    /// What it counts towards the bound of a batch.
    pub(crate) fn weight(&self) -> usize {
        usize::try_from(self.space()).unwrap_or(usize::MAX)
    }

    /// May it be written to the spare?
    pub(crate) fn is_new_mail(&self) -> bool {
        matches!(self, Self::Accept(accept) if accept.note.ended == 0)
    }
}

impl HouseOp {
    pub(crate) fn space(&self) -> usize {
        match self {
            Self::Move { accept, state, .. } => {
                let accept = accept.as_ref().map_or(0, |(_, rest, body)| rest.len() + body.len() + RECORD_OVERHEAD);
                let records = state.as_ref().map(|(records, _)| records.as_slice()).unwrap_or_default();
                accept + records.iter().map(|record| record.len() + RECORD_OVERHEAD).sum::<usize>()
            }
            Self::Carry { .. } => RECORD_OVERHEAD,
        }
    }
}
