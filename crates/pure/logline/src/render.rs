//! A line as text, as a JSON object, and as an entry of journald's own protocol.

use crate::fields::{Fields, Value};
use crate::stamp::rfc3339_us;
use std::fmt::Write as _;

/// `2026-11-23T08:05:09.123456Z NAME[PID]: LINE`
#[must_use]
pub fn text(time_us: u64, process: &str, pid: u32, line: &str) -> String {
    format!("{} {process}[{pid}]: {line}\n", rfc3339_us(time_us))
}

/// One JSON object (RFC 8259) and a newline. A line that is not understood is the event `line` with its `text`.
#[must_use]
pub fn json(time_us: u64, process: &str, pid: u32, line: &str, fields: Option<&Fields>) -> String {
    let event = fields.map_or("line", |fields| &fields.event);
    let mut out = format!("{{\"time\":\"{}\",\"process\":", rfc3339_us(time_us));
    string(&mut out, process);
    let _ = write!(out, ",\"pid\":{pid},\"event\":");
    string(&mut out, event);
    for (key, value) in fields.into_iter().flat_map(|fields| &fields.list) {
        out.push(',');
        string(&mut out, key);
        out.push(':');
        match value {
            Value::Number(number) => {
                let _ = write!(out, "{number}");
            }
            Value::Text(text) => string(&mut out, &shown(text)),
        }
    }
    if fields.is_none() {
        out.push_str(",\"text\":");
        string(&mut out, line);
    }
    out.push_str("}\n");
    out
}

/// A datagram for journald (systemd's "Native Journal Protocol"): `FIELD=value` lines, none of which holds a newline.
#[must_use]
pub fn journal(process: &str, pid: u32, line: &str, fields: Option<&Fields>) -> Vec<u8> {
    let priority = priority(line, fields);
    let line = shown(line.as_bytes());
    let mut out =
        format!("MESSAGE={line}\nPRIORITY={priority}\nSYSLOG_FACILITY=2\nSYSLOG_IDENTIFIER={process}\nSYSLOG_PID={pid}\n");
    if let Some(fields) = fields {
        let _ = writeln!(out, "QMAIL_EVENT={}", shown(fields.event.as_bytes()));
        for (key, value) in &fields.list {
            let name = if key == "message" { "MESSAGE_ID".to_owned() } else { field_name(key) };
            let value = match value {
                Value::Number(number) => number.to_string(),
                Value::Text(text) => shown(text),
            };
            let _ = writeln!(out, "QMAIL_{name}={value}");
        }
    }
    out.into_bytes()
}

/// Capital letters, digits and underscores are what names of fields may have.
fn field_name(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// syslog(3)'s number: alert 1, fatal 2, warning 4; 5 for a delivery that failed, else 6.
#[must_use]
pub fn priority(line: &str, fields: Option<&Fields>) -> u8 {
    let is_failure = |fields: &Fields| fields.event == "delivery" && fields.t("status") == Some(b"failure");
    match () {
        () if line.starts_with("alert:") => 1,
        () if line.starts_with("fatal:") => 2,
        () if line.starts_with("warning:") => 4,
        () if fields.is_some_and(is_failure) => 5,
        () => 6,
    }
}

/// Text as it is, unless it holds control characters or is no UTF-8: then with `\xNN`.
#[must_use]
pub fn shown(text: &[u8]) -> String {
    match std::str::from_utf8(text) {
        Ok(text) if !text.chars().any(is_unsafe) => text.to_owned(),
        _ => wire::escape::visible(text),
    }
}

/// Text as it stands behind `key=` for people: as [`shown`], in double quotes if it is empty or holds a blank, a quote or a backslash.
#[must_use]
pub fn quoted(text: &[u8]) -> String {
    let is_bare = |c: char| !c.is_whitespace() && !matches!(c, '"' | '\\') && !is_unsafe(c);
    match std::str::from_utf8(text) {
        Ok(text) if !text.is_empty() && text.chars().all(is_bare) => text.to_owned(),
        Ok(text) if !text.chars().any(is_unsafe) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        _ => {
            let escaped = text.iter().map(|b| match b {
                b'"' | b'\\' => format!("\\{}", char::from(*b)),
                b => wire::escape::visible(&[*b]),
            });
            format!("\"{}\"", escaped.collect::<String>())
        }
    }
}

/// Control characters, those that turn the direction of what stands around them, separators of lines, and characters that nobody sees.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            // RFC 8259 §7: beyond the first plane as two surrogates.
            c if is_unsafe(c) => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                let _ = write!(out, "\\u{unit:04x}");
            }),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Linker;

    #[test]
    fn the_same_line_in_each_format() {
        let time_us = 1_764_057_909_000_042;
        let mut linker = Linker::default();
        let line = "refused from=<> to=\"<\\xc3\\xa9\\x1b\\xe2\\x80\\xae@x>\" bytes=7 reply=\"550 \\\"no\\\\\"";
        let fields = linker.fields("qmail-smtpd", line.as_bytes());
        assert_eq!(text(time_us, "qmail-smtpd", 9, "x"), "2025-11-25T08:05:09.000042Z qmail-smtpd[9]: x\n");
        let json = json(time_us, "qmail-smtpd", 9, line, fields.as_ref());
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&value["bytes"], &value["reply"], &value["sender"]), (&7.into(), &"550 \"no\\".into(), &"".into()));
        assert_eq!(value["recipient"], "\\xc3\\xa9\\x1b\\xe2\\x80\\xae@x", "control bytes stay escaped");
        assert_eq!(value["time"], "2025-11-25T08:05:09.000042Z");
        let entry = String::from_utf8(journal("qmail-smtpd", 9, line, fields.as_ref())).unwrap();
        assert!(
            entry.starts_with("MESSAGE=refused from=<> to=") && entry.contains("\nQMAIL_SENDER=\nQMAIL_RECIPIENT="),
            "{entry}"
        );
        assert!(entry.contains("\nPRIORITY=6\n") && entry.ends_with("\nQMAIL_REPLY=550 \"no\\\n"), "{entry}");
    }

    #[test]
    fn what_nobody_sees_and_what_turns_the_text_is_escaped() {
        let unseen = "\u{1b}\u{7f}\u{85}\u{9b}\u{ad}\u{61c}\u{180e}\u{200b}\u{200c}\u{200d}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\
            \u{202b}\u{202c}\u{202d}\u{202e}\u{2060}\u{2066}\u{2067}\u{2068}\u{2069}\u{feff}\u{e0041}";
        for c in unseen.chars() {
            let text = format!("a{c}\u{e9}");
            for out in [shown(text.as_bytes()), quoted(text.as_bytes())] {
                assert!(out.bytes().all(|b| (32..=126).contains(&b)), "{out}");
            }
            let line = json(0, "qmail-x", 1, &text, None);
            assert!(!line.contains(c), "{line}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["text"], text);
        }
        assert_eq!(shown("\u{e9}\u{1f600} x".as_bytes()), "\u{e9}\u{1f600} x");
    }

    #[test]
    fn quoted_values_end_where_they_end() {
        for (text, wanted) in [
            ("", "\"\""),
            ("a@b", "a@b"),
            ("\u{e9}@b", "\u{e9}@b"),
            ("a b", "\"a b\""),
            ("a\u{a0}b", "\"a\u{a0}b\""),
            ("x\" sender=y", "\"x\\\" sender=y\""),
            ("x\"y", "\"x\\\"y\""),
            ("\\", "\"\\\\\""),
            ("\\\u{1b}\"", "\"\\\\\\x1b\\\"\""),
        ] {
            assert_eq!(quoted(text.as_bytes()), wanted, "{text:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_text() {
        let value: serde_json::Value = serde_json::from_str(&json(0, "qmail-keys", 1, "a \"b\"", None)).unwrap();
        assert_eq!((&value["event"], &value["text"], &value["pid"]), (&"line".into(), &"a \"b\"".into(), &1.into()));
        assert_eq!(["alert: x", "warning: x", "fatal: x", "x"].map(|line| priority(line, None)), [1, 4, 2, 6]);
    }
}
