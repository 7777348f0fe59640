//! What comes before a command is carried out: the greeting that is held back, and programs that may have a say (qmail-spp).
//!
//! A command for whose stage [`Stages`] names programs waits until [`Input::Hook`] answers [`Action::Hook`]; then it
//! goes on, is refused, or the connection is closed. A program is asked about what can be read: a command with a wrong address or at a
//! wrong time is refused without it. What cannot be asked now is 451, never a permanent refusal, and never a yes.
//!
//! Guarantees: a program's words become one safe line that begins with a code of refusal; the bytes of a chunk whose BDAT is refused are
//! read to their end before the refusal is said, and the transaction is over: no chunk behind it begins a message. An answer grants
//! something only if it lets the command go on. What programs granted to a client that STARTTLS or XCLIENT made a stranger again is
//! forgotten ([`Rights`]). Who speaks before the greeting hears 554 and nothing else.

use super::exchange::{Action, Actions, Input};
use super::{End, Session, State, replies};
use crate::command::{self, Command};
use wire::{Address, quote};

/// When programs are asked: the sections of `control/smtpplugins`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Before the greeting.
    Connection,
    Helo,
    Mail,
    Rcpt,
    /// Before the text of a message.
    Data,
    /// When a login was right.
    Auth,
}

impl Stage {
    pub const ALL: [Self; 6] = [Self::Connection, Self::Helo, Self::Mail, Self::Rcpt, Self::Data, Self::Auth];
}

/// A set of stages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stages(u8);

impl Stages {
    #[must_use]
    pub fn has(self, stage: Stage) -> bool {
        self.0 & Self::bit(stage) != 0
    }

    #[must_use]
    pub fn with(self, stage: Stage) -> Self {
        Self(self.0 | Self::bit(stage))
    }

    fn bit(stage: Stage) -> u8 {
        1 << (stage as u8)
    }
}

/// What programs are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookQuestion {
    pub stage: Stage,
    /// The name in HELO, the address of MAIL or RCPT, or who has logged in.
    pub argument: Box<[u8]>,
    /// The sender, from RCPT on.
    pub sender: Option<Address>,
    /// Recipients accepted so far.
    pub recipients: u64,
    /// RCPT: the recipient may pass as far as rcpthosts and the client's rights go.
    pub may_pass: bool,
}

/// What programs say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookAnswer {
    /// Lines before the reply, as `250-text`; what does not continue a reply is left out.
    pub lines: Vec<Vec<u8>>,
    /// RELAYCLIENT is set to this, or taken away.
    pub relay_client: Option<Option<Box<[u8]>>>,
    /// DATABYTES is set to this, or taken away.
    pub databytes: Option<Option<u64>>,
    /// No program is asked any more in this session.
    pub is_last: bool,
    pub verdict: Verdict,
}

/// What becomes of the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, `address` in the place of the one it has.
    GoOn { address: Option<Box<[u8]>> },
    /// As well, and no list of refusals counts; RCPT: rcpthosts neither. Whether a recipient of ours exists is still asked.
    LetThrough { address: Option<Box<[u8]>> },
    /// The reply: code and text.
    Refuse(Vec<u8>),
    /// The reply, if there is to be one, and the end of the connection.
    Close(Option<Vec<u8>>),
    /// It could not be found out now.
    Failed,
}

/// What programs may change of a connection.
#[derive(Debug, Clone)]
pub(super) struct Rights {
    relay_client: Option<Box<[u8]>>,
    databytes: Option<u64>,
    hooks: Stages,
}

impl super::Connection {
    pub(super) fn rights(&self) -> Rights {
        Rights { relay_client: self.relay_client.clone(), databytes: self.databytes, hooks: self.hooks }
    }
}

/// What waits for programs.
#[derive(Debug)]
pub(super) struct Parked {
    then: Then,
    /// The state in which it came.
    state: State,
}

#[derive(Debug)]
pub(super) enum Then {
    Greet,
    Command { line: Box<[u8]>, is_last: bool },
    LoggedIn { user: Box<[u8]> },
}

impl Session {
    /// The greeting, or what comes before it.
    pub(super) fn begin_session(&mut self, out: &mut Actions) {
        if self.peer.terms.greet_delay.is_zero() || self.is_relay_client() {
            self.before_hooks(out);
        } else {
            self.state = State::BeforeGreeting;
        }
    }

    /// Programs are asked about the connection, then the client is greeted.
    pub(super) fn before_hooks(&mut self, out: &mut Actions) {
        self.state = State::Idle;
        self.progress = self.now.boot;
        if self.peer.hooks.has(Stage::Connection) {
            let question = self.hook_question(Stage::Connection, Box::default());
            self.ask_hook(question, Then::Greet, out);
        } else {
            self.greet(out);
        }
    }

    /// A client waits for the greeting (RFC 5321 §4.3.1); one that does not is no mail server.
    pub(super) fn before_greeting(&mut self, input: &Input<'_>, is_late: bool, out: &mut Actions) {
        match input {
            Input::Bytes(bytes) if !bytes.is_empty() => {
                self.log_refusal(None, None, replies::TOO_EARLY, out);
                self.counts.refused = self.counts.refused.saturating_add(1);
                self.close(End::Refused, Some(replies::TOO_EARLY), out);
            }
            Input::Deadline if is_late => self.before_hooks(out),
            Input::Drain => self.close(End::Drain, Some(replies::GOING_DOWN), out),
            Input::Closed => self.close(End::Gone, None, out),
            _ => {}
        }
    }

    /// What programs are to be asked before a command.
    pub(super) fn hook_before(&self, command: &Command<'_>) -> Option<HookQuestion> {
        let address = |argument, keyword| command::path(argument, keyword).ok().map(|(address, _)| address.as_bytes().into());
        let (stage, argument) = match (command, &self.state) {
            (Command::Helo(name) | Command::Ehlo(name) | Command::Lhlo(name), _) if self.speaks(command) => {
                (Stage::Helo, (*name).into())
            }
            (Command::Mail(_) | Command::Rcpt(_) | Command::Data(_) | Command::Bdat(_), _) if self.needs_login() => return None,
            (Command::Mail(argument), State::Idle | State::Mail(_)) => (Stage::Mail, address(argument, "FROM")?),
            (Command::Rcpt(argument), State::Mail(_)) => (Stage::Rcpt, address(argument, "TO")?),
            (Command::Data(b""), State::Mail(transaction)) if transaction.has_recipients() => (Stage::Data, Box::default()),
            (Command::Bdat(argument), State::Mail(transaction)) if transaction.has_recipients() => {
                command::bdat(argument)?;
                (Stage::Data, Box::default())
            }
            _ => return None,
        };
        self.peer.hooks.has(stage).then(|| self.hook_question(stage, argument))
    }

    pub(super) fn hook_question(&self, stage: Stage, argument: Box<[u8]>) -> HookQuestion {
        let may_pass = Address::new(&argument).is_ok_and(|address| self.may_pass(&address).is_ok());
        let (sender, recipients) = match &self.state {
            State::Mail(transaction) => (Some(transaction.sender().clone()), transaction.recipients_count()),
            _ => (None, 0),
        };
        HookQuestion { stage, argument, sender: sender.filter(|_| stage != Stage::Mail), recipients, may_pass }
    }

    pub(super) fn ask_hook(&mut self, question: HookQuestion, then: Then, out: &mut Actions) {
        // HELO between chunks starts over (RFC 5321 §4.1.4): no message is kept open while programs think.
        if matches!(self.state, State::BetweenChunks(_)) {
            self.reset(out);
        }
        let state = std::mem::replace(&mut self.state, State::Idle);
        self.state = State::Hooking(Box::new(Parked { then, state }));
        out.push(Action::Hook(Box::new(question)));
    }

    /// The answer to [`Action::Hook`].
    pub(super) fn hook_answered(&mut self, answer: HookAnswer, out: &mut Actions) {
        let Parked { then, state } = match std::mem::replace(&mut self.state, State::Idle) {
            State::Hooking(parked) => *parked,
            other => {
                self.state = other;
                return;
            }
        };
        self.state = state;
        answer.lines.iter().filter(|line| replies::continues(line)).for_each(|line| out.reply(&replies::safe(line)));
        self.take_rights(&answer);
        match answer.verdict {
            Verdict::GoOn { address } => self.go_on(then, address.as_deref(), out),
            Verdict::LetThrough { address } => {
                self.is_let_through = true;
                self.go_on(then, address.as_deref(), out);
                self.is_let_through = false;
            }
            Verdict::Refuse(reply) => self.refuse_parked(&then, replies::refusal(&reply), out),
            Verdict::Failed => self.refuse_parked(&then, replies::HOOK_FAILED.as_bytes().to_vec(), out),
            Verdict::Close(reply) => {
                let reply = reply.map(|reply| String::from_utf8_lossy(&replies::refusal(&reply)).into_owned());
                self.log_refusal(None, None, reply.as_deref().unwrap_or("closed by a program"), out);
                self.counts.refused = self.counts.refused.saturating_add(1);
                self.close(End::Refused, reply.as_deref(), out);
            }
        }
        self.end_if_draining(out);
    }

    /// What is taken away is gone in any case; what is given counts if the command goes on.
    fn take_rights(&mut self, answer: &HookAnswer) {
        let goes_on = matches!(answer.verdict, Verdict::GoOn { .. } | Verdict::LetThrough { .. });
        if let Some(relay_client) = &answer.relay_client
            && !self.peer.is_lmtp
            && (goes_on || relay_client.is_none())
        {
            self.peer.relay_client.clone_from(relay_client);
        }
        if let Some(databytes) = answer.databytes.filter(|_| goes_on) {
            self.peer.databytes = databytes;
        }
        if answer.is_last && goes_on {
            self.peer.hooks = Stages::default();
        }
    }

    /// STARTTLS (RFC 3207 §4.2): what programs said since the greeting they said of a client whose words nobody protected. What they said of
    /// the connection itself is as true as before.
    pub(super) fn forget_since_greeting(&mut self) {
        Rights { relay_client: self.peer.relay_client, databytes: self.peer.databytes, hooks: self.peer.hooks } =
            self.at_greeting.clone();
    }

    /// XCLIENT: nothing that programs said was said of the client that was told.
    pub(super) fn forget_all(&mut self) {
        Rights { relay_client: _, databytes: self.peer.databytes, hooks: self.peer.hooks } = self.at_first.clone();
    }

    fn go_on(&mut self, then: Then, address: Option<&[u8]>, out: &mut Actions) {
        match then {
            Then::Greet => self.greet(out),
            Then::LoggedIn { user } => self.logged_in(user, out),
            Then::Command { line, is_last } => match (Command::parse(&line), address) {
                (Command::Mail(argument), Some(address)) => self.mail(&with_address(argument, "FROM", address), out),
                (Command::Rcpt(argument), Some(address)) => self.rcpt(&with_address(argument, "TO", address), out),
                (command, _) => self.command(command, is_last, out),
            },
        }
    }

    fn refuse_parked(&mut self, then: &Then, reply: Vec<u8>, out: &mut Actions) {
        let text = String::from_utf8_lossy(&reply).into_owned();
        // RFC 5321 §3.8: 421 is the last word. Nobody is greeted who was refused.
        if matches!(then, Then::Greet) || reply.starts_with(b"421") {
            self.log_refusal(None, None, &text, out);
            self.counts.refused = self.counts.refused.saturating_add(1);
            return self.close(End::Refused, Some(&text), out);
        }
        let command = match then {
            Then::Command { line, .. } => Command::parse(line),
            _ => Command::Noop,
        };
        match command {
            Command::Rcpt(argument) => {
                let recipient = command::path(argument, "TO").map_or_else(|_| Address::null(), |(recipient, _)| recipient);
                self.refuse_recipient(&recipient, &text, out);
            }
            // The chunk is on its way: the refusal comes behind it. The transaction is over: a chunk that follows fails, too, instead of
            // beginning a message in its middle (RFC 3030 §2).
            Command::Bdat(argument) => {
                self.state = State::Idle;
                self.chunk_refusal = Some(reply);
                self.skip_chunk(argument);
            }
            _ => {
                self.log_refusal(None, None, &text, out);
                self.refuse_with(&reply, out);
            }
        }
    }
}

/// The argument of MAIL or RCPT with another address.
fn with_address(argument: &[u8], keyword: &str, address: &[u8]) -> Vec<u8> {
    let parameters = command::path(argument, keyword).map(|(_, parameters)| parameters).unwrap_or_default();
    [keyword.as_bytes(), b":<", &quote::address(address), b"> ", parameters].concat()
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Connection, Logins, Now, StartTls, Terms, TlsAnswer};
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    const fn at(seconds: u64) -> Now {
        Now { unix_s: seconds, boot: Duration::from_secs(seconds) }
    }

    fn said(out: &mut Actions) -> String {
        let replies = out.0.drain(..).filter_map(|action| match action {
            Action::Reply(bytes) => Some(String::from_utf8(bytes).unwrap().replace("\r\n", "\n")),
            _ => None,
        });
        replies.collect()
    }

    fn config() -> Arc<Config> {
        Arc::new(Config { greeting: b"mx".to_vec(), ..Config::default() })
    }

    #[test]
    fn who_waits_is_greeted_and_who_does_not_is_refused() {
        let terms = Terms { greet_delay: Duration::from_secs(5), ..Terms::default() };
        let peer = Connection { terms, ..Connection::default() };
        let mut out = Actions::default();
        let mut session = Session::new(config(), peer.clone(), at(1), &mut out);
        assert!(out.0.is_empty() && session.wants_input());
        assert_eq!(session.deadline(), Duration::from_secs(6));
        session.step(at(2), Input::Deadline, &mut out);
        assert!(out.0.is_empty(), "not yet");
        session.step(at(6), Input::Deadline, &mut out);
        assert_eq!(said(&mut out), "220 mx ESMTP\n");
        session.step(at(7), Input::Bytes(b"NOOP\r\n"), &mut out);
        assert_eq!(said(&mut out), "250 2.0.0 ok\n");
        let mut session = Session::new(config(), peer.clone(), at(1), &mut out);
        session.step(at(2), Input::Bytes(b"EHLO x\r\n"), &mut out);
        assert!(out.0.iter().any(
            |action| matches!(action, Action::Log(line) if line.starts_with("refused ") && line.contains("reply=\"554 5.5.1 "))
        ));
        assert_eq!(said(&mut out), "554 5.5.1 you speak before my greeting, which no mail server does\n");
        assert_eq!(session.end(), Some(End::Refused));
        let relay = Connection { relay_client: Some(Box::default()), ..peer };
        let _ = Session::new(config(), relay, at(1), &mut out);
        assert_eq!(said(&mut out), "220 mx ESMTP\n", "a relay client need not wait");
    }

    fn answer(verdict: Verdict) -> HookAnswer {
        HookAnswer { lines: Vec::new(), relay_client: None, databytes: None, is_last: false, verdict }
    }

    /// All stages, answered by `say`; what was said, with the questions between.
    fn converse(input: &str, say: impl FnMut(&HookQuestion) -> HookAnswer) -> String {
        converse_as(Connection::default(), input, say)
    }

    /// As this client; what stands behind an empty line is sent when all before it is answered.
    fn converse_as(peer: Connection, input: &str, mut say: impl FnMut(&HookQuestion) -> HookAnswer) -> String {
        let hooks = Stage::ALL.into_iter().fold(Stages::default(), Stages::with);
        let peer = Connection { hooks, starttls: StartTls::Offered, xclient: true, ..peer };
        let mut out = Actions::default();
        let mut session = Session::new(config(), peer, at(1), &mut out);
        let mut seen = String::new();
        let mut input =
            input.split("\n\r\n").map(|part| if part.ends_with('\n') { part.to_owned() } else { format!("{part}\n") });
        loop {
            let actions = std::mem::take(&mut out.0);
            if actions.is_empty() {
                let Some(part) = input.next().filter(|_| session.end().is_none()) else { return seen };
                session.step(at(1), Input::Bytes(part.as_bytes()), &mut out);
                continue;
            }
            for action in actions {
                let answer = match action {
                    Action::Reply(bytes) => {
                        seen.push_str(&String::from_utf8(bytes).unwrap().replace("\r\n", "\n"));
                        continue;
                    }
                    Action::Hook(question) => {
                        seen.push_str(&format!("? {:?} {}\n", question.stage, question.argument.escape_ascii()));
                        Input::Hook(say(&question))
                    }
                    Action::CheckRecipient { question, .. } => {
                        Input::Recipient { question, answer: super::super::RecipientAnswer::NotOurs }
                    }
                    Action::StartTls { .. } => Input::Tls(TlsAnswer::Started(super::super::fuzz::tls())),
                    Action::Admit { .. } => Input::Admitted { relays: false, logins: Logins::NotInClear },
                    Action::Commit => Input::Queue(super::super::QueueAnswer::Accepted { id: None, qp: 1 }),
                    _ => continue,
                };
                session.step(at(1), answer, &mut out);
            }
        }
    }

    const LETTER: &str = "HELO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n";

    #[test]
    fn each_stage_is_asked_in_its_turn_and_a_let_through_recipient_passes() {
        let seen = converse(LETTER, |question| match &question.argument[..] {
            b"c@d" => answer(Verdict::LetThrough { address: Some(b"new@d".as_slice().into()) }),
            _ => answer(Verdict::GoOn { address: None }),
        });
        assert_eq!(
            seen,
            "? Connection \n220 mx ESMTP\n? Helo x\n250 mx\n? Mail a@b\n250 2.1.0 ok\n? Rcpt c@d\n250 2.1.5 ok\n? Rcpt e@f\n\
             553 5.7.1 sorry, that domain isn't in my list of allowed rcpthosts\n? Data \n354 go ahead\n250 2.0.0 ok 1 qp 1\n221 2.0.0 mx\n"
        );
    }

    #[test]
    fn refusals_are_safe_lines_with_a_code_and_what_fails_is_temporary() {
        for (stage, verdict, reply) in [
            (Stage::Helo, Verdict::Refuse(b"550 go away".to_vec()), "550 go away\n"),
            (Stage::Helo, Verdict::Refuse(b"250 fine".to_vec()), "451 4.3.0 250 fine\n"),
            (Stage::Mail, Verdict::Refuse(b"5".to_vec()), "451 4.3.0 5\n"),
            (Stage::Mail, Verdict::Refuse(b"550".to_vec()), "550 5.7.1 refused\n"),
            (Stage::Mail, Verdict::Refuse(b"550 a\r\n250 b".to_vec()), "550 a??250 b\n"),
            (Stage::Rcpt, Verdict::Failed, "451 4.3.0 a program that has to be asked cannot tell now, try again later\n"),
            (Stage::Data, Verdict::Refuse(b"554 5.7.1 no".to_vec()), "554 5.7.1 no\n"),
            (Stage::Mail, Verdict::Close(Some(b"521 no".to_vec())), "521 no\n"),
            (Stage::Mail, Verdict::Refuse(b"421 bye".to_vec()), "421 bye\n"),
            (Stage::Connection, Verdict::Refuse(b"554 no".to_vec()), "554 no\n"),
        ] {
            let letter = LETTER.replace("RCPT TO:<e@f>\r\n", "");
            let seen = converse(&letter, |question| match &question.argument[..] {
                _ if question.stage == stage => answer(verdict.clone()),
                _ => answer(Verdict::LetThrough { address: None }),
            });
            let behind = seen.split(&format!("? {stage:?}")).nth(1).unwrap().split_once('\n').unwrap().1;
            assert!(behind.starts_with(reply), "{stage:?}: {seen}");
            let closes = reply.starts_with("421") || reply.starts_with("521") || stage == Stage::Connection;
            assert_eq!(seen.ends_with(reply), closes, "{seen}");
        }
    }

    #[test]
    fn the_bytes_of_a_refused_chunk_are_no_commands() {
        let letter = "MAIL FROM:<>\r\nRCPT TO:<c@d>\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n";
        let seen = converse(letter, |question| match question.stage {
            Stage::Data => answer(Verdict::Refuse(b"554 no".to_vec())),
            _ => answer(Verdict::LetThrough { address: None }),
        });
        assert!(seen.ends_with("? Data \n554 no\n250 2.0.0 ok\n"), "{seen}");
    }

    #[test]
    fn chunks_behind_a_refused_one_fail_too() {
        let chunks = "MAIL FROM:<>\r\nRCPT TO:<c@d>\r\nBDAT 3\r\nab\nBDAT 3 LAST\r\ncd\nRSET\r\n";
        for (verdict, reply) in [(Verdict::Failed, "451 4.3.0 "), (Verdict::Refuse(b"554 no".to_vec()), "554 no\n")] {
            let seen = converse(chunks, |question| match question.stage {
                Stage::Data => answer(verdict.clone()),
                _ => answer(Verdict::LetThrough { address: None }),
            });
            let (_, behind) = seen.split_once("? Data \n").unwrap();
            assert!(behind.starts_with(reply), "{seen}");
            assert!(behind.split_once('\n').unwrap().1.starts_with("503 5.5.1 "), "{seen}");
            assert!(seen.ends_with("250 2.0.0 flushed\n") && !behind.contains("? Data"), "{seen}");
        }
    }

    #[test]
    fn a_large_refused_chunk_that_is_pipelined_is_read_to_its_end() {
        let chunk = "QUIT\r\nMAIL FROM:<x@y>\r\n".repeat(4000);
        let input = format!("MAIL FROM:<>\r\nRCPT TO:<c@d>\r\nBDAT {0}\r\n{chunk}BDAT {0} LAST\r\n{chunk}NOOP\r\n", chunk.len());
        let seen = converse(&input, |question| match question.stage {
            Stage::Data => answer(Verdict::Failed),
            _ => answer(Verdict::LetThrough { address: None }),
        });
        let (_, behind) = seen.split_once("? Data \n").unwrap();
        assert_eq!(behind.lines().map(|line| line.get(..3).unwrap()).collect::<Vec<_>>(), ["451", "503", "250"], "{seen}");
    }

    fn relaying(verdict: Verdict) -> HookAnswer {
        HookAnswer { relay_client: Some(Some(Box::default())), databytes: Some(Some(7)), is_last: true, ..answer(verdict) }
    }

    const FAR: &str = "MAIL FROM:<a@b>\r\nRCPT TO:<e@f>\r\nRSET\r\n";

    #[test]
    fn an_answer_that_does_not_let_the_command_go_on_grants_nothing() {
        for verdict in [Verdict::Failed, Verdict::Refuse(b"550 no".to_vec())] {
            let mut is_first = true;
            let seen = converse(&format!("EHLO x\r\nEHLO y\r\n{FAR}"), |question| match question.stage {
                Stage::Helo if std::mem::take(&mut is_first) => relaying(verdict.clone()),
                _ => answer(Verdict::GoOn { address: None }),
            });
            assert!(
                seen.contains("? Helo y\n") && seen.contains("250-SIZE 0\n") && seen.contains("? Rcpt e@f\n553 5.7.1 "),
                "{seen}"
            );
        }
        // But what is taken away is gone.
        let relay = Connection { relay_client: Some(Box::default()), ..Connection::default() };
        let seen = converse_as(relay, &format!("HELO x\r\n{FAR}"), |question| match question.stage {
            Stage::Helo => HookAnswer { relay_client: Some(None), ..answer(Verdict::Failed) },
            _ => answer(Verdict::GoOn { address: None }),
        });
        assert!(seen.contains("? Rcpt e@f\n553 5.7.1 "), "{seen}");
    }

    #[test]
    fn starttls_forgets_what_programs_granted_since_the_greeting() {
        let input = format!("EHLO x\r\n{FAR}STARTTLS\r\n\r\nEHLO y\r\n{FAR}");
        let go_on = || Verdict::GoOn { address: None };
        let seen = converse(&input, |question| match (question.stage, &question.argument[..]) {
            (Stage::Helo, b"x") => relaying(go_on()),
            _ => answer(go_on()),
        });
        let (before, behind) = seen.split_once("? Helo y\n").unwrap();
        assert!(before.contains("250-SIZE 7\n") && before.contains("250 2.1.5 ok\n") && !before.contains("? Mail"), "{seen}");
        assert!(behind.contains("250-SIZE 0\n") && behind.contains("? Rcpt e@f\n553 5.7.1 "), "{seen}");
        // The connection is the same, and so is what was said of it.
        let seen = converse(&input, |question| match question.stage {
            Stage::Connection => HookAnswer { is_last: false, ..relaying(go_on()) },
            Stage::Helo => HookAnswer { relay_client: Some(None), ..answer(go_on()) },
            _ => answer(go_on()),
        });
        assert_eq!(seen.matches("? Rcpt e@f\n553 5.7.1 ").count(), 2, "{seen}");
        let seen = converse(&input, |question| match question.stage {
            Stage::Connection => relaying(go_on()),
            _ => answer(go_on()),
        });
        assert_eq!((seen.matches("250-SIZE 7\n").count(), seen.matches("250 2.1.5 ok\n").count()), (2, 2), "{seen}");
    }

    #[test]
    fn a_client_told_by_xclient_is_asked_about_anew_and_has_nothing_of_the_other() {
        let input = format!("EHLO x\r\nXCLIENT ADDR=192.0.2.2\r\nEHLO y\r\n{FAR}");
        let mut connections = 0;
        let seen = converse(&input, |question| match question.stage {
            Stage::Connection if std::mem::replace(&mut connections, 1) == 0 => relaying(Verdict::GoOn { address: None }),
            _ => answer(Verdict::GoOn { address: None }),
        });
        assert!(seen.contains("? Connection \n220 mx ESMTP\n? Helo y\n") && seen.contains("250-SIZE 0\n"), "{seen}");
        assert!(seen.contains("? Rcpt e@f\n553 5.7.1 "), "{seen}");
        let mut connections = 0;
        let seen = converse(&input, |question| match question.stage {
            Stage::Connection if std::mem::replace(&mut connections, 1) == 1 => answer(Verdict::Refuse(b"554 not you".to_vec())),
            _ => answer(Verdict::GoOn { address: None }),
        });
        assert!(seen.ends_with("? Connection \n554 not you\n"), "{seen}");
    }

    #[test]
    fn no_message_is_open_while_a_program_is_asked() {
        let hooks = Stages::default().with(Stage::Helo);
        let peer = Connection { hooks, relay_client: Some(Box::default()), ..Connection::default() };
        let mut out = Actions::default();
        let mut session = Session::new(config(), peer, at(1), &mut out);
        session.step(at(1), Input::Bytes(b"MAIL FROM:<>\r\nRCPT TO:<c@d>\r\n"), &mut out);
        while let Some(question) = out.0.iter().find_map(|action| match action {
            Action::CheckRecipient { question, .. } => Some(*question),
            _ => None,
        }) {
            out.0.clear();
            session.step(at(1), Input::Recipient { question, answer: super::super::RecipientAnswer::NotOurs }, &mut out);
        }
        session.step(at(1), Input::Bytes(b"BDAT 2\r\nabEHLO x\r\n"), &mut out);
        let place = |wanted: fn(&Action) -> bool| out.0.iter().position(wanted).unwrap();
        assert!(place(|action| matches!(action, Action::Begin(_))) < place(|action| matches!(action, Action::Abandon)));
        assert!(place(|action| matches!(action, Action::Abandon)) < place(|action| matches!(action, Action::Hook(_))));
        session.step(at(1), Input::Closed, &mut out);
        assert_eq!(out.0.iter().filter(|action| matches!(action, Action::Abandon)).count(), 1);
    }

    #[test]
    fn a_program_may_let_a_client_relay_and_want_to_hear_no_more() {
        let seen = converse(LETTER, |_| HookAnswer {
            lines: vec![b"220-hello".to_vec(), b"220 no".to_vec(), b"220-a\r\n".to_vec()],
            relay_client: Some(Some(Box::default())),
            databytes: None,
            is_last: true,
            verdict: Verdict::GoOn { address: None },
        });
        assert!(seen.starts_with("? Connection \n220-hello\n220-a??\n220 mx ESMTP\n250 mx\n"), "{seen}");
        assert_eq!(seen.matches("250 2.1.5 ok").count(), 2, "{seen}");
    }
}
