//! The IP addresses of this host's interfaces.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// More addresses than this are not looked at.
const ADDRESSES_MAX: usize = 4096;

/// All addresses of all interfaces, loopback included, as they are now (getifaddrs(3)). Opens a netlink socket for a moment, so it
/// must be called before the sandbox is entered.
///
/// # Errors
/// What getifaddrs(3) says; temporary.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs stores a list in `list`, or fails and stores nothing.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut at = list;
    while !at.is_null() && found.len() < ADDRESSES_MAX {
        // SAFETY: `at` is an entry of the list, which lives until freeifaddrs below.
        let (address, next) = unsafe { ((*at).ifa_addr, (*at).ifa_next) };
        found.extend(address_of(address));
        at = next;
    }
    // SAFETY: `list` came from getifaddrs and is freed once; nothing of it is kept.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

fn address_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    if address.is_null() {
        return None;
    }
    // SAFETY: every sockaddr begins with its family.
    match i32::from(unsafe { (*address).sa_family }) {
        libc::AF_INET => {
            // SAFETY: the family says that this is a sockaddr_in; reading unaligned asks nothing of its place.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for a sockaddr_in6.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn loopback_is_among_them() {
        let addresses = super::addresses().unwrap();
        assert!(addresses.contains(&"127.0.0.1".parse().unwrap()), "{addresses:?}");
    }
}
