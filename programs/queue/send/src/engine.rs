//! The heart of qmail-send: every message from acceptance to its end, as one machine over a spool, without any other I/O.
//!
//! Events go in (a submission, a completion of the spool, a result of a delivery, an answer, a command), [`Out`]s and log lines
//! come out, and [`Engine::turn`] starts what can be started. Guarantees, whatever comes in:
//! - "accepted" is said only after the spool's word that the message is durable;
//! - a slot is free again only after its result is written;
//! - a recipient is with at most one job at a time, and its final state is written once;
//! - memory is bounded: [`ACTIVE_MAX`] messages a lane, [`RECIPIENTS_ACTIVE_MAX`] recipients, bodies only while their jobs run.

mod accept;
mod activate;
mod admin;
mod delivery;
mod import;
mod outcome;
mod settle;
mod taps;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipc::job;
use message::bounce::Notice;
use schedule::{Backlog, Channel, Fair, Lane, Pace, SiteLimit};
use spool::{Completion, Envelope, Health, Living, Log as Spool, MessageId, ReadFailure};
use wire::{Address, Domain};

use crate::active::{Active, KeptBody};
use crate::bounce::Order;
use crate::directory::{Routes, Site, Sites};
use crate::log::{Log, Status};
use crate::settings::Settings;

pub(crate) use import::import_refused;

/// Messages that are being tried at a time, of each lane.
pub const ACTIVE_MAX: usize = 10_000;
/// Recipients of all of them, before another message is taken up.
pub const RECIPIENTS_ACTIVE_MAX: usize = 400_000;
/// Envelopes being read at a time.
const READS_MAX: usize = 64;

/// Names the mailbox of a message with one local recipient, so that mail for the same one can go together: a hash of the address,
/// which says nothing about where the mail goes.
type Mailbox = Option<u64>;

/// Where a remote recipient goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    To(job::Route),
    /// Nowhere at all, with the text that says so.
    Nowhere(&'static str),
}

impl Route {
    /// What the administrator allows the hosts that mail goes to by this route; a domain's hosts have its limit.
    fn limit(&self, settings: &Settings) -> SiteLimit {
        match self {
            Self::To(job::Route::Mx { domain }) => settings.site_limit(domain.as_bytes()),
            Self::To(job::Route::Relay { host, .. } | job::Route::Lmtp { host, .. } | job::Route::Qmtp { host, .. }) => {
                settings.site_limit(host)
            }
            Self::To(job::Route::LmtpSocket { path }) => settings.site_limit(path),
            Self::Nowhere(_) => SiteLimit::NONE,
        }
    }
}

impl std::hash::Hash for Route {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        match self {
            Self::To(job::Route::Mx { domain }) => domain.hash(state),
            Self::To(
                job::Route::Relay { host, port, .. } | job::Route::Lmtp { host, port } | job::Route::Qmtp { host, port },
            ) => (host, port).hash(state),
            Self::To(job::Route::LmtpSocket { path }) => path.hash(state),
            Self::Nowhere(text) => text.hash(state),
        }
    }
}

/// What is to be done outside.
#[derive(Debug)]
pub enum Out {
    /// Answer a submission.
    Reply { client: u64, answer: ipc::queue::Answer },
    /// Answer the administrator.
    Admin { client: u64, answer: ipc::admin::QueueAnswer },
    /// Hand a body to the administrator.
    AdminBody { client: u64, bytes: u64, body: OwnedFd },
    /// Send a job with its body, now or on the next connection; [`Engine::sent`] hears which.
    Job { channel: Channel, number: u64, datagram: Vec<u8>, body: Arc<OwnedFd> },
    /// Ask qmail-auth.
    Route { id: u64, address: Address },
    /// Ask qmail-resolve.
    Site { id: u64, domain: Domain },
    /// Write a bounce.
    Bounce(Box<Order>),
    /// This side file may take more.
    Drained { side: u64 },
    /// A message that was being accepted is done with its share of the budget.
    GiveBack { bytes: usize },
}

/// Who this process is, for trace lines and log.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    pub uid: u32,
    pub pid: u32,
}

/// The time, once a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// UNIX seconds.
    pub s: u64,
    /// Since boot.
    pub boot: Duration,
}

/// What a ticket of the spool stands for.
#[derive(Debug)]
enum Ticket {
    Accept {
        client: u64,
        envelope: Envelope,
        message_id: Option<Box<[u8]>>,
        bytes: u64,
        held: usize,
        kept: Option<KeptBody>,
    },
    /// A message of another queue.
    Import {
        client: u64,
        envelope: Envelope,
        message_id: Option<Box<[u8]>>,
        bytes: u64,
        held: usize,
    },
    /// It is read to be confirmed, and then how far it had come is noted.
    Confirm {
        client: u64,
        id: u64,
    },
    Confirmed {
        client: u64,
        id: u64,
        due_s: u64,
    },
    /// The administrator wants a body.
    Fetch {
        client: u64,
    },
    Bounce {
        of: u64,
        envelope: Envelope,
        bytes: u64,
    },
    /// A report that is no bounce.
    Notice {
        of: u64,
        about: Notice,
        envelope: Envelope,
        bytes: u64,
    },
    /// A result; `last`: the job is over with it. `ends`: it was the message's end, too.
    Result {
        number: u64,
        last: bool,
        ends: bool,
    },
    End {
        id: u64,
    },
    Read {
        lane: Lane,
        hurried: bool,
    },
    Body,
    /// A hold or release is on the disk.
    Note {
        client: u64,
        id: u64,
        /// Was it held before?
        was: bool,
    },
    /// The administrator looks at a message.
    Look {
        client: u64,
        id: u64,
    },
}

/// See the module.
pub struct Engine<S> {
    pub log: Log,
    /// What is to be done outside, in order.
    pub out: Vec<Out>,
    spool: S,
    settings: Settings,
    identity: Identity,
    now: Now,
    backlog: Backlog,
    active: HashMap<u64, Active>,
    active_of: [usize; 2],
    recipients_active: usize,
    /// Bytes of the bodies kept in memory.
    kept: Rc<Cell<usize>>,
    local: Fair<(), Mailbox>,
    remote: Fair<Site, Rc<Route>>,
    /// How fast retries are read, and how fast they are started.
    reading: Pace,
    starting: Pace,
    /// When active messages are to be delivered by, of those for which that makes a difference.
    deadlines: BTreeSet<(u64, u64)>,
    /// Messages that wait for a site (or local delivery: the empty one) which has more than enough to do.
    parked: HashMap<Site, VecDeque<(u64, Lane)>>,
    jobs: HashMap<u64, delivery::Job>,
    tickets: HashMap<u64, Ticket>,
    next_ticket: u64,
    next_delivery: u64,
    routes: Routes,
    sites: Sites,
    /// Is the connection to qmail-lspawn, qmail-remote there?
    up: [bool; 2],
    reads: usize,
    accepting: usize,
    stopping: bool,
    looks: HashMap<u64, admin::Look>,
    /// Who waits for the removal of a message.
    removals: HashMap<u64, Vec<u64>>,
    /// Messages of another queue that are being confirmed.
    confirming: HashMap<u64, import::Confirming>,
    /// That messages wait for the rest of their import was said.
    told_of_import: bool,
    counters: Counters,
}

/// Since the start.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    successes: u64,
    failures: u64,
    deferrals: u64,
    bounces: u64,
}

fn at(channel: Channel) -> usize {
    usize::from(channel == Channel::Remote)
}

fn lane_at(lane: Lane) -> usize {
    usize::from(lane == Lane::Retry)
}

impl<S: Spool> Engine<S> {
    /// Takes over a spool with what is in it.
    pub fn new(spool: S, living: Vec<Living>, settings: Settings, identity: Identity, now: Now) -> Self {
        let mut backlog = Backlog::default();
        for message in living {
            let due_s = schedule::retry::clamp_s(message.arrival_s, now.s, message.due_s);
            backlog.insert_rest(message.id.0, message.arrival_s, due_s, message.held);
            backlog.set_pending(message.id.0, message.pending);
        }
        let limits = settings.limits();
        let processors = std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
        let pace = Pace::new(schedule::pace::RETRIES_PER_S.saturating_mul(processors));
        let mut engine = Self {
            log: Log::default(),
            out: Vec::new(),
            spool,
            settings,
            identity,
            now,
            backlog,
            active: HashMap::new(),
            active_of: [0; 2],
            recipients_active: 0,
            kept: Rc::default(),
            local: Fair::new(limits.local, false),
            remote: Fair::new(limits.remote, true),
            reading: pace.clone(),
            starting: pace,
            deadlines: BTreeSet::new(),
            parked: HashMap::new(),
            jobs: HashMap::new(),
            tickets: HashMap::new(),
            next_ticket: 1,
            next_delivery: 1,
            routes: Routes::default(),
            sites: Sites::default(),
            up: [false; 2],
            reads: 0,
            accepting: 0,
            stopping: false,
            looks: HashMap::new(),
            removals: HashMap::new(),
            confirming: HashMap::new(),
            told_of_import: false,
            counters: Counters::default(),
        };
        engine.remote.set_now(now.boot);
        engine.log_status();
        engine
    }

    /// The time has passed. A clock that was set back makes all waiting mail due, never later.
    pub fn set_now(&mut self, now: Now) {
        /// Steps smaller than that are the clock being disciplined.
        const STEP_S: u64 = 60;
        if now.s.saturating_add(STEP_S) < self.now.s {
            self.log.warning("the clock was set back; all waiting mail is tried now");
            self.backlog.hurry_all();
        }
        self.now = now;
        self.remote.set_now(now.boot);
    }

    /// Takes in what the spool has to say.
    pub fn completions(&mut self) {
        for completion in self.spool.completions() {
            self.completion(completion);
        }
    }

    fn completion(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted { ticket, id } => self.accepted(ticket, id.0),
            Completion::Refused { ticket, why } => self.refused(ticket, why),
            Completion::Written { ticket } => self.written(ticket, true),
            Completion::Unwritten { ticket } => self.written(ticket, false),
            Completion::Envelope { ticket, id, envelope, states, bytes, held } => {
                self.envelope_read(ticket, id.0, activate::Read { envelope, states, bytes, held });
            }
            Completion::BodyFd { ticket, id, fd, bytes } => match self.tickets.remove(&ticket) {
                Some(Ticket::Fetch { client }) => self.out.push(Out::AdminBody { client, bytes, body: fd }),
                _ => self.body_open(id.0, fd),
            },
            Completion::ReadFailed { ticket, id, why } => self.read_failed(ticket, id.0, why),
            Completion::SideDrained { side } => self.out.push(Out::Drained { side }),
            Completion::Alert(text) => self.log.alert(&text),
        }
    }

    fn written(&mut self, ticket: u64, written: bool) {
        let Some(ticket) = self.tickets.remove(&ticket) else { return };
        if !written {
            self.log.alert("a result could not be written to the spool; its delivery may be repeated");
        }
        match ticket {
            Ticket::Result { number, last, ends } => self.result_written(number, last, ends && written),
            Ticket::End { id } if written => self.ended(id),
            Ticket::End { id } => self.not_removed(id),
            Ticket::Confirmed { client, id, due_s } if written => self.confirmed(client, id, due_s),
            Ticket::Confirmed { client, id, .. } => self.confirm_failed(client, id),
            Ticket::Note { client, .. } if written => self.out.push(Out::Admin { client, answer: admin::ok(1) }),
            Ticket::Note { client, id, was } => self.note_failed(client, id, was),
            _ => {}
        }
    }

    fn read_failed(&mut self, ticket: u64, id: u64, why: ReadFailure) {
        match self.tickets.remove(&ticket) {
            Some(Ticket::Read { .. }) => self.unreadable(id, why),
            Some(Ticket::Body) => self.body_failed(id, why),
            Some(Ticket::Look { client, id }) => self.look_failed(client, id, why),
            Some(Ticket::Confirm { client, id }) => self.confirm_failed(client, id),
            Some(Ticket::Fetch { client }) => {
                self.out.push(Out::Admin { client, answer: admin::failed("the message cannot be read") });
            }
            _ => {}
        }
    }

    /// Looks at the files that count at once; to be called when something has happened, before [`Engine::turn`].
    pub fn look_at_files(&mut self) {
        if self.settings.refresh(&mut self.log) {
            self.routes.forget();
        }
        if self.settings.has_new_site_limits() {
            let settings = &self.settings;
            self.remote.set_site_limits(|route| route.limit(settings));
        }
    }

    /// Starts what can be started now.
    pub fn turn(&mut self) {
        if self.stopping || self.spool.health() == Health::Stopped {
            return;
        }
        self.refill();
        self.pass_deadlines();
        self.start_deliveries();
    }

    fn ticket(&mut self, ticket: Ticket) -> u64 {
        let number = self.next_ticket;
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.tickets.insert(number, ticket);
        number
    }

    /// No deliveries are started from now on, no message is taken up.
    pub fn stop(&mut self) {
        if !self.stopping {
            self.stopping = true;
            self.log_status();
        }
    }

    /// Nothing runs that a stop should wait for.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.jobs.is_empty() && self.accepting == 0
    }

    /// SIGALRM.
    pub fn retry_all(&mut self) -> usize {
        self.remote.revive();
        self.backlog.hurry_all()
    }

    /// SIGHUP.
    pub fn reread(&mut self) {
        self.settings.reread(&mut self.log);
        let limits = self.settings.limits();
        self.local.set_limit(limits.local);
        self.remote.set_limit(limits.remote);
        self.routes.forget();
    }

    /// When [`Engine::turn`] is to be called again at the latest, if nothing happens before; `None`: no time matters.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        if self.stopping || self.spool.health() == Health::Stopped {
            return None;
        }
        let room = self.reads < READS_MAX && self.has_room(Lane::Retry);
        let due = self.backlog.next_due_s().filter(|_| room).map(|due_s| Duration::from_secs(due_s.saturating_sub(self.now.s)));
        let due = due.map(|due| due.max(self.reading.wait(self.now.boot)));
        let held_back = Some(self.starting.wait(self.now.boot)).filter(|wait| !wait.is_zero() && self.has_retry());
        let asked = self.routes.is_waiting().then_some(Duration::from_secs(1));
        let late = self.deadlines.first().map(|(at_s, _)| Duration::from_secs(at_s.saturating_sub(self.now.s)));
        let paced = self.remote.next_start().filter(|_| self.remote.in_flight() < self.remote.limit());
        let paced = paced.map(|at| at.saturating_sub(self.now.boot));
        due.into_iter().chain(held_back).chain(paced).chain(asked).chain(late).min()
    }

    /// Is there a retry that only the pace holds back?
    fn has_retry(&self) -> bool {
        let waits = |channel, has| self.up.get(at(channel)).copied().unwrap_or(false) && has;
        waits(Channel::Local, self.local.has_retry()) || waits(Channel::Remote, self.remote.has_retry())
    }

    /// The spool, for side files and its wake-up.
    pub fn spool(&mut self) -> &mut S {
        &mut self.spool
    }

    fn log_status(&mut self) {
        self.log.status(Status {
            local: (self.local.in_flight(), self.local.limit()),
            remote: (self.remote.in_flight(), self.remote.limit()),
            exiting: self.stopping,
        });
    }

    fn id(id: u64) -> MessageId {
        MessageId(id)
    }
}
