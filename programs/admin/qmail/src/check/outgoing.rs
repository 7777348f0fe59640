//! What governs outgoing connections: routes with their credentials, and TLS.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use control::routes::{has_credentials, without_credentials};
use control::{Id, Ids, Root, Service, read};
use wire::escape::visible;

use super::Findings;

/// Maps of relays, how a line looks, and the port of one that names none.
const RELAYS: [(&str, &str, u16); 3] = [
    ("smtproutes", "domain:relay or domain:relay:port", 25),
    ("authsenders", "sender:relay:port|user|password", 25),
    ("qmtproutes", "domain:relay or domain:relay:port", control::routes::QMTP_PORT_DEFAULT),
];
/// Where Debian's ca-certificates puts the authorities.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

pub(super) fn check(root: &Root, found: &mut Findings) {
    let mut verifies = false;
    for (name, form, port) in RELAYS {
        let Some(Some(text)) = found.take(root.text(name)) else { continue };
        let file = root.control_file(name);
        for (number, line) in users::list_lines(&text) {
            relay(number, line, form, port, &file, found);
            circle(root, number, line, port, &file, found);
        }
        let values = read::map_of(&text);
        if values.iter().any(|(_, value)| has_credentials(value)) && name != "qmtproutes" {
            verifies = true;
            secret(root, &file, found);
        } else if let (Ok(metadata), Some(reader)) = (std::fs::metadata(&file), reader(root))
            && !super::access::may_read(&metadata, reader)
        {
            found.error(&file, "qmail-send cannot read it; chmod 644 it");
        }
    }
    verifies |= found.take(control::TlsPolicies::read(root)).is_some_and(|policies| policies.verifies());
    authorities(root, verifies, found);
}

/// A relay whose port is not what was written gets the mail at another one. Credentials are never shown.
fn relay(number: usize, line: &[u8], form: &str, default: u16, file: &Path, found: &mut Findings) {
    let shown = visible(without_credentials(line));
    let Some(colon) = line.iter().position(|b| *b == b':') else {
        return found.error(file, format!("line {number}: `{shown}` has no colon and does not count; write {form}"));
    };
    let route = without_credentials(line.get(colon.saturating_add(1)..).unwrap_or_default());
    let relay = route.rsplit(|b| *b == b']').next().unwrap_or_default();
    let Some(port) = relay.splitn(2, |b| *b == b':').nth(1) else { return };
    if !std::str::from_utf8(port).is_ok_and(|port| port.parse::<std::num::NonZeroU16>().is_ok()) {
        found.warning(
            file,
            format!("line {number}: `{shown}`: the port is no number up to 65535, and {default} is used; write the number"),
        );
    }
}

/// Whom qmail-send runs as, where that is somebody else than the caller.
fn reader(root: &Root) -> Option<Id> {
    let ids = root.ids().ok().filter(|ids| matches!(ids, Ids::Table(_)))?;
    ids.get("qmailq")
}

/// A relay that is this host: what goes there comes back.
fn circle(root: &Root, number: usize, line: &[u8], default: u16, file: &Path, found: &mut Findings) {
    let value = line.iter().position(|b| *b == b':').and_then(|colon| line.get(colon.saturating_add(1)..)).unwrap_or_default();
    let route = without_credentials(value);
    let end = if route.starts_with(b"[") { route.iter().position(|b| *b == b']').map(|at| at.saturating_add(1)) } else { None };
    let end = end.or_else(|| route.iter().position(|b| *b == b':')).unwrap_or(route.len());
    let (relay, port) = route.split_at_checked(end).unwrap_or_default();
    let port = std::str::from_utf8(port.strip_prefix(b":").unwrap_or_default())
        .ok()
        .and_then(|port| port.parse().ok())
        .unwrap_or(default);
    let me = root.me().unwrap_or_default();
    let is_us = relay.eq_ignore_ascii_case(&me) || matches!(relay, b"localhost" | b"127.0.0.1" | b"[127.0.0.1]" | b"[::1]");
    let listeners = root.listen().unwrap_or_default();
    let is_listener = listeners
        .iter()
        .any(|listener| matches!(listener.service, Service::Smtp | Service::Qmtp) && listener.address.port() == port);
    if is_us && is_listener {
        let problem = format!("line {number}: {}:{port} is this host itself, and the mail goes round in circles", visible(relay));
        found.error(file, format!("{problem}; name another relay, or no relay for MX"));
    }
}

/// A file with passwords is for qmail-send alone; where a program is in the place of qmail-remote, for qmailr's group too.
fn secret(root: &Root, file: &Path, found: &mut Findings) {
    let Ok(metadata) = std::fs::metadata(file) else { return };
    let owner = root.ids().ok().and_then(|ids| ids.get("qmailq")).map(|id| id.uid);
    let group = super::replacements::reader_of_routes(root).map(|qmailr| qmailr.gid);
    let mode = if group.is_some() { "640" } else { "600" };
    let group_id = group.map_or_else(String::new, |gid| format!(":{gid}"));
    let cure = owner.map_or_else(|| format!("chmod {mode} it"), |uid| format!("chown {uid}{group_id} it, chmod {mode}"));
    let forbidden = if group == Some(metadata.gid()) { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        found.error(file, format!("has passwords in it, and others than its owner may reach it; {cure}"));
    }
    if owner.is_some_and(|uid| uid != metadata.uid()) && metadata.mode() & 0o044 == 0 {
        found.error(file, format!("qmail-send cannot read it; {cure}"));
    }
}

fn authorities(root: &Root, verifies: bool, found: &mut Findings) {
    let name = root.control_file("tlscafile");
    let Some(remote) = control::Remote::read(root).ok() else { return };
    match remote.tlscafile {
        Some(file) => match found.take(read::file(&file)) {
            Some(None) => found.error(&name, format!("{} does not exist; name a file of certificates (PEM)", file.display())),
            Some(Some(text)) if !text.windows(27).any(|part| part == b"-----BEGIN CERTIFICATE-----") => {
                found.error(&name, format!("{} has no certificate (PEM) in it; name another file", file.display()));
            }
            _ => {}
        },
        None if verifies && !Path::new(SYSTEM_AUTHORITIES).exists() => {
            let problem = "is missing, and no certificate will do where one is verified; install ca-certificates";
            found.warning(Path::new(SYSTEM_AUTHORITIES), problem);
        }
        None => {}
    }
}
