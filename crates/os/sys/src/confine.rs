//! What a process does to itself before it touches a stranger's byte: limits, no_new_privs, not dumpable.

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use std::io;

/// Bounds of a process, set as both soft and hard limit.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Address space in bytes; `None` leaves it (a runtime that maps lazily).
    pub memory: Option<u64>,
    /// Open descriptors.
    pub files: u64,
    /// Largest file it may write, in bytes.
    pub file_size: Option<u64>,
}

/// Sets the limits; a hard limit that is already lower stays.
///
/// # Errors
/// What setrlimit(2) says.
pub fn limit(limits: &Limits) -> io::Result<()> {
    for (resource, value) in [
        (Resource::Nofile, Some(limits.files)),
        (Resource::As, limits.memory),
        (Resource::Fsize, limits.file_size),
        (Resource::Core, Some(0)),
    ] {
        let Some(wanted) = value else { continue };
        let hard = rustix::process::getrlimit(resource).maximum;
        let value = hard.map_or(wanted, |hard| hard.min(wanted));
        rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })?;
    }
    Ok(())
}

/// No exec gives more rights from here on (needed by Landlock and seccomp without CAP_SYS_ADMIN).
///
/// # Errors
/// What prctl(2) says.
pub fn no_new_privs() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// No core files, and no ptrace or /proc/PID/mem by others of the same uid.
///
/// # Errors
/// What prctl(2) says.
pub fn not_dumpable() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Does a call by a number of the x32 ABI reach the kernel's table? (It may have none: that is another error than a filter's.)
#[must_use]
pub fn reaches_x32() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: getpid takes no argument and changes nothing, whatever its number is taken for here.
        let answer = unsafe { libc::syscall(libc::SYS_getpid | 0x4000_0000) };
        answer >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EPERM)
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// This process is killed with SIGKILL when its parent dies. Set in the child; the caller checks `parent` afterwards.
///
/// # Errors
/// What prctl(2) says, or the parent is gone already.
pub fn die_with_parent(parent: Option<rustix::process::Pid>) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    if rustix::process::getppid() != parent {
        return Err(io::Error::other("the parent is gone"));
    }
    Ok(())
}
