//! What the administrator may ask: users and aliases of the virtual domains.

use crate::hashing::{HashJob, secrets};
use crate::pool::{Made, Work};
use crate::rows;
use crate::server::{Server, log};
use accounts::directory::After;
use accounts::{AliasRow, Directory, Entry, Error, Forward, Limits, NewUser, Quota, Secrets as _, UserChange, UserName, UserRow};
use ipc::DATAGRAM_LEN_MAX;
use ipc::admin::{
    ADD_MAX, AccountAnswer, AccountRequest, AccountRow, AliasRow as AliasLine, DomainChange, NotAdded, UserRow as UserLine,
};
use ipc::field::Bytes;
use wire::{Address, Domain};
use zeroize::Zeroizing;

/// Rows of users in one datagram: an address of 320 bytes and its numbers, 32 KiB in all.
const USERS_PER_ANSWER: usize = 64;

/// The parts of a datagram beside its rows, and of a row beside its bytes.
const OVERHEAD: usize = 16;
/// Bytes of the reason why an entry was not added: as many reasons as an `Add` has entries fit into the answer.
const TEXT_MAX: usize = 120;
/// Longest stored hash.
const HASH_LEN_MAX: usize = 512;

/// A list that is being sent, as fast as it is taken.
pub(crate) struct Listing {
    domain: Option<Domain>,
    after: After,
    kind: Kind,
}

/// What is listed.
#[derive(Clone, Copy)]
enum Kind {
    Users,
    Aliases,
    Accounts { secrets: bool },
}

/// A mistake, or trouble with the store.
type Answered = Result<(), Error>;

impl Server {
    pub(crate) fn admin_request(&mut self, client: u64, request: AccountRequest) {
        if let Err(failure) = self.judge_manager(client, &request) {
            return self.admin_answer(client, Err(failure));
        }
        let done = match request {
            AccountRequest::UserAdd { address, password } => return self.password(client, &address, password, true, false),
            AccountRequest::UserPassword { address, password } => return self.password(client, &address, password, false, false),
            AccountRequest::UserKeepClear { address, password, add } => {
                return self.password(client, &address, password, add, true);
            }
            AccountRequest::AppPasswordAdd { address, name, service } => {
                return self.app_password_add(client, &address, &name, &service);
            }
            AccountRequest::AppPasswordList { address } => return self.app_password_list(client, &address),
            AccountRequest::AppPasswordRemove { address, name } => self.app_password_remove(&address, &name),
            AccountRequest::Hash { password } => return self.hash(client, password),
            AccountRequest::UserList { domain, after } => return self.list(client, domain, &after, Kind::Users),
            AccountRequest::AliasList { domain, after } => return self.list(client, domain, &after, Kind::Aliases),
            AccountRequest::Export { domain, after, secrets } => {
                return self.list(client, domain, &after, Kind::Accounts { secrets });
            }
            AccountRequest::DomainList { domain: Some(domain), .. } => return self.show_domain(client, domain),
            AccountRequest::DomainList { domain: None, after } => return self.list_domains(client, &after),
            AccountRequest::UserShow { address } => return self.show_user(client, &address),
            AccountRequest::UserUsage { address } => return self.show_usage(client, &address),
            AccountRequest::Add { users, aliases } => return self.add_all(client, &users, &aliases),
            AccountRequest::UserRename { address, to, keeps_alias } => return self.rename(client, &address, &to, keeps_alias),
            AccountRequest::UserRemove { address } => {
                user_of(&address).and_then(|(domain, user)| said(self.accounts.remove_user(&domain, &user)))
            }
            AccountRequest::UserAddHash { address, hash } => self.add_hash(&address, &hash),
            AccountRequest::UserQuota { address, bytes, messages } => self.change_quota(&address, Quota { bytes, messages }),
            AccountRequest::UserSuspend { address, suspended, refuses_mail } => {
                self.change_user(&address, &UserChange::Suspension { suspended, refuses_mail })
            }
            AccountRequest::UserForward { address, targets, keeps_copy } => {
                self.change_user(&address, &UserChange::Forward(Forward { targets, keeps_copy }))
            }
            AccountRequest::UserVacation { address, vacation } => vacation
                .map(rows::vacation)
                .transpose()
                .and_then(|vacation| self.change_user(&address, &UserChange::Vacation(vacation))),
            AccountRequest::UserLimits { address, per_hour, per_day } => {
                self.change_user(&address, &UserChange::Limits(Limits { per_hour, per_day }))
            }
            AccountRequest::DomainChange { domain, change } => self.change_domain(&domain, change),
            AccountRequest::AliasAdd { address, targets } => self.alias_add(&address, &targets),
            AccountRequest::AliasRemove { address } => {
                alias_of(&address).and_then(|(domain, user)| said(self.accounts.remove_alias(&domain, user.as_ref())))
            }
            AccountRequest::DomainForget { domain } => said(self.accounts.forget_domain(&domain)),
        };
        self.admin_answer(client, done);
    }

    pub(crate) fn admin_answer(&mut self, client: u64, done: Result<(), Failure>) {
        if done.is_ok() {
            self.announce_change();
        }
        let answer = match done {
            Ok(()) => AccountAnswer::Ok {},
            Err(Failure { text, temporary }) => AccountAnswer::Failed { text: ipc::clip(text.as_bytes()).into(), temporary },
        };
        self.answer(client, &answer, None);
    }

    /// The hash is computed by the pool; [`Server::new_password`] answers.
    fn password(&mut self, client: u64, address: &Address, password: Bytes, add: bool, keep_clear: bool) {
        let password = Zeroizing::new(password.0);
        let ready = user_of(address).and_then(|(domain, user)| {
            if add {
                self.must_be_virtual(&domain)?;
            }
            accounts::password::check(&password)?;
            let salts = self.salts(&domain, &user)?;
            Ok((domain, user, salts))
        });
        match ready {
            Ok((domain, user, salts)) => {
                let clear = keep_clear.then(|| password.clone());
                let job = HashJob::Password { client, domain, user, add, clear };
                self.make(client, job, Work::Make { password, salts, with_hash: true });
            }
            Err(failure) => self.admin_answer(client, Err(failure)),
        }
    }

    /// Has the pool compute something for the administrator.
    pub(crate) fn make(&mut self, client: u64, job: HashJob, work: Work) {
        if self.pool.submit(job, work).is_err() {
            self.admin_answer(client, Err(Failure { text: "busy with logins, try again".to_owned(), temporary: true }));
        }
    }

    /// The hash first: changing it takes away what was kept beside the old one.
    pub(crate) fn new_password(
        &mut self,
        client: u64,
        domain: &Domain,
        user: &UserName,
        add: bool,
        made: Result<Made, Error>,
        clear: Option<Zeroizing<Vec<u8>>>,
    ) {
        let done = made.and_then(|made| {
            if add {
                self.accounts.add_user(domain, user, &made.hash, sys::clock::unix_s())?;
            } else {
                self.accounts.set_password(domain, user, &made.hash)?;
            }
            self.accounts.set_secrets(domain, user, &made.hash, &secrets(&made, clear))
        });
        self.admin_answer(client, said(done));
    }

    /// Computes a hash and stores nothing; [`Server::new_hash`] answers.
    fn hash(&mut self, client: u64, password: Bytes) {
        let password = Zeroizing::new(password.0);
        let ready = accounts::password::check(&password).map_err(Failure::from);
        let submitted = ready.and_then(|()| {
            let submitted =
                self.pool.submit(HashJob::Hash { client }, Work::Make { password, salts: Vec::new(), with_hash: true });
            submitted.map_err(|_| Failure { text: "busy with logins, try again".to_owned(), temporary: true })
        });
        if let Err(failure) = submitted {
            self.admin_answer(client, Err(failure));
        }
    }

    pub(crate) fn new_hash(&mut self, client: u64, hash: Result<Zeroizing<String>, Error>) {
        match hash {
            Ok(hash) => self.answer(client, &AccountAnswer::Hashed { hash: hash.as_str().into() }, None),
            Err(error) => self.admin_answer(client, said(Err(error))),
        }
    }

    fn add_hash(&mut self, address: &Address, hash: &[u8]) -> Result<(), Failure> {
        let (domain, user) = user_of(address)?;
        self.must_be_virtual(&domain)?;
        said(self.accounts.add_user(&domain, &user, hash_text(hash)?, sys::clock::unix_s()))
    }

    fn change_user(&mut self, address: &Address, change: &UserChange) -> Result<(), Failure> {
        let (domain, user) = user_of(address)?;
        said(self.accounts.change_user(&domain, &user, change))
    }

    fn change_quota(&mut self, address: &Address, quota: Quota) -> Result<(), Failure> {
        self.change_user(address, &UserChange::Quota(quota))?;
        if quota == Quota::default() {
            let (domain, user) = user_of(address)?;
            self.forget_room(&domain, &user);
        }
        Ok(())
    }

    fn show_user(&mut self, client: u64, address: &Address) {
        let found = user_of(address).and_then(|(domain, user)| {
            let account = self.accounts.account(&domain, user.as_bytes())?.ok_or(Error::NoUser)?;
            let address = Address::join(user.as_bytes(), domain.as_bytes()).map_err(|_| Error::NoUser)?;
            Ok(rows::account_row(address, None, account))
        });
        match found {
            Ok(row) => self.answer(client, &AccountAnswer::Accounts { rows: vec![row], last: true }, None),
            Err(failure) => self.admin_answer(client, Err(failure)),
        }
    }

    fn show_usage(&mut self, client: u64, address: &Address) {
        let found = user_of(address).and_then(|(domain, user)| {
            let account = self.accounts.account(&domain, user.as_bytes())?.ok_or(Error::NoUser)?;
            Ok((domain, user, account.quota))
        });
        match found {
            Ok((domain, user, quota)) => self.ask_usage(client, domain, &user, quota),
            Err(failure) => self.admin_answer(client, Err(failure)),
        }
    }

    fn change_domain(&mut self, domain: &Domain, change: DomainChange) -> Result<(), Failure> {
        match &change.alias_of {
            // The domain itself becomes virtual with the next step of whoever asks: before that nobody is to find it empty.
            Some(target) => self.must_be_virtual(target)?,
            None => self.must_be_virtual(domain)?,
        }
        let settings = rows::changed(self.accounts.domain(domain)?, change)?;
        said(self.accounts.set_domain(domain, &settings))
    }

    fn show_domain(&mut self, client: u64, domain: Domain) {
        match self.accounts.domain(&domain) {
            Ok(settings) => {
                let rows = vec![rows::domain_row(domain, settings)];
                self.answer(client, &AccountAnswer::Domains { rows, last: true }, None);
            }
            Err(error) => self.admin_answer(client, said(Err(error))),
        }
    }

    /// In one answer as many as fit; the caller asks again with the last of them.
    fn list_domains(&mut self, client: u64, after: &[u8]) {
        let listed = self.accounts.domains(after, USERS_PER_ANSWER.saturating_add(1)).and_then(|domains| {
            let (mut rows, mut room) = (Vec::new(), DATAGRAM_LEN_MAX.saturating_sub(OVERHEAD));
            for domain in &domains {
                let row = rows::domain_row(domain.clone(), self.accounts.domain(domain)?);
                let len = row.encoded_len();
                if rows.len() >= USERS_PER_ANSWER || (!rows.is_empty() && len > room) {
                    break;
                }
                room = room.saturating_sub(len);
                rows.push(row);
            }
            let last = rows.len() == domains.len();
            Ok(AccountAnswer::Domains { rows, last })
        });
        match listed {
            Ok(answer) => self.answer(client, &answer, None),
            Err(error) => self.admin_answer(client, said(Err(error))),
        }
    }

    /// Whatever cannot be added is named in the answer; the rest is.
    fn add_all(&mut self, client: u64, users: &[AccountRow], aliases: &[AliasLine]) {
        if users.len().saturating_add(aliases.len()) > ADD_MAX {
            return self.admin_answer(client, Err(mistake(format!("more than {ADD_MAX} at once"))));
        }
        let now_s = sys::clock::unix_s();
        let made: Vec<Result<Entry, Failure>> =
            users.iter().map(|row| self.user_entry(row, now_s)).chain(aliases.iter().map(|row| self.alias_entry(row))).collect();
        let sound: Vec<Entry> = made.iter().filter_map(|entry| entry.as_ref().ok().cloned()).collect();
        let results = match self.accounts.add(&sound) {
            Ok(results) => results,
            Err(error) => return self.admin_answer(client, said(Err(error))),
        };
        self.announce_change();
        let mut results = results.into_iter();
        let failures = (0u32..).zip(made).filter_map(|(at, entry)| {
            let (exists, failure) = match entry {
                Err(failure) => (false, failure),
                Ok(_) => match results.next() {
                    None | Some(Ok(())) => return None,
                    Some(Err(error)) => (matches!(error, Error::Exists), Failure::from(error)),
                },
            };
            Some(NotAdded { at, exists, text: failure.text.get(..TEXT_MAX).unwrap_or(&failure.text).into() })
        });
        let answer = AccountAnswer::Added { failures: failures.collect() };
        self.answer(client, &answer, None);
    }

    fn user_entry(&self, row: &AccountRow, now_s: u64) -> Result<Entry, Failure> {
        let (domain, name) = user_of(&row.address)?;
        self.must_be_virtual(&domain)?;
        let hash = row.hash.as_deref().ok_or_else(|| mistake("without a password or its hash".to_owned()))?;
        let password_hash = hash_text(hash)?.to_owned();
        let (account, has_default_quota) = (rows::account(row, now_s)?, row.quota.is_none());
        Ok(Entry::User(Box::new(NewUser { domain, name, password_hash, account, has_default_quota })))
    }

    fn alias_entry(&self, row: &AliasLine) -> Result<Entry, Failure> {
        let (domain, name) = alias_of(&row.address)?;
        self.must_be_virtual(&domain)?;
        Ok(Entry::Alias { domain, name, targets: row.targets.clone() })
    }

    fn alias_add(&mut self, address: &Address, targets: &[Address]) -> Result<(), Failure> {
        let (domain, user) = alias_of(address)?;
        self.must_be_virtual(&domain)?;
        said(self.accounts.set_alias(&domain, user.as_ref(), targets))
    }

    /// Users and aliases of a domain that is not in users/domains would never get mail: a slip of the pen.
    fn must_be_virtual(&self, domain: &Domain) -> Result<(), Failure> {
        if let Some(target) = self.accounts.alias_of(domain)? {
            return Err(mistake(format!("{domain} is an alias of {target}: everybody in it is of {target}")));
        }
        let routing = self.places.routing().map_err(|error| Failure { text: error.to_string(), temporary: true })?;
        if routing.virtual_domains.get(domain.as_bytes()).is_some() {
            return Ok(());
        }
        if routing.locals.contains(domain.as_bytes()) {
            return Err(mistake(format!(
                "{domain} is a domain of system users (control/locals); an alias there is a file etc/qmail/alias/.qmail-NAME"
            )));
        }
        Err(mistake(format!("{domain} is not a virtual domain; run: qmail domain add {domain}")))
    }

    fn list(&mut self, client: u64, domain: Option<Domain>, after: &[u8], kind: Kind) {
        let at = Address::new(after).unwrap_or_default();
        let after = After { domain: at.domain().unwrap_or_default().to_ascii_lowercase(), name: at.local().to_ascii_lowercase() };
        // An `after` without a domain starts at the front.
        let after = if after.domain.is_empty() { After::default() } else { after };
        self.listings.insert(client, Listing { domain, after, kind });
        if self.has_room(client) {
            self.continue_listing(client);
        }
    }

    /// Sends the next datagram of a list; the last one ends the request.
    pub(crate) fn continue_listing(&mut self, client: u64) {
        let Some(mut listing) = self.listings.remove(&client) else { return };
        match self.page(&mut listing) {
            Ok((answer, true)) => self.answer(client, &answer, None),
            Ok((answer, false)) => {
                if self.push(client, &answer) {
                    self.listings.insert(client, listing);
                }
            }
            Err(error) => self.admin_answer(client, said(Err(error))),
        }
    }

    fn page(&self, listing: &mut Listing) -> Result<(AccountAnswer, bool), Error> {
        let domain = listing.domain.as_ref();
        if let Kind::Accounts { secrets } = listing.kind {
            return self.accounts_page(listing, secrets);
        }
        if matches!(listing.kind, Kind::Aliases) {
            // One row more than can be in the datagram tells whether this is the end.
            let rows = self.accounts.aliases(domain, &listing.after, USERS_PER_ANSWER.saturating_add(1))?;
            let count = aliases_that_fit(&rows);
            let (front, last) = (rows.get(..count).unwrap_or_default(), count == rows.len());
            if let Some(row) = front.last() {
                listing.after = After { domain: row.domain.as_bytes().to_vec(), name: row.name.clone() };
            }
            let rows = front.iter().filter_map(alias_line).collect();
            return Ok((AccountAnswer::Aliases { rows, last }, last));
        }
        let rows = self.accounts.users(domain, &listing.after, USERS_PER_ANSWER.saturating_add(1))?;
        let (front, last) = (rows.get(..USERS_PER_ANSWER.min(rows.len())).unwrap_or_default(), rows.len() <= USERS_PER_ANSWER);
        if let Some(row) = front.last() {
            listing.after = After { domain: row.domain.as_bytes().to_vec(), name: row.name.as_bytes().to_vec() };
        }
        let rows = front.iter().filter_map(user_line).collect();
        Ok((AccountAnswer::Users { rows, last }, last))
    }
}

impl Server {
    /// Users with all that is set, as many as fit into a datagram: at least one does.
    fn accounts_page(&self, listing: &mut Listing, secrets: bool) -> Result<(AccountAnswer, bool), Error> {
        let users = self.accounts.users(listing.domain.as_ref(), &listing.after, USERS_PER_ANSWER.saturating_add(1))?;
        let (mut rows, mut room) = (Vec::new(), DATAGRAM_LEN_MAX.saturating_sub(OVERHEAD));
        for UserRow { domain, name, .. } in &users {
            let Some(account) = self.accounts.account(domain, name.as_bytes())? else { continue };
            let credentials = if secrets { self.accounts.credentials(domain, name.as_bytes())? } else { None };
            let Ok(address) = Address::join(name.as_bytes(), domain.as_bytes()) else { continue };
            let row = rows::account_row(address, credentials.as_ref().map(|c| c.password_hash.as_str()), account);
            let len = row.encoded_len();
            if rows.len() >= USERS_PER_ANSWER || (!rows.is_empty() && len > room) {
                break;
            }
            room = room.saturating_sub(len);
            listing.after = After { domain: domain.as_bytes().to_vec(), name: name.as_bytes().to_vec() };
            rows.push(row);
        }
        let last = users
            .last()
            .is_none_or(|user| listing.after.domain == user.domain.as_bytes() && listing.after.name == user.name.as_bytes());
        Ok((AccountAnswer::Accounts { rows, last }, last))
    }
}

/// How many rows of aliases fit into one datagram: at least one, since 20 targets of 1000 bytes do.
fn aliases_that_fit(rows: &[AliasRow]) -> usize {
    let mut room = DATAGRAM_LEN_MAX.saturating_sub(2 * OVERHEAD);
    let fits = rows.iter().take(USERS_PER_ANSWER).take_while(|row| {
        let targets: usize = row.targets.iter().map(|target| target.as_bytes().len().saturating_add(OVERHEAD)).sum();
        let len = targets.saturating_add(row.name.len()).saturating_add(row.domain.as_bytes().len()).saturating_add(OVERHEAD);
        let fits = len <= room;
        room = room.saturating_sub(len);
        fits
    });
    fits.count().max(1).min(rows.len())
}

fn user_line(row: &UserRow) -> Option<UserLine> {
    let address = Address::join(row.name.as_bytes(), row.domain.as_bytes()).ok()?;
    Some(UserLine { address, quota: row.quota.bytes, suspended: row.suspended })
}

fn alias_line(row: &AliasRow) -> Option<AliasLine> {
    let address = Address::join(&row.name, row.domain.as_bytes()).ok()?;
    Some(AliasLine { address, targets: row.targets.clone() })
}

/// A hash as it is stored: whether it can be checked shows at the login.
fn hash_text(hash: &[u8]) -> Result<&str, Failure> {
    let text = std::str::from_utf8(hash).ok();
    let text = text.filter(|text| !text.is_empty() && text.len() <= HASH_LEN_MAX && text.bytes().all(|b| b.is_ascii_graphic()));
    text.ok_or_else(|| mistake("a hash is one word of printable ASCII, at most 512 bytes".to_owned()))
}

/// What the administrator is told.
pub(crate) struct Failure {
    text: String,
    temporary: bool,
}

impl Failure {
    pub(crate) fn temporary(text: &str) -> Self {
        Self { text: text.to_owned(), temporary: true }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.is_temporary() {
            log(&error);
        }
        Self { text: error.to_string(), temporary: error.is_temporary() }
    }
}

pub(crate) fn said(done: Answered) -> Result<(), Failure> {
    done.map_err(Failure::from)
}

pub(crate) fn mistake(text: String) -> Failure {
    Failure { text, temporary: false }
}

pub(crate) fn user_of(address: &Address) -> Result<(Domain, UserName), Failure> {
    let form = || mistake(format!("{address} is no user's address: it must be user@domain, the user without blanks and slashes"));
    let domain = address.domain().and_then(|domain| Domain::new(domain).ok()).ok_or_else(form)?;
    Ok((domain, UserName::new(address.local()).ok_or_else(form)?))
}

/// As [`user_of`]; `@domain` is the domain's catch-all.
fn alias_of(address: &Address) -> Result<(Domain, Option<UserName>), Failure> {
    match address.domain().map(Domain::new) {
        Some(Ok(domain)) if address.local().is_empty() => Ok((domain, None)),
        _ => user_of(address).map(|(domain, user)| (domain, Some(user))),
    }
}
