//! A value that follows its file: read again whenever the file is another one or has changed.
//!
//! Each use costs one stat(2). A change is seen by device, inode, times in nanoseconds, size, owner and mode; a file changed
//! less than 50 ms before it was read is read again the next time, since a second change within one clock tick of the
//! file system would leave the times as they are.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use users::VirtualDomains;

use crate::{ControlError, Root, read};

/// Longer than a tick of any file system clock in use (10 ms at HZ = 100).
const SETTLE: Duration = Duration::from_millis(50);

/// `users/domains` as it is now, while it is root's alone; another `Arc` each time it has been read again.
#[must_use]
pub fn domains(root: &Root) -> Watched<Arc<VirtualDomains>> {
    let parse =
        |text: Option<&[u8]>| VirtualDomains::parse(text.unwrap_or_default()).map(Arc::new).map_err(|error| error.to_string());
    Watched::owned(root.domains_file(), parse)
}

/// What identifies one state of a file; `None` is "does not exist".
type Stamp = Option<[i128; 8]>;

/// Turns the bytes of the file (`None` if it does not exist) into the value, or says what is wrong with them.
type Parse<T> = Box<dyn Fn(Option<&[u8]>) -> Result<T, String> + Send>;

/// A value and the file it comes from.
pub struct Watched<T> {
    path: PathBuf,
    parse: Parse<T>,
    /// Must nobody but root (or the caller) own and write the file?
    owned: bool,
    /// The state that `value` comes from; `None` if it must be read again.
    stamp: Option<Stamp>,
    value: Option<T>,
}

impl<T> Watched<T> {
    /// Follows `path`; nothing is read before the first use.
    pub fn new(path: PathBuf, parse: impl Fn(Option<&[u8]>) -> Result<T, String> + Send + 'static) -> Self {
        Self { path, parse: Box::new(parse), owned: false, stamp: None, value: None }
    }

    /// Follows a file that gives away rights: it counts only while it is root's (when not root: or the caller's) alone.
    pub fn owned(path: PathBuf, parse: impl Fn(Option<&[u8]>) -> Result<T, String> + Send + 'static) -> Self {
        Self { owned: true, ..Self::new(path, parse) }
    }

    /// The value as the file says it now.
    ///
    /// # Errors
    /// The file is unreadable or malformed now; temporary. [`Watched::last`] still has the last good value.
    pub fn get(&mut self) -> Result<&T, ControlError> {
        if self.stamp.is_none() || self.stamp != Some(self.stat()?) {
            self.reread()?;
        }
        self.value.as_ref().ok_or_else(|| ControlError::new(&self.path, "not read yet"))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// The last value that was read, if any was.
    #[must_use]
    pub fn last(&self) -> Option<&T> {
        self.value.as_ref()
    }

    fn stat(&self) -> Result<Stamp, ControlError> {
        Ok(metadata(&self.path)?.as_ref().map(stamp))
    }

    fn reread(&mut self) -> Result<(), ControlError> {
        self.stamp = None;
        let (text, seen, settled) = match read::open(&self.path)? {
            None => (None, None, true),
            Some((file, metadata)) => {
                if self.owned {
                    read::check_owner(&self.path, &metadata)?;
                }
                // The stamp is from before the bytes: a write while they are read makes the stamp old.
                (Some(read::contents(&self.path, file, &metadata)?), Some(stamp(&metadata)), is_settled(&metadata))
            }
        };
        let value = (self.parse)(text.as_deref()).map_err(|problem| ControlError::new(&self.path, problem))?;
        self.value = Some(value);
        self.stamp = settled.then_some(seen);
        Ok(())
    }
}

/// Files (or directories) that others read: here it only counts that they have changed.
#[derive(Debug)]
pub struct Stamps {
    /// Each with the state last seen; the outer `None` if it may have changed since without a trace.
    files: Vec<(PathBuf, Option<Stamp>)>,
    changes: u64,
}

impl Stamps {
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { files: paths.into_iter().map(|path| (path, None)).collect(), changes: 0 }
    }

    /// Another number whenever one of them is not as it was at the last call, or may not be. What cannot be looked at counts as
    /// not there: whoever reads it finds out.
    pub fn changes(&mut self) -> u64 {
        for (path, seen) in &mut self.files {
            let metadata = metadata(path).unwrap_or_default();
            let now = metadata.as_ref().map(stamp);
            if *seen != Some(now) {
                self.changes = self.changes.wrapping_add(1);
            }
            *seen = metadata.as_ref().is_none_or(is_settled).then_some(now);
        }
        self.changes
    }
}

/// `None` if it does not exist.
fn metadata(path: &std::path::Path) -> Result<Option<Metadata>, ControlError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ControlError::from_io(path, &error)),
    }
}

fn stamp(metadata: &Metadata) -> [i128; 8] {
    let time = |s: i64, ns: i64| i128::from(s).saturating_mul(1_000_000_000).saturating_add(i128::from(ns));
    [
        metadata.dev().into(),
        metadata.ino().into(),
        metadata.size().into(),
        metadata.uid().into(),
        metadata.gid().into(),
        metadata.mode().into(),
        time(metadata.mtime(), metadata.mtime_nsec()),
        time(metadata.ctime(), metadata.ctime_nsec()),
    ]
}

/// ctime, since no program can set it back.
fn is_settled(metadata: &Metadata) -> bool {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let changed = Duration::new(u64::try_from(metadata.ctime()).unwrap_or(0), u32::try_from(metadata.ctime_nsec()).unwrap_or(0));
    since_epoch.abs_diff(changed) >= SETTLE
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn watched(path: &std::path::Path) -> (Watched<Vec<u8>>, Arc<AtomicUsize>) {
        let reads = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&reads);
        let parse = move |text: Option<&[u8]>| {
            count.fetch_add(1, Ordering::Relaxed);
            let text = text.unwrap_or(b"missing").to_vec();
            if text == b"bad" { Err("bad".to_owned()) } else { Ok(text) }
        };
        (Watched::new(path.to_owned(), parse), reads)
    }

    #[test]
    fn follows_creation_change_replacement_and_removal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value");
        let (mut value, _) = watched(&path);
        assert_eq!(value.get().unwrap(), b"missing");
        // Same length each time, one right after the other: times alone would not tell.
        for text in [b"1", b"2", b"3", b"4", b"5", b"6"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(value.get().unwrap(), text);
        }
        std::fs::write(dir.path().join("other"), "x").unwrap();
        std::fs::rename(dir.path().join("other"), &path).unwrap();
        assert_eq!(value.get().unwrap(), b"x");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(value.get().unwrap(), b"missing");
    }

    #[test]
    fn reads_only_when_it_must() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value");
        std::fs::write(&path, "1").unwrap();
        std::thread::sleep(SETTLE * 2);
        let (mut value, reads) = watched(&path);
        for _ in 0..5 {
            assert_eq!(value.get().unwrap(), b"1");
        }
        assert_eq!(reads.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn keeps_the_last_good_value_beside_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value");
        std::fs::write(&path, "good").unwrap();
        let (mut value, _) = watched(&path);
        value.get().unwrap();
        std::fs::write(&path, "bad").unwrap();
        assert!(value.get().is_err() && value.get().is_err());
        assert_eq!(value.last().unwrap(), b"good");
        std::fs::write(&path, "fine").unwrap();
        assert_eq!(value.get().unwrap(), b"fine");
    }
}
