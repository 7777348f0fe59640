//! The `From ` rule of mbox files (mbox(5), the mboxrd form): `>` goes before each line that is `From ` after any number of `>`,
//! so that no line of a message can pass for the start of the next one, and a reader can undo it.

const FROM: &[u8] = b"From ";

/// Quotes a message that comes in chunks; the result does not depend on where they were cut.
#[derive(Debug, Clone)]
pub struct FromQuoter {
    /// How far into `>*From ` the current line has come; `None` once it cannot be one.
    matched: Option<usize>,
    is_at_line_start: bool,
}

impl Default for FromQuoter {
    fn default() -> Self {
        Self { matched: Some(0), is_at_line_start: true }
    }
}

impl FromQuoter {
    /// Appends `chunk`, quoted, to `out`. Up to four bytes may be kept back until the next call.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        let mut rest = chunk;
        while let Some((&b, after)) = rest.split_first() {
            self.is_at_line_start = b == b'\n';
            let Some(matched) = self.matched else {
                // The line is decided: the rest of it goes through as it is.
                let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |lf| lf.saturating_add(1));
                let (piece, after) = rest.split_at_checked(end).unwrap_or((rest, &[]));
                out.extend_from_slice(piece);
                self.is_at_line_start = piece.ends_with(b"\n");
                self.matched = self.is_at_line_start.then_some(0);
                rest = after;
                continue;
            };
            self.step(matched, b, out);
            rest = after;
        }
    }

    /// Ends the message: what was kept back, the line ending a last line may lack, and the blank line after every message.
    pub fn finish(mut self, out: &mut Vec<u8>) {
        self.release(out);
        if !self.is_at_line_start {
            out.push(b'\n');
        }
        out.push(b'\n');
    }

    fn step(&mut self, matched: usize, b: u8, out: &mut Vec<u8>) {
        if FROM.get(matched) == Some(&b) {
            let matched = matched.saturating_add(1);
            self.matched = Some(matched);
            if matched == FROM.len() {
                // All the `>` of a line are alike, so the new one may stand behind those already written.
                out.push(b'>');
                out.extend_from_slice(FROM);
                self.matched = None;
            }
            return;
        }
        self.release(out);
        out.push(b);
        self.matched = (b == b'\n' || (b == b'>' && matched == 0)).then_some(0);
    }

    fn release(&mut self, out: &mut Vec<u8>) {
        if let Some(matched) = self.matched.replace(0) {
            out.extend_from_slice(FROM.get(..matched).unwrap_or_default());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn quoted(chunks: &[&[u8]]) -> Vec<u8> {
        let (mut quoter, mut out) = (FromQuoter::default(), Vec::new());
        for chunk in chunks {
            quoter.push(chunk, &mut out);
        }
        quoter.finish(&mut out);
        out
    }

    /// mbox(5), read line by line.
    pub(crate) fn reference(message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in message.split_inclusive(|b| *b == b'\n') {
            let bare: &[u8] = &line[line.iter().take_while(|b| **b == b'>').count()..];
            if bare.starts_with(b"From ") {
                out.push(b'>');
            }
            out.extend_from_slice(line);
        }
        if !message.is_empty() && !message.ends_with(b"\n") {
            out.push(b'\n');
        }
        out.push(b'\n');
        out
    }

    #[test]
    fn from_lines_are_quoted_and_nothing_else() {
        for (message, expected) in [
            ("", "\n"),
            ("\n", "\n\n"),
            ("a", "a\n\n"),
            ("From a\n", ">From a\n\n"),
            ("From:a\nFrom a\n", "From:a\n>From a\n\n"),
            (">From a\n>>From b\n", ">>From a\n>>>From b\n\n"),
            (">>Fro", ">>Fro\n\n"),
            ("x From a\n From b\n", "x From a\n From b\n\n"),
            ("Fr\nFrom\nFrom\t\nFromFrom \n", "Fr\nFrom\nFrom\t\nFromFrom \n\n"),
            ("F>From \n", "F>From \n\n"),
            ("FFrom \nFrFrom \n", "FFrom \nFrFrom \n\n"),
            ("From ", ">From \n\n"),
        ] {
            assert_eq!(String::from_utf8(quoted(&[message.as_bytes()])).unwrap(), expected, "{message:?}");
            assert_eq!(reference(message.as_bytes()), expected.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn any_chunking_agrees_with_the_rule(message in "[>From \na]{0,40}", cuts in prop::collection::vec(0usize..40, 0..6)) {
            let message = message.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(message.len())).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut start = 0;
            for cut in cuts {
                chunks.push(&message[start..cut]);
                start = cut;
            }
            chunks.push(&message[start..]);
            prop_assert_eq!(quoted(&chunks), reference(message));
        }
    }
}
