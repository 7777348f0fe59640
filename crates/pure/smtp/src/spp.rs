//! What plugins are told and what they say: the interface of qmail-spp, for one session.
//!
//! A plugin finds the session in its environment and writes lines, a letter and a text each: `H` a header field for the message, `C` another
//! address, `S` and `U` a variable set and taken away, `P` a line to print, `LM`, `LR`, `LD` a refusal of the next MAIL, RCPT or DATA; and the
//! last word: `N` go on without the plugins behind it, `O` accept whatever the lists say, `A` as N and no plugin any more, `E` a refusal, `R` a
//! refusal and the end of the connection, `D` its end. (qmail-family §5.1)
//!
//! Guarantees: what plugins leave behind has a bound; no variable, header field or address that cannot be one is taken over.

use std::collections::BTreeMap;

use wire::Address;

use crate::server::{HookAnswer, HookQuestion, Stage, Verdict};

/// All variables of a session, in bytes: they go along with each question.
const ENVIRONMENT_LEN_MAX: usize = 16 * 1024;
/// All fields for one message, in bytes.
const HEADER_LEN_MAX: usize = 16 * 1024;
/// Lines that are printed before one reply.
const LINES_MAX: usize = 16;

/// What plugins have said in a session, and what they are told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plugins {
    environment: BTreeMap<Vec<u8>, Vec<u8>>,
    environment_len: usize,
    header: Vec<u8>,
    /// Refusals of the next MAIL, RCPT, DATA.
    refusals: [Option<Vec<u8>>; 3],
    has_sender: bool,
    /// RCPTs since MAIL.
    asked: u64,
}

/// A question that is with the plugins of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    address_variable: Option<&'static [u8]>,
    address: Option<Box<[u8]>>,
    lines: Vec<Vec<u8>>,
    relay_client: Option<Option<Box<[u8]>>>,
    is_last: bool,
    verdict: Option<Verdict>,
}

impl Plugins {
    /// Sets a variable. One that cannot be one, or that is too much, is not set.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let is_name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        if name.is_empty() || !name.iter().all(is_name) || value.contains(&0) {
            return;
        }
        self.unset(name);
        let len = name.len().saturating_add(value.len()).saturating_add(2);
        if self.environment_len.saturating_add(len) <= ENVIRONMENT_LEN_MAX {
            self.environment_len = self.environment_len.saturating_add(len);
            self.environment.insert(name.to_vec(), value.to_vec());
        }
    }

    /// Takes a variable away.
    pub fn unset(&mut self, name: &[u8]) {
        if let Some(value) = self.environment.remove(name) {
            let len = name.len().saturating_add(value.len()).saturating_add(2);
            self.environment_len = self.environment_len.saturating_sub(len);
        }
    }

    #[must_use]
    pub fn value(&self, name: &[u8]) -> Option<&[u8]> {
        self.environment.get(name).map(Vec::as_slice)
    }

    /// `NAME=VALUE`s.
    #[must_use]
    pub fn environment(&self) -> Vec<Vec<u8>> {
        self.environment.iter().map(|(name, value)| [name, &b"="[..], value].concat()).collect()
    }

    /// The fields for the message that begins, each ending in LF; none are left for the next.
    pub fn take_header(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.header)
    }

    /// A question begins.
    ///
    /// # Errors
    /// The answer, which a plugin gave before.
    pub fn begin(&mut self, question: &HookQuestion) -> Result<Asking, HookAnswer> {
        let argument = &question.argument[..];
        let (number, address_variable): (Option<usize>, Option<&'static [u8]>) = match question.stage {
            Stage::Connection => (None, None),
            Stage::Helo => {
                self.set(b"SMTPHELOHOST", argument);
                (None, None)
            }
            Stage::Auth => {
                self.set(b"SMTPAUTHUSER", argument);
                (None, None)
            }
            Stage::Mail => {
                // What was meant for the transaction before says nothing of this one.
                if std::mem::replace(&mut self.has_sender, true) {
                    self.header.clear();
                    self.refusals[1] = None;
                    self.refusals[2] = None;
                }
                self.asked = 0;
                self.set(b"SMTPMAILFROM", argument);
                (Some(0), Some(b"SMTPMAILFROM"))
            }
            Stage::Rcpt => {
                self.asked = self.asked.saturating_add(1);
                self.set(b"SMTPRCPTCOUNT", question.recipients.to_string().as_bytes());
                self.set(b"SMTPRCPTCOUNTALL", self.asked.to_string().as_bytes());
                self.set(b"SMTPRCPTHOSTSOK", if question.may_pass { b"1" } else { b"0" });
                self.set(b"SMTPRCPTTO", argument);
                (Some(1), Some(b"SMTPRCPTTO"))
            }
            Stage::Data => {
                self.set(b"SMTPRCPTCOUNT", question.recipients.to_string().as_bytes());
                (Some(2), None)
            }
        };
        let asking =
            Asking { address_variable, address: None, lines: Vec::new(), relay_client: None, is_last: false, verdict: None };
        match number.and_then(|number| self.refusals.get(number)?.clone()) {
            Some(refusal) => Err(Asking { verdict: Some(Verdict::Refuse(refusal)), ..asking }.answer()),
            None => Ok(asking),
        }
    }

    /// What a plugin wrote; true if the plugins behind it are not asked.
    pub fn hear(&mut self, asking: &mut Asking, output: &[u8]) -> bool {
        for line in output.split(|b| *b == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let Some((letter, text)) = line.split_first() else { continue };
            let address = asking.address.clone();
            let last = match letter {
                b'H' => {
                    self.add_field(text);
                    continue;
                }
                b'S' => {
                    self.set_by_plugin(asking, text);
                    continue;
                }
                b'U' => {
                    if text == b"RELAYCLIENT" {
                        asking.relay_client = Some(None);
                    }
                    self.unset(text);
                    continue;
                }
                b'C' => {
                    self.replace_address(asking, text);
                    continue;
                }
                b'P' => {
                    if asking.lines.len() < LINES_MAX {
                        asking.lines.push(text.to_vec());
                    }
                    continue;
                }
                b'L' => {
                    self.refuse_later(text);
                    continue;
                }
                b'N' => Verdict::GoOn { address },
                b'O' => Verdict::LetThrough { address },
                b'A' => {
                    asking.is_last = true;
                    Verdict::GoOn { address }
                }
                b'E' => Verdict::Refuse(text.to_vec()),
                b'R' => Verdict::Close(Some(text.to_vec())),
                b'D' => Verdict::Close(None),
                _ => continue,
            };
            asking.verdict = Some(last);
            return true;
        }
        false
    }

    fn set_by_plugin(&mut self, asking: &mut Asking, text: &[u8]) {
        let Some(equals) = text.iter().position(|b| *b == b'=') else { return };
        let (name, value) = text.split_at_checked(equals).unwrap_or_default();
        let value = value.get(1..).unwrap_or_default();
        self.set(name, value);
        if name == b"RELAYCLIENT" && self.value(name) == Some(value) {
            asking.relay_client = Some(Some(value.into()));
        }
    }

    /// `Name: text`, or more of the field before.
    fn add_field(&mut self, text: &[u8]) {
        let name = text.split(|b| *b == b':').next().unwrap_or_default();
        let is_field = name.len() < text.len() && !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
        let goes_on = !self.header.is_empty() && matches!(text.first(), Some(b' ' | b'\t')) && !text.trim_ascii().is_empty();
        let fits = self.header.len().saturating_add(text.len()).saturating_add(1) <= HEADER_LEN_MAX;
        if (is_field || goes_on) && fits && !text.iter().any(|b| matches!(b, b'\r' | 0)) {
            self.header.extend_from_slice(text);
            self.header.push(b'\n');
        }
    }

    fn replace_address(&mut self, asking: &mut Asking, text: &[u8]) {
        if let Some(variable) = asking.address_variable
            && Address::new(text).is_ok()
        {
            self.set(variable, text);
            asking.address = Some(text.into());
        }
    }

    fn refuse_later(&mut self, text: &[u8]) {
        let Some((which, refusal)) = text.split_first() else { return };
        let number = match which {
            b'M' => 0,
            b'R' => 1,
            b'D' => 2,
            _ => return,
        };
        if let Some(place) = self.refusals.get_mut(number) {
            // The reply is one line: the first.
            place.get_or_insert_with(|| refusal.to_vec());
        }
    }
}

impl Asking {
    /// All plugins have been heard.
    #[must_use]
    pub fn answer(self) -> HookAnswer {
        let verdict = self.verdict.unwrap_or(Verdict::GoOn { address: self.address });
        HookAnswer { lines: self.lines, relay_client: self.relay_client, is_last: self.is_last, verdict }
    }

    /// A plugin crashed, took too long, or could not be run.
    #[must_use]
    pub fn failed(self) -> HookAnswer {
        Self { verdict: Some(Verdict::Failed), ..self }.answer()
    }
}

/// Whatever a plugin writes: variables are variables, a header is fields, and the bounds hold.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let mut plugins = Plugins::default();
    let (first, second) = data.split_at(data.len() / 2);
    for stage in Stage::ALL {
        let question = HookQuestion { stage, argument: Box::default(), sender: None, recipients: 0, may_pass: false };
        let Ok(mut asking) = plugins.begin(&question) else { continue };
        if !plugins.hear(&mut asking, first) {
            let _ = plugins.hear(&mut asking, second);
        }
        let answer = asking.answer();
        assert!(answer.lines.len() <= LINES_MAX);
        let environment = plugins.environment();
        assert!(environment.iter().all(|variable| variable.contains(&b'=') && !variable.contains(&0)));
        assert!(environment.iter().map(|variable| variable.len().saturating_add(1)).sum::<usize>() <= ENVIRONMENT_LEN_MAX);
        let header = plugins.header.clone();
        assert!(header.len() <= HEADER_LEN_MAX && header.last().is_none_or(|b| *b == b'\n') && !header.starts_with(b"\n"));
        assert!(!header.windows(2).any(|two| two == b"\n\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(stage: Stage, argument: &str) -> HookQuestion {
        HookQuestion { stage, argument: argument.as_bytes().into(), sender: None, recipients: 2, may_pass: true }
    }

    fn go_on() -> Verdict {
        Verdict::GoOn { address: None }
    }

    #[test]
    fn every_letter() {
        let new = || Some(b"new@x".as_slice().into());
        for (output, is_over, verdict) in [
            ("", false, go_on()),
            ("hello\nX\n", false, go_on()),
            ("N\nE550 no\n", true, go_on()),
            ("N", true, go_on()),
            ("A\n", true, go_on()),
            ("O\n", true, Verdict::LetThrough { address: None }),
            ("Cnew@x\nO\n", true, Verdict::LetThrough { address: new() }),
            ("Cnew@x\r\n", false, Verdict::GoOn { address: new() }),
            ("E550 5.7.1 no\n", true, Verdict::Refuse(b"550 5.7.1 no".to_vec())),
            ("E", true, Verdict::Refuse(Vec::new())),
            ("R421 bye\n", true, Verdict::Close(Some(b"421 bye".to_vec()))),
            ("D\n", true, Verdict::Close(None)),
        ] {
            let mut plugins = Plugins::default();
            let mut asking = plugins.begin(&question(Stage::Rcpt, "a@b")).unwrap();
            assert_eq!(plugins.hear(&mut asking, output.as_bytes()), is_over, "{output}");
            let answer = asking.answer();
            assert_eq!((answer.is_last, &answer.verdict), (output.starts_with('A'), &verdict), "{output}");
        }
    }

    #[test]
    fn the_environment_is_the_sessions_and_what_plugins_make_of_it() {
        let mut plugins = Plugins::default();
        plugins.set(b"TCPREMOTEIP", b"192.0.2.1");
        let _ = plugins.begin(&question(Stage::Helo, "h.example")).unwrap();
        let mut asking = plugins.begin(&question(Stage::Mail, "a@b")).unwrap();
        plugins.hear(&mut asking, b"SFOO=a=b\nS=x\nSno\nSa b=c\nUTCPREMOTEIP\nCc@d\nSRELAYCLIENT=\nP250-x\n");
        assert_eq!(asking.relay_client, Some(Some(Box::default())));
        assert_eq!(asking.lines, [b"250-x".to_vec()]);
        let _ = plugins.begin(&question(Stage::Rcpt, "e@f")).unwrap();
        let environment = plugins.environment().into_iter().map(|variable| String::from_utf8(variable).unwrap());
        assert_eq!(
            environment.collect::<Vec<_>>(),
            [
                "FOO=a=b",
                "RELAYCLIENT=",
                "SMTPHELOHOST=h.example",
                "SMTPMAILFROM=c@d",
                "SMTPRCPTCOUNT=2",
                "SMTPRCPTCOUNTALL=1",
                "SMTPRCPTHOSTSOK=1",
                "SMTPRCPTTO=e@f"
            ]
        );
        plugins.set(b"LONG", &[b'x'; ENVIRONMENT_LEN_MAX]);
        assert_eq!(plugins.value(b"LONG"), None);
    }

    #[test]
    fn a_refusal_is_kept_for_its_command_and_a_header_for_its_message() {
        let mut plugins = Plugins::default();
        let mut asking = plugins.begin(&question(Stage::Mail, "a@b")).unwrap();
        plugins.hear(&mut asking, b"LR550 later\nHX-Seen: yes\nH\tand more\nHno field\nH\nHX: a\rb\n");
        for _ in 0..2 {
            let refused = plugins.begin(&question(Stage::Rcpt, "c@d")).unwrap_err();
            assert_eq!(refused.verdict, Verdict::Refuse(b"550 later".to_vec()));
        }
        assert_eq!(plugins.header, b"X-Seen: yes\n\tand more\n");
        let _ = plugins.begin(&question(Stage::Mail, "a@b")).unwrap();
        assert!(plugins.take_header().is_empty() && plugins.begin(&question(Stage::Rcpt, "c@d")).is_ok());
    }
}
