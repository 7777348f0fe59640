//! SASL with the clients of others: each mechanism by those of swaks, curl and GNU SASL that know it, on submission and on POP3.
#![allow(clippy::unwrap_used)]

use sasl::scram::{Hash, client};
use std::process::Command;
use system_tests::line::{Pop3, Smtp};
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
    instance.wait_log("too many failed logins: refused what=address seconds=900 remote=127.0.0.1").unwrap();
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
