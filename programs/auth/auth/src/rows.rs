//! The administrator's rows and what the accounts store of them; and what an account says of a delivery.

use crate::admin::{Failure, mistake};
use accounts::{Account, DomainSettings, Forward, Limits, Quota, UserName, Vacation};
use ipc::admin::{AccountRow, DomainChange, DomainRow, Quota as QuotaRow, Vacation as VacationRow};
use ipc::mailbox::Settings;
use wire::{Address, Domain};

/// What a delivery must know. Forwards and the reply are those of the mailbox itself, not of a `user-ext`, and not of a suspended account:
/// whoever took it over must not go on reading along.
pub(crate) fn delivery_settings(domain: &Domain, user: &UserName, account: Account, is_bare: bool, over: OverQuota) -> Settings {
    let Account { quota, forward, vacation, suspended, .. } = account;
    let bounded = quota != Quota::default();
    let mut settings = Settings { quota_bytes: quota.bytes, quota_messages: quota.messages, ..Settings::default() };
    if bounded {
        let OverQuota { defers, warns_at, warning } = over;
        (settings.defers, settings.warns_at, settings.warning) = (defers, warns_at, warning.into());
    }
    if is_bare && !suspended {
        settings.keeps_copy = forward.keeps_copy && !forward.targets.is_empty();
        settings.forward = forward.targets;
        let address = Address::join(user.as_bytes(), domain.as_bytes()).ok();
        settings.vacation = vacation.zip(address).map(|(vacation, address)| ipc::mailbox::Vacation {
            address,
            others: Vec::new(),
            subject: vacation.subject.as_str().into(),
            text: vacation.text.as_str().into(),
            from_s: vacation.from_s,
            until_s: vacation.until_s,
            days: vacation.days,
        });
    }
    settings
}

/// What the host has for mailboxes with a quota.
pub(crate) struct OverQuota {
    pub(crate) defers: bool,
    pub(crate) warns_at: u32,
    pub(crate) warning: Vec<u8>,
}

pub(crate) fn account_row(address: Address, hash: Option<&str>, account: Account) -> AccountRow {
    AccountRow {
        address,
        hash: hash.map(Into::into),
        quota: Some(quota_row(account.quota)),
        suspended: account.suspended,
        refuses_mail: account.refuses_mail,
        forward: account.forward.targets,
        keeps_copy: account.forward.keeps_copy,
        vacation: account.vacation.map(vacation_row),
        per_hour: account.limits.per_hour,
        per_day: account.limits.per_day,
        created_s: account.created_s,
    }
}

/// The account of a row; without a quota of its own, the domain's default is to be used.
pub(crate) fn account(row: &AccountRow, now_s: u64) -> Result<Account, Failure> {
    Ok(Account {
        quota: row.quota.as_ref().map(quota).unwrap_or_default(),
        suspended: row.suspended,
        refuses_mail: row.refuses_mail,
        forward: Forward { targets: row.forward.clone(), keeps_copy: row.keeps_copy },
        vacation: row.vacation.clone().map(vacation).transpose()?,
        limits: Limits { per_hour: row.per_hour, per_day: row.per_day },
        created_s: if row.created_s == 0 { now_s } else { row.created_s },
    })
}

pub(crate) fn vacation(row: VacationRow) -> Result<Vacation, Failure> {
    let text = |bytes: ipc::field::Bytes| {
        String::from_utf8(bytes.0).map_err(|_| mistake("subject and text of a reply are written in UTF-8".to_owned()))
    };
    let VacationRow { subject, text: body, from_s, until_s, days } = row;
    Ok(Vacation { subject: text(subject)?, text: text(body)?, from_s, until_s, days })
}

fn vacation_row(vacation: Vacation) -> VacationRow {
    let Vacation { subject, text, from_s, until_s, days } = vacation;
    VacationRow { subject: subject.as_str().into(), text: text.as_str().into(), from_s, until_s, days }
}

pub(crate) fn quota(row: &QuotaRow) -> Quota {
    Quota { bytes: row.bytes, messages: row.messages }
}

fn quota_row(quota: Quota) -> QuotaRow {
    QuotaRow { bytes: quota.bytes, messages: quota.messages }
}

pub(crate) fn domain_row(domain: Domain, settings: DomainSettings) -> DomainRow {
    DomainRow {
        domain,
        alias_of: settings.alias_of,
        default_quota: quota_row(settings.default_quota),
        quota_bytes: settings.quota_bytes,
        users_max: settings.users_max,
        administrators: settings.administrators,
    }
}

/// The settings with the change in them.
pub(crate) fn changed(mut settings: DomainSettings, change: DomainChange) -> Result<DomainSettings, Failure> {
    let DomainChange { alias_of, default_quota, quota_bytes, users_max, administrator_add, administrator_remove } = change;
    settings.alias_of = alias_of.or(settings.alias_of);
    settings.default_quota = default_quota.as_ref().map_or(settings.default_quota, quota);
    settings.quota_bytes = quota_bytes.unwrap_or(settings.quota_bytes);
    settings.users_max = users_max.unwrap_or(settings.users_max);
    let is = |one: &Address, other: &Address| one.as_bytes().eq_ignore_ascii_case(other.as_bytes());
    if let Some(account) = administrator_add {
        if settings.administrators.iter().any(|there| is(there, &account)) {
            return Err(mistake(format!("{account} administers the domain already")));
        }
        settings.administrators.push(account);
    }
    if let Some(account) = administrator_remove {
        let before = settings.administrators.len();
        settings.administrators.retain(|there| !is(there, &account));
        if settings.administrators.len() == before {
            return Err(mistake(format!("{account} does not administer the domain")));
        }
    }
    Ok(settings)
}
