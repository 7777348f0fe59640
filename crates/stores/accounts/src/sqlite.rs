//! The [`Directory`] in a SQLite file: WAL, synchronous=FULL, one connection, prepared statements only.

mod add;
mod secrets;

pub(crate) use secrets::STEP as SECRETS_STEP;

use crate::directory::{After, AliasRow, Credentials, Directory, Generation, UserRow};
use crate::settings::{
    ADMINISTRATORS_MAX, Account, DomainSettings, Entry, Forward, Limits, Quota, TARGETS_MAX, UserChange, Vacation, is_whole,
};
use crate::{Error, UserName, schema};
use add::Adding;
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use std::path::Path;
use std::time::Duration;
use wire::{Address, Domain};

/// How long a statement waits for a lock that only a person's sqlite3 shell could hold.
const BUSY: Duration = Duration::from_secs(2);
/// Prepared statements that are kept; there are fewer.
const STATEMENTS: usize = 64;

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
    fn takes_mail(&self, domain: &Domain, name: &[u8]) -> Result<Option<bool>, Error> {
        let mut statement =
            self.connection.prepare_cached("SELECT refuses_mail = 0 FROM account WHERE domain = ?1 AND name = ?2")?;
        Ok(statement.query_row(params![domain.as_bytes(), name], |row| row.get(0)).optional()?)
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

    fn account(&self, domain: &Domain, name: &[u8]) -> Result<Option<Account>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT quota_bytes, quota_messages, suspended, refuses_mail, forward, keeps_copy, hour_max, day_max, vacation_text,
                vacation_subject, vacation_from_s, vacation_until_s, vacation_days, created_s
             FROM account WHERE domain = ?1 AND name = ?2",
        )?;
        let mut rows = statement.query(params![domain.as_bytes(), name])?;
        rows.next()?.map(account).transpose()
    }

    fn alias_of(&self, domain: &Domain) -> Result<Option<Domain>, Error> {
        let mut statement = self.connection.prepare_cached("SELECT alias_of FROM domain WHERE domain = ?1")?;
        let found: Option<Option<Vec<u8>>> = statement.query_row(params![domain.as_bytes()], |row| row.get(0)).optional()?;
        found.flatten().map(|bytes| stored_domain(&bytes)).transpose()
    }

    fn domain(&self, domain: &Domain) -> Result<DomainSettings, Error> {
        domain_settings(&self.connection, domain)
    }

    fn domains(&self, after: &[u8], count_max: usize) -> Result<Vec<Domain>, Error> {
        let mut statement =
            self.connection.prepare_cached("SELECT domain FROM domain WHERE domain > ?1 ORDER BY domain LIMIT ?2")?;
        let mut rows = statement.query(params![after, limit(count_max)])?;
        let mut out = Vec::new();
        while let Some(row) = rows.next()? {
            out.push(stored_domain(&row.get::<_, Vec<u8>>(0)?)?);
        }
        Ok(out)
    }

    fn users(&self, domain: Option<&Domain>, after: &After, count_max: usize) -> Result<Vec<UserRow>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT domain, name, quota_bytes, quota_messages, suspended FROM account
             WHERE (domain, name) > (?1, ?2) AND (?3 IS NULL OR domain = ?3) ORDER BY domain, name LIMIT ?4",
        )?;
        let from = start(domain, after);
        let mut rows = statement.query(params![from.domain, from.name, domain.map(Domain::as_bytes), limit(count_max)])?;
        let mut out = Vec::new();
        while let Some(row) = rows.next()? {
            out.push(UserRow {
                domain: stored_domain(&row.get::<_, Vec<u8>>(0)?)?,
                name: UserName::new(&row.get::<_, Vec<u8>>(1)?).ok_or(Error::Damaged("a user's name"))?,
                quota: quota(row, 2)?,
                suspended: row.get(4)?,
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

    fn aliases_to(&self, target: &Address, count_max: usize) -> Result<Vec<Address>, Error> {
        // By the index on targets. The one target is the only one: position 0, and none behind it.
        let mut statement = self.connection.prepare_cached(
            "SELECT name, domain FROM alias AS a WHERE lower(CAST(target AS TEXT)) = lower(CAST(?1 AS TEXT)) AND position = 0 AND name <> x''
             AND NOT EXISTS (SELECT 1 FROM alias AS b WHERE b.domain = a.domain AND b.name = a.name AND b.position = 1)
             ORDER BY domain, name LIMIT ?2",
        )?;
        let mut rows = statement.query(params![target.as_bytes(), limit(count_max)])?;
        let mut out = Vec::new();
        while let Some(row) = rows.next()? {
            let alias = Address::join(&row.get::<_, Vec<u8>>(0)?, &row.get::<_, Vec<u8>>(1)?);
            out.push(alias.map_err(|_| Error::Damaged("an alias"))?);
        }
        Ok(out)
    }

    fn generation(&self) -> Result<Generation, Error> {
        let others: i64 = self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        Ok(Generation(self.changes, others.cast_unsigned()))
    }

    fn add(&mut self, entries: &[Entry]) -> Result<Vec<Result<(), Error>>, Error> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut results = Vec::with_capacity(entries.len());
        let mut adding = Adding::new(&transaction);
        for entry in entries {
            match adding.entry(entry) {
                Err(error) if error.is_temporary() => return Err(error),
                result => results.push(result),
            }
        }
        transaction.commit()?;
        self.changes = self.changes.wrapping_add(1);
        Ok(results)
    }

    fn remove_user(&mut self, domain: &Domain, name: &UserName) -> Result<(), Error> {
        let key = params![domain.as_bytes(), name.as_bytes()];
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let removed = transaction.prepare_cached("DELETE FROM account WHERE domain = ?1 AND name = ?2")?.execute(key)?;
        let sql = "DELETE FROM administrator WHERE account_domain = ?1 AND account_name = ?2";
        transaction.prepare_cached(sql)?.execute(key)?;
        transaction.commit()?;
        self.changes = self.changes.wrapping_add(1);
        if removed == 0 { Err(Error::NoUser) } else { Ok(()) }
    }

    fn rename_user(&mut self, domain: &Domain, name: &UserName, to: &UserName, keeps_alias: bool) -> Result<(), Error> {
        if self.exists(HAS_USER, domain, to.as_bytes())? || self.exists(HAS_ALIAS, domain, to.as_bytes())? {
            return Err(Error::Exists);
        }
        let address = |name: &UserName| {
            Address::join(name.as_bytes(), domain.as_bytes()).map_err(|_| Error::Setting("the address would be too long"))
        };
        let (old, new) = (address(name)?, address(to)?);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let key = params![domain.as_bytes(), name.as_bytes(), to.as_bytes()];
        let sql = "UPDATE account SET name = ?3 WHERE domain = ?1 AND name = ?2";
        if transaction.prepare_cached(sql)?.execute(key)? == 0 {
            return Err(Error::NoUser);
        }
        for sql in [
            "UPDATE secret SET name = ?3 WHERE domain = ?1 AND name = ?2",
            "UPDATE app_password SET name = ?3 WHERE domain = ?1 AND name = ?2",
            "UPDATE administrator SET account_name = ?3 WHERE account_domain = ?1 AND account_name = ?2",
        ] {
            transaction.prepare_cached(sql)?.execute(key)?;
        }
        let sql = "UPDATE alias SET target = ?2 WHERE lower(CAST(target AS TEXT)) = lower(CAST(?1 AS TEXT))";
        transaction.prepare_cached(sql)?.execute(params![old.as_bytes(), new.as_bytes()])?;
        if keeps_alias {
            replace_alias(&transaction, domain, name.as_bytes(), &[new])?;
        }
        transaction.commit()?;
        self.changes = self.changes.wrapping_add(1);
        Ok(())
    }

    fn set_password(&mut self, domain: &Domain, name: &UserName, password_hash: &str) -> Result<(), Error> {
        let sql = "UPDATE account SET password = ?3 WHERE domain = ?1 AND name = ?2";
        self.change(sql, params![domain.as_bytes(), name.as_bytes(), password_hash], Error::NoUser)
    }

    fn change_user(&mut self, domain: &Domain, name: &UserName, change: &UserChange) -> Result<(), Error> {
        change.check()?;
        let (d, n) = (domain.as_bytes(), name.as_bytes());
        match change {
            UserChange::Quota(quota) => {
                let settings = domain_settings(&self.connection, domain)?;
                if settings.quota_bytes > 0 {
                    let own = self.account(domain, n)?.ok_or(Error::NoUser)?.quota.bytes;
                    let (_, allotted_bytes) = add::totals(&self.connection, domain)?;
                    add::check_allotment(&settings, allotted_bytes.saturating_sub(own), *quota)?;
                }
                let sql = "UPDATE account SET quota_bytes = ?3, quota_messages = ?4 WHERE domain = ?1 AND name = ?2";
                self.change(sql, params![d, n, signed(quota.bytes), signed(quota.messages)], Error::NoUser)
            }
            UserChange::Suspension { suspended, refuses_mail } => {
                let sql = "UPDATE account SET suspended = ?3, refuses_mail = ?4 WHERE domain = ?1 AND name = ?2";
                self.change(sql, params![d, n, suspended, refuses_mail], Error::NoUser)
            }
            UserChange::Forward(Forward { targets, keeps_copy }) => {
                let sql = "UPDATE account SET forward = ?3, keeps_copy = ?4 WHERE domain = ?1 AND name = ?2";
                self.change(sql, params![d, n, joined(targets), keeps_copy], Error::NoUser)
            }
            UserChange::Vacation(vacation) => {
                let vacation = vacation.as_ref();
                let (text, subject) = (vacation.map(|v| v.text.as_str()), vacation.map(|v| v.subject.as_str()));
                let (from_s, until_s) = (vacation.map(|v| signed(v.from_s)), vacation.map(|v| signed(v.until_s)));
                let sql =
                    "UPDATE account SET vacation_text = ?3, vacation_subject = ?4, vacation_from_s = ?5, vacation_until_s = ?6,
                    vacation_days = ?7 WHERE domain = ?1 AND name = ?2";
                let days = vacation.map(|v| v.days);
                self.change(sql, params![d, n, text, subject, from_s, until_s, days], Error::NoUser)
            }
            UserChange::Limits(Limits { per_hour, per_day }) => {
                let sql = "UPDATE account SET hour_max = ?3, day_max = ?4 WHERE domain = ?1 AND name = ?2";
                self.change(sql, params![d, n, per_hour, per_day], Error::NoUser)
            }
        }
    }

    fn set_alias(&mut self, domain: &Domain, name: Option<&UserName>, targets: &[Address]) -> Result<(), Error> {
        let bytes = name.map(UserName::as_bytes).unwrap_or_default();
        check_targets(domain, name, targets)?;
        if self.exists(HAS_USER, domain, bytes)? {
            return Err(Error::Exists);
        }
        if self.alias_of(domain)?.is_some() {
            return Err(Error::Setting("the domain is an alias of another and has nobody of its own"));
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        replace_alias(&transaction, domain, bytes, targets)?;
        transaction.commit()?;
        self.changes = self.changes.wrapping_add(1);
        Ok(())
    }

    fn remove_alias(&mut self, domain: &Domain, name: Option<&UserName>) -> Result<(), Error> {
        let bytes = name.map(UserName::as_bytes).unwrap_or_default();
        self.change("DELETE FROM alias WHERE domain = ?1 AND name = ?2", params![domain.as_bytes(), bytes], Error::NoAlias)
    }

    fn set_domain(&mut self, domain: &Domain, settings: &DomainSettings) -> Result<(), Error> {
        self.check_domain(domain, settings)?;
        let d = domain.as_bytes();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.prepare_cached("DELETE FROM domain WHERE domain = ?1")?.execute(params![d])?;
        transaction.prepare_cached("DELETE FROM administrator WHERE domain = ?1")?.execute(params![d])?;
        if !settings.is_default() {
            let sql = "INSERT INTO domain (domain, alias_of, default_quota_bytes, default_quota_messages, quota_bytes, users_max)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let alias_of = settings.alias_of.as_ref().map(Domain::as_bytes);
            let Quota { bytes, messages } = settings.default_quota;
            let (quota_bytes, users_max) = (signed(settings.quota_bytes), signed(settings.users_max));
            let values = params![d, alias_of, signed(bytes), signed(messages), quota_bytes, users_max];
            transaction.prepare_cached(sql)?.execute(values)?;
        }
        let sql = "INSERT OR IGNORE INTO administrator (domain, account_domain, account_name) VALUES (?1, ?2, ?3)";
        for account in &settings.administrators {
            let at = account.domain().unwrap_or_default().to_ascii_lowercase();
            transaction.prepare_cached(sql)?.execute(params![d, at, account.local().to_ascii_lowercase()])?;
        }
        transaction.commit()?;
        self.changes = self.changes.wrapping_add(1);
        Ok(())
    }

    fn forget_domain(&mut self, domain: &Domain) -> Result<(), Error> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for sql in [
            "DELETE FROM account WHERE domain = ?1",
            "DELETE FROM alias WHERE domain = ?1",
            "DELETE FROM domain WHERE domain = ?1 OR alias_of = ?1",
            "DELETE FROM administrator WHERE domain = ?1 OR account_domain = ?1",
        ] {
            transaction.execute(sql, params![domain.as_bytes()])?;
        }
        transaction.commit()?;
        self.changes = self.changes.wrapping_add(1);
        Ok(())
    }
}

impl Accounts {
    /// Do these settings fit the domain and the others?
    fn check_domain(&self, domain: &Domain, settings: &DomainSettings) -> Result<(), Error> {
        settings.default_quota.check()?;
        Quota { bytes: settings.quota_bytes, messages: settings.users_max }.check()?;
        if settings.administrators.len() > ADMINISTRATORS_MAX {
            return Err(Error::Limit("a domain has at most 50 administrators"));
        }
        for account in settings.administrators.iter().filter(|account| is_whole(account)) {
            let at = Domain::new(account.domain().unwrap_or_default()).map_err(|_| Error::NoUser)?;
            if !self.exists(HAS_USER, &at, &account.local().to_ascii_lowercase())? {
                return Err(Error::NoUser);
            }
        }
        if !settings.administrators.iter().all(is_whole) {
            return Err(Error::NoUser);
        }
        let Some(target) = &settings.alias_of else { return Ok(()) };
        let is_target = |of: &Domain| -> Result<bool, Error> {
            Ok(self.connection.prepare_cached("SELECT 1 FROM domain WHERE alias_of = ?1")?.exists(params![of.as_bytes()])?)
        };
        if target == domain || self.alias_of(target)?.is_some() || is_target(domain)? {
            return Err(Error::Setting("an alias domain stands for a domain that is none itself"));
        }
        let has =
            |sql: &str| -> Result<bool, Error> { Ok(self.connection.prepare_cached(sql)?.exists(params![domain.as_bytes()])?) };
        if has("SELECT 1 FROM account WHERE domain = ?1")? || has("SELECT 1 FROM alias WHERE domain = ?1")? {
            return Err(Error::Setting("the domain has users or aliases; an alias domain has nobody of its own"));
        }
        Ok(())
    }
}

/// All that is set of a domain.
fn domain_settings(connection: &Connection, domain: &Domain) -> Result<DomainSettings, Error> {
    let mut settings = DomainSettings::default();
    let mut statement = connection.prepare_cached(
        "SELECT alias_of, default_quota_bytes, default_quota_messages, quota_bytes, users_max FROM domain WHERE domain = ?1",
    )?;
    let mut rows = statement.query(params![domain.as_bytes()])?;
    // Administrators alone make a row, too.
    let Some(row) = rows.next()? else { return Ok(settings) };
    settings.alias_of = row.get::<_, Option<Vec<u8>>>(0)?.map(|bytes| stored_domain(&bytes)).transpose()?;
    settings.default_quota = quota(row, 1)?;
    settings.quota_bytes = unsigned(row.get(3)?)?;
    settings.users_max = unsigned(row.get(4)?)?;
    let mut statement = connection.prepare_cached(
        "SELECT account_name, account_domain FROM administrator WHERE domain = ?1 ORDER BY account_domain, account_name",
    )?;
    let mut rows = statement.query(params![domain.as_bytes()])?;
    while let Some(row) = rows.next()? {
        let account = Address::join(&row.get::<_, Vec<u8>>(0)?, &row.get::<_, Vec<u8>>(1)?);
        settings.administrators.push(account.map_err(|_| Error::Damaged("an administrator"))?);
    }
    Ok(settings)
}

/// The columns of [`Directory::account`].
fn account(row: &Row<'_>) -> Result<Account, Error> {
    let targets = row.get::<_, Vec<u8>>(4)?;
    let targets = targets.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(address).collect::<Result<_, _>>()?;
    let vacation = match row.get::<_, Option<String>>(8)? {
        None => None,
        Some(text) => Some(Vacation {
            text,
            subject: row.get::<_, Option<String>>(9)?.unwrap_or_default(),
            from_s: unsigned(row.get::<_, Option<i64>>(10)?.unwrap_or_default())?,
            until_s: unsigned(row.get::<_, Option<i64>>(11)?.unwrap_or_default())?,
            days: row.get::<_, Option<u32>>(12)?.unwrap_or(1),
        }),
    };
    Ok(Account {
        quota: quota(row, 0)?,
        suspended: row.get(2)?,
        refuses_mail: row.get(3)?,
        forward: Forward { targets, keeps_copy: row.get(5)? },
        limits: Limits { per_hour: row.get(6)?, per_day: row.get(7)? },
        vacation,
        created_s: unsigned(row.get(13)?)?,
    })
}

/// Bytes in column `at`, messages in the next.
fn quota(row: &Row<'_>, at: usize) -> Result<Quota, Error> {
    Ok(Quota { bytes: unsigned(row.get(at)?)?, messages: unsigned(row.get(at.saturating_add(1))?)? })
}

fn unsigned(number: i64) -> Result<u64, Error> {
    u64::try_from(number).map_err(|_| Error::Damaged("a negative number"))
}

/// What was checked before fits.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Addresses a line each.
fn joined(targets: &[Address]) -> Vec<u8> {
    targets.iter().map(Address::as_bytes).collect::<Vec<_>>().join(&b'\n')
}

fn replace_alias(connection: &Connection, domain: &Domain, name: &[u8], targets: &[Address]) -> Result<(), Error> {
    let mut delete = connection.prepare_cached("DELETE FROM alias WHERE domain = ?1 AND name = ?2")?;
    delete.execute(params![domain.as_bytes(), name])?;
    let mut insert = connection.prepare_cached("INSERT INTO alias (domain, name, position, target) VALUES (?1, ?2, ?3, ?4)")?;
    for (position, target) in (0i64..).zip(targets) {
        insert.execute(params![domain.as_bytes(), name, position, target.as_bytes()])?;
    }
    Ok(())
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

    #[test]
    fn it_is_a_store_of_accounts() {
        crate::conformance::run(&mut || Box::new(Accounts::in_memory().unwrap()));
    }

    #[test]
    fn names_made_of_sql_find_and_change_nothing() {
        crate::conformance::names_made_of_sql(&mut Accounts::in_memory().unwrap());
    }

    #[test]
    fn what_was_done_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accounts.db");
        let (d, joe) = (domain("example.org"), name("joe"));
        let mut accounts = Accounts::open(&path).unwrap();
        accounts.add_user(&d, &joe, "h1", 7).unwrap();
        accounts.set_password(&d, &joe, "h3").unwrap();
        let quota = Quota { bytes: 1000, messages: 5 };
        accounts.change_user(&d, &joe, &UserChange::Quota(quota)).unwrap();
        drop(accounts);
        let accounts = Accounts::open(&path).unwrap();
        let row = UserRow { domain: d.clone(), name: joe.clone(), quota, suspended: false };
        assert_eq!(accounts.users(None, &After::default(), 10).unwrap(), [row]);
        assert_eq!(accounts.credentials(&d, b"joe").unwrap().unwrap().password_hash.as_str(), "h3");
    }

    #[test]
    fn a_renamed_user_keeps_all_that_is_his() {
        use crate::secrets::{AppPassword, Kind, Scope, Secret};
        use crate::{DomainSettings, Secrets as _};
        let mut accounts = Accounts::in_memory().unwrap();
        let (d, e, joe, jim) = (domain("example.org"), domain("example.net"), name("joe"), name("jim"));
        let address = |text: &str| Address::new(text.as_bytes()).unwrap();
        accounts.add_user(&d, &joe, "h", 7).unwrap();
        accounts.add_user(&d, &name("eve"), "h", 7).unwrap();
        let secret = Secret { kind: Kind::Clear, value: b"x".to_vec().into() };
        accounts.set_secrets(&d, &joe, "h", &[secret]).unwrap();
        let app = AppPassword {
            name: "phone".into(),
            scope: Scope::All,
            digest: [1; 32],
            scram: [None, None],
            created_s: 1,
            used_s: 0,
        };
        accounts.add_app_password(&d, &joe, &app).unwrap();
        accounts
            .set_domain(&d, &DomainSettings { administrators: vec![address("joe@example.org")], ..DomainSettings::default() })
            .unwrap();
        accounts.set_alias(&e, Some(&name("both")), &[address("Joe@example.org"), address("x@y")]).unwrap();
        for taken in ["eve", "joe"] {
            assert!(matches!(accounts.rename_user(&d, &joe, &name(taken), false), Err(Error::Exists)), "{taken}");
        }
        assert!(matches!(accounts.rename_user(&e, &joe, &jim, false), Err(Error::NoUser)));
        let before = accounts.generation().unwrap();
        accounts.rename_user(&d, &joe, &jim, true).unwrap();
        assert_ne!(accounts.generation().unwrap(), before);
        assert!(!accounts.has_user(&d, b"joe").unwrap());
        assert_eq!(accounts.account(&d, b"jim").unwrap().unwrap().created_s, 7);
        assert_eq!(accounts.secret(&d, b"jim", Kind::Clear).unwrap().unwrap().as_slice(), b"x");
        assert_eq!(accounts.app_passwords(&d, b"jim").unwrap().len(), 1);
        assert_eq!(accounts.domain(&d).unwrap().administrators, [address("jim@example.org")]);
        assert_eq!(accounts.alias(&e, b"both").unwrap().unwrap(), [address("jim@example.org"), address("x@y")]);
        assert_eq!(accounts.alias(&d, b"joe").unwrap().unwrap(), [address("jim@example.org")]);
        accounts.rename_user(&d, &jim, &name("jon"), false).unwrap();
        assert_eq!(accounts.alias(&d, b"joe").unwrap().unwrap(), [address("jon@example.org")], "it follows");
        assert!(accounts.alias(&d, b"jim").unwrap().is_none());
    }

    #[test]
    fn a_database_of_the_first_version_is_brought_up_with_its_users() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accounts.db");
        let raw = Connection::open(&path).unwrap();
        raw.execute_batch(schema::STEPS[0]).unwrap();
        raw.pragma_update(None, "user_version", 1).unwrap();
        raw.execute("INSERT INTO account VALUES (x'61', x'6a6f65', 'h', 77, 1, 5)", []).unwrap();
        drop(raw);
        let accounts = Accounts::open(&path).unwrap();
        let expected = Account { quota: Quota { bytes: 77, messages: 0 }, suspended: true, created_s: 5, ..Account::default() };
        assert_eq!(accounts.account(&domain("a"), b"joe").unwrap(), Some(expected));
        assert_eq!(accounts.takes_mail(&domain("a"), b"joe").unwrap(), Some(true));
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
        assert!(matches!(error, Error::Newer { found: 99, .. }) && error.is_temporary());
        drop(raw);
        std::fs::write(&path, [b'x'; 8192]).unwrap();
        assert!(Accounts::open(&path).unwrap_err().is_temporary());
    }
}
