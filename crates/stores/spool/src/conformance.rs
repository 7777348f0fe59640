//! One suite for everything that is a [`Log`]: the model, the real spool on a real disk, and the real spool without threads.
//!
//! A random story is told to two of them, and all answers must be the same but for the ids.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use wire::Address;

use crate::types::{Body, Change, Completion, Envelope, Log, MessageId, Outlook, RecipientState};

/// A small generator: the story is its seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64 (Steele, Lea, Flood 2014)
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub(crate) fn envelope(number: u64, recipients: u64) -> Envelope {
    let address = |text: String| Address::new(text.as_bytes()).unwrap();
    Envelope {
        sender: if number.is_multiple_of(5) { Address::null() } else { address(format!("sender{number}@example.org")) },
        recipients: (0..recipients).map(|n| address(format!("r{n}-{number}@example.net"))).collect(),
        arrival_s: 1_700_000_000 + number,
        uid: 1000,
        pid: 7,
        flags: 2,
        options: if number.is_multiple_of(3) {
            body(number, 1 + usize::try_from(number % 300).unwrap()).into()
        } else {
            Box::default()
        },
    }
}

pub(crate) fn body(number: u64, len: usize) -> Vec<u8> {
    let mut random = Random(number);
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.next().to_le_bytes()).take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    bytes
}

/// Waits for the answer to this ticket.
pub(crate) fn answer(log: &mut dyn Log, ticket: u64) -> Completion {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        for completion in log.completions() {
            let answered = match &completion {
                Completion::Accepted { ticket, .. }
                | Completion::Refused { ticket, .. }
                | Completion::Written { ticket }
                | Completion::Unwritten { ticket }
                | Completion::Envelope { ticket, .. }
                | Completion::BodyFd { ticket, .. }
                | Completion::ReadFailed { ticket, .. } => Some(*ticket),
                Completion::SideDrained { .. } | Completion::Alert(_) => None,
            };
            if answered == Some(ticket) {
                return completion;
            }
        }
        assert!(Instant::now() < give_up, "no answer to {ticket}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

pub(crate) fn content(fd: OwnedFd, bytes: u64) -> Vec<u8> {
    let file = File::from(fd);
    let mut content = vec![0; usize::try_from(bytes).unwrap()];
    file.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), bytes);
    content
}

fn state(random: &mut Random) -> RecipientState {
    match random.below(5) {
        0 => RecipientState::Done,
        1 => RecipientState::Failed { reply: body(random.next(), 40) },
        2 => RecipientState::Bounced,
        3 => RecipientState::Succeeded { how: u8::try_from(random.below(256)).unwrap() },
        _ => RecipientState::Pending {
            attempts: 1 + u32::try_from(random.below(9)).unwrap(),
            due_s: random.below(1 << 40),
            last_reply: body(random.next(), 5000),
            warned: random.below(2) == 0,
        },
    }
}

/// An answer with the ids taken out.
fn shown(completion: Completion) -> String {
    match completion {
        Completion::Accepted { ticket, .. } => format!("accepted {ticket}"),
        Completion::Envelope { ticket, envelope, states, bytes, held, .. } => {
            format!("envelope {ticket} {envelope:?} {states:?} {bytes} {held}")
        }
        Completion::BodyFd { ticket, fd, bytes, .. } => format!("body {ticket} {:?}", content(fd, bytes)),
        Completion::ReadFailed { ticket, why, .. } => format!("unread {ticket} {why:?}"),
        other => format!("{other:?}"),
    }
}

/// Tells the same story to both; what one answers the other must.
pub(crate) fn same_story(seed: u64, steps: u64, one: &mut dyn Log, other: &mut dyn Log) {
    let mut random = Random(seed);
    let mut ids: BTreeMap<u64, (MessageId, MessageId, u64)> = BTreeMap::new();
    for ticket in 0..steps {
        let keys: Vec<u64> = ids.keys().copied().collect();
        let chosen = usize::try_from(random.below(8)).unwrap();
        let known = keys.len().checked_sub(1 + chosen.min(keys.len())).and_then(|at| keys.get(at)).copied();
        let nobody = (MessageId(u64::MAX - 1), MessageId(u64::MAX - 1), 1);
        let (id, other_id, recipients) = known.and_then(|key| ids.get(&key)).copied().unwrap_or(nobody);
        let what = random.below(12);
        let answers = match what {
            0..=4 => {
                let recipients = [1, 1, 1, 3, 4000][usize::try_from(random.below(5)).unwrap()];
                let len = usize::try_from([0, 10, 5000, 65_536, 200_000][usize::try_from(random.below(5)).unwrap()]).unwrap();
                let bounce = what == 4 && known.is_some();
                let tell =
                    |log: &mut dyn Log, ended| accept(log, &envelope(ticket, recipients), &body(ticket, len), ended, ticket);
                let answers = [tell(one, bounce.then_some(id)), tell(other, bounce.then_some(other_id))];
                if let [Completion::Accepted { id: one, .. }, Completion::Accepted { id: other, .. }] = &answers {
                    ids.insert(ticket, (*one, *other, recipients));
                    if bounce && let Some(key) = known {
                        ids.remove(&key);
                    }
                }
                answers
            }
            5..=7 => {
                let count = if random.below(2) == 0 { recipients } else { 1 };
                // Sometimes any, the same twice or one that there is not.
                let any = random.below(4) == 0;
                let changes: Vec<Change> = (0..count.min(300))
                    .map(|number| {
                        let recipient = if any { random.below(recipients + 1) } else { (number + ticket) % recipients };
                        Change { recipient: u32::try_from(recipient).unwrap(), state: state(&mut random) }
                    })
                    .collect();
                let outlook = Outlook { pending: 1, due_s: random.below(1 << 40), held: random.below(2) == 0 };
                if what == 7 {
                    one.note(id, outlook, ticket);
                    other.note(other_id, outlook, ticket);
                } else {
                    one.progress(id, changes.clone(), outlook, ticket);
                    other.progress(other_id, changes, outlook, ticket);
                }
                [answer(one, ticket), answer(other, ticket)]
            }
            8 => {
                one.end(id, ticket);
                other.end(other_id, ticket);
                known.map(|key| ids.remove(&key));
                [answer(one, ticket), answer(other, ticket)]
            }
            9 | 10 => {
                one.read_envelope(id, ticket);
                other.read_envelope(other_id, ticket);
                [answer(one, ticket), answer(other, ticket)]
            }
            _ => {
                one.open_body(id, ticket);
                other.open_body(other_id, ticket);
                [answer(one, ticket), answer(other, ticket)]
            }
        };
        let [one, other] = answers.map(shown);
        assert_eq!(one, other, "step {ticket} of the story {seed}");
    }
    assert_eq!(one.stats().messages, other.stats().messages);
    assert_eq!(one.stats().accepted, other.stats().accepted);
}

fn accept(log: &mut dyn Log, envelope: &Envelope, body: &[u8], ended: Option<MessageId>, ticket: u64) -> Completion {
    let body = if body.len() > crate::types::BODY_INLINE_MAX {
        let mut side = log.side_file();
        body.chunks(10_000).for_each(|chunk| side.write(chunk.to_vec()));
        Body::Side(side)
    } else {
        Body::Inline(body.to_vec())
    };
    match ended {
        Some(ended) => log.bounce_and_end(envelope.clone(), body, ended, ticket),
        None => log.accept(envelope.clone(), body, ticket),
    }
    answer(log, ticket)
}

mod tests {
    use super::*;
    use crate::inline::Inline;
    use crate::model::Model;
    use crate::spool::{Options, Spool};
    use std::sync::Arc;
    use sys::fs::power::PowerDisk;

    fn options() -> Options {
        Options { segment_bytes: Some(1024 * 1024), scrub_bytes_per_s: 1 << 30 }
    }

    fn open(dir: &tempfile::TempDir) -> (Spool, Vec<crate::types::Living>) {
        Spool::open(File::open(dir.path()).unwrap().into(), options()).unwrap()
    }

    #[test]
    fn the_spool_does_as_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let mut model = Model::new().unwrap();
        let (mut spool, living) = open(&dir);
        assert!(living.is_empty());
        same_story(1, 300, &mut model, &mut spool);
        let unchanged =
            |living: Vec<crate::types::Living>| living.into_iter().map(|m| crate::types::Living { id: MessageId(0), ..m });
        drop(spool);
        let (spool, living) = open(&dir);
        assert_eq!(spool.stats().messages, living.len() as u64);
        assert!(unchanged(living).eq(unchanged(model.living())));
    }

    #[test]
    fn the_spool_without_threads_does_as_the_model() {
        for seed in 2..6 {
            let mut model = Model::new().unwrap();
            let (mut inline, _) = Inline::open(Arc::new(PowerDisk::new()), 1024 * 1024).unwrap();
            same_story(seed, 200, &mut model, &mut inline);
        }
    }

    #[test]
    fn two_models_agree() {
        same_story(7, 500, &mut Model::new().unwrap(), &mut Model::new().unwrap());
    }

    #[test]
    fn a_second_start_says_who_holds_the_spool() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(&dir);
        let error = Spool::open(File::open(dir.path()).unwrap().into(), options()).err().unwrap();
        assert_eq!(error.to_string(), format!("the spool is in use by process {}", std::process::id()));
    }
}
