//! Unique names of messages: `TIME.M<usec>P<pid>Q<n>.HOST` (the modern form of maildir(5)). In `new/` the length follows,
//! `,S=<bytes>`, as Maildir++ has it, and the length with CRLF, `,W=<bytes>`, as Dovecot has it.
//!
//! One process never makes a name twice, whatever its clock does, since the counter n never repeats; two processes differ in
//! their pid, or, when a pid is used again, in the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Most bytes of the host's name in a message's name: with the digits before it and `:2,` and flags behind it, a name stays
/// far below the 255 bytes that file systems allow.
const HOST_LEN_MAX: usize = 128;

static COUNTER: AtomicU64 = AtomicU64::new(1);

/// This machine's name as it stands in message names: `/` as `\057`, `:` as `\072` (maildir(5)), cut to a bound.
#[must_use]
pub fn host_name() -> Vec<u8> {
    escape(rustix::system::uname().nodename().to_bytes())
}

/// A name that this process has not made before.
#[must_use]
pub(crate) fn unique(now: Duration, host: &[u8]) -> Vec<u8> {
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let pid = rustix::process::getpid().as_raw_nonzero();
    let mut name = format!("{}.M{}P{pid}Q{n}.", now.as_secs(), now.subsec_micros()).into_bytes();
    name.extend_from_slice(host);
    name
}

fn escape(host: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for &b in host {
        let piece: &[u8] = match b {
            b'/' => b"\\057",
            b':' => b"\\072",
            0..=32 | 127..=255 => b"_",
            _ => &[b],
        };
        if out.len().saturating_add(piece.len()) > HOST_LEN_MAX {
            break;
        }
        out.extend_from_slice(piece);
    }
    if out.is_empty() { b"localhost".to_vec() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_name_is_made_twice_even_when_the_clock_stands() {
        let names: HashSet<_> = (0..1000).map(|_| unique(Duration::new(5, 6000), b"h")).collect();
        assert_eq!(names.len(), 1000);
        let name = String::from_utf8(names.into_iter().next().unwrap()).unwrap();
        assert!(name.starts_with("5.M6P") && name.ends_with(".h"), "{name}");
    }

    #[test]
    fn a_host_name_cannot_leave_the_directory_or_look_like_flags() {
        assert_eq!(escape(b"a/b:c"), b"a\\057b\\072c");
        assert_eq!(escape(b""), b"localhost");
        assert_eq!(escape(b"a\nb"), b"a_b");
        for b in 0..=255u8 {
            let long = escape(&[b; 300]);
            assert!(long.len() <= HOST_LEN_MAX && !long.contains(&b'/') && !long.contains(&b':'), "{b}");
        }
        assert!(!host_name().is_empty());
    }
}
