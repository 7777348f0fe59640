//! Every statement that the accounts are asked and changed with, by number, and the tables that they are kept in.
//!
//! Guarantees: the text of a statement stands here and nowhere else; what a caller adds are values for its `?1`, `?2` …, never text. One text
//! serves SQLite and PostgreSQL ([`Statement::postgres`]), so both stores do the same. Numbers travel from qmail-auth to qmail-authnet.
//! Never here: a connection, a value, a decision. Used by the `accounts` crate and by qmail-authnet.
#![forbid(unsafe_code)]

pub mod schema;

/// Most values that a statement takes.
pub const VALUES_MAX: usize = 17;

macro_rules! statements {
    ($($(#[$meta:meta])* $name:ident = $sql:expr;)*) => {
        /// A statement. Columns and values are in the order of its text; integers have 64 bits.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Statement { $($(#[$meta])* $name),* }

        impl Statement {
            /// All of them; the place is the number.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The text for SQLite, with `?1` for the first value.
            #[must_use]
            pub const fn sql(self) -> &'static str {
                match self { $(Self::$name => $sql),* }
            }
        }
    };
}

statements! {
    /// domain, name → refuses_mail
    TakesMail = "SELECT refuses_mail FROM account WHERE domain = ?1 AND name = ?2";
    /// domain, name, at most so many → target
    Alias = "SELECT target FROM alias WHERE domain = ?1 AND name = ?2 ORDER BY position LIMIT ?3";
    Credentials = "SELECT password, suspended FROM account WHERE domain = ?1 AND name = ?2";
    Account = "SELECT quota_bytes, quota_messages, suspended, refuses_mail, forward, keeps_copy, hour_max, day_max, vacation_text,
            vacation_subject, vacation_from_s, vacation_until_s, vacation_days, created_s
        FROM account WHERE domain = ?1 AND name = ?2";
    AliasOf = "SELECT alias_of FROM domain WHERE domain = ?1";
    Domain = "SELECT alias_of, default_quota_bytes, default_quota_messages, quota_bytes, users_max FROM domain WHERE domain = ?1";
    Administrators = "SELECT account_name, account_domain FROM administrator WHERE domain = ?1 ORDER BY account_domain, account_name";
    /// after, at most so many
    Domains = "SELECT domain FROM domain WHERE domain > ?1 ORDER BY domain LIMIT ?2";
    /// after: domain, name; at most so many
    Users = "SELECT domain, name, quota_bytes, quota_messages, suspended FROM account
        WHERE (domain, name) > (?1, ?2) ORDER BY domain, name LIMIT ?3";
    /// after: domain, name; at most so many; the domain
    UsersOf = "SELECT domain, name, quota_bytes, quota_messages, suspended FROM account
        WHERE (domain, name) > (?1, ?2) AND domain = ?4 ORDER BY domain, name LIMIT ?3";
    Aliases = "SELECT domain, name FROM alias
        WHERE (domain, name) > (?1, ?2) AND position = 0 ORDER BY domain, name LIMIT ?3";
    AliasesOf = "SELECT domain, name FROM alias
        WHERE (domain, name) > (?1, ?2) AND domain = ?4 AND position = 0 ORDER BY domain, name LIMIT ?3";
    HasUser = "SELECT 1 FROM account WHERE domain = ?1 AND name = ?2";
    HasAlias = "SELECT 1 FROM alias WHERE domain = ?1 AND name = ?2 LIMIT 1";
    /// domain → users, the sum of their quotas in bytes
    Totals = "SELECT count(*), CAST(coalesce(sum(quota_bytes), 0) AS BIGINT) FROM account WHERE domain = ?1";
    IsAliased = "SELECT 1 FROM domain WHERE alias_of = ?1 LIMIT 1";
    HasUsers = "SELECT 1 FROM account WHERE domain = ?1 LIMIT 1";
    HasAliases = "SELECT 1 FROM alias WHERE domain = ?1 LIMIT 1";

    /// target, at most so many → name, domain of aliases that lead there and nowhere else
    AliasesTo = "SELECT name, domain FROM alias AS a WHERE lower(CAST(target AS TEXT)) = lower(CAST(?1 AS TEXT)) AND position = 0
            AND length(name) > 0 AND NOT EXISTS (SELECT 1 FROM alias AS b WHERE b.domain = a.domain AND b.name = a.name AND b.position = 1)
        ORDER BY domain, name LIMIT ?2";

    AddUser = "INSERT INTO account (domain, name, password, quota_bytes, quota_messages, suspended, refuses_mail, forward, keeps_copy,
            hour_max, day_max, vacation_text, vacation_subject, vacation_from_s, vacation_until_s, vacation_days, created_s)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)";
    RemoveUser = "DELETE FROM account WHERE domain = ?1 AND name = ?2";
    DismissAdministrator = "DELETE FROM administrator WHERE account_domain = ?1 AND account_name = ?2";
    /// domain, name, new name
    RenameUser = "UPDATE account SET name = ?3 WHERE domain = ?1 AND name = ?2";
    RenameSecrets = "UPDATE secret SET name = ?3 WHERE domain = ?1 AND name = ?2";
    RenameAppPasswords = "UPDATE app_password SET name = ?3 WHERE domain = ?1 AND name = ?2";
    RenameAdministrator = "UPDATE administrator SET account_name = ?3 WHERE account_domain = ?1 AND account_name = ?2";
    /// old target, new target
    Retarget = "UPDATE alias SET target = ?2 WHERE lower(CAST(target AS TEXT)) = lower(CAST(?1 AS TEXT))";
    SetPassword = "UPDATE account SET password = ?3 WHERE domain = ?1 AND name = ?2";
    SetQuota = "UPDATE account SET quota_bytes = ?3, quota_messages = ?4 WHERE domain = ?1 AND name = ?2";
    SetSuspension = "UPDATE account SET suspended = ?3, refuses_mail = ?4 WHERE domain = ?1 AND name = ?2";
    SetForward = "UPDATE account SET forward = ?3, keeps_copy = ?4 WHERE domain = ?1 AND name = ?2";
    SetVacation = "UPDATE account SET vacation_text = ?3, vacation_subject = ?4, vacation_from_s = ?5, vacation_until_s = ?6,
            vacation_days = ?7 WHERE domain = ?1 AND name = ?2";
    SetLimits = "UPDATE account SET hour_max = ?3, day_max = ?4 WHERE domain = ?1 AND name = ?2";
    RemoveAlias = "DELETE FROM alias WHERE domain = ?1 AND name = ?2";
    /// domain, name, position, target
    AddTarget = "INSERT INTO alias (domain, name, position, target) VALUES (?1, ?2, ?3, ?4)";
    RemoveDomain = "DELETE FROM domain WHERE domain = ?1";
    RemoveAdministrators = "DELETE FROM administrator WHERE domain = ?1";
    AddDomain = "INSERT INTO domain (domain, alias_of, default_quota_bytes, default_quota_messages, quota_bytes, users_max)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    AddAdministrator = "INSERT INTO administrator (domain, account_domain, account_name) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    ForgetUsers = "DELETE FROM account WHERE domain = ?1";
    ForgetAliases = "DELETE FROM alias WHERE domain = ?1";
    ForgetDomain = "DELETE FROM domain WHERE domain = ?1 OR alias_of = ?1";
    ForgetAdministrators = "DELETE FROM administrator WHERE domain = ?1 OR account_domain = ?1";

    InstallationKey = "SELECT value FROM installation WHERE name = 'key'";
    /// domain, name, kind → value
    Secret = "SELECT value FROM secret WHERE domain = ?1 AND name = ?2 AND kind = ?3";
    HasPassword = "SELECT 1 FROM account WHERE domain = ?1 AND name = ?2 AND password = ?3";
    SetSecret = "INSERT INTO secret (domain, name, kind, value) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (domain, name, kind) DO UPDATE SET value = excluded.value";
    /// domain, name, old hash, new hash
    RenewPassword = "UPDATE account SET password = ?4 WHERE domain = ?1 AND name = ?2 AND password = ?3";
    AppPasswords = "SELECT label, scope, digest, scram_sha_1, scram_sha_256, created_s, used_s FROM app_password
        WHERE domain = ?1 AND name = ?2 ORDER BY label LIMIT ?3";
    AddAppPassword = "INSERT INTO app_password (domain, name, label, scope, digest, scram_sha_1, scram_sha_256, created_s)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    RemoveAppPassword = "DELETE FROM app_password WHERE domain = ?1 AND name = ?2 AND label = ?3";
    UseAppPassword = "UPDATE app_password SET used_s = ?4 WHERE domain = ?1 AND name = ?2 AND label = ?3";
}

impl Statement {
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// `None`: there is no such number.
    #[must_use]
    pub fn numbered(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The text for PostgreSQL, with `$1` for the first value. Bytes become text another way there.
    #[must_use]
    pub fn postgres(self) -> String {
        let text = ["target", "?1"].into_iter().fold(self.sql().to_owned(), |sql, bytes| {
            sql.replace(&format!("lower(CAST({bytes} AS TEXT))"), &format!("lower(encode({bytes}, 'escape'))"))
        });
        text.replace('?', "$")
    }

    /// Does it change nothing?
    #[must_use]
    pub fn is_read(self) -> bool {
        self.sql().starts_with("SELECT")
    }

    /// How many values it takes.
    #[must_use]
    pub fn values(self) -> usize {
        let marked = |count: &usize| self.sql().contains(&format!("?{count}"));
        (1..=VALUES_MAX).take_while(marked).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_and_values_are_counted() {
        for (number, statement) in (0u16..).zip(Statement::ALL) {
            assert_eq!((statement.number(), Statement::numbered(number)), (number, Some(*statement)));
            assert!(!statement.sql().contains("'") || *statement == Statement::InstallationKey, "values are never in the text");
            assert!(!statement.sql().contains(&format!("?{}", VALUES_MAX + 1)) && !statement.sql().contains(';'));
        }
        assert_eq!(Statement::numbered(u16::MAX), None);
        let retarget = "UPDATE alias SET target = $2 WHERE lower(encode(target, 'escape')) = lower(encode($1, 'escape'))";
        assert_eq!(Statement::Retarget.postgres(), retarget);
        let counts = [Statement::InstallationKey, Statement::UsersOf, Statement::AddUser].map(Statement::values);
        assert_eq!(counts, [0, 4, 17]);
    }
}
