//! Networks in CIDR form (RFC 4632 §3.1, RFC 4291 §2.3): `relayclients`, `authcleartext`.
//!
//! An IPv4 client seen through an IPv6 socket (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2) counts as the IPv4 client it is.

use std::net::IpAddr;

use crate::{LineError, list_lines};

/// A network: all addresses that share the first `prefix_bits` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix_bits: u8,
}

impl Cidr {
    /// `192.0.2.0/24`, `2001:db8::/32`, or a lone address. `None` for anything else, a prefix too long too.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(crate::number(bits.as_bytes())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = u8::try_from(bits.unwrap_or(bits_max)).ok()?;
        (u32::from(prefix_bits) <= bits_max).then_some(Self { address, prefix_bits })
    }

    /// Is this client in the network?
    #[must_use]
    pub fn contains(&self, client: IpAddr) -> bool {
        match (self.address, client.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(client)) => {
                same_prefix(net.to_bits().into(), client.to_bits().into(), 32, self.prefix_bits)
            }
            (IpAddr::V6(net), IpAddr::V6(client)) => same_prefix(net.to_bits(), client.to_bits(), 128, self.prefix_bits),
            _ => false,
        }
    }
}

fn same_prefix(a: u128, b: u128, width: u32, prefix_bits: u8) -> bool {
    let host_bits = width.saturating_sub(u32::from(prefix_bits));
    // A shift by the whole width answers 0: `/0` holds every address.
    (a ^ b).checked_shr(host_bits).unwrap_or(0) == 0
}

/// A list of networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<Cidr>);

impl Networks {
    /// One network a line.
    ///
    /// # Errors
    /// The first line that is none; temporary.
    pub fn parse(text: &[u8]) -> Result<Self, LineError> {
        let network = |(number, line)| {
            let problem = || format!("`{}` is no network; write an address, or ADDRESS/BITS", wire::escape::visible(line));
            Cidr::parse(line).ok_or_else(|| LineError::new(number, problem()))
        };
        list_lines(text).map(network).collect::<Result<_, _>>().map(Self)
    }

    /// The loopback networks, the default of `authcleartext`.
    #[must_use]
    pub fn loopback() -> Self {
        Self([&b"127.0.0.0/8"[..], b"::1"].into_iter().filter_map(Cidr::parse).collect())
    }

    /// Is this client in any of them?
    #[must_use]
    pub fn contains(&self, client: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(client))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_table() {
        let table = [
            ("192.0.2.0/24", "192.0.2.255", true),
            ("192.0.2.0/24", "192.0.3.0", false),
            ("192.0.2.77/24", "192.0.2.1", true),
            ("192.0.2.0/24", "::ffff:192.0.2.9", true),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "ffff::", true),
            ("::/0", "1.2.3.4", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
            ("::1", "::1", true),
            ("::1", "::2", false),
        ];
        for (network, client, expected) in table {
            let got = Cidr::parse(network.as_bytes()).unwrap().contains(client.parse().unwrap());
            assert_eq!(got, expected, "{client} in {network}");
        }
    }

    #[test]
    fn what_is_no_network() {
        for bad in
            ["", "10.", "10.0.0.0/33", "::/129", "1.2.3.4/", "1.2.3.4/-1", "1.2.3.4/+8", "host", "1.2.3.4 /8", "1.2.3.4/256"]
        {
            assert_eq!(Cidr::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(Networks::parse(b"# ours\n10.0.0.0/8\n\nfoo\n").unwrap_err().line, 4);
    }

    #[test]
    fn loopback_is_loopback() {
        let loopback = Networks::loopback();
        for (client, expected) in [("127.9.9.9", true), ("::1", true), ("128.0.0.1", false), ("::", false)] {
            assert_eq!(loopback.contains(client.parse().unwrap()), expected, "{client}");
        }
    }
}
