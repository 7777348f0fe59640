//! qmail-authnet as qmail-auth sees it: its socket, with a qmail-resolve that knows what the test says.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use control::Root;
use ipc::Message as _;
use ipc::authnet::{Answer, Request};
use ipc::resolve::{Answer as Resolved, Host, Request as Question};
use ipc_async::{Client, Listener};
use qmail_authnet::service::{Judges, serve};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::spawn_local;
use wire::Secret;

/// Nobody waits longer for an answer of qmail-authnet: a slow machine has room.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A root with control files.
pub(crate) struct Instance {
    dir: tempfile::TempDir,
    pub(crate) root: Root,
}

impl Instance {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        for made in [root.control(), root.run().join("roles")] {
            std::fs::create_dir_all(made).unwrap();
        }
        Self { dir, root }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn control(&self, name: &str, text: &str) {
        std::fs::write(self.root.control_file(name), text).unwrap();
    }

    pub(crate) fn secret(&self, name: &str, text: &str) {
        self.control(name, text);
        std::fs::set_permissions(self.root.control_file(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Why it does not start.
    pub(crate) fn refusal(&self) -> String {
        Judges::read(&self.root, self.run()).err().expect("it must not start").to_string()
    }

    fn run(&self) -> OwnedFd {
        std::fs::File::open(self.root.run()).unwrap().into()
    }

    /// Runs it; names have the addresses that `hosts` says.
    pub(crate) async fn start(&self, hosts: &[(&'static str, &str)]) -> Authnet {
        let run = self.run();
        for name in ["resolve", "authnet"] {
            let _ = std::fs::remove_file(self.root.run().join(format!("roles/{name}.sock")));
        }
        let resolve = Listener::new(sys::seqpacket::listen(run.as_fd(), "roles/resolve.sock").unwrap()).unwrap();
        let listener = Listener::new(sys::seqpacket::listen(run.as_fd(), "roles/authnet.sock").unwrap()).unwrap();
        let hosts: Vec<(&str, std::net::IpAddr)> =
            hosts.iter().map(|(name, address)| (*name, address.parse().unwrap())).collect();
        spawn_local(resolver(resolve, hosts));
        let judges = Rc::new(Judges::read(&self.root, run.try_clone().unwrap()).unwrap());
        spawn_local(async move { serve(&listener, &judges, |_| true).await });
        Authnet { client: Client::new(Rc::new(run), "roles/authnet.sock", PATIENCE) }
    }
}

async fn resolver(listener: Listener, hosts: Vec<(&'static str, std::net::IpAddr)>) {
    while let Ok(connection) = listener.accept().await {
        let hosts = hosts.clone();
        spawn_local(async move {
            while let Ok(Some((datagram, _))) = connection.recv().await {
                let Question::Addresses { id, host } = Question::decode(&datagram).unwrap() else { panic!("only addresses") };
                let addresses = hosts.iter().filter(|(name, _)| name.as_bytes() == &*host).map(|(_, address)| *address).collect();
                let host = Host { preference: 0, name: host, addresses, temporary: false };
                let answer = Resolved::Hosts { id, hosts: vec![host], implicit: true, ttl_s: 60 };
                connection.send(&answer.encode()).await.unwrap();
            }
        });
    }
}

/// One that runs.
pub(crate) struct Authnet {
    client: Client<Answer>,
}

/// What it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Right(String),
    Wrong,
    Nobody,
    NotNow(String),
}

impl Said {
    pub(crate) fn right(user: &str) -> Self {
        Self::Right(user.to_owned())
    }

    /// The text of "not now".
    pub(crate) fn why(self) -> String {
        match self {
            Self::NotNow(text) => text,
            other => panic!("{other:?}"),
        }
    }
}

impl Authnet {
    pub(crate) async fn login(&self, login: &[u8], password: &[u8]) -> Said {
        let (login, password) = (login.into(), Secret::new(password.to_vec()));
        let (source, service, remote) = ("ldap".into(), "smtp".into(), Some("192.0.2.1".parse().unwrap()));
        self.ask(|id| Request::Check { id, source, service, login, password, remote }).await
    }

    pub(crate) async fn token(&self, user: &str, token: &str) -> Said {
        let (user, token) = (user.into(), Secret::new(token.as_bytes().to_vec()));
        self.ask(|id| Request::Token { id, service: "smtp".into(), user, token, remote: None }).await
    }

    async fn ask(&self, request: impl FnOnce(u64) -> Request) -> Said {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        match self.client.ask(request).await.unwrap().0 {
            Answer::Right { user, .. } => Said::Right(text(&user)),
            Answer::Wrong { .. } => Said::Wrong,
            Answer::NoSuchUser { .. } => Said::Nobody,
            Answer::Unavailable { text: why, .. } => Said::NotNow(text(&why)),
        }
    }
}

/// Runs a test on the runtime that the program has.
pub(crate) fn run(test: impl Future<Output = ()>) {
    ipc_async::service::run(async {
        test.await;
        Ok(())
    })
    .unwrap();
}

/// An authority that only this test trusts.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, dir }
    }

    /// For `cafile`.
    pub(crate) fn file(&self) -> String {
        self.dir.join("ca.pem").display().to_string()
    }

    /// A certificate for a name, valid until that year: PEM files of chain and key.
    pub(crate) fn certify(&self, name: &str, until: i32) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = ["chain", "key"].map(|what| self.dir.join(format!("{name}.{until}.{what}.pem")));
        std::fs::write(&paths[0], certificate.pem()).unwrap();
        std::fs::write(&paths[1], key.serialize_pem()).unwrap();
        let [chain, key] = paths;
        (chain, key)
    }
}
