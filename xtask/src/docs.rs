//! `cargo xtask docs`: the documentation says what the code does, as far as a program can tell.

use crate::cargo::{cargo, must, output, workspace};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// How many requirements docs/past-holes.md has.
const PAST_HOLES: usize = 22;

/// Writes what is made of other documents: docs/manual.md.
pub(crate) fn write() -> Result<()> {
    crate::documented::index(&crate::documented::Manual::read()?, true).map(drop)
}

/// Checks rustdoc, links between documents, that the manual has what the code reads (`documented`), and that the tests which
/// docs/past-holes.md names exist.
pub(crate) fn check() -> Result<()> {
    must(
        cargo(&["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"),
    )?;
    let mut wrong = dead_links()?;
    wrong.extend(past_holes()?);
    wrong.extend(crate::documented::check()?);
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    println!("rustdoc, links, control files, options, variables, manual pages and the tests of past holes are in order");
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

/// Requirements without a row of their own in docs/past-holes.md, rows that show nothing, and tests that are not there.
fn past_holes() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(workspace().join("docs/past-holes.md"))?;
    let mut wrong = Vec::new();
    for number in 1..=PAST_HOLES {
        let Some(row) = text.lines().find(|line| line.starts_with(&format!("| R{number} |"))) else {
            wrong.push(format!("docs/past-holes.md has no row R{number}"));
            continue;
        };
        let shown = row.rsplit(" | ").next().unwrap_or_default();
        if !shown.contains(".rs` `") && !shown.contains("Not yet: ") {
            wrong.push(format!("docs/past-holes.md, R{number}: neither a test nor \"Not yet: \" and the reason"));
        }
        wrong.extend(missing_tests(shown, &|file| std::fs::read_to_string(workspace().join(file)).ok()));
    }
    Ok(wrong)
}

/// Of a text that names files and then tests in them, each in backquotes: what is not there. A file is a name that ends in `.rs`.
fn missing_tests(text: &str, read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut file: Option<(&str, String)> = None;
    for name in text.split('`').skip(1).step_by(2) {
        if name.ends_with(".rs") {
            file = read(name).map(|code| (name, code));
            if file.is_none() {
                wrong.push(format!("docs/past-holes.md: there is no {name}"));
            }
        } else if let Some((path, code)) = &file
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && !is_test(code, name)
        {
            wrong.push(format!("docs/past-holes.md: {path} has no test {name}"));
        }
    }
    wrong
}

/// Is there a function of this name, and does an attribute that ends in `test` stand right before it (other attributes aside)?
fn is_test(code: &str, name: &str) -> bool {
    let lines: Vec<&str> = code.lines().map(str::trim).collect();
    let is_it = |line: &str| line.trim_start_matches("async ").starts_with(&format!("fn {name}("));
    let attributes = |at: usize| lines.get(..at).unwrap_or_default().iter().rev().take_while(|line| line.starts_with("#["));
    let named = lines.iter().enumerate().filter(|(_, line)| is_it(line));
    named.map(|(at, _)| at).any(|at| attributes(at).any(|line| line.contains("test]") || line.contains("test(")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_are_not_there_are_named() {
        let code =
            "    #[test]\n    #[cfg(unix)]\n    fn one() {}\n#[tokio::test(flavor = \"x\")]\nasync fn two() {}\nfn helper() {}\n";
        let read = |file: &str| (file == "a.rs").then(|| code.to_owned());
        assert_eq!(missing_tests("`unsafe` words; `a.rs` `one` `two`; `format!`", &read), Vec::<String>::new());
        assert_eq!(missing_tests("`a.rs` `helper`", &read), ["docs/past-holes.md: a.rs has no test helper"]);
        assert_eq!(missing_tests("`b.rs` `one`", &read), ["docs/past-holes.md: there is no b.rs"]);
    }

    #[test]
    fn the_table_of_past_holes_is_in_order() {
        assert_eq!(past_holes().unwrap(), Vec::<String>::new());
    }
}
