//! A SQLite file as [`Database`]: WAL, synchronous=FULL, one connection, prepared statements only.

use crate::Error;
use crate::database::{Database, Row, Value};
use accounts_sql::{Statement, schema};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;
use std::time::Duration;

/// How long a statement waits for a lock that only a person's sqlite3 shell could hold.
const BUSY: Duration = Duration::from_secs(2);
/// Prepared statements that are kept; there are fewer.
const STATEMENTS: usize = 64;

/// An open file.
#[derive(Debug)]
pub struct Sqlite(Connection);

impl Sqlite {
    /// Opens or creates the database; its directory must exist.
    ///
    /// # Errors
    /// Temporary: out of reach, damaged, or of a newer version.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let connection = Connection::open(path)?;
        let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(Error::Damaged("it cannot use a write-ahead log"));
        }
        Self::prepare(connection)
    }

    /// A database that is gone with the value.
    ///
    /// # Errors
    /// Out of memory.
    pub fn in_memory() -> Result<Self, Error> {
        Self::prepare(Connection::open_in_memory()?)
    }

    fn prepare(mut connection: Connection) -> Result<Self, Error> {
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        // FULL: a commit is synced before it returns. Sorting in memory: the sandbox has no directory for temporary files.
        connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;")?;
        migrate(&mut connection)?;
        Ok(Self(connection))
    }
}

impl Database for Sqlite {
    fn read(&self, statement: Statement, values: &[Value]) -> Result<Vec<Row>, Error> {
        let mut statement = self.0.prepare_cached(statement.sql())?;
        let columns = statement.column_count();
        let mut rows = statement.query(rusqlite::params_from_iter(values.iter().map(Bound)))?;
        let mut out = Vec::new();
        while let Some(row) = rows.next()? {
            out.push((0..columns).map(|at| Ok(value(row.get_ref(at)?))).collect::<Result<Row, rusqlite::Error>>()?);
        }
        Ok(out)
    }

    fn begin(&self) -> Result<(), Error> {
        Ok(self.0.execute_batch("BEGIN IMMEDIATE")?)
    }

    fn run(&self, statement: Statement, values: &[Value]) -> Result<u64, Error> {
        let changed = self.0.prepare_cached(statement.sql())?.execute(rusqlite::params_from_iter(values.iter().map(Bound)))?;
        Ok(u64::try_from(changed).unwrap_or(u64::MAX))
    }

    fn end(&self, commit: bool) -> Result<(), Error> {
        let ended = self.0.execute_batch(if commit { "COMMIT" } else { "ROLLBACK" });
        if ended.is_err() && !self.0.is_autocommit() {
            // A commit that failed leaves the transaction open.
            self.0.execute_batch("ROLLBACK")?;
        }
        Ok(ended?)
    }

    fn others(&self) -> Result<u64, Error> {
        let version: i64 = self.0.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        Ok(version.cast_unsigned())
    }
}

struct Bound<'a>(&'a Value);

impl rusqlite::ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Int(number) => ValueRef::Integer(*number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// No table has a column for fractions, and text that is none is told from the columns' types later.
fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null | ValueRef::Real(_) => Value::Null,
        ValueRef::Integer(number) => Value::Int(number),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::Text(text.to_owned().into()),
            Err(_) => Value::Bytes(bytes.to_vec().into()),
        },
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec().into()),
    }
}

/// Brings the database to the present version, in one transaction; an up-to-date one is not written to.
fn migrate(connection: &mut Connection) -> Result<(), Error> {
    let known = i64::try_from(schema::SQLITE.len()).unwrap_or(i64::MAX);
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > known {
        return Err(Error::Newer { found, known });
    }
    let done = usize::try_from(found).map_err(|_| Error::Damaged("negative version"))?;
    if found == known {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in schema::SQLITE.iter().skip(done) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    Ok(transaction.commit()?)
}
