//! qmail-authnet: logins that are judged by servers elsewhere, on authnet.sock. One login in, one verdict out.
//!
//! qmail-auth asks whether a password is somebody's (an LDAP directory says it) or whose an OAuth token is (its issuer says it). What
//! comes back is a name; whether an account here has that name, and may enter, stays qmail-auth's to decide.
//!
//! Guarantees: every request is answered within [`REQUEST_MAX`]; what cannot be found out is "not now", never "wrong" and never "right";
//! a server that does not answer costs nobody but its first askers the wait; requests under way, connections, answers of servers and what
//! is remembered are bounded. Passwords and tokens are wiped after use and never printed. No DNS of its own (qmail-resolve), no file
//! after its start: configuration and secrets are read before the sandbox. Runs as `qmailn`, and only where control/authsources needs it.
//!
//! | module | noun |
//! |---|---|
//! | [`service`] | the process: configuration, descriptors, sandbox, requests |
//! | [`directory`] | an LDAP directory (RFC 4511): find the entry, bind as it |
//! | [`conversation`] | LDAP messages on one connection |
//! | [`tokens`] | OAuth tokens: introspection (RFC 7662) or UserInfo (OpenID Connect) |
//! | [`claims`] | what an answer about a token must say |
//! | [`http`] | one HTTP request |
//! | [`dial`] | connections, with TLS or without |
//! | [`breaker`] | servers that failed are left alone for a while |
#![forbid(unsafe_code)]

pub mod breaker;
pub mod claims;
pub mod conversation;
pub mod dial;
pub mod directory;
pub mod http;
pub mod postgres;
pub mod service;
pub mod tokens;

use std::time::Duration;

pub use directory::Directory;
pub use service::main;
pub use tokens::Tokens;

/// Every request has its answer by then: before qmail-auth and those who ask it give up, after 5 s.
pub const REQUEST_MAX: Duration = Duration::from_secs(4);
/// Requests to one kind of server under way; more are answered "not now" at once.
pub const UNDER_WAY_MAX: usize = 64;
/// Bytes of a text about a server that are logged.
const TEXT_LEN_MAX: usize = 300;

/// What a source says about a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Who it is.
    Right(Vec<u8>),
    Wrong,
    NoSuchUser,
    /// Not now; the text is for the log.
    Unavailable(String),
}

/// A server that gave no answer of use: temporary. The text says why, in printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble(pub String);

impl Trouble {
    /// Texts of libraries may hold what the server sent.
    pub(crate) fn new(what: &str, why: &dyn std::fmt::Display) -> Self {
        let mut text = format!("{what}: {}", wire::escape::visible(why.to_string().as_bytes()));
        text.truncate(TEXT_LEN_MAX);
        Self(text)
    }
}

impl From<&str> for Trouble {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// A name as a server has it, completed with the domain if it has none.
pub(crate) fn account(name: &[u8], domain: Option<&str>) -> Vec<u8> {
    match domain {
        Some(domain) if !name.contains(&b'@') => [name, b"@", domain.as_bytes()].concat(),
        _ => name.to_vec(),
    }
}

/// A line for the log; nobody reading it is no reason to stop.
pub(crate) fn log(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{}", wire::escape::visible(text.as_bytes()));
}
