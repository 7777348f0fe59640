//! The tables of the database: made where there are none, brought up where they are older, left alone where they are newer.

use super::session::{LOCK, trouble};
use crate::{Trouble, log};
use accounts_sql::schema::{POSTGRES as STEPS, VERSION_TABLE};
use control::accounts::Postgres as Config;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

const VERSION: &str = "SELECT number FROM qmail_version";
/// Not `to_regclass`: what that remembers of before the lock does not count after it.
const HAS_VERSION: &str =
    "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class WHERE relname = 'qmail_version' AND pg_catalog.pg_table_is_visible(oid))";

/// In one transaction, while other hosts wait.
pub(super) async fn bring_up(client: &Client, config: &Config) -> Result<(), Trouble> {
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    if version(client, config).await? == known {
        return Ok(());
    }
    let said = |error: tokio_postgres::Error| match error.code() {
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            let Config { user, database, .. } = config;
            let text = format!(
                "may not make the tables: ALTER DATABASE {database} OWNER TO {user}, or have its owner run what `qmail accounts schema` prints"
            );
            Trouble::new(user, &text)
        }
        _ => trouble(&error),
    };
    client.batch_execute(&format!("BEGIN; {LOCK}; SET LOCAL statement_timeout = 0")).await.map_err(said)?;
    // Another host may have been faster.
    let found = version(client, config).await?;
    let done = usize::try_from(found).unwrap_or_default();
    for step in STEPS.iter().skip(done) {
        client.batch_execute(step).await.map_err(said)?;
    }
    let note = match found {
        0 => format!("{VERSION_TABLE}INSERT INTO qmail_version VALUES ({known}); COMMIT"),
        _ => format!("UPDATE qmail_version SET number = {known}; COMMIT"),
    };
    client.batch_execute(&note).await.map_err(said)?;
    if found < known {
        log(&format!("{config}: its tables are of version {known} now (before: {found})"));
    }
    Ok(())
}

/// 0: there are no tables.
async fn version(client: &Client, config: &Config) -> Result<i64, Trouble> {
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    let row = client.query_one(HAS_VERSION, &[]).await.map_err(|error| trouble(&error))?;
    if !row.try_get::<_, bool>(0).map_err(|error| trouble(&error))? {
        return Ok(0);
    }
    let row = client.query_one(VERSION, &[]).await.map_err(|error| trouble(&error))?;
    let found: i64 = row.try_get(0).map_err(|error| trouble(&error))?;
    if found > known {
        let text = format!(
            "{config} has version {found} of the tables, this program knows versions up to {known}: use the newer program"
        );
        return Err(Trouble(text));
    }
    Ok(found)
}
