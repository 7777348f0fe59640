//! Every fuzz target over its committed corpus, then over mutations of it, for a number of seconds in all.
//!
//! `fuzz-smoke SECONDS [SEED]`. Prints the executions of each target; a target without any is a failure, and so is a panic, whose
//! input is printed.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use system_tests::targets::{TARGETS, Target};

/// Longest input that is made.
const INPUT_LEN_MAX: usize = 4096;
/// Pieces that formats are made of; they get a mutation further than random bytes do.
const PIECES: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b".",
    b"\r\n.\r\n",
    b"\0",
    b"\xff",
    b"@",
    b"<",
    b">",
    b"\"",
    b"(",
    b")",
    b":",
    b" ",
    b"-",
    b"DATA\r\n",
    b"MAIL FROM:<a@b>\r\n",
    b"RCPT TO:<c@d>\r\n",
    b"BDAT 3 LAST\r\n",
    b"RETR 1\r\n",
    b"Received: x\n",
    b"9999999999999999999",
    b"=?utf-8?q?",
];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().and_then(|s| s.parse().ok()).unwrap_or(10);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs());
    let seed = args.next().and_then(|s| s.parse().ok()).unwrap_or(now);
    let share = Duration::from_secs(seconds) / u32::try_from(TARGETS.len()).unwrap_or(1);
    println!("fuzz: {} targets, {seconds} s, seed {seed}", TARGETS.len());
    let failures = TARGETS.iter().filter(|(name, target)| !run(name, *target, share, seed)).count();
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(name: &str, target: Target, share: Duration, seed: u64) -> bool {
    let corpus = corpus(name);
    let mut random = Random(seed ^ wire::cdb::hash(name.as_bytes()) as u64 | 1);
    let until = Instant::now() + share;
    let mut executions = 0u64;
    let made = std::iter::repeat_with(|| mutate(&corpus, &mut random));
    for input in corpus.iter().cloned().chain(made) {
        if executions > corpus.len() as u64 && Instant::now() > until {
            break;
        }
        if catch_unwind(|| target(&input)).is_err() {
            println!("{name}: PANIC with the input \"{}\"", input.escape_ascii());
            return false;
        }
        executions += 1;
    }
    println!("{name}: {executions} executions ({} from the corpus)", corpus.len());
    !corpus.is_empty()
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.iter().filter_map(|file| std::fs::read(file).ok()).collect()
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or(0) % bound.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or(0)
    }
}

fn mutate(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = corpus.get(random.below(corpus.len())).cloned().unwrap_or_default();
    for _ in 0..=random.below(6) {
        let at = random.below(input.len() + 1);
        match random.below(6) {
            0 => input.insert(at, random.byte()),
            1 => input.truncate(at),
            2 if at < input.len() => input[at] = random.byte(),
            3 if at < input.len() => drop(input.remove(at)),
            4 => {
                let other = corpus.get(random.below(corpus.len())).cloned().unwrap_or_default();
                let from = random.below(other.len() + 1);
                input.splice(at..at, other[from..].iter().copied());
            }
            _ => {
                let piece = PIECES[random.below(PIECES.len())];
                input.splice(at..at, piece.iter().copied());
            }
        }
        input.truncate(INPUT_LEN_MAX);
    }
    input
}
