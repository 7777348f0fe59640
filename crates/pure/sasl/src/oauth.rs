//! The two SASL mechanisms that carry an OAuth bearer token (RFC 6750): OAUTHBEARER (RFC 7628) and XOAUTH2, which came before it
//! (<https://developers.google.com/gmail/imap/xoauth2-protocol>).
//!
//! Guarantees: a token that comes out has only the characters of RFC 6750 §2.1, so that it can stand in a header or a form; it is never
//! printed. What the token is worth, its issuer says. The whole exchange: the client's one message; on failure [`failure`] as the server's
//! challenge, any answer to it, and then the refusal.

use crate::MESSAGE_LEN_MAX;
use std::fmt;

const SEPARATOR: u8 = 1;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Xoauth2,
    Oauthbearer,
}

/// What the client sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// Whom it wants to be; empty (OAUTHBEARER only): whoever the token is for.
    pub user: Vec<u8>,
    pub token: &'a [u8],
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user.escape_ascii().to_string()).finish_non_exhaustive()
    }
}

/// A message of another form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed message")
    }
}

impl std::error::Error for Malformed {}

/// Reads the client's message, after base64.
///
/// # Errors
/// [`Malformed`]: also channel binding, which neither mechanism has, and a second `auth`.
pub fn parse(form: Form, message: &[u8]) -> Result<Credentials<'_>, Malformed> {
    if message.len() > MESSAGE_LEN_MAX {
        return Err(Malformed);
    }
    match form {
        Form::Xoauth2 => xoauth2(message),
        Form::Oauthbearer => oauthbearer(message),
    }
    .ok_or(Malformed)
}

/// `user=USER^Aauth=Bearer TOKEN^A^A`
fn xoauth2(message: &[u8]) -> Option<Credentials<'_>> {
    let (user, pairs) = split(message.strip_prefix(b"user=")?)?;
    if user.is_empty() || user.contains(&0) {
        return None;
    }
    Some(Credentials { user: user.to_vec(), token: token(pairs)? })
}

/// RFC 7628 §3.1: `n,a=USER,^Ahost=HOST^Aport=PORT^Aauth=Bearer TOKEN^A^A`; all but the header's commas and `auth` may be missing.
fn oauthbearer(message: &[u8]) -> Option<Credentials<'_>> {
    let (header, pairs) = split(message)?;
    let mut parts = header.split(|b| *b == b',');
    if !matches!(parts.next()?, b"n" | b"y") {
        return None;
    }
    let user = match parts.next()? {
        b"" => Vec::new(),
        name => saslname(name.strip_prefix(b"a=")?)?,
    };
    // What follows the second comma is nothing.
    (parts.next()? == b"" && parts.next().is_none()).then_some(())?;
    Some(Credentials { user, token: token(pairs)? })
}

/// RFC 5801 §4: commas and equals signs are written `=2C` and `=3D`.
fn saslname(text: &[u8]) -> Option<Vec<u8>> {
    let (mut name, mut rest) = (Vec::new(), text);
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            0 => return None,
            b'=' => {
                name.push(match rest.get(..2)? {
                    b"2C" => b',',
                    b"3D" => b'=',
                    _ => return None,
                });
                rest = rest.get(2..)?;
            }
            byte => name.push(*byte),
        }
    }
    (!name.is_empty()).then_some(name)
}

/// What is before the first separator, and after it.
fn split(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = message.iter().position(|b| *b == SEPARATOR)?;
    Some((message.get(..at)?, message.get(at.checked_add(1)?..)?))
}

/// The token among `key=value^A … ^A`.
fn token(mut pairs: &[u8]) -> Option<&[u8]> {
    let mut found = None;
    while pairs != [SEPARATOR] {
        let (pair, rest) = split(pairs)?;
        pairs = rest;
        let equals = pair.iter().position(|b| *b == b'=')?;
        let (key, value) = (pair.get(..equals)?, pair.get(equals.checked_add(1)?..)?);
        if key.is_empty() || !key.iter().all(u8::is_ascii_alphabetic) {
            return None;
        }
        if key == b"auth" && found.replace(bearer(value)?).is_some() {
            return None;
        }
    }
    found
}

/// RFC 6750 §2.1; the scheme's name in any case (RFC 9110 §11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return None;
    }
    let text = token.trim_ascii_start();
    let end = text.iter().rposition(|b| *b != b'=').and_then(|last| last.checked_add(1))?;
    let is_good = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'+' | b'/');
    text.get(..end)?.iter().all(is_good).then_some(text)
}

/// Why there is no login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The message is malformed.
    InvalidRequest,
    /// Expired, withdrawn, unknown, or for somebody else.
    InvalidToken,
}

/// The server's challenge before its refusal, before base64: JSON (RFC 7628 §3.2.2). `scope`: what a token needs here, as it is
/// configured; empty if nothing is. The client's answer to it, which is a separator or nothing, does not matter.
#[must_use]
pub fn failure(form: Form, failure: Failure, scope: &str) -> String {
    let (status, schemes) = match (form, failure) {
        (Form::Xoauth2, Failure::InvalidRequest) => ("400", ",\"schemes\":\"bearer\""),
        (Form::Xoauth2, Failure::InvalidToken) => ("401", ",\"schemes\":\"bearer\""),
        (Form::Oauthbearer, Failure::InvalidRequest) => ("invalid_request", ""),
        (Form::Oauthbearer, Failure::InvalidToken) => ("invalid_token", ""),
    };
    // RFC 6749 §3.3: a scope has no quotes and no backslashes; one that has is left out.
    let is_scope = !scope.is_empty() && scope.bytes().all(|b| matches!(b, 32..=126) && b != b'"' && b != b'\\');
    let scope = if is_scope { format!(",\"scope\":\"{scope}\"") } else { String::new() };
    format!("{{\"status\":\"{status}\"{schemes}{scope}}}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_of_clients() {
        use Form::{Oauthbearer, Xoauth2};
        for (form, message, user, token) in [
            // The examples of RFC 7628 §4.1 and of the page about XOAUTH2.
            (
                Oauthbearer,
                &b"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01"[..],
                &b"user@example.com"[..],
                &b"vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="[..],
            ),
            (
                Xoauth2,
                b"user=someuser@example.com\x01auth=Bearer ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg\x01\x01",
                b"someuser@example.com",
                b"ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg",
            ),
            (Oauthbearer, b"n,,\x01auth=Bearer a\x01\x01", b"", b"a"),
            (Oauthbearer, b"y,a=a=2Cb=3Dc,\x01auth=bEARER  a.b-c_d~e+f/g=\x01\x01", b"a,b=c", b"a.b-c_d~e+f/g="),
        ] {
            let credentials = parse(form, message).unwrap();
            assert_eq!((&credentials.user[..], credentials.token), (user, token));
        }
        let printed = format!("{:?}", parse(Xoauth2, b"user=joe\x01auth=Bearer hush-hush\x01\x01").unwrap());
        assert!(printed.contains("joe") && !printed.contains("hush"), "{printed}");
    }

    #[test]
    fn messages_that_are_not() {
        for message in [
            &b""[..],
            b"n,,",
            b"n,,\x01",
            b"n,,\x01\x01",
            b"n,,\x01auth=\x01\x01",
            b"n,,\x01auth=Bearer \x01\x01",
            b"n,,\x01auth=Bearer ==\x01\x01",
            b"n,,\x01auth=Basic YTpi\x01\x01",
            b"n,,\x01auth=Bearer a\x01",
            b"n,,\x01auth=Bearer a\x01\x01\x01",
            b"n,,\x01auth=Bearer a b\x01\x01",
            b"n,,\x01auth=Bearer a\r\nX: y\x01\x01",
            b"n,,\x01auth=Bearer a=b\x01\x01",
            b"n,,\x01auth=Bearer a\x01auth=Bearer b\x01\x01",
            b"n,,\x01a1=x\x01auth=Bearer a\x01\x01",
            b"n,,x\x01auth=Bearer a\x01\x01",
            b"n,\x01auth=Bearer a\x01\x01",
            b"n,a=,\x01auth=Bearer a\x01\x01",
            b"n,a=x=2cy,\x01auth=Bearer a\x01\x01",
            b"n,a=x\0y,\x01auth=Bearer a\x01\x01",
            b"n,b=x,\x01auth=Bearer a\x01\x01",
            b"p=tls-exporter,,\x01auth=Bearer a\x01\x01",
            b"F,n,,\x01auth=Bearer a\x01\x01",
        ] {
            assert_eq!(parse(Form::Oauthbearer, message), Err(Malformed), "{}", message.escape_ascii());
        }
        for message in
            [&b"user=\x01auth=Bearer a\x01\x01"[..], b"user=a\0\x01auth=Bearer a\x01\x01", b"User=a\x01auth=Bearer a\x01\x01"]
        {
            assert_eq!(parse(Form::Xoauth2, message), Err(Malformed), "{}", message.escape_ascii());
        }
        let long = [b"n,,\x01auth=Bearer ".as_slice(), &[b'a'; MESSAGE_LEN_MAX], b"\x01\x01"].concat();
        assert_eq!(parse(Form::Oauthbearer, &long), Err(Malformed));
    }

    #[test]
    fn failures_are_json() {
        let said = |form, why, scope| failure(form, why, scope);
        assert_eq!(said(Form::Oauthbearer, Failure::InvalidToken, "mail"), r#"{"status":"invalid_token","scope":"mail"}"#);
        assert_eq!(said(Form::Oauthbearer, Failure::InvalidRequest, ""), r#"{"status":"invalid_request"}"#);
        assert_eq!(
            said(Form::Xoauth2, Failure::InvalidToken, "https://mail.example/ smtp"),
            r#"{"status":"401","schemes":"bearer","scope":"https://mail.example/ smtp"}"#
        );
        assert_eq!(said(Form::Xoauth2, Failure::InvalidRequest, "a\"b"), r#"{"status":"400","schemes":"bearer"}"#);
    }

    proptest! {
        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..200), form in "n,,\u{1}auth=Bearer [a-z=]{0,9}\u{1}{0,3}") {
            crate::fuzz::bearer(&data);
            crate::fuzz::bearer(form.as_bytes());
        }
    }
}
