//! Which recipients have their mailbox behind an LMTP server (`control/lmtproutes`): the worker is told the server's socket and the
//! mailbox's name there, and stays what it was for everything else.
//!
//! In doubt the delivery waits: mail for a mailbox elsewhere is never written into a file here because a line could not be read.

use control::{LmtpPlace, LmtpRoutes};
use ipc::worker::Lmtp;
use wire::Address;

use crate::service::{Service, log};
use crate::target::{Key, Target};
use crate::task::Ask;

const UNREADABLE: &str = "control/lmtproutes cannot be used now (#4.3.5)";
const NOT_A_SOCKET: &str = "control/lmtproutes sends a domain of this system's own users to a host; their mail goes through a Unix \
    socket only, write DOMAIN:unix:/PATH (#4.3.5)";
const TOO_LONG: &str = "the address gets too long for the LMTP server (#4.3.5)";

impl Service {
    /// The LMTP server of a task's recipient, if it is a delivery and there is one.
    ///
    /// # Errors
    /// Why the delivery has to wait.
    pub(crate) fn lmtp(&mut self, task: u64) -> Result<Option<Lmtp>, &'static str> {
        let Some(task) = self.tasks.get(&task).filter(|task| matches!(task.ask, Ask::Deliver { .. })) else { return Ok(None) };
        let Some(target) = &task.target else { return Ok(None) };
        let error = self.lmtproutes.get().err();
        if let Some(error) = error {
            log(&format!("warning: {error}"));
        }
        let routes = self.lmtproutes.last().ok_or(UNREADABLE)?;
        place(routes, target, &task.address)
    }
}

/// By the canonical name of a virtual domain, or by the domain of a system user's address.
fn place(routes: &LmtpRoutes, target: &Target, address: &Address) -> Result<Option<Lmtp>, &'static str> {
    let domain = match &target.key {
        Key::Virtual(domain, ..) => domain.as_bytes(),
        // What alias keeps is nobody's mailbox.
        Key::System(_) if target.recipient.user[..] == b"alias"[..] => return Ok(None),
        Key::System(_) => address.domain().unwrap_or_default(),
    };
    let socket = match routes.lookup(domain) {
        None => return Ok(None),
        Some(LmtpPlace::Host { .. }) => return Err(NOT_A_SOCKET),
        Some(LmtpPlace::Socket(path)) => path,
    };
    let recipient = &target.recipient;
    // RFC 5233: the detail of an address stands behind a plus, whatever it was before.
    let plus: &[u8] = if recipient.ext.is_empty() { b"" } else { b"+" };
    let mailbox = Address::join(&[&recipient.user[..], plus, &recipient.ext[..]].concat(), domain).map_err(|_| TOO_LONG)?;
    Ok(Some(Lmtp { socket: socket.clone().into(), mailbox }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::Id;
    use ipc::worker::Recipient;
    use wire::Domain;

    #[test]
    fn who_has_a_mailbox_elsewhere_and_under_which_name() {
        let routes = LmtpRoutes::parse(b"v.example:unix:/run/v\nhere.example:unix:/run/s\nfar.example:store:24\n").unwrap();
        let target = |domain: Option<&str>, user: &str, ext: &str| {
            let id = Id { uid: 1, gid: 1 };
            let key = match domain {
                Some(domain) => Key::Virtual(Domain::new(domain.as_bytes()).unwrap(), id, "/m".into()),
                None => Key::System(id),
            };
            let recipient = Recipient {
                user: user.into(),
                home: "/h".into(),
                local: user.into(),
                dash: if ext.is_empty() { "" } else { "-" }.into(),
                ext: ext.into(),
                domain: "any".into(),
            };
            Target { key, id, base: None, recipient, may_exec: false }
        };
        for (target, address, expected) in [
            (target(Some("v.example"), "joe", ""), "joe@alias.example", Ok(Some(("/run/v", "joe@v.example")))),
            (target(Some("v.example"), "joe", "a-b"), "joe-a-b@v.example", Ok(Some(("/run/v", "joe+a-b@v.example")))),
            (target(Some("w.example"), "joe", ""), "joe@v.example", Ok(None)),
            (target(Some("far.example"), "joe", ""), "joe@far.example", Err(NOT_A_SOCKET)),
            (target(None, "ann", ""), "Ann@HERE.example", Ok(Some(("/run/s", "ann@HERE.example")))),
            (target(None, "ann", "x"), "ann-x@here.example", Ok(Some(("/run/s", "ann+x@here.example")))),
            (target(None, "alias", "info"), "info@here.example", Ok(None)),
            (target(None, "ann", ""), "ann@v2.example", Ok(None)),
        ] {
            let address = Address::new(address.as_bytes()).unwrap();
            let found = place(&routes, &target, &address);
            let expected = expected.map(|place| {
                place.map(|(socket, mailbox)| Lmtp { socket: socket.into(), mailbox: Address::new(mailbox.as_bytes()).unwrap() })
            });
            assert_eq!(found, expected, "{address}");
        }
    }
}
