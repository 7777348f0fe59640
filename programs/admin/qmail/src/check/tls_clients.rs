//! control/tlsclients and control/clientca.pem: for which certificates clients relay or log in.

use control::tlsclients::{AUTHORITIES, FILE};
use control::{Root, TlsClients};

use super::Findings;

pub(super) fn check(root: &Root, found: &mut Findings) {
    let (list, authorities) = (root.control_file(FILE), root.control_file(AUTHORITIES));
    let pem = found.take(TlsClients::authorities(root)).unwrap_or_default();
    let has_authorities = match certificates::authorities(&pem) {
        Ok(count) => count > 0,
        Err(problem) => return found.error(&authorities, format!("{problem}; put certificates (PEM) there")),
    };
    // What is wrong with a line is said by those who read it.
    let Ok(Some(clients)) = TlsClients::read(root) else {
        if has_authorities && !list.exists() {
            found.warning(
                &authorities,
                format!("is not used: without control/{FILE} no client is asked for a certificate; write that, or remove this"),
            );
        }
        return;
    };
    if !pem.is_empty() && !has_authorities {
        found.error(&authorities, "has no certificate (PEM) in it; put one there, or remove it");
    } else if clients.needs_authorities() && !has_authorities {
        found.warning(
            &list,
            format!("names in it are true only under an authority; put that into control/{AUTHORITIES}, or write fingerprints"),
        );
    }
    let domains = root.virtual_domains().unwrap_or_default();
    for account in clients.accounts() {
        let is_ours = account.domain().is_some_and(|domain| domains.get(domain).is_some());
        if !is_ours {
            found.warning(&list, format!("{account} is in no virtual domain of this host, and nobody logs in as that; make the account, or take the line out"));
        }
    }
}
