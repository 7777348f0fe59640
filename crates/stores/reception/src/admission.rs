//! How many sessions there may be: in this worker, and of one client address in this worker.
//!
//! The workers share the listening sockets but no memory, so each holds its share of the total, and the bound of an address
//! is a worker's: the true bound is that many times the number of workers. IPv6 clients count by their /64, which is one customer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use tokio::sync::Notify;

/// The places of a worker.
#[derive(Debug)]
pub struct Admission {
    sessions_max: usize,
    per_address_max: usize,
    counts: RefCell<Counts>,
    /// The last session has ended.
    empty: Notify,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A place that is held until it is dropped.
#[derive(Debug)]
pub struct Place {
    admission: Rc<Admission>,
    /// `None` for a client whose address has no bound.
    address: Option<IpAddr>,
}

impl Admission {
    #[must_use]
    pub fn new(sessions_max: usize, per_address_max: usize) -> Self {
        Self { sessions_max, per_address_max, counts: RefCell::default(), empty: Notify::new() }
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.counts.borrow().all >= self.sessions_max
    }

    /// Waits until there is no session.
    pub async fn left_by_all(&self) {
        while self.counts.borrow().all > 0 {
            self.empty.notified().await;
        }
    }

    /// A place for one more session, if there is one. `is_trusted`: no bound for its address.
    pub fn admit(self: &Rc<Self>, client: IpAddr, is_trusted: bool) -> Option<Place> {
        let mut counts = self.counts.borrow_mut();
        if counts.all >= self.sessions_max {
            return None;
        }
        let address = (!is_trusted).then(|| customer(client));
        if let Some(address) = address {
            let of_address = counts.by_address.entry(address).or_default();
            if *of_address >= self.per_address_max {
                return None;
            }
            *of_address = of_address.saturating_add(1);
        }
        counts.all = counts.all.saturating_add(1);
        Some(Place { admission: Rc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.admission.counts.borrow_mut();
        counts.all = counts.all.saturating_sub(1);
        if counts.all == 0 {
            self.admission.empty.notify_waiters();
        }
        if let Some(address) = self.address
            && let Some(of_address) = counts.by_address.get_mut(&address)
        {
            *of_address = of_address.saturating_sub(1);
            if *of_address == 0 {
                counts.by_address.remove(&address);
            }
        }
    }
}

fn customer(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let admission = Rc::new(Admission::new(4, 2));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (a, b) = (admission.admit(ip("192.0.2.1"), false), admission.admit(ip("::ffff:192.0.2.1"), false));
        assert!(a.is_some() && b.is_some());
        assert!(admission.admit(ip("192.0.2.1"), false).is_none(), "two of one address");
        let trusted = admission.admit(ip("192.0.2.1"), true);
        assert!(trusted.is_some() && !admission.is_full());
        let other = admission.admit(ip("2001:db8::1"), false);
        assert!(other.is_some() && admission.is_full() && admission.admit(ip("192.0.2.7"), true).is_none());
        drop((a, trusted));
        assert_eq!(admission.counts.borrow().all, 2);
        assert!(admission.admit(ip("192.0.2.1"), false).is_some());
        drop((b, other));
        assert!(admission.counts.borrow().by_address.is_empty());
        assert_eq!(customer(ip("2001:db8::1:2")), ip("2001:db8::"));
    }
}
