//! SASL with the clients of others: each mechanism by those of swaks, curl and GNU SASL that know it, on submission and on POP3.
#![allow(clippy::unwrap_used)]

use sasl::scram::{Hash, client};
use std::process::Command;
use system_tests::instance::ME;
use system_tests::line::{Pop3, Smtp};
use system_tests::s_client::{Inside, s_client};
use system_tests::{Instance, tools};

const BOB: &str = "bob@example.test";
const MECHANISMS: (&str, &str) = ("authmechanisms", "PLAIN\nLOGIN\nSCRAM-SHA-1\nSCRAM-SHA-256\nCRAM-MD5\nAPOP\n");

/// A system with bob, whose password is kept in clear, too.
fn instance(control: &[(&str, &str)]) -> Instance {
    let instance = Instance::started(&[&[MECHANISMS], control].concat()).unwrap();
    instance.must(&["domain", "add", "example.test"]).unwrap();
    instance.with_input(&["user", "add", BOB, "--password-stdin", "--keep-clear"], "bob-password\n").unwrap();
    instance
}

/// Runs it; its exit code and all it said.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn gnu_sasl_logs_in_by_every_mechanism() {
    let Some(gsasl) = tools::get("gnu_sasl_logs_in_by_every_mechanism", "gsasl", "usr/bin/gsasl").unwrap() else { return };
    let instance = instance(&[]);
    let login = |mechanism: &str, user: &str, password: &str| {
        let mut command = gsasl.command();
        let port = instance.port(587).to_string();
        command.args(["--smtp", "--client", "--no-starttls", "--no-cb", "--verbose", "--mechanism", mechanism]);
        command.args(["--authentication-id", user, "--password", password]);
        run(command.args([&format!("--connect=127.0.0.1:{port}")]).stdin(std::process::Stdio::null()))
    };
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "PLAIN", "LOGIN"] {
        let (code, said) = login(mechanism, BOB, "bob-password");
        assert!(code == Some(0) && said.contains("235 2.7.0 welcome"), "{mechanism}: {code:?} {said}");
        for (user, password) in [(BOB, "wrong"), ("nobody@example.test", "bob-password")] {
            let (code, said) = login(mechanism, user, password);
            assert!(code != Some(0) && said.contains("535 5.7.8 wrong name or password"), "{mechanism}: {code:?} {said}");
        }
    }
    instance.wait_log(&format!("login: service=smtp remote=127.0.0.1 user={BOB}")).unwrap();
    assert!(!instance.log().contains("bob-password"));
}

#[test]
fn gnu_sasl_binds_the_exchange_to_its_tls() {
    let Some(gsasl) = tools::get("gnu_sasl_binds_the_exchange_to_its_tls", "gsasl", "usr/bin/gsasl").unwrap() else { return };
    // Nowhere in the clear: what is offered is offered over TLS.
    let instance = instance(&[("authcleartext", "192.0.2.0/24\n")]);
    let login = |mechanism: &str, password: &str, more: &[&str]| {
        let mut command = gsasl.command();
        command.args(["--smtp", "--client", "--starttls", "--x509-ca-file=", "--verbose", "--mechanism", mechanism]);
        command.args(["--authentication-id", BOB, "--password", password]).args(more);
        let connect = format!("--connect=127.0.0.1:{}", instance.port(587));
        run(command.arg(connect).stdin(std::process::Stdio::null()))
    };
    for mechanism in ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS"] {
        let (code, said) = login(mechanism, "bob-password", &[]);
        assert!(code == Some(0) && said.contains("235 2.7.0 welcome"), "{mechanism}: {code:?} {said}");
        // p=tls-exporter,,
        assert!(said.contains("AUTH SCRAM") && said.contains(&wire::base64::encode(b"p=tls-exporter,")), "{said}");
        let (code, said) = login(mechanism, "wrong", &[]);
        assert!(code != Some(0) && said.contains("535 5.7.8"), "{mechanism}: {said}");
    }
    // A client that cannot bind says `n`.
    let (code, said) = login("SCRAM-SHA-256", "bob-password", &["--no-cb"]);
    assert!(code == Some(0), "{said}");
}

#[test]
fn swaks_and_curl_answer_challenges() {
    let name = "swaks_and_curl_answer_challenges";
    let Some(swaks) = tools::get(name, "swaks", "usr/bin/swaks").unwrap() else { return };
    let Some(curl) = tools::get(name, "curl", "usr/bin/curl").unwrap() else { return };
    let module = "usr/share/perl5/Digest/HMAC_MD5.pm";
    let Some(hmac) = tools::get(name, "libdigest-hmac-perl", module).unwrap() else { return };
    let instance = instance(&[]);
    let swaks = |password: &str| {
        let mut command = swaks.command();
        command.args(["--server", "127.0.0.1", "--port", &instance.port(587).to_string(), "--quit-after", "AUTH"]);
        command.args(["--auth", "CRAM-MD5", "--auth-user", BOB, "--auth-password", password]);
        run(command.env("PERL5LIB", hmac.prefix.join("usr/share/perl5")))
    };
    let (code, said) = swaks("bob-password");
    assert!(code == Some(0) && said.contains("235 2.7.0 welcome"), "{said}");
    let (code, said) = swaks("wrong");
    assert!(code == Some(28) && said.contains("535 5.7.8"), "{said}");
    let curl = |url: String, auth: &str, password: &str| {
        let mut command = curl.command();
        command.args(["--silent", "--show-error", "--max-time", "60", "--user", &format!("{BOB}:{password}")]);
        run(command.args(["--login-options", &format!("AUTH={auth}"), &url]))
    };
    let pop3 = |auth: &str, password: &str| curl(format!("pop3://127.0.0.1:{}/", instance.port(110)), auth, password);
    for auth in ["PLAIN", "LOGIN", "CRAM-MD5", "+APOP", "*"] {
        assert_eq!(pop3(auth, "bob-password").0, Some(0), "{auth}: {}", pop3(auth, "bob-password").1);
        // 67: the login was refused.
        assert_eq!(pop3(auth, "wrong").0, Some(67), "{auth}");
    }
    let smtp = |password: &str| {
        let url = format!("smtp://127.0.0.1:{}/client.example.test", instance.port(587));
        let mut command = curl_vrfy(&url);
        run(command.args(["--user", &format!("{BOB}:{password}"), "--login-options", "AUTH=CRAM-MD5"]))
    };
    assert_eq!(smtp("bob-password").0, Some(0));
    assert_eq!(smtp("wrong").0, Some(67));
}

/// curl that logs in and asks for nothing but a name.
fn curl_vrfy(url: &str) -> Command {
    let curl = tools::get("swaks_and_curl_answer_challenges", "curl", "usr/bin/curl").unwrap().unwrap();
    let mut command = curl.command();
    command.args(["--silent", "--show-error", "--max-time", "60", "--mail-rcpt", "bob", url]);
    command
}

/// A whole SCRAM exchange by POP3; the last line heard.
fn scram_by_pop3(instance: &Instance, hash: Hash, user: &str, password: &str) -> String {
    let mut pop3 = Pop3(system_tests::line::Line::open(instance.port(110)).unwrap());
    pop3.0.line().unwrap();
    let bare = format!("n={user},r=abcdef");
    let first = pop3.ask(&format!("AUTH {} {}", hash.name(), wire::base64::encode(format!("n,,{bare}").as_bytes()))).unwrap();
    let first = wire::base64::decode(first.strip_prefix("+ ").unwrap().as_bytes()).unwrap();
    let (last, signature) = client::prove(hash, password.as_bytes(), &bare, &first, b"n,,").unwrap();
    let answer = pop3.ask(&wire::base64::encode(&last)).unwrap();
    let Some(proof) = answer.strip_prefix("+ ") else { return answer };
    assert_eq!(wire::base64::decode(proof.as_bytes()).unwrap(), signature, "the server proves itself");
    let done = pop3.ask("").unwrap();
    format!("{done} {}", pop3.ask("STAT").unwrap())
}

/// The next line that is POP3's, of a client that also tells of its TLS.
fn answer(inside: &mut Inside) -> String {
    loop {
        let line = inside.line().unwrap();
        assert!(!line.is_empty(), "closed");
        if line.starts_with("+") || line.starts_with("-ERR") {
            return line.trim_end().to_owned();
        }
    }
}

/// POP3 by TLS 1.3, and what OpenSSL says can bind an exchange to it (RFC 9266).
fn bound_pop3(instance: &Instance, port: u16, starttls: Option<&str>) -> (Inside, Vec<u8>) {
    let mut command = s_client(instance, port, starttls);
    command.args(["-tls1_3", "-nocommands", "-ign_eof", "-keymatexport", "EXPORTER-Channel-Binding", "-keymatexportlen", "32"]);
    let mut inside = Inside::of(command).unwrap();
    let hex = loop {
        let line = inside.line().unwrap();
        assert!(!line.is_empty(), "closed");
        if let Some(hex) = line.trim().strip_prefix("Keying material: ") {
            break hex.to_owned();
        }
    };
    let bytes = (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
    if starttls.is_none() {
        assert!(answer(&mut inside).starts_with("+OK"));
    }
    (inside, bytes)
}

/// A -PLUS exchange over POP3; the last line heard.
fn plus_by_pop3(inside: &mut Inside, hash: Hash, binding: (&str, &[u8]), password: &str) -> String {
    let (header, bare) = (format!("p={},,", binding.0), format!("n={BOB},r=abcdef"));
    let first = wire::base64::encode(format!("{header}{bare}").as_bytes());
    inside.say(&format!("AUTH {}-PLUS {first}\r\n", hash.name())).unwrap();
    let said = answer(inside);
    let Some(challenge) = said.strip_prefix("+ ") else { return said };
    let challenge = wire::base64::decode(challenge.as_bytes()).unwrap();
    let header = [header.as_bytes(), binding.1].concat();
    let (last, signature) = client::prove(hash, password.as_bytes(), &bare, &challenge, &header).unwrap();
    inside.say(&format!("{}\r\n", wire::base64::encode(&last))).unwrap();
    let said = answer(inside);
    let Some(proof) = said.strip_prefix("+ ") else { return said };
    assert_eq!(wire::base64::decode(proof.as_bytes()).unwrap(), signature, "the server proves itself");
    inside.say("\r\n").unwrap();
    assert!(answer(inside).starts_with("+OK"));
    inside.say("STAT\r\n").unwrap();
    answer(inside)
}

#[test]
fn scram_plus_opens_the_mailbox_on_the_connection_that_it_is_bound_to() {
    let instance = instance(&[("authlimits", "failures=0\naccount=0\npause=0\n")]);
    let exporter = "tls-exporter";
    for (port, starttls) in [(995, None), (110, Some("pop3"))] {
        for hash in Hash::ALL {
            let (mut inside, bytes) = bound_pop3(&instance, port, starttls);
            assert_eq!(bytes.len(), 32);
            let refused = "-ERR [AUTH] authorization failed";
            // Somebody in between has another connection, and so other bytes.
            let (_other, others) = bound_pop3(&instance, port, starttls);
            assert_ne!(bytes, others);
            assert_eq!(plus_by_pop3(&mut inside, hash, (exporter, &others), "bob-password"), refused);
            assert_eq!(plus_by_pop3(&mut inside, hash, (exporter, &bytes), "wrong"), refused);
            assert_eq!(plus_by_pop3(&mut inside, hash, (exporter, &bytes), "bob-password"), "+OK 0 0", "{port} {hash:?}");
        }
    }
    // The certificate binds, too (RFC 5929), which TLS 1.2 has; this host's is signed by SHA-256.
    let pem = instance.root.join(format!("etc/qmail/tls/{ME}/cert.pem"));
    let line = format!("openssl x509 -in {} -outform DER | openssl dgst -sha256 -binary", pem.display());
    let end_point = Command::new("sh").args(["-c", &line]).output().unwrap().stdout;
    for version in ["-tls1_2", "-tls1_3"] {
        let mut inside = Inside::open(&instance, 995, None, &[version]).unwrap();
        assert!(answer(&mut inside).starts_with("+OK"));
        let bind =
            |inside: &mut Inside, hash: &[u8]| plus_by_pop3(inside, Hash::Sha256, ("tls-server-end-point", hash), "bob-password");
        assert_eq!(bind(&mut inside, &[0; 32]), "-ERR [AUTH] authorization failed");
        assert_eq!(bind(&mut inside, &end_point), "+OK 0 0", "{version}");
    }
}

#[test]
fn scram_opens_the_mailbox_and_app_passwords_do_so_where_they_may() {
    let instance = instance(&[]);
    instance.with_input(&["user", "add", "ann@example.test", "--password-stdin"], "x\n").unwrap();
    let make = |name: &str, service: &str| {
        instance.json(&["user", "app-password", "add", BOB, "--name", name, "--service", service]).unwrap()["password"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (phone, sender) = (make("phone", "pop3"), make("sender", "smtp"));
    for hash in Hash::ALL {
        for password in ["bob-password", &phone] {
            let said = scram_by_pop3(&instance, hash, BOB, password);
            assert!(said.starts_with("+OK") && said.ends_with("+OK 0 0"), "{said}");
        }
        for (user, password) in
            [(BOB, &*sender), (BOB, "wrong"), ("nobody@example.test", "bob-password"), ("ann@example.test", &phone)]
        {
            assert_eq!(scram_by_pop3(&instance, hash, user, password), "-ERR [AUTH] authorization failed", "{user}");
        }
    }
    assert!(Pop3::login(instance.port(110), BOB, &phone).is_ok());
    assert!(Pop3::login(instance.port(110), BOB, &sender).is_err());
    let mut smtp = Smtp::open(instance.port(587)).unwrap();
    smtp.must("EHLO client.example.test", "250").unwrap();
    let plain = |password: &str| format!("AUTH PLAIN {}", wire::base64::encode(format!("\0{BOB}\0{password}").as_bytes()));
    smtp.must(&plain(&phone), "535").unwrap();
    smtp.must(&plain(&sender), "235").unwrap();
    let list = instance.json(&["user", "app-password", "list", BOB]).unwrap();
    assert_eq!((list[0]["name"].as_str(), list[0]["service"].as_str()), (Some("phone"), Some("pop3")));
    assert!(list[0]["used"].as_u64().unwrap() > 0 && list[1]["used"].as_u64().unwrap() > 0, "{list}");
    instance.must(&["user", "app-password", "remove", BOB, "--name", "phone"]).unwrap();
    assert!(Pop3::login(instance.port(110), BOB, &phone).is_err());
}

#[test]
fn guessing_by_pop3_ends_smtp_logins_from_there_too() {
    let instance = instance(&[("authlimits", "failures=3\npause=1\n")]);
    for _ in 0..3 {
        assert!(Pop3::login(instance.port(110), "nobody@example.test", "guess").is_err());
    }
    instance.wait_log("too many failed logins: refused=address seconds=900 remote=127.0.0.1").unwrap();
    assert!(Pop3::login(instance.port(110), BOB, "bob-password").is_err());
    let plain = format!("AUTH PLAIN {}", wire::base64::encode(format!("\0{BOB}\0bob-password").as_bytes()));
    let mut smtp = Smtp::open(instance.port(587)).unwrap();
    smtp.must("EHLO client.example.test", "250").unwrap();
    assert!(smtp.ask(&plain).unwrap().starts_with("535 5.7.8 wrong name or password"));
    // Read again whenever it changes.
    instance.control("authlimits", "failures=3\nexempt=127.0.0.0/8\n").unwrap();
    assert!(Pop3::login(instance.port(110), BOB, "bob-password").is_ok());
    smtp.must(&plain, "235").unwrap();
}
