//! TLS and logins, against a server with rustls and certificates made here.

use std::path::PathBuf;
use std::sync::Arc;

use ipc::queue::FLAG_REQUIRETLS;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{HandshakeKind, NamedGroup, ServerConfig, ServerConnection};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, AsyncWriteExt};
use wire::{Login, Secret};

use super::*;
use ::tls;

const STARTTLS: &str = "250-mx|250-PIPELINING|250 STARTTLS|";
const INSIDE: &str = "250-mx|250 PIPELINING|";
const VERIFIED: &str = "Encrypted by TLSv1.3, certificate verified.\n";
const UNVERIFIED: &str = "Encrypted by TLSv1.3, certificate not verified.\n";

fn delivered(address: &str, line: &str) -> String {
    format!("K{address} accepted message.\nRemote host said: 250 taken\n{line}")
}

/// An authority that is trusted (its file) and one that is not.
struct Authority {
    dir: tempfile::TempDir,
    ours: CertifiedIssuer<'static, KeyPair>,
    other: CertifiedIssuer<'static, KeyPair>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Valid,
    Expired,
    NotYet,
    SelfSigned,
    OtherAuthority,
}

impl Authority {
    fn new() -> Self {
        let issuer = |name: &str| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let authority = Self { dir: tempfile::tempdir().unwrap(), ours: issuer("ours"), other: issuer("other") };
        std::fs::write(authority.file(), authority.ours.pem()).unwrap();
        authority
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// As control/tlscafile has it.
    fn control(&self) -> String {
        format!("{}\n", self.file().display())
    }

    fn server(&self, kind: Kind, names: &[&str]) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        match kind {
            Kind::Expired => params.not_after = rcgen::date_time_ymd(2001, 1, 1),
            Kind::NotYet => params.not_before = rcgen::date_time_ymd(4000, 1, 1),
            _ => {}
        }
        let key = KeyPair::generate().unwrap();
        let certificate = match kind {
            Kind::SelfSigned => params.self_signed(&key),
            Kind::OtherAuthority => params.signed_by(&key, &self.other),
            _ => params.signed_by(&key, &self.ours),
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let builder = ServerConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_no_client_auth().with_single_cert(vec![certificate.unwrap().der().clone()], key).unwrap())
    }
}

/// What becomes of a handshake.
#[derive(Clone)]
enum Handshake {
    Done(Arc<ServerConfig>),
    Closes,
    Hangs,
    /// Answers in the clear.
    Talks,
}

/// A server that takes everything. What it hears by TLS stands with a `!` before it.
#[derive(Clone)]
struct Server {
    implicit: bool,
    clear: &'static str,
    /// The answer to STARTTLS, and what follows without being asked for.
    starttls: &'static str,
    handshake: Handshake,
    inside: &'static str,
    auth: &'static str,
    /// Reads nothing after DATA.
    stalls: bool,
}

impl Server {
    fn new(config: Arc<ServerConfig>) -> Self {
        let handshake = Handshake::Done(config);
        Self { implicit: false, clear: STARTTLS, starttls: "220 go|", handshake, inside: INSIDE, auth: "235 ok|", stalls: false }
    }

    fn broken(handshake: Handshake) -> Self {
        Self { implicit: false, clear: STARTTLS, starttls: "220 go|", handshake, inside: INSIDE, auth: "235 ok|", stalls: false }
    }

    async fn start(self, address: &str) -> (SocketAddr, Heard) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Heard::default();
        let log = Rc::clone(&heard);
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                log.borrow_mut().push("(connect)".to_owned());
                let (server, log) = (self.clone(), Rc::clone(&log));
                spawn_local(async move { server.serve(stream, &log).await });
            }
        });
        (address, heard)
    }

    async fn serve(self, stream: TcpStream, log: &Heard) -> Option<()> {
        let stream = if self.implicit {
            stream
        } else {
            let mut stream = BufReader::new(stream);
            stream.write_all(b"220 hi\r\n").await.ok()?;
            self.talk(&mut stream, self.clear, "", log).await?;
            stream.into_inner()
        };
        let config = match self.handshake.clone() {
            Handshake::Done(config) => config,
            Handshake::Closes => return None,
            Handshake::Hangs => return std::future::pending().await,
            Handshake::Talks => {
                let mut stream = stream;
                stream.write_all(b"250 what\r\n").await.ok()?;
                return std::future::pending().await;
            }
        };
        let mut stream = tls::Stream::new(stream, ServerConnection::new(config).unwrap());
        if stream.handshake().await.is_err() {
            log.borrow_mut().push("(no handshake)".to_owned());
            return None;
        }
        {
            let tls = stream.tls();
            let group = tls.negotiated_key_exchange_group().map(|group| group.name());
            let kind = tls.handshake_kind();
            log.borrow_mut().push(format!("(TLS {group:?} {kind:?})"));
        }
        let mut stream = BufReader::new(stream);
        if self.implicit {
            stream.write_all(b"220 hi\r\n").await.ok()?;
            stream.flush().await.ok()?;
        }
        self.talk(&mut stream, self.inside, "!", log).await
    }

    /// Until STARTTLS is answered with 220.
    async fn talk<S>(&self, stream: &mut S, ehlo: &str, mark: &str, log: &Heard) -> Option<()>
    where
        S: AsyncBufRead + AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let line = text_line(stream).await?;
            log.borrow_mut().push(format!("{mark}{line}"));
            let reply = match line.split(' ').next()? {
                "EHLO" => ehlo,
                "STARTTLS" => self.starttls,
                "DATA" => {
                    say(stream, "354 go|").await?;
                    if self.stalls {
                        return std::future::pending().await;
                    }
                    let mut len = 0;
                    loop {
                        match text_line(stream).await?.as_str() {
                            "." => break,
                            line => len += line.len() + 2,
                        }
                    }
                    log.borrow_mut().push(format!("{mark}(body {len})"));
                    "250 taken|"
                }
                "AUTH" => {
                    for challenge in match line.as_str() {
                        "AUTH CRAM-MD5" => &["334 PDEuMkBteD4=|"][..],
                        "AUTH LOGIN" => &["334 VXNlcm5hbWU6|", "334 UGFzc3dvcmQ6|"],
                        _ => &[],
                    } {
                        say(stream, challenge).await?;
                        let answer = text_line(stream).await?;
                        log.borrow_mut().push(format!("{mark}{answer}"));
                    }
                    self.auth
                }
                "QUIT" => "221 bye|",
                _ => "250 ok|",
            };
            say(stream, reply).await?;
            if line == "STARTTLS" && reply.starts_with("220") {
                return Some(());
            }
        }
    }
}

async fn text_line<S: AsyncBufRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await.ok()?;
    (!line.is_empty()).then(|| String::from_utf8_lossy(&line).trim_end().to_owned())
}

async fn say<S: AsyncWrite + Unpin>(stream: &mut S, text: &str) -> Option<()> {
    stream.write_all(text.replace('|', "\r\n").as_bytes()).await.ok()?;
    stream.flush().await.ok()
}

/// b.example, whose one mail host is mx.b.example at `addresses`.
fn zone(addresses: &[&str]) -> Mx {
    let hosts = (10..).zip(addresses).map(|(preference, address)| Host {
        preference,
        name: "mx.b.example".into(),
        addresses: vec![address.parse().unwrap()],
        temporary: false,
    });
    Mx::from([("b.example", Resolved::Hosts { id: 0, hosts: hosts.collect(), implicit: false, ttl_s: 60 })])
}

fn count(heard: &Heard, what: &str) -> usize {
    heard.borrow().iter().filter(|line| line.starts_with(what)).count()
}

#[test]
fn each_certificate_under_each_policy() {
    run(async {
        let authority = Authority::new();
        let plain = delivered("127.0.0.1", "");
        let (verified, unverified) = (delivered("127.0.0.1", VERIFIED), delivered("127.0.0.1", UNVERIFIED));
        let failed = |why: &str| format!("ZConnected to 127.0.0.1 but TLS failed: its certificate {why}. (#4.7.5)\n");
        let (name, issuer) = (failed("is for another name"), failed("comes from an authority that is not trusted here"));
        let mx = &["mx.b.example"][..];
        for (kind, names, verify, strict, below) in [
            (Kind::Valid, mx, &verified, &name, &verified),
            (Kind::Valid, &["b.example"], &verified, &verified, &name),
            (Kind::Valid, &["*.b.example"], &verified, &name, &verified),
            (Kind::Valid, &["other.example", "x.mx.b.example"], &name, &name, &name),
            (Kind::Expired, mx, &failed("has expired"), &failed("has expired"), &failed("has expired")),
            (Kind::NotYet, mx, &failed("is not valid yet"), &failed("is not valid yet"), &failed("is not valid yet")),
            (Kind::OtherAuthority, mx, &issuer, &issuer, &issuer),
            (Kind::SelfSigned, mx, &issuer, &issuer, &issuer),
        ] {
            let (address, _) = Server::new(authority.server(kind, names)).start("127.0.0.1:0").await;
            for (policy, expected) in [
                ("none", &plain),
                ("may", &unverified),
                ("encrypt", &unverified),
                ("verify", verify),
                ("verify b.example", strict),
                ("verify .b.example", below),
                ("verify .elsewhere.example", if kind == Kind::Valid { &name } else { verify }),
            ] {
                let control = [("tlspolicy", &*format!("b.example:{policy}\n")), ("tlscafile", &authority.control())];
                let world = World::new(&control, zone(&["127.0.0.1"]), address.port()).await;
                assert_eq!(world.deliver(&["r@b.example"], mx_route()).await, [&**expected], "{kind:?} {names:?} {policy}");
            }
        }
    });
}

fn mx_route() -> Route {
    mx("b.example")
}

#[test]
fn opportunistic_by_default_with_the_hybrid_group_and_resumed() {
    run(async {
        let authority = Authority::new();
        let (address, heard) = Server::new(authority.server(Kind::SelfSigned, &["x"])).start("127.0.0.1:0").await;
        let world = World::new(&[], zone(&["127.0.0.1"]), address.port()).await;
        for _ in 0..2 {
            assert_eq!(world.deliver(&["r@b.example"], mx_route()).await, [delivered("127.0.0.1", UNVERIFIED)]);
            // Otherwise the next message would take the same connection.
            sleep(Duration::from_millis(2700)).await;
        }
        let handshakes: Vec<String> = heard.borrow().iter().filter(|line| line.starts_with("(TLS")).cloned().collect();
        let log = |kind| format!("(TLS {:?} {:?})", Some(NamedGroup::X25519MLKEM768), Some(kind));
        assert_eq!(handshakes, [log(HandshakeKind::Full), log(HandshakeKind::Resumed)]);
        let expected = ["EHLO me.example", "STARTTLS", "!EHLO me.example", "!MAIL FROM:<s@a.example>"];
        let kept = heard.borrow().iter().filter(|line| !line.starts_with('(')).take(4).cloned().collect::<Vec<_>>();
        assert_eq!(kept, expected);
        assert_eq!(heard.borrow().last().unwrap(), "!QUIT");
    });
}

/// Past-holes R2.
#[test]
fn answers_behind_the_220_send_the_mail_to_the_next_host() {
    run(async {
        let authority = Authority::new();
        let config = authority.server(Kind::Valid, &["mx.b.example"]);
        for policy in ["may", "encrypt", "verify"] {
            let hostile = Server { starttls: "220 go|250-mx|250 PIPELINING|", ..Server::new(Arc::clone(&config)) };
            let (address, heard) = hostile.start("127.0.0.41:0").await;
            let good = Server::new(Arc::clone(&config)).start(&format!("127.0.0.42:{}", address.port())).await.1;
            let control = [("tlspolicy", &*format!(":{policy}\n")), ("tlscafile", &authority.control())];
            let world = World::new(&control, zone(&["127.0.0.41", "127.0.0.42"]), address.port()).await;
            let line = if policy == "verify" { VERIFIED } else { UNVERIFIED };
            assert_eq!(world.deliver(&["r@b.example"], mx_route()).await, [delivered("127.0.0.42", line)]);
            assert_eq!((count(&heard, "(connect)"), count(&heard, "MAIL"), count(&good, "!MAIL")), (1, 0, 1));
            let world = World::new(&control, zone(&["127.0.0.41"]), address.port()).await;
            let text = "ZConnected to 127.0.0.41 but something was said in the clear behind STARTTLS. (#4.7.5)\n";
            assert_eq!(world.deliver(&["r@b.example"], mx_route()).await, [text]);
        }
    });
}

#[test]
fn a_server_whose_tls_does_not_work() {
    run(async {
        let authority = Authority::new();
        let config = authority.server(Kind::Valid, &["mx.b.example"]);
        let said = |what: &str| format!("ZConnected to 127.0.0.1 but {what}\n");
        for (server, text) in [
            (Server::broken(Handshake::Closes), said("TLS failed: ")),
            (Server::broken(Handshake::Talks), said("TLS failed: ")),
            (Server::broken(Handshake::Hangs), said("TLS failed: the handshake took too long. (#4.7.5)")),
            (
                Server { starttls: "454 no TLS now|", ..Server::new(config) },
                said("STARTTLS failed.\nRemote host said: 454 no TLS now"),
            ),
        ] {
            let (address, heard) = server.start("127.0.0.1:0").await;
            let world = World::new(&[], zone(&["127.0.0.1"]), address.port()).await;
            assert_eq!(world.deliver(&["r@b.example"], mx_route()).await, [delivered("127.0.0.1", "")]);
            assert_eq!((count(&heard, "(connect)"), count(&heard, "STARTTLS")), (2, 1), "once with, once without");
            world.courier.pool.close();
            assert_eq!(world.deliver(&["r@b.example"], mx_route()).await, [delivered("127.0.0.1", "")]);
            assert_eq!((count(&heard, "(connect)"), count(&heard, "STARTTLS")), (3, 1), "it is remembered");
            for policy in ["encrypt", "verify"] {
                let control = [("tlspolicy", &*format!("b.example:{policy}\n")), ("tlscafile", &authority.control())];
                let world = World::new(&control, zone(&["127.0.0.1"]), address.port()).await;
                let found = world.deliver(&["r@b.example"], mx_route()).await.remove(0);
                assert!(found.starts_with(text.trim_end()) && !found.contains("accepted"), "{found}");
            }
        }
        let (address, heard) = Server { clear: INSIDE, ..Server::broken(Handshake::Closes) }.start("127.0.0.1:0").await;
        let world = World::new(&[("tlspolicy", "b.example:encrypt\n")], zone(&["127.0.0.1"]), address.port()).await;
        let text = "ZConnected to 127.0.0.1 but it does not offer TLS, which is demanded for it. (#4.7.4)\n";
        assert_eq!(world.deliver(&["r@b.example"], mx_route()).await, [text]);
        assert_eq!(count(&heard, "MAIL"), 0);
    });
}

#[test]
fn tls_from_the_first_byte() {
    run(async {
        let authority = Authority::new();
        let config = authority.server(Kind::Valid, &["127.0.0.1"]);
        let (address, heard) = Server { implicit: true, ..Server::new(config) }.start("127.0.0.1:0").await;
        for (policy, line) in [("may implicit", UNVERIFIED), ("verify implicit", VERIFIED)] {
            let control = [("tlspolicy", &*format!("127.0.0.1:{policy}\n")), ("tlscafile", &authority.control())];
            let world = World::new(&control, Mx::new(), 25).await;
            assert_eq!(world.deliver(&["r@b.example"], relay(address)).await, [delivered("127.0.0.1", line)]);
        }
        assert_eq!(count(&heard, "!EHLO"), 2);
        assert!(heard.borrow().iter().all(|line| line.starts_with('!') || line.starts_with('(')));
        let (address, _) = Server { implicit: true, ..Server::broken(Handshake::Closes) }.start("127.0.0.1:0").await;
        let world = World::new(&[("tlspolicy", "127.0.0.1:may implicit\n")], Mx::new(), 25).await;
        let text = world.deliver(&["r@b.example"], relay(address)).await.remove(0);
        assert!(text.starts_with("ZConnected to 127.0.0.1 but TLS failed: "), "{text}");
    });
}

/// An idle connection serves a job on equal terms and no other.
#[test]
fn connections_are_kept_apart_by_their_terms() {
    run(async {
        let authority = Authority::new();
        let inside = "250-mx|250-PIPELINING|250 AUTH PLAIN|";
        let config = authority.server(Kind::Valid, &["127.0.0.1", "mx.b.example", "c.example"]);
        let (address, heard) = Server { inside, ..Server::new(config) }.start("127.0.0.1:0").await;
        let control = [("tlspolicy", "c.example:verify c.example\nd.example:none\n"), ("tlscafile", &*authority.control())];
        let mut mxs = zone(&["127.0.0.1"]);
        for domain in ["c.example", "d.example", "e.example"] {
            mxs.insert(domain, mxs["b.example"].clone());
        }
        let world = World::new(&control, mxs, address.port()).await;
        let as_user = |user: &str, password: &str| {
            let password = Secret::new(password.as_bytes().to_vec());
            let login = Some(Login { user: user.as_bytes().to_vec(), password });
            Route::Relay { host: "127.0.0.1".into(), port: address.port(), login }
        };
        let mut connections = 0;
        // Each twice: the second message takes the connection of the first.
        for (route, is_new) in [
            (mx("b.example"), true),
            (mx("e.example"), false),
            (mx("c.example"), true),
            (mx("d.example"), true),
            (relay(address), false),
            (as_user("joe", "pw"), true),
            (as_user("joe", "other"), true),
            (as_user("ann", "pw"), true),
        ] {
            for new in [is_new, false] {
                let text = world.deliver(&["r@b.example"], route.clone()).await.remove(0);
                assert!(text.starts_with("K127.0.0.1 accepted"), "{text}");
                connections += usize::from(new);
                assert_eq!(count(&heard, "(connect)"), connections, "{route:?}");
            }
        }
        assert_eq!(count(&heard, "!AUTH"), 3);
        assert!(!format!("{:?}", world.courier.pool).contains("other"));
    });
}

#[test]
fn each_mechanism_by_tls_and_what_a_refusal_says() {
    run(async {
        let authority = Authority::new();
        let config = authority.server(Kind::Valid, &["relay.b.example"]);
        let login = || Login { user: b"joe".to_vec(), password: Secret::new(b"xyzzy".to_vec()) };
        let mxs =
            || Mx::from(["relay.b.example", "Relay.b.example"].map(|name| (name, zone(&["127.0.0.1"])["b.example"].clone())));
        for (inside, lines) in [
            ("250-mx|250 AUTH PLAIN LOGIN|", &["!AUTH PLAIN AGpvZQB4eXp6eQ=="][..]),
            ("250-mx|250 AUTH LOGIN|", &["!AUTH LOGIN", "!am9l", "!eHl6enk="]),
            ("250-mx|250 AUTH PLAIN CRAM-MD5|", &["!AUTH CRAM-MD5", "!am9lIDRmMzc1MmJjNWVhM2EzNTkxMzZiZjU2NmZkNDk3YTdm"]),
        ] {
            let clear = "250-mx|250-AUTH PLAIN|250 STARTTLS|";
            let (address, heard) = Server { clear, inside, ..Server::new(Arc::clone(&config)) }.start("127.0.0.1:0").await;
            let route = Route::Relay { host: "Relay.b.example".into(), port: address.port(), login: Some(login()) };
            let control = [("tlspolicy", "relay.b.example:verify\n"), ("tlscafile", &*authority.control())];
            let world = World::new(&control, mxs(), 25).await;
            assert_eq!(world.deliver(&["r@b.example"], route).await, [delivered("127.0.0.1", VERIFIED)]);
            let heard = heard.borrow();
            let at = heard.iter().position(|line| line.starts_with("!AUTH")).unwrap();
            assert_eq!(&heard[at..at + lines.len()], lines);
            assert_eq!(heard[at + lines.len()], "!MAIL FROM:<s@a.example>");
            assert!(!heard.iter().any(|line| line.starts_with("AUTH")), "never before TLS: {heard:?}");
        }
        let refusing = Server { inside: "250-mx|250 AUTH PLAIN|", auth: "535 5.7.8 no xyzzy|", ..Server::new(config) };
        let (address, heard) = refusing.start("127.0.0.1:0").await;
        let route = Route::Relay { host: "relay.b.example".into(), port: address.port(), login: Some(login()) };
        let world = World::new(&[], mxs(), 25).await;
        let text = "ZConnected to 127.0.0.1 but it refused the login, and repeated the password. (#4.7.8)\n";
        assert_eq!(world.deliver(&["r@b.example"], route).await, [text]);
        assert_eq!(count(&heard, "!MAIL"), 0);
    });
}

#[test]
fn requiretls_and_tls_required_no() {
    run(async {
        let authority = Authority::new();
        let inside = "250-mx|250 REQUIRETLS|";
        let good = Server { inside, ..Server::new(authority.server(Kind::Valid, &["b.example"])) };
        let (address, heard) = good.start("127.0.0.51:0").await;
        let port = address.port();
        let control = [("tlspolicy", "b.example:none\n"), ("tlscafile", &*authority.control())];
        let world = World::new(&control, zone(&["127.0.0.51"]), port).await;
        let required = async |world: &World, body: &[u8]| {
            world.send_flagged("s@a.example", &["r@b.example"], mx_route(), FLAG_REQUIRETLS, body).await;
            world.result().await.1.remove(0)
        };
        let waived = b"TLS-Required: No\nSubject: x\n\nhello\n";
        assert_eq!(required(&world, LETTER).await, delivered("127.0.0.51", VERIFIED), "more than the policy demands");
        assert_eq!(required(&world, waived).await, delivered("127.0.0.51", VERIFIED), "it wins over the header");
        assert_eq!(count(&heard, "!MAIL FROM:<s@a.example> REQUIRETLS"), 2);
        // A host whose name the DNS alone connects with the domain, one that lacks REQUIRETLS, and both at once.
        let named = Server { inside, ..Server::new(authority.server(Kind::Valid, &["mx.provider.example"])) };
        named.start(&format!("127.0.0.52:{port}")).await;
        let lacks = Server::new(authority.server(Kind::Valid, &["b.example"]));
        lacks.start(&format!("127.0.0.53:{port}")).await;
        let name = "ZConnected to 127.0.0.52 but TLS failed: its certificate is for another name. (#4.7.5)\n";
        for (hosts, expected) in [
            (&["127.0.0.52"][..], name.to_owned()),
            (&["127.0.0.53"], "D127.0.0.53 does not support REQUIRETLS, which this message needs. (#5.7.30)\n".to_owned()),
            (&["127.0.0.53", "127.0.0.52"], name.to_owned()),
            (&["127.0.0.53", "127.0.0.51"], delivered("127.0.0.51", VERIFIED)),
        ] {
            let world = World::new(&control, zone(hosts), port).await;
            assert_eq!(required(&world, LETTER).await, expected, "{hosts:?}");
        }
        // RFC 8689 §5: the sender would rather have it read than kept secret.
        let (address, _) = Server::new(authority.server(Kind::SelfSigned, &["x"])).start("127.0.0.1:0").await;
        let control = [("tlspolicy", "b.example:verify\n"), ("tlscafile", &*authority.control())];
        let world = World::new(&control, zone(&["127.0.0.1"]), address.port()).await;
        world.send("s@a.example", &["r@b.example"], mx_route(), waived).await;
        assert_eq!(world.result().await.1, [delivered("127.0.0.1", UNVERIFIED)]);
        assert!(world.deliver(&["r@b.example"], mx_route()).await[0].starts_with("ZConnected to 127.0.0.1 but TLS failed"));
    });
}

#[test]
fn large_bodies_and_many_at_once() {
    run(async {
        let authority = Authority::new();
        let (address, heard) = Server::new(authority.server(Kind::SelfSigned, &["x"])).start("127.0.0.1:0").await;
        let world = World::new(&[("timeoutremote", "30\n")], zone(&["127.0.0.1"]), address.port()).await;
        let line = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n";
        let large = [&b"Subject: big\n\n"[..], &line.repeat(60_000)].concat();
        let count_of = 30;
        for number in 0..count_of {
            let body = if number == 7 { large.as_slice() } else { LETTER };
            world.send("s@a.example", &["r@b.example"], mx_route(), body).await;
        }
        for _ in 0..count_of {
            assert_eq!(world.result().await.1, [delivered("127.0.0.1", UNVERIFIED)]);
        }
        assert_eq!(count(&heard, &format!("!(body {})", 14 + 2 + 60_000 * (line.len() + 1))), 1);
        assert_eq!(count(&heard, "!(body"), count_of);
    });
}

/// Neither the socket's room nor that of TLS is without end, and waiting for it is no work.
#[test]
fn a_server_that_reads_nothing_holds_up_nobody() {
    run(async {
        let authority = Authority::new();
        let server = Server::new(authority.server(Kind::SelfSigned, &["x"]));
        let (stalled, _) = Server { stalls: true, ..server.clone() }.start("127.0.0.1:0").await;
        let (good, _) = server.start("127.0.0.1:0").await;
        let world = World::new(&[], Mx::new(), 25).await;
        for len in [70_000, 8_000_000, 8_030_000] {
            world.send("s@a.example", &["r@b.example"], relay(stalled), &vec![b'x'; len]).await;
        }
        sleep(Duration::from_millis(300)).await;
        let start = Instant::now();
        let number = world.send("s@a.example", &["r@b.example"], relay(good), LETTER).await;
        assert_eq!(world.result().await, (number, vec![delivered("127.0.0.1", UNVERIFIED)]));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        for _ in 0..3 {
            assert!(world.result().await.1[0].starts_with("ZConnected to 127.0.0.1 but connection died."));
        }
    });
}
