//! POP-before-SMTP: which addresses may relay because somebody has opened a mailbox from there (`control/popbeforesmtp`).
//!
//! In memory only: after a restart everybody fetches mail once more. Guarantees: at most [`ADDRESSES_MAX`] addresses, the one that was
//! seen longest ago goes first; a loopback address is never remembered, since all programs and unencrypting proxies of a host share it.

use control::{ControlError, Root, Watched};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

/// Some 10 MiB; more users than fetch mail within an hour.
const ADDRESSES_MAX: usize = 100_000;
/// A longer time is no bound: the address is somebody else's by then.
const MINUTES_MAX: u64 = 24 * 60;

/// The addresses and the file that says for how long they count.
pub(crate) struct Relays {
    window: Watched<Duration>,
    seen: Seen,
}

impl Relays {
    pub(crate) fn new(root: &Root) -> Self {
        let parse = |text: Option<&[u8]>| {
            let minutes = text.and_then(control::read::int_of).unwrap_or(0).min(MINUTES_MAX);
            Ok(Duration::from_secs(minutes.saturating_mul(60)))
        };
        Self { window: Watched::new(root.control_file("popbeforesmtp"), parse), seen: Seen::default() }
    }

    /// Somebody has opened a mailbox from `address`.
    ///
    /// # Errors
    /// The file cannot be read; temporary. Nothing is remembered.
    pub(crate) fn note(&mut self, address: IpAddr, now: Duration) -> Result<(), ControlError> {
        let window = *self.window.get()?;
        self.seen.note(address, now, window);
        Ok(())
    }

    /// May `address` relay?
    ///
    /// # Errors
    /// The file cannot be read; temporary.
    pub(crate) fn allows(&mut self, address: IpAddr, now: Duration) -> Result<bool, ControlError> {
        let window = *self.window.get()?;
        Ok(self.seen.allows(address, now, window))
    }
}

/// When each address was seen, in the time since boot.
#[derive(Debug, Default)]
struct Seen {
    at: HashMap<IpAddr, Duration>,
    oldest: BTreeSet<(Duration, IpAddr)>,
}

impl Seen {
    fn note(&mut self, address: IpAddr, now: Duration, window: Duration) {
        let address = address.to_canonical();
        if window.is_zero() || address.is_loopback() {
            return;
        }
        if let Some(before) = self.at.insert(address, now) {
            self.oldest.remove(&(before, address));
        }
        self.oldest.insert((now, address));
        while let Some(&(at, oldest)) = self.oldest.first() {
            if self.at.len() <= ADDRESSES_MAX && now.saturating_sub(at) < window {
                break;
            }
            self.oldest.pop_first();
            self.at.remove(&oldest);
        }
    }

    fn allows(&self, address: IpAddr, now: Duration, window: Duration) -> bool {
        self.at.get(&address.to_canonical()).is_some_and(|at| now.saturating_sub(*at) < window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(600);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    #[test]
    fn an_address_counts_for_its_time_and_no_other_does() {
        let mut seen = Seen::default();
        seen.note(ip("192.0.2.1"), at(1000), WINDOW);
        for (address, second, allowed) in [
            ("192.0.2.1", 1000, true),
            ("::ffff:192.0.2.1", 1599, true),
            ("192.0.2.1", 1600, false),
            ("192.0.2.2", 1000, false),
            ("2001:db8::1", 1000, false),
        ] {
            assert_eq!(seen.allows(ip(address), at(second), WINDOW), allowed, "{address} at {second}");
        }
        seen.note(ip("192.0.2.1"), at(1599), WINDOW);
        assert!(seen.allows(ip("192.0.2.1"), at(2198), WINDOW), "each login counts anew");
        assert!(!seen.allows(ip("192.0.2.1"), at(1700), at(60)), "a shorter time holds at once");
        assert!(!seen.allows(ip("192.0.2.1"), at(1599), Duration::ZERO), "off");
        for never in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            seen.note(ip(never), at(1599), WINDOW);
            assert!(!seen.allows(ip(never), at(1599), WINDOW), "{never}");
        }
        seen.note(ip("192.0.2.9"), at(1599), Duration::ZERO);
        assert_eq!(seen.at.len(), 1);
    }

    #[test]
    fn what_is_too_old_or_too_much_is_forgotten() {
        let mut seen = Seen::default();
        for n in 0..u32::try_from(ADDRESSES_MAX).unwrap() + 5 {
            seen.note(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into(), at(1000), WINDOW);
        }
        assert_eq!((seen.at.len(), seen.oldest.len()), (ADDRESSES_MAX, ADDRESSES_MAX));
        assert!(seen.allows(ip("10.0.0.5"), at(1000), WINDOW) && !seen.allows(ip("10.0.0.4"), at(1000), WINDOW));
        seen.note(ip("192.0.2.1"), at(1600), WINDOW);
        assert_eq!((seen.at.len(), seen.oldest.len()), (1, 1));
    }
}
