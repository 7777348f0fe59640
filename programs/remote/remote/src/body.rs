//! The message of a job: a descriptor that others read too, so only positioned reads, a chunk at a time.

use std::io;
use std::os::fd::OwnedFd;

use smtp::encode::{Encoder, Survey};

/// What is read at once. A body up to this size is read once and kept while its job lasts.
pub const CHUNK_LEN: usize = 64 * 1024;

/// A message body in LF form.
#[derive(Debug)]
pub struct Body {
    fd: OwnedFd,
    size: u64,
    survey: Survey,
    /// The whole of a small body.
    whole: Option<Vec<u8>>,
}

impl Body {
    /// Reads the body once to know its size on the wire and whether it has 8-bit bytes. Gives way to other tasks in between.
    ///
    /// # Errors
    /// It cannot be read, or is shorter than `size`; temporary.
    pub async fn new(fd: OwnedFd, size: u64) -> io::Result<Self> {
        let mut body = Self { fd, size, survey: Survey::new(), whole: None };
        let (mut survey, mut offset, mut chunk) = (Survey::new(), 0, Vec::new());
        while offset < size {
            body.read(offset, &mut chunk)?;
            survey.push(&chunk);
            offset = offset.saturating_add(chunk.len() as u64);
            if offset < size {
                tokio::task::yield_now().await;
            }
        }
        body.survey = survey.finish();
        if size <= CHUNK_LEN as u64 {
            body.whole = Some(chunk);
        }
        Ok(body)
    }

    /// What the client has to know before MAIL.
    #[must_use]
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// Does the header say `TLS-Required: no` (RFC 8689 §5)? Looks at the first [`CHUNK_LEN`] bytes alone.
    #[must_use]
    pub fn says_tls_required_no(&self) -> bool {
        let mut chunk = Vec::new();
        let front = match &self.whole {
            Some(whole) => whole,
            None if self.read(0, &mut chunk).is_ok() => &chunk,
            None => return false,
        };
        let mut fields = message::header::fields(front).filter(|field| field.is(b"tls-required"));
        // The field stands at most once.
        fields.next().is_some_and(|field| field.value().eq_ignore_ascii_case(b"no")) && fields.next().is_none()
    }

    /// The next chunk from `offset` into `chunk`; never empty.
    fn read(&self, offset: u64, chunk: &mut Vec<u8>) -> io::Result<()> {
        let left = self.size.saturating_sub(offset);
        chunk.resize(usize::try_from(left).unwrap_or(CHUNK_LEN).min(CHUNK_LEN), 0);
        let len = rustix::io::retry_on_intr(|| rustix::io::pread(&self.fd, chunk.as_mut_slice(), offset))?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        chunk.truncate(len);
        Ok(())
    }
}

/// A body on its way to the wire.
#[derive(Debug)]
pub struct Outgoing<'a> {
    body: &'a Body,
    /// `None` once the lone dot is written.
    encoder: Option<Encoder>,
    /// Goes before the message.
    front: Vec<u8>,
    offset: u64,
    chunk: Vec<u8>,
}

impl<'a> Outgoing<'a> {
    #[must_use]
    pub fn new(body: &'a Body, front: Vec<u8>, encoder: Encoder) -> Self {
        Self { body, front, encoder: Some(encoder), offset: 0, chunk: Vec::new() }
    }

    /// Was everything given out, the lone dot included?
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.encoder.is_none()
    }

    /// Appends the next piece to `out`, and the lone dot line after the last one.
    ///
    /// # Errors
    /// The body cannot be read any more; then the lone dot must not be sent.
    pub fn next(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let Some(mut encoder) = self.encoder.take() else { return Ok(()) };
        encoder.push(&std::mem::take(&mut self.front), out);
        if let Some(whole) = &self.body.whole {
            encoder.push(whole, out);
            encoder.finish(out);
            return Ok(());
        }
        self.body.read(self.offset, &mut self.chunk)?;
        encoder.push(&self.chunk, out);
        self.offset = self.offset.saturating_add(self.chunk.len() as u64);
        if self.offset < self.body.size {
            self.encoder = Some(encoder);
        } else {
            encoder.finish(out);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_tokio<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn wire(content: &[u8], size: u64) -> io::Result<(Vec<u8>, u64)> {
        let body = on_tokio(Body::new(sys::memfd::sealed(content).unwrap(), size))?;
        let (mut out, mut outgoing) = (Vec::new(), Outgoing::new(&body, Vec::new(), Encoder::new()));
        while !outgoing.is_done() {
            outgoing.next(&mut out)?;
        }
        Ok((out, body.survey().size))
    }

    #[test]
    fn small_and_large_bodies_come_whole() {
        let line = b"0123456789abcdef\n.x\n";
        for lines in [0, 1, 3276, 3277, 40_000] {
            let content = line.repeat(lines);
            let (out, size) = wire(&content, content.len() as u64).unwrap();
            let expected = [b"0123456789abcdef\r\n..x\r\n".repeat(lines), b".\r\n".to_vec()].concat();
            assert!(out == expected, "{lines}");
            assert_eq!(size, 22 * lines as u64);
        }
    }

    #[test]
    fn tls_required_no() {
        for (content, expected) in [
            (&b"Subject: x\nTLS-Required: No\n\n"[..], true),
            (b"tls-required:\n no\nSubject: x\n", true),
            (b"TLS-Required: yes\n\n", false),
            (b"TLS-Required: No\nTLS-Required: No\n\n", false),
            (b"Subject: x\n\nTLS-Required: No\n", false),
            (b"\nTLS-Required: No\n", false),
            (b"X-TLS-Required: No\n", false),
            (b"", false),
        ] {
            for padding in [0, CHUNK_LEN] {
                let content = [content, &vec![b'x'; padding]].concat();
                let size = content.len() as u64;
                let body = on_tokio(Body::new(sys::memfd::sealed(&content).unwrap(), size)).unwrap();
                assert_eq!(body.says_tls_required_no(), expected, "{}", content.escape_ascii());
            }
        }
    }

    #[test]
    fn a_body_that_is_shorter_than_it_should_be_is_an_error() {
        for (len, size) in [(0, 1), (10, 11), (CHUNK_LEN, CHUNK_LEN + 1), (3 * CHUNK_LEN, 3 * CHUNK_LEN + 1)] {
            let error = wire(&vec![b'x'; len], size as u64).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
