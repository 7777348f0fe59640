//! The environment as a value, so that sendmail can change it and tests can make it up.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

/// Variables and their values.
#[derive(Debug, Clone, Default)]
pub struct Env(BTreeMap<OsString, OsString>);

impl Env {
    /// A copy of this process's environment.
    #[must_use]
    pub fn of_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// The value as bytes; an empty value is a value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.0.get(OsStr::new(name)).map(|value| value.as_bytes().to_vec())
    }

    /// The value of the first of these that is set.
    #[must_use]
    pub fn first(&self, names: &[&str]) -> Option<Vec<u8>> {
        names.iter().find_map(|name| self.get(name))
    }

    pub fn set(&mut self, name: &str, value: &[u8]) {
        self.0.insert(name.into(), OsStr::from_bytes(value).to_owned());
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(OsStr::new(name));
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&OsString, &OsString)> {
        self.0.iter()
    }
}
