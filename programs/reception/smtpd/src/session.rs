//! The driver of one session in the service face: carries out what the machine says.
//!
//! Guarantees: replies are sent before the client is waited for; the client is not read from while a question is open; an idle
//! session holds a socket, the machine's state and a timer, no buffer: bytes are read into one scratch buffer that all share.

use crate::elsewhere::{self, Elsewhere};
use crate::hooks::{self, Hooks};
use crate::login;
use crate::submission::{Judge, Judging};
use crate::terms::Programs;
use crate::trust::Trust;
use crate::{Traffic, end_line, now};
use control::Origin;
use ipc::auth;
use ipc::queue::Item;
use ipc_async::Client;
use logline::Line;
use message::inject::Names;
use reception::admission::Place;
use reception::directory::question;
use reception::log_line;
use reception::queue::{Draft, Pool};
use rustix::net::{RecvFlags, recv};
use smtp::server::{
    Action, Actions, Config, Connection, End, HookAnswer, HookQuestion, Input, LoginAnswer, QueueAnswer, RecipientAnswer,
    Session, Stages, Tls, TlsAnswer,
};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tls::{Acceptor, Transport};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use wire::Address;

/// What is read in one go. Less than the machine would hold while a question is open.
const SCRATCH_LEN: usize = 64 * 1024;
const _: () = assert!(SCRATCH_LEN < smtp::server::HELD_LEN_MAX);
/// A refused login is answered later, as qmail-auth says, but never later than this.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a client that sends on may take to read the last reply.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// What all sessions of a worker share.
pub(crate) struct Worker {
    pub(crate) config: Arc<Config>,
    /// For sessions whose messages go to another program, or may.
    config_elsewhere: Arc<Config>,
    pub(crate) plugins: control::Plugins,
    places: Rc<elsewhere::Places>,
    pub(crate) queue: Rc<Pool>,
    pub(crate) directory: Client<auth::Answer>,
    pub(crate) tls: Acceptor,
    pub(crate) draining: Cell<bool>,
    pub(crate) drain: Notify,
    pub(crate) trust: Trust,
    /// What completes the addresses of what is submitted; `None`: they stay as they are.
    pub(crate) names: Option<Names>,
    scratch: RefCell<Box<[u8]>>,
}

impl Worker {
    /// The configuration for sessions whose messages go to qmail-send, and the one for those whose go to another program, if there are such.
    pub(crate) fn new(
        (config, elsewhere): (Config, Option<Config>),
        plugins: control::Plugins,
        trust: Trust,
        run: Rc<OwnedFd>,
        directory: Client<auth::Answer>,
        tls: Acceptor,
    ) -> Self {
        let queue = Pool::new(Rc::clone(&run), sandbox::Socket::Queue.path());
        let config = Arc::new(config);
        Self {
            config_elsewhere: elsewhere.map_or_else(|| Arc::clone(&config), Arc::new),
            config,
            plugins,
            places: Rc::new(elsewhere::Places::new(run, &std::env::var("QMAIL_WORKER").unwrap_or_default())),
            queue: Rc::new(queue),
            directory,
            tls,
            draining: Cell::new(false),
            drain: Notify::new(),
            trust,
            names: None,
            scratch: RefCell::new(vec![0; SCRATCH_LEN].into()),
        }
    }

    /// With these names for addresses of what is submitted.
    pub(crate) fn completing(self, names: Option<Names>) -> Self {
        Self { names, ..self }
    }

    /// Sessions that are between messages end now, the others after their message.
    pub(crate) fn begin_to_drain(&self) {
        self.draining.set(true);
        self.drain.notify_waiters();
    }
}

/// A connection whose first byte is TLS already.
pub(crate) async fn serve_tls(
    worker: Rc<Worker>,
    stream: TcpStream,
    origin: Origin,
    mut peer: Connection,
    programs: Programs,
    place: Place,
) {
    match handshake(&worker, stream, &peer).await {
        Some((stream, tls)) => {
            peer.protect(tls);
            Box::pin(serve(worker, Transport::Tls(stream), origin, peer, programs, place)).await;
        }
        None => {
            let (service, remote) = ("submissions", &peer.remote_ip[..]);
            let line = logline::Session { service, remote, end: "tls", ..logline::Session::default() }.line();
            log_line(format_args!("{line}"));
            drop(place);
        }
    }
}

/// TLS on a connection, or a line in the log.
async fn handshake(worker: &Worker, stream: TcpStream, peer: &Connection) -> Option<(tls::Stream, Box<Tls>)> {
    let line = || Line::new("tls").bytes("remote", &peer.remote_ip);
    match worker.tls.accept(stream).await {
        Ok((stream, facts)) => {
            let end_point = facts.end_point.map(Into::into);
            let client = match facts.client.as_ref().map(|shown| worker.trust.listed(shown)) {
                Some(Ok(listed)) => listed,
                Some(Err(why)) => {
                    log_line(format_args!("{}", line().put("certificate", "listed").bytes("unused", why.as_bytes())));
                    None
                }
                None => None,
            };
            if let Some(shown) = client.as_ref().and_then(|listed| listed.line()) {
                log_line(format_args!("{}", line().bytes("certificate", shown.as_bytes())));
            }
            Some((stream, Box::new(Tls { cipher: facts.cipher.into(), exporter: facts.exporter, end_point, client })))
        }
        Err(refused) => {
            log_line(format_args!("{}", line().bytes("failed", refused.to_string().as_bytes())));
            None
        }
    }
}

/// One connection, from the greeting to the line in the log.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    stream: Transport,
    origin: Origin,
    mut peer: Connection,
    programs: Programs,
    _place: Place,
) {
    if peer.relay_client.is_none() && !peer.is_lmtp && worker.trust.has_opened_a_mailbox(&worker.directory, origin).await {
        peer.relay_client = Some(Box::default());
    }
    let mut actions = Actions::default();
    // A plugin may name another program any time, and what was asked for before has no place there.
    let stays = programs.queue.is_none() && peer.hooks == Stages::default();
    let config = if stays { &worker.config } else { &worker.config_elsewhere };
    let session = Session::new(Arc::clone(config), peer, now(), &mut actions);
    let mut talk = Talk {
        worker,
        stream,
        origin,
        session,
        output: Vec::new(),
        questions: Vec::new(),
        login: None,
        exchange: None,
        starttls: None,
        judging: None,
        told: None,
        hooks: Box::new(Hooks::new(programs)),
        hook: None,
        draft: None,
        is_committing: false,
        is_told: false,
        traffic: Traffic::default(),
    };
    while talk.session.end().is_none() {
        talk.carry_out(&mut actions).await;
        talk.next(&mut actions).await;
    }
    talk.carry_out(&mut actions).await;
    let is_sent = talk.flush().await;
    log_line(format_args!("{}", end_line(&talk.session, now().boot, talk.traffic)));
    let goes_on = is_sent && talk.client_goes_on();
    talk.stream.end_output();
    if goes_on {
        let _ = timeout(LINGER_MAX, talk.linger()).await;
    }
}

struct Talk {
    worker: Rc<Worker>,
    stream: Transport,
    origin: Origin,
    session: Session,
    output: Vec<u8>,
    questions: Vec<(u32, Address, u64)>,
    /// A login that is to be judged, or a message of its exchange.
    login: Option<Box<login::Question>>,
    /// qmail-auth's number for the exchange that is under way.
    exchange: Option<u64>,
    /// What the client is told before the handshake that is due.
    starttls: Option<Vec<u8>>,
    /// A sender or a header that is to be judged.
    judging: Option<Judging>,
    /// The client that XCLIENT told; `Some(None)` if its address is not known.
    told: Option<Option<IpAddr>>,
    /// What programs have a say in, and have said.
    hooks: Box<Hooks>,
    /// A question to plugins.
    hook: Option<Box<HookQuestion>>,
    draft: Option<Outgoing>,
    is_committing: bool,
    /// Told that the system goes down.
    is_told: bool,
    traffic: Traffic,
}

/// A message under way.
enum Outgoing {
    Queue(Box<Draft>),
    Program(Box<Elsewhere>),
}

impl Outgoing {
    async fn data(&mut self, text: &[u8]) {
        match self {
            Self::Queue(draft) => draft.data(text).await,
            Self::Program(elsewhere) => Box::pin(elsewhere.data(text)).await,
        }
    }

    async fn commit(self) -> QueueAnswer {
        match self {
            Self::Queue(draft) => queue_answer(draft.commit().await),
            Self::Program(elsewhere) => Box::pin(elsewhere.commit()).await,
        }
    }
}

impl Talk {
    async fn carry_out(&mut self, actions: &mut Actions) {
        for action in actions.0.drain(..) {
            match action {
                Action::Reply(bytes) if self.output.is_empty() => self.output = bytes,
                Action::Reply(bytes) => self.output.extend_from_slice(&bytes),
                Action::CheckRecipient { question, recipient, size } => self.questions.push((question, recipient, size)),
                Action::LogIn { user, password } => {
                    self.login = Some(Box::new(login::Question::Password { user, password }));
                }
                Action::SaslStart { mechanism, initial } => {
                    self.login = Some(Box::new(login::Question::Start { mechanism, initial }));
                }
                Action::SaslStep { response } => self.login = Some(Box::new(login::Question::Step { response })),
                Action::StartTls { go } => self.starttls = Some(go),
                Action::CheckSender { sender } => self.judging = Some(Judging::Sender(sender)),
                Action::JudgeHeader { header, recipients } => self.judging = Some(Judging::Header { header, recipients }),
                Action::Admit { address } => self.told = Some(address),
                Action::Hook(question) => self.hook = Some(question),
                Action::Begin(envelope) => Box::pin(self.begin(envelope)).await,
                Action::Priority(priority) => {
                    // Another program has no place for it.
                    if let Some(Outgoing::Queue(draft)) = &mut self.draft {
                        draft.item(&Item::Priority(priority)).await;
                    }
                }
                Action::Body(text) => {
                    if let Some(draft) = &mut self.draft {
                        draft.data(&text).await;
                    }
                }
                Action::Commit => self.is_committing = true,
                Action::Abandon => self.draft = None,
                Action::Log(line) => log_line(format_args!("{line}")),
                Action::Close => {}
            }
        }
    }

    /// Waits for what the machine needs next, and gives it that.
    async fn next(&mut self, actions: &mut Actions) {
        if !self.questions.is_empty() {
            return self.ask(actions).await;
        }
        if let Some(question) = self.hook.take() {
            let answer = Box::pin(self.ask_plugins(*question)).await;
            return self.session.step(now(), Input::Hook(answer), actions);
        }
        if let Some(question) = self.login.take() {
            let answer = Box::pin(self.log_in(*question)).await;
            return self.session.step(now(), Input::Login(answer), actions);
        }
        if let Some(go) = self.starttls.take() {
            let answer = Box::pin(self.start_tls(go)).await;
            return self.session.step(now(), Input::Tls(answer), actions);
        }
        if let Some(judging) = self.judging.take() {
            let Worker { directory, config, names, .. } = &*self.worker;
            let judge = Judge { directory, config, login: self.session.user(), names: names.as_ref() };
            return match judging {
                Judging::Sender(sender) => {
                    let answer = Box::pin(judge.sender(sender)).await;
                    self.session.step(now(), Input::Sender(answer), actions);
                }
                Judging::Header { header, recipients } => {
                    let answer = Box::pin(judge.header(header, recipients)).await;
                    self.session.step(now(), Input::Header(answer), actions);
                }
            };
        }
        if let Some(address) = self.told.take() {
            self.hooks.forget_all();
            let (relays, logins) = self.worker.trust.judge(&self.worker.directory, address.map(|ip| self.origin.told(ip))).await;
            return self.session.step(now(), Input::Admitted { relays, logins }, actions);
        }
        if std::mem::take(&mut self.is_committing)
            && let Some(draft) = self.draft.take()
        {
            let answer = Box::pin(draft.commit()).await;
            return self.session.step(now(), Input::Queue(answer), actions);
        }
        if self.session.end().is_some() {
            return;
        }
        if self.flush().await {
            self.read(actions).await;
        } else {
            self.session.step(now(), Input::Closed, actions);
        }
    }

    /// A message begins; fields that plugins add come before our own.
    async fn begin(&mut self, envelope: Box<smtp::server::Envelope>) {
        self.hooks.note(&self.session);
        let mut draft = match self.hooks.queue() {
            None => {
                let mut draft = Box::new(Draft::new(Rc::clone(&self.worker.queue)));
                for item in crate::envelope::items(*envelope) {
                    draft.item(&item).await;
                }
                Outgoing::Queue(draft)
            }
            Some(program) => {
                let (places, client) = (Rc::clone(&self.worker.places), self.client());
                Outgoing::Program(Box::new(Elsewhere::begin(places, client, program, self.hooks.environment(), *envelope)))
            }
        };
        let header = self.hooks.said.take_header();
        if !header.is_empty() {
            draft.data(&header).await;
        }
        self.draft = Some(draft);
    }

    /// For whom a program is run.
    fn client(&self) -> elsewhere::Client {
        let peer = self.session.peer();
        let address = std::str::from_utf8(&peer.remote_ip).ok().and_then(|ip| ip.parse().ok());
        // Those whose address nobody knows are one client.
        let address = address.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
        elsewhere::Client { address, is_trusted: peer.relay_client.is_some() || self.session.user().is_some() }
    }

    /// Asks the plugins of a stage, one after the other.
    async fn ask_plugins(&mut self, question: HookQuestion) -> HookAnswer {
        self.hooks.note(&self.session);
        let mut asking = match self.hooks.said.begin(&question) {
            Ok(asking) => asking,
            Err(answer) => return answer,
        };
        for line in self.worker.plugins.0.get(hooks::section(&question)).into_iter().flatten() {
            let Some(request) = self.hooks.plugin(line) else { return self.hooks.said.failed(asking) };
            match elsewhere::ask(Rc::clone(&self.worker.places), self.client(), request).await {
                Some(ipc::hook::Answer::Ended { output, .. }) => {
                    if self.hooks.said.hear(&mut asking, &output) {
                        break;
                    }
                }
                _ => return self.hooks.said.failed(asking),
            }
        }
        let answer = self.hooks.said.answer(asking);
        self.hooks.answered(question.stage);
        answer
    }

    /// The program that judges recipients, behind the directory.
    async fn check_further(&mut self, recipient: &Address, answer: RecipientAnswer) -> RecipientAnswer {
        if !self.hooks.may_be_checked(&answer) {
            return answer;
        }
        self.hooks.note(&self.session);
        let is_listed = recipient.domain().is_none_or(|domain| self.worker.config.rcpthosts.contains(domain).unwrap_or(false));
        let known = answer == RecipientAnswer::Exists;
        match self.hooks.check(&self.session, recipient, known, is_listed) {
            Ok(Some(request)) => {
                hooks::judged(answer, Box::pin(elsewhere::ask(Rc::clone(&self.worker.places), self.client(), request)).await)
            }
            Ok(None) => answer,
            Err(cannot_tell) => cannot_tell,
        }
    }

    /// STARTTLS.
    async fn start_tls(&mut self, go: Vec<u8>) -> TlsAnswer {
        if !self.worker.tls.is_available() {
            return TlsAnswer::Unavailable;
        }
        self.output.extend_from_slice(&go);
        if !self.flush().await {
            return TlsAnswer::Failed;
        }
        let Some(stream) = self.stream.take_clear() else { return TlsAnswer::Failed };
        match handshake(&self.worker, stream, self.session.peer()).await {
            Some((stream, tls)) => {
                self.stream = Transport::Tls(stream);
                self.hooks.forget_since_greeting();
                TlsAnswer::Started(tls)
            }
            None => TlsAnswer::Failed,
        }
    }

    /// Asks qmail-auth; cannot-tell when it does not answer in time.
    async fn log_in(&mut self, question: login::Question) -> LoginAnswer {
        let exchange = self.exchange.take();
        let peer = self.session.peer();
        let answer = self.worker.directory.ask_within(login::DEADLINE, |id| question.into_request(id, exchange, peer)).await;
        match answer {
            Ok((auth::Answer::LoggedIn { user, .. }, _)) => LoginAnswer::Accepted { user: user.0.into() },
            Ok((auth::Answer::Challenge { exchange, data, .. }, _)) => {
                self.exchange = Some(exchange);
                LoginAnswer::Challenge(data.0.into())
            }
            Ok((auth::Answer::Refused { pause_s, .. }, _)) => {
                sleep(Duration::from_secs(pause_s.into()).min(PAUSE_MAX)).await;
                LoginAnswer::Refused
            }
            _ => LoginAnswer::Temporary,
        }
    }

    /// Asks the directory. Several questions go out together.
    async fn ask(&mut self, actions: &mut Actions) {
        let mut questions = std::mem::take(&mut self.questions).into_iter();
        let first = questions.next();
        let others: Vec<_> = questions
            .map(|(question, recipient, size)| {
                let (directory, asked) = (self.worker.directory.clone(), recipient.clone());
                (question, recipient, tokio::task::spawn_local(async move { check(&directory, asked, size).await }))
            })
            .collect();
        if let Some((question, recipient, size)) = first {
            let answer = check(&self.worker.directory, recipient.clone(), size).await;
            let answer = Box::pin(self.check_further(&recipient, answer)).await;
            self.session.step(now(), Input::Recipient { question, answer }, actions);
        }
        for (question, recipient, task) in others {
            let answer = task.await.unwrap_or(RecipientAnswer::Temporary);
            let answer = Box::pin(self.check_further(&recipient, answer)).await;
            self.session.step(now(), Input::Recipient { question, answer }, actions);
        }
    }

    /// Bytes from the client, its end, the deadline, or the end of the system.
    async fn read(&mut self, actions: &mut Actions) {
        let drained = self.worker.drain.notified();
        if self.worker.draining.get() && !self.is_told {
            self.is_told = true;
            return self.session.step(now(), Input::Drain, actions);
        }
        let left = self.session.deadline().saturating_sub(now().boot);
        let (stream, session, worker, traffic) = (&mut self.stream, &mut self.session, &self.worker, &mut self.traffic);
        // Unlike try_read, this knows that a read which did not fill the buffer has taken all there is: no second one finds nothing.
        let read = poll_fn(|context| {
            let mut scratch = worker.scratch.borrow_mut();
            let mut buf = ReadBuf::new(&mut scratch);
            stream.poll_read(context, &mut buf).map_ok(|()| buf.filled().len())
        });
        tokio::select! {
            biased;
            len = read => match len {
                Ok(len @ 1..) => {
                    traffic.taken = traffic.taken.saturating_add(len as u64);
                    // Nobody else has run since, so this is still what was read.
                    let scratch = worker.scratch.borrow();
                    session.step(now(), Input::Bytes(scratch.get(..len).unwrap_or_default()), actions);
                }
                Ok(0) | Err(_) => session.step(now(), Input::Closed, actions),
            },
            () = sleep(left) => session.step(now(), Input::Deadline, actions),
            // The flag is looked at when this is called again.
            () = drained => {}
        }
    }

    /// Does the client send more than was read to the end of the session? Who is cut off mostly does; who said QUIT should not.
    fn client_goes_on(&self) -> bool {
        match self.session.end() {
            Some(End::Gone) => false,
            Some(End::Limit | End::Refused) => true,
            // Asked of the socket itself: the runtime may not have heard of it yet.
            _ => self
                .stream
                .tcp()
                .is_some_and(|tcp| matches!(recv(tcp, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT), Ok((1.., _)))),
        }
    }

    /// Reads on without looking: to close over unread input would take the last reply back (RFC 1122 §4.2.2.13).
    async fn linger(&mut self) {
        while self.stream.readable().await.is_ok() {
            match self.stream.try_read(&mut self.worker.scratch.borrow_mut()) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Sends what waits; false if the client does not take it.
    async fn flush(&mut self) -> bool {
        let output = std::mem::take(&mut self.output);
        let mut rest = &output[..];
        while !rest.is_empty() {
            match self.stream.try_write(rest) {
                Ok(sent) => {
                    self.traffic.sent = self.traffic.sent.saturating_add(sent as u64);
                    rest = rest.get(sent..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !matches!(timeout(self.session.write_deadline(), self.stream.writable()).await, Ok(Ok(()))) {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        match &self.stream {
            Transport::Tls(stream) if !output.is_empty() => {
                matches!(timeout(self.session.write_deadline(), stream.flush()).await, Ok(Ok(())))
            }
            _ => true,
        }
    }
}

/// What the directory says; cannot-tell when it does not answer in time.
async fn check(directory: &Client<auth::Answer>, address: Address, size: u64) -> RecipientAnswer {
    match directory.ask(|id| question(id, address, size)).await {
        Ok((auth::Answer::Recipient { verdict, .. }, _)) => recipient_answer(&verdict),
        _ => RecipientAnswer::Temporary,
    }
}

pub(crate) fn queue_answer(verdict: reception::Verdict) -> QueueAnswer {
    match verdict {
        reception::Verdict::Accepted { id, qp } => QueueAnswer::Accepted { id, qp },
        reception::Verdict::Temporary(text) => QueueAnswer::Temporary(text),
        reception::Verdict::Permanent(text) => QueueAnswer::Permanent(text),
    }
}

pub(crate) fn recipient_answer(verdict: &auth::Directory) -> RecipientAnswer {
    match verdict {
        auth::Directory::Mailbox {} => RecipientAnswer::Exists,
        auth::Directory::NoMailbox {} => RecipientAnswer::NoMailbox,
        auth::Directory::NotMine {} => RecipientAnswer::NotOurs,
        auth::Directory::Temporary {} => RecipientAnswer::Temporary,
        auth::Directory::Full { defers } => RecipientAnswer::Full { is_temporary: *defers },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reception::admission::Admission;
    use std::os::fd::OwnedFd;

    /// DESIGN: thousands of sessions. Together with the socket's registration and the timer this stays far below 10 KiB.
    #[test]
    fn an_idle_session_is_small() {
        ipc_async::service::run(async {
            let run: Rc<OwnedFd> = Rc::new(std::fs::File::open("/").unwrap().into());
            let directory = Client::new(Rc::clone(&run), "x", Duration::from_secs(5));
            let tls = Acceptor::start(Arc::new(run.try_clone()?), "x")?;
            let worker = Rc::new(Worker::new(
                (Config::default(), None),
                control::Plugins::default(),
                Trust::default(),
                run,
                directory,
                tls,
            ));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
            let place = Rc::new(Admission::new(1, 1)).admit("127.0.0.1".parse().unwrap(), false).unwrap();
            let origin = Origin::direct([127, 0, 0, 1].into());
            let future = serve(worker, Transport::Clear(accepted?.0), origin, Connection::default(), Programs::default(), place);
            let size = std::mem::size_of_val(&future);
            assert!(size < 3072, "{size}");
            drop(client);
            Ok(())
        })
        .unwrap();
    }
}
