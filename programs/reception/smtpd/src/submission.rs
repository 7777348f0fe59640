//! Senders and headers of those who log in: qmail-auth says whose an address is, this asks and completes the header (RFC 6409).
//!
//! A question that nobody answers is a temporary refusal (promise 8). Every message asks anew: the answer costs some microseconds, and what
//! the administrator changes counts at once.

use crate::now;
use ipc::auth::{Answer, Limit, Permission, Request};
use ipc_async::Client;
use message::inject::Names;
use message::submission::{Facts, claims, complete};
use smtp::server::{Config, HeaderAnswer, SenderAnswer, SendingLimit};
use std::sync::atomic::{AtomicU64, Ordering};
use wire::Address;

/// Longest header whose addresses were completed.
const COMPLETED_LEN_MAX: usize = 4 * smtp::server::HEADER_LEN_MAX;

/// What is to be judged.
pub(crate) enum Judging {
    Sender(Address),
    Header { header: Vec<u8>, recipients: u64 },
}

/// Who judges, for one session.
pub(crate) struct Judge<'a> {
    pub(crate) directory: &'a Client<Answer>,
    pub(crate) config: &'a Config,
    /// Who is logged in; nobody for a network that may submit without.
    pub(crate) login: Option<&'a [u8]>,
    /// `None`: addresses stay as they are.
    pub(crate) names: Option<&'a Names>,
}

impl Judge<'_> {
    /// May the login send as this address?
    pub(crate) async fn sender(&self, address: Address) -> SenderAnswer {
        let login = self.login.unwrap_or_default();
        match self.ask(|id| Request::MaySend { id, login: login.into(), address }).await {
            Permission::Yes {} => SenderAnswer::Yes,
            Permission::NotYours {} => SenderAnswer::NotYours,
            Permission::Limited { limit } => SenderAnswer::Limited(sending_limit(&limit)),
            Permission::Temporary {} => SenderAnswer::Temporary,
        }
    }

    /// Are the authors the login's own, and may it send so much more? The header that goes on.
    pub(crate) async fn header(&self, header: Vec<u8>, recipients: u64) -> HeaderAnswer {
        // First: what goes on is judged.
        let header = match self.names {
            None => header,
            Some(names) => match names.complete(&header, COMPLETED_LEN_MAX) {
                Some(header) => header,
                None => return HeaderAnswer::TooLarge,
            },
        };
        let Some(login) = self.login else { return self.completed(&header, None) };
        if self.config.submission.binds_senders {
            let Ok(mut authors) = claims(&header) else { return HeaderAnswer::Unclear };
            authors.sort_unstable();
            authors.dedup();
            for author in authors {
                match self.sender(author).await {
                    SenderAnswer::Yes => {}
                    SenderAnswer::NotYours => return HeaderAnswer::NotYours,
                    SenderAnswer::Limited(limit) => return HeaderAnswer::Limited(limit),
                    SenderAnswer::Temporary => return HeaderAnswer::Temporary,
                }
            }
        }
        let recipients = u32::try_from(recipients).unwrap_or(u32::MAX);
        match self.ask(|id| Request::MaySubmit { id, login: login.into(), recipients }).await {
            Permission::Yes {} => self.completed(&header, own_address(login, &self.config.me).as_ref()),
            Permission::Limited { limit } => HeaderAnswer::Limited(sending_limit(&limit)),
            Permission::NotYours {} | Permission::Temporary {} => HeaderAnswer::Temporary,
        }
    }

    fn completed(&self, header: &[u8], author: Option<&Address>) -> HeaderAnswer {
        let unique = unique();
        let facts = Facts { now_s: now().unix_s, unique: &unique, host: &self.config.me, author };
        HeaderAnswer::Accepted { header: complete(header, &facts) }
    }

    async fn ask(&self, question: impl FnOnce(u64) -> Request) -> Permission {
        match self.directory.ask(question).await {
            Ok((Answer::Permission { permission, .. }, _)) => permission,
            _ => Permission::Temporary {},
        }
    }
}

fn sending_limit(limit: &Limit) -> SendingLimit {
    match limit {
        Limit::MessagesPerHour {} => SendingLimit::MessagesPerHour,
        Limit::RecipientsPerHour {} => SendingLimit::RecipientsPerHour,
        Limit::MessagesPerDay {} => SendingLimit::MessagesPerDay,
        Limit::RecipientsPerDay {} => SendingLimit::RecipientsPerDay,
    }
}

/// The login is an address, or a name on this host.
fn own_address(login: &[u8], me: &[u8]) -> Option<Address> {
    let address = if login.contains(&b'@') { Address::new(login) } else { Address::join(login, me) };
    address.ok()
}

/// For a Message-ID: nobody else has this process number with this count, and after a restart the random number differs.
fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Without it the time, process and count tell messages apart as long as the clock does not step.
    let random = sys::random::bytes16().unwrap_or_default();
    format!("{}.{count}.{:032x}", std::process::id(), u128::from_ne_bytes(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_has_an_address_and_every_id_is_another() {
        assert_eq!(own_address(b"bob@x", b"mx.example").unwrap().as_bytes(), b"bob@x");
        assert_eq!(own_address(b"bob", b"mx.example").unwrap().as_bytes(), b"bob@mx.example");
        assert_eq!(own_address(b"bob\n", b"mx.example"), None);
        let (a, b) = (unique(), unique());
        assert!(a != b && a.bytes().all(|b| b.is_ascii_graphic()) && a.rsplit('.').next() != b.rsplit('.').next());
    }
}
