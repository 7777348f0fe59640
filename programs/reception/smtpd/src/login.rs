//! What is asked of qmail-auth for a client that logs in.

use ipc::auth::Request;
use ipc::field::Bytes;
use sasl::{Mechanism, Secret};
use smtp::server::Connection;
use std::time::Duration;

/// A login may be judged by several sources one after the other, each of which has up to nine seconds (`control/authsources`).
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A login to be judged, or a message of an exchange.
pub(crate) enum Question {
    Password { user: Box<[u8]>, password: Secret },
    Start { mechanism: Mechanism, initial: Option<Secret> },
    Step { response: Secret },
}

impl Question {
    /// `exchange`: qmail-auth's number for the one under way; a step without one is an answer to nothing, and gets none that helps.
    pub(crate) fn into_request(self, id: u64, exchange: Option<u64>, peer: &Connection) -> Request {
        let remote = std::str::from_utf8(&peer.remote_ip).ok().and_then(|ip| ip.parse().ok());
        match self {
            Self::Password { user, password } => {
                Request::Login { id, service: "smtp".into(), login: user.into_vec().into(), password, remote }
            }
            Self::Start { mechanism, initial } => Request::SaslStart {
                id,
                service: "smtp".into(),
                mechanism: mechanism.name().into(),
                initial,
                remote,
                exporter: peer.tls.as_ref().and_then(|tls| tls.exporter.map(|bytes| bytes.as_slice().into())),
                end_point: peer.tls.as_ref().and_then(|tls| tls.end_point.as_deref().map(Bytes::from)),
                certificate: peer.tls.as_ref().and_then(|tls| Some(tls.client.as_ref()?.login.as_deref()?.into())),
            },
            Self::Step { response } => Request::SaslStep { id, exchange: exchange.unwrap_or(0), response },
        }
    }
}
