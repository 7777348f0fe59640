//! The certificates and keys below etc/qmail/tls, followed: looked at again at most once in [`LOOK_PAUSE`].
//!
//! What cannot be used is left out and logged; the others go on. If it could be used before, the former certificate stays in use: two files
//! that are replaced one after the other stop nobody.

use crate::log;
use certificates::{Entry, Purpose};
use control::Root;
use std::collections::BTreeMap;
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

/// So long a key signs on when it is not there any more: who has its certificate from an earlier listing learns of the new one meanwhile.
const FORMER_MAX: Duration = Duration::from_secs(60);
/// A file that was changed so short a time ago may change again without a trace in its times.
const SETTLE_S: i64 = 1;

/// All of them at a time.
#[derive(Debug, Default)]
pub struct Entries {
    pub generation: u64,
    pub all: Vec<Arc<Entry>>,
    /// Which are for clients that name no host: those of `control/me`, else the first.
    pub defaults: Vec<usize>,
}

/// Which files there are, and which they were when they were read.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
struct Seen {
    names: Vec<(String, [Option<Mark>; 2])>,
    me: Option<Mark>,
}

/// Inode, size, change time.
type Mark = (u64, u64, i64, i64);

/// The directory, followed.
#[derive(Debug)]
pub struct Store {
    root: Root,
    purpose: Purpose,
    seen: Option<Seen>,
    looked: Option<Duration>,
    /// By the name of the directory.
    usable: BTreeMap<String, Arc<Entry>>,
    /// What was last logged of each.
    said: BTreeMap<String, String>,
    entries: Arc<Entries>,
    /// Those that are gone, and since when.
    former: Vec<(Duration, Arc<Entry>)>,
}

impl Store {
    /// Those for clients of ours. Nothing is read yet.
    #[must_use]
    pub fn new(root: Root) -> Self {
        Self::of(root, Purpose::Server)
    }

    /// As [`Store::new`], for another purpose.
    #[must_use]
    pub fn of(root: Root, purpose: Purpose) -> Self {
        Self {
            root,
            purpose,
            seen: None,
            looked: None,
            usable: BTreeMap::new(),
            said: BTreeMap::new(),
            entries: Arc::default(),
            former: Vec::new(),
        }
    }

    /// Reads everything again at the next use.
    pub fn forget(&mut self) {
        (self.seen, self.looked) = (None, None);
    }

    /// The certificate whose key has this name, also if it was replaced just now.
    pub fn by_key(&mut self, name: &[u8], now: Duration) -> Option<Arc<Entry>> {
        let entries = self.entries(now);
        self.former.retain(|(since, _)| now.saturating_sub(*since) < FORMER_MAX);
        let mut all = entries.all.iter().chain(self.former.iter().map(|(_, entry)| entry));
        all.find(|entry| entry.certificate.key_name == name).cloned()
    }

    /// The certificate of a directory.
    pub fn by_directory(&mut self, name: &str, now: Duration) -> Option<Arc<Entry>> {
        self.entries(now);
        self.usable.get(name).cloned()
    }

    /// What there is; `now` is the time since boot.
    pub fn entries(&mut self, now: Duration) -> Arc<Entries> {
        if self.looked.is_none_or(|looked| now.saturating_sub(looked) >= LOOK_PAUSE) {
            self.looked = Some(now);
            self.look(now);
        }
        Arc::clone(&self.entries)
    }

    fn look(&mut self, now: Duration) {
        let seen = match Seen::of(&self.root, self.purpose) {
            Ok(seen) => seen,
            // What was read goes on counting.
            Err(error) => return log(&format!("{}: {error}", self.root.tls().display())),
        };
        if self.seen.as_ref() == Some(&seen) {
            return;
        }
        let names: Vec<String> = seen.names.iter().map(|(name, _)| name.clone()).collect();
        self.usable.retain(|name, _| names.contains(name));
        self.said.retain(|name, _| names.contains(name));
        for name in names {
            self.read(name);
        }
        self.seen = seen.is_settled().then_some(seen);
        self.publish(now);
    }

    /// Reads one, and says so if that is new.
    fn read(&mut self, name: String) {
        let dir = self.root.tls().join(&name);
        let line = match certificates::entry(&dir, self.purpose) {
            Ok(entry) => {
                let line = about(&entry);
                self.usable.insert(name.clone(), Arc::new(entry));
                line
            }
            Err(error) if self.usable.contains_key(&name) => format!("alert: {error}; the former certificate stays in use"),
            Err(error) => format!("alert: not used: {error}"),
        };
        if self.said.get(&name) != Some(&line) {
            log(&format!("{}: {line}", dir.display()));
            self.said.insert(name, line);
        }
    }

    fn publish(&mut self, now: Duration) {
        let me = self.root.line("me").ok().flatten().unwrap_or_default().to_ascii_lowercase();
        // Of several for a host the first counts: one that an authority vouches for before one that only its own key does, then the one in the
        // directory of this host's name.
        let mut named: Vec<(&String, &Arc<Entry>)> = self.usable.iter().collect();
        named.sort_by_key(|(name, entry)| (entry.certificate.is_self_signed, !name.as_bytes().eq_ignore_ascii_case(&me)));
        let all: Vec<Arc<Entry>> = named.iter().map(|(_, entry)| Arc::clone(entry)).collect();
        let is_there = |key: &[u8]| all.iter().any(|entry| entry.certificate.key_name == key);
        let gone = self.entries.all.iter().filter(|entry| !is_there(&entry.certificate.key_name));
        self.former.extend(gone.map(|entry| (now, Arc::clone(entry))));
        let mut defaults: Vec<usize> =
            all.iter().enumerate().filter(|(_, entry)| entry.certificate.covers(&me)).map(|(at, _)| at).collect();
        if defaults.is_empty() {
            defaults.push(0);
        }
        match self.purpose {
            Purpose::Server => log(&format!("certificates: {}", all.len())),
            Purpose::Client if all.is_empty() && self.entries.all.is_empty() => {}
            Purpose::Client => log(&format!("certificates of clients: {}", all.len())),
        }
        self.entries = Arc::new(Entries { generation: generation(), all, defaults });
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
    fn of(root: &Root, purpose: Purpose) -> io::Result<Self> {
        let dir = root.tls();
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir)?.take(NAMES_MAX) {
            // What is no text is no host's name; a dot starts what editors and package managers put aside.
            if let Ok(name) = entry?.file_name().into_string()
                && !name.starts_with('.')
                && dir.join(&name).is_dir()
                && purpose.is_of(&dir.join(&name))
            {
                let marks = purpose.files().map(|file| mark(&dir.join(&name).join(file)));
                names.push((name, marks));
            }
        }
        names.sort();
        Ok(Self { names, me: mark(&root.control_file("me")) })
    }

    fn is_settled(&self) -> bool {
        let now = i64::try_from(sys::clock::unix_s()).unwrap_or(i64::MAX);
        let marks = self.names.iter().flat_map(|(_, marks)| marks).chain([&self.me]);
        marks.flatten().all(|(_, _, changed_s, _)| changed_s.abs_diff(now) > SETTLE_S.unsigned_abs())
    }
}

fn mark(path: &Path) -> Option<Mark> {
    fs::metadata(path).ok().map(|m| (m.ino(), m.size(), m.ctime(), m.ctime_nsec()))
}

/// What the log says of one that is used.
fn about(entry: &Entry) -> String {
    let left_s = entry.certificate.not_after_s.saturating_sub(i64::try_from(sys::clock::unix_s()).unwrap_or(i64::MAX));
    let days = left_s.div_euclid(86_400);
    if left_s <= 0 {
        "warning: the certificate has expired; clients that look will not accept it".to_owned()
    } else if left_s < EXPIRY_WARNING_S {
        format!("warning: the certificate expires in {days} days")
    } else {
        format!("the certificate is used; it expires in {days} days")
    }
}
