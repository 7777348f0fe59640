//! The real program, killed again and again under traffic: each message that was acknowledged is delivered, and twice only if its
//! delivery was under way when the process died.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::Instance;
use ipc::field::Verdict;
use ipc::queue::Answer as QueueAnswer;
use ipc::{DATAGRAM_LEN_MAX, Message};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use sandbox::Socket;
use sys::spawn::{Child, Spawn};
use sys::{Received, Seqpacket};

const CONCURRENCY: usize = 10;
const KILLS: usize = 6;
const SUBMITTERS: u64 = 4;

struct Process {
    child: Child,
    _life: std::os::fd::OwnedFd,
}

/// Starts the program as qmail-start does and waits until it is ready.
fn start(instance: &Instance) -> Process {
    let (lifeline, life) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (ready, ready_child) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (run, null) = (instance.run_dir(), File::options().write(true).open("/dev/null").unwrap());
    let doors = [Socket::Queue, Socket::Inject, Socket::AdminSend].map(|socket| (socket, instance.door(socket)));
    let mut spawn =
        Spawn::new(Path::new(env!("CARGO_BIN_EXE_qmail-send"))).arg("--service").env("QMAIL_ROOT", instance.root.path());
    spawn = spawn.fd("lifeline", lifeline.as_fd()).fd("ready", ready_child.as_fd()).fd("run", run.as_fd()).stderr(null.as_fd());
    for (socket, fd) in &doors {
        spawn = spawn.fd(&format!("serve:{}", socket.name()), fd.as_fd());
    }
    let child = spawn.start().unwrap();
    drop((lifeline, ready_child));
    assert_eq!(rustix::io::read(&ready, &mut [0u8; 1][..]).unwrap(), 1, "it did not get ready");
    Process { child, _life: life }
}

fn commit(socket: &Seqpacket, recipient: &str) -> Option<bool> {
    for datagram in harness::datagrams("", &[recipient], b"Subject: x\n\ntext\n") {
        socket.send(&datagram).ok()?;
    }
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    match socket.recv(&mut buf) {
        Ok(Received::Datagram(len, _)) => Some(matches!(QueueAnswer::decode(&buf[..len]), Ok(QueueAnswer::Accepted { .. }))),
        _ => None,
    }
}

#[test]
fn killed_again_and_again_nothing_is_lost() {
    let instance = Arc::new(Instance::new(&[
        ("concurrencylocal", &format!("{CONCURRENCY}\n")),
        (
            "ids",
            "qmailp 64101 64100\nqmaila 64102 64100\nqmaild 64103 64100\nqmailq 64104 64100\nqmailr 64105 64100\nqmailx 64106 64100\nalias 64107 64107\n",
        ),
    ]));
    // The table of ids lies beside the control directory.
    std::fs::rename(instance.root.control_file("ids"), instance.root.ids_file()).unwrap();
    let local = instance.deliverer(Socket::Lspawn, |_| (Verdict::Success, "did 1+0+0\n"));
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let submitters: Vec<_> = (0..SUBMITTERS)
        .map(|_| {
            let (instance, stop, next, acknowledged) =
                (Arc::clone(&instance), Arc::clone(&stop), Arc::clone(&next), Arc::clone(&acknowledged));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let socket = instance.connect(Socket::Inject);
                    loop {
                        let recipient = format!("u{}@here.example", next.fetch_add(1, Ordering::Relaxed));
                        match commit(&socket, &recipient) {
                            Some(true) => acknowledged.lock().unwrap().push(recipient),
                            Some(false) => {}
                            None => break,
                        }
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for round in 0..KILLS {
        let process = start(&instance);
        std::thread::sleep(Duration::from_millis(150 + 37 * round as u64));
        process.child.signal(Signal::KILL);
        assert!(matches!(process.child.wait(), sys::spawn::Ended::Signal(9)));
    }
    let process = start(&instance);
    stop.store(true, Ordering::Relaxed);
    submitters.into_iter().for_each(|thread| thread.join().unwrap());
    wait_until_empty(&instance);
    process.child.signal(Signal::TERM);
    assert_eq!(process.child.wait(), sys::spawn::Ended::Code(0));
    let acknowledged = acknowledged.lock().unwrap();
    let mut delivered = HashMap::<String, usize>::new();
    local.recipients().into_iter().for_each(|recipient| *delivered.entry(recipient).or_default() += 1);
    assert!(acknowledged.len() > 100, "only {} were acknowledged", acknowledged.len());
    let lost: Vec<_> = acknowledged.iter().filter(|recipient| !delivered.contains_key(*recipient)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let twice: usize = delivered.values().map(|count| count - 1).sum();
    assert!(twice <= KILLS * CONCURRENCY, "{twice} deliveries were repeated");
}

fn wait_until_empty(instance: &Instance) {
    use ipc::admin::{QueueAnswer, QueueRequest};
    let (control, start) = (instance.connect(Socket::AdminSend), Instant::now());
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    loop {
        control.send(&QueueRequest::Stats {}.encode()).unwrap();
        let Ok(Received::Datagram(len, _)) = control.recv(&mut buf) else { panic!() };
        let Ok(QueueAnswer::Stats { counters }) = QueueAnswer::decode(&buf[..len]) else { panic!() };
        if counters.iter().any(|counter| counter.name.0 == b"messages" && counter.value == 0) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{counters:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
