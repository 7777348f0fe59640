//! `qmail import control`: the configuration of a classic qmail, file by file, with a word on what each means here.
//!
//! It copies control files, users/assign and the sources of it, the aliases' `.qmail` files and rules for the SMTP service. What is there
//! already and differs stays as it is without `--force`. A file that no program of this version reads is not copied. What was copied is
//! looked at as `qmail check` does; in a dry run, in a copy of the configuration ([`rehearsal`]).
//!
//! The directories may be anybody's: nothing but regular files of a bounded length is read, no link is followed, and what lies in the
//! aliases' directory, whose owner is not trusted, gives no file of root's its mode.

mod rehearsal;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use control::{Id, Root};
use serde_json::{Value, json};

use crate::check::{self, Level};
use crate::print::{Column, Printer, line, table, to_json};
use crate::{Failure, cli, files, io_failure};

use rehearsal::Rehearsal;

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

/// Longest control file or users/assign.
const FILE_LEN_MAX: u64 = 64 << 20;
/// Longest `.qmail` file; there may be many.
const DOT_QMAIL_LEN_MAX: u64 = 1 << 20;

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
    there: BTreeSet<String>,
    /// Of a dry run.
    rehearsal: Option<Rehearsal>,
}

/// A directory that files go to.
#[derive(Clone, Copy)]
enum Into {
    /// Root's.
    Own,
    /// The alias user's, as its files.
    Aliases(Option<Id>),
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
    let is_dry = options.options.dry_run;
    let mut import = Import { root, is_dry, force: options.force, rows: Vec::new(), there: BTreeSet::new(), rehearsal: None };
    if is_dry {
        let rehearsal = Rehearsal::new(root).map_err(|error| io_failure(&std::env::temp_dir(), &error))?;
        import.rehearsal = Some(rehearsal);
    }
    import.control(&control)?;
    if let Some(base) = base {
        import.users(&base.join("users"))?;
        import.aliases(&base.join("alias"))?;
    }
    if let Some(rules) = &options.tcp_smtp {
        import.copy(rules, &root.control_file("tcp.smtp"), Into::Own, "rules for the SMTP service, read as text")?;
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
fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names: Vec<OsString> = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
    names.sort();
    Ok(names)
}

impl Import<'_> {
    fn control(&mut self, dir: &Path) -> Result<(), Failure> {
        for name in self.names(dir) {
            let from = dir.join(&name);
            let text = name.to_str().unwrap_or_default();
            let meaning = MEANINGS.iter().find(|(known, _)| *known == text).map(|(_, meaning)| meaning);
            let is_known = check::control_files::is_known(self.root, text);
            let why = match meaning {
                Some(Unused(why)) => Some(*why),
                _ if is_known && !text.is_empty() => None,
                _ => Some("no program of this version reads it"),
            };
            if let Some(why) = why {
                self.row(&from, Path::new(""), Done::Unused, why);
                continue;
            }
            let said = if let Some(Differs(said)) = meaning { said } else { "as before" };
            self.copy(&from, &self.root.control_file(text), Into::Own, said)?;
        }
        Ok(())
    }

    fn users(&mut self, dir: &Path) -> Result<(), Failure> {
        for name in self.names(dir) {
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
            self.copy(&from, &self.root.users().join(&name), Into::Own, said)?;
        }
        Ok(())
    }

    fn aliases(&mut self, dir: &Path) -> Result<(), Failure> {
        // They are the alias user's, as the directory that they go to.
        let owner = std::fs::metadata(self.root.alias()).ok().map(|metadata| Id { uid: metadata.uid(), gid: metadata.gid() });
        for name in self.names(dir).into_iter().filter(|name| name.as_bytes().starts_with(b".qmail")) {
            self.copy(&dir.join(&name), &self.root.alias().join(&name), Into::Aliases(owner), "as before")?;
        }
        Ok(())
    }

    /// What is in a directory; that it cannot be read is told, and the rest goes on.
    fn names(&mut self, dir: &Path) -> Vec<OsString> {
        names(dir).unwrap_or_else(|error| {
            self.row(dir, Path::new(""), Done::Problem, &error.to_string());
            Vec::new()
        })
    }

    fn copy(&mut self, from: &Path, to: &Path, into: Into, said: &str) -> Result<(), Failure> {
        let len_max = if matches!(into, Into::Own) { FILE_LEN_MAX } else { DOT_QMAIL_LEN_MAX };
        let (bytes, metadata) = match super::read_foreign(from, len_max) {
            Ok(Some(read)) => read,
            Ok(None) => {
                self.row(from, to, Done::Problem, "is not there");
                return Ok(());
            }
            Err(error) => {
                self.row(from, to, Done::Problem, &error.to_string());
                return Ok(());
            }
        };
        let there = match super::read_foreign(to, FILE_LEN_MAX) {
            Ok(there) => there,
            Err(error) => {
                self.row(from, to, Done::Problem, &format!("what is there in its place: {error}"));
                return Ok(());
            }
        };
        let is_for_all = metadata.permissions().mode() & 0o004 != 0;
        // A `.qmail` file that may be executed is one that forwards and does nothing else.
        let forwards = if matches!(into, Into::Own) { 0 } else { metadata.permissions().mode() & 0o100 };
        let mode = if is_for_all { 0o644 } else { 0o640 } | forwards;
        let done = match &there {
            Some((there, _)) if *there == bytes => Done::Same,
            Some(_) if !self.force => Done::Kept,
            Some(_) => Done::Replaced,
            None => Done::Copied,
        };
        let was = there.map(|(_, metadata)| metadata);
        self.put(to, &bytes, done, mode, was.as_ref(), into).map_err(|error| io_failure(to, &error))?;
        let private = if is_for_all || done != Done::Copied { "" } else { "; not for all to read: see who has to, and give it" };
        if done != Done::Kept {
            self.there.insert(to.display().to_string());
        }
        self.row(from, to, done, &format!("{said}{private}"));
        Ok(())
    }

    /// Writes a file, or in a dry run its copy for check.
    fn put(&self, to: &Path, bytes: &[u8], done: Done, mode: u32, was: Option<&Metadata>, into: Into) -> io::Result<()> {
        // Who may read what is replaced was decided here, but never that it runs as somebody else.
        let kept = if matches!(into, Into::Own) { 0o666 } else { 0o744 };
        let mode = was.map_or(mode, |was| was.permissions().mode() & kept);
        match (&self.rehearsal, done) {
            (Some(rehearsal), Done::Copied | Done::Replaced) => rehearsal.put(to, bytes, mode),
            (None, Done::Copied) => {
                let owner = if let Into::Aliases(owner) = into { owner } else { None };
                files::make_file(to, bytes, mode, owner).map(drop)
            }
            (None, Done::Replaced) => {
                let owner = match into {
                    Into::Own => was.map(|was| Id { uid: was.uid(), gid: was.gid() }),
                    Into::Aliases(owner) => owner,
                };
                files::replace_file_as(to, bytes, mode, owner)
            }
            _ => Ok(()),
        }
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
        let found = self.rehearsal.as_ref().map_or_else(|| check::findings(self.root), Rehearsal::findings);
        let found: Vec<_> = found.into_iter().filter(|finding| self.there.contains(&finding.file)).collect();
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
