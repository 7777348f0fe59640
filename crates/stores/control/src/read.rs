//! How the bytes of a control file are read (qmail-control(5)), and how a file gets into memory.
//!
//! A value is the first line without trailing blanks; a number its leading digits; a list its lines without `#` lines and
//! empty ones; a map its lines split at the first colon. Files are regular, at most [`FILE_LEN_MAX`] long, never waited for.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::ControlError;

/// Keys in lower case and their values, in the order of the file.
pub type Map = Vec<(Vec<u8>, Vec<u8>)>;

/// Two million domains fit; more belongs into a cdb.
pub const FILE_LEN_MAX: u64 = 64 * 1024 * 1024;

/// The first line without trailing blanks; empty for an empty file.
#[must_use]
pub fn line_of(text: &[u8]) -> &[u8] {
    users::trim_end(text.split(|b| *b == b'\n').next().unwrap_or_default())
}

/// The leading digits of the first line; `None` if there are none. A number too large for 64 bits counts as the largest.
#[must_use]
pub fn int_of(text: &[u8]) -> Option<u64> {
    let digits = line_of(text).iter().take_while(|b| b.is_ascii_digit());
    let push = |value: Option<u64>, digit: &u8| {
        Some(value.unwrap_or(0).saturating_mul(10).saturating_add(u64::from(digit.saturating_sub(b'0'))))
    };
    digits.fold(None, push)
}

/// The lines that count.
#[must_use]
pub fn lines_of(text: &[u8]) -> Vec<Vec<u8>> {
    users::list_lines(text).map(|(_, line)| line.to_vec()).collect()
}

/// Keys in lower case and values; when a key stands twice the later one counts.
#[must_use]
pub fn map_of(text: &[u8]) -> Map {
    users::routing::parse_map(text)
}

/// The bytes of a file; `None` if it does not exist.
///
/// # Errors
/// Unreadable, not a regular file, or too long; temporary.
pub fn file(path: &Path) -> Result<Option<Vec<u8>>, ControlError> {
    match open(path)? {
        Some((file, metadata)) => contents(path, file, &metadata).map(Some),
        None => Ok(None),
    }
}

/// The bytes of a file that gives away rights (users/domains, users/assign, ids), so that it must belong to root (when not
/// root: or to the caller) and nobody else may write it. `None` if it does not exist.
///
/// # Errors
/// As [`file()`], or it belongs to somebody else or is writable by others; temporary.
pub fn owned_file(path: &Path) -> Result<Option<Vec<u8>>, ControlError> {
    let Some((file, metadata)) = open(path)? else { return Ok(None) };
    check_owner(path, &metadata)?;
    contents(path, file, &metadata).map(Some)
}

/// Opens a regular file for reading; `None` if it does not exist.
///
/// # Errors
/// Unreadable or not a regular file; temporary.
pub fn open(path: &Path) -> Result<Option<(File, Metadata)>, ControlError> {
    // NONBLOCK: a FIFO in the place of a file must not stop a mail server.
    let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty());
    let file = match opened {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(ControlError::from_io(path, &errno.into())),
    };
    let metadata = file.metadata().map_err(|error| ControlError::from_io(path, &error))?;
    if !metadata.is_file() {
        return Err(ControlError::new(path, "is no regular file; remove it or put a file in its place"));
    }
    Ok(Some((file, metadata)))
}

/// Only root, or when not root also the caller, may own and write it.
///
/// # Errors
/// Somebody else may; temporary.
pub fn check_owner(path: &Path, metadata: &Metadata) -> Result<(), ControlError> {
    let caller = rustix::process::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != caller {
        let problem = format!("belongs to uid {}; it decides about rights and must be root's (chown root)", metadata.uid());
        return Err(ControlError::new(path, problem));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(ControlError::new(path, "others may write it, though it decides about rights (chmod go-w)"));
    }
    Ok(())
}

pub(crate) fn contents(path: &Path, file: File, metadata: &Metadata) -> Result<Vec<u8>, ControlError> {
    let mut text = Vec::with_capacity(usize::try_from(metadata.len().min(FILE_LEN_MAX)).unwrap_or(0));
    let read = file.take(FILE_LEN_MAX.saturating_add(1)).read_to_end(&mut text);
    read.map_err(|error| ControlError::from_io(path, &error))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_LEN_MAX {
        return Err(ControlError::new(path, format!("longer than {FILE_LEN_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_rules() {
        for (text, line, int) in [
            (&b""[..], &b""[..], None),
            (b"mail.example.org\n", b"mail.example.org", None),
            (b"a b \t\nsecond\n", b"a b", None),
            (b"mail.example.org\r\nsecond\r\n", b"mail.example.org", None),
            (b"\r\n", b"", None),
            (b"\nsecond", b"", None),
            (b" x", b" x", None),
            (b"12ab\n", b"12ab", Some(12)),
            (b"0\n", b"0", Some(0)),
            (b" 12", b" 12", None),
            (b"-1", b"-1", None),
            (b"99999999999999999999999", b"99999999999999999999999", Some(u64::MAX)),
        ] {
            assert_eq!(line_of(text), line);
            assert_eq!(int_of(text), int, "{}", text.escape_ascii());
        }
        assert_eq!(lines_of(b"#c\na \n\n b\n"), [b"a".to_vec(), b" b".to_vec()]);
        assert_eq!(map_of(b"Dom:Relay:26\nnone\n:x\n"), [(b"dom".to_vec(), b"Relay:26".to_vec()), (b"".to_vec(), b"x".to_vec())]);
    }

    #[test]
    fn what_is_no_file_is_an_error_and_never_waits() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(file(&dir.path().join("missing")), Ok(None));
        assert!(file(dir.path()).unwrap_err().problem.contains("no regular file"));
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        assert!(file(&fifo).unwrap_err().problem.contains("no regular file"));
        let long = File::create(dir.path().join("long")).unwrap();
        long.set_len(FILE_LEN_MAX + 1).unwrap();
        assert!(file(&dir.path().join("long")).unwrap_err().problem.contains("longer"));
    }

    #[test]
    fn a_file_about_rights_must_not_be_writable_by_others() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("domains");
        std::fs::write(&path, "x").unwrap();
        for (mode, good) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(owned_file(&path).is_ok(), good, "{mode:o}");
        }
        if rustix::process::geteuid().is_root() {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
            std::os::unix::fs::chown(&path, Some(1234), None).unwrap();
            assert!(owned_file(&path).unwrap_err().problem.contains("1234"));
        }
    }
}
