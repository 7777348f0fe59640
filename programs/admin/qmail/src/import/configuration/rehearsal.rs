//! A copy of the configuration with what would be imported in its place, for `qmail check` to look at.
//!
//! It is a directory of its own that only the caller enters, with links to everything that stays as it is, and goes with this value.
//! Nothing of the system is written to.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use control::Root;

use crate::check::{self, Finding};

/// Names are tried until one is free.
const NAMES_MAX: u32 = 1000;

/// See the module.
pub(super) struct Rehearsal {
    real: PathBuf,
    root: Root,
}

impl Rehearsal {
    /// # Errors
    /// There is no room for it in the directory for temporary files.
    pub(super) fn new(real: &Root) -> io::Result<Self> {
        let dir = make_dir()?;
        let root = Root::new(&dir).map_err(|error| io::Error::other(error.to_string()));
        let rehearsal = Self { real: real.path().to_owned(), root: root.inspect_err(|_| drop(fs::remove_dir(&dir)))? };
        link_all(real.path(), &dir, &["etc"])?;
        let (etc, real_etc) = (dir.join("etc"), real.path().join("etc"));
        fs::create_dir(&etc)?;
        link_all(&real_etc, &etc, &["qmail"])?;
        let own = [real.control(), real.users(), real.alias()];
        let (qmail, real_qmail) = (etc.join("qmail"), real_etc.join("qmail"));
        fs::create_dir(&qmail)?;
        let own_names: Vec<&OsStr> = own.iter().filter_map(|path| path.file_name()).collect();
        link_all(&real_qmail, &qmail, &own_names)?;
        for real_dir in own.iter().filter(|path| path.is_dir()) {
            let Some(name) = real_dir.file_name() else { continue };
            fs::create_dir(qmail.join(name))?;
            link_all::<&str>(real_dir, &qmail.join(name), &[])?;
        }
        Ok(rehearsal)
    }

    /// A file as it would be; `to` is its place in the system.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn put(&self, to: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        let Ok(inside) = to.strip_prefix(&self.real) else { return Ok(()) };
        let path = self.root.path().join(inside);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
    }

    /// What check says, of the files of the system.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut found = check::findings(&self.root);
        let real = self.real.to_string_lossy();
        let (here, there) = (format!("{}/", self.root.path().display()), format!("{}/", real.trim_end_matches('/')));
        for finding in &mut found {
            for text in [&mut finding.file, &mut finding.problem, &mut finding.cure] {
                *text = text.replace(&here, &there);
            }
        }
        found
    }
}

impl Drop for Rehearsal {
    fn drop(&mut self) {
        // Links are removed, not what they lead to.
        let _ = fs::remove_dir_all(self.root.path());
    }
}

fn make_dir() -> io::Result<PathBuf> {
    let base = std::env::temp_dir();
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for number in 0..NAMES_MAX {
        let dir = base.join(format!("qmail-import.{}.{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Links to everything in a directory but those names.
fn link_all<N: AsRef<OsStr>>(from: &Path, to: &Path, but: &[N]) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if but.iter().all(|but| but.as_ref() != name) {
            symlink(from.join(&name), to.join(&name))?;
        }
    }
    Ok(())
}
