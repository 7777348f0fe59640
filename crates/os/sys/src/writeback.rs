//! Tells the kernel to start writing a file's pages now, so that the fsync(2) that follows finds less to wait for.
//!
//! No durability comes from this: without the fsync nothing is promised.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Starts the write-back of all of `file` and does not wait for it. A hint: a file system that cannot is no error.
pub fn start(file: BorrowedFd<'_>) {
    // SAFETY: a system call on a borrowed descriptor and plain numbers; offset 0 and length 0 mean the whole file.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn the_file_stays_as_it_is_and_nothing_fails_on_a_pipe() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"letter").unwrap();
        super::start(file.as_fd());
        assert_eq!(file.metadata().unwrap().len(), 6);
        let (read, _write) = rustix::pipe::pipe().unwrap();
        super::start(read.as_fd());
    }
}
