//! control/acme: can certificates be had, and are they?

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use control::acme::{ACCOUNT_KEY, FILE};
use control::{Acme, Root, Service, secret};

use super::Findings;
use crate::certificate::all;

pub(super) fn check(root: &Root, found: &mut Findings) {
    let file = root.control_file(FILE);
    let has_listener = root.listen().is_ok_and(|all| all.iter().any(|listener| listener.service == Service::Acme));
    let config = match found.take(Acme::read(root)) {
        None => return,
        Some(None) if has_listener => {
            return found.error(
                &file,
                "is missing, and control/listen has a listener `acme`: nothing starts; take the line out, or write the file",
            );
        }
        Some(None) => return,
        Some(Some(config)) => config,
    };
    if !config.is_agreed {
        found.error(
            &file,
            "has no line `agree yes`, so no certificate is renewed; `qmail cert obtain HOST --agree-tos` writes it",
        );
    }
    if config.certificates.is_empty() {
        found.warning(&file, "has no line `certificate`; run `qmail cert obtain HOST`, which writes it");
    }
    if !has_listener && root.listen().is_ok() {
        let (kind, port) = match config.challenge {
            control::acme::Challenge::Http01 => ("http-01", 80),
            control::acme::Challenge::TlsAlpn01 => ("tls-alpn-01", 443),
        };
        found.error(
            &root.control_file("listen"),
            format!("has no line for the service acme, where the authority asks for {kind}, so no certificate is renewed; write `acme 0.0.0.0:{port}`"),
        );
    }
    let ids = root.ids().ok();
    if let (Some((_, key)), Some(reader)) = (&config.binding, ids.as_ref().and_then(|ids| ids.uid_of("qmailc"))) {
        found.take(secret::check_file(key, reader));
    }
    let keeper = ids.as_ref().and_then(|ids| ids.get("qmailk"));
    let prepare = |name: &str| format!("run `qmail cert renew {name}`, which makes it ready");
    let list = all(root).unwrap_or_default();
    for name in config.certificates.iter().filter_map(|hosts| hosts.first()) {
        let dir = root.tls().join(name);
        let Ok(metadata) = std::fs::metadata(&dir) else {
            found.error(&dir, format!("is missing, and control/acme has a certificate of that name; {}", prepare(name)));
            continue;
        };
        if keeper.is_some_and(|keeper| keeper.uid != metadata.uid()) {
            found.error(&dir, format!("is not qmailk's, who puts renewed certificates there; {}", prepare(name)));
        }
        let noted = list.iter().find(|known| known.dir == dir).and_then(|known| known.failure(&config));
        if let Some(failure) = noted {
            found.warning(
                &dir,
                format!(
                    "could not be renewed: {failure}; the authority must reach the listener `acme` by each host's name: see to DNS and firewall, then `qmail cert renew {name}`"
                ),
            );
        }
    }
    let key = root.tls().join(ACCOUNT_KEY);
    if !config.certificates.is_empty() && !key.exists() {
        found.error(&key, "is missing, the key of the account with the authority; `qmail cert renew` makes it");
    }
}

/// The files that control/acme names.
pub(super) fn files(root: &Root) -> Vec<PathBuf> {
    let config = Acme::read(root).ok().flatten();
    config.into_iter().flat_map(|config| [config.cafile, config.binding.map(|(_, file)| file)]).flatten().collect()
}
