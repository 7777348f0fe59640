//! What goes into the client machine and what comes out of it.

use wire::{Address, By, Login, Priority, Secret};

use crate::client::Outcome;
use crate::command::RcptParameters;
use wire::dsn::{Envid, Ret};

/// What happened to the connection.
#[derive(Debug)]
pub enum Input<'a> {
    /// Bytes from the server, in any chunks.
    Bytes(&'a [u8]),
    /// All of [`Action::SendBody`] was handed to the connection.
    BodySent,
    /// The body could not be read to its end. Whatever was written of it, the final dot was not.
    BodyUnreadable,
    /// The stage of the last [`Action::Deadline`] took too long.
    Timeout,
    /// End of file or an error, while reading or writing.
    Closed,
    /// Deliver this; only after [`Action::Ready`] or a [`Action::Finished`] whose session is alive.
    Begin(Transaction),
    /// Say QUIT; as `Begin`.
    Quit,
    /// The handshake of [`Action::StartTls`] is done; the bytes that follow came through TLS.
    TlsStarted,
    /// It failed, or took too long; why, for the report: printable ASCII without line ends.
    TlsFailed(&'a str),
}

/// What the driver has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Write these bytes.
    Send(Vec<u8>),
    /// Write these bytes, and keep them nowhere.
    SendSecret(Secret),
    /// Start TLS once everything is written, and feed [`Input::TlsStarted`] or [`Input::TlsFailed`]. If the connection still has bytes
    /// for us before the handshake begins, feed them as [`Input::Bytes`].
    StartTls,
    /// Write the whole body by [`crate::encode::Encoder`], then feed [`Input::BodySent`]. Go on reading meanwhile: the server may
    /// give up on us early.
    SendBody,
    /// From now until the next of these, waiting is bounded by this stage.
    Deadline(Stage),
    /// The session is open: a transaction may begin.
    Ready,
    /// The session failed before any transaction: try the next host. The text is a report for all recipients, temporary.
    Unusable(String),
    /// As [`Action::Unusable`], for want of TLS, which was not demanded ([`Tls::May`]): a new connection may go without.
    NoTls(String),
    /// The transaction is over. If the session is alive ([`crate::client::Client::is_ready`]) another may begin.
    Finished(Finished),
    /// Close the connection; the machine is at its end.
    Close,
}

/// The end of a transaction.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished {
    /// One per recipient, in their order.
    pub outcomes: Vec<Outcome>,
    /// The session broke before the server had answered MAIL: nothing about this message or its addresses was said, and
    /// another connection may be tried at once.
    pub untouched: bool,
}

/// What the client waits for (RFC 5321 §4.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Greeting,
    /// A reply to EHLO, HELO, RSET, MAIL or RCPT, or one on the way to TLS or a login.
    Command,
    /// The whole TLS handshake.
    Handshake,
    DataInitiation,
    /// Between two writes of the body that get on.
    DataBlock,
    DataTermination,
    Quit,
}

impl Stage {
    /// The time of RFC 5321 §4.5.3.2; for QUIT a few seconds, since nothing depends on its answer.
    #[must_use]
    pub fn timeout_s(self) -> u64 {
        match self {
            Self::Greeting | Self::Command => 300,
            Self::DataInitiation => 120,
            // Of our own: a few round trips, and a server short of entropy or under load.
            Self::Handshake => 60,
            Self::DataBlock => 180,
            Self::DataTermination => 600,
            Self::Quit => 5,
        }
    }
}

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    #[default]
    Smtp,
    /// RFC 2033.
    Lmtp,
}

/// What a session must have before a transaction may begin.
#[derive(Debug, Clone, Default)]
pub struct Security {
    pub protocol: Protocol,
    pub tls: Tls,
    /// Log in with this.
    pub login: Option<Login>,
    /// Log in without TLS, too.
    pub cleartext: bool,
}

/// How the session comes to TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tls {
    /// Not at all.
    #[default]
    No,
    /// By STARTTLS if the server offers it (RFC 3207).
    May,
    /// By STARTTLS, or the server is not usable.
    Must,
    /// It has it: since the first byte, or since STARTTLS.
    Started,
}

/// One message for recipients of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub sender: Address,
    /// At least one.
    pub recipients: Vec<Address>,
    /// Octets on the wire, [`crate::encode::Survey::size`].
    pub size: u64,
    /// The body has bytes over 127.
    pub eight_bit: bool,
    /// The header has bytes over 127 and came in by SMTPUTF8: it needs SMTPUTF8 even when the addresses do not.
    pub smtputf8: bool,
    /// Ask a server that offers XVERP to expand the sender per recipient, with these two delimiters. The driver looks at
    /// [`crate::client::Client::offers`] first and expands itself where XVERP is not offered.
    pub xverp: Option<[u8; 2]>,
    /// It may only go by TLS, and on to servers that keep to that, too (RFC 8689).
    pub requiretls: bool,
    /// Said to a server that offers DSN (RFC 3461).
    pub dsn: Option<Box<Dsn>>,
    /// The time that is left to deliver it by, said to a server that offers DELIVERBY (RFC 2852); with [`By::returns`] no other gets it.
    pub by: Option<By>,
    /// Said to a server that offers MT-PRIORITY (RFC 6710).
    pub priority: Option<Priority>,
}

/// What the sender asks for of reports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dsn {
    pub ret: Option<Ret>,
    pub envid: Option<Envid>,
    /// One for each recipient, in their order.
    pub recipients: Vec<RcptParameters>,
}

impl Transaction {
    /// RFC 6531 §3.2.
    #[must_use]
    pub fn needs_smtputf8(&self) -> bool {
        self.smtputf8 || self.sender.is_utf8_only() || self.recipients.iter().any(Address::is_utf8_only)
    }
}
