//! What plugins are told and what they say: the interface of qmail-spp, for one session.
//!
//! A plugin finds the session in its environment and writes lines, a letter and a text each: `H` a header field for the message, `C` another
//! address, `S` and `U` a variable set and taken away, `P` a line to print, `LM`, `LR`, `LD` a refusal that is kept: of the next MAIL, of all
//! RCPT or DATA of a transaction, the one under way or else the next; and the last word: `N` go on without the plugins behind it, `O` accept whatever the lists say, `A` as N and no plugin any more, `E` a refusal, `R` a
//! refusal and the end of the connection, `D` its end. (qmail-family §5.1)
//!
//! Guarantees: what plugins leave behind has a bound, and what does not fit makes the stage fail: nothing is silently missing. A stage that
//! failed leaves nothing behind but the refusals it asked for. No variable, header field or address that cannot be one is taken over.

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
    /// Without a value: taken away from those that programs find otherwise.
    environment: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
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
    databytes: Option<Option<u64>>,
    is_last: bool,
    verdict: Option<Verdict>,
    before: Before,
}

/// What there was when a question began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Before {
    environment: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    environment_len: usize,
    header: Vec<u8>,
}

impl Plugins {
    /// Sets a variable. One that cannot be one is not set; one that is too much makes [`Plugins::environment`] fail.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        self.put(name, Some(value));
    }

    /// Takes a variable away.
    pub fn unset(&mut self, name: &[u8]) {
        self.put(name, None);
    }

    fn put(&mut self, name: &[u8], value: Option<&[u8]>) {
        let is_name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        if name.is_empty() || !name.iter().all(is_name) || value.is_some_and(|value| value.contains(&0)) {
            return;
        }
        let len = |value: Option<&[u8]>| name.len().saturating_add(value.map_or(0, <[u8]>::len)).saturating_add(2);
        let old = self.environment.insert(name.to_vec(), value.map(<[u8]>::to_vec));
        let old_len = old.map_or(0, |old| len(old.as_deref()));
        self.environment_len = self.environment_len.saturating_sub(old_len).saturating_add(len(value));
    }

    /// The variable as it was set, `Some(None)` if it was taken away.
    #[must_use]
    pub fn look(&self, name: &[u8]) -> Option<Option<&[u8]>> {
        self.environment.get(name).map(Option::as_deref)
    }

    /// `NAME=VALUE`s, and the bare names of those that were taken away; `None` if they are too much to be handed on.
    #[must_use]
    pub fn environment(&self) -> Option<Vec<Vec<u8>>> {
        let written = |(name, value): (&Vec<u8>, &Option<Vec<u8>>)| match value {
            Some(value) => [name, &b"="[..], value].concat(),
            None => name.clone(),
        };
        (self.environment_len <= ENVIRONMENT_LEN_MAX).then(|| self.environment.iter().map(written).collect())
    }

    /// Is there more than can be kept?
    fn is_overfull(&self) -> bool {
        self.environment_len > ENVIRONMENT_LEN_MAX || self.header.len() > HEADER_LEN_MAX
    }

    /// The fields for the message that begins, each ending in LF; none are left for the next.
    pub fn take_header(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.header)
    }

    /// A question begins.
    ///
    /// # Errors
    /// The answer, which a plugin gave before; or that there is too much to be told.
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
        let asking = Asking {
            address_variable,
            address: None,
            lines: Vec::new(),
            relay_client: None,
            databytes: None,
            is_last: false,
            verdict: None,
            before: self.before(),
        };
        // That of MAIL is for the next one alone; those of RCPT and DATA are the transaction's.
        let kept = number.and_then(|number| {
            let place = self.refusals.get_mut(number)?;
            if question.stage == Stage::Mail { place.take() } else { place.clone() }
        });
        match kept {
            Some(refusal) => Err(self.answer(Asking { verdict: Some(Verdict::Refuse(refusal)), ..asking })),
            None if self.is_overfull() => Err(self.failed(asking)),
            None => Ok(asking),
        }
    }

    fn before(&self) -> Before {
        Before { environment: self.environment.clone(), environment_len: self.environment_len, header: self.header.clone() }
    }

    /// All plugins have been heard.
    #[must_use]
    pub fn answer(&mut self, asking: Asking) -> HookAnswer {
        let Asking { address, lines, relay_client, databytes, is_last, verdict, before, .. } = asking;
        let verdict = verdict.unwrap_or(Verdict::GoOn { address });
        if verdict == Verdict::Failed {
            Before { environment: self.environment, environment_len: self.environment_len, header: self.header } = before;
        }
        HookAnswer { lines, relay_client, databytes, is_last, verdict }
    }

    /// A plugin crashed, took too long, or could not be run.
    #[must_use]
    pub fn failed(&mut self, asking: Asking) -> HookAnswer {
        self.answer(Asking { verdict: Some(Verdict::Failed), ..asking })
    }

    /// What a plugin wrote; true if the plugins behind it are not asked.
    pub fn hear(&mut self, asking: &mut Asking, output: &[u8]) -> bool {
        let is_over = self.hear_lines(asking, output);
        if self.is_overfull() {
            asking.verdict = Some(Verdict::Failed);
            return true;
        }
        is_over
    }

    fn hear_lines(&mut self, asking: &mut Asking, output: &[u8]) -> bool {
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
                    match text {
                        b"RELAYCLIENT" => asking.relay_client = Some(None),
                        b"DATABYTES" => asking.databytes = Some(None),
                        _ => {}
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
        match name {
            b"RELAYCLIENT" if !value.contains(&0) => asking.relay_client = Some(Some(value.into())),
            b"DATABYTES" => asking.databytes = number(value).map(Some).or(asking.databytes),
            _ => {}
        }
    }

    /// `Name: text`, or more of the field before.
    fn add_field(&mut self, text: &[u8]) {
        let name = text.split(|b| *b == b':').next().unwrap_or_default();
        let is_field = name.len() < text.len() && !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
        let goes_on = !self.header.is_empty() && matches!(text.first(), Some(b' ' | b'\t')) && !text.trim_ascii().is_empty();
        if (is_field || goes_on) && !text.iter().any(|b| matches!(b, b'\r' | 0)) {
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

/// The digits at the beginning, as of `control/databytes`.
fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit());
    digits.fold(None, |value: Option<u64>, digit| {
        Some(value.unwrap_or(0).saturating_mul(10).saturating_add(u64::from(digit.saturating_sub(b'0'))))
    })
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
        let answer = plugins.answer(asking);
        assert!(answer.lines.len() <= LINES_MAX);
        let environment = plugins.environment().unwrap_or_else(|| unreachable!());
        assert!(environment.iter().all(|variable| !variable.starts_with(b"=") && !variable.contains(&0)));
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
            let answer = plugins.answer(asking);
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
        let environment = plugins.environment().unwrap().into_iter().map(|variable| String::from_utf8(variable).unwrap());
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
                "SMTPRCPTTO=e@f",
                "TCPREMOTEIP"
            ],
            "the bare name is taken away"
        );
    }

    #[test]
    fn what_does_not_fit_makes_the_stage_fail_and_leaves_nothing_behind() {
        let long = |letter: &str| [letter.as_bytes(), &[b'x'; HEADER_LEN_MAX - 100], b"\n"].concat();
        for output in [[long("SA="), long("SB=")], [long("HA: "), long("HB: ")]] {
            let mut plugins = Plugins::default();
            let mut asking = plugins.begin(&question(Stage::Mail, "a@b")).unwrap();
            assert!(!plugins.hear(&mut asking, &[&b"SRELAYCLIENT=\nLR550 no\n"[..], &output[0]].concat()));
            assert!(plugins.hear(&mut asking, &output[1]), "the plugins behind it are not asked");
            assert_eq!(plugins.answer(asking).verdict, Verdict::Failed);
            assert_eq!(plugins.environment().unwrap(), [b"SMTPMAILFROM=a@b".to_vec()]);
            assert!(plugins.header.is_empty());
            assert!(plugins.begin(&question(Stage::Rcpt, "c@d")).is_err(), "the refusal is kept");
        }
        // What is known of the session beside it counts, too.
        let mut plugins = Plugins::default();
        plugins.set(b"A", &[b'x'; ENVIRONMENT_LEN_MAX]);
        assert_eq!(plugins.environment(), None);
        assert_eq!(plugins.begin(&question(Stage::Mail, "a@b")).unwrap_err().verdict, Verdict::Failed);
    }

    #[test]
    fn a_stage_that_failed_leaves_no_variable_and_no_field() {
        let mut plugins = Plugins::default();
        plugins.set(b"QMAILQUEUE", b"/scan");
        let mut asking = plugins.begin(&question(Stage::Helo, "h")).unwrap();
        plugins.hear(&mut asking, b"SQMAILQUEUE=/other\nHX: y\nSDATABYTES=5\n");
        let answer = plugins.failed(asking);
        assert_eq!((answer.verdict, answer.databytes), (Verdict::Failed, Some(Some(5))), "the machine takes no right of it");
        assert_eq!(plugins.look(b"QMAILQUEUE"), Some(Some(&b"/scan"[..])));
        assert!(plugins.take_header().is_empty());
    }

    #[test]
    fn databytes_is_a_number_or_nothing() {
        for (output, databytes) in [
            ("SDATABYTES=12\n", Some(Some(12))),
            ("SDATABYTES=0\n", Some(Some(0))),
            ("SDATABYTES=x\n", None),
            ("SDATABYTES=\n", None),
            ("SDATABYTES=99999999999999999999\n", Some(Some(u64::MAX))),
            ("UDATABYTES\n", Some(None)),
        ] {
            let mut plugins = Plugins::default();
            let mut asking = plugins.begin(&question(Stage::Helo, "h")).unwrap();
            plugins.hear(&mut asking, output.as_bytes());
            assert_eq!(plugins.answer(asking).databytes, databytes, "{output}");
        }
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
        let mut asking = plugins.begin(&question(Stage::Mail, "a@b")).unwrap();
        plugins.hear(&mut asking, b"LM450 the next\n");
        let refused = plugins.begin(&question(Stage::Mail, "a@b")).unwrap_err();
        assert_eq!(refused.verdict, Verdict::Refuse(b"450 the next".to_vec()));
        let _ = plugins.begin(&question(Stage::Mail, "a@b")).unwrap();
        assert!(plugins.take_header().is_empty() && plugins.begin(&question(Stage::Rcpt, "c@d")).is_ok());
    }
}
