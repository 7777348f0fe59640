//! `cargo xtask docs`: the documentation says what the code does, as far as a program can tell.

use crate::cargo::{cargo, must, output, workspace};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// Checks rustdoc, links between documents, and that each control file the code reads is documented.
pub(crate) fn check() -> Result<()> {
    must(cargo(&["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]).env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"))?;
    let mut wrong = dead_links()?;
    wrong.extend(undocumented_control_files()?);
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    println!("rustdoc, links and control files are in order");
    Ok(())
}

fn tracked(pattern: &str) -> Result<Vec<String>> {
    let files = output(Command::new("git").args(["ls-files", pattern]).current_dir(workspace()))?;
    Ok(files.lines().map(str::to_owned).collect())
}

/// Links in Markdown files to files that are not there.
fn dead_links() -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for file in tracked("*.md")? {
        let text = std::fs::read_to_string(workspace().join(&file))?;
        let folder = workspace().join(&file).parent().map(Path::to_owned).unwrap_or_default();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") && !folder.join(path).exists() {
                wrong.push(format!("{file}: {link} leads nowhere"));
            }
        }
    }
    Ok(wrong)
}

/// Names that crates/stores/control reads and docs/control.md does not have a row for.
fn undocumented_control_files() -> Result<Vec<String>> {
    let documented = std::fs::read_to_string(workspace().join("docs/control.md"))?;
    let mut wrong = Vec::new();
    for file in tracked("crates/stores/control/src/*.rs")? {
        let text = std::fs::read_to_string(workspace().join(&file))?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for call in ["line", "line_or_me", "int", "lines", "map", "hosts", "networks", "text", "control_file"] {
            for name in code.split(&format!(".{call}(\"")).skip(1).filter_map(|rest| rest.split('"').next()) {
                if !documented.contains(&format!("`{name}`")) {
                    wrong.push(format!("{file} reads control/{name}, which docs/control.md does not document"));
                }
            }
        }
    }
    Ok(wrong)
}
