//! `qmail export --sql`: the accounts as tables for the SQL lookups of other programs, above all Dovecot's (docs/dovecot.md).
//!
//! A copy, not the database: that has one writer and one reader, qmail-auth. The text is a transaction that SQLite and PostgreSQL both
//! take. No byte of an address or a path leaves its quotes; what is no UTF-8 is left out, since no SQL text could hold it.

use control::VirtualDomains;
use ipc::admin::{AccountRow, DomainRow};

/// What comes before the rows.
pub(super) const TABLES: &str = "BEGIN;\n\
    CREATE TABLE users (username TEXT NOT NULL, domain TEXT NOT NULL, password TEXT NOT NULL, may_log_in INTEGER NOT NULL, \
    uid BIGINT NOT NULL, gid BIGINT NOT NULL, home TEXT NOT NULL, quota_rule TEXT NOT NULL, PRIMARY KEY (username, domain));\n\
    CREATE TABLE domains (domain TEXT PRIMARY KEY, users_of TEXT NOT NULL);\n";
/// What comes behind them.
pub(super) const END: &str = "COMMIT;\n";

/// A domain, and whose users it has.
pub(super) fn domain(row: &DomainRow) -> Option<String> {
    let of = row.alias_of.as_ref().unwrap_or(&row.domain);
    Some(format!("INSERT INTO domains VALUES ({}, {});\n", quoted(row.domain.as_bytes())?, quoted(of.as_bytes())?))
}

/// A user, unless its domain is gone from users/domains.
pub(super) fn user(row: &AccountRow, domains: &VirtualDomains) -> Option<String> {
    let name = users::UserName::new(row.address.local())?;
    let domain = row.address.domain()?;
    let entry = domains.get(domain)?;
    let home = std::os::unix::ffi::OsStrExt::as_bytes(entry.home(&name).as_os_str()).to_vec();
    let password = row.hash.as_ref().and_then(|hash| with_scheme(hash));
    let may_log_in = u8::from(password.is_some() && !row.suspended);
    let quota = row.quota.as_ref().filter(|quota| quota.bytes > 0 || quota.messages > 0);
    let quota = quota.map(|quota| format!("*:bytes={}:messages={}", quota.bytes, quota.messages)).unwrap_or_default();
    Some(format!(
        "INSERT INTO users VALUES ({}, {}, {}, {may_log_in}, {}, {}, {}, {});\n",
        quoted(name.as_bytes())?,
        quoted(domain)?,
        quoted(&password.unwrap_or_default())?,
        entry.id.uid,
        entry.id.gid,
        quoted(&home)?,
        quoted(quota.as_bytes())?,
    ))
}

/// As Dovecot names the scheme: argon2id by itself, all others are crypt(3)'s.
fn with_scheme(hash: &[u8]) -> Option<Vec<u8>> {
    let scheme: &[u8] = match hash {
        hash if hash.starts_with(b"$argon2id$") => b"{ARGON2ID}",
        [b'$', ..] => b"{CRYPT}",
        _ => return None,
    };
    Some([scheme, hash].concat())
}

/// A literal: the quote doubled, and no NUL, which no SQL text holds.
fn quoted(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok().filter(|text| !text.contains('\0'))?;
    Some(format!("'{}'", text.replace('\'', "''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_its_quotes() {
        assert_eq!(quoted(b"o'neil'); DROP TABLE users; --").unwrap(), "'o''neil''); DROP TABLE users; --'");
        assert_eq!((quoted(b"a\0b"), quoted(b"\xff")), (None, None));
        assert_eq!(with_scheme(b"$argon2id$v=19$x").unwrap(), b"{ARGON2ID}$argon2id$v=19$x");
        assert_eq!(with_scheme(b"$6$a$b").unwrap(), b"{CRYPT}$6$a$b");
        assert_eq!(with_scheme(b"open sesame"), None);
    }
}
