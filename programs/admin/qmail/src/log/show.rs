//! Stories for people, and as an object a line for programs.

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use logline::{Fields, Value, quoted, rfc3339_us, shown};
use serde_json::{Map, Value as Json, json};
use std::io::IsTerminal as _;

use super::record::Record;
use super::story::{Attempt, Item, Story};
use crate::Failure;
use crate::print::{Printer, line};

/// # Errors
/// Standard output is closed.
pub(super) fn item(item: &Item, printer: Printer) -> Result<(), Failure> {
    match item {
        Item::Story(story) if printer.json => printer.value(&story_json(story)),
        Item::Story(story) => line(&story_text(story)),
        Item::Refusal(record) if printer.json => printer.value(&json!({ "refusal": record_json(record) })),
        Item::Refusal(record) => line(&event_text(record)),
    }
}

/// One line of the log.
///
/// # Errors
/// Standard output is closed.
pub(super) fn event(record: &Record, printer: Printer) -> Result<(), Failure> {
    if printer.json { printer.value(&Json::Object(record_json(record))) } else { line(&event_text(record)) }
}

fn event_text(record: &Record) -> String {
    let pairs = record.fields.list.iter().map(|(key, value)| format!(" {}={}", shown(key.as_bytes()), value_text(value)));
    let event = shown(record.fields.event.as_bytes());
    format!("{} {} {event}{}", time(record.time_us), shown(record.process.as_bytes()), pairs.collect::<String>())
}

fn value_text(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        Value::Text(text) => quoted(text),
    }
}

/// In UTC, to the second.
fn time(time_us: Option<u64>) -> String {
    time_us.map_or_else(|| "-".to_owned(), |us| rfc3339_us(us).get(..19).unwrap_or_default().replace('T', " "))
}

fn story_text(story: &Story) -> String {
    let mut out = format!("message {}", story.id);
    if let Some(of) = story.bounce_of {
        out.push_str(&format!(", the bounce of {of}"));
    }
    if !story.has_begun {
        out.push_str(" (its beginning is not in the log)");
    }
    if let Some(info) = &story.info {
        let number = |key: &str| info.n(key).unwrap_or(0);
        let sender = shown(info.t("sender").unwrap_or_default());
        let (bytes, qp, uid) = (number("bytes"), number("qp"), number("uid"));
        out.push_str(&format!("\n  {}  from <{sender}>, {bytes} bytes, queued by process {qp} of uid {uid}", time(story.new_us)));
        if let Some(id) = info.t("header_id") {
            out.push_str(&format!("\n  Message-ID: {}", shown(id)));
        }
    }
    if let Some(record) = &story.accepted {
        let told = ["remote", "helo", "user", "tls", "cipher"];
        let pairs = told.iter().filter_map(|key| Some(format!(" {key}={}", value_text(record.fields.get(key)?))));
        out.push_str(&format!(
            "\n  {}  accepted by {}:{}",
            time(record.time_us),
            shown(record.process.as_bytes()),
            pairs.collect::<String>()
        ));
    }
    if !story.attempts.is_empty() {
        out.push('\n');
        out.push_str(&attempts_table(&story.attempts));
    }
    if story.left_out > 0 {
        out.push_str(&format!("\n  and {} more attempts", story.left_out));
    }
    for (is_so, what) in
        [(story.has_bounced, bounced(story)), (story.discarded.is_some(), discarded(story)), (true, ended(story))]
    {
        if is_so {
            out.push_str("\n  ");
            out.push_str(&what);
        }
    }
    out.push('\n');
    out
}

fn bounced(story: &Story) -> String {
    story.bounced_as.map_or_else(|| "bounced".to_owned(), |id| format!("bounced as message {id}"))
}

fn discarded(story: &Story) -> String {
    format!("{}: the bounce was thrown away", story.discarded.as_deref().unwrap_or_default())
}

fn ended(story: &Story) -> String {
    if story.ended {
        format!("{}  ended", time(story.end_us))
    } else {
        "not ended: still in the queue when the log ends".to_owned()
    }
}

fn attempts_table(attempts: &[Attempt]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !has_colours() {
        table.force_no_tty();
    }
    table.set_header(
        ["  TIME", "RECIPIENT", "WAY", "RESULT", "TEXT"].map(|title| Cell::new(title).add_attribute(Attribute::Bold)),
    );
    for attempt in attempts {
        let (status, colour) = match attempt.status.as_deref() {
            Some(b"success") => ("success", Color::Green),
            Some(b"failure") => ("failure", Color::Red),
            Some(b"deferral") => ("deferral", Color::Yellow),
            Some(_) => ("?", Color::Yellow),
            None => ("under way", Color::Yellow),
        };
        table.add_row([
            Cell::new(format!("  {}", time(attempt.done_us.or(attempt.begun_us)))),
            Cell::new(shown(&attempt.recipient)),
            Cell::new(shown(&attempt.channel)),
            Cell::new(status).fg(colour),
            Cell::new(shown(&attempt.text)),
        ]);
    }
    table.trim_fmt()
}

fn has_colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn fields_json(fields: &Fields) -> Map<String, Json> {
    let value = |value: &Value| match value {
        Value::Number(number) => Json::from(*number),
        Value::Text(text) => shown(text).into(),
    };
    fields.list.iter().map(|(key, v)| (key.clone(), value(v))).collect()
}

fn record_json(record: &Record) -> Map<String, Json> {
    let mut object = fields_json(&record.fields);
    object.insert("time".to_owned(), time_json(record.time_us));
    object.insert("process".to_owned(), shown(record.process.as_bytes()).into());
    object.insert("pid".to_owned(), record.pid.into());
    object.insert("event".to_owned(), shown(record.fields.event.as_bytes()).into());
    object
}

fn time_json(time_us: Option<u64>) -> Json {
    time_us.map(rfc3339_us).into()
}

fn story_json(story: &Story) -> Json {
    let info = story.info.as_ref();
    let number = |key: &str| info.and_then(|info| info.n(key));
    let attempts: Vec<Json> = story.attempts.iter().map(attempt_json).collect();
    json!({
        "message": story.id,
        "complete": story.has_begun,
        "time": time_json(story.new_us),
        "sender": info.and_then(|info| info.t("sender")).map(shown),
        "header_id": info.and_then(|info| info.t("header_id")).map(shown),
        "bytes": number("bytes"),
        "qp": number("qp"),
        "uid": number("uid"),
        "accepted": story.accepted.as_ref().map(record_json),
        "deliveries": attempts,
        "left_out": story.left_out,
        "bounced": story.has_bounced,
        "bounced_as": story.bounced_as,
        "bounce_of": story.bounce_of,
        "discarded": story.discarded,
        "ended": story.ended,
        "end": time_json(story.end_us),
    })
}

fn attempt_json(attempt: &Attempt) -> Json {
    json!({
        "delivery": attempt.delivery,
        "recipient": shown(&attempt.recipient),
        "channel": shown(&attempt.channel),
        "begun": time_json(attempt.begun_us),
        "done": time_json(attempt.done_us),
        "status": attempt.status.as_deref().map(shown),
        "text": shown(&attempt.text),
    })
}
