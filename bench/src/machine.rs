//! What the figures were taken on.

use serde_json::{Value, json};

fn first_value(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once([':', '='])?.1.trim().trim_matches('"').to_owned())
}

pub(crate) fn json() -> Value {
    json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "cpu": first_value("/proc/cpuinfo", "model name"),
        "memory": first_value("/proc/meminfo", "MemTotal"),
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned()),
        "system": first_value("/etc/os-release", "PRETTY_NAME"),
        "load": std::fs::read_to_string("/proc/loadavg").ok().map(|text| text.trim().to_owned()),
    })
}

/// In a line.
pub(crate) fn describe() -> String {
    let all = json();
    let text = |key: &str| all[key].as_str().unwrap_or("?").to_owned();
    let [cpu, memory, kernel, system, load] = ["cpu", "memory", "kernel", "system", "load"].map(text);
    format!("{} cores of {cpu}, {memory}, Linux {kernel}, {system}; load {load}", all["cores"])
}
