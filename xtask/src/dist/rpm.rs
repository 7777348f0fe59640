//! The rpm of the tree, as Fedora and its relatives lay things out: sendmail, mailq and newaliases are whose the administrator says
//! (`alternatives --config mta`), so they and their pages have no name in the package but by that. rpmbuild finds which libraries the
//! programs need.

use super::{PACKAGE, place};
use crate::cargo::{must, output, workspace};
use anyhow::{Context, Result};
use std::fs::{create_dir_all, read_to_string, remove_file, rename};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What alternatives(8) makes.
const ALTERNATIVES: [&str; 4] = ["usr/sbin/sendmail", "usr/lib/sendmail", "usr/bin/mailq", "usr/bin/newaliases"];
/// Where the tree has things, and where they are here.
const MOVED: [(&str, &str); 5] = [
    ("usr/share/zsh/vendor-completions", "usr/share/zsh/site-functions"),
    ("usr/share/fish/vendor_completions.d", "usr/share/fish/completions"),
    ("usr/share/man/man8/sendmail.8.gz", "usr/share/man/man8/sendmail.qmail.8.gz"),
    ("usr/share/man/man1/mailq.1.gz", "usr/share/man/man1/mailq.qmail.1.gz"),
    ("usr/share/man/man1/newaliases.1.gz", "usr/share/man/man1/newaliases.qmail.1.gz"),
];
/// Directories that are this package's alone.
const OWN: [&str; 5] =
    ["/usr/lib/qmail", "/usr/share/qmail", "/usr/share/doc/qmail-rs", "/usr/share/licenses/qmail-rs", "/var/qmail"];

/// Is there an rpmbuild(8)? Debian has it in the package rpm.
pub(super) fn is_possible() -> bool {
    Command::new("rpmbuild").arg("--version").output().is_ok_and(|said| said.status.success())
}

/// Builds the package; `payload` is how it is packed, as rpm names it.
pub(super) fn build(tree: &Path, out: &Path, version: &str, payload: &str) -> Result<PathBuf> {
    let work = std::path::absolute(tree.with_file_name("rpm"))?;
    let root = work.join("tree");
    create_dir_all(&work)?;
    must(Command::new("cp").arg("-a").arg(tree).arg(&root))?;
    arrange(&root)?;
    let files = work.join("files");
    std::fs::write(&files, list(&root)?)?;
    let set_out = |script: String| script.replace("\n\t", "\n").trim_start().to_owned();
    let bits = if cfg!(target_pointer_width = "64") { "()(64bit)" } else { "" };
    let values = [
        ("@VERSION@", super::ordered(version)),
        ("@TREE@", root.display().to_string()),
        ("@FILES@", files.display().to_string()),
        ("@SETUP@", set_out(super::setup()?)),
        ("@GUARD@", set_out(super::guard()?)),
        ("@CRYPT@", format!("libcrypt.so.1{bits}")),
    ];
    let template = read_to_string(workspace().join("packaging/rpm/qmail-rs.spec"))?;
    let spec = values.iter().fold(template, |text, (name, value)| text.replace(name, value));
    let spec_file = work.join(format!("{PACKAGE}.spec"));
    std::fs::write(&spec_file, spec)?;
    super::readable(&root)?;
    let mut rpmbuild = Command::new("rpmbuild");
    rpmbuild.args(["-bb", "--quiet", "--define"]).arg(format!("_topdir {}", work.display()));
    rpmbuild.arg("--define").arg(format!("_binary_payload {payload}"));
    rpmbuild.args(["--define", "_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm"]).arg(&spec_file);
    must(&mut rpmbuild).context("rpmbuild is in Debian's package rpm")?;
    let built = std::fs::read_dir(work.join("RPMS"))?.flatten().map(|entry| entry.path());
    let built =
        built.into_iter().find(|path| path.extension().is_some_and(|end| end == "rpm")).context("rpmbuild made no package")?;
    let rpm = out.join(built.file_name().unwrap_or_default());
    rename(&built, &rpm)?;
    std::fs::remove_dir_all(&work)?;
    Ok(rpm)
}

fn arrange(root: &Path) -> Result<()> {
    for path in ALTERNATIVES {
        remove_file(root.join(path)).with_context(|| path.to_owned())?;
    }
    for (from, to) in MOVED {
        let to = root.join(to);
        create_dir_all(to.parent().unwrap_or(root))?;
        rename(root.join(from), &to).with_context(|| from.to_owned())?;
    }
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        place(root, &format!("usr/share/licenses/{PACKAGE}/{licence}"), &std::fs::read(workspace().join(licence))?)?;
    }
    Ok(())
}

/// The list of files as a spec has it.
fn list(root: &Path) -> Result<String> {
    let found = output(Command::new("find").arg(root).args(["!", "-type", "d", "-printf", "/%P\\n"]))?;
    let kind = |path: &str| match () {
        () if path.starts_with("/usr/share/licenses/") => "%license ",
        () if path.starts_with("/usr/share/doc/") || path.starts_with("/usr/share/man/") => "%doc ",
        () => "",
    };
    let mut lines: Vec<String> = found.lines().map(|path| format!("{}{path}\n", kind(path))).collect();
    lines.sort();
    let directories = OWN.iter().map(|path| format!("%dir {path}\n"));
    let ghosts = ALTERNATIVES.iter().map(|path| format!("%ghost /{path}\n"));
    Ok(format!("%defattr(-,root,root,-)\n{}{}{}", directories.collect::<String>(), lines.concat(), ghosts.collect::<String>()))
}
