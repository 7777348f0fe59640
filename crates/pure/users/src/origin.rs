//! Whose connection it is: the client's own, or one that a proxy made for it, and which networks that counts for.
//!
//! Guarantees: a loopback address that a proxy on another host tells is that host's, never ours: it is in no network of ours (promise 5).
//! A password goes in clear over the last hop, too: behind a proxy the proxy's own address must be in `authcleartext` as well as the
//! client's (promise 4).

use crate::Networks;
use std::net::IpAddr;

/// Where a connection comes from. IPv4 in IPv6 form counts as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Whom we talk to, as far as we believe it.
    pub client: IpAddr,
    /// Who told us so, if that was not seen by ourselves.
    pub proxy: Option<IpAddr>,
}

impl Origin {
    /// A client that connected itself.
    #[must_use]
    pub fn direct(client: IpAddr) -> Self {
        Self { client: client.to_canonical(), proxy: None }
    }

    /// `client`, as the other end of this connection, a trusted proxy, tells.
    #[must_use]
    pub fn told(self, client: IpAddr) -> Self {
        Self { client: client.to_canonical(), proxy: Some(self.proxy.unwrap_or(self.client)) }
    }

    /// Is the client in one of `networks`?
    #[must_use]
    pub fn is_in(&self, networks: &Networks) -> bool {
        (self.is_this_host() || !self.client.is_loopback()) && networks.contains(self.client)
    }

    /// Is it a program of this host?
    #[must_use]
    pub fn is_this_host(&self) -> bool {
        self.client.is_loopback() && self.proxy.is_none_or(|proxy| proxy.is_loopback())
    }

    /// May a password be sent without TLS, `authcleartext` being `networks`?
    #[must_use]
    pub fn allows_cleartext(&self, networks: &Networks) -> bool {
        self.is_in(networks) && self.proxy.is_none_or(|proxy| networks.contains(proxy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_loopback_address_is_not_ours() {
        let networks = Networks::parse(b"127.0.0.0/8\n::1\n10.0.0.0/8\n192.0.2.0/24\n").unwrap();
        for (client, proxy, is_in, in_clear) in [
            ("127.0.0.1", None, true, true),
            ("::ffff:127.0.0.1", None, true, true),
            ("192.0.2.1", None, true, true),
            ("203.0.113.1", None, false, false),
            ("192.0.2.1", Some("10.0.0.1"), true, true),
            ("192.0.2.1", Some("203.0.113.1"), true, false),
            ("203.0.113.1", Some("10.0.0.1"), false, false),
            ("127.0.0.1", Some("10.0.0.1"), false, false),
            ("::ffff:127.0.0.1", Some("10.0.0.1"), false, false),
            ("::1", Some("203.0.113.1"), false, false),
            ("127.0.0.1", Some("127.0.0.2"), true, true),
            ("192.0.2.1", Some("127.0.0.1"), true, true),
        ] {
            let client = client.parse().unwrap();
            let origin = match proxy {
                Some(proxy) => Origin::direct(proxy.parse().unwrap()).told(client),
                None => Origin::direct(client),
            };
            assert_eq!((origin.is_in(&networks), origin.allows_cleartext(&networks)), (is_in, in_clear), "{origin:?}");
        }
        let chain = Origin::direct("203.0.113.1".parse().unwrap()).told("127.0.0.1".parse().unwrap());
        assert!(!chain.told("127.0.0.1".parse().unwrap()).is_this_host(), "who was seen counts, not who was told");
    }
}
