//! qmail-lspawn's loop: jobs and questions in, workers in the middle, answers out.
//!
//! One thread, no blocking call but epoll_wait (and fork and exec, which are short). Whatever a client, a worker or qmail-getpw
//! sends, the worst that happens is that its own connection or process ends.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use control::lspawn::{Assignments, Lspawn};
use control::{Ids, LmtpRoutes, Root, VirtualDomains, Watched};
use ipc::DATAGRAM_LEN_MAX;
use rustix::process::Signal;
use sandbox::Role;
use sys::Seqpacket;
use sys::signal::Signals;
use sys::spawn::Child;

use crate::claims::Claims;
use crate::events::{Events, Source};
use crate::peers::{Client, Rights};
use crate::pool::Pool;
use crate::process::Programs;
use crate::target::Rules;
use crate::task::Task;

/// Clients: qmail-send and qmail-auth have one connection each, and a new generation of either may overlap the old one.
const CLIENTS_MAX: usize = 32;
/// How often deadlines are looked at while there are any.
const TICK: Duration = Duration::from_millis(250);
/// How long running work may go on when the system stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// A started worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub child: Child,
    /// `None`: it gets and says nothing any more, only its end is awaited.
    pub socket: Option<Seqpacket>,
    /// An unconfined one for a single message?
    pub once: bool,
    pub tasks: Vec<u64>,
    pub kill_at: Option<Duration>,
}

/// All of qmail-lspawn.
pub struct Service {
    pub(crate) root: Root,
    pub(crate) values: Lspawn,
    pub(crate) rules: Rules,
    pub(crate) assignments: Assignments,
    pub(crate) domains: Watched<Arc<VirtualDomains>>,
    pub(crate) lmtproutes: Watched<LmtpRoutes>,
    pub(crate) programs: Programs,
    pub(crate) run_dir: OwnedFd,
    pub(crate) events: Events,
    pub(crate) clients: HashMap<u64, Client>,
    pub(crate) getpw: Option<Client>,
    pub(crate) claims: Claims,
    pub(crate) tasks: HashMap<u64, Task>,
    pub(crate) queue: VecDeque<u64>,
    pub(crate) pool: Pool,
    pub(crate) workers: HashMap<u64, Worker>,
    pub(crate) sessions: HashMap<u64, Child>,
    pub(crate) buf: Box<[u8; DATAGRAM_LEN_MAX]>,
    pub(crate) stop_at: Option<Duration>,
    last_number: u64,
}

impl Service {
    /// Reads the configuration. `run_dir` is run/qmail, where qmail-getpw's socket is.
    ///
    /// # Errors
    /// The text says what to repair.
    pub fn new(root: Root, run_dir: OwnedFd) -> Result<Self, String> {
        let values = Lspawn::load(&root).map_err(|error| error.to_string())?;
        let ids = root.ids().map_err(|error| error.to_string())?;
        let uid = rustix::process::geteuid().as_raw();
        let as_caller = uid != 0;
        let rules = Rules { uid, ids, uid_min: values.uid_min, alias_home: root.alias() };
        Ok(Self {
            assignments: Assignments::new(&root),
            domains: control::watched::domains(&root),
            lmtproutes: LmtpRoutes::watched(&root),
            programs: Programs::new(&root, as_caller),
            events: Events::new().map_err(|error| error.to_string())?,
            run_dir,
            rules,
            values,
            root,
            clients: HashMap::new(),
            getpw: None,
            claims: Claims::default(),
            tasks: HashMap::new(),
            queue: VecDeque::new(),
            pool: Pool::default(),
            workers: HashMap::new(),
            sessions: HashMap::new(),
            buf: Box::new([0; DATAGRAM_LEN_MAX]),
            stop_at: None,
            last_number: 0,
        })
    }

    /// Serves until the lifeline ends or SIGTERM comes, then drains and returns.
    ///
    /// # Errors
    /// epoll does not work; temporary.
    pub fn run(&mut self, listener: OwnedFd, lifeline: &OwnedFd, signals: &Signals) -> io::Result<()> {
        let mut listener = Some(listener);
        if let Some(listener) = &listener {
            self.events.add(listener, Source::Listener)?;
        }
        self.events.add(lifeline, Source::Lifeline)?;
        self.events.add(signals, Source::Signals)?;
        loop {
            for event in self.events.wait(self.timeout())? {
                match event.source {
                    Source::Lifeline => {
                        self.events.remove(lifeline);
                        self.begin_drain();
                    }
                    Source::Signals => self.on_signals(signals),
                    Source::Listener => {
                        if let Some(listener) = &listener {
                            self.on_listener(listener);
                        }
                    }
                    Source::Getpw => self.on_getpw(),
                    Source::Client(id) if event.writable_only => self.flush(id),
                    Source::Client(id) => self.on_client(id),
                    Source::Worker(id) => self.on_worker(id),
                    Source::WorkerEnd(id) => self.on_worker_end(id),
                    Source::SessionEnd(id) => self.on_session_end(id),
                }
            }
            let now = sys::clock::boottime();
            self.check_deadlines(now);
            if let Some(stop_at) = self.stop_at {
                listener = None;
                if now >= stop_at || self.tasks.is_empty() && self.sessions.is_empty() {
                    self.kill_all();
                    return Ok(());
                }
            }
        }
    }

    /// A number never used before in this run.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.last_number = self.last_number.wrapping_add(1);
        self.last_number
    }

    /// Only while something has a deadline does the loop wake by itself.
    fn timeout(&self) -> Option<Duration> {
        let idle = self.tasks.is_empty() && self.workers.is_empty() && self.stop_at.is_none();
        (!idle).then_some(TICK)
    }

    fn on_signals(&mut self, signals: &Signals) {
        while let Some(signal) = signals.next() {
            match signal {
                Signal::HUP => self.reread(),
                _ => self.begin_drain(),
            }
        }
    }

    /// A configuration that is wrong now is not used: the old goes on.
    fn reread(&mut self) {
        match Lspawn::load(&self.root) {
            Ok(values) => {
                self.rules.uid_min = values.uid_min;
                self.claims = Claims::default();
                self.values = values;
            }
            Err(error) => log(&format!("warning: not reread: {error}")),
        }
    }

    fn on_listener(&mut self, listener: &OwnedFd) {
        while let Ok(socket) = sys::seqpacket::accept(listener.as_fd()) {
            let Some(rights) = socket.peer().ok().and_then(|peer| rights(&self.rules.ids, peer.uid)) else { continue };
            if self.clients.len() >= CLIENTS_MAX {
                log("warning: too many clients, one more refused");
                continue;
            }
            let id = self.next_number();
            if self.events.add(&socket, Source::Client(id)).is_ok() {
                self.clients.insert(id, Client::new(socket, rights));
            }
        }
    }

    /// No new work; what waits is deferred, what runs may end.
    fn begin_drain(&mut self) {
        if self.stop_at.is_none() {
            self.stop_at = Some(sys::clock::boottime().saturating_add(DRAIN_MAX));
            self.defer_waiting("qmail is stopping (#4.3.2)");
        }
    }

    /// The end: whoever still waits is told, and nobody is left behind.
    fn kill_all(&mut self) {
        for id in self.tasks.keys().copied().collect::<Vec<_>>() {
            self.fail(id, "qmail was stopped (#4.3.2)");
        }
        for child in self.workers.values().map(|worker| &worker.child).chain(self.sessions.values()) {
            kill(child);
        }
    }

    pub(crate) fn on_session_end(&mut self, id: u64) {
        if self.sessions.get(&id).is_some_and(|child| child.try_wait().is_some()) {
            self.sessions.remove(&id);
        }
    }
}

/// What a peer may ask for; `None`: nothing, it has no business here.
fn rights(ids: &Ids, uid: u32) -> Option<Rights> {
    let is = |role: Role| ids.get(role.name()).is_some_and(|id| id.uid == uid);
    let rights = Rights { jobs: is(Role::Queue), questions: is(Role::Auth) };
    (rights.jobs || rights.questions).then_some(rights)
}

/// Ends a process and the programs it started, if it leads a group of them.
pub(crate) fn kill(child: &Child) {
    // Before the process is reaped its number, and so its group's, is nobody else's.
    let _ = rustix::process::kill_process_group(child.pid, Signal::KILL);
    child.signal(Signal::KILL);
}

/// A line for the log. A log that cannot be written must not stop mail.
pub(crate) fn log(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(io::stderr(), "{}", wire::escape::visible(line.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_ask_what() {
        let ids = Ids::parse(b"qmaila 101 100\nqmailq 103 100\nqmaild 102 100\n").unwrap();
        let table = [(103, Some((true, false))), (101, Some((false, true))), (102, None), (0, None), (1000, None)];
        for (uid, expected) in table {
            assert_eq!(rights(&ids, uid).map(|rights| (rights.jobs, rights.questions)), expected, "{uid}");
        }
        let caller = Ids::Caller(control::Id { uid: 7, gid: 7 });
        assert_eq!(rights(&caller, 7).map(|rights| (rights.jobs, rights.questions)), Some((true, true)));
        assert_eq!(rights(&caller, 8), None);
    }
}
