//! The Landlock layer: which directories a process can still reach by opening names.
//!
//! Descriptors that are open stay usable. Landlock does not govern connecting to a Unix socket: directory modes and SO_PEERCRED
//! do that.

use crate::table::{Access, Place};
use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};
use std::io;
use std::path::{Path, PathBuf};

/// The newest set of file rights that this program knows; older kernels enforce what they know of it.
const NEWEST: ABI = ABI::V5;

/// Can this kernel's Landlock rename between directories (ABI 2)? Below that it would stop Maildir deliveries, so the layer is
/// off there.
#[must_use]
pub fn is_supported() -> bool {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer)
        .is_ok_and(|rules| rules.create().is_ok())
}

/// Restricts this thread and all its later children. Returns false when the layer is off.
///
/// # Errors
/// The kernel has Landlock but refused the rules. Directories that do not exist are left out.
pub(crate) fn confine(places: &[(Place, Access)], root: &Path, extra: &[(PathBuf, Access)]) -> io::Result<bool> {
    if !is_supported() {
        return Ok(false);
    }
    let all = AccessFs::from_all(NEWEST);
    let mut rules = Ruleset::default().handle_access(all).and_then(Ruleset::create).map_err(io::Error::other)?;
    let named = places.iter().flat_map(|(place, access)| paths(*place, root).into_iter().map(|path| (path, *access)));
    for (path, access) in named.chain(extra.iter().cloned()) {
        let Ok(fd) = PathFd::new(&path) else { continue };
        let rights = match access {
            Access::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            // Everything but running programs and making devices.
            Access::ReadWrite => all & !(AccessFs::Execute | AccessFs::MakeBlock | AccessFs::MakeChar | AccessFs::IoctlDev),
        };
        rules = rules.add_rule(PathBeneath::new(fd, rights)).map_err(io::Error::other)?;
    }
    let status = rules.restrict_self().map_err(io::Error::other)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn paths(place: Place, root: &Path) -> Vec<PathBuf> {
    match place {
        Place::Control => vec![root.join("etc/qmail/control")],
        Place::Users => vec![root.join("etc/qmail/users")],
        Place::Spool => vec![root.join("var/spool/qmail")],
        Place::Lib => vec![root.join("var/lib/qmail")],
        Place::Tls => vec![root.join("etc/qmail/tls")],
        Place::NameService => {
            ["/etc", "/lib", "/lib32", "/lib64", "/usr", "/run", "/var/lib/sss", "/var/db", "/proc"].map(PathBuf::from).to_vec()
        }
    }
}
