//! strace(1): shows the system calls of a process, and makes them fail or kills the process in front of one. Needs root, since
//! confined processes are not dumpable.

use crate::{Instance, facts, tools, wait_for};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// strace, attached to a running process; detached when dropped.
#[derive(Debug)]
pub struct Strace {
    child: Child,
    out: PathBuf,
}

impl Strace {
    /// Attaches to processes with all their threads.
    ///
    /// # Errors
    /// Not root, no strace, or no such process.
    pub fn attach(pids: &[u32], args: &[&str], out: &Path) -> Result<Self> {
        let strace = program()?;
        let mut command = Command::new(strace);
        command.args(["-f", "-y", "-s", "256", "-o"]).arg(out).args(args);
        for pid in pids {
            command.args(["-p", &pid.to_string()]);
        }
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let mut said = BufReader::new(child.stderr.take().context("stderr")?);
        let strace = Self { child, out: out.to_owned() };
        for _ in pids {
            let mut line = String::new();
            said.read_line(&mut line)?;
            if !line.contains("attached") {
                bail!("{command:?}: {line}");
            }
        }
        // It goes on talking about threads that come and go.
        std::thread::spawn(move || said.lines().map_while(Result::ok).for_each(drop));
        Ok(strace)
    }

    /// What it has shown so far.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(&self.out)
    }

    /// Detaches; all that it has shown.
    ///
    /// # Errors
    /// It does not end.
    pub fn detach(mut self) -> Result<String> {
        facts::signal(self.child.id(), Signal::INT);
        self.child.wait()?;
        Ok(self.shown())
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            facts::signal(self.child.id(), Signal::INT);
            let _ = self.child.wait();
        }
    }
}

/// A program of an instance whose next start can be put under strace.
#[derive(Debug)]
pub struct Trap {
    dir: PathBuf,
}

impl Trap {
    /// Puts a wrapper in front of a program; nothing changes until [`Trap::set`].
    ///
    /// # Errors
    /// The disk's, or no strace.
    pub fn new(instance: &Instance, name: &str) -> Result<Self> {
        let (program, dir) = (instance.program(name), instance.dir().join(format!("{name}.trap")));
        let real = instance.program(&format!("{name}.real"));
        std::fs::create_dir(&dir)?;
        // The program runs as whoever; strace writes as the same.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777))?;
        std::fs::rename(&program, &real)?;
        let script = format!(
            "#!/bin/sh\nif mv {dir}/set {dir}/sprung 2>/dev/null; then\n  exec {strace} -D -f -y -o {dir}/shown $(cat {dir}/sprung) {real} \"$@\"\nfi\nexec {real} \"$@\"\n",
            dir = dir.display(),
            strace = program_path()?,
            real = real.display()
        );
        std::fs::write(&program, script)?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { dir })
    }

    /// The next start, and only that, runs under strace with these arguments.
    ///
    /// # Errors
    /// The disk's.
    pub fn set(&self, args: &str) -> Result<()> {
        for name in ["sprung", "shown"] {
            let _ = std::fs::remove_file(self.dir.join(name));
        }
        let new = self.dir.join("new");
        std::fs::write(&new, args)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o666))?;
        Ok(std::fs::rename(new, self.dir.join("set"))?)
    }

    /// Has a start used it?
    #[must_use]
    pub fn is_sprung(&self) -> bool {
        self.dir.join("sprung").exists()
    }

    /// Waits until strace has seen the process killed.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait_killed(&self) -> Result<String> {
        wait_for("the death of a traced process", || Some(self.shown()).filter(|shown| shown.contains("+++ killed by ")))
    }

    /// What strace has shown so far.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(&self.dir.join("shown"))
    }
}

fn shown(path: &Path) -> String {
    std::fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
}

fn program() -> Result<PathBuf> {
    Ok(tools::get("strace", "strace", "usr/bin/strace")?.context("no strace")?.program)
}

fn program_path() -> Result<String> {
    Ok(program()?.display().to_string())
}

/// A system call as strace shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    /// Arguments and result.
    pub text: String,
    /// Lines at which it began and ended: of two calls of different threads, one that ended before the other began was earlier.
    pub start: usize,
    pub end: usize,
}

impl Call {
    /// Did it end with an error?
    #[must_use]
    pub fn failed(&self) -> bool {
        self.text.contains(") = -1 ")
    }
}

/// The calls in what strace has shown of several threads, by their beginnings; those whose end it has not seen are left out.
#[must_use]
pub fn calls(shown: &str) -> Vec<Call> {
    let mut begun: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut calls = Vec::new();
    for (at, line) in shown.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(front) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, (at, front));
        } else if let Some((_, back)) = rest.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>")) {
            let Some((start, front)) = begun.remove(thread) else { continue };
            calls.extend(call(&format!("{front}{back}"), start, at));
        } else {
            calls.extend(call(rest, at, at));
        }
    }
    calls.sort_by_key(|call| call.start);
    calls
}

fn call(line: &str, start: usize, end: usize) -> Option<Call> {
    let (name, text) = line.split_once('(')?;
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_name.then(|| Call { name: name.to_owned(), text: text.to_owned(), start, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_threads_are_put_together() {
        let shown = "7  fsync(3</a> <unfinished ...>\n8  write(1, \"x\", 1)   = 1\n7  <... fsync resumed>)   = 0\n8  +++ exited with 0 +++\n\
                     7  pwritev(3</a>, [{iov_base=\"(\"}], 1, 0) = -1 EIO (Input/output error) (INJECTED)\n9  <... poll resumed>) = 0\n";
        let all = calls(shown);
        let expect = [("fsync", 0, 2, false), ("write", 1, 1, false), ("pwritev", 4, 4, true)];
        assert_eq!(all.iter().map(|c| (c.name.as_str(), c.start, c.end, c.failed())).collect::<Vec<_>>(), expect);
        assert_eq!(all[0].text, "3</a>)   = 0");
    }
}
