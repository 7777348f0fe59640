//! Has this message been here before? Its header then holds exactly our Delivered-To line (qmail-local(8)).
//!
//! The comparison is to the byte, as in every qmail, so that loops through several of them are found; a field of the same
//! meaning in another form is not. The header ends with the first empty line; a last line without its LF does not count.
//! Memory is constant whatever the header holds.

/// The text of the permanent failure.
pub const LOOPING: &str = "This message is looping: it already has my Delivered-To line. (#5.4.6)";

/// Looks through a message that comes in chunks.
#[derive(Debug)]
pub struct LoopCheck<'a> {
    line: &'a [u8],
    /// How much of `line` the current line agrees with; `None` once it differs.
    matched: Option<usize>,
    line_len: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InHeader,
    HeaderEnded,
    Found,
}

impl<'a> LoopCheck<'a> {
    /// `delivered_to` is the whole line with its LF ([`crate::Delivery::delivered_to_line`]).
    #[must_use]
    pub fn new(delivered_to: &'a [u8]) -> Self {
        Self { line: delivered_to, matched: Some(0), line_len: 0, state: State::InHeader }
    }

    /// Takes the next bytes. Returns whether more are wanted.
    pub fn push(&mut self, chunk: &[u8]) -> bool {
        let mut rest = chunk;
        while self.state == State::InHeader && !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |lf| lf.saturating_add(1));
            let (piece, after) = rest.split_at_checked(end).unwrap_or((rest, &[]));
            self.take(piece);
            rest = after;
        }
        self.state == State::InHeader
    }

    /// Was the line there?
    #[must_use]
    pub fn is_looping(&self) -> bool {
        self.state == State::Found
    }

    fn take(&mut self, piece: &[u8]) {
        self.line_len = self.line_len.saturating_add(piece.len());
        self.matched = self.matched.and_then(|matched| {
            let end = matched.checked_add(piece.len())?;
            (self.line.get(matched..end)? == piece).then_some(end)
        });
        if !piece.ends_with(b"\n") {
            return;
        }
        if self.matched == Some(self.line.len()) {
            self.state = State::Found;
        } else if self.line_len == 1 {
            self.state = State::HeaderEnded;
        }
        self.matched = Some(0);
        self.line_len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINE: &[u8] = b"Delivered-To: a@b\n";

    fn looping(chunks: &[&[u8]]) -> bool {
        let mut check = LoopCheck::new(LINE);
        for chunk in chunks {
            check.push(chunk);
        }
        check.is_looping()
    }

    #[test]
    fn exactly_the_line_in_the_header_is_a_loop() {
        for (message, expected) in [
            ("", false),
            ("Delivered-To: a@b\n", true),
            ("Delivered-To: a@b\n\n", true),
            ("X: y\nDelivered-To: a@b\nZ: z\n\nbody", true),
            ("Delivered-To: a@b", false),
            ("delivered-to: a@b\n", false),
            ("Delivered-To: a@bc\n", false),
            ("Delivered-To: a@b \n", false),
            ("Delivered-To: A@b\n", false),
            (" Delivered-To: a@b\n", false),
            ("Delivered-To: a@\nb\n", false),
            ("\nDelivered-To: a@b\n", false),
            ("X: y\n\nDelivered-To: a@b\n", false),
            ("X: y\n\r\nDelivered-To: a@b\n", true),
            ("Delivered-To: a@b\r\n", false),
        ] {
            assert_eq!(looping(&[message.as_bytes()]), expected, "{message:?}");
            for cut in 0..message.len() {
                let (a, b) = message.as_bytes().split_at(cut);
                assert_eq!(looping(&[a, b]), expected, "{message:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn it_stops_asking_when_it_knows() {
        let mut check = LoopCheck::new(LINE);
        assert!(check.push(b"X: y\n"));
        assert!(!check.push(b"\nbody"));
        let mut check = LoopCheck::new(LINE);
        assert!(!check.push(b"Delivered-To: a@b\nX"));
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(parts in prop::collection::vec("(Delivered-To: a@b\n|[a:\n]{0,5})", 0..6), cut in 0usize..60) {
            let message = parts.concat().into_bytes();
            let header_end = if message.starts_with(b"\n") { 0 } else {
                message.windows(2).position(|w| w == b"\n\n").map_or(message.len(), |at| at + 1)
            };
            let expected = message[..header_end].split_inclusive(|b| *b == b'\n').any(|line| line == LINE);
            let (a, b) = message.split_at(cut.min(message.len()));
            prop_assert_eq!(looping(&[a, b]), expected);
        }
    }
}
