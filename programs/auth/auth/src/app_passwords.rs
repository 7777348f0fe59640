//! What the administrator may ask about app passwords (accounts::app_password).

use crate::admin::{Failure, said, user_of};
use crate::hashing::HashJob;
use crate::pool::{Made, Work};
use crate::server::Server;
use accounts::secrets::{AppPassword, Scope, check_app_name};
use accounts::{Directory as _, Error, Secrets as _, UserName, app_password};
use ipc::admin::{AccountAnswer, AppPasswordRow};
use sasl::scram::Hash;
use wire::{Address, Domain};
use zeroize::Zeroizing;

impl Server {
    /// SCRAM's keys are computed by the pool; [`Server::new_app_password`] answers.
    pub(crate) fn app_password_add(&mut self, client: u64, address: &Address, name: &[u8], service: &[u8]) {
        let ready = user_of(address).and_then(|(domain, user)| {
            let name = check_app_name(name)?.to_owned();
            let scope = Scope::named(service).ok_or(Error::AppPassword("a service is all, smtp or pop3"))?;
            let (password, salts) = (app_password::generate()?, self.salts(&domain, &user)?);
            let bytes = Zeroizing::new(password.as_bytes().to_vec());
            let job = HashJob::AppPassword { client, domain, user, name, scope, password };
            Ok((job, Work::Make { password: bytes, salts, with_hash: false }))
        });
        match ready {
            Ok((job, work)) => self.make(client, job, work),
            Err(failure) => self.admin_answer(client, Err(failure)),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new_app_password(
        &mut self,
        client: u64,
        domain: &Domain,
        user: &UserName,
        name: String,
        scope: Scope,
        password: &str,
        made: Result<Made, Error>,
    ) {
        let done = made.and_then(|made| {
            let keys = |wanted| made.keys.iter().find(|(hash, _)| *hash == wanted).map(|(_, text)| text.clone());
            let scram = [keys(Hash::Sha1), keys(Hash::Sha256)];
            let (digest, created_s) = (app_password::digest(password.as_bytes()), sys::clock::unix_s());
            self.accounts.add_app_password(domain, user, &AppPassword { name, scope, digest, scram, created_s, used_s: 0 })
        });
        match done {
            Ok(()) => self.answer(client, &AccountAnswer::AppPassword { password: password.into() }, None),
            Err(error) => self.admin_answer(client, said(Err(error))),
        }
    }

    pub(crate) fn app_password_list(&mut self, client: u64, address: &Address) {
        match self.app_password_rows(address) {
            Ok(rows) => self.answer(client, &AccountAnswer::AppPasswords { rows }, None),
            Err(failure) => self.admin_answer(client, Err(failure)),
        }
    }

    fn app_password_rows(&mut self, address: &Address) -> Result<Vec<AppPasswordRow>, Failure> {
        let (domain, user) = user_of(address)?;
        if !self.accounts.has_user(&domain, user.as_bytes())? {
            return Err(Error::NoUser.into());
        }
        let row = |app: AppPassword| AppPasswordRow {
            name: app.name.as_str().into(),
            service: app.scope.name().into(),
            created_s: app.created_s,
            used_s: app.used_s,
        };
        Ok(self.accounts.app_passwords(&domain, user.as_bytes())?.into_iter().map(row).collect())
    }

    pub(crate) fn app_password_remove(&mut self, address: &Address, name: &[u8]) -> Result<(), Failure> {
        let (domain, user) = user_of(address)?;
        Ok(self.accounts.remove_app_password(&domain, &user, check_app_name(name)?)?)
    }
}
