//! `cargo xtask bench`: builds with all optimisation, and runs `bench` as root in mount and process namespaces of its own, so that
//! the machine stays as it is and nothing that was started survives.

use crate::cargo::{cargo, must, output, target, workspace};
use crate::trial::copy_programs;
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where every user can reach the work directory, on a disk and not in memory.
const WORK: &str = "/var/tmp";
const PREFIX: &str = "qmail-bench.";
/// Runs as process 1 of the namespace: waits for orphans too, which is why it is a shell that does not exec.
const FIRST_PROCESS: &str = "\"$@\"; exit $?";

/// The command; what it does not know itself goes to `bench`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("bench needs root: namespaces, users of its own, control groups");
    }
    let mut rest = args.to_vec();
    let profile = option(&mut rest, "--profile")?.unwrap_or_else(|| "dist".into());
    let built = match option(&mut rest, "--programs")? {
        Some(programs) => PathBuf::from(programs),
        None => build(&profile)?,
    };
    let out = target().join("bench");
    std::fs::create_dir_all(&out)?;
    sweep()?;
    let work = PathBuf::from(output(Command::new("mktemp").args(["-d", &format!("{WORK}/{PREFIX}XXXXXX")]))?.trim());
    let in_use = lock(&work)?;
    let result = measure(&work, &built, &out, &profile, &rest);
    drop(in_use);
    std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    result
}

/// Marks a work directory as in use, as long as the file is open.
fn lock(work: &Path) -> Result<File> {
    let file = File::create(work.join("lock"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).context("in use")?;
    Ok(file)
}

/// Removes what earlier runs left that were killed.
fn sweep() -> Result<()> {
    for entry in std::fs::read_dir(WORK)? {
        let path = entry?.path();
        let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if ours && path.join("lock").exists() && lock(&path).is_ok() {
            std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Takes an option and its value out of the arguments.
fn option(args: &mut Vec<String>, name: &str) -> Result<Option<String>> {
    let Some(at) = args.iter().position(|arg| arg == name) else { return Ok(None) };
    let value = args.get(at + 1).with_context(|| format!("{name} needs a value"))?.clone();
    args.drain(at..=at + 1);
    Ok(Some(value))
}

fn build(profile: &str) -> Result<PathBuf> {
    println!("building with profile {profile}");
    let what = ["build", "--workspace", "--exclude", "system-tests", "--exclude", "xtask", "--bins", "--profile", profile];
    must(&mut cargo(&what))?;
    Ok(target().join(if profile == "dev" { "debug" } else { profile }))
}

fn measure(work: &Path, built: &Path, out: &Path, profile: &str, rest: &[String]) -> Result<()> {
    must(Command::new("chmod").arg("755").arg(work))?;
    // Only ext4 has it, and only there it matters.
    let _ = Command::new("chattr").arg("+T").arg(work).stderr(Stdio::null()).status();
    let programs = work.join("programs");
    copy_programs(built, &programs)?;
    let file = out.join(format!("{}.json", output(Command::new("date").args(["-u", "+%Y%m%dT%H%M%SZ"]))?.trim()));
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "sh", "-c", FIRST_PROCESS, "sh"]);
    command.arg(programs.join("bench")).arg("--work").arg(work).arg("--programs").arg(&programs);
    command.arg("--cache").arg(out.join("packages")).arg("--out").arg(&file).args(["--profile", profile]).args(rest);
    // The pipe is held open until the end: when this process is gone, `bench` notices.
    let mut child = command.current_dir(workspace()).stdin(Stdio::piped()).spawn().context("cannot run unshare(1)")?;
    let lifeline = child.stdin.take();
    let status = child.wait()?;
    drop(lifeline);
    if !status.success() {
        bail!("bench: {status}");
    }
    Ok(())
}
