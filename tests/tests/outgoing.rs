//! TLS and logins on the way out, through the whole system: by policy, to a real Postfix, with credentials that nobody logs.
#![allow(clippy::unwrap_used)]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::Signal;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use system_tests::dns::{self, Record};
use system_tests::peer::Event;
use system_tests::postfix::{MAILBOX, Postfix};
use system_tests::{Instance, Peer, facts, is_root, skip, tools, wait_for};

const LETTER: &str = "From: bob@example.test\nSubject: out\n\nhello\n";
const BOB: &str = "bob@example.test";

fn instance(control: &[(&str, &str)]) -> Instance {
    let control: Vec<_> = [("relayclients", "127.0.0.0/8\n")].into_iter().chain(control.iter().copied()).collect();
    let instance = Instance::started(&control).unwrap();
    instance.virtual_domain("example.test", &["bob"]).unwrap();
    instance
}

fn send(instance: &Instance, from: &str, to: &str) {
    instance.smtp().unwrap().send(from, &[to], LETTER).unwrap();
}

fn reload(instance: &Instance, log: &str) {
    facts::signal(instance.pid(), Signal::HUP);
    instance.wait_log(log).unwrap();
}

/// An authority in `ca.pem`, and what it vouches for in `cert.pem` and `key.pem`.
fn certificates(dir: &Path, name: &str) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    for (file, text) in [("ca.pem", authority.pem()), ("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())] {
        std::fs::write(dir.join(file), text).unwrap();
    }
}

#[test]
fn a_real_postfix_takes_mail_over_verified_tls() {
    let name = "a_real_postfix_takes_mail_over_verified_tls";
    if !is_root() {
        return skip(name, "Postfix starts as root only");
    }
    let Some(tool) = tools::get(name, "postfix", "usr/lib/postfix/sbin/master").unwrap() else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let local = Record::A([127, 0, 0, 1]);
    let zone = vec![("mx.postfix.test", local), ("other.postfix.test", local)];
    let resolver = dns::start((Ipv4Addr::LOCALHOST, 0), zone).unwrap();
    let instance = instance(&[
        ("smtproutes", &format!("postfix.test:mx.postfix.test:{port}\nwrong.test:other.postfix.test:{port}\n")),
        ("resolvers", &format!("{resolver}\n")),
        ("tlspolicy", ".postfix.test:verify\n"),
    ]);
    let dir = instance.dir().to_owned();
    certificates(&dir, "mx.postfix.test");
    let shown = dir.display();
    let tls = format!(
        "smtpd_tls_security_level = encrypt\nsmtpd_tls_cert_file = {shown}/cert.pem\nsmtpd_tls_key_file = {shown}/key.pem\n\
         smtpd_tls_received_header = yes\nsmtpd_tls_loglevel = 1\n"
    );
    let postfix = Postfix::start_with(&tool, &dir, port, instance.port(25), &tls).unwrap();

    send(&instance, BOB, MAILBOX);
    instance.wait_log("TLS_failed:_its_certificate_comes_from_an_authority_that_is_not_trusted_here._(#4.7.5)/").unwrap();
    // Nothing is believed that the new generation could not read.
    instance.control("tlscafile", "/nonexistent/ca.pem\n").unwrap();
    reload(&instance, "/nonexistent/ca.pem: No such file");
    instance.control("tlscafile", &format!("{shown}/ca.pem\n")).unwrap();
    reload(&instance, "the new configuration is in use");
    instance.retry_until_empty().unwrap();
    let there = instance.wait_letters(&postfix.maildir(), 1).unwrap_or_else(|e| panic!("{e}\n{}", postfix.log())).remove(0);
    assert!(there.contains("(using TLSv1.3 with cipher "), "{there}");
    let log = instance.wait_log("success: 127.0.0.1_accepted_message./Remote_host_said:_250_").unwrap();
    assert!(log.contains("/Encrypted_by_TLSv1.3,_certificate_verified./"), "{log}");

    send(&instance, BOB, "x@wrong.test");
    instance.wait_log("deferral: Connected_to_127.0.0.1_but_TLS_failed:_its_certificate_is_for_another_name._(#4.7.5)/").unwrap();
}

#[test]
fn credentials_go_to_the_relay_and_into_no_log() {
    let relay = |user: &'static str| {
        Peer::start("127.0.0.1:0", move |event| match event {
            Event::Command(line) if line.starts_with("EHLO") => Some("250-peer|250 AUTH PLAIN LOGIN"),
            Event::Command(line) if line.starts_with("AUTH PLAIN ") => {
                Some(if line.ends_with(user) { "235 2.7.0 ok" } else { "535 5.7.8 who" })
            }
            Event::Command(line) if line.starts_with("MAIL") => None,
            _ => None,
        })
        .unwrap()
    };
    // \0bob\0xyzzy, \0all\0plugh
    let (bobs, others) = (relay("AGJvYgB4eXp6eQ=="), relay("AGFsbABwbHVnaA=="));
    let instance = instance(&[]);
    let write = |name: &str, text: &str| {
        let file = instance.root.join("etc/qmail/control").join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let ids = std::fs::read_to_string(instance.root.join("etc/qmail/ids")).unwrap_or_default();
        let uid = ids.lines().find_map(|line| line.strip_prefix("qmailq ")?.split(' ').next()?.parse().ok());
        if let Some(uid) = uid.filter(|_| is_root()) {
            chown(&file, Some(uid), None).unwrap();
        }
    };
    write("smtproutes", &format!(":{}:{} all plugh\n", others.address.ip(), others.address.port()));
    write("authsenders", &format!("{BOB}:{}:{}|bob|xyzzy\n", bobs.address.ip(), bobs.address.port()));
    send(&instance, BOB, "x@elsewhere.test");
    send(&instance, "ann@example.test", "y@elsewhere.test");
    instance.wait_empty().unwrap();
    for (peer, to) in [(&bobs, "<x@elsewhere.test>"), (&others, "<y@elsewhere.test>")] {
        let letters = wait_for("a letter", || Some(peer.letters()).filter(|all| all.len() == 1)).unwrap();
        assert_eq!(letters[0].to, [to]);
    }
    write("authsenders", &format!("{BOB}:{}:{}|bob|wrong\n", bobs.address.ip(), bobs.address.port()));
    // Long enough for the connection to be gone that the right password opened, and to see the file change.
    send(&instance, BOB, "z@elsewhere.test");
    instance.wait_log("deferral: Connected_to_127.0.0.1_but_the_login_was_refused./Remote_host_said:_535_5.7.8_who/").unwrap();
    let (log, check) = (instance.log(), instance.qmail(&["check"]).output().unwrap());
    let shown = log + &String::from_utf8_lossy(&check.stdout);
    assert!(!["xyzzy", "plugh", "|wrong"].iter().any(|secret| shown.contains(secret)), "{shown}");
    assert!(!shown.contains("has passwords in it"), "{shown}");
}

#[test]
fn a_policy_with_a_mistake_is_not_used() {
    let peer = Peer::willing().unwrap();
    let instance = instance(&[("smtproutes", &peer.route("elsewhere.test")), ("tlspolicy", "127.0.0.1:encrypt\n")]);
    let refused = "deferral: Connected_to_127.0.0.1_but_it_does_not_offer_TLS,_which_is_demanded_for_it._(#4.7.4)/";
    send(&instance, BOB, "x@elsewhere.test");
    instance.wait_log(refused).unwrap();
    instance.control("tlspolicy", "127.0.0.1:never\n").unwrap();
    reload(&instance, "control/tlspolicy: line 1: `127.0.0.1:never` has no policy");
    instance.must(&["queue", "retry", "--all"]).unwrap();
    wait_for("a second attempt", || (instance.log().matches(refused).count() == 2).then_some(())).unwrap();
    instance.control("tlspolicy", "127.0.0.1:may\n").unwrap();
    reload(&instance, "the new configuration is in use");
    instance.retry_until_empty().unwrap();
    assert_eq!(peer.letters().len(), 1);
}
