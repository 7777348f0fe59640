//! What a client may do for its address or its certificate: relay, log in without TLS, speak for others.

use control::{ClientRules, Networks, Origin, Smtpd, TlsClients};
use ipc::auth::{Answer, Request};
use ipc_async::Client;
use smtp::server::{ListedClient, Logins};
use tls::Shown;

/// The networks of the control files.
#[derive(Debug, Default)]
pub(crate) struct Trust {
    pub(crate) relayclients: Networks,
    /// For clients of the service `smtp`.
    pub(crate) rules: ClientRules,
    /// Who may send a password without TLS.
    cleartext: Networks,
    /// Who may say for whom it stands.
    pub(crate) xclient: Networks,
    /// Is qmail-auth to be asked who has opened a mailbox?
    pop_before_smtp: bool,
    /// Whose certificates count, if clients are asked for them.
    clients: TlsClients,
}

impl Trust {
    pub(crate) fn new(control: &Smtpd) -> Self {
        Self {
            relayclients: control.relayclients.clone(),
            rules: control.client_rules.clone(),
            cleartext: control.cleartext.clone(),
            xclient: control.xclient.clone(),
            pop_before_smtp: control.pop_before_smtp,
            clients: control.tls_clients.clone().unwrap_or_default(),
        }
    }

    /// What the certificate gives that a client has shown; `Err`: nothing, though it is listed, for the reason in the text.
    pub(crate) fn listed(&self, shown: &Shown) -> Result<Option<Box<ListedClient>>, &'static str> {
        match shown {
            Shown::Certificate(certificate) => {
                let rights = self.clients.rights(&certificate.fingerprints, &certificate.names);
                let (relay, login) = (rights.relay.map(Into::into), rights.login.map(Into::into));
                Ok((relay.is_some() || login.is_some()).then(|| Box::new(ListedClient { relay, login })))
            }
            Shown::Useless { fingerprint, why } => {
                let is_listed = self.clients.rights(&[*fingerprint], &[]) != control::tlsclients::Rights::default();
                if is_listed { Err(why) } else { Ok(None) }
            }
        }
    }

    pub(crate) fn logins(&self, origin: Origin) -> Logins {
        if origin.allows_cleartext(&self.cleartext) { Logins::Offered } else { Logins::NotInClear }
    }

    /// POP-before-SMTP; no if qmail-auth does not answer in time. An IPC of some microseconds, and only where the file is set.
    pub(crate) async fn has_opened_a_mailbox(&self, directory: &Client<Answer>, origin: Origin) -> bool {
        if !self.pop_before_smtp || origin.client.is_loopback() {
            return false;
        }
        let address = origin.client;
        let answer = directory.ask(|id| Request::MayRelay { id, address }).await;
        matches!(answer, Ok((Answer::Relay { allowed: true, .. }, _)))
    }

    /// May the client that XCLIENT told relay, and log in? Nobody knows who has no address.
    pub(crate) async fn judge(&self, directory: &Client<Answer>, told: Option<Origin>) -> (bool, Logins) {
        let Some(origin) = told else { return (false, Logins::NotInClear) };
        let relays = origin.is_in(&self.relayclients) || self.has_opened_a_mailbox(directory, origin).await;
        (relays, self.logins(origin))
    }
}
