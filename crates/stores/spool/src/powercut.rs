//! The power-cut suite: whatever a power cut leaves of what was not synced, no acknowledged message is lost and nothing half is there.
//!
//! A *story* runs the real spool on a [`PowerDisk`] and notes what was offered and what was answered. From every state of the disk
//! on its way power may fail: all subsets of the un-synced pieces are tried where they are few, seeded samples where they are many.
//! Each is recovered and audited against the notes. Some go on from there as a second generation, so that recovery itself is cut.
//! The suite proves itself: with any one kind of sync left out, it must fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sys::fs::fault::{Call, FaultDisk, Plan};
use sys::fs::power::{PowerDisk, Snapshot};
use sys::fs::read_exact_at;

use crate::conformance::{Random, body, envelope};
use crate::inline::Inline;
use crate::reader;
use crate::replay::{self, Recovered};
use crate::shared::Shared;
use crate::types::{Body, Change, Completion, Envelope, Log, MessageId, Outlook, RecipientState};

const SEGMENT_BYTES: u64 = 16 * 1024;
/// Up to so many un-synced pieces every subset is tried.
const PIECES_EXHAUSTIVE: usize = 12;
const EIO: i32 = 5;

/// What happened, in order; a snapshot's mark says how much of it.
#[derive(Clone)]
enum Event {
    /// Offered; `ends` is the message that a bounce ends.
    Offered {
        key: u64,
        ends: Option<MessageId>,
    },
    Accepted {
        key: u64,
        id: MessageId,
    },
    Refused {
        key: u64,
    },
    Changed {
        id: MessageId,
        changes: Vec<Change>,
    },
    Ending {
        id: MessageId,
    },
    /// All results answered before are durable.
    Synced,
}

/// A message as it is known before a story begins.
#[derive(Clone)]
struct Base {
    key: u64,
    id: MessageId,
    states: Vec<RecipientState>,
}

fn recipients_of(key: u64) -> u64 {
    [1, 2, 1, 3][usize::try_from(key % 4).unwrap()]
}

fn letter(key: u64) -> (Envelope, Vec<u8>) {
    (envelope(key, recipients_of(key)), body(key, usize::try_from(Random(key).below(600)).unwrap()))
}

fn key_of(envelope: &Envelope) -> u64 {
    envelope.arrival_s - 1_700_000_000
}

struct Story {
    disk: PowerDisk,
    plan: Arc<Plan>,
    spool: Inline,
    random: Random,
    events: Vec<Event>,
    base: Vec<Base>,
    /// Keys that must never be seen again.
    gone: BTreeSet<u64>,
    living: Vec<(MessageId, u64)>,
    next_key: u64,
    ticket: u64,
    faults: bool,
}

impl Story {
    /// Opens the disk and takes what is there as the truth from now on.
    fn begin(disk: PowerDisk, seed: u64, next_key: u64, gone: BTreeSet<u64>, faults: bool) -> Self {
        let plan = Plan::new(|call| matches!(call, Call::Sync | Call::Write | Call::Rename | Call::SyncDir));
        disk.start_recording();
        let faulty = FaultDisk::new(Arc::new(disk.clone()), Arc::clone(&plan));
        let (spool, living) = Inline::open(Arc::new(faulty), SEGMENT_BYTES).unwrap();
        // Until the start has ended nobody was told anything: the truth holds from here.
        drop(disk.take_snapshots());
        let mut base = Vec::new();
        for message in living {
            let whole = reader::read_whole(&spool.front.shared, message.id.0).unwrap();
            base.push(Base { key: key_of(&whole.envelope), id: message.id, states: whole.states });
        }
        let known = base.iter().map(|base| (base.id, base.key)).collect();
        Self {
            disk,
            plan,
            spool,
            random: Random(seed),
            events: Vec::new(),
            base,
            gone,
            living: known,
            next_key,
            ticket: 0,
            faults,
        }
    }

    fn note(&mut self, event: Event) {
        self.events.push(event);
        self.disk.set_mark(self.events.len() as u64);
    }

    fn step(&mut self) {
        // Short queues make quick audits.
        let dice = if self.living.len() > 6 { 8 } else { self.random.below(16) };
        match dice {
            0..=3 => self.accept_some(),
            4 => self.bounce(),
            5..=7 => self.change(),
            8..=10 => self.end(),
            11 => {
                self.spool.engine.sync_results();
                self.hear();
                self.note(Event::Synced);
            }
            12 if self.faults => {
                let skip = self.random.below(4);
                self.plan.fail(skip, 1, EIO);
            }
            _ => {
                self.spool.keep_house();
                self.hear();
            }
        }
    }

    fn offer(&mut self, ends: Option<MessageId>) {
        let key = self.next_key;
        self.next_key += 1;
        self.note(Event::Offered { key, ends });
        let (envelope, bytes) = letter(key);
        let body = if key.is_multiple_of(6) {
            let mut side = self.spool.side_file();
            side.write(bytes);
            Body::Side(side)
        } else {
            Body::Inline(bytes)
        };
        match ends {
            Some(ended) => self.spool.bounce_and_end(envelope, body, ended, key),
            None => self.spool.accept(envelope, body, key),
        }
    }

    /// One to three messages in one batch.
    fn accept_some(&mut self) {
        self.spool.holding = true;
        for _ in 0..=self.random.below(3) {
            self.offer(None);
        }
        self.spool.holding = false;
        self.spool.flush();
        self.hear();
    }

    fn pick(&mut self) -> Option<(MessageId, u64)> {
        let count = self.living.len() as u64;
        (count > 0).then(|| self.living[usize::try_from(self.random.below(count)).unwrap()])
    }

    fn bounce(&mut self) {
        if let Some((id, _)) = self.pick() {
            self.offer(Some(id));
            self.hear();
        }
    }

    fn change(&mut self) {
        let Some((id, key)) = self.pick() else { return };
        let recipients = recipients_of(key);
        let all = self.random.below(2) == 0;
        let mut changes = Vec::new();
        for recipient in 0..recipients {
            if all || recipient == self.ticket % recipients {
                let due_s = self.random.below(1 << 30);
                let state =
                    RecipientState::Pending { attempts: 1, due_s, last_reply: body(due_s, 20), warned: due_s.is_multiple_of(2) };
                changes.push(Change { recipient: u32::try_from(recipient).unwrap(), state });
            }
        }
        self.ticket += 1;
        self.note(Event::Changed { id, changes: changes.clone() });
        self.spool.progress(id, changes, Outlook { pending: 1, due_s: 1, held: false }, u64::MAX);
        self.hear();
    }

    fn end(&mut self) {
        let Some((id, _)) = self.pick() else { return };
        self.note(Event::Ending { id });
        self.living.retain(|(living, _)| *living != id);
        self.spool.end(id, u64::MAX);
        self.hear();
    }

    fn hear(&mut self) {
        for completion in self.spool.completions() {
            match completion {
                Completion::Accepted { ticket: key, id } => {
                    let offered = self.events.iter().find_map(|event| match event {
                        Event::Offered { key: offered, ends } if *offered == key => Some(*ends),
                        _ => None,
                    });
                    self.living.push((id, key));
                    if let Some(Some(ended)) = offered {
                        self.living.retain(|(living, _)| *living != ended);
                    }
                    self.note(Event::Accepted { key, id });
                    // The sync that made it durable was after all results before it.
                    self.note(Event::Synced);
                }
                Completion::Refused { ticket: key, .. } => self.note(Event::Refused { key }),
                Completion::Unwritten { .. } => panic!("a result was not written"),
                _ => {}
            }
        }
    }
}

/// What may be found of a message.
#[derive(Clone)]
struct Expected {
    key: u64,
    must_live: bool,
    may_live: bool,
    /// For each recipient the states that may be found.
    states: Vec<Vec<RecipientState>>,
    /// The bounce that was offered in its place: exactly one of them lives.
    or_bounce: Option<u64>,
}

/// What may be found on a disk.
struct Allowed<'a> {
    expected: BTreeMap<MessageId, Expected>,
    /// Keys that were offered and not answered.
    unanswered: BTreeSet<u64>,
    gone: &'a BTreeSet<u64>,
}

/// What the notes up to `mark` allow.
fn expectations(told: &Told, mark: u64) -> Allowed<'_> {
    let mut messages: BTreeMap<MessageId, Expected> = BTreeMap::new();
    let mut unanswered: BTreeMap<u64, Option<MessageId>> = BTreeMap::new();
    for base in &told.base {
        let states = base.states.iter().map(|state| vec![state.clone()]).collect();
        messages.insert(base.id, Expected { key: base.key, must_live: true, may_live: true, states, or_bounce: None });
    }
    for event in &told.events[..usize::try_from(mark).unwrap()] {
        match event {
            Event::Offered { key, ends } => {
                unanswered.insert(*key, *ends);
                if let Some(message) = ends.and_then(|id| messages.get_mut(&id)) {
                    message.or_bounce = Some(*key);
                }
            }
            Event::Accepted { key, id } => {
                if let Some(ended) = unanswered.remove(key).flatten().and_then(|id| messages.get_mut(&id)) {
                    (ended.must_live, ended.may_live, ended.or_bounce) = (false, false, None);
                }
                let states = reader::fresh(&letter(*key).0).into_iter().map(|state| vec![state]).collect();
                messages.insert(*id, Expected { key: *key, must_live: true, may_live: true, states, or_bounce: None });
            }
            Event::Refused { key } => {
                if let Some(message) = unanswered.remove(key).flatten().and_then(|id| messages.get_mut(&id)) {
                    message.or_bounce = None;
                }
            }
            Event::Changed { id, changes } => {
                let Some(message) = messages.get_mut(id) else { continue };
                for change in changes {
                    message.states[change.recipient as usize].push(change.state.clone());
                }
            }
            Event::Ending { id } => messages.get_mut(id).into_iter().for_each(|message| message.must_live = false),
            Event::Synced => {
                for message in messages.values_mut() {
                    message.may_live = message.must_live;
                    message.states.iter_mut().for_each(|states| drop(states.drain(..states.len() - 1)));
                }
            }
        }
    }
    Allowed { expected: messages, unanswered: unanswered.into_keys().collect(), gone: &told.gone }
}

/// Letters that were written once, for comparing.
type Letters = BTreeMap<u64, (Envelope, Vec<u8>)>;

type Found = BTreeMap<MessageId, (u64, Vec<RecipientState>)>;

/// Reads every message whole and compares it with the letter of its key.
fn read_all(shared: &Shared, ids: impl Iterator<Item = MessageId>, letters: &mut Letters) -> Result<Found, String> {
    let mut found = BTreeMap::new();
    for id in ids {
        let unreadable = |why| format!("message {id} lives but cannot be read: {why:?}");
        let whole = reader::read_whole(shared, id.0).map_err(unreadable)?;
        let (known, _pin) = reader::pin(shared, id.0).map_err(unreadable)?;
        let (_, record) = reader::read_accept(shared, &known, true).map_err(unreadable)?;
        let bytes = if known.sides.body == 0 { record.body } else { side_bytes(shared, id, whole.bytes)? };
        let key = key_of(&whole.envelope);
        if *letters.entry(key).or_insert_with(|| letter(key)) != (whole.envelope, bytes) {
            return Err(format!("message {id} is not letter {key}"));
        }
        found.insert(id, (key, whole.states));
    }
    Ok(found)
}

fn side_bytes(shared: &Shared, id: MessageId, len: u64) -> Result<Vec<u8>, String> {
    let known = crate::shared::lock(&shared.state).get(id.0).ok_or("gone")?;
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    let file = shared.disk.open(&reader::side_path(known.sides.body), sys::fs::Access::Read);
    let file = file.map_err(|error| format!("side file of {id}: {error}"))?;
    read_exact_at(file.as_ref(), &mut bytes, 0).map_err(|error| format!("side file of {id}: {error}"))?;
    Ok(bytes)
}

/// Recovers the disk and compares.
fn audit(disk: PowerDisk, allowed: &Allowed<'_>, letters: &mut Letters) -> Result<(), String> {
    let recovered = replay::recover(&disk).map_err(|error| error.to_string())?;
    if recovered.headers_damaged > 0 {
        return Err("a segment without a header".to_string());
    }
    let living = recovered.living.iter().map(|message| message.id);
    if recovered.state.broken.is_empty() {
        let Recovered { state, ready, .. } = recovered;
        let shared = Shared::new(Arc::new(disk), SEGMENT_BYTES, state, ready, true).map_err(|error| error.to_string())?;
        return compare(&read_all(&shared, living, letters)?, allowed);
    }
    // Broken chains are mended by the first commit: a whole start, from what recovery left.
    let (spool, _) = Inline::open(Arc::new(disk), SEGMENT_BYTES).map_err(|error| error.to_string())?;
    compare(&read_all(&spool.front.shared, living, letters)?, allowed)
}

fn compare(found: &Found, allowed: &Allowed<'_>) -> Result<(), String> {
    let Allowed { expected, unanswered, gone } = allowed;
    let keys: BTreeSet<u64> = found.values().map(|(key, _)| *key).collect();
    if keys.len() != found.len() {
        return Err("a message is there twice".to_string());
    }
    for (id, message) in expected {
        let key = message.key;
        let Some((_, states)) = found.get(id) else {
            let bounced = message.or_bounce.is_some_and(|bounce| keys.contains(&bounce));
            if message.must_live && !bounced {
                return Err(format!("letter {key} is lost"));
            }
            continue;
        };
        if !message.may_live {
            return Err(format!("letter {key} is back from the dead"));
        }
        if message.or_bounce.is_some_and(|bounce| keys.contains(&bounce)) {
            return Err(format!("letter {key} and its bounce are both there"));
        }
        for (number, (state, allowed)) in states.iter().zip(&message.states).enumerate() {
            if !allowed.contains(state) {
                return Err(format!("recipient {number} of letter {key} went back to {state:?}"));
            }
        }
    }
    for (id, (key, _)) in found {
        if !expected.contains_key(id) && !unanswered.contains(key) {
            return Err(format!("letter {key} is there and should not"));
        }
        if gone.contains(key) {
            return Err(format!("letter {key} of an earlier generation is back"));
        }
    }
    Ok(())
}

/// A story that has been told, with the states of the disk on its way.
struct Told {
    base: Vec<Base>,
    gone: BTreeSet<u64>,
    events: Vec<Event>,
    snapshots: Vec<Snapshot>,
    next_key: u64,
}

fn tell(disk: PowerDisk, seed: u64, steps: u64, next_key: u64, gone: BTreeSet<u64>, faults: bool) -> Told {
    let mut story = Story::begin(disk, seed, next_key, gone, faults);
    for _ in 0..steps {
        story.step();
    }
    let snapshots = story.disk.take_snapshots();
    let Story { base, gone, events, next_key, .. } = story;
    Told { base, gone, events, snapshots, next_key }
}

/// How hard the suite tries.
#[derive(Clone, Copy)]
struct Effort {
    stories: u64,
    steps: u64,
    samples_per_snapshot: u64,
    /// Every subset where there are at most this many pieces.
    pieces_exhaustive: usize,
}

#[derive(Default, Debug)]
struct Count {
    exhaustive: u64,
    sampled: u64,
    snapshots: u64,
    syncs_seen: BTreeSet<&'static str>,
}

/// Tells stories of three generations and audits what power cuts leave of each.
fn suite(
    seeds: impl Iterator<Item = u64>,
    effort: Effort,
    dropped: Option<&'static str>,
    count: &mut Count,
) -> Result<(), String> {
    for seed in seeds {
        let mut random = Random(seed ^ 0xabcd);
        let (mut next_key, mut gone) = (1, BTreeSet::new());
        let mut disk = PowerDisk::new();
        for generation in 0..3 {
            dropped.into_iter().for_each(|why| disk.drop_syncs(why));
            let told = tell(disk.clone(), seed * 3 + generation, effort.steps, next_key, gone.clone(), seed % 3 == 2);
            count.syncs_seen.extend(disk.syncs_seen());
            for snapshot in &told.snapshots {
                let place = |error| format!("story {seed}.{generation}: {error}");
                cut_everywhere(snapshot, &told, effort, &mut random, count).map_err(place)?;
            }
            if generation == 0 && seed < 4 {
                cut_the_start(&told, dropped, effort, &mut random, count)
                    .map_err(|error| format!("start in story {seed}: {error}"))?;
            }
            next_key = told.next_key;
            let Some((next, left)) = survivor(&told, &mut random) else { break };
            (disk, gone) = (next, left);
        }
    }
    Ok(())
}

fn cut_everywhere(
    snapshot: &Snapshot,
    told: &Told,
    effort: Effort,
    random: &mut Random,
    count: &mut Count,
) -> Result<(), String> {
    let pieces = snapshot.pieces();
    let allowed = expectations(told, snapshot.mark);
    let mut letters = Letters::new();
    count.snapshots += 1;
    if pieces <= effort.pieces_exhaustive {
        for subset in 0..1_u32 << pieces {
            count.exhaustive += 1;
            audit(snapshot.cut(|piece| subset >> piece & 1 == 1), &allowed, &mut letters)?;
        }
        return Ok(());
    }
    for number in 0..effort.samples_per_snapshot {
        count.sampled += 1;
        // From nearly nothing kept to nearly everything.
        let share = [2, 8, 14, 1, 15][usize::try_from(number % 5).unwrap()];
        audit(snapshot.cut(|_| random.below(16) < share), &allowed, &mut letters)?;
    }
    Ok(())
}

/// The process is killed, and power fails while the next start is at work: what the start finds is not all durable yet.
fn cut_the_start(
    told: &Told,
    dropped: Option<&'static str>,
    effort: Effort,
    random: &mut Random,
    count: &mut Count,
) -> Result<(), String> {
    for killed in told.snapshots.iter().step_by(2) {
        let disk = killed.kill();
        dropped.into_iter().for_each(|why| disk.drop_syncs(why));
        disk.set_mark(killed.mark);
        disk.start_recording();
        drop(Inline::open(Arc::new(disk.clone()), SEGMENT_BYTES).map_err(|error| error.to_string())?);
        let few = Effort { samples_per_snapshot: 2, pieces_exhaustive: 1, ..effort };
        for snapshot in disk.take_snapshots() {
            cut_everywhere(&snapshot, told, few, random, count)?;
        }
    }
    Ok(())
}

/// One disk as a cut or a kill left it, and the keys that are not on it any more.
fn survivor(told: &Told, random: &mut Random) -> Option<(PowerDisk, BTreeSet<u64>)> {
    let count = told.snapshots.len() as u64;
    let late = random.below(count.div_ceil(4)) + 1;
    let snapshot = told.snapshots.get(usize::try_from(count.checked_sub(late)?).unwrap())?;
    let disk = if random.below(2) == 0 { snapshot.kill() } else { snapshot.cut(|piece| piece.is_multiple_of(2)) };
    let (spool, living) = Inline::open(Arc::new(disk.snapshot().kill()), SEGMENT_BYTES).ok()?;
    let found = read_all(&spool.front.shared, living.iter().map(|message| message.id), &mut Letters::new()).ok()?;
    let here: BTreeSet<u64> = found.values().map(|(key, _)| *key).collect();
    Some((disk, (1..told.next_key).filter(|key| !here.contains(key)).collect()))
}

mod tests {
    use super::*;

    /// Each kind of sync that a promise rests on.
    const SYNCS: [&str; 9] = [
        "directories",
        "records",
        "records found at start",
        "segment freed",
        "segment header",
        "segment name",
        "side file",
        "side file name",
        "void",
    ];
    /// Syncs that no promise rests on: zeros are written so that their extents exist when the disk is full.
    const SYNCS_FOR_SPACE: [&str; 1] = ["segment extents"];

    /// Runs the seeds on two threads: each story stands alone.
    fn suite_on_two_threads(effort: Effort) -> Count {
        let counts: [Result<Count, String>; 2] = std::thread::scope(|scope| {
            let half = |odd: u64| {
                scope.spawn(move || {
                    let mut count = Count::default();
                    suite((0..effort.stories).filter(|seed| seed % 2 == odd), effort, None, &mut count).map(|()| count)
                })
            };
            [half(0), half(1)].map(|thread| thread.join().unwrap())
        });
        counts.into_iter().map(Result::unwrap).fold(Count::default(), |mut all, one| {
            all.exhaustive += one.exhaustive;
            all.sampled += one.sampled;
            all.snapshots += one.snapshots;
            all.syncs_seen.extend(one.syncs_seen);
            all
        })
    }

    #[test]
    fn every_power_cut_leaves_what_was_acknowledged() {
        let start = std::time::Instant::now();
        let few = Effort { stories: 4, steps: 10, samples_per_snapshot: 5, pieces_exhaustive: PIECES_EXHAUSTIVE };
        let thorough = suite_on_two_threads(few);
        println!("power cuts, all subsets of few pieces: {thorough:?} in {:?}", start.elapsed());
        let wide = suite_on_two_threads(Effort { stories: 26, steps: 40, samples_per_snapshot: 19, pieces_exhaustive: 2 });
        println!("power cuts, samples: {wide:?} in {:?}", start.elapsed());
        assert!(thorough.exhaustive > 10_000 && wide.sampled + thorough.sampled >= 100_000);
        let known: BTreeSet<&str> = SYNCS.into_iter().chain(SYNCS_FOR_SPACE).collect();
        assert_eq!(wide.syncs_seen, known, "a new kind of sync must be left out in turn, too");
    }

    #[test]
    fn without_any_one_kind_of_sync_the_suite_fails() {
        let effort = Effort { stories: 40, steps: 40, samples_per_snapshot: 10, pieces_exhaustive: 2 };
        for why in SYNCS {
            let mut count = Count::default();
            let run = || suite(0..effort.stories, effort, Some(why), &mut count);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            println!("without the sync of {why}: {result:?} after {} cuts", count.sampled + count.exhaustive);
            assert!(!matches!(result, Ok(Ok(()))), "nothing noticed that the sync of {why} was left out");
        }
    }
}
