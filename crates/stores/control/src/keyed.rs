//! Control files with a setting a line: `key value`. `#` lines and empty ones are dropped, as in every list.

use std::path::PathBuf;

use crate::{ControlError, Root};

/// The settings of a file, of which each is taken once.
#[derive(Debug)]
pub struct Keyed {
    file: PathBuf,
    values: Vec<(String, String)>,
}

impl Keyed {
    /// `None` if there is no such file.
    ///
    /// # Errors
    /// Unreadable, or a line that is no UTF-8 or has no value; temporary, as are the errors of all that follow.
    pub fn read(root: &Root, name: &str) -> Result<Option<Self>, ControlError> {
        let Some(lines) = root.lines(name)? else { return Ok(None) };
        let mut keyed = Self { file: root.control_file(name), values: Vec::new() };
        for line in lines {
            let split = std::str::from_utf8(&line).ok().and_then(|line| line.split_once([' ', '\t']));
            let Some((key, value)) = split.map(|(key, value)| (key, value.trim())).filter(|(_, value)| !value.is_empty()) else {
                return Err(keyed.wrong(format!("`{}` is no setting; a line is `key value`", wire::escape::visible(&line))));
            };
            keyed.values.push((key.to_owned(), value.to_owned()));
        }
        Ok(Some(keyed))
    }

    /// All values of a key, in the order of the file.
    pub fn many(&mut self, key: &str) -> Vec<String> {
        let (wanted, others) = std::mem::take(&mut self.values).into_iter().partition(|(known, _)| known == key);
        self.values = others;
        wanted.into_iter().map(|(_, value): (String, String)| value).collect()
    }

    /// The value of a key.
    ///
    /// # Errors
    /// It stands there twice.
    pub fn one(&mut self, key: &str) -> Result<Option<String>, ControlError> {
        let mut values = self.many(key);
        let value = values.pop();
        if values.is_empty() { Ok(value) } else { Err(self.wrong(format!("`{key}` stands there twice"))) }
    }

    /// The value of a key, or its default.
    ///
    /// # Errors
    /// As [`Keyed::one`].
    pub fn one_or(&mut self, key: &str, default: &str) -> Result<String, ControlError> {
        Ok(self.one(key)?.unwrap_or_else(|| default.to_owned()))
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// As [`Keyed::one`], or it is missing.
    pub fn needed(&mut self, key: &str, example: &str) -> Result<String, ControlError> {
        self.one(key)?.ok_or_else(|| self.wrong(format!("has no line `{key}`; write one, as in `{key} {example}`")))
    }

    /// A path, absolute or below etc/qmail/control.
    ///
    /// # Errors
    /// As [`Keyed::one`].
    pub fn path(&mut self, key: &str) -> Result<Option<PathBuf>, ControlError> {
        let beside = self.file.parent().map(PathBuf::from).unwrap_or_default();
        Ok(self.one(key)?.map(|path| beside.join(path)))
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// A key that nobody took.
    pub fn end(self) -> Result<(), ControlError> {
        match self.values.first() {
            Some((key, _)) => {
                Err(self.wrong(format!("`{}` is no setting of this file; take it out", wire::escape::visible(key.as_bytes()))))
            }
            None => Ok(()),
        }
    }

    /// An error about this file.
    #[must_use]
    pub fn wrong(&self, problem: impl Into<String>) -> ControlError {
        ControlError::new(&self.file, problem)
    }
}
