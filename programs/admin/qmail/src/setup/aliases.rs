//! The home of the user alias: mail that must reach a person is kept there from the first moment on, and /etc/aliases counts.
//!
//! A new home is put together beside its place and gets its name when it is whole and alias's. In one that is there root follows no path:
//! alias may have changed it.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use control::{Id, Ids, Root, program};
use rustix::fs::{AtFlags, CWD, statat};
use rustix::io::Errno;

use super::Report;
use crate::files::{give_dir, make_dir, make_dir_in, make_file, make_tree, open_dir_of};
use crate::{Failure, io_failure};

/// Addresses that must reach a person (RFC 5321 §4.5.1, RFC 2142) and those that systems write to.
const NAMES: [&str; 3] = ["postmaster", "mailer-daemon", "root"];
/// The parts of a Maildir.
const PARTS: [&str; 3] = ["tmp", "new", "cur"];
/// Longest entry of the database that is looked at, in bytes.
const ENTRY_LEN_MAX: usize = 1 << 20;

pub(super) fn make(root: &Root, ids: &Ids, report: &mut Report) -> Result<(), Failure> {
    let (home, owner) = (root.alias(), ids.get("alias"));
    if home.symlink_metadata().is_ok() {
        report.add(&home, Ok(false))?;
        return complete(root, &home, owner, report).map_err(|error| io_failure(&home, &error));
    }
    let files = files(root);
    report.add(&home, make_tree(&home, |beside| fill(beside, owner, &files)))?;
    for (name, _) in &files {
        report.add(&home.join(name), Ok(true))?;
    }
    Ok(())
}

fn fill(home: &Path, owner: Option<Id>, files: &[(String, String)]) -> io::Result<()> {
    let maildir = home.join("Maildir");
    make_dir(&maildir, 0o700, None)?;
    for part in PARTS {
        make_dir(&maildir.join(part), 0o700, owner)?;
    }
    for (name, text) in files {
        make_file(&home.join(name), text.as_bytes(), 0o644, owner)?;
    }
    // Last of all: from here on they are alias's.
    give_dir(&maildir, 0o700, owner)?;
    give_dir(home, 0o755, owner)
}

/// A Maildir that lacks a part takes no letter.
fn complete(root: &Root, home: &Path, owner: Option<Id>, report: &mut Report) -> io::Result<()> {
    let Some(dir) = open_dir_of(CWD, home, owner)? else { return Ok(()) };
    let Some(maildir) = open_dir_of(&dir, Path::new("Maildir"), owner)? else { return Ok(()) };
    for part in PARTS {
        if !matches!(statat(&maildir, part, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT)) {
            continue;
        }
        let beside = root.etc().join(format!("alias-{part}.tmp.{}", std::process::id()));
        match make_dir_in(&maildir, part, &beside, 0o700, owner) {
            Ok(true) => report.made.push(home.join("Maildir").join(part)),
            Ok(false) => {}
            // A home that somebody has put on another disk is his to look after.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The `.qmail` files of a new home. What etc/aliases names goes where that says, the rest of [`NAMES`] to the Maildir.
fn files(root: &Root) -> Vec<(String, String)> {
    let database = database(root).unwrap_or_else(|problem| {
        eprintln!("qmail setup: warning: {problem}");
        None
    });
    let mut files = Vec::new();
    let is_named = |name: &str| database.as_ref().is_some_and(|database| leads_elsewhere(database, name));
    for name in NAMES.into_iter().filter(|name| !is_named(name)) {
        files.push((format!(".qmail-{name}"), "./Maildir/\n".to_owned()));
    }
    if database.is_some() {
        let fastforward = program::sibling("fastforward");
        let cdb = root.path().join("etc/aliases.cdb");
        files.push((".qmail-default".to_owned(), format!("|{} -d {}\n", fastforward.display(), cdb.display())));
    }
    files
}

/// Has newaliases(1) make etc/aliases.cdb of etc/aliases, if somebody has written anything into that; the database.
///
/// # Errors
/// A text: which file does not count, and what to do.
fn database(root: &Root) -> Result<Option<Vec<u8>>, String> {
    let [text, cdb] = ["etc/aliases", "etc/aliases.cdb"].map(|name| root.path().join(name));
    let says_something = |line: &[u8]| !matches!(line.trim_ascii().first(), None | Some(b'#'));
    if !std::fs::read(&text).is_ok_and(|text| text.split(|b| *b == b'\n').any(says_something)) {
        return Ok(None);
    }
    let problem = |what: &str| {
        let by_hand = "run newaliases, and have fastforward(1) in etc/qmail/alias/.qmail-default";
        Err(format!("{} does not count: {}; {by_hand}", text.display(), what.trim_end()))
    };
    if std::fs::read(&cdb).is_ok_and(|file| !is_ours(&file)) {
        return problem(&format!("{} is another program's; move it away", cdb.display()));
    }
    let made = Command::new(program::sibling("newaliases")).env("QMAIL_ROOT", root.path()).stdin(Stdio::null()).output();
    match made {
        Ok(made) if made.status.success() => match std::fs::read(&cdb) {
            Ok(file) => Ok(Some(file)),
            Err(error) => problem(&format!("{}: {error}", cdb.display())),
        },
        Ok(made) => problem(&String::from_utf8_lossy(&made.stderr)),
        Err(error) => problem(&format!("newaliases cannot be run: {error}")),
    }
}

/// Was it made by newaliases(1)? Postfix may have a database of this name.
fn is_ours(file: &[u8]) -> bool {
    let records = wire::cdb::records(file);
    records.is_some_and(|records| records.iter().all(|(key, _)| matches!(key.first(), Some(b':' | b'?'))))
}

/// Is the name in the database, and not for itself?
fn leads_elsewhere(database: &[u8], name: &str) -> bool {
    let entry = wire::cdb::find(database, format!(":{name}@").as_bytes(), ENTRY_LEN_MAX).ok().flatten();
    let itself = format!("&{name}@");
    entry.is_some_and(|targets| {
        !targets.split(|b| *b == 0).any(|target| target.to_ascii_lowercase().starts_with(itself.as_bytes()))
    })
}
