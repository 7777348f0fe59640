//! A system user for tests of root: its home is the test's own, made and removed by the test.

use anyhow::Result;
use std::process::Command;

/// A user in passwd, removed when dropped.
#[derive(Debug)]
pub struct User(pub String);

impl User {
    /// Adds a user with this home; needs root.
    ///
    /// # Errors
    /// useradd fails.
    pub fn add(name: &str, home: &std::path::Path) -> Result<Self> {
        let status = Command::new("useradd")
            .args(["--no-create-home", "--shell", "/usr/sbin/nologin", "--home-dir"])
            .arg(home)
            .arg(name)
            .status()?;
        anyhow::ensure!(status.success(), "useradd {name}: {status}");
        Ok(Self(name.to_owned()))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = Command::new("userdel").arg(&self.0).stderr(std::process::Stdio::null()).status();
    }
}
