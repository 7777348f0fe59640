//! The driver of one session in the service face: carries out what the machine says.
//!
//! Guarantees: answers are sent before the client is waited for; it is not read from while a question is open; an idle session
//! holds a socket, the machine's state and a timer, no buffer.

use crate::conversation::{Machine, Protocol, begin, from, queue_answer, recipient_answer};
use ipc::auth;
use ipc::queue::Item;
use ipc_async::Client;
use qmtp::exchange::{Action, Config, End, Input, Peer, WRITE_DEADLINE};
use reception::admission::Place;
use reception::directory::question;
use reception::queue::{Draft, Pool};
use reception::{Verdict, log_line};
use smtp::server::{QUESTIONS_MAX, RecipientAnswer};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
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
    let mut talk = Talk { worker, stream, machine, draft: None, questions: Vec::new(), verdict: None, is_told: false };
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

    /// Asks the directory, several questions at a time.
    async fn ask(&mut self, actions: &mut Vec<Action>) {
        let mut questions = std::mem::take(&mut self.questions).into_iter().peekable();
        while questions.peek().is_some() {
            let asked: Vec<_> = questions
                .by_ref()
                .take(QUESTIONS_MAX)
                .map(|(question, recipient, size)| {
                    let directory = self.worker.directory.clone();
                    (question, spawn_local(async move { check(&directory, recipient, size).await }))
                })
                .collect();
            for (question, task) in asked {
                let answer = task.await.unwrap_or(RecipientAnswer::Temporary);
                self.machine.step(Input::Recipient { question, answer }, actions);
            }
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

/// What the directory says; cannot-tell when it does not answer in time.
async fn check(directory: &Client<auth::Answer>, address: Address, size: u64) -> RecipientAnswer {
    match directory.ask(|id| question(id, address, size)).await {
        Ok((auth::Answer::Recipient { verdict, .. }, _)) => recipient_answer(&verdict),
        _ => RecipientAnswer::Temporary,
    }
}
