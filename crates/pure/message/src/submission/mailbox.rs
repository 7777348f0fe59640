//! A mailbox-list that every reader takes for the same (RFC 5322 §3.4, without groups and without any of §4).
//!
//! `a@b`, `a@b (words)`, `words <a@b>`, `"words" <a@b>`, several with commas between. Addresses are in one piece and unquoted. What is
//! shown beside one may hold an `@`, plain or within encoded words ([`words`]), only as another whole address: many readers show
//! nothing else.

use super::{Unclear, words};
use wire::quote::is_atext;
use wire::{Address, Domain};

/// What a list names.
#[derive(Debug, Default)]
pub(super) struct List {
    /// Mailboxes.
    pub(super) count: usize,
    /// Their addresses, and those that their names show.
    pub(super) addresses: Vec<Address>,
}

/// Reads the value of a field, unfolded.
pub(super) fn list(value: &[u8]) -> Result<List, Unclear> {
    // RFC 6532 wants UTF-8; in other bytes one reader sees an `@` where another sees none.
    if std::str::from_utf8(value).is_err() || value.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
        return Err(Unclear);
    }
    let (mut found, mut rest) = (List::default(), value);
    loop {
        mailbox(&mut rest, &mut found)?;
        match rest.split_first() {
            None => return Ok(found),
            Some((b',', behind)) if found.count < super::CLAIMS_MAX => rest = behind,
            Some(_) => return Err(Unclear),
        }
    }
}

fn mailbox(rest: &mut &[u8], found: &mut List) -> Result<(), Unclear> {
    let (mut shown, mut is_first) = (Vec::new(), true);
    let address = loop {
        skip_blanks(rest);
        match rest.first() {
            Some(b'<') => {
                skip(rest);
                let address = address(rest)?;
                expect(rest, b'>')?;
                break address;
            }
            Some(b'"') => quoted(rest, &mut shown)?,
            Some(_) => {
                let before = *rest;
                let word = take_while(rest, is_word_byte);
                match rest.first() {
                    // An address alone, or a name that holds an `@`: then it is no list.
                    Some(b'@') if is_first => {
                        *rest = before;
                        break address(rest)?;
                    }
                    _ if word.is_empty() => return Err(Unclear),
                    _ => shown.extend_from_slice(word),
                }
            }
            None => return Err(Unclear),
        }
        shown.push(b' ');
        is_first = false;
    };
    found.count = found.count.saturating_add(1);
    found.addresses.push(address);
    skip_blanks(rest);
    if rest.first() == Some(&b'(') {
        comment(rest, &mut shown)?;
        skip_blanks(rest);
    }
    found.addresses.extend(shown_address(&shown)?);
    Ok(())
}

/// A byte of a word in a name. Dots stand in names of people (RFC 5322 §4.1 allows it, and all readers take it).
fn is_word_byte(b: u8) -> bool {
    is_atext(b) || b == b'.'
}

/// An addr-spec in one piece: dot-atom `@` host name.
fn address(rest: &mut &[u8]) -> Result<Address, Unclear> {
    let local = take_while(rest, is_word_byte);
    expect(rest, b'@')?;
    let host = take_while(rest, |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_') || !b.is_ascii());
    // An encoded word may not be part of an address (RFC 2047 §5), and some readers decode it all the same.
    if local.split(|b| *b == b'.').any(<[u8]>::is_empty) || memchr::memmem::find(local, b"=?").is_some() {
        return Err(Unclear);
    }
    Domain::new(host).ok().filter(|_| !host.ends_with(b".")).ok_or(Unclear)?;
    Address::join(local, host).map_err(|_| Unclear)
}

/// A quoted string; its text goes to `shown`.
fn quoted(rest: &mut &[u8], shown: &mut Vec<u8>) -> Result<(), Unclear> {
    skip(rest);
    loop {
        match take_byte(rest)? {
            b'"' => return Ok(()),
            b'\\' => shown.push(take_byte(rest)?),
            b => shown.push(b),
        }
    }
}

/// A comment without anything that needs escaping, comments within it, or angle brackets.
fn comment(rest: &mut &[u8], shown: &mut Vec<u8>) -> Result<(), Unclear> {
    skip(rest);
    loop {
        match take_byte(rest)? {
            b')' => return Ok(()),
            b'(' | b'\\' | b'<' | b'>' | b'"' => return Err(Unclear),
            b => shown.push(b),
        }
    }
}

/// The address that a name shows, if it holds an `@`.
fn shown_address(shown: &[u8]) -> Result<Option<Address>, Unclear> {
    let text = words::decoded(shown)?;
    // FULLWIDTH and SMALL COMMERCIAL AT look like one.
    let has_at = |at: &str| memchr::memmem::find(&text, at.as_bytes()).is_some();
    if !["@", "\u{ff20}", "\u{fe6b}"].into_iter().any(has_at) {
        return Ok(None);
    }
    let is_around = |b: &u8| b.is_ascii_whitespace() || *b == b'\'';
    let start = text.iter().take_while(|b| is_around(b)).count();
    let end = text.iter().rposition(|b| !is_around(b)).map_or(0, |last| last.saturating_add(1));
    let mut rest = text.get(start..end).unwrap_or_default();
    let address = if std::str::from_utf8(rest).is_ok() { address(&mut rest)? } else { return Err(Unclear) };
    if rest.is_empty() { Ok(Some(address)) } else { Err(Unclear) }
}

fn skip(rest: &mut &[u8]) {
    *rest = rest.get(1..).unwrap_or_default();
}

fn skip_blanks(rest: &mut &[u8]) {
    take_while(rest, |b| matches!(b, b' ' | b'\t'));
}

fn take_while<'a>(rest: &mut &'a [u8], wanted: impl Fn(u8) -> bool) -> &'a [u8] {
    let len = rest.iter().take_while(|b| wanted(**b)).count();
    let (front, behind) = rest.split_at_checked(len).unwrap_or_default();
    *rest = behind;
    front
}

fn take_byte(rest: &mut &[u8]) -> Result<u8, Unclear> {
    let (&b, behind) = rest.split_first().ok_or(Unclear)?;
    *rest = behind;
    Ok(b)
}

fn expect(rest: &mut &[u8], wanted: u8) -> Result<(), Unclear> {
    if take_byte(rest)? == wanted { Ok(()) } else { Err(Unclear) }
}
