//! `qmail export`: domains, users and aliases as a table that `qmail import csv` reads, or with `--json` a JSON object a line; with `--sql`
//! as tables for other programs' lookups.

pub mod queue;
mod sql;

use std::io::{self, Write as _};

use control::{Root, VirtualDomains};
use ipc::admin::{AccountAnswer, AccountRequest, AccountRow, AliasRow, DomainRow};
use ipc::field::Bytes;
use serde_json::{Value, json};

use crate::account::properties;
use crate::admin::Admin;
use crate::import::{COLUMNS, csv_line, domain_record, record, users_record};
use crate::print::{Printer, text};
use crate::{Failure, cli, domain, domain_settings};

/// Runs `qmail export`.
///
/// # Errors
/// What qmail-auth says, or standard output is closed.
pub fn run(root: &Root, options: &cli::Export, printer: Printer) -> Result<(), Failure> {
    let only = options.domain.as_deref().map(|name| domain::known(root, name)).transpose()?;
    let admin = Admin::auth(root)?;
    if options.sql && printer.json {
        return Err(Failure::usage("export writes SQL or JSON, not both".to_owned()));
    }
    let sql = options.sql.then(|| domain::read(root)).transpose()?;
    let out = sys::standard::output().map_err(|error| closed(&error))?;
    let mut out = Output { out: io::BufWriter::new(out), json: printer.json, sql };
    if out.sql.is_some() {
        out.bytes(sql::TABLES.as_bytes())?;
    } else if !printer.json {
        out.bytes(&csv_line(&COLUMNS.map(|column| column.as_bytes().to_vec())))?;
    }
    let set = domain_settings::all(&admin)?;
    // A domain comes before its aliases, so that the table can be read from the top.
    let mut domains: Vec<DomainRow> = domain::all(root)?.into_iter().map(|name| settings(&set, name)).collect();
    domains.retain(|row| only.as_ref().is_none_or(|only| row.domain == *only || row.alias_of.as_ref() == Some(only)));
    domains.sort_by_key(|row| row.alias_of.is_some());
    for row in &domains {
        out.domain(row)?;
    }
    let request = AccountRequest::Export { domain: only.clone(), after: Bytes::default(), secrets: options.with_secrets };
    admin.each(&request, |answer| match answer {
        AccountAnswer::Accounts { rows, .. } => rows.iter().try_for_each(|row| out.user(row)),
        _ => Ok(()),
    })?;
    admin.each(&AccountRequest::AliasList { domain: only, after: Bytes::default() }, |answer| match answer {
        AccountAnswer::Aliases { rows, .. } => rows.iter().try_for_each(|row| out.alias(row)),
        _ => Ok(()),
    })?;
    if out.sql.is_some() {
        out.bytes(sql::END.as_bytes())?;
    }
    out.out.flush().map_err(|error| closed(&error))
}

fn settings(set: &[DomainRow], name: wire::Domain) -> DomainRow {
    set.iter().find(|row| row.domain == name).cloned().unwrap_or_else(|| DomainRow {
        domain: name,
        alias_of: None,
        default_quota: ipc::admin::Quota { bytes: 0, messages: 0 },
        quota_bytes: 0,
        users_max: 0,
        administrators: Vec::new(),
    })
}

fn closed(error: &io::Error) -> Failure {
    Failure::temporary(format!("standard output: {}", sys::errno::text(error)))
}

struct Output<W> {
    out: W,
    json: bool,
    /// Where the homes are, for SQL.
    sql: Option<VirtualDomains>,
}

impl<W: io::Write> Output<W> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| closed(&error))
    }

    fn object(&mut self, value: &Value) -> Result<(), Failure> {
        self.bytes(format!("{value}\n").as_bytes())
    }

    fn domain(&mut self, row: &DomainRow) -> Result<(), Failure> {
        if self.sql.is_some() {
            return self.bytes(sql::domain(row).unwrap_or_default().as_bytes());
        }
        if !self.json {
            return self.bytes(&csv_line(&domain_record(row)));
        }
        self.object(&json!({
            "kind": "domain",
            "address": text(row.domain.as_bytes()),
            "alias_of": row.alias_of.as_ref().map(|of| text(of.as_bytes())),
            "default_quota": row.default_quota.bytes,
            "domain_quota": row.quota_bytes,
            "users_max": row.users_max,
            "administrators": row.administrators.iter().map(|account| text(account.as_bytes())).collect::<Vec<_>>(),
        }))
    }

    fn user(&mut self, row: &AccountRow) -> Result<(), Failure> {
        if let Some(domains) = &self.sql {
            let text = sql::user(row, domains).unwrap_or_default();
            return self.bytes(text.as_bytes());
        }
        if !self.json {
            return self.bytes(&csv_line(&users_record(row)));
        }
        let hash = row.hash.as_ref().map(|hash| ("hash".to_owned(), text(hash)));
        let kind = ("kind".to_owned(), Value::from("user"));
        let all = properties(row).into_iter().map(|(_, key, value)| (key.to_owned(), value));
        self.object(&Value::Object(std::iter::once(kind).chain(all).chain(hash).collect()))
    }

    fn alias(&mut self, row: &AliasRow) -> Result<(), Failure> {
        if self.sql.is_some() {
            return Ok(());
        }
        if !self.json {
            let targets = row.targets.iter().map(wire::Address::as_bytes).collect::<Vec<_>>().join(&b' ');
            let fields = [("kind", b"alias".to_vec()), ("address", row.address.as_bytes().to_vec()), ("targets", targets)];
            return self.bytes(&csv_line(&record(&fields)));
        }
        let targets: Vec<_> = row.targets.iter().map(|target| text(target.as_bytes())).collect();
        self.object(&json!({ "kind": "alias", "address": text(row.address.as_bytes()), "targets": targets }))
    }
}
