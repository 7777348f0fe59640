//! The service face over real sockets, with a qmail-auth and sessions that do what the test wants.
#![allow(clippy::unwrap_used)]

use control::popup::Popup;
use control::{Networks, Root};
use ipc::Message;
use ipc::auth::{Answer, Request};
use ipc_async::service::Lifeline;
use qmail_popup::{Door, Service, serve};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use sys::Received;
use sys::spawn::{Ended, Spawn};

struct Worker {
    dir: tempfile::TempDir,
    address: SocketAddr,
    lifeline: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

fn worker(files: &[(&str, &str)]) -> Worker {
    worker_on(TcpListener::bind("127.0.0.1:0").unwrap(), files)
}

fn worker_on(listener: TcpListener, files: &[(&str, &str)]) -> Worker {
    worker_behind(None, listener, files)
}

fn worker_behind(proxies: Option<&str>, listener: TcpListener, files: &[(&str, &str)]) -> Worker {
    let proxies = proxies.map(|networks| Networks::parse(networks.as_bytes()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path()).unwrap();
    std::fs::create_dir_all(root.control()).unwrap();
    std::fs::create_dir_all(root.run().join("roles")).unwrap();
    for (name, text) in files {
        std::fs::write(root.control_file(name), text).unwrap();
    }
    let address = listener.local_addr().unwrap();
    let (lifeline, far) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let config = Popup::read(&root).unwrap();
        let run: OwnedFd = std::fs::File::open(root.run()).unwrap().into();
        let service = Service { config, listeners: vec![(Door::Pop3, listener.into(), proxies)], run: Rc::new(run) };
        ipc_async::service::run(async move { serve(service, Lifeline::new(far.into())?).await }).unwrap();
    });
    Worker { dir, address, lifeline: Some(lifeline), thread: Some(thread) }
}

impl Worker {
    /// A qmail-auth whose one right password is `right`; `session` gets the other end of each session's socket.
    fn auth(&self, session: impl Fn(UnixStream) + Clone + Send + 'static) {
        drop(self.auth_of("127.0.0.1", session));
    }

    /// As [`Worker::auth`], for logins of a client; the addresses from where mailboxes were opened.
    fn auth_of(&self, client: &'static str, session: impl Fn(UnixStream) + Clone + Send + 'static) -> Arc<Mutex<Vec<String>>> {
        let noted = Arc::new(Mutex::new(Vec::new()));
        let arrived = Arc::clone(&noted);
        let run = std::fs::File::open(self.dir.path().join("run/qmail")).unwrap();
        let listener = sys::seqpacket::listen(run.as_fd(), "roles/auth.sock").unwrap();
        rustix::io::ioctl_fionbio(&listener, false).unwrap();
        let serve = move || {
            while let Ok(connection) = sys::seqpacket::accept(listener.as_fd()) {
                connection.set_nonblocking(false).unwrap();
                let mut buf = vec![0; 40_000];
                while let Ok(Received::Datagram(len, _)) = connection.recv(&mut buf) {
                    let (id, service, login, password, remote) = match Request::decode(&buf[..len]) {
                        Ok(Request::Login { id, service, login, password, remote }) => (id, service, login, password, remote),
                        Ok(Request::Arrived { id, address }) => {
                            arrived.lock().unwrap().push(address.to_string());
                            connection.send(&Answer::Noted { id }.encode()).unwrap();
                            continue;
                        }
                        other => panic!("{other:?}"),
                    };
                    assert_eq!(&*service, b"pop3");
                    assert_eq!(remote.map(|ip| ip.to_string()).as_deref(), Some(client));
                    match password.expose() {
                        b"right" => {
                            let (near, far) = UnixStream::pair().unwrap();
                            let session = session.clone();
                            std::thread::spawn(move || session(far));
                            connection.send_with_fd(&Answer::LoggedIn { id, user: login }.encode(), near.as_fd()).unwrap();
                        }
                        b"busy" => connection.send(&Answer::Unavailable { id, text: "busy".into() }.encode()).unwrap(),
                        _ => connection.send(&Answer::Refused { id, pause_s: 1 }.encode()).unwrap(),
                    }
                }
            }
        };
        std::thread::spawn(serve);
        noted
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends all, reads to the end.
    fn say(&self, text: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(text.as_bytes()).unwrap();
        rest(&mut stream)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.lifeline.take();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn rest(stream: &mut TcpStream) -> String {
    let mut out = String::new();
    stream.read_to_string(&mut out).unwrap();
    out
}

/// A session that greets and sends back what it gets, until it gets `QUIT`.
fn echo(mut session: UnixStream) {
    session.write_all(b"+OK \r\n").unwrap();
    let (mut buf, mut last) = ([0; 8192], Vec::new());
    loop {
        match session.read(&mut buf).unwrap() {
            0 => return session.write_all(b"[end of input]\r\n").unwrap(),
            len => {
                session.write_all(&buf[..len]).unwrap();
                last.extend_from_slice(&buf[..len]);
                if last.ends_with(b"QUIT\r\n") {
                    return;
                }
                last = last.split_off(last.len().saturating_sub(8));
            }
        }
    }
}

const GREETING: &str = "+OK POP3 server ready\r\n";
const LOGIN: &str = "USER ann@a.example\r\nPASS right\r\n";

#[test]
fn a_login_and_the_session_behind_it() {
    let worker = worker(&[]);
    worker.auth(echo);
    // All at once, and a byte at a time.
    let whole = format!("{LOGIN}STAT\r\nQUIT\r\n");
    let expected = format!("{GREETING}+OK \r\n+OK \r\nSTAT\r\nQUIT\r\n");
    assert_eq!(worker.say(&whole), expected);
    let mut stream = worker.connect();
    stream.set_nodelay(true).unwrap();
    for byte in whole.bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(rest(&mut stream), expected);
    assert_eq!(worker.say("CAPA\r\nNOOP\r\nSTAT\r\nQUIT\r\n").lines().last(), Some("+OK "));
}

#[test]
fn much_goes_through_both_ways() {
    let worker = worker(&[]);
    worker.auth(echo);
    let mut stream = worker.connect();
    stream.write_all(LOGIN.as_bytes()).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let body: Vec<u8> = (0..8_000_000u32).map(|n| b'a' + u8::try_from(n % 23).unwrap()).collect();
    let expected = [format!("{GREETING}+OK \r\n+OK \r\n").as_bytes(), &body, b"[end of input]\r\n"].concat();
    let thread = std::thread::spawn(move || {
        writer.write_all(&body).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut out = Vec::new();
    // Slowly at first, so that every buffer on the way fills.
    std::thread::sleep(Duration::from_millis(300));
    stream.read_to_end(&mut out).unwrap();
    thread.join().unwrap();
    assert!(out == expected, "{} of {} bytes", out.len(), expected.len());
}

#[test]
fn a_client_that_disappears_ends_its_session() {
    let worker = worker(&[]);
    let (sender, receiver) = std::sync::mpsc::channel();
    worker.auth(move |mut session| {
        let ended = session.read(&mut [0; 10]);
        sender.send(ended.is_err() || ended.is_ok_and(|len| len == 0)).unwrap();
    });
    let mut stream = worker.connect();
    stream.write_all(LOGIN.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    drop(stream);
    assert!(receiver.recv_timeout(Duration::from_secs(10)).unwrap());
}

#[test]
fn refused_logins_are_slowed_and_counted() {
    let worker = worker(&[]);
    worker.auth(echo);
    let start = Instant::now();
    let text = worker.say(&"USER ann@a.example\r\nPASS wrong\r\n".repeat(5));
    assert_eq!(text, format!("{GREETING}{}", "+OK \r\n-ERR [AUTH] authorization failed\r\n".repeat(3)));
    assert!(start.elapsed() >= Duration::from_secs(3));
    let text = worker.say("USER ann@a.example\r\nPASS busy\r\nUSER ann@a.example\r\nPASS right\r\nQUIT\r\n");
    assert!(text.contains("-ERR [SYS/TEMP]") && text.ends_with("+OK \r\n+OK \r\nQUIT\r\n"), "{text}");
}

#[test]
fn without_qmail_auth_a_login_is_temporary_and_its_return_is_noticed() {
    let worker = worker(&[]);
    let mut stream = worker.connect();
    stream.write_all(LOGIN.as_bytes()).unwrap();
    let mut buf = [0; 1000];
    let mut text = String::new();
    while !text.contains("-ERR") {
        let len = stream.read(&mut buf).unwrap();
        text.push_str(std::str::from_utf8(&buf[..len]).unwrap());
    }
    assert!(text.contains("-ERR [SYS/TEMP]"), "{text}");
    worker.auth(echo);
    stream.write_all(format!("{LOGIN}QUIT\r\n").as_bytes()).unwrap();
    assert_eq!(rest(&mut stream), "+OK \r\n+OK \r\nQUIT\r\n");
}

#[test]
fn no_password_from_where_it_is_not_allowed() {
    let worker = worker(&[("authcleartext", "192.0.2.0/24\n")]);
    worker.auth(|_| panic!("nobody may get in"));
    let text = worker.say(&format!("CAPA\r\n{LOGIN}QUIT\r\n"));
    assert_eq!(text.matches("not encrypted").count(), 2, "{text}");
    assert!(!text.contains("USER"));
}

#[test]
fn sessions_have_bounds_and_places_come_back() {
    let worker = worker(&[("concurrencypop3ip", "3")]);
    let greeted = || {
        let mut stream = worker.connect();
        let mut line = [0; 4];
        stream.read_exact(&mut line).unwrap();
        (stream, line == *b"+OK ")
    };
    let open: Vec<_> = (0..3).map(|_| greeted()).collect();
    assert!(open.iter().all(|(_, ok)| *ok));
    let (mut refused, ok) = greeted();
    assert!(!ok);
    assert_eq!(rest(&mut refused), " [SYS/TEMP] too many sessions, try again later\r\n");
    drop(open);
    let start = Instant::now();
    while !greeted().1 {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_full_worker_leaves_connections_to_one_that_has_room() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = listener.try_clone().unwrap();
    let (small, _large) = (worker_on(listener, &[("concurrencypop3", "1")]), worker_on(other, &[("concurrencypop3", "40")]));
    let mut open = Vec::new();
    for _ in 0..41 {
        open.push(small.connect());
        let Some(stream) = open.last_mut() else { continue };
        let mut greeting = [0; GREETING.len()];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(greeting, *GREETING.as_bytes(), "there is room for 41");
    }
    assert_eq!(rest(&mut small.connect()), "-ERR [SYS/TEMP] too many sessions, try again later\r\n");
}

#[test]
fn sigterm_ends_the_program() {
    let worker = worker(&[]);
    let run = std::fs::File::open(worker.dir.path().join("run/qmail")).unwrap();
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((lifeline, _ours), (said, ready)) = (pipe(), pipe());
    let stderr = std::io::stderr();
    let spawn = Spawn::new(Path::new(env!("CARGO_BIN_EXE_qmail-popup"))).arg("--service").stderr(stderr.as_fd());
    let spawn = spawn.env("QMAIL_ROOT", worker.dir.path()).fd("lifeline", lifeline.as_fd()).fd("run", run.as_fd());
    let child = spawn.fd("ready", ready.as_fd()).start().unwrap();
    assert_eq!(rustix::io::read(&said, &mut [0u8; 1][..]), Ok(1));
    child.signal(rustix::process::Signal::TERM);
    assert_eq!(child.wait(), Ended::Code(0));
}

#[test]
fn behind_a_proxy_the_address_it_tells_counts_and_is_noted() {
    let files = [("popbeforesmtp", "10"), ("authcleartext", "127.0.0.0/8\n198.51.100.0/24\n")];
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let worker = worker_behind(Some("127.0.0.1"), listen(), &files);
    let noted = worker.auth_of("198.51.100.7", echo);
    let header = |client: &str| format!("PROXY TCP4 {client} 203.0.113.9 12345 110\r\n");
    let text = worker.say(&format!("{}{LOGIN}QUIT\r\n", header("198.51.100.7")));
    assert!(text.ends_with("QUIT\r\n"), "{text}");
    assert_eq!(*noted.lock().unwrap(), ["198.51.100.7"]);
    let text = worker.say(&format!("{}{LOGIN}QUIT\r\n", header("203.0.113.7")));
    assert!(text.contains("not encrypted"), "{text}");
    let is_closed = |worker: &Worker, text: &str| {
        let (mut stream, mut out) = (worker.connect(), Vec::new());
        stream.write_all(text.as_bytes()).unwrap();
        // Over unread input the close is a reset.
        let _ = stream.read_to_end(&mut out);
        out.is_empty()
    };
    assert!(is_closed(&worker, "USER ann@a.example\r\n"), "no header");
    assert_eq!(noted.lock().unwrap().len(), 1);
    let closed = worker_behind(Some("127.0.0.2"), listen(), &files);
    assert!(is_closed(&closed, &header("198.51.100.7")), "not a proxy that was named");
}

#[test]
fn silence_ends_a_session_in_every_state() {
    let worker = worker(&[("timeoutpop3", "1")]);
    worker.auth(echo);
    assert_eq!(worker.say(""), GREETING);
    assert_eq!(worker.say("USER ann@a.example\r\nPA"), format!("{GREETING}+OK \r\n"));
    let start = Instant::now();
    assert_eq!(worker.say(&format!("{LOGIN}NOOP\r\n")), format!("{GREETING}+OK \r\n+OK \r\nNOOP\r\n"));
    assert!(start.elapsed() >= Duration::from_secs(1));
    // A byte now and then keeps a session, but does not prolong the dialogue.
    let mut stream = worker.connect();
    let start = Instant::now();
    while stream.write_all(b"x").is_ok() && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn many_idle_sessions() {
    let worker = worker(&[("concurrencypop3ip", "1000")]);
    worker.auth(echo);
    let mut open: Vec<TcpStream> = (0..300).map(|_| worker.connect()).collect();
    for stream in &mut open {
        stream.read_exact(&mut [0; GREETING.len()]).unwrap();
    }
    assert!(worker.say(&format!("{LOGIN}QUIT\r\n")).ends_with("QUIT\r\n"));
    for mut stream in open {
        stream.write_all(b"QUIT\r\n").unwrap();
        assert_eq!(rest(&mut stream), "+OK \r\n");
    }
}

#[test]
fn the_lifeline_lets_sessions_end() {
    let mut worker = worker(&[]);
    worker.auth(echo);
    let mut stream = worker.connect();
    stream.write_all(LOGIN.as_bytes()).unwrap();
    stream.read_exact(&mut [0; GREETING.len() + 12]).unwrap();
    worker.lifeline.take();
    std::thread::sleep(Duration::from_millis(200));
    stream.write_all(b"QUIT\r\n").unwrap();
    assert_eq!(rest(&mut stream), "QUIT\r\n");
}

#[test]
fn a_retired_server_ends_with_its_last_session() {
    let worker = worker(&[]);
    worker.auth(echo);
    let mut stream = worker.connect();
    stream.write_all(LOGIN.as_bytes()).unwrap();
    stream.read_exact(&mut [0; GREETING.len() + 12]).unwrap();
    worker.lifeline.as_ref().unwrap().write_all(b"r").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(worker.address).is_ok() {
        assert!(Instant::now() < deadline, "it goes on to accept");
        std::thread::sleep(Duration::from_millis(5));
    }
    stream.write_all(b"QUIT\r\n").unwrap();
    assert_eq!(rest(&mut stream), "QUIT\r\n");
    while !worker.thread.as_ref().unwrap().is_finished() {
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}
