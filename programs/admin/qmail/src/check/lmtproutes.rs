//! control/lmtproutes: as its readers see it, and whether each place can be what it is meant for.

use std::collections::BTreeSet;
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
    let mut ours = BTreeSet::new();
    // Others complain about what is wrong with this.
    if let Ok(routing) = root.routing() {
        let is_local = |domain: &[u8]| {
            let routed = Address::join(b"x", domain).ok().and_then(|address| routing.rewrite(&address).ok());
            routed.is_some_and(|routed| routed.is_local())
        };
        let named = routes.places().map(|(domain, _)| domain).filter(|domain| is_local(domain));
        ours.extend(named.map(<[u8]>::to_vec));
        // Those that a wider line takes along.
        ours.extend(routing.virtual_domains.sorted().into_iter().map(|(domain, _)| domain.as_bytes().to_vec()));
        ours.extend(routing.locals.iter().map(<[u8]>::to_vec));
    }
    for domain in ours {
        if let Some(LmtpPlace::Host { .. }) = routes.lookup(&domain) {
            let problem = "is a domain of this system's own users, whose mail goes to an LMTP server through a Unix socket only, and \
                waits; write DOMAIN:unix:/PATH";
            found.error(&file, format!("{} {problem}", visible(&domain)));
        }
    }
    let sockets: BTreeSet<_> = routes.places().filter_map(|(_, place)| socket(place)).collect();
    for path in sockets {
        let is_socket = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
        if !is_socket {
            let problem = "there is no socket now; mail waits until the LMTP server listens there";
            found.warning(&file, format!("{}: {problem}", path.display()));
        }
    }
}

fn socket(place: &LmtpPlace) -> Option<&Path> {
    match place {
        LmtpPlace::Host { .. } => None,
        LmtpPlace::Socket(path) => Some(Path::new(OsStr::from_bytes(path))),
    }
}
