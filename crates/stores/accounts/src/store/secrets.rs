//! [`Secrets`] of the store. Nothing that is cached under a [`crate::Generation`] depends on them, so they do not change it.

use super::{Accounts, key};
use crate::database::{Columns as _, Transaction, bytes, count, int, or_null, text};
use crate::secrets::{APP_PASSWORDS_MAX, AppPassword, Kind, Scope, Secret, Secrets};
use crate::{Error, UserName};
use accounts_sql::Statement;
use ipc::accounts::Value;
use wire::Domain;
use zeroize::Zeroizing;

impl Secrets for Accounts {
    fn installation_key(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        match self.read(Statement::InstallationKey, &[])?.first() {
            Some(row) => Ok(row.bytes(0)?.to_vec().into()),
            None => Err(Error::Damaged("it has no key of the installation")),
        }
    }

    fn secret(&self, domain: &Domain, name: &[u8], kind: Kind) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let rows = self.read(Statement::Secret, &[bytes(domain.as_bytes()), bytes(name), text(kind.name())])?;
        rows.first().map(|row| Ok(row.bytes(0)?.to_vec().into())).transpose()
    }

    fn set_secrets(&mut self, domain: &Domain, name: &UserName, password_hash: &str, secrets: &[Secret]) -> Result<(), Error> {
        let transaction = self.begin()?;
        let [d, n] = key(domain, name.as_bytes());
        if !self.read(Statement::HasPassword, &[d, n, text(password_hash)])?.is_empty() {
            put_secrets(&transaction, domain, name, secrets)?;
        }
        transaction.commit()
    }

    fn renew_hash(&mut self, domain: &Domain, name: &UserName, old: &str, new: &str, secrets: &[Secret]) -> Result<bool, Error> {
        let transaction = self.begin()?;
        let [d, n] = key(domain, name.as_bytes());
        let changed = transaction.run(Statement::RenewPassword, &[d, n, text(old), text(new)])?;
        if changed != 0 {
            put_secrets(&transaction, domain, name, secrets)?;
        }
        transaction.commit()?;
        Ok(changed != 0)
    }

    fn app_passwords(&self, domain: &Domain, name: &[u8]) -> Result<Vec<AppPassword>, Error> {
        let values = [bytes(domain.as_bytes()), bytes(name), count(APP_PASSWORDS_MAX)];
        self.read(Statement::AppPasswords, &values)?.iter().map(|row| app_password(row)).collect()
    }

    fn add_app_password(&mut self, domain: &Domain, name: &UserName, app: &AppPassword) -> Result<(), Error> {
        let transaction = self.begin()?;
        if !self.exists(Statement::HasUser, domain, name.as_bytes())? {
            return Err(Error::NoUser);
        }
        let others = self.app_passwords(domain, name.as_bytes())?;
        if others.iter().any(|other| other.name == app.name) {
            return Err(Error::AppPassword("this user has an app password of this name already"));
        }
        if others.len() >= APP_PASSWORDS_MAX {
            return Err(Error::AppPassword("this user has 32 app passwords already; remove one that is not used"));
        }
        let [sha1, sha256] = app.scram.each_ref().map(|keys| or_null(keys.as_ref().map(|keys| text(keys))));
        let [d, n] = key(domain, name.as_bytes());
        let (label, scope) = (text(&app.name), text(app.scope.name()));
        let values = [d, n, label, scope, bytes(&app.digest), sha1, sha256, int(app.created_s)];
        transaction.run(Statement::AddAppPassword, &values)?;
        transaction.commit()
    }

    fn remove_app_password(&mut self, domain: &Domain, name: &UserName, app: &str) -> Result<(), Error> {
        let [d, n] = key(domain, name.as_bytes());
        let transaction = self.begin()?;
        let removed = transaction.run(Statement::RemoveAppPassword, &[d, n, text(app)])?;
        transaction.commit()?;
        if removed == 0 { Err(Error::AppPassword("this user has no app password of this name")) } else { Ok(()) }
    }

    fn app_password_used(&mut self, domain: &Domain, name: &UserName, app: &str, day_s: u64) -> Result<(), Error> {
        let [d, n] = key(domain, name.as_bytes());
        let transaction = self.begin()?;
        transaction.run(Statement::UseAppPassword, &[d, n, text(app), int(day_s)])?;
        transaction.commit()
    }
}

fn put_secrets(transaction: &Transaction<'_>, domain: &Domain, name: &UserName, secrets: &[Secret]) -> Result<(), Error> {
    for secret in secrets {
        let [d, n] = key(domain, name.as_bytes());
        transaction.run(Statement::SetSecret, &[d, n, text(secret.kind.name()), bytes(&secret.value)])?;
    }
    Ok(())
}

/// The columns of [`Statement::AppPasswords`].
fn app_password(row: &[Value]) -> Result<AppPassword, Error> {
    let keys = |at: usize| Ok::<_, Error>(row.maybe_text(at)?.map(|text| Zeroizing::new(text.to_owned())));
    Ok(AppPassword {
        name: row.text(0)?.to_owned(),
        scope: Scope::named(row.text(1)?.as_bytes()).ok_or(Error::Damaged("an app password's scope"))?,
        digest: row.bytes(2)?.try_into().map_err(|_| Error::Damaged("an app password's digest"))?,
        scram: [keys(3)?, keys(4)?],
        created_s: row.number(5)?,
        used_s: row.number(6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_an_installation_is_its_own_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accounts.db");
        let key = Accounts::open(&path).unwrap().installation_key().unwrap();
        assert_eq!((key.len(), &key), (32, &Accounts::open(&path).unwrap().installation_key().unwrap()));
        assert_ne!(key, Accounts::in_memory().unwrap().installation_key().unwrap());
    }
}
