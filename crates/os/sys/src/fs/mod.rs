//! The seam between what must be durable and the disk: every create, write, sync, rename, link, unlink, truncate, allocate and
//! directory sync of the spool and of Maildir deliveries goes through [`Disk`] and [`DiskFile`].
//!
//! Three implementations: [`real::RealDisk`] (system calls, always below one directory, never through a symbolic link),
//! [`power::PowerDisk`] (in memory; knows what a power cut may leave), [`fault::FaultDisk`] (any of them with errors put in).
//! Paths are relative to the root of the disk. Each sync is named, so that a test can leave out one kind and see that it mattered.

pub mod fault;
pub mod power;
pub mod real;

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::path::Path;

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    ReadWrite,
}

/// The size of the file system, as far as this user may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

/// A directory tree. All errors are those of the system call; nothing is retried but EINTR.
pub trait Disk: Send + Sync {
    /// Makes a file that must not exist, for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists`; no space, no inodes, no descriptors.
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file. Neither it nor a directory on the way may be a symbolic link.
    ///
    /// # Errors
    /// `NotFound` and the like.
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>>;
    /// Makes a directory.
    ///
    /// # Errors
    /// `AlreadyExists`; no space, no inodes.
    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// The names in a directory, sorted, without `.` and `..`.
    ///
    /// # Errors
    /// `NotFound` and the like.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;
    /// Gives a file another name, replacing what had it.
    ///
    /// # Errors
    /// `NotFound` and the like.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file another name, which must not exist.
    ///
    /// # Errors
    /// `AlreadyExists` and the like.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name, which must not exist.
    ///
    /// # Errors
    /// `AlreadyExists` and the like.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Takes a name away.
    ///
    /// # Errors
    /// `NotFound` and the like.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Makes the names of a directory durable.
    ///
    /// # Errors
    /// EIO: what is on the disk is unknown.
    fn sync_dir(&self, path: &Path, why: &'static str) -> io::Result<()>;
    /// # Errors
    /// Those of statvfs.
    fn space(&self) -> io::Result<Space>;
}

/// An open file. Offsets are absolute; there is no position.
pub trait DiskFile: Send + Sync {
    /// Reads some bytes; 0 at the end.
    ///
    /// # Errors
    /// EIO.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all pieces one after the other.
    ///
    /// # Errors
    /// ENOSPC, EIO …; some bytes may have been written.
    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Makes content and attributes durable (fsync). After an error what is on the disk is unknown, and a second try proves nothing.
    ///
    /// # Errors
    /// EIO, ENOSPC.
    fn sync(&self, why: &'static str) -> io::Result<()>;
    /// Makes the content durable (fdatasync), and the length if it changed.
    ///
    /// # Errors
    /// As [`DiskFile::sync`].
    fn sync_data(&self, why: &'static str) -> io::Result<()>;
    /// Starts to write the content out and does not wait: a sync that follows finds less to do. It promises nothing.
    fn start_writeback(&self) {}
    /// # Errors
    /// EIO and the like.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Reserves space and extends the file to `len`, reading as zeros.
    ///
    /// # Errors
    /// ENOSPC; `Unsupported` where the file system cannot.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// # Errors
    /// Those of fstat.
    fn size(&self) -> io::Result<u64>;
    /// A descriptor of the file for another process; from the simulator a copy.
    ///
    /// # Errors
    /// Out of descriptors.
    fn into_fd(self: Box<Self>) -> io::Result<OwnedFd>;
}

/// Fills `buf` from `offset` on.
///
/// # Errors
/// `UnexpectedEof` when the file ends before; EIO.
pub fn read_exact_at(file: &dyn DiskFile, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        let got = file.read_at(buf, offset)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf = buf.get_mut(got..).unwrap_or_default();
        offset = offset.saturating_add(got as u64);
    }
    Ok(())
}

/// Makes a directory whose name is durable. One that is there is no error: whoever made it may have died before the sync.
///
/// # Errors
/// As [`Disk::make_dir`] and [`Disk::sync_dir`].
pub fn make_dir_durable(disk: &dyn Disk, path: &Path, mode: u32, why: &'static str) -> io::Result<()> {
    match disk.make_dir(path, mode) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    disk.sync_dir(path.parent().unwrap_or(Path::new("")), why)
}

/// No space, no quota, or no inodes left: the caller answers "full" (452) instead of "failed" (451).
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}
