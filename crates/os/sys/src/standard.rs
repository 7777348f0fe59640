//! Descriptors 0, 1 and 2 as the caller gave them: which of them were closed, and reading and writing them without std in between; and that
//! children of this process have exit codes.
//!
//! Rust opens `/dev/null` in the place of closed ones before `main`, so that no file gets such a number, and its `Stdin` and `Stdout`
//! take EBADF for the end of the input and for a write that was done. But a message that could not be read is not an empty message,
//! and what could not be written is lost. So this looks before the runtime does, and gives the descriptors as plain files. Whatever was
//! done with SIGCHLD by who started the process, it has its default from then on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

static WAS_CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// Was this descriptor closed at the start? `false` for any but 0, 1 and 2.
#[must_use]
pub fn was_closed(number: RawFd) -> bool {
    usize::try_from(number).ok().and_then(|number| WAS_CLOSED.get(number)).is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Standard input itself, unbuffered: its offset is that of the descriptor.
///
/// # Errors
/// It was closed, or there are no more descriptors; temporary.
pub fn input() -> io::Result<File> {
    itself(0, io::stdin().as_fd())
}

/// Standard output itself, unbuffered.
///
/// # Errors
/// It was closed, or there are no more descriptors; temporary.
pub fn output() -> io::Result<File> {
    itself(1, io::stdout().as_fd())
}

fn itself(number: RawFd, fd: BorrowedFd<'_>) -> io::Result<File> {
    if was_closed(number) {
        return Err(rustix::io::Errno::BADF.into());
    }
    Ok(fd.try_clone_to_owned()?.into())
}

/// Programs started from now on find closed what the caller had closed, where they inherit it: a program that cannot write what it has
/// to say must see that.
pub fn leave_closed() {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for (number, fd) in (0..).zip([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]) {
        if was_closed(number) {
            // It fails for no descriptor that is open, and this one is: the runtime saw to that.
            let _ = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC);
        }
    }
}

extern "C" fn look() {
    crate::signal::mind_children();
    for (number, flag) in (0..).zip(&WAS_CLOSED) {
        // SAFETY: F_GETFD on any number is harmless: it fails if the number is not open.
        flag.store(unsafe { libc::fcntl(number, libc::F_GETFD) } < 0, Ordering::Relaxed);
    }
}

// SAFETY: the loader calls each function of this section once, in a process of one thread, before Rust's runtime starts; `look` needs
// nothing of that, and arguments it does not name do no harm in the C calling convention.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_open_was_not_closed() {
        // The test runner has all three.
        assert!((-1..5).all(|number| !super::was_closed(number)));
    }
}
