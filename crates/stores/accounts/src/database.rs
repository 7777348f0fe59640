//! A database that the accounts are in: it runs the statements of `accounts-sql`, alone or in a transaction.

use crate::{Error, Generation};
use accounts_sql::Statement;
pub use ipc::accounts::{Row, Value};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the store of accounts needs of a database. Transactions come one after the other, and what is read in one counts until its end.
///
/// # Errors
/// Each function: temporary. A transaction in which something failed can only be ended.
pub trait Database {
    /// The rows of a statement that changes nothing; in the transaction, if there is one.
    fn read(&self, statement: Statement, values: &[Value]) -> Result<Vec<Row>, Error>;
    fn begin(&self) -> Result<(), Error>;
    /// Runs a statement in the transaction: how many rows it changed.
    fn run(&self, statement: Statement, values: &[Value]) -> Result<u64, Error>;
    /// Ends the transaction. After `Ok` with `commit` what it changed is durable; without, nothing was changed.
    fn end(&self, commit: bool) -> Result<(), Error>;
    /// Another number than before if others may have changed anything.
    fn others(&self) -> Result<u64, Error>;
}

/// One that somebody else holds, too: nobody may hold the lock while the store is asked.
impl<T: Database> Database for Arc<Mutex<T>> {
    fn read(&self, statement: Statement, values: &[Value]) -> Result<Vec<Row>, Error> {
        lock(self).read(statement, values)
    }
    fn begin(&self) -> Result<(), Error> {
        lock(self).begin()
    }
    fn run(&self, statement: Statement, values: &[Value]) -> Result<u64, Error> {
        lock(self).run(statement, values)
    }
    fn end(&self, commit: bool) -> Result<(), Error> {
        lock(self).end(commit)
    }
    fn others(&self) -> Result<u64, Error> {
        lock(self).others()
    }
}

/// Whoever panicked with the lock left whole values.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A transaction; dropped without [`Transaction::commit`] it has changed nothing.
pub(crate) struct Transaction<'a> {
    database: &'a dyn Database,
    is_open: bool,
}

impl<'a> Transaction<'a> {
    pub(crate) fn begin(database: &'a dyn Database) -> Result<Self, Error> {
        database.begin()?;
        Ok(Self { database, is_open: true })
    }

    pub(crate) fn run(&self, statement: Statement, values: &[Value]) -> Result<u64, Error> {
        self.database.run(statement, values)
    }

    pub(crate) fn commit(mut self) -> Result<(), Error> {
        self.is_open = false;
        self.database.end(true)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.is_open {
            // If even that fails, the database ends it: nothing was committed.
            let _ = self.database.end(false);
        }
    }
}

/// The generation of a store that changed `own` times.
pub(crate) fn generation(database: &dyn Database, own: u64) -> Result<Generation, Error> {
    Ok(Generation(own, database.others()?))
}

pub(crate) fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.to_vec().into())
}

pub(crate) fn text(text: &str) -> Value {
    Value::Text(text.to_owned().into())
}

pub(crate) fn flag(flag: bool) -> Value {
    Value::Int(i64::from(flag))
}

/// What was checked before fits.
pub(crate) fn int(number: u64) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

pub(crate) fn count(number: usize) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

pub(crate) fn or_null(value: Option<Value>) -> Value {
    value.unwrap_or(Value::Null)
}

/// The columns of a row; what is of another type than the tables say is damage.
pub(crate) trait Columns {
    fn value(&self, at: usize) -> Result<&Value, Error>;

    fn bytes(&self, at: usize) -> Result<&[u8], Error> {
        match self.value(at)? {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(Error::Damaged("a value that must be bytes")),
        }
    }

    fn text(&self, at: usize) -> Result<&str, Error> {
        self.maybe_text(at)?.ok_or(Error::Damaged("a value that must be text"))
    }

    fn maybe_text(&self, at: usize) -> Result<Option<&str>, Error> {
        match self.value(at)? {
            Value::Text(text) => Ok(Some(text)),
            Value::Null => Ok(None),
            _ => Err(Error::Damaged("a value that must be text")),
        }
    }

    fn maybe_number(&self, at: usize) -> Result<Option<u64>, Error> {
        match self.value(at)? {
            Value::Int(number) => u64::try_from(*number).map(Some).map_err(|_| Error::Damaged("a negative number")),
            Value::Null => Ok(None),
            _ => Err(Error::Damaged("a value that must be a number")),
        }
    }

    fn number(&self, at: usize) -> Result<u64, Error> {
        self.maybe_number(at)?.ok_or(Error::Damaged("a value that must be a number"))
    }

    fn maybe_u32(&self, at: usize) -> Result<Option<u32>, Error> {
        let number = self.maybe_number(at)?.map(u32::try_from).transpose();
        number.map_err(|_| Error::Damaged("a number that is too large"))
    }

    fn flag(&self, at: usize) -> Result<bool, Error> {
        Ok(self.number(at)? != 0)
    }
}

impl Columns for [Value] {
    fn value(&self, at: usize) -> Result<&Value, Error> {
        self.get(at).ok_or(Error::Damaged("a row without all its columns"))
    }
}
