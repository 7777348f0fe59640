//! A bounded splitter of lines for text that arrives in chunks.
//!
//! [`Lines`] gives each line once, whole and without its ending, however the bytes were cut; a line that grows over the bound
//! is reported once and the rest of it swallowed, so memory never passes the bound.

/// How lines end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// LF, with an optional CR before it that is not part of the line (SMTP and POP3 commands as qmail reads them).
    LfOptionalCr,
    /// Just LF.
    Lf,
}

/// What [`Lines::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A whole line without its ending, at most the bound long.
    Whole(Vec<u8>),
    /// A line that was longer than the bound has ended; its bytes are gone.
    TooLong,
}

/// Collects one line at a time; holds at most `len_max` + 1 bytes.
#[derive(Debug)]
pub struct Lines {
    part: Vec<u8>,
    len_max: usize,
    ending: Ending,
    overflow: bool,
}

impl Lines {
    /// A splitter for lines of at most `len_max` bytes, endings not counted.
    #[must_use]
    pub fn new(ending: Ending, len_max: usize) -> Self {
        Self { part: Vec::new(), len_max, ending, overflow: false }
    }

    /// Takes bytes from the front of `input` up to and with the first line ending; `None` when `input` holds no more ending
    /// (it is then empty, its bytes kept for the next call).
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Line> {
        let found = memchr::memchr(b'\n', input);
        let (piece, rest) = match found {
            Some(lf) => (input.get(..lf)?, input.get(lf.checked_add(1)?..)?),
            None => (*input, &[][..]),
        };
        *input = rest;
        self.push(piece);
        found?;
        let mut line = std::mem::take(&mut self.part);
        if self.ending == Ending::LfOptionalCr && line.last() == Some(&b'\r') {
            line.pop();
        }
        if std::mem::take(&mut self.overflow) || line.len() > self.len_max {
            return Some(Line::TooLong);
        }
        Some(Line::Whole(line))
    }

    /// Bytes of the unfinished line that are held.
    #[must_use]
    pub fn held(&self) -> &[u8] {
        &self.part
    }

    /// Is the unfinished line already over the bound?
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        self.overflow
    }

    fn push(&mut self, piece: &[u8]) {
        // One byte more than the bound may be a CR that does not count.
        let room = self.len_max.saturating_add(1).saturating_sub(self.part.len());
        if piece.len() > room {
            self.overflow = true;
        }
        self.part.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ending: Ending, len_max: usize, chunks: &[&[u8]]) -> Vec<Line> {
        let mut lines = Lines::new(ending, len_max);
        let mut out = Vec::new();
        for chunk in chunks {
            let mut rest = *chunk;
            while let Some(line) = lines.next(&mut rest) {
                out.push(line);
            }
            assert!(rest.is_empty() && lines.held().len() <= len_max + 1);
        }
        out
    }

    #[test]
    fn any_chunking_gives_the_same_lines() {
        let text = b"one\r\ntwo\n\r\n\nthree\r\r\nfour and more\r\nlast";
        let whole = all(Ending::LfOptionalCr, 6, &[text]);
        assert_eq!(
            whole,
            [&b"one"[..], b"two", b"", b"", b"three\r"]
                .map(|l| Line::Whole(l.to_vec()))
                .into_iter()
                .chain([Line::TooLong])
                .collect::<Vec<_>>()
        );
        for cut in 0..text.len() {
            let (a, b) = text.split_at(cut);
            assert_eq!(all(Ending::LfOptionalCr, 6, &[a, b]), whole);
        }
    }
}
