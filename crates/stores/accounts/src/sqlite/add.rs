//! Adding users and aliases, many in one transaction: what the domain allows is counted once and then kept up.

use super::{HAS_ALIAS, HAS_USER, domain_settings, replace_alias, signed};
use crate::settings::{DomainSettings, Entry, NewUser, Quota};
use crate::{Error, UserName};
use rusqlite::{Connection, params};
use std::collections::HashMap;
use wire::{Address, Domain};

/// A transaction in which entries are added.
pub(super) struct Adding<'a> {
    connection: &'a Connection,
    domains: HashMap<Domain, Room>,
}

/// What a domain allows and what it has.
struct Room {
    settings: DomainSettings,
    users: u64,
    allotted_bytes: u64,
}

impl<'a> Adding<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Self { connection, domains: HashMap::new() }
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
        if self.has(HAS_USER, domain, name.as_bytes())? || self.has(HAS_ALIAS, domain, name.as_bytes())? {
            return Err(Error::Exists);
        }
        let room = self.room(domain)?;
        let quota = if user.has_default_quota { room.settings.default_quota } else { account.quota };
        room.check_user(quota)?;
        let forward = super::joined(&account.forward.targets);
        let vacation = account.vacation.as_ref();
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO account (domain, name, password, quota_bytes, quota_messages, suspended, refuses_mail, forward, keeps_copy,
                hour_max, day_max, vacation_text, vacation_subject, vacation_from_s, vacation_until_s, vacation_days, created_s)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
        )?;
        insert.execute(params![
            domain.as_bytes(),
            name.as_bytes(),
            user.password_hash,
            signed(quota.bytes),
            signed(quota.messages),
            account.suspended,
            account.refuses_mail,
            forward,
            account.forward.keeps_copy,
            account.limits.per_hour,
            account.limits.per_day,
            vacation.map(|vacation| vacation.text.as_str()),
            vacation.map(|vacation| vacation.subject.as_str()),
            vacation.map(|vacation| signed(vacation.from_s)),
            vacation.map(|vacation| signed(vacation.until_s)),
            vacation.map(|vacation| vacation.days),
            signed(account.created_s),
        ])?;
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
        if self.has(HAS_USER, domain, bytes)? || self.has(HAS_ALIAS, domain, bytes)? {
            return Err(Error::Exists);
        }
        self.room(domain)?.check_own()?;
        replace_alias(self.connection, domain, bytes, targets)
    }

    fn has(&self, sql: &str, domain: &Domain, name: &[u8]) -> Result<bool, Error> {
        Ok(self.connection.prepare_cached(sql)?.exists(params![domain.as_bytes(), name])?)
    }

    fn room(&mut self, domain: &Domain) -> Result<&mut Room, Error> {
        if !self.domains.contains_key(domain) {
            let room = Room::count(self.connection, domain)?;
            self.domains.insert(domain.clone(), room);
        }
        self.domains.get_mut(domain).ok_or(Error::Damaged("a domain"))
    }
}

impl Room {
    /// Counts only what is bounded.
    fn count(connection: &Connection, domain: &Domain) -> Result<Self, Error> {
        let settings = domain_settings(connection, domain)?;
        let (mut users, mut allotted_bytes) = (0, 0);
        if settings.users_max > 0 || settings.quota_bytes > 0 {
            (users, allotted_bytes) = totals(connection, domain)?;
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
pub(super) fn totals(connection: &Connection, domain: &Domain) -> Result<(u64, u64), Error> {
    let mut statement =
        connection.prepare_cached("SELECT count(*), coalesce(sum(quota_bytes), 0) FROM account WHERE domain = ?1")?;
    let (users, bytes): (i64, i64) = statement.query_row(params![domain.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok((super::unsigned(users)?, super::unsigned(bytes)?))
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
