//! Accounts in a database elsewhere: what a request will need is got from qmail-authnet before the request is answered, so that nobody waits
//! for the database but those who ask about it.
//!
//! A request is rehearsed: the same questions are put to the store, which notes what it does not know (`accounts::remote`). That is asked for at
//! once, the request waits, and when all is known it is answered as any other. A rehearsal that foresees too little costs a wait in the loop,
//! never a wrong answer. Where there is no answer the request is answered from what is known: recipients "temporary", logins "unavailable".
//! Changes that other hosts make are told by qmail-authnet; while they would not be told nothing is remembered.

use crate::directory::{OWN_ALIASES_MAX, Place};
use crate::server::Server;
use accounts::secrets::Kind;
use accounts::{Account, Directory as _, Resolution, Secrets as _, UserName};
use ipc::Message as _;
use ipc::accounts::{Answer, Call, Request as Question, Row};
use ipc::auth::Request;
use std::time::Duration;
use wire::Address;

/// Rehearsals of one request: a domain, what it is an alias of, who is there, what is set of him.
const ROUNDS_MAX: u8 = 4;
/// Between two attempts to hear of changes.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);

/// What an answer is for.
pub(crate) enum StoreWaiter {
    /// Changes are told from now on.
    Follow,
    Request(Box<Parked>),
}

/// A request that waits for what it needs.
pub(crate) struct Parked {
    client: u64,
    request: Request,
    rounds: u8,
    /// What was asked for it, with the answers that are there.
    calls: Vec<Call>,
    results: Vec<Vec<Row>>,
    /// How many changes there had been.
    changes: u64,
}

/// Whether qmail-authnet tells of changes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Following {
    #[default]
    No,
    Asked,
    Yes,
}

impl Server {
    /// Answers a request, at once or when what it needs is known.
    pub(crate) fn request_when_known(&mut self, client: u64, request: Request) {
        let Some(changes) = self.accounts.remote().map(|remote| remote.changes()) else { return self.request(client, request) };
        let (calls, results) = (Vec::new(), Vec::new());
        self.rehearsed(Box::new(Parked { client, request, rounds: 0, calls, results, changes }));
    }

    fn rehearsed(&mut self, mut parked: Box<Parked>) {
        if let Some(remote) = self.accounts.remote() {
            remote.learn(&parked.calls, &parked.results, parked.changes);
            remote.plan();
        }
        self.rehearse(&parked.request);
        let wanted = self.accounts.remote().map(|remote| remote.wanted()).unwrap_or_default();
        if wanted.is_empty() || parked.rounds >= ROUNDS_MAX {
            self.request(parked.client, parked.request);
            return self.accounts.remote().into_iter().for_each(|remote| remote.tidy());
        }
        self.accounts.remote().into_iter().for_each(|remote| remote.tidy());
        parked.rounds = parked.rounds.saturating_add(1);
        parked.calls.extend(wanted.iter().cloned());
        let question = |id| Question::Read { id, calls: wanted }.encode();
        let asked = self.store.ask(question, StoreWaiter::Request(parked), sys::clock::boottime());
        asked.unwrap_or_else(|waiter| self.store_silent(waiter, "too many questions at once"));
    }

    /// Asks the store what the request will ask, and does nothing with the answers.
    fn rehearse(&mut self, request: &Request) {
        match request {
            Request::Recipient { address, .. } | Request::Fits { address, .. } | Request::Route { address, .. } => {
                self.rehearse_address(address);
            }
            Request::Login { login, .. } | Request::Apop { login, .. } => self.rehearse_login(login),
            Request::SaslStart { initial: Some(message), .. } => self.rehearse_login(name_in(message.expose())),
            Request::SaslStep { response, .. } => self.rehearse_login(name_in(response.expose())),
            Request::MaySend { login, address, .. } => {
                self.rehearse_login(login);
                self.rehearse_address(address);
            }
            Request::MaySubmit { login, .. } => self.rehearse_login(login),
            _ => {}
        }
    }

    fn rehearse_address(&mut self, address: &Address) {
        let Ok(Place::Virtual(domain, local)) = self.place(address) else { return };
        // Mostly the user has just this name.
        let user = match self.resolve(&domain, &local) {
            Ok(Resolution::Mailbox { user, .. }) => Some(user),
            _ => UserName::new(&local.to_ascii_lowercase()),
        };
        let Some(user) = user else { return };
        let account = self.accounts.account(&domain, user.as_bytes());
        if let (Ok(Some(Account { vacation: Some(_), .. })), Ok(own)) =
            (account, Address::join(user.as_bytes(), domain.as_bytes()))
        {
            let _ = self.accounts.aliases_to(&own, OWN_ALIASES_MAX);
        }
    }

    fn rehearse_login(&mut self, login: &[u8]) {
        let Ok(Some((domain, user))) = self.account_of(login) else { return };
        let name = user.as_bytes();
        let _ = (self.accounts.credentials(&domain, name), self.accounts.app_passwords(&domain, name));
        let _ = (self.accounts.account(&domain, name), self.accounts.installation_key());
        for kind in [Kind::ScramSha1, Kind::ScramSha256, Kind::Clear] {
            let _ = self.accounts.secret(&domain, name, kind);
        }
    }

    /// Sends what waits, ends what is due, and asks to be told of changes.
    pub(crate) fn store_advance(&mut self, now: Duration) {
        if self.accounts.remote().is_none() {
            return;
        }
        if self.following == Following::No && now >= self.follow_after {
            self.following = Following::Asked;
            let question = |id| Question::Follow { id }.encode();
            if self.store.ask(question, StoreWaiter::Follow, now).is_err() {
                self.follows_no_more();
            }
        }
        for waiter in self.store.expired(now).into_iter().chain(self.store.advance(now)).collect::<Vec<_>>() {
            self.store_silent(waiter, "qmail-authnet does not answer");
        }
        if self.following == Following::Yes && self.store.interest().is_none() {
            self.follows_no_more();
        }
    }

    /// When [`Server::store_advance`] has something to do.
    pub(crate) fn store_due(&self) -> Option<Duration> {
        let waits = self.accounts.remote().is_some() && self.following == Following::No;
        [self.store.due(), waits.then_some(self.follow_after)].into_iter().flatten().min()
    }

    pub(crate) fn store_ready(&mut self, buf: &mut [u8]) {
        loop {
            let gone = match self.store.receive(buf) {
                Ok(None) => return,
                Ok(Some((len, _))) => {
                    let datagram = buf.get_mut(..len).unwrap_or_default();
                    let answer = Answer::decode(datagram);
                    // It may have held hashes.
                    zeroize::Zeroize::zeroize(datagram);
                    match answer {
                        Ok(answer) => {
                            self.store_says(answer);
                            continue;
                        }
                        Err(_) => self.store.reset(),
                    }
                }
                Err(gone) => gone,
            };
            self.follows_no_more();
            gone.into_iter().for_each(|waiter| self.store_went_away(waiter));
            return;
        }
    }

    fn store_says(&mut self, answer: Answer) {
        let id = match &answer {
            Answer::Changed {} => return self.changed_elsewhere(),
            Answer::Rows { id, .. } | Answer::Done { id, .. } | Answer::TooLong { id } | Answer::Unavailable { id, .. } => *id,
        };
        // One that comes too late is nobody's any more.
        match (self.store.answered(id), answer) {
            (Some(StoreWaiter::Follow), Answer::Done { .. }) => {
                self.following = Following::Yes;
                self.accounts.remote().into_iter().for_each(|remote| remote.follows(true));
                // What happened before is not told.
                self.announce_change();
            }
            (Some(StoreWaiter::Request(mut parked)), Answer::Rows { results, .. }) => {
                parked.results.extend(results);
                self.rehearsed(parked);
            }
            // The request asks itself, for one thing at a time.
            (Some(StoreWaiter::Request(parked)), Answer::TooLong { .. }) => self.request(parked.client, parked.request),
            (Some(waiter), Answer::Unavailable { text, .. }) => self.store_silent(waiter, &wire::escape::visible(&text)),
            (Some(waiter), _) => self.store_silent(waiter, "an answer to something else"),
            (None, _) => {}
        }
    }

    /// Somebody changed the accounts, this host or another.
    fn changed_elsewhere(&mut self) {
        self.accounts.remote().into_iter().for_each(|remote| remote.forget());
        self.announce_change();
    }

    fn follows_no_more(&mut self) {
        self.following = Following::No;
        self.follow_after = sys::clock::boottime().saturating_add(FOLLOW_PAUSE);
        self.accounts.remote().into_iter().for_each(|remote| remote.follows(false));
    }

    /// qmail-authnet was started anew, or another generation of it is there: it is asked again.
    fn store_went_away(&mut self, waiter: StoreWaiter) {
        match waiter {
            StoreWaiter::Request(mut parked) if parked.rounds < ROUNDS_MAX => {
                parked.calls.truncate(parked.results.len());
                self.rehearsed(parked);
            }
            waiter => self.store_silent(waiter, "qmail-authnet went away"),
        }
    }

    /// There is no answer: the request is answered by what is known.
    fn store_silent(&mut self, waiter: StoreWaiter, why: &str) {
        match waiter {
            StoreWaiter::Follow => self.follows_no_more(),
            StoreWaiter::Request(parked) => {
                self.accounts.remote().into_iter().for_each(|remote| remote.ask_nobody(why));
                self.request(parked.client, parked.request);
                self.accounts.remote().into_iter().for_each(|remote| remote.ask_again());
            }
        }
    }

    /// What an administrator asks is asked of the database itself.
    pub(crate) fn ask_freshly(&self, fresh: bool) {
        let Some(remote) = self.accounts.remote() else { return };
        if fresh { remote.be_fresh() } else { remote.ask_again() }
    }
}

/// The name in the first message of SCRAM (RFC 5802 §7: `…,n=NAME,r=…`) or the one of CRAM-MD5 (RFC 2195 §2: `NAME DIGEST`). A guess.
fn name_in(message: &[u8]) -> &[u8] {
    let mut parts = message.split(|b| *b == b',');
    match parts.find_map(|part| part.strip_prefix(b"n=")) {
        Some(name) => name,
        None => message.rsplitn(2, |b| *b == b' ').nth(1).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_where_the_mechanisms_have_them() {
        for (message, name) in [
            (&b"n,,n=ann@a.example,r=abc"[..], &b"ann@a.example"[..]),
            (b"p=tls-exporter,,n=ann,r=abc", b"ann"),
            (b"ann@a.example 0123abcd", b"ann@a.example"),
            (b"c=biws,r=x,p=y", b""),
            (b"", b""),
        ] {
            assert_eq!(name_in(message), name);
        }
    }
}
