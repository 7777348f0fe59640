//! A file that others read while it is made anew: written beside it, synced, then moved into its place. Whole or not at all.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::{End, Name};

/// Who may read the file. Its owner alone may write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Everybody: deliveries under many users look into it.
    Everybody,
    /// Whom the caller's umask allows.
    ByUmask,
}

/// Writes `text` to `tmp` and moves it to `path`; both are synced before this says yes. `names` are how they are called in errors.
///
/// # Errors
/// Temporary; `path` is as it was.
pub fn file(me: Name, text: &[u8], (tmp, path): (&Path, &Path), names: (&[u8], &[u8]), readers: Readers) -> Result<(), End> {
    let writing = |error: &io::Error| me.system([b"unable to write to ", names.0].concat(), error);
    let mut options = File::options();
    let opened = options.write(true).create(true).truncate(true).mode(0o644).open(tmp);
    let mut new = opened.map_err(|error| me.system([b"unable to create ", names.0].concat(), &error))?;
    if readers == Readers::Everybody {
        new.set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(|error| writing(&error))?;
    }
    new.write_all(text).and_then(|()| new.sync_all()).map_err(|error| writing(&error))?;
    let moving = |error: &io::Error| me.system([b"unable to move ", names.0, b" to ", names.1].concat(), error);
    std::fs::rename(tmp, path).map_err(|error| moving(&error))?;
    sync_dir(path).map_err(|error| moving(&error))
}

fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_or_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (tmp, path) = (dir.path().join("t"), dir.path().join("f"));
        let write = |text: &[u8], tmp: &Path| file(Name("x"), text, (tmp, &path), (b"t", b"f"), Readers::Everybody);
        write(b"one", &tmp).unwrap();
        write(b"two", &tmp).unwrap();
        assert!(write(b"three", &dir.path().join("no/t")).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert!(!tmp.exists());
    }
}
