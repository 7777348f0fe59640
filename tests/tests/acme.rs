//! Certificates from an authority: a real pebble, the listener `acme`, and what clients of the mail system see of it.
#![allow(clippy::unwrap_used)]

use rustix::process::Signal;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use system_tests::dns::{self, Record};
use system_tests::instance::ME;
use system_tests::pebble::{HOST, Options, Pebble};
use system_tests::slapd::Certificate;
use system_tests::{Instance, facts, wait_for};

const SMTP: &str = "smtp.example.test";
const LOOPBACK: Record = Record::A([127, 0, 0, 1]);
const YEAR_S: u32 = 365 * 86_400;

/// An instance that does not run yet, with a listener for challenges and an authority.
struct Setting {
    instance: Instance,
    pebble: Pebble,
}

fn options(instance: &Instance, dns: SocketAddr) -> Options {
    let challenge_port = instance.port(80);
    Options { challenge_port, dns, bad_nonces: 5, validity_s: YEAR_S, customers: Vec::new() }
}

fn setting(test: &str, acme: &str, change: impl FnOnce(&mut Options)) -> Option<Setting> {
    let instance = Instance::new().unwrap();
    let zone = vec![(HOST, LOOPBACK), (ME, LOOPBACK), (SMTP, LOOPBACK), ("blocked.example.test", LOOPBACK)];
    let dns = dns::start((std::net::Ipv4Addr::LOCALHOST, 0), zone).unwrap();
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let certificate = Certificate { chain: instance.dir().join("ca.pem"), key: instance.dir().join("ca.key") };
    fs::write(&certificate.chain, made.cert.pem()).unwrap();
    fs::write(&certificate.key, made.signing_key.serialize_pem()).unwrap();
    let mut options = options(&instance, dns);
    change(&mut options);
    let pebble = Pebble::start(test, instance.dir(), &certificate, options).unwrap()?;
    instance.control("resolvers", &format!("{dns}\n")).unwrap();
    let listen = instance.root.join("etc/qmail/control/listen");
    let listeners = fs::read_to_string(&listen).unwrap();
    fs::write(&listen, format!("{listeners}acme 127.0.0.1:{}\n", instance.port(80))).unwrap();
    fs::write(instance.root.join("etc/qmail/control/ca.pem"), made.cert.pem()).unwrap();
    let text = format!("directory {}\ncafile ca.pem\ncontact postmaster@example.test\n{acme}", pebble.directory());
    instance.control("acme", &text).unwrap();
    Some(Setting { instance, pebble })
}

impl Setting {
    fn file(&self, name: &str) -> Vec<u8> {
        fs::read(self.instance.root.join("etc/qmail/tls").join(name)).unwrap()
    }

    /// What a client says of the certificate that it is shown for a host, if the authority is the only one it trusts.
    fn verified(&self, host: &str) -> bool {
        let mut command = Command::new("openssl");
        let port = self.instance.port(587);
        command.args(["s_client", "-brief", "-starttls", "smtp", "-connect", &format!("127.0.0.1:{port}"), "-servername", host]);
        command.args(["-verify_hostname", host, "-verify_return_error", "-CAfile"]).arg(self.pebble.root().unwrap());
        let output = command.stdin(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&output.stderr).contains("Verification: OK")
    }

    fn wait_verified(&self, host: &str) {
        let shown = || self.verified(host).then_some(());
        wait_for(&format!("a certificate of the authority for {host}"), shown).unwrap_or_else(|error| {
            panic!("{error}\n{}", self.instance.log());
        });
    }

    /// Exit code, and all it said.
    fn qmail(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.instance.qmail(args).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn check(&self) -> String {
        self.qmail(&["check"]).1
    }

    /// What the listener `acme` says to these bytes, up to its end.
    fn http(&self, well_known: u16, bytes: &str) -> String {
        let mut tcp = TcpStream::connect(("127.0.0.1", self.instance.port(well_known))).unwrap();
        tcp.set_read_timeout(Some(system_tests::PATIENCE)).unwrap();
        // One that is not let in may be cut off while it writes.
        let _ = tcp.write_all(bytes.as_bytes());
        let mut said = Vec::new();
        let _ = tcp.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    }

    fn acme(&self) -> facts::Process {
        wait_for("qmail-acme", || facts::descendants(self.instance.pid()).into_iter().find(|p| p.name == "qmail-acme")).unwrap()
    }
}

/// A session inside TLS that stays open.
struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    fn open(instance: &Instance) -> Self {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{}", instance.port(465))]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut session = Self { child, stdin, stdout };
        assert!(session.line().starts_with("220 "));
        session
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    fn noop(&mut self) {
        self.stdin.write_all(b"NOOP\r\n").unwrap();
        assert!(self.line().starts_with("250 "), "the session goes on");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn by_http_a_certificate_for_two_hosts_replaces_the_first_one_under_open_sessions() {
    let test = "by_http_a_certificate_for_two_hosts_replaces_the_first_one_under_open_sessions";
    // One good nonce in five is called bad.
    let Some(mut setting) = setting(test, "", |options| options.bad_nonces = 20) else { return };
    let (code, said) = setting.qmail(&["cert", "obtain", ME, "--agree-tos"]);
    assert!(code == Some(111) && said.contains("not running"), "{code:?} {said}");
    setting.instance.start().unwrap();
    let mut session = Session::open(&setting.instance);
    let (code, said) = setting.qmail(&["cert", "obtain", ME]);
    assert!(code == Some(100) && said.contains("--agree-tos"), "{code:?} {said}");
    let key = setting.file(&format!("{ME}/key.pem"));
    let had = setting.instance.json(&["cert", "obtain", ME, SMTP, "--agree-tos"]).unwrap();
    assert!(had["ok"] == true && had["obtained"] == true && had["name"] == ME, "{had}");
    for host in [ME, SMTP] {
        setting.wait_verified(host);
    }
    session.noop();
    let list = setting.instance.json(&["cert", "list"]).unwrap();
    assert!(list[0]["source"] == setting.pebble.directory() && list[0]["self_signed"] == false, "{list}");
    // A third of its year before its end, and up to a thirtieth earlier.
    let left_days = (list[0]["renew_s"].as_u64().unwrap() - sys::clock::unix_s()) / 86_400;
    assert!((230..=244).contains(&left_days), "{left_days}");
    assert!(!setting.check().contains("acme"), "{}", setting.check());
    // The same key, in files of its owner alone, and what is wanted is remembered.
    assert_eq!(setting.file(&format!("{ME}/key.pem")), key);
    for secret in [format!("{ME}/key.pem"), ".acme/account.pem".to_owned()] {
        let mode = fs::metadata(setting.instance.root.join("etc/qmail/tls").join(&secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    let acme = fs::read_to_string(setting.instance.root.join("etc/qmail/control/acme")).unwrap();
    assert!(acme.contains("agree yes\n") && acme.ends_with(&format!("certificate {ME} {SMTP}\n")), "{acme}");
    // It is good; a new one comes only if it must.
    let first = setting.file(&format!("{ME}/cert.pem"));
    let had = setting.instance.json(&["cert", "renew"]).unwrap();
    assert!(had[0]["ok"] == true && had[0]["obtained"] == false, "{had}");
    assert_eq!(setting.file(&format!("{ME}/cert.pem")), first);
    let had = setting.instance.json(&["cert", "renew", ME, "--force"]).unwrap();
    assert_eq!(had[0]["obtained"], true, "{had}");
    assert_ne!(setting.file(&format!("{ME}/cert.pem")), first);
    let (code, said) = setting.qmail(&["cert", "renew", "other.example.test"]);
    assert!(code == Some(100) && said.contains("cert obtain"), "{said}");
    // Neither a key nor a file, and who it is.
    let process = setting.acme();
    assert_eq!(["NoNewPrivs", "Seccomp"].map(|field| facts::status(process.pid, field).unwrap()), ["1", "2"]);
    let files = facts::descriptors(process.pid);
    assert!(files.iter().all(|file| !file.starts_with(setting.instance.root.join("etc"))), "{files:?}");
    if system_tests::is_root() {
        for key in [format!("{ME}/key.pem"), ".acme/account.pem".to_owned()] {
            let secrets = facts::secrets(&setting.instance.root.join("etc/qmail/tls").join(&key)).unwrap();
            assert!(!facts::holds(process.pid, &secrets).unwrap(), "{key}");
        }
    }
    // Strangers and liars get nothing, hold up nobody and end nobody.
    let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(("127.0.0.1", setting.instance.port(80))).unwrap()).collect();
    for path in ["/", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/../../x", "/.well-known/acme-challenge/x"] {
        let said = setting.http(80, &format!("GET {path} HTTP/1.1\r\nHost: {ME}\r\n\r\n"));
        assert!(said.starts_with("HTTP/1.1 404 ") && said.ends_with("\r\n\r\n"), "{path}: {said}");
    }
    assert!(!setting.http(80, "EHLO x\r\n\r\n").contains(" 200 "));
    assert!(!setting.http(80, &"x".repeat(100_000)).contains(" 200 "));
    let run = fs::File::open(setting.instance.root.join("run/qmail")).unwrap();
    for junk in [&[0][..], &[1], &[1, 1], &[0xff; 32_768], &[1, 1, 0, 0, 0, 9, 9, 9]] {
        let socket = sys::Seqpacket::connect(run.as_fd(), "admin/acme.sock").unwrap();
        let _ = socket.send(junk);
    }
    assert_eq!(setting.instance.json(&["cert", "renew", "--force"]).unwrap()[0]["obtained"], true);
    assert_eq!(setting.acme().pid, process.pid, "nothing of that ended it");
    drop(silent);
    // It may die like any other.
    facts::signal(process.pid, Signal::KILL);
    wait_for("another qmail-acme", || Some(setting.acme()).filter(|p| p.pid != process.pid)).unwrap();
    session.noop();
    let again = || setting.instance.json(&["cert", "renew", "--force"]).ok().filter(|had| had[0]["obtained"] == true);
    wait_for("one more certificate", again).unwrap();
}

#[test]
fn by_tls_a_certificate_comes_and_strangers_get_nothing_from_the_listener() {
    let test = "by_tls_a_certificate_comes_and_strangers_get_nothing_from_the_listener";
    let Some(mut setting) = setting(test, "challenge tls-alpn-01\nagree yes\n", |_| {}) else { return };
    setting.instance.start().unwrap();
    let (code, said) = setting.qmail(&["cert", "obtain", SMTP]);
    assert!(code == Some(0) && said.contains("tls-alpn-01") && said.contains("a new certificate until"), "{said}");
    setting.wait_verified(SMTP);
    // The host's own is still the one it began with.
    assert!(!setting.verified(ME));
    let mut command = Command::new("openssl");
    let port = setting.instance.port(80);
    command.args(["s_client", "-brief", "-connect", &format!("127.0.0.1:{port}"), "-servername", SMTP, "-alpn", "acme-tls/1"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success(), "no order, no certificate");
}

#[test]
fn what_the_authority_refuses_changes_nothing_and_is_told_and_waited_for() {
    let test = "what_the_authority_refuses_changes_nothing_and_is_told_and_waited_for";
    let Some(mut setting) = setting(test, "agree yes\n", |_| {}) else { return };
    setting.instance.start().unwrap();
    setting.instance.must(&["cert", "obtain", ME]).unwrap();
    setting.wait_verified(ME);
    let good = setting.file(&format!("{ME}/cert.pem"));
    let mut session = Session::open(&setting.instance);
    // One that no name server knows: the challenge fails. One that is not allowed: the order does.
    for (host, why) in [("nowhere.example.test", "nowhere.example.test"), ("blocked.example.test", "rejectedIdentifier")] {
        let (code, said) = setting.qmail(&["cert", "obtain", ME, host]);
        assert!(code == Some(111) && said.contains("no certificate") && said.contains(why), "{host}: {code:?} {said}");
        assert_eq!(setting.file(&format!("{ME}/cert.pem")), good, "{host}");
        let line = setting.instance.wait_log(&format!("alert: {ME}: no certificate: ")).unwrap();
        assert!(line.contains("tried again in ") && line.contains("the former one stays in use"), "{line}");
        let acme = fs::read_to_string(setting.instance.root.join("etc/qmail/control/acme")).unwrap();
        assert!(acme.ends_with(&format!("agree yes\ncertificate {ME}\n")), "what cannot be had is not wanted: {acme}");
    }
    assert!(setting.verified(ME) && !setting.check().contains("could not be renewed"));
    session.noop();
    // One that is to be, whatever comes.
    let acme = fs::read_to_string(setting.instance.root.join("etc/qmail/control/acme")).unwrap();
    let wanted = acme.replace(&format!("certificate {ME}"), &format!("certificate {ME} blocked.example.test"));
    setting.instance.control("acme", &wanted).unwrap();
    let (code, said) = setting.qmail(&["cert", "renew"]);
    assert!(code == Some(111) && said.contains("rejectedIdentifier"), "{code:?} {said}");
    let check = setting.check();
    assert!(check.contains("could not be renewed") && check.contains("attempts: 2") && check.contains("firewall"), "{check}");
    let list = setting.instance.json(&["cert", "list"]).unwrap();
    let next_s = list[0]["renew_s"].as_u64().unwrap();
    assert!(list[0]["problem"].as_str().unwrap().contains("blocked.example.test"), "{list}");
    let wait_s = next_s - sys::clock::unix_s();
    assert!((4700..=9000).contains(&wait_s), "about two hours after the second failure of the same: {wait_s}");
    // Nobody begins at once again, not even who is started anew.
    let tried = |setting: &Setting| String::from_utf8(setting.file(&format!("{ME}/acme"))).unwrap();
    let before = tried(&setting);
    facts::signal(setting.acme().pid, Signal::KILL);
    setting.instance.wait_log("qmail-acme was ended by signal 9").unwrap();
    setting.acme();
    // An authority that is away.
    setting.pebble.kill();
    let (code, said) = setting.qmail(&["cert", "obtain", "smtp.example.test"]);
    assert!(code == Some(111) && said.contains("no connection"), "{code:?} {said}");
    assert_eq!(tried(&setting), before, "the other was not tried meanwhile");
    // It is not served for its host before one that an authority vouches for.
    assert!(setting.instance.must(&["cert", "list"]).unwrap().contains("smtp.example.test"));
    // And back again, with the hosts that can be had.
    setting.pebble.run().unwrap();
    setting.instance.must(&["cert", "obtain", ME, SMTP]).unwrap();
    setting.wait_verified(ME);
    assert!(!setting.check().contains("could not be renewed"), "{}", setting.check());
}

#[test]
fn an_order_that_is_cut_off_counts_as_failed_unless_it_was_broken_off_in_good_order() {
    let test = "an_order_that_is_cut_off_counts_as_failed_unless_it_was_broken_off_in_good_order";
    let Some(mut setting) = setting(test, "agree yes\n", |_| {}) else { return };
    setting.instance.start().unwrap();
    setting.instance.must(&["cert", "obtain", ME]).unwrap();
    let note = |setting: &Setting| String::from_utf8(setting.file(&format!("{ME}/acme"))).unwrap();
    let before = note(&setting);
    // The authority takes the connection and says nothing.
    setting.pebble.freeze(true);
    let begin = |setting: &Setting| {
        let mut command = setting.instance.qmail(&["cert", "renew", "--force"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("an order under way", || note(setting).contains("interrupted").then_some(())).unwrap();
        child
    };
    let told = |child: Child| {
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let child = begin(&setting);
    facts::signal(setting.instance.pid(), Signal::HUP);
    let (code, said) = told(child);
    assert!(code == Some(111) && said.contains("qmail-acme ends"), "{code:?} {said}");
    assert_eq!(note(&setting), before);
    setting.instance.wait_log("the new configuration is in use").unwrap();
    let child = begin(&setting);
    facts::signal(setting.acme().pid, Signal::KILL);
    let (code, said) = told(child);
    assert!(code == Some(111) && said.contains("closed the connection"), "{code:?} {said}");
    setting.pebble.freeze(false);
    setting.acme();
    assert!(note(&setting).contains("failures 1\n"), "{}", note(&setting));
    assert!(setting.check().contains("the attempt was interrupted"), "{}", setting.check());
    setting.instance.must(&["cert", "renew", "--force"]).unwrap();
    assert!(note(&setting).contains("failures 0\n"), "{}", note(&setting));
}

#[test]
fn what_ends_soon_is_renewed_by_itself() {
    let test = "what_ends_soon_is_renewed_by_itself";
    let Some(mut setting) = setting(test, "agree yes\n", |options| options.validity_s = 30) else { return };
    setting.instance.start().unwrap();
    setting.instance.must(&["cert", "obtain", ME]).unwrap();
    let first = setting.file(&format!("{ME}/cert.pem"));
    wait_for("a renewed certificate", || (setting.file(&format!("{ME}/cert.pem")) != first).then_some(())).unwrap();
    let note = String::from_utf8(setting.file(&format!("{ME}/acme"))).unwrap();
    assert!(note.contains(&format!("source {}\n", setting.pebble.directory())), "{note}");
    let logged = || (setting.instance.log().matches(&format!("{ME}: a certificate from ")).count() >= 2).then_some(());
    wait_for("the second line in the log", logged).unwrap();
}

#[test]
fn an_authority_of_customers_knows_them_by_their_key() {
    let test = "an_authority_of_customers_knows_them_by_their_key";
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let customers = |options: &mut Options| options.customers = vec![("kid-1", key)];
    let Some(mut setting) = setting(test, "agree yes\n", customers) else { return };
    setting.instance.start().unwrap();
    let (code, said) = setting.qmail(&["cert", "obtain", ME]);
    assert!(code == Some(111) && said.contains("eabkid"), "{code:?} {said}");
    // With the key, which is qmail-acme's alone; a new configuration counts after SIGHUP.
    let acme = fs::read_to_string(setting.instance.root.join("etc/qmail/control/acme")).unwrap();
    let secret = setting.instance.root.join("etc/qmail/control/acme.eab");
    fs::write(&secret, format!("{key}\n")).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let ids = fs::read_to_string(setting.instance.root.join("etc/qmail/ids")).unwrap_or_default();
    let uid = ids.lines().find_map(|line| line.strip_prefix("qmailc ")?.split(' ').next()?.parse::<u32>().ok());
    setting.instance.control("acme", &format!("{acme}eabkid kid-1\neabkeyfile acme.eab\n")).unwrap();
    // Without root all files are the caller's.
    if let Some(uid) = uid.filter(|_| system_tests::is_root()) {
        assert!(setting.check().contains("acme.eab"), "{}", setting.check());
        std::os::unix::fs::chown(&secret, Some(uid), None).unwrap();
    }
    // And a second listener, behind a proxy.
    let listen = setting.instance.root.join("etc/qmail/control/listen");
    let listeners = fs::read_to_string(&listen).unwrap();
    fs::write(&listen, format!("{listeners}acme 127.0.0.1:{} proxy=127.0.0.1/32\n", setting.instance.port(81))).unwrap();
    let first = setting.acme().pid;
    facts::signal(setting.instance.pid(), Signal::HUP);
    wait_for("the new configuration", || (setting.acme().pid != first).then_some(())).unwrap();
    setting.instance.wait_log("the new configuration is in use").unwrap();
    setting.instance.must(&["cert", "obtain", ME]).unwrap();
    setting.wait_verified(ME);
    assert!(!setting.instance.log().contains(key), "a secret is not logged");
    let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(setting.http(81, get), "", "one that is no proxy");
    let said = setting.http(81, &format!("PROXY TCP4 192.0.2.1 127.0.0.1 7 80\r\n{get}"));
    assert!(said.starts_with("HTTP/1.1 404 "), "{said}");
}
