//! What is measured, and how one run of it goes.

use crate::disk;
use crate::figures::Figures;
use crate::generator::{self, Load, Sent, message_id, user_name};
use crate::group::Memory;
use crate::idle_sessions::IdleSessions;
use crate::meter::{self, Used};
use crate::million;
use crate::pop3;
use crate::responder::Responder;
use crate::server::{LOCAL, Mode, REMOTE, SINK};
use crate::stage::{Stage, USERS};
use crate::stats::percentile;
use crate::target::{Row, Target, qmail};
use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, SystemTime};

/// Longest that one run may take to send, and again to deliver.
const LIMIT: Duration = Duration::from_secs(300);
const NOTHING: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2599);
const CLIENTS: usize = 20;
pub(crate) const MIB: f64 = 1024.0 * 1024.0;

/// One table.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) rows: &'static [Row],
    /// Columns that are printed; all are in the JSON.
    pub(crate) columns: &'static [&'static str],
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// To system or virtual users, until the last message is in `new/`.
    Local { messages: usize, per_connection: usize, size_bytes: usize },
    /// The same 4 KiB messages without TLS and with it.
    Tls { messages: usize, per_connection: usize },
    /// To the sink.
    Relay { messages: usize },
    /// Until the last 250; nothing is delivered.
    Accept { messages: usize, connections: usize },
    /// One message to many, to the sink.
    List { recipients: usize },
    /// Memory after some work and a rest.
    Idle,
    /// S2 with and without many sessions that do nothing.
    Sessions { sessions: usize, messages: usize },
    /// [`million`].
    Million,
}

const SERVED: &[&str] = &[
    "per_s",
    "p50_ms",
    "p99_ms",
    "cpu_s_per_1000",
    "peak_rss_mib",
    "syncs_per_message",
    "lost",
    "duplicate",
    "retries",
    "generator_cpu_%",
    "other_cpu_%",
];
const LARGE: &[&str] = &[
    "per_s",
    "p50_ms",
    "p99_ms",
    "cpu_s_per_1000",
    "peak_rss_mib",
    "largest_process_mib",
    "syncs_per_message",
    "lost",
    "duplicate",
    "other_cpu_%",
];
const TLS: &[&str] = &[
    "per_s",
    "per_s_without",
    "share",
    "p50_ms",
    "p99_ms",
    "cpu_s_per_1000",
    "lost",
    "duplicate",
    "generator_cpu_%",
    "other_cpu_%",
];
const PROTECTED: &[Row] = &[Row::Qmail, Row::Postfix];
const SERVERS: &[Row] = &[Row::Qmail, Row::Postfix, Row::Exim, Row::Nothing];

/// All, in the order in which they run.
pub(crate) const SCENARIOS: [Scenario; 13] = [
    Scenario {
        name: "S1",
        about: "4 KiB messages to 100 local users, 20 connections, one message a connection; messages/s until the last is in new/",
        rows: &[
            Row::Qmail,
            Row::QmailVirtual,
            Row::Postfix,
            Row::PostfixNoFlowDelay,
            Row::Exim,
            Row::Nothing,
            Row::DiskFiles,
            Row::DiskLog,
        ],
        columns: SERVED,
        kind: Kind::Local { messages: 5000, per_connection: 1, size_bytes: 4096 },
    },
    Scenario {
        name: "S2",
        about: "4 KiB messages to 100 local users, 20 connections, 100 messages a connection; messages/s until the last is in new/",
        rows: SERVERS,
        columns: SERVED,
        kind: Kind::Local { messages: 5000, per_connection: 100, size_bytes: 4096 },
    },
    Scenario {
        name: "S3",
        about: "4 KiB messages relayed to a sink, 20 connections, one message a connection; messages/s until the last is there",
        rows: SERVERS,
        columns: SERVED,
        kind: Kind::Relay { messages: 5000 },
    },
    Scenario {
        name: "S4/1",
        about: "acceptance alone (deliveries held), 1 connection; messages/s",
        rows: SERVERS,
        columns: SERVED,
        kind: Kind::Accept { messages: 1000, connections: 1 },
    },
    Scenario {
        name: "S4/10",
        about: "acceptance alone (deliveries held), 10 connections; messages/s",
        rows: SERVERS,
        columns: SERVED,
        kind: Kind::Accept { messages: 4000, connections: 10 },
    },
    Scenario {
        name: "S4/100",
        about: "acceptance alone (deliveries held), 100 connections; messages/s",
        rows: SERVERS,
        columns: SERVED,
        kind: Kind::Accept { messages: 10_000, connections: 100 },
    },
    Scenario {
        name: "S5",
        about: "one message to 5,000 recipients relayed to a sink (RCPTs pipelined); recipients/s until the last is there, CPU and syncs per recipient",
        rows: SERVERS,
        columns: SERVED,
        kind: Kind::List { recipients: 5000 },
    },
    Scenario {
        name: "S6",
        about: "10 MiB messages to 100 local users, 20 connections, one message a connection; messages/s until the last is in new/",
        rows: SERVERS,
        columns: LARGE,
        kind: Kind::Local { messages: 200, per_connection: 1, size_bytes: 10 << 20 },
    },
    Scenario {
        name: "T1",
        about: "S1 with STARTTLS, a whole handshake for each message, and without in the same run; messages/s until the last is in new/",
        rows: PROTECTED,
        columns: TLS,
        kind: Kind::Tls { messages: 3000, per_connection: 1 },
    },
    Scenario {
        name: "T100",
        about: "S2 with STARTTLS, a whole handshake for 100 messages, and without in the same run; messages/s until the last is in new/",
        rows: PROTECTED,
        columns: TLS,
        kind: Kind::Tls { messages: 5000, per_connection: 100 },
    },
    Scenario {
        name: "idle",
        about: "memory at rest, 60 s after 1,000 messages to 100 users and (qmail-rs) 20 POP3 logins",
        rows: &[Row::Qmail, Row::Postfix, Row::Exim],
        columns: &["pss_mib", "rss_mib", "processes"],
        kind: Kind::Idle,
    },
    Scenario {
        name: "sessions",
        about: "5,000 idle SMTP sessions open, and S2 beside them and before them; messages/s until the last is in new/",
        rows: &[Row::Qmail],
        columns: &["per_s", "per_s_without", "share", "pss_mib", "rss_mib", "p99_ms", "lost", "duplicate", "other_cpu_%"],
        kind: Kind::Sessions { sessions: 5000, messages: 5000 },
    },
    Scenario {
        name: "million",
        about: "1,000,000 deferred messages over 100,000 domains: restarts, memory, and 4 KiB letters to local users, 100 a second, beside them",
        rows: &[Row::Qmail],
        columns: million::COLUMNS,
        kind: Kind::Million,
    },
];

impl Scenario {
    /// How often it is run, where so many rounds are wished.
    pub(crate) fn rounds(&self, wished: usize) -> usize {
        // It compares within itself, and takes long.
        if matches!(self.kind, Kind::Million) { 1 } else { wished }
    }
}

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// A small part of everything, to see that it works.
    pub(crate) quick: bool,
}

impl Size {
    pub(crate) fn of(self, full: usize) -> usize {
        if self.quick { full.div_ceil(20).max(10) } else { full }
    }

    fn rest(self) -> Duration {
        Duration::from_secs(if self.quick { 5 } else { 60 })
    }

    fn disk(self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { 4 })
    }
}

/// One run of a scenario for a row; `run` is part of the messages' ids and unique.
///
/// # Errors
/// The target does not start, or nothing can be measured. What is slow or lost is a figure.
pub(crate) fn run(
    scenario: &Scenario,
    row: Row,
    target: Option<&mut Target<'_>>,
    stage: &Stage,
    size: Size,
    run: &str,
) -> Result<Figures> {
    match row {
        Row::DiskFiles => return Ok(limit(&disk::files(&stage.work.join("disk"), size.disk())?)),
        Row::DiskLog => return Ok(limit(&disk::log(&stage.work.join("disk"), size.disk())?)),
        _ => {}
    }
    let load = load(scenario.kind, size, run);
    let Some(target) = target else { return nothing(stage, &load) };
    let figures = served(scenario.kind, target, stage, load, size);
    target.stop();
    figures
}

fn served(kind: Kind, target: &mut Target<'_>, stage: &Stage, mut load: Load, size: Size) -> Result<Figures> {
    load.to = target.address();
    match kind {
        Kind::Local { .. } => {
            target.start(Mode::Deliver)?;
            local(target, stage, &load)
        }
        Kind::Tls { .. } => {
            target.start(Mode::Deliver)?;
            // The first run warms up what stays warm, so that the two that are compared begin alike.
            let clear = |run: &str| Load { tls: false, run: format!("{run}-{}", load.run), ..load.clone() };
            local(target, stage, &clear("warm"))?;
            let without = local(target, stage, &clear("without"))?.get("per_s").unwrap_or_default();
            let mut figures = local(target, stage, &load)?;
            let with = figures.get("per_s").unwrap_or_default();
            figures.set("per_s_without", without);
            figures.set("share", with / without.max(1e-9));
            Ok(figures)
        }
        Kind::Relay { .. } | Kind::List { .. } => relay(target, stage, &load),
        Kind::Accept { .. } => accept(target, stage, &load),
        Kind::Idle => idle(target, stage, &load, size),
        Kind::Million => million::run(stage, &target.group, size),
        Kind::Sessions { sessions, .. } => with_sessions(target, stage, &load, size.of(sessions)),
    }
}

fn load(kind: Kind, size: Size, run: &str) -> Load {
    let small = Load {
        to: NOTHING,
        messages: 0,
        connections: CLIENTS,
        per_connection: 1,
        domain: LOCAL,
        names: USERS,
        recipients_per_message: 1,
        size_bytes: 4096,
        pipelined: false,
        tls: false,
        run: run.to_owned(),
        limit: LIMIT,
    };
    match kind {
        Kind::Local { messages, per_connection, size_bytes } => {
            Load { messages: size.of(messages), per_connection, size_bytes, ..small }
        }
        Kind::Tls { messages, per_connection } => Load { messages: size.of(messages), per_connection, tls: true, ..small },
        Kind::Relay { messages } => Load { messages: size.of(messages), domain: REMOTE, ..small },
        Kind::Accept { messages, connections } => Load { messages: size.of(messages), connections, per_connection: 100, ..small },
        Kind::List { recipients } => {
            let recipients = size.of(recipients);
            let (messages, connections) = (1, 1);
            Load {
                messages,
                connections,
                names: recipients,
                recipients_per_message: recipients,
                pipelined: true,
                domain: REMOTE,
                ..small
            }
        }
        Kind::Idle => Load { messages: size.of(1000), ..small },
        Kind::Million => small,
        Kind::Sessions { messages, .. } => Load { messages: size.of(messages), per_connection: 100, ..small },
    }
}

fn limit(limit: &disk::Limit) -> Figures {
    let mut figures = Figures::default();
    figures.set("per_s", limit.per_s);
    latencies(&mut figures, &limit.times_ms);
    figures
}

fn latencies(figures: &mut Figures, times_ms: &[f64]) {
    for (name, q) in [("p50_ms", 0.5), ("p99_ms", 0.99)] {
        if let Some(ms) = percentile(times_ms, q) {
            figures.set(name, ms);
        }
    }
}

/// The generator against a server that answers and stores nothing.
fn nothing(stage: &Stage, load: &Load) -> Result<Figures> {
    let responder = Responder::start(NOTHING, false)?;
    let group = crate::group::Group::new("nothing")?;
    let (sent, used) =
        meter::during(&group, &stage.syncs, || generator::send(&Load { to: responder.address(), ..load.clone() }))?;
    let mut figures = Figures::default();
    figures.set("per_s", rate(load, sent.accepted_count(), sent.elapsed));
    latencies(&mut figures, &sent.transactions_ms);
    used.shares(&mut figures);
    Ok(figures)
}

/// Messages (or recipients) per second.
fn rate(load: &Load, messages: usize, span: Duration) -> f64 {
    messages.saturating_mul(load.recipients_per_message) as f64 / span.as_secs_f64().max(1e-9)
}

fn span(sent: &Sent, last: SystemTime) -> Duration {
    last.duration_since(sent.begin).unwrap_or_default()
}

fn sending(load: &Load, sent: &Sent, used: &Used) -> Figures {
    let mut figures = Figures::default();
    figures.set("accept_per_s", rate(load, sent.accepted_count(), sent.elapsed));
    latencies(&mut figures, &sent.transactions_ms);
    figures.extend(used.figures(load.messages.saturating_mul(load.recipients_per_message)));
    figures.set("retries", sent.retries as f64);
    if let Some(error) = &sent.last_error {
        eprintln!("    last error: {error}");
    }
    figures
}

/// (accepted messages that are not there, copies too many)
fn lost_and_duplicate(load: &Load, sent: &Sent, found: &HashMap<String, usize>) -> (usize, usize) {
    let accepted = sent.accepted.iter().enumerate().filter(|(_, yes)| **yes);
    let lost = accepted.filter(|(n, _)| !found.contains_key(&message_id(&load.run, *n))).count();
    let duplicate = found.values().fold(0usize, |sum, count| sum.saturating_add(count.saturating_sub(1)));
    (lost, duplicate)
}

/// Mail for local users; the target runs.
fn local(target: &Target<'_>, stage: &Stage, load: &Load) -> Result<Figures> {
    let load = Load { domain: target.domain(), ..load.clone() };
    let boxes = target.mailboxes();
    boxes.renew()?;
    let ((sent, last), used) = meter::during(&target.group, &stage.syncs, || {
        let sent = generator::send(&load)?;
        let last = boxes.wait(sent.accepted_count(), LIMIT)?;
        Ok((sent, last))
    })?;
    let found = boxes.ids()?;
    let (lost, duplicate) = lost_and_duplicate(&load, &sent, &found);
    let mut figures = Figures::default();
    figures.set("per_s", rate(&load, found.len(), span(&sent, last)));
    figures.extend(sending(&load, &sent, &used));
    figures.set("lost", lost as f64);
    figures.set("duplicate", duplicate as f64);
    Ok(figures)
}

fn relay(target: &mut Target<'_>, stage: &Stage, load: &Load) -> Result<Figures> {
    let sink = Responder::start(SINK, true)?;
    target.start(Mode::Deliver)?;
    rustix::fs::sync();
    let ((sent, received), used) = meter::during(&target.group, &stage.syncs, || {
        let sent = generator::send(load)?;
        let received = sink.wait(sent.accepted_count().saturating_mul(load.recipients_per_message), LIMIT);
        Ok((sent, received))
    })?;
    let last = received.last.with_context(|| format!("nothing came: {:?}", sent.last_error))?;
    let mut figures = Figures::default();
    figures.set("per_s", received.unique as f64 / span(&sent, last).as_secs_f64().max(1e-9));
    figures.extend(sending(load, &sent, &used));
    let accepted = sent.accepted.iter().enumerate().filter(|(_, yes)| **yes);
    let missing = |n: usize| load.recipients_per_message.saturating_sub(received.recipients_of(&message_id(&load.run, n)));
    figures.set("lost", accepted.map(|(n, _)| missing(n)).fold(0, usize::saturating_add) as f64);
    figures.set("duplicate", received.duplicates as f64);
    figures.set("sink_transactions", received.transactions as f64);
    figures.set("sink_connections", received.connections as f64);
    Ok(figures)
}

fn accept(target: &mut Target<'_>, stage: &Stage, load: &Load) -> Result<Figures> {
    target.start(Mode::Hold)?;
    rustix::fs::sync();
    let (sent, used) = meter::during(&target.group, &stage.syncs, || generator::send(load))?;
    let queued = target.queued()?;
    let mut figures = Figures::default();
    figures.set("per_s", rate(load, sent.accepted_count(), sent.elapsed));
    figures.extend(sending(load, &sent, &used));
    figures.set("lost", sent.accepted_count().saturating_sub(queued) as f64);
    figures.set("duplicate", queued.saturating_sub(sent.accepted_count()) as f64);
    Ok(figures)
}

fn idle(target: &mut Target<'_>, stage: &Stage, load: &Load, size: Size) -> Result<Figures> {
    target.start(Mode::Deliver)?;
    let worked = local(target, stage, load)?;
    if worked.get("lost") != Some(0.0) {
        bail!("not everything arrived");
    }
    if target.has_pop3() {
        for k in 0..20 {
            pop3::visit(qmail::POP3, &format!("{}@{}", user_name(k), qmail::VIRTUAL), qmail::PASSWORD)?;
        }
    }
    std::thread::sleep(size.rest());
    let mut figures = Figures::default();
    memory(&mut figures, target);
    Ok(figures)
}

fn memory(figures: &mut Figures, target: &Target<'_>) {
    let Memory { total_bytes, processes, .. } = target.group.pss();
    figures.set("pss_mib", total_bytes as f64 / MIB);
    figures.set("rss_mib", target.group.rss().total_bytes as f64 / MIB);
    figures.set("processes", processes as f64);
}

fn with_sessions(target: &mut Target<'_>, stage: &Stage, load: &Load, sessions: usize) -> Result<Figures> {
    target.start(Mode::Deliver)?;
    // The first run warms up what stays warm, so that the two that are compared begin alike.
    for warm in ["warm-", ""] {
        let without = local(target, stage, &Load { run: format!("{warm}without-{}", load.run), ..load.clone() })?;
        if warm.is_empty() {
            return beside(target, stage, load, sessions, without.get("per_s").unwrap_or_default());
        }
    }
    bail!("no run without sessions")
}

fn beside(target: &Target<'_>, stage: &Stage, load: &Load, sessions: usize, without: f64) -> Result<Figures> {
    let open = IdleSessions::open(target.address(), sessions)?;
    let mut resting = Figures::default();
    memory(&mut resting, target);
    let mut figures = local(target, stage, load)?;
    figures.extend(resting);
    let with = figures.get("per_s").unwrap_or_default();
    figures.set("per_s_without", without);
    figures.set("share", with / without.max(1e-9));
    figures.set("sessions_still_open", open.still_open() as f64);
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_duplicates() {
        let load = load(Kind::Relay { messages: 4 }, Size { quick: false }, "r");
        let sent = Sent {
            begin: SystemTime::now(),
            elapsed: Duration::from_secs(1),
            accepted: vec![true, true, false, true],
            retries: 0,
            last_error: None,
            transactions_ms: Vec::new(),
        };
        let found = |ids: &[(&str, usize)]| ids.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect();
        assert_eq!(lost_and_duplicate(&load, &sent, &found(&[("r-0", 1), ("r-1", 1), ("r-3", 1)])), (0, 0));
        assert_eq!(lost_and_duplicate(&load, &sent, &found(&[("r-0", 3), ("r-3", 1)])), (1, 2));
        assert_eq!(lost_and_duplicate(&load, &sent, &found(&[("x-0", 1)])), (3, 0));
    }

    #[test]
    fn names_are_unique_and_rows_compare_with_qmail() {
        let mut names: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SCENARIOS.len());
        assert!(SCENARIOS.iter().all(|scenario| scenario.rows.first() == Some(&Row::Qmail)));
    }

    #[test]
    fn quick_is_smaller_but_not_nothing() {
        let quick = |kind| load(kind, Size { quick: true }, "r").messages;
        assert_eq!(quick(Kind::Relay { messages: 5000 }), 250);
        assert_eq!(quick(Kind::Relay { messages: 50 }), 10);
    }
}
