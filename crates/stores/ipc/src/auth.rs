//! qmail-auth as the directory and the judge of logins, on auth.sock.

use crate::field::Bytes;
use std::net::IpAddr;
use wire::{Address, Domain, Secret};

messages! {
    /// A question; `id` comes back in the answer. What a caller may ask depends on its role: qmaild asks `Recipient`,
    /// `Login` and its kin, `MaySend` and `MaySubmit`, qmailq asks `Route`.
    pub enum Request {
        /// Is this envelope recipient ours, and is there somewhere to deliver?
        1 => Recipient { id: u64, address: Address },
        /// Who is this? A right answer for `service` `pop3` brings the mailbox session's socket; for `smtp` and `checkpassword` it is
        /// the answer alone.
        2 => Login { id: u64, service: Bytes, login: Bytes, password: Secret, remote: Option<IpAddr> },
        /// Where does a recipient of a virtual domain go?
        3 => Route { id: u64, address: Address },
        /// As `Recipient`, for a message of so many bytes.
        4 => Fits { id: u64, address: Address, size: u64 },
        /// The first message of an exchange by a mechanism other than PLAIN and LOGIN, by qmaild. `initial`: what the client sent along;
        /// `exporter`, `end_point`: what the connection can be bound to (RFC 9266, RFC 5929), where it has TLS; `certificate`: the name
        /// in control/tlsclients, written as that file is looked up by, of the certificate that the client has shown.
        10 => SaslStart {
            id: u64, service: Bytes, mechanism: Bytes, initial: Option<Secret>, remote: Option<IpAddr>,
            exporter: Option<Bytes>, end_point: Option<Bytes>, certificate: Option<Bytes>,
        },
        /// The client's answer to `Challenge`; on the same connection.
        11 => SaslStep { id: u64, exchange: u64, response: Secret },
        /// POP3's APOP: the hexadecimal digest over the banner's timestamp and the password.
        12 => Apop { id: u64, login: Bytes, timestamp: Bytes, digest: Secret, remote: Option<IpAddr> },
        /// May who logged in as `login` (the `user` of [`Answer::LoggedIn`]) send as this address, in the envelope or the header?
        20 => MaySend { id: u64, login: Bytes, address: Address },
        /// A message of `login` is about to go to so many recipients. Whether it may; if so, it counts as sent.
        21 => MaySubmit { id: u64, login: Bytes, recipients: u32 },
        /// Somebody has opened a mailbox from there (POP-before-SMTP); asked by qmaild.
        30 => Arrived { id: u64, address: IpAddr },
        /// May this address relay for that reason? Asked by qmaild.
        31 => MayRelay { id: u64, address: IpAddr },
    }
}

messages! {
    pub enum Answer {
        /// To `Recipient` and `Fits`.
        1 => Recipient { id: u64, verdict: Directory },
        /// The session's socket comes beside this datagram (for `pop3`).
        2 => LoggedIn { id: u64, user: Bytes },
        /// Wrong login or password: the same for an unknown user. To be said after so many seconds: they grow with the failures.
        3 => Refused { id: u64, pause_s: u32 },
        /// Not now: the source of accounts or the mailbox is out of reach.
        4 => Unavailable { id: u64, text: Bytes },
        5 => Route { id: u64, target: Target },
        /// To those who asked for routes, unasked and before the administrator has his answer: accounts changed, and no route that
        /// came before this counts any more.
        6 => Changed {},
        /// An exchange goes on: the client's answer belongs into `SaslStep`, within a minute.
        10 => Challenge { id: u64, exchange: u64, data: Bytes },
        /// To `MaySend` and `MaySubmit`.
        20 => Permission { id: u64, permission: Permission },
        30 => Noted { id: u64 },
        31 => Relay { id: u64, allowed: bool },
    }
}

messages! {
    /// May it be sent?
    pub enum Permission {
        1 => Yes {},
        /// The address is not the login's.
        2 => NotYours {},
        /// The login has sent as much as it may for now.
        3 => Limited { limit: Limit },
        /// Cannot tell now.
        4 => Temporary {},
    }
}

messages! {
    /// What a login has sent too much of.
    pub enum Limit {
        1 => MessagesPerHour {},
        2 => RecipientsPerHour {},
        3 => MessagesPerDay {},
        4 => RecipientsPerDay {},
    }
}

messages! {
    /// The directory's word on a recipient.
    pub enum Directory {
        /// Ours, and there is somewhere to deliver (or it cannot be told for a user who exists).
        1 => Mailbox {},
        /// Ours, and nobody is there.
        2 => NoMailbox {},
        /// Neither a local nor a virtual domain of ours.
        3 => NotMine {},
        /// The source is down.
        4 => Temporary {},
        /// Ours, and the mailbox has no room for it. `defers`: it may have later.
        5 => Full { defers: bool },
    }
}

messages! {
    /// Where a recipient of a virtual domain goes.
    pub enum Target {
        /// A mailbox: the user's name is path-safe; `ext` is what followed a dash or plus. `settings` are a [`crate::mailbox`] message
        /// for the recipient's qmail-local, which alone reads it.
        1 => Mailbox { domain: Domain, user: Bytes, ext: Bytes, settings: Bytes },
        /// Other addresses.
        2 => Forward { domain: Domain, targets: Vec<Address> },
        3 => NoMailbox {},
        4 => Temporary { text: Bytes },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_does_not_show_its_password() {
        let xyzzy = || Secret::from("xyzzy");
        let requests = [
            Request::Login { id: 1, service: "smtp".into(), login: "joe".into(), password: xyzzy(), remote: None },
            Request::SaslStart {
                id: 2,
                service: "smtp".into(),
                mechanism: "PLAIN".into(),
                initial: Some(xyzzy()),
                remote: None,
                exporter: None,
                end_point: None,
                certificate: None,
            },
            Request::SaslStep { id: 3, exchange: 4, response: xyzzy() },
            Request::Apop { id: 5, login: "joe".into(), timestamp: "<1@h>".into(), digest: xyzzy(), remote: None },
        ];
        for request in requests {
            let shown = format!("{request:?} {request:#?}");
            assert!(shown.contains("Secret(…)") && !shown.contains("xyzzy") && !shown.contains("120"), "{shown}");
        }
    }
}
