//! A classic queue that is written to: its directories, their owners and modes, and files that are synced with their names.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::Mode;

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
    const ALL: [Self; 5] = [Self::Info, Self::Local, Self::Remote, Self::Bounce, Self::Mess];

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
        let fifo = rustix::fs::mknodat(rustix::fs::CWD, &trigger, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o622), 0);
        fifo.map_err(|errno| io_failure(&trigger, &errno.into()))?;
        // A umask would take away what makes a trigger of it.
        std::fs::set_permissions(&trigger, Permissions::from_mode(0o622)).map_err(failed(&trigger))?;
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

    pub(super) fn has(&self, kind: Kind, number: u64) -> bool {
        std::fs::symlink_metadata(self.path(kind, number)).is_ok()
    }

    /// Takes away what a run before left of a message.
    ///
    /// # Errors
    /// It stays.
    pub(super) fn forget(&self, number: u64) -> Result<(), Failure> {
        for kind in Kind::ALL {
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
        let temporary = self.temporary();
        let fail = failed(&temporary);
        let mut file = create(&temporary, Kind::Mess.mode()).map_err(&fail)?;
        write(&mut file).map_err(&fail)?;
        let number = file.metadata().map_err(&fail)?.ino();
        let dir = self.dir_of(Kind::Mess, number);
        give_as(&file, &dir).and_then(|()| file.sync_all()).map_err(&fail)?;
        let path = self.path(Kind::Mess, number);
        std::fs::hard_link(&temporary, &path).map_err(failed(&path))?;
        std::fs::remove_file(&temporary).map_err(&fail)?;
        sync_dir(&dir)?;
        // Of a message that had this number before nothing may be left.
        for kind in [Kind::Info, Kind::Local, Kind::Remote, Kind::Bounce] {
            if self.has(kind, number) {
                let text =
                    format!("{}: is there already; clear the queue of its leftovers first", self.path(kind, number).display());
                return Err(Failure::permanent(text));
            }
        }
        Ok(number)
    }

    /// Puts a whole file in its place in one step, with its time, synced with its name.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn put(&mut self, kind: Kind, number: u64, bytes: &[u8], modified: Option<SystemTime>) -> Result<(), Failure> {
        let temporary = self.temporary();
        let fail = failed(&temporary);
        let dir = self.dir_of(kind, number);
        let mut file = create(&temporary, kind.mode()).map_err(&fail)?;
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
    fn temporary(&mut self) -> PathBuf {
        self.next = self.next.saturating_add(1);
        self.dir.join("pid").join(format!("export.{}.{}", std::process::id(), self.next))
    }
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

/// The owner of a file is the one of the directory that it goes to.
fn give_as(file: &File, dir: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(dir)?;
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
