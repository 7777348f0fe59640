//! Replies of remote servers (RFC 5321 §4.2), read with bounds and without trust.
//!
//! [`Replies`] takes bytes as they arrive and gives whole replies. Guarantees: at most [`LINE_LEN_MAX`] + 1 bytes of a line and
//! [`TEXT_LEN_MAX`] bytes of text are ever held; what goes beyond is read and dropped, since it is the code that counts: a server that
//! talks much has taken the message all the same. All lines of a reply have one code; the text is UTF-8 in lines, without control
//! characters but TAB (those, and what is no UTF-8, are `?`). A line may end in a bare LF, as qmail reads it: replies carry no
//! commands, so nothing can be smuggled that way.
//! [`Offers`] is what an EHLO reply announces. Used by qmail-remote.

use std::fmt;

use wire::escape;

/// Kept of a reply line, in bytes; RFC 5321 §4.5.3.1.5 allows 512, real servers send more.
pub const LINE_LEN_MAX: usize = TEXT_LEN_MAX;
/// Longest reply, in bytes with the ends of its lines: nobody says more who has something to say.
pub const REPLY_LEN_MAX: usize = 1 << 20;
/// Text kept of one reply, in bytes, as the classic qmail-remote has it; lines beyond are checked and dropped.
pub const TEXT_LEN_MAX: usize = 5000;

/// Why bytes are no reply. The connection cannot go on; always temporary, the message may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyError {
    /// Over [`REPLY_LEN_MAX`].
    TooLong,
    /// A line without a code of 200 to 599 followed by a space, a hyphen or the line's end.
    Malformed,
    /// The lines of one reply have different codes.
    Inconsistent,
}

impl ReplyError {
    /// What a strange server says never makes a message fail for good.
    #[must_use]
    pub fn is_temporary(self) -> bool {
        true
    }
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "reply too long",
            Self::Malformed => "not an SMTP reply",
            Self::Inconsistent => "reply lines have different codes",
        })
    }
}

impl std::error::Error for ReplyError {}

/// An enhanced status code, `class.subject.detail` (RFC 3463); its class is the first digit of the reply code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enhanced {
    pub class: u8,
    pub subject: u16,
    pub detail: u16,
}

impl Enhanced {
    /// The code at the start of `text`, if one stands there whole: followed by a space or by nothing.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let end = memchr::memchr2(b' ', b'\t', text).unwrap_or(text.len());
        let mut parts = text.get(..end)?.split(|b| *b == b'.');
        let class = match parts.next()? {
            [class @ (b'2' | b'4' | b'5')] => class - b'0',
            _ => return None,
        };
        let found = Self { class, subject: number(parts.next()?)?, detail: number(parts.next()?)? };
        parts.next().is_none().then_some(found)
    }
}

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// RFC 3463 §2: one to three digits without leading zeros.
fn number(digits: &[u8]) -> Option<u16> {
    let padded = digits.len() > 1 && digits.first() == Some(&b'0');
    if digits.is_empty() || digits.len() > 3 || padded || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0')))
}

/// One whole reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    enhanced: Option<Enhanced>,
    text: String,
}

impl Reply {
    /// 200 to 599.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The enhanced status code of the first line, when its class agrees with the reply code (RFC 2034 §4).
    #[must_use]
    pub fn enhanced(&self) -> Option<Enhanced> {
        self.enhanced
    }

    /// The lines as sent, codes and all, joined by LF without a last one; no control characters but LF and TAB, at most
    /// [`TEXT_LEN_MAX`] bytes.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// 2xx?
    #[must_use]
    pub fn is_positive(&self) -> bool {
        self.code < 300
    }

    /// 5xx?
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.code >= 500
    }
}

/// Collects replies from bytes in any chunks.
#[derive(Debug, Default)]
pub struct Replies {
    /// The front of the line under way, and one byte more: it may be a CR.
    line: Vec<u8>,
    /// The line is longer than that.
    is_cut: bool,
    /// Bytes of the reply under way.
    len: usize,
    /// The reply under way: its code and its text so far.
    part: Option<Reply>,
}

impl Replies {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the front of `input` up to the end of the next reply; `None` when `input` is used up before that.
    ///
    /// # Errors
    /// [`ReplyError`]; the stream has no meaning after it.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Reply, ReplyError>> {
        loop {
            let found = memchr::memchr(b'\n', input);
            let (piece, rest) = match found {
                Some(lf) => (input.get(..lf)?, input.get(lf.checked_add(1)?..)?),
                None => (*input, &[][..]),
            };
            *input = rest;
            if let Err(error) = self.push(piece, found.is_some()) {
                return Some(Err(error));
            }
            found?;
            match self.take() {
                Ok(None) => {}
                Ok(Some(reply)) => return Some(Ok(reply)),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Is a reply begun and not ended?
    #[must_use]
    pub fn is_inside(&self) -> bool {
        self.len > 0
    }

    /// Keeps as much of a line as is shown of it.
    fn push(&mut self, piece: &[u8], ends: bool) -> Result<(), ReplyError> {
        self.len = self.len.saturating_add(piece.len()).saturating_add(usize::from(ends));
        if self.len > REPLY_LEN_MAX {
            return Err(ReplyError::TooLong);
        }
        let room = LINE_LEN_MAX.saturating_add(1).saturating_sub(self.line.len());
        self.is_cut |= piece.len() > room;
        self.line.extend_from_slice(piece.get(..room).unwrap_or(piece));
        Ok(())
    }

    /// A line has ended.
    fn take(&mut self) -> Result<Option<Reply>, ReplyError> {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::take(&mut self.is_cut) && line.last() == Some(&b'\r') {
            line.pop();
        }
        line.truncate(LINE_LEN_MAX);
        let (code, last) = code_of(&line).ok_or(ReplyError::Malformed)?;
        let mut reply = match self.part.take() {
            Some(reply) if reply.code != code => return Err(ReplyError::Inconsistent),
            Some(reply) => reply,
            None => {
                let enhanced = Enhanced::parse(line.get(4..).unwrap_or_default());
                let enhanced = enhanced.filter(|found| u16::from(found.class) == code / 100);
                Reply { code, enhanced, text: String::new() }
            }
        };
        keep(&mut reply.text, &line);
        if last {
            self.len = 0;
            return Ok(Some(reply));
        }
        self.part = Some(reply);
        Ok(None)
    }
}

/// The code of a line and whether it is the last of its reply (RFC 5321 §4.2.1).
fn code_of(line: &[u8]) -> Option<(u16, bool)> {
    let (digits, rest) = line.split_at_checked(3)?;
    let last = match rest.first() {
        Some(b'-') => false,
        Some(b' ') | None => true,
        Some(_) => return None,
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    (200..=599).contains(&code).then_some((code, last))
}

/// Appends a line while there is room; a line is kept whole or cut at the bound.
fn keep(text: &mut String, line: &[u8]) {
    if text.len() >= TEXT_LEN_MAX {
        return;
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&escape::readable(line));
    text.truncate(text.floor_char_boundary(TEXT_LEN_MAX));
}

/// What a server announced after EHLO (RFC 5321 §4.1.1.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offers {
    /// SIZE (RFC 1870): `Some(0)` is offered without a limit.
    pub size_max: Option<u64>,
    pub eight_bit_mime: bool,
    pub pipelining: bool,
    pub smtputf8: bool,
    pub chunking: bool,
    pub enhanced_status_codes: bool,
    pub starttls: bool,
    /// RFC 8689.
    pub requiretls: bool,
    /// Postfix' XVERP: the server expands `XVERP=xy` itself.
    pub xverp: bool,
    /// Reports as the sender wants them (RFC 3461).
    pub dsn: bool,
    /// DELIVERBY (RFC 2852) and the least time in seconds for mode R, 0 where none is named.
    pub deliver_by_min_s: Option<u64>,
    /// MT-PRIORITY (RFC 6710).
    pub priority: bool,
    /// LIMITS RCPTMAX and MAILMAX (RFC 9422 §4), never 0.
    pub recipients_max: Option<u64>,
    pub messages_max: Option<u64>,
    /// The mechanism names after AUTH, upper case, separated by one space.
    pub auth: String,
}

impl Offers {
    /// Reads an EHLO reply; unknown keywords and malformed parameters are passed over.
    #[must_use]
    pub fn parse(reply: &Reply) -> Self {
        let mut offers = Self::default();
        for line in reply.text.lines().skip(1) {
            let line = line.get(4..).unwrap_or_default().to_ascii_uppercase();
            let mut words = line.split_ascii_whitespace();
            if let Some(keyword) = words.next() {
                offers.take(keyword, words);
            }
        }
        offers
    }

    fn take<'a>(&mut self, keyword: &'a str, mut words: impl Iterator<Item = &'a str>) {
        match keyword {
            "SIZE" => self.size_max = Some(words.next().map_or(0, |n| n.parse().unwrap_or(0))),
            "8BITMIME" => self.eight_bit_mime = true,
            "PIPELINING" => self.pipelining = true,
            "SMTPUTF8" => self.smtputf8 = true,
            "CHUNKING" => self.chunking = true,
            "ENHANCEDSTATUSCODES" => self.enhanced_status_codes = true,
            "STARTTLS" => self.starttls = true,
            "REQUIRETLS" => self.requiretls = true,
            "XVERP" => self.xverp = true,
            "DSN" => self.dsn = true,
            "DELIVERBY" => self.deliver_by_min_s = Some(words.next().map_or(0, min_by_time)),
            "MT-PRIORITY" => self.priority = true,
            "LIMITS" => words.for_each(|word| self.take_limit(word)),
            "AUTH" => self.take_mechanisms(words),
            // The form of a draft, still sent for old clients.
            _ => {
                if let Some(first) = keyword.strip_prefix("AUTH=") {
                    self.take_mechanisms(std::iter::once(first).chain(words));
                }
            }
        }
    }

    fn take_limit(&mut self, word: &str) {
        let Some((name, value)) = word.split_once('=') else { return };
        // RFC 9422 §4: six digits without leading zeros at most; anything else is no limit we could trust.
        let value = value.parse::<u64>().ok().filter(|n| (1..=999_999).contains(n));
        match name {
            "RCPTMAX" => self.recipients_max = value,
            "MAILMAX" => self.messages_max = value,
            _ => {}
        }
    }

    fn take_mechanisms<'a>(&mut self, words: impl Iterator<Item = &'a str>) {
        for word in words.filter(|word| !word.is_empty()) {
            if !self.auth.split(' ').any(|known| known == word) {
                if !self.auth.is_empty() {
                    self.auth.push(' ');
                }
                self.auth.push_str(word);
            }
        }
    }
}

/// `[1*9DIGIT] *( "," extension-token )` (RFC 2852 §4); what cannot be read counts as the largest, so that nothing is promised on it.
fn min_by_time(word: &str) -> u64 {
    let digits = word.split(',').next().unwrap_or_default();
    if digits.is_empty() { 0 } else { digits.parse().unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &[&[u8]]) -> Vec<Result<Reply, ReplyError>> {
        let (mut replies, mut out) = (Replies::new(), Vec::new());
        for chunk in chunks {
            let mut rest = *chunk;
            while let Some(found) = replies.next(&mut rest) {
                let failed = found.is_err();
                out.push(found);
                if failed {
                    return out;
                }
            }
            assert!(rest.is_empty());
        }
        out
    }

    fn one(text: &[u8]) -> Result<Reply, ReplyError> {
        let mut all = read(&[text]);
        assert_eq!(all.len(), 1, "{}", text.escape_ascii());
        all.remove(0)
    }

    #[test]
    fn table_of_replies() {
        for (bytes, code, enhanced, text) in [
            (&b"250 ok\r\n"[..], 250, None, "250 ok"),
            (b"250 ok\n", 250, None, "250 ok"),
            (b"250\r\n", 250, None, "250"),
            (b"250 \r\n", 250, None, "250 "),
            (b"250-\r\n250\r\n", 250, None, "250-\n250"),
            (b"550-5.1.1 no\r\n550 5.1.1 such\r\n", 550, Some((5, 1, 1)), "550-5.1.1 no\n550 5.1.1 such"),
            (b"550 5.7.2\r\n", 550, Some((5, 7, 2)), "550 5.7.2"),
            (b"550 5.7.\r\n", 550, None, "550 5.7."),
            (b"550 5.7\r\n", 550, None, "550 5.7"),
            (b"550 5.7.2.1\r\n", 550, None, "550 5.7.2.1"),
            (b"550 5.7.2x\r\n", 550, None, "550 5.7.2x"),
            (b"550 5.07.2 x\r\n", 550, None, "550 5.07.2 x"),
            (b"550 5.0.0 x\r\n", 550, Some((5, 0, 0)), "550 5.0.0 x"),
            (b"550 5.999.999 x\r\n", 550, Some((5, 999, 999)), "550 5.999.999 x"),
            (b"550 5.1000.1 x\r\n", 550, None, "550 5.1000.1 x"),
            (b"550 4.7.2 x\r\n", 550, None, "550 4.7.2 x"),
            (b"550 3.7.2 x\r\n", 550, None, "550 3.7.2 x"),
            (b"550-5.7.2\r\n550\r\n", 550, Some((5, 7, 2)), "550-5.7.2\n550"),
            (b"200 a\0b\x1b[1m\tc\xff\rd\r\n", 200, None, "200 a?b?[1m\tc??d"),
            ("550 boîte\tpleine \u{202e}x\u{85}\r\n".as_bytes(), 550, None, "550 boîte\tpleine ?x?"),
            (b"550 bo\xc3\r\n", 550, None, "550 bo?"),
            (b"599 x\r\n", 599, None, "599 x"),
        ] {
            let reply = one(bytes).unwrap();
            let enhanced = enhanced.map(|(class, subject, detail)| Enhanced { class, subject, detail });
            assert_eq!((reply.code(), reply.enhanced(), reply.text()), (code, enhanced, text), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn table_of_errors() {
        use ReplyError::*;
        for (bytes, error) in [
            (&b"\r\n"[..], Malformed),
            (b"25\r\n", Malformed),
            (b"ok\r\n", Malformed),
            (b"250ok\r\n", Malformed),
            (b"250\tok\r\n", Malformed),
            (b"2x0 ok\r\n", Malformed),
            (b" 250 ok\r\n", Malformed),
            (b"199 ok\r\n", Malformed),
            (b"100 ok\r\n", Malformed),
            (b"600 ok\r\n", Malformed),
            (b"999 ok\r\n", Malformed),
            (b"000 ok\r\n", Malformed),
            (b"250-a\r\n550 b\r\n", Inconsistent),
            (b"250-a\r\nok\r\n", Malformed),
        ] {
            assert_eq!(one(bytes), Err(error), "{}", bytes.escape_ascii());
            assert!(error.is_temporary());
        }
    }

    /// The code counts, however much is said with it.
    #[test]
    fn bounds() {
        let long = |len: usize| [b"250 ".as_slice(), &vec![b'x'; len - 4], b"\r\n"].concat();
        for len in [LINE_LEN_MAX - 1, LINE_LEN_MAX, LINE_LEN_MAX + 1, LINE_LEN_MAX + 2, 100_000, REPLY_LEN_MAX - 2] {
            let reply = one(&long(len)).unwrap();
            assert_eq!((reply.code(), reply.text().len()), (250, len.min(LINE_LEN_MAX)), "{len}");
            let (head, tail) = (long(len), b"250 next\r\n");
            let read = read(&[&head[..len - 1], &head[len - 1..], tail]);
            assert_eq!(read, vec![Ok(reply), one(tail)], "{len}");
        }
        assert_eq!(one(&long(REPLY_LEN_MAX - 1)), Err(ReplyError::TooLong));
        assert_eq!(one(&vec![b'2'; REPLY_LEN_MAX + 1]), Err(ReplyError::TooLong));
        let lines = |n: usize| [b"250-x\r\n".repeat(n - 1), b"250 x\r\n".to_vec()].concat();
        let most = REPLY_LEN_MAX / b"250-x\r\n".len();
        for n in [100, 101, 1000, most] {
            let reply = one(&lines(n)).unwrap();
            assert_eq!((reply.code(), reply.text().len()), (250, (6 * n - 1).min(TEXT_LEN_MAX)), "{n}");
        }
        assert_eq!(one(&lines(most + 1)), Err(ReplyError::TooLong));
        // The bound is that of one reply.
        assert_eq!(read(&[&lines(most), &lines(most)]).iter().filter(|reply| reply.is_ok()).count(), 2);
        let wide = [b"250-".to_vec(), "é".repeat(1000).into_bytes(), b"\r\n".to_vec()].concat();
        let reply = one(&[wide.repeat(99), b"250 end\r\n".to_vec()].concat()).unwrap();
        assert!((TEXT_LEN_MAX - 1..=TEXT_LEN_MAX).contains(&reply.text().len()));
    }

    #[test]
    fn any_chunking_gives_the_same_replies() {
        let text = b"220 hi\r\n250-a\n250 5.1.1 b\r\n550 5.7.2\r\n421\r\n250-a\r\n251 b\r\n";
        let whole = read(&[text]);
        assert_eq!(whole.len(), 5);
        assert!(whole.last().unwrap().is_err());
        for cut in 0..text.len() {
            let (a, b) = text.split_at(cut);
            assert_eq!(read(&[a, b]), whole);
        }
        assert_eq!(read(&text.chunks(1).collect::<Vec<_>>()), whole);
    }

    #[test]
    fn table_of_offers() {
        let text = b"250-mx.example\r\n250-SIZE 35882577\r\n250-8bitmime\r\n250-PIPELINING\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n\
            250-ENHANCEDSTATUSCODES\r\n250-STARTTLS\r\n250-DSN\r\n250-XVERP\r\n250-LIMITS RCPTMAX=20 MAILMAX=5 X=1 Y\r\n\
            250-AUTH PLAIN LOGIN\r\n250-AUTH=LOGIN CRAM-MD5\r\n250\r\n";
        let all = Offers {
            size_max: Some(35_882_577),
            eight_bit_mime: true,
            pipelining: true,
            smtputf8: true,
            chunking: true,
            enhanced_status_codes: true,
            starttls: true,
            requiretls: false,
            xverp: true,
            dsn: true,
            deliver_by_min_s: None,
            priority: false,
            recipients_max: Some(20),
            messages_max: Some(5),
            auth: "PLAIN LOGIN CRAM-MD5".to_owned(),
        };
        assert_eq!(Offers::parse(&one(text).unwrap()), all);
        for (line, size_max, recipients_max) in [
            ("SIZE", Some(0), None),
            ("SIZE 0", Some(0), None),
            ("SIZE -1", Some(0), None),
            ("SIZE 99999999999999999999999", Some(0), None),
            ("SIZE=5", None, None),
            ("LIMITS RCPTMAX=0", None, None),
            ("LIMITS RCPTMAX=1000000", None, None),
            ("LIMITS RCPTMAX", None, None),
            ("LIMITS =5 RCPTMAX=1", None, Some(1)),
            ("PIPELININGX", None, None),
        ] {
            let found = Offers::parse(&one(format!("250-h\r\n250 {line}\r\n").as_bytes()).unwrap());
            assert_eq!(found, Offers { size_max, recipients_max, ..Offers::default() }, "{line}");
        }
        for (line, deliver_by_min_s) in [
            ("DELIVERBY", Some(0)),
            ("DELIVERBY 60", Some(60)),
            ("DELIVERBY 60,x", Some(60)),
            ("DELIVERBY ,x", Some(0)),
            ("DELIVERBY x", Some(u64::MAX)),
        ] {
            let found = Offers::parse(&one(format!("250-h\r\n250-MT-PRIORITY MIXER\r\n250 {line}\r\n").as_bytes()).unwrap());
            assert_eq!(found, Offers { deliver_by_min_s, priority: true, ..Offers::default() }, "{line}");
        }
        // The first line names the host; a keyword there is none.
        assert_eq!(Offers::parse(&one(b"250 PIPELINING\r\n").unwrap()), Offers::default());
    }
}
