//! The words of the spool: ids, envelopes, recipient states, what may be asked and what is answered.
//!
//! Plain data without I/O. Everything here is bounded: see the constants. Used by qmail-send, by the real spool and by the model.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use wire::Address;

use crate::side::SideBody;

/// Bodies up to this ride in the log record; the caller writes longer ones to a side file (DESIGN: 64 KiB).
pub const BODY_INLINE_MAX: usize = 64 * 1024;
/// An envelope whose record form is longer goes to a side file of its own; the spool does that by itself.
pub const ENVELOPE_INLINE_MAX: usize = 64 * 1024;
/// Longest reply kept for a recipient; longer ones are cut. It is what a delivery report may hold (4 KiB).
pub const REPLY_LEN_MAX: usize = 4096;
/// Most recipients of a message: ten times the biggest list anyone is promised.
pub const RECIPIENTS_MAX: usize = 1_000_000;

/// Names a message for ever: segment number · 2²³ + offset/8 of its first accept record. Later messages have higher ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub u64);

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Who sent a message to whom, as it was accepted; it never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub sender: Address,
    /// In the order of acceptance; a recipient's place here is its number in every [`Change`].
    pub recipients: Vec<Address>,
    /// UNIX seconds.
    pub arrival_s: u64,
    pub uid: u32,
    pub pid: u32,
    /// Opaque to the spool (SMTPUTF8, 8BITMIME, bounce …).
    pub flags: u32,
    /// Opaque to the spool; mostly empty, and then nothing is written for it.
    pub options: Box<[u8]>,
}

/// A message in qmail's LF form.
#[derive(Debug)]
pub enum Body {
    /// At most [`BODY_INLINE_MAX`] bytes; a longer one is refused.
    Inline(Vec<u8>),
    /// Made by [`crate::Log::side_file`], complete.
    Side(SideBody),
}

/// How far one recipient has come. A recipient without any progress is `Pending` with no attempts, due at arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipientState {
    /// To be tried (again) at `due_s`, UNIX seconds.
    Pending {
        attempts: u32,
        due_s: u64,
        last_reply: Vec<u8>,
        /// The sender was told of the delay.
        warned: bool,
    },
    /// Delivered.
    Done,
    /// Delivered; the sender wants to know and does not know yet. `how` is opaque to the spool.
    Succeeded { how: u8 },
    /// Failed for good; the sender does not know yet. The reply is for the bounce.
    Failed { reply: Vec<u8> },
    /// Failed for good and reported, or there is nobody to report to.
    Bounced,
}

impl RecipientState {
    #[must_use]
    pub fn is_pending(&self) -> bool {
        matches!(self, Self::Pending { .. })
    }
}

/// The new state of one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its place in [`Envelope::recipients`]; one outside is ignored when states are read.
    pub recipient: u32,
    pub state: RecipientState,
}

/// The message as a whole after a change: kept beside the change, so that the next start knows when to look at the message
/// without reading its recipients. The recipients' own states are what counts; this is the summary that [`Living`] shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// Recipients still pending.
    pub pending: u32,
    /// When the earliest of them is due, UNIX seconds.
    pub due_s: u64,
    /// Held by the administrator: no delivery until released.
    pub held: bool,
}

/// A message that is in the spool at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Living {
    pub id: MessageId,
    pub arrival_s: u64,
    /// As the last [`Outlook`] said; the arrival if there was none.
    pub due_s: u64,
    /// Length of the body.
    pub bytes: u64,
    pub recipients: u32,
    pub pending: u32,
    pub held: bool,
    pub sender_is_null: bool,
}

/// Why a message was not accepted. Both are temporary for whoever sent it, but for `TooLarge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No space or no inodes: 452 4.3.1.
    Full,
    /// The disk failed, or the spool has stopped: 451 4.3.0.
    Failed,
    /// Over a bound of this module: 552 5.3.4. The caller's own limits are lower, so this is a bug of the caller.
    TooLarge,
}

/// Why a message could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFailure {
    /// No such message (any more).
    Unknown,
    /// The bytes on the disk are damaged; they were put into quarantine and an alert was raised. Never bounce for this alone.
    Damaged,
    /// The disk, or a lack of file descriptors or memory: try later.
    Temporary,
}

/// What the spool has to say; each request is answered exactly once, with its ticket.
#[derive(Debug)]
pub enum Completion {
    /// The message is durable: 250 may be said. For `bounce_and_end` the original is gone in the same moment.
    Accepted {
        ticket: u64,
        id: MessageId,
    },
    /// Nothing is kept of the message. For `bounce_and_end` the original is still there.
    Refused {
        ticket: u64,
        why: Refusal,
    },
    /// A result is write(2)-ten: it outlives every process, and a power cut from one second later on ([`Log::note`]: from now on).
    Written {
        ticket: u64,
    },
    /// A result could not be written: the spool has stopped, or there is no such message. Its delivery may be repeated.
    Unwritten {
        ticket: u64,
    },
    /// Envelope and the state of each recipient (same length, same order).
    Envelope {
        ticket: u64,
        id: MessageId,
        envelope: Envelope,
        states: Vec<RecipientState>,
        bytes: u64,
        held: bool,
    },
    /// The body, whole and verified; read-only, at offset 0; receivers pread.
    BodyFd {
        ticket: u64,
        id: MessageId,
        fd: OwnedFd,
        bytes: u64,
    },
    ReadFailed {
        ticket: u64,
        id: MessageId,
        why: ReadFailure,
    },
    /// All that was given to this side file is written: it may take more (see [`SideBody::backlog`]).
    SideDrained {
        side: u64,
    },
    /// For the log, in one line: something that the administrator must know.
    Alert(String),
}

/// May work go on?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Ok,
    /// Accepts are refused with 452; results and bounces still go to the spare. Ends by itself when there is room again.
    Full,
    /// Nothing can be written: accept nothing, start no delivery. Only a restart ends it.
    Stopped,
}

/// Figures for `qmail queue stats` and for measuring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages in the spool.
    pub messages: u64,
    /// Segment files with records, and free ones kept for use again.
    pub segments: u64,
    pub segments_free: u64,
    /// Since the start.
    pub accepted: u64,
    pub ended: u64,
    pub batches: u64,
    pub syncs: u64,
    pub bytes_written: u64,
    /// Messages that compaction moved.
    pub moved: u64,
    /// Records and side files found damaged.
    pub damaged: u64,
}

/// Why the spool cannot be opened. [`SpoolError::is_temporary`] says whether another try may help.
#[derive(Debug)]
pub enum SpoolError {
    /// Another process has it open; its process id as far as it is known.
    Locked { holder: Option<u32> },
    /// Written by a newer version. Nothing was changed.
    NewerFormat { file: String, found: u32, supported: u32 },
    /// The disk: what was tried, and the error.
    Io { doing: &'static str, error: io::Error },
}

impl SpoolError {
    /// Does trying again later make sense without a change by the administrator?
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        !matches!(self, Self::NewerFormat { .. })
    }
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked { holder: Some(pid) } => write!(f, "the spool is in use by process {pid}"),
            Self::Locked { holder: None } => f.write_str("the spool is in use by another process"),
            Self::NewerFormat { file, found, supported } => {
                write!(
                    f,
                    "{file} has spool format {found}, this version knows up to {supported}: use the newer qmail-rs; nothing was changed"
                )
            }
            Self::Io { doing, error } => write!(f, "cannot {doing}: {error}"),
        }
    }
}

impl std::error::Error for SpoolError {}

/// What may be asked of a spool: one interface for the real one ([`crate::Spool`]) and the model ([`crate::model::Model`]).
///
/// Requests never block on the disk and are answered by [`Log::completions`], each once, by its ticket (any number the caller likes).
/// Results of one message (`progress`, `note`, `end`) take effect in the order they were given. All calls come from one thread.
pub trait Log {
    /// Requests from here to [`Log::flush`] may go to the disk together: for all that one turn of an event loop brings. Without it
    /// the first of them would set off a sync of its own, and the rest wait for that.
    fn hold(&mut self) {}
    /// Ends [`Log::hold`]; to be called before the caller sleeps.
    fn flush(&mut self) {}
    /// Keeps a message: `Accepted` when it is durable, else `Refused`.
    fn accept(&mut self, envelope: Envelope, body: Body, ticket: u64);
    /// Accepts a bounce and ends the message it is about in one indivisible record: both or neither.
    fn bounce_and_end(&mut self, bounce: Envelope, body: Body, ended: MessageId, ticket: u64);
    /// Notes what became of some recipients: `Written` or `Unwritten`.
    fn progress(&mut self, id: MessageId, changes: Vec<Change>, outlook: Outlook, ticket: u64);
    /// Notes that the message is held or released: `Written` when no power cut undoes that, or `Unwritten`.
    fn note(&mut self, id: MessageId, outlook: Outlook, ticket: u64);
    /// The message has no work left: it is forgotten. `Written` or `Unwritten`.
    fn end(&mut self, id: MessageId, ticket: u64);
    /// `Envelope` or `ReadFailed`.
    fn read_envelope(&mut self, id: MessageId, ticket: u64);
    /// `BodyFd` or `ReadFailed`.
    fn open_body(&mut self, id: MessageId, ticket: u64);
    /// A new side file for a body that is or may become longer than [`BODY_INLINE_MAX`]. Dropping it abandons it.
    fn side_file(&mut self) -> SideBody;
    /// Readable while completions wait.
    fn wake_fd(&self) -> std::os::fd::BorrowedFd<'_>;
    /// Everything answered since the last call; clears [`Log::wake_fd`].
    fn completions(&mut self) -> Vec<Completion>;
    fn stats(&self) -> Stats;
    fn health(&self) -> Health;
}
