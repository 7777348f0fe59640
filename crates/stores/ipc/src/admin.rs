//! The admin command's requests to qmail-send and qmail-auth, on sockets in a directory that only root (or the starter) enters.
//!
//! One request at a time on a connection. Lists come as one or more `Rows` datagrams, the last marked so.

use crate::field::{Bytes, Verdict};
use wire::{Address, Domain};

messages! {
    /// To qmail-send.
    pub enum QueueRequest {
        1 => Stats {},
        /// Messages with an id greater than `after`, at most `count`.
        2 => List { after: u64, count: u32 },
        3 => Show { id: u64 },
        /// Try everything (or one message) now.
        4 => RetryAll {},
        5 => Retry { id: u64 },
        6 => Remove { id: u64 },
        7 => Hold { id: u64 },
        8 => Release { id: u64 },
    }
}

record! {
    /// A message at rest or under way.
    pub struct Row {
        id: u64,
        arrival_s: u64,
        bytes: u64,
        sender: Address,
        /// Recipients not done yet.
        pending: u32,
        recipients: u32,
        /// UNIX seconds of the next attempt; 0 while one runs.
        due_s: u64,
        held: bool,
    }
}

record! {
    /// One recipient of a message.
    pub struct RecipientRow {
        address: Address,
        local: bool,
        /// `None` while pending.
        done: Option<Verdict>,
        attempts: u32,
        due_s: u64,
        last_reply: Bytes,
    }
}

messages! {
    pub enum QueueAnswer {
        /// Counters by name, in the order they are printed: at least messages, local, remote, deferred, oldest_s.
        1 => Stats { counters: Vec<Counter> },
        2 => Rows { rows: Vec<Row>, last: bool },
        3 => Message { row: Row, recipients: Vec<RecipientRow>, last: bool },
        4 => Ok { messages: u64 },
        5 => Failed { text: Bytes },
    }
}

record! {
    pub struct Counter {
        name: Bytes,
        value: u64,
    }
}

messages! {
    /// To qmail-auth.
    pub enum AccountRequest {
        1 => UserAdd { address: Address, password: Bytes },
        2 => UserRemove { address: Address },
        3 => UserPassword { address: Address, password: Bytes },
        /// 0: no quota.
        4 => UserQuota { address: Address, bytes: u64 },
        /// Users of a domain, or of all, whose address sorts after `after`.
        5 => UserList { domain: Option<Domain>, after: Bytes },
        6 => AliasAdd { address: Address, targets: Vec<Address> },
        7 => AliasRemove { address: Address },
        8 => AliasList { domain: Option<Domain>, after: Bytes },
        /// A domain was removed: forget its users and aliases.
        9 => DomainForget { domain: Domain },
        /// As `UserAdd` or `UserPassword`, and the password itself is kept, for CRAM-MD5 and APOP.
        60 => UserKeepClear { address: Address, password: Bytes, add: bool },
        /// A new app password for `service`: `all`, `smtp` or `pop3`.
        61 => AppPasswordAdd { address: Address, name: Bytes, service: Bytes },
        62 => AppPasswordList { address: Address },
        63 => AppPasswordRemove { address: Address, name: Bytes },
    }
}

record! {
    pub struct UserRow {
        address: Address,
        quota: u64,
        suspended: bool,
    }
}

record! {
    pub struct AliasRow {
        address: Address,
        targets: Vec<Address>,
    }
}

messages! {
    pub enum AccountAnswer {
        1 => Ok {},
        2 => Users { rows: Vec<UserRow>, last: bool },
        3 => Aliases { rows: Vec<AliasRow>, last: bool },
        /// A mistake of the caller (`temporary` false) or trouble with the store; the text says what to do.
        4 => Failed { text: Bytes, temporary: bool },
        /// The new app password; said this once.
        60 => AppPassword { password: Bytes },
        /// All of them.
        61 => AppPasswords { rows: Vec<AppPasswordRow> },
    }
}

record! {
    pub struct AppPasswordRow {
        name: Bytes,
        service: Bytes,
        created_s: u64,
        /// The day of the last login, in UNIX seconds of its beginning; 0: never.
        used_s: u64,
    }
}
