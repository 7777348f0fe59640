//! control/authsources: what is named there, as qmail-checkpw would use it.

use control::Root;
use control::authsources::{self, FILE, Source};

use super::Findings;

pub(super) fn check(root: &Root, found: &mut Findings) {
    let Some(sources) = found.take(authsources::load(root)) else { return };
    let file = root.control_file(FILE);
    if sources.is_empty() {
        found.warning(&file, "names no source: nobody logs in; write `accounts`, or remove the file");
    }
    for source in &sources {
        match source {
            Source::Accounts => {}
            Source::Checkpassword { program, .. } => drop(found.take(authsources::check_program(program))),
            Source::Shadow => readable(root, "etc/shadow", found),
            Source::Pam { service } => readable(root, &format!("etc/pam.d/{service}"), found),
        }
    }
    let offers = root.lines("authmechanisms").ok().flatten();
    let has_scram = offers.is_none_or(|lines| lines.iter().any(|line| !matches!(line.as_slice(), b"PLAIN" | b"LOGIN")));
    if has_scram && sources.iter().any(Source::needs_checkpw) {
        let text = "offers mechanisms that only `accounts` can judge, and clients prefer them; write PLAIN and LOGIN, since other sources count";
        found.warning(&root.control_file("authmechanisms"), text);
    }
}

/// What a source reads is root's alone.
fn readable(root: &Root, path: &str, found: &mut Findings) {
    let path = root.path().join(path);
    if let Some(None) = found.take(control::read::owned_file(&path)) {
        found.error(&path, "does not exist; control/authsources needs it");
    }
}
