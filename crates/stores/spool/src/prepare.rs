//! The stock of segments: the next one, the spare, and written extents that are used again.
//!
//! A segment gets its name only when it is written over its whole length and its header is synced, and the name is synced before
//! it is handed out: what is then acknowledged in it cannot be lost with it. The housekeeper prepares ahead of need.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sys::fs::{Access, Disk, is_full};

use crate::record::Nonce;
use crate::segment::{self, DIR, Header, SPARE_NAME};
use crate::shared::{Ready, ReadySegment, Shared, lock};
use crate::types::Refusal;

/// Segments kept ready: with a fast stream of mail the second is being written out while the first is used.
const READY_MAX: usize = 2;
/// After a failure for want of room the disk is not asked again for this long.
const FULL_FOR: Duration = Duration::from_secs(1);

/// The next segment. Mostly it is there; else it is prepared here and now, or this waits for the housekeeper who is at it.
///
/// # Errors
/// `Full` if there is no room for one beside the spare, else `Failed`.
pub(crate) fn next(shared: &Shared) -> Result<ReadySegment, Refusal> {
    if let Some(segment) = take_ready(shared) {
        return Ok(segment);
    }
    let preparing = lock(&shared.preparing);
    if let Some(segment) = take_ready(shared) {
        return Ok(segment);
    }
    let failed_lately = lock(&shared.ready).full_since.is_some_and(|since| since.elapsed() < FULL_FOR);
    if failed_lately && !shared.is_inline {
        return Err(Refusal::Full);
    }
    // The spare comes first: it is what lets a full disk get empty again.
    if !lock(&shared.ready).has_spare {
        fill_spare(shared)?;
    }
    fill_next(shared)?;
    drop(preparing);
    take_ready(shared).ok_or(Refusal::Failed)
}

fn take_ready(shared: &Shared) -> Option<ReadySegment> {
    let segment = lock(&shared.ready).next.pop_front();
    shared.wanted.notify_one();
    segment
}

/// Makes the spare a segment. It is written out already: only its header and its name have to reach the disk. The flag says that
/// it is the spare: if the housekeeper got another segment ready since [`next`] found none, that one goes first. Its number is
/// lower, and what is written later must never stand in a segment that a start replays earlier.
///
/// # Errors
/// There is no spare, or the disk fails.
pub(crate) fn take_spare(shared: &Shared) -> io::Result<(ReadySegment, bool)> {
    let _preparing = lock(&shared.preparing);
    if let Some(segment) = take_ready(shared) {
        return Ok((segment, false));
    }
    {
        let mut ready = lock(&shared.ready);
        if !ready.has_spare {
            return Err(io::ErrorKind::NotFound.into());
        }
        ready.has_spare = false;
    }
    Ok((name_segment(shared, SPARE_NAME)?, true))
}

/// At the start: extents that are shorter than segments are now (the file system has grown) are given back.
pub(crate) fn discard_short(disk: &dyn Disk, ready: &mut Ready, segment_bytes: u64) {
    let is_long = |name: &str| {
        let path = segment::path(name);
        let is_long = disk.open(&path, Access::Read).and_then(|file| file.size()).is_ok_and(|bytes| bytes >= segment_bytes);
        if !is_long {
            // What cannot be removed now is found at the next start.
            let _ = disk.unlink(&path);
        }
        is_long
    };
    ready.free.retain(|name| is_long(name));
    ready.has_spare = ready.has_spare && is_long(SPARE_NAME);
}

/// Brings the stock up to what it should be: first the spare, then the next segments.
pub(crate) fn fill(shared: &Shared) {
    while is_short(shared) {
        let _preparing = lock(&shared.preparing);
        let has_spare = lock(&shared.ready).has_spare;
        let filled = if has_spare { fill_next(shared) } else { fill_spare(shared) };
        if filled.is_err() {
            return;
        }
    }
}

/// Is something missing?
pub(crate) fn is_short(shared: &Shared) -> bool {
    let ready = lock(&shared.ready);
    ready.next.len() < READY_MAX || !ready.has_spare
}

fn fill_spare(shared: &Shared) -> Result<(), Refusal> {
    let from_free = lock(&shared.ready).free.pop();
    let made = match &from_free {
        Some(name) => shared.disk.rename(&segment::path(name), &segment::path(SPARE_NAME)),
        None => make_spare(shared),
    };
    note(shared, made)?;
    lock(&shared.ready).has_spare = true;
    Ok(())
}

/// Its name is not synced: a spare that a power cut takes away is made again.
fn make_spare(shared: &Shared) -> io::Result<()> {
    let new = segment::path("spare.new");
    segment::create(shared.disk.as_ref(), &new, shared.segment_bytes)?;
    shared.disk.rename(&new, &segment::path(SPARE_NAME))
}

fn fill_next(shared: &Shared) -> Result<(), Refusal> {
    const NEW_NAME: &str = "next.new";
    let from_free = lock(&shared.ready).free.pop();
    let made = match from_free {
        Some(name) => name_segment(shared, &name),
        None => segment::create(shared.disk.as_ref(), &segment::path(NEW_NAME), shared.segment_bytes)
            .and_then(|_| name_segment(shared, NEW_NAME)),
    };
    let segment = note(shared, made)?;
    lock(&shared.ready).next.push_back(segment);
    Ok(())
}

fn note<T>(shared: &Shared, made: io::Result<T>) -> Result<T, Refusal> {
    let full = made.as_ref().is_err_and(is_full);
    lock(&shared.ready).full_since = full.then(Instant::now);
    made.map_err(|_| if full { Refusal::Full } else { Refusal::Failed })
}

/// Turns a written file into the segment with the next number. On an error the file is taken away: in an unknown state it is of no use.
fn name_segment(shared: &Shared, name: &str) -> io::Result<ReadySegment> {
    let number = {
        let mut ready = lock(&shared.ready);
        ready.number += 1;
        ready.number
    };
    let (from, to) = (segment::path(name), segment::path(&segment::name(number)));
    let result = shared.disk.open(&from, Access::ReadWrite).and_then(|file| {
        // All segments of a run have the same length, so that what one holds fits into another.
        let bytes = shared.segment_bytes;
        if file.size()? < bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let header = Header { number, bytes, nonce: Nonce(sys::random::bytes16()?) };
        segment::write_header(file.as_ref(), &header)?;
        shared.disk.rename(&from, &to)?;
        shared.disk.sync_dir(DIR.as_ref(), "segment name")?;
        Ok(ReadySegment { header, file: Arc::from(file) })
    });
    if result.is_err() {
        let _ = shared.disk.unlink(&from);
        let _ = shared.disk.unlink(&to);
    }
    result
}
