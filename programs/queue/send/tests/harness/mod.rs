//! qmail-send in this process, over real sockets in a temporary instance, with workers that do as the test says.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use control::Root;
use ipc::field::Verdict;
use ipc::job::{Answer, Job, Outcome};
use ipc::queue::{Answer as QueueAnswer, Item, Packer};
use ipc::{DATAGRAM_LEN_MAX, Message};
use qmail_send::engine::{Engine, Identity, Now};
use qmail_send::log::LogWriter;
use qmail_send::service::{Doors, Service};
use qmail_send::settings::Settings;
use sandbox::Socket;
use spool::{Options, Spool};
use sys::{Received, Seqpacket};
use wire::Address;

pub(crate) fn a(text: &str) -> Address {
    Address::new(text.as_bytes()).unwrap()
}

/// A temporary instance: its files and listening sockets outlive one run of qmail-send.
pub(crate) struct Instance {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) root: Root,
    run: File,
    doors: HashMap<&'static str, OwnedFd>,
}

impl Instance {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        for path in [root.control(), root.users(), root.spool(), root.run().join("roles"), root.run().join("admin")] {
            std::fs::create_dir_all(path).unwrap();
        }
        let defaults = [("me", "here.example\n"), ("concurrencylocal", "10\n")];
        for (name, text) in defaults.iter().chain(files) {
            std::fs::write(
                root.etc().join(if name.contains('/') { (*name).to_owned() } else { format!("control/{name}") }),
                text,
            )
            .unwrap();
        }
        let run = File::open(root.run()).unwrap();
        let doors =
            Socket::ALL.into_iter().map(|socket| (socket.name(), sys::seqpacket::listen(run.as_fd(), socket.path()).unwrap()));
        Self { doors: doors.collect(), dir, root, run }
    }

    pub(crate) fn door(&self, socket: Socket) -> OwnedFd {
        self.doors.get(socket.name()).unwrap().try_clone().unwrap()
    }

    pub(crate) fn connect(&self, socket: Socket) -> Seqpacket {
        let socket = Seqpacket::connect(self.run.as_fd(), socket.path()).unwrap();
        socket.set_deadline(Duration::from_secs(20)).unwrap();
        socket
    }

    pub(crate) fn run_dir(&self) -> OwnedFd {
        self.run.try_clone().unwrap().into()
    }

    /// Starts qmail-send in a thread.
    pub(crate) fn start(&self) -> Running {
        let (lifeline, life) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let doors = Doors {
            lifeline,
            run: self.run_dir(),
            queue: self.door(Socket::Queue),
            inject: self.door(Socket::Inject),
            admin: self.door(Socket::AdminSend),
        };
        let (root, written) = (self.root.clone(), Arc::clone(&log));
        let thread = std::thread::Builder::new()
            .name("send".into())
            .spawn(move || {
                let settings = Settings::read(&root).unwrap();
                let ids = root.ids().unwrap_or(users::Ids::Caller(users::Id { uid: 0, gid: 0 }));
                let dir: OwnedFd = File::open(root.spool()).unwrap().into();
                let (spool, living) = Spool::open(dir, Options::default()).unwrap();
                let identity = Identity { uid: rustix::process::geteuid().as_raw(), pid: std::process::id() };
                let now = Now { s: sys::clock::unix_s(), boot: sys::clock::boottime() };
                let engine = Engine::new(spool, living, settings, identity, now);
                let mut service = Service::new(engine, doors, ids).unwrap();
                let mut log = LogWriter::new(move |bytes| {
                    written.lock().unwrap().extend_from_slice(bytes);
                    bytes.len()
                });
                service.run(None, &mut log).unwrap();
            })
            .unwrap();
        Running { life: Some(life), log, thread: Some(thread) }
    }

    /// Serves one socket with a thread that answers each datagram (and the body beside it) as `answer` says.
    pub(crate) fn worker(
        &self,
        socket: Socket,
        answer: impl FnMut(Vec<u8>, Option<OwnedFd>) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Worker {
        Worker::start(self.door(socket), Box::new(answer))
    }

    /// Delivers as `verdict` says and keeps what it saw.
    pub(crate) fn deliverer(
        &self,
        socket: Socket,
        mut verdict: impl FnMut(&Address) -> (Verdict, &'static str) + Send + 'static,
    ) -> Deliverer {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&seen);
        let worker = self.worker(socket, move |datagram, body| {
            let job = Job::decode(&datagram).unwrap();
            let body = read_all(body.unwrap());
            let (number, recipients) = of(&job);
            let outcomes = recipients.iter().zip(0..).map(|(recipient, at)| {
                let (verdict, text) = verdict(recipient);
                Outcome { recipient: at, verdict, text: text.into() }
            });
            let answer = Answer::Done { number, outcomes: outcomes.collect(), untried: vec![], last: true };
            record.lock().unwrap().push((job, body));
            vec![answer.encode()]
        });
        Deliverer { seen, worker }
    }
}

pub(crate) fn of(job: &Job) -> (u64, Vec<Address>) {
    match job {
        Job::System { number, recipient, .. } | Job::Mailbox { number, recipient, .. } | Job::Alias { number, recipient, .. } => {
            (*number, vec![recipient.clone()])
        }
        Job::Remote { number, recipients, .. } => (*number, recipients.clone()),
    }
}

fn read_all(fd: OwnedFd) -> Vec<u8> {
    let file = File::from(fd);
    let mut body = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut body, 0).unwrap();
    body
}

pub(crate) type Seen = Arc<Mutex<Vec<(Job, Vec<u8>)>>>;

pub(crate) struct Deliverer {
    pub(crate) seen: Seen,
    pub(crate) worker: Worker,
}

impl Deliverer {
    pub(crate) fn recipients(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let mut all: Vec<String> = seen.iter().flat_map(|(job, _)| of(job).1).map(|address| address.to_string()).collect();
        all.sort();
        all
    }
}

type Serve = Box<dyn FnMut(Vec<u8>, Option<OwnedFd>) -> Vec<Vec<u8>> + Send>;

pub(crate) struct Worker {
    stop: Arc<AtomicBool>,
    cut: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(door: OwnedFd, mut serve: Serve) -> Self {
        let (stop, cut) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, cutting) = (Arc::clone(&stop), Arc::clone(&cut));
        let thread = std::thread::spawn(move || {
            let mut clients: Vec<Seqpacket> = Vec::new();
            let mut buf = vec![0; DATAGRAM_LEN_MAX];
            while !stopped.load(Ordering::Relaxed) {
                if cutting.swap(false, Ordering::Relaxed) {
                    clients.clear();
                }
                wait(&door, &clients);
                clients.extend(sys::seqpacket::accept(door.as_fd()));
                clients.retain(|client| {
                    loop {
                        match client.recv_with_fd(&mut buf) {
                            Ok(Received::Datagram(len, fd)) => {
                                for answer in serve(buf[..len].to_vec(), fd) {
                                    client.set_nonblocking(false).unwrap();
                                    if client.send(&answer).is_err() {
                                        break;
                                    }
                                    client.set_nonblocking(true).unwrap();
                                }
                            }
                            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break true,
                            _ => break false,
                        }
                    }
                });
            }
        });
        Self { stop, cut, thread: Some(thread) }
    }

    /// Closes all connections, as a worker that died does.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
}

fn wait(door: &OwnedFd, clients: &[Seqpacket]) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds: Vec<_> = clients.iter().map(|client| PollFd::new(client, PollFlags::IN)).collect();
    fds.push(PollFd::new(door, PollFlags::IN));
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A run of qmail-send; ends with the lifeline.
pub(crate) struct Running {
    life: Option<OwnedFd>,
    log: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn log(&self) -> String {
        String::from_utf8(self.log.lock().unwrap().clone()).unwrap()
    }

    /// Waits until the log holds `text`.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        self.wait_until(text, |log| log.contains(text))
    }

    pub(crate) fn wait_until(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let log = self.log();
            if is(&log) {
                return log;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "never came: {what}\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops it and gives the whole log.
    pub(crate) fn stop(mut self) -> String {
        self.end();
        self.log()
    }

    fn end(&mut self) {
        self.life = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.life = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The datagrams of a message.
pub(crate) fn datagrams(sender: &str, recipients: &[&str], body: &[u8]) -> Vec<Vec<u8>> {
    let mut packer = Packer::new();
    let mut out = Vec::new();
    out.extend(packer.push(&Item::Begin { sender: a(sender), flags: 0 }));
    for recipient in recipients {
        out.extend(packer.push(&Item::Recipient(a(recipient))));
    }
    let mut rest = body;
    while !rest.is_empty() {
        out.extend(packer.push_data(&mut rest));
    }
    out.extend(packer.push(&Item::Commit));
    out.extend(packer.take());
    out
}

pub(crate) fn answer(socket: &Seqpacket) -> QueueAnswer {
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    match socket.recv(&mut buf).unwrap() {
        Received::Datagram(len, _) => QueueAnswer::decode(&buf[..len]).unwrap(),
        Received::End => panic!("qmail-send closed the connection"),
    }
}

/// Hands a message in and gives its number.
pub(crate) fn submit(socket: &Seqpacket, sender: &str, recipients: &[&str], body: &[u8]) -> u64 {
    for datagram in datagrams(sender, recipients, body) {
        socket.send(&datagram).unwrap();
    }
    match answer(socket) {
        QueueAnswer::Accepted { id, .. } => id,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}
