//! control/authsources: what is named there, as qmail-checkpw and qmail-authnet would use it.

use control::Root;
use control::authsources::{self, FILE, Source};

use super::{Findings, authnet};

pub(super) fn check(root: &Root, found: &mut Findings) {
    let Some(sources) = found.take(authsources::load(root)) else { return };
    let file = root.control_file(FILE);
    if sources.is_empty() {
        found.warning(&file, "names no source: nobody logs in; write `accounts`, or remove the file");
    } else if sources.iter().all(|source| *source == Source::Oauth) {
        found.warning(&file, "names no source of passwords, and only tokens log in; write `accounts`, too, unless that is meant");
    }
    for source in &sources {
        match source {
            // authnet looks at the files of the last two.
            Source::Accounts | Source::Ldap | Source::Oauth => {}
            Source::Checkpassword { program, .. } => drop(found.take(authsources::check_program(program))),
            Source::Shadow => readable(root, "etc/shadow", found),
            Source::Pam { service } => readable(root, &format!("etc/pam.d/{service}"), found),
        }
    }
    let offers = root.lines("authmechanisms").ok().flatten();
    let is_of_accounts = |line: &Vec<u8>| !matches!(line.as_slice(), b"PLAIN" | b"LOGIN" | b"OAUTHBEARER" | b"XOAUTH2");
    let has_scram = offers.is_none_or(|lines| lines.iter().any(is_of_accounts));
    if has_scram && sources.iter().any(|source| source.needs_checkpw() || *source == Source::Ldap) {
        let text = "offers mechanisms that only `accounts` can judge, though other sources count, and clients prefer them; write PLAIN and LOGIN";
        found.warning(&root.control_file("authmechanisms"), text);
    }
    authnet::check(root, &sources, found);
}

/// What a source reads is root's alone.
fn readable(root: &Root, path: &str, found: &mut Findings) {
    let path = root.path().join(path);
    if let Some(None) = found.take(control::read::owned_file(&path)) {
        found.error(&path, "does not exist, and control/authsources needs it; make it, or take the source out");
    }
}
