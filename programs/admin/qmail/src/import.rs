//! `qmail import`: users, aliases and domains from elsewhere, in batches that are one transaction each; the queue and the configuration of
//! a classic qmail, in modules of their own.
//!
//! What is there already stays as it is, so an import that was broken off is simply made again. What was not understood is said, and the
//! exit code is 1 then. `--dry-run` says what would be done and asks nobody.

mod configuration;
mod csv;
mod passwd;
pub(crate) mod queue;
mod table;
mod vpopmail;

pub(crate) use table::{COLUMNS, domain_record, record, users_record};

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use control::Root;
use ipc::admin::{ADD_MAX, AccountAnswer, AccountRequest, AccountRow, AliasRow, DomainChange};
use ipc::field::Bytes;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::json;
use wire::{Address, Domain};

use crate::admin::Admin;
use crate::print::{Printer, line};
use crate::{Failure, cli, io_failure};

pub(crate) use csv::line as csv_line;

/// Bytes of rows in one request, far enough below the longest datagram.
const BATCH_LEN_MAX: usize = 24 * 1024;
/// Longest file that is read whole: a vpasswd of some 500,000 users.
const FILE_LEN_MAX: u64 = 64 << 20;

/// Runs `qmail import`. False: something was not understood or could not be added.
///
/// # Errors
/// A file cannot be read, or qmail-auth is out of reach.
pub fn run(root: &Root, command: &cli::Import, printer: Printer) -> Result<bool, Failure> {
    let options = match command {
        cli::Import::Csv { options, .. } | cli::Import::Passwd { options, .. } | cli::Import::Vpopmail { options, .. } => options,
        cli::Import::Queue(options) => return queue::run(root, options, printer),
        cli::Import::Control(options) => return configuration::run(root, options, printer),
    };
    let admin = if options.dry_run { None } else { Some(Admin::auth(root)?) };
    let mut importer = Importer::new(root, admin, printer, crate::domain::all(root)?.into_iter().collect());
    match command {
        cli::Import::Csv { file, create_domains, .. } => table::import(&mut importer, file, *create_domains)?,
        cli::Import::Passwd { file, domain, shadow, .. } => {
            passwd::import(&mut importer, file, domain.as_deref(), shadow.as_deref())?;
        }
        cli::Import::Vpopmail { dir, assign, move_homes, .. } => {
            vpopmail::import(&mut importer, dir, assign.as_deref(), *move_homes)?;
        }
        cli::Import::Queue(_) | cli::Import::Control(_) => {}
    }
    importer.finish()
}

/// Takes what was found and has it added.
pub(crate) struct Importer<'a> {
    root: &'a Root,
    /// `None`: a dry run.
    admin: Option<Admin>,
    printer: Printer,
    /// To be made virtual, before the users and aliases.
    new_domains: Vec<Domain>,
    users: Vec<AccountRow>,
    aliases: Vec<AliasRow>,
    len: usize,
    users_added: u64,
    aliases_added: u64,
    domains_added: u64,
    existing: u64,
    problems: Vec<String>,
    /// Domains that are virtual, or in a dry run would be.
    domains: HashSet<Domain>,
}

impl<'a> Importer<'a> {
    fn new(root: &'a Root, admin: Option<Admin>, printer: Printer, domains: HashSet<Domain>) -> Self {
        let (users, aliases, problems) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            root,
            admin,
            printer,
            new_domains: Vec::new(),
            users,
            aliases,
            len: 0,
            users_added: 0,
            aliases_added: 0,
            domains_added: 0,
            existing: 0,
            problems,
            domains,
        }
    }

    pub(crate) fn is_dry(&self) -> bool {
        self.admin.is_none()
    }

    /// Something that is left to a person.
    pub(crate) fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    /// Says what a dry run would do.
    fn would(&self, text: &str) -> Result<(), Failure> {
        if self.is_dry() && !self.printer.json { line(&format!("would {text}")) } else { Ok(()) }
    }

    /// Adds a user, with this password if the row has no hash.
    pub(crate) fn user(&mut self, mut row: AccountRow, password: Option<Bytes>) -> Result<(), Failure> {
        let quota = row.quota.as_ref().filter(|quota| quota.bytes > 0).map(|quota| format!(", quota {}", quota.bytes));
        self.would(&format!("add {}{}", row.address, quota.unwrap_or_default()))?;
        if row.hash.is_none() {
            let Some(password) = password else {
                self.problem(format!("{}: no password and no hash", row.address));
                return Ok(());
            };
            match self.hash(password)? {
                Ok(hash) => row.hash = Some(hash),
                Err(text) => {
                    self.problem(format!("{}: {text}", row.address));
                    return Ok(());
                }
            }
        }
        let len = row.encoded_len();
        self.make_room(len)?;
        self.users.push(row);
        Ok(())
    }

    pub(crate) fn alias(&mut self, row: AliasRow) -> Result<(), Failure> {
        let targets: Vec<_> = row.targets.iter().map(ToString::to_string).collect();
        self.would(&format!("forward {} to {}", row.address, targets.join(" ")))?;
        let len = row.encoded_len();
        self.make_room(len)?;
        self.aliases.push(row);
        Ok(())
    }

    /// Makes a domain virtual whose directory is there already, owned by somebody else.
    pub(crate) fn adopt(&mut self, domain: &Domain, entry: &control::VirtualDomain) -> Result<(), Failure> {
        let is_new = self.domains.insert(domain.clone());
        if is_new {
            self.would(&format!("make {domain} virtual, its mail in {}", entry.base().display()))?;
        }
        let added = if self.is_dry() { is_new } else { crate::domain::adopt(self.root, domain, entry)? };
        if added {
            self.domains_added = self.domains_added.saturating_add(1);
        }
        Ok(())
    }

    /// Makes a domain virtual in its usual place.
    pub(crate) fn domain(&mut self, domain: &Domain, alias_of: Option<&Domain>) -> Result<(), Failure> {
        if !self.domains.insert(domain.clone()) {
            return Ok(());
        }
        let of = alias_of.map(|of| format!(" as an alias of {of}")).unwrap_or_default();
        self.would(&format!("make {domain} virtual{of}"))?;
        if !self.is_dry() && alias_of.is_none() {
            // Together with others: each time the file is written anew and synced.
            self.new_domains.push(domain.clone());
            return if self.new_domains.len() >= ADD_MAX { self.flush() } else { Ok(()) };
        }
        if !self.is_dry() {
            self.flush()?;
            match crate::domain::create(self.root, domain, alias_of) {
                Err(failure) if !failure.is_temporary() => {
                    self.problem(failure.text);
                    return Ok(());
                }
                created => created?,
            };
        }
        self.domains_added = self.domains_added.saturating_add(1);
        Ok(())
    }

    /// Changes what is set of a domain, after all that came before has been added.
    pub(crate) fn change_domain(&mut self, domain: &Domain, change: DomainChange) -> Result<(), Failure> {
        self.flush()?;
        let Some(admin) = &self.admin else { return Ok(()) };
        match admin.account(&AccountRequest::DomainChange { domain: domain.clone(), change }) {
            Err(failure) if !failure.is_temporary() => {
                self.problem(format!("{domain}: {}", failure.text));
                Ok(())
            }
            result => result.map(drop),
        }
    }

    /// The hash of a password; inside, why it can be none.
    fn hash(&mut self, password: Bytes) -> Result<Result<Bytes, String>, Failure> {
        let Some(admin) = &self.admin else { return Ok(Ok("dry".into())) };
        match admin.account(&AccountRequest::Hash { password }) {
            Ok(answers) => {
                let hash = answers.into_iter().find_map(|answer| match answer {
                    AccountAnswer::Hashed { hash } => Some(hash),
                    _ => None,
                });
                hash.map(Ok).ok_or_else(|| Failure::temporary("qmail-auth: no hash".to_owned()))
            }
            Err(failure) if !failure.is_temporary() => Ok(Err(failure.text)),
            Err(failure) => Err(failure),
        }
    }

    fn make_room(&mut self, len: usize) -> Result<(), Failure> {
        let count = self.users.len().saturating_add(self.aliases.len());
        if count >= ADD_MAX || self.len.saturating_add(len) > BATCH_LEN_MAX {
            self.flush()?;
        }
        self.len = self.len.saturating_add(len);
        Ok(())
    }

    fn make_domains(&mut self) -> Result<(), Failure> {
        let domains = std::mem::take(&mut self.new_domains);
        if domains.is_empty() {
            return Ok(());
        }
        for added in crate::domain::add_all(self.root, &domains)? {
            match added {
                Ok(()) => self.domains_added = self.domains_added.saturating_add(1),
                Err(failure) => self.problem(failure.text),
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.make_domains()?;
        let (users, aliases) = (std::mem::take(&mut self.users), std::mem::take(&mut self.aliases));
        self.len = 0;
        if users.is_empty() && aliases.is_empty() {
            return Ok(());
        }
        let names: Vec<Address> =
            users.iter().map(|row| &row.address).chain(aliases.iter().map(|row| &row.address)).cloned().collect();
        let count = |rows: usize| u64::try_from(rows).unwrap_or(u64::MAX);
        let (mut users_left, mut aliases_left) = (count(users.len()), count(aliases.len()));
        let users_end = users.len();
        if let Some(admin) = &self.admin {
            for answer in admin.account(&AccountRequest::Add { users, aliases })? {
                let AccountAnswer::Added { failures } = answer else { continue };
                for failure in failures {
                    let at = usize::try_from(failure.at).unwrap_or(usize::MAX);
                    let left = if at < users_end { &mut users_left } else { &mut aliases_left };
                    *left = left.saturating_sub(1);
                    if failure.exists {
                        self.existing = self.existing.saturating_add(1);
                    } else {
                        let name = names.get(at).map(ToString::to_string).unwrap_or_default();
                        self.problems.push(format!("{name}: {}", wire::escape::visible(&failure.text)));
                    }
                }
            }
        }
        self.users_added = self.users_added.saturating_add(users_left);
        self.aliases_added = self.aliases_added.saturating_add(aliases_left);
        Ok(())
    }

    fn finish(mut self) -> Result<bool, Failure> {
        self.flush()?;
        let Self { users_added, aliases_added, domains_added, existing, problems, printer, .. } = &self;
        if printer.json {
            let value = json!({
                "dry_run": self.is_dry(),
                "domains": domains_added,
                "users": users_added,
                "aliases": aliases_added,
                "existing": existing,
                "problems": problems,
            });
            printer.value(&value)?;
        } else {
            for problem in problems {
                line(&format!("left to you: {problem}"))?;
            }
            let done = if self.is_dry() { "would add" } else { "added" };
            line(&format!(
                "{done} {domains_added} domains, {users_added} users, {aliases_added} aliases; {existing} were there already"
            ))?;
        }
        Ok(self.problems.is_empty())
    }
}

/// A file that belongs to others: no link, no device, and not without end.
fn read_file(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let read = read_foreign(path, FILE_LEN_MAX).map_err(|error| io_failure(path, &error))?;
    Ok(read.map(|(bytes, _)| bytes))
}

/// The same with a bound of the caller's, and what the file was when it was read.
pub(crate) fn read_foreign(path: &Path, len_max: u64) -> io::Result<Option<(Vec<u8>, Metadata)>> {
    let Some(file) = open_foreign(path)? else { return Ok(None) };
    let metadata = file.metadata()?;
    let mut bytes = Vec::new();
    file.take(len_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > len_max {
        return Err(io::Error::other(format!("is longer than {len_max} bytes")));
    }
    Ok(Some((bytes, metadata)))
}

/// Opens a file that belongs to others to read it. A name that its directory's owner gave to somebody else's file is none: with the rights
/// of the caller he could have read what he may not.
fn open_foreign(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(io::Error::other("is a symbolic link, which is not followed")),
        Err(errno) => return Err(errno.into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if metadata.nlink() > 1 && metadata.uid() != std::fs::metadata(dir)?.uid() {
        return Err(io::Error::other("is another name of a file that is not its directory's owner's"));
    }
    Ok(Some(file))
}

/// Is a file that is written to, in a directory of somebody else's, a file of its own?
///
/// # Errors
/// It is something else, or has another name: it may be anybody's.
pub(crate) fn own_file(file: &File) -> io::Result<()> {
    let metadata = file.metadata()?;
    match (metadata.is_file(), metadata.nlink()) {
        (true, 0 | 1) => Ok(()),
        (true, _) => Err(io::Error::other("has another name as well: it may be somebody else's file")),
        (false, _) => Err(io::Error::other("is no regular file")),
    }
}

/// An account of which nothing is set.
fn blank(address: Address) -> AccountRow {
    AccountRow {
        address,
        hash: None,
        quota: None,
        suspended: false,
        refuses_mail: false,
        forward: Vec::new(),
        keeps_copy: false,
        vacation: None,
        per_hour: None,
        per_day: None,
        created_s: 0,
    }
}
