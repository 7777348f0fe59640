//! `cargo xtask test`: all tests, and an honest count of those that could not run here.
//!
//! A test that needs something this run has not (root, a kernel feature) appends a line to the file that `QMAIL_SKIPPED` names.

use crate::cargo::{cargo, must, target};
use anyhow::Result;

/// Runs the tests of the whole workspace.
pub(crate) fn test() -> Result<()> {
    let list = target().join("skipped-tests");
    let _ = std::fs::remove_file(&list);
    must(cargo(&["build", "--quiet", "--workspace", "--bins"]).env_remove("QMAIL_ROOT"))?;
    let result = must(cargo(&["test", "--workspace", "--no-fail-fast"]).env("QMAIL_SKIPPED", &list).env_remove("QMAIL_ROOT"));
    let skipped = std::fs::read_to_string(&list).unwrap_or_default();
    println!("\nskipped tests: {}", skipped.lines().count());
    for line in skipped.lines() {
        println!("  {line}");
    }
    result
}
