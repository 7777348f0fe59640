//! The tables, and how an older database becomes the present one: one step for each `user_version`.
//!
//! Names and domains are BLOBs: addresses are bytes, and SQLite must not fold or compare them as text. `account.forward` holds its
//! addresses a line each; they hold no line end themselves.

use crate::Error;
use rusqlite::Connection;

/// Step n brings version n to version n + 1. Steps that were released never change.
pub(crate) const STEPS: &[&str] = &[
    "
    CREATE TABLE account (
        domain BLOB NOT NULL,
        name BLOB NOT NULL,
        password TEXT NOT NULL,
        quota_bytes INTEGER NOT NULL DEFAULT 0 CHECK (quota_bytes >= 0),
        suspended INTEGER NOT NULL DEFAULT 0 CHECK (suspended IN (0, 1)),
        created_s INTEGER NOT NULL,
        PRIMARY KEY (domain, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE alias (
        domain BLOB NOT NULL,
        name BLOB NOT NULL,
        position INTEGER NOT NULL,
        target BLOB NOT NULL,
        PRIMARY KEY (domain, name, position)
    ) STRICT, WITHOUT ROWID;
    ",
    crate::sqlite::SECRETS_STEP,
    "
    ALTER TABLE account ADD COLUMN quota_messages INTEGER NOT NULL DEFAULT 0 CHECK (quota_messages >= 0);
    ALTER TABLE account ADD COLUMN refuses_mail INTEGER NOT NULL DEFAULT 0 CHECK (refuses_mail IN (0, 1));
    ALTER TABLE account ADD COLUMN forward BLOB NOT NULL DEFAULT x'';
    ALTER TABLE account ADD COLUMN keeps_copy INTEGER NOT NULL DEFAULT 0 CHECK (keeps_copy IN (0, 1));
    ALTER TABLE account ADD COLUMN hour_max INTEGER CHECK (hour_max >= 0);
    ALTER TABLE account ADD COLUMN day_max INTEGER CHECK (day_max >= 0);
    ALTER TABLE account ADD COLUMN vacation_text TEXT;
    ALTER TABLE account ADD COLUMN vacation_subject TEXT;
    ALTER TABLE account ADD COLUMN vacation_from_s INTEGER;
    ALTER TABLE account ADD COLUMN vacation_until_s INTEGER;
    ALTER TABLE account ADD COLUMN vacation_days INTEGER;
    CREATE TABLE domain (
        domain BLOB NOT NULL PRIMARY KEY,
        alias_of BLOB,
        default_quota_bytes INTEGER NOT NULL DEFAULT 0 CHECK (default_quota_bytes >= 0),
        default_quota_messages INTEGER NOT NULL DEFAULT 0 CHECK (default_quota_messages >= 0),
        quota_bytes INTEGER NOT NULL DEFAULT 0 CHECK (quota_bytes >= 0),
        users_max INTEGER NOT NULL DEFAULT 0 CHECK (users_max >= 0)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE administrator (
        domain BLOB NOT NULL,
        account_domain BLOB NOT NULL,
        account_name BLOB NOT NULL,
        PRIMARY KEY (domain, account_domain, account_name)
    ) STRICT, WITHOUT ROWID;
    ",
    "CREATE INDEX alias_target ON alias (lower(CAST(target AS TEXT)));",
];

/// Brings the database to the present version, in one transaction; an up-to-date one is not written to.
///
/// # Errors
/// [`Error::Newer`], or the store's.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), Error> {
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > known {
        return Err(Error::Newer { found, known });
    }
    let done = usize::try_from(found).map_err(|_| Error::Damaged("negative version"))?;
    if found == known {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for step in STEPS.iter().skip(done) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    Ok(transaction.commit()?)
}
