//! What the pool is asked to compute, and what becomes of it: the hash of a new password and the secrets that are kept beside it.
//!
//! SCRAM's salts are made of the account's name and the installation's own key. So a name that nobody has gets a salt, too, always the same,
//! and no stranger can tell it from one that somebody has.

use crate::login::Login;
use crate::pool::{Made, Outcome, Work};
use crate::server::{Server, log};
use accounts::secrets::{Kind, Scope, Secret};
use accounts::{Error, Secrets as _, UserName};
use sasl::Mechanism;
use sasl::scram::{Hash, Salt};
use sha2::Sha256;
use wire::Domain;
use zeroize::Zeroizing;

/// Iterations of new keys, at a multiple of the least (RFC 5802 §5.1: 4096, RFC 7677 §4: 4096, recommended 15000): the client pays most of
/// it, some 20 ms.
const ITERATIONS: u32 = 40_000;
const SALT_LEN: usize = 16;
/// Accounts whose hash is being made anew; others wait for their next login.
const RENEWALS_MAX: usize = 16;

/// A hash under way and what it is for.
pub(crate) enum HashJob {
    Login(Box<Login>),
    /// A new password; `add` makes the user too, `clear` is the password where it is to be kept.
    Password {
        client: u64,
        domain: Domain,
        user: UserName,
        add: bool,
        clear: Option<Zeroizing<Vec<u8>>>,
    },
    /// A password that was just right has an old hash, or lacks SCRAM's keys.
    Renewal {
        domain: Domain,
        user: UserName,
        old: Zeroizing<String>,
        clear: Option<Zeroizing<Vec<u8>>>,
    },
    /// For the administrator, who stores it.
    Hash {
        client: u64,
    },
    AppPassword {
        client: u64,
        domain: Domain,
        user: UserName,
        name: String,
        scope: Scope,
        password: Zeroizing<String>,
    },
}

pub(crate) const fn kind(hash: Hash) -> Kind {
    match hash {
        Hash::Sha1 => Kind::ScramSha1,
        Hash::Sha256 => Kind::ScramSha256,
    }
}

impl Server {
    /// The salts of an account for the mechanisms that are offered.
    pub(crate) fn salts(&mut self, domain: &Domain, user: &UserName) -> Result<Vec<(Hash, Salt)>, Error> {
        let offered = self.mechanisms();
        let wanted = [(Hash::Sha1, Mechanism::ScramSha1), (Hash::Sha256, Mechanism::ScramSha256)];
        let wanted = wanted.into_iter().filter(|(_, mechanism)| offered.contains(*mechanism)).map(|(hash, _)| hash);
        let name = [user.as_bytes(), b"@", domain.as_bytes()].concat();
        wanted.map(|hash| Ok((hash, self.salt(hash, &name)?))).collect()
    }

    /// The salt of a name; `name` in lower case.
    pub(crate) fn salt(&self, hash: Hash, name: &[u8]) -> Result<Salt, Error> {
        use hmac::{KeyInit as _, Mac as _};
        let key = self.accounts.installation_key()?;
        let mac = hmac::Hmac::<Sha256>::new_from_slice(&key).map_err(|_| Error::Damaged("the installation's key"))?;
        let bytes = mac.chain_update(hash.name()).chain_update(b"\0").chain_update(name).finalize().into_bytes();
        Ok(Salt { salt: bytes.iter().copied().take(SALT_LEN).collect(), iterations: ITERATIONS })
    }

    pub(crate) fn hashed(&mut self, job: HashJob, outcome: Outcome) {
        match (job, outcome) {
            (HashJob::Login(login), Outcome::Verified(verdict)) => self.verified(*login, verdict),
            (HashJob::Password { client, domain, user, add, clear }, Outcome::Made(made)) => {
                self.new_password(client, &domain, &user, add, made, clear);
            }
            (HashJob::Renewal { domain, user, old, clear }, Outcome::Made(made)) => {
                self.renewals.remove(&(domain.clone(), user.clone()));
                if let Err(error) = made.and_then(|made| {
                    let secrets = secrets(&made, clear);
                    self.accounts.renew_hash(&domain, &user, &old, &made.hash, &secrets)
                }) {
                    self.trouble(&error.to_string());
                }
            }
            (HashJob::Hash { client }, Outcome::Made(made)) => self.new_hash(client, made.map(|made| made.hash)),
            (HashJob::AppPassword { client, domain, user, name, scope, password }, Outcome::Made(made)) => {
                self.new_app_password(client, &domain, &user, name, scope, &password, made);
            }
            // Work and job are made together; anything else is answered by nobody and times out.
            _ => log("a hash was computed for something else"),
        }
    }

    /// Makes the hash of a password anew that was right, if it is of another kind than new ones are, and SCRAM's keys if they are missing.
    pub(crate) fn renew(&mut self, domain: &Domain, user: &UserName, old: &Zeroizing<String>, password: Zeroizing<Vec<u8>>) {
        let Ok(salts) = self.salts(domain, user) else { return };
        let lacks = |kind| matches!(self.accounts.secret(domain, user.as_bytes(), kind), Ok(None));
        let is_wanted = accounts::password::is_outdated(old) || salts.iter().any(|(hash, _)| lacks(kind(*hash)));
        let key = (domain.clone(), user.clone());
        if !is_wanted || self.renewals.len() >= RENEWALS_MAX || self.renewals.contains(&key) {
            return;
        }
        // Where the password itself was kept it goes on being kept.
        let clear = (!lacks(Kind::Clear)).then(|| password.clone());
        let job = HashJob::Renewal { domain: domain.clone(), user: user.clone(), old: old.clone(), clear };
        if self.pool.submit(job, Work::Make { password, salts, with_hash: true }).is_ok() {
            self.renewals.insert(key);
        }
    }
}

/// What is kept beside the hash.
pub(crate) fn secrets(made: &Made, clear: Option<Zeroizing<Vec<u8>>>) -> Vec<Secret> {
    let keys = made.keys.iter().map(|(hash, text)| Secret { kind: kind(*hash), value: text.as_bytes().to_vec().into() });
    keys.chain(clear.map(|value| Secret { kind: Kind::Clear, value })).collect()
}
