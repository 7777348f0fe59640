//! qmail-remote against scripted SMTP servers on loopback, with a resolver of our own behind resolve.sock.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod qmtp;
mod tls;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipc::Message;
use ipc::job::{Answer, Job, Route};
use ipc::options::{Options, RecipientOptions};
use ipc::resolve::{Answer as Resolved, Host, Request};
use ipc_async::{Listener, Packets};
use qmail_remote::job::Courier;
use qmail_remote::service::{Jobs, courier, serve, trusting};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use wire::{Address, Domain};

const LETTER: &[u8] = b"Subject: x\n\nhello\n.dot\n";

/// One step of a scripted server.
#[derive(Clone, Copy)]
enum Step {
    Say(&'static str),
    /// The next line must start so.
    Hear(&'static str),
    /// Reads up to the lone dot.
    Body,
    Close,
    /// Neither reads nor writes any more.
    Hang,
}
use Step::{Body, Close, Hang, Hear, Say};

/// What all connections of a server heard, line by line, bodies as one entry.
type Heard = Rc<RefCell<Vec<String>>>;

/// A server whose n-th connection follows the n-th script; further ones follow the last.
async fn scripted(address: &str, scripts: Vec<Vec<Step>>) -> (SocketAddr, Heard) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Heard::default();
    let log = Rc::clone(&heard);
    spawn_local(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let script = scripts[number.min(scripts.len() - 1)].clone();
            let log = Rc::clone(&log);
            log.borrow_mut().push("(connect)".to_owned());
            spawn_local(async move { follow(stream, &script, &log).await });
        }
    });
    (address, heard)
}

async fn follow(stream: TcpStream, script: &[Step], log: &Heard) -> Option<()> {
    let mut stream = BufReader::new(stream);
    for step in script {
        match step {
            Say(text) => stream.get_mut().write_all(text.replace('|', "\r\n").as_bytes()).await.ok()?,
            Hear(start) => {
                let line = read_line(&mut stream).await?;
                assert!(line.starts_with(start.as_bytes()), "wanted {start}, heard {}", line.escape_ascii());
                log.borrow_mut().push(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            Body => {
                let body = read_body(&mut stream).await?;
                log.borrow_mut().push(String::from_utf8_lossy(&body).into_owned());
            }
            Close => return None,
            Hang => std::future::pending().await,
        }
    }
    while let Some(line) = read_line(&mut stream).await {
        log.borrow_mut().push(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
    Some(())
}

async fn read_line(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await.ok()?;
    (!line.is_empty()).then_some(line)
}

async fn read_body(stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream).await?;
        assert!(line.ends_with(b"\r\n") && !line[..line.len() - 2].contains(&b'\r'), "{}", line.escape_ascii());
        if line == b".\r\n" {
            return Some(body);
        }
        body.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
    }
}

/// A server that takes everything, at most `recipients_max` a transaction.
async fn willing(address: &str, ehlo: &'static str, recipients_max: usize, delay: Duration) -> (SocketAddr, Heard) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Heard::default();
    let log = Rc::clone(&heard);
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            log.borrow_mut().push("(connect)".to_owned());
            let log = Rc::clone(&log);
            spawn_local(async move { obey(stream, ehlo, recipients_max, delay, &log).await });
        }
    });
    (address, heard)
}

async fn obey(stream: TcpStream, ehlo: &str, recipients_max: usize, delay: Duration, log: &Heard) -> Option<()> {
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(b"220 hi\r\n").await.ok()?;
    let mut recipients = 0;
    while let Some(line) = read_line(&mut stream).await {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        log.borrow_mut().push(line.clone());
        let reply = match line.get(..4)? {
            "EHLO" => ehlo,
            "RCPT" if recipients == recipients_max => "452 4.5.3 too many|",
            "RCPT" => {
                recipients += 1;
                "250 ok|"
            }
            "MAIL" => {
                recipients = 0;
                "250 ok|"
            }
            "DATA" => {
                stream.get_mut().write_all(b"354 go\r\n").await.ok()?;
                let body = read_body(&mut stream).await?;
                log.borrow_mut().push(format!("(body {})", body.len()));
                sleep(delay).await;
                "250 taken|"
            }
            "QUIT" => "221 bye|",
            _ => "250 ok|",
        };
        stream.get_mut().write_all(reply.replace('|', "\r\n").as_bytes()).await.ok()?;
    }
    Some(())
}

/// The service under test, and qmail-send's end of it.
struct World {
    courier: Rc<Courier>,
    jobs: Jobs,
    run: OwnedFd,
    connection: Packets,
    number: Cell<u64>,
    _dir: tempfile::TempDir,
}

type Mx = HashMap<&'static str, Resolved>;

impl World {
    /// `control` are control files; `mx` is what the resolver knows, `port` where mail hosts listen.
    async fn new(control: &[(&str, &str)], mx: Mx, port: u16) -> Self {
        Self::switching(control, mx, port, 9).await
    }

    /// `qmtp_port` is where mail hosts take QMTP.
    async fn switching(control: &[(&str, &str)], mx: Mx, port: u16, qmtp_port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = control::Root::new(dir.path()).unwrap();
        for path in [root.control(), root.run().join("roles")] {
            std::fs::create_dir_all(path).unwrap();
        }
        for (name, text) in [("me", "me.example\n"), ("timeoutremote", "2\n"), ("timeoutconnect", "1\n")].iter().chain(control) {
            std::fs::write(root.control_file(name), text).unwrap();
        }
        let run: OwnedFd = std::fs::File::open(root.run()).unwrap().into();
        let resolve = Listener::new(sys::seqpacket::listen(run.as_fd(), "roles/resolve.sock").unwrap()).unwrap();
        spawn_local(resolver(resolve, mx));
        let remote = Listener::new(sys::seqpacket::listen(run.as_fd(), "roles/remote.sock").unwrap()).unwrap();
        let own = vec!["127.0.0.77".parse().unwrap()];
        let control = control::Remote::read(&root).unwrap();
        let tls = trusting(&control).unwrap();
        let mut courier = courier(control, tls, own, run.try_clone().unwrap());
        (courier.mx_port, courier.qmtp_port) = (port, qmtp_port);
        let (courier, jobs) = (Rc::new(courier), Jobs::default());
        let (serving, counted) = (Rc::clone(&courier), jobs.clone());
        spawn_local(async move { serve(&remote, &serving, &counted, |_| true).await });
        let connection = Packets::connect(run.as_fd(), "roles/remote.sock").await.unwrap();
        Self { courier, jobs, run, connection, number: Cell::new(1), _dir: dir }
    }

    async fn send(&self, sender: &str, recipients: &[&str], route: Route, body: &[u8]) -> u64 {
        self.send_flagged(sender, recipients, route, 0, body).await
    }

    async fn send_flagged(&self, sender: &str, recipients: &[&str], route: Route, flags: u32, body: &[u8]) -> u64 {
        self.send_as(sender, recipients, route, flags, body, None).await
    }

    async fn send_with(&self, sender: &str, recipients: &[&str], route: Route, body: &[u8], options: Option<Options>) -> u64 {
        self.send_as(sender, recipients, route, 0, body, options).await
    }

    async fn send_as(
        &self,
        sender: &str,
        recipients: &[&str],
        route: Route,
        flags: u32,
        body: &[u8],
        options: Option<Options>,
    ) -> u64 {
        let number = self.number.replace(self.number.get() + 1);
        let address = |text: &str| Address::new(text.as_bytes()).unwrap();
        let job = Job::Remote {
            number,
            message: 1,
            sender: address(sender),
            recipients: recipients.iter().map(|r| address(r)).collect(),
            route,
            flags,
            size: body.len() as u64,
            options,
        };
        let body = sys::memfd::sealed(body).unwrap();
        self.connection.send_with(&job.encode(), Some(body.as_fd())).await.unwrap();
        number
    }

    /// Letters and texts of the next job that ends.
    async fn result(&self) -> (u64, Vec<String>) {
        let mut texts = Vec::new();
        loop {
            let (datagram, _) = timeout(Duration::from_secs(20), self.connection.recv()).await.unwrap().unwrap().unwrap();
            let Answer::Done { number, outcomes, last, .. } = Answer::decode(&datagram).unwrap() else { panic!() };
            for outcome in outcomes {
                texts.push(format!("{}{}", char::from(outcome.verdict.letter()), String::from_utf8_lossy(&outcome.text)));
            }
            if last {
                return (number, texts);
            }
        }
    }

    async fn deliver(&self, recipients: &[&str], route: Route) -> Vec<String> {
        self.send("s@a.example", recipients, route, LETTER).await;
        self.result().await.1
    }
}

async fn resolver(listener: Listener, mx: Mx) {
    while let Ok(connection) = listener.accept().await {
        while let Ok(Some((datagram, _))) = connection.recv().await {
            let (id, name) = match Request::decode(&datagram).unwrap() {
                Request::Mx { id, domain } | Request::Site { id, domain } => (id, domain.as_bytes().to_vec()),
                Request::Addresses { id, host } => (id, host.0),
            };
            let known = mx.get(String::from_utf8(name).unwrap().as_str()).cloned();
            let answer = match known {
                Some(Resolved::Hosts { hosts, implicit, ttl_s, .. }) => Resolved::Hosts { id, hosts, implicit, ttl_s },
                Some(Resolved::NullMx { ttl_s, .. }) => Resolved::NullMx { id, ttl_s },
                Some(_) => Resolved::Temporary { id, text: "no".into() },
                None => Resolved::NoHost { id, name_exists: false, ttl_s: 1 },
            };
            connection.send(&answer.encode()).await.unwrap();
        }
    }
}

fn hosts(list: &[(u16, &[&str])]) -> Resolved {
    let host = |(preference, addresses): &(u16, &[&str])| Host {
        preference: *preference,
        name: "h".into(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        temporary: false,
    };
    Resolved::Hosts { id: 0, hosts: list.iter().map(host).collect(), implicit: false, ttl_s: 60 }
}

fn relay(address: SocketAddr) -> Route {
    Route::Relay { host: address.ip().to_string().as_str().into(), port: address.port(), login: None }
}

/// What is asked for goes to a server that offers DSN, which then reports about those it took; from others nobody hears of it.
#[test]
fn reports_are_passed_on_to_who_offers_them() {
    ipc_async::service::run(async {
        let script = |ehlo: &'static str, mail: &'static str, first: &'static str, second: &'static str| {
            vec![
                Say("220 hi\r\n"),
                Hear("EHLO me.example"),
                Say(ehlo),
                Hear(mail),
                Say("250 ok\r\n"),
                Hear(first),
                Say("250 ok\r\n"),
                Hear(second),
                Say("550 5.1.1 no\r\n"),
                Hear("DATA"),
                Say("354 go\r\n"),
                Body,
                Say("250 taken\r\n"),
                Close,
            ]
        };
        let (with, heard) = scripted(
            "127.0.0.1:0",
            vec![script(
                "250-h\r\n250 DSN\r\n",
                "MAIL FROM:<s@a.example> RET=HDRS ENVID=x+20y",
                "RCPT TO:<one@b.example>",
                "RCPT TO:<two@b.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;t+2Bwo@c",
            )],
        )
        .await;
        let plain = script("250 h\r\n", "MAIL FROM:<s@a.example>", "RCPT TO:<one@b.example>", "RCPT TO:<two@b.example>");
        let (without, heard_without) = scripted("127.0.0.1:0", vec![plain]).await;
        let rig = World::new(&[], HashMap::new(), with.port()).await;
        let of_two = RecipientOptions {
            recipient: 1,
            notify: wire::dsn::Notify::parse(b"SUCCESS,DELAY"),
            orcpt: wire::dsn::Orcpt::new(b"rfc822;t+2Bwo@c"),
        };
        let options = Options {
            ret: Some(wire::dsn::Ret::Headers),
            envid: wire::dsn::Envid::new(b"x+20y"),
            recipients: vec![of_two],
            ..Options::none()
        };
        for (server, passed_on) in [(with, true), (without, false)] {
            let to = ["one@b.example", "two@b.example"];
            let number = rig.send_with("s@a.example", &to, relay(server), LETTER, Some(options.clone())).await;
            if passed_on {
                let (datagram, _) = timeout(Duration::from_secs(20), rig.connection.recv()).await.unwrap().unwrap().unwrap();
                assert_eq!(Answer::decode(&datagram), Ok(Answer::PassedOn { number, recipients: vec![0] }));
            }
            let (_, texts) = rig.result().await;
            assert!(texts[0].starts_with('K') && texts[1].starts_with('D'), "{texts:?}");
        }
        let wrong = |line: &String| line.contains("NOTIFY") || line.contains("RET=") || line.contains("ORCPT");
        assert!(!heard_without.borrow().iter().any(wrong) && heard.borrow().iter().filter(|line| wrong(line)).count() == 2);
        Ok(())
    })
    .unwrap();
}

fn mx(domain: &str) -> Route {
    Route::Mx { domain: Domain::new(domain.as_bytes()).unwrap() }
}

fn run(test: impl Future<Output = ()>) {
    ipc_async::service::run(async {
        test.await;
        Ok(())
    })
    .unwrap();
}

/// A port that nobody listens on, on any loopback address.
async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

const PIPELINING: &str = "250-mx|250-8BITMIME|250 PIPELINING|";
const GROUP: [Step; 3] = [Hear("MAIL FROM:<s@a.example>"), Hear("RCPT TO:<r@b.example>"), Hear("DATA")];

#[test]
fn each_stage_may_fail() {
    run(async {
        let open = [Say("220 hi|"), Hear("EHLO me.example"), Say(PIPELINING)];
        let script = |more: &[Step]| vec![[&open[..], &GROUP[..], more].concat()];
        let died = "ZConnected to 127.0.0.1 but connection died. (#4.4.2)\n";
        let no_connection = "ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n";
        let cases = [
            (vec![vec![Say("554 go away|")]], "ZConnected to 127.0.0.1 but greeting failed.\nRemote host said: 554 go away\n"),
            (
                vec![vec![Say("421-busy|421 later|")]],
                "ZConnected to 127.0.0.1 but greeting failed.\nRemote host said: 421-busy\n421 later\n",
            ),
            (vec![vec![Close]], died),
            (vec![vec![Hang]], died),
            (
                vec![vec![Say("220 hi|"), Hear("EHLO"), Say("550 no|"), Hear("HELO"), Say("550 who|")]],
                "ZConnected to 127.0.0.1 but my name was rejected.\nRemote host said: 550 who\n",
            ),
            (vec![vec![Say("220 hi|"), Hear("EHLO"), Close]], died),
            (vec![[&open[..], &[Hear("MAIL"), Close]].concat()], died),
            (
                script(&[Say("250 a|550 5.1.1 no such|503 b|")]),
                "D127.0.0.1 does not like recipient.\nRemote host said: 550 5.1.1 no such\nGiving up on 127.0.0.1.\n",
            ),
            (
                script(&[Say("250 a|450 grey|354 b|"), Body, Say("250 c|")]),
                "Z127.0.0.1 does not like recipient.\nRemote host said: 450 grey\nGiving up on 127.0.0.1.\n",
            ),
            (
                script(&[Say("551 you|503 b|503 c|")]),
                "DConnected to 127.0.0.1 but sender was rejected.\nRemote host said: 551 you\n",
            ),
            (script(&[Say("250 a|250 b|451 full|")]), "Z127.0.0.1 failed on DATA command.\nRemote host said: 451 full\n"),
            (
                // The whole body is on its way before the end is seen.
                script(&[Say("250 a|250 b|354 c|"), Close]),
                "ZConnected to 127.0.0.1 but connection died. Possible duplicate! (#4.4.2)
",
            ),
            (
                script(&[Say("250 a|250 b|354 c|"), Body, Close]),
                "ZConnected to 127.0.0.1 but connection died. Possible duplicate! (#4.4.2)\n",
            ),
            (
                script(&[Say("250 a|250 b|354 c|"), Body, Hang]),
                "ZConnected to 127.0.0.1 but connection died. Possible duplicate! (#4.4.2)\n",
            ),
            (
                script(&[Say("250 a|250 b|354 c|"), Body, Say("554 spam|")]),
                "D127.0.0.1 failed after I sent the message.\nRemote host said: 554 spam\n",
            ),
            (
                script(&[Say("250 a|250 b|354 c|"), Body, Say("250 ok 7|")]),
                "K127.0.0.1 accepted message.\nRemote host said: 250 ok 7\n",
            ),
            (script(&[Say("250 a|\u{1b}[2J|")]), died),
            (script(&[Say("250 a|"), Hang]), died),
            (vec![vec![Say("220 hi|250 and more|")]], died),
        ];
        let world = World::new(&[], Mx::new(), 25).await;
        let start = Instant::now();
        let mut waiting = HashMap::new();
        for (scripts, expected) in cases {
            let (address, _) = scripted("127.0.0.1:0", scripts).await;
            waiting.insert(world.send("s@a.example", &["r@b.example"], relay(address), LETTER).await, expected);
        }
        let nobody = SocketAddr::from(([127, 0, 0, 1], free_port().await));
        waiting.insert(world.send("s@a.example", &["r@b.example"], relay(nobody), LETTER).await, no_connection);
        while !waiting.is_empty() {
            let (number, texts) = world.result().await;
            assert_eq!(texts, [waiting.remove(&number).unwrap()], "{number}");
        }
        assert!(start.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn routes_without_a_host() {
    run(async {
        let zone = Mx::from([
            ("null.example", Resolved::NullMx { id: 0, ttl_s: 1 }),
            ("later.example", Resolved::Temporary { id: 0, text: "x".into() }),
            ("me.example", hosts(&[(10, &["127.0.0.77"]), (20, &["127.0.0.78"])])),
            ("none.example", hosts(&[(10, &[])])),
        ]);
        let world = World::new(&[], zone, free_port().await).await;
        for (route, expected) in [
            (mx("null.example"), "DSorry, that domain does not accept mail. (#5.1.10)\n"),
            (mx("gone.example"), "DSorry, I couldn't find any host named gone.example. (#5.1.2)\n"),
            (mx("later.example"), "ZCNAME lookup failed temporarily. (#4.4.3)\n"),
            (mx("none.example"), "DSorry, I couldn't find a mail exchanger or IP address. (#5.4.4)\n"),
            (
                mx("me.example"),
                "DSorry. Although I'm listed as a best-preference MX or A for that host,\n\
                 it isn't in my control/locals file, so I don't treat it as local. (#5.4.6)\n",
            ),
            (
                Route::Relay { host: "gone.example".into(), port: 25, login: None },
                "ZSorry, I couldn't find any host by that name. (#4.1.2)\n",
            ),
        ] {
            assert_eq!(world.deliver(&["r@b.example", "q@b.example"], route).await, [expected, expected]);
        }
    });
}

#[test]
fn the_next_host_serves_when_the_first_does_not() {
    run(async {
        let (good, heard) = willing("127.0.0.30:0", PIPELINING, 100, Duration::ZERO).await;
        let port = good.port();
        let refusing = [
            vec![Say("554 no|")],
            vec![Say("220 hi|"), Hear("EHLO"), Close],
            vec![Say("220 hi|"), Hear("EHLO"), Say(PIPELINING), Hear("MAIL"), Say("421 bye|")],
        ];
        for (number, script) in refusing.into_iter().enumerate() {
            scripted(&format!("127.0.0.{}:{port}", 40 + number), vec![script]).await;
        }
        let zone = Mx::from([
            ("dead.example", hosts(&[(10, &["127.0.0.20"]), (20, &["127.0.0.30"])])),
            ("two.example", hosts(&[(10, &["127.0.0.20", "127.0.0.30"])])),
            ("greets.example", hosts(&[(10, &["127.0.0.40"]), (20, &["127.0.0.30"])])),
            ("closes.example", hosts(&[(10, &["127.0.0.41"]), (20, &["127.0.0.30"])])),
            ("leaves.example", hosts(&[(10, &["127.0.0.42"]), (20, &["127.0.0.30"])])),
            ("backup.example", hosts(&[(10, &["127.0.0.30"]), (20, &["127.0.0.77"]), (30, &["127.0.0.20"])])),
            ("all.example", hosts(&[(10, &["127.0.0.40"]), (20, &["127.0.0.20"])])),
        ]);
        let world = World::new(&[], zone, port).await;
        for domain in ["dead", "two", "greets", "closes", "leaves", "backup"] {
            let result = world.deliver(&["r@b.example"], mx(&format!("{domain}.example"))).await;
            assert_eq!(result, ["K127.0.0.30 accepted message.\nRemote host said: 250 taken\n"], "{domain}");
        }
        let all = world.deliver(&["r@b.example"], mx("all.example")).await;
        assert_eq!(all, ["ZConnected to 127.0.0.40 but greeting failed.\nRemote host said: 554 no\n"]);
        assert_eq!(heard.borrow().iter().filter(|line| line.starts_with("(body")).count(), 6);
    });
}

#[test]
fn a_connection_is_used_again_and_ends_politely() {
    run(async {
        let (address, heard) = willing("127.0.0.1:0", PIPELINING, 100, Duration::ZERO).await;
        let world = World::new(&[], Mx::new(), 25).await;
        for _ in 0..3 {
            assert!(world.deliver(&["r@b.example"], relay(address)).await[0].starts_with('K'));
        }
        let connects = |heard: &Heard| heard.borrow().iter().filter(|line| *line == "(connect)").count();
        assert_eq!(connects(&heard), 1);
        sleep(Duration::from_millis(2700)).await;
        assert_eq!(heard.borrow().last().unwrap(), "QUIT");
        assert!(world.deliver(&["r@b.example"], relay(address)).await[0].starts_with('K'));
        assert_eq!(connects(&heard), 2);
        world.courier.pool.close();
        sleep(Duration::from_millis(50)).await;
        assert_eq!(heard.borrow().iter().filter(|line| *line == "QUIT").count(), 2);
    });
}

#[test]
fn a_kept_connection_that_died_costs_nothing() {
    run(async {
        let once =
            [&[Say("220 hi|"), Hear("EHLO"), Say(PIPELINING)][..], &GROUP, &[Say("250 a|250 b|354 c|"), Body, Say("250 ok|")]]
                .concat();
        let closing = [&once[..], &[Close]].concat();
        // The second connection closes only when the next MAIL arrives.
        let late = [&once[..], &[Hear("MAIL"), Close]].concat();
        let (address, heard) = scripted("127.0.0.1:0", vec![closing, late, once]).await;
        let world = World::new(&[], Mx::new(), 25).await;
        for _ in 0..3 {
            assert_eq!(
                world.deliver(&["r@b.example"], relay(address)).await,
                ["K127.0.0.1 accepted message.\nRemote host said: 250 ok\n"]
            );
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(heard.borrow().iter().filter(|line| *line == "(connect)").count(), 3);
    });
}

#[test]
fn recipients_too_many_for_one_transaction_go_into_the_next() {
    run(async {
        for ehlo in [PIPELINING, "250 mx|"] {
            let (address, heard) = willing("127.0.0.1:0", ehlo, 2, Duration::ZERO).await;
            let world = World::new(&[], Mx::new(), 25).await;
            let recipients = ["a@b.example", "b@b.example", "c@b.example", "d@b.example", "bad@b.example> x"];
            let texts = world.deliver(&recipients, relay(address)).await;
            assert!(texts[..4].iter().all(|text| text.starts_with("K127.0.0.1 accepted")), "{texts:?}");
            assert_eq!(texts[4], "DSorry, that address has a malformed domain. (#5.1.2)\n");
            let heard = heard.borrow();
            assert_eq!(heard.iter().filter(|line| line.starts_with("(body")).count(), 2);
            assert_eq!(heard.iter().filter(|line| line.starts_with("(connect")).count(), 1);
        }
    });
}

#[test]
fn verp_is_expanded_here_or_by_a_server_that_can() {
    run(async {
        for (ehlo, senders) in [
            (PIPELINING, &["MAIL FROM:<list-a=b.example@h.example>", "MAIL FROM:<list-c=d.example@h.example>"][..]),
            ("250-mx|250-XVERP|250 PIPELINING|", &["MAIL FROM:<list@h.example> XVERP=-="]),
        ] {
            let (address, heard) = willing("127.0.0.1:0", ehlo, 100, Duration::ZERO).await;
            let world = World::new(&[], Mx::new(), 25).await;
            world.send("list-@h.example-@[]", &["a@b.example", "c@d.example"], relay(address), LETTER).await;
            assert!(world.result().await.1.iter().all(|text| text.starts_with('K')));
            let heard = heard.borrow();
            let mails: Vec<&String> = heard.iter().filter(|line| line.starts_with("MAIL")).collect();
            assert_eq!(mails, senders);
        }
    });
}

#[test]
fn bodies_arrive_byte_for_byte_and_nothing_in_them_is_a_command() {
    run(async {
        let world = World::new(&[("timeoutremote", "20\n")], Mx::new(), 25).await;
        let large = [b"Subject: big\n\n".to_vec(), b"0123456789abcdef0123456789abcdef\n..\n".repeat(300_000)].concat();
        let bodies: [(&[u8], Option<&str>); 4] = [
            (b"a\r.\r\nMAIL FROM:<evil@x>\r\n.\rb", Some("a\r\n.\r\nMAIL FROM:<evil@x>\r\n.\r\nb\r\n")),
            (b"", Some("")),
            (b"\n.\n.\r.\r\n\n.", Some("\r\n.\r\n.\r\n.\r\n\r\n.\r\n")),
            (&large, None),
        ];
        for (body, expected) in bodies {
            let script = [
                &[Say("220 hi|"), Hear("EHLO"), Say("250-mx|250 SIZE|"), Hear("MAIL"), Say("250 a|")][..],
                &[
                    Hear("RCPT"),
                    Say("250 b|"),
                    Hear("DATA"),
                    Say("354 c|"),
                    Body,
                    Say("250 ok|"),
                    Hear("QUIT"),
                    Say("221 x|"),
                    Close,
                ],
            ]
            .concat();
            let (address, heard) = scripted("127.0.0.1:0", vec![script]).await;
            world.send("s@a.example", &["r@b.example"], relay(address), body).await;
            assert!(world.result().await.1[0].starts_with('K'));
            let heard = heard.borrow();
            let received = heard.get(5).unwrap();
            match expected {
                Some(expected) => assert_eq!(received, expected),
                None => assert!(received.replace("\r\n", "\n").as_bytes() == body),
            }
            assert_eq!(heard[2], format!("MAIL FROM:<s@a.example> SIZE={}", received.len()));
        }
    });
}

#[test]
fn a_server_that_reads_nothing_or_gives_up_early_holds_up_nobody() {
    run(async {
        let world = World::new(&[], Mx::new(), 25).await;
        let large = vec![b'x'; 30_000_000];
        let open = [&[Say("220 hi|"), Hear("EHLO"), Say(PIPELINING)][..], &GROUP, &[Say("250 a|250 b|354 c|")]].concat();
        for (end, expected) in [
            (vec![Hang], "ZConnected to 127.0.0.1 but connection died. (#4.4.2)\n"),
            (
                vec![Say("552 5.3.4 too big|"), Hang],
                "D127.0.0.1 failed after I sent the message.\nRemote host said: 552 5.3.4 too big\n",
            ),
        ] {
            let (address, _) = scripted("127.0.0.1:0", vec![[&open[..], &end[..]].concat()]).await;
            world.send("s@a.example", &["r@b.example"], relay(address), &large).await;
            let (good, _) = willing("127.0.0.1:0", PIPELINING, 100, Duration::ZERO).await;
            world.send("s@a.example", &["r@b.example"], relay(good), LETTER).await;
            let texts = [world.result().await.1, world.result().await.1].concat();
            assert!(texts.contains(&expected.to_owned()), "{texts:?}");
            assert!(texts.contains(&"K127.0.0.1 accepted message.\nRemote host said: 250 taken\n".to_owned()));
        }
    });
}

#[test]
fn a_thousand_jobs_at_once() {
    run(async {
        let (address, heard) = willing("127.0.0.1:0", PIPELINING, 100, Duration::from_millis(500)).await;
        let world = World::new(&[("timeoutremote", "20\n")], Mx::new(), 25).await;
        let start = Instant::now();
        for _ in 0..1000 {
            world.send("s@a.example", &["r@b.example"], relay(address), LETTER).await;
        }
        for _ in 0..1000 {
            assert!(world.result().await.1[0].starts_with('K'));
        }
        assert_eq!(heard.borrow().iter().filter(|line| line.starts_with("(body")).count(), 1000);
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    });
}

#[test]
fn jobs_end_though_nobody_waits_and_odd_jobs_are_answered() {
    run(async {
        let (address, heard) = willing("127.0.0.1:0", PIPELINING, 100, Duration::from_millis(100)).await;
        let world = World::new(&[], Mx::new(), 25).await;
        let other = Packets::connect(world.run.as_fd(), "roles/remote.sock").await.unwrap();
        let address_of = |text: &str| Address::new(text.as_bytes()).unwrap();
        let recipients = vec![address_of("r@b.example")];
        let job = |number, size| Job::Remote {
            number,
            message: 1,
            sender: Address::null(),
            recipients: recipients.clone(),
            route: relay(address),
            flags: 0,
            size,
            options: None,
        };
        let body = sys::memfd::sealed(LETTER).unwrap();
        other.send_with(&job(1, LETTER.len() as u64).encode(), Some(body.as_fd())).await.unwrap();
        sleep(Duration::from_millis(30)).await;
        drop(other);
        timeout(Duration::from_secs(5), world.jobs.finished()).await.unwrap();
        assert!(heard.borrow().iter().any(|line| line.starts_with("(body")));
        // Without a body, with a body that is too short, for nobody, and a local one.
        let unreadable = "ZUnable to read message. (#4.3.0)\n".to_owned();
        world.connection.send(&job(2, 5).encode()).await.unwrap();
        assert_eq!(world.result().await, (2, vec![unreadable.clone()]));
        world.connection.send_with(&job(3, 5000).encode(), Some(body.as_fd())).await.unwrap();
        assert_eq!(world.result().await, (3, vec![unreadable]));
        world.number.set(4);
        assert_eq!(world.deliver(&[], relay(address)).await, Vec::<String>::new());
        let local =
            Job::System { number: 9, message: 1, sender: Address::null(), recipient: address_of("a@b"), inherits: "".into() };
        world.connection.send(&local.encode()).await.unwrap();
        assert_eq!(world.result().await.1.len(), 1);
        // Garbage ends its connection and nothing else.
        let garbage = Packets::connect(world.run.as_fd(), "roles/remote.sock").await.unwrap();
        garbage.send(b"\xff\x00garbage").await.unwrap();
        assert!(matches!(garbage.recv().await, Ok(None) | Err(_)));
        assert!(world.deliver(&["r@b.example"], relay(address)).await[0].starts_with('K'));
    });
}

#[test]
fn smtputf8_and_ipv6() {
    run(async {
        let world = World::new(&[], Mx::new(), 25).await;
        let (plain, heard) = willing("127.0.0.1:0", PIPELINING, 100, Duration::ZERO).await;
        let texts = world.deliver(&["jürgen@b.example"], relay(plain)).await;
        assert_eq!(texts, ["D127.0.0.1 does not accept internationalized addresses. (#5.6.7)\n"]);
        assert!(!heard.borrow().iter().any(|line| line.starts_with("MAIL")));
        let address = if std::net::TcpListener::bind("[::1]:0").is_ok() { "[::1]:0" } else { "127.0.0.1:0" };
        let (utf8, heard) = willing(address, "250-mx|250-SMTPUTF8|250 PIPELINING|", 100, Duration::ZERO).await;
        let texts = world.deliver(&["jürgen@b.example"], relay(utf8)).await;
        assert_eq!(texts, [format!("K{} accepted message.\nRemote host said: 250 taken\n", utf8.ip())]);
        assert!(heard.borrow().contains(&"MAIL FROM:<s@a.example> SMTPUTF8".to_owned()));
        assert!(heard.borrow().contains(&"RCPT TO:<jürgen@b.example>".to_owned()));
    });
}
