//! Certificates of clients: ours at others' servers, others' at ours, and a real Postfix on both sides.
#![allow(clippy::unwrap_used)]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use system_tests::s_client::Inside;
use system_tests::{Instance, Peer, facts, tools, wait_for};

const BOB: &str = "bob@example.test";
/// The one with whose certificate it is tried.
const CLIENT: &str = "client.test";

/// An authority with its files in a directory.
struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { dir: dir.to_owned(), issuer };
        std::fs::write(authority.file(&format!("{name}.pem")), authority.pem()).unwrap();
        authority
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// `FILE.pem` and `FILE.key`, for these names.
    fn issue(&self, file: &str, names: &[&str]) -> Certificate {
        self.issue_with(file, names, |_| {})
    }

    fn issue_with(&self, file: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.contains('@') {
                true => SanType::Rfc822Name((*name).try_into().unwrap()),
                false => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        change(&mut params);
        let made = params.signed_by(&key, &self.issuer).unwrap();
        let (pem, secret) = (self.file(&format!("{file}.pem")), self.file(&format!("{file}.key")));
        std::fs::write(&pem, made.pem()).unwrap();
        std::fs::write(&secret, key.serialize_pem()).unwrap();
        Certificate { pem: pem.to_str().unwrap().to_owned(), key: secret.to_str().unwrap().to_owned() }
    }
}

/// The files of a certificate and its key.
struct Certificate {
    pem: String,
    key: String,
}

impl Certificate {
    /// For `openssl s_client`.
    fn args(&self) -> [&str; 4] {
        ["-cert", &self.pem, "-key", &self.key]
    }

    /// By OpenSSL, with colons: of the certificate.
    fn fingerprint(&self) -> String {
        let said = said(Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256", "-in", &self.pem]));
        said.trim().split_once('=').unwrap().1.to_owned()
    }

    /// By OpenSSL: of its public key.
    fn key_fingerprint(&self) -> String {
        let line = format!(
            "openssl x509 -in '{}' -noout -pubkey | openssl pkey -pubin -outform DER | openssl dgst -sha256 -r",
            self.pem
        );
        said(Command::new("sh").args(["-c", &line])).split(' ').next().unwrap().to_owned()
    }
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Exit code and all it said.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// A system that relays for nobody by address, with bob and sue, and where letters to elsewhere.test go.
fn instance(control: &[(&str, &str)]) -> (Instance, Peer) {
    let peer = Peer::willing().unwrap();
    let route = peer.route("elsewhere.test");
    let control: Vec<_> = [("smtproutes", route.as_str())].into_iter().chain(control.iter().copied()).collect();
    let instance = Instance::started(&control).unwrap();
    instance.virtual_domain("example.test", &["bob", "sue"]).unwrap();
    (instance, peer)
}

fn reload(instance: &Instance) {
    let known = instance.log().matches("the new configuration is in use").count();
    facts::signal(instance.pid(), Signal::HUP);
    wait_for("the new configuration", || {
        (instance.log().matches("the new configuration is in use").count() > known).then_some(())
    })
    .unwrap();
}

/// What a client hears that shows these files (or none): the EHLO reply and the answer to a recipient elsewhere, on smtps by `submissions`.
fn tries(instance: &Instance, args: &[&str], login: Option<&str>) -> (String, String) {
    let mut inside = Inside::open(instance, 465, None, args).unwrap();
    assert!(inside.line().unwrap().starts_with("220 "));
    let hello = inside.smtp("EHLO client.test").unwrap();
    if let Some(login) = login {
        let answer = inside.smtp(login).unwrap();
        if !answer.starts_with("235 ") {
            return (hello, answer);
        }
    }
    let mail = inside.smtp(&format!("MAIL FROM:<{BOB}>")).unwrap();
    if !mail.starts_with("250 ") {
        return (hello, mail);
    }
    (hello, inside.smtp("RCPT TO:<x@elsewhere.test>").unwrap())
}

const MAY: &str = "250 2.1.5 ok\r\n";
const MAY_NOT: &str = "530 5.7.0 log in first\r\n";

#[test]
fn a_listed_certificate_may_relay_and_no_other() {
    let scratch = Instance::new().unwrap();
    let ours = Authority::new(scratch.dir(), "ours");
    let theirs = Authority::new(scratch.dir(), "theirs");
    let by_mail = ours.issue("by-mail", &["joe@partner.test"]);
    let by_host = ours.issue("by-host", &["MX.partner.test"]);
    let by_name = ours.issue_with("by-name", &[], |params| params.distinguished_name.push(DnType::CommonName, "Joe Doe"));
    let by_print = theirs.issue("by-print", &["x.test"]);
    let by_key = theirs.issue("by-key", &["x.test"]);
    let dates = |from, to| {
        move |params: &mut CertificateParams| {
            (params.not_before, params.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
        }
    };
    let old = ours.issue_with("old", &["joe@partner.test"], dates(2001, 2002));
    let new = ours.issue_with("new", &["joe@partner.test"], dates(4000, 4001));
    let old_print = theirs.issue_with("old-print", &["x.test"], dates(2001, 2002));
    let stranger = theirs.issue("stranger", &["joe@partner.test", "mx.partner.test"]);
    let unknown = ours.issue("unknown", &["ann@partner.test"]);
    let list = format!(
        "# who may relay\nJoe@Partner.test\nmx.partner.test\n\"Joe Doe\"\n{}\n{}\n{}\n",
        by_print.fingerprint(),
        by_key.key_fingerprint(),
        old_print.fingerprint()
    );
    let (instance, peer) = instance(&[("tlsclients", &list), ("clientca.pem", &ours.pem())]);
    for listed in [&by_mail, &by_host, &by_name, &by_print, &by_key] {
        for version in ["-tls1_3", "-tls1_2"] {
            let (hello, answer) = tries(&instance, &[&listed.args()[..], &[version]].concat(), None);
            assert_eq!(answer, MAY, "{} {version}", listed.pem);
            assert!(!hello.contains("EXTERNAL"), "{hello}");
        }
    }
    // The same session as anybody's: nobody is cut off for his certificate.
    for other in [&old, &new, &old_print, &stranger, &unknown] {
        for version in ["-tls1_3", "-tls1_2"] {
            assert_eq!(tries(&instance, &[&other.args()[..], &[version]].concat(), None).1, MAY_NOT, "{}", other.pem);
        }
    }
    assert_eq!(tries(&instance, &[], None).1, MAY_NOT);
    instance.wait_log(&format!("TLS: client certificate {}", by_key.key_fingerprint())).unwrap();
    instance.wait_log("TLS: the client certificate is listed, but it has expired, or is not valid yet").unwrap();

    // A whole letter by another client, on the public port, which says in the letter for what it was let through.
    let name = "a_listed_certificate_may_relay_and_no_other";
    if let Some(swaks) = tools::get(name, "swaks", "usr/bin/swaks").unwrap() {
        let send = |shown: &Certificate| {
            let mut command = swaks.command();
            command.args(["--server", "127.0.0.1", "--port", &instance.port(25).to_string(), "-tls"]);
            command.args(["--tls-cert", &shown.pem, "--tls-key", &shown.key]);
            run(command.args(["--from", "a@partner.test", "--to", "x@elsewhere.test", "--body", "text"]))
        };
        let (code, text) = send(&by_mail);
        assert_eq!(code, Some(0), "{text}");
        let letter = wait_for("the letter", || peer.letters().pop()).unwrap().text();
        assert!(letter.contains(" (client certificate joe@partner.test); "), "{letter}");
        let (code, text) = send(&stranger);
        assert!(code != Some(0) && text.contains("553 5.7.1"), "{text}");
    }

    // Who is taken out of the list has lost it, also with a session that he could resume.
    instance.control("tlsclients", "mx.partner.test\n").unwrap();
    reload(&instance);
    assert_eq!(tries(&instance, &by_mail.args(), None).1, MAY_NOT);
    assert_eq!(tries(&instance, &by_host.args(), None).1, MAY);
    // A list with a mistake is not used, and the old one goes on.
    instance.control("tlsclients", "mx.partner.test joe\n").unwrap();
    facts::signal(instance.pid(), Signal::HUP);
    instance.wait_log("control/tlsclients: line 1: `mx.partner.test joe` names `joe`, which is no account").unwrap();
    assert_eq!(tries(&instance, &by_host.args(), None).1, MAY);
    let check = instance.qmail(&["check"]).output().unwrap();
    assert!(String::from_utf8_lossy(&check.stdout).contains("tlsclients"), "{check:?}");
}

#[test]
fn without_the_file_nobody_is_asked() {
    let (instance, _peer) = instance(&[]);
    let authority = Authority::new(instance.dir(), "ours");
    let shown = authority.issue("shown", &[CLIENT]);
    let asked = |instance: &Instance, port, starttls| {
        let mut command = system_tests::s_client::s_client(instance, port, starttls);
        let (_, text) = run(command.args(["-tls1_2"]).args(shown.args()));
        text.contains("Client Certificate Types") || text.contains("Requested Signature Algorithms")
    };
    let listeners = [(25, Some("smtp")), (465, None), (587, Some("smtp")), (110, Some("pop3")), (995, None)];
    for (port, starttls) in listeners {
        assert!(!asked(&instance, port, starttls), "{port}");
    }
    instance.control("tlsclients", "client.test\n").unwrap();
    instance.control("clientca.pem", &authority.pem()).unwrap();
    reload(&instance);
    for (port, starttls) in listeners {
        assert!(asked(&instance, port, starttls), "{port}");
    }
}

/// AUTH EXTERNAL with an initial response.
fn external(identity: &str) -> String {
    match identity {
        "" => "AUTH EXTERNAL =".to_owned(),
        identity => format!("AUTH EXTERNAL {}", wire::base64::encode(identity.as_bytes())),
    }
}

#[test]
fn external_logs_in_whose_certificate_it_is() {
    let scratch = Instance::new().unwrap();
    let authority = Authority::new(scratch.dir(), "ours");
    let (bob, sue) = (authority.issue("bob", &["bob@phone.test"]), authority.issue("sue", &["sue.test"]));
    let (relay, none) = (authority.issue("relay", &["relay.test"]), authority.issue("none", &["none.test"]));
    let old = authority.issue_with("old", &["bob@phone.test"], |params| {
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
    });
    let list =
        format!("bob@phone.test {BOB}\n{} sue@example.test\nrelay.test\nnone.test nobody@example.test\n", sue.fingerprint());
    let (instance, _peer) = instance(&[
        ("tlsclients", &list),
        ("clientca.pem", &authority.pem()),
        ("authcleartext", "192.0.2.0/24\n"),
        ("authlimits", "failures=0\naccount=0\npause=0\n"),
    ]);
    let refused = "535 5.7.8 wrong name or password\r\n";
    for (shown, login, expected) in [
        (&bob, external(""), MAY),
        (&bob, external(BOB), MAY),
        (&bob, external("sue@example.test"), refused),
        (&bob, external("bob"), refused),
        // Bound as every login is: the letters are bob's.
        (&sue, external(""), "550 5.7.1"),
        (&none, external(""), refused),
        (&relay, external(""), "504 5.5.4"),
        (&old, external(""), "504 5.5.4"),
    ] {
        let (hello, answer) = tries(&instance, &shown.args(), Some(&login));
        assert!(answer.starts_with(expected), "{} {login}: {answer}", shown.pem);
        assert_eq!(hello.contains("250-AUTH EXTERNAL SCRAM"), !expected.starts_with("504"), "{hello}");
    }
    // An account's certificate is no right to relay by itself.
    assert_eq!(tries(&instance, &bob.args(), None).1, MAY_NOT);
    // Where the server asks, and where it is not TLS or nobody shows anything.
    let mut inside = Inside::open(&instance, 465, None, &bob.args()).unwrap();
    inside.line().unwrap();
    inside.smtp("EHLO x.test").unwrap();
    assert_eq!(inside.smtp("AUTH EXTERNAL").unwrap(), "334 \r\n");
    assert_eq!(inside.smtp(&wire::base64::encode(BOB.as_bytes())).unwrap(), "235 2.7.0 welcome\r\n");
    assert_eq!(tries(&instance, &[], Some(&external(""))).1, "504 5.5.4 that mechanism is not known here\r\n");

    // POP3, at once over TLS and behind STLS.
    let pop3 = |shown: &Certificate, commands: &str| {
        let mut inside = Inside::open(&instance, 995, None, &shown.args()).unwrap();
        inside.say(commands).unwrap();
        inside.rest().unwrap()
    };
    let said = pop3(&bob, "CAPA\r\nAUTH EXTERNAL =\r\nSTAT\r\nQUIT\r\n");
    assert!(said.contains("\r\nSASL EXTERNAL SCRAM") && said.contains("\r\n+OK 0 0\r\n"), "{said}");
    let said = pop3(&bob, "AUTH EXTERNAL\r\n=\r\n\r\nQUIT\r\n");
    assert!(said.contains("\r\n+ \r\n"), "{said}");
    let said = pop3(&bob, &format!("AUTH EXTERNAL\r\n{}\r\nSTAT\r\nQUIT\r\n", wire::base64::encode(BOB.as_bytes())));
    assert!(said.contains("\r\n+OK 0 0\r\n"), "{said}");
    let said = pop3(&bob, &format!("{}\r\nSTAT\r\nQUIT\r\n", external("sue@example.test")));
    assert!(said.contains("-ERR [AUTH]") && !said.contains("+OK 0 0"), "{said}");
    for (shown, said) in [&relay, &old].map(|shown| (shown, pop3(shown, "CAPA\r\nAUTH EXTERNAL =\r\nSTAT\r\nQUIT\r\n"))) {
        assert!(!said.contains("EXTERNAL") && !said.contains("+OK 0 0"), "{} {said}", shown.pem);
    }
    if let Some(curl) = tools::get("external_logs_in_whose_certificate_it_is", "curl", "usr/bin/curl").unwrap() {
        for (scheme, port, more) in [("pop3s", 995, &[][..]), ("pop3", 110, &["--ssl-reqd"]), ("smtps", 465, &[])] {
            let mut command = curl.command();
            command.args(["--silent", "--show-error", "--insecure", "--max-time", "60", "--cert", &bob.pem, "--key", &bob.key]);
            command.args(["--user", &format!("{BOB}:"), "--login-options", "AUTH=EXTERNAL"]).args(more);
            command.args(if scheme == "smtps" { &["--mail-rcpt", "bob"][..] } else { &[] });
            let (code, text) = run(command.arg(format!("{scheme}://127.0.0.1:{}/", instance.port(port))));
            assert_eq!(code, Some(0), "{scheme}: {text}");
        }
    }
    instance.wait_log(&format!("login: service=pop3 remote=127.0.0.1 user={BOB}")).unwrap();

    // Suspended: neither way in.
    instance.must(&["user", "suspend", BOB]).unwrap();
    assert_eq!(tries(&instance, &bob.args(), Some(&external(""))).1, refused);
    assert!(pop3(&bob, "AUTH EXTERNAL =\r\nQUIT\r\n").contains("-ERR [AUTH]"));
    instance.must(&["user", "resume", BOB]).unwrap();
    assert_eq!(tries(&instance, &bob.args(), Some(&external(""))).1, MAY);
    // Out of the list: qmail-auth says no at once, before the workers have read it again.
    instance.control("tlsclients", "relay.test\n").unwrap();
    assert_eq!(tries(&instance, &bob.args(), Some(&external(""))).1, refused);
}
