//! Programs in the place of qmail-local and qmail-remote.

use std::os::unix::fs::PermissionsExt as _;

use control::Root;
use control::replacements::{LOCAL, REMOTE};

use super::Findings;

/// The files alone: whoever runs this has an environment of his own.
pub(super) fn check(root: &Root, found: &mut Findings) {
    for replacement in [LOCAL, REMOTE] {
        let Some(Some(program)) = found.take(replacement.read_file(root)) else { continue };
        let file = root.control_file(replacement.file);
        let runs = std::fs::metadata(&program).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
        if !runs {
            let advice = "install it, or take the line out: the system does not start, and mail waits";
            found.error(&file, format!("{} is no program that can be run; {advice}", program.display()));
        }
    }
}
