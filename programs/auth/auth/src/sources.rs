//! Who is asked about a password, in the order of control/authsources: the accounts here, by qmail-checkpw a checkpassword program, etc/shadow
//! or PAM, and by qmail-authnet (`authnet`) an LDAP directory.
//!
//! - A source that knows nobody of the name lets the next one be asked; so does a checkpassword program that accepts the login not, since its
//!   interface cannot tell the two apart.
//! - A source that says "wrong" has the last word: what is asked after it could be easier to please. The others are asked all the same, about
//!   nobody, so that the time of a refusal does not say which source knows a name.
//! - A source that cannot be asked makes the login a temporary failure, never a refusal: for a name that a source before it knows as for any
//!   other, so that nobody learns which names are known while a source is away. What was wrong by the word of a source counts as a failure
//!   all the same.
//! - App passwords are the accounts' own, and count wherever the main password is.
//!
//! Whom a right password lets in: the account of that address, which must be there and open, or (not by LDAP) the system user of that name
//! at one of this host's own domains, whom qmail-lspawn must find to be a person. Sources say who it is, never with what uid or home.

use crate::directory::Place;
use crate::login::{Found, Login, Service};
use crate::server::{LspawnWaiter, Server, log};
use accounts::{Directory as _, UserName};
use control::authsources::Source;
use ipc::Message as _;
use ipc::auth::Answer;
use ipc::checkpw::{self, Verdict};
use logline::Line;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;
use wire::{Address, Domain, Secret};
use zeroize::Zeroizing;

/// A little more than qmail-checkpw allows itself.
pub(crate) const CHECKPW_DEADLINE: Duration = Duration::from_secs(9);
/// A name that no source knows, and its password.
const NOBODY: &str = "-";

/// The sources that a login has still before it.
#[derive(Default)]
pub(crate) struct Walk {
    left: VecDeque<Source>,
    password: Zeroizing<Vec<u8>>,
    /// What the accounts know, until they are asked.
    hash: Option<Zeroizing<String>>,
    /// The system user of the name that was given.
    system: Option<Vec<u8>>,
    /// A source said "wrong", or nothing: the others change nothing any more.
    pub(crate) is_refused: bool,
    /// A source said nothing. `Some(true)`: after another had said "wrong".
    silent: Option<bool>,
}

impl Walk {
    /// Before the first source; `system` is the system user of the name that was given.
    pub(crate) fn new(system: Option<Vec<u8>>) -> Self {
        Self { system, ..Self::default() }
    }

    /// The name and the password that the next source is asked about.
    pub(crate) fn question<'a>(&'a self, name: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        if self.is_refused { (NOBODY.as_bytes(), NOBODY.as_bytes()) } else { (name, &self.password) }
    }
}

/// Who may be let in.
enum Who {
    Account(Domain, UserName),
    System(Vec<u8>),
}

impl Server {
    /// The sources as they are now.
    pub(crate) fn sources(&mut self) -> Result<Vec<Source>, String> {
        let sources = self.auth_sources.get().cloned().map_err(|error| error.to_string());
        sources.map_err(|error| {
            self.trouble(&error);
            "control/authsources cannot be used".to_owned()
        })
    }

    /// Are the accounts a source? If not, nothing that is kept there is worth anything.
    pub(crate) fn asks_accounts(&mut self) -> Result<bool, String> {
        Ok(self.sources()?.contains(&Source::Accounts))
    }

    /// The system user whom a login names: by his name alone, or at a domain of control/locals.
    pub(crate) fn system_of(&mut self, login: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let Ok(address) = Address::new(login) else { return Ok(None) };
        Ok(match self.place(&address)? {
            // Not by virtualdomains, percenthack and the like: those say where mail goes, not who somebody is.
            Place::Local(local) if !local.is_empty() && local == address.local() => Some(local.to_ascii_lowercase()),
            _ => None,
        })
    }

    /// Asks the first source about a password.
    pub(crate) fn ask_sources(&mut self, found: Found, password: Zeroizing<Vec<u8>>) {
        let Some(Found { mut login, hash, .. }) = self.not_by_app_password(found, &password) else { return };
        match self.sources() {
            Ok(sources) => {
                let system = login.walk.system.take();
                login.walk = Walk { left: sources.into(), password, hash, system, ..Walk::default() };
                self.next_source(Box::new(login));
            }
            Err(text) => self.unavailable(login.asker, &text),
        }
    }

    pub(crate) fn next_source(&mut self, mut login: Box<Login>) {
        let skipped = |source: &Source, login: &Login| match source {
            // It judges tokens alone.
            Source::Oauth => true,
            source => source.is_of_system() && login.walk.system.is_none(),
        };
        let source = loop {
            match login.walk.left.pop_front() {
                Some(source) if skipped(&source, &login) => {}
                source => break source,
            }
        };
        match source {
            None => match login.walk.silent {
                None => self.judged(*login, false),
                Some(was_wrong) => {
                    if was_wrong {
                        self.failed(&login);
                    }
                    self.unavailable(login.asker, "a source of logins is out of reach");
                }
            },
            Some(Source::Accounts) => self.ask_accounts(login),
            Some(Source::Ldap) => self.ask_authnet(login, "ldap"),
            Some(source) => self.ask_checkpw(login, &source),
        }
    }

    fn ask_accounts(&mut self, mut login: Box<Login>) {
        // After a refusal the work is done all the same, on nobody's hash.
        let hash = login.walk.hash.take().filter(|_| !login.walk.is_refused);
        let password = login.walk.password.clone();
        self.check_account(*login, hash, password);
    }

    /// The accounts did not let it in.
    pub(crate) fn not_by_accounts(&mut self, mut login: Login) {
        login.walk.is_refused |= login.account().is_some();
        self.next_source(Box::new(login));
    }

    fn ask_checkpw(&mut self, login: Box<Login>, source: &Source) {
        // The users of the system have one spelling; a program gets what the client wrote.
        let name = if source.is_of_system() { login.walk.system.as_deref().unwrap_or_default() } else { login.name() };
        let (name, password) = login.walk.question(name);
        let (login_name, password) = (name.into(), Secret::new(password.to_vec()));
        let (source, service, remote) = (source.line().into(), login.service().name().into(), login.remote());
        let question = move |id| checkpw::Request::Check { id, source, service, login: login_name, password, remote }.encode();
        if let Err(login) = self.checkpw.ask(question, login, sys::clock::boottime()) {
            self.unavailable(login.asker, "too many logins at once");
        }
    }

    /// qmail-checkpw's connection has something to say.
    pub(crate) fn checkpw_ready(&mut self, buf: &mut [u8]) {
        loop {
            let gone = match self.checkpw.receive(buf) {
                Ok(None) => return,
                Ok(Some((len, _))) => match checkpw::Answer::decode(buf.get(..len).unwrap_or_default()) {
                    Ok(checkpw::Answer::Judged { id, verdict }) => {
                        if let Some(login) = self.checkpw.answered(id) {
                            self.source_says(login, verdict);
                        }
                        continue;
                    }
                    Err(_) => self.checkpw.reset(),
                },
                Err(gone) => gone,
            };
            gone.into_iter().for_each(|login| self.checkpw_gone(login));
            return;
        }
    }

    pub(crate) fn checkpw_gone(&mut self, login: Box<Login>) {
        self.trouble("no answer from qmail-checkpw");
        self.source_is_silent(login);
    }

    /// There is no verdict, and no other source can give one; those that are left are asked about nobody.
    pub(crate) fn source_is_silent(&mut self, mut login: Box<Login>) {
        let walk = &mut login.walk;
        walk.silent = walk.silent.or(Some(walk.is_refused));
        walk.is_refused = true;
        self.next_source(login);
    }

    /// A source other than the accounts has judged.
    fn source_says(&mut self, mut login: Box<Login>, verdict: Verdict) {
        match verdict {
            Verdict::Unavailable { text } => {
                let text = String::from_utf8_lossy(&text).into_owned();
                self.trouble(&format!("a source of logins: {}", wire::escape::visible(text.as_bytes())));
                self.source_is_silent(login);
            }
            _ if login.walk.is_refused => self.next_source(login),
            Verdict::Right { user } => self.source_accepts(login, &user),
            Verdict::NoSuchUser {} => self.next_source(login),
            Verdict::Wrong {} => {
                login.walk.is_refused = true;
                self.next_source(login);
            }
        }
    }

    /// The password is right, and the source says whose it is.
    fn source_accepts(&mut self, mut login: Box<Login>, user: &[u8]) {
        match self.who(user) {
            Ok(Some((Who::Account(domain, name), is_open))) => {
                login.become_account(domain, name, is_open);
                self.judged(*login, true);
            }
            // Refused like a wrong password from here on, so that the limit holds for guesses made at once.
            Ok(Some((Who::System(_), _))) if self.is_refused(login.attempt()) => self.judged(*login, false),
            Ok(Some((Who::System(name), _))) => self.ask_system_user(login, name),
            Ok(None) => {
                log(Line::new("a source of logins accepts somebody who has no mailbox here:").bytes("user", user));
                self.judged(*login, false);
            }
            Err(text) => self.unavailable(login.asker, &text),
        }
    }

    /// Who a source means, and whether the account is open.
    fn who(&mut self, user: &[u8]) -> Result<Option<(Who, bool)>, String> {
        if let Some(name) = self.system_of(user)? {
            return Ok(Some((Who::System(name), true)));
        }
        let Some((domain, name)) = self.account_of(user)? else { return Ok(None) };
        let credentials =
            self.accounts.credentials(&domain, name.as_bytes()).map_err(|error| self.trouble(&error.to_string()))?;
        Ok(credentials.map(|credentials| (Who::Account(domain, name), !credentials.suspended)))
    }

    /// Is he a person, and for POP3: where is his mailbox? qmail-lspawn finds out.
    fn ask_system_user(&mut self, login: Box<Login>, name: Vec<u8>) {
        let (user, session) = (name.as_slice().into(), login.service() == Service::Pop3);
        let question = |id| ipc::lspawn::Request::SystemUser { id, user, session }.encode();
        if let Err(waiter) = self.lspawn.ask(question, LspawnWaiter::SystemUser { login, name }, sys::clock::boottime()) {
            self.lspawn_gone(waiter);
        }
    }

    /// qmail-lspawn's word on a system user whose password was right.
    pub(crate) fn system_user(&mut self, login: Box<Login>, name: &[u8], answer: ipc::lspawn::Answer, fd: Option<OwnedFd>) {
        let wants_session = login.service() == Service::Pop3;
        match answer {
            ipc::lspawn::Answer::Session { .. } if fd.is_some() == wants_session => {
                let host = self.places.routing().map(|routing| routing.envnoathost.clone()).unwrap_or_default();
                let user = [name, b"@", &host].concat();
                let asker = login.asker;
                self.succeeded(&login);
                self.answer(asker.client, &Answer::LoggedIn { id: asker.id, user: user.into() }, fd);
            }
            ipc::lspawn::Answer::NoUser { text, .. } => {
                log(Line::new("login not allowed:").bytes("user", name).bytes("reason", &text));
                self.judged(*login, false);
            }
            ipc::lspawn::Answer::NoSession { text, .. } => {
                log(Line::new("no session:").bytes("user", name).bytes("reason", &text));
                self.unavailable(login.asker, "the mailbox cannot be opened now");
            }
            _ => self.unavailable(login.asker, "qmail-lspawn gave no session"),
        }
    }
}
