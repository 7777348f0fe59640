//! AUTH (RFC 5034): from the command to the verdict, as a part of [`Authorization`]. What the mechanisms are is `sasl`'s matter: the password
//! of PLAIN and LOGIN is judged as PASS's is, the messages of all others are relayed.
//!
//! An AUTH without a mechanism gets their list, as clients from before RFC 5034 expect it.

use crate::authorization::{Action, Authorization, NO_CLEARTEXT, Proof, State, USER_LEN_MAX};
use crate::command::{COMMAND_LEN_MAX, Command, err, multi_line};
use sasl::{Exchange, Fault, First, Mechanisms, Protection, Step};
use wire::line::{Ending, Lines};
use zeroize::Zeroizing;

/// Longest response without its line end, as in SMTP (RFC 4954 §4).
pub(crate) const RESPONSE_LEN_MAX: usize = 12_286;

/// What AUTH offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sasl {
    mechanisms: Mechanisms,
    protection: Protection,
}

impl Authorization {
    /// Offers AUTH with these mechanisms, where a password may be sent; `protection`: what the connection's TLS gives to a login.
    #[must_use]
    pub fn with_sasl(mut self, mechanisms: Mechanisms, protection: Protection) -> Self {
        self.sasl = Some(Sasl { mechanisms, protection });
        self
    }

    /// The answer to [`Action::SaslStart`] or [`Action::SaslStep`]: the exchange goes on. Without a question it means nothing.
    pub fn challenge(&mut self, data: &[u8], actions: &mut Vec<Action>) {
        if self.state == State::Relaying {
            self.ask_client(Exchange::Relayed, data, actions);
        }
    }

    /// `SASL` of CAPA (RFC 5034 §3): only where it works.
    pub(crate) fn sasl_capability(&self) -> Option<String> {
        let sasl = self.sasl.filter(|_| self.offer.cleartext)?;
        sasl.mechanisms.list(sasl.protection).map(|list| format!("SASL {list}"))
    }

    pub(crate) fn auth(&mut self, command: &Command<'_>, actions: &mut Vec<Action>) {
        match self.begin(command) {
            Ok(Ok(First::Step(step))) => self.follow(step, actions),
            Ok(Ok(First::Relay(initial))) => {
                // `begin` found it.
                let Some(mechanism) = self.named(command) else { return };
                self.state = State::Relaying;
                actions.push(Action::SaslStart { mechanism, initial });
            }
            Ok(Err(fault)) => self.refuse_response(fault, actions),
            Err(reply) => actions.push(Action::Reply(reply)),
        }
    }

    /// The first step, or the reply that there is none.
    fn begin(&mut self, command: &Command<'_>) -> Result<Result<First, Fault>, Vec<u8>> {
        let mut words = command.arguments();
        if !self.offer.cleartext {
            return Err(err(NO_CLEARTEXT));
        }
        if words.next().is_none() {
            let list = self.sasl.and_then(|sasl| sasl.mechanisms.list(sasl.protection)).unwrap_or_default();
            return Err(multi_line("mechanisms follow", &list.split_whitespace().collect::<Vec<_>>()));
        }
        let Some(mechanism) = self.named(command) else { return Err(err("that mechanism is not known here")) };
        let (initial, None) = (words.next(), words.next()) else {
            return Err(err("AUTH needs a mechanism and at most one response"));
        };
        // What USER said is forgotten.
        self.state = State::Anonymous;
        let initial = initial.map(|text| if text == b"=" { Ok(Zeroizing::default()) } else { decode(text) }).transpose()?;
        Ok(Exchange::begin(mechanism, initial.as_ref().map(|message| &message[..])))
    }

    fn named(&self, command: &Command<'_>) -> Option<sasl::Mechanism> {
        let sasl = self.sasl?;
        sasl.mechanisms.find(command.arguments().next()?, sasl.protection)
    }

    /// A line of the client in an exchange. Unless it leads on, the exchange is over.
    pub(crate) fn response(&mut self, line: &[u8], actions: &mut Vec<Action>) {
        let State::Exchange(exchange) = self.leave_exchange() else { return };
        match decode(line).map(|message| exchange.step(&message)) {
            Ok(Ok(step)) => self.follow(step, actions),
            Ok(Err(fault)) => self.refuse_response(fault, actions),
            Err(reply) => actions.push(Action::Reply(reply)),
        }
    }

    /// A line that is too long, of an exchange or not.
    pub(crate) fn too_long(&mut self, actions: &mut Vec<Action>) {
        if matches!(self.state, State::Exchange(_)) {
            self.leave_exchange();
        }
        actions.push(Action::Reply(err("line too long")));
    }

    fn follow(&mut self, step: Step, actions: &mut Vec<Action>) {
        match step {
            Step::Challenge(next, challenge) => self.ask_client(next, challenge, actions),
            Step::Judge { user, .. } if user.len() > USER_LEN_MAX => self.refuse_response(Fault::Malformed, actions),
            Step::Judge { user, password } => {
                self.state = State::Judging;
                actions.push(Action::Judge { user: user.into_vec(), proof: Proof::Password(password) });
            }
            Step::Relay(response) => {
                self.state = State::Relaying;
                actions.push(Action::SaslStep { response });
            }
        }
    }

    /// A response may be longer than a command. Between lines nothing is held, so another reader can take over.
    fn ask_client(&mut self, next: Exchange, challenge: &[u8], actions: &mut Vec<Action>) {
        self.state = State::Exchange(next);
        self.lines = Lines::new(Ending::LfOptionalCr, RESPONSE_LEN_MAX);
        actions.push(Action::Reply(format!("+ {}\r\n", wire::base64::encode(challenge)).into_bytes()));
    }

    fn leave_exchange(&mut self) -> State {
        self.lines = Lines::new(Ending::LfOptionalCr, COMMAND_LEN_MAX);
        std::mem::replace(&mut self.state, State::Anonymous)
    }

    fn refuse_response(&mut self, fault: Fault, actions: &mut Vec<Action>) {
        match fault {
            Fault::Malformed => actions.push(Action::Reply(err("no response that can be read"))),
            Fault::Identity => {
                self.state = State::Judging;
                self.verdict(crate::Verdict::Refused, actions);
            }
        }
    }
}

/// A response; `*` cancels (RFC 5034 §4).
fn decode(line: &[u8]) -> Result<Zeroizing<Vec<u8>>, Vec<u8>> {
    if line == b"*" {
        return Err(err("cancelled"));
    }
    wire::base64::decode(line).map(Zeroizing::new).map_err(|_| err("no response that can be read"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Offer, Verdict};

    fn machine(cleartext: bool) -> Authorization {
        let offer = Offer { cleartext, stls: false, apop_timestamp: None, response_codes: true, failures_max: 3 };
        Authorization::new(offer).with_sasl(Mechanisms::default(), Protection::default())
    }

    fn b64(text: &str) -> String {
        wire::base64::encode(text.as_bytes())
    }

    /// What comes of `input`, cut into pieces of `chunk_len`. A relayed message is answered by its first letter: `o` is right, `n` wrong, for
    /// all others there is a challenge.
    fn run(machine: &mut Authorization, input: &str, chunk_len: usize) -> String {
        let mut text = String::new();
        for chunk in input.as_bytes().chunks(chunk_len) {
            let mut rest = chunk;
            while machine.is_reading() && !rest.is_empty() {
                let mut actions = Vec::new();
                machine.receive(&mut rest, &mut actions);
                let mut queue = std::collections::VecDeque::from(actions);
                while let Some(action) = queue.pop_front() {
                    let mut more = Vec::new();
                    let mut answer = |message: &[u8]| match message.first() {
                        Some(b'o') => machine.verdict(Verdict::Accepted, &mut more),
                        Some(b'n') => machine.verdict(Verdict::Refused, &mut more),
                        _ => machine.challenge(&[b"re ", message].concat(), &mut more),
                    };
                    match action {
                        Action::Reply(reply) => text += std::str::from_utf8(&reply).unwrap(),
                        Action::Judge { user, proof: Proof::Password(secret) } => {
                            text += &format!("[{} {}]", user.escape_ascii(), secret.expose().escape_ascii());
                            answer(secret.expose());
                        }
                        Action::SaslStart { initial, .. } => answer(initial.as_ref().map_or(b"", |initial| initial.expose())),
                        Action::SaslStep { response } => answer(response.expose()),
                        other => text += &format!("[{other:?}]"),
                    }
                    queue.extend(more);
                }
            }
        }
        text.replace("\r\n", "\n")
    }

    #[test]
    fn exchanges() {
        let right = b64("\0joe\0open sesame");
        for (input, expected) in [
            (format!("AUTH PLAIN {right}"), "[joe open sesame][HandOver]".to_owned()),
            (format!("auth plain\n{right}"), "+ \n[joe open sesame][HandOver]".to_owned()),
            (
                format!("AUTH LOGIN\n{}\n{}", b64("joe"), b64("open")),
                format!("+ {}\n+ {}\n[joe open][HandOver]", b64("Username:"), b64("Password:")),
            ),
            (format!("AUTH PLAIN {}", b64("\0joe\0no")), "[joe no]-ERR [AUTH] authorization failed\n".to_owned()),
            (format!("AUTH PLAIN {}", b64("ann\0joe\0open")), "-ERR [AUTH] authorization failed\n".to_owned()),
            (
                format!("AUTH SCRAM-SHA-1\n{}\n{}\n{}", b64("x"), b64("y"), b64("o")),
                format!("+ {}\n+ {}\n+ {}\n[HandOver]", b64("re "), b64("re x"), b64("re y")),
            ),
            (format!("AUTH SCRAM-SHA-1 {}\n=", b64("x")), format!("+ {}\n-ERR no response that can be read\n", b64("re x"))),
            (format!("AUTH SCRAM-SHA-1 =\n{}", b64("no")), format!("+ {}\n-ERR [AUTH] authorization failed\n", b64("re "))),
            ("AUTH PLAIN\n*\nNOOP".to_owned(), "+ \n-ERR cancelled\n+OK \n".to_owned()),
            ("AUTH PLAIN\nQUIT".to_owned(), "+ \n-ERR no response that can be read\n".to_owned()),
            ("AUTH PLAIN\n!".to_owned(), "+ \n-ERR no response that can be read\n".to_owned()),
            ("AUTH PLAIN ! x".to_owned(), "-ERR AUTH needs a mechanism and at most one response\n".to_owned()),
            ("AUTH CRAM-MD5".to_owned(), "-ERR that mechanism is not known here\n".to_owned()),
            ("AUTH SCRAM-SHA-1-PLUS".to_owned(), "-ERR that mechanism is not known here\n".to_owned()),
            ("AUTH".to_owned(), "+OK mechanisms follow\nSCRAM-SHA-256\nSCRAM-SHA-1\nPLAIN\nLOGIN\n.\n".to_owned()),
            // A name that USER gave is no name for a PASS behind AUTH.
            ("USER ann\nAUTH PLAIN\n*\nPASS x".to_owned(), "+OK \n+ \n-ERR cancelled\n-ERR USER first\n".to_owned()),
        ] {
            for chunk_len in [1, 3, 9999] {
                assert_eq!(run(&mut machine(true), &format!("{input}\r\n"), chunk_len), expected, "{input}");
            }
        }
    }

    #[test]
    fn nothing_is_taken_where_no_password_may_be_sent() {
        let text = run(&mut machine(false), "AUTH\nAUTH SCRAM-SHA-1\nAUTH PLAIN\nCAPA\n", 99);
        assert_eq!(text.matches("not encrypted").count(), 3);
        assert!(!text.contains("SASL"));
        assert!(run(&mut machine(true), "CAPA\n", 99).contains("\nSASL SCRAM-SHA-256 SCRAM-SHA-1 PLAIN LOGIN\n"));
        let offer = Offer { cleartext: true, stls: false, apop_timestamp: None, response_codes: true, failures_max: 3 };
        let mut without = Authorization::new(offer.clone());
        assert!(!run(&mut without, "AUTH PLAIN\nCAPA\n", 99).contains("SASL"));
        let protection = Protection { channel: true, certificate: true };
        let mut bound = Authorization::new(offer).with_sasl(Mechanisms::default(), protection);
        let plus = run(&mut bound, "CAPA\nAUTH SCRAM-SHA-1-PLUS =\n", 99);
        assert!(
            plus.contains("SASL EXTERNAL SCRAM-SHA-256-PLUS SCRAM-SHA-1-PLUS SCRAM-SHA-256") && plus.contains("\n+ "),
            "{plus}"
        );
    }

    #[test]
    fn responses_have_a_bound() {
        let long = "A".repeat(RESPONSE_LEN_MAX);
        for (response, reply) in [(long.clone(), "no response that can be read"), (long + "A", "line too long")] {
            for chunk_len in [7, 99_999] {
                let text = run(&mut machine(true), &format!("AUTH PLAIN\n{response}\nNOOP\n"), chunk_len);
                assert_eq!(text, format!("+ \n-ERR {reply}\n+OK \n"));
            }
        }
        let name = b64(&format!("\0{}\0open", "u".repeat(USER_LEN_MAX + 1)));
        assert_eq!(run(&mut machine(true), &format!("AUTH PLAIN\n{name}\n"), 999), "+ \n-ERR no response that can be read\n");
        // The command itself is a command line.
        let text = run(&mut machine(true), &format!("AUTH PLAIN {}\nNOOP\n", "A".repeat(COMMAND_LEN_MAX)), 999);
        assert_eq!(text, "-ERR line too long\n+OK \n");
    }

    #[test]
    fn failures_are_counted_with_the_others_and_challenges_to_nothing_are_nothing() {
        let wrong = format!("AUTH PLAIN {}\n", b64("\0joe\0no"));
        let identity = format!("AUTH PLAIN {}\n", b64("ann\0joe\0open"));
        let text = run(&mut machine(true), &format!("{wrong}{identity}USER joe\nPASS no\nNOOP\n"), 999);
        assert!(text.ends_with("authorization failed\n[Close]") && text.matches("[AUTH]").count() == 3, "{text}");
        let mut idle = machine(true);
        let mut actions = Vec::new();
        idle.challenge(b"x", &mut actions);
        assert!(actions.is_empty() && idle.is_reading());
    }
}
