//! Whose the control files are, and who may read and write them.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use control::{Id, Ids, Root};
use users::ids::SERVICE_ROLES;

use super::Findings;

/// Files that qmail-start and qmail-lspawn alone read, as root; and those with secrets, whose own checks know their readers.
const NOT_FOR_EVERY_ROLE: [&str; 7] =
    ["accounts", "accountspassword", "authsenders", "defaultdelivery", "smtproutes", "uidmin", "vmailprograms"];

pub(super) fn check(root: &Root, found: &mut Findings) {
    let Ok(entries) = std::fs::read_dir(root.control()) else { return };
    let ids = root.ids().ok();
    for entry in entries.flatten() {
        let (path, Some(name)) = (entry.path(), entry.file_name().to_str().map(str::to_owned)) else { continue };
        if !super::control_files::is_known(root, &name) {
            continue;
        }
        match std::fs::metadata(&path) {
            Err(error) => found.error(&path, format!("cannot be looked at: {error}; remove it, or put a file in its place")),
            Ok(metadata) if metadata.is_file() => file(root, &path, &name, &metadata, ids.as_ref(), found),
            // Those who read it say so.
            Ok(_) => {}
        }
    }
}

fn file(root: &Root, path: &Path, name: &str, metadata: &Metadata, ids: Option<&Ids>, found: &mut Findings) {
    if metadata.mode() & 0o002 != 0 {
        found.error(path, "everybody may write it, and so decide about the mail of this host; chmod o-w it");
    }
    let caller = rustix::process::geteuid().as_raw();
    let is_trusted = metadata.uid() == 0 || metadata.uid() == caller || ids.is_some_and(|ids| ids.is_service(metadata.uid()));
    if !is_trusted {
        let problem = format!("belongs to uid {}, who decides by it about the mail of this host", metadata.uid());
        found.warning(path, format!("{problem}; chown root it"));
    }
    let is_private = NOT_FOR_EVERY_ROLE.contains(&name)
        || super::authnet::secrets(root).iter().any(|secret| secret == path)
        || super::acme::files(root).iter().any(|secret| secret == path);
    let Some(Ids::Table(_)) = ids.filter(|_| !is_private) else { return };
    let roles = SERVICE_ROLES.iter().filter_map(|role| Some((*role, ids?.get(role)?)));
    let kept_out: Vec<&str> = roles.filter(|(_, id)| !may_read(metadata, *id)).map(|(role, _)| role).collect();
    if !kept_out.is_empty() {
        let problem = format!("has mode {:o}, and cannot be read by {}", metadata.mode() & 0o7777, kept_out.join(", "));
        found.error(path, format!("{problem}; chmod 644 it"));
    }
}

/// By its owner, its group or everybody, in this order.
pub(super) fn may_read(metadata: &Metadata, id: Id) -> bool {
    let bit = match (metadata.uid() == id.uid, metadata.gid() == id.gid) {
        (true, _) => 0o400,
        (false, true) => 0o040,
        (false, false) => 0o004,
    };
    metadata.mode() & bit != 0
}
