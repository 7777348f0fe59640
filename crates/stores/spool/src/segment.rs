//! Segment files: their header, the index block that closes them, and the scan of one that has none.
//!
//! ```text
//! 0 header · 4096 records … · index block · zeros or an older generation · last 64 bytes: footer
//! ```
//! A file is written over its whole length before it gets its name, so that later syncs commit data only. Names in `segments/`:
//! sixteen hex digits, the segment; with `.free`, written extents to be used again; with `.new`, not yet written out; and the spare.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use sys::fs::{Disk, DiskFile, read_exact_at};

use crate::bytes::{Put, Take, index};
use crate::record::{HEADER_LEN, Head, Located, Nonce, next_record};

/// The format that this version writes; it reads this and those before. What is opaque here counts, too: formats 3 and 4 have options that
/// were not understood before, which an older version would pass over (format 4: a message of another queue waits to be confirmed).
pub(crate) const FORMAT: u32 = 4;
/// Where the first record is: the header has a block of its own, so that no write of a record touches it.
pub(crate) const RECORDS_AT: u64 = 4096;
/// Bytes kept at the end for the footer.
pub(crate) const FOOTER_LEN: u64 = 64;
/// A place has 23 bits for offset/8.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Below this not even one message with 64 KiB of body and envelope would fit.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 16 * 1024;

const MAGIC: &[u8; 8] = b"qmailspl";
pub(crate) const HEADER_BYTES: usize = 48;
const FOOTER_BYTES: usize = 24;
/// A new segment goes to the disk in steps of this length, so that commits find gaps between them.
const EXTENT_STEP: u64 = 1024 * 1024;
static ZEROS: [u8; 256 * 1024] = [0; 256 * 1024];

pub(crate) const DIR: &str = "segments";
/// Written out, without a number; used when nothing else can be had.
pub(crate) const SPARE_NAME: &str = "spare";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    pub(crate) nonce: Nonce,
}

/// Why a file has no header that can be used.
#[derive(Debug)]
pub(crate) enum HeaderFault {
    Newer(u32),
    Damaged,
    Io(io::Error),
}

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

pub(crate) fn name(number: u64) -> String {
    format!("{number:016x}")
}

pub(crate) fn number_of(name: &str) -> Option<u64> {
    (name.len() == 16).then(|| u64::from_str_radix(name, 16).ok()).flatten()
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.put_u32(FORMAT);
        out.put_u64(self.number);
        out.put_u64(self.bytes);
        out.extend_from_slice(&self.nonce.0);
        out.put_u32(crc32c::crc32c(&out));
        out
    }

    /// Checks what a file begins with. A newer format is recognised by its number alone: the rest may mean anything.
    fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let parse = || {
            let mut take = Take(bytes);
            (take.bytes(8)? == MAGIC).then_some(())?;
            let format = take.u32()?;
            if format > FORMAT {
                return Some(Err(HeaderFault::Newer(format)));
            }
            let (number, bytes_in_all) = (take.u64()?, take.u64()?);
            let nonce = Nonce(take.bytes(16)?.try_into().ok()?);
            let whole = crc32c::crc32c(bytes.get(..HEADER_BYTES - 4)?) == take.u32()?;
            let possible = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes_in_all);
            (whole && possible).then_some(Ok(Self { number, bytes: bytes_in_all, nonce }))
        };
        parse().unwrap_or(Err(HeaderFault::Damaged))
    }

    /// The first offset that neither a record nor the index block may reach.
    pub(crate) fn limit(&self) -> u64 {
        self.bytes - FOOTER_LEN
    }
}

pub(crate) fn read_header(file: &dyn DiskFile) -> Result<Header, HeaderFault> {
    let mut bytes = [0; HEADER_BYTES];
    match read_exact_at(file, &mut bytes, 0) {
        Ok(()) => Header::decode(&bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(HeaderFault::Damaged),
        Err(error) => Err(HeaderFault::Io(error)),
    }
}

/// Writes and syncs a header: only then may the file get its name, and only then may a record be written.
pub(crate) fn write_header(file: &dyn DiskFile, header: &Header) -> io::Result<()> {
    file.write_at(&[IoSlice::new(&header.encode())], 0)?;
    file.sync("segment header")
}

/// A new file of zeros, written over its whole length; removed again if there is no room for it.
pub(crate) fn create(disk: &dyn Disk, path: &Path, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
    let file = disk.create(path, 0o600)?;
    let result = write_out(file.as_ref(), bytes);
    if let Err(error) = result {
        drop(file);
        let _ = disk.unlink(path);
        return Err(error);
    }
    Ok(file)
}

fn write_out(file: &dyn DiskFile, bytes: u64) -> io::Result<()> {
    match file.allocate(bytes) {
        // Writing alone does it too; allocating first gives longer extents and an early ENOSPC.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        result => result?,
    }
    let mut offset = 0;
    while offset < bytes {
        let len = index(bytes - offset).min(ZEROS.len());
        file.write_at(&[IoSlice::new(ZEROS.get(..len).unwrap_or_default())], offset)?;
        offset += len as u64;
        if offset % EXTENT_STEP == 0 || offset == bytes {
            file.sync_data("segment extents")?;
        }
    }
    Ok(())
}

/// Writes the index block behind the last record, and the footer that names it. Not synced: a segment whose block is not
/// whole is scanned.
pub(crate) fn write_index(file: &dyn DiskFile, header: &Header, used: u64, entries: &[u8]) -> io::Result<()> {
    let mut footer = Vec::with_capacity(FOOTER_BYTES);
    footer.put_u64(used);
    footer.put_u64(entries.len() as u64);
    footer.put_u32(crc32c::crc32c_append(header.nonce.seed(used), entries));
    let crc = crc32c::crc32c_append(header.nonce.seed(header.limit()), &footer);
    footer.put_u32(crc);
    file.write_at(&[IoSlice::new(entries)], used)?;
    file.write_at(&[IoSlice::new(&footer)], header.limit())
}

/// The records of a segment by its index block, and where they end; `None` if there is no whole one.
pub(crate) fn read_index(file: &dyn DiskFile, header: &Header) -> Option<Found> {
    let mut footer = [0; 24];
    read_exact_at(file, &mut footer, header.limit()).ok()?;
    let mut take = Take(&footer);
    let (used, len, entries_crc) = (take.u64()?, take.u64()?, take.u32()?);
    let crc = crc32c::crc32c_append(header.nonce.seed(header.limit()), footer.get(..20)?);
    if crc != take.u32()? || used.checked_add(len)? > header.limit() {
        return None;
    }
    let mut entries = vec![0; index(len)];
    read_exact_at(file, &mut entries, used).ok()?;
    if crc32c::crc32c_append(header.nonce.seed(used), &entries) != entries_crc {
        return None;
    }
    let mut take = Take(&entries);
    let mut records = Vec::new();
    while !take.0.is_empty() {
        records.push(Located::decode(&mut take)?);
    }
    Some(Found { records, used, damage: Vec::new(), indexed: true })
}

/// Does an error say that the bytes there are lost, or that the disk cannot give them now? Others (no descriptors, no memory, no
/// rights) say nothing about the bytes.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    // What file systems and block devices say of a bad sector or block.
    const ERRNOS: [rustix::io::Errno; 4] =
        [rustix::io::Errno::IO, rustix::io::Errno::UCLEAN, rustix::io::Errno::BADMSG, rustix::io::Errno::NODATA];
    error.raw_os_error().is_some_and(|raw| ERRNOS.iter().any(|errno| errno.raw_os_error() == raw))
}

/// The records of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) records: Vec<Located>,
    /// Where the last of them ends.
    pub(crate) used: u64,
    pub(crate) damage: Vec<Damage>,
    /// By the index block (else by a scan).
    pub(crate) indexed: bool,
}

/// A part of a segment where a record was and is no more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    /// Nothing follows: what a power cut during the last, unacknowledged write leaves looks like this.
    pub(crate) at_end: bool,
}

/// Reads a whole segment and finds its records; behind a damaged part it finds the next whole one.
pub(crate) fn scan(file: &dyn DiskFile, header: &Header) -> io::Result<Found> {
    let mut bytes = vec![0; index(header.bytes)];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64)? {
            0 => break,
            got => filled += got,
        }
    }
    bytes.truncate(filled);
    let mut found = Found { records: Vec::new(), used: RECORDS_AT, damage: Vec::new(), indexed: false };
    let mut offset = RECORDS_AT;
    while let Some(next) = next_record(&bytes, header.nonce, offset) {
        note_damage(&mut found, &bytes, offset, next, false);
        offset = scan_record(&mut found, &bytes, header, next);
    }
    // A record that is damaged and the last is known only if its header is whole.
    for damage in &mut found.damage {
        damage.at_end = damage.offset + damage.bytes.len() as u64 == offset && found.used < offset;
    }
    found.used = offset;
    Ok(found)
}

fn note_damage(found: &mut Found, bytes: &[u8], from: u64, to: u64, at_end: bool) {
    if from < to {
        let damaged = bytes.get(index(from)..index(to).min(bytes.len())).unwrap_or_default();
        found.damage.push(Damage { offset: from, bytes: damaged.to_vec(), at_end });
    }
}

/// Takes the record whose header and meta are whole at `offset`; returns where it ends.
fn scan_record(found: &mut Found, bytes: &[u8], header: &Header, offset: u64) -> u64 {
    let rest = bytes.get(index(offset)..).unwrap_or_default();
    let Some(head) = Head::decode(rest, header.nonce, offset) else { return offset + 8 };
    let Some((located, _)) = head.open(rest, header.nonce, offset) else { return offset + 8 };
    let body_at = HEADER_LEN + head.meta_len;
    let body = rest.get(body_at..body_at + head.body_len).unwrap_or_default();
    if head.body_is_whole(body, header.nonce, offset) {
        found.records.push(located);
        found.used = located.end();
    } else {
        note_damage(found, bytes, offset, located.end(), false);
    }
    located.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Note, Place, Summary, encode};
    use crate::types::Outlook;
    use sys::fs::power::PowerDisk;

    const HEADER: Header = Header { number: 3, bytes: 32 * 1024, nonce: Nonce([9; 16]) };

    fn segment(records: usize) -> (PowerDisk, Box<dyn DiskFile>, Vec<Located>) {
        let disk = PowerDisk::new();
        let file = create(&disk, "s".as_ref(), HEADER.bytes).unwrap();
        write_header(file.as_ref(), &HEADER).unwrap();
        let (mut bytes, mut located) = (Vec::new(), Vec::new());
        for number in 0..records {
            let note = Note::Progress { full: 1, outlook: Outlook { pending: 1, due_s: 5, held: false } };
            let summary = Summary { id: number as u64, prev: Place::NONE, note };
            let offset = RECORDS_AT + bytes.len() as u64;
            located.push(encode(&mut bytes, HEADER.nonce, offset, &summary, b"changes", b"a body"));
        }
        file.write_at(&[IoSlice::new(&bytes)], RECORDS_AT).unwrap();
        (disk, file, located)
    }

    #[test]
    fn the_index_block_and_the_scan_find_the_same() {
        let (_, file, located) = segment(20);
        let scanned = scan(file.as_ref(), &HEADER).unwrap();
        assert_eq!((&scanned.records, scanned.used), (&located, located[19].end()));
        assert!(read_index(file.as_ref(), &HEADER).is_none());
        let mut entries = Vec::new();
        located.iter().for_each(|record| record.encode(&mut entries));
        write_index(file.as_ref(), &HEADER, scanned.used, &entries).unwrap();
        let indexed = read_index(file.as_ref(), &HEADER).unwrap();
        assert_eq!((indexed.records, indexed.used), (scanned.records, scanned.used));
        // A block from before the extents were used again does not count.
        let again = Header { nonce: Nonce([1; 16]), ..HEADER };
        assert!(read_index(file.as_ref(), &again).is_none());
        assert!(scan(file.as_ref(), &again).unwrap().records.is_empty());
    }

    #[test]
    fn every_damaged_byte_costs_one_record() {
        let (disk, file, located) = segment(3);
        for offset in located[1].offset..located[1].end() - 7 {
            disk.rot("s".as_ref(), offset);
            let found = scan(file.as_ref(), &HEADER).unwrap();
            disk.rot("s".as_ref(), offset);
            if found.damage.is_empty() {
                // Padding is no part of the record.
                assert_eq!(found.records, located, "offset {offset}");
                continue;
            }
            assert_eq!(found.records, [located[0], located[2]], "offset {offset}");
            assert_eq!((found.damage.len(), found.damage[0].offset), (1, located[1].offset));
            assert!(!found.damage[0].at_end);
        }
    }

    #[test]
    fn a_header_is_this_format_or_is_refused() {
        let bytes = HEADER.encode();
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert_eq!(Header::decode(&bytes).unwrap(), HEADER);
        for at in 0..HEADER_BYTES {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Header::decode(&changed).is_err(), "byte {at}");
        }
        let mut newer = bytes.clone();
        newer[8] = 5;
        assert!(matches!(Header::decode(&newer), Err(HeaderFault::Newer(5))));
    }
}
