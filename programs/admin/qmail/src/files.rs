//! Making and replacing files and directories so that a power cut leaves the old or the new, never half.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use control::Id;
use rustix::fs::{Mode, OFlags};

/// Makes a directory with exactly this mode and owner; false if something is there already, which is left as it is.
///
/// # Errors
/// It cannot be made; temporary.
pub fn make_dir(path: &Path, mode: u32, owner: Option<Id>) -> io::Result<bool> {
    // Nobody enters it before it is its owner's.
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error),
    }
    give_dir(path, mode, owner)?;
    sync_parent(path)?;
    Ok(true)
}

/// Gives a directory this mode and owner. What somebody has put in its place meanwhile is not followed.
///
/// # Errors
/// It is no directory any more, or cannot be given; temporary.
pub fn give_dir(path: &Path, mode: u32, owner: Option<Id>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    give(&dir, owner)?;
    dir.set_permissions(Permissions::from_mode(mode))
}

/// Makes a file with these bytes; false if something is there already, which is left as it is.
///
/// # Errors
/// It cannot be made; temporary.
pub fn make_file(path: &Path, bytes: &[u8], mode: u32, owner: Option<Id>) -> io::Result<bool> {
    let temporary = write_beside(path, bytes, mode, owner)?;
    // A link, unlike a rename, never replaces what is there.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Replaces a file (or makes it) in one step.
///
/// # Errors
/// It cannot be written; temporary, the old file stays.
pub fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace_file_as(path, bytes, mode, None)
}

/// As [`replace_file`], and gives it away.
///
/// # Errors
/// As [`replace_file`].
pub fn replace_file_as(path: &Path, bytes: &[u8], mode: u32, owner: Option<Id>) -> io::Result<()> {
    let temporary = write_beside(path, bytes, mode, owner)?;
    let renamed = fs::rename(&temporary, path);
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed.and_then(|()| sync_parent(path))
}

fn write_beside(path: &Path, bytes: &[u8], mode: u32, owner: Option<Id>) -> io::Result<PathBuf> {
    let mut name = path.file_name().unwrap_or(OsStr::new("file")).to_owned();
    name.push(format!(".tmp.{}", std::process::id()));
    let temporary = path.with_file_name(name);
    // What an earlier process of this number left behind.
    let _ = fs::remove_file(&temporary);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    match fill(file, bytes, mode, owner) {
        Ok(()) => Ok(temporary),
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
    }
}

fn fill(mut file: File, bytes: &[u8], mode: u32, owner: Option<Id>) -> io::Result<()> {
    file.write_all(bytes)?;
    give(&file, owner)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Only root can give away; anybody else's files are the caller's as every id is.
fn give(file: &File, owner: Option<Id>) -> io::Result<()> {
    match owner {
        Some(id) if rustix::process::geteuid().is_root() => std::os::unix::fs::fchown(file, Some(id.uid), Some(id.gid)),
        _ => Ok(()),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_but_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let (file, sub) = (dir.path().join("file"), dir.path().join("sub"));
        assert!(make_file(&file, b"one", 0o644, None).unwrap());
        assert!(!make_file(&file, b"two", 0o600, None).unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"one");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o644);
        assert!(make_dir(&sub, 0o750, None).unwrap());
        assert!(!make_dir(&sub, 0o700, None).unwrap());
        assert_eq!(fs::metadata(&sub).unwrap().permissions().mode() & 0o7777, 0o750);
        replace_file(&file, b"three", 0o640).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"three");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing temporary is left");
    }
}
