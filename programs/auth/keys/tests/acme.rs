//! What qmail-acme gets of qmail-keys, and what nobody does.
#![allow(clippy::unwrap_used)]

use aws_lc_rs::signature::{self, UnparsedPublicKey};
use control::{Id, Ids, Root};
use ipc::keys::{Answer, Request, TLS};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use qmail_keys::server::{Server, run};
use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
use std::fs::{self, Permissions};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use sys::{Received, Seqpacket};
use wire::base64;

const A: &str = "a.test";
const B: &str = "b.test";
const DIRECTORY: &str = "https://ca.test:14000/dir";

struct System {
    root: Root,
    run: OwnedFd,
    /// Of the certificate `a.test`.
    key: KeyPair,
    _lifeline: OwnedFd,
    _dir: tempfile::TempDir,
}

/// With a self-signed certificate `a.test`, of which control/acme wants it to be for `b.test`, too.
fn system(ids: Ids) -> System {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path()).unwrap();
    for sub in [root.control(), root.tls().join(A), root.tls().join(".acme"), root.run().join("roles")] {
        fs::create_dir_all(sub).unwrap();
    }
    fs::write(root.control_file("me"), "a.test\n").unwrap();
    fs::write(root.control_file("acme"), format!("directory {DIRECTORY}\ncertificate {A} {B}\n")).unwrap();
    let key = KeyPair::generate().unwrap();
    let account = KeyPair::generate().unwrap().serialize_pem();
    let certificate = CertificateParams::new([A.to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    for (file, text) in
        [("a.test/key.pem", key.serialize_pem()), (".acme/account.pem", account), ("a.test/cert.pem", certificate)]
    {
        let path = root.tls().join(file);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }
    let run_dir: OwnedFd = fs::File::open(root.run()).unwrap().into();
    let listener = sys::seqpacket::listen(run_dir.as_fd(), "roles/keys.sock").unwrap();
    let (far, lifeline) = rustix::pipe::pipe().unwrap();
    let server = Arc::new(Server::new(root.clone(), ids));
    std::thread::spawn(move || {
        let signals = sys::signal::Signals::new(&[rustix::process::Signal::HUP]).unwrap();
        run(&server, &listener, &far, &signals).unwrap();
    });
    System { root, run: run_dir, key, _lifeline: lifeline, _dir: dir }
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn caller() -> Ids {
    Ids::Caller(Id { uid: uid(), gid: rustix::process::getegid().as_raw() })
}

/// The caller is this role, and nobody is the other one.
fn only(role: &str, other: &str) -> Ids {
    let id = |uid| Id { uid, gid: 1 };
    Ids::Table(vec![(role.to_owned(), id(uid())), (other.to_owned(), id(uid().wrapping_add(4711)))])
}

impl System {
    /// `None`: the connection was closed.
    fn ask(&self, request: &Request) -> Option<Answer> {
        let socket = Seqpacket::connect(self.run.as_fd(), "roles/keys.sock").unwrap();
        socket.set_deadline(Duration::from_secs(20)).unwrap();
        socket.send(&request.encode()).ok()?;
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        match socket.recv(&mut buf) {
            Ok(Received::Datagram(len, _)) => Some(Answer::decode(&buf[..len]).unwrap()),
            Ok(Received::End) => None,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "an answer or the end");
                None
            }
        }
    }

    fn refused(&self, request: &Request) -> String {
        match self.ask(request) {
            Some(Answer::Refused { text, .. }) => String::from_utf8(text.0).unwrap(),
            other => panic!("{request:?}: {other:?}"),
        }
    }

    fn state(&self) -> (bool, bool, Vec<u8>) {
        match self.ask(&Request::AcmeState { id: 1, name: A.into() }) {
            Some(Answer::AcmeState { is_issued, covers, note, .. }) => (is_issued, covers, note.0),
            other => panic!("{other:?}"),
        }
    }

    fn certificate(&self) -> PathBuf {
        self.root.tls().join("a.test/cert.pem")
    }

    /// A chain from an authority.
    fn issued(&self, hosts: &[&str], key: &KeyPair, until: i32) -> Vec<Vec<u8>> {
        let authority = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "An authority");
        let root = params.self_signed(&authority).unwrap().der().to_vec();
        let issuer = Issuer::new(params, authority);
        let mut params = CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>()).unwrap();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        vec![params.signed_by(key, &issuer).unwrap().der().to_vec(), root]
    }
}

fn sign(url: &str, nonce: &str, account: &str, payload: &[u8]) -> Request {
    Request::AcmeSign { id: 7, url: url.into(), nonce: nonce.into(), account: account.into(), payload: payload.into() }
}

fn install(chain: &[Vec<u8>]) -> Request {
    Request::AcmeInstall { id: 7, name: A.into(), chain: chain.iter().map(|der| der.as_slice().into()).collect() }
}

#[test]
fn the_accounts_key_signs_requests_to_the_authority_and_nothing_else() {
    let system = system(caller());
    let Some(Answer::AcmeAccount { point, .. }) = system.ask(&Request::AcmeAccount { id: 1 }) else { panic!() };
    let (url, account) = ("https://ca.test:14000/order", "https://ca.test:14000/account/1");
    for (kid, payload, part) in
        [("", &b"{}"[..], "\"jwk\":{\"crv\":\"P-256\""), (account, b"", "\"kid\":\"https://ca.test:14000/account/1\"")]
    {
        let Some(Answer::AcmeSigned { id: 7, protected, signature }) = system.ask(&sign(url, "n-_0", kid, payload)) else {
            panic!()
        };
        let header = String::from_utf8(protected.0.clone()).unwrap();
        assert!(header.starts_with("{\"alg\":\"ES256\",") && header.contains(part), "{header}");
        assert!(header.ends_with(&format!("\"nonce\":\"n-_0\",\"url\":\"{url}\"}}")), "{header}");
        let input = format!("{}.{}", base64::encode_url(&protected), base64::encode_url(payload));
        UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, &point.0).verify(input.as_bytes(), &signature).unwrap();
    }
    let handshake = [&[b' '; 64][..], b"TLS 1.3, server CertificateVerify\0", &[7; 32]].concat();
    for (bad_url, why) in [
        ("http://ca.test:14000/order", "another scheme"),
        ("https://ca.test/order", "another port"),
        ("https://evil.test:14000/order", "another host"),
        ("https://ca.test:14000@evil.test/order", "another host"),
        ("https://ca.test:14000/\",\"x\":\"", "more than a URL"),
        ("https://ca.test:14000/\\", "an escape"),
        ("https://ca.test:14000/ x", "a blank"),
        ("", "nothing"),
    ] {
        assert!(system.refused(&sign(bad_url, "n", account, b"{}")).contains("`url`"), "{why}");
        if !bad_url.is_empty() {
            assert!(system.refused(&sign(url, "n", bad_url, b"{}")).contains("`account`"), "{why}");
        }
    }
    for bad in ["", "a b", "a\"", "a=", "\n", &"x".repeat(600)] {
        assert!(system.refused(&sign(url, bad, account, b"{}")).contains("nonce"), "{bad:?}");
    }
    for bad in [&handshake[..], b"x", b"[]", b"{", b"}", &[b'{'; 29 * 1024], b"from:a@b.test\r\n", &[0x30, 0x82, 1, 0]] {
        assert!(system.refused(&sign(url, "n", account, bad)).contains("payload"), "{}", bad.escape_ascii());
    }
    // It is no key of handshakes, by whatever name; and a certificate's key signs no request.
    for key in [aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &point.0).as_ref(), b"account", &point.0] {
        let request = Request::Sign { id: 7, key: key.into(), purpose: TLS, scheme: 0x0403, input: handshake.as_slice().into() };
        assert!(matches!(system.ask(&request), Some(Answer::UnknownKey { id: 7 })));
    }
    // Its file is its owner's alone.
    let path = system.root.tls().join(".acme/account.pem");
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    assert!(system.refused(&sign(url, "n", account, b"{}")).contains("by others"));
    fs::remove_file(&path).unwrap();
    assert!(system.refused(&Request::AcmeAccount { id: 1 }).contains("cert obtain"));
}

#[test]
fn a_certificate_is_requested_for_its_hosts_and_no_others() {
    let system = system(caller());
    let Some(Answer::AcmeRequest { der, .. }) = system.ask(&Request::AcmeRequest { id: 1, name: A.into() }) else { panic!() };
    let file = system.root.path().join("request");
    fs::write(&file, &der.0).unwrap();
    let output = Command::new("openssl").args(["req", "-inform", "DER", "-verify", "-noout", "-text", "-in"]).arg(&file).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("verify OK"), "{text}");
    assert!(text.contains("DNS:a.test, DNS:b.test") && !text.contains("CN ="), "{text}");
    for name in ["", "b.test", "A.TEST", ".acme", "..", "../tls/a.test", "evil.test"] {
        let name = || name.into();
        for request in [
            Request::AcmeRequest { id: 1, name: name() },
            Request::AcmeState { id: 1, name: name() },
            Request::AcmeNote { id: 1, name: name(), text: "x".into() },
            Request::AcmeInstall { id: 1, name: name(), chain: vec![] },
        ] {
            assert!(system.refused(&request).contains("no line `certificate"), "{request:?}");
        }
    }
    assert!(matches!(system.ask(&Request::AcmeNames { id: 3 }), Some(Answer::AcmeNames { id: 3, names }) if names == [A.into()]));
    fs::remove_file(system.root.control_file("acme")).unwrap();
    assert!(system.refused(&Request::AcmeNames { id: 3 }).contains("no control/acme"));
}

#[test]
fn only_a_certificate_that_fits_is_put_in_its_place() {
    let system = system(caller());
    let before = fs::read(system.certificate()).unwrap();
    let good = system.issued(&[A, B], &system.key, 2090);
    let own = CertificateParams::new([A.to_owned(), B.to_owned()]).unwrap().self_signed(&system.key).unwrap().der().to_vec();
    for (chain, why) in [
        (vec![], "no certificate"),
        (vec![b"nothing".to_vec()], "cannot be read"),
        (vec![good[0].clone(), b"nothing".to_vec()], "cannot be read"),
        (vec![[&good[0][..], b"x"].concat()], "behind"),
        (system.issued(&[A, B], &KeyPair::generate().unwrap(), 2090), "another key"),
        (system.issued(&[A], &system.key, 2090), "all of the hosts"),
        (system.issued(&[A, B], &system.key, 2001), "expired"),
        (vec![own], "by nobody"),
        (good.iter().rev().cloned().collect(), "another key"),
        (vec![good[0].clone(); 11], "too long"),
    ] {
        let said = system.refused(&install(&chain));
        assert!(said.contains(why), "{said}");
        assert_eq!(fs::read(system.certificate()).unwrap(), before, "{why}");
    }
    assert_eq!(system.state(), (false, false, vec![]));
    assert!(matches!(system.ask(&install(&good)), Some(Answer::AcmeDone { id: 7 })));
    let (is_issued, covers, _) = system.state();
    assert!(is_issued && covers, "it counts at once");
    let text = fs::read_to_string(system.certificate()).unwrap();
    assert_eq!(text.matches("-----BEGIN CERTIFICATE-----\n").count(), 2);
    assert!(text.lines().all(|line| line.len() <= 64), "RFC 7468 §2");
    // What it is known by, kept beside it.
    for bad in [&b"a\x00"[..], b"\xff", b"\x1b[2J", &[b'x'; 9000]] {
        system.refused(&Request::AcmeNote { id: 1, name: A.into(), text: bad.into() });
    }
    assert!(matches!(
        system.ask(&Request::AcmeNote { id: 1, name: A.into(), text: "failures 1\n".into() }),
        Some(Answer::AcmeDone { .. })
    ));
    assert_eq!(system.state().2, b"failures 1\n");
    let mut files: Vec<_> =
        fs::read_dir(system.root.tls().join(A)).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["acme", "cert.pem", "key.pem"], "nothing is left over");
}

#[test]
fn network_programs_get_nothing_of_qmail_acmes_and_it_gets_nothing_of_theirs() {
    let acmes = [
        Request::AcmeAccount { id: 1 },
        sign("https://ca.test:14000/x", "n", "", b"{}"),
        Request::AcmeNames { id: 1 },
        Request::AcmeState { id: 1, name: A.into() },
        Request::AcmeRequest { id: 1, name: A.into() },
        install(&[]),
        Request::AcmeNote { id: 1, name: A.into(), text: "x".into() },
    ];
    let theirs = [
        Request::Certificate { id: 1, number: 0 },
        Request::Sign { id: 1, key: A.into(), purpose: TLS, scheme: 0x0403, input: "x".into() },
    ];
    let network = system(only("qmaild", "qmailc"));
    let acme = system(only("qmailc", "qmaild"));
    for request in &acmes {
        assert_eq!(network.ask(request), None, "{request:?}");
        assert!(acme.ask(request).is_some(), "{request:?}");
    }
    for request in &theirs {
        assert_eq!(acme.ask(request), None, "{request:?}");
        assert!(network.ask(request).is_some(), "{request:?}");
    }
}

#[test]
fn a_host_is_served_by_what_an_authority_vouches_for() {
    let system = system(caller());
    // `z.test` comes last by its name; `a.test` is self-signed, and the host's own.
    let key = KeyPair::generate().unwrap();
    let dir = system.root.tls().join("z.test");
    fs::create_dir(&dir).unwrap();
    let pem = |der: &[u8]| format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", base64::encode(der));
    fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    fs::set_permissions(dir.join("key.pem"), Permissions::from_mode(0o600)).unwrap();
    fs::write(dir.join("cert.pem"), pem(&system.issued(&[A], &key, 2090)[0])).unwrap();
    let first = || match system.ask(&Request::Certificate { id: 1, number: 0 }) {
        Some(Answer::Certificate { count: 2, chain, is_default, .. }) => Some((chain[0].0.clone(), is_default)),
        _ => None,
    };
    let until = std::time::Instant::now() + Duration::from_secs(20);
    let (certificate, is_default) = loop {
        if let Some(found) = first() {
            break found;
        }
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(is_default && fs::read_to_string(dir.join("cert.pem")).unwrap() == pem(&certificate));
}
