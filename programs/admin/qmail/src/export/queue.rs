//! `qmail export queue`: the messages of the running queue move into the queue of a classic qmail, each of them once.
//!
//! A message is never with both: it is held here (which is on the disk) and no delivery of it runs before anything is written; it is
//! removed here when all its files are there and synced. Held, it is delivered by nobody until one of the two goes on. Steps of a message:
//!
//! 1. It is held, with others, which is answered when no power cut undoes it; and the last delivery of it is over.
//! 2. mess, local, remote, bounce are written and synced: for a classic qmail that is no message yet.
//! 3. The journal of the queue (`exported`) notes its key and its ids here and there, and is synced.
//! 4. info is put in its place in one step, and is synced: now it is a message there.
//! 5. The journal notes that, and is synced.
//! 6. It is removed here.
//!
//! Another run first looks at the journal: what is noted as a message there, or lies there as one with the same sender and body, is only
//! removed here; all else is written anew, for a classic qmail-clean takes away what is half made, and another message may have its number
//! since. In doubt a message is there twice. What a classic queue has no place for keeps a message here where it would come to another end
//! without ([`Wishes`]). The key is made of id, sender, recipients, arrival and body: ids and numbers come again in other
//! spools and queues. No classic qmail-send runs meanwhile: its lock is held.

pub(crate) mod journal;
mod layout;

/// Its journal, in the directory of the classic queue.
pub(crate) const JOURNAL: &str = "exported";

use std::io::{self, IsTerminal as _, Write as _};
use std::iter;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use classicqueue::{Mark, Marked};
use control::Root;
use ipc::admin::{QueueAnswer, QueueRequest, RecipientRow, Row};
use ipc::field::Verdict;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use users::{Routed, Routing};
use wire::Address;

use crate::admin::Admin;
use crate::import::{self, queue::lock};
use crate::print::{Printer, date, line};
use crate::{Failure, cli};

use journal::{Journal, Step};
use layout::{Kind, Layout};

/// Messages asked for at a time.
const PAGE: u32 = 500;
/// So long a running delivery is waited for.
const DELIVERY_WAIT: Duration = Duration::from_secs(60);
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// The removal of a message is on the disk after a second.
const SETTLED: Duration = Duration::from_millis(1200);
const CHUNK_LEN: usize = 64 * 1024;

/// Runs the command. False: something stays here.
///
/// # Errors
/// The directory is no queue or in use, qmail-send does not run, a disk is full.
pub fn run(root: &Root, options: &cli::ExportQueue, printer: Printer) -> Result<bool, Failure> {
    let send = Admin::send(root)?;
    refuse_imported(&options.dir)?;
    let wishes = Wishes { lossy: options.lossy, now_s: sys::clock::unix_s() };
    if options.options.dry_run {
        return dry_run(&send, &wishes, printer);
    }
    let layout = Layout::open(&options.dir, options.split)?;
    let _lock = lock::take(&options.dir)?;
    let routing = root.routing().map_err(|error| Failure::temporary(error.to_string()))?;
    let journal = Journal::open(&options.dir.join(JOURNAL))?;
    let (problems, lost) = (Vec::new(), Vec::new());
    let mut export = Export { send, layout, routing, journal, wishes, exported: 0, problems, lost, prefixed: 0 };
    let done = export.all(printer);
    if export.exported > 0 {
        std::thread::sleep(SETTLED);
    }
    export.print(printer)?;
    done?;
    Ok(export.problems.is_empty())
}

/// The messages of a queue that was imported are still in it.
fn refuse_imported(dir: &Path) -> Result<(), Failure> {
    if !import::queue::was_imported(dir)? {
        return Ok(());
    }
    Err(Failure::permanent(format!(
        "{}: this queue was imported, and its messages are still in it: a classic qmail would deliver them once more; give another directory",
        dir.join(import::queue::JOURNAL).display()
    )))
}

fn dry_run(send: &Admin, wishes: &Wishes, printer: Printer) -> Result<bool, Failure> {
    let (mut count, mut after) = (0_usize, 0);
    let (mut problems, mut lost) = (Vec::new(), Vec::new());
    while let Some(rows) = page(send, after)? {
        after = rows.last().map_or(u64::MAX, |row| row.id);
        for row in rows {
            match wishes.reason(&row) {
                Some(why) => problems.push((row.id, why)),
                None => count = count.saturating_add(1),
            }
            lost.extend(wishes.lost(&row).map(|what| (row.id, what)));
        }
    }
    if printer.json {
        printer.value(&json!({
            "dry_run": true,
            "exported": count,
            "problems": reasons(&problems),
            "lost": reasons(&lost),
        }))?;
    } else {
        remark(&problems, &lost)?;
        line(&format!(
            "would export {count} messages, which would be held, written there and removed here; {} are left to you",
            problems.len()
        ))?;
    }
    Ok(problems.is_empty())
}

/// The next messages, by id.
fn page(send: &Admin, after: u64) -> Result<Option<Vec<Row>>, Failure> {
    let mut found = Vec::new();
    for answer in send.queue(&QueueRequest::List { after, count: PAGE })? {
        let QueueAnswer::Rows { rows, .. } = answer else { continue };
        found.extend(rows.into_iter().filter(|row| row.id > after));
    }
    found.sort_unstable_by_key(|row| row.id);
    Ok(Some(found).filter(|rows| !rows.is_empty()))
}

/// Ids, and a word on each.
type Remarks = Vec<(u64, String)>;

fn reasons(remarks: &Remarks) -> Vec<Value> {
    remarks.iter().map(|(id, why)| json!({ "id": id, "reason": why })).collect()
}

fn remark(problems: &Remarks, lost: &Remarks) -> Result<(), Failure> {
    lost.iter().try_for_each(|(id, what)| line(&format!("lost there: message {id}: {what}")))?;
    problems.iter().try_for_each(|(id, why)| line(&format!("left to you: message {id}: {why}")))
}

/// What becomes of what a classic queue has no place for.
struct Wishes {
    /// It may be lost, whatever it is.
    lossy: bool,
    now_s: u64,
}

impl Wishes {
    /// What of a message would come to another end there: it would go without TLS, too early or too late.
    fn decisive(&self, row: &Row) -> Vec<String> {
        let wishes = [
            (row.requires_tls, "it may only go over TLS (REQUIRETLS)".to_owned()),
            (
                row.hold_until_s > self.now_s,
                format!("it may not be delivered before {} (HOLDFOR, HOLDUNTIL)", date(row.hold_until_s)),
            ),
            (row.returns, format!("it fails if it is not delivered by {} (BY)", date(row.deliver_by_s))),
        ];
        wishes.into_iter().filter(|(is, _)| *is).map(|(_, wish)| wish).collect()
    }

    /// Why a message stays here, untouched.
    fn reason(&self, row: &Row) -> Option<String> {
        if row.unreadable {
            return Some("it is damaged or cannot be read: see the log; qmail queue remove gives it up".to_owned());
        }
        if row.unconfirmed {
            return Some("its import is not over: run qmail import queue again first".to_owned());
        }
        let decisive = self.decisive(row);
        let stays = !self.lossy && !decisive.is_empty();
        stays.then(|| format!("{}, and a classic queue cannot keep that: --lossy exports it without", decisive.join("; ")))
    }

    /// What a message that is exported loses.
    fn lost(&self, row: &Row) -> Option<String> {
        if self.reason(row).is_some() {
            return None;
        }
        let mut lost = self.decisive(row);
        if row.reports {
            lost.push("what it asks of reports (NOTIFY, ORCPT, RET, ENVID)".to_owned());
        }
        if row.deliver_by_s > 0 && !row.returns {
            lost.push("that its sender hears when it is late (BY)".to_owned());
        }
        if row.priority != 0 {
            lost.push("its priority (MT-PRIORITY)".to_owned());
        }
        Some(lost.join("; ")).filter(|lost| !lost.is_empty())
    }
}

struct Export {
    send: Admin,
    layout: Layout,
    routing: Routing,
    journal: Journal,
    wishes: Wishes,
    exported: u64,
    problems: Remarks,
    lost: Remarks,
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
        while let Some(rows) = page(&self.send, after)? {
            after = rows.last().map_or(u64::MAX, |row| row.id);
            for row in self.hold_all(rows)? {
                match self.message(row.id) {
                    Ok(true) => {
                        self.exported = self.exported.saturating_add(1);
                        self.lost.extend(self.wishes.lost(&row).map(|what| (row.id, what)));
                    }
                    Ok(false) => {}
                    Err(failure) if failure.is_temporary() => return Err(failure),
                    Err(failure) => self.problems.push((row.id, format!("{}; it is held here", failure.text))),
                }
                if !printer.json && io::stderr().is_terminal() {
                    let _ = write!(io::stderr(), "\r{} messages", self.exported);
                }
            }
        }
        Ok(())
    }

    /// Those that are held now, and stay so whatever happens.
    fn hold_all(&mut self, rows: Vec<Row>) -> Result<Vec<Row>, Failure> {
        let mut held = Vec::new();
        for row in rows {
            if let Some(why) = self.wishes.reason(&row) {
                self.problems.push((row.id, why));
                continue;
            }
            match self.hold(row.id) {
                Ok(Some(_)) => held.push(row),
                Ok(None) => {}
                Err(failure) if failure.is_temporary() => return Err(failure),
                Err(failure) => self.problems.push((row.id, failure.text)),
            }
        }
        Ok(held)
    }

    /// False: it came to its end here meanwhile.
    fn message(&mut self, id: u64) -> Result<bool, Failure> {
        let Some(held) = self.hold(id)? else { return Ok(false) };
        let Some(body) = self.body(id)? else { return Ok(false) };
        let key = key(&held, &body).map_err(|error| Failure::temporary(format!("the body of message {id}: {error}")))?;
        let (info, arrival) = (classicqueue::info_bytes(&held.row.sender), time(held.row.arrival_s));
        match self.journal.entry(&key) {
            // It is there, or was there and is delivered.
            Some((_, Step::Done)) => return self.remove(id).map(|()| true),
            Some((number, Step::Begun)) if self.layout.is_message(number, &info, arrival, &body)? => {
                self.journal.note(&key, id, number, Step::Done)?;
                return self.remove(id).map(|()| true);
            }
            Some((number, Step::Begun)) => self.layout.forget(number, &body)?,
            None => {}
        }
        let number = self.write(&held, &body)?;
        self.journal.note(&key, id, number, Step::Begun)?;
        self.layout.put(Kind::Info, number, &info, Some(arrival))?;
        self.journal.note(&key, id, number, Step::Done)?;
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

    fn body(&self, id: u64) -> Result<Option<Body>, Failure> {
        self.send.say(&ipc::Message::encode(&QueueRequest::Body { id }))?;
        match self.send.heard()? {
            (QueueAnswer::Body { bytes }, Some(fd)) => Ok(Some((fd, bytes))),
            (QueueAnswer::Failed { text }, _) if text.0 == b"no such message" => Ok(None),
            (QueueAnswer::Failed { text }, _) => Err(Failure::permanent(wire::escape::visible(&text))),
            _ => Err(Failure::temporary("qmail-send is of another version than this program".to_owned())),
        }
    }

    /// Writes all but info; the message's number there.
    fn write(&mut self, held: &Held, body: &Body) -> Result<u64, Failure> {
        let number = self.layout.message(|file| chunks(body, |bytes| file.write_all(bytes)))?;
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
            return printer.value(&json!({
                "dry_run": false,
                "exported": self.exported,
                "prefixed": self.prefixed,
                "problems": reasons(&self.problems),
                "lost": reasons(&self.lost),
            }));
        }
        remark(&self.problems, &self.lost)?;
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

/// What makes a message this one and no other, in hexadecimal digits of a SHA-256.
fn key(held: &Held, body: &Body) -> io::Result<String> {
    let mut hash = Sha256::new();
    hash.update(format!("{} {} {}", held.row.id, held.row.arrival_s, held.recipients.len()));
    for address in iter::once(&held.row.sender).chain(held.recipients.iter().map(|recipient| &recipient.address)) {
        hash.update([0]);
        hash.update(address.as_bytes());
    }
    hash.update([0]);
    chunks(body, |bytes| {
        hash.update(bytes);
        Ok(())
    })?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A body and its length.
type Body = (OwnedFd, u64);

/// Reads a body from its begin to its end.
fn chunks(body: &Body, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
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
        take(read)?;
        at = at.saturating_add(u64::try_from(read.len()).unwrap_or(u64::MAX));
    }
    Ok(())
}
