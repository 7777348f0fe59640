//! strace(1): shows the system calls of a process, and makes them fail or kills the process in front of one. Needs root, since
//! confined processes are not dumpable.

use crate::{Instance, facts, tools, wait_for};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
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
    /// Attaches to a process with all its threads.
    ///
    /// # Errors
    /// Not root, no strace, or no such process.
    pub fn attach(pid: u32, args: &[&str], out: &Path) -> Result<Self> {
        let strace = program()?;
        let mut command = Command::new(strace);
        command.args(["-f", "-y", "-s", "256", "-o"]).arg(out).args(args).args(["-p", &pid.to_string()]);
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let mut said = BufReader::new(child.stderr.take().context("stderr")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        let strace = Self { child, out: out.to_owned() };
        if !line.contains("attached") {
            bail!("{command:?}: {line}");
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
