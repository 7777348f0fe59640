//! What qmail-auth asks qmail-lspawn: may this `user-ext` be delivered to, and a mailbox session for a user who has logged in.

use crate::field::Bytes;
use wire::Domain;

messages! {
    /// A question; `id` comes back in the answer.
    pub enum Request {
        /// Does the system address `local` (after virtualdomains) have somewhere to go: a user, and for `user-ext` a
        /// `.qmail` file?
        1 => Exists { id: u64, local: Bytes },
        /// Start qmail-pop3d in the mailbox of this virtual user.
        2 => Session { id: u64, domain: Domain, user: Bytes },
        /// Has this virtual user a `.qmail` file for `user-ext`?
        3 => ExistsMailbox { id: u64, domain: Domain, user: Bytes, ext: Bytes },
    }
}

messages! {
    pub enum Answer {
        1 => Exists { id: u64, answer: Existence },
        /// The session's socket comes beside this datagram.
        2 => Session { id: u64 },
        /// No session now; the text is for the log.
        3 => NoSession { id: u64, text: Bytes },
    }
}

messages! {
    /// Is there somewhere to deliver?
    pub enum Existence {
        1 => Yes {},
        2 => No {},
        /// The user is there, the file cannot be looked at now: accept.
        3 => CannotTell {},
        /// Not even the user can be looked up now: 451.
        4 => Down {},
    }
}
