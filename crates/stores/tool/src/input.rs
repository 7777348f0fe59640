//! Reading: all of standard input or of a file, within a bound, and standard input without a buffer that would swallow what another
//! program is to read.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Longest table that is read whole, in bytes: ten million lines of users/assign fit.
pub const TABLE_LEN_MAX: u64 = 1 << 30;
/// As much of a message as is looked at for its header, in bytes.
pub const HEADER_LEN_MAX: usize = 1 << 20;

/// A path as the command line and the environment hold it.
#[must_use]
pub fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// A variable of the environment; an empty one is one.
#[must_use]
pub fn variable(name: &str) -> Option<Vec<u8>> {
    std::env::var_os(name).map(|value| value.as_bytes().to_vec())
}

/// Standard input itself, unbuffered: its offset is that of the descriptor.
///
/// # Errors
/// It was closed; temporary: a message that cannot be read is not an empty one.
pub fn stdin() -> io::Result<File> {
    sys::standard::input()
}

/// All of it, at most `len_max` bytes.
///
/// # Errors
/// It cannot be read, or there is more (`FileTooLarge`); temporary.
pub fn all(from: &File, len_max: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut limited = from.take(len_max.saturating_add(1));
    limited.read_to_end(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > len_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

/// All of standard input, as [`all`] with [`TABLE_LEN_MAX`].
///
/// # Errors
/// As [`stdin`] and [`all`].
pub fn table() -> io::Result<Vec<u8>> {
    all(&stdin()?, TABLE_LEN_MAX)
}

/// All of a file, as [`all`] with [`TABLE_LEN_MAX`].
///
/// # Errors
/// It cannot be opened, or as [`all`].
pub fn file(path: &Path) -> io::Result<Vec<u8>> {
    all(&File::open(path)?, TABLE_LEN_MAX)
}

/// Hands on what is left of `from`, piece by piece.
///
/// # Errors
/// `Err(Ok(_))`: it cannot be read. `Err(Err(_))`: what `each` says.
pub fn copy<E>(from: &mut File, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), Result<io::Error, E>> {
    let mut piece = vec![0; 32 * 1024];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(len) => each(piece.get(..len).unwrap_or_default()).map_err(Err)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Ok(error)),
        }
    }
}

/// The beginning of a message: whole bytes up to and with the empty line that ends its header, and what was read beyond it.
///
/// # Errors
/// It cannot be read. A header over [`HEADER_LEN_MAX`] is no error: so much of it is given.
pub fn head(from: &mut File) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut piece = vec![0; 8 * 1024];
    loop {
        let ended = head.starts_with(b"\n") || head.windows(2).any(|pair| pair == b"\n\n");
        if ended || head.len() >= HEADER_LEN_MAX {
            return Ok(head);
        }
        match from.read(&mut piece) {
            Ok(0) => return Ok(head),
            Ok(len) => head.extend_from_slice(piece.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek as _, Write as _};

    fn file(text: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn what_is_too_long_is_an_error_and_not_cut() {
        assert_eq!(all(&file(b"abc"), 3).unwrap(), b"abc");
        assert_eq!(all(&file(b"abcd"), 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_head_has_the_whole_header() {
        let long = [b"A: b\n".repeat(10_000), b"\nbody".to_vec()].concat();
        assert!(head(&mut file(&long)).unwrap().windows(2).any(|pair| pair == b"\n\n"));
        assert_eq!(head(&mut file(b"A: b")).unwrap(), b"A: b");
        assert!(head(&mut file(&vec![b'x'; 3 * HEADER_LEN_MAX])).unwrap().len() <= HEADER_LEN_MAX + 8 * 1024);
    }
}
