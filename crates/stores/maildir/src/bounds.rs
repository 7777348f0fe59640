//! How far a path may lead. A system user's `.qmail` may name any path, through links, as ever; a virtual user's may not leave
//! the home, whatever is in it: virtual users of a domain share a uid, so nothing else would keep them apart.

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// openat2(2) answers EAGAIN when a rename elsewhere might have mattered; more than this many in a row is an attack or a fault.
const RACES_MAX: u32 = 16;

/// What a path may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bounds {
    /// Classic: absolute paths, `..` and symbolic links are followed as far as the uid reaches.
    Anywhere,
    /// Stays below the directory it starts from; any symbolic link, `..` that climbs out or absolute path is an error.
    Beneath,
}

/// Opens `path` from `dir`. Close-on-exec is added.
///
/// # Errors
/// What open(2) says; under [`Bounds::Beneath`] also EXDEV (it leads out) and ELOOP (a link). Temporary.
pub fn open_at(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode, bounds: Bounds) -> io::Result<OwnedFd> {
    // openat2 takes nothing with PATH that has no meaning there.
    let flags = flags | OFlags::CLOEXEC | if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY };
    let attempt = || match bounds {
        Bounds::Anywhere => rustix::fs::openat(dir, path, flags, mode),
        Bounds::Beneath => {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            // openat2 refuses mode bits where nothing can be created.
            let mode = if flags.intersects(OFlags::CREATE) { mode } else { Mode::empty() };
            rustix::fs::openat2(dir, path, flags, mode, resolve)
        }
    };
    for _ in 0..RACES_MAX {
        match attempt() {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if bounds == Bounds::Beneath => {}
            result => return Ok(result?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Opens a directory from `dir`, for reading, so that it can be synced and listed.
///
/// # Errors
/// As [`open_at`].
pub fn open_dir(dir: BorrowedFd<'_>, path: &[u8], bounds: Bounds) -> io::Result<OwnedFd> {
    open_at(dir, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty(), bounds)
}

/// Splits a path into the directory to open and the last name; the directory of a bare name is `.`.
pub(crate) fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(0) => (b"/", path.get(1..).unwrap_or_default()),
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at.saturating_add(1)..).unwrap_or_default()),
        None => (b".", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_path_is_a_directory_and_a_name() {
        for (path, parent, name) in [("a", ".", "a"), ("./a", ".", "a"), ("/a", "/", "a"), ("a/b/c", "a/b", "c"), ("", ".", "")] {
            assert_eq!(split_last(path.as_bytes()), (parent.as_bytes(), name.as_bytes()));
        }
    }

    #[test]
    fn beneath_neither_dots_nor_links_nor_absolute_paths_lead_out() {
        let outside = tempfile::tempdir().unwrap();
        let home = outside.path().join("home");
        std::fs::create_dir_all(home.join("sub")).unwrap();
        std::fs::write(outside.path().join("secret"), b"x").unwrap();
        std::fs::write(home.join("own"), b"x").unwrap();
        std::os::unix::fs::symlink("../secret", home.join("link")).unwrap();
        std::os::unix::fs::symlink("own", home.join("inner")).unwrap();
        std::os::unix::fs::symlink("..", home.join("up")).unwrap();
        let dir: OwnedFd = std::fs::File::open(&home).unwrap().into();
        let secret = outside.path().join("secret");
        let absolute = std::os::unix::ffi::OsStrExt::as_bytes(secret.as_os_str());
        let open = |path: &[u8], bounds| open_at(dir.as_fd(), path, OFlags::RDONLY, Mode::empty(), bounds).is_ok();
        for path in [&b"../secret"[..], b"link", b"up/secret", b"sub/../../secret", absolute, b"/etc/passwd", b"inner"] {
            assert!(open(path, Bounds::Anywhere), "{}", path.escape_ascii());
            assert!(!open(path, Bounds::Beneath), "{}", path.escape_ascii());
        }
        assert!(open(b"own", Bounds::Beneath) && open(b"./sub/../own", Bounds::Beneath));
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        assert!(open_at(dir.as_fd(), b"../made", create, Mode::RUSR, Bounds::Beneath).is_err());
        assert!(open_at(dir.as_fd(), b"made", create, Mode::RUSR, Bounds::Beneath).is_ok());
    }
}
