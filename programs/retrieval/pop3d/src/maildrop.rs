//! The mailbox of one session: a fixed list of messages over a Maildir that others change meanwhile.

use maildir::{Entry, Error, Mailbox};
use pop3::{Maildrop, Octets, Transaction};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, ErrorKind, Read};

/// Longest unique-id (RFC 1939 §7).
const UNIQUE_ID_LEN_MAX: usize = 70;
/// Bytes read from a message at a time.
pub(crate) const CHUNK_LEN: usize = 64 * 1024;

/// A message as it was at login, and where it is now.
struct Message {
    entry: Entry,
    /// Where the name itself cannot be one.
    unique_id: Option<Box<[u8]>>,
    octets: Option<u64>,
}

/// The messages of a session, in order of arrival.
pub struct Drop {
    mailbox: Mailbox,
    messages: Vec<Message>,
}

impl Maildrop for Drop {
    fn count(&self) -> usize {
        self.messages.len()
    }

    fn unique_id(&self, index: usize) -> &[u8] {
        let id = |message| match message {
            &Message { unique_id: Some(ref id), .. } => id,
            Message { entry, .. } => entry.uid(),
        };
        self.messages.get(index).map(id).unwrap_or_default()
    }

    fn octets(&self, index: usize) -> Option<u64> {
        self.messages.get(index)?.octets
    }
}

impl Drop {
    /// Lists the mailbox; reads no message.
    ///
    /// # Errors
    /// A directory cannot be read; temporary.
    pub fn new(mailbox: Mailbox) -> Result<Self, Error> {
        let entries = mailbox.list()?;
        let ids = unique_ids(&entries);
        let message = |(entry, unique_id)| Message { entry, unique_id, octets: None };
        let messages = entries.into_iter().zip(ids).map(message).collect();
        Ok(Self { mailbox, messages })
    }

    /// Opens a message wherever another client may have moved it. When it is in no place any more, it and all others that have vanished
    /// are reported [`Transaction::gone`].
    ///
    /// # Errors
    /// It is gone or cannot be opened.
    pub(crate) fn open(&mut self, index: usize, transaction: &mut Transaction) -> io::Result<File> {
        let message = self.messages.get(index).ok_or(ErrorKind::NotFound)?;
        match self.mailbox.open_message(&message.entry) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            opened => return opened,
        }
        self.look_again(transaction)?;
        let message = self.messages.get(index).ok_or(ErrorKind::NotFound)?;
        self.mailbox.open_message(&message.entry)
    }

    /// Finds the size of a message in CRLF octets (RFC 1939 §11), as Dovecot does and the classic program does not, which tells the length
    /// of the file: from the name where an IMAP server has left it there, otherwise the message is read. What cannot be read counts
    /// with the length of its file, so that the rest can be listed.
    pub(crate) fn measure(&mut self, index: usize, transaction: &mut Transaction) {
        if self.octets(index).is_some() {
            return;
        }
        let told = self.octets_in_name(index);
        let octets = told.map_or_else(|| self.open(index, transaction).and_then(|file| octets_of(&file)), Ok);
        if let Some(message) = self.messages.get_mut(index) {
            message.octets = Some(octets.or_else(|_| self.mailbox.size(&message.entry)).unwrap_or(0));
        }
    }

    /// Only a name that tells both sizes is worth a look at the file.
    fn octets_in_name(&self, index: usize) -> Option<u64> {
        let entry = &self.messages.get(index)?.entry;
        field(entry.uid(), b"W=")?;
        octets_in_name(entry.uid(), self.mailbox.size(entry).ok()?)
    }

    /// The UPDATE state (RFC 1939 §6): removes what is marked, moves the rest from new to cur. False if something marked is still there,
    /// and how many are gone.
    pub(crate) fn update(&mut self, transaction: &mut Transaction) -> (bool, u64) {
        // Another session may have moved what is to be removed; under its old name it would seem to be gone.
        let any = (0..self.count()).any(|index| transaction.is_deleted(index));
        let mut all = !any || self.look_again(transaction).is_ok();
        let (mut bytes, mut messages): (u64, u64) = (0, 0);
        for (_, message) in self.messages.iter().enumerate().filter(|(index, _)| transaction.is_deleted(*index)) {
            let size = self.mailbox.size(&message.entry).unwrap_or(0);
            let gone = self.mailbox.delete(&message.entry).is_ok();
            all &= gone;
            if gone {
                (bytes, messages) = (bytes.saturating_add(size), messages.saturating_add(1));
            }
        }
        self.mailbox.note_removed(bytes, messages);
        for (_, message) in self.messages.iter().enumerate().filter(|(index, _)| transaction.is_present(*index)) {
            // One that stays in new/ is shown again as new: no loss.
            let _ = self.mailbox.mark_seen(&message.entry);
        }
        (all, messages)
    }

    /// Takes note of what other clients renamed and removed since the last look. A message that is where it was has not moved, whatever
    /// else has its name now: of two with one name, the other would be removed in its place.
    fn look_again(&mut self, transaction: &mut Transaction) -> io::Result<()> {
        let now = self.mailbox.list().map_err(|error| io::Error::other(error.to_string()))?;
        let places: HashSet<_> = now.iter().map(Entry::place).collect();
        // A mailbox of more messages than a listing holds shows others meanwhile: what it does not list need not be gone.
        let has_moved = |message: &Message| !places.contains(&message.entry.place()) && self.mailbox.is_gone(&message.entry);
        let known: HashSet<_> = self.messages.iter().map(|message| message.entry.place()).collect();
        let new_places = now.iter().filter(|entry| !known.contains(&entry.place()));
        let mut moved: HashMap<&[u8], &Entry> = new_places.map(|entry| (entry.uid(), entry)).collect();
        let moves: Vec<_> = self
            .messages
            .iter()
            .enumerate()
            .filter(|(_, message)| has_moved(message))
            .map(|(index, message)| (index, moved.remove(message.entry.uid()).cloned()))
            .collect();
        for (index, entry) in moves {
            match (entry, self.messages.get_mut(index)) {
                (Some(entry), Some(message)) => message.entry = entry,
                _ => transaction.gone(index),
            }
        }
        Ok(())
    }
}

/// The unique-ids that differ from the names: names that are too long or hold other bytes than RFC 1939 §7 allows, and names that
/// stand twice, which no delivery makes. A hash of the name is as lasting as the name. All of those with one name have one with the number of
/// the file, so that none gets the id of another when that is gone: a client would take it for what it has. (At worst it gets one again.)
fn unique_ids(entries: &[Entry]) -> Vec<Option<Box<[u8]>>> {
    let mut counts: HashMap<&[u8], u32> = HashMap::with_capacity(entries.len());
    for entry in entries {
        let count = counts.entry(entry.uid()).or_default();
        *count = count.saturating_add(1);
    }
    let id = |entry| {
        let name = Entry::uid(entry);
        if counts.get(name).is_some_and(|count| *count > 1) {
            return Some(hashed(name, &entry.inode().to_le_bytes()));
        }
        let legal = (1..=UNIQUE_ID_LEN_MAX).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
        (!legal).then(|| hashed(name, &[0; 4]))
    };
    entries.iter().map(id).collect()
}

/// FNV-1a with 128 bits, in hexadecimal. Names are made by the mailbox's owner, who has nothing to gain from a collision.
fn hashed(name: &[u8], more: &[u8]) -> Box<[u8]> {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = name.iter().chain(more).copied();
    let hash = bytes.fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
    format!("{hash:032x}").into_bytes().into()
}

/// The size that a Maildir++ name tells: `,S=` the length of the file, `,W=` its CRLF octets. It counts only if the former is true.
fn octets_in_name(name: &[u8], size: u64) -> Option<u64> {
    let octets = field(name, b"W=")?;
    (field(name, b"S=")? == size && octets >= size && octets <= size.saturating_mul(2).saturating_add(2)).then_some(octets)
}

fn field(name: &[u8], key: &[u8]) -> Option<u64> {
    name.split(|b| *b == b',').find_map(|part| part.strip_prefix(key)).and_then(pop3::command::number)
}

fn octets_of(file: &File) -> io::Result<u64> {
    let (mut file, mut octets) = (file, Octets::new());
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(octets.finish()),
            Ok(len) => octets.feed(chunk.get(..len).unwrap_or_default()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_in_the_name_counts_only_if_it_can_be_true() {
        for (name, size, octets) in [
            (&b"1.2.h,S=100,W=104"[..], 100, Some(104)),
            (b"1.2.h,W=104,S=100", 100, Some(104)),
            (b"1.2.h,S=100,W=104", 99, None),
            (b"1.2.h,S=100,W=99", 100, None),
            (b"1.2.h,S=100,W=203", 100, None),
            (b"1.2.h,S=100", 100, None),
            (b"1.2.h,S=x,W=y", 100, None),
            (b"1.2.h,S=100,W=99999999999999999999999", 100, None),
        ] {
            assert_eq!(octets_in_name(name, size), octets, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn hashes_are_legal_and_lasting() {
        assert_eq!(&*hashed(b"a name", &[0; 4]), b"27404b1848819abf46f785912a82df77");
        assert_ne!(hashed(b"a", &[0; 4]), hashed(b"a", &[1; 8]));
        assert_ne!(hashed(b"a", &[0; 4]), hashed(b"b", &[0; 4]));
    }
}
