//! A line of any of the formats as a record.

use logline::{Entry, Fields, Linker, Surroundings};
use serde_json::{Map, Value};

/// What a line says.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// Microseconds since 1970.
    pub(super) time_us: Option<u64>,
    pub(super) process: String,
    pub(super) pid: Option<u32>,
    pub(super) fields: Fields,
}

/// Reads lines in their order.
#[derive(Debug)]
pub(super) struct Reader {
    around: Surroundings,
    since_us: Option<u64>,
    linker: Linker,
}

impl Reader {
    pub(super) fn new(around: Surroundings, since_s: Option<u64>) -> Self {
        Self { around, since_us: since_s.map(|s| s.saturating_mul(1_000_000)), linker: Linker::default() }
    }

    /// What the line says; `None` if it says nothing that is understood, or was written before the time that was asked for. Lines
    /// without a time count.
    pub(super) fn record(&mut self, line: &[u8]) -> Option<Record> {
        let object = if line.first() == Some(&b'{') { serde_json::from_slice::<Map<String, Value>>(line).ok() } else { None };
        let record = match object {
            Some(object) if object.contains_key("MESSAGE") => self.journal(&object),
            Some(object) => json(&object),
            None => self.text(line),
        }?;
        let is_before = self.since_us.zip(record.time_us).is_some_and(|(since, time)| time < since);
        (!is_before).then_some(record)
    }

    fn text(&mut self, line: &[u8]) -> Option<Record> {
        let entry = Entry::parse(line, self.around);
        let fields = self.linker.fields(entry.process, entry.text)?;
        Some(Record { time_us: entry.time_us, process: entry.process.to_owned(), pid: entry.pid, fields })
    }

    /// An entry as `journalctl -o json` prints it: with our fields, or a line that was written to standard error.
    fn journal(&mut self, object: &Map<String, Value>) -> Option<Record> {
        let time_us = bytes(object.get("__REALTIME_TIMESTAMP")?).and_then(|text| String::from_utf8(text).ok()?.parse().ok());
        let event = object.get("QMAIL_EVENT").and_then(Value::as_str);
        let Some(event) = event else {
            let record = self.text(&bytes(object.get("MESSAGE")?)?)?;
            return Some(Record { time_us, ..record });
        };
        let mut fields = Fields::new(event);
        for (key, value) in object {
            let Some(name) = key.strip_prefix("QMAIL_").filter(|name| *name != "EVENT") else { continue };
            let name = if name == "MESSAGE_ID" { "message".to_owned() } else { name.to_ascii_lowercase() };
            if let Some(value) = bytes(value) {
                fields.push(&name, value);
            }
        }
        let process = object.get("SYSLOG_IDENTIFIER").and_then(Value::as_str).unwrap_or("qmail-send").to_owned();
        let pid = object.get("SYSLOG_PID").and_then(Value::as_str).and_then(|pid| pid.parse().ok());
        Some(Record { time_us, process, pid, fields })
    }
}

/// A line of the format `json`.
fn json(object: &Map<String, Value>) -> Option<Record> {
    let mut fields = Fields::new(object.get("event")?.as_str()?);
    for (key, value) in object {
        if let Some(value) = bytes(value) {
            fields.push(key, value);
        }
    }
    let time_us = object.get("time").and_then(Value::as_str).and_then(logline::time_us_of);
    let process = object.get("process")?.as_str()?.to_owned();
    let pid = object.get("pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok());
    Some(Record { time_us, process, pid, fields })
}

/// journalctl prints what is no text as an array of bytes.
fn bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.as_bytes().to_vec()),
        Value::Number(number) => Some(number.to_string().into_bytes()),
        Value::Array(list) => list.iter().map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok())).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[String]) -> Vec<(Option<u64>, String, String)> {
        let mut reader = Reader::new(Surroundings::default(), None);
        let records = lines.iter().filter_map(|line| reader.record(line.as_bytes()));
        records.map(|record| (record.time_us, record.process, format!("{:?}", record.fields))).collect()
    }

    /// What qmail-start writes in each format reads the same.
    #[test]
    fn all_formats_say_the_same() {
        let lines = [
            ("qmail-smtpd", r#"accepted remote=::1 msg=7 from=<a@b> recipients=1 bytes=9 qp=4"#),
            ("qmail-send", "info msg 7: bytes 9 from <a@b> qp 4 uid 0"),
            ("qmail-send", "starting delivery 1: msg 7 to local x@b"),
            ("qmail-send", "delivery 1: failure: no_\"such\"/"),
            ("qmail-smtpd", r#"refused remote=::1 to="<a b@c>" reply="550 5.1.1 no""#),
        ];
        let (mut texts, mut jsons, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        let mut linker = Linker::default();
        for (process, line) in lines {
            let fields = linker.fields(process, line.as_bytes());
            texts.push(logline::text(5_000_001, process, 3, line).trim_end().to_owned());
            jsons.push(logline::json(5_000_001, process, 3, line, fields.as_ref()).trim_end().to_owned());
            let entry = String::from_utf8(logline::journal(process, 3, line, fields.as_ref())).unwrap();
            let pairs = entry.lines().map(|field| field.split_once('=').unwrap());
            let pairs = pairs.chain([("__REALTIME_TIMESTAMP", "5000001")]);
            let object: Map<String, Value> = pairs.map(|(key, value)| (key.to_owned(), value.into())).collect();
            entries.push(Value::Object(object).to_string());
        }
        let from_text = said(&texts);
        assert_eq!(from_text.len(), lines.len(), "{from_text:?}");
        let sorted = |records: Vec<(Option<u64>, String, String)>, lines: &[String]| {
            let mut reader = Reader::new(Surroundings::default(), None);
            assert_eq!(records.len(), lines.len());
            lines
                .iter()
                .map(|line| {
                    let record = reader.record(line.as_bytes()).unwrap();
                    let mut list = record.fields.list;
                    list.sort_by(|a, b| a.0.cmp(&b.0));
                    (record.time_us, record.process, record.pid, record.fields.event, list)
                })
                .collect::<Vec<_>>()
        };
        let wanted = sorted(from_text, &texts);
        assert_eq!(sorted(said(&jsons), &jsons), wanted);
        assert_eq!(sorted(said(&entries), &entries), wanted);
        assert_eq!(wanted[0].0, Some(5_000_001));
    }

    #[test]
    fn broken_lines_are_nothing_and_old_ones_do_not_count() {
        let mut reader = Reader::new(Surroundings::default(), Some(10));
        for line in ["{", "{}", "{\"MESSAGE\":5}", "{\"event\":\"new\"}", "[1]", "\u{0}", "", "words"] {
            assert!(reader.record(line.as_bytes()).is_none(), "{line}");
        }
        assert!(reader.record(b"1970-01-01T00:00:09Z new msg 5").is_none());
        assert!(reader.record(b"1970-01-01T00:00:11Z new msg 5").is_some());
        let captured = r#"{"MESSAGE":[110,101,119,32,109,115,103,32,53],"__REALTIME_TIMESTAMP":"11000000","SYSLOG_IDENTIFIER":"qmail-start"}"#;
        assert_eq!(reader.record(captured.as_bytes()).unwrap().fields.n("message"), Some(5));
    }
}
