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
    use crate::Directory as _;

    fn secrets(values: &[(Kind, &str)]) -> Vec<Secret> {
        values.iter().map(|(kind, value)| Secret { kind: *kind, value: value.as_bytes().to_vec().into() }).collect()
    }

    fn app(name: &str) -> AppPassword {
        let scram = [Some(Zeroizing::new("keys".to_owned())), None];
        AppPassword { name: name.to_owned(), scope: Scope::Smtp, digest: [7; 32], scram, created_s: 5, used_s: 0 }
    }

    #[test]
    fn secrets_live_no_longer_than_their_password() {
        let mut accounts = Accounts::in_memory().unwrap();
        let (d, joe) = (Domain::new(b"example.org").unwrap(), UserName::new(b"joe").unwrap());
        let of = |accounts: &Accounts, kind| accounts.secret(&d, b"joe", kind).unwrap().map(|value| value.to_vec());
        let all = secrets(&[(Kind::ScramSha1, "k1"), (Kind::Clear, "pw")]);
        accounts.set_secrets(&d, &joe, "h1", &all).unwrap();
        assert_eq!(of(&accounts, Kind::Clear), None, "nobody has no secrets");
        accounts.add_user(&d, &joe, "h1", 0).unwrap();
        accounts.set_secrets(&d, &joe, "h0", &all).unwrap();
        assert_eq!(of(&accounts, Kind::Clear), None, "of another password");
        accounts.set_secrets(&d, &joe, "h1", &all).unwrap();
        assert_eq!((of(&accounts, Kind::Clear), of(&accounts, Kind::ScramSha256)), (Some(b"pw".to_vec()), None));
        assert!(!accounts.renew_hash(&d, &joe, "h0", "x", &all).unwrap());
        assert!(accounts.renew_hash(&d, &joe, "h1", "h2", &secrets(&[(Kind::ScramSha1, "k2")])).unwrap());
        assert_eq!((of(&accounts, Kind::Clear), of(&accounts, Kind::ScramSha1)), (None, Some(b"k2".to_vec())));
        accounts.change_user(&d, &joe, &crate::UserChange::Quota(crate::Quota { bytes: 5, messages: 0 })).unwrap();
        assert!(of(&accounts, Kind::ScramSha1).is_some());
        accounts.set_password(&d, &joe, "h3").unwrap();
        assert_eq!(of(&accounts, Kind::ScramSha1), None);
        accounts.set_secrets(&d, &joe, "h3", &all).unwrap();
        accounts.add_app_password(&d, &joe, &app("phone")).unwrap();
        accounts.remove_user(&d, &joe).unwrap();
        accounts.add_user(&d, &joe, "h3", 0).unwrap();
        assert!(of(&accounts, Kind::Clear).is_none() && accounts.app_passwords(&d, b"joe").unwrap().is_empty());
        accounts.add_app_password(&d, &joe, &app("phone")).unwrap();
        accounts.forget_domain(&d).unwrap();
        accounts.add_user(&d, &joe, "h3", 0).unwrap();
        assert!(accounts.app_passwords(&d, b"joe").unwrap().is_empty());
    }

    #[test]
    fn app_passwords_come_and_go() {
        let mut accounts = Accounts::in_memory().unwrap();
        let (d, joe) = (Domain::new(b"example.org").unwrap(), UserName::new(b"joe").unwrap());
        assert!(matches!(accounts.add_app_password(&d, &joe, &app("x")), Err(Error::NoUser)));
        accounts.add_user(&d, &joe, "h", 0).unwrap();
        accounts.add_app_password(&d, &joe, &app("b")).unwrap();
        accounts.add_app_password(&d, &joe, &app("a")).unwrap();
        assert!(matches!(accounts.add_app_password(&d, &joe, &app("a")), Err(Error::AppPassword(_))));
        accounts.app_password_used(&d, &joe, "b", 86_400).unwrap();
        let all = accounts.app_passwords(&d, b"joe").unwrap();
        let rows: Vec<_> = all.iter().map(|app| (app.name.as_str(), app.used_s, app.created_s, app.digest[0])).collect();
        assert_eq!(rows, [("a", 0, 5, 7), ("b", 86_400, 5, 7)]);
        assert_eq!(
            all[0].scram.each_ref().map(|keys| keys.as_ref().map(|text| text.to_string())),
            [Some("keys".to_owned()), None]
        );
        accounts.remove_app_password(&d, &joe, "a").unwrap();
        assert!(!accounts.remove_app_password(&d, &joe, "a").unwrap_err().is_temporary());
        for n in 1..APP_PASSWORDS_MAX {
            accounts.add_app_password(&d, &joe, &app(&format!("n{n}"))).unwrap();
        }
        assert!(matches!(accounts.add_app_password(&d, &joe, &app("more")), Err(Error::AppPassword(_))));
        accounts.set_password(&d, &joe, "h2").unwrap();
        assert_eq!(accounts.app_passwords(&d, b"joe").unwrap().len(), APP_PASSWORDS_MAX, "another main password changes nothing");
    }

    #[test]
    fn the_key_of_an_installation_is_its_own_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accounts.db");
        let key = Accounts::open(&path).unwrap().installation_key().unwrap();
        assert_eq!((key.len(), &key), (32, &Accounts::open(&path).unwrap().installation_key().unwrap()));
        assert_ne!(key, Accounts::in_memory().unwrap().installation_key().unwrap());
    }
}
