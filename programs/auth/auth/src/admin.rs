//! What the administrator may ask: users and aliases of the virtual domains.

use crate::hashing::{HashJob, secrets};
use crate::pool::{Made, Work};
use crate::server::{Server, log};
use accounts::directory::After;
use accounts::{AliasRow, Directory, Error, Secrets as _, UserName, UserRow};
use ipc::admin::{AccountAnswer, AccountRequest, AliasRow as AliasLine, UserRow as UserLine};
use ipc::field::Bytes;
use ipc::{DATAGRAM_LEN_MAX, Message};
use wire::{Address, Domain};
use zeroize::Zeroizing;

/// Rows of users in one datagram: an address of 320 bytes and its numbers, 32 KiB in all.
const USERS_PER_ANSWER: usize = 64;

/// A list that is being sent, as fast as it is taken.
pub(crate) struct Listing {
    domain: Option<Domain>,
    after: After,
    aliases: bool,
}

/// A mistake, or trouble with the store.
type Answered = Result<(), Error>;

impl Server {
    /// False if it is no request.
    pub(crate) fn admin_request(&mut self, client: u64, datagram: &[u8]) -> bool {
        let Ok(request) = AccountRequest::decode(datagram) else { return false };
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
            AccountRequest::UserList { domain, after } => return self.list(client, domain, &after, false),
            AccountRequest::AliasList { domain, after } => return self.list(client, domain, &after, true),
            AccountRequest::UserRemove { address } => {
                user_of(&address).and_then(|(domain, user)| said(self.accounts.remove_user(&domain, &user)))
            }
            AccountRequest::UserQuota { address, bytes } => {
                user_of(&address).and_then(|(domain, user)| said(self.accounts.set_quota(&domain, &user, bytes)))
            }
            AccountRequest::AliasAdd { address, targets } => self.alias_add(&address, &targets),
            AccountRequest::AliasRemove { address } => {
                alias_of(&address).and_then(|(domain, user)| said(self.accounts.remove_alias(&domain, user.as_ref())))
            }
            AccountRequest::DomainForget { domain } => said(self.accounts.forget_domain(&domain)),
        };
        self.admin_answer(client, done);
        true
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
    fn password(&mut self, client: u64, address: &Address, password: Bytes, add: bool, keep_clear: bool) -> bool {
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
        true
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

    fn alias_add(&mut self, address: &Address, targets: &[Address]) -> Result<(), Failure> {
        let (domain, user) = alias_of(address)?;
        self.must_be_virtual(&domain)?;
        said(self.accounts.set_alias(&domain, user.as_ref(), targets))
    }

    /// Users and aliases of a domain that is not in users/domains would never get mail: a slip of the pen.
    fn must_be_virtual(&mut self, domain: &Domain) -> Result<(), Failure> {
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

    fn list(&mut self, client: u64, domain: Option<Domain>, after: &[u8], aliases: bool) -> bool {
        let at = Address::new(after).unwrap_or_default();
        let after = After { domain: at.domain().unwrap_or_default().to_ascii_lowercase(), name: at.local().to_ascii_lowercase() };
        // An `after` without a domain starts at the front.
        let after = if after.domain.is_empty() { After::default() } else { after };
        self.listings.insert(client, Listing { domain, after, aliases });
        if self.has_room(client) {
            self.continue_listing(client);
        }
        true
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
        if listing.aliases {
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

/// How many rows of aliases fit into one datagram: at least one, since 20 targets of 1000 bytes do.
fn aliases_that_fit(rows: &[AliasRow]) -> usize {
    const OVERHEAD: usize = 16;
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
    Some(UserLine { address, quota: row.quota_bytes, suspended: row.suspended })
}

fn alias_line(row: &AliasRow) -> Option<AliasLine> {
    let address = Address::join(&row.name, row.domain.as_bytes()).ok()?;
    Some(AliasLine { address, targets: row.targets.clone() })
}

/// What the administrator is told.
pub(crate) struct Failure {
    text: String,
    temporary: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.is_temporary() {
            log(&error.to_string());
        }
        Self { text: error.to_string(), temporary: error.is_temporary() }
    }
}

pub(crate) fn said(done: Answered) -> Result<(), Failure> {
    done.map_err(Failure::from)
}

fn mistake(text: String) -> Failure {
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
