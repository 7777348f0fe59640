//! Whom to try for a route, in which order (RFC 5321 §5.1).

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ipc::job::Route;
use ipc::resolve::{Answer, Host};
use tokio::time::Instant;

use crate::own::Own;
use crate::report::{self, Judgement};
use crate::terms::host_text;

/// RFC 5321 §4.5.4.2.
pub const PORT_SMTP: u16 = 25;
/// The port of QMTP (cr.yp.to/proto/qmtp.txt).
pub const PORT_QMTP: u16 = 209;
/// Addresses tried for one job; the others get their turn at the next attempt, since equals are shuffled.
pub const TRIED_MAX: usize = 10;
/// How long an address that could not be connected to is tried last.
const BAD_FOR: Duration = Duration::from_secs(300);
/// Things remembered as bad, of each kind.
const BAD_MAX: usize = 4096;
/// How long a failure is known, for root to look at (qmail-tcpto(8)).
const KNOWN_FOR: Duration = Duration::from_secs(3600);
/// Failures within this time are one (classic tcpto).
const ONE_FAILURE: Duration = Duration::from_secs(120);
/// As far as failures are counted (classic tcpto).
const COUNT_MAX: u32 = 10;

/// What is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Internet(SocketAddr),
    /// A Unix socket of this host, for LMTP alone.
    Socket(Rc<Path>),
}

impl Endpoint {
    /// `None`: it is no address of the Internet.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Internet(address) => Some(*address),
            Self::Socket(_) => None,
        }
    }

    /// Does a connection to it stay on this host?
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.address().is_none_or(|address| address.ip().to_canonical().is_loopback())
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::Internet(address)
    }
}

/// As reports name it: the address alone, or the path; printable.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internet(address) => address.ip().to_canonical().fmt(f),
            Self::Socket(path) => f.write_str(&wire::escape::visible(path.as_os_str().as_bytes())),
        }
    }
}

/// An address to try; those with equal `rank` are equally good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub endpoint: Endpoint,
    pub rank: u32,
    /// Whose address it is: the mail host's or relay's name, or the address itself ([`host_text`]).
    pub host: Rc<str>,
    pub via: Via,
}

/// What is spoken with a candidate, where there is a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// SMTP, or LMTP where the route says so.
    Smtp,
    /// QMTP, since control/qmtproutes says so.
    Qmtp,
    /// QMTP, since the preference of the mail host says so (MXPS); by SMTP the same host comes next.
    Switched,
}

impl Via {
    #[must_use]
    pub fn is_qmtp(self) -> bool {
        self != Self::Smtp
    }
}

/// What failed lately, and counts as bad for a while. [`Bad::default`] is for addresses that did not answer: a classic tcpto table
/// skips them for an hour; here they only come last, so that "try everything now" tries everything.
#[derive(Debug)]
pub struct Bad<K = IpAddr> {
    failures: RefCell<HashMap<K, Failures>>,
    lasts: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    last: Instant,
    count: u32,
}

impl Default for Bad {
    fn default() -> Self {
        Self::lasting(BAD_FOR)
    }
}

impl<K: Eq + Hash> Bad<K> {
    #[must_use]
    pub fn lasting(lasts: Duration) -> Self {
        Self { failures: RefCell::default(), lasts }
    }

    pub fn failed(&self, which: K) {
        let (mut bad, now) = (self.failures.borrow_mut(), Instant::now());
        if bad.len() >= BAD_MAX {
            bad.retain(|_, failures| now - failures.last < self.lasts);
        }
        if bad.len() >= BAD_MAX && !bad.contains_key(&which) {
            return;
        }
        let failures = bad.entry(which).or_insert(Failures { last: now, count: 1 });
        match now - failures.last {
            pause if pause >= KNOWN_FOR => failures.count = 1,
            pause if pause >= ONE_FAILURE => failures.count = failures.count.saturating_add(1).min(COUNT_MAX),
            _ => {}
        }
        failures.last = now;
    }

    /// What is known of failures: how long ago the last one was, and their number.
    #[must_use]
    pub fn known(&self) -> Vec<(K, Duration, u32)>
    where
        K: Clone,
    {
        let now = Instant::now();
        let all = self.failures.borrow();
        let known = all.iter().map(|(which, failures)| (which.clone(), now - failures.last, failures.count));
        known.filter(|(_, ago, _)| *ago < KNOWN_FOR).collect()
    }

    /// All count as well again.
    pub fn forget(&self) {
        self.failures.borrow_mut().clear();
    }

    pub fn succeeded(&self, which: K) {
        self.failures.borrow_mut().remove(&which);
    }

    #[must_use]
    pub fn is(&self, which: K) -> bool {
        self.failures.borrow().get(&which).is_some_and(|failures| failures.last + self.lasts > Instant::now())
    }
}

/// A small generator for shuffling; guessing it gains nobody anything.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    #[must_use]
    pub fn new() -> Self {
        let random = sys::random::bytes16().unwrap_or_default();
        Self(random.iter().fold(0u64, |seed, byte| seed.rotate_left(8) ^ u64::from(*byte)) | 1)
    }

    /// xorshift64 (Marsaglia, 2003).
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.roll() % (last as u64 + 1);
            items.swap(last, usize::try_from(other).unwrap_or(0));
        }
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}

/// The addresses for an answer of qmail-resolve, best first; all of them, for [`keep`] to choose from.
///
/// # Errors
/// Why there are none: the verdict on all recipients.
pub fn candidates(
    route: &Route,
    answer: Answer,
    (mx_port, qmtp_port): (u16, u16),
    own: &Own,
    bad: &Bad,
    dice: &mut Dice,
) -> Result<Vec<Candidate>, Judgement> {
    let (port, relay) = match route {
        Route::Mx { .. } => (mx_port, None),
        Route::Relay { port, host, .. } | Route::Lmtp { port, host } | Route::Qmtp { port, host } => (*port, Some(&**host)),
        Route::LmtpSocket { path } => (0, Some(&**path)),
    };
    let is_relay = relay.is_some();
    let hosts = match answer {
        Answer::Hosts { hosts, .. } => hosts,
        // A relay is named by our own control files: nothing about it is the recipients' fault.
        Answer::NullMx { .. } | Answer::NoHost { .. } if is_relay => return Err(Judgement::deferral(report::NO_RELAY)),
        Answer::NullMx { .. } => return Err(Judgement::failure(report::NULL_MX)),
        Answer::NoHost { name_exists: true, .. } => return Err(Judgement::failure(report::NO_EXCHANGER)),
        Answer::NoHost { .. } => return Err(Judgement::failure(report::no_such_host(&route_name(route)))),
        Answer::Temporary { .. } | Answer::Site { .. } => return Err(Judgement::deferral(report::DNS_TEMPORARY)),
    };
    let temporary = hosts.iter().any(|host| host.temporary);
    let (hosts, looped) = if is_relay { (hosts, false) } else { without_oneself(hosts, port, own) };
    let mut found = ordered(&hosts, relay, port, bad, dice);
    match route {
        Route::Mx { .. } => switch_protocols(&mut found, &hosts, qmtp_port),
        Route::Qmtp { .. } => found.iter_mut().for_each(|candidate| candidate.via = Via::Qmtp),
        Route::Relay { .. } | Route::Lmtp { .. } | Route::LmtpSocket { .. } => {}
    }
    match (found.is_empty(), temporary) {
        (false, _) => Ok(found),
        (true, true) => Err(Judgement::deferral(report::DNS_TEMPORARY)),
        (true, false) if is_relay => Err(Judgement::deferral(report::NO_RELAY)),
        (true, false) if looped => Err(Judgement::failure(report::LOOP_TO_ONESELF)),
        (true, false) => Err(Judgement::failure(report::NO_EXCHANGER)),
    }
}

/// Leaves those that suit the message, and of them at most [`TRIED_MAX`].
pub fn keep(found: &mut Vec<Candidate>, suits: impl Fn(&Candidate) -> bool) {
    found.retain(suits);
    found.truncate(TRIED_MAX);
}

/// MXPS (cr.yp.to/im/mxps.html): every sixteenth preference of some says that the host takes QMTP, which is tried before SMTP.
fn switch_protocols(found: &mut Vec<Candidate>, hosts: &[Host], port: u16) {
    let takes_qmtp = |address: IpAddr| hosts.iter().any(|host| is_qmtp(host.preference) && host.addresses.contains(&address));
    *found = std::mem::take(found)
        .into_iter()
        .flat_map(|smtp| {
            let address = smtp.endpoint.address().map(|address| address.ip()).filter(|address| takes_qmtp(*address));
            let qmtp = address.map(|address| Candidate {
                endpoint: SocketAddr::new(address, port).into(),
                via: Via::Switched,
                // Better than the same by SMTP.
                rank: smtp.rank.saturating_sub(1),
                ..smtp.clone()
            });
            qmtp.into_iter().chain([smtp])
        })
        .collect();
}

/// 12801, 12817, … 13041.
fn is_qmtp(preference: u16) -> bool {
    (12_800..=13_055).contains(&preference) && preference % 16 == 1
}

/// RFC 5321 §5.1: where we are a mail host ourselves, only hosts with a better preference may be tried.
fn without_oneself(hosts: Vec<Host>, port: u16, own: &Own) -> (Vec<Host>, bool) {
    let ours = |host: &&Host| host.addresses.iter().any(|address| own.is(*address, port));
    match hosts.iter().filter(ours).map(|host| host.preference).min() {
        Some(limit) => (hosts.into_iter().filter(|host| host.preference < limit).collect(), true),
        None => (hosts, false),
    }
}

/// `relay` is the name that a relay goes by, whatever the DNS calls it.
fn ordered(hosts: &[Host], relay: Option<&[u8]>, port: u16, bad: &Bad, dice: &mut Dice) -> Vec<Candidate> {
    let mut hosts: Vec<&Host> = hosts.iter().collect();
    dice.shuffle(&mut hosts);
    hosts.sort_by_key(|host| host.preference);
    let mut found: Vec<Candidate> = Vec::new();
    for host in hosts {
        let name: Rc<str> = host_text(relay.unwrap_or(&host.name)).into();
        for address in families_in_turn(&host.addresses, dice) {
            let address = SocketAddr::new(address, port);
            // Between two preferences is room for the same host by QMTP.
            let rank = u32::from(host.preference) * 2 + 1 + if bad.is(address.ip()) { 1 << 17 } else { 0 };
            let endpoint = Endpoint::Internet(address);
            if found.iter().all(|known| known.endpoint != endpoint) {
                found.push(Candidate { endpoint, rank, host: Rc::clone(&name), via: Via::Smtp });
            }
        }
    }
    found.sort_by_key(|candidate| candidate.rank);
    found
}

/// IPv6 and IPv4 by turns, each shuffled: if one of them leads nowhere, the second try is the other.
fn families_in_turn(addresses: &[IpAddr], dice: &mut Dice) -> Vec<IpAddr> {
    let (mut v6, mut v4): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv6());
    dice.shuffle(&mut v6);
    dice.shuffle(&mut v4);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut out = Vec::with_capacity(addresses.len());
    while out.len() < addresses.len() {
        out.extend(v6.next());
        out.extend(v4.next());
    }
    out
}

fn route_name(route: &Route) -> String {
    let name = match route {
        Route::Mx { domain } => domain.as_bytes(),
        Route::Relay { host, .. } | Route::Lmtp { host, .. } | Route::Qmtp { host, .. } => host,
        Route::LmtpSocket { path } => path,
    };
    wire::escape::visible(name)
}

/// A relay given as an address or a socket: no question is needed.
#[must_use]
pub fn literal_relay(route: &Route) -> Option<Candidate> {
    let (host, port) = match route {
        Route::Mx { .. } => return None,
        Route::Relay { host, port, .. } | Route::Lmtp { host, port } | Route::Qmtp { host, port } => (host, port),
        Route::LmtpSocket { path } => {
            let endpoint = Endpoint::Socket(Path::new(OsStr::from_bytes(path)).into());
            let host = endpoint.to_string().into();
            return Some(Candidate { endpoint, rank: 0, host, via: Via::Smtp });
        }
    };
    let text = std::str::from_utf8(host).ok()?;
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let via = if matches!(route, Route::Qmtp { .. }) { Via::Qmtp } else { Via::Smtp };
    Some(Candidate { endpoint: SocketAddr::new(inner.parse().ok()?, *port).into(), rank: 0, host: host_text(host).into(), via })
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::Root;
    use ipc::field::Verdict;
    use wire::Domain;

    fn own(list: &[&str]) -> Own {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        std::fs::write(root.control_file("me"), "mx.example\n").unwrap();
        Own { interfaces: list.iter().map(|a| a.parse().unwrap()).collect(), control: control::Remote::read(&root).unwrap() }
    }

    fn host(preference: u16, addresses: &[&str]) -> Host {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Host { preference, name: format!("h{preference}").as_str().into(), addresses, temporary: false }
    }

    const PORTS: (u16, u16) = (PORT_SMTP, PORT_QMTP);

    fn mx() -> Route {
        Route::Mx { domain: Domain::new(b"b.example").unwrap() }
    }

    fn relay() -> Route {
        Route::Relay { host: "relay.example".into(), port: 2525, login: None }
    }

    fn hosts(list: Vec<Host>) -> Answer {
        Answer::Hosts { id: 1, hosts: list, implicit: false, ttl_s: 1 }
    }

    #[test]
    fn answers_without_addresses() {
        use Verdict::{Deferral, Failure};
        let dead = Host { temporary: true, ..host(1, &[]) };
        for (route, answer, verdict, text) in [
            (mx(), Answer::NullMx { id: 1, ttl_s: 1 }, Failure, report::NULL_MX),
            (mx(), Answer::NoHost { id: 1, name_exists: true, ttl_s: 1 }, Failure, report::NO_EXCHANGER),
            (
                mx(),
                Answer::NoHost { id: 1, name_exists: false, ttl_s: 1 },
                Failure,
                "Sorry, I couldn't find any host named b.example. (#5.1.2)\n",
            ),
            (mx(), Answer::Temporary { id: 1, text: "x".into() }, Deferral, report::DNS_TEMPORARY),
            (mx(), Answer::Site { id: 1, key: "x".into(), ttl_s: 1 }, Deferral, report::DNS_TEMPORARY),
            (mx(), hosts(vec![]), Failure, report::NO_EXCHANGER),
            (mx(), hosts(vec![host(1, &[])]), Failure, report::NO_EXCHANGER),
            (mx(), hosts(vec![dead.clone(), host(2, &[])]), Deferral, report::DNS_TEMPORARY),
            (mx(), hosts(vec![host(1, &["192.0.2.1"]), host(2, &["192.0.2.9"])]), Failure, report::LOOP_TO_ONESELF),
            (mx(), hosts(vec![host(1, &[]), host(2, &["192.0.2.1"])]), Failure, report::LOOP_TO_ONESELF),
            (mx(), hosts(vec![dead, host(2, &["192.0.2.1"])]), Deferral, report::DNS_TEMPORARY),
            (relay(), Answer::NoHost { id: 1, name_exists: false, ttl_s: 1 }, Deferral, report::NO_RELAY),
            (relay(), hosts(vec![host(1, &[])]), Deferral, report::NO_RELAY),
        ] {
            let found = candidates(&route, answer.clone(), PORTS, &own(&["192.0.2.1"]), &Bad::default(), &mut Dice(1));
            assert_eq!(
                found,
                Err(Judgement { verdict, text: text.to_owned(), passed_on: false, keeps_time: false }),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn better_hosts_first_equals_shuffled_oneself_and_worse_left_out() {
        let list = vec![
            host(20, &["192.0.2.20"]),
            host(10, &["192.0.2.10", "2001:db8::10"]),
            host(10, &["192.0.2.11"]),
            host(30, &["192.0.2.1"]),
            host(40, &["192.0.2.40"]),
        ];
        let (mut firsts, own) = (std::collections::BTreeSet::new(), own(&["192.0.2.1"]));
        let mut dice = Dice::new();
        for _ in 0..200 {
            let found = candidates(&mx(), hosts(list.clone()), PORTS, &own, &Bad::default(), &mut dice).unwrap();
            let addresses: Vec<String> = found.iter().map(|c| c.endpoint.address().unwrap().to_string()).collect();
            assert_eq!(addresses.len(), 4);
            assert_eq!(addresses[3], "192.0.2.20:25");
            let v6 = addresses.iter().position(|a| a == "[2001:db8::10]:25").unwrap();
            assert_eq!(addresses[v6 + 1], "192.0.2.10:25", "families in turn");
            firsts.insert(addresses[0].clone());
        }
        assert_eq!(firsts.into_iter().collect::<Vec<_>>(), ["192.0.2.11:25", "[2001:db8::10]:25"]);
    }

    #[test]
    fn a_host_that_says_so_by_its_preference_is_tried_by_qmtp_first() {
        let list = vec![host(12_817, &["192.0.2.2"]), host(12_801, &["192.0.2.1"]), host(12_802, &["192.0.2.3"])];
        let found = candidates(&mx(), hosts(list), PORTS, &own(&[]), &Bad::default(), &mut Dice(1)).unwrap();
        let tried: Vec<_> = found.iter().map(|c| (c.endpoint.address().unwrap().to_string(), c.via)).collect();
        let expected = [
            ("192.0.2.1:209", Via::Switched),
            ("192.0.2.1:25", Via::Smtp),
            ("192.0.2.3:25", Via::Smtp),
            ("192.0.2.2:209", Via::Switched),
            ("192.0.2.2:25", Via::Smtp),
        ];
        assert_eq!(tried, expected.map(|(address, via)| (address.to_owned(), via)));
        assert!(found.windows(2).all(|pair| pair[0].rank < pair[1].rank));
        let qmtp: Vec<u16> = (0..=u16::MAX).filter(|preference| is_qmtp(*preference)).collect();
        assert_eq!((qmtp.len(), qmtp[0], qmtp[15]), (16, 12_801, 13_041));
        let route = Route::Qmtp { host: "relay.example".into(), port: 2090 };
        let found = candidates(&route, hosts(vec![host(0, &["192.0.2.1"])]), PORTS, &own(&[]), &Bad::default(), &mut Dice(1));
        assert_eq!(found.unwrap()[0].via, Via::Qmtp);
        let route = Route::Qmtp { host: "192.0.2.1".into(), port: 209 };
        assert_eq!(literal_relay(&route).unwrap().via, Via::Qmtp);
    }

    #[test]
    fn a_bad_address_is_tried_last_until_it_works() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let list = || hosts(vec![host(10, &["192.0.2.10"]), host(20, &["192.0.2.20"])]);
            let (bad, own) = (Bad::default(), own(&[]));
            let first = |bad: &Bad| candidates(&mx(), list(), PORTS, &own, bad, &mut Dice(1)).unwrap()[0].endpoint.to_string();
            bad.failed("192.0.2.10".parse().unwrap());
            assert_eq!(first(&bad), "192.0.2.20");
            bad.succeeded("192.0.2.10".parse().unwrap());
            assert_eq!(first(&bad), "192.0.2.10");
            bad.failed("192.0.2.10".parse().unwrap());
            tokio::time::advance(BAD_FOR).await;
            assert_eq!(first(&bad), "192.0.2.10");
        });
    }

    #[test]
    fn failures_are_counted_and_forgotten() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (bad, which) = (Bad::default(), "192.0.2.10".parse::<IpAddr>().unwrap());
            let known = |bad: &Bad| bad.known().into_iter().map(|(_, ago, count)| (ago.as_secs(), count)).collect::<Vec<_>>();
            bad.failed(which);
            tokio::time::advance(ONE_FAILURE / 2).await;
            bad.failed(which);
            assert_eq!(known(&bad), [(0, 1)], "as one");
            for count in 2..15 {
                tokio::time::advance(ONE_FAILURE).await;
                bad.failed(which);
                assert_eq!(known(&bad), [(0, count.min(COUNT_MAX))]);
            }
            tokio::time::advance(BAD_FOR).await;
            assert!(!bad.is(which));
            assert_eq!(known(&bad), [(BAD_FOR.as_secs(), COUNT_MAX)]);
            tokio::time::advance(KNOWN_FOR).await;
            assert_eq!(known(&bad), []);
            bad.failed(which);
            assert_eq!(known(&bad), [(0, 1)]);
            bad.forget();
            assert!(known(&bad).is_empty() && !bad.is(which));
        });
    }

    #[test]
    fn relays_keep_their_port_and_are_never_oneself() {
        let found = candidates(
            &relay(),
            hosts(vec![host(0, &["192.0.2.1"])]),
            PORTS,
            &own(&["192.0.2.1"]),
            &Bad::default(),
            &mut Dice(1),
        );
        assert_eq!(found.unwrap()[0].endpoint.address().unwrap().to_string(), "192.0.2.1:2525");
        for (host, expected) in
            [("127.0.0.1", Some("127.0.0.1:26")), ("[::1]", Some("[::1]:26")), ("::1", Some("[::1]:26")), ("a.b", None)]
        {
            let found = literal_relay(&Route::Relay { host: host.into(), port: 26, login: None });
            assert_eq!(found.map(|c| c.endpoint.address().unwrap().to_string()).as_deref(), expected);
        }
        assert_eq!(literal_relay(&mx()), None);
    }

    #[test]
    fn many_addresses_are_bounded() {
        let many: Vec<String> = (0..20).map(|n| format!("192.0.2.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let (mut dice, mut firsts, own) = (Dice::new(), std::collections::BTreeSet::new(), own(&[]));
        for _ in 0..1000 {
            let mut found = candidates(&mx(), hosts(vec![host(1, &many)]), PORTS, &own, &Bad::default(), &mut dice).unwrap();
            firsts.insert(found[0].endpoint.to_string());
            keep(&mut found, |candidate| candidate.endpoint.to_string() != "192.0.2.0");
            assert_eq!(found.len(), TRIED_MAX);
        }
        assert_eq!(firsts.len(), 20, "each has its turn");
    }
}
