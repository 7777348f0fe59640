//! How many small messages a second qmail-send accepts durably and delivers, and what CPU time each costs it.
//!
//! `cargo run -p qmail-send --example accept -- [MESSAGES [CONNECTIONS [BYTES]]]`: connections on queue.sock hand in messages one
//! after the other, each waiting for its answer; a worker that says K at once stands in for qmail-lspawn. The spool is in the
//! directory for temporary files (TMPDIR), so the figure means as much as that disk does.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::Instance;
use ipc::field::Verdict;
use ipc::job::{Answer, Job, Outcome};
use ipc::{DATAGRAM_LEN_MAX, Message};
use sandbox::Socket;
use sys::{Received, Seqpacket};

fn main() {
    let mut args = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let (messages, connections, bytes) = (args.next().unwrap_or(20_000), args.next().unwrap_or(20), args.next().unwrap_or(4096));
    let instance = Instance::new(&[("concurrencylocal", "120\n")]);
    let delivered = Arc::new(AtomicU64::new(0));
    serve_lspawn(&instance, Arc::clone(&delivered));
    let send = instance.start();
    send.wait_for("status: ");
    let cpu = send_cpu();
    let start = Instant::now();
    let body = [&b"Subject: test\n\n"[..], &vec![b'x'; bytes]].concat();
    std::thread::scope(|scope| {
        for connection in 0..connections {
            let (socket, body) = (instance.connect(Socket::Queue), &body);
            let share = messages / connections + usize::from(connection < messages % connections);
            std::thread::Builder::new()
                .name("client".into())
                .spawn_scoped(scope, move || {
                    let datagrams = harness::datagrams("sender@x.example", &["user@here.example"], body);
                    for _ in 0..share {
                        datagrams.iter().for_each(|datagram| socket.send(datagram).unwrap());
                        assert!(matches!(harness::answer(&socket), ipc::queue::Answer::Accepted { .. }));
                    }
                })
                .unwrap();
        }
    });
    let accepted = start.elapsed();
    let accepted_cpu = send_cpu() - cpu;
    while delivered.load(Ordering::Relaxed) < messages as u64 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let done = start.elapsed();
    let cpu = send_cpu() - cpu;
    drop(send);
    let rate = |time: Duration| messages as f64 / time.as_secs_f64();
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / messages as f64;
    println!("accepted  {:>9.0} messages/s", rate(accepted));
    println!("delivered {:>9.0} messages/s", rate(done));
    println!("qmail-send: {:.1} us CPU/message until accepted, {:.1} in all", each(accepted_cpu), each(cpu));
}

fn serve_lspawn(instance: &Instance, delivered: Arc<AtomicU64>) {
    let door = instance.door(Socket::Lspawn);
    std::thread::Builder::new()
        .name("lspawn".into())
        .spawn(move || {
            let socket = loop {
                match sys::seqpacket::accept(door.as_fd()) {
                    Ok(socket) => break socket,
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            };
            socket.set_nonblocking(false).unwrap();
            answer_all(&socket, &delivered);
        })
        .unwrap();
}

fn answer_all(socket: &Seqpacket, delivered: &AtomicU64) {
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    while let Ok(Received::Datagram(len, _body)) = socket.recv_with_fd(&mut buf) {
        let Ok(Job::System { number, .. }) = Job::decode(&buf[..len]) else { panic!() };
        let outcome = Outcome { recipient: 0, verdict: Verdict::Success, text: "did 1+0+0\n".into() };
        let answer = Answer::Done { number, outcomes: vec![outcome], untried: vec![], last: true };
        delivered.fetch_add(1, Ordering::Relaxed);
        if socket.send(&answer.encode()).is_err() {
            return;
        }
    }
}

/// CPU time of the threads of this process that are qmail-send's: all but ours (`main`, the clients and the stand-in).
fn send_cpu() -> Duration {
    let ours = ["accept", "lspawn", "client"];
    let mut ticks = 0u64;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(')').unwrap();
        if !ours.contains(&name) {
            ticks += rest.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum::<u64>();
        }
    }
    Duration::from_millis(ticks * 10)
}
