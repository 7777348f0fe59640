//! Invariants as plain functions, for cargo-fuzz and for the stable smoke run.
#![allow(clippy::expect_used)]

use crate::ber::Reader;
use crate::{Filter, Login, Message, response};

/// Any bytes of a server are messages or malformed, one after the other; nothing is read twice.
pub fn responses(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some(len)) = response::len(rest) {
        assert!(len > 0 && len <= crate::RESPONSE_LEN_MAX);
        let (message, after) = rest.split_at(len);
        let _ = Message::decode(message);
        rest = after;
    }
}

/// A filter that is read gives one well-formed element for every login, and the same shape whatever the login is.
pub fn filters(data: &[u8]) {
    let (text, login) = match data.iter().position(|b| *b == b'\n') {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &b"joe@example.org"[..]),
    };
    let Ok(filter) = Filter::parse(text) else { return };
    let shape = |login: &[u8]| {
        let bytes = filter.encode(Login::new(login, 1_700_000_000))?;
        let mut reader = Reader(&bytes);
        let (tag, content) = reader.any().expect("one element");
        assert!(reader.is_empty());
        let mut tags = vec![tag];
        collect(tag, content, &mut tags);
        Some(tags)
    };
    if let (Some(one), Some(other)) = (shape(login), shape(b"joe@example.org")) {
        assert_eq!(one, other);
    }
}

/// The tags of all constructed elements and their parts. As deep as a filter of ours may be.
fn collect(tag: u8, content: &[u8], tags: &mut Vec<u8>) {
    if tag & 0x20 == 0 {
        return;
    }
    let mut reader = Reader(content);
    while !reader.is_empty() {
        let (tag, content) = reader.any().expect("well-formed");
        tags.push(tag);
        collect(tag, content, tags);
    }
}
