//! STARTTLS (RFC 3207): from the command to the protected session, which starts over.
//!
//! Guarantees (promise 4): what stands behind the command in the clear is never read as a command; a client that sends such bytes is
//! cut off. Nothing the client said before the handshake counts after it: no name, no transaction, no login, and nothing that programs
//! granted for what it said.

use super::exchange::{Action, Actions, Logins, StartTls, Tls, TlsAnswer};
use super::{End, Session, State, replies};

impl Session {
    /// `is_last`: nothing stands behind the command.
    pub(super) fn starttls(&mut self, argument: &[u8], is_last: bool, out: &mut Actions) {
        match self.peer.starttls {
            _ if self.peer.tls.is_some() => return self.refuse(replies::TLS_AGAIN, out),
            StartTls::NotHere => return self.refuse(replies::UNIMPLEMENTED, out),
            StartTls::Offered => {}
        }
        if !argument.is_empty() {
            return self.refuse(replies::STARTTLS_ARGUMENT, out);
        }
        if matches!(self.state, State::BetweenChunks(_)) {
            return self.refuse(replies::BDAT_OPEN, out);
        }
        if !is_last {
            return self.bytes_behind_starttls(out);
        }
        self.reset(out);
        self.state = State::Handshake;
        out.push(Action::StartTls { go: format!("{}\r\n", replies::START_TLS).into_bytes() });
    }

    /// Bytes in the clear where a handshake belongs: somebody put them there, or a client that would take our answers for those of
    /// the protected session.
    pub(super) fn bytes_behind_starttls(&mut self, out: &mut Actions) {
        self.log_refusal(None, None, replies::BEHIND_STARTTLS, out);
        self.close(End::Limit, Some(replies::BEHIND_STARTTLS), out);
    }

    /// The answer to [`Action::StartTls`].
    pub(super) fn tls_answered(&mut self, answer: TlsAnswer, out: &mut Actions) {
        if !matches!(self.state, State::Handshake) {
            return;
        }
        self.state = State::Idle;
        match answer {
            TlsAnswer::Started(tls) => self.tls_started(tls),
            TlsAnswer::Unavailable => self.refuse(replies::NO_TLS_NOW, out),
            TlsAnswer::Failed => self.close(End::Tls, None, out),
        }
        self.end_if_draining(out);
    }

    fn tls_started(&mut self, mut tls: Box<Tls>) {
        self.held = Vec::new();
        self.helo = None;
        self.user = None;
        self.forget_since_greeting();
        // A certificate is of who connected, not of whom he has told since.
        if self.is_told {
            tls.client = None;
        }
        self.peer.protect(tls);
    }
}

impl super::Connection {
    /// The connection has TLS from here on, or from its first byte: passwords may be sent, and a listed certificate may give a client
    /// the right to relay.
    pub fn protect(&mut self, tls: Box<Tls>) {
        if self.relay_client.is_none() && tls.client.as_ref().is_some_and(|listed| listed.relay.is_some()) {
            self.relay_client = Some(Box::default());
        }
        self.tls = Some(tls);
        if self.logins == Logins::NotInClear {
            self.logins = Logins::Offered;
        }
    }
}
