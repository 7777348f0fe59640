//! mbox delivery (mbox(5)): lock, append, fsync; on any error the file is cut back to where it was.
//!
//! Beyond the classic program: the file's name is synced too (the delivery may have made it), and where an earlier writer was
//! cut off within a line, that line is ended first, so that it cannot swallow the `From ` line of this letter.

use crate::body::Stopped;
use crate::bounds::{open_at, open_dir, split_last};
use crate::{Bounds, Disk, Error, Letter};
use dotqmail::FromQuoter;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// How long to wait for somebody else's lock (qmail-local(8)).
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(30);
/// Pauses between attempts to get the lock: short at first, then this.
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(50);

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
pub fn deliver_mbox(disk: &dyn Disk, mbox: &Mbox<'_>, letter: &Letter<'_>) -> Result<(), Error> {
    deliver_waiting(disk, mbox, letter, LOCK_WAIT)
}

fn deliver_waiting(disk: &dyn Disk, mbox: &Mbox<'_>, letter: &Letter<'_>, lock_wait: Duration) -> Result<(), Error> {
    let file = open(mbox).map_err(|e| Error::OpenMbox(mbox.path.to_vec(), e))?;
    let is_locked = lock(&file, lock_wait)?;
    let end = file.metadata().map(|m| m.len()).map_err(|e| Error::WriteMbox(mbox.path.to_vec(), e))?;
    let result = append(disk, &file, end, mbox, letter)
        .and_then(|()| disk.sync_file(&file).and_then(|()| sync_name(disk, &file, mbox)).map_err(Stopped::Take));
    result.map_err(|stopped| {
        // Without the lock somebody else's letter may stand behind ours.
        if is_locked {
            let _ = disk.truncate(&file, end);
        }
        match stopped {
            Stopped::Read(e) => Error::Read(e),
            Stopped::Take(e) => Error::WriteMbox(mbox.path.to_vec(), e),
        }
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

fn append(disk: &dyn Disk, file: &File, end: u64, mbox: &Mbox<'_>, letter: &Letter<'_>) -> Result<(), Stopped<io::Error>> {
    let mut out: Vec<u8> = Vec::new();
    if is_cut_off(file, end) {
        out.push(b'\n');
    }
    out.extend_from_slice(mbox.from_line);
    out.extend_from_slice(letter.trace);
    let mut quoter = FromQuoter::default();
    letter.body.each_chunk(|chunk| {
        quoter.push(chunk, &mut out);
        disk.write(file, &mut [IoSlice::new(&out)])?;
        out.clear();
        Ok(true)
    })?;
    quoter.finish(&mut out);
    disk.write(file, &mut [IoSlice::new(&out)]).map_err(Stopped::Take)
}

/// Does the file end within a line? (If it cannot be read, assume the best.)
fn is_cut_off(file: &File, end: u64) -> bool {
    let mut last = [b'\n'];
    let Some(at) = end.checked_sub(1) else { return false };
    file.read_exact_at(&mut last, at).is_ok() && last != [b'\n']
}

/// The directory must be synced even if the file was there: whoever made it may have been killed before doing so.
fn sync_name(disk: &dyn Disk, file: &File, mbox: &Mbox<'_>) -> io::Result<()> {
    match open_dir(mbox.home, split_last(mbox.path).0, mbox.bounds) {
        Ok(dir) => disk.sync_dir(dir.as_fd()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => disk.sync_file_system(file),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::{Call, Recorder};
    use crate::{Body, Real};
    use std::io::Write;

    fn deliver_text(disk: &dyn Disk, dir: &std::path::Path, path: &[u8], text: &[u8]) -> Result<(), Error> {
        let home = File::open(dir).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        let body = Body::new(file).unwrap();
        let mbox = Mbox { home: home.as_fd(), path, bounds: Bounds::Anywhere, from_line: b"From s date\n" };
        deliver_waiting(disk, &mbox, &Letter { trace: b"T: t\n", body: &body }, Duration::from_millis(60))
    }

    #[test]
    fn letters_follow_each_other_and_are_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("Mailbox");
        deliver_text(&Real, dir.path(), b"./Mailbox", b"A: b\n\nFrom me\n>From you\nlast").unwrap();
        deliver_text(&Real, dir.path(), b"./Mailbox", b"").unwrap();
        let expected = b"From s date\nT: t\nA: b\n\n>From me\n>>From you\nlast\n\nFrom s date\nT: t\n\n";
        assert_eq!(std::fs::read(&path).unwrap().escape_ascii().to_string(), expected.escape_ascii().to_string());
        let long = [vec![b'y'; 200_000], b"\nFrom x\n".to_vec()].concat();
        deliver_text(&Real, dir.path(), std::os::unix::ffi::OsStrExt::as_bytes(dir.path().join("L").as_os_str()), &long).unwrap();
        assert!(std::fs::read(dir.path().join("L")).unwrap().ends_with(b"y\n>From x\n\n"));
    }

    #[test]
    fn a_line_that_was_cut_off_is_ended_first() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("m"), "From x\nhalf a li").unwrap();
        deliver_text(&Real, dir.path(), b"m", b"a\n").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("m")).unwrap(), "From x\nhalf a li\nFrom s date\nT: t\na\n\n");
    }

    #[test]
    fn a_failed_call_leaves_the_mbox_as_it_was() {
        for at in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("m"), "old\n").unwrap();
            let disk = Recorder { fail_at: Some(at), ..Recorder::default() };
            let error = deliver_text(&disk, dir.path(), b"m", b"a\nb").unwrap_err();
            assert_eq!(error.to_string(), "Unable to write m: Input/output error. (#4.3.0)");
            assert_eq!(std::fs::read_to_string(dir.path().join("m")).unwrap(), "old\n", "call {at}");
        }
        let disk = Recorder::default();
        deliver_text(&disk, tempfile::tempdir().unwrap().path(), b"m", b"a").unwrap();
        assert_eq!(*disk.calls.lock().unwrap(), [Call::Write, Call::Write, Call::SyncFile, Call::SyncDir]);
    }

    #[test]
    fn somebody_elses_lock_is_waited_for_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let held = File::create(dir.path().join("m")).unwrap();
        rustix::fs::flock(&held, FlockOperation::LockExclusive).unwrap();
        let error = deliver_text(&Real, dir.path(), b"m", b"a").unwrap_err();
        assert!(matches!(error, Error::Locked));
        assert_eq!(std::fs::read(dir.path().join("m")).unwrap(), b"");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| deliver_text(&Real, dir.path(), b"m", b"a"));
            std::thread::sleep(Duration::from_millis(10));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = deliver_text(&Real, dir.path(), b"./no/m", b"a").unwrap_err();
        assert_eq!(error.to_string(), "Unable to open ./no/m: No such file or directory. (#4.2.1)");
        let error = deliver_text(&Real, dir.path(), b".", b"a").unwrap_err();
        assert_eq!(error.to_string(), "Unable to open .: Is a directory. (#4.2.1)");
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
                        deliver_mbox(&Real, &mbox, &Letter { trace: b"", body: &body }).unwrap();
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
