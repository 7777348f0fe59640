//! What /proc says of a process.

use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;

/// A process of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    pub name: String,
}

/// All living descendants of a process.
#[must_use]
pub fn descendants(pid: u32) -> Vec<Process> {
    let all: Vec<Process> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(process))
        .collect();
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(all.iter().filter(|p| p.parent == parent).map(|p| p.pid));
        at += 1;
    }
    all.into_iter().filter(|p| p.pid != pid && found.contains(&p.pid)).collect()
}

/// One process, unless it is gone, a zombie or about to be one: its command line goes with its memory, before its state changes.
#[must_use]
pub fn process(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.rsplit_once(") ")?.1;
    let mut fields = after.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let program = cmdline.split(|b| *b == 0).next()?;
    let name = String::from_utf8_lossy(program).rsplit('/').next()?.to_owned();
    (state != "Z" && !name.is_empty()).then_some(Process { pid, parent, name })
}

#[must_use]
pub fn is_alive(pid: u32) -> bool {
    process(pid).is_some()
}

/// A field of /proc/PID/status.
#[must_use]
pub fn status(pid: u32, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(str::trim))?;
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// What the descriptors of a process lead to. Needs root for processes of others.
#[must_use]
pub fn descriptors(pid: u32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
}

/// Sends a signal to a process that the test started.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
