//! mbox delivery (mbox(5)): lock, append, fsync; on any error the file is cut back to where it was.
//!
//! Beyond the classic program: the file's name is synced too (the delivery may have made it), and where an earlier writer was
//! cut off within a line, that line is ended first, so that it cannot swallow the `From ` line of this letter.

use crate::body::Stopped;
use crate::bounds::{open_at, open_dir, split_last};
use crate::{Bounds, Error, Letter};
use dotqmail::FromQuoter;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use sys::fs::real::{RealDisk, RealFile};
use sys::fs::{Disk, DiskFile, read_exact_at};

/// How long to wait for somebody else's lock (qmail-local(8)).
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(30);
/// Pauses between attempts to get the lock: short at first, then this.
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(50);

/// How often the file may be replaced while its lock is waited for.
const REPLACED_MAX: u32 = 8;

/// An mbox to deliver into.
#[derive(Debug, Clone, Copy)]
pub struct Mbox<'a> {
    pub home: BorrowedFd<'a>,
    /// From `home`, or absolute.
    pub path: &'a [u8],
    pub bounds: Bounds,
    /// The `From ` line that starts the letter, with its LF.
    pub from_line: &'a [u8],
}

/// Appends a letter.
///
/// # Errors
/// Temporary; what was written has been cut off again, unless the file could not be locked.
pub fn deliver_mbox(mbox: &Mbox<'_>, letter: &Letter<'_>) -> Result<(), Error> {
    deliver_waiting(mbox, letter, LOCK_WAIT)
}

fn deliver_waiting(mbox: &Mbox<'_>, letter: &Letter<'_>, lock_wait: Duration) -> Result<(), Error> {
    let (file, is_locked) = open_locked(mbox, lock_wait)?;
    let file = RealFile::new(file);
    let append = Append { file: &file, is_locked, from_line: mbox.from_line, sync_name: &|| sync_name(&file, mbox) };
    append.carry_out(letter).map_err(|stopped| match stopped {
        Stopped::Read(e) => Error::Read(e),
        Stopped::Take(e) => Error::WriteMbox(mbox.path.to_vec(), e),
    })
}

fn open(mbox: &Mbox<'_>) -> io::Result<File> {
    let with = |access: OFlags| {
        let flags = access | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK;
        open_at(mbox.home, mbox.path, flags, Mode::RUSR | Mode::WUSR, mbox.bounds)
    };
    let fd: OwnedFd = match with(OFlags::RDWR) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => with(OFlags::WRONLY)?,
        result => result?,
    };
    Ok(File::from(fd))
}

/// The file that has the name, with its lock. Whoever held that may have put another file in its place (maildir2mbox) or taken it away:
/// a letter behind it would be lost with the old one.
fn open_locked(mbox: &Mbox<'_>, lock_wait: Duration) -> Result<(File, bool), Error> {
    let failed = |e| Error::OpenMbox(mbox.path.to_vec(), e);
    for _ in 0..REPLACED_MAX {
        let file = open(mbox).map_err(failed)?;
        let is_locked = lock(&file, lock_wait)?;
        if has_the_name(&file, mbox).map_err(failed)? {
            return Ok((file, is_locked));
        }
    }
    Err(Error::Locked)
}

fn has_the_name(file: &File, mbox: &Mbox<'_>) -> io::Result<bool> {
    let named = match open_at(mbox.home, mbox.path, OFlags::PATH, Mode::empty(), mbox.bounds) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        named => named?,
    };
    let (ours, named) = (rustix::fs::fstat(file)?, rustix::fs::fstat(&named)?);
    Ok((ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino))
}

/// Gets the lock, or says that this file cannot be locked (`false`; the classic program goes on then).
fn lock(file: &File, wait: Duration) -> Result<bool, Error> {
    let start = sys::clock::boottime();
    let mut pause = Duration::from_millis(1);
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return Ok(false),
        }
        if sys::clock::boottime().saturating_sub(start) >= wait {
            return Err(Error::Locked);
        }
        std::thread::sleep(pause);
        pause = pause.saturating_mul(2).min(LOCK_PAUSE_MAX);
    }
}

/// What follows the lock.
struct Append<'a> {
    file: &'a dyn DiskFile,
    is_locked: bool,
    from_line: &'a [u8],
    sync_name: &'a dyn Fn() -> io::Result<()>,
}

impl Append<'_> {
    fn carry_out(&self, letter: &Letter<'_>) -> Result<(), Stopped<io::Error>> {
        let end = self.file.size().map_err(Stopped::Take)?;
        let durable = || self.file.sync("mbox").and_then(|()| (self.sync_name)()).map_err(Stopped::Take);
        let result = self.write(end, letter).and_then(|()| durable());
        // Without the lock somebody else's letter may stand behind ours.
        if result.is_err() && self.is_locked {
            let _ = self.file.truncate(end);
        }
        result
    }

    fn write(&self, mut end: u64, letter: &Letter<'_>) -> Result<(), Stopped<io::Error>> {
        let mut out: Vec<u8> = Vec::new();
        if is_cut_off(self.file, end) {
            out.push(b'\n');
        }
        out.extend_from_slice(self.from_line);
        out.extend_from_slice(letter.trace);
        let mut quoter = FromQuoter::default();
        letter.body.each_chunk(|chunk| {
            quoter.push(chunk, &mut out);
            self.file.write_at(&[IoSlice::new(&out)], end)?;
            end = end.saturating_add(out.len() as u64);
            out.clear();
            Ok(true)
        })?;
        quoter.finish(&mut out);
        self.file.write_at(&[IoSlice::new(&out)], end).map_err(Stopped::Take)
    }
}

/// Does the file end within a line? (If it cannot be read, assume the best.)
fn is_cut_off(file: &dyn DiskFile, end: u64) -> bool {
    let mut last = [b'\n'];
    let Some(at) = end.checked_sub(1) else { return false };
    read_exact_at(file, &mut last, at).is_ok() && last != [b'\n']
}

/// The directory must be synced even if the file was there: whoever made it may have been killed before doing so.
/// One that may be written but not opened is synced with all of its file system.
fn sync_name(file: &RealFile, mbox: &Mbox<'_>) -> io::Result<()> {
    match open_dir(mbox.home, split_last(mbox.path).0, mbox.bounds) {
        Ok(dir) => RealDisk::new(dir).sync_dir(Path::new(""), "name of an mbox"),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(rustix::fs::syncfs(file)?),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Body;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use sys::fs::fault::{FaultDisk, Plan};
    use sys::fs::power::PowerDisk;

    fn body(text: &[u8]) -> Body {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        Body::new(file).unwrap()
    }

    fn deliver_text(dir: &Path, path: &[u8], text: &[u8]) -> Result<(), Error> {
        let home = File::open(dir).unwrap();
        let body = body(text);
        let mbox = Mbox { home: home.as_fd(), path, bounds: Bounds::Anywhere, from_line: b"From s date\n" };
        deliver_waiting(&mbox, &Letter { trace: b"T: t\n", body: &body }, Duration::from_millis(60))
    }

    #[test]
    fn letters_follow_each_other_and_are_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("Mailbox");
        deliver_text(dir.path(), b"./Mailbox", b"A: b\n\nFrom me\n>From you\nlast").unwrap();
        deliver_text(dir.path(), b"./Mailbox", b"").unwrap();
        let expected = b"From s date\nT: t\nA: b\n\n>From me\n>>From you\nlast\n\nFrom s date\nT: t\n\n";
        assert_eq!(std::fs::read(&path).unwrap().escape_ascii().to_string(), expected.escape_ascii().to_string());
        let long = [vec![b'y'; 200_000], b"\nFrom x\n".to_vec()].concat();
        deliver_text(dir.path(), std::os::unix::ffi::OsStrExt::as_bytes(dir.path().join("L").as_os_str()), &long).unwrap();
        assert!(std::fs::read(dir.path().join("L")).unwrap().ends_with(b"y\n>From x\n\n"));
    }

    #[test]
    fn a_line_that_was_cut_off_is_ended_first() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("m"), "From x\nhalf a li").unwrap();
        deliver_text(dir.path(), b"m", b"a\n").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("m")).unwrap(), "From x\nhalf a li\nFrom s date\nT: t\na\n\n");
    }

    const OLD: &[u8] = b"From a date\nold\n\n";
    const NEW: &[u8] = b"From a date\nold\n\nFrom s date\nT: t\na\nb\n\n";

    /// Delivers to `file`, which is `m` on `disk`.
    fn deliver_on(disk: &dyn Disk, file: &dyn DiskFile) -> Result<(), Stopped<io::Error>> {
        let sync_name = || disk.sync_dir(Path::new(""), "name of an mbox");
        let append = Append { file, is_locked: true, from_line: b"From s date\n", sync_name: &sync_name };
        append.carry_out(&Letter { trace: b"T: t\n", body: &body(b"a\nb") })
    }

    fn content(disk: &dyn Disk) -> Option<Vec<u8>> {
        let file = disk.open(Path::new("m"), sys::fs::Access::Read).ok()?;
        let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
        read_exact_at(file.as_ref(), &mut bytes, 0).unwrap();
        Some(bytes)
    }

    #[test]
    fn a_failed_call_leaves_the_mbox_as_it_was() {
        for at in 0.. {
            let plan = Plan::new(|call| call != sys::fs::fault::Call::Truncate);
            let disk = FaultDisk::new(Arc::new(PowerDisk::new()), Arc::clone(&plan));
            let file = disk.create(Path::new("m"), 0o600).unwrap();
            file.write_at(&[IoSlice::new(OLD)], 0).unwrap();
            plan.fail(at, 1, 5);
            let calls = plan.calls();
            let result = deliver_on(&disk, file.as_ref());
            let is_struck = plan.calls() - calls > at;
            plan.fail(0, 0, 5);
            match result {
                // Whether the last line was cut off is found out by reading: without that the letter is delivered all the same.
                Ok(()) if at == 0 => assert_eq!(content(&disk).unwrap(), NEW),
                Ok(()) => {
                    assert_eq!((is_struck, at), (false, 5));
                    return;
                }
                Err(_) => assert_eq!(content(&disk).unwrap(), OLD, "call {at}"),
            }
        }
    }

    /// Cuts the power at every step of a delivery, in every way; `None` if what was said stayed and what stood before did too.
    fn lost_by_a_power_cut(left_out: &'static str) -> Option<&'static str> {
        let disk = PowerDisk::new();
        let file = disk.create(Path::new("m"), 0o600).unwrap();
        file.write_at(&[IoSlice::new(OLD)], 0).unwrap();
        file.sync("before").unwrap();
        disk.drop_syncs(left_out);
        disk.start_recording();
        deliver_on(&disk, file.as_ref()).unwrap();
        disk.set_mark(1);
        disk.create(Path::new("other"), 0o600).unwrap();
        for snapshot in disk.take_snapshots() {
            assert!(snapshot.pieces() <= 12, "every way can be tried");
            for kept in 0..1_u32 << snapshot.pieces() {
                let left = content(&snapshot.cut(|piece| kept >> piece & 1 == 1));
                if snapshot.mark == 1 && left.as_deref() != Some(NEW) {
                    return Some("what was said");
                }
                if left.is_some_and(|left| !left.starts_with(OLD)) {
                    return Some("what stood before");
                }
            }
        }
        None
    }

    #[test]
    fn what_was_said_survives_a_power_cut_and_each_sync_is_needed() {
        assert_eq!(lost_by_a_power_cut("none"), None);
        assert_eq!(lost_by_a_power_cut("mbox"), Some("what was said"));
        assert_eq!(lost_by_a_power_cut("name of an mbox"), Some("what was said"));
    }

    #[test]
    fn somebody_elses_lock_is_waited_for_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let held = File::create(dir.path().join("m")).unwrap();
        rustix::fs::flock(&held, FlockOperation::LockExclusive).unwrap();
        let error = deliver_text(dir.path(), b"m", b"a").unwrap_err();
        assert!(matches!(error, Error::Locked));
        assert_eq!(std::fs::read(dir.path().join("m")).unwrap(), b"");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| deliver_text(dir.path(), b"m", b"a"));
            std::thread::sleep(Duration::from_millis(10));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }

    /// As maildir2mbox does: under the lock another file takes the name, or nothing has it any more.
    #[test]
    fn a_letter_that_waited_goes_into_the_file_that_has_the_name_then() {
        for replaced in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("m");
            std::fs::write(&path, OLD).unwrap();
            let held = File::options().append(true).open(&path).unwrap();
            rustix::fs::flock(&held, FlockOperation::LockExclusive).unwrap();
            std::thread::scope(|scope| {
                let home = File::open(dir.path()).unwrap();
                let waiting = scope.spawn(move || {
                    let body = body(b"a\nb");
                    let mbox = Mbox { home: home.as_fd(), path: b"m", bounds: Bounds::Anywhere, from_line: b"From s date\n" };
                    deliver_mbox(&mbox, &Letter { trace: b"T: t\n", body: &body })
                });
                // Not before it has the old file open: it is then in this process twice.
                let has_opened = || links_to(&path) >= 2;
                (0..10_000)
                    .find(|_| {
                        has_opened() || {
                            std::thread::sleep(Duration::from_millis(1));
                            false
                        }
                    })
                    .expect("it waits");
                if replaced {
                    std::fs::write(dir.path().join("m2"), OLD).unwrap();
                    std::fs::rename(dir.path().join("m2"), &path).unwrap();
                } else {
                    std::fs::remove_file(&path).unwrap();
                }
                drop(held);
                waiting.join().unwrap().unwrap();
            });
            let expected = if replaced { NEW } else { NEW.strip_prefix(OLD).unwrap() };
            assert_eq!(std::fs::read(&path).unwrap().escape_ascii().to_string(), expected.escape_ascii().to_string());
        }
    }

    /// Descriptors of this process that are this file.
    fn links_to(path: &Path) -> usize {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == path)).count()
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = deliver_text(dir.path(), b"./no/m", b"a").unwrap_err();
        assert_eq!(error.to_string(), "Unable to open ./no/m: file does not exist. (#4.2.1)");
        let error = deliver_text(dir.path(), b".", b"a").unwrap_err();
        assert_eq!(error.to_string(), "Unable to open .: is a directory. (#4.2.1)");
    }

    #[test]
    fn many_writers_never_mix_their_letters() {
        let dir = tempfile::tempdir().unwrap();
        let home = File::open(dir.path()).unwrap();
        std::thread::scope(|scope| {
            for writer in 0..4u8 {
                let home = &home;
                scope.spawn(move || {
                    for _ in 0..5 {
                        let mut file = tempfile::tempfile().unwrap();
                        file.write_all(&[&[b'a' + writer; 70_000][..], b"\n"].concat()).unwrap();
                        let body = Body::new(file).unwrap();
                        let mbox = Mbox { home: home.as_fd(), path: b"m", bounds: Bounds::Beneath, from_line: b"From x\n" };
                        deliver_mbox(&mbox, &Letter { trace: b"", body: &body }).unwrap();
                    }
                });
            }
        });
        let text = std::fs::read(dir.path().join("m")).unwrap();
        let letters: Vec<_> = text.split(|b| *b == b'\n').filter(|l| l.len() > 10).collect();
        assert_eq!(letters.len(), 20);
        assert!(letters.iter().all(|l| l.len() == 70_000 && l.iter().all(|b| b == &l[0])));
    }
}
