//! Failed logins: counted, slowed, and at last refused unheard (`control/authlimits`).
//!
//! - Each failure counts for the client's address (of IPv6 its /64) and for the account that was named, whether it exists or not.
//! - An address with too many is refused for a time, whatever it says. An account with too many is refused to addresses that do not know it.
//! - An address *knows* an account that it logged in to during the last month. For the two of them nothing counts but their own failures:
//!   whoever guesses from elsewhere, or next door behind the same address but at other accounts, locks nobody out.
//! - Who is refused gets the answer of a wrong password, a right one too: otherwise the refusal would say which guess was right.
//!
//! Memory is bounded; when there are too many addresses the ones not heard of longest are forgotten first. All is forgotten when the process
//! ends.

use control::AuthLimits;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::time::Duration;

/// Counters of each of two generations: some 6 MiB in all.
const COUNTERS_MAX: usize = 32_768;
/// An address that logged in so long ago does not know the account any more.
const KNOWN: Duration = Duration::from_secs(30 * 86_400);

/// An address as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Net {
    V4(u32),
    /// The first half: whoever has an IPv6 connection has a whole /64.
    V6(u64),
}

impl Net {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => Self::V6(u64::try_from(v6.to_bits() >> 64).unwrap_or(u64::MAX)),
        }
    }
}

/// What is counted. Accounts stand as a keyed hash of their name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Address(Net),
    Account(u64),
    /// An address and an account it knows.
    Known(Net, u64),
}

/// A map with a bound: entries that have not been used since the newer half of it filled up are forgotten.
struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Hash + Eq + Copy, V: Default> Recent<K, V> {
    fn new() -> Self {
        Self { young: HashMap::new(), old: HashMap::new() }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// The entry, made if it is not there; it is young again.
    fn entry(&mut self, key: K) -> &mut V {
        if self.young.len() >= COUNTERS_MAX && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        let old = self.old.remove(&key);
        self.young.entry(key).or_insert_with(|| old.unwrap_or_default())
    }
}

/// The failures of somebody.
#[derive(Debug, Default)]
struct Counter {
    /// In the window that began at `since`.
    failures: u32,
    since: Duration,
    refused_until: Duration,
}

impl Counter {
    /// One more; true if it begins to be refused now.
    fn failed(&mut self, most: Option<u32>, limits: &AuthLimits, now: Duration) -> bool {
        if now.saturating_sub(self.since) > limits.window {
            (self.failures, self.since) = (0, now);
        }
        self.failures = self.failures.saturating_add(1);
        let begins = most.is_some_and(|most| self.failures >= most) && self.refused_until <= now;
        if begins {
            self.refused_until = now.saturating_add(limits.block);
        }
        begins
    }
}

/// Who tries to log in, and to what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    address: Option<IpAddr>,
    account: u64,
}

/// What came of a failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The answer has to wait so long.
    pub(crate) pause: Duration,
    /// What is refused from now on, if anything.
    pub(crate) refused: Vec<&'static str>,
}

/// All that is counted.
pub(crate) struct Limits {
    counters: Recent<Key, Counter>,
    /// When an address logged in to an account last.
    known: Recent<(Net, u64), Duration>,
    names: RandomState,
}

impl Limits {
    pub(crate) fn new() -> Self {
        Self { counters: Recent::new(), known: Recent::new(), names: RandomState::new() }
    }

    /// `login`: the name as it was given; one that nobody has counts as well.
    pub(crate) fn attempt(&self, address: Option<IpAddr>, login: &[u8]) -> Attempt {
        Attempt { address, account: self.names.hash_one(login.to_ascii_lowercase()) }
    }

    /// Is it refused whatever it says?
    pub(crate) fn is_refused(&self, attempt: &Attempt, limits: &AuthLimits, now: Duration) -> bool {
        if attempt.address.is_some_and(|address| limits.exempts(address)) {
            return false;
        }
        let refuses = |key| self.counters.get(&key).is_some_and(|counter| counter.refused_until > now);
        self.keys(attempt, now).into_iter().flatten().any(refuses)
    }

    pub(crate) fn failed(&mut self, attempt: &Attempt, limits: &AuthLimits, now: Duration) -> Failure {
        let mut failure = Failure { pause: Duration::ZERO, refused: Vec::new() };
        for (at, key) in self.keys(attempt, now).into_iter().flatten().enumerate() {
            let (most, what) = match key {
                Key::Address(_) => (limits.failures, "address"),
                Key::Known(..) => (limits.failures, "address at this account"),
                Key::Account(_) => (limits.account, "account"),
            };
            let counter = self.counters.entry(key);
            if counter.failed(most, limits, now) {
                failure.refused.push(what);
            }
            // The first is the address, where there is one: who mistypes somebody else's target does not wait for that.
            if at == 0 {
                failure.pause = pause(counter.failures, limits);
            }
        }
        failure
    }

    pub(crate) fn succeeded(&mut self, attempt: &Attempt, now: Duration) {
        let Some(net) = attempt.address.map(Net::of) else { return };
        *self.known.entry((net, attempt.account)) = now;
        *self.counters.entry(Key::Known(net, attempt.account)) = Counter::default();
    }

    /// What counts for it, the address first.
    fn keys(&self, attempt: &Attempt, now: Duration) -> [Option<Key>; 2] {
        let account = Key::Account(attempt.account);
        let Some(net) = attempt.address.map(Net::of) else { return [Some(account), None] };
        match self.known.get(&(net, attempt.account)) {
            Some(last) if now.saturating_sub(*last) <= KNOWN => [Some(Key::Known(net, attempt.account)), None],
            _ => [Some(Key::Address(net)), Some(account)],
        }
    }
}

/// A second after the first failure, twice that after each more.
fn pause(failures: u32, limits: &AuthLimits) -> Duration {
    let seconds = 1u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX);
    Duration::from_secs(seconds).min(limits.pause_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "192.0.2.1";
    const THERE: &str = "198.51.100.1";

    fn limits() -> AuthLimits {
        AuthLimits::parse(b"failures=3\naccount=5\nwindow=100\nblock=50\npause=4\nexempt=203.0.113.0/24\n").unwrap()
    }

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    struct Case {
        all: Limits,
        limits: AuthLimits,
    }

    impl Case {
        fn new() -> Self {
            Self { all: Limits::new(), limits: limits() }
        }

        fn attempt(&self, address: &str, login: &str) -> Attempt {
            self.all.attempt(Some(address.parse().unwrap()), login.as_bytes())
        }

        fn fail(&mut self, address: &str, login: &str, now: u64) -> Failure {
            let attempt = self.attempt(address, login);
            self.all.failed(&attempt, &self.limits, at(now))
        }

        fn refused(&self, address: &str, login: &str, now: u64) -> bool {
            self.all.is_refused(&self.attempt(address, login), &self.limits, at(now))
        }

        fn succeed(&mut self, address: &str, login: &str, now: u64) {
            let attempt = self.attempt(address, login);
            self.all.succeeded(&attempt, at(now));
        }
    }

    #[test]
    fn an_address_is_slowed_and_then_refused_for_a_time() {
        let mut case = Case::new();
        let pauses: Vec<_> = (0..3).map(|n| case.fail(HERE, &format!("user{n}"), 1000)).collect();
        assert_eq!(pauses.iter().map(|failure| failure.pause.as_secs()).collect::<Vec<_>>(), [1, 2, 4]);
        assert_eq!(pauses.into_iter().map(|failure| failure.refused).collect::<Vec<_>>(), [vec![], vec![], vec!["address"]]);
        assert!(case.refused(HERE, "anybody", 1049) && !case.refused(HERE, "anybody", 1050));
        assert!(!case.refused(THERE, "user0", 1001));
        // One line for each time that it begins.
        assert_eq!(case.fail(HERE, "x", 1010), Failure { pause: at(4), refused: vec![] });
        assert_eq!(case.fail(HERE, "x", 1060).refused, ["address"], "within the window it begins again");
        assert_eq!(case.fail(HERE, "x", 1200), Failure { pause: at(1), refused: vec![] }, "a new window");
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let mut case = Case::new();
        for n in 1..=3 {
            case.fail(&format!("2001:db8:1:2::{n}"), "x", 1);
        }
        assert!(case.refused("2001:db8:1:2:ffff::1", "y", 2) && !case.refused("2001:db8:1:3::1", "y", 2));
        for _ in 0..3 {
            case.fail("::ffff:192.0.2.9", "x", 1);
        }
        assert!(case.refused("192.0.2.9", "y", 2) && !case.refused("192.0.2.8", "y", 2));
    }

    #[test]
    fn guessing_from_everywhere_locks_no_user_out_of_his_own_address() {
        let mut case = Case::new();
        case.succeed(HERE, "Joe@example.org", 1);
        let last = (0..5).map(|n| case.fail(&format!("198.51.100.{n}"), "joe@example.org", 10)).last().unwrap();
        assert_eq!((last.refused, last.pause), (vec!["account"], at(1)));
        assert!(case.refused("198.51.100.77", "JOE@example.org", 11), "from an address that knows nobody");
        assert!(!case.refused(HERE, "joe@example.org", 11));
        assert!(!case.refused("198.51.100.77", "ann@example.org", 11));
        // The neighbours behind the same address are another matter, both ways.
        for n in 0..3 {
            case.fail(HERE, &format!("user{n}"), 11);
        }
        assert!(case.refused(HERE, "ann@example.org", 12) && !case.refused(HERE, "joe@example.org", 12));
        // His own failures count for the two of them alone.
        let own: Vec<_> = (0..3).map(|_| case.fail(HERE, "joe@example.org", 100).refused).collect();
        assert_eq!(own, [vec![], vec![], vec!["address at this account"]]);
        assert!(case.refused(HERE, "joe@example.org", 101) && !case.refused(HERE, "ann@example.org", 101));
        case.succeed(HERE, "ann@example.org", 101);
        let month = 31 * 86_400;
        case.fail(HERE, "ann@example.org", month);
        case.fail(HERE, "ann@example.org", month);
        assert_eq!(case.fail(HERE, "x", month).refused, ["address"], "after a month she is a stranger");
    }

    #[test]
    fn logging_in_between_guesses_wins_nothing() {
        let mut case = Case::new();
        for n in 0..3 {
            case.fail(HERE, &format!("user{n}"), 10);
            case.succeed(HERE, "attacker@example.org", 10);
        }
        assert!(case.refused(HERE, "user9", 11) && !case.refused(HERE, "attacker@example.org", 11));
    }

    #[test]
    fn some_are_exempt_and_limits_can_be_off() {
        let mut case = Case::new();
        let pauses: Vec<_> = (0..9).map(|_| case.fail("203.0.113.5", "x", 1).pause.as_secs()).collect();
        assert_eq!(pauses[..4], [1, 2, 4, 4]);
        assert!(!case.refused("203.0.113.5", "x", 2) && case.refused(THERE, "x", 2), "the account counts all the same");
        let mut case = Case { all: Limits::new(), limits: AuthLimits::parse(b"failures=0\naccount=0\npause=0\n").unwrap() };
        for _ in 0..1000 {
            assert_eq!(case.fail(HERE, "x", 1), Failure { pause: Duration::ZERO, refused: vec![] });
        }
        assert!(!case.refused(HERE, "x", 2));
        // Without an address there is the account.
        let mut case = Case::new();
        let nobody = case.all.attempt(None, b"x");
        let refused: Vec<_> = (0..5).map(|_| case.all.failed(&nobody, &case.limits, at(1)).refused.len()).collect();
        assert_eq!(refused, [0, 0, 0, 0, 1]);
        case.all.succeeded(&nobody, at(2));
    }

    #[test]
    fn memory_is_bounded_and_the_latest_stay() {
        let mut case = Case::new();
        for n in 0..200_000u32 {
            let address = std::net::Ipv4Addr::from_bits(n).to_string();
            case.fail(&address, "x", 1);
            if n % 10_000 == 0 {
                case.fail(HERE, "y", 1);
            }
        }
        assert!(case.all.counters.young.len() + case.all.counters.old.len() <= 2 * COUNTERS_MAX);
        assert!(case.refused(HERE, "z", 2), "who goes on is not forgotten");
    }
}
