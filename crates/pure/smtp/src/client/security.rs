//! From EHLO to the first transaction: STARTTLS (RFC 3207) and the login (RFC 4954).
//!
//! Whatever goes wrong here is temporary, a refused login too: an administrator can repair it, a bounce cannot be taken back.

use super::{Action, Client, Stage, State, Tls, Verb, report, sasl};
use crate::reply::{Offers, Replies, Reply};
use wire::Login;

impl Client {
    /// EHLO or HELO was answered. Which of them, and what was announced, is in `offers`.
    pub(super) fn greeted(&mut self, actions: &mut Vec<Action>) {
        match self.security.tls {
            Tls::May | Tls::Must if self.offers.starttls => {
                self.state = State::StartTls;
                self.send(b"STARTTLS\r\n".to_vec(), 1, Stage::Command, actions);
            }
            Tls::Must => self.refuse("it does not offer TLS, which is demanded for it. (#4.7.4)", actions),
            Tls::No | Tls::May | Tls::Started => self.log_in(actions),
        }
    }

    /// RFC 3207 §4: 220, or no TLS now.
    pub(super) fn start_tls(&mut self, reply: &Reply, actions: &mut Vec<Action>) {
        if reply.code() == 220 {
            self.state = State::Handshake;
            actions.extend([Action::Deadline(Stage::Handshake), Action::StartTls]);
        } else {
            let text = report::with_reply(&format!("Connected to {} but STARTTLS failed.", self.peer), reply, None);
            self.no_tls(text, actions);
            actions.insert(1, Action::Send(b"QUIT\r\n".to_vec()));
        }
    }

    /// Bytes behind the 220 that did not come by TLS: what they seem to answer was never asked. Somebody may have put them there
    /// (past-holes R2), so nothing this server says counts, and the clear is no way out.
    pub(super) fn injected(&mut self, actions: &mut Vec<Action>) {
        actions.clear();
        self.state = State::Closed;
        let text = format!("Connected to {} but something was said in the clear behind STARTTLS. (#4.7.5)\n", self.peer);
        actions.extend([Action::Unusable(text), Action::Close]);
    }

    /// RFC 3207 §4.2: a new session, in which nothing of the old one is known.
    pub(super) fn tls_started(&mut self, actions: &mut Vec<Action>) {
        if matches!(self.state, State::Handshake) {
            (self.offers, self.replies, self.owed) = (Offers::default(), Replies::new(), 0);
            self.security.tls = Tls::Started;
            self.say_hello(Verb::Ehlo, actions);
        }
    }

    pub(super) fn tls_failed(&mut self, why: &str, actions: &mut Vec<Action>) {
        if matches!(self.state, State::Handshake) {
            let text = report::clipped(format!("Connected to {} but TLS failed: {why}. (#4.7.5)\n", self.peer));
            self.no_tls(text, actions);
        }
    }

    /// TLS does not come about.
    pub(super) fn no_tls(&mut self, text: String, actions: &mut Vec<Action>) {
        self.state = State::Closed;
        let may = self.security.tls == Tls::May;
        actions.push(if may { Action::NoTls(text) } else { Action::Unusable(text) });
        actions.push(Action::Close);
    }

    fn log_in(&mut self, actions: &mut Vec<Action>) {
        let Some(login) = &self.security.login else {
            self.state = State::Ready;
            return actions.push(Action::Ready);
        };
        if self.security.tls != Tls::Started && !self.security.cleartext {
            return self.refuse("there is no TLS, and a password does not go without. (#4.7.11)", actions);
        }
        let Some((sent, step)) = sasl::begin(login, &self.offers.auth) else {
            return self.refuse("it offers no login by CRAM-MD5, PLAIN or LOGIN. (#4.7.4)", actions);
        };
        self.say_secret(sent, step, actions);
    }

    fn say_secret(&mut self, sent: wire::Secret, step: sasl::Step, actions: &mut Vec<Action>) {
        self.state = State::Sasl(step);
        self.owed += 1;
        actions.extend([Action::SendSecret(sent), Action::Deadline(Stage::Command)]);
    }

    /// RFC 4954 §4: 334 goes on, 235 is success; anything else, and either of them where the mechanism has none, is not.
    pub(super) fn sasl(&mut self, step: sasl::Step, reply: &Reply, actions: &mut Vec<Action>) {
        let Some(login) = &self.security.login else { return actions.push(Action::Close) };
        match reply.code() {
            235 if step == sasl::Step::Verdict => {
                self.state = State::Ready;
                actions.push(Action::Ready);
            }
            334 => match sasl::answer(login, step, reply) {
                Some((sent, next)) => self.say_secret(sent, next, actions),
                None => self.refuse("its login asks for what it should not. (#4.7.0)", actions),
            },
            _ if repeats(reply, login) => self.refuse("it refused the login, and repeated the password. (#4.7.8)", actions),
            // Many that offer CRAM-MD5 do not have what it takes to check it, the password itself; by TLS that may go out.
            504 | 535 if self.security.tls == Tls::Started && sasl::strike_digest(&mut self.offers.auth) => self.log_in(actions),
            _ => self.unusable("the login was refused", reply, actions),
        }
    }

    fn refuse(&mut self, why: &str, actions: &mut Vec<Action>) {
        self.state = State::Closed;
        let text = format!("Connected to {} but {why}\n", self.peer);
        actions.extend([Action::Unusable(text), Action::Send(b"QUIT\r\n".to_vec()), Action::Close]);
    }
}

/// Does the reply show the password, as it is or in what was sent? It would end up in a log.
fn repeats(reply: &Reply, login: &Login) -> bool {
    let password = login.password.expose();
    let plain = sasl::plain(login);
    let encoded = [password, plain.expose()].map(wire::base64::encode);
    let mut needles = encoded.iter().map(String::as_str).chain(std::str::from_utf8(password));
    needles.any(|needle| !needle.is_empty() && reply.text().contains(needle))
}
