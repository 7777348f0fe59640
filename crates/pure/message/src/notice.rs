//! Mail that this system writes to people: warnings, alerts, and the text part of replies.
//!
//! What comes out is in LF form and ASCII but for addresses that are not; no text can end a header field or a line too late.
//! Used by qmail-local and qmail-auth.

use wire::civil::Civil;

/// A longer line of text makes it base64 (RFC 5322 §2.1.1: 998).
const LINE_LEN_MAX: usize = 900;

/// A notice.
#[derive(Debug, Clone, Copy)]
pub struct Notice<'a> {
    pub from: &'a [u8],
    pub to: &'a [u8],
    /// UTF-8.
    pub subject: &'a [u8],
    /// UTF-8, lines ending in LF.
    pub text: &'a [u8],
    pub now_s: u64,
    /// Makes the Message-ID one of its own; `kind` is an atom in it.
    pub unique: u64,
    pub kind: &'a str,
}

impl Notice<'_> {
    /// The message; nothing that is automatic answers it (RFC 3834 §5.1).
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let date = Civil::from_unix(self.now_s).rfc5322();
        let domain = visible(self.from.rsplit(|b| *b == b'@').next().unwrap_or_default());
        let id = format!("{}.{:016x}.{}@", self.now_s, self.unique, self.kind);
        let mut out = Vec::new();
        for parts in [
            &[b"Date: ", date.as_bytes()][..],
            &[b"Message-ID: <", id.as_bytes(), &domain, b">"],
            &[b"From: <", &visible(self.from), b">"],
            &[b"To: <", &visible(self.to), b">"],
            &[b"Subject: ", &encoded(self.subject)],
            &[b"Auto-Submitted: auto-generated"],
        ] {
            parts.iter().for_each(|part| out.extend_from_slice(part));
            out.push(b'\n');
        }
        put_text(&mut out, self.text);
        out
    }
}

/// The MIME fields and the text: as it is where that is safe, else in base64.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(b"MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: ");
    let is_plain =
        text.is_ascii() && !text.contains(&b'\r') && text.split(|b| *b == b'\n').all(|line| line.len() <= LINE_LEN_MAX);
    if is_plain {
        out.extend_from_slice(b"7bit\n\n");
        out.extend_from_slice(text.strip_suffix(b"\n").unwrap_or(text));
        return out.push(b'\n');
    }
    out.extend_from_slice(b"base64\n\n");
    // RFC 2045 §6.8: the text in its CRLF form, lines of 76.
    let crlf = text.split(|b| *b == b'\n').collect::<Vec<_>>().join(&b"\r\n"[..]);
    for line in wire::base64::encode(&crlf).as_bytes().chunks(76) {
        out.extend_from_slice(line);
        out.push(b'\n');
    }
}

/// A subject as it may stand in a field: printable ASCII as it is, anything else as encoded words (RFC 2047).
pub(crate) fn encoded(subject: &[u8]) -> Vec<u8> {
    if subject.iter().all(|b| matches!(b, b' '..=b'~')) {
        return subject.to_vec();
    }
    let text: String = String::from_utf8_lossy(subject).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut words = Vec::new();
    let mut word = String::new();
    for c in text.chars() {
        // 45 bytes are 60 in base64: a word of 75 with its frame.
        if word.len().saturating_add(c.len_utf8()) > 45 {
            words.push(std::mem::take(&mut word));
        }
        word.push(c);
    }
    words.push(word);
    let framed: Vec<String> = words.iter().map(|word| format!("=?utf-8?B?{}?=", wire::base64::encode(word.as_bytes()))).collect();
    framed.join("\n ").into_bytes()
}

/// An address on a line of its own; what would end the line or the brackets cannot.
pub(crate) fn visible(address: &[u8]) -> Vec<u8> {
    address.iter().map(|b| if matches!(b, 0..=31 | 127 | b'<' | b'>') { b'_' } else { *b }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_a_field_and_long_or_foreign_text_is_encoded() {
        let notice = Notice {
            from: b"postmaster@a.test>\nX: y",
            to: b"joe\n@a.test",
            subject: "Gr\u{fc}\u{df}e\nX: y".as_bytes(),
            text: b"one\ntwo",
            now_s: 86_400,
            unique: 5,
            kind: "quota",
        };
        let text = String::from_utf8(notice.build()).unwrap();
        let (header, body) = text.split_once("\n\n").unwrap();
        assert!(header.lines().all(|line| line.contains(": ")) && !header.contains("\nX:"), "{header}");
        assert!(header.contains("Message-ID: <86400.0000000000000005.quota@a.test__X: y>"), "{header}");
        assert!(header.contains("\nAuto-Submitted: auto-generated\n") && header.contains("=?utf-8?B?"), "{header}");
        assert_eq!(body, "one\ntwo\n");
        for long in ["x".repeat(901), "\u{e4}".to_owned(), "a\rb".to_owned()] {
            let text = String::from_utf8(Notice { text: long.as_bytes(), ..notice }.build()).unwrap();
            assert!(text.contains(": base64\n\n") && text.lines().all(|line| line.len() <= 76 || line.contains(": ")), "{text}");
        }
    }
}
