//! Tokens against an issuer that answers well, badly, or not at all.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Authority, Instance, Said, run};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use qmail_authnet::dial::Io;
use rustls::ServerConnection;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

/// A question as it came.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    target: String,
    authorization: String,
    body: String,
}

/// The issuer: `answer` gets each question, by its number.
#[derive(Clone)]
struct Issuer {
    port: u16,
    asked: Rc<RefCell<Vec<Asked>>>,
}

type Answer = Response<Full<Bytes>>;

impl Issuer {
    async fn start(tls: Option<Arc<rustls::ServerConfig>>, answer: impl AsyncFn(Asked) -> Answer + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Self { port: listener.local_addr().unwrap().port(), asked: Rc::default() };
        let (asked, answer) = (Rc::clone(&issuer.asked), Rc::new(answer));
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let io: Box<dyn Io> = match &tls {
                    None => Box::new(stream),
                    Some(config) => {
                        let mut stream = tls::Stream::new(stream, ServerConnection::new(Arc::clone(config)).unwrap());
                        if stream.handshake().await.is_err() {
                            continue;
                        }
                        Box::new(stream)
                    }
                };
                let (asked, answer) = (Rc::clone(&asked), Rc::clone(&answer));
                let service = service_fn(move |request| {
                    let (asked, answer) = (Rc::clone(&asked), Rc::clone(&answer));
                    async move {
                        let question = read(request).await;
                        asked.borrow_mut().push(question.clone());
                        Ok::<_, Infallible>(answer(question).await)
                    }
                });
                spawn_local(async move { http1::Builder::new().serve_connection(TokioIo::new(io), service).await });
            }
        });
        issuer
    }

    fn questions(&self) -> usize {
        self.asked.borrow().len()
    }

    fn last(&self) -> Asked {
        self.asked.borrow().last().unwrap().clone()
    }
}

async fn read(request: Request<Incoming>) -> Asked {
    let (head, body) = request.into_parts();
    let authorization = head.headers.get("authorization").map_or("", |value| value.to_str().unwrap()).to_owned();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Asked { method: head.method.to_string(), target: head.uri.to_string(), authorization, body }
}

fn json(value: &Value) -> Answer {
    Response::new(Full::new(Bytes::from(value.to_string())))
}

fn status(code: u16, header: Option<(&'static str, String)>, body: &str) -> Answer {
    let mut response = Response::builder().status(code);
    if let Some((name, value)) = header {
        response = response.header(name, value);
    }
    response.body(Full::new(Bytes::from(body.to_owned()))).unwrap()
}

fn in_s(seconds: u64) -> u64 {
    sys::clock::unix_s() + seconds
}

/// control/oauth with introspection at that address.
fn configure(instance: &Instance, url: &str, more: &str) {
    instance.secret("oauth.secret", "s:3+cret ä\n");
    instance.control("authsources", "accounts\noauth\n");
    instance.control("oauth", &format!("introspection {url}\nclientid mail server\nclientsecretfile oauth.secret\n{more}"));
}

#[test]
fn active_inactive_expired_and_for_somebody_else() {
    run(async {
        let issuer = Issuer::start(None, async |asked: Asked| {
            let token =
                asked.body.strip_prefix("token=").unwrap().strip_suffix("&token_type_hint=access_token").unwrap().to_owned();
            let good = json!({"active": true, "username": "ann@a.example", "scope": "mail", "aud": "mx", "iss": "i"});
            let changed = |member: &str, value: Value| {
                let mut answer = good.clone();
                answer[member] = value;
                json(&answer)
            };
            match token.as_str() {
                "good" | "a%2Bb%2Fc%3D%3D" => json(&good),
                "expired" => changed("exp", json!(in_s(0))),
                "soon" => changed("exp", json!(in_s(3600))),
                "audience" => changed("aud", json!(["else"])),
                "scope" => changed("scope", json!("profile")),
                "issuer" => changed("iss", json!("j")),
                "nameless" => changed("username", Value::Null),
                _ => json(&json!({"active": false})),
            }
        })
        .await;
        let instance = Instance::new();
        let url = format!("http://127.0.0.1:{}/introspect?x=y", issuer.port);
        configure(&instance, &url, "scope mail\naudience mx\nissuer i\n");
        let authnet = instance.start(&[]).await;
        let ann = Said::right("ann@a.example");
        assert_eq!(authnet.token("", "good").await, ann);
        let asked = issuer.last();
        assert_eq!((asked.method.as_str(), asked.target.as_str()), ("POST", "/introspect?x=y"));
        // RFC 6749 §2.3.1: both parts as in a form, then base64.
        let credentials = wire::base64::decode(asked.authorization.strip_prefix("Basic ").unwrap().as_bytes()).unwrap();
        assert_eq!(credentials, b"mail%20server:s%3A3%2Bcret%20%C3%A4");
        assert_eq!(authnet.token("", "a+b/c==").await, ann);
        assert_eq!(authnet.token("Ann@A.example", "soon").await, ann);
        assert_eq!(authnet.token("bob@a.example", "good").await, Said::Wrong, "somebody else's token");
        for token in ["expired", "audience", "scope", "issuer", "nameless", "unknown", "good&token=x", "x\r\nX: y"] {
            assert_eq!(authnet.token("ann@a.example", token).await, Said::Wrong, "{token}");
        }
        let before = issuer.questions();
        assert_eq!(authnet.token("", "").await, Said::Wrong);
        assert!(authnet.login(b"a", b"b").await.why().contains("without the source `ldap`"));
        assert_eq!(issuer.questions(), before);
    });
}

#[test]
fn a_good_token_is_believed_for_a_while_and_not_beyond_its_end_and_a_bad_one_never() {
    run(async {
        let issuer = Issuer::start(None, async |asked: Asked| match asked.body.contains("token=good") {
            true => json(&json!({"active": true, "username": "ann"})),
            false if asked.body.contains("token=short") => json(&json!({"active": true, "username": "ann", "exp": in_s(2)})),
            false => json(&json!({"active": false})),
        })
        .await;
        let instance = Instance::new();
        configure(&instance, &format!("http://127.0.0.1:{}/", issuer.port), "domain a.example\n");
        let authnet = instance.start(&[]).await;
        let ann = Said::right("ann@a.example");
        for _ in 0..3 {
            assert_eq!(authnet.token("", "good").await, ann);
        }
        assert_eq!(authnet.token("bob@a.example", "good").await, Said::Wrong, "what is remembered is whose it is");
        assert_eq!(issuer.questions(), 1);
        for _ in 0..2 {
            assert_eq!(authnet.token("", "bad").await, Said::Wrong);
        }
        assert_eq!(issuer.questions(), 3);
        assert_eq!(authnet.token("", "short").await, ann);
        assert_eq!(issuer.questions(), 4);
        tokio::time::sleep(Duration::from_millis(2100)).await;
        assert_eq!(authnet.token("", "short").await, ann, "the issuer gave it two more seconds");
        assert_eq!(issuer.questions(), 5, "it was asked again");
    });
}

#[test]
fn an_issuer_in_trouble_is_not_now_and_never_followed_elsewhere() {
    run(async {
        let elsewhere = Issuer::start(None, async |_| json(&json!({"active": true, "username": "ann"}))).await;
        let away = format!("http://127.0.0.1:{}/", elsewhere.port);
        for (what, why) in [
            ("redirect", "status 307"),
            ("moved", "status 302"),
            ("broken", "status 500"),
            ("busy", "status 503"),
            ("client", "status 401"),
            ("created", "status 201"),
            ("long", "length limit"),
            ("html", "no JSON"),
            ("empty", "no JSON"),
            ("deep", "no JSON"),
        ] {
            let away = away.clone();
            let issuer = Issuer::start(None, async move |_| {
                let to = Some(("location", away.clone()));
                let active = json!({"active": true, "username": "ann"}).to_string();
                match what {
                    "redirect" => status(307, to, &active),
                    "moved" => status(302, to, &active),
                    "broken" => status(500, None, &active),
                    "busy" => status(503, None, ""),
                    "client" => status(401, None, &active),
                    "created" => status(201, None, &active),
                    "long" => status(200, None, &format!("{{\"active\":true,\"x\":\"{}\"}}", "x".repeat(70_000))),
                    "html" => status(200, None, "<html>"),
                    "deep" => status(200, None, &"[".repeat(60_000)),
                    _ => status(200, None, ""),
                }
            })
            .await;
            let instance = Instance::new();
            configure(&instance, &format!("http://127.0.0.1:{}/", issuer.port), "");
            let said = instance.start(&[]).await.token("", "x").await.why();
            assert!(said.contains(why), "{what}: {said}");
            assert_eq!(issuer.questions(), 1);
        }
        assert_eq!(elsewhere.questions(), 0);
    });
}

#[test]
fn an_issuer_that_hangs_is_left_alone_and_found_again() {
    run(async {
        let hangs = Rc::new(RefCell::new(true));
        let hanging = Rc::clone(&hangs);
        let issuer = Issuer::start(None, async move |_| {
            if *hanging.borrow() {
                std::future::pending::<()>().await;
            }
            json(&json!({"active": true, "username": "ann@a.example"}))
        })
        .await;
        let instance = Instance::new();
        configure(&instance, &format!("http://127.0.0.1:{}/", issuer.port), "");
        let authnet = Rc::new(instance.start(&[]).await);
        let asking: Vec<_> = (0..3)
            .map(|_| {
                let authnet = Rc::clone(&authnet);
                spawn_local(async move { authnet.token("", "x").await.why() })
            })
            .collect();
        for said in asking {
            assert!(said.await.unwrap().contains("no answer in time"));
        }
        assert!(authnet.token("", "x").await.why().contains("did not answer lately"));
        assert_eq!(issuer.questions(), 3);
        hangs.replace(false);
        let until = Instant::now() + common::PATIENCE;
        while authnet.token("", "x").await != Said::right("ann@a.example") {
            assert!(Instant::now() < until, "it is found again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn certificates() {
    run(async {
        let instance = Instance::new();
        let (ours, other) = (Authority::new(instance.dir(), "ours"), Authority::new(instance.dir(), "other"));
        for ((chain, key), is_good, why) in [
            (ours.certify("id.example", 2090), true, ""),
            (ours.certify("id2.example", 2090), false, "not valid for name"),
            (ours.certify("id.example", 2021), false, "expired"),
            (other.certify("id.example", 2090), false, "UnknownIssuer"),
        ] {
            let chain = CertificateDer::pem_file_iter(chain).unwrap().collect::<Result<_, _>>().unwrap();
            let key = PrivateKeyDer::from_pem_file(key).unwrap();
            let builder = rustls::ServerConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions();
            let config = builder.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
            let active = json!({"active": true, "username": "ann@a.example"});
            let issuer = Issuer::start(Some(Arc::new(config)), async move |_| json(&active)).await;
            let url = format!("https://id.example:{}/", issuer.port);
            configure(&instance, &url, &format!("cafile {}\n", ours.file()));
            let said = instance.start(&[("id.example", "127.0.0.1")]).await.token("", "x").await;
            if is_good {
                assert_eq!(said, Said::right("ann@a.example"));
            } else {
                let said = said.why();
                assert!(said.contains(why) && issuer.questions() == 0, "{said}");
            }
        }
    });
}

#[test]
fn userinfo_is_asked_with_the_token_itself() {
    run(async {
        let issuer = Issuer::start(None, async |asked: Asked| match asked.authorization.as_str() {
            "Bearer good" => json(&json!({"sub": "1", "email": "ann@a.example", "email_verified": true})),
            "Bearer unverified" => json(&json!({"sub": "2", "email": "bob@a.example", "email_verified": false})),
            "Bearer scope" => status(403, None, ""),
            _ => status(401, None, ""),
        })
        .await;
        let instance = Instance::new();
        instance.control("authsources", "oauth\n");
        instance.control("oauth", &format!("userinfo http://127.0.0.1:{}/me\n", issuer.port));
        let authnet = instance.start(&[]).await;
        assert_eq!(authnet.token("ann@a.example", "good").await, Said::right("ann@a.example"));
        assert_eq!((issuer.last().method.as_str(), issuer.last().target.as_str()), ("GET", "/me"));
        for token in ["unverified", "scope", "bad"] {
            assert_eq!(authnet.token("", token).await, Said::Wrong, "{token}");
        }
        let before = issuer.questions();
        assert_eq!(authnet.token("", "a\r\nX-Real: b").await, Said::Wrong);
        assert_eq!(issuer.questions(), before);
    });
}
