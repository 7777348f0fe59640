//! Log records: their bytes, their checksums, and the note that says what a record means.
//!
//! A record is `header | meta | body | zeros to a multiple of 8`. The header begins with a tag made of the segment's random nonce
//! and the offset, and all checksums are seeded with them, so neither an older generation in a recycled extent, nor a record at
//! another place, nor bytes inside a mail pass for a record. The meta begins with the *note*, which the index block repeats.
//!
//! ```text
//! 0 tag u64 · 8 meta length u32 · 12 body length u32 · 16 kind u8 · 17 0 · 18 note length u16 · 20 body CRC32C u32
//! 24 CRC32C of header and meta u32 · 28 0 u32 · 32 message id u64 · 40 place of the message's previous record u64
//! ```

use crate::bytes::{Put, Take, field16, field32, index, low32};
use crate::types::{BODY_INLINE_MAX, ENVELOPE_INLINE_MAX, Outlook};

/// Bytes of a record header.
pub(crate) const HEADER_LEN: usize = 48;
/// Longest meta: an inline envelope or a piece of changes, with the note and room for checksums.
pub(crate) const META_LEN_MAX: usize = ENVELOPE_INLINE_MAX + 1024;
/// Bytes of an index entry without the note.
pub(crate) const INDEX_ENTRY_LEN: usize = 24;

const KIND_ACCEPT: u8 = 1;
const KIND_PROGRESS: u8 = 2;
const KIND_END: u8 = 3;
const KIND_VOID: u8 = 4;

/// Where a record is: segment number · 2²³ + offset/8. Zero is nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Place(pub(crate) u64);

impl Place {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn new(segment: u64, offset: u64) -> Self {
        Self((segment << 23) | (offset / 8))
    }

    pub(crate) fn segment(self) -> u64 {
        self.0 >> 23
    }

    pub(crate) fn offset(self) -> u64 {
        (self.0 & ((1 << 23) - 1)) * 8
    }
}

/// The secret of a segment, which its records carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nonce(pub(crate) [u8; 16]);

impl Nonce {
    fn tag(self, offset: u64) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        // An odd multiplier spreads the offset over all bits: no two places of a segment have the same tag.
        u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn seed(self, offset: u64) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.0), &offset.to_le_bytes())
    }
}

/// The segments that hold an accept of an ended message: its end must outlive them. Zero is none.
pub(crate) type Deps = [u64; 2];

/// What a record means, without what only its reader needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    Accept(AcceptNote),
    /// `full` = 0: changes to what came before; else this and the `full - 1` records before it are the whole state.
    Progress {
        full: u32,
        outlook: Outlook,
    },
    End {
        deps: Deps,
    },
    /// What stands in `segment` at `from` and later never happened.
    Void {
        segment: u64,
        from: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AcceptNote {
    /// Written again by compaction: the id is that of the first accept, the state is not touched.
    pub(crate) moved: bool,
    pub(crate) sender_is_null: bool,
    pub(crate) arrival_s: u64,
    pub(crate) recipients: u32,
    /// Length of the body, wherever it is.
    pub(crate) bytes: u64,
    /// Numbers of side files; zero is none.
    pub(crate) side_body: u64,
    pub(crate) side_envelope: u64,
    /// The message that ends with this accept; zero is none.
    pub(crate) ended: u64,
    pub(crate) ended_deps: Deps,
}

/// A record as the index block lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) id: u64,
    pub(crate) prev: Place,
    pub(crate) note: Note,
}

/// A summary, and where its record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) offset: u64,
    /// Length of the record, in units of 8 bytes.
    pub(crate) len8: u16,
    pub(crate) summary: Summary,
}

const FLAG_MOVED: u8 = 1;
const FLAG_SENDER_NULL: u8 = 2;

impl Note {
    fn kind(&self) -> u8 {
        match self {
            Self::Accept(_) => KIND_ACCEPT,
            Self::Progress { .. } => KIND_PROGRESS,
            Self::End { .. } => KIND_END,
            Self::Void { .. } => KIND_VOID,
        }
    }

    /// How long [`Note::encode`] makes it.
    pub(crate) fn encoded_len(&self) -> usize {
        match self {
            Self::Accept(accept) => {
                let has_sides = accept.side_body != 0 || accept.side_envelope != 0;
                21 + if accept.ended != 0 {
                    40
                } else if has_sides {
                    16
                } else {
                    0
                }
            }
            Self::Progress { .. } => 17,
            Self::End { .. } => 16,
            Self::Void { .. } => 12,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Accept(accept) => accept.encode(out),
            Self::Progress { full, outlook } => {
                out.put_u32(*full);
                out.put_u32(outlook.pending);
                out.put_u64(outlook.due_s);
                out.put_u8(u8::from(outlook.held));
            }
            Self::End { deps: [a, b] } => {
                out.put_u64(*a);
                out.put_u64(*b);
            }
            Self::Void { segment, from } => {
                out.put_u64(*segment);
                out.put_u32(*from);
            }
        }
    }

    fn decode(kind: u8, bytes: &[u8]) -> Option<Self> {
        let mut take = Take(bytes);
        let note = match kind {
            KIND_ACCEPT => Self::Accept(AcceptNote::decode(&mut take)?),
            KIND_PROGRESS => {
                let (full, pending, due_s, held) = (take.u32()?, take.u32()?, take.u64()?, take.u8()? != 0);
                Self::Progress { full, outlook: Outlook { pending, due_s, held } }
            }
            KIND_END => Self::End { deps: [take.u64()?, take.u64()?] },
            KIND_VOID => Self::Void { segment: take.u64()?, from: take.u32()? },
            _ => return None,
        };
        take.0.is_empty().then_some(note)
    }
}

impl AcceptNote {
    fn encode(&self, out: &mut Vec<u8>) {
        let moved = if self.moved { FLAG_MOVED } else { 0 };
        out.put_u8(moved | if self.sender_is_null { FLAG_SENDER_NULL } else { 0 });
        out.put_u64(self.arrival_s);
        out.put_u32(self.recipients);
        out.put_u64(self.bytes);
        if self.side_body != 0 || self.side_envelope != 0 || self.ended != 0 {
            out.put_u64(self.side_body);
            out.put_u64(self.side_envelope);
        }
        if self.ended != 0 {
            let [a, b] = self.ended_deps;
            out.put_u64(self.ended);
            out.put_u64(a);
            out.put_u64(b);
        }
    }

    fn decode(take: &mut Take<'_>) -> Option<Self> {
        let (flags, arrival_s, recipients, bytes) = (take.u8()?, take.u64()?, take.u32()?, take.u64()?);
        let (side_body, side_envelope) = if take.0.is_empty() { (0, 0) } else { (take.u64()?, take.u64()?) };
        let (ended, a, b) = if take.0.is_empty() { (0, 0, 0) } else { (take.u64()?, take.u64()?, take.u64()?) };
        Some(Self {
            moved: flags & FLAG_MOVED != 0,
            sender_is_null: flags & FLAG_SENDER_NULL != 0,
            arrival_s,
            recipients,
            bytes,
            side_body,
            side_envelope,
            ended,
            ended_deps: [a, b],
        })
    }
}

/// The length of a record on the disk.
pub(crate) fn record_len(note_len: usize, rest_len: usize, body_len: usize) -> usize {
    (HEADER_LEN + note_len + rest_len + body_len).next_multiple_of(8)
}

/// Appends the record that belongs at `offset` of the segment with this nonce. Returns its place in the index.
pub(crate) fn encode(out: &mut Vec<u8>, nonce: Nonce, offset: u64, summary: &Summary, rest: &[u8], body: &[u8]) -> Located {
    let start = out.len();
    let note_len = summary.note.encoded_len();
    let meta_len = note_len + rest.len();
    let len = record_len(note_len, rest.len(), body.len());
    out.reserve(len);
    out.put_u64(nonce.tag(offset));
    out.put_u32(field32(meta_len));
    out.put_u32(field32(body.len()));
    out.put_u8(summary.note.kind());
    out.put_u8(0);
    out.put_u16(field16(note_len));
    let seed = nonce.seed(offset);
    out.put_u32(crc32c::crc32c_append(seed, body));
    out.put_u32(0);
    out.put_u32(0);
    out.put_u64(summary.id);
    out.put_u64(summary.prev.0);
    summary.note.encode(out);
    out.extend_from_slice(rest);
    let crc = crc32c::crc32c_append(seed, out.get(start..).unwrap_or_default());
    if let Some(place) = out.get_mut(start + 24..start + 28) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    out.extend_from_slice(body);
    out.resize(start + len, 0);
    Located { offset, len8: field16(len / 8), summary: *summary }
}

/// A record header that carries the right tag and possible lengths; the checksum comes with the meta.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) meta_len: usize,
    pub(crate) body_len: usize,
    pub(crate) body_crc: u32,
    kind: u8,
    note_len: usize,
    id: u64,
    prev: Place,
}

impl Head {
    pub(crate) fn decode(bytes: &[u8], nonce: Nonce, offset: u64) -> Option<Self> {
        let mut take = Take(bytes);
        if take.u64()? != nonce.tag(offset) {
            return None;
        }
        let (meta_len, body_len) = (take.u32()? as usize, take.u32()? as usize);
        let (kind, _, note_len, body_crc) = (take.u8()?, take.u8()?, usize::from(take.u16()?), take.u32()?);
        let (_, _, id, prev) = (take.u32()?, take.u32()?, take.u64()?, Place(take.u64()?));
        let possible = meta_len <= META_LEN_MAX && body_len <= BODY_INLINE_MAX && note_len <= meta_len;
        possible.then_some(Self { meta_len, body_len, body_crc, kind, note_len, id, prev })
    }

    /// Length of the whole record.
    pub(crate) fn len(&self) -> usize {
        record_len(self.meta_len, 0, self.body_len)
    }

    /// `bytes` begins with header and meta. The summary and what follows the note, if the checksum is right.
    pub(crate) fn open<'a>(&self, bytes: &'a [u8], nonce: Nonce, offset: u64) -> Option<(Located, &'a [u8])> {
        let meta_end = HEADER_LEN + self.meta_len;
        let stored = Take(bytes.get(24..28)?).u32()?;
        let crc = crc32c::crc32c_append(nonce.seed(offset), bytes.get(..24)?);
        let crc = crc32c::crc32c_append(crc, &[0; 4]);
        if crc32c::crc32c_append(crc, bytes.get(28..meta_end)?) != stored {
            return None;
        }
        let (note, rest) = bytes.get(HEADER_LEN..meta_end)?.split_at_checked(self.note_len)?;
        let summary = Summary { id: self.id, prev: self.prev, note: Note::decode(self.kind, note)? };
        Some((Located { offset, len8: field16(self.len() / 8), summary }, rest))
    }

    /// Is this the body that was written?
    pub(crate) fn body_is_whole(&self, body: &[u8], nonce: Nonce, offset: u64) -> bool {
        body.len() == self.body_len && crc32c::crc32c_append(nonce.seed(offset), body) == self.body_crc
    }
}

impl Located {
    /// Appends the entry for the index block: offset/8, length/8, kind, note length, id, previous, note.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(low32(self.offset / 8));
        out.put_u16(self.len8);
        out.put_u8(self.summary.note.kind());
        out.put_u8(u8::try_from(self.summary.note.encoded_len()).unwrap_or(u8::MAX));
        out.put_u64(self.summary.id);
        out.put_u64(self.summary.prev.0);
        self.summary.note.encode(out);
    }

    pub(crate) fn decode(take: &mut Take<'_>) -> Option<Self> {
        let (offset8, len8, kind, note_len) = (take.u32()?, take.u16()?, take.u8()?, take.u8()?);
        let (id, prev) = (take.u64()?, Place(take.u64()?));
        let note = Note::decode(kind, take.bytes(usize::from(note_len))?)?;
        Some(Self { offset: u64::from(offset8) * 8, len8, summary: Summary { id, prev, note } })
    }

    /// Where the record ends.
    pub(crate) fn end(&self) -> u64 {
        self.offset + u64::from(self.len8) * 8
    }
}

/// Every 8-aligned offset of `bytes` from `from` on where a record of this segment begins; `bytes` is the segment from its start.
pub(crate) fn next_record(bytes: &[u8], nonce: Nonce, from: u64) -> Option<u64> {
    let mut offset = from.next_multiple_of(8);
    loop {
        let rest = bytes.get(index(offset)..)?;
        if rest.len() < HEADER_LEN {
            return None;
        }
        if Head::decode(rest, nonce, offset).is_some_and(|head| head.open(rest, nonce, offset).is_some()) {
            return Some(offset);
        }
        offset += 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONCE: Nonce = Nonce([7; 16]);

    fn notes() -> Vec<Note> {
        let plain = AcceptNote {
            moved: false,
            sender_is_null: true,
            arrival_s: 1 << 40,
            recipients: 100_000,
            bytes: 1 << 33,
            side_body: 0,
            side_envelope: 0,
            ended: 0,
            ended_deps: [0, 0],
        };
        let outlook = Outlook { pending: 3, due_s: 99, held: true };
        vec![
            Note::Accept(plain),
            Note::Accept(AcceptNote { moved: true, side_body: 5, ..plain }),
            Note::Accept(AcceptNote { sender_is_null: false, side_envelope: 5, ..plain }),
            Note::Accept(AcceptNote { ended: 77, ended_deps: [1, 2], ..plain }),
            Note::Progress { full: 9, outlook },
            Note::End { deps: [3, 4] },
            Note::Void { segment: 12, from: 4096 },
        ]
    }

    #[test]
    fn every_kind_comes_back_as_it_was() {
        for note in notes() {
            let summary = Summary { id: 42, prev: Place::new(3, 64), note };
            let mut bytes = Vec::new();
            let located = encode(&mut bytes, NONCE, 4096, &summary, b"rest", b"body\n");
            assert_eq!(bytes.len(), usize::from(located.len8) * 8);
            let head = Head::decode(&bytes, NONCE, 4096).unwrap();
            assert_eq!(head.open(&bytes, NONCE, 4096).unwrap(), (located, &b"rest"[..]));
            let body_at = HEADER_LEN + head.meta_len;
            assert!(head.body_is_whole(&bytes[body_at..body_at + 5], NONCE, 4096));
            let mut entry = Vec::new();
            located.encode(&mut entry);
            assert_eq!(entry.len(), INDEX_ENTRY_LEN + note.encoded_len());
            assert_eq!(Located::decode(&mut Take(&entry)).unwrap(), located);
        }
    }

    #[test]
    fn no_changed_bit_another_place_or_another_nonce_passes() {
        let summary = Summary { id: 42, prev: Place::NONE, note: notes()[0] };
        let mut bytes = Vec::new();
        encode(&mut bytes, NONCE, 4096, &summary, b"rest", b"body");
        let valid = |bytes: &[u8], nonce, offset| {
            Head::decode(bytes, nonce, offset).is_some_and(|head| {
                let body = bytes.get(HEADER_LEN + head.meta_len..HEADER_LEN + head.meta_len + head.body_len);
                head.open(bytes, nonce, offset).is_some() && body.is_some_and(|body| head.body_is_whole(body, nonce, offset))
            })
        };
        assert!(valid(&bytes, NONCE, 4096));
        assert!(!valid(&bytes, Nonce([8; 16]), 4096) && !valid(&bytes, NONCE, 4104));
        for bit in 0..(HEADER_LEN + 21 + 4 + 4) * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!valid(&changed, NONCE, 4096), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut tagged = NONCE.tag(8).to_le_bytes().to_vec();
            tagged.extend_from_slice(&bytes);
            prop_assert!(Head::decode(&tagged, NONCE, 8).and_then(|head| head.open(&tagged, NONCE, 8).map(|_| ())).is_none());
            let _ = Located::decode(&mut Take(&bytes));
            prop_assert_eq!(next_record(&bytes, NONCE, 0), None);
        }
    }
}
