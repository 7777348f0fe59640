//! qmail-resolve: DNS for everyone else, on resolve.sock.

use crate::field::Bytes;
use std::net::IpAddr;
use wire::Domain;

/// Most hosts in an answer (past-holes R10).
pub const HOSTS_MAX: usize = 20;
/// Most addresses of a host.
pub const ADDRESSES_MAX: usize = 20;

messages! {
    /// A question; `id` comes back in the answer.
    pub enum Request {
        /// The mail hosts of a domain, with their addresses, in order of preference.
        1 => Mx { id: u64, domain: Domain },
        /// The addresses of one host (a relay): no MX.
        2 => Addresses { id: u64, host: Bytes },
        /// The site that a domain's mail goes to: domains with the same key share their best mail hosts.
        3 => Site { id: u64, domain: Domain },
    }
}

record! {
    /// A mail host. No addresses: they could not be looked up now (`temporary`) or there are none.
    pub struct Host {
        preference: u16,
        name: Bytes,
        addresses: Vec<IpAddr>,
        temporary: bool,
    }
}

messages! {
    pub enum Answer {
        /// Sorted by preference. `implicit`: there is no MX record, the host is the domain itself (RFC 5321 §5.1).
        1 => Hosts { id: u64, hosts: Vec<Host>, implicit: bool, ttl_s: u32 },
        /// `MX 0 .`: the domain takes no mail (RFC 7505).
        2 => NullMx { id: u64, ttl_s: u32 },
        /// The name does not exist, or (`name_exists`) has neither MX nor addresses.
        3 => NoHost { id: u64, name_exists: bool, ttl_s: u32 },
        /// Not now; the text is for the report.
        4 => Temporary { id: u64, text: Bytes },
        /// An opaque key, the same for domains of the same site.
        5 => Site { id: u64, key: Bytes, ttl_s: u32 },
    }
}
