//! XCLIENT: a trusted program before us, a proxy or a test, tells for whom it stands (Postfix's XCLIENT README).
//!
//! Offered to the clients that the driver names ([`Connection::xclient`](super::Connection::xclient)), and to nobody else. A command that is
//! understood starts the session over, up to the greeting and the programs that are asked before it; what it does not mention stays as it
//! was told before, but no login by AUTH does, and nothing that programs said.
//! A command with an error changes nothing. PROTO and HELO are taken for politeness: the EHLO that must follow says both.
//!
//! Never: decides what the told address may do; that is [`Action::Admit`]'s answer.

use super::exchange::{Action, Actions, Logins};
use super::{Session, State, replies};
use logline::Line;
use std::net::IpAddr;

/// As EHLO offers it.
pub(super) const EXTENSION: &str = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT";
/// Longest value, decoded; as in Postfix.
const VALUE_LEN_MAX: usize = 255;

/// Told anew; `Some(None)` is `[UNAVAILABLE]` or `[TEMPUNAVAIL]`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    name: Option<Option<Box<[u8]>>>,
    address: Option<Option<IpAddr>>,
    login: Option<Option<Box<[u8]>>>,
    local: Option<Option<IpAddr>>,
}

impl Session {
    pub(super) fn xclient(&mut self, argument: &[u8], out: &mut Actions) {
        if !self.peer.xclient {
            return self.refuse(replies::UNIMPLEMENTED, out);
        }
        if !matches!(self.state, State::Idle) {
            return self.refuse(replies::XCLIENT_IN_TRANSACTION, out);
        }
        let Some(told) = Told::parse(argument) else { return self.refuse(replies::XCLIENT_SYNTAX, out) };
        let by = self.peer.remote_ip.clone();
        self.take(told);
        out.push(Action::Log(Line::new("xclient").bytes("remote", &self.peer.remote_ip).bytes("by", &by).finish()));
        self.state = State::Admitting;
        out.push(Action::Admit { address: std::str::from_utf8(&self.peer.remote_ip).ok().and_then(|ip| ip.parse().ok()) });
    }

    fn take(&mut self, told: Told) {
        if let Some(name) = told.name {
            self.peer.remote_host = name;
        }
        if let Some(address) = told.address {
            self.peer.remote_ip = address.map_or_else(|| b"unknown".as_slice().into(), |ip| ip.to_string().into_bytes().into());
        }
        if let Some(local) = told.local {
            self.peer.local_ip = local;
        }
        match told.login {
            Some(login) => (self.user, self.is_login_told) = (login, true),
            None if self.is_login_told => {}
            None => self.user = None,
        }
        self.is_told = true;
        // What it gave to relay goes with the answer that is due.
        if let Some(tls) = &mut self.peer.tls {
            tls.client = None;
        }
        (self.helo, self.failed_logins, self.errors, self.bad_recipients) = (None, 0, 0, 0);
        self.forget_all();
    }

    /// The answer to [`Action::Admit`].
    pub(super) fn admitted(&mut self, relays: bool, logins: Logins, out: &mut Actions) {
        if !matches!(self.state, State::Admitting) {
            return;
        }
        self.peer.relay_client = relays.then(Box::default);
        // TLS protects a password whoever it is that sends it.
        let is_protected = self.peer.tls.is_some() && logins == Logins::NotInClear;
        self.peer.logins = if is_protected { Logins::Offered } else { logins };
        self.before_hooks(out);
        self.end_if_draining(out);
    }
}

impl Told {
    /// `NAME=value …`; `None` if any of it makes no sense.
    fn parse(argument: &[u8]) -> Option<Self> {
        let mut told = Self::default();
        let mut words = argument.split(|b| *b == b' ').filter(|word| !word.is_empty()).peekable();
        words.peek()?;
        for word in words {
            let (name, value) = word.split_at_checked(word.iter().position(|b| *b == b'=')?)?;
            let value = xtext(value.get(1..)?)?;
            let is_known = !value.eq_ignore_ascii_case(b"[UNAVAILABLE]") && !value.eq_ignore_ascii_case(b"[TEMPUNAVAIL]");
            let value = is_known.then_some(value);
            match name.to_ascii_uppercase().as_slice() {
                b"NAME" => told.name = Some(sensible(value, is_host_name)?.map(Vec::into_boxed_slice)),
                b"LOGIN" => {
                    told.login =
                        Some(sensible(value, |value| !value.iter().any(u8::is_ascii_control))?.map(Vec::into_boxed_slice))
                }
                b"ADDR" => told.address = Some(address(value)?),
                b"DESTADDR" => told.local = Some(address(value)?),
                b"PORT" | b"DESTPORT" => drop(sensible(value, is_port)?),
                b"PROTO" => {
                    drop(sensible(value, |value| value.eq_ignore_ascii_case(b"SMTP") || value.eq_ignore_ascii_case(b"ESMTP"))?)
                }
                b"HELO" => drop(value),
                _ => return None,
            }
        }
        Some(told)
    }
}

/// A value that passes the test, or none.
fn sensible(value: Option<Vec<u8>>, test: impl Fn(&[u8]) -> bool) -> Option<Option<Vec<u8>>> {
    match value {
        Some(value) => (!value.is_empty() && test(&value)).then_some(Some(value)),
        None => Some(None),
    }
}

fn address(value: Option<Vec<u8>>) -> Option<Option<IpAddr>> {
    let Some(value) = value else { return Some(None) };
    let text = std::str::from_utf8(&value).ok()?;
    let ip = match text.split_at_checked(5) {
        Some((tag, ip)) if tag.eq_ignore_ascii_case("IPV6:") => ip.parse::<std::net::Ipv6Addr>().ok()?.into(),
        _ => text.parse::<IpAddr>().ok()?,
    };
    Some(Some(ip.to_canonical()))
}

fn is_host_name(name: &[u8]) -> bool {
    name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(b))
}

fn is_port(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// Undoes xtext (RFC 3461 §4): `+` and two hexadecimal digits are a byte. No other `+`, and no `=`, has a place there.
fn xtext(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut rest = text.iter();
    let mut out = Vec::new();
    while let Some(&b) = rest.next() {
        let b = match b {
            b'+' => digit(rest.next()?)?.checked_mul(16)?.checked_add(digit(rest.next()?)?)?,
            b'!'..=b'~' if b != b'=' => b,
            _ => return None,
        };
        out.push(b);
    }
    (out.len() <= VALUE_LEN_MAX && !out.contains(&0)).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Config, Connection, fuzz};
    use std::sync::Arc;

    fn proxy() -> Connection {
        Connection { remote_ip: b"10.0.0.1".as_slice().into(), xclient: true, ..Connection::default() }
    }

    /// The replies behind the greeting and what was logged.
    fn run(peer: &Connection, input: &str) -> (String, Vec<String>) {
        let config = Config { me: b"mx".to_vec(), greeting: b"mx".to_vec(), ..Config::default() };
        let seen = fuzz::run(&Arc::new(config), peer, [input.replace('\n', "\r\n").as_bytes()]);
        let replies = String::from_utf8(seen.replies).unwrap().replace("\r\n", "\n");
        let log = seen.log.into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
        (replies.strip_prefix("220 mx ESMTP\n").unwrap().to_owned(), log)
    }

    #[test]
    fn only_who_is_trusted_may_say_it() {
        let (replies, _) = run(&proxy(), "EHLO x\nXCLIENT COLOUR=red\nXCLIENT ADDR=192.0.2.9\nHELO x\n");
        assert!(replies.contains(&format!("\n250-{EXTENSION}\n250 HELP\n501 5.5.4 no XCLIENT")), "{replies}");
        assert!(replies.ends_with("\n220 mx ESMTP\n250 mx\n"), "{replies}");
        let stranger = Connection { xclient: false, ..proxy() };
        let (replies, _) = run(&stranger, "EHLO x\nXCLIENT ADDR=192.0.2.1\nMAIL FROM:<>\nRCPT TO:<facts@far.example>\n");
        assert!(!replies.contains("XCLIENT"), "{replies}");
        assert!(replies.ends_with(
            "\n502 5.5.1 unimplemented\n250 2.1.0 ok\n553 5.7.1 sorry, that domain isn't in my list of allowed rcpthosts\n"
        ));
    }

    #[test]
    fn the_told_client_has_the_rights_of_its_address_and_login_alone() {
        let mail = "EHLO x\nMAIL FROM:<>\nRCPT TO:<facts@far.example>\n";
        let relays = |input: &str| run(&proxy(), &format!("{input}{mail}")).0.ends_with("250 2.1.0 ok\n250 2.1.5 ok\n");
        for (input, wanted) in [
            ("", false),
            ("XCLIENT ADDR=192.0.2.1\n", true),
            ("XCLIENT ADDR=192.0.2.2\n", false),
            ("XCLIENT ADDR=[UNAVAILABLE]\n", false),
            ("XCLIENT ADDR=192.0.2.2 LOGIN=joe\n", true),
            ("XCLIENT LOGIN=joe\nXCLIENT ADDR=192.0.2.2\n", true),
            ("XCLIENT LOGIN=joe\nXCLIENT LOGIN=[UNAVAILABLE]\n", false),
            ("XCLIENT ADDR=192.0.2.1\nXCLIENT ADDR=192.0.2.2\n", false),
            ("XCLIENT ADDR=192.0.2.1\nEHLO x\nAUTH PLAIN AGpvZQBvaw==\nXCLIENT ADDR=192.0.2.2\n", false),
        ] {
            assert_eq!(relays(input), wanted, "{input}");
        }
        let relay = Connection { relay_client: Some(Box::default()), ..proxy() };
        let (replies, log) = run(
            &relay,
            "XCLIENT ADDR=192.0.2.2 NAME=a.example DESTADDR=192.0.2.3\nEHLO x\nMAIL FROM:<>\nRCPT TO:<facts@far.example>\n",
        );
        assert!(replies.ends_with("rcpthosts\n"), "{replies}");
        assert_eq!(log.first().map(String::as_str), Some("xclient remote=192.0.2.2 by=10.0.0.1"));
    }

    #[test]
    fn not_within_a_transaction() {
        let (replies, _) = run(&proxy(), "EHLO x\nMAIL FROM:<>\nXCLIENT ADDR=192.0.2.1\nRSET\nXCLIENT ADDR=192.0.2.1\n");
        assert!(replies.ends_with("503 5.5.1 no XCLIENT within a transaction\n250 2.0.0 flushed\n220 mx ESMTP\n"), "{replies}");
    }

    #[test]
    fn attributes_are_understood_or_the_whole_command_is_refused() {
        let text = |text: &str| Some(Some(text.as_bytes().into()));
        let ip = |ip: &str| Some(Some(ip.parse().unwrap()));
        for (argument, told) in [
            (
                "NAME=spike.example ADDR=192.0.2.7",
                Told { name: text("spike.example"), address: ip("192.0.2.7"), ..Told::default() },
            ),
            ("addr=IPV6:2001:db8::1", Told { address: ip("2001:db8::1"), ..Told::default() }),
            ("ADDR=ipv6:::ffff:192.0.2.7", Told { address: ip("192.0.2.7"), ..Told::default() }),
            ("ADDR=[UNAVAILABLE] NAME=[TEMPUNAVAIL]", Told { name: Some(None), address: Some(None), ..Told::default() }),
            ("LOGIN=joe+40example.org", Told { login: text("joe@example.org"), ..Told::default() }),
            ("LOGIN=[UNAVAILABLE]", Told { login: Some(None), ..Told::default() }),
            (
                "DESTADDR=192.0.2.8 DESTPORT=25 PORT=65535 PROTO=esmtp HELO=x+20y",
                Told { local: ip("192.0.2.8"), ..Told::default() },
            ),
            ("PORT=[UNAVAILABLE]", Told::default()),
        ] {
            assert_eq!(Told::parse(argument.as_bytes()), Some(told), "{argument}");
        }
        for bad in [
            "",
            "NAME",
            "NAME=",
            "NAME=a b",
            "NAME=a/b",
            "NAME=a+0Ab",
            "ADDR=192.0.2",
            "ADDR=IPV6:192.0.2.1",
            "ADDR=unknown",
            "PORT=65536",
            "PORT=-1",
            "PROTO=LMTP",
            "LOGIN=joe+0",
            "LOGIN=joe+zz",
            "LOGIN=joe+00",
            "LOGIN=a=b",
            "LOGIN=\u{e9}",
            "COLOUR=red",
            "ADDR=192.0.2.7 COLOUR=red",
        ] {
            assert_eq!(Told::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(Told::parse(format!("LOGIN={}", "x".repeat(VALUE_LEN_MAX + 1)).as_bytes()), None);
    }
}
