//! The outgoing encoder: a message body in qmail's LF form → the bytes that follow DATA (RFC 5321 §4.5.2).
//!
//! This is the only code of the system that writes DATA, and it cannot write anything but whole lines: whatever goes in, however
//! it is cut into chunks,
//! - every CR in the output is followed by LF and every LF is preceded by CR;
//! - a CR, a LF and a CRLF of the input each end one line, and a dot that starts a line **after** that is doubled, so no sequence
//!   of input bytes can end DATA early (SMTP smuggling: a bare CR turned into a line end without looking at the dot behind it was
//!   the classic hole);
//! - a last line without an ending gets one, and the one lone dot line is the last.
//!
//! It never allocates by itself beyond what it appends to the caller's buffer: at most twice the chunk, plus 5 bytes.
//! Used by qmail-remote.

const CRLF: &[u8] = b"\r\n";

/// Encodes one message; a value is good for one body.
#[derive(Debug, Clone)]
pub struct Encoder {
    line: Line,
    /// Dots are doubled, and one alone is the end: not where the length is said before (QMTP).
    has_dots: bool,
}

/// Where in a line the encoder stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Nothing of the line is written yet.
    Start,
    Inside,
    /// A CR was the last byte: its CRLF is written, and a LF that follows belongs to it.
    AfterCr,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    #[must_use]
    pub fn new() -> Self {
        Self { line: Line::Start, has_dots: true }
    }

    /// For a protocol that says the length of a text before it (QMTP): the same whole lines, [`Survey::size`] bytes.
    #[must_use]
    pub fn counted() -> Self {
        Self { has_dots: false, ..Self::new() }
    }

    /// Appends the wire form of the next `chunk` of the body to `out`.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        out.reserve(chunk.len() + chunk.len() / 16 + CRLF.len());
        let mut rest = chunk;
        if self.line == Line::AfterCr && !rest.is_empty() {
            self.line = Line::Start;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = memchr::memchr2(b'\r', b'\n', rest) {
            let (text, tail) = rest.split_at(end);
            self.text(text, out);
            out.extend_from_slice(CRLF);
            self.line = Line::Start;
            rest = match tail {
                [b'\r', b'\n', more @ ..] | [b'\n', more @ ..] => more,
                [_, more @ ..] if !more.is_empty() => more,
                _ => {
                    self.line = Line::AfterCr;
                    return;
                }
            };
        }
        self.text(rest, out);
    }

    /// Ends the last line if it is open and appends the lone dot line.
    pub fn finish(self, out: &mut Vec<u8>) {
        if self.line == Line::Inside {
            out.extend_from_slice(CRLF);
        }
        if self.has_dots {
            out.extend_from_slice(b".\r\n");
        }
    }

    /// Text without CR or LF; RFC 5321 §4.5.2: a dot at the start of a line is doubled.
    fn text(&mut self, text: &[u8], out: &mut Vec<u8>) {
        let Some(first) = text.first() else { return };
        if self.has_dots && self.line == Line::Start && *first == b'.' {
            out.push(b'.');
        }
        out.extend_from_slice(text);
        self.line = Line::Inside;
    }
}

/// What a client needs to know of a body before MAIL: its size on the wire and whether it has bytes over 127.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survey {
    /// Octets with CRLF line ends, without doubled dots and without the lone dot (RFC 1870 §5).
    pub size: u64,
    /// A byte over 127 anywhere: BODY=8BITMIME is said if the peer offers it (RFC 6152).
    pub eight_bit: bool,
    /// A byte over 127 in the header section (RFC 6532): SMTPUTF8 may be needed.
    pub eight_bit_header: bool,
    line: Line,
    in_header: bool,
}

impl Default for Survey {
    fn default() -> Self {
        Self::new()
    }
}

impl Survey {
    #[must_use]
    pub fn new() -> Self {
        Self { size: 0, eight_bit: false, eight_bit_header: false, line: Line::Start, in_header: true }
    }

    /// Takes the next chunk of the body into account.
    pub fn push(&mut self, chunk: &[u8]) {
        if self.in_header {
            self.push_header(chunk);
        } else {
            self.eight_bit = self.eight_bit || !chunk.is_ascii();
            self.count(chunk);
        }
    }

    /// The size once the whole body was seen: an open last line gets its CRLF.
    #[must_use]
    pub fn finish(mut self) -> Self {
        if self.line == Line::Inside {
            self.size = self.size.saturating_add(2);
            self.line = Line::Start;
        }
        self
    }

    /// Byte by byte until the empty line; a header is small.
    fn push_header(&mut self, chunk: &[u8]) {
        for (at, byte) in chunk.iter().enumerate() {
            let empty_line = self.line == Line::Start && matches!(byte, b'\r' | b'\n');
            self.count(std::slice::from_ref(byte));
            if !byte.is_ascii() {
                self.eight_bit = true;
                self.eight_bit_header = true;
            }
            if empty_line {
                self.in_header = false;
                self.push(chunk.get(at.saturating_add(1)..).unwrap_or_default());
                return;
            }
        }
    }

    fn count(&mut self, chunk: &[u8]) {
        let Some(last) = chunk.last() else { return };
        let mut size = chunk.len();
        let mut before = if self.line == Line::AfterCr { 0 } else { usize::MAX };
        for at in memchr::memchr2_iter(b'\r', b'\n', chunk) {
            // A LF right behind a CR belongs to it: the pair is two octets already. Any other line end grows by one.
            let pair = chunk.get(at) == Some(&b'\n') && before == at;
            size = if pair { size.saturating_sub(1) } else { size.saturating_add(1) };
            before = if chunk.get(at) == Some(&b'\r') { at.saturating_add(1) } else { usize::MAX };
        }
        self.size = self.size.saturating_add(size as u64);
        self.line = match last {
            b'\r' => Line::AfterCr,
            b'\n' => Line::Start,
            _ => Line::Inside,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(chunks: &[&[u8]]) -> Vec<u8> {
        let (mut encoder, mut out) = (Encoder::new(), Vec::new());
        for chunk in chunks {
            let before = out.len();
            encoder.push(chunk, &mut out);
            assert!(out.len() - before <= chunk.len() * 2 + 1);
        }
        encoder.finish(&mut out);
        out
    }

    fn survey(chunks: &[&[u8]]) -> Survey {
        let mut survey = Survey::new();
        for chunk in chunks {
            survey.push(chunk);
        }
        survey.finish()
    }

    /// The rule in five lines, byte by byte: line ends are normalised, then each line is written with its dot doubled.
    fn reference(body: &[u8]) -> Vec<u8> {
        let text = String::from_utf8(body.to_vec()).unwrap().replace("\r\n", "\n").replace('\r', "\n");
        let lines = text.strip_suffix('\n').unwrap_or(&text).split('\n').filter(|_| !text.is_empty());
        let mut out: String = lines.map(|line| format!("{}{line}\r\n", if line.starts_with('.') { "." } else { "" })).collect();
        out.push_str(".\r\n");
        out.into_bytes()
    }

    /// What a strict receiver makes of DATA: bare CR or LF never, the first lone dot ends it, dots are taken off.
    fn receive(wire: &[u8]) -> (Vec<u8>, usize) {
        let (mut at, mut body) = (0, Vec::new());
        loop {
            let end = at + wire[at..].windows(2).position(|w| w == b"\r\n").expect("every line ends in CRLF");
            let line = &wire[at..end];
            assert!(!line.contains(&b'\r') && !line.contains(&b'\n'), "bare CR or LF: {}", wire.escape_ascii());
            at = end + 2;
            if line == b"." {
                return (body, at);
            }
            body.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
            body.push(b'\n');
        }
    }

    #[test]
    fn all_strings_up_to_eight_at_every_split() {
        let alphabet = *b"\r\n.x";
        for len in 0..=8u32 {
            for number in 0..4usize.pow(len) {
                let body: Vec<u8> = (0..len).map(|at| alphabet[number / 4usize.pow(at) % 4]).collect();
                let wire = encode(&[&body]);
                assert_eq!(wire, reference(&body), "{}", body.escape_ascii());
                let (received, consumed) = receive(&wire);
                assert_eq!(consumed, wire.len(), "ends once: {}", body.escape_ascii());
                let size = received.len() + received.iter().filter(|b| **b == b'\n').count();
                let whole = survey(&[&body]);
                assert_eq!(whole.size, size as u64, "{}", body.escape_ascii());
                for cut in 1..body.len() {
                    let (a, b) = body.split_at(cut);
                    assert_eq!(encode(&[a, b]), wire, "{} | {}", a.escape_ascii(), b.escape_ascii());
                    assert_eq!(survey(&[a, b]).size, whole.size);
                }
                let single: Vec<&[u8]> = body.chunks(1).collect();
                assert_eq!(encode(&single), wire);
                assert_eq!(survey(&single), whole);
            }
        }
    }

    #[test]
    fn table() {
        for (body, wire) in [
            (&b""[..], &b".\r\n"[..]),
            (b"\n", b"\r\n.\r\n"),
            (b"a", b"a\r\n.\r\n"),
            (b".", b"..\r\n.\r\n"),
            (b"Subject: x\n\n.\n", b"Subject: x\r\n\r\n..\r\n.\r\n"),
            (b"a\r.\r\nMAIL FROM:<>\n", b"a\r\n..\r\nMAIL FROM:<>\r\n.\r\n"),
            (b"a\r.\rb", b"a\r\n..\r\nb\r\n.\r\n"),
            (b"a\r\r\n.b\n", b"a\r\n\r\n..b\r\n.\r\n"),
            (b"x.\n..\n", b"x.\r\n...\r\n.\r\n"),
        ] {
            assert_eq!(encode(&[body]).escape_ascii().to_string(), wire.escape_ascii().to_string());
        }
    }

    #[test]
    fn survey_looks_at_header_and_body_apart() {
        for (body, eight_bit, eight_bit_header) in [
            (&b"A: b\n\nc\n"[..], false, false),
            (b"A: b\n\n\xff\n", true, false),
            (b"A: \xc3\xa4\n\nb\n", true, true),
            (b"\n\xff", true, false),
            (b"A: b\r\n\r\n\xff", true, false),
            (b"A: b\n\xff", true, true),
        ] {
            let single: Vec<&[u8]> = body.chunks(1).collect();
            for found in [survey(&[body]), survey(&single)] {
                assert_eq!((found.eight_bit, found.eight_bit_header), (eight_bit, eight_bit_header), "{}", body.escape_ascii());
            }
        }
    }
}
