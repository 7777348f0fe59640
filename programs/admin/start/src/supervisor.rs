//! The loop of qmail-start: start all, print `ready`, restart what ends, reload on SIGHUP, stop in order on SIGTERM.

use crate::child::{Backoff, Running};
use crate::journal::{self, Journal};
use crate::log::Log;
use crate::plan::{self, Planned};
use crate::reach;
use crate::sockets::{Bound, Listening, RunDir, bind};
use crate::systemd;
use control::{Listener, Root};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use sandbox::{Place, Process};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;
use sys::signal::Signals;
use sys::spawn::Ended;

/// A process that was told to drain (5 s) and has not ended by then is killed.
const DRAIN_DEADLINE: Duration = Duration::from_secs(7);
/// So long a replaced generation may go on with what it had under way: longer than SMTP sessions and deliveries of even large letters
/// take (RFC 5321 §4.5.3.2 has single replies take ten minutes). Then it drains.
const RETIRED_FOR: Duration = Duration::from_secs(60 * 60);
/// Replaced generations that go on; with one more, the oldest drains. Each has its own bounds on sessions and memory.
const RETIRED_MAX: usize = 4;
/// All processes are ready within this time, or the start has failed.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Longest sleep of the loop.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How long the last log lines may take to be read.
const LOG_DEADLINE: Duration = Duration::from_secs(1);
/// Processes that reread their files themselves on SIGHUP; the others, which can open none, are replaced.
const REREAD: [&str; 4] = ["qmail-send", "qmail-auth", "qmail-lspawn", "qmail-getpw"];

/// Runs the system until SIGTERM or SIGINT.
///
/// # Errors
/// A text for people: the system could not be started.
pub fn run(root: &Root) -> Result<(), String> {
    // First of all: a number that systemd does not really hand over must not be one that was opened here.
    let held = systemd::Held::take(root)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let signals = Signals::new(&[Signal::TERM, Signal::INT, Signal::HUP]).map_err(|e| e.to_string())?;
    let mut planned = plan::read(root)?;
    check_directories(root, &planned)?;
    let run = RunDir::create(root, &root.ids().map_err(|e| e.to_string())?, held.inject)?;
    let Listening { bound, warnings } = bind(&listeners(&planned), &held.listeners)?;
    keep_bound(&mut planned, &bound);
    let format = journal::format(root).map_err(|e| e.to_string())?;
    let log = Log::start(std::io::stderr(), Journal::of(root), format).map_err(|e| e.to_string())?;
    for warning in run.warning.iter().chain(&warnings) {
        log.say(&format!("warning: {warning}"));
    }
    for unused in held.listeners.iter().filter(|held| !bound.iter().any(|bound| bound.address == held.address)) {
        log.say(&format!("warning: systemd listens on {}, which control/listen does not name: it is not served", unused.address));
    }
    let mut supervisor = Supervisor {
        root,
        run,
        bound,
        log,
        slots: slots(planned),
        leaving: Vec::new(),
        generation: 0,
        candidate: None,
        restarts: BTreeMap::new(),
        stirred: Vec::new(),
    };
    let result = supervisor.start(&signals).and_then(|stopped| if stopped { Ok(()) } else { supervisor.keep_running(&signals) });
    systemd::notify("STOPPING=1");
    supervisor.stop();
    supervisor.log.flush(LOG_DEADLINE);
    result
}

/// One place of the plan that is to be filled by a running process.
struct Slot {
    planned: Planned,
    /// Which of its workers, from 0.
    number: usize,
    running: Option<Running>,
    backoff: Backoff,
    start_at: Duration,
}

/// A generation of workers that is being tried out.
struct Candidate {
    slots: Vec<Slot>,
    bound: Vec<Bound>,
    until: Duration,
}

/// A process that was told to end.
struct Leaving {
    process: &'static Process,
    running: Running,
    step: Step,
}

/// What comes next for a process that does not end by itself.
#[derive(Clone, Copy)]
enum Step {
    /// It is retired, with this generation, and drains at that time.
    Drain {
        generation: u64,
        at: Duration,
    },
    Kill {
        at: Duration,
    },
}

struct Supervisor<'a> {
    root: &'a Root,
    run: RunDir,
    bound: Vec<Bound>,
    log: Log,
    slots: Vec<Slot>,
    leaving: Vec<Leaving>,
    /// Counts the generations that were replaced.
    generation: u64,
    candidate: Option<Candidate>,
    restarts: BTreeMap<&'static str, u64>,
    /// Descriptors that the last poll(2) found ready: with a dozen processes, reading all of them for each line would cost more than
    /// the lines. A number that is another descriptor's by now costs one read in vain.
    stirred: Vec<RawFd>,
}

impl Supervisor<'_> {
    /// Starts everything and prints `ready`. True if a signal to stop came before that.
    fn start(&mut self, signals: &Signals) -> Result<bool, String> {
        let until = sys::clock::boottime().saturating_add(READY_DEADLINE);
        self.start_due()?;
        while !self.slots.iter().all(Slot::is_ready) {
            if sys::clock::boottime() >= until {
                let late: Vec<&str> = self.slots.iter().filter(|slot| !slot.is_ready()).map(Slot::name).collect();
                return Err(format!("not ready after {} s: {}", READY_DEADLINE.as_secs(), late.join(", ")));
            }
            self.wait(signals);
            while let Some(signal) = signals.next() {
                if signal != Signal::HUP {
                    return Ok(true);
                }
            }
            if let Some((name, ended)) = self.look_at_slots().first() {
                return Err(format!("{name} {} before it was ready; its own words stand above", how(*ended)));
            }
        }
        // Nobody may be reading: that is no reason not to run.
        let _ = writeln!(std::io::stdout(), "ready").and_then(|()| std::io::stdout().flush());
        systemd::notify("READY=1");
        Ok(false)
    }

    fn keep_running(&mut self, signals: &Signals) -> Result<(), String> {
        loop {
            self.wait(signals);
            while let Some(signal) = signals.next() {
                if signal != Signal::HUP {
                    return Ok(());
                }
                self.reload();
            }
            let now = sys::clock::boottime();
            for (name, ended) in self.look_at_slots() {
                self.log.say(&format!("alert: {name} {}; it is started again", how(ended)));
                *self.restarts.entry(name).or_default() += 1;
                self.write_restarts();
            }
            self.look_at_leaving(now);
            self.look_at_candidate(now);
            if let Err(problem) = self.start_due() {
                self.log.say(&format!("alert: {problem}"));
            }
        }
    }

    /// Starts every slot whose time has come. The first failure is told; the slot tries again later.
    fn start_due(&mut self) -> Result<(), String> {
        let now = sys::clock::boottime();
        let mut result = Ok(());
        for slot in self.slots.iter_mut().filter(|slot| slot.running.is_none() && slot.start_at <= now) {
            if let Err(problem) = slot.start(self.root, &self.run, &self.bound, now) {
                slot.start_at = slot.backoff.next(now, now);
                result = result.and(Err(problem));
            }
        }
        result
    }

    /// Which slots' processes have ended, and how; they are due again after their pause.
    fn look_at_slots(&mut self) -> Vec<(&'static str, Ended)> {
        let now = sys::clock::boottime();
        let (log, stirred) = (&self.log, &self.stirred);
        self.slots.iter_mut().filter_map(|slot| slot.look(log, stirred, now)).collect()
    }

    fn look_at_leaving(&mut self, now: Duration) {
        let (log, stirred) = (&self.log, &self.stirred);
        self.leaving.retain_mut(|old| {
            if old.step.at() <= now {
                old.next_step(now);
            }
            old.running.look(log, stirred).is_none()
        });
    }

    /// SIGHUP: those who can reread do, for the others a new generation is tried.
    fn reload(&mut self) {
        match journal::format(self.root) {
            Ok(format) => self.log.set_format(format),
            Err(problem) => self.log.say(&format!("alert: the new log format is not used: {problem}")),
        }
        for slot in self.slots.iter().filter(|slot| REREAD.contains(&slot.name())) {
            if let Some(running) = slot.running.as_ref().filter(|running| running.is_ready()) {
                running.signal(Signal::HUP);
            }
        }
        if self.candidate.is_some() {
            self.log.say("warning: SIGHUP while an earlier one is being carried out: send it again when that is done");
            return;
        }
        if let Err(problem) = self.try_generation() {
            self.log.say(&format!("alert: the new configuration is not used: {problem}"));
        }
    }

    fn try_generation(&mut self) -> Result<(), String> {
        let mut planned: Vec<Planned> =
            plan::read(self.root)?.into_iter().filter(|p| !REREAD.contains(&p.process.name)).collect();
        let Listening { bound, warnings } = bind(&listeners(&planned), &self.bound)?;
        keep_bound(&mut planned, &bound);
        for warning in warnings {
            self.log.say(&format!("warning: {warning}"));
        }
        let now = sys::clock::boottime();
        let mut slots = slots(planned);
        let started = slots.iter_mut().try_for_each(|slot| slot.start(self.root, &self.run, &bound, now));
        if let Err(problem) = started {
            self.drain(slots, now);
            return Err(problem);
        }
        self.candidate = Some(Candidate { slots, bound, until: now.saturating_add(READY_DEADLINE) });
        Ok(())
    }

    /// Puts the candidate in place of the old generation when all of it is ready, or gives it up when one of it ends.
    fn look_at_candidate(&mut self, now: Duration) {
        let Some(mut candidate) = self.candidate.take() else { return };
        let (log, stirred) = (&self.log, &self.stirred);
        let ended = candidate.slots.iter_mut().find_map(|slot| slot.look(log, stirred, now));
        if let Some((name, ended)) = ended {
            self.log.say(&format!("alert: the new configuration is not used: {name} {}", how(ended)));
            self.drain(candidate.slots, now);
        } else if candidate.slots.iter().all(Slot::is_ready) {
            let (kept, old) = std::mem::take(&mut self.slots).into_iter().partition(|slot| REREAD.contains(&slot.name()));
            self.slots = kept;
            self.retire(old, now);
            self.slots.extend(candidate.slots);
            self.bound = candidate.bound;
            self.log.say("the new configuration is in use");
        } else if candidate.until <= now {
            self.log.say("alert: the new configuration is not used: a process of it does not get ready");
            self.drain(candidate.slots, now);
        } else {
            self.candidate = Some(candidate);
        }
    }

    /// Those who are replaced go on with what they have, within bounds.
    fn retire(&mut self, slots: Vec<Slot>, now: Duration) {
        self.generation = self.generation.saturating_add(1);
        let step = Step::Drain { generation: self.generation, at: now.saturating_add(RETIRED_FOR) };
        for Slot { planned, running, .. } in slots {
            if let Some(running) = running {
                running.retire();
                self.leaving.push(Leaving { process: planned.process, running, step });
            }
        }
        let generations: BTreeSet<u64> = self.leaving.iter().filter_map(|old| old.step.generation()).collect();
        if let Some(newest) = generations.into_iter().rev().nth(RETIRED_MAX) {
            self.drain_retired(newest, now);
        }
    }

    /// The retired generations up to `newest` drain.
    fn drain_retired(&mut self, newest: u64, now: Duration) {
        let retired = |old: &&mut Leaving| old.step.generation().is_some_and(|generation| generation <= newest);
        self.leaving.iter_mut().filter(retired).for_each(|old| old.drain(now));
    }

    fn drain(&mut self, slots: Vec<Slot>, now: Duration) {
        for Slot { planned, running, .. } in slots {
            if let Some(running) = running {
                let mut old = Leaving { process: planned.process, running, step: Step::Kill { at: now } };
                old.drain(now);
                self.leaving.push(old);
            }
        }
    }

    /// Ends everything: a process drains when nobody is left who calls it, so that nobody loses a server it still needs.
    fn stop(&mut self) {
        let now = sys::clock::boottime();
        if let Some(candidate) = self.candidate.take() {
            self.drain(candidate.slots, now);
        }
        self.drain_retired(u64::MAX, now);
        loop {
            let now = sys::clock::boottime();
            let _ = self.look_at_slots();
            self.look_at_leaving(now);
            self.slots.retain(|slot| slot.running.is_some());
            let alive: Vec<&'static Process> =
                self.slots.iter().map(|slot| slot.planned.process).chain(self.leaving.iter().map(|old| old.process)).collect();
            let has_callers =
                |slot: &Slot| alive.iter().any(|other| other.calls.iter().any(|s| slot.planned.process.serves.contains(s)));
            let (served, free) = std::mem::take(&mut self.slots).into_iter().partition(has_callers);
            self.slots = served;
            self.drain(free, now);
            if self.slots.is_empty() && self.leaving.is_empty() {
                return;
            }
            self.wait_for(&[]);
        }
    }

    /// The number of restarts of each process, for `qmail queue stats`: `NAME COUNT` lines below run/qmail.
    fn write_restarts(&self) {
        let text: String = self.restarts.iter().map(|(name, count)| format!("{name} {count}\n")).collect();
        if let Err(e) = std::fs::write(self.root.run().join("restarts"), text) {
            self.log.say(&format!("warning: run/qmail/restarts: {e}"));
        }
    }

    fn wait(&mut self, signals: &Signals) {
        self.wait_for(&[PollFd::new(signals, PollFlags::IN)]);
    }

    /// Sleeps until a process has something to say, one of `fds` is readable, or the next moment at which something is due.
    fn wait_for(&mut self, fds: &[PollFd<'_>]) {
        let mut fds = fds.to_vec();
        let candidates = self.candidate.iter().flat_map(|candidate| &candidate.slots);
        let slots = self.slots.iter().chain(candidates);
        let running = slots.clone().filter_map(|slot| slot.running.as_ref()).chain(self.leaving.iter().map(|old| &old.running));
        for running in running {
            running.poll_fds(&mut fds);
        }
        let starts = slots.filter(|slot| slot.running.is_none()).map(|slot| slot.start_at);
        let steps = self.leaving.iter().map(|old| old.step.at());
        let until = starts.chain(steps).chain(self.candidate.iter().map(|c| c.until)).min();
        let now = sys::clock::boottime();
        // Never longer than this, so that a moment which is in no list cannot be missed for good.
        let pause = until.map_or(LOOK_AGAIN, |until| until.saturating_sub(now)).min(LOOK_AGAIN);
        let pause = Timespec { tv_sec: pause.as_secs().try_into().unwrap_or(1), tv_nsec: pause.subsec_nanos().into() };
        let _ = poll(&mut fds, Some(&pause));
        let stirred = fds.iter().filter(|fd| !fd.revents().is_empty()).map(|fd| fd.as_fd().as_raw_fd()).collect();
        self.stirred = stirred;
    }
}

impl Step {
    fn at(self) -> Duration {
        match self {
            Self::Drain { at, .. } | Self::Kill { at } => at,
        }
    }

    /// Of a retired process.
    fn generation(self) -> Option<u64> {
        match self {
            Self::Drain { generation, .. } => Some(generation),
            Self::Kill { .. } => None,
        }
    }
}

impl Leaving {
    fn drain(&mut self, now: Duration) {
        self.running.drain();
        self.step = Step::Kill { at: now.saturating_add(DRAIN_DEADLINE) };
    }

    fn next_step(&mut self, now: Duration) {
        match self.step {
            Step::Drain { .. } => self.drain(now),
            Step::Kill { .. } => self.running.signal(Signal::KILL),
        }
    }
}

impl Slot {
    fn name(&self) -> &'static str {
        self.planned.process.name
    }

    fn is_ready(&self) -> bool {
        self.running.as_ref().is_some_and(Running::is_ready)
    }

    fn start(&mut self, root: &Root, run: &RunDir, bound: &[Bound], now: Duration) -> Result<(), String> {
        let running = Running::start(&self.planned, self.number, root.path(), run, bound, now);
        self.running = Some(running.map_err(|e| format!("{} cannot be started: {e}", self.planned.program.display()))?);
        Ok(())
    }

    fn look(&mut self, log: &Log, stirred: &[RawFd], now: Duration) -> Option<(&'static str, Ended)> {
        let running = self.running.as_mut()?;
        let ended = running.look(log, stirred)?;
        self.start_at = self.backoff.next(running.since(), now);
        self.running = None;
        Some((self.name(), ended))
    }
}

/// Every role can enter the directories that its row of the table names.
fn check_directories(root: &Root, planned: &[Planned]) -> Result<(), String> {
    for Planned { process, ids, .. } in planned {
        let places = process.confinement.as_ref().and_then(|c| c.files).unwrap_or_default();
        for (place, _) in places {
            let path = match place {
                Place::Control => root.control(),
                Place::Users => root.users(),
                Place::Spool => root.spool(),
                Place::Lib => root.lib(),
                Place::Tls => root.tls(),
                Place::NameService => continue,
            };
            if matches!(place, Place::Spool | Place::Lib) {
                reach::is_owner(&path, *ids).map_err(|problem| format!("{}: {problem}", process.name))?;
            }
            reach::check(&path, *ids).map_err(|problem| format!("{}: {problem}", process.name))?;
        }
    }
    Ok(())
}

fn slots(planned: Vec<Planned>) -> Vec<Slot> {
    let workers = planned.into_iter().flat_map(|planned| std::iter::repeat_n(planned.clone(), planned.workers).zip(0..));
    workers
        .map(|(planned, number)| Slot { planned, number, running: None, backoff: Backoff::default(), start_at: Duration::ZERO })
        .collect()
}

fn listeners(planned: &[Planned]) -> Vec<Listener> {
    planned.iter().flat_map(|planned| planned.listeners.iter().map(|(_, listener)| listener.clone())).collect()
}

/// Takes out the listeners that could not be had, and with them who would have none.
fn keep_bound(planned: &mut Vec<Planned>, bound: &[Bound]) {
    for row in &mut *planned {
        row.listeners.retain(|(_, listener)| bound.iter().any(|bound| bound.address == listener.address));
    }
    planned.retain(|row| row.process.listens.is_empty() || !row.listeners.is_empty());
}

fn how(ended: Ended) -> String {
    match ended {
        Ended::Code(code) => format!("exited {code}"),
        Ended::Signal(signal) => format!("was ended by signal {signal}"),
        Ended::Unknown => "ended".to_owned(),
    }
}
