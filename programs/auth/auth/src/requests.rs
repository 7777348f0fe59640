//! What has come from a connection and is not answered yet, and what each connection may say.

use crate::clients::Rights;
use ipc::Message as _;
use ipc::admin::AccountRequest;
use ipc::auth::Request;

/// What an administrator of a domain logs in for.
pub(crate) const MANAGE_SERVICE: &[u8] = b"admin";

/// A request that its connection may make.
pub(crate) enum Said {
    Ask(Request),
    Admin(AccountRequest),
}

impl Said {
    /// `None` for what this connection may not say: a fault or an attack, which ends it and changes nothing.
    pub(crate) fn understand(rights: Rights, is_manager: bool, datagram: &[u8]) -> Option<Self> {
        if rights.manage && is_manager {
            return AccountRequest::decode(datagram).ok().map(Self::Admin);
        }
        if rights.manage {
            let request = Request::decode(datagram).ok()?;
            let may = matches!(&request, Request::Login { service, .. } if &service[..] == MANAGE_SERVICE);
            return may.then_some(Self::Ask(request));
        }
        if rights.admin {
            return AccountRequest::decode(datagram).ok().map(Self::Admin);
        }
        let request = Request::decode(datagram).ok()?;
        let may = match &request {
            Request::Recipient { .. } | Request::Fits { .. } => rights.network || rights.queue,
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
