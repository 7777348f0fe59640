//! The name of an address, by whatever /etc/nsswitch.conf says (getnameinfo(3)).
//!
//! NSS loads modules into the process and may wait for a network: only for programs that a caller runs for one connection (tcp-env).

use std::io;
use std::net::{IpAddr, SocketAddr};

/// Longest name, with its NUL (NI_MAXHOST).
const NAME_LEN_MAX: usize = 1025;

/// The name of this address; `None`: it has none.
///
/// # Errors
/// Nobody can say now; temporary.
pub fn of_address(address: IpAddr) -> io::Result<Option<Vec<u8>>> {
    let mut name = [0u8; NAME_LEN_MAX];
    let result = match SocketAddr::new(address, 0) {
        SocketAddr::V4(v4) => {
            // SAFETY: zeroes are a valid sockaddr_in.
            let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            raw.sin_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0);
            raw.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
            look_up((&raw const raw).cast(), size_of_val(&raw), &mut name)
        }
        SocketAddr::V6(v6) => {
            // SAFETY: zeroes are a valid sockaddr_in6.
            let mut raw: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            raw.sin6_family = libc::sa_family_t::try_from(libc::AF_INET6).unwrap_or(0);
            raw.sin6_addr.s6_addr = v6.ip().octets();
            look_up((&raw const raw).cast(), size_of_val(&raw), &mut name)
        }
    };
    match result {
        0 => Ok(Some(name.iter().copied().take_while(|b| *b != 0).collect())),
        libc::EAI_AGAIN | libc::EAI_SYSTEM | libc::EAI_MEMORY => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(None),
    }
}

/// The pointer must lead to `len` bytes that are a socket address.
fn look_up(address: *const libc::sockaddr, len: usize, name: &mut [u8; NAME_LEN_MAX]) -> libc::c_int {
    let len = libc::socklen_t::try_from(len).unwrap_or(0);
    let name_len = libc::socklen_t::try_from(name.len()).unwrap_or(0);
    // SAFETY: both callers pass a live address with its length; the name is writable for the length given, and no service is asked for.
    unsafe { libc::getnameinfo(address, len, name.as_mut_ptr().cast(), name_len, std::ptr::null_mut(), 0, libc::NI_NAMEREQD) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn loopback_has_a_name_or_none_but_no_number() {
        // What it is called is the machine's affair; a number would be no name.
        if let Ok(Some(name)) = super::of_address("127.0.0.1".parse().unwrap()) {
            assert!(!name.is_empty() && name != b"127.0.0.1");
        }
    }
}
