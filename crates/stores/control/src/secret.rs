//! Secrets in files of their own: the password that a directory is searched with, a client secret.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::{ControlError, read};

/// The first line of a file that only its reader may read. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Reads it as the caller, whose file it must be and nobody else's to read. Blanks at the end of the line belong to it.
    ///
    /// # Errors
    /// Missing, empty, somebody else's, or others may read it; temporary.
    pub fn read(path: &Path) -> Result<Self, ControlError> {
        let file = read::open(path)?;
        check_private(path, file.as_ref().map(|(_, metadata)| metadata), rustix::process::geteuid().as_raw())?;
        let (file, metadata) = file.ok_or_else(|| missing(path))?;
        let text = read::contents(path, file, &metadata)?;
        let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return Err(ControlError::new(path, "is empty; its first line is the secret"));
        }
        Ok(Self(line.to_vec()))
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
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
        assert!(Secret::read(&path).unwrap_err().problem.contains("missing"));
        set("hush hush \r\nmore\n", 0o600);
        assert_eq!(Secret::read(&path).unwrap().bytes(), b"hush hush ");
        assert_eq!(format!("{:?}", Secret::read(&path).unwrap()), "Secret");
        set("\nx", 0o600);
        assert!(Secret::read(&path).unwrap_err().problem.contains("empty"));
        for mode in [0o604, 0o640, 0o620, 0o644] {
            set("x", mode);
            assert!(Secret::read(&path).unwrap_err().problem.contains("others may read"), "{mode:o}");
        }
        set("x", 0o600);
        let other = rustix::process::geteuid().as_raw() + 1;
        assert!(check_file(&path, other).unwrap_err().problem.contains("must be uid"));
    }
}
