//! Invariants as plain functions, for cargo-fuzz and for the stable smoke run.

use crate::line::{Ending, Line, Lines};
use crate::{Address, Domain, Patterns, base64, cdb, escape, netstring, proxy};

/// Lines are the same for any chunking, and within the bound.
pub fn lines(data: &[u8]) {
    let (cut, text) = data.split_first().map_or((0, data), |(first, rest)| (usize::from(*first), rest));
    let all = |chunks: &[&[u8]]| {
        let mut lines = Lines::new(Ending::LfOptionalCr, 32);
        let mut found = Vec::new();
        for mut chunk in chunks.iter().copied() {
            while let Some(line) = lines.next(&mut chunk) {
                assert!(!matches!(&line, Line::Whole(line) if line.len() > 32));
                found.push(line);
            }
        }
        found
    };
    let (head, tail) = text.split_at(cut.min(text.len()));
    assert_eq!(all(&[text]), all(&[head, tail]));
}

/// What decodes encodes to the same bytes again.
pub fn netstrings(data: &[u8]) {
    if let Ok((content, rest)) = netstring::decode(data, 1 << 20) {
        let mut again = Vec::new();
        netstring::encode(content, &mut again);
        again.extend_from_slice(rest);
        assert_eq!(again, data);
    }
}

/// A text that decodes is the one text of its bytes; any bytes have one.
pub fn base64(data: &[u8]) {
    if let Ok(bytes) = base64::decode(data) {
        assert_eq!(base64::encode(&bytes).as_bytes(), data);
    }
    assert_eq!(base64::decode(base64::encode(data).as_bytes()).as_deref(), Ok(data));
}

/// Any file is a database, an error or a miss; a key that was written is found.
pub fn databases(data: &[u8]) {
    let _ = cdb::find(data, data.get(..4).unwrap_or_default(), 1 << 16);
    let (key, value) = data.split_at(data.len() / 2);
    let mut writer = cdb::Writer::new();
    writer.add(value, key);
    writer.add(key, value);
    let file = writer.finish().unwrap_or_default();
    let found = cdb::find(&file[..], key, data.len()).ok().flatten();
    assert_eq!(found.as_deref(), Some(if key == value { key } else { value }));
}

/// A proxy's header is whole with its last byte, malformed or asks for more with any other; never for more than its bound.
pub fn proxy_headers(data: &[u8]) {
    let mut taken = 0usize;
    while let Some(bytes) = data.get(..taken) {
        match proxy::step(bytes) {
            Ok(proxy::Step::Needs(more)) => {
                assert!(more > 0);
                taken = taken.saturating_add(more);
                assert!(taken <= proxy::HEADER_LEN_MAX);
            }
            Ok(proxy::Step::Whole(_)) => {
                (0..taken).for_each(|cut| {
                    assert!(matches!(proxy::step(data.get(..cut).unwrap_or_default()), Ok(proxy::Step::Needs(_))))
                });
                return;
            }
            Err(proxy::Malformed) => return,
        }
    }
}

/// An address that exists is safe in a line; a domain is safe as a path component; no control byte survives an escape.
pub fn addresses(data: &[u8]) {
    if let Ok(address) = Address::new(data) {
        assert!(!address.as_bytes().iter().any(|b| matches!(b, 0 | b'\r' | b'\n')));
        if let Some(domain) = address.domain() {
            assert_eq!([address.local(), b"@", domain].concat(), data);
        }
    }
    if let Ok(domain) = Domain::new(data) {
        assert!(!domain.as_bytes().contains(&b'/') && !domain.as_bytes().starts_with(b"."));
        assert_eq!(Domain::new(domain.as_bytes()), Ok(domain.clone()));
    }
    for text in [escape::visible(data), escape::log_report(data)] {
        assert!(text.bytes().all(|b| (32..=126).contains(&b)));
    }
}

/// The lines before an empty one are patterns, the rest a text: any of them is a list or an error, and matching ends; `!` turns a
/// pattern round.
pub fn patterns(data: &[u8]) {
    let data = data.get(..4096).unwrap_or(data);
    let (lines, text) = data.iter().position(|b| *b == 0).and_then(|at| data.split_at_checked(at)).unwrap_or((data, b""));
    for line in lines.split(|b| *b == b'\n').filter(|line| !line.starts_with(b"!")) {
        let Ok(patterns) = Patterns::parse([line]) else { continue };
        let turned = Patterns::parse([[b"!", line].concat()]).unwrap_or_default();
        assert_ne!(patterns.fit(text), turned.fit(text));
        assert_eq!(patterns.fit(text), patterns.fit(&text.to_ascii_uppercase()));
    }
}
