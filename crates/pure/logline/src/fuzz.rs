//! Invariants as plain functions, for cargo-fuzz and for the stable smoke run.

use crate::{Entry, Line, Linker, Surroundings, journal, json, pairs, text};

/// Any bytes are a log: each line gives one printable line or entry in every format, and what a program writes reads as it was.
pub fn lines(data: &[u8]) {
    let around = Surroundings { now_us: 1_764_057_909_000_000, offset_s: -3600 };
    let mut linker = Linker::default();
    for line in data.split(|b| *b == b'\n') {
        let entry = Entry::parse(line, around);
        let fields = linker.fields(entry.process, entry.text);
        let safe = wire::escape::visible(entry.text);
        let time_us = entry.time_us.unwrap_or(0);
        for out in [text(time_us, entry.process, 1, &safe), json(time_us, entry.process, 1, &safe, fields.as_ref())] {
            assert!(out.strip_suffix('\n').is_some_and(|line| !line.chars().any(char::is_control)), "{out:?}");
        }
        let datagram = String::from_utf8(journal(entry.process, 1, &safe, fields.as_ref()));
        let is_whole =
            |field: &str| field.split_once('=').is_some_and(|(name, _)| name.bytes().all(|b| b != b' ')) && !field.is_empty();
        assert!(datagram.is_ok_and(|entry| entry.lines().all(is_whole) && !entry.contains('\x1b')));
        let written = Line::new("x").bytes("a", line).address("b", line).finish();
        let read = pairs(written.as_bytes()).map(|(_, found)| found).unwrap_or_default();
        let is_from = |value: &[u8], whole: &[u8]| {
            value == whole || value.strip_suffix(b"...").is_some_and(|begin| whole.len() > 250 && whole.starts_with(begin))
        };
        let [(b"a", a), (b"b", b)] = &read[..] else { panic!("{written}") };
        assert!(is_from(a, line) && is_from(b, &[b"<", line, b">"].concat()), "{written}");
    }
}
