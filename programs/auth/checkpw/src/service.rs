//! checkpw.sock: one loop that never waits for a helper.
//!
//! At most [`HELPERS_MAX`] logins are judged at once, [`WAITING_MAX`] wait, more are answered "unavailable" at once. Each has
//! [`CHECK_DEADLINE`] from its arrival; then its helper is killed with all that it started, and the answer is "unavailable".

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use control::authsources::{self, Source};
use control::{Ids, Root, Watched};
use ipc::checkpw::{Answer, Request, Verdict};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use sandbox::{Role, Socket};
use sys::inherited::Inherited;
use sys::signal::Signals;
use sys::spawn::Child;
use sys::{Received, Seqpacket};
use zeroize::Zeroizing;

use crate::helper::{self, Helper, Started};
use crate::log;

/// Helpers at a time: each is a process, and a hash takes some 16 MiB.
pub const HELPERS_MAX: usize = 16;
/// Logins that wait for one.
pub const WAITING_MAX: usize = 64;
/// Less than qmail-auth waits, so that it hears the reason.
pub const CHECK_DEADLINE: Duration = Duration::from_secs(8);
/// How long helpers may go on when the system stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// qmail-auth has one connection, a new generation of it another.
const CLIENTS_MAX: usize = 16;
/// Datagrams read from a client before the others get their turn.
const READS_MAX: usize = 32;

/// A login that waits for a helper.
struct Waiting {
    client: u64,
    request: Request,
    deadline: Duration,
}

/// A login that is being judged.
struct Running {
    client: u64,
    id: u64,
    deadline: Duration,
    helper: Helper,
    source: String,
}

/// The face as qmail-start starts it.
///
/// # Errors
/// The configuration is wrong, or poll(2) does not work.
pub fn serve(root: Root) -> io::Result<()> {
    let ids = root.ids().map_err(io::Error::other)?;
    let mut inherited = Inherited::take()?;
    let lifeline = inherited.one("lifeline")?;
    let listener = inherited.one(&format!("serve:{}", Socket::Checkpw.name()))?;
    let mut service = Service::new(root, ids)?;
    sys::confine::not_dumpable()?;
    inherited.ready()?;
    service.run(listener, &lifeline)
}

/// The loop and its state.
pub struct Service {
    root: Root,
    ids: Ids,
    sources: Watched<Vec<Source>>,
    signals: Signals,
    clients: HashMap<u64, Seqpacket>,
    waiting: VecDeque<Waiting>,
    running: HashMap<u64, Running>,
    /// Killed, and not gone yet.
    dying: Vec<Child>,
    last: u64,
    /// Another generation serves from now on.
    retired: bool,
    stop_at: Option<Duration>,
}

/// What poll(2) found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Lifeline,
    Signals,
    Listener,
    Client(u64),
    Helper(u64),
    Dying,
}

impl Service {
    /// # Errors
    /// control/authsources cannot be used; or out of descriptors.
    pub fn new(root: Root, ids: Ids) -> io::Result<Self> {
        let mut sources = authsources::watched(&root);
        sources.get().map_err(io::Error::other)?;
        // SIGHUP asks to reread: the file is followed, so it only must not end the process.
        let signals = Signals::new(&[Signal::HUP, Signal::TERM, Signal::INT])?;
        let (waiting, running, clients) = (VecDeque::new(), HashMap::new(), HashMap::new());
        Ok(Self {
            root,
            ids,
            sources,
            signals,
            clients,
            waiting,
            running,
            dying: Vec::new(),
            last: 0,
            retired: false,
            stop_at: None,
        })
    }

    /// Serves until the lifeline ends or a signal says so; then, or after a byte in the lifeline, what is under way comes to its end.
    ///
    /// # Errors
    /// poll(2) does not work.
    pub fn run(&mut self, listener: OwnedFd, lifeline: &OwnedFd) -> io::Result<()> {
        let mut listener = Some(listener);
        loop {
            for event in self.wait(listener.as_ref(), lifeline)? {
                match event {
                    Event::Lifeline => self.on_lifeline(lifeline),
                    Event::Signals => self.on_signals(),
                    Event::Listener => listener.iter().for_each(|listener| self.accept(listener)),
                    Event::Client(client) => self.on_client(client),
                    Event::Helper(number) => self.on_helper(number),
                    Event::Dying => self.dying.retain(|child| child.try_wait().is_none()),
                }
            }
            let now = sys::clock::boottime();
            self.check_deadlines(now);
            self.start_waiting();
            if self.retired || self.stop_at.is_some() {
                listener = None;
                let is_idle = self.running.is_empty() && self.waiting.is_empty();
                if is_idle || self.stop_at.is_some_and(|stop_at| now >= stop_at) {
                    self.running.clear();
                    return Ok(());
                }
            }
        }
    }

    fn wait(&self, listener: Option<&OwnedFd>, lifeline: &OwnedFd) -> io::Result<Vec<Event>> {
        let mut events = vec![Event::Signals];
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let mut add = |event, fd| {
            events.push(event);
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        };
        if self.stop_at.is_none() {
            add(Event::Lifeline, lifeline.as_fd());
        }
        listener.into_iter().for_each(|listener| add(Event::Listener, listener.as_fd()));
        self.clients.iter().for_each(|(client, socket)| add(Event::Client(*client), socket.as_fd()));
        self.running.iter().for_each(|(number, running)| add(Event::Helper(*number), running.helper.guarded.child.pidfd.as_fd()));
        self.dying.iter().for_each(|child| add(Event::Dying, child.pidfd.as_fd()));
        let deadlines = self.running.values().map(|running| running.deadline);
        let due = deadlines.chain(self.waiting.front().map(|first| first.deadline)).chain(self.stop_at).min();
        let left = due.map(|due| due.saturating_sub(sys::clock::boottime()).saturating_add(Duration::from_millis(1)));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(events.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(event, _)| event).collect())
    }

    fn on_lifeline(&mut self, lifeline: &OwnedFd) {
        match rustix::io::read(lifeline, &mut [0u8; 8][..]) {
            Ok(0) | Err(_) => self.drain(),
            Ok(_) => self.retired = true,
        }
    }

    fn on_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            if signal != Signal::HUP {
                self.drain();
            }
        }
    }

    fn drain(&mut self) {
        self.stop_at.get_or_insert(sys::clock::boottime().saturating_add(DRAIN_MAX));
    }

    fn accept(&mut self, listener: &OwnedFd) {
        while let Ok(client) = sys::seqpacket::accept(listener.as_fd()) {
            let uid_of = |role: Role| self.ids.uid_of(role.name());
            let may = client.peer().is_ok_and(|peer| sandbox::may_call(Socket::Checkpw, peer.uid, uid_of));
            if may && self.clients.len() < CLIENTS_MAX {
                self.last = self.last.wrapping_add(1);
                self.clients.insert(self.last, client);
            }
        }
    }

    fn on_client(&mut self, client: u64) {
        let mut buf = Zeroizing::new([0; DATAGRAM_LEN_MAX]);
        for _ in 0..READS_MAX {
            let Some(socket) = self.clients.get(&client) else { return };
            let request = match socket.recv(&mut buf[..]) {
                Ok(Received::Datagram(len, _)) => Request::decode(buf.get(..len).unwrap_or_default()).ok(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(Received::End) | Err(_) => None,
            };
            match request {
                Some(request) => self.take(client, request),
                // The end, or bytes that are no request.
                None => {
                    self.clients.remove(&client);
                    return;
                }
            }
        }
    }

    fn take(&mut self, client: u64, request: Request) {
        let deadline = sys::clock::boottime().saturating_add(CHECK_DEADLINE);
        let waiting = Waiting { client, request, deadline };
        if self.waiting.len() >= WAITING_MAX {
            let Request::Check { id, .. } = waiting.request;
            return self.unavailable(client, id, "too many logins at once");
        }
        self.waiting.push_back(waiting);
        self.start_waiting();
    }

    fn start_waiting(&mut self) {
        while self.running.len() < HELPERS_MAX
            && let Some(waiting) = self.waiting.pop_front()
        {
            self.start(&waiting);
        }
    }

    fn start(&mut self, waiting: &Waiting) {
        let Waiting { client, request, deadline } = waiting;
        let Request::Check { id, source: line, .. } = request;
        let source = self.sources.get().map(|all| all.iter().find(|source| source.line() == line[..]).cloned());
        let source = match source {
            Ok(Some(source)) => source,
            // It has just been taken out, or the caller names what is none of root's.
            Ok(None) => return self.unavailable(*client, *id, "control/authsources does not hold this source"),
            Err(error) => return self.unavailable(*client, *id, &error.to_string()),
        };
        match helper::start(&self.root, &source, request) {
            Ok(Started::Helper(helper)) => {
                self.last = self.last.wrapping_add(1);
                let running = Running { client: *client, id: *id, deadline: *deadline, helper, source: source.to_string() };
                self.running.insert(self.last, running);
            }
            Ok(Started::Known(verdict)) => self.answer(*client, *id, verdict),
            Err(text) => self.failed(*client, *id, &source.to_string(), &text),
        }
    }

    fn on_helper(&mut self, number: u64) {
        let Some(verdict) = self.running.get(&number).and_then(|running| running.helper.ended()) else { return };
        let Some(Running { client, id, source, .. }) = self.running.remove(&number) else { return };
        match verdict {
            Verdict::Unavailable { text } => self.failed(client, id, &source, &String::from_utf8_lossy(&text)),
            verdict => self.answer(client, id, verdict),
        }
    }

    /// Ends what has taken too long.
    fn check_deadlines(&mut self, now: Duration) {
        let late = self.running.iter().filter(|(_, running)| now >= running.deadline);
        for number in late.map(|(number, _)| *number).collect::<Vec<_>>() {
            let Some(Running { client, id, helper, source, .. }) = self.running.remove(&number) else { continue };
            self.dying.push(helper.guarded.give_up());
            self.failed(client, id, &source, &format!("no answer in {} s", CHECK_DEADLINE.as_secs()));
        }
        while let Some(late) = self.waiting.pop_front_if(|first| now >= first.deadline) {
            let Request::Check { id, .. } = late.request;
            self.unavailable(late.client, id, "no helper was free in time");
        }
    }

    /// A source did not do what it should: the log says which and why.
    fn failed(&mut self, client: u64, id: u64, source: &str, text: &str) {
        log(&format!("warning: {}: {}", wire::escape::visible(source.as_bytes()), wire::escape::visible(text.as_bytes())));
        self.unavailable(client, id, text);
    }

    fn unavailable(&mut self, client: u64, id: u64, text: &str) {
        self.answer(client, id, Verdict::Unavailable { text: ipc::clip(text.as_bytes()).into() });
    }

    /// A client that does not read its answers loses its connection.
    fn answer(&mut self, client: u64, id: u64, verdict: Verdict) {
        let answer = Answer::Judged { id, verdict }.encode_bounded();
        let sent = answer.is_ok_and(|bytes| self.clients.get(&client).is_some_and(|to| to.send(&bytes).is_ok()));
        if !sent {
            self.clients.remove(&client);
        }
    }
}
