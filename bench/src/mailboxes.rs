//! The Maildirs that a target delivers into: new before a run, counted and read after it.
//!
//! Those of earlier runs are laid aside, not removed: ext4 without a journal looks at each inode that was freed in the last minutes
//! before it takes another of that group, so whoever is measured after a removal of thousands of files would pay for it with a
//! third of the processors. They go with the work directory.

use crate::generator::user_name;
use crate::responder::bench_id;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// A header is within this much of a message.
const HEAD_MAX: u64 = 8192;
/// A message from which on the room of what was laid aside matters.
const LARGE_BYTES: u64 = 1 << 20;

/// The Maildirs of users `u001` and on, each in its home.
#[derive(Debug)]
pub(crate) struct Mailboxes(Vec<PathBuf>);

impl Mailboxes {
    /// Below `base`, a home for each.
    pub(crate) fn below(base: &Path, users: usize) -> Self {
        Self((0..users).map(|k| base.join(user_name(k)).join("Maildir")).collect())
    }

    /// New, empty Maildirs that belong to the owners of the homes; a home that is missing is made for the owner of what it is in, as
    /// the first delivery to a virtual user would. What that costs the disk is over when this returns.
    ///
    /// # Errors
    /// The directory of the homes is missing.
    pub(crate) fn renew(&self) -> Result<()> {
        for maildir in &self.0 {
            let home = maildir.parent().context("a Maildir lies in a home")?;
            if !home.exists() {
                make(home, home.parent().context("a home lies in a directory")?)?;
            }
            if maildir.exists() {
                lay_aside(maildir)?;
            }
            for dir in [maildir.clone(), maildir.join("tmp"), maildir.join("new"), maildir.join("cur")] {
                make(&dir, home)?;
            }
        }
        rustix::fs::sync();
        Ok(())
    }

    /// Where mail arrives, in the order of the users.
    pub(crate) fn new_dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.0.iter().map(|maildir| maildir.join("new"))
    }

    fn count(&self) -> Result<usize> {
        let mut count = 0usize;
        for dir in self.new_dirs() {
            count = count.saturating_add(std::fs::read_dir(dir)?.count());
        }
        Ok(count)
    }

    /// Waits for so many messages, or for `limit`; returns when the last one that is there arrived, by the file system's clock.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn wait(&self, messages: usize, limit: Duration) -> Result<SystemTime> {
        let until = Instant::now() + limit;
        while self.count()? < messages && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut last = SystemTime::UNIX_EPOCH;
        for dir in self.new_dirs() {
            last = last.max(dir.metadata()?.modified()?);
        }
        Ok(last)
    }

    /// How often each message is there, by id.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn ids(&self) -> Result<HashMap<String, usize>> {
        let mut ids = HashMap::new();
        let mut head = Vec::new();
        for dir in self.new_dirs() {
            for entry in std::fs::read_dir(dir)? {
                head.clear();
                File::open(entry?.path())?.take(HEAD_MAX).read_to_end(&mut head)?;
                let count: &mut usize = ids.entry(bench_id(&head).unwrap_or_default()).or_default();
                *count = count.saturating_add(1);
            }
        }
        Ok(ids)
    }
}

/// Gives a Maildir another name in its home and its large messages' room back to the disk.
fn lay_aside(maildir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(maildir.join("new"))? {
        let entry = entry?;
        if entry.metadata()?.len() > LARGE_BYTES {
            File::options().write(true).open(entry.path())?.set_len(0)?;
        }
    }
    let aside = (1u32..).map(|n| maildir.with_extension(format!("{n}"))).find(|aside| !aside.exists());
    Ok(std::fs::rename(maildir, aside.context("a home has room for one more name")?)?)
}

/// A private directory for the owner of another.
pub(crate) fn make(dir: &Path, of: &Path) -> Result<()> {
    let owner = of.metadata().with_context(|| of.display().to_string())?;
    DirBuilder::new().mode(0o700).create(dir)?;
    Ok(chown(dir, Some(owner.uid()), Some(owner.gid()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewed_filled_read() {
        let base = std::env::temp_dir().join(format!("bench-mailboxes-{}", std::process::id()));
        std::fs::create_dir_all(base.join("u001")).unwrap();
        let boxes = Mailboxes::below(&base, 2);
        for _ in 0..2 {
            boxes.renew().unwrap();
            assert_eq!(boxes.ids().unwrap().len(), 0);
            for (file, id) in [("u001/Maildir/new/1", "r-1"), ("u002/Maildir/new/1", "r-1"), ("u002/Maildir/new/2", "r-2")] {
                std::fs::write(base.join(file), format!("A: b\nX-Bench-Id: {id}\n\ntext\n")).unwrap();
            }
            let last = boxes.wait(3, Duration::from_secs(1)).unwrap();
            assert!(last.elapsed().unwrap() < Duration::from_secs(5));
            assert_eq!(boxes.ids().unwrap(), HashMap::from([("r-1".into(), 2), ("r-2".into(), 1)]));
        }
        std::fs::remove_dir_all(&base).unwrap();
        assert!(boxes.renew().is_err());
    }
}
