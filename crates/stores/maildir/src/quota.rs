//! The quota of a mailbox: the file `maildirsize` of Maildir++, which Dovecot, Courier and vpopmail read and write as well.
//!
//! Its first line is the quota (`10485760S,1000C`), each further one a change: bytes and messages. It is only a count of what lies in the
//! directories, so it is never synced; and whenever it would refuse a letter, is of another quota, or has grown over 5120 bytes, it is
//! made anew from them (`,S=` in a name saves looking at the file), so no mistake in it lasts. Folders (`.Name` directories) count,
//! `.Trash` does not.
//!
//! A delivery *reserves*: under an exclusive lock it reads the file and appends its line if there is room, before it writes the letter; one
//! that fails takes its line back. So deliveries of any number of processes never fill a mailbox over its quota together; only a
//! program that does not reserve (an IMAP server storing a message) can. A letter under way has a file in `tmp/` whose name tells its
//! length, and whoever counts counts it there: it may be counted twice (moved meanwhile, or counted before its line), never not at all.

use crate::bounds::{open_at, open_dir, split_last};
use crate::name::unique;
use crate::{Bounds, Error};
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const NAME: &[u8] = b"maildirsize";
const WARNED: &[u8] = b"quotawarn";
/// Between two warnings.
const WARNED_S: i64 = 86_400;
/// A longer file is made anew (Maildir++).
const LEN_MAX: u64 = 5120;
/// A count that refuses a letter is believed so long, if nothing was written behind it (Maildir++: 15 minutes).
const BELIEVED: Duration = Duration::from_secs(15 * 60);
/// A delivery that takes longer is ended by qmail-lspawn.
const UNDER_WAY_MAX_S: i64 = 300;
/// Folders that are counted; more are somebody's mistake.
const FOLDERS_MAX: usize = 10_000;

/// How much a mailbox may hold; 0 is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    pub bytes: u64,
    pub messages: u64,
    /// A letter for which there is no room is to be tried again later. One that is larger than the whole quota never is.
    pub defers: bool,
    /// A letter that takes the mailbox over so many percent of the quota is to be noticed ([`crate::Maildir::take_crossing`]); 0: none.
    pub warns_at: u32,
}

/// What a mailbox holds, or a letter brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    pub(crate) bytes: i64,
    pub(crate) messages: i64,
}

impl Usage {
    pub(crate) fn of_letter(bytes: u64) -> Self {
        Self { bytes: signed(bytes), messages: 1 }
    }

    pub(crate) fn negated(self) -> Self {
        Self { bytes: self.bytes.saturating_neg(), messages: self.messages.saturating_neg() }
    }

    pub(crate) fn and(self, more: Self) -> Self {
        let Self { bytes, messages } = more;
        Self { bytes: self.bytes.saturating_add(bytes), messages: self.messages.saturating_add(messages) }
    }
}

impl Quota {
    /// Bounds nothing?
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.bytes == 0 && self.messages == 0
    }

    fn has_room_for(&self, usage: Usage) -> bool {
        let fits = |bound: u64, used: i64| bound == 0 || used <= signed(bound);
        fits(self.bytes, usage.bytes) && fits(self.messages, usage.messages)
    }

    /// Does what is used come to that part of it which is to be noticed?
    fn is_noticed(&self, usage: Usage) -> bool {
        let reaches = |bound: u64, used: i64| {
            bound != 0 && i128::from(used).saturating_mul(100) >= i128::from(bound).saturating_mul(self.warns_at.into())
        };
        self.warns_at != 0 && (reaches(self.bytes, usage.bytes) || reaches(self.messages, usage.messages))
    }

    /// Bytes and messages that still fit.
    fn left(&self, usage: Usage) -> (u64, u64) {
        let left = |bound: u64, used: i64| {
            if bound == 0 { u64::MAX } else { bound.saturating_sub(u64::try_from(used).unwrap_or(0)) }
        };
        (left(self.bytes, usage.bytes), left(self.messages, usage.messages))
    }

    fn line(&self) -> String {
        let part = |number: u64, letter| if number == 0 { String::new() } else { format!("{number}{letter}") };
        let parts = [part(self.bytes, 'S'), part(self.messages, 'C')];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(",")
    }

    fn full(&self, letter: Usage) -> Error {
        Error::OverQuota { is_temporary: self.defers && self.has_room_for(letter) }
    }
}

/// The `maildirsize` of a mailbox.
#[derive(Debug)]
pub struct Ledger {
    /// The mailbox itself, above its folders.
    dir: OwnedFd,
    quota: Quota,
    /// A letter has taken the mailbox over [`Quota::warns_at`].
    crossed: AtomicBool,
}

/// A count as the file has it.
struct Count {
    usage: Usage,
    /// Lines behind the quota.
    lines: usize,
    age: Duration,
}

impl Ledger {
    /// The ledger of the mailbox at `path` from `home`, or of the mailbox that this is a folder of. Nothing is read.
    ///
    /// # Errors
    /// It cannot be opened. Temporary.
    pub fn open(home: BorrowedFd<'_>, path: &[u8], bounds: Bounds, quota: Quota) -> Result<Self, Error> {
        let dir = mailbox(home, path, bounds).map_err(Error::NoMaildir)?;
        Ok(Self { dir, quota, crossed: AtomicBool::new(false) })
    }

    /// Takes the room for a letter, whose file in `tmp/` has the name `own`.
    ///
    /// # Errors
    /// [`Error::OverQuota`]: there is none. Temporary: it cannot be counted.
    pub(crate) fn reserve(&self, letter: Usage, own: &[u8]) -> Result<(), Error> {
        // Without the lock it is counted all the same: the file system has none.
        let _lock = lock(self.dir.as_fd(), FlockOperation::LockExclusive);
        let used = self.used(letter, own)?;
        if !self.quota.has_room_for(used.and(letter)) {
            return Err(self.quota.full(letter));
        }
        // A line that cannot be written is missing until the next count, no more.
        let _ = append_line(self.dir.as_fd(), letter);
        if !self.quota.is_noticed(used) && self.quota.is_noticed(used.and(letter)) && self.may_warn() {
            self.crossed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Bytes and messages that still fit into the mailbox, counted anew if a letter of `len` bytes would not; `u64::MAX` for no bound.
    ///
    /// # Errors
    /// Temporary: it cannot be counted.
    pub fn left_for(&self, len: u64) -> Result<(u64, u64), Error> {
        let _lock = lock(self.dir.as_fd(), FlockOperation::LockExclusive);
        Ok(self.quota.left(self.used(Usage::of_letter(len), b"")?))
    }

    /// Has nobody been warned for a day? The file `quotawarn` tells by its time (Maildir++).
    fn may_warn(&self) -> bool {
        let now_s = i64::try_from(sys::clock::unix_s()).unwrap_or(i64::MAX);
        let is_fresh = |stat: rustix::fs::Stat| (0..WARNED_S).contains(&now_s.saturating_sub(stat.st_mtime));
        if rustix::fs::statat(&self.dir, WARNED, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(is_fresh) {
            return false;
        }
        let _ = rustix::fs::unlinkat(&self.dir, WARNED, AtFlags::empty());
        open_at(self.dir.as_fd(), WARNED, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, MODE, Bounds::Beneath).is_ok()
    }

    /// Removes `maildirsize`: the mailbox has no quota any more.
    ///
    /// # Errors
    /// It is still there.
    pub fn remove(&self) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, NAME, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What the mailbox holds, by the file if that has room for the letter, or was made a short while ago; else by a count.
    fn used(&self, letter: Usage, own: &[u8]) -> Result<Usage, Error> {
        if let Some(count) = self.read() {
            let is_new = count.lines <= 1 && count.age < BELIEVED;
            if is_new || self.quota.has_room_for(count.usage.and(letter)) {
                return Ok(count.usage);
            }
        }
        self.count(own)
    }

    /// Notes what has come in without being asked for room, or with negative numbers did not come.
    pub(crate) fn add(&self, usage: Usage) {
        let _ = append(self.dir.as_fd(), usage);
    }

    /// Was it a letter of this ledger that took the mailbox over the part of its quota that is noticed? Says so once.
    pub(crate) fn take_crossing(&self) -> bool {
        self.crossed.swap(false, Ordering::Relaxed)
    }

    /// `None`: not there, not to be read, of another quota, too long or malformed.
    fn read(&self) -> Option<Count> {
        let file = File::from(open_at(self.dir.as_fd(), NAME, READ, Mode::empty(), Bounds::Beneath).ok()?);
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let mut text = Vec::new();
        (&file).take(LEN_MAX.saturating_add(1)).read_to_end(&mut text).ok()?;
        if text.len() as u64 > LEN_MAX {
            return None;
        }
        let age = metadata.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
        let text = String::from_utf8(text).ok()?;
        let mut lines = text.lines();
        if lines.next()? != self.quota.line() {
            return None;
        }
        let mut count = Count { usage: Usage::default(), lines: 0, age };
        for line in lines {
            let mut numbers = line.split_ascii_whitespace().map(str::parse);
            let (Some(Ok(bytes)), Some(Ok(messages)), None) = (numbers.next(), numbers.next(), numbers.next()) else {
                return None;
            };
            count.usage = count.usage.and(Usage { bytes, messages });
            count.lines = count.lines.saturating_add(1);
        }
        // Less than nothing: somebody took away what nobody had noted.
        (count.usage.bytes >= 0 && count.usage.messages >= 0).then_some(count)
    }

    /// Counts the mailbox but for the letter `own`, and writes the file anew; by whoever holds the lock.
    fn count(&self, own: &[u8]) -> Result<Usage, Error> {
        let mut usage = directories(self.dir.as_fd(), b".", own).map_err(Error::Read)?;
        let mut folders: usize = 0;
        for entry in Dir::read_from(&self.dir).map_err(|e| Error::Read(e.into()))? {
            let entry = entry.map_err(|e| Error::Read(e.into()))?;
            let name = entry.file_name().to_bytes();
            if !name.starts_with(b".") || matches!(name, b"." | b".." | b".Trash") || folders >= FOLDERS_MAX {
                continue;
            }
            folders = folders.saturating_add(1);
            // What is no directory, or a link, is no folder.
            usage = usage.and(directories(self.dir.as_fd(), name, own).unwrap_or_default());
        }
        // If it cannot be written, the next delivery counts again.
        let _ = self.replace(usage);
        Ok(usage)
    }

    fn replace(&self, usage: Usage) -> io::Result<()> {
        let name = [b"tmp/", &unique(sys::clock::unix(), b"maildirsize")[..]].concat();
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut file = File::from(open_at(self.dir.as_fd(), &name, create, MODE, Bounds::Beneath)?);
        let written = file
            .write_all(format!("{}\n{} {}\n", self.quota.line(), usage.bytes, usage.messages).as_bytes())
            .and_then(|()| Ok(rustix::fs::renameat(&self.dir, &name[..], &self.dir, NAME)?));
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&self.dir, &name[..], AtFlags::empty());
        }
        written
    }
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK);
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Notes in the `maildirsize` of a mailbox, if it has one, what has come (or with negative numbers gone).
///
/// # Errors
/// It cannot be written; it is wrong until the next count.
pub(crate) fn append(dir: BorrowedFd<'_>, usage: Usage) -> io::Result<()> {
    let _lock = lock(dir, FlockOperation::LockShared);
    append_line(dir, usage)
}

/// By whoever holds the lock.
fn append_line(dir: BorrowedFd<'_>, usage: Usage) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK;
    let file = match open_at(dir, NAME, flags, Mode::empty(), Bounds::Beneath) {
        Ok(fd) => File::from(fd),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    // One write: with O_APPEND lines of several processes never mix.
    (&file).write_all(format!("{} {}\n", usage.bytes, usage.messages).as_bytes())
}

/// Held until it is dropped; the directory is opened anew, since a lock belongs to an open file.
fn lock(dir: BorrowedFd<'_>, how: FlockOperation) -> Option<OwnedFd> {
    let own = open_dir(dir, b".", Bounds::Beneath).ok()?;
    rustix::fs::flock(&own, how).ok()?;
    Some(own)
}

/// The mailbox at `path`, or for a folder of one the mailbox above.
fn mailbox(home: BorrowedFd<'_>, path: &[u8], bounds: Bounds) -> io::Result<OwnedFd> {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |last| last.saturating_add(1));
    let path = path.get(..end).unwrap_or_default();
    let (parent, name) = split_last(path);
    if name.starts_with(b".")
        && let Ok(above) = open_dir(home, parent, bounds)
        && rustix::fs::statat(&above, "cur", AtFlags::SYMLINK_NOFOLLOW).is_ok()
    {
        return Ok(above);
    }
    open_dir(home, path, bounds)
}

/// What lies in `new/` and `cur/` of a folder, and what is on its way there but for the letter `own`.
fn directories(mailbox: BorrowedFd<'_>, folder: &[u8], own: &[u8]) -> io::Result<Usage> {
    let folder = open_dir(mailbox, folder, Bounds::Beneath)?;
    // First, so that a letter that moves on meanwhile is seen here or there.
    let mut usage = under_way(folder.as_fd(), own).unwrap_or_default();
    for sub in [&b"new"[..], b"cur"] {
        let dir = match open_dir(folder.as_fd(), sub, Bounds::Beneath) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name.starts_with(b".") {
                continue;
            }
            if let Some(bytes) = size_in_name(name).or_else(|| size_of(dir.as_fd(), entry.file_name())) {
                usage = usage.and(Usage::of_letter(bytes));
            }
        }
    }
    Ok(usage)
}

/// Letters in `tmp/` whose names tell their lengths, but for those that a crash has left.
fn under_way(folder: BorrowedFd<'_>, own: &[u8]) -> io::Result<Usage> {
    let dir = open_dir(folder, b"tmp", Bounds::Beneath)?;
    let now_s = i64::try_from(sys::clock::unix_s()).unwrap_or(i64::MAX);
    let mut usage = Usage::default();
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let Some(bytes) = size_in_name(entry.file_name().to_bytes()).filter(|_| entry.file_name().to_bytes() != own) else {
            continue;
        };
        let is_young = |stat: rustix::fs::Stat| now_s.saturating_sub(stat.st_mtime) < UNDER_WAY_MAX_S;
        if rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW).is_ok_and(is_young) {
            usage = usage.and(Usage::of_letter(bytes));
        }
    }
    Ok(usage)
}

/// The length that a name tells: `…,S=1234` before any `:2,` flags.
fn size_in_name(name: &[u8]) -> Option<u64> {
    let base = name.split(|b| *b == b':').next()?;
    let digits = base.split(|b| *b == b',').skip(1).find_map(|field| field.strip_prefix(b"S="))?;
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

/// `None`: gone meanwhile, or no file.
fn size_of(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Option<u64> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    FileType::from_raw_mode(stat.st_mode).is_file().then(|| u64::try_from(stat.st_size).unwrap_or(0))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Body, Delivery, Letter, Mailbox, Maildir, deliver, deliver_batch};
    use std::path::Path;

    struct Home(tempfile::TempDir, OwnedFd);

    fn home() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(File::open(dir.path()).unwrap());
        Maildir::create(fd.as_fd(), b"Maildir", Bounds::Beneath).unwrap();
        Home(dir, fd)
    }

    impl Home {
        fn path(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join("Maildir").join(name)
        }

        fn maildir(&self, path: &[u8], quota: Quota) -> Maildir {
            let ledger = Ledger::open(self.1.as_fd(), path, Bounds::Beneath, quota).unwrap();
            Maildir::open(self.1.as_fd(), path, Bounds::Beneath).unwrap().bounded_by(ledger)
        }

        fn deliver(&self, quota: Quota, len: usize) -> Result<(), Error> {
            let (maildir, body) = (self.maildir(b"./Maildir/", quota), body(len));
            deliver(b"h", Delivery { maildir: &maildir, letter: Letter { trace: b"T\n", body: &body } })
        }

        fn text(&self) -> String {
            std::fs::read_to_string(self.path("maildirsize")).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let names = std::fs::read_dir(self.path("new")).unwrap();
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    fn body(len: usize) -> Body {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![b'x'; len]).unwrap();
        Body::new(file).unwrap()
    }

    fn bytes(bytes: u64) -> Quota {
        Quota { bytes, ..Quota::default() }
    }

    fn make_old(path: &Path) {
        let old = std::time::SystemTime::now() - BELIEVED * 2;
        File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    }

    #[test]
    fn a_mailbox_fills_up_and_then_refuses() {
        let home = home();
        home.deliver(bytes(100), 48).unwrap();
        assert_eq!(home.text(), "100S\n0 0\n50 1\n");
        assert!(home.names()[0].ends_with(",S=50"), "{:?}", home.names());
        home.deliver(bytes(100), 48).unwrap();
        let refused = home.deliver(bytes(100), 1).unwrap_err();
        assert!(!refused.is_temporary());
        assert_eq!(refused.to_string(), "Sorry, the mailbox is full. (#5.2.2)");
        assert_eq!((home.text().as_str(), home.names().len()), ("100S\n100 2\n", 2), "counted before it was refused");
        assert!(std::fs::read_dir(home.path("tmp")).unwrap().next().is_none(), "nothing was written");
        // More room, at once.
        home.deliver(bytes(200), 1).unwrap();
        assert_eq!(home.text(), "200S\n100 2\n3 1\n");
        home.deliver(Quota { messages: 3, ..Quota::default() }, 1).unwrap_err();
        assert_eq!(home.text(), "3C\n103 3\n");
    }

    #[test]
    fn who_defers_defers_what_may_fit_some_day() {
        let home = home();
        let quota = Quota { defers: true, ..bytes(100) };
        home.deliver(quota, 90).unwrap();
        let later = home.deliver(quota, 90).unwrap_err();
        assert!(later.is_temporary() && later.to_string().ends_with("(#4.2.2)"), "{later}");
        assert!(!home.deliver(quota, 99).unwrap_err().is_temporary(), "larger than the mailbox will ever be");
    }

    #[test]
    fn what_is_removed_makes_room() {
        let home = home();
        home.deliver(bytes(100), 48).unwrap();
        home.deliver(bytes(100), 48).unwrap();
        home.deliver(bytes(100), 1).unwrap_err();
        let mailbox = Mailbox::open(home.1.as_fd(), b"Maildir", Bounds::Beneath).unwrap();
        let entries = mailbox.list().unwrap();
        let size = mailbox.size(&entries[0]).unwrap();
        mailbox.delete(&entries[0]).unwrap();
        mailbox.note_removed(size, 1);
        assert_eq!(home.text(), "100S\n100 2\n-50 -1\n");
        home.deliver(bytes(100), 48).unwrap();
        // Behind the back of the ledger: the count is made anew before anything is refused.
        std::fs::remove_file(home.path("new").join(&home.names()[0])).unwrap();
        home.deliver(bytes(100), 48).unwrap();
        assert_eq!(home.text(), "100S\n50 1\n50 1\n");
    }

    #[test]
    fn a_count_that_refused_is_believed_for_a_while() {
        let home = home();
        home.deliver(bytes(10), 8).unwrap();
        home.deliver(bytes(10), 8).unwrap_err();
        std::fs::remove_file(home.path("new").join(&home.names()[0])).unwrap();
        home.deliver(bytes(10), 8).unwrap_err();
        make_old(&home.path("maildirsize"));
        home.deliver(bytes(10), 8).unwrap();
    }

    #[test]
    fn folders_count_and_the_trash_does_not() {
        let home = home();
        for folder in [".A", ".A.B", ".Trash"] {
            Maildir::create(home.1.as_fd(), format!("Maildir/{folder}").as_bytes(), Bounds::Beneath).unwrap();
            std::fs::write(home.path(folder).join("cur/1:2,S"), b"0123456789").unwrap();
            std::fs::write(home.path(folder).join("new/2,S=5,W=6"), b"not five").unwrap();
        }
        std::os::unix::fs::symlink(".A", home.path(".Link")).unwrap();
        home.deliver(bytes(100), 8).unwrap();
        assert_eq!(home.text(), "100S\n30 4\n10 1\n");
        let (maildir, body) = (home.maildir(b"Maildir/.A/", bytes(100)), body(68));
        let delivery = Delivery { maildir: &maildir, letter: Letter { trace: b"T\n", body: &body } };
        assert!(matches!(deliver(b"h", delivery), Err(Error::OverQuota { .. })), "a folder has the mailbox's quota");
        assert!(!home.path(".A").join("maildirsize").exists());
    }

    #[test]
    fn odd_files_are_made_anew() {
        let home = home();
        home.deliver(bytes(100), 8).unwrap();
        let long = format!("100S\n{}", "1 1\n".repeat(1500));
        for odd in ["", "100S\nx y\n", "100S\n1\n", "100S\n-5 -1\n", "7S\n0 0\n", "100S\n1 1 1\n", &long] {
            std::fs::write(home.path("maildirsize"), odd).unwrap();
            home.deliver(bytes(100), 8).unwrap();
            assert_eq!(home.text(), "100S\n10 1\n10 1\n", "{odd:?}");
            std::fs::remove_file(home.path("new").join(&home.names()[0])).unwrap();
        }
        std::fs::remove_file(home.path("maildirsize")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", home.path("maildirsize")).unwrap();
        home.deliver(bytes(100), 8).unwrap();
        assert!(std::fs::symlink_metadata(home.path("maildirsize")).unwrap().is_file());
    }

    #[test]
    fn a_batch_sees_its_own_letters() {
        let home = home();
        let (maildir, body) = (home.maildir(b"Maildir", bytes(100)), body(28));
        let delivery = Delivery { maildir: &maildir, letter: Letter { trace: b"T\n", body: &body } };
        let results = deliver_batch(b"h", &[delivery; 5]);
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, true, false, false]);
        assert_eq!(home.names().len(), 3);
    }

    /// Each of many processes would see room for itself.
    #[test]
    fn deliveries_at_the_same_moment_do_not_fill_a_mailbox_over_its_quota() {
        let home = home();
        let delivered = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        delivered.fetch_add(usize::from(home.deliver(bytes(500), 8).is_ok()), Ordering::Relaxed);
                    }
                });
            }
        });
        // Letters that were counted on their way and then noted may have left some room; nothing is ever over.
        let names = home.names().len();
        assert_eq!(names, delivered.into_inner());
        assert!((42..=50).contains(&names), "{names}");
        assert!(std::fs::read_dir(home.path("tmp")).unwrap().next().is_none());
    }

    #[test]
    fn what_was_reserved_for_a_letter_that_failed_is_given_back() {
        let home = home();
        home.deliver(bytes(100), 8).unwrap();
        let (maildir, body) = (home.maildir(b"Maildir", bytes(100)), body(8));
        std::fs::remove_dir_all(home.path("new")).unwrap();
        deliver(b"h", Delivery { maildir: &maildir, letter: Letter { trace: b"T\n", body: &body } }).unwrap_err();
        let ledger = Ledger::open(home.1.as_fd(), b"Maildir", Bounds::Beneath, bytes(100)).unwrap();
        assert_eq!(ledger.read().unwrap().usage, Usage { bytes: 10, messages: 1 });
    }

    #[test]
    fn room_is_told_and_counted_before_it_is_denied() {
        let home = home();
        home.deliver(bytes(100), 48).unwrap();
        let quota = Quota { messages: 2, ..bytes(100) };
        let ledger = |quota| Ledger::open(home.1.as_fd(), b"Maildir", Bounds::Beneath, quota).unwrap();
        const NONE: u64 = u64::MAX;
        assert_eq!((ledger(bytes(100)).left_for(1).unwrap(), ledger(quota).left_for(1).unwrap()), ((50, NONE), (50, 1)));
        home.deliver(quota, 8).unwrap();
        assert_eq!(ledger(quota).left_for(1).unwrap(), (40, 0), "no message more");
        assert_eq!(ledger(Quota { messages: 5, ..Quota::default() }).left_for(1).unwrap(), (NONE, 3));
        assert_eq!(ledger(bytes(100)).left_for(1).unwrap(), (40, NONE));
        home.deliver(bytes(100), 38).unwrap();
        std::fs::remove_file(home.path("new").join(&home.names()[0])).unwrap();
        assert_ne!(ledger(bytes(100)).left_for(1).unwrap().0, 0, "somebody removed a file");
        ledger(Quota::default()).remove().unwrap();
        assert!(!home.path("maildirsize").exists());
        ledger(Quota::default()).remove().unwrap();
    }

    #[test]
    fn the_letter_that_crosses_the_line_is_noticed_once() {
        let home = home();
        let quota = Quota { warns_at: 50, ..bytes(100) };
        let crossed = |len| {
            let (maildir, body) = (home.maildir(b"Maildir", quota), body(len));
            deliver(b"h", Delivery { maildir: &maildir, letter: Letter { trace: b"T\n", body: &body } }).unwrap();
            [maildir.take_crossing(), maildir.take_crossing()]
        };
        assert_eq!([crossed(28), crossed(18), crossed(8)], [[false; 2], [true, false], [false; 2]]);
    }

    #[test]
    fn many_at_once_are_all_counted() {
        const EACH: usize = 40;
        let home = home();
        let quota = bytes(1_000_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..EACH).for_each(|_| home.deliver(quota, 8).unwrap()));
            }
            // Somebody counts all the while.
            scope.spawn(|| {
                let ledger = Ledger::open(home.1.as_fd(), b"Maildir", Bounds::Beneath, quota).unwrap();
                (0..100).for_each(|_| {
                    let _lock = lock(ledger.dir.as_fd(), FlockOperation::LockExclusive);
                    assert!(ledger.count(b"").is_ok());
                });
            });
        });
        let ledger = Ledger::open(home.1.as_fd(), b"Maildir", Bounds::Beneath, quota).unwrap();
        let (noted, real) = (ledger.read().unwrap().usage, directories(ledger.dir.as_fd(), b".", b"").unwrap());
        assert_eq!(real, Usage { bytes: 10 * 4 * EACH as i64, messages: 4 * EACH as i64 });
        assert!(noted.messages >= real.messages && noted.messages <= real.messages + 4, "{noted:?}: some twice, none not at all");
    }

    #[test]
    fn names_tell_lengths() {
        for (name, size) in [
            ("1.M2P3.h,S=77", Some(77)),
            ("1.M2P3.h,S=77:2,S", Some(77)),
            ("1.h,W=80,S=9:2,", Some(9)),
            ("1.h:2,S=5", None),
            ("1.h,S=", None),
            ("1.h,S=+5", None),
            ("1.h,S=99999999999999999999999", None),
            ("S=5", None),
        ] {
            assert_eq!(size_in_name(name.as_bytes()), size, "{name}");
        }
    }
}
