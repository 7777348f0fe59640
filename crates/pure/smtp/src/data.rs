//! The text of a message as it comes in by DATA or BDAT, decoded into qmail's form: lines that end in LF.
//!
//! Guarantees:
//! - Only CRLF.CRLF on the wire ends DATA (RFC 5321 §4.1.1.4, promise 2), in both modes and whatever bytes stand around it.
//!   The end of the DATA command's own line counts as the first CRLF.
//! - A bare CR or LF is noticed wherever it stands. It reads as the end of a line, before dots are taken off and before
//!   the header is looked at; the session refuses the message or, with `control/barelf` = normalize, keeps it like that.
//!   So `LF . LF` is a line that holds a dot, and the dot goes as it does from every line that starts with one: it is never
//!   the end. The decoder runs on after a fault, so that the end, and every fault, is found the same way for any chunking.
//! - Nothing is collected here: memory is a few dozen bytes, whatever the message. Whole lines are found with memchr and
//!   copied in one go.
//!
//! Never: refuses by itself, counts the session's own Received line, changes another byte (NULs and 8-bit bytes stay).
//! Standards: RFC 5321 §2.3.8, §4.1.1.4, §4.5.2, §6.3; RFC 3030. Used by [`crate::server`].

use memchr::memchr2;

/// Header fields named Received or Delivered-To that make a loop (qmail-smtpd's limit; RFC 5321 §6.3 asks for at least 100).
pub const HOPS_MAX: u32 = 100;
/// Bytes of a line kept to recognise a field name: `delivered-to`, some blanks of the obsolete syntax, the colon.
const FIELD_START_LEN: usize = 16;

/// What becomes of a message with a CR or LF that is not part of a CRLF (`control/barelf`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BareLf {
    /// 550 5.6.11, the rest of the message swallowed.
    #[default]
    Reject,
    /// It becomes the end of a line.
    Normalize,
}

/// How the end of the text is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// DATA: dots are stuffed, CRLF.CRLF ends it.
    Dots,
    /// BDAT: the client says how many bytes (RFC 3030). And a text of QMTP whose lines end in CRLF.
    Chunks,
    /// A text of QMTP whose lines end in LF. A CRLF ends one, too; a CR that stands alone is a bare one.
    Lines,
}

/// Why a message is refused; all of them permanent. If several hold, the first one in this order is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    BareLf,
    TooManyHops,
    TooLarge,
    LineTooLong,
}

/// Bounds of one message.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub barelf: BareLf,
    /// `control/databytes`, in bytes as stored; 0 is no bound.
    pub databytes: u64,
    /// Longest line in bytes, without its end.
    pub line_len_max: u64,
}

/// Where the decoder stands between two bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// At the start of a line; `crlf`: a CRLF on the wire stands before it, not a bare CR or LF.
    LineStart { crlf: bool },
    /// Behind a dot that started a line; the dot is dropped.
    Dot { crlf: bool },
    /// Behind a CR. `ends`: it follows CRLF and a dot, so that an LF now ends the text.
    Cr { ends: bool },
    /// Inside a line.
    Line,
}

/// Decodes one message.
#[derive(Debug)]
pub struct Decoder {
    framing: Framing,
    bounds: Bounds,
    at: At,
    bare: bool,
    long: bool,
    ended: bool,
    len: u64,
    line_len: u64,
    header: Header,
}

impl Decoder {
    #[must_use]
    pub fn new(framing: Framing, bounds: Bounds) -> Self {
        let at = At::LineStart { crlf: true };
        Self { framing, bounds, at, bare: false, long: false, ended: false, len: 0, line_len: 0, header: Header::default() }
    }

    /// Decodes `input` onto the end of `out` and says how many bytes it took: all, or those up to the end of the text.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> usize {
        out.reserve(input.len());
        let mut rest = input;
        while !self.ended {
            let Some(&first) = rest.first() else { break };
            match (self.at, first) {
                (At::LineStart { crlf }, b'.') if self.framing == Framing::Dots => {
                    self.at = At::Dot { crlf };
                    skip(&mut rest, 1);
                }
                (At::Dot { crlf }, b'\r') => {
                    self.at = At::Cr { ends: crlf };
                    skip(&mut rest, 1);
                }
                (At::Cr { ends }, b'\n') => {
                    skip(&mut rest, 1);
                    self.ended = ends;
                    if !ends {
                        self.end_line(true, out);
                    }
                }
                // Not skipped: the byte behind the bare CR starts the next line.
                (At::Cr { .. }, _) => self.end_bare(out),
                (At::LineStart { .. } | At::Dot { .. } | At::Line, _) => self.line(&mut rest, out),
            }
        }
        input.len().saturating_sub(rest.len())
    }

    /// Has CRLF.CRLF been taken?
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The last chunk is in: ends a line that has no end yet, so that a stored message always ends in LF.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        match self.at {
            At::Cr { .. } => self.end_bare(out),
            At::Line => self.end_line(true, out),
            At::LineStart { .. } | At::Dot { .. } => {}
        }
        self.ended = true;
    }

    /// What is wrong with the text so far; once something is, something stays wrong.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        let too_large = self.bounds.databytes != 0 && self.len > self.bounds.databytes;
        [
            (self.bare && self.bounds.barelf == BareLf::Reject, Fault::BareLf),
            (self.header.hops >= HOPS_MAX, Fault::TooManyHops),
            (too_large, Fault::TooLarge),
            (self.long, Fault::LineTooLong),
        ]
        .into_iter()
        .find_map(|(holds, fault)| holds.then_some(fault))
    }

    /// Bytes decoded so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies to the next CR or LF. While lines end in CRLF, as they should, and no dot follows, it goes on by itself: a text is
    /// mostly this loop.
    fn line(&mut self, rest: &mut &[u8], out: &mut Vec<u8>) {
        loop {
            self.at = At::Line;
            let Some(end) = memchr2(b'\r', b'\n', rest) else {
                self.text(rest, out);
                *rest = &[];
                return;
            };
            let (piece, behind) = rest.split_at_checked(end).unwrap_or_default();
            self.text(piece, out);
            match behind {
                [b'\r', b'\n', next @ ..] => {
                    self.end_line(true, out);
                    *rest = next;
                    if matches!(next, [] | [b'.', ..]) {
                        return;
                    }
                }
                [b'\r', next @ ..] => {
                    self.at = At::Cr { ends: false };
                    *rest = next;
                    return;
                }
                _ => {
                    self.end_lf(out);
                    skip(rest, end.saturating_add(1));
                    return;
                }
            }
        }
    }

    #[inline]
    fn text(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(piece);
        let len = piece.len() as u64;
        self.len = self.len.saturating_add(len);
        self.line_len = self.line_len.saturating_add(len);
        self.long |= self.line_len > self.bounds.line_len_max;
        if !self.header.is_over {
            self.header.text(piece);
        }
    }

    fn end_bare(&mut self, out: &mut Vec<u8>) {
        self.bare = true;
        self.end_line(false, out);
    }

    /// A LF without a CR before it.
    fn end_lf(&mut self, out: &mut Vec<u8>) {
        if self.framing == Framing::Lines { self.end_line(true, out) } else { self.end_bare(out) }
    }

    #[inline]
    fn end_line(&mut self, crlf: bool, out: &mut Vec<u8>) {
        out.push(b'\n');
        self.len = self.len.saturating_add(1);
        self.line_len = 0;
        if !self.header.is_over {
            self.header.end_line();
        }
        self.at = At::LineStart { crlf };
    }
}

fn skip(rest: &mut &[u8], n: usize) {
    *rest = rest.get(n..).unwrap_or_default();
}

/// Counts the hops in the header; not to be asked after the first empty line.
#[derive(Debug, Default)]
struct Header {
    is_over: bool,
    start: [u8; FIELD_START_LEN],
    start_len: usize,
    hops: u32,
}

impl Header {
    #[inline]
    fn text(&mut self, piece: &[u8]) {
        let free = self.start.get_mut(self.start_len..).unwrap_or_default();
        for (to, from) in free.iter_mut().zip(piece) {
            *to = *from;
            self.start_len = self.start_len.saturating_add(1);
        }
    }

    fn end_line(&mut self) {
        let start = self.start.get(..self.start_len).unwrap_or_default();
        self.is_over = start.is_empty();
        let name = start.split(|b| *b == b':').next().filter(|name| name.len() < start.len()).unwrap_or_default();
        let name = name.trim_ascii_end();
        if name.eq_ignore_ascii_case(b"received") || name.eq_ignore_ascii_case(b"delivered-to") {
            self.hops = self.hops.saturating_add(1);
        }
        self.start_len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Bounds = Bounds { barelf: BareLf::Reject, databytes: 0, line_len_max: u64::MAX };

    fn decode(framing: Framing, bounds: Bounds, chunks: &[&[u8]]) -> (Vec<u8>, usize, Option<Fault>, bool) {
        let mut decoder = Decoder::new(framing, bounds);
        let (mut out, mut taken) = (Vec::new(), 0);
        for chunk in chunks {
            taken += decoder.decode(chunk, &mut out);
        }
        let ended = decoder.has_ended();
        if framing != Framing::Dots {
            decoder.finish(&mut out);
        }
        assert_eq!(decoder.len(), out.len() as u64);
        (out, taken, decoder.fault(), ended)
    }

    #[test]
    fn data_cases() {
        for (wire, text, fault) in [
            (&b".\r\n"[..], &b""[..], None),
            (b"a\r\n.\r\n", b"a\n", None),
            (b"..\r\n.x\r\n...\r\n.\r\n", b".\nx\n..\n", None),
            (b"a\nb\r\n.\r\n", b"a\nb\n", Some(Fault::BareLf)),
            (b"a\rb\r\n.\r\n", b"a\nb\n", Some(Fault::BareLf)),
            (b"a\n.\nb\r\n.\r\n", b"a\n\nb\n", Some(Fault::BareLf)),
            (b"a\n.\r\nb\r\n.\r\n", b"a\n\nb\n", Some(Fault::BareLf)),
            (b"a\r\n.\nb\r\n.\r\n", b"a\n\nb\n", Some(Fault::BareLf)),
            (b"a\r\n.\rb\r\n.\r\n", b"a\n\nb\n", Some(Fault::BareLf)),
            (b"a\r.\r\nb\r\n.\r\n", b"a\n\nb\n", Some(Fault::BareLf)),
            (b"a\r\r\n.\r\n", b"a\n\n", Some(Fault::BareLf)),
            (b"a\r\n.\r\r\n.\r\n", b"a\n\n\n", Some(Fault::BareLf)),
            (b"\0\xff\r\n.\r\n", b"\0\xff\n", None),
        ] {
            let whole = decode(Framing::Dots, FREE, &[&[wire, b"QUIT"].concat()]);
            assert_eq!(whole, (text.to_vec(), wire.len(), fault, true), "{}", wire.escape_ascii());
            let single: Vec<&[u8]> = wire.chunks(1).collect();
            assert_eq!(decode(Framing::Dots, FREE, &single), whole, "{}", wire.escape_ascii());
        }
    }

    #[test]
    fn chunk_cases() {
        for (wire, text, fault) in [
            (&b""[..], &b""[..], None),
            (b"a", b"a\n", None),
            (b".\r\n.\r\nb\r\n", b".\n.\nb\n", None),
            (b"a\r\nb\r", b"a\nb\n", Some(Fault::BareLf)),
            (b"\n", b"\n", Some(Fault::BareLf)),
        ] {
            let whole = decode(Framing::Chunks, FREE, &[wire]);
            assert_eq!(whole, (text.to_vec(), wire.len(), fault, false), "{}", wire.escape_ascii());
            let single: Vec<&[u8]> = wire.chunks(1).collect();
            assert_eq!(decode(Framing::Chunks, FREE, &single), whole);
        }
    }

    #[test]
    fn line_cases() {
        for (wire, text, fault) in [
            (&b""[..], &b""[..], None),
            (b"a", b"a\n", None),
            (b"\n\na\n", b"\n\na\n", None),
            (b".\n.\n\nb\n", b".\n.\n\nb\n", None),
            (b"a\r\nb\r\n", b"a\nb\n", None),
            (b"a\rb\n", b"a\nb\n", Some(Fault::BareLf)),
            (b"a\r\r\nb\n", b"a\n\nb\n", Some(Fault::BareLf)),
            (b"a\r", b"a\n", Some(Fault::BareLf)),
            (b"\0\xff\n", b"\0\xff\n", None),
        ] {
            let whole = decode(Framing::Lines, FREE, &[wire]);
            assert_eq!(whole, (text.to_vec(), wire.len(), fault, false), "{}", wire.escape_ascii());
            let single: Vec<&[u8]> = wire.chunks(1).collect();
            assert_eq!(decode(Framing::Lines, FREE, &single), whole);
        }
        let lines = "Received: x\n".repeat(150);
        assert_eq!(decode(Framing::Lines, FREE, &[lines.as_bytes()]).2, Some(Fault::TooManyHops));
    }

    #[test]
    fn bounds_are_exact() {
        let bounds = Bounds { databytes: 4, line_len_max: 3, ..FREE };
        assert_eq!(decode(Framing::Dots, bounds, &[b"abc\r\n.\r\n"]).2, None);
        assert_eq!(decode(Framing::Dots, bounds, &[b"ab\r\nc\r\n.\r\n"]).2, Some(Fault::TooLarge));
        let bounds = Bounds { line_len_max: 3, ..FREE };
        assert_eq!(decode(Framing::Dots, bounds, &[b"abc\r\n..ab\r\n.\r\n"]).2, None);
        assert_eq!(decode(Framing::Dots, bounds, &[b"abcd\r\n.\r\n"]).2, Some(Fault::LineTooLong));
        assert_eq!(decode(Framing::Dots, bounds, &[b"ab", b"cd", b"\r\n.\r\n"]).2, Some(Fault::LineTooLong));
    }

    #[test]
    fn hops_are_fields_of_the_header_by_name_in_any_case() {
        let hops = |lines: &str| {
            let mut decoder = Decoder::new(Framing::Chunks, FREE);
            decoder.decode(lines.replace('\n', "\r\n").as_bytes(), &mut Vec::new());
            decoder.header.hops
        };
        assert_eq!(hops("Received: x\nRECEIVED:y\ndelivered-TO: z\nReceived : old\n"), 4);
        assert_eq!(hops("Received-SPF: x\nDelivered: y\nX-Received: z\n Received: folded\nreceived\n"), 0);
        assert_eq!(hops("A: b\n\nReceived: body\n"), 0);
        assert_eq!(hops(&"Received: x\n".repeat(150)), 150);
    }
}
