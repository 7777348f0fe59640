//! A database behind qmail-authnet as [`Database`]: statements travel by number over accounts.sock (`ipc::accounts`).
//!
//! Guarantees: a question ends within [`WAIT_MAX`], and without an answer it is an error that is temporary, never "nobody". What was read is
//! remembered for a minute if there was a row and for five seconds if there was none (hashes and secrets: five seconds in any case), never longer
//! than until a change is heard of, and not at all while changes would not be heard of. A transaction reads from the database alone.
//!
//! A caller that must not wait says beforehand what it will ask: [`Remote::plan`], then the questions as if there were no answers, then
//! [`Remote::wanted`]: what is not known. It gets that its own way and hands it in by [`Remote::learn`]. What was not foreseen is asked here, and
//! waited for.

use crate::Error;
use crate::database::{Database, Row, Value};
use accounts_sql::Statement;
use ipc::accounts::{Answer, CALLS_MAX, Call, Request};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use sys::{Received, Seqpacket};
use zeroize::Zeroizing;

/// For one answer: a little more than qmail-authnet takes.
pub const WAIT_MAX: Duration = Duration::from_secs(5);
const YES_FRESH: Duration = Duration::from_secs(60);
const NO_FRESH: Duration = Duration::from_secs(5);
/// Results that are remembered, and their bytes. One more empties the memory.
const KNOWN_MAX: usize = 32_768;
const KNOWN_LEN_MAX: usize = 32 << 20;

/// How questions are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// By what is known, else by the database.
    Ask,
    /// By what is known; what is not is noted, and answered as if there were nothing.
    Plan,
    /// By what is known; the rest is out of reach.
    Known,
    /// By the database.
    Fresh,
}

/// What a question was, as the bytes that it has in a datagram.
type Key = Vec<u8>;

struct Known {
    rows: Vec<Row>,
    until: Duration,
}

/// The database, as qmail-auth has it.
pub struct Remote {
    run: Arc<OwnedFd>,
    path: &'static str,
    connection: RefCell<Option<Seqpacket>>,
    next_id: Cell<u64>,
    in_transaction: Cell<bool>,
    mode: Cell<Mode>,
    wanted: RefCell<Vec<Call>>,
    known: RefCell<HashMap<Key, Known>>,
    known_len: Cell<usize>,
    /// What counts for one request alone.
    once: RefCell<HashMap<Key, Vec<Row>>>,
    /// Changes that were heard of.
    changes: Cell<u64>,
    /// Would a change be heard of?
    follows: Cell<bool>,
    /// Why nothing more is to be had now.
    trouble: RefCell<String>,
}

impl Remote {
    /// `run` is the directory of the sockets, `path` the socket below it. Nothing is asked yet.
    #[must_use]
    pub fn new(run: Arc<OwnedFd>, path: &'static str) -> Self {
        Self {
            run,
            path,
            connection: RefCell::default(),
            next_id: Cell::new(1),
            in_transaction: Cell::new(false),
            mode: Cell::new(Mode::Ask),
            wanted: RefCell::default(),
            known: RefCell::default(),
            known_len: Cell::new(0),
            once: RefCell::default(),
            changes: Cell::new(0),
            follows: Cell::new(false),
            trouble: RefCell::default(),
        }
    }

    /// From now on questions are noted.
    pub fn plan(&self) {
        self.wanted.borrow_mut().clear();
        self.mode.set(Mode::Plan);
    }

    /// The end of a plan: what is not known of it.
    #[must_use]
    pub fn wanted(&self) -> Vec<Call> {
        self.mode.set(Mode::Ask);
        self.wanted.take()
    }

    /// Until [`Remote::ask_again`] only what is known is answered; all else is out of reach, and `why` says so.
    pub fn ask_nobody(&self, why: &str) {
        self.trouble.replace(why.to_owned());
        self.mode.set(Mode::Known);
    }

    /// Until [`Remote::ask_again`] the database is asked for everything.
    pub fn be_fresh(&self) {
        self.mode.set(Mode::Fresh);
    }

    /// From now on questions are answered by what is known, else by the database.
    pub fn ask_again(&self) {
        self.mode.set(Mode::Ask);
    }

    /// Changes so far: an answer to a question of before the last one is not remembered.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// The answers to what was [`Remote::wanted`] when there had been so many changes. They count until [`Remote::tidy`] in any case.
    pub fn learn(&self, calls: &[Call], results: &[Vec<Row>], changes: u64) {
        for (call, rows) in calls.iter().zip(results) {
            if let Some(statement) = Statement::numbered(call.statement) {
                self.once.borrow_mut().insert(key(call), rows.clone());
                self.remember(statement, key(call), rows.clone(), changes);
            }
        }
    }

    /// The request that something was learnt for is answered.
    pub fn tidy(&self) {
        self.once.borrow_mut().clear();
    }

    /// Something changed: nothing that is known counts.
    pub fn forget(&self) {
        self.changes.set(self.changes.get().wrapping_add(1));
        self.known.borrow_mut().clear();
        self.known_len.set(0);
    }

    /// Whether changes are heard of.
    pub fn follows(&self, follows: bool) {
        self.follows.set(follows);
        self.forget();
    }

    fn remember(&self, statement: Statement, key: Key, rows: Vec<Row>, changes: u64) {
        let now = sys::clock::boottime();
        let fresh = match statement {
            // Never another one.
            Statement::InstallationKey if !rows.is_empty() => Duration::MAX,
            _ if changes != self.changes.get() || !self.follows.get() => return,
            Statement::TakesMail | Statement::Alias | Statement::AliasOf | Statement::AliasesTo | Statement::Account
                if !rows.is_empty() =>
            {
                YES_FRESH
            }
            _ => NO_FRESH,
        };
        let mut known = self.known.borrow_mut();
        let len = rows.iter().flatten().fold(key.len(), |len, value| len.saturating_add(value.len()));
        self.known_len.set(self.known_len.get().saturating_add(len));
        if known.len() >= KNOWN_MAX || self.known_len.get() > KNOWN_LEN_MAX {
            known.clear();
            self.known_len.set(len);
        }
        known.insert(key, Known { rows, until: now.saturating_add(fresh) });
    }

    /// What is known, if it counts.
    fn recall(&self, key: &Key) -> Option<Vec<Row>> {
        if let Some(rows) = self.once.borrow().get(key) {
            return Some(rows.clone());
        }
        let known = self.known.borrow();
        known.get(key).filter(|known| sys::clock::boottime() < known.until).map(|known| known.rows.clone())
    }

    fn id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id.wrapping_add(1));
        id
    }

    /// Asks and waits. A connection that ended meanwhile (qmail-authnet was started anew) is made again, once, but not in a transaction.
    fn ask(&self, request: &Request) -> Result<Answer, Error> {
        let datagram = Zeroizing::new(request.encode());
        if datagram.len() > DATAGRAM_LEN_MAX {
            return Err(Error::Remote("a value is too long to be sent".to_owned()));
        }
        let was_connected = self.connection.borrow().is_some();
        let answer = match self.exchange(&datagram) {
            // Not one that took its time: whoever waits has waited long enough.
            Err(error) if was_connected && !self.in_transaction.get() && error.kind() != ErrorKind::WouldBlock => {
                self.exchange(&datagram)
            }
            answer => answer,
        };
        answer.map_err(|error| Error::Remote(format!("no answer from qmail-authnet: {error}")))
    }

    fn exchange(&self, datagram: &[u8]) -> io::Result<Answer> {
        let mut connection = self.connection.borrow_mut();
        let answer = self.try_exchange(&mut connection, datagram);
        if answer.is_err() {
            // An answer that comes too late must not be taken for another question's.
            *connection = None;
        }
        answer
    }

    fn try_exchange(&self, connection: &mut Option<Seqpacket>, datagram: &[u8]) -> io::Result<Answer> {
        let connection = match connection {
            Some(connection) => connection,
            None => {
                let made = Seqpacket::connect(self.run.as_fd(), self.path)?;
                made.set_deadline(WAIT_MAX)?;
                connection.insert(made)
            }
        };
        connection.send(datagram)?;
        let mut buf = Zeroizing::new(vec![0; DATAGRAM_LEN_MAX]);
        match connection.recv(&mut buf)? {
            Received::Datagram(len, _) => Ok(Answer::decode(buf.get(..len).unwrap_or_default())?),
            Received::End => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    fn rows(&self, call: Call) -> Result<Vec<Row>, Error> {
        match self.ask(&Request::Read { id: self.id(), calls: vec![call] })? {
            Answer::Rows { results, .. } => Ok(results.into_iter().next().unwrap_or_default()),
            other => Err(refused(other)),
        }
    }

    fn done(&self, request: &Request) -> Result<(Vec<Row>, u64), Error> {
        match self.ask(request)? {
            Answer::Done { rows, changed, .. } => Ok((rows, changed)),
            other => Err(refused(other)),
        }
    }
}

fn refused(answer: Answer) -> Error {
    Error::Remote(match answer {
        Answer::Unavailable { text, .. } => wire::escape::visible(&text),
        Answer::TooLong { .. } => "an answer is too long".to_owned(),
        _ => "an answer to something else".to_owned(),
    })
}

fn call(statement: Statement, values: &[Value]) -> Call {
    Call { statement: statement.number(), values: values.to_vec() }
}

fn key(call: &Call) -> Key {
    use ipc::field::Field as _;
    let mut out = Vec::new();
    call.put(&mut out);
    out
}

/// May it be remembered, and noted in a plan? Lists are not: they are long.
const fn is_of_one(statement: Statement) -> bool {
    matches!(
        statement,
        Statement::TakesMail
            | Statement::Alias
            | Statement::AliasOf
            | Statement::AliasesTo
            | Statement::Account
            | Statement::Credentials
            | Statement::AppPasswords
            | Statement::Secret
            | Statement::InstallationKey
    )
}

impl Database for Remote {
    fn read(&self, statement: Statement, values: &[Value]) -> Result<Vec<Row>, Error> {
        let call = call(statement, values);
        if self.in_transaction.get() {
            return self.done(&Request::Run { id: self.id(), call }).map(|(rows, _)| rows);
        }
        if !is_of_one(statement) || self.mode.get() == Mode::Fresh {
            return self.rows(call);
        }
        let key = key(&call);
        if let Some(rows) = self.recall(&key) {
            return Ok(rows);
        }
        match self.mode.get() {
            Mode::Plan => {
                let mut wanted = self.wanted.borrow_mut();
                if wanted.len() < CALLS_MAX && !wanted.contains(&call) {
                    wanted.push(call);
                }
                Ok(Vec::new())
            }
            Mode::Known => Err(Error::Remote(self.trouble.borrow().clone())),
            Mode::Ask | Mode::Fresh => {
                let changes = self.changes.get();
                let rows = self.rows(call)?;
                self.remember(statement, key, rows.clone(), changes);
                Ok(rows)
            }
        }
    }

    fn begin(&self) -> Result<(), Error> {
        self.done(&Request::Begin { id: self.id() })?;
        self.in_transaction.set(true);
        Ok(())
    }

    fn run(&self, statement: Statement, values: &[Value]) -> Result<u64, Error> {
        self.done(&Request::Run { id: self.id(), call: call(statement, values) }).map(|(_, changed)| changed)
    }

    fn end(&self, commit: bool) -> Result<(), Error> {
        let ended = self.done(&Request::End { id: self.id(), commit });
        self.in_transaction.set(false);
        if commit {
            // Even without an answer it may have been done.
            self.forget();
        }
        ended.map(drop)
    }

    fn others(&self) -> Result<u64, Error> {
        Ok(self.changes.get())
    }
}
