//! What goes into the servers' machines and what comes out of them, and the words of the answers.

use std::sync::Arc;
use std::time::Duration;

use logline::Line;
use smtp::data::BareLf;
use smtp::server::{Now, RcptHosts, RecipientAnswer, Refusals, Rules, Terms};
use smtp::trace::Received;
use wire::Address;

use crate::netstring::Fault;

/// Longest text in bytes: that of the classic programs, which give up when a length is over 200,000,000 and has one more digit.
pub const TEXT_LEN_MAX: u64 = 2_000_000_009;
/// An address has fewer bytes, with what RELAYCLIENT appends (qmail-qmtpd(8)).
pub const ADDRESS_LEN_END: usize = 1000;
/// From the first byte of a message to its last, in seconds: the alarm of the classic programs.
pub const MESSAGE_S: u64 = 3600;
/// How long a client may take to read what it is answered (RFC 5321 §4.5.3.2 has as much for a reply).
pub const WRITE_DEADLINE: Duration = Duration::from_secs(300);
/// Longest line of a text, as for SMTP.
pub const LINE_LEN_MAX: u64 = 1 << 20;

/// What all sessions of a process share.
#[derive(Debug, Default)]
pub struct Config {
    /// `control/me`.
    pub me: Vec<u8>,
    pub barelf: BareLf,
    /// `control/databytes`: bytes of a message as stored, 0 for no bound.
    pub databytes: u64,
    /// `control/maxrcpt`: recipients of a message that are taken; the others are told to come again.
    pub recipients_max: usize,
    /// `control/brtlimit`: recipients of a session that are refused for the client's sake, then it is closed; 0 for no bound.
    pub bad_recipients_max: u32,
    /// `control/timeoutsmtpd`: seconds without a byte.
    pub timeout_s: u64,
    pub rcpthosts: RcptHosts,
    pub refusals: Refusals,
}

/// Who is at the other end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    pub remote_ip: Box<[u8]>,
    /// TCPREMOTEHOST.
    pub remote_host: Option<Box<[u8]>>,
    /// TCPREMOTEINFO.
    pub remote_info: Option<Box<[u8]>>,
    /// TCPLOCALHOST; `None`: `control/me`.
    pub local_host: Option<Box<[u8]>>,
    /// RELAYCLIENT: may send anywhere, and this is appended to each recipient.
    pub relay_client: Option<Box<[u8]>>,
    /// DATABYTES, in the place of `control/databytes`.
    pub databytes: Option<u64>,
    /// RBLSMTPD: what every recipient is answered, as the line of a reply of SMTP; not if the client may relay.
    pub listed: Option<Box<[u8]>>,
    /// What else is different for this client.
    pub terms: Terms,
    /// Why no message of this client is taken, whatever is in it: a report.
    pub refusal: Option<&'static str>,
}

impl Peer {
    /// What counts for this client.
    pub(crate) fn rules<'a>(&'a self, config: &'a Config) -> Rules<'a> {
        Rules {
            refusals: &config.refusals,
            rcpthosts: &config.rcpthosts,
            terms: &self.terms,
            is_listed: self.listed.is_some(),
            relays: self.relay_client.is_some(),
            is_lmtp: false,
            is_let_through: false,
        }
    }

    /// The Received field (qmail-family §3.4).
    fn received(&self, config: &Config, protocol: &str, unix_s: u64) -> Vec<u8> {
        Received {
            hides_client: false,
            remote_host: self.remote_host.as_deref().unwrap_or(b"unknown"),
            remote_ip: &self.remote_ip,
            remote_info: self.remote_info.as_deref(),
            helo: None,
            local_host: self.local_host.as_deref().unwrap_or(&config.me),
            protocol,
            tls: None,
            priority: None,
            certificate: None,
            unix_s,
        }
        .line()
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// Bytes from the client, in any chunks.
    Bytes(&'a [u8]),
    /// The directory's answer to [`Action::CheckRecipient`].
    Recipient { question: u32, answer: RecipientAnswer },
    /// The queue's answer to [`Action::Commit`].
    Queue(QueueAnswer),
    /// The time of `deadline` is over.
    Deadline,
    /// The client is gone.
    Closed,
    /// The system goes down.
    Drain,
}

/// What the queue says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueAnswer {
    /// Durable: the number of the message in the queue, if it said one, and the number behind `qp`.
    Accepted { id: Option<u64>, qp: u32 },
    /// Not taken: `D` or `Z` and why, as the qmail-queue interface has it.
    Refused(Vec<u8>),
}

/// What the driver has to do, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// A message begins: its text comes first, its envelope last.
    Begin,
    /// The next bytes of the text, in qmail's LF form.
    Text(Vec<u8>),
    /// Ask the directory, and feed [`Input::Recipient`]. `size` 0: how long the message is is not known.
    CheckRecipient { question: u32, recipient: Address, size: u64 },
    /// One more recipient of the message.
    Recipient(Address),
    /// The message is whole: hand it over, and feed [`Input::Queue`].
    Commit(Commit),
    /// Nothing comes of the message.
    Abandon,
    /// Write these bytes.
    Answer(Vec<u8>),
    /// A line of the log.
    Log(String),
    /// The session is over.
    Close,
}

/// The end of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub sender: Address,
    /// The text has bytes over 127.
    pub eight_bit: bool,
    /// The envelope has.
    pub utf8: bool,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client closed the connection between two messages, or had its one answer (QMQP).
    Done,
    /// It was gone in the middle of a message.
    Gone,
    /// It spoke something else.
    Protocol,
    /// A length or a number over our bounds.
    Limit,
    /// It took too long.
    Timeout,
    /// The system went down.
    Drained,
}

impl End {
    /// As the classic programs end.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done | Self::Gone | Self::Drained => 0,
            Self::Protocol => 100,
            Self::Limit | Self::Timeout => 111,
        }
    }
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed => Self::Protocol,
            Fault::TooLong => Self::Limit,
        }
    }
}

/// What a session did, for the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub messages: u64,
    pub recipients: u64,
    pub bytes: u64,
    pub refused: u64,
}

/// What both machines know of their connection.
#[derive(Debug)]
pub struct Connection {
    pub(crate) config: Arc<Config>,
    pub(crate) peer: Peer,
    pub(crate) clock: Clock,
    started: Duration,
    pub(crate) counts: Counts,
    pub(crate) end: Option<End>,
}

impl Connection {
    pub(crate) fn new(config: Arc<Config>, peer: Peer, now: Now) -> Self {
        Self { config, peer, clock: Clock::new(now), started: now.boot, counts: Counts::default(), end: None }
    }

    /// Why the session is over, if it is.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.end
    }

    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Since boot.
    #[must_use]
    pub fn started(&self) -> Duration {
        self.started
    }

    /// When the client has waited too long with its next byte, since boot.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.clock.deadline(self.config.timeout_s)
    }

    /// The Received field of a message that begins now.
    pub(crate) fn received(&self, protocol: &str) -> Vec<u8> {
        self.peer.received(&self.config, protocol, self.clock.now.unix_s)
    }
}

/// The two deadlines of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) now: Now,
    heard: Duration,
    /// When the first byte of the message under way came.
    began: Option<Duration>,
}

impl Clock {
    pub(crate) fn new(now: Now) -> Self {
        Self { now, heard: now.boot, began: None }
    }

    pub(crate) fn hears(&mut self, now: Now) {
        (self.now, self.heard) = (now, now.boot);
        self.began.get_or_insert(now.boot);
    }

    pub(crate) fn is_between_messages(&mut self) {
        // What its answer took is not the client's time.
        (self.began, self.heard) = (None, self.now.boot);
    }

    pub(crate) fn deadline(&self, timeout_s: u64) -> Duration {
        let silent = self.heard.saturating_add(Duration::from_secs(timeout_s));
        let whole = self.began.map(|began| began.saturating_add(Duration::from_secs(MESSAGE_S)));
        whole.map_or(silent, |whole| whole.min(silent))
    }
}

/// The answer for a message that is in the queue.
pub(crate) fn accepted(unix_s: u64, qp: u32) -> Vec<u8> {
    format!("Kok {unix_s} qp {qp}").into_bytes()
}

/// Is the text printable, and not too long for anybody? What a program said may be anything.
pub(crate) fn printable(mut report: Vec<u8>) -> Vec<u8> {
    const REPORT_LEN_MAX: usize = 1000;
    report.truncate(REPORT_LEN_MAX);
    report.iter_mut().filter(|b| !matches!(b, b' '..=b'~')).for_each(|b| *b = b'?');
    report
}

/// [`Peer::refusal`] of a client whose mail a program has to see (QMAILQUEUE, RCPTCHECK) that is not asked here.
pub const NEEDS_PROGRAM: &str = "Za program has to see this mail, and can do so by SMTP alone; send it by SMTP (#4.3.5)";
pub(crate) const CANNOT_HANDLE: &str = "Dsorry, I can't handle that recipient (#5.1.3)";
pub(crate) const BAD_SENDER: &str = "Dunacceptable sender (#5.1.7)";
pub(crate) const TOO_LARGE: &str = "Dsorry, that message size exceeds my databytes limit (#5.3.4)";
pub(crate) const BARE_LF: &str = "Da CR or LF that ends no line; see https://cr.yp.to/docs/smtplf.html (#5.6.11)";
pub(crate) const TOO_MANY_HOPS: &str = "Dtoo many hops, this message is looping (#5.4.6)";
pub(crate) const LINE_TOO_LONG: &str = "Da line of this message is too long (#5.6.0)";
pub(crate) const TOO_MANY: &str = "Ztoo many recipients, send the rest in another message (#4.5.3)";
pub(crate) const BAD_ADDRESS: &str = "Dsorry, I can't accept addresses like that (#5.1.3)";

/// The line that ties a message of the queue to its client.
pub(crate) fn taken_line(peer: &Peer, id: Option<u64>, qp: u32, sender: &Address, recipients: u64, bytes: u64) -> String {
    let line = Line::new("accepted").bytes("remote", &peer.remote_ip);
    let line = if let Some(id) = id { line.put("msg", id) } else { line };
    let line = line.address("from", sender.as_bytes()).put("recipients", recipients);
    line.put("bytes", bytes).put("qp", qp).finish()
}

/// The line of a recipient, or of a message, that is not taken; `report` has its letter.
pub(crate) fn refused(peer: &Peer, sender: &Address, recipient: Option<&Address>, report: &[u8]) -> String {
    let line = Line::new("refused").bytes("remote", &peer.remote_ip).address("from", sender.as_bytes());
    let line = if let Some(recipient) = recipient { line.address("to", recipient.as_bytes()) } else { line };
    line.bytes("reply", report).finish()
}
