//! What a store of accounts can be asked: the one interface behind which SQLite stands (and another database can).

use crate::{Error, UserName};
use wire::{Address, Domain};
use zeroize::Zeroizing;

/// Most targets of one alias; more is a mailing list.
pub const TARGETS_MAX: usize = 20;

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
    /// 0: no quota.
    pub quota_bytes: u64,
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
/// of domain, then name. A writing function that returned `Ok` is durable.
///
/// # Errors
/// Each function: [`Error::is_temporary`] when the store is out of reach or damaged, permanent for a mistake of the caller.
pub trait Directory {
    /// Is there such a user (suspended or not: mail goes on arriving)?
    fn has_user(&self, domain: &Domain, name: &[u8]) -> Result<bool, Error>;
    /// The targets of an alias.
    fn alias(&self, domain: &Domain, name: &[u8]) -> Result<Option<Vec<Address>>, Error>;
    fn credentials(&self, domain: &Domain, name: &[u8]) -> Result<Option<Credentials>, Error>;
    fn users(&self, domain: Option<&Domain>, after: &After, count_max: usize) -> Result<Vec<UserRow>, Error>;
    fn aliases(&self, domain: Option<&Domain>, after: &After, count_max: usize) -> Result<Vec<AliasRow>, Error>;
    fn generation(&self) -> Result<Generation, Error>;

    fn add_user(&mut self, domain: &Domain, name: &UserName, password_hash: &str, now_s: u64) -> Result<(), Error>;
    fn remove_user(&mut self, domain: &Domain, name: &UserName) -> Result<(), Error>;
    fn set_password(&mut self, domain: &Domain, name: &UserName, password_hash: &str) -> Result<(), Error>;
    /// 0: no quota.
    fn set_quota(&mut self, domain: &Domain, name: &UserName, bytes: u64) -> Result<(), Error>;
    fn set_suspended(&mut self, domain: &Domain, name: &UserName, suspended: bool) -> Result<(), Error>;
    /// `None` is the catch-all. An alias that is there is replaced as a whole.
    fn set_alias(&mut self, domain: &Domain, name: Option<&UserName>, targets: &[Address]) -> Result<(), Error>;
    fn remove_alias(&mut self, domain: &Domain, name: Option<&UserName>) -> Result<(), Error>;
    /// Removes all users and aliases of a domain.
    fn forget_domain(&mut self, domain: &Domain) -> Result<(), Error>;
}
