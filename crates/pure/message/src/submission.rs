//! The header of a message that a user of ours hands in: whom it names as its authors, and what it lacks (RFC 6409 §8).
//!
//! [`claims`] says which addresses a reader could take for the author's. Readers disagree about everything unusual (several From
//! fields, groups, comments, quoted local parts, source routes, encoded words, fields behind a line that is none), so only what every
//! reader takes for the same is understood; the rest is [`Unclear`], and whoever may send as certain addresses only must not send it.
//! [`complete`] adds Date, Message-ID and From where they are missing and takes out what qmail-inject takes out: Bcc, Resent-Bcc,
//! Return-Path, Content-Length. Every other byte stays, so that a signature of the client holds; what lacks nothing stays as it is.
//! Standards: RFC 5322 §3.4, §3.6 without §4, RFC 2047, RFC 6409 §6.1, §8, RFC 6532. Used by qmail-smtpd.

mod mailbox;
#[cfg(test)]
mod tests;
mod words;

use crate::header::{Field, fields};
use wire::civil::Civil;
use wire::{Address, quote};

/// Most addresses that one header may name as authors.
pub const CLAIMS_MAX: usize = 32;

/// The header does not tell every reader the same about its authors. Permanent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unclear;

/// What [`complete`] needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// For Date.
    pub now_s: u64,
    /// For Message-ID: printable ASCII without blanks that nobody else has, such as a process, a counter and some random digits.
    pub unique: &'a str,
    /// For Message-ID: the name of this host.
    pub host: &'a [u8],
    /// For From; `None`: nobody is known, and none is added.
    pub author: Option<&'a Address>,
}

/// The addresses that the header's From, Sender, Resent-From and Resent-Sender fields name, and those that a display name shows. None
/// if there is no such field: then [`complete`] adds one.
///
/// # Errors
/// [`Unclear`]: a line that is no field or is blank, a NUL, more than one From or Sender, a From, Sender or display name that is not
/// plain, more than [`CLAIMS_MAX`] addresses.
pub fn claims(header: &[u8]) -> Result<Vec<Address>, Unclear> {
    let (mut all, mut from_count, mut sender_count) = (Vec::new(), 0u32, 0u32);
    if header.contains(&0) {
        return Err(Unclear);
    }
    for field in fields(header) {
        let name = strict_name(&field)?;
        let is = |lower: &str| name.eq_ignore_ascii_case(lower.as_bytes());
        let is_sender = is("sender") || is("resent-sender");
        if !is_sender && !is("from") && !is("resent-from") {
            continue;
        }
        from_count = from_count.saturating_add(u32::from(is("from")));
        sender_count = sender_count.saturating_add(u32::from(is("sender")));
        let found = mailbox::list(&field.value())?;
        if from_count > 1 || sender_count > 1 || (is_sender && found.count > 1) {
            return Err(Unclear);
        }
        all.extend(found.addresses);
        if all.len() > CLAIMS_MAX {
            return Err(Unclear);
        }
    }
    Ok(all)
}

/// The name of a field as RFC 5322 §2.2 writes it: no blank before the colon, no line of its folds blank. Readers differ about where
/// the header ends otherwise.
fn strict_name<'a>(field: &Field<'a>) -> Result<&'a [u8], Unclear> {
    let has_blank_line = field.raw().split_inclusive(|b| *b == b'\n').any(|line| line.trim_ascii().is_empty());
    let name = field.name().filter(|name| field.raw().get(name.len()) == Some(&b':'));
    name.filter(|_| !has_blank_line).ok_or(Unclear)
}

/// The header with what it lacks before its own fields, and without what only others may write or nobody may see. A header that ends
/// in LF (or is empty) gives one that does.
#[must_use]
pub fn complete(header: &[u8], facts: &Facts<'_>) -> Vec<u8> {
    let kept = fields(header).filter(|field| !is_taken_out(field)).flat_map(|field| field.raw());
    // A first line that begins with a blank would become a part of what stands before it.
    if header.first().is_some_and(u8::is_ascii_whitespace) {
        return kept.copied().chain(added(header, facts)).collect();
    }
    let mut out = added(header, facts);
    out.reserve(header.len());
    out.extend(kept);
    out
}

fn added(header: &[u8], facts: &Facts<'_>) -> Vec<u8> {
    let lacks = |lower: &[u8]| !fields(header).any(|field| field.is(lower));
    let mut out = Vec::new();
    if lacks(b"date") {
        out.extend_from_slice(format!("Date: {}\n", Civil::from_unix(facts.now_s).rfc5322()).as_bytes());
    }
    if lacks(b"message-id") {
        let Civil { year, month, day, hour, minute, second, .. } = Civil::from_unix(facts.now_s);
        out.extend_from_slice(format!("Message-ID: <{year}{month:02}{day:02}{hour:02}{minute:02}{second:02}.").as_bytes());
        out.extend_from_slice(facts.unique.as_bytes());
        out.push(b'@');
        out.extend(facts.host.iter().filter(|b| b.is_ascii_graphic()));
        out.extend_from_slice(b">\n");
    }
    if let Some(author) = facts.author.filter(|_| lacks(b"from")) {
        out.extend_from_slice(&[b"From: <", &quote::address(author.as_bytes())[..], b">\n"].concat());
    }
    out
}

fn is_taken_out(field: &Field<'_>) -> bool {
    [&b"bcc"[..], b"resent-bcc", b"return-path", b"content-length"].iter().any(|lower| field.is(lower))
}
