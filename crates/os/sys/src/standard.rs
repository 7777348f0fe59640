//! Which of descriptors 0, 1 and 2 were closed when this process was started; and that its children have exit codes.
//!
//! Rust opens `/dev/null` in their place before `main`, so that no file gets such a number. But a message that could not be read
//! is not an empty message: whoever takes one from descriptor 0 has to know. So this looks before the runtime does. Whatever was done with
//! SIGCHLD by who started the process, it has its default from then on.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

static WAS_CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// Was this descriptor closed at the start? `false` for any but 0, 1 and 2.
#[must_use]
pub fn was_closed(number: RawFd) -> bool {
    usize::try_from(number).ok().and_then(|number| WAS_CLOSED.get(number)).is_some_and(|flag| flag.load(Ordering::Relaxed))
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
