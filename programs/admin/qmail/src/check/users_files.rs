//! etc/qmail/users and etc/qmail/alias: whose mail is whose.

use std::os::unix::fs::MetadataExt as _;

use control::{Ids, Root, VirtualDomains, read};
use users::{Assign, Entry};

use super::Findings;

/// Addresses that somebody must read (RFC 5321 §4.5.1).
const NEEDED_ALIASES: [&str; 2] = ["postmaster", "mailer-daemon"];

pub(super) fn check(root: &Root, found: &mut Findings) {
    let ids = root.ids().ok();
    if let Some(domains) = found.take(root.virtual_domains()) {
        virtual_domains(root, &domains, ids.as_ref(), found);
        overlaps(root, &domains, found);
    }
    assign(root, ids.as_ref(), found);
    aliases(root, found);
}

fn virtual_domains(root: &Root, domains: &VirtualDomains, ids: Option<&Ids>, found: &mut Findings) {
    let file = root.domains_file();
    for (domain, entry) in domains.sorted() {
        if ids.is_some_and(|ids| ids.is_service(entry.id.uid)) {
            found.error(&file, format!("{domain} has the uid of a service role; its mail is not delivered. Use vmail's"));
        }
        match std::fs::metadata(entry.base()) {
            Err(error) => {
                found.error(entry.base(), format!("{error}; make it, owned by uid {}, for the mail of {domain}", entry.id.uid))
            }
            Ok(metadata) if metadata.uid() != entry.id.uid => {
                let problem = format!("belongs to uid {}, but {domain} is uid {}'s (chown)", metadata.uid(), entry.id.uid);
                found.error(entry.base(), problem);
            }
            Ok(metadata) if metadata.mode() & 0o002 != 0 => found.error(entry.base(), "everybody may write it (chmod o-w)"),
            Ok(_) => {}
        }
    }
}

/// In users/domains and elsewhere: the virtual domain wins, and that is surely not meant.
fn overlaps(root: &Root, domains: &VirtualDomains, found: &mut Findings) {
    for name in ["locals", "virtualdomains"] {
        let Some(Some(lines)) = found.take(root.lines(name)) else { continue };
        for line in lines {
            let host = line.split(|b| *b == b':').next().unwrap_or_default();
            if domains.get(host).is_some() {
                let shown = wire::escape::visible(host);
                found.error(
                    &root.control_file(name),
                    format!("{shown} is in users/domains too, which wins; take it out of one of them"),
                );
            }
        }
    }
}

fn assign(root: &Root, ids: Option<&Ids>, found: &mut Findings) {
    let (text, cdb) = (root.users().join("assign"), root.users().join("cdb"));
    let Some(Some(bytes)) = found.take(read::owned_file(&text)) else { return };
    match Assign::parse(&bytes) {
        Err(error) => found.error(&text, error.to_string()),
        Ok(parsed) => {
            for fault in parsed.faults() {
                found.error(&text, format!("{fault}; mail for those that it names waits"));
            }
            for entry in parsed.entries() {
                entry_is_legal(&text, &entry, ids, found);
            }
        }
    }
    let changed = |path: &std::path::Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if let (Some(text_changed), Some(cdb_changed)) = (changed(&text), changed(&cdb))
        && text_changed > cdb_changed
    {
        found.warning(&text, "is newer than users/cdb, which is what counts; run qmail-newu");
    }
}

fn entry_is_legal(file: &std::path::Path, entry: &Entry, ids: Option<&Ids>, found: &mut Findings) {
    let user = wire::escape::visible(&entry.user);
    if !users::ids::is_usable(entry.id.uid) || !users::ids::is_usable(entry.id.gid) {
        found.error(file, format!("{user}: mail is never delivered with uid or gid 0; name another user"));
    } else if ids.is_some_and(|ids| ids.is_service(entry.id.uid)) {
        found.error(file, format!("{user}: mail is never delivered as a service role; name another user"));
    }
    if entry.home.first() != Some(&b'/') {
        found.error(file, format!("{user}: the home must be an absolute path"));
    }
}

fn aliases(root: &Root, found: &mut Findings) {
    let is_default = root.alias().join(".qmail-default").exists();
    for name in NEEDED_ALIASES {
        let path = root.alias().join(format!(".qmail-{name}"));
        if !path.exists() && !is_default {
            found.warning(
                &path,
                format!("is missing: mail for {name} is refused, though every mail host must take it; write where it goes"),
            );
        }
    }
}
