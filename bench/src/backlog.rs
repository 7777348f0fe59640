//! A queue as a bad week leaves it: messages to many remote domains, each tried once and deferred.
//!
//! Written through the spool's own interface while the system is stopped, as the system would have written it: an accept and a
//! progress record for each message, in batches that are synced.

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use spool::{Body, Change, Completion, Envelope, Log, MessageId, Options, Outlook, RecipientState, Spool};
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;
use std::time::{Duration, SystemTime};
use wire::Address;

/// Messages that wait for the disk at a time: the more, the fewer syncs.
const UNDER_WAY_MAX: usize = 4000;
/// Bodies have between so many bytes and so many more.
const BODY_BYTES_MIN: usize = 300;
const BODY_BYTES_SPAN: usize = 701;
/// A disk that says nothing for so long does not work.
const ANSWER_WAIT: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
/// They arrived a day ago: by qmail's schedule an attempt made now is followed by the next 12,160 s later.
const AGE: Duration = Duration::from_hours(24);
/// Messages that are not due are due between an hour and three from now.
const LATER_S: std::ops::Range<u64> = 3600..10_800;
/// Messages that are due have been so for up to an hour.
const OVERDUE_S: u64 = 3600;
const REPLY: &[u8] = b"Connected to 192.0.2.1 but greeting failed.\nRemote host said: 421 try again later\n";
const TEXT: &[u8] = b"Pack my box with five dozen liquor jugs, then weigh them: 0123456789 grams.\n";

/// What is put into a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backlog {
    pub(crate) messages: usize,
    /// Message `n` goes to domain `n` modulo this: see [`domain`].
    pub(crate) domains: usize,
    /// Is the next attempt due when the system starts?
    pub(crate) due: bool,
}

/// The domains' names.
pub(crate) fn domain(n: usize) -> String {
    format!("d{n}.{}", crate::dns::MUTE)
}

/// Makes the spool directory hold exactly this backlog. Its files belong to the directory's owner.
///
/// # Errors
/// The disk's, and whatever the spool refuses.
pub(crate) fn fill(dir: &Path, backlog: Backlog) -> Result<()> {
    empty(dir)?;
    let options = Options { scrub_bytes_per_s: 0, ..Options::default() };
    let (spool, _) = Spool::open(std::fs::File::open(dir)?.into(), options)?;
    let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let mut filling = Filling { spool, backlog, now_s, accepted: 0, written: 0 };
    filling.run()?;
    drop(filling);
    give_to_owner(dir)
}

/// Removes what is in a directory.
///
/// # Errors
/// The disk's.
pub(crate) fn empty(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(&path)? } else { std::fs::remove_file(&path)? }
    }
    Ok(())
}

struct Filling {
    spool: Spool,
    backlog: Backlog,
    now_s: u64,
    accepted: usize,
    written: usize,
}

impl Filling {
    fn run(&mut self) -> Result<()> {
        let mut given = 0;
        while self.written < self.backlog.messages {
            self.spool.hold();
            for completion in self.spool.completions() {
                self.answered(completion)?;
            }
            while given < self.backlog.messages && given.saturating_sub(self.written) < UNDER_WAY_MAX {
                self.accept(given)?;
                given = given.saturating_add(1);
            }
            self.spool.flush();
            if self.written < self.backlog.messages
                && poll(&mut [PollFd::new(&self.spool.wake_fd(), PollFlags::IN)], Some(&ANSWER_WAIT))? == 0
            {
                bail!("the spool does not answer: {:?}", self.spool.health());
            }
        }
        Ok(())
    }

    fn answered(&mut self, completion: Completion) -> Result<()> {
        match completion {
            Completion::Accepted { ticket, id } => {
                self.accepted = self.accepted.saturating_add(1);
                self.defer(usize::try_from(ticket)?, id);
            }
            Completion::Written { .. } => self.written = self.written.saturating_add(1),
            other => bail!("message {} of {}: {other:?}", self.accepted, self.backlog.messages),
        }
        Ok(())
    }

    fn accept(&mut self, n: usize) -> Result<()> {
        let recipient = format!("someone@{}", domain(n % self.backlog.domains.max(1)));
        let envelope = Envelope {
            sender: Address::new(b"sender@from.test").ok().context("sender")?,
            recipients: vec![Address::new(recipient.as_bytes()).ok().context("recipient")?],
            arrival_s: self.now_s.saturating_sub(AGE.as_secs()),
            uid: 0,
            pid: 1,
            flags: 0,
            options: Box::default(),
        };
        self.spool.accept(envelope, Body::Inline(body(n)), n as u64);
        Ok(())
    }

    fn defer(&mut self, n: usize, id: MessageId) {
        let (span_s, n) = (LATER_S.end.saturating_sub(LATER_S.start), n as u64);
        let due_s = match self.backlog.due {
            true => self.now_s.saturating_sub(n.wrapping_mul(31) % OVERDUE_S),
            false => self.now_s.saturating_add(LATER_S.start).saturating_add(n.wrapping_mul(31) % span_s),
        };
        let state = RecipientState::Pending { attempts: 1, due_s, last_reply: REPLY.to_vec(), warned: false };
        self.spool.progress(id, vec![Change { recipient: 0, state }], Outlook { pending: 1, due_s, held: false }, n);
    }
}

fn body(n: usize) -> Vec<u8> {
    let header = format!("From: <sender@from.test>\nSubject: deferred\nMessage-ID: <deferred-{n}@from.test>\n\n").into_bytes();
    let len = n.wrapping_mul(7919) % BODY_BYTES_SPAN + BODY_BYTES_MIN;
    let mut body: Vec<u8> = header.into_iter().chain(TEXT.iter().copied().cycle()).take(len.saturating_sub(1)).collect();
    body.push(b'\n');
    body
}

/// Everything below a directory belongs to whom it belongs.
fn give_to_owner(dir: &Path) -> Result<()> {
    let owner = dir.metadata()?;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        lchown(&path, Some(owner.uid()), Some(owner.gid()))?;
        if path.is_dir() {
            give_to_owner(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn filled_and_found_again() {
        let dir = std::env::temp_dir().join(format!("bench-backlog-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        for due in [false, true] {
            fill(&dir, Backlog { messages: 300, domains: 7, due }).unwrap();
            let (mut spool, living) = Spool::open(std::fs::File::open(&dir).unwrap().into(), Options::default()).unwrap();
            assert_eq!(living.len(), 300);
            assert!(living.iter().all(|message| message.pending == 1 && (BODY_BYTES_MIN as u64..=1000).contains(&message.bytes)));
            assert!(living.iter().all(|message| (message.due_s <= now_s + 60) == due && message.due_s < now_s + 11_000));
            let mut domains = BTreeSet::new();
            for message in &living {
                spool.read_envelope(message.id, 0);
            }
            while domains.len() < 7 {
                poll(&mut [PollFd::new(&spool.wake_fd(), PollFlags::IN)], Some(&ANSWER_WAIT)).unwrap();
                for completion in spool.completions() {
                    let Completion::Envelope { envelope, states, .. } = completion else { panic!("{completion:?}") };
                    assert!(matches!(states[..], [RecipientState::Pending { attempts: 1, .. }]));
                    domains.insert(String::from_utf8_lossy(envelope.recipients[0].as_bytes()).into_owned());
                }
            }
            assert_eq!(domains.len(), 7);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
