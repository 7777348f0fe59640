//! The AUTHORIZATION state (RFC 1939 §4): USER, PASS, APOP, STLS (RFC 2595), AUTH (RFC 5034), CAPA, NOOP, QUIT, until somebody has been let in.
//!
//! The machine takes bytes and, after it asked, the [`Verdict`]; it returns [`Action`]s for a driver to do in order. While a verdict is
//! outstanding it reads nothing: what a client pipelined behind its PASS stays with the driver, unread, and belongs to the session
//! (RFC 2449 §6.6). On success the machine says nothing: the session's own first line is the answer to PASS, so that `+OK` is never
//! said for a mailbox that cannot be opened.
//!
//! Guarantees: bounded lines, names and secrets; at most `failures_max` refused logins and [`COMMANDS_MAX`] commands before the
//! connection is closed; a secret is asked for only where [`Offer::cleartext`] allows it (promise 4); no NUL ever gets into a name or a secret,
//! so that nothing is injected into the NUL-separated message of checkpassword.
//! STLS ends a machine: behind the handshake a new one begins, which knows nothing of what was said before. A client that sends
//! anything behind its STLS in the clear is cut off.
//! Used by qmail-popup, both faces.

use crate::auth::Sasl;
use crate::command::{COMMAND_LEN_MAX, Command, ResponseCode, err, err_code, lang, multi_line, ok};
use sasl::{Exchange, Mechanism};
use wire::Secret;
use wire::line::{Ending, Line, Lines};

/// Commands before a login; a client needs about five. It keeps an endless dialogue of NOOPs from holding a session.
pub const COMMANDS_MAX: u32 = 100;

/// Longest login name: an address (wire::address).
pub const USER_LEN_MAX: usize = wire::address::ADDRESS_LEN_MAX;

/// What this connection may do, decided before the first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// May a password be sent here? Only with TLS or from `control/authcleartext`.
    pub cleartext: bool,
    /// STLS is offered: there is a certificate, and no TLS yet.
    pub stls: bool,
    /// The banner's `<PID.TIME@HOST>`; APOP is offered if it is there (RFC 1939 §7).
    pub apop_timestamp: Option<String>,
    /// Response codes and full CAPA; without them the replies are those of the classic qmail-popup.
    pub response_codes: bool,
    /// So many refused logins close the connection; at least 1.
    pub failures_max: u32,
}

/// How the client proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// PASS: the password itself.
    Password(Secret),
    /// APOP: the hexadecimal digest over the banner's timestamp and the secret.
    ApopDigest(Secret),
}

/// What the driver is to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send these whole lines.
    Reply(Vec<u8>),
    /// Have this judged and give the [`Verdict`]; feed nothing until then.
    Judge { user: Vec<u8>, proof: Proof },
    /// Have this exchange begun, with what the client sent along; give the [`Verdict`] or [`Authorization::challenge`]; feed nothing until
    /// then.
    SaslStart { mechanism: Mechanism, initial: Option<Secret> },
    /// The client's response to the last challenge; as [`Action::SaslStart`].
    SaslStep { response: Secret },
    /// Send what waits, then `go` and start the handshake; a new machine serves behind it. Where there is no certificate now, say so by
    /// [`Authorization::no_tls`].
    StartTls { go: Vec<u8> },
    /// The client is in: copy bytes between it and the session. The machine is done.
    HandOver,
    /// Close the connection after what was said. The machine is done.
    Close,
}

/// The answer to [`Action::Judge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The session exists.
    Accepted,
    /// Wrong name or wrong secret; which one is never said.
    Refused,
    /// It could not be found out now.
    Temporary,
    /// The mailbox has all the sessions it may have.
    InUse,
    /// The classic helper died.
    Crashed,
}

/// The machine of one connection; holds one line, one name and a few counters.
#[derive(Debug)]
pub struct Authorization {
    pub(crate) offer: Offer,
    pub(crate) lines: Lines,
    pub(crate) state: State,
    failures: u32,
    commands: u32,
    /// AUTH is offered, with these mechanisms.
    pub(crate) sasl: Option<Sasl>,
}

/// States own just their own data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nobody has been named.
    Anonymous,
    /// USER came.
    Named { user: Vec<u8> },
    /// A verdict is outstanding.
    Judging,
    /// AUTH: the next line is a response, not a command.
    Exchange(Exchange),
    /// A verdict or a challenge is outstanding.
    Relaying,
    /// STLS.
    Handshake,
    /// Closed or handed over.
    Done,
}

impl Authorization {
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        let lines = Lines::new(Ending::LfOptionalCr, COMMAND_LEN_MAX);
        Self { offer, lines, state: State::Anonymous, failures: 0, commands: 0, sasl: None }
    }

    /// The first line of the connection (RFC 1939 §4); classic qmail-popup sends nothing but the timestamp.
    #[must_use]
    pub fn greeting(&self) -> Vec<u8> {
        match &self.offer.apop_timestamp {
            Some(timestamp) => format!("+OK {timestamp}\r\n").into_bytes(),
            None => ok("POP3 server ready"),
        }
    }

    /// Takes bytes from the front of `input` and appends what is to be done. It stops, leaving the rest in `input`, when a verdict is
    /// needed or the connection is over.
    pub fn receive(&mut self, input: &mut &[u8], actions: &mut Vec<Action>) {
        while self.is_reading() {
            match self.lines.next(input) {
                None => return,
                Some(Line::TooLong) => self.too_long(actions),
                Some(Line::Whole(line)) if matches!(self.state, State::Exchange(_)) => self.response(&line, actions),
                Some(Line::Whole(line)) => self.command(&line, input.is_empty(), actions),
            }
            self.count_command(actions);
        }
    }

    /// Takes the answer to [`Action::Judge`] and its kin; without a question it means nothing.
    pub fn verdict(&mut self, verdict: Verdict, actions: &mut Vec<Action>) {
        if !matches!(self.state, State::Judging | State::Relaying) {
            return;
        }
        self.state = State::Anonymous;
        let reply = match verdict {
            Verdict::Accepted => {
                self.state = State::Done;
                return actions.push(Action::HandOver);
            }
            Verdict::Refused => self.refusal(ResponseCode::Auth, "authorization failed"),
            Verdict::Temporary => self.refusal(ResponseCode::SysTemp, "cannot check this login now, try again later"),
            Verdict::InUse => self.refusal(ResponseCode::InUse, "too many sessions of this mailbox"),
            Verdict::Crashed => err("aack, child crashed"),
        };
        actions.push(Action::Reply(reply));
        // A temporary failure counts too: a client that hammers a sick server does not help it.
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.offer.failures_max {
            self.close(actions);
        }
    }

    /// There is no certificate for [`Action::StartTls`] now; nothing was said to the client yet.
    pub fn no_tls(&mut self, actions: &mut Vec<Action>) {
        if self.state == State::Handshake {
            self.state = State::Anonymous;
            actions.push(Action::Reply(self.refusal(ResponseCode::SysTemp, "TLS is not available now")));
        }
    }

    /// May [`Authorization::receive`] make progress? Otherwise a verdict is due or all is over.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        matches!(self.state, State::Anonymous | State::Named { .. } | State::Exchange(_))
    }

    /// Closed or handed over?
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// `is_last`: the client has sent nothing behind the line.
    fn command(&mut self, line: &[u8], is_last: bool, actions: &mut Vec<Action>) {
        let command = Command::parse(line);
        let reply = if command.is("USER") {
            self.user(&command)
        } else if command.is("PASS") {
            return self.pass(&command, actions);
        } else if command.is("APOP") && self.offer.apop_timestamp.is_some() {
            return self.apop(&command, actions);
        } else if command.is("STLS") && self.offer.stls {
            return self.stls(&command, is_last, actions);
        } else if command.is("AUTH") && self.sasl.is_some() {
            return self.auth(&command, actions);
        } else if command.is("CAPA") {
            let sasl = self.sasl_capability();
            let lines: Vec<_> = self.capabilities().into_iter().chain(sasl.as_deref()).collect();
            multi_line("capability list follows", &lines)
        } else if command.is("UTF8") && self.offer.response_codes {
            // Letters are sent as they are stored in either mode, so there is nothing to remember (RFC 6856 §2).
            if command.argument.is_empty() { ok("UTF8 enabled") } else { err("UTF8 takes no argument") }
        } else if command.is("LANG") && self.offer.response_codes {
            lang(&command)
        } else if command.is("NOOP") {
            ok("")
        } else if command.is("QUIT") {
            actions.push(Action::Reply(ok("")));
            return self.close(actions);
        } else {
            err("authorization first")
        };
        actions.push(Action::Reply(reply));
    }

    fn user(&mut self, command: &Command<'_>) -> Vec<u8> {
        let user = command.argument.trim_ascii();
        if !self.offer.cleartext {
            return err(NO_CLEARTEXT);
        }
        if user.is_empty() || user.len() > USER_LEN_MAX || user.contains(&0) {
            return err("USER needs a name");
        }
        self.state = State::Named { user: user.to_vec() };
        ok("")
    }

    /// Everything after the space is the password, spaces too (RFC 1939 §7).
    fn pass(&mut self, command: &Command<'_>, actions: &mut Vec<Action>) {
        let reply = if !self.offer.cleartext {
            err(NO_CLEARTEXT)
        } else if command.argument.is_empty() || command.argument.contains(&0) {
            err("PASS needs a password")
        } else if let State::Named { user } = &mut self.state {
            let (user, proof) = (std::mem::take(user), Proof::Password(command.argument.into()));
            self.state = State::Judging;
            return actions.push(Action::Judge { user, proof });
        } else {
            err("USER first")
        };
        actions.push(Action::Reply(reply));
    }

    /// The digest stands after the last space: names may hold spaces, digests may not (RFC 1939 §7).
    fn apop(&mut self, command: &Command<'_>, actions: &mut Vec<Action>) {
        let argument = command.argument.trim_ascii();
        let at = memchr::memrchr(b' ', argument).unwrap_or(0);
        let (user, digest) = argument.split_at(at);
        let (user, digest) = (user.trim_ascii(), digest.trim_ascii());
        if user.is_empty() || digest.is_empty() || user.len() > USER_LEN_MAX || argument.contains(&0) {
            return actions.push(Action::Reply(err("APOP needs a name and a digest")));
        }
        self.state = State::Judging;
        actions.push(Action::Judge { user: user.to_vec(), proof: Proof::ApopDigest(digest.into()) });
    }

    /// Bytes in the clear behind STLS were put there by somebody, or come from a client that would take our answers for those of the
    /// protected session (promise 4).
    fn stls(&mut self, command: &Command<'_>, is_last: bool, actions: &mut Vec<Action>) {
        if !command.argument.is_empty() {
            return actions.push(Action::Reply(err("STLS has no parameters")));
        }
        if !is_last {
            actions.push(Action::Reply(err("nothing may be sent behind STLS before TLS has started")));
            return self.close(actions);
        }
        self.state = State::Handshake;
        actions.push(Action::StartTls { go: ok("begin TLS") });
    }

    /// RFC 2449 §5 and §6: what is true in this state; USER only where it works.
    fn capabilities(&self) -> Vec<&'static str> {
        let mut lines = vec!["TOP", "UIDL", "PIPELINING", "EXPIRE NEVER"];
        if self.offer.cleartext {
            lines.insert(0, "USER");
        }
        if self.offer.response_codes {
            lines.extend(["RESP-CODES", "AUTH-RESP-CODE", "UTF8", "LANG"]);
        }
        if self.offer.stls {
            lines.push("STLS");
        }
        lines
    }

    fn refusal(&self, code: ResponseCode, text: &str) -> Vec<u8> {
        if self.offer.response_codes { err_code(code, text) } else { err(text) }
    }

    fn count_command(&mut self, actions: &mut Vec<Action>) {
        self.commands = self.commands.saturating_add(1);
        if self.commands >= COMMANDS_MAX && self.is_reading() {
            actions.push(Action::Reply(err("too many commands")));
            self.close(actions);
        }
    }

    fn close(&mut self, actions: &mut Vec<Action>) {
        self.state = State::Done;
        actions.push(Action::Close);
    }
}

pub(crate) const NO_CLEARTEXT: &str = "a password may not be sent over this connection, it is not encrypted";

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        Offer { cleartext: true, stls: false, apop_timestamp: None, response_codes: true, failures_max: 3 }
    }

    /// Feeds `input` in chunks, answering each question with the next verdict; the transcript of all actions and what was left unread.
    fn run(offer: &Offer, input: &[u8], chunk_len: usize, verdicts: &[Verdict]) -> (String, Vec<u8>) {
        let mut machine = Authorization::new(offer.clone());
        let (mut verdicts, mut text, mut left) = (verdicts.iter(), String::new(), Vec::new());
        for chunk in input.chunks(chunk_len) {
            let mut rest = chunk;
            loop {
                let mut actions = Vec::new();
                machine.receive(&mut rest, &mut actions);
                let mut again = false;
                let mut queue: std::collections::VecDeque<_> = actions.into();
                while let Some(action) = queue.pop_front() {
                    match action {
                        Action::Reply(reply) => text.push_str(&String::from_utf8(reply).unwrap()),
                        Action::Judge { user, proof } => {
                            let (kind, secret) = match proof {
                                Proof::Password(s) => ("pass", s),
                                Proof::ApopDigest(s) => ("apop", s),
                            };
                            text += &format!("[{kind} {} {}]\n", user.escape_ascii(), secret.expose().escape_ascii());
                            let mut more = Vec::new();
                            if let Some(verdict) = verdicts.next() {
                                machine.verdict(*verdict, &mut more);
                                again = true;
                            }
                            queue.extend(more);
                        }
                        Action::SaslStart { .. } | Action::SaslStep { .. } => text.push_str("[relay]\n"),
                        Action::StartTls { go } => text += &format!("{}[tls]\n", String::from_utf8(go).unwrap()),
                        Action::HandOver => text.push_str("[in]\n"),
                        Action::Close => text.push_str("[close]\n"),
                    }
                }
                if !again || machine.is_done() {
                    break;
                }
            }
            left.extend_from_slice(rest);
        }
        (text, left)
    }

    #[test]
    fn a_login_and_what_was_pipelined_behind_it() {
        let input = b"USER joe\r\nPASS a b\r\nSTAT\r\nQUIT\r\n";
        for chunk_len in 1..=input.len() {
            let (text, left) = run(&offer(), input, chunk_len, &[Verdict::Accepted]);
            assert_eq!(text, "+OK \r\n[pass joe a b]\n[in]\n");
            assert_eq!(left, b"STAT\r\nQUIT\r\n");
        }
    }

    #[test]
    fn every_command_in_every_state() {
        let capa = "+OK capability list follows\r\nUSER\r\nTOP\r\nUIDL\r\nPIPELINING\r\nEXPIRE NEVER\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nUTF8\r\nLANG\r\n.\r\n";
        for (command, anonymous, named) in [
            ("USER x", "+OK \r\n", "+OK \r\n"),
            ("user  x ", "+OK \r\n", "+OK \r\n"),
            ("USER", "-ERR USER needs a name\r\n", "-ERR USER needs a name\r\n"),
            ("PASS x", "-ERR USER first\r\n", "[pass joe x]\n"),
            ("PASS  x", "-ERR USER first\r\n", "[pass joe  x]\n"),
            ("PASS", "-ERR PASS needs a password\r\n", "-ERR PASS needs a password\r\n"),
            ("PASS a\0b", "-ERR PASS needs a password\r\n", "-ERR PASS needs a password\r\n"),
            ("USER a\0b", "-ERR USER needs a name\r\n", "-ERR USER needs a name\r\n"),
            ("APOP a b", "-ERR authorization first\r\n", "-ERR authorization first\r\n"),
            ("CAPA", capa, capa),
            ("NOOP", "+OK \r\n", "+OK \r\n"),
            ("utf8", "+OK UTF8 enabled\r\n", "+OK UTF8 enabled\r\n"),
            ("UTF8 USER", "-ERR UTF8 takes no argument\r\n", "-ERR UTF8 takes no argument\r\n"),
            ("LANG en", "+OK en replies are in English\r\n", "+OK en replies are in English\r\n"),
            ("STAT", "-ERR authorization first\r\n", "-ERR authorization first\r\n"),
            ("STLS", "-ERR authorization first\r\n", "-ERR authorization first\r\n"),
            ("", "-ERR authorization first\r\n", "-ERR authorization first\r\n"),
            ("QUIT", "+OK \r\n[close]\n", "+OK \r\n[close]\n"),
        ] {
            assert_eq!(run(&offer(), format!("{command}\r\n").as_bytes(), 999, &[]).0, anonymous, "{command}");
            let (text, _) = run(&offer(), format!("USER joe\n{command}\n").as_bytes(), 999, &[]);
            assert_eq!(text.strip_prefix("+OK \r\n").unwrap(), named, "{command}");
        }
    }

    #[test]
    fn refusals_have_codes_and_a_limit() {
        let login = b"USER joe\r\nPASS x\r\n";
        for (verdict, reply) in [
            (Verdict::Refused, "-ERR [AUTH] authorization failed\r\n"),
            (Verdict::Temporary, "-ERR [SYS/TEMP] cannot check this login now, try again later\r\n"),
            (Verdict::InUse, "-ERR [IN-USE] too many sessions of this mailbox\r\n"),
            (Verdict::Crashed, "-ERR aack, child crashed\r\n"),
        ] {
            let (text, left) = run(&offer(), &login.repeat(4), 7, &[verdict; 4]);
            assert_eq!(text, format!("+OK \r\n[pass joe x]\n{reply}").repeat(3) + "[close]\n");
            assert_eq!(left, login);
        }
        // A refused name is forgotten.
        let (text, _) = run(&offer(), b"USER joe\nPASS x\nPASS y\n", 99, &[Verdict::Refused]);
        assert!(text.ends_with("-ERR USER first\r\n"));
    }

    #[test]
    fn no_password_is_taken_without_tls() {
        let (text, _) = run(&Offer { cleartext: false, ..offer() }, b"USER joe\nPASS x\nCAPA\n", 99, &[]);
        assert_eq!(text.matches("not encrypted").count(), 2);
        assert!(!text.contains("[pass") && !text.contains("USER\r\n"));
    }

    #[test]
    fn stls_and_what_stands_behind_it() {
        let offer = Offer { cleartext: false, stls: true, ..offer() };
        let (text, left) = run(&offer, b"CAPA\r\nSTLS x\r\nSTLS\r\n", 99, &[]);
        assert!(
            text.contains("\r\nSTLS\r\n.\r\n-ERR STLS has no parameters\r\n+OK begin TLS\r\n[tls]\n") && left.is_empty(),
            "{text}"
        );
        for behind in ["\r", "USER joe\r\n", "\0"] {
            let (text, _) = run(&offer, format!("STLS\r\n{behind}").as_bytes(), 99, &[]);
            assert_eq!(text, "-ERR nothing may be sent behind STLS before TLS has started\r\n[close]\n");
        }
        // Cut behind the command, the rest is not read at all.
        let (text, left) = run(&offer, b"STLS\r\nUSER joe", 6, &[]);
        assert_eq!((text.as_str(), &left[..]), ("+OK begin TLS\r\n[tls]\n", &b"USER joe"[..]));
        let mut machine = Authorization::new(offer);
        let mut actions = Vec::new();
        machine.no_tls(&mut actions);
        assert!(actions.is_empty());
        machine.receive(&mut &b"STLS\n"[..], &mut actions);
        assert!(!machine.is_reading() && !machine.is_done());
        actions.clear();
        machine.no_tls(&mut actions);
        assert_eq!(actions, [Action::Reply(b"-ERR [SYS/TEMP] TLS is not available now\r\n".to_vec())]);
        assert!(machine.is_reading());
    }

    #[test]
    fn the_classic_face_speaks_as_the_classic_program() {
        let stamp = "<12.34@host>".to_owned();
        let classic = Offer { apop_timestamp: Some(stamp), response_codes: false, failures_max: 1, ..offer() };
        assert_eq!(Authorization::new(classic.clone()).greeting(), b"+OK <12.34@host>\r\n");
        let (text, _) = run(&classic, b"APOP joe smith d1gest\n", 99, &[Verdict::Refused]);
        assert_eq!(text, "[apop joe smith d1gest]\n-ERR authorization failed\r\n[close]\n");
        let (text, _) = run(&classic, b"APOP joe\nAPOP\nUSER j\nPASS p\n", 99, &[Verdict::Crashed]);
        let syntax = "-ERR APOP needs a name and a digest\r\n";
        assert_eq!(text, format!("{syntax}{syntax}+OK \r\n[pass j p]\n-ERR aack, child crashed\r\n[close]\n"));
    }

    #[test]
    fn lines_and_dialogues_have_a_bound() {
        let mut long = vec![b'U'; COMMAND_LEN_MAX + 1];
        long.extend_from_slice(b"\r\nNOOP\r\n");
        for chunk_len in [1, 7, 5000] {
            assert_eq!(run(&offer(), &long, chunk_len, &[]).0, "-ERR line too long\r\n+OK \r\n");
        }
        let (text, left) = run(&offer(), &b"NOOP\n".repeat(200), 64, &[]);
        assert_eq!(text.matches("+OK").count(), 100);
        assert!(text.ends_with("-ERR too many commands\r\n[close]\n") && !left.is_empty());
    }

    #[test]
    fn a_verdict_nobody_asked_for_changes_nothing() {
        let mut machine = Authorization::new(offer());
        let mut actions = Vec::new();
        machine.verdict(Verdict::Accepted, &mut actions);
        assert!(actions.is_empty() && machine.is_reading());
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert!(!format!("{:?}", Proof::Password("xyzzy".into())).contains("xyzzy"));
    }
}
