//! QMTP against a scripted server: by a route of its own, and by the preference of a mail host.

use super::*;
use tokio::io::AsyncReadExt as _;

/// A message that a QMTP server got: its text, sender and recipients.
type Got = Rc<RefCell<Vec<Letter>>>;

/// A server that takes everybody but those whose name begins with `n`; how often it was connected to, and what it got.
async fn server() -> (SocketAddr, Rc<Cell<usize>>, Got) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connections, got) = (Rc::new(Cell::new(0)), Got::default());
    let (counted, kept) = (Rc::clone(&connections), Rc::clone(&got));
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.set(counted.get() + 1);
            spawn_local(serve_qmtp(stream, Rc::clone(&kept)));
        }
    });
    (address, connections, got)
}

async fn serve_qmtp(mut stream: TcpStream, got: Got) -> Option<()> {
    let mut held = Vec::new();
    while stream.read_buf(&mut held).await.ok()? > 0 {
        let Some((message, rest)) = message(&held) else { continue };
        let mut answer = Vec::new();
        for recipient in &message.2 {
            let text: &[u8] = if recipient.starts_with('n') { b"Dnot here (#5.1.1)" } else { b"Kok 1 qp 2" };
            wire::netstring::encode(text, &mut answer);
        }
        held = rest;
        got.borrow_mut().push(message);
        stream.write_all(&answer).await.ok()?;
    }
    Some(())
}

/// Text, sender and recipients.
type Letter = (Vec<u8>, String, Vec<String>);

fn message(held: &[u8]) -> Option<(Letter, Vec<u8>)> {
    let next = |bytes| wire::netstring::decode(bytes, 1 << 20).ok();
    let (text, rest) = next(held)?;
    let (sender, rest) = next(rest)?;
    let (mut list, rest) = next(rest)?;
    let mut recipients = Vec::new();
    while !list.is_empty() {
        let (recipient, more) = next(list)?;
        recipients.push(String::from_utf8_lossy(recipient).into_owned());
        list = more;
    }
    Some(((text.to_vec(), String::from_utf8_lossy(sender).into_owned(), recipients), rest.to_vec()))
}

fn by_route(address: SocketAddr) -> Route {
    Route::Qmtp { host: address.ip().to_string().as_str().into(), port: address.port() }
}

fn mail_hosts(preference: u16) -> Mx {
    HashMap::from([("b.example", hosts(&[(preference, &["127.0.0.1"])]))])
}

fn by_mx() -> Route {
    Route::Mx { domain: Domain::new(b"b.example").unwrap() }
}

#[test]
fn a_route_by_qmtp_is_one_round_trip_and_its_connection_is_used_again() {
    ipc_async::service::run(async {
        let (address, connections, got) = server().await;
        let world = World::new(&[], Mx::new(), 9).await;
        let texts = world.deliver(&["one@b.example", "none@b.example"], by_route(address)).await;
        assert_eq!(
            texts,
            [
                "K127.0.0.1 accepted message.\nRemote host said: ok 1 qp 2\n",
                "D127.0.0.1 does not like recipient.\nRemote host said: not here (#5.1.1)\nGiving up on 127.0.0.1.\n"
            ]
        );
        let expected = (b"\rSubject: x\r\n\r\nhello\r\n.dot\r\n".to_vec(), "s@a.example".to_owned());
        assert_eq!((got.borrow()[0].0.clone(), got.borrow()[0].1.clone()), (expected.0, expected.1));
        // A sender for each recipient makes a message for each.
        world.send("list-@h.example-@[]", &["one@b.example", "two@c.example"], by_route(address), b"x\ry").await;
        assert!(world.result().await.1.iter().all(|text| text.starts_with('K')));
        let senders: Vec<_> = got.borrow().iter().skip(1).map(|message| message.1.clone()).collect();
        assert_eq!(senders, ["list-one=b.example@h.example", "list-two=c.example@h.example"]);
        assert_eq!((got.borrow()[2].0.as_slice(), connections.get()), (&b"\rx\r\ny\r\n"[..], 1));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_mail_host_says_by_its_preference_that_it_takes_qmtp() {
    ipc_async::service::run(async {
        let (smtp, heard) = willing("127.0.0.1:0", "250 h|", 100, Duration::ZERO).await;
        let (qmtp, _, got) = server().await;
        let world = World::switching(&[], mail_hosts(12_817), smtp.port(), qmtp.port()).await;
        assert!(world.deliver(&["one@b.example"], by_mx()).await[0].contains("ok 1 qp 2"));
        assert_eq!((got.borrow().len(), heard.borrow().len()), (1, 0));
        // Reports are wanted, for which SMTP alone has words.
        let options = Options { ret: Some(wire::dsn::Ret::Headers), ..Options::none() };
        world.send_with("s@a.example", &["one@b.example"], by_mx(), LETTER, Some(options)).await;
        assert!(world.result().await.1[0].starts_with("K127.0.0.1 accepted message.\nRemote host said: 250"));
        assert_eq!(got.borrow().len(), 1);
        // Another preference is nothing but that.
        let plain = World::switching(&[], mail_hosts(12_802), smtp.port(), qmtp.port()).await;
        assert!(plain.deliver(&["one@b.example"], by_mx()).await[0].starts_with('K'));
        assert_eq!(got.borrow().len(), 1);
        // TLS is demanded for the domain: QMTP is no way to go there.
        let secret =
            World::switching(&[("tlspolicy", "b.example:encrypt\n")], mail_hosts(12_817), smtp.port(), qmtp.port()).await;
        assert!(secret.deliver(&["one@b.example"], by_mx()).await[0].starts_with('Z'));
        let text = &secret.deliver(&["one@b.example"], Route::Qmtp { host: "b.example".into(), port: qmtp.port() }).await[0];
        assert!(text.contains("control/tlspolicy demands TLS"), "{text}");
        assert_eq!(got.borrow().len(), 1);
        Ok(())
    })
    .unwrap();
}

#[test]
fn who_does_not_keep_that_promise_gets_it_by_smtp() {
    ipc_async::service::run(async {
        let (smtp, heard) = willing("127.0.0.1:0", "250 h|", 100, Duration::ZERO).await;
        let closed = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() };
        let world = World::switching(&[], mail_hosts(12_801), smtp.port(), closed.port()).await;
        assert!(world.deliver(&["one@b.example"], by_mx()).await[0].starts_with("K127.0.0.1 accepted"));
        assert!(
            world.courier.no_qmtp.is(closed) && !world.courier.bad.is(closed.ip()),
            "it is known, and no reason to avoid the host"
        );
        assert_eq!(heard.borrow().iter().filter(|line| line.starts_with("RCPT")).count(), 1);
        Ok(())
    })
    .unwrap();
}

/// What a server does that is none of QMTP's, behind the bytes that it reads.
#[derive(Clone, Copy)]
enum Odd {
    Says(&'static [u8]),
    Closes,
    Hangs,
}

/// Takes connections and does so, before anything is read or behind the first message.
async fn odd(what: Odd, reads: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut held = Vec::new();
            while reads && message(&held).is_none() && stream.read_buf(&mut held).await.is_ok_and(|len| len > 0) {}
            match what {
                Odd::Says(text) => {
                    let _ = stream.write_all(text).await;
                    kept.push(stream);
                }
                Odd::Hangs => kept.push(stream),
                Odd::Closes => {}
            }
        }
    });
    address
}

#[test]
fn who_announces_qmtp_and_does_not_speak_it_gets_the_message_by_smtp_in_the_same_attempt() {
    ipc_async::service::run(async {
        let long = [LETTER, &b"0123456789abcdef\n".repeat(1_000_000)].concat();
        for what in [Odd::Says(b"220 hello\r\n"), Odd::Says(b"5:xyes,"), Odd::Closes, Odd::Hangs] {
            for (reads, letter) in [(false, LETTER), (true, LETTER), (false, &long)] {
                let (smtp, heard) = willing("127.0.0.1:0", "250 h|", 100, Duration::ZERO).await;
                let stranger = odd(what, reads).await;
                let world = World::switching(&[], mail_hosts(12_801), smtp.port(), stranger.port()).await;
                for attempt in 1..3 {
                    world.send("s@a.example", &["one@b.example", "two@b.example"], by_mx(), letter).await;
                    let texts = world.result().await.1;
                    assert!(
                        texts.iter().all(|text| text.starts_with("K127.0.0.1 accepted message.\nRemote host said: 250")),
                        "{texts:?}"
                    );
                    let taken = heard.borrow().iter().filter(|line| line.starts_with("(body")).count();
                    assert_eq!(taken, attempt, "once for each attempt");
                    assert!(world.courier.no_qmtp.is(stranger));
                }
            }
        }
        Ok(())
    })
    .unwrap();
}

/// Who has begun to answer speaks QMTP: what he got and did not answer for may be there, so SMTP has its turn at the next attempt.
#[test]
fn who_leaves_between_two_answers_may_have_taken_the_rest() {
    ipc_async::service::run(async {
        for (said, first) in
            [(&b"3:Kok,"[..], "K127.0.0.1 accepted"), (b"3:Ko", "ZConnected to 127.0.0.1 but connection died. Possible")]
        {
            let (smtp, heard) = willing("127.0.0.1:0", "250 h|", 100, Duration::ZERO).await;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = listener.local_addr().unwrap();
            spawn_local(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut held = Vec::new();
                    while message(&held).is_none() && stream.read_buf(&mut held).await.is_ok_and(|len| len > 0) {}
                    let _ = stream.write_all(said).await;
                }
            });
            let world = World::switching(&[], mail_hosts(12_801), smtp.port(), server.port()).await;
            let texts = world.deliver(&["one@b.example", "two@b.example"], by_mx()).await;
            assert!(texts[0].starts_with(first), "{texts:?}");
            assert_eq!(texts[1], "ZConnected to 127.0.0.1 but connection died. Possible duplicate! (#4.4.2)\n");
            assert!(heard.borrow().is_empty() && world.courier.no_qmtp.is(server));
            assert!(world.deliver(&["two@b.example"], by_mx()).await[0].starts_with("K127.0.0.1 accepted"));
            assert_eq!(heard.borrow().iter().filter(|line| line.starts_with("RCPT")).count(), 1);
        }
        Ok(())
    })
    .unwrap();
}

/// A connection that its server closed behind a message, as it may, is no reason to go another way.
#[test]
fn who_answers_and_leaves_keeps_to_qmtp() {
    ipc_async::service::run(async {
        let (smtp, heard) = willing("127.0.0.1:0", "250 h|", 100, Duration::ZERO).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let senders = Rc::new(RefCell::new(Vec::new()));
        let kept = Rc::clone(&senders);
        spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut held = Vec::new();
                while message(&held).is_none() && stream.read_buf(&mut held).await.is_ok_and(|len| len > 0) {}
                kept.borrow_mut().extend(message(&held).map(|message| message.0.1));
                let _ = stream.write_all(b"3:Kok,").await;
            }
        });
        let world = World::switching(&[], mail_hosts(12_801), smtp.port(), server.port()).await;
        for recipient in ["one@b.example", "two@b.example", "three@b.example"] {
            assert!(world.deliver(&[recipient], by_mx()).await[0].contains("Remote host said: ok"));
            // The server's end of the connection has to be closed.
            sleep(Duration::from_millis(20)).await;
        }
        assert!(heard.borrow().is_empty() && !world.courier.no_qmtp.is(server));
        assert_eq!(senders.borrow().len(), 3);
        Ok(())
    })
    .unwrap();
}

/// One answer too many would be taken for the answer to what is sent next.
#[test]
fn an_answer_that_nobody_asked_for_is_no_answer_to_the_next_message() {
    ipc_async::service::run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let got = Got::default();
        let kept = Rc::clone(&got);
        spawn_local(async move {
            // Just as long as what is read in one go, so that what follows is still in the socket.
            let first = [&b"4090:K"[..], &[b'x'; 4089], b","].concat();
            let answers = [[&first[..], b"3:Kno,"].concat(), b"4:Dno!,".to_vec()];
            for answer in answers {
                let Ok((mut stream, _)) = listener.accept().await else { return };
                let mut held = Vec::new();
                while message(&held).is_none() && stream.read_buf(&mut held).await.is_ok_and(|len| len > 0) {}
                kept.borrow_mut().extend(message(&held).map(|message| message.0));
                let _ = stream.write_all(&answer).await;
                spawn_local(async move { while stream.read_buf(&mut held).await.is_ok_and(|len| len > 0) {} });
            }
        });
        let world = World::new(&[], Mx::new(), 9).await;
        world.send("list-@h.example-@[]", &["one@b.example", "two@c.example"], by_route(server), LETTER).await;
        let texts = world.result().await.1;
        assert!(texts[0].starts_with("K127.0.0.1 accepted message.\nRemote host said: xx"), "{}", texts[0]);
        assert_eq!(texts[1], "D127.0.0.1 does not like recipient.\nRemote host said: no!\nGiving up on 127.0.0.1.\n");
        assert_eq!(got.borrow().len(), 2);
        Ok(())
    })
    .unwrap();
}

/// What cannot go by QMTP leaves its place to what can go by SMTP.
#[test]
fn hosts_that_announce_qmtp_are_all_tried_by_smtp() {
    ipc_async::service::run(async {
        let (smtp, _) = willing("127.0.0.8:0", "250 h|", 100, Duration::ZERO).await;
        let addresses: Vec<String> = (1..9).map(|n| format!("127.0.0.{n}")).collect();
        let addresses: Vec<[&str; 1]> = addresses.iter().map(|address| [address.as_str()]).collect();
        let list: Vec<(u16, &[&str])> = (0u16..).zip(&addresses).map(|(n, address)| (12_801 + 16 * n, &address[..])).collect();
        let world = World::switching(&[], HashMap::from([("b.example", hosts(&list))]), smtp.port(), 9).await;
        let options = Options { ret: Some(wire::dsn::Ret::Headers), ..Options::none() };
        world.send_with("s@a.example", &["one@b.example"], by_mx(), LETTER, Some(options)).await;
        let text = world.result().await.1.remove(0);
        assert!(text.starts_with("K127.0.0.8 accepted"), "{text}");
        Ok(())
    })
    .unwrap();
}
