//! TLS and logins.

use super::super::*;
use super::transaction;
use wire::{Login, Secret};

const STARTTLS: &[u8] = b"250-mx\r\n250-AUTH PLAIN\r\n250-SIZE 1\r\n250 STARTTLS\r\n";
const DIED: &str = "Connected to 192.0.2.1 but connection died. (#4.4.2)\n";

fn login() -> Login {
    Login { user: b"joe".to_vec(), password: Secret::new(b"xyzzy".to_vec()) }
}

/// A client that has said EHLO.
fn greeted(tls: Tls, login: Option<Login>, cleartext: bool) -> Client {
    let mut client = Client::new("me.example", "192.0.2.1", Security { tls, login, cleartext, ..Security::default() }).0;
    client.handle(Input::Bytes(b"220 hi\r\n"));
    client
}

/// A client that waits for its handshake.
fn handshaking(tls: Tls, login: Option<Login>) -> Client {
    let mut client = greeted(tls, login, false);
    client.handle(Input::Bytes(STARTTLS));
    let actions = client.handle(Input::Bytes(b"220 go\r\n"));
    assert_eq!(actions, [Action::Deadline(Stage::Handshake), Action::StartTls]);
    client
}

fn sent(actions: &[Action]) -> String {
    let text = |action: &Action| match action {
        Action::Send(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        Action::SendSecret(bytes) => format!("!{}", String::from_utf8(bytes.expose().to_vec()).unwrap()),
        Action::Ready => "(ready)".to_owned(),
        Action::Unusable(text) => format!("(unusable {text})"),
        Action::NoTls(text) => format!("(no TLS {text})"),
        Action::Close => "(close)".to_owned(),
        Action::StartTls => "(TLS)".to_owned(),
        Action::Deadline(_) => String::new(),
        other => panic!("{other:?}"),
    };
    actions.iter().map(text).collect()
}

#[test]
fn what_was_announced_in_the_clear_is_forgotten() {
    let mut client = handshaking(Tls::May, None);
    assert_eq!(sent(&client.handle(Input::TlsStarted)), "EHLO me.example\r\n");
    assert_eq!(client.offers(), &Offers::default());
    // A second STARTTLS is not asked for, though it be offered.
    assert_eq!(client.handle(Input::Bytes(b"250-mx\r\n250 STARTTLS\r\n")), [Action::Ready]);
    assert_eq!((client.offers().size_max, client.offers().auth.as_str()), (None, ""));
    // HELO does for a server that knows nothing better.
    let mut client = handshaking(Tls::Must, None);
    client.handle(Input::TlsStarted);
    assert_eq!(sent(&client.handle(Input::Bytes(b"500 what\r\n"))), "HELO me.example\r\n");
    assert_eq!(client.handle(Input::Bytes(b"250 mx\r\n")), [Action::Ready]);
}

#[test]
fn each_policy_and_what_the_server_offers() {
    let with: &[u8] = STARTTLS;
    let without: &[u8] = b"250-mx\r\n250 SIZE\r\n";
    let no_tls =
        "(unusable Connected to 192.0.2.1 but it does not offer TLS, which is demanded for it. (#4.7.4)\n)QUIT\r\n(close)";
    for (tls, ehlo, expected) in [
        (Tls::No, with, "(ready)"),
        (Tls::No, without, "(ready)"),
        (Tls::May, with, "STARTTLS\r\n"),
        (Tls::May, without, "(ready)"),
        (Tls::Must, with, "STARTTLS\r\n"),
        (Tls::Must, without, no_tls),
        (Tls::Started, with, "(ready)"),
        (Tls::Started, without, "(ready)"),
    ] {
        assert_eq!(sent(&greeted(tls, None, false).handle(Input::Bytes(ehlo))), expected, "{tls:?}");
    }
    let mut client = greeted(Tls::Must, None, false);
    client.handle(Input::Bytes(b"502 what\r\n"));
    assert_eq!(sent(&client.handle(Input::Bytes(b"250 mx\r\n"))), no_tls);
}

#[test]
fn starttls_refused_or_broken() {
    let refused = |code: &str| format!("Connected to 192.0.2.1 but STARTTLS failed.\nRemote host said: {code} no\n");
    let failed = "Connected to 192.0.2.1 but TLS failed: why. (#4.7.5)\n";
    for tls in [Tls::May, Tls::Must] {
        let end = |text: &str, polite: &str| {
            let what = if tls == Tls::May { "no TLS" } else { "unusable" };
            format!("({what} {text}){polite}(close)")
        };
        for code in ["454", "501", "250", "354", "421"] {
            let mut client = greeted(tls, None, false);
            client.handle(Input::Bytes(STARTTLS));
            let actions = client.handle(Input::Bytes(format!("{code} no\r\n").as_bytes()));
            assert_eq!(sent(&actions), end(&refused(code), "QUIT\r\n"));
            assert!(client.handle(Input::TlsStarted).is_empty(), "it is over");
        }
        for input in [Input::Closed, Input::Timeout, Input::Bytes(b"?\r\n")] {
            let mut client = greeted(tls, None, false);
            client.handle(Input::Bytes(STARTTLS));
            assert_eq!(sent(&client.handle(input)), end(DIED, ""));
        }
        for (input, text) in [(Input::TlsFailed("why"), failed), (Input::Closed, DIED), (Input::Timeout, DIED)] {
            assert_eq!(sent(&handshaking(tls, None).handle(input)), end(text, ""));
        }
        let long = "x".repeat(6000);
        let actions = handshaking(tls, None).handle(Input::TlsFailed(&long));
        assert!(matches!(&actions[0], Action::NoTls(text) | Action::Unusable(text) if text.len() == REPORT_LEN_MAX));
    }
}

/// Past-holes R2: a stranger puts answers behind the 220, which a careless client would read as if they came by TLS.
#[test]
fn nothing_in_the_clear_counts_after_starttls() {
    let injected =
        "(unusable Connected to 192.0.2.1 but something was said in the clear behind STARTTLS. (#4.7.5)\n)(close)".to_owned();
    for tls in [Tls::May, Tls::Must] {
        for behind in ["250-mx\r\n250 AUTH PLAIN\r\n", "250 ok\r\n", "2", "\r\n", "\n", "\0"] {
            let mut client = greeted(tls, Some(login()), false);
            client.handle(Input::Bytes(STARTTLS));
            assert_eq!(sent(&client.handle(Input::Bytes(format!("220 go\r\n{behind}").as_bytes()))), injected, "{behind:?}");
            assert!(client.handle(Input::TlsStarted).is_empty());
            let mut client = handshaking(tls, Some(login()));
            assert_eq!(sent(&client.handle(Input::Bytes(behind.as_bytes()))), injected);
            assert!(client.handle(Input::TlsStarted).is_empty());
        }
    }
    // With the EHLO reply, before STARTTLS was even sent.
    let mut client = greeted(Tls::May, None, false);
    let actions = client.handle(Input::Bytes(&[STARTTLS, b"220 go\r\n"].concat()));
    assert_eq!(sent(&actions), format!("STARTTLS\r\n(no TLS {DIED})(close)"));
}

/// Every input in the two states of STARTTLS and in those of a login: one end at most, and none of them by way of the clear.
#[test]
fn every_input_in_every_state() {
    type State = (&'static str, fn() -> Client);
    let states: [State; 6] = [
        ("STARTTLS", || {
            let mut client = greeted(Tls::May, None, false);
            client.handle(Input::Bytes(STARTTLS));
            client
        }),
        ("handshake", || handshaking(Tls::May, None)),
        ("CRAM-MD5", || logging_in("CRAM-MD5")),
        ("PLAIN", || logging_in("PLAIN")),
        ("LOGIN", || logging_in("LOGIN")),
        ("LOGIN, password", || {
            let mut client = logging_in("LOGIN");
            client.handle(Input::Bytes(b"334 VXNlcm5hbWU6\r\n"));
            client
        }),
    ];
    let goes_on = |state: &str, input: usize| match state {
        "STARTTLS" => matches!(input, 0..=2 | 4..=6),
        "handshake" => matches!(input, 0..=2 | 4),
        "PLAIN" => matches!(input, 0..=2 | 4..=5 | 10),
        _ => matches!(input, 0..=2 | 4..=5 | 9),
    };
    for (state, make) in states {
        for number in 0..14 {
            let mut client = make();
            let input = match number {
                0 => Input::BodySent,
                1 => Input::BodyUnreadable,
                2 => Input::Quit,
                3 => Input::Begin(transaction(1)),
                4 => Input::TlsStarted,
                5 => Input::TlsFailed("why"),
                6 => Input::Bytes(b"220 x\r\n"),
                7 => Input::Bytes(b"250 x\r\n"),
                8 => Input::Bytes(b"354 x\r\n"),
                9 => Input::Bytes(b"334 PDE+\r\n"),
                10 => Input::Bytes(b"235 x\r\n"),
                11 => Input::Bytes(b"535 x\r\n"),
                12 => Input::Timeout,
                _ => Input::Closed,
            };
            let actions = client.handle(input);
            let closed = actions.contains(&Action::Close);
            let unfinished = actions.iter().filter(|action| matches!(action, Action::Unusable(_) | Action::NoTls(_))).count();
            if number == 3 {
                assert!(
                    matches!(&actions[..], [Action::Finished(end)] if end.outcomes[0].letter() == b'Z'),
                    "{state}: {actions:?}"
                );
                continue;
            }
            // A failed handshake in its state is the one end without a reply.
            let expected = goes_on(state, number) && !(state == "handshake" && number == 5);
            assert_eq!(!closed, expected, "{state}, input {number}: {actions:?}");
            assert_eq!(unfinished, usize::from(closed), "{state}, input {number}: {actions:?}");
            if closed {
                assert!(client.handle(Input::TlsStarted).is_empty() && client.handle(Input::Closed).is_empty());
            }
        }
    }
}

/// A client whose handshake is done and that has sent AUTH.
fn logging_in(mechanism: &str) -> Client {
    let mut client = greeted(Tls::Started, Some(login()), false);
    client.handle(Input::Bytes(format!("250-mx\r\n250 AUTH {mechanism}\r\n").as_bytes()));
    client
}

#[test]
fn the_strongest_mechanism_that_both_know() {
    let plain = "!AUTH PLAIN AGpvZQB4eXp6eQ==\r\n";
    for (offered, command) in [
        ("PLAIN LOGIN CRAM-MD5", "!AUTH CRAM-MD5\r\n"),
        ("LOGIN PLAIN", plain),
        ("login", "!AUTH LOGIN\r\n"),
        (
            "XPLAIN PLAIN-X",
            "(unusable Connected to 192.0.2.1 but it offers no login by CRAM-MD5, PLAIN or LOGIN. (#4.7.4)\n)QUIT\r\n(close)",
        ),
    ] {
        let mut client = greeted(Tls::Started, Some(login()), false);
        assert_eq!(sent(&client.handle(Input::Bytes(format!("250-mx\r\n250 AUTH {offered}\r\n").as_bytes()))), command);
    }
    let script = |mechanism: &str, steps: &[(&str, &str)]| {
        let mut client = logging_in(mechanism);
        for (said, expected) in steps {
            assert_eq!(sent(&client.handle(Input::Bytes(format!("{said}\r\n").as_bytes()))), *expected, "{mechanism}");
        }
        assert!(client.is_ready());
    };
    script("PLAIN", &[("235 ok", "(ready)")]);
    script("LOGIN", &[("334 VXNlcm5hbWU6", "!am9l\r\n"), ("334 anything", "!eHl6enk=\r\n"), ("235 2.7.0 ok", "(ready)")]);
    // The digest was made with Python's hmac.
    script("CRAM-MD5", &[("334 PDEuMkBteD4=", "!am9lIDRmMzc1MmJjNWVhM2EzNTkxMzZiZjU2NmZkNDk3YTdm\r\n"), ("235 ok", "(ready)")]);
}

#[test]
fn a_login_that_fails_is_temporary_and_shows_no_password() {
    let refused = |said: &str| {
        format!("(unusable Connected to 192.0.2.1 but the login was refused.\nRemote host said: {said}\n)QUIT\r\n(close)")
    };
    let asks =
        "(unusable Connected to 192.0.2.1 but its login asks for what it should not. (#4.7.0)\n)QUIT\r\n(close)".to_owned();
    let repeats =
        "(unusable Connected to 192.0.2.1 but it refused the login, and repeated the password. (#4.7.8)\n)QUIT\r\n(close)"
            .to_owned();
    for (mechanism, said, expected) in [
        ("PLAIN", "535 5.7.8 no", refused("535 5.7.8 no")),
        ("PLAIN", "250 ok", refused("250 ok")),
        ("PLAIN", "334 more", asks.clone()),
        ("PLAIN", "535 joe/xyzzy is wrong", repeats.clone()),
        ("PLAIN", "535 AGpvZQB4eXp6eQ== is wrong", repeats.clone()),
        ("LOGIN", "535 eHl6enk= is wrong", repeats),
        ("LOGIN", "235 already", refused("235 already")),
        ("CRAM-MD5", "235 already", refused("235 already")),
        ("CRAM-MD5", "334 not*base64", asks),
        ("CRAM-MD5", "454 4.7.0 later", refused("454 4.7.0 later")),
    ] {
        assert_eq!(sent(&logging_in(mechanism).handle(Input::Bytes(format!("{said}\r\n").as_bytes()))), expected, "{mechanism}");
    }
    let client = logging_in("PLAIN");
    let action = Action::SendSecret(Secret::new(b"AUTH PLAIN xyzzy\r\n".to_vec()));
    let shown = format!("{client:?} {action:?}");
    assert!(shown.contains("Secret(…)") && !shown.contains("xyzzy") && !shown.contains("120, 121, 122"), "{shown}");
}

#[test]
fn no_password_in_the_clear_unless_that_is_allowed() {
    let ehlo: &[u8] = b"250-mx\r\n250 AUTH PLAIN\r\n";
    let never =
        "(unusable Connected to 192.0.2.1 but there is no TLS, and a password does not go without. (#4.7.11)\n)QUIT\r\n(close)";
    for (tls, cleartext, expected) in [
        (Tls::No, false, never),
        (Tls::May, false, never),
        (Tls::No, true, "!AUTH PLAIN AGpvZQB4eXp6eQ==\r\n"),
        (Tls::May, true, "!AUTH PLAIN AGpvZQB4eXp6eQ==\r\n"),
        (Tls::Started, false, "!AUTH PLAIN AGpvZQB4eXp6eQ==\r\n"),
    ] {
        assert_eq!(sent(&greeted(tls, Some(login()), cleartext).handle(Input::Bytes(ehlo))), expected, "{tls:?} {cleartext}");
    }
    // With TLS, what is offered inside counts, not what was offered before.
    let mut client = handshaking(Tls::Must, Some(login()));
    client.handle(Input::TlsStarted);
    assert_eq!(sent(&client.handle(Input::Bytes(b"250-mx\r\n250 AUTH LOGIN\r\n"))), "!AUTH LOGIN\r\n");
}

/// Servers offer CRAM-MD5 without the passwords that it needs. The next mechanism is tried once, by TLS alone, and not after other refusals.
#[test]
fn a_digest_that_is_refused_is_no_wrong_password_yet() {
    let begin = |tls, offered: &str| {
        let mut client = greeted(tls, Some(login()), true);
        let said = sent(&client.handle(Input::Bytes(format!("250-mx\r\n250 AUTH {offered}\r\n").as_bytes())));
        assert_eq!(said, "!AUTH CRAM-MD5\r\n");
        client
    };
    let plain = "!AUTH PLAIN AGpvZQB4eXp6eQ==\r\n";
    for code in ["535 5.7.8", "504 5.5.4"] {
        let mut client = begin(Tls::Started, "PLAIN CRAM-MD5 LOGIN");
        client.handle(Input::Bytes(b"334 PDEuMkBteD4=\r\n"));
        assert_eq!(sent(&client.handle(Input::Bytes(format!("{code} no\r\n").as_bytes()))), plain);
        let refused = sent(&client.handle(Input::Bytes(b"535 5.7.8 no\r\n")));
        assert!(refused.starts_with("(unusable ") && !refused.contains("AUTH"), "no third one: {refused}");
    }
    let mut client = begin(Tls::Started, "CRAM-MD5 LOGIN");
    assert_eq!(sent(&client.handle(Input::Bytes(b"504 what\r\n"))), "!AUTH LOGIN\r\n");
    for (tls, offered, reply) in [
        (Tls::No, "CRAM-MD5 PLAIN", "535 no"),
        (Tls::Started, "CRAM-MD5", "535 no"),
        (Tls::Started, "CRAM-MD5 XOAUTH2", "535 no"),
        (Tls::Started, "CRAM-MD5 PLAIN", "454 4.7.0 later"),
        (Tls::Started, "CRAM-MD5 PLAIN", "534 5.7.9 too weak"),
        (Tls::Started, "CRAM-MD5 PLAIN", "535 what is xyzzy"),
    ] {
        let said = sent(&begin(tls, offered).handle(Input::Bytes(format!("{reply}\r\n").as_bytes())));
        assert!(said.starts_with("(unusable ") && !said.contains("AUTH"), "{reply}: {said}");
    }
}

#[test]
fn requiretls_is_said_by_tls_to_a_server_that_knows_it() {
    let begin = |tls: Tls, ehlo: &[u8]| {
        let mut client = greeted(tls, None, false);
        assert_eq!(client.handle(Input::Bytes(ehlo)), [Action::Ready]);
        client.handle(Input::Begin(Transaction { requiretls: true, ..transaction(1) }))
    };
    let actions = begin(Tls::Started, b"250-mx\r\n250 REQUIRETLS\r\n");
    assert_eq!(actions[0], Action::Send(b"MAIL FROM:<s@a.example> REQUIRETLS\r\n".to_vec()));
    for (tls, ehlo) in [(Tls::Started, &b"250 mx\r\n"[..]), (Tls::No, b"250-mx\r\n250 REQUIRETLS\r\n")] {
        let actions = begin(tls, ehlo);
        let [Action::Finished(end)] = &actions[..] else { panic!("{actions:?}") };
        let text = "192.0.2.1 does not support REQUIRETLS, which this message needs. (#5.7.30)\n";
        assert_eq!(end.outcomes, [Outcome::Failed(text.to_owned())]);
    }
}
