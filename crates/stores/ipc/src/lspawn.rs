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
        /// Is this a system user who may log in, by the name itself and not by an extension or an alias? With `session` qmail-pop3d is
        /// started in his Maildir.
        4 => SystemUser { id: u64, user: Bytes, session: bool },
        /// How much may still come into this virtual user's `./Maildir/`, as its `maildirsize` says? `settings`: a [`crate::mailbox`]
        /// message with the quota; without one `maildirsize` is removed. `size`: of the message that is to fit; before that is denied,
        /// the mailbox is counted.
        5 => Room { id: u64, domain: Domain, user: Bytes, settings: Bytes, size: u64 },
        /// Give the home of this virtual user another name in the same domain, unless there is something of that name.
        6 => Rename { id: u64, domain: Domain, user: Bytes, to: Bytes },
    }
}

messages! {
    pub enum Answer {
        1 => Exists { id: u64, answer: Existence },
        /// The session's socket comes beside this datagram, if one was wanted.
        2 => Session { id: u64 },
        /// No session now; the text is for the log.
        3 => NoSession { id: u64, text: Bytes },
        /// Nobody who may log in: no user of this name, root, a system account, a service role; the text is for the log.
        4 => NoUser { id: u64, text: Bytes },
        5 => Room { id: u64, room: Room },
        /// Done, also where there was no home yet; or why not.
        6 => Renamed { id: u64, failure: Option<Bytes> },
    }
}

messages! {
    /// How much fits into a mailbox.
    pub enum Room {
        /// So many messages of so many bytes together; `u64::MAX` for no bound.
        1 => Free { bytes: u64, messages: u64 },
        /// Its owner's `.qmail` file decides where mail goes, or it cannot be looked at now: accept.
        2 => CannotTell {},
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
