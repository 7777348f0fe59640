//! The driver of one session in the service face: carries out what the machine says.
//!
//! Guarantees: answers are sent before the client is waited for; it is not read from while a question is open; an idle session
//! holds a socket, the machine's state and a timer, no buffer.

use crate::conversation::{ASKING_MAX, Machine, Protocol, begin, from, queue_answer, recipient_answer};
use ipc::auth;
use ipc::queue::Item;
use ipc_async::Client;
use qmtp::exchange::{Action, Config, End, Input, Peer, WRITE_DEADLINE};
use reception::admission::Place;
use reception::directory::question;
use reception::queue::{Draft, Pool};
use reception::{Verdict, log_line};
use smtp::server::RecipientAnswer;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use wire::Address;

/// What is read in one go. Less than the machine would hold while a question is open.
const SCRATCH_LEN: usize = 64 * 1024;
const _: () = assert!(SCRATCH_LEN < qmtp::server::HELD_LEN_MAX);
/// How long a client that sends on may take to read the last answer.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// What all sessions of a worker share.
pub(crate) struct Worker {
    pub(crate) protocol: Protocol,
    pub(crate) config: Arc<Config>,
    pub(crate) queue: Rc<Pool>,
    pub(crate) directory: Client<auth::Answer>,
    draining: Cell<bool>,
    drain: Notify,
    scratch: RefCell<Box<[u8]>>,
}

impl Worker {
    pub(crate) fn new(protocol: Protocol, config: Config, queue: Pool, directory: Client<auth::Answer>) -> Self {
        Self {
            protocol,
            config: Arc::new(config),
            queue: Rc::new(queue),
            directory,
            draining: Cell::new(false),
            drain: Notify::new(),
            scratch: RefCell::new(vec![0; SCRATCH_LEN].into()),
        }
    }

    /// Sessions that are between messages end now, the others after their message.
    pub(crate) fn begin_to_drain(&self) {
        self.draining.set(true);
        self.drain.notify_waiters();
    }
}

/// One connection, from its first byte to the line in the log.
pub(crate) async fn serve(worker: Rc<Worker>, stream: TcpStream, peer: Peer, _place: Place) {
    let machine = Machine::new(worker.protocol, Arc::clone(&worker.config), peer);
    let (questions, asks_until) = (Vec::new(), None);
    let mut talk = Talk { worker, stream, machine, draft: None, questions, asks_until, verdict: None, is_told: false };
    let mut actions = Vec::new();
    let mut is_sent = true;
    while talk.machine.end().is_none() {
        is_sent = talk.carry_out(&mut actions).await;
        if !is_sent {
            talk.machine.step(Input::Closed, &mut actions);
        } else {
            talk.next(&mut actions).await;
        }
    }
    is_sent = is_sent && talk.carry_out(&mut actions).await;
    log_line(format_args!("{}", talk.machine.end_line()));
    let _ = talk.stream.shutdown().await;
    if is_sent && talk.machine.end() != Some(End::Gone) {
        let _ = timeout(LINGER_MAX, talk.linger()).await;
    }
}

struct Talk {
    worker: Rc<Worker>,
    stream: TcpStream,
    machine: Machine,
    draft: Option<Box<Draft>>,
    questions: Vec<(u32, Address, u64)>,
    /// The time until which is asked about the recipients of the message under way; already over where the directory did not answer.
    asks_until: Option<Instant>,
    /// Of the message that was committed.
    verdict: Option<Verdict>,
    /// Told that the system goes down.
    is_told: bool,
}

impl Talk {
    /// False if the client takes no answer.
    async fn carry_out(&mut self, actions: &mut Vec<Action>) -> bool {
        for action in std::mem::take(actions) {
            match action {
                Action::Begin => {
                    self.asks_until = None;
                    let mut draft = Box::new(Draft::new(Rc::clone(&self.worker.queue)));
                    draft.item(&begin()).await;
                    self.draft = Some(draft);
                }
                Action::Text(text) => {
                    if let Some(draft) = &mut self.draft {
                        draft.data(&text).await;
                    }
                }
                Action::CheckRecipient { question, recipient, size } => self.questions.push((question, recipient, size)),
                Action::Recipient(recipient) => self.item(&Item::Recipient(recipient)).await,
                Action::Commit(commit) => {
                    self.item(&from(&commit)).await;
                    if let Some(draft) = self.draft.take() {
                        self.verdict = Some(Box::pin(draft.commit()).await);
                    }
                }
                Action::Abandon => self.draft = None,
                Action::Answer(bytes) => {
                    if !matches!(timeout(WRITE_DEADLINE, self.stream.write_all(&bytes)).await, Ok(Ok(()))) {
                        return false;
                    }
                }
                Action::Log(line) => log_line(format_args!("{line}")),
                Action::Close => {}
            }
        }
        true
    }

    async fn item(&mut self, item: &Item<'static>) {
        if let Some(draft) = &mut self.draft {
            draft.item(item).await;
        }
    }

    /// Waits for what the machine needs next, and gives it that.
    async fn next(&mut self, actions: &mut Vec<Action>) {
        if let Some(verdict) = self.verdict.take() {
            return self.machine.step(Input::Queue(queue_answer(verdict)), actions);
        }
        if !self.questions.is_empty() {
            return self.ask(actions).await;
        }
        self.read(actions).await;
    }

    /// Asks the directory, several questions at a time. Where one of them has no answer, nobody is asked any more about the message: its
    /// client would have given up long before the last answer, and would send again what is taken in the end.
    async fn ask(&mut self, actions: &mut Vec<Action>) {
        let left = self.machine.left().min(ASKING_MAX);
        let until = *self.asks_until.get_or_insert_with(|| Instant::now() + left);
        let asks = Instant::now() < until;
        let asked: Vec<_> = std::mem::take(&mut self.questions)
            .into_iter()
            .map(|(question, recipient, size)| {
                let directory = self.worker.directory.clone();
                let task = asks.then(|| spawn_local(async move { check(&directory, recipient, size).await }));
                (question, task)
            })
            .collect();
        for (question, task) in asked {
            let answer = match task {
                Some(task) => timeout_at(until, task).await.ok().and_then(Result::ok).flatten(),
                None => None,
            };
            if answer.is_none() {
                self.asks_until = Some(Instant::now());
            }
            self.machine.step(Input::Recipient { question, answer: answer.unwrap_or(RecipientAnswer::Temporary) }, actions);
        }
    }

    /// Bytes from the client, its end, the deadline, or the end of the system.
    async fn read(&mut self, actions: &mut Vec<Action>) {
        let drained = self.worker.drain.notified();
        if self.worker.draining.get() && !self.is_told {
            self.is_told = true;
            return self.machine.step(Input::Drain, actions);
        }
        let left = self.machine.left();
        tokio::select! {
            biased;
            ready = self.stream.readable() => {
                let mut scratch = self.worker.scratch.borrow_mut();
                let read = ready.and_then(|()| self.stream.try_read(&mut scratch));
                match read {
                    Ok(len @ 1..) => self.machine.step(Input::Bytes(scratch.get(..len).unwrap_or_default()), actions),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => self.machine.step(Input::Closed, actions),
                }
            }
            () = sleep(left) => self.machine.step(Input::Deadline, actions),
            // The flag is looked at when this is called again.
            () = drained => {}
        }
    }

    /// Reads on without looking: to close over unread input would take the last answer back (RFC 1122 §4.2.2.13).
    async fn linger(&mut self) {
        while self.stream.readable().await.is_ok() {
            match self.stream.try_read(&mut self.worker.scratch.borrow_mut()) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            }
        }
    }
}

/// What the directory says; `None` when it does not answer in time.
async fn check(directory: &Client<auth::Answer>, address: Address, size: u64) -> Option<RecipientAnswer> {
    match directory.ask(|id| question(id, address, size)).await {
        Ok((auth::Answer::Recipient { verdict, .. }, _)) => Some(recipient_answer(&verdict)),
        _ => None,
    }
}
