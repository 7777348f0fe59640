//! Counts syncs of files (fsync, fdatasync, writes with O_SYNC) by a kernel tracepoint: every thread of every process of a
//! target, without slowing it down as strace would.
//!
//! ext4 only, through tracefs. The tracepoint is limited to the target by process id, and the kernel adds its children
//! (`event-fork`); the ring buffer may overflow, since events are counted from its statistics and never read.

use crate::stage::{bounded, must};
use std::path::{Path, PathBuf};

const EVENT: &str = "events/ext4/ext4_sync_file_enter/enable";

/// A trace instance of our own; removed when dropped.
#[derive(Debug)]
pub(crate) struct Syncs {
    /// None: this kernel or this container does not let us.
    instance: Option<PathBuf>,
    /// /proc of the outer process namespace: tracing knows processes by their outer ids.
    outer_proc: PathBuf,
}

impl Syncs {
    /// Mounts tracefs at `mount` and sets the tracepoint up; where that fails nothing is counted.
    pub(crate) fn new(mount: &Path, outer_proc: &Path) -> Self {
        let instance = instance(mount).inspect_err(|error| eprintln!("syncs are not counted: {error:#}")).ok();
        Self { instance, outer_proc: outer_proc.to_owned() }
    }

    /// What a shell runs to be counted from then on.
    pub(crate) fn enter(&self) -> String {
        match &self.instance {
            // The shell opens the file itself, so that `self` is the shell.
            Some(dir) => {
                format!(
                    "read -r pid rest <{}/self/stat && echo $pid >>{}/set_event_pid",
                    self.outer_proc.display(),
                    dir.display()
                )
            }
            None => ":".into(),
        }
    }

    /// Syncs so far.
    pub(crate) fn count(&self) -> Option<u64> {
        let dir = self.instance.as_ref()?.join("per_cpu");
        let mut count = 0u64;
        for cpu in std::fs::read_dir(dir).ok()?.flatten() {
            let text = std::fs::read_to_string(cpu.path().join("stats")).ok()?;
            for value in ["entries: ", "overrun: "].iter().filter_map(|key| text.lines().find_map(|line| line.strip_prefix(key)))
            {
                count = count.checked_add(value.trim().parse().ok()?)?;
            }
        }
        Some(count)
    }
}

impl Drop for Syncs {
    fn drop(&mut self) {
        if let Some(dir) = &self.instance {
            let _ = std::fs::write(dir.join(EVENT), "0");
            let _ = std::fs::remove_dir(dir);
        }
    }
}

fn instance(mount: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(mount)?;
    must(bounded("mount").args(["-t", "tracefs", "tracefs"]).arg(mount))?;
    let dir = mount.join("instances/qmail-bench");
    if dir.exists() {
        std::fs::remove_dir(&dir)?;
    }
    std::fs::create_dir(&dir)?;
    let set = |file: &str, value: &str| std::fs::write(dir.join(file), value);
    let ready = set("options/event-fork", "1").and_then(|()| set("buffer_size_kb", "64"));
    // Nobody is counted before the first process enters.
    match ready.and_then(|()| set("set_event_pid", "1\n")).and_then(|()| set(EVENT, "1")) {
        Ok(()) => Ok(dir),
        Err(error) => {
            let _ = std::fs::remove_dir(&dir);
            Err(error.into())
        }
    }
}
