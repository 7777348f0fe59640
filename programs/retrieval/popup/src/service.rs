//! The service face: accepts connections within its bounds, one task for each, until the lifeline says otherwise. Retired, the process
//! ends with its last session, which hears nothing of it; on the end of the lifeline it does so within [`DRAIN`].

use crate::session::Session;
use crate::start::log;
use control::popup::Popup;
use ipc_async::Client;
use ipc_async::service::{Lifeline, Word};
use sandbox::Socket;
use sasl::Mechanisms;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tls::Acceptor;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// A login waits for a hash, behind others' hashes, or for several sources one after the other (`control/authsources`), and for the session
/// to be started.
const LOGIN_DEADLINE: Duration = Duration::from_secs(30);
/// When the lifeline has ended, sessions may go on for so long.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause when no connection can be accepted for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Refusals for want of room are logged at most so often.
const FULL_LOG_PAUSE: Duration = Duration::from_secs(60);

/// What a worker is made of; everything is open.
pub struct Service {
    pub config: Popup,
    /// Of pop3 and of pop3s.
    pub listeners: Vec<(Door, OwnedFd)>,
    /// The directory run/qmail.
    pub run: Rc<OwnedFd>,
}

/// How a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// In the clear; STLS may follow.
    Pop3,
    /// With TLS (RFC 8314 §3.3).
    Pop3s,
}

/// What all sessions share.
pub(crate) struct Shared {
    pub(crate) config: Popup,
    pub(crate) mechanisms: Mechanisms,
    pub(crate) auth: Client<ipc::auth::Answer>,
    pub(crate) tls: Acceptor,
    places: RefCell<HashMap<IpAddr, usize>>,
    sessions: Cell<usize>,
    /// The last session has ended.
    empty: Notify,
    full_logged: Cell<Option<Instant>>,
}

/// A session's place; given back when it is dropped.
struct Seat {
    shared: Rc<Shared>,
    address: IpAddr,
}

impl Seat {
    /// `None` if this worker, or this address, has all the sessions it may have.
    fn take(shared: &Rc<Shared>, address: IpAddr) -> Option<Self> {
        let mut places = shared.places.borrow_mut();
        let here = places.get(&address).copied().unwrap_or(0);
        if shared.sessions.get() >= shared.config.sessions_max || here >= shared.config.sessions_per_address_max {
            return None;
        }
        places.insert(address, here.saturating_add(1));
        shared.sessions.set(shared.sessions.get().saturating_add(1));
        Some(Self { shared: Rc::clone(shared), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut places = self.shared.places.borrow_mut();
        if let Some(here) = places.get_mut(&self.address) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                places.remove(&self.address);
            }
        }
        self.shared.sessions.set(self.shared.sessions.get().saturating_sub(1));
        if self.shared.sessions.get() == 0 {
            self.shared.empty.notify_waiters();
        }
    }
}

impl Shared {
    /// Waits until there is no session.
    async fn left_by_all(&self) {
        while self.sessions.get() > 0 {
            self.empty.notified().await;
        }
    }
}

/// The mechanisms that AUTH offers.
///
/// # Errors
/// `control/authmechanisms` names something that is no mechanism.
pub(crate) fn mechanisms(config: &Popup) -> io::Result<Mechanisms> {
    Mechanisms::parse(config.mechanisms.as_deref())
        .map_err(|name| io::Error::other(format!("control/authmechanisms: `{}` is no mechanism", wire::escape::visible(&name))))
}

/// Serves as long as `lifeline` says, and then until the sessions have ended or the drain is over. Runs inside a `LocalSet`.
///
/// # Errors
/// A listener or the lifeline cannot be watched.
pub async fn serve(service: Service, lifeline: OwnedFd) -> io::Result<()> {
    let lifeline = Lifeline::new(lifeline)?;
    let shared = Rc::new(Shared {
        mechanisms: mechanisms(&service.config)?,
        config: service.config,
        tls: Acceptor::start(Arc::new(service.run.try_clone()?), Socket::Keys.path())?,
        auth: Client::new(service.run, Socket::Auth.path(), LOGIN_DEADLINE),
        places: RefCell::default(),
        sessions: Cell::new(0),
        empty: Notify::new(),
        full_logged: Cell::new(None),
    });
    let mut accepting = Vec::new();
    for (door, fd) in service.listeners {
        let listener = ipc_async::service::tcp_listener(fd)?;
        accepting.push(tokio::task::spawn_local(accept(door, listener, Rc::clone(&shared))));
    }
    let word = lifeline.word().await;
    accepting.iter().for_each(|task| task.abort());
    if word == Word::Retire {
        lifeline.end_or(shared.left_by_all()).await;
    }
    let _ = timeout(DRAIN, shared.left_by_all()).await;
    Ok(())
}

async fn accept(door: Door, listener: TcpListener, shared: Rc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => admit(door, stream, peer, &shared),
            // A client that was gone again is nothing; being out of descriptors passes.
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

fn admit(door: Door, stream: TcpStream, peer: SocketAddr, shared: &Rc<Shared>) {
    // Replies are written whole; waiting to fill packets only delays them.
    let _ = stream.set_nodelay(true);
    let address = peer.ip().to_canonical();
    let Some(seat) = Seat::take(shared, address) else {
        // A fresh connection takes one line at once.
        let _ = (door == Door::Pop3).then(|| {
            stream.try_write(&pop3::command::err_code(pop3::ResponseCode::SysTemp, "too many sessions, try again later"))
        });
        return full(shared, address);
    };
    tokio::task::spawn_local(async move {
        let session = Session::new(stream, seat.address, &seat.shared);
        match door {
            Door::Pop3 => session.run().await,
            Door::Pop3s => session.run_tls().await,
        }
        drop(seat);
    });
}

fn full(shared: &Shared, address: IpAddr) {
    let now = Instant::now();
    if shared.full_logged.get().is_none_or(|at| now.duration_since(at) >= FULL_LOG_PAUSE) {
        shared.full_logged.set(Some(now));
        log(&format!("too many sessions: refused remote={address} sessions={}", shared.sessions.get()));
    }
}
