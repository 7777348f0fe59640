//! Handshakes with rustls as the client and, in the place of qmail-keys, an oracle that the test can change, stop and look into.
#![allow(clippy::unwrap_used)]

use aws_lc_rs::digest::{SHA256, digest};
use ipc::keys::{Answer, Request, TLS, TLS_CLIENT};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SignatureScheme, SupportedProtocolVersion};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use sys::{Received, Seqpacket};
use tls::server::Refused;
use tls::{Acceptor, ClientCertificate, ClientCertificates, Facts, Shown, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// One of the oracle's certificates.
struct Own {
    names: Vec<String>,
    key: KeyPair,
    der: CertificateDer<'static>,
}

impl Own {
    fn new(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let der = CertificateParams::new(names.clone()).unwrap().self_signed(&key).unwrap().der().clone();
        Self { names, key, der }
    }

    fn end_point(&self) -> Vec<u8> {
        digest(&SHA256, &self.der).as_ref().to_vec()
    }

    fn listed(&self, id: u64, generation: u64, number: u32, count: u32) -> Answer {
        Answer::Certificate {
            id,
            generation,
            count,
            key: self.end_point().into(),
            schemes: vec![u16::from(SignatureScheme::ECDSA_NISTP256_SHA256)],
            names: self.names.iter().map(|name| name.as_str().into()).collect(),
            is_default: number == 0,
            end_point: self.end_point().into(),
            chain: vec![self.der.to_vec().into()],
        }
    }

    fn sign(&self, input: &[u8]) -> Vec<u8> {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap().sign(input).unwrap()
    }
}

#[derive(Default)]
struct Held {
    generation: u64,
    all: Vec<Own>,
    /// Answers nothing, as a process that is stopped.
    is_stopped: bool,
}

/// In the place of qmail-keys.
struct Oracle {
    run: Arc<OwnedFd>,
    held: Arc<Mutex<Held>>,
    signed: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

impl Oracle {
    fn with(all: Vec<Own>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let run: Arc<OwnedFd> = Arc::new(std::fs::File::open(dir.path()).unwrap().into());
        let listener = sys::seqpacket::listen(run.as_fd(), "keys").unwrap();
        rustix::io::ioctl_fionbio(&listener, false).unwrap();
        let held = Arc::new(Mutex::new(Held { generation: 1, all, is_stopped: false }));
        let signed = Arc::new(AtomicUsize::new(0));
        let (theirs, counted) = (Arc::clone(&held), Arc::clone(&signed));
        std::thread::spawn(move || {
            while let Ok(client) = sys::seqpacket::accept(listener.as_fd()) {
                let (held, signed) = (Arc::clone(&theirs), Arc::clone(&counted));
                std::thread::spawn(move || serve(&client, &held, &signed));
            }
        });
        Self { run, held, signed, _dir: dir }
    }

    fn acceptor(&self) -> Acceptor {
        Acceptor::start(Arc::clone(&self.run), "keys").unwrap()
    }

    fn replace(&self, all: Vec<Own>) {
        let mut held = self.held.lock().unwrap();
        (held.all, held.generation) = (all, held.generation + 1);
    }

    fn stop(&self, is_stopped: bool) {
        self.held.lock().unwrap().is_stopped = is_stopped;
    }
}

fn serve(client: &Seqpacket, held: &Mutex<Held>, signed: &AtomicUsize) {
    client.set_nonblocking(false).unwrap();
    let mut buf = [0; DATAGRAM_LEN_MAX];
    while let Ok(Received::Datagram(len, _)) = client.recv(&mut buf) {
        let request = Request::decode(&buf[..len]).unwrap();
        while held.lock().unwrap().is_stopped {
            std::thread::sleep(Duration::from_millis(10));
        }
        let held = held.lock().unwrap();
        let count = u32::try_from(held.all.len()).unwrap();
        let answer = match request {
            Request::Certificate { id, number } => match held.all.get(number as usize) {
                Some(own) => own.listed(id, held.generation, number, count),
                None => Answer::NoCertificate { id, generation: held.generation, count },
            },
            Request::Sign { id, key, purpose, input, .. } => {
                // As the contexts of TLS 1.3 say, and the hellos of 1.2.
                let is_client = input.get(73..79) == Some(b"client") || input.starts_with(&[1, 0]);
                assert_eq!(purpose, if is_client { TLS_CLIENT } else { TLS });
                signed.fetch_add(1, Ordering::Relaxed);
                match held.all.iter().find(|own| own.end_point() == *key) {
                    Some(own) => Answer::Signature { id, signature: own.sign(&input).into() },
                    None => Answer::UnknownKey { id },
                }
            }
            Request::ClientCertificate { id, name } => match held.all.iter().find(|own| own.names[0].as_bytes() == &name[..]) {
                Some(own) => own.listed(id, 0, 0, 1),
                None => Answer::NoCertificate { id, generation: 0, count: 0 },
            },
            other => panic!("nothing that a TLS server asks: {other:?}"),
        };
        drop(held);
        if client.send(&answer.encode()).is_err() {
            return;
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

const BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// A client that believes these certificates.
fn client(trusted: &[&CertificateDer<'static>], versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
    Arc::new(builder(trusted, versions).with_no_client_auth())
}

fn builder(
    trusted: &[&CertificateDer<'static>],
    versions: &[&'static SupportedProtocolVersion],
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = RootCertStore::empty();
    trusted.iter().for_each(|der| roots.add((*der).clone()).unwrap());
    ClientConfig::builder_with_provider(tls::provider()).with_protocol_versions(versions).unwrap().with_root_certificates(roots)
}

/// Both ends of a TCP connection.
async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

type Handshake = Result<(Stream, Stream, Facts), String>;

/// A handshake, and what each side got of it.
async fn shake(acceptor: &Acceptor, config: &Arc<ClientConfig>, host: &str) -> Handshake {
    let (near, far) = tcp().await;
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut client = Stream::new(near, ClientConnection::new(Arc::clone(config), name).unwrap());
    let (shaken, accepted) = tokio::join!(client.handshake(), acceptor.accept(far));
    match (shaken, accepted) {
        (Ok(()), Ok((server, facts))) => Ok((client, server, facts)),
        (client, server) => Err(format!("client {client:?}, server {:?}", server.map(drop))),
    }
}

/// What is written at one end comes out at the other, both ways. Takes in tickets, too.
async fn talk(client: &mut Stream, server: &mut Stream) {
    let mut buf = [0; 5];
    server.write_all(b"hello").await.unwrap();
    client.read_exact(&mut buf).await.unwrap();
    client.write_all(&buf).await.unwrap();
    server.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"hello");
}

/// A client's first words.
fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from("mx.example.org").unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(Arc::clone(config), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

fn shown(client: &Stream) -> CertificateDer<'static> {
    client.tls().peer_certificates().unwrap()[0].clone()
}

#[test]
fn each_host_has_its_certificate_and_others_get_the_default_one() {
    run(async {
        let (one, two) = (Own::new(&["mx.example.org"]), Own::new(&["www.example.net", "*.example.net"]));
        let ders = [one.der.clone(), two.der.clone()];
        let oracle = Oracle::with(vec![one, two]);
        let (acceptor, trusting) = (oracle.acceptor(), client(&[&ders[0], &ders[1]], &BOTH));
        for (host, which) in [("mx.example.org", 0), ("MX.Example.Org", 0), ("www.example.net", 1), ("a.example.net", 1)] {
            let (mut near, mut far, facts) = shake(&acceptor, &trusting, host).await.unwrap();
            talk(&mut near, &mut far).await;
            assert!(shown(&near) == ders[which], "{host}");
            assert_eq!(facts.server_name.as_deref(), Some(&*host.to_ascii_lowercase()));
            assert_eq!(facts.end_point.as_deref(), Some(digest(&SHA256, &ders[which]).as_ref()), "{host}");
        }
        // The default one is for another name, and the client says so.
        for host in ["a.b.example.net", "example.net", "other.test"] {
            let refused = shake(&acceptor, &trusting, host).await.unwrap_err();
            assert!(refused.contains("NotValidForName") && refused.contains("AlertReceived"), "{host}: {refused}");
        }
    });
}

#[test]
fn what_a_session_knows_is_what_its_client_knows() {
    run(async {
        let own = Own::new(&["mx.example.org"]);
        let der = own.der.clone();
        let oracle = Oracle::with(vec![own]);
        let acceptor = oracle.acceptor();
        let (near, _far, facts) = shake(&acceptor, &client(&[&der], &BOTH), "mx.example.org").await.unwrap();
        let theirs = near.tls().export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b"")).unwrap();
        assert_eq!((facts.version, facts.exporter), ("TLSv1.3", Some(theirs)));
        assert_eq!((facts.cipher.as_str(), facts.group.as_str()), ("TLS_AES_256_GCM_SHA384", "X25519MLKEM768"));
        assert_eq!((facts.is_resumed, facts.client), (false, None));
        let old = client(&[&der], &[&rustls::version::TLS12]);
        let (mut near, mut far, facts) = shake(&acceptor, &old, "mx.example.org").await.unwrap();
        talk(&mut near, &mut far).await;
        assert_eq!((facts.version, facts.exporter), ("TLSv1.2", None));
        assert_eq!(facts.cipher, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384");
        assert_eq!(facts.end_point.as_deref(), Some(digest(&SHA256, &der).as_ref()));
    });
}

#[test]
fn sessions_are_resumed_and_keep_their_channel_binding() {
    run(async {
        for version in BOTH {
            let own = Own::new(&["mx.example.org"]);
            let (der, bound) = (own.der.clone(), own.end_point());
            let oracle = Oracle::with(vec![own]);
            let (acceptor, trusting) = (oracle.acceptor(), client(&[&der], &[version]));
            let (mut near, mut far, first) = shake(&acceptor, &trusting, "mx.example.org").await.unwrap();
            talk(&mut near, &mut far).await;
            assert!(!first.is_resumed && oracle.signed.load(Ordering::Relaxed) == 1);
            // The session goes on where the certificate is another meanwhile.
            let new = Own::new(&["mx.example.org"]);
            let new_der = new.der.clone();
            oracle.replace(vec![new]);
            let until = Instant::now() + Duration::from_secs(30);
            while shake(&acceptor, &client(&[&new_der], &BOTH), "mx.example.org").await.is_err() {
                assert!(Instant::now() < until, "the new certificate is never used");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let signed = oracle.signed.load(Ordering::Relaxed);
            for _ in 0..2 {
                let (mut near, mut far, again) = shake(&acceptor, &trusting, "mx.example.org").await.unwrap();
                talk(&mut near, &mut far).await;
                assert!(again.is_resumed && near.tls().handshake_kind() == Some(HandshakeKind::Resumed), "{version:?}");
                assert_eq!(oracle.signed.load(Ordering::Relaxed), signed, "nobody was asked for a signature");
                // TLS 1.2 gives new tickets before it is known what they should say: then there is none, never a wrong one.
                let is_new = *version == rustls::version::TLS13;
                assert!(again.end_point.as_ref() == Some(&bound) || (!is_new && again.end_point.is_none()), "{version:?}");
            }
            // Another process has another key for its tickets.
            let other = oracle.acceptor();
            let refused = shake(&other, &trusting, "mx.example.org").await.unwrap_err();
            assert!(refused.contains("UnknownIssuer") || refused.contains("BadSignature"), "{refused}");
        }
    });
}

#[test]
fn a_new_certificate_is_used_and_old_sessions_go_on() {
    run(async {
        let (one, two) = (Own::new(&["mx.example.org"]), Own::new(&["mx.example.org"]));
        let ders = [one.der.clone(), two.der.clone()];
        let oracle = Oracle::with(vec![one]);
        let acceptor = oracle.acceptor();
        let (mut near, mut far, _) = shake(&acceptor, &client(&[&ders[0]], &BOTH), "mx.example.org").await.unwrap();
        talk(&mut near, &mut far).await;
        oracle.replace(vec![two]);
        // Who comes just now may be told to come again; nobody is told so for long.
        let until = Instant::now() + Duration::from_secs(30);
        let mut refused = 0;
        loop {
            match shake(&acceptor, &client(&[&ders[0], &ders[1]], &BOTH), "mx.example.org").await {
                Ok((new, ..)) if shown(&new) == ders[1] => break,
                Ok(_) => {}
                Err(_) => refused += 1,
            }
            assert!(Instant::now() < until, "the new certificate is never used");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(refused < 50, "{refused} handshakes failed");
        talk(&mut near, &mut far).await;
        // None is left: TLS is not offered any more.
        oracle.replace(Vec::new());
        while acceptor.is_available() {
            assert!(Instant::now() < until + Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        talk(&mut near, &mut far).await;
    });
}

#[test]
fn an_oracle_that_is_stopped_ends_handshakes_and_holds_up_nothing_else() {
    run(async {
        let own = Own::new(&["mx.example.org"]);
        let der = own.der.clone();
        let oracle = Oracle::with(vec![own]);
        let (acceptor, trusting) = (Arc::new(oracle.acceptor()), client(&[&der], &BOTH));
        let (mut near, mut far, _) = shake(&acceptor, &trusting, "mx.example.org").await.unwrap();
        oracle.stop(true);
        let (mut slowest, mut rounds) = (Duration::ZERO, 0);
        {
            let many = async {
                let mut clients = Vec::new();
                let mut waiting = tokio::task::JoinSet::new();
                for _ in 0..40 {
                    let (mut near, far) = tcp().await;
                    near.write_all(&hello(&client(&[&der], &BOTH))).await.unwrap();
                    let acceptor = Arc::clone(&acceptor);
                    waiting.spawn(async move { acceptor.accept(far).await.map(drop) });
                    clients.push(near);
                }
                waiting.join_all().await
            };
            let others = async {
                loop {
                    let started = Instant::now();
                    talk(&mut near, &mut far).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    slowest = slowest.max(started.elapsed());
                    rounds += 1;
                }
            };
            let started = Instant::now();
            let refused = tokio::select! {
                refused = many => refused,
                () = others => unreachable!(),
            };
            assert!(refused.iter().all(|refused| matches!(refused, Err(Refused::Tls(_) | Refused::Unavailable))), "{refused:?}");
            assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        }
        assert!(slowest < Duration::from_secs(1) && rounds > 50, "the runtime stood still for {slowest:?}, {rounds} rounds");
        assert!(!acceptor.is_available());
        oracle.stop(false);
        let until = Instant::now() + Duration::from_secs(30);
        while !acceptor.is_available() {
            assert!(Instant::now() < until, "it answers again, and nobody notices");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        shake(&acceptor, &trusting, "mx.example.org").await.unwrap();
    });
}

#[test]
fn slow_and_silent_clients_hold_no_thread() {
    run(async {
        let own = Own::new(&["mx.example.org"]);
        let der = own.der.clone();
        let oracle = Oracle::with(vec![own]);
        let (acceptor, trusting) = (oracle.acceptor(), client(&[&der], &BOTH));
        let hello = hello(&client(&[&der], &BOTH));
        let mut slow = Vec::new();
        let mut waiting = tokio::task::JoinSet::new();
        let acceptor = Arc::new(acceptor);
        for sent in [&b""[..], &hello[..1], &hello[..4], &hello[..200], &hello[..hello.len() - 1]].iter().cycle().take(200) {
            let (mut near, far) = tcp().await;
            near.write_all(sent).await.unwrap();
            let acceptor = Arc::clone(&acceptor);
            waiting.spawn(async move { acceptor.accept(far).await.map(drop) });
            slow.push(near);
        }
        for _ in 0..5 {
            let (mut near, mut far, _) = shake(&acceptor, &trusting, "mx.example.org").await.unwrap();
            talk(&mut near, &mut far).await;
        }
        assert!(waiting.try_join_next().is_none(), "they are waited for");
        drop(slow);
        while let Some(ended) = waiting.join_next().await {
            assert!(matches!(ended.unwrap(), Err(Refused::Closed)));
        }
    });
}

#[test]
fn what_is_no_handshake_is_refused_at_once() {
    run(async {
        let oracle = Oracle::with(vec![Own::new(&["mx.example.org"])]);
        let acceptor = oracle.acceptor();
        // A hello that never ends: record after record of the longest handshake message.
        let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
        endless.resize(5 + 0x4000, 0);
        let endless = endless.repeat(8);
        let inputs: [&[u8]; 5] =
            [b"EHLO x\r\n", b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\xff\xff", b"\x17\x03\x03\x00\x05hello", &endless];
        for input in inputs {
            let (mut near, far) = tcp().await;
            let (_, refused) =
                tokio::join!(near.write_all(input), tokio::time::timeout(Duration::from_secs(20), acceptor.accept(far)));
            let refused = refused.expect("at once").map(drop).unwrap_err();
            assert!(matches!(refused, Refused::Tls(_) | Refused::TooMuch), "{refused:?}: {}", input[..8].escape_ascii());
        }
        assert_eq!(oracle.signed.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn clients_are_known_by_their_certificates_if_they_are_asked() {
    run(async {
        let own = Own::new(&["mx.example.org"]);
        let der = own.der.clone();
        let oracle = Oracle::with(vec![own]);
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let person = |issuer: Option<&CertifiedIssuer<'static, KeyPair>>| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "Joe");
            params.subject_alt_names.push(SanType::Rfc822Name("joe@example.org".try_into().unwrap()));
            let made = match issuer {
                Some(issuer) => params.signed_by(&key, issuer).unwrap(),
                None => params.self_signed(&key).unwrap(),
            };
            (made.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        };
        let with = |(certificate, key): (CertificateDer<'static>, PrivateKeyDer<'static>), version| {
            Arc::new(builder(&[&der], &[version]).with_client_auth_cert(vec![certificate], key).unwrap())
        };
        let asked = ClientCertificates::asked(authority.pem().as_bytes()).unwrap();
        let acceptor = Acceptor::start_asking(Arc::clone(&oracle.run), "keys", asked).unwrap();
        for version in BOTH {
            let (known, other) = (person(Some(&authority)), person(None));
            let hash = |der: &[u8]| <[u8; 32]>::try_from(digest(&SHA256, der).as_ref()).unwrap();
            let (known_hash, other_hash) = (hash(&known.0), hash(&other.0));
            let known = with(known, version);
            // Also where the session is resumed, which shows no certificate again.
            for is_resumed in [false, true] {
                let (mut near, mut far, facts) = shake(&acceptor, &known, "mx.example.org").await.unwrap();
                talk(&mut near, &mut far).await;
                let who = certificate(&facts);
                assert_eq!((facts.is_resumed, who.fingerprints[0], who.verified), (is_resumed, known_hash, true), "{version:?}");
                assert_eq!(who.names, ["joe@example.org", "Joe"]);
            }
            let who = certificate(&shake(&acceptor, &with(other, version), "mx.example.org").await.unwrap().2);
            assert_eq!((who.fingerprints[0], who.verified, who.names.len()), (other_hash, false, 0));
            let nobody = shake(&acceptor, &client(&[&der], &[version]), "mx.example.org").await.unwrap();
            assert_eq!(nobody.2.client, None);
        }
        // By fingerprint alone; and who is not asked shows none.
        let asked = ClientCertificates::asked(b"").unwrap();
        let acceptor = Acceptor::start_asking(Arc::clone(&oracle.run), "keys", asked).unwrap();
        let known = || with(person(Some(&authority)), &rustls::version::TLS13);
        assert!(!certificate(&shake(&acceptor, &known(), "mx.example.org").await.unwrap().2).verified);
        assert_eq!(shake(&oracle.acceptor(), &known(), "mx.example.org").await.unwrap().2.client, None);
        assert!(ClientCertificates::asked(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    });
}

fn certificate(facts: &Facts) -> ClientCertificate {
    match &facts.client {
        Some(Shown::Certificate(certificate)) => certificate.clone(),
        other => panic!("{other:?}"),
    }
}

/// What a certificate cannot be used for is no reason to refuse its client: mail comes from hosts with all sorts of certificates.
#[test]
fn certificates_that_count_for_nothing_end_no_connection() {
    let dir = tempfile::tempdir().unwrap();
    let openssl = |args: &str| {
        let mut command = std::process::Command::new("openssl");
        let output = command.args(args.split(' ')).current_dir(&dir).output().unwrap();
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    };
    // Keys that are too short or of another curve, and the form of before extensions.
    for (name, key) in [
        ("short", "genrsa -out short.key 1024"),
        ("bitcoin", "ecparam -name secp256k1 -genkey -noout -out bitcoin.key"),
        ("version1", "ecparam -name prime256v1 -genkey -noout -out version1.key"),
    ] {
        openssl(key);
        openssl(&format!("req -new -key {name}.key -subj /CN={name} -out {name}.csr"));
        let form = if name == "version1" { "" } else { " -extfile ext" };
        std::fs::write(dir.path().join("ext"), "subjectAltName=DNS:joe.example.org\n").unwrap();
        openssl(&format!("x509 -req -in {name}.csr -signkey {name}.key -days 2{form} -out {name}.pem"));
    }
    run(async {
        let own = Own::new(&["mx.example.org"]);
        let der = own.der.clone();
        let oracle = Oracle::with(vec![own]);
        let acceptor = Acceptor::start_asking(Arc::clone(&oracle.run), "keys", ClientCertificates::asked(b"").unwrap()).unwrap();
        let timed = |from: i32, to: i32| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(["joe.example.org".to_owned()]).unwrap();
            (params.not_before, params.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
            let made = params.self_signed(&key).unwrap().der().clone();
            (made, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        };
        for version in BOTH {
            for (from, to) in [(2001, 2002), (4000, 4001)] {
                let (chain, key) = timed(from, to);
                let hash = <[u8; 32]>::try_from(digest(&SHA256, &chain).as_ref()).unwrap();
                let config = Arc::new(builder(&[&der], &[version]).with_client_auth_cert(vec![chain], key).unwrap());
                for is_resumed in [false, true] {
                    let (mut near, mut far, facts) = shake(&acceptor, &config, "mx.example.org").await.unwrap();
                    talk(&mut near, &mut far).await;
                    let expected = Shown::Useless { fingerprint: hash, why: "it has expired, or is not valid yet" };
                    assert_eq!((facts.is_resumed, facts.client), (is_resumed, Some(expected)), "{from}");
                }
            }
        }
        // rustls will not show them; OpenSSL does.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (name, version) in [("short", "-tls1_3"), ("short", "-tls1_2"), ("bitcoin", "-tls1_2"), ("version1", "-tls1_3")] {
            let mut client = std::process::Command::new("openssl")
                .args(["s_client", "-quiet", version, "-cipher", "DEFAULT:@SECLEVEL=0", "-connect"])
                .arg(listener.local_addr().unwrap().to_string())
                .args(["-sigalgs", "RSA-PSS+SHA256:RSA+SHA256:ECDSA+SHA256"])
                .arg("-cert")
                .arg(dir.path().join(format!("{name}.pem")))
                .arg("-key")
                .arg(dir.path().join(format!("{name}.key")))
                .stdin(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let accepted = acceptor.accept(listener.accept().await.unwrap().0).await;
            drop(client.stdin.take());
            let (_stream, facts) = accepted.unwrap_or_else(|error| panic!("{name} {version}: {error}"));
            assert!(matches!(facts.client, Some(Shown::Useless { .. })), "{name} {version}: {:?}", facts.client);
            let _ = client.kill();
            client.wait().unwrap();
        }
    });
}

/// Our own client shows a certificate whose key it has not.
#[test]
fn a_certificate_of_ours_is_shown_where_it_is_asked_for() {
    run(async {
        let (server, shown) = (Own::new(&["mx.example.org"]), Own::new(&["client.example.org"]));
        let (der, shown_der) = (server.der.clone(), shown.der.clone());
        let oracle = Oracle::with(vec![server, shown]);
        let mut roots = RootCertStore::empty();
        roots.add(der).unwrap();
        let asked = ClientCertificates::asked(shown_der_pem(&shown_der).as_bytes()).unwrap();
        let asking = Acceptor::start_asking(Arc::clone(&oracle.run), "keys", asked).unwrap();
        let names = ["mx.example.org".to_owned()];
        let client = || tls::client::Client::new(roots.clone()).unwrap().with_keys(Arc::clone(&oracle.run), "keys");
        let shake = async |acceptor: &Acceptor, client: &tls::client::Client, names: Option<&[String]>, certificate| {
            let (near, far) = tcp().await;
            let (shaken, accepted) =
                tokio::join!(client.connect(near, "mx.example.org", names, certificate), acceptor.accept(far));
            Ok::<_, String>((shaken?, accepted.map_err(|error| error.to_string())?))
        };
        let hash = <[u8; 32]>::try_from(digest(&SHA256, &shown_der).as_ref()).unwrap();
        let own = client();
        for names in [None, Some(&names[..])] {
            for is_resumed in [false, true] {
                let (mut near, (mut far, facts)) = shake(&asking, &own, names, Some("client.example.org")).await.unwrap();
                talk(&mut near, &mut far).await;
                assert_eq!((facts.is_resumed, certificate(&facts).fingerprints[0]), (is_resumed, hash), "{names:?}");
            }
            // Sessions without it are others.
            let (mut near, (mut far, facts)) = shake(&asking, &own, names, None).await.unwrap();
            talk(&mut near, &mut far).await;
            assert_eq!((facts.is_resumed, facts.client), (false, None));
        }
        // Who does not ask does not hear of it.
        let (_, (_, facts)) = shake(&oracle.acceptor(), &own, None, Some("client.example.org")).await.unwrap();
        assert_eq!(facts.client, None);
        // There must be one.
        let failed = shake(&asking, &own, None, Some("other.example.org")).await.err().unwrap();
        assert_eq!(failed, "there is no certificate other.example.org to be shown here");
        let keyless = tls::client::Client::new(roots.clone()).unwrap();
        assert!(shake(&asking, &keyless, None, Some("client.example.org")).await.is_err());
        // A key process that hangs delays its own connections, not the others.
        oracle.stop(true);
        let waiting = client();
        let (near, _far) = tcp().await;
        let mut hangs = std::pin::pin!(waiting.connect(near, "mx.example.org", None, Some("client.example.org")));
        // The runtime is free meanwhile.
        tokio::select! {
            biased;
            () = async { for _ in 0..100 { tokio::task::yield_now().await } } => {}
            _ = &mut hangs => panic!("nobody signs"),
        }
        assert_eq!(hangs.await.err().unwrap(), "qmail-keys does not answer");
        oracle.stop(false);
    });
}

fn shown_der_pem(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", wire::base64::encode(der))
}
