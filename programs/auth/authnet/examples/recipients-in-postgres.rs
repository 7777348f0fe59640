//! How long qmail-auth takes to say whether a recipient exists when the accounts are in PostgreSQL: nothing of it remembered, then remembered.
//!
//! `cargo run --release -p qmail-authnet --example recipients-in-postgres -- [USERS [SECONDS]]`: a PostgreSQL of Debian's in a temporary directory, on
//! its Unix socket, with so many users; qmail-auth and qmail-authnet in this process on their real sockets, asked like by qmail-smtpd. Every second
//! question names somebody who is not there. Then how long a login takes, of which a hash is the greatest part.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use accounts::Accounts;
use accounts::remote::Remote;
use control::{Id, Ids, Root};
use ipc::Message;
use ipc::auth::{Answer, Directory, Request};
use ipc_async::Listener;
use qmail_auth::{Listeners, Server, Setup};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::{Received, Seqpacket};
use system_tests::postgres::{PASSWORD, Postgres};
use wire::Address;

const DOMAIN: &str = "d.example";

fn main() {
    let mut numbers = std::env::args().skip(1).map(|arg| arg.parse::<usize>().unwrap());
    let users = numbers.next().unwrap_or(100_000);
    let time = Duration::from_secs(numbers.next().unwrap_or(5) as u64);
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let root = Root::new(&dir.path().join("root")).unwrap();
    for sub in [root.control(), root.users(), root.lib(), root.run().join("roles"), root.run().join("admin")] {
        std::fs::create_dir_all(sub).unwrap();
    }
    let Some(server) = Postgres::start("recipients-in-postgres", dir.path(), None).unwrap() else { return };
    for (file, text) in [("me", "host.example\n"), ("accounts", &server.url()), ("accountspassword", PASSWORD)] {
        std::fs::write(root.control_file(file), text).unwrap();
    }
    std::fs::set_permissions(root.control_file("accountspassword"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(root.domains_file(), format!("{DOMAIN}:64107:64107:/var/mail/{DOMAIN}\n")).unwrap();
    let run: Arc<OwnedFd> = Arc::new(std::fs::File::open(root.run()).unwrap().into());
    let _lifeline = serve(&root, &run);
    let socket = connect(&run);
    // The first question makes the tables.
    recipient(&socket, "x");
    let hash = accounts::password::hash(b"secret").unwrap();
    server
        .sql(&format!(
            "INSERT INTO account (domain, name, password, created_s)
             SELECT convert_to('{DOMAIN}', 'UTF8'), convert_to('user' || n, 'UTF8'), '{hash}', 0 FROM generate_series(0, {users} - 1) n"
        ))
        .unwrap();
    server.sql("VACUUM ANALYZE account").unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    for under_way in [1, 32] {
        let took = ask(&connect(&run), users, under_way, time);
        print(&format!("nothing remembered, {under_way} under way"), took);
    }
    print("remembered", ask(&socket, 50, 1, time));
    let alone = |_| {
        let start = Instant::now();
        assert!(accounts::password::verify(Some(&hash), b"secret").unwrap());
        start.elapsed()
    };
    print("a hash alone", (0..100).map(alone).collect());
    print("login", (0..100).map(|n| login(&socket, n * 37 % users)).collect());
}

fn connect(run: &OwnedFd) -> Seqpacket {
    let socket = Seqpacket::connect(run.as_fd(), "roles/auth.sock").unwrap();
    socket.set_deadline(Duration::from_secs(20)).unwrap();
    socket
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    println!("{what}: median {:.1} µs, p99 {:.1} µs, {} answers", at(50), at(99), took.len());
}

fn serve(root: &Root, run: &Arc<OwnedFd>) -> OwnedFd {
    let accounts = sys::seqpacket::listen(run.as_fd(), "roles/accounts.sock").unwrap();
    let (for_net, dir) = (root.clone(), run.try_clone().unwrap());
    std::thread::spawn(move || {
        ipc_async::service::run(async move {
            let postgres = Rc::new(qmail_authnet::service::postgres(&for_net, dir).unwrap().unwrap());
            let listener = Listener::new(accounts)?;
            tokio::select! {
                end = postgres.serve(&listener, |_| true) => end,
                () = postgres.watch() => Ok(()),
            }
        })
    });
    let auth = sys::seqpacket::listen(run.as_fd(), "roles/auth.sock").unwrap();
    let listeners = Listeners { auth: Some(auth), ..Listeners::default() };
    let id = Id { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let accounts = Accounts::elsewhere(Remote::new(Arc::clone(run), "roles/accounts.sock"));
    let setup = Setup { root: root.clone(), accounts, ids: Ids::Caller(id), run: Arc::clone(run) };
    let (far, lifeline) = rustix::pipe::pipe().unwrap();
    std::thread::spawn(move || Server::new(setup, listeners).unwrap().run(Some(&far)).unwrap());
    lifeline
}

fn address(local: &str) -> Address {
    Address::join(local.as_bytes(), DOMAIN.as_bytes()).unwrap()
}

fn hear(socket: &Seqpacket) -> Answer {
    let mut buf = vec![0; 1024];
    let Received::Datagram(len, _) = socket.recv(&mut buf).unwrap() else { panic!("closed") };
    Answer::decode(&buf[..len]).unwrap()
}

fn recipient(socket: &Seqpacket, local: &str) -> Answer {
    socket.send(&Request::Recipient { id: 1, address: address(local) }.encode()).unwrap();
    hear(socket)
}

/// Asks for `time`; how long each answer took.
fn ask(socket: &Seqpacket, users: usize, under_way: usize, time: Duration) -> Vec<Duration> {
    let (mut sent, mut took, start) = (VecDeque::new(), Vec::new(), Instant::now());
    let mut n: usize = 0;
    while start.elapsed() < time {
        while sent.len() < under_way {
            let name = format!("user{}", n.wrapping_mul(7919) % users);
            let is_there = n.is_multiple_of(2);
            let local = if is_there { name } else { format!("{name}x") };
            socket.send(&Request::Recipient { id: n as u64, address: address(&local) }.encode()).unwrap();
            sent.push_back((n as u64, is_there, Instant::now()));
            n += 1;
        }
        let Answer::Recipient { id, verdict } = hear(socket) else { panic!("another answer") };
        let at = sent.iter().position(|(sent, _, _)| *sent == id).unwrap();
        let (_, is_there, at) = sent.remove(at).unwrap();
        assert_eq!(verdict == Directory::Mailbox {}, is_there, "{verdict:?}");
        took.push(at.elapsed());
    }
    took
}

fn login(socket: &Seqpacket, n: usize) -> Duration {
    let (login, start) = (format!("user{n}@{DOMAIN}"), Instant::now());
    let (login, password) = (login.as_str().into(), wire::Secret::new(b"secret".to_vec()));
    socket.send(&Request::Login { id: 1, service: "smtp".into(), login, password, remote: None }.encode()).unwrap();
    let Answer::LoggedIn { .. } = hear(socket) else { panic!("not logged in") };
    start.elapsed()
}
