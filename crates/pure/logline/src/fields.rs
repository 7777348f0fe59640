//! What a line says: its event, and values with names.
//!
//! The names are the same in all formats: `message`, `delivery`, `sender`, `recipient`, `channel`, `status`, `text` …; docs/logs.md
//! and qmail-log(5) list them.

use crate::line::{PAIRS_MAX, pairs};
use std::collections::HashMap;

/// Deliveries under way whose message is remembered; qmail-send has at most 4000 of them at a time.
pub const LINKED_MAX: usize = 10_000;
/// Keys whose values are numbers.
const NUMBERS: [&str; 20] = [
    "message",
    "delivery",
    "bytes",
    "qp",
    "uid",
    "messages",
    "recipients",
    "refused",
    "refused_recipients",
    "refused_messages",
    "retrieved",
    "deleted",
    "in",
    "out",
    "seconds",
    "sessions",
    "local",
    "local_max",
    "remote_max",
    "failures",
];
/// What stands behind `info msg` before the Message-ID. Neither that nor a sender holds a blank there.
const MESSAGE_ID: &str = " message-id ";
/// Names that every entry has; no line may bring its own.
const RESERVED: [&str; 4] = ["time", "process", "pid", "event"];

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Number(u64),
    Text(Vec<u8>),
}

/// A line that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    pub event: String,
    pub list: Vec<(String, Value)>,
}

impl Fields {
    /// An event without values.
    #[must_use]
    pub fn new(event: &str) -> Self {
        Self { event: event.to_owned(), list: Vec::new() }
    }

    /// Adds a value as other formats have it: a number where one belongs, an address without its angle brackets. Names that every
    /// entry has, and names that are there already, are passed over, and so is what comes behind [`PAIRS_MAX`] others.
    pub fn push(&mut self, key: &str, value: Vec<u8>) {
        if self.list.len() >= PAIRS_MAX || RESERVED.contains(&key) || self.get(key).is_some() {
            return;
        }
        let value = match (number(&value), bare(&value)) {
            (Some(number), _) if NUMBERS.contains(&key) => Value::Number(number),
            (_, Some(address)) if matches!(key, "sender" | "recipient") => Value::Text(address.to_vec()),
            _ => Value::Text(value),
        };
        self.list.push((key.to_owned(), value));
    }

    fn number(mut self, key: &str, value: u64) -> Self {
        self.list.push((key.to_owned(), Value::Number(value)));
        self
    }

    fn text(mut self, key: &str, value: &[u8]) -> Self {
        self.list.push((key.to_owned(), Value::Text(value.to_vec())));
        self
    }

    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.list.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The number of that name.
    #[must_use]
    pub fn n(&self, key: &str) -> Option<u64> {
        match self.get(key) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// The text of that name.
    #[must_use]
    pub fn t(&self, key: &str) -> Option<&[u8]> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// Understands lines one after the other. A result names only its delivery; this adds the message and the recipient of the line that
/// started it.
#[derive(Debug, Default)]
pub struct Linker {
    under_way: HashMap<u64, Started>,
}

#[derive(Debug)]
struct Started {
    message: u64,
    channel: Value,
    recipient: Value,
}

impl Linker {
    /// `process`: who wrote the line, `qmail-send` for the classic ones. `text`: the line without name and end.
    pub fn fields(&mut self, process: &str, text: &[u8]) -> Option<Fields> {
        if process != "qmail-send" {
            return keyed(text);
        }
        let mut fields = classic(text)?;
        match fields.event.as_str() {
            "start" => self.remember(&fields),
            "delivery" => {
                if let Some(started) = fields.n("delivery").and_then(|number| self.under_way.remove(&number)) {
                    fields.list.push(("message".to_owned(), Value::Number(started.message)));
                    fields.list.push(("channel".to_owned(), started.channel));
                    fields.list.push(("recipient".to_owned(), started.recipient));
                }
            }
            // The next qmail-send counts from 1 again.
            "exiting" => self.under_way.clear(),
            _ => {}
        }
        Some(fields)
    }

    fn remember(&mut self, fields: &Fields) {
        if self.under_way.len() >= LINKED_MAX {
            // Results that never came: of a qmail-send that was killed.
            self.under_way.clear();
        }
        if let (Some(number), Some(message), Some(channel), Some(recipient)) =
            (fields.n("delivery"), fields.n("message"), fields.get("channel"), fields.get("recipient"))
        {
            let started = Started { message, channel: channel.clone(), recipient: recipient.clone() };
            self.under_way.insert(number, started);
        }
    }
}

/// `alert: …` and `warning: …` of any process, and `event key=value`.
fn keyed(text: &[u8]) -> Option<Fields> {
    if let Some(fields) = trouble(text) {
        return Some(fields);
    }
    let (event, found) = pairs(text)?;
    let mut fields = Fields::new(&String::from_utf8_lossy(event));
    for (key, value) in found {
        let key = match key {
            b"msg" => "message",
            b"from" => "sender",
            b"to" => "recipient",
            key => std::str::from_utf8(key).ok()?,
        };
        fields.push(key, value);
    }
    Some(fields)
}

fn trouble(text: &[u8]) -> Option<Fields> {
    let (event, text) = split_at(text, b": ")?;
    match event {
        b"alert" | b"warning" | b"fatal" => Some(Fields::new(std::str::from_utf8(event).ok()?).text("text", text)),
        _ => None,
    }
}

/// A line of qmail-send.
fn classic(text: &[u8]) -> Option<Fields> {
    if let Some(id) = text.strip_prefix(b"new msg ") {
        return Some(Fields::new("new").number("message", number(id)?));
    }
    if let Some(id) = text.strip_prefix(b"end msg ") {
        return Some(Fields::new("end").number("message", number(id)?));
    }
    if let Some(rest) = text.strip_prefix(b"info msg ") {
        return info(rest);
    }
    if let Some(rest) = text.strip_prefix(b"starting delivery ") {
        let (delivery, rest) = split_at(rest, b": msg ")?;
        let (id, rest) = split_at(rest, b" to ")?;
        let (channel, recipient) = split_at(rest, b" ")?;
        let fields = Fields::new("start").number("delivery", number(delivery)?).number("message", number(id)?);
        return Some(fields.text("channel", channel).text("recipient", recipient));
    }
    if let Some(rest) = text.strip_prefix(b"delivery ") {
        return result(rest);
    }
    if let Some(rest) = text.strip_prefix(b"bounce msg ") {
        let (id, qp) = split_at(rest, b" qp ")?;
        return Some(Fields::new("bounce").number("message", number(id)?).number("qp", number(qp)?));
    }
    for event in ["double bounce", "triple bounce"] {
        if let Some(id) = text.strip_prefix(event.as_bytes()).and_then(|rest| rest.strip_prefix(b": discarding bounce/")) {
            return Some(Fields::new(event).number("message", number(id)?));
        }
    }
    if let Some(rest) = text.strip_prefix(b"status: ") {
        return if rest == b"exiting" { Some(Fields::new("exiting")) } else { status(rest) };
    }
    trouble(text)
}

/// `N: bytes B from <S> qp Q uid U[ message-id I]`; the sender may hold anything but blanks.
fn info(rest: &[u8]) -> Option<Fields> {
    let (id, rest) = split_at(rest, b": bytes ")?;
    let (bytes, rest) = split_at(rest, b" from <")?;
    let (sender, rest) = split_at(rest, b"> qp ")?;
    let (qp, rest) = split_at(rest, b" uid ")?;
    let (uid, header_id) = split_at(rest, MESSAGE_ID.as_bytes()).map_or((rest, None), |(uid, id)| (uid, Some(id)));
    let fields = Fields::new("info").number("message", number(id)?).number("bytes", number(bytes)?).text("sender", sender);
    let fields = fields.number("qp", number(qp)?).number("uid", number(uid)?);
    Some(match header_id {
        Some(id) => fields.text("header_id", id),
        None => fields,
    })
}

/// A line of qmail-send as it always was: without the Message-ID that stands behind `info msg`, which no analyser of old expects.
#[must_use]
pub fn classic_line(line: &str) -> &str {
    if !line.starts_with("info msg ") {
        return line;
    }
    line.split_once(MESSAGE_ID).map_or(line, |(classic, _)| classic)
}

fn result(rest: &[u8]) -> Option<Fields> {
    let (delivery, rest) = split_at(rest, b": ")?;
    let fields = Fields::new("delivery").number("delivery", number(delivery)?);
    if rest == b"report mangled, will defer" {
        return Some(fields.text("status", b"deferral").text("text", rest));
    }
    let (status, report) = split_at(rest, b": ").or_else(|| Some((rest.strip_suffix(b":")?, &b""[..])))?;
    let is_known = matches!(status, b"success" | b"failure" | b"deferral");
    is_known.then(|| fields.text("status", status).text("text", report))
}

/// `local L/ML remote R/MR[ exitasap]`
fn status(rest: &[u8]) -> Option<Fields> {
    let (rest, exiting) = rest.strip_suffix(b" exitasap").map_or((rest, false), |rest| (rest, true));
    let (local, remote) = split_at(rest.strip_prefix(b"local ")?, b" remote ")?;
    let (local, local_max) = split_at(local, b"/")?;
    let (remote, remote_max) = split_at(remote, b"/")?;
    let fields = Fields::new("status").number("local", number(local)?).number("local_max", number(local_max)?);
    let fields = fields.number("remote", number(remote)?).number("remote_max", number(remote_max)?);
    Some(if exiting { fields.text("exiting", b"yes") } else { fields })
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

fn bare(text: &[u8]) -> Option<&[u8]> {
    text.strip_prefix(b"<")?.strip_suffix(b">")
}

/// Before and behind the first `by`.
fn split_at<'a>(text: &'a [u8], by: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = text.windows(by.len()).position(|part| part == by)?;
    Some((text.get(..at)?, text.get(at.checked_add(by.len())?..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(linker: &mut Linker, process: &str, text: &str) -> String {
        let Some(fields) = linker.fields(process, text.as_bytes()) else { return "-".to_owned() };
        fields.list.iter().fold(fields.event, |all, (key, value)| match value {
            Value::Number(n) => format!("{all} {key}={n}"),
            Value::Text(text) => format!("{all} {key}:{}", String::from_utf8_lossy(text)),
        })
    }

    #[test]
    fn every_template_of_qmail_send() {
        let mut linker = Linker::default();
        for (line, wanted) in [
            ("new msg 53", "new message=53"),
            ("info msg 53: bytes 227 from <a> qp 1@x> qp 11 uid 1000", "-"),
            ("info msg 53: bytes 227 from <a@x> qp 11 uid 1000", "info message=53 bytes=227 sender:a@x qp=11 uid=1000"),
            (
                "info msg 53: bytes 227 from <a@x> qp 11 uid 7 message-id <5%@x>",
                "info message=53 bytes=227 sender:a@x qp=11 uid=7 header_id:<5%@x>",
            ),
            ("info msg 53: bytes 227 from <> qp 11 uid 0", "info message=53 bytes=227 sender: qp=11 uid=0"),
            ("starting delivery 1: msg 53 to local j@y", "start delivery=1 message=53 channel:local recipient:j@y"),
            ("starting delivery 2: msg 53 to remote z@y", "start delivery=2 message=53 channel:remote recipient:z@y"),
            ("status: local 1/10 remote 0/20", "status local=1 local_max=10 remote=0 remote_max=20"),
            ("status: local 0/10 remote 0/20 exitasap", "status local=0 local_max=10 remote=0 remote_max=20 exiting:yes"),
            (
                "delivery 1: success: did_1+0+0/",
                "delivery delivery=1 status:success text:did_1+0+0/ message=53 channel:local recipient:j@y",
            ),
            ("delivery 2: failure: a:_b", "delivery delivery=2 status:failure text:a:_b message=53 channel:remote recipient:z@y"),
            ("delivery 2: failure: a:_b", "delivery delivery=2 status:failure text:a:_b"),
            ("delivery 3: deferral: ", "delivery delivery=3 status:deferral text:"),
            ("delivery 4: report mangled, will defer", "delivery delivery=4 status:deferral text:report mangled, will defer"),
            ("bounce msg 53 qp 12", "bounce message=53 qp=12"),
            ("triple bounce: discarding bounce/53", "triple bounce message=53"),
            ("double bounce: discarding bounce/53", "double bounce message=53"),
            ("end msg 53", "end message=53"),
            ("status: exiting", "exiting"),
            ("warning: trouble opening x", "warning text:trouble opening x"),
            ("alert: a", "alert text:a"),
            ("new msg x", "-"),
            ("new msg -1", "-"),
            ("new msg 99999999999999999999999", "-"),
            ("starting delivery 1: msg 53 to local", "-"),
            ("session end=quit", "-"),
        ] {
            assert_eq!(said(&mut linker, "qmail-send", line), wanted, "{line}");
        }
    }

    #[test]
    fn lines_of_others_and_what_they_cannot_claim() {
        let mut linker = Linker::default();
        for (line, wanted) in [
            ("accepted msg=5 from=<a@b> bytes=7", "accepted message=5 sender:a@b bytes=7"),
            ("login failed: service=pop3 remote=::1 user=x", "login failed service:pop3 remote:::1 user:x"),
            ("refused from=<> to=\"<a b@c>\" reply=\"550 5.1.1 no\"", "refused sender: recipient:a b@c reply:550 5.1.1 no"),
            ("x time=1 process=qmail-send pid=1 event=2 a=1 a=2", "x a:1"),
            (
                "session refused=1 refused_recipients=2 refused_messages=3",
                "session refused=1 refused_recipients=2 refused_messages=3",
            ),
            ("too many failed logins: refused=address seconds=9", "too many failed logins refused:address seconds=9"),
            ("session messages=99999999999999999999999", "session messages:99999999999999999999999"),
            ("new msg 53", "-"),
            ("alert: key=1", "alert text:key=1"),
            ("some words", "-"),
        ] {
            assert_eq!(said(&mut linker, "qmail-smtpd", line), wanted, "{line}");
        }
    }

    #[test]
    fn the_classic_line_has_no_message_id() {
        let line = "info msg 53: bytes 227 from <a@x> qp 11 uid 7";
        assert_eq!(classic_line(&format!("{line} message-id <5@x>")), line);
        for other in [line, "delivery 1: success: message-id", "warning: x message-id y", ""] {
            assert_eq!(classic_line(other), other);
        }
    }

    #[test]
    fn deliveries_that_never_end_are_bounded() {
        let mut linker = Linker::default();
        for number in 0..LINKED_MAX as u64 * 2 {
            linker.fields("qmail-send", format!("starting delivery {number}: msg 1 to local x").as_bytes());
            assert!(linker.under_way.len() <= LINKED_MAX);
        }
    }
}
