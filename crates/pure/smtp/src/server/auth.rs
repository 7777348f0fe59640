//! AUTH (RFC 4954): from the command to the verdict. What the mechanisms are is `sasl`'s matter: the password of PLAIN and LOGIN is handed on
//! to be judged, the messages of all others are relayed.
//!
//! In an exchange the next line is a response, whatever it looks like; behind the exchange it is a command again. So what a client
//! pipelines behind `AUTH PLAIN <response>` waits for the verdict and then goes on, and what it pipelines behind `AUTH PLAIN` is no command.
//!
//! Guarantees: bounded lines; at most [`FAILURES_MAX`] failed logins of a connection; a login is asked for once at a time, before
//! any mail and once for good; the decoded password is wiped when it has been handed on, and no line of an exchange gets into a log.
//! Never: says whether a name or a password was wrong.

use super::exchange::{Action, Actions, LoginAnswer, Logins};
use super::hook::{Stage, Then};
use super::{End, Session, State, replies};
use sasl::{Exchange, Fault, First, Mechanism, Protection, Step};
use zeroize::Zeroizing;

/// Longest response without its line end (RFC 4954 §4: 12288 octets with it).
pub const RESPONSE_LEN_MAX: usize = 12_286;
/// Failed logins before the connection is closed, as in POP3: together with the driver's pause they make guessing slow.
const FAILURES_MAX: u32 = 3;

impl Session {
    pub(super) fn auth(&mut self, argument: &[u8], out: &mut Actions) {
        let (mechanism, response) = match self.judge_auth(argument) {
            Ok(parsed) => parsed,
            Err(reply) => return self.refuse(reply, out),
        };
        let initial = match response {
            None => None,
            // `=` is a response of no bytes (RFC 4954 §4).
            Some(b"=") => Some(Zeroizing::default()),
            Some(response) => match decode(response, response.len() > RESPONSE_LEN_MAX) {
                Ok(message) => Some(message),
                Err(reply) => return self.refuse(reply, out),
            },
        };
        match Exchange::begin(mechanism, initial.as_ref().map(|message| &message[..])) {
            Ok(First::Step(step)) => self.follow(step, out),
            Ok(First::Relay(initial)) => self.ask(Action::SaslStart { mechanism, initial }, out),
            Err(fault) => self.refuse_response(fault, out),
        }
    }

    /// What TLS gives to a login.
    pub(super) fn protection(&self) -> Protection {
        self.peer.tls.as_ref().map_or_else(Protection::default, |tls| Protection {
            channel: tls.exporter.is_some() || tls.end_point.is_some(),
            certificate: tls.client.as_ref().is_some_and(|listed| listed.login.is_some()),
        })
    }

    /// The mechanism and the initial response of a command that may come now.
    fn judge_auth<'a>(&self, argument: &'a [u8]) -> Result<(Mechanism, Option<&'a [u8]>), &'static str> {
        match (&self.state, self.peer.logins) {
            (_, Logins::NotHere) => return Err(replies::UNIMPLEMENTED),
            _ if self.user.is_some() => return Err(replies::AUTH_AGAIN),
            (State::Idle, _) => {}
            (State::BetweenChunks(_), _) => return Err(replies::BDAT_OPEN),
            _ => return Err(replies::AUTH_IN_TRANSACTION),
        }
        if !self.helo.as_ref().is_some_and(|helo| helo.is_extended) {
            return Err(replies::AUTH_BEFORE_EHLO);
        }
        // Of the others, too: what they show of a password can be guessed at for as long as one likes.
        if self.peer.logins == Logins::NotInClear {
            return Err(replies::NO_LOGIN_IN_CLEAR);
        }
        let mut words = argument.split(|b| *b == b' ').filter(|word| !word.is_empty());
        match (words.next(), words.next(), words.next()) {
            (Some(name), response, None) => {
                let mechanism = self.config.mechanisms.find(name, self.protection());
                Ok((mechanism.ok_or(replies::AUTH_MECHANISM)?, response))
            }
            _ => Err(replies::AUTH_SYNTAX),
        }
    }

    /// A line of the client in an exchange. Unless it leads on, the exchange is over.
    pub(super) fn response(&mut self, exchange: Exchange, line: &[u8], is_too_long: bool, out: &mut Actions) {
        self.state = State::Idle;
        match decode(line, is_too_long).map(|message| exchange.step(&message)) {
            Ok(Ok(step)) => self.follow(step, out),
            Ok(Err(fault)) => self.refuse_response(fault, out),
            Err(reply) => self.refuse(reply, out),
        }
    }

    fn follow(&mut self, step: Step, out: &mut Actions) {
        match step {
            Step::Challenge(next, challenge) => self.challenge(next, challenge, out),
            Step::Judge { user, password } => self.ask(Action::LogIn { user, password }, out),
            Step::Relay(response) => self.ask(Action::SaslStep { response }, out),
        }
    }

    fn challenge(&mut self, next: Exchange, challenge: &[u8], out: &mut Actions) {
        self.state = State::Exchange(next);
        out.reply(format!("334 {}", wire::base64::encode(challenge)).as_bytes());
    }

    fn ask(&mut self, question: Action, out: &mut Actions) {
        self.state = State::Judging;
        out.push(question);
    }

    fn refuse_response(&mut self, fault: Fault, out: &mut Actions) {
        match fault {
            Fault::Malformed => self.refuse(replies::AUTH_RESPONSE, out),
            Fault::Identity => self.login_failed(replies::WRONG_LOGIN, out),
        }
    }

    /// The answer to [`Action::LogIn`], [`Action::SaslStart`] or [`Action::SaslStep`].
    pub(super) fn login_answered(&mut self, answer: LoginAnswer, out: &mut Actions) {
        if !matches!(self.state, State::Judging) {
            return;
        }
        self.state = State::Idle;
        match answer {
            LoginAnswer::Accepted { user } if self.peer.hooks.has(Stage::Auth) => {
                let question = self.hook_question(Stage::Auth, user.clone());
                self.ask_hook(question, Then::LoggedIn { user }, out);
            }
            LoginAnswer::Accepted { user } => self.logged_in(user, out),
            LoginAnswer::Challenge(challenge) => self.challenge(Exchange::Relayed, &challenge, out),
            LoginAnswer::Refused => self.login_failed(replies::WRONG_LOGIN, out),
            LoginAnswer::Temporary => self.login_failed(replies::CANNOT_LOG_IN, out),
        }
        self.end_if_draining(out);
    }

    pub(super) fn logged_in(&mut self, user: Box<[u8]>, out: &mut Actions) {
        self.user = Some(user);
        out.reply(replies::LOGGED_IN.as_bytes());
    }

    /// What failed for want of an answer counts too: a client that hammers a sick server does not help it.
    fn login_failed(&mut self, reply: &'static str, out: &mut Actions) {
        self.refuse(reply, out);
        self.failed_logins = self.failed_logins.saturating_add(1);
        if self.failed_logins >= FAILURES_MAX {
            self.close(End::Limit, Some(replies::TOO_MANY_FAILED_LOGINS), out);
        }
    }
}

/// A response; `*` cancels (RFC 4954 §4).
fn decode(line: &[u8], is_too_long: bool) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    match line {
        _ if is_too_long => return Err(replies::AUTH_LINE_TOO_LONG),
        b"*" => return Err(replies::AUTH_CANCELLED),
        _ => {}
    }
    wire::base64::decode(line).map(Zeroizing::new).map_err(|_| replies::AUTH_RESPONSE)
}
