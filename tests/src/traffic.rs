//! Letters in numbers, and the account of them: what was promised, and what came of it.
//!
//! The text of a letter follows from its id and its length, so each copy that is found anywhere can be judged whole or not.

use crate::{Instance, Smtp};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lengths of bodies that take different ways: in the record, over several blocks, in a side file.
pub const LENGTHS: [usize; 6] = [0, 300, 4096, 300, 20_000, 150_000];
/// Longest wait for a queue that empties under faults: several deferrals and a restart are in it.
const SETTLE: Duration = Duration::from_secs(60);
/// A client that was refused tries again so much later.
const CLIENT_PAUSE: Duration = Duration::from_millis(20);

/// What the client knows of a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// 250 to the final dot: it must arrive.
    Accepted,
    /// The reply that refused it, to whichever command.
    Refused(String),
    /// The connection ended before the answer: both may be.
    Unknown,
}

/// A letter that somebody tried to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub to: Vec<String>,
    pub fate: Fate,
}

/// All letters of a test by their ids. No id is used twice.
#[derive(Debug, Default)]
pub struct Ledger {
    sent: Mutex<BTreeMap<String, Sent>>,
    next: AtomicUsize,
}

/// A copy of a letter in new/ of a Maildir.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    pub id: String,
    pub to: String,
    /// UNIX seconds by its name in the Maildir.
    pub delivered_s: u64,
}

/// What an audit found.
#[derive(Debug, Default)]
pub struct Audit {
    pub accepted: usize,
    pub refused: usize,
    pub unknown: usize,
    pub copies: usize,
    /// A further copy of a letter for the same recipient, with the first one.
    pub duplicates: Vec<(Copy, Copy)>,
    /// Letters that arrived though they had been refused.
    pub refused_and_delivered: usize,
}

/// The text of a letter in LF form.
#[must_use]
pub fn letter(id: &str, len: usize) -> String {
    let mut text = format!("X-Id: {id}\nX-Len: {len}\nSubject: letter {id}\n\n");
    let start = text.len();
    let mut line: usize = 0;
    while text.len() - start < len {
        text.push_str(&format!("{line:08} of {id} goes on and on, line by line\n"));
        line += 1;
    }
    text.push_str(&format!("end of {id}\n"));
    text
}

impl Ledger {
    /// Sends one letter and notes what became of it.
    ///
    /// # Errors
    /// It was refused for good, which is never right here.
    pub fn send(&self, port: u16, to: &[&str], len: usize) -> Result<Fate> {
        let id = format!("{}-{:x}", self.next.fetch_add(1, Ordering::Relaxed), std::process::id());
        let fate = attempt(port, to, &letter(&id, len)).unwrap_or(Fate::Unknown);
        let sent = Sent { to: to.iter().map(|to| (*to).to_owned()).collect(), fate: fate.clone() };
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), sent);
        match &fate {
            Fate::Refused(reply) if reply.starts_with('5') => bail!("the letter {id} was refused for good: {reply}"),
            _ => Ok(fate),
        }
    }

    /// Sends until one is accepted, as a client does.
    ///
    /// # Errors
    /// As [`Ledger::send`], or none is accepted in time.
    pub fn insist(&self, port: u16, to: &[&str], len: usize) -> Result<()> {
        crate::wait_for("a letter to be accepted", || match self.send(port, to, len) {
            Ok(Fate::Accepted) => Some(Ok(())),
            Ok(_) => {
                std::thread::sleep(CLIENT_PAUSE);
                None
            }
            Err(e) => Some(Err(e)),
        })?
    }

    /// Clients that send one letter after the other, of all lengths, until `stop`.
    ///
    /// # Errors
    /// As [`Ledger::send`].
    pub fn clients(&self, count: usize, port: u16, users: &[&str], stop: &AtomicBool) -> Result<()> {
        std::thread::scope(|scope| {
            let one = |client: usize| {
                let mut turn = client;
                while !stop.load(Ordering::Relaxed) {
                    let len = LENGTHS[turn % LENGTHS.len()];
                    let to = if turn % 5 == 4 { users } else { &users[turn % users.len()..][..1] };
                    if self.send(port, to, len)? != Fate::Accepted {
                        std::thread::sleep(CLIENT_PAUSE);
                    }
                    turn += 1;
                }
                Ok(())
            };
            let clients: Vec<_> = (0..count).map(|client| scope.spawn(move || one(client))).collect();
            clients.into_iter().try_for_each(|client| client.join().unwrap_or_else(|_| bail!("a client panicked")))
        })
    }

    /// How many were accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.count(|fate| *fate == Fate::Accepted)
    }

    fn count(&self, which: impl Fn(&Fate) -> bool) -> usize {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).values().filter(|sent| which(&sent.fate)).count()
    }

    /// The replies of all refusals, each once.
    #[must_use]
    pub fn refusals(&self) -> BTreeSet<String> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = |sent: &Sent| if let Fate::Refused(reply) = &sent.fate { Some(reply.clone()) } else { None };
        sent.values().filter_map(reply).collect()
    }

    /// Waits until the queue is empty, trying everything again and again, and audits.
    ///
    /// # Errors
    /// The queue does not empty, or as [`Ledger::audit`].
    pub fn settle(&self, instance: &Instance, users: &[&str]) -> Result<Audit> {
        let until = Instant::now() + SETTLE;
        while Instant::now() < until {
            let stats = instance.json(&["queue", "stats"]);
            if stats.is_ok_and(|stats| stats["messages"] == 0) {
                return self.audit(instance, users);
            }
            let _ = instance.must(&["queue", "retry", "--all"]);
            std::thread::sleep(Duration::from_millis(50));
        }
        let list = instance.must(&["queue", "list"]);
        bail!("the queue does not empty: {list:?}; the log:\n{}", instance.log())
    }

    /// Compares what was promised with the users' Maildirs: every accepted letter is there for each recipient, every letter that is
    /// there is whole and known.
    ///
    /// # Errors
    /// Mail was lost, cut short, or came from nowhere.
    pub fn audit(&self, instance: &Instance, users: &[&str]) -> Result<Audit> {
        let (audit, lost) = self.look(instance, users)?;
        if !lost.is_empty() {
            bail!("{} letters are lost: {lost:?}; the log:\n{}", lost.len(), instance.log());
        }
        Ok(audit)
    }

    /// As [`Ledger::audit`], with a list of the lost.
    ///
    /// # Errors
    /// A letter was cut short or came from nowhere.
    pub fn look(&self, instance: &Instance, users: &[&str]) -> Result<(Audit, Vec<String>)> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut audit = Audit::default();
        let mut first: BTreeMap<(String, String), Copy> = BTreeMap::new();
        for user in users {
            for copy in copies(&instance.maildir(user), user)? {
                audit.copies += 1;
                let known = sent.get(&copy.id).filter(|sent| sent.to.contains(&copy.to));
                let known = known.with_context(|| format!("nobody sent {copy:?}"))?;
                audit.refused_and_delivered += usize::from(matches!(known.fate, Fate::Refused(_)));
                match first.get(&(copy.id.clone(), copy.to.clone())) {
                    Some(earlier) => audit.duplicates.push((earlier.clone(), copy)),
                    None => drop(first.insert((copy.id.clone(), copy.to.clone()), copy)),
                }
            }
        }
        let mut lost = Vec::new();
        for (id, sent) in sent.iter() {
            match sent.fate {
                Fate::Accepted => {
                    audit.accepted += 1;
                    let missing = sent.to.iter().filter(|to| !first.contains_key(&(id.clone(), (*to).clone())));
                    lost.extend(missing.map(|to| format!("{id} for {to}")));
                }
                Fate::Refused(_) => audit.refused += 1,
                Fate::Unknown => audit.unknown += 1,
            }
        }
        Ok((audit, lost))
    }

    /// After an audit that was in order: takes the letters out of the Maildirs and starts a new account. A letter of the old one that
    /// comes once more comes from nowhere.
    ///
    /// # Errors
    /// The disk's.
    pub fn close(&self, instance: &Instance, users: &[&str]) -> Result<()> {
        for user in users {
            let new = instance.maildir(user).join("new");
            for entry in std::fs::read_dir(&new).into_iter().flatten() {
                std::fs::remove_file(entry?.path())?;
            }
            if let Ok(new) = File::open(&new) {
                // Or they would come back at a power cut.
                new.sync_all()?;
            }
        }
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }
}

fn attempt(port: u16, to: &[&str], letter: &str) -> Result<Fate> {
    let mut smtp = Smtp::open(port)?;
    let mut commands = vec!["EHLO client.example.test".to_owned(), "MAIL FROM:<a@elsewhere.test>".to_owned()];
    commands.extend(to.iter().map(|to| format!("RCPT TO:<{to}>")));
    for command in &commands {
        let reply = smtp.ask(command)?;
        if !reply.starts_with("250") {
            return Ok(Fate::Refused(reply));
        }
    }
    let reply = smtp.ask("DATA")?;
    if !reply.starts_with("354") {
        return Ok(Fate::Refused(reply));
    }
    smtp.0.raw(format!("{}.\r\n", letter.replace('\n', "\r\n")).as_bytes())?;
    let reply = smtp.reply()?;
    let _ = smtp.0.raw(b"QUIT\r\n");
    Ok(if reply.starts_with("250 ") { Fate::Accepted } else { Fate::Refused(reply) })
}

/// The letters in new/, each of which must be whole.
fn copies(maildir: &Path, to: &str) -> Result<Vec<Copy>> {
    let mut copies = Vec::new();
    for entry in std::fs::read_dir(maildir.join("new")).into_iter().flatten() {
        let path = entry?.path();
        let text = String::from_utf8(std::fs::read(&path)?).with_context(|| path.display().to_string())?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let parts = (field("X-Id: "), field("X-Len: ").and_then(|len| len.parse().ok()));
        let (Some(id), Some(len)) = parts else { bail!("{} is no letter of ours:\n{text}", path.display()) };
        let head = format!("Return-Path: <a@elsewhere.test>\nDelivered-To: {to}\nReceived: ");
        if !text.starts_with(&head) || !text.ends_with(&letter(&id, len)) {
            bail!("{} is not whole, {} bytes:\n{text:.2000}", path.display(), text.len());
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let delivered_s = name.split('.').next().and_then(|s| s.parse().ok()).unwrap_or(0);
        copies.push(Copy { id, to: to.to_owned(), delivered_s });
    }
    copies.sort_by(|a, b| (a.delivered_s, &a.id).cmp(&(b.delivered_s, &b.id)));
    Ok(copies)
}

#[cfg(test)]
mod tests {
    use super::letter;

    #[test]
    fn a_letter_follows_from_its_id_and_length() {
        for len in super::LENGTHS {
            let text = letter("7-1", len);
            assert_eq!(text, letter("7-1", len));
            assert!(text.len() >= len && text.len() < len + 200 && text.ends_with("\nend of 7-1\n"), "{len}");
            assert!(!text.contains("\n."), "no dot needs stuffing");
        }
    }
}
