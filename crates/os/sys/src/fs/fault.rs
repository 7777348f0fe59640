//! A [`Disk`] that fails on order: the n-th call with an error, all from then on, or a full file system.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};

use super::{Access, Disk, DiskFile, Space};

/// What kind of call a fault may strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Create,
    Open,
    MakeDir,
    List,
    Rename,
    Link,
    Unlink,
    SyncDir,
    Read,
    Write,
    Sync,
    Truncate,
    Allocate,
}

/// The orders, shared with the test that gives them. Nothing fails until told.
pub struct Plan {
    /// Calls that may be struck, since the plan was made.
    calls: AtomicU64,
    fail_from: AtomicU64,
    fail_count: AtomicU64,
    errno: AtomicI32,
    full: AtomicBool,
    strikes: fn(Call) -> bool,
}

impl Plan {
    /// Faults strike only the calls that `strikes` names.
    #[must_use]
    pub fn new(strikes: fn(Call) -> bool) -> Arc<Self> {
        Arc::new(Self {
            calls: AtomicU64::new(0),
            fail_from: AtomicU64::new(u64::MAX),
            fail_count: AtomicU64::new(0),
            errno: AtomicI32::new(libc::EIO),
            full: AtomicBool::new(false),
            strikes,
        })
    }

    /// `count` calls fail, the first of them after `skip` more; `u64::MAX` for all from then on.
    pub fn fail(&self, skip: u64, count: u64, errno: i32) {
        self.errno.store(errno, SeqCst);
        self.fail_count.store(count, SeqCst);
        self.fail_from.store(self.calls.load(SeqCst).saturating_add(skip), SeqCst);
    }

    /// While set, whatever needs space or an inode fails with ENOSPC: creating, allocating, writing beyond the end.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, SeqCst);
    }

    /// Calls that could be struck so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(SeqCst)
    }

    fn check(&self, call: Call, grows: bool) -> io::Result<()> {
        if grows && self.full.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if !(self.strikes)(call) {
            return Ok(());
        }
        let from = self.fail_from.load(SeqCst);
        let this = self.calls.fetch_add(1, SeqCst);
        if this >= from && this - from < self.fail_count.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(self.errno.load(SeqCst)));
        }
        Ok(())
    }
}

/// See the module.
pub struct FaultDisk {
    inner: Arc<dyn Disk>,
    plan: Arc<Plan>,
}

impl FaultDisk {
    #[must_use]
    pub fn new(inner: Arc<dyn Disk>, plan: Arc<Plan>) -> Self {
        Self { inner, plan }
    }

    fn wrap(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(FaultFile { inner: file, plan: Arc::clone(&self.plan) })
    }
}

impl Disk for FaultDisk {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn DiskFile>> {
        self.plan.check(Call::Create, true)?;
        Ok(self.wrap(self.inner.create(path, mode)?))
    }
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        self.plan.check(Call::Open, false)?;
        Ok(self.wrap(self.inner.open(path, access)?))
    }
    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.plan.check(Call::MakeDir, true)?;
        self.inner.make_dir(path, mode)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.plan.check(Call::List, false)?;
        self.inner.list(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plan.check(Call::Rename, false)?;
        self.inner.rename(from, to)
    }
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plan.check(Call::Rename, false)?;
        self.inner.rename_new(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plan.check(Call::Link, false)?;
        self.inner.link(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.plan.check(Call::Unlink, false)?;
        self.inner.unlink(path)
    }
    fn sync_dir(&self, path: &Path, why: &'static str) -> io::Result<()> {
        self.plan.check(Call::SyncDir, false)?;
        self.inner.sync_dir(path, why)
    }
    fn space(&self) -> io::Result<Space> {
        let space = self.inner.space()?;
        Ok(if self.plan.full.load(SeqCst) { Space { free_bytes: 0, ..space } } else { space })
    }
}

struct FaultFile {
    inner: Box<dyn DiskFile>,
    plan: Arc<Plan>,
}

impl DiskFile for FaultFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.plan.check(Call::Read, false)?;
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let grows = offset.saturating_add(len as u64) > self.inner.size()?;
        if let Err(error) = self.plan.check(Call::Write, grows) {
            // As a real disk may: the first piece arrives all the same.
            if let Some(first) = pieces.get(..1).filter(|_| !grows) {
                self.inner.write_at(first, offset)?;
            }
            return Err(error);
        }
        self.inner.write_at(pieces, offset)
    }
    fn sync(&self, why: &'static str) -> io::Result<()> {
        self.plan.check(Call::Sync, false)?;
        self.inner.sync(why)
    }
    fn sync_data(&self, why: &'static str) -> io::Result<()> {
        self.plan.check(Call::Sync, false)?;
        self.inner.sync_data(why)
    }
    fn start_writeback(&self) {
        self.inner.start_writeback();
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.plan.check(Call::Truncate, false)?;
        self.inner.truncate(len)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.plan.check(Call::Allocate, len > self.inner.size()?)?;
        self.inner.allocate(len)
    }
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }
    fn into_fd(self: Box<Self>) -> io::Result<OwnedFd> {
        self.inner.into_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::power::PowerDisk;

    #[test]
    fn strikes_the_call_it_was_told_to() {
        let plan = Plan::new(|call| call == Call::Sync);
        let disk = FaultDisk::new(Arc::new(PowerDisk::new()), Arc::clone(&plan));
        let file = disk.create("f".as_ref(), 0o600).unwrap();
        plan.fail(1, 1, libc::EIO);
        file.sync("a").unwrap();
        assert_eq!(file.sync("b").unwrap_err().raw_os_error(), Some(libc::EIO));
        file.sync("c").unwrap();
        assert_eq!(plan.calls(), 3);
    }

    #[test]
    fn a_full_disk_still_overwrites() {
        let plan = Plan::new(|_| false);
        let disk = FaultDisk::new(Arc::new(PowerDisk::new()), Arc::clone(&plan));
        let file = disk.create("f".as_ref(), 0o600).unwrap();
        file.write_at(&[IoSlice::new(b"12345")], 0).unwrap();
        plan.set_full(true);
        assert!(file.write_at(&[IoSlice::new(b"abc")], 1).is_ok());
        assert!(crate::fs::is_full(&file.write_at(&[IoSlice::new(b"abc")], 3).unwrap_err()));
        assert!(disk.create("g".as_ref(), 0o600).is_err());
        plan.set_full(false);
        assert!(disk.create("g".as_ref(), 0o600).is_ok());
    }
}
