//! `qmail domain show|set|admin`: what is set of a domain, which qmail-auth keeps.

use control::Root;
use ipc::admin::{AccountAnswer, AccountRequest, DomainChange, DomainRow, Quota};
use ipc::field::Bytes;
use serde_json::Value;
use wire::{Address, Domain};

use crate::account::parse;
use crate::admin::Admin;
use crate::print::{Printer, text};
use crate::{Failure, cli, value};

/// Leaves everything as it is.
#[must_use]
pub fn no_change() -> DomainChange {
    DomainChange {
        alias_of: None,
        default_quota: None,
        quota_bytes: None,
        users_max: None,
        administrator_add: None,
        administrator_remove: None,
    }
}

/// All domains of which something is set.
///
/// # Errors
/// What qmail-auth says.
pub fn all(admin: &Admin) -> Result<Vec<DomainRow>, Failure> {
    let (mut rows, mut after) = (Vec::<DomainRow>::new(), Bytes::default());
    loop {
        let mut is_last = true;
        for answer in admin.account(&AccountRequest::DomainList { domain: None, after: after.clone() })? {
            let AccountAnswer::Domains { rows: some, last } = answer else { continue };
            rows.extend(some);
            is_last = last;
        }
        match rows.last() {
            Some(row) if !is_last => after = row.domain.as_bytes().into(),
            _ => return Ok(rows),
        }
    }
}

/// The domains that are aliases of this one.
///
/// # Errors
/// What qmail-auth says.
pub fn aliases_of(admin: &Admin, domain: &Domain) -> Result<Vec<Domain>, Failure> {
    Ok(all(admin)?.into_iter().filter(|row| row.alias_of.as_ref() == Some(domain)).map(|row| row.domain).collect())
}

fn row(admin: &Admin, domain: &Domain) -> Result<DomainRow, Failure> {
    let request = AccountRequest::DomainList { domain: Some(domain.clone()), after: Bytes::default() };
    for answer in admin.account(&request)? {
        if let AccountAnswer::Domains { rows, .. } = answer
            && let Some(row) = rows.into_iter().next()
        {
            return Ok(row);
        }
    }
    Err(Failure::temporary("qmail-auth: no word on the domain".to_owned()))
}

pub(crate) fn show(root: &Root, domain: &Domain, printer: Printer) -> Result<(), Failure> {
    let admin = Admin::auth(root)?;
    let row = row(&admin, domain)?;
    let names = |domains: Vec<Domain>| Value::Array(domains.iter().map(|domain| text(domain.as_bytes())).collect());
    let administrators = row.administrators.iter().map(|account| text(account.as_bytes())).collect();
    let bound = |number: u64| if number == 0 { Value::Null } else { number.into() };
    let base = crate::domain::base(root, domain)?;
    printer.object(&[
        ("domain", "domain", text(domain.as_bytes())),
        ("mail", "base", base.display().to_string().into()),
        ("alias of", "alias_of", row.alias_of.as_ref().map_or(Value::Null, |target| text(target.as_bytes()))),
        // Other domains are not an administrator's to see.
        ("alias domains", "aliases", if crate::admin::is_acting_as() { Value::Null } else { names(aliases_of(&admin, domain)?) }),
        ("catch-all", "catch_all", catch_all(&admin, domain)?),
        ("quota of new users", "default_quota", bound(row.default_quota.bytes)),
        ("quotas of all users", "quota", bound(row.quota_bytes)),
        ("most users", "users_max", bound(row.users_max)),
        ("administrators", "administrators", Value::Array(administrators)),
    ])
}

/// The targets of the catch-all: the first alias in order, since its name is empty.
fn catch_all(admin: &Admin, domain: &Domain) -> Result<Value, Failure> {
    for answer in admin.account(&AccountRequest::AliasList { domain: Some(domain.clone()), after: Bytes::default() })? {
        let AccountAnswer::Aliases { rows, .. } = answer else { continue };
        if let Some(row) = rows.iter().find(|row| row.address.local().is_empty()) {
            return Ok(Value::Array(row.targets.iter().map(|target| text(target.as_bytes())).collect()));
        }
    }
    Ok(Value::Null)
}

pub(crate) fn set(root: &Root, domain: &Domain, set: &cli::DomainSet, printer: Printer) -> Result<(), Failure> {
    let default_quota = set.default_quota.as_deref().map(value::size).transpose()?;
    let change = DomainChange {
        default_quota: default_quota.map(|bytes| Quota { bytes, messages: 0 }),
        quota_bytes: set.quota.as_deref().map(value::size).transpose()?,
        users_max: set.users_max.as_deref().map(value::count).transpose()?.map(|count| count.unwrap_or(0).into()),
        ..no_change()
    };
    let catch_all = set.catch_all.as_deref().map(|to| catch_all_request(domain, to)).transpose()?;
    let admin = Admin::auth(root)?;
    if change != no_change() {
        admin.account(&AccountRequest::DomainChange { domain: domain.clone(), change })?;
    }
    if let Some(request) = catch_all {
        let removes = matches!(request, AccountRequest::AliasRemove { .. });
        // `none` where there is none is what was asked for.
        if !removes || self::catch_all(&admin, domain)? != Value::Null {
            admin.account(&request)?;
        }
    }
    printer.done(&format!("{domain} is set"))
}

fn catch_all_request(domain: &Domain, to: &str) -> Result<AccountRequest, Failure> {
    let address = Address::join(b"", domain.as_bytes()).map_err(|error| Failure::usage(error.to_string()))?;
    if to.eq_ignore_ascii_case("none") {
        return Ok(AccountRequest::AliasRemove { address });
    }
    Ok(AccountRequest::AliasAdd { address, targets: vec![parse(to)?] })
}

pub(crate) fn admin(root: &Root, command: &cli::DomainAdmin, printer: Printer) -> Result<(), Failure> {
    let (domain, change, said) = match command {
        cli::DomainAdmin::Add { domain, address } => {
            (domain, DomainChange { administrator_add: Some(parse(address)?), ..no_change() }, "administers")
        }
        cli::DomainAdmin::Remove { domain, address } => {
            (domain, DomainChange { administrator_remove: Some(parse(address)?), ..no_change() }, "does not administer")
        }
        cli::DomainAdmin::List { domain } => {
            let row = row(&Admin::auth(root)?, &crate::domain::known(root, domain)?)?;
            let rows: Vec<_> = row.administrators.iter().map(|account| vec![text(account.as_bytes())]).collect();
            let none = "no administrators; add one with: qmail domain admin add DOMAIN USER@DOMAIN";
            return printer.rows(&[("ADMINISTRATOR", "address")], &rows, none);
        }
    };
    let domain = crate::domain::known(root, domain)?;
    let address = change.administrator_add.clone().or_else(|| change.administrator_remove.clone()).unwrap_or_default();
    Admin::auth(root)?.account(&AccountRequest::DomainChange { domain: domain.clone(), change })?;
    printer.done(&format!("{address} {said} {domain}"))
}
