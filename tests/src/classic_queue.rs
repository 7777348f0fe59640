//! A classic queue as the classic programs write it, byte for byte: for tests of its import and export.

use anyhow::Result;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A queue on the disk.
#[derive(Debug, Clone)]
pub struct ClassicQueue {
    pub dir: PathBuf,
    /// 0: flat directories.
    split: u64,
}

/// The recipients of a preprocessed message and what was collected for its bounce.
#[derive(Debug, Clone, Copy, Default)]
pub struct Queued<'a> {
    pub sender: &'a str,
    /// As `Tann@a.example`, `Dbob@b.example`.
    pub local: &'a [&'a str],
    pub remote: &'a [&'a str],
    pub bounce: &'a str,
    /// UNIX seconds.
    pub birth_s: u64,
    pub due_s: u64,
}

impl ClassicQueue {
    /// Makes the directories.
    ///
    /// # Errors
    /// The disk's.
    pub fn new(dir: &Path, split: u64) -> Result<Self> {
        for name in ["mess", "info", "local", "remote", "bounce", "todo", "intd", "pid", "lock"] {
            fs::create_dir_all(dir.join(name))?;
            if ["mess", "info", "local", "remote"].contains(&name) {
                (0..split).try_for_each(|part| fs::create_dir(dir.join(name).join(part.to_string())))?;
            }
        }
        fs::write(dir.join("lock/sendmutex"), "")?;
        Ok(Self { dir: dir.to_owned(), split })
    }

    /// As exported: a queue of that many splits that is there.
    #[must_use]
    pub fn at(dir: &Path, split: u64) -> Self {
        Self { dir: dir.to_owned(), split }
    }

    /// Where a file of a message is.
    #[must_use]
    pub fn path(&self, kind: &str, number: u64) -> PathBuf {
        let is_split = self.split > 0 && ["mess", "info", "local", "remote"].contains(&kind);
        let dir = self.dir.join(kind);
        let dir = if is_split { dir.join((number % self.split).to_string()) } else { dir };
        dir.join(number.to_string())
    }

    /// A mess file, named by its inode.
    ///
    /// # Errors
    /// The disk's.
    pub fn mess(&self, body: &[u8]) -> Result<u64> {
        let temporary = self.dir.join("pid/1.2.3");
        fs::write(&temporary, body)?;
        let number = fs::metadata(&temporary)?.ino();
        fs::hard_link(&temporary, self.path("mess", number))?;
        fs::remove_file(&temporary)?;
        Ok(number)
    }

    /// A message that qmail-queue has accepted and qmail-send not looked at.
    ///
    /// # Errors
    /// The disk's.
    pub fn todo(&self, body: &[u8], sender: &str, recipients: &[&str]) -> Result<u64> {
        let number = self.mess(body)?;
        let to: String = recipients.iter().map(|to| format!("T{to}\0")).collect();
        fs::write(self.path("intd", number), format!("u1000\0p4711\0F{sender}\0{to}"))?;
        fs::hard_link(self.path("intd", number), self.path("todo", number))?;
        Ok(number)
    }

    /// A message that qmail-send has looked at.
    ///
    /// # Errors
    /// The disk's.
    pub fn queued(&self, body: &[u8], as_is: Queued<'_>) -> Result<u64> {
        let number = self.mess(body)?;
        for (kind, list) in [("local", as_is.local), ("remote", as_is.remote)] {
            if !list.is_empty() {
                let text: String = list.iter().map(|record| format!("{record}\0")).collect();
                fs::write(self.path(kind, number), text)?;
                set_time(&self.path(kind, number), as_is.due_s)?;
            }
        }
        if !as_is.bounce.is_empty() {
            fs::write(self.path("bounce", number), as_is.bounce)?;
        }
        fs::write(self.path("info", number), format!("F{}\0", as_is.sender))?;
        set_time(&self.path("info", number), as_is.birth_s)?;
        Ok(number)
    }
}

/// Sets a file's mtime; 0 leaves it.
///
/// # Errors
/// The disk's.
pub fn set_time(path: &Path, unix_s: u64) -> Result<()> {
    if unix_s > 0 {
        File::options().write(true).open(path)?.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s))?;
    }
    Ok(())
}
