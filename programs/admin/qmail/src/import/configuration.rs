//! `qmail import control`: the configuration of a classic qmail, file by file, with a word on what each means here.
//!
//! It copies control files, users/assign and the sources of it, the aliases' `.qmail` files and rules for the SMTP service. What is there
//! already and differs stays as it is without `--force`. A file that no program of this version reads is not copied. What was copied is
//! looked at as `qmail check` does.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use control::{Id, Root};
use serde_json::{Value, json};

use crate::check::{self, Level};
use crate::print::{Column, Printer, line, table, to_json};
use crate::{Failure, cli, files, io_failure};

/// What a file means here, where that is not just what it meant there.
enum Meaning {
    /// It counts, and this is to be known.
    Differs(&'static str),
    /// It is not copied, and why, or what to do instead.
    Unused(&'static str),
}
use Meaning::{Differs, Unused};

const TLS_FILES: &str = "certificates lie in etc/qmail/tls/HOST/ here: put them there, or see qmail cert";
const TLS_CIPHERS: &str = "TLS 1.2 and 1.3 with sound ciphers only: there is nothing to choose";
const DKIM: &str = "nothing is signed by a patch of qmail-remote here";

/// Control files of classic qmails and of their usual patches.
const MEANINGS: [(&str, Meaning); 33] = [
    ("aliasempty", Unused("write its contents into control/defaultdelivery")),
    ("badhelo", Differs("patterns as in badmailfrom, if this version reads it: see qmail check")),
    ("clientcert.pem", Unused("what this host shows to other servers is set by control/tlspolicy")),
    ("concurrencylocal", Differs("read again on SIGHUP; 0 holds deliveries; 2000 at most")),
    ("concurrencyremote", Differs("read again on SIGHUP; 0 holds deliveries; 2000 at most")),
    ("databytes", Differs("the limit counts for the message as it is received, and is announced with SIZE")),
    ("dh1024.pem", Unused(TLS_CIPHERS)),
    ("dh2048.pem", Unused(TLS_CIPHERS)),
    ("dh512.pem", Unused(TLS_CIPHERS)),
    ("dkimkeys", Unused(DKIM)),
    ("domainkeys", Unused(DKIM)),
    ("filterargs", Unused(DKIM)),
    ("localiphost", Differs("as before, for addresses of both families")),
    ("logcount", Unused("the log goes to standard error, and from there to the journal")),
    ("logsize", Unused("the log goes to standard error, and from there to the journal")),
    ("me", Differs("setup has written it already: compare")),
    ("morercpthosts", Differs("run qmail-newmrh afterwards")),
    ("notlshosts_auto", Unused("a host without TLS is what control/tlspolicy makes of it")),
    ("queuelifetime", Differs("counts for imported messages from the time they arrived there")),
    ("rcpthosts", Differs("without it nobody outside may relay to anybody; the classic qmail-smtpd relayed for everybody then")),
    ("rsa2048.pem", Unused(TLS_CIPHERS)),
    ("rsa512.pem", Unused(TLS_CIPHERS)),
    ("servercert.pem", Unused(TLS_FILES)),
    ("servercerts", Unused(TLS_FILES)),
    ("smtproutes", Differs("read again when it changes; a route may have |user|password behind it")),
    ("spfbehavior", Unused("SPF is not judged by this version of qmail-smtpd")),
    ("tlsclientciphers", Unused(TLS_CIPHERS)),
    ("tlsclients", Differs("names in certificates; their authority is control/clientca.pem")),
    ("tlshosts", Unused("write control/tlspolicy instead")),
    ("tlsserverciphers", Unused(TLS_CIPHERS)),
    ("tcp.smtp.cdb", Unused("the text is read: give it with --tcp-smtp")),
    ("virtualdomains", Differs("a domain of qmail domain add comes before it: have no domain in both")),
    ("concurrencyincoming", Differs("sessions of all SMTP listeners together; read by qmail-smtpd itself")),
];

const COLUMNS: [Column; 4] = [("FILE", "file"), ("TO", "to"), ("RESULT", "result"), ("MEANING", "meaning")];

/// What was done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Copied,
    Replaced,
    /// The same is there already.
    Same,
    /// Another one is there already.
    Kept,
    Unused,
    Problem,
}

impl Done {
    fn word(self, is_dry: bool) -> &'static str {
        match self {
            Self::Copied if is_dry => "would copy",
            Self::Replaced if is_dry => "would replace",
            Self::Copied => "copied",
            Self::Replaced => "replaced",
            Self::Same => "is there",
            Self::Kept => "differs: kept the one here",
            Self::Unused => "not used",
            Self::Problem => "problem",
        }
    }
}

struct Import<'a> {
    root: &'a Root,
    is_dry: bool,
    force: bool,
    rows: Vec<(PathBuf, PathBuf, Done, String)>,
    /// Copied or there: what check says of them is said.
    there: BTreeMap<String, ()>,
}

/// Runs the command. False: something was left out, or is wrong with what was copied.
///
/// # Errors
/// The directory cannot be read, or the configuration not be written.
pub(super) fn run(root: &Root, options: &cli::ImportControl, printer: Printer) -> Result<bool, Failure> {
    let (base, control) = places(&options.dir)?;
    let same = |a: &Path, b: &Path| a.canonicalize().ok().is_some_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    if same(&control, &root.control()) {
        return Err(Failure::permanent(format!("{}: is the configuration of this system itself", control.display())));
    }
    if !root.control().is_dir() {
        return Err(Failure::permanent(format!("{}: is not there; run qmail setup first", root.control().display())));
    }
    let mut import =
        Import { root, is_dry: options.options.dry_run, force: options.force, rows: Vec::new(), there: BTreeMap::new() };
    import.control(&control)?;
    if let Some(base) = base {
        import.users(&base.join("users"))?;
        import.aliases(&base.join("alias"))?;
    }
    if let Some(rules) = &options.tcp_smtp {
        import.copy(rules, &root.control_file("tcp.smtp"), None, "rules for the SMTP service, read as text")?;
    }
    import.report(printer)
}

/// The qmail directory, if there is one, and its control directory.
fn places(dir: &Path) -> Result<(Option<PathBuf>, PathBuf), Failure> {
    if !dir.is_dir() {
        return Err(Failure::permanent(format!("{}: is no directory", dir.display())));
    }
    if dir.join("control").is_dir() {
        return Ok((Some(dir.to_owned()), dir.join("control")));
    }
    let is_control = dir.file_name() == Some(OsStr::new("control")) || dir.join("me").is_file();
    if !is_control {
        return Err(Failure::permanent(format!("{}: has no directory control and is none: it has no file me", dir.display())));
    }
    let above = if dir.file_name() == Some(OsStr::new("control")) { dir.parent().map(Path::to_owned) } else { None };
    Ok((above, dir.to_owned()))
}

/// Names in a directory, sorted; none if it is not there.
fn names(dir: &Path) -> Result<Vec<OsString>, Failure> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| io_failure(dir, &error))?,
    };
    let mut names: Vec<OsString> = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()
        .map_err(|error| io_failure(dir, &error))?;
    names.sort();
    Ok(names)
}

impl Import<'_> {
    fn control(&mut self, dir: &Path) -> Result<(), Failure> {
        for name in names(dir)? {
            let from = dir.join(&name);
            let text = name.to_str().unwrap_or_default();
            let meaning = MEANINGS.iter().find(|(known, _)| *known == text).map(|(_, meaning)| meaning);
            let is_known = check::control_files::is_known(self.root, text);
            let why = match meaning {
                Some(Unused(why)) => Some(*why),
                _ if is_known => None,
                _ => Some("no program of this version reads it"),
            };
            if let Some(why) = why {
                self.row(&from, Path::new(""), Done::Unused, why);
                continue;
            }
            let said = if let Some(Differs(said)) = meaning { said } else { "as before" };
            self.copy(&from, &self.root.control_file(text), None, said)?;
        }
        Ok(())
    }

    fn users(&mut self, dir: &Path) -> Result<(), Failure> {
        for name in names(dir)? {
            let from = dir.join(&name);
            let said = match name.to_str().unwrap_or_default() {
                "assign" => "run qmail-newu afterwards; uids and homes must be those of this host",
                "include" | "exclude" | "mailnames" | "subusers" | "append" => "read by qmail-pw2u",
                "cdb" | "assign.cdb" => {
                    self.row(&from, Path::new(""), Done::Unused, "compiled from assign by qmail-newu");
                    continue;
                }
                _ => {
                    self.row(&from, Path::new(""), Done::Unused, "no program of this version reads it");
                    continue;
                }
            };
            self.copy(&from, &self.root.users().join(&name), None, said)?;
        }
        Ok(())
    }

    fn aliases(&mut self, dir: &Path) -> Result<(), Failure> {
        for name in names(dir)?.into_iter().filter(|name| name.as_bytes().starts_with(b".qmail")) {
            // They are the alias user's, as the directory that they go to.
            let owner = std::fs::metadata(self.root.alias()).ok().map(|metadata| Id { uid: metadata.uid(), gid: metadata.gid() });
            self.copy(&dir.join(&name), &self.root.alias().join(&name), owner, "as before")?;
        }
        Ok(())
    }

    fn copy(&mut self, from: &Path, to: &Path, owner: Option<Id>, said: &str) -> Result<(), Failure> {
        let bytes = match super::read_file(from) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                self.row(from, to, Done::Problem, "is not there");
                return Ok(());
            }
            Err(failure) => {
                self.row(from, to, Done::Problem, &failure.text);
                return Ok(());
            }
        };
        let is_for_all = std::fs::metadata(from).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0);
        let mode = if is_for_all { 0o644 } else { 0o640 };
        let there = super::read_file(to)?;
        let done = match &there {
            Some(there) if *there == bytes => Done::Same,
            Some(_) if !self.force => Done::Kept,
            Some(_) => Done::Replaced,
            None => Done::Copied,
        };
        if !self.is_dry {
            let failed = |error: std::io::Error| io_failure(to, &error);
            match done {
                Done::Copied => files::make_file(to, &bytes, mode, owner).map(drop).map_err(failed)?,
                Done::Replaced => {
                    // Who may read it was decided here.
                    let mode = std::fs::metadata(to).map_or(mode, |metadata| metadata.permissions().mode() & 0o7777);
                    files::replace_file(to, &bytes, mode).map_err(failed)?;
                }
                _ => {}
            }
        }
        let private = if is_for_all || done != Done::Copied { "" } else { "; not for all to read: see who has to, and give it" };
        if done != Done::Kept {
            self.there.insert(to.display().to_string(), ());
        }
        self.row(from, to, done, &format!("{said}{private}"));
        Ok(())
    }

    fn row(&mut self, from: &Path, to: &Path, done: Done, said: &str) {
        self.rows.push((from.to_owned(), to.to_owned(), done, said.to_owned()));
    }

    fn report(&self, printer: Printer) -> Result<bool, Failure> {
        let path = |path: &Path| -> Value { wire::escape::visible(path.as_os_str().as_bytes()).into() };
        let row = |(from, to, done, said): &(PathBuf, PathBuf, Done, String)| -> Vec<Value> {
            vec![path(from), path(to), done.word(self.is_dry).into(), said.clone().into()]
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        let found = if self.is_dry { Vec::new() } else { check::findings(self.root) };
        let found: Vec<_> = found.into_iter().filter(|finding| self.there.contains_key(&finding.file)).collect();
        let is_left = self.rows.iter().any(|(_, _, done, _)| matches!(done, Done::Kept | Done::Problem));
        let is_good = !is_left && found.iter().all(|finding| finding.level != Level::Error);
        if printer.json {
            let findings: Vec<_> =
                found.iter().map(|finding| json!({ "file": finding.file, "line": finding.line, "problem": finding.problem, "cure": finding.cure })).collect();
            printer.value(
                &json!({ "dry_run": self.is_dry, "ok": is_good, "files": to_json(&COLUMNS, &rows), "findings": findings }),
            )?;
            return Ok(is_good);
        }
        if rows.is_empty() {
            line("there is nothing to import")?;
        } else {
            line(&table(&COLUMNS, &rows))?;
        }
        for finding in &found {
            let at = finding.line.map(|number| format!(":{number}")).unwrap_or_default();
            line(&format!("{}{at}: {}; {}", finding.file, finding.problem, finding.cure))?;
        }
        if is_left {
            line("what differs is kept as it is here; compare, or give --force")?;
        }
        Ok(is_good)
    }
}
