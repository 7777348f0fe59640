//! `qmail user` and `qmail alias`: everything is said to qmail-auth, which alone opens the accounts.

use std::io::{self, BufRead as _, Read as _};

use control::Root;
use ipc::admin::{AccountAnswer, AccountRequest, AccountRow, Vacation};
use ipc::field::Bytes;
use serde_json::{Value, json};
use wire::Address;

use crate::admin::Admin;
use crate::print::{Printer, text};
use crate::{Failure, app_password, cli, domain, value};

/// Longest password line that is read.
const PASSWORD_LEN_MAX: u64 = 1024;
/// Longest text of a reply; qmail-auth has the last word.
const TEXT_LEN_MAX: u64 = 4096;

/// Runs `qmail user`.
///
/// # Errors
/// What qmail-auth says.
pub fn user(root: &Root, command: &cli::User, printer: Printer) -> Result<(), Failure> {
    let (request, said) = match command {
        cli::User::AppPassword(command) => return app_password::app_password(root, command, printer),
        cli::User::Add { address, password: how, clear } => {
            let (user, line) = (parse(address)?, password(&mut io::stdin().lock())?);
            let request = match (how.password_hash_stdin, clear.keep_clear) {
                (true, _) => AccountRequest::UserAddHash { address: user, hash: line },
                (false, true) => AccountRequest::UserKeepClear { address: user, password: line, add: true },
                (false, false) => AccountRequest::UserAdd { address: user, password: line },
            };
            (request, format!("{address} has a mailbox now"))
        }
        cli::User::Passwd { address, clear, .. } => {
            let (user, password) = (parse(address)?, password(&mut io::stdin().lock())?);
            let request = match clear.keep_clear {
                true => AccountRequest::UserKeepClear { address: user, password, add: false },
                false => AccountRequest::UserPassword { address: user, password },
            };
            (request, format!("{address} has a new password"))
        }
        cli::User::Remove { address } => {
            (AccountRequest::UserRemove { address: parse(address)? }, format!("{address} is gone; the mail stays on the disk"))
        }
        cli::User::Rename { address, to, keep_alias } => renamed(address, to, *keep_alias)?,
        cli::User::Quota { address, size, messages } => quota(address, size, messages)?,
        cli::User::Suspend { address, refuse_mail } => {
            let request = AccountRequest::UserSuspend { address: parse(address)?, suspended: true, refuses_mail: *refuse_mail };
            let mail = if *refuse_mail { "and the mail is refused" } else { "mail goes on arriving" };
            (request, format!("{address} cannot log in any more; {mail}"))
        }
        cli::User::Resume { address } => {
            let request = AccountRequest::UserSuspend { address: parse(address)?, suspended: false, refuses_mail: false };
            (request, format!("{address} can log in again"))
        }
        cli::User::Forward { address, targets, keep_copy, off: _ } => forwarded(address, targets, *keep_copy)?,
        cli::User::Vacation { address, off: true, .. } => {
            let request = AccountRequest::UserVacation { address: parse(address)?, vacation: None };
            (request, format!("{address} does not reply any more"))
        }
        cli::User::Vacation { address, subject, from, until, days, .. } => {
            let day = |text: &Option<String>| text.as_deref().map(value::day).transpose().map(Option::unwrap_or_default);
            let (from_s, until_s) = (day(from)?, day(until)?);
            let text = whole_text(&mut io::stdin().lock())?;
            let vacation = Vacation { subject: subject.as_str().into(), text, from_s, until_s, days: *days };
            (AccountRequest::UserVacation { address: parse(address)?, vacation: Some(vacation) }, format!("{address} replies"))
        }
        cli::User::Limits { address, per_hour, per_day } => {
            limit(root, address, per_hour.as_deref(), per_day.as_deref())?;
            return printer.done(&format!("{address} is limited"));
        }
        cli::User::Show { address } => return show(root, &parse(address)?, printer),
        cli::User::List { domain } => return list_users(root, domain.as_deref(), printer),
    };
    Admin::auth(root)?.account(&request)?;
    printer.done(&said)
}

/// What qmail-auth is asked, and what is said when it is done.
type Asked = (AccountRequest, String);

fn renamed(address: &str, to: &str, keeps_alias: bool) -> Result<Asked, Failure> {
    let (from, new) = (parse(address)?, parse(to)?);
    let [of_from, of_new] = [from.domain(), new.domain()].map(|domain| domain.unwrap_or_default().to_ascii_lowercase());
    if of_from != of_new {
        let text = "a user is renamed within the domain; for another domain add one and move the mail";
        return Err(Failure::usage(text.to_owned()));
    }
    let request = AccountRequest::UserRename { address: from, to: new.local().into(), keeps_alias };
    let alias = if keeps_alias { ", and gets mail for the old name, too" } else { "" };
    Ok((request, format!("{address} is {to} now{alias}")))
}

fn quota(address: &str, size: &str, messages: &str) -> Result<Asked, Failure> {
    let (bytes, messages) = (value::size(size)?, value::count(messages)?.unwrap_or(0).into());
    let part = |number: u64, what: &str| (number > 0).then(|| format!("{number} {what}"));
    let parts: Vec<_> = [part(bytes, "bytes"), part(messages, "messages")].into_iter().flatten().collect();
    let said = if parts.is_empty() { "no limit".to_owned() } else { parts.join(", ") };
    Ok((AccountRequest::UserQuota { address: parse(address)?, bytes, messages }, format!("{address}: {said}")))
}

fn forwarded(address: &str, targets: &[String], keeps_copy: bool) -> Result<Asked, Failure> {
    let to = targets.iter().map(|target| parse(target)).collect::<Result<_, _>>()?;
    let request = AccountRequest::UserForward { address: parse(address)?, targets: to, keeps_copy };
    let mailbox = if keeps_copy { " and into the mailbox" } else { "" };
    let said = if targets.is_empty() { "into the mailbox".to_owned() } else { format!("{}{mailbox}", targets.join(", ")) };
    Ok((request, format!("mail for {address} goes to {said}")))
}

/// Limits that are not named stay as they are.
fn limit(root: &Root, address: &str, per_hour: Option<&str>, per_day: Option<&str>) -> Result<(), Failure> {
    let admin = Admin::auth(root)?;
    let row = account_row(&admin, &parse(address)?)?;
    let limit = |text: Option<&str>, now| text.map_or(Ok(now), value::count);
    let (per_hour, per_day) = (limit(per_hour, row.per_hour)?, limit(per_day, row.per_day)?);
    admin.account(&AccountRequest::UserLimits { address: row.address, per_hour, per_day }).map(drop)
}

/// Runs `qmail alias`.
///
/// # Errors
/// What qmail-auth says.
pub fn alias(root: &Root, command: &cli::Alias, printer: Printer) -> Result<(), Failure> {
    let (request, said) = match command {
        cli::Alias::Add { address, targets } => {
            let to = targets.iter().map(|target| parse(target)).collect::<Result<_, _>>()?;
            let request = AccountRequest::AliasAdd { address: parse(address)?, targets: to };
            (request, format!("mail for {address} goes to {}", targets.join(", ")))
        }
        cli::Alias::Remove { address } => {
            (AccountRequest::AliasRemove { address: parse(address)? }, format!("{address} is gone"))
        }
        cli::Alias::List { domain } => return list_aliases(root, domain.as_deref(), printer),
    };
    Admin::auth(root)?.account(&request)?;
    printer.done(&said)
}

fn account_row(admin: &Admin, address: &Address) -> Result<AccountRow, Failure> {
    let answers = admin.account(&AccountRequest::UserShow { address: address.clone() })?;
    let rows = answers.into_iter().filter_map(|answer| match answer {
        AccountAnswer::Accounts { rows, .. } => Some(rows),
        _ => None,
    });
    rows.flatten().next().ok_or_else(|| Failure::temporary("qmail-auth: no word on the user".to_owned()))
}

fn show(root: &Root, address: &Address, printer: Printer) -> Result<(), Failure> {
    let admin = Admin::auth(root)?;
    let row = account_row(&admin, address)?;
    let (mut used, mut used_messages) = (Value::Null, Value::Null);
    // Of a system that is down, or of a mailbox that cannot be counted, it is not known.
    for answer in admin.account(&AccountRequest::UserUsage { address: row.address.clone() })? {
        if let AccountAnswer::Usage { bytes, messages } = answer {
            (used, used_messages) = (bytes.map_or(Value::Null, Value::from), messages.map_or(Value::Null, Value::from));
        }
    }
    let mut all = properties(&row);
    let at = all.iter().position(|(_, key, _)| *key == "suspended").unwrap_or(all.len());
    all.splice(at..at, [("used", "quota_used", used), ("messages used", "quota_messages_used", used_messages)]);
    printer.object(&all)
}

/// All that is set of a user, in the order it is shown.
pub(crate) fn properties(row: &AccountRow) -> Vec<(&'static str, &'static str, Value)> {
    let bound = |number: Option<u64>| number.filter(|number| *number > 0).map_or(Value::Null, Value::from);
    let limit = |number: Option<u32>| number.map_or(Value::Null, Value::from);
    let vacation = row.vacation.as_ref().map_or(Value::Null, |vacation| {
        let time = |unix_s: u64| if unix_s == 0 { Value::Null } else { unix_s.into() };
        json!({
            "subject": text(&vacation.subject),
            "text": text(&vacation.text),
            "from_s": time(vacation.from_s),
            "until_s": time(vacation.until_s),
            "days": vacation.days,
        })
    });
    vec![
        ("user", "address", text(row.address.as_bytes())),
        ("quota", "quota", bound(row.quota.as_ref().map(|quota| quota.bytes))),
        ("most messages", "quota_messages", bound(row.quota.as_ref().map(|quota| quota.messages))),
        ("suspended", "suspended", row.suspended.into()),
        ("mail refused", "refuses_mail", row.refuses_mail.into()),
        ("forwarded to", "forward", row.forward.iter().map(|target| text(target.as_bytes())).collect()),
        ("and into the mailbox", "keeps_copy", row.keeps_copy.into()),
        ("vacation reply", "vacation", vacation),
        ("messages in an hour", "per_hour", limit(row.per_hour)),
        ("messages in a day", "per_day", limit(row.per_day)),
        ("since", "created_s", row.created_s.into()),
    ]
}

fn list_users(root: &Root, of: Option<&str>, printer: Printer) -> Result<(), Failure> {
    let request =
        AccountRequest::UserList { domain: of.map(|domain| domain::known(root, domain)).transpose()?, after: Bytes::default() };
    let mut rows: Vec<Vec<Value>> = Vec::new();
    for answer in Admin::auth(root)?.account(&request)? {
        let AccountAnswer::Users { rows: users, .. } = answer else { continue };
        let limit = |bytes: u64| if bytes == 0 { Value::Null } else { bytes.into() };
        rows.extend(users.iter().map(|user| vec![text(user.address.as_bytes()), limit(user.quota), user.suspended.into()]));
    }
    let columns = [("USER", "address"), ("QUOTA", "quota"), ("SUSPENDED", "suspended")];
    printer.rows(&columns, &rows, "no users; add one with: qmail user add USER@DOMAIN --password-stdin")
}

fn list_aliases(root: &Root, of: Option<&str>, printer: Printer) -> Result<(), Failure> {
    let request =
        AccountRequest::AliasList { domain: of.map(|domain| domain::known(root, domain)).transpose()?, after: Bytes::default() };
    let mut rows: Vec<Vec<Value>> = Vec::new();
    for answer in Admin::auth(root)?.account(&request)? {
        let AccountAnswer::Aliases { rows: aliases, .. } = answer else { continue };
        let targets = |list: &[Address]| Value::Array(list.iter().map(|target| text(target.as_bytes())).collect());
        rows.extend(aliases.iter().map(|alias| vec![text(alias.address.as_bytes()), targets(&alias.targets)]));
    }
    printer.rows(
        &[("ALIAS", "address"), ("TARGETS", "targets")],
        &rows,
        "no aliases; add one with: qmail alias add ALIAS@DOMAIN TARGET",
    )
}

pub(crate) fn parse(address: &str) -> Result<Address, Failure> {
    let parsed =
        Address::new(address.as_bytes()).map_err(|error| Failure::usage(format!("{}: {error}", address.escape_debug())))?;
    match parsed.domain() {
        Some(domain) if !domain.is_empty() => Ok(parsed),
        _ => Err(Failure::usage(format!("{}: an address is written user@domain", address.escape_debug()))),
    }
}

/// The text of a reply, with its CRLFs as LFs.
fn whole_text(input: &mut impl io::Read) -> Result<Bytes, Failure> {
    let mut text = Vec::new();
    let read = io::Read::take(input, TEXT_LEN_MAX.saturating_add(1)).read_to_end(&mut text);
    read.map_err(|error| Failure::temporary(format!("standard input: {error}")))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > TEXT_LEN_MAX {
        return Err(Failure::usage(format!("the text of a reply has at most {TEXT_LEN_MAX} bytes")));
    }
    text.retain(|b| *b != b'\r');
    Ok(text.into())
}

/// The first line, without its end.
pub(crate) fn password(input: &mut impl io::BufRead) -> Result<Bytes, Failure> {
    let mut line = Vec::new();
    let read = io::Read::take(input, PASSWORD_LEN_MAX.saturating_add(2)).read_until(b'\n', &mut line);
    read.map_err(|error| Failure::temporary(format!("standard input: {error}")))?;
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(Failure::usage("no password on standard input".to_owned()));
    }
    if u64::try_from(line.len()).unwrap_or(u64::MAX) > PASSWORD_LEN_MAX {
        return Err(Failure::usage(format!("a password has at most {PASSWORD_LEN_MAX} bytes")));
    }
    Ok(line.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line() {
        for (input, expected) in [
            (&b"secret\n"[..], Some(&b"secret"[..])),
            (b"a b\r\nnext", Some(b"a b")),
            (b"end", Some(b"end")),
            (b"\n", None),
            (b"", None),
        ] {
            assert_eq!(password(&mut &input[..]).ok().map(|bytes| bytes.0), expected.map(<[u8]>::to_vec));
        }
        assert!(password(&mut &vec![b'x'; 1024][..]).is_ok());
        assert!(password(&mut &vec![b'x'; 1025][..]).is_err());
    }

    #[test]
    fn addresses_need_a_domain() {
        assert!(parse("a@b").is_ok() && parse("@b").is_ok());
        for bad in ["a", "a@", "a\n@b", ""] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
