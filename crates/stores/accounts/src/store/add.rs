//! Adding users and aliases, many in one transaction: what the domain allows is counted once and then kept up.

use super::{domain_settings, exists, limit_values, replace_alias, vacation_values};
use crate::database::{Columns as _, Database, bytes, flag, int, text};
use crate::settings::{DomainSettings, Entry, NewUser, Quota};
use crate::{Error, UserName};
use accounts_sql::Statement;
use std::collections::HashMap;
use wire::{Address, Domain};

/// A transaction in which entries are added.
pub(super) struct Adding<'a> {
    database: &'a dyn Database,
    domains: HashMap<Domain, Room>,
}

/// What a domain allows and what it has.
struct Room {
    settings: DomainSettings,
    users: u64,
    allotted_bytes: u64,
}

impl<'a> Adding<'a> {
    pub(super) fn new(database: &'a dyn Database) -> Self {
        Self { database, domains: HashMap::new() }
    }

    /// # Errors
    /// Permanent: this entry cannot be; nothing of it was added. Temporary: the transaction must end.
    pub(super) fn entry(&mut self, entry: &Entry) -> Result<(), Error> {
        match entry {
            Entry::User(user) => self.user(user),
            Entry::Alias { domain, name, targets } => self.alias(domain, name.as_ref(), targets),
        }
    }

    fn user(&mut self, user: &NewUser) -> Result<(), Error> {
        let NewUser { domain, name, account, .. } = user;
        account.quota.check()?;
        account.forward.check()?;
        account.vacation.as_ref().map_or(Ok(()), crate::Vacation::check)?;
        self.must_be_free(domain, name.as_bytes())?;
        let room = self.room(domain)?;
        let quota = if user.has_default_quota { room.settings.default_quota } else { account.quota };
        room.check_user(quota)?;
        let mut values = vec![
            bytes(domain.as_bytes()),
            bytes(name.as_bytes()),
            text(&user.password_hash),
            int(quota.bytes),
            int(quota.messages),
            flag(account.suspended),
            flag(account.refuses_mail),
            bytes(&super::joined(&account.forward.targets)),
            flag(account.forward.keeps_copy),
        ];
        values.extend(limit_values(&account.limits));
        values.extend(vacation_values(account.vacation.as_ref()));
        values.push(int(account.created_s));
        self.database.run(Statement::AddUser, &values)?;
        if let Some(room) = self.domains.get_mut(domain) {
            room.users = room.users.saturating_add(1);
            room.allotted_bytes = room.allotted_bytes.saturating_add(quota.bytes);
        }
        Ok(())
    }

    /// An alias that is there already is not touched.
    fn alias(&mut self, domain: &Domain, name: Option<&UserName>, targets: &[Address]) -> Result<(), Error> {
        super::check_targets(domain, name, targets)?;
        let bytes = name.map(UserName::as_bytes).unwrap_or_default();
        self.must_be_free(domain, bytes)?;
        self.room(domain)?.check_own()?;
        replace_alias(self.database, domain, bytes, targets)
    }

    fn must_be_free(&self, domain: &Domain, name: &[u8]) -> Result<(), Error> {
        let has = |statement| exists(self.database, statement, domain, name);
        if has(Statement::HasUser)? || has(Statement::HasAlias)? { Err(Error::Exists) } else { Ok(()) }
    }

    fn room(&mut self, domain: &Domain) -> Result<&mut Room, Error> {
        if !self.domains.contains_key(domain) {
            let room = Room::count(self.database, domain)?;
            self.domains.insert(domain.clone(), room);
        }
        self.domains.get_mut(domain).ok_or(Error::Damaged("a domain"))
    }
}

impl Room {
    /// Counts only what is bounded.
    fn count(database: &dyn Database, domain: &Domain) -> Result<Self, Error> {
        let settings = domain_settings(database, domain)?;
        let (mut users, mut allotted_bytes) = (0, 0);
        if settings.users_max > 0 || settings.quota_bytes > 0 {
            (users, allotted_bytes) = totals(database, domain)?;
        }
        Ok(Self { settings, users, allotted_bytes })
    }

    fn check_own(&self) -> Result<(), Error> {
        match self.settings.alias_of {
            Some(_) => Err(Error::Setting("the domain is an alias of another and has nobody of its own")),
            None => Ok(()),
        }
    }

    fn check_user(&self, quota: Quota) -> Result<(), Error> {
        self.check_own()?;
        if self.settings.users_max > 0 && self.users >= self.settings.users_max {
            return Err(Error::Limit("the domain has all the users it may have"));
        }
        check_allotment(&self.settings, self.allotted_bytes, quota)
    }
}

/// How many users a domain has, and what their quotas come to.
pub(super) fn totals(database: &dyn Database, domain: &Domain) -> Result<(u64, u64), Error> {
    match database.read(Statement::Totals, &[bytes(domain.as_bytes())])?.first() {
        Some(row) => Ok((row.number(0)?, row.number(1)?)),
        None => Err(Error::Damaged("a sum without a row")),
    }
}

/// May a domain whose other users' quotas come to `others_bytes` have a user with this quota?
pub(super) fn check_allotment(settings: &DomainSettings, others_bytes: u64, quota: Quota) -> Result<(), Error> {
    if settings.quota_bytes == 0 {
        return Ok(());
    }
    if quota.bytes == 0 {
        return Err(Error::Limit("the domain has a quota, so each of its users must have one"));
    }
    if others_bytes.saturating_add(quota.bytes) > settings.quota_bytes {
        return Err(Error::Limit("the quotas of the domain's users would come to more than the domain's quota"));
    }
    Ok(())
}
