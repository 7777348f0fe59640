//! Logins: judged by a hash that is computed elsewhere, by an app password, by another source (`sources`), or by what an exchange proved. The
//! session (for POP3) is made by qmail-lspawn. An unknown user and a suspended one are answered like a wrong password, after the same work.

use crate::directory::Place;
use crate::hashing::HashJob;
use crate::limits::Attempt;
use crate::pool::Work;
use crate::recipients::Asker;
use crate::server::{LspawnWaiter, Server, log};
use crate::sources::Walk;
use accounts::secrets::{AppPassword, Kind, Scope};
use accounts::{Directory, Secrets as _, UserName, app_password};
use ipc::Message;
use ipc::auth::Answer;
use ipc::field::Bytes;
use logline::Line;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use wire::{Address, Domain, Secret};
use zeroize::Zeroizing;

/// What a login is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// A session of the mailbox.
    Pop3,
    /// To send mail: the verdict is all.
    Smtp,
    /// For a program of others (`checkpassword`): the verdict is all, and only passwords count that count everywhere.
    Checkpassword,
    /// To administer domains; no app password counts.
    Admin,
}

impl Service {
    const ALL: [Self; 4] = [Self::Pop3, Self::Smtp, Self::Checkpassword, Self::Admin];

    pub(crate) fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name().as_bytes() == name)
    }

    /// As callers and the log name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Pop3 => "pop3",
            Self::Smtp => "smtp",
            Self::Checkpassword => "checkpassword",
            Self::Admin => "admin",
        }
    }

    fn is_in(self, scope: Scope) -> bool {
        match scope {
            Scope::All => self != Self::Admin,
            Scope::Smtp => self == Self::Smtp,
            Scope::Pop3 => self == Self::Pop3,
        }
    }
}

/// Bytes of a login name that are logged.
const LOGGED_LEN_MAX: usize = 320;
/// A day, to which the last use of an app password is rounded.
const DAY_S: u64 = 86_400;

/// A login on its way to the verdict.
pub(crate) struct Login {
    pub(crate) asker: Asker,
    service: Service,
    /// As it was given.
    login: Vec<u8>,
    /// `None`: nobody of this name.
    user: Option<(Domain, UserName)>,
    /// A right password helps: the account is not suspended.
    is_open: bool,
    attempt: Attempt,
    remote: Option<IpAddr>,
    /// The hash and the password that is being checked against it, to be made anew if it is right.
    checked: Option<(Zeroizing<String>, Zeroizing<Vec<u8>>)>,
    /// Other sources that are to be asked.
    pub(crate) walk: Walk,
}

/// What a login can be judged by.
pub(crate) struct Found {
    pub(crate) login: Login,
    /// `None` also where the main password does not count.
    pub(crate) hash: Option<Zeroizing<String>>,
    /// Those for the service.
    pub(crate) apps: Vec<AppPassword>,
}

impl Login {
    /// The account's own address; `None` for nobody.
    pub(crate) fn account(&self) -> Option<&(Domain, UserName)> {
        self.user.as_ref()
    }

    /// A source says that it is this account's.
    pub(crate) fn become_account(&mut self, domain: Domain, user: UserName, is_open: bool) {
        (self.user, self.is_open) = (Some((domain, user)), is_open);
    }

    /// As it was given.
    pub(crate) fn name(&self) -> &[u8] {
        &self.login
    }

    pub(crate) fn service(&self) -> Service {
        self.service
    }

    pub(crate) fn remote(&self) -> Option<IpAddr> {
        self.remote
    }

    pub(crate) fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// Puts who tries to log in behind what the line says already.
    fn describe(&self, line: Line) -> Line {
        let from = self.remote.map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
        line.put("remote", from).bytes("user", self.login.get(..LOGGED_LEN_MAX.min(self.login.len())).unwrap_or_default())
    }
}

impl Server {
    pub(crate) fn login(&mut self, asker: Asker, service: &[u8], login: &[u8], password: Secret, remote: Option<IpAddr>) {
        let Some(service) = Service::named(service) else { return self.unavailable(asker, "this service has no logins") };
        if let Some(found) = self.find(asker, service, login, remote) {
            self.ask_sources(found, password.into_bytes());
        }
    }

    /// Ends the login if an app password of the account opens it; else gives it back.
    pub(crate) fn not_by_app_password(&mut self, found: Found, password: &[u8]) -> Option<Found> {
        let app = found.apps.iter().find(|app| app_password::is_of(&app.digest, password));
        let Some((name, used_s)) = app.filter(|_| found.login.is_open).map(|app| (app.name.clone(), app.used_s)) else {
            return Some(found);
        };
        self.app_password_used(&found.login, &name, used_s);
        self.judged(found.login, true);
        None
    }

    /// The accounts as a source. `hash`: the account's, where its main password counts.
    pub(crate) fn check_account(&mut self, mut login: Login, hash: Option<Zeroizing<String>>, password: Zeroizing<Vec<u8>>) {
        let asker = login.asker;
        login.checked = hash.clone().map(|hash| (hash, password.clone()));
        let work = Work::Verify { stored: hash, password };
        if self.pool.submit(HashJob::Login(Box::new(login)), work).is_err() {
            self.unavailable(asker, "too many logins at once");
        }
    }

    /// POP3's APOP.
    pub(crate) fn apop(&mut self, asker: Asker, login: &[u8], timestamp: &[u8], digest: &[u8], remote: Option<IpAddr>) {
        match self.asks_accounts() {
            Ok(true) => {}
            Ok(false) => return self.unavailable(asker, "the accounts judge no logins here"),
            Err(text) => return self.unavailable(asker, &text),
        }
        let Some(found) = self.find(asker, Service::Pop3, login, remote) else { return };
        let Some(secret) = self.clear_secret(&found) else { return };
        let is_right = sasl::cram_md5::is_right_apop(&secret, timestamp, digest);
        self.judged(found.login, is_right);
    }

    /// The password itself, of an account that keeps it and whose main password counts; for all others random bytes, so that the same is
    /// done and no digest fits. `None`: it was answered already.
    pub(crate) fn clear_secret(&mut self, found: &Found) -> Option<Zeroizing<Vec<u8>>> {
        let account = found.login.account().filter(|_| found.hash.is_some());
        let secret = account.map(|(domain, user)| self.accounts.secret(domain, user.as_bytes(), Kind::Clear)).transpose();
        let secret = secret.and_then(|secret| match secret.flatten() {
            Some(secret) => Ok(secret),
            None => Ok(Zeroizing::new(sys::random::bytes16()?.to_vec())),
        });
        secret
            .map_err(|error| {
                self.trouble(&error.to_string());
                self.unavailable(found.login.asker, "the accounts cannot be read");
            })
            .ok()
    }

    /// Whose login it is and what can prove it, unless it is refused unheard or the accounts are out of reach: that is answered here.
    pub(crate) fn find(&mut self, asker: Asker, service: Service, login: &[u8], remote: Option<IpAddr>) -> Option<Found> {
        let named = self.account_of(login).and_then(|user| Ok((user, self.system_of(login)?, self.asks_accounts()?)));
        let (user, system, asks_accounts) = match named {
            Ok(named) => named,
            Err(text) => {
                self.unavailable(asker, &text);
                return None;
            }
        };
        // By its own name, where it could have one: other spellings are no other account.
        let own_name =
            user.as_ref().map(|(domain, user)| [user.as_bytes(), b"@", domain.as_bytes()].concat()).or_else(|| system.clone());
        let attempt = self.limits.attempt(remote, own_name.as_deref().unwrap_or(login));
        if self.is_refused(&attempt) {
            let pause = self.auth_limits().pause_max;
            self.refused(asker, pause);
            return None;
        }
        match self.look_up(user, service) {
            Ok((user, is_open, hash, apps)) => {
                let (login, walk) = (login.to_vec(), Walk::new(system));
                let login = Login { asker, service, login, user, is_open, attempt, remote, checked: None, walk };
                // The main password is kept here only where the accounts are a source; app passwords are nowhere else.
                let hash = hash.filter(|_| asks_accounts);
                Some(Found { login, hash, apps })
            }
            Err(error) => {
                self.trouble(&error.to_string());
                self.unavailable(asker, "the accounts cannot be read");
                None
            }
        }
    }

    #[allow(clippy::type_complexity)]
    pub(crate) fn look_up(
        &mut self,
        user: Option<(Domain, UserName)>,
        service: Service,
    ) -> Result<(Option<(Domain, UserName)>, bool, Option<Zeroizing<String>>, Vec<AppPassword>), accounts::Error> {
        let Some((domain, name)) = user else { return Ok((None, false, None, Vec::new())) };
        let Some(credentials) = self.accounts.credentials(&domain, name.as_bytes())? else {
            return Ok((None, false, None, Vec::new()));
        };
        let mut apps = self.accounts.app_passwords(&domain, name.as_bytes())?;
        let main_counts = apps.is_empty() || !self.wants_app_passwords(&domain);
        apps.retain(|app| service.is_in(app.scope));
        let hash = Some(credentials.password_hash).filter(|_| main_counts);
        Ok((Some((domain, name)), !credentials.suspended, hash, apps))
    }

    /// The account that a login names: a whole address of a virtual domain, without extension. Nobody for anything else.
    pub(crate) fn account_of(&mut self, login: &[u8]) -> Result<Option<(Domain, UserName)>, String> {
        let Ok(address) = Address::new(login) else { return Ok(None) };
        Ok(match self.place(&address)? {
            Place::Virtual(domain, local) => UserName::new(&local).map(|user| (domain, user)),
            _ => None,
        })
    }

    /// The pool's verdict on a password.
    pub(crate) fn verified(&mut self, mut login: Login, verdict: Result<bool, accounts::Error>) {
        let right = match verdict {
            Ok(right) => right,
            Err(error) => {
                self.trouble(&error.to_string());
                return self.unavailable(login.asker, "the password cannot be checked");
            }
        };
        let checked = login.checked.take();
        let is_in = right && self.may_enter(&login);
        if let (true, Some((domain, user)), Some((old, password))) = (is_in, &login.user, checked) {
            self.renew(domain, user, &old, password);
        }
        if is_in { self.judged(login, true) } else { self.not_by_accounts(login) }
    }

    /// Does a right password help this login? Not if meanwhile too many others were wrong: of guesses that are made at once no more than
    /// the limit are answered.
    pub(crate) fn may_enter(&mut self, login: &Login) -> bool {
        login.is_open && login.user.is_some() && !self.is_refused(&login.attempt)
    }

    /// The end of a login: counted, logged and answered.
    pub(crate) fn judged(&mut self, login: Login, right: bool) {
        let is_in = right && self.may_enter(&login);
        let Some((domain, user)) = login.user.clone().filter(|_| is_in) else {
            let pause = self.failed(&login);
            return self.refused(login.asker, pause);
        };
        self.succeeded(&login);
        let address = [user.as_bytes(), b"@", domain.as_bytes()].concat();
        if login.service != Service::Pop3 {
            let Asker { client, id } = login.asker;
            if login.service == Service::Admin {
                self.becomes_manager(client, &address);
            }
            return self.answer(client, &Answer::LoggedIn { id, user: address.into() }, None);
        }
        let waiter = LspawnWaiter::Session { asker: login.asker, user: address };
        let user = Bytes::from(user.as_bytes());
        let question = |id| ipc::lspawn::Request::Session { id, domain, user }.encode();
        if self.lspawn.ask(question, waiter, sys::clock::boottime()).is_err() {
            self.unavailable(login.asker, "too many sessions at once");
        }
    }

    /// Counts and logs it. Returns how long the answer is to wait.
    pub(crate) fn failed(&mut self, login: &Login) -> std::time::Duration {
        log(login.describe(Line::new("login failed:").put("service", login.service.name())));
        let limits = self.auth_limits();
        let failure = self.limits.failed(&login.attempt, &limits, sys::clock::boottime());
        for what in failure.refused {
            let seconds = limits.block.as_secs();
            log(login.describe(Line::new("too many failed logins:").put("refused", what).put("seconds", seconds)));
        }
        failure.pause
    }

    /// Counts and logs it.
    pub(crate) fn succeeded(&mut self, login: &Login) {
        self.limits.succeeded(&login.attempt, sys::clock::boottime());
        log(login.describe(Line::new("login:").put("service", login.service.name())));
    }

    /// Notes the day, once a day: each note is a write to the disk.
    pub(crate) fn app_password_used(&mut self, login: &Login, app: &str, used_s: u64) {
        let now_s = sys::clock::unix_s();
        let today_s = now_s.saturating_sub(now_s.checked_rem(DAY_S).unwrap_or(0));
        if let (Some((domain, user)), true) = (&login.user, used_s != today_s)
            && let Err(error) = self.accounts.app_password_used(domain, user, app, today_s)
        {
            self.trouble(&error.to_string());
        }
    }

    pub(crate) fn refused(&mut self, asker: Asker, pause: std::time::Duration) {
        let Asker { client, id } = asker;
        let pause_s = u32::try_from(pause.as_secs()).unwrap_or(u32::MAX);
        self.answer(client, &Answer::Refused { id, pause_s }, None);
    }

    /// qmail-lspawn's answer for a login that was right.
    pub(crate) fn session(&mut self, asker: Asker, user: &[u8], answer: &ipc::lspawn::Answer, fd: Option<OwnedFd>) {
        match (answer, fd) {
            (ipc::lspawn::Answer::Session { .. }, Some(fd)) => {
                self.answer(asker.client, &Answer::LoggedIn { id: asker.id, user: user.into() }, Some(fd));
            }
            (ipc::lspawn::Answer::NoSession { text, .. }, _) => {
                log(Line::new("no session:").bytes("user", user).bytes("reason", text));
                self.unavailable(asker, "the mailbox cannot be opened now");
            }
            _ => self.unavailable(asker, "qmail-lspawn gave no session"),
        }
    }

    pub(crate) fn unavailable(&mut self, asker: Asker, text: &str) {
        self.answer(asker.client, &Answer::Unavailable { id: asker.id, text: text.into() }, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Outcome;
    use crate::server::{Listeners, Setup};
    use accounts::Accounts;
    use control::{Id, Ids, Root};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    /// A server that nobody is connected to, with users ann, sue (suspended) and old (an imported hash), all with the password `x`.
    fn server(dir: &std::path::Path) -> Server {
        let root = Root::new(dir).unwrap();
        for made in [root.control(), root.users()] {
            std::fs::create_dir_all(made).unwrap();
        }
        std::fs::write(root.control_file("me"), "host.example\n").unwrap();
        std::fs::write(root.domains_file(), "a.example:64107:64107:/m\n").unwrap();
        let mut accounts = Accounts::in_memory().unwrap();
        let domain = Domain::new(b"a.example").unwrap();
        let hash = accounts::password::hash(b"x").unwrap();
        for (name, hash) in [("ann", hash.as_str()), ("sue", &hash), ("old", "{PLAIN}x")] {
            accounts.add_user(&domain, &UserName::new(name.as_bytes()).unwrap(), hash, 0).unwrap();
        }
        let suspended = accounts::UserChange::Suspension { suspended: true, refuses_mail: false };
        accounts.change_user(&domain, &UserName::new(b"sue").unwrap(), &suspended).unwrap();
        let id = Id { uid: rustix::process::geteuid().as_raw(), gid: 0 };
        let run = Arc::new(std::fs::File::open(dir).unwrap().into());
        let mut server = Server::new(Setup { root, accounts, ids: Ids::Caller(id), run }, Listeners::default()).unwrap();
        server.look();
        server
    }

    /// What the pool computes: at least `count` things, and whatever comes within a moment after them.
    fn computed(server: &mut Server, count: usize) -> Vec<&'static str> {
        let (mut out, mut until) = (Vec::new(), Instant::now() + Duration::from_secs(20));
        while Instant::now() < until {
            let Some((job, outcome)) = server.pool.take() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            out.push(match &outcome {
                Outcome::Verified(_) => "verified",
                Outcome::Made(_) => "made",
            });
            if out.len() >= count {
                until = Instant::now() + Duration::from_millis(200);
            }
            server.hashed(job, outcome);
        }
        out
    }

    /// A name that looks like the fields of a log is the value of one field.
    #[test]
    fn a_name_that_looks_like_fields_is_one_value() {
        let dir = tempfile::tempdir().unwrap();
        let mut server = server(dir.path());
        let long = ["x\u{1}\""; 400].concat();
        for name in ["ann@a.example service=pop3", "x user=ann@a.example", "\" event=\"", "a\nlogin: user=b", "\\", "", &long] {
            let remote = Some("192.0.2.1".parse().unwrap());
            let found = server.find(Asker { client: 0, id: 1 }, Service::Smtp, name.as_bytes(), remote).unwrap();
            let line = found.login.describe(Line::new("login failed:").put("service", "smtp")).finish();
            assert!(line.starts_with("login failed: service=smtp remote=192.0.2.1 user="), "{line}");
            let (event, pairs) = logline::pairs(line.as_bytes()).unwrap();
            assert_eq!(event, b"login failed");
            let [(b"service", _), (b"remote", _), (b"user", user)] = &pairs[..] else { panic!("{line}") };
            assert!(name.as_bytes().starts_with(user.strip_suffix(b"...").unwrap_or(user)), "{line}");
        }
    }

    /// What stands between a name that somebody has and one that nobody has is the time of a hash: so each takes one.
    #[test]
    fn the_work_for_a_name_that_nobody_has_is_that_for_one_that_somebody_has() {
        let dir = tempfile::tempdir().unwrap();
        let mut server = server(dir.path());
        let remote = Some("192.0.2.1".parse().unwrap());
        for (login, password) in [
            ("ann@a.example", "wrong"),
            ("sue@a.example", "wrong"),
            ("sue@a.example", "x"),
            ("bob@a.example", "x"),
            ("bob@elsewhere.example", "x"),
            ("bob", "x"),
            ("", "x"),
            ("ann\0@a.example", "x"),
        ] {
            server.login(Asker { client: 0, id: 1 }, b"smtp", login.as_bytes(), password.into(), remote);
            assert_eq!(computed(&mut server, 1), ["verified"], "{login:?} {password}");
        }
        // The first right login makes what is missing; the next one finds it.
        for expected in [&["verified", "made"][..], &["verified"]] {
            server.login(Asker { client: 0, id: 1 }, b"smtp", b"old@a.example", "x".into(), remote);
            assert_eq!(computed(&mut server, expected.len()), expected);
        }
    }
}
