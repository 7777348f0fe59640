//! Programs that have a say in a session: what they are asked, and what their end means. Who runs them is the driver's matter: in the
//! service face qmail-hook, in the classic face a helper of the session itself.
//!
//! Guarantees: what crashes, hangs, floods or cannot be run is [`RecipientAnswer::Temporary`] or [`Verdict::Failed`](smtp::server::Verdict),
//! 451, whatever it is that could not be found out.

use ipc::hook::{Answer, Request};
use smtp::server::{HookQuestion, RecipientAnswer, Session, Stage};
use smtp::spp::Plugins;
use wire::Address;

use crate::terms::Programs;

/// What programs have said in a session, and which there are.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    pub(crate) programs: Programs,
    pub(crate) said: Plugins,
    /// What had been said when the client was greeted.
    at_greeting: Plugins,
}

impl Hooks {
    pub(crate) fn new(programs: Programs) -> Self {
        let mut hooks = Self { programs, ..Self::default() };
        hooks.begin();
        hooks
    }

    /// The connection stands for another client (XCLIENT), of whom nothing was said, and whose ports are not known.
    pub(crate) fn forget_all(&mut self) {
        self.programs.ports = None;
        self.begin();
    }

    fn begin(&mut self) {
        self.said = Plugins::default();
        self.programs.environment.iter().for_each(|(name, value)| self.said.set(name, value));
        self.at_greeting = self.said.clone();
    }

    /// The client has started TLS (RFC 3207 §4.2): what was said since the greeting was said of what it told in the clear.
    pub(crate) fn forget_since_greeting(&mut self) {
        self.said = self.at_greeting.clone();
    }

    /// The plugins of a stage have answered.
    pub(crate) fn answered(&mut self, stage: Stage) {
        if stage == Stage::Connection {
            self.at_greeting = self.said.clone();
        }
    }

    /// The session's own variables (tcp-environ(5)), anew each time: XCLIENT may have told others.
    pub(crate) fn note(&mut self, session: &Session) {
        let peer = session.peer();
        let local_ip = peer.local_ip.map(|ip| ip.to_string().into_bytes().into_boxed_slice());
        let known = [
            (&b"PROTO"[..], Some(&b"TCP"[..])),
            (b"TCPREMOTEIP", Some(&peer.remote_ip[..])),
            (b"TCPREMOTEHOST", peer.remote_host.as_deref()),
            (b"TCPREMOTEINFO", session.user().or(peer.remote_info.as_deref())),
            (b"TCPLOCALIP", local_ip.as_deref()),
            (b"TCPLOCALHOST", peer.local_host.as_deref()),
            (b"RELAYCLIENT", peer.relay_client.as_deref()),
            (b"SMTPAUTHUSER", session.user()),
            (b"SMTPHELOHOST", session.helo()),
        ];
        if let Some((remote, local)) = self.programs.ports {
            self.said.set(b"TCPREMOTEPORT", remote.to_string().as_bytes());
            self.said.set(b"TCPLOCALPORT", local.to_string().as_bytes());
        }
        for (name, value) in known {
            match value {
                Some(value) => self.said.set(name, value),
                None => self.said.unset(name),
            }
        }
    }

    /// The program that gets the session's messages, if it is not qmail-send: a plugin may name one.
    pub(crate) fn queue(&self) -> Option<Vec<u8>> {
        self.named(b"QMAILQUEUE", &self.programs.queue)
    }

    /// The program that judges recipients, if there is one: a plugin may name one, too.
    fn judge(&self) -> Option<Vec<u8>> {
        self.named(b"RCPTCHECK", &self.programs.check)
    }

    /// What a plugin has set or taken away, else what the configuration says; an empty name is none.
    fn named(&self, variable: &[u8], configured: &Option<Vec<u8>>) -> Option<Vec<u8>> {
        let named = self.said.look(variable).map_or_else(|| configured.clone(), |set| set.map(<[u8]>::to_vec));
        named.filter(|program| !program.is_empty())
    }

    /// `None`: too much to be handed on.
    pub(crate) fn environment(&self) -> Option<Vec<ipc::field::Bytes>> {
        Some(self.said.environment()?.into_iter().map(Into::into).collect())
    }

    pub(crate) fn plugin(&self, line: &[u8]) -> Option<Request> {
        Some(Request::Plugin { program: line.into(), environment: self.environment()? })
    }

    /// Is a program to be asked behind this answer of the directory?
    pub(crate) fn may_be_checked(&self, answer: &RecipientAnswer) -> bool {
        matches!(answer, RecipientAnswer::Exists | RecipientAnswer::NotOurs) && self.judge().is_some()
    }

    /// The question about a recipient, if a program is to judge it, `Err` if it cannot be put; `known`: the directory knows it;
    /// `is_listed`: rcpthosts does.
    pub(crate) fn check(
        &self,
        session: &Session,
        recipient: &Address,
        known: bool,
        is_listed: bool,
    ) -> Result<Option<Request>, RecipientAnswer> {
        let relays = session.peer().relay_client.is_some() || session.user().is_some();
        let Some(program) = self.judge() else { return Ok(None) };
        // Nobody need be asked about a recipient who is refused anyway.
        if (relays && !self.programs.checks_relay_clients) || !(relays || known || is_listed) {
            return Ok(None);
        }
        let Some(mut environment) = self.said.environment() else { return Err(RecipientAnswer::Temporary) };
        let mut add = |name: &str, value: &[u8]| environment.push([name.as_bytes(), b"=", value].concat());
        add("SENDER", session.sender().map(Address::as_bytes).unwrap_or_default());
        add("RECIPIENT", recipient.as_bytes());
        add("HELO", session.helo().unwrap_or_default());
        add("USE_FD4", b"1");
        if known {
            add("RCPTFOUND", b"1");
        }
        if is_listed {
            add("RCPTHOSTS", b"1");
        }
        Ok(Some(Request::Check { program: program.into(), environment: environment.into_iter().map(Into::into).collect() }))
    }
}

/// What a program that judged a recipient means. 0 and the other codes below 100 accept, and so does 112; 100 refuses, 113 says that the
/// client sends too much; everything else is temporary.
pub(crate) fn judged(directory: RecipientAnswer, answer: Option<Answer>) -> RecipientAnswer {
    let Some(Answer::Ended { code, output, .. }) = answer else { return RecipientAnswer::Temporary };
    let words = output.split(|b| *b == b'\n').next().unwrap_or_default().trim_ascii();
    let reply = (!words.is_empty()).then(|| words.into());
    match code {
        0..=99 | 112 => directory,
        100 => RecipientAnswer::Refused { reply },
        113 => RecipientAnswer::OverLimit { reply },
        _ => RecipientAnswer::Temporary,
    }
}

/// The recipient whom plugins are to be asked about, where rcpthosts does not name the domain but users/domains may: those are implied in it.
pub(crate) fn may_be_ours(question: &HookQuestion) -> Option<Address> {
    let is_open = question.stage == Stage::Rcpt && !question.may_pass;
    Address::new(&question.argument).ok().filter(|_| is_open)
}

/// By the directory's answer: is the domain one of this system's?
pub(crate) fn is_ours(answer: &RecipientAnswer) -> bool {
    !matches!(answer, RecipientAnswer::NotOurs | RecipientAnswer::Temporary)
}

/// The number of a stage's section.
pub(crate) fn section(question: &HookQuestion) -> usize {
    question.stage as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_names_programs_or_takes_them_away_until_what_it_said_is_forgotten() {
        let queue = |hooks: &Hooks| hooks.queue().map(|program| String::from_utf8(program).unwrap());
        let environment = vec![(b"QMAILQUEUE".to_vec(), b"/rule".to_vec())];
        let (of_rule, of_listener) = (
            Programs { environment, queue: Some(b"/rule".to_vec()), ..Programs::default() },
            Programs { queue: Some(b"/rule".to_vec()), ..Programs::default() },
        );
        for programs in [of_rule, of_listener] {
            let mut hooks = Hooks::new(programs);
            assert_eq!(queue(&hooks).as_deref(), Some("/rule"));
            hooks.said.set(b"QMAILQUEUE", b"/connection");
            hooks.answered(Stage::Connection);
            hooks.said.unset(b"QMAILQUEUE");
            hooks.answered(Stage::Helo);
            assert_eq!(queue(&hooks), None);
            hooks.forget_since_greeting();
            assert_eq!(queue(&hooks).as_deref(), Some("/connection"));
            hooks.said.set(b"QMAILQUEUE", b"");
            assert_eq!(queue(&hooks), None);
            hooks.forget_all();
            assert_eq!(queue(&hooks).as_deref(), Some("/rule"));
            hooks.forget_since_greeting();
            assert_eq!(queue(&hooks).as_deref(), Some("/rule"));
        }
    }

    #[test]
    fn what_the_end_of_a_check_means() {
        let ended = |code| Some(Answer::Ended { code, pid: 1, output: "550 5.1.1 no\r\nmore".as_bytes().into() });
        let reply = || Some(b"550 5.1.1 no".as_slice().into());
        for (answer, judgement) in [
            (ended(0), RecipientAnswer::Exists),
            (ended(1), RecipientAnswer::Exists),
            (ended(112), RecipientAnswer::Exists),
            (ended(100), RecipientAnswer::Refused { reply: reply() }),
            (ended(113), RecipientAnswer::OverLimit { reply: reply() }),
            (ended(111), RecipientAnswer::Temporary),
            (ended(127), RecipientAnswer::Temporary),
            (ended(255), RecipientAnswer::Temporary),
            (Some(Answer::failed("it crashed")), RecipientAnswer::Temporary),
            (None, RecipientAnswer::Temporary),
        ] {
            assert_eq!(judged(RecipientAnswer::Exists, answer), judgement);
        }
    }
}
