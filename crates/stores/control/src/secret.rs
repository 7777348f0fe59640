//! Secrets in files of their own: the password that a directory is searched with, a client secret.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::{ControlError, read};
use wire::Secret;

/// Reads the first line of a file that only its reader may read: the caller, whose file it must be. Blanks at the end of the line belong
/// to it.
///
/// # Errors
/// Missing, empty, somebody else's, or others may read it; temporary.
pub fn read(path: &Path) -> Result<Secret, ControlError> {
    let file = read::open(path)?;
    check_private(path, file.as_ref().map(|(_, metadata)| metadata), rustix::process::geteuid().as_raw())?;
    let (file, metadata) = file.ok_or_else(|| missing(path))?;
    let text = Secret::new(read::contents(path, file, &metadata)?);
    let line = text.expose().split(|b| *b == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(ControlError::new(path, "is empty; its first line is the secret"));
    }
    Ok(Secret::new(line.to_vec()))
}

fn missing(path: &Path) -> ControlError {
    ControlError::new(path, "is missing; its first line is the secret")
}

/// Is the file at `path` `reader`'s alone? For `qmail check`, which is root and may read everything.
///
/// # Errors
/// It is not; the text says what to do.
pub fn check_file(path: &Path, reader: u32) -> Result<(), ControlError> {
    let file = read::open(path)?;
    check_private(path, file.as_ref().map(|(_, metadata)| metadata), reader)
}

fn check_private(path: &Path, metadata: Option<&std::fs::Metadata>, reader: u32) -> Result<(), ControlError> {
    let metadata = metadata.ok_or_else(|| missing(path))?;
    // The group does not help: all service roles share it.
    let problem = match (metadata.uid() == reader, metadata.mode() & 0o077) {
        (false, _) => format!("holds a secret and belongs to uid {}; it must be uid {reader}'s (chown {reader})", metadata.uid()),
        (true, 0) => return Ok(()),
        (true, _) => "holds a secret that others may read (chmod 600)".to_owned(),
    };
    Err(ControlError::new(path, problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn only_its_reader_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let set = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        assert!(super::read(&path).unwrap_err().problem.contains("missing"));
        set("hush hush \r\nmore\n", 0o600);
        assert_eq!(super::read(&path).unwrap().expose(), b"hush hush ");
        set("\nx", 0o600);
        assert!(super::read(&path).unwrap_err().problem.contains("empty"));
        for mode in [0o604, 0o640, 0o620, 0o644] {
            set("x", mode);
            assert!(super::read(&path).unwrap_err().problem.contains("others may read"), "{mode:o}");
        }
        set("x", 0o600);
        let other = rustix::process::geteuid().as_raw() + 1;
        assert!(check_file(&path, other).unwrap_err().problem.contains("must be uid"));
    }
}
