//! The table that `qmail export` writes and `qmail import csv` reads: a line of names, then a record for each domain, user and alias.
//!
//! Any subset of the columns in any order will do; `address` must be there. Without `kind` a record with `targets` is an alias, any
//! other a user. Lists are separated by blanks.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use ipc::admin::{AccountRow, AliasRow, DomainChange, DomainRow, Quota, Vacation};
use wire::{Address, Domain};

use super::csv::{Reader, Record};
use super::{Importer, blank};
use crate::domain_settings::no_change;
use crate::{Failure, io_failure};

/// The columns of an export. `password` is read, never written.
pub(crate) const COLUMNS: [&str; 22] = [
    "kind",
    "address",
    "hash",
    "quota",
    "quota_messages",
    "suspended",
    "refuses_mail",
    "forward",
    "keeps_copy",
    "per_hour",
    "per_day",
    "vacation_subject",
    "vacation_text",
    "vacation_from_s",
    "vacation_until_s",
    "vacation_days",
    "created_s",
    "targets",
    "alias_of",
    "domain_quota",
    "users_max",
    "administrators",
];
const PASSWORD: &str = "password";

/// The fields of a record, by column; what is not named is empty.
pub(crate) fn record(fields: &[(&str, Vec<u8>)]) -> Vec<Vec<u8>> {
    let field = |column: &&str| fields.iter().find(|(name, _)| name == column).map(|(_, value)| value.clone());
    COLUMNS.iter().map(|column| field(column).unwrap_or_default()).collect()
}

fn number(number: impl ToString) -> Vec<u8> {
    number.to_string().into_bytes()
}

fn list(addresses: &[Address]) -> Vec<u8> {
    addresses.iter().map(Address::as_bytes).collect::<Vec<_>>().join(&b' ')
}

fn flag(flag: bool) -> Vec<u8> {
    if flag { b"1".to_vec() } else { Vec::new() }
}

pub(crate) fn users_record(row: &AccountRow) -> Vec<Vec<u8>> {
    let optional = |limit: Option<u32>| limit.map(number).unwrap_or_default();
    let quota = row.quota.clone().unwrap_or(Quota { bytes: 0, messages: 0 });
    let mut fields = vec![
        ("kind", b"user".to_vec()),
        ("address", row.address.as_bytes().to_vec()),
        ("hash", row.hash.clone().unwrap_or_default().0),
        ("quota", number(quota.bytes)),
        ("quota_messages", number(quota.messages)),
        ("suspended", flag(row.suspended)),
        ("refuses_mail", flag(row.refuses_mail)),
        ("forward", list(&row.forward)),
        ("keeps_copy", flag(row.keeps_copy)),
        ("per_hour", optional(row.per_hour)),
        ("per_day", optional(row.per_day)),
        ("created_s", number(row.created_s)),
    ];
    if let Some(vacation) = &row.vacation {
        fields.extend([
            ("vacation_subject", vacation.subject.to_vec()),
            ("vacation_text", vacation.text.to_vec()),
            ("vacation_from_s", number(vacation.from_s)),
            ("vacation_until_s", number(vacation.until_s)),
            ("vacation_days", number(vacation.days)),
        ]);
    }
    record(&fields)
}

pub(crate) fn domain_record(row: &DomainRow) -> Vec<Vec<u8>> {
    record(&[
        ("kind", b"domain".to_vec()),
        ("address", row.domain.as_bytes().to_vec()),
        ("quota", number(row.default_quota.bytes)),
        ("quota_messages", number(row.default_quota.messages)),
        ("alias_of", row.alias_of.as_ref().map(|of| of.as_bytes().to_vec()).unwrap_or_default()),
        ("domain_quota", number(row.quota_bytes)),
        ("users_max", number(row.users_max)),
        ("administrators", list(&row.administrators)),
    ])
}

pub(crate) fn import(importer: &mut Importer<'_>, file: &Path, create_domains: bool) -> Result<(), Failure> {
    let input: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(file).map_err(|error| io_failure(file, &error))?))
    };
    let mut reader = Reader::new(input);
    let mut next = move || reader.next().map_err(|error| io_failure(file, &error));
    let Some(head) = next()? else { return Err(Failure::usage(format!("{}: is empty", file.display()))) };
    let columns = Columns::new(&head)?;
    // An administrator must be a user first.
    let mut administrators: Vec<(Domain, Address)> = Vec::new();
    while let Some(record) = next()? {
        let row = Row { columns: &columns, record: &record };
        if let Err(text) = one(importer, &row, create_domains, &mut administrators)? {
            importer.problem(format!("line {}: {text}", record.line));
        }
    }
    for (domain, account) in administrators {
        let change = DomainChange { administrator_add: Some(account), ..no_change() };
        importer.change_domain(&domain, change)?;
    }
    Ok(())
}

/// Which column is where.
struct Columns(HashMap<Vec<u8>, usize>);

impl Columns {
    fn new(head: &Record) -> Result<Self, Failure> {
        let mut places = HashMap::new();
        for (at, name) in head.fields.iter().enumerate() {
            let name = name.trim_ascii().to_ascii_lowercase();
            let shown = wire::escape::visible(&name);
            if !COLUMNS.iter().chain([&PASSWORD]).any(|known| known.as_bytes() == name) {
                let known = COLUMNS.join(",");
                return Err(Failure::usage(format!("{shown}: no such column; there are password,{known}")));
            }
            if places.insert(name, at).is_some() {
                return Err(Failure::usage(format!("{shown}: this column stands there twice")));
            }
        }
        if !places.contains_key(&b"address"[..]) {
            return Err(Failure::usage("the first line names the columns, and one of them must be `address`".to_owned()));
        }
        Ok(Self(places))
    }
}

/// A record with names. A reading function says what is wrong with its field.
struct Row<'a> {
    columns: &'a Columns,
    record: &'a Record,
}

impl Row<'_> {
    fn get(&self, column: &str) -> &[u8] {
        let at = self.columns.0.get(column.as_bytes());
        at.and_then(|at| self.record.fields.get(*at)).map(|field| field.trim_ascii()).unwrap_or_default()
    }

    /// As it stands, blanks included.
    fn raw(&self, column: &str) -> &[u8] {
        let at = self.columns.0.get(column.as_bytes());
        at.and_then(|at| self.record.fields.get(*at)).map(Vec::as_slice).unwrap_or_default()
    }

    fn number<N: std::str::FromStr>(&self, column: &str) -> Result<Option<N>, String> {
        let text = self.get(column);
        if text.is_empty() {
            return Ok(None);
        }
        let is_number = text.iter().all(u8::is_ascii_digit);
        let parsed = std::str::from_utf8(text).ok().filter(|_| is_number).and_then(|text| text.parse().ok());
        parsed.map(Some).ok_or_else(|| format!("{column} must be a number"))
    }

    fn flag(&self, column: &str) -> Result<bool, String> {
        match self.get(column) {
            b"" | b"0" | b"no" | b"false" => Ok(false),
            b"1" | b"yes" | b"true" => Ok(true),
            _ => Err(format!("{column} must be 1 or 0")),
        }
    }

    fn addresses(&self, column: &str) -> Result<Vec<Address>, String> {
        let words = self.get(column).split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.map(|word| Address::new(word).map_err(|error| format!("{column}: {error}"))).collect()
    }

    fn domain(&self, column: &str) -> Result<Option<Domain>, String> {
        let text = self.get(column);
        if text.is_empty() {
            return Ok(None);
        }
        Domain::new(text).map(Some).map_err(|error| format!("{column}: {error}"))
    }

    /// `None`: neither column says anything.
    fn quota(&self) -> Result<Option<Quota>, String> {
        let (bytes, messages) = (self.number("quota")?, self.number("quota_messages")?);
        let is_said = bytes.is_some() || messages.is_some();
        Ok(is_said.then(|| Quota { bytes: bytes.unwrap_or(0), messages: messages.unwrap_or(0) }))
    }

    fn vacation(&self) -> Result<Option<Vacation>, String> {
        if self.get("vacation_text").is_empty() {
            return Ok(None);
        }
        Ok(Some(Vacation {
            subject: self.get("vacation_subject").into(),
            text: self.raw("vacation_text").iter().copied().filter(|b| *b != b'\r').collect::<Vec<_>>().into(),
            from_s: self.number("vacation_from_s")?.unwrap_or(0),
            until_s: self.number("vacation_until_s")?.unwrap_or(0),
            days: self.number("vacation_days")?.unwrap_or(7),
        }))
    }

    fn account(&self) -> Result<AccountRow, String> {
        let address = Address::new(self.get("address")).map_err(|error| error.to_string())?;
        Ok(AccountRow {
            hash: Some(self.get("hash").into()).filter(|hash: &ipc::field::Bytes| !hash.is_empty()),
            quota: self.quota()?,
            suspended: self.flag("suspended")?,
            refuses_mail: self.flag("refuses_mail")?,
            forward: self.addresses("forward")?,
            keeps_copy: self.flag("keeps_copy")?,
            vacation: self.vacation()?,
            per_hour: self.number("per_hour")?,
            per_day: self.number("per_day")?,
            created_s: self.number("created_s")?.unwrap_or(0),
            ..blank(address)
        })
    }
}

/// Inside: what is wrong with the record.
fn one(
    importer: &mut Importer<'_>,
    row: &Row<'_>,
    create_domains: bool,
    administrators: &mut Vec<(Domain, Address)>,
) -> Result<Result<(), String>, Failure> {
    let kind: &[u8] = match row.get("kind") {
        b"" if row.get("targets").is_empty() => b"user",
        b"" => b"alias",
        kind => kind,
    };
    if kind == b"domain" {
        return domain(importer, row, administrators);
    }
    if create_domains && let Some(domain) = Address::new(row.get("address")).ok().and_then(|a| Domain::new(a.domain()?).ok()) {
        importer.domain(&domain, None)?;
    }
    match kind {
        b"user" => match row.account() {
            Ok(account) => {
                let password = Some(row.raw("password")).filter(|password| !password.is_empty());
                importer.user(account, password.map(Into::into))?;
            }
            Err(text) => return Ok(Err(text)),
        },
        b"alias" => {
            let alias = Address::new(row.get("address")).map_err(|error| error.to_string());
            match alias.and_then(|address| Ok(AliasRow { address, targets: row.addresses("targets")? })) {
                Ok(alias) => importer.alias(alias)?,
                Err(text) => return Ok(Err(text)),
            }
        }
        _ => return Ok(Err("kind is user, alias or domain".to_owned())),
    }
    Ok(Ok(()))
}

fn domain(
    importer: &mut Importer<'_>,
    row: &Row<'_>,
    administrators: &mut Vec<(Domain, Address)>,
) -> Result<Result<(), String>, Failure> {
    let read = || -> Result<_, String> {
        let domain = row.domain("address")?.ok_or("a domain has a name")?;
        let change = DomainChange {
            default_quota: row.quota()?,
            quota_bytes: row.number("domain_quota")?,
            users_max: row.number("users_max")?,
            ..no_change()
        };
        Ok((domain, row.domain("alias_of")?, change, row.addresses("administrators")?))
    };
    let (domain, alias_of, change, accounts) = match read() {
        Ok(read) => read,
        Err(text) => return Ok(Err(text)),
    };
    importer.domain(&domain, alias_of.as_ref())?;
    if alias_of.is_none() && change != no_change() {
        importer.change_domain(&domain, change)?;
    }
    administrators.extend(accounts.into_iter().map(|account| (domain.clone(), account)));
    Ok(Ok(()))
}
