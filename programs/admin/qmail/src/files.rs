//! Making and replacing files and directories so that a power cut leaves the old or the new, never half.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use control::Id;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// Makes a directory with exactly this mode and owner; false if something is there already, which is left as it is.
///
/// # Errors
/// It cannot be made; temporary.
pub fn make_dir(path: &Path, mode: u32, owner: Option<Id>) -> io::Result<bool> {
    make_tree(path, |beside| give_dir(beside, mode, owner))
}

/// Makes a directory with all that `fill` puts into it and gives it; false if something is there already, which is left as it is. Whoever is
/// killed meanwhile leaves nothing of this name.
///
/// # Errors
/// It cannot be made, or `fill` fails; temporary.
pub fn make_tree(path: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<bool> {
    if path.symlink_metadata().is_ok() {
        return Ok(false);
    }
    // A dot: in a directory whose entries mean something (etc/qmail/tls) it means nothing.
    let beside = beside(path, ".");
    // What an earlier process of this number left behind.
    let _ = fs::remove_dir_all(&beside);
    // Nobody enters it before it is its owner's.
    DirBuilder::new().mode(0o700).create(&beside)?;
    let made = fill(&beside).and_then(|()| move_to(&beside, (CWD, path)));
    if !matches!(made, Ok(true)) {
        let _ = fs::remove_dir_all(&beside);
    }
    if made? {
        sync_parent(path)?;
        return Ok(true);
    }
    Ok(false)
}

/// Makes a directory in one that somebody else may change, and so follows no path there: it is put together at `beside`, in a directory that
/// nobody else changes, and moved into `dir`. False if something is there already.
///
/// # Errors
/// It cannot be made, or `dir` is on another file system; temporary.
pub fn make_dir_in(dir: &File, name: &str, beside: &Path, mode: u32, owner: Option<Id>) -> io::Result<bool> {
    let _ = fs::remove_dir(beside);
    DirBuilder::new().mode(0o700).create(beside)?;
    let made = give_dir(beside, mode, owner).and_then(|()| move_to(beside, (dir, Path::new(name))));
    if !matches!(made, Ok(true)) {
        let _ = fs::remove_dir(beside);
    }
    if made? {
        dir.sync_all()?;
        return Ok(true);
    }
    Ok(false)
}

/// Gives the directory its name unless something has it already.
fn move_to(from: &Path, (dir, name): (impl AsFd, &Path)) -> io::Result<bool> {
    match rustix::fs::renameat_with(CWD, from, &dir, name, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // A file system that knows no flags: what has come there since it was looked for can be an empty directory at most.
        Err(Errno::INVAL) => Ok(rustix::fs::renameat(CWD, from, &dir, name).map(|()| true)?),
        Err(error) => Err(error.into()),
    }
}

/// A directory that who alone works in it does not own. What an installation of an earlier version that was cut short left, root's and empty,
/// is given to the owner.
///
/// # Errors
/// It is another's, with the uid; or it cannot be given.
pub fn claim(path: &Path, mode: u32, owner: Id) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if !rustix::process::geteuid().is_root() || !metadata.is_dir() || metadata.uid() == owner.uid {
        return Ok(());
    }
    if metadata.uid() == 0 && metadata.mode() & 0o7777 == 0o700 && fs::read_dir(path)?.next().is_none() {
        return give_dir(path, mode, Some(owner));
    }
    let Id { uid, gid } = owner;
    let text = format!("belongs to uid {}, and must be uid {uid}'s; chown {uid}:{gid} it", metadata.uid());
    Err(io::Error::other(text))
}

/// Opens a directory that is `owner`'s, and no link; `None` if it is anything else.
///
/// # Errors
/// It cannot be looked at; temporary.
pub fn open_dir_of(dir: impl AsFd, path: &Path, owner: Option<Id>) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat(dir, path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let is_owners = owner.is_none_or(|owner| opened.metadata().is_ok_and(|metadata| metadata.uid() == owner.uid));
    Ok(Some(opened).filter(|_| is_owners))
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

/// A name of this process beside another.
fn beside(path: &Path, prefix: &str) -> PathBuf {
    let mut name = OsString::from(prefix);
    name.push(path.file_name().unwrap_or(OsStr::new("file")));
    name.push(format!(".tmp.{}", std::process::id()));
    path.with_file_name(name)
}

fn write_beside(path: &Path, bytes: &[u8], mode: u32, owner: Option<Id>) -> io::Result<PathBuf> {
    let temporary = beside(path, "");
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
