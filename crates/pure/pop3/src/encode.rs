//! A stored message made ready for the wire (RFC 1939 §3 and §7), and its size there.
//!
//! A message is stored with LF line endings; some arrive with CRLF. [`Encoder`] sends CRLF for both and never CRCRLF where CRLF stood,
//! puts a dot before each line that starts with one, and ends a last line that has no ending, so that the final dot stands alone. It adds
//! no empty line. [`Octets`] counts exactly what a client holds after it undid the dots: what STAT and LIST must say (RFC 1939 §11).
//! Both take chunks cut anywhere. Used by qmail-pop3d.

/// Turns stored bytes into wire bytes, chunk by chunk.
#[derive(Debug, Clone)]
pub struct Encoder {
    line: LineState,
    part: Part,
}

/// How far TOP has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The whole message is wanted.
    Whole,
    /// In the header; then so many lines of the body.
    Header { body_lines: u64 },
    /// In the body, with so many lines to go.
    Body { lines: u64 },
    /// All that was asked for has been sent.
    Done,
}

/// Where in a line the stream stands.
#[derive(Debug, Clone, Copy, Default)]
struct LineState {
    /// Bytes of this line so far.
    len: u64,
    /// Was the last byte a CR?
    cr: bool,
}

impl LineState {
    fn push(&mut self, piece: &[u8]) {
        if let Some(last) = piece.last() {
            self.len = self.len.saturating_add(piece.len() as u64);
            self.cr = *last == b'\r';
        }
    }

    fn is_empty_line(self) -> bool {
        self.len == 0 || (self.len == 1 && self.cr)
    }
}

impl Encoder {
    /// For RETR.
    #[must_use]
    pub fn whole() -> Self {
        Self { line: LineState::default(), part: Part::Whole }
    }

    /// For TOP: the header, the empty line after it, and `body_lines` lines (RFC 1939 §7).
    #[must_use]
    pub fn top(body_lines: u64) -> Self {
        Self { line: LineState::default(), part: Part::Header { body_lines } }
    }

    /// Does it want more of the message? Only TOP is ever satisfied early.
    #[must_use]
    pub fn wants_more(&self) -> bool {
        self.part != Part::Done
    }

    /// Appends `chunk` to `out` as it is to be sent; at most 2 bytes for each of `chunk`.
    pub fn feed(&mut self, mut chunk: &[u8], out: &mut Vec<u8>) {
        while !chunk.is_empty() && self.wants_more() {
            let lf = memchr::memchr(b'\n', chunk);
            let (piece, rest) = chunk.split_at(lf.unwrap_or(chunk.len()));
            if self.line.len == 0 && piece.first() == Some(&b'.') {
                out.push(b'.');
            }
            out.extend_from_slice(piece);
            self.line.push(piece);
            chunk = rest;
            if let Some(rest) = rest.strip_prefix(b"\n") {
                chunk = rest;
                self.end_line(out);
            }
        }
    }

    /// Appends what ends the message: a missing line ending, and the line with the single dot.
    pub fn finish(self, out: &mut Vec<u8>) {
        if self.line.len > 0 {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b".\r\n");
    }

    fn end_line(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(if self.line.cr { b"\n" } else { b"\r\n" });
        let line = std::mem::take(&mut self.line);
        self.part = match self.part {
            Part::Header { body_lines } if line.is_empty_line() => Self::body(body_lines),
            Part::Body { lines } => Self::body(lines.saturating_sub(1)),
            part => part,
        };
    }

    fn body(lines: u64) -> Part {
        if lines == 0 { Part::Done } else { Part::Body { lines } }
    }
}

/// Counts what [`Encoder::whole`] will send, without the stuffed dots and without the final line.
#[derive(Debug, Clone, Default)]
pub struct Octets {
    sum: u64,
    cr: bool,
    in_line: bool,
}

impl Octets {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the message.
    pub fn feed(&mut self, chunk: &[u8]) {
        let mut before = if self.cr { b'\r' } else { 0 };
        let mut bare = 0u64;
        let mut start = 0;
        for lf in memchr::memchr_iter(b'\n', chunk) {
            let last = if lf > start { chunk.get(lf.wrapping_sub(1)).copied().unwrap_or(0) } else { before };
            bare = bare.saturating_add(u64::from(last != b'\r'));
            before = b'\n';
            start = lf.saturating_add(1);
        }
        self.sum = self.sum.saturating_add(chunk.len() as u64).saturating_add(bare);
        if let Some(last) = chunk.last() {
            self.cr = *last == b'\r';
            self.in_line = *last != b'\n';
        }
    }

    /// The size of the message that was fed, in CRLF octets.
    #[must_use]
    pub fn finish(self) -> u64 {
        self.sum.saturating_add(if self.in_line { 2 } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(encoder: Encoder, chunks: &[&[u8]]) -> Vec<u8> {
        let (mut encoder, mut out) = (encoder, Vec::new());
        for chunk in chunks {
            encoder.feed(chunk, &mut out);
        }
        encoder.finish(&mut out);
        out
    }

    fn octets(chunks: &[&[u8]]) -> u64 {
        let mut octets = Octets::new();
        chunks.iter().for_each(|chunk| octets.feed(chunk));
        octets.finish()
    }

    #[test]
    fn retr_table() {
        for (stored, wire, size) in [
            (&b""[..], &b".\r\n"[..], 0),
            (b"a\n", b"a\r\n.\r\n", 3),
            (b"a", b"a\r\n.\r\n", 3),
            (b"a\r\n", b"a\r\n.\r\n", 3),
            (b"\n", b"\r\n.\r\n", 2),
            (b".\n", b"..\r\n.\r\n", 3),
            (b".", b"..\r\n.\r\n", 3),
            (b"..a\n.b\n", b"...a\r\n..b\r\n.\r\n", 9),
            (b"a\r.b\n", b"a\r.b\r\n.\r\n", 6),
            (b"a\r\r\n", b"a\r\r\n.\r\n", 4),
            (b"a\r", b"a\r\r\n.\r\n", 4),
            (b"H: v\n\nbody\n", b"H: v\r\n\r\nbody\r\n.\r\n", 14),
        ] {
            assert_eq!(encode(Encoder::whole(), &[stored]), wire, "{}", stored.escape_ascii());
            assert_eq!(octets(&[stored]), size, "{}", stored.escape_ascii());
        }
    }

    #[test]
    fn top_table() {
        let stored = b"H: v\n\n.one\ntwo\nthree";
        for (lines, wire) in [
            (0, &b"H: v\r\n\r\n.\r\n"[..]),
            (1, b"H: v\r\n\r\n..one\r\n.\r\n"),
            (2, b"H: v\r\n\r\n..one\r\ntwo\r\n.\r\n"),
            (3, b"H: v\r\n\r\n..one\r\ntwo\r\nthree\r\n.\r\n"),
            (u64::MAX, b"H: v\r\n\r\n..one\r\ntwo\r\nthree\r\n.\r\n"),
        ] {
            assert_eq!(encode(Encoder::top(lines), &[stored]), wire);
        }
        assert_eq!(encode(Encoder::top(0), &[b"H: v\r\n\r\nbody\r\n"]), b"H: v\r\n\r\n.\r\n");
        assert_eq!(encode(Encoder::top(0), &[b"no empty line\n"]), b"no empty line\r\n.\r\n");
    }

    #[test]
    fn every_cut_gives_the_same_bytes_and_the_same_size() {
        let stored = b".a\r\n\n.\r\r\nb\n\r.c\r";
        let (whole, top) = (encode(Encoder::whole(), &[stored]), encode(Encoder::top(2), &[stored]));
        for i in 0..=stored.len() {
            for j in i..=stored.len() {
                let cut = [&stored[..i], &stored[i..j], &stored[j..]];
                assert_eq!(encode(Encoder::whole(), &cut), whole);
                assert_eq!(encode(Encoder::top(2), &cut), top);
                assert_eq!(octets(&cut), octets(&[stored]));
            }
        }
    }
}
