//! A Maildir as POP3 sees it: what lies in `new/` and `cur/`, in the order of arrival, and how it is read, removed, marked.
//!
//! A message's unique id is its name before the `:` (qmail-pop3d), which stays when it moves from `new/` to `cur/`. Only regular
//! files count; no name is followed as a link.
//!
//! A listing reads directories alone: the kind of a file stands in its entry, the time of arrival in its name (maildir(5)). Only a name
//! without a time costs a stat(2), for its mtime. So a hundred thousand messages are listed while a login is answered.

use crate::bounds::{open_at, open_dir};
use crate::quota::Usage;
use crate::{Bounds, Error};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sys::fs::Disk;
use sys::fs::real::RealDisk;

/// Messages that one listing holds (some 50 MiB of memory; those in `new/` first); the others come when these are gone.
const MESSAGES_MAX: usize = 300_000;

/// A file in `tmp/` that nobody has touched for so long was left behind by a crash (maildir(5): 36 hours).
const TMP_AGE_MAX_S: u64 = 36 * 3600;

/// An open Maildir to read from.
pub struct Mailbox {
    dir: OwnedFd,
    new: Arc<OwnedFd>,
    cur: Arc<OwnedFd>,
    /// Missing: nobody delivers here, nothing is to be swept.
    tmp: Option<Arc<OwnedFd>>,
    /// What removes and renames; its root is the Maildir.
    disk: Arc<dyn Disk>,
    messages_max: usize,
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("new", &self.new).field("cur", &self.cur).finish_non_exhaustive()
    }
}

/// A message in a mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    name: Vec<u8>,
    is_new: bool,
    /// When it arrived, in seconds and nanoseconds: as its name says, otherwise its mtime.
    arrived: (i64, u64),
    inode: u64,
}

impl Entry {
    /// The name before the `:`.
    #[must_use]
    pub fn uid(&self) -> &[u8] {
        self.name.split(|b| *b == b':').next().unwrap_or_default()
    }

    /// Its file's directory and name: no two messages share it.
    #[must_use]
    pub fn place(&self) -> (bool, &[u8]) {
        (self.is_new, &self.name)
    }

    /// The number of its file, which stays when it moves within the Maildir.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Is it in `new/`, never marked?
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }
}

impl Mailbox {
    /// Opens the Maildir at `path` from `home`.
    ///
    /// # Errors
    /// [`Error::NoMaildir`] if it or its `new/` or `cur/` is not there. Temporary.
    pub fn open(home: BorrowedFd<'_>, path: &[u8], bounds: Bounds) -> Result<Self, Error> {
        let dir = open_dir(home, path, bounds).map_err(Error::NoMaildir)?;
        let open = |name: &[u8]| open_dir(dir.as_fd(), name, bounds).map(Arc::new).map_err(Error::NoMaildir);
        let (new, cur, tmp) = (open(b"new")?, open(b"cur")?, open(b"tmp").ok());
        let mut disk = RealDisk::new(dir.try_clone().map_err(Error::NoMaildir)?);
        for (path, held) in [("new", Some(&new)), ("cur", Some(&cur)), ("tmp", tmp.as_ref())] {
            if let Some(held) = held {
                disk = disk.hold(Path::new(path), Arc::clone(held));
            }
        }
        Ok(Self { dir, new, cur, tmp, disk: Arc::new(disk), messages_max: MESSAGES_MAX })
    }

    /// Another bound on the messages of a listing than that of 300,000: for tests.
    #[must_use]
    pub fn listing_at_most(self, messages_max: usize) -> Self {
        Self { messages_max, ..self }
    }

    /// Puts another disk between this mailbox and the real one: for tests that make it fail.
    #[must_use]
    pub fn through(self, between: impl FnOnce(Arc<dyn Disk>) -> Arc<dyn Disk>) -> Self {
        Self { disk: between(self.disk), ..self }
    }

    /// Removes what crashes left in `tmp/`: files not read or written for 36 hours. Returns how many.
    pub fn sweep(&self, now_s: u64) -> usize {
        let Some(tmp) = &self.tmp else { return 0 };
        let Ok(entries) = rustix::fs::Dir::read_from(tmp) else { return 0 };
        let mut removed: usize = 0;
        for entry in entries.flatten() {
            let name = entry.file_name();
            // What starts with a dot is no delivery's.
            if name.to_bytes().starts_with(b".") {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(tmp, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            // A file system mounted noatime says when it was made: the last write must be old as well.
            let touched_s = u64::try_from(stat.st_atime.max(stat.st_mtime)).unwrap_or(0);
            let is_old = now_s.saturating_sub(touched_s) > TMP_AGE_MAX_S;
            if FileType::from_raw_mode(stat.st_mode).is_file()
                && is_old
                && self.disk.unlink(&path_in("tmp", name.to_bytes())).is_ok()
            {
                removed = removed.saturating_add(1);
            }
        }
        removed
    }

    /// All messages by time of arrival; at the same time by name. Files whose name starts with a dot are not messages.
    ///
    /// # Errors
    /// A directory cannot be read. Temporary.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for (dir, is_new) in [(self.new.as_fd(), true), (self.cur.as_fd(), false)] {
            for item in rustix::fs::Dir::read_from(dir).map_err(|e| Error::Read(e.into()))? {
                if entries.len() >= self.messages_max {
                    break;
                }
                let item = item.map_err(|e| Error::Read(e.into()))?;
                entries.extend(entry(dir, &item, is_new));
            }
        }
        entries.sort_by(|a, b| (a.arrived, &a.name).cmp(&(b.arrived, &b.name)));
        Ok(entries)
    }

    /// The length of its file in bytes, lines ending as they are stored.
    ///
    /// # Errors
    /// It is gone, or cannot be looked at.
    pub fn size(&self, entry: &Entry) -> io::Result<u64> {
        let stat = rustix::fs::statat(self.dir(entry), entry.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Is there no file of this name any more?
    #[must_use]
    pub fn is_gone(&self, entry: &Entry) -> bool {
        self.size(entry).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// The message for reading.
    ///
    /// # Errors
    /// It is gone (another client) or cannot be opened.
    pub fn open_message(&self, entry: &Entry) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(open_at(self.dir(entry), &entry.name, flags, Mode::empty(), Bounds::Beneath)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Removes it. One that is gone already is no error.
    ///
    /// # Errors
    /// It is still there.
    pub fn delete(&self, entry: &Entry) -> io::Result<()> {
        gone_is_fine(self.disk.unlink(&path_in(if entry.is_new { "new" } else { "cur" }, &entry.name)))
    }

    /// Notes that messages are gone, for the mailbox's quota; without a `maildirsize` there is nothing to note. If it cannot be written,
    /// the next delivery that finds no room counts anew.
    pub fn note_removed(&self, bytes: u64, messages: u64) {
        let less = |number: u64| i64::try_from(number).unwrap_or(i64::MAX).saturating_neg();
        if messages > 0 {
            let _ = crate::quota::append(self.dir.as_fd(), Usage { bytes: less(bytes), messages: less(messages) });
        }
    }

    /// Moves a message from `new/X` to `cur/X:2,`: it has been seen by a reader, with no flags. Others stay as they are; another
    /// message of that name is not replaced.
    ///
    /// # Errors
    /// It is still in `new/`.
    pub fn mark_seen(&self, entry: &Entry) -> io::Result<()> {
        if !entry.is_new {
            return Ok(());
        }
        let marked = [&entry.name[..], b":2,"].concat();
        gone_is_fine(self.disk.rename_new(&path_in("new", &entry.name), &path_in("cur", &marked)))
    }

    fn dir(&self, entry: &Entry) -> BorrowedFd<'_> {
        if entry.is_new { self.new.as_fd() } else { self.cur.as_fd() }
    }
}

fn path_in(dir: &str, name: &[u8]) -> PathBuf {
    Path::new(dir).join(OsStr::from_bytes(name))
}

fn entry(dir: BorrowedFd<'_>, item: &rustix::fs::DirEntry, is_new: bool) -> Option<Entry> {
    let name = item.file_name().to_bytes();
    if name.starts_with(b".") {
        return None;
    }
    let arrived = match (item.file_type(), time_in_name(name)) {
        (FileType::RegularFile, Some(arrived)) => arrived,
        (FileType::RegularFile | FileType::Unknown, told) => {
            // One that is gone between readdir and stat is no message any more.
            let stat = rustix::fs::statat(dir, item.file_name(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
            if !FileType::from_raw_mode(stat.st_mode).is_file() {
                return None;
            }
            told.unwrap_or((stat.st_mtime, stat.st_mtime_nsec))
        }
        _ => return None,
    };
    Some(Entry { name: name.to_vec(), is_new, arrived, inode: item.ino() })
}

/// `SECONDS.` begins the name of a delivery, `M` and microseconds stand in the part behind it (maildir(5)).
fn time_in_name(name: &[u8]) -> Option<(i64, u64)> {
    let mut parts = name.split(|b| matches!(b, b'.' | b':'));
    let seconds = parts.next()?;
    let unique = parts.next()?;
    let is_time = !seconds.is_empty() && seconds.iter().all(u8::is_ascii_digit);
    let seconds = std::str::from_utf8(seconds).ok().filter(|_| is_time)?.parse().ok()?;
    let mut usec = unique.split(|b| *b == b'M').nth(1).unwrap_or_default().iter().take_while(|b| b.is_ascii_digit()).take(6);
    let usec = usec.try_fold(0u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))).unwrap_or(0);
    Some((seconds, usec.saturating_mul(1000)))
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Maildir;
    use std::io::Read;
    use std::time::{Duration, SystemTime};

    fn mailbox(files: &[(&str, &str, u64)]) -> (tempfile::TempDir, Mailbox) {
        let dir = tempfile::tempdir().unwrap();
        let home = File::open(dir.path()).unwrap();
        Maildir::create(home.as_fd(), b"Maildir", Bounds::Beneath).unwrap();
        for (name, text, time_s) in files {
            let path = dir.path().join("Maildir").join(name);
            std::fs::write(&path, text).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(*time_s)).unwrap();
        }
        let mailbox = Mailbox::open(home.as_fd(), b"./Maildir/", Bounds::Beneath).unwrap();
        (dir, mailbox)
    }

    fn uids(mailbox: &Mailbox) -> Vec<String> {
        mailbox.list().unwrap().iter().map(|e| String::from_utf8(e.uid().to_vec()).unwrap()).collect()
    }

    #[test]
    fn the_list_is_by_arrival_over_new_and_cur() {
        let (dir, mailbox) = mailbox(&[
            ("new/c", "333", 30),
            ("cur/b:2,S", "22", 20),
            ("new/a", "1", 10),
            ("cur/d", "", 30),
            ("new/.hidden", "x", 1),
            ("tmp/t", "x", 1),
        ]);
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("Maildir/new/link")).unwrap();
        std::fs::create_dir(dir.path().join("Maildir/cur/sub")).unwrap();
        assert_eq!(uids(&mailbox), ["a", "b", "c", "d"]);
        let list = mailbox.list().unwrap();
        let sizes: Vec<_> = list.iter().map(|e| (mailbox.size(e).unwrap(), e.is_new())).collect();
        assert_eq!(sizes, [(1, true), (2, false), (3, true), (0, false)]);
        let mut text = String::new();
        mailbox.open_message(&list[1]).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "22");
    }

    #[test]
    fn the_time_in_a_name_comes_before_that_of_the_file() {
        let (_dir, mailbox) = mailbox(&[
            ("new/30.M5P1Q1.h", "", 1),
            ("new/30.M4P1Q2.h,S=1", "", 2),
            ("cur/29.V801I6b0M999999.h:2,S", "", 99),
            ("cur/30.4711.h:2,", "", 3),
            ("cur/x30.M1.h", "", 31),
            ("cur/99999999999999999999.x", "", 28),
        ]);
        let expected =
            ["99999999999999999999.x", "29.V801I6b0M999999.h", "30.4711.h", "30.M4P1Q2.h,S=1", "30.M5P1Q1.h", "x30.M1.h"];
        assert_eq!(uids(&mailbox), expected);
        for name in [&b""[..], b".1", b"1", b"-1.2", b"+1.2", b" 1.2", b":2,S"] {
            assert_eq!(time_in_name(name), None, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn seen_messages_move_and_keep_their_uid_and_deleted_ones_are_gone() {
        let (dir, mailbox) = mailbox(&[("new/a", "1", 10), ("cur/b:2,S", "2", 20), ("new/c", "3", 30)]);
        let list = mailbox.list().unwrap();
        mailbox.mark_seen(&list[0]).unwrap();
        mailbox.mark_seen(&list[1]).unwrap();
        mailbox.delete(&list[2]).unwrap();
        mailbox.delete(&list[2]).unwrap();
        assert!(dir.path().join("Maildir/cur/a:2,").exists() && dir.path().join("Maildir/cur/b:2,S").exists());
        assert_eq!(uids(&mailbox), ["a", "b"]);
        assert!(mailbox.open_message(&list[2]).is_err());
    }

    #[test]
    fn a_message_that_became_a_link_is_not_read() {
        let (dir, mailbox) = mailbox(&[("new/a", "1", 10)]);
        let list = mailbox.list().unwrap();
        std::fs::remove_file(dir.path().join("Maildir/new/a")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("Maildir/new/a")).unwrap();
        assert!(mailbox.open_message(&list[0]).is_err());
    }

    #[test]
    fn sweeping_takes_only_what_is_old() {
        let (dir, mailbox) = mailbox(&[("new/a", "1", 10)]);
        let tmp = dir.path().join("Maildir/tmp");
        std::fs::write(tmp.join("left"), "x").unwrap();
        std::fs::create_dir(tmp.join("dir")).unwrap();
        std::fs::write(tmp.join(".hidden"), "x").unwrap();
        let now_s = sys::clock::unix_s();
        assert_eq!(mailbox.sweep(now_s + TMP_AGE_MAX_S - 60), 0);
        assert_eq!(mailbox.sweep(now_s + TMP_AGE_MAX_S + 60), 1);
        assert!(tmp.join("dir").exists() && tmp.join(".hidden").exists() && !tmp.join("left").exists());
        assert_eq!(uids(&mailbox), ["a"]);
    }
}
