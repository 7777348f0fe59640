//! A login against an LDAP directory: search for the entry by the configured filter, then bind as it with the password.
//!
//! An empty password is wrong before anything is sent: as a bind it would be "unauthenticated" and succeed (RFC 4513 §5.1.2).
//! Each check binds as the searching name first, whatever the connection was used for before, so that connections can be used again.

use crate::breaker::Breaker;
use crate::conversation::{Conversation, ENTRIES_MAX, Entry, said};
use crate::dial::{Dialer, Io};
use crate::{REQUEST_MAX, Trouble, UNDER_WAY_MAX, Verdict, account};
use control::ldap::Server as Place;
use control::{ControlError, Root, secret};
use ldap::request::{Scope, Search};
use ldap::{Filter, Login, Outcome};
use std::cell::RefCell;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use wire::Secret;

/// Connections of one server that are kept for the next login, and for how long.
const IDLE_MAX: usize = 8;
const IDLE_FOR: Duration = Duration::from_secs(60);

/// RFC 4511 appendix A: the server is there and does no work now.
const BUSY: u32 = 51;
const UNAVAILABLE: u32 = 52;
/// Beside invalidCredentials, what servers say to a right password that must not let in, or where there is none: constraintViolation and
/// unwillingToPerform for locked accounts.
const REFUSALS: [u32; 4] = [19, Outcome::INAPPROPRIATE_AUTHENTICATION, Outcome::INVALID_CREDENTIALS, 53];

type Talk = Conversation<Box<dyn Io>>;

/// The directory.
pub struct Directory {
    config: control::Ldap,
    filter: Filter,
    bind: Option<(String, Secret)>,
    dialer: Dialer,
    servers: Vec<Server>,
    places: Semaphore,
}

struct Server {
    place: Place,
    breaker: Breaker,
    idle: RefCell<Vec<(Talk, Instant)>>,
}

impl Directory {
    /// Reads control/ldap and the secret that it names. `dialer` is made for the file of authorities.
    ///
    /// # Errors
    /// A file is missing, malformed or not as secret as it must be.
    pub fn read(
        root: &Root,
        dialer: impl FnOnce(Option<&std::path::Path>) -> std::io::Result<Dialer>,
    ) -> Result<Self, ControlError> {
        let config = control::Ldap::read(root)?;
        let wrong = |problem: String| ControlError::new(&root.control_file(control::ldap::FILE), problem);
        let filter = Filter::parse(config.filter.as_bytes()).map_err(|problem| wrong(format!("`filter`: {problem}")))?;
        let bind = config.bind.as_ref().map(|(name, file)| Ok((name.clone(), secret::read(file)?))).transpose()?;
        let dialer = dialer(config.cafile.as_deref()).map_err(|error| wrong(format!("`cafile`: {error}")))?;
        let server =
            |place: &Place| Server { place: place.clone(), breaker: Breaker::new(named(place)), idle: RefCell::default() };
        let servers = config.servers.iter().map(server).collect();
        Ok(Self { filter, bind, dialer, servers, config, places: Semaphore::new(UNDER_WAY_MAX) })
    }

    /// Is this the login's password? Within [`REQUEST_MAX`].
    pub async fn check(&self, login: &[u8], password: &[u8]) -> Verdict {
        if password.is_empty() {
            return Verdict::Wrong;
        }
        // A directory compares what is left after control characters, blanks at the ends and differences of width were taken away (RFC 4518
        // §2): such spellings of one name would each have their own count of failures.
        if !login.iter().all(u8::is_ascii_graphic) {
            return Verdict::NoSuchUser;
        }
        let Some(filter) = self.filter.encode(Login::new(login, sys::clock::unix_s())) else { return Verdict::NoSuchUser };
        let Ok(_place) = self.places.try_acquire() else {
            return Verdict::Unavailable("too many logins at once for the directory".to_owned());
        };
        let due = Instant::now() + REQUEST_MAX;
        let mut last = Trouble::from("did not answer lately");
        for (at, server) in self.servers.iter().enumerate() {
            if !server.breaker.may_try() {
                continue;
            }
            // The first one that hangs must leave time for the others.
            let others = u32::try_from(self.servers.len().saturating_sub(at)).unwrap_or(1);
            let share = due.saturating_duration_since(Instant::now()).checked_div(others).unwrap_or_default();
            let asked = timeout(share, self.ask(server, login, &filter, password)).await;
            match asked.unwrap_or_else(|_| Err("no answer in time".into())) {
                Ok(verdict) => {
                    server.breaker.succeeded();
                    return verdict;
                }
                Err(trouble) => {
                    server.breaker.failed(&trouble);
                    // Others that were kept are as old.
                    server.idle.borrow_mut().clear();
                    last = Trouble(format!("{}: {}", server.breaker.server(), trouble.0));
                }
            }
        }
        Verdict::Unavailable(last.0)
    }

    /// One server's verdict. A connection that was kept may have ended meanwhile: then there is a new one, once.
    async fn ask(&self, server: &Server, login: &[u8], filter: &[u8], password: &[u8]) -> Result<Verdict, Trouble> {
        if let Some(mut talk) = server.kept()
            && self.bind_to_search(&mut talk).await.is_ok()
        {
            return self.judge(server, talk, login, filter, password).await;
        }
        let mut talk = self.connect(&server.place).await?;
        self.bind_to_search(&mut talk).await?;
        self.judge(server, talk, login, filter, password).await
    }

    async fn connect(&self, place: &Place) -> Result<Talk, Trouble> {
        let io: Box<dyn Io> = match place {
            Place::Clear(endpoint) => Box::new(self.dialer.tcp(endpoint).await?),
            Place::Tls(endpoint) => Box::new(self.dialer.tls(self.dialer.tcp(endpoint).await?, &endpoint.host).await?),
            Place::StartTls(endpoint) => {
                let tcp = Conversation::new(self.dialer.tcp(endpoint).await?).start_tls().await?;
                Box::new(self.dialer.tls(tcp, &endpoint.host).await?)
            }
            Place::Unix(path) => {
                Box::new(UnixStream::connect(path).await.map_err(|error| Trouble::new("no connection", &error))?)
            }
        };
        Ok(Conversation::new(io))
    }

    /// As the name that searches, or as nobody.
    async fn bind_to_search(&self, talk: &mut Talk) -> Result<(), Trouble> {
        let (name, password) =
            self.bind.as_ref().map_or((&[][..], &[][..]), |(name, password)| (name.as_bytes(), password.expose()));
        match talk.bind(name, password).await? {
            Some(outcome) if outcome.is_success() => Ok(()),
            Some(outcome) => Err(said("binddn", &outcome)),
            None => Err("binddn has an empty password".into()),
        }
    }

    async fn judge(
        &self,
        server: &Server,
        mut talk: Talk,
        login: &[u8],
        filter: &[u8],
        password: &[u8],
    ) -> Result<Verdict, Trouble> {
        let verdict = match self.find(&mut talk, login, filter).await? {
            Ok((dn, user)) => match talk.bind(&dn, password).await? {
                Some(outcome) if outcome.is_success() => Verdict::Right(user),
                Some(outcome) if REFUSALS.contains(&outcome.code) => Verdict::Wrong,
                Some(outcome) => unclear("bind", &outcome)?,
                None => Verdict::Wrong,
            },
            Err(verdict) => verdict,
        };
        server.keep(talk);
        Ok(verdict)
    }

    /// The name of the login's entry and of its account, or the verdict that there is no one such.
    async fn find(&self, talk: &mut Talk, login: &[u8], filter: &[u8]) -> Result<Result<(Vec<u8>, Vec<u8>), Verdict>, Trouble> {
        let search = Search {
            base: self.config.base.as_bytes(),
            scope: match self.config.scope {
                control::ldap::Scope::Base => Scope::Base,
                control::ldap::Scope::One => Scope::One,
                control::ldap::Scope::Sub => Scope::Sub,
            },
            filter,
            attributes: &[self.config.attribute.as_bytes()],
            size_limit: ENTRIES_MAX,
            time_limit_s: u32::try_from(REQUEST_MAX.as_secs()).unwrap_or(1),
        };
        let (entries, outcome) = talk.search(&search).await?;
        let unavailable = |text: &str| Err(Verdict::Unavailable(text.to_owned()));
        Ok(match (entries.as_slice(), outcome.code) {
            ([], Outcome::SUCCESS) => Err(Verdict::NoSuchUser),
            ([entry], Outcome::SUCCESS) if entry.dn.is_empty() => unavailable("the directory found an entry without a name"),
            ([entry], Outcome::SUCCESS) => match self.user(entry, login) {
                Some(user) => Ok((entry.dn.clone(), account(&user, self.config.domain.as_deref()))),
                None => unavailable("the entry has no value, or several, of the attribute that names the account"),
            },
            // Who of them would it be?
            (_, Outcome::SUCCESS | Outcome::SIZE_LIMIT_EXCEEDED) => unavailable("the filter finds several entries for one login"),
            _ => Err(unclear("search", &outcome)?),
        })
    }

    /// The account that an entry names: its one value of the attribute, or of several the one that is the login.
    fn user(&self, entry: &Entry, login: &[u8]) -> Option<Vec<u8>> {
        let wanted = self.config.attribute.as_bytes();
        let mut named = entry.attributes.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        let (_, values) = named.next()?;
        let is_login = |value: &&Vec<u8>| value.eq_ignore_ascii_case(login);
        let value = if let [only] = values.as_slice() { Some(only) } else { values.iter().find(is_login) };
        value.filter(|value| !value.is_empty()).cloned()
    }
}

/// A result that says neither yes nor no. One that depends on this login must not count against the server, or whoever can bring it about
/// could shut out everybody.
fn unclear(what: &str, outcome: &Outcome) -> Result<Verdict, Trouble> {
    let trouble = said(what, outcome);
    if matches!(outcome.code, BUSY | UNAVAILABLE) { Err(trouble) } else { Ok(Verdict::Unavailable(trouble.0)) }
}

impl Server {
    fn kept(&self) -> Option<Talk> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|(_, since)| since.elapsed() < IDLE_FOR);
        idle.pop().map(|(talk, _)| talk)
    }

    fn keep(&self, talk: Talk) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push((talk, Instant::now()));
        }
    }
}

fn named(place: &Place) -> String {
    match place {
        Place::Tls(endpoint) => format!("ldaps://{endpoint}"),
        Place::StartTls(endpoint) | Place::Clear(endpoint) => format!("ldap://{endpoint}"),
        Place::Unix(path) => format!("ldapi://{}", wire::escape::visible(path.as_os_str().as_encoded_bytes())),
    }
}
