//! `qmail user` and `qmail alias`: everything is said to qmail-auth, which alone opens the accounts.

use std::io::{self, BufRead as _};

use control::Root;
use ipc::admin::{AccountAnswer, AccountRequest};
use ipc::field::Bytes;
use serde_json::Value;
use wire::Address;

use crate::admin::Admin;
use crate::print::{Printer, text};
use crate::{Failure, app_password, cli, domain};

/// Longest password line that is read.
const PASSWORD_LEN_MAX: u64 = 1024;

/// Runs `qmail user`.
///
/// # Errors
/// What qmail-auth says.
pub fn user(root: &Root, command: &cli::User, printer: Printer) -> Result<(), Failure> {
    let (request, said) = match command {
        cli::User::AppPassword(command) => return app_password::app_password(root, command, printer),
        cli::User::Add { address, clear, .. } => {
            let said = format!("{address} has a mailbox now");
            let (address, password) = (parse(address)?, password(&mut io::stdin().lock())?);
            let request = match clear.keep_clear {
                true => AccountRequest::UserKeepClear { address, password, add: true },
                false => AccountRequest::UserAdd { address, password },
            };
            (request, said)
        }
        cli::User::Passwd { address, clear, .. } => {
            let said = format!("{address} has a new password");
            let (address, password) = (parse(address)?, password(&mut io::stdin().lock())?);
            let request = match clear.keep_clear {
                true => AccountRequest::UserKeepClear { address, password, add: false },
                false => AccountRequest::UserPassword { address, password },
            };
            (request, said)
        }
        cli::User::Remove { address } => {
            (AccountRequest::UserRemove { address: parse(address)? }, format!("{address} is gone; the mail stays on the disk"))
        }
        cli::User::Quota { address, size } => {
            let bytes = quota(size)?;
            let said = if bytes == 0 { "no limit".to_owned() } else { format!("{bytes} bytes") };
            (AccountRequest::UserQuota { address: parse(address)?, bytes }, format!("{address}: {said}"))
        }
        cli::User::List { domain } => return list_users(root, domain.as_deref(), printer),
    };
    Admin::auth(root)?.account(&request)?;
    printer.done(&said)
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

/// The first line, without its end.
fn password(input: &mut impl io::BufRead) -> Result<Bytes, Failure> {
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

/// `10M` as bytes; 0 for no limit.
fn quota(size: &str) -> Result<u64, Failure> {
    if size.eq_ignore_ascii_case("none") {
        return Ok(0);
    }
    let wrong = || Failure::usage(format!("{}: a size is a number, with K, M or G behind it, or `none`", size.escape_debug()));
    let (digits, shift) = match size.char_indices().next_back().ok_or_else(wrong)? {
        (at, 'k' | 'K') => (size.get(..at), 10),
        (at, 'm' | 'M') => (size.get(..at), 20),
        (at, 'g' | 'G') => (size.get(..at), 30),
        _ => (Some(size), 0),
    };
    let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_digit())).ok_or_else(wrong)?;
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (size, expected) in [
            ("none", Some(0)),
            ("0", Some(0)),
            ("7", Some(7)),
            ("2k", Some(2048)),
            ("10M", Some(10 << 20)),
            ("3G", Some(3 << 30)),
        ] {
            assert_eq!(quota(size).ok(), expected, "{size}");
        }
        for bad in ["", "M", "-1", "+1", "1.5M", "1T", "10 M", "99999999999999999G"] {
            assert!(quota(bad).is_err(), "{bad}");
        }
    }

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
