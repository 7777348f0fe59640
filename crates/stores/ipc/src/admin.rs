//! The admin command's requests to qmail-send, qmail-auth, qmail-acme and qmail-remote, on sockets in a directory that only root (or the starter) enters.
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
        /// A message of another queue follows as on the queue's socket, from its begin to its commit, in whose place [`QueueAnswer::Kept`] is
        /// answered. It is kept, and nothing of it is tried before it is confirmed. `uid` and `pid` are for the log.
        20 => Import { key: Bytes, arrival_s: u64, uid: u32, pid: u32 },
        /// It goes on where it was in the other queue. No message of this id, or one that goes on already: `Ok` as well.
        21 => Confirm { id: u64 },
        /// Of the messages with an id greater than `after` some are looked at: which of them wait to be confirmed?
        22 => Kept { after: u64 },
        /// The body, as a descriptor beside the answer.
        23 => Body { id: u64 },
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
        /// -9 to 9, as a byte of two's complement.
        priority: u8,
        /// UNIX seconds by which it is to be delivered; 0 for no such time.
        deliver_by_s: u64,
        /// It fails when that time has passed.
        returns: bool,
        /// Nothing is delivered before, UNIX seconds; 0 for no such time.
        hold_until_s: u64,
        /// It goes over TLS or not at all (RFC 8689).
        requires_tls: bool,
        /// Something was asked of the reports on it (RFC 3461).
        reports: bool,
        /// A message of another queue whose import is not over.
        unconfirmed: bool,
        /// It is damaged or cannot be read now: sender, recipients and size are not known.
        unreadable: bool,
    }
}

impl Row {
    /// A message of which nothing is known.
    #[must_use]
    pub fn new(id: u64) -> Self {
        Self {
            id,
            arrival_s: 0,
            bytes: 0,
            sender: Address::null(),
            pending: 0,
            recipients: 0,
            due_s: 0,
            held: false,
            priority: 0,
            deliver_by_s: 0,
            returns: false,
            hold_until_s: 0,
            requires_tls: false,
            reports: false,
            unconfirmed: false,
            unreadable: false,
        }
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
        /// On the disk, and waiting to be confirmed.
        20 => Kept { id: u64 },
        /// All up to `after` were looked at; `last`: there are no others.
        21 => KeptRows { rows: Vec<KeptRow>, after: u64, last: bool },
        /// Comes with a read-only descriptor.
        22 => Body { bytes: u64 },
        /// Not now: the disk is full, or does not work.
        23 => NotNow { text: Bytes },
    }
}

record! {
    /// A message that waits to be confirmed.
    pub struct KeptRow {
        id: u64,
        key: Bytes,
    }
}

record! {
    pub struct Counter {
        name: Bytes,
        value: u64,
    }
}

/// Most users and aliases of one [`AccountRequest::Add`]: the answer has room for a word on each.
pub const ADD_MAX: usize = 200;

messages! {
    /// To qmail-auth.
    pub enum AccountRequest {
        1 => UserAdd { address: Address, password: Bytes },
        2 => UserRemove { address: Address },
        3 => UserPassword { address: Address, password: Bytes },
        /// 0: no bound.
        4 => UserQuota { address: Address, bytes: u64, messages: u64 },
        /// Users of a domain, or of all, whose address sorts after `after`.
        5 => UserList { domain: Option<Domain>, after: Bytes },
        6 => AliasAdd { address: Address, targets: Vec<Address> },
        7 => AliasRemove { address: Address },
        8 => AliasList { domain: Option<Domain>, after: Bytes },
        /// A domain was removed: forget its users, aliases and settings.
        9 => DomainForget { domain: Domain },
        /// A user whose password is known as a hash alone.
        30 => UserAddHash { address: Address, hash: Bytes },
        31 => UserSuspend { address: Address, suspended: bool, refuses_mail: bool },
        /// No targets: to the mailbox alone.
        32 => UserForward { address: Address, targets: Vec<Address>, keeps_copy: bool },
        33 => UserVacation { address: Address, vacation: Option<Vacation> },
        /// `None`: as the host has it for everybody.
        34 => UserLimits { address: Address, per_hour: Option<u32>, per_day: Option<u32> },
        /// One user, with all that is set.
        35 => UserShow { address: Address },
        36 => DomainChange { domain: Domain, change: DomainChange },
        /// Settings of one domain, or of all of which something is set and whose name sorts after `after`.
        37 => DomainList { domain: Option<Domain>, after: Bytes },
        /// Users and aliases, in one transaction; those that are there already stay as they are.
        38 => Add { users: Vec<AccountRow>, aliases: Vec<AliasRow> },
        /// The hash of a password, for an `Add`.
        39 => Hash { password: Bytes },
        /// As `UserList` with all that is set, and with the hashes if `secrets`.
        40 => Export { domain: Option<Domain>, after: Bytes, secrets: bool },
        /// The user has another name in the same domain; mail in the mailbox stays there. With `keeps_alias` the old name leads to the new.
        41 => UserRename { address: Address, to: Bytes, keeps_alias: bool },
        /// How much of a quota is used.
        42 => UserUsage { address: Address },
        /// As `UserAdd` or `UserPassword`, and the password itself is kept, for CRAM-MD5 and APOP.
        60 => UserKeepClear { address: Address, password: Bytes, add: bool },
        /// A new app password for `service`: `all`, `smtp` or `pop3`.
        61 => AppPasswordAdd { address: Address, name: Bytes, service: Bytes },
        62 => AppPasswordList { address: Address },
        63 => AppPasswordRemove { address: Address, name: Bytes },
    }
}

record! {
    /// The reply while somebody is away.
    pub struct Vacation {
        subject: Bytes,
        text: Bytes,
        /// UNIX seconds; 0: no bound.
        from_s: u64,
        until_s: u64,
        days: u32,
    }
}

record! {
    /// A user with all that is set.
    pub struct AccountRow {
        address: Address,
        /// Left out where nobody asked for it.
        hash: Option<Bytes>,
        /// In an `Add`, `None` is what the domain gives new users.
        quota: Option<Quota>,
        suspended: bool,
        refuses_mail: bool,
        forward: Vec<Address>,
        keeps_copy: bool,
        vacation: Option<Vacation>,
        per_hour: Option<u32>,
        per_day: Option<u32>,
        created_s: u64,
    }
}

record! {
    /// 0: no bound.
    pub struct Quota {
        bytes: u64,
        messages: u64,
    }
}

record! {
    /// What is set of a domain.
    pub struct DomainRow {
        domain: Domain,
        alias_of: Option<Domain>,
        default_quota: Quota,
        quota_bytes: u64,
        users_max: u64,
        administrators: Vec<Address>,
    }
}

record! {
    /// What is to be set of a domain; `None` leaves it as it is.
    pub struct DomainChange {
        alias_of: Option<Domain>,
        default_quota: Option<Quota>,
        quota_bytes: Option<u64>,
        users_max: Option<u64>,
        administrator_add: Option<Address>,
        administrator_remove: Option<Address>,
    }
}

record! {
    /// Something of an `Add` that was not added: its place among the users and then the aliases.
    pub struct NotAdded {
        at: u32,
        /// It is there already.
        exists: bool,
        text: Bytes,
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
        30 => Accounts { rows: Vec<AccountRow>, last: bool },
        31 => Domains { rows: Vec<DomainRow>, last: bool },
        32 => Added { failures: Vec<NotAdded> },
        33 => Hashed { hash: Bytes },
        /// Of what is bounded; `None` for the rest, and where it cannot be told.
        34 => Usage { bytes: Option<u64>, messages: Option<u64> },
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

messages! {
    /// To qmail-acme.
    pub enum CertRequest {
        /// A certificate of control/acme is to be had from its authority: if it is due, or (`force`) in any case. `agree`: the terms of
        /// service are agreed to.
        1 => Obtain { name: Bytes, force: bool, agree: bool },
    }
}

messages! {
    pub enum CertAnswer {
        /// It goes on; more comes. At least every 30 s.
        1 => Progress { text: Bytes },
        /// It is there: `obtained` just now, or before. Until when, and when it is renewed, in UNIX seconds.
        2 => Done { obtained: bool, not_after_s: u64, renew_s: u64 },
        /// It could not be had; what there was before stays.
        3 => Failed { text: Bytes },
    }
}

messages! {
    /// To qmail-remote.
    pub enum RemoteRequest {
        /// The addresses that could not be connected to lately.
        1 => Unreached {},
        /// They count as well again.
        2 => Forget {},
    }
}

record! {
    /// An address that could not be connected to.
    pub struct UnreachedRow {
        /// As text, without brackets.
        address: Bytes,
        /// Seconds since the last failure.
        ago_s: u64,
        /// Failures that were minutes apart, up to 10; 0 is never sent.
        count: u32,
    }
}

messages! {
    pub enum RemoteAnswer {
        1 => Unreached { rows: Vec<UnreachedRow>, last: bool },
        2 => Ok {},
    }
}
