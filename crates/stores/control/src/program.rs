//! Where the other programs are: beside the running executable, so that a tree built anywhere works, else in the package's place.

use std::path::{Path, PathBuf};

/// Where the package puts the daemons.
pub const LIBEXEC: &str = "/usr/lib/qmail";

/// The path of another program of this release.
#[must_use]
pub fn sibling(name: &str) -> PathBuf {
    let executable = std::env::current_exe().ok();
    let beside = executable.as_deref().and_then(Path::parent).map(|dir| dir.join(name));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| Path::new(LIBEXEC).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_this_program_or_in_its_place() {
        let own = std::env::current_exe().unwrap();
        assert_eq!(sibling(own.file_name().unwrap().to_str().unwrap()), own);
        assert_eq!(sibling("qmail-nothing"), Path::new("/usr/lib/qmail/qmail-nothing"));
    }
}
