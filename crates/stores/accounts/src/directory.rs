//! What a store of accounts can be asked: the one interface behind which SQLite stands (and another database can).

use crate::settings::{Account, DomainSettings, Entry, NewUser, Quota, UserChange};
use crate::{Error, UserName};
use wire::{Address, Domain};
use zeroize::Zeroizing;

/// Changes whenever anything in the store changed, by whomever: what was cached under another one is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Generation(pub u64, pub u64);

/// What a login is checked against.
#[derive(Clone)]
pub struct Credentials {
    /// PHC string.
    pub password_hash: Zeroizing<String>,
    /// A right password does not help.
    pub suspended: bool,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("suspended", &self.suspended).finish_non_exhaustive()
    }
}

/// A user in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRow {
    pub domain: Domain,
    pub name: UserName,
    pub quota: Quota,
    pub suspended: bool,
}

/// An alias in a list; an empty name is the domain's catch-all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRow {
    pub domain: Domain,
    pub name: Vec<u8>,
    pub targets: Vec<Address>,
}

/// A place in a list: rows that sort after this domain and name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct After {
    pub domain: Vec<u8>,
    pub name: Vec<u8>,
}

/// A store of accounts. Names are in lower case; an alias name is a [`UserName`] or empty for the catch-all. Lists are in the order
/// of domain, then name. A writing function that returned `Ok` is durable. The suite in `conformance.rs` says what
/// each store must do.
///
/// # Errors
/// Each function: [`Error::is_temporary`] when the store is out of reach or damaged, permanent for a mistake of the caller.
pub trait Directory {
    /// Is there such a user (`None`: no), and does mail for the user go on arriving?
    fn takes_mail(&self, domain: &Domain, name: &[u8]) -> Result<Option<bool>, Error>;
    /// The targets of an alias.
    fn alias(&self, domain: &Domain, name: &[u8]) -> Result<Option<Vec<Address>>, Error>;
    fn credentials(&self, domain: &Domain, name: &[u8]) -> Result<Option<Credentials>, Error>;
    /// All that is set of a user.
    fn account(&self, domain: &Domain, name: &[u8]) -> Result<Option<Account>, Error>;
    /// The domain that this one is an alias of.
    fn alias_of(&self, domain: &Domain) -> Result<Option<Domain>, Error>;
    /// All that is set of a domain; a domain of which nothing is set has the default.
    fn domain(&self, domain: &Domain) -> Result<DomainSettings, Error>;
    fn users(&self, domain: Option<&Domain>, after: &After, count_max: usize) -> Result<Vec<UserRow>, Error>;
    fn aliases(&self, domain: Option<&Domain>, after: &After, count_max: usize) -> Result<Vec<AliasRow>, Error>;
    /// Domains of which something is set, beginning after `after` (empty: with the first).
    fn domains(&self, after: &[u8], count_max: usize) -> Result<Vec<Domain>, Error>;
    /// Aliases whose one target is this address, at most so many, of the address's own domain and of others alike: in the order of
    /// domain and name. A catch-all is nobody's own address.
    fn aliases_to(&self, target: &Address, count_max: usize) -> Result<Vec<Address>, Error>;
    fn generation(&self) -> Result<Generation, Error>;

    /// Adds users and aliases in one transaction, each in the bounds of its domain. What cannot be added is left out: its error
    /// stands at its place in the answer.
    fn add(&mut self, entries: &[Entry]) -> Result<Vec<Result<(), Error>>, Error>;
    /// The user is gone as an administrator, too.
    fn remove_user(&mut self, domain: &Domain, name: &UserName) -> Result<(), Error>;
    /// Another name for a user, with all that is his; aliases whose targets name him follow. With `keeps_alias` the old name leads to
    /// the new one. One transaction.
    fn rename_user(&mut self, domain: &Domain, name: &UserName, to: &UserName, keeps_alias: bool) -> Result<(), Error>;
    fn set_password(&mut self, domain: &Domain, name: &UserName, password_hash: &str) -> Result<(), Error>;
    fn change_user(&mut self, domain: &Domain, name: &UserName, change: &UserChange) -> Result<(), Error>;
    /// `None` is the catch-all. An alias that is there is replaced as a whole.
    fn set_alias(&mut self, domain: &Domain, name: Option<&UserName>, targets: &[Address]) -> Result<(), Error>;
    fn remove_alias(&mut self, domain: &Domain, name: Option<&UserName>) -> Result<(), Error>;
    /// Replaces what is set of a domain. An alias of another domain must have no users and aliases of its own, and the other must
    /// not be one; administrators must be users.
    fn set_domain(&mut self, domain: &Domain, settings: &DomainSettings) -> Result<(), Error>;
    /// Removes all users, aliases and settings of a domain, and the domains that are aliases of it.
    fn forget_domain(&mut self, domain: &Domain) -> Result<(), Error>;

    /// Is there such a user?
    fn has_user(&self, domain: &Domain, name: &[u8]) -> Result<bool, Error> {
        Ok(self.takes_mail(domain, name)?.is_some())
    }

    /// Adds a user with the domain's defaults.
    fn add_user(&mut self, domain: &Domain, name: &UserName, password_hash: &str, now_s: u64) -> Result<(), Error> {
        let account = Account { created_s: now_s, ..Account::default() };
        let (domain, name, password_hash) = (domain.clone(), name.clone(), password_hash.to_owned());
        let user = NewUser { domain, name, password_hash, account, has_default_quota: true };
        self.add(&[Entry::User(Box::new(user))])?.pop().unwrap_or(Ok(()))
    }
}
