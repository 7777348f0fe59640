//! The two clocks: UNIX seconds for what is stored and printed, CLOCK_BOOTTIME for timers (it never steps and counts suspend); and how
//! far local time is ahead.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Seconds since 1970 by the wall clock; 0 before 1970.
#[must_use]
pub fn unix_s() -> u64 {
    unix().as_secs()
}

/// The wall clock with its nanoseconds.
#[must_use]
pub fn unix() -> Duration {
    since_start(ClockId::Realtime)
}

/// Time since boot, suspend included; never steps back.
#[must_use]
pub fn boottime() -> Duration {
    since_start(ClockId::Boottime)
}

fn since_start(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// By how many seconds local time (TZ, /etc/localtime) is ahead of UTC at this moment; 0 where nobody knows.
#[must_use]
pub fn utc_offset_s(unix_s: u64) -> i64 {
    let Ok(time) = unix_s.try_into() else { return 0 };
    let mut local = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: reads one initialised number and fills `local`, or gives null; zeroes are a valid tm, too.
    let filled = unsafe { libc::localtime_r(&raw const time, local.as_mut_ptr()) };
    // SAFETY: as above.
    if filled.is_null() { 0 } else { unsafe { local.assume_init() }.tm_gmtoff }
}
