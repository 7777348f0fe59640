//! The service face: accepts connections within its bounds, one task for each, until the lifeline says otherwise. Retired, the process
//! ends with its last session, which hears nothing of it; on the end of the lifeline or SIGTERM it does so within [`DRAIN`].

use crate::session::Session;
use crate::start::log;
use control::popup::Popup;
use control::tlsclients::AUTHORITIES;
use control::{Networks, Origin};
use ipc_async::Client;
use ipc_async::proxy::Arrival;
use ipc_async::service::{Lifeline, Word, left_over};
use logline::Line;
use sandbox::Socket;
use sasl::Mechanisms;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tls::{Acceptor, ClientCertificates};
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
    /// Of pop3 and of pop3s, with the networks of the proxies in front, if there are any.
    pub listeners: Vec<(Door, OwnedFd, Option<Networks>)>,
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
    /// `None` for a proxy that has not said yet for whom it comes.
    address: Option<IpAddr>,
}

impl Seat {
    /// `None` if this worker, or this address, has all the sessions it may have.
    fn take(shared: &Rc<Shared>, address: Option<IpAddr>) -> Option<Self> {
        if shared.is_full() {
            return None;
        }
        if let Some(address) = address {
            let mut places = shared.places.borrow_mut();
            let here = places.get(&address).copied().unwrap_or(0);
            if here >= shared.config.sessions_per_address_max {
                return None;
            }
            places.insert(address, here.saturating_add(1));
        }
        shared.sessions.set(shared.sessions.get().saturating_add(1));
        Some(Self { shared: Rc::clone(shared), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut places = self.shared.places.borrow_mut();
        if let Some(address) = self.address
            && let Some(here) = places.get_mut(&address)
        {
            *here = here.saturating_sub(1);
            if *here == 0 {
                places.remove(&address);
            }
        }
        self.shared.sessions.set(self.shared.sessions.get().saturating_sub(1));
        if self.shared.sessions.get() == 0 {
            self.shared.empty.notify_waiters();
        }
    }
}

impl Shared {
    /// Has this worker all the sessions it may have?
    fn is_full(&self) -> bool {
        self.sessions.get() >= self.config.sessions_max
    }

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
/// A listener cannot be watched.
pub async fn serve(service: Service, lifeline: Lifeline) -> io::Result<()> {
    let clients = ClientCertificates::of(service.config.tls_clients.is_some(), &service.config.client_authorities)
        .map_err(|error| io::Error::other(format!("control/{AUTHORITIES}: {error}")))?;
    let shared = Rc::new(Shared {
        mechanisms: mechanisms(&service.config)?,
        config: service.config,
        tls: Acceptor::start_asking(Arc::new(service.run.try_clone()?), Socket::Keys.path(), clients)?,
        auth: Client::new(service.run, Socket::Auth.path(), LOGIN_DEADLINE),
        places: RefCell::default(),
        sessions: Cell::new(0),
        empty: Notify::new(),
        full_logged: Cell::new(None),
    });
    let mut accepting = Vec::new();
    for (door, fd, proxies) in service.listeners {
        let listener = ipc_async::service::tcp_listener(fd)?;
        accepting.push(tokio::task::spawn_local(accept(door, listener, proxies.map(Rc::new), Rc::clone(&shared))));
    }
    let word = lifeline.word().await;
    accepting.iter().for_each(|task| task.abort());
    if word == Word::Retire {
        lifeline.end_or(shared.left_by_all()).await;
    }
    let _ = timeout(DRAIN, shared.left_by_all()).await;
    Ok(())
}

async fn accept(door: Door, listener: TcpListener, proxies: Option<Rc<Networks>>, shared: Rc<Shared>) {
    loop {
        let accepted = if shared.is_full() { left_over(&listener).await } else { Some(listener.accept().await) };
        match accepted {
            None => {}
            Some(Ok((stream, peer))) => match &proxies {
                None => admit(door, Origin::direct(peer.ip()), stream, &shared),
                Some(proxies) => admit_behind(door, Rc::clone(proxies), stream, peer.ip().to_canonical(), &shared),
            },
            // A client that was gone again is nothing; being out of descriptors passes.
            Some(Err(_)) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// The proxy's header comes first.
fn admit_behind(door: Door, proxies: Rc<Networks>, stream: TcpStream, proxy: IpAddr, shared: &Rc<Shared>) {
    let Some(seat) = Seat::take(shared, None) else { return full(door, &stream, shared, proxy) };
    tokio::task::spawn_local(async move {
        match Arrival::behind(&stream, proxy, &proxies).await {
            Ok(arrival) => {
                let shared = Rc::clone(&seat.shared);
                drop(seat);
                admit(door, arrival.origin, stream, &shared);
            }
            Err(problem) => log(Line::new("closed").put("remote", proxy).bytes("reason", problem.to_string().as_bytes())),
        }
    });
}

fn admit(door: Door, origin: Origin, stream: TcpStream, shared: &Rc<Shared>) {
    // Replies are written whole; waiting to fill packets only delays them.
    let _ = stream.set_nodelay(true);
    let Some(seat) = Seat::take(shared, Some(origin.client)) else { return full(door, &stream, shared, origin.client) };
    tokio::task::spawn_local(async move {
        let service = if door == Door::Pop3s { "pop3s" } else { "pop3" };
        let session = Session::new(service, stream, origin, &seat.shared);
        match door {
            Door::Pop3 => session.run().await,
            Door::Pop3s => session.run_tls().await,
        }
        drop(seat);
    });
}

fn full(door: Door, stream: &TcpStream, shared: &Shared, address: IpAddr) {
    // A fresh connection takes one line at once.
    if door == Door::Pop3 {
        let line = pop3::command::err_code(pop3::ResponseCode::SysTemp, "too many sessions, try again later");
        let _ = stream.try_write(&line);
    }
    let now = Instant::now();
    if shared.full_logged.get().is_none_or(|at| now.duration_since(at) >= FULL_LOG_PAUSE) {
        shared.full_logged.set(Some(now));
        log(Line::new("refused")
            .put("remote", address)
            .bytes("reply", b"too many sessions")
            .put("sessions", shared.sessions.get()));
    }
}
