//! What a log comes to: messages, deliveries by result and by domain, sessions and refusals.

use serde_json::{Value, json};
use std::collections::HashMap;

use super::record::Record;
use crate::Failure;
use crate::print::{Printer, line, table};

/// Domains that are counted by themselves; those that come later are counted together.
const DOMAINS_MAX: usize = 10_000;
/// Domains that people are shown.
const SHOWN_MAX: usize = 50;

#[derive(Debug, Default)]
pub(super) struct Stats {
    messages: u64,
    bytes: u64,
    ended: u64,
    bounces: u64,
    sessions: u64,
    refused: u64,
    all: Results,
    domains: HashMap<Vec<u8>, Results>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Results {
    success: u64,
    failure: u64,
    deferral: u64,
}

impl Results {
    fn add(&mut self, status: &[u8]) {
        let count = match status {
            b"success" => &mut self.success,
            b"failure" => &mut self.failure,
            _ => &mut self.deferral,
        };
        *count = count.saturating_add(1);
    }
}

impl Stats {
    pub(super) fn add(&mut self, record: &Record) {
        let fields = &record.fields;
        let count = match fields.event.as_str() {
            "info" => {
                self.bytes = self.bytes.saturating_add(fields.n("bytes").unwrap_or(0));
                &mut self.messages
            }
            "end" => &mut self.ended,
            "bounce" => &mut self.bounces,
            "session" => &mut self.sessions,
            "refused" => &mut self.refused,
            "delivery" => {
                return self.delivery(fields.t("status").unwrap_or_default(), fields.t("recipient").unwrap_or_default());
            }
            _ => return,
        };
        *count = count.saturating_add(1);
    }

    fn delivery(&mut self, status: &[u8], recipient: &[u8]) {
        self.all.add(status);
        let domain = recipient.rsplit(|b| *b == b'@').next().unwrap_or_default().to_ascii_lowercase();
        let domain =
            if self.domains.len() < DOMAINS_MAX || self.domains.contains_key(&domain) { domain } else { b"...".to_vec() };
        self.domains.entry(domain).or_default().add(status);
    }

    /// # Errors
    /// Standard output is closed.
    pub(super) fn show(&self, printer: Printer) -> Result<(), Failure> {
        let mut domains: Vec<(&Vec<u8>, &Results)> = self.domains.iter().collect();
        let weight = |results: &Results| results.success.saturating_add(results.failure).saturating_add(results.deferral);
        domains.sort_by(|(a, x), (b, y)| weight(y).cmp(&weight(x)).then(a.cmp(b)));
        let counters = [
            ("messages", self.messages),
            ("bytes", self.bytes),
            ("ended", self.ended),
            ("bounces", self.bounces),
            ("success", self.all.success),
            ("failure", self.all.failure),
            ("deferral", self.all.deferral),
            ("sessions", self.sessions),
            ("refused", self.refused),
        ];
        let row = |(domain, results): &(&Vec<u8>, &Results)| -> Vec<Value> {
            vec![logline::shown(domain).into(), results.success.into(), results.failure.into(), results.deferral.into()]
        };
        if printer.json {
            let mut all = crate::print::counters(counters.map(|(name, value)| (name.to_owned(), value)));
            let domains = domains.iter().map(|(domain, results)| {
                json!({ "domain": logline::shown(domain), "success": results.success, "failure": results.failure,
                    "deferral": results.deferral })
            });
            if let Some(object) = all.as_object_mut() {
                object.insert("domains".to_owned(), domains.collect());
            }
            return printer.value(&all);
        }
        let counters: Vec<Vec<Value>> = counters.iter().map(|(name, value)| vec![(*name).into(), (*value).into()]).collect();
        line(&table(&[("COUNTER", ""), ("VALUE", "")], &counters))?;
        let rows: Vec<Vec<Value>> = domains.iter().take(SHOWN_MAX).map(row).collect();
        line(&format!("\n{}", table(&[("DOMAIN", ""), ("SUCCESS", ""), ("FAILURE", ""), ("DEFERRAL", "")], &rows)))
    }
}
