//! The accounts in PostgreSQL: the statements of `accounts-sql`, by number, for qmail-auth (`ipc::accounts`).
//!
//! Guarantees: no text that a caller sent becomes a statement, its values are bound; every question has its answer within [`REQUEST_MAX`]; at
//! most [`READERS`] and [`WRITERS`] connections; a server that does not answer is asked by nobody but [`Postgres::watch`] until it does, and all
//! others hear at once that it does not. A transaction whose asker is gone, or that takes too long, has changed nothing. Whoever changes the
//! database, this host or another, those who follow hear of it within [`LOOK_EVERY`] and the time that looking takes.

mod schema;
mod session;

use crate::dial::Dialer;
use crate::{REQUEST_MAX, Trouble, log};
use accounts_sql::Statement;
use control::accounts::Postgres as Config;
use control::{ControlError, Root};
use ipc::DATAGRAM_LEN_MAX;
use ipc::Message as _;
use ipc::accounts::{Answer, CALLS_MAX, Call, Request, Row};
use ipc_async::{Listener, Packets};
use session::Session;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};
use wire::Secret;

/// Connections that share what is read; on each of them questions follow one another without waiting for answers.
pub const READERS: usize = 4;
/// Connections for transactions, of which qmail-auth has one at a time.
pub const WRITERS: usize = 4;
/// How often the generation in the database is looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two attempts at a server that does not answer.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Questions of one connection under way; further ones wait in the socket.
const REQUESTS_MAX: usize = 256;
/// Of an answer, beside its rows.
const OVERHEAD: usize = 64;

/// The database.
pub struct Postgres {
    root: Root,
    config: Config,
    password: Option<Secret>,
    dialer: Dialer,
    readers: [Mutex<Option<Rc<Session>>>; READERS],
    next: Cell<usize>,
    idle: RefCell<Vec<Session>>,
    writers: Semaphore,
    /// Why it does not answer, if it does not.
    down: RefCell<Option<String>>,
    /// Counts changes that were seen.
    changes: watch::Sender<u64>,
}

impl Postgres {
    /// Reads the password that control/accounts asks for. `dialer` is made for the file of authorities.
    ///
    /// # Errors
    /// A file is missing or not as secret as it must be.
    pub fn read(
        root: &Root,
        config: Config,
        dialer: impl FnOnce(Option<&std::path::Path>) -> io::Result<Dialer>,
    ) -> Result<Self, ControlError> {
        let password = config.password(root)?;
        let dialer = dialer(config.cafile.as_deref())
            .map_err(|error| ControlError::new(&root.control_file(control::accounts::FILE), format!("`sslrootcert`: {error}")))?;
        Ok(Self {
            root: root.clone(),
            config,
            password,
            dialer,
            readers: [const { Mutex::const_new(None) }; READERS],
            next: Cell::new(0),
            idle: RefCell::default(),
            writers: Semaphore::new(WRITERS),
            down: RefCell::default(),
            changes: watch::Sender::new(0),
        })
    }

    /// Serves connections for ever; `callers` says which uids may ask.
    ///
    /// # Errors
    /// The listening socket is gone.
    pub async fn serve(self: &Rc<Self>, listener: &Listener, callers: impl Fn(u32) -> bool) -> io::Result<()> {
        loop {
            let connection = listener.accept().await?;
            if connection.peer().is_ok_and(|peer| callers(peer.uid)) {
                spawn_local(Rc::clone(self).talk(Rc::new(connection)));
            }
        }
    }

    /// Looks at the generation for ever, and at a server that does not answer until it does.
    pub async fn watch(&self) {
        let (mut seen, mut pause) = (None, PAUSE_MIN);
        loop {
            match self.look().await {
                Ok(generation) => {
                    if self.down.take().is_some() {
                        log(&format!("{} answers again", self.config));
                    }
                    if seen.replace(generation) != Some(generation) {
                        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
                    }
                    pause = PAUSE_MIN;
                    sleep(LOOK_EVERY).await;
                }
                Err(trouble) => {
                    self.failed(&trouble);
                    sleep(pause).await;
                    pause = pause.saturating_mul(2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn look(&self) -> Result<i64, Trouble> {
        let looked = timeout(REQUEST_MAX, async {
            let session = self.connected(0).await?;
            session.generation().await
        });
        looked.await.unwrap_or_else(|_| Err("no answer in time".into()))
    }

    /// From now on nobody waits for it.
    fn failed(&self, trouble: &Trouble) {
        for reader in &self.readers {
            if let Ok(mut reader) = reader.try_lock() {
                *reader = None;
            }
        }
        self.idle.borrow_mut().clear();
        let before = self.down.replace(Some(trouble.0.clone()));
        if before.as_deref() != Some(trouble.0.as_str()) {
            log(&format!("{}: {}", self.config, trouble.0));
        }
    }

    /// The session in a place, made if need be.
    async fn connected(&self, at: usize) -> Result<Rc<Session>, Trouble> {
        let place = self.readers.get(at).ok_or_else(|| Trouble::from("no such connection"))?;
        let mut place = place.lock().await;
        if let Some(session) = place.as_ref().filter(|session| session.is_alive()) {
            return Ok(Rc::clone(session));
        }
        let session = Rc::new(Session::open(&self.root, &self.config, self.password.as_ref(), &self.dialer).await?);
        *place = Some(Rc::clone(&session));
        Ok(session)
    }

    async fn talk(self: Rc<Self>, connection: Rc<Packets>) {
        let places = Arc::new(Semaphore::new(REQUESTS_MAX));
        let (mut transaction, mut follower) = (None, Follower(None));
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let Ok(Some((datagram, _))) = connection.recv().await else { break };
            // It may hold hashes of passwords.
            let Ok(request) = Request::decode(&zeroize::Zeroizing::new(datagram)) else { break };
            match request {
                Request::Read { id, calls } => {
                    let (postgres, connection) = (Rc::clone(&self), Rc::clone(&connection));
                    spawn_local(async move {
                        let answer = postgres.read_all(id, calls).await;
                        send(&connection, &answer, id).await;
                        drop(place);
                    });
                }
                Request::Follow { id } => {
                    send(&connection, &Answer::Done { id, rows: Vec::new(), changed: 0 }, id).await;
                    follower = Follower(Some(spawn_local(follow(Rc::clone(&connection), self.changes.subscribe()))));
                }
                // A transaction has its connection to itself, and who asks waits for each answer.
                Request::Begin { id } | Request::Run { id, .. } | Request::End { id, .. } => {
                    let answer = self.transact(&mut transaction, request).await;
                    send(&connection, &answer, id).await;
                }
            }
        }
        drop(follower);
    }

    async fn read_all(&self, id: u64, calls: Vec<Call>) -> Answer {
        if let Some(text) = self.down.borrow().as_ref() {
            return unavailable(id, text);
        }
        let Some(calls) = understood(calls).filter(|calls| calls.iter().all(|(statement, _)| statement.is_read())) else {
            return unavailable(id, "it was asked what it does not know");
        };
        let at = self.next.replace((self.next.get().saturating_add(1)) % READERS);
        let asked = timeout(REQUEST_MAX, self.rows(at, &calls)).await;
        match asked.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok(results) => Answer::Rows { id, results },
            Err(trouble) => {
                self.failed(&trouble);
                unavailable(id, &trouble.0)
            }
        }
    }

    /// A server that was started anew has ended the connections that were there: then there is a new one, once.
    async fn rows(&self, at: usize, calls: &[(Statement, Row)]) -> Result<Vec<Vec<Row>>, Trouble> {
        let session = self.connected(at).await?;
        match session.read_all(calls).await {
            Err(_) if !session.is_alive() => self.connected(at).await?.read_all(calls).await,
            answer => answer,
        }
    }

    /// What fails ends the transaction, and its connection with it: the server undoes it.
    async fn transact<'a>(&'a self, open: &mut Option<Transaction<'a>>, request: Request) -> Answer {
        let (Request::Read { id, .. }
        | Request::Begin { id }
        | Request::Run { id, .. }
        | Request::End { id, .. }
        | Request::Follow { id }) = request;
        let done = timeout(REQUEST_MAX, async {
            match request {
                Request::Begin { .. } if open.is_none() => {
                    *open = Some(self.begin().await?);
                    Ok((Vec::new(), 0))
                }
                Request::Run { call, .. } => {
                    let transaction = open.as_ref().ok_or_else(|| Trouble::from("the transaction has ended"))?;
                    let calls = understood(vec![call]);
                    let call = calls.as_ref().and_then(|calls| calls.first());
                    let (statement, values) = call.ok_or_else(|| Trouble::from("it was asked what it does not know"))?;
                    transaction.session.run(*statement, values).await
                }
                Request::End { commit, .. } => {
                    let transaction = open.take().ok_or_else(|| Trouble::from("the transaction has ended"))?;
                    transaction.session.end(commit).await?;
                    self.idle.borrow_mut().push(transaction.session);
                    Ok((Vec::new(), 0))
                }
                _ => Err("there is a transaction already".into()),
            }
        });
        match done.await.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok((rows, changed)) => Answer::Done { id, rows, changed },
            Err(trouble) => {
                *open = None;
                unavailable(id, &trouble.0)
            }
        }
    }

    async fn begin(&self) -> Result<Transaction<'_>, Trouble> {
        if let Some(text) = self.down.borrow().as_ref() {
            return Err(Trouble(text.clone()));
        }
        let place = self.writers.acquire().await.map_err(|_| Trouble::from("it ends"))?;
        loop {
            // One that was kept may have ended meanwhile.
            let kept = self.idle.borrow_mut().pop();
            let Some(session) = kept else { break };
            if session.is_alive() && session.begin().await.is_ok() {
                return Ok(Transaction { session, _place: place });
            }
        }
        let session = Session::open(&self.root, &self.config, self.password.as_ref(), &self.dialer).await?;
        session.begin().await?;
        Ok(Transaction { session, _place: place })
    }
}

struct Transaction<'a> {
    session: Session,
    _place: tokio::sync::SemaphorePermit<'a>,
}

/// The statements with their values, if all are known.
fn understood(calls: Vec<Call>) -> Option<Vec<(Statement, Row)>> {
    if calls.len() > CALLS_MAX {
        return None;
    }
    let known = |call: Call| {
        let statement = Statement::numbered(call.statement)?;
        (statement.values() == call.values.len()).then_some((statement, call.values))
    };
    calls.into_iter().map(known).collect()
}

fn unavailable(id: u64, text: &str) -> Answer {
    Answer::Unavailable { id, text: ipc::clip(text.as_bytes()).into() }
}

async fn send(connection: &Packets, answer: &Answer, id: u64) {
    let datagram = zeroize::Zeroizing::new(answer.encode());
    // An asker who left wants no answer.
    let _ = match datagram.len() <= DATAGRAM_LEN_MAX.saturating_sub(OVERHEAD) {
        true => connection.send(&datagram).await,
        false => connection.send(&Answer::TooLong { id }.encode()).await,
    };
}

/// The task that tells of changes, which ends with its connection.
struct Follower(Option<JoinHandle<()>>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn follow(connection: Rc<Packets>, mut changes: watch::Receiver<u64>) {
    while changes.changed().await.is_ok() && connection.send(&Answer::Changed {}.encode()).await.is_ok() {}
}
