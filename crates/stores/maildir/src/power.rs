//! The power-cut and fault suites of Maildir deliveries, over [`sys::fs::power`] and [`sys::fs::fault`].
//!
//! A *story* makes two Maildirs and delivers batches of letters, small ones and ones of many sectors. From every state of the disk on
//! the way power may fail: up to 12 un-synced pieces every subset of them is tried, above that seeded samples. Whatever is left, each
//! letter of which success was said stands whole and once in `new/`, and nothing stands there that is not a whole letter.
//! The suite proves itself: with any one sync left out it must fail.

use crate::deliver::{Delivery, Maildir, create_in, deliver_batch};
use crate::{Body, Letter};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use sys::fs::fault::{Call, FaultDisk, Plan};
use sys::fs::power::{PowerDisk, Snapshot};
use sys::fs::{Access, Disk, read_exact_at};

/// Up to so many un-synced pieces every subset is tried.
const PIECES_EXHAUSTIVE: usize = 12;
/// Ways of a power cut tried of a state with more.
const SAMPLES: u64 = 1000;
const TRACE: &[u8] = b"Return-Path: <a@example.org>\nDelivered-To: b@example.org\n";
/// Batches of (Maildir, length of the letter).
const BATCHES: [&[(usize, usize)]; 4] =
    [&[(0, 0)], &[(0, 700), (1, 10)], &[(1, 3000), (0, 5), (1, 513), (0, 9000)], &[(1, 100_000)]];

/// One Maildir of a disk, as a disk of its own.
struct Below<D>(Arc<D>, &'static str);

impl<D: Disk> Disk for Below<D> {
    fn create(&self, path: &Path, mode: u32) -> std::io::Result<Box<dyn sys::fs::DiskFile>> {
        self.0.create(&Path::new(self.1).join(path), mode)
    }
    fn open(&self, path: &Path, access: Access) -> std::io::Result<Box<dyn sys::fs::DiskFile>> {
        self.0.open(&Path::new(self.1).join(path), access)
    }
    fn make_dir(&self, path: &Path, mode: u32) -> std::io::Result<()> {
        self.0.make_dir(&Path::new(self.1).join(path), mode)
    }
    fn list(&self, path: &Path) -> std::io::Result<Vec<std::ffi::OsString>> {
        self.0.list(&Path::new(self.1).join(path))
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.0.rename(&Path::new(self.1).join(from), &Path::new(self.1).join(to))
    }
    fn rename_new(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.0.rename_new(&Path::new(self.1).join(from), &Path::new(self.1).join(to))
    }
    fn link(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.0.link(&Path::new(self.1).join(from), &Path::new(self.1).join(to))
    }
    fn unlink(&self, path: &Path) -> std::io::Result<()> {
        self.0.unlink(&Path::new(self.1).join(path))
    }
    fn sync_dir(&self, path: &Path, why: &'static str) -> std::io::Result<()> {
        self.0.sync_dir(&Path::new(self.1).join(path), why)
    }
    fn space(&self) -> std::io::Result<sys::fs::Space> {
        self.0.space()
    }
}

/// Letter `number` of `len` bytes; no two are alike, and no sector of one is like another of its sectors.
fn text(number: usize, len: usize) -> Vec<u8> {
    let mut text = format!("Subject: letter {number}\n\n").into_bytes();
    let end = text.len() + len;
    for line in 0.. {
        text.extend_from_slice(format!("line {line} of {number}\n").as_bytes());
        if text.len() >= end {
            break;
        }
    }
    text.truncate(end);
    text
}

fn body(text: &[u8]) -> Body {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text).unwrap();
    Body::new(file).unwrap()
}

const NAMES: [&str; 2] = ["first", "second"];

/// What was delivered where, in order; a snapshot's mark says how much of it had been said.
type Said = Vec<(usize, Vec<u8>)>;

/// Tells the story on `disk`, noting with `note` how many deliveries were said to be done.
fn tell<D: Disk + 'static>(disk: &Arc<D>, note: &dyn Fn(usize)) -> std::io::Result<(Said, Said)> {
    for name in NAMES {
        create_in(disk.as_ref(), Path::new(name))?;
    }
    let maildirs = [0, 1].map(|at| Maildir::on(Arc::new(Below(Arc::clone(disk), NAMES[at])), (0, at as u64)));
    let (mut said, mut tried) = (Said::new(), Said::new());
    for batch in BATCHES {
        let letters: Vec<(usize, Vec<u8>)> =
            batch.iter().enumerate().map(|(at, (maildir, len))| (*maildir, text(tried.len() + at, *len))).collect();
        let bodies: Vec<Body> = letters.iter().map(|(_, text)| body(text)).collect();
        let letter = |body| Letter { trace: TRACE, body };
        let deliveries: Vec<_> = letters
            .iter()
            .zip(&bodies)
            .map(|((at, _), body)| Delivery { maildir: &maildirs[*at], letter: letter(body) })
            .collect();
        let results = deliver_batch(b"host", &deliveries);
        let done = letters.iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(letter, _)| letter.clone());
        said.extend(done);
        tried.extend(letters);
        note(said.len());
    }
    Ok((said, tried))
}

fn content(disk: &dyn Disk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, Access::Read).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
    read_exact_at(file.as_ref(), &mut bytes, 0).unwrap();
    bytes
}

/// How often each text stands in each `new/`.
fn letters_in_new(disk: &dyn Disk) -> BTreeMap<(usize, Vec<u8>), usize> {
    let mut found = BTreeMap::new();
    for (at, maildir) in NAMES.iter().enumerate() {
        let new = Path::new(maildir).join("new");
        for name in disk.list(&new).unwrap_or_default() {
            let content = content(disk, &new.join(name));
            let text = content.strip_prefix(TRACE).map(<[u8]>::to_vec).unwrap_or_default();
            *found.entry((at, text)).or_default() += 1;
        }
    }
    found
}

/// What is wrong with the disk that the next start finds.
fn fault(disk: &dyn Disk, said: &[(usize, Vec<u8>)], tried: &Said) -> Option<&'static str> {
    let found = letters_in_new(disk);
    if said.iter().any(|letter| !found.contains_key(letter)) {
        return Some("a letter that was said to be delivered is lost");
    }
    if found.iter().any(|(letter, times)| *times != 1 || !tried.contains(letter)) {
        return Some("something is in new that is no whole letter, or there twice");
    }
    None
}

fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// Cuts the power in this state in all ways, or in many.
fn cut_in_all_ways(state: &Snapshot, cuts: &mut u64, mut wrong: impl FnMut(&dyn Disk) -> bool) -> bool {
    let pieces = state.pieces();
    if pieces <= PIECES_EXHAUSTIVE {
        return (0..1_u64 << pieces).any(|kept| {
            *cuts += 1;
            wrong(&state.cut(|piece| kept >> piece & 1 == 1))
        });
    }
    (0..SAMPLES).any(|sample| {
        *cuts += 1;
        let mut seed = sample;
        // From nearly all lost to nearly all kept.
        let share = sample % 16;
        wrong(&state.cut(|_| random(&mut seed) % 16 <= share))
    })
}

/// The first thing that goes wrong in a story with this sync left out, and how many power cuts it took.
fn first_fault(left_out: &'static str) -> (Option<&'static str>, u64) {
    let disk = PowerDisk::new();
    disk.drop_syncs(left_out);
    disk.start_recording();
    let at_rest = RefCell::new(Vec::new());
    let (said, tried) = tell(&Arc::new(disk.clone()), &|done| {
        disk.set_mark(done as u64);
        at_rest.borrow_mut().push(disk.snapshot());
    })
    .unwrap();
    let (mut cuts, mut found) = (0, None);
    for state in disk.take_snapshots().into_iter().chain(at_rest.into_inner()) {
        let said = &said[..usize::try_from(state.mark).unwrap()];
        cut_in_all_ways(&state, &mut cuts, |disk| {
            found = fault(disk, said, &tried);
            found.is_some()
        });
        if found.is_some() {
            break;
        }
    }
    (found, cuts)
}

#[test]
fn every_delivery_that_was_said_survives_every_power_cut() {
    let (fault, cuts) = first_fault("none");
    assert_eq!(fault, None);
    assert!(cuts > 20_000, "{cuts} power cuts");
}

#[test]
fn each_sync_is_needed() {
    let disk = Arc::new(PowerDisk::new());
    tell(&disk, &|_| {}).unwrap();
    let syncs = disk.syncs_seen();
    assert_eq!(syncs.iter().copied().collect::<Vec<_>>(), ["letter", "maildir", "maildir's new", "names in new"]);
    for sync in syncs {
        assert!(first_fault(sync).0.is_some(), "nobody would notice that {sync:?} is left out");
    }
}

#[test]
fn a_batch_shares_its_directory_syncs() {
    let plan = Plan::new(|call| call == Call::SyncDir);
    let disk = Arc::new(FaultDisk::new(Arc::new(PowerDisk::new()), Arc::clone(&plan)));
    tell(&disk, &|_| {}).unwrap();
    // Two for each Maildir; then one, two, two, one for the batches, of eight letters.
    assert_eq!(plan.calls(), 4 + 6);
}

#[test]
fn any_call_may_fail_and_then_exactly_the_letters_said_are_in_new() {
    for at in 0.. {
        // What takes back is not struck: nothing can be promised then.
        let plan = Plan::new(|call| call != Call::Unlink);
        let power = Arc::new(PowerDisk::new());
        let disk = Arc::new(FaultDisk::new(Arc::clone(&power) as Arc<dyn Disk>, Arc::clone(&plan)));
        plan.fail(at, 1, 5);
        let told = tell(&disk, &|_| {});
        if plan.calls() <= at {
            assert!(at > 30, "the story has {at} calls");
            return;
        }
        let Ok((said, tried)) = told else { continue };
        assert_ne!(said, tried, "call {at} failed unnoticed");
        let expected: BTreeMap<_, _> = said.into_iter().map(|letter| (letter, 1)).collect();
        assert!(letters_in_new(power.as_ref()) == expected, "call {at}");
        assert!(NAMES.iter().all(|name| power.list(&Path::new(name).join("tmp")).unwrap().is_empty()), "call {at}");
    }
}
