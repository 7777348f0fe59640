//! The users, aliases, passwords and settings of the virtual domains, and the question where a local part goes.
//!
//! Guarantees: a change that was answered is on the disk (WAL, synchronous=FULL); a stored value that is not valid is an error, never
//! trusted; no query is built from strings; the time a login takes does not tell whether the user exists. Names that exist here
//! are safe as one path component. Never here: uids, paths, which domains are ours (`etc/qmail/users/domains` says that).
//! Used by qmail-auth alone: one process has the database open, and it is the one writer.
#![forbid(unsafe_code)]

pub mod app_password;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod database;
pub mod directory;
pub mod password;
pub mod remote;
pub mod resolve;
pub mod secrets;
pub mod settings;
pub mod sqlite;
mod store;

pub use directory::{AliasRow, Credentials, Directory, Generation, UserRow};
pub use resolve::{Resolution, real_domain, resolve};
pub use secrets::Secrets;
pub use settings::{Account, DomainSettings, Entry, Forward, Limits, NewUser, Quota, UserChange, Vacation};
pub use store::Accounts;
pub use users::UserName;

use std::fmt;

/// Why something could not be done or found out.
#[derive(Debug)]
pub enum Error {
    /// A user or alias of this name is there already.
    Exists,
    /// There is no such user.
    NoUser,
    /// There is no such alias.
    NoAlias,
    /// Not a password that can be used; the text says why.
    Password(&'static str),
    /// Not targets an alias can have; the text says why.
    Targets(&'static str),
    /// Not an app password that this user can have, or has; the text says why.
    AppPassword(&'static str),
    /// More bytes than the store can note.
    Quota,
    /// Not a value that can be set; the text says why.
    Setting(&'static str),
    /// More than the domain may have; the text says of what.
    Limit(&'static str),
    /// The database was written by a newer version; nothing was changed.
    Newer { found: i64, known: i64 },
    /// The store holds something that it should not; temporary, since a person has to look at it.
    Damaged(&'static str),
    /// The store is out of reach.
    Store(rusqlite::Error),
    /// The database elsewhere is out of reach; the text says why, and what to do.
    Remote(String),
    /// No random bytes, no memory.
    System(std::io::Error),
}

impl Error {
    /// May the same request succeed later?
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Exists | Self::NoUser | Self::NoAlias => false,
            Self::Password(_) | Self::Targets(_) | Self::AppPassword(_) | Self::Quota => false,
            Self::Setting(_) | Self::Limit(_) => false,
            Self::Newer { .. } | Self::Damaged(_) | Self::Store(_) | Self::Remote(_) | Self::System(_) => true,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists => f.write_str("a user or alias of this name exists already"),
            Self::NoUser => f.write_str("no such user"),
            Self::NoAlias => f.write_str("no such alias"),
            Self::Password(why) | Self::Targets(why) | Self::AppPassword(why) => f.write_str(why),
            Self::Setting(why) | Self::Limit(why) => f.write_str(why),
            Self::Quota => f.write_str("the quota is too large"),
            Self::Newer { found, known } => {
                write!(
                    f,
                    "the accounts database has version {found}, this program knows versions up to {known}: use the newer program"
                )
            }
            Self::Damaged(what) => write!(f, "the accounts database is damaged: {what}"),
            Self::Store(error) => write!(f, "accounts database: {error}"),
            Self::Remote(text) => write!(f, "accounts database: {text}"),
            Self::System(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::System(error)
    }
}
