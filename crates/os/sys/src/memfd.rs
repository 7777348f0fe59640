//! A message body as a sealed memory file: it can be handed to another process, which can trust that it never changes.

use rustix::fs::{MemfdFlags, SealFlags};
use std::io::{self, Write};
use std::os::fd::OwnedFd;

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

#[cfg(test)]
mod tests {
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
}
