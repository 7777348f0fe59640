//! `qmail domain`: users/domains, replaced in one step. Whoever uses the file looks at it before each use, so a change counts
//! from the moment the command returns.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use control::{Id, Root, VirtualDomain, VirtualDomains};
use ipc::admin::{AccountRequest, DomainChange};
use rustix::fs::FlockOperation;
use serde_json::Value;
use wire::Domain;

use crate::admin::Admin;
use crate::domain_settings::no_change;
use crate::files::{make_dir, replace_file};
use crate::print::Printer;
use crate::{Failure, cli, io_failure};

/// Runs the command.
///
/// # Errors
/// The domain is not there, or there already; or the file cannot be read or written.
pub fn run(root: &Root, command: &cli::Domain, printer: Printer) -> Result<(), Failure> {
    match command {
        cli::Domain::Add { domain, alias_of } => {
            let target = alias_of.as_deref().map(|other| known(root, other)).transpose()?;
            printer.done(&create(root, &parse(domain)?, target.as_ref())?)
        }
        cli::Domain::Remove { domain } => remove(root, &known(root, domain)?, printer),
        cli::Domain::List => list(root, printer),
        cli::Domain::Show { domain } => crate::domain_settings::show(root, &known(root, domain)?, printer),
        cli::Domain::Set(set) => crate::domain_settings::set(root, &known(root, &set.domain)?, set, printer),
        cli::Domain::Admin(command) => crate::domain_settings::admin(root, command, printer),
    }
}

/// A domain as it was typed.
///
/// # Errors
/// It is none.
pub fn parse(domain: &str) -> Result<Domain, Failure> {
    Domain::new(domain.as_bytes()).map_err(|error| Failure::usage(format!("{}: {error}", domain.escape_debug())))
}

/// A domain as it was typed that is virtual.
///
/// # Errors
/// It is none, or not virtual.
pub fn known(root: &Root, domain: &str) -> Result<Domain, Failure> {
    let domain = parse(domain)?;
    match read(root)?.get(domain.as_bytes()) {
        Some(_) => Ok(domain),
        None => Err(not_virtual(&domain)),
    }
}

/// Where the mail of a virtual domain lies.
///
/// # Errors
/// It is not virtual.
pub fn base(root: &Root, domain: &Domain) -> Result<std::path::PathBuf, Failure> {
    read(root)?.get(domain.as_bytes()).map(|entry| entry.base().to_owned()).ok_or_else(|| not_virtual(domain))
}

fn not_virtual(domain: &Domain) -> Failure {
    Failure::permanent(format!("{domain} is no virtual domain"))
}

/// Makes a domain virtual, or an alias of another. Returns what is to be said.
///
/// # Errors
/// It is one already, or cannot be one.
pub fn create(root: &Root, domain: &Domain, alias_of: Option<&Domain>) -> Result<String, Failure> {
    match alias_of {
        None => add(root, domain),
        Some(target) => add_alias(root, domain, target),
    }
}

/// All virtual domains by name.
///
/// # Errors
/// users/domains cannot be read.
pub fn all(root: &Root) -> Result<Vec<Domain>, Failure> {
    Ok(read(root)?.sorted().into_iter().map(|(domain, _)| domain.clone()).collect())
}

fn add(root: &Root, domain: &Domain) -> Result<String, Failure> {
    let _lock = lock(root)?;
    let mut domains = read(root)?;
    let ids = root.ids().map_err(|error| Failure::temporary(error.to_string()))?;
    let vmail =
        ids.get("vmail").ok_or_else(|| Failure::temporary("etc/qmail/ids has no line for vmail; run qmail setup".to_owned()))?;
    let base = root.mail(domain);
    let bad_base = || Failure::permanent(format!("{}: cannot be the directory of a domain", base.display()));
    let entry = VirtualDomain::new(vmail, &base).ok_or_else(bad_base)?;
    include(root, &mut domains, domain, entry)?;
    // The directory before the line: from the line on mail may come.
    make_dir(&base, 0o700, Some(vmail)).and_then(|_| check_owner(&base, vmail)).map_err(|error| io_failure(&base, &error))?;
    write(root, &domains)?;
    Ok(format!("{domain} is a virtual domain now; its mail goes to {}", base.display()))
}

/// An alias domain has its target's line: nothing of it is ever on the disk.
fn add_alias(root: &Root, domain: &Domain, target: &Domain) -> Result<String, Failure> {
    let _lock = lock(root)?;
    let mut domains = read(root)?;
    let entry = domains.get(target.as_bytes()).cloned().ok_or_else(|| not_virtual(target))?;
    include(root, &mut domains, domain, entry)?;
    // Whose it is before the line: from the line on mail may come.
    let change = DomainChange { alias_of: Some(target.clone()), ..no_change() };
    Admin::auth(root)?.account(&AccountRequest::DomainChange { domain: domain.clone(), change })?;
    write(root, &domains)?;
    Ok(format!("everybody in {domain} is who has the same name in {target}"))
}

/// Puts a domain among the others, if it may be there.
fn include(root: &Root, domains: &mut VirtualDomains, domain: &Domain, entry: VirtualDomain) -> Result<(), Failure> {
    if domain.as_bytes().starts_with(b"[") {
        return Err(Failure::usage(format!("{domain}: an address literal is no virtual domain; it always means this host")));
    }
    if !domains.add(domain.clone(), entry) {
        return Err(Failure::permanent(format!("{domain} is a virtual domain already")));
    }
    for name in ["locals", "virtualdomains"] {
        if listed(root, name, domain)? {
            return Err(Failure::permanent(format!(
                "{domain} stands in control/{name}; take it out there first, it can be one of the two only"
            )));
        }
    }
    Ok(())
}

/// A domain whose mail lies in a directory that is there already, with all that belongs to it as it is.
///
/// # Errors
/// As `qmail domain add`; or it is a virtual domain with another owner or place.
pub fn adopt(root: &Root, domain: &Domain, entry: &VirtualDomain) -> Result<bool, Failure> {
    let _lock = lock(root)?;
    let mut domains = read(root)?;
    match domains.get(domain.as_bytes()) {
        Some(known) if known == entry => return Ok(false),
        Some(_) => return Err(Failure::permanent(format!("{domain} is a virtual domain already, with another owner or place"))),
        None => include(root, &mut domains, domain, entry.clone())?,
    }
    check_owner(entry.base(), entry.id).map_err(|error| io_failure(entry.base(), &error))?;
    write(root, &domains)?;
    Ok(true)
}

fn remove(root: &Root, domain: &Domain, printer: Printer) -> Result<(), Failure> {
    let admin = Admin::auth(root)?;
    let aliases = crate::domain_settings::aliases_of(&admin, domain)?;
    if let Some(alias) = aliases.first() {
        return Err(Failure::permanent(format!("{alias} is an alias of {domain}; remove it first")));
    }
    let _lock = lock(root)?;
    let before = read(root)?;
    let mut domains = before.clone();
    let removed = domains.remove(domain).ok_or_else(|| not_virtual(domain))?;
    // The line first: with it, and without accounts, mail for users that there are would be refused.
    write(root, &domains)?;
    if let Err(failure) = admin.account(&AccountRequest::DomainForget { domain: domain.clone() }) {
        // A command that failed has changed nothing: mail for the domain goes on.
        write(root, &before)?;
        return Err(failure);
    }
    printer.done(&format!("{domain} is no virtual domain any more; its mail stays in {}", removed.base().display()))
}

fn list(root: &Root, printer: Printer) -> Result<(), Failure> {
    let domains = read(root)?;
    let row = |(domain, entry): (&Domain, &VirtualDomain)| -> Vec<Value> {
        vec![
            crate::print::text(domain.as_bytes()),
            entry.id.uid.into(),
            entry.id.gid.into(),
            entry.base().display().to_string().into(),
        ]
    };
    let rows: Vec<_> = domains.sorted().into_iter().map(row).collect();
    let columns = [("DOMAIN", "domain"), ("UID", "uid"), ("GID", "gid"), ("MAIL", "base")];
    printer.rows(&columns, &rows, "no virtual domains; add one with: qmail domain add DOMAIN")
}

/// What was there before, perhaps from an earlier life of the domain, must be a directory of the domain's id.
fn check_owner(base: &Path, id: Id) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(base)?;
    if metadata.is_dir() && metadata.uid() == id.uid {
        return Ok(());
    }
    Err(io::Error::other(format!("is there already and is no directory of uid {}; move it away", id.uid)))
}

fn listed(root: &Root, name: &str, domain: &Domain) -> Result<bool, Failure> {
    let lines = root.lines(name).map_err(|error| Failure::temporary(error.to_string()))?.unwrap_or_default();
    let first = |line: &Vec<u8>| line.split(|b| *b == b':').next().unwrap_or_default().to_ascii_lowercase();
    Ok(lines.iter().any(|line| first(line) == domain.as_bytes()))
}

/// One change at a time; the lock ends with the descriptor.
fn lock(root: &Root) -> Result<File, Failure> {
    let users = root.users();
    let dir = File::open(&users).map_err(|error| io_failure(&users, &error))?;
    rustix::fs::flock(&dir, FlockOperation::LockExclusive).map_err(|errno| io_failure(&users, &errno.into()))?;
    Ok(dir)
}

fn read(root: &Root) -> Result<VirtualDomains, Failure> {
    root.virtual_domains().map_err(|error| Failure::temporary(error.to_string()))
}

fn write(root: &Root, domains: &VirtualDomains) -> Result<(), Failure> {
    let path = root.domains_file();
    replace_file(&path, &domains.to_text(), 0o644).map_err(|error| io_failure(&path, &error))
}
