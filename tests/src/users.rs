//! System users for tests: in passwd where the test is root's, otherwise in users/assign with the caller's id, who is the only
//! legal target then. The home is always the test's own.

use crate::instance::random_word;
use crate::{Instance, is_root, wait_for};
use anyhow::Result;
use rustix::process::{getegid, geteuid};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A user in passwd, removed when dropped.
#[derive(Debug)]
pub struct User(pub String);

impl User {
    /// Adds a user with this home; needs root.
    ///
    /// # Errors
    /// useradd fails.
    pub fn add(name: &str, home: &Path) -> Result<Self> {
        let mut command = Command::new("useradd");
        command.args(["--no-create-home", "--shell", "/usr/sbin/nologin", "--home-dir"]).arg(home).arg(name);
        command.stderr(Stdio::null());
        // Another test may hold the lock of passwd.
        wait_for(&format!("useradd {name}"), || command.status().is_ok_and(|status| status.success()).then_some(()))?;
        Ok(Self(name.to_owned()))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut command = Command::new("userdel");
        // A worker of the user may be waiting for more work.
        command.arg("--force").arg(&self.0).stdout(Stdio::null()).stderr(Stdio::null());
        let gone = || command.status().is_ok_and(|status| status.success() || status.code() == Some(6)).then_some(());
        let _ = wait_for("userdel", gone);
    }
}

/// Somebody with a home, who gets mail by name at this host.
#[derive(Debug)]
pub struct Person {
    pub name: String,
    pub home: PathBuf,
    _user: Option<User>,
}

impl Person {
    /// Makes a user whose name nobody else has.
    ///
    /// # Errors
    /// Not root and users/assign exists, or the user cannot be added.
    pub fn new(instance: &Instance) -> Result<Self> {
        let name = format!("qt{}", random_word()?.get(..10).unwrap_or_default());
        let home = instance.dir().join(&name);
        std::fs::create_dir(&home)?;
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o755))?;
        let user = if is_root() {
            let user = User::add(&name, &home)?;
            own(&home, &name)?;
            Some(user)
        } else {
            let whose = format!("{}:{}:{}", geteuid(), getegid(), home.display());
            std::fs::write(
                instance.root.join("etc/qmail/users/assign"),
                format!("={name}:{name}:{whose}:::\n+{name}-:{name}:{whose}:-::\n.\n"),
            )?;
            None
        };
        Ok(Self { name, home, _user: user })
    }

    /// Writes a file of the user's in the home.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.home.join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
        own(&path, &self.name)
    }

    /// Makes a Maildir in the home.
    ///
    /// # Errors
    /// The disk's.
    pub fn maildir(&self, name: &str) -> Result<()> {
        for dir in ["", "tmp", "new", "cur"] {
            let path = self.home.join(name).join(dir);
            std::fs::create_dir(&path)?;
            own(&path, &self.name)?;
        }
        Ok(())
    }

    /// A file of the home, unless it is not there.
    #[must_use]
    pub fn read(&self, name: &str) -> Option<String> {
        std::fs::read(self.home.join(name)).ok().map(|text| String::from_utf8_lossy(&text).into_owned())
    }

    /// The letters in new/ of a Maildir of the home, by name.
    #[must_use]
    pub fn letters(&self, maildir: &str) -> Vec<String> {
        letters(&self.home.join(maildir))
    }
}

/// The letters in new/ of a Maildir, oldest first.
#[must_use]
pub fn letters(maildir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(maildir.join("new")).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).map(|text| String::from_utf8_lossy(&text).into_owned()).collect()
}

fn own(path: &Path, name: &str) -> Result<()> {
    if is_root() {
        crate::tools::must(Command::new("chown").arg("-h").arg(format!("{name}:")).arg(path))?;
    }
    Ok(())
}
