//! `cargo xtask ci`: what has to hold before a change lands.

use crate::cargo::{cargo, must, output, target, workspace};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// A uid that no passwd file of a fresh machine has.
const UNUSED_UID: &str = "61234";

type Step = fn() -> Result<()>;

/// All checks, cheapest first, and the tests last.
pub(crate) fn run() -> Result<()> {
    let steps: [(&str, Step); 7] = [
        ("fmt", || must(&mut cargo(&["fmt", "--all", "--check"]))),
        ("clippy", || must(&mut cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))),
        ("layers", crate::layers::check),
        ("docs", crate::docs::check),
        ("fuzz", || fuzz("10", Some("1"))),
        ("try", try_both_ways),
        ("test", crate::skipped::test),
    ];
    for (name, step) in steps {
        let start = Instant::now();
        println!("== {name}");
        step().with_context(|| format!("{name} failed"))?;
        println!("== {name} ok ({:.0} s)", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Every fuzz target over its committed corpus and random inputs; `ci` makes the same inputs each time, so that a change is judged
/// by itself.
pub(crate) fn fuzz(seconds: &str, seed: Option<&str>) -> Result<()> {
    let smoke = ["run", "--quiet", "--package", "system-tests", "--bin", "fuzz-smoke", "--", seconds];
    must(cargo(&smoke).args(seed))
}

/// The README's first command, as whoever runs this and, if that is root, as nobody in particular too.
fn try_both_ways() -> Result<()> {
    crate::trial::run(&["--once".to_owned()])?;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    println!("-- once more, without root (uid {UNUSED_UID})");
    let dir = tempdir()?;
    let result = try_unprivileged(Path::new(&dir));
    std::fs::remove_dir_all(&dir).with_context(|| dir.clone())?;
    result
}

fn try_unprivileged(dir: &Path) -> Result<()> {
    let programs = dir.join("programs");
    crate::trial::copy_programs(&target().join("debug"), &programs)?;
    // By this name even if the build has replaced the file meanwhile.
    std::fs::copy("/proc/self/exe", dir.join("xtask"))?;
    let home = dir.join("instance");
    must(Command::new("chmod").arg("755").arg(dir))?;
    must(Command::new("install").args(["-d", "-o", UNUSED_UID, "-g", UNUSED_UID]).arg(&home))?;
    let mut setpriv = Command::new("setpriv");
    setpriv
        .args(["--reuid", UNUSED_UID, "--regid", UNUSED_UID, "--clear-groups"])
        .arg(dir.join("xtask"))
        .arg("try")
        .arg("--once");
    setpriv
        .arg("--programs")
        .arg(programs)
        .arg("--dir")
        .arg(home.join("root"))
        .current_dir(workspace().ancestors().last().unwrap_or(Path::new("/")));
    must(&mut setpriv)
}

fn tempdir() -> Result<String> {
    Ok(output(Command::new("mktemp").args(["-d", "/var/tmp/qmail-try.XXXXXX"]))?.trim().to_owned())
}
