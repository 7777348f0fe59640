//! `control/smtproutes`, artificial routes by the recipient's host (qmail-remote(8)), `control/qmtproutes`, the same by QMTP, and
//! `control/authsenders`, relays by the sender (smtp-auth patch). qmail-send looks them up and tells qmail-remote the result, credentials and all, with each job.

use std::collections::HashMap;
use std::fmt;

use users::hosts::suffixes;
use wire::{Address, Login, Secret};

use crate::read;

/// The port of a route that names none.
pub const PORT_DEFAULT: u16 = 25;

/// Where mail for a host goes instead of its MX.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// A host name or an address literal without brackets. Empty: the host's own MX, but at [`Route::port`].
    pub relay: Vec<u8>,
    pub port: u16,
    /// With what we log in there.
    pub login: Option<Login>,
}

/// The port of a route of `control/qmtproutes` that names none.
pub const QMTP_PORT_DEFAULT: u16 = 209;

/// All routes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Routes(HashMap<Vec<u8>, Vec<u8>>);

/// Values hold passwords.
impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Routes({} entries)", self.0.len())
    }
}

impl Routes {
    /// Takes what [`crate::Root::map`] read; of equal keys the last counts.
    #[must_use]
    pub fn new(map: read::Map) -> Self {
        Self(map.into_iter().collect())
    }

    /// The route by QMTP of a host, from what `control/qmtproutes` holds. An entry `host:` with nothing behind it takes a host out
    /// of a wider route; credentials have no meaning.
    #[must_use]
    pub fn lookup_qmtp(&self, host: &[u8]) -> Option<(Vec<u8>, u16)> {
        let (relay, port, _) = parse(self.value(host)?);
        Some((relay.to_vec(), port.unwrap_or(QMTP_PORT_DEFAULT))).filter(|(relay, _)| !relay.is_empty())
    }

    /// The route of a host: its own, that of the longest `.suffix`, or that of the empty key; `None` means by MX. So does an
    /// entry `host:` with nothing behind it, which takes a host out of a wider route.
    #[must_use]
    pub fn lookup(&self, host: &[u8]) -> Option<Route> {
        parse_route(self.value(host)?)
    }

    fn value(&self, host: &[u8]) -> Option<&[u8]> {
        let host = host.to_ascii_lowercase();
        suffixes(&host).chain(std::iter::once(&b""[..])).find_map(|key| self.0.get(key)).map(Vec::as_slice)
    }
}

/// Relays of senders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Senders(Routes);

impl Senders {
    /// As [`Routes::new`].
    #[must_use]
    pub fn new(map: read::Map) -> Self {
        Self(Routes::new(map))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.0.is_empty()
    }

    /// The relay of a sender: that of the whole address, of its `@domain`, or of the empty key. `None` leaves it to smtproutes; so
    /// does an entry with nothing behind its colon.
    #[must_use]
    pub fn lookup(&self, sender: &Address) -> Option<Route> {
        let sender = sender.as_bytes().to_ascii_lowercase();
        let domain = sender.iter().rposition(|b| *b == b'@').and_then(|at| sender.get(at..));
        let keys = [Some(sender.as_slice()), domain, Some(&b""[..])];
        parse_route(keys.into_iter().flatten().find_map(|key| self.0.0.get(key))?)
    }
}

/// A value without its credentials, for texts that people read.
#[must_use]
pub fn without_credentials(value: &[u8]) -> &[u8] {
    split_credentials(value).0
}

/// Does this value have credentials?
#[must_use]
pub fn has_credentials(value: &[u8]) -> bool {
    split_credentials(value).1.is_some()
}

/// Credentials stand behind a `|` or a blank: `relay|user|password`, `relay user password`. The password is the rest of the line.
fn split_credentials(value: &[u8]) -> (&[u8], Option<Login>) {
    let is_blank = |b: &u8| matches!(b, b' ' | b'\t');
    let (route, rest) = cut(value, value.iter().position(|b| *b == b'|' || is_blank(b)));
    let (user, password) = match rest.trim_ascii_start().strip_prefix(b"|") {
        Some(rest) => {
            let (user, password) = cut(rest, rest.iter().position(|b| *b == b'|'));
            (user, password.get(1..).unwrap_or_default())
        }
        None => {
            let rest = rest.trim_ascii_start();
            let (user, password) = cut(rest, rest.iter().position(is_blank));
            (user, password.trim_ascii_start())
        }
    };
    let login = Login { user: user.to_vec(), password: Secret::new(password.to_vec()) };
    (route, Some(login).filter(|login| !login.user.is_empty()))
}

/// Divides in front of `at`; without it all is front.
fn cut(bytes: &[u8], at: Option<usize>) -> (&[u8], &[u8]) {
    bytes.split_at_checked(at.unwrap_or(bytes.len())).unwrap_or((bytes, b""))
}

/// `relay`, `relay:port`, `[2001:db8::1]:port`, and credentials ([`split_credentials`]). A port that is no number counts as none, as in
/// the reference: the relay is what the administrator surely meant. `None`: it says nothing.
fn parse_route(value: &[u8]) -> Option<Route> {
    let (relay, port, login) = parse(value);
    let route = Route { relay: relay.to_vec(), port: port.unwrap_or(PORT_DEFAULT), login };
    Some(route).filter(|route| !route.relay.is_empty() || route.port != PORT_DEFAULT)
}

fn parse(value: &[u8]) -> (&[u8], Option<u16>, Option<Login>) {
    let (value, login) = split_credentials(value);
    let bracketed = value.strip_prefix(b"[").and_then(|rest| {
        let end = rest.iter().position(|b| *b == b']')?;
        Some((rest.get(..end)?, rest.get(end.checked_add(1)?..)?))
    });
    let (relay, rest) = bracketed.unwrap_or_else(|| {
        let colon = value.iter().position(|b| *b == b':').unwrap_or(value.len());
        value.split_at_checked(colon).unwrap_or((value, b""))
    });
    let digits = rest.strip_prefix(b":").and_then(read::int_of);
    (relay, digits.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0), login)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookup_table() {
        let text = b"Exact.example:relay.example:26\n.example:wide.example\n.deep.example:[2001:db8::1]:2525\nown.example:\n\
            mxport.example::587\nauth.example:relay.example:587|user|pa:ss\nv6.example:[::1]\n:[127.0.0.1]:10025\nbad.example:relay:x\n";
        let routes = Routes::new(read::map_of(text));
        let table = [
            ("exact.EXAMPLE", Some(("relay.example", 26))),
            ("other.example", Some(("wide.example", 25))),
            ("a.deep.example", Some(("2001:db8::1", 2525))),
            ("deep.example", Some(("wide.example", 25))),
            ("own.example", None),
            ("mxport.example", Some(("", 587))),
            ("auth.example", Some(("relay.example", 587))),
            ("v6.example", Some(("::1", 25))),
            ("else.org", Some(("127.0.0.1", 10025))),
            ("bad.example", Some(("relay", 25))),
        ];
        for (host, expected) in table {
            let got = routes.lookup(host.as_bytes());
            let login = got.as_ref().and_then(|route| route.login.clone());
            assert_eq!(login.is_some(), host.starts_with("auth."), "{host}");
            let expected = expected.map(|(relay, port)| Route { relay: relay.as_bytes().to_vec(), port, login });
            assert_eq!(got, expected, "{host}");
        }
        assert_eq!(Routes::default().lookup(b"a.example"), None);
    }

    #[test]
    fn qmtp_routes_have_a_port_of_their_own() {
        let text = b"a.example:relay\n.a.example:relay:2090\nnot.a.example:\nb.example:[2001:db8::1]\nc.example::2090\n";
        let routes = Routes::new(read::map_of(text));
        for (host, expected) in [
            ("A.example", Some(("relay", 209))),
            ("x.a.example", Some(("relay", 2090))),
            ("not.a.example", None),
            ("b.example", Some(("2001:db8::1", 209))),
            ("c.example", None),
            ("d.example", None),
        ] {
            let expected = expected.map(|(relay, port): (&str, u16)| (relay.as_bytes().to_vec(), port));
            assert_eq!(routes.lookup_qmtp(host.as_bytes()), expected, "{host}");
        }
    }

    #[test]
    fn credentials_in_both_notations() {
        for (value, relay, credentials) in [
            ("r:587|joe|a:b|c d", "r", Some(("joe", "a:b|c d"))),
            ("r:587 joe a:b|c d", "r", Some(("joe", "a:b|c d"))),
            ("r:587\tjoe \t pw", "r", Some(("joe", "pw"))),
            ("r:587| joe| pw", "r", Some((" joe", " pw"))),
            ("[::1]:587|joe|", "::1", Some(("joe", ""))),
            ("r:587||pw", "r", None),
            ("r:587", "r", None),
        ] {
            let route = parse_route(value.as_bytes()).unwrap();
            let login = credentials.map(|(user, password): (&str, &str)| Login {
                user: user.as_bytes().to_vec(),
                password: Secret::new(password.as_bytes().to_vec()),
            });
            assert_eq!(route, Route { relay: relay.as_bytes().to_vec(), port: 587, login }, "{value}");
            assert!(!without_credentials(value.as_bytes()).ends_with(b"pw"));
        }
        let routes = Routes::new(read::map_of(b"a:r|joe|xyzzy\n"));
        assert!(!format!("{routes:?} {:?}", routes.lookup(b"a")).contains("xyzzy"));
    }

    #[test]
    fn senders_table() {
        let text = b"Joe@a.example:r1:587|joe|pw\n@a.example:r2|all|pw\nfree@a.example:\n:r3\n";
        let senders = Senders::new(read::map_of(text));
        let relay = |sender: &str| {
            senders.lookup(&Address::new(sender.as_bytes()).unwrap()).map(|route| String::from_utf8(route.relay).unwrap())
        };
        for (sender, expected) in [
            ("joe@A.example", Some("r1")),
            ("ann@a.example", Some("r2")),
            ("free@a.example", None),
            ("joe@sub.a.example", Some("r3")),
            ("", Some("r3")),
        ] {
            assert_eq!(relay(sender).as_deref(), expected, "{sender}");
        }
        assert_eq!(Senders::default().lookup(&Address::null()), None);
    }
}
