//! qmail-keys over its real socket: the loops in this process, and the program as qmail-start starts it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use control::{Id, Ids, Root};
use ipc::keys::{Answer, Request, TLS, TLS_CLIENT};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use qmail_keys::server::{Server, run};
use rcgen::{CertificateParams, KeyPair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use rustls::SignatureScheme;
use std::fs::{self, Permissions};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::spawn::{Ended, Spawn};
use sys::{Received, Seqpacket};

struct System {
    root: Root,
    run: OwnedFd,
    _lifeline: OwnedFd,
    _dir: tempfile::TempDir,
}

fn instance() -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path()).unwrap();
    for sub in [root.control(), root.tls(), root.run().join("roles")] {
        fs::create_dir_all(sub).unwrap();
    }
    fs::write(root.control_file("me"), "mx.example.org\n").unwrap();
    (dir, root)
}

/// The service in this process; it ends with the value.
fn system(root: Root, dir: tempfile::TempDir, ids: Ids) -> System {
    let run_dir: OwnedFd = fs::File::open(root.run()).unwrap().into();
    let listener = sys::seqpacket::listen(run_dir.as_fd(), "roles/keys.sock").unwrap();
    let (far, lifeline) = rustix::pipe::pipe().unwrap();
    let server = Arc::new(Server::new(root.clone(), ids));
    std::thread::spawn(move || {
        let signals = sys::signal::Signals::new(&[Signal::HUP]).unwrap();
        run(&server, &listener, &far, &signals).unwrap();
    });
    System { root, run: run_dir, _lifeline: lifeline, _dir: dir }
}

fn caller() -> Ids {
    Ids::Caller(Id { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() })
}

/// `NAME/cert.pem` and `NAME/key.pem` for these hosts; what the public key is.
fn put(root: &Root, name: &str, hosts: &[&str], key: &KeyPair) -> Vec<u8> {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let made = CertificateParams::new(hosts).unwrap().self_signed(key).unwrap();
    let dir = root.tls().join(name);
    fs::create_dir_all(&dir).unwrap();
    // As an administrator would: beside it, and then in its place.
    for (file, text, mode) in [("key.pem", key.serialize_pem(), 0o600), ("cert.pem", made.pem(), 0o644)] {
        let beside = dir.join(".new");
        fs::write(&beside, text).unwrap();
        fs::set_permissions(&beside, Permissions::from_mode(mode)).unwrap();
        fs::rename(beside, dir.join(file)).unwrap();
    }
    key.public_key_raw().to_vec()
}

fn ecdsa() -> KeyPair {
    KeyPair::generate().unwrap()
}

impl System {
    fn with(hosts: &[&str]) -> Self {
        let (dir, root) = instance();
        for host in hosts {
            put(&root, host, &[host], &ecdsa());
        }
        system(root, dir, caller())
    }

    fn connect(&self) -> Client {
        let socket = Seqpacket::connect(self.run.as_fd(), "roles/keys.sock").unwrap();
        socket.set_deadline(Duration::from_secs(20)).unwrap();
        Client(socket)
    }

    /// Waits until the certificates are for these hosts, each with one name.
    fn wait_hosts(&self, expected: &[&str]) -> Vec<Listed> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let all = self.connect().all();
            if all.iter().map(|listed| listed.hosts[0].as_str()).eq(expected.iter().copied()) {
                return all;
            }
            assert!(Instant::now() < until, "{:?}", all.iter().map(|listed| &listed.hosts).collect::<Vec<_>>());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

struct Client(Seqpacket);

#[derive(Debug, Clone)]
struct Listed {
    key: Vec<u8>,
    hosts: Vec<String>,
    schemes: Vec<u16>,
    is_default: bool,
}

impl Client {
    fn ask(&self, request: &Request) -> Option<Answer> {
        self.0.send(&request.encode()).ok()?;
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        match self.0.recv(&mut buf) {
            Ok(Received::Datagram(len, _)) => Some(Answer::decode(&buf[..len]).unwrap()),
            Ok(Received::End) => None,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "an answer or the end");
                None
            }
        }
    }

    fn all(&self) -> Vec<Listed> {
        let mut all = Vec::new();
        loop {
            match self.ask(&Request::Certificate { id: 1, number: all.len() as u32 }).unwrap() {
                Answer::Certificate { key, names, schemes, is_default, .. } => {
                    let hosts = names.iter().map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
                    all.push(Listed { key: key.0, hosts, schemes, is_default });
                }
                answer => {
                    assert!(matches!(answer, Answer::NoCertificate { count, .. } if count as usize == all.len()));
                    return all;
                }
            }
        }
    }

    fn sign(&self, key: &[u8], scheme: SignatureScheme, input: &[u8]) -> Answer {
        let scheme = u16::from(scheme);
        self.ask(&Request::Sign { id: 7, key: key.into(), purpose: TLS, scheme, input: input.into() }).unwrap()
    }
}

const ECDSA: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// What a server signs in a handshake of TLS 1.3.
fn handshake() -> Vec<u8> {
    [&[b' '; 64][..], b"TLS 1.3, server CertificateVerify\0", &[7; 32]].concat()
}

fn check(public: &[u8], algorithm: &'static dyn VerificationAlgorithm, answer: &Answer) {
    let Answer::Signature { signature, .. } = answer else { panic!("{answer:?}") };
    UnparsedPublicKey::new(algorithm, public).verify(&handshake(), signature).unwrap();
}

#[test]
fn each_kind_of_key_signs_handshakes_by_its_schemes_and_nothing_else() {
    let (dir, root) = instance();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    type Scheme = (SignatureScheme, &'static dyn VerificationAlgorithm);
    let kinds: [(&str, KeyPair, Vec<Scheme>); 4] = [
        ("a.test", ecdsa(), vec![(ECDSA, &signature::ECDSA_P256_SHA256_ASN1)]),
        ("b.test", p384, vec![(SignatureScheme::ECDSA_NISTP384_SHA384, &signature::ECDSA_P384_SHA384_ASN1)]),
        (
            "c.test",
            rsa,
            vec![
                (SignatureScheme::RSA_PSS_SHA256, &signature::RSA_PSS_2048_8192_SHA256),
                (SignatureScheme::RSA_PSS_SHA512, &signature::RSA_PSS_2048_8192_SHA512),
            ],
        ),
        ("d.test", ed25519, vec![(SignatureScheme::ED25519, &signature::ED25519)]),
    ];
    let public: Vec<Vec<u8>> = kinds.iter().map(|(host, key, _)| put(&root, host, &[host], key)).collect();
    let system = system(root, dir, caller());
    let client = system.connect();
    let all = client.all();
    assert_eq!(all.iter().map(|listed| listed.hosts[0].as_str()).collect::<Vec<_>>(), ["a.test", "b.test", "c.test", "d.test"]);
    for (at, (host, _, schemes)) in kinds.iter().enumerate() {
        for (scheme, algorithm) in schemes {
            assert!(all[at].schemes.contains(&u16::from(*scheme)), "{host} {scheme:?}");
            check(&public[at], *algorithm, &client.sign(&all[at].key, *scheme, &handshake()));
            for other in (0..kinds.len()).filter(|other| *other != at) {
                assert!(
                    matches!(client.sign(&all[other].key, *scheme, &handshake()), Answer::Refused { .. }),
                    "{host} {scheme:?}"
                );
            }
        }
        for input in [&handshake()[1..], b"", b"from:a@b.test\r\n", digest(&SHA256, b"x").as_ref(), &[b' '; 512], &[0; 1024]] {
            assert!(matches!(client.sign(&all[at].key, schemes[0].0, input), Answer::Refused { .. }), "{host}");
        }
        for purpose in (0..=u8::MAX).filter(|purpose| *purpose != TLS) {
            let (key, input) = (all[at].key.as_slice().into(), handshake().into());
            let request = Request::Sign { id: 7, key, purpose, scheme: u16::from(schemes[0].0), input };
            assert!(matches!(client.ask(&request), Some(Answer::Refused { .. })), "{host} {purpose}");
        }
    }
    assert!(matches!(client.sign(b"no key's name", ECDSA, &handshake()), Answer::UnknownKey { .. }));
}

/// `NAME/clientcert.pem` and `NAME/clientkey.pem`.
fn put_client(root: &Root, name: &str, key: &KeyPair) {
    put(root, name, &["client.test"], key);
    for (from, to) in [("cert.pem", "clientcert.pem"), ("key.pem", "clientkey.pem")] {
        fs::rename(root.tls().join(name).join(from), root.tls().join(name).join(to)).unwrap();
    }
}

/// What a client signs in a handshake of TLS 1.3.
fn client_handshake() -> Vec<u8> {
    [&[b' '; 64][..], b"TLS 1.3, client CertificateVerify\0", &[7; 32]].concat()
}

#[test]
fn a_key_that_is_shown_elsewhere_signs_as_a_client_alone() {
    let (dir, root) = instance();
    let (own, shown) = (ecdsa(), ecdsa());
    put_client(&root, "relay", &shown);
    put_client(&root, "both.test", &ecdsa());
    put(&root, "both.test", &["both.test"], &own);
    let system = system(root, dir, caller());
    let client = system.connect();
    let ask = |name: &str| client.ask(&Request::ClientCertificate { id: 3, name: name.into() }).unwrap();
    // It is shown to nobody who comes to us.
    let listed = client.all();
    assert_eq!(listed.iter().map(|listed| listed.hosts[0].as_str()).collect::<Vec<_>>(), ["both.test"]);
    let Answer::Certificate { id: 3, key, schemes, chain, .. } = ask("relay") else { panic!() };
    assert_eq!((schemes[0], chain.len()), (u16::from(ECDSA), 1));
    for nobody in ["", "other", "../tls/relay", "relay/", ".", "/etc"] {
        assert!(matches!(ask(nobody), Answer::NoCertificate { .. }), "{nobody}");
    }
    let sign = |key: &[u8], purpose, input: &[u8]| {
        let request = Request::Sign { id: 7, key: key.into(), purpose, scheme: u16::from(ECDSA), input: input.into() };
        client.ask(&request).unwrap()
    };
    let Answer::Signature { signature, .. } = sign(&key, TLS_CLIENT, &client_handshake()) else { panic!() };
    let public = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, shown.public_key_raw());
    public.verify(&client_handshake(), &signature).unwrap();
    assert!(matches!(sign(&key, TLS_CLIENT, &handshake()), Answer::Refused { .. }));
    assert!(matches!(sign(&key, TLS, &client_handshake()), Answer::Refused { .. }));
    assert!(matches!(sign(&key, TLS, &handshake()), Answer::UnknownKey { .. }), "no server's key");
    assert!(matches!(sign(&listed[0].key, TLS_CLIENT, &client_handshake()), Answer::UnknownKey { .. }), "no client's key");
}

#[test]
fn who_serves_is_no_client_and_the_other_way_round() {
    let own = rustix::process::geteuid().as_raw();
    let roles = ["qmailp", "qmaila", "qmaild", "qmailq", "qmailr", "qmailx", "qmailk"];
    for (caller, serves) in [("qmaild", true), ("qmailr", false)] {
        let (dir, root) = instance();
        put(&root, "a.test", &["a.test"], &ecdsa());
        put_client(&root, "relay", &ecdsa());
        let ids = roles.iter().zip(own.wrapping_add(4711)..).map(|(role, uid)| {
            let uid = if *role == caller { own } else { uid };
            ((*role).to_owned(), Id { uid, gid: uid })
        });
        let system = system(root, dir, Ids::Table(ids.collect()));
        let is_answered = |request: Request| system.connect().ask(&request).is_some();
        let sign =
            |purpose, input: Vec<u8>| Request::Sign { id: 7, key: "x".into(), purpose, scheme: 0x0403, input: input.into() };
        assert_eq!(is_answered(Request::Certificate { id: 1, number: 0 }), serves, "{caller}");
        assert_eq!(is_answered(sign(TLS, handshake())), serves, "{caller}");
        assert_eq!(is_answered(Request::ClientCertificate { id: 1, name: "relay".into() }), !serves, "{caller}");
        assert_eq!(is_answered(sign(TLS_CLIENT, client_handshake())), !serves, "{caller}");
    }
}

#[test]
fn who_is_not_in_the_table_is_not_served() {
    let (dir, root) = instance();
    put(&root, "a.test", &["a.test"], &ecdsa());
    // Everybody but the caller.
    let other = rustix::process::geteuid().as_raw().wrapping_add(4711);
    let roles = ["qmailp", "qmaila", "qmaild", "qmailq", "qmailr", "qmailx", "qmailk"];
    let ids = roles.iter().zip(other..).map(|(role, uid)| ((*role).to_owned(), Id { uid, gid: other })).collect();
    let system = system(root, dir, Ids::Table(ids));
    for _ in 0..3 {
        let client = system.connect();
        let sent = client.0.send(&Request::Certificate { id: 1, number: 0 }.encode());
        let got = client.0.recv(&mut [0; 64]);
        assert!(sent.is_err() || matches!(got, Ok(Received::End)) || got.is_err_and(|error| error.raw_os_error() == Some(104)));
    }
}

#[test]
fn whatever_bytes_come_it_goes_on_and_the_others_are_answered() {
    let system = System::with(&["mx.example.org"]);
    let good = system.connect();
    let key = good.all()[0].key.clone();
    let request = Request::Sign { id: 7, key: key.as_slice().into(), purpose: TLS, scheme: 0x0403, input: handshake().into() };
    let mut datagrams = vec![vec![0], vec![1], vec![0xff; DATAGRAM_LEN_MAX], vec![1; 40_000], vec![1, 9, 0, 0]];
    let encoded = request.encode();
    datagrams.extend((1..encoded.len()).map(|len| encoded[..len].to_vec()));
    datagrams.extend((0..encoded.len().min(64)).map(|at| {
        let mut changed = encoded.clone();
        changed[at] ^= 0x80;
        changed
    }));
    // One who asks and asks and never reads an answer.
    let deaf = system.connect();
    deaf.0.set_nonblocking(true).unwrap();
    for datagram in &datagrams {
        let client = system.connect();
        let _ = client.0.send(datagram);
        for _ in 0..50 {
            let _ = deaf.0.send(&encoded);
        }
        assert!(matches!(good.sign(&key, ECDSA, &handshake()), Answer::Signature { id: 7, .. }));
    }
    // With a descriptor beside it, too.
    let client = system.connect();
    let _ = client.0.send_with_fd(&[0xff], system.run.as_fd());
    assert!(matches!(good.sign(&key, ECDSA, &handshake()), Answer::Signature { .. }));
}

#[test]
fn a_uid_that_wants_too_much_is_told_so_and_served_again() {
    let system = System::with(&["mx.example.org"]);
    let key = system.connect().all()[0].key.clone();
    let askers: Vec<_> = (0..4)
        .map(|_| {
            let (client, key) = (system.connect(), key.clone());
            std::thread::spawn(move || {
                (0..40_000).any(|_| matches!(client.sign(&key, ECDSA, &handshake()), Answer::Refused { .. }))
            })
        })
        .collect();
    let refused = askers.into_iter().map(|asker| asker.join().unwrap()).filter(|refused| *refused).count();
    // A machine that cannot make so many signatures in a second refuses nobody.
    let client = system.connect();
    let until = Instant::now() + Duration::from_secs(20);
    while !matches!(client.sign(&key, ECDSA, &handshake()), Answer::Signature { .. }) {
        assert!(Instant::now() < until, "{refused} were refused, and nobody is served again");
    }
}

#[test]
fn files_are_followed_and_what_is_wrong_with_one_is_nobody_elses() {
    let system = System::with(&["b.test", "c.test"]);
    let before = system.wait_hosts(&["b.test", "c.test"]);
    assert!(before[0].is_default, "none is for this host: the first");
    let old = system.connect();
    // One more, for this host; and one that is replaced.
    put(&system.root, "mx", &["mx.example.org"], &ecdsa());
    let replaced = put(&system.root, "b.test", &["b.test"], &ecdsa());
    let all = system.wait_hosts(&["b.test", "c.test", "mx.example.org"]);
    assert!(all[2].is_default && !all[0].is_default);
    assert_ne!(all[0].key, before[0].key);
    check(&replaced, &signature::ECDSA_P256_SHA256_ASN1, &old.sign(&all[0].key, ECDSA, &handshake()));
    assert!(matches!(old.sign(&before[0].key, ECDSA, &handshake()), Answer::Signature { .. }), "the former key, for a moment");
    // What is spoilt: the former stays; what is new and wrong is not used; what goes is gone.
    let tls = system.root.tls();
    let key = |name: &str| tls.join(name).join("key.pem");
    fs::set_permissions(key("c.test"), Permissions::from_mode(0o640)).unwrap();
    fs::write(key("b.test"), ecdsa().serialize_pem()).unwrap();
    fs::write(tls.join("mx/cert.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    for (name, spoil) in [("n1", 0), ("n2", 1), ("n3", 2), ("n4", 3)] {
        put(&system.root, name, &[name], &ecdsa());
        match spoil {
            0 => fs::set_permissions(key(name), Permissions::from_mode(0o604)).unwrap(),
            1 => fs::write(key(name), ecdsa().serialize_pem()).unwrap(),
            2 => fs::write(key(name), "nothing").unwrap(),
            _ => {
                fs::remove_file(key(name)).unwrap();
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, key(name), kind, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
            }
        }
    }
    put(&system.root, "z.test", &["z.test"], &ecdsa());
    let spoilt = system.wait_hosts(&["b.test", "c.test", "mx.example.org", "z.test"]);
    assert_eq!((&spoilt[0].key, &spoilt[1].key), (&all[0].key, &all[1].key));
    fs::remove_dir_all(tls.join("c.test")).unwrap();
    system.wait_hosts(&["b.test", "mx.example.org", "z.test"]);
    fs::rename(&tls, tls.with_extension("away")).unwrap();
    std::thread::sleep(qmail_keys::store::LOOK_PAUSE);
    assert_eq!(system.connect().all().len(), 3, "a directory that cannot be read takes nothing away");
}

/// The real program, confined.
struct Program {
    process: sys::spawn::Child,
    lifeline: Option<OwnedFd>,
}

fn start(root: &Root, run: &OwnedFd) -> Program {
    let listener = sys::seqpacket::listen(run.as_fd(), "roles/keys.sock").unwrap();
    let (ready, ready_child) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (lifeline_child, lifeline) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let process = Spawn::new(Path::new(env!("CARGO_BIN_EXE_qmail-keys")))
        .arg("--service")
        .env("QMAIL_ROOT", root.path())
        .stderr(std::io::stderr().as_fd())
        .fd("lifeline", lifeline_child.as_fd())
        .fd("ready", ready_child.as_fd())
        .fd("serve:keys", listener.as_fd())
        .fd("run", run.as_fd())
        .start()
        .unwrap();
    drop(ready_child);
    assert_eq!(rustix::io::read(&ready, &mut [0; 8][..]), Ok(1), "it gets ready");
    Program { process, lifeline: Some(lifeline) }
}

impl Program {
    fn end(mut self) -> Ended {
        self.lifeline = None;
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(ended) = self.process.try_wait() {
                return ended;
            }
            assert!(Instant::now() < until, "it does not end with its lifeline");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn the_program_serves_confined_rereads_when_it_is_told_to_and_ends_with_its_lifeline() {
    let (dir, root) = instance();
    if rustix::process::geteuid().is_root() {
        let roles = ["qmailp", "qmaila", "qmaild", "qmailq", "qmailr", "qmailx", "qmailk"];
        let ids: String = roles.iter().zip(64_100..).map(|(role, uid)| format!("{role} {uid} 64100\n")).collect();
        fs::write(root.ids_file(), ids).unwrap();
    }
    let key = ecdsa();
    let public = put(&root, "mx.example.org", &["mx.example.org"], &key);
    let run: OwnedFd = fs::File::open(root.run()).unwrap().into();
    let program = start(&root, &run);
    for open in [dir.path(), &root.run(), &root.run().join("roles"), &root.run().join("roles/keys.sock")] {
        fs::set_permissions(open, Permissions::from_mode(0o777)).unwrap();
    }
    let client = connect_as_network(&run);
    let listed = client.all();
    assert_eq!(listed.len(), 1);
    check(&public, &signature::ECDSA_P256_SHA256_ASN1, &client.sign(&listed[0].key, ECDSA, &handshake()));
    let status = fs::read_to_string(format!("/proc/{}/status", program.process.pid.as_raw_nonzero())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    put(&root, "two.test", &["two.test"], &ecdsa());
    program.process.signal(Signal::HUP);
    let until = Instant::now() + Duration::from_secs(20);
    while client.all().len() != 2 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(client);
    assert_eq!(program.end(), Ended::Code(0));
    drop(dir);
}

/// As qmaild, or without root as the caller, who is every role.
fn connect_as_network(run: &OwnedFd) -> Client {
    let run = run.try_clone().unwrap();
    let is_root = rustix::process::geteuid().is_root();
    // The kernel changes the ids of this one thread.
    let thread = std::thread::spawn(move || {
        if is_root {
            let uid = rustix::process::Uid::from_raw(64_102);
            rustix::thread::set_thread_res_uid(None, Some(uid), None).unwrap();
        }
        Seqpacket::connect(run.as_fd(), "roles/keys.sock").unwrap()
    });
    let client = thread.join().unwrap();
    client.set_deadline(Duration::from_secs(20)).unwrap();
    Client(client)
}
