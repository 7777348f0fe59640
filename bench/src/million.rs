//! A million deferred messages over 100,000 domains: does the system start with them, hold them, and serve new mail beside them?
//!
//! One instance, whose queue is exchanged while it is stopped. Letters to local users are timed with the empty queue before, between
//! and after the rest, so that a machine that gets slower meanwhile is not taken for a slow queue.
//!
//! Deferred messages are *not due* (for hours), or *due*, all at once, in three worlds: a relay for everything that is dead (one site
//! found dead, a million messages put off), 100,000 domains each of whose name servers fails (a million attempts), and a relay that
//! takes everything (a million deliveries). In the latter two the machine works all the time, beside the new mail.

use crate::backlog::{self, Backlog};
use crate::figures::Figures;
use crate::group::{self, Group};
use crate::letters::{Correspondent, Times};
use crate::mailboxes::Mailboxes;
use crate::responder::Responder;
use crate::scenario::{MIB, Size};
use crate::server::{SINK, Server, wait_for_greeting};
use crate::stage::{Stage, USERS};
use crate::stats::percentile;
use crate::target::qmail::{self, Qmail};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MESSAGES: usize = 1_000_000;
const DOMAINS: usize = 100_000;
/// Letters in a block; several blocks make a case.
const LETTERS: usize = 1000;
/// A hundred a second: far from what the system can do.
const LETTER_EVERY: Duration = Duration::from_millis(10);
/// Each user's first letter starts a worker; these are not counted.
const LETTERS_BEFORE: usize = USERS * 2;
/// A system that has not answered by then does not.
const ANSWER_WAIT: Duration = Duration::from_secs(120);
/// Nothing listens there.
const DEAD: &str = ":127.0.0.1:1";
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
const QMAIL_SEND: &str = "qmail-send";

/// The figures of one case.
struct Names {
    accepted: [&'static str; 2],
    delivered: [&'static str; 2],
    /// As often as with the empty queue.
    times: [&'static str; 4],
}

macro_rules! names {
    ($case:literal) => {
        Names {
            accepted: [concat!($case, "_accepted_p50_ms"), concat!($case, "_accepted_p99_ms")],
            delivered: [concat!($case, "_delivered_p50_ms"), concat!($case, "_delivered_p99_ms")],
            times: [
                concat!($case, "_accepted_p50_times"),
                concat!($case, "_accepted_p99_times"),
                concat!($case, "_delivered_p50_times"),
                concat!($case, "_delivered_p99_times"),
            ],
        }
    };
}

const EMPTY: Names = names!("empty");
const NOT_DUE: Names = names!("not_due");
const DUE_DEAD: Names = names!("due_dead_relay");
const DUE_SITES: Names = names!("due_dead_sites");
const DUE_SINK: Names = names!("due_sink");

/// What is printed, in the order of the run.
pub(crate) const COLUMNS: &[&str] = &[
    "filled_per_s",
    "spool_mib",
    "not_due_cold_ready_s",
    "not_due_cold_first_letter_s",
    "not_due_killed_send_s",
    "not_due_killed_cold_ready_s",
    "not_due_killed_cold_first_letter_s",
    "due_cold_ready_s",
    "due_cold_first_letter_s",
    "due_killed_send_s",
    "due_killed_cold_ready_s",
    "due_killed_cold_first_letter_s",
    "rest_pss_mib",
    "rest_send_pss_mib",
    "peak_mib",
    "peak_send_mib",
    "lost",
    "empty_accepted_p50_ms",
    "empty_accepted_p99_ms",
    "empty_delivered_p50_ms",
    "empty_delivered_p99_ms",
    "not_due_accepted_p50_ms",
    "not_due_accepted_p99_ms",
    "not_due_delivered_p50_ms",
    "not_due_delivered_p99_ms",
    "due_dead_relay_delivered_p50_ms",
    "due_dead_relay_delivered_p99_ms",
    "due_dead_sites_delivered_p50_ms",
    "due_dead_sites_delivered_p99_ms",
    "due_sink_delivered_p50_ms",
    "due_sink_delivered_p99_ms",
    "due_sink_drained_per_s",
];

/// The whole run.
///
/// # Errors
/// The system does not start or loses a letter, the machine cannot drop its caches.
pub(crate) fn run(stage: &Stage, group: &Group, size: Size) -> Result<Figures> {
    let mut million = Million {
        stage,
        group,
        qmail: Qmail::default(),
        count: if size.quick { MESSAGES / 50 } else { MESSAGES },
        letters: size.of(LETTERS),
        aside: qmail::root(stage).join("var/spool/aside"),
        empty: Times::default(),
        figures: Figures::default(),
    };
    million.qmail.prepare(stage, group)?;
    let result = million.cases();
    million.qmail.stop(stage, group);
    result?;
    Ok(million.figures)
}

struct Million<'a> {
    stage: &'a Stage,
    group: &'a Group,
    qmail: Qmail,
    count: usize,
    /// In a block.
    letters: usize,
    /// Where the queue is while the empty one is measured.
    aside: PathBuf,
    /// Letters with the empty queue, all blocks.
    empty: Times,
    figures: Figures,
}

impl Million<'_> {
    fn cases(&mut self) -> Result<()> {
        qmail::set_control(self.stage, "smtproutes", DEAD)?;
        self.empty_block()?;
        let not_due = self.not_due()?;
        let (dead, sites, sink) = self.due()?;
        let empty = std::mem::take(&mut self.empty);
        for (names, times) in [(EMPTY, &empty), (NOT_DUE, &not_due), (DUE_DEAD, &dead), (DUE_SITES, &sites), (DUE_SINK, &sink)] {
            self.judge(&names, times, &empty);
        }
        Ok(())
    }

    fn not_due(&mut self) -> Result<Times> {
        self.fill(false)?;
        self.cold_start("not_due_cold_ready_s", "not_due_cold_first_letter_s")?;
        self.all_there()?;
        let mut times = self.block("not due")?;
        self.at_rest()?;
        self.kill_send("not_due_killed_send_s")?;
        self.kill_all();
        self.cold_start("not_due_killed_cold_ready_s", "not_due_killed_cold_first_letter_s")?;
        self.stop();
        self.empty_between()?;
        self.start()?;
        times.extend(&self.block("not due")?);
        self.all_there()?;
        self.stop();
        self.empty_between()?;
        Ok(times)
    }

    /// With the dead relay, the dead sites, the sink.
    fn due(&mut self) -> Result<(Times, Times, Times)> {
        self.fill(true)?;
        self.cold_start("due_cold_ready_s", "due_cold_first_letter_s")?;
        let mut dead = self.block("due, dead relay")?;
        self.kill_send("due_killed_send_s")?;
        self.kill_all();
        self.cold_start("due_killed_cold_ready_s", "due_killed_cold_first_letter_s")?;
        dead.extend(&self.block("due, dead relay")?);
        self.all_there()?;
        self.stop();
        self.empty_between()?;
        // No route: each domain's own hosts are looked for.
        qmail::set_control(self.stage, "smtproutes", "")?;
        let sites = self.all_due("due, dead sites")?;
        self.all_there()?;
        self.stop();
        self.empty_between()?;
        let sink = self.drain_to_sink()?;
        self.stop();
        self.empty_between()?;
        Ok((dead, sites, sink))
    }

    fn drain_to_sink(&mut self) -> Result<Times> {
        let sink = Responder::start(SINK, false)?;
        qmail::set_control(self.stage, "smtproutes", &format!(":{SINK}"))?;
        let begin = Instant::now();
        let times = self.all_due("due, sink")?;
        let drained = self.count.saturating_sub(self.queued()?);
        self.figures.set("due_sink_drained_per_s", drained as f64 / begin.elapsed().as_secs_f64());
        drop(sink);
        Ok(times)
    }

    /// Starts, makes everything due whatever its time says, and times letters at once.
    fn all_due(&mut self, name: &str) -> Result<Times> {
        self.start()?;
        self.qmail.retry_all(self.stage)?;
        let mut times = self.block(name)?;
        self.qmail.retry_all(self.stage)?;
        times.extend(&self.block(name)?);
        Ok(times)
    }

    fn judge(&mut self, names: &Names, times: &Times, empty: &Times) {
        let [a50, a99, d50, d99] = names.times;
        for (figure, ratio, q, values, base) in [
            (names.accepted[0], a50, 0.5, &times.accepted_ms, &empty.accepted_ms),
            (names.accepted[1], a99, 0.99, &times.accepted_ms, &empty.accepted_ms),
            (names.delivered[0], d50, 0.5, &times.delivered_ms, &empty.delivered_ms),
            (names.delivered[1], d99, 0.99, &times.delivered_ms, &empty.delivered_ms),
        ] {
            if let (Some(ms), Some(base_ms)) = (percentile(values, q), percentile(base, q)) {
                self.figures.set(figure, ms);
                self.figures.set(ratio, ms / base_ms);
            }
        }
    }

    // The queue.

    fn fill(&mut self, due: bool) -> Result<()> {
        let domains = DOMAINS.min(self.count / 10);
        let begin = Instant::now();
        backlog::fill(&qmail::spool(self.stage), Backlog { messages: self.count, domains, due })?;
        self.figures.set("filled_per_s", self.count as f64 / begin.elapsed().as_secs_f64());
        self.figures.set("spool_mib", bytes_below(&qmail::spool(self.stage))? as f64 / MIB);
        println!("    filled in {:.1} s", begin.elapsed().as_secs_f64());
        Ok(())
    }

    /// Lays the queue aside, times letters with an empty one, and brings it back. It does not run before and after.
    fn empty_between(&mut self) -> Result<()> {
        let spool = qmail::spool(self.stage);
        std::fs::rename(&spool, &self.aside)?;
        let owner = crate::mailboxes::make(&spool, &self.aside);
        let block = owner.and_then(|()| self.empty_block());
        std::fs::remove_dir_all(&spool)?;
        std::fs::rename(&self.aside, &spool)?;
        block
    }

    fn empty_block(&mut self) -> Result<()> {
        self.start()?;
        let times = self.block("empty")?;
        self.empty.extend(&times);
        self.stop();
        Ok(())
    }

    fn queued(&self) -> Result<usize> {
        self.qmail.queued(self.stage)
    }

    /// Every message that was put in is still there.
    fn all_there(&mut self) -> Result<()> {
        let lost = self.count.saturating_sub(self.queued()?);
        self.figures.set("lost", self.figures.get("lost").unwrap_or_default() + lost as f64);
        Ok(())
    }

    // The system.

    fn start(&mut self) -> Result<()> {
        self.qmail.start_with_queue(self.stage, self.group)?;
        wait_for_greeting(self.qmail.address())
    }

    fn stop(&mut self) {
        self.note_peak();
        self.qmail.stop(self.stage, self.group);
    }

    fn kill_all(&mut self) {
        self.note_peak();
        self.group.kill();
        self.qmail.stop(self.stage, self.group);
    }

    /// From the exec of `qmail start` to `ready`, and to a letter in its mailbox, with nothing in the page cache.
    fn cold_start(&mut self, ready: &'static str, first_letter: &'static str) -> Result<()> {
        let mailboxes = self.mailboxes()?;
        rustix::fs::sync();
        std::fs::write(DROP_CACHES, "3").context(DROP_CACHES)?;
        let begin = Instant::now();
        self.qmail.start_with_queue(self.stage, self.group)?;
        self.figures.set(ready, begin.elapsed().as_secs_f64());
        Correspondent::new(self.qmail.address(), &mailboxes)?.letters(1, Duration::ZERO)?;
        self.figures.set(first_letter, begin.elapsed().as_secs_f64());
        println!("    {ready}: {:.2}, letter {:.2}", self.figures.get(ready).unwrap_or_default(), begin.elapsed().as_secs_f64());
        Ok(())
    }

    /// From the death of qmail-send to the next one's word that it knows every message.
    fn kill_send(&mut self, figure: &'static str) -> Result<()> {
        self.note_peak();
        let pid = self.group.process(QMAIL_SEND).and_then(Pid::from_raw).context("no qmail-send runs")?;
        let begin = Instant::now();
        kill_process(pid, Signal::KILL)?;
        while self.queued().unwrap_or_default() < self.count {
            if begin.elapsed() > ANSWER_WAIT {
                bail!("qmail-send did not come back within {} s", ANSWER_WAIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.figures.set(figure, begin.elapsed().as_secs_f64());
        println!("    {figure}: {:.2}", begin.elapsed().as_secs_f64());
        Ok(())
    }

    fn mailboxes(&self) -> Result<Mailboxes> {
        let mailboxes = Mailboxes::below(&self.stage.homes(), USERS);
        mailboxes.renew()?;
        Ok(mailboxes)
    }

    /// Times letters; the first ones of each user do not count.
    fn block(&mut self, name: &str) -> Result<Times> {
        let mailboxes = self.mailboxes()?;
        let mut correspondent = Correspondent::new(self.qmail.address(), &mailboxes)?;
        correspondent.letters(LETTERS_BEFORE, Duration::ZERO)?;
        let times = correspondent.letters(self.letters, LETTER_EVERY)?;
        let show = |q| percentile(&times.delivered_ms, q).unwrap_or_default();
        println!("    {name}: {} letters, p50 {:.2} ms, p99 {:.2} ms", self.letters, show(0.5), show(0.99));
        Ok(times)
    }

    // Memory.

    fn at_rest(&mut self) -> Result<()> {
        let send = self.group.process(QMAIL_SEND).and_then(group::pss_bytes).context("no qmail-send runs")?;
        self.figures.set("rest_pss_mib", self.group.pss().total_bytes as f64 / MIB);
        self.figures.set("rest_send_pss_mib", send as f64 / MIB);
        Ok(())
    }

    /// The most that qmail-send had, and with it what all others have now.
    fn note_peak(&mut self) {
        let Some(pid) = self.group.process(QMAIL_SEND) else { return };
        let (Some(peak), Some(now)) = (group::peak_bytes(pid), group::pss_bytes(pid)) else { return };
        let all = self.group.pss().total_bytes.saturating_sub(now).saturating_add(peak);
        for (figure, bytes) in [("peak_send_mib", peak), ("peak_mib", all)] {
            let mib = (bytes as f64 / MIB).max(self.figures.get(figure).unwrap_or_default());
            self.figures.set(figure, mib);
        }
    }
}

fn bytes_below(dir: &Path) -> Result<u64> {
    let mut bytes = 0u64;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let more = if entry.file_type()?.is_dir() { bytes_below(&entry.path())? } else { entry.metadata()?.len() };
        bytes = bytes.saturating_add(more);
    }
    Ok(bytes)
}
