//! Logins: the hash is computed elsewhere, the session (for POP3) is made by qmail-lspawn, and an unknown user is answered like a wrong password.

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

/// What a login is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    /// A session of the mailbox.
    Pop3,
    /// To send mail: the verdict is all.
    Smtp,
}

impl Service {
    const ALL: [Self; 2] = [Self::Pop3, Self::Smtp];

    /// As callers and the log name it.
    const fn name(self) -> &'static str {
        match self {
            Self::Pop3 => "pop3",
            Self::Smtp => "smtp",
        }
    }
}

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
    /// For the administrator, who stores it.
    Hash {
        client: u64,
    },
}

/// A login whose password is being checked.
pub(crate) struct Login {
    asker: Asker,
    service: Service,
    login: Vec<u8>,
    /// `None`: nobody of this name.
    user: Option<(Domain, UserName)>,
    suspended: bool,
    remote: Option<IpAddr>,
}

impl Server {
    pub(crate) fn login(&mut self, asker: Asker, service: &[u8], login: &[u8], password: Bytes, remote: Option<IpAddr>) {
        let password = Zeroizing::new(password.0);
        let Some(service) = Service::ALL.into_iter().find(|known| known.name().as_bytes() == service) else {
            return self.unavailable(asker, "this service has no logins");
        };
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
        let login = Login { asker, service, login: login.to_vec(), user, suspended, remote };
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
            (HashJob::Hash { client }, Outcome::Hashed(hash)) => self.new_hash(client, hash),
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
        let service = login.service.name();
        let from = login.remote.map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
        // Last on its line, so that no name can pass for another field.
        let name = wire::escape::visible(login.login.get(..LOGGED_LEN_MAX.min(login.login.len())).unwrap_or_default());
        let Some((domain, user)) = login.user.filter(|_| right) else {
            log(&format!("login failed: service={service} remote={from} user={name}"));
            let Asker { client, id } = login.asker;
            return self.answer(client, &Answer::Refused { id }, None);
        };
        log(&format!("login: service={service} remote={from} user={name}"));
        let address = [user.as_bytes(), b"@", domain.as_bytes()].concat();
        if login.service == Service::Smtp {
            let Asker { client, id } = login.asker;
            return self.answer(client, &Answer::LoggedIn { id, user: address.into() }, None);
        }
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
