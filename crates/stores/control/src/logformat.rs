//! `logformat`: how qmail-start writes the log.

use crate::{ControlError, Root};

/// The file.
const FILE: &str = "logformat";

/// How the log is written (qmail-log(5)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// qmail-send's lines bare, others behind `NAME[PID]: `; no time.
    #[default]
    Classic,
    /// As classic, behind a time and always with the name.
    Text,
    /// An object a line.
    Json,
    /// Entries with fields for journald; as classic where it does not take them.
    Journal,
}

impl LogFormat {
    /// What the file says; `None` if there is none, or it is empty.
    ///
    /// # Errors
    /// It cannot be read or says something else; temporary.
    pub fn read(root: &Root) -> Result<Option<Self>, ControlError> {
        match root.line(FILE)?.as_deref() {
            None | Some(b"") => Ok(None),
            Some(b"classic") => Ok(Some(Self::Classic)),
            Some(b"text") => Ok(Some(Self::Text)),
            Some(b"json") => Ok(Some(Self::Json)),
            Some(b"journal") => Ok(Some(Self::Journal)),
            Some(other) => {
                let problem = format!("`{}` is no format; write classic, text, json or journal", wire::escape::visible(other));
                Err(ControlError::new(&root.control_file(FILE), problem))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_names() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        assert_eq!(LogFormat::read(&root).unwrap(), None);
        let formats = [LogFormat::Classic, LogFormat::Text, LogFormat::Json, LogFormat::Journal].map(Some);
        for (text, format) in ["classic\n", "text", "json \n", "journal"].into_iter().zip(formats) {
            std::fs::write(root.control_file(FILE), text).unwrap();
            assert_eq!(LogFormat::read(&root).unwrap(), format);
        }
        std::fs::write(root.control_file(FILE), "xml").unwrap();
        assert!(LogFormat::read(&root).unwrap_err().to_string().contains("`xml` is no format"));
    }
}
