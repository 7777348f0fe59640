//! The lock of a classic qmail-send: `lock/sendmutex`, held as long as it runs on the queue.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::{Failure, io_failure};

/// The lock is held as long as this lives.
pub(crate) struct Lock {
    _file: Option<File>,
}

/// Takes it. Where there is no lock file no qmail-send has ever run, or it is a copy of a queue.
///
/// # Errors
/// A qmail-send runs, or another import or export; the directory is no queue.
pub(crate) fn take(dir: &Path) -> Result<Lock, Failure> {
    if !dir.join("mess").is_dir() {
        let inside = dir.join("queue/mess").is_dir().then(|| dir.join("queue"));
        let advice = inside.map(|inside| format!("; its queue is {}", inside.display())).unwrap_or_default();
        return Err(Failure::permanent(format!("{}: is no classic queue: it has no directory mess{advice}", dir.display())));
    }
    let path = dir.join("lock/sendmutex");
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // What is on a disk that cannot be written is read all the same.
    let opened = rustix::fs::open(&path, OFlags::RDWR | flags, Mode::empty()).or_else(|errno| {
        if errno == Errno::ROFS { rustix::fs::open(&path, OFlags::RDONLY | flags, Mode::empty()) } else { Err(errno) }
    });
    let file = match opened {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(Lock { _file: None }),
        Err(errno) => return Err(io_failure(&path, &errno.into())),
    };
    let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    // It was built with either kind of lock.
    let locked = locked.and_then(|()| rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive));
    match locked {
        Ok(()) => Ok(Lock { _file: Some(file) }),
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => Err(Failure::temporary(format!(
            "{}: is locked: a classic qmail-send runs on this queue (or another qmail import or export); stop it first",
            path.display()
        ))),
        // Opened for reading alone: the first kind is what there is.
        Err(Errno::BADF) => Ok(Lock { _file: Some(file) }),
        Err(errno) => Err(io_failure(&path, &errno.into())),
    }
}
