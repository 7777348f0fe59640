//! What the disk allows: the most that any server with the same promises could do here.
//!
//! Twenty writers, each waiting for durability before it goes on, as twenty deliveries do. As files: create, write 4 KiB, fsync,
//! rename, fsync of the directory, over a hundred mailboxes. As a log: append 4 KiB, one fdatasync shared by all who wait.

use anyhow::{Result, bail};
use rustix::fs::{Mode, OFlags, fdatasync, fsync, openat, renameat};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub(crate) const WRITERS: usize = 20;
const MAILBOXES: usize = 100;
const BLOCK: [u8; 4096] = [b'x'; 4096];

/// How often per second, and how long each took.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) per_s: f64,
    pub(crate) times_ms: Vec<f64>,
}

/// Small files made durable, below a directory of its own that is removed afterwards.
///
/// # Errors
/// The disk's.
pub(crate) fn files(dir: &Path, span: Duration) -> Result<Limit> {
    let mailboxes: Vec<PathBuf> = (0..MAILBOXES).map(|n| dir.join(n.to_string())).collect();
    for mailbox in &mailboxes {
        std::fs::create_dir_all(mailbox.join("tmp"))?;
        std::fs::create_dir_all(mailbox.join("new"))?;
    }
    let opened: Vec<(OwnedFd, OwnedFd)> = mailboxes
        .iter()
        .map(|mailbox| Ok((directory(&mailbox.join("tmp"))?, directory(&mailbox.join("new"))?)))
        .collect::<Result<_>>()?;
    let limit = many(span, |writer, n| {
        let at = n.wrapping_mul(WRITERS).wrapping_add(writer) % MAILBOXES;
        let Some((tmp, new)) = opened.get(at) else { bail!("no mailbox") };
        let name = format!("{writer}.{n}");
        let mut file = File::from(openat(
            tmp,
            &name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )?);
        file.write_all(&BLOCK)?;
        fsync(&file)?;
        renameat(tmp, &name, new, &name)?;
        Ok(fsync(new)?)
    });
    std::fs::remove_dir_all(dir)?;
    limit
}

fn directory(path: &Path) -> Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// One log with group commit, below a directory of its own that is removed afterwards.
///
/// # Errors
/// The disk's.
pub(crate) fn log(dir: &Path, span: Duration) -> Result<Limit> {
    std::fs::create_dir_all(dir)?;
    let log = Log {
        file: OpenOptions::new().create(true).append(true).open(dir.join("log"))?,
        state: Mutex::new(Commits::default()),
        done: Condvar::new(),
    };
    let limit = many(span, |_, _| log.commit());
    std::fs::remove_dir_all(dir)?;
    limit
}

/// Runs `step(writer, n)` on all writers until `span` is over.
fn many(span: Duration, step: impl Fn(usize, usize) -> Result<()> + Sync) -> Result<Limit> {
    let (begin, step) = (Instant::now(), &step);
    let until = begin + span;
    let results: Vec<Result<Vec<f64>>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn(move || {
                    let mut times_ms = Vec::new();
                    while Instant::now() < until {
                        let start = Instant::now();
                        step(writer, times_ms.len())?;
                        times_ms.push(start.elapsed().as_secs_f64() * 1e3);
                    }
                    Ok(times_ms)
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap_or_else(|_| bail!("a writer panicked"))).collect()
    });
    let elapsed = begin.elapsed().as_secs_f64();
    let times_ms = results.into_iter().collect::<Result<Vec<_>>>()?.concat();
    Ok(Limit { per_s: times_ms.len() as f64 / elapsed, times_ms })
}

struct Log {
    file: File,
    state: Mutex<Commits>,
    done: Condvar,
}

#[derive(Default)]
struct Commits {
    written: u64,
    durable: u64,
    syncing: bool,
}

impl Log {
    /// Appends a block and returns when it is durable; whoever finds no sync under way does the next for all.
    fn commit(&self) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (&self.file).write_all(&BLOCK)?;
        state.written = state.written.saturating_add(1);
        let mine = state.written;
        while state.durable < mine {
            if state.syncing {
                state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.syncing = true;
            let until = state.written;
            drop(state);
            let synced = fdatasync(&self.file);
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.syncing = false;
            self.done.notify_all();
            synced?;
            state.durable = until;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_count_and_clean_up() {
        let dir = std::env::temp_dir().join(format!("bench-disk-{}", std::process::id()));
        for measure in [files, log] {
            let limit = measure(&dir, Duration::from_millis(100)).unwrap();
            assert!(limit.per_s > 0.0 && limit.times_ms.len() >= WRITERS);
            assert!(!dir.exists());
        }
    }
}
