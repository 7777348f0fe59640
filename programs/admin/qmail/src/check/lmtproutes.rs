//! control/lmtproutes: as its readers see it, and whether each place can be what it is meant for.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use control::{LmtpPlace, LmtpRoutes, Root};
use wire::Address;
use wire::escape::visible;

use super::Findings;

pub(super) fn check(root: &Root, found: &mut Findings) {
    let Some(routes) = found.take(LmtpRoutes::read(root)) else { return };
    let file = root.control_file("lmtproutes");
    // Others complain about what is wrong with these.
    let routing = root.routing().ok();
    let is_ours = |domain: &[u8]| {
        let address = Address::join(b"x", domain).ok();
        let routed = routing.as_ref().zip(address).and_then(|(routing, address)| routing.rewrite(&address).ok());
        routed.is_some_and(|routed| routed.is_local())
    };
    let mut places: Vec<_> = routes.places().collect();
    places.sort_by_key(|(domain, _)| *domain);
    for (domain, place) in places {
        match place {
            LmtpPlace::Host { .. } if is_ours(domain) => {
                let problem = "is a domain of this system's own users, whose mail goes to an LMTP server through a Unix socket only, and \
                    waits; write DOMAIN:unix:/PATH";
                found.error(&file, format!("{} {problem}", visible(domain)));
            }
            LmtpPlace::Host { .. } => {}
            LmtpPlace::Socket(path) => {
                let path = Path::new(OsStr::from_bytes(path));
                let is_socket = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
                if !is_socket {
                    let problem = "there is no socket now; mail waits until the LMTP server listens there";
                    found.warning(&file, format!("{}: {problem}", path.display()));
                }
            }
        }
    }
}
