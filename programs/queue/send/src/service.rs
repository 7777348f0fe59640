//! One loop over everything that qmail-send waits for.
//!
//! The loop never touches the spool's files; that is what the spool's threads and the bounce writer are for. Each turn reads what is
//! there, within bounds for each connection, hands it to the engine, does what the engine wants done and writes the log once.

mod events;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ipc::admin::{QueueAnswer, QueueRequest};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use rustix::process::Signal;
use sandbox::Socket;
use schedule::Channel;
use spool::{Log as Spool, SideBody};
use sys::signal::Signals;
use sys::{Received, Seqpacket};

use crate::bounce::Writer;
use crate::clients::{Client, Clients, Importing, Kind};
use crate::engine::{Engine, Now, Out};
use crate::links::{Heard, Links};
use crate::log::LogWriter;
use crate::submission::{Budget, Step, Submission, Surroundings, temporary};
use events::{Event, Events, Source};

/// Deliveries that run may end within this time before the process does.
const DRAIN: Duration = Duration::from_secs(5);
/// Datagrams taken from one connection in a turn, so that none keeps the others waiting.
const DATAGRAMS_TURN: usize = 16;
/// Connections taken in a turn.
const ADMISSIONS_TURN: usize = 64;
/// How often silent connections are looked for, and how often a full log is tried again.
const SWEEP: Duration = Duration::from_secs(10);
const LOG_PAUSE: Duration = Duration::from_millis(50);
/// Rounds of doing what the engine wants before input is looked at again.
const ROUNDS_TURN: usize = 8;

/// The descriptors that the process was given.
pub struct Doors {
    pub lifeline: OwnedFd,
    /// run/qmail.
    pub run: OwnedFd,
    pub queue: OwnedFd,
    pub inject: OwnedFd,
    pub admin: OwnedFd,
}

/// The time by both clocks.
pub(crate) fn now() -> Now {
    Now { s: sys::clock::unix_s(), boot: sys::clock::boottime() }
}

/// See the module.
pub struct Service<S> {
    engine: Engine<S>,
    doors: Doors,
    clients: Clients,
    events: Events,
    links: Links,
    writer: Writer,
    budget: Budget,
    buf: Box<[u8]>,
    /// Which client waits for which side file.
    behind: Vec<(u64, u64)>,
    swept: Duration,
    /// There was more to do than a turn allows: go on without waiting.
    unfinished: bool,
    stop_at: Option<Duration>,
}

/// What a submission needs, borrowed from the service.
struct Around<'a, S> {
    budget: &'a mut Budget,
    engine: &'a mut Engine<S>,
    now_s: u64,
}

impl<S: Spool> Surroundings for Around<'_, S> {
    fn budget(&mut self) -> &mut Budget {
        self.budget
    }
    fn side_file(&mut self) -> SideBody {
        self.engine.spool().side_file()
    }
    fn now_s(&self) -> u64 {
        self.now_s
    }
}

impl<S: Spool> Service<S> {
    /// With the descriptors it was given; `ids` says who is who.
    ///
    /// # Errors
    /// Out of descriptors or threads; temporary.
    pub fn new(mut engine: Engine<S>, doors: Doors, ids: users::Ids) -> io::Result<Self> {
        let events = Events::new()?;
        events.add(&doors.lifeline, Source::Lifeline)?;
        events.add(&doors.queue, Source::Door(Socket::Queue))?;
        events.add(&doors.inject, Source::Door(Socket::Inject))?;
        events.add(&doors.admin, Source::Door(Socket::AdminSend))?;
        events.add(engine.spool().wake_fd(), Source::Spool)?;
        let writer = Writer::start()?;
        events.add(writer.wake(), Source::Writer)?;
        Ok(Self {
            engine,
            doors,
            clients: Clients::new(ids),
            events,
            links: Links::default(),
            writer,
            budget: Budget::default(),
            buf: vec![0; DATAGRAM_LEN_MAX].into(),
            behind: Vec::new(),
            swept: Duration::ZERO,
            unfinished: false,
            stop_at: None,
        })
    }

    /// Serves until the lifeline ends or SIGTERM comes, then lets running deliveries end and returns.
    ///
    /// # Errors
    /// epoll does not work; temporary.
    pub fn run(&mut self, signals: Option<&Signals>, log: &mut LogWriter) -> io::Result<()> {
        if let Some(signals) = signals {
            self.events.add(signals, Source::Signals)?;
        }
        self.engine.set_now(now());
        self.act();
        self.engine.log.flush(|bytes| log.write(bytes));
        loop {
            self.engine.spool().flush();
            let events = self.events.wait(self.timeout())?;
            self.engine.spool().hold();
            self.engine.set_now(now());
            for event in events {
                self.event(event, signals);
            }
            self.engine.completions();
            self.act();
            let now = now().boot;
            self.sweep(now);
            if self.stop_at.is_some_and(|stop_at| now >= stop_at || self.engine.is_quiet()) {
                self.engine.spool().flush();
                self.engine.log.exiting();
                self.engine.log.flush(|bytes| log.write(bytes));
                return Ok(());
            }
            self.engine.log.flush(|bytes| log.write(bytes));
        }
    }

    /// Behind [`Service::run`]: no message is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.engine.is_empty()
    }

    fn event(&mut self, event: Event, signals: Option<&Signals>) {
        match event.source {
            Source::Lifeline => {
                self.events.remove(&self.doors.lifeline);
                self.drain();
            }
            Source::Signals => self.on_signals(signals),
            Source::Door(door) => self.on_door(door),
            Source::Spool => {}
            Source::Writer => {
                for (order, written) in self.writer.take().collect::<Vec<_>>() {
                    self.engine.bounced(order, written);
                }
            }
            Source::Link(to, connection) => self.on_link(to, connection, event.writable),
            Source::Client(number) => self.on_client(number, event.hung_up),
        }
    }

    fn on_signals(&mut self, signals: Option<&Signals>) {
        while let Some(signal) = signals.and_then(Signals::next) {
            match signal {
                Signal::HUP => self.engine.reread(),
                Signal::ALARM => {
                    self.engine.retry_all();
                }
                _ => self.drain(),
            }
        }
    }

    /// No new deliveries and no new messages; those under way get their answer.
    fn drain(&mut self) {
        if self.stop_at.is_some() {
            return;
        }
        self.stop_at = Some(sys::clock::boottime().saturating_add(DRAIN));
        self.engine.stop();
        for door in [&self.doors.queue, &self.doors.inject, &self.doors.admin] {
            self.events.remove(door);
        }
        let idle = |client: &Client| match &client.kind {
            Kind::Queue(submission) | Kind::Inject(submission) => submission.is_idle(),
            Kind::Admin | Kind::Import(_) => false,
        };
        self.clients.numbers(idle).into_iter().for_each(|number| self.close(number));
    }

    fn timeout(&self) -> Option<Duration> {
        if self.unfinished {
            return Some(Duration::ZERO);
        }
        let now = now().boot;
        let until = |at: Duration| at.saturating_sub(now);
        let links = self.links.try_times().map(until);
        let sweep = (!self.clients.is_empty()).then_some(SWEEP);
        let log = (!self.engine.log.is_empty()).then_some(LOG_PAUSE);
        let times = links.chain(self.engine.wait()).chain(sweep).chain(log).chain(self.stop_at.map(until));
        // A millisecond more, so that the time has come when we wake.
        times.min().map(|time| time.saturating_add(Duration::from_millis(u64::from(!time.is_zero()))))
    }

    // Connections.

    fn on_door(&mut self, door: Socket) {
        let listener = match door {
            Socket::Queue => &self.doors.queue,
            Socket::Inject => &self.doors.inject,
            _ => &self.doors.admin,
        };
        let now = sys::clock::boottime();
        for _ in 0..ADMISSIONS_TURN {
            let Ok(socket) = sys::seqpacket::accept(listener.as_fd()) else { return };
            match self.clients.admit(door, socket, now) {
                Ok(number) => {
                    let added = self.clients.get(number).map(|client| self.events.add(&client.socket, Source::Client(number)));
                    if !matches!(added, Some(Ok(()))) {
                        self.clients.remove(number);
                    }
                }
                Err((socket, text)) => turn_away(door, &socket, text),
            }
        }
    }

    fn on_client(&mut self, number: u64, hung_up: bool) {
        let Some(client) = self.clients.get(number) else { return };
        if client.paused {
            if hung_up {
                self.close(number);
            }
            return;
        }
        client.heard = sys::clock::boottime();
        for _ in 0..DATAGRAMS_TURN {
            let Some(client) = self.clients.get(number).filter(|client| !client.paused) else { return };
            match client.socket.recv(&mut self.buf) {
                Ok(Received::Datagram(len, _)) => {
                    self.datagram(number, len);
                    // Nothing may follow a commit before its answer: spare the look.
                    if self.clients.get(number).and_then(Client::submission).is_some_and(|submission| submission.is_waiting()) {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(Received::End) | Err(_) => return self.close(number),
            }
        }
    }

    fn datagram(&mut self, number: u64, len: usize) {
        let Some(client) = self.clients.get(number) else { return };
        let datagram = self.buf.get(..len).unwrap_or_default();
        let Some(submission) = client.submission() else {
            match QueueRequest::decode(datagram) {
                Ok(QueueRequest::Import { key, arrival_s, uid, pid }) if key.len() <= ipc::import::KEY_LEN_MAX => {
                    let submission = Submission::importing(client.who, key);
                    client.kind = Kind::Import(Box::new(Importing { submission, arrival_s, uid, pid }));
                }
                Ok(QueueRequest::Import { .. }) | Err(_) => self.close(number),
                Ok(request) => self.engine.admin(number, &request),
            }
            return;
        };
        let mut around = Around { budget: &mut self.budget, engine: &mut self.engine, now_s: sys::clock::unix_s() };
        let step = submission.datagram(datagram, &mut around);
        let is_over = submission.is_idle();
        match step {
            Ok(Step::More) if is_over => client.import_over(),
            Ok(Step::More) => {
                if let Some(side) = submission.behind() {
                    client.paused = true;
                    let _ = self.events.want(&client.socket, Source::Client(number), false, false);
                    self.behind.push((side, number));
                }
            }
            Ok(Step::Commit(submitted)) => match &client.kind {
                Kind::Import(importing) => self.engine.import(number, importing, *submitted),
                _ => self.engine.submitted(number, client.who, *submitted),
            },
            Ok(Step::Refuse(answer)) => {
                let answer = match &client.kind {
                    Kind::Import(_) => crate::engine::import_refused(answer).encode(),
                    _ => answer.encode(),
                };
                if is_over {
                    client.import_over();
                }
                if client.socket.send(&answer).is_err() {
                    self.close(number);
                }
            }
            Err(_) => self.close(number),
        }
    }

    fn close(&mut self, number: u64) {
        self.behind.retain(|(_, client)| *client != number);
        self.engine.admin_gone(number);
        if let Some(client) = self.clients.remove(number) {
            match client.kind {
                Kind::Queue(submission) | Kind::Inject(submission) => {
                    submission.abandon(&mut self.budget);
                }
                Kind::Import(importing) => importing.submission.abandon(&mut self.budget),
                Kind::Admin => {}
            }
        }
    }

    fn sweep(&mut self, now: Duration) {
        if now.saturating_sub(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        self.clients.numbers(|client| client.is_stale(now)).into_iter().for_each(|number| self.close(number));
    }

    // Links.

    fn connect(&mut self) {
        let now = now().boot;
        for to in Links::ALL {
            let link = self.links.to(to);
            let Some(connection) = link.connect(self.doors.run.as_fd(), now) else { continue };
            if link.fd().is_none_or(|fd| self.events.add(fd, Source::Link(to, connection)).is_err()) {
                link.close(connection, now);
                continue;
            }
            self.connected(to);
            self.flush(to);
        }
    }

    fn connected(&mut self, to: Socket) {
        if let Some(channel) = channel(to) {
            return self.engine.connected(channel);
        }
        if to == Socket::Auth {
            for (id, address) in self.engine.open_questions() {
                self.links.to(Socket::Auth).ask(ipc::auth::Request::Route { id, address }.encode());
            }
        }
    }

    /// The other side takes nothing more, and may still answer what it has: it is being replaced, or it is gone, which reading tells.
    fn retire(&mut self, to: Socket, channel: Channel) {
        let link = self.links.to(to);
        if let Some(fd) = link.fd() {
            let _ = self.events.want(fd, Source::Link(to, link.connection()), true, false);
        }
        let oldest = link.retire(now().boot);
        self.engine.disconnected(channel);
        if let Some(oldest) = oldest {
            self.lost(to, oldest);
        }
    }

    fn lost(&mut self, to: Socket, connection: u64) {
        let was_last = self.links.to(to).close(connection, now().boot);
        if let Some(channel) = channel(to) {
            if was_last {
                self.engine.disconnected(channel);
            }
            return self.engine.connection_lost(channel, connection);
        }
        match to {
            Socket::Resolve => self.engine.resolve_lost(),
            // What changes from now on is not heard of.
            Socket::Auth => self.engine.routes_changed(),
            _ => {}
        }
    }

    fn on_link(&mut self, to: Socket, connection: u64, writable: bool) {
        if writable {
            self.flush(to);
        }
        for _ in 0..DATAGRAMS_TURN {
            let mut buf = std::mem::take(&mut self.buf);
            let heard = self.links.to(to).recv(connection, &mut buf);
            let understood = match &heard {
                Heard::Datagram(len) => self.answer(to, connection, buf.get(..*len).unwrap_or_default()),
                Heard::Nothing | Heard::Lost => true,
            };
            self.buf = buf;
            match heard {
                Heard::Datagram(_) if understood => {}
                Heard::Nothing => return,
                Heard::Datagram(_) | Heard::Lost => return self.lost(to, connection),
            }
        }
    }

    /// False if it is no answer at all: the connection is made anew.
    fn answer(&mut self, to: Socket, connection: u64, datagram: &[u8]) -> bool {
        if let Some(channel) = channel(to) {
            return ipc::job::Answer::decode(datagram).map(|answer| self.engine.answered(channel, connection, answer)).is_ok();
        }
        match to {
            Socket::Auth => match ipc::auth::Answer::decode(datagram) {
                Ok(ipc::auth::Answer::Route { id, target }) => {
                    self.engine.routed(id, &target);
                    true
                }
                Ok(ipc::auth::Answer::Unavailable { id, text }) => {
                    self.engine.routed(id, &ipc::auth::Target::Temporary { text });
                    true
                }
                Ok(ipc::auth::Answer::Changed {}) => {
                    self.engine.routes_changed();
                    true
                }
                Ok(_) => true,
                Err(_) => false,
            },
            _ => match ipc::resolve::Answer::decode(datagram) {
                Ok(answer) => {
                    self.site_answer(&answer);
                    true
                }
                Err(_) => false,
            },
        }
    }

    fn site_answer(&mut self, answer: &ipc::resolve::Answer) {
        use ipc::resolve::Answer;
        match answer {
            Answer::Site { id, key, ttl_s } => self.engine.sited(*id, Some((key, *ttl_s))),
            Answer::Hosts { id, .. } | Answer::NullMx { id, .. } | Answer::NoHost { id, .. } | Answer::Temporary { id, .. } => {
                self.engine.sited(*id, None);
            }
        }
    }

    fn flush(&mut self, to: Socket) {
        let link = self.links.to(to);
        let (engine, connection) = (&mut self.engine, link.connection());
        if let Err(error) = link.flush(|number| engine.sent(number, connection)) {
            return match channel(to) {
                Some(channel) if error.kind() == io::ErrorKind::BrokenPipe => self.retire(to, channel),
                _ => self.lost(to, connection),
            };
        }
        let waits = link.waits_anew();
        if let (Some(fd), Some(waits)) = (link.fd(), waits) {
            let _ = self.events.want(fd, Source::Link(to, connection), true, waits);
        }
    }

    // What the engine wants.

    fn act(&mut self) {
        self.unfinished = false;
        self.engine.look_at_files();
        for _ in 0..ROUNDS_TURN {
            self.connect();
            self.engine.give_up_questions();
            self.engine.turn();
            let out = std::mem::take(&mut self.engine.out);
            if out.is_empty() {
                return;
            }
            let mut touched = Touched::default();
            for out in out {
                self.out(out, &mut touched);
            }
            for to in touched.links() {
                self.flush(to);
            }
            self.engine.completions();
        }
        self.unfinished = true;
    }

    fn out(&mut self, out: Out, touched: &mut Touched) {
        match out {
            Out::Reply { client, answer } => self.reply(client, &answer),
            Out::Admin { client, answer } => self.admin_reply(client, &answer, None),
            Out::AdminBody { client, bytes, body } => self.admin_reply(client, &QueueAnswer::Body { bytes }, Some(&body)),
            Out::Job { channel, number, datagram, body } => {
                let to = if channel == Channel::Local { Socket::Lspawn } else { Socket::Remote };
                self.links.to(to).send_job(number, datagram, body);
                touched.jobs = true;
            }
            Out::Route { id, address } => {
                self.links.to(Socket::Auth).ask(ipc::auth::Request::Route { id, address }.encode());
                touched.questions = true;
            }
            Out::Site { id, domain } => {
                self.links.to(Socket::Resolve).ask(ipc::resolve::Request::Site { id, domain }.encode());
                touched.questions = true;
            }
            Out::Bounce(order) => self.writer.order(*order),
            Out::Drained { side } => self.resume(side),
            Out::GiveBack { bytes } => self.budget.give_back(bytes),
        }
    }

    fn reply(&mut self, number: u64, answer: &ipc::queue::Answer) {
        let Some(client) = self.clients.get(number) else { return };
        let sent = client.socket.send(&answer.encode());
        if let Some(submission) = client.submission() {
            submission.answered();
        }
        // A client that does not read its answer, or one we drain, is not served further.
        if sent.is_err() || self.stop_at.is_some() {
            self.close(number);
        }
    }

    fn admin_reply(&mut self, number: u64, answer: &QueueAnswer, body: Option<&OwnedFd>) {
        let Some(client) = self.clients.get(number) else { return };
        client.import_over();
        let datagram = answer.encode();
        let sent = match body {
            Some(body) => client.socket.send_with_fd(&datagram, body.as_fd()),
            None => client.socket.send(&datagram),
        };
        // The few datagrams of an answer fit the socket unless nobody reads them.
        if sent.is_err() {
            self.close(number);
        }
    }

    fn resume(&mut self, side: u64) {
        let Some(at) = self.behind.iter().position(|(behind, _)| *behind == side) else { return };
        let (_, number) = self.behind.swap_remove(at);
        if let Some(client) = self.clients.get(number) {
            client.paused = false;
            client.heard = sys::clock::boottime();
            let _ = self.events.want(&client.socket, Source::Client(number), true, false);
        }
    }
}

/// The deliveries that a link's jobs are; `None` if it carries questions.
fn channel(to: Socket) -> Option<Channel> {
    match to {
        Socket::Lspawn => Some(Channel::Local),
        Socket::Remote => Some(Channel::Remote),
        _ => None,
    }
}

/// Which links got something to send.
#[derive(Default)]
struct Touched {
    jobs: bool,
    questions: bool,
}

impl Touched {
    fn links(&self) -> impl Iterator<Item = Socket> {
        let jobs = self.jobs.then_some([Socket::Lspawn, Socket::Remote]);
        let questions = self.questions.then_some([Socket::Auth, Socket::Resolve]);
        jobs.into_iter().chain(questions).flatten()
    }
}

/// Tells somebody who cannot be served why; if that does not work, the end of the connection says enough.
fn turn_away(door: Socket, socket: &Seqpacket, text: &str) {
    let _ = match door {
        Socket::Queue | Socket::Inject => socket.send(&temporary(text).encode()),
        _ => socket.send(&QueueAnswer::Failed { text: text.into() }.encode()),
    };
}
