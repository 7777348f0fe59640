//! Mail programs of others: the machine's own where they are installed, otherwise Debian's packages unpacked in a folder beside the
//! build. Nothing is installed and nobody is added; only root fetches packages.

use crate::{is_root, skip};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that can be run.
#[derive(Debug, Clone)]
pub struct Tool {
    pub program: PathBuf,
    /// Where its package is unpacked; `/` if it is installed.
    pub prefix: PathBuf,
    /// Directories of the libraries that came with it.
    pub libraries: Vec<PathBuf>,
}

impl Tool {
    /// The program with its libraries, without arguments.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if !self.libraries.is_empty() {
            command.env("LD_LIBRARY_PATH", self.library_path());
        }
        command
    }

    /// For `LD_LIBRARY_PATH`.
    #[must_use]
    pub fn library_path(&self) -> String {
        self.libraries.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":")
    }
}

/// The program `path` (as `usr/bin/curl`) of a Debian package. `None`, noted as skipped, if it is missing and this run is not
/// root's.
///
/// # Errors
/// Root cannot get the package.
pub fn get(test: &str, package: &str, path: &str) -> Result<Option<Tool>> {
    let installed = Path::new("/").join(path);
    if installed.is_file() {
        return Ok(Some(Tool { program: installed, prefix: "/".into(), libraries: Vec::new() }));
    }
    let prefix = folder()?.join(package);
    if !prefix.join(path).is_file() {
        if !is_root() {
            skip(test, &format!("{} is not installed", installed.display()));
            return Ok(None);
        }
        unpack(package)?;
    }
    let libraries = libraries(&prefix)?;
    Ok(Some(Tool { program: prefix.join(path), prefix, libraries }))
}

/// target/test-tools, whatever the profile.
///
/// # Errors
/// The programs are not built.
pub fn folder() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let built = exe.ancestors().find(|dir| dir.join("qmail-send").is_file()).context("the programs are not built")?;
    Ok(built.parent().context("no directory above the build")?.join("test-tools"))
}

/// Fetches and unpacks a package and what it needs of those that are not installed. Whole or not at all.
fn unpack(package: &str) -> Result<()> {
    let folder = folder()?;
    std::fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    let (new, ready) = (folder.join(format!("{package}.new")), folder.join(package));
    if ready.exists() {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(&new);
    let archives = new.join("archives");
    std::fs::create_dir_all(&archives)?;
    let names = plan(package).or_else(|_| {
        must(Command::new("apt-get").args(["update", "-qq"]))?;
        plan(package)
    })?;
    must(Command::new("apt-get").arg("download").args(&names).current_dir(&archives))?;
    for archive in std::fs::read_dir(&archives)? {
        must(Command::new("dpkg").arg("-x").arg(archive?.path()).arg(&new))?;
    }
    std::fs::remove_dir_all(&archives)?;
    Ok(std::fs::rename(&new, &ready)?)
}

/// The names of the packages that an installation would add.
fn plan(package: &str) -> Result<Vec<String>> {
    let plan = must(Command::new("apt-get").args(["install", "--simulate", "--no-install-recommends", package]))?;
    let names = plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next().map(str::to_owned));
    Ok(names.collect())
}

/// Where shared libraries lie below a prefix: in lib, usr/lib and one level below.
fn libraries(prefix: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for lib in ["lib", "usr/lib"].map(|lib| prefix.join(lib)).into_iter().filter(|lib| lib.is_dir()) {
        for entry in std::fs::read_dir(&lib)? {
            let path = entry?.path();
            if path.is_dir() && has_libraries(&path) {
                found.push(path);
            }
        }
        if has_libraries(&lib) {
            found.push(lib);
        }
    }
    Ok(found)
}

fn has_libraries(dir: &Path) -> bool {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name.to_string_lossy().contains(".so"))
}

/// Runs a command that must succeed; its stdout.
///
/// # Errors
/// It fails; what it said is in the error.
pub fn must(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{stdout}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(stdout)
}
