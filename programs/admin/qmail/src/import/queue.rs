//! `qmail import queue`: the messages of a classic queue go on in the queue of this system, each of them once.
//!
//! The classic queue is only read, but for one file in it: the journal. Whatever is killed when, and however often this runs:
//!
//! 1. A message is handed to qmail-send with a key: it is durable there, and nothing of it is tried yet.
//! 2. The key is noted in the journal, which is synced.
//! 3. qmail-send is told that the message may go on.
//!
//! A key in the journal is never handed over again; a message whose key is not there was not tried here, and if it is in this queue it is
//! found by its key. A start of this command does first what an earlier one left: it looks for messages that wait and whose keys are in the
//! journal. The key is made of the message's number, sender and body, which no attempt and no control file changes; a queue that is copied keeps
//! its journal with it.
//! No classic qmail-send runs meanwhile: its lock is held here.

mod journal;
pub(crate) mod lock;
mod source;

use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::Root;
use ipc::Message as _;
use ipc::admin::{QueueAnswer, QueueRequest};
use ipc::import::Became;
use ipc::queue::{FLAG_EIGHT_BIT, Item, Packer};
use serde_json::json;

use crate::admin::Admin;
use crate::print::{Printer, line};
use crate::{Failure, cli, export};

use journal::Journal;
use source::{Loaded, Places, Source};

/// The journal, in the directory of the classic queue.
pub(crate) const JOURNAL: &str = "imported";
/// Messages that are noted in the journal with one sync, and then go on.
const BATCH: usize = 64;
/// What qmail-send has noted is on the disk after a second: this ends when all of it is.
const SETTLED: Duration = Duration::from_millis(1200);
/// Bytes of a body read at a time.
const CHUNK_LEN: usize = 64 * 1024;
/// People see how far it is after so many messages.
const PROGRESS_EVERY: usize = 100;

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    imported: u64,
    recipients: u64,
    already: u64,
    /// Nothing of them was to be done any more.
    finished: u64,
    /// Of an earlier run, which now go on.
    resumed: u64,
    leftovers: Vec<(PathBuf, String)>,
    problems: Vec<(PathBuf, String)>,
    remarks: Vec<String>,
}

/// Runs the command. False: something was left in the queue.
///
/// # Errors
/// The directory is no queue or in use, qmail-send does not run, a disk is full.
pub(super) fn run(root: &Root, options: &cli::ImportQueue, printer: Printer) -> Result<bool, Failure> {
    let is_dry = options.options.dry_run;
    let mut outcome = Outcome::default();
    let _lock = match lock::take(&options.dir) {
        Err(failure) if is_dry && failure.is_temporary() => {
            outcome.remarks.push(failure.text);
            None
        }
        lock => Some(lock?),
    };
    let places = Places::read(root, options, &mut outcome.remarks)?;
    let usual = options.dir.join(JOURNAL);
    let file = options.journal.as_ref().unwrap_or(&usual);
    let mut journal = if is_dry { Journal::look(file)? } else { Journal::open(file)? };
    if *file != usual {
        // Of an import that was not told of the other one.
        journal.add(Journal::look(&usual)?);
    }
    let exported = export::queue::journal::exported(&options.dir.join(export::queue::JOURNAL))?;
    let send = if is_dry { None } else { Some(connect(root)?) };
    let source = Source::scan(&options.dir)?;
    let (kept, batch) = (HashMap::new(), Vec::new());
    let mut run = Run { root, printer, source: &source, send, journal, exported, kept, batch, outcome };
    let done = run.all(&places);
    // What was handed over is noted, whatever stopped the rest.
    let noted = run.note();
    run.progress(source.len());
    let outcome = std::mem::take(&mut run.outcome);
    let has_written = outcome.imported > 0 || outcome.resumed > 0;
    drop(run);
    if has_written && noted.is_ok() {
        std::thread::sleep(SETTLED);
    }
    outcome.print(is_dry, printer)?;
    done.and(noted)?;
    Ok(outcome.problems.is_empty())
}

/// Was anything of this queue taken over?
///
/// # Errors
/// Its journal cannot be read, or is damaged.
pub(crate) fn was_imported(dir: &Path) -> Result<bool, Failure> {
    Ok(!Journal::look(&dir.join(JOURNAL))?.is_empty())
}

fn connect(root: &Root) -> Result<Admin, Failure> {
    Admin::send(root).map_err(|failure| {
        let advice = "start the system first (qmail start): the messages go into its queue through qmail-send";
        let control = "with 0 in control/concurrencylocal and control/concurrencyremote nothing is delivered meanwhile";
        Failure::temporary(format!("{}: {advice}; {control}", failure.text))
    })
}

/// A run over all messages.
struct Run<'a> {
    root: &'a Root,
    printer: Printer,
    source: &'a Source,
    /// `None`: a dry run.
    send: Option<Admin>,
    journal: Journal,
    /// Messages that were exported into this queue: their ids here, by number.
    exported: HashMap<u64, u64>,
    /// Keys of messages that wait in this system's queue.
    kept: HashMap<Vec<u8>, u64>,
    /// Handed over, and not noted yet: key, id here, number there.
    batch: Vec<(String, u64, u64)>,
    outcome: Outcome,
}

impl Run<'_> {
    fn all(&mut self, places: &Places) -> Result<(), Failure> {
        self.resume()?;
        self.outcome.leftovers.extend(self.source.leftovers());
        self.outcome.problems.extend(self.source.problems());
        for (at, number) in self.source.messages().into_iter().enumerate() {
            if at.checked_rem(PROGRESS_EVERY) == Some(0) {
                self.progress(at);
            }
            match self.source.load(number, places) {
                Ok(Loaded::Message(message)) => self.message(&message)?,
                Ok(Loaded::Finished) => self.outcome.finished = self.outcome.finished.saturating_add(1),
                Err(problem) => self.outcome.problems.push(problem),
            }
        }
        Ok(())
    }

    /// Goes on where an earlier run was stopped: finds the messages that wait, and confirms those that are noted.
    fn resume(&mut self) -> Result<(), Failure> {
        let Some(send) = &self.send else { return Ok(()) };
        self.kept = waiting(send)?;
        let noted: Vec<u64> = self.kept.iter().filter(|(key, _)| self.journal.has(key)).map(|(_, id)| *id).collect();
        for id in noted {
            self.confirm(id)?;
            self.outcome.resumed = self.outcome.resumed.saturating_add(1);
        }
        Ok(())
    }

    fn message(&mut self, message: &source::Message) -> Result<(), Failure> {
        if self.journal.has(message.key.as_bytes()) {
            self.outcome.already = self.outcome.already.saturating_add(1);
            return Ok(());
        }
        if let Some(id) = self.is_here(message)? {
            let why = format!("it is message {id} here, and its export is not over: run qmail export queue again first");
            self.outcome.problems.push((message.body.clone(), why));
            return Ok(());
        }
        if self.send.is_some() {
            let id = match self.kept.get(message.key.as_bytes()) {
                Some(id) => *id,
                None => match self.hand_over(message)? {
                    Ok(id) => id,
                    Err(why) => {
                        self.outcome.problems.push((message.body.clone(), why));
                        return Ok(());
                    }
                },
            };
            self.batch.push((message.key.clone(), id, message.number));
        }
        self.outcome.imported = self.outcome.imported.saturating_add(1);
        let waiting = message.recipients.iter().filter(|(_, became)| matches!(became, Became::Waits { .. })).count();
        self.outcome.recipients = self.outcome.recipients.saturating_add(u64::try_from(waiting).unwrap_or(u64::MAX));
        if self.batch.len() >= BATCH { self.note() } else { Ok(()) }
    }

    /// The id of a message whose export into this queue was killed before it was removed here.
    fn is_here(&self, message: &source::Message) -> Result<Option<u64>, Failure> {
        let (Some(send), Some(id)) = (&self.send, self.exported.get(&message.number)) else { return Ok(None) };
        let answers = match send.queue(&QueueRequest::Show { id: *id }) {
            Ok(answers) => answers,
            Err(failure) if !failure.is_temporary() => return Ok(None),
            Err(failure) => return Err(failure),
        };
        // Ids come again in other spools.
        let is_same = |answer: &QueueAnswer| {
            matches!(answer, QueueAnswer::Message { row, .. }
                if row.sender == message.sender && row.arrival_s == message.arrival_s && row.bytes == message.body_len)
        };
        Ok(answers.iter().any(is_same).then_some(*id))
    }

    /// Inside: why this message cannot be taken.
    fn hand_over(&mut self, message: &source::Message) -> Result<Result<u64, String>, Failure> {
        let Some(send) = &self.send else { return Ok(Ok(0)) };
        match submit(send, message)? {
            Submitted::Answer(QueueAnswer::Kept { id }) => Ok(Ok(id)),
            Submitted::Answer(QueueAnswer::Failed { text }) => Ok(Err(wire::escape::visible(&text))),
            Submitted::Answer(QueueAnswer::NotNow { text }) => {
                let text = wire::escape::visible(&text);
                let body = visible(&message.body);
                Err(Failure::temporary(format!("{body}: qmail-send: {text}; run this again when that is over")))
            }
            Submitted::Answer(_) => Err(Failure::temporary("qmail-send is of another version than this program".to_owned())),
            Submitted::Unread(error) => {
                // What was said of it is abandoned with the connection.
                self.send = Some(connect(self.root)?);
                Ok(Err(format!("cannot be read: {error}")))
            }
        }
    }

    /// Notes what was handed over, and lets it go on.
    fn note(&mut self) -> Result<(), Failure> {
        let batch = std::mem::take(&mut self.batch);
        self.journal.note(&batch)?;
        batch.iter().try_for_each(|(_, id, _)| self.confirm(*id))
    }

    fn confirm(&self, id: u64) -> Result<(), Failure> {
        let Some(send) = &self.send else { return Ok(()) };
        send.queue(&QueueRequest::Confirm { id }).map(drop)
    }

    fn progress(&self, done: usize) {
        let mut stderr = io::stderr();
        if stderr.is_terminal() && !self.printer.json {
            let end = if done >= self.source.len() { "\n" } else { "" };
            let _ = write!(stderr, "\r{done} of {} messages{end}", self.source.len());
        }
    }
}

/// The messages in this system's queue that wait to be confirmed, by their keys.
///
/// # Errors
/// qmail-send is gone.
fn waiting(send: &Admin) -> Result<HashMap<Vec<u8>, u64>, Failure> {
    let (mut found, mut after) = (HashMap::new(), 0);
    loop {
        let Some(QueueAnswer::KeptRows { rows, after: up_to, last }) = send.queue(&QueueRequest::Kept { after })?.pop() else {
            return Err(Failure::temporary("qmail-send is of another version than this program".to_owned()));
        };
        found.extend(rows.into_iter().map(|row| (row.key.0, row.id)));
        if last || up_to <= after {
            return Ok(found);
        }
        after = up_to;
    }
}

/// What came of a message that was handed over.
enum Submitted {
    Answer(QueueAnswer),
    /// Its file cannot be read.
    Unread(io::Error),
}

/// Hands a message over; the answer comes when it is durable.
fn submit(send: &Admin, message: &source::Message) -> Result<Submitted, Failure> {
    let mut body = match source::open(&message.body) {
        Ok(body) => body.take(message.body_len),
        Err(error) => return Ok(Submitted::Unread(error)),
    };
    let head = QueueRequest::Import {
        key: message.key.as_str().into(),
        arrival_s: message.arrival_s,
        uid: message.uid,
        pid: message.pid,
    };
    send.say(&head.encode())?;
    let mut packer = Packer::new();
    let mut push = |item: &Item<'_>| packer.push(item).map_or(Ok(()), |full| send.say(&full));
    push(&Item::Begin { sender: message.sender.clone(), flags: if message.is_eight_bit { FLAG_EIGHT_BIT } else { 0 } })?;
    for (address, became) in &message.recipients {
        push(&Item::Recipient(address.clone()))?;
        if *became != (Became::Waits { due_s: 0 }) {
            push(&Item::Became(became.clone()))?;
        }
    }
    let mut left = message.body_len;
    let mut chunk = vec![0; CHUNK_LEN];
    while left > 0 {
        let len = match body.read(&mut chunk) {
            Ok(0) => return Ok(Submitted::Unread(io::ErrorKind::UnexpectedEof.into())),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Ok(Submitted::Unread(error)),
        };
        left = left.saturating_sub(u64::try_from(len).unwrap_or(u64::MAX));
        let mut rest = chunk.get(..len).unwrap_or_default();
        while !rest.is_empty() {
            if let Some(full) = packer.push_data(&mut rest) {
                send.say(&full)?;
            }
        }
    }
    if let Some(full) = packer.push(&Item::Commit) {
        send.say(&full)?;
    }
    if let Some(last) = packer.take() {
        send.say(&last)?;
    }
    Ok(Submitted::Answer(send.heard()?.0))
}

impl Outcome {
    fn print(&self, is_dry: bool, printer: Printer) -> Result<(), Failure> {
        if printer.json {
            let list = |list: &[(PathBuf, String)]| -> Vec<_> {
                list.iter().map(|(file, why)| json!({ "file": file.to_string_lossy(), "reason": why })).collect()
            };
            return printer.value(&json!({
                "dry_run": is_dry,
                "imported": self.imported,
                "recipients": self.recipients,
                "already": self.already,
                "finished": self.finished,
                "resumed": self.resumed,
                "leftovers": list(&self.leftovers),
                "problems": list(&self.problems),
                "remarks": self.remarks,
            }));
        }
        for remark in &self.remarks {
            line(&format!("note: {remark}"))?;
        }
        for (file, why) in &self.leftovers {
            line(&format!("leftover, not imported: {}: {why}", visible(file)))?;
        }
        for (file, why) in &self.problems {
            line(&format!("left to you: {}: {why}", visible(file)))?;
        }
        let would = if is_dry { "would import" } else { "imported" };
        line(&format!(
            "{would} {} messages with {} recipients to be delivered to; {} were imported before, {} had nothing left to do, {} are left to you",
            self.imported,
            self.recipients,
            self.already,
            self.finished,
            self.problems.len()
        ))
    }
}

fn visible(file: &std::path::Path) -> String {
    wire::escape::visible(std::os::unix::ffi::OsStrExt::as_bytes(file.as_os_str()))
}
