//! The process: one thread that accepts and listens to qmail-start, one for each connection, one for each job under way.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use control::{Ids, Root};
use ipc::admin::{RemoteAnswer, RemoteRequest};
use ipc::job::Job;
use ipc::{DATAGRAM_LEN_MAX, Message as _};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, Signal};
use sandbox::Socket;
use sys::inherited::Inherited;
use sys::signal::Signals;
use sys::{Received, Seqpacket, seqpacket};

use crate::job;
use crate::program::Program;

/// Jobs under way, of all connections; concurrencyremote is at most 2000. More wait in the socket.
const JOBS_MAX: usize = 2500;
/// Connections: qmail-send has one, and a new generation of it may overlap the old one.
const CONNECTIONS_MAX: usize = 32;
/// A job holds its body, the message as the program reads it, a pipe and the process.
const FILES_MAX: u64 = 16_384;
/// A job's thread holds a piece of output and little else.
const STACK_LEN: usize = 256 * 1024;
/// From the end of the lifeline on.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How often an ending process looks whether all is done.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// For root's questions.
const ADMIN_DEADLINE: Duration = Duration::from_secs(1);

/// qmail-rspawn \[--root DIR\] --service, started by qmail-start with QMAILREMOTE in its environment.
#[must_use]
pub fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let root = Root::from_args(&mut args);
    if args.first().is_none_or(|face| face != "--service") {
        eprintln!(
            "qmail-rspawn: usage: qmail-rspawn [--root DIR] --service (it is started by qmail-start, where QMAILREMOTE is set)"
        );
        return ExitCode::from(100);
    }
    match root.map_err(io::Error::other).and_then(|root| start(&root)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot start: {error}");
            ExitCode::from(111)
        }
    }
}

fn start(root: &Root) -> io::Result<()> {
    let variable = control::replacements::REMOTE.variable;
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let path = path.ok_or_else(|| io::Error::other(format!("{variable} names no program by an absolute path")))?;
    let program = Program::new(path, root).map_err(io::Error::other)?;
    let ids = root.ids().map_err(io::Error::other)?;
    let mut inherited = Inherited::take()?;
    let ends = Ends {
        lifeline: inherited.one("lifeline")?,
        signals: Signals::new(&[Signal::TERM])?,
        jobs: Some(inherited.one("serve:remote")?),
        admin: inherited.one("serve:admin-remote").ok(),
    };
    raise_file_limit();
    let work = Arc::new(Work { program, under_way: Mutex::default(), ended: Condvar::new() });
    inherited.ready()?;
    serve(ends, &work, &ids)
}

/// As far as the hard limit lets it; with fewer descriptors, fewer programs run at once.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(FILES_MAX, |maximum| maximum.min(FILES_MAX));
    if limit.current.is_some_and(|current| current < wanted) {
        let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    }
}

/// What the main thread waits for.
struct Ends {
    lifeline: OwnedFd,
    signals: Signals,
    /// `None` from retirement on.
    jobs: Option<OwnedFd>,
    admin: Option<OwnedFd>,
}

/// What all threads share.
struct Work {
    program: Program,
    under_way: Mutex<UnderWay>,
    ended: Condvar,
}

#[derive(Default)]
struct UnderWay {
    jobs: usize,
    /// A connection lives until its end was received and its last job is answered.
    connections: Vec<Weak<Seqpacket>>,
}

impl Work {
    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place among [`JOBS_MAX`].
    fn begin(&self) {
        let mut under_way = self.under_way();
        while under_way.jobs >= JOBS_MAX {
            under_way = self.ended.wait(under_way).unwrap_or_else(PoisonError::into_inner);
        }
        under_way.jobs = under_way.jobs.saturating_add(1);
    }

    fn end(&self) {
        let mut under_way = self.under_way();
        under_way.jobs = under_way.jobs.saturating_sub(1);
        self.ended.notify_all();
    }

    fn is_idle(&self) -> bool {
        self.under_way().jobs == 0
    }

    /// Has every connection ended, with all its jobs?
    fn is_deserted(&self) -> bool {
        let under_way = self.under_way();
        under_way.jobs == 0 && under_way.connections.iter().all(|connection| connection.strong_count() == 0)
    }

    /// No further job is taken off any connection; what was sent before is.
    fn take_nothing_more(&self) {
        for connection in self.under_way().connections.iter().filter_map(Weak::upgrade) {
            // One that cannot be shut down is gone.
            let _ = connection.shutdown_receiving();
        }
    }

    /// False: there are too many.
    fn know(&self, connection: &Arc<Seqpacket>) -> bool {
        let mut under_way = self.under_way();
        under_way.connections.retain(|known| known.strong_count() > 0);
        let has_room = under_way.connections.len() < CONNECTIONS_MAX;
        if has_room {
            under_way.connections.push(Arc::downgrade(connection));
        }
        has_room
    }
}

/// Until the lifeline ends or SIGTERM comes; retired, until all that was taken is done.
fn serve(mut ends: Ends, work: &Arc<Work>, ids: &Ids) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&ends.lifeline, true)?;
    loop {
        if ends.jobs.is_none() && work.is_deserted() {
            return Ok(());
        }
        wait(&ends);
        if ends.signals.next().is_some() {
            break;
        }
        match rustix::io::read(&ends.lifeline, &mut [0u8; 16][..]) {
            Ok(0) => break,
            Ok(_) => {
                ends.jobs = None;
                ends.admin = None;
                work.take_nothing_more();
            }
            Err(_) => {}
        }
        let may = |socket| move |uid| sandbox::may_call(socket, uid, |role| ids.uid_of(role.name()));
        if let Some(listener) = &ends.jobs {
            accept(listener, may(Socket::Remote), |connection| receive_on_thread(connection, work));
        }
        if let Some(listener) = &ends.admin {
            accept(listener, may(Socket::AdminRemote), answer_root);
        }
    }
    ends.jobs = None;
    work.take_nothing_more();
    let until = sys::clock::boottime().saturating_add(DRAIN_MAX);
    while !work.is_idle() && sys::clock::boottime() < until {
        std::thread::sleep(LOOK_AGAIN);
    }
    // Whoever is not done by then is in flight when this process ends: qmail-send tries those again.
    work.program.end_all();
    Ok(())
}

/// Sleeps until there is something to do; while retired it looks by itself.
fn wait(ends: &Ends) {
    let mut fds = vec![PollFd::new(&ends.lifeline, PollFlags::IN), PollFd::new(&ends.signals, PollFlags::IN)];
    fds.extend([&ends.jobs, &ends.admin].into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)));
    let pause = Timespec::try_from(LOOK_AGAIN).ok().filter(|_| ends.jobs.is_none());
    let _ = poll(&mut fds, pause.as_ref());
}

fn accept(listener: &OwnedFd, may: impl Fn(u32) -> bool, take: impl Fn(Seqpacket)) {
    loop {
        match seqpacket::accept(listener.as_fd()) {
            Ok(connection) => {
                if connection.peer().is_ok_and(|peer| may(peer.uid)) && connection.set_nonblocking(false).is_ok() {
                    take(connection);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // Out of descriptors: waited out, or this would spin.
            Err(_) => return std::thread::sleep(LOOK_AGAIN),
        }
    }
}

fn receive_on_thread(connection: Seqpacket, work: &Arc<Work>) {
    let connection = Arc::new(connection);
    if !work.know(&connection) {
        eprintln!("warning: too many connections, one more refused");
        return;
    }
    let work = Arc::clone(work);
    let started = std::thread::Builder::new().stack_size(STACK_LEN).spawn(move || receive(&connection, &work));
    if let Err(error) = started {
        eprintln!("warning: a connection is refused: {error}");
    }
}

/// Takes jobs off one connection. When it ends, jobs under way go on; nobody hears of their results.
fn receive(connection: &Arc<Seqpacket>, work: &Arc<Work>) {
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    loop {
        work.begin();
        let job = match connection.recv_with_fd(&mut buf) {
            Ok(Received::Datagram(len, body)) => Job::decode(buf.get(..len).unwrap_or_default()).ok().map(|job| (job, body)),
            Ok(Received::End) | Err(_) => None,
        };
        // There may be a password in it.
        buf.fill(0);
        let Some((job, body)) = job else { return work.end() };
        let (connection, shared) = (Arc::clone(connection), Arc::clone(work));
        let carry = move || {
            job::carry(&shared.program, job, body, |datagram| {
                // One that fails finds nobody who wants to hear it.
                let _ = connection.send(datagram);
            });
            drop(connection);
            shared.end();
        };
        if let Err(error) = std::thread::Builder::new().stack_size(STACK_LEN).spawn(carry) {
            // Without an answer the job is tried again when the connection ends.
            eprintln!("warning: no thread for a job: {error}");
            return work.end();
        }
    }
}

/// It connects nowhere, so there is nothing to show or to forget (qmail-tcpto(8)).
fn answer_root(connection: Seqpacket) {
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    if connection.set_deadline(ADMIN_DEADLINE).is_err() {
        return;
    }
    while let Ok(Received::Datagram(len, _)) = connection.recv(&mut buf) {
        let answer = match RemoteRequest::decode(buf.get(..len).unwrap_or_default()) {
            Ok(RemoteRequest::Unreached {}) => RemoteAnswer::Unreached { rows: Vec::new(), last: true },
            Ok(RemoteRequest::Forget {}) => RemoteAnswer::Ok {},
            Err(_) => return,
        };
        if connection.send(&answer.encode()).is_err() {
            return;
        }
    }
}
