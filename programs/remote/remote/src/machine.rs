//! What is spoken on a connection: SMTP, LMTP, or QMTP, whose machines take the same inputs and return the same actions.

use smtp::client::{Action, Client, Input};
use smtp::reply::Offers;

use crate::terms::Terms;

/// One conversation.
#[derive(Debug)]
pub enum Machine {
    /// Or LMTP, as the terms say.
    Smtp(Box<Client>),
    Qmtp(Box<qmtp::client::Client>),
}

impl Machine {
    /// A connection that was just established, and the actions to start with.
    #[must_use]
    pub fn new(helo: &str, peer: &str, terms: &Terms, skip_tls: bool) -> (Self, Vec<Action>) {
        if terms.is_qmtp {
            let (client, actions) = qmtp::client::Client::new(peer);
            return (Self::Qmtp(Box::new(client)), actions);
        }
        let (client, actions) = Client::new(helo, peer, terms.security(skip_tls));
        (Self::Smtp(Box::new(client)), actions)
    }

    /// One step.
    pub fn handle(&mut self, input: Input<'_>) -> Vec<Action> {
        match self {
            Self::Smtp(client) => client.handle(input),
            Self::Qmtp(client) => client.handle(input),
        }
    }

    /// What the server announced.
    #[must_use]
    pub fn offers(&self) -> &Offers {
        match self {
            Self::Smtp(client) => client.offers(),
            Self::Qmtp(client) => client.offers(),
        }
    }

    /// By QMTP: has the other side begun an answer, ever?
    #[must_use]
    pub fn has_answered(&self) -> bool {
        match self {
            Self::Smtp(_) => true,
            Self::Qmtp(client) => client.has_answered(),
        }
    }

    /// Was it to be QMTP, and did the other side not keep to that?
    #[must_use]
    pub fn broke_qmtp(&self) -> bool {
        match self {
            Self::Smtp(_) => false,
            Self::Qmtp(client) => client.is_faulty(),
        }
    }

    /// May another transaction begin?
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        match self {
            Self::Smtp(client) => client.is_reusable(),
            Self::Qmtp(client) => client.is_ready(),
        }
    }
}
