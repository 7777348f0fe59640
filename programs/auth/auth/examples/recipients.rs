//! How long qmail-auth takes to say whether a recipient exists, with many accounts: the figure behind "under 100 µs"; and what a login
//! takes beside its hash.
//!
//! `cargo run --release -p qmail-auth --example recipients -- [USERS [DOMAINS [SECONDS]]]`: makes an instance in a temporary directory
//! with so many users spread over so many domains, runs the real server in this process and asks it on its socket, like qmail-smtpd: one
//! question at a time, then 32 under way. Every second question names somebody who is not there. Then it logs in, each time as another
//! user, and in between computes the same hash by itself.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use accounts::{Account, Accounts, Directory as _, Entry, NewUser, UserName};
use control::{Id, Ids, Root};
use ipc::Message;
use ipc::auth::{Answer, Directory, Request};
use qmail_auth::{Listeners, Server, Setup};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::{Received, Seqpacket};
use wire::{Address, Domain};

/// Accounts of one transaction, as many as `qmail import` sends at once.
const BATCH: usize = 200;
/// Everybody's.
const PASSWORD: &[u8] = b"open sesame";
const LOGINS: usize = 200;
/// Questions under way in the second round, as of a worker with many sessions.
const UNDER_WAY: usize = 32;

fn main() {
    // As the program does.
    sys::heap::give_back_large();
    let mut numbers = std::env::args().skip(1).map(|arg| arg.parse::<usize>().unwrap());
    let users = numbers.next().unwrap_or(100_000);
    let domains = numbers.next().unwrap_or(1).clamp(1, users);
    let time = Duration::from_secs(numbers.next().unwrap_or(5) as u64);
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let root = Root::new(dir.path()).unwrap();
    let start = Instant::now();
    fill(&root, users, domains);
    println!("{users} accounts in {domains} domains, written in {:.1} s", start.elapsed().as_secs_f64());
    let run: Arc<OwnedFd> = Arc::new(std::fs::File::open(root.run()).unwrap().into());
    let _lifeline = serve(&root, &run);
    // Control files that were written just now are read again for each question.
    std::thread::sleep(Duration::from_millis(100));
    for under_way in [1, UNDER_WAY] {
        let socket = Seqpacket::connect(run.as_fd(), "roles/auth.sock").unwrap();
        socket.set_deadline(Duration::from_secs(20)).unwrap();
        let mut took = ask(&socket, users, domains, under_way, time);
        took.sort_unstable();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e6;
        let per_s = took.len() as f64 / time.as_secs_f64();
        println!("{under_way:>3} under way: median {:.1} µs, p99 {:.1} µs, {per_s:.0} questions/s", at(50), at(99));
    }
    log_in(&run, users, domains);
}

/// Logins and hashes in turn: whatever else the machine does takes from both. Times of the clock, and of the processors, which other
/// programs do not lengthen.
fn log_in(run: &Arc<OwnedFd>, users: usize, domains: usize) {
    let socket = Seqpacket::connect(run.as_fd(), "roles/auth.sock").unwrap();
    socket.set_deadline(Duration::from_secs(20)).unwrap();
    let mut hasher = accounts::password::Hasher::default();
    let stored = hasher.hash(PASSWORD).unwrap();
    let (mut logins, mut hashes, mut buf) = (Vec::new(), Vec::new(), vec![0; 1024]);
    for n in 0..LOGINS {
        hashes.push(timed(|| assert!(hasher.verify(Some(&stored), PASSWORD).unwrap())));
        let (name, domain) = user(n.wrapping_mul(7919) % users, domains);
        let login = format!("{name}@{domain}").as_str().into();
        let (id, service, password) = (n as u64, "smtp".into(), wire::Secret::new(PASSWORD.to_vec()));
        logins.push(timed(|| {
            socket.send(&Request::Login { id, service, login, password, remote: None }.encode()).unwrap();
            let Received::Datagram(len, _) = socket.recv(&mut buf).unwrap() else { panic!("closed") };
            let answer = Answer::decode(&buf[..len]).unwrap();
            assert!(matches!(answer, Answer::LoggedIn { .. }), "{answer:?}");
        }));
    }
    let median = |times: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| {
        let mut times: Vec<f64> = times.iter().map(which).collect();
        times.sort_unstable_by(f64::total_cmp);
        times[times.len() / 2] * 1e3
    };
    for (what, which) in [("clock", (|t| t.0) as fn(&(f64, f64)) -> f64), ("processor", |t| t.1)] {
        let (login, hash) = (median(&logins, which), median(&hashes, which));
        println!("login, {what} time: median {login:.2} ms, the hash alone {hash:.2} ms, the rest {:.2} ms", login - hash);
    }
}

/// Seconds of the clock and of this process's processors.
fn timed(run: impl FnOnce()) -> (f64, f64) {
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let (start, before) = (Instant::now(), cpu());
    run();
    (start.elapsed().as_secs_f64(), cpu() - before)
}

fn domain(n: usize) -> String {
    format!("d{n}.example")
}

/// User `n` of an instance with so many domains.
fn user(n: usize, domains: usize) -> (String, String) {
    (format!("user{n}"), domain(n % domains))
}

fn fill(root: &Root, users: usize, domains: usize) {
    for sub in [root.control(), root.users(), root.lib(), root.run().join("roles"), root.alias()] {
        std::fs::create_dir_all(sub).unwrap();
    }
    std::fs::write(root.control_file("me"), "host.example\n").unwrap();
    // What is made anew at the first login would be measured with the second.
    std::fs::write(root.control_file("authmechanisms"), "PLAIN\n").unwrap();
    let lines: String = (0..domains).map(|n| format!("{0}:64107:64107:/var/mail/{0}\n", domain(n))).collect();
    std::fs::write(root.domains_file(), lines).unwrap();
    let mut accounts = Accounts::open(&root.lib().join("accounts.sqlite")).unwrap();
    let hash = accounts::password::hash(PASSWORD).unwrap();
    let entry = |n: usize| {
        let (name, domain) = user(n, domains);
        let (domain, name) = (Domain::new(domain.as_bytes()).unwrap(), UserName::new(name.as_bytes()).unwrap());
        let (password_hash, account) = (hash.clone(), Account::default());
        Entry::User(Box::new(NewUser { domain, name, password_hash, account, has_default_quota: true }))
    };
    for first in (0..users).step_by(BATCH) {
        let entries: Vec<_> = (first..users.min(first + BATCH)).map(entry).collect();
        assert!(accounts.add(&entries).unwrap().iter().all(Result::is_ok));
    }
}

fn serve(root: &Root, run: &Arc<OwnedFd>) -> OwnedFd {
    let listeners =
        Listeners { auth: Some(sys::seqpacket::listen(run.as_fd(), "roles/auth.sock").unwrap()), ..Listeners::default() };
    let id = Id { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let accounts = Accounts::open(&root.lib().join("accounts.sqlite")).unwrap();
    let setup = Setup { root: root.clone(), accounts, ids: Ids::Caller(id), run: Arc::clone(run) };
    let (far, lifeline) = rustix::pipe::pipe().unwrap();
    std::thread::spawn(move || Server::new(setup, listeners).unwrap().run(Some(&far)).unwrap());
    lifeline
}

/// Asks for `time`; how long each answer took.
fn ask(socket: &Seqpacket, users: usize, domains: usize, under_way: usize, time: Duration) -> Vec<Duration> {
    let (mut buf, mut sent, mut took) = (vec![0; 1024], VecDeque::new(), Vec::new());
    let start = Instant::now();
    let mut n: usize = 0;
    while start.elapsed() < time {
        while sent.len() < under_way {
            // A stride that is no divisor: neighbours in the list are not neighbours in the database.
            let (name, domain) = user(n.wrapping_mul(7919) % users, domains);
            let is_there = n.is_multiple_of(2);
            let local = if is_there { name } else { format!("{name}x") };
            let address = Address::join(local.as_bytes(), domain.as_bytes()).unwrap();
            socket.send(&Request::Recipient { id: n as u64, address }.encode()).unwrap();
            sent.push_back((is_there, Instant::now()));
            n += 1;
        }
        let Received::Datagram(len, _) = socket.recv(&mut buf).unwrap() else { panic!("closed") };
        let Answer::Recipient { verdict, .. } = Answer::decode(&buf[..len]).unwrap() else { panic!("another answer") };
        let (is_there, at) = sent.pop_front().unwrap();
        assert_eq!(verdict == Directory::Mailbox {}, is_there, "{verdict:?}");
        took.push(at.elapsed());
    }
    took
}
