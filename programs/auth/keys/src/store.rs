//! The certificates and keys below etc/qmail/tls, followed: looked at again at most once in [`LOOK_PAUSE`].
//!
//! What cannot be used is left out and logged; the others go on.

use crate::log;
use certificates::{CERTIFICATE, Entry, KEY};
use control::Root;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How soon a change of the files counts.
pub const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Directories that are looked into.
const NAMES_MAX: usize = 10_000;
/// Of certificates whose end is nearer than this, the log tells.
const EXPIRY_WARNING_S: i64 = 14 * 86_400;

/// All of them at a time.
#[derive(Debug, Default)]
pub struct Entries {
    pub generation: u64,
    pub all: Vec<Entry>,
    /// Which one is for clients that name no host: that of `control/me`, else the first.
    pub default: usize,
}

/// Which files there are, and which they were when they were read.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
struct Seen(Vec<(String, [Option<Mark>; 2])>);

/// Inode, size, change time.
type Mark = (u64, u64, i64, i64);

/// The directory, followed.
#[derive(Debug)]
pub struct Store {
    root: Root,
    seen: Option<Seen>,
    looked: Option<Duration>,
    entries: Arc<Entries>,
}

impl Store {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(root: Root) -> Self {
        Self { root, seen: None, looked: None, entries: Arc::default() }
    }

    /// What there is; `now` is the time since boot.
    pub fn entries(&mut self, now: Duration) -> Arc<Entries> {
        if self.looked.is_none_or(|looked| now.saturating_sub(looked) >= LOOK_PAUSE) {
            self.looked = Some(now);
            self.look();
        }
        Arc::clone(&self.entries)
    }

    fn look(&mut self) {
        let seen = match Seen::of(&self.root.tls()) {
            Ok(seen) => seen,
            // What was read goes on counting.
            Err(error) => return log(&format!("{}: {error}", self.root.tls().display())),
        };
        if self.seen.as_ref() == Some(&seen) {
            return;
        }
        let me = self.root.line("me").ok().flatten().unwrap_or_default().to_ascii_lowercase();
        let mut all = Vec::new();
        for (name, _) in &seen.0 {
            let dir = self.root.tls().join(name);
            match certificates::entry(&dir) {
                Ok(entry) => {
                    warn_of_end(&dir, &entry);
                    all.push(entry);
                }
                Err(error) => log(&format!("{}: not used: {error}", dir.display())),
            }
        }
        let default = all.iter().position(|entry: &Entry| entry.certificate.covers(&me)).unwrap_or(0);
        log(&format!("certificates: {}", all.len()));
        self.seen = Some(seen);
        self.entries = Arc::new(Entries { generation: generation(), all, default });
    }
}

/// Never the same again, also after a restart.
fn generation() -> u64 {
    let mut bytes = [0; 8];
    // Without random bytes the clock has to do.
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes).max(1),
        Err(_) => sys::clock::boottime().as_nanos().try_into().unwrap_or(u64::MAX),
    }
}

impl Seen {
    fn of(dir: &Path) -> io::Result<Self> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)?.take(NAMES_MAX) {
            // What is no text is no host's name; a dot starts what editors and package managers put aside.
            if let Ok(name) = entry?.file_name().into_string()
                && !name.starts_with('.')
                && dir.join(&name).is_dir()
            {
                let mark = |file: &str| {
                    fs::metadata(dir.join(&name).join(file)).ok().map(|m| (m.ino(), m.size(), m.ctime(), m.ctime_nsec()))
                };
                let marks = [mark(CERTIFICATE), mark(KEY)];
                names.push((name, marks));
            }
        }
        names.sort();
        Ok(Self(names))
    }
}

fn warn_of_end(dir: &Path, entry: &Entry) {
    let left_s = entry.certificate.not_after_s.saturating_sub(i64::try_from(sys::clock::unix_s()).unwrap_or(i64::MAX));
    if left_s <= 0 {
        log(&format!("{}: the certificate has expired; clients that look will not accept it", dir.display()));
    } else if left_s < EXPIRY_WARNING_S {
        log(&format!("{}: the certificate expires in {} days", dir.display(), left_s / 86_400));
    }
}
