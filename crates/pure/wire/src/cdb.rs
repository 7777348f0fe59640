//! Constant databases (cr.yp.to/cdb/cdb.txt): users/assign, morercpthosts and other large control files.
//!
//! 256 headers of (position, slots), then records `klen dlen key data`, then tables of (hash, position); all numbers are
//! little-endian u32, so a file is at most 4 GiB. The reader trusts nothing in the file: a position outside of it is an error.

const HEADER_LEN: u64 = 2048;

/// A place that bytes can be read from by offset: a file (pread) or a slice.
pub trait ReadAt {
    /// Fills `buf` from `offset`, or fails; a short read is an error.
    ///
    /// # Errors
    /// What the place says; temporary.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()>;
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| short())?;
        let from = self.get(start..).and_then(|rest| rest.get(..buf.len())).ok_or_else(short)?;
        buf.copy_from_slice(from);
        Ok(())
    }
}

impl ReadAt for std::fs::File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset)
    }
}

fn short() -> std::io::Error {
    std::io::ErrorKind::UnexpectedEof.into()
}

/// cdb's hash: h = 5381; for each byte h = (h · 33) xor byte.
#[must_use]
pub fn hash(key: &[u8]) -> u32 {
    key.iter().fold(5381u32, |h, b| h.wrapping_mul(33) ^ u32::from(*b))
}

/// The data of the first record with `key`, or `None`. Data longer than `data_len_max` bytes is an error.
///
/// # Errors
/// An I/O error of the place, or `InvalidData` for a file that is no cdb: treat both as temporary.
pub fn find<P: ReadAt + ?Sized>(place: &P, key: &[u8], data_len_max: usize) -> std::io::Result<Option<Vec<u8>>> {
    let invalid = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not a cdb");
    let h = hash(key);
    let (table, slots) = pair(place, u64::from(h & 255) * 8)?;
    if slots == 0 {
        return Ok(None);
    }
    let start = (h >> 8) % slots;
    for step in 0..slots {
        let slot = (u64::from(start) + u64::from(step)) % u64::from(slots);
        let (slot_hash, position) = pair(place, u64::from(table) + slot * 8)?;
        if position == 0 {
            return Ok(None);
        }
        if slot_hash != h {
            continue;
        }
        let (key_len, data_len) = pair(place, u64::from(position))?;
        if usize::try_from(key_len).ok() != Some(key.len()) {
            continue;
        }
        let mut found = vec![0; key.len()];
        let key_at = u64::from(position) + 8;
        place.read_exact_at(&mut found, key_at)?;
        if found == key {
            let len = usize::try_from(data_len).ok().filter(|n| *n <= data_len_max).ok_or_else(invalid)?;
            let mut data = vec![0; len];
            place.read_exact_at(&mut data, key_at + u64::from(key_len))?;
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// All records of a database, in their order; `None` for bytes that are none.
#[must_use]
pub fn records(file: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let end = usize::try_from(pair(file, 0).ok()?.0).ok()?;
    let mut rest = file.get(usize::try_from(HEADER_LEN).ok()?..end)?;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (key_len, data_len) = pair(rest, 0).ok()?;
        let (key, after) = rest.get(8..)?.split_at_checked(usize::try_from(key_len).ok()?)?;
        let (data, after) = after.split_at_checked(usize::try_from(data_len).ok()?)?;
        records.push((key, data));
        rest = after;
    }
    Some(records)
}

fn pair<P: ReadAt + ?Sized>(place: &P, offset: u64) -> std::io::Result<(u32, u32)> {
    let mut buf = [0; 8];
    place.read_exact_at(&mut buf, offset)?;
    let [a, b, c, d, e, f, g, h] = buf;
    Ok((u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])))
}

/// Builds a cdb in memory; `None` from [`Writer::finish`] when it would pass 4 GiB.
#[derive(Debug, Default)]
pub struct Writer {
    records: Vec<u8>,
    /// (hash, position) in the order of the records.
    slots: Vec<(u32, u64)>,
}

impl Writer {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a record. Keys may repeat; [`find`] sees the first.
    pub fn add(&mut self, key: &[u8], data: &[u8]) {
        self.slots.push((hash(key), HEADER_LEN + self.records.len() as u64));
        for len in [key.len(), data.len()] {
            // An over-long record makes the whole file over-long, which `finish` refuses.
            self.records.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        }
        self.records.extend_from_slice(key);
        self.records.extend_from_slice(data);
    }

    /// The bytes of the file.
    #[must_use]
    pub fn finish(self) -> Option<Vec<u8>> {
        let mut tables: Vec<Vec<(u32, u64)>> = vec![Vec::new(); 256];
        for slot in self.slots {
            tables.get_mut((slot.0 & 255) as usize)?.push(slot);
        }
        let mut header = Vec::with_capacity(2048);
        let mut tail = Vec::new();
        for entries in tables {
            let at = HEADER_LEN + self.records.len() as u64 + tail.len() as u64;
            let len = entries.len().checked_mul(2)?;
            header.extend_from_slice(&u32::try_from(at).ok()?.to_le_bytes());
            header.extend_from_slice(&u32::try_from(len).ok()?.to_le_bytes());
            let mut table = vec![(0u32, 0u64); len];
            for (h, position) in entries {
                let mut slot = (h >> 8) as usize % len;
                while table.get(slot)?.1 != 0 {
                    slot = (slot + 1) % len;
                }
                *table.get_mut(slot)? = (h, position);
            }
            for (h, position) in table {
                tail.extend_from_slice(&h.to_le_bytes());
                tail.extend_from_slice(&u32::try_from(position).ok()?.to_le_bytes());
            }
        }
        let total = header.len().checked_add(self.records.len())?.checked_add(tail.len())?;
        u32::try_from(total).ok()?;
        Some([header, self.records, tail].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_written_and_nothing_else() {
        let mut writer = Writer::new();
        for n in 0..1000u32 {
            writer.add(format!("key{n}").as_bytes(), &n.to_be_bytes());
        }
        writer.add(b"key7", b"second");
        writer.add(b"", b"empty");
        let file = writer.finish().unwrap();
        for n in 0..1000u32 {
            assert_eq!(find(&file[..], format!("key{n}").as_bytes(), 10).unwrap().unwrap(), n.to_be_bytes());
        }
        assert_eq!(find(&file[..], b"", 10).unwrap().unwrap(), b"empty");
        assert_eq!(find(&file[..], b"key1000", 10).unwrap(), None);
        assert!(find(&file[..], b"", 4).is_err());
        assert_eq!(find(&Writer::new().finish().unwrap()[..], b"x", 10).unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_an_error_or_a_miss_never_a_panic() {
        let mut writer = Writer::new();
        writer.add(b"one", b"1");
        let file = writer.finish().unwrap();
        for at in 0..file.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = file.clone();
                bad[at] = value;
                let _ = find(&bad[..], b"one", 100);
            }
            let _ = find(&file[..at], b"one", 100);
        }
    }
}
