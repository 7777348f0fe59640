//! Text whose first line ends in CRLF is a DOS text: its CRLFs become LFs, as other sendmails do it.
//!
//! Programs written for SMTP hand CRLF lines to sendmail; left alone they would have no blank line, hence no header.
//! Text whose first line ends in LF alone is not touched: there a CR is a byte like any other. Used by qmail-inject and sendmail.

/// Converts a stream in chunks; holds at most one CR back.
#[derive(Debug, Default)]
pub struct DosToUnix {
    mode: Mode,
    held_cr: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    #[default]
    FirstLine,
    Dos,
    Unix,
}

impl DosToUnix {
    /// Appends what `chunk` becomes to `out`.
    pub fn convert(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        let mut rest = chunk;
        while self.mode != Mode::Unix {
            let Some((lf, after)) = memchr::memchr(b'\n', rest).and_then(|at| rest.split_at_checked(at)) else {
                self.push_part(rest, out);
                return;
            };
            self.push_part(lf, out);
            if self.mode == Mode::FirstLine {
                self.mode = if self.held_cr { Mode::Dos } else { Mode::Unix };
            }
            self.held_cr = false;
            out.push(b'\n');
            rest = after.get(1..).unwrap_or_default();
        }
        out.extend_from_slice(rest);
    }

    /// At the end of the stream: a CR that no LF followed.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.held_cr) {
            out.push(b'\r');
        }
    }

    /// Appends a part without LF; its last CR waits for what follows.
    fn push_part(&mut self, part: &[u8], out: &mut Vec<u8>) {
        if part.is_empty() {
            return;
        }
        self.finish(out);
        let text = part.strip_suffix(b"\r");
        self.held_cr = text.is_some();
        out.extend_from_slice(text.unwrap_or(part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(chunks: &[&[u8]]) -> Vec<u8> {
        let (mut filter, mut out) = (DosToUnix::default(), Vec::new());
        for chunk in chunks {
            filter.convert(chunk, &mut out);
        }
        filter.finish(&mut out);
        out
    }

    #[test]
    fn only_dos_text_changes_and_any_chunking_gives_the_same() {
        for (input, output) in [
            (&b""[..], &b""[..]),
            (b"a\r\nb\r\n\r\nc\r\r\nd\re\nf", b"a\nb\n\nc\r\nd\re\nf"),
            (b"a\nb\r\nc\r", b"a\nb\r\nc\r"),
            (b"\r\n\r", b"\n\r"),
            (b"\r\r\n\n", b"\r\n\n"),
            (b"\ra\r", b"\ra\r"),
        ] {
            assert_eq!(all(&[input]), output, "{}", input.escape_ascii());
            for cut in 0..=input.len() {
                let (a, b) = input.split_at(cut);
                assert_eq!(all(&[a, b]), output, "{} cut at {cut}", input.escape_ascii());
            }
            let bytes: Vec<&[u8]> = input.chunks(1).collect();
            assert_eq!(all(&bytes), output);
        }
    }
}
