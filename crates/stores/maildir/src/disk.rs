//! Everything that changes a mailbox on disk, as one interface: the seam at which tests record, break and cut the power.

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// The changes a delivery makes. Every name is one component in an open directory.
pub trait Disk: Sync {
    /// A new empty file for writing, mode 0600; a name that exists, even as a dangling link, is an error.
    ///
    /// # Errors
    /// As open(2).
    fn create(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File>;

    /// Writes all of `parts` at the end, in one call where the kernel takes it.
    ///
    /// # Errors
    /// As writev(2); some of it may have been written.
    fn write(&self, file: &File, parts: &mut [IoSlice<'_>]) -> io::Result<()>;

    /// The file's bytes and length are durable when this returns `Ok`.
    ///
    /// # Errors
    /// As fsync(2). After an error nothing is known, and a second call would not tell.
    fn sync_file(&self, file: &File) -> io::Result<()>;

    /// The names in the directory are durable when this returns `Ok`.
    ///
    /// # Errors
    /// As fsync(2).
    fn sync_dir(&self, dir: BorrowedFd<'_>) -> io::Result<()>;

    /// Moves a file to the same name in another directory; never replaces one that is there.
    ///
    /// # Errors
    /// As rename(2) and link(2).
    fn publish(&self, from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>) -> io::Result<()>;

    /// Moves a file to another name, perhaps in another directory.
    ///
    /// # Errors
    /// As rename(2).
    fn rename(&self, from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, to_name: &[u8]) -> io::Result<()>;

    /// # Errors
    /// As unlink(2).
    fn unlink(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()>;

    /// A directory of mode 0700; one that exists is no error.
    ///
    /// # Errors
    /// As mkdir(2).
    fn make_dir(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()>;

    /// # Errors
    /// As ftruncate(2).
    fn truncate(&self, file: &File, len: u64) -> io::Result<()>;

    /// All of the file system that `file` is on is durable: for a directory that may be written but not opened.
    ///
    /// # Errors
    /// As syncfs(2).
    fn sync_file_system(&self, file: &File) -> io::Result<()>;
}

/// The real one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Real;

impl Disk for Real {
    fn create(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::io::retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR))?;
        Ok(File::from(fd))
    }

    fn write(&self, file: &File, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut file = file;
        let mut rest = parts;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => IoSlice::advance_slices(&mut rest, len),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::fsync(file))?)
    }

    fn sync_dir(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::fsync(dir))?)
    }

    fn publish(&self, from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>) -> io::Result<()> {
        match rustix::fs::renameat_with(from, name, to, name, RenameFlags::NOREPLACE) {
            // A file system that cannot refuse to replace (NFS): link(2) refuses as well.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(from, name, to, name, AtFlags::empty())?;
                // It is delivered; a second name in tmp/ is swept out later.
                let _ = self.unlink(from, name);
                Ok(())
            }
            result => Ok(result?),
        }
    }

    fn rename(&self, from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, to_name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::renameat(from, name, to, to_name)?)
    }

    fn unlink(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    fn make_dir(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
            Err(Errno::EXIST) => Ok(()),
            result => Ok(result?),
        }
    }

    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(file, len)?)
    }

    fn sync_file_system(&self, file: &File) -> io::Result<()> {
        Ok(rustix::fs::syncfs(file.as_fd())?)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Mutex;

    /// What POSIX promises to be there after a power cut, told by the calls alone: bytes that were synced, under names that
    /// were synced.
    #[derive(Debug, Default)]
    pub(crate) struct Promised {
        /// inode → (bytes written, bytes synced)
        pub files: BTreeMap<u64, (Vec<u8>, Vec<u8>)>,
        /// directory inode → name → inode, as seen now and as synced
        names: BTreeMap<u64, BTreeMap<Vec<u8>, u64>>,
        synced: BTreeMap<u64, BTreeMap<Vec<u8>, u64>>,
    }

    impl Promised {
        /// The contents of the files that a power cut must leave in the directory.
        pub(crate) fn left_in(&self, dir: u64) -> BTreeSet<Vec<u8>> {
            let names = self.synced.get(&dir).cloned().unwrap_or_default();
            names.values().filter_map(|file| self.files.get(file)).map(|(_, synced)| synced.clone()).collect()
        }
    }

    /// A call by its kind, for counting and for breaking.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Call {
        Create,
        Write,
        SyncFile,
        SyncDir,
        Publish,
        Unlink,
        MakeDir,
        Truncate,
    }

    /// The real disk, recorded; one call may fail, one kind of sync may be left out.
    #[derive(Debug, Default)]
    pub(crate) struct Recorder {
        pub promised: Mutex<Promised>,
        pub calls: Mutex<Vec<Call>>,
        pub fail_at: Option<usize>,
        pub leave_out: Option<Call>,
    }

    pub(crate) fn inode(fd: BorrowedFd<'_>) -> u64 {
        rustix::fs::fstat(fd).unwrap().st_ino
    }

    impl Recorder {
        fn enter(&self, call: Call) -> io::Result<bool> {
            let mut calls = self.calls.lock().unwrap();
            calls.push(call);
            if self.fail_at == Some(calls.len() - 1) {
                return Err(io::Error::from_raw_os_error(5));
            }
            Ok(self.leave_out != Some(call))
        }
    }

    impl Disk for Recorder {
        fn create(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
            self.enter(Call::Create)?;
            let file = Real.create(dir, name)?;
            let mut promised = self.promised.lock().unwrap();
            promised.files.insert(inode(file.as_fd()), Default::default());
            promised.names.entry(inode(dir)).or_default().insert(name.to_vec(), inode(file.as_fd()));
            Ok(file)
        }

        fn write(&self, file: &File, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
            self.enter(Call::Write)?;
            let mut promised = self.promised.lock().unwrap();
            parts.iter().for_each(|part| promised.files.entry(inode(file.as_fd())).or_default().0.extend_from_slice(part));
            Real.write(file, parts)
        }

        fn sync_file(&self, file: &File) -> io::Result<()> {
            if self.enter(Call::SyncFile)? {
                let mut promised = self.promised.lock().unwrap();
                let (written, synced) = promised.files.entry(inode(file.as_fd())).or_default();
                synced.clone_from(written);
                Real.sync_file(file)?;
            }
            Ok(())
        }

        fn sync_dir(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
            if self.enter(Call::SyncDir)? {
                let mut promised = self.promised.lock().unwrap();
                let names = promised.names.get(&inode(dir)).cloned().unwrap_or_default();
                promised.synced.insert(inode(dir), names);
                Real.sync_dir(dir)?;
            }
            Ok(())
        }

        fn publish(&self, from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>) -> io::Result<()> {
            self.enter(Call::Publish)?;
            Real.publish(from, name, to)?;
            let mut promised = self.promised.lock().unwrap();
            let file = promised.names.entry(inode(from)).or_default().remove(name).unwrap();
            promised.names.entry(inode(to)).or_default().insert(name.to_vec(), file);
            Ok(())
        }

        fn rename(&self, from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, to_name: &[u8]) -> io::Result<()> {
            Real.rename(from, name, to, to_name)
        }

        fn unlink(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
            self.enter(Call::Unlink)?;
            self.promised.lock().unwrap().names.entry(inode(dir)).or_default().remove(name);
            Real.unlink(dir, name)
        }

        fn make_dir(&self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
            self.enter(Call::MakeDir)?;
            Real.make_dir(dir, name)?;
            let made = crate::open_dir(dir, name, crate::Bounds::Beneath)?;
            self.promised.lock().unwrap().names.entry(inode(dir)).or_default().insert(name.to_vec(), inode(made.as_fd()));
            Ok(())
        }

        fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
            self.enter(Call::Truncate)?;
            Real.truncate(file, len)
        }

        fn sync_file_system(&self, file: &File) -> io::Result<()> {
            Real.sync_file_system(file)
        }
    }

    #[test]
    fn publish_never_replaces() {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["a", "b"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
            std::fs::write(dir.path().join(sub).join("x"), sub).unwrap();
        }
        let (a, b) = (File::open(dir.path().join("a")).unwrap(), File::open(dir.path().join("b")).unwrap());
        assert_eq!(Real.publish(a.as_fd(), b"x", b.as_fd()).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(dir.path().join("b/x")).unwrap(), b"b");
    }

    #[test]
    fn create_takes_no_name_that_is_there_not_even_a_dangling_link() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("target", dir.path().join("link")).unwrap();
        let fd = File::open(dir.path()).unwrap();
        assert!(Real.create(fd.as_fd(), b"link").is_err());
        assert!(Real.create(fd.as_fd(), b"new").is_ok());
        assert!(Real.create(fd.as_fd(), b"new").is_err());
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(dir.path().join("new")).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn write_takes_many_parts() {
        let mut file = tempfile::tempfile().unwrap();
        Real.write(&file, &mut [IoSlice::new(b""), IoSlice::new(b"a"), IoSlice::new(b""), IoSlice::new(b"bc")]).unwrap();
        Real.write(&file, &mut [IoSlice::new(b"")]).unwrap();
        let mut text = String::new();
        io::Seek::rewind(&mut file).unwrap();
        io::Read::read_to_string(&mut file, &mut text).unwrap();
        assert_eq!(text, "abc");
    }
}
