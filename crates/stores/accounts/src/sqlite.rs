//! The [`Directory`] in a SQLite file: WAL, synchronous=FULL, one connection, prepared statements only.

mod secrets;

pub(crate) use secrets::STEP as SECRETS_STEP;

use crate::directory::{After, AliasRow, Credentials, Directory, Generation, TARGETS_MAX, UserRow};
use crate::{Error, UserName, schema};
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};
use std::path::Path;
use std::time::Duration;
use wire::{Address, Domain};

/// How long a statement waits for a lock that only a person's sqlite3 shell could hold.
const BUSY: Duration = Duration::from_secs(2);
/// Prepared statements that are kept; there are fewer.
const STATEMENTS: usize = 32;

/// The accounts database.
#[derive(Debug)]
pub struct Accounts {
    connection: Connection,
    /// Own changes; `PRAGMA data_version` counts those of others.
    changes: u64,
}

impl Accounts {
    /// Opens or creates the database; its directory must exist.
    ///
    /// # Errors
    /// Temporary: out of reach, damaged, or of a newer version.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let connection = Connection::open(path)?;
        let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(Error::Damaged("it cannot use a write-ahead log"));
        }
        Self::prepare(connection)
    }

    /// A database that is gone with the value; for tests.
    ///
    /// # Errors
    /// Out of memory.
    pub fn in_memory() -> Result<Self, Error> {
        Self::prepare(Connection::open_in_memory()?)
    }

    fn prepare(mut connection: Connection) -> Result<Self, Error> {
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        // FULL: a commit is synced before it returns. Sorting in memory: the sandbox has no directory for temporary files.
        connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;")?;
        schema::migrate(&mut connection)?;
        Ok(Self { connection, changes: 0 })
    }

    /// Runs one statement that changes rows; `none` is the error when it changed none.
    fn change(&mut self, sql: &str, params: impl rusqlite::Params, none: Error) -> Result<(), Error> {
        let changed = self.connection.prepare_cached(sql)?.execute(params)?;
        self.changes = self.changes.wrapping_add(1);
        if changed == 0 { Err(none) } else { Ok(()) }
    }

    fn exists(&self, sql: &str, domain: &Domain, name: &[u8]) -> Result<bool, Error> {
        Ok(self.connection.prepare_cached(sql)?.exists(params![domain.as_bytes(), name])?)
    }
}

const HAS_USER: &str = "SELECT 1 FROM account WHERE domain = ?1 AND name = ?2";
const HAS_ALIAS: &str = "SELECT 1 FROM alias WHERE domain = ?1 AND name = ?2";

impl Directory for Accounts {
    fn has_user(&self, domain: &Domain, name: &[u8]) -> Result<bool, Error> {
        self.exists(HAS_USER, domain, name)
    }

    fn alias(&self, domain: &Domain, name: &[u8]) -> Result<Option<Vec<Address>>, Error> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT target FROM alias WHERE domain = ?1 AND name = ?2 ORDER BY position LIMIT ?3")?;
        let limit = i64::try_from(TARGETS_MAX).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![domain.as_bytes(), name, limit])?;
        let mut targets = Vec::new();
        while let Some(row) = rows.next()? {
            targets.push(address(&row.get::<_, Vec<u8>>(0)?)?);
        }
        Ok(Some(targets).filter(|targets| !targets.is_empty()))
    }

    fn credentials(&self, domain: &Domain, name: &[u8]) -> Result<Option<Credentials>, Error> {
        let mut statement =
            self.connection.prepare_cached("SELECT password, suspended FROM account WHERE domain = ?1 AND name = ?2")?;
        let row = statement.query_row(params![domain.as_bytes(), name], |row| {
            Ok(Credentials { password_hash: row.get::<_, String>(0)?.into(), suspended: row.get(1)? })
        });
        Ok(row.optional()?)
    }

    fn users(&self, domain: Option<&Domain>, after: &After, count_max: usize) -> Result<Vec<UserRow>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT domain, name, quota_bytes, suspended FROM account
             WHERE (domain, name) > (?1, ?2) AND (?3 IS NULL OR domain = ?3) ORDER BY domain, name LIMIT ?4",
        )?;
        let from = start(domain, after);
        let mut rows = statement.query(params![from.domain, from.name, domain.map(Domain::as_bytes), limit(count_max)])?;
        let mut out = Vec::new();
        while let Some(row) = rows.next()? {
            out.push(UserRow {
                domain: stored_domain(&row.get::<_, Vec<u8>>(0)?)?,
                name: UserName::new(&row.get::<_, Vec<u8>>(1)?).ok_or(Error::Damaged("a user's name"))?,
                quota_bytes: u64::try_from(row.get::<_, i64>(2)?).map_err(|_| Error::Damaged("a quota"))?,
                suspended: row.get(3)?,
            });
        }
        Ok(out)
    }

    fn aliases(&self, domain: Option<&Domain>, after: &After, count_max: usize) -> Result<Vec<AliasRow>, Error> {
        // Position 0 stands for the alias; its targets are read one by one, so that no alias is cut in the middle.
        let mut statement = self.connection.prepare_cached(
            "SELECT domain, name FROM alias
             WHERE (domain, name) > (?1, ?2) AND (?3 IS NULL OR domain = ?3) AND position = 0 ORDER BY domain, name LIMIT ?4",
        )?;
        let from = start(domain, after);
        let mut rows = statement.query(params![from.domain, from.name, domain.map(Domain::as_bytes), limit(count_max)])?;
        let mut out = Vec::new();
        while let Some(row) = rows.next()? {
            let (domain, name) = (stored_domain(&row.get::<_, Vec<u8>>(0)?)?, row.get::<_, Vec<u8>>(1)?);
            let targets = self.alias(&domain, &name)?.unwrap_or_default();
            out.push(AliasRow { domain, name, targets });
        }
        Ok(out)
    }

    fn generation(&self) -> Result<Generation, Error> {
        let others: i64 = self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        Ok(Generation(self.changes, others.cast_unsigned()))
    }

    fn add_user(&mut self, domain: &Domain, name: &UserName, password_hash: &str, now_s: u64) -> Result<(), Error> {
        if self.exists(HAS_ALIAS, domain, name.as_bytes())? {
            return Err(Error::Exists);
        }
        let now_s = i64::try_from(now_s).unwrap_or(i64::MAX);
        let sql = "INSERT INTO account (domain, name, password, created_s) VALUES (?1, ?2, ?3, ?4)";
        let added = self.change(sql, params![domain.as_bytes(), name.as_bytes(), password_hash, now_s], Error::Exists);
        added.map_err(|error| match error {
            Error::Store(rusqlite::Error::SqliteFailure(e, _)) if e.code == ErrorCode::ConstraintViolation => Error::Exists,
            other => other,
        })
    }

    fn remove_user(&mut self, domain: &Domain, name: &UserName) -> Result<(), Error> {
        let sql = "DELETE FROM account WHERE domain = ?1 AND name = ?2";
        self.change(sql, params![domain.as_bytes(), name.as_bytes()], Error::NoUser)
    }

    fn set_password(&mut self, domain: &Domain, name: &UserName, password_hash: &str) -> Result<(), Error> {
        let sql = "UPDATE account SET password = ?3 WHERE domain = ?1 AND name = ?2";
        self.change(sql, params![domain.as_bytes(), name.as_bytes(), password_hash], Error::NoUser)
    }

    fn set_quota(&mut self, domain: &Domain, name: &UserName, bytes: u64) -> Result<(), Error> {
        let bytes = i64::try_from(bytes).map_err(|_| Error::Quota)?;
        let sql = "UPDATE account SET quota_bytes = ?3 WHERE domain = ?1 AND name = ?2";
        self.change(sql, params![domain.as_bytes(), name.as_bytes(), bytes], Error::NoUser)
    }

    fn set_suspended(&mut self, domain: &Domain, name: &UserName, suspended: bool) -> Result<(), Error> {
        let sql = "UPDATE account SET suspended = ?3 WHERE domain = ?1 AND name = ?2";
        self.change(sql, params![domain.as_bytes(), name.as_bytes(), suspended], Error::NoUser)
    }

    fn set_alias(&mut self, domain: &Domain, name: Option<&UserName>, targets: &[Address]) -> Result<(), Error> {
        let bytes = name.map(UserName::as_bytes).unwrap_or_default();
        check_targets(domain, name, targets)?;
        if self.exists(HAS_USER, domain, bytes)? {
            return Err(Error::Exists);
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut delete = transaction.prepare_cached("DELETE FROM alias WHERE domain = ?1 AND name = ?2")?;
            delete.execute(params![domain.as_bytes(), bytes])?;
            let mut insert =
                transaction.prepare_cached("INSERT INTO alias (domain, name, position, target) VALUES (?1, ?2, ?3, ?4)")?;
            for (position, target) in (0i64..).zip(targets) {
                insert.execute(params![domain.as_bytes(), bytes, position, target.as_bytes()])?;
            }
        }
        transaction.commit()?;
        self.changes = self.changes.wrapping_add(1);
        Ok(())
    }

    fn remove_alias(&mut self, domain: &Domain, name: Option<&UserName>) -> Result<(), Error> {
        let bytes = name.map(UserName::as_bytes).unwrap_or_default();
        self.change("DELETE FROM alias WHERE domain = ?1 AND name = ?2", params![domain.as_bytes(), bytes], Error::NoAlias)
    }

    fn forget_domain(&mut self, domain: &Domain) -> Result<(), Error> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute("DELETE FROM account WHERE domain = ?1", params![domain.as_bytes()])?;
        transaction.execute("DELETE FROM alias WHERE domain = ?1", params![domain.as_bytes()])?;
        transaction.commit()?;
        self.changes = self.changes.wrapping_add(1);
        Ok(())
    }
}

/// A list of one domain starts at it. An empty name sorts before the catch-all's row, so a fresh list takes a domain that is one byte
/// shorter in order: the row value comparison is strict.
fn start(domain: Option<&Domain>, after: &After) -> After {
    match domain {
        Some(domain) if after.domain.as_slice() < domain.as_bytes() => before(domain),
        _ => after.clone(),
    }
}

/// The greatest place before every name of the domain that can be written down: its bytes without the last, then a name nothing exceeds.
fn before(domain: &Domain) -> After {
    let bytes = domain.as_bytes();
    After { domain: bytes.get(..bytes.len().saturating_sub(1)).unwrap_or_default().to_vec(), name: Vec::new() }
}

fn limit(count_max: usize) -> i64 {
    i64::try_from(count_max).unwrap_or(i64::MAX)
}

fn address(bytes: &[u8]) -> Result<Address, Error> {
    Address::new(bytes).map_err(|_| Error::Damaged("an alias's target"))
}

fn stored_domain(bytes: &[u8]) -> Result<Domain, Error> {
    Domain::new(bytes).map_err(|_| Error::Damaged("a domain"))
}

/// Targets are addresses with a local part and a domain; an alias to itself alone would only loop.
fn check_targets(domain: &Domain, name: Option<&UserName>, targets: &[Address]) -> Result<(), Error> {
    if targets.is_empty() {
        return Err(Error::Targets("an alias needs at least one target"));
    }
    if targets.len() > TARGETS_MAX {
        return Err(Error::Targets("an alias has at most 20 targets; make a mailing list"));
    }
    for target in targets {
        let at = target.domain().and_then(|d| Domain::new(d).ok());
        let Some(at) = at.filter(|_| !target.local().is_empty()) else {
            return Err(Error::Targets("each target is a whole address, user@domain"));
        };
        if at == *domain && name.is_some_and(|name| target.local().eq_ignore_ascii_case(name.as_bytes())) {
            return Err(Error::Targets("an alias cannot point to itself"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Domain {
        Domain::new(text.as_bytes()).unwrap()
    }

    fn name(text: &str) -> UserName {
        UserName::new(text.as_bytes()).unwrap()
    }

    fn addresses(texts: &[&str]) -> Vec<Address> {
        texts.iter().map(|t| Address::new(t.as_bytes()).unwrap()).collect()
    }

    #[test]
    fn a_users_life() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accounts.db");
        let (d, joe) = (domain("example.org"), name("joe"));
        let mut accounts = Accounts::open(&path).unwrap();
        assert!(matches!(accounts.set_password(&d, &joe, "x"), Err(Error::NoUser)));
        accounts.add_user(&d, &joe, "h1", 7).unwrap();
        assert!(matches!(accounts.add_user(&d, &joe, "h2", 7), Err(Error::Exists)));
        accounts.set_password(&d, &joe, "h3").unwrap();
        accounts.set_quota(&d, &joe, 1000).unwrap();
        assert!(matches!(accounts.set_quota(&d, &joe, u64::MAX), Err(Error::Quota)));
        accounts.set_suspended(&d, &joe, true).unwrap();
        drop(accounts);
        let mut accounts = Accounts::open(&path).unwrap();
        let row = UserRow { domain: d.clone(), name: joe.clone(), quota_bytes: 1000, suspended: true };
        assert_eq!(accounts.users(None, &After::default(), 10).unwrap(), [row]);
        let credentials = accounts.credentials(&d, b"joe").unwrap().unwrap();
        assert_eq!((credentials.password_hash.as_str(), credentials.suspended), ("h3", true));
        assert!(accounts.credentials(&domain("example.com"), b"joe").unwrap().is_none());
        accounts.remove_user(&d, &joe).unwrap();
        assert!(matches!(accounts.remove_user(&d, &joe), Err(Error::NoUser)));
        assert!(!accounts.has_user(&d, b"joe").unwrap());
    }

    #[test]
    fn aliases_and_their_mistakes() {
        let mut accounts = Accounts::in_memory().unwrap();
        let (d, info) = (domain("example.org"), name("info"));
        accounts.set_alias(&d, Some(&info), &addresses(&["b@x", "a@y"])).unwrap();
        accounts.set_alias(&d, None, &addresses(&["info@example.org"])).unwrap();
        assert_eq!(accounts.alias(&d, b"info").unwrap().unwrap(), addresses(&["b@x", "a@y"]));
        accounts.set_alias(&d, Some(&info), &addresses(&["c@z"])).unwrap();
        assert_eq!(accounts.alias(&d, b"info").unwrap().unwrap(), addresses(&["c@z"]), "replaced as a whole");
        for bad in [
            vec![],
            addresses(&["x"]),
            addresses(&["@y"]),
            addresses(&["x@a b"]),
            addresses(&["INFO@Example.org"]),
            addresses(&["a@b"; 21]),
        ] {
            assert!(matches!(accounts.set_alias(&d, Some(&info), &bad), Err(Error::Targets(_))), "{bad:?}");
        }
        assert!(matches!(accounts.add_user(&d, &info, "h", 0), Err(Error::Exists)));
        accounts.add_user(&d, &name("joe"), "h", 0).unwrap();
        assert!(matches!(accounts.set_alias(&d, Some(&name("joe")), &addresses(&["a@b"])), Err(Error::Exists)));
        accounts.remove_alias(&d, Some(&info)).unwrap();
        assert!(matches!(accounts.remove_alias(&d, Some(&info)), Err(Error::NoAlias)));
        accounts.forget_domain(&d).unwrap();
        assert!(accounts.aliases(None, &After::default(), 9).unwrap().is_empty() && !accounts.has_user(&d, b"joe").unwrap());
    }

    #[test]
    fn lists_come_in_pages_by_domain_and_name() {
        let mut accounts = Accounts::in_memory().unwrap();
        for d in ["a.org", "b", "b.org", "c"] {
            for n in ["x", "y", "z"] {
                accounts.add_user(&domain(d), &name(n), "h", 0).unwrap();
            }
            accounts.set_alias(&domain(d), None, &addresses(&["p@q", "r@s"])).unwrap();
            accounts.set_alias(&domain(d), Some(&name("k")), &addresses(&["p@q"])).unwrap();
        }
        let walk = |domain: Option<&Domain>| {
            let (mut after, mut out) = (After::default(), Vec::new());
            loop {
                let page = accounts.users(domain, &after, 2).unwrap();
                let Some(last) = page.last() else { return out };
                after = After { domain: last.domain.as_bytes().to_vec(), name: last.name.as_bytes().to_vec() };
                out.extend(page.iter().map(|r| format!("{}@{}", r.name, r.domain)));
            }
        };
        assert_eq!(walk(Some(&domain("b"))), ["x@b", "y@b", "z@b"]);
        assert_eq!(walk(Some(&domain("b.org"))), ["x@b.org", "y@b.org", "z@b.org"]);
        assert_eq!(walk(None).len(), 12);
        let all = accounts.aliases(Some(&domain("b.org")), &After::default(), 9).unwrap();
        assert_eq!(all.iter().map(|r| (r.name.as_slice(), r.targets.len())).collect::<Vec<_>>(), [(&b""[..], 2), (b"k", 1)]);
        let after = After { domain: b"b.org".to_vec(), name: Vec::new() };
        assert_eq!(accounts.aliases(Some(&domain("b.org")), &after, 9).unwrap().len(), 1);
    }

    #[test]
    fn the_generation_sees_own_and_foreign_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accounts.db");
        let mut accounts = Accounts::open(&path).unwrap();
        let first = accounts.generation().unwrap();
        assert_eq!(accounts.generation().unwrap(), first);
        accounts.add_user(&domain("a"), &name("x"), "h", 0).unwrap();
        let second = accounts.generation().unwrap();
        assert_ne!(second, first);
        Accounts::open(&path).unwrap().add_user(&domain("a"), &name("y"), "h", 0).unwrap();
        assert_ne!(accounts.generation().unwrap(), second);
        assert!(accounts.has_user(&domain("a"), b"y").unwrap());
    }

    #[test]
    fn a_newer_database_is_left_alone_and_damage_is_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accounts.db");
        drop(Accounts::open(&path).unwrap());
        let raw = Connection::open(&path).unwrap();
        raw.execute("INSERT INTO alias VALUES (x'61', x'6b', 0, x'0a')", []).unwrap();
        let accounts = Accounts::open(&path).unwrap();
        assert!(accounts.alias(&domain("a"), b"k").unwrap_err().is_temporary());
        drop(accounts);
        raw.pragma_update(None, "user_version", 99).unwrap();
        let error = Accounts::open(&path).unwrap_err();
        assert!(matches!(error, Error::Newer { found: 99, known: 2 }) && error.is_temporary());
        drop(raw);
        std::fs::write(&path, [b'x'; 8192]).unwrap();
        assert!(Accounts::open(&path).unwrap_err().is_temporary());
    }

    #[test]
    fn names_made_of_sql_find_and_change_nothing() {
        let mut accounts = Accounts::in_memory().unwrap();
        let d = domain("example.org");
        accounts.add_user(&d, &name("joe"), "h", 0).unwrap();
        for local in ["' OR 1=1 --", "joe'--", "joe\0", "%", "_oe", "*", "joe;DELETE FROM account", "\u{0}", "JOE "] {
            assert!(!accounts.has_user(&d, local.as_bytes()).unwrap(), "{local}");
            assert!(accounts.credentials(&d, local.as_bytes()).unwrap().is_none());
            assert!(accounts.alias(&d, local.as_bytes()).unwrap().is_none());
        }
        assert!(accounts.has_user(&d, b"joe").unwrap());
    }
}
