//! A disk in memory that knows what a power cut may leave: the tool of the power-cut suites of spool and Maildir.
//!
//! It assumes nothing that POSIX does not promise. What was not synced is a set of *pieces*, and a cut keeps any subset of them:
//! each 512-byte sector of a write, each change of a length, each name that appeared, each name that went away. A rename is two
//! pieces. Syncing a file says nothing about its name; syncing a directory says nothing about what is in its files.
//! Sectors are not torn.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Access, Disk, DiskFile, Space};

/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: u64 = 512;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    File(u64),
    Dir,
}

#[derive(Clone)]
enum Piece {
    Write { offset: u64, bytes: Arc<Vec<u8>> },
    Len(u64),
}

#[derive(Clone, Default)]
struct Inode {
    now: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    pending: Vec<Piece>,
}

#[derive(Clone, Default)]
struct Dir {
    now: BTreeMap<OsString, Entry>,
    durable: BTreeMap<OsString, Entry>,
    pending: Vec<(OsString, Option<Entry>)>,
}

/// The whole state of the disk at one moment.
#[derive(Clone)]
struct World {
    inodes: BTreeMap<u64, Inode>,
    dirs: BTreeMap<PathBuf, Dir>,
    next_inode: u64,
}

/// A state from which power may fail.
#[derive(Clone)]
pub struct Snapshot {
    world: World,
    /// What [`PowerDisk::set_mark`] was last told: how far the test's own story had gone.
    pub mark: u64,
}

#[derive(Default)]
struct Record {
    on: bool,
    mark: u64,
    snapshots: Vec<Snapshot>,
    dropped: Option<&'static str>,
    syncs: BTreeSet<&'static str>,
}

/// See the module. Clones are the same disk.
#[derive(Clone)]
pub struct PowerDisk {
    world: Arc<Mutex<World>>,
    record: Arc<Mutex<Record>>,
}

impl Default for PowerDisk {
    fn default() -> Self {
        Self::new()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PowerDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        let root = BTreeMap::from([(PathBuf::new(), Dir::default())]);
        Self::from_world(World { inodes: BTreeMap::new(), dirs: root, next_inode: 1 })
    }

    fn from_world(world: World) -> Self {
        Self { world: Arc::new(Mutex::new(world)), record: Arc::default() }
    }

    /// From now on every change leaves a [`Snapshot`].
    pub fn start_recording(&self) {
        lock(&self.record).on = true;
    }

    /// The snapshots so far; recording goes on.
    #[must_use]
    pub fn take_snapshots(&self) -> Vec<Snapshot> {
        std::mem::take(&mut lock(&self.record).snapshots)
    }

    /// The state now, as if power failed here.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { world: lock(&self.world).clone(), mark: lock(&self.record).mark }
    }

    /// Notes how far the story has gone (a number that the test understands), for the snapshots that follow.
    pub fn set_mark(&self, mark: u64) {
        lock(&self.record).mark = mark;
    }

    /// Syncs of this name do nothing from now on, and say that they did.
    pub fn drop_syncs(&self, why: &'static str) {
        lock(&self.record).dropped = Some(why);
    }

    /// The names of all syncs seen.
    #[must_use]
    pub fn syncs_seen(&self) -> BTreeSet<&'static str> {
        lock(&self.record).syncs.clone()
    }

    /// Changes a byte on the disk itself, as a failing medium does. Nothing happens outside the file.
    pub fn rot(&self, path: &Path, offset: u64) {
        let mut world = lock(&self.world);
        let Some(inode) = world.inode_at(path).and_then(|number| world.inodes.get_mut(&number)) else { return };
        for copy in [&mut inode.now, &mut inode.durable] {
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            if let Some(byte) = Arc::make_mut(copy).get_mut(at) {
                *byte ^= 0x5a;
            }
        }
    }

    /// Runs a change, then records.
    fn change<T>(&self, change: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        let mut world = lock(&self.world);
        let result = change(&mut world)?;
        let mut record = lock(&self.record);
        if record.on {
            let snapshot = Snapshot { world: world.clone(), mark: record.mark };
            record.snapshots.push(snapshot);
        }
        Ok(result)
    }

    /// Is this sync to be done?
    fn notes_sync(&self, why: &'static str) -> bool {
        let mut record = lock(&self.record);
        record.syncs.insert(why);
        record.dropped != Some(why)
    }
}

impl Snapshot {
    /// How many pieces were not yet durable.
    #[must_use]
    pub fn pieces(&self) -> usize {
        let in_files: usize = self.world.inodes.values().flat_map(|inode| &inode.pending).map(Piece::parts).sum();
        let names: usize = self.world.dirs.values().map(|dir| dir.pending.len()).sum();
        in_files + names
    }

    /// The disk as the next start finds it, when the pieces that `keep` names were written and the others were not.
    pub fn cut(&self, mut keep: impl FnMut(usize) -> bool) -> PowerDisk {
        let mut number = 0;
        let mut kept = || {
            number += 1;
            keep(number - 1)
        };
        let mut inodes = BTreeMap::new();
        for (inode_number, inode) in &self.world.inodes {
            let mut content = Arc::clone(&inode.durable);
            for piece in &inode.pending {
                piece.apply(&mut content, &mut kept);
            }
            inodes.insert(*inode_number, Inode { now: Arc::clone(&content), durable: content, pending: Vec::new() });
        }
        let mut dirs = BTreeMap::new();
        for (path, dir) in &self.world.dirs {
            let mut names = dir.durable.clone();
            for (name, entry) in &dir.pending {
                if kept() {
                    set_name(&mut names, name, *entry);
                }
            }
            dirs.insert(path.clone(), Dir { now: names.clone(), durable: names, pending: Vec::new() });
        }
        let mut world = World { inodes, dirs, next_inode: self.world.next_inode };
        world.forget_the_unnamed();
        PowerDisk::from_world(world)
    }

    /// The disk as a killed process leaves it: nothing is lost, and nothing more is durable than before.
    #[must_use]
    pub fn kill(&self) -> PowerDisk {
        PowerDisk::from_world(self.world.clone())
    }
}

impl Piece {
    /// Into how many independent pieces it falls.
    fn parts(&self) -> usize {
        match self {
            Self::Len(_) => 1,
            Self::Write { offset, bytes } => sectors(*offset, bytes.len()).count(),
        }
    }

    fn apply(&self, content: &mut Arc<Vec<u8>>, kept: &mut impl FnMut() -> bool) {
        match self {
            Self::Len(len) => {
                if kept() {
                    set_len(Arc::make_mut(content), *len);
                }
            }
            Self::Write { offset, bytes } => {
                for (from, to) in sectors(*offset, bytes.len()) {
                    if kept() {
                        let part = bytes.get(from..to).unwrap_or_default();
                        overwrite(Arc::make_mut(content), offset + from as u64, part);
                    }
                }
            }
        }
    }
}

/// The parts of a write, as ranges of its bytes, cut where sectors of the file begin.
fn sectors(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        if from >= len {
            return None;
        }
        let in_sector = usize::try_from((offset + from as u64) % SECTOR_BYTES).unwrap_or(0);
        let to = len.min(from + usize::try_from(SECTOR_BYTES).unwrap_or(512) - in_sector);
        let range = (from, to);
        from = to;
        Some(range)
    })
}

fn set_len(content: &mut Vec<u8>, len: u64) {
    content.resize(usize::try_from(len).unwrap_or(0), 0);
}

fn overwrite(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let from = usize::try_from(offset).unwrap_or(0);
    let to = from + bytes.len();
    if content.len() < to {
        content.resize(to, 0);
    }
    if let Some(place) = content.get_mut(from..to) {
        place.copy_from_slice(bytes);
    }
}

fn set_name(names: &mut BTreeMap<OsString, Entry>, name: &OsString, entry: Option<Entry>) {
    match entry {
        Some(entry) => names.insert(name.clone(), entry),
        None => names.remove(name),
    };
}

fn split(path: &Path) -> io::Result<(PathBuf, OsString)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((path.parent().map(Path::to_path_buf).unwrap_or_default(), name.to_owned()))
}

impl World {
    fn inode_at(&self, path: &Path) -> Option<u64> {
        let (dir, name) = split(path).ok()?;
        match self.dirs.get(&dir)?.now.get(&name)? {
            Entry::File(number) => Some(*number),
            Entry::Dir => None,
        }
    }

    fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        let (dir, name) = split(path)?;
        Ok(self.dirs.get(&dir).ok_or(io::ErrorKind::NotFound)?.now.get(&name).copied())
    }

    fn name(&mut self, path: &Path, entry: Option<Entry>) -> io::Result<()> {
        let (dir, name) = split(path)?;
        let dir = self.dirs.get_mut(&dir).ok_or(io::ErrorKind::NotFound)?;
        set_name(&mut dir.now, &name, entry);
        dir.pending.push((name, entry));
        Ok(())
    }

    /// After a cut: a directory without a name is gone with all it held, and so is a file.
    fn forget_the_unnamed(&mut self) {
        // Parents sort before what is in them.
        for path in self.dirs.keys().skip(1).cloned().collect::<Vec<_>>() {
            if !matches!(self.entry(&path), Ok(Some(Entry::Dir))) {
                self.dirs.remove(&path);
            }
        }
        let named: BTreeSet<u64> = self
            .dirs
            .values()
            .flat_map(|dir| dir.now.values())
            .filter_map(|entry| match entry {
                Entry::File(number) => Some(*number),
                Entry::Dir => None,
            })
            .collect();
        self.inodes.retain(|number, _| named.contains(number));
    }
}

impl Disk for PowerDisk {
    fn create(&self, path: &Path, _mode: u32) -> io::Result<Box<dyn DiskFile>> {
        let number = self.change(|world| {
            if world.entry(path)?.is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let number = world.next_inode;
            world.next_inode += 1;
            world.inodes.insert(number, Inode::default());
            world.name(path, Some(Entry::File(number)))?;
            Ok(number)
        })?;
        Ok(Box::new(PowerFile { disk: self.clone(), number, access: Access::ReadWrite }))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let number = lock(&self.world).inode_at(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(PowerFile { disk: self.clone(), number, access }))
    }

    fn make_dir(&self, path: &Path, _mode: u32) -> io::Result<()> {
        self.change(|world| {
            if world.entry(path)?.is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            world.name(path, Some(Entry::Dir))?;
            world.dirs.insert(path.to_path_buf(), Dir::default());
            Ok(())
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let path = if path == Path::new(".") { Path::new("") } else { path };
        Ok(lock(&self.world).dirs.get(path).ok_or(io::ErrorKind::NotFound)?.now.keys().cloned().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|world| {
            let entry = world.entry(from)?.ok_or(io::ErrorKind::NotFound)?;
            world.name(to, Some(entry))?;
            world.name(from, None)
        })
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|world| {
            let entry = world.entry(from)?.ok_or(io::ErrorKind::NotFound)?;
            if world.entry(to)?.is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            world.name(to, Some(entry))?;
            world.name(from, None)
        })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|world| {
            let entry = world.entry(from)?.ok_or(io::ErrorKind::NotFound)?;
            if world.entry(to)?.is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            world.name(to, Some(entry))
        })
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.change(|world| {
            world.entry(path)?.ok_or(io::ErrorKind::NotFound)?;
            world.name(path, None)
        })
    }

    fn sync_dir(&self, path: &Path, why: &'static str) -> io::Result<()> {
        let path = if path == Path::new(".") { Path::new("") } else { path };
        let done = self.notes_sync(why);
        self.change(|world| {
            let dir = world.dirs.get_mut(path).ok_or(io::ErrorKind::NotFound)?;
            if done {
                dir.durable = dir.now.clone();
                dir.pending.clear();
            }
            Ok(())
        })
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space { total_bytes: 1 << 40, free_bytes: 1 << 39 })
    }
}

struct PowerFile {
    disk: PowerDisk,
    number: u64,
    access: Access,
}

impl PowerFile {
    fn change(&self, change: impl FnOnce(&mut Inode)) -> io::Result<()> {
        if self.access == Access::Read {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        self.disk.change(|world| {
            change(world.inodes.get_mut(&self.number).ok_or(io::ErrorKind::NotFound)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|inode| {
            set_len(Arc::make_mut(&mut inode.now), len);
            inode.pending.push(Piece::Len(len));
        })
    }
}

impl DiskFile for PowerFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let world = lock(&self.disk.world);
        let inode = world.inodes.get(&self.number).ok_or(io::ErrorKind::NotFound)?;
        let rest = inode.now.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }

    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.change(|inode| {
            overwrite(Arc::make_mut(&mut inode.now), offset, &bytes);
            inode.pending.push(Piece::Write { offset, bytes: Arc::new(bytes) });
        })
    }

    fn sync(&self, why: &'static str) -> io::Result<()> {
        let done = self.disk.notes_sync(why);
        self.disk.change(|world| {
            let inode = world.inodes.get_mut(&self.number).ok_or(io::ErrorKind::NotFound)?;
            if done {
                inode.durable = Arc::clone(&inode.now);
                inode.pending.clear();
            }
            Ok(())
        })
    }

    fn sync_data(&self, why: &'static str) -> io::Result<()> {
        self.sync(why)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if len > self.size()? { self.set_len(len) } else { Ok(()) }
    }

    fn size(&self) -> io::Result<u64> {
        let world = lock(&self.disk.world);
        Ok(world.inodes.get(&self.number).ok_or(io::ErrorKind::NotFound)?.now.len() as u64)
    }

    fn into_fd(self: Box<Self>) -> io::Result<OwnedFd> {
        let content = Arc::clone(&lock(&self.disk.world).inodes.get(&self.number).ok_or(io::ErrorKind::NotFound)?.now);
        crate::memfd::sealed(&content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(disk: &PowerDisk, path: &str) -> Option<Vec<u8>> {
        let file = disk.open(path.as_ref(), Access::Read).ok()?;
        let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
        super::super::read_exact_at(file.as_ref(), &mut bytes, 0).unwrap();
        Some(bytes)
    }

    #[test]
    fn what_is_synced_stays_and_the_rest_may_go() {
        let disk = PowerDisk::new();
        let file = disk.create("f".as_ref(), 0o600).unwrap();
        file.write_at(&[IoSlice::new(b"old")], 0).unwrap();
        file.sync("file").unwrap();
        assert_eq!(content(&disk.snapshot().cut(|_| false), "f"), None, "its name was not synced");
        disk.sync_dir("".as_ref(), "dir").unwrap();
        file.write_at(&[IoSlice::new(b"new")], 0).unwrap();
        assert_eq!(disk.snapshot().pieces(), 1);
        assert_eq!(content(&disk.snapshot().cut(|_| false), "f").unwrap(), b"old");
        assert_eq!(content(&disk.snapshot().cut(|_| true), "f").unwrap(), b"new");
        assert_eq!(disk.syncs_seen(), ["dir", "file"].into());
    }

    #[test]
    fn writes_fall_into_sectors_and_any_of_them_may_be_lost() {
        let disk = PowerDisk::new();
        let file = disk.create("f".as_ref(), 0o600).unwrap();
        disk.sync_dir("".as_ref(), "dir").unwrap();
        file.write_at(&[IoSlice::new(&[1; 1000]), IoSlice::new(&[2; 100])], 500).unwrap();
        let snapshot = disk.snapshot();
        assert_eq!(snapshot.pieces(), 4); // 500..512, 512..1024, 1024..1536, 1536..1600
        let left = content(&snapshot.cut(|piece| piece == 2), "f").unwrap();
        assert_eq!(left.len(), 1536);
        assert!(left[..1024].iter().all(|b| *b == 0) && left[1024..1500].iter().all(|b| *b == 1));
    }

    #[test]
    fn a_rename_is_two_names_and_a_killed_process_loses_nothing() {
        let disk = PowerDisk::new();
        disk.make_dir("a".as_ref(), 0o700).unwrap();
        disk.make_dir("b".as_ref(), 0o700).unwrap();
        disk.sync_dir("".as_ref(), "top").unwrap();
        disk.create("a/f".as_ref(), 0o600).unwrap();
        disk.sync_dir("a".as_ref(), "a").unwrap();
        disk.rename("a/f".as_ref(), "b/g".as_ref()).unwrap();
        let outcomes: BTreeSet<(bool, bool)> = (0..4_u32)
            .map(|set| disk.snapshot().cut(|piece| set >> piece & 1 == 1))
            .map(|disk| (content(&disk, "a/f").is_some(), content(&disk, "b/g").is_some()))
            .collect();
        assert_eq!(outcomes.len(), 4);
        assert!(content(&disk.snapshot().kill(), "b/g").is_some());
    }

    #[test]
    fn a_directory_in_a_lost_directory_is_lost() {
        let disk = PowerDisk::new();
        disk.make_dir("a".as_ref(), 0o700).unwrap();
        disk.make_dir("a/b".as_ref(), 0o700).unwrap();
        disk.create("a/b/f".as_ref(), 0o600).unwrap();
        disk.sync_dir("a/b".as_ref(), "b").unwrap();
        assert_eq!(disk.snapshot().pieces(), 2);
        let outcome = |set: u32| content(&disk.snapshot().cut(|piece| set >> piece & 1 == 1), "a/b/f").is_some();
        assert_eq!([0, 1, 2, 3].map(outcome), [false, false, false, true]);
    }

    #[test]
    fn a_dropped_sync_syncs_nothing() {
        let disk = PowerDisk::new();
        disk.drop_syncs("dir");
        disk.create("f".as_ref(), 0o600).unwrap();
        disk.sync_dir("".as_ref(), "dir").unwrap();
        assert!(content(&disk.snapshot().cut(|_| false), "f").is_none());
    }
}
