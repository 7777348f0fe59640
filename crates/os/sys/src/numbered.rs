//! Descriptors with a number that an interface fixes (the error text of the qmail-queue interface: 4 and 6;
//! the connection of serialsmtp: 6 and 7), if the caller opened them.

use rustix::fs::{FileType, OFlags};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// An own, close-on-exec copy of descriptor `number`, if it is open, a pipe or a socket, and may be written. Call it before anything
/// else is opened, or the number may be one of ours.
#[must_use]
pub fn writable_pipe(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC on any number is harmless: it fails if the number is not open.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, crate::inherited::FIRST) };
    if copy < 0 {
        return None;
    }
    // SAFETY: the kernel has just given us this number.
    let fd = unsafe { OwnedFd::from_raw_fd(copy) };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd).ok()?.st_mode);
    let mode = rustix::fs::fcntl_getfl(&fd).ok()? & OFlags::RWMODE;
    let writable = mode == OFlags::WRONLY || mode == OFlags::RDWR;
    (matches!(kind, FileType::Fifo | FileType::Socket) && writable).then_some(fd)
}

/// An own copy of descriptor `number`, if it is open for reading; the number itself will be closed in whatever this process becomes by exec.
/// Call it before anything else is opened.
#[must_use]
pub fn readable(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: as in `writable_pipe`.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, crate::inherited::FIRST) };
    if copy < 0 {
        return None;
    }
    // SAFETY: the kernel has just given us this number.
    let fd = unsafe { OwnedFd::from_raw_fd(copy) };
    // SAFETY: sets a flag of a number that is open, as the copy shows.
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    let mode = rustix::fs::fcntl_getfl(&fd).ok()? & OFlags::RWMODE;
    (mode != OFlags::WRONLY).then_some(fd)
}

/// An own copy of descriptor `number`, if it is open. Call it before anything else is opened, or the number may be one of ours.
#[must_use]
pub fn held(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: as in `writable_pipe`.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, crate::inherited::FIRST) };
    // SAFETY: the kernel has just given us this number.
    (copy >= 0).then(|| unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    #[test]
    fn only_what_can_carry_a_text() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let copy = super::writable_pipe(write.as_raw_fd()).unwrap();
        rustix::io::write(&copy, b"Dx").unwrap();
        let mut buf = [0; 4];
        assert_eq!(rustix::io::read(&read, &mut buf).unwrap(), 2);
        assert!(super::writable_pipe(read.as_raw_fd()).is_none());
        assert!(super::readable(read.as_raw_fd()).is_some() && super::readable(write.as_raw_fd()).is_none());
        let file = std::fs::File::options().write(true).open("/dev/null").unwrap();
        assert!(super::writable_pipe(file.as_raw_fd()).is_none());
        assert!(super::writable_pipe(987_654).is_none() && super::writable_pipe(-1).is_none());
    }
}
