//! What the administrator may ask: users and aliases of the virtual domains.

use crate::login::HashJob;
use crate::pool::Work;
use crate::server::{Server, log};
use accounts::directory::After;
use accounts::{AliasRow, Directory, Error, UserName, UserRow};
use ipc::DATAGRAM_LEN_MAX;
use ipc::admin::{AccountAnswer, AccountRequest, AliasRow as AliasLine, UserRow as UserLine};
use ipc::field::Bytes;
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
    pub(crate) fn admin_request(&mut self, client: u64, request: AccountRequest) {
        let done = match request {
            AccountRequest::UserAdd { address, password } => return self.password(client, &address, password, true),
            AccountRequest::UserPassword { address, password } => return self.password(client, &address, password, false),
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
    }

    fn admin_answer(&mut self, client: u64, done: Result<(), Failure>) {
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
    fn password(&mut self, client: u64, address: &Address, password: Bytes, add: bool) {
        let password = Zeroizing::new(password.0);
        let ready = user_of(address).and_then(|(domain, user)| {
            if add {
                self.must_be_virtual(&domain)?;
            }
            accounts::password::check(&password)?;
            Ok((domain, user))
        });
        match ready {
            Ok((domain, user)) => {
                let job = HashJob::Password { client, domain, user, add };
                if self.pool.submit(job, Work::Hash { password }).is_err() {
                    self.admin_answer(client, Err(Failure { text: "busy with logins, try again".to_owned(), temporary: true }));
                }
            }
            Err(failure) => self.admin_answer(client, Err(failure)),
        }
    }

    pub(crate) fn new_password(&mut self, client: u64, domain: &Domain, user: &UserName, add: bool, hash: Result<String, Error>) {
        let done = hash.and_then(|hash| {
            if add {
                self.accounts.add_user(domain, user, &hash, sys::clock::unix_s())
            } else {
                self.accounts.set_password(domain, user, &hash)
            }
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

    fn list(&mut self, client: u64, domain: Option<Domain>, after: &[u8], aliases: bool) {
        let at = Address::new(after).unwrap_or_default();
        let after = After { domain: at.domain().unwrap_or_default().to_ascii_lowercase(), name: at.local().to_ascii_lowercase() };
        // An `after` without a domain starts at the front.
        let after = if after.domain.is_empty() { After::default() } else { after };
        self.listings.insert(client, Listing { domain, after, aliases });
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
struct Failure {
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

fn said(done: Answered) -> Result<(), Failure> {
    done.map_err(Failure::from)
}

fn mistake(text: String) -> Failure {
    Failure { text, temporary: false }
}

fn user_of(address: &Address) -> Result<(Domain, UserName), Failure> {
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
