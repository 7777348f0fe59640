//! Tokens of a structured header field (RFC 822 §3.3, obsolete forms of RFC 5322 §4 included), read, written back and folded.
//!
//! Reading fails only on what has no end (an open comment, quoted string or literal), on a `)` or `]` that nothing opened, on a NUL,
//! and beyond [`TOKENS_MAX`]. Comments nest as deep as they like: depth is a counter, nothing recurses.
//! What [`unparse`] writes reads back as the same tokens and holds no CR and no LF but those of its own folds.
//! Deviations from the classic token822, all so that written text is well formed: a line end inside a quoted string, comment or literal
//! is dropped (unfolded), never written as `\` LF; CRs are dropped; no fold leaves a line of blanks alone.
//! Used by the qmail-inject logic ([`crate::inject`]).

use std::borrow::Cow;

/// Most tokens in one field: 170,000 addresses fit, and hostile text (`a,a,…`, each word completed to a whole address) stays far
/// below the limit of the process (sandbox::table::TOOL).
pub const TOKENS_MAX: usize = 1 << 20;

/// The kind of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Atom,
    /// A quoted string, its text without quotes and backslashes.
    Quote,
    /// A domain literal, its text without brackets.
    Literal,
    /// A comment, its text without parentheses and backslashes.
    Comment,
    Left,
    Right,
    At,
    Comma,
    Semi,
    Colon,
    Dot,
}

/// A token; `text` is empty for the special characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: Cow<'a, [u8]>,
}

impl<'a> Token<'a> {
    /// A special character.
    #[must_use]
    pub fn special(kind: Kind) -> Self {
        Self { kind, text: Cow::Borrowed(&[]) }
    }

    /// A token with text.
    #[must_use]
    pub fn text(kind: Kind, text: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { kind, text: text.into() }
    }

    /// The character of a special token; none for those with text.
    fn special_byte(kind: Kind) -> Option<u8> {
        Some(match kind {
            Kind::Left => b'<',
            Kind::Right => b'>',
            Kind::At => b'@',
            Kind::Comma => b',',
            Kind::Semi => b';',
            Kind::Colon => b':',
            Kind::Dot => b'.',
            Kind::Atom | Kind::Quote | Kind::Literal | Kind::Comment => return None,
        })
    }
}

/// Why text cannot be read as tokens. Permanent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unparsable {
    /// Something has no end, or an end without a start.
    Form,
    /// A NUL.
    Nul,
    /// More than [`TOKENS_MAX`].
    TooLong,
}

/// Reads `text` into tokens.
///
/// # Errors
/// [`Unparsable`], see the head of the file.
pub fn parse(text: &[u8]) -> Result<Vec<Token<'_>>, Unparsable> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let (token, left) = match first {
            b' ' | b'\t' | b'\r' | b'\n' => {
                rest = after;
                continue;
            }
            b'.' => (Token::special(Kind::Dot), after),
            b',' => (Token::special(Kind::Comma), after),
            b'@' => (Token::special(Kind::At), after),
            b'<' => (Token::special(Kind::Left), after),
            b'>' => (Token::special(Kind::Right), after),
            b':' => (Token::special(Kind::Colon), after),
            b';' => (Token::special(Kind::Semi), after),
            b'(' => enclosed(Kind::Comment, after)?,
            b'"' => enclosed(Kind::Quote, after)?,
            b'[' => enclosed(Kind::Literal, after)?,
            b')' | b']' => return Err(Unparsable::Form),
            _ => atom(rest)?,
        };
        if tokens.len() >= TOKENS_MAX {
            return Err(Unparsable::TooLong);
        }
        tokens.push(token);
        rest = left;
    }
    Ok(tokens)
}

/// The rest of a comment, quoted string or literal whose opening byte is gone, and what follows its end.
fn enclosed(kind: Kind, input: &[u8]) -> Result<(Token<'_>, &[u8]), Unparsable> {
    let close = match kind {
        Kind::Comment => b')',
        Kind::Quote => b'"',
        _ => b']',
    };
    let mut text = Vec::new();
    let mut depth = 1usize;
    let mut rest = input;
    loop {
        let (&byte, after) = rest.split_first().ok_or(Unparsable::Form)?;
        rest = after;
        match byte {
            b'\\' => {
                let (&escaped, after) = rest.split_first().ok_or(Unparsable::Form)?;
                rest = after;
                push_text(escaped, &mut text)?;
            }
            // The parentheses of a nested comment are not part of the text: they would come back escaped.
            b'(' if kind == Kind::Comment => depth = depth.saturating_add(1),
            byte if byte == close => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Ok((Token::text(kind, text), rest));
                }
            }
            byte => push_text(byte, &mut text)?,
        }
    }
}

fn push_text(byte: u8, text: &mut Vec<u8>) -> Result<(), Unparsable> {
    match byte {
        0 => return Err(Unparsable::Nul),
        b'\r' | b'\n' => {}
        byte => text.push(byte),
    }
    Ok(())
}

fn ends_atom(byte: u8) -> bool {
    b" \t\r\n([\"<>;:@,.".contains(&byte)
}

/// An atom at the start of `input`, and what follows. One that holds a byte no atom may hold is given as a quoted string.
fn atom(input: &[u8]) -> Result<(Token<'_>, &[u8]), Unparsable> {
    let end = input.iter().position(|b| ends_atom(*b) || *b == b'\\').unwrap_or(input.len());
    let (plain, mut rest) = input.split_at(end);
    let mut text = Cow::Borrowed(plain);
    while let Some((&byte, after)) = rest.split_first() {
        match (byte, after.split_first()) {
            (b'\\', Some((&escaped, after))) => {
                push_text(escaped, text.to_mut())?;
                rest = after;
            }
            (b'\\', None) => rest = after,
            (byte, _) if ends_atom(byte) => break,
            (byte, _) => {
                text.to_mut().push(byte);
                rest = after;
            }
        }
    }
    if text.contains(&0) {
        return Err(Unparsable::Nul);
    }
    // `a\ b` is one word with a blank in it: without quotes it would read back as two.
    let is_atom_byte = |b: &u8| b.is_ascii_graphic() && !ends_atom(*b) && !b")]\\".contains(b);
    let needs_quotes = text.is_empty() || !text.iter().all(is_atom_byte);
    Ok((Token { kind: if needs_quotes { Kind::Quote } else { Kind::Atom }, text }, rest))
}

/// Must a blank stand between these two tokens?
fn needs_blank(before: Option<Kind>, next: Kind) -> bool {
    let is_word = |kind| matches!(kind, Kind::Atom | Kind::Quote | Kind::Literal | Kind::Comment);
    match before {
        None => false,
        Some(Kind::Colon | Kind::Comma) => true,
        Some(before) => next == Kind::Left || (is_word(before) && is_word(next)),
    }
}

fn push_escaped(text: &[u8], out: &mut Vec<u8>) {
    for &b in text {
        match b {
            b'"' | b'[' | b']' | b'(' | b')' | b'\\' => out.extend_from_slice(&[b'\\', b]),
            b'\r' | b'\n' | 0 => {}
            b => out.push(b),
        }
    }
}

fn push_token(token: &Token<'_>, out: &mut Vec<u8>) {
    if let Some(byte) = Token::special_byte(token.kind) {
        out.push(byte);
        return;
    }
    let (open, close): (&[u8], &[u8]) = match token.kind {
        Kind::Quote => (b"\"", b"\""),
        Kind::Literal => (b"[", b"]"),
        Kind::Comment => (b"(", b")"),
        _ => (b"", b""),
    };
    out.extend_from_slice(open);
    push_escaped(&token.text, out);
    out.extend_from_slice(close);
}

/// Lines under construction.
struct Folder {
    out: Vec<u8>,
    line: Vec<u8>,
    line_len_max: usize,
}

impl Folder {
    /// Adds a segment (text up to and with a comma) to the line, on a new line if it does not fit.
    fn add(&mut self, segment: &mut Vec<u8>) {
        let joined = self.line.len().saturating_add(segment.len()).saturating_add(2);
        if !self.line.is_empty() && !segment.is_empty() && joined > self.line_len_max {
            self.out.append(&mut self.line);
            self.out.push(b'\n');
            self.line.push(b' ');
        }
        self.line.append(segment);
    }
}

/// Writes a field, folded after commas so that a line is at most `line_len_max` − 2 bytes long where commas allow; ends in LF.
#[must_use]
pub fn unparse(tokens: &[Token<'_>], line_len_max: usize) -> Vec<u8> {
    let mut folder = Folder { out: Vec::new(), line: Vec::new(), line_len_max };
    let mut segment = Vec::new();
    let mut before = None;
    for token in tokens {
        if needs_blank(before, token.kind) {
            segment.push(b' ');
        }
        push_token(token, &mut segment);
        before = Some(token.kind);
        if token.kind == Kind::Comma {
            folder.add(&mut segment);
        }
    }
    folder.add(&mut segment);
    folder.out.append(&mut folder.line);
    folder.out.push(b'\n');
    folder.out
}

/// The address that tokens spell, unquoted; comments are no part of it.
#[must_use]
pub fn unquote(tokens: &[Token<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for token in tokens {
        match (token.kind, Token::special_byte(token.kind)) {
            (Kind::Comment, _) => {}
            (Kind::Literal, _) => {
                out.push(b'[');
                out.extend_from_slice(&token.text);
                out.push(b']');
            }
            (_, Some(byte)) => out.push(byte),
            (_, None) => out.extend_from_slice(&token.text),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn again(text: &str) -> String {
        let tokens = parse(text.as_bytes()).unwrap();
        String::from_utf8_lossy(&unparse(&tokens, 80)).into_owned()
    }

    #[test]
    fn reads_and_writes_back() {
        for (text, written) in [
            ("To: a@b\n", "To: a@b\n"),
            ("To:a  @ b . c ,d\n", "To: a@b.c, d\n"),
            ("To: \"x y\" <a@b>\n", "To: \"x y\" <a@b>\n"),
            ("To: x y<a@b>z\n", "To: x y <a@b>z\n"),
            ("To: (a(b)c) d\n", "To: (abc) d\n"),
            ("To: (a\\)b)\n", "To: (a\\)b)\n"),
            ("To: \"a\\\"b\"\n", "To: \"a\\\"b\"\n"),
            ("To: a\\ b@c\n", "To: \"a b\"@c\n"),
            ("To: a)b\n", "To: \"a\\)b\"\n"),
            ("To: j\u{f6}rg\n", "To: \"j\u{f6}rg\"\n"),
            ("To: x@[1.2.3.4]\n", "To: x@[1.2.3.4]\n"),
            ("To: \"a\n b\"\n", "To: \"a b\"\n"),
            ("To: a\\\n", "To: a\n"),
            ("To: \\", "To: \"\"\n"),
            ("To: g: a, b;\n", "To: g: a, b;\n"),
            ("To:\n", "To:\n"),
            ("To: ,,a,\n", "To: , , a,\n"),
        ] {
            assert_eq!(again(text), written, "{text}");
        }
        for bad in ["To: (a", "To: \"a", "To: [a", "To: a )", "To: ]", "To: (a\\"] {
            assert_eq!(parse(bad.as_bytes()), Err(Unparsable::Form), "{bad:?}");
        }
        for bad in ["To: a\0b", "To: \"\0\""] {
            assert_eq!(parse(bad.as_bytes()), Err(Unparsable::Nul), "{bad:?}");
        }
    }

    #[test]
    fn folds_after_commas_only() {
        let text = format!("To: {}\n", ["abcdefgh@example.org"; 8].join(","));
        assert_eq!(
            again(&text),
            "To: abcdefgh@example.org, abcdefgh@example.org, abcdefgh@example.org,\n  abcdefgh@example.org, \
             abcdefgh@example.org, abcdefgh@example.org,\n  abcdefgh@example.org, abcdefgh@example.org\n"
        );
        let long = format!("To: {}@x\n", "y".repeat(500));
        assert_eq!(again(&long), long);
    }

    #[test]
    fn depth_costs_nothing() {
        let deep = [vec![b'('; 1 << 20], vec![b')'; 1 << 20]].concat();
        assert_eq!(parse(&deep).unwrap().len(), 1);
        assert_eq!(parse(&vec![b'('; 1 << 20]), Err(Unparsable::Form));
        assert_eq!(parse(&vec![b'.'; TOKENS_MAX + 1]), Err(Unparsable::TooLong));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(text in proptest::collection::vec(prop_oneof![
            Just(b'('), Just(b')'), Just(b'"'), Just(b'['), Just(b']'), Just(b'\\'), Just(b'<'), Just(b'>'), Just(b','), Just(b'@'),
            Just(b'.'), Just(b':'), Just(b';'), Just(b' '), Just(b'\n'), Just(b'\r'), Just(b'a'), Just(0xe9), Just(7u8)], 0..40)) {
            if let Ok(tokens) = parse(&text) {
                let written = unparse(&tokens, 20);
                prop_assert_eq!(parse(&written).unwrap(), tokens);
                prop_assert!(!written.contains(&b'\r'));
                let lines: Vec<_> = written.split(|b| *b == b'\n').collect();
                prop_assert!(lines.iter().skip(1).all(|l| l.is_empty() || l.starts_with(b" ")));
            }
        }
    }
}
