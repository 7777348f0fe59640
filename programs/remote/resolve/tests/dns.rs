//! qmail-resolve against name servers that answer well, badly, or not at all.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, MX, NS, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use ipc::resolve::{Answer, Request};
use ipc_async::{Client, Listener};
use qmail_resolve::dns::{Dns, Failure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use wire::Domain;

/// What the server does when it is asked for a name and type.
#[derive(Clone)]
enum Does {
    Records(Vec<RData>),
    /// Any records, whatever was asked.
    Raw(Vec<(&'static str, RData)>),
    Code(ResponseCode),
    NoData,
    Referral,
    Silence,
    /// These bytes after the id of the question.
    Garbage(Vec<u8>),
    /// Truncated by UDP, whole by TCP.
    OnlyTcp(Vec<RData>),
    Truncated,
}

type Zone = HashMap<(&'static str, RecordType), Does>;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn mx(preference: u16, host: &str) -> RData {
    RData::MX(MX::new(preference, name(host)))
}

fn a(text: &str) -> RData {
    match text.parse().unwrap() {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn respond(zone: &Zone, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?.clone();
    let asked = query.name().to_ascii().to_ascii_lowercase();
    let does = zone.iter().find(|((n, t), _)| *n == asked && *t == query.query_type()).map(|(_, does)| does.clone());
    let mut response = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    response.metadata.recursion_available = true;
    response.metadata.recursion_desired = true;
    response.add_query(query.clone());
    let soa = || Record::from_rdata(name("example."), 60, RData::SOA(SOA::new(name("ns."), name("h."), 1, 2, 3, 4, 60)));
    let own = |data: RData| Record::from_rdata(query.name().clone(), 300, data);
    match does {
        None => {
            let exists = zone.keys().any(|(n, _)| *n == asked);
            response.metadata.response_code = if exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
            response.authorities.push(soa());
        }
        Some(Does::NoData) => response.authorities.push(soa()),
        Some(Does::Code(code)) => response.metadata.response_code = code,
        Some(Does::Records(list)) => response.answers.extend(list.into_iter().map(own)),
        Some(Does::Raw(list)) => {
            response.answers.extend(list.into_iter().map(|(n, data)| Record::from_rdata(name(n), 300, data)));
        }
        Some(Does::Referral) => {
            response.authorities.push(Record::from_rdata(name("example."), 60, RData::NS(NS(name("elsewhere.")))));
        }
        Some(Does::OnlyTcp(list)) if tcp => response.answers.extend(list.into_iter().map(own)),
        Some(Does::OnlyTcp(_) | Does::Truncated) => response.metadata.truncation = true,
        Some(Does::Silence) => return None,
        Some(Does::Garbage(bytes)) => return Some([&question.metadata.id.to_be_bytes()[..], &bytes].concat()),
    }
    response.to_vec().ok()
}

async fn serve_dns(zone: Zone) -> SocketAddr {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    let zone = Rc::new(zone);
    let by_udp = Rc::clone(&zone);
    tokio::task::spawn_local(async move {
        let mut buf = [0; 4096];
        while let Ok((len, from)) = udp.recv_from(&mut buf).await {
            if let Some(response) = respond(&by_udp, &buf[..len], false) {
                let _ = udp.send_to(&response, from).await;
            }
        }
    });
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let zone = Rc::clone(&zone);
            tokio::task::spawn_local(async move {
                while let Ok(len) = stream.read_u16().await {
                    let mut question = vec![0; usize::from(len)];
                    stream.read_exact(&mut question).await.unwrap();
                    if let Some(response) = respond(&zone, &question, true) {
                        let _ = stream.write_u16(u16::try_from(response.len()).unwrap()).await;
                        let _ = stream.write_all(&response).await;
                    }
                }
            });
        }
    });
    address
}

/// Runs the service on a socket of its own with this zone behind it, and gives the test a client.
fn with_service<F: Future<Output = ()>>(zone: Zone, test: impl FnOnce(Client<Answer>, SocketAddr, Rc<OwnedFd>) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let run: Rc<OwnedFd> = Rc::new(std::fs::File::open(dir.path()).unwrap().into());
    ipc_async::service::run(async move {
        let server = serve_dns(zone).await;
        let listener = Listener::new(sys::seqpacket::listen(run.as_fd(), "resolve.sock")?)?;
        let dns = Rc::new(Dns::new(&[server]).unwrap());
        tokio::task::spawn_local(async move { qmail_resolve::service::serve(&listener, &dns, |_| true).await });
        let client = Client::new(Rc::clone(&run), "resolve.sock", Duration::from_secs(35));
        test(client, server, run).await;
        Ok(())
    })
    .unwrap();
}

/// An answer in short: `pref host [addresses]` for each host, or a word.
fn short(answer: &Answer) -> String {
    match answer {
        Answer::Hosts { hosts, implicit, .. } => {
            let one = |host: &ipc::resolve::Host| {
                let addresses: Vec<String> = host.addresses.iter().map(ToString::to_string).collect();
                let later = if host.temporary { "?" } else { "" };
                format!("{} {}[{}]{later}", host.preference, String::from_utf8_lossy(&host.name), addresses.join(" "))
            };
            let list: Vec<String> = hosts.iter().map(one).collect();
            format!("{}{}", if *implicit { "implicit " } else { "" }, list.join(", "))
        }
        Answer::NullMx { .. } => "null".to_owned(),
        Answer::NoHost { name_exists, .. } => format!("none {name_exists}"),
        Answer::Temporary { .. } => "temporary".to_owned(),
        Answer::Site { key, .. } => format!("site {}", String::from_utf8_lossy(key)),
    }
}

async fn ask_mx(client: &Client<Answer>, domain: &str) -> String {
    let domain = Domain::new(domain.as_bytes()).unwrap();
    short(&client.ask(|id| Request::Mx { id, domain }).await.unwrap().0)
}

fn zone() -> Zone {
    use RecordType as T;
    let many = |n: u16| (0..n).map(|i| mx(i, &format!("h{i}.big.example."))).collect::<Vec<_>>();
    let mut zone = Zone::from([
        (("good.example.", T::MX), Does::Records(vec![mx(20, "b.example."), mx(10, "A.example."), mx(10, "a.example.")])),
        (("a.example.", T::A), Does::Records(vec![a("192.0.2.1"), a("192.0.2.2")])),
        (("a.example.", T::AAAA), Does::Records(vec![a("2001:db8::1")])),
        (("b.example.", T::A), Does::Records(vec![a("192.0.2.3")])),
        (("plain.example.", T::A), Does::Records(vec![a("192.0.2.9")])),
        (("bare.example.", T::MX), Does::Code(ResponseCode::NoError)),
        (("bare.example.", T::AAAA), Does::Code(ResponseCode::NoError)),
        (("bare.example.", T::A), Does::Records(vec![a("192.0.2.9")])),
        (("barren.example.", T::MX), Does::Code(ResponseCode::NoError)),
        (("barren.example.", T::AAAA), Does::Code(ResponseCode::NoError)),
        (("barren.example.", T::A), Does::Code(ResponseCode::NoError)),
        (("null.example.", T::MX), Does::Records(vec![mx(0, ".")])),
        (("nodata.example.", T::TXT), Does::NoData),
        (("servfail.example.", T::MX), Does::Code(ResponseCode::ServFail)),
        (("refused.example.", T::MX), Does::Code(ResponseCode::Refused)),
        (("notimp.example.", T::MX), Does::Code(ResponseCode::NotImp)),
        (("referral.example.", T::MX), Does::Referral),
        (("half.example.", T::MX), Does::Records(vec![mx(1, "dead.example."), mx(2, "b.example."), mx(3, "nowhere.example.")])),
        (("dead.example.", T::A), Does::Code(ResponseCode::ServFail)),
        (("dead.example.", T::AAAA), Does::Code(ResponseCode::ServFail)),
        (("alias.example.", T::MX), Does::Raw(vec![("alias.example.", RData::CNAME(CNAME(name("good.example."))))])),
        (("other.example.", T::MX), Does::Raw(vec![("unasked.example.", mx(1, "a.example."))])),
        (("wrongtype.example.", T::MX), Does::Raw(vec![("wrongtype.example.", a("192.0.2.66"))])),
        (("empty.example.", T::MX), Does::Garbage(vec![])),
        (("junk.example.", T::MX), Does::Garbage(vec![0xff; 500])),
        (
            ("pointer.example.", T::MX),
            Does::Garbage(
                b"\x81\x80\0\x01\0\x01\0\0\0\0\xc0\x0c\0\x0f\0\x01\xc0\x0c\0\x0f\0\x01\0\0\0\x10\0\x04\0\x01\xc0\x0c".to_vec(),
            ),
        ),
        (("tcp.example.", T::MX), Does::OnlyTcp(vec![mx(5, "b.example.")])),
        (("truncated.example.", T::MX), Does::Truncated),
        (("big.example.", T::MX), Does::OnlyTcp(many(1500))),
        (("wide.example.", T::MX), Does::Records(vec![mx(1, "wide.example.")])),
        (("wide.example.", T::A), Does::OnlyTcp((0..200).map(|i| a(&format!("10.0.0.{i}"))).collect())),
        (("wide.example.", T::AAAA), Does::OnlyTcp((0..200).map(|i| a(&format!("2001:db8::{i:x}"))).collect())),
        (("xn--bcher-kva.example.", T::MX), Does::Records(vec![mx(5, "b.example.")])),
        (
            ("strange.example.", T::MX),
            Does::Records(vec![RData::MX(MX::new(1, Name::from_labels([&b"a b\n\0"[..], b"example"]).unwrap()))]),
        ),
        (("mixednull.example.", T::MX), Does::Records(vec![mx(0, "."), mx(10, "b.example.")])),
    ]);
    for (from, to) in
        [("loop.example.", "loop.example."), ("loop1.example.", "loop2.example."), ("loop2.example.", "loop1.example.")]
    {
        for kind in [T::MX, T::A, T::AAAA] {
            zone.insert((from, kind), Does::Raw(vec![(from, RData::CNAME(CNAME(name(to))))]));
        }
    }
    zone
}

#[test]
fn table_of_domains() {
    with_service(zone(), |client, _, _| async move {
        for (domain, expected) in [
            ("good.example", "10 a.example[2001:db8::1 192.0.2.1 192.0.2.2], 20 b.example[192.0.2.3]"),
            ("GOOD.example.", "10 a.example[2001:db8::1 192.0.2.1 192.0.2.2], 20 b.example[192.0.2.3]"),
            ("plain.example", "implicit 0 plain.example[192.0.2.9]"),
            ("bare.example", "implicit 0 bare.example[192.0.2.9]"),
            ("barren.example", "temporary"),
            ("null.example", "null"),
            ("mixednull.example", "10 b.example[192.0.2.3]"),
            ("nodata.example", "none true"),
            ("nxdomain.example", "none false"),
            ("servfail.example", "temporary"),
            ("refused.example", "temporary"),
            ("notimp.example", "temporary"),
            ("referral.example", "temporary"),
            ("half.example", "1 dead.example[]?, 2 b.example[192.0.2.3], 3 nowhere.example[]"),
            ("alias.example", "10 a.example[2001:db8::1 192.0.2.1 192.0.2.2], 20 b.example[192.0.2.3]"),
            ("tcp.example", "5 b.example[192.0.2.3]"),
            ("bücher.example", "5 b.example[192.0.2.3]"),
            ("strange.example", "temporary"),
            ("[192.0.2.7]", "implicit 0 [192.0.2.7][192.0.2.7]"),
            ("[ipv6:2001:db8::7]", "implicit 0 [ipv6:2001:db8::7][2001:db8::7]"),
            ("192.0.2.7", "implicit 0 192.0.2.7[192.0.2.7]"),
            ("[what]", "none false"),
        ] {
            assert_eq!(ask_mx(&client, domain).await, expected, "{domain}");
        }
        let label = "x".repeat(64);
        assert_eq!(ask_mx(&client, &format!("{label}.example")).await, "none false");
    });
}

#[test]
fn hostile_answers_are_temporary_or_bounded_and_the_service_lives() {
    with_service(zone(), |client, _, _| async move {
        let start = Instant::now();
        let asked = [
            "loop.example",
            "loop1.example",
            "other.example",
            "wrongtype.example",
            "empty.example",
            "junk.example",
            "pointer.example",
            "truncated.example",
        ];
        let answers: Vec<_> = asked
            .map(|domain| {
                let client = client.clone();
                tokio::task::spawn_local(async move { (domain, ask_mx(&client, domain).await) })
            })
            .into_iter()
            .collect();
        for answer in answers {
            let (domain, answer) = answer.await.unwrap();
            assert_eq!(answer, "temporary", "{domain}");
        }
        assert!(start.elapsed() < Duration::from_secs(30));
        let big = client.ask(|id| Request::Mx { id, domain: Domain::new(b"big.example").unwrap() }).await.unwrap().0;
        let Answer::Hosts { hosts, .. } = big else { panic!("{big:?}") };
        assert_eq!(hosts.len(), ipc::resolve::HOSTS_MAX);
        assert!(hosts.iter().all(|host| host.addresses.is_empty() && !host.temporary));
        let wide = client.ask(|id| Request::Addresses { id, host: "wide.example".into() }).await.unwrap().0;
        let Answer::Hosts { hosts, .. } = wide else { panic!("{wide:?}") };
        let v6 = hosts[0].addresses.iter().filter(|address| address.is_ipv6()).count();
        assert_eq!((hosts[0].addresses.len(), v6), (ipc::resolve::ADDRESSES_MAX, ipc::resolve::ADDRESSES_MAX / 2));
        assert_eq!(ask_mx(&client, "plain.example").await, "implicit 0 plain.example[192.0.2.9]");
    });
}

#[test]
fn silence_is_temporary_in_time_and_holds_up_nobody() {
    let silent = Zone::from([
        (("silent.example.", RecordType::MX), Does::Silence),
        (("plain.example.", RecordType::A), Does::Records(vec![a("192.0.2.9")])),
    ]);
    with_service(silent, |client, _, _| async move {
        let start = Instant::now();
        let waiting = {
            let client = client.clone();
            tokio::task::spawn_local(async move { ask_mx(&client, "silent.example").await })
        };
        tokio::task::yield_now().await;
        assert_eq!(ask_mx(&client, "plain.example").await, "implicit 0 plain.example[192.0.2.9]");
        assert!(start.elapsed() < Duration::from_secs(3));
        assert_eq!(waiting.await.unwrap(), "temporary");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    });
}

#[test]
fn a_server_that_is_not_there_is_passed_over_at_once() {
    let zone = Zone::from([(("plain.example.", RecordType::A), Does::Records(vec![a("192.0.2.9")]))]);
    with_service(zone, |_, good, _| async move {
        let closed = {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.local_addr().unwrap()
        };
        let start = Instant::now();
        let found = Dns::new(&[closed]).unwrap().addresses("plain.example").await.records;
        assert!(matches!(&found, Err(Failure::Temporary(_))), "{found:?}");
        let both = Dns::new(&[closed, good]).unwrap();
        for _ in 0..5 {
            assert_eq!(both.addresses("plain.example").await.records, Ok(vec!["192.0.2.9".parse().unwrap()]));
        }
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    });
}

#[test]
fn sites_and_relays() {
    with_service(zone(), |client, _, _| async move {
        let site = |domain: &'static str| {
            let client = client.clone();
            async move {
                short(&client.ask(|id| Request::Site { id, domain: Domain::new(domain.as_bytes()).unwrap() }).await.unwrap().0)
            }
        };
        for (domain, expected) in [
            ("good.example", "site a.example"),
            ("alias.example", "site a.example"),
            ("tcp.example", "site b.example"),
            ("mixednull.example", "site b.example"),
            ("plain.example", "site plain.example"),
            ("null.example", "null"),
            ("nxdomain.example", "none false"),
            ("servfail.example", "temporary"),
            ("[192.0.2.1]", "site [192.0.2.1]"),
        ] {
            assert_eq!(site(domain).await, expected, "{domain}");
        }
        for (host, expected) in [
            ("good.example", "none true"),
            ("a.example", "implicit 0 a.example[2001:db8::1 192.0.2.1 192.0.2.2]"),
            ("[::1]", "implicit 0 [::1][::1]"),
            ("127.0.0.1", "implicit 0 127.0.0.1[127.0.0.1]"),
            ("a b", "none false"),
            ("", "none false"),
        ] {
            let answer = client.ask(|id| Request::Addresses { id, host: host.into() }).await.unwrap().0;
            assert_eq!(short(&answer), expected, "{host}");
        }
    });
}

#[test]
fn malformed_requests_end_their_connection_only() {
    with_service(zone(), |client, _, run| async move {
        for bytes in [&b"\x00"[..], b"\x01\x09", &[0xff; 2000]] {
            let packets = ipc_async::Packets::connect(run.as_fd(), "resolve.sock").await.unwrap();
            packets.send(bytes).await.unwrap();
            assert!(matches!(packets.recv().await, Ok(None) | Err(_)), "{}", bytes.escape_ascii());
        }
        assert_eq!(ask_mx(&client, "null.example").await, "null");
    });
}
