//! The header of a message in LF form: a streaming scanner (hops, loops, where it ends) and an iterator over its fields.
//!
//! A field name is what stands before the first `:` without the blanks before the colon, in any case (RFC 5322 §2.2, §4.5);
//! names are compared whole, never by prefix. The header ends at the first empty line or at the end of the text.
//! Nothing in the body is ever taken for a field. Used by qmail-smtpd (hop limit), qmail-local (loops), qmail-send (bounces).

use wire::address::ADDRESS_LEN_MAX;

/// As much of a line as is kept: enough for `Delivered-To: ` and the longest address, and one byte to know that there is more.
const LINE_KEPT_MAX: usize = ADDRESS_LEN_MAX + 64;

/// Scans a message that arrives in chunks; holds at most [`LINE_KEPT_MAX`] bytes and does nothing once the header has ended.
#[derive(Debug, Default)]
pub struct Scanner {
    wanted: Option<Vec<u8>>,
    kept: Vec<u8>,
    line_len: u64,
    scanned: u64,
    header_len: Option<u64>,
    hops: u32,
    found: bool,
}

impl Scanner {
    /// Counts hops only.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks for the line `Delivered-To: RECIPIENT` as well, byte for byte (an LF in the recipient stands as `_` there).
    #[must_use]
    pub fn looking_for_delivered_to(recipient: &[u8]) -> Self {
        let mut line = b"Delivered-To: ".to_vec();
        line.extend(recipient.iter().map(|b| if *b == b'\n' { b'_' } else { *b }));
        Self { wanted: Some(line), ..Self::default() }
    }

    /// Takes the next bytes of the message.
    pub fn feed(&mut self, chunk: &[u8]) {
        let mut rest = chunk;
        while self.header_len.is_none() && !rest.is_empty() {
            match memchr::memchr(b'\n', rest) {
                Some(at) => {
                    let (line, after) = rest.split_at(at);
                    self.keep(line);
                    rest = after.get(1..).unwrap_or_default();
                    self.scanned = self.scanned.saturating_add(1);
                    self.end_line();
                }
                None => {
                    self.keep(rest);
                    return;
                }
            }
        }
    }

    /// At the end of the message: a last line without LF counts too.
    pub fn finish(&mut self) {
        if self.header_len.is_none() {
            if self.line_len > 0 {
                self.end_line();
            }
            self.header_len = Some(self.scanned);
        }
    }

    /// Fields named Received or Delivered-To so far (RFC 5321 §6.3).
    #[must_use]
    pub fn hops(&self) -> u32 {
        self.hops
    }

    /// Was the wanted Delivered-To line there?
    #[must_use]
    pub fn is_found(&self) -> bool {
        self.found
    }

    /// Length of the header in bytes, its last LF counted, the empty line not; `None` while it has not ended.
    #[must_use]
    pub fn header_len(&self) -> Option<u64> {
        self.header_len
    }

    fn keep(&mut self, part: &[u8]) {
        let len = u64::try_from(part.len()).unwrap_or(u64::MAX);
        self.line_len = self.line_len.saturating_add(len);
        self.scanned = self.scanned.saturating_add(len);
        let room = LINE_KEPT_MAX.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
    }

    fn end_line(&mut self) {
        if self.line_len == 0 {
            self.header_len = Some(self.scanned.saturating_sub(1));
            return;
        }
        if field_name(&self.kept).is_some_and(|name| is_named(name, b"received") || is_named(name, b"delivered-to")) {
            self.hops = self.hops.saturating_add(1);
        }
        // A wanted line is shorter than what is kept, so a longer line that only begins like it is not equal.
        self.found |= self.wanted.as_ref() == Some(&self.kept);
        self.kept.clear();
        self.line_len = 0;
    }
}

/// Is `name` this field name? `lower` is in lower case.
#[must_use]
pub fn is_named(name: &[u8], lower: &[u8]) -> bool {
    name.eq_ignore_ascii_case(lower)
}

/// The name in front of the first `:`, blanks before the colon dropped; `None` if the line is no field: no colon, an empty name, or
/// a byte in the name that is not printable ASCII (RFC 5322 §2.2).
#[must_use]
pub fn field_name(line: &[u8]) -> Option<&[u8]> {
    let colon = memchr::memchr(b':', line)?;
    let name = line.get(..colon)?.trim_ascii_end();
    (!name.is_empty() && name.iter().all(u8::is_ascii_graphic)).then_some(name)
}

/// One field with its continuation lines, or a line that is no field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    raw: &'a [u8],
}

impl<'a> Field<'a> {
    /// All its bytes, folds and last LF included.
    #[must_use]
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Its name as written; `None` for a line that is no field.
    #[must_use]
    pub fn name(&self) -> Option<&'a [u8]> {
        field_name(self.raw)
    }

    /// Is it a field of this name (given in lower case)?
    #[must_use]
    pub fn is(&self, lower: &[u8]) -> bool {
        self.name().is_some_and(|name| is_named(name, lower))
    }

    /// What follows the colon, unfolded (RFC 5322 §2.2.3): without line ends, blanks trimmed at both ends.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        let after = memchr::memchr(b':', self.raw).and_then(|colon| self.raw.get(colon.checked_add(1)?..));
        let unfolded: Vec<u8> = after.unwrap_or_default().iter().copied().filter(|b| *b != b'\n').collect();
        unfolded.trim_ascii().to_vec()
    }
}

/// The fields of a complete header, in order; stops at an empty line.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

/// Iterates over the fields of `header`.
#[must_use]
pub fn fields(header: &[u8]) -> Fields<'_> {
    Fields { rest: header }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        if self.rest.is_empty() || self.rest.first() == Some(&b'\n') {
            return None;
        }
        let mut end = 0usize;
        loop {
            let tail = self.rest.get(end..).unwrap_or_default();
            end = end.saturating_add(memchr::memchr(b'\n', tail).map_or(tail.len(), |lf| lf.saturating_add(1)));
            if !matches!(self.rest.get(end), Some(b' ' | b'\t')) {
                break;
            }
        }
        let (raw, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        Some(Field { raw })
    }
}

/// Longest Message-ID that [`message_id`] finds; RFC 5322 §2.1.1 has lines of 998 bytes, and hardly any is longer than a hundred.
pub const MESSAGE_ID_LEN_MAX: usize = 500;
/// As much of a message is looked through for it.
const LOOKED_MAX: usize = 64 * 1024;

/// The identifier of the first Message-ID field of a message that begins with `text`, with its angle brackets (RFC 5322 §3.6.4); `None` if
/// there is none, or if it is not in one piece or too long to be one.
#[must_use]
pub fn message_id(text: &[u8]) -> Option<&[u8]> {
    let looked = text.get(..LOOKED_MAX).unwrap_or(text);
    let field = fields(looked).find(|field| field.is(b"message-id"))?;
    let colon = memchr::memchr(b':', field.raw)?;
    let value = field.raw.get(colon.checked_add(1)?..)?.trim_ascii_start();
    let end = memchr::memchr(b'>', value)?.checked_add(1)?;
    let id = value.get(..end).filter(|id| id.starts_with(b"<") && (3..=MESSAGE_ID_LEN_MAX).contains(&id.len()))?;
    (!id.iter().any(|b| b.is_ascii_whitespace() || *b == 0)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(wanted: &[u8], chunks: &[&[u8]]) -> (u32, bool, Option<u64>) {
        let mut s = Scanner::looking_for_delivered_to(wanted);
        for chunk in chunks {
            s.feed(chunk);
        }
        s.finish();
        (s.hops(), s.is_found(), s.header_len())
    }

    #[test]
    fn the_message_id_is_that_of_the_header() {
        let long = format!("Message-ID: <{}>\n", "x".repeat(MESSAGE_ID_LEN_MAX));
        let far = format!("{}Message-ID: <a@b>\n", "X: y\n".repeat(LOOKED_MAX));
        for (text, id) in [
            ("Received: x\n\ty\nmessage-id : <a@b>\nMessage-ID: <c@d>\n\n", Some("<a@b>")),
            ("Message-ID:\n <a@b> (comment)\n", Some("<a@b>")),
            ("Message-ID: <a@b", None),
            ("Message-ID: a@b\n", None),
            ("Message-ID: <a b>\n", None),
            ("Message-ID: <a\n b>\n", None),
            ("Message-ID: <>\n", None),
            ("Message-ID:", None),
            ("X-Message-ID: <a@b>\n\nMessage-ID: <c@d>\n", None),
            ("\nMessage-ID: <c@d>\n", None),
            (&long, None),
            (&far, None),
            ("", None),
        ] {
            assert_eq!(message_id(text.as_bytes()), id.map(str::as_bytes), "{}", &text[..text.len().min(80)]);
        }
    }

    #[test]
    fn hops_are_fields_of_the_header_by_their_whole_name() {
        for (text, hops, found, len) in [
            (&b""[..], 0, false, 0),
            (b"\nReceived: x\n", 0, false, 0),
            (b"Received: a\nRECEIVED: b\nreceived : c\nReceived-SPF: d\nX-Received: e\n\nReceived: f\n", 3, false, 67),
            (b"Delivered-To: a@b\n\n", 1, true, 18),
            (b"Delivered-To: a@b", 1, true, 17),
            (b"Delivered-To: a@b \n", 1, false, 19),
            (b"delivered-to: a@b\n", 1, false, 18),
            (b"Delivered-To: A@b\n", 1, false, 18),
            (b"Subject: x\n Received: y\n\tDelivered-To: a@b\n", 0, false, 43),
            (b"no colon\nReceived\nReceived:\n", 1, false, 28),
            (b"Subject: x\n\nDelivered-To: a@b\n", 0, false, 11),
        ] {
            assert_eq!(scan(b"a@b", &[text]), (hops, found, Some(len)), "{}", text.escape_ascii());
            for cut in 0..=text.len() {
                let (a, b) = text.split_at(cut);
                assert_eq!(scan(b"a@b", &[a, b]), (hops, found, Some(len)));
            }
        }
    }

    #[test]
    fn the_longest_recipient_is_found_and_a_longer_line_is_not_it() {
        let recipient = [b'x'; ADDRESS_LEN_MAX];
        let line = [&b"Delivered-To: "[..], &recipient, b"\n"].concat();
        assert!(scan(&recipient, &[&line]).1);
        let longer = [&b"Delivered-To: "[..], &recipient, &[b'x'; 4000], b"\n"].concat();
        assert!(!scan(&recipient, &[&longer]).1);
        assert!(scan(b"a\nb@c", &[b"Delivered-To: a_b@c\n"]).1);
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut s = Scanner::new();
        for _ in 0..100 {
            s.feed(&[b'x'; 65536]);
            assert!(s.kept.len() <= LINE_KEPT_MAX);
        }
        assert_eq!(s.header_len(), None);
    }

    #[test]
    fn fields_come_folded() {
        let text = b"A: 1\n 2\n\t3\nno field\nb :x\n\nC: d\n";
        let got: Vec<_> = fields(text).map(|f| (f.name(), f.value())).collect();
        assert_eq!(got, [(Some(&b"A"[..]), b"1 2\t3".to_vec()), (None, Vec::new()), (Some(&b"b"[..]), b"x".to_vec())]);
        assert!(fields(text).next().unwrap().is(b"a"));
    }

    proptest! {
        #[test]
        fn fields_cover_the_header_and_nothing_else(text in "[ \t:aA\n]{0,80}") {
            let text = text.as_bytes();
            let joined: Vec<u8> = fields(text).flat_map(|f| f.raw().to_vec()).collect();
            let (_, _, len) = scan(b"a", &[text]);
            // A header that begins with an empty line has no fields at all.
            prop_assert_eq!(joined.len() as u64, len.unwrap());
            prop_assert_eq!(&joined[..], &text[..joined.len()]);
        }
    }
}
