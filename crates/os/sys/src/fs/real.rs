//! [`Disk`] by system calls, below one directory descriptor.
//!
//! Where the same directories are used again and again, or were reached by a way that this disk would not go (a system user's
//! Maildir behind a link), their owner opens them and has the disk [hold](RealDisk::hold) them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FallocateFlags, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Access, Disk, DiskFile, Space};

/// pwritev(2) takes at most this many pieces (IOV_MAX on Linux).
const PIECES_MAX: usize = 1024;

/// See the module. Paths never leave the directory and never pass a symbolic link.
pub struct RealDisk {
    root: OwnedFd,
    held: Vec<(PathBuf, Arc<OwnedFd>)>,
}

/// A directory for the *at calls.
enum Parent<'d> {
    Held(BorrowedFd<'d>),
    Opened(OwnedFd),
}

impl AsFd for Parent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Held(fd) => *fd,
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

impl RealDisk {
    #[must_use]
    pub fn new(root: OwnedFd) -> Self {
        Self { root, held: Vec::new() }
    }

    /// Uses this open directory for what lies directly in `path`, instead of walking there.
    #[must_use]
    pub fn hold(mut self, path: &Path, dir: Arc<OwnedFd>) -> Self {
        self.held.push((path.to_path_buf(), dir));
        self
    }

    /// # Errors
    /// Those of open(2).
    pub fn at(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::new(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    fn open_beneath(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        loop {
            match rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, mode, resolve) {
                // The kernel answers EAGAIN when a rename elsewhere raced with the walk.
                Err(Errno::INTR | Errno::AGAIN) => {}
                result => return Ok(result?),
            }
        }
    }

    fn held(&self, path: &Path) -> Option<BorrowedFd<'_>> {
        self.held.iter().find(|(held, _)| held == path).map(|(_, dir)| dir.as_fd())
    }

    /// The directory that holds `path`, and the last name: the *at calls have no BENEATH of their own.
    fn parent<'p>(&self, path: &'p Path) -> io::Result<(Parent<'_>, &'p OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().unwrap_or(Path::new("."));
        if let Some(dir) = self.held(parent) {
            return Ok((Parent::Held(dir), name));
        }
        let opened = self.open_beneath(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok((Parent::Opened(opened), name))
    }

    fn open_file(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<Box<dyn DiskFile>> {
        let fd = match (path.parent().and_then(|parent| self.held(parent)), path.file_name()) {
            (Some(dir), Some(name)) => {
                let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                rustix::io::retry_on_intr(|| rustix::fs::openat(dir, name, flags, mode))?
            }
            _ => self.open_beneath(path, flags, mode)?,
        };
        Ok(Box::new(RealFile::new(File::from(fd))))
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        self.open_file(path, flags, Mode::from_raw_mode(mode))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        // A fifo laid in place of a file must not block the opener.
        self.open_file(path, flags | OFlags::NONBLOCK, Mode::empty())
    }

    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))?)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let dir = self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_dir, from_name), (to_dir, to_name)) = (self.parent(from)?, self.parent(to)?);
        Ok(rustix::fs::renameat(from_dir, from_name, to_dir, to_name)?)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_dir, from_name), (to_dir, to_name)) = (self.parent(from)?, self.parent(to)?);
        match rustix::fs::renameat_with(&from_dir, from_name, &to_dir, to_name, RenameFlags::NOREPLACE) {
            // A file system that cannot refuse to replace (NFS): link(2) refuses as well.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty())?;
                // It has its new name; an old one too many is no failure.
                let _ = rustix::fs::unlinkat(&from_dir, from_name, AtFlags::empty());
                Ok(())
            }
            result => Ok(result?),
        }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_dir, from_name), (to_dir, to_name)) = (self.parent(from)?, self.parent(to)?);
        Ok(rustix::fs::linkat(from_dir, from_name, to_dir, to_name, AtFlags::empty())?)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    fn sync_dir(&self, path: &Path, _why: &'static str) -> io::Result<()> {
        if let Some(dir) = self.held(path) {
            return Ok(rustix::io::retry_on_intr(|| rustix::fs::fsync(dir))?);
        }
        let dir = self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Ok(rustix::fs::fsync(dir)?)
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(self.root.as_fd())?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { total_bytes: bytes(stat.f_blocks), free_bytes: bytes(stat.f_bavail) })
    }
}

/// A file of the real disk, or one that its user opened (an mbox, for appending: there the kernel chooses the offset of a write).
pub struct RealFile(File);

impl RealFile {
    #[must_use]
    pub fn new(file: File) -> Self {
        Self(file)
    }
}

impl AsFd for RealFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match rustix::io::pread(&self.0, &mut *buf, offset) {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn write_at(&self, pieces: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        for group in pieces.chunks(PIECES_MAX) {
            let mut rest: Vec<IoSlice<'_>> = group.to_vec();
            let mut rest = rest.as_mut_slice();
            while rest.iter().any(|piece| !piece.is_empty()) {
                match rustix::io::pwritev(&self.0, rest, offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        IoSlice::advance_slices(&mut rest, written);
                        offset = offset.saturating_add(written as u64);
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn sync(&self, _why: &'static str) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }

    fn sync_data(&self, _why: &'static str) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.0)?)
    }

    fn start_writeback(&self) {
        crate::writeback::start(self.0.as_fd());
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(&self.0, len)?)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, len)?)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn into_fd(self: Box<Self>) -> io::Result<OwnedFd> {
        Ok(self.0.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (tempfile::TempDir, RealDisk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::at(dir.path()).unwrap();
        (dir, disk)
    }

    #[test]
    fn writes_many_pieces_and_reads_them_back() {
        let (_dir, disk) = disk();
        disk.make_dir("d".as_ref(), 0o700).unwrap();
        let file = disk.create("d/f".as_ref(), 0o600).unwrap();
        let bytes: Vec<u8> = (0..3000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let pieces: Vec<IoSlice<'_>> = bytes.iter().map(std::slice::from_ref).map(IoSlice::new).collect();
        file.write_at(&pieces, 5).unwrap();
        file.sync("test").unwrap();
        disk.rename("d/f".as_ref(), "g".as_ref()).unwrap();
        disk.sync_dir("".as_ref(), "test").unwrap();
        let mut back = vec![0; 3000];
        let file = disk.open("g".as_ref(), Access::Read).unwrap();
        crate::fs::read_exact_at(file.as_ref(), &mut back, 5).unwrap();
        assert_eq!((back, file.size().unwrap()), (bytes, 3005));
        assert_eq!(disk.list("".as_ref()).unwrap(), ["d", "g"]);
    }

    #[test]
    fn never_leaves_the_directory() {
        let (dir, disk) = disk();
        std::os::unix::fs::symlink("/etc", dir.path().join("away")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("file")).unwrap();
        for path in ["away/hostname", "file", "../x", "/etc/hostname"] {
            assert!(disk.open(path.as_ref(), Access::Read).is_err(), "{path}");
        }
        assert!(disk.unlink("away/hostname".as_ref()).is_err());
        assert!(disk.create("away/new".as_ref(), 0o600).is_err());
    }

    #[test]
    fn a_held_directory_is_used_instead_of_its_path() {
        let (dir, disk) = disk();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("new")).unwrap();
        assert!(disk.create("new/a".as_ref(), 0o600).is_err());
        let disk = disk.hold("new".as_ref(), Arc::new(File::open(elsewhere.path()).unwrap().into()));
        disk.create("new/a".as_ref(), 0o600).unwrap().sync("test").unwrap();
        disk.sync_dir("new".as_ref(), "test").unwrap();
        std::fs::write(elsewhere.path().join("b"), "b").unwrap();
        let error = disk.rename_new("new/a".as_ref(), "new/b".as_ref()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        disk.rename_new("new/a".as_ref(), "c".as_ref()).unwrap();
        assert_eq!((std::fs::read(elsewhere.path().join("b")).unwrap(), dir.path().join("c").exists()), (b"b".to_vec(), true));
        std::os::unix::fs::symlink("target", elsewhere.path().join("link")).unwrap();
        assert!(disk.create("new/link".as_ref(), 0o600).is_err() && disk.open("new/link".as_ref(), Access::Read).is_err());
    }

    #[test]
    fn create_and_link_refuse_what_exists() {
        let (_dir, disk) = disk();
        disk.create("a".as_ref(), 0o600).unwrap();
        disk.create("b".as_ref(), 0o600).unwrap();
        assert_eq!(disk.create("a".as_ref(), 0o600).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(disk.link("a".as_ref(), "b".as_ref()).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
