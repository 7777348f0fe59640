//! Invariants as plain functions for cargo-fuzz and for the stable tests below.

use crate::oauth::{self, Form};
use crate::scram::{Channel, Hash, Keys, Login, Salt};
use crate::{Exchange, First, MESSAGE_LEN_MAX, Mechanism, Step, cram_md5};

/// Whatever a client says in an exchange, and whatever a judge hears of it: no panic, and no way in.
pub fn exchange(data: &[u8]) {
    let (seed, message) = data.split_first().unwrap_or((&0, &[]));
    let Some(mechanism) = Mechanism::ALL.get(usize::from(*seed) % Mechanism::ALL.len()) else { return };
    let mut messages = message.split(|b| *b == b'\n');
    let mut next = match Exchange::begin(*mechanism, messages.next()) {
        Ok(First::Step(step)) => follow(step),
        Ok(First::Relay(_)) => Some(Exchange::Relayed),
        Err(_) => None,
    };
    for message in messages {
        next = match next {
            Some(exchange) => exchange.step(message).ok().and_then(follow),
            None => return,
        };
    }
    judge(*seed, message);
    let _ = cram_md5::parse(message).map(|(name, digest)| cram_md5::is_right(name, b"<1@x>", digest));
}

fn follow(step: Step) -> Option<Exchange> {
    match step {
        Step::Challenge(next, _) => Some(next),
        Step::Judge { user, password } => {
            assert!(!user.is_empty() && !user.contains(&0) && !password.expose().is_empty() && !password.expose().contains(&0));
            None
        }
        Step::Relay(message) => {
            assert!(message.expose().len() <= MESSAGE_LEN_MAX);
            Some(Exchange::Relayed)
        }
    }
}

fn judge(seed: u8, message: &[u8]) {
    let (first, last) = message.split_at(memchr::memchr(b'\n', message).unwrap_or(message.len()));
    let channel = Channel { exporter: (seed & 1 != 0).then(|| vec![seed]), end_point: None };
    let Ok(login) = Login::parse(Hash::Sha1, seed & 2 != 0, &channel, first) else { return };
    let text = "SCRAM-SHA-1$4096:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let salt = Salt { salt: b"salt".to_vec(), iterations: 4096 };
    let keys = Keys::parse(Hash::Sha1, text).into_iter().collect::<Vec<_>>();
    assert_eq!(keys.len(), 1);
    let (said, proof) = login.answer(&salt, keys, &[seed; 16]);
    assert!(said.starts_with(b"r=") && said.len() <= MESSAGE_LEN_MAX);
    assert!(!matches!(proof.judge(last.get(1..).unwrap_or_default()), Ok(Some(_))), "nobody knows a password with this key");
}

/// A token that comes out can stand in a header; an authorization id that comes out is written back to what was read.
pub fn bearer(data: &[u8]) {
    for form in [Form::Xoauth2, Form::Oauthbearer] {
        if let Ok(credentials) = oauth::parse(form, data) {
            assert!(!credentials.token.is_empty() && credentials.token.iter().all(u8::is_ascii_graphic));
            assert!(data.windows(credentials.token.len()).any(|part| part == credentials.token));
            assert!(!credentials.user.contains(&1));
            assert!(form == Form::Oauthbearer || !credentials.user.is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            super::exchange(&data);
        }

        #[test]
        fn nearly_messages(seed: u8, text in "[nyp](=tls-exporter)?,(a=[a-z=]{0,5})?,n=[a-z=23CD]{0,6},r=[a-z]{0,4}(,m=x)?\n(c=[A-Za-z=]{0,8},r=[a-z]{0,6},p=[A-Za-z=]{0,28})?") {
            super::exchange(&[&[seed], text.as_bytes()].concat());
        }
    }
}
