//! What qmail-popup reads when it starts.

use std::net::IpAddr;
use std::time::Duration;

use users::Networks;

use crate::tlsclients::TlsClients;
use crate::{ControlError, Root};

/// Sessions in all, divided among the workers (`concurrencypop3`).
const SESSIONS_DEFAULT: u64 = 10_000;
/// Two descriptors a session, of the 65,536 that the process may have.
const SESSIONS_MAX: u64 = 30_000;
/// Sessions of one client address in one worker (`concurrencypop3ip`): a household behind one address, not a whole botnet.
const SESSIONS_PER_ADDRESS_DEFAULT: u64 = 50;
/// Seconds without a byte from the client (`timeoutpop3`), as the classic program has it; RFC 1939 §3 asks for 600 at least.
const IDLE_DEFAULT_S: u64 = 1200;
/// A longer time would not fit a timer.
const IDLE_MAX_S: u64 = 86_400;

/// The configuration of a worker.
#[derive(Debug, Clone)]
pub struct Popup {
    /// Networks whose clients may send a password without TLS.
    pub cleartext: Networks,
    /// Names of SASL mechanisms, and APOP; `None`: the default ones.
    pub mechanisms: Option<Vec<Vec<u8>>>,
    /// The name of this host, for the timestamp of APOP; empty if there is none.
    pub me: Vec<u8>,
    /// Do addresses that open a mailbox may relay (`control/popbeforesmtp` is not 0)?
    pub opens_relay: bool,
    /// `None`: clients are not asked for certificates.
    pub tls_clients: Option<TlsClients>,
    /// PEM of the authorities for them.
    pub client_authorities: Vec<u8>,
    /// Of all workers together.
    pub sessions_max: usize,
    /// Of each worker: up to so many times the number of workers in all.
    pub sessions_per_address_max: usize,
    pub idle: Duration,
}

impl Popup {
    /// Reads the control files.
    ///
    /// # Errors
    /// Unreadable or malformed; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let count = |name: &str, default: u64, max: u64| {
            let value = root.int(name)?.unwrap_or(default).min(max);
            Ok::<usize, ControlError>(usize::try_from(value).unwrap_or(usize::MAX))
        };
        let idle_s = root.int("timeoutpop3")?.unwrap_or(IDLE_DEFAULT_S).clamp(1, IDLE_MAX_S);
        Ok(Self {
            cleartext: root.authcleartext()?,
            mechanisms: root.lines("authmechanisms")?,
            me: root.line("me")?.unwrap_or_default(),
            opens_relay: root.int("popbeforesmtp")?.unwrap_or(0) > 0,
            tls_clients: TlsClients::read(root)?,
            client_authorities: TlsClients::authorities(root)?,
            sessions_max: count("concurrencypop3", SESSIONS_DEFAULT, SESSIONS_MAX)?,
            sessions_per_address_max: count("concurrencypop3ip", SESSIONS_PER_ADDRESS_DEFAULT, SESSIONS_MAX)?,
            idle: Duration::from_secs(idle_s),
        })
    }

    /// May this client send a password over a connection without TLS?
    #[must_use]
    pub fn allows_cleartext(&self, client: IpAddr) -> bool {
        self.cleartext.contains(client.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_bounds_and_networks() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        let popup = Popup::read(&root).unwrap();
        assert_eq!((popup.sessions_max, popup.sessions_per_address_max, popup.idle.as_secs()), (10_000, 50, 1200));
        for (address, allowed) in [("127.0.0.1", true), ("::1", true), ("::ffff:127.1.2.3", true), ("192.0.2.1", false)] {
            assert_eq!(popup.allows_cleartext(address.parse().unwrap()), allowed, "{address}");
        }
        for (name, text) in [
            ("concurrencypop3", "99999999999"),
            ("concurrencypop3ip", "0"),
            ("timeoutpop3", "0"),
            ("authcleartext", "192.0.2.0/24\n"),
        ] {
            std::fs::write(root.control_file(name), text).unwrap();
        }
        let popup = Popup::read(&root).unwrap();
        assert_eq!((popup.sessions_max, popup.sessions_per_address_max, popup.idle.as_secs()), (30_000, 0, 1));
        assert!(popup.allows_cleartext("192.0.2.1".parse().unwrap()) && !popup.allows_cleartext("127.0.0.1".parse().unwrap()));
        std::fs::write(root.control_file("authcleartext"), "everybody\n").unwrap();
        assert!(Popup::read(&root).unwrap_err().is_temporary());
    }
}
