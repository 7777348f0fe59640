//! The tables, and how an older database becomes the present one: one step for each version. Steps that were released never change.
//!
//! Names and domains are bytes: no database must fold or compare them as text. `account.forward` holds its addresses a line each; they hold
//! no line end themselves.

/// Step n brings version n (`PRAGMA user_version`) to version n + 1.
pub const SQLITE: &[&str] = &[
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
    // The key is made by SQLite, from the system's random bytes.
    "
    CREATE TABLE installation (
        name TEXT NOT NULL PRIMARY KEY,
        value BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO installation (name, value) VALUES ('key', randomblob(32));
    CREATE TABLE secret (
        domain BLOB NOT NULL,
        name BLOB NOT NULL,
        kind TEXT NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (domain, name, kind)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE app_password (
        domain BLOB NOT NULL,
        name BLOB NOT NULL,
        label TEXT NOT NULL,
        scope TEXT NOT NULL,
        digest BLOB NOT NULL,
        scram_sha_1 TEXT,
        scram_sha_256 TEXT,
        created_s INTEGER NOT NULL,
        used_s INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (domain, name, label)
    ) STRICT, WITHOUT ROWID;
    CREATE TRIGGER password_changed AFTER UPDATE OF password ON account BEGIN
        DELETE FROM secret WHERE domain = old.domain AND name = old.name;
    END;
    CREATE TRIGGER account_removed AFTER DELETE ON account BEGIN
        DELETE FROM secret WHERE domain = old.domain AND name = old.name;
        DELETE FROM app_password WHERE domain = old.domain AND name = old.name;
    END;
    ",
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

/// The whole of [`POSTGRES`] for an empty database, as psql takes it: in one transaction, with the table of the version.
#[must_use]
pub fn postgres_script() -> String {
    let note = format!("{VERSION_TABLE}INSERT INTO qmail_version VALUES ({});", POSTGRES.len());
    format!("BEGIN;\n{}\n{note}\nCOMMIT;", POSTGRES.concat())
}

/// Where the version stands.
pub const VERSION_TABLE: &str = "CREATE TABLE qmail_version (number BIGINT NOT NULL); ";

/// Step n brings version n (the one row of `qmail_version`; no table: 0) to version n + 1. All integers are BIGINT, as the statements expect.
///
/// `generation` grows with each statement that changes what recipients and logins are judged by, whoever makes it: another host, or a person
/// with psql. `dovecot` is for Dovecot's `sql` passdb and userdb.
pub const POSTGRES: &[&str] = &["
    CREATE TABLE account (
        domain BYTEA NOT NULL,
        name BYTEA NOT NULL,
        password TEXT NOT NULL,
        quota_bytes BIGINT NOT NULL DEFAULT 0 CHECK (quota_bytes >= 0),
        quota_messages BIGINT NOT NULL DEFAULT 0 CHECK (quota_messages >= 0),
        suspended BIGINT NOT NULL DEFAULT 0 CHECK (suspended IN (0, 1)),
        refuses_mail BIGINT NOT NULL DEFAULT 0 CHECK (refuses_mail IN (0, 1)),
        forward BYTEA NOT NULL DEFAULT '',
        keeps_copy BIGINT NOT NULL DEFAULT 0 CHECK (keeps_copy IN (0, 1)),
        hour_max BIGINT CHECK (hour_max >= 0),
        day_max BIGINT CHECK (day_max >= 0),
        vacation_text TEXT,
        vacation_subject TEXT,
        vacation_from_s BIGINT,
        vacation_until_s BIGINT,
        vacation_days BIGINT,
        created_s BIGINT NOT NULL,
        PRIMARY KEY (domain, name)
    );
    CREATE TABLE alias (
        domain BYTEA NOT NULL,
        name BYTEA NOT NULL,
        position BIGINT NOT NULL,
        target BYTEA NOT NULL,
        PRIMARY KEY (domain, name, position)
    );
    CREATE INDEX alias_target ON alias (lower(encode(target, 'escape')));
    CREATE TABLE domain (
        domain BYTEA NOT NULL PRIMARY KEY,
        alias_of BYTEA,
        default_quota_bytes BIGINT NOT NULL DEFAULT 0 CHECK (default_quota_bytes >= 0),
        default_quota_messages BIGINT NOT NULL DEFAULT 0 CHECK (default_quota_messages >= 0),
        quota_bytes BIGINT NOT NULL DEFAULT 0 CHECK (quota_bytes >= 0),
        users_max BIGINT NOT NULL DEFAULT 0 CHECK (users_max >= 0)
    );
    CREATE TABLE administrator (
        domain BYTEA NOT NULL,
        account_domain BYTEA NOT NULL,
        account_name BYTEA NOT NULL,
        PRIMARY KEY (domain, account_domain, account_name)
    );
    CREATE TABLE installation (
        name TEXT NOT NULL PRIMARY KEY,
        value BYTEA NOT NULL
    );
    INSERT INTO installation (name, value)
        VALUES ('key', decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));
    CREATE TABLE secret (
        domain BYTEA NOT NULL,
        name BYTEA NOT NULL,
        kind TEXT NOT NULL,
        value BYTEA NOT NULL,
        PRIMARY KEY (domain, name, kind)
    );
    CREATE TABLE app_password (
        domain BYTEA NOT NULL,
        name BYTEA NOT NULL,
        label TEXT COLLATE \"C\" NOT NULL,
        scope TEXT NOT NULL,
        digest BYTEA NOT NULL,
        scram_sha_1 TEXT,
        scram_sha_256 TEXT,
        created_s BIGINT NOT NULL,
        used_s BIGINT NOT NULL DEFAULT 0,
        PRIMARY KEY (domain, name, label)
    );
    CREATE FUNCTION password_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM secret WHERE domain = OLD.domain AND name = OLD.name;
        RETURN NULL;
    END $$;
    CREATE TRIGGER password_changed AFTER UPDATE OF password ON account FOR EACH ROW EXECUTE FUNCTION password_changed();
    CREATE FUNCTION account_removed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM secret WHERE domain = OLD.domain AND name = OLD.name;
        DELETE FROM app_password WHERE domain = OLD.domain AND name = OLD.name;
        RETURN NULL;
    END $$;
    CREATE TRIGGER account_removed AFTER DELETE ON account FOR EACH ROW EXECUTE FUNCTION account_removed();
    CREATE TABLE generation (number BIGINT NOT NULL);
    INSERT INTO generation VALUES (1);
    CREATE FUNCTION accounts_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE generation SET number = number + 1;
        RETURN NULL;
    END $$;
    CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON account
        FOR EACH STATEMENT EXECUTE FUNCTION accounts_changed();
    CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON alias
        FOR EACH STATEMENT EXECUTE FUNCTION accounts_changed();
    CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON domain
        FOR EACH STATEMENT EXECUTE FUNCTION accounts_changed();
    CREATE TRIGGER changed AFTER INSERT OR DELETE OR TRUNCATE ON app_password
        FOR EACH STATEMENT EXECUTE FUNCTION accounts_changed();
    CREATE VIEW dovecot AS
        SELECT domain, name, encode(name, 'escape') || '@' || encode(domain, 'escape') AS \"user\",
            encode(domain, 'escape') || '/' || encode(name, 'escape') AS maildir,
            CASE WHEN password LIKE '$argon2id$%' THEN '{ARGON2ID}'
                 WHEN password LIKE '$argon2i$%' THEN '{ARGON2I}'
                 WHEN password LIKE '$2%' THEN '{BLF-CRYPT}'
                 WHEN password LIKE '$6$%' THEN '{SHA512-CRYPT}'
                 WHEN password LIKE '$5$%' THEN '{SHA256-CRYPT}'
                 WHEN password LIKE '$1$%' THEN '{MD5-CRYPT}'
                 ELSE '{CRYPT}' END || password AS password,
            CASE WHEN quota_bytes > 0 THEN '*:bytes=' || quota_bytes END AS quota_rule
        FROM account WHERE suspended = 0;
    "];
