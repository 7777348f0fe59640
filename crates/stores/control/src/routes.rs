//! `control/smtproutes`: artificial routes (qmail-remote(8)). qmail-send looks them up and tells qmail-remote the result.

use std::collections::HashMap;

use users::hosts::suffixes;

use crate::read;

/// The port of a route that names none.
pub const PORT_DEFAULT: u16 = 25;

/// Where mail for a host goes instead of its MX.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// A host name or an address literal without brackets. Empty: the host's own MX, but at [`Route::port`].
    pub relay: Vec<u8>,
    pub port: u16,
}

/// All routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes(HashMap<Vec<u8>, Vec<u8>>);

impl Routes {
    /// Takes what [`crate::Root::map`] read; of equal keys the last counts.
    #[must_use]
    pub fn new(map: read::Map) -> Self {
        Self(map.into_iter().collect())
    }

    /// The route of a host: its own, that of the longest `.suffix`, or that of the empty key; `None` means by MX. So does an
    /// entry `host:` with nothing behind it, which takes a host out of a wider route.
    #[must_use]
    pub fn lookup(&self, host: &[u8]) -> Option<Route> {
        let host = host.to_ascii_lowercase();
        let keys = suffixes(&host).chain(std::iter::once(&b""[..]));
        let value = keys.filter_map(|key| self.0.get(key)).next()?;
        Some(parse_route(value)).filter(|route| !route.relay.is_empty() || route.port != PORT_DEFAULT)
    }
}

/// `relay`, `relay:port`, `[2001:db8::1]:port`; behind a `|` stand credentials, which are not part of the route. A port that is
/// no number counts as none, as in the reference: the relay is what the administrator surely meant.
fn parse_route(value: &[u8]) -> Route {
    let value = value.split(|b| *b == b'|').next().unwrap_or_default();
    let bracketed = value.strip_prefix(b"[").and_then(|rest| {
        let end = rest.iter().position(|b| *b == b']')?;
        Some((rest.get(..end)?, rest.get(end.checked_add(1)?..)?))
    });
    let (relay, rest) = bracketed.unwrap_or_else(|| {
        let colon = value.iter().position(|b| *b == b':').unwrap_or(value.len());
        value.split_at_checked(colon).unwrap_or((value, b""))
    });
    let digits = rest.strip_prefix(b":").and_then(read::int_of);
    let port = digits.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0).unwrap_or(PORT_DEFAULT);
    Route { relay: relay.to_vec(), port }
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
            let expected = expected.map(|(relay, port)| Route { relay: relay.as_bytes().to_vec(), port });
            assert_eq!(got, expected, "{host}");
        }
        assert_eq!(Routes::default().lookup(b"a.example"), None);
    }
}
