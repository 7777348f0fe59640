//! What others know: where recipients of virtual domains go (qmail-auth) and which domains share a site (qmail-resolve).
//!
//! Answers are kept for a while and within bounds. An answer is advice about order and place; a missing one is a deferral
//! (route) or a site of its own (site), never a loss.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use ipc::auth::Target;
use wire::{Address, Domain};

/// Routes remembered at most; they are read again soon anyway.
const ROUTES_MAX: usize = 10_000;
/// How long a place to deliver to is believed.
const ROUTE_AGE_MAX: Duration = Duration::from_secs(60);
/// How long an answer of qmail-auth is waited for.
pub const ROUTE_DEADLINE: Duration = Duration::from_secs(5);
/// Domains whose site is remembered.
const SITES_MAX: usize = 100_000;
/// Questions about sites under way at a time.
const SITE_QUESTIONS_MAX: usize = 256;
/// After that an unanswered question about a site is forgotten.
const SITE_DEADLINE: Duration = Duration::from_secs(30);
/// A site is believed at least and at most so long, whatever its records say: it only groups.
const SITE_TTL_S: std::ops::RangeInclusive<u64> = 300..=86_400;

/// A site for the scheduler: `d` and a domain, `s` and a key of qmail-resolve, or `r` and a relay.
pub type Site = Rc<[u8]>;

/// Places of recipients of virtual domains.
#[derive(Debug, Default)]
pub struct Routes {
    known: HashMap<Address, (Target, Duration)>,
    asked: HashMap<u64, Question>,
    by_address: HashMap<Address, u64>,
    next_id: u64,
}

#[derive(Debug)]
struct Question {
    address: Address,
    deadline: Duration,
    jobs: Vec<u64>,
}

impl Routes {
    /// What is known of an address at `now` (since boot).
    #[must_use]
    pub fn get(&self, address: &Address, now: Duration) -> Option<&Target> {
        self.known.get(address).filter(|(_, until)| *until > now).map(|(target, _)| target)
    }

    /// A job waits for the place of this address. Returns a question's id if it must be asked.
    pub fn ask(&mut self, address: &Address, job: u64, now: Duration) -> Option<u64> {
        if let Some(question) = self.by_address.get(address).and_then(|id| self.asked.get_mut(id)) {
            question.jobs.push(job);
            return None;
        }
        self.next_id = self.next_id.wrapping_add(1);
        let question = Question { address: address.clone(), deadline: now.saturating_add(ROUTE_DEADLINE), jobs: vec![job] };
        self.asked.insert(self.next_id, question);
        self.by_address.insert(address.clone(), self.next_id);
        Some(self.next_id)
    }

    /// An answer came: the jobs that wait for it.
    pub fn answer(&mut self, id: u64, target: &Target, now: Duration) -> Vec<u64> {
        let Some(question) = self.asked.remove(&id) else { return Vec::new() };
        self.by_address.remove(&question.address);
        if matches!(target, Target::Mailbox { .. } | Target::Forward { .. }) {
            if self.known.len() >= ROUTES_MAX {
                self.known.clear();
            }
            self.known.insert(question.address, (target.clone(), now.saturating_add(ROUTE_AGE_MAX)));
        }
        question.jobs
    }

    /// users/domains or the accounts have changed: nothing that was known counts any more.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// The jobs whose answer has not come in time.
    pub fn overdue(&mut self, now: Duration) -> Vec<u64> {
        let late: Vec<u64> = self.asked.iter().filter(|(_, question)| question.deadline <= now).map(|(id, _)| *id).collect();
        let mut jobs = Vec::new();
        for id in late {
            if let Some(question) = self.asked.remove(&id) {
                self.by_address.remove(&question.address);
                jobs.extend(question.jobs);
            }
        }
        jobs
    }

    /// Everything that is still to be answered: asked again on a new connection.
    pub fn open_questions(&self) -> impl Iterator<Item = (u64, &Address)> {
        self.asked.iter().map(|(id, question)| (*id, &question.address))
    }

    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.asked.is_empty()
    }
}

/// Which site a domain belongs to.
#[derive(Debug, Default)]
pub struct Sites {
    known: HashMap<Domain, (Site, u64)>,
    asked: HashMap<u64, (Domain, Duration)>,
    next_id: u64,
}

impl Sites {
    /// The site of a domain as far as it is known, and the id of a question that is to be asked for the next time.
    pub fn of(&mut self, domain: &Domain, now_s: u64, now: Duration) -> (Site, Option<u64>) {
        if let Some((site, _)) = self.known.get(domain).filter(|(_, until_s)| *until_s > now_s) {
            return (Rc::clone(site), None);
        }
        if self.asked.len() >= SITE_QUESTIONS_MAX {
            self.asked.retain(|_, (_, deadline)| *deadline > now);
        }
        let own: Site = [b"d", domain.as_bytes()].concat().into();
        if self.asked.len() >= SITE_QUESTIONS_MAX {
            return (own, None);
        }
        // Until the answer is there, this is the answer; so nothing is asked twice.
        self.remember(domain.clone(), Rc::clone(&own), now_s.saturating_add(*SITE_TTL_S.start()));
        self.next_id = self.next_id.wrapping_add(1);
        self.asked.insert(self.next_id, (domain.clone(), now.saturating_add(SITE_DEADLINE)));
        (own, Some(self.next_id))
    }

    fn remember(&mut self, domain: Domain, site: Site, until_s: u64) {
        if self.known.len() >= SITES_MAX {
            self.known.clear();
        }
        self.known.insert(domain, (site, until_s));
    }

    pub fn answer(&mut self, id: u64, key: &[u8], ttl_s: u32, now_s: u64) {
        if let Some((domain, _)) = self.asked.remove(&id) {
            let ttl_s = u64::from(ttl_s).clamp(*SITE_TTL_S.start(), *SITE_TTL_S.end());
            let site: Site = [b"s", ipc::clip(key)].concat().into();
            self.remember(domain, site, now_s.saturating_add(ttl_s));
        }
    }

    /// No answer to this question: the domain stays a site of its own for now.
    pub fn no_answer(&mut self, id: u64) {
        self.asked.remove(&id);
    }

    /// The connection is gone, and with it the questions.
    pub fn forget_questions(&mut self) {
        self.asked.clear();
    }
}

/// The site of a relay.
#[must_use]
pub fn relay_site(relay: &[u8], port: u16) -> Site {
    [b"r", relay, b":", port.to_string().as_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a(text: &str) -> Address {
        Address::new(text.as_bytes()).unwrap()
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_route_is_asked_once_and_believed_for_a_minute() {
        let mut routes = Routes::default();
        let id = routes.ask(&a("u@v"), 1, S).unwrap();
        assert_eq!(routes.ask(&a("u@v"), 2, S), None);
        let target =
            Target::Mailbox { domain: Domain::new(b"v").unwrap(), user: "u".into(), ext: "".into(), settings: "".into() };
        assert_eq!(routes.answer(id + 1, &target, S), [0u64; 0]);
        assert_eq!(routes.answer(id, &target, S), [1, 2]);
        assert_eq!(routes.get(&a("u@v"), S * 60), Some(&target));
        assert_eq!(routes.get(&a("u@v"), S * 61), None);
        routes.forget();
        assert_eq!(routes.get(&a("u@v"), S), None);
    }

    #[test]
    fn what_is_not_there_is_not_remembered_and_silence_ends() {
        let mut routes = Routes::default();
        let id = routes.ask(&a("u@v"), 1, S).unwrap();
        assert_eq!(routes.answer(id, &Target::NoMailbox {}, S), [1]);
        assert_eq!(routes.get(&a("u@v"), S), None);
        assert!(routes.ask(&a("u@v"), 3, S).is_some());
        assert_eq!(routes.open_questions().count(), 1);
        assert_eq!(routes.overdue(S * 5), [0u64; 0]);
        assert_eq!(routes.overdue(S * 6), [3]);
        assert!(!routes.is_waiting());
    }

    #[test]
    fn domains_are_sites_until_told_otherwise() {
        let mut sites = Sites::default();
        let domain = Domain::new(b"x.example").unwrap();
        let (own, id) = sites.of(&domain, 1000, S);
        assert_eq!((&*own, sites.of(&domain, 1000, S)), (&b"dx.example"[..], (Rc::clone(&own), None)));
        sites.answer(id.unwrap(), b"mx.example", 1, 1000);
        assert_eq!(&*sites.of(&domain, 1299, S).0, b"smx.example");
        assert_eq!(&*sites.of(&domain, 1300, S).0, b"dx.example", "the time is over");
    }

    #[test]
    fn bounds() {
        let (mut sites, mut routes) = (Sites::default(), Routes::default());
        for n in 0..SITES_MAX + 1000 {
            let (_, id) = sites.of(&Domain::new(format!("d{n}").as_bytes()).unwrap(), 0, S);
            sites.answer(id.unwrap(), b"k", 0, 0);
        }
        assert!(sites.known.len() <= SITES_MAX && sites.asked.is_empty());
        for n in 0..SITE_QUESTIONS_MAX + 10 {
            sites.of(&Domain::new(format!("e{n}").as_bytes()).unwrap(), 0, S);
        }
        assert_eq!(sites.asked.len(), SITE_QUESTIONS_MAX);
        assert!(sites.of(&Domain::new(b"f").unwrap(), 0, S * 31).1.is_some(), "the old questions are forgotten");
        for n in 0..ROUTES_MAX + 10 {
            let id = routes.ask(&a(&format!("u{n}@v")), 0, S).unwrap();
            routes.answer(id, &Target::Forward { domain: Domain::new(b"v").unwrap(), targets: vec![] }, S);
        }
        assert!(routes.known.len() <= ROUTES_MAX);
    }
}
