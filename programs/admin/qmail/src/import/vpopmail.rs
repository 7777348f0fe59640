//! A vpopmail tree, taken over where it lies: `DIR/domains/DOMAIN` becomes the directory of the virtual domain, so that every Maildir
//! stays in its place and nothing is copied.
//!
//! - `vpasswd`: `name:crypt:uid:gid:gecos:dir:quota[:clear]`. The hash is kept as it is; a password that is there in the clear alone is
//!   hashed. The gid field holds flags; the one that refuses mail is carried over, others are said.
//! - Homes must be `DOMAIN/USER`. vpopmail puts those of large domains into `DOMAIN/0/USER` and so on; with `--move-homes` they are
//!   renamed, without it their users are left out and named.
//! - `.qmail-default`: what vdelivermail is told to do with mail for nobody becomes the catch-all.
//! - `.qmail-NAME` with nothing but addresses and mailboxes of the domain becomes an alias. Others (programs, lists) stay as they are
//!   and are named: a virtual domain does not read them.
//! - A symbolic link to another domain, and with `--assign` a line of users/assign that leads to one, becomes an alias domain.
//!
//! The tree belongs to others: no link is followed in it, and what is no file is passed over.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use control::{Id, VirtualDomain};
use ipc::admin::{AccountRow, AliasRow, Quota};
use rustix::fs::{Mode, OFlags, RenameFlags};
use users::UserName;
use wire::{Address, Domain};

use super::{Importer, blank, read_file};
use crate::{Failure, io_failure};

/// `domains/0/1/DOMAIN`: vpopmail makes no more levels than three.
const LEVELS_MAX: usize = 3;
/// Flag of a vpasswd line (vpopmail's vauth.h): mail is refused.
const BOUNCE_MAIL: u32 = 0x10;
/// Flags that take something else away.
const OTHER_FLAGS: [(u32, &str); 6] = [
    (0x01, "no password change"),
    (0x02, "no POP"),
    (0x04, "no webmail"),
    (0x08, "no IMAP"),
    (0x20, "no relay"),
    (0x800, "no SMTP"),
];

/// Domains and aliases of domains found.
#[derive(Default)]
struct Found {
    domains: BTreeMap<Domain, PathBuf>,
    aliases: BTreeMap<Domain, Domain>,
}

pub(crate) fn import(importer: &mut Importer<'_>, dir: &Path, assign: Option<&Path>, move_homes: bool) -> Result<(), Failure> {
    let dir = fs::canonicalize(dir).map_err(|error| io_failure(dir, &error))?;
    let mut found = Found::default();
    look(&dir.join("domains"), 0, &mut found)?;
    if let Some(assign) = assign {
        let text =
            read_file(assign)?.ok_or_else(|| Failure::permanent(format!("{}: there is no such file", assign.display())))?;
        assigned(&text, &mut found);
    }
    if found.domains.is_empty() {
        return Err(Failure::permanent(format!("{}: no domains/DOMAIN/vpasswd below it", dir.display())));
    }
    for (domain, base) in &found.domains {
        one_domain(importer, domain, base, move_homes)?;
    }
    for (alias, target) in &found.aliases {
        if found.domains.contains_key(target) {
            importer.domain(alias, Some(target))?;
        } else {
            importer.problem(format!("{alias}: an alias of {target}, which is not there"));
        }
    }
    Ok(())
}

/// Domains are directories with a vpasswd in them.
fn look(dir: &Path, level: usize, found: &mut Found) -> Result<(), Failure> {
    let entries = fs::read_dir(dir).map_err(|error| io_failure(dir, &error))?;
    for entry in entries {
        let path = entry.map_err(|error| io_failure(dir, &error))?.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let Some(name) = path.file_name().map(OsStr::as_bytes) else { continue };
        let domain = Domain::new(name);
        if metadata.is_symlink() {
            let target = fs::read_link(&path).ok().and_then(|to| Domain::new(to.file_name()?.as_bytes()).ok());
            if let (Ok(domain), Some(target)) = (domain, target) {
                found.aliases.insert(domain, target);
            }
        } else if metadata.is_dir() {
            let has_users = ["vpasswd", "vpasswd.cdb"].iter().any(|name| path.join(name).exists());
            match domain {
                Ok(domain) if has_users => drop(found.domains.insert(domain, path)),
                _ if name.len() == 1 && level < LEVELS_MAX => look(&path, level.saturating_add(1), found)?,
                _ => {}
            }
        }
    }
    Ok(())
}

/// `+alias.example-:real.example:uid:gid:/…/domains/real.example:-::`
fn assigned(text: &[u8], found: &mut Found) {
    for line in text.split(|b| *b == b'\n') {
        let mut fields = line.split(|b| *b == b':');
        let key = fields.next().and_then(|key| key.strip_prefix(b"+")?.strip_suffix(b"-"));
        if let (Some(Ok(alias)), Some(Ok(target))) = (key.map(Domain::new), fields.next().map(Domain::new))
            && alias != target
            && !found.domains.contains_key(&alias)
        {
            found.aliases.insert(alias, target);
        }
    }
}

fn one_domain(importer: &mut Importer<'_>, domain: &Domain, base: &Path, move_homes: bool) -> Result<(), Failure> {
    let metadata = fs::symlink_metadata(base).map_err(|error| io_failure(base, &error))?;
    let Some(entry) = VirtualDomain::new(Id { uid: metadata.uid(), gid: metadata.gid() }, base) else {
        importer.problem(format!("{domain}: {} belongs to root; give it to the user who owns the mail", base.display()));
        return Ok(());
    };
    let Some(vpasswd) = read_file(&base.join("vpasswd"))? else {
        importer.problem(format!("{domain}: there is a vpasswd.cdb and no vpasswd; the users are read from vpasswd"));
        return Ok(());
    };
    match importer.adopt(domain, &entry) {
        Err(failure) if !failure.is_temporary() => {
            importer.problem(failure.text);
            return Ok(());
        }
        adopted => adopted?,
    }
    for (number, line) in vpasswd.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        if let Err(text) = user(importer, domain, base, line, move_homes)? {
            importer.problem(format!("{domain}: vpasswd line {}: {text}", number.saturating_add(1)));
        }
    }
    let mut names: Vec<PathBuf> =
        fs::read_dir(base).map_err(|error| io_failure(base, &error))?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    names.sort();
    for path in names {
        let Some(name) = path.file_name().and_then(|name| name.as_bytes().strip_prefix(b".qmail-")) else { continue };
        dot_qmail(importer, domain, base, name, &path)?;
    }
    Ok(())
}

/// Inside: why the line was left out.
fn user(
    importer: &mut Importer<'_>,
    domain: &Domain,
    base: &Path,
    line: &[u8],
    move_homes: bool,
) -> Result<Result<(), String>, Failure> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
    let &[name, hash, _uid, flags, _gecos, home, quota, ref rest @ ..] = &fields[..] else {
        return Ok(Err("must be name:crypt:uid:gid:gecos:dir:quota".to_owned()));
    };
    let (Some(user), Some(address)) = (UserName::new(name), Address::join(name, domain.as_bytes()).ok()) else {
        return Ok(Err(format!("`{}` can be no user's name", wire::escape::visible(name))));
    };
    if let Err(text) = put_home_right(importer, base, &user, home, move_homes)? {
        return Ok(Err(format!("{address}: {text}")));
    }
    let Some(quota) = understand_quota(quota) else {
        return Ok(Err(format!("{address}: `{}` is no quota that is known", wire::escape::visible(quota))));
    };
    let flags: u32 = std::str::from_utf8(flags).ok().and_then(|flags| flags.parse().ok()).unwrap_or(0);
    let lost: Vec<&str> = OTHER_FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, what)| *what).collect();
    if !lost.is_empty() {
        importer.problem(format!("{address}: these settings have no counterpart: {}", lost.join(", ")));
    }
    let own = base.join(user.as_path()).join(".qmail");
    if let Some(text) = read_file(&own)?
        && let Some(what) = not_for_virtual_users(&text)
    {
        importer.problem(format!("{}: {what}", own.display()));
    }
    let hash = Some(hash).filter(|hash| !hash.is_empty());
    let clear = rest.first().copied().filter(|clear| !clear.is_empty());
    let row =
        AccountRow { hash: hash.map(Into::into), quota: Some(quota), refuses_mail: flags & BOUNCE_MAIL != 0, ..blank(address) };
    importer.user(row, clear.map(Into::into))?;
    Ok(Ok(()))
}

/// The home must be `base/USER`: one that lies deeper is renamed, if that was asked for. Inside: why the user is left out.
fn put_home_right(
    importer: &Importer<'_>,
    base: &Path,
    user: &UserName,
    home: &[u8],
    move_homes: bool,
) -> Result<Result<(), String>, Failure> {
    let right = base.join(user.as_path());
    if fs::symlink_metadata(&right).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(Ok(()));
    }
    // The path in vpasswd may be from before the tree was moved: what counts is what follows the domain's directory.
    let domain_dir = base.file_name().map(OsStr::as_bytes).unwrap_or_default();
    let parts: Vec<&[u8]> = home.split(|b| *b == b'/').filter(|part| !part.is_empty()).collect();
    let below =
        parts.iter().position(|part| *part == domain_dir).and_then(|at| parts.get(at.saturating_add(1)..)).unwrap_or_default();
    let (Some((last, levels)), true) = (below.split_last(), below.len() > 1) else { return Ok(Ok(())) };
    if below.iter().any(|part| matches!(*part, b"." | b"..")) || levels.len() > LEVELS_MAX {
        return Ok(Err("the home is in no place that is known".to_owned()));
    }
    let Some(dir) = open_levels(base, levels)? else { return Ok(Ok(())) };
    if rustix::fs::statat(&dir, *last, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_err() {
        // Nobody has written to this user yet.
        return Ok(Ok(()));
    }
    let from = levels.iter().chain([last]).fold(base.to_owned(), |path, part| path.join(OsStr::from_bytes(part)));
    if !move_homes {
        let (from, right) = (from.display(), right.display());
        return Ok(Err(format!("the home is {from} and must be {right}; say --move-homes to have it renamed")));
    }
    importer.would(&format!("rename {} to {}", from.display(), right.display()))?;
    if importer.is_dry() {
        return Ok(Ok(()));
    }
    let to = open_dir(base)?;
    // NOREPLACE: what is there is never overwritten.
    let renamed = rustix::fs::renameat_with(&dir, *last, &to, user.as_path(), RenameFlags::NOREPLACE);
    renamed.and_then(|()| rustix::fs::fsync(&to)).map_err(|errno| io_failure(&from, &errno.into()))?;
    Ok(Ok(()))
}

fn open_dir(path: &Path) -> Result<std::os::fd::OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| io_failure(path, &errno.into()))
}

/// The directory below `base`, through no link; `None` if it is not there.
fn open_levels(base: &Path, levels: &[&[u8]]) -> Result<Option<std::os::fd::OwnedFd>, Failure> {
    let mut dir = open_dir(base)?;
    for level in levels {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&dir, *level, flags, Mode::empty()) {
            Ok(next) => dir = next,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(io_failure(base, &errno.into())),
        }
    }
    Ok(Some(dir))
}

/// `NOQUOTA`, `10485760S`, `1000C`, both with a comma, or a number of bytes, perhaps with K or M.
fn understand_quota(text: &[u8]) -> Option<Quota> {
    let mut quota = Quota { bytes: 0, messages: 0 };
    if text.is_empty() || text.eq_ignore_ascii_case(b"NOQUOTA") {
        return Some(quota);
    }
    for part in text.split(|b| *b == b',') {
        let upper = part.to_ascii_uppercase();
        let part = upper.strip_suffix(b"B").filter(|_| part.len() > 2).unwrap_or(&upper);
        let (digits, unit) = match part.split_last()? {
            (letter @ (b'S' | b'C' | b'K' | b'M'), digits) => (digits, *letter),
            _ => (part, b'S'),
        };
        let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        let number: u64 = std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()?;
        match unit {
            b'C' => quota.messages = number,
            b'K' => quota.bytes = number.checked_mul(1 << 10)?,
            b'M' => quota.bytes = number.checked_mul(1 << 20)?,
            _ => quota.bytes = number,
        }
    }
    Some(quota)
}

/// What in a user's own file would keep mail waiting.
fn not_for_virtual_users(text: &[u8]) -> Option<&'static str> {
    let lines = || text.split(|b| *b == b'\n');
    if lines().any(|line| line.starts_with(b"|")) {
        return Some("has program lines: mail waits unless control/vmailprograms names the domain");
    }
    lines().any(|line| line.starts_with(b"/")).then_some("names an absolute path: mail waits until it is written ./Maildir/")
}

/// `.qmail-NAME` of the domain.
fn dot_qmail(importer: &mut Importer<'_>, domain: &Domain, base: &Path, name: &[u8], path: &Path) -> Result<(), Failure> {
    // A dot in an address stands as a colon in the file's name (dot-qmail(5)).
    let name: Vec<u8> = name.iter().map(|b| if *b == b':' { b'.' } else { *b }).collect();
    let left = |importer: &mut Importer<'_>, why: &str| {
        importer.problem(format!("{}: {why}; it stays there, but a virtual domain does not read it", path.display()));
    };
    let text = match read_file(path) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok(()),
        Err(_) => {
            left(importer, "is no plain file");
            return Ok(());
        }
    };
    let is_default = name == b"default";
    if !is_default && (name.ends_with(b"-default") || UserName::new(&name).is_none()) {
        left(importer, "stands for more than one address");
        return Ok(());
    }
    match targets(&text, domain, base) {
        Targets::Known(targets) => {
            let local: &[u8] = if is_default { b"" } else { &name };
            match Address::join(local, domain.as_bytes()) {
                Ok(address) => importer.alias(AliasRow { address, targets })?,
                Err(error) => left(importer, &error.to_string()),
            }
        }
        Targets::Nobody => {}
        Targets::Unknown(why) => left(importer, why),
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Targets {
    Known(Vec<Address>),
    /// Mail for nobody goes back.
    Nobody,
    Unknown(&'static str),
}

fn targets(text: &[u8], domain: &Domain, base: &Path) -> Targets {
    let mut known = Vec::new();
    for line in text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii) {
        let target = match line.split_first() {
            None | Some((b'#', _)) => continue,
            Some((b'|', command)) => match vdelivermail(command) {
                Some(b"bounce-no-mailbox") => return Targets::Nobody,
                Some(b"delete") => return Targets::Unknown("throws mail for nobody away, which is refused now"),
                Some(argument) if argument.starts_with(b"/") => mailbox(argument, domain, base),
                Some(argument) => Address::new(argument).ok(),
                None => return Targets::Unknown("runs a program"),
            },
            Some((b'&', address)) => Address::new(address.trim_ascii()).ok(),
            Some((b'/', _)) => mailbox(line, domain, base),
            Some(_) => Address::new(line).ok(),
        };
        match target.filter(|target| target.domain().is_some_and(|domain| Domain::new(domain).is_ok())) {
            Some(target) => known.push(target),
            None => return Targets::Unknown("has a line that is no whole address and no mailbox of the domain"),
        }
    }
    if known.is_empty() { Targets::Unknown("says nothing") } else { Targets::Known(known) }
}

/// The last argument of `/…/vdelivermail '' ARGUMENT`.
fn vdelivermail(command: &[u8]) -> Option<&[u8]> {
    let mut words = command.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let program = words.next()?;
    let (_, _) = (program.ends_with(b"vdelivermail").then_some(())?, words.next()?);
    words.next().filter(|_| words.next().is_none())
}

/// `/…/DOMAIN/USER[/Maildir/]` as an address.
fn mailbox(path: &[u8], domain: &Domain, base: &Path) -> Option<Address> {
    let domain_dir = base.file_name()?.as_bytes();
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|part| !part.is_empty()).collect();
    let below = parts.get(parts.iter().rposition(|part| *part == domain_dir)?.saturating_add(1)..)?;
    let below = below.strip_suffix(&[&b"Maildir"[..]]).unwrap_or(below);
    let user = UserName::new(below.last().filter(|_| below.len() <= LEVELS_MAX.saturating_add(1))?)?;
    Address::join(user.as_bytes(), domain.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas() {
        let quota = |bytes, messages| Some(Quota { bytes, messages });
        for (text, expected) in [
            ("NOQUOTA", quota(0, 0)),
            ("", quota(0, 0)),
            ("10485760S", quota(10_485_760, 0)),
            ("1000C,5242880S", quota(5_242_880, 1000)),
            ("5242880", quota(5_242_880, 0)),
            ("10M", quota(10 << 20, 0)),
            ("10MB", quota(10 << 20, 0)),
            ("x", None),
            ("10X", None),
            ("S", None),
            ("-5S", None),
        ] {
            assert_eq!(understand_quota(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn where_a_file_sends_mail() {
        let domain = Domain::new(b"a.example").unwrap();
        let base = Path::new("/srv/vpopmail/domains/a.example");
        let known = |list: &[&str]| Targets::Known(list.iter().map(|a| Address::new(a.as_bytes()).unwrap()).collect());
        let vdelivermail = |argument: &str| format!("| /home/vpopmail/bin/vdelivermail '' {argument}\n");
        for (text, expected) in [
            (vdelivermail("bounce-no-mailbox"), Targets::Nobody),
            (vdelivermail("x@y"), known(&["x@y"])),
            (vdelivermail("/home/vpopmail/domains/a.example/joe"), known(&["joe@a.example"])),
            (vdelivermail("/home/vpopmail/domains/a.example/0/joe/Maildir/"), known(&["joe@a.example"])),
            ("&a@b\n# note\n\nc@d\n".to_owned(), known(&["a@b", "c@d"])),
            ("/old/domains/a.example/ann/Maildir/\n&a@b\n".to_owned(), known(&["ann@a.example", "a@b"])),
        ] {
            assert_eq!(targets(text.as_bytes(), &domain, base), expected, "{text}");
        }
        let unknown = [
            vdelivermail("delete"),
            vdelivermail("a b"),
            vdelivermail("/etc/passwd"),
            "|ezmlm-send /x\n".to_owned(),
            "&local\n".to_owned(),
            "/home/other/Maildir/\n".to_owned(),
            "./Maildir/\n".to_owned(),
            String::new(),
        ];
        for text in unknown {
            assert!(matches!(targets(text.as_bytes(), &domain, base), Targets::Unknown(_)), "{text}");
        }
    }
}
