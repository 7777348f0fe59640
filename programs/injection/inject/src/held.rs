//! A message that waits for its envelope, which comes after it: in memory while it is small, else in a file without a name.

use rustix::fs::{MemfdFlags, Mode, OFlags};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

/// A longer message goes to the file.
pub const MEMORY_LEN_MAX: usize = 256 * 1024;

/// Where the file is made: a directory on a disk first.
const DIRECTORIES: [&str; 2] = ["/var/tmp", "/tmp"];

/// The bytes so far.
#[derive(Debug)]
pub struct Held {
    memory: Vec<u8>,
    /// Made before the sandbox is entered, used when memory does not do.
    file: Option<File>,
    spilled: u64,
    is_eight_bit: bool,
}

impl Held {
    /// Opens the file; without a directory that takes one, a long message stays in a memory file.
    #[must_use]
    pub fn new() -> Self {
        let mode = Mode::RUSR | Mode::WUSR;
        let open = |dir: &&str| rustix::fs::open(*dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode).ok();
        let file = DIRECTORIES.iter().find_map(open).map(File::from);
        Self { memory: Vec::new(), file, spilled: 0, is_eight_bit: false }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// The disk is full or broken; temporary.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.is_eight_bit = self.is_eight_bit || !bytes.is_ascii();
        self.memory.extend_from_slice(bytes);
        if self.memory.len() > MEMORY_LEN_MAX { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => File::from(rustix::fs::memfd_create("message", MemfdFlags::CLOEXEC)?),
        };
        self.file.insert(file).write_all(&self.memory)?;
        self.spilled = self.spilled.saturating_add(u64::try_from(self.memory.len()).unwrap_or(u64::MAX));
        self.memory.clear();
        Ok(())
    }

    /// Is any byte over 127?
    #[must_use]
    pub fn is_eight_bit(&self) -> bool {
        self.is_eight_bit
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.spilled.saturating_add(u64::try_from(self.memory.len()).unwrap_or(u64::MAX))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives all bytes in order.
    ///
    /// # Errors
    /// What `each` says, or the file cannot be read; temporary.
    pub fn for_each(&self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buf = vec![0; 32 * 1024];
        let mut at = 0u64;
        while at < self.spilled {
            let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
            let want = usize::try_from(self.spilled.saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
            let read = file.read_at(buf.get_mut(..want).unwrap_or_default(), at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            each(buf.get(..read).unwrap_or_default())?;
            at = at.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        }
        if self.memory.is_empty() { Ok(()) } else { each(&self.memory) }
    }
}

impl Default for Held {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_with_and_without_a_file() {
        for len in [0, 1, 5000, MEMORY_LEN_MAX, MEMORY_LEN_MAX + 1, 3 * MEMORY_LEN_MAX + 17] {
            for with_file in [true, false] {
                let mut held = Held::new();
                if !with_file {
                    held.file = None;
                }
                let bytes: Vec<u8> = (0..len).map(|n| u8::try_from(n % 127).unwrap()).collect();
                for chunk in bytes.chunks(70_001) {
                    held.push(chunk).unwrap();
                    assert!(held.memory.len() <= MEMORY_LEN_MAX);
                }
                let mut out = Vec::new();
                held.for_each(|part| {
                    out.extend_from_slice(part);
                    Ok(())
                })
                .unwrap();
                assert!(out == bytes, "{len} {with_file}");
                assert!(!held.is_eight_bit() && held.len() == len as u64 && held.is_empty() == (len == 0));
                held.push(b"\xff").unwrap();
                assert!(held.is_eight_bit());
            }
        }
    }
}
