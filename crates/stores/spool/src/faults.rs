//! What a failing, a full and a damaged disk do to the real spool: temporary refusals, never a loss, never a crash.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;

use sys::fs::fault::{Call, FaultDisk, Plan};
use sys::fs::power::PowerDisk;
use sys::fs::{Access, Disk};

use crate::conformance::{Random, answer, body, content, envelope};
use crate::inline::Inline;
use crate::prepare;
use crate::segment;
use crate::shared::lock;
use crate::types::{
    Body, Change, Completion, Envelope, Health, Log, MessageId, Outlook, ReadFailure, RecipientState, Refusal, SpoolError,
};

const SEGMENT_BYTES: u64 = 32 * 1024;
const EIO: i32 = 5;

fn letter(key: u64) -> (Envelope, Vec<u8>) {
    (envelope(key, 1 + key % 3), body(key, 1500))
}

fn accept(spool: &mut Inline, key: u64) -> Completion {
    let (envelope, body) = letter(key);
    spool.accept(envelope, Body::Inline(body), key);
    answer(spool, key)
}

fn accepted(completion: &Completion) -> MessageId {
    match completion {
        Completion::Accepted { id, .. } => *id,
        other => panic!("{other:?}"),
    }
}

fn deferred(recipient: u32) -> Change {
    Change { recipient, state: RecipientState::Pending { attempts: 1, due_s: 9, last_reply: b"later".to_vec(), warned: true } }
}

const OUTLOOK: Outlook = Outlook { pending: 1, due_s: 9, held: false };

/// Envelope, states and body are those of the letter.
fn check(spool: &mut Inline, id: MessageId, key: u64) {
    spool.read_envelope(id, 1 << 40);
    let Completion::Envelope { envelope, .. } = answer(spool, 1 << 40) else { panic!("no envelope of {key}") };
    spool.open_body(id, 1 << 41);
    let Completion::BodyFd { fd, bytes, .. } = answer(spool, 1 << 41) else { panic!("no body of {key}") };
    assert_eq!((envelope, content(fd, bytes)), letter(key));
}

fn faulty(strikes: fn(Call) -> bool) -> (PowerDisk, Arc<Plan>, Inline) {
    let (disk, plan) = (PowerDisk::new(), Plan::new(strikes));
    let faulty = FaultDisk::new(Arc::new(disk.clone()), Arc::clone(&plan));
    let (spool, _) = Inline::open(Arc::new(faulty), SEGMENT_BYTES).unwrap();
    (disk, plan, spool)
}

/// All messages of a disk by a fresh start, by what their letter says.
fn reopened(disk: &PowerDisk) -> (Inline, BTreeMap<u64, MessageId>) {
    let (spool, living) = Inline::open(Arc::new(disk.snapshot().kill()), SEGMENT_BYTES).unwrap();
    (spool, living.into_iter().map(|message| (message.arrival_s - 1_700_000_000, message.id)).collect())
}

/// One error, at every call there is, by write and by sync: what was accepted is there, what was refused is not.
#[test]
fn one_error_at_any_write_or_sync_loses_nothing() {
    for strikes in
        [|call| call == Call::Sync, |call| call == Call::Write, |call| call == Call::SyncDir, |call| call == Call::Rename]
    {
        for skip in 0..60 {
            let (disk, plan, mut spool) = faulty(strikes);
            plan.fail(skip, 1, EIO);
            let mut kept = BTreeMap::new();
            let mut refused = Vec::new();
            for key in 1..40 {
                match accept(&mut spool, key) {
                    Completion::Accepted { id, .. } => drop(kept.insert(key, id)),
                    Completion::Refused { why, .. } => {
                        assert_eq!(why, Refusal::Failed);
                        refused.push(key);
                    }
                    other => panic!("{other:?}"),
                }
                if let Some((_, id)) = kept.first_key_value() {
                    spool.progress(*id, vec![deferred(0)], OUTLOOK, 1000);
                    assert!(matches!(answer(&mut spool, 1000), Completion::Written { .. }));
                }
                if key % 4 == 0
                    && let Some((_, id)) = kept.pop_first()
                {
                    spool.end(id, 1001);
                    assert!(matches!(answer(&mut spool, 1001), Completion::Written { .. }));
                    spool.keep_house();
                }
            }
            spool.engine.sync_results();
            assert!(refused.len() <= 1, "one error refuses one message: {refused:?}");
            assert_eq!(spool.health(), Health::Ok);
            let (mut again, found) = reopened(&disk);
            assert_eq!(found, kept, "after an error at call {skip}");
            kept.iter().for_each(|(key, id)| check(&mut again, *id, *key));
        }
    }
}

/// When nothing can be synced any more the spool says so, and answers everything.
#[test]
fn a_dead_disk_stops_it_and_everything_is_answered() {
    let (disk, plan, mut spool) = faulty(|call| matches!(call, Call::Sync | Call::Write));
    let id = accepted(&accept(&mut spool, 1));
    plan.fail(0, u64::MAX, EIO);
    assert!(matches!(accept(&mut spool, 2), Completion::Refused { why: Refusal::Failed, .. }));
    assert_eq!(spool.health(), Health::Stopped);
    spool.end(id, 3);
    assert!(matches!(answer(&mut spool, 3), Completion::Unwritten { .. }));
    assert!(matches!(accept(&mut spool, 4), Completion::Refused { why: Refusal::Failed, .. }));
    check(&mut spool, id, 1);
    let (mut again, found) = reopened(&disk);
    assert_eq!(found.get(&1), Some(&id));
    check(&mut again, id, 1);
}

/// A full disk refuses new mail before the spare is touched; results, ends and bounces go on; room ends it.
#[test]
fn a_full_disk_refuses_mail_but_takes_results_and_bounces() {
    let (disk, plan, mut spool) = faulty(|_| false);
    spool.keep_house();
    plan.set_full(true);
    let mut kept = BTreeMap::new();
    let mut key = 1;
    let refusal = loop {
        match accept(&mut spool, key) {
            Completion::Accepted { id, .. } => kept.insert(key, id),
            other => break other,
        };
        key += 1;
    };
    assert!(matches!(refusal, Completion::Refused { why: Refusal::Full, .. }));
    assert_eq!(spool.health(), Health::Full);
    assert!(lock(&spool.front.shared.ready).has_spare, "the spare is for results");
    for id in kept.values() {
        spool.progress(*id, vec![deferred(0)], OUTLOOK, 5000);
        assert!(matches!(answer(&mut spool, 5000), Completion::Written { .. }));
    }
    let (first, bounced) = kept.pop_first().unwrap();
    let (envelope, bytes) = letter(first + 1000);
    spool.bounce_and_end(envelope, Body::Inline(bytes), bounced, 6000);
    kept.insert(first + 1000, accepted(&answer(&mut spool, 6000)));
    assert!(matches!(accept(&mut spool, key), Completion::Refused { why: Refusal::Full, .. }));
    // A side file needs an inode.
    let mut side = spool.side_file();
    side.write(vec![1; 10]);
    spool.accept(letter(2000).0, Body::Side(side), 7000);
    assert!(matches!(answer(&mut spool, 7000), Completion::Refused { why: Refusal::Full, .. }));
    // Most mail goes; its segments become room, though the file system has none.
    while kept.len() > 3 {
        let (_, id) = kept.pop_first().unwrap();
        spool.end(id, 8000);
        assert!(matches!(answer(&mut spool, 8000), Completion::Written { .. }));
    }
    for _ in 0..20 {
        spool.keep_house();
    }
    kept.insert(key, accepted(&accept(&mut spool, key)));
    assert_eq!(spool.health(), Health::Ok);
    let (mut again, found) = reopened(&disk);
    assert_eq!(found, kept);
    kept.iter().for_each(|(key, id)| check(&mut again, *id, *key));
}

/// Results are written though not even the spare is left: they wait, and nothing else is taken.
#[test]
fn results_wait_for_room_when_the_spare_is_used_up() {
    let (_, plan, mut spool) = faulty(|_| false);
    let id = accepted(&accept(&mut spool, 1));
    plan.set_full(true);
    let mut ticket = 100;
    while spool.engine.has_parked() || ticket < 2000 {
        spool.progress(id, vec![deferred(0)], OUTLOOK, ticket);
        if spool.engine.has_parked() {
            break;
        }
        ticket += 1;
    }
    drop(spool.completions());
    assert!(spool.engine.has_parked());
    plan.set_full(false);
    spool.flush();
    assert!(matches!(answer(&mut spool, ticket), Completion::Written { .. }));
}

/// A hold or release that was answered is there after any power cut, also where the disk failed once.
#[test]
fn no_power_cut_undoes_a_hold_that_was_answered() {
    for failing in [false, true] {
        let (disk, plan, mut spool) = faulty(|call| call == Call::Sync);
        let id = accepted(&accept(&mut spool, 1));
        for held in [true, false, true] {
            if failing {
                plan.fail(0, 1, EIO);
            }
            spool.progress(id, vec![deferred(0)], OUTLOOK, 4000);
            assert!(matches!(answer(&mut spool, 4000), Completion::Written { .. }));
            spool.note(id, Outlook { held, ..OUTLOOK }, 5000);
            assert!(matches!(answer(&mut spool, 5000), Completion::Written { .. }));
            let cut = disk.snapshot().cut(|_| false);
            let (_, living) = Inline::open(Arc::new(cut), SEGMENT_BYTES).unwrap();
            assert_eq!(living.iter().map(|message| message.held).collect::<Vec<_>>(), [held]);
        }
    }
    let (_, plan, mut spool) = faulty(|call| call == Call::Sync);
    let id = accepted(&accept(&mut spool, 1));
    plan.fail(0, 1000, EIO);
    spool.note(id, Outlook { held: true, ..OUTLOOK }, 5000);
    assert!(matches!(answer(&mut spool, 5000), Completion::Unwritten { .. }));
}

/// Segments whose mail is gone are used again; a few old messages do not keep many segments.
#[test]
fn dead_segments_are_used_again_and_old_mail_moves() {
    let disk = PowerDisk::new();
    let (mut spool, _) = Inline::open(Arc::new(disk.clone()), SEGMENT_BYTES).unwrap();
    let mut kept = BTreeMap::new();
    for key in 1..2000 {
        let id = accepted(&accept(&mut spool, key));
        if key % 100 == 0 {
            spool.progress(id, vec![deferred(0)], OUTLOOK, 5000);
            assert!(matches!(answer(&mut spool, 5000), Completion::Written { .. }));
            kept.insert(key, id);
        } else {
            spool.end(id, 5000);
            assert!(matches!(answer(&mut spool, 5000), Completion::Written { .. }));
        }
        if key % 5 == 0 {
            spool.keep_house();
        }
    }
    while spool.keep_house() {}
    let stats = spool.stats();
    assert_eq!(stats.messages, kept.len() as u64);
    assert!(stats.segments <= 8, "{stats:?}");
    assert!(stats.moved > 0 && stats.segments_free <= 4, "{stats:?}");
    assert!(disk.list("segments".as_ref()).unwrap().len() <= 16);
    let (mut again, found) = reopened(&disk);
    assert_eq!(found, kept);
    for (key, id) in kept {
        check(&mut again, id, key);
        again.read_envelope(id, 9000);
        let Completion::Envelope { states, .. } = answer(&mut again, 9000) else { panic!("no envelope") };
        assert_eq!(states.first(), Some(&deferred(0).state));
    }
}

/// With the index blocks and without any, the start finds the same.
#[test]
fn index_blocks_and_scans_give_the_same_index() {
    let disk = PowerDisk::new();
    let (mut spool, _) = Inline::open(Arc::new(disk.clone()), SEGMENT_BYTES).unwrap();
    let mut random = Random(5);
    let mut ids: Vec<MessageId> = Vec::new();
    for key in 1..300 {
        ids.push(accepted(&accept(&mut spool, key)));
        let chosen = ids[usize::try_from(random.below(ids.len() as u64)).unwrap()];
        if random.below(2) == 0 {
            spool.progress(chosen, vec![deferred(0)], OUTLOOK, 5000);
        } else {
            spool.end(chosen, 5000);
        }
        if key % 7 == 0 {
            spool.keep_house();
        }
    }
    spool.keep_house();
    let bare = disk.snapshot().kill();
    let mut indexed = 0;
    for name in bare.list("segments".as_ref()).unwrap() {
        let file = bare.open(&segment::path(name.to_str().unwrap()), Access::ReadWrite).unwrap();
        if let Ok(header) = segment::read_header(file.as_ref()) {
            indexed += u32::from(segment::read_index(file.as_ref(), &header).is_some());
            file.write_at(&[IoSlice::new(&[0; 64])], header.limit()).unwrap();
        }
    }
    assert!(indexed > 3, "{indexed}");
    let picture = |disk: &PowerDisk| {
        let found = crate::replay::recover(disk).unwrap();
        let entries: Vec<_> = found.state.table.iter().map(|(id, entry)| (id, *entry)).collect();
        let segments: Vec<_> = found.state.segments.iter().map(|(n, s)| (*n, s.refs, s.live_bytes, s.deps.clone())).collect();
        (entries, segments, found.living, found.alerts)
    };
    assert_eq!(picture(&disk.snapshot().kill()), picture(&bare));
}

/// A damaged record costs that message alone; it is set aside, once, with an alert.
#[test]
fn damage_is_set_aside_and_the_rest_goes_on() {
    let disk = PowerDisk::new();
    let (mut spool, _) = Inline::open(Arc::new(disk.clone()), SEGMENT_BYTES).unwrap();
    let ids: Vec<_> = (1..4).map(|key| accepted(&accept(&mut spool, key))).collect();
    let place = crate::record::Place(ids[1].0);
    let path = segment::path(&segment::name(place.segment()));
    disk.rot(&path, place.offset() + 1000);
    spool.open_body(ids[1], 50);
    let answers = spool.completions();
    assert!(
        matches!(answers[..], [Completion::Alert(_), Completion::ReadFailed { why: ReadFailure::Damaged, .. }]),
        "{answers:?}"
    );
    check(&mut spool, ids[0], 1);
    drop(spool);
    let (mut again, found) = reopened(&disk);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1, 3]);
    let alerts = again.completions();
    assert!(matches!(&alerts[..], [Completion::Alert(text)] if text.contains("quarantine/segment-")), "{alerts:?}");
    check(&mut again, ids[2], 3);
}

/// A spool of several segments, with messages that live in each of them, in the log and beside it, and one whose sync failed; and what
/// is in it.
fn several_segments() -> (PowerDisk, BTreeMap<u64, MessageId>) {
    let (disk, plan, mut spool) = faulty(|call| call == Call::Sync);
    let mut kept = BTreeMap::new();
    for key in 1..60 {
        if key == 58 {
            plan.fail(0, 1, EIO);
            assert!(matches!(accept(&mut spool, key), Completion::Refused { why: Refusal::Failed, .. }));
            continue;
        }
        let id = accepted(&accept(&mut spool, key));
        spool.progress(id, vec![deferred(0)], OUTLOOK, 1000);
        assert!(matches!(answer(&mut spool, 1000), Completion::Written { .. }));
        if key % 3 == 0 {
            spool.end(id, 1001);
            assert!(matches!(answer(&mut spool, 1001), Completion::Written { .. }));
        } else {
            kept.insert(key, id);
        }
        spool.keep_house();
    }
    spool.engine.sync_results();
    assert!(lock(&spool.front.shared.state).segments.len() > 3);
    (disk, kept)
}

/// Whatever call of the start fails, once or for good: it starts and knows no message that there is not (not one that has ended), or says
/// what it cannot read; it loses none, and when the disk can be read again all of them are there.
#[test]
fn a_start_on_a_failing_disk_goes_on_or_says_what_it_cannot_read() {
    type Strikes = fn(Call) -> bool;
    let strikes: [(Strikes, &[u64]); 4] = [
        (|call| call == Call::Read, &[1, 2, 3, 8, u64::MAX]),
        (|call| call == Call::Open, &[1, 2, 8]),
        (|call| call == Call::Unlink, &[1, u64::MAX]),
        (|call| call == Call::Rename, &[1]),
    ];
    let (disk, kept) = several_segments();
    for (strikes, counts) in strikes {
        for (skip, count) in (0..25).flat_map(|skip| counts.iter().map(move |count| (skip, *count))) {
            let disk = disk.snapshot().kill();
            let plan = Plan::new(strikes);
            plan.fail(skip, count, EIO);
            let faulty = FaultDisk::new(Arc::new(disk.clone()), Arc::clone(&plan));
            let opened = Inline::open(Arc::new(faulty), SEGMENT_BYTES);
            let (mut spool, living) = match opened {
                Ok(opened) => opened,
                Err(SpoolError::Io { doing: "open a new segment" | "read a segment", .. }) => {
                    assert_eq!(reopened(&disk).1, kept, "nothing was changed");
                    continue;
                }
                Err(error) => panic!("{skip}, {count}: {error}"),
            };
            let known: BTreeMap<u64, MessageId> =
                living.into_iter().map(|message| (message.arrival_s - 1_700_000_000, message.id)).collect();
            assert!(known.keys().all(|key| kept.contains_key(key)), "{skip}, {count}: one that has ended is there again");
            let missing = kept.iter().filter(|(key, id)| known.get(key) != Some(id)).count();
            let alerts = spool.completions().iter().filter(|said| matches!(said, Completion::Alert(_))).count();
            assert!(missing == 0 || alerts > 0, "{skip}, {count}: {missing} are missing and nobody says so");
            plan.fail(0, 0, EIO);
            // What it does from here on must not hurt what it does not see.
            let new = (100..110).filter(|key| matches!(accept(&mut spool, *key), Completion::Accepted { .. })).count();
            for _ in 0..20 {
                spool.keep_house();
            }
            spool.engine.sync_results();
            drop(spool);
            let (mut again, found) = reopened(&disk);
            for (key, id) in &kept {
                assert_eq!(found.get(key), Some(id), "{skip}, {count}: {key} is lost");
                check(&mut again, *id, *key);
            }
            assert_eq!(found.keys().filter(|key| **key >= 100).count(), new);
        }
    }
}

#[test]
fn a_newer_format_is_refused_by_name_and_nothing_is_changed() {
    let disk = PowerDisk::new();
    let (mut spool, _) = Inline::open(Arc::new(disk.clone()), SEGMENT_BYTES).unwrap();
    accepted(&accept(&mut spool, 1));
    drop(spool);
    disk.create("incoming/left".as_ref(), 0o600).unwrap();
    let file = disk.open("segments/0000000000000001".as_ref(), Access::ReadWrite).unwrap();
    file.write_at(&[IoSlice::new(&[99])], 8).unwrap();
    disk.start_recording();
    let error = Inline::open(Arc::new(disk.clone()), SEGMENT_BYTES).err().unwrap();
    assert!(matches!(&error, SpoolError::NewerFormat { found: 99, .. }), "{error}");
    assert!(!error.is_temporary() && error.to_string().contains("segments/0000000000000001"));
    assert!(disk.take_snapshots().is_empty(), "something was changed");
}

/// Without options and the states of format 2 the records are those of format 1, and with options those of format 2 are told apart by the
/// header alone.
#[test]
fn the_formats_before_are_read() {
    for format in [1, 2, 3] {
        let disk = PowerDisk::new();
        let (mut spool, _) = Inline::open(Arc::new(disk.clone()), SEGMENT_BYTES).unwrap();
        for number in [1, 2] {
            accepted(&accept(&mut spool, number));
        }
        drop(spool);
        let file = disk.open("segments/0000000000000001".as_ref(), Access::ReadWrite).unwrap();
        let mut header = vec![0; segment::HEADER_BYTES];
        assert_eq!(file.read_at(&mut header, 0).unwrap(), segment::HEADER_BYTES);
        assert_eq!(header[8..12], segment::FORMAT.to_le_bytes(), "this version writes its own format");
        header[8] = format;
        let end = header.len() - 4;
        let crc = crc32c::crc32c(&header[..end]).to_le_bytes();
        header[end..].copy_from_slice(&crc);
        file.write_at(&[IoSlice::new(&header)], 0).unwrap();
        let (mut again, found) = reopened(&disk);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1, 2]);
        for (number, id) in found {
            check(&mut again, id, number);
        }
        let three = accepted(&accept(&mut again, 3));
        check(&mut again, three, 3);
        assert!(again.completions().is_empty(), "no alert");
    }
}

/// Any byte of any file may be wrong: the start neither fails nor panics, and what it lists can be read or is said to be damaged.
#[test]
fn any_wrong_byte_is_survived() {
    let disk = PowerDisk::new();
    let (mut spool, _) = Inline::open(Arc::new(disk.clone()), SEGMENT_BYTES).unwrap();
    for key in 1..12 {
        let id = accepted(&accept(&mut spool, key));
        spool.progress(id, vec![deferred(0)], OUTLOOK, 5000);
        if key % 3 == 0 {
            spool.end(id, 5001);
        }
    }
    drop(spool);
    let mut random = Random(3);
    for _ in 0..1500 {
        let copy = disk.snapshot().kill();
        for _ in 0..=random.below(3) {
            copy.rot("segments/0000000000000001".as_ref(), random.below(SEGMENT_BYTES));
        }
        let (mut spool, living) = Inline::open(Arc::new(copy), SEGMENT_BYTES).unwrap();
        for message in living {
            spool.read_envelope(message.id, 1);
            spool.open_body(message.id, 2);
        }
        while spool.keep_house() {}
    }
}

/// A list of 100,000 recipients: its envelope is a side file, its states come and go in parts, compaction keeps them.
#[test]
fn a_message_to_a_hundred_thousand_recipients() {
    let disk = PowerDisk::new();
    let (mut spool, _) = Inline::open(Arc::new(disk.clone()), 8 * 1024 * 1024).unwrap();
    let letter = envelope(1, 100_000);
    spool.accept(letter.clone(), Body::Inline(b"post\n".to_vec()), 1);
    let id = accepted(&answer(&mut spool, 1));
    for part in 0..500_u32 {
        let changes = (part * 200..part * 200 + 200).map(|recipient| Change { recipient, state: RecipientState::Done }).collect();
        spool.progress(id, changes, Outlook { pending: 100_000 - part * 200, due_s: 1, held: false }, 2);
    }
    spool.keep_house();
    drop(spool.completions());
    spool.progress(id, vec![deferred(7)], OUTLOOK, 3);
    let disk = disk.snapshot().kill();
    let (mut spool, living) = Inline::open(Arc::new(disk.clone()), 8 * 1024 * 1024).unwrap();
    assert_eq!(disk.list("bodies".as_ref()).unwrap().len(), 1);
    assert_eq!((living[0].recipients, living[0].pending, living[0].due_s), (100_000, 1, 9));
    spool.read_envelope(id, 4);
    let Completion::Envelope { envelope, states, .. } = answer(&mut spool, 4) else { panic!("no envelope") };
    assert_eq!(envelope, letter);
    assert_eq!(states.iter().filter(|state| **state == RecipientState::Done).count(), 99_999);
    assert_eq!(states[7], deferred(7).state);
    spool.end(id, 5);
    spool.engine.sync_results();
    spool.keep_house();
    assert!(disk.list("bodies".as_ref()).unwrap().is_empty() && spool.stats().messages == 0);
}

/// The housekeeper makes a segment ready while the engine, which just found none, goes for the spare: what is written later must
/// stand in a segment with a higher number, or the next start would replay an end before its accept.
#[test]
fn the_spare_is_never_taken_past_a_segment_that_got_ready_meanwhile() {
    let (_, plan, mut spool) = faulty(|_| false);
    spool.keep_house();
    let shared = &spool.front.shared;
    plan.set_full(true);
    while prepare::next(shared).is_ok() {}
    plan.set_full(false);
    prepare::fill(shared);
    let (taken, is_spare) = prepare::take_spare(shared).unwrap();
    assert!(!is_spare);
    let left = lock(&shared.ready).next.iter().map(|segment| segment.header.number).min();
    assert!(left.is_none_or(|left| left > taken.header.number), "{left:?} would be written after {}", taken.header.number);
}

/// Mail over many segments that ends at one blow.
fn many_segments_at_once(spool: &mut Inline) {
    let ids: Vec<MessageId> = (1..400).map(|key| accepted(&accept(spool, key))).collect();
    assert!(spool.stats().segments > 20);
    for id in ids {
        spool.end(id, 5000);
        assert!(matches!(answer(spool, 5000), Completion::Written { .. }));
    }
}

/// The file system gets back all but a few, however many die together.
#[test]
fn segments_that_die_together_are_given_back_to_the_file_system() {
    let disk = PowerDisk::new();
    let (mut spool, _) = Inline::open(Arc::new(disk.clone()), SEGMENT_BYTES).unwrap();
    many_segments_at_once(&mut spool);
    while spool.keep_house() {}
    assert!(spool.stats().segments_free <= 4, "{:?}", spool.stats());
    assert!(disk.list("segments".as_ref()).unwrap().len() <= 14, "{:?}", disk.list("segments".as_ref()));
}

/// Segments whose going could not be made durable go with the next try; until then they keep compaction from no other.
#[test]
fn segments_whose_freeing_failed_once_are_freed_all_the_same() {
    for (call, skip) in [(Call::SyncDir, 0), (Call::Rename, 0), (Call::Rename, 1), (Call::Unlink, 0)] {
        let strikes = match call {
            Call::SyncDir => |call| call == Call::SyncDir,
            Call::Rename => |call| call == Call::Rename,
            _ => |call| call == Call::Unlink,
        };
        let (_, plan, mut spool) = faulty(strikes);
        many_segments_at_once(&mut spool);
        prepare::fill(&spool.front.shared);
        plan.fail(skip, 1, EIO);
        for _ in 0..100 {
            spool.keep_house();
        }
        assert!(spool.stats().segments <= 6, "{call:?}: {:?}", spool.stats());
    }
}

/// A record that rots takes its message from the index; what else there is of that message must still be there for whoever
/// repairs it, and is put beside the damaged bytes.
#[test]
fn a_body_whose_record_is_damaged_is_set_aside_not_removed() {
    let disk = PowerDisk::new();
    let (mut spool, _) = Inline::open(Arc::new(disk.clone()), SEGMENT_BYTES).unwrap();
    let mut side = spool.side_file();
    side.write(vec![7; 100_000]);
    spool.accept(letter(1).0, Body::Side(side), 1);
    accepted(&answer(&mut spool, 1));
    accepted(&accept(&mut spool, 2));
    drop(spool);
    for header in [false, true] {
        let copy = disk.snapshot().kill();
        copy.rot("segments/0000000000000001".as_ref(), if header { 20 } else { segment::RECORDS_AT + 60 });
        let (spool, living) = Inline::open(Arc::new(copy.clone()), SEGMENT_BYTES).unwrap();
        assert_eq!(living.len(), usize::from(!header));
        drop(spool);
        let kept: Vec<_> =
            copy.list("quarantine".as_ref()).unwrap().into_iter().filter_map(|name| name.into_string().ok()).collect();
        let body = kept.iter().find(|name| name.starts_with("body-")).unwrap_or_else(|| panic!("{kept:?}"));
        let file = copy.open(format!("quarantine/{body}").as_ref(), Access::Read).unwrap();
        assert_eq!(file.size().unwrap(), 100_000);
        // Nothing new is damaged: what nobody wants goes as ever.
        copy.create("bodies/00000000000000aa".as_ref(), 0o600).unwrap();
        drop(Inline::open(Arc::new(copy.clone()), SEGMENT_BYTES).unwrap());
        assert!(copy.list("bodies".as_ref()).unwrap().is_empty());
        assert!(copy.open("quarantine/body-00000000000000aa".as_ref(), Access::Read).is_err());
    }
}

/// The number of a segment that was set aside is not given again, though the start that did it got no further.
#[test]
fn ids_do_not_repeat_after_a_segment_was_set_aside() {
    let disk = PowerDisk::new();
    let (mut spool, _) = Inline::open(Arc::new(disk.clone()), SEGMENT_BYTES).unwrap();
    let id = accepted(&accept(&mut spool, 1));
    drop(spool);
    disk.rot("segments/0000000000000001".as_ref(), 20);
    crate::replay::recover(&disk).unwrap();
    let (mut spool, _) = Inline::open(Arc::new(disk), SEGMENT_BYTES).unwrap();
    assert!(accepted(&accept(&mut spool, 2)) > id);
}

/// Results of a segment that is full to the brim when its sync fails: there is room for each of them, and for the void, in the next.
#[test]
fn no_result_of_a_full_segment_is_lost_when_its_sync_fails() {
    for reply_len in 900..1010 {
        let (disk, plan, mut spool) = faulty(|call| call == Call::Sync);
        let id = accepted(&accept(&mut spool, 2));
        spool.keep_house();
        let segments = |spool: &Inline| spool.stats().segments;
        let mut due_s = 0;
        let mut progress = |spool: &mut Inline| {
            due_s += 1;
            let state = RecipientState::Pending { attempts: 1, due_s, last_reply: vec![b'x'; reply_len], warned: false };
            spool.progress(id, vec![Change { recipient: 0, state: state.clone() }], OUTLOOK, 5000);
            assert!(matches!(answer(spool, 5000), Completion::Written { .. }));
            state
        };
        let before = segments(&spool);
        while segments(&spool) == before {
            progress(&mut spool);
        }
        let mut count = 1;
        while segments(&spool) == before + 1 {
            progress(&mut spool);
            count += 1;
        }
        // The next segment has one now; as many as the last one took fill it.
        let last = (2..count).map(|_| progress(&mut spool)).last();
        assert_eq!(segments(&spool), before + 2);
        plan.fail(0, 1, EIO);
        spool.engine.sync_results();
        assert_eq!(segments(&spool), before + 3);
        for spool in [&mut spool, &mut reopened(&disk).0] {
            spool.read_envelope(id, 6000);
            let Completion::Envelope { states, .. } = answer(spool, 6000) else { panic!("no envelope") };
            assert_eq!(states.first(), last.as_ref(), "{reply_len}");
        }
    }
}

/// Segments of another length that an earlier start left: one that is shorter could not take what an older one holds.
#[test]
fn segments_of_another_length_are_not_mixed() {
    for (earlier, now) in [(16 * 1024, SEGMENT_BYTES), (SEGMENT_BYTES, 16 * 1024)] {
        let disk = PowerDisk::new();
        let (mut spool, _) = Inline::open(Arc::new(disk.clone()), earlier).unwrap();
        let first = accepted(&accept(&mut spool, 1));
        many_segments_at_once(&mut spool);
        while spool.keep_house() {}
        drop(spool);
        let (mut spool, _) = Inline::open(Arc::new(disk.clone()), now).unwrap();
        for key in 2..100 {
            accepted(&accept(&mut spool, key));
        }
        assert!(prepare::take_spare(&spool.front.shared).is_ok());
        let of_now = |spool: &Inline| {
            let state = lock(&spool.front.shared.state);
            state.segments.iter().rev().take(5).all(|(_, segment)| segment.bytes == now)
        };
        assert!(of_now(&spool));
        check(&mut spool, first, 1);
    }
}

/// More broken chains than one segment holds: each message is mended, none waits for the others.
#[test]
fn many_broken_chains_are_mended_in_parts() {
    let disk = PowerDisk::new();
    let (mut spool, _) = Inline::open(Arc::new(disk.clone()), SEGMENT_BYTES).unwrap();
    let pending = |recipient: u32| Change {
        recipient,
        state: RecipientState::Pending { attempts: 1, due_s: 9, last_reply: vec![b'r'; 4000], warned: false },
    };
    let ids: Vec<MessageId> = (1..=8).map(|n| accepted(&accept(&mut spool, n * 3 + 2))).collect();
    let mut damaged = Vec::new();
    for id in &ids {
        for recipient in 0..3 {
            spool.progress(*id, vec![pending(recipient)], OUTLOOK, 5000);
            let place = lock(&spool.front.shared.state).get(id.0).unwrap().entry.state;
            if recipient == 1 {
                damaged.push(place);
            }
        }
    }
    let disk = disk.snapshot().kill();
    for place in damaged {
        disk.rot(segment::path(&segment::name(place.segment())).as_ref(), place.offset() + 60);
    }
    let (mut again, living) = Inline::open(Arc::new(disk), SEGMENT_BYTES).unwrap();
    assert_eq!(living.len(), ids.len());
    for id in ids {
        again.read_envelope(id, 6000);
        let Completion::Envelope { states, .. } = answer(&mut again, 6000) else { panic!("{id} cannot be read") };
        assert_eq!((&states[0], &states[2]), (&pending(0).state, &pending(2).state));
    }
}

/// A state that is spread over too many records is written anew once, not once for each of the records that were too many.
#[test]
fn a_long_chain_is_written_anew_once() {
    let (mut spool, _) = Inline::open(Arc::new(PowerDisk::new()), 1024 * 1024).unwrap();
    let id = accepted(&accept(&mut spool, 2));
    for n in 0..500 {
        spool.progress(id, vec![deferred(n % 3)], OUTLOOK, 5000);
    }
    spool.keep_house();
    assert_eq!(spool.stats().moved, 1);
    assert!(lock(&spool.front.shared.state).get(id.0).unwrap().entry.chain <= 1);
    check(&mut spool, id, 2);
}
