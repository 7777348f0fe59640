//! Signals as a readable descriptor (signalfd(2)), and SIGPIPE out of the way.

use rustix::process::Signal;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// The signals given to [`Signals::new`], blocked for the process and read from a descriptor.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks `signals` in this thread (call it before any thread is started) and opens a non-blocking descriptor for them.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        let set = set_of(signals);
        // SAFETY: `set` is initialised; a null old set is allowed.
        let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd just made this descriptor.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal that came, or `None`.
    #[must_use]
    pub fn next(&self) -> Option<Signal> {
        let mut info = [0u8; std::mem::size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::read(&self.0, &mut info[..]).ok()?;
        let number = info.get(..4).filter(|_| read == info.len())?;
        let number = i32::from_ne_bytes([*number.first()?, *number.get(1)?, *number.get(2)?, *number.get(3)?]);
        Signal::from_named_raw(number)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// SIGCHLD as it is without anyone's doing. Ignored, which every exec passes on, it would make the kernel keep no exit codes: the end
/// of a child could not be told from its success. [`crate::standard`] calls this at the start of every program, before its `main`.
pub(crate) fn mind_children() {
    // SAFETY: a system call with plain numbers.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Gives back default handling and an empty mask: for a child between fork and exec.
pub(crate) fn reset_in_child() {
    // SAFETY: both calls are async-signal-safe and get initialised arguments.
    unsafe {
        let empty = set_of(&[]);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

fn set_of(signals: &[Signal]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set; sigaddset gets valid signal numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal.as_raw());
        }
        set.assume_init()
    }
}
