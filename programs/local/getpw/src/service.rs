//! getpw.sock: one loop that never waits for NSS, and a few threads that do.
//!
//! Every question is answered within [`DEADLINE`]: with what a thread found, or with "temporary". When all threads have hung for
//! [`HUNG_MAX`] the process ends, and the fresh one that qmail-start starts has loaded its modules anew.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::{Ids, Root};
use ipc::getpw::{Answer, Request};
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use rustix::time::Timespec;
use sandbox::{Role, Socket};
use sys::inherited::Inherited;
use sys::signal::Signals;
use sys::wake::Wake;
use sys::{Received, Seqpacket};

use crate::lookup::{Alias, Directory, Nss, who};

/// A little less than what qmail-lspawn waits (5 s), so that it hears the reason.
pub const DEADLINE: Duration = Duration::from_millis(4500);
/// Lookups at the same time.
const THREADS: usize = 4;
/// After so long a lookup will not come back.
pub const HUNG_MAX: Duration = Duration::from_secs(60);
/// Questions that wait for a thread.
const WAITING_MAX: usize = 1000;
/// qmail-lspawn and qmail-auth, and new ones of either while the old drain.
const CLIENTS_MAX: usize = 32;
/// Datagrams read from a client before the others get their turn.
const READS_MAX: usize = 32;
/// How often deadlines are looked at while questions are open.
const TICK: Duration = Duration::from_millis(250);

/// What the loop and the threads share.
#[derive(Default)]
struct Desk {
    /// Ticket and local part.
    waiting: VecDeque<(u64, Vec<u8>)>,
    answered: Vec<(u64, Result<Option<crate::lookup::Found>, String>)>,
    /// When each busy thread began.
    busy_since: HashMap<usize, Duration>,
}

/// A question whose answer is due.
struct Open {
    client: u64,
    id: u64,
    deadline: Duration,
}

/// The face as qmail-start starts it.
///
/// # Errors
/// The configuration is wrong, or NSS hangs for good; the text says what to do.
pub fn serve(root: &Root) -> Result<(), String> {
    let ids = root.ids().map_err(|error| error.to_string())?;
    let alias = Alias::of(root, &ids);
    let text = |error: io::Error| error.to_string();
    let mut inherited = Inherited::take().map_err(text)?;
    let lifeline = inherited.one("lifeline").map_err(text)?;
    let listener = inherited.one(&format!("serve:{}", Socket::Getpw.name())).map_err(text)?;
    let signals = Signals::new(&[Signal::HUP, Signal::TERM, Signal::INT]).map_err(text)?;
    sandbox::enter_as("qmail-getpw", root.path(), &[]).map_err(|error| format!("cannot confine itself: {error}"))?;
    let mut service = Service::start(ids, alias, Nss).map_err(text)?;
    inherited.ready().map_err(text)?;
    service.run(&listener, &lifeline, &signals)
}

/// The loop and its state.
pub struct Service {
    ids: Ids,
    desk: Arc<(Mutex<Desk>, Condvar)>,
    wake: Wake,
    clients: HashMap<u64, Seqpacket>,
    open: HashMap<u64, Open>,
    last: u64,
}

impl Service {
    /// Starts the threads.
    ///
    /// # Errors
    /// Out of descriptors or threads.
    pub fn start(ids: Ids, alias: Option<Alias>, directory: impl Directory + Clone + Send + 'static) -> io::Result<Self> {
        let (desk, wake) = (Arc::new((Mutex::default(), Condvar::new())), Wake::new()?);
        for thread in 0..THREADS {
            let (desk, wake, alias, directory) = (Arc::clone(&desk), wake.clone(), alias.clone(), directory.clone());
            let work = move || sys::vital(|| look_up_for_ever(thread, &desk, &wake, alias.as_ref(), &directory));
            std::thread::Builder::new().name(format!("nss-{thread}")).spawn(work)?;
        }
        Ok(Self { ids, desk, wake, clients: HashMap::new(), open: HashMap::new(), last: 0 })
    }

    /// Answers until the lifeline ends or a signal says so. Open questions are dropped then: who asked defers.
    ///
    /// # Errors
    /// poll does not work, or every thread hangs.
    pub fn run(&mut self, listener: &OwnedFd, lifeline: &OwnedFd, signals: &Signals) -> Result<(), String> {
        loop {
            let (ready, readable) = self.wait(listener, lifeline, signals).map_err(|error| error.to_string())?;
            let [new, ended, signal, answered] = ready;
            if ended {
                return Ok(());
            }
            while let Some(signal) = signals.next().filter(|_| signal) {
                if signal != Signal::HUP {
                    return Ok(());
                }
            }
            if answered {
                self.wake.clear();
                self.send_answers();
            }
            for id in readable {
                self.on_client(id);
            }
            if new {
                self.accept(listener);
            }
            self.check_deadlines(sys::clock::boottime())?;
        }
    }

    /// Waits for something to happen: which of the four descriptors of the loop, and which clients.
    fn wait(&self, listener: &OwnedFd, lifeline: &OwnedFd, signals: &Signals) -> io::Result<([bool; 4], Vec<u64>)> {
        let order: Vec<u64> = self.clients.keys().copied().collect();
        let own = [listener.as_fd(), lifeline.as_fd(), signals.as_fd(), self.wake.as_fd()];
        let fds = own.into_iter().chain(order.iter().filter_map(|id| self.clients.get(id)).map(|client| client.as_fd()));
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let timeout = (!self.open.is_empty()).then(|| Timespec::try_from(TICK)).and_then(Result::ok);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let woke: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let (own, clients) = woke.split_at_checked(4).unwrap_or_default();
        let readable = order.iter().zip(clients).filter(|(_, woke)| **woke).map(|(id, _)| *id).collect();
        Ok((<[bool; 4]>::try_from(own).unwrap_or_default(), readable))
    }

    fn accept(&mut self, listener: &OwnedFd) {
        while let Ok(client) = sys::seqpacket::accept(listener.as_fd()) {
            let uid_of = |role: Role| self.ids.uid_of(role.name());
            let may = client.peer().is_ok_and(|peer| sandbox::may_call(Socket::Getpw, peer.uid, uid_of));
            if may && self.clients.len() < CLIENTS_MAX {
                self.last = self.last.wrapping_add(1);
                self.clients.insert(self.last, client);
            }
        }
    }

    fn on_client(&mut self, client: u64) {
        let mut buf = [0; DATAGRAM_LEN_MAX];
        for _ in 0..READS_MAX {
            let Some(socket) = self.clients.get(&client) else { return };
            let question = match socket.recv(&mut buf) {
                Ok(Received::Datagram(len, _)) => Request::decode(buf.get(..len).unwrap_or_default()).ok(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(Received::End) | Err(_) => None,
            };
            match question {
                Some(Request::Who { id, local }) => self.ask(client, id, local.0),
                // The end, or bytes that are no question.
                None => {
                    self.clients.remove(&client);
                    return;
                }
            }
        }
    }

    fn ask(&mut self, client: u64, id: u64, local: Vec<u8>) {
        let mut desk = lock(&self.desk.0);
        if desk.waiting.len() >= WAITING_MAX {
            drop(desk);
            return self.send(client, &Answer::Temporary { id, text: "too many questions".into() });
        }
        self.last = self.last.wrapping_add(1);
        desk.waiting.push_back((self.last, local));
        drop(desk);
        self.desk.1.notify_one();
        let deadline = sys::clock::boottime().saturating_add(DEADLINE);
        self.open.insert(self.last, Open { client, id, deadline });
    }

    fn send_answers(&mut self) {
        let answered = std::mem::take(&mut lock(&self.desk.0).answered);
        for (ticket, result) in answered {
            // Without an entry it came too late.
            let Some(Open { client, id, .. }) = self.open.remove(&ticket) else { continue };
            let answer = match result {
                Ok(Some(f)) => Answer::User {
                    id,
                    user: f.user.into(),
                    uid: f.uid,
                    gid: f.gid,
                    home: f.home.into(),
                    dash: f.dash.into(),
                    ext: f.ext.into(),
                },
                Ok(None) => Answer::NoUser { id },
                Err(text) => Answer::Temporary { id, text: text.as_str().into() },
            };
            self.send(client, &answer);
        }
    }

    /// A client that does not read its answers loses its connection.
    fn send(&mut self, client: u64, answer: &Answer) {
        let sent = answer.encode_bounded().is_ok_and(|bytes| self.clients.get(&client).is_some_and(|to| to.send(&bytes).is_ok()));
        if !sent {
            self.clients.remove(&client);
        }
    }

    /// Answers what is overdue.
    ///
    /// # Errors
    /// All threads hang.
    fn check_deadlines(&mut self, now: Duration) -> Result<(), String> {
        let late: Vec<u64> = self.open.iter().filter(|(_, open)| now >= open.deadline).map(|(ticket, _)| *ticket).collect();
        let mut desk = lock(&self.desk.0);
        desk.waiting.retain(|(ticket, _)| !late.contains(ticket));
        let hung = desk.busy_since.values().filter(|since| now.saturating_sub(**since) >= HUNG_MAX).count();
        drop(desk);
        for ticket in late {
            if let Some(Open { client, id, .. }) = self.open.remove(&ticket) {
                self.send(client, &Answer::Temporary { id, text: "NSS does not answer".into() });
            }
        }
        if hung >= THREADS {
            return Err("NSS hangs; look at nsswitch.conf and what it names".to_owned());
        }
        Ok(())
    }
}

fn look_up_for_ever(
    thread: usize,
    desk: &(Mutex<Desk>, Condvar),
    wake: &Wake,
    alias: Option<&Alias>,
    directory: &impl Directory,
) {
    loop {
        let (ticket, local) = {
            let mut held =
                desk.1.wait_while(lock(&desk.0), |desk| desk.waiting.is_empty()).unwrap_or_else(PoisonError::into_inner);
            let Some(next) = held.waiting.pop_front() else { continue };
            held.busy_since.insert(thread, sys::clock::boottime());
            next
        };
        let result = who(&local, directory, alias).map_err(|error| error.to_string());
        let mut held = lock(&desk.0);
        held.busy_since.remove(&thread);
        held.answered.push((ticket, result));
        drop(held);
        wake.wake();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::Id;
    use sys::passwd::User;

    /// `slow` takes half a second, `hang` for ever.
    #[derive(Clone)]
    struct Moody;

    impl Directory for Moody {
        fn user(&self, name: &[u8]) -> io::Result<Option<User>> {
            match name {
                b"slow" => std::thread::sleep(Duration::from_millis(500)),
                b"hang" => std::thread::sleep(Duration::from_secs(3600)),
                _ => {}
            }
            let is_user = matches!(name, b"joe" | b"slow");
            Ok(is_user.then(|| User { name: name.to_vec(), uid: 1001, gid: 100, home: b"/home/x".to_vec() }))
        }

        fn owner(&self, _home: &[u8]) -> io::Result<Option<u32>> {
            Ok(Some(1001))
        }
    }

    /// A service in a thread of its own, which ends with the value returned.
    fn serving() -> (tempfile::TempDir, std::fs::File, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("roles")).unwrap();
        let run = std::fs::File::open(dir.path()).unwrap();
        let listener = sys::seqpacket::listen(run.as_fd(), "roles/getpw.sock").unwrap();
        let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let own = Id { uid: rustix::process::getuid().as_raw(), gid: 1 };
        let alias = Alias { id: own, home: b"/alias".to_vec() };
        std::thread::spawn(move || {
            let signals = Signals::new(&[Signal::USR2]).unwrap();
            Service::start(Ids::Caller(own), Some(alias), Moody).unwrap().run(&listener, &theirs, &signals).unwrap();
        });
        (dir, run, ours)
    }

    fn connect(run: &std::fs::File) -> Seqpacket {
        let client = Seqpacket::connect(run.as_fd(), "roles/getpw.sock").unwrap();
        client.set_deadline(Duration::from_secs(20)).unwrap();
        client
    }

    fn ask(client: &Seqpacket, id: u64, local: &str) {
        client.send(&Request::Who { id, local: local.into() }.encode()).unwrap();
    }

    fn answer(client: &Seqpacket) -> (u64, String) {
        let mut buf = [0; DATAGRAM_LEN_MAX];
        let Received::Datagram(len, _) = client.recv(&mut buf).unwrap() else { panic!("closed") };
        match Answer::decode(&buf[..len]).unwrap() {
            Answer::User { id, user, .. } => (id, String::from_utf8(user.to_vec()).unwrap()),
            Answer::NoUser { id } => (id, "none".to_owned()),
            Answer::Temporary { id, .. } => (id, "temporary".to_owned()),
        }
    }

    #[test]
    fn a_slow_lookup_does_not_hold_up_the_others_and_one_that_hangs_is_temporary() {
        let (_dir, run, _lifeline) = serving();
        let client = connect(&run);
        let start = std::time::Instant::now();
        ask(&client, 1, "hang");
        ask(&client, 2, "slow-x");
        ask(&client, 3, "joe");
        ask(&client, 4, "nobody");
        let mut first = [answer(&client), answer(&client)];
        first.sort();
        assert_eq!(first, [(3, "joe".to_owned()), (4, "alias".to_owned())]);
        assert_eq!(answer(&client), (2, "slow".to_owned()));
        assert_eq!(answer(&client), (1, "temporary".to_owned()));
        assert!((4..8).contains(&start.elapsed().as_secs()));
        ask(&client, 5, "joe");
        assert_eq!(answer(&client), (5, "joe".to_owned()));
    }

    #[test]
    fn any_bytes_end_just_their_connection() {
        let (_dir, run, lifeline) = serving();
        let good = connect(&run);
        for bytes in [&b"x"[..], &[0; 64], &[1, 1, 0], &[1; DATAGRAM_LEN_MAX + 1]] {
            let bad = connect(&run);
            let sent = bad.send(bytes);
            assert!(sent.is_err() || !matches!(bad.recv(&mut [0; 64]), Ok(Received::Datagram(..))));
        }
        ask(&good, 7, "joe");
        assert_eq!(answer(&good), (7, "joe".to_owned()));
        drop(lifeline);
        assert!(!matches!(good.recv(&mut [0; 64]), Ok(Received::Datagram(..))));
    }

    #[test]
    fn when_every_thread_hangs_for_long_the_process_ends() {
        let mut service = Service::start(Ids::Caller(Id { uid: 1, gid: 1 }), None, Moody).unwrap();
        (0..THREADS).for_each(|id| service.ask(0, id as u64, b"hang".to_vec()));
        while lock(&service.desk.0).busy_since.len() < THREADS {
            std::thread::yield_now();
        }
        let now = sys::clock::boottime();
        assert!(service.check_deadlines(now).is_ok());
        assert!(service.check_deadlines(now + HUNG_MAX).is_err());
    }
}
