//! What a target used between two moments: CPU, memory, syncs; and what the rest of the machine used meanwhile.

use crate::figures::Figures;
use crate::group::{Group, Memory};
use crate::syncs::Syncs;
use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// Clock ticks say nothing about less than this.
const SHARES_SPAN_MIN: Duration = Duration::from_millis(500);
const MIB: f64 = 1024.0 * 1024.0;

/// What [`during`] found.
#[derive(Debug)]
pub(crate) struct Used {
    span: Duration,
    cpu_s: f64,
    other_share: f64,
    own_share: f64,
    peak: Memory,
    syncs: Option<u64>,
}

/// Runs `work` and measures the group meanwhile.
///
/// # Errors
/// Those of `work`.
pub(crate) fn during<T>(group: &Group, syncs: &Syncs, work: impl FnOnce() -> Result<T>) -> Result<(T, Used)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(group, &stop));
        let before = Moment::now(group, syncs)?;
        let result = work();
        let after = Moment::now(group, syncs);
        stop.store(true, Ordering::Relaxed);
        let peak = sampler.join().unwrap_or_default();
        Ok((result?, after?.since(&before, peak)))
    })
}

fn sample(group: &Group, stop: &AtomicBool) -> Memory {
    let mut peak = Memory::default();
    while !stop.load(Ordering::Relaxed) {
        let now = group.rss();
        peak.total_bytes = peak.total_bytes.max(now.total_bytes);
        peak.largest_bytes = peak.largest_bytes.max(now.largest_bytes);
        peak.processes = peak.processes.max(now.processes);
        std::thread::sleep(SAMPLE_EVERY);
    }
    peak
}

struct Moment {
    at: Instant,
    target_s: f64,
    own_s: f64,
    machine_s: f64,
    syncs: Option<u64>,
}

impl Moment {
    fn now(group: &Group, syncs: &Syncs) -> Result<Self> {
        Ok(Self { at: Instant::now(), target_s: group.cpu_s()?, own_s: own_s()?, machine_s: machine_s()?, syncs: syncs.count() })
    }

    fn since(&self, before: &Self, peak: Memory) -> Used {
        let cpu_s = self.target_s - before.target_s;
        let own_s = self.own_s - before.own_s;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let all_s = self.at.duration_since(before.at).as_secs_f64().max(1e-9) * cores as f64;
        Used {
            span: self.at.duration_since(before.at),
            cpu_s,
            own_share: own_s / all_s,
            other_share: (self.machine_s - before.machine_s - cpu_s - own_s).max(0.0) / all_s,
            peak,
            // Nothing here delivers mail without one sync: none at all means that they could not be seen.
            syncs: self.syncs.zip(before.syncs).map(|(after, before)| after.saturating_sub(before)).filter(|n| *n > 0),
        }
    }
}

/// CPU seconds of this process: generator and sink.
fn own_s() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = text.rsplit_once(')').context("/proc/self/stat")?;
    // Fields 14 and 15, counted from the one after the name, which is the third.
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / tick_rate())
}

/// CPU seconds of the whole machine, without idle, waiting and guests (which count as user).
fn machine_s() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().enumerate().filter(|(n, _)| [0, 1, 2, 5, 6, 7].contains(n)).map(|(_, t)| t).sum::<f64>() / tick_rate())
}

fn tick_rate() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

impl Used {
    /// As figures, for so many messages.
    pub(crate) fn figures(&self, messages: usize) -> Figures {
        let per_message = 1.0 / messages.max(1) as f64;
        let mut figures = Figures::default();
        figures.set("cpu_s_per_1000", self.cpu_s * per_message * 1000.0);
        figures.set("peak_rss_mib", self.peak.total_bytes as f64 / MIB);
        figures.set("largest_process_mib", self.peak.largest_bytes as f64 / MIB);
        figures.set("processes", self.peak.processes as f64);
        if let Some(syncs) = self.syncs {
            figures.set("syncs_per_message", syncs as f64 * per_message);
        }
        self.shares(&mut figures);
        figures
    }

    /// The machine's time that went to the generator and to anything else, for a row without a target too.
    pub(crate) fn shares(&self, figures: &mut Figures) {
        if self.span >= SHARES_SPAN_MIN {
            figures.set("generator_cpu_%", self.own_share * 100.0);
            figures.set("other_cpu_%", self.other_share * 100.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run() {
        let (own, machine) = (own_s().unwrap(), machine_s().unwrap());
        let until = Instant::now() + Duration::from_millis(60);
        while Instant::now() < until {
            std::hint::black_box(0);
        }
        assert!(own_s().unwrap() > own && machine_s().unwrap() > machine);
    }
}
