//! The journal of an import: a line for each message that is in this system's queue for good, `KEY ID NUMBER`.
//!
//! What [`Journal::note`] was told is on the disk when it returns. A line that a crash cut off counts as never written: its message was
//! not let go on. Anything else that is no such line stops the import, for what cannot be read could be imported twice.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::import::{own_file, read_foreign};
use crate::{Failure, io_failure};

const HEAD: &[u8] =
    b"# Messages of this queue that qmail import queue has taken over: key, number there, number here. See qmail(8).\n";
/// Digits of a SHA-256.
const KEY_LEN: usize = 64;

type Keys = HashSet<Box<[u8]>>;

/// See the module.
pub(super) struct Journal {
    path: PathBuf,
    /// `None`: it is only looked at.
    file: Option<File>,
    keys: Keys,
}

impl Journal {
    /// Opens it for writing; it is made if there is none.
    ///
    /// # Errors
    /// It cannot be written, is damaged, or another import uses it.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| io_failure(path, &error);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).map_err(|errno| {
            let advice = if errno == rustix::io::Errno::ROFS { "; name a file elsewhere with --journal" } else { "" };
            Failure::temporary(format!("{}: {errno}{advice}", path.display()))
        })?);
        own_file(&file).map_err(failed)?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Failure::temporary(format!("{}: another import of this queue runs", path.display())));
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        let (keys, whole) = parse(&text).map_err(|line| damaged(path, line))?;
        file.set_len(whole).and_then(|()| file.seek(SeekFrom::End(0))).map_err(failed)?;
        if whole == 0 {
            file.write_all(HEAD).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        // Its name as well: without it everything would be taken over once more.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file: Some(file), keys })
    }

    /// Only looks at it.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub(super) fn look(path: &Path) -> Result<Self, Failure> {
        let text = read_foreign(path, u64::MAX).map_err(|error| io_failure(path, &error))?;
        let (keys, _) = parse(&text.map(|(text, _)| text).unwrap_or_default()).map_err(|line| damaged(path, line))?;
        Ok(Self { path: path.to_owned(), file: None, keys })
    }

    /// What another journal of the same queue knows counts as well.
    pub(super) fn add(&mut self, other: Self) {
        self.keys.extend(other.keys);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn has(&self, key: &[u8]) -> bool {
        self.keys.contains(key)
    }

    /// Notes messages: key, id here, number there.
    ///
    /// # Errors
    /// It is not known whether they are noted; the next run finds out.
    pub(super) fn note(&mut self, messages: &[(String, u64, u64)]) -> Result<(), Failure> {
        let Some(file) = self.file.as_mut().filter(|_| !messages.is_empty()) else { return Ok(()) };
        let lines: String = messages.iter().map(|(key, id, number)| format!("{key} {number} {id}\n")).collect();
        file.write_all(lines.as_bytes()).and_then(|()| file.sync_data()).map_err(|error| io_failure(&self.path, &error))?;
        self.keys.extend(messages.iter().map(|(key, _, _)| key.as_bytes().into()));
        Ok(())
    }
}

fn damaged(path: &Path, line: usize) -> Failure {
    Failure::permanent(format!(
        "{}: line {line} is none of a journal; repair it by hand, or messages would be imported twice",
        path.display()
    ))
}

/// The keys, and how much of the text is whole lines; or the number of a line that is none.
fn parse(text: &[u8]) -> Result<(Keys, u64), usize> {
    let mut keys = Keys::new();
    let mut whole = 0_u64;
    for (number, line) in (1..).zip(text.split_inclusive(|byte| *byte == b'\n')) {
        let Some(line_text) = line.strip_suffix(b"\n") else { break };
        whole = whole.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        if line_text.starts_with(b"#") {
            continue;
        }
        let key = line_text.get(..KEY_LEN).filter(|key| key.iter().all(u8::is_ascii_hexdigit)).ok_or(number)?;
        let numbers = line_text.get(KEY_LEN..).and_then(|rest| rest.strip_prefix(b" ")).ok_or(number)?;
        if numbers.split(|byte| *byte == b' ').filter(|digits| classicqueue::layout::number(digits).is_some()).count() != 2 {
            return Err(number);
        }
        keys.insert(key.into());
    }
    Ok((keys, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(digit: char) -> String {
        std::iter::repeat_n(digit, KEY_LEN).collect()
    }

    #[test]
    fn what_is_noted_is_there_and_what_was_cut_off_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imported");
        let mut journal = Journal::open(&path).unwrap();
        journal.note(&[(key('a'), 7, 8), (key('b'), 9, 10)]).unwrap();
        assert!(journal.has(key('a').as_bytes()) && !journal.has(key('c').as_bytes()));
        assert!(Journal::open(&path).is_err(), "two at a time");
        drop(journal);
        let text = std::fs::read(&path).unwrap();
        for cut in 0..text.len() {
            std::fs::write(&path, &text[..cut]).unwrap();
            let mut journal = Journal::open(&path).unwrap();
            assert_eq!(journal.has(key('a').as_bytes()), cut >= HEAD.len() + KEY_LEN + 5);
            assert!(!journal.has(key('b').as_bytes()));
            journal.note(&[(key('b'), 9, 10)]).unwrap();
            drop(journal);
            assert!(Journal::look(&path).unwrap().has(key('b').as_bytes()));
        }
    }

    #[test]
    fn a_damaged_one_stops_everything() {
        for text in
            ["no key at all\n", &format!("{} 1\n", key('a')), &format!("{} 1 x\n", key('a')), &format!("{}1 2\n", key('a'))]
        {
            assert_eq!(parse(text.as_bytes()).unwrap_err(), 1, "{text}");
        }
        assert_eq!(parse(b"").unwrap().1, 0);
    }
}
