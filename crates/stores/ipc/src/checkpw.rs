//! Logins that a helper judges, on checkpw.sock: qmail-auth asks, qmail-checkpw starts the helper.
//!
//! [`Request`] also goes on to the helper, whose word is a [`Verdict`]; a checkpassword program that was satisfied runs what sends
//! [`Accepted`].

use crate::field::Bytes;
use std::net::IpAddr;
use wire::Secret;

messages! {
    /// A question; `id` comes back in the answer.
    pub enum Request {
        /// Is this the password? `source` is a line of control/authsources as `control::authsources` writes it; `service` (`smtp`, `pop3`, …)
        /// and `remote` say what the login is for and where it comes from.
        1 => Check { id: u64, source: Bytes, service: Bytes, login: Bytes, password: Secret, remote: Option<IpAddr> },
    }
}

messages! {
    pub enum Answer {
        1 => Judged { id: u64, verdict: Verdict },
    }
}

messages! {
    pub enum Verdict {
        /// It is; and who that is as the source says.
        1 => Right { user: Bytes },
        /// It is not, or the account is locked or has expired: no other source may let it in.
        2 => Wrong {},
        /// The source knows nobody of this name, or cannot tell that from a wrong password.
        3 => NoSuchUser {},
        /// Not now; the text is for the log.
        4 => Unavailable { text: Bytes },
    }
}

messages! {
    /// A checkpassword program has run what it was given.
    pub enum Accepted {
        /// `user`: its USER, if it set one.
        1 => Accepted { user: Option<Bytes> },
    }
}
