//! Programs in the place of qmail-local and qmail-remote.

use std::os::unix::fs::PermissionsExt as _;

use control::replacements::{LOCAL, REMOTE};
use control::routes::has_credentials;
use control::{Id, Ids, Root, read};

use super::Findings;

/// The files alone: whoever runs this has an environment of his own.
pub(super) fn check(root: &Root, found: &mut Findings) {
    for replacement in [LOCAL, REMOTE] {
        let Some(Some(program)) = found.take(replacement.read_file(root)) else { continue };
        let file = root.control_file(replacement.file);
        let runs = std::fs::metadata(&program).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
        if !runs {
            let advice = "install it, or take the line out: the system does not start, and mail waits";
            found.error(&file, format!("{} is no program that can be run; {advice}", program.display()));
        }
    }
    if let Some(qmailr) = reader_of_routes(root) {
        routes(root, qmailr, found);
    }
}

/// qmailr, where a program runs in the place of qmail-remote: the classic qmail-remote that it ends by running reads the routes itself. `None`
/// also where everybody is the caller.
pub(super) fn reader_of_routes(root: &Root) -> Option<Id> {
    REMOTE.read_file(root).ok()??;
    root.ids().ok().filter(|ids| matches!(ids, Ids::Table(_)))?.get("qmailr")
}

/// Files that only qmail-send reads otherwise, and that have passwords: nothing would be delivered, and the log alone would say why.
fn routes(root: &Root, qmailr: Id, found: &mut Findings) {
    for name in ["authsenders", "smtproutes"] {
        let file = root.control_file(name);
        let Ok(metadata) = std::fs::metadata(&file) else { continue };
        if super::access::may_read(&metadata, qmailr) {
            continue;
        }
        let text = root.text(name).ok().flatten().unwrap_or_default();
        let is_secret = read::map_of(&text).iter().any(|(_, value)| has_credentials(value));
        let cure = if is_secret { format!("chgrp {} it, chmod 640", qmailr.gid) } else { "chmod 644 it".to_owned() };
        let problem =
            "qmail-remote cannot read it as qmailr, which the program of control/qmailremote runs it as: all its mail waits";
        found.error(&file, format!("{problem}; {cure}"));
    }
}
