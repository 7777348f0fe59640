//! Output: tables for people, JSON for programs. No byte of a stranger reaches a terminal unescaped.

use std::io::{self, Write as _};

use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use serde_json::{Map, Value, json};

use crate::Failure;

/// One column: what people read above it, and its key in JSON.
pub type Column = (&'static str, &'static str);

/// Where output goes and how.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    pub json: bool,
}

impl Printer {
    /// Says that something was done.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn done(self, text: &str) -> Result<(), Failure> {
        if self.json { self.value(&json!({ "ok": true })) } else { line(text) }
    }

    /// A table; `none` is said to people when it has no rows.
    ///
    /// # Errors
    /// As [`Printer::done`].
    pub fn rows(self, columns: &[Column], rows: &[Vec<Value>], none: &str) -> Result<(), Failure> {
        if self.json {
            return self.value(&to_json(columns, rows));
        }
        if rows.is_empty() {
            return line(none);
        }
        line(&table(columns, rows))
    }

    /// One thing with its properties: a line for each, as (what people read, key in JSON, value).
    ///
    /// # Errors
    /// As [`Printer::done`].
    pub fn object(self, properties: &[(&str, &str, Value)]) -> Result<(), Failure> {
        if self.json {
            let object = properties.iter().map(|(_, key, value)| ((*key).to_owned(), value.clone()));
            return self.value(&Value::Object(object.collect()));
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        for (title, _, value) in properties {
            table.add_row([Cell::new(title).add_attribute(Attribute::Bold), Cell::new(for_people(value))]);
        }
        line(&table.trim_fmt())
    }

    /// JSON as it is.
    ///
    /// # Errors
    /// As [`Printer::done`].
    pub fn value(self, value: &Value) -> Result<(), Failure> {
        line(&value.to_string())
    }
}

/// Rows as objects.
#[must_use]
pub fn to_json(columns: &[Column], rows: &[Vec<Value>]) -> Value {
    let object = |row: &Vec<Value>| columns.iter().zip(row).map(|((_, key), value)| ((*key).to_owned(), value.clone())).collect();
    rows.iter().map(|row| Value::Object(object(row))).collect()
}

/// UNIX seconds as a date in UTC.
#[must_use]
pub fn date(unix_s: u64) -> String {
    let civil = wire::civil::Civil::from_unix(unix_s);
    format!("{:04}-{:02}-{:02} {:02}:{:02}:{:02}", civil.year, civil.month, civil.day, civil.hour, civil.minute, civil.second)
}

/// Rows for people; bold heads on a terminal only.
#[must_use]
pub fn table(columns: &[Column], rows: &[Vec<Value>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(columns.iter().map(|(title, _)| Cell::new(title).add_attribute(Attribute::Bold)));
    for row in rows {
        table.add_row(row.iter().map(for_people));
    }
    table.trim_fmt()
}

fn for_people(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => wire::escape::visible(text.as_bytes()),
        Value::Array(list) => list.iter().map(for_people).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// Bytes as a JSON string: as they are if they are text, else escaped.
#[must_use]
pub fn text(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or_else(|_| wire::escape::visible(bytes), str::to_owned).into()
}

/// An object of counters.
#[must_use]
pub fn counters(list: impl IntoIterator<Item = (String, u64)>) -> Value {
    Value::Object(list.into_iter().map(|(name, value)| (name, value.into())).collect::<Map<_, _>>())
}

/// A line on standard output.
///
/// # Errors
/// It is closed.
pub fn line(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(|error| Failure::temporary(format!("standard output: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_escapes_what_strangers_wrote() {
        let columns = [("ADDRESS", "address"), ("HELD", "held")];
        let rows = vec![vec![text(b"a\x1b[2J@b"), true.into()], vec![text(b"\xff"), Value::Null]];
        let table = table(&columns, &rows);
        assert!(!table.contains('\x1b') && table.contains("a\\x1b[2J@b") && table.contains("yes"), "{table}");
        assert_eq!(
            to_json(&columns, &rows).to_string(),
            r#"[{"address":"a\u001b[2J@b","held":true},{"address":"\\xff","held":null}]"#
        );
    }
}
