//! Cuts a file system off from its disk, as a power failure would: an aid for tests, which no program calls.
//!
//! From that moment nothing reaches the disk any more and every change fails with EIO, until it is unmounted and mounted again.
//! Works on ext4, XFS and F2FS; needs root.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Of the kernel's uapi/linux/fs.h.
const FS_IOC_SHUTDOWN: libc::Ioctl = libc::_IOR::<u32>('X' as u32, 125);
/// EXT4_GOING_FLAGS_NOLOGFLUSH: not even the journal is written out.
const GOING_NO_LOG_FLUSH: u32 = 2;

/// Shuts down the file system that `file` is on, without writing anything out. What no sync has covered is lost.
///
/// # Errors
/// Not root, or the file system has no such call.
pub fn file_system(file: BorrowedFd<'_>) -> io::Result<()> {
    let flags = GOING_NO_LOG_FLUSH;
    // SAFETY: a system call on a borrowed descriptor that reads the four bytes at `flags`, which outlive it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_SHUTDOWN, std::ptr::from_ref(&flags)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    #[test]
    fn where_there_is_nothing_to_shut_down_it_is_an_error() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        assert!(super::file_system(read.as_fd()).is_err());
    }
}
