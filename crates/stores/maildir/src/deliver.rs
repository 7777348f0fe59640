//! Maildir delivery: `tmp/` → write → fsync → `new/` → fsync of `new/`, and only then success.
//!
//! A batch goes through each step together. The first fsync commits the file system's journal for all of the batch, so the others
//! cost little, and one sync of a `new/` serves every message that was put into it. Nothing waits for a batch to fill.

use crate::body::Stopped;
use crate::bounds::open_dir;
use crate::name::unique;
use crate::{Bounds, Disk, Error, Letter};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A name of ours that exists already means another process of our pid within the same microsecond; more are a fault.
const NAME_ATTEMPTS_MAX: u32 = 3;
/// A file in `tmp/` that nobody has touched for so long was left behind by a crash (maildir(5): 36 hours).
const TMP_AGE_MAX_S: u64 = 36 * 3600;

/// An open Maildir to deliver into.
#[derive(Debug)]
pub struct Maildir {
    tmp: OwnedFd,
    new: OwnedFd,
    /// Device and inode of `new/`: two handles of the same Maildir share one sync.
    id: (u64, u64),
}

impl Maildir {
    /// Opens the Maildir at `path` from `home`.
    ///
    /// # Errors
    /// [`Error::NoMaildir`] or, when it has no `tmp/` or `new/`, [`Error::Write`]. Temporary.
    pub fn open(home: BorrowedFd<'_>, path: &[u8], bounds: Bounds) -> Result<Self, Error> {
        let dir = open_dir(home, path, bounds).map_err(Error::NoMaildir)?;
        Self::open_in(dir.as_fd(), bounds)
    }

    /// As [`Maildir::open`], but makes the Maildir (its last component) where it is missing.
    ///
    /// # Errors
    /// As [`Maildir::open`], or it cannot be made. Temporary.
    pub fn open_or_create(disk: &dyn Disk, home: BorrowedFd<'_>, path: &[u8], bounds: Bounds) -> Result<Self, Error> {
        match Self::open(home, path, bounds) {
            Err(Error::NoMaildir(e) | Error::Write(e)) if e.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let dir = Self::create(disk, home, path, bounds).map_err(Error::NoMaildir)?;
        Self::open_in(dir.as_fd(), bounds)
    }

    /// Makes `path` with `tmp/`, `new/`, `cur/` in it, mode 0700; what exists is kept.
    ///
    /// `tmp/` comes last, after everything else has been synced: no delivery can begin, in any process, before the way to its
    /// file is durable.
    ///
    /// # Errors
    /// The system's. Temporary.
    pub fn create(disk: &dyn Disk, home: BorrowedFd<'_>, path: &[u8], bounds: Bounds) -> io::Result<OwnedFd> {
        let end = path.iter().rposition(|b| *b != b'/').map_or(0, |last| last.saturating_add(1));
        let path = path.get(..end).unwrap_or_default();
        let (parent, name) = crate::bounds::split_last(path);
        let parent = open_dir(home, parent, bounds)?;
        disk.make_dir(parent.as_fd(), name)?;
        disk.sync_dir(parent.as_fd())?;
        let dir = open_dir(parent.as_fd(), name, bounds)?;
        disk.make_dir(dir.as_fd(), b"cur")?;
        disk.make_dir(dir.as_fd(), b"new")?;
        disk.sync_dir(dir.as_fd())?;
        disk.make_dir(dir.as_fd(), b"tmp")?;
        Ok(dir)
    }

    fn open_in(dir: BorrowedFd<'_>, bounds: Bounds) -> Result<Self, Error> {
        let open = |name: &[u8]| open_dir(dir, name, bounds).map_err(Error::Write);
        let (tmp, new) = (open(b"tmp")?, open(b"new")?);
        let stat = rustix::fs::fstat(&new).map_err(|e| Error::Write(e.into()))?;
        Ok(Self { tmp, new, id: (stat.st_dev, stat.st_ino) })
    }

    /// Removes what crashes left in `tmp/`: files not read or written for 36 hours. Returns how many.
    pub fn sweep(&self, disk: &dyn Disk, now_s: u64) -> usize {
        let Ok(entries) = rustix::fs::Dir::read_from(&self.tmp) else { return 0 };
        let mut removed: usize = 0;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Ok(stat) = rustix::fs::statat(&self.tmp, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) else { continue };
            // A file system mounted noatime says when it was made: the last write must be old as well.
            let touched_s = u64::try_from(stat.st_atime.max(stat.st_mtime)).unwrap_or(0);
            let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
            let is_old = now_s.saturating_sub(touched_s) > TMP_AGE_MAX_S;
            if is_file && is_old && disk.unlink(self.tmp.as_fd(), name.to_bytes()).is_ok() {
                removed = removed.saturating_add(1);
            }
        }
        removed
    }
}

/// One letter into one Maildir.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    pub maildir: &'a Maildir,
    pub letter: Letter<'a>,
}

/// Delivers one letter.
///
/// # Errors
/// Temporary; nothing is left in `new/` unless it could not be taken back.
pub fn deliver(disk: &dyn Disk, host: &[u8], delivery: Delivery<'_>) -> Result<(), Error> {
    deliver_batch(disk, host, &[delivery]).pop().unwrap_or_else(|| Err(Error::Write(io::ErrorKind::Other.into())))
}

/// Delivers letters together; the results are in the order of `batch`. `host` is [`crate::host_name`].
///
/// Holds a descriptor per letter, so a batch is a handful, not hundreds.
pub fn deliver_batch(disk: &dyn Disk, host: &[u8], batch: &[Delivery<'_>]) -> Vec<Result<(), Error>> {
    let written: Vec<_> = batch.iter().map(|delivery| write_tmp(disk, host, delivery)).collect();
    let named: Vec<_> = batch
        .iter()
        .zip(written)
        .map(|(delivery, written)| written.and_then(|written| publish(disk, delivery.maildir, written)))
        .collect();
    let mut synced: BTreeMap<(u64, u64), Option<i32>> = BTreeMap::new();
    batch
        .iter()
        .zip(named)
        .map(|(delivery, named)| {
            let name = named?;
            let new = delivery.maildir.new.as_fd();
            let failed = *synced.entry(delivery.maildir.id).or_insert_with(|| {
                let result = disk.sync_dir(new);
                result.err().map(|e| e.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()))
            });
            let Some(errno) = failed else { return Ok(()) };
            // It will be delivered again: take this one back, or there are two.
            let _ = disk.unlink(new, &name);
            Err(Error::Write(io::Error::from_raw_os_error(errno)))
        })
        .collect()
}

struct Written {
    name: Vec<u8>,
    file: File,
}

fn write_tmp(disk: &dyn Disk, host: &[u8], delivery: &Delivery<'_>) -> Result<Written, Error> {
    let tmp = delivery.maildir.tmp.as_fd();
    let (name, file) = create_tmp(disk, host, tmp).map_err(Error::Write)?;
    if let Err(stopped) = write_letter(disk, &file, &delivery.letter) {
        let _ = disk.unlink(tmp, &name);
        return Err(match stopped {
            Stopped::Read(e) => Error::Read(e),
            Stopped::Take(e) => Error::Write(e),
        });
    }
    sys::writeback::start(file.as_fd());
    Ok(Written { name, file })
}

fn create_tmp(disk: &dyn Disk, host: &[u8], tmp: BorrowedFd<'_>) -> io::Result<(Vec<u8>, File)> {
    let mut attempt: u32 = 1;
    loop {
        let name = unique(sys::clock::unix(), host);
        match disk.create(tmp, &name) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < NAME_ATTEMPTS_MAX => attempt += 1,
            result => return result.map(|file| (name, file)),
        }
    }
}

fn write_letter(disk: &dyn Disk, file: &File, letter: &Letter<'_>) -> Result<(), Stopped<io::Error>> {
    let mut trace = letter.trace;
    letter.body.each_chunk(|chunk| {
        disk.write(file, &mut [IoSlice::new(std::mem::take(&mut trace)), IoSlice::new(chunk)])?;
        Ok(true)
    })
}

/// Syncs a file and gives it its name in `new/`; on failure it is gone from `tmp/`.
fn publish(disk: &dyn Disk, maildir: &Maildir, written: Written) -> Result<Vec<u8>, Error> {
    let result = disk.sync_file(&written.file);
    match result.and_then(|()| disk.publish(maildir.tmp.as_fd(), &written.name, maildir.new.as_fd())) {
        Ok(()) => Ok(written.name),
        Err(e) => {
            let _ = disk.unlink(maildir.tmp.as_fd(), &written.name);
            Err(Error::Write(e))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::{Call, Recorder, inode};
    use crate::{Body, Real};
    use std::io::Write;
    use std::path::{Path, PathBuf};

    fn body(text: &[u8]) -> Body {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        Body::new(file).unwrap()
    }

    fn home() -> (tempfile::TempDir, OwnedFd) {
        let home = tempfile::tempdir().unwrap();
        let fd = File::open(home.path()).unwrap().into();
        (home, fd)
    }

    fn letters(dir: &Path) -> Vec<Vec<u8>> {
        let paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        let mut texts: Vec<_> = paths.iter().map(|p| std::fs::read(p).unwrap()).collect();
        texts.sort();
        texts
    }

    #[test]
    fn a_letter_stands_whole_in_new_with_its_trace() {
        let (dir, home) = home();
        let maildir = Maildir::open_or_create(&Real, home.as_fd(), b"./Maildir/", Bounds::Beneath).unwrap();
        let long = vec![b'x'; 300_000];
        let texts: [&[u8]; 3] = [b"", b"Subject: a\n\nb\n", &long];
        for text in texts {
            let body = body(text);
            let letter = Letter { trace: b"Return-Path: <>\n", body: &body };
            deliver(&Real, b"host", Delivery { maildir: &maildir, letter }).unwrap();
        }
        let mut expected: Vec<_> = texts.iter().map(|t| [b"Return-Path: <>\n", *t].concat()).collect();
        expected.sort();
        assert_eq!(letters(&dir.path().join("Maildir/new")), expected);
        assert!(letters(&dir.path().join("Maildir/tmp")).is_empty());
    }

    #[test]
    fn missing_maildirs_are_said_as_ever() {
        let (dir, home) = home();
        let text = |path: &[u8]| Maildir::open(home.as_fd(), path, Bounds::Anywhere).unwrap_err().to_string();
        assert_eq!(text(b"./none/"), "Unable to chdir to maildir. (#4.2.1)");
        std::fs::create_dir(dir.path().join("half")).unwrap();
        assert_eq!(text(b"./half/"), "Temporary error on maildir delivery. (#4.3.0)");
        assert!(Maildir::open_or_create(&Real, home.as_fd(), b"./half/", Bounds::Beneath).is_ok(), "completes it");
        assert!(Maildir::open_or_create(&Real, home.as_fd(), b"../out/", Bounds::Beneath).is_err());
        std::os::unix::fs::symlink("/tmp", dir.path().join("link")).unwrap();
        assert!(Maildir::open_or_create(&Real, home.as_fd(), b"./link/", Bounds::Beneath).is_err());
    }

    #[test]
    fn tmp_appears_only_when_the_way_to_it_is_synced() {
        let (_dir, home) = home();
        let disk = Recorder::default();
        Maildir::create(&disk, home.as_fd(), b"./Maildir///", Bounds::Beneath).unwrap();
        use Call::{MakeDir, SyncDir};
        assert_eq!(*disk.calls.lock().unwrap(), [MakeDir, SyncDir, MakeDir, MakeDir, SyncDir, MakeDir]);
    }

    /// What became of a batch.
    struct Outcome {
        /// Success was reported.
        said: Vec<bool>,
        /// A power cut must leave it, whole.
        kept: Vec<bool>,
        in_new: usize,
        in_tmp: usize,
    }

    /// Delivers three letters into two Maildirs.
    fn batch_on(disk: &Recorder) -> Outcome {
        let (dir, home) = home();
        let boxes = [&b"a"[..], b"b"].map(|n| {
            Maildir::create(&Real, home.as_fd(), n, Bounds::Beneath).unwrap();
            Maildir::open(home.as_fd(), n, Bounds::Beneath).unwrap()
        });
        let bodies = [&b"one"[..], b"two", b"three"].map(body);
        let batch: Vec<_> = bodies
            .iter()
            .zip([0, 1, 0])
            .map(|(body, at)| Delivery { maildir: &boxes[at], letter: Letter { trace: b"T\n", body } })
            .collect();
        let said: Vec<_> = deliver_batch(disk, b"h", &batch).iter().map(Result::is_ok).collect();
        let promised = disk.promised.lock().unwrap();
        let kept = batch
            .iter()
            .zip([&b"T\none"[..], b"T\ntwo", b"T\nthree"])
            .map(|(delivery, text)| promised.left_in(inode(delivery.maildir.new.as_fd())).contains(text))
            .collect();
        let count = |names: [&str; 2]| names.iter().map(|n| letters(&dir.path().join(n)).len()).sum();
        Outcome { said, kept, in_new: count(["a/new", "b/new"]), in_tmp: count(["a/tmp", "b/tmp"]) }
    }

    #[test]
    fn what_was_said_survives_a_power_cut_and_a_batch_shares_its_directory_syncs() {
        let disk = Recorder::default();
        let batch = batch_on(&disk);
        assert_eq!((batch.said, batch.kept), (vec![true; 3], vec![true; 3]));
        let calls = disk.calls.lock().unwrap();
        let count = |call| calls.iter().filter(|c| **c == call).count();
        assert_eq!((count(Call::SyncFile), count(Call::SyncDir), count(Call::Write)), (3, 2, 3));
        let first_name = calls.iter().position(|c| *c == Call::Publish).unwrap();
        assert!(calls[..first_name].contains(&Call::SyncFile), "a file is synced before it has its name");
    }

    #[test]
    fn each_sync_is_needed_without_it_a_power_cut_loses_what_was_said() {
        for sync in [Call::SyncFile, Call::SyncDir] {
            let disk = Recorder { leave_out: Some(sync), ..Recorder::default() };
            let batch = batch_on(&disk);
            assert_eq!((batch.said, batch.kept), (vec![true; 3], vec![false; 3]), "{sync:?}");
        }
    }

    #[test]
    fn any_call_may_fail_and_then_exactly_the_letters_said_are_in_new() {
        let calls = {
            let disk = Recorder::default();
            batch_on(&disk);
            disk.calls.into_inner().unwrap()
        };
        for (at, call) in calls.iter().enumerate() {
            let disk = Recorder { fail_at: Some(at), ..Recorder::default() };
            let batch = batch_on(&disk);
            assert!(batch.said.contains(&false), "failing {call:?} at {at} went unnoticed");
            assert_eq!(batch.in_new, batch.said.iter().filter(|s| **s).count(), "failing {call:?} at {at}");
            assert!(batch.said.iter().zip(&batch.kept).all(|(said, kept)| !said || *kept), "failing {call:?} at {at}");
            assert_eq!(batch.in_tmp, 0);
        }
    }

    #[test]
    fn sweeping_takes_only_what_is_old() {
        let (dir, home) = home();
        Maildir::create(&Real, home.as_fd(), b"m", Bounds::Beneath).unwrap();
        let maildir = Maildir::open(home.as_fd(), b"m", Bounds::Beneath).unwrap();
        let tmp = dir.path().join("m/tmp");
        std::fs::write(tmp.join("left"), "x").unwrap();
        std::fs::create_dir(tmp.join("dir")).unwrap();
        let now_s = sys::clock::unix_s();
        assert_eq!(maildir.sweep(&Real, now_s + TMP_AGE_MAX_S - 60), 0);
        assert_eq!(maildir.sweep(&Real, now_s + TMP_AGE_MAX_S + 60), 1);
        assert!(tmp.join("dir").exists() && !tmp.join("left").exists());
    }
}
