//! A message on its way into a mailbox: its body, read from a descriptor by offset, and the lines that go before it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// Bodies up to this many bytes are read once and kept; of longer ones this much is read at a time.
const CHUNK_LEN: usize = 64 << 10;

/// A body in qmail's LF form. Its descriptor is only ever read by offset, so others may share it.
#[derive(Debug)]
pub struct Body {
    file: File,
    head: Vec<u8>,
    is_whole: bool,
}

impl Body {
    /// Takes the descriptor and reads the first bytes.
    ///
    /// # Errors
    /// Not seekable, or unreadable: temporary.
    pub fn new(file: File) -> io::Result<Self> {
        let mut head = Vec::with_capacity(CHUNK_LEN);
        loop {
            let at = u64::try_from(head.len()).unwrap_or(u64::MAX);
            match rustix::io::pread(&file, rustix::buffer::spare_capacity(&mut head), at) {
                Ok(0) => return Ok(Self { file, head, is_whole: true }),
                Ok(_) if head.len() >= CHUNK_LEN => return Ok(Self { file, head, is_whole: false }),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Its length in bytes.
    ///
    /// # Errors
    /// It cannot be looked at; temporary.
    pub(crate) fn byte_len(&self) -> io::Result<u64> {
        let head = u64::try_from(self.head.len()).unwrap_or(u64::MAX);
        if self.is_whole { Ok(head) } else { Ok(self.file.metadata()?.len()) }
    }

    /// Gives the whole body to `take`, in order, until the end or until `take` wants no more (`false`).
    ///
    /// # Errors
    /// [`Stopped::Read`] when the body cannot be read, [`Stopped::Take`] with what `take` said.
    pub fn each_chunk<E>(&self, mut take: impl FnMut(&[u8]) -> Result<bool, E>) -> Result<(), Stopped<E>> {
        if !take(&self.head).map_err(Stopped::Take)? || self.is_whole {
            return Ok(());
        }
        let mut chunk = vec![0; CHUNK_LEN];
        let mut at = u64::try_from(self.head.len()).unwrap_or(u64::MAX);
        loop {
            let len = match self.file.read_at(&mut chunk, at) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Stopped::Read(e)),
            };
            if !take(chunk.get(..len).unwrap_or_default()).map_err(Stopped::Take)? {
                return Ok(());
            }
            at = at.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        }
    }
}

impl AsFd for Body {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Why [`Body::each_chunk`] ended early.
#[derive(Debug)]
pub enum Stopped<E> {
    Read(io::Error),
    Take(E),
}

/// What is written into a mailbox.
#[derive(Debug, Clone, Copy)]
pub struct Letter<'a> {
    /// The Return-Path and Delivered-To lines, each with its LF.
    pub trace: &'a [u8],
    pub body: &'a Body,
}

impl Letter<'_> {
    /// # Errors
    /// The body cannot be looked at.
    pub(crate) fn byte_len(&self) -> io::Result<u64> {
        Ok(self.body.byte_len()?.saturating_add(self.trace.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_body_of_any_length_comes_whole_and_the_offset_stays() {
        for len in [0, 1, 4096, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 3 * CHUNK_LEN + 7] {
            let text: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&text).unwrap();
            let body = Body::new(file).unwrap();
            let mut got = Vec::new();
            body.each_chunk(|chunk| {
                got.extend_from_slice(chunk);
                Ok::<_, ()>(true)
            })
            .unwrap();
            assert_eq!(got, text);
            assert_eq!(rustix::fs::tell(&body.file).unwrap(), u64::try_from(len).unwrap());
        }
    }

    #[test]
    fn a_pipe_is_no_body() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        assert!(Body::new(File::from(read)).is_err());
    }
}
