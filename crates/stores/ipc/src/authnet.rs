//! Logins that are judged elsewhere, on authnet.sock: qmail-auth asks, qmail-authnet asks the servers.

use crate::field::Bytes;
use std::net::IpAddr;
use wire::Secret;

messages! {
    /// A question; `id` comes back in the answer. `service` (`smtp`, `pop3`) and `remote` say what the login is for and where it comes from.
    pub enum Request {
        /// Is this the password? `source` is the word of control/authsources: `ldap`.
        1 => Check { id: u64, source: Bytes, service: Bytes, login: Bytes, password: Secret, remote: Option<IpAddr> },
        /// Whose OAuth token is this? `user`: whom the client wants to be; if it is not empty, no one else will do.
        2 => Token { id: u64, service: Bytes, user: Bytes, token: Secret, remote: Option<IpAddr> },
    }
}

messages! {
    pub enum Answer {
        /// Who it is, as the server says: the address of an account here, if there is one of this name.
        1 => Right { id: u64, user: Bytes },
        2 => Wrong { id: u64 },
        /// The source knows nobody of this name.
        3 => NoSuchUser { id: u64 },
        /// Not now; the text is for the log.
        4 => Unavailable { id: u64, text: Bytes },
    }
}
