//! A message body as a sealed memory file: it can be handed to another process, which can trust that it never changes.

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};

/// What is copied at once.
const CHUNK_LEN: usize = 64 * 1024;

/// A read-only memory file that holds `bytes`.
///
/// # Errors
/// Out of descriptors or memory; temporary.
pub fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("message", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    let fd = OwnedFd::from(file);
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(fd)
}

/// The same message under an offset of its own, at its beginning, for a program that reads it: the descriptor of a job is shared with other
/// deliveries of the message. Opened anew where this user may, else copied into a file without a name.
///
/// # Errors
/// It cannot be read, or there is no room for the copy; temporary.
pub fn own_description(message: OwnedFd) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", message.as_raw_fd());
    if let Ok(fd) = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        return Ok(File::from(fd));
    }
    copied(&File::from(message), 0)
}

/// What follows `offset` in a file, in a file without a name.
///
/// # Errors
/// As [`own_description`].
fn copied(from: &File, mut offset: u64) -> io::Result<File> {
    use std::io::Seek as _;
    use std::os::unix::fs::FileExt as _;
    let mut copy = nameless()?;
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        match from.read_at(&mut chunk, offset) {
            Ok(0) => break,
            Ok(len) => {
                copy.write_all(chunk.get(..len).unwrap_or_default())?;
                offset = offset.saturating_add(len as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    copy.rewind()?;
    Ok(copy)
}

/// An empty file without a name, on a disk if there is one that takes it, else in memory.
///
/// # Errors
/// Out of descriptors; temporary.
pub fn nameless() -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)
        .or_else(|_| rustix::fs::memfd_create("message", MemfdFlags::CLOEXEC))?;
    Ok(File::from(file))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holds_the_bytes_and_refuses_change() {
        let mut file = std::fs::File::from(super::sealed(b"letter").unwrap());
        let mut buf = [0; 6];
        file.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"letter");
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(1).is_err());
    }

    #[test]
    fn a_description_of_its_own_starts_at_the_beginning() {
        let shared = super::sealed(b"letter").unwrap();
        let mut one = super::own_description(shared.try_clone().unwrap()).unwrap();
        let mut text = String::new();
        one.read_to_string(&mut text).unwrap();
        let mut other = super::own_description(shared).unwrap();
        other.read_to_string(&mut text).unwrap();
        let mut rest = super::copied(&one, 3).unwrap();
        rest.read_to_string(&mut text).unwrap();
        assert_eq!(text, "letterletterter");
    }
}
