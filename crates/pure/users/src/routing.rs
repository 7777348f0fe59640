//! Where a recipient goes: addresses(5), qmail-send(8), and the virtual domains of users/domains, which come first.
//!
//! Pure and total: every address gets a route, or one permanent answer when a prefix makes it too long. qmail-send asks once
//! per recipient when a message is accepted; qmail-auth asks to see whether a domain is ours.

use std::collections::HashMap;

use wire::{Address, AddressError};

use crate::{HostSet, VirtualDomains, hosts::suffixes, list_lines};

/// The answer for one recipient; the address is as it will be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routed {
    /// A user of a domain of users/domains.
    Virtual(Address),
    /// This host's: by `locals` as it is, by `virtualdomains` with its prefix.
    Local(Address),
    Remote(Address),
}

impl Routed {
    #[must_use]
    pub fn address(&self) -> &Address {
        match self {
            Self::Virtual(address) | Self::Local(address) | Self::Remote(address) => address,
        }
    }

    /// Does qmail-lspawn deliver it?
    #[must_use]
    pub fn is_local(&self) -> bool {
        !matches!(self, Self::Remote(_))
    }
}

/// The values of the control files that decide.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    pub virtual_domains: VirtualDomains,
    pub locals: HostSet,
    pub percenthack: HostSet,
    pub envnoathost: Vec<u8>,
    virtualdomains: HashMap<Vec<u8>, Vec<u8>>,
}

impl Routing {
    #[must_use]
    pub fn new(
        virtual_domains: VirtualDomains,
        locals: HostSet,
        percenthack: HostSet,
        envnoathost: Vec<u8>,
        virtualdomains: &[u8],
    ) -> Self {
        Self {
            virtual_domains,
            locals,
            percenthack,
            envnoathost,
            virtualdomains: parse_map(virtualdomains).into_iter().collect(),
        }
    }

    /// The route of a recipient as it stands in the envelope.
    ///
    /// # Errors
    /// Permanent: with `envnoathost` or its prefix the address would be too long.
    pub fn rewrite(&self, recipient: &Address) -> Result<Routed, AddressError> {
        let address = self.with_host(recipient)?;
        let domain = address.domain().unwrap_or_default();
        if self.virtual_domains.get(domain).is_some() {
            return Ok(Routed::Virtual(address));
        }
        if self.locals.contains_exact(domain) {
            return Ok(Routed::Local(address));
        }
        match self.prefix_of(address.as_bytes(), domain) {
            Some(prefix) => Address::new(&[prefix, b"-", address.as_bytes()].concat()).map(Routed::Local),
            None => Ok(Routed::Remote(address)),
        }
    }

    /// The address as its sender knew it: without the prefix that `virtualdomains` gave it (for bounces).
    #[must_use]
    pub fn without_prefix<'a>(&self, recipient: &'a Address) -> &'a [u8] {
        let whole = recipient.as_bytes();
        let Some(domain) =
            recipient.domain().filter(|domain| self.virtual_domains.get(domain).is_none() && !self.locals.contains_exact(domain))
        else {
            return whole;
        };
        let stripped = |prefix: &[u8]| whole.strip_prefix(prefix)?.strip_prefix(b"-");
        // An entry for the whole address is looked for under the address without its prefix, which only that prefix tells.
        let by_address = self.virtualdomains.iter().find_map(|(key, prefix)| {
            let rest = stripped(prefix).filter(|_| !prefix.is_empty())?;
            (key.contains(&b'@') && key.eq_ignore_ascii_case(rest)).then_some(rest)
        });
        by_address.or_else(|| self.prefix_of(domain, domain).and_then(stripped)).unwrap_or(whole)
    }

    /// Steps 1 and 2 of addresses(5): a host for every address, and the percent hack.
    fn with_host(&self, recipient: &Address) -> Result<Address, AddressError> {
        let mut address = match recipient.domain() {
            Some(_) => recipient.clone(),
            None => Address::join(recipient.as_bytes(), &self.envnoathost)?,
        };
        while address.domain().is_some_and(|domain| self.percenthack.contains_exact(domain)) {
            let local = address.local();
            let Some(percent) = memchr_last(b'%', local) else { break };
            let (user, host) =
                (local.get(..percent).unwrap_or_default(), local.get(percent.saturating_add(1)..).unwrap_or_default());
            // One byte shorter than before each time, so this ends.
            address = Address::join(user, host)?;
        }
        Ok(address)
    }

    /// The prefix for the whole address, the domain, its suffixes, or the catch-all; an empty one is an exception: no prefix.
    fn prefix_of(&self, address: &[u8], domain: &[u8]) -> Option<&[u8]> {
        if self.virtualdomains.is_empty() {
            return None;
        }
        let (address, domain) = (address.to_ascii_lowercase(), domain.to_ascii_lowercase());
        let keys = std::iter::once(address.as_slice()).chain(suffixes(&domain)).chain(std::iter::once(&b""[..]));
        let prefix = keys.filter_map(|key| self.virtualdomains.get(key)).next()?;
        (!prefix.is_empty()).then_some(prefix)
    }
}

/// A map file: `key:value` lines split at the first colon, keys lower-cased; lines without a colon do not count. When a key
/// stands twice the later line wins, as in the reference's tables.
#[must_use]
pub fn parse_map(text: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pair = |(_, line): (usize, &[u8])| {
        let colon = line.iter().position(|b| *b == b':')?;
        let (key, value) = line.split_at_checked(colon)?;
        Some((key.to_ascii_lowercase(), value.get(1..)?.to_vec()))
    };
    list_lines(text).filter_map(pair).collect()
}

fn memchr_last(byte: u8, bytes: &[u8]) -> Option<usize> {
    bytes.iter().rposition(|b| *b == byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn routing() -> Routing {
        Routing::new(
            VirtualDomains::parse(b"virt.example:5:6:/mail/virt.example\nboth.example:5:6:/mail/both\n").unwrap(),
            HostSet::parse(b"here.example\nBoth.example\nhack.example\n"),
            HostSet::parse(b"hack.example\n"),
            b"here.example".to_vec(),
            b"Ann@v.example:ann-v\nv.example:v\n.v.example:vsub\nexc.v.example:\nboth.example:never\nno colon\ntwice.example:1\ntwice.example:2\n",
        )
    }

    #[test]
    fn rewriting_table() {
        let table = [
            ("joe", "L joe@here.example"),
            ("", "L @here.example"),
            ("joe@HERE.example", "L joe@HERE.example"),
            ("joe@virt.example", "V joe@virt.example"),
            ("joe@VIRT.example.", "V joe@VIRT.example."),
            ("joe@both.example", "V joe@both.example"),
            ("a%b.example@hack.example", "R a@b.example"),
            ("a%b%here.example@hack.example", "L a%b@here.example"),
            ("a%b.example%hack.example@hack.example", "R a@b.example"),
            ("a%virt.example@hack.example", "V a@virt.example"),
            ("a@hack.example", "L a@hack.example"),
            ("a%b.example@here.example", "L a%b.example@here.example"),
            ("ann@v.example", "L ann-v-ann@v.example"),
            ("ANN@V.example", "L ann-v-ANN@V.example"),
            ("bob@v.example", "L v-bob@v.example"),
            ("bob@x.v.example", "L vsub-bob@x.v.example"),
            ("bob@y.x.v.example", "L vsub-bob@y.x.v.example"),
            ("bob@exc.v.example", "R bob@exc.v.example"),
            ("bob@z.exc.v.example", "L vsub-bob@z.exc.v.example"),
            ("a@b@v.example", "L v-a@b@v.example"),
            ("bob@twice.example", "L 2-bob@twice.example"),
            ("bob@other.example", "R bob@other.example"),
        ];
        let routing = routing();
        for (recipient, expected) in table {
            let got = match routing.rewrite(&Address::new(recipient.as_bytes()).unwrap()).unwrap() {
                Routed::Virtual(to) => format!("V {to}"),
                Routed::Local(to) => format!("L {to}"),
                Routed::Remote(to) => format!("R {to}"),
            };
            assert_eq!(got, expected, "{recipient}");
        }
    }

    #[test]
    fn the_catch_all_takes_the_rest() {
        let routing = Routing::new(
            VirtualDomains::default(),
            HostSet::default(),
            HostSet::default(),
            b"h".to_vec(),
            b":all\nmx.example:\n",
        );
        for (recipient, expected) in [("a@b.example", "all-a@b.example"), ("a@mx.example", "a@mx.example"), ("a", "all-a@h")] {
            assert_eq!(routing.rewrite(&Address::new(recipient.as_bytes()).unwrap()).unwrap().address().to_string(), expected);
        }
    }

    #[test]
    fn a_prefix_that_makes_the_address_too_long_is_permanent() {
        let long = [&[b'a'; wire::address::ADDRESS_LEN_MAX - 10][..], b"@v.example"].concat();
        assert_eq!(routing().rewrite(&Address::new(&long).unwrap()), Err(AddressError::TooLong));
    }

    proptest! {
        #[test]
        fn the_prefix_comes_off_again(local in "[a-z%-]{1,8}", host in "(x\\.)?(v|exc\\.v|virt|here|other|hack)\\.example") {
            let routing = routing();
            let recipient = Address::new(format!("{local}@{host}").as_bytes()).unwrap();
            let routed = routing.rewrite(&recipient).unwrap();
            if host != "hack.example" {
                let back = routing.without_prefix(routed.address());
                // An address that was written with the prefix already loses it too, as in the reference.
                prop_assert!(back == recipient.as_bytes() || recipient.as_bytes().ends_with(back));
            }
            prop_assert_eq!(routing.rewrite(&recipient).unwrap(), routed);
        }
    }
}
