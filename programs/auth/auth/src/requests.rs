//! What has come from a connection and is not answered yet, and what each connection may say.

use crate::clients::Rights;
use ipc::Message as _;
use ipc::admin::AccountRequest;
use ipc::auth::Request;

/// A request that its connection may make.
pub(crate) enum Said {
    Ask(Request),
    Admin(AccountRequest),
}

impl Said {
    /// `None` for what this connection may not say: a fault or an attack, which ends it and changes nothing.
    pub(crate) fn understand(rights: Rights, datagram: &[u8]) -> Option<Self> {
        if rights.admin {
            return AccountRequest::decode(datagram).ok().map(Self::Admin);
        }
        let request = Request::decode(datagram).ok()?;
        let may = match &request {
            Request::Recipient { .. } => rights.network || rights.queue,
            Request::Login { .. } | Request::Apop { .. } | Request::SaslStart { .. } | Request::SaslStep { .. } => rights.network,
            Request::MaySend { .. } | Request::MaySubmit { .. } | Request::Arrived { .. } | Request::MayRelay { .. } => {
                rights.network
            }
            Request::Route { .. } => rights.queue,
        };
        may.then_some(Self::Ask(request))
    }
}

/// What has come and is not answered yet.
#[derive(Default)]
pub(crate) struct Heards {
    pub(crate) requests: Vec<(u64, Said)>,
    /// Bytes of their datagrams.
    pub(crate) len: usize,
}
