//! The store of accounts over a [`Database`]: what each question and each change comes to in statements, the same for SQLite and PostgreSQL.

mod add;
mod secrets;

use crate::database::{Columns as _, Database, Transaction, bytes, count, flag, generation, int, lock, or_null, text};
use crate::directory::{After, AliasRow, Credentials, Directory, Generation, UserRow};
use crate::remote::Remote;
use crate::settings::{
    ADMINISTRATORS_MAX, Account, DomainSettings, Entry, Forward, Limits, Quota, TARGETS_MAX, UserChange, Vacation, is_whole,
};
use crate::sqlite::Sqlite;
use crate::{Error, UserName};
use accounts_sql::Statement;
use add::Adding;
use ipc::accounts::Value;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use wire::{Address, Domain};

/// The accounts.
pub struct Accounts {
    database: Box<dyn Database + Send>,
    /// The same, if it is elsewhere.
    remote: Option<Arc<Mutex<Remote>>>,
    /// Own changes.
    changes: u64,
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accounts").field("changes", &self.changes).finish_non_exhaustive()
    }
}

impl Accounts {
    /// Those in a SQLite file, which is created if need be; its directory must exist.
    ///
    /// # Errors
    /// Temporary: out of reach, damaged, or of a newer version.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self::over(Sqlite::open(path)?))
    }

    /// Accounts that are gone with the value; for tests.
    ///
    /// # Errors
    /// Out of memory.
    pub fn in_memory() -> Result<Self, Error> {
        Ok(Self::over(Sqlite::in_memory()?))
    }

    /// Those in a database.
    #[must_use]
    pub fn over(database: impl Database + Send + 'static) -> Self {
        Self { database: Box::new(database), remote: None, changes: 0 }
    }

    /// Those in a database elsewhere.
    #[must_use]
    pub fn elsewhere(remote: Remote) -> Self {
        let remote = Arc::new(Mutex::new(remote));
        Self { remote: Some(Arc::clone(&remote)), ..Self::over(remote) }
    }

    /// The database, if it is elsewhere. While this is held nothing else may be asked here.
    #[must_use]
    pub fn remote(&self) -> Option<MutexGuard<'_, Remote>> {
        self.remote.as_ref().map(|remote| lock(remote))
    }

    fn read(&self, statement: Statement, values: &[Value]) -> Result<Vec<Vec<Value>>, Error> {
        self.database.read(statement, values)
    }

    fn begin(&self) -> Result<Transaction<'_>, Error> {
        Transaction::begin(&*self.database)
    }

    fn changed(&mut self) {
        self.changes = self.changes.wrapping_add(1);
    }

    /// Runs one statement that changes rows; `none` is the error when it changed none.
    fn change(&mut self, statement: Statement, values: &[Value], none: Error) -> Result<(), Error> {
        let transaction = self.begin()?;
        let changed = transaction.run(statement, values)?;
        transaction.commit()?;
        self.changed();
        if changed == 0 { Err(none) } else { Ok(()) }
    }

    fn exists(&self, statement: Statement, domain: &Domain, name: &[u8]) -> Result<bool, Error> {
        exists(&*self.database, statement, domain, name)
    }
}

impl Directory for Accounts {
    fn takes_mail(&self, domain: &Domain, name: &[u8]) -> Result<Option<bool>, Error> {
        let rows = self.read(Statement::TakesMail, &key(domain, name))?;
        rows.first().map(|row| Ok(!row.flag(0)?)).transpose()
    }

    fn alias(&self, domain: &Domain, name: &[u8]) -> Result<Option<Vec<Address>>, Error> {
        let rows = self.read(Statement::Alias, &[bytes(domain.as_bytes()), bytes(name), count(TARGETS_MAX)])?;
        let targets = rows.iter().map(|row| address(row.bytes(0)?)).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(targets).filter(|targets| !targets.is_empty()))
    }

    fn credentials(&self, domain: &Domain, name: &[u8]) -> Result<Option<Credentials>, Error> {
        let rows = self.read(Statement::Credentials, &key(domain, name))?;
        let credentials =
            |row: &Vec<Value>| Ok(Credentials { password_hash: row.text(0)?.to_owned().into(), suspended: row.flag(1)? });
        rows.first().map(credentials).transpose()
    }

    fn account(&self, domain: &Domain, name: &[u8]) -> Result<Option<Account>, Error> {
        self.read(Statement::Account, &key(domain, name))?.first().map(|row| account(row)).transpose()
    }

    fn alias_of(&self, domain: &Domain) -> Result<Option<Domain>, Error> {
        match self.read(Statement::AliasOf, &[bytes(domain.as_bytes())])?.first() {
            Some(row) => maybe_domain(row, 0),
            None => Ok(None),
        }
    }

    fn domain(&self, domain: &Domain) -> Result<DomainSettings, Error> {
        domain_settings(&*self.database, domain)
    }

    fn domains(&self, after: &[u8], count_max: usize) -> Result<Vec<Domain>, Error> {
        let rows = self.read(Statement::Domains, &[bytes(after), count(count_max)])?;
        rows.iter().map(|row| stored_domain(row.bytes(0)?)).collect()
    }

    fn users(&self, domain: Option<&Domain>, after: &After, count_max: usize) -> Result<Vec<UserRow>, Error> {
        let user = |row: &Vec<Value>| {
            Ok(UserRow {
                domain: stored_domain(row.bytes(0)?)?,
                name: UserName::new(row.bytes(1)?).ok_or(Error::Damaged("a user's name"))?,
                quota: quota(row, 2)?,
                suspended: row.flag(4)?,
            })
        };
        self.listed([Statement::Users, Statement::UsersOf], domain, after, count_max)?.iter().map(user).collect()
    }

    fn aliases(&self, domain: Option<&Domain>, after: &After, count_max: usize) -> Result<Vec<AliasRow>, Error> {
        // Position 0 stands for the alias; its targets are read one by one, so that no alias is cut in the middle.
        let mut out = Vec::new();
        for row in self.listed([Statement::Aliases, Statement::AliasesOf], domain, after, count_max)? {
            let (domain, name) = (stored_domain(row.bytes(0)?)?, row.bytes(1)?.to_vec());
            let targets = self.alias(&domain, &name)?.unwrap_or_default();
            out.push(AliasRow { domain, name, targets });
        }
        Ok(out)
    }

    fn aliases_to(&self, target: &Address, count_max: usize) -> Result<Vec<Address>, Error> {
        // By the index on targets. The one target is the only one: position 0, and none behind it.
        let rows = self.read(Statement::AliasesTo, &[bytes(target.as_bytes()), count(count_max)])?;
        let alias = |row: &Vec<Value>| Address::join(row.bytes(0)?, row.bytes(1)?).map_err(|_| Error::Damaged("an alias"));
        rows.iter().map(alias).collect()
    }

    fn generation(&self) -> Result<Generation, Error> {
        generation(&*self.database, self.changes)
    }

    fn add(&mut self, entries: &[Entry]) -> Result<Vec<Result<(), Error>>, Error> {
        let transaction = self.begin()?;
        let mut results = Vec::with_capacity(entries.len());
        let mut adding = Adding::new(&*self.database);
        for entry in entries {
            match adding.entry(entry) {
                Err(error) if error.is_temporary() => return Err(error),
                result => results.push(result),
            }
        }
        transaction.commit()?;
        self.changed();
        Ok(results)
    }

    fn remove_user(&mut self, domain: &Domain, name: &UserName) -> Result<(), Error> {
        let key = key(domain, name.as_bytes());
        let transaction = self.begin()?;
        let removed = transaction.run(Statement::RemoveUser, &key)?;
        transaction.run(Statement::DismissAdministrator, &key)?;
        transaction.commit()?;
        self.changed();
        if removed == 0 { Err(Error::NoUser) } else { Ok(()) }
    }

    fn rename_user(&mut self, domain: &Domain, name: &UserName, to: &UserName, keeps_alias: bool) -> Result<(), Error> {
        let address = |name: &UserName| {
            Address::join(name.as_bytes(), domain.as_bytes()).map_err(|_| Error::Setting("the address would be too long"))
        };
        let (old, new) = (address(name)?, address(to)?);
        let transaction = self.begin()?;
        if self.exists(Statement::HasUser, domain, to.as_bytes())? || self.exists(Statement::HasAlias, domain, to.as_bytes())? {
            return Err(Error::Exists);
        }
        let [d, n] = key(domain, name.as_bytes());
        let values = [d, n, bytes(to.as_bytes())];
        if transaction.run(Statement::RenameUser, &values)? == 0 {
            return Err(Error::NoUser);
        }
        for statement in [Statement::RenameSecrets, Statement::RenameAppPasswords, Statement::RenameAdministrator] {
            transaction.run(statement, &values)?;
        }
        transaction.run(Statement::Retarget, &[bytes(old.as_bytes()), bytes(new.as_bytes())])?;
        if keeps_alias {
            replace_alias(&*self.database, domain, name.as_bytes(), &[new])?;
        }
        transaction.commit()?;
        self.changed();
        Ok(())
    }

    fn set_password(&mut self, domain: &Domain, name: &UserName, password_hash: &str) -> Result<(), Error> {
        let values = [bytes(domain.as_bytes()), bytes(name.as_bytes()), text(password_hash)];
        self.change(Statement::SetPassword, &values, Error::NoUser)
    }

    fn change_user(&mut self, domain: &Domain, name: &UserName, change: &UserChange) -> Result<(), Error> {
        change.check()?;
        let mut values = key(domain, name.as_bytes()).to_vec();
        let statement = match change {
            UserChange::Quota(quota) => return self.change_quota(domain, name, *quota),
            UserChange::Suspension { suspended, refuses_mail } => {
                values.extend([flag(*suspended), flag(*refuses_mail)]);
                Statement::SetSuspension
            }
            UserChange::Forward(Forward { targets, keeps_copy }) => {
                values.extend([bytes(&joined(targets)), flag(*keeps_copy)]);
                Statement::SetForward
            }
            UserChange::Vacation(vacation) => {
                values.extend(vacation_values(vacation.as_ref()));
                Statement::SetVacation
            }
            UserChange::Limits(limits) => {
                values.extend(limit_values(limits));
                Statement::SetLimits
            }
        };
        self.change(statement, &values, Error::NoUser)
    }

    fn set_alias(&mut self, domain: &Domain, name: Option<&UserName>, targets: &[Address]) -> Result<(), Error> {
        let bytes = name.map(UserName::as_bytes).unwrap_or_default();
        check_targets(domain, name, targets)?;
        let transaction = self.begin()?;
        if self.exists(Statement::HasUser, domain, bytes)? {
            return Err(Error::Exists);
        }
        if self.alias_of(domain)?.is_some() {
            return Err(Error::Setting("the domain is an alias of another and has nobody of its own"));
        }
        replace_alias(&*self.database, domain, bytes, targets)?;
        transaction.commit()?;
        self.changed();
        Ok(())
    }

    fn remove_alias(&mut self, domain: &Domain, name: Option<&UserName>) -> Result<(), Error> {
        let name = name.map(UserName::as_bytes).unwrap_or_default();
        self.change(Statement::RemoveAlias, &key(domain, name), Error::NoAlias)
    }

    fn set_domain(&mut self, domain: &Domain, settings: &DomainSettings) -> Result<(), Error> {
        let transaction = self.begin()?;
        self.check_domain(domain, settings)?;
        let d = bytes(domain.as_bytes());
        transaction.run(Statement::RemoveDomain, std::slice::from_ref(&d))?;
        transaction.run(Statement::RemoveAdministrators, std::slice::from_ref(&d))?;
        if !settings.is_default() {
            let alias_of = or_null(settings.alias_of.as_ref().map(|of| bytes(of.as_bytes())));
            let Quota { bytes, messages } = settings.default_quota;
            let values = [d.clone(), alias_of, int(bytes), int(messages), int(settings.quota_bytes), int(settings.users_max)];
            transaction.run(Statement::AddDomain, &values)?;
        }
        for account in &settings.administrators {
            let at = account.domain().unwrap_or_default().to_ascii_lowercase();
            let values = [d.clone(), bytes(&at), bytes(&account.local().to_ascii_lowercase())];
            transaction.run(Statement::AddAdministrator, &values)?;
        }
        transaction.commit()?;
        self.changed();
        Ok(())
    }

    fn forget_domain(&mut self, domain: &Domain) -> Result<(), Error> {
        let transaction = self.begin()?;
        for statement in
            [Statement::ForgetUsers, Statement::ForgetAliases, Statement::ForgetDomain, Statement::ForgetAdministrators]
        {
            transaction.run(statement, &[bytes(domain.as_bytes())])?;
        }
        transaction.commit()?;
        self.changed();
        Ok(())
    }
}

impl Accounts {
    /// A page of a list: the first statement for all domains, the second for one.
    fn listed(
        &self,
        [all, of]: [Statement; 2],
        domain: Option<&Domain>,
        after: &After,
        count_max: usize,
    ) -> Result<Vec<Vec<Value>>, Error> {
        let from = start(domain, after);
        let mut values = vec![bytes(&from.domain), bytes(&from.name), count(count_max)];
        let Some(domain) = domain else { return self.read(all, &values) };
        values.push(bytes(domain.as_bytes()));
        self.read(of, &values)
    }

    fn change_quota(&mut self, domain: &Domain, name: &UserName, quota: Quota) -> Result<(), Error> {
        let transaction = self.begin()?;
        let settings = self.domain(domain)?;
        if settings.quota_bytes > 0 {
            let own = self.account(domain, name.as_bytes())?.ok_or(Error::NoUser)?.quota.bytes;
            let (_, allotted_bytes) = add::totals(&*self.database, domain)?;
            add::check_allotment(&settings, allotted_bytes.saturating_sub(own), quota)?;
        }
        let [d, n] = key(domain, name.as_bytes());
        let changed = transaction.run(Statement::SetQuota, &[d, n, int(quota.bytes), int(quota.messages)])?;
        transaction.commit()?;
        self.changed();
        if changed == 0 { Err(Error::NoUser) } else { Ok(()) }
    }

    /// Do these settings fit the domain and the others?
    fn check_domain(&self, domain: &Domain, settings: &DomainSettings) -> Result<(), Error> {
        settings.default_quota.check()?;
        Quota { bytes: settings.quota_bytes, messages: settings.users_max }.check()?;
        if settings.administrators.len() > ADMINISTRATORS_MAX {
            return Err(Error::Limit("a domain has at most 50 administrators"));
        }
        for account in settings.administrators.iter().filter(|account| is_whole(account)) {
            let at = Domain::new(account.domain().unwrap_or_default()).map_err(|_| Error::NoUser)?;
            if !self.exists(Statement::HasUser, &at, &account.local().to_ascii_lowercase())? {
                return Err(Error::NoUser);
            }
        }
        if !settings.administrators.iter().all(is_whole) {
            return Err(Error::NoUser);
        }
        let Some(target) = &settings.alias_of else { return Ok(()) };
        let has = |statement| -> Result<bool, Error> { Ok(!self.read(statement, &[bytes(domain.as_bytes())])?.is_empty()) };
        if target == domain || self.alias_of(target)?.is_some() || has(Statement::IsAliased)? {
            return Err(Error::Setting("an alias domain stands for a domain that is none itself"));
        }
        if has(Statement::HasUsers)? || has(Statement::HasAliases)? {
            return Err(Error::Setting("the domain has users or aliases; an alias domain has nobody of its own"));
        }
        Ok(())
    }
}

fn key(domain: &Domain, name: &[u8]) -> [Value; 2] {
    [bytes(domain.as_bytes()), bytes(name)]
}

fn exists(database: &dyn Database, statement: Statement, domain: &Domain, name: &[u8]) -> Result<bool, Error> {
    Ok(!database.read(statement, &key(domain, name))?.is_empty())
}

/// All that is set of a domain.
fn domain_settings(database: &dyn Database, domain: &Domain) -> Result<DomainSettings, Error> {
    let mut settings = DomainSettings::default();
    let key = [bytes(domain.as_bytes())];
    let rows = database.read(Statement::Domain, &key)?;
    // Administrators alone make a row, too.
    let Some(row) = rows.first() else { return Ok(settings) };
    settings.alias_of = maybe_domain(row, 0)?;
    settings.default_quota = quota(row, 1)?;
    settings.quota_bytes = row.number(3)?;
    settings.users_max = row.number(4)?;
    for row in database.read(Statement::Administrators, &key)? {
        let account = Address::join(row.bytes(0)?, row.bytes(1)?);
        settings.administrators.push(account.map_err(|_| Error::Damaged("an administrator"))?);
    }
    Ok(settings)
}

/// The columns of [`Statement::Account`].
fn account(row: &[Value]) -> Result<Account, Error> {
    let targets = row.bytes(4)?.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let targets = targets.map(address).collect::<Result<_, _>>()?;
    let vacation = match row.maybe_text(8)? {
        None => None,
        Some(text) => Some(Vacation {
            text: text.to_owned(),
            subject: row.maybe_text(9)?.unwrap_or_default().to_owned(),
            from_s: row.maybe_number(10)?.unwrap_or_default(),
            until_s: row.maybe_number(11)?.unwrap_or_default(),
            days: row.maybe_u32(12)?.unwrap_or(1),
        }),
    };
    Ok(Account {
        quota: quota(row, 0)?,
        suspended: row.flag(2)?,
        refuses_mail: row.flag(3)?,
        forward: Forward { targets, keeps_copy: row.flag(5)? },
        limits: Limits { per_hour: row.maybe_u32(6)?, per_day: row.maybe_u32(7)? },
        vacation,
        created_s: row.number(13)?,
    })
}

/// Text, subject, beginning, end, days.
fn vacation_values(vacation: Option<&Vacation>) -> [Value; 5] {
    [
        or_null(vacation.map(|vacation| text(&vacation.text))),
        or_null(vacation.map(|vacation| text(&vacation.subject))),
        or_null(vacation.map(|vacation| int(vacation.from_s))),
        or_null(vacation.map(|vacation| int(vacation.until_s))),
        or_null(vacation.map(|vacation| int(vacation.days.into()))),
    ]
}

fn limit_values(Limits { per_hour, per_day }: &Limits) -> [Value; 2] {
    [per_hour, per_day].map(|limit| or_null(limit.map(|limit| int(limit.into()))))
}

/// Bytes in column `at`, messages in the next.
fn quota(row: &[Value], at: usize) -> Result<Quota, Error> {
    Ok(Quota { bytes: row.number(at)?, messages: row.number(at.saturating_add(1))? })
}

/// Addresses a line each.
fn joined(targets: &[Address]) -> Vec<u8> {
    targets.iter().map(Address::as_bytes).collect::<Vec<_>>().join(&b'\n')
}

/// In a transaction.
fn replace_alias(database: &dyn Database, domain: &Domain, name: &[u8], targets: &[Address]) -> Result<(), Error> {
    let [d, n] = key(domain, name);
    database.run(Statement::RemoveAlias, &[d.clone(), n.clone()])?;
    for (position, target) in targets.iter().enumerate() {
        database.run(Statement::AddTarget, &[d.clone(), n.clone(), count(position), bytes(target.as_bytes())])?;
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

fn address(bytes: &[u8]) -> Result<Address, Error> {
    Address::new(bytes).map_err(|_| Error::Damaged("an alias's target"))
}

fn stored_domain(bytes: &[u8]) -> Result<Domain, Error> {
    Domain::new(bytes).map_err(|_| Error::Damaged("a domain"))
}

fn maybe_domain(row: &[Value], at: usize) -> Result<Option<Domain>, Error> {
    match row.value(at)? {
        Value::Null => Ok(None),
        _ => stored_domain(row.bytes(at)?).map(Some),
    }
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
    use accounts_sql::schema;
    use rusqlite::Connection;

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
    fn a_database_of_the_first_version_is_brought_up_with_its_users() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accounts.db");
        let raw = Connection::open(&path).unwrap();
        raw.execute_batch(schema::SQLITE[0]).unwrap();
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
