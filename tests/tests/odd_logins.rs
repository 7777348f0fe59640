//! Logins and recipients that are made to be something else: SQL, patterns, NULs, letters that look like quotes, ten thousand bytes.
//!
//! Each is asked for by SMTP AUTH, POP3 and RCPT, with the store in `QMAIL_TEST_ACCOUNTS` (as control/accounts has it) if that is set.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use system_tests::Instance;
use system_tests::line::{Pop3, Smtp};

const DOMAIN: &str = "a.test";

fn instance() -> Instance {
    let store = std::env::var("QMAIL_TEST_ACCOUNTS").map(|store| format!("{store}\n"));
    let store = store.as_ref().map(|store| ("accounts", store.as_str()));
    let control: Vec<_> = [("authcleartext", "127.0.0.1/32\n"), ("authlimits", "failures=0\naccount=0\npause=0\n")]
        .into_iter()
        .chain(store.ok())
        .collect();
    let instance = Instance::started(&control).unwrap();
    instance.virtual_domain(DOMAIN, &["ann", "a_n", "o'brien"]).unwrap();
    instance.must(&["alias", "add", "info@a.test", "ann@a.test"]).unwrap();
    instance
}

/// Local parts that must not be anybody's.
fn odd() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        "' OR '1'='1",
        "ann' --",
        "ann'--",
        "ann\"",
        "\"ann\"",
        "ann;--",
        "ann'; DROP TABLE account; --",
        "ann'/*",
        "ann' UNION SELECT password FROM account --",
        "ann\\",
        "ann\\' OR 1=1 --",
        "a%",
        "%",
        "_nn",
        "a__",
        "ann%00",
        "$1",
        "?1",
        "x'616e6e'",
        "ann\u{2019} OR \u{2018}1\u{2019}=\u{2018}1",
        "\u{ff41}nn",
        "ann\u{2032}--",
        "a\u{301}nn",
        "*)(uid=*",
        "../ann",
    ]
    .into_iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    all.extend([b"ann\0".to_vec(), b"ann\0' OR 1=1".to_vec(), b"\xff\xfe'".to_vec(), b"ann\xc0\xa7".to_vec()]);
    all.push(b"'".repeat(10_000));
    all.push(b"a".repeat(10_000));
    all
}

/// The answer to AUTH PLAIN in a session of its own.
fn auth(instance: &Instance, login: &[u8], password: &[u8]) -> String {
    let mut smtp = instance.smtp().unwrap();
    smtp.must("EHLO client.example.test", "250").unwrap();
    let message = wire::base64::encode(&[b"\0", login, b"\0", password].concat());
    match smtp.ask(&format!("AUTH PLAIN {message}")) {
        Ok(reply) if !reply.starts_with("500") => reply,
        // Longer than a command line may be: in a line of its own (RFC 4954 §4).
        _ => {
            let mut smtp = instance.smtp().unwrap();
            smtp.must("EHLO client.example.test", "250").unwrap();
            smtp.must("AUTH PLAIN", "334").unwrap();
            smtp.ask(&message).unwrap()
        }
    }
}

#[test]
fn logins_made_of_something_else_are_nobodys_and_change_nothing() {
    let instance = instance();
    let before = instance.must(&["export", "--with-secrets"]).unwrap();
    let mut replies: BTreeMap<String, usize> = BTreeMap::new();
    let logins = odd().into_iter().flat_map(|odd| [[&odd[..], b"@a.test"].concat(), [b"ann@a.test", &odd[..]].concat(), odd]);
    for login in logins {
        let reply = auth(&instance, &login, b"ann-password");
        assert!(reply.starts_with('5'), "{}: {reply}", login.escape_ascii());
        *replies.entry(reply.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).or_default() += 1;
        if login.contains(&0) || login.len() > 200 {
            continue;
        }
        let (mut line, login) = (system_tests::line::Line::open(instance.port(110)).unwrap(), &login[..]);
        line.line().unwrap();
        line.raw(&[b"USER ", login, b"\r\n"].concat()).unwrap();
        let user = line.line().unwrap();
        line.raw(b"PASS ann-password\r\n").unwrap();
        let pass = line.line().unwrap();
        let (user, pass) = (String::from_utf8_lossy(&user), String::from_utf8_lossy(&pass));
        assert!(pass.starts_with("-ERR"), "{}: {user} {pass}", login.escape_ascii());
    }
    assert!(replies.contains_key("535 5.7.8"), "{replies:?}");
    assert!(replies.keys().all(|reply| ["535 5.7.8", "501 5.5.2", "500 5.5.6"].contains(&reply.as_str())), "{replies:?}");
    // Passwords of that kind are no better.
    for password in odd().into_iter().filter(|odd| odd.len() < 500) {
        let reply = auth(&instance, b"ann@a.test", &password);
        assert!(reply.starts_with('5'), "{}: {reply}", password.escape_ascii());
    }
    // Names with a quote are names all the same, and no pattern.
    for (user, password) in
        [("o'brien@a.test", "o'brien-password"), ("a_n@a.test", "a_n-password"), ("ann@a.test", "ann-password")]
    {
        assert!(auth(&instance, user.as_bytes(), password.as_bytes()).starts_with("235 "), "{user}");
        Pop3::login(instance.port(110), user, password).unwrap();
    }
    assert!(auth(&instance, b"a_n@a.test", b"ann-password").starts_with("535 "));
    let after = instance.must(&["export", "--with-secrets"]).unwrap();
    assert_eq!(after, before, "nothing changed");
}

#[test]
fn recipients_made_of_something_else_are_nobodys() {
    let instance = instance();
    let rcpt = |path: &[u8]| {
        let mut smtp: Smtp = instance.smtp().unwrap();
        smtp.must("EHLO client.example.test", "250").unwrap();
        smtp.must("MAIL FROM:<x@elsewhere.test> SMTPUTF8", "250").unwrap();
        smtp.0.raw(&[b"RCPT TO:<", path, b">\r\n"].concat()).unwrap();
        smtp.reply().unwrap()
    };
    for odd in odd() {
        let quoted: Vec<u8> =
            odd.iter().flat_map(|b| if matches!(b, b'"' | b'\\') { vec![b'\\', *b] } else { vec![*b] }).collect();
        for path in
            [[&odd[..], b"@a.test"].concat(), [b"\"", &quoted[..], b"\"@a.test"].concat(), [b"ann@a.test", &odd[..]].concat()]
        {
            let reply = rcpt(&path);
            // `"ann"` is another way to write ann (RFC 5321 §4.1.2), and a source of nothing else.
            let is_ann = odd == b"\"ann\"" && path.starts_with(b"\"ann\"@");
            assert!(reply.starts_with('5') || is_ann, "{}: {reply}", path.escape_ascii());
        }
    }
    for (to, code) in [
        ("o'brien@a.test", "250 "),
        ("a_n@a.test", "250 "),
        ("info@a.test", "250 "),
        ("a-n@a.test", "550 "),
        ("_n_@a.test", "550 "),
    ] {
        assert!(rcpt(to.as_bytes()).starts_with(code), "{to}");
    }
    assert_eq!(instance.json(&["user", "list", DOMAIN]).unwrap().as_array().unwrap().len(), 3);
}
