//! AUTH (RFC 4954) with SASL PLAIN (RFC 4616) and LOGIN: from the command to the verdict.
//!
//! In an exchange the next line is a response, whatever it looks like; behind the exchange it is a command again. So what a client
//! pipelines behind `AUTH PLAIN <response>` waits for the verdict and then goes on, and what it pipelines behind `AUTH PLAIN` is no command.
//!
//! Guarantees: bounded lines; at most [`FAILURES_MAX`] failed logins of a connection; a login is asked for once at a time, before
//! any mail and once for good; the decoded password is wiped when it has been handed on, and no line of an exchange gets into a log.
//! Never: says whether a name or a password was wrong.

use super::exchange::{Action, Actions, LoginAnswer, Logins, Secret};
use super::{End, Session, State, replies};
use zeroize::Zeroizing;

/// Longest response without its line end (RFC 4954 §4: 12288 octets with it).
pub const RESPONSE_LEN_MAX: usize = 12_286;
/// Failed logins before the connection is closed, as in POP3: together with the driver's pause they make guessing slow.
const FAILURES_MAX: u32 = 3;

/// What the next line answers.
#[derive(Debug)]
pub(super) enum Exchange {
    /// The one response of PLAIN.
    Plain,
    LoginName,
    LoginPassword {
        user: Box<[u8]>,
    },
}

/// What has to come of a response.
enum Step {
    /// Ask for the next one.
    Challenge(Exchange, &'static str),
    Judge {
        user: Box<[u8]>,
        password: Secret,
    },
}

impl Session {
    pub(super) fn auth(&mut self, argument: &[u8], out: &mut Actions) {
        let (mechanism, response) = match self.judge_auth(argument) {
            Ok(parsed) => parsed,
            Err(reply) => return self.refuse(reply, out),
        };
        let (exchange, challenge) = match () {
            () if mechanism.eq_ignore_ascii_case(b"PLAIN") => (Exchange::Plain, replies::PLAIN_RESPONSE),
            () if mechanism.eq_ignore_ascii_case(b"LOGIN") => (Exchange::LoginName, replies::LOGIN_NAME),
            () => return self.refuse(replies::AUTH_MECHANISM, out),
        };
        match response {
            None => self.challenge(exchange, challenge, out),
            // `=` is a response of no bytes (RFC 4954 §4).
            Some(b"=") => self.response(exchange, b"", false, out),
            Some(response) => self.response(exchange, response, false, out),
        }
    }

    /// The mechanism and the initial response of a command that may come now.
    fn judge_auth<'a>(&self, argument: &'a [u8]) -> Result<(&'a [u8], Option<&'a [u8]>), &'static str> {
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
        // Every mechanism that there is sends the password itself.
        if self.peer.logins == Logins::NotInClear {
            return Err(replies::NO_LOGIN_IN_CLEAR);
        }
        let mut words = argument.split(|b| *b == b' ').filter(|word| !word.is_empty());
        match (words.next(), words.next(), words.next()) {
            (Some(mechanism), response, None) => Ok((mechanism, response)),
            _ => Err(replies::AUTH_SYNTAX),
        }
    }

    fn challenge(&mut self, exchange: Exchange, challenge: &str, out: &mut Actions) {
        self.state = State::Exchange(exchange);
        out.reply(challenge.as_bytes());
    }

    /// A line of the client in an exchange. Unless it leads on, the exchange is over.
    pub(super) fn response(&mut self, exchange: Exchange, line: &[u8], is_too_long: bool, out: &mut Actions) {
        self.state = State::Idle;
        let step = match line {
            _ if is_too_long => Err(replies::AUTH_LINE_TOO_LONG),
            b"*" => Err(replies::AUTH_CANCELLED),
            line => wire::base64::decode(line).map(Zeroizing::new).map_err(|_| replies::AUTH_RESPONSE),
        };
        match step.and_then(|message| exchange.step(&message)) {
            Ok(Step::Challenge(next, challenge)) => self.challenge(next, challenge, out),
            Ok(Step::Judge { user, password }) => {
                self.state = State::Judging;
                out.push(Action::LogIn { user, password });
            }
            Err(replies::WRONG_LOGIN) => self.login_failed(replies::WRONG_LOGIN, out),
            Err(reply) => self.refuse(reply, out),
        }
    }

    /// The answer to [`Action::LogIn`].
    pub(super) fn login_answered(&mut self, answer: LoginAnswer, out: &mut Actions) {
        if !matches!(self.state, State::Judging) {
            return;
        }
        self.state = State::Idle;
        match answer {
            LoginAnswer::Accepted { user } => {
                self.user = Some(user);
                out.reply(replies::LOGGED_IN.as_bytes());
            }
            LoginAnswer::Refused => self.login_failed(replies::WRONG_LOGIN, out),
            LoginAnswer::Temporary => self.login_failed(replies::CANNOT_LOG_IN, out),
        }
        self.end_if_draining(out);
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

impl Exchange {
    fn step(self, message: &[u8]) -> Result<Step, &'static str> {
        match self {
            Self::Plain => plain(message),
            Self::LoginName => {
                let next = Self::LoginPassword { user: filled(message)?.into() };
                Ok(Step::Challenge(next, replies::LOGIN_PASSWORD))
            }
            Self::LoginPassword { user } => Ok(Step::Judge { user, password: secret(filled(message)?) }),
        }
    }
}

/// `[authzid] NUL authcid NUL passwd` (RFC 4616 §2). Nobody acts for another: an authzid is the authcid.
fn plain(message: &[u8]) -> Result<Step, &'static str> {
    let mut parts = message.splitn(3, |b| *b == 0);
    let (Some(identity), Some(user), Some(password)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(replies::AUTH_RESPONSE);
    };
    let (user, password) = (filled(user)?, filled(password)?);
    if !identity.is_empty() && identity != user {
        return Err(replies::WRONG_LOGIN);
    }
    Ok(Step::Judge { user: user.into(), password: secret(password) })
}

/// A name or password: at least one byte, no NUL.
fn filled(bytes: &[u8]) -> Result<&[u8], &'static str> {
    Some(bytes).filter(|bytes| !bytes.is_empty() && memchr::memchr(0, bytes).is_none()).ok_or(replies::AUTH_RESPONSE)
}

fn secret(password: &[u8]) -> Secret {
    Secret(Zeroizing::new(password.to_vec()))
}
