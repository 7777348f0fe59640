//! The processes of one target: a control group, so that all of them are found and their CPU time is counted to the end, also
//! that of children which lived for a millisecond.
//!
//! Control groups of the first version (cpuacct) where they are mounted, else of the second.

use crate::syncs::Syncs;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const FIRST: [&str; 2] = ["/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct"];
const SECOND: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// How long processes may take to end after each signal.
const END_WAIT: Duration = Duration::from_secs(8);

/// A group; its processes are ended and it is removed when dropped.
#[derive(Debug)]
pub(crate) struct Group {
    dir: PathBuf,
    first: bool,
}

/// Memory of a group's processes.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) total_bytes: u64,
    pub(crate) largest_bytes: u64,
    pub(crate) processes: usize,
}

impl Group {
    /// A new group.
    ///
    /// # Errors
    /// There are no control groups, or an earlier bench left processes behind.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let has = |file: &'static str| move |dir: &&&str| Path::new(dir).join(file).exists();
        let first = FIRST.iter().find(has("cpuacct.usage"));
        let second = || SECOND.iter().find(has("cgroup.controllers"));
        let parent = first.or_else(second).context("no control groups below /sys/fs/cgroup")?;
        let group = Self { dir: Path::new(parent).join(format!("qmail-bench-{name}")), first: first.is_some() };
        if group.dir.exists() && !std::fs::read_to_string(group.procs())?.is_empty() {
            bail!("{} still has processes of an earlier bench; end them first", group.dir.display());
        }
        std::fs::create_dir_all(&group.dir)?;
        Ok(group)
    }

    fn procs(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    /// A command that will run in the group, its file syncs counted with those of all its children.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, syncs: &Syncs, program: S) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo $$ >>\"$0\" && eval \"$1\" && shift && exec \"$@\""]);
        command.arg(self.procs()).arg(syncs.enter()).arg(program).stdin(Stdio::null());
        command
    }

    /// Ids of the processes that are there now.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.procs()).unwrap_or_default();
        // 0 stands for a process that this namespace cannot see.
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
    }

    /// The process of that name.
    pub(crate) fn process(&self, name: &str) -> Option<i32> {
        let named = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
        self.pids().into_iter().find(named)
    }

    /// Kills all its processes without a warning.
    pub(crate) fn kill(&self) {
        let until = Instant::now() + END_WAIT;
        while !self.pids().is_empty() && Instant::now() < until {
            for pid in self.pids().into_iter().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// CPU seconds used since the group was made.
    ///
    /// # Errors
    /// The group is gone.
    pub(crate) fn cpu_s(&self) -> Result<f64> {
        if self.first {
            let text = std::fs::read_to_string(self.dir.join("cpuacct.usage"))?;
            return Ok(text.trim().parse::<f64>()? / 1e9);
        }
        let text = std::fs::read_to_string(self.dir.join("cpu.stat"))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("cpu.stat has no usage_usec")?;
        Ok(usage.trim().parse::<f64>()? / 1e6)
    }

    /// Resident memory, summed: pages that processes share count once for each of them.
    pub(crate) fn rss(&self) -> Memory {
        let page = rustix::param::page_size() as u64;
        self.memory(|pid| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
            text.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(page)
        })
    }

    /// Proportional memory: a page that n processes share counts 1/n for each.
    pub(crate) fn pss(&self) -> Memory {
        self.memory(pss_bytes)
    }

    fn memory(&self, of: impl Fn(i32) -> Option<u64>) -> Memory {
        let mut memory = Memory::default();
        for bytes in self.pids().into_iter().filter_map(of) {
            memory.total_bytes = memory.total_bytes.saturating_add(bytes);
            memory.largest_bytes = memory.largest_bytes.max(bytes);
            memory.processes = memory.processes.saturating_add(1);
        }
        memory
    }

    /// Waits until all processes have ended by themselves; asks them after a while, then kills.
    pub(crate) fn end(&self) {
        for signal in [None, Some(Signal::TERM), Some(Signal::KILL)] {
            if let Some(signal) = signal {
                for pid in self.pids().into_iter().filter_map(Pid::from_raw) {
                    let _ = kill_process(pid, signal);
                }
            }
            let until = Instant::now() + END_WAIT;
            while Instant::now() < until {
                if self.pids().is_empty() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// The most that a process ever had resident.
pub(crate) fn peak_bytes(pid: i32) -> Option<u64> {
    kib_line(pid, "status", "VmHWM:")
}

/// Proportional memory of one process.
pub(crate) fn pss_bytes(pid: i32) -> Option<u64> {
    kib_line(pid, "smaps_rollup", "Pss:")
}

/// A line of a file in /proc that gives kibibytes.
fn kib_line(pid: i32, file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.pids().is_empty() {
            self.end();
        }
        let _ = std::fs::remove_dir(&self.dir);
    }
}
