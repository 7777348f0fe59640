//! Between qmail-lspawn and the qmail-local workers it keeps, on a socketpair (descriptor 3 of the worker, named `work`).
//!
//! The worker answers each request once, in any order, under its number. lspawn forwards the report without looking into it.

use crate::field::{Bytes, Verdict};
use crate::lspawn::{Existence, Room};
use wire::Address;

record! {
    /// The user that an address belongs to: the arguments of a classic qmail-local.
    pub struct Recipient {
        user: Bytes,
        /// Absolute path.
        home: Bytes,
        /// Full local part, virtualdomains prefix included.
        local: Bytes,
        /// "" or "-".
        dash: Bytes,
        ext: Bytes,
        domain: Bytes,
    }
}

record! {
    /// The LMTP server that keeps the recipient's mailbox (control/lmtproutes).
    pub struct Lmtp {
        /// Its Unix socket, an absolute path.
        socket: Bytes,
        /// The mailbox as that server knows it: `user@domain`, or `user+ext@domain`.
        mailbox: Address,
    }
}

messages! {
    pub enum Request {
        /// Deliver the message whose descriptor comes beside, as the `.qmail` file says; without one as `default_delivery`
        /// says. `settings`: what the account of a virtual user says ([`crate::mailbox`]); empty for nothing. `inherits`: what forwards have
        /// of the message ([`crate::inheritance`]); empty for nothing.
        1 => Deliver { number: u64, sender: Address, recipient: Recipient, default_delivery: Bytes, settings: Bytes, inherits: Bytes,
            /// In the place of the files that `default_delivery` names.
            lmtp: Option<Lmtp> },
        /// Forward the message whose descriptor comes beside to these addresses (an alias of a virtual domain).
        2 => Forward { number: u64, sender: Address, recipient: Recipient, targets: Vec<Address>, inherits: Bytes },
        /// Would [`Request::Deliver`] find something to do?
        3 => Exists { number: u64, recipient: Recipient, default_delivery: Bytes },
        /// [`crate::lspawn::Request::Room`].
        4 => Room { number: u64, recipient: Recipient, settings: Bytes, size: u64 },
        /// [`crate::lspawn::Request::Rename`].
        5 => Rename { number: u64, recipient: Recipient, to: Bytes },
    }
}

messages! {
    pub enum Report {
        1 => Done { number: u64, verdict: Verdict, text: Bytes },
        /// The plan holds a program line and nothing was delivered: an unconfined one-shot worker has to carry it out.
        2 => NeedsExec { number: u64 },
        3 => Exists { number: u64, answer: Existence },
        4 => Room { number: u64, room: Room },
        5 => Renamed { number: u64, failure: Option<Bytes> },
    }
}
