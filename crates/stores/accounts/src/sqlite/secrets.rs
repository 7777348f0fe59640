//! [`Secrets`] in the SQLite file. Nothing that is cached under a [`crate::Generation`] depends on them, so they do not change it.

use super::Accounts;
use crate::secrets::{APP_PASSWORDS_MAX, AppPassword, Kind, Scope, Secret, Secrets};
use crate::{Error, UserName};
use rusqlite::{ErrorCode, OptionalExtension as _, TransactionBehavior, params};
use wire::Domain;
use zeroize::Zeroizing;

/// The step of the schema that makes the tables. The key is made by SQLite, from the system's random bytes.
pub(crate) const STEP: &str = "
    CREATE TABLE installation (
        name TEXT NOT NULL PRIMARY KEY,
        value BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO installation (name, value) VALUES ('key', randomblob(32));
    CREATE TABLE secret (
        domain BLOB NOT NULL,
        name BLOB NOT NULL,
        kind TEXT NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (domain, name, kind)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE app_password (
        domain BLOB NOT NULL,
        name BLOB NOT NULL,
        label TEXT NOT NULL,
        scope TEXT NOT NULL,
        digest BLOB NOT NULL,
        scram_sha_1 TEXT,
        scram_sha_256 TEXT,
        created_s INTEGER NOT NULL,
        used_s INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (domain, name, label)
    ) STRICT, WITHOUT ROWID;
    CREATE TRIGGER password_changed AFTER UPDATE OF password ON account BEGIN
        DELETE FROM secret WHERE domain = old.domain AND name = old.name;
    END;
    CREATE TRIGGER account_removed AFTER DELETE ON account BEGIN
        DELETE FROM secret WHERE domain = old.domain AND name = old.name;
        DELETE FROM app_password WHERE domain = old.domain AND name = old.name;
    END;
    ";

const SET_SECRET: &str = "INSERT OR REPLACE INTO secret (domain, name, kind, value)
     SELECT ?1, ?2, ?4, ?5 WHERE EXISTS (SELECT 1 FROM account WHERE domain = ?1 AND name = ?2 AND password = ?3)";

impl Secrets for Accounts {
    fn installation_key(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut statement = self.connection.prepare_cached("SELECT value FROM installation WHERE name = 'key'")?;
        Ok(statement.query_row([], |row| row.get::<_, Vec<u8>>(0))?.into())
    }

    fn secret(&self, domain: &Domain, name: &[u8], kind: Kind) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let mut statement =
            self.connection.prepare_cached("SELECT value FROM secret WHERE domain = ?1 AND name = ?2 AND kind = ?3")?;
        let row = statement.query_row(params![domain.as_bytes(), name, kind.name()], |row| row.get::<_, Vec<u8>>(0));
        Ok(row.optional()?.map(Zeroizing::new))
    }

    fn set_secrets(&mut self, domain: &Domain, name: &UserName, password_hash: &str, secrets: &[Secret]) -> Result<(), Error> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for secret in secrets {
            let params = params![domain.as_bytes(), name.as_bytes(), password_hash, secret.kind.name(), &secret.value[..]];
            transaction.prepare_cached(SET_SECRET)?.execute(params)?;
        }
        Ok(transaction.commit()?)
    }

    fn renew_hash(&mut self, domain: &Domain, name: &UserName, old: &str, new: &str, secrets: &[Secret]) -> Result<bool, Error> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "UPDATE account SET password = ?4 WHERE domain = ?1 AND name = ?2 AND password = ?3";
        let changed = transaction.prepare_cached(sql)?.execute(params![domain.as_bytes(), name.as_bytes(), old, new])?;
        for secret in secrets {
            let params = params![domain.as_bytes(), name.as_bytes(), new, secret.kind.name(), &secret.value[..]];
            transaction.prepare_cached(SET_SECRET)?.execute(params)?;
        }
        transaction.commit()?;
        Ok(changed != 0)
    }

    fn app_passwords(&self, domain: &Domain, name: &[u8]) -> Result<Vec<AppPassword>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT label, scope, digest, scram_sha_1, scram_sha_256, created_s, used_s FROM app_password
             WHERE domain = ?1 AND name = ?2 ORDER BY label LIMIT ?3",
        )?;
        let mut rows = statement.query(params![domain.as_bytes(), name, super::limit(APP_PASSWORDS_MAX)])?;
        let mut out = Vec::new();
        while let Some(row) = rows.next()? {
            let keys = |at: usize| Ok::<_, Error>(row.get::<_, Option<String>>(at)?.map(Zeroizing::new));
            let time = |at: usize| Ok::<_, Error>(u64::try_from(row.get::<_, i64>(at)?).unwrap_or(0));
            out.push(AppPassword {
                name: row.get(0)?,
                scope: Scope::named(row.get::<_, String>(1)?.as_bytes()).ok_or(Error::Damaged("an app password's scope"))?,
                digest: row.get::<_, Vec<u8>>(2)?.try_into().map_err(|_| Error::Damaged("an app password's digest"))?,
                scram: [keys(3)?, keys(4)?],
                created_s: time(5)?,
                used_s: time(6)?,
            });
        }
        Ok(out)
    }

    fn add_app_password(&mut self, domain: &Domain, name: &UserName, app: &AppPassword) -> Result<(), Error> {
        if !self.exists(super::HAS_USER, domain, name.as_bytes())? {
            return Err(Error::NoUser);
        }
        if self.app_passwords(domain, name.as_bytes())?.len() >= APP_PASSWORDS_MAX {
            return Err(Error::AppPassword("this user has 32 app passwords already; remove one that is not used"));
        }
        let created_s = i64::try_from(app.created_s).unwrap_or(i64::MAX);
        let [sha1, sha256] = app.scram.each_ref().map(|keys| keys.as_ref().map(|text| text.as_str()));
        let sql = "INSERT INTO app_password (domain, name, label, scope, digest, scram_sha_1, scram_sha_256, created_s)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let (domain, name, scope) = (domain.as_bytes(), name.as_bytes(), app.scope.name());
        let params = params![domain, name, app.name, scope, &app.digest[..], sha1, sha256, created_s];
        match self.connection.prepare_cached(sql)?.execute(params) {
            Ok(_) => Ok(()),
            Err(rusqlite::Error::SqliteFailure(e, _)) if e.code == ErrorCode::ConstraintViolation => {
                Err(Error::AppPassword("this user has an app password of this name already"))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn remove_app_password(&mut self, domain: &Domain, name: &UserName, app: &str) -> Result<(), Error> {
        let sql = "DELETE FROM app_password WHERE domain = ?1 AND name = ?2 AND label = ?3";
        match self.connection.prepare_cached(sql)?.execute(params![domain.as_bytes(), name.as_bytes(), app])? {
            0 => Err(Error::AppPassword("this user has no app password of this name")),
            _ => Ok(()),
        }
    }

    fn app_password_used(&mut self, domain: &Domain, name: &UserName, app: &str, day_s: u64) -> Result<(), Error> {
        let sql = "UPDATE app_password SET used_s = ?4 WHERE domain = ?1 AND name = ?2 AND label = ?3";
        let day_s = i64::try_from(day_s).unwrap_or(i64::MAX);
        self.connection.prepare_cached(sql)?.execute(params![domain.as_bytes(), name.as_bytes(), app, day_s])?;
        Ok(())
    }
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
