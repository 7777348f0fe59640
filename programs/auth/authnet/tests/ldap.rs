//! Logins against a real slapd, and against servers that answer badly or not at all.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Authority, Instance, Said, run};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use system_tests::slapd::{BASE, Certificate, SEARCHER, Slapd, free_port, person};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

/// Ann and bob, one whose account has ended, one with two addresses, one whose address has odd characters, one without.
fn people() -> String {
    [
        person("ann", "ann@a.example", "ann-password", ""),
        person("bob", "bob@a.example", "bob-password", ""),
        person("old", "old@a.example", "old-password", "shadowExpire: 1000\n"),
        person("new", "new@a.example", "new-password", "shadowExpire: 99999\n"),
        person("two", "two@a.example", "two-password", "mail: zwei@a.example\n"),
        person("odd", "o*d@a.example", "odd-password", ""),
        person("none", "none@a.example", "none-password", "").replace("userPassword: none-password\n", ""),
        person("twin", "same@a.example", "same-password", ""),
        person("twin2", "same@a.example", "same-password", ""),
    ]
    .concat()
}

/// control/ldap for a server, which is searched with a name, and the files it needs.
fn configure(instance: &Instance, urls: &str, more: &str) {
    let (name, password) = SEARCHER;
    instance.secret("ldap.secret", &format!("{password}\n"));
    instance.control("authsources", "accounts\nldap\n");
    instance.control("ldap", &format!("{urls}\nbase {BASE}\nbinddn {name}\nbindpwfile ldap.secret\n{more}"));
}

fn clear(port: u16) -> String {
    format!("url ldap://127.0.0.1:{port}\nstarttls no")
}

#[test]
fn right_wrong_unknown_and_whatever_a_login_is_made_of() {
    let instance = Instance::new();
    let test = "right_wrong_unknown_and_whatever_a_login_is_made_of";
    let Some(slapd) = Slapd::start(test, instance.dir(), &people(), None).unwrap() else { return };
    configure(&instance, &clear(slapd.port), "");
    run(async {
        let authnet = instance.start(&[]).await;
        let ann = Said::right("ann@a.example");
        assert_eq!(authnet.login(b"ann@a.example", b"ann-password").await, ann);
        // What comes back is the directory's spelling, not the client's.
        assert_eq!(authnet.login(b"ANN@A.example", b"ann-password").await, ann);
        for wrong in [&b"wrong"[..], b"bob-password", b"ann-password\0", b"ann-password ", b"*", b"\xff"] {
            assert_eq!(authnet.login(b"ann@a.example", wrong).await, Said::Wrong, "{}", wrong.escape_ascii());
        }
        assert_eq!(authnet.login(b"none@a.example", b"x").await, Said::Wrong, "an entry without a password");
        // As a bind, the empty password would be nobody's and right.
        for login in [&b"ann@a.example"[..], b"nobody@a.example", b""] {
            assert_eq!(authnet.login(login, b"").await, Said::Wrong);
        }
        for login in [
            &b"nobody@a.example"[..],
            b"*",
            b"*@a.example",
            b"ann*",
            b"a\\2a",
            b"\\61nn@a.example",
            b"ann@a.example)(uid=*",
            b"*)(uid=ann",
            b"ann@a.example)(|(uid=*",
            b"(uid=ann)",
            // The directory would take these for ann.
            b"ann@a.example\0",
            b" ann@a.example ",
            b"a\xc2\xadnn@a.example",
            b"\0",
            b"\xff\xfe",
            b"",
            b"x)(&(objectClass=*)(userPassword=*",
        ] {
            for password in [&b"ann-password"[..], b"*"] {
                assert_eq!(authnet.login(login, password).await, Said::Nobody, "{}", login.escape_ascii());
            }
        }
        // An asterisk is an asterisk.
        assert_eq!(authnet.login(b"o*d@a.example", b"odd-password").await, Said::right("o*d@a.example"));
        // Several addresses: the one that was given. Several entries: nobody can say who it is.
        assert_eq!(authnet.login(b"Zwei@a.example", b"two-password").await, Said::right("zwei@a.example"));
        assert!(authnet.login(b"same@a.example", b"same-password").await.why().contains("several entries"));
        // None of these counts against the server.
        assert_eq!(authnet.login(b"bob@a.example", b"bob-password").await, Said::right("bob@a.example"));
    });
}

#[test]
fn filters_names_and_accounts_that_have_ended() {
    let instance = Instance::new();
    let test = "filters_names_and_accounts_that_have_ended";
    let Some(slapd) = Slapd::start(test, instance.dir(), &people(), None).unwrap() else { return };
    let filter = "(&(objectClass=inetOrgPerson)(uid=%u)(|(!(shadowExpire=*))(!(shadowExpire:integerOrderingMatch:=%t))))";
    let socket = slapd.socket().replace('/', "%2F");
    configure(&instance, &format!("url ldapi://{socket}"), &format!("filter {filter}\nuser uid\ndomain b.example\nscope one\n"));
    let people_base = format!("base ou=people,{BASE}");
    let text = std::fs::read_to_string(instance.root.control_file("ldap")).unwrap();
    instance.control("ldap", &text.replace(&format!("base {BASE}"), &people_base));
    run(async {
        let authnet = instance.start(&[]).await;
        for login in ["ann", "ann@b.example", "ann@elsewhere.example"] {
            assert_eq!(authnet.login(login.as_bytes(), b"ann-password").await, Said::right("ann@b.example"), "{login}");
        }
        assert_eq!(authnet.login(b"old", b"old-password").await, Said::Nobody, "its account has ended");
        assert_eq!(authnet.login(b"new", b"new-password").await, Said::right("new@b.example"), "its account goes on");
        assert_eq!(authnet.login(b"@b.example", b"x").await, Said::Nobody);
    });
}

#[test]
fn the_directory_refuses_us_or_the_configuration_is_wrong() {
    let instance = Instance::new();
    let test = "the_directory_refuses_us_or_the_configuration_is_wrong";
    let Some(slapd) = Slapd::start(test, instance.dir(), &people(), None).unwrap() else { return };
    run(async {
        configure(&instance, &clear(slapd.port), "");
        instance.secret("ldap.secret", "another\n");
        let authnet = instance.start(&[]).await;
        assert!(authnet.login(b"ann@a.example", b"ann-password").await.why().contains("binddn: LDAP result 49"));
        // A base that is not there, a user attribute that is not: not now, never wrong.
        configure(&instance, &clear(slapd.port), "user telephoneNumber\n");
        let authnet = instance.start(&[]).await;
        assert!(authnet.login(b"ann@a.example", b"ann-password").await.why().contains("no value"));
        configure(&instance, &clear(slapd.port), "");
        let text = std::fs::read_to_string(instance.root.control_file("ldap")).unwrap();
        instance.control("ldap", &text.replace(&format!("base {BASE}"), "base dc=nowhere"));
        let authnet = instance.start(&[]).await;
        assert!(authnet.login(b"ann@a.example", b"ann-password").await.why().contains("search: LDAP result 32"));
        // Nobody may search but the name for it.
        instance.control("ldap", &format!("{}\nbase {BASE}\n", clear(slapd.port)));
        let authnet = instance.start(&[]).await;
        assert!(authnet.login(b"ann@a.example", b"ann-password").await.why().contains("search: LDAP result"));
    });
    configure(&instance, &clear(slapd.port), "filter (mail=%n\n");
    assert!(instance.refusal().contains("`filter`: a `)` is missing"));
    configure(&instance, &clear(slapd.port), "cafile /nowhere.pem\n");
    assert!(instance.refusal().contains("`cafile`: /nowhere.pem"));
    configure(&instance, &clear(slapd.port), "");
    instance.control("ldap.secret", "x");
    std::fs::set_permissions(instance.root.control_file("ldap.secret"), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap();
    assert!(instance.refusal().contains("others may read"));
}

#[test]
fn certificates() {
    let instance = Instance::new();
    let (ours, other) = (Authority::new(instance.dir(), "ours"), Authority::new(instance.dir(), "other"));
    for (test, certificate, is_good, why) in [
        ("good", ours.certify("ldap.example", 2090), true, ""),
        ("other-name", ours.certify("other.example", 2090), false, "not valid for name"),
        ("expired", ours.certify("ldap.example", 2021), false, "expired"),
        ("other-authority", other.certify("ldap.example", 2090), false, "UnknownIssuer"),
    ] {
        let certificate = Certificate { chain: certificate.0, key: certificate.1 };
        let dir = instance.dir().join(test);
        let Some(slapd) = Slapd::start("certificates", &dir, &people(), Some(&certificate)).unwrap() else { return };
        for url in [format!("url ldap://ldap.example:{}", slapd.port), format!("url ldaps://ldap.example:{}", slapd.tls_port)] {
            configure(&instance, &url, &format!("cafile {}\n", ours.file()));
            run(async {
                let authnet = instance.start(&[("ldap.example", "127.0.0.1")]).await;
                let said = authnet.login(b"ann@a.example", b"ann-password").await;
                if is_good {
                    assert_eq!(said, Said::right("ann@a.example"), "{url}");
                    assert_eq!(authnet.login(b"ann@a.example", b"wrong").await, Said::Wrong);
                } else {
                    let said = said.why();
                    assert!(said.contains(why), "{url}: {said}");
                }
            });
        }
        // The system's authorities know nothing of ours.
        configure(&instance, &format!("url ldaps://ldap.example:{}", slapd.tls_port), "");
        run(async {
            let authnet = instance.start(&[("ldap.example", "127.0.0.1")]).await;
            authnet.login(b"ann@a.example", b"ann-password").await.why();
        });
    }
    // TLS is asked for, and the server has none: nothing is said in the clear.
    let Some(slapd) = Slapd::start("certificates", &instance.dir().join("none"), &people(), None).unwrap() else { return };
    configure(&instance, &format!("url ldap://127.0.0.1:{}", slapd.port), "");
    run(async {
        let said = instance.start(&[]).await.login(b"ann@a.example", b"ann-password").await.why();
        assert!(said.contains("STARTTLS"), "{said}");
    });
}

#[test]
fn a_server_that_dies_comes_back_and_others_stand_in() {
    let instance = Instance::new();
    let test = "a_server_that_dies_comes_back_and_others_stand_in";
    let Some(mut slapd) = Slapd::start(test, instance.dir(), &people(), None).unwrap() else { return };
    let dead = free_port().unwrap();
    configure(&instance, &format!("url ldap://127.0.0.1:{dead}\nurl ldap://127.0.0.1:{}\nstarttls no", slapd.port), "");
    run(async {
        let authnet = instance.start(&[]).await;
        let ann = async || authnet.login(b"ann@a.example", b"ann-password").await;
        for _ in 0..5 {
            assert_eq!(ann().await, Said::right("ann@a.example"));
        }
        slapd.kill();
        ann().await.why();
        slapd.run().unwrap();
        // The connection that was kept is found to be over, and a new one made.
        assert_eq!(ann().await, Said::right("ann@a.example"));
        slapd.kill();
        slapd.run().unwrap();
        assert_eq!(ann().await, Said::right("ann@a.example"));
        slapd.kill();
        for _ in 0..5 {
            ann().await.why();
        }
        assert!(ann().await.why().contains("did not answer lately"), "it is left alone");
        slapd.run().unwrap();
        let until = Instant::now() + common::PATIENCE;
        while ann().await != Said::right("ann@a.example") {
            assert!(Instant::now() < until, "it is found again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_server_that_hangs_costs_its_first_askers_alone() {
    let instance = Instance::new();
    let test = "a_server_that_hangs_costs_its_first_askers_alone";
    let Some(slapd) = Slapd::start(test, instance.dir(), &people(), None).unwrap() else { return };
    configure(&instance, &clear(slapd.port), "");
    run(async {
        let authnet = Rc::new(instance.start(&[]).await);
        assert_eq!(authnet.login(b"ann@a.example", b"ann-password").await, Said::right("ann@a.example"));
        slapd.freeze(true);
        let asking: Vec<_> = (0..qmail_authnet::UNDER_WAY_MAX * 2)
            .map(|_| {
                let authnet = Rc::clone(&authnet);
                spawn_local(async move { authnet.login(b"ann@a.example", b"ann-password").await.why() })
            })
            .collect();
        let (mut too_many, mut late) = (0, 0);
        for said in asking {
            match said.await.unwrap() {
                why if why.contains("too many") => too_many += 1,
                why if why.contains("no answer in time") => late += 1,
                why => panic!("{why}"),
            }
        }
        assert_eq!((too_many, late), (qmail_authnet::UNDER_WAY_MAX, qmail_authnet::UNDER_WAY_MAX));
        let before = Instant::now();
        for _ in 0..100 {
            assert!(authnet.login(b"ann@a.example", b"ann-password").await.why().contains("did not answer lately"));
        }
        assert!(before.elapsed() < qmail_authnet::REQUEST_MAX * 10, "each of them waited");
        slapd.freeze(false);
        let until = Instant::now() + common::PATIENCE * 2;
        while authnet.login(b"ann@a.example", b"ann-password").await != Said::right("ann@a.example") {
            assert!(Instant::now() < until, "it is found again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

/// A server that reads a request and says what `answer` makes of it; `None` ends the connection.
async fn fake(answer: impl AsyncFn(usize) -> Option<Vec<u8>> + 'static) -> (u16, Rc<Cell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (answer, requests) = (Rc::new(answer), Rc::new(Cell::new(0)));
    let counted = Rc::clone(&requests);
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, requests) = (Rc::clone(&answer), Rc::clone(&counted));
            spawn_local(async move {
                let mut number = 0;
                while stream.read(&mut [0; 4096]).await.unwrap_or(0) > 0 {
                    requests.set(requests.get() + 1);
                    let Some(said) = answer(number).await else { return };
                    if stream.write_all(&said).await.is_err() {
                        return;
                    }
                    number += 1;
                }
            });
        }
    });
    (port, requests)
}

/// An element of less than 128 bytes.
fn ber(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    [&[tag, u8::try_from(content.len()).unwrap()], &content[..]].concat()
}

/// A response of the operation with this tag, and this code.
fn outcome(id: u8, tag: u8, code: u8) -> Vec<u8> {
    vec![0x30, 12, 2, 1, id, tag, 7, 10, 1, code, 4, 0, 4, 0]
}

#[test]
fn what_is_no_ldap_and_answers_that_nobody_asked_for() {
    run(async {
        let deep: Vec<u8> = std::iter::repeat_n([0x30, 0x84, 0, 0, 0xff, 0], 12_000).flatten().collect();
        for (what, said) in [
            ("garbage", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
            ("endless", [&[0x30, 0x84, 0x7f, 0xff, 0xff, 0xff][..], &[0; 100_000]].concat()),
            ("nested", deep),
            ("another id", outcome(9, 0x61, 0)),
            ("another kind", outcome(1, 0x65, 0)),
            ("a notice of disconnection", outcome(0, 0x78, 52)),
            ("an end", Vec::new()),
        ] {
            let instance = Instance::new();
            let answer = said.clone();
            let (port, _) = fake(async move |_| (!answer.is_empty()).then(|| answer.clone())).await;
            configure(&instance, &clear(port), "");
            let said = instance.start(&[]).await.login(b"ann@a.example", b"ann-password").await.why();
            assert!(!said.contains("in time"), "{what}: {said}");
        }
    });
}

#[test]
fn a_slow_server_is_waited_for_and_one_that_never_ends_is_not() {
    run(async {
        let values = ber(0x31, &[&ber(4, &[b"slow@a.example"])]);
        let attributes = ber(0x30, &[&ber(0x30, &[&ber(4, &[b"mail"]), &values])]);
        let entry = ber(0x30, &[&[2, 1, 2], &ber(0x64, &[&ber(4, &[b"uid=slow"]), &attributes])]);
        let found = [entry, outcome(2, 0x65, 0)].concat();
        let slow = move |number| [outcome(1, 0x61, 0), found.clone(), outcome(3, 0x61, 0)].get(number).cloned();
        let (port, _) = fake(async move |number| {
            tokio::time::sleep(Duration::from_millis(300)).await;
            slow(number)
        })
        .await;
        let instance = Instance::new();
        configure(&instance, &clear(port), "");
        assert_eq!(instance.start(&[]).await.login(b"x@a.example", b"y").await, Said::right("slow@a.example"));
        // One reference after the other, each a whole message.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                spawn_local(endless(stream));
            }
        });
        let instance = Instance::new();
        configure(&instance, &clear(port), "");
        assert!(instance.start(&[]).await.login(b"x@a.example", b"y").await.why().contains("no answer in time"));
    });
}

async fn endless(mut stream: TcpStream) {
    let _ = stream.read(&mut [0; 4096]).await;
    let _ = stream.write_all(&outcome(1, 0x61, 0)).await;
    let _ = stream.read(&mut [0; 4096]).await;
    while stream.write_all(b"\x30\x08\x02\x01\x02\x73\x03\x04\x01x").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn nothing_said_before_tls_counts_and_no_password_goes_out_without_it() {
    run(async {
        // Success, and behind it, in the clear, the answer to a bind that was not sent yet.
        let (port, requests) = fake(async |_| Some([outcome(1, 0x78, 0), outcome(2, 0x61, 0)].concat())).await;
        let instance = Instance::new();
        configure(&instance, &format!("url ldap://127.0.0.1:{port}"), "");
        let said = instance.start(&[]).await.login(b"ann@a.example", b"ann-password").await.why();
        assert!(said.contains("in the clear behind STARTTLS"), "{said}");
        assert_eq!(requests.get(), 1, "nothing but the request for TLS was sent");
        let (port, requests) = fake(async |_| Some(outcome(1, 0x78, 2))).await;
        configure(&instance, &format!("url ldap://127.0.0.1:{port}"), "");
        let said = instance.start(&[]).await.login(b"ann@a.example", b"ann-password").await.why();
        assert!(said.contains("STARTTLS: LDAP result 2"), "{said}");
        assert_eq!(requests.get(), 1);
    });
}

#[test]
fn a_name_without_an_address_and_an_empty_password_ask_nobody() {
    run(async {
        let (port, requests) = fake(async |_| None).await;
        let instance = Instance::new();
        configure(&instance, &format!("url ldap://gone.example:{port}\nstarttls no"), "");
        assert!(instance.start(&[]).await.login(b"a", b"b").await.why().contains("has no address"));
        configure(&instance, &clear(port), "");
        let authnet = instance.start(&[]).await;
        assert_eq!(authnet.login(b"ann@a.example", b"").await, Said::Wrong);
        assert_eq!(authnet.login(b"", b"x").await, Said::Nobody);
        assert_eq!(requests.get(), 0);
        // A source that is not configured is not now, not wrong.
        assert!(authnet.token("", "x").await.why().contains("without the source `oauth`"));
    });
}
