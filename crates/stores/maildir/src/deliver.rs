//! Maildir delivery: `tmp/` → write → fsync → `new/` → fsync of `new/`, and only then success.
//!
//! A batch goes through each step together. The first fsync commits the file system's journal for all of the batch, so the others
//! cost little, and one sync of a `new/` serves every message that was put into it. Nothing waits for a batch to fill.

use crate::body::Stopped;
use crate::bounds::{open_dir, split_last};
use crate::name::unique;
use crate::quota::{Ledger, Usage};
use crate::{Bounds, Error, Letter};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sys::fs::real::RealDisk;
use sys::fs::{Disk, DiskFile, make_dir_durable};

/// A name of ours that exists already means another process of our pid within the same microsecond; more are a fault.
const NAME_ATTEMPTS_MAX: u32 = 3;
/// Mailboxes are their owner's alone.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// An open Maildir to deliver into.
pub struct Maildir {
    /// Its root is the Maildir.
    disk: Arc<dyn Disk>,
    /// Device and inode of `new/`: two handles of the same Maildir share one sync.
    id: (u64, u64),
    /// `None`: there is no quota, and nothing is counted.
    ledger: Option<Ledger>,
}

impl fmt::Debug for Maildir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maildir").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Maildir {
    /// Opens the Maildir at `path` from `home`.
    ///
    /// # Errors
    /// [`Error::NoMaildir`] or, when it has no `tmp/` or `new/`, [`Error::Write`]. Temporary.
    pub fn open(home: BorrowedFd<'_>, path: &[u8], bounds: Bounds) -> Result<Self, Error> {
        let dir = open_dir(home, path, bounds).map_err(Error::NoMaildir)?;
        let open = |name: &[u8]| open_dir(dir.as_fd(), name, bounds).map(Arc::new).map_err(Error::Write);
        let (tmp, new) = (open(b"tmp")?, open(b"new")?);
        let stat = rustix::fs::fstat(&new).map_err(|e| Error::Write(e.into()))?;
        let disk = RealDisk::new(dir).hold(Path::new("tmp"), tmp).hold(Path::new("new"), new);
        Ok(Self { disk: Arc::new(disk), id: (stat.st_dev, stat.st_ino), ledger: None })
    }

    /// As [`Maildir::open`], but makes the Maildir (its last component) where it is missing.
    ///
    /// # Errors
    /// As [`Maildir::open`], or it cannot be made. Temporary.
    pub fn open_or_create(home: BorrowedFd<'_>, path: &[u8], bounds: Bounds) -> Result<Self, Error> {
        match Self::open(home, path, bounds) {
            Err(Error::NoMaildir(e) | Error::Write(e)) if e.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        Self::create(home, path, bounds).map_err(Error::NoMaildir)?;
        Self::open(home, path, bounds)
    }

    /// Makes `path` with `tmp/`, `new/`, `cur/` in it, mode 0700; what exists is kept.
    ///
    /// # Errors
    /// The system's. Temporary.
    pub fn create(home: BorrowedFd<'_>, path: &[u8], bounds: Bounds) -> io::Result<()> {
        let end = path.iter().rposition(|b| *b != b'/').map_or(0, |last| last.saturating_add(1));
        let (parent, name) = split_last(path.get(..end).unwrap_or_default());
        create_in(&RealDisk::new(open_dir(home, parent, bounds)?), Path::new(OsStr::from_bytes(name)))
    }

    /// The same Maildir, into which no more is delivered than its ledger has room for.
    #[must_use]
    pub fn bounded_by(self, ledger: Ledger) -> Self {
        Self { ledger: Some(ledger), ..self }
    }

    /// Has a letter taken the mailbox over the part of its quota that is to be noticed? Says so once.
    #[must_use]
    pub fn take_crossing(&self) -> bool {
        self.ledger.as_ref().is_some_and(Ledger::take_crossing)
    }

    /// Delivers a letter whether there is room for it or not; it counts. For what tells the owner that there is hardly any.
    ///
    /// # Errors
    /// As [`deliver`].
    pub fn deliver_anyway(&self, host: &[u8], letter: Letter<'_>) -> Result<(), Error> {
        let unbounded = Self { disk: Arc::clone(&self.disk), id: self.id, ledger: None };
        deliver(host, Delivery { maildir: &unbounded, letter })?;
        if let (Some(ledger), Ok(len)) = (&self.ledger, letter.byte_len()) {
            ledger.add(Usage::of_letter(len));
        }
        Ok(())
    }

    /// A Maildir on any disk.
    #[cfg(test)]
    pub(crate) fn on(disk: Arc<dyn Disk>, id: (u64, u64)) -> Self {
        Self { disk, id, ledger: None }
    }
}

/// Makes the home of a virtual user: `name` below the directory of the domain, durable.
///
/// # Errors
/// The system's. Temporary.
pub fn make_home(base: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let disk = RealDisk::new(open_dir(base, b".", Bounds::Beneath)?);
    make_dir_durable(&disk, Path::new(OsStr::from_bytes(name)), DIR_MODE, "home")
}

/// `tmp/` comes last, after everything else has been synced: no delivery can begin, in any process, before the way to its
/// file is durable.
pub(crate) fn create_in(parent: &dyn Disk, name: &Path) -> io::Result<()> {
    make_dir_durable(parent, name, DIR_MODE, "maildir")?;
    for sub in ["cur", "new"] {
        make_dir(parent, &name.join(sub))?;
    }
    parent.sync_dir(name, "maildir's new")?;
    make_dir(parent, &name.join("tmp"))
}

fn make_dir(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.make_dir(path, DIR_MODE) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
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
/// [`Error::OverQuota`], before anything of the letter is written; the others are temporary, and nothing is left in `new/` unless it could not be
/// taken back.
pub fn deliver(host: &[u8], delivery: Delivery<'_>) -> Result<(), Error> {
    deliver_batch(host, &[delivery]).pop().unwrap_or_else(|| Err(Error::Write(io::ErrorKind::Other.into())))
}

/// Delivers letters together; the results are in the order of `batch`. `host` is [`crate::host_name`].
///
/// Holds a descriptor per letter, so a batch is a handful, not hundreds.
pub fn deliver_batch(host: &[u8], batch: &[Delivery<'_>]) -> Vec<Result<(), Error>> {
    let written: Vec<_> = batch.iter().map(|delivery| write_tmp(host, delivery)).collect();
    if batch.len() > 1 {
        // The disk works on all of them while the first is waited for. For one alone this would only be a call more.
        written.iter().flatten().for_each(|written| written.file.start_writeback());
    }
    let named: Vec<_> = batch
        .iter()
        .zip(written)
        .map(|(delivery, written)| written.and_then(|written| publish(delivery.maildir, written)))
        .collect();
    let mut synced: BTreeMap<(u64, u64), Option<i32>> = BTreeMap::new();
    batch
        .iter()
        .zip(named)
        .map(|(delivery, named)| {
            let (name, letter) = named?;
            let disk = &delivery.maildir.disk;
            let failed = *synced.entry(delivery.maildir.id).or_insert_with(|| {
                let result = disk.sync_dir(Path::new("new"), "names in new");
                result.err().map(|e| e.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()))
            });
            let Some(errno) = failed else { return Ok(()) };
            // It will be delivered again: take this one back, or there are two.
            let _ = disk.unlink(&name);
            delivery.maildir.give_back(letter);
            Err(Error::Write(io::Error::from_raw_os_error(errno)))
        })
        .collect()
}

struct Written {
    /// In `tmp/`.
    path: PathBuf,
    /// The unique part of its name.
    name: Vec<u8>,
    file: Box<dyn DiskFile>,
    /// Bytes in the file.
    len: u64,
    /// The same with CRLF at the end of each line, as clients get it; `None` where readers may disagree about that.
    crlf_len: Option<u64>,
    /// What the ledger gave room for.
    reserved: Option<Usage>,
}

impl Written {
    /// It is not to be delivered.
    fn abandon(&self, maildir: &Maildir) {
        let _ = maildir.disk.unlink(&self.path);
        self.reserved.into_iter().for_each(|reserved| maildir.give_back(reserved));
    }
}

impl Maildir {
    fn give_back(&self, reserved: Usage) {
        self.ledger.iter().for_each(|ledger| ledger.add(reserved.negated()));
    }
}

fn write_tmp(host: &[u8], delivery: &Delivery<'_>) -> Result<Written, Error> {
    let Delivery { maildir, letter } = delivery;
    let bounded = maildir.ledger.as_ref().map(|ledger| Ok((ledger, letter.byte_len().map_err(Error::Read)?))).transpose()?;
    let mut written = create_tmp(maildir.disk.as_ref(), host, bounded.map(|(_, len)| len)).map_err(Error::Write)?;
    if let Some((ledger, len)) = bounded {
        let own = written.path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        if let Err(error) = ledger.reserve(Usage::of_letter(len), own) {
            written.abandon(maildir);
            return Err(error);
        }
        written.reserved = Some(Usage::of_letter(len));
    }
    match write_letter(written.file.as_ref(), letter) {
        Ok((len, crlf_len)) => {
            (written.len, written.crlf_len) = (len, crlf_len);
            Ok(written)
        }
        Err(stopped) => {
            written.abandon(maildir);
            Err(match stopped {
                Stopped::Read(e) => Error::Read(e),
                Stopped::Take(e) => Error::Write(e),
            })
        }
    }
}

/// With `told`, the name tells the length: whoever counts the mailbox meanwhile counts the letter, too.
fn create_tmp(disk: &dyn Disk, host: &[u8], told: Option<u64>) -> io::Result<Written> {
    let told = told.map(|len| format!(",S={len}")).unwrap_or_default();
    let mut attempt: u32 = 1;
    loop {
        let name = unique(sys::clock::unix(), host);
        let path = Path::new("tmp").join(OsStr::from_bytes(&[&name[..], told.as_bytes()].concat()));
        match disk.create(&path, FILE_MODE) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < NAME_ATTEMPTS_MAX => attempt += 1,
            result => return result.map(|file| Written { path, name, file, len: 0, crlf_len: None, reserved: None }),
        }
    }
}

/// Returns how many bytes it wrote, and how many they are with CRLF: only if each line, the last one too, ends with LF and none holds a CR.
fn write_letter(file: &dyn DiskFile, letter: &Letter<'_>) -> Result<(u64, Option<u64>), Stopped<io::Error>> {
    let (mut trace, mut offset, mut lines) = (letter.trace, 0_u64, 0_u64);
    let (mut has_cr, mut is_ended) = (false, true);
    letter.body.each_chunk(|chunk| {
        let trace = std::mem::take(&mut trace);
        file.write_at(&[IoSlice::new(trace), IoSlice::new(chunk)], offset)?;
        for part in [trace, chunk] {
            offset = offset.saturating_add(part.len() as u64);
            lines = lines.saturating_add(part.iter().map(|b| u64::from(*b == b'\n')).sum());
            has_cr |= part.contains(&b'\r');
            is_ended = part.last().map_or(is_ended, |last| *last == b'\n');
        }
        Ok(true)
    })?;
    Ok((offset, (is_ended && !has_cr).then(|| offset.saturating_add(lines))))
}

/// Syncs a file and gives it its name in `new/`; on failure it is gone from `tmp/`. The name tells its length (`,S=`), so that nobody who
/// counts what a mailbox holds has to look at the file, and its length for clients (`,W=`), so that none who lists it has to read it.
fn publish(maildir: &Maildir, written: Written) -> Result<(PathBuf, Usage), Error> {
    let crlf = written.crlf_len.map(|len| format!(",W={len}")).unwrap_or_default();
    let name = [&written.name[..], format!(",S={}{crlf}", written.len).as_bytes()].concat();
    let to = Path::new("new").join(OsStr::from_bytes(&name));
    match written.file.sync("letter").and_then(|()| maildir.disk.rename_new(&written.path, &to)) {
        Ok(()) => Ok((to, written.reserved.unwrap_or_default())),
        Err(e) => {
            written.abandon(maildir);
            Err(Error::Write(e))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Body;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::OwnedFd;

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
        let maildir = Maildir::open_or_create(home.as_fd(), b"./Maildir/", Bounds::Beneath).unwrap();
        let long = vec![b'x'; 300_000];
        let texts: [&[u8]; 3] = [b"", b"Subject: a\n\nb\n", &long];
        for text in texts {
            let body = body(text);
            let letter = Letter { trace: b"Return-Path: <>\n", body: &body };
            deliver(b"host", Delivery { maildir: &maildir, letter }).unwrap();
        }
        let mut expected: Vec<_> = texts.iter().map(|t| [b"Return-Path: <>\n", *t].concat()).collect();
        expected.sort();
        assert_eq!(letters(&dir.path().join("Maildir/new")), expected);
        assert!(letters(&dir.path().join("Maildir/tmp")).is_empty());
        let mut ends: Vec<String> = std::fs::read_dir(dir.path().join("Maildir/new"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap().split_once(',').unwrap().1.to_owned())
            .collect();
        ends.sort();
        assert_eq!(ends, ["S=16,W=17", "S=30,W=34", "S=300016"], "{ends:?}");
        let mode = |path: &str| {
            let metadata = std::fs::metadata(dir.path().join(path)).unwrap();
            std::os::unix::fs::MetadataExt::mode(&metadata) & 0o777
        };
        let name = std::fs::read_dir(dir.path().join("Maildir/new")).unwrap().next().unwrap().unwrap().file_name();
        assert_eq!((mode("Maildir"), mode("Maildir/tmp")), (0o700, 0o700));
        assert_eq!(mode(&format!("Maildir/new/{}", name.to_str().unwrap())), 0o600);
    }

    #[test]
    fn missing_maildirs_are_said_as_ever() {
        let (dir, home) = home();
        let text = |path: &[u8]| Maildir::open(home.as_fd(), path, Bounds::Anywhere).unwrap_err().to_string();
        assert_eq!(text(b"./none/"), "Unable to chdir to maildir. (#4.2.1)");
        std::fs::create_dir(dir.path().join("half")).unwrap();
        assert_eq!(text(b"./half/"), "Temporary error on maildir delivery. (#4.3.0)");
        assert!(Maildir::open_or_create(home.as_fd(), b"./half/", Bounds::Beneath).is_ok(), "completes it");
        assert!(Maildir::open_or_create(home.as_fd(), b"../out/", Bounds::Beneath).is_err());
        std::os::unix::fs::symlink("/tmp", dir.path().join("link")).unwrap();
        assert!(Maildir::open_or_create(home.as_fd(), b"./link/", Bounds::Beneath).is_err());
    }

    #[test]
    fn a_system_users_maildir_may_be_made_of_links() {
        let (dir, home) = home();
        Maildir::create(home.as_fd(), b"there///", Bounds::Beneath).unwrap();
        std::fs::create_dir(dir.path().join("Maildir")).unwrap();
        for sub in ["tmp", "new"] {
            std::os::unix::fs::symlink(dir.path().join("there").join(sub), dir.path().join("Maildir").join(sub)).unwrap();
        }
        let body = body(b"text\n");
        let letter = Letter { trace: b"", body: &body };
        let maildir = Maildir::open(home.as_fd(), b"Maildir", Bounds::Anywhere).unwrap();
        deliver(b"h", Delivery { maildir: &maildir, letter }).unwrap();
        assert_eq!(letters(&dir.path().join("there/new")), [b"text\n"]);
        assert!(Maildir::open(home.as_fd(), b"Maildir", Bounds::Beneath).is_err());
    }

    #[test]
    fn a_home_is_made_once() {
        let (dir, base) = home();
        make_home(base.as_fd(), b"alice").unwrap();
        make_home(base.as_fd(), b"alice").unwrap();
        assert!(dir.path().join("alice").is_dir());
    }
}
