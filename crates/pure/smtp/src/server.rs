//! The server side of SMTP as a machine without I/O: qmail-smtpd's whole conversation.
//!
//! A driver feeds [`Input`]s and carries out [`Action`]s in order; it reads from the client only while
//! [`Session::wants_input`], and sends [`Input::Deadline`] when [`Session::deadline`] has passed. The actions do not depend on how
//! the client's bytes were cut.
//!
//! Guarantees:
//! - 250 for a message is said only on the queue's [`QueueAnswer::Accepted`] (promise 1).
//! - Only CRLF.CRLF ends DATA and only its size ends a chunk; no byte of a refused message is taken for a command (promise 2).
//! - Memory has a bound: [`HELD_LEN_MAX`] of input, one command line, one envelope; text is never kept but for
//!   [`HEADER_LEN_MAX`] of a header that has to be judged (promise 3).
//! - Nobody relays who is not named: a recipient passes if the directory knows it, rcpthosts lists its domain or the client is a
//!   relay client or logged in (promise 5). In doubt the answer is temporary (promise 8).
//! - Who is logged in sends as himself (RFC 6409 §6.1), and text of his message goes on only when its header has been judged.
//! - A password is asked for only where [`Logins::Offered`] says so (promise 4), and never gets into a log line.
//!
//! Never: reads a clock, a file or a socket; collects a message.
//! Standards: RFC 5321, RFC 1870, RFC 2033, RFC 2034, RFC 2852, RFC 2920, RFC 3030, RFC 3207, RFC 3461, RFC 4865, RFC 4954, RFC 6152,
//! RFC 6409, RFC 6531, RFC 6710, RFC 6758, RFC 8689;
//! qmail-smtpd's tolerance (qmail-family §1.2): commands may end in LF, HELO is not needed, a second MAIL starts over.
//! Used by qmail-smtpd.

mod auth;
mod exchange;
#[doc(hidden)]
pub mod fuzz;
mod hook;
mod lmtp;
mod parameters;
mod policy;
mod replies;
mod starttls;
mod submission;
#[cfg(test)]
mod tests;
mod text;
mod transaction;
mod xclient;

pub use auth::RESPONSE_LEN_MAX;
pub use exchange::{
    Action, Actions, Asked, Config, Connection, DsnOffer, Envelope, HeaderAnswer, Input, Limits, ListedClient, LoginAnswer,
    Logins, Now, QueueAnswer, RecipientAnswer, SenderAnswer, SendingLimit, StartTls, SubmissionRules, Terms, Tls, TlsAnswer,
};
pub use hook::{HookAnswer, HookQuestion, Stage, Stages, Verdict};
pub use parameters::{PriorityOffer, TransferRules};
pub use policy::{Judged as JudgedRecipient, Passage, RcptHosts, Refusals, Report, Rules, answered};
pub use replies::{NO_CONTROLS, TOO_MANY_CONNECTIONS};
pub use sasl::Secret;
pub use submission::HEADER_LEN_MAX;
pub use transaction::QUESTIONS_MAX;

use crate::command::{COMMAND_LEN_MAX, Command, Offered};
use logline::Line;
use sasl::Exchange;
use std::sync::Arc;
use std::time::Duration;
use submission::Judged;
use text::{Chunk, Message};
use transaction::Transaction;
use wire::Address;

/// Input that is held, in bytes, while a question is open; more of it ends the session. Drivers read less than that at a time.
pub const HELD_LEN_MAX: usize = 256 * 1024;
/// Seconds for a client to take replies, where `timeoutsmtpd` leaves more: they wait in its kernel if it is alive.
const WRITE_S_MAX: u64 = 300;
/// Longest HELO name that is kept; longer than any domain.
const HELO_LEN_MAX: usize = 255;

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Quit,
    /// The client left without QUIT.
    Gone,
    Timeout,
    /// STARTTLS came to nothing.
    Tls,
    /// A bound was passed.
    Limit,
    /// It spoke before the greeting, or a program wants no more of it.
    Refused,
    /// The system goes down.
    Drain,
}

/// What a session did; for its line in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages the queue accepted, their recipients and bytes.
    pub messages: u64,
    pub recipients: u64,
    pub bytes: u64,
    /// Commands, recipients and messages refused, and how many of them were recipients and messages.
    pub refused: u64,
    pub refused_recipients: u64,
    pub refused_messages: u64,
}

/// What is being done; each state owns just its own data.
#[derive(Debug)]
enum State {
    /// The greeting is held back.
    BeforeGreeting,
    /// Programs have been asked.
    Hooking(Box<hook::Parked>),
    /// No transaction.
    Idle,
    /// After MAIL.
    Mail(Transaction),
    /// Text until CRLF.CRLF.
    Data(Message),
    /// Bytes of a chunk.
    Chunk(Message, Chunk),
    /// After a chunk that was not the last.
    BetweenChunks(Message),
    /// Bytes of a chunk that has no place here; then a refusal in the state of before.
    Skip(Chunk, Box<State>),
    /// AUTH: the next line is a response, not a command.
    Exchange(Exchange),
    /// A login is being judged.
    Judging,
    /// STARTTLS: what comes next is no SMTP.
    Handshake,
    /// Whether the sender is the user's is being looked up.
    JudgingSender(Transaction),
    /// The header is with whoever judges it.
    JudgingHeader(Box<Judged>),
    /// What the client told by XCLIENT may do is being asked.
    Admitting,
    /// The queue has been asked.
    Committing {
        sender: Address,
        bytes: u64,
        recipients: u64,
    },
    Closed(End),
}

#[derive(Debug)]
struct Helo {
    name: Box<[u8]>,
    is_extended: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    peer: Connection,
    now: Now,
    started: Duration,
    progress: Duration,
    state: State,
    /// A part of a command, or input behind an open question.
    held: Vec<u8>,
    /// Inside a command line that is too long already.
    in_long_line: bool,
    is_draining: bool,
    helo: Option<Helo>,
    /// Who logged in.
    user: Option<Box<[u8]>>,
    /// XCLIENT was used.
    is_told: bool,
    /// `user` was told by XCLIENT.
    is_login_told: bool,
    failed_logins: u32,
    questions: u32,
    errors: u32,
    bad_recipients: u32,
    /// What the driver gave, before programs said anything.
    at_first: hook::Rights,
    /// What there was when the client was greeted.
    at_greeting: hook::Rights,
    /// A program accepts the command under way, whatever the lists say.
    is_let_through: bool,
    /// What is said behind the chunk that is being skipped.
    chunk_refusal: Option<Vec<u8>>,
    /// The priority that the message under way has instead of the one that was asked for.
    new_priority: Option<wire::Priority>,
    counts: Counts,
}

impl Session {
    /// A new connection; the actions hold the greeting.
    #[must_use]
    pub fn new(config: Arc<Config>, peer: Connection, now: Now, out: &mut Actions) -> Self {
        let rights = peer.rights();
        let mut session = Self {
            config,
            peer,
            now,
            started: now.boot,
            progress: now.boot,
            state: State::Idle,
            held: Vec::new(),
            in_long_line: false,
            is_draining: false,
            helo: None,
            user: None,
            is_told: false,
            is_login_told: false,
            failed_logins: 0,
            questions: 0,
            errors: 0,
            bad_recipients: 0,
            at_first: rights.clone(),
            at_greeting: rights,
            is_let_through: false,
            chunk_refusal: None,
            new_priority: None,
            counts: Counts::default(),
        };
        session.begin_session(out);
        session
    }

    fn greet(&mut self, out: &mut Actions) {
        self.at_greeting = self.peer.rights();
        let protocol: &[u8] = if self.peer.is_lmtp { b" LMTP" } else { b" ESMTP" };
        out.reply(&[b"220 ", &self.config.greeting[..], protocol].concat());
    }

    /// One thing happened; what to do about it is added to `out`.
    pub fn step(&mut self, now: Now, input: Input<'_>, out: &mut Actions) {
        let is_late = now.boot >= self.deadline();
        self.now = now;
        if matches!(self.state, State::BeforeGreeting) {
            return self.before_greeting(&input, is_late, out);
        }
        match input {
            _ if matches!(self.state, State::Closed(_)) => {}
            Input::Bytes(_) | Input::Deadline if is_late => self.close(End::Timeout, Some(replies::TIMEOUT), out),
            Input::Deadline => {}
            Input::Bytes(bytes) => self.bytes(bytes, out),
            Input::Recipient { question, answer } => {
                self.progress = now.boot;
                self.recipient_answered(question, answer, out);
                self.resume(out);
            }
            Input::Login(answer) => {
                self.progress = now.boot;
                self.login_answered(answer, out);
                self.resume(out);
            }
            Input::Tls(answer) => {
                self.progress = now.boot;
                self.tls_answered(answer, out);
            }
            Input::Sender(answer) => {
                self.progress = now.boot;
                self.sender_answered(answer, out);
                self.resume(out);
            }
            Input::Header(answer) => {
                self.progress = now.boot;
                self.header_answered(answer, out);
                self.resume(out);
            }
            Input::Admitted { relays, logins } => {
                self.progress = now.boot;
                self.admitted(relays, logins, out);
                self.resume(out);
            }
            Input::Hook(answer) => {
                self.progress = now.boot;
                self.hook_answered(answer, out);
                self.resume(out);
            }
            Input::Queue(answer) => {
                self.progress = now.boot;
                self.queue_answered(&answer, out);
                self.resume(out);
            }
            Input::Drain => {
                self.is_draining = true;
                self.end_if_draining(out);
            }
            Input::Closed => self.close(End::Gone, None, out),
        }
    }

    /// May the driver read from the client now?
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.is_waiting() && !matches!(self.state, State::Closed(_)) && !self.is_asking()
    }

    /// When [`Input::Deadline`] is due, in [`Now::boot`]. Open questions have deadlines of their own, which the driver keeps.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        if !self.wants_input() {
            return Duration::MAX;
        }
        if matches!(self.state, State::BeforeGreeting) {
            return self.started.saturating_add(self.peer.terms.greet_delay);
        }
        let limits = &self.config.limits;
        let after = |start: Duration, seconds| start.saturating_add(Duration::from_secs(seconds));
        after(self.progress, limits.command_s).min(after(self.started, limits.session_s))
    }

    /// A client that takes no byte of a reply for so long is gone.
    #[must_use]
    pub fn write_deadline(&self) -> Duration {
        Duration::from_secs(self.config.limits.command_s.min(WRITE_S_MAX))
    }

    /// Why the session is over, if it is.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        match self.state {
            State::Closed(end) => Some(end),
            _ => None,
        }
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The client's name for itself, as sent.
    #[must_use]
    pub fn helo(&self) -> Option<&[u8]> {
        self.helo.as_ref().map(|helo| &helo.name[..]).filter(|name| !name.is_empty())
    }

    /// Who logged in, by the account's own name.
    #[must_use]
    pub fn user(&self) -> Option<&[u8]> {
        self.user.as_deref()
    }

    /// The sender of the transaction.
    #[must_use]
    pub fn sender(&self) -> Option<&Address> {
        match &self.state {
            State::Mail(transaction) => Some(transaction.sender()),
            _ => None,
        }
    }

    #[must_use]
    pub fn peer(&self) -> &Connection {
        &self.peer
    }

    /// When the connection came, in [`Now::boot`].
    #[must_use]
    pub fn started(&self) -> Duration {
        self.started
    }

    fn databytes(&self) -> u64 {
        self.peer.databytes.unwrap_or(self.config.limits.databytes)
    }

    /// May the client send to any domain?
    fn is_relay_client(&self) -> bool {
        self.peer.relay_client.is_some() || self.user.is_some()
    }

    fn offered(&self) -> Offered {
        let dsn = self.offers_reports();
        // Whoever queues for another program cannot tell it to wait.
        let hold = self.config.dsn != DsnOffer::Nobody && self.is_header_judged();
        // Over TLS only (RFC 8689 §2); whoever queues for another program cannot tell it what is demanded.
        let requiretls = self.peer.tls.is_some() && self.config.dsn != DsnOffer::Nobody;
        let (deliver_by, priority) = (self.offers_deliver_by(), self.offers_priority());
        Offered { verp: self.is_relay_client(), dsn, hold, requiretls, deliver_by, priority }
    }

    /// A submission that is nobody's yet. Networks of `control/relayclients` need no login: they are authorized by their address
    /// (RFC 6409 §4.3).
    fn needs_login(&self) -> bool {
        self.peer.is_submission && !self.is_relay_client()
    }

    /// Would a login have to wait for STARTTLS?
    fn needs_tls(&self) -> bool {
        self.peer.logins == Logins::NotInClear && self.peer.starttls == StartTls::Offered
    }

    /// Nothing can be done before an answer comes.
    fn is_waiting(&self) -> bool {
        matches!(
            self.state,
            State::Hooking(_)
                | State::Judging
                | State::JudgingSender(_)
                | State::JudgingHeader(_)
                | State::Handshake
                | State::Admitting
                | State::Committing { .. }
        )
    }

    fn is_asking(&self) -> bool {
        matches!(&self.state, State::Mail(transaction) if transaction.is_asking())
    }

    fn bytes(&mut self, bytes: &[u8], out: &mut Actions) {
        if self.held.is_empty() {
            let left = self.drive(bytes, out);
            self.held.extend_from_slice(left);
        } else {
            self.held.extend_from_slice(bytes);
            self.resume(out);
        }
        if self.held.len() > HELD_LEN_MAX {
            self.close(End::Limit, Some(replies::TOO_MUCH_HELD), out);
        }
    }

    /// Goes on with the input that is held.
    fn resume(&mut self, out: &mut Actions) {
        let mut held = std::mem::take(&mut self.held);
        let taken = held.len().saturating_sub(self.drive(&held, out).len());
        held.drain(..taken);
        // An empty buffer of a session that may idle for hours goes back.
        self.held = if held.is_empty() { Vec::new() } else { held };
    }

    /// Takes all steps that `input` allows; gives back what has to wait.
    fn drive<'a>(&mut self, input: &'a [u8], out: &mut Actions) -> &'a [u8] {
        let mut rest = input;
        while self.advance(&mut rest, out) {}
        rest
    }

    /// One step; false when it needs more input or an answer first.
    fn advance(&mut self, rest: &mut &[u8], out: &mut Actions) -> bool {
        match &self.state {
            State::Idle | State::Mail(_) | State::BetweenChunks(_) | State::Exchange(_) => return self.line(rest, out),
            State::BeforeGreeting
            | State::Hooking(_)
            | State::Judging
            | State::JudgingSender(_)
            | State::JudgingHeader(_)
            | State::Admitting
            | State::Committing { .. } => return false,
            State::Handshake => {
                if !rest.is_empty() {
                    *rest = &[];
                    self.bytes_behind_starttls(out);
                }
                return false;
            }
            State::Closed(_) => {
                *rest = &[];
                return false;
            }
            // A chunk that is complete ends without another byte.
            State::Chunk(_, chunk) | State::Skip(chunk, _) if !chunk.is_complete() && rest.is_empty() => return false,
            State::Data(_) if rest.is_empty() => return false,
            State::Chunk(..) | State::Skip(..) | State::Data(_) => {}
        }
        self.progress = self.now.boot;
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Data(message) => self.take_data(message, rest, out),
            State::Chunk(message, chunk) => self.take_chunk(message, chunk, rest, out),
            State::Skip(chunk, then) => self.take_skipped(chunk, *then, rest, out),
            other => self.state = other,
        }
        true
    }

    /// One line, a command or a response, which ends in LF; a CR before it is not part of it (as with qmail).
    fn line(&mut self, rest: &mut &[u8], out: &mut Actions) -> bool {
        let len_max = if matches!(self.state, State::Exchange(_)) { RESPONSE_LEN_MAX } else { COMMAND_LEN_MAX };
        let Some(lf) = memchr::memchr(b'\n', rest) else {
            // One byte more may be the CR.
            let is_too_long = rest.len() > len_max.saturating_add(1) && !self.is_asking();
            if self.in_long_line || is_too_long {
                self.in_long_line = true;
                *rest = &[];
            }
            return false;
        };
        let (line, behind) = rest.split_at_checked(lf).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let State::Mail(transaction) = &self.state
            && transaction.is_asking()
            && (transaction.is_full_of_questions() || self.peer.hooks.has(Stage::Rcpt) || !is_plain_rcpt(line))
        {
            return false;
        }
        *rest = behind.get(1..).unwrap_or_default();
        self.progress = self.now.boot;
        let is_too_long = std::mem::take(&mut self.in_long_line) || line.len() > len_max;
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Exchange(exchange) => self.response(exchange, line, is_too_long, out),
            state => {
                self.state = state;
                self.command_line(line, is_too_long, rest.is_empty(), out);
            }
        }
        true
    }

    /// `is_last`: the client has sent nothing behind the line.
    fn command_line(&mut self, line: &[u8], is_too_long: bool, is_last: bool, out: &mut Actions) {
        if is_too_long {
            self.refuse(replies::LINE_TOO_LONG, out);
        } else if memchr::memchr(0, line).is_some() {
            self.refuse(replies::NUL, out);
        } else {
            let command = Command::parse(line);
            match self.hook_before(&command) {
                Some(question) => self.ask_hook(question, hook::Then::Command { line: line.into(), is_last }, out),
                None => self.command(command, is_last, out),
            }
        }
    }

    fn command(&mut self, command: Command<'_>, is_last: bool, out: &mut Actions) {
        match command {
            Command::Helo(_) | Command::Ehlo(_) | Command::Lhlo(_) | Command::Auth(_) if !self.speaks(&command) => {
                self.refuse(if self.peer.is_lmtp { lmtp::NOT_SMTP } else { replies::UNIMPLEMENTED }, out);
            }
            Command::Helo(name) => self.hello(name, false, out),
            Command::Ehlo(name) | Command::Lhlo(name) => self.hello(name, true, out),
            Command::Mail(_) | Command::Rcpt(_) | Command::Data(_) | Command::Vrfy | Command::Expn if self.needs_login() => {
                self.refuse(if self.needs_tls() { replies::TLS_FIRST } else { replies::LOGIN_FIRST }, out);
            }
            Command::Mail(_) if matches!(self.state, State::BetweenChunks(_)) => self.refuse(replies::BDAT_OPEN, out),
            Command::Mail(argument) => self.mail(argument, out),
            Command::Rcpt(argument) => self.rcpt(argument, out),
            Command::Data(argument) => self.data(argument, out),
            Command::Bdat(argument) => self.bdat(argument, out),
            Command::Auth(argument) => self.auth(argument, out),
            Command::StartTls(argument) => self.starttls(argument, is_last, out),
            Command::Xclient(argument) => self.xclient(argument, out),
            Command::Rset => {
                self.reset(out);
                out.reply(replies::RSET.as_bytes());
            }
            Command::Noop => out.reply(replies::NOOP.as_bytes()),
            Command::Help => out.reply(replies::HELP.as_bytes()),
            Command::Vrfy => out.reply(replies::VRFY.as_bytes()),
            Command::Quit => {
                let goodbye = [b"221 2.0.0 ", &self.config.greeting[..]].concat();
                self.reset(out);
                out.reply(&goodbye);
                self.close(End::Quit, None, out);
            }
            Command::Expn | Command::Unknown => self.refuse(replies::UNIMPLEMENTED, out),
        }
    }

    /// HELO and EHLO start over (RFC 5321 §4.1.4).
    fn hello(&mut self, name: &[u8], is_extended: bool, out: &mut Actions) {
        self.reset(out);
        let name = name.get(..HELO_LEN_MAX).unwrap_or(name);
        self.helo = Some(Helo { name: name.into(), is_extended });
        let greeting = &self.config.greeting[..];
        if !is_extended {
            return out.reply(&[b"250 ", greeting].concat());
        }
        let size = format!("SIZE {}", self.databytes());
        let verp = self.is_relay_client().then_some("XVERP");
        // Not where it would be refused (RFC 4954 §4), and so not once more.
        let mechanisms = self.config.mechanisms.list(self.protection());
        let mechanisms = mechanisms.filter(|_| self.peer.logins == Logins::Offered && self.user.is_none());
        let auth = mechanisms.map(|list| format!("AUTH {list}"));
        let starttls = (self.peer.starttls == StartTls::Offered && self.peer.tls.is_none()).then_some("STARTTLS");
        let extensions = ["PIPELINING", &size, "8BITMIME", "SMTPUTF8", "CHUNKING", "ENHANCEDSTATUSCODES"];
        let offered = self.offered();
        let dsn = offered.dsn.then_some("DSN");
        let requiretls = offered.requiretls.then_some("REQUIRETLS");
        let hold = offered.hold.then(|| submission::hold_keyword(self.now.unix_s));
        let deliver_by = offered.deliver_by.then(|| self.deliver_by_keyword());
        let priority = offered.priority.then_some("MT-PRIORITY");
        out.reply(&[b"250-", greeting].concat());
        let xclient = self.peer.xclient.then_some(xclient::EXTENSION);
        let known = extensions.into_iter().chain(requiretls).chain(dsn).chain(deliver_by.as_deref()).chain(hold.as_deref());
        let known = known.chain(priority).chain(verp).chain(starttls);
        for extension in known.chain(auth.as_deref()).chain(xclient) {
            out.reply(&[b"250-", extension.as_bytes()].concat());
        }
        out.reply(b"250 HELP");
    }

    /// Gives up the transaction, and the message if one is open.
    fn reset(&mut self, out: &mut Actions) {
        let open = match &self.state {
            State::Data(message) | State::Chunk(message, _) | State::BetweenChunks(message) => message.is_open(),
            State::JudgingHeader(_) => true,
            _ => false,
        };
        if open {
            out.push(Action::Abandon);
        }
        self.state = State::Idle;
    }

    /// Refuses a command.
    fn refuse(&mut self, reply: &'static str, out: &mut Actions) {
        self.log_refusal(None, None, reply, out);
        self.refuse_unlogged(reply, out);
    }

    fn refuse_unlogged(&mut self, reply: &'static str, out: &mut Actions) {
        self.refuse_with(reply.as_bytes(), out);
    }

    fn refuse_with(&mut self, reply: &[u8], out: &mut Actions) {
        out.reply(reply);
        self.counts.refused = self.counts.refused.saturating_add(1);
        self.errors = self.errors.saturating_add(1);
        let most = self.config.limits.errors_max;
        if most != 0 && self.errors >= most {
            self.close(End::Limit, Some(replies::TOO_MANY_ERRORS), out);
        }
    }

    fn log_refusal(&self, sender: Option<&Address>, recipient: Option<&Address>, reply: &str, out: &mut Actions) {
        let mut line = self.log_line("refused");
        for (name, address) in [("from", sender), ("to", recipient)] {
            if let Some(address) = address {
                line = line.address(name, address.as_bytes());
            }
        }
        out.push(Action::Log(line.bytes("reply", reply.as_bytes()).finish()));
    }

    /// A line about this client: its address, and what it said of itself.
    fn log_line(&self, event: &str) -> Line {
        Line::new(event).bytes("remote", &self.peer.remote_ip).optional("user", self.user()).optional("helo", self.helo())
    }

    /// Ends the session if the system goes down and no message is under way.
    fn end_if_draining(&mut self, out: &mut Actions) {
        if self.is_draining && matches!(self.state, State::Idle | State::Mail(_) | State::Exchange(_)) {
            self.close(End::Drain, Some(replies::GOING_DOWN), out);
        }
    }

    fn close(&mut self, end: End, reply: Option<&str>, out: &mut Actions) {
        if matches!(self.state, State::Closed(_)) {
            return;
        }
        self.refuse_unfinished_text(out);
        self.reset(out);
        if let Some(reply) = reply {
            out.reply(reply.as_bytes());
        }
        self.state = State::Closed(end);
        self.held = Vec::new();
        out.push(Action::Close);
    }
}

/// An RCPT that can be judged while another is: any other line keeps its place by waiting.
fn is_plain_rcpt(line: &[u8]) -> bool {
    line.len() <= COMMAND_LEN_MAX && matches!(Command::parse(line), Command::Rcpt(_)) && memchr::memchr(0, line).is_none()
}
