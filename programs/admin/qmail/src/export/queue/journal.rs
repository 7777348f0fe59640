//! The journal of an export, `exported` in the classic queue: `KEY ID NUMBER` for each message that may be becoming one there, and
//! `KEY ID NUMBER done` when it is one.
//!
//! What [`Journal::note`] was told is on the disk when it returns. A line that a crash cut off counts as never written. A key that is not
//! there is a message that is not there, whatever has its id or number. Lines of two numbers were written before there were keys, and say
//! nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use classicqueue::layout::number;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::layout::sync_dir;
use crate::import::read_foreign;
use crate::{Failure, io_failure};

/// Digits of a SHA-256.
const KEY_LEN: usize = 64;

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Its info was perhaps put in its place, and perhaps not.
    Begun,
    /// It is a message there.
    Done,
}

type Entries = HashMap<Box<[u8]>, (u64, Step)>;

/// See the module.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    entries: Entries,
}

impl Journal {
    /// Opens it; it is made if there is none.
    ///
    /// # Errors
    /// It cannot be written, is damaged, or another export uses it.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| io_failure(path, &error);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(opened.map_err(|errno| failed(errno.into()))?);
        crate::import::own_file(&file).map_err(failed)?;
        // Where there is no lock of a classic qmail-send.
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Failure::temporary(format!("{}: another export into this queue runs", path.display())));
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        let (entries, whole) = parse(&text).ok_or_else(|| damaged(path))?;
        file.set_len(whole).and_then(|()| file.sync_all()).map_err(failed)?;
        sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        Ok(Self { path: path.to_owned(), file, entries })
    }

    /// The number that a message got there, and how far it has come.
    pub(super) fn entry(&self, key: &str) -> Option<(u64, Step)> {
        self.entries.get(key.as_bytes()).copied()
    }

    /// Notes a message: key, id here, number there.
    ///
    /// # Errors
    /// It is not known whether it is noted; the next run finds out.
    pub(super) fn note(&mut self, key: &str, id: u64, number: u64, step: Step) -> Result<(), Failure> {
        let end = if step == Step::Done { " done" } else { "" };
        let noted = self.file.write_all(format!("{key} {id} {number}{end}\n").as_bytes()).and_then(|()| self.file.sync_data());
        noted.map_err(|error| io_failure(&self.path, &error))?;
        self.entries.insert(key.as_bytes().into(), (number, step));
        Ok(())
    }
}

/// The id that each message had here, by its number there; of a number that came again, the last.
///
/// # Errors
/// It cannot be read, or is damaged.
pub(crate) fn exported(path: &Path) -> Result<HashMap<u64, u64>, Failure> {
    let Some((text, _)) = read_foreign(path, u64::MAX).map_err(|error| io_failure(path, &error))? else {
        return Ok(HashMap::new());
    };
    if parse(&text).is_none() {
        return Err(damaged(path));
    }
    let pair = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ').skip(1).map(number);
        Some((words.next()??, words.next()??))
    };
    Ok(text.split(|byte| *byte == b'\n').filter_map(pair).map(|(id, there)| (there, id)).collect())
}

fn damaged(path: &Path) -> Failure {
    Failure::permanent(format!("{}: is damaged; look at it before anything is delivered twice", path.display()))
}

/// What the lines say, and how much of the text is whole lines; `None`: one of them is none.
fn parse(text: &[u8]) -> Option<(Entries, u64)> {
    let (mut entries, mut whole) = (Entries::new(), 0_u64);
    for entry in text.split_inclusive(|byte| *byte == b'\n') {
        let Some(line) = entry.strip_suffix(b"\n") else { break };
        whole = whole.saturating_add(u64::try_from(entry.len()).unwrap_or(u64::MAX));
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let (key, there, step) = match words[..] {
            [id, there] if number(id).is_some() && number(there).is_some() => continue,
            [key, id, there] if number(id).is_some() => (key, there, Step::Begun),
            [key, id, there, b"done"] if number(id).is_some() => (key, there, Step::Done),
            _ => return None,
        };
        if key.len() != KEY_LEN || !key.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        entries.insert(key.into(), (number(there)?, step));
    }
    Some((entries, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_there_and_what_was_cut_off_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exported");
        let key = |digit: char| -> String { std::iter::repeat_n(digit, KEY_LEN).collect() };
        let mut journal = Journal::open(&path).unwrap();
        journal.note(&key('a'), 7, 8, Step::Begun).unwrap();
        journal.note(&key('b'), 9, 10, Step::Begun).unwrap();
        journal.note(&key('b'), 9, 10, Step::Done).unwrap();
        assert!(Journal::open(&path).is_err(), "two at a time");
        drop(journal);
        let text = std::fs::read(&path).unwrap();
        for cut in 0..=text.len() {
            std::fs::write(&path, &text[..cut]).unwrap();
            let journal = Journal::open(&path).unwrap();
            let lines = text[..cut].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(journal.entry(&key('a')), (lines > 0).then_some((8, Step::Begun)));
            let b = [None, None, Some((10, Step::Begun)), Some((10, Step::Done))];
            assert_eq!(journal.entry(&key('b')), b[lines]);
            let there = [(8, 7), (10, 9)].into_iter().take(lines.min(2)).collect();
            assert_eq!(exported(&path).unwrap(), there);
        }
    }

    #[test]
    fn a_line_without_a_key_says_nothing_and_a_damaged_one_stops_everything() {
        assert!(parse(b"8389120 77\n").unwrap().0.is_empty());
        let key = "0".repeat(KEY_LEN);
        for line in [
            "x",
            "1 2 3",
            "1",
            &format!("{key} 1 x"),
            &format!("{key} 1 2 don"),
            &format!("{key} 1 2 done "),
            &format!("{key}0 1 2"),
        ] {
            assert!(parse(format!("{line}\n").as_bytes()).is_none(), "{line}");
        }
    }
}
