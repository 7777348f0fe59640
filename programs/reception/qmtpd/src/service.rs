//! The service face: start-up, the loops over the listening sockets, and the end; as that of qmail-smtpd.
//!
//! Who is not to be served is not answered: these protocols have no word for it before a message, and a client that finds the connection
//! closed tries again later.

use crate::config::config;
use crate::conversation::Protocol;
use crate::session::{Worker, serve};
use control::{ClientRule, ClientRules, Networks, Root};
use ipc_async::Client;
use ipc_async::proxy::Arrival;
use ipc_async::service::{self, Lifeline, Word, left_over, share};
use logline::Line;
use qmtp::exchange::{NEEDS_PROGRAM, Peer};
use reception::admission::Admission;
use reception::log_line;
use reception::queue::Pool;
use reception::terms::{listed, terms};
use rustix::process::Signal;
use sandbox::Socket;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use sys::inherited::Inherited;
use sys::signal::Signals;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

/// For the directory's answer about a recipient.
const DIRECTORY_DEADLINE: Duration = Duration::from_secs(5);
/// For messages under way at the end.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// After an error of accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the end.
///
/// # Errors
/// The configuration is wrong, or what start-up needs is missing.
pub(crate) fn start(protocol: Protocol, root: &Root) -> io::Result<()> {
    let control = control::Smtpd::read(root).map_err(io::Error::other)?;
    let qmqpclients = root.networks("qmqpclients").map_err(io::Error::other)?.unwrap_or_default();
    let mut inherited = Inherited::take()?;
    let (lifeline, run) = (inherited.one("lifeline")?, inherited.one("run")?);
    let listeners = inherited.all("listen:");
    let signals = Signals::new(&[Signal::TERM])?;
    let sessions_max = share(control.sessions_max, &std::env::var("QMAIL_WORKER").unwrap_or_default());
    service::run(async {
        let listeners = listeners
            .into_iter()
            .map(|(name, fd)| {
                let proxies = root.proxies(&name).map_err(io::Error::other)?.map(Rc::new);
                let option = |key: &str| root.listener_option(&name, key).map_err(io::Error::other);
                let listener = Listener { proxies, queue: option("queue")?, check: option("rcptcheck")? };
                Ok((Rc::new(listener), service::tcp_listener(fd)?))
            })
            .collect::<io::Result<Vec<_>>>()?;
        sandbox::enter_as(protocol.program(), root.path(), &[])?;
        let run = Rc::new(run);
        let gate = Gate {
            admission: Rc::new(Admission::new(sessions_max, control.sessions_per_address_max)),
            bounds_this_host: control.bounds_this_host,
            relayclients: control.relayclients.clone(),
            rules: control.client_rules.clone(),
            qmqpclients,
            worker: Rc::new(Worker::new(
                protocol,
                config(control, Vec::new()),
                Pool::new(Rc::clone(&run), Socket::Queue.path()),
                Client::new(run, Socket::Auth.path(), DIRECTORY_DEADLINE),
            )),
        };
        let lifeline = Lifeline::new(lifeline)?.or_on(&signals)?;
        inherited.ready()?;
        serve_until(Rc::new(gate), listeners, &lifeline).await;
        Ok(())
    })
}

/// What a line of control/listen says.
struct Listener {
    /// For a listener behind proxies: whose header is believed.
    proxies: Option<Rc<Networks>>,
    /// `queue=`: a program in the place of qmail-queue.
    queue: Option<Vec<u8>>,
    /// `rcptcheck=`: a program that judges recipients.
    check: Option<Vec<u8>>,
}

impl Listener {
    /// Must a program see the mail of this client? It is asked by SMTP alone, and here no mail passes it by.
    fn needs_program(&self, protocol: Protocol, rule: &ClientRule, relays: bool) -> bool {
        let is_named = |variable: &str, of_listener: &Option<Vec<u8>>| {
            rule.value(variable).or(of_listener.as_deref()).is_some_and(|program| !program.is_empty())
        };
        let checks_all = || rule.value("RCPTCHECKRELAYCLIENT").and_then(control::read::int_of).unwrap_or(0) > 0;
        // By QMQP nobody asks who a recipient is.
        let is_checked = || protocol == Protocol::Qmtp && is_named("RCPTCHECK", &self.check) && (!relays || checks_all());
        is_named("QMAILQUEUE", &self.queue) || is_checked()
    }
}

/// Who comes in, and what serves him.
struct Gate {
    admission: Rc<Admission>,
    /// The bound of an address holds for this host, too.
    bounds_this_host: bool,
    relayclients: Networks,
    /// Those of SMTP: whoever may not come in there may not come in here.
    rules: ClientRules,
    /// Who may use QMQP.
    qmqpclients: Networks,
    worker: Rc<Worker>,
}

/// Accepts on `listeners` until the lifeline says otherwise, then lets the sessions end, or drains.
async fn serve_until(gate: Rc<Gate>, listeners: Vec<(Rc<Listener>, TcpListener)>, lifeline: &Lifeline) {
    let start = |(listener, socket)| spawn_local(accept(Rc::clone(&gate), socket, listener));
    let loops: Vec<_> = listeners.into_iter().map(start).collect();
    let word = lifeline.word().await;
    loops.iter().for_each(tokio::task::JoinHandle::abort);
    if word == Word::Retire {
        lifeline.end_or(gate.admission.left_by_all()).await;
    }
    gate.worker.begin_to_drain();
    let _ = timeout(DRAIN_MAX, gate.admission.left_by_all()).await;
}

async fn accept(gate: Rc<Gate>, socket: TcpListener, listener: Rc<Listener>) {
    loop {
        let accepted = if gate.admission.is_full() { left_over(&socket).await } else { Some(socket.accept().await) };
        match accepted {
            None => {}
            Some(Ok((stream, peer))) => match &listener.proxies {
                None => gate.admit(Arrival::direct(&stream, peer.ip()), stream, &listener),
                Some(proxies) => {
                    gate.admit_behind(Rc::clone(proxies), stream, peer.ip().to_canonical(), Rc::clone(&listener));
                }
            },
            Some(Err(_)) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

impl Gate {
    /// The proxy's header comes first; until then the connection has a place among all, none of an address.
    fn admit_behind(self: &Rc<Self>, proxies: Rc<Networks>, stream: TcpStream, proxy: IpAddr, listener: Rc<Listener>) {
        let Some(place) = self.admission.admit(proxy, true) else { return };
        let gate = Rc::clone(self);
        spawn_local(async move {
            match Arrival::behind(&stream, proxy, &proxies).await {
                Ok(arrival) => {
                    drop(place);
                    gate.admit(arrival, stream, &listener);
                }
                Err(problem) => {
                    let line = Line::new("closed").put("remote", proxy).bytes("reason", problem.to_string().as_bytes());
                    log_line(format_args!("{line}"));
                }
            }
        });
    }

    fn admit(&self, arrival: Arrival, stream: TcpStream, listener: &Listener) {
        let (origin, client) = (arrival.origin, arrival.origin.client);
        let mut peer = Peer { remote_ip: client.to_string().into_bytes().into(), ..Peer::default() };
        let rule = self.rules.of(client);
        let is_ours = match self.worker.protocol {
            Protocol::Qmtp => {
                if rule.is_denied {
                    return turned_away(client, "control/tcp.smtp");
                }
                let relay_client = rule.relay_client.clone().filter(|_| origin.is_this_host() || !client.is_loopback());
                peer.relay_client = relay_client.map(Into::into).or_else(|| origin.is_in(&self.relayclients).then(Box::default));
                peer.databytes = rule.databytes;
                peer.listed = listed(rule.value("RBLSMTPD"));
                // There is no greeting that could be held back.
                peer.terms = terms(|name| rule.value(name), 0);
                peer.relay_client.is_some()
            }
            Protocol::Qmqp if !origin.is_in(&self.qmqpclients) => {
                return turned_away(client, "not in control/qmqpclients");
            }
            Protocol::Qmqp => true,
        };
        peer.refusal = listener.needs_program(self.worker.protocol, &rule, is_ours).then_some(NEEDS_PROGRAM);
        let is_trusted = is_ours || (origin.is_this_host() && !self.bounds_this_host);
        let Some(place) = self.admission.admit(client, is_trusted) else {
            return turned_away(client, "too many connections");
        };
        // Answers are collected before they are sent; holding them back further only costs time.
        let _ = stream.set_nodelay(true);
        spawn_local(serve(Rc::clone(&self.worker), stream, peer, place));
    }
}

/// A client that gets no session. QMTP and QMQP have no words for it.
fn turned_away(client: IpAddr, why: &str) {
    log_line(format_args!("{}", Line::new("refused").put("remote", client).put("by", why)));
}
