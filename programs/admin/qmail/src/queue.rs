//! `qmail queue`: everything is said to the running qmail-send, which alone opens the spool.

use control::Root;
use ipc::admin::{QueueAnswer, QueueRequest, RecipientRow, Row};
use ipc::field::Verdict;
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::print::{Column, Printer, counters, date, line, table, text, to_json};
use crate::{Failure, cli};

/// Messages asked for at a time.
const PAGE: u32 = 1000;

const MESSAGES: [Column; 10] = [
    ("ID", "id"),
    ("ARRIVED", "arrival_s"),
    ("BYTES", "bytes"),
    ("SENDER", "sender"),
    ("PENDING", "pending"),
    ("RECIPIENTS", "recipients"),
    ("DUE", "due_s"),
    ("HELD", "held"),
    ("PRIORITY", "priority"),
    ("DELIVER BY", "deliver_by_s"),
];
/// Behind those: for people in one column, for programs in one each.
const REMARKS: Column = ("REMARKS", "remarks");
const MORE: [Column; 6] = [
    ("RETURNS", "returns"),
    ("HOLD UNTIL", "hold_until_s"),
    ("TLS", "requires_tls"),
    ("REPORTS", "reports"),
    ("UNCONFIRMED", "unconfirmed"),
    ("UNREADABLE", "unreadable"),
];
const RECIPIENTS: [Column; 6] = [
    ("RECIPIENT", "address"),
    ("WAY", "way"),
    ("STATE", "state"),
    ("ATTEMPTS", "attempts"),
    ("DUE", "due_s"),
    ("LAST REPLY", "last_reply"),
];

/// Runs the command.
///
/// # Errors
/// Not running, or what qmail-send says.
pub fn run(root: &Root, command: &cli::Queue, printer: Printer) -> Result<(), Failure> {
    let send = Admin::send(root)?;
    let request = match command {
        cli::Queue::List => return list(&send, printer),
        cli::Queue::Show { id } => return show(&send, *id, printer),
        cli::Queue::Stats => return stats(&send, printer),
        cli::Queue::Retry { id: Some(id), .. } => QueueRequest::Retry { id: *id },
        cli::Queue::Retry { id: None, .. } => QueueRequest::RetryAll {},
        cli::Queue::Remove { id } => QueueRequest::Remove { id: *id },
        cli::Queue::Hold { id } => QueueRequest::Hold { id: *id },
        cli::Queue::Release { id } => QueueRequest::Release { id: *id },
    };
    let answers = send.queue(&request)?;
    let count = answers.iter().find_map(|answer| if let QueueAnswer::Ok { messages } = answer { Some(*messages) } else { None });
    let count = count.unwrap_or(0);
    if printer.json { printer.value(&json!({ "ok": true, "messages": count })) } else { line(&format!("{count} messages")) }
}

fn stats(send: &Admin, printer: Printer) -> Result<(), Failure> {
    let mut list = Vec::new();
    for answer in send.queue(&QueueRequest::Stats {})? {
        let QueueAnswer::Stats { counters } = answer else { continue };
        list.extend(counters.into_iter().map(|counter| (wire::escape::visible(&counter.name), counter.value)));
    }
    if printer.json {
        return printer.value(&counters(list));
    }
    let rows: Vec<Vec<Value>> = list.into_iter().map(|(name, value)| vec![name.into(), value.into()]).collect();
    line(&table(&[("COUNTER", "counter"), ("VALUE", "value")], &rows))
}

/// Page by page, so that a million messages need no memory here or there.
fn list(send: &Admin, printer: Printer) -> Result<(), Failure> {
    let mut after = 0;
    let mut any = false;
    loop {
        let mut page = Vec::new();
        for answer in send.queue(&QueueRequest::List { after, count: PAGE })? {
            let QueueAnswer::Rows { rows, .. } = answer else { continue };
            page.extend(rows);
        }
        let Some(last) = page.iter().map(|row| row.id).max().filter(|id| *id > after) else { break };
        let rows: Vec<_> = page.iter().map(|row| message(row, printer)).collect();
        print_page(&rows, any, printer)?;
        (after, any) = (last, true);
    }
    match (printer.json, any) {
        (true, true) => line("]"),
        (true, false) => line("[]"),
        (false, true) => Ok(()),
        (false, false) => line("the queue is empty"),
    }
}

/// JSON stays one array over all pages.
fn print_page(rows: &[Vec<Value>], any: bool, printer: Printer) -> Result<(), Failure> {
    if !printer.json {
        return line(&table(&columns(printer), rows));
    }
    let objects = to_json(&columns(printer), rows);
    let objects: Vec<String> = objects.as_array().into_iter().flatten().map(ToString::to_string).collect();
    line(&format!("{}{}", if any { "," } else { "[" }, objects.join(",\n")))
}

fn show(send: &Admin, id: u64, printer: Printer) -> Result<(), Failure> {
    let mut found: Option<Row> = None;
    let mut rows = Vec::new();
    for answer in send.queue(&QueueRequest::Show { id })? {
        let QueueAnswer::Message { row, recipients, .. } = answer else { continue };
        rows.extend(recipients.iter().map(|to| recipient(to, printer)));
        found = Some(row);
    }
    let row = found.ok_or_else(|| Failure::permanent(format!("there is no message {id}")))?;
    let head = vec![message(&row, printer)];
    if printer.json {
        let mut object = to_json(&columns(printer), &head).get(0).cloned().unwrap_or_default();
        if let Some(object) = object.as_object_mut() {
            object.remove("recipients");
            object.insert("recipients".to_owned(), to_json(&RECIPIENTS, &rows));
        }
        return printer.value(&object);
    }
    line(&format!("{}\n\n{}", table(&columns(printer), &head), table(&RECIPIENTS, &rows)))
}

fn columns(printer: Printer) -> Vec<Column> {
    let more = if printer.json { &MORE[..] } else { &[REMARKS] };
    [&MESSAGES[..], more].concat()
}

fn message(row: &Row, printer: Printer) -> Vec<Value> {
    let mut values = vec![
        row.id.into(),
        time(row.arrival_s, printer),
        row.bytes.into(),
        sender(&row.sender, printer),
        row.pending.into(),
        row.recipients.into(),
        due(row.due_s, printer),
        row.held.into(),
        i8::from_le_bytes([row.priority]).into(),
        if row.deliver_by_s == 0 && !printer.json { "-".into() } else { time(row.deliver_by_s, printer) },
    ];
    if printer.json {
        values.extend([row.returns.into(), row.hold_until_s.into(), row.requires_tls.into()]);
        values.extend([row.reports, row.unconfirmed, row.unreadable].map(Value::from));
    } else {
        values.push(remarks(row).into());
    }
    values
}

/// What makes a message another one than most.
fn remarks(row: &Row) -> String {
    let until = (row.hold_until_s > 0).then(|| format!("not before {}", date(row.hold_until_s)));
    let said = [
        (row.unreadable, "damaged or unreadable"),
        (row.unconfirmed, "its import is not over"),
        (row.requires_tls, "requires TLS"),
        (row.returns, "fails when late"),
    ];
    let said = said.into_iter().filter(|(is, _)| *is).map(|(_, text)| text.to_owned());
    said.chain(until).collect::<Vec<_>>().join(", ")
}

fn recipient(row: &RecipientRow, printer: Printer) -> Vec<Value> {
    let state = match row.done {
        None => "pending",
        Some(Verdict::Success) => "delivered",
        Some(Verdict::Failure) => "failed",
        Some(Verdict::Deferral) => "deferred",
    };
    vec![
        text(row.address.as_bytes()),
        if row.local { "local" } else { "remote" }.into(),
        state.into(),
        row.attempts.into(),
        due(row.due_s, printer),
        text(&row.last_reply),
    ]
}

fn sender(address: &wire::Address, printer: Printer) -> Value {
    if address.is_null() && !printer.json { "<>".into() } else { text(address.as_bytes()) }
}

/// UNIX seconds for programs, a date in UTC for people.
fn time(unix_s: u64, printer: Printer) -> Value {
    if printer.json { unix_s.into() } else { date(unix_s).into() }
}

fn due(unix_s: u64, printer: Printer) -> Value {
    if unix_s == 0 && !printer.json { "now".into() } else { time(unix_s, printer) }
}
