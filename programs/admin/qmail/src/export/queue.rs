//! `qmail export queue`: the messages of the running queue move into the queue of a classic qmail, each of them once.
//!
//! A message is never with both: it is held here (which is on the disk) and no delivery of it runs before anything is written; it is
//! removed here when all its files are there and synced. Held, it is delivered by nobody until one of the two goes on. Steps of a message:
//!
//! 1. It is held, and the last delivery of it is over. With others; then a second is waited, after which that is on the disk.
//! 2. mess, local, remote, bounce are written and synced: for a classic qmail that is no message yet.
//! 3. The journal of the queue (`exported`) notes its ids here and there, and is synced.
//! 4. info is put in its place in one step: now it is a message there.
//! 5. It is removed here.
//!
//! Another run first looks at the journal: what is there already is only removed here, what is half made is made anew. No classic qmail-send
//! runs meanwhile: its lock is held. A classic queue has no place for what ESMTP asks of a message (reports, times, priority, REQUIRETLS).

mod layout;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use classicqueue::{Mark, Marked};
use control::Root;
use ipc::admin::{QueueAnswer, QueueRequest, RecipientRow, Row};
use ipc::field::Verdict;
use rustix::fs::OFlags;
use serde_json::json;
use users::{Routed, Routing};
use wire::Address;

use crate::admin::Admin;
use crate::import::queue::{lock, waiting};
use crate::print::{Printer, line};
use crate::{Failure, cli, io_failure};

use layout::{Kind, Layout};

/// Messages asked for at a time.
const PAGE: u32 = 500;
/// So long a running delivery is waited for.
const DELIVERY_WAIT: Duration = Duration::from_secs(60);
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// What qmail-send has noted is on the disk after a second.
const SETTLED: Duration = Duration::from_millis(1200);
const CHUNK_LEN: usize = 64 * 1024;

/// Runs the command. False: something stays here.
///
/// # Errors
/// The directory is no queue or in use, qmail-send does not run, a disk is full.
pub fn run(root: &Root, options: &cli::ExportQueue, printer: Printer) -> Result<bool, Failure> {
    let send = Admin::send(root)?;
    if options.options.dry_run {
        return dry_run(&send, printer);
    }
    let layout = Layout::open(&options.dir, options.split)?;
    let _lock = lock::take(&options.dir)?;
    let routing = root.routing().map_err(|error| Failure::temporary(error.to_string()))?;
    let journal = Journal::open(&options.dir.join("exported"))?;
    let unconfirmed = waiting(&send)?.into_values().collect();
    let mut export = Export { send, layout, routing, journal, unconfirmed, exported: 0, problems: Vec::new(), prefixed: 0 };
    let done = export.all(printer);
    if export.exported > 0 {
        std::thread::sleep(SETTLED);
    }
    export.print(printer)?;
    done?;
    Ok(export.problems.is_empty())
}

fn dry_run(send: &Admin, printer: Printer) -> Result<bool, Failure> {
    let mut count = 0_usize;
    let mut after = 0;
    while let Some(last) =
        page(send, after)?.inspect(|ids| count = count.saturating_add(ids.len())).and_then(|ids| ids.last().copied())
    {
        after = last;
    }
    if printer.json {
        printer.value(&json!({ "dry_run": true, "exported": count, "problems": [] }))?;
    } else {
        line(&format!("would export {count} messages, which would be held, written there and removed here"))?;
    }
    Ok(true)
}

/// The ids of the next messages, sorted.
fn page(send: &Admin, after: u64) -> Result<Option<Vec<u64>>, Failure> {
    let mut ids = Vec::new();
    for answer in send.queue(&QueueRequest::List { after, count: PAGE })? {
        let QueueAnswer::Rows { rows, .. } = answer else { continue };
        ids.extend(rows.into_iter().map(|row| row.id).filter(|id| *id > after));
    }
    ids.sort_unstable();
    Ok(Some(ids).filter(|ids| !ids.is_empty()))
}

struct Export {
    send: Admin,
    layout: Layout,
    routing: Routing,
    journal: Journal,
    /// Their import is not over.
    unconfirmed: HashSet<u64>,
    exported: u64,
    problems: Vec<(u64, String)>,
    /// Recipients of users/domains, which got the prefix that virtualdomains would give them.
    prefixed: u64,
}

/// A message that is held, with its recipients.
struct Held {
    row: Row,
    recipients: Vec<RecipientRow>,
}

impl Export {
    fn all(&mut self, printer: Printer) -> Result<(), Failure> {
        let mut after = 0;
        while let Some(ids) = page(&self.send, after)? {
            after = ids.last().copied().unwrap_or(u64::MAX);
            for id in self.hold_all(ids)? {
                match self.message(id) {
                    Ok(true) => self.exported = self.exported.saturating_add(1),
                    Ok(false) => {}
                    Err(failure) if failure.is_temporary() => return Err(failure),
                    Err(failure) => self.problems.push((id, failure.text)),
                }
                if !printer.json && io::stderr().is_terminal() {
                    let _ = write!(io::stderr(), "\r{} messages", self.exported);
                }
            }
        }
        Ok(())
    }

    /// Those that are held now, and stay so if power fails.
    fn hold_all(&mut self, ids: Vec<u64>) -> Result<Vec<u64>, Failure> {
        let mut held = Vec::new();
        for id in ids {
            if self.unconfirmed.contains(&id) {
                self.problems.push((id, "its import is not over: run qmail import queue again first".to_owned()));
                continue;
            }
            match self.hold(id) {
                Ok(Some(_)) => held.push(id),
                Ok(None) => {}
                Err(failure) if failure.is_temporary() => return Err(failure),
                Err(failure) => self.problems.push((id, failure.text)),
            }
        }
        if !held.is_empty() {
            std::thread::sleep(SETTLED);
        }
        Ok(held)
    }

    /// False: it came to its end here meanwhile.
    fn message(&mut self, id: u64) -> Result<bool, Failure> {
        let Some(held) = self.hold(id)? else { return Ok(false) };
        if let Some(number) = self.journal.number(id) {
            if self.layout.has(Kind::Info, number) || !self.layout.has(Kind::Mess, number) {
                // It is there, or was there and is delivered.
                return self.remove(id).map(|()| true);
            }
            self.layout.forget(number)?;
        }
        let Some(body) = self.body(id)? else { return Ok(false) };
        let number = self.write(&held, &body)?;
        self.journal.note(id, number)?;
        let arrival = time(held.row.arrival_s);
        self.layout.put(Kind::Info, number, &classicqueue::info_bytes(&held.row.sender), Some(arrival))?;
        self.remove(id).map(|()| true)
    }

    /// Holds a message and waits for the end of its deliveries.
    fn hold(&self, id: u64) -> Result<Option<Held>, Failure> {
        let until = Instant::now().checked_add(DELIVERY_WAIT);
        let mut is_asked = false;
        loop {
            let asked = if is_asked { Ok(Vec::new()) } else { self.send.queue(&QueueRequest::Hold { id }) };
            match asked {
                Ok(_) => is_asked = true,
                Err(failure) if !failure.is_temporary() => {
                    // It has ended, or is ending just now.
                    if self.show(id)?.is_none() {
                        return Ok(None);
                    }
                }
                Err(failure) => return Err(failure),
            }
            match self.show(id)? {
                None => return Ok(None),
                Some(held) if held.row.held => return Ok(Some(held)),
                Some(_) if until.is_some_and(|until| Instant::now() >= until) => {
                    let _ = self.send.queue(&QueueRequest::Release { id });
                    return Err(Failure::permanent("a delivery of it runs and does not end; run this again".to_owned()));
                }
                Some(_) => std::thread::sleep(LOOK_PAUSE),
            }
        }
    }

    fn show(&self, id: u64) -> Result<Option<Held>, Failure> {
        let answers = match self.send.queue(&QueueRequest::Show { id }) {
            Ok(answers) => answers,
            Err(failure) if !failure.is_temporary() && failure.text.contains("no such message") => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let mut found: Option<Held> = None;
        for answer in answers {
            let QueueAnswer::Message { row, recipients, .. } = answer else { continue };
            match &mut found {
                Some(held) => held.recipients.extend(recipients),
                None => found = Some(Held { row, recipients }),
            }
        }
        Ok(found)
    }

    fn body(&self, id: u64) -> Result<Option<(OwnedFd, u64)>, Failure> {
        self.send.say(&ipc::Message::encode(&QueueRequest::Body { id }))?;
        match self.send.heard()? {
            (QueueAnswer::Body { bytes }, Some(fd)) => Ok(Some((fd, bytes))),
            (QueueAnswer::Failed { text }, _) => Err(Failure::permanent(wire::escape::visible(&text))),
            _ => Err(Failure::temporary("qmail-send is of another version than this program".to_owned())),
        }
    }

    /// Writes all but info; the message's number there.
    fn write(&mut self, held: &Held, body: &(OwnedFd, u64)) -> Result<u64, Failure> {
        let number = self.layout.message(|file| copy(body, file))?;
        let (mut local, mut remote, mut bounce) = (Vec::new(), Vec::new(), Vec::new());
        let mut dues = [u64::MAX; 2];
        for recipient in &held.recipients {
            let (address, is_local) = self.place(&recipient.address);
            let mark = if recipient.done.is_none() { Mark::Todo } else { Mark::Done };
            if recipient.done.is_none()
                && let Some(due) = dues.get_mut(usize::from(!is_local))
            {
                *due = (*due).min(recipient.due_s.max(held.row.arrival_s));
            }
            if recipient.done == Some(Verdict::Failure) && !recipient.last_reply.is_empty() {
                let known = Address::new(self.routing.without_prefix(&address)).unwrap_or_else(|_| address.clone());
                bounce.extend(classicqueue::bounce_text(known.as_bytes(), &recipient.last_reply));
            }
            if is_local { &mut local } else { &mut remote }.push(Marked { mark, address });
        }
        for (kind, list, due) in [(Kind::Local, local, dues[0]), (Kind::Remote, remote, dues[1])] {
            if !list.is_empty() {
                let due = if due == u64::MAX { held.row.arrival_s } else { due };
                self.layout.put(kind, number, &classicqueue::marked_bytes(&list), Some(time(due)))?;
            }
        }
        if !bounce.is_empty() {
            self.layout.put(Kind::Bounce, number, &bounce, None)?;
        }
        Ok(number)
    }

    /// An address as the classic qmail-send has it behind its preprocessing, and whether it is local.
    fn place(&mut self, address: &Address) -> (Address, bool) {
        match self.routing.rewrite(address) {
            Ok(Routed::Local(address)) => (address, true),
            Ok(Routed::Virtual(address)) => {
                // As vpopmail has it in virtualdomains: DOMAIN:DOMAIN.
                self.prefixed = self.prefixed.saturating_add(1);
                let prefix = address.domain().unwrap_or_default().to_ascii_lowercase();
                (Address::new(&[&prefix, &b"-"[..], address.as_bytes()].concat()).unwrap_or(address), true)
            }
            Ok(Routed::Remote(address)) => (address, false),
            Err(_) => (address.clone(), false),
        }
    }

    fn remove(&self, id: u64) -> Result<(), Failure> {
        match self.send.queue(&QueueRequest::Remove { id }) {
            Ok(_) => Ok(()),
            // Of an earlier run.
            Err(failure) if failure.text.contains("no such message") => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    fn print(&self, printer: Printer) -> Result<(), Failure> {
        if printer.json {
            let problems: Vec<_> = self.problems.iter().map(|(id, why)| json!({ "id": id, "reason": why })).collect();
            return printer.value(&json!({
                "dry_run": false,
                "exported": self.exported,
                "prefixed": self.prefixed,
                "problems": problems,
            }));
        }
        for (id, why) in &self.problems {
            line(&format!("left to you: message {id}: {why}"))?;
        }
        if self.prefixed > 0 {
            line(&format!(
                "note: {} recipients in virtual domains were written as virtualdomains lines DOMAIN:DOMAIN make them; the classic qmail needs those lines",
                self.prefixed
            ))?;
        }
        line(&format!("exported {} messages; {} are left to you", self.exported, self.problems.len()))
    }
}

fn time(unix_s: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(unix_s)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn copy(body: &(OwnedFd, u64), file: &mut File) -> io::Result<()> {
    let (fd, bytes) = body;
    let mut chunk = vec![0; CHUNK_LEN];
    let mut at = 0_u64;
    while at < *bytes {
        let len = rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut chunk[..], at))?;
        let left = usize::try_from(bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let read = chunk.get(..len.min(left)).unwrap_or_default();
        if read.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_all(read)?;
        at = at.saturating_add(u64::try_from(read.len()).unwrap_or(u64::MAX));
    }
    Ok(())
}

/// `exported` in the classic queue: a line for each message that is, or is just becoming, one there: `ID NUMBER`.
struct Journal {
    path: PathBuf,
    file: File,
    numbers: HashMap<u64, u64>,
}

impl Journal {
    fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| io_failure(path, &error);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, rustix::fs::Mode::from_raw_mode(0o600));
        let mut file = File::from(opened.map_err(|errno| failed(errno.into()))?);
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        let (mut numbers, mut whole) = (HashMap::new(), 0_u64);
        for entry in text.split_inclusive(|byte| *byte == b'\n') {
            let Some(entry_text) = entry.strip_suffix(b"\n") else { break };
            whole = whole.saturating_add(u64::try_from(entry.len()).unwrap_or(u64::MAX));
            let mut words = entry_text.split(|byte| *byte == b' ').map(classicqueue::layout::number);
            let (Some(Some(id)), Some(Some(number)), None) = (words.next(), words.next(), words.next()) else {
                return Err(Failure::permanent(format!(
                    "{}: is damaged; look at it before anything is exported twice",
                    path.display()
                )));
            };
            numbers.insert(id, number);
        }
        file.set_len(whole).and_then(|()| file.sync_all()).map_err(failed)?;
        layout::sync_dir(path.parent().unwrap_or(Path::new(".")))?;
        Ok(Self { path: path.to_owned(), file, numbers })
    }

    fn number(&self, id: u64) -> Option<u64> {
        self.numbers.get(&id).copied()
    }

    fn note(&mut self, id: u64, number: u64) -> Result<(), Failure> {
        let noted = self.file.write_all(format!("{id} {number}\n").as_bytes()).and_then(|()| self.file.sync_data());
        noted.map_err(|error| io_failure(&self.path, &error))?;
        self.numbers.insert(id, number);
        Ok(())
    }
}
