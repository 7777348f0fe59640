//! TLS on every listener: OpenSSL, swaks and curl as clients, what must not get through in the clear, and a key process that hangs or dies.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use system_tests::instance::ME;
use system_tests::line::{Line, Smtp};
use system_tests::s_client::{Inside, s_client};
use system_tests::{Instance, Peer, facts, tools, wait_for};

const BOB: &str = "bob@example.test";
/// An address of this host from which no password may be sent in the clear.
const ELSEWHERE: &str = "127.0.0.2";
/// The ports with the protocol that leads to TLS on them; none where TLS comes first.
const LISTENERS: [(u16, Option<&str>); 5] =
    [(25, Some("smtp")), (587, Some("smtp")), (465, None), (110, Some("pop3")), (995, None)];

/// A system that relays for nobody by address, and where letters to elsewhere.test go.
fn instance() -> (Instance, Peer) {
    let peer = Peer::willing().unwrap();
    let route = peer.route("elsewhere.test");
    let instance = Instance::started(&[("smtproutes", &route), ("authcleartext", "127.0.0.1/32\n")]).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    (instance, peer)
}

/// Exit code and all it said.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn keys(instance: &Instance) -> u32 {
    wait_for("qmail-keys", || facts::descendants(instance.pid()).into_iter().find(|process| process.name == "qmail-keys"))
        .unwrap()
        .pid
}

#[test]
fn openssl_finds_tls_1_2_and_1_3_and_the_certificate_of_this_host() {
    let (instance, _peer) = instance();
    for (port, starttls) in LISTENERS {
        for (option, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
            let (code, said) = run(s_client(&instance, port, starttls).args(["-brief", option]));
            assert_eq!(code, Some(0), "{port} {said}");
            assert!(said.contains(&format!("Protocol version: {version}\n")), "{port} {said}");
            assert!(said.contains(&format!("CN = {ME}\n")), "{port} {said}");
        }
        for option in ["-tls1_1", "-tls1"] {
            let mut command = s_client(&instance, port, starttls);
            let (code, said) = run(command.args(["-brief", option, "-cipher", "ALL:@SECLEVEL=0"]));
            assert_eq!(code, Some(1), "{port} {said}");
            assert!(!said.contains("CONNECTION ESTABLISHED"), "{port} {said}");
        }
    }
}

#[test]
fn swaks_logs_in_over_tls_where_it_may_not_in_the_clear() {
    let Some(swaks) = tools::get("swaks_logs_in_over_tls", "swaks", "usr/bin/swaks").unwrap() else { return };
    let (instance, peer) = instance();
    let send = |port: u16, tls: Option<&str>| {
        let mut command = swaks.command();
        command.args(["--server", "127.0.0.1", "--port", &instance.port(port).to_string(), "--local-interface", ELSEWHERE]);
        command.args(["--from", BOB, "--to", "x@elsewhere.test", "--header", "Subject: by swaks", "--body", "text"]);
        command.args(["--auth", "PLAIN", "--auth-user", BOB, "--auth-password", "bob-password"]);
        run(command.args(tls))
    };
    for (sent, (port, tls)) in [(25, "-tls"), (587, "-tls"), (465, "--tls-on-connect")].into_iter().enumerate() {
        let (code, said) = send(port, Some(tls));
        assert_eq!(code, Some(0), "{said}");
        wait_for("the letter", || (peer.letters().len() == sent + 1).then_some(())).unwrap();
        let letter = peer.letters().pop().unwrap().text();
        assert!(letter.contains(" with ESMTPSA tls TLS_"), "{letter}");
    }
    for port in [25, 587] {
        let (code, said) = send(port, None);
        // swaks(1): 28 is an error at AUTH.
        assert!(code == Some(28) && said.contains("250-STARTTLS") && !said.contains("AUTH PLAIN"), "{said}");
    }
    assert!(!instance.log().contains("bob-password"));
    instance.wait_log(&format!(" tls=TLSv1.3 cipher=TLS_AES_256_GCM_SHA384 user={BOB} helo=")).unwrap();
}

#[test]
fn curl_sends_and_reads_over_tls_alone() {
    let Some(curl) = tools::get("curl_sends_and_reads_over_tls_alone", "curl", "usr/bin/curl").unwrap() else { return };
    let (instance, _peer) = instance();
    let file = instance.dir().join("letter");
    // Large enough for many records in both directions.
    let text = format!("{}\r\n", "0123456789".repeat(7)).repeat(40_000);
    std::fs::write(&file, format!("Subject: by curl\r\n\r\n{text}")).unwrap();
    let certificate = instance.root.join(format!("etc/qmail/tls/{ME}/cert.pem"));
    let call = |scheme: &str, port: u16, path: &str, more: &[&str]| {
        let mut command = curl.command();
        // The certificate is its own authority, and the name in it has to fit.
        command.args(["--silent", "--show-error", "--max-time", "60", "--interface", ELSEWHERE, "--cacert"]).arg(&certificate);
        command.args(["--connect-to", &format!("{ME}:{0}:127.0.0.1:{0}", instance.port(port))]);
        command.args([
            "--user",
            &format!("{BOB}:bob-password"),
            "--url",
            &format!("{scheme}://{ME}:{}/{path}", instance.port(port)),
        ]);
        run(command.args(more))
    };
    let letter = file.to_str().unwrap();
    let upload = ["--mail-from", BOB, "--mail-rcpt", BOB, "--upload-file", letter];
    for (sent, (scheme, port, more)) in
        [("smtps", 465, &[][..]), ("smtp", 587, &["--ssl-reqd"]), ("smtp", 25, &["--ssl-reqd"])].into_iter().enumerate()
    {
        let (code, said) = call(scheme, port, "client.example.test", &[&upload[..], more].concat());
        assert_eq!(code, Some(0), "{said}");
        instance.wait_mail(BOB, sent + 1).unwrap();
    }
    for (scheme, port, more) in [("pop3s", 995, &[][..]), ("pop3", 110, &["--ssl-reqd"])] {
        let (code, said) = call(scheme, port, "1", more);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.ends_with(&text), "{} bytes of {scheme}", said.len());
    }
    // 67: no login without TLS.
    let (code, said) = call("pop3", 110, "1", &[]);
    assert_eq!(code, Some(67), "{said}");
}

#[test]
fn what_is_sent_in_the_clear_behind_starttls_is_never_read_as_a_command() {
    let (instance, _peer) = instance();
    for port in [25, 587] {
        for behind in ["NOOP\r\n", "EHLO evil.test\r\nMAIL FROM:<evil@evil.test>\r\n", "R", "\0"] {
            let mut smtp = Smtp::open(instance.port(port)).unwrap();
            smtp.must("EHLO c.test", "250").unwrap();
            smtp.0.raw(format!("STARTTLS\r\n{behind}").as_bytes()).unwrap();
            assert!(smtp.reply().unwrap().starts_with("421 4.7.0 "), "{behind:?}");
            assert!(smtp.0.is_closed().unwrap());
        }
    }
    for behind in ["USER bob\r\n", "C", "\0"] {
        let mut pop3 = Line::open(instance.port(110)).unwrap();
        pop3.line().unwrap();
        pop3.raw(format!("STLS\r\n{behind}").as_bytes()).unwrap();
        assert!(pop3.line().unwrap().starts_with(b"-ERR "), "{behind:?}");
        assert!(pop3.is_closed().unwrap());
    }
    // Behind the answer it is no handshake, and no command either.
    let mut smtp = Smtp::open(instance.port(25)).unwrap();
    smtp.must("EHLO c.test", "250").unwrap();
    smtp.must("STARTTLS", "220").unwrap();
    smtp.0.raw(b"MAIL FROM:<evil@evil.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n").unwrap();
    // An alert may come, no reply does.
    let mut said = Vec::new();
    while let Ok(line) = smtp.0.line() {
        said.extend(line);
    }
    assert!(!said.starts_with(b"250") && !said.windows(4).any(|part| part == b"250 "), "{}", said.escape_ascii());
    instance.wait_log("tls remote=127.0.0.1 failed=").unwrap();
}

#[test]
fn what_was_said_before_starttls_is_forgotten() {
    let (instance, _peer) = instance();
    // s_client itself says EHLO before STARTTLS.
    let mut inside = Inside::open(&instance, 587, Some("smtp"), &[]).unwrap();
    inside.say("AUTH PLAIN AGEAYg==\r\n").unwrap();
    let mut first = inside.line().unwrap();
    // It may show the server's last line before TLS.
    if first.starts_with("250 ") {
        first = inside.line().unwrap();
    }
    assert!(first.starts_with("503 5.5.1 EHLO first"), "{first}");
    inside.say("EHLO inside.test\r\nSTARTTLS\r\nQUIT\r\n").unwrap();
    let rest = inside.rest().unwrap();
    assert!(rest.contains("250-AUTH ") && !rest.contains("250-STARTTLS") && rest.contains("\r\n503 5.5.1 "), "{rest}");
    assert!(rest.ends_with(&format!("221 2.0.0 {ME}\r\n")), "{rest}");
}

#[test]
fn a_key_process_that_hangs_holds_up_nobody_else() {
    let (instance, _peer) = instance();
    let pid = keys(&instance);
    let mut before = Inside::open(&instance, 465, None, &[]).unwrap();
    assert!(before.line().unwrap().starts_with("220 "));
    facts::signal(pid, Signal::STOP);
    let hung: Vec<Child> = (0..20)
        .flat_map(|_| LISTENERS)
        .map(|(port, starttls)| {
            let mut command = s_client(&instance, port, starttls);
            command.arg("-quiet").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    // Sessions in the clear and those that have TLS already go on.
    instance.smtp().unwrap().send("a@elsewhere.test", &[BOB], "Subject: in the clear\n\ntext\n").unwrap();
    before.say("EHLO x.test\r\nQUIT\r\n").unwrap();
    assert!(before.rest().unwrap().contains("\r\n221 2.0.0 "));
    instance.wait_mail(BOB, 1).unwrap();
    let started = Instant::now();
    for mut child in hung {
        child.wait().unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(60), "handshakes without an answer end");
    facts::signal(pid, Signal::CONT);
    wait_for("TLS to work again", || {
        run(s_client(&instance, 465, None).arg("-brief")).1.contains("CONNECTION ESTABLISHED").then_some(())
    })
    .unwrap();
}

#[test]
fn a_key_process_that_dies_comes_back() {
    let (instance, _peer) = instance();
    for _ in 0..3 {
        let pid = keys(&instance);
        facts::signal(pid, Signal::KILL);
        wait_for("another qmail-keys", || (keys(&instance) != pid).then_some(())).unwrap();
        wait_for("TLS to work again", || {
            run(s_client(&instance, 25, Some("smtp")).arg("-brief")).1.contains("CONNECTION ESTABLISHED").then_some(())
        })
        .unwrap();
    }
}

/// The certificate that a listener shows for a host, in base64; nothing if there is no handshake.
fn shown(instance: &Instance, port: u16, host: &str) -> Option<String> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &format!("127.0.0.1:{}", instance.port(port)), "-servername", host]);
    let said = run(&mut command).1;
    let inner = said.split_once("-----BEGIN CERTIFICATE-----")?.1.split_once("-----END CERTIFICATE-----")?.0;
    Some(inner.split_whitespace().collect())
}

/// The certificate in a file, in base64.
fn stored(instance: &Instance, name: &str) -> String {
    let pem = std::fs::read_to_string(instance.root.join("etc/qmail/tls").join(name).join("cert.pem")).unwrap();
    pem.lines().filter(|line| !line.starts_with("-----")).collect()
}

#[test]
fn each_host_gets_its_certificate_and_new_ones_are_used_while_old_sessions_go_on() {
    let (instance, _peer) = instance();
    let mut before = Inside::open(&instance, 465, None, &[]).unwrap();
    assert!(before.line().unwrap().starts_with("220 "));
    let other = "pop.example.test";
    instance.must(&["cert", "self-signed", other]).unwrap();
    let is_shown = |port: u16, host: &str, name: &str| {
        wait_for(&format!("the certificate {name} for {host}"), || {
            shown(&instance, port, host).filter(|certificate| *certificate == stored(&instance, name))
        })
        .unwrap();
    };
    for port in [465, 995] {
        is_shown(port, other, other);
        is_shown(port, ME, ME);
        is_shown(port, "else.test", ME);
    }
    // Another key and another certificate under the same name.
    let old = stored(&instance, ME);
    std::fs::remove_dir_all(instance.root.join("etc/qmail/tls").join(ME)).unwrap();
    instance.must(&["cert", "self-signed", ME]).unwrap();
    assert_ne!(stored(&instance, ME), old);
    for port in [465, 995] {
        is_shown(port, ME, ME);
        is_shown(port, other, other);
    }
    before.say("EHLO x.test\r\nQUIT\r\n").unwrap();
    assert!(before.rest().unwrap().contains("\r\n221 2.0.0 "));
    // Nobody was started anew for it.
    assert!(!instance.log().contains("is started again"), "{}", instance.log());
}

#[test]
fn no_process_but_qmail_keys_holds_a_private_key() {
    if !system_tests::is_root() {
        return system_tests::skip("no_process_but_qmail_keys_holds_a_private_key", "needs root to look into processes");
    }
    let (instance, _peer) = instance();
    // Sessions under way, and what was done for those that are over.
    for (port, starttls) in LISTENERS {
        assert_eq!(run(s_client(&instance, port, starttls).arg("-brief")).0, Some(0));
    }
    let mut smtp = Inside::open(&instance, 465, None, &[]).unwrap();
    let mut pop3 = Inside::open(&instance, 995, None, &[]).unwrap();
    assert!(smtp.line().unwrap().starts_with("220 ") && pop3.line().unwrap().starts_with("+OK"));
    instance.smtp().unwrap().send("a@example.test", &[BOB], "Subject: x\n\ntext\n").unwrap();
    instance.wait_mail(BOB, 1).unwrap();
    let secrets = facts::secrets(&instance.root.join(format!("etc/qmail/tls/{ME}/key.pem"))).unwrap();
    let tls = instance.root.join("etc/qmail/tls");
    let mut looked_at = std::collections::BTreeSet::new();
    for process in facts::descendants(instance.pid()) {
        let is_keys = process.name == "qmail-keys";
        let (numbers, texts) = secrets.split_at(2);
        assert_eq!(facts::holds(process.pid, numbers).unwrap(), is_keys, "{process:?}");
        assert!(!facts::holds(process.pid, texts).unwrap(), "what was read is wiped: {process:?}");
        let open = facts::descriptors(process.pid);
        assert!(!open.is_empty() && !open.iter().any(|path| path.starts_with(&tls)), "{process:?} {open:?}");
        looked_at.insert(process.name);
    }
    for name in ["qmail-keys", "qmail-smtpd", "qmail-popup", "qmail-remote", "qmail-auth", "qmail-send", "qmail-lspawn"] {
        assert!(looked_at.contains(name), "{name}: {looked_at:?}");
    }
}
