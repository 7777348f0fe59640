//! What may be wrong with a file of the configuration.

use std::fmt;
use std::path::{Path, PathBuf};

/// A file that could not be read or does not say what it must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlError {
    pub file: PathBuf,
    /// What is wrong and what to do about it.
    pub problem: String,
}

impl ControlError {
    pub fn new(file: &Path, problem: impl Into<String>) -> Self {
        Self { file: file.to_owned(), problem: problem.into() }
    }

    /// A failed system call, with advice by its error number.
    #[must_use]
    pub fn from_io(file: &Path, error: &std::io::Error) -> Self {
        let advice = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "; make it readable (chmod 644, or its reader's own if it holds passwords), its directories searchable (chmod 755)"
            }
            std::io::ErrorKind::NotADirectory => "; a part of its path is no directory",
            _ => "",
        };
        Self::new(file, format!("cannot read it: {}{advice}", sys::errno::text(error)))
    }

    /// Always: the configuration can be repaired, a bounce cannot be taken back.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        true
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.problem)
    }
}

impl std::error::Error for ControlError {}
