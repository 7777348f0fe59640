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
    let started = on_thread(Box::new(move || receive(&connection, &work, on_thread)));
    if let Err(error) = started {
        eprintln!("warning: a connection is refused: {error}");
    }
}

type Task = Box<dyn FnOnce() + Send>;

fn on_thread(task: Task) -> io::Result<()> {
    std::thread::Builder::new().stack_size(STACK_LEN).spawn(task).map(drop)
}

/// Takes jobs off one connection. When it ends, jobs under way go on; nobody hears of their results. `start` runs a task beside this.
fn receive(connection: &Arc<Seqpacket>, work: &Arc<Work>, start: impl Fn(Task) -> io::Result<()>) {
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    loop {
        work.begin();
        let job = match connection.recv_with_fd(&mut buf) {
            Ok(Received::Datagram(len, body)) => Job::decode(buf.get(..len).unwrap_or_default()).ok().map(|job| (job, body)),
            Ok(Received::End) => return work.end(),
            Err(_) => None,
        };
        // There may be a password in it.
        buf.fill(0);
        let Some((job, body)) = job else {
            refuse_the_rest(connection, &mut buf);
            return work.end();
        };
        let refusal = job::refusal(&job);
        let (connection_of_job, shared) = (Arc::clone(connection), Arc::clone(work));
        let carry = move || {
            job::carry(&shared.program, job, body, |datagram| {
                // One that fails finds nobody who wants to hear it.
                let _ = connection_of_job.send(datagram);
            });
            drop(connection_of_job);
            shared.end();
        };
        if let Err(error) = start(Box::new(carry)) {
            eprintln!("warning: a job is deferred, there is no thread for it: {error}");
            let _ = connection.send(&refusal);
            work.end();
        }
    }
}

/// After something that is no job: nothing more is taken, and what was sent before is read to its end. Unread, it would make the kernel
/// reset the connection when this closes it, ahead of the answers that the other side has yet to read, and what they tell of as
/// delivered would be tried again.
fn refuse_the_rest(connection: &Seqpacket, buf: &mut [u8]) {
    eprintln!("warning: what is no job came from qmail-send; its connection is given up");
    let _ = connection.shutdown_receiving();
    loop {
        match connection.recv(buf) {
            Ok(Received::Datagram(len, _)) => {
                if let Ok(job) = Job::decode(buf.get(..len).unwrap_or_default()) {
                    let _ = connection.send(&job::refusal(&job));
                }
                buf.fill(0);
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => buf.fill(0),
            Ok(Received::End) | Err(_) => return,
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

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::field::Verdict;
    use ipc::job::{Answer, Route};
    use std::sync::mpsc;
    use wire::{Address, Domain};

    fn work() -> (tempfile::TempDir, Arc<Work>) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        let program = Program::new("/bin/true".into(), &root).unwrap();
        (dir, Arc::new(Work { program, under_way: Mutex::default(), ended: Condvar::new() }))
    }

    fn send(socket: &Seqpacket, number: u64, recipients: usize) {
        let domain = Domain::new(b"h.example").unwrap();
        let recipients = vec![Address::new(b"r@h.example").unwrap(); recipients];
        let route = Route::Mx { domain };
        let job =
            Job::Remote { number, message: 1, sender: Address::null(), recipients, route, flags: 0, size: 1, options: None };
        let body = sys::memfd::sealed(b"x").unwrap();
        socket.send_with_fd(&job.encode(), body.as_fd()).unwrap();
    }

    /// Number and how many deferrals, until the last of each job; `None` at the end of the connection.
    fn answer(socket: &Seqpacket) -> Option<(u64, usize)> {
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        let Received::Datagram(len, _) = socket.recv(&mut buf).unwrap() else { return None };
        let Answer::Done { number, outcomes, last, .. } = Answer::decode(&buf[..len]).unwrap() else { panic!() };
        assert!(last && outcomes.iter().all(|outcome| outcome.verdict == Verdict::Deferral));
        let places: Vec<u32> = outcomes.iter().map(|outcome| outcome.recipient).collect();
        assert!(places.iter().copied().eq(0..u32::try_from(places.len()).unwrap()));
        Some((number, outcomes.len()))
    }

    /// A job's thread counts itself out after its last answer.
    fn becomes_idle(work: &Work) {
        let wait = Duration::from_secs(60);
        let (under_way, _) = work.ended.wait_timeout_while(work.under_way(), wait, |under_way| under_way.jobs > 0).unwrap();
        assert_eq!(under_way.jobs, 0);
    }

    #[test]
    fn a_job_without_a_thread_is_deferred_and_the_next_is_taken() {
        let (_dir, work) = work();
        let (ours, theirs) = Seqpacket::pair().unwrap();
        ours.set_deadline(Duration::from_secs(60)).unwrap();
        send(&ours, 7, 3);
        send(&ours, 8, 1);
        send(&ours, 9, 2);
        rustix::net::shutdown(&ours, rustix::net::Shutdown::Write).unwrap();
        let starts = std::cell::Cell::new(0);
        let receiver = Arc::new(theirs);
        // The second has its thread.
        receive(&receiver, &work, |task| {
            starts.set(starts.get() + 1);
            if starts.get() == 2 { on_thread(task) } else { Err(io::ErrorKind::WouldBlock.into()) }
        });
        drop(receiver);
        let mut answers: Vec<(u64, usize)> = std::iter::from_fn(|| answer(&ours)).collect();
        answers.sort_unstable();
        assert_eq!(answers, [(7, 3), (8, 1), (9, 2)]);
        becomes_idle(&work);
    }

    #[test]
    fn after_what_is_no_job_every_answer_still_arrives() {
        let (_dir, work) = work();
        let (ours, theirs) = Seqpacket::pair().unwrap();
        ours.set_deadline(Duration::from_secs(60)).unwrap();
        send(&ours, 1, 1);
        ours.send(b"no job").unwrap();
        send(&ours, 2, 2);
        let (under_way, running) = mpsc::channel();
        receive(&Arc::new(theirs), &work, |task| {
            under_way.send(task).unwrap();
            Ok(())
        });
        assert_eq!(
            ours.send(b"more").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe,
            "whoever sends more knows that nobody reads it"
        );
        let task: Task = running.recv().unwrap();
        task();
        // The last holder of the connection is gone, and nothing is lost with it.
        let answers: Vec<(u64, usize)> = std::iter::from_fn(|| answer(&ours)).collect();
        assert_eq!(answers, [(2, 2), (1, 1)]);
        becomes_idle(&work);
    }
}
