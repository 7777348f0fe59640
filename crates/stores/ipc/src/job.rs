//! Jobs from qmail-send to qmail-lspawn (local) and qmail-remote (remote), and their results.
//!
//! Each job is one datagram with the body's read-only descriptor beside it (pread it: the offset is shared). Any number may be
//! under way on the one connection, told apart by `number`, which qmail-send never uses twice in a run. When the connection
//! closes, jobs run to their end and their results are dropped. Local jobs answer with one [`Answer::Done`]; remote ones with
//! one or more, the last marked so.

use crate::field::{Bytes, Verdict};
use crate::options::Options;
use wire::{Address, Domain, Login};

/// Most recipients of one remote job (one SMTP transaction, RFC 5321 §4.5.3.1.8).
pub const RECIPIENTS_MAX: usize = 100;
/// Flags of a message, as in [`crate::queue`].
pub use crate::queue::{FLAG_EIGHT_BIT, FLAG_REQUIRETLS, FLAG_SMTPUTF8};

messages! {
    /// A delivery to try.
    pub enum Job {
        /// To a system user, the alias user or users/assign: `recipient` already carries the virtualdomains prefix;
        /// its local part says who.
        /// `inherits` of this and the next two: what a copy that is forwarded has of the message ([`crate::inheritance`]).
        1 => System { number: u64, message: u64, sender: Address, recipient: Address, inherits: Bytes },
        /// To the mailbox `user` of a virtual domain (its `.qmail` files, `ext` after a dash if any); `recipient` is the
        /// address as the client gave it, `settings` are for the worker ([`crate::mailbox`]).
        2 => Mailbox {
            number: u64, message: u64, sender: Address, recipient: Address, domain: Domain, user: Bytes, ext: Bytes, settings: Bytes,
            inherits: Bytes,
        },
        /// To an alias of a virtual domain: forward to the targets, as that domain's user.
        3 => Alias { number: u64, message: u64, sender: Address, recipient: Address, domain: Domain, targets: Vec<Address>, inherits: Bytes },
        /// To up to [`RECIPIENTS_MAX`] recipients of one site. `size` is the body's length in LF form, in bytes.
        4 => Remote { number: u64, message: u64, sender: Address, recipients: Vec<Address>, route: Route, flags: u32, size: u64,
            /// What the next server is asked for, by the recipients' places in this job.
            options: Option<Options> },
    }
}

messages! {
    /// Where a remote job goes.
    pub enum Route {
        /// To the MX hosts of the domain (or its addresses, or the address literal in brackets).
        1 => Mx { domain: Domain },
        /// To this relay of control/smtproutes or control/authsenders, by its addresses alone; no MX, and "that is me" is not looked for.
        /// With a `login`, only after AUTH: the one place where qmail-remote ever gets credentials.
        2 => Relay { host: Bytes, port: u16, login: Option<Login> },
        /// To this LMTP server of control/lmtproutes, by its addresses alone.
        3 => Lmtp { host: Bytes, port: u16 },
        /// The same through a Unix socket, an absolute path.
        4 => LmtpSocket { path: Bytes },
        /// To this relay of control/qmtproutes by QMTP, by its addresses alone.
        5 => Qmtp { host: Bytes, port: u16 },
    }
}

record! {
    /// What became of one recipient.
    pub struct Outcome {
        /// Index into the job's recipients; 0 for a local job.
        recipient: u32,
        verdict: Verdict,
        /// The classic report text without its letter, at most [`crate::TEXT_LEN_MAX`] bytes.
        text: Bytes,
    }
}

messages! {
    /// The answer to a job.
    pub enum Answer {
        /// Outcomes of some recipients; after `last` the job is over and each recipient has had exactly one.
        /// `untried` lists recipients that were not tried because the transaction was full (452 after the first
        /// accepted RCPT): they belong in the next one and have no outcome.
        1 => Done { number: u64, outcomes: Vec<Outcome>, untried: Vec<u32>, last: bool },
        /// Before the outcomes of these recipients: if they are delivered, the next server reports about them (RFC 3461 §5.2.1).
        2 => PassedOn { number: u64, recipients: Vec<u32> },
        /// Likewise: if they are delivered, the next server keeps the time to deliver by (RFC 2852 §4.1.2).
        3 => TimeKept { number: u64, recipients: Vec<u32> },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DATAGRAM_LEN_MAX, Malformed, Message, VERSION};
    use proptest::prelude::*;

    fn jobs() -> Vec<Job> {
        let address = |a: &str| Address::new(a.as_bytes()).unwrap();
        let domain = Domain::new(b"example.org").unwrap();
        let (sender, recipient) = (address("s@x"), address("r@y"));
        vec![
            Job::System {
                number: 1,
                message: u64::MAX,
                sender: Address::null(),
                recipient: recipient.clone(),
                inherits: "x".into(),
            },
            Job::Alias {
                number: 2,
                message: 3,
                sender: sender.clone(),
                recipient,
                domain: domain.clone(),
                targets: vec![address("t@z")],
                inherits: "".into(),
            },
            Job::Remote {
                number: 3,
                message: 4,
                sender,
                recipients: vec![address("a@b"), address("c@d")],
                route: Route::Mx { domain },
                flags: 1,
                size: 9,
                options: Some(Options { hold_until_s: Some(1), ..Options::none() }),
            },
            Job::Remote {
                number: 4,
                message: 5,
                sender: Address::null(),
                recipients: vec![],
                route: Route::Relay {
                    host: "relay".into(),
                    port: 587,
                    login: Some(Login { user: b"joe".to_vec(), password: wire::Secret::new(b"xyzzy".to_vec()) }),
                },
                flags: 0,
                size: 0,
                options: None,
            },
            Job::Remote {
                number: 5,
                message: 6,
                sender: Address::null(),
                recipients: vec![address("a@b")],
                route: Route::LmtpSocket { path: "/run/dovecot/lmtp".into() },
                flags: 0,
                size: 1,
                options: None,
            },
            Job::Remote {
                number: 6,
                message: 7,
                sender: Address::null(),
                recipients: vec![address("a@b")],
                route: Route::Qmtp { host: "relay".into(), port: 209 },
                flags: 0,
                size: 1,
                options: None,
            },
        ]
    }

    #[test]
    fn every_job_comes_back_and_every_cut_is_malformed() {
        for job in jobs() {
            let bytes = job.encode();
            assert_eq!(Job::decode(&bytes), Ok(job));
            for cut in 0..bytes.len() {
                assert_eq!(Job::decode(&bytes[..cut]), Err(Malformed));
            }
            assert_eq!(Job::decode(&[&bytes[..], b"x"].concat()), Err(Malformed), "bytes left over");
            assert_eq!(Job::decode(&[&[VERSION + 1][..], &bytes[1..]].concat()), Err(Malformed), "another version");
        }
        assert_eq!(Job::decode(&vec![VERSION; DATAGRAM_LEN_MAX + 1]), Err(Malformed));
    }

    #[test]
    fn a_job_does_not_show_its_password() {
        let shown = format!("{:?}", jobs());
        assert!(shown.contains("joe") || shown.contains("106, 111, 101"), "{shown}");
        assert!(!shown.contains("xyzzy") && !shown.contains("120, 121, 122"), "{shown}");
    }

    #[test]
    fn a_lying_count_reserves_nothing() {
        let mut bytes = vec![VERSION, 1];
        bytes.extend_from_slice(&7u64.to_le_bytes());
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Answer::decode(&bytes), Err(Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_malformed(kind in 0u8..9, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let datagram = [&[VERSION, kind][..], &bytes].concat();
            macro_rules! total {
                ($($type:ty),*) => {$(
                    if let Ok(message) = <$type>::decode(&datagram) {
                        prop_assert_eq!(message.encode(), datagram.clone());
                    }
                )*};
            }
            total!(Job, Answer, crate::queue::Answer, crate::lspawn::Request, crate::lspawn::Answer, crate::worker::Request);
            total!(crate::worker::Report, crate::auth::Request, crate::auth::Answer, crate::getpw::Request, crate::getpw::Answer);
            total!(crate::resolve::Request, crate::resolve::Answer, crate::admin::QueueRequest, crate::admin::QueueAnswer);
            total!(crate::admin::AccountRequest, crate::admin::AccountAnswer);
        }
    }
}
