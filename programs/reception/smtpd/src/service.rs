//! The service face: start-up, the loops over the listening sockets, and the end.
//!
//! Start-up in the one order: control files, descriptors, runtime, sandbox, `ready`, the first connection. On the end of the lifeline
//! or SIGTERM no further connection is accepted, sessions end behind their message, and after [`DRAIN_MAX`] the process does.

use crate::admission::Admission;
use crate::config::config;
use crate::log_line;
use crate::queue::Pool;
use crate::session::{Worker, serve};
use control::{Networks, Root};
use ipc_async::{Client, service};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use sandbox::Socket;
use smtp::server::{Connection, TOO_MANY_CONNECTIONS};
use std::io;
use std::net::IpAddr;
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use sys::inherited::Inherited;
use sys::signal::Signals;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::sleep;

/// The name in the process table.
const NAME: &str = "qmail-smtpd";
/// For the directory's answer about a recipient.
const DIRECTORY_DEADLINE: Duration = Duration::from_secs(5);
/// For messages under way at the end.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How often the end looks whether all sessions are gone.
const DRAIN_STEP: Duration = Duration::from_millis(20);
/// A worker without room leaves new connections to the other workers for so long, then refuses them.
const FULL_PAUSE: Duration = Duration::from_millis(50);
/// After an error of accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// As qmail-start counts the workers of a row `PerCpu`.
const WORKERS_MAX: usize = 8;
/// Said on a listener for a protocol that needs what this version does not have.
const NOT_OFFERED: &str = "421 4.3.2 this service is not offered here";

/// Serves until the end.
///
/// # Errors
/// The configuration is wrong, or what start-up needs is missing.
pub(crate) fn start(root: &Root) -> io::Result<()> {
    let control = control::Smtpd::read(root).map_err(io::Error::other)?;
    let mut inherited = Inherited::take()?;
    let (lifeline, run) = (inherited.one("lifeline")?, inherited.one("run")?);
    let listeners = inherited.all("listen:");
    let signals = Signals::new(&[Signal::TERM])?;
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get).min(WORKERS_MAX);
    service::run(async {
        let run = Rc::new(run);
        let gate = Gate {
            admission: Rc::new(Admission::new(control.sessions_max.div_ceil(workers), control.sessions_per_address_max)),
            relayclients: control.relayclients.clone(),
            bounds_this_host: control.bounds_this_host,
            worker: Rc::new(Worker::new(
                config(control, Vec::new()),
                Pool::new(Rc::clone(&run), Socket::Queue.path()),
                Client::new(run, Socket::Auth.path(), DIRECTORY_DEADLINE),
            )),
        };
        let listeners = listeners
            .into_iter()
            .map(|(name, fd)| Ok((name.starts_with("smtp:"), service::tcp_listener(fd)?)))
            .collect::<io::Result<Vec<_>>>()?;
        sandbox::enter_as(NAME, root.path(), &[])?;
        let end = end_of_service(lifeline, signals)?;
        inherited.ready()?;
        serve_until(Rc::new(gate), listeners, end).await;
        Ok(())
    })
}

/// Who comes in, and what serves him.
pub(crate) struct Gate {
    pub(crate) admission: Rc<Admission>,
    pub(crate) relayclients: Networks,
    /// The bound of an address holds for this host, too.
    pub(crate) bounds_this_host: bool,
    pub(crate) worker: Rc<Worker>,
}

/// Accepts on `listeners` (true: SMTP) until `end`, then drains.
pub(crate) async fn serve_until(gate: Rc<Gate>, listeners: Vec<(bool, TcpListener)>, end: oneshot::Receiver<()>) {
    let loops: Vec<_> =
        listeners.into_iter().map(|(is_smtp, listener)| spawn_local(accept(Rc::clone(&gate), listener, is_smtp))).collect();
    // An error means that whoever would tell is gone.
    let _ = end.await;
    loops.iter().for_each(tokio::task::JoinHandle::abort);
    gate.worker.begin_to_drain();
    let mut left = DRAIN_MAX;
    while gate.admission.sessions() > 0 && !left.is_zero() {
        sleep(DRAIN_STEP).await;
        left = left.saturating_sub(DRAIN_STEP);
    }
}

async fn accept(gate: Rc<Gate>, listener: TcpListener, is_smtp: bool) {
    loop {
        if gate.admission.is_full() {
            sleep(FULL_PAUSE).await;
        }
        match listener.accept().await {
            Ok((stream, _)) if !is_smtp => refuse(&stream, NOT_OFFERED),
            Ok((stream, peer)) => gate.admit(stream, peer.ip().to_canonical()),
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

impl Gate {
    fn admit(&self, stream: TcpStream, client: IpAddr) {
        let is_relay = self.relayclients.contains(client);
        let is_trusted = is_relay || (client.is_loopback() && !self.bounds_this_host);
        let Some(place) = self.admission.admit(client, is_trusted) else {
            log_line(format_args!("{client} refused: {TOO_MANY_CONNECTIONS}"));
            return refuse(&stream, TOO_MANY_CONNECTIONS);
        };
        // Replies are collected before they are sent; holding them back further only costs time.
        let _ = stream.set_nodelay(true);
        let peer = Connection {
            remote_ip: client.to_string().into_bytes().into(),
            local_ip: stream.local_addr().ok().map(|local| local.ip().to_canonical()),
            relay_client: is_relay.then(Box::default),
            ..Connection::default()
        };
        spawn_local(serve(Rc::clone(&self.worker), stream, peer, place));
    }
}

/// One line, if the client takes it at once.
fn refuse(stream: &TcpStream, line: &str) {
    let _ = stream.try_write(format!("{line}\r\n").as_bytes());
}

/// Fires when the lifeline ends or SIGTERM comes. A thread waits for them, since it costs less than another dependency.
fn end_of_service(lifeline: OwnedFd, signals: Signals) -> io::Result<oneshot::Receiver<()>> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("end".to_owned()).stack_size(64 * 1024).spawn(move || {
        loop {
            let mut fds = [PollFd::new(&lifeline, PollFlags::IN), PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                _ => break,
            }
        }
        // The receiver is gone only when the process ends anyway.
        let _ = tell.send(());
    })?;
    Ok(told)
}
