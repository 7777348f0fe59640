//! Logins: the hash is computed elsewhere, the session is made by qmail-lspawn, and an unknown user is answered like a wrong password.

use crate::pool::{Outcome, Work};
use crate::recipients::Asker;
use crate::server::{LspawnWaiter, Place, Server, log};
use accounts::{Directory, UserName};
use ipc::Message;
use ipc::auth::Answer;
use ipc::field::Bytes;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use wire::{Address, Domain};
use zeroize::Zeroizing;

/// The one service whose logins bring a session.
const POP3: &[u8] = b"pop3";

/// Bytes of a login name that are logged.
const LOGGED_LEN_MAX: usize = 320;

/// A hash under way and what it is for.
pub(crate) enum HashJob {
    Login(Login),
    /// A new password; `add` makes the user too.
    Password {
        client: u64,
        domain: Domain,
        user: UserName,
        add: bool,
    },
}

/// A login whose password is being checked.
pub(crate) struct Login {
    asker: Asker,
    login: Vec<u8>,
    /// `None`: nobody of this name.
    user: Option<(Domain, UserName)>,
    suspended: bool,
    remote: Option<IpAddr>,
}

impl Server {
    pub(crate) fn login(&mut self, asker: Asker, service: &[u8], login: &[u8], password: Bytes, remote: Option<IpAddr>) {
        let password = Zeroizing::new(password.0);
        if service != POP3 {
            return self.unavailable(asker, "this service has no logins");
        }
        let user = match self.account_of(login) {
            Ok(user) => user,
            Err(text) => return self.unavailable(asker, &text),
        };
        let credentials = user.as_ref().map(|(domain, name)| self.accounts.credentials(domain, name.as_bytes())).transpose();
        let credentials = match credentials {
            Ok(credentials) => credentials.flatten(),
            Err(error) => {
                self.trouble(&error.to_string());
                return self.unavailable(asker, "the accounts cannot be read");
            }
        };
        let suspended = credentials.as_ref().is_some_and(|c| c.suspended);
        let user = user.filter(|_| credentials.is_some());
        let login = Login { asker, login: login.to_vec(), user, suspended, remote };
        let work = Work::Verify { stored: credentials.map(|c| c.password_hash), password };
        if self.pool.submit(HashJob::Login(login), work).is_err() {
            self.unavailable(asker, "too many logins at once");
        }
    }

    /// The account that a login names: a whole address of a virtual domain, without extension. Nobody for anything else.
    fn account_of(&mut self, login: &[u8]) -> Result<Option<(Domain, UserName)>, String> {
        let Ok(address) = Address::new(login) else { return Ok(None) };
        Ok(match self.place(&address)? {
            Place::Virtual(domain, local) => UserName::new(&local).map(|user| (domain, user)),
            _ => None,
        })
    }

    pub(crate) fn hashed(&mut self, job: HashJob, outcome: Outcome) {
        match (job, outcome) {
            (HashJob::Login(login), Outcome::Verified(verdict)) => self.verified(login, verdict),
            (HashJob::Password { client, domain, user, add }, Outcome::Hashed(hash)) => {
                self.new_password(client, &domain, &user, add, hash);
            }
            // Work and job are made together; anything else is answered by nobody and times out.
            _ => log("a hash was computed for something else"),
        }
    }

    fn verified(&mut self, login: Login, verdict: Result<bool, accounts::Error>) {
        let right = match verdict {
            Ok(right) => right && !login.suspended,
            Err(error) => {
                self.trouble(&error.to_string());
                return self.unavailable(login.asker, "the password cannot be checked");
            }
        };
        let from = login.remote.map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
        // Last on its line, so that no name can pass for another field.
        let name = wire::escape::visible(login.login.get(..LOGGED_LEN_MAX.min(login.login.len())).unwrap_or_default());
        let Some((domain, user)) = login.user.filter(|_| right) else {
            log(&format!("login failed: service=pop3 remote={from} user={name}"));
            let Asker { client, id } = login.asker;
            return self.answer(client, &Answer::Refused { id }, None);
        };
        log(&format!("login: service=pop3 remote={from} user={name}"));
        let address = [user.as_bytes(), b"@", domain.as_bytes()].concat();
        let waiter = LspawnWaiter::Session { asker: login.asker, user: address };
        let user = Bytes::from(user.as_bytes());
        let question = |id| ipc::lspawn::Request::Session { id, domain, user }.encode();
        if self.lspawn.ask(question, waiter, sys::clock::boottime()).is_err() {
            self.unavailable(login.asker, "too many sessions at once");
        }
    }

    /// qmail-lspawn's answer for a login that was right.
    pub(crate) fn session(&mut self, asker: Asker, user: &[u8], answer: &ipc::lspawn::Answer, fd: Option<OwnedFd>) {
        match (answer, fd) {
            (ipc::lspawn::Answer::Session { .. }, Some(fd)) => {
                self.answer(asker.client, &Answer::LoggedIn { id: asker.id, user: user.into() }, Some(fd));
            }
            (ipc::lspawn::Answer::NoSession { text, .. }, _) => {
                log(&format!("no session for {}: {}", wire::escape::visible(user), wire::escape::visible(text)));
                self.unavailable(asker, "the mailbox cannot be opened now");
            }
            _ => self.unavailable(asker, "qmail-lspawn gave no session"),
        }
    }

    pub(crate) fn unavailable(&mut self, asker: Asker, text: &str) {
        self.answer(asker.client, &Answer::Unavailable { id: asker.id, text: text.into() }, None);
    }
}
