//! `qmail check`: reads the whole configuration as the programs would and says what is wrong and what to do.
//!
//! It changes nothing. An error is what stops mail or makes it go wrong; a warning is what is surely not meant; a note is good to know.
//! Each finding names the file, the line if there is one, the problem and the cure (`finding`). The exit code is 1 if there is an error,
//! else 0: warnings are for people.

mod access;
mod accounts;
mod acme;
mod addresses;
mod authnet;
mod authsources;
mod certificates;
pub(crate) mod control_files;
mod disks;
mod domains;
mod finding;
mod host;
mod lmtproutes;
mod outgoing;
mod places;
mod replacements;
mod resolvers;
mod texts;
mod tls_clients;
mod users_files;

use control::Root;
use serde_json::{Value, json};

pub use finding::{Finding, Findings, Level};

use crate::Failure;
use crate::print::{Printer, table};

/// All findings, the worst first.
#[must_use]
pub fn findings(root: &Root) -> Vec<Finding> {
    let mut found = Findings::default();
    places::check(root, &mut found);
    access::check(root, &mut found);
    texts::check(root, &mut found);
    control_files::check(root, &mut found);
    domains::check(root, &mut found);
    addresses::check(root, &mut found);
    authsources::check(root, &mut found);
    accounts::check(root, &mut found);
    outgoing::check(root, &mut found);
    replacements::check(root, &mut found);
    lmtproutes::check(root, &mut found);
    tls_clients::check(root, &mut found);
    users_files::check(root, &mut found);
    certificates::check(root, &mut found);
    acme::check(root, &mut found);
    resolvers::check(root, &mut found);
    disks::check(root, &mut found);
    host::check(root, &mut found);
    found.sorted()
}

/// Runs the command; true if there are no errors.
///
/// # Errors
/// Standard output is closed.
pub fn run(root: &Root, printer: Printer) -> Result<bool, Failure> {
    let found = findings(root);
    let is_good = found.iter().all(|finding| finding.level != Level::Error);
    if printer.json {
        printer.value(&json!({ "ok": is_good, "findings": found.iter().map(Finding::json).collect::<Value>() }))?;
        return Ok(is_good);
    }
    if !found.is_empty() {
        let row = |finding: &Finding| -> Vec<Value> {
            vec![finding.level.word().into(), finding.file.clone().into(), finding.sentence().into()]
        };
        let rows: Vec<_> = found.iter().map(row).collect();
        crate::print::line(&table(&[("LEVEL", "level"), ("WHERE", "subject"), ("WHAT", "problem")], &rows))?;
    }
    let count = |level: Level| found.iter().filter(|finding| finding.level == level).count();
    crate::print::line(&format!("{} errors, {} warnings", count(Level::Error), count(Level::Warning)))?;
    Ok(is_good)
}
