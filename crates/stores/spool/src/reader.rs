//! Reading messages back: envelope with the state of all recipients, and bodies, each verified against its checksum.
//!
//! A reader pins the segments it needs, so that they are not used again under it. It never writes but into `quarantine/`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use sys::fs::{Access, DiskFile, read_exact_at};

use crate::bytes::{Take, index};
use crate::envelope;
use crate::record::{AcceptNote, HEADER_LEN, Head, Located, Note, Place};
use crate::shared::{Counters, Shared, lock};
use crate::state::Known;
use crate::types::{Change, Envelope, Outlook, ReadFailure, RecipientState};

/// Read at once when only the meta of a record is wanted: most envelopes are shorter.
const META_GUESS: usize = 2048;
/// Side files are verified in pieces of this length.
const CHUNK_LEN: usize = 256 * 1024;

/// A record as it was read.
pub(crate) struct Record {
    pub(crate) located: Located,
    pub(crate) rest: Vec<u8>,
    /// Empty unless it was asked for.
    pub(crate) body: Vec<u8>,
}

/// A message with all that is known of it.
pub(crate) struct Whole {
    pub(crate) known: Known,
    pub(crate) envelope: Envelope,
    pub(crate) states: Vec<RecipientState>,
    pub(crate) bytes: u64,
    /// That of the last progress, if there is one.
    pub(crate) outlook: Option<Outlook>,
}

/// Keeps segments from being used again.
pub(crate) struct Pin<'a> {
    shared: &'a Shared,
    segments: Vec<u64>,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        for number in &self.segments {
            if let Some(segment) = state.segments.get_mut(number) {
                segment.pins = segment.pins.saturating_sub(1);
            }
        }
    }
}

/// Where a message is, and that it stays there.
pub(crate) fn pin(shared: &Shared, id: u64) -> Result<(Known, Pin<'_>), ReadFailure> {
    let mut state = lock(&shared.state);
    let known = state.get(id).ok_or(ReadFailure::Unknown)?;
    let mut segments = known.older.clone();
    segments.extend([known.entry.accept.segment(), known.entry.state.segment()]);
    for number in &segments {
        if let Some(segment) = state.segments.get_mut(number) {
            segment.pins += 1;
        }
    }
    Ok((known, Pin { shared, segments }))
}

fn temporary(error: &io::Error) -> ReadFailure {
    if error.kind() == io::ErrorKind::UnexpectedEof { ReadFailure::Damaged } else { ReadFailure::Temporary }
}

/// The record at a place. `len` is its length as far as it is known.
pub(crate) fn read_record(shared: &Shared, place: Place, len: usize, with_body: bool) -> Result<Record, ReadFailure> {
    let nonce = lock(&shared.state).segments.get(&place.segment()).ok_or(ReadFailure::Damaged)?.nonce;
    let file = shared.file(place.segment()).map_err(|error| temporary(&error))?;
    let offset = place.offset();
    let guess = if with_body { len } else { len.min(META_GUESS) };
    let mut bytes = vec![0; guess.max(HEADER_LEN)];
    fill(file.as_ref(), &mut bytes, 0, offset)?;
    let head = Head::decode(&bytes, nonce, offset).ok_or(ReadFailure::Damaged)?;
    let meta_end = HEADER_LEN + head.meta_len;
    let need = if with_body { meta_end + head.body_len } else { meta_end };
    if bytes.len() < need {
        let from = bytes.len();
        bytes.resize(need, 0);
        fill(file.as_ref(), &mut bytes, from, offset)?;
    }
    let (located, rest) = head.open(&bytes, nonce, offset).ok_or(ReadFailure::Damaged)?;
    let rest = rest.to_vec();
    let mut body = Vec::new();
    if with_body {
        bytes.truncate(need);
        body = bytes.split_off(meta_end);
        if !head.body_is_whole(&body, nonce, offset) {
            return Err(ReadFailure::Damaged);
        }
    }
    Ok(Record { located, rest, body })
}

fn fill(file: &dyn DiskFile, bytes: &mut [u8], from: usize, offset: u64) -> Result<(), ReadFailure> {
    let part = bytes.get_mut(from..).unwrap_or_default();
    read_exact_at(file, part, offset + from as u64).map_err(|error| temporary(&error))
}

/// The accept record of a message.
pub(crate) fn read_accept(shared: &Shared, known: &Known, with_body: bool) -> Result<(AcceptNote, Record), ReadFailure> {
    let entry = &known.entry;
    let record = read_record(shared, entry.accept, usize::from(entry.accept_len8) * 8, with_body)?;
    match record.located.summary.note {
        Note::Accept(note) => Ok((note, record)),
        _ => Err(ReadFailure::Damaged),
    }
}

/// Envelope and states of a message, together as they are at one moment.
pub(crate) fn read_whole(shared: &Shared, id: u64) -> Result<Whole, ReadFailure> {
    let (known, _pin) = pin(shared, id)?;
    let (note, record) = read_accept(shared, &known, false)?;
    let envelope = read_envelope(shared, &note, &record.rest)?;
    let mut states = fresh(&envelope);
    let trail = walk(shared, id, known.entry.state);
    if !trail.is_complete {
        return Err(trail.failure);
    }
    trail.apply(&mut states);
    Ok(Whole { known, envelope, states, bytes: note.bytes, outlook: trail.outlook })
}

pub(crate) fn fresh(envelope: &Envelope) -> Vec<RecipientState> {
    let state = RecipientState::Pending { attempts: 0, due_s: envelope.arrival_s, last_reply: Vec::new(), warned: false };
    vec![state; envelope.recipients.len()]
}

/// The changes of a message, back from its last progress.
pub(crate) struct Trail {
    /// Newest record first.
    changes: Vec<Vec<Change>>,
    pub(crate) outlook: Option<Outlook>,
    pub(crate) is_complete: bool,
    failure: ReadFailure,
}

impl Trail {
    pub(crate) fn apply(&self, states: &mut [RecipientState]) {
        for change in self.changes.iter().rev().flatten() {
            if let Some(state) = states.get_mut(change.recipient as usize) {
                *state = change.state.clone();
            }
        }
    }
}

/// Follows the progress records back from `place`, as far as they can be read.
pub(crate) fn walk(shared: &Shared, id: u64, mut place: Place) -> Trail {
    let mut trail = Trail { changes: Vec::new(), outlook: None, is_complete: false, failure: ReadFailure::Damaged };
    let mut left = None;
    while place != Place::NONE && left != Some(0) {
        let record = match read_record(shared, place, META_GUESS / 4, false) {
            Ok(record) => record,
            Err(failure) => {
                trail.failure = failure;
                return trail;
            }
        };
        let summary = record.located.summary;
        let Note::Progress { full, outlook } = summary.note else { return trail };
        let Some(changes) = envelope::decode_changes(&record.rest) else { return trail };
        // A chain only ever leads back: anything else would never end.
        if summary.id != id || summary.prev >= place {
            return trail;
        }
        trail.outlook.get_or_insert(outlook);
        if full > 0 && left.is_none() {
            left = Some(full);
        }
        left = left.map(|left| left - 1);
        trail.changes.push(changes);
        place = summary.prev;
    }
    trail.is_complete = left.unwrap_or(0) == 0;
    trail
}

/// The place of a side file.
pub(crate) fn side_path(number: u64) -> PathBuf {
    PathBuf::from(format!("bodies/{number:016x}"))
}

/// What an accept says of its side files, then the envelope.
fn read_envelope(shared: &Shared, note: &AcceptNote, rest: &[u8]) -> Result<Envelope, ReadFailure> {
    let mut take = Take(rest);
    if note.side_body != 0 {
        take.u32().ok_or(ReadFailure::Damaged)?;
    }
    let decode = |bytes: &[u8]| envelope::decode(bytes, note.arrival_s, note.recipients).ok_or(ReadFailure::Damaged);
    if note.side_envelope == 0 {
        return decode(take.0);
    }
    let (len, crc) = (take.u64().ok_or(ReadFailure::Damaged)?, take.u32().ok_or(ReadFailure::Damaged)?);
    let file = open_side(shared, note.side_envelope, len)?;
    let mut bytes = vec![0; index(len)];
    read_exact_at(file.as_ref(), &mut bytes, 0).map_err(|error| temporary(&error))?;
    if crc32c::crc32c(&bytes) != crc {
        return Err(ReadFailure::Damaged);
    }
    decode(&bytes)
}

fn open_side(shared: &Shared, number: u64, len: u64) -> Result<Box<dyn DiskFile>, ReadFailure> {
    let file = match shared.disk.open(&side_path(number), Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadFailure::Damaged),
        result => result.map_err(|error| temporary(&error))?,
    };
    let size = file.size().map_err(|error| temporary(&error))?;
    if size == len { Ok(file) } else { Err(ReadFailure::Damaged) }
}

/// The body of a message as a descriptor, and its length.
pub(crate) fn read_body(shared: &Shared, id: u64) -> Result<(OwnedFd, u64), ReadFailure> {
    let (known, _pin) = pin(shared, id)?;
    if known.sides.body == 0 {
        let (_, record) = read_accept(shared, &known, true)?;
        let fd = sys::memfd::sealed(&record.body).map_err(|_| ReadFailure::Temporary)?;
        return Ok((fd, record.body.len() as u64));
    }
    let (note, record) = read_accept(shared, &known, false)?;
    let file = verify_side_body(shared, &note, &record.rest)?;
    Ok((file.into_fd().map_err(|_| ReadFailure::Temporary)?, note.bytes))
}

/// The envelope alone.
pub(crate) fn envelope_of(shared: &Shared, known: &Known) -> Result<Envelope, ReadFailure> {
    let (note, record) = read_accept(shared, known, false)?;
    read_envelope(shared, &note, &record.rest)
}

/// Reads all records of a message and compares, but not its side files.
pub(crate) fn verify_record(shared: &Shared, id: u64) -> Result<(), ReadFailure> {
    read_whole(shared, id)?;
    let (known, _pin) = pin(shared, id)?;
    read_accept(shared, &known, true).map(|_| ())
}

/// Reads all of a message's bytes and compares; returns how many.
pub(crate) fn verify(shared: &Shared, id: u64) -> Result<u64, ReadFailure> {
    let whole = read_whole(shared, id)?;
    let (note, record) = {
        let (known, _pin) = pin(shared, id)?;
        read_accept(shared, &known, true)?
    };
    if note.side_body != 0 {
        verify_side_body(shared, &note, &record.rest)?;
    }
    Ok(whole.bytes)
}

fn verify_side_body(shared: &Shared, note: &AcceptNote, rest: &[u8]) -> Result<Box<dyn DiskFile>, ReadFailure> {
    let stored = Take(rest).u32().ok_or(ReadFailure::Damaged)?;
    let file = open_side(shared, note.side_body, note.bytes)?;
    let mut buf = vec![0; CHUNK_LEN];
    let (mut crc, mut offset) = (0, 0);
    while offset < note.bytes {
        let len = index(note.bytes - offset).min(CHUNK_LEN);
        let part = buf.get_mut(..len).unwrap_or_default();
        read_exact_at(file.as_ref(), part, offset).map_err(|error| temporary(&error))?;
        crc = crc32c::crc32c_append(crc, part);
        offset += len as u64;
    }
    if crc == stored { Ok(file) } else { Err(ReadFailure::Damaged) }
}

/// A damaged message: what is there of its accept is copied aside, and an alert says where.
pub(crate) fn quarantine(shared: &Shared, id: u64) {
    let copy = || -> Result<bool, ReadFailure> {
        let (known, _pin) = pin(shared, id)?;
        let entry = known.entry;
        let mut bytes = vec![0; usize::from(entry.accept_len8) * 8];
        let file = shared.file(entry.accept.segment()).map_err(|_| ReadFailure::Temporary)?;
        read_exact_at(file.as_ref(), &mut bytes, entry.accept.offset()).map_err(|_| ReadFailure::Temporary)?;
        crate::replay::set_aside(shared.disk.as_ref(), &format!("message-{id}"), &bytes).map_err(|_| ReadFailure::Temporary)
    };
    if let Ok(true) = copy() {
        Counters::add(&shared.counters.damaged, 1);
        shared
            .outbox
            .alert(format!("message {id} is damaged on the disk; it stays queued, a copy is in quarantine/message-{id}"));
    }
}
