//! How many durable messages a second: `durable [DIR [SECONDS [SUBMITTERS [BYTES [ends]]]]]`.
//!
//! Submitters each wait until their message is durable before they give the next; with `ends` each message is also ended at once,
//! as a quick delivery does, so that segments are used again. Prints messages per second and the percentiles of the wait.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use spool::{Body, Completion, Envelope, Log, Options, Spool};
use wire::Address;

struct Run {
    spool: Spool,
    started: Vec<Instant>,
    waits_us: Vec<u64>,
    body: Vec<u8>,
    ends: bool,
}

impl Run {
    fn submit(&mut self, submitter: usize) {
        let address = |text: &[u8]| Address::new(text).unwrap_or_default();
        let envelope = Envelope {
            sender: address(b"sender@example.org"),
            recipients: vec![address(b"recipient@example.net")],
            arrival_s: sys::clock::unix_s(),
            uid: 0,
            pid: 0,
            flags: 0,
            options: Box::default(),
        };
        if let Some(started) = self.started.get_mut(submitter) {
            *started = Instant::now();
        }
        self.spool.accept(envelope, Body::Inline(self.body.clone()), submitter as u64);
    }

    /// Takes what is answered; returns how many messages became durable.
    fn round(&mut self, go_on: bool) -> usize {
        let _ = poll(&mut [PollFd::new(&self.spool.wake_fd(), PollFlags::IN)], None);
        let mut count = 0;
        self.spool.hold();
        for completion in self.spool.completions() {
            match completion {
                Completion::Accepted { ticket, id } => {
                    count += 1;
                    let submitter = usize::try_from(ticket).unwrap_or(0);
                    let waited = self.started.get(submitter).map(Instant::elapsed).unwrap_or_default();
                    self.waits_us.push(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
                    if self.ends {
                        self.spool.end(id, u64::MAX);
                    }
                    if go_on {
                        self.submit(submitter);
                    }
                }
                Completion::Written { .. } => {}
                other => eprintln!("{other:?}"),
            }
        }
        self.spool.flush();
        count
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let dir = arguments.first().map_or_else(|| std::env::temp_dir().join("spool-durable"), PathBuf::from);
    let _ = std::fs::create_dir_all(&dir);
    let (seconds, submitters, bytes) = (number(1, 5), number(2, 20), number(3, 4096));
    let opening = Instant::now();
    let opened = File::open(&dir).map_err(spool_error).and_then(|dir| Spool::open(dir.into(), Options::default()));
    let (spool, living) = match opened {
        Ok(opened) => opened,
        Err(error) => return eprintln!("{}: {error}", dir.display()),
    };
    println!("open: {} messages in {:?}", living.len(), opening.elapsed());
    let submitters = usize::try_from(submitters).unwrap_or(1);
    let body = vec![b'x'; usize::try_from(bytes).unwrap_or(0)];
    let ends = arguments.get(4).is_some_and(|word| word == "ends");
    let mut run = Run { spool, started: vec![Instant::now(); submitters], waits_us: Vec::new(), body, ends };
    // The stock of segments is made first: what is measured is the steady state.
    std::thread::sleep(Duration::from_secs(1));
    let (start, mut done) = (Instant::now(), 0);
    (0..submitters).for_each(|submitter| run.submit(submitter));
    while start.elapsed() < Duration::from_secs(seconds) {
        done += run.round(true);
    }
    let elapsed = start.elapsed();
    let mut left = submitters;
    while left > 0 {
        left = left.saturating_sub(run.round(false));
    }
    run.waits_us.sort_unstable();
    let percentile = |share: usize| run.waits_us.get(run.waits_us.len() * share / 1000).copied().unwrap_or(0);
    println!(
        "{:.0} messages/s, p50 {} µs, p99 {} µs, p99.9 {} µs",
        done as f64 / elapsed.as_secs_f64(),
        percentile(500),
        percentile(990),
        percentile(999)
    );
    println!("{:?}", run.spool.stats());
}

fn spool_error(error: std::io::Error) -> spool::SpoolError {
    spool::SpoolError::Io { doing: "open the directory", error }
}
