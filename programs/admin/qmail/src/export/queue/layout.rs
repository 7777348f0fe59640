//! A classic queue that is written to: its directories, their owners and modes, and files that are synced with their names.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Body;
use crate::{Failure, io_failure};

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Mess,
    Info,
    Local,
    Remote,
    Bounce,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Mess, Self::Info, Self::Local, Self::Remote, Self::Bounce];

    fn dir(self) -> &'static str {
        match self {
            Self::Mess => "mess",
            Self::Info => "info",
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Bounce => "bounce",
        }
    }

    fn mode(self) -> u32 {
        if self == Self::Mess { 0o644 } else { 0o600 }
    }
}

/// Name, mode, owner, and whether it is split.
const DIRS: [(&str, u32, &str, bool); 9] = [
    ("mess", 0o750, "qmailq", true),
    ("info", 0o700, "qmails", true),
    ("local", 0o700, "qmails", true),
    ("remote", 0o700, "qmails", true),
    ("bounce", 0o700, "qmails", false),
    ("todo", 0o750, "qmailq", false),
    ("intd", 0o700, "qmailq", false),
    ("pid", 0o700, "qmailq", false),
    ("lock", 0o750, "qmailq", false),
];
/// So many numbers are looked at for one that nothing in the queue has.
const NUMBERS_MAX: usize = 64;
/// Bytes of lock/tcpto.
const TCPTO_LEN: usize = 1024;

/// See the module.
pub(super) struct Layout {
    dir: PathBuf,
    split: u64,
    /// Names in pid/ that are not given again.
    next: u64,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Failure {
    let path = path.to_owned();
    move |error| io_failure(&path, &error)
}

impl Layout {
    /// Opens a queue, or makes one where there is nothing.
    ///
    /// # Errors
    /// Another number of splits, or it cannot be made.
    pub(super) fn open(dir: &Path, split: u64) -> Result<Self, Failure> {
        let layout = Self { dir: dir.to_owned(), split, next: 0 };
        if !dir.join("mess").is_dir() {
            layout.make()?;
        }
        let found = layout.found_split()?;
        if found != split {
            return Err(Failure::permanent(format!("{}: has {found} splits; give --split {found}", dir.join("mess").display())));
        }
        for (name, _, _, is_split) in DIRS {
            let at = if is_split { dir.join(name).join("0") } else { dir.join(name) };
            if !at.is_dir() {
                return Err(Failure::permanent(format!("{}: is no directory: no queue of a classic qmail", at.display())));
            }
        }
        Ok(layout)
    }

    fn found_split(&self) -> Result<u64, Failure> {
        let mess = self.dir.join("mess");
        let mut found = 0;
        for entry in std::fs::read_dir(&mess).map_err(failed(&mess))? {
            let name = entry.map_err(failed(&mess))?.file_name();
            let number = classicqueue::layout::number(std::os::unix::ffi::OsStrExt::as_bytes(name.as_os_str()));
            found = found.max(number.map_or(0, |number| number.saturating_add(1)));
        }
        Ok(found)
    }

    fn make(&self) -> Result<(), Failure> {
        let owners = Owners::read();
        owners.dir(&self.dir, 0o750, "qmailq")?;
        for (name, mode, owner, is_split) in DIRS {
            let dir = self.dir.join(name);
            owners.dir(&dir, mode, owner)?;
            for part in 0..if is_split { self.split } else { 0 } {
                owners.dir(&dir.join(part.to_string()), mode, owner)?;
            }
            sync_dir(&dir)?;
        }
        let lock = self.dir.join("lock");
        owners.file(&lock.join("sendmutex"), &[], 0o600, "qmails")?;
        owners.file(&lock.join("tcpto"), &[0; TCPTO_LEN], 0o644, "qmailr")?;
        let trigger = lock.join("trigger");
        // A umask would take away what makes a trigger of it, and a mode that is set later may be set of what was put in its place.
        let umask = rustix::process::umask(Mode::empty());
        let fifo = rustix::fs::mknodat(rustix::fs::CWD, &trigger, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o622), 0);
        rustix::process::umask(umask);
        fifo.map_err(|errno| io_failure(&trigger, &errno.into()))?;
        owners.give(&trigger, "qmails")?;
        sync_dir(&lock)?;
        sync_dir(&self.dir)
    }

    fn dir_of(&self, kind: Kind, number: u64) -> PathBuf {
        let dir = self.dir.join(kind.dir());
        if kind == Kind::Bounce { dir } else { dir.join(classicqueue::layout::split(number, self.split).to_string()) }
    }

    fn path(&self, kind: Kind, number: u64) -> PathBuf {
        self.dir_of(kind, number).join(number.to_string())
    }

    fn has(&self, kind: Kind, number: u64) -> bool {
        std::fs::symlink_metadata(self.path(kind, number)).is_ok()
    }

    /// Was a message of this number accepted by a classic qmail-queue, or is it just being? Some queues have these directories split.
    fn is_accepted(&self, number: u64) -> bool {
        ["todo", "intd"].iter().any(|name| {
            let dir = self.dir.join(name);
            let split = dir.join(classicqueue::layout::split(number, self.split).to_string());
            [dir, split].iter().any(|dir| std::fs::symlink_metadata(dir.join(number.to_string())).is_ok())
        })
    }

    /// Is there a message with this number, info, arrival and body?
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn is_message(&self, number: u64, info: &[u8], arrival: SystemTime, body: &Body) -> Result<bool, Failure> {
        if self.is_accepted(number) {
            return Ok(false);
        }
        let path = self.path(Kind::Info, number);
        let Some(mut file) = open(&path)? else { return Ok(false) };
        let metadata = file.metadata().map_err(failed(&path))?;
        // No qmail-send changes either.
        let is_same = metadata.len() == info.len() as u64 && metadata.modified().is_ok_and(|modified| modified == arrival) && {
            let mut found = vec![0; info.len()];
            file.read_exact(&mut found).map_err(failed(&path))?;
            found == info
        };
        Ok(is_same && self.has_body(number, body)? == Some(true))
    }

    /// `None`: there is no mess of this number. `Some(false)`: it is another message's.
    fn has_body(&self, number: u64, body: &Body) -> Result<Option<bool>, Failure> {
        let path = self.path(Kind::Mess, number);
        let Some(mut file) = open(&path)? else { return Ok(None) };
        if file.metadata().map_err(failed(&path))?.len() != body.1 {
            return Ok(Some(false));
        }
        let mut is_same = true;
        let mut found = Vec::new();
        super::chunks(body, |bytes| {
            found.resize(bytes.len(), 0);
            file.read_exact(&mut found)?;
            is_same = is_same && found == bytes;
            Ok(())
        })
        .map_err(failed(&path))?;
        Ok(Some(is_same))
    }

    /// Takes away what a run before left of a message that it did not make whole. What may be another one's, which got the number since,
    /// stays.
    ///
    /// # Errors
    /// It stays.
    pub(super) fn forget(&self, number: u64, body: &Body) -> Result<(), Failure> {
        if self.is_accepted(number) || self.has(Kind::Info, number) || self.has_body(number, body)? == Some(false) {
            return Ok(());
        }
        for kind in [Kind::Local, Kind::Remote, Kind::Bounce, Kind::Mess] {
            let path = self.path(kind, number);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_failure(&path, &error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes a new mess file, named by its inode; its number.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn message(&mut self, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<u64, Failure> {
        let (temporary, mut file, number) = self.unused()?;
        let fail = failed(&temporary);
        write(&mut file).map_err(&fail)?;
        let dir = self.dir_of(Kind::Mess, number);
        give_as(&file, &dir).and_then(|()| file.sync_all()).map_err(&fail)?;
        let path = self.path(Kind::Mess, number);
        std::fs::hard_link(&temporary, &path).map_err(failed(&path))?;
        std::fs::remove_file(&temporary).map_err(&fail)?;
        sync_dir(&dir)?;
        Ok(number)
    }

    /// A new file whose number nothing in the queue has: what is left of a message that had it before would count for this one.
    fn unused(&mut self) -> Result<(PathBuf, File, u64), Failure> {
        let mut taken = Vec::new();
        let found = loop {
            let (temporary, file) = self.temporary(Kind::Mess)?;
            let number = file.metadata().map_err(failed(&temporary))?.ino();
            let leftover = Kind::ALL.into_iter().find(|kind| self.has(*kind, number));
            if leftover.is_none() && !self.is_accepted(number) {
                break Ok((temporary, file, number));
            }
            // As long as it is there the next one gets another number.
            taken.push(temporary);
            if taken.len() >= NUMBERS_MAX {
                let at = leftover.map_or_else(|| self.dir.join("todo").join(number.to_string()), |kind| self.path(kind, number));
                let text = format!("{}: is there already; clear the queue of its leftovers first", at.display());
                break Err(Failure::permanent(text));
            }
        };
        taken.iter().for_each(|temporary| drop(std::fs::remove_file(temporary)));
        found
    }

    /// Puts a whole file in its place in one step, with its time, synced with its name.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn put(&mut self, kind: Kind, number: u64, bytes: &[u8], modified: Option<SystemTime>) -> Result<(), Failure> {
        let (temporary, mut file) = self.temporary(kind)?;
        let fail = failed(&temporary);
        let dir = self.dir_of(kind, number);
        file.write_all(bytes).and_then(|()| give_as(&file, &dir)).map_err(&fail)?;
        if let Some(modified) = modified {
            file.set_modified(modified).map_err(&fail)?;
        }
        file.sync_all().map_err(&fail)?;
        let path = self.path(kind, number);
        std::fs::rename(&temporary, &path).map_err(failed(&path))?;
        sync_dir(&dir)
    }

    /// A classic qmail-clean takes away what a crash leaves of it.
    fn temporary(&mut self, kind: Kind) -> Result<(PathBuf, File), Failure> {
        loop {
            self.next = self.next.saturating_add(1);
            let path = self.dir.join("pid").join(format!("export.{}.{}", std::process::id(), self.next));
            match create(&path, kind.mode()) {
                Ok(file) => return Ok((path, file)),
                // Of an earlier process with this number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.next < u64::MAX => {}
                Err(error) => return Err(io_failure(&path, &error)),
            }
        }
    }
}

/// Opens a file to read it; `None`: there is no such regular file.
fn open(path: &Path) -> Result<Option<File>, Failure> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(io_failure(path, &errno.into())),
    };
    Ok(Some(file).filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file())))
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

/// The owner of a file is the one of the directory that it goes to.
fn give_as(file: &File, dir: &Path) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(dir)?;
    if !metadata.is_dir() {
        return Err(io::Error::other(format!("{}: is no directory, and a link is not followed", dir.display())));
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::fchown(file, Some(metadata.uid()), Some(metadata.gid()))?;
    }
    Ok(())
}

/// Syncs the names in a directory.
///
/// # Errors
/// The disk's.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Failure> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))
}

/// The users of a classic qmail, as far as they are in passwd.
struct Owners {
    passwd: Vec<u8>,
    group: Option<u32>,
}

impl Owners {
    fn read() -> Self {
        let of = |path: &str| std::fs::read(path).unwrap_or_default();
        Self { passwd: of("/etc/passwd"), group: third(&of("/etc/group"), "qmail") }
    }

    fn dir(&self, path: &Path, mode: u32, owner: &str) -> Result<(), Failure> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_failure(path, &error)),
            _ => {}
        }
        self.give(path, owner)?;
        std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed(path))
    }

    fn file(&self, path: &Path, bytes: &[u8], mode: u32, owner: &str) -> Result<(), Failure> {
        let mut file = create(path, mode).map_err(failed(path))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed(path))?;
        self.give(path, owner)
    }

    fn give(&self, path: &Path, owner: &str) -> Result<(), Failure> {
        let Some(uid) = third(&self.passwd, owner).filter(|_| rustix::process::geteuid().is_root()) else { return Ok(()) };
        std::os::unix::fs::lchown(path, Some(uid), self.group).map_err(failed(path))
    }
}

/// The number in the third field of the line of this name.
fn third(text: &[u8], name: &str) -> Option<u32> {
    let line = text.split(|byte| *byte == b'\n').find(|line| line.split(|byte| *byte == b':').next() == Some(name.as_bytes()))?;
    std::str::from_utf8(line.split(|byte| *byte == b':').nth(2)?).ok()?.parse().ok()
}
