//! Programs in the place of qmail-local and qmail-remote: the variables QMAILLOCAL and QMAILREMOTE of whoever starts the system, or
//! `control/qmaillocal` and `control/qmailremote`. The variable wins; one that is empty says nothing.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::{ControlError, Root};

/// The program that is run in the place of qmail-local.
pub const LOCAL: Replacement = Replacement { variable: "QMAILLOCAL", file: "qmaillocal" };
/// The program that is run in the place of qmail-remote.
pub const REMOTE: Replacement = Replacement { variable: "QMAILREMOTE", file: "qmailremote" };

/// Where root names the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replacement {
    pub variable: &'static str,
    /// Below etc/qmail/control: an absolute path on its first line.
    pub file: &'static str,
}

impl Replacement {
    /// The program; `None`: qmail's own.
    ///
    /// # Errors
    /// The file cannot be read, or what stands there is no absolute path: processes of qmail have no search path of root's.
    pub fn read(&self, root: &Root) -> Result<Option<PathBuf>, ControlError> {
        self.read_with(root, std::env::var_os(self.variable))
    }

    /// What stands in the file alone.
    ///
    /// # Errors
    /// As [`Replacement::read`].
    pub fn read_file(&self, root: &Root) -> Result<Option<PathBuf>, ControlError> {
        self.read_with(root, None)
    }

    fn read_with(&self, root: &Root, variable: Option<OsString>) -> Result<Option<PathBuf>, ControlError> {
        let by_variable = variable.filter(|program| !program.is_empty()).map(PathBuf::from);
        let program = match by_variable {
            Some(program) => Some(program),
            None => {
                let line = root.line(self.file)?.filter(|line| !line.is_empty());
                line.map(|line| PathBuf::from(OsString::from_vec(line)))
            }
        };
        match program {
            Some(program) if !program.is_absolute() => {
                let name = wire::escape::visible(program.as_os_str().as_encoded_bytes());
                let problem = format!("`{name}` (or {} in the environment) is no absolute path of a program", self.variable);
                Err(ControlError::new(&root.control_file(self.file), problem))
            }
            program => Ok(program),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_wins_and_only_whole_paths_count() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        let read = |variable: Option<&str>| LOCAL.read_with(&root, variable.map(OsString::from));
        assert_eq!(read(None).unwrap(), None);
        assert_eq!(read(Some("")).unwrap(), None);
        assert_eq!(read(Some("/a")).unwrap(), Some("/a".into()));
        std::fs::write(root.control_file("qmaillocal"), "/usr/local/bin/filter \nrest\n").unwrap();
        assert_eq!(read(None).unwrap(), Some("/usr/local/bin/filter".into()));
        assert_eq!(read(Some("/a")).unwrap(), Some("/a".into()));
        assert_eq!(REMOTE.read_with(&root, None).unwrap(), None);
        std::fs::write(root.control_file("qmaillocal"), "filter\n").unwrap();
        let problem = read(None).unwrap_err().to_string();
        assert!(problem.contains("control/qmaillocal") && problem.contains("no absolute path"), "{problem}");
        assert!(read(Some("x/y")).is_err());
    }
}
