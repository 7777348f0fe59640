//! What /proc says of a process.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};

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

/// How a private key of P-256 (PKCS #8, PEM) would show in memory: its number as it is written, and as processors that begin with the low
/// byte hold it; then a line of the text of its file.
///
/// # Errors
/// The file holds no such key.
pub fn secrets(file: &Path) -> Result<[Vec<u8>; 3]> {
    let pem = std::fs::read_to_string(file)?;
    let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = wire::base64::decode(lines.concat().as_bytes())?;
    // SEC 1 in PKCS #8: version 1, then 32 bytes of the number.
    let at = der.windows(5).position(|part| part == [2, 1, 1, 4, 32]).context("no key of P-256")?;
    let number = der.get(at + 5..at + 37).context("no whole key")?.to_vec();
    let turned = number.iter().rev().copied().collect();
    Ok([number, turned, lines.get(1).context("no second line")?.as_bytes().to_vec()])
}

/// Do the parts of a process's memory that can be read hold one of these? Needs root for processes of others.
///
/// # Errors
/// Its memory cannot be read.
pub fn holds(pid: u32, secrets: &[Vec<u8>]) -> Result<bool> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut looked = 0;
    let mut found = false;
    for line in maps.lines().filter(|line| line.contains(" rw") || line.contains(" r-")) {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).context("a range")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let mut part = vec![0; usize::try_from(end - start)?];
        // Not every mapping can be read: [vvar] cannot.
        if std::os::unix::fs::FileExt::read_exact_at(&memory, &mut part, start).is_ok() {
            looked += part.len();
            found |= secrets.iter().any(|secret| memchr::memmem::find(&part, secret).is_some());
        }
    }
    ensure!(looked > 1 << 20, "the memory of {pid} was not read");
    Ok(found)
}
