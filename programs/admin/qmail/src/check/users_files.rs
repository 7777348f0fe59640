//! etc/qmail/users and etc/qmail/alias: whose mail is whose.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use control::{Ids, Root, VirtualDomains, read};
use users::{Assign, Entry};

use super::Findings;

/// Addresses that somebody must read (RFC 5321 §4.5.1).
const NEEDED_ALIASES: [&str; 2] = ["postmaster", "mailer-daemon"];

pub(super) fn check(root: &Root, found: &mut Findings) {
    let ids = root.ids().ok();
    if let Some(domains) = found.take(root.virtual_domains()) {
        virtual_domains(root, &domains, ids.as_ref(), found);
    }
    assign(root, ids.as_ref(), found);
    aliases(root, found);
}

fn virtual_domains(root: &Root, domains: &VirtualDomains, ids: Option<&Ids>, found: &mut Findings) {
    let file = root.domains_file();
    for (domain, entry) in domains.sorted() {
        if ids.is_some_and(|ids| ids.is_service(entry.id.uid)) {
            found.error(&file, format!("{domain} has the uid of a service role, and its mail is not delivered; write vmail's"));
        }
        match std::fs::metadata(entry.base()) {
            Err(error) => {
                found.error(entry.base(), format!("{error}; make it, owned by uid {}, for the mail of {domain}", entry.id.uid))
            }
            Ok(metadata) if metadata.uid() != entry.id.uid => {
                let problem = format!("belongs to uid {}, but {domain} is uid {1}'s; chown {1} it", metadata.uid(), entry.id.uid);
                found.error(entry.base(), problem);
            }
            Ok(metadata) if metadata.mode() & 0o002 != 0 => found.error(entry.base(), "everybody may write it; chmod o-w it"),
            Ok(_) => {}
        }
    }
}

fn assign(root: &Root, ids: Option<&Ids>, found: &mut Findings) {
    let (text, cdb) = (root.users().join("assign"), root.users().join("cdb"));
    database(&cdb, found);
    let Some(Some(bytes)) = found.take(read::owned_file(&text)) else { return };
    match Assign::parse(&bytes) {
        Err(error) => found.error(&text, format!("{error}; write the single dot when all lines are there")),
        Ok(parsed) => {
            for fault in parsed.faults() {
                found.error(
                    &text,
                    format!(
                        "{fault}, and mail for those that it names waits; write =local:user:uid:gid:home:dash:ext: or +prefix:…"
                    ),
                );
            }
            for entry in parsed.entries() {
                entry_is_legal(&text, &entry, ids, found);
            }
        }
    }
    let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if let (Some(text_changed), Some(cdb_changed)) = (changed(&text), changed(&cdb))
        && text_changed > cdb_changed
    {
        found.warning(&text, "is newer than users/cdb, which is what counts; run qmail-newu");
    }
}

/// users/cdb as qmail-lspawn would find it.
fn database(cdb: &Path, found: &mut Findings) {
    let Some(Some(bytes)) = found.take(read::owned_file(cdb)) else { return };
    let is_sound =
        |records: Vec<(&[u8], &[u8])>| records.iter().all(|(key, data)| key.is_empty() || Entry::from_data(data).is_some());
    if !wire::cdb::records(&bytes).is_some_and(is_sound) {
        found.error(cdb, "is damaged, and mail for users of this host waits; run qmail-newu, which makes it from users/assign");
    }
}

fn entry_is_legal(file: &Path, entry: &Entry, ids: Option<&Ids>, found: &mut Findings) {
    let user = wire::escape::visible(&entry.user);
    if !users::ids::is_usable(entry.id.uid) || !users::ids::is_usable(entry.id.gid) {
        found.error(file, format!("{user}: mail is never delivered with uid or gid 0; name another user"));
    } else if ids.is_some_and(|ids| ids.is_service(entry.id.uid)) {
        found.error(file, format!("{user}: mail is never delivered as a service role; name another user"));
    }
    if entry.home.first() != Some(&b'/') {
        found.error(file, format!("{user}: the home is no absolute path; write one that begins with /"));
    }
}

fn aliases(root: &Root, found: &mut Findings) {
    instructions(root, found);
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

/// The `.qmail` files of alias as its qmail-local would see them.
fn instructions(root: &Root, found: &mut Findings) {
    let Ok(entries) = std::fs::read_dir(root.alias()) else { return };
    let alias = root.ids().ok().and_then(|ids| ids.get("alias"));
    for entry in entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b".qmail")) {
        let (path, Ok(metadata)) = (entry.path(), std::fs::metadata(entry.path())) else {
            found.error(&entry.path(), "leads nowhere, and mail for it waits; remove it, or make what it leads to");
            continue;
        };
        if metadata.mode() & 0o002 != 0 {
            found.error(&path, "everybody may write it, so that mail for it waits; chmod o-w it");
        }
        if alias.is_some_and(|alias| !super::access::may_read(&metadata, alias)) {
            found.error(&path, "alias cannot read it, and mail for it waits; chmod 644 it");
        }
        lines(&path, found);
    }
}

fn lines(path: &Path, found: &mut Findings) {
    let Ok(Some(text)) = read::file(path) else { return };
    for (line, number) in text.split(|b| *b == b'\n').zip(1..) {
        let line = users::trim_end(line);
        let program = line.strip_prefix(b"|").map(|command| command.trim_ascii_start());
        let named =
            program.and_then(|command| command.split(u8::is_ascii_whitespace).next()).filter(|word| word.starts_with(b"/"));
        if let Some(program) = named.map(|word| Path::new(OsStr::from_bytes(word)))
            && !std::fs::metadata(program).is_ok_and(|metadata| metadata.mode() & 0o111 != 0)
        {
            let shown = wire::escape::visible(program.as_os_str().as_bytes());
            found.error(path, format!("line {number}: {shown} is no program that can be run; install it, or name another"));
        }
        if line.first().is_some_and(u8::is_ascii_whitespace) {
            found.error(
                path,
                format!("line {number}: begins with a blank, and so is read as an address to forward to; take the blank away"),
            );
        }
    }
}
