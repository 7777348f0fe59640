//! Certificates of clients: ours at others' servers, others' at ours, and a real Postfix on both sides.
#![allow(clippy::unwrap_used)]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustix::process::Signal;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use system_tests::dns::{self, Record};
use system_tests::instance::{ME, feed};
use system_tests::postfix::Postfix;
use system_tests::s_client::{Inside, s_client};
use system_tests::{Instance, Peer, facts, is_root, skip, tools, wait_for};

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
        self.make(file, names, KeyPair::generate().unwrap(), change)
    }

    fn issue_for(&self, file: &str, names: &[&str], key: KeyPair) -> Certificate {
        self.make(file, names, key, |_| {})
    }

    fn make(&self, file: &str, names: &[&str], key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Certificate {
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

/// Starts a system that relays for nobody by address, with bob and sue; letters to elsewhere.test go to the peer.
fn start(instance: &mut Instance, control: &[(&str, &str)]) -> Peer {
    let peer = Peer::willing().unwrap();
    instance.control("smtproutes", &peer.route("elsewhere.test")).unwrap();
    for (name, text) in control {
        instance.control(name, text).unwrap();
    }
    instance.start().unwrap();
    instance.virtual_domain("example.test", &["bob", "sue"]).unwrap();
    peer
}

/// Puts a certificate and its key below etc/qmail/tls, under these names.
fn put(instance: &Instance, name: &str, certificate: &Certificate, files: [&str; 2]) {
    let dir = instance.root.join("etc/qmail/tls").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let ids = std::fs::read_to_string(instance.root.join("etc/qmail/ids")).unwrap_or_default();
    let uid = ids.lines().find_map(|line| line.strip_prefix("qmailk ")?.split(' ').next()?.parse().ok());
    for (from, to, mode) in [(&certificate.key, files[1], 0o600), (&certificate.pem, files[0], 0o644)] {
        let to = dir.join(to);
        std::fs::copy(from, &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(mode)).unwrap();
        if let Some(uid) = uid.filter(|_| is_root()) {
            chown(&to, Some(uid), None).unwrap();
        }
    }
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
    let mut instance = Instance::new().unwrap();
    let ours = Authority::new(instance.dir(), "ours");
    let theirs = Authority::new(instance.dir(), "theirs");
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
    let peer = start(&mut instance, &[("tlsclients", &list), ("clientca.pem", &ours.pem())]);
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
    instance.wait_log(&format!("tls remote=127.0.0.1 certificate={}", by_key.key_fingerprint())).unwrap();
    instance.wait_log("certificate=listed unused=\"it has expired, or is not valid yet\"").unwrap();

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
    let mut instance = Instance::new().unwrap();
    start(&mut instance, &[]);
    let authority = Authority::new(instance.dir(), "ours");
    let shown = authority.issue("shown", &[CLIENT]);
    let asked = |instance: &Instance, port, starttls| {
        let mut command = s_client(instance, port, starttls);
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
    let mut instance = Instance::new().unwrap();
    let authority = Authority::new(instance.dir(), "ours");
    let (bob, sue) = (authority.issue("bob", &["bob@phone.test"]), authority.issue("sue", &["sue.test"]));
    let (relay, none) = (authority.issue("relay", &["relay.test"]), authority.issue("none", &["none.test"]));
    let old = authority.issue_with("old", &["bob@phone.test"], |params| {
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
    });
    let list =
        format!("bob@phone.test {BOB}\n{} sue@example.test\nrelay.test\nnone.test nobody@example.test\n", sue.fingerprint());
    let control = [
        ("tlsclients", list.as_str()),
        ("clientca.pem", &authority.pem()),
        ("authcleartext", "192.0.2.0/24\n"),
        ("authlimits", "failures=0\naccount=0\npause=0\n"),
    ];
    start(&mut instance, &control);
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

#[test]
fn each_client_gets_the_certificate_that_it_can_check() {
    let mut instance = Instance::new().unwrap();
    let authority = Authority::new(instance.dir(), "ours");
    let ecdsa = authority.issue("ecdsa", &[ME]);
    let rsa =
        authority.issue_for("rsa", &[ME], KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap());
    let old = authority.issue_with("old", &[ME], |params| {
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
    });
    let files = ["cert.pem", "key.pem"];
    put(&instance, "a-old", &old, files);
    put(&instance, "b-rsa", &rsa, files);
    put(&instance, "c-ecdsa", &ecdsa, files);
    start(&mut instance, &[]);
    // The self-signed one that a new system has is there, too, and an expired one.
    assert!(instance.root.join("etc/qmail/tls").join(ME).join("cert.pem").exists());
    let ca = authority.file("ours.pem").display().to_string();
    let kind = |port, starttls, server_name: &str, args: &[&str]| {
        let mut command = s_client(&instance, port, starttls);
        let (code, said) = run(command.args(["-servername", server_name, "-CAfile", &ca, "-brief"]).args(args));
        assert!(code == Some(0) && said.contains("\nVerification: OK\n"), "{args:?}: {said}");
        said.lines().find_map(|line| line.strip_prefix("Signature type: ").map(str::to_owned)).unwrap()
    };
    for (port, starttls) in [(25, Some("smtp")), (465, None), (995, None)] {
        // By SNI, and for those who name nobody we know.
        for name in [ME, "other.test"] {
            for (args, expected) in [
                (&[][..], "ECDSA"),
                (&["-sigalgs", "RSA-PSS+SHA256"], "RSA-PSS"),
                (&["-sigalgs", "ECDSA+SHA256"], "ECDSA"),
                (&["-sigalgs", "RSA-PSS+SHA256:ECDSA+SHA256"], "RSA-PSS"),
                (&["-tls1_2"], "ECDSA"),
                (&["-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"], "RSA"),
                (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"], "ECDSA"),
            ] {
                let found = kind(port, starttls, name, args);
                assert!(found.starts_with(expected), "{port} {name} {args:?}: {found}");
            }
        }
    }
}

/// Between two attempts: longer than qmail-remote keeps a connection that is idle, which was opened on the former terms.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(4);
const LETTER: &str = "From: bob@example.test\nSubject: by certificate\n\nhello\n";

/// From this host, which needs no right to relay for it.
fn inject(instance: &Instance, to: &str) {
    let mut inject = Command::new(instance.program("qmail-inject"));
    inject.env("QMAIL_ROOT", &instance.root).args(["-f", BOB, "-a", to]);
    let output = feed(&mut inject, LETTER.as_bytes()).unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_real_postfix_and_we_know_each_other_by_certificates() {
    let name = "a_real_postfix_and_we_know_each_other_by_certificates";
    if !is_root() {
        return skip(name, "Postfix starts as root only");
    }
    let Some(tool) = tools::get(name, "postfix", "usr/lib/postfix/sbin/master").unwrap() else { return };
    for version in ["TLSv1.3", "TLSv1.2"] {
        postfix_both_ways(&tool, version);
    }
}

/// `version`: of the connections to Postfix.
fn postfix_both_ways(tool: &tools::Tool, version: &str) {
    let mut instance = Instance::new().unwrap();
    let dir = instance.dir().to_owned();
    let authority = Authority::new(&dir, "ours");
    let ca = authority.file("ours.pem").display().to_string();
    // Whom Postfix believes on the word of nobody but its list.
    let unknown = Authority::new(&dir, "unknown");
    let (server, client) = (authority.issue("server", &[ME]), unknown.issue("client", &["we.test"]));
    let theirs = authority.issue("theirs", &["mx.postfix.test", "plain.postfix.test"]);
    let their_client = authority.issue("their-client", &["client.postfix.test"]);
    put(&instance, "by-authority", &server, ["cert.pem", "key.pem"]);
    put(&instance, "relay", &client, ["clientcert.pem", "clientkey.pem"]);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let local = Record::A([127, 0, 0, 1]);
    let resolver = dns::start((Ipv4Addr::LOCALHOST, 0), vec![("mx.postfix.test", local), ("plain.postfix.test", local)]).unwrap();
    let peer = start(
        &mut instance,
        &[
            ("resolvers", &format!("{resolver}\n")),
            ("tlscafile", &format!("{ca}\n")),
            ("tlspolicy", "mx.postfix.test:verify clientcert=relay\nplain.postfix.test:verify\n"),
            ("tlsclients", "client.postfix.test\n"),
            ("clientca.pem", &authority.pem()),
        ],
    );
    let routes =
        format!("relay.test:mx.postfix.test:{port}\nplain.test:plain.postfix.test:{port}\n{}", peer.route("elsewhere.test"));
    instance.control("smtproutes", &routes).unwrap();
    let main = format!(
        "smtpd_tls_security_level = encrypt\nsmtpd_tls_mandatory_protocols = {version}\nsmtpd_tls_loglevel = 1\n\
         smtpd_tls_cert_file = {}\nsmtpd_tls_key_file = {}\nsmtpd_tls_CAfile = {ca}\nsmtpd_tls_ask_ccert = yes\n\
         smtpd_tls_fingerprint_digest = sha256\nrelay_clientcerts = inline:{{ {{ {} = ours }} }}\nmynetworks =\n\
         smtpd_relay_restrictions = permit_tls_clientcerts, reject\nsmtpd_tls_received_header = yes\n\
         smtp_tls_security_level = secure\nsmtp_tls_secure_cert_match = {ME}\nsmtp_tls_CAfile = {ca}\nsmtp_tls_loglevel = 1\n\
         smtp_tls_cert_file = {}\nsmtp_tls_key_file = {}\n\
         virtual_alias_domains = relay.test, plain.test\n\
         virtual_alias_maps = inline:{{ {{ here@relay.test = {BOB} }}, {{ on@relay.test = x@elsewhere.test }} }}\n",
        theirs.pem,
        theirs.key,
        client.fingerprint(),
        their_client.pem,
        their_client.key,
    );
    let postfix = Postfix::start_with(tool, &dir, port, instance.port(25), &main).unwrap();

    // We are let through for our certificate, and so is Postfix for its own: to a mailbox of ours, and through us to elsewhere.
    inject(&instance, "here@relay.test");
    let there = instance.wait_mail(BOB, 1).unwrap_or_else(|e| panic!("{e}\n{}", postfix.log())).remove(0);
    for part in
        [&format!("(using {version} with cipher "), " with ESMTPS tls TLS_", " (client certificate client.postfix.test); "]
    {
        assert!(there.contains(part), "{part} is not in {there}");
    }
    inject(&instance, "on@relay.test");
    let letter = wait_for("the letter", || peer.letters().pop()).unwrap_or_else(|e| panic!("{e}\n{}", postfix.log())).text();
    assert!(letter.contains(" (client certificate client.postfix.test); "), "{letter}");
    let log = instance.wait_log(&format!("/Encrypted_by_{version},_certificate_verified./")).unwrap();
    assert!(log.contains("success: 127.0.0.1_accepted_message."), "{log}");
    assert!(postfix.log().contains("Verified TLS connection established to 127.0.0.1"), "{}", postfix.log());
    // qmail-remote has shown what it cannot sign for.
    let secrets = facts::secrets(Path::new(&client.key)).unwrap();
    let (numbers, texts) = secrets.split_at(2);
    for process in facts::descendants(instance.pid()) {
        assert_eq!(facts::holds(process.pid, numbers).unwrap(), process.name == "qmail-keys", "{process:?}");
        assert!(!facts::holds(process.pid, texts).unwrap(), "{process:?}");
    }

    // Without it we are anybody.
    inject(&instance, "here@plain.test");
    instance.wait_log("failure: 127.0.0.1_does_not_like_recipient./Remote_host_said:_554_5.7.1_").unwrap();
    // One that is not there is nobody's fault but ours: the mail waits.
    let away = instance.root.join("etc/qmail/tls/relay");
    std::fs::rename(&away, instance.root.join("etc/qmail/tls/.relay")).unwrap();
    wait_for("a certificate that is gone", || {
        inject(&instance, "here@relay.test");
        std::thread::sleep(PAUSE);
        instance.log().contains("TLS_failed:_there_is_no_certificate_relay_to_be_shown_here._(#4.7.5)/").then_some(())
    })
    .unwrap();
    std::fs::rename(instance.root.join("etc/qmail/tls/.relay"), &away).unwrap();

    // With a certificate that is not by the authority, Postfix gives us nothing.
    std::fs::remove_dir_all(instance.root.join("etc/qmail/tls/by-authority")).unwrap();
    let refused = "Server certificate not ";
    wait_for("a certificate that Postfix does not like", || {
        inject(&instance, "here@relay.test");
        std::thread::sleep(PAUSE);
        postfix.log().lines().any(|line| line.contains("status=deferred") && line.contains(refused)).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", postfix.log()));
}
