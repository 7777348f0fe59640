//! Tables for people, JSON for programs.

use crate::figures::Figures;
use crate::scenario::Scenario;
use crate::stats::Summary;
use crate::target::Row;
use serde_json::{Map, Value, json};

/// All rounds of one scenario, by row.
pub(crate) struct Results {
    pub(crate) scenario: &'static Scenario,
    pub(crate) rows: Vec<(Row, Vec<Figures>)>,
}

impl Results {
    /// Median and range of a figure over the rounds that have it.
    pub(crate) fn summary(&self, row: Row, figure: &str) -> Option<Summary> {
        let (_, rounds) = self.rows.iter().find(|(known, _)| *known == row)?;
        Summary::of(&rounds.iter().filter_map(|round| round.get(figure)).collect::<Vec<_>>())
    }

    /// A scenario of one row is told line by line, a figure each.
    fn list(&self) -> String {
        let mut lines = vec![vec![String::new()]];
        lines[0].extend(self.rows.iter().map(|(row, rounds)| format!("{} (n={})", row.title(), rounds.len())));
        for column in self.scenario.columns {
            let mut line = vec![column.replace('_', " ")];
            line.extend(self.rows.iter().map(|(row, _)| self.summary(*row, column).map_or_else(|| "n/a".into(), show)));
            lines.push(line);
        }
        format!("\n### {}: {}\n\n{}", self.scenario.name, self.scenario.about, markdown(&lines))
    }

    /// A Markdown table: a line for each row, medians with ranges, and how often the first row's throughput each reaches.
    pub(crate) fn table(&self) -> String {
        if self.scenario.rows.len() == 1 {
            return self.list();
        }
        let first = self.scenario.columns.first().copied().unwrap_or_default();
        let mut lines = vec![vec![String::new()]];
        for (n, column) in self.scenario.columns.iter().enumerate() {
            lines[0].push(column.replace('_', " "));
            if n == 0 {
                lines[0].push("qmail-rs ÷ it".into());
            }
        }
        let ours = self.summary(Row::Qmail, first);
        for (row, rounds) in &self.rows {
            let mut line = vec![format!("{} (n={})", row.title(), rounds.len())];
            for (n, column) in self.scenario.columns.iter().enumerate() {
                let summary = self.summary(*row, column);
                line.push(summary.map_or_else(|| "n/a".into(), show));
                if n == 0 {
                    let ratio = ours.zip(summary).filter(|_| *row != Row::Qmail).map(|(ours, it)| ours.median / it.median);
                    line.push(ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")));
                }
            }
            lines.push(line);
        }
        format!("\n### {}: {}\n\n{}", self.scenario.name, self.scenario.about, markdown(&lines))
    }

    pub(crate) fn json(&self) -> Value {
        let rows: Map<String, Value> =
            self.rows.iter().map(|(row, rounds)| (row.word().to_owned(), self.row_json(*row, rounds))).collect();
        json!({ "name": self.scenario.name, "about": self.scenario.about, "rows": rows })
    }

    fn row_json(&self, row: Row, rounds: &[Figures]) -> Value {
        let object =
            |figures: &Figures| figures.iter().map(|(name, value)| (name.to_owned(), json!(value))).collect::<Map<_, _>>();
        let mut medians = Map::new();
        for (name, _) in rounds.iter().flat_map(Figures::iter) {
            if let Some(summary) = self.summary(row, name) {
                medians.insert(name.to_owned(), json!({ "median": summary.median, "low": summary.low, "high": summary.high }));
            }
        }
        json!({ "figures": medians, "rounds": rounds.iter().map(object).collect::<Vec<_>>() })
    }
}

fn show(summary: Summary) -> String {
    let Summary { median, low, high } = summary;
    if low.to_bits() == high.to_bits() {
        return number(median);
    }
    format!("{} [{}–{}]", number(median), number(low), number(high))
}

/// Three digits that mean something, or the whole number.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Cells as a Markdown table whose columns line up; the first line is its head.
pub(crate) fn markdown(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |n: usize| lines.iter().filter_map(|line| line.get(n)).map(|cell| cell.chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        for (n, width) in widths.iter().enumerate() {
            let cell = line.get(n).map_or("", String::as_str);
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            // Numbers stand to the right, names to the left.
            text.push_str(&if n == 0 { format!("| {cell}{padding} ") } else { format!("| {padding}{cell} ") });
        }
        text.push_str("|\n");
        if at == 0 {
            for (n, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width.saturating_add(1));
                text.push_str(&if n == 0 { format!("|{dashes}-") } else { format!("|{dashes}:") });
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::SCENARIOS;

    #[test]
    fn numbers() {
        let cases = [(0.0, "0"), (3.0, "3"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn tables() {
        let lines = [vec!["".to_owned(), "a".into()], vec!["row".into(), "10".into()]];
        assert_eq!(markdown(&lines), "|     |  a |\n|-----|---:|\n| row | 10 |\n");
        let figures = |per_s: f64| {
            let mut figures = Figures::default();
            figures.set("per_s", per_s);
            figures
        };
        let rows = vec![(Row::Qmail, vec![figures(300.0), figures(200.0), figures(400.0)]), (Row::Postfix, vec![figures(100.0)])];
        let results = Results { scenario: &SCENARIOS[0], rows };
        let table = results.table();
        assert!(table.contains("| qmail-rs (n=3) | 300 [200–400] |"), "{table}");
        assert!(table.contains("| Postfix (n=1)  |           100 |          3.00 |"), "{table}");
        assert_eq!(results.json()["rows"]["qmail-rs"]["figures"]["per_s"]["median"], 300.0);
    }
}
