//! What goes into the server machine and what comes out of it: [`Input`], [`Action`], and the facts a session starts with.

use super::hook::{HookAnswer, HookQuestion, Stages};
use super::parameters::TransferRules;
use super::policy::{RcptHosts, Refusals};
use crate::command::RcptParameters;
use crate::data::BareLf;
use sasl::{Mechanism, Mechanisms, Secret};
use std::net::IpAddr;
use std::time::Duration;
use wire::dsn::{Envid, Ret};
use wire::{Address, DeliverBy, Priority};

/// Everything that can happen to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input<'a> {
    /// Bytes from the client, in order, cut anywhere. Not to be fed while [`super::Session::wants_input`] is false, though
    /// [`super::HELD_LEN_MAX`] of them would be held.
    Bytes(&'a [u8]),
    /// The directory's answer to [`Action::CheckRecipient`]; answers may come in any order.
    Recipient { question: u32, answer: RecipientAnswer },
    /// The answer to [`Action::LogIn`], [`Action::SaslStart`] or [`Action::SaslStep`].
    Login(LoginAnswer),
    /// The answer to [`Action::StartTls`].
    Tls(TlsAnswer),
    /// The answer to [`Action::CheckSender`].
    Sender(SenderAnswer),
    /// The answer to [`Action::JudgeHeader`].
    Header(HeaderAnswer),
    /// The answer to [`Action::Admit`].
    Admitted { relays: bool, logins: Logins },
    /// The answer to [`Action::Hook`].
    Hook(HookAnswer),
    /// The queue's answer to [`Action::Commit`].
    Queue(QueueAnswer),
    /// [`super::Session::deadline`] has passed.
    Deadline,
    /// The system goes down: a session that has no message under way ends now, the others after it.
    Drain,
    /// The client is gone.
    Closed,
}

/// What the directory knows about a recipient, and a program that was asked after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipientAnswer {
    Exists,
    NoMailbox,
    /// The domain is none that this system delivers for.
    NotOurs,
    /// Cannot tell now, or there was no answer in time.
    Temporary,
    /// The mailbox has no room for the message.
    Full {
        is_temporary: bool,
    },
    /// A program refuses it; `reply`: its own words, if it has any.
    Refused {
        reply: Option<Box<[u8]>>,
    },
    /// A program says that this client sends too much.
    OverLimit {
        reply: Option<Box<[u8]>>,
    },
}

/// What became of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginAnswer {
    /// `user`: the account's own name for itself.
    Accepted { user: Box<[u8]> },
    /// The exchange goes on: only after [`Action::SaslStart`] and [`Action::SaslStep`].
    Challenge(Box<[u8]>),
    /// Wrong name or wrong password; which one is never said. The driver takes its time before it says so.
    Refused,
    /// It could not be found out now.
    Temporary,
}

/// What became of STARTTLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsAnswer {
    /// There is no certificate now; nothing was said to the client.
    Unavailable,
    /// The client was told to go on, and the handshake did not come to its end.
    Failed,
    Started(Box<Tls>),
}
/// May who is logged in send as this address?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenderAnswer {
    Yes,
    NotYours,
    /// The account has sent as much as it may for now.
    Limited(SendingLimit),
    /// Cannot tell now, or there was no answer in time.
    Temporary,
}

/// What became of the header of a message that is submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderAnswer {
    /// The header as it goes on, ending in LF unless it is empty.
    Accepted {
        header: Vec<u8>,
    },
    /// With its addresses completed it is too large.
    TooLarge,
    /// It does not tell beyond doubt who wrote the message.
    Unclear,
    /// It names an author whom the client may not send as.
    NotYours,
    Limited(SendingLimit),
    Temporary,
}

/// What an account has sent too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendingLimit {
    MessagesPerHour,
    RecipientsPerHour,
    MessagesPerDay,
    RecipientsPerDay,
}

/// What protects a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The cipher suite's IANA name, as `TLS_AES_256_GCM_SHA384`: the `tls` clause of Received (RFC 8314 §4.3).
    pub cipher: Box<str>,
    /// Channel binding `tls-exporter` (RFC 9266), which TLS 1.2 does not always have.
    pub exporter: Option<[u8; 32]>,
    /// Channel binding `tls-server-end-point` (RFC 5929), where the certificate's signature has a hash.
    pub end_point: Option<Box<[u8]>>,
    /// The client's certificate, if it is a listed one.
    pub client: Option<Box<ListedClient>>,
}

/// What a client may do for the certificate that it has shown (`control/tlsclients`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListedClient {
    /// The line for which it may relay.
    pub relay: Option<Box<str>>,
    /// The line that names the account for which it may log in by EXTERNAL.
    pub login: Option<Box<str>>,
}

impl ListedClient {
    /// The line that is shown in Received and in the log.
    #[must_use]
    pub fn line(&self) -> Option<&str> {
        self.relay.as_deref().or(self.login.as_deref())
    }
}

/// What the queue said to a commit. Texts are for the client; an enhanced status code at their start, or in qmail's `(#x.y.z)`
/// form at their end, is used instead of the general one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueAnswer {
    /// The message is durable (promise 1). `id`: the queue's, if it said one; `qp`: the process that queued it.
    Accepted {
        id: Option<u64>,
        qp: u32,
    },
    Temporary(Vec<u8>),
    Permanent(Vec<u8>),
}

/// Envelope of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// With XVERP in qmail's form: `pre` becomes `pre-@host-@[]` (qmail-family §3.6).
    pub sender: Address,
    /// At least one.
    pub recipients: Vec<Address>,
    /// The client declared BODY=8BITMIME.
    pub eight_bit: bool,
    /// The client declared SMTPUTF8.
    pub utf8: bool,
    /// The client demands TLS all the way (RFC 8689).
    pub requiretls: bool,
    pub asked: Asked,
}

/// What the client asks for beside the envelope.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asked {
    /// RFC 3461.
    pub ret: Option<Ret>,
    pub envid: Option<Envid>,
    /// Not to be delivered before, UNIX seconds (RFC 4865).
    pub hold_until_s: Option<u64>,
    /// RFC 2852.
    pub deliver_by: Option<DeliverBy>,
    /// RFC 6710; what this client may ask for.
    pub priority: Option<Priority>,
    /// Of recipients, by their place in [`Envelope::recipients`], in that order; those who have none are left out.
    pub recipients: Vec<(u32, RcptParameters)>,
}

/// What the driver has to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send to the client; may wait in a buffer until the session wants input.
    Reply(Vec<u8>),
    /// Ask the directory, answer by [`Input::Recipient`].
    CheckRecipient {
        question: u32,
        recipient: Address,
        /// As MAIL told it (RFC 1870); 0: not told.
        size: u64,
    },
    /// Have this login judged, answer by [`Input::Login`].
    LogIn { user: Box<[u8]>, password: Secret },
    /// Have this exchange begun, with what the client sent along, answer by [`Input::Login`].
    SaslStart { mechanism: Mechanism, initial: Option<Secret> },
    /// The client's response to the last [`LoginAnswer::Challenge`], answer by [`Input::Login`].
    SaslStep { response: Secret },
    /// Send what waits and, if there is a certificate, `go`; then start the handshake. Answer by [`Input::Tls`]. Bytes of the client that
    /// were read before are not part of it.
    StartTls { go: Vec<u8> },
    /// May [`super::Session::user`] send as this address? Answer by [`Input::Sender`].
    CheckSender { sender: Address },
    /// Have the header of the message that began judged and completed, answer by [`Input::Header`]. Asked once for a message, of
    /// clients that are logged in or submit; `recipients` counts those of the envelope.
    JudgeHeader { header: Vec<u8>, recipients: u64 },
    /// The connection stands for another client (XCLIENT; `None`: its address is not known). What it may do now is answered by
    /// [`Input::Admitted`].
    Admit { address: Option<IpAddr> },
    /// Have the programs of this stage run, answer by [`Input::Hook`].
    Hook(Box<HookQuestion>),
    /// A message begins; one at a time.
    Begin(Box<Envelope>),
    /// The header of the message asks for this priority (RFC 6758), which MAIL did not; before any text but the Received field goes on.
    Priority(Priority),
    /// The next bytes of its text, in LF form. The first are the Received field.
    Body(Vec<u8>),
    /// The message is complete; answer by [`Input::Queue`].
    Commit,
    /// Forget the message.
    Abandon,
    /// One line about a refusal or an accepted message, in the form of [`logline::Line`]: nothing in it is unescaped.
    Log(String),
    /// Send what waits, then close. Nothing follows.
    Close,
}

/// Room for the replies to a pipelined transaction, so that they are joined without moving.
const REPLIES_LEN: usize = 128;

/// A list of actions to which the machine adds; neighbouring replies and neighbouring pieces of text are joined.
#[derive(Debug, Default)]
pub struct Actions(pub Vec<Action>);

impl Actions {
    /// One reply line, without CRLF.
    pub(super) fn reply(&mut self, line: &[u8]) {
        if !matches!(self.0.last(), Some(Action::Reply(_))) {
            self.0.push(Action::Reply(Vec::with_capacity(line.len().saturating_add(2).max(REPLIES_LEN))));
        }
        if let Some(Action::Reply(bytes)) = self.0.last_mut() {
            bytes.extend_from_slice(line);
            bytes.extend_from_slice(b"\r\n");
        }
    }

    pub(super) fn push(&mut self, action: Action) {
        self.0.push(action);
    }

    pub(super) fn body(&mut self, piece: Vec<u8>) {
        match self.0.last_mut() {
            _ if piece.is_empty() => {}
            Some(Action::Body(bytes)) => bytes.extend_from_slice(&piece),
            _ => self.0.push(Action::Body(piece)),
        }
    }
}

/// Clocks, read by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For dates and replies.
    pub unix_s: u64,
    /// For deadlines: CLOCK_BOOTTIME, never steps. In whole seconds a time-out of one second could come at once.
    pub boot: Duration,
}

/// Who is connected.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    pub remote_ip: Box<[u8]>,
    /// TCPREMOTEHOST; `None` reads `unknown`.
    pub remote_host: Option<Box<[u8]>>,
    /// TCPREMOTEINFO.
    pub remote_info: Option<Box<[u8]>>,
    /// An IPv4 address as such, not in its IPv6 form.
    pub local_ip: Option<IpAddr>,
    /// The `by` of Received; `None` is [`Config::me`].
    pub local_host: Option<Box<[u8]>>,
    /// The client may relay: RELAYCLIENT with its value, which is appended to each recipient.
    pub relay_client: Option<Box<[u8]>>,
    pub logins: Logins,
    pub starttls: StartTls,
    /// TLS from the first byte, or since STARTTLS.
    pub tls: Option<Box<Tls>>,
    /// For mail of this system's users only (RFC 6409): nothing goes without a login, unless the client is a relay client.
    pub is_submission: bool,
    /// LMTP (RFC 2033): for this system's recipients only, each with a reply of its own behind the text. Nobody logs in, nobody relays.
    pub is_lmtp: bool,
    /// May it say for whom it stands (XCLIENT)? For `control/xclient` only.
    pub xclient: bool,
    /// `DATABYTES` of this connection instead of [`Limits::databytes`].
    pub databytes: Option<u64>,
    /// RBLSMTPD: what every recipient is answered, a code of refusal and text; not of relay clients.
    pub listed: Option<Box<[u8]>>,
    /// What else is different for this connection.
    pub terms: Terms,
    /// At which stages programs are to be asked ([`Action::Hook`]).
    pub hooks: Stages,
}

/// What a rule of `control/tcp.smtp` or the environment says of a connection (qmail-family §2.4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// How long the greeting is held back; not for relay clients. Who speaks before it is refused.
    pub greet_delay: Duration,
    /// NOBADHELO.
    pub any_helo: bool,
    /// DISABLE_BADMAILFROM.
    pub any_sender: bool,
    /// REJECTNULLSENDERS instead of [`Refusals::null_senders`].
    pub null_senders: Option<bool>,
    /// DISABLE_MAXRCPT.
    pub any_number: bool,
    /// BRTLIMIT instead of [`Limits::bad_recipients_max`].
    pub bad_recipients_max: Option<u32>,
}

/// May this client log in, decided before the first byte?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Logins {
    /// There is nobody to judge a login.
    #[default]
    NotHere,
    /// A password may not be sent over this connection: it has no TLS and does not come from `control/authcleartext`.
    NotInClear,
    Offered,
}

/// May a connection in the clear become one with TLS?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartTls {
    /// There is no certificate, or nobody who could use it.
    #[default]
    NotHere,
    Offered,
}

/// Bounds of a session. Each has a clear refusal.
#[derive(Debug, Clone)]
pub struct Limits {
    /// `control/databytes`: message size as stored, 0 for none. 552 5.3.4.
    pub databytes: u64,
    /// `control/maxrcpt`: recipients of a message; RFC 5321 §4.5.3.1.8 wants at least 100. Beyond it 452 4.5.3, and clients send
    /// the rest in another transaction. The default lets a mailing list of usual size pass in one.
    pub recipients_max: usize,
    /// `control/brtlimit`: refused recipients of a session, then 421 4.7.0. 0 for none.
    pub bad_recipients_max: u32,
    /// Other refused commands since the last accepted message, then 421 4.7.0. 0 for none.
    pub errors_max: u32,
    /// Longest line of a text. RFC 5321 §4.5.3.1.6 lets a server stop at 998 bytes; qmail never did. 554 5.6.0.
    pub text_line_len_max: u64,
    /// `control/timeoutsmtpd`: seconds for the next command, or the next bytes of a text. 421 4.4.2.
    pub command_s: u64,
    /// Seconds of a session in all; qmail-queue's 24 hours. 421 4.4.2.
    pub session_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            databytes: 0,
            recipients_max: 10_000,
            bad_recipients_max: 100,
            errors_max: 100,
            text_line_len_max: 1 << 20,
            command_s: 1200,
            session_s: 86_400,
        }
    }
}

/// What all sessions of a process share.
#[derive(Debug, Default)]
pub struct Config {
    pub limits: Limits,
    /// `control/me`.
    pub me: Vec<u8>,
    /// `control/smtpgreeting`, else me.
    pub greeting: Vec<u8>,
    /// `control/localiphost`, else me: the domain of `user@[address of this connection]`.
    pub localiphost: Vec<u8>,
    pub barelf: BareLf,
    /// `control/authmechanisms`.
    pub mechanisms: Mechanisms,
    pub rcpthosts: RcptHosts,
    pub refusals: Refusals,
    pub submission: SubmissionRules,
    pub dsn: DsnOffer,
    pub transfer: TransferRules,
}

/// To whom DSN (RFC 3461) is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DsnOffer {
    /// What is asked for could not be handed on.
    Nobody,
    /// To clients that may send anywhere: strangers, whose sender may be anybody, cannot ask for reports of success.
    #[default]
    Relaying,
    Everybody,
}

/// What holds for who is logged in (`control/submission`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubmissionRules {
    /// The envelope sender has to be an address of the account. Whoever judges the header has to look at its authors, too.
    pub binds_senders: bool,
    /// The Received field does not tell the client's address and its name for itself.
    pub hides_client: bool,
}

impl Default for SubmissionRules {
    fn default() -> Self {
        Self { binds_senders: true, hides_client: false }
    }
}
