//! What is kept beside a password's hash: SCRAM's keys, the password itself where the administrator wants that, and app passwords.
//!
//! Secrets belong to one password: when the hash in `account` changes, by whatever statement, they go (a trigger), and with the account
//! they go, too. So no old password lives on in them, whoever changes it.

use crate::{Error, UserName};
use wire::Domain;
use zeroize::Zeroizing;

/// App passwords of one account.
pub const APP_PASSWORDS_MAX: usize = 32;
/// Longest name of an app password, in bytes.
pub const APP_NAME_LEN_MAX: usize = 64;

/// A kind of secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SCRAM's keys, as RFC 5803 writes them.
    ScramSha1,
    ScramSha256,
    /// The password itself, for CRAM-MD5 and APOP.
    Clear,
}

impl Kind {
    /// As it is stored.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ScramSha1 => "SCRAM-SHA-1",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::Clear => "CLEAR",
        }
    }
}

/// A secret of a password.
#[derive(Clone)]
pub struct Secret {
    pub kind: Kind,
    pub value: Zeroizing<Vec<u8>>,
}

/// Where an app password may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    All,
    Smtp,
    Pop3,
}

impl Scope {
    const EVERY: [Self; 3] = [Self::All, Self::Smtp, Self::Pop3];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Smtp => "smtp",
            Self::Pop3 => "pop3",
        }
    }

    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        Self::EVERY.into_iter().find(|scope| scope.name().as_bytes() == name)
    }
}

/// An app password: made by us of 120 random bits, so that a plain digest of it is enough to keep.
#[derive(Clone)]
pub struct AppPassword {
    /// What the user calls it: printable text.
    pub name: String,
    pub scope: Scope,
    /// [`crate::app_password::digest`].
    pub digest: [u8; 32],
    /// SCRAM's keys as text, SHA-1 and SHA-256.
    pub scram: [Option<Zeroizing<String>>; 2],
    /// UNIX seconds.
    pub created_s: u64,
    /// The day of the last login, in UNIX seconds of its beginning; 0: never.
    pub used_s: u64,
}

impl std::fmt::Debug for AppPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppPassword").field("name", &self.name).field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// The secrets of a store of accounts. A writing function that returned `Ok` is durable.
///
/// # Errors
/// As those of [`crate::Directory`].
pub trait Secrets {
    /// This installation's own key, the same for ever: 32 random bytes.
    fn installation_key(&self) -> Result<Zeroizing<Vec<u8>>, Error>;
    fn secret(&self, domain: &Domain, name: &[u8], kind: Kind) -> Result<Option<Zeroizing<Vec<u8>>>, Error>;
    /// Sets secrets of the password whose hash is `password_hash`; nothing happens if the account has another one by now.
    fn set_secrets(&mut self, domain: &Domain, name: &UserName, password_hash: &str, secrets: &[Secret]) -> Result<(), Error>;
    /// Another hash of the same password, with its secrets; false if the account has another password by now.
    fn renew_hash(&mut self, domain: &Domain, name: &UserName, old: &str, new: &str, secrets: &[Secret]) -> Result<bool, Error>;

    /// By name; an account that does not exist has none.
    fn app_passwords(&self, domain: &Domain, name: &[u8]) -> Result<Vec<AppPassword>, Error>;
    fn add_app_password(&mut self, domain: &Domain, name: &UserName, app: &AppPassword) -> Result<(), Error>;
    fn remove_app_password(&mut self, domain: &Domain, name: &UserName, app: &str) -> Result<(), Error>;
    fn app_password_used(&mut self, domain: &Domain, name: &UserName, app: &str, day_s: u64) -> Result<(), Error>;
}

/// Can an app password be called this? Printable text, so that it can stand in a table and a log.
///
/// # Errors
/// Permanent; the text says why not.
pub fn check_app_name(name: &[u8]) -> Result<&str, Error> {
    let text = std::str::from_utf8(name).map_err(|_| Error::AppPassword("the name of an app password is text"))?;
    if text.is_empty() || text.len() > APP_NAME_LEN_MAX {
        return Err(Error::AppPassword("the name of an app password has 1 to 64 bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::AppPassword("the name of an app password holds a control character"));
    }
    Ok(text)
}
