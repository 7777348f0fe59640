//! `qmail check`: reads the whole configuration as the programs would and says what is wrong and what to do.
//!
//! It changes nothing. An error is what stops mail or makes it go wrong; a warning is what is surely not meant.

mod accounts;
mod acme;
mod authnet;
mod authsources;
mod certificates;
pub(crate) mod control_files;
mod host;
mod lmtproutes;
mod outgoing;
mod places;
mod replacements;
mod tls_clients;
mod users_files;

use std::path::Path;

use control::{ControlError, Root};
use serde_json::{Value, json};

use crate::Failure;
use crate::print::{Printer, table};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warning,
    /// Nothing to do, but good to know.
    Note,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub level: Level,
    /// A file, mostly.
    pub subject: String,
    /// What is the matter and what to do about it.
    pub problem: String,
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    pub fn add(&mut self, level: Level, subject: &Path, problem: impl Into<String>) {
        let finding = Finding { level, subject: subject.display().to_string(), problem: problem.into() };
        // Several programs read the same file.
        if !self.0.contains(&finding) {
            self.0.push(finding);
        }
    }

    pub fn error(&mut self, subject: &Path, problem: impl Into<String>) {
        self.add(Level::Error, subject, problem);
    }

    pub fn warning(&mut self, subject: &Path, problem: impl Into<String>) {
        self.add(Level::Warning, subject, problem);
    }

    pub fn note(&mut self, subject: &Path, problem: impl Into<String>) {
        self.add(Level::Note, subject, problem);
    }

    /// The value, or nothing and an error.
    pub fn take<T>(&mut self, read: Result<T, ControlError>) -> Option<T> {
        read.map_err(|error| self.error(&error.file, error.problem)).ok()
    }
}

/// All findings, the worst first.
#[must_use]
pub fn findings(root: &Root) -> Vec<Finding> {
    let mut found = Findings::default();
    places::check(root, &mut found);
    control_files::check(root, &mut found);
    authsources::check(root, &mut found);
    accounts::check(root, &mut found);
    outgoing::check(root, &mut found);
    replacements::check(root, &mut found);
    lmtproutes::check(root, &mut found);
    tls_clients::check(root, &mut found);
    users_files::check(root, &mut found);
    certificates::check(root, &mut found);
    acme::check(root, &mut found);
    host::check(root, &mut found);
    found.0.sort_by_key(|finding| finding.level);
    found.0
}

/// Runs the command; true if there are no errors.
///
/// # Errors
/// Standard output is closed.
pub fn run(root: &Root, printer: Printer) -> Result<bool, Failure> {
    let found = findings(root);
    let is_good = found.iter().all(|finding| finding.level != Level::Error);
    if printer.json {
        let object =
            |finding: &Finding| json!({ "level": finding.level.word(), "subject": finding.subject, "problem": finding.problem });
        printer.value(&json!({ "ok": is_good, "findings": found.iter().map(object).collect::<Value>() }))?;
        return Ok(is_good);
    }
    if !found.is_empty() {
        let row = |finding: &Finding| -> Vec<Value> {
            vec![finding.level.word().into(), finding.subject.clone().into(), finding.problem.clone().into()]
        };
        let rows: Vec<_> = found.iter().map(row).collect();
        crate::print::line(&table(&[("LEVEL", "level"), ("WHERE", "subject"), ("WHAT", "problem")], &rows))?;
    }
    let count = |level: Level| found.iter().filter(|finding| finding.level == level).count();
    crate::print::line(&format!("{} errors, {} warnings", count(Level::Error), count(Level::Warning)))?;
    Ok(is_good)
}
