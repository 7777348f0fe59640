//! The exchange as the process knows it that talks to the client: which message comes next and what is to be done with it.
//!
//! The password of PLAIN (RFC 4616) and LOGIN comes out as [`Step::Judge`]; messages of all other mechanisms come out as they are, to be
//! relayed to the judge, whose challenges go back. So no code here depends on what a mechanism computes.

use crate::{MESSAGE_LEN_MAX, Mechanism};
use wire::Secret;

/// The challenges of LOGIN: clients expect these words.
const LOGIN_NAME: &[u8] = b"Username:";
const LOGIN_PASSWORD: &[u8] = b"Password:";

/// What the client's next message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exchange {
    /// The one message of PLAIN.
    Plain,
    LoginName,
    LoginPassword {
        user: Box<[u8]>,
    },
    /// A message for the judge.
    Relayed,
}

/// What has to come of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this challenge; the client's next message belongs to the exchange.
    Challenge(Exchange, &'static [u8]),
    /// The exchange is over: have the login judged.
    Judge { user: Box<[u8]>, password: Secret },
    /// Have the judge see this, the next message of the exchange.
    Relay(Secret),
}

/// Why an exchange is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No message of this mechanism.
    Malformed,
    /// Somebody wants to act for another, which nobody may: to be answered like a wrong password.
    Identity,
}

impl Exchange {
    /// The first step: with the client's initial response, if it sent one.
    ///
    /// # Errors
    /// [`Fault`], for an initial response.
    pub fn begin(mechanism: Mechanism, initial: Option<&[u8]>) -> Result<First, Fault> {
        let (exchange, challenge) = match mechanism {
            // The challenge of PLAIN says nothing.
            Mechanism::Plain => (Self::Plain, &b""[..]),
            Mechanism::Login => (Self::LoginName, LOGIN_NAME),
            _ => {
                let initial = initial.map(bounded).transpose()?;
                return Ok(First::Relay(initial));
            }
        };
        match initial {
            None => Ok(First::Step(Step::Challenge(exchange, challenge))),
            Some(initial) => exchange.step(initial).map(First::Step),
        }
    }

    /// The client's next message.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn step(self, message: &[u8]) -> Result<Step, Fault> {
        match self {
            Self::Plain => plain(message),
            Self::LoginName => {
                let next = Self::LoginPassword { user: filled(message)?.into() };
                Ok(Step::Challenge(next, LOGIN_PASSWORD))
            }
            Self::LoginPassword { user } => Ok(Step::Judge { user, password: secret(filled(message)?) }),
            Self::Relayed => bounded(message).map(Step::Relay),
        }
    }
}

/// How an exchange begins.
#[derive(Debug, PartialEq, Eq)]
pub enum First {
    Step(Step),
    /// Have the judge begin, with what the client sent along.
    Relay(Option<Secret>),
}

/// `[authzid] NUL authcid NUL passwd` (RFC 4616 §2). Nobody acts for another: an authzid is the authcid.
fn plain(message: &[u8]) -> Result<Step, Fault> {
    let mut parts = message.splitn(3, |b| *b == 0);
    let (Some(identity), Some(user), Some(password)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Fault::Malformed);
    };
    let (user, password) = (filled(user)?, filled(password)?);
    if !identity.is_empty() && identity != user {
        return Err(Fault::Identity);
    }
    Ok(Step::Judge { user: user.into(), password: secret(password) })
}

/// A name or password: at least one byte, no NUL.
fn filled(bytes: &[u8]) -> Result<&[u8], Fault> {
    let bytes = bytes.get(..MESSAGE_LEN_MAX.min(bytes.len())).filter(|front| front.len() == bytes.len());
    bytes.filter(|bytes| !bytes.is_empty() && memchr::memchr(0, bytes).is_none()).ok_or(Fault::Malformed)
}

fn bounded(message: &[u8]) -> Result<Secret, Fault> {
    if message.len() > MESSAGE_LEN_MAX { Err(Fault::Malformed) } else { Ok(secret(message)) }
}

fn secret(bytes: &[u8]) -> Secret {
    Secret::new(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(user: &str, password: &str) -> Step {
        Step::Judge { user: user.as_bytes().into(), password: secret(password.as_bytes()) }
    }

    #[test]
    fn plain_and_login() {
        assert_eq!(Exchange::begin(Mechanism::Plain, None), Ok(First::Step(Step::Challenge(Exchange::Plain, b""))));
        for (message, expected) in [
            (&b"\0joe\0a b"[..], Ok(judge("joe", "a b"))),
            (b"joe\0joe\0x", Ok(judge("joe", "x"))),
            (b"root\0joe\0x", Err(Fault::Identity)),
            (b"Joe\0joe\0x", Err(Fault::Identity)),
            (b"\0joe\0", Err(Fault::Malformed)),
            (b"\0\0x", Err(Fault::Malformed)),
            (b"\0joe\0x\0", Err(Fault::Malformed)),
            (b"joe", Err(Fault::Malformed)),
            (b"", Err(Fault::Malformed)),
        ] {
            assert_eq!(Exchange::begin(Mechanism::Plain, Some(message)), expected.map(First::Step), "{}", message.escape_ascii());
        }
        let name = Exchange::begin(Mechanism::Login, None);
        assert_eq!(name, Ok(First::Step(Step::Challenge(Exchange::LoginName, b"Username:"))));
        let next = Exchange::LoginPassword { user: b"joe"[..].into() };
        assert_eq!(Exchange::LoginName.step(b"joe"), Ok(Step::Challenge(next.clone(), b"Password:")));
        assert_eq!(next.step(b"x"), Ok(judge("joe", "x")));
        assert_eq!(Exchange::LoginName.step(b"a\0b"), Err(Fault::Malformed));
        assert_eq!(Exchange::LoginName.step(&[b'a'; MESSAGE_LEN_MAX + 1]), Err(Fault::Malformed));
    }

    #[test]
    fn others_are_relayed_unread() {
        for initial in [None, Some(&b"\0\xff"[..]), Some(b"")] {
            let first = Exchange::begin(Mechanism::ScramSha1, initial);
            assert_eq!(first, Ok(First::Relay(initial.map(secret))));
        }
        assert_eq!(Exchange::Relayed.step(b"x"), Ok(Step::Relay(secret(b"x"))));
        assert_eq!(Exchange::Relayed.step(&[0; MESSAGE_LEN_MAX + 1]), Err(Fault::Malformed));
    }

    #[test]
    fn nothing_secret_is_printed() {
        assert!(!format!("{:?}", judge("joe", "xyzzy")).contains("xyzzy"));
    }
}
